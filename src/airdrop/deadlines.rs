//! The deadlines of an invocation: its budget, its hard limit, and an early stop.
//!
//! | moment | from then on |
//! | --- | --- |
//! | [`Deadlines::soft_at`] | no page and no attachment is begun |
//! | [`Deadlines::abort_at`] | pages and attachments that were begun are given up |
//! | [`Deadlines::leave_at`], after a stop only | remaining uploads are left to the next invocation |
//! | [`Deadlines::hard_at`] | no call to the platform is retried |
//!
//! A stop moves both limits: the budget ends at once, and the hard limit comes [`Serve::stop_within`] later, unless
//! it would come earlier anyway. So every invocation ends in the same way, whatever ends it.
//!
//! [`Serve::stop_within`]: super::Serve::stop_within

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::info;

use crate::clock::Clock;

/// How often a waiting thread checks whether a stop was requested.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Requests invocations to stop, for example on SIGTERM, which a platform sends some seconds before SIGKILL. All
/// clones share one state: give one to [`Serve::stop_token`](super::Serve::stop_token), and keep one.
///
/// The library handles no signals itself: install a handler with a crate made for it. Any thread may request a stop,
/// also before the invocation begins. A stop cannot be cancelled.
///
/// ```
/// use highwater::airdrop::{Serve, StopToken};
///
/// let stop = StopToken::new();
/// let serve = Serve::new().stop_token(stop.clone());
/// // In the signal handler:
/// stop.stop();
/// assert!(stop.is_stopped());
/// # let _ = serve;
/// ```
///
/// A token can also be made from a flag: setting the flag requests the stop. With
/// [signal-hook](https://docs.rs/signal-hook) no thread is needed then: `signal_hook::flag::register(SIGTERM, flag)`.
///
/// ```
/// use highwater::airdrop::StopToken;
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
///
/// let flag = Arc::new(AtomicBool::new(false));
/// let stop = StopToken::from(Arc::clone(&flag));
/// flag.store(true, Ordering::SeqCst);
/// assert!(stop.is_stopped());
/// ```
#[derive(Clone, Default)]
pub struct StopToken {
    stopped: Arc<AtomicBool>,
    /// A second flag that requests a stop.
    #[cfg(feature = "async")]
    or: Option<Arc<AtomicBool>>,
}

impl From<Arc<AtomicBool>> for StopToken {
    fn from(stopped: Arc<AtomicBool>) -> Self {
        Self {
            stopped,
            #[cfg(feature = "async")]
            or: None,
        }
    }
}

impl StopToken {
    /// A token on which no stop is requested.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a stop; see [`Serve::stop_token`](super::Serve::stop_token) for what happens then. Returns at once:
    /// it only sets a flag.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether a stop was requested.
    pub fn is_stopped(&self) -> bool {
        #[cfg(feature = "async")]
        if self.or.as_ref().is_some_and(|flag| flag.load(Ordering::Acquire)) {
            return true;
        }
        self.stopped.load(Ordering::Acquire)
    }

    /// A token on which this flag requests a stop, too.
    #[cfg(feature = "async")]
    pub(super) fn or(&self, flag: &Arc<AtomicBool>) -> Self {
        Self { stopped: Arc::clone(&self.stopped), or: Some(Arc::clone(flag)) }
    }
}

impl fmt::Debug for StopToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopToken").field("stopped", &self.is_stopped()).finish()
    }
}

/// The deadlines of one invocation. All moments are elapsed time of its clock.
#[derive(Debug)]
pub(crate) struct Deadlines {
    clock: Arc<dyn Clock>,
    soft: Duration,
    hard: Duration,
    stop: StopToken,
    stop_within: Duration,
    /// When the stop was first noticed.
    stopped_at: OnceLock<Duration>,
}

impl Deadlines {
    /// The deadlines of an invocation that begins now: `soft` is its budget for pages, `hard` its time in all, and
    /// `stop_within` its time after a stop.
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        soft: Duration,
        hard: Duration,
        stop: StopToken,
        stop_within: Duration,
    ) -> Self {
        let started = clock.elapsed();
        let (soft, hard) = (started.saturating_add(soft), started.saturating_add(hard));
        Self { clock, soft, hard, stop, stop_within, stopped_at: OnceLock::new() }
    }

    /// Whether a stop was requested.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped_at().is_some()
    }

    fn stopped_at(&self) -> Option<Duration> {
        let seen = self.stopped_at.get().copied();
        if seen.is_some() || !self.stop.is_stopped() {
            return seen;
        }
        Some(*self.stopped_at.get_or_init(|| {
            info!(target: "highwater", "stop requested");
            self.clock.elapsed()
        }))
    }

    /// From then on no page and no attachment is begun, except the first of an invocation that was not stopped.
    pub(crate) fn soft_at(&self) -> Duration {
        self.stopped_at().map_or(self.soft, |at| at.min(self.soft))
    }

    /// When the extractor is killed, by the platform or after a stop.
    pub(crate) fn hard_at(&self) -> Duration {
        self.stopped_at().map_or(self.hard, |at| at.saturating_add(self.stop_within).min(self.hard))
    }

    /// When a page that has not arrived, or an attachment that is still being read, is given up. The time left after
    /// that is for the last batch, the confirmations and the message.
    pub(crate) fn abort_at(&self) -> Duration {
        self.after_soft(0.75)
    }

    /// After a stop: batches not uploaded by then are left to the next invocation.
    pub(crate) fn leave_at(&self) -> Option<Duration> {
        self.is_stopped().then(|| self.after_soft(0.9))
    }

    /// The moment when this part of the time between the two limits is over.
    fn after_soft(&self, part: f64) -> Duration {
        let soft = self.soft_at();
        soft.saturating_add(self.hard_at().saturating_sub(soft).mul_f64(part))
    }

    /// Whether it is too late to wait for anything that was begun.
    #[cfg(feature = "async")]
    pub(super) fn is_over(&self) -> bool {
        let at = if self.is_stopped() { self.abort_at() } else { self.hard_at() };
        self.clock.elapsed() >= at
    }

    /// Whether pages and attachments begun before a stop are given up by now. Their failures mean nothing then.
    pub(super) fn is_past_stop(&self) -> bool {
        self.is_stopped() && self.clock.elapsed() >= self.abort_at()
    }

    /// How much of the budget is left.
    pub(super) fn time_left(&self) -> Duration {
        self.soft_at().saturating_sub(self.clock.elapsed())
    }

    /// Waits. Returns early, with false, if a stop is requested meanwhile.
    pub(crate) fn sleep(&self, wait: Duration) -> bool {
        let stopped = self.is_stopped();
        let until = self.clock.elapsed().saturating_add(wait);
        while let Some(left) = until.checked_sub(self.clock.elapsed()).filter(|left| !left.is_zero()) {
            if !stopped && self.is_stopped() {
                return false;
            }
            self.clock.sleep(left.min(LOOK_AGAIN));
        }
        true
    }

    /// Whether a call may be retried after this wait.
    pub(crate) fn is_time_for_retry_after(&self, wait: Duration) -> bool {
        self.clock.elapsed().saturating_add(wait) < self.hard_at()
    }

    /// Waits and returns true, or returns false if it would be too late for a retry then.
    pub(crate) fn sleep_before_retry(&self, wait: Duration) -> bool {
        let until = self.clock.elapsed().saturating_add(wait);
        loop {
            let left = until.saturating_sub(self.clock.elapsed());
            if !self.is_time_for_retry_after(left) {
                return false;
            }
            // After a stop there may still be time.
            if self.sleep(left) {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::clock::VirtualClock;

    const SECOND: Duration = Duration::from_secs(1);

    fn clock() -> VirtualClock {
        VirtualClock::at(DateTime::UNIX_EPOCH)
    }

    fn deadlines(clock: &(impl Clock + Clone + 'static), stop: &StopToken) -> Deadlines {
        let clock = Arc::new(clock.clone());
        Deadlines::new(clock, 100 * SECOND, 120 * SECOND, stop.clone(), 10 * SECOND)
    }

    #[test]
    fn a_stop_moves_both_limits_and_never_back() {
        let (clock, stop) = (clock(), StopToken::new());
        clock.advance(5 * SECOND);
        let deadlines = deadlines(&clock, &stop);
        let all = || (deadlines.soft_at(), deadlines.abort_at(), deadlines.leave_at(), deadlines.hard_at());
        assert_eq!(all(), (105 * SECOND, 120 * SECOND, None, 125 * SECOND));
        clock.advance(15 * SECOND);
        stop.stop();
        let moved = (20 * SECOND, Duration::from_millis(27_500), Some(29 * SECOND), 30 * SECOND);
        assert_eq!(all(), moved);
        clock.advance(SECOND);
        stop.stop();
        assert_eq!(all(), moved, "only the first request counts");
        assert!(deadlines.is_stopped());
    }

    #[test]
    fn a_stop_gives_no_more_time_than_there_was() {
        let (clock, stop) = (clock(), StopToken::new());
        let deadlines = deadlines(&clock, &stop);
        clock.advance(115 * SECOND);
        stop.stop();
        assert_eq!((deadlines.soft_at(), deadlines.hard_at()), (100 * SECOND, 120 * SECOND));
    }

    /// A clock that requests a stop when it reaches a moment.
    #[derive(Debug, Clone)]
    struct StopsAt(VirtualClock, Duration, StopToken);

    impl Clock for StopsAt {
        fn now(&self) -> chrono::DateTime<chrono::Utc> {
            self.0.now()
        }
        fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }
        fn sleep(&self, wait: Duration) {
            self.0.sleep(wait);
            if self.0.elapsed() >= self.1 {
                self.2.stop();
            }
        }
    }

    #[test]
    fn a_wait_ends_when_somebody_asks_to_stop_and_a_retry_if_there_is_no_time_for_it() {
        let stop = StopToken::new();
        let clock = StopsAt(clock(), 3 * SECOND, stop.clone());
        let deadlines = self::deadlines(&clock, &stop);
        assert!(deadlines.sleep(2 * SECOND) && deadlines.sleep_before_retry(Duration::ZERO));
        assert_eq!(clock.elapsed(), 2 * SECOND);
        assert!(!deadlines.sleep_before_retry(118 * SECOND), "it would be after the hard limit");
        assert_eq!(clock.elapsed(), 2 * SECOND);
        assert!(!deadlines.sleep(60 * SECOND));
        assert_eq!(clock.elapsed(), 3 * SECOND);
        // After the stop, a wait lasts its full time.
        assert!(deadlines.sleep(2 * SECOND) && deadlines.sleep_before_retry(7 * SECOND));
        assert_eq!(clock.elapsed(), 12 * SECOND);
        assert!(!deadlines.sleep_before_retry(SECOND));

        let stop = StopToken::new();
        let clock = StopsAt(self::clock(), 3 * SECOND, stop.clone());
        let deadlines = self::deadlines(&clock, &stop);
        assert!(deadlines.sleep_before_retry(12 * SECOND), "there is time for it after the stop, too");
        assert_eq!(clock.elapsed(), 12 * SECOND);

        let stop = StopToken::new();
        let clock = StopsAt(self::clock(), 3 * SECOND, stop.clone());
        let deadlines = self::deadlines(&clock, &stop);
        assert!(!deadlines.sleep_before_retry(30 * SECOND));
        assert_eq!(clock.elapsed(), 3 * SECOND);
    }
}
