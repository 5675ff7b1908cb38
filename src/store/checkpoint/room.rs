//! How much of a worker state an extractor may still use.
//!
//! A checkpoint must always fit, together with the message of an ERROR: a worker whose state does not fit could
//! report nothing. So the cursors, bookmarks, values and ids of rejected records of a unit may take
//! [`CHECKPOINT_STATE_BYTES_MAX`](crate::limits::CHECKPOINT_STATE_BYTES_MAX) bytes together, less what other keys of
//! the same worker state take. A page that would exceed this is refused before it is staged. The room that they leave
//! is for the ids of records that are announced once and for records at the edge: as many as fit; the others are
//! announced again, and are not lost. The rest of a worker state
//! ([`CHECKPOINT_BYTES_MAX`](crate::limits::CHECKPOINT_BYTES_MAX)) is for a sealed message, artifacts that are not
//! announced yet, the ids of those that were (11 kB), what streams read in earlier runs (10 kB), kinds and reasons of
//! rejected records (40 kB), what earlier runs and operators left (35 kB, and 64 kB of cursors that operators set),
//! events, findings and attachments. Each of these has a limit of its own.
//!
//! Bytes of JSON are counted before compression. A gzip member in base64 is seldom larger than its JSON text, and
//! never by more than a tenth; so what is admitted fits whatever it contains.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::CONNECTOR_STATE_VALUE;

use super::super::batches::staging::PageOf;
use super::super::page::Page;
use super::super::rejected::records;
use super::super::rows::{BOOKMARKS, Json, Key, REJECTED, REJECTED_IN_RUN, STREAMS, TYPES, VALUES};
use super::super::run_handle::Run;
use super::super::tables::Rows;

/// Bytes that a stream, an item type, a bookmark or a value takes in addition to its name and its text.
const PART_BYTES: u64 = 40;

/// Bytes that a rejected record takes in addition to its id and to what every part takes: its run, when it was
/// rejected, how often it was asked for.
const REJECTED_BYTES: usize = 24;

/// Something of the extractor's that a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Stream(String),
    Cursor(String),
    /// A bookmark of the current run; it replaces the kept one when the run finishes.
    Bookmark(String),
    KeptBookmark(String),
    Value(String),
    ItemType(String),
    /// All child listings that are pending.
    Children,
    /// A rejected record, by item type and id: of the current run, and of earlier ones.
    Rejected(String, String),
    KeptRejected(String, String),
}

impl Part {
    fn text(&self) -> String {
        match self {
            Part::Stream(name) => format!("stream {name}"),
            Part::Cursor(name) => format!("the cursor of stream {name}"),
            Part::Bookmark(name) | Part::KeptBookmark(name) => format!("the bookmark of stream {name}"),
            Part::Value(key) if key == CONNECTOR_STATE_VALUE => "the connector's own state".to_owned(),
            Part::Value(key) => format!("the value {key}"),
            Part::ItemType(name) => format!("item type {name}"),
            Part::Children => "the pending child listings".to_owned(),
            Part::Rejected(item_type, id) | Part::KeptRejected(item_type, id) => {
                format!("the id {id} of a rejected record of {item_type}")
            }
        }
    }
}

/// What the parts of a unit's checkpoint take, and the limit.
#[derive(Debug)]
pub(crate) struct Room {
    sync_unit: String,
    limit: u64,
    used: u64,
    parts: BTreeMap<Part, u64>,
}

impl Run {
    /// The room for the extractor: `own` bytes, of which other keys take `taken`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn room(&self, own: usize, taken: u64) -> Result<Room> {
        self.inner.tables.view(|rows| {
            let limit = (own as u64).saturating_sub(taken);
            let mut room = Room { sync_unit: self.unit.to_string(), limit, used: 0, parts: BTreeMap::new() };
            let unit = Key::unit(self.unit_no);
            for (name, row) in rows.all(&BOOKMARKS, &unit)? {
                room.put(Part::KeptBookmark(self.name(&name)?), row.json.len());
            }
            for (key, Json(json)) in rows.all(&VALUES, &unit)? {
                room.put(Part::Value(self.name(&key)?), json.len());
            }
            for (name, row) in rows.all(&STREAMS, &self.run_key())? {
                let name = self.name(&name)?;
                room.put(Part::Cursor(name.clone()), row.cursor.map_or(0, |json| json.len()));
                room.put(Part::Bookmark(name.clone()), row.bookmark.map_or(0, |json| json.len()));
                room.put(Part::Stream(name), 0);
            }
            for (name, _) in rows.all(&TYPES, &self.run_key())? {
                room.put(Part::ItemType(self.name(&name)?), 0);
            }
            for (item_type, id) in records(rows, &REJECTED, &unit)?.into_keys() {
                room.put(Part::KeptRejected(item_type, id), 0);
            }
            for (item_type, id) in records(rows, &REJECTED_IN_RUN, &self.run_key())?.into_keys() {
                room.put(Part::Rejected(item_type, id), 0);
            }
            Ok(room)
        })
    }
}

impl Room {
    /// Bytes that nothing takes: records that were announced are remembered in them.
    pub(crate) fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// Counts a page in that is about to be staged. `pending`: bytes of the child listings that are pending before it.
    ///
    /// # Errors
    /// `NoRoom`, which names the part of the page that does not fit; nothing of the page is counted.
    pub(crate) fn admit<C: Serialize>(&mut self, of: &PageOf, pending: u64, page: &Page<C>) -> Result<()> {
        let sizes = page.sizes();
        let cursor = sizes.cursor.unwrap_or(0);
        let name = || of.stream().to_string();
        let (mut changes, child_cursor) = match of {
            PageOf::Stream(_) => (vec![(Part::Stream(name()), 0), (Part::Cursor(name()), cursor)], 0),
            PageOf::Child { .. } => (Vec::new(), cursor),
        };
        let children = usize::try_from(pending.saturating_add(sizes.children)).unwrap_or(usize::MAX);
        changes.push((Part::Children, children.saturating_add(child_cursor)));
        changes.extend(sizes.item_types.into_iter().map(|name| (Part::ItemType(name), 0)));
        changes.extend(sizes.rejected.into_iter().map(|(name, id)| (Part::Rejected(name, id), 0)));
        changes.extend(sizes.bookmark.map(|bytes| (Part::Bookmark(name()), bytes)));
        let mut removed = Vec::new();
        // The last value of each key counts, as where they are staged.
        for (key, bytes) in sizes.values.into_iter().collect::<BTreeMap<_, _>>() {
            match bytes {
                Some(bytes) => changes.push((Part::Value(key), bytes)),
                None => removed.push(Part::Value(key)),
            }
        }
        // What a page removes makes room for what it adds.
        let freed: u64 = removed.iter().filter_map(|part| self.parts.get(part)).sum();
        let mut used = self.used.saturating_sub(freed);
        let mut counted: BTreeMap<&Part, u64> = BTreeMap::new();
        for (part, bytes) in &changes {
            let bytes = cost(part, *bytes);
            let before = counted.get(part).or_else(|| self.parts.get(part)).copied().unwrap_or(0);
            let left = self.limit.saturating_sub(used.saturating_sub(before));
            if bytes > left && bytes > before {
                return Err(Error::NoRoom {
                    what: part.text(),
                    sync_unit: self.sync_unit.clone(),
                    found: bytes,
                    left,
                    limit: self.limit,
                });
            }
            used = used.saturating_sub(before).saturating_add(bytes);
            counted.insert(part, bytes);
        }
        for part in removed {
            self.remove(&part);
        }
        for (part, bytes) in changes {
            self.put(part, bytes);
        }
        Ok(())
    }

    fn put(&mut self, part: Part, bytes: usize) {
        self.remove(&part);
        let bytes = cost(&part, bytes);
        self.used = self.used.saturating_add(bytes);
        self.parts.insert(part, bytes);
    }

    fn remove(&mut self, part: &Part) {
        self.used = self.used.saturating_sub(self.parts.remove(part).unwrap_or(0));
    }
}

/// Bytes that a part takes if its text has this many.
fn cost(part: &Part, bytes: usize) -> u64 {
    let name = match part {
        // They are in the stream's row, with its name; child listings were counted one by one.
        Part::Cursor(_) | Part::Bookmark(_) | Part::Children => return bytes as u64,
        // Counted twice: as read, and as announced.
        Part::ItemType(name) => 2 * name.len(),
        // It is in the worker state a second time, where quotation marks take two bytes.
        Part::Value(name) if name == CONNECTOR_STATE_VALUE => 2 * bytes,
        // Its type and kind are written once for all.
        Part::Rejected(_, id) | Part::KeptRejected(_, id) => id.len() + REJECTED_BYTES,
        Part::Stream(name) | Part::KeptBookmark(name) | Part::Value(name) => name.len(),
    };
    (name + bytes) as u64 + PART_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CHECKPOINT_STATE_BYTES_MAX, StreamName};
    use crate::store::Store;

    fn of(stream: &str) -> PageOf {
        PageOf::Stream(StreamName::new(stream).unwrap())
    }

    #[test]
    fn what_is_replaced_or_removed_makes_room_and_what_is_refused_takes_none() {
        let dir = tempfile::tempdir().unwrap();
        let run =
            Store::open(dir.path().join("state.redb")).unwrap().sync_unit("unit").unwrap().begin().unwrap();
        let taken = CHECKPOINT_STATE_BYTES_MAX as u64 - 1_000;
        let mut room = run.room(CHECKPOINT_STATE_BYTES_MAX, taken).unwrap();
        let page = |key: &str, bytes: usize| Page::<u8>::last().value(key, &"x".repeat(bytes));
        room.admit(&of("s"), 0, &page("a", 600)).unwrap();
        let Err(Error::NoRoom { what, found, left, limit, .. }) = room.admit(&of("s"), 0, &page("b", 600))
        else {
            panic!("it fits")
        };
        // The text's quotation marks, the name and what every part takes.
        assert_eq!((what.as_str(), found, left, limit), ("the value b", 643, 1_000 - 643 - 41, 1_000));
        room.admit(&of("s"), 0, &page("b", 100)).unwrap();
        room.admit(&of("s"), 0, &page("a", 700)).unwrap();
        assert!(room.admit(&of("s"), 0, &page("a", 900)).is_err());
        room.admit(&of("s"), 0, &page("b", 800).without_value("a")).unwrap();
        let used = room.used;
        assert!(room.admit(&of("s"), 0, &page("a", 200)).is_err());
        // A key that is removed and then set is set; the other way round it is removed.
        assert!(
            room.admit(&of("s"), 0, &Page::<u8>::last().without_value("b").value("b", &"x".repeat(990)))
                .is_err()
        );
        let again = Page::<u8>::last().without_value("b").value("b", &"x".repeat(800));
        assert!(room.admit(&of("s"), 0, &again.value("c", &"x".repeat(200))).is_err(), "it makes room once");
        room.admit(&of("s"), 0, &Page::<u8>::last().without_value("b").value("b", &"x".repeat(800))).unwrap();
        assert_eq!(room.used, used);
        room.admit(&of("s"), 0, &Page::<u8>::last().value("huge", &"x".repeat(5_000)).without_value("huge"))
            .unwrap();
        assert_eq!(room.used, used);
        assert!(room.admit(&of("t"), 0, &page("c", 1).value("d", &"x".repeat(200))).is_err());
        assert_eq!(room.used, used, "a refused page is not counted");
        assert_eq!(room.parts.values().sum::<u64>(), used);
    }

    #[test]
    fn a_room_that_is_over_its_limit_takes_what_is_not_larger() {
        let dir = tempfile::tempdir().unwrap();
        let run =
            Store::open(dir.path().join("state.redb")).unwrap().sync_unit("unit").unwrap().begin().unwrap();
        let mut room = run.room(CHECKPOINT_STATE_BYTES_MAX, CHECKPOINT_STATE_BYTES_MAX as u64).unwrap();
        for (name, bytes) in [("a", 10), ("b", 20)] {
            room.put(Part::Value(name.to_owned()), bytes);
        }
        room.put(Part::Stream("s".to_owned()), 0);
        room.put(Part::Cursor("s".to_owned()), 1);
        room.admit(&of("s"), 0, &Page::more(2_u8).value("a", &"x".repeat(8))).unwrap();
        assert!(room.admit(&of("s"), 0, &Page::more(2_u8).value("a", &"x".repeat(9))).is_err());
        assert!(room.admit(&of("s"), 0, &Page::more(20_u8)).is_err());
    }
}
