//! The report as a page for a browser: a single file.
//!
//! It has a table of faults by place, and for each finding the sync as a timeline: one line of calls for each
//! invocation, with the fault marked. Nothing is shown by colour alone, tables have captions and heads, and nothing
//! is hidden on paper.

use std::fmt::Write as _;

use highwater::html::{Document, Table, escaped};

use super::compare::RecordKey;
use super::report::{CaseResult, CaseVerdict, End, TimelineCall, VerifyReport, after_death};

/// Findings that are shown in detail.
const FINDINGS_MAX: usize = 100;
/// Ids of a finding that are shown.
const IDS_MAX: usize = 50;
/// Calls before and after the fault that are shown.
const CALLS_AROUND: usize = 40;

/// The heads of the table's columns.
const HEADS: [&str; 10] = [
    "Place",
    "Fault",
    "#Cases",
    "#Lost",
    "#Altered",
    "#Repeated",
    "#Stuck",
    "#Wasted uploads",
    "#Extra invocations",
    "#Said DONE",
];

/// The styles of the timeline.
const STYLE: &str = "\
.run{margin:.4rem 0;padding:0;list-style:none}.run>li{margin:.3rem 0}.event{font-weight:600;font-size:.8rem}\
.calls{display:flex;flex-wrap:wrap;gap:.2rem;margin:.1rem 0;padding:0;list-style:none}\
.calls li{border:1px solid var(--line);border-radius:.25rem;padding:0 .35rem;font-size:.75rem}\
.calls li.failed{border-style:dashed;border-color:var(--dim)}.calls li.fault{background:var(--bad);color:var(--on-bad);border-color:var(--bad);font-weight:700}\
.calls li.gap{border:0}@media print{section{break-inside:avoid}.calls li.fault{background:none;color:inherit;border:2px solid currentcolor}}";

impl VerifyReport {
    /// The report as a page; `again` returns the command that runs a case again.
    pub fn to_html(&self, again: &dyn Fn(&str) -> String) -> String {
        let verdict = self.verdict();
        let mut page = Document::new(&format!("{verdict}: {}", self.worker), STYLE);
        page.heading(1, "Is this connector losing records?");
        page.paragraph("verdict", &self.sentence());
        let mut facts = vec![("Worker", self.worker.clone())];
        let clean: Vec<_> =
            self.clean.iter().map(|clean| (format!("Clean {} sync", clean.sync), clean)).collect();
        for (name, clean) in &clean {
            let records: Vec<String> =
                clean.records.iter().map(|(item_type, count)| format!("{count} {item_type}")).collect();
            let text =
                format!("{}; {} calls in {} invocations", records.join(", "), clean.calls, clean.invocations);
            facts.push((name, text));
        }
        if let Some(recording) = &self.recording {
            let name =
                if recording.is_suspicious() { "Warning: recording" } else { "Recording of the source" };
            facts.push((name, recording.to_string()));
        }
        let (known, _) = self.known;
        let seconds = self.took.as_secs_f64();
        let cases =
            format!("{} of {known}, seed {}, {seconds:.0} s{}", self.cases.len(), self.seed, self.cut());
        facts.push(("Cases", cases));
        facts.push(("After a death", after_death(self.after_death).to_string()));
        facts.extend(self.unrecorded().map(|unrecorded| ("Not recorded", unrecorded)));
        facts.extend(self.notes.iter().map(|note| ("Note", note.clone())));
        let aside = self.set_aside.in_one_only.len() + self.set_aside.content_differs.len();
        if aside > 0 {
            facts.push(("Ignored", format!("{aside} records in which two clean syncs differ")));
        }
        page.facts(&facts);
        self.add_rows(&mut page);
        let findings = self.findings();
        if !findings.is_empty() {
            page.heading(2, "Findings");
        }
        for (at, case) in findings.iter().take(FINDINGS_MAX).enumerate() {
            add_finding(&mut page, at, case, again);
        }
        if findings.len() > FINDINGS_MAX {
            let more = findings.len() - FINDINGS_MAX;
            page.paragraph("", &format!("{more} more findings are in the JSON report."));
        }
        let others = self.others().concat();
        if !others.is_empty() {
            page.heading(2, "Cases that are neither clean nor a finding");
            page.list("others", &others);
        }
        page.finish()
    }

    fn sentence(&self) -> String {
        let lost = self.count(CaseVerdict::Lost);
        let is_lost = |case: &&CaseResult| case.verdict() == CaseVerdict::Lost;
        let said_done = self.cases.iter().filter(is_lost).filter(|case| case.said_done()).count();
        let telling = self.telling();
        match self.verdict() {
            CaseVerdict::Clean => {
                let nothing = self.cases.len() - telling;
                let more =
                    if nothing > 0 { format!(" {nothing} more are inconclusive.") } else { String::new() };
                format!("No: in {telling} cases nothing was lost, altered or repeated.{more}")
            }
            CaseVerdict::NotRun => "Not known: no case was run.".to_owned(),
            CaseVerdict::NotRecorded | CaseVerdict::NotReached => {
                "Not known: no case is conclusive.".to_owned()
            }
            CaseVerdict::Lost => format!(
                "Yes: records were lost in {lost} of {} cases; in {said_done} of them it said DONE nevertheless.",
                self.cases.len()
            ),
            verdict => format!(
                "Nothing was lost, but {} of {} cases have findings, the worst of which is: {verdict}.",
                self.findings().len(),
                self.cases.len()
            ),
        }
    }

    fn add_rows(&self, page: &mut Document) {
        let (rows, clean) = self.rows();
        page.heading(2, "What went wrong, and where");
        let caption = "Records that were lost, altered or repeated, by the place and the fault";
        let mut table = Table::new(caption, &HEADS);
        for ((place, kind), row) in &rows {
            let figures = row.figures().map(|figure| figure.to_string());
            table.row([String::clone(place), String::clone(kind)].into_iter().chain(figures));
        }
        page.table(&table);
        page.paragraph(
            "",
            &format!("{clean} other pairs of place and fault have no finding{}.", self.untried()),
        );
    }
}

fn add_finding(page: &mut Document, at: usize, case: &CaseResult, again: &dyn Fn(&str) -> String) {
    let head = escaped(&format!("{}: {}", case.verdict(), case.id));
    page.html(&format!("<section aria-labelledby=\"f{at}\"><h3 id=\"f{at}\">{head}</h3>\n"));
    page.paragraph("", &case.summary());
    for (what, keys) in [("Lost", &case.lost), ("Altered", &case.altered), ("Repeated", &case.repeated)] {
        add_ids(page, what, keys);
    }
    if let End::Stopped(reason) = &case.then {
        page.paragraph("", &format!("The sync that followed stopped: {reason}"));
    }
    page.html(&timeline(&case.timeline));
    page.paragraph("", "Run it again:");
    page.html(&format!("<pre>{}</pre></section>\n", escaped(&again(&case.id))));
}

fn add_ids(page: &mut Document, what: &str, keys: &[RecordKey]) {
    if keys.is_empty() {
        return;
    }
    let some: Vec<String> =
        keys.iter().take(IDS_MAX).map(|key| escaped(&format!("{} {}", key.item_type, key.id))).collect();
    let more = keys.len().saturating_sub(IDS_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    page.html(&format!("<p>{what}: <code>{}</code>{more}</p>\n", some.join(", ")));
}

/// The calls around the fault, one line for each invocation.
fn timeline(calls: &[TimelineCall]) -> String {
    let mut html = String::new();
    if calls.is_empty() {
        return html;
    }
    let marked = calls.iter().position(|call| call.fault.is_some()).unwrap_or(0);
    let from = marked.saturating_sub(CALLS_AROUND);
    let until = calls.len().min(marked.saturating_add(CALLS_AROUND + 1));
    let (before, after) = (from, calls.len() - until);
    html.push_str("<ol class=\"run\" aria-label=\"Calls of the sync, by invocation\">\n");
    let mut invocation = None;
    // Writing to a string does not fail.
    for (at, call) in calls.iter().enumerate().take(until).skip(from) {
        if invocation != Some(call.invocation) {
            if invocation.is_some() {
                html.push_str("</ol></li>\n");
            }
            invocation = Some(call.invocation);
            let _ = write!(
                html,
                "<li><span class=\"event\">{} {}, from {} ms</span><ol class=\"calls\">",
                call.invocation,
                escaped(&call.event_type),
                call.at_ms
            );
        }
        if at == from && before > 0 {
            let _ = write!(html, "<li class=\"gap\">{before} calls before</li>");
        }
        let status = call.status.map_or("no answer".to_owned(), |status| status.to_string());
        let records = if call.records > 0 { format!(", {} records", call.records) } else { String::new() };
        let failed = call.status.is_none_or(|status| status >= 400);
        let name = escaped(&call.call);
        let _ = match &call.fault {
            Some(fault) => {
                write!(html, "<li class=\"fault\">fault {}: {name} {status}{records}</li>", escaped(fault))
            }
            None if failed => write!(html, "<li class=\"failed\">failed: {name} {status}{records}</li>"),
            None => write!(html, "<li>{name} {status}{records}</li>"),
        };
    }
    if after > 0 {
        let _ = write!(html, "<li class=\"gap\">{after} calls after</li>");
    }
    html.push_str("</ol></li></ol>\n");
    html
}
