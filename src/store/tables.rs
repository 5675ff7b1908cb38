//! The tables: every change is one transaction, and what it leaves is typed rows or a clear error.
//!
//! redb is used here and nowhere else, and none of its types is in a signature. [`Tables::change`] is one atomic,
//! durable change; [`Tables::view`] is one consistent look. Both hand the caller's closure rows, never bytes.
//!
//! Durability: two-phase commits, each `fdatasync`ed before `change` returns; no quick-repair (redb's
//! `docs/design.md` has both). A change whose closure fails, or unwinds, leaves nothing.
//!
//! A killed owner leaves writes that are not synced: the next one reads them, and a power failure takes them back. So
//! nothing of a file is read before it, and the name that leads to it, are synced.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{
    BackendError, Builder, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase,
    ReadableTable, StorageBackend, TableDefinition, TableError, TableHandle, WriteTransaction,
};

use crate::error::{Error, Result};

use super::backend::file::{self, Place};
use super::codec::DecodeError;
use super::disk::Disk;
use super::rows::{ALL_TABLES, FormatRow, Key, META, Row, Table, USED};

/// The newest format that this version writes and reads.
pub(crate) const FORMAT: u32 = 1;

/// The first bytes of every redb file (redb `docs/design.md`, "Super-header").
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
/// Set in the byte after them from when a file is opened until it is closed.
const LEFT_OPEN: u8 = 2;
const FORMAT_KEY: &str = "format";
/// Tables that the first stores did not have.
const NEW_TABLES: &[&str] = &[USED.name];
/// Tries at opening or creating a file that others create, delete or replace meanwhile.
const OPEN_TRIES: u32 = 20;

/// An open file of tables.
#[derive(Debug)]
pub(crate) struct Tables {
    db: Database,
    path: PathBuf,
    location: Location,
    syncs: Syncs,
}

/// Where the bytes are, and are to be found by others.
#[derive(Debug)]
enum Location {
    Path(Place),
    Disk(Arc<dyn Disk>),
}

type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;

fn definition<R>(table: &Table<R>) -> Bytes {
    TableDefinition::new(table.name)
}

impl Tables {
    /// Opens the file, or creates it if there is none.
    pub(crate) fn open(path: &Path, cache_bytes: usize, syncs: Syncs) -> Result<Self> {
        let shown = path.display();
        let failed = |error| Error::io(format!("open the store {shown}"), error);
        for _ in 0..OPEN_TRIES {
            let Some(mut file) = file::open(path)? else {
                match create(path, cache_bytes) {
                    // Somebody else's new store stands there now, or a sweeper took ours for a dead one's. Or
                    // the path is one where nothing can be: a link that leads nowhere.
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound)
                            && file::parent(path).is_dir() => {}
                    Err(error) => return Err(Error::io(format!("create the store {shown}"), error)),
                    Ok(()) => {}
                }
                continue;
            };
            let mut start = Vec::new();
            let read = Read::take(&mut file, MAGIC.len() as u64).read_to_end(&mut start);
            read.map_err(|error| Error::io(format!("read the store {shown}"), error))?;
            check_start(path, &start)?;
            let place = Place::of(path, &file).map_err(failed)?;
            let storage = Storage::of_file(file, &place, syncs.clone()).map_err(failed)?;
            // Every page against its checksum, also of a file that was closed well: of one that was damaged since,
            // redb would panic, abort or read wrong values (seen with 4.5), and we must do neither.
            let open = || builder(cache_bytes).set_check_integrity_on_open(true).create_with_backend(storage);
            let db = guard(path, open)?;
            match place.ensure() {
                Ok(()) => return Self::adopt(path, db, Location::Path(place), syncs),
                // Between opening it and locking it.
                Err(Error::Replaced { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(failed(io::Error::other(
            "it is created, deleted or replaced over and over, or its link leads nowhere",
        )))
    }

    /// Opens a store on a disk of another kind. `path` is what errors call it.
    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        cache_bytes: usize,
        syncs: Syncs,
    ) -> Result<Self> {
        let new = disk.is_empty().map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        let storage = Storage::of_disk(Arc::clone(&disk), syncs.clone());
        let db = guard(path, || builder(cache_bytes).create_with_backend(storage))?;
        let location = Location::Disk(disk);
        if new {
            let this = Self { db, path: path.to_owned(), location, syncs };
            this.initialise()?;
            return Ok(this);
        }
        Self::adopt(path, db, location, syncs)
    }

    /// Opens a file to look at it, on a disk that keeps what is written to itself. With `verified`, every page is
    /// checked against its checksum before anything is read; without, [`Tables::verify`] is to be called first.
    pub(crate) fn look(disk: Arc<dyn Disk>, path: &Path, cache_bytes: usize, verified: bool) -> Result<Self> {
        let storage = Storage::of_disk(Arc::clone(&disk), Syncs::default());
        let open = || builder(cache_bytes).set_check_integrity_on_open(verified).create_with_backend(storage);
        Self::adopt(path, guard(path, open)?, Location::Disk(disk), Syncs::default())
    }

    /// Takes an opened file for ours only if it says so.
    fn adopt(path: &Path, db: Database, location: Location, syncs: Syncs) -> Result<Self> {
        let this = Self { db, path: path.to_owned(), location, syncs };
        let foreign = || Error::NotAStore {
            path: path.to_owned(),
            reason: "it is a redb file without our format row".to_owned(),
        };
        let transaction = this.db.begin_read().map_err(|error| this.storage_error("read", &error.into()))?;
        if let Err(
            TableError::TableDoesNotExist(_)
            | TableError::TableTypeMismatch { .. }
            | TableError::TableIsMultimap(_),
        ) = transaction.open_table(definition(&META))
        {
            return Err(foreign());
        }
        drop(transaction);
        let format = this.view(|rows| rows.get(&META, &Key::name(FORMAT_KEY)));
        let newer = |found| Error::NewerFormat { what: path.display().to_string(), found, supported: FORMAT };
        match format {
            Ok(Some(row)) if row.format > FORMAT => Err(newer(row.format)),
            Ok(Some(_)) => {
                this.add_tables()?;
                Ok(this)
            }
            Ok(None) => Err(foreign()),
            Err(error) => Err(error),
        }
    }

    /// Adds the tables that came after those which an older store has.
    fn add_tables(&self) -> Result<()> {
        let fail = |error: redb::Error| self.storage_error("read", &error);
        let transaction = self.db.begin_read().map_err(|error| fail(error.into()))?;
        let there = transaction.list_tables().map_err(|error| fail(error.into()))?;
        let there: Vec<String> = there.map(|table| table.name().to_owned()).collect();
        drop(transaction);
        if NEW_TABLES.iter().all(|new| there.iter().any(|name| name == new)) {
            return Ok(());
        }
        self.change(|change| change.create(NEW_TABLES))
    }

    fn initialise(&self) -> Result<()> {
        self.change(|change| {
            change.create(ALL_TABLES)?;
            change.put(&META, &Key::name(FORMAT_KEY), &FormatRow { format: FORMAT, next_unit: 1 })
        })
    }

    /// Makes one change: all of it, durably, or, if the closure fails, none.
    ///
    /// The path of the store is the only thing that the change may be told of a failure before it.
    pub(crate) fn change<T>(&self, body: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        self.syncs.begin();
        let mut transaction =
            self.db.begin_write().map_err(|error| self.storage_error("begin a change of", &error.into()))?;
        transaction
            .set_durability(Durability::Immediate)
            .map_err(|error| self.storage_error("begin a change of", &error.into()))?;
        transaction.set_two_phase_commit(true);
        let change = Change { tables: self, transaction };
        let result = body(&change)?;
        self.ensure_in_place()?;
        change
            .transaction
            .commit()
            .map_err(|error| self.storage_error("commit a change to", &error.into()))?;
        Ok(result)
    }

    /// Looks at one moment of the store.
    pub(crate) fn view<T>(&self, body: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        let transaction = self.db.begin_read().map_err(|error| self.storage_error("read", &error.into()))?;
        body(&View { tables: self, transaction })
    }

    /// Fails if the file was deleted or replaced since it was opened.
    ///
    /// Nothing may be confirmed or sent then: another worker may already do so on behalf of what stands there now.
    pub(crate) fn ensure_in_place(&self) -> Result<()> {
        match &self.location {
            Location::Path(place) => place.ensure(),
            Location::Disk(disk) => match disk.is_in_place() {
                Ok(true) => Ok(()),
                Ok(false) => Err(Error::Replaced { path: self.path.clone() }),
                Err(error) => Err(Error::io(format!("look for the store {}", self.path.display()), error)),
            },
        }
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

    /// Verifies every page of the file against its checksum; says what is wrong, if it is not damage that is an error.
    pub(crate) fn verify(&mut self) -> Result<Option<&'static str>> {
        let path = self.path.clone();
        let whole = guard(&path, || self.db.check_integrity())?;
        Ok((!whole).then_some("the pages in use are not those that are recorded as such"))
    }

    /// A number for all rows of all tables: the same for the same rows.
    #[cfg(feature = "testing")]
    pub(crate) fn fingerprint(&self) -> Result<u64> {
        use std::hash::{DefaultHasher, Hasher};
        let fail = |error: redb::Error| self.storage_error("read", &error);
        let transaction = self.db.begin_read().map_err(|error| fail(error.into()))?;
        let mut hasher = DefaultHasher::new();
        for name in ALL_TABLES {
            let table: Bytes = TableDefinition::new(name);
            let open = transaction.open_table(table).map_err(|error| fail(error.into()))?;
            for entry in open.iter().map_err(|error| fail(error.into()))? {
                let (key, value) = entry.map_err(|error| fail(error.into()))?;
                for bytes in [name.as_bytes(), key.value(), value.value()] {
                    hasher.write_usize(bytes.len());
                    hasher.write(bytes);
                }
            }
        }
        Ok(hasher.finish())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The error of a row that cannot be what is stored.
    pub(crate) fn damaged(&self, table: &str, key: &Key, reason: impl Into<String>) -> Error {
        Error::Corrupt {
            what: format!("{}, table {table}, key {}", self.path.display(), show(key.as_bytes())),
            reason: reason.into(),
        }
    }

    fn decode<R: Row>(&self, table: &Table<R>, key: &[u8], bytes: &[u8]) -> Result<R> {
        R::from_bytes(bytes).map_err(|error| self.undecodable(table.name, key, error))
    }

    fn undecodable(&self, table: &str, key: &[u8], error: DecodeError) -> Error {
        let what = format!("{}, table {table}, key {}", self.path.display(), show(key));
        match error {
            DecodeError::Newer { found, supported } => {
                Error::NewerFormat { what, found: found.into(), supported: supported.into() }
            }
            DecodeError::Damaged(reason) => Error::Corrupt { what, reason },
        }
    }

    fn storage_error(&self, action: &str, error: &redb::Error) -> Error {
        storage_error(&self.path, action, error)
    }
}

/// Reading rows, in a view or amid a change.
pub(crate) trait Rows {
    fn tables(&self) -> &Tables;

    /// The row under `key`.
    fn get<R: Row>(&self, table: &Table<R>, key: &Key) -> Result<Option<R>>;

    /// Calls `each` with what follows `prefix` in the key, and the row, for every row from `from` on whose key starts
    /// with `prefix`, in order, until it returns false.
    fn scan<R: Row>(
        &self,
        table: &Table<R>,
        prefix: &Key,
        from: &Key,
        each: impl FnMut(&[u8], R) -> Result<bool>,
    ) -> Result<()>;

    /// All rows whose key starts with `prefix`, in order, with what follows it.
    fn all<R: Row>(&self, table: &Table<R>, prefix: &Key) -> Result<Vec<(Vec<u8>, R)>> {
        let mut rows = Vec::new();
        self.scan(table, prefix, prefix, |tail, row| {
            rows.push((tail.to_vec(), row));
            Ok(true)
        })?;
        Ok(rows)
    }

    /// A row that must be there.
    fn need<R: Row>(&self, table: &Table<R>, key: &Key) -> Result<R> {
        self.get(table, key)?.ok_or_else(|| self.tables().damaged(table.name, key, "the row is missing"))
    }
}

/// One consistent look at the tables.
pub(crate) struct View<'a> {
    tables: &'a Tables,
    transaction: ReadTransaction,
}

impl View<'_> {
    /// Calls `each` with the rest of the key, and the undecoded row, for every row whose key starts with `prefix`, in
    /// order. What cannot be decoded can so be told from what is not there.
    pub(crate) fn scan_bytes<R>(
        &self,
        table: &Table<R>,
        prefix: &Key,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let fail = |error: redb::Error| self.tables.storage_error("read", &error);
        let open = self.transaction.open_table(definition(table)).map_err(|error| fail(error.into()))?;
        let end = prefix.end();
        let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_bytes()));
        let range = (Bound::Included(prefix.as_bytes()), end);
        for entry in open.range::<&[u8]>(range).map_err(|error| fail(error.into()))? {
            let (key, value) = entry.map_err(|error| fail(error.into()))?;
            each(key.value().get(prefix.as_bytes().len()..).unwrap_or_default(), value.value())?;
        }
        Ok(())
    }
}

/// A change that is being made.
pub(crate) struct Change<'a> {
    tables: &'a Tables,
    transaction: WriteTransaction,
}

macro_rules! rows {
    ($type:ty) => {
        impl Rows for $type {
            fn tables(&self) -> &Tables {
                self.tables
            }

            fn get<R: Row>(&self, table: &Table<R>, key: &Key) -> Result<Option<R>> {
                let fail = |error: redb::Error| self.tables.storage_error("read", &error);
                let open =
                    self.transaction.open_table(definition(table)).map_err(|error| fail(error.into()))?;
                match open.get(key.as_bytes()).map_err(|error| fail(error.into()))? {
                    Some(bytes) => Ok(Some(self.tables.decode(table, key.as_bytes(), bytes.value())?)),
                    None => Ok(None),
                }
            }

            fn scan<R: Row>(
                &self,
                table: &Table<R>,
                prefix: &Key,
                from: &Key,
                mut each: impl FnMut(&[u8], R) -> Result<bool>,
            ) -> Result<()> {
                let fail = |error: redb::Error| self.tables.storage_error("read", &error);
                let open =
                    self.transaction.open_table(definition(table)).map_err(|error| fail(error.into()))?;
                let end = prefix.end();
                let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_bytes()));
                let range = (Bound::Included(from.max(prefix).as_bytes()), end);
                for entry in open.range::<&[u8]>(range).map_err(|error| fail(error.into()))? {
                    let (key, value) = entry.map_err(|error| fail(error.into()))?;
                    let row = self.tables.decode(table, key.value(), value.value())?;
                    if !each(key.value().get(prefix.as_bytes().len()..).unwrap_or_default(), row)? {
                        break;
                    }
                }
                Ok(())
            }
        }
    };
}

rows!(View<'_>);
rows!(Change<'_>);

impl Change<'_> {
    /// Creates tables that are not there.
    fn create(&self, names: &[&'static str]) -> Result<()> {
        for name in names {
            let table: Bytes = TableDefinition::new(name);
            let opened = self.transaction.open_table(table);
            opened.map_err(|error| self.tables.storage_error("create a table of", &error.into()))?;
        }
        Ok(())
    }

    /// Puts a row, in place of the one that is there.
    pub(crate) fn put<R: Row>(&self, table: &Table<R>, key: &Key, row: &R) -> Result<()> {
        let bytes =
            row.to_bytes().map_err(|error| self.tables.undecodable(table.name, key.as_bytes(), error))?;
        let fail = |error: redb::Error| self.tables.storage_error("write", &error);
        let mut open = self.transaction.open_table(definition(table)).map_err(|error| fail(error.into()))?;
        open.insert(key.as_bytes(), bytes.as_slice()).map_err(|error| fail(error.into()))?;
        Ok(())
    }

    /// Removes a row, if it is there.
    pub(crate) fn remove<R: Row>(&self, table: &Table<R>, key: &Key) -> Result<()> {
        let fail = |error: redb::Error| self.tables.storage_error("write", &error);
        let mut open = self.transaction.open_table(definition(table)).map_err(|error| fail(error.into()))?;
        open.remove(key.as_bytes()).map_err(|error| fail(error.into()))?;
        Ok(())
    }

    /// Removes every row whose key starts with `prefix`, without decoding them.
    pub(crate) fn remove_all<R: Row>(&self, table: &Table<R>, prefix: &Key) -> Result<()> {
        let end = prefix.end();
        self.remove_between(
            table,
            prefix,
            end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_bytes())),
        )
    }

    /// Removes every row whose key is at least `from` and less than `to`, without decoding them.
    pub(crate) fn remove_range<R: Row>(&self, table: &Table<R>, from: &Key, to: &Key) -> Result<()> {
        self.remove_between(table, from, Bound::Excluded(to.as_bytes()))
    }

    fn remove_between<R: Row>(&self, table: &Table<R>, from: &Key, end: Bound<&[u8]>) -> Result<()> {
        let fail = |error: redb::Error| self.tables.storage_error("write", &error);
        let mut open = self.transaction.open_table(definition(table)).map_err(|error| fail(error.into()))?;
        let range = (Bound::Included(from.as_bytes()), end);
        open.retain_in::<&[u8], _>(range, |_, _| false).map_err(|error| fail(error.into()))
    }
}

/// A file or a [`Disk`], as redb wants it. Whoever hands us a disk owns it, so only a file is locked.
#[derive(Debug)]
struct Storage {
    medium: Medium,
    /// What an earlier owner wrote is durable.
    synced: AtomicBool,
    syncs: Syncs,
}

/// Whether syncs reach the disk: always, unless a negative control takes away the rule that what is read is durable.
/// Then they do so from the first change on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Syncs {
    #[cfg(feature = "testing")]
    from_the_first_change: Option<Arc<AtomicBool>>,
}

#[cfg(feature = "testing")]
impl Syncs {
    pub(crate) fn new(only_from_the_first_change: bool) -> Self {
        Self { from_the_first_change: only_from_the_first_change.then(Arc::default) }
    }

    fn begin(&self) {
        if let Some(begun) = &self.from_the_first_change {
            begun.store(true, Ordering::Release);
        }
    }

    fn are_off(&self) -> bool {
        self.from_the_first_change.as_ref().is_some_and(|begun| !begun.load(Ordering::Acquire))
    }
}

#[cfg(not(feature = "testing"))]
impl Syncs {
    pub(crate) fn new(_: bool) -> Self {
        Self {}
    }

    #[inline]
    fn begin(&self) {}

    #[inline]
    fn are_off(&self) -> bool {
        false
    }
}

#[derive(Debug)]
enum Medium {
    File { backend: FileBackend, file: File, directory: PathBuf },
    Disk(Arc<dyn Disk>),
}

impl Storage {
    fn of_file(file: File, place: &Place, syncs: Syncs) -> io::Result<Self> {
        let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        let medium = Medium::File { backend, file, directory: place.directory()? };
        Ok(Self { medium, synced: AtomicBool::new(false), syncs })
    }

    fn of_disk(disk: Arc<dyn Disk>, syncs: Syncs) -> Self {
        Self { medium: Medium::Disk(disk), synced: AtomicBool::new(false), syncs }
    }

    /// Makes durable whatever an earlier owner wrote. redb locks a file before it asks for anything of it, so that owner
    /// writes no more.
    fn sync_first(&self) -> io::Result<()> {
        if self.synced.load(Ordering::Acquire) || self.syncs.are_off() {
            return Ok(());
        }
        match &self.medium {
            Medium::File { file, directory, .. } => {
                file.sync_all()?;
                file::sync_directory(directory)?;
            }
            Medium::Disk(disk) => disk.sync()?,
        }
        self.synced.store(true, Ordering::Release);
        Ok(())
    }

    fn file(&self) -> Result<&FileBackend, BackendError> {
        match &self.medium {
            Medium::File { backend, .. } => Ok(backend),
            Medium::Disk(_) => Err(BackendError::Unsupported),
        }
    }
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        self.sync_first()?;
        match &self.medium {
            Medium::File { backend, .. } => backend.len(),
            Medium::Disk(disk) => disk.len(),
        }
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.sync_first()?;
        match &self.medium {
            Medium::File { backend, .. } => backend.read(offset, out),
            Medium::Disk(disk) => disk.read(offset, out),
        }
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        match &self.medium {
            Medium::File { backend, .. } => backend.set_len(len),
            Medium::Disk(disk) => disk.set_len(len),
        }
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.syncs.are_off() {
            return Ok(());
        }
        match &self.medium {
            Medium::File { backend, .. } => backend.sync_data(),
            Medium::Disk(disk) => disk.sync(),
        }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &self.medium {
            Medium::File { backend, .. } => backend.write(offset, data),
            Medium::Disk(disk) => disk.write(offset, data),
        }
    }
    fn close(&self) -> io::Result<()> {
        match &self.medium {
            Medium::File { backend, .. } => backend.close(),
            Medium::Disk(_) => Ok(()),
        }
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file()?.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file()?.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file()?.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file()?.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file()?.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file()?.query_lock_range(start, end)
    }
}

fn builder(cache_bytes: usize) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes);
    builder
}

/// Creates a store where there is none.
fn create(path: &Path, cache_bytes: usize) -> io::Result<()> {
    file::create(path, |new| {
        let other = |error: Error| io::Error::other(crate::error::chain(&error));
        let location = Location::Path(Place::of(new, &File::open(new)?)?);
        let db = guard(path, || builder(cache_bytes).create(new)).map_err(other)?;
        let tables = Tables { db, path: path.to_owned(), location, syncs: Syncs::default() };
        tables.initialise().map_err(other)?;
        tables.db.close().map_err(io::Error::other)
    })
}

/// Whether a file that starts so may be a store; says whether its last owner left it open.
pub(crate) fn check_start(path: &Path, start: &[u8]) -> Result<bool> {
    match start.strip_prefix(&MAGIC) {
        Some(rest) => Ok(rest.first().is_some_and(|flags| flags & LEFT_OPEN != 0)),
        None => Err(Error::NotAStore {
            path: path.to_owned(),
            reason: if start.is_empty() {
                "it is empty; remove it to begin anew"
            } else {
                "it does not start as a redb file does"
            }
            .to_owned(),
        }),
    }
}

/// Whether somebody has the file open as a store; `None` where the system does not tell.
///
/// It asks for the lock of an owner where that can be asked for without taking it, so that an owner who opens the
/// file at this moment is not turned away. Where only whole files can be locked, it holds a shared lock for a moment.
pub(crate) fn is_open_elsewhere(file: &File) -> io::Result<Option<bool>> {
    let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
    match backend.query_lock_range(Bound::Included(0), Bound::Included(0)) {
        Ok(held) => return Ok(Some(held)),
        Err(BackendError::Unsupported) => {}
        // As a network disk may answer that has lost its lock service.
        Err(_) => return Ok(None),
    }
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| Some(false)),
        Err(TryLockError::WouldBlock) => Ok(Some(true)),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Runs what reads a file that may be damaged: redb may panic on one that was altered behind its back.
fn guard<T>(path: &Path, open: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T> {
    guarded(path, || match open() {
        Ok(opened) => Ok(opened),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(Error::InUse { path: path.to_owned() }),
        Err(DatabaseError::UpgradeRequired(found)) => Err(Error::NotAStore {
            path: path.to_owned(),
            reason: format!("it is a redb file of format {found}, which we never wrote"),
        }),
        Err(error) => Err(storage_error(path, "open", &error.into())),
    })
}

/// Runs a look at a file that may be damaged, or may change meanwhile; a panic is an error.
pub(crate) fn guarded<T>(path: &Path, look: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|panic| {
        Err(Error::Corrupt {
            what: path.display().to_string(),
            reason: format!("reading it failed: {}", crate::error::panic_text(panic.as_ref())),
        })
    })
}

fn storage_error(path: &Path, action: &str, error: &redb::Error) -> Error {
    let shown = path.display();
    match error {
        redb::Error::Corrupted(reason) => Error::Corrupt { what: shown.to_string(), reason: reason.clone() },
        // Every read is of bytes that must be there.
        redb::Error::Io(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => Error::Corrupt {
            what: shown.to_string(),
            reason: "it ends before what it should hold: it was cut short".to_owned(),
        },
        redb::Error::Io(cause) => {
            Error::io(format!("{action} the store {shown}"), io::Error::new(cause.kind(), cause.to_string()))
        }
        redb::Error::PreviousIo => Error::io(
            format!("{action} the store {shown}"),
            io::Error::other("an earlier operation on the disk failed; open the store again"),
        ),
        redb::Error::TableDoesNotExist(name) => {
            Error::Corrupt { what: shown.to_string(), reason: format!("table {name} is missing") }
        }
        other => Error::io(format!("{action} the store {shown}"), io::Error::other(other.to_string())),
    }
}

/// A key for people: text where it is text, bytes in hexadecimal where not.
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
