//! The outcome of attachments: each moves to its next step, is listed as failed, or leaves the queue, and the counts
//! follow.

use std::borrow::Cow;
use std::time::Duration;

use crate::cut;
use crate::error::{Error, Result};
use crate::model::{ArtifactId, ItemType, Micros};
use crate::record::{Attachment, Record};
use crate::transfer::{Event, State, recount};

use super::super::batches::staging::{OpenLines, add_lines, put_batches};
use super::super::batches::states::UnsettledBatch;
use super::super::lines::Lines;
use super::super::rows::{
    ATTACHMENTS, AttachmentRow, FAILED, FailedRow, LedgerAttachments, QUEUES, QueueRow, REQUEUED,
};
use super::super::run_handle::Run;
use super::super::tables::{Change, Rows};
use super::super::uploads::attachment_moved;
use super::super::used_ids;
use super::queue::{GroupSize, REQUEUED_FROM, kept_key, note_seen, read_line};

/// The most attachments that may be begun and not settled: a checkpoint has to name each of them.
pub(crate) const UNSETTLED_MAX: usize = 1_000;

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 300;

/// An attachment that is not settled, as `serve` picks it up.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) number: u64,
    pub(crate) attachment: Attachment,
    pub(crate) state: State,
    /// The id under which the platform has its bytes.
    pub(crate) artifact: Option<ArtifactId>,
    pub(crate) tries: u32,
    /// How long to wait before it is tried again.
    pub(crate) wait: Duration,
}

/// The outcome of an attachment.
#[derive(Debug)]
pub(crate) enum Settling {
    /// The platform has its bytes.
    Uploaded(ArtifactId),
    /// The platform has confirmed them as ours. With the line that announces it, if there is one.
    Settled(Option<Record>),
    /// Its confirm was refused for good: it has to be uploaded again.
    GivenUp,
    /// It will be tried again.
    Retry { reason: String, wait: Duration },
    /// It is not tried any more.
    Failed(String),
}

impl Run {
    /// The unsettled attachments from number `from` on: one group at most, and at least one if there is one.
    pub(crate) fn pending(&self, from: u64) -> Result<Vec<Pending>> {
        let now = Micros::from_time(self.inner.clock.now());
        self.look(|rows, _| {
            let (mut pending, mut size) = (Vec::new(), GroupSize::default());
            let prefix = self.run_key();
            rows.scan(&ATTACHMENTS, &prefix, &prefix.clone().and_number(from), |tail, row| {
                let more = size.add(&row.json);
                let number = self.number_in(ATTACHMENTS.name, tail)?;
                let state = row.transfer_state(self.epoch);
                let artifact = row.artifact.map(|(id, _)| ArtifactId::new(id)).transpose()?;
                pending.push(Pending {
                    number,
                    attachment: read_line(self, number, &row.json)?,
                    state,
                    artifact,
                    tries: row.tries,
                    wait: row.ready_at.map_or(Duration::ZERO, |at| at.since(now)),
                });
                Ok(more)
            })?;
            Ok(pending)
        })
    }

    /// Stores the outcomes of a group of attachments. No attachment of number `position` or higher has begun. Returns
    /// the batches that the new lines filled.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss.
    pub(crate) fn settle_attachments(
        &self,
        group: Vec<(u64, Settling)>,
        line_type: &str,
        position: u64,
    ) -> Result<(Vec<UnsettledBatch>, Vec<u64>)> {
        let line_type = ItemType::new(line_type)?;
        let batch_items = self.inner.settings.batch_items;
        self.change(|change, row| {
            let mut queue = change.need(&QUEUES, &self.run_key())?;
            queue.position = queue.position.max(position);
            let (mut lines, mut used) = (Lines::default(), Vec::new());
            for (number, settling) in group {
                if let Settling::Uploaded(artifact) = &settling
                    && !takes_id(self, change, number, artifact)?
                {
                    used.push(number);
                    continue;
                }
                if let Some(line) = move_attachment(self, change, &mut queue, number, settling)? {
                    lines.push(&line)?;
                }
            }
            queue.lines += lines.len() as u64;
            change.put(&QUEUES, &self.run_key(), &queue)?;
            row.not_before = None;
            row.progress = Some(percent(queue.counts));
            let (lines, mut open) = (Cow::Owned(lines), OpenLines::default());
            let full = add_lines(self, change, &line_type, &lines, batch_items, &mut open)?;
            open.put(self, change, row)?;
            Ok((put_batches(self, change, row, &full, &|| ())?, used))
        })
    }
}

/// Records the id of an upload, unless it is stored already. False if the run has used the id for another artifact.
pub(super) fn takes_id(run: &Run, change: &Change<'_>, number: u64, artifact: &ArtifactId) -> Result<bool> {
    let row = change.get(&ATTACHMENTS, &run.run_key().and_number(number))?;
    match row.and_then(|row| row.artifact) {
        None => used_ids::take(change, &run.run_key(), artifact, Micros::from_time(run.inner.clock.now())),
        // `move_attachment` compares it with the stored id.
        Some(_) => Ok(true),
    }
}

pub(super) fn move_attachment(
    run: &Run,
    change: &Change<'_>,
    queue: &mut QueueRow,
    number: u64,
    settling: Settling,
) -> Result<Option<Record>> {
    let key = run.run_key().and_number(number);
    let Some(mut row) = change.get(&ATTACHMENTS, &key)? else {
        return Err(Error::Invalid {
            what: format!("attachment {number} of run {} of {}", run.id, run.unit),
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
    let state = row.transfer_state(run.epoch);
    let after = attachment_moved(run, number, state, events)?;
    let (was, is) = (state.counts(), after.counts());
    recount(&mut queue.counts.settled, was.announced, is.announced, 1);
    recount(&mut queue.counts.failed, was.failed, is.failed, 1);
    row.set_transfer_state(after);
    if is.announced || is.failed {
        change.remove(&ATTACHMENTS, &key)?;
    }
    match settling {
        Settling::Uploaded(artifact) => row.artifact = Some((artifact.to_string(), run.epoch)),
        Settling::GivenUp => {}
        Settling::Retry { reason, wait } => {
            row.tries += 1;
            row.ready_at = Some(Micros::from_time(run.inner.clock.now()).plus(wait));
            row.reason = Some(cut::to_chars(&reason, REASON_CHARS_MAX));
        }
        Settling::Settled(line) => return Ok(line),
        Settling::Failed(reason) => {
            list_as_failed(run, change, number, row, &reason)?;
            return Ok(None);
        }
    }
    change.put(&ATTACHMENTS, &key, &row)?;
    Ok(None)
}

/// Lists an attachment as given up.
fn list_as_failed(
    run: &Run,
    change: &Change<'_>,
    number: u64,
    row: AttachmentRow,
    reason: &str,
) -> Result<()> {
    let attachment = read_line(run, number, &row.json)?;
    note_seen(change, run.unit_no, run.no, number, &attachment, true)?;
    let failed = FailedRow {
        json: row.json,
        reason: cut::to_chars(reason, REASON_CHARS_MAX),
        tries: row.tries + 1,
        failed_at: Micros::from_time(run.inner.clock.now()),
    };
    change.put(&FAILED, &run.run_key().and_number(number), &failed)?;
    if number >= REQUEUED_FROM {
        change.remove(&REQUEUED, &kept_key(run, number))?;
    }
    Ok(())
}

/// Records that a saved checkpoint names the uploaded attachments.
pub(in crate::store) fn attachments_saved(run: &Run, change: &Change<'_>) -> Result<()> {
    let Some(queue) = change.get(&QUEUES, &run.run_key())? else { return Ok(()) };
    let prefix = run.run_key();
    let mut named = Vec::new();
    for from in [0, REQUEUED_FROM] {
        change.scan(&ATTACHMENTS, &prefix, &prefix.clone().and_number(from), |tail, row| {
            let number = run.number_in(ATTACHMENTS.name, tail)?;
            if row.artifact.is_some() && !row.saved {
                named.push((number, row));
            }
            Ok(number < queue.position || from > 0)
        })?;
    }
    for (number, mut row) in named {
        let state = row.transfer_state(run.epoch);
        row.set_transfer_state(attachment_moved(run, number, state, &[Event::Saved])?);
        change.put(&ATTACHMENTS, &prefix.clone().and_number(number), &row)?;
    }
    Ok(())
}

/// Percent of the queue that is done.
fn percent(counts: LedgerAttachments) -> u8 {
    let over = counts.settled + counts.failed;
    u8::try_from((over * 100).checked_div(counts.queued).unwrap_or(100)).unwrap_or(100)
}
