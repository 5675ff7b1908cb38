//! The crash explorer on a simulated source: with a disk that survives the worker, without one, and with rules taken away.
//!
//! One program: while one exploration comes to its end, the next one runs.

mod controls;
mod no_disk;
mod with_disk;
