//! The tables: every change is one transaction, and what it leaves is typed rows or a clear error.
//!
//! Below are bytes (`store/backend`); no type of an engine is in a signature here. [`Tables::change`] is one atomic,
//! durable change; [`Tables::view`] is one consistent view. Both give the caller's closure rows, never bytes. A
//! change whose closure fails, or panics, leaves nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "async")]
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

use super::backend::contract::{Backend, CommitError, KeyRange, Limit, ReadTransaction, WriteTransaction};
use super::backend::redb::{Redb, Syncs};
use super::codec::DecodeError;
#[cfg(feature = "inspect")]
use super::disk::Disk;
use super::rows::{ALL_TABLES, FormatRow, Key, META, Row, Table, name_of};

/// The newest format, which this version writes.
pub(crate) const FORMAT: u32 = 2;

pub(crate) const FORMAT_KEY: &str = "format";

/// An open store of tables.
#[derive(Debug)]
pub(crate) struct Tables {
    backend: Arc<dyn Backend>,
    path: PathBuf,
    /// Whether this handle was cut off: it changes nothing any more.
    #[cfg(feature = "async")]
    cut: Option<Arc<AtomicBool>>,
}

impl Tables {
    /// Opens the file, or creates it if there is none.
    pub(crate) fn open(path: &Path, cache_bytes: usize, syncs: &Syncs) -> Result<Self> {
        Self::adopt(path, Box::new(Redb::open(path, cache_bytes, syncs, |new| initialise(new, path))?))
    }

    /// Opens a store on another kind of disk. `path` is what errors name.
    #[cfg(feature = "testing")]
    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        cache_bytes: usize,
        syncs: Syncs,
    ) -> Result<Self> {
        let redb = Redb::open_on(disk, path, cache_bytes, syncs, |new| initialise(new, path))?;
        Self::adopt(path, Box::new(redb))
    }

    /// Opens a store in any backend, or begins one there if its tables are empty. `name` is what errors name.
    pub(crate) fn open_in(backend: Box<dyn Backend>, name: &Path) -> Result<Self> {
        let is_new = {
            let view = backend.read()?;
            let mut is_new = true;
            for table in ALL_TABLES {
                is_new &= view.scan(table, KeyRange::ALL, Limit { rows: 1, bytes: 1 })?.rows.is_empty();
            }
            is_new
        };
        if is_new {
            initialise(backend.as_ref(), name)?;
        }
        Self::adopt(name, backend)
    }

    /// Opens a file to read it, through a disk that keeps all writes to itself. With `verified`, every page is
    /// checked against its checksum before anything is read; without it, [`Tables::verify`] must be called first.
    #[cfg(feature = "inspect")]
    pub(crate) fn look(disk: Arc<dyn Disk>, path: &Path, cache_bytes: usize, verified: bool) -> Result<Self> {
        Self::adopt(path, Box::new(Redb::look(disk, path, cache_bytes, verified)?))
    }

    /// Accepts what was opened only if it has our format row.
    fn adopt(path: &Path, backend: Box<dyn Backend>) -> Result<Self> {
        let this = Self {
            backend: backend.into(),
            path: path.to_owned(),
            #[cfg(feature = "async")]
            cut: None,
        };
        match this.view(|rows| rows.get(&META, &Key::name(FORMAT_KEY))) {
            Ok(Some(row)) if row.format > FORMAT => Err(Error::NewerFormat {
                what: path.display().to_string(),
                found: row.format,
                supported: FORMAT,
            }),
            Ok(Some(_)) => Ok(this),
            Ok(None) | Err(Error::NotAStore { .. }) => Err(Error::NotAStore {
                path: path.to_owned(),
                reason: "it is a redb file without our format row".to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Makes one change: all of it, durably, or, if the closure fails, none.
    ///
    /// # Errors
    /// Those of the closure; `Replaced` if the store was deleted or replaced since it was opened; `Corrupt`, `Io`.
    pub(crate) fn change<T>(&self, body: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let change = self.begin()?;
        let result = body(&change)?;
        change.commit()?;
        Ok(result)
    }

    /// Begins a change, which leaves nothing unless it is committed.
    pub(super) fn begin(&self) -> Result<Change<'_>> {
        Ok(Change { tables: self, transaction: self.backend.write()? })
    }

    /// Another handle, which changes nothing any more once this flag is set.
    #[cfg(feature = "async")]
    pub(super) fn until(&self, cut: &Arc<AtomicBool>) -> Self {
        Self { backend: Arc::clone(&self.backend), path: self.path.clone(), cut: Some(Arc::clone(cut)) }
    }

    /// Reads the store as of one moment.
    pub(crate) fn view<T>(&self, body: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        body(&self.look_now()?)
    }

    /// A view of the store as of now.
    pub(super) fn look_now(&self) -> Result<View<'_>> {
        Ok(View { tables: self, transaction: self.backend.read()? })
    }

    /// Fails if the store was deleted or replaced since it was opened, or this handle was cut off.
    ///
    /// Then nothing may be confirmed or sent: another worker may already do so for the store that is there now.
    pub(crate) fn ensure_in_place(&self) -> Result<()> {
        #[cfg(feature = "async")]
        if self.cut.as_ref().is_some_and(|cut| cut.load(Ordering::Acquire)) {
            return Err(Error::Stopped { event_type: "the event".to_owned() });
        }
        self.backend.ensure_in_place()
    }

    /// Takes the number of a new unit.
    pub(crate) fn new_unit_no(change: &Change<'_>) -> Result<u64> {
        let key = Key::name(FORMAT_KEY);
        let Some(mut row) = change.get(&META, &key)? else {
            return Err(change.tables.damaged("meta", &key, "the format row is missing"));
        };
        let no = row.next_unit;
        row.next_unit += 1;
        change.put(&META, &key, &row)?;
        Ok(no)
    }

    /// Returns unused space.
    #[cfg(feature = "inspect")]
    pub(crate) fn compact(&mut self) -> Result<()> {
        self.alone()?.compact()
    }

    /// Compares everything stored with its checksums; returns what is wrong, if that is not an error.
    #[cfg(feature = "inspect")]
    pub(crate) fn verify(&mut self) -> Result<Option<&'static str>> {
        self.alone()?.verify()
    }

    /// The backend, if no invocation that was dropped still has a handle of it.
    #[cfg(feature = "inspect")]
    fn alone(&mut self) -> Result<&mut dyn Backend> {
        let path = &self.path;
        Arc::get_mut(&mut self.backend).map(|backend| backend as &mut dyn Backend).ok_or_else(|| {
            Error::Invalid {
                what: format!("this use of the store {}", path.display()),
                reason: "an invocation that was dropped is still ending: try again in a moment".to_owned(),
            }
        })
    }

    /// A fingerprint of all rows of all tables: the same for the same rows.
    #[cfg(feature = "testing")]
    pub(crate) fn fingerprint(&self) -> Result<u64> {
        use std::hash::{DefaultHasher, Hasher};
        let view = self.backend.read()?;
        let mut hasher = DefaultHasher::new();
        for name in ALL_TABLES {
            view.each(name, KeyRange::ALL, &mut |key, value| {
                for bytes in [name.as_bytes(), key, value] {
                    hasher.write_usize(bytes.len());
                    hasher.write(bytes);
                }
                Ok(true)
            })?;
        }
        Ok(hasher.finish())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The error for a row that cannot be right.
    pub(crate) fn damaged(&self, table: &str, key: &Key, reason: impl Into<String>) -> Error {
        Error::Corrupt {
            what: format!("{}, table {table}, key {}", self.path.display(), show(key.as_bytes())),
            reason: reason.into(),
        }
    }

    fn decode<R: Row>(&self, table: &Table<R>, key: &[u8], bytes: &[u8]) -> Result<R> {
        R::from_bytes(bytes).map_err(|error| undecodable(&self.path, table.name, key, error))
    }
}

/// Turns an empty backend into an empty store.
fn initialise(backend: &dyn Backend, path: &Path) -> Result<()> {
    let change = backend.write()?;
    let key = Key::name(FORMAT_KEY);
    let row = FormatRow { format: FORMAT, next_unit: 1 };
    let bytes = encode(path, &META, &key, &row)?;
    change.put(META.name, key.as_bytes(), &bytes)?;
    change.commit().map_err(|error| not_committed(path, error))
}

fn not_committed(path: &Path, error: CommitError) -> Error {
    match error {
        CommitError::NotApplied(error) | CommitError::Unknown(error) => error,
        CommitError::Conflict => Error::io(
            format!("commit a change to the store {}", path.display()),
            "another change came first, and nothing of this one was applied",
        ),
    }
}

fn encode<R: Row>(path: &Path, table: &Table<R>, key: &Key, row: &R) -> Result<Vec<u8>> {
    row.to_bytes().map_err(|error| undecodable(path, table.name, key.as_bytes(), error))
}

fn undecodable(path: &Path, table: &str, key: &[u8], error: DecodeError) -> Error {
    let what = format!("{}, table {table}, key {}", path.display(), show(key));
    match error {
        DecodeError::Newer { found, supported } => {
            Error::NewerFormat { what, found: found.into(), supported: supported.into() }
        }
        DecodeError::Damaged(reason) => Error::Corrupt { what, reason },
    }
}

/// The keys that start with a prefix.
fn starting_with<'a>(prefix: &'a Key, end: Option<&'a Key>) -> KeyRange<'a> {
    KeyRange { from: prefix.as_bytes(), end: end.map(Key::as_bytes) }
}

/// Reading rows, in a view or within a change.
pub(crate) trait Rows {
    fn tables(&self) -> &Tables;

    fn transaction(&self) -> &dyn ReadTransaction;

    /// The row under `key`.
    fn get<R: Row>(&self, table: &Table<R>, key: &Key) -> Result<Option<R>> {
        let bytes = self.transaction().get(table.name, key.as_bytes())?;
        bytes.map(|bytes| self.tables().decode(table, key.as_bytes(), &bytes)).transpose()
    }

    /// Calls `each` with what follows `prefix` in the key, and the row, for every row from `from` on whose key starts
    /// with `prefix`, in order, until it returns false.
    fn scan<R: Row>(
        &self,
        table: &Table<R>,
        prefix: &Key,
        from: &Key,
        mut each: impl FnMut(&[u8], R) -> Result<bool>,
    ) -> Result<()> {
        let end = prefix.end();
        let range = starting_with(prefix, end.as_ref()).starting(from.max(prefix).as_bytes());
        self.transaction().each(table.name, range, &mut |key, value| {
            let row = self.tables().decode(table, key, value)?;
            each(key.get(prefix.as_bytes().len()..).unwrap_or_default(), row)
        })
    }

    /// All rows whose key starts with `prefix`, in order, with what follows it.
    fn all<R: Row>(&self, table: &Table<R>, prefix: &Key) -> Result<Vec<(Vec<u8>, R)>> {
        let mut rows = Vec::new();
        self.scan(table, prefix, prefix, |tail, row| {
            rows.push((tail.to_vec(), row));
            Ok(true)
        })?;
        Ok(rows)
    }

    /// All rows whose key is `prefix` and a name, by name.
    fn by_name<R: Row>(&self, table: &Table<R>, prefix: &Key) -> Result<BTreeMap<String, R>> {
        let mut rows = BTreeMap::new();
        self.scan(table, prefix, prefix, |name, row| {
            let damaged = |error: DecodeError| self.tables().damaged(table.name, prefix, error.to_string());
            rows.insert(name_of(name).map_err(damaged)?.to_owned(), row);
            Ok(true)
        })?;
        Ok(rows)
    }

    /// Calls `each` with the rest of the key, and the undecoded row, for every row of a table whose key starts with
    /// `prefix`, in order.
    #[cfg(feature = "inspect")]
    fn scan_raw(
        &self,
        table: &str,
        prefix: &Key,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let end = prefix.end();
        self.transaction().each(table, starting_with(prefix, end.as_ref()), &mut |key, value| {
            each(key.get(prefix.as_bytes().len()..).unwrap_or_default(), value)?;
            Ok(true)
        })
    }

    /// A row that must be there.
    fn need<R: Row>(&self, table: &Table<R>, key: &Key) -> Result<R> {
        self.get(table, key)?.ok_or_else(|| self.tables().damaged(table.name, key, "the row is missing"))
    }
}

/// One consistent look at the tables.
pub(crate) struct View<'a> {
    tables: &'a Tables,
    transaction: Box<dyn ReadTransaction + 'a>,
}

#[cfg(feature = "inspect")]
impl View<'_> {
    /// Calls `each` with the rest of the key, and the undecoded row, for every row whose key starts with `prefix`, in
    /// order. This way, a row that cannot be decoded differs from a missing one.
    pub(crate) fn scan_bytes<R>(
        &self,
        table: &Table<R>,
        prefix: &Key,
        each: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.scan_raw(table.name, prefix, each)
    }
}

impl Rows for View<'_> {
    fn tables(&self) -> &Tables {
        self.tables
    }
    fn transaction(&self) -> &dyn ReadTransaction {
        self.transaction.as_ref()
    }
}

/// A change in progress.
pub(crate) struct Change<'a> {
    tables: &'a Tables,
    transaction: Box<dyn WriteTransaction + 'a>,
}

impl Rows for Change<'_> {
    fn tables(&self) -> &Tables {
        self.tables
    }
    fn transaction(&self) -> &dyn ReadTransaction {
        self.transaction.as_ref()
    }
}

impl Change<'_> {
    /// Makes the change: all of it, durably, or, on an error, none; but see [`CommitError::Unknown`].
    ///
    /// # Errors
    /// `Replaced` if the store was deleted or replaced since it was opened; `Corrupt`, `Io`.
    pub(super) fn commit(self) -> Result<()> {
        self.tables.ensure_in_place()?;
        self.transaction.commit().map_err(|error| not_committed(&self.tables.path, error))
    }

    /// Puts a row, in place of the one that is there.
    pub(crate) fn put<R: Row>(&self, table: &Table<R>, key: &Key, row: &R) -> Result<()> {
        let bytes = encode(&self.tables.path, table, key, row)?;
        self.transaction.put(table.name, key.as_bytes(), &bytes)
    }

    /// Puts rows, each in place of the one that is there.
    pub(crate) fn put_all<R: Row>(
        &self,
        table: &Table<R>,
        rows: impl IntoIterator<Item = (Key, R)>,
    ) -> Result<()> {
        let mut rows = rows.into_iter().map(|(key, row)| {
            let bytes = encode(&self.tables.path, table, &key, &row)?;
            Ok((key.into_bytes(), bytes))
        });
        self.transaction.put_all(table.name, &mut rows)
    }

    /// Puts the bytes of a row, as they were stored.
    #[cfg(feature = "inspect")]
    pub(crate) fn put_raw(&self, table: &str, key: &Key, bytes: &[u8]) -> Result<()> {
        self.transaction.put(table, key.as_bytes(), bytes)
    }

    /// Removes a row, if it is there.
    pub(crate) fn remove<R: Row>(&self, table: &Table<R>, key: &Key) -> Result<()> {
        self.transaction.remove(table.name, key.as_bytes())
    }

    /// Removes every row whose key starts with `prefix`, without decoding them.
    pub(crate) fn remove_all<R: Row>(&self, table: &Table<R>, prefix: &Key) -> Result<()> {
        let end = prefix.end();
        self.transaction.remove_range(table.name, starting_with(prefix, end.as_ref()))
    }

    /// Removes every row whose key is at least `from` and less than `to`, without decoding them.
    pub(crate) fn remove_range<R: Row>(&self, table: &Table<R>, from: &Key, to: &Key) -> Result<()> {
        self.transaction.remove_range(table.name, starting_with(from, Some(to)))
    }
}

/// A key for people: as text if it is text, otherwise in hexadecimal.
pub(crate) fn show(key: &[u8]) -> String {
    use std::fmt::Write;
    // Writing to a string does not fail.
    let mut shown = String::new();
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let _ = write!(shown, "\\x{:02x}", u32::from(c));
            } else {
                shown.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}
