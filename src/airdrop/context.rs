//! The invocation as an extractor sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Result;
use crate::model::RunId;
use crate::store::Run;

use super::deadlines::Deadlines;
use super::event::Event;
use super::sdk::Scope;
use super::window::Window;

/// The invocation as an extractor sees it: the event, the run, and what to extract. A clone is cheap, and keeps the store
/// open: do not keep one beyond the call.
#[derive(Clone)]
pub struct Context {
    pub(super) event: Arc<Event>,
    pub(super) run: Arc<Run>,
    pub(super) deadlines: Arc<Deadlines>,
    pub(super) window: Option<Window>,
    pub(super) scope: Arc<Scope>,
    pub(super) connector_state: Option<Arc<Value>>,
    /// Values set by earlier pages that are not stored yet.
    pub(super) values_ahead: Arc<ValuesAhead>,
}

/// Values by key, as JSON; `None`: the value is removed.
pub(super) type ValuesAhead = BTreeMap<String, Option<String>>;

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("event", &*self.event)
            .field("run", &*self.run)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// The same, for a page that comes after pages that set these values and are not stored yet.
    pub(super) fn ahead(&self, values: ValuesAhead) -> Self {
        Self { values_ahead: Arc::new(values), ..self.clone() }
    }

    /// The event that is being answered.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The run.
    pub fn run_id(&self) -> &RunId {
        self.run.id()
    }

    /// When the run started, in its first life.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.run.started_at()
    }

    /// Where to extract from: records modified at or after this time; `None`: everything. It is [`Run::since`], or
    /// the start of the [`Context::window`] if that is earlier: after a reset, in an initial import of a unit that
    /// was synced before, or if the platform names a start. The same in every life of the run.
    pub fn since(&self) -> Option<DateTime<Utc>> {
        match self.window {
            Some(window) if self.reaches_back() => window.from,
            _ => self.run.since(),
        }
    }

    /// Whether the window begins before [`Run::since`]. If the platform asked for no window, it begins there.
    fn reaches_back(&self) -> bool {
        match (self.window, self.run.since()) {
            (Some(window), Some(since)) => window.from.is_none_or(|from| from < since),
            _ => false,
        }
    }

    /// The extraction window that the platform asks for. It is resolved when the run's first phase begins, and is
    /// fixed from then on. `None` while external sync units are listed.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// The bookmark that the last finished run left for a stream. `None` if the [`Context::window`] begins before
    /// [`Run::since`]: then everything before the bookmark must be read again.
    ///
    /// # Errors
    /// Those of [`Run::bookmark`].
    pub fn bookmark<B: DeserializeOwned>(&self, stream: &str) -> Result<Option<B>> {
        if self.reaches_back() {
            return Ok(None);
        }
        self.run.bookmark(stream)
    }

    /// A value of the extractor's own, as [`Page::value`](crate::Page::value) last set it. This includes what earlier
    /// pages of the same listing set that are [not stored yet](super::Serve::ahead).
    ///
    /// # Errors
    /// Those of [`Run::value`].
    pub fn value<V: DeserializeOwned>(&self, key: &str) -> Result<Option<V>> {
        match self.values_ahead.get(key) {
            Some(set) => set.as_ref().map(|json| self.run.read_value(key, json)).transpose(),
            None => self.run.value(key),
        }
    }

    /// Whether an item type is in the extraction scope. If it is not, its records need not be fetched; those that are
    /// returned are counted and not staged. Resolved when the data phase begins, and fixed until the run is over.
    /// Before that, and if no scope is read, this is `true`.
    ///
    /// A type that comes into scope later is extracted from that run's [`Context::since`], like the others.
    pub fn extracts(&self, item_type: &str) -> bool {
        self.scope.extracts(item_type)
    }

    /// The connector's own keys in a state of the TypeScript SDK, in a run that the SDK began and that continues
    /// here. They hold the cursors of the SDK's data extraction. `None` in every other run.
    ///
    /// In such a run the first page of each stream is fetched with no cursor: start from these keys.
    pub fn connector_state(&self) -> Option<&Value> {
        self.connector_state.as_deref()
    }

    /// How much of the [budget](super::Serve::budget) for pages is left in this invocation; zero after a
    /// [stop](super::Serve::stop_token). A page that takes long may check it, and end early with the records that it
    /// has.
    pub fn time_left(&self) -> Duration {
        self.deadlines.time_left()
    }
}
