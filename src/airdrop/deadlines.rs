//! When an invocation stops doing what: its budget, its hard limit, and that it was asked to stop.
//!
//! | moment | what ends |
//! | --- | --- |
//! | [`Deadlines::soft_at`] | no page and no attachment is begun |
//! | [`Deadlines::abort_at`] | what was begun is given up |
//! | [`Deadlines::leave_at`], after a stop only | uploads are left to the next invocation |
//! | [`Deadlines::hard_at`] | no call to the platform is tried again |
//!
//! Asked to stop, both limits move: the budget is over at once, and the hard limit comes [`Serve::stop_within`] later, if it
//! would not come before. So there is one way in which an invocation ends, whoever ends it.
//!
//! [`Serve::stop_within`]: super::Serve::stop_within

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::info;

use crate::clock::Clock;

/// How long somebody waits before it looks again whether it was asked to stop.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Asks invocations to stop: for SIGTERM, which a platform sends some seconds before SIGKILL. Clones are of one and the same:
/// give one to [`Serve::stop_token`](super::Serve::stop_token), and keep one.
///
/// The library listens to no signal itself; a program does, with a crate that is made for it. Any thread may ask, also
/// before the invocation begins. It cannot be taken back.
///
/// ```
/// use highwater::airdrop::{Serve, StopToken};
///
/// let stop = StopToken::new();
/// let serve = Serve::new().stop_token(stop.clone());
/// // In whatever is told of the signal:
/// stop.stop();
/// assert!(stop.is_stopped());
/// # let _ = serve;
/// ```
///
/// Made of a flag, it is asked when that is set; so [signal-hook](https://docs.rs/signal-hook) needs no thread for it:
/// `signal_hook::flag::register(SIGTERM, flag)`.
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
    /// Another flag that asks, too.
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
    /// One that was not asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop; see [`Serve::stop_token`](super::Serve::stop_token) for what then happens. Returns at once: it sets a flag.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether it was asked.
    pub fn is_stopped(&self) -> bool {
        #[cfg(feature = "async")]
        if self.or.as_ref().is_some_and(|flag| flag.load(Ordering::Acquire)) {
            return true;
        }
        self.stopped.load(Ordering::Acquire)
    }

    /// One that is asked by this flag, too.
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
    /// When it was seen that the invocation was asked to stop.
    stopped_at: OnceLock<Duration>,
}

impl Deadlines {
    /// Those of an invocation that begins now, and has so long for pages, and in all; `stop_within`: in all from when it was
    /// asked to stop.
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

    /// Whether the invocation was asked to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped_at().is_some()
    }

    fn stopped_at(&self) -> Option<Duration> {
        let seen = self.stopped_at.get().copied();
        if seen.is_some() || !self.stop.is_stopped() {
            return seen;
        }
        Some(*self.stopped_at.get_or_init(|| {
            info!("asked to stop");
            self.clock.elapsed()
        }))
    }

    /// No page and no attachment is begun any more, but the first of an invocation that was not asked to stop.
    pub(crate) fn soft_at(&self) -> Duration {
        self.stopped_at().map_or(self.soft, |at| at.min(self.soft))
    }

    /// The platform, or whoever asked to stop, kills the extractor.
    pub(crate) fn hard_at(&self) -> Duration {
        self.stopped_at().map_or(self.hard, |at| at.saturating_add(self.stop_within).min(self.hard))
    }

    /// What was begun is given up: a page that does not come, an attachment that is still being read. What is left after it
    /// is for the last batch, the confirms and the message.
    pub(crate) fn abort_at(&self) -> Duration {
        self.after_soft(0.75)
    }

    /// After a stop: what is not uploaded by then is left to the next invocation.
    pub(crate) fn leave_at(&self) -> Option<Duration> {
        self.is_stopped().then(|| self.after_soft(0.9))
    }

    /// When this part of the time between the two limits is over.
    fn after_soft(&self, part: f64) -> Duration {
        let soft = self.soft_at();
        soft.saturating_add(self.hard_at().saturating_sub(soft).mul_f64(part))
    }

    /// Whether nobody may wait any more for something that was begun.
    #[cfg(feature = "async")]
    pub(super) fn is_over(&self) -> bool {
        let at = if self.is_stopped() { self.abort_at() } else { self.hard_at() };
        self.clock.elapsed() >= at
    }

    /// Whether what was begun before a stop is given up by now: that it failed says nothing.
    pub(super) fn is_past_stop(&self) -> bool {
        self.is_stopped() && self.clock.elapsed() >= self.abort_at()
    }

    /// How much of the budget is left.
    pub(super) fn time_left(&self) -> Duration {
        self.soft_at().saturating_sub(self.clock.elapsed())
    }

    /// Waits. Returns early, with false, if the invocation is asked to stop meanwhile.
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

    /// Whether a call may be tried again after so long.
    pub(crate) fn is_time_for_retry_after(&self, wait: Duration) -> bool {
        self.clock.elapsed().saturating_add(wait) < self.hard_at()
    }

    /// Waits, unless no call may be tried again after that. Says whether one may.
    pub(crate) fn sleep_before_retry(&self, wait: Duration) -> bool {
        let until = self.clock.elapsed().saturating_add(wait);
        loop {
            let left = until.saturating_sub(self.clock.elapsed());
            if !self.is_time_for_retry_after(left) {
                return false;
            }
            // Asked to stop meanwhile, there may still be time.
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
        assert_eq!(all(), moved, "it was asked once");
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

    /// A clock on which somebody is asked to stop when it stands at a moment.
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
        // A wait that begins after the stop is one.
        assert!(deadlines.sleep(2 * SECOND) && deadlines.sleep_before_retry(7 * SECOND));
        assert_eq!(clock.elapsed(), 12 * SECOND);
        assert!(!deadlines.sleep_before_retry(SECOND));

        let stop = StopToken::new();
        let clock = StopsAt(self::clock(), 3 * SECOND, stop.clone());
        let deadlines = self::deadlines(&clock, &stop);
        assert!(deadlines.sleep_before_retry(12 * SECOND), "in time after the stop, too");
        assert_eq!(clock.elapsed(), 12 * SECOND);

        let stop = StopToken::new();
        let clock = StopsAt(self::clock(), 3 * SECOND, stop.clone());
        let deadlines = self::deadlines(&clock, &stop);
        assert!(!deadlines.sleep_before_retry(30 * SECOND));
        assert_eq!(clock.elapsed(), 3 * SECOND);
    }
}
