//! What the store remembers, unit by unit.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use highwater::inspect::{
    AttachmentsReport, BatchCounts, FailedAttachmentReport, FindingsReport, LedgerReport, MessageFate,
    MessageReport, Report, RunReport, RunStatus, TypeReport,
};

use crate::ending::{Exit, Outcome};
use crate::stores::{no_unit, note, open, store_line};
use crate::text::{Listing, Style, count, cut, json_line, stdout, style, time, time_or, visible};

/// Failed attachments that a table shows; JSON shows all.
const FAILED_SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The store file
    store: PathBuf,
    /// Show this sync unit only
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// How many messages and finished runs to show of each unit, the newest
    #[arg(long, value_name = "N", default_value_t = 5)]
    last: usize,
    /// One JSON object per line, with a `kind`; times are RFC 3339 in UTC
    #[arg(long)]
    json: bool,
}

impl Show {
    /// Prints what is asked for.
    pub(crate) fn run(&self) -> Outcome {
        let show = self;
        let mut snapshot = open(&show.store)?;
        let source = snapshot.source();
        let mut out = stdout();
        let mut units = 0;
        if show.json {
            json_line(&mut out, &store_line(&show.store, source))?;
        }
        let mut print = |report: &Report| -> io::Result<()> {
            units += 1;
            if show.json {
                report.lines().try_for_each(|line| json_line(&mut out, &line))
            } else {
                if units > 1 {
                    writeln!(out)?;
                }
                unit(&mut out, report, style())
            }
        };
        match &show.unit {
            Some(unit) => match snapshot.unit(unit, show.last)? {
                Some(report) => print(&report)?,
                None => return Err(no_unit(&show.store, unit)),
            },
            None => {
                for report in snapshot.units(show.last) {
                    print(&report?)?;
                }
            }
        }
        if units == 0 && !show.json {
            writeln!(out, "no sync unit yet")?;
        }
        out.flush()?;
        if snapshot.source() != source {
            note(&show.store, snapshot.source());
        }
        Ok(Exit::Fine)
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
