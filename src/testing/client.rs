//! A client of the source for an explored extractor: the schedule lets requests fail, and the process may die at
//! each.

use std::fmt;
use std::thread;
use std::time::Duration;

use crate::airdrop::SourceAnswer;
use crate::error::BoxError;

use super::schedule::{Call, CallFault};
use super::world::{About, Change, Life};

/// How long the source takes to answer, if it is slow.
const SLOW: Duration = Duration::from_secs(4);
/// One request in this many fails.
const ONE_IN: u64 = 16;

/// Why a request to the source failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceFault {
    /// It answered with an error, such as 500.
    Failed,
    /// It asked to wait: 429 with `Retry-After`.
    TooMany {
        /// How long.
        after: Duration,
    },
    /// The connection broke off in the middle of the answer.
    Cut,
}

impl SourceFault {
    /// The fault as the answer of a [`SourceClient`](crate::airdrop::SourceClient)'s transport.
    ///
    /// # Errors
    /// The fault itself, if there is no answer.
    pub fn answer(self) -> Result<SourceAnswer, BoxError> {
        let mut answer = SourceAnswer::new(self.status().ok_or(self)?, "");
        answer.retry_after = self.retry_after();
        Ok(answer)
    }

    /// The HTTP status of the answer; none if there was no answer.
    pub fn status(self) -> Option<u16> {
        match self {
            SourceFault::Failed => Some(500),
            SourceFault::TooMany { .. } => Some(429),
            SourceFault::Cut => None,
        }
    }

    /// The answer's `Retry-After`, if it has one.
    pub fn retry_after(self) -> Option<String> {
        match self {
            SourceFault::TooMany { after } => Some(after.as_secs().to_string()),
            SourceFault::Failed | SourceFault::Cut => None,
        }
    }
}

impl fmt::Display for SourceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceFault::Failed => f.write_str("simulated: the source failed"),
            SourceFault::TooMany { after } => write!(f, "simulated: too many requests, wait for {after:?}"),
            SourceFault::Cut => f.write_str("simulated: the answer broke off"),
        }
    }
}

impl std::error::Error for SourceFault {}

impl Life {
    /// Makes a request to the source, in place of the extractor's client. `answer` returns the answer; `what` names
    /// the request, for example by its path.
    ///
    /// The schedule decides which requests fail: about one in 16 returns an error, asks to wait, is cut off or
    /// answered slowly; and the process may die at each. If a request failed and was not repeated with success, and
    /// the extractor returns the page anyway, the exploration finds that ([`Broken::Half`](super::Broken::Half)).
    /// Call it in the thread that fetches the page.
    ///
    /// ```
    /// use highwater::airdrop::SourceError;
    /// use highwater::testing::Life;
    /// fn get(life: &Life, path: &str) -> Result<String, SourceError> {
    ///     life.source(path, || format!("what is at {path}")).map_err(|fault| match fault.status() {
    ///         Some(status) => SourceError::from_status(path, status, fault.retry_after().as_deref()),
    ///         None => SourceError::temporary(fault), // it broke off
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// The fault, if the request failed.
    pub fn source<T>(&self, what: &str, answer: impl FnOnce() -> T) -> Result<T, SourceFault> {
        let mut world = self.world.lock();
        if world.dies_now() {
            return Err(SourceFault::Cut);
        }
        let number = world.calls.get(&Call::Source).copied().unwrap_or(0);
        let mut rng = fastrand::Rng::with_seed(world.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (by_chance, kind) = (rng.u64(..ONE_IN) == 0, rng.u8(..5));
        let fault = world.fault(Call::Source).map(fault_of).or_else(|| by_chance.then(|| chosen(kind)));
        let (counted, fault) = match fault {
            None => ("answered", None),
            Some(None) => {
                world.clock.advance(SLOW);
                ("slow", None)
            }
            Some(Some(fault)) => {
                let counted = match fault {
                    SourceFault::Failed => "failed",
                    SourceFault::TooMany { .. } => "too-many",
                    SourceFault::Cut => "cut",
                };
                (counted, Some(fault))
            }
        };
        world.count(&format!("source/{counted}"));
        let failed = fault.is_some();
        world.record(Change::Called {
            call: Call::Source,
            effect: None,
            failed,
            fault: None,
            about: About::Nothing,
        });
        let not_given = world.not_given.entry(thread::current().id()).or_default();
        if failed {
            not_given.insert(what.to_owned());
        } else {
            not_given.remove(what);
        }
        drop(world);
        fault.map_or_else(|| Ok(answer()), Err)
    }

    /// What this thread failed to get since the last check, if anything.
    pub(super) fn not_given(&self) -> Option<String> {
        self.world.lock().not_given.remove(&thread::current().id())?.pop_first()
    }
}

/// The fault of a schedule's act; `None` if the source is only slow.
fn fault_of(fault: CallFault) -> Option<SourceFault> {
    Some(match fault {
        CallFault::TimedOut => return None,
        CallFault::Busy(seconds) => {
            SourceFault::TooMany { after: Duration::from_secs(seconds.unwrap_or(1).into()) }
        }
        CallFault::Reset { .. } | CallFault::BadBody | CallFault::Truncated => SourceFault::Cut,
        _ => SourceFault::Failed,
    })
}

/// One of the possible faults, at random.
fn chosen(kind: u8) -> Option<SourceFault> {
    match kind {
        0 => Some(SourceFault::Failed),
        1 => Some(SourceFault::TooMany { after: Duration::from_secs(2) }),
        2 => Some(SourceFault::TooMany { after: Duration::from_secs(3_000) }),
        3 => Some(SourceFault::Cut),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::schedule::{Act, Call, CallFault};
    use super::super::{Broken, Explore};
    use super::{Life, SourceFault};
    use crate::airdrop::{Context, ExternalSyncUnit, Extractor, Listing, SourceError};
    use crate::record::Record;
    use crate::store::Page;

    /// What an extractor does if the source fails in the middle of a page.
    #[derive(Clone, Copy)]
    enum Then {
        ReturnsTheError,
        AsksOnceMore,
        /// It returns what it has, and the next page is the next one: the rest is lost.
        GoesOn,
        /// It returns what it has, and the next page is this one again: records are repeated.
        StandsStill,
    }

    /// Nine issues, three on a page, with a request for each.
    struct Issues {
        life: Life,
        then: Then,
    }

    impl Issues {
        fn get(&self, number: u32) -> Result<Record, SourceError> {
            let ask = || self.life.source(&format!("/issues/{number}"), || json!({ "number": number }));
            let data = match (ask(), self.then) {
                (Err(SourceFault::Failed | SourceFault::Cut), Then::AsksOnceMore) => ask(),
                (asked, _) => asked,
            };
            let data = data.map_err(|fault| match fault.status() {
                Some(status) => SourceError::from_status(number, status, fault.retry_after().as_deref()),
                None => SourceError::temporary(fault),
            })?;
            Ok(Record::new(format!("ISSUE-{number}"), &data)?)
        }
    }

    impl Extractor for Issues {
        type Cursor = (u32, u32);

        fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
            Ok(Vec::new())
        }

        fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
            Ok(json!({ "schema_version": "v0.2.0", "record_types": {} }))
        }

        fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
            Ok(vec!["issues".to_owned()])
        }

        fn page(
            &self,
            _: &Context,
            _: &Listing,
            cursor: Option<(u32, u32)>,
        ) -> Result<Page<(u32, u32)>, SourceError> {
            let (first, tries) = cursor.unwrap_or((0, 0));
            let next = if first < 6 { Page::more((first + 3, 0)) } else { Page::last() };
            let mut records = Vec::new();
            for number in first..first + 3 {
                match (self.get(number), self.then) {
                    (Ok(record), _) => records.push(record),
                    (Err(error), Then::ReturnsTheError | Then::AsksOnceMore) => return Err(error),
                    (Err(_), Then::GoesOn) => break,
                    (Err(_), Then::StandsStill) => {
                        let half = Page::more((first, tries + 1));
                        return Ok(records
                            .into_iter()
                            .fold(half, |page, record| page.record("issues", record)));
                    }
                }
            }
            Ok(records.into_iter().fold(next, |page, record| page.record("issues", record)))
        }
    }

    #[test]
    fn a_page_that_is_returned_half_is_found() {
        for then in [Then::GoesOn, Then::StandsStill] {
            let explore = Explore::new().states(200);
            let report = explore.run(|life| Issues { life: life.clone(), then });
            let failure = report.failure.expect("it is found");
            assert_eq!(failure.violation.kind, Broken::Half, "{:?}", failure.violation);
            assert!(failure.violation.what.contains("stream issues"), "{:?}", failure.violation);
            let again =
                explore.replay(&failure.schedule.to_string(), |life| Issues { life: life.clone(), then });
            assert_eq!(again.unwrap().failure.expect("it is found again").violation.kind, Broken::Half);
        }
    }

    #[test]
    fn a_page_that_fails_whole_keeps_the_promise_and_meets_every_fault() {
        let faults = [
            CallFault::ErrorBefore,
            CallFault::Busy(Some(2)),
            CallFault::Reset { applied: false },
            CallFault::TimedOut,
        ];
        let acts =
            (1..).zip(faults).map(|(at, fault)| Act::Call { call: Call::Source, number: at * 4, fault });
        let explore = Explore::new().states(200).with_acts(acts);
        for then in [Then::ReturnsTheError, Then::AsksOnceMore] {
            let report = explore.run(|life| Issues { life: life.clone(), then });
            assert!(report.failure.is_none(), "{report}");
            for fault in ["failed", "too-many", "cut", "slow"] {
                assert!(report.faults.contains_key(&format!("source/{fault}")), "{fault}: {report}");
            }
        }
    }
}
