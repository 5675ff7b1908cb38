//! The crash explorer on a simulated source: with a disk that survives the worker, without one, and with rules
//! removed.
//!
//! It is one program, so that the next exploration runs while the last one finishes.

mod controls;
mod no_disk;
mod with_disk;
