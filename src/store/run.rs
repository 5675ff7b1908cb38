//! The life of a run: begun, resumed, given events, answered by sealed messages, finished.
//!
//! # What a crash leaves
//!
//! Every line is one transaction (those of attachments are in the room `attachments`); a kill leaves the store as it was before or after it.
//!
//! | step | stored by it | killed right after it, the next life |
//! | --- | --- | --- |
//! | `begin`, `accept` | the run, its start, `since`; the event; the raised epoch | resumes the run: same start, same `since`; older lives are fenced |
//! | stage | a page's lines, closed batches, the cursor after it, bookmark, values | goes on with the page after it |
//! | close | open lines as batches | uploads them |
//! | uploaded | the artifact id of a batch | confirms that id, uploads nothing |
//! | confirmed | that the platform knows it | announces it |
//! | seal | the message, its artifacts marked with it | sends the same bytes under the same key |
//! | delivered | that the message was accepted; if it ends the run, watermark and bookmarks | answers the same event with the same bytes, does nothing else |
//! | refused | the seal undone: artifacts confirmed again | seals a new message |
//! | acknowledge | a batch gone, counted | never yields it again |
//! | finish | watermark, bookmarks, a ledger row; the run's rows gone | begins a new run, from the new watermark |
//!
//! # Events
//!
//! An event is known by its identity. A new one proves that the message before it was accepted: the platform goes on
//! only then. A seen one is answered with its sealed message, byte for byte. One of a past run, or one that a newer
//! event has overtaken unanswered, is an error and changes nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::model::{
    CLOCK_AHEAD_MAX, LEDGER_RUNS_MAX, Micros, Move, Phase, Phases, Rule, RunId, Step, SyncUnitId, phase_move,
};

use super::attachments::{drop_queue, remove_attachments};
use super::notes::{Inherited, drop_notes};
use super::rows::{
    BATCHES, BOOKMARKS, BatchState, BookmarkRow, CHUNKS, EVENTS, EventRow, FINDINGS, Json, Key, LEDGER,
    LedgerRow, LedgerType, MESSAGES, MessageFate, MessageKind, MessageRow, NotBefore, PAYLOADS, POSITIONS,
    RUN_IDS, RUNS, RunIdRow, RunRow, RunStatus, STREAMS, TYPES, UNITS, UnitRow, VALUES, WindowRow, name_hash,
    name_of,
};
use super::tables::{Change, Rows, Tables, View};
use super::{Inner, SyncUnit};

/// One extraction of a sync unit, from its start until it is finished, in this life.
///
/// Dropping it is always safe: nothing is acknowledged or finished by drop, and the next `begin` resumes.
#[derive(Debug)]
pub struct Run {
    pub(super) inner: Arc<Inner>,
    pub(super) unit: SyncUnitId,
    pub(super) unit_no: u64,
    pub(super) no: u64,
    pub(super) id: RunId,
    pub(super) epoch: u64,
    started_at: Micros,
    since: Option<Micros>,
    since_ignored: Option<Micros>,
    resumed: bool,
    /// Batches that the caller holds now: not to be yielded twice at once.
    pub(super) held: Arc<Mutex<BTreeSet<u64>>>,
    pub(super) held_attachments: Arc<Mutex<BTreeSet<u64>>>,
}

/// An event, as far as a store needs to know it.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    /// The same for the same event, however often it is delivered.
    pub(crate) identity: String,
    /// Whether the identity holds an id of this one event; without one, every event of its kind looks the same.
    pub(crate) has_ids: bool,
    pub(crate) run_id: Option<RunId>,
    pub(crate) phase: Phase,
    pub(crate) step: Step,
}

/// What is to be done about an event.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// Extract.
    Work(Run),
    /// The phase is over: say its DONE, with whatever is confirmed and in no message yet.
    Repeat(Run),
    /// Answer ERROR, with this reason.
    Refuse(Run, String),
    /// Send the message that was sealed for it.
    Replay(Run, StoredMessage),
    /// It was answered, and the bytes are gone: send nothing.
    AnsweredEarlier(Run),
}

/// A sealed message as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredMessage {
    pub(crate) no: u64,
    pub(crate) key: String,
    pub(crate) event_type: String,
    pub(crate) body: String,
    pub(crate) kind: MessageKind,
    pub(crate) artifacts: u64,
}

/// A message about to be sealed.
#[derive(Debug)]
pub(crate) struct Sealing<'a> {
    pub(crate) phase: Phase,
    pub(crate) kind: MessageKind,
    pub(crate) event_type: String,
    /// The batches that it announces, by seq.
    pub(crate) batches: &'a [u64],
    pub(crate) body: String,
    /// Its acceptance ends the run.
    pub(crate) finishes: bool,
    /// Seconds that the source asked to be left alone, counted from now.
    pub(crate) delay_seconds: Option<u64>,
}

impl SyncUnit {
    /// Begins a run, or takes up the one that is not finished.
    ///
    /// A run that is taken up keeps its start and its [`Run::since`]. Any [`Run`] of an earlier `begin` is fenced:
    /// whatever it tries is [`Error::Fenced`] and changes nothing.
    ///
    /// # Durability
    /// When this returns `Ok`, the run and its start survive power loss.
    ///
    /// # Errors
    /// `Corrupt` or `Io`; nothing was begun.
    pub fn begin(&self) -> Result<Run> {
        self.inner.tables.change(|change| {
            let mut unit = self.get_or_create(change)?;
            let run = match current_run(change, &unit)? {
                Some((no, mut row)) if row.status == RunStatus::Open => {
                    row.epoch += 1;
                    change.put(&RUNS, &run_key(unit.no, no), &row)?;
                    self.handle(&unit, no, &row, true)?
                }
                _ => {
                    let (no, row) = self.new_run(change, &mut unit, None, false)?;
                    self.handle(&unit, no, &row, false)?
                }
            };
            Ok(run)
        })
    }

    /// Gives up the run that is not finished, if there is one; says whether there was.
    ///
    /// What it had staged is dropped; the watermark stays, so the next run fetches it again.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
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

    /// Forgets everything about the unit: runs, watermark, bookmarks, values, ledger. Doing it twice is the same as
    /// once.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
    ///
    /// # Errors
    /// `Corrupt` or `Io`; nothing was changed.
    pub fn delete(&self) -> Result<()> {
        self.inner.tables.change(|change| {
            let Some(unit) = change.get(&UNITS, &self.key())? else { return Ok(()) };
            let prefix = Key::unit(unit.no);
            change.remove_all(&RUNS, &prefix)?;
            change.remove_all(&RUN_IDS, &prefix)?;
            change.remove_all(&STREAMS, &prefix)?;
            change.remove_all(&TYPES, &prefix)?;
            change.remove_all(&CHUNKS, &prefix)?;
            change.remove_all(&BATCHES, &prefix)?;
            change.remove_all(&PAYLOADS, &prefix)?;
            change.remove_all(&BOOKMARKS, &prefix)?;
            change.remove_all(&VALUES, &prefix)?;
            change.remove_all(&EVENTS, &prefix)?;
            change.remove_all(&MESSAGES, &prefix)?;
            change.remove_all(&LEDGER, &prefix)?;
            change.remove_all(&FINDINGS, &prefix)?;
            change.remove_all(&POSITIONS, &prefix)?;
            remove_attachments(change, &prefix)?;
            change.remove(&UNITS, &self.key())
        })
    }

    /// Takes in an event and says what is to be done about it.
    ///
    /// # Errors
    /// `StaleEvent`: it belongs to a past run or was overtaken; `Corrupt` or `Io`. Nothing was changed, but for what
    /// the event proved of the message before it.
    ///
    /// `restored` says that all this store knows of the unit comes from a checkpoint. Then an event whose predecessor was
    /// not answered shows that a newer checkpoint was lost. A unit of which nothing is known begins with what it
    /// `inherits`.
    pub(crate) fn accept(
        &self,
        event: &Incoming,
        restored: bool,
        inherits: Option<&Inherited>,
    ) -> Result<Accepted> {
        self.inner.tables.change(|change| {
            let mut unit = self.get_or_create(change)?;
            let inherits = inherits.filter(|_| unit.run.is_none() && unit.watermark.is_none());
            if let Some(inherited) = inherits {
                inherited.to_unit(&mut unit);
            }
            let Some((no, mut row)) = self.find_run(change, &unit, event)? else {
                // A store that does not know the run cannot know what of it was extracted before.
                let lost = event.step == Step::Continue || event.phase == Phase::Attachments;
                let (no, mut row) = self.new_run(change, &mut unit, event.run_id.as_ref(), lost)?;
                if let Some(run) = inherits.and_then(|inherited| inherited.run.as_ref()) {
                    run.to_run(change, &unit, no, &mut row, event)?;
                }
                return Ok(Ok(self.enter(change, &unit, no, row, event, false)?));
            };
            if let Some(seen) = change.get(&EVENTS, &event_key(unit.no, no, name_hash(&event.identity)))?
                && !self.inner.breaks(Rule::EventsRemembered)
                && let Some(answer) = self.seen(change, &unit, no, &mut row, event, &seen)?
            {
                return Ok(answer);
            }
            row.lost |=
                restored && row.status == RunStatus::Open && row.event.is_some() && row.message.is_none();
            if let Some(message) = row.message {
                settle(change, &mut unit, no, &mut row, message, MessageFate::Proven, self.now())?;
                change.put(&UNITS, &self.key(), &unit)?;
            }
            if row.status != RunStatus::Open {
                change.put(&RUNS, &run_key(unit.no, no), &row)?;
                return Ok(Err(self.stale(&row, "which is over")));
            }
            Ok(Ok(self.enter(change, &unit, no, row, event, true)?))
        })?
    }

    /// The run that an event belongs to; `None` if that is a new one.
    fn find_run(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        event: &Incoming,
    ) -> Result<Option<(u64, RunRow)>> {
        let current = current_run(change, unit)?;
        let Some(id) = &event.run_id else {
            // Without an id it is the run at hand, unless it starts something that this run has behind it.
            return Ok(current.filter(|(_, row)| {
                let undelivered = row.message.is_some_and(|message| {
                    let sealed = change.get(&MESSAGES, &message_key(unit.no, message));
                    matches!(sealed, Ok(Some(MessageRow { fate: MessageFate::Sealed, .. })))
                });
                let repeats = event.step == Step::Start
                    && phase_move(row.phase, row.done, event.step, event.phase) == Move::Repeat;
                undelivered || (row.status == RunStatus::Open && !repeats)
            }));
        };
        let key = Key::unit(unit.no).and_hash(id.as_str());
        match (change.get(&RUN_IDS, &key)?, current) {
            (Some(known), Some((no, row))) if known.run == no => Ok(Some((no, row))),
            (Some(_), _) => Err(Error::StaleEvent {
                sync_unit: self.id.to_string(),
                run: id.to_string(),
                reason: "which a newer run has followed".to_owned(),
            }),
            (None, _) => Ok(None),
        }
    }

    /// What a seen event is answered with; `None` if it counts as a new one.
    fn seen(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        no: u64,
        row: &mut RunRow,
        event: &Incoming,
        seen: &EventRow,
    ) -> Result<Option<Result<Accepted>>> {
        let latest = row.event == Some(name_hash(&event.identity));
        let Some(message_no) = seen.message else {
            if latest && row.status == RunStatus::Open {
                row.epoch += 1;
                if self.inner.breaks(Rule::StartKept) {
                    row.started_at = self.now();
                }
                change.put(&RUNS, &run_key(unit.no, no), row)?;
                return Ok(Some(Ok(self.work(unit, no, row, event, true)?)));
            }
            // Without an id an event is not known to be the one that was overtaken.
            return Ok(event.has_ids.then(|| Err(self.stale(row, "and a newer event has followed it"))));
        };
        let Some(message) = change.get(&MESSAGES, &message_key(unit.no, message_no))? else {
            let run = self.handle(unit, no, row, true)?;
            return Ok(event.has_ids.then_some(Ok(Accepted::AnsweredEarlier(run))));
        };
        if let MessageFate::Delivered { times } = message.fate {
            let goes_on = matches!(message.kind, MessageKind::Progress | MessageKind::Delay);
            if latest && goes_on && times >= 2 {
                // The platform uses its ids again: progress beats another replay.
                row.events_reused += 1;
                return Ok(None);
            }
        }
        if !event.has_ids && message.fate != MessageFate::Sealed {
            return Ok(None);
        }
        let run = self.handle(unit, no, row, true)?;
        if message.body.is_empty() {
            // A checkpoint does not keep what was delivered. That it is asked for counts as if it had been said again.
            if let MessageFate::Delivered { times } = message.fate {
                let fate = MessageFate::Delivered { times: times.saturating_add(1) };
                change.put(&MESSAGES, &message_key(unit.no, message_no), &MessageRow { fate, ..message })?;
            }
            return Ok(Some(Ok(Accepted::AnsweredEarlier(run))));
        }
        Ok(Some(Ok(Accepted::Replay(run, self.stored(message_no, message)?))))
    }

    /// The newest run, over or not, as its last life has it.
    pub(crate) fn newest_run(&self) -> Result<Option<Run>> {
        let newest = self.inner.tables.view(|rows| {
            let Some(unit) = rows.get(&UNITS, &self.key())? else { return Ok(None) };
            let Some(no) = unit.run else { return Ok(None) };
            let row = rows.need(&RUNS, &run_key(unit.no, no))?;
            Ok(Some((unit, no, row)))
        })?;
        newest.map(|(unit, no, row)| self.handle(&unit, no, &row, true)).transpose()
    }

    /// Makes an event the newest of its run, and the run enter, or go on with, its phase.
    fn enter(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        no: u64,
        mut row: RunRow,
        event: &Incoming,
        resumed: bool,
    ) -> Result<Accepted> {
        row.events += 1;
        row.epoch += 1;
        if resumed && self.inner.breaks(Rule::StartKept) {
            row.started_at = self.now();
        }
        row.event = Some(name_hash(&event.identity));
        row.message = None;
        let identity = Some(event.identity.clone());
        let seen = EventRow { identity, order: row.events, accepted_at: self.now(), message: None };
        change.put(&EVENTS, &event_key(unit.no, no, name_hash(&event.identity)), &seen)?;
        let answer = self.work(unit, no, &mut row, event, resumed)?;
        change.put(&RUNS, &run_key(unit.no, no), &row)?;
        Ok(answer)
    }

    fn work(
        &self,
        unit: &UnitRow,
        no: u64,
        row: &mut RunRow,
        event: &Incoming,
        resumed: bool,
    ) -> Result<Accepted> {
        let (phase, current) = (event.phase, row.phase);
        let next = if row.lost { Move::Refuse } else { phase_move(current, row.done, event.step, phase) };
        if next == Move::Work {
            row.phase = Some(phase);
        }
        let run = self.handle(unit, no, row, resumed)?;
        Ok(match next {
            Move::Work => Accepted::Work(run),
            Move::Repeat => Accepted::Repeat(run),
            Move::Refuse if row.lost => {
                let reason = format!(
                    "run {} is not known here (its state was lost, or belongs to another store), so what it \
                     extracted before is not known: start a new sync",
                    row.id
                );
                Accepted::Refuse(run, reason)
            }
            Move::Refuse => {
                let stands = match current {
                    Some(current) if !row.done.contains(current) => {
                        format!("its {current} phase is not done")
                    }
                    Some(current) => format!("it has done its {current} phase and never began that one"),
                    None => "it has not begun".to_owned(),
                };
                Accepted::Refuse(run, format!("run {} cannot go on with its {phase} phase: {stands}", row.id))
            }
        })
    }

    fn stored(&self, no: u64, message: MessageRow) -> Result<StoredMessage> {
        let body = String::from_utf8(message.body).map_err(|_| Error::Corrupt {
            what: format!("{}, message {no} of {}", self.inner.tables.path().display(), self.id),
            reason: "it is not UTF-8".to_owned(),
        })?;
        Ok(StoredMessage {
            no,
            key: message.key,
            event_type: message.event_type,
            body,
            kind: message.kind,
            artifacts: message.artifacts,
        })
    }

    fn stale(&self, row: &RunRow, reason: &str) -> Error {
        Error::StaleEvent { sync_unit: self.id.to_string(), run: row.id.clone(), reason: reason.to_owned() }
    }

    pub(super) fn key(&self) -> Key {
        Key::name(self.id.as_str())
    }

    fn now(&self) -> Micros {
        Micros::from_time(self.inner.clock.now())
    }

    pub(super) fn get_or_create(&self, change: &Change<'_>) -> Result<UnitRow> {
        if let Some(unit) = change.get(&UNITS, &self.key())? {
            return Ok(unit);
        }
        let unit = UnitRow {
            no: Tables::new_unit_no(change)?,
            created_at: self.now(),
            run: None,
            next_run: 1,
            next_message: 1,
            watermark: None,
            bounds: (None, None),
            holder: (None, None),
            inherited: None,
            connector_version: None,
        };
        change.put(&UNITS, &self.key(), &unit)?;
        Ok(unit)
    }

    /// Begins a run, in place of the unfinished one if there is one.
    fn new_run(
        &self,
        change: &Change<'_>,
        unit: &mut UnitRow,
        id: Option<&RunId>,
        lost: bool,
    ) -> Result<(u64, RunRow)> {
        let now = self.now();
        if let Some((no, mut old)) = current_run(change, unit)? {
            if old.status == RunStatus::Open {
                if self.inner.breaks(Rule::AbandonedLeavesWatermark) {
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
            since: since.map(|since| since.minus(self.inner.settings.overlap)),
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
        };
        change.put(&RUN_IDS, &Key::unit(unit.no).and_hash(&id), &RunIdRow { run: no, id: Some(id) })?;
        change.put(&RUNS, &run_key(unit.no, no), &row)?;
        change.put(&UNITS, &self.key(), unit)?;
        Ok((no, row))
    }

    fn handle(&self, unit: &UnitRow, no: u64, row: &RunRow, resumed: bool) -> Result<Run> {
        Ok(Run {
            inner: Arc::clone(&self.inner),
            unit: self.id.clone(),
            unit_no: unit.no,
            no,
            id: RunId::new(row.id.clone())?,
            epoch: row.epoch,
            started_at: row.started_at,
            since: row.since,
            since_ignored: row.since_ignored,
            resumed,
            held: Arc::default(),
            held_attachments: Arc::default(),
        })
    }
}

impl Run {
    /// Its id: the platform's, or, of a run begun without one, made from its start.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The sync unit that it extracts.
    pub fn sync_unit(&self) -> &SyncUnitId {
        &self.unit
    }

    /// When it started, whatever number of lives ago. Finished, it vouches for what was there until then.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at.to_time()
    }

    /// Whether an earlier life began it.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// When the last finished run started, less the overlap: what was modified at or after this is wanted. `None`:
    /// everything. The same in every life of the run.
    pub fn since(&self) -> Option<DateTime<Utc>> {
        self.since.map(Micros::to_time)
    }

    /// A watermark that was left aside, for lying more than [`CLOCK_AHEAD_MAX`](crate::limits::CLOCK_AHEAD_MAX) ahead
    /// of the clock when the run began: one of the two clocks was wrong. [`Run::since`] is then the latest watermark
    /// of the past.
    pub fn ignored_watermark(&self) -> Option<DateTime<Utc>> {
        self.since_ignored.map(Micros::to_time)
    }

    /// The bookmark that the last finished run left for a stream.
    ///
    /// # Errors
    /// `Value` if it is not of the type asked for; `Corrupt` or `Io`.
    pub fn bookmark<B: DeserializeOwned>(&self, stream: &str) -> Result<Option<B>> {
        let key = Key::unit(self.unit_no).and_name(stream);
        let row = self.inner.tables.view(|rows| rows.get(&BOOKMARKS, &key))?;
        row.map(|row| self.read_json(&format!("the bookmark of stream {stream}"), &row.json)).transpose()
    }

    /// A value of the extractor's own, as last set with [`Page::value`](crate::Page::value).
    ///
    /// # Errors
    /// `Value` if it is not of the type asked for; `Corrupt` or `Io`.
    pub fn value<V: DeserializeOwned>(&self, key: &str) -> Result<Option<V>> {
        let row = self.inner.tables.view(|rows| rows.get(&VALUES, &Key::unit(self.unit_no).and_name(key)))?;
        row.map(|Json(json)| self.read_json(&format!("the value {key}"), &json)).transpose()
    }

    fn read_json<T: DeserializeOwned>(&self, what: &str, json: &str) -> Result<T> {
        serde_json::from_str(json).map_err(|error| Error::Value {
            what: what.to_owned(),
            sync_unit: self.unit.to_string(),
            source: error.into(),
        })
    }

    /// Finishes the run: what was there when it started is extracted.
    ///
    /// # Durability
    /// When this returns `Ok`, the watermark (the start of this run, or now if the clock stepped back behind it) and
    /// the bookmarks survive power loss, and the next `begin` starts a new run.
    ///
    /// # Errors
    /// `Unfinished` while a stream of this run is not exhausted (also one whose first page could not be fetched), a
    /// batch not acknowledged or an attachment neither settled nor given up; `Fenced`; `Corrupt` or `Io`. The run goes on.
    pub fn finish(self) -> Result<()> {
        self.change(|change, row| {
            self.check_exhausted(change, None)?;
            if row.open_batches > 0 {
                return Err(self.unfinished(format!("{} batches are not acknowledged", row.open_batches)));
            }
            self.check_balance(change)?;
            self.check_attachments(change)?;
            let mut unit = change.need(&UNITS, &Key::name(self.unit.as_str()))?;
            let now = Micros::from_time(self.inner.clock.now());
            close_run(change, &mut unit, self.no, row, RunStatus::Finished, now)?;
            change.put(&UNITS, &Key::name(self.unit.as_str()), &unit)
        })
    }

    /// Seals the one message that answers the newest event.
    ///
    /// # Errors
    /// `Unfinished` for a DONE that does not balance; `Fenced`, `Corrupt`, `Io`. Nothing was sealed.
    pub(crate) fn seal(&self, sealing: &Sealing<'_>) -> Result<StoredMessage> {
        self.change(|change, row| {
            let mut unit = change.need(&UNITS, &Key::name(self.unit.as_str()))?;
            let event = row.event.unwrap_or_default();
            let event_key = event_key(self.unit_no, self.no, event);
            let mut seen = change.need(&EVENTS, &event_key)?;
            assert!(seen.message.is_none(), "an event is answered once");
            let no = unit.next_message;
            unit.next_message += 1;
            for &seq in sealing.batches {
                let key = self.batch_key(seq);
                let mut batch = change.need(&BATCHES, &key)?;
                assert!(batch.state == BatchState::Confirmed, "only what is confirmed is announced");
                batch.state = BatchState::Announced(no);
                self.name_file(change, seq, batch.artifact.as_ref())?;
                change.put(&BATCHES, &key, &batch)?;
                self.count(change, &batch.item_type, |counts| {
                    counts.announced += u64::from(batch.items);
                    counts.artifacts_announced += 1;
                })?;
            }
            row.open_batches -= sealing.batches.len() as u64;
            if sealing.kind == MessageKind::Done && !row.done.contains(sealing.phase) {
                self.check_exhausted(change, Some(sealing.phase))?;
                if row.open_batches > 0 {
                    return Err(self.unfinished(format!("{} batches are in no message", row.open_batches)));
                }
                self.check_balance(change)?;
                if sealing.phase == Phase::Attachments {
                    self.check_attachments(change)?;
                }
                row.done.insert(sealing.phase);
            }
            let now = Micros::from_time(self.inner.clock.now());
            if let Some(seconds) = sealing.delay_seconds {
                let at = now.plus(std::time::Duration::from_secs(seconds));
                row.not_before = Some(NotBefore { at, asked_seconds: seconds });
            }
            row.message = Some(no);
            seen.message = Some(no);
            let message = MessageRow {
                run: self.no,
                phase: sealing.phase,
                event,
                kind: sealing.kind,
                event_type: sealing.event_type.clone(),
                fate: MessageFate::Sealed,
                sealed_at: now,
                artifacts: sealing.batches.len() as u64,
                finishes: sealing.finishes && sealing.kind == MessageKind::Done,
                key: super::message_key_text(&format!("{}/{}/{no}", self.unit, self.id), &sealing.body),
                body: sealing.body.clone().into_bytes(),
            };
            change.put(&EVENTS, &event_key, &seen)?;
            change.put(&MESSAGES, &message_key(self.unit_no, no), &message)?;
            change.put(&UNITS, &Key::name(self.unit.as_str()), &unit)?;
            Ok(StoredMessage {
                no,
                key: message.key,
                event_type: message.event_type,
                body: sealing.body.clone(),
                kind: message.kind,
                artifacts: message.artifacts,
            })
        })
    }

    /// Records that the platform accepted a message. If it ends the run, the watermark moves now. Says whether the run is
    /// over.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`; it counts as sealed still.
    pub(crate) fn delivered(&self, message: u64) -> Result<bool> {
        self.inner.tables.change(|change| {
            let unit_key = Key::name(self.unit.as_str());
            let mut unit = change.need(&UNITS, &unit_key)?;
            let mut row = self.checked_row(change, &unit)?;
            let sealed = change.need(&MESSAGES, &message_key(self.unit_no, message))?;
            let times = match sealed.fate {
                MessageFate::Delivered { times } => times.saturating_add(1),
                MessageFate::Sealed | MessageFate::Proven => 1,
            };
            let now = Micros::from_time(self.inner.clock.now());
            if self.inner.breaks(Rule::WatermarkFromStart) {
                row.started_at = now;
            }
            settle(change, &mut unit, self.no, &mut row, message, MessageFate::Delivered { times }, now)?;
            change.put(&RUNS, &run_key(self.unit_no, self.no), &row)?;
            change.put(&UNITS, &unit_key, &unit)?;
            Ok(row.status != RunStatus::Open)
        })
    }

    /// Undoes a seal, because the platform refused the message for good: its artifacts go into the next one, at most
    /// `artifacts_max` of them if it was too large.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`; the message is sealed still.
    pub(crate) fn refused(&self, message: u64, artifacts_max: Option<u64>) -> Result<()> {
        self.change(|change, row| {
            let message_key = message_key(self.unit_no, message);
            let sealed = change.need(&MESSAGES, &message_key)?;
            assert!(row.message == Some(message), "only the newest message can be unsealed");
            for (seq, mut batch) in self.batches_in(change, BatchState::Announced(message))? {
                batch.state = BatchState::Confirmed;
                change.put(&BATCHES, &self.batch_key(seq), &batch)?;
                self.count(change, &batch.item_type, |counts| {
                    counts.announced -= u64::from(batch.items);
                    counts.artifacts_announced -= 1;
                })?;
                row.open_batches += 1;
            }
            if sealed.kind == MessageKind::Done {
                row.done.remove(sealed.phase);
            }
            row.message = None;
            row.artifacts_max = artifacts_max.or(row.artifacts_max);
            let event_key = event_key(self.unit_no, self.no, sealed.event);
            let mut seen = change.need(&EVENTS, &event_key)?;
            seen.message = None;
            change.put(&EVENTS, &event_key, &seen)?;
            change.remove(&MESSAGES, &message_key)
        })
    }

    /// Whether the acceptance of a message was neither recorded nor proven.
    pub(crate) fn is_undelivered(&self, message: u64) -> Result<bool> {
        let sealed =
            self.inner.tables.view(|rows| rows.need(&MESSAGES, &message_key(self.unit_no, message)))?;
        Ok(sealed.fate == MessageFate::Sealed)
    }

    /// What the platform asked for: resolved by `resolve` once in a run, from the unit's bounds (oldest and newest
    /// moment asked for so far) and the last watermark, and the same ever after.
    ///
    /// # Errors
    /// Those of `resolve`; `Fenced`, `Corrupt`, `Io`.
    pub(crate) fn window(
        &self,
        resolve: impl FnOnce((Option<Micros>, Option<Micros>), Option<Micros>) -> Result<WindowRow>,
    ) -> Result<WindowRow> {
        let row = self.inner.tables.view(|rows| rows.need(&RUNS, &self.run_key()))?;
        if let Some(window) = row.window {
            return Ok(window);
        }
        self.change(|change, row| {
            let unit = change.need(&UNITS, &Key::name(self.unit.as_str()))?;
            let window = resolve(unit.bounds, row.since)?;
            row.window = Some(window);
            Ok(window)
        })
    }

    /// How long the source is to be left alone still, in whole seconds. More than was asked for cannot be left: then
    /// the clock stepped back, and the wait is over.
    pub(crate) fn delay_left_seconds(&self) -> Result<Option<u64>> {
        let row = self.inner.tables.view(|rows| rows.need(&RUNS, &run_key(self.unit_no, self.no)))?;
        let Some(NotBefore { at, asked_seconds }) = row.not_before else { return Ok(None) };
        let left_micros = at.0.saturating_sub(Micros::from_time(self.inner.clock.now()).0);
        let left = u64::try_from(left_micros).unwrap_or(0).div_ceil(1_000_000);
        Ok((1..=asked_seconds).contains(&left).then_some(left))
    }

    /// Percent of the phase that is done, as the extractor last estimated, and the artifacts that a message may carry
    /// after one that was too large.
    pub(crate) fn progress_and_artifacts_max(&self) -> Result<(Option<u8>, Option<u64>)> {
        let row = self.inner.tables.view(|rows| rows.need(&RUNS, &run_key(self.unit_no, self.no)))?;
        Ok((row.progress, row.artifacts_max))
    }

    pub(crate) fn breaks(&self, rule: Rule) -> bool {
        self.inner.breaks(rule)
    }

    /// Makes a change to the run, unless a later life has taken it up.
    pub(super) fn change<T>(&self, body: impl FnOnce(&Change<'_>, &mut RunRow) -> Result<T>) -> Result<T> {
        self.inner.tables.change(|change| {
            let unit = change.get(&UNITS, &Key::name(self.unit.as_str()))?;
            let unit = unit.ok_or_else(|| self.fenced())?;
            let mut row = self.checked_row(change, &unit)?;
            if row.status != RunStatus::Open {
                return Err(self.fenced());
            }
            let result = body(change, &mut row)?;
            change.put(&RUNS, &run_key(self.unit_no, self.no), &row)?;
            Ok(result)
        })
    }

    /// Looks at the run, unless a later life has taken it up or it is over.
    pub(super) fn look<T>(&self, body: impl FnOnce(&View<'_>, &RunRow) -> Result<T>) -> Result<T> {
        self.inner.tables.view(|rows| {
            let unit = rows.get(&UNITS, &Key::name(self.unit.as_str()))?;
            let row = self.checked_row(rows, &unit.ok_or_else(|| self.fenced())?)?;
            if row.status == RunStatus::Open { body(rows, &row) } else { Err(self.fenced()) }
        })
    }

    /// The run's row, if this handle is its newest life.
    fn checked_row(&self, rows: &impl Rows, unit: &UnitRow) -> Result<RunRow> {
        match rows.get(&RUNS, &run_key(self.unit_no, self.no))? {
            Some(row) if row.epoch == self.epoch && unit.run == Some(self.no) && unit.no == self.unit_no => {
                Ok(row)
            }
            _ => Err(self.fenced()),
        }
    }

    fn fenced(&self) -> Error {
        Error::Fenced { sync_unit: self.unit.to_string(), run: self.id.to_string() }
    }

    pub(super) fn unfinished(&self, reason: String) -> Error {
        Error::Unfinished { sync_unit: self.unit.to_string(), run: self.id.to_string(), reason }
    }

    pub(super) fn run_key(&self) -> Key {
        run_key(self.unit_no, self.no)
    }

    /// Another handle of the same life, for a batch to hold.
    pub(super) fn another(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            unit: self.unit.clone(),
            id: self.id.clone(),
            held: Arc::clone(&self.held),
            held_attachments: Arc::clone(&self.held_attachments),
            ..*self
        }
    }

    /// Every stream that was begun, of one phase or all, has given its last page.
    fn check_exhausted(&self, change: &Change<'_>, phase: Option<Phase>) -> Result<()> {
        for (name, stream) in change.all(&STREAMS, &self.run_key())? {
            if !stream.exhausted && phase.is_none_or(|phase| stream.phase == phase) {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(self.unfinished(format!("stream {name} is not exhausted")));
            }
        }
        Ok(())
    }

    /// What was read was confirmed and announced, record for record.
    fn check_balance(&self, change: &Change<'_>) -> Result<()> {
        for (name, counts) in change.all(&TYPES, &self.run_key())? {
            let staged = counts.read.saturating_sub(counts.skipped);
            if staged != counts.batched || staged != counts.confirmed || staged != counts.announced {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(self.unfinished(format!(
                    "of {} {name} read, {} were skipped, {} are in batches, {} confirmed and {} announced",
                    counts.read, counts.skipped, counts.batched, counts.confirmed, counts.announced
                )));
            }
        }
        Ok(())
    }
}

pub(super) fn run_key(unit: u64, run: u64) -> Key {
    Key::unit(unit).and_number(run)
}

pub(super) fn message_key(unit: u64, message: u64) -> Key {
    Key::unit(unit).and_number(message)
}

fn event_key(unit: u64, run: u64, hash: u64) -> Key {
    run_key(unit, run).and_number(hash)
}

fn current_run(change: &Change<'_>, unit: &UnitRow) -> Result<Option<(u64, RunRow)>> {
    match unit.run {
        Some(no) => Ok(Some((no, change.need(&RUNS, &run_key(unit.no, no))?))),
        None => Ok(None),
    }
}

/// A run id from the start time, other than any that the unit has had.
fn unused_run_id(change: &Change<'_>, unit: &UnitRow, now: Micros) -> Result<String> {
    let base = now.to_time().format("%Y%m%dT%H%M%S%.6fZ").to_string();
    let mut id = base.clone();
    let mut tries = 1_u64;
    while change.get(&RUN_IDS, &Key::unit(unit.no).and_hash(&id))?.is_some() {
        tries += 1;
        id = format!("{base}-{tries}");
    }
    Ok(id)
}

/// The unit's watermark, unless it lies too far in the future: then the latest of the past that the ledger knows.
fn usable_watermark(change: &Change<'_>, unit: &UnitRow, now: Micros) -> Result<Option<Micros>> {
    match unit.watermark {
        Some(watermark) if watermark > now.plus(CLOCK_AHEAD_MAX) => {
            let ledger = change.all(&LEDGER, &Key::unit(unit.no))?;
            Ok(ledger.into_iter().filter_map(|(_, row)| row.watermark).filter(|&past| past <= now).max())
        }
        watermark => Ok(watermark),
    }
}

/// Records that a message was accepted: its batches are gone, and the run is finished if the message ends it.
fn settle(
    change: &Change<'_>,
    unit: &mut UnitRow,
    no: u64,
    row: &mut RunRow,
    message_no: u64,
    fate: MessageFate,
    now: Micros,
) -> Result<()> {
    let key = message_key(unit.no, message_no);
    let mut message = change.need(&MESSAGES, &key)?;
    let first = message.fate == MessageFate::Sealed;
    if first || fate != MessageFate::Proven {
        message.fate = fate;
        change.put(&MESSAGES, &key, &message)?;
    }
    if !first {
        return Ok(());
    }
    for (tail, batch) in change.all(&BATCHES, &run_key(unit.no, no))? {
        if batch.state == BatchState::Announced(message_no) {
            let seq = super::rows::number_of(&tail)
                .map_err(|error| change.tables().damaged(BATCHES.name, &key, error.to_string()))?;
            change.remove(&BATCHES, &run_key(unit.no, no).and_number(seq))?;
        }
    }
    if message.finishes && row.status == RunStatus::Open {
        close_run(change, unit, no, row, RunStatus::Finished, now)?;
    }
    Ok(())
}

/// Ends a run: a finished one moves the watermark and the bookmarks, either leaves a row in the ledger. What only a
/// live run needs is dropped; its events and messages stay until the next run ends.
fn close_run(
    change: &Change<'_>,
    unit: &mut UnitRow,
    no: u64,
    row: &mut RunRow,
    status: RunStatus,
    now: Micros,
) -> Result<()> {
    assert!(row.status == RunStatus::Open, "a run ends once");
    let run = run_key(unit.no, no);
    let finished = status == RunStatus::Finished;
    let watermark = finished.then(|| row.started_at.min(now));
    if finished {
        unit.watermark = watermark;
        if let Some(window) = row.window {
            let (oldest, newest) = unit.bounds;
            // Without a beginning it reaches back for ever.
            let from = window.from.unwrap_or(Micros(0));
            unit.bounds =
                (Some(oldest.unwrap_or(from).min(from)), Some(newest.unwrap_or(window.to).max(window.to)));
        }
        for (name, stream) in change.all(&STREAMS, &run)? {
            let name = name_of(&name)
                .map_err(|error| change.tables().damaged(STREAMS.name, &run, error.to_string()))?;
            if let Some(json) = stream.bookmark {
                change.put(&BOOKMARKS, &Key::unit(unit.no).and_name(name), &BookmarkRow { json, run: no })?;
            }
        }
    }
    let mut types = Vec::new();
    for (name, counts) in change.all(&TYPES, &run)? {
        types.push(LedgerType {
            item_type: String::from_utf8_lossy(&name).into_owned(),
            read: counts.read,
            skipped: counts.skipped,
            announced: counts.announced,
            artifacts: counts.artifacts_announced,
        });
    }
    let findings = super::findings::sums(change, &run)?;
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
    };
    change.put(&LEDGER, &run_key(unit.no, no), &entry)?;
    if let Some(old) = no.checked_sub(LEDGER_RUNS_MAX) {
        change.remove(&LEDGER, &run_key(unit.no, old))?;
    }
    change.remove_all(&STREAMS, &run)?;
    change.remove_all(&TYPES, &run)?;
    change.remove_all(&CHUNKS, &run)?;
    change.remove_all(&BATCHES, &run)?;
    change.remove_all(&PAYLOADS, &run)?;
    change.remove_all(&FINDINGS, &run)?;
    change.remove(&POSITIONS, &run)?;
    drop_notes(change, unit.no)?;
    change.remove_range(&EVENTS, &Key::unit(unit.no), &run)?;
    change.remove_range(&MESSAGES, &Key::unit(unit.no), &message_key(unit.no, row.first_message))?;
    row.status = status;
    row.ended_at = Some(now);
    Ok(())
}
