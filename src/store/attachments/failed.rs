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

/// Bytes of lines that are taken up at once: a checkpoint has each of them until it is settled.
const TAKEN_UP_BYTES: usize = 20_000;

/// An attachment that was settled as failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FailedAttachment {
    /// What the source said of it.
    pub attachment: Attachment,
    /// Why it was given up, cut to 300 characters.
    pub reason: String,
    /// Attempts made.
    pub tries: u32,
    /// When it was given up.
    pub failed_at: DateTime<Utc>,
    /// The run that gave it up; not known where a checkpoint brought it back.
    pub run: Option<RunId>,
}

impl SyncUnit {
    /// The attachments that were given up, in the order of their runs, then of their place there. Read in groups, so
    /// that any number of them costs no memory.
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

    /// Queues given-up attachments again, those that are `wanted`; says how many. The run at hand takes them up if it
    /// comes to its attachments phase yet, or is in it; otherwise the next one does.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss; after an error, some of it may.
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
    /// Queues some of what [`SyncUnit::requeue_failed`] named; says how many it looked at.
    pub(crate) fn take_up_requeued(&self) -> Result<usize> {
        if self.look(|rows, _| first_requeued(self, rows, 1))?.is_empty() {
            return Ok(0);
        }
        self.change(|change, _| {
            let mut queue = change.get(&QUEUES, &self.run_key())?.unwrap_or_default();
            let rows = first_requeued(self, change, GROUP)?;
            let taken = rows.len();
            for ((run, number), failed) in rows {
                change.remove(&REQUEUED, &run_key(self.unit_no, run).and_number(number))?;
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

/// What is to be queued again, at most so many of [`TAKEN_UP_BYTES`], and one in any case; without what this run keeps of it: that comes last.
fn first_requeued(run: &Run, rows: &impl Rows, most: usize) -> Result<Vec<((u64, u64), FailedRow)>> {
    let unit = Key::unit(run.unit_no);
    let (mut found, mut bytes) = (Vec::new(), 0);
    rows.scan(&REQUEUED, &unit, &unit, |tail, row| {
        let place = place_in(&run.inner.tables, FAILED.name, tail)?;
        if place >= (run.no, KEPT_FROM) {
            return Ok(false);
        }
        bytes += row.json.len();
        if found.is_empty() || bytes <= TAKEN_UP_BYTES {
            found.push((place, row));
        }
        Ok(found.len() < most && bytes < TAKEN_UP_BYTES)
    })?;
    Ok(found)
}

/// The run and the number at the end of a key.
pub(super) fn place_in(tables: &Tables, table: &str, tail: &[u8]) -> Result<(u64, u64)> {
    run_and_number(tail).map_err(|error| tables.damaged(table, &Key::name(""), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::store::{Page, Store};

    #[test]
    fn what_is_queued_again_is_taken_up_by_little_and_all_of_it_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let unit = Store::open(dir.path().join("state.redb")).unwrap().sync_unit("acme/files").unwrap();
        let run = unit.begin().unwrap();
        // Addresses of some length, one of which alone is more than is taken up at once.
        let bytes = |at: usize| if at == 7 { 50_000 } else { 10 + at * 60 };
        let fetch = |_: Option<u8>| -> Result<Page<u8>> {
            let mut page = Page::last();
            for at in 0..60 {
                let url = "u".repeat(bytes(at));
                let line = serde_json::json!({ "id": at.to_string(), "url": url, "file_name": "f", "parent_id": "1" });
                page.push("attachments", Record::flat(&line)?);
            }
            Ok(page)
        };
        for batch in run.batches("files", fetch) {
            let batch = batch.unwrap();
            let id = batch.key().to_string();
            batch.acknowledge(id).unwrap();
        }
        for file in run.attachments() {
            file.unwrap().fail("busy").unwrap();
        }
        run.finish().unwrap();
        assert_eq!(unit.requeue_failed(|_| true).unwrap(), 60);
        let run = unit.begin().unwrap();
        let mut taken = Vec::new();
        loop {
            let before = taken.len();
            let more = run.take_up_requeued().unwrap();
            if more == 0 {
                break;
            }
            let rows = run.look(|rows, _| rows.all(&ATTACHMENTS, &run.run_key())).unwrap();
            taken = rows.into_iter().map(|(_, row)| row.json.len()).collect();
            assert_eq!(taken.len(), before + more);
            let bytes: usize = taken[before..].iter().sum();
            assert!(more == 1 || bytes <= TAKEN_UP_BYTES, "{more}: {bytes}");
        }
        assert_eq!(taken.len(), 60);
        assert!(taken.iter().any(|bytes| *bytes > 50_000));
    }
}
