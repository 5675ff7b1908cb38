//! Time, in a form that can be replayed.
//!
//! Every moment and every wait in this crate comes from a [`Clock`], so that the crash explorer can step it back,
//! jump it ahead and repeat a run exactly. Moments are UTC, cut to whole microseconds when they are read, so that a
//! moment compares equal to its stored form.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// Seconds in words: the two largest units.
pub(crate) fn in_words(seconds: u64) -> String {
    let units =
        [("d", seconds / 86_400), ("h", seconds / 3_600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let mut units = units.iter().skip_while(|(_, number)| *number == 0);
    let Some((unit, number)) = units.next() else { return "0s".to_owned() };
    match units.next().filter(|(_, number)| *number > 0) {
        Some((next, then)) => format!("{number}{unit} {then}{next}"),
        None => format!("{number}{unit}"),
    }
}

/// A source of time, and of waits.
pub trait Clock: Debug + Send + Sync {
    /// The time of day, in whole microseconds. It may step back or jump; [`Clock::elapsed`] may not.
    fn now(&self) -> DateTime<Utc>;
    /// Time since some fixed moment of this process; never goes back. Deadlines are measured with it.
    fn elapsed(&self) -> Duration;
    /// Waits.
    fn sleep(&self, wait: Duration);
}

impl<T: Clock + ?Sized> Clock for Arc<T> {
    fn now(&self) -> DateTime<Utc> {
        (**self).now()
    }
    fn elapsed(&self) -> Duration {
        (**self).elapsed()
    }
    fn sleep(&self, wait: Duration) {
        (**self).sleep(wait);
    }
}

/// The clock of the machine.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: Instant,
}

#[allow(clippy::disallowed_methods, reason = "this is where the machine's clock is read")]
impl SystemClock {
    /// A clock whose [`Clock::elapsed`] starts now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[allow(clippy::disallowed_methods, reason = "this is where the machine's clock is read")]
impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
    fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }
    fn sleep(&self, wait: Duration) {
        std::thread::sleep(wait);
    }
}

/// A clock that moves only when it is told to, or when somebody sleeps on it. A clone is another handle of the same
/// clock.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    at: Arc<Mutex<At>>,
}

#[derive(Debug)]
struct At {
    now: DateTime<Utc>,
    elapsed: Duration,
}

impl VirtualClock {
    /// A clock that is set to `now`.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self { at: Arc::new(Mutex::new(At { now, elapsed: Duration::ZERO })) }
    }

    /// Lets `by` pass: the time of day and the elapsed time both move.
    pub fn advance(&self, by: Duration) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.elapsed = at.elapsed.saturating_add(by);
        let by = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
        at.now = at.now.checked_add_signed(by).unwrap_or(DateTime::<Utc>::MAX_UTC);
    }

    /// Sets the time of day, back or ahead, as a bad clock or its repair does. No time passes.
    pub fn step_to(&self, now: DateTime<Utc>) {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).now = now;
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> DateTime<Utc> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).now.trunc_subsecs(6)
    }
    fn elapsed(&self) -> Duration {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).elapsed
    }
    fn sleep(&self, wait: Duration) {
        self.advance(wait);
    }
}
