//! What the store requires of whatever keeps its bytes, and what it may rely on.
//!
//! A backend keeps tables of rows. A row is a key and a value, both bytes; a table is ordered by key. Above it,
//! `store/tables` turns them into typed rows; below it is a database engine. Nothing here names an engine, exposes
//! its types, or calls back while it holds a lock.
//!
//! # What each backend promises
//!
//! - **Order.** Keys are ordered byte by byte, as unsigned numbers; a key comes before every longer key that it is a
//!   prefix of. Keys and values may be any bytes, also empty. A table that was never written is empty.
//! - **Atomicity.** A change is applied whole or not at all: for every reader, and after every crash, however the
//!   change ended. A change that is dropped, also by a panic, leaves nothing.
//! - **Isolation.** A view shows one moment, however long it lasts. A change sees its own writes; nobody else does
//!   before it is committed. Changes take effect as if they were made one after the other (serializable). If two
//!   changes each read what the other writes, one waits for the other, or its commit is a [`CommitError::Conflict`].
//! - **Durability.** A change for which [`WriteTransaction::commit`] returned `Ok` survives a crash and a loss of
//!   power. So does everything that an opened backend shows: what an earlier owner left unsynced is made durable
//!   before it is read, and no write of an earlier owner arrives later.
//! - **An ambiguous commit.** A commit may fail without anyone knowing whether it was applied (the disk failed, the
//!   answer was lost): [`CommitError::Unknown`]. From then on this backend fails every call. The caller opens the
//!   store again to find out. What that shows is final: a change that is missing then does not appear later.
//! - **Errors.** Damaged bytes are an error ([`Error::Corrupt`]), or are not noticed here (the rows have checksums of
//!   their own). They never cause a panic. If only one owner is possible, a second one gets [`Error::InUse`] at once.
//!
//! `testing::conformance` tests a backend for each of these promises, one case for each.
//!
//! # What a server shared by many workers will need
//!
//! Nothing in these traits assumes one process. A server keeps the promises with its own means:
//!
//! - **A lock on the unit's row.** Every change of a sync unit reads the unit's row first (table `units`) and decides
//!   by it. A server that locks a row when a change reads it (`SELECT ... FOR UPDATE`) serializes the changes of one
//!   unit, and those of other units go on; [`Backend::write`] needs no lock on the whole store. A backend that only
//!   detects conflicts reports them at the commit.
//! - **Writes sent together.** Nobody needs what a change writes before its commit, and `put`, `remove` and
//!   `remove_range` return no value. So a backend may keep the writes and send them with the commit, in one message.
//!   Their errors may be reported there.
//! - **Fencing.** If two workers have one unit, the older one must not write any more. The rows ensure this: a run
//!   has an epoch, each life raises it, and each change compares it in the same transaction that it writes in. This
//!   holds only if changes are serializable. A worker that has lost its connection must notice:
//!   [`Backend::ensure_in_place`] is called before anything is confirmed or sent.
//! - **An end to pending commits.** If a connection is lost during a commit, the server may still apply it. Opening
//!   the store again waits for that commit, or prevents it, before it shows anything.

use std::fmt::Debug;

use crate::error::{Error, Result};

/// Rows of the first page of a scan, which is often all that is needed; rows of any other page; bytes of any page.
const FIRST_ROWS: usize = 8;
const PAGE_ROWS: usize = 1_000;
const PAGE_BYTES: usize = 256 * 1024;

/// Keys and values to be put.
pub(crate) type KeysAndValues<'a> = dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>)>> + 'a;

/// Called with a key and its value; returns whether it wants the next.
pub(crate) type EachRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool> + 'a;

/// Where the bytes of an open store are.
pub trait Backend: Debug + Send + Sync {
    /// One consistent view of what is committed at some moment between the call and its return.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn read(&self) -> Result<Box<dyn ReadTransaction + '_>>;

    /// Begins a change. It may wait for another change to end; a thread that begins one during its own may wait
    /// forever.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn write(&self) -> Result<Box<dyn WriteTransaction + '_>>;

    /// Fails if others who open the store would not find this one: its file was deleted or replaced, or its lease
    /// ended.
    ///
    /// # Errors
    /// `Replaced`; `Io` if this cannot be determined.
    fn ensure_in_place(&self) -> Result<()> {
        Ok(())
    }

    /// Returns unused space, if the engine keeps some. The stored rows do not change, even if this is interrupted.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    #[cfg(feature = "inspect")]
    fn compact(&mut self) -> Result<()> {
        Ok(())
    }

    /// Compares what is stored with the engine's own checksums. Returns what is wrong, if that is not an error.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    #[cfg(feature = "inspect")]
    fn verify(&mut self) -> Result<Option<&'static str>> {
        Ok(None)
    }
}

/// A range of keys, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    /// The lowest key in the range.
    pub from: &'a [u8],
    /// The lowest key after the range; `None`: the range has no end.
    pub end: Option<&'a [u8]>,
}

impl<'a> KeyRange<'a> {
    /// Every key.
    pub const ALL: KeyRange<'static> = KeyRange { from: &[], end: None };

    /// Whether the range can hold no key.
    pub fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.from)
    }

    /// The same range, from a later key on.
    #[must_use]
    pub fn starting(self, from: &'a [u8]) -> Self {
        Self { from, ..self }
    }
}

/// How much of a range to return at once: a page ends with the row that reaches one of the two limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// At most this many rows; at least 1.
    pub rows: usize,
    /// Bytes of keys and values; the row that reaches them is the page's last.
    pub bytes: usize,
}

/// Rows of a range, in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowPage {
    /// Keys and values. Empty only if the range has no row.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// There may be more rows after the last one.
    pub more: bool,
}

impl RowPage {
    /// Takes rows in their order until the limit is reached.
    ///
    /// # Errors
    /// The first error among the rows.
    pub fn collect(rows: impl IntoIterator<Item = Result<(Vec<u8>, Vec<u8>)>>, limit: Limit) -> Result<Self> {
        let mut page = Self::default();
        let mut bytes = 0;
        for row in rows {
            let (key, value) = row?;
            bytes += key.len() + value.len();
            page.rows.push((key, value));
            if page.rows.len() >= limit.rows || bytes >= limit.bytes {
                page.more = true;
                break;
            }
        }
        Ok(page)
    }
}

/// One consistent view.
pub trait ReadTransaction {
    /// The value under a key.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The first rows of a range.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn scan(&self, table: &str, range: KeyRange<'_>, limit: Limit) -> Result<RowPage>;

    /// Calls `each` with every row of a range, in order, until it returns false. Within a change, `each` may write to
    /// the table; whether it is then called with what it wrote is not determined.
    ///
    /// # Errors
    /// That of `each`; `Io`, `Corrupt`.
    fn each(&self, table: &str, range: KeyRange<'_>, each: &mut EachRow<'_>) -> Result<()> {
        let mut from = range.from.to_vec();
        let mut rows = FIRST_ROWS;
        loop {
            let page = self.scan(table, range.starting(&from), Limit { rows, bytes: PAGE_BYTES })?;
            for (key, value) in &page.rows {
                if !each(key, value)? {
                    return Ok(());
                }
            }
            let Some((last, _)) = page.rows.into_iter().next_back().filter(|_| page.more) else {
                return Ok(());
            };
            // The lowest key after the last row.
            from = last;
            from.push(0);
            rows = (rows * 8).min(PAGE_ROWS);
        }
    }
}

/// A change in progress. Dropped, it leaves nothing. It reads its own writes.
pub trait WriteTransaction: ReadTransaction {
    /// Puts a row, in place of one with the same key.
    ///
    /// # Errors
    /// `Io`, `Corrupt`; here or at the commit.
    fn put(&self, table: &str, key: &[u8], value: &[u8]) -> Result<()>;

    /// Puts rows in the order in which they come, each as by [`put`](Self::put).
    ///
    /// # Errors
    /// Those of `rows`; `Io`, `Corrupt`, here or at the commit. Earlier rows may have been put.
    fn put_all(&self, table: &str, rows: &mut KeysAndValues<'_>) -> Result<()> {
        for row in rows {
            let (key, value) = row?;
            self.put(table, &key, &value)?;
        }
        Ok(())
    }

    /// Removes a row, if it is there.
    ///
    /// # Errors
    /// `Io`, `Corrupt`; here or at the commit.
    fn remove(&self, table: &str, key: &[u8]) -> Result<()>;

    /// Removes every row of a range.
    ///
    /// # Errors
    /// `Io`, `Corrupt`; here or at the commit.
    fn remove_range(&self, table: &str, range: KeyRange<'_>) -> Result<()>;

    /// Applies the change.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives a crash and a loss of power.
    ///
    /// # Errors
    /// See [`CommitError`].
    fn commit(self: Box<Self>) -> Result<(), CommitError>;
}

/// The outcome of a change whose commit failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CommitError {
    /// Nothing was applied, because another change came first. Made again, it may succeed.
    #[cfg_attr(
        not(feature = "testing"),
        allow(dead_code, reason = "the backends here have one writer at a time")
    )]
    Conflict,
    /// Nothing was applied.
    NotApplied(Error),
    /// It was applied or it was not: see the promises above. This backend fails every call from now on.
    Unknown(Error),
}
