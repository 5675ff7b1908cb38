//! The work of the phases but for attachments: what the extractor is asked for, and how it gets into the store.
//!
//! External sync units and metadata are asked for once and staged as one page. The data phase goes through the streams,
//! page by page. It stops between pages, never before the first: so every invocation that lives long enough for one page
//! makes progress.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::error::{Error, Result, chain};
use crate::model::{EXTERNAL_SYNC_UNIT_BATCH_ITEMS, Micros, Phase, StreamName};
use crate::record::Record;
use crate::store::{CursorWatch, Page, Run, WindowRow, refetched};

use super::check::{CheckPolicy, Checks};
use super::context::Context;
use super::delivery::Delivery;
use super::extractor::{ExternalSyncUnit, Extractor, SourceError, caught};
use super::invocation::{Ending, Invocation, Stop};
use super::keeper::Keeper;
use super::listing::Listing;
use super::rejected;
use super::sdk::Scope;
use super::window::{Bounds, Window, resolve};

/// The item type, and the stream, of the metadata document.
const METADATA: &str = "external_domain_metadata";
/// The item type, and the stream, of external sync units.
const EXTERNAL_SYNC_UNITS: &str = "external_sync_units";

/// The note of a run that says which item types it leaves out.
const SCOPE: &str = "scope";

impl Invocation<'_> {
    /// What the extractor is told of this invocation.
    pub(super) fn context<'c>(
        &'c self,
        run: &'c Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
    ) -> Result<Context<'c>, Stop> {
        let window = self.window(run, phase)?;
        let scope = self.scope(run, keeper, phase)?;
        let connector_state = match keeper {
            Some(keeper) if run.sdk_attachments()?.is_some() => keeper.connector_state()?,
            _ => None,
        };
        let (event, clock, soft_at) = (self.event, self.clock, self.soft_at());
        Ok(Context { event, run, clock, soft_at, window, scope, connector_state })
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

    /// The extraction scope: resolved when the data phase begins, and fixed until the run is over.
    fn scope(&self, run: &Run, keeper: Option<&Keeper<'_>>, phase: Phase) -> Result<Scope, Stop> {
        if phase < Phase::Data || (keeper.is_none() && !self.settings.scope) {
            return Ok(Scope::default());
        }
        if let Some(scope) = run.note(SCOPE)? {
            return Ok(scope);
        }
        if phase != Phase::Data {
            return Ok(Scope::default());
        }
        let scope = if let Some(keeper) = keeper {
            keeper.scope()
        } else {
            let state = self.attempt(|| self.platform.worker_state()).map_err(|gave_up| {
                Stop::failed(&format!("the extraction scope could not be read: {gave_up}"))
            })?;
            let objects = state.and_then(|state| state.objects);
            Scope::read(objects.as_deref(), run.sync_unit().as_str())
        };
        let scope = scope.map_err(|error| Stop::failed(&chain(&error)))?;
        run.set_note(SCOPE, &scope)?;
        Ok(scope)
    }

    /// Installs the connector's initial domain mapping, if that of this version is not installed, before anything else
    /// of a run. Killed before it is remembered, it is installed again, which is the same as once.
    pub(super) fn domain_mapping<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
        phase: Phase,
    ) -> Result<(), Stop> {
        let run = context.run;
        let first = phase == Phase::Metadata || (phase == Phase::Data && !run.has_done(Phase::Metadata)?);
        let Some(version) = self.event.snap_in_version_id()?.filter(|_| first) else { return Ok(()) };
        if run.connector_version()?.as_ref() == Some(&version) {
            return Ok(());
        }
        let Some(mapping) = self.ask(context, || extractor.initial_domain_mapping(context))? else {
            return Ok(());
        };
        let not_installed = |reason| {
            Stop::failed(&format!(
                "the initial domain mapping of snap-in version {version} could not be installed: {reason}"
            ))
        };
        self.attempt(|| self.platform.check_mapping(&mapping)).map_err(not_installed)?;
        let blueprint = self.attempt(|| self.platform.create_blueprint(&mapping)).unwrap_or_else(|gave_up| {
            let reason = gave_up.to_string();
            warn!(reason, "the recipe blueprint was not created; the mapping is installed without");
            None
        });
        self.attempt(|| self.platform.install_mapping(&mapping, blueprint.as_deref()))
            .map_err(not_installed)?;
        run.set_connector_version(&version)?;
        info!(version, blueprint = blueprint.is_some(), "initial domain mapping installed");
        Ok(())
    }

    /// Lists the external sync units: into a batch, or into `inline`, if they go into the message itself.
    pub(super) fn external_sync_units<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
        delivery: &mut Delivery<'_>,
        inline: &mut Option<Vec<Box<RawValue>>>,
    ) -> Result<(), Stop> {
        let stream = StreamName::new(EXTERNAL_SYNC_UNITS)?;
        if context.run.stream_cursor::<()>(&stream)?.is_none() {
            return Ok(());
        }
        let units = self.ask(context, || extractor.external_sync_units(context))?;
        if self.settings.units_inline {
            // Nothing is staged: a life that dies before its message is sealed asks again.
            let line = |unit: &ExternalSyncUnit| {
                let line = RawValue::from_string(Record::flat(unit)?.to_line());
                line.map_err(|error| Error::Record { id: unit.id.clone(), reason: error.to_string() })
            };
            *inline = Some(units.iter().map(line).collect::<Result<_>>()?);
            return Ok(());
        }
        let mut page = Page::<()>::last();
        for unit in &units {
            page.push(EXTERNAL_SYNC_UNITS, Record::flat(unit)?);
        }
        let (phase, batch_items) = (Phase::ExternalSyncUnits, EXTERNAL_SYNC_UNIT_BATCH_ITEMS);
        delivery.add(context.run.stage(&stream, phase, batch_items, page)?);
        Ok(())
    }

    /// Asks for the metadata document, checks it if the extractor wants that, and stages it.
    pub(super) fn metadata<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), Stop> {
        let stream = StreamName::new(METADATA)?;
        if context.run.stream_cursor::<()>(&stream)?.is_none() {
            return Ok(());
        }
        let document = self.ask(context, || extractor.metadata(context))?;
        let mut page = Page::<()>::last().record(METADATA, Record::flat(&document)?);
        if let Some(checks) = checks(extractor, document)? {
            page.found(METADATA, checks.in_metadata);
        }
        delivery.add(context.run.stage(&stream, Phase::Metadata, 1, page)?);
        Ok(())
    }

    /// Goes through the streams, page by page, from where they stand. `last_item_type`: of the last record that was fetched.
    pub(super) fn data<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
        keeper: Option<&Keeper<'_>>,
        delivery: &mut Delivery<'_>,
        last_item_type: &mut Option<String>,
    ) -> Result<(), Stop> {
        let run = context.run;
        if let Some(seconds) = run.delay_left_seconds()? {
            return Err(Ending::Delay { seconds, asked: false }.into());
        }
        let mut pages = Pages::new(context, keeper, delivery);
        let mut checks = Loaded::default();
        while let Some((item_type, ids)) = run.next_rejected(|item_type| context.extracts(item_type))? {
            pages.wait_for_room()?;
            pages.ensure_time()?;
            let checks = self.loaded(&mut checks, extractor, context)?;
            pages.started = self.clock.elapsed();
            let mut page = rejected::refetch(extractor, context, &item_type, &ids)?;
            self.settle(extractor, context, refetched()?.as_str(), &mut page, checks)?;
            pages.stage_refetched(page)?;
            pages.deliver()?;
        }
        let streams = self
            .ask(context, || extractor.streams(context))
            .map_err(|stop| stop.while_doing(&format!("asking for the streams of {}", run.sync_unit())))?;
        for stream in streams {
            let stream = StreamName::new(stream)?;
            let listing = Listing::of_stream(stream.clone());
            let mut watch = CursorWatch::default();
            while let Some(cursor) = run.stream_cursor::<E::Cursor>(&stream)? {
                pages.wait_for_room()?;
                pages.ensure_time()?;
                let checks = self.loaded(&mut checks, extractor, context)?;
                pages.started = self.clock.elapsed();
                let mut page = caught(|| extractor.page(context, &listing, cursor)).map_err(|error| {
                    let asked_for = format!("fetching a page of {listing} of {}", run.sync_unit());
                    Stop::from(error).while_doing(&asked_for)
                })?;
                if let Some(item_type) = page.last_item_type() {
                    *last_item_type = Some(item_type.to_owned());
                }
                let (items, by_type, more) = (page.items(), page.items_by_type(), page.next.is_some());
                self.settle(extractor, context, stream.as_str(), &mut page, checks)?;
                pages.stage(&stream, page, &mut watch)?;
                debug!(stream = stream.as_str(), items, ?by_type, more, "page staged");
                pages.deliver()?;
            }
        }
        rejected::check_part(run, self.settings.rejected_percent)
    }

    /// What pages are checked by, asked for once.
    fn loaded<'l, E: Extractor>(
        &self,
        checks: &'l mut Loaded,
        extractor: &E,
        context: &Context<'_>,
    ) -> Result<Option<&'l mut Checks>, Stop> {
        if !checks.is_loaded {
            checks.checks = self.checks(extractor, context)?;
            checks.is_loaded = true;
        }
        Ok(checks.checks.as_mut())
    }

    /// Decides which records of a page are staged: those that are wanted and not rejected.
    fn settle<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
        stream: &str,
        page: &mut Page<E::Cursor>,
        checks: Option<&mut Checks>,
    ) -> Result<(), Stop> {
        page.leave_out(|item_type| !context.extracts(item_type));
        if let Some(checks) = checks {
            checks.page(stream, page).map_err(|reason| Stop::failed(&reason))?;
        }
        page.rejected_max(self.settings.rejected_max);
        rejected::check_refetchable(extractor, context.run, stream, page)
    }

    /// What pages are checked by in this invocation; `None`: they are not checked.
    fn checks<E: Extractor>(&self, extractor: &E, context: &Context<'_>) -> Result<Option<Checks>, Stop> {
        if extractor.check_policy() == CheckPolicy::Off {
            return Ok(None);
        }
        let document = self
            .ask(context, || extractor.metadata(context))
            .map_err(|stop| stop.while_doing("asking for the metadata to check records by"))?;
        checks(extractor, document)
    }

    /// Asks the extractor for something that is not a page: in a phase without DELAY, a wait that fits into the budget
    /// is waited for here.
    fn ask<T>(
        &self,
        context: &Context<'_>,
        mut ask: impl FnMut() -> Result<T, SourceError>,
    ) -> Result<T, Stop> {
        loop {
            match caught(&mut ask) {
                Ok(answer) => return Ok(answer),
                Err(SourceError::RateLimited { after }) if after < context.time_left() => {
                    self.clock.sleep(after);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What pages are checked by in an invocation, once that was asked for.
#[derive(Default)]
struct Loaded {
    is_loaded: bool,
    /// `None`: they are not checked.
    checks: Option<Checks>,
}

/// The pages of one invocation, on their way from the source into the store and to the platform.
struct Pages<'p, 'd> {
    context: &'p Context<'p>,
    clock: &'p dyn Clock,
    keeper: Option<&'p Keeper<'p>>,
    delivery: &'p mut Delivery<'d>,
    /// Elapsed time when the present page was asked for.
    started: Duration,
    done: u64,
    longest: Duration,
}

impl<'p, 'd> Pages<'p, 'd> {
    fn new(context: &'p Context<'p>, keeper: Option<&'p Keeper<'p>>, delivery: &'p mut Delivery<'d>) -> Self {
        let (clock, started, longest) = (context.clock, Duration::ZERO, Duration::ZERO);
        Self { context, clock, keeper, delivery, started, done: 0, longest }
    }

    /// Waits while more batches are on their way than the lanes can soon take.
    fn wait_for_room(&mut self) -> Result<(), Stop> {
        while self.delivery.crowded() && !self.is_closed() {
            self.delivery.wait()?;
        }
        if self.is_closed() { Err(Ending::Progress.into()) } else { Ok(()) }
    }

    /// Whether this invocation delivers no more batches.
    fn is_closed(&self) -> bool {
        self.delivery.halt().is_some() || self.delivery.message_full()
    }

    /// Stops if the next page would probably end after the soft deadline. The first one always has time.
    fn ensure_time(&self) -> Result<(), Stop> {
        if self.done > 0 && self.longest >= self.context.time_left() {
            info!(pages = self.done, "deadline reached");
            return Err(Ending::Progress.into());
        }
        Ok(())
    }

    fn stage<C: Serialize + DeserializeOwned>(
        &mut self,
        stream: &StreamName,
        page: Page<C>,
        watch: &mut CursorWatch,
    ) -> Result<()> {
        let run = self.context.run;
        if let Some(keeper) = self.keeper {
            keeper.admit(run, stream, &page)?;
        }
        self.delivery.add(run.stage_data(stream, page, watch)?);
        Ok(())
    }

    /// Stores what was fetched of rejected records.
    fn stage_refetched<C: Serialize>(&mut self, page: Page<C>) -> Result<()> {
        let run = self.context.run;
        if let Some(keeper) = self.keeper {
            keeper.admit(run, &refetched()?, &page)?;
        }
        self.delivery.add(run.stage_refetched(page)?);
        Ok(())
    }

    /// Moves what is closed on towards the platform, and saves a checkpoint if one is due.
    fn deliver(&mut self) -> Result<()> {
        self.delivery.step()?;
        if self.delivery.save_due() {
            self.delivery.save()?;
        }
        self.done += 1;
        self.longest = self.longest.max(self.clock.elapsed().saturating_sub(self.started));
        Ok(())
    }
}

impl Stop {
    /// Says what was being done when something failed.
    pub(super) fn while_doing(self, what: &str) -> Self {
        match self {
            Self::Ending(Ending::Failed { code, message }) => {
                Self::Ending(Ending::Failed { code, message: format!("{what}: {message}") })
            }
            other => other,
        }
    }
}

impl From<SourceError> for Stop {
    fn from(error: SourceError) -> Self {
        Self::Ending(match error {
            SourceError::RateLimited { after } => Ending::asked_to_wait(after),
            SourceError::Failed { code, source } => Ending::Failed { code, message: chain(source.as_ref()) },
        })
    }
}

/// The checks of an extractor whose metadata are these, if it wants any.
fn checks<E: Extractor>(extractor: &E, document: Value) -> Result<Option<Checks>, Stop> {
    match extractor.check_policy() {
        CheckPolicy::Off => Ok(None),
        policy => Checks::new(policy, METADATA, document).map(Some).map_err(|reason| Stop::failed(&reason)),
    }
}
