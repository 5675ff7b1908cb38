//! The extractor's own calls to its source, with faults by schedule: see [`Life::source`].

use std::time::Duration;

use super::schedule::{Act, Call, CallFault};
use super::world::{About, Change, Life, Outside};

/// How long a call takes in the simulated world.
const TAKES: Duration = Duration::from_millis(200);
/// How long a slow answer takes.
const SLOW: Duration = Duration::from_secs(20);
/// How long a call takes that is never answered.
const TIMES_OUT: Duration = Duration::from_secs(30);

/// How a call to the source fails, if the schedule says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceFault {
    /// The source answers with an error: 401, 429, 500 or 503.
    #[error("simulated: the source answered {status}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// Its `Retry-After`, if it has one.
        retry_after: Option<Duration>,
    },
    /// The source does not answer.
    #[error("simulated: the source did not answer in time")]
    TimedOut,
    /// The body of the answer ends in the middle.
    #[error("simulated: the source's answer broke off")]
    Cut,
    /// The process has been killed: what it does from here on has no effect.
    #[error("simulated: the process is dead")]
    Dead,
}

impl Life {
    /// Makes a call to the extractor's source, and makes it fail or take long where the schedule says so. The call is a
    /// moment at which the explorer can kill the process. `name` is the name of the call in reports.
    ///
    /// Wrap the closure or the method through which the extractor reaches its source, and turn a [`SourceFault`] into
    /// what the client would return. So the extractor's own reaction to errors is tested.
    ///
    /// It is a violation if [`Extractor::page`](crate::airdrop::Extractor::page) returns a page although a call during it
    /// failed and was not repeated with success: the records of that call are skipped.
    ///
    /// ```
    /// use highwater::testing::{Life, SourceFault};
    ///
    /// /// Returns the status and the body.
    /// fn get(life: &Life, path: &str) -> Result<(u16, String), std::io::Error> {
    ///     match life.source("get", || format!(r#"{{"path":"{path}"}}"#)) {
    ///         Ok(body) => Ok((200, body)),
    ///         Err(SourceFault::Status { status, .. }) => Ok((status, String::new())),
    ///         Err(fault) => Err(std::io::Error::other(fault)),
    ///     }
    /// }
    /// # let _ = get;
    /// ```
    ///
    /// # Errors
    /// The fault, by schedule. For [`SourceFault::Cut`] `call` was made, and its result is dropped.
    pub fn source<T>(&self, name: &str, call: impl FnOnce() -> T) -> Result<T, SourceFault> {
        let mut inner = self.world.lock();
        if inner.dies_now() {
            return Err(SourceFault::Dead);
        }
        let fault = inner.fault(Call::Source);
        let takes = match fault {
            Some(CallFault::Late) => SLOW,
            Some(CallFault::TimedOut) => TIMES_OUT,
            _ => TAKES,
        };
        inner.clock.advance(takes);
        drop(inner);
        let answer = match fault.and_then(fault_of) {
            None => Ok(call()),
            Some(SourceFault::Cut) => {
                drop(call());
                Err(SourceFault::Cut)
            }
            Some(fault) => Err(fault),
        };
        let mut inner = self.world.lock();
        inner.record(Change::Called {
            call: Call::Source,
            effect: None,
            failed: answer.is_err(),
            fault,
            about: About::Nothing,
        });
        match &answer {
            Ok(_) => drop(inner.failed_source_calls.remove(name)),
            Err(fault) => drop(inner.failed_source_calls.insert(name.to_owned(), *fault)),
        }
        answer
    }
}

impl Outside {
    /// A call of the current page that failed and was not repeated with success.
    pub(super) fn left_out_of_page(&self) -> Option<String> {
        let (name, fault) = self.failed_source_calls.first_key_value()?;
        Some(format!(
            "a page was returned although its call {name:?} failed ({fault}) and was not repeated: what that call would \
             have returned is skipped"
        ))
    }
}

/// How the call fails; `None` if it only takes long.
fn fault_of(fault: CallFault) -> Option<SourceFault> {
    let status = |status| SourceFault::Status { status, retry_after: None };
    Some(match fault {
        CallFault::Late => return None,
        CallFault::Busy(seconds) => SourceFault::Status {
            status: 429,
            retry_after: seconds.map(|seconds| Duration::from_secs(seconds.into())),
        },
        CallFault::Refused(code) | CallFault::Status { code, .. } => status(code),
        CallFault::ErrorBefore => status(500),
        CallFault::ErrorAfter => status(503),
        CallFault::TimedOut => SourceFault::TimedOut,
        _ => SourceFault::Cut,
    })
}

/// The faults of the source's calls in schedule number `number`: one in every few calls. They have a random generator
/// of their own, so that the other acts of the schedule do not depend on them.
pub(super) fn acts_of(number: u64) -> Vec<Act> {
    const FAULTS: [CallFault; 8] = [
        CallFault::Busy(Some(2)),
        CallFault::Reset { applied: true },
        CallFault::ErrorBefore,
        CallFault::Late,
        CallFault::Refused(401),
        CallFault::TimedOut,
        CallFault::Busy(None),
        CallFault::ErrorAfter,
    ];
    let mut rng = fastrand::Rng::with_seed(number);
    let mut at = 0;
    let faults = FAULTS.iter().cycle().skip(rng.usize(..FAULTS.len())).take(3);
    let act = |fault: &CallFault| {
        at += rng.u64(1..6);
        Act::Call { call: Call::Source, number: at, fault: *fault }
    };
    faults.map(act).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::airdrop::{Context, ExternalSyncUnit, Extractor, Listing, SourceError};
    use crate::record::Record;
    use crate::store::Page;
    use crate::testing::Explore;

    /// An extractor of three pages, each of which takes two calls: one for issues, and one for their users.
    struct TwoCalls {
        life: Life,
        /// Returns the page without the users if their call fails.
        is_half: bool,
    }

    impl TwoCalls {
        fn get(&self, name: &str, page: u32) -> Result<String, SourceError> {
            self.life.source(name, || format!("{name}-{page}")).map_err(|fault| match fault {
                SourceFault::Status { status: 429, retry_after } => {
                    SourceError::RateLimited { after: retry_after.unwrap_or(Duration::from_secs(60)) }
                }
                fault => SourceError::from(fault),
            })
        }
    }

    impl Extractor for TwoCalls {
        type Cursor = u32;

        fn external_sync_units(&self, _: &Context<'_>) -> Result<Vec<ExternalSyncUnit>, SourceError> {
            Ok(vec![ExternalSyncUnit::new("unit-a", "a", "")])
        }

        fn metadata(&self, _: &Context<'_>) -> Result<Value, SourceError> {
            Ok(json!({ "record_types": {} }))
        }

        fn streams(&self, _: &Context<'_>) -> Result<Vec<String>, SourceError> {
            Ok(vec!["issues".to_owned()])
        }

        fn page(&self, _: &Context<'_>, _: &Listing, cursor: Option<u32>) -> Result<Page<u32>, SourceError> {
            let at = cursor.unwrap_or(0);
            let mut page = if at < 2 { Page::more(at + 1) } else { Page::last() };
            page.push("issues", Record::new(self.get("issues", at)?, &json!({}))?);
            match self.get("users", at) {
                Ok(user) => page.push("users", Record::new(user, &json!({}))?),
                Err(_) if self.is_half => {}
                Err(error) => return Err(error),
            }
            Ok(page)
        }
    }

    #[test]
    fn calls_to_the_source_fail_are_slow_and_are_killed_by_schedule() {
        for explore in [Explore::new(), Explore::new().without_disk()] {
            let report = explore.states(600).run(|life| TwoCalls { life: life.clone(), is_half: false });
            assert!(report.failure.is_none(), "{report}");
            for fault in [
                "429",
                "429-after-2",
                "500-before",
                "500-after",
                "late",
                "refused-401",
                "reset-after",
                "timed-out",
            ] {
                assert!(report.faults.contains_key(&format!("source/{fault}")), "{fault}\n{report}");
            }
        }
    }

    #[test]
    fn a_page_that_is_returned_although_a_call_of_it_failed_is_found() {
        let report = Explore::new().states(600).run(|life| TwoCalls { life: life.clone(), is_half: true });
        let failure = report.failure.expect("it is found");
        assert!(failure.violation.what.contains("its call \"users\" failed"), "{}", failure.violation.what);
        assert!(failure.schedule.to_string().contains("source"), "{}", failure.schedule);
    }
}
