//! Why a source returned no page, or did not open an attachment; and which HTTP status means which of these.

use std::fmt;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::error::BoxError;

use super::http_status::retry_after as wait_of;
use super::message::ErrorCode;

/// The wait after a 429 without `Retry-After`.
const TOO_MANY_WAIT: Duration = Duration::from_secs(60);

/// Why there is no page. Any error turns into [`SourceError::Failed`] with `?`; an HTTP status becomes one with
/// [`SourceError::from_status`].
#[derive(Debug)]
#[non_exhaustive]
pub enum SourceError {
    /// The source asked to wait. A short wait takes place in the invocation, as
    /// [`Serve::wait_up_to`](super::Serve::wait_up_to) describes; a longer one ends it with DELAY.
    RateLimited {
        /// How long. More than 24 hours counts as 24 hours.
        after: Duration,
    },
    /// It may succeed in a moment. The request is repeated after 1, 2 and 4 seconds, unless
    /// [`Serve::wait_up_to`](super::Serve::wait_up_to) is shorter than that, or there is no time left. After the
    /// fourth failure in a row, it is [`SourceError::Failed`].
    Temporary {
        /// The cause. Its text goes into the ERROR.
        source: BoxError,
    },
    /// Anything else. The answer is ERROR.
    Failed {
        /// The platform's code for it, if it has one.
        code: Option<ErrorCode>,
        /// The HTTP status of the source's answer, if that is the cause.
        status: Option<u16>,
        /// The cause. Its text goes into the ERROR.
        source: BoxError,
    },
}

impl SourceError {
    /// What an HTTP status of the source means, other than success. `what` is what was requested, such as a path. It
    /// is shown in errors, so it must not contain a secret. `retry_after` is the text of the answer's `Retry-After`
    /// header: seconds, or a date. If it cannot be read, it counts as absent.
    ///
    /// | status | a page | an attachment, if it is returned with `?` |
    /// | --- | --- | --- |
    /// | 429 | `RateLimited`, for 60 s without `Retry-After` | the same |
    /// | 403, 408, 425, 5xx with `Retry-After` | `RateLimited` | the same |
    /// | 408, 425, 5xx without | `Temporary` | `Temporary` |
    /// | 401 | `Failed`, with [`ErrorCode::ExternalSystemNoAccess`] | `Temporary`: it is not about the file |
    /// | 403 without | `Failed`, with [`ErrorCode::ExternalSystemNoPermission`] | `Denied` |
    /// | 404, 410 | `Failed` | `Gone` |
    /// | any other | `Failed` | `Temporary` |
    ///
    /// If a token may have expired, [`AccessToken`](super::AccessToken) gets a new one after the first 401.
    ///
    /// Sources: RFC 9110 section 10.2.3 (`Retry-After`) and section 15 (the statuses), RFC 8470 section 5.2 (425),
    /// RFC 6585 section 4 (429). GitHub is one of those that send 403 with `Retry-After` to a client that asks too
    /// often (<https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>).
    ///
    /// ```
    /// use highwater::airdrop::{AttachmentError, SourceError};
    /// use std::time::Duration;
    ///
    /// let busy = SourceError::from_status("/issues?page=2", 429, Some("30"));
    /// assert!(matches!(busy, SourceError::RateLimited { after } if after == Duration::from_secs(30)));
    /// let gone = SourceError::from_status("/files/7", 404, None);
    /// assert!(matches!(gone.into(), AttachmentError::Gone { .. }));
    /// ```
    pub fn from_status(what: impl fmt::Display, status: u16, retry_after: Option<&str>) -> Self {
        let source = || format!("{what} was answered with {status}").into();
        let wait = retry_after.and_then(|text| wait_of(text, SystemClock::new().now()));
        match (status, wait) {
            (429, wait) => SourceError::RateLimited { after: wait.unwrap_or(TOO_MANY_WAIT) },
            (403 | 408 | 425 | 500..=599, Some(after)) => SourceError::RateLimited { after },
            (408 | 425 | 500..=599, None) => SourceError::Temporary { source: source() },
            _ => {
                let code = match status {
                    401 => Some(ErrorCode::ExternalSystemNoAccess),
                    403 => Some(ErrorCode::ExternalSystemNoPermission),
                    _ => None,
                };
                SourceError::Failed { code, status: Some(status), source: source() }
            }
        }
    }

    /// A failure that may be over in a moment, such as a connection that broke off.
    pub fn temporary(source: impl Into<BoxError>) -> Self {
        SourceError::Temporary { source: source.into() }
    }

    /// A failure that the platform has a code for.
    pub fn coded(code: ErrorCode, source: impl Into<BoxError>) -> Self {
        SourceError::Failed { code: Some(code), status: None, source: source.into() }
    }
}

impl<E: Into<BoxError>> From<E> for SourceError {
    fn from(source: E) -> Self {
        SourceError::Failed { code: None, status: None, source: source.into() }
    }
}

/// Why an attachment was not opened. Any error turns into [`AttachmentError::Temporary`] with `?`; a [`SourceError`]
/// becomes what the table of [`SourceError::from_status`] says.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachmentError {
    /// The source asked to wait. A short wait takes place here, as [`Serve::wait_up_to`](super::Serve::wait_up_to)
    /// describes; a longer one ends the phase with DELAY. This does not count as a failure of the attachment.
    RateLimited {
        /// How long to wait. More than 24 hours counts as 24 hours.
        after: Duration,
    },
    /// It no longer exists. It is given up, and listed as failed.
    Gone {
        /// The source's answer.
        reason: String,
    },
    /// It may not be read. It is given up, and listed as failed.
    Denied {
        /// The source's answer.
        reason: String,
    },
    /// It may succeed later. It is tried again after a while, [a few times](super::Serve::attachment_tries).
    Temporary {
        /// What went wrong.
        source: BoxError,
    },
}

impl<E: Into<BoxError>> From<E> for AttachmentError {
    fn from(source: E) -> Self {
        AttachmentError::Temporary { source: source.into() }
    }
}

impl From<SourceError> for AttachmentError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::RateLimited { after } => AttachmentError::RateLimited { after },
            SourceError::Failed { status: Some(403), source, .. } => {
                AttachmentError::Denied { reason: source.to_string() }
            }
            SourceError::Failed { status: Some(404 | 410), source, .. } => {
                AttachmentError::Gone { reason: source.to_string() }
            }
            SourceError::Temporary { source } | SourceError::Failed { source, .. } => {
                AttachmentError::Temporary { source }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a status became, in few words.
    fn page(error: &SourceError) -> String {
        match error {
            SourceError::RateLimited { after } => format!("wait {}", after.as_secs()),
            SourceError::Temporary { .. } => "again".to_owned(),
            SourceError::Failed { code, .. } => {
                format!("failed {}", code.map_or("", ErrorCode::as_str)).trim().to_owned()
            }
        }
    }

    fn attachment(error: &AttachmentError) -> String {
        match error {
            AttachmentError::RateLimited { after } => format!("wait {}", after.as_secs()),
            AttachmentError::Temporary { .. } => "again".to_owned(),
            AttachmentError::Gone { .. } => "gone".to_owned(),
            AttachmentError::Denied { .. } => "denied".to_owned(),
        }
    }

    /// Every status, against the rows of the table.
    #[test]
    fn every_status_is_in_the_table() {
        for status in 0..=u16::MAX {
            let expected = |wait: Option<&str>| match (status, wait) {
                (429, None) => ("wait 60", "wait 60"),
                (403 | 408 | 425 | 429 | 500..600, Some(_)) => ("wait 7", "wait 7"),
                (408 | 425 | 500..600, None) => ("again", "again"),
                (401, _) => ("failed EXTERNAL_SYSTEM_NO_ACCESS", "again"),
                (403, None) => ("failed EXTERNAL_SYSTEM_NO_PERMISSION", "denied"),
                (404 | 410, _) => ("failed", "gone"),
                _ => ("failed", "again"),
            };
            for (said, wait) in [(None, None), (Some("7"), Some("7")), (Some("soon"), None), (Some(""), None)]
            {
                let error = || SourceError::from_status("/issues", status, said);
                assert_eq!(page(&error()), expected(wait).0, "{status} {said:?}");
                assert_eq!(attachment(&error().into()), expected(wait).1, "{status} {said:?}");
            }
        }
    }

    #[test]
    fn a_date_is_waited_for_and_one_in_the_past_is_no_wait() {
        let now = SystemClock::new().now();
        let date = |at: chrono::DateTime<chrono::Utc>| at.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = |at| match SourceError::from_status("/", 503, Some(&date(at))) {
            SourceError::RateLimited { after } => after,
            other => panic!("{other:?}"),
        };
        let hour = wait(now + chrono::TimeDelta::hours(1));
        assert!((3_500..=3_600).contains(&hour.as_secs()), "{hour:?}");
        assert_eq!(wait(now - chrono::TimeDelta::hours(1)), Duration::ZERO);
    }

    #[test]
    fn the_text_says_what_was_asked_and_what_was_answered() {
        for (status, attachment) in [(404, "Gone"), (403, "Denied"), (500, "Temporary"), (302, "Temporary")] {
            let said = format!("files/7 was answered with {status}");
            let error = || SourceError::from_status("files/7", status, None);
            let (SourceError::Failed { source, .. } | SourceError::Temporary { source }) = error() else {
                panic!("{status} is no wait");
            };
            assert_eq!(source.to_string(), said);
            let shown = format!("{:?}", AttachmentError::from(error()));
            assert!(shown.starts_with(attachment) && shown.contains(&said), "{shown}");
        }
    }
}
