//! Airdrop: its events and messages, and the loop that drives an extractor through them.

mod local;
mod platform;

pub use local::{
    ItemTotals, Local, LocalEvent, Messages, SyncReport, SyncSettings, SyncStep, UPLOAD_BYTES_MAX,
    WORKER_STATE_BYTES_MAX,
};
pub use platform::{Body, Fate, Platform, PlatformError, SealedMessage, Upload};
