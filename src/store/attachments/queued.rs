//! The loop over attachments, for a caller that streams them itself.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::model::{ArtifactId, Micros};
use crate::record::Attachment;

use super::super::rows::{ATTACHMENTS, AttachmentRow, Key, QUEUES, SEEN, SEEN_BY_HASH};
use super::super::run_handle::Run;
use super::super::tables::Rows;
use super::super::uploads::id_used;
use super::queue::read_line;
use super::settle::{Settling, move_attachment, takes_id};

/// An attachment for the caller to stream; made by [`Run::attachments`].
///
/// Dropping it is always safe: the next [`Run::attachments`] yields it again.
pub struct QueuedAttachment {
    run: Run,
    number: u64,
    attachment: Attachment,
    tries: u32,
    artifact: Mutex<Option<String>>,
}

impl fmt::Debug for QueuedAttachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedAttachment")
            .field("attachment", &self.attachment)
            .field("tries", &self.tries)
            .finish_non_exhaustive()
    }
}

impl std::ops::Deref for QueuedAttachment {
    type Target = Attachment;

    fn deref(&self) -> &Attachment {
        &self.attachment
    }
}

impl QueuedAttachment {
    /// How many attempts failed so far, over all lives: calls of [`QueuedAttachment::retry_later`].
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// The id that [`QueuedAttachment::uploaded`] stored, in this life or an earlier one.
    pub fn artifact_id(&self) -> Option<String> {
        self.artifact.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores the id under which the platform has the bytes. Call it before the confirm; it is not needed if the
    /// platform has no confirm step.
    ///
    /// # Durability
    /// When this returns `Ok`, the id survives power loss.
    ///
    /// # Errors
    /// `Invalid` if another id was stored, if the run has used the id before, or if it is not allowed; `Fenced`,
    /// `Corrupt`, `Io`. Nothing was stored.
    pub fn uploaded(&self, artifact_id: impl AsRef<str>) -> Result<()> {
        let artifact = ArtifactId::new(artifact_id.as_ref())?;
        self.store([Settling::Uploaded(artifact.clone())])?;
        *self.artifact.lock().unwrap_or_else(PoisonError::into_inner) = Some(artifact.to_string());
        Ok(())
    }

    /// Stores that the platform has the attachment, under this id. It is never yielded again.
    ///
    /// # Durability
    /// When this returns `Ok`, that survives power loss.
    ///
    /// # Errors
    /// `Invalid` if [`QueuedAttachment::uploaded`] stored another id, if the run has used the id before, or if it is
    /// not allowed; `Fenced`, `Corrupt`, `Io`. It is not acknowledged.
    pub fn acknowledge(self, artifact_id: impl AsRef<str>) -> Result<()> {
        let artifact = ArtifactId::new(artifact_id.as_ref())?;
        self.store([Settling::Uploaded(artifact), Settling::Settled(None)])
    }

    /// Gives the attachment up. [`SyncUnit::failed_attachments`](crate::SyncUnit::failed_attachments) lists it with
    /// this reason; the run can be finished without it.
    ///
    /// # Durability
    /// When this returns `Ok`, that survives power loss.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`: it is still in the queue.
    pub fn fail(self, reason: impl Into<String>) -> Result<()> {
        self.store([Settling::Failed(reason.into())])
    }

    /// Puts the attachment off for this long. A [`Run::attachments`] that begins after that yields it again.
    ///
    /// # Durability
    /// When this returns `Ok`, that survives power loss.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`: it may be yielded at once.
    pub fn retry_later(self, reason: impl Into<String>, wait: Duration) -> Result<()> {
        self.store([Settling::Retry { reason: reason.into(), wait }])
    }

    /// Stores these outcomes, in their order, in one transaction.
    fn store(&self, came: impl IntoIterator<Item = Settling>) -> Result<()> {
        self.run.change(|change, _| {
            let mut queue = change.need(&QUEUES, &self.run.run_key())?;
            queue.position = queue.position.max(self.number + 1);
            for settling in came {
                if let Settling::Uploaded(artifact) = &settling
                    && !takes_id(&self.run, change, self.number, artifact)?
                {
                    return Err(id_used(&self.run, artifact, &format!("attachment {}", self.attachment.id)));
                }
                move_attachment(&self.run, change, &mut queue, self.number, settling)?;
            }
            change.put(&QUEUES, &self.run.run_key(), &queue)
        })
    }
}

impl Drop for QueuedAttachment {
    fn drop(&mut self) {
        let mut held = self.run.held_attachments.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.number);
    }
}

/// An iterator over the attachments of a run that are due, in the order in which they were staged; made by
/// [`Run::attachments`].
#[must_use]
#[derive(Debug)]
pub struct Attachments<'a> {
    run: &'a Run,
    /// All with lower numbers were yielded, or were not due.
    next: u64,
}

impl Iterator for Attachments<'_> {
    type Item = Result<QueuedAttachment>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Attachments<'_> {
    fn advance(&mut self) -> Result<Option<QueuedAttachment>> {
        loop {
            let from = self.next;
            let Some((number, row)) = self.run.next_due(from)? else {
                if self.run.take_up_requeued(false)? == 0 {
                    return Ok(None);
                }
                continue;
            };
            self.next = number + 1;
            if let Some(attachment) = self.run.hold(number, row)? {
                return Ok(Some(attachment));
            }
        }
    }
}

impl Run {
    /// The attachments that the data of this run named and that are neither settled nor held, in the order in which
    /// they were staged: for a caller that streams them itself. Attachments that were [put
    /// off](QueuedAttachment::retry_later) and are not due yet are skipped.
    ///
    /// ```
    /// use highwater::record::Attachment;
    /// use highwater::{Page, Store};
    /// # use std::time::Duration;
    /// # let dir = tempfile::tempdir()?;
    /// # let store = Store::open(dir.path().join("state.redb"))?;
    /// # let upload = |url: String| format!("artifact of {url}");
    /// # let fetch = |url: &str| if url.ends_with('2') { Err("410 Gone") } else { Ok(url.to_owned()) };
    /// let run = store.sync_unit("acme/tickets")?.begin()?;
    /// let page = |_: Option<u8>| -> highwater::Result<Page<u8>> {
    ///     let mut page = Page::last();
    ///     for n in 1..=3 {
    ///         let attachment = Attachment::new(format!("A{n}"), format!("https://files.example/{n}"), "a.png", "ISSUE-1");
    ///         page.push("attachments", attachment.to_record()?);
    ///     }
    ///     Ok(page)
    /// };
    /// for batch in run.batches("issues", page) {
    ///     batch?.acknowledge("artifact-1")?;
    /// }
    /// for attachment in run.attachments() {
    ///     let attachment = attachment?;
    ///     match fetch(&attachment.url) {
    ///         Ok(bytes) => attachment.acknowledge(upload(bytes))?,
    ///         Err("429 Too Many Requests") => attachment.retry_later("rate-limited", Duration::from_secs(30))?,
    ///         Err(gone) => attachment.fail(gone)?,
    ///     }
    /// }
    /// assert_eq!(run.attachment_counts()?.settled, 2);
    /// run.finish()?; // refused while an attachment is neither settled nor given up
    /// let failed: Vec<_> = store.sync_unit("acme/tickets")?.failed_attachments().collect::<Result<_, _>>()?;
    /// assert_eq!(failed[0].reason, "410 Gone");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of the items: `Fenced`, `Corrupt`, `Io`.
    pub fn attachments(&self) -> Attachments<'_> {
        Attachments { run: self, next: 0 }
    }

    /// The due attachments of one parent, so that they can be processed together. Like [`Run::attachments`], it
    /// leaves out those that the caller holds.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`.
    pub fn attachments_of(&self, parent_id: &str) -> Result<Vec<QueuedAttachment>> {
        let numbers = self.look(|rows, _| {
            let unit = Key::unit(self.unit_no);
            let mut numbers = Vec::new();
            let mut take = |run: u64, number: u64, failed: bool| {
                if run == self.no && !failed {
                    numbers.push(number);
                }
                Ok(true)
            };
            let prefix = unit.clone().and_id(parent_id);
            rows.scan(&SEEN, &prefix, &prefix, |_, seen| take(seen.run, seen.number, seen.failed))?;
            let prefix = unit.and_hash(parent_id);
            rows.scan(&SEEN_BY_HASH, &prefix, &prefix, |_, seen| take(seen.run, seen.number, seen.failed))?;
            numbers.sort_unstable();
            Ok(numbers)
        })?;
        let mut found = Vec::new();
        for number in numbers {
            let key = self.run_key().and_number(number);
            if let Some(row) = self.look(|rows, _| rows.get(&ATTACHMENTS, &key))?
                && self.is_due(&row)
                && read_line(self, number, &row.json)?.parent_id == parent_id
            {
                found.extend(self.hold(number, row)?);
            }
        }
        Ok(found)
    }

    fn next_due(&self, from: u64) -> Result<Option<(u64, AttachmentRow)>> {
        self.look(|rows, _| {
            let mut found = None;
            let prefix = self.run_key();
            rows.scan(&ATTACHMENTS, &prefix, &prefix.clone().and_number(from), |tail, row| {
                if self.is_due(&row) {
                    found = Some((self.number_in(ATTACHMENTS.name, tail)?, row));
                }
                Ok(found.is_none())
            })?;
            Ok(found)
        })
    }

    fn is_due(&self, row: &AttachmentRow) -> bool {
        row.ready_at.is_none_or(|at| at <= Micros::from_time(self.inner.clock.now()))
    }

    /// Hands an attachment to the caller, unless the caller holds it already.
    fn hold(&self, number: u64, row: AttachmentRow) -> Result<Option<QueuedAttachment>> {
        let attachment = read_line(self, number, &row.json)?;
        let mut held = self.held_attachments.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.insert(number) {
            return Ok(None);
        }
        Ok(Some(QueuedAttachment {
            run: self.another(),
            number,
            attachment,
            tries: row.tries,
            artifact: Mutex::new(row.artifact.map(|(id, _)| id)),
        }))
    }
}
