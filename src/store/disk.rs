//! The disk under a store: an interface for the crash explorer and the inspector. Not part of the public API.

use std::fmt::Debug;
use std::io;

/// What a store needs of a disk: a file that can be read, written, cut and synced.
///
/// A write is durable only after the next [`Disk::sync`] has returned; until then a crash may keep any part of it.
#[cfg_attr(
    not(feature = "testing"),
    allow(dead_code, unreachable_pub, reason = "`testing` opens stores on it, and hands it to the tests")
)]
pub trait Disk: Debug + Send + Sync + 'static {
    /// Bytes of the file.
    ///
    /// # Errors
    /// Any I/O error.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// Any I/O error.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `out` from `at`; past the end is an error.
    ///
    /// # Errors
    /// Any I/O error.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    /// Any I/O error.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file, or lengthens it with zeroes.
    ///
    /// # Errors
    /// Any I/O error.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes every write and length change so far durable.
    ///
    /// # Errors
    /// Any I/O error.
    fn sync(&self) -> io::Result<()>;

    /// Whether others who open a store by its name still find this one: it was not deleted or replaced.
    ///
    /// # Errors
    /// Any I/O error.
    fn is_in_place(&self) -> io::Result<bool> {
        Ok(true)
    }
}
