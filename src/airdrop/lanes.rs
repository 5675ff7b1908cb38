//! Where slow calls are made: several at once in threads, or one after the other in a seeded order.
//!
//! The loop in `serve` decides; a lane only makes one attempt, may tell how far it is, and returns its result. The inline
//! lane is for the crash explorer: it has no threads, and a seed decides the order of attempts.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use crate::error::panic_text;

use super::platform::{Fate, PlatformError};

/// Makes one attempt at a job and returns its result. Before that, it may tell how far it is.
pub(crate) type Attempt<'a, J, D> = &'a (dyn Fn(J, &(dyn Fn(D) + Sync)) -> D + Sync);

/// The lanes of one invocation, for jobs of one kind.
pub(crate) enum Lanes<'a, J, D> {
    Inline(Inline<'a, J, D>),
    Pool { groups: Vec<Sender<J>>, done: Receiver<D> },
}

/// Attempts are made in the caller's thread.
pub(crate) struct Inline<'a, J, D> {
    attempt: Attempt<'a, J, D>,
    order: fastrand::Rng,
    waiting: Vec<J>,
    /// What attempts told and returned, in order.
    told: VecDeque<D>,
    /// Whether some attempts happen when they are submitted.
    ahead: bool,
}

impl<'a, J, D: Send> Inline<'a, J, D> {
    fn new(attempt: Attempt<'a, J, D>, seed: u64, ahead: bool) -> Self {
        let order = fastrand::Rng::with_seed(seed);
        Self { attempt, order, waiting: Vec::new(), told: VecDeque::new(), ahead }
    }

    /// Makes the attempt that is next in the seed's order.
    fn make_one(&mut self) {
        let job = self.waiting.swap_remove(self.order.usize(..self.waiting.len()));
        let told = Mutex::new(&mut self.told);
        let tell = |done| told.lock().unwrap_or_else(PoisonError::into_inner).push_back(done);
        tell((self.attempt)(job, &tell));
    }
}

impl<J, D> fmt::Debug for Lanes<'_, J, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lanes::Inline(_) => "Inline",
            Lanes::Pool { .. } => "Pool",
        })
    }
}

impl<'a, J: Send + 'a, D: Send + 'a> Lanes<'a, J, D> {
    pub(crate) fn inline(attempt: Attempt<'a, J, D>, seed: u64) -> Self {
        Lanes::Inline(Inline::new(attempt, seed, false))
    }

    /// Like [`Lanes::inline`], but the seed lets some attempts happen at once when they are submitted. So, as with
    /// threads, an attempt may come before or after whatever the caller does next.
    pub(crate) fn inline_ahead(attempt: Attempt<'a, J, D>, seed: u64) -> Self {
        Lanes::Inline(Inline::new(attempt, seed, true))
    }

    /// Starts groups of threads that end when the lanes are dropped. Each group, given by its number of threads, takes
    /// jobs of its own.
    pub(crate) fn pool<'scope>(
        scope: &'scope Scope<'scope, '_>,
        attempt: Attempt<'scope, J, D>,
        groups: &[usize],
    ) -> Self
    where
        J: 'scope,
        D: 'scope,
    {
        let (tell, done) = channel();
        let start = |threads: usize| {
            let (jobs, taken) = channel::<J>();
            let taken = Arc::new(Mutex::new(taken));
            for _ in 0..threads.max(1) {
                let (taken, tell) = (Arc::clone(&taken), tell.clone());
                scope.spawn(move || {
                    loop {
                        // The guard is released at the end of this statement, before the job is run.
                        let job = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(job) = job else { return };
                        // That nobody waits for it is noticed by what is sent last.
                        let done = attempt(job, &|done| drop(tell.send(done)));
                        if tell.send(done).is_err() {
                            return;
                        }
                    }
                });
            }
            jobs
        };
        Lanes::Pool { groups: groups.iter().map(|threads| start(*threads)).collect(), done }
    }

    /// Submits a job to the first group.
    pub(crate) fn submit(&mut self, job: J) {
        self.submit_to(0, job);
    }

    /// Submits a job to a group that was started. Inline, there are no groups.
    pub(crate) fn submit_to(&mut self, group: usize, job: J) {
        match self {
            Lanes::Inline(inline) => {
                inline.waiting.push(job);
                if inline.ahead && inline.order.bool() {
                    inline.make_one();
                }
            }
            // The threads live as long as the lanes, so the job is received.
            Lanes::Pool { groups, .. } => drop(groups.get(group).map(|jobs| jobs.send(job))),
        }
    }

    /// What an attempt told, or its result, if there is any within `wait`. Always `None` if nothing was submitted.
    pub(crate) fn poll(&mut self, wait: Duration) -> Option<D> {
        match self {
            Lanes::Inline(inline) => {
                if inline.told.is_empty() && !inline.waiting.is_empty() {
                    inline.make_one();
                }
                inline.told.pop_front()
            }
            Lanes::Pool { done, .. } => done.recv_timeout(wait).ok(),
        }
    }
}

/// Makes a call. If the platform panics, whether the call took effect is unknown.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, PlatformError>) -> Result<T, PlatformError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let reason = format!("the platform panicked: {}", panic_text(panic.as_ref()));
        Err(PlatformError::Retry { fate: Fate::Unknown, after: None, reason })
    })
}
