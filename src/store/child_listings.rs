//! Listings that a page named: the comments of one issue, the files of one folder.
//!
//! A page names *child listings*, each by its stream and the id of its parent, with a small value that the extractor
//! needs to read it. They are stored in the page's transaction, and each has a cursor of its own. A child listing is
//! *pending* from when it is named until it is exhausted, and has a row for that time. Afterwards, only the fact that
//! it was named is kept.
//!
//! | table | key after unit and run | value |
//! | --- | --- | --- |
//! | `child_listings` | number, from 1 | [`ChildRow`], while it is pending |
//! | `child_listing_ids` | stream, a zero byte, parent id | [`ChildIdRow`], until the run is over |
//! | `child_streams` | stream | [`ChildStreamRow`]: the counts of all child listings of a stream |
//!
//! - Within a run, a stream and a parent identify one child listing, however often pages name it. It is read once. If
//!   a checkpoint restored the run, this holds for the pending ones only: exhausted ones are forgotten, so if one of
//!   them is named again, it is read again. A run may have millions, and a checkpoint has no room for their ids.
//! - A child listing stands *under* the listing that waits for it. That is the listing whose page named it, or, if
//!   that listing ends with this page, the one that it stands under itself. None, if nothing waits. So a child
//!   listing always stands under a pending one, or under a stream.
//! - At most [`CHILD_LISTINGS_MAX`] may be pending in a run, of [`CHILD_LISTINGS_BYTES_MAX`] bytes together. A page
//!   that would exceed this is refused whole.

use crate::error::{Error, Result};
use crate::model::{CHILD_LISTINGS_BYTES_MAX, CHILD_LISTINGS_MAX, ParentId, StreamName};

use super::cursors::check_moves;
use super::page::{NewChild, child_bytes};
use super::rows::{CHILD_IDS, CHILD_STREAMS, CHILDREN, ChildIdRow, ChildRow, ChildStreamRow, Key, UnderRow};
use super::run_handle::Run;
use super::tables::{Change, Rows};

/// A pending child listing, and the cursor from which it goes on.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) stream: StreamName,
    pub(crate) parent: ParentId,
    /// As JSON.
    pub(crate) data: String,
    /// As JSON.
    pub(crate) cursor: Option<String>,
}

/// The name of a child listing in errors.
pub(super) fn named(stream: &str, parent: &str) -> String {
    format!("{stream} of {parent}")
}

impl ChildRow {
    fn bytes(&self) -> u64 {
        child_bytes(&self.stream, &self.parent, &self.data, self.cursor.as_deref())
    }
}

impl ChildStreamRow {
    /// Child listings that are named and not exhausted.
    pub(super) fn pending(&self) -> u64 {
        self.named.saturating_sub(self.exhausted)
    }
}

/// The state of the child listings of a run, over all streams.
#[derive(Debug, Default)]
struct Totals {
    named: u64,
    pending: u64,
    bytes: u64,
}

fn totals(run: &Run, rows: &impl Rows) -> Result<Totals> {
    let mut totals = Totals::default();
    let prefix = run.run_key();
    rows.scan(&CHILD_STREAMS, &prefix, &prefix, |_, row| {
        totals.named = totals.named.saturating_add(row.named);
        totals.pending = totals.pending.saturating_add(row.pending());
        totals.bytes = totals.bytes.saturating_add(row.pending_bytes);
        Ok(true)
    })?;
    Ok(totals)
}

impl Run {
    /// The pending child listings, in the order in which they were named, with their numbers.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`.
    pub(crate) fn pending_children(&self) -> Result<Vec<(u64, ChildRow)>> {
        let mut pending = Vec::new();
        let prefix = self.run_key();
        self.look(|rows, _| {
            rows.scan(&CHILDREN, &prefix, &prefix, |tail, row| {
                // Only the fields that are asked for are kept in memory.
                let row = ChildRow { data: String::new(), cursor: None, ..row };
                pending.push((self.number_in(CHILDREN.name, tail)?, row));
                Ok(true)
            })
        })?;
        Ok(pending)
    }

    /// A pending child listing.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`.
    pub(crate) fn child_listing(&self, number: u64) -> Result<Child> {
        let key = self.run_key().and_number(number);
        let row = self.look(|rows, _| rows.need(&CHILDREN, &key))?;
        Ok(Child {
            stream: StreamName::new(row.stream)?,
            parent: ParentId::new(row.parent)?,
            data: row.data,
            cursor: row.cursor,
        })
    }

    /// Bytes of the child listings that are pending.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn pending_child_bytes(&self) -> Result<u64> {
        self.inner.tables.view(|rows| Ok(totals(self, rows)?.bytes))
    }
}

/// Stores the child listings that a page names and the run does not know yet; returns the numbers of the new ones.
///
/// # Errors
/// `TooLarge` if too many would be pending.
pub(super) fn name_children(
    run: &Run,
    change: &Change<'_>,
    children: &[NewChild],
    under: &UnderRow,
) -> Result<Vec<u64>> {
    if children.is_empty() {
        return Ok(Vec::new());
    }
    let mut all = totals(run, change)?;
    let mut numbers = Vec::new();
    for child in children {
        let (stream, parent) = (child.stream.as_str(), child.parent.as_str());
        let id = run.run_key().and_inner_name(stream).and_name(parent);
        if change.get(&CHILD_IDS, &id)?.is_some() {
            continue;
        }
        let bytes = child.bytes();
        all.named += 1;
        all.pending += 1;
        all.bytes += bytes;
        check_room(run, &all, child)?;
        change.put(&CHILD_IDS, &id, &ChildIdRow { no: all.named })?;
        let row = ChildRow {
            stream: stream.to_owned(),
            parent: parent.to_owned(),
            data: child.data.clone(),
            named_with: numbers.first().copied().unwrap_or(all.named),
            under: under.clone(),
            cursor: None,
        };
        change.put(&CHILDREN, &run.run_key().and_number(all.named), &row)?;
        count(run, change, stream, |counts| {
            counts.named += 1;
            counts.pending_bytes += bytes;
        })?;
        numbers.push(all.named);
    }
    Ok(numbers)
}

fn check_room(run: &Run, all: &Totals, child: &NewChild) -> Result<()> {
    let too_large = |found, limit, unit| Error::TooLarge {
        what: format!(
            "the pending child listings of {} with {} (name fewer on one page)",
            run.unit,
            named(child.stream.as_str(), child.parent.as_str())
        ),
        found,
        limit,
        unit,
    };
    if all.pending > CHILD_LISTINGS_MAX {
        return Err(too_large(all.pending, CHILD_LISTINGS_MAX, "child listings"));
    }
    if all.bytes > CHILD_LISTINGS_BYTES_MAX {
        return Err(too_large(all.bytes, CHILD_LISTINGS_BYTES_MAX, "bytes of child listings"));
    }
    Ok(())
}

/// Moves a child listing on by a page; returns its row from before.
///
/// # Errors
/// `Invalid` if the page leads to the cursor that it was fetched with.
pub(super) fn advance(
    run: &Run,
    change: &Change<'_>,
    number: u64,
    cursor: Option<&String>,
    items: u64,
) -> Result<ChildRow> {
    let key = run.run_key().and_number(number);
    let before = change.need(&CHILDREN, &key)?;
    let of = named(&before.stream, &before.parent);
    check_moves(format_args!("child listing {of}"), before.cursor.as_deref(), cursor.map(String::as_str))?;
    let after = if let Some(cursor) = cursor {
        let row = ChildRow { cursor: Some(cursor.clone()), ..before.clone() };
        change.put(&CHILDREN, &key, &row)?;
        row.bytes()
    } else {
        change.remove(&CHILDREN, &key)?;
        0
    };
    count(run, change, &before.stream, |counts| {
        counts.pages += 1;
        counts.items += items;
        counts.exhausted += u64::from(cursor.is_none());
        counts.pending_bytes = (counts.pending_bytes + after).saturating_sub(before.bytes());
    })?;
    Ok(before)
}

fn count(run: &Run, change: &Change<'_>, stream: &str, by: impl FnOnce(&mut ChildStreamRow)) -> Result<()> {
    let key = run.run_key().and_name(stream);
    let mut counts = change.get(&CHILD_STREAMS, &key)?.unwrap_or_default();
    by(&mut counts);
    change.put(&CHILD_STREAMS, &key, &counts)
}

/// Fails if a child listing of a run is pending.
pub(super) fn check_none_pending(run: &Run, change: &Change<'_>) -> Result<()> {
    let prefix = run.run_key();
    let mut pending = None;
    change.scan(&CHILDREN, &prefix, &prefix, |_, row| {
        pending = Some(row);
        Ok(false)
    })?;
    match pending {
        Some(row) => {
            let of = named(&row.stream, &row.parent);
            Err(run.unfinished(format!("child listing {of} is not exhausted")))
        }
        None => Ok(()),
    }
}

/// Drops what is stored of the child listings of a run, or of all runs of a unit.
pub(super) fn remove_children(change: &Change<'_>, prefix: &Key) -> Result<()> {
    change.remove_all(&CHILDREN, prefix)?;
    change.remove_all(&CHILD_IDS, prefix)?;
    change.remove_all(&CHILD_STREAMS, prefix)
}
