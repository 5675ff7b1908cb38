//! Staging: stores a page and the batches that it fills, in one transaction.
//!
//! A record is in a batch, or in the lines of an open one, exactly if the cursor of its stream is past it.
//!
//! Lines of an item type collect in `chunks` of at most 63 KiB, unless a line is longer. The page that brings them to the
//! batch size closes the batch: in the transaction of that page, the chunks are replaced by one gzip member. A page
//! larger than a batch closes several, each as one gzip member. The remaining lines become the first chunks of the next
//! batch. Lines whose batch is closed in the transaction that brings them are compressed where they were written, and
//! never stored as lines.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::artifact::{PIECE_BYTES, compress_all};
use crate::cut;
use crate::error::{Error, Result};
use crate::model::{
    BATCH_BYTES_MAX, CURSOR_BYTES_MAX, ItemType, Micros, ParentId, Phase, Safeguard, StreamName, ValueKey,
};
use crate::record::{ATTACHMENTS, Tally};
use crate::transfer::{State, recount};

use super::super::attachments::queue::{put_file, queue_lines};
use super::super::child_listings::{self, name_children, named};
use super::super::cursors::{CursorWatch, check_moves};
use super::super::edge;
use super::super::findings::add_findings;
use super::super::kept::{keep_last_cursor, new_stream};
use super::super::lines::{Lines, LinesPart};
use super::super::most_read;
use super::super::once;
use super::super::page::{NewChild, Page, PageLines, PageParts, RejectedParts, to_json};
use super::super::rejected::{check_not_ours, reject};
use super::super::rows::{
    BATCHES, BatchRow, BatchState, CHUNKS, ChunkRow, Dates, Json, Key, RunRow, STREAMS, TYPES, TypeRow,
    UnderRow, VALUES,
};
use super::super::run_handle::{Run, read_cursor};
use super::super::tables::{Change, Rows};
use super::payload;
use super::states::{BatchInfo, BatchSettling, UnsettledBatch, count, count_left_out, settle};

/// The position of a stream: `None` if it is exhausted, else the cursor of its next page.
pub(super) type NextCursor<C> = Option<Option<C>>;

/// The listing that a page belongs to.
#[derive(Debug, Clone)]
pub(crate) enum PageOf {
    Stream(StreamName),
    Child { number: u64, stream: StreamName, parent: ParentId },
}

impl PageOf {
    pub(crate) fn stream(&self) -> &StreamName {
        match self {
            PageOf::Stream(stream) | PageOf::Child { stream, .. } => stream,
        }
    }

    /// Checks that a page leads on: not to the cursor that it was fetched with, and not back into a cycle. Returns
    /// the cursor that it leads to, as JSON. `watch` has the cursors that the listing had so far in this invocation.
    ///
    /// # Errors
    /// `Invalid` if the page does not lead on, or its cursor cannot be written as JSON; `TooLarge`.
    pub(crate) fn lead_on<C: Serialize>(
        &self,
        from: Option<&str>,
        page: &Page<C>,
        watch: &mut CursorWatch,
    ) -> Result<Option<String>> {
        let next = cursor_json(self, page)?;
        check_moves(self, from, next.as_deref())?;
        next.as_ref().map_or(Ok(()), |next| watch.advance(self, next))?;
        Ok(next)
    }
}

/// The name for errors.
impl fmt::Display for PageOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageOf::Stream(stream) => write!(f, "stream {stream}"),
            PageOf::Child { stream, parent, .. } => {
                write!(f, "child listing {}", named(stream.as_str(), parent.as_str()))
            }
        }
    }
}

/// The cursor that a page was fetched with.
enum FetchedWith {
    /// As JSON; none for the first page.
    Cursor(Option<String>),
    /// Set if the caller commits pages in their order.
    Unknown,
}

/// A page whose parts are checked: it can be committed.
pub(crate) struct ReadyPage {
    of: PageOf,
    phase: Phase,
    from: FetchedWith,
    /// The next cursor, as JSON.
    cursor: Option<String>,
    lines: Vec<PageLines>,
    skipped: Vec<(ItemType, u64)>,
    rejected: RejectedParts,
    bookmark: Option<String>,
    values: Vec<(ValueKey, Option<String>)>,
    progress: Option<u8>,
    findings: Vec<(String, Tally)>,
    children: Vec<NewChild>,
}

impl ReadyPage {
    pub(crate) fn of(&self) -> &PageOf {
        &self.of
    }

    /// Whether it names child listings: they come before the next page of its own listing.
    pub(crate) fn names_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// Whether its listing goes on after it.
    pub(crate) fn has_more(&self) -> bool {
        self.cursor.is_some()
    }

    /// The number of records that it stages.
    pub(crate) fn items(&self) -> usize {
        self.lines.iter().map(|group| group.lines.len()).sum()
    }

    /// Bytes of their lines.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.iter().map(|group| group.lines.bytes()).sum()
    }
}

impl Run {
    /// Stores a page of the data phase, in batches of the store's batch size. `watch` has the cursors that the stream
    /// had so far in this invocation.
    ///
    /// # Errors
    /// `Invalid` if the page does not lead on; nothing of it is stored.
    pub(super) fn stage_data<C: Serialize>(
        &self,
        stream: &StreamName,
        page: Page<C>,
        watch: &mut CursorWatch,
    ) -> Result<Vec<UnsettledBatch>> {
        let page = make_ready(PageOf::Stream(stream.clone()), Phase::Data, page)?;
        if let Some(NewChild { stream, parent, .. }) = page.children.first() {
            return Err(Error::Invalid {
                what: format!("child listing {}", named(stream.as_str(), parent.as_str())),
                reason: "only airdrop::serve reads child listings".to_owned(),
            });
        }
        page.cursor.as_ref().map_or(Ok(()), |next| watch.advance(&page.of, next))?;
        let closed = self.commit(&[&page], &[], &|| ())?.closed().collect();
        self.tell_far_more(stream, watch)?;
        Ok(closed)
    }

    /// Warns of a stream that has read far more than ever, once per invocation.
    pub(crate) fn tell_far_more(&self, stream: &StreamName, watch: &mut CursorWatch) -> Result<()> {
        watch.is_told = watch.is_told || most_read::tell(self, stream)?;
        Ok(())
    }

    /// Stores a page and the position of its stream after it, and closes the batches that it fills.
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
        let page = make_ready(PageOf::Stream(stream.clone()), phase, page)?;
        Ok(self.commit_in(&[&page], &[], batch_items, &|| ())?.closed().collect())
    }

    /// Stores in one transaction pages of the data phase and the positions of their listings, and what happened to
    /// uploads of batches. Closes the batches that the pages fill, which have the store's batch size. Calls
    /// `core_is_free` whenever a thread has compressed its share of them.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss.
    ///
    /// # Errors
    /// Those of storing one page, and of [`Run::settle_batches`]; nothing of all that is stored.
    pub(crate) fn commit(
        &self,
        pages: &[&ReadyPage],
        settled: &[(u64, BatchSettling)],
        core_is_free: &(dyn Fn() + Sync),
    ) -> Result<Committed> {
        self.commit_in(pages, settled, self.inner.settings.batch_items, core_is_free)
    }

    fn commit_in(
        &self,
        pages: &[&ReadyPage],
        settled: &[(u64, BatchSettling)],
        batch_items: u32,
        core_is_free: &(dyn Fn() + Sync),
    ) -> Result<Committed> {
        self.change(|change, row| {
            let used = settle(self, change, row, settled)?;
            let (mut open, mut full) = (OpenLines::default(), Vec::new());
            let mut stored = Vec::with_capacity(pages.len());
            for page in pages {
                let before = full.len();
                let children = put_page(self, change, row, page, batch_items, &mut open, &mut full)?;
                stored.push((full.len() - before, children));
            }
            open.put(self, change, row)?;
            // Those of all pages at once, so that they are compressed on all cores.
            let mut closed = put_batches(self, change, row, &full, core_is_free)?.into_iter();
            let pages = stored.into_iter().map(|(batches, children)| CommittedPage {
                closed: closed.by_ref().take(batches).collect(),
                children,
            });
            let open_types = change.all(&TYPES, &self.run_key())?;
            let open_types = open_types.into_iter().filter(|(_, counts)| counts.open_items > 0);
            let open_items = open_types.map(|(_, counts)| counts.open_items).collect();
            Ok(Committed { pages: pages.collect(), used, open_items })
        })
    }

    /// Closes every open batch, at any size.
    ///
    /// # Durability
    /// When this returns `Ok`, they survive power loss as batches; their lines did before.
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
                full.push(take_open(self, change, &item_type, &mut counts, &mut OpenLines::default())?);
                change.put(&TYPES, &self.run_key().and_name(item_type.as_str()), &counts)?;
            }
            put_batches(self, change, row, &full, &|| ())
        })
    }

    /// Whether a stream is exhausted.
    pub(crate) fn is_exhausted(&self, stream: &StreamName) -> Result<bool> {
        check_not_ours(stream)?;
        let key = self.run_key().and_name(stream.as_str());
        Ok(self.look(|rows, _| rows.get(&STREAMS, &key))?.is_some_and(|row| row.exhausted))
    }

    /// The position of a stream: `None` if it is exhausted, else the cursor of its next page.
    pub(crate) fn stream_cursor<C: DeserializeOwned>(&self, stream: &StreamName) -> Result<NextCursor<C>> {
        let position = self.stream_position(stream)?;
        position
            .map(|json| json.map(|json| read_cursor(self, stream.as_str(), &json)).transpose())
            .transpose()
    }

    /// [`Run::stream_cursor`], as JSON.
    pub(crate) fn stream_position(&self, stream: &StreamName) -> Result<NextCursor<String>> {
        check_not_ours(stream)?;
        let key = self.run_key().and_name(stream.as_str());
        let row = self.look(|rows, _| match rows.get(&STREAMS, &key)? {
            Some(row) => Ok(row),
            None => new_stream(rows, self.unit_no, self.no, stream.as_str(), Phase::Data),
        })?;
        Ok(if row.exhausted { None } else { Some(row.cursor) })
    }

    /// Parses a cursor of a listing.
    ///
    /// # Errors
    /// `Cursor` if it is not of the type asked for.
    pub(crate) fn read_cursor<C: DeserializeOwned>(
        &self,
        stream: &str,
        parent: Option<&str>,
        json: &str,
    ) -> Result<C> {
        match parent {
            None => read_cursor(self, stream, json),
            Some(parent) => read_cursor(self, &named(stream, parent), json),
        }
    }
}

/// The result of a commit.
#[derive(Debug)]
pub(crate) struct Committed {
    /// Those of its pages, in their order.
    pub(crate) pages: Vec<CommittedPage>,
    /// The batches whose id the run has used before: nothing of what happened to them is stored.
    pub(crate) used: Vec<u64>,
    /// How many records each open batch has.
    pub(crate) open_items: Vec<u32>,
}

impl Committed {
    fn closed(self) -> impl Iterator<Item = UnsettledBatch> {
        self.pages.into_iter().flat_map(|page| page.closed)
    }
}

/// The result of storing a page.
#[derive(Debug)]
pub(crate) struct CommittedPage {
    /// The batches that it closed.
    pub(crate) closed: Vec<UnsettledBatch>,
    /// The numbers of the child listings that it named and that were not known before.
    pub(crate) children: Vec<u64>,
}

/// Checks the parts of a page.
///
/// # Errors
/// If part of it cannot be stored.
pub(crate) fn make_ready<C: Serialize>(of: PageOf, phase: Phase, page: Page<C>) -> Result<ReadyPage> {
    let cursor = cursor_json(&of, &page)?;
    ready(of, phase, page, FetchedWith::Unknown, cursor)
}

/// [`make_ready`] for a page of the data phase. It was fetched with the cursor `from` and leads to `next`, both as
/// JSON. It is committed only if its listing is at `from`.
///
/// # Errors
/// Those of [`make_ready`].
pub(crate) fn make_ready_in_order<C>(
    of: PageOf,
    page: Page<C>,
    from: Option<String>,
    next: Option<String>,
) -> Result<ReadyPage> {
    ready(of, Phase::Data, page, FetchedWith::Cursor(from), next)
}

fn cursor_json<C: Serialize>(of: &PageOf, page: &Page<C>) -> Result<Option<String>> {
    let what = || format!("the cursor of {of}");
    page.next.as_ref().map(|cursor| to_json(&what(), cursor, CURSOR_BYTES_MAX)).transpose()
}

fn ready<C>(
    of: PageOf,
    phase: Phase,
    page: Page<C>,
    from: FetchedWith,
    cursor: Option<String>,
) -> Result<ReadyPage> {
    let PageParts { lines, skipped, rejected, bookmark, values, progress, findings, children } =
        page.into_parts()?;
    if matches!(of, PageOf::Child { .. }) && bookmark.is_some() {
        return Err(Error::Invalid {
            what: format!("the bookmark of {of}"),
            reason: "only a stream can have a bookmark: a child listing exists only in the run that names it"
                .to_owned(),
        });
    }
    Ok(ReadyPage {
        of,
        phase,
        from,
        cursor,
        lines,
        skipped,
        rejected,
        bookmark,
        values,
        progress,
        findings,
        children,
    })
}

/// Stores a page, except for the batches that it fills: these are added to `full`. Returns the numbers of the child
/// listings that it named and that were not known before.
fn put_page<'p>(
    run: &Run,
    change: &Change<'_>,
    row: &mut RunRow,
    page: &'p ReadyPage,
    batch_items: u32,
    open: &mut OpenLines<'p>,
    full: &mut Vec<FullBatch<'p>>,
) -> Result<Vec<u64>> {
    let before = full.len();
    let mut items = 0;
    let lines = if run.inner.breaks(Safeguard::RowsWithCursor) { &[] } else { page.lines.as_slice() };
    for PageLines { item_type, once, edge, lines } in lines {
        items += lines.len() as u64;
        let new = if *once {
            let ids = lines.ids().map(Option::unwrap_or_default);
            Cow::Owned(lines.only(&once::take_new(run, change, item_type, ids)?))
        } else {
            Cow::Borrowed(lines)
        };
        let lines = match edge::take(run, change, row, item_type, *edge, staged(&new))? {
            Some(keep) => Cow::Owned(new.only(&keep)),
            None => new,
        };
        if page.phase == Phase::Data && item_type.as_str() == ATTACHMENTS {
            let read = change.get(&TYPES, &run.run_key().and_name(ATTACHMENTS))?;
            let queued = read.map_or(0, |counts| counts.read - counts.left_out);
            queue_lines(run, change, queued + 1, lines.each())?;
        }
        full.extend(add_lines(run, change, item_type, &lines, batch_items, open)?);
    }
    for (item_type, skipped) in &page.skipped {
        items += skipped;
        count_left_out(run, change, item_type.as_str(), *skipped)?;
    }
    items += reject(run, change, &page.rejected)?;
    for batch in full.iter_mut().skip(before) {
        page.of.stream().as_str().clone_into(&mut batch.stream);
    }
    if let Some(last) = full.get_mut(before..).and_then(<[_]>::last_mut) {
        last.cursor_after.clone_from(&page.cursor);
    }
    add_findings(run, change, &page.findings)?;
    row.pages += 1;
    row.not_before = None;
    row.progress = page.progress.or(row.progress);
    let under = match &page.of {
        PageOf::Stream(stream) => {
            put_position(run, change, stream, page, items)?;
            if page.has_more() { UnderRow::Stream(stream.to_string()) } else { UnderRow::Nothing }
        }
        PageOf::Child { number, .. } => {
            let before = child_listings::advance(run, change, *number, page.cursor.as_ref(), items)?;
            check_order(run, page, before.cursor.as_deref())?;
            if page.has_more() { UnderRow::Child(*number) } else { before.under }
        }
    };
    let children = name_children(run, change, &page.children, &under)?;
    for (key, value) in &page.values {
        let key = Key::unit(run.unit_no).and_name(key.as_str());
        match value {
            Some(json) => change.put(&VALUES, &key, &Json(json.clone()))?,
            None => change.remove(&VALUES, &key)?,
        }
    }
    Ok(children)
}

/// Refuses a page that does not follow the page committed last: records between them would be lost, or announced
/// twice.
fn check_order(run: &Run, page: &ReadyPage, stands_at: Option<&str>) -> Result<()> {
    match &page.from {
        FetchedWith::Cursor(from)
            if from.as_deref() != stands_at && !run.inner.breaks(Safeguard::PagesInOrder) =>
        {
            let shown = |cursor: Option<&str>| {
                cursor.map_or_else(|| "its start".to_owned(), |at| cut::to_chars(at, 200))
            };
            Err(Error::Invalid {
                what: format!("a page of {}", page.of),
                reason: format!(
                    "it was fetched at {}, and what is stored ends at {}",
                    shown(from.as_deref()),
                    shown(stands_at)
                ),
            })
        }
        _ => Ok(()),
    }
}

/// Stores the position of a stream after a page.
fn put_position(
    run: &Run,
    change: &Change<'_>,
    stream: &StreamName,
    page: &ReadyPage,
    items: u64,
) -> Result<()> {
    let key = run.run_key().and_name(stream.as_str());
    let mut position = match change.get(&STREAMS, &key)? {
        Some(row) => row,
        None => new_stream(change, run.unit_no, run.no, stream.as_str(), page.phase)?,
    };
    check_order(run, page, position.cursor.as_deref())?;
    check_moves(&page.of, position.cursor.as_deref(), page.cursor.as_deref())?;
    position.items += items;
    position.pages += 1;
    position.pace.add(Micros::from_time(run.inner.clock.now()), items);
    position.exhausted = page.cursor.is_none();
    if let Some(last) = position.cursor.take().filter(|_| position.exhausted) {
        keep_last_cursor(change, &run.run_key(), stream.as_str(), last)?;
    }
    position.cursor.clone_from(&page.cursor);
    position.bookmark = page.bookmark.clone().or(position.bookmark);
    change.put(&STREAMS, &key, &position)
}

/// Stores that a stream is being read, before its first page: even if the fetch fails, the run cannot be finished
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

/// Adds the lines of a page to the open batch of their type; returns the batches that became full.
pub(in crate::store) fn add_lines<'p>(
    run: &Run,
    change: &Change<'_>,
    item_type: &ItemType,
    lines: &Cow<'p, Lines>,
    batch_items: u32,
    open: &mut OpenLines<'p>,
) -> Result<Vec<FullBatch<'p>>> {
    let key = run.run_key().and_name(item_type.as_str());
    let mut counts = change.get(&TYPES, &key)?.unwrap_or_default();
    let mut full = Vec::new();
    counts.read += lines.len() as u64;
    let mut from = 0;
    while from < lines.len() {
        let mut to = from;
        while to < lines.len()
            && counts.open_items + items_between(from, to) < batch_items
            && counts.open_bytes + lines.bytes_between(from, to) < BATCH_BYTES_MAX
        {
            to += 1;
        }
        let chunks = Chunk::of(lines, from, to);
        counts.open_bytes += lines.bytes_between(from, to);
        counts.open_items += items_between(from, to);
        from = to;
        if counts.open_items >= batch_items || counts.open_bytes >= BATCH_BYTES_MAX {
            // Also if an earlier life left more lines open than the batch size that is set now: then there are no
            // `chunks`.
            let mut batch = take_open(run, change, item_type, &mut counts, open)?;
            for chunk in chunks {
                batch.add(chunk);
            }
            full.push(batch);
        } else {
            open.0.entry(item_type.clone()).or_default().extend(chunks);
        }
    }
    change.put(&TYPES, &key, &counts)?;
    Ok(full)
}

/// Takes the open lines of a type as a batch to be stored. The caller stores the changed counts.
fn take_open<'p>(
    run: &Run,
    change: &Change<'_>,
    item_type: &ItemType,
    counts: &mut TypeRow,
    open: &mut OpenLines<'p>,
) -> Result<FullBatch<'p>> {
    let prefix = run.run_key().and_inner_name(item_type.as_str());
    let mut batch = FullBatch::of(item_type.clone());
    for (_, ChunkRow { items, dates, lines }) in change.all(&CHUNKS, &prefix)? {
        batch.add(Chunk { items, dates, lines: Cow::Owned(lines) });
    }
    open.0.remove(item_type).into_iter().flatten().for_each(|chunk| batch.add(chunk));
    change.remove_all(&CHUNKS, &prefix)?;
    counts.open_items = 0;
    counts.open_bytes = 0;
    Ok(batch)
}

/// Compresses and stores batches. Calls `core_is_free` whenever a thread has compressed its share of them.
pub(in crate::store) fn put_batches(
    run: &Run,
    change: &Change<'_>,
    row: &mut RunRow,
    full: &[FullBatch<'_>],
    core_is_free: &(dyn Fn() + Sync),
) -> Result<Vec<UnsettledBatch>> {
    let pieces: Vec<Vec<&[u8]>> =
        full.iter().map(|batch| batch.pieces.iter().map(AsRef::as_ref).collect()).collect();
    let members = compress_all(&pieces, run.inner.settings.level, core_is_free)?;
    let mut closed = Vec::with_capacity(full.len());
    for (batch, member) in full.iter().zip(members) {
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
            stream: batch.stream.clone(),
            epoch: run.epoch,
            items: batch.items,
            line_bytes: batch.pieces.iter().map(|piece| piece.len() as u64).sum(),
            gzip_bytes: member.bytes() as u64,
            dates: batch.dates,
            cursor_after: batch.cursor_after.clone(),
            state: BatchState::Staged,
            artifact: None,
            uploaded_in: 0,
            given_up: 0,
            saved: false,
        };
        change.put(&BATCHES, &run.batch_key(seq), &stored)?;
        payload::put(change, &run.batch_key(seq), member)?;
        closed.push(UnsettledBatch { info: BatchInfo::of(seq, &stored), state: State::NEW, artifact: None });
    }
    Ok(closed)
}

fn chunk_key(run: &Run, item_type: &ItemType, number: u64) -> Key {
    run.run_key().and_inner_name(item_type.as_str()).and_number(number)
}

/// Each record as the edge needs it.
fn staged(lines: &Lines) -> impl Iterator<Item = edge::Staged<'_>> {
    let each = lines.ids().zip(lines.each()).zip(lines.modified());
    each.map(|((id, line), modified)| edge::Staged { id, line, modified })
}

/// Lines of an open batch, one after the other.
struct Chunk<'p> {
    items: u32,
    dates: Dates,
    lines: Cow<'p, [u8]>,
}

impl<'p> Chunk<'p> {
    /// The lines from `from` to before `to`: where they were written, unless some of them were left out since.
    fn of(lines: &Cow<'p, Lines>, from: usize, to: usize) -> Vec<Self> {
        match lines {
            Cow::Borrowed(lines) => lines.between(from, to).map(Self::in_place).collect(),
            Cow::Owned(lines) => {
                lines.between(from, to).map(|part| Chunk::in_place(part).into_owned()).collect()
            }
        }
    }

    fn in_place(LinesPart { items, dates, bytes }: LinesPart<'p>) -> Self {
        Self { items: u32::try_from(items).unwrap_or(u32::MAX), dates, lines: Cow::Borrowed(bytes) }
    }

    fn into_owned<'o>(self) -> Chunk<'o> {
        Chunk { items: self.items, dates: self.dates, lines: Cow::Owned(self.lines.into_owned()) }
    }
}

/// The lines that one transaction has added to open batches so far.
#[derive(Default)]
pub(in crate::store) struct OpenLines<'p>(BTreeMap<ItemType, Vec<Chunk<'p>>>);

impl OpenLines<'_> {
    /// Stores them, as no page of this transaction closes their batch.
    pub(in crate::store) fn put(self, run: &Run, change: &Change<'_>, row: &mut RunRow) -> Result<()> {
        for (item_type, chunks) in self.0 {
            let mut put = |stored: ChunkRow| {
                let key = chunk_key(run, &item_type, row.next_chunk);
                row.next_chunk += 1;
                change.put(&CHUNKS, &key, &stored)
            };
            let mut stored = ChunkRow::default();
            for Chunk { items, dates, lines } in chunks {
                if stored.items > 0 && stored.lines.len() + lines.len() > PIECE_BYTES {
                    put(std::mem::take(&mut stored))?;
                }
                stored.items += items;
                stored.dates.merge(dates);
                stored.lines.extend_from_slice(&lines);
            }
            put(stored)?;
        }
        Ok(())
    }
}

fn items_between(from: usize, to: usize) -> u32 {
    u32::try_from(to - from).unwrap_or(u32::MAX)
}

/// A batch that was closed, before it is compressed.
pub(in crate::store) struct FullBatch<'p> {
    item_type: ItemType,
    items: u32,
    dates: Dates,
    pieces: Vec<Cow<'p, [u8]>>,
    /// The stream of the page that closed it; empty if none did.
    stream: String,
    /// The cursor after that page, if it is the last batch that the page closed.
    cursor_after: Option<String>,
}

impl<'p> FullBatch<'p> {
    fn of(item_type: ItemType) -> Self {
        let (dates, pieces) = (Dates::default(), Vec::new());
        Self { item_type, items: 0, dates, pieces, stream: String::new(), cursor_after: None }
    }

    fn add(&mut self, chunk: Chunk<'p>) {
        self.items += chunk.items;
        self.dates.merge(chunk.dates);
        self.pieces.push(chunk.lines);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::states::acknowledge;
    use crate::artifact::{Level, decompress};
    use crate::model::ArtifactId;
    use crate::record::Record;
    use crate::store::Store;
    use crate::store::rows::{PAYLOADS, Payload};

    use super::*;

    /// A page with these issues, each beside a user of its number who is announced once.
    fn page(from: &str, next: u32, issues: std::ops::Range<u32>) -> ReadyPage {
        let of = PageOf::Stream(StreamName::new("all").unwrap());
        let page = issues.fold(Page::more(next), |page, number| {
            let record = |name: &str| Record::new(format!("{name}-{number}"), &json!({})).unwrap();
            page.record("issues", record("issue")).record_once("users", record("user"))
        });
        let from = Some(from.to_owned()).filter(|from| !from.is_empty());
        make_ready_in_order(of, page, from, Some(next.to_string())).unwrap()
    }

    #[test]
    fn lines_of_pages_that_are_committed_together_keep_their_order_and_are_stored_as_lines_only_where_their_batch_stays_open()
     {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::options().batch_items(5).open(folder.path().join("state.redb")).unwrap();
        let run = store.sync_unit("unit").unwrap().begin().unwrap();
        let chunks = |item_type: &str| -> Vec<u32> {
            let prefix = run.run_key().and_inner_name(item_type);
            let rows = run.look(|rows, _| rows.all(&CHUNKS, &prefix)).unwrap();
            rows.into_iter().map(|(_, chunk)| chunk.items).collect()
        };
        let (mut batches, mut open) = (Vec::new(), Vec::new());
        let mut commit = |pages: &[ReadyPage]| {
            let pages: Vec<_> = pages.iter().collect();
            let committed = run.commit(&pages, &[], &|| ()).unwrap();
            open.push(committed.open_items);
            committed
                .pages
                .into_iter()
                .map(|page| {
                    let closed = page.closed.len();
                    batches.extend(page.closed);
                    closed
                })
                .collect::<Vec<_>>()
        };

        // 2 and 1 stay open, to be closed by the third page, which fills two more batches and leaves one record.
        assert_eq!(commit(&[page("", 1, 0..2), page("1", 2, 2..3), page("2", 3, 3..16)]), [0, 0, 6]);
        assert_eq!((chunks("issues"), chunks("users")), (vec![1], vec![1]));
        // Users that were announced are left out of the lines, and of what is open.
        assert_eq!(commit(&[page("3", 4, 14..17), page("4", 5, 17..18)]), [0, 1]);
        assert_eq!((chunks("issues"), chunks("users")), (vec![], vec![1, 2]));
        assert_eq!(open, [vec![1, 1], vec![3]]);

        let mut ids = BTreeMap::<String, Vec<String>>::new();
        batches.extend(run.close_open().unwrap());
        for batch in batches {
            let mut lines = Vec::new();
            decompress(&run.payload(batch.info.seq).unwrap(), u64::MAX, &mut lines).unwrap();
            let lines = String::from_utf8(lines).unwrap();
            assert_eq!(lines.lines().count(), batch.info.items as usize);
            let ids = ids.entry(batch.info.item_type).or_default();
            ids.extend(lines.lines().map(|line| line.split('"').nth(3).unwrap().to_owned()));
        }
        let expected = |name: &str, numbers: &[u32]| -> Vec<String> {
            numbers.iter().map(|number| format!("{name}-{number}")).collect()
        };
        let issues: Vec<u32> = (0..16).chain(14..18).collect();
        assert_eq!(ids["issues"], expected("issue", &issues));
        assert_eq!(ids["users"], expected("user", &(0..18).collect::<Vec<_>>()));
    }

    #[test]
    fn pages_and_what_happened_to_uploads_are_stored_together_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::options().batch_items(2).open(folder.path().join("state.redb")).unwrap();
        let run = store.sync_unit("unit").unwrap().begin().unwrap();
        let uploaded = |id: &str| BatchSettling::Uploaded(ArtifactId::new(id).unwrap());
        let state = || {
            let uploads: Vec<_> =
                run.unsettled().unwrap().into_iter().map(|batch| (batch.info.seq, batch.artifact)).collect();
            let ids: Vec<_> =
                uploads.iter().map(|(seq, id)| (*seq, id.as_ref().map(ArtifactId::as_str))).collect();
            format!("{ids:?} {:?}", run.stream_position(&StreamName::new("all").unwrap()).unwrap())
        };
        let commit =
            |pages: &[&ReadyPage], settled: &[(u64, BatchSettling)]| run.commit(pages, settled, &|| ());

        assert_eq!(commit(&[&page("", 1, 0..2)], &[]).unwrap().used, Vec::<u64>::new());
        let first = state();
        assert_eq!(first, r#"[(1, None), (2, None)] Some(Some("1"))"#);
        // A page that was fetched with another cursor, and a batch that does not exist: neither keeps anything.
        commit(&[&page("7", 8, 2..4)], &[(1, uploaded("x"))]).unwrap_err();
        assert_eq!(state(), first);
        commit(&[&page("1", 2, 2..4)], &[(1, uploaded("x")), (9, uploaded("y"))]).unwrap_err();
        assert_eq!(state(), first);
        // An id that was used before keeps nothing but its own batch from being stored.
        let together = [(1, uploaded("x")), (2, uploaded("x"))];
        assert_eq!(commit(&[&page("1", 2, 2..4)], &together).unwrap().used, [2]);
        assert_eq!(state(), r#"[(1, Some("x")), (2, None), (3, None), (4, None)] Some(Some("2"))"#);
        let without_pages = [(1, BatchSettling::Confirmed), (2, uploaded("y"))];
        assert_eq!(commit(&[], &without_pages).unwrap().pages.len(), 0);
        assert_eq!(state(), r#"[(2, Some("y")), (3, None), (4, None)] Some(Some("2"))"#);
    }

    #[test]
    fn bytes_of_a_large_batch_and_lines_of_a_large_open_one_are_stored_in_pieces_of_which_none_may_be_missing()
     {
        let folder = tempfile::tempdir().unwrap();
        let options = Store::options().batch_items(300).level(Level::new(0).unwrap());
        let store = options.open(folder.path().join("state.redb")).unwrap();
        let run = store.sync_unit("unit").unwrap().begin().unwrap();
        // Lines of 1,000 bytes: those of 300 records are a batch of five pieces, those of 200 stay open.
        let text = "x".repeat(950);
        let records: Vec<_> = (0..500)
            .map(|no| Record::new(format!("issue-{no}"), &json!({ "text": text })).unwrap())
            .collect();
        let expected: Vec<String> = records.iter().map(|record| record.to_line() + "\n").collect();
        let page = records.into_iter().fold(Page::more(1), |page, record| page.record("issues", record));
        let of = PageOf::Stream(StreamName::new("all").unwrap());
        let page = make_ready_in_order(of, page, None, Some("1".to_owned())).unwrap();
        let closed = run.commit(&[&page], &[], &|| ()).unwrap().pages.remove(0).closed;
        let lines_of = |seq: u64| {
            let mut lines = Vec::new();
            decompress(&run.payload(seq)?, u64::MAX, &mut lines).unwrap();
            Ok::<_, Error>(String::from_utf8(lines).unwrap())
        };

        let prefix = run.run_key().and_inner_name("issues");
        let chunks = run.look(|rows, _| rows.all(&CHUNKS, &prefix)).unwrap();
        assert_eq!(chunks.len(), 4);
        assert!(chunks.iter().all(|(_, chunk)| chunk.lines.len() <= PIECE_BYTES));
        assert_eq!(chunks.iter().map(|(_, chunk)| chunk.items).sum::<u32>(), 200);
        let [batch] = closed.as_slice() else { panic!("{closed:?}") };
        let batch_key = run.batch_key(batch.info.seq);
        let pieces = run.look(|rows, _| rows.all(&PAYLOADS, &batch_key)).unwrap();
        assert_eq!(pieces.len(), 5);
        assert!(pieces.iter().all(|(_, piece)| piece.0.len() <= PIECE_BYTES));
        assert_eq!(lines_of(batch.info.seq).unwrap(), expected[..300].concat());
        let rest = run.close_open().unwrap().remove(0);
        assert_eq!(lines_of(rest.info.seq).unwrap(), expected[300..].concat());

        for (missing, reason) in
            [(0, "piece 0 is missing"), (2, "piece 2 is missing"), (4, "its pieces have ")]
        {
            let (number, piece) = &pieces[missing];
            let key = batch_key.clone().and_bytes(number);
            run.change(|change, _| change.remove(&PAYLOADS, &key)).unwrap();
            let error = lines_of(batch.info.seq).unwrap_err().to_string();
            assert!(error.contains("table payloads") && error.contains(reason), "{error}");
            run.change(|change, _| change.put(&PAYLOADS, &key, piece)).unwrap();
        }
        // Lines of several chunks of two commits, one of which is longer than a piece, come in their order.
        let page = |from: u32, next: u32| {
            let records = (0..100).map(|no| {
                let text = "y".repeat(if no == 50 { 100_000 } else { 950 });
                Record::new(format!("issue-{next}-{no}"), &json!({ "text": text })).unwrap()
            });
            let records: Vec<_> = records.collect();
            let lines: String = records.iter().map(|record| record.to_line() + "\n").collect();
            let page =
                records.into_iter().fold(Page::more(next), |page, record| page.record("issues", record));
            let of = PageOf::Stream(StreamName::new("all").unwrap());
            (make_ready_in_order(of, page, Some(from.to_string()), Some(next.to_string())).unwrap(), lines)
        };
        let mut expected_of_two = String::new();
        for (from, next) in [(1, 2), (2, 3)] {
            let (page, lines) = page(from, next);
            assert!(run.commit(&[&page], &[], &|| ()).unwrap().pages.remove(0).closed.is_empty());
            expected_of_two += &lines;
        }
        let chunks = run.look(|rows, _| rows.all(&CHUNKS, &prefix)).unwrap();
        assert_eq!(chunks.len(), 6);
        assert_eq!(chunks.iter().filter(|(_, chunk)| chunk.lines.len() > PIECE_BYTES).count(), 2);
        let two = run.close_open().unwrap().remove(0);
        assert_eq!(lines_of(two.info.seq).unwrap(), expected_of_two);

        // As format 1 stored it.
        run.change(|change, _| {
            payload::remove(change, &batch_key)?;
            let whole = pieces.iter().flat_map(|(_, piece)| piece.0.clone()).collect();
            change.put(&PAYLOADS, &batch_key, &Payload(whole))
        })
        .unwrap();
        assert_eq!(lines_of(batch.info.seq).unwrap(), expected[..300].concat());
        // What is confirmed leaves no piece.
        for seq in [batch.info.seq, rest.info.seq, two.info.seq] {
            let left = || run.look(|rows, _| rows.all(&PAYLOADS, &run.batch_key(seq))).unwrap().len();
            assert!(left() > 0);
            acknowledge(&run, seq, &ArtifactId::new(format!("artifact-{seq}")).unwrap()).unwrap();
            assert_eq!(left(), 0);
        }
    }
}
