//! The errors of a local Airdrop. After an error, the disk is exactly as it was before the call.

use std::path::PathBuf;

use highwater::BoxError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. The message names what and which; the cause is in the source chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another sync is running in this directory: wait for it, or use another directory.
    #[error("another program uses this directory: {} is locked; wait for it to end, or use another directory", path.display())]
    InUse {
        /// The locked file.
        path: PathBuf,
    },
    /// An I/O error.
    #[error("cannot {action}")]
    Io {
        /// What was attempted, and on which path.
        action: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// A file of the directory was not written by [`Local`](crate::Local).
    #[error("{} was not written by a local Airdrop: {reason}", path.display())]
    NotALocal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
        /// Why, and what is allowed.
        reason: String,
    },
    /// A worker cannot be verified, for example because it fails without a fault.
    #[error("the worker cannot be verified: {reason}")]
    Unverified {
        /// Why, and what to do.
        reason: String,
    },
    /// The library does not accept an id.
    #[error(transparent)]
    Name(#[from] highwater::Error),
    /// The run did not end.
    #[error("run {run} of {sync_unit} has not ended after {limit} invocations")]
    NoEnd {
        /// The run.
        run: String,
        /// The sync unit.
        sync_unit: String,
        /// The limit on the invocations of a run.
        limit: u64,
    },
    /// The worker cannot be started.
    #[error("cannot start the worker {program}: does it exist, and is it executable?")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The port cannot be used.
    #[error("cannot listen on port {port}; choose another with --port, or any free one with --port 0")]
    Port {
        /// The port.
        port: u16,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// An event that waits for its answer has another address than the one that is served now.
    #[error("{event} waits for its answer at {callback}: to go on, use the port of that address with --port")]
    Elsewhere {
        /// The event type.
        event: String,
        /// The address in the event.
        callback: String,
    },
    /// The worker was given an event several times, and never answered it.
    #[error("{event} was given {} and never answered: {}", often(*times), reason.as_deref().unwrap_or("the worker succeeded, but sent no message"))]
    NeverAnswered {
        /// The event type.
        event: String,
        /// How often it was given the event.
        times: u64,
        /// What was wrong the last time: how the worker ended, or why its message was refused.
        reason: Option<String>,
    },
    /// The worker failed; the source is its own error. The next sync sends the same event again, unless the worker
    /// answered it before it failed.
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
    /// The worker returned, but no accepted message, more than one, or a wrong one answers the event.
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
        /// The text of the ERROR, cut to 2,000 characters.
        message: String,
    },
    /// The run ended, and there is no report of it: it is not known what was announced.
    #[error(
        "there is no report of the run of {sync_unit}: its directory was changed while the sync ran; sync again"
    )]
    NoReport {
        /// The sync unit.
        sync_unit: String,
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
