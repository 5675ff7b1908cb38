//! The promise with real processes, killed with SIGKILL over and over: on a platform that is a directory, and over HTTP.
//!
//! One program: while the first waits for the moment of a kill, the second computes.
#![cfg(unix)]

mod disk;
mod http;
#[path = "../support/served.rs"]
mod served;
#[path = "../support/mod.rs"]
mod support;
