//! Plays the platform for a whole sync: one event after another, as the answers ask for.
//!
//! A sync is one run of one sync unit: external sync units (as long as the directory has no finished sync of the
//! unit), metadata, data, attachments. DONE leads to the next phase, PROGRESS to CONTINUE at once, DELAY to CONTINUE
//! when its seconds have passed, ERROR to the end (or, as often as the settings say, to the START of the same phase
//! again). Each event has a request id of its own; its answer is the one
//! accepted message whose `event_context` echoes it.
//!
//! What the driver remembers is in `platform.json`, replaced as a whole: per sync unit how many syncs are finished,
//! the run, and its *pending* event, word for word. An event is pending before it is sent, and stays so until its
//! answer was found and what follows from it is on disk, in the same replacement. So, killed at any point:
//!
//! | killed | the next sync |
//! |---|---|
//! | before the event was on disk | makes it, under other ids that nobody has seen yet |
//! | before it was sent, or while the worker worked | sends the same event again, the same bytes |
//! | after the answer was accepted | finds the answer, and goes on without sending it again |
//! | while it waited out a DELAY | waits out the rest |

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use highwater::{BoxError, Clock, Phase, RunId, SyncUnitId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Held, Local, lock_file};
use crate::error::{Error, Result};

const FILE: &str = "platform.json";
/// The format of `platform.json`.
const FORMAT: u32 = 1;
/// Characters of an extractor's error text that are kept.
const ERROR_CHARS_MAX: usize = 2_000;
/// What the SDK of the platform answers to an event that it does not know.
pub(crate) const UNKNOWN_EVENT: &str = "UNKNOWN_EVENT_TYPE";
/// Seconds of a delay that is not written as it should be.
const DELAY_SECONDS_MAX: f64 = 1_000_000.0;
/// Invocations of one run, unless set otherwise.
const INVOCATIONS_MAX: u64 = 100_000;

/// What the platform is to say in a sync: of which sync unit, in which spelling, under which names.
///
/// ```
/// use highwater::airdrop::{Platform, SealedMessage};
/// use highwater::{Phase, SystemClock};
/// use highwater_airdrop::{Local, SyncSettings};
///
/// # let dir = tempfile::tempdir()?;
/// let airdrop = Local::open(dir.path())?;
/// let settings = SyncSettings::new("acme/tickets").newer_names(true);
/// // A worker that has nothing to say but DONE.
/// let worker = |event: &str| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///     let event: serde_json::Value = serde_json::from_str(event)?;
///     let answer = match event["payload"]["event_type"].as_str() {
///         Some("START_EXTRACTING_EXTERNAL_SYNC_UNITS") => "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE",
///         Some("START_EXTRACTING_METADATA") => "METADATA_EXTRACTION_DONE",
///         Some("START_EXTRACTING_DATA") => "DATA_EXTRACTION_DONE",
///         _ => "ATTACHMENT_EXTRACTION_DONE",
///     };
///     let context = &event["payload"]["event_context"];
///     airdrop.send(&SealedMessage {
///         key: context["request_id"].to_string(),
///         event_type: answer.into(),
///         body: serde_json::json!({"event_type": answer, "event_context": context}).to_string(),
///     })?;
///     Ok(())
/// };
/// let report = airdrop.sync(&settings, &SystemClock::new(), worker, |_step| {})?;
/// assert!(report.initial);
/// assert_eq!(report.messages, 4);
/// assert_eq!(report.answers[&Phase::Data], "DATA_EXTRACTION_DONE");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SyncSettings {
    external_sync_unit_id: String,
    sync_unit_id: String,
    newer_names: bool,
    strict: bool,
    initial: Option<bool>,
    connection_data: Option<Value>,
    phases: Vec<Phase>,
    error_retries: u64,
    invocations_max: u64,
    id_seed: Option<String>,
    endpoint: String,
    context: Map<String, Value>,
}

impl SyncSettings {
    /// A sync of the unit that the external system knows under this id. The platform's own id is the same, unless
    /// [`SyncSettings::sync_unit_id`] sets another.
    pub fn new(external_sync_unit_id: impl Into<String>) -> Self {
        let id = external_sync_unit_id.into();
        Self {
            sync_unit_id: id.clone(),
            external_sync_unit_id: id,
            newer_names: false,
            strict: true,
            initial: None,
            connection_data: None,
            phases: Phase::ALL.to_vec(),
            error_retries: 0,
            invocations_max: INVOCATIONS_MAX,
            id_seed: None,
            endpoint: "https://airdrop.invalid".to_owned(),
            context: Map::new(),
        }
    }

    /// Sets what the platform calls the sync unit. Syncs are told apart by it.
    #[must_use]
    pub fn sync_unit_id(mut self, id: impl Into<String>) -> Self {
        self.sync_unit_id = id.into();
        self
    }

    /// Sets whether events are spelled the newer way (`START_EXTRACTING_DATA` for `EXTRACTION_DATA_START`).
    #[must_use]
    pub fn newer_names(mut self, newer: bool) -> Self {
        self.newer_names = newer;
        self
    }

    /// Sets whether an answer must be as it should be; it must, unless set. Else a field of the context that it does
    /// not echo, a delay that is not a whole number of seconds and a second answer are ignored: the first answer
    /// counts, and an unreadable delay counts as no delay.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Sets whether the sync is a first one (`INITIAL`) or not (`INCREMENTAL`); unless set, it is until one of the unit
    /// was finished.
    #[must_use]
    pub fn initial(mut self, initial: bool) -> Self {
        self.initial = Some(initial);
        self
    }

    /// Sets the event's `connection_data`: where the external system is, and the key to it.
    #[must_use]
    pub fn connection_data(mut self, data: impl Into<Value>) -> Self {
        self.connection_data = Some(data.into());
        self
    }

    /// Sets whether there is an attachments phase; there is, unless set. Without it the sync ends with the data.
    #[must_use]
    pub fn attachments(mut self, attachments: bool) -> Self {
        self.phases.retain(|phase| *phase != Phase::Attachments);
        self.phases.extend(attachments.then_some(Phase::Attachments));
        self
    }

    /// Sets which phases a sync has; all four, unless set. They come in their own order. An incremental sync lists no
    /// external sync units in any case.
    #[must_use]
    pub fn phases(mut self, phases: impl IntoIterator<Item = Phase>) -> Self {
        let wanted: Vec<Phase> = phases.into_iter().collect();
        self.phases = Phase::ALL.into_iter().filter(|phase| wanted.contains(phase)).collect();
        self
    }

    /// Sets how often a run survives ERROR: its phase is then started again, under the same run id. Not at all unless
    /// set; the sync then fails, and the next one begins a new run.
    #[must_use]
    pub fn error_retries(mut self, retries: u64) -> Self {
        self.error_retries = retries;
        self
    }

    /// Sets how many events a run may have at most, 100,000 unless set: an end to a worker that never comes to one.
    #[must_use]
    pub fn invocations_max(mut self, invocations: u64) -> Self {
        self.invocations_max = invocations;
        self
    }

    /// Sets what run and request ids begin with; a number follows. For tests: without it, ids are UUIDs made of the
    /// time of day and that number. The number is never given out twice in a directory, whatever the clock does.
    #[must_use]
    pub fn id_seed(mut self, seed: impl Into<String>) -> Self {
        self.id_seed = Some(seed.into());
        self
    }

    /// Sets the address that the event names for artifacts, messages and worker state, without a slash at its end.
    /// Unless set it is one that leads nowhere, for a worker that is handed the [`Local`] itself.
    #[must_use]
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into();
        self
    }

    /// Sets a field of `event_context`, say `extract_from`. The fields by which the driver knows its events (ids,
    /// mode and sequence version) stay its own.
    #[must_use]
    pub fn context(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.context.insert(field.into(), value.into());
        self
    }
}

#[cfg(feature = "program")]
impl SyncSettings {
    /// The same, with a word in the connection data and the context replaced by another.
    pub(crate) fn told(mut self, word: &str, by: &str) -> Self {
        fn tell(value: &mut Value, word: &str, by: &str) {
            match value {
                Value::String(text) => *text = text.replace(word, by),
                Value::Array(values) => values.iter_mut().for_each(|value| tell(value, word, by)),
                Value::Object(fields) => fields.values_mut().for_each(|value| tell(value, word, by)),
                _ => {}
            }
        }
        self.connection_data.iter_mut().for_each(|value| tell(value, word, by));
        self.context.values_mut().for_each(|value| tell(value, word, by));
        self
    }
}

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
    /// How long a DELAY asks to wait, from now, before it is sent.
    pub wait: Duration,
}

/// A step of a sync, for a progress display.
#[derive(Debug)]
#[non_exhaustive]
pub enum SyncStep<'a> {
    /// A DELAY is waited out before this event is sent.
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

/// What a sync came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncReport {
    /// The run.
    pub run: RunId,
    /// Whether it was the unit's first import, or an incremental one.
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

/// What `platform.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    format: u32,
    /// Run and request ids given out.
    ids: u64,
    /// By sync unit id.
    units: BTreeMap<String, Unit>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Unit {
    finished_syncs: u64,
    /// Events made, over all runs: the last sequence version.
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
    /// How often it has survived ERROR.
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
    /// Where in `messages.jsonl` its answer is to be looked for.
    messages_from: u64,
    /// When it may be sent, in microseconds since 1970, and how many seconds the DELAY asked for: a clock that stepped back waits no longer.
    not_before: Option<i64>,
    delay_seconds: u64,
}

/// What a message says about the phase that it ends or interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Progress,
    Delay,
    Error,
}

/// What a message answers, by its event type in either spelling.
pub(super) fn answer_of(event_type: &str) -> Option<(Phase, Verdict)> {
    for (phase, seed, newer) in [
        (Phase::ExternalSyncUnits, "EXTRACTION_EXTERNAL_SYNC_UNITS_", "EXTERNAL_SYNC_UNIT_EXTRACTION_"),
        (Phase::Metadata, "EXTRACTION_METADATA_", "METADATA_EXTRACTION_"),
        (Phase::Data, "EXTRACTION_DATA_", "DATA_EXTRACTION_"),
        (Phase::Attachments, "EXTRACTION_ATTACHMENTS_", "ATTACHMENT_EXTRACTION_"),
    ] {
        for (prefix, delay) in [(seed, "DELAY"), (newer, "DELAYED")] {
            let verdict = match event_type.strip_prefix(prefix) {
                Some("DONE") => Verdict::Done,
                Some("ERROR") => Verdict::Error,
                Some("PROGRESS") if phase.continues() => Verdict::Progress,
                Some(suffix) if suffix == delay && phase.continues() => Verdict::Delay,
                _ => continue,
            };
            return Some((phase, verdict));
        }
    }
    None
}

fn event_type(phase: Phase, newer: bool, goes_on: bool) -> String {
    let step = match (newer, goes_on) {
        (false, false) => "START",
        (false, true) => "CONTINUE",
        (true, false) => "START_EXTRACTING",
        (true, true) => "CONTINUE_EXTRACTING",
    };
    let what = match phase {
        Phase::ExternalSyncUnits => "EXTERNAL_SYNC_UNITS",
        Phase::Metadata => "METADATA",
        Phase::Data => "DATA",
        Phase::Attachments => "ATTACHMENTS",
    };
    if newer { format!("{step}_{what}") } else { format!("EXTRACTION_{what}_{step}") }
}

impl Local {
    /// Plays a whole sync: gives `invoke` one event after another, finds its answer among the accepted messages, and
    /// does as the answer says. An unfinished sync of the unit is gone on with, from the event that waits for its
    /// answer; after one that ended with ERROR, a new run begins.
    ///
    /// `invoke` is one invocation of the worker. It returns when the worker has: `Err` if the worker failed.
    /// `observe` is told each step.
    ///
    /// # Durability
    /// An event is on disk before it is sent. The caller may be killed at any point, and sync again.
    ///
    /// # Errors
    /// `Worker` with the error of `invoke`; `NotAnswered` if it left no answer, two, or one that cannot be;
    /// `SyncFailed` if the answer was ERROR; `NoEnd` at more invocations than the settings allow; `InUse` if
    /// another sync is driven in this directory; `Invalid` for settings that cannot be; `Io`, `NewerFormat` and
    /// `NotALocal` as [`Local::open`].
    pub fn sync<E: Into<BoxError>>(
        &self,
        settings: &SyncSettings,
        clock: &dyn Clock,
        mut invoke: impl FnMut(&str) -> Result<(), E>,
        mut observe: impl FnMut(&SyncStep<'_>),
    ) -> Result<SyncReport> {
        let path = self.dir.join("sync.lock");
        // A file of its own: a lock is no obstacle to the file that holds it.
        let lock = lock_file(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse { path }),
            Err(fs::TryLockError::Error(error)) => {
                return Err(Error::io(format!("lock {}", path.display()), error));
            }
        }
        let report = self.sync_locked(settings, clock, &mut invoke, &mut observe);
        // A process that another thread starts just now has the file open, too, for a moment: to close it is not enough.
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
            // The caller's closures may use the directory, so none is called with its lock held.
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

    /// Begins a sync, for who invokes the worker without [`Local::sync`]; or goes on with an unfinished one of the
    /// unit, unless its last answer was ERROR. Returns the run.
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

    /// The event that the platform would send now: the pending one, as long as no accepted message answers it; then
    /// the one that follows from the answer. `None` when the sync is finished, or none was begun.
    ///
    /// # Durability
    /// When this returns `Ok`, the event survives power loss.
    ///
    /// # Errors
    /// As [`Local::sync`]; `SyncFailed` as often as it is called, until a new sync is begun.
    pub fn next_event(&self, settings: &SyncSettings, clock: &dyn Clock) -> Result<Option<LocalEvent>> {
        let mut turn = Turn::take(self, settings, clock)?;
        turn.settle()?;
        Ok(turn.pending())
    }

    /// Puts a CONTINUE under another request id in the place of the event that waits for its answer: what a platform may
    /// do when an invocation ended without one. A message that answers the event still is kept, and not looked at.
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

    /// Gives an unfinished sync of the unit up, if there is one: the next begins another run.
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

    /// How far the unit's newest run has come; `None` if there is no run.
    ///
    /// # Errors
    /// `Io`, `NewerFormat` and `NotALocal` as [`Local::open`].
    pub fn sync_report(&self, settings: &SyncSettings, clock: &dyn Clock) -> Result<Option<SyncReport>> {
        let turn = Turn::take(self, settings, clock)?;
        if turn.run().is_none() { Ok(None) } else { turn.report().map(Some) }
    }
}

/// One look at what the driver remembers, and one change of it, with the directory's lock.
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

    /// Begins a run, in place of the last one.
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

    /// Looks for the answer to the pending event, and does as it says. `None` if there is no answer yet, or nothing
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
                    "the worker does not know {}: events are spelled the {spelled} way, try --names {other}",
                    pending.event_type
                )));
            }
            _ => return Err(wrong(format!("{answer} is no answer to it"))),
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

    /// Makes the event that comes next, and puts it on disk together with everything that led to it.
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
        let event = event_json(self.settings, &run, phase, &event_type, &request_id, sequence);
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

    /// An id that this directory has not given out before.
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

    /// What the accepted messages of the run say, read from the disk.
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

/// The seconds of a delay that is not a whole number: a number as text, or one with a fraction, rounded up.
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

/// An event as the platform would send it, with placeholders for what a directory has not: tokens and organisations.
fn event_json(
    settings: &SyncSettings,
    run: &Run,
    phase: Phase,
    event_type: &str,
    request_id: &str,
    sequence: u64,
) -> Value {
    let SyncSettings { external_sync_unit_id, sync_unit_id, endpoint, .. } = settings;
    let don = "don:integration:dvrv-local-1:devo/local";
    let system = format!("{don}:external_system_type/ADAAS:external_system/local-system");
    let version = format!("{don}:snap_in_package/local:snap_in_version/local");
    let mut context = Map::new();
    let mut set = |field: &str, value: Value| {
        context.insert(field.to_owned(), value);
    };
    set("callback_url", format!("{endpoint}/internal/airdrop.external-extractor.message").into());
    set("worker_data_url", format!("{endpoint}/internal/airdrop.external-worker").into());
    set("external_system", system.clone().into());
    set("external_system_id", "local-system".into());
    set("external_system_name", "Local system".into());
    set("external_system_type", "ADaaS".into());
    set("import_slug", "local-import".into());
    set("snap_in_slug", "local-snap-in".into());
    set("snap_in_version_id", version.clone().into());
    set("dev_org", format!("{don}:devo/local").into());
    set("dev_oid", "DEV-local".into());
    set("dev_user", format!("{don}:devu/1").into());
    set("dev_uid", "DEVU-1".into());
    set("sync_tier", "sync_tier_1".into());
    set("initial_sync_scope", "full-history".into());
    set("reset_extract_from", false.into());
    // Before the import there is no sync unit yet.
    if phase != Phase::ExternalSyncUnits {
        set("external_sync_unit", format!("{system}:external_sync_unit/{external_sync_unit_id}").into());
        set("external_sync_unit_id", external_sync_unit_id.clone().into());
        set("external_sync_unit_name", external_sync_unit_id.clone().into());
    }
    for (field, value) in &settings.context {
        set(field, value.clone());
    }
    if phase != Phase::ExternalSyncUnits {
        set("sync_unit", format!("{system}:sync_unit/{sync_unit_id}").into());
        set("sync_unit_id", sync_unit_id.clone().into());
    }
    set("mode", if run.initial { "INITIAL" } else { "INCREMENTAL" }.into());
    for field in ["run_id", "sync_run_id", "sync_run"] {
        set(field, run.id.clone().into());
    }
    for field in ["request_id", "request_id_adaas", "uuid"] {
        set(field, request_id.into());
    }
    set("sequence_version", sequence.to_string().into());
    let connection_data = settings.connection_data.clone().unwrap_or_else(|| {
        json!({
            "org_id": "local",
            "org_name": "Local organisation",
            "key": "no-key-is-needed",
            "key_type": "none",
        })
    });
    json!({
        "context": {
            "secrets": { "service_account_token": "no-token-is-needed" },
            "snap_in_id": format!("{don}:snap_in/local"),
            "snap_in_version_id": version,
        },
        "execution_metadata": {
            "devrev_endpoint": endpoint,
            "request_id": request_id,
            "function_name": "extraction",
        },
        "payload": {
            "event_type": event_type,
            "connection_data": connection_data,
            "event_context": context,
            "event_data": {},
        },
        "input_data": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_known_in_both_spellings_and_nothing_else_is() {
        for (text, phase, verdict) in [
            ("EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", Phase::ExternalSyncUnits, Verdict::Done),
            ("EXTERNAL_SYNC_UNIT_EXTRACTION_DONE", Phase::ExternalSyncUnits, Verdict::Done),
            ("EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR", Phase::ExternalSyncUnits, Verdict::Error),
            ("EXTERNAL_SYNC_UNIT_EXTRACTION_ERROR", Phase::ExternalSyncUnits, Verdict::Error),
            ("EXTRACTION_METADATA_DONE", Phase::Metadata, Verdict::Done),
            ("METADATA_EXTRACTION_ERROR", Phase::Metadata, Verdict::Error),
            ("EXTRACTION_DATA_PROGRESS", Phase::Data, Verdict::Progress),
            ("DATA_EXTRACTION_PROGRESS", Phase::Data, Verdict::Progress),
            ("EXTRACTION_DATA_DELAY", Phase::Data, Verdict::Delay),
            ("DATA_EXTRACTION_DELAYED", Phase::Data, Verdict::Delay),
            ("EXTRACTION_ATTACHMENTS_DELAY", Phase::Attachments, Verdict::Delay),
            ("ATTACHMENT_EXTRACTION_DELAYED", Phase::Attachments, Verdict::Delay),
            ("ATTACHMENT_EXTRACTION_DONE", Phase::Attachments, Verdict::Done),
        ] {
            assert_eq!(answer_of(text), Some((phase, verdict)), "{text}");
        }
        for text in [
            "EXTRACTION_METADATA_PROGRESS",
            "EXTRACTION_DATA_DELAYED",
            "DATA_EXTRACTION_DELAY",
            "EXTRACTION_DATA_DELETE_DONE",
            "EXTRACTION_DATA_START",
            "UNKNOWN_EVENT_TYPE",
            "",
        ] {
            assert_eq!(answer_of(text), None, "{text}");
        }
    }

    #[test]
    fn events_are_spelled_as_the_platform_spells_them() {
        let spelled = |newer| {
            let mut all: Vec<String> =
                Phase::ALL.iter().map(|phase| event_type(*phase, newer, false)).collect();
            all.extend([Phase::Data, Phase::Attachments].iter().map(|phase| event_type(*phase, newer, true)));
            all
        };
        assert_eq!(
            spelled(false),
            [
                "EXTRACTION_EXTERNAL_SYNC_UNITS_START",
                "EXTRACTION_METADATA_START",
                "EXTRACTION_DATA_START",
                "EXTRACTION_ATTACHMENTS_START",
                "EXTRACTION_DATA_CONTINUE",
                "EXTRACTION_ATTACHMENTS_CONTINUE",
            ]
        );
        assert_eq!(
            spelled(true),
            [
                "START_EXTRACTING_EXTERNAL_SYNC_UNITS",
                "START_EXTRACTING_METADATA",
                "START_EXTRACTING_DATA",
                "START_EXTRACTING_ATTACHMENTS",
                "CONTINUE_EXTRACTING_DATA",
                "CONTINUE_EXTRACTING_ATTACHMENTS",
            ]
        );
    }
}
