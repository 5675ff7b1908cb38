//! Drives an extractor through one event: accept, work, settle, seal, send.
//!
//! One single-threaded loop decides and stores; calls to the platform are made in lanes. The loop stops between
//! pages, never before the first: so every invocation that lives long enough for one page makes progress.
//!
//! Who cannot open the store, is fenced, or gets an event of a past run, gets an error and nothing is sent. In every
//! other case exactly one message answers the event; it is sealed before it is sent.
//!
//! An invocation is one `tracing` span, `invocation`, with the event type, the unit, the phase and the run; each step of
//! it is an event in that span. What an extractor's error says is in none of them: it may hold anything.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::field::{Empty, display};
use tracing::{Span, debug, info, info_span, warn};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain, panic_text};
use crate::model::{EXTERNAL_SYNC_UNIT_BATCH_ITEMS, Micros, Phase, RunId, Safeguard, StreamName, SyncUnitId};
use crate::record::Record;
use crate::store::{Accepted, CursorWatch, Deletion, Incoming, Page, Run, Store, SyncUnit, WindowRow};

use super::answer::{Ending, Outcome, OutcomeKind, Said, failed};
use super::check::{CheckPolicy, Checks};
use super::delivery::{Attempt, Delivery, DeliverySettings, Done, Halt, attempt};
use super::event::{Event, EventType, Spelling};
use super::extractor::{Extractor, SourceError};
use super::keeper::Keeper;
use super::lanes::Lanes;
use super::platform::{Platform, PlatformError};
use super::retry::attempts;
use super::sdk::Scope;
use super::window::{Bounds, Window, resolve};

/// The item type, and the stream, of the metadata document.
const METADATA: &str = "external_domain_metadata";
/// The item type, and the stream, of external sync units.
const EXTERNAL_SYNC_UNITS: &str = "external_sync_units";

/// The note of a run that says which item types it leaves out.
const SCOPE: &str = "scope";

/// Answers one event with the default settings; see [`Serve::serve`].
///
/// # Errors
/// As [`Serve::serve`].
pub fn serve<E: Extractor>(
    store: &Store,
    platform: &dyn Platform,
    extractor: &mut E,
    event: &Event,
) -> Result<Outcome> {
    Serve::new().serve(store, platform, extractor, event)
}

/// How to answer events.
#[derive(Debug, Clone)]
#[must_use]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Serve {
    soft: Duration,
    pub(super) hard: Duration,
    pub(super) lanes: usize,
    pub(super) streams: usize,
    pub(super) attachment_tries: u32,
    pub(super) inline_seed: Option<u64>,
    pub(super) spelling: Option<Spelling>,
    pub(super) attachments_phase: bool,
    units_inline: bool,
    checkpoints: bool,
    scope: bool,
    settle: Option<Duration>,
}

impl Default for Serve {
    fn default() -> Self {
        Self::new()
    }
}

impl Serve {
    /// 10 minutes of pages, 12 minutes in all, 4 lanes; the answer spelled as the event.
    pub fn new() -> Self {
        Self {
            soft: Duration::from_secs(10 * 60),
            hard: Duration::from_secs(12 * 60),
            lanes: 4,
            streams: 10,
            attachment_tries: 5,
            inline_seed: None,
            spelling: None,
            attachments_phase: true,
            units_inline: false,
            checkpoints: false,
            scope: false,
            settle: None,
        }
    }

    /// How long pages are fetched: no page starts that is likely to end after it, but for the first. What is staged
    /// is then uploaded, and the answer is PROGRESS.
    pub fn budget(mut self, soft: Duration) -> Self {
        self.soft = soft;
        self
    }

    /// When the platform kills the extractor: no retry starts after it.
    pub fn hard_limit(mut self, hard: Duration) -> Self {
        self.hard = hard;
        self
    }

    /// Calls to the platform at once: 1 to 64.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes.clamp(1, 64);
        self
    }

    /// Attachments streamed at once: 1 to 50, 10 unless set.
    pub fn streams(mut self, streams: usize) -> Self {
        self.streams = streams.clamp(1, 50);
        self
    }

    /// Failures after which an attachment is given up and listed, in however many invocations: at least 1, 5 unless set.
    pub fn attachment_tries(mut self, tries: u32) -> Self {
        self.attachment_tries = tries.max(1);
        self
    }

    /// Makes the calls one after the other on this thread, in an order that the seed decides, as it does the holder token
    /// of a checkpoint: a run can be replayed.
    pub fn inline(mut self, seed: u64) -> Self {
        self.inline_seed = Some(seed);
        self
    }

    /// Spells answers so, however the event is spelled.
    pub fn spelling(mut self, spelling: Spelling) -> Self {
        self.spelling = Some(spelling);
        self
    }

    /// Ends a run with the data phase, for a platform that never starts the attachments phase.
    pub fn without_attachments_phase(mut self) -> Self {
        self.attachments_phase = false;
        self
    }

    /// Keeps a checkpoint of the sync unit with the platform, for a worker whose disk does not survive it: what the store
    /// lacks is restored from there, and nothing is confirmed or sent that a saved checkpoint does not hold.
    ///
    /// A state that the TypeScript SDK left there is taken up: its last successful start is the watermark, and a run in
    /// the middle of which it was goes on as that run. The SDK's keys are then kept current beside the checkpoint, so that
    /// a connector can go back between two runs; all other keys stay as they are. The extraction scope is read, too.
    ///
    /// The promise then holds for one live invocation per sync unit whose saves land in order.
    pub fn checkpoints(mut self) -> Self {
        self.checkpoints = true;
        self
    }

    /// Asks the platform, when the data phase begins, which item types are wanted, also where no checkpoints are kept.
    /// Records of the others are counted and staged nowhere. The answer holds for the whole run.
    pub fn extraction_scope(mut self) -> Self {
        self.scope = true;
        self
    }

    /// Waits so long when another holder's checkpoint is found, reads it again and only then takes over: for a platform
    /// where a save of the holder before may land late. Not at all unless set.
    pub fn settle_after_takeover(mut self, wait: Duration) -> Self {
        self.settle = Some(wait);
        self
    }

    /// Puts external sync units into the message itself instead of an artifact.
    pub fn external_sync_units_inline(mut self) -> Self {
        self.units_inline = true;
        self
    }

    /// Answers one event with exactly one message: extracts until the phase or the budget is over, or, if the event
    /// was answered before, sends the same message again.
    ///
    /// # Durability
    /// When this returns `Ok`, the platform has accepted the message, and that is stored: every record it announces
    /// is announced for good.
    ///
    /// # Errors
    /// Nothing was sent: `StaleEvent`, `Fenced`, `Corrupt`, `Io`. The message was not accepted: `NotDelivered`; it is
    /// sealed, and serving the same event again sends it again. What an extractor does wrong is no error here: the
    /// platform is told with ERROR.
    pub fn serve<E: Extractor>(
        &self,
        store: &Store,
        platform: &dyn Platform,
        extractor: &mut E,
        event: &Event,
    ) -> Result<Outcome> {
        let started = store.clock().elapsed();
        let event_type = event.event_type().name(event.spelling());
        let span = info_span!("invocation", event_type, unit = Empty, run = Empty, phase = Empty);
        let _entered = span.enter();
        let invocation = Invocation {
            settings: self,
            clock: store.clock().as_ref(),
            platform,
            event,
            started,
            seed: self.inline_seed.unwrap_or_else(|| store.clock().now().timestamp_micros().unsigned_abs()),
        };
        match event.event_type() {
            EventType::Unknown(name) => {
                let expected = "EXTRACTION_DATA_START or another that this version knows";
                invocation
                    .answer_statelessly(failed(&format!("unknown event type {name:?}, expected {expected}")))
            }
            EventType::DeleteData | EventType::DeleteAttachments => invocation.delete(store),
            EventType::ExternalSyncUnits
            | EventType::Metadata
            | EventType::Data { .. }
            | EventType::Attachments { .. } => match incoming(event) {
                Ok((_, incoming)) if store.breaks(Safeguard::KeyedBySyncUnit) => {
                    let unit = SyncUnitId::new(event.external_sync_unit_id()?.unwrap_or_default())?;
                    invocation.converse(store, extractor, unit, &incoming)
                }
                Ok((unit, incoming)) => invocation.converse(store, extractor, unit, &incoming),
                Err(error) => invocation.answer_statelessly(failed(&chain(&error))),
            },
        }
    }
}

/// What an extractor may know of the invocation that it is called in.
pub struct Context<'a> {
    event: &'a Event,
    pub(super) run: &'a Run,
    clock: &'a dyn Clock,
    pub(super) soft_at: Duration,
    window: Option<Window>,
    scope: Scope,
    connector_state: Option<Value>,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("event", self.event).field("run", self.run).finish_non_exhaustive()
    }
}

impl Context<'_> {
    /// The event that is being answered.
    pub fn event(&self) -> &Event {
        self.event
    }

    /// The run.
    pub fn run_id(&self) -> &RunId {
        self.run.id()
    }

    /// When the run started, in whichever life.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.run.started_at()
    }

    /// What was modified at or after this is wanted; `None`: everything. This is [`Run::since`], or the start of the
    /// [`Context::window`] where that is earlier: after a reset, an initial import of a unit that was synced before, or
    /// a start that the platform named. The same in every life of the run.
    pub fn since(&self) -> Option<DateTime<Utc>> {
        match self.window {
            Some(window) if self.reaches_back() => window.from,
            _ => self.run.since(),
        }
    }

    /// Whether more is asked for than what came since the last finished run. A window that nobody asked for starts
    /// where [`Run::since`] does.
    fn reaches_back(&self) -> bool {
        match (self.window, self.run.since()) {
            (Some(window), Some(since)) => window.from.is_none_or(|from| from < since),
            _ => false,
        }
    }

    /// What the platform asks for, by its own settings: resolved when the run's first phase began, and the same ever
    /// after. `None` while external sync units are listed, which have no window.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// The bookmark that the last finished run left for a stream. `None` in every life of a run whose
    /// [`Context::window`] reaches back behind [`Run::since`]: what lies before the bookmark is to be read again.
    ///
    /// # Errors
    /// As [`Run::bookmark`].
    pub fn bookmark<B: DeserializeOwned>(&self, stream: &str) -> Result<Option<B>> {
        if self.reaches_back() {
            return Ok(None);
        }
        self.run.bookmark(stream)
    }

    /// A small value of the extractor's own.
    ///
    /// # Errors
    /// As [`Run::value`].
    pub fn value<V: DeserializeOwned>(&self, key: &str) -> Result<Option<V>> {
        self.run.value(key)
    }

    /// Whether the platform wants records of an item type; of one that it does not, nothing needs to be fetched, and what
    /// is handed over all the same is counted and left out. Resolved when the data phase begins, and the same until the
    /// run is over; before that, and where no scope is read, everything is wanted.
    ///
    /// A type that comes into the scope later is extracted from that run's [`Context::since`] on, as the others are.
    pub fn extracts(&self, item_type: &str) -> bool {
        self.scope.extracts(item_type)
    }

    /// The connector's own keys of a state of the TypeScript SDK, in a run that the SDK began and that goes on here:
    /// they hold the cursors at which its data extraction stood. `None` in every other run.
    ///
    /// The first page of each stream is asked for with no cursor there; from then on the cursor is ours.
    pub fn connector_state(&self) -> Option<&Value> {
        self.connector_state.as_ref()
    }

    /// How long pages are still fetched in this invocation.
    pub fn time_left(&self) -> Duration {
        self.soft_at.saturating_sub(self.clock.elapsed())
    }
}

pub(super) struct Invocation<'a> {
    pub(super) settings: &'a Serve,
    pub(super) clock: &'a dyn Clock,
    pub(super) platform: &'a dyn Platform,
    pub(super) event: &'a Event,
    pub(super) started: Duration,
    pub(super) seed: u64,
}

/// An event as the store knows it.
fn incoming(event: &Event) -> Result<(SyncUnitId, Incoming)> {
    let event_type = event.event_type();
    let phase = event.event_type().phase().ok_or_else(|| Error::Event {
        field: "payload.event_type".to_owned(),
        expected: "must be that of a phase".to_owned(),
    })?;
    let identity = event.identity()?;
    let run_id = match phase {
        // Each list of units is a run of its own: the platform asks again under the same run id.
        Phase::ExternalSyncUnits if event.has_ids()? => Some(RunId::new(identity.clone())?),
        _ => event.run_id()?,
    };
    let incoming = Incoming { has_ids: event.has_ids()?, identity, run_id, phase, step: event_type.step() };
    Ok((event.unit_key()?, incoming))
}

/// Says what is done about an event.
fn accepted_as(accepted: &Accepted) {
    let (run, decision) = match accepted {
        Accepted::Work(run) => (run, "work"),
        Accepted::Repeat(run) => (run, "repeat"),
        Accepted::Refuse(run, _) => (run, "refuse"),
        Accepted::Replay(run, _) => (run, "replay"),
        Accepted::AnsweredEarlier(run) => (run, "answered earlier"),
    };
    Span::current().record("run", display(run.id()));
    info!(decision, resumed = run.resumed(), started_at = %run.started_at(), "event accepted");
}

impl Invocation<'_> {
    /// Elapsed time at which the platform kills the extractor.
    pub(super) fn hard_at(&self) -> Duration {
        self.started.saturating_add(self.settings.hard)
    }

    /// A holder token: random, for two workers may start in the same microsecond; from the seed where one is set.
    fn token(&self) -> u64 {
        match self.settings.inline_seed {
            Some(seed) => fastrand::Rng::with_seed(seed).u64(..),
            None => RandomState::new().build_hasher().finish(),
        }
    }

    fn converse<E: Extractor>(
        &self,
        store: &Store,
        extractor: &mut E,
        unit: SyncUnitId,
        incoming: &Incoming,
    ) -> Result<Outcome> {
        let phase = incoming.phase;
        let span = Span::current();
        span.record("unit", display(&unit)).record("phase", display(phase));
        let unit = store.any_unit(unit);
        // External sync units have no sync unit to keep a checkpoint under.
        let (held, inherited) = if self.settings.checkpoints && phase != Phase::ExternalSyncUnits {
            let taken = self
                .take_over(&unit, self.settings.settle)
                .and_then(|held| Ok((held.0.inherited(incoming)?, held)));
            match taken {
                Ok((inherited, held)) => (Some(held), inherited),
                // A state that makes no sense is not ours to overwrite: the platform is told.
                Err(error @ Error::WorkerState { .. }) => {
                    return self.answer_statelessly(failed(&chain(&error)));
                }
                Err(error) => return Err(error),
            }
        } else {
            (None, None)
        };
        let restored = held.as_ref().is_some_and(|(_, restored)| *restored);
        let keeper = held.as_ref().map(|(keeper, _)| keeper);
        let accepted = unit.accept(incoming, restored, inherited.as_ref())?;
        if let (
            Some(keeper),
            Accepted::Work(run)
            | Accepted::Repeat(run)
            | Accepted::Refuse(run, _)
            | Accepted::Replay(run, _)
            | Accepted::AnsweredEarlier(run),
        ) = (keeper, &accepted)
        {
            match keeper.save(run, None) {
                // What others keep in the worker state leaves no room for ours.
                Err(error @ Error::TooLarge { .. }) => {
                    return self.answer_statelessly(failed(&chain(&error)));
                }
                saved => saved?,
            };
        }
        accepted_as(&accepted);
        let attempt = |call: &Attempt| attempt(self.platform, None, call);
        match accepted {
            Accepted::AnsweredEarlier(run) => Ok(Outcome {
                kind: OutcomeKind::AnsweredEarlier,
                event_type: String::new(),
                message: None,
                artifacts: 0,
                attachments: run.attachment_totals()?,
                run: Some(run.id().clone()),
                replayed: true,
                ignored_watermark: None,
                findings: run.finding_counts()?,
            }),
            Accepted::Replay(run, message) => self.deliver(&run, keeper, message, true),
            Accepted::Repeat(run) => self.answer(&run, keeper, phase, Ending::Done, &Said::default()),
            Accepted::Refuse(run, reason) => {
                self.answer(&run, keeper, phase, failed(&reason), &Said::default())
            }
            Accepted::Work(run) => match self.settings.inline_seed {
                Some(seed) => self.work(extractor, &run, keeper, phase, Lanes::inline(&attempt, seed)),
                None => std::thread::scope(|scope| {
                    let lanes = Lanes::pool(scope, &attempt, self.settings.lanes);
                    self.work(extractor, &run, keeper, phase, lanes)
                }),
            },
        }
    }

    /// Extracts, settles what was extracted, and answers.
    fn work<E: Extractor>(
        &self,
        extractor: &mut E,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        lanes: Lanes<'_, Attempt, Done>,
    ) -> Result<Outcome> {
        let (_, artifacts_max) = run.progress_and_artifacts_max()?;
        let settings = DeliverySettings {
            batches_at_once: self.settings.lanes,
            attachments_at_once: self.settings.streams,
            seed: self.seed,
            hard: self.hard_at(),
            confirms: phase != Phase::ExternalSyncUnits,
            base_bytes: self.base_bytes()?,
            artifacts_max,
        };
        let mut delivery = Delivery::new(run, self.clock, lanes, keeper, &settings)?;
        let window = match self.window(run, phase) {
            Err(error) if error.kind() == ErrorKind::Invalid => {
                return self.answer(run, keeper, phase, failed(&chain(&error)), &Said::default());
            }
            window => window?,
        };
        let scope = match self.scope(run, keeper, phase)? {
            Ok(scope) => scope,
            Err(ending) => return self.answer(run, keeper, phase, ending, &Said::default()),
        };
        let connector_state = match keeper {
            Some(keeper) if run.sdk_attachments()?.is_some() => keeper.connector_state()?,
            _ => None,
        };
        let soft_at = self.started + self.settings.soft;
        let context =
            Context { event: self.event, run, clock: self.clock, soft_at, window, scope, connector_state };
        let mut said = Said { window, ..Said::default() };
        let ending = match self.domain_mapping(extractor, &context, phase) {
            Ok(None) => match phase {
                Phase::ExternalSyncUnits => {
                    self.external_sync_units(extractor, &context, &mut delivery, &mut said.units)
                }
                Phase::Metadata => self.metadata(extractor, &context, &mut delivery),
                Phase::Data => self.data(extractor, &context, keeper, &mut delivery, &mut said.item_type),
                Phase::Attachments => return self.attachments(extractor, &context, keeper, delivery, &said),
            },
            Ok(Some(ending)) => Ok(ending),
            Err(error) => Err(error),
        };
        self.settle(run, keeper, phase, delivery, ending, &said)
    }

    /// Delivers what was extracted, and answers.
    pub(super) fn settle(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        mut delivery: Delivery<'_>,
        ending: Result<Ending>,
        said: &Said,
    ) -> Result<Outcome> {
        let mut ending = match ending {
            Ok(ending) => ending,
            // What the extractor handed over cannot be stored: the platform is told. Anything else is ours.
            Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Fetch) => {
                failed(&chain(&error))
            }
            Err(error) => return Err(error),
        };
        delivery.add(run.close_open()?);
        delivery.drain()?;
        if !matches!(ending, Ending::Failed { .. }) {
            match delivery.halt() {
                Some(Halt::Failed(reason)) => ending = failed(reason),
                Some(Halt::AskedToWait(wait)) => {
                    ending = Ending::asked_to_wait(*wait);
                }
                None if delivery.left_over() && matches!(ending, Ending::Done) => ending = Ending::Progress,
                None => {}
            }
        }
        if !phase.continues() {
            ending = match ending {
                Ending::Progress => failed(&format!(
                    "not all of the {phase} could be uploaded in this invocation, and its phase has no CONTINUE"
                )),
                Ending::Delay { seconds, .. } => {
                    failed(&format!("asked to wait {seconds} s, and the {phase} phase has no DELAY"))
                }
                other => other,
            };
        }
        self.answer(run, keeper, phase, ending, said)
    }

    /// The window of the run, resolved when the first phase that has one begins.
    fn window(&self, run: &Run, phase: Phase) -> Result<Option<Window>> {
        if phase == Phase::ExternalSyncUnits {
            return Ok(None);
        }
        let window = run.window(|(oldest, newest), last_start| {
            let bounds = Bounds { oldest: oldest.map(Micros::to_time), newest: newest.map(Micros::to_time) };
            let window = resolve(self.event, run.started_at(), bounds, last_start.map(Micros::to_time))?;
            Ok(WindowRow { from: window.from.map(Micros::from_time), to: Micros::from_time(window.to) })
        })?;
        Ok(Some(Window { from: window.from.map(Micros::to_time), to: window.to.to_time() }))
    }

    /// What of the data is wanted: resolved when the data phase begins, and the same until the run is over.
    fn scope(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
    ) -> Result<std::result::Result<Scope, Ending>> {
        if phase < Phase::Data || (keeper.is_none() && !self.settings.scope) {
            return Ok(Ok(Scope::default()));
        }
        if let Some(scope) = run.note(SCOPE)? {
            return Ok(Ok(scope));
        }
        if phase != Phase::Data {
            return Ok(Ok(Scope::default()));
        }
        let scope = match keeper {
            Some(keeper) => keeper.scope(),
            None => match self.attempt(|| self.platform.worker_state()) {
                Ok(state) => {
                    let objects = state.and_then(|state| state.objects);
                    Scope::read(objects.as_deref(), run.sync_unit().as_str())
                }
                Err(reason) => {
                    return Ok(Err(failed(&format!("the extraction scope could not be read: {reason}"))));
                }
            },
        };
        match scope {
            Ok(scope) => {
                run.set_note(SCOPE, &scope)?;
                Ok(Ok(scope))
            }
            Err(error) => Ok(Err(failed(&chain(&error)))),
        }
    }

    /// Installs the connector's initial domain mapping, if that of this version is not installed, before anything else
    /// of a run. Killed before it is remembered, it is installed again, which is the same as once.
    fn domain_mapping<E: Extractor>(
        &self,
        extractor: &mut E,
        context: &Context<'_>,
        phase: Phase,
    ) -> Result<Option<Ending>> {
        let run = context.run;
        let first = phase == Phase::Metadata || (phase == Phase::Data && !run.has_done(Phase::Metadata)?);
        let Some(version) = self.event.snap_in_version_id()?.filter(|_| first) else { return Ok(None) };
        if run.connector_version()?.as_ref() == Some(&version) {
            return Ok(None);
        }
        let mapping = match self.ask(context, || extractor.initial_domain_mapping(context)) {
            Ok(Some(mapping)) => mapping,
            Ok(None) => return Ok(None),
            Err(ending) => return Ok(Some(ending)),
        };
        let not_installed = |reason: String| {
            failed(&format!(
                "the initial domain mapping of snap-in version {version} could not be installed: {reason}"
            ))
        };
        if let Err(reason) = self.attempt(|| self.platform.check_mapping(&mapping)) {
            return Ok(Some(not_installed(reason)));
        }
        let blueprint = self.attempt(|| self.platform.create_blueprint(&mapping)).unwrap_or_else(|reason| {
            warn!(reason, "the recipe blueprint was not created; the mapping is installed without");
            None
        });
        if let Err(reason) = self.attempt(|| self.platform.install_mapping(&mapping, blueprint.as_deref())) {
            return Ok(Some(not_installed(reason)));
        }
        run.set_connector_version(&version)?;
        info!(version, blueprint = blueprint.is_some(), "initial domain mapping installed");
        Ok(None)
    }

    /// Makes a call to the platform until it succeeds, is refused, or the invocation is over; says why it did not.
    pub(super) fn attempt<T>(
        &self,
        call: impl FnMut() -> std::result::Result<T, PlatformError>,
    ) -> std::result::Result<T, String> {
        attempts(self.clock, self.hard_at(), self.seed, call).map_err(|gave_up| gave_up.to_string())
    }

    fn external_sync_units<E: Extractor>(
        &self,
        extractor: &mut E,
        context: &Context<'_>,
        delivery: &mut Delivery<'_>,
        inline: &mut Option<Vec<Box<RawValue>>>,
    ) -> Result<Ending> {
        let stream = StreamName::new(EXTERNAL_SYNC_UNITS)?;
        if context.run.stream_cursor::<()>(&stream)?.is_none() {
            return Ok(Ending::Done);
        }
        let units = match self.ask(context, || extractor.external_sync_units(context)) {
            Ok(units) => units,
            Err(ending) => return Ok(ending),
        };
        let mut page = Page::<()>::last();
        let mut lines = Vec::new();
        for unit in &units {
            let record = Record::flat(unit)?;
            if self.settings.units_inline {
                let line = RawValue::from_string(record.to_line());
                lines.push(
                    line.map_err(|error| Error::Record { id: unit.id.clone(), reason: error.to_string() })?,
                );
            } else {
                page.push(EXTERNAL_SYNC_UNITS, record);
            }
        }
        if self.settings.units_inline {
            // Nothing is staged: a life that dies before its message is sealed asks again.
            *inline = Some(lines);
            return Ok(Ending::Done);
        }
        delivery.add(context.run.stage(
            &stream,
            Phase::ExternalSyncUnits,
            EXTERNAL_SYNC_UNIT_BATCH_ITEMS,
            page,
        )?);
        Ok(Ending::Done)
    }

    fn metadata<E: Extractor>(
        &self,
        extractor: &mut E,
        context: &Context<'_>,
        delivery: &mut Delivery<'_>,
    ) -> Result<Ending> {
        let stream = StreamName::new(METADATA)?;
        if context.run.stream_cursor::<()>(&stream)?.is_none() {
            return Ok(Ending::Done);
        }
        let document = match self.ask(context, || extractor.metadata(context)) {
            Ok(document) => document,
            Err(ending) => return Ok(ending),
        };
        let mut page = Page::<()>::last().record(METADATA, Record::flat(&document)?);
        match checks(extractor, document) {
            Ok(Some(checks)) => page.found(METADATA, checks.in_metadata),
            Ok(None) => {}
            Err(reason) => return Ok(failed(&reason)),
        }
        delivery.add(context.run.stage(&stream, Phase::Metadata, 1, page)?);
        Ok(Ending::Done)
    }

    fn data<E: Extractor>(
        &self,
        extractor: &mut E,
        context: &Context<'_>,
        keeper: Option<&Keeper<'_>>,
        delivery: &mut Delivery<'_>,
        last_item_type: &mut Option<String>,
    ) -> Result<Ending> {
        let run = context.run;
        if let Some(seconds) = run.delay_left_seconds()? {
            return Ok(Ending::Delay { seconds, asked: false });
        }
        let mut checks = None;
        let mut longest_page = Duration::ZERO;
        let mut pages = 0_u64;
        for stream in extractor.streams() {
            let stream = StreamName::new(stream)?;
            let mut watch = CursorWatch::default();
            while let Some(cursor) = run.stream_cursor::<E::Cursor>(&stream)? {
                while delivery.crowded() && delivery.halt().is_none() && !delivery.message_full() {
                    delivery.wait()?;
                }
                if delivery.halt().is_some() || delivery.message_full() {
                    return Ok(Ending::Progress);
                }
                if pages > 0 && longest_page >= context.time_left() {
                    info!(pages, "deadline reached");
                    return Ok(Ending::Progress);
                }
                if checks.is_none() {
                    checks = match self.checks(extractor, context) {
                        Ok(checks) => Some(checks),
                        Err(ending) => return Ok(ending),
                    };
                }
                let page_started = self.clock.elapsed();
                let mut page = match caught(|| extractor.page(context, stream.as_str(), cursor)) {
                    Ok(page) => page,
                    Err(SourceError::RateLimited { after }) => {
                        return Ok(Ending::asked_to_wait(after));
                    }
                    Err(SourceError::Failed { code, source }) => {
                        let context = format!("fetching a page of stream {stream} of {}", run.sync_unit());
                        return Ok(Ending::Failed {
                            code,
                            message: format!("{context}: {}", chain(source.as_ref())),
                        });
                    }
                };
                if let Some(item_type) = page.last_item_type() {
                    *last_item_type = Some(item_type.to_owned());
                }
                let (items, by_type, more) = (page.items(), page.items_by_type(), page.next.is_some());
                page.leave_out(|item_type| !context.extracts(item_type));
                if let Some(Some(checks)) = &mut checks
                    && let Err(reason) = checks.page(stream.as_str(), &mut page)
                {
                    return Ok(failed(&reason));
                }
                if let Some(keeper) = keeper {
                    keeper.admit(run, &stream, &page)?;
                }
                delivery.add(run.stage_data(&stream, page, &mut watch)?);
                debug!(stream = stream.as_str(), items, ?by_type, more, "page staged");
                delivery.step()?;
                if delivery.save_due() {
                    delivery.save()?;
                }
                pages += 1;
                longest_page = longest_page.max(self.clock.elapsed().saturating_sub(page_started));
            }
        }
        Ok(Ending::Done)
    }

    /// What pages are checked by in this invocation; `None`: they are not checked.
    fn checks<E: Extractor>(
        &self,
        extractor: &mut E,
        context: &Context<'_>,
    ) -> Result<Option<Checks>, Ending> {
        if extractor.check_policy() == CheckPolicy::Off {
            return Ok(None);
        }
        let document = self.ask(context, || extractor.metadata(context)).map_err(|ending| match ending {
            Ending::Failed { code, message } => {
                let message = format!("asking for the metadata to check records by: {message}");
                Ending::Failed { code, message }
            }
            ending => ending,
        })?;
        checks(extractor, document).map_err(|reason| failed(&reason))
    }

    /// Asks the extractor for something that is not a page: in a phase without DELAY, a wait that fits into the budget
    /// is waited for here.
    fn ask<T>(
        &self,
        context: &Context<'_>,
        mut ask: impl FnMut() -> Result<T, SourceError>,
    ) -> Result<T, Ending> {
        loop {
            match caught(&mut ask) {
                Ok(answer) => return Ok(answer),
                Err(SourceError::RateLimited { after }) if after < context.time_left() => {
                    self.clock.sleep(after);
                }
                Err(SourceError::RateLimited { after }) => {
                    return Err(Ending::asked_to_wait(after));
                }
                Err(SourceError::Failed { code, source }) => {
                    return Err(Ending::Failed { code, message: chain(source.as_ref()) });
                }
            }
        }
    }

    /// Forgets the unit. The message is the same whenever it is composed, so nothing needs to be sealed.
    fn delete(&self, store: &Store) -> Result<Outcome> {
        let unit = match self.event.unit_key() {
            Ok(unit) => store.any_unit(unit),
            Err(error) => return self.answer_statelessly(failed(&chain(&error))),
        };
        Span::current().record("unit", display(unit.id()));
        let deleted = self.deletion().and_then(|deletion| match self.event.event_type() {
            EventType::DeleteAttachments => self.delete_attachments(&unit, &deletion),
            _ => self.delete_data(&unit, &deletion),
        });
        match deleted {
            Ok(()) => self.answer_statelessly(Ending::Done),
            // A state that makes no sense is not ours to overwrite: the platform is told.
            Err(error @ Error::WorkerState { .. }) => self.answer_statelessly(failed(&chain(&error))),
            Err(error) => Err(error),
        }
    }

    /// What a store is to know of an event that asks for a deletion.
    fn deletion(&self) -> Result<Deletion> {
        let run_id = self.event.run_id()?;
        let told_apart = self.event.has_ids()? || run_id.is_some();
        Ok(Deletion { identity: self.event.identity()?, told_apart, run_id })
    }

    fn delete_data(&self, unit: &SyncUnit, deletion: &Deletion) -> Result<()> {
        let held = self.settings.checkpoints.then(|| self.take_over(unit, None)).transpose();
        if came_late(unit, deletion)? {
            return Ok(());
        }
        match held {
            Ok(Some((keeper, _))) => keeper.remove(unit, deletion)?,
            Ok(None) => {}
            // Whoever starts over need not be able to read what was there.
            Err(Error::WorkerState { .. }) => {
                let (token, hard) = (self.token(), self.hard_at());
                Keeper::start_over(unit, deletion, token, self.platform, self.clock, self.seed, hard)?;
            }
            Err(error) => return Err(error),
        }
        unit.delete_for(deletion)
    }

    fn delete_attachments(&self, unit: &SyncUnit, deletion: &Deletion) -> Result<()> {
        let held = self.settings.checkpoints.then(|| self.take_over(unit, None)).transpose()?;
        if came_late(unit, deletion)? {
            return Ok(());
        }
        if let Some((keeper, _)) = held {
            // The event counts as answered here once it does there.
            unit.delete_attachments()?;
            keeper.forget_attachments(unit, deletion)?;
        }
        unit.delete_attachments_for(deletion)
    }

    /// Takes a unit over for this invocation; see [`Keeper::take_over`].
    fn take_over(&self, unit: &SyncUnit, settle: Option<Duration>) -> Result<(Keeper<'_>, bool)> {
        let hard = self.hard_at();
        Keeper::take_over(unit, self.platform, self.clock, self.seed, hard, settle, self.token())
    }
}

/// Whether a deletion was asked for by an event that was answered before, or that is of a past run: it changes nothing.
fn came_late(unit: &SyncUnit, deletion: &Deletion) -> Result<bool> {
    let late = unit.came_late(deletion)?;
    if late {
        info!("the deletion was asked for before, or by a past run: nothing is deleted");
    }
    Ok(late)
}

/// The checks of an extractor whose metadata are these, if it wants any; or what to answer.
fn checks<E: Extractor>(extractor: &E, document: serde_json::Value) -> Result<Option<Checks>, String> {
    match extractor.check_policy() {
        CheckPolicy::Off => Ok(None),
        policy => Checks::new(policy, METADATA, document).map(Some),
    }
}

/// Calls the extractor; a panic in it is its failure.
pub(super) fn caught<T, E: From<String>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(E::from(format!("the extractor panicked: {}", panic_text(panic.as_ref()))))
    })
}
