//! The lives of a run that ended without an answer: killed, or ended by an error of their own.
//!
//! A life cannot record its own death, so the next life does, in the transaction in which it resumes the run, or whoever
//! abandons the run: `unit, run, epoch -> when the life last stored something, and what it may have uploaded under unknown
//! ids`.
//! This gives an upper bound for the cost of a kill: the time from then until the next life, the page that was being
//! fetched, and one upload for each batch without an id. The newest 16 deaths of a run are kept until the run after
//! it ends.

use crate::error::Result;
use crate::model::Micros;

use super::rows::{BATCHES, BatchState, DEATHS, DeathRow, Key, RunRow, number_of};
use super::tables::{Change, Rows};

/// The most deaths of one run that are kept; the newest are.
const KEPT: usize = 16;

/// Whether the newest event of a run has no answer: unless its life goes on, that life has died.
pub(super) fn is_unanswered(row: &RunRow) -> bool {
    row.event.is_some() && row.message.is_none()
}

/// Records that the run's last life ended without an answer. The caller stores the row.
pub(super) fn note_death(change: &Change<'_>, run: &Key, row: &mut RunRow, now: Micros) -> Result<()> {
    let mut death = DeathRow { changed_at: row.activity.changed_at, found_at: now, batches: 0, items: 0 };
    for (_, batch) in change.all(&BATCHES, run)? {
        if batch.state == BatchState::Staged && batch.artifact.is_none() {
            death.batches += 1;
            death.items += u64::from(batch.items);
        }
    }
    change.put(&DEATHS, &run.clone().and_number(row.epoch), &death)?;
    let deaths = change.all(&DEATHS, run)?;
    let excess = deaths.len().saturating_sub(KEPT);
    for (tail, _) in deaths.into_iter().take(excess) {
        let epoch =
            number_of(&tail).map_err(|error| change.tables().damaged(DEATHS.name, run, error.to_string()))?;
        change.remove(&DEATHS, &run.clone().and_number(epoch))?;
    }
    row.activity.deaths += 1;
    row.activity.changed_at = Some(now);
    Ok(())
}
