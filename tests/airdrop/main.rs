//! The conversation with the platform.

mod async_serve;
mod attachments;
mod bad_input;
mod check_policy;
mod checkpoint;
mod client;
mod conversation;
mod delivery;
mod domain_mapping;
#[path = "../support/fixtures.rs"]
mod fixtures;
mod formats;
mod left_out;
mod listings;
mod mended;
mod past;
mod rejected;
mod repeated_ids;
mod saves;
mod scope;
mod sdk_state;
mod source_client;
mod state_full;
mod stopping;
#[path = "../support/mod.rs"]
mod support;
mod units_unconfirmed;
mod watermark;
mod wire;
mod worker_state;
#[path = "../support/airdrop.rs"]
mod world;
