//! Whether what a store has of records at the edge can be.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::store::edge::{counts, kept_of};
use crate::store::rows::{
    EDGE, EDGE_COUNTS, EDGE_OF, Key, RUNS, RunStatus, TYPES, UnitRow, digest_of, number_of, run_key,
};
use crate::store::tables::{Rows, View};

use super::scan::counts_of_no_run;

/// What of a unit's records at the edge cannot be: the table, and the problem.
pub(super) fn problems(view: &View<'_>, unit: &UnitRow) -> Result<Vec<(&'static str, String)>> {
    let mut problems = Vec::new();
    match check(view, unit, &mut problems) {
        // What does not decode is found where every row is decoded.
        Ok(()) | Err(Error::Corrupt { .. }) => Ok(problems),
        Err(error) => Err(error),
    }
}

fn check(view: &View<'_>, unit: &UnitRow, problems: &mut Vec<(&'static str, String)>) -> Result<()> {
    let prefix = Key::unit(unit.no);
    let kept = kept_of(view, unit.no)?.map(|kept| kept.run);
    if let Some(run) = kept.filter(|run| *run >= unit.next_run) {
        problems.push((EDGE_OF.name, format!("they are of run number {run}, which was never given out")));
    }
    let mut open = None;
    if let Some(no) = unit.run {
        open =
            view.get(&RUNS, &run_key(unit.no, no))?.filter(|row| row.status == RunStatus::Open).map(|_| no);
    }
    // By run and item type: how many there are.
    let mut found: BTreeMap<(u64, String), u64> = BTreeMap::new();
    view.scan_bytes(&EDGE, &prefix, |tail, _| {
        let (run, rest) = tail.split_at(tail.len().min(8));
        match number_of(run).and_then(|run| Ok((run, digest_of(rest)?.0.to_owned()))) {
            Ok(of) => *found.entry(of).or_default() += 1,
            Err(error) => problems.push((EDGE.name, error.to_string())),
        }
        Ok(())
    })?;
    let runs: BTreeSet<u64> = found.keys().map(|(run, _)| *run).collect();
    for run in runs.into_iter().filter(|run| Some(*run) != kept && Some(*run) != open) {
        let problem = format!("there are records of run number {run}, which is neither open nor remembered");
        problems.push((EDGE.name, problem));
    }
    problems.extend(counts_of_no_run(view, unit, &EDGE_COUNTS)?);
    let Some(no) = open else { return Ok(()) };
    let run = run_key(unit.no, no);
    for (item_type, counts) in counts(view, &run)? {
        let found = found.remove(&(no, item_type.clone())).unwrap_or(0);
        let row = view.get(&TYPES, &run.clone().and_name(&item_type))?.unwrap_or_default();
        if found != counts.ids || counts.unchanged > row.left_out {
            let problem = format!(
                "of {} {item_type} read, {} were left out; {} are unchanged, {} are counted to be kept, and {found} are",
                row.read, row.left_out, counts.unchanged, counts.ids
            );
            problems.push((EDGE_COUNTS.name, problem));
        }
    }
    for ((_, item_type), found) in found.into_iter().filter(|((run, _), _)| *run == no) {
        problems.push((EDGE.name, format!("{found} records of {item_type} are kept and not counted")));
    }
    Ok(())
}
