//! The beginning of a phase, and the phases that ask the extractor only once.
//!
//! External sync units and metadata are requested once and staged as one page. The pages of the data phase, and the
//! attachments, have their own modules.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use tracing::{info, warn};

use crate::error::{Error, Result, chain};
use crate::model::{EXTERNAL_SYNC_UNIT_BATCH_ITEMS, Micros, Phase, StreamName};
use crate::record::Record;
use crate::store::{Page, Run, WindowRow};

use super::check::{CheckPolicy, Checks};
use super::context::{Context, ValuesAhead};
use super::delivery::Delivery;
use super::extractor::{ExternalSyncUnit, caught};
use super::invocation::{Ending, Invocation, Stop};
use super::json_cursors::AnyExtractor;
use super::keeper::Keeper;
use super::retry::{ShortWaits, SourceTries};
use super::sdk::Scope;
use super::source_error::SourceError;
use super::window::{Bounds, Window, resolve};

/// The item type, and the stream, of the metadata document.
const METADATA: &str = "external_domain_metadata";
/// The item type, and the stream, of external sync units.
const EXTERNAL_SYNC_UNITS: &str = "external_sync_units";

/// The note in which a run keeps the item types that are out of scope.
const SCOPE: &str = "scope";

impl Invocation<'_> {
    /// The context of an extractor's calls in this invocation.
    pub(super) fn context(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
    ) -> Result<Context, Stop> {
        let window = self.window(run, phase)?;
        let scope = self.scope(run, keeper, phase)?;
        let connector_state = match keeper {
            Some(keeper) if run.sdk_attachments()?.is_some() => keeper.connector_state()?.map(Arc::new),
            _ => None,
        };
        let (event, run) = (Arc::new(self.event.clone()), Arc::new(run.another()));
        let (deadlines, scope) = (Arc::clone(&self.deadlines), Arc::new(scope));
        let values_ahead = Arc::new(ValuesAhead::new());
        Ok(Context { event, run, deadlines, window, scope, connector_state, values_ahead })
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
            let not_read = |gave_up: &_| format!("the extraction scope could not be read: {gave_up}");
            let state = self.attempt(|| self.platform.worker_state());
            let state = state.map_err(|gave_up| self.gave_up(&gave_up, not_read))?;
            let objects = state.and_then(|state| state.objects);
            Scope::read(objects.as_deref(), run.sync_unit().as_str())
        };
        let scope = scope.map_err(|error| Stop::failed(&chain(&error)))?;
        run.set_note(SCOPE, &scope)?;
        Ok(scope)
    }

    /// Installs the connector's initial domain mapping, before anything else of a run, unless that of this version is
    /// installed. If it is killed before it records that, it installs the mapping again, which changes nothing.
    pub(super) fn domain_mapping(
        &self,
        extractor: &AnyExtractor<'_>,
        context: &Context,
        phase: Phase,
    ) -> Result<(), Stop> {
        let run = &*context.run;
        let first = phase == Phase::Metadata || (phase == Phase::Data && !run.has_done(Phase::Metadata)?);
        let Some(version) = self.event.snap_in_version_id()?.filter(|_| first) else { return Ok(()) };
        if run.connector_version()?.as_ref() == Some(&version) {
            return Ok(());
        }
        let Some(mapping) = self.ask(context, phase, || extractor.initial_domain_mapping(context))? else {
            return Ok(());
        };
        let not_installed = |gave_up| {
            self.gave_up(&gave_up, |reason| {
                format!(
                    "the initial domain mapping of snap-in version {version} could not be installed: {reason}"
                )
            })
        };
        self.attempt(|| self.platform.check_mapping(&mapping)).map_err(not_installed)?;
        let blueprint = match self.attempt(|| self.platform.create_blueprint(&mapping)) {
            Ok(blueprint) => blueprint,
            Err(gave_up) if self.deadlines.is_stopped() => return Err(not_installed(gave_up)),
            Err(gave_up) => {
                let reason = gave_up.to_string();
                warn!(target: "highwater", reason, "the recipe blueprint was not created; the mapping is installed without it");
                None
            }
        };
        self.attempt(|| self.platform.install_mapping(&mapping, blueprint.as_deref()))
            .map_err(not_installed)?;
        run.set_connector_version(&version)?;
        info!(target: "highwater", version, blueprint = blueprint.is_some(), "initial domain mapping installed");
        Ok(())
    }

    /// Lists the external sync units: into a batch, or into `inline`, if they go into the message itself.
    pub(super) fn external_sync_units(
        &self,
        extractor: &AnyExtractor<'_>,
        context: &Context,
        delivery: &mut Delivery<'_>,
        inline: &mut Option<Vec<Box<RawValue>>>,
    ) -> Result<(), Stop> {
        let stream = StreamName::new(EXTERNAL_SYNC_UNITS)?;
        if context.run.stream_cursor::<()>(&stream)?.is_none() {
            return Ok(());
        }
        let units = self.ask(context, Phase::ExternalSyncUnits, || extractor.external_sync_units(context))?;
        if self.settings.units_inline {
            // Nothing is staged: a life that dies before its message is sealed lists them again.
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
    pub(super) fn metadata(
        &self,
        extractor: &AnyExtractor<'_>,
        context: &Context,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), Stop> {
        let stream = StreamName::new(METADATA)?;
        if context.run.stream_cursor::<()>(&stream)?.is_none() {
            return Ok(());
        }
        let document = self.ask(context, Phase::Metadata, || extractor.metadata(context))?;
        let mut page = Page::<()>::last().record(METADATA, Record::flat(&document)?);
        if let Some(checks) = checks(extractor, document)? {
            page.found(METADATA, checks.in_metadata);
        }
        delivery.add(context.run.stage(&stream, Phase::Metadata, 1, page)?);
        Ok(())
    }

    /// The checks of pages in this invocation; `None`: pages are not checked.
    pub(super) fn checks(
        &self,
        extractor: &AnyExtractor<'_>,
        context: &Context,
    ) -> Result<Option<Checks>, Stop> {
        if extractor.check_policy() == CheckPolicy::Off {
            return Ok(None);
        }
        let document = self
            .ask(context, Phase::Data, || extractor.metadata(context))
            .map_err(|stop| stop.while_doing("asking for the metadata to check records by"))?;
        checks(extractor, document)
    }

    /// Asks the extractor for something other than a page. A wait that the source asks for takes place here if it is
    /// short; in a phase without DELAY, if it fits into the budget.
    pub(super) fn ask<T>(
        &self,
        context: &Context,
        phase: Phase,
        mut ask: impl FnMut() -> Result<T, SourceError>,
    ) -> Result<T, Stop> {
        let up_to = if phase.continues() { self.settings.wait_up_to } else { Duration::MAX };
        let mut waits = ShortWaits::new(up_to);
        let mut tries = SourceTries::new(up_to);
        loop {
            if self.deadlines.is_stopped() {
                return Err(Ending::Progress.into());
            }
            match caught(&mut ask) {
                Ok(answer) => return Ok(answer),
                Err(SourceError::RateLimited { after }) => {
                    match waits.next(after, context.time_left(), false) {
                        // If a stop is requested meanwhile, the source is not called again.
                        Ok(wait) => drop(self.deadlines.sleep(wait)),
                        Err(wait) => return Err(Ending::asked_to_wait(wait).into()),
                    }
                }
                // It was given up because of the stop.
                Err(_) if self.deadlines.is_past_stop() => return Err(Ending::Progress.into()),
                Err(SourceError::Temporary { source }) => match tries.next(context.time_left()) {
                    Some(wait) => drop(self.deadlines.sleep(wait)),
                    None => return Err(Stop::failed(&tries.failure(source.as_ref()))),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Stop {
    /// Adds what was being done to a failure.
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
            SourceError::Temporary { source } => Ending::failed(&chain(source.as_ref())),
            SourceError::Failed { code, source, .. } => {
                Ending::Failed { code, message: chain(source.as_ref()) }
            }
        })
    }
}

/// The checks by this metadata, if the extractor wants any.
fn checks(extractor: &AnyExtractor<'_>, document: Value) -> Result<Option<Checks>, Stop> {
    match extractor.check_policy() {
        CheckPolicy::Off => Ok(None),
        policy => Checks::new(policy, METADATA, document).map(Some).map_err(|reason| Stop::failed(&reason)),
    }
}
