//! A local Airdrop: plays the platform's part for a connector, over a directory.
//!
//! [`Local`] is the platform itself, as files: it takes uploads, messages and worker state, refuses what the platform
//! would refuse, and, driven by [`Local::sync`], sends the events of a whole sync. The binary `highwater-airdrop`
//! serves the same over HTTP, for connectors in any language.

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

mod error;
mod local;

pub use error::{Error, Result};
pub use local::{
    ItemTotals, Local, LocalEvent, Messages, SyncReport, SyncSettings, SyncStep, UPLOAD_BYTES_MAX,
    WORKER_STATE_BYTES_MAX,
};
