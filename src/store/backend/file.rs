//! The file of a store: created whole, opened only if it is a regular file, and still the one at its path.
//!
//! Crash-safe creation: redb killed while it creates a file can leave one that it never opens again. So a new store
//! is written under a temporary name in the same directory, closed, given its own name (never over a file that is
//! there), and the directory is synced. What a killed creator leaves is removed by the next one.
//!
//! A file that is deleted or replaced while it is open lives on for whoever has it open, without a name; the next
//! process finds none, or another, and begins anew. [`Place::ensure`] tells the two apart by device and inode, which
//! no two files have at one time. Where there are none (other systems than Unix), it sees only whether the path leads
//! to a regular file, so a deleted store is noticed there and a replaced one is not.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Opens a store to own it; `None` if there is none.
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

/// Opens a store to look at it.
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

/// Refuses anything but a regular file before it is opened: opening a pipe waits for its other end, and a device may do
/// anything.
fn open_regular(path: &Path, options: &OpenOptions) -> Result<File, Refusal> {
    let is_regular = |about: &Metadata| match about {
        about if about.is_file() => Ok(()),
        about if about.is_dir() => Err(Refusal::Irregular("it is a directory")),
        _ => Err(Refusal::Irregular("it is not a regular file")),
    };
    is_regular(&std::fs::metadata(path).map_err(Refusal::Io)?)?;
    let file = options.open(path).map_err(Refusal::Io)?;
    // It may have been replaced since.
    is_regular(&file.metadata().map_err(Refusal::Io)?)?;
    Ok(file)
}

/// Where an open file was found.
#[derive(Debug)]
pub(crate) struct Place {
    /// Absolute, so that it is the same wherever the process goes.
    path: PathBuf,
    identity: Identity,
}

impl Place {
    pub(crate) fn of(path: &Path, file: &File) -> io::Result<Self> {
        Ok(Self { path: std::path::absolute(path)?, identity: Identity::of(&file.metadata()?) })
    }

    /// Fails unless the path leads to the file still.
    ///
    /// # Errors
    /// `Replaced` if it leads to nothing, or to something else; `Io` if that cannot be told.
    pub(crate) fn ensure(&self) -> Result<()> {
        let replaced = || Error::Replaced { path: self.path.clone() };
        match std::fs::metadata(&self.path) {
            Ok(about) if about.is_file() && Identity::of(&about) == self.identity => Ok(()),
            Ok(_) => Err(replaced()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(replaced()),
            Err(error) => Err(Error::io(format!("look for the store {}", self.path.display()), error)),
        }
    }

    /// The directory that the file itself is in, wherever a link to it is.
    pub(crate) fn directory(&self) -> io::Result<PathBuf> {
        Ok(parent(&self.path.canonicalize()?).to_owned())
    }
}

/// What a file has in common with no other that exists at the same time.
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

/// Creates a store where there is none, so that a kill at any moment leaves none or a whole one. `fill` writes it to
/// the path that it is given, and closes it.
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

/// Removes what killed creators left: files of this prefix that nobody has locked.
fn sweep(directory: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix)
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
        {
            // If it cannot be removed it is only in the way of nobody.
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

/// Makes what a file holds durable.
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    #[cfg(all(test, unix))]
    tests::note_file(file)?;
    file.sync_all()
}

/// Makes the names in a directory durable, where the file system knows such a thing.
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

/// What a power failure leaves of a new store. No test can take the power from this machine, so each sync is noted with
/// what it makes durable, and what may be left at any moment follows from that.
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
        /// Of a file, by its inode: what it holds.
        File(u64, Vec<u8>),
        /// Of a directory: its names, and the inodes that they lead to.
        Directory(PathBuf, BTreeMap<String, u64>),
    }

    thread_local! {
        /// Those of this thread, in their order.
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
        // What goes away meanwhile is no store.
        let entries = fs::read_dir(directory)?.flatten();
        let names = entries
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.metadata().ok()?.ino())));
        let names = names.collect();
        SYNCS.with_borrow_mut(|syncs| syncs.push(Sync::Directory(directory.to_owned(), names)));
        Ok(())
    }

    /// What was synced while something was done.
    fn syncs_of<T>(act: impl FnOnce() -> T) -> (Vec<Sync>, T) {
        SYNCS.take();
        let done = act();
        (SYNCS.take(), done)
    }

    /// Whether a power failure leaves no file or a whole one before a new file was made, and a whole one after.
    fn survives_power_loss(syncs: &[Sync], path: &Path) -> Result<(), &'static str> {
        let whole = fs::read(path).unwrap();
        let inode = fs::metadata(path).unwrap().ino();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_whole = |sync: &Sync| matches!(sync, Sync::File(of, bytes) if *of == inode && *bytes == whole);
        let is_named = |sync: &Sync| {
            matches!(sync, Sync::Directory(of, names)
                if *of == parent(path).canonicalize().unwrap() && names.get(name) == Some(&inode))
        };
        // A name may be durable as soon as it is given, so the file must be by then.
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

        // The controls: without the sync of the file, of the directory, or with either at the wrong time.
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

    /// A store that a killed creator has named, and that it did not live to make durable: whoever opens it does so, with
    /// the directory that the file is in, not the one of a link to it.
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
