//! How often a call to the platform or to the source is made, and how long to wait in between.
//!
//! A call to the platform is made until it succeeds or is refused, was made [`TRIES`] times, or the next attempt would
//! begin after the invocation's hard limit. The wait doubles each time, varies at random so that workers that failed
//! together do not retry together, and is never shorter than the platform asked for.
//!
//! A source is waited for in place if it asks for a short wait, or fails for a temporary reason. After such a failure
//! it is asked again, a few times.

use std::fmt;
use std::time::Duration;

use tracing::warn;

use crate::error::{Error, Result, chain};

use super::deadlines::Deadlines;
use super::platform::{Fate, PlatformError};

/// The shortest wait if a source asks to wait twice in a row; doubled each time.
const LEFT_ALONE_FIRST: Duration = Duration::from_millis(100);

/// Attempts at one call in one invocation.
pub(crate) const TRIES: u32 = 5;
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// Attempts at one call to the source that fails for a temporary reason, and the first wait, which is doubled each
/// time.
const SOURCE_TRIES: u32 = 4;
const SOURCE_BACK_OFF_FIRST: Duration = Duration::from_secs(1);

/// The wait before another try: doubled each time, times a random factor of 0.5 to 1.5, and never less than the
/// platform asked for.
pub(crate) fn back_off(tries: u32, after: Option<Duration>, chance: &mut fastrand::Rng) -> Duration {
    let doubled =
        BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1))).min(BACK_OFF_MAX);
    doubled.mul_f64(0.5 + chance.f64()).max(after.unwrap_or_default())
}

/// The waits that a source asks for in one invocation: which of them take place within it.
///
/// If a source asks again and again, the wait grows each time, whatever it asks for, until it is too long. So a
/// source that asks for a wait of zero is not called over and over.
#[derive(Debug)]
pub(crate) struct ShortWaits {
    up_to: Duration,
    in_a_row: u32,
}

impl ShortWaits {
    /// Waits for at most this long.
    pub(crate) fn new(up_to: Duration) -> Self {
        Self { up_to, in_a_row: 0 }
    }

    /// The source asked to wait. `Ok`: wait this long here. `Err`: end the invocation; another one may call the
    /// source after this long. `again`: the source was called before the earlier wait was over.
    pub(crate) fn next(
        &mut self,
        after: Duration,
        time_left: Duration,
        again: bool,
    ) -> Result<Duration, Duration> {
        let at_least = match self.in_a_row {
            0 => Duration::ZERO,
            times => LEFT_ALONE_FIRST.saturating_mul(2_u32.saturating_pow(times - 1)),
        };
        if !again {
            self.in_a_row += 1;
        }
        let wait = after.max(at_least);
        if wait <= self.up_to && wait < time_left { Ok(wait) } else { Err(wait) }
    }

    /// The source answered.
    pub(crate) fn over(&mut self) {
        self.in_a_row = 0;
    }
}

/// The tries at one call to the source that fails for a temporary reason.
#[derive(Debug)]
pub(crate) struct SourceTries {
    up_to: Duration,
    failed: u32,
}

impl SourceTries {
    /// Waits for at most this long.
    pub(crate) fn new(up_to: Duration) -> Self {
        Self { up_to, failed: 0 }
    }

    /// The call failed. How long to wait before the next try; `None`: it is not tried again.
    pub(crate) fn next(&mut self, time_left: Duration) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        let wait = SOURCE_BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(self.failed - 1));
        (self.failed < SOURCE_TRIES && wait <= self.up_to && wait < time_left).then_some(wait)
    }

    /// The text of the failure, if it is not tried again.
    pub(crate) fn failure(&self, source: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
        let times = if self.failed > 1 { format!("; tried {} times", self.failed) } else { String::new() };
        chain(source) + &times
    }

    /// The source answered.
    pub(crate) fn over(&mut self) {
        self.failed = 0;
    }
}

pub(crate) fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

/// Why a call did not succeed.
pub(crate) enum GaveUp {
    /// `in_doubt`: an earlier attempt may have taken effect, so the refusal may be because it is done already.
    Refused { status: u16, reason: String, in_doubt: bool },
    /// It failed too often, or for too long; it may have taken effect.
    Tried(String),
    /// It was not made again because of this error.
    Stopped(Error),
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GaveUp::Refused { status, reason, .. } => write!(f, "refused with {status}: {reason}"),
            GaveUp::Tried(reason) => f.write_str(reason),
            GaveUp::Stopped(error) => f.write_str(&chain(error)),
        }
    }
}

/// Makes a call until it succeeds or is refused, it was tried too often, or there is no time left.
pub(crate) fn attempts<T>(
    deadlines: &Deadlines,
    seed: u64,
    call: impl FnMut() -> Result<T, PlatformError>,
) -> Result<T, GaveUp> {
    attempts_while(deadlines, seed, || Ok(()), call)
}

/// Like [`attempts`], but `may` is called before each attempt: if it fails, the attempt is not made.
pub(crate) fn attempts_while<T>(
    deadlines: &Deadlines,
    seed: u64,
    mut may: impl FnMut() -> Result<()>,
    mut call: impl FnMut() -> Result<T, PlatformError>,
) -> Result<T, GaveUp> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut tries = 0;
    let mut in_doubt = false;
    loop {
        tries += 1;
        may().map_err(GaveUp::Stopped)?;
        match call() {
            Ok(answer) => return Ok(answer),
            Err(PlatformError::Refused { status, reason }) => {
                return Err(GaveUp::Refused { status, reason, in_doubt });
            }
            Err(
                error @ (PlatformError::Retry { after, .. } | PlatformError::StorageRefused { after, .. }),
            ) => {
                in_doubt |= matches!(error, PlatformError::Retry { fate: Fate::Unknown, .. });
                let wait = back_off(tries, after, &mut chance);
                let again = tries < TRIES && deadlines.is_time_for_retry_after(wait);
                if again {
                    warn!(target: "highwater", tries, reason = %error, wait_ms = millis(wait), "retrying a call to the platform");
                }
                if !again || !deadlines.sleep_before_retry(wait) {
                    return Err(GaveUp::Tried(format!("{error}; tried {tries} times")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::BoxError;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_short_wait_is_waited_for_and_a_long_one_is_not() {
        let next = |after, left| ShortWaits::new(10 * SECOND).next(after, left, false);
        assert_eq!(next(10 * SECOND, 60 * SECOND), Ok(10 * SECOND));
        assert_eq!(next(11 * SECOND, 60 * SECOND), Err(11 * SECOND));
        assert_eq!(next(5 * SECOND, 5 * SECOND), Err(5 * SECOND), "it ends with the budget");
        assert_eq!(ShortWaits::new(Duration::ZERO).next(SECOND, 60 * SECOND, false), Err(SECOND));
    }

    #[test]
    fn a_source_that_asks_again_and_again_is_not_waited_for_for_ever() {
        for after in [Duration::ZERO, SECOND, 3 * SECOND] {
            let mut waits = ShortWaits::new(10 * SECOND);
            let waited: Vec<_> = std::iter::from_fn(|| waits.next(after, 60 * SECOND, false).ok()).collect();
            assert_eq!(waited.len(), 8, "{waited:?}");
            assert!(waited.iter().all(|wait| *wait >= after) && waited.is_sorted());
            waits.over();
            assert_eq!(waits.next(after, 60 * SECOND, false), Ok(after));
        }
    }

    #[test]
    fn a_passing_failure_of_the_source_is_tried_four_times() {
        let mut tries = SourceTries::new(10 * SECOND);
        for expected in [Some(SECOND), Some(2 * SECOND), Some(4 * SECOND), None, None] {
            assert_eq!(tries.next(60 * SECOND), expected);
        }
        assert_eq!(tries.failure(&*BoxError::from("no")), "no; tried 5 times");
        tries.over();
        assert_eq!(tries.next(60 * SECOND), Some(SECOND), "the source answered in between");
        assert_eq!(tries.next(2 * SECOND), None, "there is no time left");
        let mut none = SourceTries::new(Duration::ZERO);
        assert_eq!(none.next(60 * SECOND), None, "no wait in place is wanted");
        assert_eq!(none.failure(&*BoxError::from("no")), "no");
    }

    #[test]
    fn refusals_during_a_wait_count_as_one() {
        let mut waits = ShortWaits::new(10 * SECOND);
        waits.next(Duration::ZERO, 60 * SECOND, false).unwrap();
        for _ in 0..100 {
            waits.next(Duration::ZERO, 60 * SECOND, true).unwrap();
        }
    }
}
