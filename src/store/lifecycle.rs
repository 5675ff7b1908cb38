//! The life of a run: begun, resumed, finished or abandoned.
//!
//! # What a crash leaves
//!
//! Every line is one transaction; a kill leaves the store as it was before it or after it. In `serve`, one transaction has
//! the lines *uploaded*, *confirmed* and *given up* of all batches that ended since the one before. The modules
//! `conversation` and `attachments` have tables like this for theirs.
//!
//! | step | what it stores | what the next life does if the process is killed right after it |
//! | --- | --- | --- |
//! | `begin` | the run, its start, `since`; the raised epoch | resumes the run: same start, same `since`; older lives are fenced |
//! | stage | a page's lines, closed batches, the cursor after it, bookmark, values | goes on with the page after it |
//! | close | open lines as batches | uploads them |
//! | uploaded | the artifact id of a batch | confirms that id, uploads nothing |
//! | confirmed | that the platform has linked it to the run | announces it |
//! | given up | that the id was refused for good | uploads the batch again |
//! | acknowledge | the batch is removed and counted | never yields it again |
//! | finish | watermark, bookmarks, rejected ids, records at the edge, a ledger row; the run's rows are removed | begins a new run, from the new watermark |

use crate::error::Result;
use crate::model::{CLOCK_AHEAD_MAX, LEDGER_RUNS_MAX, Micros, Phase, Phases, RunId, Safeguard};

use super::attachments::queue::{check_attachments, drop_queue, remove_attachments};
use super::child_listings::{check_none_pending, remove_children};
use super::deaths::{is_unanswered, note_death};
use super::digest::KnownId;
use super::edge;
use super::findings::sums;
use super::kept::{acts_of, keep_last_cursors, keep_standing, remove_kept};
use super::most_read;
use super::notes::{drop_notes, start_is_unknown};
use super::open::SyncUnit;
use super::rejected;
use super::rows::{
    ACTS, Activity, BATCHES, BOOKMARKS, BookmarkRow, CHUNKS, DEATHS, EDGE, EDGE_COUNTS, EDGE_OF, EVENTS,
    FINDINGS, Key, LEDGER, LedgerRow, LedgerType, MESSAGES, MOST_READ, ONCE, ONCE_COUNTS, PAST, PAYLOADS,
    POSITIONS, PastRow, REJECTED, REJECTED_COUNTS, REJECTED_IN_RUN, RUN_IDS, RUNS, RunIdRow, RunRow,
    RunStatus, STREAMS, TYPES, UNITS, USED, USED_NEWEST, UnitRow, VALUES, message_key, name_of, number_of,
    run_key,
};
use super::run_handle::{Run, find_by_id};
use super::tables::{Change, Rows, Tables};

/// The most run ids, and deletions, of a unit that outlive its state.
pub(super) const PAST_MAX: usize = 64;

/// An event that asks for a deletion, as far as a store needs to know it.
#[derive(Debug, Clone)]
pub(crate) struct Deletion {
    /// The same for the same event, however often it is delivered.
    pub(crate) identity: String,
    /// Whether the identity distinguishes it from other deletions: it holds an id of the event, or of a run.
    pub(crate) told_apart: bool,
    pub(crate) run_id: Option<RunId>,
}

impl SyncUnit {
    /// Begins a run, or resumes the one that is not finished.
    ///
    /// A resumed run keeps its start and its [`Run::since`]. Any [`Run`] of an earlier `begin` is fenced: its methods
    /// fail with [`Error::Fenced`](crate::Error::Fenced) and change nothing.
    ///
    /// # Durability
    /// When this returns `Ok`, the run and its start survive power loss.
    ///
    /// # Errors
    /// `Corrupt` or `Io`; nothing was begun.
    pub fn begin(&self) -> Result<Run> {
        self.inner.tables.change(|change| {
            let mut unit = get_or_create(self, change)?;
            let run = match current_run(change, &unit)? {
                Some((no, mut row)) if row.status == RunStatus::Open => {
                    note_death(change, &run_key(unit.no, no), &mut row, self.now())?;
                    row.epoch += 1;
                    change.put(&RUNS, &run_key(unit.no, no), &row)?;
                    Run::new(self, unit.no, no, &row, true)?
                }
                _ => {
                    let (no, row) = new_run(self, change, &mut unit, None, false)?;
                    Run::new(self, unit.no, no, &row, false)?
                }
            };
            Ok(run)
        })
    }

    /// Abandons the unfinished run. Returns whether there was one.
    ///
    /// What the run had staged is dropped. The watermark stays, so the next run fetches it again.
    ///
    /// # Durability
    /// When this returns `Ok`, the run stays abandoned after a power loss.
    ///
    /// # Errors
    /// `Corrupt` or `Io`; nothing was changed.
    pub fn abandon(&self) -> Result<bool> {
        self.inner.tables.change(|change| {
            let Some(mut unit) = change.get(&UNITS, &self.key())? else { return Ok(false) };
            match current_run(change, &unit)? {
                Some((no, mut row)) if row.status == RunStatus::Open => {
                    close_run(change, &mut unit, no, &mut row, RunStatus::Abandoned, self.now())?;
                    change.put(&RUNS, &run_key(unit.no, no), &row)?;
                    change.put(&UNITS, &self.key(), &unit)?;
                    Ok(true)
                }
                _ => Ok(false),
            }
        })
    }

    /// Deletes the state of the unit: runs, watermark, bookmarks, values, ledger. Deleting twice is the same as once.
    /// The ids of its last 64 runs and the last 64 events that asked for a deletion are kept, so that a late event is
    /// recognised.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
    ///
    /// # Errors
    /// `Corrupt` or `Io`; nothing was changed.
    pub fn delete(&self) -> Result<()> {
        self.inner.tables.change(|change| self.delete_in(change))
    }

    /// Like [`SyncUnit::delete`], because this event asked for it.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss, and the event [came late](SyncUnit::came_late) from now on.
    pub(crate) fn delete_for(&self, deletion: &Deletion) -> Result<()> {
        self.inner.tables.change(|change| {
            self.delete_in(change)?;
            self.keep_deletion(change, deletion)
        })
    }

    /// Forgets everything known about the unit's attachments, because this event asked for it.
    ///
    /// # Durability
    /// That of [`SyncUnit::delete_for`].
    pub(crate) fn delete_attachments_for(&self, deletion: &Deletion) -> Result<()> {
        self.inner.tables.change(|change| {
            self.delete_attachments_in(change)?;
            self.keep_deletion(change, deletion)
        })
    }

    /// Forgets everything known about the unit's attachments. Doing it twice is the same as once.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
    pub(crate) fn delete_attachments(&self) -> Result<()> {
        self.inner.tables.change(|change| self.delete_attachments_in(change))
    }

    /// Forgets the unit as if it had never been here, with its past runs and deletions: the platform's state counts.
    pub(super) fn discard(&self, change: &Change<'_>) -> Result<()> {
        self.delete_in(change)?;
        change.remove_all(&ACTS, &acts_of(self.id.as_str()))?;
        change.remove(&PAST, &self.key())
    }

    /// Whether an event that asks for a deletion has done so before, or belongs to a past run. Then it changes
    /// nothing.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub(crate) fn came_late(&self, deletion: &Deletion) -> Result<bool> {
        if self.inner.breaks(Safeguard::DeletedOnce) {
            return Ok(false);
        }
        self.inner.tables.view(|rows| {
            let past = self.past(rows)?;
            if deletion.told_apart && past.deletions.iter().any(|other| other.is(&deletion.identity, 0)) {
                return Ok(true);
            }
            let Some(id) = &deletion.run_id else { return Ok(false) };
            match rows.get(&UNITS, &self.key())? {
                Some(unit) => match find_run_id(rows, unit.no, id.as_str())?.1 {
                    Some(known) => Ok(unit.run != Some(known.run)),
                    None => self.is_past_run(rows, id),
                },
                None => self.is_past_run(rows, id),
            }
        })
    }

    /// Whether a run with this id was among the last 64 when the unit's state was deleted. A newer run of the unit
    /// may have the same id.
    pub(super) fn is_past_run(&self, rows: &impl Rows, id: &RunId) -> Result<bool> {
        Ok(self.past(rows)?.run_ids.iter().any(|other| other.is(id.as_str(), 0)))
    }

    /// What outlived the deletions of the unit's state.
    pub(super) fn past(&self, rows: &impl Rows) -> Result<PastRow> {
        Ok(rows.get(&PAST, &self.key())?.unwrap_or_default())
    }

    /// What a deletion of the unit's state would leave: the ids of its runs, and the deletions.
    pub(super) fn past_with_runs(&self, rows: &impl Rows) -> Result<PastRow> {
        let mut past = self.past(rows)?;
        let Some(unit) = rows.get(&UNITS, &self.key())? else { return Ok(past) };
        let prefix = Key::unit(unit.no);
        let mut runs = Vec::new();
        for (tail, row) in rows.all(&RUN_IDS, &prefix)? {
            let number = number_of(&tail)
                .map_err(|error| self.inner.tables.damaged(RUN_IDS.name, &prefix, error.to_string()))?;
            runs.push((row.run, row.id.without_number(number)));
        }
        runs.sort_unstable_by_key(|(run, _)| *run);
        for (_, id) in runs {
            keep_newest(&mut past.run_ids, id);
        }
        Ok(past)
    }

    fn keep_deletion(&self, change: &Change<'_>, deletion: &Deletion) -> Result<()> {
        if !deletion.told_apart {
            return Ok(());
        }
        let mut past = self.past(change)?;
        keep_deletion(&mut past, deletion);
        change.put(&PAST, &self.key(), &past)
    }

    pub(super) fn delete_in(&self, change: &Change<'_>) -> Result<()> {
        let Some(unit) = change.get(&UNITS, &self.key())? else { return Ok(()) };
        let prefix = Key::unit(unit.no);
        let past = self.past_with_runs(change)?;
        if past != PastRow::default() {
            change.put(&PAST, &self.key(), &past)?;
        }
        change.remove_all(&RUNS, &prefix)?;
        change.remove_all(&RUN_IDS, &prefix)?;
        change.remove_all(&STREAMS, &prefix)?;
        remove_children(change, &prefix)?;
        change.remove_all(&TYPES, &prefix)?;
        change.remove_all(&CHUNKS, &prefix)?;
        change.remove_all(&BATCHES, &prefix)?;
        change.remove_all(&PAYLOADS, &prefix)?;
        change.remove_all(&BOOKMARKS, &prefix)?;
        change.remove_all(&VALUES, &prefix)?;
        change.remove_all(&EVENTS, &prefix)?;
        change.remove_all(&DEATHS, &prefix)?;
        change.remove_all(&MESSAGES, &prefix)?;
        change.remove_all(&LEDGER, &prefix)?;
        change.remove_all(&FINDINGS, &prefix)?;
        change.remove_all(&REJECTED, &prefix)?;
        change.remove_all(&REJECTED_IN_RUN, &prefix)?;
        change.remove_all(&REJECTED_COUNTS, &prefix)?;
        change.remove_all(&ONCE, &prefix)?;
        change.remove_all(&ONCE_COUNTS, &prefix)?;
        change.remove_all(&EDGE, &prefix)?;
        change.remove(&EDGE_OF, &prefix)?;
        change.remove_all(&EDGE_COUNTS, &prefix)?;
        change.remove_all(&USED, &prefix)?;
        change.remove_all(&USED_NEWEST, &prefix)?;
        change.remove_all(&POSITIONS, &prefix)?;
        change.remove_all(&MOST_READ, &prefix)?;
        remove_kept(change, &prefix)?;
        remove_attachments(change, &prefix)?;
        change.remove(&UNITS, &self.key())
    }

    /// The newest run, over or not, in its last life.
    pub(crate) fn newest_run(&self) -> Result<Option<Run>> {
        let newest = self.inner.tables.view(|rows| {
            let Some(unit) = rows.get(&UNITS, &self.key())? else { return Ok(None) };
            let Some(no) = unit.run else { return Ok(None) };
            let row = rows.need(&RUNS, &run_key(unit.no, no))?;
            Ok(Some((unit, no, row)))
        })?;
        newest.map(|(unit, no, row)| Run::new(self, unit.no, no, &row, true)).transpose()
    }
}

impl Run {
    /// Finishes the run: everything that was there when it started has been extracted.
    ///
    /// # Durability
    /// When this returns `Ok`, the watermark (the start of this run, or now if the clock stepped back behind it) and
    /// the bookmarks survive power loss, and the next `begin` starts a new run.
    ///
    /// # Errors
    /// `Unfinished` if a stream of this run is not exhausted (also one whose first page could not be fetched), a batch
    /// is not acknowledged, or an attachment is neither settled nor given up; `Fenced`; `Corrupt` or `Io`. The run
    /// stays open.
    pub fn finish(self) -> Result<()> {
        self.change(|change, row| {
            check_exhausted(&self, change, None)?;
            if row.open_batches > 0 {
                return Err(self.unfinished(format!("{} batches are not acknowledged", row.open_batches)));
            }
            check_balance(&self, change)?;
            check_attachments(&self, change)?;
            let mut unit = change.need(&UNITS, &Key::name(self.unit.as_str()))?;
            let now = Micros::from_time(self.inner.clock.now());
            close_run(change, &mut unit, self.no, row, RunStatus::Finished, now)?;
            change.put(&UNITS, &Key::name(self.unit.as_str()), &unit)
        })
    }
}

pub(super) fn get_or_create(sync_unit: &SyncUnit, change: &Change<'_>) -> Result<UnitRow> {
    if let Some(unit) = change.get(&UNITS, &sync_unit.key())? {
        return Ok(unit);
    }
    let unit = new_unit(Tables::new_unit_no(change)?, sync_unit.now());
    change.put(&UNITS, &sync_unit.key(), &unit)?;
    Ok(unit)
}

/// A unit of which nothing is known yet.
pub(super) fn new_unit(no: u64, created_at: Micros) -> UnitRow {
    UnitRow {
        no,
        created_at,
        run: None,
        next_run: 1,
        next_message: 1,
        watermark: None,
        bounds: (None, None),
        holder: (None, None),
        inherited: None,
        connector_version: None,
    }
}

/// Begins a run; it replaces the unfinished one if there is one.
pub(super) fn new_run(
    sync_unit: &SyncUnit,
    change: &Change<'_>,
    unit: &mut UnitRow,
    id: Option<&RunId>,
    lost: bool,
) -> Result<(u64, RunRow)> {
    let now = sync_unit.now();
    if let Some((no, mut old)) = current_run(change, unit)? {
        if old.status == RunStatus::Open {
            if sync_unit.inner.breaks(Safeguard::AbandonedLeavesWatermark) {
                unit.watermark = Some(old.started_at);
            }
            close_run(change, unit, no, &mut old, RunStatus::Abandoned, now)?;
        }
        change.remove(&RUNS, &run_key(unit.no, no))?;
    }
    let no = unit.next_run;
    unit.next_run += 1;
    unit.run = Some(no);
    let id = match id {
        Some(id) => id.to_string(),
        None => unused_run_id(change, unit, now)?,
    };
    let since = usable_watermark(change, unit, now)?;
    let row = RunRow {
        id: id.clone(),
        status: RunStatus::Open,
        started_at: now,
        ended_at: None,
        since: since.map(|since| since.minus(sync_unit.inner.settings.overlap)),
        since_ignored: unit.watermark.filter(|_| since != unit.watermark),
        window: None,
        epoch: 1,
        lost,
        phase: None,
        done: Phases::default(),
        pages: 0,
        next_seq: 1,
        next_chunk: 1,
        open_batches: 0,
        not_before: None,
        progress: None,
        events: 0,
        event: None,
        events_reused: 0,
        first_message: unit.next_message,
        message: None,
        artifacts_max: None,
        activity: Activity { changed_at: Some(now), deaths: 0 },
    };
    let (number, _) = find_run_id(change, unit.no, &id)?;
    change.put(
        &RUN_IDS,
        &Key::unit(unit.no).and_number(number),
        &RunIdRow { run: no, id: KnownId::Whole(id) },
    )?;
    change.put(&RUNS, &run_key(unit.no, no), &row)?;
    change.put(&UNITS, &sync_unit.key(), unit)?;
    Ok((no, row))
}

/// The newest run of a unit.
pub(super) fn current_run(rows: &impl Rows, unit: &UnitRow) -> Result<Option<(u64, RunRow)>> {
    match unit.run {
        Some(no) => Ok(Some((no, rows.need(&RUNS, &run_key(unit.no, no))?))),
        None => Ok(None),
    }
}

/// Appends an item unless it is there; keeps the newest [`PAST_MAX`].
fn keep_newest(kept: &mut Vec<KnownId>, new: KnownId) {
    if kept.contains(&new) {
        return;
    }
    kept.push(new);
    kept.drain(..kept.len().saturating_sub(PAST_MAX));
}

/// Adds a deletion to those that are kept.
pub(super) fn keep_deletion(past: &mut PastRow, deletion: &Deletion) {
    if deletion.told_apart && !past.deletions.iter().any(|other| other.is(&deletion.identity, 0)) {
        keep_newest(&mut past.deletions, KnownId::Whole(deletion.identity.clone()));
    }
}

/// The run of a unit that has an id, and the number of its row, or of the first free one.
pub(super) fn find_run_id(rows: &impl Rows, unit: u64, id: &str) -> Result<(u64, Option<RunIdRow>)> {
    find_by_id(rows, &RUN_IDS, &Key::unit(unit), id, |row| &row.id)
}

/// A run id made from the start time, different from all that the unit has had.
fn unused_run_id(change: &Change<'_>, unit: &UnitRow, now: Micros) -> Result<String> {
    let base = now.to_time().format("%Y%m%dT%H%M%S%.6fZ").to_string();
    let mut id = base.clone();
    let mut tries = 1_u64;
    while find_run_id(change, unit.no, &id)?.1.is_some() {
        tries += 1;
        id = format!("{base}-{tries}");
    }
    Ok(id)
}

/// The unit's watermark, unless it lies too far in the future: then the latest one in the ledger that is past.
pub(super) fn usable_watermark(rows: &impl Rows, unit: &UnitRow, now: Micros) -> Result<Option<Micros>> {
    match unit.watermark {
        Some(watermark) if watermark > now.plus(CLOCK_AHEAD_MAX) => {
            let ledger = rows.all(&LEDGER, &Key::unit(unit.no))?;
            Ok(ledger.into_iter().filter_map(|(_, row)| row.watermark).filter(|&past| past <= now).max())
        }
        watermark => Ok(watermark),
    }
}

/// Ends a run: a finished one moves the watermark and the bookmarks, and either leaves a row in the ledger. What only
/// an open run needs is dropped. Its events and messages stay until the next run ends.
pub(super) fn close_run(
    change: &Change<'_>,
    unit: &mut UnitRow,
    no: u64,
    row: &mut RunRow,
    status: RunStatus,
    now: Micros,
) -> Result<()> {
    assert!(row.status == RunStatus::Open, "a run ends once");
    let finished = status == RunStatus::Finished;
    if !finished && is_unanswered(row) {
        note_death(change, &run_key(unit.no, no), row, now)?;
    }
    let watermark = if finished { vouch(change, unit, no, row, now)? } else { None };
    if finished {
        rejected::keep(change, unit.no, no)?;
        edge::keep(change, unit, no)?;
    } else {
        change.remove_all(&EDGE, &run_key(unit.no, no))?;
    }
    let run = run_key(unit.no, no);
    let (mut types, mut bytes) = (Vec::new(), Vec::new());
    for (name, counts) in change.all(&TYPES, &run)? {
        types.push(LedgerType {
            item_type: String::from_utf8_lossy(&name).into_owned(),
            read: counts.read,
            left_out: counts.left_out,
            announced: counts.announced,
            artifacts: counts.artifacts_announced,
        });
        bytes.push(counts.announced_bytes);
    }
    let findings = sums(change, &run)?;
    let entry = LedgerRow {
        id: row.id.clone(),
        status,
        started_at: row.started_at,
        ended_at: now,
        since: row.since,
        watermark,
        epochs: row.epoch,
        pages: row.pages,
        events: row.events,
        events_reused: row.events_reused,
        errors: findings.errors,
        warnings: findings.warnings,
        types,
        attachments: drop_queue(change, &run, finished)?,
        deaths: row.activity.deaths,
        bytes,
    };
    change.put(&LEDGER, &run_key(unit.no, no), &entry)?;
    if let Some(old) = no.checked_sub(LEDGER_RUNS_MAX) {
        change.remove(&LEDGER, &run_key(unit.no, old))?;
        change.remove_all(&REJECTED_COUNTS, &run_key(unit.no, old))?;
        change.remove_all(&ONCE_COUNTS, &run_key(unit.no, old))?;
        change.remove_all(&EDGE_COUNTS, &run_key(unit.no, old))?;
    }
    keep_last_cursors(change, unit.no, no)?;
    drop_rows(change, &run)?;
    drop_notes(change, unit.no)?;
    change.remove_range(&EVENTS, &Key::unit(unit.no), &run)?;
    change.remove_range(&DEATHS, &Key::unit(unit.no), &run)?;
    change.remove_range(&MESSAGES, &Key::unit(unit.no), &message_key(unit.no, row.first_message))?;
    row.status = status;
    row.ended_at = Some(now);
    Ok(())
}

/// Moves the watermark, the bounds and the bookmarks to where a finished run leaves them; returns its watermark.
fn vouch(
    change: &Change<'_>,
    unit: &mut UnitRow,
    no: u64,
    row: &RunRow,
    now: Micros,
) -> Result<Option<Micros>> {
    // A run that other software began has no watermark if its start is not known.
    if !start_is_unknown(change, unit.no)? {
        unit.watermark = Some(row.started_at.min(now));
    }
    if let Some(window) = row.window {
        let (oldest, newest) = unit.bounds;
        // A window without a beginning reaches back to the start of time.
        let from = window.from.unwrap_or(Micros(0));
        unit.bounds =
            (Some(oldest.unwrap_or(from).min(from)), Some(newest.unwrap_or(window.to).max(window.to)));
    }
    let run = run_key(unit.no, no);
    for (name, stream) in change.all(&STREAMS, &run)? {
        let name =
            name_of(&name).map_err(|error| change.tables().damaged(STREAMS.name, &run, error.to_string()))?;
        most_read::keep(change, unit.no, name, &stream)?;
        if let Some(json) = stream.bookmark {
            change.put(&BOOKMARKS, &Key::unit(unit.no).and_name(name), &BookmarkRow { json, run: no })?;
        }
    }
    keep_standing(change, unit, no)?;
    Ok(unit.watermark)
}

/// Drops what only an open run needs, except its attachments.
fn drop_rows(change: &Change<'_>, run: &Key) -> Result<()> {
    change.remove_all(&STREAMS, run)?;
    remove_children(change, run)?;
    change.remove_all(&TYPES, run)?;
    change.remove_all(&CHUNKS, run)?;
    change.remove_all(&BATCHES, run)?;
    change.remove_all(&PAYLOADS, run)?;
    change.remove_all(&FINDINGS, run)?;
    change.remove_all(&REJECTED_IN_RUN, run)?;
    change.remove_all(&ONCE, run)?;
    change.remove_all(&USED, run)?;
    change.remove(&USED_NEWEST, run)?;
    change.remove(&POSITIONS, run)
}

/// Fails unless every stream that was begun, of one phase or all, has returned its last page.
pub(super) fn check_exhausted(run: &Run, change: &Change<'_>, phase: Option<Phase>) -> Result<()> {
    for (name, stream) in change.all(&STREAMS, &run.run_key())? {
        if !stream.exhausted && phase.is_none_or(|phase| stream.phase == phase) {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(run.unfinished(format!("stream {name} is not exhausted")));
        }
    }
    if phase.is_none_or(|phase| phase == Phase::Data) { check_none_pending(run, change) } else { Ok(()) }
}

/// Fails unless every record that was read was confirmed and announced.
pub(super) fn check_balance(run: &Run, change: &Change<'_>) -> Result<()> {
    for (name, counts) in change.all(&TYPES, &run.run_key())? {
        let staged = counts.read.saturating_sub(counts.left_out);
        if staged != counts.batched || staged != counts.confirmed || staged != counts.announced {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(run.unfinished(format!(
                "of {} {name} read, {} were left out, {} are in batches, {} confirmed and {} announced",
                counts.read, counts.left_out, counts.batched, counts.confirmed, counts.announced
            )));
        }
    }
    Ok(())
}
