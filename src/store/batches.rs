//! The loop over the batches of a run, for a caller that uploads them itself.
//!
//! A batch is first staged, then uploaded (the platform has its bytes under an id), confirmed (the platform has
//! accepted the upload), and announced (a sealed message names it). Its bytes are dropped once it is confirmed.
//! `lifecycle` describes what a crash leaves between any two of these.

pub(super) mod payload;
mod refetch;
pub(super) mod staging;
pub(super) mod states;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BoxError, Error, Result};
use crate::model::{ArtifactId, ItemType, OPEN_BATCHES_MAX, RunId, StreamName, SyncUnitId};

use super::cursors::CursorWatch;
use super::page::Page;
use super::rows::{BATCHES, BatchRow, BatchState};
use super::run_handle::{Run, read_cursor};
use super::tables::Rows;
use super::uploads::id_used;

use staging::begin_stream;
use states::acknowledge;

/// The key of a batch. It is the same after any restart, so uploads can be idempotent by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct BatchKey {
    /// The sync unit.
    pub sync_unit: SyncUnitId,
    /// The run.
    pub run: RunId,
    /// The life of the run that staged it.
    pub epoch: u64,
    /// The item type of its records.
    pub item_type: ItemType,
    /// Its number in the run, from 1. No two batches of a run share a number.
    pub seq: u64,
}

impl fmt::Display for BatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/{}", self.sync_unit, self.run, self.epoch, self.item_type, self.seq)
    }
}

/// A batch that is durable and not yet acknowledged.
///
/// It may be acknowledged from any thread, in any order. Dropping it is always safe: the next [`Run::batches`] yields
/// it again.
#[derive(Debug)]
pub struct Batch {
    run: Run,
    key: BatchKey,
    row: BatchRow,
    artifact: Mutex<Option<String>>,
}

impl Batch {
    /// The key, the same after any restart.
    pub fn key(&self) -> &BatchKey {
        &self.key
    }

    /// The item type of its records.
    pub fn item_type(&self) -> &ItemType {
        &self.key.item_type
    }

    /// Records in it.
    pub fn items(&self) -> u32 {
        self.row.items
    }

    /// Its records as JSON Lines in one gzip member, read from the store.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt` or `Io`.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        self.run.payload(self.key.seq)
    }

    /// The id that [`Batch::uploaded`] stored, in this life or an earlier one. If there is one, the platform has the
    /// bytes, and only the confirmation may be missing.
    pub fn artifact_id(&self) -> Option<String> {
        self.artifact.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The stream's cursor after the page that closed this batch. `None` unless it is the last batch of that page.
    ///
    /// # Errors
    /// `Cursor` if it is not of the type asked for.
    pub fn cursor_after<C: DeserializeOwned>(&self) -> Result<Option<C>> {
        self.row
            .cursor_after
            .as_deref()
            .map(|json| read_cursor(&self.run, &self.row.stream, json))
            .transpose()
    }

    /// Stores the id under which the platform has the bytes. Call it before confirming the upload. It is not needed
    /// if the platform has no confirmation and uploads are idempotent by key.
    ///
    /// # Durability
    /// When this returns `Ok`, the id survives power loss.
    ///
    /// # Errors
    /// `Invalid` if another id was stored, if the run has used the id before, or if it is not allowed; `Fenced`,
    /// `Corrupt`, `Io`. Nothing was stored.
    pub fn uploaded(&self, artifact_id: impl AsRef<str>) -> Result<()> {
        let artifact = self.checked_artifact(artifact_id.as_ref())?;
        self.ensure_new(self.run.uploaded(self.key.seq, &artifact)?, &artifact)?;
        *self.artifact.lock().unwrap_or_else(PoisonError::into_inner) = Some(artifact.to_string());
        Ok(())
    }

    /// Stores that the platform has accepted the batch under this id. The batch is never yielded again, and its bytes
    /// are dropped.
    ///
    /// # Durability
    /// When this returns `Ok`, that survives power loss.
    ///
    /// # Errors
    /// `Invalid` if [`Batch::uploaded`] stored another id, if the run has used the id before, or if it is not allowed;
    /// `Fenced`, `Corrupt`, `Io`. It is not acknowledged.
    pub fn acknowledge(self, artifact_id: impl AsRef<str>) -> Result<()> {
        let artifact = self.checked_artifact(artifact_id.as_ref())?;
        self.ensure_new(acknowledge(&self.run, self.key.seq, &artifact)?, &artifact)
    }

    /// Checks that the run has not used the id before.
    fn ensure_new(&self, new: bool, artifact: &ArtifactId) -> Result<()> {
        let used = || id_used(&self.run, artifact, &format!("batch {}", self.key.seq));
        if new { Ok(()) } else { Err(used()) }
    }

    fn checked_artifact(&self, id: &str) -> Result<ArtifactId> {
        let id = ArtifactId::new(id)?;
        match self.artifact_id() {
            Some(stored) if stored != id.as_str() => Err(Error::Invalid {
                what: format!("the artifact id {id} of batch {}", self.key),
                reason: format!("the batch was uploaded as {stored}"),
            }),
            _ => Ok(id),
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.run.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key.seq);
    }
}

/// An iterator over the batches of a run, made by [`Run::batches`]. It fetches pages as needed.
///
/// After an error it yields nothing more; the next [`Run::batches`] continues from there.
#[must_use]
pub struct Batches<'a, C, F> {
    run: &'a Run,
    stream: String,
    fetch: F,
    /// Batches up to this number were yielded, or are held by another iterator.
    yielded: u64,
    over: bool,
    watch: CursorWatch,
    cursor: std::marker::PhantomData<fn(C)>,
}

impl<C, F> fmt::Debug for Batches<'_, C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches")
            .field("run", &self.run.id)
            .field("stream", &self.stream)
            .field("yielded", &self.yielded)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl<C, F, E> Iterator for Batches<'_, C, F>
where
    C: Serialize + DeserializeOwned,
    F: FnMut(Option<C>) -> std::result::Result<Page<C>, E>,
    E: Into<BoxError>,
{
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.advance().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

impl<C, F, E> Batches<'_, C, F>
where
    C: Serialize + DeserializeOwned,
    F: FnMut(Option<C>) -> std::result::Result<Page<C>, E>,
    E: Into<BoxError>,
{
    fn advance(&mut self) -> Result<Option<Batch>> {
        let stream = StreamName::new(self.stream.as_str())?;
        loop {
            if let Some(batch) = next_open_batch(self.run, self.yielded)? {
                self.yielded = batch.key.seq;
                return Ok(Some(batch));
            }
            if let Some(cursor) = self.run.stream_cursor(&stream)? {
                check_open_batches(self.run)?;
                begin_stream(self.run, &stream)?;
                let page = (self.fetch)(cursor).map_err(|error| Error::Fetch {
                    sync_unit: self.run.unit.to_string(),
                    stream: stream.to_string(),
                    source: error.into(),
                })?;
                self.run.stage_data(&stream, page, &mut self.watch)?;
            } else if self.run.close_open()?.is_empty() {
                return Ok(None);
            }
        }
    }
}

impl Run {
    /// The batches of a stream. First come the batches that earlier lives staged and nobody acknowledged, then those
    /// of pages fetched with `fetch`. It is given the cursor that the page before left (`None` at the start), and
    /// returns a [`Page`].
    ///
    /// A batch is durable when it is yielded. The records of a page are in a batch, or wait for the next page of the
    /// run to fill one. After the last page of the stream, the waiting records are yielded as a batch of any size.
    /// Leaving the loop early is safe: everything staged is kept.
    ///
    /// ```
    /// use highwater::{Page, Record, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("state.redb");
    /// let store = Store::open(path)?;
    /// let run = store.sync_unit("acme/tickets")?.begin()?;
    /// let fetch = |cursor: Option<u32>| -> highwater::Result<Page<u32>> {
    ///     let number = cursor.unwrap_or(1);
    ///     let page = if number < 3 { Page::more(number + 1) } else { Page::last() };
    ///     Ok(page.record("issues", Record::new(format!("ISSUE-{number}"), &serde_json::json!({}))?))
    /// };
    /// let mut items = 0;
    /// for batch in run.batches("issues", fetch) {
    ///     let batch = batch?;
    ///     items += batch.items();
    ///     let id = format!("uploaded as {}", batch.key());
    ///     batch.acknowledge(id)?;
    /// }
    /// assert_eq!(items, 3);
    /// run.finish()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Durability
    /// When `next` returns a batch, its records and the cursor after its page survive power loss.
    ///
    /// # Errors
    /// `Fetch` with the closure's own error; `Cursor` if the stored cursor is not a `C`; `TooManyOpen` if
    /// [`OPEN_BATCHES_MAX`](crate::limits::OPEN_BATCHES_MAX) batches are not acknowledged (then nothing is fetched);
    /// `TooLarge`, `Invalid` or `Record` if something cannot be stored; `Fenced`, `Corrupt`, `Io`. Nothing of the
    /// page that failed is stored, and the next call fetches it again.
    pub fn batches<C, F, E>(&self, stream: impl Into<String>, fetch: F) -> Batches<'_, C, F>
    where
        C: Serialize + DeserializeOwned,
        F: FnMut(Option<C>) -> std::result::Result<Page<C>, E>,
        E: Into<BoxError>,
    {
        Batches {
            run: self,
            stream: stream.into(),
            fetch,
            yielded: 0,
            over: false,
            watch: CursorWatch::default(),
            cursor: std::marker::PhantomData,
        }
    }
}

fn check_open_batches(run: &Run) -> Result<()> {
    run.look(|_, row| {
        if row.open_batches < OPEN_BATCHES_MAX {
            return Ok(());
        }
        Err(Error::TooManyOpen {
            sync_unit: run.unit.to_string(),
            open: row.open_batches,
            limit: OPEN_BATCHES_MAX,
        })
    })
}

/// The first batch after `seq` that is neither acknowledged nor held.
fn next_open_batch(run: &Run, seq: u64) -> Result<Option<Batch>> {
    let mut held = run.held.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = None;
    run.look(|rows, _| {
        rows.scan(&BATCHES, &run.run_key(), &run.batch_key(seq + 1), |tail, row| {
            let seq = run.number_in(BATCHES.name, tail)?;
            let open = matches!(row.state, BatchState::Staged | BatchState::Uploaded);
            if open && !held.contains(&seq) {
                found = Some((seq, row));
            }
            Ok(found.is_none())
        })
    })?;
    let Some((seq, row)) = found else { return Ok(None) };
    held.insert(seq);
    Ok(Some(Batch {
        key: BatchKey {
            sync_unit: run.unit.clone(),
            run: run.id.clone(),
            epoch: row.epoch,
            item_type: ItemType::new(row.item_type.as_str())?,
            seq,
        },
        artifact: Mutex::new(row.artifact.clone().filter(|_| row.state == BatchState::Uploaded)),
        run: run.another(),
        row,
    }))
}
