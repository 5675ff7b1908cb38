//! One attempt at an attachment: it is opened, and its bytes are checked while the platform reads them.
//!
//! A fault in the bytes is an error of the read, so that no upload has to be undone: no bytes at all, too many for
//! the platform, fewer or more than the source declared, a source that broke off, or a stream that would outlive the
//! invocation.

use std::fmt;
use std::io::{self, Read};

use crate::clock::{Clock, in_words};
use crate::error::chain;
use crate::model::ArtifactId;
use crate::record::Attachment;

use super::deadlines::Deadlines;
use super::extractor::AttachmentBody;
use super::lanes::guarded;
use super::platform::{Body, Platform, PlatformError, Upload};
use super::source_error::AttachmentError;

/// The largest file that the platform accepts.
const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// Why an upload, or its confirm, failed.
pub(crate) enum Failure {
    /// The source did not open the attachment.
    Source(AttachmentError),
    Body(Flaw),
    Platform(PlatformError),
    /// Another attempt would have the same result.
    Final(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Source(AttachmentError::RateLimited { after }) => {
                write!(f, "the source asked to wait {}", in_words(after.as_secs()))
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

/// A fault in the bytes of a stream.
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
            Flaw::TooLarge => write!(f, "it is over {BYTES_MAX} bytes, the limit of the platform"),
            Flaw::Shorter { declared, found } => {
                write!(f, "it ended after {found} of {declared} declared bytes")
            }
            Flaw::Longer { declared } => {
                write!(f, "it continues after the {declared} declared bytes")
            }
            Flaw::Broken(reason) => write!(f, "it broke off: {reason}"),
            Flaw::Aborted => f.write_str("the invocation ended before it did"),
        }
    }
}

/// Opens an attachment and streams it to the platform. It is read no further from the elapsed time `abort_at` on.
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

/// The bytes of a stream, checked while the platform reads them: a fault in them is an error of the read, so that no
/// upload has to be undone.
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
            // A reader that knows the length may not read past it, so look for more bytes before the last ones are
            // returned.
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
            // A reader that claims to have read more than it was asked for is not believed.
            Ok(count) if count > buffer.len() => return Err(io::Error::other("it read more than asked for")),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::platform::SealedMessage;
    use super::*;
    use crate::airdrop::StopToken;
    use crate::clock::VirtualClock;

    /// A platform that reads what it is given, and takes it.
    struct Takes;

    impl Platform for Takes {
        fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
            let Body::Stream { reader, .. } = upload.body else { unreachable!("it is a stream") };
            let failed = |error: io::Error| PlatformError::Refused { status: 400, reason: error.to_string() };
            io::copy(reader, &mut io::sink()).map_err(failed)?;
            Ok(ArtifactId::new("artifact").unwrap())
        }
        fn confirm(&self, _: &ArtifactId) -> Result<(), PlatformError> {
            Ok(())
        }
        fn send(&self, _: &SealedMessage) -> Result<(), PlatformError> {
            Ok(())
        }
    }

    /// The result of uploading `bytes` bytes if `declared` are declared.
    fn upload(bytes: usize, declared: u64) -> Result<(), String> {
        let clock = VirtualClock::at(chrono::DateTime::UNIX_EPOCH);
        let hour = Duration::from_secs(3_600);
        let deadlines = Deadlines::new(Arc::new(clock.clone()), hour, hour, StopToken::new(), hour);
        let attachment = Attachment::new("A-1", "https://files.example/1", "1.bin", "I-1");
        let open = || Ok(AttachmentBody::new(io::Cursor::new(vec![7; bytes])).length(declared));
        let uploaded = upload_attachment(&attachment, open, &Takes, &clock, &deadlines);
        uploaded
            .map(|artifact| assert_eq!(artifact.as_str(), "artifact"))
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_is_shorter_or_longer_than_declared_is_told_by_both_lengths() {
        assert_eq!(upload(9, 9), Ok(()));
        assert_eq!(upload(4, 9).unwrap_err(), "it ended after 4 of 9 declared bytes");
        assert_eq!(upload(10, 9).unwrap_err(), "it continues after the 9 declared bytes");
    }

    #[test]
    fn two_gibibytes_are_the_most_that_may_be_declared() {
        let most = 2_147_483_648;
        // It is read, so it is not refused for its length.
        assert_eq!(upload(1, most).unwrap_err(), "it ended after 1 of 2147483648 declared bytes");
        assert_eq!(
            upload(1, most + 1).unwrap_err(),
            "it is over 2147483648 bytes, the limit of the platform"
        );
    }
}
