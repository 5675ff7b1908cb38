//! Airdrop: its events and messages, and the loop that answers events with the help of an extractor.

mod access_token;
mod answer;
#[cfg(feature = "async")]
mod async_extractor;
mod attachments;
mod attempt;
mod body;
#[cfg(feature = "async")]
mod bridge;
mod check;
#[cfg(feature = "http")]
mod client;
mod context;
mod deadlines;
mod delivery;
mod document;
mod event;
mod event_type;
mod extractor;
mod http_status;
mod in_flight;
mod invocation;
mod json_cursors;
mod keeper;
mod lanes;
mod listing;
mod message;
mod pages;
mod phases;
mod platform;
mod rejected;
mod retry;
mod saved;
mod scheduler;
mod sdk;
mod serve;
mod settings;
mod source_client;
mod source_error;
mod time_cursor;
mod window;

pub use crate::model::Step;
pub use access_token::AccessToken;
pub use answer::Outcome;
#[cfg(feature = "async")]
pub use async_extractor::{AsyncAttachmentBody, AsyncExtractor};
#[cfg(all(feature = "async", feature = "testing"))]
pub(crate) use bridge::drive;
pub use check::CheckPolicy;
#[cfg(feature = "http")]
pub use client::Client;
pub use context::Context;
pub use deadlines::StopToken;
#[cfg(feature = "testing")]
pub(crate) use document::posted_bytes;
pub use event::{Event, Mode, Secret};
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use event::{TimeSetting, WindowEnd};
pub use event_type::{EventType, OutcomeKind, Spelling};
pub use extractor::{AttachmentBody, ExternalSyncUnit, Extractor};
pub use http_status::Call;
#[cfg(feature = "testing")]
pub(crate) use keeper::checkpoint_in;
pub use listing::Listing;
pub use message::ErrorCode;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use message::{
    ARTIFACTS_FIELD_BYTES, Answer, AnswerKind, ArtifactEntry, Composed, ERROR_MESSAGE_BYTES_MAX,
    WorkerMetadata, compose,
};
pub use platform::{Body, Fate, Platform, PlatformError, SealedMessage, Upload, WorkerState};
pub use saved::SavedState;
pub use serve::serve;
pub use settings::Serve;
pub use source_client::{QueryValue, SourceAnswer, SourceClient, SourceRequest};
pub use source_error::{AttachmentError, SourceError};
pub use time_cursor::TimeCursor;
pub use window::Window;
