//! What one fetch of the source returns.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::{
    CHILD_DATA_BYTES_MAX, CONNECTOR_STATE_VALUE, CURSOR_BYTES_MAX, FINDINGS_KEPT, ItemType, ParentId,
    RESERVED_VALUE_PREFIX, StreamName, VALUE_BYTES_MAX, ValueKey,
};
use crate::record::{Record, Tally};

/// What one fetch of the source returned: records, and where the next fetch starts.
///
/// A page is staged whole, in one transaction: its records, the cursor after it, and the bookmark and values set on
/// it. Nothing is checked while it is put together; what cannot be stored is an error of the staging, which then
/// stores nothing.
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
    records: Vec<(String, Vec<Record>)>,
    /// How many of an item type were left out.
    skipped: Vec<(String, u64)>,
    bookmark: Option<Result<String>>,
    values: Vec<(String, Option<Result<String>>)>,
    progress: Option<u8>,
    findings: Vec<(String, Tally)>,
    children: Vec<(String, String, Result<String>)>,
}

/// A child listing as a page names it.
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

/// Bytes that a pending child listing takes beside its texts.
const CHILD_BYTES: u64 = 60;

/// Bytes that a child listing takes while it is pending.
pub(super) fn child_bytes(stream: &str, parent: &str, data: &str, cursor: Option<&str>) -> u64 {
    (stream.len() + parent.len() + data.len() + cursor.map_or(0, str::len)) as u64 + CHILD_BYTES
}

/// A page whose parts were all checked, ready to be stored.
#[derive(Debug)]
pub(crate) struct PageParts<C> {
    pub(crate) next: Option<C>,
    pub(crate) records: Vec<(ItemType, Vec<Record>)>,
    pub(crate) skipped: Vec<(ItemType, u64)>,
    pub(crate) bookmark: Option<String>,
    pub(crate) values: Vec<(ValueKey, Option<String>)>,
    pub(crate) progress: Option<u8>,
    /// What was found in its records, by item type.
    pub(crate) findings: Vec<(String, Tally)>,
    pub(crate) children: Vec<NewChild>,
}

/// Bytes of JSON of what a page sets, and the item types that it has records of.
#[derive(Debug)]
pub(crate) struct Sizes {
    pub(crate) cursor: Option<usize>,
    pub(crate) bookmark: Option<usize>,
    /// `None`: it is removed.
    pub(crate) values: Vec<(String, Option<usize>)>,
    pub(crate) item_types: Vec<String>,
    /// Bytes of the child listings that it names.
    pub(crate) children: u64,
}

#[cfg(feature = "testing")]
impl<C: Serialize> Page<C> {
    /// The cursor after it, for the explorer's oracle.
    pub(crate) fn next_json(&self) -> Result<Option<String>> {
        self.next.as_ref().map(|next| to_json("the cursor", next, CURSOR_BYTES_MAX)).transpose()
    }
}

impl<C> Page<C> {
    /// A page after which there are more: the next fetch of this stream gets `next`.
    ///
    /// It must lead on: where `next` is the cursor that this page was fetched with, or one that this invocation came by
    /// before, the page is refused with an error. Whoever wants to wait for the source ends the invocation instead:
    /// [`SourceError::RateLimited`](crate::airdrop::SourceError::RateLimited).
    pub fn more(next: C) -> Self {
        Self::with(Some(next))
    }

    /// The last page of its stream, in this run.
    pub fn last() -> Self {
        Self::with(None)
    }

    fn with(next: Option<C>) -> Self {
        Self {
            next,
            records: Vec::new(),
            skipped: Vec::new(),
            bookmark: None,
            values: Vec::new(),
            progress: None,
            findings: Vec::new(),
            children: Vec::new(),
        }
    }

    /// Adds a record.
    pub fn record(mut self, item_type: &str, record: Record) -> Self {
        self.push(item_type, record);
        self
    }

    /// Adds a record, to a page that is being filled in a loop.
    pub fn push(&mut self, item_type: &str, record: Record) {
        match self.records.iter_mut().find(|(name, _)| name == item_type) {
            Some((_, records)) => records.push(record),
            None => self.records.push((item_type.to_owned(), vec![record])),
        }
    }

    /// Names a *child listing*: the listing of a stream that belongs to one parent, as the comments of an issue. `data` is
    /// what the extractor needs to read it, or `()`: it is kept as JSON of at most
    /// [`CHILD_DATA_BYTES_MAX`](crate::limits::CHILD_DATA_BYTES_MAX) bytes, and found in the
    /// [`Listing`](crate::airdrop::Listing) that a page of it is asked for with.
    ///
    /// It is stored with this page, has a cursor of its own, and is read to its end before the next page of the listing
    /// that this page is of. A page of it may name further ones. In a run a stream and a parent are one child listing,
    /// however often they are named, also after it was read; of a worker without a disk, while it is pending.
    ///
    /// At most [`CHILD_LISTINGS_MAX`](crate::limits::CHILD_LISTINGS_MAX) may be pending in a run, of
    /// [`CHILD_LISTINGS_BYTES_MAX`](crate::limits::CHILD_LISTINGS_BYTES_MAX) bytes together. A page that would exceed this
    /// is an error of its staging: name fewer in a page. They are for [`airdrop::serve`](crate::airdrop::serve); a page
    /// of [`Run::batches`](crate::Run::batches) cannot name any.
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

    /// As [`Page::child`], of a page that is being filled in a loop.
    pub fn push_child(&mut self, stream: &str, parent: &str, data: &impl Serialize) {
        let what = format!("the data of child listing {stream} of {parent}");
        let json = to_json(&what, data, CHILD_DATA_BYTES_MAX);
        self.children.push((stream.to_owned(), parent.to_owned(), json));
    }

    /// Leaves a bookmark: what the *next* run of this stream starts from, once this run is finished. At most
    /// [`CURSOR_BYTES_MAX`](crate::limits::CURSOR_BYTES_MAX) bytes as JSON.
    pub fn bookmark(mut self, bookmark: &impl Serialize) -> Self {
        self.bookmark = Some(to_json("the bookmark", bookmark, CURSOR_BYTES_MAX));
        self
    }

    /// Sets a small value of the extractor's own, kept per sync unit until it is set again. At most
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

    /// Sets the connector's own keys of the worker state, all of them, where checkpoints are kept: a JSON object of at most
    /// [`VALUE_BYTES_MAX`](crate::limits::VALUE_BYTES_MAX) bytes, as a connector that is written with the TypeScript SDK
    /// keeps them. It is part of the checkpoint, and stands beside it where the SDK looks for it, so that a connector can
    /// move back between two runs and repeats nothing.
    pub fn connector_state(mut self, state: &impl Serialize) -> Self {
        let json = to_json("the connector's own state", state, VALUE_BYTES_MAX);
        self.values.push((CONNECTOR_STATE_VALUE.to_owned(), Some(json)));
        self
    }

    /// What it sets as the connector's own keys.
    pub(crate) fn connector_state_json(&self) -> Option<&str> {
        let set = self.values.iter().rev().find(|(key, _)| key == CONNECTOR_STATE_VALUE);
        set.and_then(|(_, json)| json.as_ref()?.as_deref().ok())
    }

    /// Estimates how much of the phase is done, in percent (over 100 counts as 100). People see it; nothing depends
    /// on it.
    pub fn progress(mut self, percent: u8) -> Self {
        self.progress = Some(percent.min(100));
        self
    }

    /// Records in it.
    pub fn items(&self) -> usize {
        self.records.iter().map(|(_, records)| records.len()).sum()
    }

    /// Leaves out the records of the item types that are not wanted: they count as read, and are staged nowhere.
    pub(crate) fn leave_out(&mut self, unwanted: impl Fn(&str) -> bool) {
        let Self { records, skipped, .. } = self;
        records.retain(|(item_type, records)| {
            let leave = unwanted(item_type);
            if leave {
                skipped.push((item_type.clone(), records.len() as u64));
            }
            !leave
        });
    }

    /// How many of each item type are in it.
    pub(crate) fn items_by_type(&self) -> Vec<(String, usize)> {
        self.records.iter().map(|(item_type, records)| (item_type.clone(), records.len())).collect()
    }

    /// Its records by item type, in the order in which the types were first added.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&str, &[Record])> {
        self.records.iter().map(|(item_type, records)| (item_type.as_str(), records.as_slice()))
    }

    /// Bytes of JSON of what it sets that a checkpoint holds. What cannot be stored counts for nothing: staging it says so.
    pub(crate) fn sizes(&self) -> Sizes
    where
        C: Serialize,
    {
        let bytes = |json: &Result<String>| json.as_ref().map_or(0, String::len);
        let kept = self.records.iter().map(|(name, _)| name);
        Sizes {
            cursor: self.next.as_ref().map(|next| serde_json::to_string(next).map_or(0, |json| json.len())),
            bookmark: self.bookmark.as_ref().map(bytes),
            values: self.values.iter().map(|(key, value)| (key.clone(), value.as_ref().map(bytes))).collect(),
            item_types: kept.chain(self.skipped.iter().map(|(name, _)| name)).cloned().collect(),
            children: self
                .children
                .iter()
                .map(|(stream, parent, data)| {
                    child_bytes(stream, parent, data.as_deref().unwrap_or_default(), None)
                })
                .sum(),
        }
    }

    /// Adds what was found in its records of a type, to be counted in the transaction that stages it.
    pub(crate) fn found(&mut self, item_type: &str, findings: Tally) {
        self.findings.push((item_type.to_owned(), findings));
    }

    /// The item type of the records that were added last.
    pub(crate) fn last_item_type(&self) -> Option<&str> {
        self.records.last().map(|(item_type, _)| item_type.as_str())
    }

    /// The lines of its records of the item types that are wanted, for the explorer's oracle.
    #[cfg(feature = "testing")]
    pub(crate) fn lines(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let records = self.records.iter().filter(|(item_type, _)| wanted(item_type));
        records.flat_map(|(_, records)| records.iter().map(Record::to_line)).collect()
    }

    /// The bookmark, for the explorer's oracle.
    #[cfg(feature = "testing")]
    pub(crate) fn bookmark_json(&self) -> Option<&str> {
        self.bookmark.as_ref().and_then(|json| json.as_deref().ok())
    }

    /// Counts what was changed in its records before they became records, with what was found in them.
    fn count_changes(&mut self) {
        for (item_type, records) in &self.records {
            let mut tally = Tally::keeping(FINDINGS_KEPT);
            for change in records.iter().flat_map(Record::changes) {
                tally.add(change.clone());
            }
            if !tally.is_empty() {
                self.findings.push((item_type.clone(), tally));
            }
        }
    }

    /// Checks every name and value; the first that cannot be stored is the error.
    pub(crate) fn into_parts(mut self) -> Result<PageParts<C>> {
        self.count_changes();
        Ok(PageParts {
            next: self.next,
            records: self
                .records
                .into_iter()
                .map(|(name, records)| Ok((ItemType::new(name)?, records)))
                .collect::<Result<_>>()?,
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

/// A key that an extractor may use.
fn own_key(key: String) -> Result<ValueKey> {
    if key == CONNECTOR_STATE_VALUE {
        return ValueKey::new(key);
    }
    if key.starts_with(RESERVED_VALUE_PREFIX) {
        let reason = format!("keys that start with {RESERVED_VALUE_PREFIX} are not the extractor's own");
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
