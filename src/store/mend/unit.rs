//! The acts on one unit: a function that changes nothing plans each of them from the rows; one transaction plans it
//! again and carries it out.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::cut;
use crate::error::{Error, Result};
use crate::model::{CURSOR_BYTES_MAX, Micros, Phase, RESERVED_VALUE_PREFIX, StreamName, SyncUnitId};
use crate::record::Attachment;

use super::super::attachments::queue::GroupSize;
use super::super::inspect::{Reasons, Snapshot, count};
use super::super::lifecycle::{close_run, current_run, usable_watermark};
use super::super::open::{Store, SyncUnit};
use super::super::rows::{
    ActRow, BATCHES, BOOKMARKS, BatchState, BookmarkRow, FAILED, FailedRow, Json, Key, LEDGER, LedgerRow,
    MESSAGES, MOST_READ, MessageFate, MessageRow, NEXT_CURSORS, NextCursorRow, QUEUES, REJECTED, REQUEUED,
    REWOUND, RUNS, RewoundRow, Row, RunRow, RunStatus, SEEN, SEEN_BY_HASH, STREAMS, TYPES, Table, UNITS,
    UnitRow, VALUES, message_key, name_of, number_of, run_key,
};
use super::super::tables::{Change, Rows};

use super::super::kept::STANDINGS_MAX;
use super::left::{acts_by_unit, keep_act, last_cursor, standing};
use super::plan::{
    Act, Mend, NextRun, NextStream, Plan, PlannedChange, Requeue, RewindTo, SHOWN_CHARS, changed_since,
    invalid, shown, shown_json, some_of, value,
};
use super::shape::same_shape;

/// The most reasons that a plan to queue attachments again lists.
const REASONS_MAX: usize = 20;

impl Store {
    /// Plans an act. Nothing is changed.
    ///
    /// # Errors
    /// `Invalid`, with what to do instead: there is no such unit, its state is kept with the platform, there is no
    /// such run or it was not finished, or a cursor is not JSON or has another shape; `Corrupt`, `Io`.
    pub fn plan(&self, sync_unit: &str, mend: &Mend) -> Result<Plan> {
        let id = SyncUnitId::new(sync_unit)?;
        let now = Micros::from_time(self.clock().now());
        self.inner.tables.view(|rows| plan_act(rows, &id, mend, now))
    }

    /// Carries out a plan. `by`: who does it, for the list of acts, cut to 200 characters.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss. It is one transaction: a kill leaves all of it or nothing.
    ///
    /// # Errors
    /// `Invalid` if the store has changed since the plan was made; `Corrupt`, `Io`. Nothing was changed.
    pub fn mend(&self, plan: &Plan, by: &str) -> Result<()> {
        let unit = self.any_unit(SyncUnitId::new(plan.sync_unit.as_str())?);
        let now = unit.now();
        self.inner.tables.change(|change| {
            let Some(mend) = &plan.mend else {
                return Err(invalid(
                    format!("the plan to {}", plan.act),
                    "it needs its file: `Store::import`".to_owned(),
                ));
            };
            if plan_act(change, &unit.id, mend, now)? != *plan {
                return Err(changed_since(plan));
            }
            if plan.changes.is_empty() {
                return Ok(());
            }
            carry_out(&unit, change, mend)?;
            note(change, plan, by, now)
        })
    }
}

impl Snapshot {
    /// Plans an act on a snapshot, like [`Store::plan`].
    ///
    /// # Errors
    /// Those of [`Store::plan`] and of [`Snapshot::open`].
    pub fn plan(&mut self, sync_unit: &str, mend: &Mend, now: DateTime<Utc>) -> Result<Plan> {
        let id = SyncUnitId::new(sync_unit)?;
        self.look(|rows| plan_act(rows, &id, mend, Micros::from_time(now)))
    }
}

impl Store {
    /// What operators did, the oldest first: to one unit, or to all units and the store.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub fn acts(&self, sync_unit: Option<&str>) -> Result<Vec<Act>> {
        self.inner.tables.view(|rows| acts(rows, sync_unit))
    }
}

impl Snapshot {
    /// What operators did, like [`Store::acts`].
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn acts(&mut self, sync_unit: Option<&str>) -> Result<Vec<Act>> {
        self.look(|rows| acts(rows, sync_unit))
    }
}

fn acts(rows: &impl Rows, sync_unit: Option<&str>) -> Result<Vec<Act>> {
    let mut rows = acts_by_unit(rows, sync_unit)?;
    rows.sort_by_key(|(_, row)| row.at);
    let acts = rows.into_iter().map(|(unit, row)| Act {
        sync_unit: Some(unit).filter(|unit| !unit.is_empty()),
        at: row.at.to_time(),
        by: row.by,
        act: row.act,
        changes: row.changes,
    });
    Ok(acts.collect())
}

/// Records what was done.
pub(super) fn note(change: &Change<'_>, plan: &Plan, by: &str, at: Micros) -> Result<()> {
    let changes = plan.changes.iter().map(|change| cut::to_chars(&change.to_string(), 300)).collect();
    keep_act(change, &plan.sync_unit, &ActRow { at, by: by.to_owned(), act: plan.act.clone(), changes })
}

/// A unit to mend, and what is known of it.
pub(super) struct Known<'a, R> {
    rows: &'a R,
    id: &'a SyncUnitId,
    pub(super) unit: UnitRow,
    /// The newest run, if it is open.
    pub(super) open: Option<(u64, RunRow)>,
    now: Micros,
}

fn plan_act<R: Rows>(rows: &R, id: &SyncUnitId, mend: &Mend, now: Micros) -> Result<Plan> {
    let known = Known::find(rows, id, now)?;
    let mut plan = Plan {
        sync_unit: id.to_string(),
        act: String::new(),
        changes: Vec::new(),
        next_run: None,
        notes: Vec::new(),
        mend: Some(mend.clone()),
    };
    match mend {
        Mend::Rewind { to } => known.plan_rewind(to, &mut plan)?,
        Mend::SetCursor { stream, cursor, force } => {
            known.plan_cursor(stream, cursor, *force, &mut plan)?;
        }
        Mend::Reset { keep_attachments, drop_values } => {
            known.plan_reset(*keep_attachments, *drop_values, &mut plan)?;
        }
        Mend::Requeue(which) => known.plan_requeue(which, &mut plan)?,
        Mend::Abandon => known.plan_abandon(&mut plan)?,
        Mend::Forget => known.plan_forget(&mut plan)?,
    }
    Ok(plan)
}

impl<'a, R: Rows> Known<'a, R> {
    /// Finds a unit that may be mended in this store.
    pub(super) fn find(rows: &'a R, id: &'a SyncUnitId, now: Micros) -> Result<Self> {
        let store = rows.tables().path().display();
        let Some(unit) = rows.get(&UNITS, &Key::name(id.as_str()))? else {
            return Err(invalid(format!("mending {:?}", id.as_str()), format!("{store} has no such unit")));
        };
        if unit.holder != (None, None) {
            let reason = "its state is kept with the platform, which would overwrite this copy: fetch its \
                          worker state, mend that as a file, and put it back";
            return Err(invalid(format!("mending {:?} in {store}", id.as_str()), reason.to_owned()));
        }
        let open = current_run(rows, &unit)?.filter(|(_, row)| row.status == RunStatus::Open);
        Ok(Self { rows, id, unit, open, now })
    }

    fn prefix(&self) -> Key {
        Key::unit(self.unit.no)
    }

    fn text(&self, name: &[u8]) -> Result<String> {
        let damaged =
            |error: String| self.rows.tables().damaged("of names", &Key::name(self.id.as_str()), error);
        name_of(name).map(str::to_owned).map_err(|error| damaged(error.to_string()))
    }

    /// Bookmarks, as JSON texts by stream.
    fn bookmarks(&self) -> Result<BTreeMap<String, String>> {
        let rows = self.rows.all(&BOOKMARKS, &self.prefix())?;
        rows.into_iter().map(|(name, row)| Ok((self.text(&name)?, row.json))).collect()
    }

    /// The cursors with which streams begin, as JSON texts.
    fn next_cursors(&self) -> Result<BTreeMap<String, String>> {
        let rows = self.rows.all(&NEXT_CURSORS, &self.prefix())?;
        rows.into_iter().map(|(name, row)| Ok((self.text(&name)?, row.json))).collect()
    }

    fn count<T: Row>(&self, table: &Table<T>) -> Result<u64> {
        let mut rows = 0;
        self.rows.scan_raw(table.name, &self.prefix(), |_, _| {
            rows += 1;
            Ok(())
        })?;
        Ok(rows)
    }

    /// What the next run asks for if the unit is in this state.
    fn next_run(
        &self,
        unit: &UnitRow,
        bookmarks: &BTreeMap<String, String>,
        cursors: &BTreeMap<String, String>,
        requeued: u64,
    ) -> Result<NextRun> {
        let since = usable_watermark(self.rows, unit, self.now)?;
        let streams: BTreeSet<&String> = bookmarks.keys().chain(cursors.keys()).collect();
        let streams = streams.into_iter().map(|stream| NextStream {
            stream: stream.clone(),
            bookmark: bookmarks.get(stream).map(|json| value(json)),
            cursor: cursors.get(stream).map(|json| value(json)),
        });
        Ok(NextRun {
            since: since.map(Micros::to_time),
            streams: streams.collect(),
            attachments_requeued: self.count(&REQUEUED)? + requeued,
            rejected: self.count(&REJECTED)?,
            read_since: BTreeMap::new(),
        })
    }

    /// Plans to abandon the open run, if there is one. `goes_on`: the next run of this unit makes up for it; after an
    /// import, what the next run does depends on the file.
    pub(super) fn plan_end_of_run(&self, plan: &mut Plan, goes_on: bool) -> Result<()> {
        let Some((no, row)) = &self.open else { return Ok(()) };
        let key = run_key(self.unit.no, *no);
        let (mut records_dropped, mut announced) = (0, 0_u64);
        self.rows.scan(&TYPES, &key, &key, |_, counts| {
            records_dropped += counts.read.saturating_sub(counts.left_out).saturating_sub(counts.announced);
            announced += counts.announced;
            Ok(true)
        })?;
        let queue = self.rows.get(&QUEUES, &key)?.unwrap_or_default().counts;
        let undelivered = match row.message {
            Some(message) => {
                let sealed = self.rows.need(&MESSAGES, &message_key(self.unit.no, message))?;
                (sealed.fate == MessageFate::Sealed).then_some(message)
            }
            None => None,
        };
        let mut records_undelivered = 0;
        self.rows.scan(&BATCHES, &key, &key, |_, batch| {
            if undelivered.is_some_and(|message| batch.state == BatchState::Announced(message)) {
                records_undelivered += u64::from(batch.items);
            }
            Ok(true)
        })?;
        plan.changes.push(PlannedChange::AbandonRun {
            run: row.id.clone(),
            started_at: row.started_at.to_time(),
            pages: row.pages,
            records_dropped,
            attachments_left: queue.queued.saturating_sub(queue.settled).saturating_sub(queue.failed),
            message_undelivered: undelivered,
            records_undelivered,
            records_announced: if goes_on { announced.saturating_sub(records_undelivered) } else { 0 },
            delay_until: row
                .not_before
                .filter(|wait| goes_on && wait.at > self.now)
                .map(|wait| wait.at.to_time()),
        });
        if row.event.is_some() {
            plan.notes.push(format!(
                "events of run {} are refused from then on: have the platform start a new sync",
                row.id
            ));
        }
        if let Some(message) = undelivered {
            plan.notes.push(format!(
                "message {message} is sealed, and may have been accepted; it is not sent again: if the platform has it, what \
                 it announces is announced again by the next run"
            ));
        }
        Ok(())
    }

    fn plan_abandon(&self, plan: &mut Plan) -> Result<()> {
        let run = self.open.as_ref().map(|(_, row)| format!(" {}", row.id)).unwrap_or_default();
        plan.act = format!("abandon the open run{run} of {}", self.id);
        self.plan_end_of_run(plan, true)?;
        plan.next_run = Some(self.next_run(&self.unit, &self.bookmarks()?, &self.next_cursors()?, 0)?);
        if self.open.is_none() {
            plan.notes.push("no run is open".to_owned());
        }
        Ok(())
    }

    /// The finished runs that the ledger has, the oldest first.
    fn finished(&self) -> Result<Vec<(u64, LedgerRow)>> {
        let mut runs = Vec::new();
        self.rows.scan(&LEDGER, &self.prefix(), &self.prefix(), |tail, row| {
            let no = number_of(tail).map_err(|error| {
                self.rows.tables().damaged(LEDGER.name, &self.prefix(), error.to_string())
            })?;
            if row.status == RunStatus::Finished {
                runs.push((no, row));
            }
            Ok(true)
        })?;
        Ok(runs)
    }

    /// The finished run that a rewind goes back to.
    fn target(&self, to: &RewindTo) -> Result<(u64, LedgerRow)> {
        let runs = self.finished()?;
        let span = match (runs.first(), runs.last()) {
            (Some((_, first)), Some((_, last))) => format!(
                "finished runs that are known: from {} (over at {}) to {} (over at {})",
                first.id,
                shown(first.ended_at.to_time()),
                last.id,
                shown(last.ended_at.to_time())
            ),
            _ => "no run of it was finished yet".to_owned(),
        };
        let no_run = |what: &str, reason: &str| {
            Err(invalid(format!("a rewind of {:?} to {what}", self.id.as_str()), reason.to_owned()))
        };
        let found = match to {
            RewindTo::Run(id) => {
                let found = runs.into_iter().rev().find(|(_, row)| row.id == *id);
                let is_open = self.open.as_ref().is_some_and(|(_, row)| row.id == *id);
                match found {
                    Some(found) => found,
                    None if is_open => {
                        return no_run(&format!("run {id}"), "it is still open; `abandon` abandons it");
                    }
                    None => {
                        return no_run(
                            &format!("run {id}"),
                            &format!(
                                "no such run was finished; {span}. A time is written 2026-01-31, or 2026-01-31T12:00:00Z"
                            ),
                        );
                    }
                }
            }
            RewindTo::Time(at) => {
                let by_then = |row: &LedgerRow| row.ended_at.to_time() <= *at;
                let found = runs
                    .into_iter()
                    .filter(|(_, row)| by_then(row))
                    .max_by_key(|(no, row)| (row.ended_at, *no));
                if let Some(found) = found {
                    found
                } else {
                    let reason = format!(
                        "no run was finished by then; {span}; `reset` makes the next run extract everything"
                    );
                    return no_run(&shown(*at), &reason);
                }
            }
        };
        match found.1.watermark {
            None => {
                let reason = "its start was not known, so it has no watermark; `reset` makes the next run extract \
                              everything";
                no_run(&format!("run {}", found.1.id), reason)
            }
            Some(watermark) if watermark > self.now => {
                let reason = format!(
                    "it left the watermark {}, which is in the future: a clock was wrong",
                    shown(watermark.to_time())
                );
                no_run(&format!("run {}", found.1.id), &reason)
            }
            Some(_) => Ok(found),
        }
    }

    /// The state of the unit once it is rewound to a run, with its bookmarks as JSON texts and the runs that left
    /// them.
    fn rewound(
        &self,
        no: u64,
        row: &LedgerRow,
        notes: &mut Vec<String>,
    ) -> Result<(UnitRow, BTreeMap<String, BookmarkRow>)> {
        let mut unit = self.unit.clone();
        unit.watermark = row.watermark;
        if let Some((standing, bookmarks)) = standing(self.rows, self.unit.no, no)? {
            unit.bounds = standing.bounds;
            return Ok((unit, bookmarks));
        }
        let stands_as = match self.rows.get(&REWOUND, &self.prefix())? {
            Some(rewound) => rewound.run,
            None => self.finished()?.last().map(|(no, _)| *no),
        };
        if stands_as == Some(no) {
            let mut bookmarks = BTreeMap::new();
            for (name, row) in self.rows.all(&BOOKMARKS, &self.prefix())? {
                bookmarks.insert(self.text(&name)?, row);
            }
            return Ok((unit, bookmarks));
        }
        let (oldest, newest) = unit.bounds;
        unit.bounds = (oldest, newest.min(row.watermark));
        notes.push(format!(
            "the bookmarks of run {} are not kept any more (only those of the last {STANDINGS_MAX} finished runs are): all \
             bookmarks are dropped, and streams use the time alone",
            row.id
        ));
        if newest.is_some() {
            notes.push(
                "the window that runs had covered by then is not kept: its beginning stays, and it ends at the start of that run at the latest".to_owned(),
            );
        }
        Ok((unit, BTreeMap::new()))
    }

    fn plan_rewind(&self, to: &RewindTo, plan: &mut Plan) -> Result<()> {
        let (no, row) = self.target(to)?;
        plan.act = match to {
            RewindTo::Run(_) => format!("rewind {} to run {}", self.id, row.id),
            RewindTo::Time(at) => format!("rewind {} to {}, that is to run {}", self.id, shown(*at), row.id),
        };
        self.plan_end_of_run(plan, true)?;
        let (unit, bookmarks) = self.rewound(no, &row, &mut plan.notes)?;
        let bookmarks = bookmarks.into_iter().map(|(stream, row)| (stream, row.json)).collect();
        self.plan_standing(&unit, &bookmarks, plan)?;
        if let Some(next) = &mut plan.next_run {
            next.read_since = self.read_since(no)?;
        }
        plan.notes.extend(self.attachments_stay()?);
        if unit.watermark > self.unit.watermark {
            plan.notes.push(
                "the watermark moves forward: records that the last rewind or reset would have had extracted again are skipped"
                    .to_owned(),
            );
        }
        plan.notes.extend(values_stay(&self.own_values()?));
        Ok(())
    }

    /// The records that the runs after one have read, by item type.
    fn read_since(&self, no: u64) -> Result<BTreeMap<String, u64>> {
        let mut read: BTreeMap<String, u64> = BTreeMap::new();
        let from = run_key(self.unit.no, no + 1);
        self.rows.scan(&LEDGER, &self.prefix(), &from, |_, over| {
            for counts in over.types {
                *read.entry(counts.item_type).or_default() += counts.read;
            }
            Ok(true)
        })?;
        if let Some((open, _)) = &self.open {
            for (item_type, counts) in self.rows.by_name(&TYPES, &run_key(self.unit.no, *open))? {
                *read.entry(item_type).or_default() += counts.read;
            }
        }
        read.retain(|_, records| *records > 0);
        Ok(read)
    }

    /// What a rewind leaves of attachments, if any are known.
    fn attachments_stay(&self) -> Result<Option<String>> {
        let (known, failed) = (self.attachments_known()?, self.count(&FAILED)?);
        Ok((known > 0).then(|| {
            format!(
                "still known: {}, {failed} of them failed: of those that the next run names, it streams again only the \
                 ones that failed, or whose url, name or date has changed, or that no finished run has settled",
                count(known, "attachment")
            )
        }))
    }

    /// The keys of the extractor's own values.
    fn own_values(&self) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for (key, _) in self.rows.all(&VALUES, &self.prefix())? {
            keys.push(self.text(&key)?);
        }
        keys.retain(|key| !key.starts_with(RESERVED_VALUE_PREFIX));
        Ok(keys)
    }

    /// Plans to set the unit to a state, every stream at its beginning.
    fn plan_standing(
        &self,
        unit: &UnitRow,
        bookmarks: &BTreeMap<String, String>,
        plan: &mut Plan,
    ) -> Result<()> {
        if unit.watermark != self.unit.watermark {
            plan.changes.push(PlannedChange::Watermark {
                from: self.unit.watermark.map(Micros::to_time),
                to: unit.watermark.map(Micros::to_time),
            });
        }
        if unit.bounds != self.unit.bounds {
            let times = |(oldest, newest): (Option<Micros>, Option<Micros>)| {
                [oldest.map(Micros::to_time), newest.map(Micros::to_time)]
            };
            plan.changes
                .push(PlannedChange::Bounds { from: times(self.unit.bounds), to: times(unit.bounds) });
        }
        let before = self.bookmarks()?;
        let streams: BTreeSet<&String> = before.keys().chain(bookmarks.keys()).collect();
        for stream in streams {
            let (from, to) = (before.get(stream), bookmarks.get(stream));
            if from != to {
                plan.changes.push(PlannedChange::Bookmark {
                    stream: stream.clone(),
                    from: from.map(|json| value(json)),
                    to: to.map(|json| value(json)),
                });
            }
        }
        for (stream, json) in self.next_cursors()? {
            plan.changes.push(PlannedChange::Cursor { stream, from: Some(value(&json)), to: None });
        }
        plan.next_run = Some(self.next_run(unit, bookmarks, &BTreeMap::new(), 0)?);
        Ok(())
    }

    fn plan_reset(&self, keep_attachments: bool, drop_values: bool, plan: &mut Plan) -> Result<()> {
        plan.act = format!("reset {}", self.id);
        if keep_attachments {
            plan.act.push_str(", except its attachments");
        }
        if drop_values {
            plan.act.push_str(", with the extractor's own values");
        }
        self.plan_end_of_run(plan, true)?;
        let mut unit = self.unit.clone();
        unit.watermark = None;
        unit.bounds = (None, None);
        self.plan_standing(&unit, &BTreeMap::new(), plan)?;
        if let Some(next) = &mut plan.next_run {
            next.read_since = self.read_since(0)?;
        }
        let (known, failed) = (self.attachments_known()?, self.count(&FAILED)? + self.count(&REQUEUED)?);
        if keep_attachments {
            if known > 0 {
                plan.notes.push(format!(
                    "still known: {}: those that are settled are extracted again only if their url, name or date has changed",
                    count(known, "attachment")
                ));
            }
        } else if known + failed > 0 {
            plan.changes.push(PlannedChange::ForgetAttachments { known, failed });
            if let Some(next) = &mut plan.next_run {
                next.attachments_requeued = 0;
            }
        }
        let keys = self.own_values()?;
        if drop_values && !keys.is_empty() {
            plan.changes.push(PlannedChange::DropValues { keys });
        } else {
            plan.notes.extend(values_stay(&keys));
        }
        Ok(())
    }

    fn attachments_known(&self) -> Result<u64> {
        Ok(self.count(&SEEN)? + self.count(&SEEN_BY_HASH)?)
    }

    fn plan_forget(&self, plan: &mut Plan) -> Result<()> {
        plan.act = format!("forget {}", self.id);
        self.plan_end_of_run(plan, true)?;
        self.plan_forget_all(plan)?;
        plan.notes.push(
            "the ids of its last 64 runs are kept, so that their late events are recognised, and so is what operators did to it"
                .to_owned(),
        );
        Ok(())
    }

    pub(super) fn plan_forget_all(&self, plan: &mut Plan) -> Result<()> {
        plan.changes.push(PlannedChange::ForgetUnit {
            runs: self.unit.next_run.saturating_sub(1),
            ledger_runs: self.count(&LEDGER)?,
            attachments: self.attachments_known()?,
        });
        Ok(())
    }

    /// The names of the streams that are known, and the last cursor of this one.
    fn last_cursor_of(&self, stream: &str) -> Result<(BTreeSet<String>, Option<String>)> {
        let mut streams: BTreeSet<String> = self.bookmarks()?.into_keys().collect();
        for (name, _) in self.rows.all(&MOST_READ, &self.prefix())? {
            streams.insert(self.text(&name)?);
        }
        let mut last = last_cursor(self.rows, self.unit.no, stream)?;
        if let Some((no, _)) = &self.open {
            for (name, row) in self.rows.all(&STREAMS, &run_key(self.unit.no, *no))? {
                let name = self.text(&name)?;
                if name == stream {
                    last = row.cursor.or(last);
                }
                streams.insert(name);
            }
        }
        Ok((streams, last))
    }

    fn plan_cursor(&self, stream: &str, cursor: &str, force: bool, plan: &mut Plan) -> Result<()> {
        let stream = StreamName::new(stream)?;
        let what = format!("the cursor of stream {:?} of {:?}", stream.as_str(), self.id.as_str());
        let given: Value = serde_json::from_str(cursor).map_err(|error| {
            invalid(what.clone(), format!("it is not JSON: {error}; a text is \"quoted\""))
        })?;
        let clears = given.is_null();
        plan.act = if clears {
            format!("make stream {stream} of {} start at its beginning", self.id)
        } else {
            format!("make stream {stream} of {} start with the cursor {}", self.id, shown_json(&given))
        };
        let mut cursors = self.next_cursors()?;
        let before = cursors.remove(stream.as_str());
        if !clears {
            let (streams, last) = self.last_cursor_of(stream.as_str())?;
            if !force && !streams.contains(stream.as_str()) && last.is_none() {
                let known: Vec<String> = streams.into_iter().collect();
                let known = match known.as_slice() {
                    [] => "no stream of this unit is known yet".to_owned(),
                    known => format!("known are {}", some_of(known)),
                };
                return Err(invalid(
                    what,
                    format!("no run has read such a stream; {known}; force it (--force) if it is right"),
                ));
            }
            match &last {
                None if !force => {
                    let reason = "no cursor of this stream is known to compare it with (perhaps it has one page): force it (--force) \
                                  if its shape is right";
                    return Err(invalid(what, reason.to_owned()));
                }
                Some(last) => {
                    let last = value(last);
                    if let Err(difference) = same_shape("", &last, &given)
                        && !force
                    {
                        let reason = format!(
                            "{difference}; the last one was {}: force it (--force) if the extractor can read it",
                            shown_json(&last)
                        );
                        return Err(invalid(what, reason));
                    }
                    plan.notes.push(format!("its last known cursor is {}", shown_json(&last)));
                }
                None => {}
            }
            cursors.insert(stream.to_string(), cursor.trim().to_owned());
        }
        let bytes = cursors.iter().map(|(stream, json)| stream.len() + json.len()).sum::<usize>();
        if bytes > CURSOR_BYTES_MAX {
            return Err(Error::TooLarge {
                what: format!("the cursors that are set for streams of {}", self.id),
                found: bytes as u64,
                limit: CURSOR_BYTES_MAX as u64,
                unit: "bytes",
            });
        }
        let to = cursors.get(stream.as_str());
        if before.as_ref() != to {
            plan.changes.push(PlannedChange::Cursor {
                stream: stream.to_string(),
                from: before.map(|json| value(&json)),
                to: to.map(|json| value(json)),
            });
        }
        if !clears {
            plan.notes.push(
                "records that the source lists before that cursor are skipped, and the watermark still moves when the run \
                 is finished"
                    .to_owned(),
            );
        }
        if let Some((_, row)) = &self.open {
            plan.notes.push(format!(
                "run {} is open and goes on with its own cursors: this is for the run after it (`abandon` ends the open one)",
                row.id
            ));
        }
        plan.next_run = Some(self.next_run(&self.unit, &self.bookmarks()?, &cursors, 0)?);
        Ok(())
    }

    fn plan_requeue(&self, which: &Requeue, plan: &mut Plan) -> Result<()> {
        plan.act = match (which.ids.as_slice(), &which.reason) {
            ([], None) => format!("queue all failed attachments of {} again", self.id),
            ([], Some(reason)) => format!(
                "queue failed attachments of {} again, those whose reason holds {:?}",
                self.id,
                cut::to_chars(reason, SHOWN_CHARS)
            ),
            (ids, None) => {
                format!("queue failed attachments of {} again, with the ids {}", self.id, some_of(ids))
            }
            (ids, Some(reason)) => format!(
                "queue failed attachments of {} again, with the ids {} and a reason that holds {:?}",
                self.id,
                some_of(ids),
                cut::to_chars(reason, SHOWN_CHARS)
            ),
        };
        let chosen = Chosen::of(which);
        let mut reasons = Reasons::default();
        let (mut attachments, mut failed) = (0, 0_u64);
        let mut found: BTreeSet<String> = BTreeSet::new();
        self.rows.scan(&FAILED, &self.prefix(), &self.prefix(), |_, row| {
            failed += 1;
            if let Some(id) = chosen.takes(&row) {
                attachments += 1;
                if !chosen.ids.is_empty() {
                    found.insert(id);
                }
                reasons.add(row.reason);
            }
            Ok(true)
        })?;
        let missing: Vec<String> = which.ids.iter().filter(|id| !found.contains(*id)).cloned().collect();
        if !missing.is_empty() {
            plan.notes.push(format!("no such attachment was given up: {}", some_of(&missing)));
        }
        if attachments > 0 {
            let reasons = reasons.most_frequent(REASONS_MAX);
            plan.changes.push(PlannedChange::Requeue { attachments, reasons });
        }
        plan.notes.push(match failed {
            0 => "no attachment failed, except those that are queued again already".to_owned(),
            _ => format!("{} of {failed} stay listed as failed", failed - attachments),
        });
        if let Some((_, row)) = &self.open
            && attachments > 0
            && row.phase.is_none_or(|phase| phase <= Phase::Attachments)
        {
            plan.notes
                .push(format!("run {} retries them, if its attachments phase is still to come", row.id));
        }
        plan.next_run =
            Some(self.next_run(&self.unit, &self.bookmarks()?, &self.next_cursors()?, attachments)?);
        Ok(())
    }
}

/// Names the extractor's own values that stay, if it has any.
fn values_stay(keys: &[String]) -> Option<String> {
    (!keys.is_empty()).then(|| format!("the extractor's own values stay as they are: {}", some_of(keys)))
}

/// The selection of failed attachments.
struct Chosen<'a> {
    ids: BTreeSet<&'a str>,
    reason: Option<&'a str>,
}

impl<'a> Chosen<'a> {
    fn of(which: &'a Requeue) -> Self {
        Self { ids: which.ids.iter().map(String::as_str).collect(), reason: which.reason.as_deref() }
    }

    /// The id of a row, if it is selected.
    fn takes(&self, row: &FailedRow) -> Option<String> {
        if self.reason.is_some_and(|reason| !row.reason.contains(reason)) {
            return None;
        }
        let id = Attachment::from_line(&row.json).map(|attachment| attachment.id).unwrap_or_default();
        (self.ids.is_empty() || self.ids.contains(id.as_str())).then_some(id)
    }
}

/// Makes the changes of a plan, which was made from these very rows.
fn carry_out(unit: &SyncUnit, change: &Change<'_>, mend: &Mend) -> Result<()> {
    let now = unit.now();
    let mut row = change.need(&UNITS, &unit.key())?;
    let end_run = |row: &mut UnitRow| -> Result<()> {
        match current_run(change, row)? {
            Some((no, mut run)) if run.status == RunStatus::Open => {
                give_up_message(change, row.no, &run)?;
                close_run(change, row, no, &mut run, RunStatus::Abandoned, now)?;
                change.put(&RUNS, &run_key(row.no, no), &run)
            }
            _ => Ok(()),
        }
    };
    match mend {
        Mend::Rewind { to } => {
            let known = Known { rows: change, id: &unit.id, unit: row.clone(), open: None, now };
            let (no, over) = known.target(to)?;
            let (rewound, bookmarks) = known.rewound(no, &over, &mut Vec::new())?;
            end_run(&mut row)?;
            row.watermark = rewound.watermark;
            row.bounds = rewound.bounds;
            set_back(change, &row, Some(no), now)?;
            for (stream, bookmark) in bookmarks {
                change.put(&BOOKMARKS, &Key::unit(row.no).and_name(&stream), &bookmark)?;
            }
        }
        Mend::Reset { keep_attachments, drop_values } => {
            end_run(&mut row)?;
            row.watermark = None;
            row.inherited = None;
            row.bounds = (None, None);
            set_back(change, &row, None, now)?;
            if !keep_attachments {
                unit.delete_attachments_in(change)?;
            }
            if *drop_values {
                for (key, Json(_)) in change.all(&VALUES, &Key::unit(row.no))? {
                    if !key.starts_with(RESERVED_VALUE_PREFIX.as_bytes()) {
                        let key = name_of(&key).map_err(|error| {
                            change.tables().damaged(VALUES.name, &unit.key(), error.to_string())
                        })?;
                        change.remove(&VALUES, &Key::unit(row.no).and_name(key))?;
                    }
                }
            }
        }
        Mend::SetCursor { stream, cursor, .. } => {
            let key = Key::unit(row.no).and_name(stream);
            let json = cursor.trim().to_owned();
            if json == "null" {
                change.remove(&NEXT_CURSORS, &key)?;
            } else {
                change.put(
                    &NEXT_CURSORS,
                    &key,
                    &NextCursorRow { json, from_run: row.next_run, set_at: now },
                )?;
            }
        }
        Mend::Requeue(which) => requeue(change, row.no, which)?,
        Mend::Abandon => end_run(&mut row)?,
        Mend::Forget => return unit.delete_in(change),
    }
    change.put(&UNITS, &unit.key(), &row)
}

/// A sealed message of an abandoned run that is not known to be accepted is not sent again: what it announces is
/// fetched again.
fn give_up_message(change: &Change<'_>, unit: u64, run: &RunRow) -> Result<()> {
    let Some(message) = run.message else { return Ok(()) };
    let key = message_key(unit, message);
    match change.need(&MESSAGES, &key)? {
        sealed if sealed.fate == MessageFate::Sealed => {
            let fate = MessageFate::Delivered { times: 0 };
            change.put(&MESSAGES, &key, &MessageRow { fate, body: Vec::new(), ..sealed })
        }
        _ => Ok(()),
    }
}

/// Sets a unit to the state that it is rewound to: without bookmarks and set cursors.
fn set_back(change: &Change<'_>, unit: &UnitRow, run: Option<u64>, at: Micros) -> Result<()> {
    let prefix = Key::unit(unit.no);
    change.remove_all(&BOOKMARKS, &prefix)?;
    change.remove_all(&NEXT_CURSORS, &prefix)?;
    change.put(&REWOUND, &prefix, &RewoundRow { at, run, watermark: unit.watermark })
}

/// Moves the selected failed attachments to those that are queued again.
fn requeue(change: &Change<'_>, unit: u64, which: &Requeue) -> Result<()> {
    let prefix = Key::unit(unit);
    let chosen = Chosen::of(which);
    let mut from = prefix.clone();
    loop {
        let (mut group, mut size) = (Vec::new(), GroupSize::default());
        change.scan(&FAILED, &prefix, &from, |tail, row| {
            if chosen.takes(&row).is_none() {
                return Ok(true);
            }
            let more = size.add(&row.json);
            group.push((prefix.clone().and_bytes(tail), row));
            Ok(more)
        })?;
        // It was moved, so the next read begins after it.
        let Some((last, _)) = group.last() else { return Ok(()) };
        from = last.clone();
        for (key, row) in group {
            change.remove(&FAILED, &key)?;
            change.put(&REQUEUED, &key, &row)?;
        }
    }
}
