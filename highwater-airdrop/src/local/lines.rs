//! A file to which only whole lines are added.
//!
//! `end` is the length of the known part: whole lines, durable. What follows was written by another handle, or by an
//! act that died. The owner reads it ([`Lines::unread`]), decides how much of it counts, and truncates the rest
//! ([`Lines::settle`]). Methods that write must be called with the directory's lock held.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Bytes that are searched at a time for the last newline.
const WINDOW_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    end: u64,
}

impl Lines {
    /// Opens the file, or creates it. None of it is known yet.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        Ok(Self { path, file, end: 0 })
    }

    /// The length of the known part.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The length of the file, which is never shorter than the known part.
    pub(super) fn length(&self) -> Result<u64> {
        let length = self.file.metadata().map_err(|error| self.failed("look at", error))?.len();
        if length < self.end {
            return Err(self.damaged(format!("it had {} bytes and now has {length}", self.end)));
        }
        Ok(length)
    }

    /// Everything after the known part.
    pub(super) fn unread(&mut self) -> Result<Vec<u8>> {
        let length = self.length()?;
        self.bytes(self.end, length - self.end)
    }

    /// `count` bytes from `at`; fewer if the file ends before.
    pub(super) fn bytes(&mut self, at: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if count > 0 {
            let read = self.file.seek(SeekFrom::Start(at));
            let read = read.and_then(|_| (&self.file).take(count).read_to_end(&mut bytes));
            read.map_err(|error| self.failed("read", error))?;
        }
        Ok(bytes)
    }

    /// The end of the last whole line at or after `from`; `from` if there is none.
    pub(super) fn last_line_end(&mut self, from: u64) -> Result<u64> {
        let mut to = self.length()?;
        while to > from {
            let window = from.max(to.saturating_sub(WINDOW_BYTES));
            let bytes = self.bytes(window, to - window)?;
            if let Some(newline) = bytes.iter().rposition(|byte| *byte == b'\n') {
                return Ok(window + newline as u64 + 1);
            }
            to = window;
        }
        Ok(from)
    }

    /// Makes everything before `end` known, and truncates what follows.
    ///
    /// # Durability
    /// When this returns `Ok`, the known part survives power loss, whoever wrote it.
    pub(super) fn settle(&mut self, end: u64) -> Result<()> {
        if self.length()? > end {
            self.file.set_len(end).map_err(|error| self.failed("cut the torn end of", error))?;
        } else if end == self.end {
            return Ok(());
        }
        self.file.sync_all().map_err(|error| self.failed("sync", error))?;
        self.end = end;
        Ok(())
    }

    /// Adds a line, which includes its newline.
    ///
    /// # Durability
    /// When this returns `Ok`, the line survives power loss. If it fails, the file is truncated again if possible; if
    /// not, the next [`Lines::settle`] decides.
    pub(super) fn add(&mut self, line: &[u8]) -> Result<()> {
        debug_assert!(line.ends_with(b"\n"));
        let written = self.file.seek(SeekFrom::Start(self.end));
        let written = written.and_then(|_| self.file.write_all(line)).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.end += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.take_back(self.end);
                Err(self.failed("append to", error))
            }
        }
    }

    /// Removes what follows `end`, if possible.
    pub(super) fn take_back(&mut self, end: u64) {
        self.end = end;
        // A failure does no harm: before the next act, what is left is handled like any torn end.
        let _ = self.file.set_len(end);
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::NotALocal { path: self.path.clone(), reason: reason.into() }
    }

    fn failed(&self, action: &str, error: io::Error) -> Error {
        Error::io(format!("{action} {}", self.path.display()), error)
    }
}
