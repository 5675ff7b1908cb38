//! The rows of the queue. An attachment that a page names is queued once per run, in the transaction that stages the
//! page.

use serde::Serialize;

use crate::error::Result;
use crate::record::Attachment;

use super::super::digest::{Digest, name_hash};
use super::super::rows::{
    ATTACHMENTS, AttachmentRow, FAILED, FILES, FileRow, KEPT_FROM, Key, LEDGER, LedgerAttachments, QUEUES,
    QueueRow, REQUEUED, RunStatus, SEEN, SEEN_BY_HASH, SeenByHashRow, SeenRow, run_key, seen_hash_key,
    seen_key,
};
use super::super::run_handle::Run;
use super::super::tables::{Change, Rows};

/// Attachments that are queued again get numbers from here on, above the number of any line.
pub(super) const REQUEUED_FROM: u64 = 1 << 62;

/// Attachments that one transaction queues again, or that one view reads.
const GROUP_ITEMS: usize = 200;

/// Bytes of their lines. A group that has reached them is full: one line may be as large as a batch.
const GROUP_BYTES: usize = 1024 * 1024;

/// A group of attachments: what one transaction queues again, or one view reads. It bounds memory, however many
/// attachments there are and however large.
#[derive(Debug, Default)]
pub(in crate::store) struct GroupSize {
    items: usize,
    bytes: usize,
}

impl GroupSize {
    /// Counts a line; true if there is room for another.
    pub(in crate::store) fn add(&mut self, line: &str) -> bool {
        self.items += 1;
        self.bytes += line.len();
        self.items < GROUP_ITEMS && self.bytes < GROUP_BYTES
    }
}

/// The attachments of a run, counted by how far they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AttachmentCounts {
    /// Attachments that the source named, each counted once.
    pub queued: u64,
    /// Attachments that the platform has.
    pub settled: u64,
    /// Attachments that were given up, and are listed: see
    /// [`SyncUnit::failed_attachments`](crate::SyncUnit::failed_attachments).
    pub failed: u64,
}

impl AttachmentCounts {
    /// Attachments that are still in the queue.
    pub fn left(&self) -> u64 {
        self.queued.saturating_sub(self.settled).saturating_sub(self.failed)
    }
}

impl From<LedgerAttachments> for AttachmentCounts {
    fn from(counts: LedgerAttachments) -> Self {
        Self { queued: counts.queued, settled: counts.settled, failed: counts.failed }
    }
}

impl Run {
    /// Counts the attachments of this run by how far they are.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt` or `Io`.
    pub fn attachment_counts(&self) -> Result<AttachmentCounts> {
        self.look(|rows, _| Ok(rows.get(&QUEUES, &self.run_key())?.unwrap_or_default().counts.into()))
    }

    /// [`Run::attachment_counts`], also for a run that is over or that a later life has resumed.
    pub(crate) fn attachment_totals(&self) -> Result<AttachmentCounts> {
        self.inner.tables.view(|rows| {
            if let Some(queue) = rows.get(&QUEUES, &self.run_key())? {
                return Ok(queue.counts.into());
            }
            let over = rows.get(&LEDGER, &self.run_key())?;
            Ok(over.map_or_else(AttachmentCounts::default, |entry| entry.attachments.into()))
        })
    }
}

/// Queues the lines of a page. `first` is the number, from 1, of the first of them in the run.
pub(in crate::store) fn queue_lines<'l>(
    run: &Run,
    change: &Change<'_>,
    first: u64,
    lines: impl Iterator<Item = &'l [u8]>,
) -> Result<()> {
    let mut queue = change.get(&QUEUES, &run.run_key())?.unwrap_or_default();
    for (number, line) in (first..).zip(lines) {
        let line = String::from_utf8_lossy(line);
        queue_line(run, change, &mut queue, number, line.trim_end())?;
    }
    change.put(&QUEUES, &run.run_key(), &queue)
}

pub(super) fn queue_line(
    run: &Run,
    change: &Change<'_>,
    queue: &mut QueueRow,
    number: u64,
    line: &str,
) -> Result<()> {
    let attachment = Attachment::from_line(line)?;
    if let Some(seen) = find_seen(change, run.unit_no, &attachment)? {
        if seen.by_hash && seen.unchanged {
            note_seen(change, run.unit_no, seen.run, seen.number, &attachment, seen.failed)?;
        }
        let place = run_key(run.unit_no, seen.run).and_number(seen.number);
        if seen.run == run.no {
            let before = change.get(&ATTACHMENTS, &place)?;
            if seen.number >= number || before.is_none_or(|row| row.tries > 0 || row.artifact.is_some()) {
                return Ok(());
            }
            change.remove(&ATTACHMENTS, &place)?;
            queue.counts.queued -= 1;
        } else if seen.failed {
            change.remove(&FAILED, &place)?;
            change.remove(&REQUEUED, &place)?;
        } else if seen.unchanged && vouched_for(change, run.unit_no, seen.run)? {
            return Ok(());
        }
    }
    queue.counts.queued += 1;
    note_seen(change, run.unit_no, run.no, number, &attachment, false)?;
    change.put(&ATTACHMENTS, &run.run_key().and_number(number), &AttachmentRow::new(line.to_owned()))
}

/// Whether the attachments that a past run queued are settled, because that run finished. A run that the ledger no
/// longer lists counts as finished: if it was abandoned, a later run has queued the same attachments again.
fn vouched_for(change: &Change<'_>, unit: u64, run: u64) -> Result<bool> {
    let entry = change.get(&LEDGER, &run_key(unit, run))?;
    Ok(entry.is_none_or(|entry| entry.status == RunStatus::Finished))
}

/// Records a batch of attachment metadata whose first line is line `first` of the run.
pub(in crate::store) fn put_file(
    run: &Run,
    change: &Change<'_>,
    seq: u64,
    first: u64,
    items: u32,
) -> Result<()> {
    change.put(&FILES, &run.batch_key(seq), &FileRow { artifact: None, first, items, loaded: true })
}

/// Records the artifact that announces a batch of metadata.
pub(in crate::store) fn name_file(
    run: &Run,
    change: &Change<'_>,
    seq: u64,
    artifact: Option<&String>,
) -> Result<()> {
    let key = run.batch_key(seq);
    match change.get(&FILES, &key)? {
        Some(file) => change.put(&FILES, &key, &FileRow { artifact: artifact.cloned(), ..file }),
        None => Ok(()),
    }
}

pub(super) fn read_line(run: &Run, number: u64, line: &str) -> Result<Attachment> {
    Attachment::from_line(line).map_err(|error| {
        let key = run.run_key().and_number(number);
        run.inner.tables.damaged(ATTACHMENTS.name, &key, error.to_string())
    })
}

/// Where an attachment is kept that was queued again under this number.
pub(super) fn kept_key(run: &Run, number: u64) -> Key {
    run.run_key().and_number(number - REQUEUED_FROM + KEPT_FROM)
}

/// Fails if an attachment is neither settled nor failed: then the run cannot end.
pub(in crate::store) fn check_attachments(run: &Run, change: &Change<'_>) -> Result<()> {
    let counts = AttachmentCounts::from(change.get(&QUEUES, &run.run_key())?.unwrap_or_default().counts);
    let prefix = run.run_key();
    let mut any = false;
    change.scan(&ATTACHMENTS, &prefix, &prefix, |_, _| {
        any = true;
        Ok(false)
    })?;
    if counts.left() > 0 || any {
        return Err(run.unfinished(format!("{} attachments are not settled", counts.left().max(1))));
    }
    Ok(())
}

/// Drops the queue of a run that is over. If the run finished, its list of attachments queued again is dropped too.
pub(in crate::store) fn drop_queue(
    change: &Change<'_>,
    run: &Key,
    finished: bool,
) -> Result<LedgerAttachments> {
    if finished {
        let from = run.clone().and_number(KEPT_FROM);
        change.remove_range(&REQUEUED, &from, &run.clone().and_number(u64::MAX))?;
    }
    let counts = change.get(&QUEUES, run)?.unwrap_or_default().counts;
    change.remove(&QUEUES, run)?;
    change.remove_all(&ATTACHMENTS, run)?;
    change.remove_all(&FILES, run)?;
    Ok(counts)
}

/// Removes every row about attachments of a unit.
pub(in crate::store) fn remove_attachments(change: &Change<'_>, unit: &Key) -> Result<()> {
    change.remove_all(&QUEUES, unit)?;
    change.remove_all(&ATTACHMENTS, unit)?;
    change.remove_all(&SEEN, unit)?;
    change.remove_all(&SEEN_BY_HASH, unit)?;
    change.remove_all(&FILES, unit)?;
    change.remove_all(&FAILED, unit)?;
    change.remove_all(&REQUEUED, unit)
}

/// Records that an attachment is queued, or failed, under a number of a run.
pub(super) fn note_seen(
    change: &Change<'_>,
    unit: u64,
    run: u64,
    number: u64,
    attachment: &Attachment,
    failed: bool,
) -> Result<()> {
    let seen = SeenRow { run, number, fingerprint: Digest::of(&said(attachment)), failed };
    let Attachment { parent_id, id, .. } = attachment;
    if find_seen_by_hash(change, unit, attachment)?.is_some() {
        change.remove(&SEEN_BY_HASH, &seen_hash_key(unit, parent_id, id))?;
    }
    change.put(&SEEN, &seen_key(unit, parent_id, id), &seen)
}

/// What is known of an attachment.
#[derive(Debug)]
pub(super) struct SeenAttachment {
    /// The run that queued it last, and its number there.
    pub(super) run: u64,
    pub(super) number: u64,
    /// It was settled as failed.
    pub(super) failed: bool,
    /// The source says the same about it as it did then.
    unchanged: bool,
    /// A store of format 1 knew it by a hash of 64 bits only.
    by_hash: bool,
}

/// What is known of an attachment.
pub(super) fn find_seen(
    rows: &impl Rows,
    unit: u64,
    attachment: &Attachment,
) -> Result<Option<SeenAttachment>> {
    let said = said(attachment);
    if let Some(row) = rows.get(&SEEN, &seen_key(unit, &attachment.parent_id, &attachment.id))? {
        let SeenRow { run, number, fingerprint, failed } = row;
        let unchanged = fingerprint == Digest::of(&said);
        return Ok(Some(SeenAttachment { run, number, failed, unchanged, by_hash: false }));
    }
    let row = find_seen_by_hash(rows, unit, attachment)?;
    Ok(row.map(|SeenByHashRow { run, number, fingerprint, failed }| {
        let unchanged = fingerprint == name_hash(&said);
        SeenAttachment { run, number, failed, unchanged, by_hash: true }
    }))
}

/// What format 1 recorded of an attachment, by hash. Two ids with the same hash can be told apart only while a row
/// holds the ids: while the attachment is queued, or listed as failed.
fn find_seen_by_hash(rows: &impl Rows, unit: u64, attachment: &Attachment) -> Result<Option<SeenByHashRow>> {
    let key = seen_hash_key(unit, &attachment.parent_id, &attachment.id);
    let Some(seen) = rows.get(&SEEN_BY_HASH, &key)? else { return Ok(None) };
    let place = run_key(unit, seen.run).and_number(seen.number);
    let line = match rows.get(&ATTACHMENTS, &place)?.map(|row| row.json) {
        None => match rows.get(&FAILED, &place)?.map(|row| row.json) {
            None => rows.get(&REQUEUED, &place)?.map(|row| row.json),
            line => line,
        },
        line => line,
    };
    let told = line.as_deref().and_then(|line| Attachment::from_line(line).ok());
    let same = |told: Attachment| told.id == attachment.id && told.parent_id == attachment.parent_id;
    Ok(told.is_none_or(same).then_some(seen))
}

/// What must change in the source before the attachment is uploaded again: its url, name or date.
fn said(attachment: &Attachment) -> String {
    let Attachment { url, file_name, modified_date, .. } = attachment;
    format!("{url}\0{file_name}\0{}", modified_date.as_deref().unwrap_or_default())
}

impl AttachmentRow {
    pub(super) fn new(json: String) -> Self {
        Self { json, artifact: None, saved: false, given_up: 0, tries: 0, ready_at: None, reason: None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::backend::memory::Memory;
    use super::super::super::{Page, Store};
    use super::*;

    /// Queues the attachments of one page in a stream of its own; returns how many the run has queued then.
    fn stage(run: &Run, stream: &str, attachments: &[&Attachment]) -> u64 {
        let mut page = Page::<u8>::last();
        for attachment in attachments {
            page.push("attachments", attachment.to_record().unwrap());
        }
        let mut page = Some(page);
        for batch in run.batches(stream, |_: Option<u8>| page.take().ok_or("there is one page")) {
            let batch = batch.unwrap();
            let id = batch.key().to_string();
            batch.acknowledge(id).unwrap();
        }
        run.attachment_counts().unwrap().queued
    }

    #[test]
    fn a_group_is_full_at_its_last_line_or_byte() {
        let full_after = |line: &str| {
            let mut size = GroupSize::default();
            (1..=2 * GROUP_ITEMS).find(|_| !size.add(line)).unwrap()
        };
        assert_eq!(full_after("a line"), GROUP_ITEMS);
        assert_eq!(full_after(&"x".repeat(GROUP_BYTES / 8)), 8);
        assert_eq!(full_after(&"x".repeat(GROUP_BYTES + 1)), 1);
    }

    #[test]
    fn what_format_1_noted_of_an_attachment_is_noted_whole_once_it_is_named_again() {
        let store = Store::options().open_in(Memory::new(), "memory").unwrap();
        let unit = store.sync_unit("acme/files").unwrap();
        let of = |id: &str| Attachment::new(id, format!("https://files.example/{id}"), "a.png", "P");
        let (same, moved, silent) = (of("same"), of("moved"), of("silent"));
        let run = unit.begin().unwrap();
        assert_eq!(stage(&run, "issues", &[&same, &moved, &silent]), 3);
        for queued in run.attachments() {
            let queued = queued.unwrap();
            let id = format!("upload of {}", queued.id);
            queued.acknowledge(id).unwrap();
        }
        let (no, unit_no) = (run.no, run.unit_no);
        run.finish().unwrap();
        let keys = |attachment: &Attachment| {
            let Attachment { parent_id, id, .. } = attachment;
            (seen_key(unit_no, parent_id, id), seen_hash_key(unit_no, parent_id, id))
        };
        let by_hash = |attachment: &Attachment, number| SeenByHashRow {
            run: no,
            number,
            fingerprint: name_hash(&said(attachment)),
            failed: false,
        };
        unit.inner
            .tables
            .change(|change| {
                for (attachment, number) in [(&same, 1), (&moved, 2), (&silent, 3)] {
                    let (whole, hash) = keys(attachment);
                    assert_eq!(change.need(&SEEN, &whole)?.number, number);
                    change.remove(&SEEN, &whole)?;
                    change.put(&SEEN_BY_HASH, &hash, &by_hash(attachment, number))?;
                }
                Ok(())
            })
            .unwrap();
        let known = |attachment: &Attachment| {
            let (whole, hash) = keys(attachment);
            let known = unit
                .inner
                .tables
                .view(|rows| Ok((rows.get(&SEEN, &whole)?, rows.get(&SEEN_BY_HASH, &hash)?)));
            known.unwrap()
        };

        let run = unit.begin().unwrap();
        let elsewhere = Attachment { url: "https://files.example/elsewhere".to_owned(), ..moved.clone() };
        // Only the attachment whose url changed is uploaded again.
        assert_eq!(stage(&run, "issues", &[&same, &elsewhere]), 1);
        let whole = |attachment: &Attachment, run, number| SeenRow {
            run,
            number,
            fingerprint: Digest::of(&said(attachment)),
            failed: false,
        };
        assert_eq!(known(&same), (Some(whole(&same, no, 1)), None));
        assert_eq!(known(&elsewhere), (Some(whole(&elsewhere, run.no, 2)), None));
        assert_eq!(known(&silent), (None, Some(by_hash(&silent, 3))));
        // If the row holds its ids, a change is noticed in the same way.
        assert_eq!(stage(&run, "others", &[&same]), 1);
        let elsewhere = Attachment { url: "https://files.example/same-2".to_owned(), ..same.clone() };
        assert_eq!(stage(&run, "more", &[&elsewhere]), 2);
    }
}
