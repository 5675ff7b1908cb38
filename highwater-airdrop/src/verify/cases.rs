//! The cases: one thing goes wrong at one place of a clean sync. Also chooses which cases to run, if not all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::recording::Recording;
use super::source::{SourceAct, SourceCall, SourceFault};
use crate::call::{Call, CallRecord};
use crate::fault::{Act, Fault};
use crate::sync::{Disturbance, Invocation};

/// The shortest time after an answer at which a worker is killed between two calls.
const KILL_LATER_MIN: Duration = Duration::from_millis(1);
/// The `Retry-After` of an answer, in seconds.
const RETRY_AFTER: &str = "1";

/// In which of the two syncs something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Which {
    /// The first, which begins with an empty folder.
    First,
    /// The incremental one after it.
    Next,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Which::First => "first",
            Which::Next => "next",
        })
    }
}

/// What the platform saw of a clean sync: the places where something can go wrong.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) which: Which,
    pub(super) calls: Vec<CallRecord>,
    pub(super) invocations: Vec<Invocation>,
    /// The requests to the source.
    pub(super) source: Vec<SourceCall>,
}

/// What goes wrong in a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    Call(Fault),
    Source(SourceFault),
    Invocation(u64, Disturbance),
    /// Each invocation finds its folder empty.
    FreshDisk,
}

/// One thing that goes wrong at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    /// The id. It is stable for a worker as long as its clean sync is the same.
    pub(super) id: String,
    pub(super) which: Which,
    /// The name of the fault.
    pub(super) kind: String,
    /// The place: the kind of call, or the event.
    pub(super) place: String,
    pub(super) wrong: Wrong,
}

/// Which faults are possible.
#[derive(Debug, Clone)]
pub(super) struct Menu {
    /// Whether the worker can be killed.
    pub(super) kills: bool,
    /// Whether it can be given an empty folder.
    pub(super) fresh_disk: bool,
    /// The delay of a slow answer.
    pub(super) slow: Duration,
    /// The answers of the source, if they are recorded.
    pub(super) recording: Option<Arc<Recording>>,
}

impl Menu {
    /// All cases of a clean sync, in its order.
    pub(super) fn cases(&self, shape: &Shape) -> Vec<Case> {
        let which = shape.which;
        let mut cases = Vec::new();
        let mut of_kind: BTreeMap<Call, u64> = BTreeMap::new();
        for (at, call) in shape.calls.iter().enumerate() {
            if call.call == Call::Unknown {
                continue;
            }
            let number = of_kind.entry(call.call).or_default();
            *number += 1;
            for act in self.acts(call, shape.calls.get(at + 1)) {
                let fault = Fault::of(call.call, *number, act.clone());
                cases.push(Case {
                    id: format!("{which}:{fault}"),
                    which,
                    kind: act.word(),
                    place: call.call.to_string(),
                    wrong: Wrong::Call(fault),
                });
            }
        }
        for (at, call) in shape.source.iter().enumerate() {
            let Some(answer) = call.answer else { continue };
            for act in self.source_acts(answer) {
                let text = format!("source-{}:{}", act.word(), at + 1);
                cases.push(Case {
                    id: format!("{which}:{text}"),
                    which,
                    kind: act.word(),
                    place: format!("source {}", call.place),
                    wrong: Wrong::Source(SourceFault { text, answer, nth: call.nth, act }),
                });
            }
        }
        let mut was_delayed = false;
        for invocation in &shape.invocations {
            let half = Duration::from_secs_f64(invocation.seconds / 2.0);
            let mut disturb = |kind: &str, disturbance| {
                cases.push(Case {
                    id: format!("{which}:invocation-{kind}:{}", invocation.number),
                    which,
                    kind: kind.to_owned(),
                    place: invocation.event_type.clone(),
                    wrong: Wrong::Invocation(invocation.number, disturbance),
                });
            };
            disturb("twice", Disturbance::Twice);
            if self.kills {
                disturb("half-time", Disturbance::Budget(half));
            }
            if was_delayed {
                disturb("delay-early", Disturbance::Delay(Duration::ZERO));
                disturb("delay-late", Disturbance::Delay(self.slow));
            }
            was_delayed = invocation.answer.as_deref().is_some_and(|answer| answer.contains("_DELAY"));
        }
        if self.fresh_disk {
            cases.push(Case {
                id: format!("{which}:fresh-disk"),
                which,
                kind: "fresh-disk".to_owned(),
                place: "every invocation".to_owned(),
                wrong: Wrong::FreshDisk,
            });
        }
        cases
    }

    /// The faults of a request to the source.
    fn source_acts(&self, at: usize) -> Vec<SourceAct> {
        let Some(recording) = &self.recording else { return Vec::new() };
        let Some(answer) = recording.answer(at) else { return Vec::new() };
        let mut acts = vec![
            SourceAct::Status(500),
            SourceAct::Status(429),
            SourceAct::TooMany { dated: false },
            SourceAct::TooMany { dated: true },
            SourceAct::Cut,
            SourceAct::Slow(self.slow),
        ];
        // It is correct to give up a file that its source refuses for good.
        if answer.json().is_some() {
            acts.push(SourceAct::Status(401));
        }
        if recording.empty_page(at).is_some() {
            acts.push(SourceAct::Empty);
        }
        acts
    }

    /// The faults of a call.
    fn acts(&self, call: &CallRecord, next: Option<&CallRecord>) -> Vec<Act> {
        let status = |status, retry_after: Option<&str>, applied| Act::Status {
            status,
            retry_after: retry_after.map(str::to_owned),
            applied,
        };
        let mut acts = vec![
            status(500, None, false),
            status(503, None, false),
            status(429, None, false),
            status(429, Some(RETRY_AFTER), false),
            Act::HangUp { applied: false },
            Act::Slow(self.slow),
        ];
        // A read has no effect. It is correct to give up a file that its source refuses for good.
        if call.call != Call::Attachment {
            acts.extend([400, 403, 408, 413].map(|refusal| status(refusal, None, false)));
        }
        let changes = matches!(
            call.call,
            Call::Prepare | Call::Upload | Call::Confirm | Call::State | Call::Message | Call::Mapping
        );
        if changes {
            acts.extend([status(500, None, true), status(503, None, true), Act::HangUp { applied: true }]);
        }
        if self.kills {
            acts.extend([Act::Kill { applied: false }, Act::Kill { applied: true }]);
            let answered = call.at_ms.saturating_add(call.took_ms);
            let pause = next
                .filter(|next| next.invocation == call.invocation)
                .map_or(0, |next| next.at_ms.saturating_sub(answered));
            acts.push(Act::KillLater(KILL_LATER_MIN.max(Duration::from_millis(pause / 2))));
        }
        acts
    }
}

/// Chooses this many cases, evenly over faults and places, in an order in which every prefix is even, too. In each
/// round every fault has one case. Those of the source come first: few workers are ready for them.
pub(super) fn sample(cases: Vec<Case>, most: usize, seed: u64) -> Vec<Case> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (of_source, of_platform) = cases.into_iter().partition(|case| matches!(case.wrong, Wrong::Source(_)));
    let mut sides = [queues(of_source, &mut random), queues(of_platform, &mut random)];
    let mut taken = Vec::new();
    loop {
        let before = taken.len();
        for queues in &mut sides {
            random.shuffle(queues);
            taken.extend(queues.iter_mut().filter_map(Iterator::next));
        }
        if taken.len() == before || taken.len() >= most {
            taken.truncate(most);
            return taken;
        }
    }
}

/// For each fault a queue in which the places take turns. Each queue begins at another place, so that few cases see
/// many places.
fn queues(cases: Vec<Case>, random: &mut fastrand::Rng) -> Vec<std::vec::IntoIter<Case>> {
    let place = |case: &Case| (case.which, case.place.clone());
    let places: BTreeSet<(Which, String)> = cases.iter().map(place).collect();
    let mut places: Vec<(Which, String)> = places.into_iter().collect();
    random.shuffle(&mut places);
    let mut by_kind: BTreeMap<String, BTreeMap<(Which, String), Vec<Case>>> = BTreeMap::new();
    for case in cases {
        by_kind.entry(case.kind.clone()).or_default().entry(place(&case)).or_default().push(case);
    }
    let mut queues = Vec::new();
    for mut of_place in by_kind.into_values() {
        places.rotate_left(1);
        let mut turns: Vec<Vec<Case>> = places.iter().filter_map(|place| of_place.remove(place)).collect();
        for cases in &mut turns {
            random.shuffle(cases);
        }
        let mut queue = Vec::new();
        while turns.iter().any(|cases| !cases.is_empty()) {
            queue.extend(turns.iter_mut().filter_map(Vec::pop));
        }
        queues.push(queue.into_iter());
    }
    queues
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(kind: &str, place: &str, number: usize) -> Case {
        Case {
            id: format!("{kind}:{place}:{number}"),
            which: Which::First,
            kind: kind.to_owned(),
            place: place.to_owned(),
            wrong: Wrong::FreshDisk,
        }
    }

    #[test]
    fn a_sample_is_even_over_kinds_and_places_and_the_same_for_the_same_seed() {
        // One fault and place has a hundred times as many cases as the others.
        let mut all: Vec<Case> = (0..1000).map(|number| case("a", "often", number)).collect();
        for kind in ["a", "b", "c", "d"] {
            all.extend((0..10).map(|number| case(kind, "rare", number)));
        }
        let taken = sample(all.clone(), 40, 7);
        assert_eq!(taken, sample(all.clone(), 40, 7));
        assert_ne!(taken, sample(all.clone(), 40, 8));
        for kind in ["a", "b", "c", "d"] {
            assert_eq!(taken.iter().filter(|case| case.kind == kind).count(), 10, "{kind}");
        }
        let rare = taken.iter().filter(|case| case.kind == "a" && case.place == "rare").count();
        assert_eq!(rare, 5);
        // All cases, each once, if there is room.
        let every = sample(all.clone(), usize::MAX, 7);
        let ids: BTreeSet<&str> = every.iter().map(|case| case.id.as_str()).collect();
        assert_eq!((every.len(), ids.len()), (all.len(), all.len()));
    }

    #[test]
    fn the_first_cases_are_every_fault_of_the_source_at_as_many_places_as_it_has() {
        let of_source = |word: &str, act, place: &str, number| Case {
            wrong: Wrong::Source(SourceFault { text: String::new(), answer: number, nth: 1, act }),
            ..case(word, place, number)
        };
        let faults =
            [("500", SourceAct::Status(500)), ("401", SourceAct::Status(401)), ("cut", SourceAct::Cut)];
        let mut all = Vec::new();
        for number in 0..20 {
            // The platform has the same fault, at many more places.
            all.extend((0..30).map(|place| case("500", &format!("call {place}"), number)));
            for (word, act) in faults {
                all.extend(["a", "b", "c"].map(|place| of_source(word, act, place, number)));
            }
        }
        for seed in 0..50 {
            let taken = sample(all.clone(), 4, seed);
            let set = |of: fn(&Case) -> &str| taken.iter().take(3).map(of).collect::<BTreeSet<_>>();
            assert_eq!(set(|case| &case.kind), BTreeSet::from(["401", "500", "cut"]), "seed {seed}");
            assert_eq!(set(|case| &case.place), BTreeSet::from(["a", "b", "c"]), "seed {seed}");
            assert!(!matches!(taken[3].wrong, Wrong::Source(_)), "seed {seed}: the platform has its turn");
        }
    }
}
