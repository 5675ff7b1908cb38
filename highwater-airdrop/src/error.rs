//! What can go wrong with a local Airdrop. What is then on disk: exactly what was there before the call.

use std::path::PathBuf;

use highwater::BoxError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. A message names what and which; the cause is in the source chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another sync is driven in this directory: wait for it, or take another directory.
    #[error("another program is at work in this directory: {} is locked; wait for it to end, or take another directory", path.display())]
    InUse {
        /// The file that is locked.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("cannot {action}")]
    Io {
        /// What was being done, and to which path.
        action: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// A directory holds what no [`Local`](crate::Local) wrote there.
    #[error("{} is not as a local Airdrop left it: {reason}", path.display())]
    NotALocal {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The directory was written by a newer version of this crate.
    #[error("{} has format {found}, newer than {supported}, the newest that this version reads: upgrade \
             highwater-airdrop", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u64,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// A value given by the caller is not allowed.
    #[error("{what} is not allowed: {reason}")]
    Invalid {
        /// The value.
        what: String,
        /// Why, and what would be.
        reason: String,
    },
    /// A worker cannot be verified, as one that fails without a fault cannot.
    #[error("it cannot be verified: {reason}")]
    Unverified {
        /// Why, and what to do.
        reason: String,
    },
    /// An id is not one that the library takes.
    #[error(transparent)]
    Name(#[from] highwater::Error),
    /// The worker came to no end.
    #[error("run {run} of {sync_unit} has come to no end after {limit} invocations")]
    NoEnd {
        /// The run.
        run: String,
        /// The sync unit.
        sync_unit: String,
        /// The invocations that a run may have.
        limit: u64,
    },
    /// The worker cannot be started.
    #[error("cannot start the worker {program}: is it there, and may it be executed?")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The port cannot be served at.
    #[error("cannot serve at port {port}; --port chooses another, --port 0 any that is free")]
    Port {
        /// The port.
        port: u16,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// An event that waits for its answer names another address than the one that is served now.
    #[error("{event} waits for its answer at {callback}: give --port the port in it to go on")]
    Elsewhere {
        /// The event type.
        event: String,
        /// The address in the event.
        callback: String,
    },
    /// The worker was given an event again and again, and never answered it.
    #[error("{event} was given {} and never answered: {}", often(*times), reason.as_deref().unwrap_or("the worker ended well, and sent no message"))]
    NeverAnswered {
        /// The event type.
        event: String,
        /// How often it was given.
        times: u64,
        /// What was wrong the last time: how the worker ended, or why its message was refused.
        reason: Option<String>,
    },
    /// The worker failed; its own error is the source, intact. The next sync sends the same event again, unless it was
    /// answered nevertheless.
    #[error("the worker failed on event {event} (request {request})")]
    Worker {
        /// The event type.
        event: String,
        /// Its request id.
        request: String,
        /// The worker's error.
        #[source]
        source: BoxError,
    },
    /// The worker came back, but no accepted message, or more than one, or a wrong one, answers the event.
    #[error("event {event} (request {request}) was not answered: {reason}")]
    NotAnswered {
        /// The event type.
        event: String,
        /// Its request id.
        request: String,
        /// What was found instead.
        reason: String,
    },
    /// The sync ended with an ERROR. The next one begins a new run.
    #[error("run {run} ended with {answer}: {message}")]
    SyncFailed {
        /// The run.
        run: String,
        /// The event type of the last message.
        answer: String,
        /// What the extractor said, cut to 2,000 characters.
        message: String,
    },
}

impl Error {
    pub(crate) fn io(action: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Error::Io { action: action.into(), source: source.into() }
    }
}

fn often(times: u64) -> String {
    if times == 1 { "once".to_owned() } else { format!("{times} times") }
}

/// An error and its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
