//! Files that are not stores: reads a worker state, and replaces a file with new content, all of it or none.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// The text of a regular file that begins like a JSON object, as a worker state does. `None` if the file begins in another
/// way, is not a regular file, or does not exist.
pub(crate) fn worker_state(path: &Path) -> io::Result<Option<String>> {
    // Opening a pipe would wait for its other end.
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

/// Replaces a file, and keeps its permissions. If the path is not a regular file (a pipe, for example), the bytes are
/// written to it.
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
    // If the directory cannot be synced, the rename is as durable as the file system makes it.
    drop(File::open(directory).and_then(|directory| directory.sync_all()));
    Ok(())
}

/// A temporary file is readable by its owner only; a new file gets the usual permissions.
#[cfg(unix)]
fn open_to_readers(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn open_to_readers(_: &File) -> io::Result<()> {
    Ok(())
}
