//! What an extractor is told of the invocation that it is called in.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::clock::Clock;
use crate::error::Result;
use crate::model::RunId;
use crate::store::Run;

use super::event::Event;
use super::sdk::Scope;
use super::window::Window;

/// What an extractor may know of the invocation that it is called in.
pub struct Context<'a> {
    pub(super) event: &'a Event,
    pub(super) run: &'a Run,
    pub(super) clock: &'a dyn Clock,
    pub(super) soft_at: Duration,
    pub(super) window: Option<Window>,
    pub(super) scope: Scope,
    pub(super) connector_state: Option<Value>,
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
