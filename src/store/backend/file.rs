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
    new.as_file().sync_all()?;
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

/// Makes the names in a directory durable, where the file system knows such a thing.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
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
