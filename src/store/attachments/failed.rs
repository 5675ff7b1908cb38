//! The attachments that were given up: listed with the reason, and queued again when somebody asks for it.

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::model::RunId;
use crate::record::Attachment;
use crate::transfer::{Event, State, recount};

use super::super::open::SyncUnit;
use super::super::rows::{
    ATTACHMENTS, AttachmentRow, FAILED, FailedRow, KEPT_FROM, Key, LEDGER, QUEUES, REQUEUED, RUN_IDS, UNITS,
    run_and_number, run_key,
};
use super::super::run::Run;
use super::super::tables::{Rows, Tables};
use super::super::uploads::attachment_moved;
use super::queue::{GROUP, REQUEUED_FROM, find_seen, kept_key, note_seen, read_line};

/// Bytes of lines that are queued again at once where checkpoints are kept, as they stand in one: of these it holds the
/// lines whole, since no artifact of the run has them.
const REQUEUED_BYTES_MAX: usize = 100_000;

/// An attachment that was settled as failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FailedAttachment {
    /// The attachment, as the source named it.
    pub attachment: Attachment,
    /// Why it was given up, cut to 300 characters.
    pub reason: String,
    /// Attempts made.
    pub tries: u32,
    /// When it was given up.
    pub failed_at: DateTime<Utc>,
    /// The run that gave it up; `None` if it was restored from a checkpoint.
    pub run: Option<RunId>,
}

impl SyncUnit {
    /// The attachments that were given up, by run, and in a run in the order in which they were staged. They are read
    /// in groups, so their number costs no memory.
    pub fn failed_attachments(&self) -> impl Iterator<Item = Result<FailedAttachment>> + '_ {
        let mut group: std::collections::VecDeque<(Vec<u8>, FailedRow)> = std::collections::VecDeque::new();
        let mut after: Option<(u64, u64)> = None;
        let mut over = false;
        std::iter::from_fn(move || {
            if group.is_empty() && !over {
                match failed_after(self, after) {
                    Ok(rows) => group.extend(rows),
                    Err(error) => {
                        over = true;
                        return Some(Err(error));
                    }
                }
                over = group.is_empty();
            }
            let (tail, row) = group.pop_front()?;
            Some(place_in(&self.inner.tables, FAILED.name, &tail).and_then(|place| {
                after = Some(place);
                failed_attachment(self, place.0, row)
            }))
        })
    }

    /// Queues those given-up attachments again for which `wanted` is true. Returns how many. They belong to the open
    /// run if its attachments phase is not over, else to the next run.
    ///
    /// # Durability
    /// When this returns `Ok`, all of them stay queued after a power loss; after an error, some may be queued.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub fn requeue_failed(&self, mut wanted: impl FnMut(&FailedAttachment) -> bool) -> Result<u64> {
        let mut after = None;
        let mut requeued = 0;
        loop {
            let group = failed_after(self, after)?;
            if group.is_empty() {
                return Ok(requeued);
            }
            let mut chosen = Vec::new();
            for (tail, row) in group {
                let place = place_in(&self.inner.tables, FAILED.name, &tail)?;
                if wanted(&failed_attachment(self, place.0, row)?) {
                    chosen.push(place);
                }
                after = Some(place);
            }
            requeued += chosen.len() as u64;
            self.inner.tables.change(|change| {
                let unit = change.need(&UNITS, &self.key())?;
                for (run, number) in chosen {
                    let key = run_key(unit.no, run).and_number(number);
                    let row = change.need(&FAILED, &key)?;
                    change.remove(&FAILED, &key)?;
                    change.put(&REQUEUED, &key, &row)?;
                }
                Ok(())
            })?;
        }
    }
}

fn failed_after(sync_unit: &SyncUnit, after: Option<(u64, u64)>) -> Result<Vec<(Vec<u8>, FailedRow)>> {
    sync_unit.inner.tables.view(|rows| {
        let Some(unit) = rows.get(&UNITS, &sync_unit.key())? else { return Ok(Vec::new()) };
        let prefix = Key::unit(unit.no);
        let from = after.map_or(prefix.clone(), |(run, number)| run_key(unit.no, run).and_number(number + 1));
        let mut found = Vec::new();
        rows.scan(&FAILED, &prefix, &from, |tail, row| {
            found.push((tail.to_vec(), row));
            Ok(found.len() < GROUP)
        })?;
        Ok(found)
    })
}

fn failed_attachment(sync_unit: &SyncUnit, run: u64, row: FailedRow) -> Result<FailedAttachment> {
    let id = sync_unit.inner.tables.view(|rows| {
        let Some(unit) = rows.get(&UNITS, &sync_unit.key())? else { return Ok(None) };
        let entry = rows.get(&LEDGER, &run_key(unit.no, run))?;
        if let Some(entry) = entry {
            return Ok(Some(entry.id));
        }
        let ids = rows.all(&RUN_IDS, &Key::unit(unit.no))?;
        let row = ids.into_iter().map(|(_, row)| row).find(|row| row.run == run);
        Ok(row.and_then(|row| row.id.whole().map(str::to_owned)))
    })?;
    Ok(FailedAttachment {
        attachment: Attachment::from_line(&row.json)?,
        reason: row.reason,
        tries: row.tries,
        failed_at: row.failed_at.to_time(),
        run: id.map(RunId::new).transpose()?,
    })
}

impl Run {
    /// Queues some of what [`SyncUnit::requeue_failed`] named; says how many it looked at. Where checkpoints are kept, as
    /// many as one has room for; what is too large for that alone is listed as failed again.
    pub(crate) fn take_up_requeued(&self, checkpoints: bool) -> Result<usize> {
        if self.look(|rows, _| first_requeued(self, rows, 1))?.is_empty() {
            return Ok(0);
        }
        self.change(|change, _| {
            let mut queue = change.get(&QUEUES, &self.run_key())?.unwrap_or_default();
            let rows = first_requeued(self, change, GROUP)?;
            let (mut taken, mut bytes) = (0, 0);
            for ((run, number), failed) in rows {
                let key = run_key(self.unit_no, run).and_number(number);
                if checkpoints {
                    let line = serde_json::to_string(&failed.json).map_or(usize::MAX, |json| json.len());
                    if line > REQUEUED_BYTES_MAX {
                        let reason = format!(
                            "what names it takes {line} bytes of a checkpoint, and what is queued again may take {REQUEUED_BYTES_MAX}"
                        );
                        change.remove(&REQUEUED, &key)?;
                        change.put(&FAILED, &key, &FailedRow { reason, ..failed })?;
                        taken += 1;
                        continue;
                    }
                    bytes += line;
                    if bytes > REQUEUED_BYTES_MAX {
                        break;
                    }
                }
                taken += 1;
                change.remove(&REQUEUED, &key)?;
                let attachment = read_line(self, number, &failed.json)?;
                let seen = find_seen(change, self.unit_no, &attachment)?;
                // Taken up by a run that was abandoned, and named by this one.
                if seen.is_some_and(|seen| seen.run == self.no && !seen.failed) {
                    continue;
                }
                if run == self.no {
                    let after = attachment_moved(self, number, State::Failed, &[Event::QueuedAgain])?;
                    recount(
                        &mut queue.counts.failed,
                        State::Failed.counts().failed,
                        after.counts().failed,
                        1,
                    );
                } else {
                    queue.counts.queued += 1;
                }
                let number = REQUEUED_FROM + queue.requeued;
                queue.requeued += 1;
                note_seen(change, self.unit_no, self.no, number, &attachment, false)?;
                change.put(&REQUEUED, &kept_key(self, number), &failed)?;
                let row = AttachmentRow::new(failed.json);
                change.put(&ATTACHMENTS, &self.run_key().and_number(number), &row)?;
            }
            change.put(&QUEUES, &self.run_key(), &queue)?;
            Ok(taken)
        })
    }
}

/// What is to be queued again, at most so much, without what this run keeps of it: that comes last.
fn first_requeued(run: &Run, rows: &impl Rows, most: usize) -> Result<Vec<((u64, u64), FailedRow)>> {
    let unit = Key::unit(run.unit_no);
    let mut found = Vec::new();
    rows.scan(&REQUEUED, &unit, &unit, |tail, row| {
        let place = place_in(&run.inner.tables, FAILED.name, tail)?;
        if place >= (run.no, KEPT_FROM) {
            return Ok(false);
        }
        found.push((place, row));
        Ok(found.len() < most)
    })?;
    Ok(found)
}

/// The run and the number at the end of a key.
pub(super) fn place_in(tables: &Tables, table: &str, tail: &[u8]) -> Result<(u64, u64)> {
    run_and_number(tail).map_err(|error| tables.damaged(table, &Key::name(""), error.to_string()))
}
