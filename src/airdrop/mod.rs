//! Airdrop: its events and messages, and the loop that answers events with the help of an extractor.

mod answer;
mod attachments;
mod attempt;
mod body;
mod check;
#[cfg(feature = "http")]
mod client;
mod context;
mod deadlines;
mod delivery;
mod document;
mod event;
mod extractor;
mod in_flight;
mod invocation;
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
mod status;
mod window;

pub use crate::model::Step;
pub use answer::Outcome;
pub use check::CheckPolicy;
#[cfg(feature = "http")]
pub use client::Client;
pub use context::Context;
pub use deadlines::StopToken;
#[cfg(feature = "testing")]
pub(crate) use document::posted_bytes;
pub use event::{Event, EventType, Mode, Secret, Spelling};
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use event::{TimeSetting, WindowEnd};
pub use extractor::{AttachmentBody, AttachmentError, ExternalSyncUnit, Extractor, SourceError};
#[cfg(feature = "testing")]
pub(crate) use keeper::checkpoint_in;
pub use listing::Listing;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use message::{
    ARTIFACTS_FIELD_BYTES, Answer, AnswerKind, ArtifactEntry, Composed, ERROR_MESSAGE_BYTES_MAX,
    WorkerMetadata, compose,
};
pub use message::{ErrorCode, OutcomeKind};
pub use platform::{Body, Fate, Platform, PlatformError, SealedMessage, Upload, WorkerState};
pub use saved::SavedState;
pub use serve::serve;
pub use settings::Serve;
pub use status::Call;
pub use window::Window;
