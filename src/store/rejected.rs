//! Rejected records: left out because they are invalid, counted, and requested again by the next run.
//!
//! The transaction that stages a page stores what the page rejects, `unit, run, item type, id -> why`, and counts it
//! as read. So a rejected record is stored exactly if its stream's cursor is past it. When the run finishes, its
//! rejected records become those of the unit, `unit, item type, id -> why`. The next run requests these again, in
//! chunks. The transaction that stages a chunk's answer stores the outcome of each of its ids in the rows of the run,
//! so a kill costs only the chunk that was being fetched. The unit's rows change when that run finishes. An abandoned
//! run leaves them as they were, because records that passed in it may not have been announced.
//!
//! A record is rejected by its id, so one that is read twice and rejected twice is one row, and counts as two records
//! read. Only an answer to [`Run::refetch`] settles it: a record that passes elsewhere in the run is still requested.
//!
//! Everything is limited: ids, kinds of an item type, records that are kept whole and bytes of each. A checkpoint has
//! the ids and the kinds, and the first reason of a kind; it does not have the content of records.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::cut;
use crate::error::{Error, Result};
use crate::model::{
    FINDING_KINDS_MAX, FINDINGS_KEPT, ItemType, Micros, REFETCH_IDS, REJECTED_KEPT_MAX, Safeguard, StreamName,
};

use super::batches::states::count_left_out;
use super::page::{Again, RejectedParts};
use super::rejection::Rejection;
use super::rows::{
    Key, REJECTED, REJECTED_COUNTS, REJECTED_IN_RUN, RejectedCountRow, RejectedFate, RejectedRow, TYPES,
    Table, rejected_of, run_key,
};
use super::run_handle::Run;
use super::tables::{Change, Rows};

/// The stream that counts the refetched records.
const REFETCHED: &str = "@highwater/refetched";
/// The kind that counts all kinds beyond the limit.
const OTHER_KIND: &str = "other";
/// Bytes of reasons that a checkpoint keeps of all rejected records together, and of one of them.
const CHECKPOINT_REASONS_BYTES_MAX: usize = 12 * 1024;
const CHECKPOINT_REASON_BYTES_MAX: usize = 200;

/// A record that is rejected, and that the next run requests again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectedRecord {
    /// Its item type.
    pub item_type: String,
    /// The id with which it is requested.
    pub id: String,
    /// Why it was last rejected. Empty if that is not known: a checkpoint keeps the first reason of each kind.
    pub reason: String,
    /// When it was last rejected.
    pub rejected_at: DateTime<Utc>,
    /// In how many runs it was requested and rejected again.
    pub asked: u32,
}

/// Rejected records by item type and id.
type Records = BTreeMap<(String, String), RejectedRow>;

impl Run {
    /// The records that earlier runs rejected and that this run has not requested yet, by item type and id.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt` or `Io`.
    pub fn rejected(&self) -> Result<Vec<RejectedRecord>> {
        let left = self.look(|rows, _| self.not_asked(rows))?;
        let record = |((item_type, id), row): ((String, String), RejectedRow)| RejectedRecord {
            item_type,
            id,
            reason: row.reason,
            rejected_at: row.rejected_at.to_time(),
            asked: row.asked,
        };
        Ok(left.into_iter().map(record).collect())
    }

    /// The next rejected records to request, of an item type in the scope: one type, and at most [`REFETCH_IDS`] ids.
    pub(crate) fn next_rejected(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Option<(String, Vec<String>)>> {
        let left = self.look(|rows, _| self.not_asked(rows))?;
        let mut left = left.into_keys().filter(|(item_type, _)| wanted(item_type)).peekable();
        let Some((item_type, _)) = left.peek().cloned() else { return Ok(None) };
        let of_type = left.take_while(|(other, _)| *other == item_type);
        Ok(Some((item_type.clone(), of_type.map(|(_, id)| id).take(REFETCH_IDS).collect())))
    }

    /// Records that this run has read so far, and how many of them were rejected.
    pub(crate) fn read_and_rejected(&self) -> Result<(u64, u64)> {
        self.look(|rows, _| {
            let read = rows.all(&TYPES, &self.run_key())?.iter().map(|(_, counts)| counts.read).sum();
            Ok((read, counts(rows, &self.run_key())?.values().sum()))
        })
    }

    fn not_asked(&self, rows: &impl Rows) -> Result<Records> {
        let mut left = records(rows, &REJECTED, &Key::unit(self.unit_no))?;
        for key in records(rows, &REJECTED_IN_RUN, &self.run_key())?.into_keys() {
            left.remove(&key);
        }
        Ok(left)
    }
}

/// The stream that counts the pages of refetched records.
///
/// # Errors
/// None: the name is valid.
pub(crate) fn refetched() -> Result<StreamName> {
    StreamName::new(REFETCHED)
}

/// Refuses an extractor's stream of this name: it would count as exhausted.
///
/// # Errors
/// `Invalid` if it is.
pub(super) fn check_not_ours(stream: &StreamName) -> Result<()> {
    if stream.as_str() != REFETCHED {
        return Ok(());
    }
    let reason = "it counts rejected records that are requested again".to_owned();
    Err(Error::Invalid { what: format!("the stream name {stream}"), reason })
}

/// Stores what a page that is being staged says about rejected records. Returns how many of them it read and left
/// out: records that were requested again count as read if they passed.
pub(super) fn reject(run: &Run, change: &Change<'_>, parts: &RejectedParts) -> Result<u64> {
    let RejectedParts { rejected, again, ids_max } = parts;
    if (rejected.is_empty() && again.is_empty()) || run.inner.breaks(Safeguard::RejectedKept) {
        return rejected
            .iter()
            .try_fold(0, |sum, (item_type, _)| count(run, change, item_type, 1).map(|()| sum + 1));
    }
    let now = Micros::from_time(run.inner.clock.now());
    let of_unit = records(change, &REJECTED, &Key::unit(run.unit_no))?;
    let mut of_run = records(change, &REJECTED_IN_RUN, &run.run_key())?;
    let asked: BTreeSet<_> =
        again.iter().map(|(item_type, id, _)| (item_type.as_str(), id.as_str())).collect();
    let put = |item_type: &ItemType, id: &str, row: &RejectedRow| {
        change.put(&REJECTED_IN_RUN, &run.run_key().and_rejected(item_type.as_str(), id), row)
    };
    for (item_type, id, became) in again {
        let fate = match became {
            Again::Passed => RejectedFate::Passed,
            Again::Gone => RejectedFate::Gone,
            Again::Rejected => continue,
        };
        let key = (item_type.to_string(), id.clone());
        let first = of_unit.get(&key);
        let row = RejectedRow {
            fate,
            run: first.map_or(run.no, |row| row.run),
            rejected_at: first.map_or(now, |row| row.rejected_at),
            asked: first.map_or(0, |row| row.asked),
            kind: String::new(),
            reason: String::new(),
            json: None,
        };
        put(item_type, id, &row)?;
        of_run.insert(key, row);
    }
    // Before anything is done with them: there may be very many.
    let is_asked = |item_type: &ItemType, id: &str| asked.contains(&(item_type.as_str(), id));
    let newest = rejected.iter().rev().find(|(item_type, rejection)| !is_asked(item_type, &rejection.id));
    if let Some((item_type, Rejection { id, reason, .. })) = newest {
        let is_open =
            |key: &&(String, String)| of_run.get(*key).is_none_or(|row| row.fate == RejectedFate::Rejected);
        let open = of_unit.keys().chain(of_run.keys()).filter(is_open);
        let ids: BTreeSet<_> = open
            .map(|(item_type, id)| (item_type.as_str(), id.as_str()))
            .chain(rejected.iter().map(|(item_type, rejection)| (item_type.as_str(), rejection.id.as_str())))
            .collect();
        let found = ids.len() as u64;
        if found > *ids_max {
            return Err(Error::TooManyRejected {
                sync_unit: run.unit.to_string(),
                item_type: item_type.to_string(),
                id: cut::to_chars(id, 80),
                reason: reason.clone(),
                found,
                limit: *ids_max,
            });
        }
    }
    let mut left_out: BTreeMap<&ItemType, u64> = BTreeMap::new();
    for (item_type, rejection) in rejected {
        let was_asked = is_asked(item_type, &rejection.id);
        if !was_asked {
            *left_out.entry(item_type).or_default() += 1;
        }
        let key = (item_type.to_string(), rejection.id.clone());
        // A requested record counts once, however often the page has it.
        let known = if was_asked { None } else { of_run.get(&key) }.or_else(|| of_unit.get(&key));
        let kind = kind_of(&of_run, item_type, &rejection.kind);
        let row = RejectedRow {
            fate: RejectedFate::Rejected,
            run: known.map_or(run.no, |row| row.run),
            rejected_at: now,
            asked: known.map_or(0, |row| row.asked) + u32::from(was_asked),
            json: rejection.json.clone().filter(|_| is_kept(&of_run, item_type, &kind)),
            kind,
            reason: rejection.reason.clone(),
        };
        put(item_type, &rejection.id, &row)?;
        of_run.insert(key, row);
    }
    left_out.iter().try_for_each(|(item_type, items)| count(run, change, item_type, *items))?;
    Ok(left_out.values().sum())
}

/// Counts records of an item type that were read and rejected.
fn count(run: &Run, change: &Change<'_>, item_type: &ItemType, items: u64) -> Result<()> {
    count_left_out(run, change, item_type.as_str(), items)?;
    let key = run.run_key().and_name(item_type.as_str());
    let mut row = change.get(&REJECTED_COUNTS, &key)?.unwrap_or_default();
    row.records += items;
    change.put(&REJECTED_COUNTS, &key, &row)
}

/// The kind that a rejected record is counted under: its own, unless there are too many.
fn kind_of(of_run: &Records, item_type: &ItemType, kind: &str) -> String {
    let of_type = of_run.iter().filter(|((name, _), _)| name == item_type.as_str());
    let kinds: BTreeSet<&str> = of_type.map(|(_, row)| row.kind.as_str()).collect();
    let has_room = kinds.len() < FINDING_KINDS_MAX || kinds.contains(kind);
    if has_room { kind.to_owned() } else { OTHER_KIND.to_owned() }
}

/// Whether another rejected record of a kind is kept whole.
fn is_kept(of_run: &Records, item_type: &ItemType, kind: &str) -> bool {
    let kept = of_run.iter().filter(|(_, row)| row.json.is_some());
    let of_kind = kept.clone().filter(|((name, _), row)| name == item_type.as_str() && row.kind == kind);
    (of_kind.count() as u64) < FINDINGS_KEPT && kept.count() < REJECTED_KEPT_MAX
}

/// Moves the rejected records of a run that is finished to its unit.
pub(super) fn keep(change: &Change<'_>, unit: u64, run: u64) -> Result<()> {
    for ((item_type, id), row) in records(change, &REJECTED_IN_RUN, &run_key(unit, run))? {
        let key = Key::unit(unit).and_rejected(&item_type, &id);
        match row.fate {
            RejectedFate::Rejected => change.put(&REJECTED, &key, &row)?,
            RejectedFate::Passed | RejectedFate::Gone => change.remove(&REJECTED, &key)?,
        }
    }
    Ok(())
}

/// The rejected records of a unit, or of a run.
pub(super) fn records(rows: &impl Rows, table: &Table<RejectedRow>, prefix: &Key) -> Result<Records> {
    let mut records = Records::new();
    rows.scan(table, prefix, prefix, |tail, row| {
        let (item_type, id) = rejected_of(tail)
            .map_err(|error| rows.tables().damaged(table.name, prefix, error.to_string()))?;
        records.insert((item_type.to_owned(), id.to_owned()), row);
        Ok(true)
    })?;
    Ok(records)
}

/// By item type: how many records a run rejected.
pub(super) fn counts(rows: &impl Rows, run: &Key) -> Result<BTreeMap<String, u64>> {
    let rows = rows.by_name(&REJECTED_COUNTS, run)?;
    Ok(rows.into_iter().map(|(name, row)| (name, row.records)).collect())
}

/// The rejected records of a unit, or of a run, in a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RejectedPart {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<KindPart>,
    /// Runs and item types, and how many records of the type the run rejected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    counts: Vec<(u64, String, u64)>,
}

/// Rejected records of one item type and kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KindPart {
    item_type: String,
    fate: RejectedFate,
    kind: String,
    /// The reason of the first of them, if there is room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// For each: its id, the run that first rejected it, when it was last rejected, and in how many runs it was
    /// requested.
    ids: Vec<(String, u64, Micros, u32)>,
}

impl RejectedPart {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The part of a position: the run's.
pub(super) fn part_of_run(rows: &impl Rows, run: &Key) -> Result<RejectedPart> {
    let kinds = kind_parts(rows, &REJECTED_IN_RUN, run)?;
    let counts = counts(rows, run)?.into_iter().map(|(item_type, records)| (0, item_type, records));
    Ok(RejectedPart { kinds, counts: counts.collect() })
}

/// The part of a unit: what finished runs left, and the counts of these runs.
pub(super) fn part_of_unit(rows: &impl Rows, unit: u64, runs: &[u64]) -> Result<RejectedPart> {
    let kinds = kind_parts(rows, &REJECTED, &Key::unit(unit))?;
    let mut of_runs = Vec::new();
    for &run in runs {
        let counts = counts(rows, &run_key(unit, run))?;
        of_runs.extend(counts.into_iter().map(|(item_type, records)| (run, item_type, records)));
    }
    Ok(RejectedPart { kinds, counts: of_runs })
}

fn kind_parts(rows: &impl Rows, table: &Table<RejectedRow>, prefix: &Key) -> Result<Vec<KindPart>> {
    let mut parts: BTreeMap<(String, RejectedFate, String), KindPart> = BTreeMap::new();
    let mut room = CHECKPOINT_REASONS_BYTES_MAX;
    for ((item_type, id), row) in records(rows, table, prefix)? {
        let RejectedRow { fate, kind, reason, run, rejected_at, asked, .. } = row;
        let part = parts.entry((item_type, fate, kind)).or_insert_with_key(|(item_type, fate, kind)| {
            let reason = Some(cut::to_bytes(&reason, CHECKPOINT_REASON_BYTES_MAX));
            let reason = reason.filter(|reason| !reason.is_empty() && reason.len() <= room);
            room -= reason.as_ref().map_or(0, String::len);
            KindPart {
                item_type: item_type.clone(),
                fate: *fate,
                kind: kind.clone(),
                reason,
                ids: Vec::new(),
            }
        });
        part.ids.push((id, run, rejected_at, asked));
    }
    Ok(parts.into_values().collect())
}

/// Restores what a checkpoint holds of a unit.
pub(super) fn restore_unit(change: &Change<'_>, unit: u64, part: &RejectedPart) -> Result<()> {
    restore_kinds(change, &REJECTED, &Key::unit(unit), &part.kinds)?;
    for (run, item_type, records) in &part.counts {
        put_count(change, &run_key(unit, *run), item_type, *records)?;
    }
    Ok(())
}

/// Restores what a checkpoint holds of the run at its position.
pub(super) fn restore_run(change: &Change<'_>, unit: u64, run: u64, part: &RejectedPart) -> Result<()> {
    let key = run_key(unit, run);
    restore_kinds(change, &REJECTED_IN_RUN, &key, &part.kinds)?;
    part.counts.iter().try_for_each(|(_, item_type, records)| put_count(change, &key, item_type, *records))
}

fn restore_kinds(
    change: &Change<'_>,
    table: &Table<RejectedRow>,
    prefix: &Key,
    parts: &[KindPart],
) -> Result<()> {
    for part in parts {
        let mut reason = part.reason.clone();
        for (id, run, rejected_at, asked) in &part.ids {
            let row = RejectedRow {
                fate: part.fate,
                run: *run,
                rejected_at: *rejected_at,
                asked: *asked,
                kind: part.kind.clone(),
                reason: reason.take().unwrap_or_default(),
                json: None,
            };
            change.put(table, &prefix.clone().and_rejected(&part.item_type, id), &row)?;
        }
    }
    Ok(())
}

fn put_count(change: &Change<'_>, run: &Key, item_type: &str, records: u64) -> Result<()> {
    change.put(&REJECTED_COUNTS, &run.clone().and_name(item_type), &RejectedCountRow { records })
}
