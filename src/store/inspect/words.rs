//! The words of reports, and the forms of times and JSON text in them.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::store::rows;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$word_doc])* $word,)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$word => $text,)*
                })
            }
        }
    )*};
}

words! {
    /// The status of a run.
    RunStatus {
        /// It was begun and is not over.
        Open = "open",
        /// Everything that it read is announced, and the watermark has moved.
        Finished = "finished",
        /// Another run replaced it; the watermark did not move.
        Abandoned = "abandoned",
    }
    /// The state of a rejected record.
    RejectedStage {
        /// A finished run rejected it, and the open run, or the next one, will request it.
        ToBeAsked = "rejected, to be asked for again",
        /// The open run rejected it, or requested it and rejected it again: the next run will request it.
        Rejected = "rejected in this run",
        /// The open run requested it, and it passed. If the run is abandoned, the next one requests it again.
        Passed = "rejected before, passed in this run",
        /// The open run requested it, and the source does not have it any more.
        Gone = "rejected before, gone in this run",
    }
    /// The kinds of alerts.
    AlertKind {
        /// The newest answer is ERROR.
        Error = "ERROR",
        /// A message is sealed and not known to be delivered.
        Undelivered = "not delivered",
        /// The run cannot go on.
        Lost = "lost",
        /// An event has no answer, and nobody works on it.
        Unanswered = "not answered",
        /// Nothing was stored for a while, although the store is open elsewhere.
        Idle = "idle",
        /// The source asked for no requests for a while.
        Delay = "delay",
        /// A listing reads far more than in any run before.
        FarMore = "far more",
        /// Attachments were given up.
        FailedAttachments = "failed attachments",
        /// Records were rejected.
        Rejected = "rejected records",
        /// Records that were announced are too many to be remembered.
        Forgotten = "not remembered",
        /// Records, or the metadata, are not what they should be.
        Findings = "findings",
        /// An operator has set where the next run begins a listing.
        SetCursor = "set cursor",
        /// A watermark in the future was not used.
        IgnoredWatermark = "ignored watermark",
    }
    /// The kind of a message.
    MessageKind {
        /// The phase is over.
        Done = "DONE",
        /// There is more; continue at once.
        Progress = "PROGRESS",
        /// There is more; continue after a while.
        Delay = "DELAY",
        /// It failed.
        Error = "ERROR",
    }
    /// Whether a sealed message was accepted.
    MessageFate {
        /// It is not known to have been accepted: it will be sent again, byte for byte, until it is.
        Sealed = "not delivered",
        /// Its acceptance was recorded.
        Delivered = "delivered",
        /// A later event proved that it had been accepted.
        Proven = "proven",
    }
    /// The state of an attachment.
    AttachmentState {
        /// It is in the queue.
        Waiting = "waiting",
        /// The platform has its bytes; it is not confirmed yet.
        Uploaded = "uploaded",
        /// It was given up.
        Failed = "failed",
        /// It was given up, and will be tried again.
        Requeued = "queued again",
        /// The platform has it.
        Settled = "settled",
        /// The run that queued it was abandoned, and no later run has named it.
        Dropped = "dropped",
    }
    /// The state of a batch. A batch that was acknowledged, or whose message was accepted, is not stored any more.
    BatchStage {
        /// Its bytes are in the store only.
        Staged = "staged",
        /// The platform has its bytes; whether it has linked them to the run is unknown.
        Uploaded = "uploaded",
        /// The platform has linked it to the run; no message names it yet.
        Confirmed = "confirmed",
        /// A sealed message names it.
        Announced = "announced",
    }
}

impl From<rows::RunStatus> for RunStatus {
    fn from(status: rows::RunStatus) -> Self {
        match status {
            rows::RunStatus::Open => Self::Open,
            rows::RunStatus::Finished => Self::Finished,
            rows::RunStatus::Abandoned => Self::Abandoned,
        }
    }
}

impl From<rows::RejectedFate> for RejectedStage {
    fn from(fate: rows::RejectedFate) -> Self {
        match fate {
            rows::RejectedFate::Rejected => Self::Rejected,
            rows::RejectedFate::Passed => Self::Passed,
            rows::RejectedFate::Gone => Self::Gone,
        }
    }
}

impl From<rows::MessageKind> for MessageKind {
    fn from(kind: rows::MessageKind) -> Self {
        match kind {
            rows::MessageKind::Done => Self::Done,
            rows::MessageKind::Progress => Self::Progress,
            rows::MessageKind::Delay => Self::Delay,
            rows::MessageKind::Error => Self::Error,
        }
    }
}

impl From<rows::BatchState> for BatchStage {
    fn from(state: rows::BatchState) -> Self {
        match state {
            rows::BatchState::Staged => Self::Staged,
            rows::BatchState::Uploaded => Self::Uploaded,
            rows::BatchState::Confirmed => Self::Confirmed,
            rows::BatchState::Announced(_) => Self::Announced,
        }
    }
}

/// One thing, or several.
pub(in crate::store) fn count(number: u64, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

// serde passes a reference to the field.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn is_zero(count: &u64) -> bool {
    *count == 0
}

pub(in crate::store) fn time<S: Serializer>(
    moment: &DateTime<Utc>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&moment.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

// serde passes a reference to the field.
#[allow(clippy::ref_option)]
pub(in crate::store) fn optional_time<S: Serializer>(
    moment: &Option<DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => time(moment, serializer),
        None => serializer.serialize_none(),
    }
}

pub(super) fn raw<S: Serializer>(json: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match RawValue::from_string(on_one_line(json).into_owned()) {
        Ok(json) => json.serialize(serializer),
        // What is not JSON is shown as the text that it is; a check reports it.
        Err(_) => serializer.serialize_str(json),
    }
}

#[allow(clippy::ref_option)]
pub(super) fn optional_raw<S: Serializer>(json: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match json {
        Some(json) => raw(json, serializer),
        None => serializer.serialize_none(),
    }
}

/// JSON text without the line breaks that may stand between its parts: those within its strings are escaped.
fn on_one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) { Cow::Owned(json.replace(['\n', '\r'], " ")) } else { json.into() }
}
