//! What runs keep so that an operator can mend a unit, and what operators leave for the next run.
//!
//! A finished run keeps the state in which it left the unit: its watermark, its bounds and every bookmark,
//! `standings: unit, run` and `standing_bookmarks: unit, run, stream`. Those of the last [`STANDINGS_MAX`] finished
//! runs are kept; the transaction that finishes a run drops older ones. The watermarks of older runs are in the
//! ledger. A stream keeps its last cursor, so that a cursor given by hand can be compared with one that the extractor
//! made.
//!
//! An operator's acts leave three things. Where the unit was rewound to (`rewound`) is removed when a run finishes.
//! Cursors with which streams begin in the next run (`next_cursors`) are removed when that run finishes, and not
//! before: if it is abandoned, the run after it begins with them again. What was done (`acts`) is kept by the id of
//! the unit, so that it outlives the unit.
//!
//! All of it is in a checkpoint too, as far as there is room ([`KeptPart`]): what does not fit is left out, the
//! oldest first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{Micros, Phase};

use super::rows::{
    ACTS, ActRow, BOOKMARKS, BookmarkRow, Json, Key, LAST_CURSORS, NEXT_CURSORS, NextCursorRow, Pace,
    REWOUND, RewoundRow, STANDING_BOOKMARKS, STANDINGS, STREAMS, StandingRow, StreamRow, UnitRow, name_of,
    number_of, run_key,
};
use super::tables::{Change, Rows};

/// Finished runs of a unit whose bookmarks are kept.
pub(in crate::store) const STANDINGS_MAX: usize = 8;
/// Bytes that a checkpoint has for standings, for last cursors, and for acts.
const STANDINGS_BYTES: usize = 20_000;
const LAST_CURSORS_BYTES: usize = 10_000;
const ACTS_BYTES: usize = 5_000;
/// Bytes that a standing, a bookmark, a cursor or an act takes in addition to its texts.
const PART_BYTES: usize = 60;

/// Keeps the state in which a run that is finishing leaves its unit, and drops what no rewind can return to any more.
pub(in crate::store) fn keep_standing(change: &Change<'_>, unit: &UnitRow, no: u64) -> Result<()> {
    let prefix = Key::unit(unit.no);
    let run = run_key(unit.no, no);
    let bookmarks = change.all(&BOOKMARKS, &prefix)?;
    let row =
        StandingRow { watermark: unit.watermark, bounds: unit.bounds, bookmarks: bookmarks.len() as u64 };
    change.put(&STANDINGS, &run, &row)?;
    for (stream, row) in bookmarks {
        change.put(&STANDING_BOOKMARKS, &run.clone().and_name(&text(change, &stream)?), &row)?;
    }
    let standings = change.all(&STANDINGS, &prefix)?;
    for (tail, _) in standings.iter().rev().skip(STANDINGS_MAX) {
        let old = run_key(unit.no, number(change, tail)?);
        change.remove(&STANDINGS, &old)?;
        change.remove_all(&STANDING_BOOKMARKS, &old)?;
    }
    change.remove(&REWOUND, &prefix)?;
    for (stream, row) in change.all(&NEXT_CURSORS, &prefix)? {
        if row.from_run <= no {
            change.remove(&NEXT_CURSORS, &prefix.clone().and_name(&text(change, &stream)?))?;
        }
    }
    Ok(())
}

/// Keeps the cursor that the last page of a stream was fetched with.
pub(in crate::store) fn keep_last_cursor(
    change: &Change<'_>,
    run: &Key,
    stream: &str,
    cursor: String,
) -> Result<()> {
    change.put(&LAST_CURSORS, &run.clone().and_name(stream), &Json(cursor))
}

/// Keeps the cursors of the streams of a run that is over; if it has any, those of earlier runs are removed.
pub(in crate::store) fn keep_last_cursors(change: &Change<'_>, unit: u64, no: u64) -> Result<()> {
    let run = run_key(unit, no);
    for (stream, row) in change.all(&STREAMS, &run)? {
        if let Some(cursor) = row.cursor {
            keep_last_cursor(change, &run, &text(change, &stream)?, cursor)?;
        }
    }
    let mut any = false;
    change.scan(&LAST_CURSORS, &run, &run, |_, _| {
        any = true;
        Ok(false)
    })?;
    if any { change.remove_range(&LAST_CURSORS, &Key::unit(unit), &run) } else { Ok(()) }
}

/// The row of a stream that a run has not begun yet: it starts with the cursor that an operator has set, or without
/// one.
pub(in crate::store) fn new_stream(
    rows: &impl Rows,
    unit: u64,
    run: u64,
    stream: &str,
    phase: Phase,
) -> Result<StreamRow> {
    let set = rows.get(&NEXT_CURSORS, &Key::unit(unit).and_name(stream))?;
    let cursor = set.filter(|set| set.from_run <= run).map(|set| set.json);
    Ok(StreamRow {
        phase,
        cursor,
        exhausted: false,
        pages: 0,
        items: 0,
        bookmark: None,
        pace: Pace::default(),
    })
}

/// What operators did to a unit, the oldest first.
pub(in crate::store) fn acts(rows: &impl Rows, sync_unit: &str) -> Result<Vec<ActRow>> {
    Ok(rows.all(&ACTS, &acts_of(sync_unit))?.into_iter().map(|(_, row)| row).collect())
}

/// The key that holds all that operators did to a unit.
pub(in crate::store) fn acts_of(sync_unit: &str) -> Key {
    Key::name("").and_inner_name(sync_unit)
}

/// Removes what is kept of a unit, except what operators did to it.
pub(in crate::store) fn remove_kept(change: &Change<'_>, unit: &Key) -> Result<()> {
    change.remove_all(&STANDINGS, unit)?;
    change.remove_all(&STANDING_BOOKMARKS, unit)?;
    change.remove(&REWOUND, unit)?;
    change.remove_all(&LAST_CURSORS, unit)?;
    change.remove_all(&NEXT_CURSORS, unit)
}

/// All of this in a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct KeptPart {
    /// The newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    standings: Vec<StandingPart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rewound: Option<RewoundPart>,
    /// Runs and cursors, by stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    last_cursors: BTreeMap<String, (u64, String)>,
    /// Cursors, the first run that each is for, and when it was set; by stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    next_cursors: BTreeMap<String, (String, u64, Micros)>,
    /// The oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    acts: Vec<ActPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StandingPart {
    run: u64,
    watermark: Option<Micros>,
    bounds: (Option<Micros>, Option<Micros>),
    /// JSON texts and the runs that left them, by stream.
    bookmarks: BTreeMap<String, (String, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RewoundPart {
    at: Micros,
    run: Option<u64>,
    watermark: Option<Micros>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ActPart {
    at: Micros,
    by: String,
    act: String,
    changes: Vec<String>,
}

impl KeptPart {
    pub(in crate::store) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What a checkpoint of a unit has room for. If the unit does not exist: what operators did to it.
    pub(in crate::store) fn of(rows: &impl Rows, sync_unit: &str, unit: Option<u64>) -> Result<Self> {
        let mut part = Self::default();
        let mut bytes = 0;
        for ActRow { at, by, act, changes } in acts(rows, sync_unit)?.into_iter().rev() {
            bytes +=
                PART_BYTES + by.len() + act.len() + changes.iter().map(|line| line.len() + 8).sum::<usize>();
            if bytes > ACTS_BYTES {
                break;
            }
            part.acts.insert(0, ActPart { at, by, act, changes });
        }
        let Some(unit) = unit else { return Ok(part) };
        let prefix = Key::unit(unit);
        bytes = 0;
        for (tail, row) in rows.all(&STANDINGS, &prefix)?.into_iter().rev() {
            let run = number(rows, &tail)?;
            let mut bookmarks = BTreeMap::new();
            for (stream, row) in rows.all(&STANDING_BOOKMARKS, &run_key(unit, run))? {
                bytes += PART_BYTES + stream.len() + row.json.len();
                bookmarks.insert(text(rows, &stream)?, (row.json, row.run));
            }
            bytes += PART_BYTES;
            if bytes > STANDINGS_BYTES {
                break;
            }
            part.standings.push(StandingPart {
                run,
                watermark: row.watermark,
                bounds: row.bounds,
                bookmarks,
            });
        }
        part.rewound = rows.get(&REWOUND, &prefix)?.map(|row| RewoundPart {
            at: row.at,
            run: row.run,
            watermark: row.watermark,
        });
        bytes = 0;
        for (tail, Json(json)) in rows.all(&LAST_CURSORS, &prefix)? {
            let (run, stream) = tail.split_at(tail.len().min(8));
            bytes += PART_BYTES + stream.len() + json.len();
            if bytes <= LAST_CURSORS_BYTES {
                part.last_cursors.insert(text(rows, stream)?, (number(rows, run)?, json));
            }
        }
        for (stream, row) in rows.all(&NEXT_CURSORS, &prefix)? {
            part.next_cursors.insert(text(rows, &stream)?, (row.json, row.from_run, row.set_at));
        }
        Ok(part)
    }

    /// Restores it.
    pub(in crate::store) fn restore(&self, change: &Change<'_>, sync_unit: &str, unit: u64) -> Result<()> {
        let prefix = acts_of(sync_unit);
        change.remove_all(&ACTS, &prefix)?;
        for (number, part) in (1..).zip(&self.acts) {
            let ActPart { at, by, act, changes } = part.clone();
            change.put(&ACTS, &prefix.clone().and_number(number), &ActRow { at, by, act, changes })?;
        }
        let prefix = Key::unit(unit);
        for part in &self.standings {
            let run = run_key(unit, part.run);
            let bookmarks = part.bookmarks.len() as u64;
            let row = StandingRow { watermark: part.watermark, bounds: part.bounds, bookmarks };
            change.put(&STANDINGS, &run, &row)?;
            for (stream, (json, of)) in &part.bookmarks {
                let row = BookmarkRow { json: json.clone(), run: *of };
                change.put(&STANDING_BOOKMARKS, &run.clone().and_name(stream), &row)?;
            }
        }
        if let Some(RewoundPart { at, run, watermark }) = self.rewound.clone() {
            change.put(&REWOUND, &prefix, &RewoundRow { at, run, watermark })?;
        }
        for (stream, (run, json)) in &self.last_cursors {
            keep_last_cursor(change, &run_key(unit, *run), stream, json.clone())?;
        }
        for (stream, (json, from_run, set_at)) in &self.next_cursors {
            let row = NextCursorRow { json: json.clone(), from_run: *from_run, set_at: *set_at };
            change.put(&NEXT_CURSORS, &prefix.clone().and_name(stream), &row)?;
        }
        Ok(())
    }
}

/// The text that a key ends in.
pub(in crate::store) fn text(rows: &impl Rows, name: &[u8]) -> Result<String> {
    name_of(name)
        .map(str::to_owned)
        .map_err(|error| rows.tables().damaged("of streams", &Key::name(""), error.to_string()))
}

/// The number that a key ends in.
pub(in crate::store) fn number(rows: &impl Rows, tail: &[u8]) -> Result<u64> {
    number_of(tail).map_err(|error| rows.tables().damaged("of runs", &Key::name(""), error.to_string()))
}
