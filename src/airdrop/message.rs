//! The message that answers an event: its name, its body, and its size.
//!
//! Pure: nothing is sealed or sent here. The caller chooses the artifacts of a message, and can compute its size
//! beforehand: the message without artifacts, plus [`ARTIFACTS_FIELD_BYTES`], plus [`ArtifactEntry::bytes`] of each,
//! is never less than the actual size, and exceeds it by at most that constant.

#![cfg_attr(
    not(feature = "testing"),
    allow(unreachable_pub, reason = "`testing` exposes it to the tests of the wire")
)]

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::airdrop::event::Event;
use crate::airdrop::event_type::{EventType, OutcomeKind, Spelling};
use crate::cut;
use crate::error::{Error, Result};
use crate::model::{MESSAGE_BYTES_MAX, Phase};

/// Bytes of an ERROR's text; a longer one is cut and ends in `...`.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 2_000;

/// Bytes that the first artifact adds besides its own entry.
pub const ARTIFACTS_FIELD_BYTES: usize = r#""artifacts":[],"#.len();

/// The version of this library, as sent to the platform.
pub(crate) const LIBRARY_VERSION: &str = env!("CARGO_PKG_VERSION");

/// An error that the platform knows by name and shows in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The project, repository or board is gone.
    ExternalSyncUnitDeleted,
    /// It is archived or otherwise not in use.
    ExternalSyncUnitDeactivated,
    /// The user whose key is used is gone.
    UserDeleted,
    /// The external system denies access.
    ExternalSystemNoAccess,
    /// It allows access, but not to what was requested.
    ExternalSystemNoPermission,
    /// All of the requested past has been extracted.
    HistoricalDataExtractionDone,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [ErrorCode; 6] = [
        ErrorCode::ExternalSyncUnitDeleted,
        ErrorCode::ExternalSyncUnitDeactivated,
        ErrorCode::UserDeleted,
        ErrorCode::ExternalSystemNoAccess,
        ErrorCode::ExternalSystemNoPermission,
        ErrorCode::HistoricalDataExtractionDone,
    ];

    /// Its name on the wire.
    ///
    /// ```
    /// use highwater::airdrop::ErrorCode;
    /// assert_eq!(ErrorCode::UserDeleted.as_str(), "USER_DELETED");
    /// assert_eq!(ErrorCode::UserDeleted.to_string(), "ERROR_CODE=USER_DELETED");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExternalSyncUnitDeleted => "EXTERNAL_SYNC_UNIT_DELETED",
            Self::ExternalSyncUnitDeactivated => "EXTERNAL_SYNC_UNIT_DEACTIVATED",
            Self::UserDeleted => "USER_DELETED",
            Self::ExternalSystemNoAccess => "EXTERNAL_SYSTEM_NO_ACCESS",
            Self::ExternalSystemNoPermission => "EXTERNAL_SYSTEM_NO_PERMISSION",
            Self::HistoricalDataExtractionDone => "HISTORICAL_DATA_EXTRACTION_DONE",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERROR_CODE={}", self.as_str())
    }
}

/// What a message answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerKind {
    /// The phase, or the deletion, is over.
    Done,
    /// There is more; continue at once. Only data and attachments have it.
    Progress {
        /// An estimate of how much is done, 0 to 100; more counts as 100.
        percent: Option<u8>,
    },
    /// There is more; continue after a while. Only data and attachments have it.
    Delay {
        /// How long, in whole seconds.
        seconds: u64,
    },
    /// It cannot be done. The only answer to an event of unknown type.
    Error {
        /// The platform's code for the problem, if it has one.
        code: Option<ErrorCode>,
        /// What is wrong, for people. Cut to [`ERROR_MESSAGE_BYTES_MAX`].
        message: String,
    },
}

impl AnswerKind {
    fn outcome(&self) -> OutcomeKind {
        match self {
            Self::Done => OutcomeKind::Done,
            Self::Progress { .. } => OutcomeKind::Progress,
            Self::Delay { .. } => OutcomeKind::Delay,
            Self::Error { .. } => OutcomeKind::Error,
        }
    }
}

/// An artifact, as a message names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArtifactEntry {
    /// The platform's id for it.
    pub id: String,
    /// The item type of its records.
    pub item_type: String,
    /// The number of its records.
    pub item_count: u64,
    /// The earliest moment at which one of them was created.
    #[serde(
        rename = "oldest_created_date",
        serialize_with = "date",
        skip_serializing_if = "Option::is_none"
    )]
    pub oldest_created: Option<DateTime<Utc>>,
    /// The latest.
    #[serde(
        rename = "newest_created_date",
        serialize_with = "date",
        skip_serializing_if = "Option::is_none"
    )]
    pub newest_created: Option<DateTime<Utc>>,
    /// The earliest moment at which one of them was last modified.
    #[serde(
        rename = "oldest_modified_date",
        serialize_with = "date",
        skip_serializing_if = "Option::is_none"
    )]
    pub oldest_modified: Option<DateTime<Utc>>,
    /// The latest.
    #[serde(
        rename = "newest_modified_date",
        serialize_with = "date",
        skip_serializing_if = "Option::is_none"
    )]
    pub newest_modified: Option<DateTime<Utc>>,
}

impl ArtifactEntry {
    /// The bytes that it adds to a message, including the comma after it.
    ///
    /// # Errors
    /// `Invalid` if it cannot be written as JSON.
    pub fn bytes(&self) -> Result<usize> {
        Ok(to_json("the artifact entry", self)?.len() + 1)
    }
}

/// Further data in a message, where it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WorkerMetadata {
    /// The item type extracted last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_type: Option<String>,
    /// The start of the run's window.
    #[serde(rename = "oldest_state_date", serialize_with = "date", skip_serializing_if = "Option::is_none")]
    pub oldest_state: Option<DateTime<Utc>>,
    /// The end of the run's window.
    #[serde(rename = "newest_state_date", serialize_with = "date", skip_serializing_if = "Option::is_none")]
    pub newest_state: Option<DateTime<Utc>>,
}

/// Everything that goes into a message.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The answer.
    pub kind: AnswerKind,
    /// The artifacts that it announces.
    pub artifacts: Vec<ArtifactEntry>,
    /// The external sync units themselves, for a platform that wants them in the message and not as an artifact.
    /// Each is one line of JSON.
    pub external_sync_units: Option<Vec<Box<RawValue>>>,
    /// Further data.
    pub worker: WorkerMetadata,
}

impl Answer {
    /// An answer without anything else.
    pub fn new(kind: AnswerKind) -> Self {
        Self { kind, artifacts: Vec::new(), external_sync_units: None, worker: WorkerMetadata::default() }
    }
}

/// A message, ready to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed {
    /// Its event type, as it is spelled in the body.
    pub event_type: &'static str,
    /// The JSON text, on one line.
    pub body: String,
}

/// A message in its form on the wire.
#[derive(Serialize)]
struct Body<'a> {
    event_type: &'a str,
    event_context: &'a RawValue,
    event_data: EventData<'a>,
    worker_metadata: Worker<'a>,
}

#[derive(Serialize)]
struct EventData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    artifacts: Option<&'a [ArtifactEntry]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_sync_units: Option<&'a [Box<RawValue>]>,
}

#[derive(Serialize)]
struct ErrorData {
    message: String,
}

#[derive(Serialize)]
struct Worker<'a> {
    adaas_library_version: &'a str,
    #[serde(flatten)]
    known: &'a WorkerMetadata,
}

/// Composes the message that answers `event`, in the given spelling, or else in that of the event.
///
/// # Errors
/// `Invalid` if the event has no such answer (only data and attachments can continue; an unknown event can only be
/// answered ERROR), or if there are artifacts that the message cannot announce; `TooLarge` if the message is over
/// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX).
pub fn compose(event: &Event, spelling: Option<Spelling>, answer: &Answer) -> Result<Composed> {
    let event_type = answer_name(event, &answer.kind, spelling.unwrap_or(event.spelling()))?;
    let phase = event.event_type().phase();
    let misplaced = |what: &str| Error::Invalid {
        what: format!("{what} in {event_type}"),
        reason: "this message cannot carry any".to_owned(),
    };
    if phase.is_none() && !answer.artifacts.is_empty() {
        return Err(misplaced("an artifact"));
    }
    if phase != Some(Phase::ExternalSyncUnits) && answer.external_sync_units.is_some() {
        return Err(misplaced("a list of external sync units"));
    }
    // Where a message may have artifacts, it has an empty list if there are none.
    let expected = phase.is_some_and(Phase::continues) && !matches!(answer.kind, AnswerKind::Error { .. });
    let mut event_data = EventData {
        artifacts: (expected || !answer.artifacts.is_empty()).then_some(&answer.artifacts),
        progress: None,
        delay: None,
        error: None,
        external_sync_units: answer.external_sync_units.as_deref(),
    };
    match &answer.kind {
        AnswerKind::Done => {}
        AnswerKind::Progress { percent } => event_data.progress = percent.map(|percent| percent.min(100)),
        AnswerKind::Delay { seconds } => event_data.delay = Some(*seconds),
        AnswerKind::Error { code, message } => {
            event_data.error = Some(ErrorData { message: error_text(*code, message) });
        }
    }
    let context = RawValue::from_string(event.context_json().to_owned()).map_err(|error| Error::Invalid {
        what: "the event context".to_owned(),
        reason: error.to_string(),
    })?;
    let body = Body {
        event_type,
        event_context: &context,
        event_data,
        worker_metadata: Worker { adaas_library_version: LIBRARY_VERSION, known: &answer.worker },
    };
    let body = to_json(event_type, &body)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Error::TooLarge {
            what: format!("the message {event_type}"),
            found: body.len() as u64,
            limit: MESSAGE_BYTES_MAX as u64,
            unit: "bytes",
        });
    }
    Ok(Composed { event_type, body })
}

/// The name of the message that gives an event this answer.
fn answer_name(event: &Event, kind: &AnswerKind, spelling: Spelling) -> Result<&'static str> {
    let event_type = event.event_type();
    event_type.answer(kind.outcome(), spelling).ok_or_else(|| {
        let reason = match event_type {
            EventType::Unknown(_) => "an unknown event type can only be answered ERROR",
            _ => "it cannot be continued: answer DONE or ERROR",
        };
        let what = format!("{:?} as the answer to {}", kind.outcome(), event_type.name(spelling));
        Error::Invalid { what, reason: reason.to_owned() }
    })
}

/// The text of an ERROR. The code comes first, so that the cut never removes it.
pub(super) fn error_text(code: Option<ErrorCode>, message: &str) -> String {
    let text = match code {
        None => message.to_owned(),
        Some(code) if message.is_empty() => code.to_string(),
        Some(code) => format!("{code} {message}"),
    };
    cut::to_bytes(&text, ERROR_MESSAGE_BYTES_MAX)
}

fn to_json(what: &str, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::Invalid { what: what.to_owned(), reason: error.to_string() })
}

// serde passes the field as it is in the struct.
#[allow(clippy::ref_option)]
fn date<S: Serializer>(moment: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serializer.serialize_str(&moment.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_code_comes_first_and_survives_the_cut() {
        let text = error_text(Some(ErrorCode::UserDeleted), &"x".repeat(5_000));
        assert!(text.starts_with("ERROR_CODE=USER_DELETED x") && text.len() == ERROR_MESSAGE_BYTES_MAX);
        assert_eq!(error_text(Some(ErrorCode::UserDeleted), ""), "ERROR_CODE=USER_DELETED");
        assert_eq!(error_text(None, "gone"), "gone");
    }
}
