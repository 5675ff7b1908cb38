//! Tests that crash: the explorer, for extractors, and the simulated disk that it is built on.
//!
//! [`Explore`] kills an extractor at every step and checks that each record is announced exactly once. [`conformance`]
//! checks that a backend of the store keeps its promises.
//!
//! [`SimDisk`] takes the place of a store's file. It records every write, change of length and sync, and fails on
//! demand ([`Fault`]). A [`Recording`] yields the images that a crash at any moment may leave
//! ([`Recording::images_at`]). Each image is a disk again ([`Image::disk`]), on which the next life runs, and may
//! crash again. All randomness comes from a seed that the caller gives.

mod catalogue;
mod client;
pub mod conformance;
mod controls;
mod conversation;
mod crash;
mod disk;
mod explore;
mod image;
mod oracle;
mod platform;
mod play;
mod report;
mod schedule;
mod setup;
mod source;
mod watched;
mod world;

pub use crate::model::Safeguard;
pub use crate::store::backend::contract::{
    Backend, CommitError, KeyRange, Limit, ReadTransaction, RowPage, WriteTransaction,
};
pub use crate::store::backend::memory::{LostAnswer, Memory};
pub use crate::store::backend::redb::{redb_on_disk, redb_on_file};
pub use client::SourceFault;
pub use controls::Uploads;
pub use crash::{CrashImage, CrashImages, CrashPoint, Kept, Moment, Recording, Sampling};
pub use disk::{DiskOperation, Fault, FaultCounts, SIM_DISK_BYTES_MAX, SimDisk};
pub use explore::Explore;
pub use image::Image;
pub use report::{Broken, Failure, Report, Violation};
pub use schedule::{Act, Call, CallFault, Schedule, Setting};
pub use source::{Shape, SimCursor, SimSource};
pub use world::Life;
