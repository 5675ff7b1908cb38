//! The results of a verification: for each case, and as a table of faults by place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::cases::Which;
use super::compare::{Delivered, Ran, RecordKey, SetAside};
use super::recording::RecordedFailures;
use crate::audit::printable;
use crate::error::chain;
use crate::sync::{AfterDeath, Outcome};

/// Ids of a case that are listed in text.
const IDS_TOLD_MAX: usize = 5;
/// Ids of a case that are listed in JSON.
const IDS_JSON_MAX: usize = 1_000;
/// Cases of a kind without findings that are listed.
const OTHERS_TOLD_MAX: usize = 10;
/// Cases that are listed in text.
const CASES_TOLD_MAX: usize = 40;

/// The verdict on a case, or on all: then the worst finding; without one `Clean`, unless no case has a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CaseVerdict {
    /// All was delivered, and nothing twice.
    Clean,
    /// No case was run: there is no result.
    NotRun,
    /// The fault did not come true: the case is inconclusive.
    NotReached,
    /// The worker made a request to its source that was never recorded: the case is inconclusive.
    NotRecorded,
    /// The sync did not end with DONE, and the following one delivered everything.
    Stopped,
    /// Something was delivered more than once in a run.
    Repeated,
    /// The following sync did not end with DONE.
    Stuck,
    /// Something was delivered with another content.
    Altered,
    /// Something was not delivered.
    Lost,
}

impl CaseVerdict {
    /// All of them, in the order in which a report counts them.
    pub const ALL: &'static [CaseVerdict] = &[
        CaseVerdict::Lost,
        CaseVerdict::Altered,
        CaseVerdict::Stuck,
        CaseVerdict::Repeated,
        CaseVerdict::Stopped,
        CaseVerdict::NotRecorded,
        CaseVerdict::NotReached,
        CaseVerdict::NotRun,
        CaseVerdict::Clean,
    ];

    /// Whether the worker is at fault.
    pub fn is_finding(self) -> bool {
        self >= CaseVerdict::Repeated
    }

    /// Whether it is conclusive.
    pub fn says_something(self) -> bool {
        !matches!(self, CaseVerdict::NotRun | CaseVerdict::NotReached | CaseVerdict::NotRecorded)
    }

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            CaseVerdict::Clean => "clean",
            CaseVerdict::NotRun => "not run",
            CaseVerdict::NotReached => "not reached",
            CaseVerdict::NotRecorded => "not recorded",
            CaseVerdict::Stopped => "stopped",
            CaseVerdict::Repeated => "repeated",
            CaseVerdict::Stuck => "stuck",
            CaseVerdict::Altered => "altered",
            CaseVerdict::Lost => "lost",
        }
    }
}

impl fmt::Display for CaseVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a sync ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum End {
    /// With DONE.
    Done,
    /// Not with DONE; the reason, for people.
    Stopped(String),
}

impl End {
    pub(super) fn of(outcome: &Outcome) -> Self {
        match &outcome.failure {
            None => End::Done,
            Some(failure) => End::Stopped(chain(failure)),
        }
    }
}

/// Where something went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Place {
    /// The call's number among all of the sync; 0 if it was not a call.
    pub call: u64,
    /// The invocation's number; 0 if it was all of them.
    pub invocation: u64,
    /// Its event.
    pub event_type: String,
}

/// A call in a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TimelineCall {
    /// The invocation.
    pub invocation: u64,
    /// The event of the invocation.
    pub event_type: String,
    /// What was called.
    pub call: String,
    /// The records that it was about, if known.
    pub records: u64,
    /// The status of the answer; `None` if there was no answer.
    pub status: Option<u16>,
    /// The fault that was applied to it.
    pub fault: Option<String>,
    /// When, in milliseconds since the sync began.
    pub at_ms: u64,
}

pub(super) fn timeline(ran: &Ran) -> Vec<TimelineCall> {
    let events: BTreeMap<u64, &str> = ran
        .invocations
        .iter()
        .map(|invocation| (invocation.number, invocation.event_type.as_str()))
        .collect();
    let calls = ran.calls.iter().map(|call| TimelineCall {
        invocation: call.invocation,
        event_type: events.get(&call.invocation).copied().unwrap_or_default().to_owned(),
        call: call.call.to_string(),
        records: call.content.as_ref().and_then(|content| content.lines).unwrap_or(call.records),
        status: call.status,
        fault: call.fault.clone(),
        at_ms: call.at_ms,
    });
    let mut calls: Vec<TimelineCall> = calls.collect();
    calls.extend(ran.source.iter().map(|call| TimelineCall {
        invocation: call.invocation,
        event_type: events.get(&call.invocation).copied().unwrap_or_default().to_owned(),
        call: format!("source {}", call.request),
        records: 0,
        status: call.status,
        fault: call.fault.clone(),
        at_ms: call.at_ms,
    }));
    calls.sort_by_key(|call| (call.invocation, call.at_ms));
    calls
}

/// The result of a case.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CaseResult {
    /// Its id.
    pub id: String,
    /// The sync in which something went wrong.
    pub which: Which,
    /// The fault.
    pub kind: String,
    /// The kind of call, or the event.
    pub place: String,
    /// Where that was.
    pub at: Place,
    /// Whether the fault came true.
    pub came_true: bool,
    /// How the sync ended.
    pub end: End,
    /// How the following sync ended.
    pub then: End,
    /// Records that were not delivered.
    pub lost: Vec<RecordKey>,
    /// Records that were delivered with another content.
    pub altered: Vec<RecordKey>,
    /// Records that were delivered too often; each listed once for each time too many.
    pub repeated: Vec<RecordKey>,
    /// Uploads that nothing names, in addition to those of the clean sync.
    pub wasted_uploads: u64,
    /// Invocations in addition to those of the clean sync.
    pub extra_invocations: u64,
    /// How long it took.
    pub seconds: f64,
    /// Requests to the source that were never recorded.
    pub unrecorded: Vec<String>,
    /// Its folder, if it is kept.
    pub dir: Option<PathBuf>,
    /// The calls of the sync, if there is a finding.
    pub timeline: Vec<TimelineCall>,
}

impl CaseResult {
    /// The verdict.
    pub fn verdict(&self) -> CaseVerdict {
        if !self.unrecorded.is_empty() {
            CaseVerdict::NotRecorded
        } else if !self.lost.is_empty() {
            CaseVerdict::Lost
        } else if !self.altered.is_empty() {
            CaseVerdict::Altered
        } else if self.then != End::Done {
            CaseVerdict::Stuck
        } else if !self.repeated.is_empty() {
            CaseVerdict::Repeated
        } else if !self.came_true {
            CaseVerdict::NotReached
        } else if self.end != End::Done {
            CaseVerdict::Stopped
        } else {
            CaseVerdict::Clean
        }
    }

    /// Whether something is lost although the worker answered DONE.
    pub fn said_done(&self) -> bool {
        self.end == End::Done && !self.lost.is_empty()
    }

    fn to_json(&self) -> Value {
        let some = |keys: &[RecordKey]| json!({ "count": keys.len(), "records": keys.iter().take(IDS_JSON_MAX).collect::<Vec<_>>() });
        json!({
            "id": self.id,
            "sync": self.which,
            "fault": self.kind,
            "place": self.place,
            "at": self.at,
            "came_true": self.came_true,
            "verdict": self.verdict(),
            "end": self.end,
            "then": self.then,
            "lost": some(&self.lost),
            "altered": some(&self.altered),
            "repeated": some(&self.repeated),
            "wasted_uploads": self.wasted_uploads,
            "extra_invocations": self.extra_invocations,
            "said_done": self.said_done(),
            "seconds": self.seconds,
            "unrecorded": self.unrecorded,
            "dir": self.dir,
        })
    }
}

/// The figures of a clean sync.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CleanFigures {
    /// Which of the two.
    pub sync: Which,
    /// Records, by item type.
    pub records: BTreeMap<String, u64>,
    /// Calls.
    pub calls: u64,
    /// Invocations.
    pub invocations: u64,
    /// Uploads that nothing names.
    pub wasted_uploads: u64,
    /// How long it took.
    pub seconds: f64,
    #[serde(skip)]
    pub(super) notes: Vec<String>,
}

impl CleanFigures {
    pub(super) fn new(sync: Which, outcome: &Outcome, ran: &Ran) -> Self {
        let mut notes = Vec::new();
        let repeated = ran.delivered.repeated(&Delivered::default()).len();
        if repeated > 0 {
            notes.push(format!("the clean {sync} sync delivers {repeated} records more than once by itself"));
        }
        if ran.wasted_uploads > 0 {
            notes.push(format!(
                "the clean {sync} sync makes {} uploads that nothing names",
                ran.wasted_uploads
            ));
        }
        Self {
            sync,
            records: ran.delivered.totals(),
            calls: ran.calls.len() as u64,
            invocations: ran.invocations.len() as u64,
            wasted_uploads: ran.wasted_uploads,
            seconds: outcome.took.as_secs_f64(),
            notes,
        }
    }
}

/// The result of a verification.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The worker, as text.
    pub worker: String,
    /// The clean syncs.
    pub clean: Vec<CleanFigures>,
    /// The failures among the recorded answers of the external system, if it is recorded. They do not change the
    /// verdict.
    pub recording: Option<RecordedFailures>,
    /// The differences between the two clean syncs.
    pub set_aside: SetAside,
    /// Notes about the clean syncs.
    pub notes: Vec<String>,
    /// How many cases there are, and how many were chosen.
    pub known: (usize, usize),
    /// Pairs of place and fault that the cases chosen from have; 0 if the cases were named.
    pub pairs: usize,
    /// The cases that were run.
    pub cases: Vec<CaseResult>,
    /// The seed by which they were chosen.
    pub seed: u64,
    /// What the platform did after a worker's death.
    pub after_death: AfterDeath,
    /// How long everything took.
    pub took: Duration,
}

/// A line of the table: the results of the cases of one fault at one place.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub(super) cases: u64,
    pub(super) lost: u64,
    pub(super) lost_cases: u64,
    pub(super) altered: u64,
    pub(super) repeated: u64,
    pub(super) stuck: u64,
    pub(super) stopped: u64,
    pub(super) wasted: u64,
    pub(super) extra: u64,
    pub(super) said_done: u64,
}

impl Row {
    /// The figures of the table, in the order of its columns.
    pub(super) fn figures(&self) -> [u64; 8] {
        [
            self.cases,
            self.lost,
            self.altered,
            self.repeated,
            self.stuck,
            self.wasted,
            self.extra,
            self.said_done,
        ]
    }
}

impl VerifyReport {
    /// The worst of all findings. Without findings it is clean, unless no case is conclusive: then the reason why.
    pub fn verdict(&self) -> CaseVerdict {
        let worst = self.cases.iter().map(CaseResult::verdict).filter(|verdict| verdict.is_finding()).max();
        worst.unwrap_or_else(|| match self.count(CaseVerdict::NotRecorded) {
            _ if self.telling() > 0 => CaseVerdict::Clean,
            _ if self.cases.is_empty() => CaseVerdict::NotRun,
            0 => CaseVerdict::NotReached,
            _ => CaseVerdict::NotRecorded,
        })
    }

    /// The number of conclusive cases.
    pub fn telling(&self) -> usize {
        self.cases.iter().filter(|case| case.verdict().says_something()).count()
    }

    /// The cases with findings, the worst first.
    pub fn findings(&self) -> Vec<&CaseResult> {
        let mut findings: Vec<&CaseResult> =
            self.cases.iter().filter(|case| case.verdict().is_finding()).collect();
        findings.sort_by(|a, b| {
            let by = |case: &CaseResult| (case.verdict(), case.lost.len(), case.repeated.len());
            by(b).cmp(&by(a)).then_with(|| a.id.cmp(&b.id))
        });
        findings
    }

    /// How often each verdict occurred.
    pub fn count(&self, verdict: CaseVerdict) -> usize {
        self.cases.iter().filter(|case| case.verdict() == verdict).count()
    }

    /// The lines of the table, by place and fault, that have a finding; and how many lines have none.
    pub(super) fn rows(&self) -> (BTreeMap<(String, String), Row>, usize) {
        let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
        for case in self.cases.iter().filter(|case| case.unrecorded.is_empty()) {
            let row = rows.entry((case.place.clone(), case.kind.clone())).or_default();
            row.cases += 1;
            row.lost += case.lost.len() as u64;
            row.lost_cases += u64::from(!case.lost.is_empty());
            row.altered += case.altered.len() as u64;
            row.repeated += case.repeated.len() as u64;
            row.stuck += u64::from(case.then != End::Done);
            row.stopped += u64::from(case.end != End::Done);
            row.wasted += case.wasted_uploads;
            row.extra += case.extra_invocations;
            row.said_done += u64::from(case.said_done());
        }
        let all = rows.len();
        rows.retain(|_, row| row.lost + row.altered + row.repeated + row.stuck > 0);
        let clean = all - rows.len();
        (rows, clean)
    }

    /// The number of cases left out for lack of time, after the number of cases.
    pub(super) fn cut(&self) -> String {
        match self.known.1.saturating_sub(self.cases.len()) {
            0 => String::new(),
            rest => format!("; the budget was over before the other {rest}"),
        }
    }

    /// How many pairs of place and fault a case has a result for, of all.
    fn tried(&self) -> (usize, usize) {
        let (rows, clean) = self.rows();
        (rows.len() + clean, self.pairs)
    }

    /// How many pairs of place and fault no case has a result for, behind a sentence.
    pub(super) fn untried(&self) -> String {
        let (tried, pairs) = self.tried();
        match pairs.saturating_sub(tried) {
            0 => String::new(),
            untried => format!("; {untried} of {pairs} pairs were not tried"),
        }
    }

    /// The cases that are neither clean nor a finding, one a line: some of each verdict, with the reason.
    pub(super) fn others(&self) -> Vec<Vec<String>> {
        let others = [CaseVerdict::Stopped, CaseVerdict::NotRecorded, CaseVerdict::NotReached];
        let lines = others.map(|verdict| {
            let of: Vec<&CaseResult> = self.cases.iter().filter(|case| case.verdict() == verdict).collect();
            let line = |case: &&CaseResult| {
                let reason = match (case.unrecorded.first(), &case.end) {
                    (Some(request), _) => format!(": {request}"),
                    (None, End::Stopped(reason)) => format!(": {reason}"),
                    (None, End::Done) => String::new(),
                };
                printable(&format!("{verdict}, not a finding: {}{reason}", case.id))
            };
            let mut lines: Vec<String> = of.iter().take(OTHERS_TOLD_MAX).map(line).collect();
            if of.len() > OTHERS_TOLD_MAX {
                lines.push(format!("{} more are {verdict}: --json has all", of.len() - OTHERS_TOLD_MAX));
            }
            lines
        });
        lines.into_iter().filter(|lines| !lines.is_empty()).collect()
    }

    /// The requests to the source that were never recorded, in a sentence.
    pub(super) fn unrecorded(&self) -> Option<String> {
        let unrecorded: BTreeSet<&String> = self.cases.iter().flat_map(|case| &case.unrecorded).collect();
        unrecorded.first().map(|request| {
            format!(
                "{} cases are inconclusive: the worker made {} requests that were never recorded, such as {request}",
                self.count(CaseVerdict::NotRecorded),
                unrecorded.len()
            )
        })
    }

    /// One JSON object, for scripts.
    pub fn to_json(&self) -> Value {
        let clean = self.set_aside.is_empty();
        json!({
            "kind": "verify",
            "verdict": self.verdict(),
            "worker": self.worker,
            "after_death": after_death(self.after_death),
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "clean": self.clean,
            "recording": self.recording,
            "deterministic": clean,
            "set_aside": self.set_aside,
            "notes": self.notes,
            "cases_known": self.known.0,
            "cases_chosen": self.known.1,
            "cases_run": self.cases.len(),
            "pairs_known": self.pairs,
            "cases": self.cases.iter().map(CaseResult::to_json).collect::<Vec<_>>(),
        })
    }

    /// The report as text; `again` returns the command that runs a case again.
    pub fn to_text(&self, again: &dyn Fn(&str) -> String) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text, again);
        text
    }

    fn write(&self, text: &mut String, again: &dyn Fn(&str) -> String) -> fmt::Result {
        for clean in &self.clean {
            let records: Vec<String> =
                clean.records.iter().map(|(item_type, count)| format!("{count} {item_type}")).collect();
            let records = if records.is_empty() { "nothing".to_owned() } else { records.join(", ") };
            writeln!(
                text,
                "clean {} sync: {records}; {} calls, {} invocations, {:.2} s",
                clean.sync, clean.calls, clean.invocations, clean.seconds
            )?;
        }
        if let Some(recording) = &self.recording {
            let warning = if recording.is_suspicious() { "warning: " } else { "" };
            writeln!(text, "{warning}recording of the source: {recording}")?;
        }
        for note in &self.notes {
            writeln!(text, "note: {note}")?;
        }
        for (what, keys) in [
            ("are in one of two clean syncs only", &self.set_aside.in_one_only),
            ("have another content in each clean sync", &self.set_aside.content_differs),
        ] {
            if !keys.is_empty() {
                writeln!(text, "ignored: {} records {what}: {}", keys.len(), told(keys.iter()))?;
            }
        }
        let (known, _) = self.known;
        writeln!(
            text,
            "after a death: {}\n{} of {known} cases, seed {}, {:.0} s{}\n",
            after_death(self.after_death),
            self.cases.len(),
            self.seed,
            self.took.as_secs_f64(),
            self.cut()
        )?;
        self.write_table(text)?;
        if let Some(unrecorded) = self.unrecorded() {
            writeln!(text, "{unrecorded}")?;
        }
        let findings = self.findings();
        for case in findings.iter().take(CASES_TOLD_MAX) {
            writeln!(text, "\n{}: {}", case.id, case.summary())?;
            for (what, keys) in
                [("lost", &case.lost), ("altered", &case.altered), ("repeated", &case.repeated)]
            {
                if !keys.is_empty() {
                    writeln!(text, "  {what}: {}", told(keys.iter().collect::<BTreeSet<_>>().into_iter()))?;
                }
            }
            if let End::Stopped(reason) = &case.then {
                writeln!(text, "  the sync that followed: {reason}")?;
            }
            writeln!(text, "  {}", again(&case.id))?;
        }
        if findings.len() > CASES_TOLD_MAX {
            writeln!(text, "\n{} more cases with findings: --json has all", findings.len() - CASES_TOLD_MAX)?;
        }
        for lines in self.others() {
            writeln!(text, "\n{}", lines.join("\n"))?;
        }
        let counts: Vec<String> = CaseVerdict::ALL
            .iter()
            .map(|verdict| (verdict, self.count(*verdict)))
            .filter(|(_, count)| *count > 0)
            .map(|(verdict, count)| format!("{count} {verdict}"))
            .collect();
        let verdict = self.verdict();
        let tried = match self.tried() {
            (tried, pairs) if tried < pairs && verdict == CaseVerdict::Clean => {
                format!(", in {tried} of {pairs} pairs of place and fault")
            }
            _ => String::new(),
        };
        writeln!(text, "\ncases: {}\nverdict: {verdict}{tried}", counts.join(", "))
    }

    fn write_table(&self, text: &mut String) -> fmt::Result {
        let (rows, clean) = self.rows();
        if !rows.is_empty() {
            let wide = rows.keys().map(|(place, _)| place.len()).max().unwrap_or(0).max(5);
            writeln!(
                text,
                "{:<wide$} {:<14} {:>5} {:>8} {:>8} {:>8} {:>5} {:>6} {:>6} {:>9}",
                "place",
                "fault",
                "cases",
                "lost",
                "altered",
                "repeated",
                "stuck",
                "wasted",
                "extra",
                "said DONE"
            )?;
            for ((place, kind), row) in &rows {
                let [cases, lost, altered, repeated, stuck, wasted, extra, said_done] = row.figures();
                writeln!(
                    text,
                    "{place:<wide$} {kind:<14} {cases:>5} {lost:>8} {altered:>8} {repeated:>8} {stuck:>5} {wasted:>6} {extra:>6} {said_done:>9}"
                )?;
            }
        }
        writeln!(
            text,
            "{clean} other pairs of place and fault: nothing lost, altered, repeated or stuck{}",
            self.untried()
        )
    }
}

impl CaseResult {
    /// The result, in a sentence.
    pub(super) fn summary(&self) -> String {
        let mut parts = Vec::new();
        for (keys, what) in [(&self.lost, "lost"), (&self.altered, "altered"), (&self.repeated, "repeated")] {
            if !keys.is_empty() {
                parts.push(format!("{} {what}", keys.len()));
            }
        }
        if self.then != End::Done {
            parts.push("stuck".to_owned());
        }
        parts.push(match (&self.end, self.lost.is_empty()) {
            (End::Done, false) => "and the worker said DONE".to_owned(),
            (End::Done, true) => "the worker said DONE".to_owned(),
            (End::Stopped(reason), _) => format!("the sync stopped: {reason}"),
        });
        let at = match (self.at.invocation, self.at.call) {
            (0, _) => String::new(),
            (invocation, 0) => format!(" (invocation {invocation}, {})", self.at.event_type),
            (invocation, call) => format!(" (call {call}, invocation {invocation}, {})", self.at.event_type),
        };
        parts.join(", ") + &at
    }
}

pub(super) fn after_death(after: AfterDeath) -> &'static str {
    match after {
        AfterDeath::Again => "the same event is given again",
        AfterDeath::Continue => "CONTINUE is sent",
        AfterDeath::GiveUp => "the run is given up, and another begun",
    }
}

fn told<'k>(keys: impl ExactSizeIterator<Item = &'k RecordKey>) -> String {
    let count = keys.len();
    let some: Vec<String> =
        keys.take(IDS_TOLD_MAX).map(|key| printable(&format!("{} {}", key.item_type, key.id))).collect();
    let more = if count > some.len() { format!(" and {} more", count - some.len()) } else { String::new() };
    some.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(came_true: bool, unrecorded: &[&str], lost: &[&str]) -> CaseResult {
        let key = |id: &&str| RecordKey { item_type: "issues".to_owned(), id: (*id).to_owned() };
        CaseResult {
            id: "first:source-429:1".to_owned(),
            which: Which::First,
            kind: "429".to_owned(),
            place: "source".to_owned(),
            at: Place::default(),
            came_true,
            end: End::Done,
            then: End::Done,
            lost: lost.iter().map(key).collect(),
            altered: Vec::new(),
            repeated: Vec::new(),
            wasted_uploads: 0,
            extra_invocations: 0,
            seconds: 0.0,
            unrecorded: unrecorded.iter().map(|request| (*request).to_owned()).collect(),
            dir: None,
            timeline: Vec::new(),
        }
    }

    fn report(cases: Vec<CaseResult>) -> VerifyReport {
        VerifyReport {
            worker: "worker".to_owned(),
            clean: Vec::new(),
            recording: None,
            set_aside: SetAside::default(),
            notes: Vec::new(),
            known: (cases.len(), cases.len()),
            pairs: 0,
            cases,
            seed: 0,
            after_death: AfterDeath::Again,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn cases_that_say_nothing_make_no_clean_worker() {
        let unknown = || case(true, &["GET /smaller-page"], &["1"]);
        let page = |report: &VerifyReport| report.to_html(&str::to_owned);
        let (not_run, inconclusive) = ("Not known: no case was run.", "Not known: no case is conclusive.");
        for (cases, verdict, sentence) in [
            (vec![], CaseVerdict::NotRun, not_run),
            (vec![unknown(), unknown()], CaseVerdict::NotRecorded, inconclusive),
            (vec![case(false, &[], &[])], CaseVerdict::NotReached, inconclusive),
            (vec![case(false, &[], &[]), unknown()], CaseVerdict::NotRecorded, inconclusive),
        ] {
            let report = report(cases);
            assert_eq!((report.verdict(), report.telling()), (verdict, 0));
            let page = page(&report);
            assert!(page.contains(sentence), "{page}");
            assert_eq!(page.matches("Not known: ").count(), 1, "{page}");
        }
        let mut cut = report(vec![unknown()]);
        (cut.known, cut.pairs) = ((9, 4), 5);
        for text in [page(&cut), cut.to_text(&str::to_owned)] {
            assert!(
                text.contains("1 of 9") && text.contains("the budget was over before the other 3"),
                "{text}"
            );
            assert!(text.contains("; 5 of 5 pairs were not tried"), "{text}");
            assert!(text.contains("never recorded, such as GET /smaller-page"), "{text}");
        }
        let mut mixed = report(vec![unknown(), case(true, &[], &[])]);
        assert!(mixed.to_text(&str::to_owned).ends_with("\nverdict: clean\n"));
        mixed.pairs = 5;
        let text = mixed.to_text(&str::to_owned);
        assert!(text.ends_with("\nverdict: clean, in 1 of 5 pairs of place and fault\n"), "{text}");
        assert_eq!((mixed.verdict(), mixed.telling()), (CaseVerdict::Clean, 1));
        assert!(
            page(&mixed)
                .contains("No: in 1 cases nothing was lost, altered or repeated. 1 more are inconclusive.")
        );
        let lost = report(vec![unknown(), case(true, &[], &["1"])]);
        assert_eq!(lost.verdict(), CaseVerdict::Lost);
        assert!(page(&lost).contains("records were lost in 1 of 2 cases; in 1 of them it said DONE"));
    }

    #[test]
    fn what_is_neither_clean_nor_a_finding_is_listed_up_to_a_limit_with_its_reason_in_both_forms() {
        let named = |id: &str, of: CaseResult| CaseResult { id: id.to_owned(), ..of };
        let stopped = |id: &str| {
            let end = End::Stopped(format!("why <{id}>\n stopped"));
            CaseResult { end, ..named(id, case(true, &[], &[])) }
        };
        let mut cases: Vec<CaseResult> = (1..=12).map(|n| stopped(&format!("first:s:{n}"))).collect();
        cases.push(named("first:unknown:1", case(true, &["GET /smaller-page"], &[])));
        cases.push(named("first:beyond:1", case(false, &[], &[])));
        cases.extend([
            named("first:fine:1", case(true, &[], &[])),
            named("first:bad:1", case(true, &[], &["1"])),
        ]);
        let all = report(cases);
        let lines: Vec<String> = all.others().concat();
        assert_eq!(lines.len(), OTHERS_TOLD_MAX + 1 + 1 + 1, "{lines:?}");
        assert_eq!(lines[0], r"stopped, not a finding: first:s:1: why <first:s:1>\n stopped");
        assert_eq!(
            lines[OTHERS_TOLD_MAX..],
            [
                "2 more are stopped: --json has all",
                "not recorded, not a finding: first:unknown:1: GET /smaller-page",
                "not reached, not a finding: first:beyond:1",
            ]
        );
        let (text, page) = (all.to_text(&str::to_owned), all.to_html(&str::to_owned));
        for line in &lines {
            assert!(text.contains(&format!("\n{line}\n")), "{text}");
            assert!(page.contains(&format!("<li>{}</li>", highwater::html::escaped(line))), "{page}");
        }
        assert!(!page.contains("first:s:11") && !text.contains("first:s:11"), "{page}");
        // Without such cases there is no list.
        let none = report(vec![case(true, &[], &[]), case(true, &[], &["1"])]);
        assert!(none.others().is_empty());
        assert!(!none.to_html(&str::to_owned).contains("not a finding"));
    }

    #[test]
    fn an_id_cannot_write_into_the_text_what_it_likes() {
        let report = report(vec![case(true, &[], &["1\n\u{1b}[2Jverdict: clean"])]);
        let text = report.to_text(&str::to_owned);
        assert!(text.contains(r"issues 1\n\u{1b}[2Jverdict: clean"), "{text}");
    }
}
