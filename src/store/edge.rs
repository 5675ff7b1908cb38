//! Records at the edge: records that the next run receives again although they did not change.
//!
//! A run asks for what was modified at or after the start of the run before it. Clocks of sources are coarse, and
//! runs take time: a record that was modified after that start may have been read by the run before, and comes again.
//! For item types whose pages ask for it, a run keeps the ids of the records that it has read and that were modified
//! at or after its own start, minus the overlap. It keeps each with a digest of its line, in the transaction that
//! stages the page: `unit, run, item type, digest of the id -> digest of the line`. When the run is finished, the
//! unit remembers these rows (`edge_of` names the run), and those of the run before are removed. A run that is
//! abandoned leaves nothing.
//!
//! A record is left out if the unit remembers its id with exactly this line. The remembered line must be what the
//! platform has. So staging another version of a record, by any way, removes the remembered row in the same
//! transaction; it is then missing also for the run after one that is abandoned. Nothing is left out if the run does
//! not begin at the watermark that the finished run set: after a reset, a rewind or a run of other software, and if
//! the platform asks for an earlier window.
//!
//! The rows are limited in bytes ([`EDGE_BYTES_MAX`]). A record for which there is no room comes again and is
//! counted; it is not lost. A checkpoint has what the run has kept up to its position, and what the unit remembers,
//! both as far as there is room.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::error::Result;
use crate::model::{EDGE_BYTES_MAX, EDGE_CHECKPOINT_BYTES_MAX, ItemType, Micros, Safeguard};

use super::batches::states::count_left_out;
use super::checkpoint::digests::Digests;
use super::digest::Digest;
use super::rows::{
    EDGE, EDGE_COUNTS, EDGE_OF, EdgeCountRow, EdgeOfRow, EdgeRow, Key, RunRow, UNITS, UnitRow, digest_of,
    run_key,
};
use super::run_handle::Run;
use super::tables::{Change, Rows};

/// Bytes that a record takes in a store, without its item type.
const RECORD_BYTES: u64 = 80;

fn cost(item_type: &str) -> u64 {
    RECORD_BYTES + item_type.len() as u64
}

/// A record that is being staged.
pub(super) struct Staged<'l> {
    /// `None` if the record is flat: it is never remembered.
    pub(super) id: Option<&'l str>,
    pub(super) line: &'l [u8],
    pub(super) modified: Option<Micros>,
}

/// Handles the records of an item type on a page that is staged. `is_on`: unchanged ones are to be left out. Returns
/// for each whether it is to be staged; `None` if all are.
pub(super) fn take<'l>(
    run: &Run,
    change: &Change<'_>,
    row: &RunRow,
    item_type: &ItemType,
    is_on: bool,
    records: impl Iterator<Item = Staged<'l>>,
) -> Result<Option<Vec<bool>>> {
    if !may_have_any(run, change, is_on)? {
        return Ok(None);
    }
    let name = item_type.as_str();
    let own = run.run_key().and_inner_name(name);
    let kept = kept_of(change, run.unit_no)?;
    let before = kept.as_ref().map(|kept| run_key(run.unit_no, kept.run).and_inner_name(name));
    let mut all = counts(change, &run.run_key())?;
    let used: u64 = all.iter().map(|(name, counts)| counts.ids * cost(name)).sum();
    let mut counts = all.remove(name).unwrap_or_default();
    let knows_any = match &before {
        Some(before) => is_any(change, before)?,
        None => false,
    };
    if !is_on && !knows_any && counts.ids == 0 {
        return Ok(None);
    }
    let goes_on = match &kept {
        Some(kept) if is_on && knows_any => goes_on_from(run, change, row, kept)?,
        _ => false,
    };
    let since = row.started_at.minus(run.inner.settings.overlap);
    let old = counts.clone();
    let mut room = EDGE_BYTES_MAX.saturating_sub(used) / cost(name);
    let mut keep = Vec::new();
    for Staged { id, line, modified } in records {
        let Some(id) = id else {
            keep.push(true);
            continue;
        };
        let (id, content) = (Digest::of(id), Digest::of_bytes(line));
        let own = own.clone().and_digest(&id);
        let mine = change.get(&EDGE, &own)?.map(|row| row.content);
        let known = match &before {
            Some(before) if knows_any => {
                let before = before.clone().and_digest(&id);
                let known = change.get(&EDGE, &before)?.map(|row| row.content);
                if known.is_some_and(|known| known != content) {
                    change.remove(&EDGE, &before)?;
                }
                known
            }
            _ => None,
        };
        let is_unchanged = (goes_on && known == Some(content))
            || (is_on && mine == Some(content) && run.breaks(Safeguard::EdgeOfFinished));
        keep.push(!is_unchanged);
        counts.unchanged += u64::from(is_unchanged);
        let is_at_edge = is_on && modified.is_some_and(|modified| modified >= since);
        match mine {
            Some(mine) if mine == content => {}
            Some(_) if is_at_edge => change.put(&EDGE, &own, &EdgeRow { content })?,
            Some(_) => {
                change.remove(&EDGE, &own)?;
                counts.ids -= 1;
                room += 1;
            }
            None if is_at_edge && room > 0 => {
                change.put(&EDGE, &own, &EdgeRow { content })?;
                counts.ids += 1;
                room -= 1;
            }
            None => counts.forgotten += u64::from(is_at_edge),
        }
    }
    if old.forgotten == 0 && counts.forgotten > 0 {
        let bytes_max = EDGE_BYTES_MAX;
        warn!(
            target: "highwater",
            item_type = name,
            bytes_max, "no room for more records at the edge: the next run announces them again"
        );
    }
    count_left_out(run, change, name, counts.unchanged - old.unchanged)?;
    if counts != old {
        change.put(&EDGE_COUNTS, &run.run_key().and_name(name), &counts)?;
    }
    Ok(Some(keep))
}

/// Whether the unit may have records at the edge, or gets some now. This is looked up once in each life of the run,
/// before it changes any; only a run of the unit adds them.
fn may_have_any(run: &Run, change: &Change<'_>, is_on: bool) -> Result<bool> {
    let mut has_edge = run.has_edge.lock().unwrap_or_else(PoisonError::into_inner);
    let known = match *has_edge {
        Some(known) => known,
        None => is_any(change, &Key::unit(run.unit_no))?,
    };
    *has_edge = Some(known || is_on);
    Ok(known || is_on)
}

/// Whether a run begins exactly where the remembered run left the unit.
fn goes_on_from(run: &Run, change: &Change<'_>, row: &RunRow, kept: &EdgeOfRow) -> Result<bool> {
    let since = kept.watermark.minus(run.inner.settings.overlap);
    let reaches_back = row.window.is_some_and(|window| window.from.is_none_or(|from| from < since));
    let unit = change.get(&UNITS, &Key::name(run.unit.as_str()))?;
    let stands = unit.and_then(|unit| unit.watermark) == Some(kept.watermark);
    Ok(stands && row.since == Some(since) && !reaches_back)
}

/// The finished run whose records a unit remembers.
pub(super) fn kept_of(rows: &impl Rows, unit: u64) -> Result<Option<EdgeOfRow>> {
    rows.get(&EDGE_OF, &Key::unit(unit))
}

fn is_any(rows: &impl Rows, prefix: &Key) -> Result<bool> {
    let mut any = false;
    rows.scan(&EDGE, prefix, prefix, |_, _| {
        any = true;
        Ok(false)
    })?;
    Ok(any)
}

/// Makes the rows of a finished run those that the unit remembers.
pub(super) fn keep(change: &Change<'_>, unit: &UnitRow, no: u64) -> Result<()> {
    let prefix = Key::unit(unit.no);
    let run = run_key(unit.no, no);
    change.remove_range(&EDGE, &prefix, &run)?;
    match unit.watermark {
        Some(watermark) if is_any(change, &run)? => {
            change.put(&EDGE_OF, &prefix, &EdgeOfRow { run: no, watermark })
        }
        _ => {
            change.remove_all(&EDGE, &run)?;
            change.remove(&EDGE_OF, &prefix)
        }
    }
}

/// The counts of a run by item type.
pub(super) fn counts(rows: &impl Rows, run: &Key) -> Result<BTreeMap<String, EdgeCountRow>> {
    rows.by_name(&EDGE_COUNTS, run)
}

/// The part of a checkpoint for records at the edge: of a run, or of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EdgePart {
    /// The finished run, and the watermark that it set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<(u64, Micros)>,
    /// For each record the digests of its id and of its line, by item type.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    records: BTreeMap<String, Digests>,
    /// Run, item type, how many of its records the run left out, and how many had no room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    counts: Vec<(u64, String, u64, u64)>,
}

impl EdgePart {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Leaves out records until the rest fits in this many bytes.
    pub(super) fn fit(&mut self, bytes: u64) {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX).min(EDGE_CHECKPOINT_BYTES_MAX);
        let of = self.of.map_or(0, |(run, _)| run);
        for (item_type, records) in &mut self.records {
            let forgotten = records.fit(&mut left, 2);
            let of_type = self.counts.iter_mut().find(|(run, name, ..)| *run == of && name == item_type);
            if let Some((.., count)) = of_type {
                *count += forgotten;
            }
        }
        self.records.retain(|_, records| !records.is_empty());
    }
}

/// The part of a position: of the run that is open there.
pub(super) fn part_of_run(rows: &impl Rows, run: &Key) -> Result<EdgePart> {
    let counts = counts(rows, run)?.into_iter();
    let counts = counts.map(|(item_type, row)| (0, item_type, row.unchanged, row.forgotten)).collect();
    Ok(EdgePart { of: None, records: records(rows, run)?, counts })
}

/// The part of a unit: what it remembers, and the counts of these ended runs.
pub(super) fn part_of_unit(rows: &impl Rows, unit: u64, runs: &[u64]) -> Result<EdgePart> {
    let mut part = EdgePart::default();
    if let Some(EdgeOfRow { run, watermark }) = kept_of(rows, unit)? {
        part.of = Some((run, watermark));
        part.records = records(rows, &run_key(unit, run))?;
    }
    for &run in runs {
        let counts = counts(rows, &run_key(unit, run))?.into_iter();
        part.counts.extend(counts.map(|(item_type, row)| (run, item_type, row.unchanged, row.forgotten)));
    }
    Ok(part)
}

fn records(rows: &impl Rows, run: &Key) -> Result<BTreeMap<String, Digests>> {
    let mut records: BTreeMap<String, Digests> = BTreeMap::new();
    rows.scan(&EDGE, run, run, |tail, EdgeRow { content }| {
        let (item_type, id) =
            digest_of(tail).map_err(|error| rows.tables().damaged(EDGE.name, run, error.to_string()))?;
        let of_type = records.entry(item_type.to_owned()).or_default();
        of_type.push(id);
        of_type.push(content);
        Ok(true)
    })?;
    Ok(records)
}

/// Restores what a checkpoint has of a unit.
pub(super) fn restore_unit(change: &Change<'_>, unit: u64, part: &EdgePart) -> Result<()> {
    for (run, item_type, unchanged, forgotten) in &part.counts {
        let row = EdgeCountRow { unchanged: *unchanged, ids: 0, forgotten: *forgotten };
        change.put(&EDGE_COUNTS, &run_key(unit, *run).and_name(item_type), &row)?;
    }
    let Some((run, watermark)) = part.of else { return Ok(()) };
    change.put(&EDGE_OF, &Key::unit(unit), &EdgeOfRow { run, watermark })?;
    restore_records(change, &run_key(unit, run), &part.records)
}

/// Restores what a checkpoint has of the run that is open at its position.
pub(super) fn restore_run(change: &Change<'_>, run: &Key, part: &EdgePart) -> Result<()> {
    for (_, item_type, unchanged, forgotten) in &part.counts {
        let ids = part.records.get(item_type).map_or(0, |records| records.len() as u64 / 2);
        let row = EdgeCountRow { unchanged: *unchanged, ids, forgotten: *forgotten };
        change.put(&EDGE_COUNTS, &run.clone().and_name(item_type), &row)?;
    }
    restore_records(change, run, &part.records)
}

fn restore_records(change: &Change<'_>, run: &Key, records: &BTreeMap<String, Digests>) -> Result<()> {
    for (item_type, digests) in records {
        let prefix = run.clone().and_inner_name(item_type);
        let mut digests = digests.iter();
        while let (Some(id), Some(content)) = (digests.next(), digests.next()) {
            change.put(&EDGE, &prefix.clone().and_digest(id), &EdgeRow { content: *content })?;
        }
    }
    Ok(())
}
