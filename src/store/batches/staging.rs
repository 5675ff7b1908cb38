//! Staging: a page in, and the batches that it fills out, in one transaction.
//!
//! A record is in a batch, or in the lines of an open one, exactly if the cursor of its stream is past it.
//!
//! Lines of an item type collect in `chunks`, one per page. The page that brings them to the batch size closes the
//! batch: the chunks are replaced by one gzip member, in that page's transaction; a page bigger than a batch closes
//! several, each in one member. What is left becomes the first chunk of the next batch.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::artifact::compress_all;
use crate::cut;
use crate::error::{Error, Result};
use crate::model::{BATCH_BYTES_MAX, CURSOR_BYTES_MAX, ItemType, Micros, Phase, Safeguard, StreamName};
use crate::record::{ATTACHMENTS, Record};
use crate::transfer::{State, recount};

use super::super::attachments::queue::{put_file, queue_lines};
use super::super::cursors::{CursorWatch, check_moves};
use super::super::findings::add_findings;
use super::super::mend::kept::{keep_last_cursor, new_stream};
use super::super::most_read;
use super::super::page::{Page, PageParts, to_json};
use super::super::rejected::{check_not_ours, reject};
use super::super::rows::{
    BATCHES, BatchRow, BatchState, CHUNKS, ChunkRow, Dates, Json, Key, PAYLOADS, Payload, RunRow, STREAMS,
    TYPES, TypeRow, VALUES,
};
use super::super::run::Run;
use super::super::tables::{Change, Rows};
use super::states::{BatchInfo, UnsettledBatch, count, count_left_out};

/// Where a stream stands.
pub(super) type NextCursor<C> = Option<Option<C>>;

/// How an error names a cursor.
fn cursor_of(stream: &StreamName) -> String {
    format!("the cursor of stream {stream}")
}

impl Run {
    /// Stores a page of the data phase, in batches of the size that the store is set to. `watch`: the cursors of its
    /// stream so far, in this invocation.
    ///
    /// # Errors
    /// `Invalid` if the page leads nowhere; nothing of it was stored.
    pub(crate) fn stage_data<C: Serialize>(
        &self,
        stream: &StreamName,
        page: Page<C>,
        watch: &mut CursorWatch,
    ) -> Result<Vec<UnsettledBatch>> {
        if let Some(next) = &page.next {
            watch.advance(stream, &to_json(&cursor_of(stream), next, CURSOR_BYTES_MAX)?)?;
        }
        let closed = self.stage(stream, Phase::Data, self.inner.settings.batch_items, page)?;
        watch.is_told = watch.is_told || most_read::tell(self, stream)?;
        Ok(closed)
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
        let PageParts { next, records, skipped, rejected, bookmark, values, progress, findings } =
            page.into_parts()?;
        let cursor = next.map(|cursor| to_json(&cursor_of(stream), &cursor, CURSOR_BYTES_MAX)).transpose()?;
        let lines: Vec<(ItemType, Lines)> = records
            .into_iter()
            .map(|(name, records)| Ok((name, Lines::of(&records)?)))
            .collect::<Result<_>>()?;
        self.change(|change, row| {
            let stream_key = self.run_key().and_name(stream.as_str());
            let mut position = match change.get(&STREAMS, &stream_key)? {
                Some(row) => row,
                None => new_stream(change, self.unit_no, self.no, stream.as_str(), phase)?,
            };
            check_moves(stream, position.cursor.as_deref(), cursor.as_deref())?;
            let items_before = position.items;
            let mut full = Vec::new();
            let lines = if self.inner.breaks(Safeguard::RowsWithCursor) { Vec::new() } else { lines };
            for (item_type, lines) in lines {
                position.items += lines.ends.len() as u64;
                if phase == Phase::Data && item_type.as_str() == ATTACHMENTS {
                    let read = change.get(&TYPES, &self.run_key().and_name(ATTACHMENTS))?;
                    let queued = read.map_or(0, |counts| counts.read - counts.left_out);
                    queue_lines(self, change, queued + 1, lines.each())?;
                }
                full.extend(add_lines(self, change, row, &item_type, &lines, batch_items)?);
            }
            for (item_type, items) in skipped {
                position.items += items;
                count_left_out(self, change, item_type.as_str(), items)?;
            }
            position.items += reject(self, change, &rejected)?;
            let closed = put_batches(self, change, row, stream.as_str(), &full, cursor.as_ref())?;
            add_findings(self, change, &findings)?;
            row.pages += 1;
            row.not_before = None;
            row.progress = progress.or(row.progress);
            position.pages += 1;
            position.pace.add(Micros::from_time(self.inner.clock.now()), position.items - items_before);
            position.exhausted = cursor.is_none();
            if let Some(last) = position.cursor.take().filter(|_| position.exhausted) {
                keep_last_cursor(change, &self.run_key(), stream.as_str(), last)?;
            }
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
                full.push(take_open(self, change, &item_type, &mut counts)?);
                change.put(&TYPES, &self.run_key().and_name(item_type.as_str()), &counts)?;
            }
            put_batches(self, change, row, "", &full, None)
        })
    }

    /// Where a stream stands: `None` exhausted, else the cursor of its next page.
    pub(crate) fn stream_cursor<C: DeserializeOwned>(&self, stream: &StreamName) -> Result<NextCursor<C>> {
        check_not_ours(stream)?;
        let key = self.run_key().and_name(stream.as_str());
        let row = self.look(|rows, _| match rows.get(&STREAMS, &key)? {
            Some(row) => Ok(row),
            None => new_stream(rows, self.unit_no, self.no, stream.as_str(), Phase::Data),
        })?;
        if row.exhausted {
            return Ok(None);
        }
        row.cursor.map(|json| read_cursor(self, stream.as_str(), &json)).transpose().map(Some)
    }
}

/// Stores that a stream was asked for, before its first page: whatever comes of that, the run is not finished
/// without it.
pub(super) fn begin_stream(run: &Run, stream: &StreamName) -> Result<()> {
    let key = run.run_key().and_name(stream.as_str());
    if run.look(|rows, _| rows.get(&STREAMS, &key))?.is_some() {
        return Ok(());
    }
    run.change(|change, _| {
        let row = new_stream(change, run.unit_no, run.no, stream.as_str(), Phase::Data)?;
        change.put(&STREAMS, &key, &row)
    })
}

pub(super) fn read_cursor<C: DeserializeOwned>(run: &Run, stream: &str, json: &str) -> Result<C> {
    serde_json::from_str(json).map_err(|error| Error::Cursor {
        sync_unit: run.unit.to_string(),
        stream: stream.to_owned(),
        cursor: cut::to_chars(json, 200),
        source: error.into(),
    })
}

/// Adds the lines of a page to the open batch of their type; returns the batches that became full.
pub(in crate::store) fn add_lines(
    run: &Run,
    change: &Change<'_>,
    row: &mut RunRow,
    item_type: &ItemType,
    lines: &Lines,
    batch_items: u32,
) -> Result<Vec<FullBatch>> {
    let key = run.run_key().and_name(item_type.as_str());
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
            let mut batch = take_open(run, change, item_type, &mut counts)?;
            batch.add(chunk);
            full.push(batch);
        } else {
            change.put(&CHUNKS, &chunk_key(run, item_type, row.next_chunk), &chunk)?;
            row.next_chunk += 1;
        }
    }
    change.put(&TYPES, &key, &counts)?;
    Ok(full)
}

/// Takes what is open of a type as a batch to be stored; the counts are the caller's to store.
fn take_open(
    run: &Run,
    change: &Change<'_>,
    item_type: &ItemType,
    counts: &mut TypeRow,
) -> Result<FullBatch> {
    let prefix = run.run_key().and_inner_name(item_type.as_str());
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
pub(in crate::store) fn put_batches(
    run: &Run,
    change: &Change<'_>,
    row: &mut RunRow,
    stream: &str,
    full: &[FullBatch],
    cursor_after: Option<&String>,
) -> Result<Vec<UnsettledBatch>> {
    let pieces: Vec<Vec<&[u8]>> =
        full.iter().map(|batch| batch.pieces.iter().map(Vec::as_slice).collect()).collect();
    let members = compress_all(&pieces, run.inner.settings.level)?;
    let mut closed = Vec::with_capacity(full.len());
    let last = full.len().saturating_sub(1);
    for (at, (batch, member)) in full.iter().zip(members).enumerate() {
        let seq = row.next_seq;
        row.next_seq += 1;
        recount(&mut row.open_batches, false, State::NEW.counts().open, 1);
        let mut before = 0;
        count(run, change, batch.item_type.as_str(), |counts| {
            before = counts.batched;
            counts.batched += u64::from(batch.items);
            counts.batches += 1;
        })?;
        if batch.item_type.as_str() == ATTACHMENTS {
            put_file(run, change, seq, before + 1, batch.items)?;
        }
        let stored = BatchRow {
            item_type: batch.item_type.to_string(),
            stream: stream.to_owned(),
            epoch: run.epoch,
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
        change.put(&BATCHES, &run.batch_key(seq), &stored)?;
        change.put(&PAYLOADS, &run.batch_key(seq), &Payload(member))?;
        closed.push(UnsettledBatch { info: BatchInfo::of(seq, &stored), state: State::NEW, artifact: None });
    }
    Ok(closed)
}

fn chunk_key(run: &Run, item_type: &ItemType, number: u64) -> Key {
    run.run_key().and_inner_name(item_type.as_str()).and_number(number)
}

/// The lines of one item type of one page.
pub(in crate::store) struct Lines {
    bytes: Vec<u8>,
    /// Where each line ends, its newline included.
    ends: Vec<usize>,
    dates: Vec<Dates>,
}

impl Lines {
    pub(in crate::store) fn of(records: &[Record]) -> Result<Self> {
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
    pub(in crate::store) fn each(&self) -> impl Iterator<Item = &[u8]> {
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
pub(in crate::store) struct FullBatch {
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
