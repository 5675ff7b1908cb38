//! The programs of the library: the dump, which shows and mends a store.

mod dump;
mod mend;
mod operators;
mod place;
mod report;
mod rewind;
mod schema;
mod screens;
#[path = "../support/mod.rs"]
mod support;
