//! The file of a store: it is created whole, opened only if it is a regular file, and checked to be still the one at
//! its path.
//!
//! Crash-safe creation: if redb is killed while it creates a file, it can leave one that it can never open again. So
//! a new store is written under a temporary name in the same directory and closed. Then it gets its own name (never
//! over an existing file), and the directory is synced. The next creator removes what a killed one left.
//!
//! A file that is deleted or replaced while it is open remains, without a name, for the process that has it open; the
//! next process finds no file, or another one, and starts over. [`Place::ensure`] detects this by device and inode,
//! which no two existing files share. On systems that have neither (all but Unix), it checks only that the path leads
//! to a regular file: there a deleted store is noticed and a replaced one is not.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Opens a store as its owner; `None` if there is none.
///
/// # Errors
/// `NotAStore` for anything but a regular file, or a link to one; `Io`.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    match open_regular(path, OpenOptions::new().read(true).write(true)) {
        Ok(file) => Ok(Some(file)),
        Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(refusal) => Err(refusal.into_error("open", path)),
    }
}

/// Opens a store to read it.
///
/// # Errors
/// `NotAStore` for anything but a regular file, or a link to one; `Io`, also if there is none.
#[cfg(feature = "inspect")]
pub(crate) fn open_to_read(path: &Path) -> Result<File> {
    open_regular(path, OpenOptions::new().read(true)).map_err(|refusal| refusal.into_error("read", path))
}

/// Why a file was not opened.
enum Refusal {
    Irregular(&'static str),
    Io(io::Error),
}

impl Refusal {
    fn into_error(self, action: &str, path: &Path) -> Error {
        match self {
            Refusal::Irregular(reason) => {
                Error::NotAStore { path: path.to_owned(), reason: reason.to_owned() }
            }
            Refusal::Io(error) => Error::io(format!("{action} the store {}", path.display()), error),
        }
    }
}

/// Refuses anything but a regular file before it is opened: opening a pipe waits for its other end, and opening a
/// device may have any effect.
fn open_regular(path: &Path, options: &OpenOptions) -> Result<File, Refusal> {
    let is_regular = |about: &Metadata| match about {
        about if about.is_file() => Ok(()),
        about if about.is_dir() => Err(Refusal::Irregular("it is a directory")),
        _ => Err(Refusal::Irregular("it is not a regular file")),
    };
    is_regular(&std::fs::metadata(path).map_err(Refusal::Io)?)?;
    let file = options.open(path).map_err(Refusal::Io)?;
    // The file may have been replaced in between.
    is_regular(&file.metadata().map_err(Refusal::Io)?)?;
    Ok(file)
}

/// Where an open file was found.
#[derive(Debug)]
pub(crate) struct Place {
    /// Absolute, so that it stays the same if the process changes its directory.
    path: PathBuf,
    identity: Identity,
}

impl Place {
    pub(crate) fn of(path: &Path, file: &File) -> io::Result<Self> {
        Ok(Self { path: std::path::absolute(path)?, identity: Identity::of(&file.metadata()?) })
    }

    /// Fails unless the path still leads to the file.
    ///
    /// # Errors
    /// `Replaced` if it leads to nothing, or to something else; `Io` if this cannot be determined.
    pub(crate) fn ensure(&self) -> Result<()> {
        let replaced = || Error::Replaced { path: self.path.clone() };
        match std::fs::metadata(&self.path) {
            Ok(about) if about.is_file() && Identity::of(&about) == self.identity => Ok(()),
            Ok(_) => Err(replaced()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(replaced()),
            Err(error) => Err(Error::io(format!("look for the store {}", self.path.display()), error)),
        }
    }

    /// The directory that contains the file itself, also if the path is a link.
    pub(crate) fn directory(&self) -> io::Result<PathBuf> {
        Ok(parent(&self.path.canonicalize()?).to_owned())
    }
}

/// Identifies a file among all that exist at the same time.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    #[cfg(unix)]
    device_and_inode: (u64, u64),
}

impl Identity {
    #[cfg(unix)]
    fn of(about: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { device_and_inode: (about.dev(), about.ino()) }
    }

    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Self {
        Self {}
    }
}

/// Creates a store where there is none; a kill at any moment leaves no store or a whole one. `fill` writes the store
/// to the path that it is given, and closes it.
pub(crate) fn create(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let directory = parent(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!(".{name}.new-");
    sweep(directory, &prefix);
    let new = tempfile::Builder::new().prefix(&prefix).tempfile_in(directory)?;
    fill(new.path())?;
    sync_file(new.as_file())?;
    new.persist_noclobber(path).map_err(|error| error.error)?;
    sync_directory(directory)
}

/// Removes what killed creators left: files with this prefix that nobody has locked.
fn sweep(directory: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix)
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
        {
            // If it cannot be removed, it does no harm.
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

/// Makes the contents of a file durable.
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    #[cfg(all(test, unix))]
    tests::note_file(file)?;
    file.sync_all()
}

/// Makes the names in a directory durable, if the file system supports that.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    #[cfg(all(test, unix))]
    tests::note_directory(directory)?;
    match File::open(directory)?.sync_all() {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        result => result,
    }
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What a power failure leaves of a new store. A test cannot cut the power, so each sync is recorded with what it
/// makes durable. What may be left at any moment follows from the record.
#[cfg(all(test, unix))]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::super::redb::{Redb, Syncs};
    use super::*;

    /// A sync, with what it makes durable.
    #[derive(Debug, Clone)]
    enum Sync {
        /// A file, by its inode, and its content.
        File(u64, Vec<u8>),
        /// A directory, its names, and the inode of each.
        Directory(PathBuf, BTreeMap<String, u64>),
    }

    thread_local! {
        /// The syncs of this thread, in their order.
        static SYNCS: RefCell<Vec<Sync>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note_file(file: &File) -> io::Result<()> {
        let about = file.metadata()?;
        let mut bytes = vec![0; usize::try_from(about.len()).unwrap()];
        file.read_exact_at(&mut bytes, 0)?;
        SYNCS.with_borrow_mut(|syncs| syncs.push(Sync::File(about.ino(), bytes)));
        Ok(())
    }

    pub(super) fn note_directory(directory: &Path) -> io::Result<()> {
        // An entry that disappears meanwhile is not the store.
        let entries = fs::read_dir(directory)?.flatten();
        let names = entries
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.ino())));
        let names = names.collect();
        SYNCS.with_borrow_mut(|syncs| syncs.push(Sync::Directory(directory.to_owned(), names)));
        Ok(())
    }

    /// The syncs made during `act`.
    fn syncs_of<T>(act: impl FnOnce() -> T) -> (Vec<Sync>, T) {
        SYNCS.take();
        let done = act();
        (SYNCS.take(), done)
    }

    /// Whether a power failure before the first store was complete leaves no file or a whole one, and a whole one
    /// afterwards.
    fn survives_power_loss(syncs: &[Sync], path: &Path) -> Result<(), &'static str> {
        let whole = fs::read(path).unwrap();
        let inode = fs::metadata(path).unwrap().ino();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_whole = |sync: &Sync| matches!(sync, Sync::File(of, bytes) if *of == inode && *bytes == whole);
        let is_named = |sync: &Sync| {
            matches!(sync, Sync::Directory(of, names)
                if *of == parent(path).canonicalize().unwrap() && names.get(name) == Some(&inode))
        };
        // A name may become durable as soon as it is given, so the file must be durable before.
        let named = syncs.iter().position(is_named).ok_or("none may be left")?;
        let before = syncs.get(..named).unwrap_or_default();
        if before.iter().any(is_whole) { Ok(()) } else { Err("half of one may be left") }
    }

    #[test]
    fn a_store_that_was_created_is_left_whole_by_a_power_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("state.redb");
        let (syncs, made) = syncs_of(|| create(&path, |new| fs::write(new, b"a whole store")));
        made.unwrap();
        survives_power_loss(&syncs, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"a whole store");

        // Negative controls: without the sync of the file or of the directory, or with either at the wrong time.
        let [file, directory] = &syncs[..] else { panic!("{syncs:?}") };
        let of = |syncs: &[&Sync]| {
            survives_power_loss(&syncs.iter().map(|sync| (*sync).clone()).collect::<Vec<_>>(), &path)
        };
        assert_eq!(of(&[directory]), Err("half of one may be left"));
        assert_eq!(of(&[directory, file]), Err("half of one may be left"));
        assert_eq!(of(&[file]), Err("none may be left"));
        let early = Sync::Directory(parent(&path).to_owned(), BTreeMap::new());
        assert_eq!(of(&[file, &early]), Err("none may be left"));
        let half = Sync::File(fs::metadata(&path).unwrap().ino(), b"a whole".to_vec());
        assert_eq!(of(&[&half, directory]), Err("half of one may be left"));
    }

    /// A killed creator has named a store without making it durable. Whoever opens the store makes it durable,
    /// together with the directory that contains the file, not the directory of a link to it.
    #[test]
    fn whoever_opens_a_store_makes_it_and_its_name_durable() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().canonicalize().unwrap().join("inner");
        fs::create_dir(&inner).unwrap();
        let path = inner.join("state.redb");
        let open = |path: &Path| Redb::open(path, 1 << 20, &Syncs::new(false), |_| Ok(())).unwrap();
        drop(open(&path));
        let link = dir.path().join("link.redb");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for opened in [&path, &link] {
            let found = fs::read(&path).unwrap();
            let (syncs, store) = syncs_of(|| open(opened));
            drop(store);
            let [Sync::File(inode, bytes), Sync::Directory(directory, names)] = &syncs[..] else {
                panic!("{} syncs", syncs.len())
            };
            assert_eq!((*inode, directory), (fs::metadata(&path).unwrap().ino(), &inner));
            assert_eq!(names.get("state.redb"), Some(inode));
            assert!(*bytes == found, "it is synced as it was found");
        }
    }
}
