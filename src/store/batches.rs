//! Pages in, batches out: staging, the states of a batch, and the resumable iterator.
//!
//! Staging a page is one transaction: its lines, the batches that it closed, the cursor after it, its bookmark and
//! values. A record is therefore in a batch, or in the lines of an open one, exactly if the cursor is past it.
//!
//! Lines of an item type collect in `chunks`, one per page. The page that brings them to the batch size closes the
//! batch: the chunks are replaced by one gzip member, in that page's transaction; a page bigger than a batch closes
//! several, each in one member. What is left becomes the first chunk of the next batch.
//!
//! A batch is staged, uploaded (the platform has its bytes under an id), confirmed (it knows them to be ours),
//! announced (a sealed message names it); its bytes are dropped once it is confirmed. What a crash leaves between
//! any two of these is in the room `run`.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::artifact::compress_all;
use crate::error::{BoxError, Error, Result};
use crate::model::{
    ArtifactId, BATCH_BYTES_MAX, CURSOR_BYTES_MAX, ItemType, Micros, OPEN_BATCHES_MAX, Phase, Rule, RunId,
    StreamName, SyncUnitId,
};
use crate::record::{ATTACHMENTS, Record};
use crate::transfer::{Event, State, recount};

use super::page::{Page, PageParts, to_json};
use super::rows::{
    BATCHES, BatchRow, BatchState, CHUNKS, ChunkRow, Dates, Json, Key, PAYLOADS, Payload, RunRow, STREAMS,
    StreamRow, TYPES, TypeRow, VALUES, number_of,
};
use super::run::Run;
use super::tables::{Change, Rows};

/// What names a batch, the same after any restart: an upload that is keyed by it is idempotent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchKey {
    /// The sync unit.
    pub sync_unit: SyncUnitId,
    /// The run.
    pub run: RunId,
    /// The life of the run that staged it.
    pub epoch: u64,
    /// The kind of its records.
    pub item_type: ItemType,
    /// Its number in the run, from 1; no two batches of a run share one.
    pub seq: u64,
}

impl fmt::Display for BatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/{}", self.sync_unit, self.run, self.epoch, self.item_type, self.seq)
    }
}

/// A batch that is durable and not yet acknowledged.
///
/// It may be acknowledged from any thread, in any order. Dropping it is always safe: the next
/// [`Run::batches`] yields it again.
#[derive(Debug)]
pub struct Batch {
    run: Run,
    key: BatchKey,
    row: BatchRow,
    artifact: Mutex<Option<String>>,
}

impl Batch {
    /// What names it.
    pub fn key(&self) -> &BatchKey {
        &self.key
    }

    /// The kind of its records.
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

    /// The id that [`Batch::uploaded`] stored, in this life or an earlier one: its bytes are with the platform, and
    /// only the confirm may be missing.
    pub fn artifact_id(&self) -> Option<String> {
        self.artifact.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cursor of its stream after the page that closed it, if it was the last batch of that page.
    ///
    /// # Errors
    /// `Cursor` if it is not of the type asked for.
    pub fn cursor_after<C: DeserializeOwned>(&self) -> Result<Option<C>> {
        self.row.cursor_after.as_deref().map(|json| self.run.read_cursor(&self.row.stream, json)).transpose()
    }

    /// Stores the id under which the platform has the bytes, before a confirm. Not needed where the platform has no
    /// confirm step and the upload is idempotent by key.
    ///
    /// # Durability
    /// When this returns `Ok`, the id survives power loss.
    ///
    /// # Errors
    /// `Invalid` if another id was stored, or the id is not allowed; `Fenced`, `Corrupt`, `Io`. Nothing was stored.
    pub fn uploaded(&self, artifact_id: impl AsRef<str>) -> Result<()> {
        let artifact = self.checked_artifact(artifact_id.as_ref())?;
        self.run.uploaded(self.key.seq, &artifact)?;
        *self.artifact.lock().unwrap_or_else(PoisonError::into_inner) = Some(artifact.to_string());
        Ok(())
    }

    /// Records that the platform has it, under that id: it is never yielded again, and its bytes are dropped.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
    ///
    /// # Errors
    /// `Invalid` if [`Batch::uploaded`] stored another id, or the id is not allowed; `Fenced`, `Corrupt`, `Io`. It is
    /// not acknowledged.
    pub fn acknowledge(self, artifact_id: impl AsRef<str>) -> Result<()> {
        let artifact = self.checked_artifact(artifact_id.as_ref())?;
        self.run.acknowledge(self.key.seq, &artifact)
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

/// The batches of a run, fetched as they are asked for; made by [`Run::batches`].
///
/// After an error it yields no more; the next [`Run::batches`] goes on where this one stood.
#[must_use]
pub struct Batches<'a, C, F> {
    run: &'a Run,
    stream: String,
    fetch: F,
    /// Batches up to this seq were yielded, or are held by somebody else.
    yielded: u64,
    over: bool,
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
            if let Some(batch) = self.run.next_open_batch(self.yielded)? {
                self.yielded = batch.key.seq;
                return Ok(Some(batch));
            }
            if let Some(cursor) = self.run.stream_cursor(&stream)? {
                self.run.check_open_batches()?;
                self.run.begin_stream(&stream)?;
                let page = (self.fetch)(cursor).map_err(|error| Error::Fetch {
                    sync_unit: self.run.unit.to_string(),
                    stream: stream.to_string(),
                    source: error.into(),
                })?;
                self.run.stage_data(&stream, page)?;
            } else if self.run.close_open()?.is_empty() {
                return Ok(None);
            }
        }
    }
}

/// What a message says of a batch, but for its artifact id.
#[derive(Debug, Clone)]
pub(crate) struct BatchInfo {
    pub(crate) seq: u64,
    pub(crate) item_type: String,
    pub(crate) items: u32,
    pub(crate) dates: Dates,
}

impl BatchInfo {
    /// One whose seq its holder knows.
    pub(crate) fn new(
        item_type: String,
        items: u32,
        created: Option<(Micros, Micros)>,
        modified: Option<(Micros, Micros)>,
    ) -> Self {
        Self { seq: 0, item_type, items, dates: Dates { created, modified } }
    }

    fn of(seq: u64, row: &BatchRow) -> Self {
        Self { seq, item_type: row.item_type.clone(), items: row.items, dates: row.dates }
    }
}

/// A batch on its way to the platform.
#[derive(Debug, Clone)]
pub(crate) struct UnsettledBatch {
    pub(crate) info: BatchInfo,
    pub(crate) state: State,
    /// The id that is stored.
    pub(crate) artifact: Option<ArtifactId>,
}

/// Where a stream stands.
type Position<C> = Option<Option<C>>;

impl Run {
    /// The batches of a stream: first what earlier lives staged and nobody acknowledged, then pages fetched with
    /// `fetch`, which is given the cursor that the page before left (`None` at the start) and returns a [`Page`].
    ///
    /// A batch is durable when it is yielded. The records of a page are in a batch, or wait for the next page of the
    /// run to fill one; when the stream has given its last page, what waits is yielded at any size. Leaving the loop
    /// early is safe: whatever was staged stays.
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
    /// `Fetch` with the closure's own error; `Cursor` if the stored cursor is not a `C`; `TooManyOpen` when
    /// [`OPEN_BATCHES_MAX`](crate::limits::OPEN_BATCHES_MAX) batches are not acknowledged (nothing is fetched then);
    /// `TooLarge`, `Invalid` or `Record` for what cannot be stored; `Fenced`, `Corrupt`, `Io`. Of the page that
    /// failed nothing is stored, and the next call fetches it again.
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
            cursor: std::marker::PhantomData,
        }
    }

    /// Stores a page of the data phase, in batches of the size that the store is set to.
    pub(crate) fn stage_data<C: Serialize>(
        &self,
        stream: &StreamName,
        page: Page<C>,
    ) -> Result<Vec<UnsettledBatch>> {
        self.stage(stream, Phase::Data, self.inner.settings.batch_items, page)
    }

    /// Stores a page and where its stream goes on, closing the batches that it fills.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss.
    pub(crate) fn stage<C: Serialize>(
        &self,
        stream: &StreamName,
        phase: Phase,
        batch_items: u32,
        page: Page<C>,
    ) -> Result<Vec<UnsettledBatch>> {
        let PageParts { next, records, skipped, bookmark, values, progress, findings } = page.into_parts()?;
        let what = format!("the cursor of stream {stream}");
        let cursor = next.map(|cursor| to_json(&what, &cursor, CURSOR_BYTES_MAX)).transpose()?;
        let lines: Vec<(ItemType, Lines)> = records
            .into_iter()
            .map(|(name, records)| Ok((name, Lines::of(&records)?)))
            .collect::<Result<_>>()?;
        self.change(|change, row| {
            let stream_key = self.run_key().and_name(stream.as_str());
            let mut position = change.get(&STREAMS, &stream_key)?.unwrap_or_else(|| StreamRow::new(phase));
            let mut full = Vec::new();
            let lines = if self.inner.breaks(Rule::RowsWithCursor) { Vec::new() } else { lines };
            for (item_type, lines) in lines {
                position.items += lines.ends.len() as u64;
                if phase == Phase::Data && item_type.as_str() == ATTACHMENTS {
                    let read = change.get(&TYPES, &self.run_key().and_name(ATTACHMENTS))?;
                    self.queue_lines(change, read.map_or(0, |counts| counts.read) + 1, &lines)?;
                }
                full.extend(self.add_lines(change, row, &item_type, &lines, batch_items)?);
            }
            for (item_type, items) in skipped {
                position.items += items;
                self.count_skipped(change, &item_type, items)?;
            }
            let closed = self.put_batches(change, row, stream.as_str(), &full, cursor.as_ref())?;
            self.add_findings(change, &findings)?;
            row.pages += 1;
            row.not_before = None;
            row.progress = progress.or(row.progress);
            position.pages += 1;
            position.exhausted = cursor.is_none();
            position.cursor = cursor;
            position.bookmark = bookmark.or(position.bookmark);
            change.put(&STREAMS, &stream_key, &position)?;
            for (key, value) in values {
                let key = Key::unit(self.unit_no).and_name(key.as_str());
                match value {
                    Some(json) => change.put(&VALUES, &key, &Json(json))?,
                    None => change.remove(&VALUES, &key)?,
                }
            }
            Ok(closed)
        })
    }

    /// Closes every open batch, at any size.
    ///
    /// # Durability
    /// When this returns `Ok`, they survive power loss as batches, as they did as lines.
    pub(crate) fn close_open(&self) -> Result<Vec<UnsettledBatch>> {
        let open = self.look(|rows, _| rows.all(&TYPES, &self.run_key()))?;
        if open.iter().all(|(_, counts)| counts.open_items == 0) {
            return Ok(Vec::new());
        }
        self.change(|change, row| {
            let mut full = Vec::new();
            for (name, mut counts) in change.all(&TYPES, &self.run_key())? {
                if counts.open_items == 0 {
                    continue;
                }
                let item_type = ItemType::new(String::from_utf8_lossy(&name))?;
                full.push(self.take_open(change, &item_type, &mut counts)?);
                change.put(&TYPES, &self.run_key().and_name(item_type.as_str()), &counts)?;
            }
            self.put_batches(change, row, "", &full, None)
        })
    }

    /// Counts records that were read and are not wanted.
    fn count_skipped(&self, change: &Change<'_>, item_type: &ItemType, items: u64) -> Result<()> {
        let key = self.run_key().and_name(item_type.as_str());
        let mut counts = change.get(&TYPES, &key)?.unwrap_or_default();
        counts.read += items;
        counts.skipped += items;
        change.put(&TYPES, &key, &counts)
    }

    /// Adds the lines of a page to the open batch of their type; returns the batches that became full.
    pub(super) fn add_lines(
        &self,
        change: &Change<'_>,
        row: &mut RunRow,
        item_type: &ItemType,
        lines: &Lines,
        batch_items: u32,
    ) -> Result<Vec<FullBatch>> {
        let key = self.run_key().and_name(item_type.as_str());
        let mut counts = change.get(&TYPES, &key)?.unwrap_or_default();
        let mut full = Vec::new();
        counts.read += lines.ends.len() as u64;
        let mut from = 0;
        while from < lines.ends.len() {
            let mut to = from;
            while to < lines.ends.len()
                && counts.open_items + items_between(from, to) < batch_items
                && counts.open_bytes + lines.bytes_between(from, to) < BATCH_BYTES_MAX
            {
                to += 1;
            }
            let chunk = lines.chunk(from, to);
            from = to;
            counts.open_items += chunk.items;
            counts.open_bytes += chunk.lines.len() as u64;
            if counts.open_items >= batch_items || counts.open_bytes >= BATCH_BYTES_MAX {
                // Also where an earlier life left more open than the batch size that is set now: `chunk` is empty then.
                let mut batch = self.take_open(change, item_type, &mut counts)?;
                batch.add(chunk);
                full.push(batch);
            } else {
                change.put(&CHUNKS, &self.chunk_key(item_type, row.next_chunk), &chunk)?;
                row.next_chunk += 1;
            }
        }
        change.put(&TYPES, &key, &counts)?;
        Ok(full)
    }

    /// Takes what is open of a type as a batch to be stored; the counts are the caller's to store.
    fn take_open(
        &self,
        change: &Change<'_>,
        item_type: &ItemType,
        counts: &mut TypeRow,
    ) -> Result<FullBatch> {
        let prefix = self.run_key().and_inner_name(item_type.as_str());
        let mut batch =
            FullBatch { item_type: item_type.clone(), items: 0, dates: Dates::default(), pieces: Vec::new() };
        for (_, chunk) in change.all(&CHUNKS, &prefix)? {
            batch.add(chunk);
        }
        change.remove_all(&CHUNKS, &prefix)?;
        counts.open_items = 0;
        counts.open_bytes = 0;
        Ok(batch)
    }

    /// Compresses and stores batches; the last is followed by the page's cursor.
    pub(super) fn put_batches(
        &self,
        change: &Change<'_>,
        row: &mut RunRow,
        stream: &str,
        full: &[FullBatch],
        cursor_after: Option<&String>,
    ) -> Result<Vec<UnsettledBatch>> {
        let pieces: Vec<Vec<&[u8]>> =
            full.iter().map(|batch| batch.pieces.iter().map(Vec::as_slice).collect()).collect();
        let members = compress_all(&pieces, self.inner.settings.level)?;
        let mut closed = Vec::with_capacity(full.len());
        let last = full.len().saturating_sub(1);
        for (at, (batch, member)) in full.iter().zip(members).enumerate() {
            let seq = row.next_seq;
            row.next_seq += 1;
            recount(&mut row.open_batches, false, State::NEW.counts().open, 1);
            let mut before = 0;
            self.count(change, batch.item_type.as_str(), |counts| {
                before = counts.batched;
                counts.batched += u64::from(batch.items);
                counts.batches += 1;
            })?;
            if batch.item_type.as_str() == ATTACHMENTS {
                self.put_file(change, seq, before + 1, batch.items)?;
            }
            let stored = BatchRow {
                item_type: batch.item_type.to_string(),
                stream: stream.to_owned(),
                epoch: self.epoch,
                items: batch.items,
                line_bytes: batch.pieces.iter().map(|piece| piece.len() as u64).sum(),
                gzip_bytes: member.len() as u64,
                dates: batch.dates,
                cursor_after: cursor_after.filter(|_| at == last).cloned(),
                state: BatchState::Staged,
                artifact: None,
                uploaded_in: 0,
                given_up: 0,
                saved: false,
            };
            change.put(&BATCHES, &self.batch_key(seq), &stored)?;
            change.put(&PAYLOADS, &self.batch_key(seq), &Payload(member))?;
            closed.push(UnsettledBatch {
                info: BatchInfo::of(seq, &stored),
                state: State::NEW,
                artifact: None,
            });
        }
        Ok(closed)
    }

    /// Stores that a stream was asked for, before its first page: whatever comes of that, the run is not finished
    /// without it.
    fn begin_stream(&self, stream: &StreamName) -> Result<()> {
        let key = self.run_key().and_name(stream.as_str());
        if self.look(|rows, _| rows.get(&STREAMS, &key))?.is_some() {
            return Ok(());
        }
        self.change(|change, _| change.put(&STREAMS, &key, &StreamRow::new(Phase::Data)))
    }

    /// Where a stream stands: `None` exhausted, else the cursor of its next page.
    pub(crate) fn stream_cursor<C: DeserializeOwned>(&self, stream: &StreamName) -> Result<Position<C>> {
        let key = self.run_key().and_name(stream.as_str());
        let Some(row) = self.look(|rows, _| rows.get(&STREAMS, &key))? else {
            return Ok(Some(None));
        };
        if row.exhausted {
            return Ok(None);
        }
        row.cursor.map(|json| self.read_cursor(stream.as_str(), &json)).transpose().map(Some)
    }

    fn read_cursor<C: DeserializeOwned>(&self, stream: &str, json: &str) -> Result<C> {
        serde_json::from_str(json).map_err(|error| Error::Cursor {
            sync_unit: self.unit.to_string(),
            stream: stream.to_owned(),
            cursor: json.chars().take(200).collect(),
            source: error.into(),
        })
    }

    fn check_open_batches(&self) -> Result<()> {
        self.look(|_, row| {
            if row.open_batches < OPEN_BATCHES_MAX {
                return Ok(());
            }
            Err(Error::TooManyOpen {
                sync_unit: self.unit.to_string(),
                open: row.open_batches,
                limit: OPEN_BATCHES_MAX,
            })
        })
    }

    /// The first batch after `seq` that is neither acknowledged nor held.
    fn next_open_batch(&self, seq: u64) -> Result<Option<Batch>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        self.look(|rows, _| {
            rows.scan(&BATCHES, &self.run_key(), &self.batch_key(seq + 1), |tail, row| {
                let seq = self.seq_of(tail)?;
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
                sync_unit: self.unit.clone(),
                run: self.id.clone(),
                epoch: row.epoch,
                item_type: ItemType::new(row.item_type.as_str())?,
                seq,
            },
            artifact: Mutex::new(row.artifact.clone().filter(|_| row.state == BatchState::Uploaded)),
            run: self.another(),
            row,
        }))
    }

    /// The gzip member of a batch.
    pub(crate) fn payload(&self, seq: u64) -> Result<Vec<u8>> {
        self.look(|rows, _| rows.need(&PAYLOADS, &self.batch_key(seq))).map(|Payload(bytes)| bytes)
    }

    /// The batches that are staged or uploaded, in order.
    pub(crate) fn unsettled(&self) -> Result<Vec<UnsettledBatch>> {
        let rows = self.look(|rows, _| rows.all(&BATCHES, &self.run_key()))?;
        let mut unsettled = Vec::new();
        for (tail, row) in rows {
            let seq = self.seq_of(&tail)?;
            let info = BatchInfo::of(seq, &row);
            let state = row.transfer_state(self.epoch);
            let artifact = match (state, row.artifact) {
                (State::Staged(_), _) => None,
                (State::Uploaded(_), Some(artifact)) => Some(ArtifactId::new(artifact)?),
                (State::Uploaded(_), None) => {
                    let key = self.batch_key(seq);
                    return Err(self.inner.tables.damaged(BATCHES.name, &key, "it is uploaded under no id"));
                }
                _ => continue,
            };
            unsettled.push(UnsettledBatch { info, state, artifact });
        }
        Ok(unsettled)
    }

    /// What is confirmed and in no message, in order.
    pub(crate) fn confirmed(&self) -> Result<Vec<(BatchInfo, String)>> {
        let rows = self.look(|rows, _| rows.all(&BATCHES, &self.run_key()))?;
        rows.into_iter()
            .filter(|(_, row)| row.state == BatchState::Confirmed)
            .map(|(tail, row)| {
                Ok((BatchInfo::of(self.seq_of(&tail)?, &row), row.artifact.unwrap_or_default()))
            })
            .collect()
    }

    /// Stores the id of an upload.
    ///
    /// # Durability
    /// When this returns `Ok`, the id survives power loss, so it may be confirmed.
    pub(crate) fn uploaded(&self, seq: u64, artifact: &ArtifactId) -> Result<()> {
        self.change(|change, row| {
            let mut batch = self.need_batch(change, seq)?;
            let state = batch.transfer_state(self.epoch);
            if !matches!(state, State::Staged(_)) {
                return match batch.artifact {
                    Some(held) if held == artifact.as_str() => Ok(()),
                    held => Err(Error::Invalid {
                        what: format!("the artifact id {artifact} of batch {seq}"),
                        reason: format!("the batch was uploaded as {}", held.unwrap_or_default()),
                    }),
                };
            }
            batch.artifact = Some(artifact.to_string());
            batch.uploaded_in = self.epoch;
            self.move_batch(change, row, seq, batch, &[Event::Uploaded, Event::IdStored], 0).map(drop)
        })
    }

    /// Records that the platform confirmed an upload; its bytes are dropped.
    pub(crate) fn confirm(&self, seq: u64) -> Result<()> {
        self.change(|change, row| {
            let batch = self.need_batch(change, seq)?;
            self.move_batch(change, row, seq, batch, &[Event::Confirmed, Event::ConfirmStored], 0).map(drop)
        })
    }

    /// Gives up the id of an upload whose confirm was refused for good: it is to be uploaded anew.
    pub(crate) fn give_up_id(&self, seq: u64) -> Result<()> {
        self.change(|change, row| {
            let batch = self.need_batch(change, seq)?;
            let events = [Event::ConfirmRefused, Event::GivingUpStored];
            self.move_batch(change, row, seq, batch, &events, 0).map(drop)
        })
    }

    /// Records that a batch is where it belongs; no message will name it.
    fn acknowledge(&self, seq: u64, artifact: &ArtifactId) -> Result<()> {
        self.change(|change, row| {
            let batch = self.need_batch(change, seq)?;
            let batch = self.move_batch(change, row, seq, batch, &[Event::Acknowledged], 0)?;
            self.count(change, &batch.item_type, |counts| counts.last_artifact = Some(artifact.to_string()))
        })
    }

    /// Moves a batch on, in its row and in the figures of its run. Its bytes go when the platform has them for good, and
    /// its row when it is delivered. `message`: the one that names it, if one does.
    pub(super) fn move_batch(
        &self,
        change: &Change<'_>,
        row: &mut RunRow,
        seq: u64,
        mut batch: BatchRow,
        events: &[Event],
        message: u64,
    ) -> Result<BatchRow> {
        let key = self.batch_key(seq);
        let state = batch.transfer_state(self.epoch);
        let after = self.batch_moved(seq, state, events)?;
        batch.set_transfer_state(after, message);
        let (was, is) = (state.counts(), after.counts());
        recount(&mut row.open_batches, was.open, is.open, 1);
        if (was.confirmed, was.announced) != (is.confirmed, is.announced) {
            let items = u64::from(batch.items);
            self.count(change, &batch.item_type, |counts| {
                recount(&mut counts.confirmed, was.confirmed, is.confirmed, items);
                recount(&mut counts.announced, was.announced, is.announced, items);
                recount(&mut counts.artifacts_announced, was.announced, is.announced, 1);
            })?;
        }
        if is.confirmed && !was.confirmed {
            change.remove(&PAYLOADS, &key)?;
        }
        if after == State::Delivered {
            change.remove(&BATCHES, &key)?;
        } else {
            change.put(&BATCHES, &key, &batch)?;
        }
        Ok(batch)
    }

    /// Records that a saved checkpoint names what is uploaded.
    pub(super) fn batches_saved(&self, change: &Change<'_>, row: &mut RunRow) -> Result<()> {
        for (seq, batch) in self.batches_in(change, BatchState::Uploaded)? {
            if !batch.saved {
                self.move_batch(change, row, seq, batch, &[Event::Saved], 0)?;
            }
        }
        Ok(())
    }

    fn need_batch(&self, change: &Change<'_>, seq: u64) -> Result<BatchRow> {
        change.get(&BATCHES, &self.batch_key(seq))?.ok_or_else(|| Error::Invalid {
            what: format!("batch {seq} of run {} of {}", self.id, self.unit),
            reason: "it was acknowledged before".to_owned(),
        })
    }

    pub(super) fn batches_in(&self, change: &Change<'_>, state: BatchState) -> Result<Vec<(u64, BatchRow)>> {
        let rows = change.all(&BATCHES, &self.run_key())?;
        rows.into_iter()
            .filter(|(_, row)| row.state == state)
            .map(|(tail, row)| Ok((self.seq_of(&tail)?, row)))
            .collect()
    }

    /// Changes the counts of an item type.
    pub(super) fn count(
        &self,
        change: &Change<'_>,
        item_type: &str,
        by: impl FnOnce(&mut TypeRow),
    ) -> Result<()> {
        let key = self.run_key().and_name(item_type);
        let mut counts = change.get(&TYPES, &key)?.unwrap_or_default();
        by(&mut counts);
        change.put(&TYPES, &key, &counts)
    }

    pub(super) fn batch_key(&self, seq: u64) -> Key {
        self.run_key().and_number(seq)
    }

    fn chunk_key(&self, item_type: &ItemType, number: u64) -> Key {
        self.run_key().and_inner_name(item_type.as_str()).and_number(number)
    }

    fn seq_of(&self, tail: &[u8]) -> Result<u64> {
        number_of(tail)
            .map_err(|error| self.inner.tables.damaged(BATCHES.name, &self.run_key(), error.to_string()))
    }
}

impl StreamRow {
    fn new(phase: Phase) -> Self {
        Self { phase, cursor: None, exhausted: false, pages: 0, items: 0, bookmark: None }
    }
}

/// The lines of one item type of one page.
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Where each line ends, its newline included.
    ends: Vec<usize>,
    dates: Vec<Dates>,
}

impl Lines {
    pub(super) fn of(records: &[Record]) -> Result<Self> {
        let mut lines = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(records.len()),
            dates: Vec::with_capacity(records.len()),
        };
        for record in records {
            let start = lines.bytes.len();
            record.write_line(&mut lines.bytes);
            lines.bytes.push(b'\n');
            let found = (lines.bytes.len() - start) as u64;
            if found > BATCH_BYTES_MAX {
                let what = format!("record {}", record.id().unwrap_or("without an id"));
                return Err(Error::TooLarge { what, found, limit: BATCH_BYTES_MAX, unit: "bytes" });
            }
            lines.ends.push(lines.bytes.len());
            let mut dates = Dates::default();
            dates.add(record.created_micros(), record.modified_micros());
            lines.dates.push(dates);
        }
        Ok(lines)
    }

    /// Each line, its newline included.
    pub(super) fn each(&self) -> impl Iterator<Item = &[u8]> {
        let at = |line: usize| self.bytes.get(self.start_of(line)..self.start_of(line + 1));
        (0..self.ends.len()).filter_map(at)
    }

    fn start_of(&self, line: usize) -> usize {
        line.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0)
    }

    fn bytes_between(&self, from: usize, to: usize) -> u64 {
        (self.start_of(to) - self.start_of(from)) as u64
    }

    fn chunk(&self, from: usize, to: usize) -> ChunkRow {
        let mut dates = Dates::default();
        for of_line in self.dates.get(from..to).unwrap_or_default() {
            dates.merge(*of_line);
        }
        let lines = self.bytes.get(self.start_of(from)..self.start_of(to)).unwrap_or_default().to_vec();
        ChunkRow { items: items_between(from, to), dates, lines }
    }
}

fn items_between(from: usize, to: usize) -> u32 {
    u32::try_from(to - from).unwrap_or(u32::MAX)
}

/// A batch that is full, or closed for another reason, before it is compressed.
pub(super) struct FullBatch {
    item_type: ItemType,
    items: u32,
    dates: Dates,
    pieces: Vec<Vec<u8>>,
}

impl FullBatch {
    fn add(&mut self, chunk: ChunkRow) {
        self.items += chunk.items;
        self.dates.merge(chunk.dates);
        self.pieces.push(chunk.lines);
    }
}
