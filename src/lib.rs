//! Durable, resumable state for data extractors.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]

// Layer 0: ids, limits and pure transitions; time; the one error type.
mod clock;
mod error;
mod model;

// Layer 1: what an artifact is; what a record is.
mod artifact;
pub mod record;

// Layers 2 and 3: what is remembered.
mod store;

// Layers 1 and 4: Airdrop.
pub mod airdrop;

pub use clock::{Clock, SystemClock, VirtualClock};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use model::{ArtifactId, ItemType, Phase, RunId, StreamName, SyncUnitId, ValueKey};
pub use record::Record;
#[doc(hidden)]
pub use store::Disk;

/// The limits of everything that is stored or sent.
pub mod limits {
    pub use crate::model::{
        BATCH_BYTES_MAX, BATCH_ITEMS, CLOCK_AHEAD_MAX, CURSOR_BYTES_MAX, EXTERNAL_SYNC_UNIT_BATCH_ITEMS,
        ID_BYTES_MAX, LEDGER_RUNS_MAX, MESSAGE_BYTES_MAX, MESSAGE_BYTES_SOFT, OPEN_BATCHES_MAX,
        VALUE_BYTES_MAX,
    };
}
