//! Drives an extractor through one event: accept, work, seal, send.
//!
//! One single-threaded loop decides and stores; calls to the platform are made in lanes.
//!
//! `serve` returns an error and sends nothing if this disk or its store is broken, if another worker has the unit, if
//! the event belongs to a past run, or if the platform does not return or accept the worker state. In every other
//! case exactly one message answers the event, and it is sealed before it is sent.
//!
//! An invocation is one `tracing` span, `run`, and each step is an event in it. As `tracing_subscriber` prints a
//! line, everything before its message takes less than 60 characters: the span has only a short id of the run, and
//! `event accepted` says which unit and run the id belongs to. A second span within it, `invocation`, has the event
//! type, the unit, the phase and the run for each event; it is at TRACE, with the target `highwater::fields`. The
//! text of an extractor's error is in none of them, as it may contain anything.

use std::sync::Arc;
use std::time::Duration;

use tracing::field::{Empty, display};
use tracing::{Span, info, info_span, trace_span};
use twox_hash::XxHash3_64;

use crate::error::{Error, Result, chain};
use crate::model::{Phase, RunId, Safeguard, SyncUnitId};
use crate::store::{Accepted, Deletion, Incoming, Run, Store, SyncUnit};

use super::answer::{MessageDetails, Outcome};
use super::attempt::{Attempt, AttemptResult, attempt};
use super::context::Context;
use super::deadlines::Deadlines;
use super::delivery::{Delivery, DeliverySettings};
use super::event::Event;
use super::event_type::EventType;
use super::event_type::OutcomeKind;
use super::extractor::Extractor;
use super::invocation::{Ending, Invocation, Stop};
use super::json_cursors::{AnyExtractor, JsonCursors};
use super::keeper::Keeper;
use super::lanes::Lanes;
use super::platform::Platform;
use super::settings::Serve;

/// Answers one event with the default settings; see [`Serve::serve`].
///
/// # Errors
/// As [`Serve::serve`].
pub fn serve<E: Extractor>(
    store: &Store,
    platform: &dyn Platform,
    extractor: &E,
    event: &Event,
) -> Result<Outcome> {
    Serve::new().serve(store, platform, extractor, event)
}

impl Serve {
    /// Answers one event with exactly one message. It extracts until the phase or the budget is over; if the event
    /// was answered before, it sends the same message again.
    ///
    /// # Durability
    /// When this returns `Ok`, the platform has accepted the message, and that is stored: every record it announces
    /// is announced for good.
    ///
    /// # Errors
    /// - `StaleEvent`, `Fenced`: the event is of a past run, or another worker has the unit. Nothing was sent or
    ///   changed.
    /// - `Replaced`: the store file is another one. Nothing more is sent: stop this worker.
    /// - `Corrupt`, `NewerFormat`, `Io`: the store cannot be read or written. Nothing was sent; what was stored before
    ///   stays.
    /// - `NotFetched`, `NotSaved`, with [`Serve::checkpoints`]: the platform did not hand out the worker state, or
    ///   did not take a checkpoint. Nothing was sent that it would have held. After `NotFetched` nothing has changed;
    ///   after `NotSaved` what was extracted is stored on this disk, and the message may be sealed. Deliver the same
    ///   event again: it resumes there. Where a message was accepted and only the checkpoint after it was not saved,
    ///   the same event sends the same bytes again.
    /// - `Stopped`: the invocation was asked to stop ([`Serve::stop_token`]), and there is no PROGRESS for it.
    ///   Nothing was sent; what was stored before stays. Deliver the same event again: it resumes.
    /// - `NotDelivered`: the message was not accepted. It is sealed, and serving the same event again sends it again;
    ///   if it was refused, what it announced is in the next message.
    /// - `TooLarge`: the event's context leaves no room for any answer.
    ///
    /// A failure of the extractor, and an invalid field of the event or key of the worker state, is not an error here:
    /// the platform gets an ERROR.
    pub fn serve<E: Extractor>(
        &self,
        store: &Store,
        platform: &dyn Platform,
        extractor: &E,
        event: &Event,
    ) -> Result<Outcome> {
        self.serve_any(store, platform, &JsonCursors(extractor), event)
    }

    fn serve_any(
        &self,
        store: &Store,
        platform: &dyn Platform,
        extractor: &AnyExtractor<'_>,
        event: &Event,
    ) -> Result<Outcome> {
        let (clock, stop) = (Arc::clone(store.clock()), self.stop.clone());
        let deadlines = Deadlines::new(clock, self.soft, self.hard, stop, self.stop_within);
        let clock = store.clock().as_ref();
        let event_type = event.event_type().name(event.spelling());
        let line = info_span!(target: "highwater", "run", id = %log_id(event));
        let _line = line.enter();
        let fields = trace_span!(
            target: "highwater::fields",
            "invocation",
            event_type,
            unit = Empty,
            run = Empty,
            phase = Empty
        );
        let _fields = fields.enter();
        let invocation = Invocation {
            settings: self,
            store,
            clock,
            platform,
            event,
            deadlines: Arc::new(deadlines),
            started: clock.elapsed(),
            seed: self.inline_seed.unwrap_or_else(|| clock.now().timestamp_micros().unsigned_abs()),
        };
        match event.event_type() {
            EventType::Unknown(name) => {
                let expected = "EXTRACTION_DATA_START or another type that this version supports";
                invocation.answer_statelessly(Ending::failed(&format!(
                    "unknown event type {name:?}, expected {expected}"
                )))
            }
            EventType::DeleteData | EventType::DeleteAttachments => invocation.delete(),
            EventType::ExternalSyncUnits
            | EventType::Metadata
            | EventType::Data { .. }
            | EventType::Attachments { .. } => match incoming(event) {
                Ok((_, incoming)) if store.breaks(Safeguard::KeyedBySyncUnit) => {
                    let unit = SyncUnitId::new(event.external_sync_unit_id()?.unwrap_or_default())?;
                    invocation.converse(extractor, unit, &incoming)
                }
                Ok((unit, incoming)) => invocation.converse(extractor, unit, &incoming),
                Err(error) => invocation.answer_statelessly(Ending::failed(&chain(&error))),
            },
        }
    }
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

fn run_of(accepted: &Accepted) -> &Run {
    match accepted {
        Accepted::Work(run)
        | Accepted::Repeat(run)
        | Accepted::Refuse(run, _)
        | Accepted::Replay(run, _)
        | Accepted::AnsweredEarlier(run) => run,
    }
}

/// Four hexadecimal digits that stand for a run in log lines: the same in each of its invocations, and probably others
/// for each other run.
fn log_id(event: &Event) -> String {
    let unit = event.unit_key().map(|unit| unit.as_str().to_owned()).unwrap_or_default();
    let run = event.run_id().ok().flatten().map(|run| run.as_str().to_owned()).unwrap_or_default();
    format!("{:04x}", XxHash3_64::oneshot(format!("{unit}\0{run}").as_bytes()) & 0xffff)
}

/// Logs what is done about an event.
fn log_accepted(event: &Event, phase: Phase, accepted: &Accepted) {
    let decision = match accepted {
        Accepted::Work(_) => "work",
        Accepted::Repeat(_) => "repeat",
        Accepted::Refuse(..) => "refuse",
        Accepted::Replay(..) => "replay",
        Accepted::AnsweredEarlier(_) => "answered earlier",
    };
    let run = run_of(accepted);
    Span::current().record("run", display(run.id()));
    info!(
        target: "highwater",
        decision,
        event_type = event.event_type().name(event.spelling()),
        unit = %run.sync_unit(),
        run = %run.id(),
        %phase,
        resumed = run.resumed(),
        started_at = %run.started_at(),
        "event accepted"
    );
}

impl Invocation<'_> {
    fn converse(
        &self,
        extractor: &AnyExtractor<'_>,
        unit: SyncUnitId,
        incoming: &Incoming,
    ) -> Result<Outcome> {
        let phase = incoming.phase;
        let span = Span::current();
        span.record("unit", display(&unit)).record("phase", display(phase));
        let (keeper, accepted) = match self.accept(&self.store.any_unit(unit), incoming) {
            Ok((keeper, accepted)) => (keeper, accepted),
            Err(Stop::Ending(ending)) => return self.answer_statelessly(ending),
            Err(Stop::Error(error)) => return Err(error),
        };
        let keeper = keeper.as_ref();
        let details = MessageDetails::default();
        log_accepted(self.event, phase, &accepted);
        let in_place = || self.store.ensure_in_place();
        let attempt = |call: Attempt, _: &(dyn Fn(_) + Sync)| attempt(self.platform, in_place, None, &call);
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
                left_out: run.left_out_totals()?,
            }),
            Accepted::Replay(run, message) => self.deliver(&run, keeper, message, true),
            Accepted::Repeat(run) => self.answer(&run, keeper, phase, Ending::Done, &details),
            Accepted::Refuse(run, reason) => {
                self.answer(&run, keeper, phase, Ending::failed(&reason), &details)
            }
            Accepted::Work(run) => match self.settings.inline_seed {
                Some(seed) => self.work(extractor, &run, keeper, phase, Lanes::inline(&attempt, seed)),
                None => std::thread::scope(|scope| {
                    let lanes = Lanes::pool(scope, &attempt, &[self.settings.lanes]);
                    self.work(extractor, &run, keeper, phase, lanes)
                }),
            },
        }
    }

    /// Decides what to do about an event. With checkpoints, the unit is taken over first, and the decision is saved.
    fn accept(&self, unit: &SyncUnit, incoming: &Incoming) -> Result<(Option<Keeper<'_>>, Accepted), Stop> {
        // A list of external sync units has no sync unit whose state could hold a checkpoint.
        if !self.settings.checkpoints || incoming.phase == Phase::ExternalSyncUnits {
            return Ok((None, unit.accept(incoming, false, None).map_err(Stop::told)?));
        }
        let (keeper, restored) = self.take_over(unit, self.settings.takeover_wait).map_err(Stop::told)?;
        let inherited = keeper.inherited(incoming).map_err(Stop::told)?;
        let accepted = unit.accept(incoming, restored, inherited.as_ref()).map_err(Stop::told)?;
        keeper.save(run_of(&accepted), None).map_err(Stop::told)?;
        Ok((Some(keeper), accepted))
    }

    /// Extracts, delivers the batches, and answers.
    fn work(
        &self,
        extractor: &AnyExtractor<'_>,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        lanes: Lanes<'_, Attempt, Result<AttemptResult>>,
    ) -> Result<Outcome> {
        let (_, artifacts_max) = run.progress_and_artifacts_max()?;
        let settings = DeliverySettings {
            batches_at_once: self.settings.lanes,
            attachments_at_once: self.settings.attachments_at_once,
            seed: self.seed,
            confirms: phase != Phase::ExternalSyncUnits,
            base_bytes: self.base_bytes()?,
            artifacts_max,
        };
        let mut details = MessageDetails::default();
        let mut delivery = match Delivery::new(run, self.clock, &self.deadlines, lanes, keeper, &settings) {
            Ok(delivery) => delivery,
            Err(error) => {
                return self.answer(run, keeper, phase, Stop::ending(Err(error.into()))?, &details);
            }
        };
        let worked = match self.begin(extractor, run, keeper, phase) {
            Ok(context) => {
                details.window = context.window();
                match phase {
                    Phase::ExternalSyncUnits => {
                        self.external_sync_units(extractor, &context, &mut delivery, &mut details.units)
                    }
                    Phase::Metadata => self.metadata(extractor, &context, &mut delivery),
                    Phase::Data => return self.data(extractor, &context, keeper, delivery, details),
                    Phase::Attachments => {
                        return self.attachments(extractor, &context, keeper, delivery, &details);
                    }
                }
            }
            Err(stop) => Err(stop),
        };
        self.conclude(run, keeper, phase, delivery, worked, &details)
    }

    /// Prepares a phase, before anything is requested from the extractor.
    fn begin(
        &self,
        extractor: &AnyExtractor<'_>,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
    ) -> Result<Context, Stop> {
        let context = self.context(run, keeper, phase)?;
        self.domain_mapping(extractor, &context, phase)?;
        Ok(context)
    }

    /// Forgets the unit. The message is the same whenever it is composed, so it need not be sealed.
    fn delete(&self) -> Result<Outcome> {
        let unit = match self.event.unit_key() {
            Ok(unit) => self.store.any_unit(unit),
            Err(error) => return self.answer_statelessly(Ending::failed(&chain(&error))),
        };
        Span::current().record("unit", display(unit.id()));
        let deleted = self.deletion().and_then(|deletion| match self.event.event_type() {
            EventType::DeleteAttachments => self.delete_attachments(&unit, &deletion),
            _ => self.delete_data(&unit, &deletion),
        });
        match deleted {
            Ok(()) => self.answer_statelessly(Ending::Done),
            Err(error) => self.answer_statelessly(Stop::ending(Err(error.into()))?),
        }
    }

    /// What the store must know of an event that asks for a deletion.
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
            // The old state need not be readable to start over.
            Err(Error::WorkerState { .. }) => {
                let token = self.token();
                Keeper::start_over(unit, deletion, token, self.platform, self.seed, &self.deadlines)?;
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
            // The event counts as answered here only if it does there.
            unit.delete_attachments()?;
            keeper.forget_attachments(unit, deletion)?;
        }
        unit.delete_attachments_for(deletion)
    }

    /// Takes a unit over for this invocation; see [`Keeper::take_over`].
    fn take_over(&self, unit: &SyncUnit, wait: Option<Duration>) -> Result<(Keeper<'_>, bool)> {
        let (clock, deadlines, token) = (self.clock, &self.deadlines, self.token());
        let held = Keeper::take_over(unit, self.platform, clock, self.seed, deadlines, wait, token)?;
        let (keeper, restored) = held.ok_or_else(|| self.stopped())?;
        Ok((keeper.with_limits(self.settings.state_limits), restored))
    }
}

/// Whether the deletion comes too late: its event was answered before, or belongs to a past run. Then nothing is
/// deleted.
fn came_late(unit: &SyncUnit, deletion: &Deletion) -> Result<bool> {
    let late = unit.came_late(deletion)?;
    if late {
        info!(target: "highwater", "nothing is deleted: the event was answered before, or belongs to a past run");
    }
    Ok(late)
}
