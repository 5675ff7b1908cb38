//! One invocation: its event, its settings and its deadlines; and the ways in which its work ends.
//!
//! The steps of an invocation return `Result<_, Stop>`: `?` ends the work early, either with an answer other than
//! DONE, or with an error that is not sent to the platform.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::Phase;
use crate::store::Store;

use super::deadlines::Deadlines;
use super::event::Event;
use super::message::ErrorCode;
use super::platform::{Platform, PlatformError, WAIT_MAX};
use super::retry::{GaveUp, attempts};
use super::settings::Serve;

/// What stays the same from the event to its answer.
pub(super) struct Invocation<'a> {
    pub(super) settings: &'a Serve,
    pub(super) store: &'a Store,
    pub(super) clock: &'a dyn Clock,
    pub(super) platform: &'a dyn Platform,
    pub(super) event: &'a Event,
    pub(super) deadlines: Arc<Deadlines>,
    /// The clock's elapsed time at the start.
    pub(super) started: Duration,
    pub(super) seed: u64,
}

impl Invocation<'_> {
    /// A holder token. It is random, as two workers may start in the same microsecond; with a seed, it is derived
    /// from the seed.
    pub(super) fn token(&self) -> u64 {
        match self.settings.inline_seed {
            Some(seed) => fastrand::Rng::with_seed(seed).u64(..),
            None => RandomState::new().build_hasher().finish(),
        }
    }

    /// Retries a call to the platform until it succeeds, is refused, or the invocation is over.
    pub(super) fn attempt<T>(&self, call: impl FnMut() -> Result<T, PlatformError>) -> Result<T, GaveUp> {
        attempts(&self.deadlines, self.seed, call)
    }

    /// How the work ends after a call that never succeeded. After a stop the cause may be lack of time: then the next
    /// invocation makes the call again.
    pub(super) fn gave_up(&self, gave_up: &GaveUp, said: impl FnOnce(&GaveUp) -> String) -> Stop {
        match gave_up {
            GaveUp::Tried(_) if self.deadlines.is_stopped() => Ending::Progress.into(),
            gave_up => Stop::failed(&said(gave_up)),
        }
    }

    /// The error if nothing is sent, because the phase has no PROGRESS.
    pub(super) fn stopped(&self) -> Error {
        Error::Stopped { event_type: self.event.event_type().name(self.event.spelling()).to_owned() }
    }

    /// Whether the phase's DONE ends the run.
    pub(super) fn finishes(&self, phase: Phase) -> bool {
        match phase {
            Phase::ExternalSyncUnits | Phase::Attachments => true,
            Phase::Data => !self.settings.attachments_phase,
            Phase::Metadata => false,
        }
    }
}

/// How the work of an invocation ended, as the answer will say.
#[derive(Debug)]
pub(super) enum Ending {
    Done,
    Progress,
    /// `asked`: the source asked for it just now. Otherwise it is the rest of an earlier wait.
    Delay {
        seconds: u64,
        asked: bool,
    },
    Failed {
        code: Option<ErrorCode>,
        message: String,
    },
}

impl Ending {
    pub(super) fn failed(message: &str) -> Self {
        Self::Failed { code: None, message: message.to_owned() }
    }

    /// The source asked to wait this long.
    pub(super) fn asked_to_wait(wait: Duration) -> Self {
        let wait = wait.min(WAIT_MAX);
        // Rounded up to whole seconds.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::Delay { seconds, asked: true }
    }
}

/// Why the work of an invocation stops before its phase is done.
#[derive(Debug)]
pub(super) enum Stop {
    /// It ends in this way, which the answer will say.
    Ending(Ending),
    Error(Error),
}

impl Stop {
    pub(super) fn failed(message: &str) -> Self {
        Self::Ending(Ending::failed(message))
    }

    /// Sends an error to the platform if [`is_told`]; otherwise `serve` returns it.
    pub(super) fn told(error: Error) -> Self {
        if is_told(&error) { Self::failed(&chain(&error)) } else { Self::Error(error) }
    }

    /// How the work ended.
    ///
    /// # Errors
    /// Those that are not sent to the platform; see [`is_told`].
    pub(super) fn ending(worked: Result<(), Self>) -> Result<Ending> {
        match worked {
            Ok(()) => Ok(Ending::Done),
            Err(Self::Ending(ending)) => Ok(ending),
            Err(Self::Error(error)) => match Self::told(error) {
                Self::Ending(ending) => Ok(ending),
                Self::Error(error) => Err(error),
            },
        }
    }
}

/// Whether an error is sent to the platform. It is if the event, the worker state or the extractor's output is
/// invalid: the same event would fail again, and without a message nobody would learn why.
///
/// All other errors are not: this disk or its store is broken, another worker has the unit, or the event may succeed
/// when it is delivered again.
pub(super) fn is_told(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Fetch)
        || matches!(error, Error::WorkerState { .. })
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Ending> for Stop {
    fn from(ending: Ending) -> Self {
        Self::Ending(ending)
    }
}
