//! Bytes in a redb database: a file, or a [`Disk`].
//!
//! Durability: commits are two-phase, each `fdatasync`ed before it returns, without quick-repair (redb's
//! `docs/design.md` explains both). A killed owner may leave writes that are not synced: the next owner would read
//! them, and a power failure would then take them back. So nothing is read before the file, and the name that leads
//! to it, are synced.
//!
//! After a failed commit, redb cannot know the state of its database: after an error of the disk, redb refuses every
//! later change, and [`Redb`] refuses every later view as well.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{
    BackendError, Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable,
    StorageBackend, TableDefinition, TableError,
};

use crate::error::{Error, Result};
use crate::store::disk::Disk;

use super::contract::{
    Backend, CommitError, EachRow, KeyRange, KeysAndValues, Limit, ReadTransaction, RowPage, WriteTransaction,
};
use super::store_file::{self, Place};

/// The first bytes of every redb file (redb `docs/design.md`, "Super-header").
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
/// A flag in the byte after them: set when a file is opened, cleared when it is closed.
const LEFT_OPEN: u8 = 2;
/// How often to try to open or create a file that others create, delete or replace meanwhile.
const OPEN_TRIES: u32 = 20;

type Table<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// An open database.
#[derive(Debug)]
pub(crate) struct Redb {
    db: Database,
    /// The path that errors name.
    path: PathBuf,
    location: Location,
    syncs: Syncs,
    /// A commit ended with an unknown outcome.
    failed: AtomicBool,
}

/// Where the bytes are, and where others find them.
#[derive(Debug)]
enum Location {
    Path(Place),
    #[cfg_attr(not(feature = "inspect"), expect(dead_code, reason = "made by who looks, and by tests"))]
    Disk(Arc<dyn Disk>),
}

impl Redb {
    /// Opens the file. If there is none, creates it with what `initialise` writes.
    pub(crate) fn open(
        path: &Path,
        cache_bytes: usize,
        syncs: &Syncs,
        initialise: impl Fn(&dyn Backend) -> Result<()>,
    ) -> Result<Self> {
        let shown = path.display();
        let failed = |error| Error::io(format!("open the store {shown}"), error);
        for _ in 0..OPEN_TRIES {
            let Some(mut file) = store_file::open(path)? else {
                match create(path, cache_bytes, &initialise) {
                    // Another process has created a store there by now, or a sweep removed ours as that of a dead
                    // process. Or nothing can be created at the path: it is a link to a path that cannot be created.
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound)
                            && store_file::parent(path).is_dir() => {}
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
            // redb checks every page against its checksum, also in a file that was closed cleanly. Without that, redb
            // 4.5 was seen to panic, abort or read wrong values if the file was damaged since.
            let open = || builder(cache_bytes).set_check_integrity_on_open(true).create_with_backend(storage);
            let db = guard(path, open)?;
            match place.ensure() {
                Ok(()) => return Ok(Self::new(db, path, Location::Path(place), syncs.clone())),
                // Replaced between the open and the lock.
                Err(Error::Replaced { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let reason = "it is created, deleted or replaced over and over, or its link leads nowhere";
        Err(failed(io::Error::other(reason)))
    }

    /// Opens another kind of disk; if it is empty, initialises it as [`Redb::open`] does. `path` is what errors name.
    #[cfg(feature = "testing")]
    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        cache_bytes: usize,
        syncs: Syncs,
        initialise: impl Fn(&dyn Backend) -> Result<()>,
    ) -> Result<Self> {
        let new = disk.is_empty().map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        let storage = Storage::of_disk(Arc::clone(&disk), syncs.clone());
        let db = guard(path, || builder(cache_bytes).create_with_backend(storage))?;
        let this = Self::new(db, path, Location::Disk(disk), syncs);
        if new {
            initialise(&this)?;
        }
        Ok(this)
    }

    /// Opens a file to read it, through a disk that keeps all writes to itself. With `verified`, every page is
    /// checked against its checksum before anything is read; without it, [`Backend::verify`] must be called first.
    #[cfg(feature = "inspect")]
    pub(crate) fn look(disk: Arc<dyn Disk>, path: &Path, cache_bytes: usize, verified: bool) -> Result<Self> {
        let storage = Storage::of_disk(Arc::clone(&disk), Syncs::default());
        let open = || builder(cache_bytes).set_check_integrity_on_open(verified).create_with_backend(storage);
        Ok(Self::new(guard(path, open)?, path, Location::Disk(disk), Syncs::default()))
    }

    fn new(db: Database, path: &Path, location: Location, syncs: Syncs) -> Self {
        Self { db, path: path.to_owned(), location, syncs, failed: AtomicBool::new(false) }
    }

    fn error(&self, action: &str, error: &redb::Error) -> Error {
        storage_error(&self.path, action, error)
    }

    fn check(&self, action: &str) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            Err(self.error(action, &redb::Error::PreviousIo))
        } else {
            Ok(())
        }
    }
}

/// redb on a file, which may be new, without anything of a store in it: for the suite that every backend passes.
///
/// # Errors
/// Those of opening a store.
#[cfg(feature = "testing")]
pub fn redb_on_file(path: impl AsRef<Path>) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Redb::open(path.as_ref(), 1024 * 1024, &Syncs::default(), |_| Ok(()))?))
}

/// Like [`redb_on_file`], on another kind of disk.
///
/// # Errors
/// Those of opening a store.
#[cfg(feature = "testing")]
pub fn redb_on_disk(disk: impl Disk) -> Result<Box<dyn Backend>> {
    let (disk, name) = (Arc::new(disk), Path::new("a disk"));
    Ok(Box::new(Redb::open_on(disk, name, 1024 * 1024, Syncs::default(), |_| Ok(()))?))
}

impl Backend for Redb {
    fn read(&self) -> Result<Box<dyn ReadTransaction + '_>> {
        self.check("read")?;
        let transaction = self.db.begin_read().map_err(|error| self.error("read", &error.into()))?;
        Ok(Box::new(View { redb: self, transaction }))
    }

    fn write(&self) -> Result<Box<dyn WriteTransaction + '_>> {
        let failed = |error: &redb::Error| self.error("begin a change of", error);
        self.check("begin a change of")?;
        self.syncs.begin();
        let mut transaction = self.db.begin_write().map_err(|error| failed(&error.into()))?;
        transaction.set_durability(Durability::Immediate).map_err(|error| failed(&error.into()))?;
        transaction.set_two_phase_commit(true);
        Ok(Box::new(Change { redb: self, transaction }))
    }

    fn ensure_in_place(&self) -> Result<()> {
        match &self.location {
            Location::Path(place) => place.ensure(),
            Location::Disk(disk) => match disk.is_in_place() {
                Ok(true) => Ok(()),
                Ok(false) => Err(Error::Replaced { path: self.path.clone() }),
                Err(error) => Err(Error::io(format!("look for the store {}", self.path.display()), error)),
            },
        }
    }

    #[cfg(feature = "inspect")]
    fn compact(&mut self) -> Result<()> {
        self.check("compact")?;
        while self.db.compact().map_err(|error| storage_error(&self.path, "compact", &error.into()))? {}
        Ok(())
    }

    #[cfg(feature = "inspect")]
    fn verify(&mut self) -> Result<Option<&'static str>> {
        let whole = guard(&self.path, || self.db.check_integrity())?;
        Ok((!whole).then_some("page allocation mismatch"))
    }
}

struct View<'a> {
    redb: &'a Redb,
    transaction: redb::ReadTransaction,
}

struct Change<'a> {
    redb: &'a Redb,
    transaction: redb::WriteTransaction,
}

impl ReadTransaction for View<'_> {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.transaction.open_table(Table::new(table)) {
            Ok(open) => self.redb.get(&open, key),
            Err(error) => self.redb.if_missing(error, None),
        }
    }

    fn scan(&self, table: &str, range: KeyRange<'_>, limit: Limit) -> Result<RowPage> {
        match self.transaction.open_table(Table::new(table)) {
            Ok(open) => self.redb.scan(&open, range, limit),
            Err(error) => self.redb.if_missing(error, RowPage::default()),
        }
    }

    /// A view has nothing written to it, so its rows are read where they are.
    fn each(&self, table: &str, range: KeyRange<'_>, each: &mut EachRow<'_>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let open = match self.transaction.open_table(Table::new(table)) {
            Ok(open) => open,
            Err(error) => return self.redb.if_missing(error, ()),
        };
        let fail = |error: redb::StorageError| self.redb.error("read", &error.into());
        for row in open.range::<&[u8]>(bounds(range)).map_err(fail)? {
            let (key, value) = row.map_err(fail)?;
            if !each(key.value(), value.value())? {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Redb {
    fn get(
        &self,
        table: &impl ReadableTable<&'static [u8], &'static [u8]>,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let value = table.get(key).map_err(|error| self.error("read", &error.into()))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(
        &self,
        table: &impl ReadableTable<&'static [u8], &'static [u8]>,
        range: KeyRange<'_>,
        limit: Limit,
    ) -> Result<RowPage> {
        if range.is_empty() {
            return Ok(RowPage::default());
        }
        let fail = |error: redb::StorageError| self.error("read", &error.into());
        let rows = table.range::<&[u8]>(bounds(range)).map_err(fail)?;
        let copied = rows.map(|row| {
            let (key, value) = row.map_err(fail)?;
            Ok((key.value().to_vec(), value.value().to_vec()))
        });
        RowPage::collect(copied, limit)
    }

    /// A table that was never written is empty.
    fn if_missing<T>(&self, error: TableError, empty: T) -> Result<T> {
        match error {
            TableError::TableDoesNotExist(_) => Ok(empty),
            TableError::TableTypeMismatch { table, .. } | TableError::TableIsMultimap(table) => {
                let reason = format!("its table {table} has another type");
                Err(Error::NotAStore { path: self.path.clone(), reason })
            }
            error => Err(self.error("read", &error.into())),
        }
    }
}

impl Change<'_> {
    fn table(&self, table: &str, action: &str) -> Result<redb::Table<'_, &'static [u8], &'static [u8]>> {
        self.transaction.open_table(Table::new(table)).map_err(|error| self.redb.error(action, &error.into()))
    }
}

impl ReadTransaction for Change<'_> {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.redb.get(&self.table(table, "read")?, key)
    }

    fn scan(&self, table: &str, range: KeyRange<'_>, limit: Limit) -> Result<RowPage> {
        self.redb.scan(&self.table(table, "read")?, range, limit)
    }
}

impl WriteTransaction for Change<'_> {
    fn put(&self, table: &str, key: &[u8], value: &[u8]) -> Result<()> {
        let mut table = self.table(table, "write")?;
        let put = table.insert(key, value);
        put.map(drop).map_err(|error| self.redb.error("write", &error.into()))
    }

    // redb does work of its own whenever a table is opened and closed.
    fn put_all(&self, table: &str, rows: &mut KeysAndValues<'_>) -> Result<()> {
        let mut table = self.table(table, "write")?;
        for row in rows {
            let (key, value) = row?;
            let put = table.insert(key.as_slice(), value.as_slice());
            put.map(drop).map_err(|error| self.redb.error("write", &error.into()))?;
        }
        Ok(())
    }

    fn remove(&self, table: &str, key: &[u8]) -> Result<()> {
        let mut table = self.table(table, "write")?;
        let removed = table.remove(key);
        removed.map(drop).map_err(|error| self.redb.error("write", &error.into()))
    }

    fn remove_range(&self, table: &str, range: KeyRange<'_>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut table = self.table(table, "write")?;
        let removed = table.retain_in::<&[u8], _>(bounds(range), |_, _| false);
        removed.map_err(|error| self.redb.error("write", &error.into()))
    }

    fn commit(self: Box<Self>) -> Result<(), CommitError> {
        let redb = self.redb;
        self.transaction.commit().map_err(|error| {
            let is_known = matches!(error, redb::CommitError::TransactionPoisoned);
            let error = redb.error("commit a change to", &error.into());
            if is_known {
                return CommitError::NotApplied(error);
            }
            redb.failed.store(true, Ordering::Release);
            CommitError::Unknown(error)
        })
    }
}

fn bounds(range: KeyRange<'_>) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Included(range.from), range.end.map_or(Bound::Unbounded, Bound::Excluded))
}

/// A file or a [`Disk`], as redb's storage. A disk belongs to the caller, so only a file is locked.
#[derive(Debug)]
struct Storage {
    medium: Medium,
    /// The writes of earlier owners are durable.
    synced: AtomicBool,
    syncs: Syncs,
}

/// Whether syncs reach the disk: always, unless a negative control disables the rule that only durable bytes are
/// read. Then they do so from the first change on.
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
#[allow(clippy::unused_self, reason = "as above, where there is something to look at")]
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
    File {
        backend: FileBackend,
        file: File,
        directory: PathBuf,
    },
    #[cfg_attr(not(feature = "inspect"), expect(dead_code, reason = "made by who looks, and by tests"))]
    Disk(Arc<dyn Disk>),
}

impl Storage {
    fn of_file(file: File, place: &Place, syncs: Syncs) -> io::Result<Self> {
        let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        let medium = Medium::File { backend, file, directory: place.directory()? };
        Ok(Self { medium, synced: AtomicBool::new(false), syncs })
    }

    #[cfg(feature = "inspect")]
    fn of_disk(disk: Arc<dyn Disk>, syncs: Syncs) -> Self {
        Self { medium: Medium::Disk(disk), synced: AtomicBool::new(false), syncs }
    }

    /// Makes durable whatever an earlier owner wrote. redb locks a file before its first request, so that owner
    /// writes no more.
    fn sync_first(&self) -> io::Result<()> {
        if self.synced.load(Ordering::Acquire) || self.syncs.are_off() {
            return Ok(());
        }
        match &self.medium {
            Medium::File { file, directory, .. } => {
                store_file::sync_file(file)?;
                store_file::sync_directory(directory)?;
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
fn create(
    path: &Path,
    cache_bytes: usize,
    initialise: impl Fn(&dyn Backend) -> Result<()>,
) -> io::Result<()> {
    store_file::create(path, |new| {
        let other = |error: Error| io::Error::other(crate::error::chain(&error));
        let location = Location::Path(Place::of(new, &File::open(new)?)?);
        let db = guard(path, || builder(cache_bytes).create(new)).map_err(other)?;
        let this = Redb::new(db, path, location, Syncs::default());
        initialise(&this).map_err(other)?;
        this.db.close().map_err(io::Error::other)
    })
}

/// Whether a file with these first bytes may be a store; returns whether its last owner left it open.
pub(crate) fn check_start(path: &Path, start: &[u8]) -> Result<bool> {
    match start.strip_prefix(&MAGIC) {
        Some(rest) => Ok(rest.first().is_some_and(|flags| flags & LEFT_OPEN != 0)),
        None => Err(Error::NotAStore {
            path: path.to_owned(),
            reason: if start.is_empty() {
                "it is empty; remove it to start over"
            } else {
                "it does not start as a redb file does"
            }
            .to_owned(),
        }),
    }
}

/// Whether a process has the file open as a store; `None` if the system cannot say.
///
/// It asks whether an owner's lock could be taken, without taking it where the system allows that: so an owner who
/// opens the file at this moment is not refused. If only whole files can be locked, it holds a shared lock for a
/// moment.
#[cfg(feature = "inspect")]
pub(crate) fn is_open_elsewhere(file: &File) -> io::Result<Option<bool>> {
    let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
    match backend.query_lock_range(Bound::Included(0), Bound::Included(0)) {
        Ok(held) => return Ok(Some(held)),
        Err(BackendError::Unsupported) => {}
        // For example a network disk that has lost its lock service.
        Err(_) => return Ok(None),
    }
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| Some(false)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(Some(true)),
        Err(std::fs::TryLockError::Error(_)) => Ok(None),
    }
}

/// Runs code that reads a possibly damaged file: redb may panic if the file was altered by something else.
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

/// Runs code that reads a possibly damaged file, or one that may change meanwhile; a panic becomes an error.
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
        redb::Error::Corrupted(reason) => {
            // redb's "primary" is the slot of the newest commit.
            let is_commit = reason.starts_with("Primary ");
            let reason =
                if is_commit { "pages of its newest commit do not match their checksums" } else { reason };
            Error::Corrupt { what: shown.to_string(), reason: reason.to_owned() }
        }
        // redb reads only bytes that must exist.
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
