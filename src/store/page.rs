//! The result of one fetch from the source.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::{
    CHILD_DATA_BYTES_MAX, CONNECTOR_STATE_VALUE, CURSOR_BYTES_MAX, FINDINGS_KEPT, ItemType, ParentId,
    REJECTED_IDS_MAX, RESERVED_VALUE_PREFIX, StreamName, VALUE_BYTES_MAX, ValueKey,
};
use crate::record::{ATTACHMENTS, Attachment, Finding, Findings, Record, Tally};

use super::lines::Lines;
use super::rejection::Rejection;

/// The result of one fetch from the source: records, and where the next fetch starts.
///
/// A page is staged as a whole, in one transaction: its records, the cursor after it, and the bookmark and values set
/// on it. Nothing is checked while the page is filled. If something in it cannot be stored, staging it is an error,
/// and nothing of it is stored.
///
/// ```
/// use highwater::{Page, Record};
/// let page = Page::more(2_u32)
///     .record("issues", Record::new("ISSUE-1", &serde_json::json!({"title": "a crash"}))?)
///     .record("users", Record::new("USER-7", &serde_json::json!({"name": "Ada"}))?)
///     .progress(40);
/// assert_eq!(page.items(), 2);
/// # Ok::<(), highwater::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Page<C> {
    pub(crate) next: Option<C>,
    records: Vec<PageRecords>,
    /// Item types whose unchanged records are left out.
    edge: BTreeSet<String>,
    /// How many records of an item type were left out because they are out of scope.
    skipped: Vec<(String, u64)>,
    /// The rejected records, by item type.
    rejected: Vec<(String, Rejection)>,
    /// The ids in `asked` that the source no longer has.
    gone: Vec<(String, String)>,
    asked: Option<Asked>,
    /// The number of rejected ids that the unit may have then.
    rejected_max: u64,
    bookmark: Option<Result<String>>,
    values: Vec<(String, Option<Result<String>>)>,
    progress: Option<u8>,
    findings: Vec<(String, Tally)>,
    children: Vec<(String, String, Result<String>)>,
}

/// Records of one item type that are announced in the same way.
#[derive(Debug)]
pub(crate) struct PageRecords {
    pub(crate) item_type: String,
    /// Each record is announced once in a run, whichever page contains it.
    pub(crate) once: bool,
    pub(crate) lines: Lines,
    /// What was changed in some of them before they were added, with their places.
    changes: Vec<(usize, Vec<Finding>)>,
    /// That one of them is beyond what a batch may hold.
    too_large: Option<Error>,
}

impl PageRecords {
    fn new(item_type: &str, once: bool) -> Self {
        let (lines, changes) = (Lines::default(), Vec::new());
        Self { item_type: item_type.to_owned(), once, lines, changes, too_large: None }
    }

    fn push(&mut self, record: Record) {
        let place = self.lines.len();
        let pushed = self.lines.push(&record);
        self.too_large = self.too_large.take().or(pushed.err());
        let changes = record.into_changes();
        if !changes.is_empty() {
            self.changes.push((place, changes));
        }
    }

    /// Keeps only these of the records.
    fn retain(&mut self, keep: &[bool]) {
        self.lines = self.lines.only(keep);
        let (mut before, mut kept) = (0, 0);
        self.changes.retain_mut(|(place, _)| {
            let since = keep.get(before..*place).unwrap_or_default();
            kept += since.iter().filter(|keep| **keep).count();
            before = *place;
            *place = kept;
            keep.get(before) == Some(&true)
        });
    }

    /// Checks the name, and that records to be announced once have an id.
    fn checked(self, edge: &BTreeSet<String>) -> Result<PageLines> {
        let Self { item_type, once, lines, too_large, changes: _ } = self;
        if let Some(error) = too_large {
            return Err(error);
        }
        if once && lines.ids().any(|id| id.is_none()) {
            return Err(Error::Invalid {
                what: format!("a record of {item_type} that is to be announced once in a run"),
                reason: "it is flat, so it has no id: create it with Record::new".to_owned(),
            });
        }
        let edge = edge.contains(&item_type);
        Ok(PageLines { item_type: ItemType::new(item_type)?, once, edge, lines })
    }
}

/// Their lines.
#[derive(Debug)]
pub(crate) struct PageLines {
    pub(crate) item_type: ItemType,
    /// Each record is announced once in a run, whichever page contains it.
    pub(crate) once: bool,
    /// Unchanged records are left out.
    pub(crate) edge: bool,
    pub(crate) lines: Lines,
}

/// A child listing, as a page names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewChild {
    pub(crate) stream: StreamName,
    pub(crate) parent: ParentId,
    /// As JSON.
    pub(crate) data: String,
}

impl NewChild {
    pub(super) fn bytes(&self) -> u64 {
        child_bytes(self.stream.as_str(), self.parent.as_str(), &self.data, None)
    }
}

/// Bytes that a pending child listing takes besides its texts.
const CHILD_BYTES: u64 = 60;

/// Bytes that a child listing takes while it is pending.
pub(super) fn child_bytes(stream: &str, parent: &str, data: &str, cursor: Option<&str>) -> u64 {
    (stream.len() + parent.len() + data.len() + cursor.map_or(0, str::len)) as u64 + CHILD_BYTES
}

/// The rejected records of an item type that a page was requested for.
#[derive(Debug, Clone)]
struct Asked {
    item_type: String,
    ids: Vec<String>,
}

/// The result of requesting a rejected record again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It passed: the page contains it.
    Passed,
    /// The source no longer has it.
    Gone,
    /// It is rejected again.
    Rejected,
}

/// What a page says about rejected records.
#[derive(Debug)]
pub(crate) struct RejectedParts {
    /// The ids that it rejects, including those that were requested.
    pub(crate) rejected: Vec<(ItemType, Rejection)>,
    /// The result for each id that was requested.
    pub(crate) again: Vec<(ItemType, String, Again)>,
    /// The number of rejected ids that the unit may have then.
    pub(crate) ids_max: u64,
}

/// A page whose parts are checked: it can be stored.
#[derive(Debug)]
pub(crate) struct PageParts {
    pub(crate) lines: Vec<PageLines>,
    pub(crate) skipped: Vec<(ItemType, u64)>,
    pub(crate) rejected: RejectedParts,
    pub(crate) bookmark: Option<String>,
    pub(crate) values: Vec<(ValueKey, Option<String>)>,
    pub(crate) progress: Option<u8>,
    /// The findings in its records, by item type.
    pub(crate) findings: Vec<(String, Tally)>,
    pub(crate) children: Vec<NewChild>,
}

/// Bytes of JSON of what a page sets, and the item types of its records.
#[derive(Debug)]
pub(crate) struct Sizes {
    pub(crate) cursor: Option<usize>,
    pub(crate) bookmark: Option<usize>,
    /// `None`: the value is removed.
    pub(crate) values: Vec<(String, Option<usize>)>,
    pub(crate) item_types: Vec<String>,
    /// Bytes of the child listings that it names.
    pub(crate) children: u64,
    /// Item types and ids of the records that it rejects, or that it was requested for.
    pub(crate) rejected: Vec<(String, String)>,
}

#[cfg(feature = "testing")]
impl<C: Serialize> Page<C> {
    /// The cursor after it, for the explorer's oracle.
    pub(crate) fn next_json(&self) -> Result<Option<String>> {
        self.next.as_ref().map(|next| to_json("the cursor", next, CURSOR_BYTES_MAX)).transpose()
    }
}

impl<C> Page<C> {
    /// A page that is followed by others: the next fetch of this stream is given `next`.
    ///
    /// The cursor must lead on. If `next` is the cursor that this page was fetched with, or one that this invocation
    /// has seen before, the page is refused with an error. To wait for the source, return
    /// [`SourceError::RateLimited`](crate::airdrop::SourceError::RateLimited) instead: it ends the invocation.
    pub fn more(next: C) -> Self {
        Self::with_next(Some(next))
    }

    /// The last page of its stream in this run.
    pub fn last() -> Self {
        Self::with_next(None)
    }

    /// A page that is followed by others if the source has a cursor for the next one: [`Page::more`], or
    /// [`Page::last`].
    ///
    /// Be sure that `None` is the source's word for the end, and not what is left of an answer that was cut off.
    ///
    /// ```
    /// use highwater::Page;
    /// #[derive(serde::Deserialize)]
    /// struct Listing { next: Option<String> }
    /// let listing: Listing = serde_json::from_str(r#"{"issues": [], "next": "42"}"#)?;
    /// let page = Page::with_next(listing.next);
    /// # assert_eq!(page.items(), 0);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn with_next(next: Option<C>) -> Self {
        Self {
            next,
            records: Vec::new(),
            edge: BTreeSet::new(),
            skipped: Vec::new(),
            rejected: Vec::new(),
            gone: Vec::new(),
            asked: None,
            rejected_max: REJECTED_IDS_MAX,
            bookmark: None,
            values: Vec::new(),
            progress: None,
            findings: Vec::new(),
            children: Vec::new(),
        }
    }

    /// Replaces the cursor that the page was created with; `None`: this is the last page. For a source that returns
    /// its cursor after the records.
    ///
    /// ```
    /// use highwater::{Page, Record};
    /// let mut page = Page::last();
    /// page.push("issues", Record::new("ISSUE-1", &serde_json::json!({}))?);
    /// page.set_next(Some("token from the end of the answer"));
    /// # Ok::<(), highwater::Error>(())
    /// ```
    pub fn set_next(&mut self, next: Option<C>) {
        self.next = next;
    }

    /// The same page with another cursor.
    ///
    /// # Errors
    /// That of `map`.
    pub(crate) fn map_next<D, X>(
        self,
        map: impl FnOnce(C) -> std::result::Result<D, X>,
    ) -> std::result::Result<Page<D>, X> {
        let Self {
            next,
            records,
            edge,
            skipped,
            rejected,
            gone,
            asked,
            rejected_max,
            bookmark,
            values,
            progress,
            findings,
            children,
        } = self;
        let next = next.map(map).transpose()?;
        Ok(Page {
            next,
            records,
            edge,
            skipped,
            rejected,
            gone,
            asked,
            rejected_max,
            bookmark,
            values,
            progress,
            findings,
            children,
        })
    }

    /// Adds a record.
    pub fn record(mut self, item_type: &str, record: Record) -> Self {
        self.push(item_type, record);
        self
    }

    /// Adds a record to a page that is filled in a loop.
    pub fn push(&mut self, item_type: &str, record: Record) {
        self.add(item_type, false, record);
    }

    /// Adds an attachment, as a record of item type `attachments`.
    ///
    /// # Errors
    /// `Record` if it cannot be a line.
    pub fn push_attachment(&mut self, attachment: &Attachment) -> Result<()> {
        self.push(ATTACHMENTS, attachment.to_record()?);
        Ok(())
    }

    /// Adds a record that a run announces once, however many pages contain it: for example a user or a label that a
    /// source returns with each issue. A record is recognised by its item type and id. The first one is announced.
    /// The others are left out, even if they differ from it, and count as read and *repeated*. The next run announces
    /// the record again.
    ///
    /// A run remembers [`ONCE_BYTES_MAX`](crate::limits::ONCE_BYTES_MAX) bytes of ids, where each takes 64 bytes plus
    /// the length of its item type: 240,000 users. Further records are announced each time they come, and the dump
    /// shows how many those were. No record is lost. A checkpoint has as many ids as it has room for: at most
    /// [`ONCE_CHECKPOINT_BYTES_MAX`](crate::limits::ONCE_CHECKPOINT_BYTES_MAX) bytes, where each takes 22: 5,900.
    ///
    /// A [flat](Record::flat) record has no id, so staging it is an error. Records added with [`Page::record`] are
    /// announced each time, whatever their id.
    ///
    /// ```
    /// use highwater::{Page, Record, Store};
    /// use serde_json::json;
    /// # let dir = tempfile::tempdir()?;
    /// let store = Store::open(dir.path().join("state.redb"))?;
    /// let run = store.sync_unit("acme/tickets")?.begin()?;
    /// // Both issues are Ada's.
    /// let fetch = |cursor: Option<u32>| -> highwater::Result<Page<u32>> {
    ///     let number = cursor.unwrap_or(1);
    ///     let page = if number < 2 { Page::more(number + 1) } else { Page::last() };
    ///     Ok(page
    ///         .record("issues", Record::new(format!("ISSUE-{number}"), &json!({"owner": "USER-7"}))?)
    ///         .record_once("users", Record::new("USER-7", &json!({"name": "Ada"}))?))
    /// };
    /// let mut items = Vec::new();
    /// for batch in run.batches("issues", fetch) {
    ///     let batch = batch?;
    ///     items.push((batch.item_type().to_string(), batch.items()));
    ///     let id = batch.key().to_string();
    ///     batch.acknowledge(id)?;
    /// }
    /// assert_eq!(items, [("issues".to_owned(), 2), ("users".to_owned(), 1)]);
    /// assert_eq!(run.left_out()?.repeated, 1);
    /// run.finish()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn record_once(mut self, item_type: &str, record: Record) -> Self {
        self.push_once(item_type, record);
        self
    }

    /// Like [`Page::record_once`], for a page that is filled in a loop.
    pub fn push_once(&mut self, item_type: &str, record: Record) {
        self.add(item_type, true, record);
    }

    fn add(&mut self, item_type: &str, once: bool, record: Record) {
        let is_its = |group: &PageRecords| group.item_type == item_type && group.once == once;
        let place = self.records.iter().position(is_its).unwrap_or(self.records.len());
        if place == self.records.len() {
            self.records.push(PageRecords::new(item_type, once));
        }
        if let Some(group) = self.records.get_mut(place) {
            group.push(record);
        }
    }

    /// Leaves out the records of an item type that come again although they did not change: those *at the edge*. A
    /// run asks for what was modified at or after the start of the run before it. Some of that was read by the run
    /// before: what was modified while it ran, within the source's last second, or within the
    /// [overlap](crate::StoreOptions::overlap).
    ///
    /// A finished run remembers the records of this type, on pages that call this, that were
    /// [modified](Record::modified) at or after its start minus the overlap: their ids, and a digest of each line. In
    /// the next run a record on such a page is left out if its line is exactly the same; it counts as read and
    /// *unchanged*. A record that changed is staged, even if it changed within the same second. A record without a
    /// modified time, and a [flat](Record::flat) one, is never remembered.
    ///
    /// Nothing is left out if the run does not begin at the watermark of that finished run: after a reset or a
    /// rewind, and if the platform asks for an earlier window. A record is not left out either if another version of
    /// it was staged since, even by a run that was abandoned. A run remembers
    /// [`EDGE_BYTES_MAX`](crate::limits::EDGE_BYTES_MAX) bytes of records, where each takes 80 bytes plus the length
    /// of the item type: 190,000 issues. A checkpoint has as many as it has room for: at most
    /// [`EDGE_CHECKPOINT_BYTES_MAX`](crate::limits::EDGE_CHECKPOINT_BYTES_MAX) bytes, where each takes 44: 1,475.
    /// Further records are announced again, and the dump shows how many those were; no record is lost.
    ///
    /// Call it on every page of the type, and in every run:
    ///
    /// ```
    /// use chrono::{TimeDelta, Utc};
    /// use highwater::{Page, Record, Store};
    /// use serde_json::json;
    /// # let dir = tempfile::tempdir()?;
    /// let store = Store::open(dir.path().join("state.redb"))?;
    /// let unit = store.sync_unit("acme/tickets")?;
    /// // An issue that is modified while the first run reads it.
    /// let modified = Utc::now() + TimeDelta::minutes(1);
    /// let mut counts = Vec::new();
    /// for title in ["a crash", "a crash", "a hang"] {
    ///     let run = unit.begin()?;
    ///     let fetch = |_: Option<u32>| -> highwater::Result<Page<u32>> {
    ///         let issue = Record::new("ISSUE-1", &json!({"title": title}))?.modified(modified);
    ///         Ok(Page::last().leave_out_unchanged("issues").record("issues", issue))
    ///     };
    ///     let mut items = 0;
    ///     for batch in run.batches("issues", fetch) {
    ///         let batch = batch?;
    ///         items += batch.items();
    ///         let id = batch.key().to_string();
    ///         batch.acknowledge(id)?;
    ///     }
    ///     counts.push((items, run.left_out()?.unchanged));
    ///     run.finish()?;
    /// }
    /// assert_eq!(counts, [(1, 0), (0, 1), (1, 0)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn leave_out_unchanged(mut self, item_type: &str) -> Self {
        self.set_leave_out_unchanged(item_type);
        self
    }

    /// Like [`Page::leave_out_unchanged`], for a page that is filled in a loop.
    pub fn set_leave_out_unchanged(&mut self, item_type: &str) {
        self.edge.insert(item_type.to_owned());
    }

    /// Names a *child listing*: the listing of a stream that belongs to one parent, like the comments of an issue.
    /// `data` is what the extractor needs to read it, or `()`. It is stored as JSON of at most
    /// [`CHILD_DATA_BYTES_MAX`](crate::limits::CHILD_DATA_BYTES_MAX) bytes, and is in the
    /// [`Listing`](crate::airdrop::Listing) with which each page of the child listing is fetched.
    ///
    /// A child listing is stored with this page, has its own cursor, and is read to its end before the next page of
    /// the listing that this page belongs to. Its pages may name further child listings. Within a run, a stream and a
    /// parent identify one child listing, however often they are named, even after it was read. A worker without a
    /// disk knows only the pending ones, as a checkpoint has no room for the ids of all that were read.
    ///
    /// At most [`CHILD_LISTINGS_MAX`](crate::limits::CHILD_LISTINGS_MAX) may be pending in a run, with
    /// [`CHILD_LISTINGS_BYTES_MAX`](crate::limits::CHILD_LISTINGS_BYTES_MAX) bytes in all. Staging a page that
    /// exceeds this is an error: name fewer in a page. Child listings need [`airdrop::serve`](crate::airdrop::serve);
    /// a page of [`Run::batches`](crate::Run::batches) cannot name any.
    ///
    /// ```
    /// use highwater::{Page, Record};
    /// let page = Page::more("page 2")
    ///     .record("issues", Record::new("ISSUE-1", &serde_json::json!({"title": "a crash"}))?)
    ///     .child("comments", "ISSUE-1", &serde_json::json!({"url": "/issues/1/comments"}));
    /// # let _ = page;
    /// # Ok::<(), highwater::Error>(())
    /// ```
    pub fn child(mut self, stream: &str, parent: &str, data: &impl Serialize) -> Self {
        self.push_child(stream, parent, data);
        self
    }

    /// Like [`Page::child`], for a page that is filled in a loop.
    pub fn push_child(&mut self, stream: &str, parent: &str, data: &impl Serialize) {
        let what = format!("the data of child listing {stream} of {parent}");
        let json = to_json(&what, data, CHILD_DATA_BYTES_MAX);
        self.children.push((stream.to_owned(), parent.to_owned(), json));
    }

    /// Adds the record that a [`Normalizer`](crate::record::Normalizer) made of `raw`; if it found errors instead,
    /// rejects the record for them. So one bad record does not end the page. Use it for every page of normalised
    /// records.
    ///
    /// ```
    /// use highwater::Page;
    /// use highwater::record::{Field, Metadata, Normalizer, RecordType};
    /// use serde_json::json;
    /// let issues = RecordType::new().field("size", Field::int());
    /// let normalizer = Normalizer::from_metadata(&Metadata::new().record_type("issues", issues), "issues")?;
    /// let mut page = Page::more(2_u32);
    /// for raw in [json!({"id": 1, "size": 3}), json!({"id": 2, "size": "big"})] {
    ///     page.push_or_reject("issues", &raw, normalizer.normalize(&raw));
    /// }
    /// assert_eq!((page.items(), page.rejected()), (1, 1));
    /// # Ok::<(), highwater::record::Findings>(())
    /// ```
    ///
    /// The record is requested again by the id that the findings name. If not even the id can be read, staging the
    /// page is an error: call [`Page::reject`] with an id that the source understands.
    pub fn push_or_reject(&mut self, item_type: &str, raw: &Value, made: Result<Record, Findings>) {
        match made {
            Ok(record) => self.push(item_type, record),
            Err(findings) => {
                self.rejected.push((item_type.to_owned(), Rejection::of_source(raw, &findings)));
            }
        }
    }

    /// Rejects a record: it is bad, and is not announced. It counts as read. Its id and the reason are stored with
    /// the page, and the next run requests it first, until it passes or is gone. It does so with
    /// [`Extractor::refetch`](crate::airdrop::Extractor::refetch), or with [`Run::refetch`](crate::Run::refetch) in a
    /// program without an [`Extractor`](crate::airdrop::Extractor).
    ///
    /// A sync unit may have [`REJECTED_IDS_MAX`](crate::limits::REJECTED_IDS_MAX) rejected records at a time. Staging
    /// a page that exceeds this is an error, and nothing of it is stored. An id has 1 to
    /// [`ID_BYTES_MAX`](crate::limits::ID_BYTES_MAX) bytes; a reason is cut to
    /// [`FINDING_BYTES_MAX`](crate::limits::FINDING_BYTES_MAX). Records with the same reason are counted together, so
    /// a reason should contain nothing that differs from record to record.
    ///
    /// ```
    /// use highwater::Page;
    /// let mut page = Page::more(2_u32);
    /// page.reject("issues", "ISSUE-7", "it has no project");
    /// assert_eq!((page.items(), page.rejected()), (0, 1));
    /// ```
    pub fn reject(&mut self, item_type: &str, id: &str, reason: &str) {
        self.rejected.push((item_type.to_owned(), Rejection::new(id, reason)));
    }

    /// Tells that the source no longer has a rejected record that was requested again, or no longer shows it. It is
    /// not requested again. On a page that was not requested for rejected records, this is an error of the staging.
    pub fn gone(&mut self, item_type: &str, id: &str) {
        self.gone.push((item_type.to_owned(), id.to_owned()));
    }

    /// The number of records that it rejects.
    pub fn rejected(&self) -> usize {
        self.rejected.len()
    }

    /// Leaves a bookmark: where the *next* run of this stream starts, once this run is finished. At most
    /// [`CURSOR_BYTES_MAX`](crate::limits::CURSOR_BYTES_MAX) bytes as JSON.
    pub fn bookmark(mut self, bookmark: &impl Serialize) -> Self {
        self.bookmark = Some(to_json("the bookmark", bookmark, CURSOR_BYTES_MAX));
        self
    }

    /// Sets a small value of the extractor's own. It is kept per sync unit until it is set again. At most
    /// [`VALUE_BYTES_MAX`](crate::limits::VALUE_BYTES_MAX) bytes as JSON.
    pub fn value(mut self, key: &str, value: &impl Serialize) -> Self {
        let json = to_json(&format!("the value {key}"), value, VALUE_BYTES_MAX);
        self.values.push((key.to_owned(), Some(json)));
        self
    }

    /// Removes a value of the extractor's own.
    pub fn without_value(mut self, key: &str) -> Self {
        self.values.push((key.to_owned(), None));
        self
    }

    /// Sets all of the connector's own keys of the worker state, if checkpoints are kept: a JSON object of at most
    /// [`VALUE_BYTES_MAX`](crate::limits::VALUE_BYTES_MAX) bytes, as a connector written with the TypeScript SDK
    /// keeps them. It is part of the checkpoint, and is also saved where the SDK looks for it. So a connector can
    /// move back to the SDK between two runs and repeats nothing.
    pub fn connector_state(mut self, state: &impl Serialize) -> Self {
        let json = to_json("the connector's own state", state, VALUE_BYTES_MAX);
        self.values.push((CONNECTOR_STATE_VALUE.to_owned(), Some(json)));
        self
    }

    /// The connector's own keys that it sets.
    pub(crate) fn connector_state_json(&self) -> Option<&str> {
        let set = self.values.iter().rev().find(|(key, _)| key == CONNECTOR_STATE_VALUE);
        set.and_then(|(_, json)| json.as_ref()?.as_deref().ok())
    }

    /// Estimates how much of the phase is done, in percent (over 100 counts as 100). It is only shown to people.
    pub fn progress(mut self, percent: u8) -> Self {
        self.progress = Some(percent.min(100));
        self
    }

    /// The number of its records that are to be announced, if they were not before ([`Page::record_once`]).
    pub fn items(&self) -> usize {
        self.records.iter().map(|group| group.lines.len()).sum()
    }

    /// Bytes of the lines of its records.
    pub(crate) fn line_bytes(&self) -> u64 {
        self.records.iter().map(|group| group.lines.bytes() as u64).sum()
    }

    /// The values that it sets and removes, as JSON: the pages after it find them. If a key is set twice, the last
    /// value counts.
    pub(crate) fn values(&self) -> BTreeMap<String, Option<String>> {
        let valid = |(key, json): &(String, Option<Result<String>>)| match json {
            None => Some((key.clone(), None)),
            Some(json) => json.as_ref().ok().map(|json| (key.clone(), Some(json.clone()))),
        };
        self.values.iter().filter_map(valid).collect()
    }

    /// Whether it sets values for the pages after it.
    pub(crate) fn sets_values(&self) -> bool {
        !self.values.is_empty()
    }

    /// Whether it names child listings: they come before the next page of its own listing.
    pub(crate) fn names_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// Leaves out the records of item types that are out of scope: they count as read, and are not staged.
    pub(crate) fn leave_out(&mut self, unwanted: impl Fn(&str) -> bool) {
        let Self { records, skipped, rejected, .. } = self;
        rejected.retain(|(item_type, _)| {
            let leave = unwanted(item_type);
            if leave {
                skipped.push((item_type.clone(), 1));
            }
            !leave
        });
        records.retain(|PageRecords { item_type, lines, .. }| {
            let leave = unwanted(item_type);
            if leave {
                skipped.push((item_type.clone(), lines.len() as u64));
            }
            !leave
        });
    }

    /// Makes it the answer to a request for these rejected records.
    pub(crate) fn asked(mut self, item_type: &str, ids: &[String]) -> Self {
        self.asked = Some(Asked { item_type: item_type.to_owned(), ids: ids.to_vec() });
        self
    }

    /// Sets how many rejected ids the unit may have then.
    pub(crate) fn rejected_max(&mut self, ids: u64) {
        self.rejected_max = ids;
    }

    /// For each item type of which it rejects records: the id and reason of the first, and how many there are.
    pub(crate) fn rejected_by_type(&self) -> BTreeMap<&str, (&str, &str, u64)> {
        let mut by_type = BTreeMap::new();
        for (item_type, Rejection { id, reason, .. }) in &self.rejected {
            by_type.entry(item_type.as_str()).or_insert((id.as_str(), reason.as_str(), 0)).2 += 1;
        }
        by_type
    }

    /// Rejects records that are in it: those at these indices, in ascending order, of group `group` of
    /// [`Page::records`].
    pub(crate) fn reject_at(&mut self, group: usize, at: Vec<(usize, Rejection)>) {
        let Some(group) = self.records.get_mut(group) else { return };
        let mut keep = vec![true; group.lines.len()];
        for (place, _) in &at {
            if let Some(keep) = keep.get_mut(*place) {
                *keep = false;
            }
        }
        group.retain(&keep);
        self.rejected.extend(at.into_iter().map(|(_, rejection)| (group.item_type.clone(), rejection)));
    }

    /// The result for each rejected record that it was requested for.
    fn again(&self) -> Result<Vec<(ItemType, String, Again)>> {
        let Some(Asked { item_type, ids }) = &self.asked else {
            let Some((item_type, id)) = self.gone.first() else { return Ok(Vec::new()) };
            let what = format!("that record {id} of {item_type} is gone");
            let reason = "only a page that was requested for rejected records may tell this".to_owned();
            return Err(Error::Invalid { what, reason });
        };
        let not_a_page = |reason: &str| {
            let what = format!("a page that was requested for rejected records of {item_type}");
            Error::Invalid { what, reason: reason.to_owned() }
        };
        if self.next.is_some() {
            return Err(not_a_page("it must be a last page: it must tell the result for every requested id"));
        }
        if self.bookmark.is_some() {
            return Err(not_a_page("it must leave no bookmark: it belongs to no stream"));
        }
        if !self.children.is_empty() {
            return Err(not_a_page("it must name no child listings: add their records to it"));
        }
        let of_type = |name: &str| name == item_type;
        let gone: BTreeSet<&str> =
            self.gone.iter().filter(|(name, _)| of_type(name)).map(|(_, id)| id.as_str()).collect();
        let rejected: BTreeSet<&str> = self
            .rejected
            .iter()
            .filter(|(name, _)| of_type(name))
            .map(|(_, again)| again.id.as_str())
            .collect();
        let groups = self.records.iter().filter(|group| of_type(&group.item_type));
        let passed: BTreeSet<&str> = groups.flat_map(|group| group.lines.ids()).flatten().collect();
        let name = ItemType::new(item_type.as_str())?;
        ids.iter()
            .map(|id| {
                let became = match id.as_str() {
                    id if rejected.contains(id) => Again::Rejected,
                    id if passed.contains(id) => Again::Passed,
                    id if gone.contains(id) => Again::Gone,
                    _ => {
                        return Err(not_a_page(&format!(
                            "it has no result for {id}: it must contain the record, reject it, or tell that it is gone"
                        )));
                    }
                };
                Ok((name.clone(), id.clone(), became))
            })
            .collect()
    }

    /// How many records of each item type are in it.
    pub(crate) fn items_by_type(&self) -> Vec<(String, usize)> {
        self.records.iter().map(|group| (group.item_type.clone(), group.lines.len())).collect()
    }

    /// Its records by item type, in the order in which the types were first added. Records to be announced once are a
    /// group of their own.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&str, &Lines)> {
        self.records.iter().map(|group| (group.item_type.as_str(), &group.lines))
    }

    /// Bytes of JSON of what it sets that a checkpoint holds. What cannot be stored counts as zero: staging reports
    /// it.
    pub(crate) fn sizes(&self) -> Sizes
    where
        C: Serialize,
    {
        let bytes = |json: &Result<String>| json.as_ref().map_or(0, String::len);
        let kept = self.records.iter().map(|group| &group.item_type);
        Sizes {
            cursor: self.next.as_ref().map(|next| serde_json::to_string(next).map_or(0, |json| json.len())),
            bookmark: self.bookmark.as_ref().map(bytes),
            values: self.values.iter().map(|(key, value)| (key.clone(), value.as_ref().map(bytes))).collect(),
            item_types: kept
                .chain(self.skipped.iter().map(|(name, _)| name))
                .chain(self.rejected.iter().map(|(name, _)| name))
                .cloned()
                .collect(),
            rejected: {
                let rejected = self.rejected.iter().map(|(name, one)| (name.clone(), one.id.clone()));
                let asked = self.asked.iter().flat_map(|Asked { item_type, ids }| {
                    ids.iter().map(|id| (item_type.clone(), id.clone()))
                });
                rejected.chain(asked).collect()
            },
            children: self
                .children
                .iter()
                .map(|(stream, parent, data)| {
                    child_bytes(stream, parent, data.as_deref().unwrap_or_default(), None)
                })
                .sum(),
        }
    }

    /// Its records by item type, and whether unchanged ones are left out; for the explorer's oracle.
    #[cfg(feature = "testing")]
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&PageRecords, bool)> {
        self.records.iter().map(|group| (group, self.edge.contains(&group.item_type)))
    }

    /// Adds the findings in its records of a type. They are counted in the transaction that stages the page.
    pub(crate) fn found(&mut self, item_type: &str, findings: Tally) {
        self.findings.push((item_type.to_owned(), findings));
    }

    /// The item type of the record that was added last.
    pub(crate) fn last_item_type(&self) -> Option<&str> {
        self.records.last().map(|group| group.item_type.as_str())
    }

    /// Item types and ids of the records that it rejects, for the explorer's oracle.
    #[cfg(feature = "testing")]
    pub(crate) fn rejected_ids(&self) -> impl Iterator<Item = (String, String)> {
        self.rejected.iter().map(|(item_type, rejection)| (item_type.clone(), rejection.id.clone()))
    }

    /// The streams and parents of the child listings that it names, for the explorer's oracle.
    #[cfg(feature = "testing")]
    pub(crate) fn children(&self) -> impl Iterator<Item = (&str, &str)> {
        self.children.iter().map(|(stream, parent, _)| (stream.as_str(), parent.as_str()))
    }

    /// The bookmark, for the explorer's oracle.
    #[cfg(feature = "testing")]
    pub(crate) fn bookmark_json(&self) -> Option<&str> {
        self.bookmark.as_ref().and_then(|json| json.as_deref().ok())
    }

    /// Counts what was changed in its records before they were added, with the findings in them.
    fn count_changes(&mut self) {
        for PageRecords { item_type, changes, .. } in &mut self.records {
            let mut tally = Tally::keeping(FINDINGS_KEPT);
            for change in changes.drain(..).flat_map(|(_, changes)| changes) {
                tally.add(change);
            }
            if !tally.is_empty() {
                self.findings.push((item_type.clone(), tally));
            }
        }
    }

    /// Checks every name and value. The error is about the first that cannot be stored.
    pub(crate) fn into_parts(mut self) -> Result<PageParts> {
        self.count_changes();
        let again = self.again()?;
        let checked = |(name, rejection): (String, Rejection)| {
            let rejection = rejection.checked(&name)?;
            Ok((ItemType::new(name)?, rejection))
        };
        let rejected = self.rejected.into_iter().map(checked).collect::<Result<_>>()?;
        Ok(PageParts {
            rejected: RejectedParts { rejected, again, ids_max: self.rejected_max },
            lines: self.records.into_iter().map(|group| group.checked(&self.edge)).collect::<Result<_>>()?,
            skipped: self
                .skipped
                .into_iter()
                .map(|(name, items)| Ok((ItemType::new(name)?, items)))
                .collect::<Result<_>>()?,
            bookmark: self.bookmark.transpose()?,
            values: self
                .values
                .into_iter()
                .map(|(key, value)| Ok((own_key(key)?, value.transpose()?)))
                .collect::<Result<_>>()?,
            progress: self.progress,
            findings: self.findings,
            children: self
                .children
                .into_iter()
                .map(|(stream, parent, data)| {
                    let (stream, parent) = (StreamName::new(stream)?, ParentId::new(parent)?);
                    Ok(NewChild { stream, parent, data: data? })
                })
                .collect::<Result<_>>()?,
        })
    }
}

/// Checks that an extractor may use this key.
fn own_key(key: String) -> Result<ValueKey> {
    if key == CONNECTOR_STATE_VALUE {
        return ValueKey::new(key);
    }
    if key.starts_with(RESERVED_VALUE_PREFIX) {
        let reason = format!("keys that start with {RESERVED_VALUE_PREFIX} are reserved");
        return Err(Error::Invalid { what: format!("the value key {key:?}"), reason });
    }
    ValueKey::new(key)
}

/// JSON text of at most `limit_bytes`.
pub(crate) fn to_json(what: &str, value: &impl Serialize, limit_bytes: usize) -> Result<String> {
    let json = serde_json::to_string(value)
        .map_err(|error| Error::Invalid { what: what.to_owned(), reason: error.to_string() })?;
    if json.len() > limit_bytes {
        return Err(Error::TooLarge {
            what: what.to_owned(),
            found: json.len() as u64,
            limit: limit_bytes as u64,
            unit: "bytes",
        });
    }
    Ok(json)
}
