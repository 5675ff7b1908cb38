//! The calls that a connector can make, and what is stored about each: one line of `calls.jsonl`.
//!
//! The list is for people, tests and the [audit](crate::audit); the platform's answers do not depend on it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An address that can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Call {
    /// Prepare an upload.
    Prepare,
    /// Upload an artifact.
    Upload,
    /// Confirm an upload.
    Confirm,
    /// Prepare a download.
    DownloadUrl,
    /// Download an artifact.
    Download,
    /// Fetch the worker state.
    StateGet,
    /// Save the worker state.
    State,
    /// Answer an event.
    Message,
    /// Fetch the snap-in.
    SnapIn,
    /// Create a recipe blueprint.
    Blueprint,
    /// Install an initial domain mapping.
    Mapping,
    /// Fetch a file of the stand-in for the external system. This address is not the platform's.
    Attachment,
    /// An unknown address.
    Unknown,
}

impl Call {
    /// The calls to which a fault can be applied.
    pub(crate) const ALL: [Call; 12] = [
        Call::Prepare,
        Call::Upload,
        Call::Confirm,
        Call::DownloadUrl,
        Call::Download,
        Call::StateGet,
        Call::State,
        Call::Message,
        Call::SnapIn,
        Call::Blueprint,
        Call::Mapping,
        Call::Attachment,
    ];

    /// The name in faults and in `calls.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Call::Prepare => "prepare",
            Call::Upload => "upload",
            Call::Confirm => "confirm",
            Call::DownloadUrl => "download-url",
            Call::Download => "download",
            Call::StateGet => "state-get",
            Call::State => "state",
            Call::Message => "message",
            Call::SnapIn => "snap-in",
            Call::Blueprint => "blueprint",
            Call::Mapping => "mapping",
            Call::Attachment => "attachment",
            Call::Unknown => "unknown",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.name() == name)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something in a request that looks wrong. The request is accepted, because the platform is not known to refuse it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lint {
    /// The rule that is broken: a few words with hyphens, always the same.
    pub rule: String,
    /// What was found, and what was expected.
    pub text: String,
}

/// The bytes of an upload, whether they were kept or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The number of bytes.
    pub bytes: u64,
    /// Their XXH3 hash, as 16 hexadecimal digits.
    pub hash: String,
    /// The number of lines, if the bytes are gzip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
}

/// A call, and how it was answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CallRecord {
    /// Its number among all calls of the server, from 1. Calls for files of the external system have no number of
    /// their own.
    #[serde(default)]
    pub number: u64,
    /// What was called.
    pub call: Call,
    /// The number of bytes read of its body.
    pub bytes: u64,
    /// XXH3 hash of those bytes, as 16 hexadecimal digits.
    pub hash: String,
    /// The status of the answer; `None` if there was no answer.
    pub status: Option<u16>,
    /// Whether it took effect.
    #[serde(default)]
    pub applied: bool,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the answer allows a retry: a 5xx, a 408, a 425, a 429 with `Retry-After`, no answer.
    #[serde(default)]
    pub passing: bool,
    /// The fault that was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The run during which it came, if this program gave the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The invocation during which it came; counted from 1 in each run.
    #[serde(default)]
    pub invocation: u64,
    /// The request id in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The file name for which an upload was prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
    /// The artifact that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// The artifacts that a message names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// The number of records in these artifacts, as the message says.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub records: u64,
    /// The event type of a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// The content of an upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// What looks wrong in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lints: Vec<Lint>,
    /// When it came, in milliseconds since the server was started.
    #[serde(default)]
    pub at_ms: u64,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl CallRecord {
    /// Whether the connector got a successful answer.
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| (200..400).contains(&status))
    }
}
