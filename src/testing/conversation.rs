//! The platform's side of the conversation: the next event.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Map, Value, json};

use crate::clock::Clock;

use super::schedule::{Act, Setting};
use super::world::{Accepted, Outside, SentEvent};

/// The unit of the phase that lists units: the external system's.
const SYSTEM_UNIT: &str = "@external-sync-units/system";

/// The deletions, and when they happen.
const DELETIONS: [(Setting, &str); 2] = [
    (Setting::DeleteAttachments, "EXTRACTION_ATTACHMENTS_DELETE"),
    (Setting::DeleteData, "EXTRACTION_DATA_DELETE"),
];

/// The seed's name and the newer one, of events and of their answers.
const NAMES: [(&str, &str); 24] = [
    ("EXTRACTION_EXTERNAL_SYNC_UNITS_START", "START_EXTRACTING_EXTERNAL_SYNC_UNITS"),
    ("EXTRACTION_METADATA_START", "START_EXTRACTING_METADATA"),
    ("EXTRACTION_DATA_START", "START_EXTRACTING_DATA"),
    ("EXTRACTION_DATA_CONTINUE", "CONTINUE_EXTRACTING_DATA"),
    ("EXTRACTION_ATTACHMENTS_START", "START_EXTRACTING_ATTACHMENTS"),
    ("EXTRACTION_ATTACHMENTS_CONTINUE", "CONTINUE_EXTRACTING_ATTACHMENTS"),
    ("EXTRACTION_DATA_DELETE", "START_DELETING_EXTRACTOR_STATE"),
    ("EXTRACTION_ATTACHMENTS_DELETE", "START_DELETING_EXTRACTOR_ATTACHMENTS_STATE"),
    ("EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE"),
    ("EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR", "EXTERNAL_SYNC_UNIT_EXTRACTION_ERROR"),
    ("EXTRACTION_METADATA_DONE", "METADATA_EXTRACTION_DONE"),
    ("EXTRACTION_METADATA_ERROR", "METADATA_EXTRACTION_ERROR"),
    ("EXTRACTION_DATA_DONE", "DATA_EXTRACTION_DONE"),
    ("EXTRACTION_DATA_PROGRESS", "DATA_EXTRACTION_PROGRESS"),
    ("EXTRACTION_DATA_DELAY", "DATA_EXTRACTION_DELAYED"),
    ("EXTRACTION_DATA_ERROR", "DATA_EXTRACTION_ERROR"),
    ("EXTRACTION_ATTACHMENTS_DONE", "ATTACHMENT_EXTRACTION_DONE"),
    ("EXTRACTION_ATTACHMENTS_PROGRESS", "ATTACHMENT_EXTRACTION_PROGRESS"),
    ("EXTRACTION_ATTACHMENTS_DELAY", "ATTACHMENT_EXTRACTION_DELAYED"),
    ("EXTRACTION_ATTACHMENTS_ERROR", "ATTACHMENT_EXTRACTION_ERROR"),
    ("EXTRACTION_DATA_DELETE_DONE", "EXTRACTOR_STATE_DELETION_DONE"),
    ("EXTRACTION_DATA_DELETE_ERROR", "EXTRACTOR_STATE_DELETION_ERROR"),
    ("EXTRACTION_ATTACHMENTS_DELETE_DONE", "EXTRACTOR_ATTACHMENTS_STATE_DELETION_DONE"),
    ("EXTRACTION_ATTACHMENTS_DELETE_ERROR", "EXTRACTOR_ATTACHMENTS_STATE_DELETION_ERROR"),
];

fn newer_name(name: &str) -> &str {
    NAMES.iter().find(|(seed, _)| *seed == name).map_or(name, |(_, newer)| newer)
}

/// The seed's name for a name in either spelling.
pub(super) fn seed_name(name: &str) -> String {
    NAMES.iter().find(|(_, newer)| *newer == name).map_or(name, |(seed, _)| seed).to_owned()
}

impl Outside {
    /// Whether the life that got the newest event may be followed by CONTINUE if it died with nothing sealed.
    pub(super) fn may_overtake(&self) -> bool {
        let Some(last) = self.sent.iter().rposition(|event| !event.stray) else { return false };
        let Some(event) = self.sent.get(last) else { return false };
        let number = event_number(&event.request);
        let overtaken = |act: &Act| matches!(act, Act::Overtake { event } if *event == number);
        continue_of(event).is_some() && self.answer_to(last).is_none() && self.acts.iter().any(overtaken)
    }

    /// The platform's next event; `None` when every sync is done. `overtakes`: see [`Outside::may_overtake`].
    pub(super) fn next_event(&mut self, overtakes: bool) -> Option<SentEvent> {
        let acts = Arc::clone(&self.acts);
        let Some(last) = self.sent.iter().rposition(|event| !event.stray) else {
            if self.is(Setting::Units) || self.is(Setting::UnitsInline) {
                self.count("phase/external-sync-units");
                return Some(self.event("EXTRACTION_EXTERNAL_SYNC_UNITS_START", SYSTEM_UNIT, "run-0"));
            }
            return Some(self.first_event(0));
        };
        let current = Arc::clone(self.sent.get(last)?);
        let Some(answer) = self.answer_to(last) else {
            // Its worker does not answer, however often it gets it.
            if self.outdated.contains(&current.request) {
                self.count("run/given-up-unanswered");
                return Some(self.first_event(self.runs.len()));
            }
            if overtakes && let Some(next) = continue_of(&current) {
                self.count("event/continue-after-kill");
                return Some(self.event(next, &current.unit, &current.run));
            }
            return Some(SentEvent { at: current.at, ..(*current).clone() });
        };
        let number = event_number(&current.request);
        if let Some(again) = self.delivered_again(number) {
            return Some(again);
        }
        if let Some(late) = self.late_deletion() {
            return Some(late);
        }
        let goes_on = ["PROGRESS", "DELAY"].iter().any(|end| answer.event_type.ends_with(end));
        if goes_on && acts.iter().any(|act| matches!(act, Act::GiveUp { event } if *event == number)) {
            self.count("run/given-up");
            return Some(self.first_event(self.runs.len()));
        }
        if let Some(old) = self.of_abandoned_run() {
            return Some(old);
        }
        if goes_on
            && acts.iter().any(|act| matches!(act, Act::ReuseIds { event } if *event <= number))
            && current.event_type.ends_with("CONTINUE")
        {
            self.count("event/ids-reused");
            self.clock.advance(Duration::from_secs(answer.delay));
            return Some(SentEvent { at: self.clock.now(), ..(*current).clone() });
        }
        self.wait(number, &answer, goes_on);
        self.follows(&current, &answer)
    }

    /// An older event, delivered again as the schedule says, or again after the next one.
    fn delivered_again(&mut self, newest: u64) -> Option<SentEvent> {
        // Without ids it would be a new event.
        if self.is(Setting::NoIds) {
            return None;
        }
        let acts = Arc::clone(&self.acts);
        for act in acts.iter() {
            let (which, name) = match act {
                Act::Again { event } if *event == newest => (*event, "event/again"),
                Act::Late { event } if event + 1 == newest => (*event, "event/late"),
                _ => continue,
            };
            let request = format!("request-{which}");
            let first = self.sent.iter().find(|event| event.request == request && !event.stray).cloned();
            let sent_again = |event: &Arc<SentEvent>| event.stray && event.request == request;
            if let Some(event) = first
                && !self.sent.iter().any(sent_again)
            {
                self.count(name);
                return Some(SentEvent { stray: true, ..(*event).clone() });
            }
        }
        None
    }

    /// An event that asked for a deletion, delivered again once during the next run.
    fn late_deletion(&mut self) -> Option<SentEvent> {
        let current = self.sent.iter().rfind(|event| !event.stray)?;
        // Without ids it would be a new event.
        if self.is(Setting::NoIds) || !current.event_type.starts_with("EXTRACTION_DATA") {
            return None;
        }
        let delivered_again = |deletion: &SentEvent| {
            self.sent.iter().any(|event| event.stray && event.request == deletion.request)
        };
        let comes_late = |event: &&Arc<SentEvent>| {
            event.event_type.ends_with("_DELETE") && event.run != current.run && !delivered_again(event)
        };
        let deletion = SentEvent { stray: true, ..SentEvent::clone(self.sent.iter().find(comes_late)?) };
        self.count("event/late-deletion");
        Some(deletion)
    }

    /// One more event of a run that the platform gave up, once.
    fn of_abandoned_run(&mut self) -> Option<SentEvent> {
        let old = self.runs.iter().rev().find(|run| run.abandoned)?.id.clone();
        // If all events of a run met a worker state that was cut in half, nothing could be recorded: it would be a
        // new event.
        if self.is(Setting::NoIds)
            || self.is_cut_short()
            || self.sent.iter().any(|event| event.stray && event.run == old)
        {
            return None;
        }
        let event = self.sent.iter().rev().find(|event| event.run == old).cloned()?;
        self.count("event/of-abandoned-run");
        let json = event.json.replace(&event.request, "request-of-the-past");
        let request = "request-of-the-past".to_owned();
        Some(SentEvent { json, request, stray: true, ..(*event).clone() })
    }

    /// Lets the time of a DELAY pass, unless the platform does not wait.
    fn wait(&mut self, number: u64, answer: &Accepted, goes_on: bool) {
        if answer.delay > 0 {
            if self.acts.iter().any(|act| matches!(act, Act::Early { event } if *event == number)) {
                self.count("event/early");
            } else {
                self.clock.advance(Duration::from_secs(answer.delay));
            }
        }
        if goes_on {
            self.count(if answer.delay > 0 {
                "event/continue-after-delay"
            } else {
                "event/continue-after-progress"
            });
        }
    }

    /// What follows an event with this answer; `None` when every sync is done.
    fn follows(&mut self, current: &SentEvent, answer: &Accepted) -> Option<SentEvent> {
        let next = match answer.event_type.as_str() {
            "EXTRACTION_EXTERNAL_SYNC_UNITS_DONE" => return Some(self.first_event(0)),
            "EXTRACTION_METADATA_DONE" => "EXTRACTION_DATA_START",
            "EXTRACTION_DATA_DONE" if self.is(Setting::NoAttachments) => {
                self.count("run/without-attachments-phase");
                return self.next_sync(current);
            }
            "EXTRACTION_DATA_DONE" => "EXTRACTION_ATTACHMENTS_START",
            "EXTRACTION_DATA_PROGRESS" | "EXTRACTION_DATA_DELAY" => "EXTRACTION_DATA_CONTINUE",
            "EXTRACTION_ATTACHMENTS_PROGRESS" | "EXTRACTION_ATTACHMENTS_DELAY" => {
                "EXTRACTION_ATTACHMENTS_CONTINUE"
            }
            "EXTRACTION_ATTACHMENTS_DONE"
            | "EXTRACTION_DATA_DELETE_DONE"
            | "EXTRACTION_ATTACHMENTS_DELETE_DONE" => return self.next_sync(current),
            // A run that answers ERROR again and again cannot go on.
            _ if self.errors_in_a_row() >= 3 => return Some(self.first_event(self.runs.len())),
            // After an ERROR, the person who set up the sync corrects it and lets the platform go on.
            _ => match current.event_type.as_str() {
                "EXTRACTION_DATA_START" => "EXTRACTION_DATA_CONTINUE",
                same => same,
            },
        };
        Some(self.event(next, &current.unit, &current.run))
    }

    /// The number of ERRORs at the end of the accepted messages.
    fn errors_in_a_row(&self) -> usize {
        self.accepted.iter().rev().take_while(|message| message.event_type.ends_with("ERROR")).count()
    }

    /// The next sync, once one is finished.
    fn next_sync(&mut self, current: &SentEvent) -> Option<SentEvent> {
        for (setting, deletion) in DELETIONS {
            let deleted = self.sent.iter().any(|event| event.event_type == deletion);
            if self.is(setting) && !deleted {
                self.count(&format!("event/{setting}"));
                return Some(self.event(deletion, &current.unit, &current.run));
            }
        }
        let finished = self.runs.iter().filter(|run| run.finished).count();
        let syncs = if self.acts.contains(&Act::TwoUnits) { 3 } else { 2 };
        if finished >= syncs {
            return None;
        }
        self.clock.advance(Duration::from_secs(3600));
        self.count(if syncs == 3 { "unit/two" } else { "run/incremental" });
        Some(self.first_event(self.runs.len()))
    }

    fn first_event(&mut self, run: usize) -> SentEvent {
        let finished = self.runs.iter().filter(|run| run.finished).count();
        let unit = if self.acts.contains(&Act::TwoUnits) && finished == 1 { "unit-b" } else { "unit-a" };
        self.event("EXTRACTION_METADATA_START", unit, &format!("run-{run}"))
    }

    /// A new event, with new ids.
    fn event(&mut self, event_type: &str, unit: &str, run: &str) -> SentEvent {
        let numbers =
            self.sent.iter().map(|event| event_number(&event.request)).filter(|&number| number < u64::MAX);
        let number = numbers.max().map_or(0, |number| number + 1);
        for act in self.acts.iter() {
            if let Act::ClockSteps { event, seconds } = act
                && *event == number
            {
                let now = self.clock.now() + TimeDelta::seconds(*seconds);
                self.clock.step_to(now);
                let what = if *seconds < 0 { "clock/back" } else { "clock/ahead" };
                *self.fired.entry(what.to_owned()).or_default() += 1;
            }
        }
        let request = format!("request-{number}");
        let newer = self.is(Setting::NewerNames);
        let name = if newer { newer_name(event_type) } else { event_type };
        if newer {
            self.count("event/newer-names");
        }
        // Its ids in this simulation, whatever ids it has.
        let mut context = Map::from_iter([
            ("simulated_run".to_owned(), Value::from(run)),
            ("simulated_request".to_owned(), Value::from(request.as_str())),
            ("external_system_id".to_owned(), Value::from("system")),
        ]);
        let mut put = |key: &str, value: Value| context.insert(key.to_owned(), value);
        if unit != SYSTEM_UNIT {
            put("sync_unit_id", unit.into());
            put("external_sync_unit_id", "external".into());
        }
        if self.is(Setting::NoIds) {
            self.count("event/without-ids");
        } else {
            put("run_id", run.into());
            put("request_id", request.as_str().into());
            put("sequence_version", number.to_string().into());
        }
        let json = json!({
            "context": { "snap_in_version_id": "version-1" },
            "execution_metadata": { "request_id": request },
            "payload": { "event_type": name, "event_context": context },
        });
        SentEvent {
            json: json.to_string(),
            event_type: event_type.to_owned(),
            unit: unit.to_owned(),
            run: run.to_owned(),
            request,
            at: self.clock.now(),
            stray: false,
        }
    }
}

/// The event that continues the phase of an event, if that phase can be continued.
fn continue_of(event: &SentEvent) -> Option<&'static str> {
    [
        ("EXTRACTION_DATA_", "EXTRACTION_DATA_CONTINUE"),
        ("EXTRACTION_ATTACHMENTS_", "EXTRACTION_ATTACHMENTS_CONTINUE"),
    ]
    .into_iter()
    .find_map(|(phase, next)| event.event_type.starts_with(phase).then_some(next))
}

fn event_number(request: &str) -> u64 {
    request.strip_prefix("request-").and_then(|number| number.parse().ok()).unwrap_or(u64::MAX)
}
