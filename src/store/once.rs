//! Records that a run announces once, however many pages contain them: users, labels and the like.
//!
//! The transaction that stages a page stores the ids that are new in the run (`unit, run, item type, digest of the
//! id`), and leaves out the other records. So an id is known here exactly if its record is staged. The rows are
//! removed with their run.
//!
//! The rows are limited in bytes ([`ONCE_BYTES_MAX`]). If there is no room, a new record is announced each time it
//! comes, and counted: it repeats, but is not lost. A position of a checkpoint has the ids that are known there, as
//! many as fit; when it is restored, the ids that it lacks count as forgotten.
//!
//! An id is stored as 128 bits of its SHA-256. Two ids must not share these, not even on purpose: a record that is
//! mistaken for another one would be lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::error::Result;
use crate::model::{ItemType, ONCE_BYTES_MAX, ONCE_CHECKPOINT_BYTES_MAX, Safeguard};

use super::batches::states::count_left_out;
use super::checkpoint::digests::Digests;
use super::digest::Digest;
use super::rows::{Key, ONCE, ONCE_COUNTS, OnceCountRow, OnceRow, digest_of, run_key};
use super::run_handle::Run;
use super::tables::{Change, Rows};

/// Bytes that an id takes in a store, without its item type.
const ID_BYTES: u64 = 64;

fn cost(item_type: &str) -> u64 {
    ID_BYTES + item_type.len() as u64
}

/// Handles the ids of the records on a page that are to be announced once. Returns for each whether it is new in the
/// run; the others are counted as left out.
pub(super) fn take_new<'i>(
    run: &Run,
    change: &Change<'_>,
    item_type: &ItemType,
    record_ids: impl Iterator<Item = &'i str>,
) -> Result<Vec<bool>> {
    let name = item_type.as_str();
    let ids = run.run_key().and_inner_name(name);
    let mut all = counts(change, &run.run_key())?;
    let used: u64 = all.iter().map(|(name, counts)| counts.ids * cost(name)).sum();
    let mut room = ONCE_BYTES_MAX.saturating_sub(used) / cost(name);
    let mut counts = all.remove(name).unwrap_or_default();
    let before = counts.clone();
    let mut new = Vec::new();
    for id in record_ids {
        let key = ids.clone().and_digest(&Digest::of(id));
        let is_known = change.get(&ONCE, &key)?.is_some();
        new.push(!is_known);
        if is_known {
            counts.repeated += 1;
        } else if room == 0 {
            counts.forgotten += 1;
        } else if !run.breaks(Safeguard::OnceKept) {
            change.put(&ONCE, &key, &OnceRow {})?;
            counts.ids += 1;
            room -= 1;
        }
    }
    if before.forgotten == 0 && counts.forgotten > 0 {
        let bytes_max = ONCE_BYTES_MAX;
        warn!(
            target: "highwater",
            item_type = name,
            bytes_max, "no room for more ids of records that are announced once: they repeat"
        );
    }
    count_left_out(run, change, name, counts.repeated - before.repeated)?;
    change.put(&ONCE_COUNTS, &run.run_key().and_name(name), &counts)?;
    Ok(new)
}

/// The counts of a run by item type.
pub(super) fn counts(rows: &impl Rows, run: &Key) -> Result<BTreeMap<String, OnceCountRow>> {
    rows.by_name(&ONCE_COUNTS, run)
}

/// The part of a checkpoint for records that are announced once: of a unit, or of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OncePart {
    /// By item type.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ids: BTreeMap<String, Digests>,
    /// Run, item type, how many of its records the run left out, and how many ids are forgotten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    counts: Vec<(u64, String, u64, u64)>,
}

impl OncePart {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Leaves out ids until the rest fits in this many bytes.
    pub(super) fn fit(&mut self, bytes: u64) {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX).min(ONCE_CHECKPOINT_BYTES_MAX);
        for (item_type, ids) in &mut self.ids {
            let forgotten = ids.fit(&mut left, 1);
            let of_type = self.counts.iter_mut().find(|(_, name, ..)| name == item_type);
            if let Some((.., count)) = of_type {
                *count += forgotten;
            }
        }
        self.ids.retain(|_, ids| !ids.is_empty());
    }
}

/// The part of a position: of the run that is open there.
pub(super) fn part_of_run(rows: &impl Rows, run: &Key) -> Result<OncePart> {
    let mut ids: BTreeMap<String, Digests> = BTreeMap::new();
    rows.scan(&ONCE, run, run, |tail, OnceRow {}| {
        let (item_type, digest) =
            digest_of(tail).map_err(|error| rows.tables().damaged(ONCE.name, run, error.to_string()))?;
        if let Some(of_type) = ids.get_mut(item_type) {
            of_type.push(digest);
        } else {
            ids.entry(item_type.to_owned()).or_default().push(digest);
        }
        Ok(true)
    })?;
    let counts = counts(rows, run)?.into_iter();
    let counts = counts.map(|(item_type, row)| (0, item_type, row.repeated, row.forgotten)).collect();
    Ok(OncePart { ids, counts })
}

/// The part of a unit: the counts of these ended runs.
pub(super) fn part_of_unit(rows: &impl Rows, unit: u64, runs: &[u64]) -> Result<OncePart> {
    let mut of_runs = Vec::new();
    for &run in runs {
        let counts = counts(rows, &run_key(unit, run))?.into_iter();
        of_runs.extend(counts.map(|(item_type, row)| (run, item_type, row.repeated, row.forgotten)));
    }
    Ok(OncePart { ids: BTreeMap::new(), counts: of_runs })
}

/// Restores what a checkpoint has of a unit's ended runs.
pub(super) fn restore_unit(change: &Change<'_>, unit: u64, part: &OncePart) -> Result<()> {
    for (run, item_type, repeated, forgotten) in &part.counts {
        let row = OnceCountRow { repeated: *repeated, ids: 0, forgotten: *forgotten };
        change.put(&ONCE_COUNTS, &run_key(unit, *run).and_name(item_type), &row)?;
    }
    Ok(())
}

/// Restores what a checkpoint has of the run that is open at its position.
pub(super) fn restore_run(change: &Change<'_>, run: &Key, part: &OncePart) -> Result<()> {
    for (_, item_type, repeated, forgotten) in &part.counts {
        let ids = part.ids.get(item_type).map_or(0, |ids| ids.len() as u64);
        let row = OnceCountRow { repeated: *repeated, ids, forgotten: *forgotten };
        change.put(&ONCE_COUNTS, &run.clone().and_name(item_type), &row)?;
    }
    for (item_type, ids) in &part.ids {
        let prefix = run.clone().and_inner_name(item_type);
        ids.iter().try_for_each(|id| change.put(&ONCE, &prefix.clone().and_digest(id), &OnceRow {}))?;
    }
    Ok(())
}
