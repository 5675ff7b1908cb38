//! Whether what a store has of records that are announced once can be.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::store::once::counts;
use crate::store::rows::{ONCE, ONCE_COUNTS, RUNS, RunStatus, TYPES, UnitRow, digest_of, run_key};
use crate::store::tables::{Rows, View};

use super::scan::counts_of_no_run;

/// What of a unit's records that are announced once cannot be: the table, and the problem.
pub(super) fn problems(view: &View<'_>, unit: &UnitRow) -> Result<Vec<(&'static str, String)>> {
    let mut problems = Vec::new();
    match check(view, unit, &mut problems) {
        // What does not decode is found where every row is decoded.
        Ok(()) | Err(Error::Corrupt { .. }) => Ok(problems),
        Err(error) => Err(error),
    }
}

fn check(view: &View<'_>, unit: &UnitRow, problems: &mut Vec<(&'static str, String)>) -> Result<()> {
    problems.extend(counts_of_no_run(view, unit, &ONCE_COUNTS)?);
    let Some(no) = unit.run else { return Ok(()) };
    let run = run_key(unit.no, no);
    if view.get(&RUNS, &run)?.is_none_or(|row| row.status != RunStatus::Open) {
        return Ok(());
    }
    let mut ids: BTreeMap<String, u64> = BTreeMap::new();
    view.scan_bytes(&ONCE, &run, |tail, _| {
        match digest_of(tail) {
            Ok((item_type, _)) => *ids.entry(item_type.to_owned()).or_default() += 1,
            Err(error) => problems.push((ONCE.name, error.to_string())),
        }
        Ok(())
    })?;
    for (item_type, counts) in counts(view, &run)? {
        let found = ids.remove(&item_type).unwrap_or(0);
        if found != counts.ids {
            let problem = format!("{} ids of {item_type} are counted and {found} kept", counts.ids);
            problems.push((ONCE_COUNTS.name, problem));
        }
        let row = view.get(&TYPES, &run.clone().and_name(&item_type))?.unwrap_or_default();
        if counts.repeated > row.left_out || counts.ids > row.read - row.left_out.min(row.read) {
            let problem = format!(
                "of {} {item_type} read, {} were left out; {} are repeated, and {} ids are kept",
                row.read, row.left_out, counts.repeated, counts.ids
            );
            problems.push((ONCE_COUNTS.name, problem));
        }
    }
    for (item_type, found) in ids {
        problems.push((ONCE.name, format!("{found} ids of {item_type} are kept and not counted")));
    }
    Ok(())
}
