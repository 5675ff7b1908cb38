//! What an HTTP status proves about a call to the platform, and whether the call is repeated: one table for every call.
//! Also what `Retry-After` says.
//!
//! A *definite refusal* means that the request was examined and turned down: it had no effect, and the same request
//! would be turned down again. The outcome is *unknown* if the request may have been applied although no success was
//! reported. A proxy may answer 408 to a request that it has already passed on, so 408 proves nothing; 425 and 429
//! mean that the request was postponed before anything was done.
//!
//! | call | success | absent | definite refusal | storage refuses | repeated, not applied | repeated, outcome unknown |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | `Prepare`, `DownloadUrl`, `SnapIn` | 2xx | | other 4xx | | everything else | |
//! | `WorkerState` | 2xx | 404 | other 4xx | | everything else | |
//! | `Download` | 2xx | | other 4xx | | 400 `RequestTimeout`, 403, everything else | |
//! | `UploadBatch` | 2xx | | other 4xx | 400 `RequestTimeout`, 403, 503, 5xx `SlowDown` | 425, 429 | 408, 1xx, 3xx, other 5xx |
//! | `UploadAttachment` | 2xx, 3xx | | other 4xx | as above | 425, 429 | 408, 1xx, other 5xx |
//! | `Confirm`, `Send`, `SaveWorkerState`, `CreateBlueprint`, `InstallMapping` | 2xx | | other 4xx | | 425, 429 | 408, 1xx, 3xx, 5xx |
//!
//! "Other 4xx" are all but 408, 425 and 429 and those named in the row. A call is repeated with the same bytes, up to
//! five times in an invocation, and never after its hard limit. An upload that the storage refuses is prepared and
//! uploaded again under a new id, up to three times. A success with an unexpected body does not count as a success;
//! it is repeated too.
//!
//! Sources: RFC 9110 section 15 (408, 4xx, 5xx), RFC 8470 section 5.2 (425), RFC 6585 section 4 (429); the storage's
//! codes are those of S3 (<https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>): `RequestTimeout` is
//! sent with 400, `SlowDown` with 503, an expired URL is answered with 403.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};

use super::platform::{Fate, PlatformError, WAIT_MAX};

/// The calls to a platform and to the storage behind its URLs, distinguished where the same status proves different
/// things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// Requests a place to upload to.
    Prepare,
    /// Uploads a batch to the storage.
    UploadBatch,
    /// Streams an attachment to the storage.
    UploadAttachment,
    /// Confirms an upload.
    Confirm,
    /// Sends the message that answers an event.
    Send,
    /// Fetches the worker state.
    WorkerState,
    /// Saves the worker state.
    SaveWorkerState,
    /// Requests the address from which an artifact can be downloaded.
    DownloadUrl,
    /// Downloads an artifact from the storage.
    Download,
    /// Requests the snap-in that a mapping is installed for.
    SnapIn,
    /// Creates a recipe blueprint.
    CreateBlueprint,
    /// Installs an initial domain mapping.
    InstallMapping,
}

/// What a status proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Success,
    Refused,
    StorageRefused,
    Again(Fate),
}

/// The table of the module's doc. `code`: the storage's error code.
fn verdict(call: Call, status: u16, code: &str) -> Verdict {
    use Verdict::{Again, Refused, StorageRefused, Success};
    let upload = matches!(call, Call::UploadBatch | Call::UploadAttachment);
    let changes = !matches!(
        call,
        Call::Prepare | Call::DownloadUrl | Call::SnapIn | Call::WorkerState | Call::Download
    );
    let passing = match status {
        400 => code.contains("RequestTimeout"),
        403 | 503 => true,
        500..600 => code.contains("SlowDown"),
        _ => false,
    };
    match status {
        200..300 => Success,
        300..400 if call == Call::UploadAttachment => Success,
        _ if upload && passing => StorageRefused,
        400..500 if call == Call::Download && passing => Again(Fate::NotApplied),
        425 | 429 => Again(Fate::NotApplied),
        400..500 if status != 408 => Refused,
        _ if changes => Again(Fate::Unknown),
        _ => Again(Fate::NotApplied),
    }
}

impl PlatformError {
    /// The meaning of an answer with this HTTP status for `serve`; `None` if it is a success. If you write a
    /// [`Platform`](super::Platform) that speaks HTTP, convert its answers with this: it then retries, gives up and
    /// recognises refusals like [`Client`](super::Client).
    ///
    /// `reason` says what was done and what the other side answered: people see it, so it must not contain a secret.
    /// For the storage behind an upload's URL it must contain the error's code (`RequestTimeout`, `SlowDown`).
    /// `after`: the wait that was asked for.
    ///
    /// 2xx is a success, and so is 3xx if an attachment was uploaded. After 408, 5xx and redirects the outcome of a
    /// call that changes something is unknown; 425 and 429 mean that it was not applied. A batch that the storage
    /// refuses for a temporary reason (400 `RequestTimeout`, 403, 503, 5xx `SlowDown`) is uploaded again under another
    /// URL; every other 4xx is a definite refusal. For `WorkerState`, 404 means that nothing is kept yet: that is
    /// `Ok(None)`, not an error.
    #[must_use]
    pub fn from_status(call: Call, status: u16, after: Option<Duration>, reason: String) -> Option<Self> {
        match verdict(call, status, &reason) {
            Verdict::Success => None,
            Verdict::Refused => Some(Self::Refused { status, reason }),
            Verdict::StorageRefused => Some(Self::StorageRefused { status, after, reason }),
            Verdict::Again(fate) => {
                let what = match status {
                    300..400 => ", a redirect, which is not followed",
                    408 => ", request timeout",
                    425 => ", too early",
                    429 => ", too many requests",
                    _ => "",
                };
                Some(Self::Retry { fate, after, reason: format!("{reason} (answered {status}{what})") })
            }
        }
    }
}

/// `Retry-After`: seconds, whole by RFC 9110 and with a fraction by some servers, or a date in any of the three forms
/// of HTTP, each of which may end in `UTC` instead of `GMT`.
pub(super) fn retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        // A number that does not fit is longer than any wait.
        let seconds = text.parse::<f64>().ok()?;
        return Some(Duration::try_from_secs_f64(seconds).unwrap_or(WAIT_MAX).min(WAIT_MAX));
    }
    let without_zone = text.strip_suffix("GMT").or_else(|| text.strip_suffix("UTC")).map(str::trim_end);
    let naive = |text: &str, form| NaiveDateTime::parse_from_str(text, form).ok().map(|at| at.and_utc());
    let at = DateTime::parse_from_rfc2822(text).ok().map(|at| at.to_utc());
    let at = at
        .or_else(|| naive(without_zone?, "%a, %d %b %Y %H:%M:%S"))
        .or_else(|| naive(without_zone?, "%A, %d-%b-%y %H:%M:%S"))
        .or_else(|| naive(without_zone.unwrap_or(text), "%a %b %e %H:%M:%S %Y"))?;
    Some((at - now).to_std().unwrap_or(Duration::ZERO).min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READS: [Call; 5] =
        [Call::Prepare, Call::DownloadUrl, Call::SnapIn, Call::WorkerState, Call::Download];
    const CHANGES: [Call; 5] =
        [Call::Confirm, Call::Send, Call::SaveWorkerState, Call::CreateBlueprint, Call::InstallMapping];
    const UPLOADS: [Call; 2] = [Call::UploadBatch, Call::UploadAttachment];

    /// Every call with every status, against the rows written out as ranges of statuses.
    #[test]
    fn every_call_and_every_status_is_in_the_table() {
        use Verdict::{Again, Refused, StorageRefused, Success};
        let refused = |status: u16| (400..=499).contains(&status) && ![408, 425, 429].contains(&status);
        for status in 0..=u16::MAX {
            let success = (200..=299).contains(&status);
            for call in READS {
                let expected = if success {
                    Success
                } else if refused(status) && !(call == Call::Download && status == 403) {
                    Refused
                } else {
                    Again(Fate::NotApplied)
                };
                assert_eq!(verdict(call, status, "Other"), expected, "{call:?} {status}");
            }
            let change = match status {
                _ if success => Success,
                _ if refused(status) => Refused,
                425 | 429 => Again(Fate::NotApplied),
                _ => Again(Fate::Unknown),
            };
            for call in CHANGES {
                assert_eq!(verdict(call, status, "Other"), change, "{call:?} {status}");
                // The storage's codes mean nothing in answers of the platform.
                for code in ["RequestTimeout", "SlowDown"] {
                    assert_eq!(verdict(call, status, code), change, "{call:?} {status} {code}");
                }
            }
            for call in UPLOADS {
                let redirect = (300..=399).contains(&status);
                for (code, passing) in [
                    ("Other", vec![403, 503]),
                    ("RequestTimeout", vec![400, 403, 503]),
                    ("SlowDown", [vec![403], (500..=599).collect()].concat()),
                ] {
                    let expected = if redirect && call == Call::UploadAttachment {
                        Success
                    } else if passing.contains(&status) {
                        StorageRefused
                    } else {
                        change
                    };
                    assert_eq!(verdict(call, status, code), expected, "{call:?} {status} {code}");
                }
            }
        }
        assert_eq!(verdict(Call::Download, 400, "RequestTimeout"), Again(Fate::NotApplied));
    }

    #[test]
    fn a_status_becomes_the_error_that_it_stands_for() {
        let after = Some(Duration::from_secs(7));
        let error = |call, status| PlatformError::from_status(call, status, after, "sending: no".to_owned());
        assert_eq!(error(Call::Send, 204), None);
        assert_eq!(
            error(Call::Send, 408),
            Some(PlatformError::Retry {
                fate: Fate::Unknown,
                after,
                reason: "sending: no (answered 408, request timeout)".to_owned()
            })
        );
        assert_eq!(
            error(Call::Send, 409),
            Some(PlatformError::Refused { status: 409, reason: "sending: no".to_owned() })
        );
        assert_eq!(
            error(Call::UploadBatch, 403),
            Some(PlatformError::StorageRefused { status: 403, after, reason: "sending: no".to_owned() })
        );
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_every_form_of_date() {
        let now = DateTime::parse_from_rfc3339("1994-11-06T08:49:07Z").unwrap().to_utc();
        let half_a_minute = Some(Duration::from_secs(30));
        for text in [
            "30",
            " 30 ",
            "30.0",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sunday, 06-Nov-94 08:49:37 UTC",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(retry_after(text, now), half_a_minute, "{text}");
        }
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:00 GMT", now), Some(Duration::ZERO), "in the past");
        assert_eq!(retry_after("0", now), Some(Duration::ZERO));
        assert_eq!(retry_after("1.5", now), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after("0.25", now), Some(Duration::from_millis(250)));
        for absurd in ["99999999999999999999", "9".repeat(400).as_str()] {
            assert_eq!(retry_after(absurd, now), Some(WAIT_MAX), "{absurd}");
        }
        assert_eq!(retry_after("99999999999", now), Some(WAIT_MAX));
        assert_eq!(retry_after("Sun, 06 Nov 9994 08:49:37 GMT", now), Some(WAIT_MAX));
        for text in ["", "soon", "-1", "1.2.3", ".", "1e3", "NaN", "inf", "Sun, 06 Nov 1994"] {
            assert_eq!(retry_after(text, now), None, "{text}");
        }
    }
}
