//! The queue of attachments: named while data is extracted, worked off days later, each settled once.
//!
//! A record of item type `attachments` that is staged in the data phase is queued in the same transaction, under the
//! number of its line among all such lines of the run. Once per (id, parent id) and run: named again, it is worked off
//! at its last place. One that a finished run settled is queued anew only if its url, name or date changed.
//!
//! | step | stored by it | killed right after it, the next life |
//! | --- | --- | --- |
//! | staged | the attachment, pending | streams it |
//! | uploaded | the artifact id of its bytes | confirms that id, streams nothing |
//! | retry | tries, why, when the next is due | tries again, then |
//! | settled | gone from the queue; its line for the platform is in an open batch | goes on with the others |
//! | failed | gone from the queue, listed with the reason | goes on with the others |
//!
//! A transaction takes in whatever came to an end since the one before it. Each attachment is a row of its own, and a
//! settled one leaves the queue, so none of these depends on how many there are.
//!
//! Without the store file the queue is made again from the artifacts in which the run announced the metadata. All lines
//! of a run are known before its first attachment is streamed, and an attachment is worked off at the last of them; so
//! what lies before the checkpoint's position need not be known again, but for the unsettled few that it names.

mod queued;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::{ArtifactId, ItemType, Micros, RunId};
use crate::record::{Attachment, Record};
use crate::transfer::{Event, State, recount};

use super::SyncUnit;
use super::batches::{Lines, UnsettledBatch};
use super::checkpoint::{FailedPart, Position, QueueCountsPart, QueuePart, UnsettledPart};
use super::codec::DecodeError;
use super::notes::forget_left_attachments;
use super::rows::{
    ATTACHMENTS, AttachmentRow, FAILED, FILES, FailedRow, FileRow, Json, Key, LEDGER, LedgerAttachments,
    POSITIONS, QUEUES, QueueRow, REQUEUED, RUN_IDS, RunStatus, SEEN, SeenRow, UNITS, name_hash, number_of,
};
use super::run::{Run, run_key};
use super::tables::{Change, Rows};

pub use queued::{Attachments, QueuedAttachment};

/// Attachments that were begun and are not settled, at most: what a checkpoint has to name.
pub(crate) const UNSETTLED_MAX: usize = 1_000;
/// Numbers of lines that another library had announced when it left the run to us: so many for each of its artifacts,
/// beyond those of any line of ours.
const INHERITED_FROM: u64 = 1 << 61;
const INHERITED_LINES_MAX: u64 = 1 << 40;
/// Numbers of what is queued again, beyond those of any line.
const REQUEUED_FROM: u64 = 1 << 62;
/// What a run queued again is kept under these until the run is finished, so that nothing is lost with an abandoned one.
pub(super) const KEPT_FROM: u64 = 1 << 63;
/// Attachments that are queued again in one transaction, or looked at in one view.
const GROUP: usize = 200;
/// Bytes of failed attachments that a checkpoint keeps; of more, the oldest are left out.
const FAILED_BYTES_MAX: usize = 20_000;
/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 300;

/// An attachment that is not settled, as `serve` takes it up.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) number: u64,
    pub(crate) attachment: Attachment,
    pub(crate) state: State,
    /// The id under which the platform has its bytes.
    pub(crate) artifact: Option<ArtifactId>,
    pub(crate) tries: u32,
    /// How long it is to be left alone still.
    pub(crate) wait: Duration,
}

/// What came of an attachment.
#[derive(Debug)]
pub(crate) enum Settling {
    /// The platform has its bytes.
    Uploaded(ArtifactId),
    /// The platform knows them to be ours; with the line that says so, where one is to be announced.
    Settled(Option<Record>),
    /// Its confirm was refused for good: it is to be uploaded anew.
    GivenUp,
    /// It is to be tried again.
    Retry { reason: String, wait: Duration },
    /// It is not tried any more.
    Failed(String),
}

/// How far the attachments of a run are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AttachmentCounts {
    /// Named by the source, each once.
    pub queued: u64,
    /// The platform has them.
    pub settled: u64,
    /// Given up, and listed: see [`SyncUnit::failed_attachments`].
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

impl Run {
    /// Queues the lines of a page; the first of them is the `first` of the run, counted from 1.
    pub(super) fn queue_lines(&self, change: &Change<'_>, first: u64, lines: &Lines) -> Result<()> {
        let mut queue = change.get(&QUEUES, &self.run_key())?.unwrap_or_default();
        for (number, line) in (first..).zip(lines.each()) {
            let line = String::from_utf8_lossy(line);
            self.queue(change, &mut queue, number, line.trim_end())?;
        }
        change.put(&QUEUES, &self.run_key(), &queue)
    }

    fn queue(&self, change: &Change<'_>, queue: &mut QueueRow, number: u64, line: &str) -> Result<()> {
        let attachment = Attachment::from_line(line)?;
        if let Some(seen) = change.get(&SEEN, &seen_key(self.unit_no, &attachment))? {
            let place = run_key(self.unit_no, seen.run).and_number(seen.number);
            if seen.run == self.no {
                let before = change.get(&ATTACHMENTS, &place)?;
                if seen.number >= number || before.is_none_or(|row| row.tries > 0 || row.artifact.is_some()) {
                    return Ok(());
                }
                change.remove(&ATTACHMENTS, &place)?;
                queue.counts.queued -= 1;
            } else if seen.failed {
                change.remove(&FAILED, &place)?;
                change.remove(&REQUEUED, &place)?;
            } else if seen.fingerprint == fingerprint(&attachment) && self.vouched_for(change, seen.run)? {
                return Ok(());
            }
        }
        queue.counts.queued += 1;
        note_seen(change, self.unit_no, self.no, number, &attachment, false)?;
        change.put(&ATTACHMENTS, &self.run_key().and_number(number), &AttachmentRow::new(line.to_owned()))
    }

    /// Whether what a past run queued is settled: it was finished. Of runs that the ledger no longer has, each that was
    /// abandoned was followed by one that queued the same again.
    fn vouched_for(&self, change: &Change<'_>, run: u64) -> Result<bool> {
        let entry = change.get(&LEDGER, &run_key(self.unit_no, run))?;
        Ok(entry.is_none_or(|entry| entry.status == RunStatus::Finished))
    }

    /// Notes a batch of metadata, whose first line is the `first` of the run.
    pub(super) fn put_file(&self, change: &Change<'_>, seq: u64, first: u64, items: u32) -> Result<()> {
        change.put(&FILES, &self.batch_key(seq), &FileRow { artifact: None, first, items, loaded: true })
    }

    /// Notes under which artifact a batch of metadata is announced.
    pub(super) fn name_file(&self, change: &Change<'_>, seq: u64, artifact: Option<&String>) -> Result<()> {
        let key = self.batch_key(seq);
        match change.get(&FILES, &key)? {
            Some(file) => change.put(&FILES, &key, &FileRow { artifact: artifact.cloned(), ..file }),
            None => Ok(()),
        }
    }

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

    /// What is not settled, from number `from` on, at most 200.
    pub(crate) fn pending(&self, from: u64) -> Result<Vec<Pending>> {
        let now = Micros::from_time(self.inner.clock.now());
        self.look(|rows, _| {
            let mut pending = Vec::new();
            let prefix = self.run_key();
            rows.scan(&ATTACHMENTS, &prefix, &prefix.clone().and_number(from), |tail, row| {
                let number = self.attachment_number(tail)?;
                let state = row.transfer_state(self.epoch);
                let artifact = row.artifact.map(|(id, _)| ArtifactId::new(id)).transpose()?;
                pending.push(Pending {
                    number,
                    attachment: self.read_line(number, &row.json)?,
                    state,
                    artifact,
                    tries: row.tries,
                    wait: row.ready_at.map_or(Duration::ZERO, |at| at.since(now)),
                });
                Ok(pending.len() < GROUP)
            })?;
            Ok(pending)
        })
    }

    fn read_line(&self, number: u64, line: &str) -> Result<Attachment> {
        Attachment::from_line(line).map_err(|error| {
            let key = self.run_key().and_number(number);
            self.inner.tables.damaged(ATTACHMENTS.name, &key, error.to_string())
        })
    }

    /// Stores what came of a group of attachments; none of number `position` or higher was begun. Returns the batches
    /// that the lines closed.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss.
    pub(crate) fn settle_attachments(
        &self,
        group: Vec<(u64, Settling)>,
        line_type: &str,
        position: u64,
    ) -> Result<Vec<UnsettledBatch>> {
        let line_type = ItemType::new(line_type)?;
        let batch_items = self.inner.settings.batch_items;
        self.change(|change, row| {
            let mut queue = change.need(&QUEUES, &self.run_key())?;
            queue.position = queue.position.max(position);
            let mut lines = Vec::new();
            for (number, settling) in group {
                lines.extend(self.settle(change, &mut queue, number, settling)?);
            }
            queue.lines += lines.len() as u64;
            change.put(&QUEUES, &self.run_key(), &queue)?;
            row.not_before = None;
            row.progress = Some(percent(queue.counts));
            let full = self.add_lines(change, row, &line_type, &Lines::of(&lines)?, batch_items)?;
            self.put_batches(change, row, "", &full, None)
        })
    }

    fn settle(
        &self,
        change: &Change<'_>,
        queue: &mut QueueRow,
        number: u64,
        settling: Settling,
    ) -> Result<Option<Record>> {
        let key = self.run_key().and_number(number);
        let Some(mut row) = change.get(&ATTACHMENTS, &key)? else {
            return Err(Error::Invalid {
                what: format!("attachment {number} of run {} of {}", self.id, self.unit),
                reason: "it was settled before".to_owned(),
            });
        };
        let events: &[Event] = match &settling {
            Settling::Uploaded(artifact) => {
                match &row.artifact {
                    Some((stored, _)) if stored == artifact.as_str() => return Ok(None),
                    Some((stored, _)) => {
                        return Err(Error::Invalid {
                            what: format!("the artifact id {artifact} of attachment {number}"),
                            reason: format!("it was uploaded as {stored}"),
                        });
                    }
                    None => {}
                }
                &[Event::Uploaded, Event::IdStored]
            }
            Settling::GivenUp => &[Event::ConfirmRefused, Event::GivingUpStored],
            Settling::Retry { .. } => &[],
            Settling::Settled(None) => &[Event::Acknowledged],
            Settling::Settled(Some(_)) => &[Event::Confirmed, Event::ConfirmStored, Event::LineStaged],
            Settling::Failed(_) => &[Event::GivenUp],
        };
        let state = row.transfer_state(self.epoch);
        let after = self.attachment_moved(number, state, events)?;
        let (was, is) = (state.counts(), after.counts());
        recount(&mut queue.counts.settled, was.announced, is.announced, 1);
        recount(&mut queue.counts.failed, was.failed, is.failed, 1);
        row.set_transfer_state(after);
        if is.announced || is.failed {
            change.remove(&ATTACHMENTS, &key)?;
        }
        match settling {
            Settling::Uploaded(artifact) => row.artifact = Some((artifact.to_string(), self.epoch)),
            Settling::GivenUp => {}
            Settling::Retry { reason, wait } => {
                row.tries += 1;
                row.ready_at = Some(Micros::from_time(self.inner.clock.now()).plus(wait));
                row.reason = Some(cut(&reason));
            }
            Settling::Settled(line) => return Ok(line),
            Settling::Failed(reason) => {
                self.list_as_failed(change, number, row, &reason)?;
                return Ok(None);
            }
        }
        change.put(&ATTACHMENTS, &key, &row)?;
        Ok(None)
    }

    /// Lists an attachment that was given up.
    fn list_as_failed(
        &self,
        change: &Change<'_>,
        number: u64,
        row: AttachmentRow,
        reason: &str,
    ) -> Result<()> {
        let attachment = self.read_line(number, &row.json)?;
        note_seen(change, self.unit_no, self.no, number, &attachment, true)?;
        let failed = FailedRow {
            json: row.json,
            reason: cut(reason),
            tries: row.tries + 1,
            failed_at: Micros::from_time(self.inner.clock.now()),
        };
        change.put(&FAILED, &self.run_key().and_number(number), &failed)?;
        if number >= REQUEUED_FROM {
            change.remove(&REQUEUED, &self.kept_key(number))?;
        }
        Ok(())
    }

    /// Queues some of what [`SyncUnit::requeue_failed`] named; says how many it looked at.
    pub(crate) fn take_up_requeued(&self) -> Result<usize> {
        if self.look(|rows, _| self.first_requeued(rows, 1))?.is_empty() {
            return Ok(0);
        }
        self.change(|change, _| {
            let mut queue = change.get(&QUEUES, &self.run_key())?.unwrap_or_default();
            let rows = self.first_requeued(change, GROUP)?;
            let taken = rows.len();
            for ((run, number), failed) in rows {
                change.remove(&REQUEUED, &run_key(self.unit_no, run).and_number(number))?;
                let attachment = self.read_line(number, &failed.json)?;
                let seen = change.get(&SEEN, &seen_key(self.unit_no, &attachment))?;
                // Taken up by a run that was abandoned, and named by this one.
                if seen.is_some_and(|seen| seen.run == self.no && !seen.failed) {
                    continue;
                }
                if run == self.no {
                    let after = self.attachment_moved(number, State::Failed, &[Event::QueuedAgain])?;
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
                change.put(&REQUEUED, &self.kept_key(number), &failed)?;
                let row = AttachmentRow::new(failed.json);
                change.put(&ATTACHMENTS, &self.run_key().and_number(number), &row)?;
            }
            change.put(&QUEUES, &self.run_key(), &queue)?;
            Ok(taken)
        })
    }

    /// Where what was queued again under a number is kept.
    fn kept_key(&self, number: u64) -> Key {
        self.run_key().and_number(number - REQUEUED_FROM + KEPT_FROM)
    }

    /// What is to be queued again, at most so much, without what this run keeps of it: that comes last.
    fn first_requeued(&self, rows: &impl Rows, most: usize) -> Result<Vec<((u64, u64), FailedRow)>> {
        let unit = Key::unit(self.unit_no);
        let mut found = Vec::new();
        rows.scan(&REQUEUED, &unit, &unit, |tail, row| {
            let place = self.run_and_number(tail)?;
            if place >= (self.no, KEPT_FROM) {
                return Ok(false);
            }
            found.push((place, row));
            Ok(found.len() < most)
        })?;
        Ok(found)
    }

    /// What keeps the run from being over: an attachment that is neither settled nor failed.
    pub(super) fn check_attachments(&self, change: &Change<'_>) -> Result<()> {
        let counts = AttachmentCounts::from(change.get(&QUEUES, &self.run_key())?.unwrap_or_default().counts);
        let prefix = self.run_key();
        let mut any = false;
        change.scan(&ATTACHMENTS, &prefix, &prefix, |_, _| {
            any = true;
            Ok(false)
        })?;
        if counts.left() > 0 || any {
            return Err(self.unfinished(format!("{} attachments are not settled", counts.left().max(1))));
        }
        Ok(())
    }

    /// The artifacts whose lines are still to be queued here, by seq; none unless a checkpoint brought the run back.
    pub(crate) fn files_to_load(&self) -> Result<Vec<(u64, ArtifactId)>> {
        self.look(|rows, _| {
            if !rows.get(&QUEUES, &self.run_key())?.is_some_and(|queue| queue.rebuild) {
                return Ok(Vec::new());
            }
            let mut files = Vec::new();
            for (tail, file) in rows.all(&FILES, &self.run_key())? {
                let seq = self.attachment_number(&tail)?;
                match file.artifact {
                    _ if file.loaded => {}
                    Some(artifact) => files.push((seq, ArtifactId::new(artifact)?)),
                    None => {
                        let key = self.batch_key(seq);
                        let reason = "its lines were announced under no id";
                        return Err(self.inner.tables.damaged(FILES.name, &key, reason));
                    }
                }
            }
            Ok(files)
        })
    }

    /// Takes over the artifacts that name attachments of a run which another library began, unless that was done.
    pub(crate) fn inherit_files(&self, artifacts: &[String]) -> Result<()> {
        let first_key = self.batch_key(INHERITED_FROM);
        let known = self.look(|rows, _| {
            let known = rows.get(&FILES, &first_key)?.is_some();
            Ok(known || rows.get(&QUEUES, &self.run_key())?.is_some_and(|queue| queue.position > 0))
        })?;
        if known || artifacts.is_empty() {
            return Ok(());
        }
        self.change(|change, _| {
            let mut number = INHERITED_FROM;
            for (seq, artifact) in (INHERITED_FROM..).zip(artifacts) {
                let artifact = Some(artifact.clone());
                let file = FileRow { artifact, first: number, items: 0, loaded: false };
                change.put(&FILES, &self.batch_key(seq), &file)?;
                number += INHERITED_LINES_MAX;
            }
            let queue = change.get(&QUEUES, &self.run_key())?.unwrap_or_default();
            change.put(&QUEUES, &self.run_key(), &QueueRow { rebuild: true, ..queue })
        })
    }

    /// Queues the lines of an artifact again. Of one that was inherited, `settled` says which were worked off before: by
    /// the place of the artifact, that of the line in it, the attachment's id and its parent's.
    pub(crate) fn load_file(
        &self,
        seq: u64,
        lines: &[u8],
        settled: impl Fn(u64, u64, &Attachment) -> bool,
    ) -> Result<()> {
        self.change(|change, _| {
            let mut file = change.need(&FILES, &self.batch_key(seq))?;
            let mut queue = change.need(&QUEUES, &self.run_key())?;
            let lines: Vec<&[u8]> =
                lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
            let items = u32::try_from(lines.len()).unwrap_or(u32::MAX);
            if file.items > 0 && items != file.items {
                return Err(Error::Invalid {
                    what: format!("an artifact with attachments of {}", self.unit),
                    reason: format!("it has {items} lines, and was announced with {}", file.items),
                });
            }
            let inherited = seq.checked_sub(INHERITED_FROM);
            for (at, line) in (0..).zip(lines) {
                let number = file.first + at;
                let line = String::from_utf8_lossy(line);
                let key = self.run_key().and_number(number);
                if let Some(place) = inherited
                    && settled(place, at, &Attachment::from_line(&line)?)
                {
                    continue;
                }
                match change.get(&ATTACHMENTS, &key)? {
                    // The checkpoint told only its number.
                    Some(row) if row.json.is_empty() => {
                        let attachment = Attachment::from_line(&line)?;
                        note_seen(change, self.unit_no, self.no, number, &attachment, false)?;
                        change.put(&ATTACHMENTS, &key, &AttachmentRow { json: line.into_owned(), ..row })?;
                    }
                    None if number >= queue.position => self.queue(change, &mut queue, number, &line)?,
                    _ => {}
                }
            }
            file.items = items;
            file.loaded = true;
            change.put(&FILES, &self.batch_key(seq), &file)?;
            change.put(&QUEUES, &self.run_key(), &queue)
        })
    }

    /// Records that the queue is whole again.
    pub(crate) fn queue_rebuilt(&self) -> Result<()> {
        let rebuild =
            self.look(|rows, _| Ok(rows.get(&QUEUES, &self.run_key())?.is_some_and(|queue| queue.rebuild)))?;
        if !rebuild {
            return Ok(());
        }
        self.change(|change, _| {
            let mut queue = change.need(&QUEUES, &self.run_key())?;
            let mut left = 0;
            let prefix = self.run_key();
            let mut untold = None;
            change.scan(&ATTACHMENTS, &prefix, &prefix, |tail, row| {
                left += 1;
                if row.json.is_empty() {
                    untold = Some(self.attachment_number(tail)?);
                }
                Ok(true)
            })?;
            if let Some(number) = untold {
                let key = prefix.and_number(number);
                return Err(self.inner.tables.damaged(ATTACHMENTS.name, &key, "no artifact holds its line"));
            }
            queue.counts.queued = queue.counts.settled + queue.counts.failed + left;
            queue.rebuild = false;
            change.put(&QUEUES, &self.run_key(), &queue)
        })
    }

    /// What a checkpoint says of the queue, as it is now.
    pub(super) fn queue_part(&self, rows: &impl Rows) -> Result<QueuePart> {
        let queue = rows.get(&QUEUES, &self.run_key())?.unwrap_or_default();
        let prefix = self.run_key();
        let mut unsettled: Vec<UnsettledPart> = Vec::new();
        let mut take = |tail: &[u8], row: AttachmentRow| {
            let number = self.attachment_number(tail)?;
            let line = (number >= REQUEUED_FROM).then_some(row.json);
            let artifact = row.artifact.map(|(id, _)| id);
            unsettled.push((number, artifact, row.given_up, row.tries, row.ready_at, line));
            Ok(())
        };
        rows.scan(&ATTACHMENTS, &prefix, &prefix, |tail, row| {
            let begun = self.attachment_number(tail)? < queue.position.min(REQUEUED_FROM);
            if begun {
                take(tail, row)?;
            }
            Ok(begun)
        })?;
        rows.scan(&ATTACHMENTS, &prefix, &prefix.clone().and_number(REQUEUED_FROM), |tail, row| {
            take(tail, row)?;
            Ok(true)
        })?;
        let queue = QueueCountsPart::of(&queue);
        Ok(QueuePart { queue, unsettled, ..self.failed_part(rows)? })
    }

    /// What a checkpoint says of attachments between two runs: those that were given up, as far as there is room.
    pub(super) fn failed_part(&self, rows: &impl Rows) -> Result<QueuePart> {
        let unit = Key::unit(self.unit_no);
        let mut bytes = 0;
        let mut kept = |table| -> Result<Vec<(u64, u64, FailedPart)>> {
            let mut kept = Vec::new();
            rows.scan(table, &unit, &unit, |tail, row: FailedRow| {
                let (run, number) = self.run_and_number(tail)?;
                bytes += row.json.len() + row.reason.len() + 60;
                if bytes <= FAILED_BYTES_MAX {
                    kept.push((run, number, FailedPart::of(row)));
                }
                Ok(bytes <= FAILED_BYTES_MAX)
            })?;
            Ok(kept)
        };
        // What is to be tried again comes first: of the rest only the list would be shorter.
        let requeued = kept(&REQUEUED)?;
        let failed = kept(&FAILED)?;
        Ok(QueuePart { failed, requeued, ..QueuePart::default() })
    }

    /// The files of lines that a checkpoint at this position has to name.
    pub(super) fn files_needed(
        &self,
        rows: &impl Rows,
        part: &QueuePart,
        next_seq: u64,
    ) -> Result<Vec<(u64, FileRow)>> {
        let mut files = Vec::new();
        for (tail, file) in rows.all(&FILES, &self.run_key())? {
            let seq = self.attachment_number(&tail)?;
            if (seq < next_seq || seq >= INHERITED_FROM) && part.needs(&file) {
                files.push((seq, file));
            }
        }
        Ok(files)
    }

    /// Records that a saved checkpoint names what is uploaded.
    pub(super) fn attachments_saved(&self, change: &Change<'_>) -> Result<()> {
        let Some(queue) = change.get(&QUEUES, &self.run_key())? else { return Ok(()) };
        let prefix = self.run_key();
        let mut named = Vec::new();
        for from in [0, REQUEUED_FROM] {
            change.scan(&ATTACHMENTS, &prefix, &prefix.clone().and_number(from), |tail, row| {
                let number = self.attachment_number(tail)?;
                if row.artifact.is_some() && !row.saved {
                    named.push((number, row));
                }
                Ok(number < queue.position || from > 0)
            })?;
        }
        for (number, mut row) in named {
            let state = row.transfer_state(self.epoch);
            row.set_transfer_state(self.attachment_moved(number, state, &[Event::Saved])?);
            change.put(&ATTACHMENTS, &prefix.clone().and_number(number), &row)?;
        }
        Ok(())
    }

    fn attachment_number(&self, tail: &[u8]) -> Result<u64> {
        number_of(tail)
            .map_err(|error| self.inner.tables.damaged(ATTACHMENTS.name, &self.run_key(), error.to_string()))
    }

    fn run_and_number(&self, tail: &[u8]) -> Result<(u64, u64)> {
        run_and_number(tail).map_err(|error| {
            self.inner.tables.damaged(FAILED.name, &Key::unit(self.unit_no), error.to_string())
        })
    }
}

/// Puts back what a checkpoint said of attachments.
pub(super) fn restore_queue(
    change: &Change<'_>,
    unit: u64,
    run: u64,
    is_open: bool,
    part: &QueuePart,
    files: impl Iterator<Item = (u64, FileRow)>,
) -> Result<()> {
    for (table, rows) in [(&FAILED, &part.failed), (&REQUEUED, &part.requeued)] {
        for (run, number, part) in rows {
            let row = part.row();
            change.put(table, &run_key(unit, *run).and_number(*number), &row)?;
            if let Ok(attachment) = Attachment::from_line(&row.json) {
                note_seen(change, unit, *run, *number, &attachment, true)?;
            }
        }
    }
    let prefix = run_key(unit, run);
    for (number, artifact, given_up, tries, ready_at, line) in &part.unsettled {
        let row = AttachmentRow {
            // Of an earlier life, whichever that was.
            artifact: artifact.clone().map(|id| (id, 0)),
            saved: artifact.is_some(),
            given_up: *given_up,
            tries: *tries,
            ready_at: *ready_at,
            ..AttachmentRow::new(line.clone().unwrap_or_default())
        };
        if let Some(attachment) = line.as_deref().and_then(|line| Attachment::from_line(line).ok()) {
            note_seen(change, unit, run, *number, &attachment, false)?;
        }
        change.put(&ATTACHMENTS, &prefix.clone().and_number(*number), &row)?;
    }
    let mut any = !part.is_empty();
    for (seq, file) in files {
        change.put(&FILES, &prefix.clone().and_number(seq), &file)?;
        any = true;
    }
    if is_open && any {
        change.put(&QUEUES, &prefix, &part.queue.row())?;
    }
    Ok(())
}

/// Drops the queue of a run that is over, and, if it is finished, what it kept of that which it queued again.
pub(super) fn drop_queue(change: &Change<'_>, run: &Key, finished: bool) -> Result<LedgerAttachments> {
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

impl SyncUnit {
    /// The attachments that were given up, in the order of their runs, then of their place there. Read in groups, so
    /// that any number of them costs no memory.
    pub fn failed_attachments(&self) -> impl Iterator<Item = Result<FailedAttachment>> + '_ {
        let mut group: std::collections::VecDeque<(Vec<u8>, FailedRow)> = std::collections::VecDeque::new();
        let mut after: Option<(u64, u64)> = None;
        let mut over = false;
        std::iter::from_fn(move || {
            if group.is_empty() && !over {
                match self.failed_after(after) {
                    Ok(rows) => group.extend(rows),
                    Err(error) => {
                        over = true;
                        return Some(Err(error));
                    }
                }
                over = group.is_empty();
            }
            let (tail, row) = group.pop_front()?;
            Some(self.run_and_number(&tail).and_then(|place| {
                after = Some(place);
                self.failed_attachment(place.0, row)
            }))
        })
    }

    fn failed_after(&self, after: Option<(u64, u64)>) -> Result<Vec<(Vec<u8>, FailedRow)>> {
        self.inner.tables.view(|rows| {
            let Some(unit) = rows.get(&UNITS, &self.key())? else { return Ok(Vec::new()) };
            let prefix = Key::unit(unit.no);
            let from =
                after.map_or(prefix.clone(), |(run, number)| run_key(unit.no, run).and_number(number + 1));
            let mut found = Vec::new();
            rows.scan(&FAILED, &prefix, &from, |tail, row| {
                found.push((tail.to_vec(), row));
                Ok(found.len() < GROUP)
            })?;
            Ok(found)
        })
    }

    fn failed_attachment(&self, run: u64, row: FailedRow) -> Result<FailedAttachment> {
        let id = self.inner.tables.view(|rows| {
            let Some(unit) = rows.get(&UNITS, &self.key())? else { return Ok(None) };
            let entry = rows.get(&LEDGER, &run_key(unit.no, run))?;
            if let Some(entry) = entry {
                return Ok(Some(entry.id));
            }
            let ids = rows.all(&RUN_IDS, &Key::unit(unit.no))?;
            Ok(ids.into_iter().find(|(_, row)| row.run == run).and_then(|(_, row)| row.id))
        })?;
        Ok(FailedAttachment {
            attachment: Attachment::from_line(&row.json)?,
            reason: row.reason,
            tries: row.tries,
            failed_at: row.failed_at.to_time(),
            run: id.map(RunId::new).transpose()?,
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
            let group = self.failed_after(after)?;
            if group.is_empty() {
                return Ok(requeued);
            }
            let mut chosen = Vec::new();
            for (tail, row) in group {
                let place = self.run_and_number(&tail)?;
                if wanted(&self.failed_attachment(place.0, row)?) {
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

    fn run_and_number(&self, tail: &[u8]) -> Result<(u64, u64)> {
        run_and_number(tail)
            .map_err(|error| self.inner.tables.damaged(FAILED.name, &self.key(), error.to_string()))
    }

    fn attachment_run(&self, tail: &[u8]) -> Result<u64> {
        number_of(tail)
            .map_err(|error| self.inner.tables.damaged(QUEUES.name, &self.key(), error.to_string()))
    }

    /// Forgets all that is known of the unit's attachments. Doing it twice is the same as once.
    pub(crate) fn delete_attachments(&self) -> Result<()> {
        self.inner.tables.change(|change| {
            let Some(unit) = change.get(&UNITS, &self.key())? else { return Ok(()) };
            let key = Key::unit(unit.no);
            let queues = change.all(&QUEUES, &key)?;
            remove_attachments(change, &key)?;
            for (tail, Json(json)) in change.all(&POSITIONS, &key)? {
                let damaged = |error: String| change.tables().damaged(POSITIONS.name, &key, error);
                let json =
                    Position::without_attachments(&json).map_err(|error| damaged(error.to_string()))?;
                let run = number_of(&tail).map_err(|error| damaged(error.to_string()))?;
                change.put(&POSITIONS, &run_key(unit.no, run), &Json(json))?;
            }
            forget_left_attachments(change, unit.no)?;
            // The lines that a run has staged stay, and so does how many they are.
            for (tail, QueueRow { lines, .. }) in queues {
                let run = run_key(unit.no, self.attachment_run(&tail)?);
                change.put(&QUEUES, &run, &QueueRow { lines, ..QueueRow::default() })?;
            }
            Ok(())
        })
    }
}

/// Removes every row about attachments of a unit.
pub(super) fn remove_attachments(change: &Change<'_>, unit: &Key) -> Result<()> {
    change.remove_all(&QUEUES, unit)?;
    change.remove_all(&ATTACHMENTS, unit)?;
    change.remove_all(&SEEN, unit)?;
    change.remove_all(&FILES, unit)?;
    change.remove_all(&FAILED, unit)?;
    change.remove_all(&REQUEUED, unit)
}

/// Notes that an attachment is queued, or failed, under a number of a run.
fn note_seen(
    change: &Change<'_>,
    unit: u64,
    run: u64,
    number: u64,
    attachment: &Attachment,
    failed: bool,
) -> Result<()> {
    let seen = SeenRow { run, number, fingerprint: fingerprint(attachment), failed };
    change.put(&SEEN, &seen_key(unit, attachment), &seen)
}

/// Those of one parent stand together.
fn seen_key(unit: u64, attachment: &Attachment) -> Key {
    Key::unit(unit).and_hash(&attachment.parent_id).and_hash(&attachment.id)
}

/// The same as long as the source says the same of where it is, what it is called and when it was changed.
fn fingerprint(attachment: &Attachment) -> u64 {
    let Attachment { url, file_name, modified_date, .. } = attachment;
    name_hash(&format!("{url}\0{file_name}\0{}", modified_date.as_deref().unwrap_or_default()))
}

pub(super) fn run_and_number(tail: &[u8]) -> Result<(u64, u64), DecodeError> {
    let (run, number) = tail.split_at(tail.len().min(8));
    Ok((number_of(run)?, number_of(number)?))
}

/// Percent of the queue that is worked off.
fn percent(counts: LedgerAttachments) -> u8 {
    let over = counts.settled + counts.failed;
    u8::try_from((over * 100).checked_div(counts.queued).unwrap_or(100)).unwrap_or(100)
}

fn cut(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

impl AttachmentRow {
    fn new(json: String) -> Self {
        Self { json, artifact: None, saved: false, given_up: 0, tries: 0, ready_at: None, reason: None }
    }
}
