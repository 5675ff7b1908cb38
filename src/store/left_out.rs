//! How many records a run has read and left out, and why.

use serde::Serialize;

use crate::error::Result;

use super::edge;
use super::once;
use super::rejected;
use super::rows::{Key, LEDGER, TYPES};
use super::run_handle::Run;
use super::tables::Rows;

/// Records that a run has read and not announced, by the reason. What it read is what it announces, and these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftOutCounts {
    /// The platform does not want them: they are out of the extraction scope.
    pub skipped: u64,
    /// They are bad: see [`Page::reject`](crate::Page::reject).
    pub rejected: u64,
    /// The run had announced them before: see [`Page::record_once`](crate::Page::record_once).
    pub repeated: u64,
    /// They are unchanged since the last finished run announced them: see
    /// [`Page::leave_out_unchanged`](crate::Page::leave_out_unchanged).
    pub unchanged: u64,
}

impl Run {
    /// Counts the records of this run so far that are left out, by the reason.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt` or `Io`.
    pub fn left_out(&self) -> Result<LeftOutCounts> {
        self.look(|rows, _| counts(rows, &self.run_key()))
    }

    /// [`Run::left_out`], also for a run that is over, or that a later life has resumed.
    pub(crate) fn left_out_totals(&self) -> Result<LeftOutCounts> {
        self.inner.tables.view(|rows| counts(rows, &self.run_key()))
    }
}

fn counts(rows: &impl Rows, run: &Key) -> Result<LeftOutCounts> {
    let mut all: u64 = rows.all(&TYPES, run)?.iter().map(|(_, counts)| counts.left_out).sum();
    if let Some(over) = rows.get(&LEDGER, run)? {
        all = over.types.iter().map(|counts| counts.left_out).sum();
    }
    let rejected = rejected::counts(rows, run)?.values().sum();
    let repeated = once::counts(rows, run)?.values().map(|counts| counts.repeated).sum();
    let unchanged = edge::counts(rows, run)?.values().map(|counts| counts.unchanged).sum();
    let skipped = all.saturating_sub(rejected + repeated + unchanged);
    Ok(LeftOutCounts { skipped, rejected, repeated, unchanged })
}

#[cfg(test)]
mod tests;
