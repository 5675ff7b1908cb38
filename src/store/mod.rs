//! What is remembered.

mod disk;

#[doc(hidden)]
pub use disk::Disk;
