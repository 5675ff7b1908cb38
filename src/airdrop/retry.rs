//! How often a call to the platform is made, and how long is waited in between.
//!
//! A call is made until it succeeds or is refused, it was made [`TRIES`] times, or the next attempt would begin after the
//! invocation's hard limit. The wait is doubled each time, varied by chance so that workers that failed together do not
//! try again together, and never shorter than the platform asked for.

use std::fmt;
use std::time::Duration;

use tracing::warn;

use crate::clock::Clock;
use crate::error::{Error, Result, chain};

use super::platform::{Fate, PlatformError};

/// Attempts at one call in one invocation.
pub(crate) const TRIES: u32 = 5;
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// The wait before another try: doubled each time, halved or half as much again by chance, and never less than the
/// platform asked for.
pub(crate) fn back_off(tries: u32, after: Option<Duration>, chance: &mut fastrand::Rng) -> Duration {
    let doubled =
        BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1))).min(BACK_OFF_MAX);
    doubled.mul_f64(0.5 + chance.f64()).max(after.unwrap_or_default())
}

pub(crate) fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

/// Why a call was not made to succeed.
pub(crate) enum GaveUp {
    /// `in_doubt`: an attempt before it may have taken effect, so the refusal may be of what was done already.
    Refused { status: u16, reason: String, in_doubt: bool },
    /// It failed too often, or for too long; it may have taken effect.
    Tried(String),
    /// It was not made once more, for this.
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
    clock: &dyn Clock,
    hard: Duration,
    seed: u64,
    call: impl FnMut() -> Result<T, PlatformError>,
) -> Result<T, GaveUp> {
    attempts_while(clock, hard, seed, || Ok(()), call)
}

/// As [`attempts`], and `may` is asked before each: if that is an error, the call is not made.
pub(crate) fn attempts_while<T>(
    clock: &dyn Clock,
    hard: Duration,
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
                if tries >= TRIES || clock.elapsed().saturating_add(wait) >= hard {
                    return Err(GaveUp::Tried(format!("{error}; tried {tries} times")));
                }
                warn!(tries, reason = %error, wait_ms = millis(wait), "call to the platform is tried again");
                clock.sleep(wait);
            }
        }
    }
}
