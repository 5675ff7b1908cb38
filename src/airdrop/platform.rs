//! The platform as an extractor uses it: it receives uploads, confirms them and accepts messages.
//!
//! A method makes **one** attempt and reports what is known about its outcome. `serve` waits, retries and gives up,
//! so that the explorer tests that too.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use serde_json::Value;

use crate::model::ArtifactId;

/// A platform that takes uploads and messages: over HTTP, over a directory, or simulated.
///
/// # Errors
/// An error says what is known about the outcome of the attempt. The guarantees depend on that:
///
/// - [`PlatformError::Refused`]: a definite refusal. The attempt had no effect, and would be refused again. Only after
///   this error is an artifact id given up, or a message unsealed.
/// - [`PlatformError::StorageRefused`], from [`Platform::upload`] only: the attempt had no effect. The bytes are
///   uploaded again under another id, up to three times.
/// - [`PlatformError::Retry`]: the same bytes are sent again, up to five times in an invocation. Its fate is
///   [`Fate::Unknown`] unless nothing can have reached the platform. If in doubt, return this error.
///
/// Over HTTP, [`PlatformError::from_status`] decides by this table. "Other 4xx" excludes 408, 425, 429 and the
/// statuses named in the row.
///
/// | method | `Ok` | `Refused` | `StorageRefused` | `Retry`, `NotApplied` | `Retry`, `Unknown` |
/// | --- | --- | --- | --- | --- | --- |
/// | `upload`: prepare | 2xx | other 4xx | | everything else | |
/// | `upload`: the bytes of a batch | 2xx | other 4xx | 400 `RequestTimeout`, 403, 503, 5xx `SlowDown` | 425, 429 | 408, 3xx, other 5xx |
/// | `upload`: the bytes of an attachment | 2xx, 3xx | other 4xx | as above | 425, 429 | 408, other 5xx |
/// | `confirm`, `send`, `save_worker_state`, `create_blueprint`, `install_mapping` | 2xx | other 4xx | | 425, 429 | 408, 3xx, 5xx |
/// | `worker_state` | 2xx, and 404: `None` | other 4xx | | everything else | |
/// | `download` | 2xx | other 4xx | | 400 `RequestTimeout`, 403, everything else | |
///
/// Without a status: if no connection was made, the fate is `NotApplied`. A connection that was lost or timed out
/// later, and a 2xx with an unexpected body, are `Unknown` if the call changes something.
pub trait Platform: Sync {
    /// Makes an unconfirmed artifact of `upload`: prepares it and uploads its bytes. Each call makes a new artifact.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError>;

    /// Links the artifact to this run, so that a message can announce it. Confirming twice is the same as once.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError>;

    /// Sends the message that answers an event. The same key means the same message, sent again.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError>;

    /// Fetches an artifact of ours, whole, as it was uploaded. Needed only by a worker without a disk, to rebuild its
    /// queue of attachments.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        let reason = format!("this platform cannot return artifacts such as {artifact}");
        Err(PlatformError::Refused { status: 501, reason })
    }

    /// Fetches what the platform keeps for the event's sync unit; `None` if it keeps nothing yet. Only
    /// [`Serve::checkpoints`](super::Serve::checkpoints) and
    /// [`Serve::extraction_scope`](super::Serve::extraction_scope) need it.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        Ok(None)
    }

    /// Saves `state`, JSON text, for the event's sync unit, in place of what was there.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        let reason = format!("this platform cannot keep a worker state of {} bytes", state.len());
        Err(PlatformError::Refused { status: 501, reason })
    }

    /// Validates an initial domain mapping, and fetches what its install needs. Called before its blueprint is
    /// created: a blueprint whose install cannot even be tried would be left behind.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn check_mapping(&self, mapping: &Value) -> Result<(), PlatformError> {
        let _ = mapping;
        Ok(())
    }

    /// Creates the starting recipe blueprint that an initial domain mapping holds, and returns its id; `None` if it
    /// holds no blueprint. A mapping can be installed without one, so a failure is only a warning.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn create_blueprint(&self, mapping: &Value) -> Result<Option<String>, PlatformError> {
        let _ = mapping;
        Ok(None)
    }

    /// Installs an initial domain mapping, with the blueprint of this id if there is one. Installing it twice is the
    /// same as once. Only an extractor that has an [`initial_domain_mapping`](super::Extractor::initial_domain_mapping)
    /// needs it.
    ///
    /// # Errors
    /// What is known about the attempt's outcome.
    fn install_mapping(&self, mapping: &Value, blueprint: Option<&str>) -> Result<(), PlatformError> {
        let _ = (mapping, blueprint);
        Err(PlatformError::Refused { status: 501, reason: "this platform takes no mappings".to_owned() })
    }
}

/// The platform's data about a sync unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerState {
    /// JSON text, as last saved.
    pub state: Option<String>,
    /// JSON text: the extraction scope, by item type.
    pub objects: Option<String>,
}

impl WorkerState {
    /// The state that was saved last, and the extraction scope, each if there is one.
    pub fn new(state: Option<String>, objects: Option<String>) -> Self {
        Self { state, objects }
    }
}

/// One file on its way to the platform.
#[derive(Debug)]
pub struct Upload<'a> {
    /// The file name for the platform.
    pub file_name: &'a str,
    /// Its media type.
    pub content_type: &'a str,
    /// Its bytes.
    pub body: Body<'a>,
}

/// The bytes of an upload.
pub enum Body<'a> {
    /// A batch: all of it in memory, gzipped.
    Batch(&'a [u8]),
    /// An attachment: streamed, with its length in bytes if the source knows it.
    Stream {
        /// The bytes.
        reader: &'a mut dyn Read,
        /// The length that the source declared.
        length_bytes: Option<u64>,
    },
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Batch(bytes) => write!(f, "Batch({} bytes)", bytes.len()),
            Body::Stream { length_bytes, .. } => write!(f, "Stream({length_bytes:?} bytes)"),
        }
    }
}

/// A message as it was sealed: the same bytes under the same key, however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedMessage {
    /// The `Idempotency-Key`: unit, run and number of the message.
    pub key: String,
    /// Its event type, as spelled on the wire.
    pub event_type: String,
    /// The JSON text.
    pub body: String,
}

/// The longest wait, whatever a source or a platform asks for: a DELAY of years is a mistake, and a platform may
/// refuse a number that does not fit its integers.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The result of an attempt that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlatformError {
    /// It may succeed later.
    Retry {
        /// Whether it may have taken effect.
        fate: Fate,
        /// How long the platform asked to wait; more than 24 hours counts as 24 hours.
        after: Option<Duration>,
        /// What went wrong, for people. Contains no secret.
        reason: String,
    },
    /// The storage behind an upload's URL refused the bytes for a temporary reason: the URL had expired, the bytes came
    /// too slowly, or too many came at once. The attempt had no effect, and the same bytes may be accepted under
    /// another URL. Only [`Platform::upload`] returns this.
    StorageRefused {
        /// The HTTP status, or a similar number.
        status: u16,
        /// How long the storage asked to wait.
        after: Option<Duration>,
        /// The storage's answer, for people. Contains no secret.
        reason: String,
    },
    /// A definite refusal: it had no effect, and the same attempt would be refused again.
    Refused {
        /// The HTTP status, or a similar number.
        status: u16,
        /// The platform's answer, for people. Contains no secret.
        reason: String,
    },
}

/// Whether a failed attempt may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It did not: nothing reached the platform, or the platform said so.
    NotApplied,
    /// Unknown: the answer was lost, or was a 5xx.
    Unknown,
}

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlatformError::Retry { fate, reason, .. } => match fate {
                Fate::NotApplied => write!(f, "{reason}"),
                Fate::Unknown => write!(f, "{reason} (it may have taken effect)"),
            },
            PlatformError::StorageRefused { status, reason, .. } => {
                write!(f, "the storage refused it with {status}: {reason}")
            }
            PlatformError::Refused { status, reason } => write!(f, "refused with {status}: {reason}"),
        }
    }
}

impl std::error::Error for PlatformError {}
