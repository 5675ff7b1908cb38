//! The one error type.
//!
//! A message names what and which; the cause is in the source chain. [`Error::kind`] says what to do.

use std::path::PathBuf;

/// The error of a dependency or of the caller, boxed so that none of their types is in our API.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. After an error, the disk holds what it held before the call, unless the variant says
/// otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process (or another [`Store`](crate::Store) of this one) has the file open.
    #[error("{} is in use by another process: stop it, or wait for it to end", path.display())]
    InUse {
        /// The store file.
        path: PathBuf,
    },
    /// The file is not a highwater store.
    #[error("{} is not a highwater store: {reason}", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The store file was deleted or replaced while it was open, so another worker may be using the new one. When
    /// that was found, nothing more was sent or changed.
    #[error(
        "{} was deleted or replaced while it was open: stop this worker, because another one may be using the new \
             file; nothing was sent",
        path.display()
    )]
    Replaced {
        /// The store file.
        path: PathBuf,
    },
    /// The file, or a row in it, was written by a newer version of this crate.
    #[error(
        "{what} has format {found}, newer than {supported}, the newest this version reads: upgrade highwater"
    )]
    NewerFormat {
        /// The file or the row.
        what: String,
        /// The format found.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// What is stored is damaged or inconsistent. Nothing is guessed from it.
    #[error("damaged store: {what}: {reason}; look with `highwater-dump check`")]
    Corrupt {
        /// Table and key, or the file.
        what: String,
        /// What is inconsistent.
        reason: String,
    },
    /// The disk, or the file system, failed.
    #[error("cannot {action}")]
    Io {
        /// What was being done, and to which path.
        action: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// A value that the caller gave is over its limit.
    #[error("{what} is {found} {unit}, over the limit of {limit}")]
    TooLarge {
        /// The value.
        what: String,
        /// Its size.
        found: u64,
        /// The limit, a constant of the crate.
        limit: u64,
        /// The unit of the size: bytes or items.
        unit: &'static str,
    },
    /// What the extractor sets does not fit into the checkpoint any more. Nothing of its page is stored.
    #[error(
        "{what} takes {found} bytes of the checkpoint of {sync_unit}, and {left} are left of {limit}: without a disk, all \
         cursors, bookmarks, values and ids of rejected records together must fit"
    )]
    NoRoom {
        /// The cursor, bookmark, value, stream, item type or id of a rejected record.
        what: String,
        /// The sync unit.
        sync_unit: String,
        /// Bytes that it takes, as JSON with its name.
        found: u64,
        /// Bytes that are left for it.
        left: u64,
        /// Bytes that all of them may take:
        /// [`CHECKPOINT_STATE_BYTES_MAX`](crate::limits::CHECKPOINT_STATE_BYTES_MAX), less what other keys of the
        /// same worker state take.
        limit: u64,
    },
    /// A value that the caller gave is not allowed.
    #[error("{what} is not allowed: {reason}")]
    Invalid {
        /// The value.
        what: String,
        /// Why not, and what is allowed.
        reason: String,
    },
    /// The stored cursor of a stream cannot be read as the type asked for.
    #[error(
        "the cursor of stream {stream} of {sync_unit} does not decode: {cursor}; \
             read it with `#[serde(default)]` on new fields, or abandon the run"
    )]
    Cursor {
        /// The sync unit.
        sync_unit: String,
        /// The stream.
        stream: String,
        /// The stored JSON text, cut to 200 characters.
        cursor: String,
        /// The decoder's error.
        #[source]
        source: BoxError,
    },
    /// A stored bookmark or value cannot be read as the type asked for, or a new one cannot be written as JSON.
    #[error("{what} of {sync_unit} does not have the requested type")]
    Value {
        /// The bookmark or value.
        what: String,
        /// The sync unit.
        sync_unit: String,
        /// The decoder's or encoder's error.
        #[source]
        source: BoxError,
    },
    /// A record cannot be written as a line of an artifact.
    #[error("record {id} cannot be written: {reason}")]
    Record {
        /// The record's id, or its place in the page.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The closure that fetches pages failed; the source is its own error. Nothing of that page is stored.
    #[error("fetching a page of stream {stream} of {sync_unit} failed")]
    Fetch {
        /// The sync unit.
        sync_unit: String,
        /// The stream.
        stream: String,
        /// The closure's error.
        #[source]
        source: BoxError,
    },
    /// The run cannot be finished yet.
    #[error("run {run} of {sync_unit} is not finished: {reason}")]
    Unfinished {
        /// The sync unit.
        sync_unit: String,
        /// The run.
        run: String,
        /// The stream or batch that is open.
        reason: String,
    },
    /// Too many batches are not acknowledged. Nothing was fetched.
    #[error(
        "{open} batches of {sync_unit} are not acknowledged, the limit is {limit}: acknowledge some first"
    )]
    TooManyOpen {
        /// The sync unit.
        sync_unit: String,
        /// Batches not acknowledged.
        open: u64,
        /// The limit.
        limit: u64,
    },
    /// Too many records would be rejected. Nothing of the page is stored, and it is fetched again.
    #[error(
        "{found} rejected records of {sync_unit} would be waiting to be requested again, over the limit of {limit} ids; the last \
         is {id} of {item_type}: {reason}; mend the extractor or the source, or raise the limit"
    )]
    TooManyRejected {
        /// The sync unit.
        sync_unit: String,
        /// The item type of a record over the limit.
        item_type: String,
        /// Its id.
        id: String,
        /// Why it was rejected.
        reason: String,
        /// The number of rejected records with this page.
        found: u64,
        /// The most allowed: [`REJECTED_IDS_MAX`](crate::limits::REJECTED_IDS_MAX), unless
        /// [`Serve::rejected_max`](crate::airdrop::Serve::rejected_max) sets another limit.
        limit: u64,
    },
    /// A later life of this run has begun. This one must stop.
    #[error(
        "another worker has resumed run {run} of {sync_unit}: this one must stop, and has changed nothing"
    )]
    Fenced {
        /// The sync unit.
        sync_unit: String,
        /// The run.
        run: String,
    },
    /// The event belongs to a run that is over, or a newer event came first. Nothing was sent or changed.
    #[error("the event belongs to run {run} of {sync_unit}, {reason}: nothing was sent")]
    StaleEvent {
        /// The sync unit.
        sync_unit: String,
        /// The run.
        run: String,
        /// Why it is stale.
        reason: String,
    },
    /// An event cannot be read.
    #[error("the event is not usable: {field} {expected}")]
    Event {
        /// The field, by its path.
        field: String,
        /// What was expected there.
        expected: String,
    },
    /// What the platform keeps for a sync unit cannot be read. Nothing was guessed from it, and nothing was changed.
    #[error(
        "{what} cannot be read: {reason}; to start over, let the platform delete the data state of the sync unit \
         (EXTRACTION_DATA_DELETE)"
    )]
    WorkerState {
        /// The worker state, or the key of it.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The worker state could not be fetched from the platform. Nothing was sent or changed: serve the same event
    /// again.
    #[error("the worker state of {sync_unit} could not be fetched: {reason}")]
    NotFetched {
        /// The sync unit.
        sync_unit: String,
        /// The platform's answer.
        reason: String,
    },
    /// The platform did not accept a checkpoint. Nothing was sent that depends on it: serve the same event again to
    /// resume.
    #[error("the checkpoint of {sync_unit} was not saved: {reason}")]
    NotSaved {
        /// The sync unit.
        sync_unit: String,
        /// The platform's answer.
        reason: String,
    },
    /// The invocation was asked to stop before it could answer. Nothing was sent: serve the same event again to resume.
    #[error("asked to stop before {event_type} was answered: nothing was sent; serve the same event again")]
    Stopped {
        /// The event type of the event.
        event_type: String,
    },
    /// The platform did not accept a message. It stays sealed, so serve the same event again. If it was refused for
    /// good, its artifacts go into the next message.
    #[error("the message {message} was not accepted: {reason}")]
    NotDelivered {
        /// The event type of the message.
        message: String,
        /// The platform's answer.
        reason: String,
    },
}

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Try again later; nothing was lost.
    Retry,
    /// Stop: another worker has the unit, or may have it, or the event belongs to the past.
    Fenced,
    /// Another process has the store open: wait until it ends.
    InUse,
    /// Correct the call, the event or the extractor.
    Invalid,
    /// The store file or the worker state is damaged, or of a version that cannot be read: look at a file with
    /// `highwater-dump check`.
    Corrupt,
    /// Look at the disk: full, missing, no permission.
    Io,
    /// The extractor's own error, which is the source.
    Fetch,
}

impl Error {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InUse { .. } => ErrorKind::InUse,
            Error::NotAStore { .. }
            | Error::NewerFormat { .. }
            | Error::Corrupt { .. }
            | Error::WorkerState { .. } => ErrorKind::Corrupt,
            Error::Io { .. } => ErrorKind::Io,
            Error::TooLarge { .. }
            | Error::NoRoom { .. }
            | Error::Invalid { .. }
            | Error::Cursor { .. }
            | Error::Value { .. }
            | Error::Record { .. }
            | Error::Unfinished { .. }
            | Error::TooManyOpen { .. }
            | Error::TooManyRejected { .. }
            | Error::Event { .. } => ErrorKind::Invalid,
            Error::Fetch { .. } => ErrorKind::Fetch,
            Error::Fenced { .. } | Error::StaleEvent { .. } | Error::Replaced { .. } => ErrorKind::Fenced,
            Error::NotDelivered { .. }
            | Error::NotFetched { .. }
            | Error::NotSaved { .. }
            | Error::Stopped { .. } => ErrorKind::Retry,
        }
    }

    pub(crate) fn io(action: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Error::Io { action: action.into(), source: source.into() }
    }
}

/// An error and its causes on one line, for a log or a message to the platform.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "panicked with a value that is not text".to_owned()
    }
}
