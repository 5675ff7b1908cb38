//! Attachments that were given up: they are listed with the reason, and can be queued again on request.

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
use super::super::run_handle::Run;
use super::super::tables::{Rows, Tables};
use super::super::uploads::attachment_moved;
use super::queue::{GroupSize, REQUEUED_FROM, find_seen, kept_key, note_seen, read_line};

/// Bytes of the lines that may be queued again at one time where checkpoints are kept. A checkpoint holds these lines
/// whole, because no artifact of the run contains them.
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
    /// The attachments that were given up: by run, and within a run in the order in which they were staged. They are
    /// read in groups, so memory does not grow with their number.
    pub fn failed_attachments(&self) -> impl Iterator<Item = Result<FailedAttachment>> + '_ {
        let mut group: std::collections::VecDeque<((u64, u64), FailedRow)> =
            std::collections::VecDeque::new();
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
            let (place, row) = group.pop_front()?;
            after = Some(place);
            Some(failed_attachment(self, place.0, row))
        })
    }

    /// Queues again the given-up attachments for which `wanted` is true, and returns how many these are. They belong
    /// to the open run if its attachments phase is not over, otherwise to the next run.
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
            for (place, row) in group {
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

fn failed_after(sync_unit: &SyncUnit, after: Option<(u64, u64)>) -> Result<Vec<((u64, u64), FailedRow)>> {
    sync_unit.inner.tables.view(|rows| {
        let Some(unit) = rows.get(&UNITS, &sync_unit.key())? else { return Ok(Vec::new()) };
        let prefix = Key::unit(unit.no);
        let from = after.map_or(prefix.clone(), |(run, number)| run_key(unit.no, run).and_number(number + 1));
        let (mut found, mut size) = (Vec::new(), GroupSize::default());
        rows.scan(&FAILED, &prefix, &from, |tail, row| {
            let more = size.add(&row.json);
            found.push((place_in(&sync_unit.inner.tables, FAILED.name, tail)?, row));
            Ok(more)
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
    /// Queues some of the attachments that [`SyncUnit::requeue_failed`] selected, and returns how many it examined.
    /// Where checkpoints are kept, it queues as many as one has room for; an attachment that is too large even alone
    /// is listed as failed again.
    pub(crate) fn take_up_requeued(&self, checkpoints: bool) -> Result<usize> {
        if self.look(|rows, _| first_requeued(self, rows, 1))?.is_empty() {
            return Ok(0);
        }
        self.change(|change, _| {
            let mut queue = change.get(&QUEUES, &self.run_key())?.unwrap_or_default();
            let (mut taken, mut bytes) = (0, 0);
            for ((run, number), failed) in first_requeued(self, change, usize::MAX)? {
                let key = run_key(self.unit_no, run).and_number(number);
                if checkpoints {
                    let line = serde_json::to_string(&failed.json).map_or(usize::MAX, |json| json.len());
                    if line > REQUEUED_BYTES_MAX {
                        let reason = format!(
                            "its line takes {line} bytes of a checkpoint, and lines that are queued again may take {REQUEUED_BYTES_MAX}"
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
                // An abandoned run queued it again, and this run has named it too.
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

/// The first attachments to queue again, at most `most`. Those that this run has already queued again are left out.
fn first_requeued(run: &Run, rows: &impl Rows, most: usize) -> Result<Vec<((u64, u64), FailedRow)>> {
    let unit = Key::unit(run.unit_no);
    let (mut found, mut size) = (Vec::new(), GroupSize::default());
    rows.scan(&REQUEUED, &unit, &unit, |tail, row| {
        let place = place_in(&run.inner.tables, REQUEUED.name, tail)?;
        if place >= (run.no, KEPT_FROM) {
            return Ok(false);
        }
        let more = size.add(&row.json);
        found.push((place, row));
        Ok(more && found.len() < most)
    })?;
    Ok(found)
}

/// The run and the number at the end of a key.
pub(super) fn place_in(tables: &Tables, table: &str, tail: &[u8]) -> Result<(u64, u64)> {
    run_and_number(tail).map_err(|error| tables.damaged(table, &Key::name(""), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::super::backend::memory::Memory;
    use super::super::super::{Page, Store};
    use super::*;

    const COUNT: usize = 45;

    /// A run whose source names so many attachments, each in a line of more than 100,000 bytes.
    fn begun(unit: &SyncUnit) -> Run {
        let run = unit.begin().unwrap();
        let mut page = Page::<u8>::last();
        for n in 0..COUNT {
            let url = format!("https://files.example/{n}/{}", "s".repeat(100_000));
            page.push(
                "attachments",
                Attachment::new(format!("A{n:02}"), url, "a.png", "P").to_record().unwrap(),
            );
        }
        let mut page = Some(page);
        for batch in run.batches("issues", |_: Option<u8>| page.take().ok_or("there is one page")) {
            let batch = batch.unwrap();
            let id = batch.key().to_string();
            batch.acknowledge(id).unwrap();
        }
        run
    }

    /// The ids that one loop over the queue yields, each failed for the reason.
    fn fail_all(run: &Run, reason: &str) -> Vec<String> {
        let failed = run.attachments().map(|queued| {
            let queued = queued.unwrap();
            let id = queued.id.clone();
            queued.fail(reason).unwrap();
            id
        });
        failed.collect()
    }

    /// Regression: two hundred lines, each as large as a batch, were read into memory at once.
    #[test]
    fn however_large_the_lines_are_what_is_queued_again_is_read_a_few_at_a_time() {
        // The eleventh line makes a group larger than 1 MiB.
        const FEW: usize = 11;
        let store = Store::options().open_in(Memory::new(), "memory").unwrap();
        let unit = store.sync_unit("acme/files").unwrap();
        let run = begun(&unit);
        let all: Vec<String> = (0..COUNT).map(|n| format!("A{n:02}")).collect();
        assert_eq!(run.pending(0).unwrap().len(), FEW);
        assert_eq!(fail_all(&run, "the first time"), all);
        assert_eq!(failed_after(&unit, None).unwrap().len(), FEW);
        assert_eq!(unit.failed_attachments().count(), COUNT);

        // One after the other, as the loop takes them.
        assert_eq!(unit.requeue_failed(|_| true).unwrap(), COUNT as u64);
        for taken in [FEW, FEW, FEW, FEW, 1, 0] {
            assert_eq!(run.take_up_requeued(false).unwrap(), taken);
        }
        assert_eq!(fail_all(&run, "the second time"), all);

        // The loop too: it takes no more than one group before that group is processed, and yields each attachment
        // once.
        assert_eq!(unit.requeue_failed(|_| true).unwrap(), COUNT as u64);
        let queued = |run: &Run| run.look(|rows, _| rows.all(&ATTACHMENTS, &run.run_key())).unwrap().len();
        let mut yielded = Vec::new();
        for attachment in run.attachments() {
            let attachment = attachment.unwrap();
            assert!(queued(&run) <= yielded.len().div_ceil(2) + FEW);
            yielded.push(attachment.id.clone());
            // An attachment that is dropped is yielded by the next loop.
            if yielded.len() % 2 == 0 {
                attachment.fail("the third time").unwrap();
            }
        }
        assert_eq!(yielded, all);
        let again = fail_all(&run, "the fourth time");
        assert_eq!(again, all.iter().step_by(2).cloned().collect::<Vec<_>>());
        assert_eq!(unit.failed_attachments().count(), COUNT);
        run.finish().unwrap();
    }
}
