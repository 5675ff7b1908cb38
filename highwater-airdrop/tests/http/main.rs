//! The program over HTTP, with the synthetic worker and with workers written for the tests.

mod audit;
mod bad;
mod faults;
mod naive;
#[path = "../../../tests/support/served.rs"]
mod served;
mod source;
mod strict;
#[path = "../../../tests/support/mod.rs"]
mod support;
mod sync;
mod verify;

/// The program under test.
const AIRDROP: &str = env!("CARGO_BIN_EXE_highwater-airdrop");
