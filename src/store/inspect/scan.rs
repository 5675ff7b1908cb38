//! Reading many rows: each one under a key, and the newest of them.

use std::collections::{BTreeSet, VecDeque};

use crate::error::Result;
use crate::store::codec::DecodeError;
use crate::store::rows::{Key, LEDGER, RUNS, Row, Table, UnitRow, name_of, number_of, run_key};
use crate::store::tables::{Rows, View};

/// Calls `each` with the end of the key and the row, for every row under `prefix`.
pub(super) fn each<R: Row, T>(
    view: &View<'_>,
    table: &Table<R>,
    prefix: &Key,
    tail_of: impl Fn(&[u8]) -> Result<T, DecodeError>,
    mut each: impl FnMut(T, R),
) -> Result<()> {
    view.scan(table, prefix, prefix, |tail, row| {
        let tail =
            tail_of(tail).map_err(|error| view.tables().damaged(table.name, prefix, error.to_string()))?;
        each(tail, row);
        Ok(true)
    })
}

/// The id of a run, if it is still known.
pub(super) fn run_id(view: &View<'_>, unit: u64, run: u64) -> Result<Option<String>> {
    let key = run_key(unit, run);
    Ok(match view.get(&RUNS, &key)? {
        Some(run) => Some(run.id),
        None => view.get(&LEDGER, &key)?.map(|run| run.id),
    })
}

/// Problems in a table of counts by run and item type: counts of runs that are neither the unit's newest nor in the
/// ledger. They should have been removed with their run.
pub(super) fn counts_of_no_run<R: Row>(
    view: &View<'_>,
    unit: &UnitRow,
    table: &Table<R>,
) -> Result<impl Iterator<Item = (&'static str, String)> + use<R>> {
    let mut runs = BTreeSet::from_iter(unit.run);
    each(view, &LEDGER, &Key::unit(unit.no), number_of, |run, _| {
        runs.insert(run);
    })?;
    let run_of = |tail: &[u8]| number_of(tail.get(..8).unwrap_or(tail));
    let mut strays = BTreeSet::new();
    each(view, table, &Key::unit(unit.no), run_of, |run, _| {
        strays.extend(Some(run).filter(|run| !runs.contains(run)));
    })?;
    let name = table.name;
    Ok(strays
        .into_iter()
        .map(move |run| (name, format!("run number {run} has counts but is not in the ledger"))))
}

pub(super) fn name(tail: &[u8]) -> Result<String, DecodeError> {
    name_of(tail).map(str::to_owned)
}

/// Adds an item and keeps the newest `last`; returns the item that is dropped, if any.
pub(super) fn push_last<T>(newest: &mut VecDeque<T>, last: usize, item: T) -> Option<T> {
    newest.push_back(item);
    if newest.len() > last { newest.pop_front() } else { None }
}
