//! What a store needs of whatever keeps its bytes, and may rely on.
//!
//! A backend keeps tables of rows: a key and a value, both bytes, in the order of their keys. Above it, `store/tables`
//! makes them typed rows; below it is an engine. Nothing here names an engine, hands out what it owns, or calls back
//! while it holds something.
//!
//! # What each backend promises
//!
//! - **Order.** Keys are ordered byte by byte, as unsigned numbers; a key comes before every longer one that it begins.
//!   Keys and values are any bytes, also none. A table that was never written is empty.
//! - **Atomicity.** A change is there whole or not at all: for every reader, after every crash, whichever way it ended. A
//!   change that is dropped, also by a panic, leaves nothing.
//! - **Isolation.** A view is of one moment, however long it lasts. A change sees its own writes, and nobody else does
//!   before it is committed. Changes have an effect as if one were made after the other (serializable): of two that
//!   read what the other writes, one waits for the other, or its commit is a [`CommitError::Conflict`].
//! - **Durability.** What [`WriteTransaction::commit`] said `Ok` to survives a crash and a loss of power. So does all
//!   that an opened backend shows: what an earlier owner left unsynced is made durable before it is read, and nothing
//!   of an owner that is gone comes later.
//! - **An ambiguous commit.** A commit may fail without anyone knowing whether it happened (the disk failed, the answer
//!   was lost): [`CommitError::Unknown`]. From then on this backend fails every call. The caller finds out by opening it
//!   anew: what that shows is the truth, and stays it; a change that is not there then does not come later.
//! - **Errors.** Damaged bytes are an error ([`Error::Corrupt`]) or are not noticed here (the rows have checksums of their
//!   own); they are never a panic. A second owner, where there can be only one, is [`Error::InUse`] at once.
//!
//! `testing::conformance` holds a backend to each of these, one case for each promise.
//!
//! # What a server shared by many workers will need
//!
//! Nothing in these traits assumes one process. A server keeps the promises with what it has:
//!
//! - **A lock on the unit's row.** Every change of a sync unit reads the unit's row first (table `units`) and decides by
//!   it. A server that locks a row that a change reads (`SELECT ... FOR UPDATE`) keeps changes of one unit apart and
//!   lets those of others go on; [`Backend::write`] needs no lock on the whole. A backend that only notices conflicts
//!   says so at the commit.
//! - **Writes sent together.** What a change writes is needed by nobody before its commit, and `put`, `remove` and
//!   `remove_range` tell nothing back. So they may be kept and sent with the commit, in one message; an error of theirs
//!   may come there.
//! - **Fencing.** Of two workers on one unit the elder must not write any more. The rows see to it: a run has an epoch,
//!   each life raises it, and each change compares it in the same transaction that it writes in. This holds if, and
//!   only if, changes are serializable. A worker without a connection must not believe that it still has it:
//!   [`Backend::ensure_in_place`] is asked before anything is confirmed or sent.
//! - **An end to what is under way.** Where a connection is lost in the middle of a commit, the server may still carry it
//!   out. Opening anew waits for that, or prevents it, before it shows anything.

use std::fmt::Debug;

use crate::error::{Error, Result};

/// Where the bytes of a store are; open.
pub trait Backend: Debug + Send + Sync {
    /// One consistent view of what is committed at some moment between the call and its return.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn read(&self) -> Result<Box<dyn ReadTransaction + '_>>;

    /// Begins a change. It may wait for one that is being made; a thread that begins one while it makes another may
    /// wait for ever.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn write(&self) -> Result<Box<dyn WriteTransaction + '_>>;

    /// Fails if others who open the store would not find this one: its file was deleted or replaced, its lease ended.
    ///
    /// # Errors
    /// `Replaced`; `Io` if that cannot be told.
    fn ensure_in_place(&self) -> Result<()> {
        Ok(())
    }

    /// Gives back what room is not used, where the engine keeps some. What is stored stays as it is, whatever becomes of
    /// this in the middle.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    #[cfg(feature = "inspect")]
    fn compact(&mut self) -> Result<()> {
        Ok(())
    }

    /// Compares what is kept with the engine's own checksums; says what is wrong, if it is not an error.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    #[cfg(feature = "inspect")]
    fn verify(&mut self) -> Result<Option<&'static str>> {
        Ok(None)
    }
}

/// Keys from one on, up to another that is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    /// The least key that is in it.
    pub from: &'a [u8],
    /// The least key behind it; `None`: it has no end.
    pub end: Option<&'a [u8]>,
}

impl<'a> KeyRange<'a> {
    /// Every key.
    pub const ALL: KeyRange<'static> = KeyRange { from: &[], end: None };

    /// Whether it holds no key at all.
    pub fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.from)
    }

    /// As it is, from a key on.
    #[must_use]
    pub fn starting(self, from: &'a [u8]) -> Self {
        Self { from, ..self }
    }
}

/// How much of a range to hand over at once: a page ends with the row that reaches one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// At most so many rows; at least 1.
    pub rows: usize,
    /// So many bytes of keys and values; the row that reaches it is the page's last.
    pub bytes: usize,
}

/// Rows of a range, in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowPage {
    /// Keys and values. Empty only if the range has no row.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// There may be more behind the last of them.
    pub more: bool,
}

impl RowPage {
    /// Takes rows, which are in order, until the limit is reached.
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
}

/// A change that is being made; dropped, it leaves nothing. It reads what it has written.
pub trait WriteTransaction: ReadTransaction {
    /// Puts a row, in place of the one that is there.
    ///
    /// # Errors
    /// `Io`, `Corrupt`; here or at the commit.
    fn put(&self, table: &str, key: &[u8], value: &[u8]) -> Result<()>;

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

    /// Makes the change.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives a crash and a loss of power.
    ///
    /// # Errors
    /// See [`CommitError`].
    fn commit(self: Box<Self>) -> Result<(), CommitError>;
}

/// What became of a change whose commit failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CommitError {
    /// Nothing of it happened, as another change came between. Made anew, it may succeed.
    #[cfg_attr(
        not(feature = "testing"),
        allow(dead_code, reason = "the backends here have one writer at a time")
    )]
    Conflict,
    /// Nothing of it happened.
    NotApplied(Error),
    /// It happened, or it did not: see the promises above. This backend fails every call from now on.
    Unknown(Error),
}
