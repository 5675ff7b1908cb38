//! How often a call to the platform is made, and how long to wait in between.
//!
//! A call is made until it succeeds or is refused, was made [`TRIES`] times, or the next attempt would begin after
//! the invocation's hard limit. The wait doubles each time, varies at random so that workers that failed together do
//! not retry together, and is never shorter than the platform asked for.

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
    fn refusals_during_a_wait_count_as_one() {
        let mut waits = ShortWaits::new(10 * SECOND);
        waits.next(Duration::ZERO, 60 * SECOND, false).unwrap();
        for _ in 0..100 {
            waits.next(Duration::ZERO, 60 * SECOND, true).unwrap();
        }
    }
}
