//! A store of format 1 becomes one of format 2.
//!
//! Format 2 adds tables, which are empty where they are not there, and changes no row. `attachment_ids` has by their whole
//! ids what `seen_attachments` has by hashes of them: a row moves over when its attachment is named again, and until then
//! the hash leads to it. So however many attachments a unit has seen, opening its store moves none of them. `used_ids`
//! gets the artifact ids of what the unfinished runs have on its way, which is bounded.
//!
//! The step is one transaction: killed amid it, the store is of format 1 still, and the next opening begins anew. The
//! dump reads a store of format 1 as it is.

use crate::error::Result;

use super::rows::{FormatRow, Key, META, RUNS, UNITS, run_key};
use super::tables::{FORMAT, FORMAT_KEY, Rows, Tables};
use super::used_ids::take_those_of_rows;

/// Brings a store up to the newest format.
///
/// # Errors
/// `Corrupt`, `Io`; the store is of the format that it was of.
pub(super) fn migrate(tables: &Tables) -> Result<()> {
    let key = Key::name(FORMAT_KEY);
    let row = tables.view(|rows| rows.need(&META, &key))?;
    if row.format >= FORMAT {
        return Ok(());
    }
    tables.change(|change| {
        for (_, unit) in change.all(&UNITS, &Key::name(""))? {
            if let Some(no) = unit.run {
                let run = run_key(unit.no, no);
                let started_at = change.need(&RUNS, &run)?.started_at;
                take_those_of_rows(change, &run, started_at)?;
            }
        }
        change.put(&META, &key, &FormatRow { format: FORMAT, ..row })
    })
}
