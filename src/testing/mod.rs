//! Proof, as a product: the simulated disk, and what crashes leave of it.
//!
//! [`SimDisk`] stands in for a store's file. It records every write, change of length and sync, and fails as it is
//! told to ([`Fault`]). From a [`Recording`] come the images that a crash at any moment may have left
//! ([`Recording::images_at`]); each is a disk again ([`Image::disk`]), on which the next life runs, and may crash
//! again. Everything random comes from a seed that the caller gives.

mod catalogue;
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
pub use controls::Uploads;
pub use crash::{CrashImage, CrashImages, CrashPoint, Kept, Moment, Recording, Sampling};
pub use disk::{DiskOperation, Fault, FaultCounts, SIM_DISK_BYTES_MAX, SimDisk};
pub use explore::Explore;
pub use image::Image;
pub use report::{Broken, Failure, Report, Violation};
pub use schedule::{Act, Call, CallFault, Schedule, Setting};
pub use source::{Shape, SimCursor, SimSource};
pub use world::Life;
