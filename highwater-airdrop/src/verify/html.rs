//! The report as a page for a browser: one file that needs no other.
//!
//! A table of what went wrong by where, and for each finding the sync as a timeline: one line of calls for each
//! invocation, with the fault marked. Nothing is said by colour alone, tables have captions and heads, and on paper
//! nothing is hidden.

use std::fmt::{self, Write as _};

use super::compare::RecordKey;
use super::report::{CaseResult, CaseVerdict, End, TimelineCall, VerifyReport, after_death};

/// Findings that are shown one by one.
const FINDINGS_MAX: usize = 100;
/// Ids of a finding that are shown.
const IDS_MAX: usize = 50;
/// Calls before and after the fault that are shown.
const CALLS_AROUND: usize = 40;

/// Heads of the table's columns.
const HEADS: [&str; 10] = [
    "Place",
    "Fault",
    "Cases",
    "Lost",
    "Altered",
    "Repeated",
    "Stuck",
    "Wasted uploads",
    "Extra invocations",
    "Said DONE",
];

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8888;--soft:#8882;--bad:#b00020;--badtext:#fff}\
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:1rem}\
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.25rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:1.5rem 0 .25rem;overflow-wrap:anywhere}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.5rem 0}dt{font-weight:600}dd{margin:0;overflow-wrap:anywhere}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
caption{text-align:left;padding:.25rem 0}th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right}\
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}tbody th{overflow-wrap:anywhere}td:nth-child(2){white-space:nowrap}thead th{vertical-align:bottom}\
code{font:0.85em ui-monospace,monospace;overflow-wrap:anywhere}pre{background:var(--soft);padding:.5rem;margin:.5rem 0;white-space:pre-wrap;overflow-wrap:anywhere;font:0.8rem ui-monospace,monospace}\
.run{margin:.4rem 0;padding:0;list-style:none}.run>li{margin:.3rem 0}.event{font-weight:600;font-size:.8rem}\
.calls{display:flex;flex-wrap:wrap;gap:.2rem;margin:.1rem 0;padding:0;list-style:none}\
.calls li{border:1px solid var(--line);border-radius:.25rem;padding:0 .35rem;font-size:.75rem;line-height:1.5}\
.calls li.failed{border-style:dashed}.calls li.fault{background:var(--bad);color:var(--badtext);border-color:var(--bad);font-weight:700}\
.calls li.gap{border:0}.verdict{font-weight:700}\
@media(max-width:40rem){dl{display:block}dd{margin:0 0 .4rem}thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}\
tr{display:block;padding:.3rem 0;border-bottom:1px solid var(--line)}td,tbody th{display:inline-block;border:0;padding:0 .8rem 0 0}\
td[data-head]::before{content:attr(data-head) \" \"}td.none{display:none}}\
@media print{body{font-size:10pt;max-width:none;padding:0}section{break-inside:avoid}.wide{overflow:visible}\
.calls li.fault{background:none;color:inherit;border:2px solid currentcolor}}";

impl VerifyReport {
    /// For a browser; `again` is the command that runs a case again.
    pub fn to_html(&self, again: &dyn Fn(&str) -> String) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = self.write_page(&mut page, again);
        page
    }

    fn write_page(&self, page: &mut String, again: &dyn Fn(&str) -> String) -> fmt::Result {
        let verdict = self.verdict();
        write!(
            page,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{verdict}: {worker}</title><style>{STYLE}</style></head><body><main>\n\
             <h1>Is this connector losing records?</h1>\n\
             <p class=\"verdict\">{}</p>\n<dl><dt>Worker</dt><dd><code>{worker}</code></dd>",
            escaped(&self.sentence()),
            worker = escaped(&self.worker),
        )?;
        for clean in &self.clean {
            let records: Vec<String> =
                clean.records.iter().map(|(item_type, count)| format!("{count} {item_type}")).collect();
            write!(
                page,
                "<dt>Clean {} sync</dt><dd>{}; {} calls in {} invocations</dd>",
                clean.sync,
                escaped(&records.join(", ")),
                clean.calls,
                clean.invocations
            )?;
        }
        let (known, _) = self.known;
        write!(
            page,
            "<dt>Cases</dt><dd>{} of {known}, seed {}, {:.0} s{}</dd><dt>After a death</dt><dd>{}</dd>",
            self.cases.len(),
            self.seed,
            self.took.as_secs_f64(),
            self.cut(),
            after_death(self.after_death)
        )?;
        if let Some(unrecorded) = self.unrecorded() {
            write!(page, "<dt>Not recorded</dt><dd>{}</dd>", escaped(&unrecorded))?;
        }
        for note in &self.notes {
            write!(page, "<dt>Note</dt><dd>{}</dd>", escaped(note))?;
        }
        let aside = self.set_aside.in_one_only.len() + self.set_aside.content_differs.len();
        if aside > 0 {
            write!(page, "<dt>Set aside</dt><dd>{aside} records that two clean syncs differ in</dd>")?;
        }
        writeln!(page, "</dl>")?;
        self.write_rows(page)?;
        let findings = self.findings();
        if !findings.is_empty() {
            writeln!(page, "<h2>Findings</h2>")?;
        }
        for (at, case) in findings.iter().take(FINDINGS_MAX).enumerate() {
            write_finding(page, at, case, again)?;
        }
        if findings.len() > FINDINGS_MAX {
            writeln!(page, "<p>{} more findings are in the JSON report.</p>", findings.len() - FINDINGS_MAX)?;
        }
        writeln!(page, "</main></body></html>")
    }

    fn sentence(&self) -> String {
        let lost = self.count(CaseVerdict::Lost);
        let is_lost = |case: &&CaseResult| case.verdict() == CaseVerdict::Lost;
        let said_done = self.cases.iter().filter(is_lost).filter(|case| case.said_done()).count();
        let telling = self.telling();
        match self.verdict() {
            CaseVerdict::Clean => {
                let nothing = self.cases.len() - telling;
                let more = if nothing > 0 { format!(" {nothing} more say nothing.") } else { String::new() };
                format!("No: in {telling} cases nothing was lost, altered or repeated.{more}")
            }
            CaseVerdict::NotRecorded | CaseVerdict::NotReached => {
                "Not known: no case says anything.".to_owned()
            }
            CaseVerdict::Lost => format!(
                "Yes: records were lost in {lost} of {} cases; in {said_done} of them it said DONE all the same.",
                self.cases.len()
            ),
            verdict => format!(
                "Nothing was lost, but {} of {} cases have findings, the worst of which is: {verdict}.",
                self.findings().len(),
                self.cases.len()
            ),
        }
    }

    fn write_rows(&self, page: &mut String) -> fmt::Result {
        let (rows, clean) = self.rows();
        writeln!(page, "<h2>What went wrong, and where</h2>")?;
        if !rows.is_empty() {
            write!(
                page,
                "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Table of faults by place\"><table>\
                 <caption>Records that were lost, altered or repeated, by the place and the fault</caption>\
                 <thead><tr>"
            )?;
            for head in HEADS {
                write!(page, "<th scope=\"col\">{head}</th>")?;
            }
            writeln!(page, "</tr></thead><tbody>")?;
            for ((place, kind), row) in &rows {
                write!(page, "<tr><th scope=\"row\">{}</th><td>{}</td>", escaped(place), escaped(kind))?;
                for (head, figure) in HEADS.iter().skip(2).zip(row.figures()) {
                    // Where there is no room for columns, each figure has its head, and those of nothing are left out.
                    let none = if figure == 0 { " class=\"none\"" } else { "" };
                    write!(page, "<td data-head=\"{head}\"{none}>{figure}</td>")?;
                }
                writeln!(page, "</tr>")?;
            }
            writeln!(page, "</tbody></table></div>")?;
        }
        writeln!(page, "<p>{clean} other pairs of place and fault have no finding.</p>")
    }
}

fn write_finding(
    page: &mut String,
    at: usize,
    case: &CaseResult,
    again: &dyn Fn(&str) -> String,
) -> fmt::Result {
    writeln!(
        page,
        "<section aria-labelledby=\"f{at}\"><h3 id=\"f{at}\">{}: {}</h3>\n<p>{}</p>",
        escaped(&case.verdict().to_string()),
        escaped(&case.id),
        escaped(&case.summary())
    )?;
    for (what, keys) in [("Lost", &case.lost), ("Altered", &case.altered), ("Repeated", &case.repeated)] {
        write_ids(page, what, keys)?;
    }
    if let End::Stopped(reason) = &case.then {
        writeln!(page, "<p>The sync that followed stopped: {}</p>", escaped(reason))?;
    }
    write_timeline(page, &case.timeline)?;
    writeln!(page, "<p>Run it again:</p><pre>{}</pre></section>", escaped(&again(&case.id)))
}

fn write_ids(page: &mut String, what: &str, keys: &[RecordKey]) -> fmt::Result {
    if keys.is_empty() {
        return Ok(());
    }
    let some: Vec<String> =
        keys.iter().take(IDS_MAX).map(|key| escaped(&format!("{} {}", key.item_type, key.id))).collect();
    let more = keys.len().saturating_sub(IDS_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    writeln!(page, "<p>{what}: <code>{}</code>{more}</p>", some.join(", "))
}

/// The calls around the fault, a line for each invocation.
fn write_timeline(page: &mut String, calls: &[TimelineCall]) -> fmt::Result {
    if calls.is_empty() {
        return Ok(());
    }
    let marked = calls.iter().position(|call| call.fault.is_some()).unwrap_or(0);
    let from = marked.saturating_sub(CALLS_AROUND);
    let until = calls.len().min(marked.saturating_add(CALLS_AROUND + 1));
    let (before, after) = (from, calls.len() - until);
    writeln!(page, "<ol class=\"run\" aria-label=\"Calls of the sync, by invocation\">")?;
    let mut invocation = None;
    for (at, call) in calls.iter().enumerate().take(until).skip(from) {
        if invocation != Some(call.invocation) {
            if invocation.is_some() {
                writeln!(page, "</ol></li>")?;
            }
            invocation = Some(call.invocation);
            write!(
                page,
                "<li><span class=\"event\">{} {}, from {} ms</span><ol class=\"calls\">",
                call.invocation,
                escaped(&call.event_type),
                call.at_ms
            )?;
        }
        if at == from && before > 0 {
            write!(page, "<li class=\"gap\">{before} calls before</li>")?;
        }
        let status = call.status.map_or("no answer".to_owned(), |status| status.to_string());
        let records = if call.records > 0 { format!(", {} records", call.records) } else { String::new() };
        let failed = call.status.is_none_or(|status| status >= 400);
        match &call.fault {
            Some(fault) => write!(
                page,
                "<li class=\"fault\">fault {}: {} {status}{records}</li>",
                escaped(fault),
                escaped(&call.call)
            )?,
            None if failed => {
                write!(page, "<li class=\"failed\">failed: {} {status}{records}</li>", escaped(&call.call))?;
            }
            None => write!(page, "<li>{} {status}{records}</li>", escaped(&call.call))?,
        }
    }
    if after > 0 {
        write!(page, "<li class=\"gap\">{after} calls after</li>")?;
    }
    writeln!(page, "</ol></li></ol>")
}

/// Text that means nothing to a browser.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // What a browser or a reader's eye would take for something else.
            _ if character.is_control() => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}
