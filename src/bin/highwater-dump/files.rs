//! Files that are not stores: a worker state that is read, and what is written in the place of another file, whole or not at
//! all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// The text of a file that may be a worker state: it is JSON, and no store. `None` of any other, and of one that is not there.
pub(crate) fn worker_state(path: &Path) -> io::Result<Option<String>> {
    // To open a pipe would wait for its other end.
    if !fs::metadata(path).is_ok_and(|about| about.is_file()) {
        return Ok(None);
    }
    let Ok(mut file) = File::open(path) else { return Ok(None) };
    let mut start = [0; 64];
    let read = file.read(&mut start)?;
    if !start[..read].trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    fs::read_to_string(path).map(Some)
}

/// Puts bytes in the place of a file, which keeps its permissions. What is no regular file, as a pipe, is written to.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let was = fs::metadata(path).ok();
    if was.as_ref().is_some_and(|was| !was.is_file()) {
        return fs::write(path, bytes);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    new.write_all(bytes)?;
    match was {
        Some(was) => new.as_file().set_permissions(was.permissions())?,
        None => open_to_readers(new.as_file())?,
    }
    new.as_file().sync_all()?;
    new.persist(path).map_err(|error| error.error)?;
    // Where a directory cannot be synced, the name is as durable as the system makes it.
    drop(File::open(directory).and_then(|directory| directory.sync_all()));
    Ok(())
}

/// A temporary file is its maker's alone; a new file is to be as others are.
#[cfg(unix)]
fn open_to_readers(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn open_to_readers(_: &File) -> io::Result<()> {
    Ok(())
}
