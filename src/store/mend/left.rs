//! What runs and operators left in a unit, as a plan reads it, and the list of what operators did.

use std::collections::BTreeMap;

use crate::cut;
use crate::error::Result;

use super::super::kept::{acts, acts_of, number, text};
use super::super::rows::{
    ACTS, ActRow, BookmarkRow, Json, Key, LAST_CURSORS, STANDING_BOOKMARKS, STANDINGS, StandingRow, run_key,
};
use super::super::tables::{Change, Rows};

/// The most acts of operators on a unit that are kept; the newest are.
const ACTS_MAX: usize = 64;
/// Characters of the name of who did something.
const BY_CHARS_MAX: usize = 200;

/// The state in which a run left its unit, and its bookmarks by stream; `None` if it is not kept.
pub(super) fn standing(
    rows: &impl Rows,
    unit: u64,
    run: u64,
) -> Result<Option<(StandingRow, BTreeMap<String, BookmarkRow>)>> {
    let key = run_key(unit, run);
    let Some(row) = rows.get(&STANDINGS, &key)? else { return Ok(None) };
    let bookmarks = rows.all(&STANDING_BOOKMARKS, &key)?;
    let bookmarks: Result<_> =
        bookmarks.into_iter().map(|(stream, row)| Ok((text(rows, &stream)?, row))).collect();
    Ok(Some((row, bookmarks?)))
}

/// The last cursor that a stream had in a run that is over, if it is known.
pub(super) fn last_cursor(rows: &impl Rows, unit: u64, stream: &str) -> Result<Option<String>> {
    let prefix = Key::unit(unit);
    let mut found = None;
    for (tail, Json(json)) in rows.all(&LAST_CURSORS, &prefix)? {
        if tail.get(8..) == Some(stream.as_bytes()) {
            found = Some(json);
        }
    }
    Ok(found)
}

/// Records what an operator did to a unit, or to the store if there is no unit. Its number is the newest's plus one.
pub(super) fn keep_act(change: &Change<'_>, sync_unit: &str, row: &ActRow) -> Result<()> {
    let prefix = acts_of(sync_unit);
    let acts = change.all(&ACTS, &prefix)?;
    let newest = acts.last().map(|(tail, _)| number(change, tail)).transpose()?.unwrap_or(0);
    for (tail, _) in acts.iter().rev().skip(ACTS_MAX - 1) {
        change.remove(&ACTS, &prefix.clone().and_number(number(change, tail)?))?;
    }
    let by = cut::to_chars(&row.by, BY_CHARS_MAX);
    change.put(&ACTS, &prefix.and_number(newest + 1), &ActRow { by, ..row.clone() })
}

/// What operators did to a unit, or to all units and the store, with the unit's id, which is empty for the store.
pub(super) fn acts_by_unit(rows: &impl Rows, sync_unit: Option<&str>) -> Result<Vec<(String, ActRow)>> {
    if let Some(id) = sync_unit {
        return Ok(acts(rows, id)?.into_iter().map(|row| (id.to_owned(), row)).collect());
    }
    let mut found = Vec::new();
    for (key, row) in rows.all(&ACTS, &Key::name(""))? {
        let (id, _) = key.split_at(key.iter().position(|byte| *byte == 0).unwrap_or(key.len()));
        found.push((text(rows, id)?, row));
    }
    Ok(found)
}
