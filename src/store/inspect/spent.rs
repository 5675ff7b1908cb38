//! Where the time of runs went, as far as their events show.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use crate::model::Phase;

use super::report::Report;
use super::snapshot::Conversation;
use super::standing::Standing;
use super::words::MessageKind;

/// Where the time of a phase went, in the runs whose events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeSpent {
    /// The phase; `None` for events that were not answered, of runs that are over.
    pub phase: Option<Phase>,
    /// Events that were accepted.
    pub invocations: u64,
    /// From events to their answers, less what was lost to deaths.
    pub work: TimeDelta,
    /// From answers to the events after them, but not after a DELAY.
    pub between: TimeDelta,
    /// From DELAYs to the events after them.
    pub delay: TimeDelta,
    /// From the last that a life stored to the life after it: what its death cost at most.
    pub lost: TimeDelta,
}

impl TimeSpent {
    fn nothing(phase: Option<Phase>) -> Self {
        let zero = TimeDelta::zero();
        Self { phase, invocations: 0, work: zero, between: zero, delay: zero, lost: zero }
    }
}

impl Conversation {
    /// Where the time went, by phase, until the store was read. `report` and `standing`: of the same unit. A process that is
    /// gone is not at work: from what it stored last, the time is lost. Clocks of several machines need not agree, so no
    /// time is less than nothing.
    pub fn time_spent(&self, report: &Report, standing: &Standing) -> Vec<TimeSpent> {
        // The phase that is not known comes last.
        let mut spent: BTreeMap<(bool, Option<Phase>), TimeSpent> = BTreeMap::new();
        let open = report.open_run();
        for (at, event) in self.events.iter().enumerate() {
            let next = self.events.get(at + 1).filter(|next| next.run == event.run);
            let is_open = next.is_none() && open.is_some_and(|run| Some(&run.run) == event.run.as_ref());
            let until = next.map(|next| next.accepted_at).or_else(|| is_open.then_some(standing.read_at));
            let answered_at = event.answer.as_ref().map(|answer| answer.sealed_at);
            let phase = match &event.answer {
                Some(answer) => Some(answer.phase),
                None => open.filter(|_| is_open).and_then(|run| run.phase),
            };
            let times = spent.entry((phase.is_none(), phase)).or_insert_with(|| TimeSpent::nothing(phase));
            times.invocations += 1;
            let Some(end) = answered_at.or(until) else { continue };
            let of_event = self.deaths.iter().chain(&standing.death).filter(|death| {
                death.run == event.run && death.found_at >= event.accepted_at && death.found_at <= end
            });
            let lost = of_event
                .map(|death| death.found_at - death.changed_at.unwrap_or_default().max(event.accepted_at))
                .map(|lost| lost.max(TimeDelta::zero()))
                .sum::<TimeDelta>();
            times.lost += lost;
            times.work += (end - event.accepted_at - lost).max(TimeDelta::zero());
            if let (Some(answer), Some(until)) = (&event.answer, until) {
                let waited = (until - end).max(TimeDelta::zero());
                if answer.answer == MessageKind::Delay {
                    times.delay += waited;
                } else {
                    times.between += waited;
                }
            }
        }
        spent.into_values().collect()
    }
}
