//! Rejected records in a store: for people, and whether they are possible.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::{ID_BYTES_MAX, ItemType, REJECTED_JSON_BYTES_MAX};
use crate::store::rejected::{counts, records};
use crate::store::rows::{
    Key, REJECTED, REJECTED_COUNTS, REJECTED_IN_RUN, RUNS, RejectedFate, RejectedRow, RunStatus, TYPES,
    Table, UnitRow, rejected_of, run_key,
};
use crate::store::tables::{Rows, View};

use super::reasons::Reasons;
use super::scan::{counts_of_no_run, run_id};
use super::words::{RejectedStage, time};

/// A record that was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RejectedReport {
    /// The unit.
    pub sync_unit: String,
    /// Its item type.
    pub item_type: String,
    /// The id with which it is requested.
    pub id: String,
    /// Its state.
    pub stage: RejectedStage,
    /// What it is counted by: the rule and the place of the first error, or the extractor's reason.
    pub reason_kind: String,
    /// Why it was last rejected; empty if the record is only known from a checkpoint.
    pub reason: String,
    /// When it was last rejected.
    #[serde(serialize_with = "time")]
    pub rejected_at: DateTime<Utc>,
    /// The run that first rejected it; `None` if it is not in the ledger any more.
    pub first_run: Option<String>,
    /// In how many runs it was requested and rejected again.
    pub asked: u32,
    /// Bytes of its JSON text, if that is kept.
    pub json_bytes: Option<u64>,
    /// The start of it, at most [`REJECTED_JSON_BYTES_MAX`](crate::limits::REJECTED_JSON_BYTES_MAX) bytes: user
    /// content. Only if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<String>,
}

/// Why the records were rejected that the open run, or the next one, requests.
pub(super) fn reasons(view: &View<'_>, unit: &UnitRow) -> Result<Reasons> {
    let mut reasons = Reasons::default();
    let is_rejected = |stage| matches!(stage, RejectedStage::ToBeAsked | RejectedStage::Rejected);
    for record in read(view, "", unit, false)?.into_iter().filter(|record| is_rejected(record.stage)) {
        reasons.add(format!("{}: {}", record.item_type, record.reason_kind));
    }
    Ok(reasons)
}

/// The rejected records of a unit, by item type and id. `with_json`: with what is kept of their content.
pub(super) fn read(
    view: &View<'_>,
    id: &str,
    unit: &UnitRow,
    with_json: bool,
) -> Result<Vec<RejectedReport>> {
    let mut found = records(view, &REJECTED, &Key::unit(unit.no))?
        .into_iter()
        .map(|(key, row)| (key, (RejectedStage::ToBeAsked, row)))
        .collect::<BTreeMap<_, _>>();
    if let Some(run) = unit.run {
        for (key, row) in records(view, &REJECTED_IN_RUN, &run_key(unit.no, run))? {
            let stage = row.fate.into();
            let before = found.remove(&key).map(|(_, row)| row);
            let row = match (row.fate, before) {
                // The finished run has the reason why it was rejected.
                (RejectedFate::Passed | RejectedFate::Gone, Some(before)) => before,
                _ => row,
            };
            found.insert(key, (stage, row));
        }
    }
    found
        .into_iter()
        .map(|((item_type, record), (stage, row))| {
            let RejectedRow { run: first, rejected_at, asked, kind, reason, json, .. } = row;
            Ok(RejectedReport {
                sync_unit: id.to_owned(),
                item_type,
                id: record,
                stage,
                reason_kind: kind,
                reason,
                rejected_at: rejected_at.to_time(),
                first_run: run_id(view, unit.no, first)?,
                asked,
                json_bytes: json.as_ref().map(|(_, bytes)| *bytes),
                json: json.map(|(text, _)| text).filter(|_| with_json),
            })
        })
        .collect()
}

/// What is impossible in a unit's rejected records: the table, and the problem.
pub(super) fn problems(view: &View<'_>, unit: &UnitRow) -> Result<Vec<(&'static str, String)>> {
    let mut problems = Vec::new();
    let mut key = |table: &Table<RejectedRow>, prefix: &Key| {
        view.scan_bytes(table, prefix, |tail, _| {
            problems.extend(rejected_of(tail).err().map(|error| (table.name, error.to_string())));
            Ok(())
        })
    };
    let keys = key(&REJECTED, &Key::unit(unit.no)).and_then(|()| match unit.run {
        Some(run) => key(&REJECTED_IN_RUN, &run_key(unit.no, run)),
        None => Ok(()),
    });
    match keys.and_then(|()| check(view, unit, &mut problems)) {
        // Other rows that do not decode are found where every row is decoded.
        Ok(()) | Err(Error::Corrupt { .. }) => Ok(problems),
        Err(error) => Err(error),
    }
}

fn check(view: &View<'_>, unit: &UnitRow, problems: &mut Vec<(&'static str, String)>) -> Result<()> {
    let of_unit = records(view, &REJECTED, &Key::unit(unit.no))?;
    for (key, row) in &of_unit {
        problems.extend(problem_of(key, row, unit).map(|problem| (REJECTED.name, problem)));
        if row.fate != RejectedFate::Rejected {
            problems.push((
                REJECTED.name,
                format!("{} {}: it is settled, and kept to be asked for", key.0, key.1),
            ));
        }
    }
    problems.extend(counts_of_no_run(view, unit, &REJECTED_COUNTS)?);
    let Some(no) = unit.run else { return Ok(()) };
    let run = run_key(unit.no, no);
    if view.get(&RUNS, &run)?.is_none_or(|row| row.status != RunStatus::Open) {
        return Ok(());
    }
    let of_run = records(view, &REJECTED_IN_RUN, &run)?;
    for (key, row) in &of_run {
        problems.extend(problem_of(key, row, unit).map(|problem| (REJECTED_IN_RUN.name, problem)));
        if row.fate != RejectedFate::Rejected && !of_unit.contains_key(key) {
            let problem = format!("{} {}: it was requested, but no run had rejected it", key.0, key.1);
            problems.push((REJECTED_IN_RUN.name, problem));
        }
    }
    let counts = counts(view, &run)?;
    for (item_type, rejected) in &counts {
        let left_out = view.get(&TYPES, &run.clone().and_name(item_type))?.map_or(0, |row| row.left_out);
        if *rejected > left_out {
            let problem = format!("{rejected} {item_type} are rejected, but {left_out} were left out");
            problems.push((REJECTED_COUNTS.name, problem));
        }
    }
    // A record that was requested and rejected again is not counted as read.
    for (item_type, id) in of_run.keys().filter(|key| !of_unit.contains_key(*key)) {
        if !counts.contains_key(item_type) {
            let problem = format!("{item_type} {id}: it is rejected, but none of its type is counted");
            problems.push((REJECTED_IN_RUN.name, problem));
        }
    }
    Ok(())
}

fn problem_of((item_type, id): &(String, String), row: &RejectedRow, unit: &UnitRow) -> Option<String> {
    let kept = row.json.as_ref().map_or(0, |(text, _)| text.len());
    let problem = if ItemType::new(item_type.as_str()).is_err() {
        "its item type cannot be one".to_owned()
    } else if id.is_empty() || id.len() > ID_BYTES_MAX {
        format!("its id has {} bytes", id.len())
    } else if row.run >= unit.next_run {
        format!("it was first rejected by run number {}, which was never given out", row.run)
    } else if kept > REJECTED_JSON_BYTES_MAX {
        format!("{kept} bytes of it are kept, over the limit")
    } else {
        return None;
    };
    Some(format!("{item_type} {id}: {problem}"))
}
