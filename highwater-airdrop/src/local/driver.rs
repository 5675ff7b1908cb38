//! Plays the platform for a whole sync: sends one event after another, as the answers require.
//!
//! A sync is one run of one sync unit: external sync units (as long as the directory has no finished sync of the
//! unit), metadata, data, attachments. After DONE comes the next phase, after PROGRESS CONTINUE at once, after DELAY
//! CONTINUE when its seconds have passed. ERROR ends the sync (or, as often as the settings allow, is followed by
//! START of the same phase). Each event has its own request id; its answer is the one accepted message whose
//! `event_context` echoes it.
//!
//! What the driver remembers is in `platform.json`, which is always replaced as a whole: for each sync unit how many
//! syncs are finished, the run, and its *pending* event, byte for byte. An event is pending before it is sent. It
//! stays pending until its answer is found, and the same replacement stores what follows from the answer. So, after a
//! kill:
//!
//! | killed | the next sync |
//! |---|---|
//! | before the event was on disk | creates it, with other ids that nobody has seen yet |
//! | before it was sent, or while the worker worked | sends the same event again, with the same bytes |
//! | after the answer was accepted | finds the answer, and goes on without sending it again |
//! | during the wait for a DELAY | waits for the rest of it |

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use highwater::{BoxError, Clock, Phase, RunId, SyncUnitId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::events::{SyncSettings, UNKNOWN_EVENT, Verdict, answer_of, event_json, event_type};
use super::{Held, Local, lock_file};
use crate::error::{Error, Result};

const FILE: &str = "platform.json";
/// The format of `platform.json`.
const FORMAT: u32 = 1;
/// Characters of an extractor's error text that are kept.
const ERROR_CHARS_MAX: usize = 2_000;
/// The delay in seconds, if it is not written correctly.
const DELAY_SECONDS_MAX: f64 = 1_000_000.0;

/// An event that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalEvent {
    /// The phase that it is of.
    pub phase: Phase,
    /// Its event type, as spelled on the wire.
    pub event_type: String,
    /// Its request id.
    pub request_id: String,
    /// The event itself, a JSON object: the same bytes, however often it is sent.
    pub json: String,
    /// How long to wait before it is sent, for a DELAY.
    pub wait: Duration,
}

/// A step of a sync, for a progress display.
#[derive(Debug)]
#[non_exhaustive]
pub enum SyncStep<'a> {
    /// The sync waits for a DELAY before this event is sent.
    Waiting(&'a LocalEvent),
    /// The worker is given this event.
    Sending(&'a LocalEvent),
    /// The event was answered by this message.
    Answered {
        /// The phase of both.
        phase: Phase,
        /// The message.
        message: &'a Value,
    },
}

/// The result of a sync.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncReport {
    /// The run.
    pub run: RunId,
    /// Whether it was the unit's first import, or an incremental sync.
    pub initial: bool,
    /// Events of each phase; one that was sent again after a kill counts once.
    pub invocations: BTreeMap<Phase, u64>,
    /// Messages of the run that were accepted.
    pub messages: u64,
    /// What those messages announced, by item type.
    pub items: BTreeMap<String, ItemTotals>,
    /// The event type of the last message of each phase.
    pub answers: BTreeMap<Phase, String>,
}

/// What the messages of a run announced of one item type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ItemTotals {
    /// Artifacts.
    pub artifacts: u64,
    /// Records in them, as the messages say.
    pub records: u64,
}

/// The content of `platform.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    format: u32,
    /// The number of run and request ids that were assigned.
    ids: u64,
    /// By sync unit id.
    units: BTreeMap<String, Unit>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Unit {
    finished_syncs: u64,
    /// Events created, over all runs: the last sequence version.
    events: u64,
    run: Option<Run>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    id: String,
    initial: bool,
    /// Where in `messages.jsonl` its messages begin.
    messages_from: u64,
    invocations: BTreeMap<Phase, u64>,
    /// How often it went on after ERROR.
    #[serde(default)]
    errors: u64,
    standing: Standing,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    /// The run has no event yet; never on disk.
    Begun,
    Pending(Pending),
    Done,
    Failed {
        answer: String,
        message: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pending {
    phase: Phase,
    event_type: String,
    request_id: String,
    event: String,
    /// Where in `messages.jsonl` to look for its answer.
    messages_from: u64,
    /// When it may be sent, in microseconds since 1970, and how many seconds the DELAY asked for. If the clock steps
    /// back, the wait is never longer than that.
    not_before: Option<i64>,
    delay_seconds: u64,
}

impl Local {
    /// Plays a whole sync: gives `invoke` one event after another, finds the answer among the accepted messages, and
    /// goes on accordingly. An unfinished sync of the unit is continued, from the event that waits for its answer;
    /// after one that ended with ERROR, a new run begins.
    ///
    /// `invoke` is one invocation of the worker. It returns when the worker has ended: `Err` if the worker failed.
    /// `observe` is called at each step.
    ///
    /// # Durability
    /// An event is on disk before it is sent. The caller may be killed at any point, and sync again.
    ///
    /// # Errors
    /// `Worker` with the error of `invoke`; `NotAnswered` if it left no answer, two, or an invalid one; `SyncFailed`
    /// if the answer was ERROR; `NoEnd` after more invocations than the settings allow; `InUse` if another sync runs
    /// in this directory; `Invalid` for invalid settings; `Io`, `NewerFormat` and `NotALocal` as for [`Local::open`].
    pub fn sync<E: Into<BoxError>>(
        &self,
        settings: &SyncSettings,
        clock: &dyn Clock,
        mut invoke: impl FnMut(&str) -> Result<(), E>,
        mut observe: impl FnMut(&SyncStep<'_>),
    ) -> Result<SyncReport> {
        let path = self.dir.join("sync.lock");
        // A separate file: the same process could lock `local.lock` again.
        let lock = lock_file(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse { path }),
            Err(fs::TryLockError::Error(error)) => {
                return Err(Error::io(format!("lock {}", path.display()), error));
            }
        }
        let report = self.sync_locked(settings, clock, &mut invoke, &mut observe);
        // A process that another thread starts now has the file open for a moment, too: closing it is not enough.
        let _ = lock.unlock();
        report
    }

    fn sync_locked<E: Into<BoxError>>(
        &self,
        settings: &SyncSettings,
        clock: &dyn Clock,
        invoke: &mut impl FnMut(&str) -> Result<(), E>,
        observe: &mut impl FnMut(&SyncStep<'_>),
    ) -> Result<SyncReport> {
        self.begin_sync(settings, clock)?;
        let mut unanswered = None;
        loop {
            let mut turn = Turn::take(self, settings, clock)?;
            let answered = turn.settle()?;
            let event = turn.pending();
            // The caller's closures may use the directory, so they are called without its lock.
            drop(turn);
            if let Some((phase, message)) = answered {
                observe(&SyncStep::Answered { phase, message: &message });
            }
            let Some(event) = event else { return Turn::take(self, settings, clock)?.report() };
            if unanswered.as_ref() == Some(&event.request_id) {
                let reason = "no accepted message echoes its request_id".to_owned();
                return Err(Error::NotAnswered {
                    event: event.event_type,
                    request: event.request_id,
                    reason,
                });
            }
            if !event.wait.is_zero() {
                observe(&SyncStep::Waiting(&event));
                clock.sleep(event.wait);
            }
            observe(&SyncStep::Sending(&event));
            invoke(&event.json).map_err(|source| Error::Worker {
                event: event.event_type,
                request: event.request_id.clone(),
                source: source.into(),
            })?;
            unanswered = Some(event.request_id);
        }
    }

    /// Begins a sync, for a caller that invokes the worker without [`Local::sync`]; or continues an unfinished one of
    /// the unit, unless its last answer was ERROR. Returns the run.
    ///
    /// # Durability
    /// When this returns `Ok`, the run and its first event survive power loss.
    ///
    /// # Errors
    /// As [`Local::sync`].
    pub fn begin_sync(&self, settings: &SyncSettings, clock: &dyn Clock) -> Result<RunId> {
        SyncUnitId::new(&settings.external_sync_unit_id)?;
        SyncUnitId::new(&settings.sync_unit_id)?;
        let mut turn = Turn::take(self, settings, clock)?;
        if turn.pending().is_some() {
            match turn.settle() {
                Ok(_) => return turn.run_id(),
                Err(Error::SyncFailed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        turn.begin()?;
        turn.run_id()
    }

    /// The event that the platform would send now: the pending one, as long as no accepted message answers it; after
    /// that, the one that follows from the answer. `None` if the sync is finished, or none was begun.
    ///
    /// # Durability
    /// When this returns `Ok`, the event survives power loss.
    ///
    /// # Errors
    /// As for [`Local::sync`]; `SyncFailed` at every call, until a new sync is begun.
    pub fn next_event(&self, settings: &SyncSettings, clock: &dyn Clock) -> Result<Option<LocalEvent>> {
        let mut turn = Turn::take(self, settings, clock)?;
        turn.settle()?;
        Ok(turn.pending())
    }

    /// Replaces the event that waits for its answer by a CONTINUE with another request id, as a platform may do after
    /// an invocation that ended without an answer. A message that still answers the old event is stored, and not
    /// used.
    ///
    /// # Errors
    /// As [`Local::sync`].
    pub fn continue_sync(&self, settings: &SyncSettings, clock: &dyn Clock) -> Result<()> {
        let mut turn = Turn::take(self, settings, clock)?;
        turn.settle()?;
        match turn.run().cloned() {
            Some(run) => match run.standing.clone() {
                Standing::Pending(pending) if pending.phase.continues() => {
                    turn.make_event(run, pending.phase, true, 0)
                }
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Gives up an unfinished sync of the unit, if there is one: the next one begins another run.
    ///
    /// # Errors
    /// `Io`, `NewerFormat` and `NotALocal` as [`Local::open`].
    pub fn give_up_sync(&self, settings: &SyncSettings, clock: &dyn Clock) -> Result<()> {
        let mut turn = Turn::take(self, settings, clock)?;
        match turn.run().cloned() {
            Some(mut run) if matches!(run.standing, Standing::Pending(_)) => {
                let message = "the platform gave the run up".to_owned();
                run.standing = Standing::Failed { answer: "no message".to_owned(), message };
                turn.unit().run = Some(run);
                turn.save()
            }
            _ => Ok(()),
        }
    }

    /// The progress of the unit's newest run; `None` if there is no run.
    ///
    /// # Errors
    /// `Io`, `NewerFormat` and `NotALocal` as [`Local::open`].
    pub fn sync_report(&self, settings: &SyncSettings, clock: &dyn Clock) -> Result<Option<SyncReport>> {
        let turn = Turn::take(self, settings, clock)?;
        if turn.run().is_none() { Ok(None) } else { turn.report().map(Some) }
    }
}

/// What the driver remembers, read to be changed once, with the directory's lock held.
struct Turn<'a> {
    local: &'a Local,
    held: Held<'a>,
    settings: &'a SyncSettings,
    clock: &'a dyn Clock,
    memory: Memory,
}

impl<'a> Turn<'a> {
    fn take(local: &'a Local, settings: &'a SyncSettings, clock: &'a dyn Clock) -> Result<Self> {
        let held = local.hold()?;
        let path = local.dir.join(FILE);
        let memory = match fs::read(&path) {
            Ok(text) => {
                let damaged = |error: serde_json::Error| Error::NotALocal {
                    path: path.clone(),
                    reason: error.to_string(),
                };
                let format: Value = serde_json::from_slice(&text).map_err(damaged)?;
                match format.get("format").and_then(Value::as_u64) {
                    Some(found) if found > u64::from(FORMAT) => {
                        return Err(Error::NewerFormat { path, found, supported: FORMAT });
                    }
                    _ => serde_json::from_value(format).map_err(damaged)?,
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Memory { format: FORMAT, ids: 0, units: BTreeMap::new() }
            }
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        Ok(Self { local, held, settings, clock, memory })
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.memory)
            .map_err(|error| Error::io(format!("write {FILE}"), error))?;
        self.local.replace(&self.held, FILE, &text)
    }

    fn unit(&mut self) -> &mut Unit {
        self.memory.units.entry(self.settings.sync_unit_id.clone()).or_default()
    }

    fn run(&self) -> Option<&Run> {
        self.memory.units.get(&self.settings.sync_unit_id)?.run.as_ref()
    }

    fn run_id(&self) -> Result<RunId> {
        Ok(RunId::new(self.run().map(|run| run.id.clone()).unwrap_or_default())?)
    }

    /// Begins a run, replacing the last one.
    fn begin(&mut self) -> Result<()> {
        let id = self.fresh_id();
        RunId::new(&id)?;
        let messages_from = self.held.messages.end();
        let asked = self.settings.initial;
        let unit = self.unit();
        let initial = asked.unwrap_or(unit.finished_syncs == 0);
        unit.run = None;
        let (invocations, standing) = (BTreeMap::new(), Standing::Begun);
        let run = Run { id, initial, messages_from, invocations, errors: 0, standing };
        let mut phases = self.settings.phases.iter().copied();
        let first = phases.find(|phase| initial || *phase != Phase::ExternalSyncUnits);
        let first = first.ok_or_else(|| Error::Invalid {
            what: format!("a sync of {} in these phases", self.settings.sync_unit_id),
            reason: "an incremental sync needs at least one of metadata, data and attachments".to_owned(),
        })?;
        self.make_event(run, first, false, 0)
    }

    /// Looks for the answer to the pending event, and acts on it. `None` if there is no answer yet, or no pending
    /// event.
    /// pending.
    fn settle(&mut self) -> Result<Option<(Phase, Value)>> {
        let Some(mut run) = self.run().cloned() else { return Ok(None) };
        let pending = match run.standing.clone() {
            Standing::Pending(pending) => pending,
            Standing::Failed { answer, message } => {
                return Err(Error::SyncFailed { run: run.id, answer, message });
            }
            Standing::Begun | Standing::Done => return Ok(None),
        };
        let phase = pending.phase;
        let Some(message) = self.answer(&pending)? else { return Ok(None) };
        let wrong = |reason: String| Error::NotAnswered {
            event: pending.event_type.clone(),
            request: pending.request_id.clone(),
            reason,
        };
        let answer = message.get("event_type").and_then(Value::as_str).unwrap_or_default();
        let verdict = match answer_of(answer) {
            Some((answered, verdict)) if answered == phase => verdict,
            None if answer == UNKNOWN_EVENT => {
                let (spelled, other) =
                    if self.settings.newer_names { ("newer", "seed") } else { ("seed", "newer") };
                return Err(wrong(format!(
                    "the worker does not know {}: events have the {spelled} spelling, try --names {other}",
                    pending.event_type
                )));
            }
            _ => return Err(wrong(format!("{answer} is not an answer to it"))),
        };
        if self.settings.strict {
            check_echo(&pending, &message).map_err(&wrong)?;
        }
        match verdict {
            Verdict::Done => {
                let next = self.settings.phases.iter().copied().find(|next| *next > phase);
                if let Some(next) = next {
                    self.make_event(run, next, false, 0)?;
                } else {
                    run.standing = Standing::Done;
                    let unit = self.unit();
                    unit.finished_syncs += 1;
                    unit.run = Some(run);
                    self.save()?;
                }
            }
            Verdict::Progress => self.make_event(run, phase, true, 0)?,
            Verdict::Delay => {
                let delay = message.pointer("/event_data/delay").unwrap_or(&Value::Null);
                let seconds = match delay.as_u64() {
                    Some(seconds) => seconds,
                    None if !self.settings.strict => lenient_seconds(delay),
                    None => {
                        let reason =
                            format!("{answer} has to carry event_data.delay in whole seconds, found {delay}");
                        return Err(wrong(reason));
                    }
                };
                self.make_event(run, phase, true, seconds)?;
            }
            Verdict::Error => {
                let text = match message.pointer("/event_data/error/message").and_then(Value::as_str) {
                    Some(text) => text.chars().take(ERROR_CHARS_MAX).collect(),
                    None => "it has no event_data.error.message".to_owned(),
                };
                if run.errors < self.settings.error_retries {
                    run.errors += 1;
                    self.make_event(run, phase, false, 0)?;
                    return Ok(Some((phase, message)));
                }
                let answer = answer.to_owned();
                run.standing = Standing::Failed { answer: answer.clone(), message: text.clone() };
                let id = run.id.clone();
                self.unit().run = Some(run);
                self.save()?;
                return Err(Error::SyncFailed { run: id, answer, message: text });
            }
        }
        Ok(Some((phase, message)))
    }

    /// The one accepted message that echoes the event's request id.
    fn answer(&self, pending: &Pending) -> Result<Option<Value>> {
        let mut answer = None;
        let mut count = 0_u64;
        for message in self.local.messages_from(pending.messages_from)? {
            let message = message?;
            let echoed = message.pointer("/event_context/request_id").and_then(Value::as_str);
            if echoed == Some(&pending.request_id) {
                count += 1;
                answer.get_or_insert(message);
            }
        }
        if count > 1 && self.settings.strict {
            return Err(Error::NotAnswered {
                event: pending.event_type.clone(),
                request: pending.request_id.clone(),
                reason: format!("{count} messages echo its request_id, where one answers one event"),
            });
        }
        Ok(answer)
    }

    /// Creates the next event, and stores it together with everything that led to it.
    fn make_event(&mut self, mut run: Run, phase: Phase, goes_on: bool, delay_seconds: u64) -> Result<()> {
        let made: u64 = run.invocations.values().sum();
        if made >= self.settings.invocations_max {
            return Err(Error::NoEnd {
                run: run.id,
                sync_unit: self.settings.sync_unit_id.clone(),
                limit: self.settings.invocations_max,
            });
        }
        *run.invocations.entry(phase).or_default() += 1;
        let request_id = self.fresh_id();
        let unit = self.unit();
        unit.events += 1;
        let sequence = unit.events;
        let event_type = event_type(phase, self.settings.newer_names, goes_on);
        let event =
            event_json(self.settings, (&run.id, run.initial), (phase, &event_type), &request_id, sequence);
        let delay = Duration::from_secs(delay_seconds);
        run.standing = Standing::Pending(Pending {
            phase,
            event_type,
            request_id,
            event: event.to_string(),
            messages_from: self.held.messages.end(),
            not_before: (!delay.is_zero()).then(|| {
                micros(self.clock).saturating_add(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX))
            }),
            delay_seconds,
        });
        self.unit().run = Some(run);
        self.save()
    }

    fn pending(&self) -> Option<LocalEvent> {
        let Standing::Pending(pending) = &self.run()?.standing else { return None };
        let wait = pending.not_before.map_or(Duration::ZERO, |not_before| {
            let left = not_before.saturating_sub(micros(self.clock));
            Duration::from_micros(u64::try_from(left).unwrap_or(0))
                .min(Duration::from_secs(pending.delay_seconds))
        });
        Some(LocalEvent {
            phase: pending.phase,
            event_type: pending.event_type.clone(),
            request_id: pending.request_id.clone(),
            json: pending.event.clone(),
            wait,
        })
    }

    /// An id that this directory has not assigned before.
    fn fresh_id(&mut self) -> String {
        self.memory.ids += 1;
        let number = self.memory.ids;
        if let Some(seed) = &self.settings.id_seed {
            return format!("{seed}-{number}");
        }
        // A UUID of version 8 (RFC 9562): the microsecond in 48 + 12 bits, the number in 62.
        let now = u64::try_from(micros(self.clock)).unwrap_or(0);
        format!(
            "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
            (now >> 28) & 0xffff_ffff,
            (now >> 12) & 0xffff,
            now & 0xfff,
            0x8000 | ((number >> 48) & 0x3fff),
            number & 0xffff_ffff_ffff
        )
    }

    /// What the accepted messages of the run contain, read from the disk.
    fn report(&self) -> Result<SyncReport> {
        let mut report = SyncReport {
            run: self.run_id()?,
            initial: self.run().is_some_and(|run| run.initial),
            invocations: self.run().map(|run| run.invocations.clone()).unwrap_or_default(),
            messages: 0,
            items: BTreeMap::new(),
            answers: BTreeMap::new(),
        };
        for message in self.local.messages_from(self.run().map_or(0, |run| run.messages_from))? {
            let message = message?;
            let echoed = message.pointer("/event_context/run_id").and_then(Value::as_str);
            if echoed != Some(report.run.as_str()) {
                continue;
            }
            report.messages += 1;
            let answer = message.get("event_type").and_then(Value::as_str).unwrap_or_default();
            if let Some((phase, _)) = answer_of(answer) {
                report.answers.insert(phase, answer.to_owned());
            }
            let artifacts = message.pointer("/event_data/artifacts").and_then(Value::as_array);
            for artifact in artifacts.into_iter().flatten() {
                let item_type = artifact.get("item_type").and_then(Value::as_str).unwrap_or_default();
                let totals = report.items.entry(item_type.to_owned()).or_default();
                totals.artifacts += 1;
                let records = artifact.get("item_count").and_then(Value::as_u64).unwrap_or(0);
                totals.records = totals.records.saturating_add(records);
            }
        }
        Ok(report)
    }
}

/// The seconds of a delay that is not a whole number: a number as a string, or a fraction, rounded up.
fn lenient_seconds(delay: &Value) -> u64 {
    let seconds = match delay {
        Value::String(text) => text.trim().parse::<f64>().ok(),
        delay => delay.as_f64(),
    };
    let seconds = seconds.filter(|seconds| (0.0..=DELAY_SECONDS_MAX).contains(seconds)).unwrap_or(0.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 0 and a million"
    )]
    let seconds = seconds.ceil() as u64;
    seconds
}

/// Microseconds since 1970.
fn micros(clock: &dyn Clock) -> i64 {
    clock.now().timestamp_micros()
}

/// Whether the answer echoes `event_context` whole, as it must.
fn check_echo(pending: &Pending, message: &Value) -> Result<(), String> {
    let event: Value = serde_json::from_str(&pending.event).map_err(|error| error.to_string())?;
    let context = event.pointer("/payload/event_context").and_then(Value::as_object);
    for (field, value) in context.into_iter().flatten() {
        let echoed = message.get("event_context").and_then(|context| context.get(field));
        if echoed != Some(value) {
            return Err(format!(
                "its message must echo event_context whole, but {field} is {}, not {value}",
                echoed.unwrap_or(&Value::Null)
            ));
        }
    }
    Ok(())
}
