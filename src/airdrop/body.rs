//! One attempt at an attachment: it is opened, and its bytes are watched while the platform reads them.
//!
//! What is wrong with the bytes is an error of the read, so that nothing is uploaded that would have to be taken back:
//! none at all, too many for the platform, fewer or more than the source declared, a source that broke off, or a stream
//! that would outlive the invocation.

use std::fmt;
use std::io::{self, Read};

use crate::clock::Clock;
use crate::error::chain;
use crate::model::ArtifactId;
use crate::record::Attachment;

use super::deadlines::Deadlines;
use super::extractor::{AttachmentBody, AttachmentError};
use super::lanes::guarded;
use super::platform::{Body, Platform, PlatformError, Upload};

/// Bytes of a file that the platform takes.
const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// Why an upload, or its confirm, failed.
pub(crate) enum Failure {
    /// The source did not open the attachment.
    Source(AttachmentError),
    Body(Flaw),
    Platform(PlatformError),
    /// It would be the same however often it were tried.
    Final(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Source(AttachmentError::RateLimited { after }) => {
                write!(f, "the source asked to wait {} s", after.as_secs())
            }
            Failure::Source(AttachmentError::Gone { reason }) => write!(f, "gone: {reason}"),
            Failure::Source(AttachmentError::Denied { reason }) => write!(f, "denied: {reason}"),
            Failure::Source(AttachmentError::Temporary { source }) => f.write_str(&chain(source.as_ref())),
            Failure::Body(flaw) => flaw.fmt(f),
            Failure::Platform(error) => write!(f, "the upload failed: {error}"),
            Failure::Final(reason) => f.write_str(reason),
        }
    }
}

/// What was wrong with the bytes of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flaw {
    Empty,
    TooLarge,
    Shorter { declared: u64, found: u64 },
    Longer { declared: u64 },
    Broken(String),
    Aborted,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Empty => f.write_str("it is empty"),
            Flaw::TooLarge => write!(f, "it is over {BYTES_MAX} bytes, the most that the platform takes"),
            Flaw::Shorter { declared, found } => {
                write!(f, "it ended after {found} bytes, of {declared} that were declared")
            }
            Flaw::Longer { declared } => {
                write!(f, "it goes on after the {declared} bytes that were declared")
            }
            Flaw::Broken(reason) => write!(f, "it broke off: {reason}"),
            Flaw::Aborted => f.write_str("the invocation ended before it did"),
        }
    }
}

/// Opens an attachment and streams it to the platform. From [`Deadlines::abort_at`] on it is read no further.
pub(crate) fn upload_attachment(
    attachment: &Attachment,
    open: impl FnOnce() -> Result<AttachmentBody, AttachmentError>,
    platform: &dyn Platform,
    clock: &dyn Clock,
    deadlines: &Deadlines,
) -> Result<ArtifactId, Failure> {
    let body = open().map_err(Failure::Source)?;
    match body.length_bytes {
        Some(0) => return Err(Failure::Body(Flaw::Empty)),
        Some(bytes) if bytes > BYTES_MAX => return Err(Failure::Body(Flaw::TooLarge)),
        _ => {}
    }
    let content_type = body.content_type.as_deref().or(attachment.content_type.as_deref());
    let mut reader =
        Watched { reader: body.reader, declared: body.length_bytes, found: 0, clock, deadlines, flaw: None };
    let uploaded = guarded(|| {
        platform.upload(Upload {
            file_name: &attachment.file_name,
            content_type: content_type.unwrap_or("application/octet-stream"),
            body: Body::Stream { reader: &mut reader, length_bytes: body.length_bytes },
        })
    });
    match reader.flaw {
        Some(flaw) => Err(Failure::Body(flaw)),
        None => uploaded.map_err(Failure::Platform),
    }
}

/// The bytes of a stream, watched while the platform reads them: what is wrong with them is an error of the read, so
/// that nothing is uploaded that would have to be taken back.
struct Watched<'a> {
    reader: Box<dyn Read + Send>,
    declared: Option<u64>,
    found: u64,
    clock: &'a dyn Clock,
    deadlines: &'a Deadlines,
    flaw: Option<Flaw>,
}

impl Watched<'_> {
    fn read_on(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        if self.clock.elapsed() >= self.deadlines.abort_at() {
            return Err(Flaw::Aborted);
        }
        let broken = |error: io::Error| Flaw::Broken(error.to_string());
        let count = read(self.reader.as_mut(), buffer).map_err(broken)?;
        self.found += count as u64;
        match self.declared {
            _ if buffer.is_empty() => {}
            Some(declared) if self.found > declared => return Err(Flaw::Longer { declared }),
            Some(declared) if count == 0 && self.found < declared => {
                return Err(Flaw::Shorter { declared, found: self.found });
            }
            // A reader that knows the length may not read past it: look for more before the last bytes are handed over.
            Some(declared)
                if count > 0
                    && self.found == declared
                    && read(self.reader.as_mut(), &mut [0]).map_err(broken)? > 0 =>
            {
                return Err(Flaw::Longer { declared });
            }
            None if count == 0 && self.found == 0 => return Err(Flaw::Empty),
            None if self.found > BYTES_MAX => return Err(Flaw::TooLarge),
            _ => {}
        }
        Ok(count)
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(flaw) = &self.flaw {
            return Err(io::Error::other(flaw.to_string()));
        }
        self.read_on(buffer).map_err(|flaw| {
            let error = io::Error::other(flaw.to_string());
            self.flaw = Some(flaw);
            error
        })
    }
}

fn read(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A reader that says more than it was asked for is not believed.
            Ok(count) if count > buffer.len() => return Err(io::Error::other("it read more than asked for")),
            result => return result,
        }
    }
}
