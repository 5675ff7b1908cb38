//! The programs: the dump, and the examples.

mod dump;
mod examples;
#[allow(dead_code, reason = "the example uses the rest")]
#[path = "../../examples/git/extractor.rs"]
mod extractor;
mod git_example;
mod git_explore;
mod http_faults;
mod http_strict;
mod http_sync;
#[allow(dead_code, reason = "the example uses the rest")]
#[path = "../../examples/git/repository.rs"]
mod repository;
#[path = "../support/served.rs"]
mod served;
#[path = "../support/mod.rs"]
mod support;
