//! The store alone: what is durable, and what is read back.

mod attachment_loop;
mod backends;
mod exactly_once;
#[path = "../support/fixtures.rs"]
mod fixtures;
mod format;
mod ids;
mod mend;
mod opening;
mod outbox;
mod rejected;
mod simulated_disk;
#[path = "../support/mod.rs"]
mod support;
