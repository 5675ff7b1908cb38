//! Drives an extractor through one event: accept, work, settle, seal, send.
//!
//! One single-threaded loop decides and stores; calls to the platform are made in lanes. The loop stops between
//! pages, never before the first: so every invocation that lives long enough for one page makes progress.
//!
//! Who cannot open the store, is fenced, or gets an event of a past run, gets an error and nothing is sent. In every
//! other case exactly one message answers the event; it is sealed before it is sent.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::artifact::decompress;
use crate::clock::Clock;
use crate::error::{BoxError, Error, ErrorKind, Result, chain, panic_text};
use crate::model::{
    BATCH_BYTES_MAX, EXTERNAL_SYNC_UNIT_BATCH_ITEMS, MESSAGE_BYTES_SOFT, Micros, Phase, Rule, RunId,
    StreamName, SyncUnitId,
};
use crate::record::{FindingCounts, Record};
use crate::store::{
    Accepted, AttachmentCounts, Incoming, MessageKind, Page, Run, Sealing, Store, StoredMessage, WindowRow,
    message_key_text,
};

use super::check::{CheckPolicy, Checks};
use super::event::{Event, EventType, Spelling};
use super::extractor::{Extractor, SourceError};
use super::keeper::Keeper;
use super::lanes::{Done, Job, Lanes, attempt};
use super::message::{
    ARTIFACTS_FIELD_BYTES, Answer, AnswerKind, ERROR_MESSAGE_BYTES_MAX, ErrorCode, WorkerMetadata, compose,
};
use super::outbox::{GaveUp, Outbox, OutboxSettings, Trouble, attempts, entry};
use super::platform::{Platform, SealedMessage};
use super::streams::{self, StreamDone, StreamJob, StreamSettings, Streams, StreamsEnd};
use super::window::{Bounds, Window, resolve};

/// The item type, and the stream, of the metadata document.
const METADATA: &str = "external_domain_metadata";
/// The item type, and the stream, of external sync units.
const EXTERNAL_SYNC_UNITS: &str = "external_sync_units";

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
pub struct Serve {
    soft: Duration,
    hard: Duration,
    lanes: usize,
    streams: usize,
    attachment_tries: u32,
    inline_seed: Option<u64>,
    spelling: Option<Spelling>,
    attachments_phase: bool,
    units_inline: bool,
    checkpoints: bool,
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

    /// Makes the calls one after the other on this thread, in an order that the seed decides: a run can be replayed.
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
    /// The promise then holds for one live invocation per sync unit whose saves land in order.
    pub fn checkpoints(mut self) -> Self {
        self.checkpoints = true;
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
                Ok((_, incoming)) if store.breaks(Rule::KeyedBySyncUnit) => {
                    let unit = SyncUnitId::new(event.external_sync_unit_id()?.unwrap_or_default())?;
                    invocation.converse(store, extractor, unit, &incoming)
                }
                Ok((unit, incoming)) => invocation.converse(store, extractor, unit, &incoming),
                Err(error) => invocation.answer_statelessly(failed(&chain(&error))),
            },
        }
    }
}

/// What came of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// What the message says.
    pub kind: OutcomeKind,
    /// The event type of the message; empty if the event was answered long ago and nothing was sent.
    pub event_type: String,
    /// The message as it was sent: JSON on one line. `None` as above.
    pub message: Option<String>,
    /// Artifacts that it announces.
    pub artifacts: u64,
    /// The run, where there is one.
    pub run: Option<RunId>,
    /// The message had been sealed before, and was only sent again.
    pub replayed: bool,
    /// How far the attachments of the run are; those that failed are listed by
    /// [`SyncUnit::failed_attachments`](crate::SyncUnit::failed_attachments).
    pub attachments: AttachmentCounts,
    /// A watermark that was left aside for lying in the future: see [`Run::ignored_watermark`].
    pub ignored_watermark: Option<DateTime<Utc>>,
    /// What was found in the run's records so far, and in its metadata: see [`CheckPolicy`]. A page that was refused is
    /// not in it.
    pub findings: FindingCounts,
}

/// What the message that answered an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// The phase is over.
    Done,
    /// There is more, at once.
    Progress,
    /// There is more, after a while.
    Delay,
    /// It went wrong; the message says how.
    Error,
    /// The event was answered by an earlier life, and its message is no longer kept: nothing was sent.
    AnsweredEarlier,
}

impl From<MessageKind> for OutcomeKind {
    fn from(kind: MessageKind) -> Self {
        match kind {
            MessageKind::Done => Self::Done,
            MessageKind::Progress => Self::Progress,
            MessageKind::Delay => Self::Delay,
            MessageKind::Error => Self::Error,
        }
    }
}

/// What an extractor may know of the invocation that it is called in.
pub struct Context<'a> {
    event: &'a Event,
    run: &'a Run,
    clock: &'a dyn Clock,
    soft_at: Duration,
    window: Option<Window>,
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

    /// What was modified at or after this is wanted; `None`: everything. See [`Run::since`].
    pub fn since(&self) -> Option<DateTime<Utc>> {
        self.run.since()
    }

    /// What the platform asks for, by its own settings: resolved when the run's first phase began, and the same ever
    /// after. `None` while external sync units are listed, which have no window.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// The bookmark that the last finished run left for a stream.
    ///
    /// # Errors
    /// As [`Run::bookmark`].
    pub fn bookmark<B: DeserializeOwned>(&self, stream: &str) -> Result<Option<B>> {
        self.run.bookmark(stream)
    }

    /// A small value of the extractor's own.
    ///
    /// # Errors
    /// As [`Run::value`].
    pub fn value<V: DeserializeOwned>(&self, key: &str) -> Result<Option<V>> {
        self.run.value(key)
    }

    /// How long pages are still fetched in this invocation.
    pub fn time_left(&self) -> Duration {
        self.soft_at.saturating_sub(self.clock.elapsed())
    }
}

/// How the work of an invocation ended.
#[derive(Debug)]
enum Ending {
    Done,
    Progress,
    /// `asked` says that the source asked for it just now; otherwise it is what is left of an earlier wait.
    Delay {
        seconds: u64,
        asked: bool,
    },
    Failed {
        code: Option<ErrorCode>,
        message: String,
    },
}

fn failed(message: &str) -> Ending {
    Ending::Failed { code: None, message: message.to_owned() }
}

/// What the message says beside how it ended.
#[derive(Debug, Default)]
struct Said {
    /// The item type extracted last.
    item_type: Option<String>,
    window: Option<Window>,
    /// External sync units, where they go into the message itself.
    units: Option<Vec<Box<RawValue>>>,
}

struct Invocation<'a> {
    settings: &'a Serve,
    clock: &'a dyn Clock,
    platform: &'a dyn Platform,
    event: &'a Event,
    started: Duration,
    seed: u64,
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

impl Invocation<'_> {
    fn converse<E: Extractor>(
        &self,
        store: &Store,
        extractor: &mut E,
        unit: SyncUnitId,
        incoming: &Incoming,
    ) -> Result<Outcome> {
        let phase = incoming.phase;
        let unit = store.any_unit(unit);
        let hard = self.started.saturating_add(self.settings.hard);
        // External sync units have no sync unit to keep a checkpoint under.
        let held = if self.settings.checkpoints && phase != Phase::ExternalSyncUnits {
            Some(Keeper::take_over(&unit, self.platform, self.clock, self.seed, hard, self.settings.settle)?)
        } else {
            None
        };
        let restored = held.as_ref().is_some_and(|(_, restored)| *restored);
        let keeper = held.as_ref().map(|(keeper, _)| keeper);
        let accepted = unit.accept(incoming, restored)?;
        if let (
            Some(keeper),
            Accepted::Work(run)
            | Accepted::Repeat(run)
            | Accepted::Refuse(run, _)
            | Accepted::Replay(run, _)
            | Accepted::AnsweredEarlier(run),
        ) = (keeper, &accepted)
        {
            keeper.save(run, None)?;
        }
        let attempt = |job: &Job| attempt(self.platform, job);
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
        lanes: Lanes<'_, Job, Done>,
    ) -> Result<Outcome> {
        let (_, artifacts_max) = run.progress_and_artifacts_max()?;
        let settings = OutboxSettings {
            lanes_max: self.settings.lanes,
            seed: self.seed,
            hard: self.started.saturating_add(self.settings.hard),
            confirms: phase != Phase::ExternalSyncUnits,
            base_bytes: self.base_bytes()?,
            artifacts_max,
        };
        let mut outbox = Outbox::new(run, self.clock, lanes, keeper, &settings)?;
        let window = match self.window(run, phase) {
            Err(error) if error.kind() == ErrorKind::Invalid => {
                return self.answer(run, keeper, phase, failed(&chain(&error)), &Said::default());
            }
            window => window?,
        };
        let soft_at = self.started + self.settings.soft;
        let context = Context { event: self.event, run, clock: self.clock, soft_at, window };
        let mut said = Said { window, ..Said::default() };
        let ending = match phase {
            Phase::ExternalSyncUnits => {
                self.external_sync_units(extractor, &context, &mut outbox, &mut said.units)
            }
            Phase::Metadata => self.metadata(extractor, &context, &mut outbox),
            Phase::Data => self.data(extractor, &context, &mut outbox, &mut said.item_type),
            Phase::Attachments => return self.attachments(extractor, &context, keeper, outbox, &said),
        };
        self.settle(run, keeper, phase, outbox, ending, &said)
    }

    /// Delivers what was extracted, and answers.
    fn settle(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        mut outbox: Outbox<'_>,
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
        outbox.add(run.close_open()?);
        outbox.drain()?;
        if !matches!(ending, Ending::Failed { .. }) {
            match outbox.trouble() {
                Some(Trouble::Failed(reason)) => ending = failed(reason),
                Some(Trouble::AskedToWait(wait)) => {
                    ending = Ending::Delay { seconds: whole_seconds(*wait), asked: true };
                }
                None if outbox.left_over() && matches!(ending, Ending::Done) => ending = Ending::Progress,
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

    fn external_sync_units<E: Extractor>(
        &self,
        extractor: &mut E,
        context: &Context<'_>,
        outbox: &mut Outbox<'_>,
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
        outbox.add(context.run.stage(
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
        outbox: &mut Outbox<'_>,
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
        outbox.add(context.run.stage(&stream, Phase::Metadata, 1, page)?);
        Ok(Ending::Done)
    }

    fn data<E: Extractor>(
        &self,
        extractor: &mut E,
        context: &Context<'_>,
        outbox: &mut Outbox<'_>,
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
            while let Some(cursor) = run.stream_cursor::<E::Cursor>(&stream)? {
                while outbox.crowded() && outbox.trouble().is_none() && !outbox.message_full() {
                    outbox.wait()?;
                }
                if outbox.trouble().is_some() || outbox.message_full() {
                    return Ok(Ending::Progress);
                }
                if pages > 0 && longest_page >= context.time_left() {
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
                        return Ok(Ending::Delay { seconds: whole_seconds(after), asked: true });
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
                if let Some(Some(checks)) = &mut checks
                    && let Err(reason) = checks.page(stream.as_str(), &mut page)
                {
                    return Ok(failed(&reason));
                }
                outbox.add(run.stage_data(&stream, page)?);
                outbox.step()?;
                if outbox.save_due() {
                    outbox.save()?;
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

    /// Streams the attachments that the data phase queued, and answers: while the lanes are there, so that a stream which
    /// cannot be aborted does not keep the answer back.
    fn attachments<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
        keeper: Option<&Keeper<'_>>,
        mut outbox: Outbox<'_>,
        said: &Said,
    ) -> Result<Outcome> {
        let run = context.run;
        let early = match run.delay_left_seconds()? {
            Some(seconds) => Some(Ending::Delay { seconds, asked: false }),
            None => self.rebuild_queue(context)?,
        };
        if let Some(ending) = early {
            return self.settle(run, keeper, Phase::Attachments, outbox, Ok(ending), said);
        }
        let hard = self.started.saturating_add(self.settings.hard);
        // What is left after it is for the last batch, the confirms and the message.
        let abort_at = context.soft_at + hard.saturating_sub(context.soft_at).mul_f64(0.75);
        let settings = StreamSettings {
            streams_max: self.settings.streams,
            tries_max: self.settings.attachment_tries,
            seed: self.seed,
            soft: context.soft_at,
            hard,
            saves: keeper.is_some(),
        };
        let attempt =
            |job: &StreamJob| streams::attempt(extractor, context, self.platform, self.clock, abort_at, job);
        let work_off = |lanes: Lanes<'_, StreamJob, StreamDone>| {
            let end = Streams::new(run, self.clock, lanes, settings).work_off(&mut outbox);
            let ending = end.map(|end| match end {
                StreamsEnd::Done => Ending::Done,
                StreamsEnd::Progress => Ending::Progress,
                StreamsEnd::Delay(wait) => Ending::Delay { seconds: whole_seconds(wait), asked: true },
                StreamsEnd::Failed(reason) => failed(&reason),
            });
            self.settle(run, keeper, Phase::Attachments, outbox, ending, said)
        };
        match self.settings.inline_seed {
            Some(seed) => work_off(Lanes::inline(&attempt, seed)),
            None => std::thread::scope(|scope| work_off(Lanes::pool(scope, &attempt, self.settings.streams))),
        }
    }

    /// Makes the queue of attachments again, where a checkpoint brought the run back, from the artifacts that announced
    /// them. Says how the invocation ends, if it cannot go on.
    fn rebuild_queue(&self, context: &Context<'_>) -> Result<Option<Ending>> {
        let hard = self.started.saturating_add(self.settings.hard);
        for (seq, artifact) in context.run.files_to_load()? {
            if context.time_left().is_zero() {
                return Ok(Some(Ending::Progress));
            }
            let loaded = attempts(self.clock, hard, self.seed, || self.platform.download(&artifact));
            let loaded = loaded.map_err(|gave_up| gave_up.to_string()).and_then(|member| {
                let mut lines = Vec::new();
                decompress(&member, 2 * BATCH_BYTES_MAX, &mut lines).map_err(|error| error.to_string())?;
                Ok(lines)
            });
            let reason = match loaded.map(|lines| context.run.load_file(seq, &lines)) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) if error.kind() == ErrorKind::Invalid => chain(&error),
                Ok(Err(error)) => return Err(error),
                Err(reason) => reason,
            };
            let unit = context.run.sync_unit();
            let what = format!("artifact {artifact}, which names attachments of {unit}, cannot be read back");
            return Ok(Some(failed(&format!("{what}: {reason}"))));
        }
        context.run.queue_rebuilt()?;
        Ok(None)
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
                    return Err(Ending::Delay { seconds: whole_seconds(after), asked: true });
                }
                Err(SourceError::Failed { code, source }) => {
                    return Err(Ending::Failed { code, message: chain(source.as_ref()) });
                }
            }
        }
    }

    /// Seals the message and sends it. What does not fit goes into the next: then it is PROGRESS, if the phase has it.
    fn answer(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        mut ending: Ending,
        said: &Said,
    ) -> Result<Outcome> {
        loop {
            let (percent, artifacts_max) = run.progress_and_artifacts_max()?;
            let mut bytes = self.base_bytes()?;
            let mut batches = Vec::new();
            let mut artifacts = Vec::new();
            let confirmed = run.confirmed()?;
            for (info, artifact) in &confirmed {
                let entry = entry(info, artifact);
                bytes += entry.bytes()?;
                // One always goes, or nothing ever would.
                if !artifacts.is_empty()
                    && (bytes > MESSAGE_BYTES_SOFT
                        || artifacts.len() as u64 >= artifacts_max.unwrap_or(u64::MAX))
                {
                    break;
                }
                batches.push(info.seq);
                artifacts.push(entry);
            }
            let all = artifacts.len() == confirmed.len();
            if !all && phase.continues() && matches!(ending, Ending::Done | Ending::Failed { .. }) {
                ending = Ending::Progress;
            }
            let (kind, delay_seconds, says) = match &ending {
                Ending::Done => (MessageKind::Done, None, AnswerKind::Done),
                Ending::Progress => (MessageKind::Progress, None, AnswerKind::Progress { percent }),
                Ending::Delay { seconds, asked } => {
                    (MessageKind::Delay, asked.then_some(*seconds), AnswerKind::Delay { seconds: *seconds })
                }
                Ending::Failed { code, message } => {
                    (MessageKind::Error, None, AnswerKind::Error { code: *code, message: message.clone() })
                }
            };
            let mut answer = Answer::new(says);
            answer.artifacts = artifacts;
            // An ERROR carries no units: it may be for them that the message was too large.
            if kind != MessageKind::Error {
                answer.external_sync_units.clone_from(&said.units);
            }
            answer.worker = WorkerMetadata {
                item_type: said.item_type.clone(),
                oldest_state: said.window.and_then(|window| window.from),
                newest_state: said.window.map(|window| window.to),
            };
            let composed = match compose(self.event, self.settings.spelling, &answer) {
                Ok(composed) => composed,
                Err(error @ Error::TooLarge { .. }) if !matches!(ending, Ending::Failed { .. }) => {
                    ending = failed(&chain(&error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let finishes = match phase {
                Phase::ExternalSyncUnits | Phase::Attachments => true,
                Phase::Data => !self.settings.attachments_phase,
                Phase::Metadata => false,
            };
            let sent_unsealed = run.breaks(Rule::SealBeforeSend);
            if sent_unsealed {
                let key = message_key_text(&incoming_name(self.event), &composed.body);
                let event_type = composed.event_type.to_owned();
                let (body, artifacts) = (composed.body.clone(), batches.len() as u64);
                self.send(&StoredMessage { no: 0, key, event_type, body, kind, artifacts })?;
            }
            let sealed = run.seal(&Sealing {
                phase,
                kind,
                event_type: composed.event_type.to_owned(),
                batches: &batches,
                body: composed.body,
                finishes,
                delay_seconds,
            });
            let message = match sealed {
                Ok(message) => message,
                // DONE balances or is not sent.
                Err(error @ Error::Unfinished { .. }) if kind == MessageKind::Done => {
                    ending = failed(&chain(&error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(keeper) = keeper
                && !run.breaks(Rule::SendAfterSave)
            {
                keeper.save(run, run.position()?.as_ref())?;
            }
            let sent = if sent_unsealed { Sent::Accepted } else { self.send(&message)? };
            match sent {
                Sent::Accepted => return accepted(run, keeper, message, false),
                Sent::Refused { status: 413, .. } if batches.len() > 1 => {
                    run.refused(message.no, Some(batches.len() as u64 / 2))?;
                }
                Sent::Refused { status, reason } => {
                    run.refused(message.no, None)?;
                    if let Some(keeper) = keeper {
                        keeper.save(run, None)?;
                    }
                    return Err(not_delivered(&message, &format!("refused with {status}: {reason}")));
                }
            }
        }
    }

    /// Sends a message that was sealed earlier.
    fn deliver(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        message: StoredMessage,
        replayed: bool,
    ) -> Result<Outcome> {
        match self.send(&message)? {
            Sent::Accepted => accepted(run, keeper, message, replayed),
            Sent::Refused { status, reason } => {
                // Only the newest, and only if it was never accepted, can still be taken back.
                if run.is_undelivered(message.no)? {
                    let artifacts_max =
                        (status == 413 && message.artifacts > 1).then_some(message.artifacts / 2);
                    run.refused(message.no, artifacts_max)?;
                    if let Some(keeper) = keeper {
                        keeper.save(run, None)?;
                    }
                }
                Err(not_delivered(&message, &format!("refused with {status}: {reason}")))
            }
        }
    }

    /// Tries to hand over a message until it is accepted or refused, or the invocation is over.
    fn send(&self, message: &StoredMessage) -> Result<Sent> {
        let sealed = SealedMessage {
            key: message.key.clone(),
            event_type: message.event_type.clone(),
            body: message.body.clone(),
        };
        let hard = self.started.saturating_add(self.settings.hard);
        match attempts(self.clock, hard, self.seed, || self.platform.send(&sealed)) {
            Ok(()) => Ok(Sent::Accepted),
            Err(GaveUp::Refused { status, reason }) => Ok(Sent::Refused { status, reason }),
            Err(GaveUp::Tried(reason)) => Err(not_delivered(message, &reason)),
        }
    }

    /// Forgets the unit. The message is the same whenever it is composed, so nothing needs to be sealed.
    fn delete(&self, store: &Store) -> Result<Outcome> {
        match self.event.unit_key() {
            Ok(unit) => {
                let unit = store.any_unit(unit);
                if *self.event.event_type() == EventType::DeleteAttachments {
                    unit.delete_attachments()?;
                } else {
                    if self.settings.checkpoints {
                        let hard = self.started.saturating_add(self.settings.hard);
                        let (keeper, _) =
                            Keeper::take_over(&unit, self.platform, self.clock, self.seed, hard, None)?;
                        keeper.remove()?;
                    }
                    unit.delete()?;
                }
                self.answer_statelessly(Ending::Done)
            }
            Err(error) => self.answer_statelessly(failed(&chain(&error))),
        }
    }

    /// Answers an event that has no run to seal its message in.
    fn answer_statelessly(&self, ending: Ending) -> Result<Outcome> {
        let (kind, says) = match ending {
            Ending::Failed { code, message } => (MessageKind::Error, AnswerKind::Error { code, message }),
            Ending::Done | Ending::Progress | Ending::Delay { .. } => (MessageKind::Done, AnswerKind::Done),
        };
        let composed = compose(self.event, self.settings.spelling, &Answer::new(says))?;
        let name =
            self.event.identity().unwrap_or_else(|_| self.event.event_type().name(Spelling::Seed).to_owned());
        let message = StoredMessage {
            no: 0,
            key: message_key_text(&name, &composed.body),
            event_type: composed.event_type.to_owned(),
            body: composed.body,
            kind,
            artifacts: 0,
        };
        match self.send(&message)? {
            Sent::Accepted => Ok(Outcome {
                kind: kind.into(),
                event_type: message.event_type,
                message: Some(message.body),
                artifacts: 0,
                run: None,
                replayed: false,
                attachments: AttachmentCounts::default(),
                ignored_watermark: None,
                findings: FindingCounts::default(),
            }),
            Sent::Refused { status, reason } => {
                Err(not_delivered(&message, &format!("refused with {status}: {reason}")))
            }
        }
    }

    /// Bytes of the message before any artifact is in it, with room for an error's text.
    fn base_bytes(&self) -> Result<usize> {
        let says = AnswerKind::Error { code: None, message: String::new() };
        let empty = compose(self.event, self.settings.spelling, &Answer::new(says))?;
        Ok(empty.body.len() + ARTIFACTS_FIELD_BYTES + ERROR_MESSAGE_BYTES_MAX)
    }
}

/// What a message that no run seals is keyed by.
fn incoming_name(event: &Event) -> String {
    event.identity().unwrap_or_else(|_| event.event_type().name(Spelling::Seed).to_owned())
}

enum Sent {
    Accepted,
    Refused { status: u16, reason: String },
}

/// Records that a message was accepted.
fn accepted(
    run: &Run,
    keeper: Option<&Keeper<'_>>,
    message: StoredMessage,
    replayed: bool,
) -> Result<Outcome> {
    let over = run.delivered(message.no)?;
    match keeper {
        Some(keeper) if over => keeper.save_end(run)?,
        // Said again: that is to be known if the event comes once more.
        Some(keeper) if replayed => drop(keeper.save(run, None)?),
        _ => {}
    }
    Ok(Outcome {
        kind: message.kind.into(),
        event_type: message.event_type,
        message: Some(message.body),
        artifacts: message.artifacts,
        attachments: run.attachment_totals()?,
        run: Some(run.id().clone()),
        replayed,
        ignored_watermark: run.ignored_watermark(),
        findings: run.finding_counts()?,
    })
}

fn not_delivered(message: &StoredMessage, reason: &str) -> Error {
    Error::NotDelivered { message: message.event_type.clone(), reason: reason.to_owned() }
}

/// The checks of an extractor whose metadata are these, if it wants any; or what to answer.
fn checks<E: Extractor>(extractor: &E, document: serde_json::Value) -> Result<Option<Checks>, String> {
    match extractor.check_policy() {
        CheckPolicy::Off => Ok(None),
        policy => Checks::new(policy, METADATA, document).map(Some),
    }
}

/// Whole seconds that are not less than `wait`.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Calls the extractor; a panic in it is its failure.
fn caught<T>(call: impl FnOnce() -> Result<T, SourceError>) -> Result<T, SourceError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let reason: BoxError = format!("the extractor panicked: {}", panic_text(panic.as_ref())).into();
        Err(SourceError::Failed { code: None, source: reason })
    })
}
