//! Opening the store of a command to read it, and notes about how it was read.

use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use highwater::inspect::{Snapshot, Source, is_internal};
use serde::Serialize;

use crate::ending::{Failure, Outcome, complain};
use crate::text::{shell_path, shell_word, visible};

/// Tells on stderr how a store was read, unless it was closed cleanly.
pub(crate) fn note(store: &Path, source: Source) {
    match source {
        Source::LeftOpen => complain(&format!(
            "{}: the last process did not close it (perhaps it was killed): read through an overlay, without changing it",
            store.display()
        )),
        Source::Copy { copies } => complain(&format!(
            "{}: open in another process: read from a verified temporary copy{}",
            store.display(),
            if copies > 1 {
                format!(" (made {copies} times, because it was being written to)")
            } else {
                String::new()
            }
        )),
        _ => {}
    }
}

/// Opens a store to read it, and says on stderr how it was read.
pub(crate) fn open(store: &Path) -> Outcome<Snapshot> {
    let snapshot = Snapshot::open(store)?;
    note(store, snapshot.source());
    Ok(snapshot)
}

/// Opens a store to read the requested unit; without one, the only unit that is not internal.
pub(crate) fn open_at(store: &Path, unit: Option<&str>) -> Outcome<(Snapshot, String)> {
    let mut snapshot = open(store)?;
    let unit = unit_of(&mut snapshot, store, unit)?;
    Ok((snapshot, unit))
}

fn unit_of(snapshot: &mut Snapshot, store: &Path, unit: Option<&str>) -> Outcome<String> {
    if let Some(unit) = unit {
        return unit_id(snapshot, store, unit);
    }
    let (users, _) = shown_units(snapshot, store, None, false)?;
    match &users[..] {
        [unit] => Ok(unit.clone()),
        [] => Err(Failure::Absent(format!("{}: no sync unit yet", store.display()))),
        [first, second, ..] => Err(Failure::Usage(format!(
            "{} has {} sync units, choose one: --unit {}, --unit {}{}",
            store.display(),
            users.len(),
            shell_word(first),
            shell_word(second),
            if users.len() > 2 { ", ..." } else { "" }
        ))),
    }
}

/// The units to show, and how many are not: without a requested one, all but the internal ones. Those are shown if
/// `internal` is set or there are no others.
pub(crate) fn shown_units(
    snapshot: &mut Snapshot,
    store: &Path,
    unit: Option<&str>,
    internal: bool,
) -> Outcome<(Vec<String>, usize)> {
    if let Some(unit) = unit {
        return Ok((vec![unit_id(snapshot, store, unit)?], 0));
    }
    let ids = snapshot.unit_ids()?;
    let (hidden, users): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| is_internal(id));
    let hides = !internal && !users.is_empty();
    Ok(if hides { (users, hidden.len()) } else { ([users, hidden].concat(), 0) })
}

/// The id of a unit that the store has, given as it is, or as screens show it.
pub(crate) fn unit_id(snapshot: &mut Snapshot, store: &Path, given: &str) -> Outcome<String> {
    let ids = snapshot.unit_ids()?;
    let found = ids.iter().find(|id| *id == given).or_else(|| ids.iter().find(|id| visible(id) == given));
    if let Some(found) = found {
        return Ok(found.clone());
    }
    let distance = |id: &String| strsim::damerau_levenshtein(id, given);
    let is_close =
        |id: &String| !given.is_empty() && (id.contains(given) || distance(id) <= given.len().min(4) / 2);
    let close = ids.iter().filter(|id| !is_internal(id) && is_close(id)).min_by_key(|id| distance(id));
    match close {
        Some(id) => Err(Failure::Absent(format!(
            "{} has no sync unit \"{given}\"; did you mean {}?",
            store.display(),
            shell_word(id)
        ))),
        None => Err(no_unit(store, given)),
    }
}

/// The error for a unit that the store does not have.
pub(crate) fn no_unit(store: &Path, unit: &str) -> Failure {
    let (shown, store) = (store.display(), shell_path(store));
    Failure::Absent(format!(
        "{shown} has no sync unit \"{unit}\"; `highwater-dump {store}` lists those it has"
    ))
}

/// The word for how a store was read, in JSON.
pub(crate) fn source_word(source: Source) -> &'static str {
    match source {
        Source::Closed => "closed",
        Source::LeftOpen => "left_open",
        _ => "copy",
    }
}

/// The arguments of a command that lists things of one unit.
#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// The store file
    pub(crate) store: PathBuf,
    /// The sync unit; may be left out if the store has only one
    #[arg(long, value_name = "ID")]
    pub(crate) unit: Option<String>,
    /// How many to list, newest first; without it, all
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Print one JSON object per line, with a `kind`; times are RFC 3339 in UTC
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a list without entries says: that none were asked for, or why there are none.
pub(crate) fn none_listed(last: Option<usize>, why: &str) -> &str {
    if last == Some(0) { "none is listed: --last 0" } else { why }
}

/// The version of what `--json` prints: raised when a field is removed or changes its meaning. An added field does
/// not change it.
const JSON_VERSION: u32 = 1;

/// The first line of a listing.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename = "store")]
pub(crate) struct StoreLine {
    version: u32,
    path: String,
    source: &'static str,
    read_at: String,
}

pub(crate) fn store_line(store: &Path, source: Source, now: DateTime<Utc>) -> StoreLine {
    StoreLine {
        version: JSON_VERSION,
        path: store.to_string_lossy().into_owned(),
        source: source_word(source),
        read_at: now.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    }
}
