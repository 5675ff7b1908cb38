//! The programs: the dump, and the examples.

mod dump;
mod examples;
mod git_example;
mod http_faults;
mod http_strict;
mod http_sync;
#[path = "../support/served.rs"]
mod served;
#[path = "../support/mod.rs"]
mod support;
