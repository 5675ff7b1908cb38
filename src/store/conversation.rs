//! The conversation about a run, as it is stored: the events received, and the one message that answers each.
//!
//! An event is known by its identity. A new event proves that the message before it was accepted: the platform goes
//! on only then. A known event is answered with its sealed message, byte for byte. An event of a past run, or an
//! unanswered event that a newer one has followed, is an error and changes nothing.
//!
//! # What a crash leaves
//!
//! Every line is one transaction.
//!
//! | step | what it stores | what the next life does if the process is killed right after it |
//! | --- | --- | --- |
//! | accept | the event, and the run where it is new; the raised epoch | resumes the run: same start, same `since`; older lives are fenced |
//! | seal | the message, its artifacts marked with it | sends the same bytes under the same key |
//! | delivered | that the message was accepted; if it ends the run, watermark and bookmarks | answers the same event with the same bytes, and does nothing else |
//! | refused | the undone seal: its artifacts are confirmed again | seals a new message |

use crate::error::{Error, Result};
use crate::model::{Micros, Move, Phase, RunId, Safeguard, Step, phase_move};
use crate::transfer::Event;

use super::attachments::queue::{check_attachments, name_file};
use super::batches::states::{batches_in, move_batch};
use super::deaths::{is_unanswered, note_death};
use super::digest::KnownId;
use super::lifecycle::{
    check_balance, check_exhausted, close_run, current_run, find_run_id, get_or_create, new_run,
};
use super::notes::Inherited;
use super::open::SyncUnit;
use super::rows::{
    BATCHES, BatchState, EVENTS, EventRow, Key, MESSAGES, MessageFate, MessageKind, MessageRow, NotBefore,
    RUN_IDS, RUNS, RunIdRow, RunRow, RunStatus, UNITS, UnitRow, WindowRow, event_key, message_key, run_key,
};
use super::run_handle::{Run, find_by_id};
use super::tables::{Change, Rows};

/// An event, as far as a store needs to know it.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    /// The same whenever the same event is delivered.
    pub(crate) identity: String,
    /// Whether the identity holds an id of this one event; without one, all events of its kind look alike.
    pub(crate) has_ids: bool,
    pub(crate) run_id: Option<RunId>,
    pub(crate) phase: Phase,
    pub(crate) step: Step,
}

/// What to do about an event.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// Extract.
    Work(Run),
    /// The phase is over: send its DONE, with every batch that is confirmed and in no message yet.
    Repeat(Run),
    /// Answer with ERROR, for this reason.
    Refuse(Run, String),
    /// Send the message that was sealed for it.
    Replay(Run, StoredMessage),
    /// It was answered, and the message is gone: send nothing.
    AnsweredEarlier(Run),
}

/// A sealed message, as stored.
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
    /// Seconds, from now, for which the source asked for no requests.
    pub(crate) delay_seconds: Option<u64>,
    /// The error text of an ERROR, as in the body.
    pub(crate) error: Option<String>,
}

impl SyncUnit {
    /// Receives an event and decides what to do about it.
    ///
    /// `restored` says that all this store knows of the unit comes from a checkpoint. Then an event whose predecessor
    /// was not answered shows that a newer checkpoint was lost. A unit of which nothing is known begins with what it
    /// `inherits`.
    ///
    /// # Errors
    /// `StaleEvent`: it belongs to a past run, or a newer event has followed it; `Corrupt` or `Io`. Nothing was
    /// changed, except what the event proved about the message before it.
    pub(crate) fn accept(
        &self,
        event: &Incoming,
        restored: bool,
        inherits: Option<&Inherited>,
    ) -> Result<Accepted> {
        self.inner.tables.change(|change| {
            let mut unit = get_or_create(self, change)?;
            let inherits = inherits.filter(|inherited| inherited.is_news_to(&unit));
            if let Some(inherited) = inherits {
                inherited.to_unit(&mut unit);
                change.put(&UNITS, &self.key(), &unit)?;
            }
            let Some((no, mut row)) = self.find_run(change, &unit, event)? else {
                return Ok(Ok(self.enter_new(change, &mut unit, event, inherits)?));
            };
            if let (number, Some(seen)) = find_event(change, unit.no, no, &event.identity)?
                && !self.inner.breaks(Safeguard::EventsRemembered)
            {
                if let Some(identity) = seen.identity.named(&event.identity) {
                    let seen = EventRow { identity, ..seen.clone() };
                    change.put(&EVENTS, &event_key(unit.no, no, number), &seen)?;
                }
                if let Some(answer) = self.seen(change, &unit, no, &mut row, event, (number, &seen))? {
                    return Ok(answer);
                }
            }
            row.lost |= restored && row.status == RunStatus::Open && is_unanswered(&row);
            if let Some(message) = row.message {
                let run = Run::new(self, unit.no, no, &row, true)?;
                run.message_accepted(change, &mut unit, &mut row, message, MessageFate::Proven)?;
                change.put(&UNITS, &self.key(), &unit)?;
            }
            if row.status != RunStatus::Open {
                change.put(&RUNS, &run_key(unit.no, no), &row)?;
                // Without a run id it was counted to this run only while the run's last message was in doubt.
                if event.run_id.is_none() {
                    return Ok(Ok(self.enter_new(change, &mut unit, event, None)?));
                }
                return Ok(Err(self.stale(&row.id, "which is over")));
            }
            Ok(Ok(self.enter(change, &unit, no, row, event, true)?))
        })?
    }

    /// Begins a run with the event as its first.
    fn enter_new(
        &self,
        change: &Change<'_>,
        unit: &mut UnitRow,
        event: &Incoming,
        inherits: Option<&Inherited>,
    ) -> Result<Accepted> {
        // A store that does not know the run cannot know what was extracted in it before.
        let lost = event.step == Step::Continue || event.phase == Phase::Attachments;
        let (no, mut row) = new_run(self, change, unit, event.run_id.as_ref(), lost)?;
        if let Some(run) = inherits.and_then(|inherited| inherited.run.as_ref()) {
            run.to_run(change, unit, no, &mut row, (event.phase, event.step))?;
        }
        self.enter(change, unit, no, row, event, false)
    }

    /// The run that an event belongs to; `None` if it begins a new one. If only a hash of the run's id was known, the
    /// whole id is stored from now on. (But an event of a past run changes nothing.)
    fn find_run(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        event: &Incoming,
    ) -> Result<Option<(u64, RunRow)>> {
        let current = current_run(change, unit)?;
        let Some(id) = &event.run_id else {
            // Without an id it belongs to the current run, unless it starts something that this run has already done.
            let Some((no, row)) = current else { return Ok(None) };
            let message = match row.message {
                Some(message) => change.get(&MESSAGES, &message_key(unit.no, message))?,
                None => None,
            };
            let undelivered = message.is_some_and(|message| message.fate == MessageFate::Sealed);
            let repeats = event.step == Step::Start
                && phase_move(row.phase, row.done, event.step, event.phase) == Move::Repeat;
            let belongs = undelivered || (row.status == RunStatus::Open && !repeats);
            return Ok(belongs.then_some((no, row)));
        };
        let (number, known) = find_run_id(change, unit.no, id.as_str())?;
        match (known, current) {
            (Some(known), Some((no, row))) if known.run == no => {
                if let Some(id) = known.id.named(id.as_str()) {
                    let key = Key::unit(unit.no).and_number(number);
                    change.put(&RUN_IDS, &key, &RunIdRow { id, ..known })?;
                }
                Ok(Some((no, row)))
            }
            (Some(_), _) => Err(self.stale(id.as_str(), "which a newer run has followed")),
            (None, _) if self.is_past_run(change, id)? => {
                Err(self.stale(id.as_str(), "after which the unit's state was deleted"))
            }
            (None, _) => Ok(None),
        }
    }

    /// The answer to a known event; `None` if it counts as a new one.
    fn seen(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        no: u64,
        row: &mut RunRow,
        event: &Incoming,
        (number, seen): (u64, &EventRow),
    ) -> Result<Option<Result<Accepted>>> {
        let latest = row.event == Some(number);
        let Some(message_no) = seen.message else {
            if latest && row.status == RunStatus::Open {
                note_death(change, &run_key(unit.no, no), row, self.now())?;
                row.epoch += 1;
                if self.inner.breaks(Safeguard::StartKept) {
                    row.started_at = self.now();
                }
                change.put(&RUNS, &run_key(unit.no, no), row)?;
                return Ok(Some(Ok(self.work(unit, no, row, event, true)?)));
            }
            // Without an id, it cannot be recognised as the event that a newer one has followed.
            return Ok(event.has_ids.then(|| Err(self.stale(&row.id, "and a newer event has followed it"))));
        };
        let Some(message) = change.get(&MESSAGES, &message_key(unit.no, message_no))? else {
            let run = Run::new(self, unit.no, no, row, true)?;
            return Ok(event.has_ids.then_some(Ok(Accepted::AnsweredEarlier(run))));
        };
        if let MessageFate::Delivered { times } = message.fate {
            let goes_on = matches!(message.kind, MessageKind::Progress | MessageKind::Delay);
            if latest && goes_on && times >= 2 {
                // The platform reuses its ids: going on is better than another replay.
                row.events_reused += 1;
                return Ok(None);
            }
        }
        if !event.has_ids && message.fate != MessageFate::Sealed {
            return Ok(None);
        }
        let run = Run::new(self, unit.no, no, row, true)?;
        if message.body.is_empty() {
            // A checkpoint does not keep delivered messages. That it is asked for counts as sending it again.
            if let MessageFate::Delivered { times } = message.fate {
                let fate = MessageFate::Delivered { times: times.saturating_add(1) };
                change.put(&MESSAGES, &message_key(unit.no, message_no), &MessageRow { fate, ..message })?;
            }
            return Ok(Some(Ok(Accepted::AnsweredEarlier(run))));
        }
        Ok(Some(Ok(Accepted::Replay(run, self.stored(message_no, message)?))))
    }

    /// Whether the newest event is answered by a message whose acceptance was neither recorded nor proven.
    #[cfg(feature = "testing")]
    pub(crate) fn has_sealed(&self) -> Result<bool> {
        let Some(run) = self.newest_run()? else { return Ok(false) };
        let message = self.inner.tables.view(|rows| Ok(rows.need(&RUNS, &run.run_key())?.message))?;
        message.map_or(Ok(false), |message| run.is_undelivered(message))
    }

    /// Makes an event the newest of its run; the run enters the event's phase, or goes on with it.
    fn enter(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        no: u64,
        mut row: RunRow,
        event: &Incoming,
        resumed: bool,
    ) -> Result<Accepted> {
        if is_unanswered(&row) {
            note_death(change, &run_key(unit.no, no), &mut row, self.now())?;
        }
        row.events += 1;
        // A new run is in its first life.
        row.epoch += u64::from(resumed);
        row.activity.changed_at = Some(self.now());
        if resumed && self.inner.breaks(Safeguard::StartKept) {
            row.started_at = self.now();
        }
        let (number, _) = find_event(change, unit.no, no, &event.identity)?;
        row.event = Some(number);
        row.message = None;
        let identity = KnownId::Whole(event.identity.clone());
        let seen = EventRow { identity, order: row.events, accepted_at: self.now(), message: None };
        change.put(&EVENTS, &event_key(unit.no, no, number), &seen)?;
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
        let run = Run::new(self, unit.no, no, row, resumed)?;
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

    fn stale(&self, run: &str, reason: &str) -> Error {
        Error::StaleEvent { sync_unit: self.id.to_string(), run: run.to_owned(), reason: reason.to_owned() }
    }
}

impl Run {
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
                let batch = change.need(&BATCHES, &self.batch_key(seq))?;
                name_file(self, change, seq, batch.artifact.as_ref())?;
                move_batch(self, change, row, seq, batch, &[Event::Sealed], no)?;
            }
            if sealing.kind == MessageKind::Done && !row.done.contains(sealing.phase) {
                check_exhausted(self, change, Some(sealing.phase))?;
                if row.open_batches > 0 {
                    return Err(self.unfinished(format!("{} batches are in no message", row.open_batches)));
                }
                check_balance(self, change)?;
                if sealing.phase == Phase::Attachments {
                    check_attachments(self, change)?;
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
                key: message_key_text(&format!("{}/{}/{no}", self.unit, self.id), &sealing.body),
                body: sealing.body.clone().into_bytes(),
                error: sealing.error.clone(),
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

    /// Records that the platform accepted a message. If it ends the run, the watermark moves now. Returns whether the
    /// run is over.
    ///
    /// `Fenced`, `Corrupt`, `Io`; the message still counts as sealed.
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
            if self.inner.breaks(Safeguard::WatermarkFromStart) {
                row.started_at = Micros::from_time(self.inner.clock.now());
            }
            let fate = MessageFate::Delivered { times };
            self.message_accepted(change, &mut unit, &mut row, message, fate)?;
            change.put(&RUNS, &run_key(self.unit_no, self.no), &row)?;
            change.put(&UNITS, &unit_key, &unit)?;
            Ok(row.status != RunStatus::Open)
        })
    }

    /// Stores what is known about the acceptance of a message. The first time, the batches that it names become
    /// announced, and the run finishes if the message ends it.
    fn message_accepted(
        &self,
        change: &Change<'_>,
        unit: &mut UnitRow,
        row: &mut RunRow,
        message_no: u64,
        fate: MessageFate,
    ) -> Result<()> {
        let key = message_key(self.unit_no, message_no);
        let mut message = change.need(&MESSAGES, &key)?;
        let first = message.fate == MessageFate::Sealed;
        if first || fate != MessageFate::Proven {
            message.fate = fate;
            change.put(&MESSAGES, &key, &message)?;
        }
        if !first {
            return Ok(());
        }
        for (seq, batch) in batches_in(self, change, BatchState::Announced(message_no))? {
            move_batch(self, change, row, seq, batch, &[Event::MessageAccepted], 0)?;
        }
        if message.finishes && row.status == RunStatus::Open {
            let now = Micros::from_time(self.inner.clock.now());
            close_run(change, unit, self.no, row, RunStatus::Finished, now)?;
        }
        Ok(())
    }

    /// Undoes a seal, because the platform refused the message for good: its artifacts go into the next message. If
    /// it was too large, the next one carries at most `artifacts_max` of them.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`; the message is still sealed.
    pub(crate) fn refused(&self, message: u64, artifacts_max: Option<u64>) -> Result<()> {
        self.change(|change, row| {
            let message_key = message_key(self.unit_no, message);
            let sealed = change.need(&MESSAGES, &message_key)?;
            assert!(row.message == Some(message), "only the newest message can be unsealed");
            for (seq, batch) in batches_in(self, change, BatchState::Announced(message))? {
                move_batch(self, change, row, seq, batch, &[Event::MessageRefused], 0)?;
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

    /// What the platform asked for. `resolve` computes it once in a run, from the unit's bounds (the oldest and
    /// newest moment asked for so far) and the last watermark; after that the stored result is returned.
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

    /// How long the source still asks for no requests, in whole seconds. A remaining wait longer than the one asked
    /// for means that the clock stepped back; then the wait is over.
    pub(crate) fn delay_left_seconds(&self) -> Result<Option<u64>> {
        let row = self.inner.tables.view(|rows| rows.need(&RUNS, &run_key(self.unit_no, self.no)))?;
        let Some(NotBefore { at, asked_seconds }) = row.not_before else { return Ok(None) };
        let left_micros = at.0.saturating_sub(Micros::from_time(self.inner.clock.now()).0);
        let left = u64::try_from(left_micros).unwrap_or(0).div_ceil(1_000_000);
        Ok((1..=asked_seconds).contains(&left).then_some(left))
    }

    /// The progress of the phase in percent, as the extractor last estimated it, and the most artifacts that a
    /// message may carry after one that was too large.
    pub(crate) fn progress_and_artifacts_max(&self) -> Result<(Option<u8>, Option<u64>)> {
        let row = self.inner.tables.view(|rows| rows.need(&RUNS, &run_key(self.unit_no, self.no)))?;
        Ok((row.progress, row.artifacts_max))
    }
}

/// What a run knows of an event, and the number of its row, or of the first free one.
fn find_event(rows: &impl Rows, unit: u64, run: u64, identity: &str) -> Result<(u64, Option<EventRow>)> {
    find_by_id(rows, &EVENTS, &run_key(unit, run), identity, |row| &row.identity)
}

/// The idempotency key of a message: visible ASCII, because it becomes a header, and different for different bytes.
pub(crate) fn message_key_text(name: &str, body: &str) -> String {
    use std::fmt::Write;
    let mut key = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            key.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(key, "%{byte:02X}");
        }
    }
    let _ = write!(key, "-{:08x}", super::codec::checksum(body.as_bytes()));
    key
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::lifecycle::Deletion;
    use super::super::{BatchSettling, Page, Store, open};
    use super::*;
    use crate::record::Record;

    /// Two texts with the same XXH3 of 64 bits.
    const TWINS: [&str; 2] = ["cgacponhdmlhpbcg", "ihganlcdfnnmgpck"];

    /// Stages a batch of one record, uploads and confirms it, and seals a PROGRESS that names it. Returns the number
    /// of the message.
    pub(in crate::store) fn seal_a_batch(run: &Run, phase: Phase) -> u64 {
        let page = |_: Option<u32>| -> Result<Page<u32>> {
            Ok(Page::last().record("issues", Record::new("I-1", &serde_json::json!({}))?))
        };
        for batch in run.batches("issues", page) {
            batch.unwrap().uploaded("artifact-1").unwrap();
        }
        run.settle_batches(&[(1, BatchSettling::Confirmed)]).unwrap();
        let sealing = Sealing {
            phase,
            kind: MessageKind::Progress,
            event_type: "PROGRESS".to_owned(),
            batches: &[1],
            body: "{}".to_owned(),
            finishes: false,
            delay_seconds: None,
            error: None,
        };
        run.seal(&sealing).unwrap().no
    }

    fn event(identity: &str, run: &str, step: Step) -> Incoming {
        Incoming {
            identity: identity.to_owned(),
            has_ids: true,
            run_id: Some(RunId::new(run).unwrap()),
            phase: Phase::Data,
            step,
        }
    }

    fn work(accepted: Result<Accepted>) -> Run {
        match accepted {
            Ok(Accepted::Work(run)) => run,
            other => panic!("{other:?}"),
        }
    }

    /// The run for which an event is too late.
    fn stale(accepted: Result<Accepted>) -> String {
        match accepted {
            Err(Error::StaleEvent { run, .. }) => run,
            other => panic!("{other:?}"),
        }
    }

    fn deletion(identity: &str, run: Option<&str>) -> Deletion {
        let run_id = run.map(|run| RunId::new(run).unwrap());
        Deletion { identity: identity.to_owned(), told_apart: true, run_id }
    }

    fn unit() -> (tempfile::TempDir, open::SyncUnit) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state.redb")).unwrap();
        let unit = store.sync_unit("acme/tickets").unwrap();
        (dir, unit)
    }

    #[test]
    fn two_runs_whose_ids_have_one_hash_are_two() {
        let (_dir, unit) = unit();
        let [one, other] = TWINS;
        let first = work(unit.accept(&event("1", one, Step::Start), false, None));
        // A new run replaces the first, which is over.
        let second = work(unit.accept(&event("2", other, Step::Start), false, None));
        assert_ne!((first.no, first.id().as_str()), (second.no, second.id().as_str()));
        assert!(matches!(
            unit.accept(&event("3", one, Step::Continue), false, None),
            Err(Error::StaleEvent { .. })
        ));
        assert!(work(unit.accept(&event("2", other, Step::Start), false, None)).resumed());
        // Both outlive the unit's state.
        unit.delete_for(&deletion("4", None)).unwrap();
        for id in TWINS {
            assert_eq!(stale(unit.accept(&event("5", id, Step::Start), false, None)), id);
            assert!(unit.came_late(&deletion("6", Some(id))).unwrap());
        }
        assert!(!unit.came_late(&deletion("6", Some("third"))).unwrap());
        assert!(
            unit.came_late(&deletion("4", None)).unwrap() && !unit.came_late(&deletion("6", None)).unwrap()
        );
        let third = work(unit.accept(&event("7", "third", Step::Start), false, None));
        assert_eq!(third.no, 1, "nothing else was left of the unit");
    }

    #[test]
    fn two_events_whose_identities_have_one_hash_are_two() {
        let (_dir, unit) = unit();
        let [one, other] = TWINS;
        let run = work(unit.accept(&event(one, "run", Step::Start), false, None));
        let sealing = |body: &str| Sealing {
            phase: Phase::Data,
            kind: MessageKind::Progress,
            event_type: "PROGRESS".to_owned(),
            batches: &[],
            body: body.to_owned(),
            finishes: false,
            delay_seconds: None,
            error: None,
        };
        let sealed = run.seal(&sealing("{}")).unwrap();
        run.delivered(sealed.no).unwrap();
        // It is not taken for the event that was answered.
        let run = work(unit.accept(&event(other, "run", Step::Continue), false, None));
        let sealed = run.seal(&sealing("[]")).unwrap();
        for (identity, body) in [(one, "{}"), (other, "[]")] {
            match unit.accept(&event(identity, "run", Step::Continue), false, None).unwrap() {
                Accepted::Replay(_, message) => assert_eq!(message.body, body),
                other => panic!("{other:?}"),
            }
        }
        assert!(run.is_undelivered(sealed.no).unwrap());
    }

    /// Ids as a checkpoint of an earlier version left them.
    #[test]
    fn an_id_that_is_known_by_64_bits_is_known_whole_once_it_is_named_again() {
        let (_dir, unit) = unit();
        let [one, other] = TWINS;
        let run = work(unit.accept(&event(one, one, Step::Start), false, None));
        let (runs, events) = (Key::unit(run.unit_no), run.run_key());
        let number = super::super::digest::name_hash(one);
        let tables = &unit.inner.tables;
        let known = || {
            let known = tables.view(|rows| {
                Ok((
                    rows.all(&RUN_IDS, &runs)?.remove(0).1.id,
                    rows.all(&EVENTS, &events)?.remove(0).1.identity,
                ))
            });
            known.unwrap()
        };
        tables
            .change(|change| {
                let key = runs.clone().and_number(number);
                let row = change.need(&RUN_IDS, &key)?;
                change.put(&RUN_IDS, &key, &RunIdRow { id: KnownId::Number, ..row })?;
                let key = events.clone().and_number(number);
                let row = change.need(&EVENTS, &key)?;
                change.put(&EVENTS, &key, &EventRow { identity: KnownId::Number, ..row })
            })
            .unwrap();
        // As long as that is so, a twin is taken for it.
        let is_known = |id: &str| {
            let is_known = tables.view(|rows| {
                let run = find_run_id(rows, run.unit_no, id)?.1;
                let event = find_event(rows, run.as_ref().map_or(0, |_| 1), 1, id)?.1;
                Ok((run.is_some(), event.is_some()))
            });
            is_known.unwrap()
        };
        assert_eq!((is_known(other), known()), ((true, true), (KnownId::Number, KnownId::Number)));
        // An event of the run names the run alone; the event itself names both.
        work(unit.accept(&event("2", one, Step::Continue), false, None));
        assert_eq!(known(), (KnownId::Whole(one.to_owned()), KnownId::Number));
        assert!(
            unit.accept(&event(one, one, Step::Start), false, None).is_err(),
            "a newer one has followed it"
        );
        assert_eq!(known(), (KnownId::Whole(one.to_owned()), KnownId::Whole(one.to_owned())));
        // From then on a twin is another: an event of its own, and then a run.
        assert_eq!(is_known(one), (true, true));
        assert_eq!(is_known(other), (false, false));
        work(unit.accept(&event(other, one, Step::Continue), false, None));
        let next = work(unit.accept(&event("3", other, Step::Start), false, None));
        assert_eq!((next.no, next.resumed()), (run.no + 1, false));
    }

    /// Every move of a batch may use another table than the one in `transfer`.
    #[test]
    fn what_an_accepted_message_names_moves_as_the_table_says_and_the_figures_with_it() {
        use crate::transfer::{Rules, State, Table, Tables};

        fn confirmed_again(rules: Rules, state: State, event: Event) -> Option<State> {
            match (state, event) {
                (State::Sealed, Event::MessageAccepted) => Some(State::Confirmed),
                _ => rules.after(state, event),
            }
        }

        let delivered = |table: Option<Table>| {
            let dir = tempfile::tempdir().unwrap();
            let options = Store::options().transfer_tables(Tables { batches: table, attachments: None });
            let store = options.open(dir.path().join("state.redb")).unwrap();
            let unit = store.sync_unit("acme/tickets").unwrap();
            let run = work(unit.accept(&event("1", "run", Step::Start), false, None));
            run.delivered(seal_a_batch(&run, Phase::Data)).unwrap();
            let figures = unit.inner.tables.view(|rows| {
                let counts = rows.need(&super::super::rows::TYPES, &run.run_key().and_name("issues"))?;
                let open = rows.need(&RUNS, &run.run_key())?.open_batches;
                Ok((open, counts.confirmed, counts.announced, counts.artifacts_announced))
            });
            (run.confirmed().unwrap().len(), figures.unwrap())
        };
        assert_eq!(delivered(None), (0, (0, 1, 1, 1)));
        assert_eq!(delivered(Some(confirmed_again)), (1, (1, 1, 0, 0)));
    }

    #[test]
    fn the_last_64_run_ids_and_deletions_outlive_the_state() {
        let (_dir, unit) = unit();
        for number in 1..=70 {
            work(unit.accept(&event("1", &format!("run-{number}"), Step::Start), false, None));
            if number == 40 {
                unit.delete().unwrap();
            }
        }
        for number in 1..=70 {
            unit.delete_for(&deletion(&format!("deletion-{number}"), None)).unwrap();
        }
        let (_there, restored) = self::unit();
        let checkpoint = unit.checkpoint_without_run("token", &deletion("deletion-70", None)).unwrap();
        restored.restore(&checkpoint, &[]).unwrap();
        for unit in [unit, restored] {
            for number in 1..=70 {
                let run = format!("run-{number}");
                assert_eq!(unit.came_late(&deletion("other", Some(&run))).unwrap(), number > 6, "{number}");
                let again = deletion(&format!("deletion-{number}"), None);
                assert_eq!(unit.came_late(&again).unwrap(), number > 6, "{number}");
            }
        }
    }

    #[test]
    fn a_deletion_is_late_by_its_run_and_by_itself_and_not_where_neither_is_known() {
        let (_dir, unit) = unit();
        work(unit.accept(&event("1", "first", Step::Start), false, None));
        // The current run may ask for it; one that another has followed may not.
        assert!(!unit.came_late(&deletion("2", Some("first"))).unwrap());
        work(unit.accept(&event("3", "second", Step::Start), false, None));
        assert!(unit.came_late(&deletion("2", Some("first"))).unwrap());
        assert!(!unit.came_late(&deletion("2", Some("second"))).unwrap());
        // An event that cannot be distinguished from others is never recognised.
        let without = Deletion { told_apart: false, ..deletion("any", None) };
        unit.delete_for(&without).unwrap();
        assert!(!unit.came_late(&without).unwrap());
        unit.delete_attachments_for(&deletion("4", Some("of its own"))).unwrap();
        assert!(unit.came_late(&deletion("4", Some("of its own"))).unwrap());
        assert!(!unit.came_late(&deletion("5", Some("of its own"))).unwrap());
    }

    #[test]
    fn an_event_without_an_id_that_comes_after_the_last_done_begins_a_run_though_its_acceptance_was_not_recorded()
     {
        let (_dir, unit) = unit();
        let without_ids = |phase, step| Incoming {
            identity: format!("{phase}/{step:?}"),
            has_ids: false,
            run_id: None,
            phase,
            step,
        };
        let start = without_ids(Phase::Data, Step::Start);
        let first = work(unit.accept(&start, false, None));
        let sealing = Sealing {
            phase: Phase::Data,
            kind: MessageKind::Done,
            event_type: "DONE".to_owned(),
            batches: &[],
            body: "{}".to_owned(),
            finishes: true,
            delay_seconds: None,
            error: None,
        };
        // Sent and accepted; the process dies before it records that.
        let sealed = first.seal(&sealing).unwrap();
        assert!(first.is_undelivered(sealed.no).unwrap());
        let next = work(unit.accept(&without_ids(Phase::Metadata, Step::Start), false, None));
        assert_eq!((next.no, next.resumed()), (first.no + 1, false));
        assert!(!first.is_undelivered(sealed.no).unwrap(), "the event proved it");
        assert_eq!(next.since(), Some(first.started_at()), "and so the run is finished");
        // An event that has the run's id is still stale.
        let late = Incoming { run_id: Some(first.id().clone()), ..start };
        assert_eq!(stale(unit.accept(&late, false, None)), first.id().as_str());
    }
}
