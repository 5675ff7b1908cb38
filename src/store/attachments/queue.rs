//! The rows of the queue: what a page names is queued, once per run, in the transaction that stages the page.

use serde::Serialize;

use crate::error::Result;
use crate::record::Attachment;

use super::super::digest::name_hash;
use super::super::rows::{
    ATTACHMENTS, AttachmentRow, FAILED, FILES, FileRow, KEPT_FROM, Key, LEDGER, LedgerAttachments, QUEUES,
    QueueRow, REQUEUED, RunStatus, SEEN, SEEN_BY_HASH, SeenRow, run_key, seen_hash_key, seen_key,
};
use super::super::run::Run;
use super::super::tables::{Change, Rows};

/// Numbers of what is queued again, beyond those of any line.
pub(super) const REQUEUED_FROM: u64 = 1 << 62;

/// Attachments that are queued again in one transaction, or looked at in one view.
pub(super) const GROUP: usize = 200;

/// How far the attachments of a run are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AttachmentCounts {
    /// Named by the source, each once.
    pub queued: u64,
    /// The platform has them.
    pub settled: u64,
    /// Given up, and listed: see [`SyncUnit::failed_attachments`](crate::SyncUnit::failed_attachments).
    pub failed: u64,
}

impl AttachmentCounts {
    /// Those that are still in the queue.
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
    /// How far the attachments of this run are.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt` or `Io`.
    pub fn attachment_counts(&self) -> Result<AttachmentCounts> {
        self.look(|rows, _| Ok(rows.get(&QUEUES, &self.run_key())?.unwrap_or_default().counts.into()))
    }

    /// As [`Run::attachment_counts`], also of a run that is over, or that a later life has taken up.
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

/// Queues the lines of a page; the first of them is the `first` of the run, counted from 1.
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
        } else if seen.fingerprint == fingerprint(&attachment) && vouched_for(change, run.unit_no, seen.run)?
        {
            return Ok(());
        }
    }
    queue.counts.queued += 1;
    note_seen(change, run.unit_no, run.no, number, &attachment, false)?;
    change.put(&ATTACHMENTS, &run.run_key().and_number(number), &AttachmentRow::new(line.to_owned()))
}

/// Whether what a past run queued is settled: it was finished. Of runs that the ledger no longer has, each that was
/// abandoned was followed by one that queued the same again.
fn vouched_for(change: &Change<'_>, unit: u64, run: u64) -> Result<bool> {
    let entry = change.get(&LEDGER, &run_key(unit, run))?;
    Ok(entry.is_none_or(|entry| entry.status == RunStatus::Finished))
}

/// Notes a batch of metadata, whose first line is the `first` of the run.
pub(in crate::store) fn put_file(
    run: &Run,
    change: &Change<'_>,
    seq: u64,
    first: u64,
    items: u32,
) -> Result<()> {
    change.put(&FILES, &run.batch_key(seq), &FileRow { artifact: None, first, items, loaded: true })
}

/// Notes under which artifact a batch of metadata is announced.
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

/// Where what was queued again under a number is kept.
pub(super) fn kept_key(run: &Run, number: u64) -> Key {
    run.run_key().and_number(number - REQUEUED_FROM + KEPT_FROM)
}

/// What keeps the run from being over: an attachment that is neither settled nor failed.
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

/// Drops the queue of a run that is over, and, if it is finished, what it kept of that which it queued again.
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

/// Notes that an attachment is queued, or failed, under a number of a run.
pub(super) fn note_seen(
    change: &Change<'_>,
    unit: u64,
    run: u64,
    number: u64,
    attachment: &Attachment,
    failed: bool,
) -> Result<()> {
    let seen = SeenRow { run, number, fingerprint: fingerprint(attachment), failed };
    let Attachment { parent_id, id, .. } = attachment;
    if find_seen_by_hash(change, unit, attachment)?.is_some() {
        change.remove(&SEEN_BY_HASH, &seen_hash_key(unit, parent_id, id))?;
    }
    change.put(&SEEN, &seen_key(unit, parent_id, id), &seen)
}

/// What is known of an attachment.
pub(super) fn find_seen(rows: &impl Rows, unit: u64, attachment: &Attachment) -> Result<Option<SeenRow>> {
    match rows.get(&SEEN, &seen_key(unit, &attachment.parent_id, &attachment.id))? {
        None => find_seen_by_hash(rows, unit, attachment),
        seen => Ok(seen),
    }
}

/// What format 1 noted of an attachment. That it was another with the same hash is known only as long as a row tells its
/// ids: while it is queued, or listed as failed.
fn find_seen_by_hash(rows: &impl Rows, unit: u64, attachment: &Attachment) -> Result<Option<SeenRow>> {
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

/// The same as long as the source says the same of where it is, what it is called and when it was changed.
fn fingerprint(attachment: &Attachment) -> u64 {
    let Attachment { url, file_name, modified_date, .. } = attachment;
    name_hash(&format!("{url}\0{file_name}\0{}", modified_date.as_deref().unwrap_or_default()))
}

impl AttachmentRow {
    pub(super) fn new(json: String) -> Self {
        Self { json, artifact: None, saved: false, given_up: 0, tries: 0, ready_at: None, reason: None }
    }
}
