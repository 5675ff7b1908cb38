//! What is printed: tables for people, one JSON object per line for scripts.
//!
//! Names, cursors and values come from the outside, so in both forms what could drive a terminal or turn its text
//! around is escaped: in JSON by an escape that means the same, so that what a script reads is exact.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{CellAlignment, Table, presets};
use highwater::inspect::{
    AttachmentsReport, BatchCounts, BatchReport, CheckFinding, CheckReport, FailedAttachmentReport,
    FindingsReport, LedgerReport, MessageFate, MessageReport, Report, RunReport, RunStatus, Source,
    TypeReport,
};
use serde::Serialize;

/// Characters of a cursor, bookmark or value that a table shows; JSON shows all.
const CUT_CHARS: usize = 60;

/// Failed attachments that a table shows; JSON shows all.
const FAILED_SHOWN: usize = 20;

/// How tables look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) colour: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether a character acts on a terminal instead of showing on it: controls, what changes the direction of text,
/// and what breaks lines or shows nothing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Text that shows all that is in it.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// JSON text that shows all that is in it, and means the same: outside of its strings there is nothing to escape.
pub(crate) fn visible_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_unsafe) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A `String` takes whatever is written to it.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// A writer of JSON that goes to a terminal: whole lines are made visible. To anything else the bytes go as they are.
pub(crate) struct Screened<'a, W: Write> {
    out: &'a mut W,
    screens: bool,
    /// The start of a character whose rest comes with the next write.
    held: Vec<u8>,
}

impl<'a, W: Write> Screened<'a, W> {
    pub(crate) fn new(out: &'a mut W, is_terminal: bool) -> Self {
        Self { out, screens: is_terminal, held: Vec::new() }
    }
}

impl<W: Write> Write for Screened<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.screens {
            return self.out.write(bytes);
        }
        self.held.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.held) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Ok(_) | Err(_) => self.held.len(),
        };
        let text = String::from_utf8_lossy(&self.held[..whole]).into_owned();
        self.out.write_all(visible_json(&text).as_bytes())?;
        self.held.drain(..whole);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// One line of `--json`.
pub(crate) fn json_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(line)?;
    writeln!(out, "{}", visible_json(&json))
}

/// The first line of a listing.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename = "store")]
pub(crate) struct StoreLine {
    path: String,
    source: &'static str,
}

pub(crate) fn store_line(store: &Path, source: Source) -> StoreLine {
    StoreLine { path: store.to_string_lossy().into_owned(), source: source_word(source) }
}

fn source_word(source: Source) -> &'static str {
    match source {
        Source::Closed => "closed",
        Source::LeftOpen => "left_open",
        _ => "copy",
    }
}

fn time(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn time_or(moment: Option<DateTime<Utc>>, none: &str) -> String {
    moment.map_or_else(|| none.to_owned(), time)
}

/// One thing, or several.
pub(crate) fn count(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

fn cut(json: Option<&str>) -> String {
    let Some(json) = json else { return "-".to_owned() };
    let mut chars = json.chars();
    let mut shown: String = chars.by_ref().take(CUT_CHARS).collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    visible(&shown).into_owned()
}

/// A table that is printed below a caption, numbers to the right.
struct Listing {
    table: Table,
}

impl Listing {
    /// `header`: names of columns; those of numbers start with `#`, which is not shown.
    fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(header.iter().map(|name| name.trim_start_matches('#')));
        for (at, name) in header.iter().enumerate() {
            if let Some(column) = table.column_mut(at) {
                column.set_padding((0, 2));
                if name.starts_with('#') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { table }
    }

    fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.table.add_row(cells.into_iter().map(|cell| visible(&cell).into_owned()));
    }

    fn print(&self, out: &mut impl Write, caption: &str) -> io::Result<()> {
        if self.table.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n  {caption}")?;
        for line in self.table.lines() {
            writeln!(out, "    {}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Everything about a unit, for people.
pub(crate) fn unit(out: &mut impl Write, report: &Report, style: Style) -> io::Result<()> {
    let unit = &report.unit;
    writeln!(out, "{}", style.paint("1", &format!("sync unit {}", visible(&unit.sync_unit))))?;
    for warning in warnings(report) {
        writeln!(out, "  {}", style.paint("1;33", &format!("! {}", visible(&warning))))?;
    }
    let mut fact = |name: &str, value: &str| writeln!(out, "  {name:<10} {}", visible(value));
    fact("watermark", &time_or(unit.watermark, "none: no run is finished"))?;
    fact("known", &format!("since {}, {} begun", time(unit.created_at), count(unit.runs, "run", "runs")))?;
    if let Some(run) = &report.run {
        for (name, value) in run_facts(run) {
            fact(name, &value)?;
        }
    }
    streams(report).print(out, "streams")?;
    item_types(&report.item_types).print(out, "records by item type")?;
    batches_by_state(&report.item_types).print(out, "batches by state")?;
    findings(out, &report.findings)?;
    let mut bookmarks = Listing::new(&["stream", "#bytes", "bookmark"]);
    for bookmark in &report.bookmarks {
        let shown = cut(Some(&bookmark.bookmark));
        bookmarks.row([bookmark.stream.clone(), bookmark.bytes.to_string(), shown]);
    }
    bookmarks.print(out, "bookmarks that finished runs left")?;
    let mut values = Listing::new(&["key", "#bytes", "value"]);
    for value in &report.values {
        values.row([value.key.clone(), value.bytes.to_string(), cut(Some(&value.value))]);
    }
    values.print(out, "the extractor's own values")?;
    let kept = format!("messages, {} of {} kept", report.messages.len(), unit.messages_kept);
    messages(&report.messages).print(out, &kept)?;
    let kept = format!("ledger, {} of {} runs that are over", report.ledger.len(), unit.ledger_runs);
    ledger(&report.ledger).print(out, &kept)?;
    for requeued in [false, true] {
        let all: Vec<_> =
            report.failed_attachments.iter().filter(|failed| failed.requeued == requeued).collect();
        let what =
            if requeued { "attachments that failed and are queued again" } else { "attachments that failed" };
        let shown = all.len().min(FAILED_SHOWN);
        failed_attachments(all.get(..shown).unwrap_or_default())
            .print(out, &format!("{what}, {shown} of {}", all.len()))?;
    }
    Ok(())
}

/// What somebody who looks because something is wrong wants to see first.
fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    for message in report.messages.iter().filter(|message| message.fate == MessageFate::Sealed) {
        warnings.push(format!(
            "message {} is sealed and not known to be delivered: {}, {}, sealed at {}",
            message.message,
            message.event_type,
            count(message.artifacts, "artifact", "artifacts"),
            time(message.sealed_at)
        ));
    }
    let Some(run) = report.run.as_ref().filter(|run| run.status == RunStatus::Open) else { return warnings };
    let sum = |of: fn(&TypeReport) -> BatchCounts| {
        report
            .item_types
            .iter()
            .map(of)
            .fold((0, 0), |(batches, items), counts| (batches + counts.batches, items + counts.items))
    };
    let staged = sum(|counts| counts.batches_staged);
    let uploaded = sum(|counts| counts.batches_uploaded);
    let confirmed = sum(|counts| counts.batches_confirmed);
    let batches = staged.0 + uploaded.0 + confirmed.0;
    if batches > 0 {
        warnings.push(format!(
            "not announced yet: {} with {} ({} staged, {} uploaded, {} confirmed)",
            count(batches, "batch", "batches"),
            count(staged.1 + uploaded.1 + confirmed.1, "record", "records"),
            staged.0,
            uploaded.0,
            confirmed.0
        ));
    }
    let errors: u64 =
        report.findings.iter().filter(|kind| kind.severity == "error").map(|kind| kind.count).sum();
    if errors > 0 {
        warnings.push(format!(
            "its records are not what the metadata declares: {}",
            count(errors, "error", "errors")
        ));
    }
    let open: u64 = report.item_types.iter().map(|counts| counts.open_items).sum();
    if open > 0 {
        warnings.push(format!("in no batch yet: {}", count(open, "record", "records")));
    }
    if let (Some(until), Some(seconds)) = (run.not_before, run.delay_seconds) {
        warnings.push(format!(
            "the source is to be left alone until {} ({} asked for)",
            time(until),
            count(seconds, "second", "seconds")
        ));
    }
    for stream in &report.streams {
        let Some(most) = stream.far_more_than else { continue };
        warnings.push(format!(
            "stream {} reads far more than in any finished run before: {} in {}, at most {} in {} until now",
            stream.stream,
            count(stream.items, "record", "records"),
            count(stream.pages, "page", "pages"),
            count(most.items, "record", "records"),
            count(most.pages, "page", "pages"),
        ));
    }
    if run.lost {
        warnings.push("the run cannot go on: what it extracted before is not known here".to_owned());
    }
    if let Some(ignored) = run.ignored_watermark {
        warnings.push(format!("the watermark {} was left aside: it lay in the future", time(ignored)));
    }
    warnings
}

fn run_facts(run: &RunReport) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut words = format!("{}, {}", run.run, run.status);
    if let Some(phase) = run.phase {
        let _ = write!(words, ", {phase} phase");
    }
    if let Some(percent) = run.progress_percent {
        let _ = write!(words, ", {percent} %");
    }
    facts.push(("run", words));
    if !run.phases_done.is_empty() {
        let done: Vec<String> = run.phases_done.iter().map(ToString::to_string).collect();
        facts.push(("done", done.join(", ")));
    }
    let ended = run.ended_at.map(|at| format!(", over {}", time(at))).unwrap_or_default();
    facts.push(("started", format!("{}{ended}, epoch {}", time(run.started_at), run.epoch)));
    facts.push(("since", time_or(run.since, "everything")));
    if run.status == RunStatus::Open {
        facts.push((
            "extracted",
            format!(
                "{}, {}, {} of them not announced",
                count(run.pages, "page", "pages"),
                count(run.batches, "batch", "batches"),
                run.open_batches
            ),
        ));
    }
    if run.attachments.queued > 0 {
        facts.push(("queue", attachments(run.attachments)));
    }
    if let Some(event) = &run.event {
        let reused = match run.events_reused {
            0 => String::new(),
            reused => format!(" ({reused} with ids used before)"),
        };
        facts.push(("events", format!("{}{reused}", run.events)));
        let answer = match run.message {
            Some(message) => format!("answered by message {message}"),
            None => "not answered yet".to_owned(),
        };
        facts.push(("newest", format!("{event}, {answer}")));
    }
    facts
}

fn streams(report: &Report) -> Listing {
    let mut table = Listing::new(&["stream", "phase", "#pages", "#records", "cursor", "bookmark"]);
    for stream in &report.streams {
        let cursor = if stream.exhausted { "exhausted".to_owned() } else { cut(stream.cursor.as_deref()) };
        table.row([
            stream.stream.clone(),
            stream.phase.to_string(),
            stream.pages.to_string(),
            stream.items.to_string(),
            cursor,
            cut(stream.bookmark.as_deref()),
        ]);
    }
    table
}

fn item_types(types: &[TypeReport]) -> Listing {
    let mut table = Listing::new(&[
        "item type",
        "#read",
        "#skipped",
        "#in batches",
        "#open",
        "#confirmed",
        "#announced",
        "#artifacts",
        "last acknowledged",
    ]);
    for counts in types {
        table.row([
            counts.item_type.clone(),
            counts.read.to_string(),
            counts.skipped.to_string(),
            counts.batched.to_string(),
            counts.open_items.to_string(),
            counts.confirmed.to_string(),
            counts.announced.to_string(),
            counts.artifacts_announced.to_string(),
            counts.last_artifact.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn batches_by_state(types: &[TypeReport]) -> Listing {
    let mut table = Listing::new(&["item type", "state", "#batches", "#records", "#gzip bytes"]);
    for counts in types {
        for (state, of) in [
            ("staged", counts.batches_staged),
            ("uploaded", counts.batches_uploaded),
            ("confirmed", counts.batches_confirmed),
            ("announced", counts.batches_announced),
        ] {
            if of.batches > 0 {
                let (batches, items) = (of.batches.to_string(), of.items.to_string());
                table.row([
                    counts.item_type.clone(),
                    state.to_owned(),
                    batches,
                    items,
                    of.gzip_bytes.to_string(),
                ]);
            }
        }
    }
    table
}

/// What checks found in records: of each kind how many, and the first of them.
fn findings(out: &mut impl Write, kinds: &[FindingsReport]) -> io::Result<()> {
    let mut table = Listing::new(&["item type", "severity", "rule", "at", "#findings"]);
    for kind in kinds {
        table.row([
            kind.item_type.clone().unwrap_or_else(|| "(any)".to_owned()),
            kind.severity.clone(),
            kind.rule.clone(),
            if kind.path.is_empty() { "-".to_owned() } else { kind.path.clone() },
            kind.count.to_string(),
        ]);
    }
    table.print(out, "findings in records")?;
    if kinds.iter().any(|kind| !kind.kept.is_empty()) {
        writeln!(out, "\n  the first of each kind")?;
    }
    for kind in kinds {
        let item_type = kind.item_type.as_deref().unwrap_or("(any)");
        for text in &kind.kept {
            writeln!(out, "    {}: {}", visible(item_type), visible(text))?;
        }
    }
    Ok(())
}

fn messages(messages: &[MessageReport]) -> Listing {
    let mut table = Listing::new(&["#no", "event type", "fate", "sealed at", "#artifacts", "#bytes", "key"]);
    for message in messages {
        let fate = match (message.fate, message.delivered_times) {
            (MessageFate::Sealed, _) => "NOT DELIVERED".to_owned(),
            (fate, times) if times > 1 => format!("{fate} {times} times"),
            (fate, _) => fate.to_string(),
        };
        table.row([
            message.message.to_string(),
            message.event_type.clone(),
            fate,
            time(message.sealed_at),
            message.artifacts.to_string(),
            message.body_bytes.to_string(),
            message.key.clone(),
        ]);
    }
    table
}

fn ledger(runs: &[LedgerReport]) -> Listing {
    let mut table = Listing::new(&[
        "run",
        "status",
        "started",
        "over",
        "since",
        "watermark",
        "#pages",
        "announced",
        "findings",
    ]);
    for run in runs {
        let mut announced: Vec<String> = run
            .item_types
            .iter()
            .map(|counts| {
                let skipped = match counts.skipped {
                    0 => String::new(),
                    skipped => format!(", {skipped} skipped"),
                };
                let of = if counts.read == counts.announced + counts.skipped + counts.rejected {
                    String::new()
                } else {
                    format!(" of {}", counts.read)
                };
                format!("{} {}{of} in {}{skipped}", counts.item_type, counts.announced, counts.artifacts)
            })
            .collect();
        if run.attachments.queued > 0 {
            announced.push(attachments(run.attachments));
        }
        table.row([
            run.run.clone(),
            run.status.to_string(),
            time(run.started_at),
            time(run.ended_at),
            time_or(run.since, "everything"),
            time_or(run.watermark, "-"),
            run.pages.to_string(),
            if announced.is_empty() { "nothing".to_owned() } else { announced.join(", ") },
            match (run.findings.errors, run.findings.warnings) {
                (0, 0) => "-".to_owned(),
                (errors, warnings) => format!(
                    "{}, {}",
                    count(errors, "error", "errors"),
                    count(warnings, "warning", "warnings")
                ),
            },
        ]);
    }
    table
}

fn attachments(of: AttachmentsReport) -> String {
    let AttachmentsReport { queued, settled, failed, left, .. } = of;
    format!("{}: {settled} settled, {failed} failed, {left} left", count(queued, "attachment", "attachments"))
}

fn failed_attachments(failed: &[&FailedAttachmentReport]) -> Listing {
    let mut table = Listing::new(&["attachment", "parent", "file", "run", "#tries", "failed at", "reason"]);
    for failed in failed {
        table.row([
            failed.id.clone(),
            failed.parent_id.clone(),
            cut(Some(&failed.file_name)),
            failed.run.clone().unwrap_or_else(|| "-".to_owned()),
            failed.tries.to_string(),
            time(failed.failed_at),
            failed.reason.clone(),
        ]);
    }
    table
}

/// The batches that are stored.
pub(crate) fn batches(out: &mut impl Write, batches: &[BatchReport]) -> io::Result<()> {
    if batches.is_empty() {
        return writeln!(out, "no batch is stored");
    }
    let mut table = Listing::new(&[
        "#seq",
        "item type",
        "state",
        "#records",
        "#gzip bytes",
        "artifact",
        "#message",
        "#epoch",
    ]);
    for batch in batches {
        table.row([
            batch.seq.to_string(),
            batch.item_type.clone(),
            batch.state.to_string(),
            batch.items.to_string(),
            batch.gzip_bytes.to_string(),
            batch.artifact_id.clone().unwrap_or_else(|| "-".to_owned()),
            batch.message.map_or_else(|| "-".to_owned(), |message| message.to_string()),
            batch.epoch.to_string(),
        ]);
    }
    let run = batches.first().map(|batch| batch.run.as_str()).unwrap_or_default();
    writeln!(out, "batches of run {} that are stored", visible(run))?;
    for line in table.table.lines() {
        writeln!(out, "  {}", line.trim_end())?;
    }
    Ok(())
}

/// What a check found.
pub(crate) fn check(out: &mut impl Write, report: &CheckReport, json: bool) -> io::Result<()> {
    #[derive(Serialize)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Line<'a> {
        Finding(&'a CheckFinding),
        Check { source: Option<&'static str>, units: u64, rows: u64, findings: u64 },
    }
    let findings = report.findings.len() as u64;
    if json {
        report.findings.iter().try_for_each(|finding| json_line(out, &Line::Finding(finding)))?;
        let source = report.source.map(source_word);
        return json_line(out, &Line::Check { source, units: report.units, rows: report.rows, findings });
    }
    for finding in &report.findings {
        let mut line = finding.table.map_or_else(|| "the file".to_owned(), |table| format!("table {table}"));
        if let Some(unit) = &finding.sync_unit {
            let _ = write!(line, ", {unit}");
        }
        writeln!(out, "{}: {}", visible(&line), visible(&finding.problem))?;
    }
    let of = format!("{}, {}", count(report.units, "unit", "units"), count(report.rows, "row", "rows"));
    match findings {
        0 => writeln!(out, "whole: {of}"),
        _ => writeln!(out, "damaged: {} ({of} read)", count(findings, "finding", "findings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURNED: &str = "{\"a\u{202e}\u{1b}\":\"\u{7f}\u{e0041}\u{e9}\"}\n";

    #[test]
    fn escaped_json_means_the_same() {
        let plain = TURNED.replace('\u{1b}', "\\u001b");
        let shown = visible_json(&plain);
        assert_eq!(shown, "{\"a\\u202e\\u001b\":\"\\u007f\\udb40\\udc41\u{e9}\"}\n");
        let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(value(&shown), value(&plain));
    }

    #[test]
    fn only_a_terminal_gets_other_bytes_than_are_stored_and_no_character_is_torn() {
        for is_terminal in [false, true] {
            let mut out = Vec::new();
            let mut screened = Screened::new(&mut out, is_terminal);
            for byte in TURNED.as_bytes() {
                screened.write_all(&[*byte]).unwrap();
            }
            let expected = if is_terminal { visible_json(TURNED) } else { Cow::Borrowed(TURNED) };
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        // What is no UTF-8 does not get stuck.
        let mut out = Vec::new();
        Screened::new(&mut out, true).write_all(b"a\xff\xfeb").unwrap();
        assert_eq!(out, "a\u{fffd}\u{fffd}b".as_bytes());
    }

    #[test]
    fn colour_is_there_only_where_it_is_wanted() {
        assert_eq!(Style { colour: false }.paint("1", "x"), "x");
        assert_eq!(Style { colour: true }.paint("1", "x"), "\u{1b}[1mx\u{1b}[0m");
    }

    #[test]
    fn a_long_cursor_is_cut_and_shows_it() {
        assert_eq!(cut(None), "-");
        assert_eq!(cut(Some(&"x".repeat(60))), "x".repeat(60));
        assert_eq!(cut(Some(&"\u{e9}".repeat(61))), format!("{}...", "\u{e9}".repeat(60)));
    }
}
