//! The promise with real processes, killed with SIGKILL over and over: with a directory as the platform, and over
//! HTTP.
//!
//! It is one program: while the first test waits for the moment of a kill, the second one computes.
#![cfg(unix)]

mod disk;
mod http;
#[path = "../support/served.rs"]
mod served;
#[path = "../support/mod.rs"]
mod support;
