//! The first screen: for each sync unit its problems, its state, and its past runs.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use highwater::inspect::{
    Alert, AlertKind, AttachmentReport, AttachmentsReport, BatchCounts, ChildStreamReport, FindingsReport,
    LedgerReport, Line, MessageFate, MessageReport, Report, RunReport, RunStatus, Standing, StreamReport,
    TypeReport, is_internal,
};

use crate::ending::{Exit, Outcome};
use crate::stores::{no_unit, note, open, store_line};
use crate::text::{Listing, Screen, count, cut, duration, fact, folded, json_line, stdout, time, visible};

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The store file
    store: PathBuf,
    /// Show only this sync unit
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// Also show internal units: how lists of external sync units were sent
    #[arg(long)]
    internal: bool,
    /// How many messages, finished runs and failed attachments to show for each unit, newest first
    #[arg(long, value_name = "N", default_value_t = 5)]
    last: usize,
    /// Print one JSON object per line, with a `kind`; times are RFC 3339 in UTC
    #[arg(long)]
    json: bool,
}

impl Show {
    /// Prints what is asked for.
    pub(crate) fn run(&self) -> Outcome {
        let mut snapshot = open(&self.store)?;
        let source = snapshot.source();
        let screen = Screen::new();
        let mut out = stdout();
        if self.json {
            json_line(&mut out, &store_line(&self.store, source, screen.now))?;
        }
        let ids = match &self.unit {
            Some(unit) => vec![unit.clone()],
            None => snapshot.unit_ids()?,
        };
        let (internal, users): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| is_internal(id));
        let hides = !self.internal && self.unit.is_none() && !users.is_empty();
        let (shown, hidden) = if hides { (users, internal.len()) } else { ([users, internal].concat(), 0) };
        for (at, unit) in shown.iter().enumerate() {
            // Problems are found from the newest message and the newest run, even if fewer are to be listed.
            let Some(report) = snapshot.unit(unit, self.last.max(1))? else {
                if self.unit.is_some() {
                    return Err(no_unit(&self.store, unit));
                }
                continue;
            };
            let standing = report.standing(screen.now, snapshot.source());
            if self.json {
                lines(&mut out, &report, &standing)?;
            } else {
                if at > 0 {
                    writeln!(out)?;
                }
                print(&mut out, &report, &standing, screen)?;
            }
        }
        if shown.is_empty() && !self.json {
            writeln!(out, "no sync unit yet")?;
        }
        if hidden > 0 && !self.json {
            writeln!(
                out,
                "\n{} not shown: --internal",
                count(hidden as u64, "internal unit", "internal units")
            )?;
        }
        out.flush()?;
        if snapshot.source() != source {
            note(&self.store, snapshot.source());
        }
        Ok(Exit::Fine)
    }
}

fn lines(out: &mut impl Write, report: &Report, standing: &Standing) -> io::Result<()> {
    let mut report = report.lines();
    if let Some(unit) = report.next() {
        json_line(out, &unit)?;
    }
    json_line(out, &Line::Standing(standing))?;
    standing.alerts.iter().try_for_each(|alert| json_line(out, &Line::Alert(alert)))?;
    report.try_for_each(|line| json_line(out, &line))
}

/// Everything about a unit, for people.
fn print(out: &mut impl Write, report: &Report, standing: &Standing, screen: Screen) -> io::Result<()> {
    let unit = &report.unit;
    let mut name = String::new();
    folded_line(&mut name, screen, &format!("sync unit {}", visible(&unit.sync_unit)))?;
    writeln!(out, "{}", screen.paint("1", &name))?;
    for alert in &standing.alerts {
        let mut text = String::new();
        alert_line(&mut text, screen, alert)?;
        writeln!(out, "{}", screen.paint("1;33", &text))?;
    }
    if let Some(run) = &report.run {
        run_facts(out, report, run, standing, screen)?;
    }
    let watermark = match unit.watermark {
        Some(watermark) => screen.time(watermark),
        None => "none: no run is finished".to_owned(),
    };
    fact(out, screen, "watermark", &watermark)?;
    let known = format!("since {}, {} begun", screen.time(unit.created_at), count(unit.runs, "run", "runs"));
    fact(out, screen, "known", &known)?;

    let started_at = report.run.as_ref().map(|run| run.started_at);
    let mut table =
        Listing::new(&["listing", "phase", "#pages", "#records", "last page", "#a second", "cursor"]);
    for stream in &report.streams {
        table.row(stream_row(stream, started_at, screen));
    }
    table.print(out, screen, "listings")?;
    child_listings(&report.child_streams).print(out, screen, "child listings")?;
    records(&report.item_types).print(out, screen, "records, by where they are")?;
    findings(out, screen, &report.findings)?;
    let mut bookmarks = Listing::new(&["listing", "#bytes", "bookmark"]);
    for bookmark in &report.bookmarks {
        let shown = cut(Some(&bookmark.bookmark));
        bookmarks.row([bookmark.stream.clone(), bookmark.bytes.to_string(), shown]);
    }
    bookmarks.print(out, screen, "bookmarks that finished runs left")?;
    let mut values = Listing::new(&["key", "#bytes", "value"]);
    for value in &report.values {
        values.row([value.key.clone(), value.bytes.to_string(), cut(Some(&value.value))]);
    }
    values.print(out, screen, "the extractor's own values")?;
    let kept = format!("messages, {} of {} kept", report.messages.len(), unit.messages_kept);
    messages(&report.messages, screen).print(out, screen, &kept)?;
    let kept = format!("runs that are over, {} of {}", report.ledger.len(), unit.ledger_runs);
    ledger(&report.ledger, screen).print(out, screen, &kept)?;
    for (requeued, of, what) in [
        (false, unit.attachments_failed, "attachments that failed"),
        (true, unit.attachments_requeued, "attachments that failed and are queued again"),
    ] {
        let some: Vec<_> =
            report.failed_attachments.iter().filter(|failed| failed.requeued == requeued).collect();
        failed_attachments(&some, screen).print(out, screen, &format!("{what}, {} of {of}", some.len()))?;
    }
    Ok(())
}

/// A line, folded if it is long, without a line end: so it can be coloured as a whole.
fn folded_line(text: &mut String, screen: Screen, line: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    folded(&mut bytes, screen, "", "  ", line)?;
    text.push_str(String::from_utf8_lossy(&bytes).trim_end());
    Ok(())
}

/// An alert and its time, for people.
pub(crate) fn alert_words(alert: &Alert, screen: Screen) -> String {
    let at = alert.at.map(|at| match alert.what {
        AlertKind::Delay => format!("until {}: ", screen.time(at)),
        _ => format!("{}: ", screen.time(at)),
    });
    let what = match alert.what {
        AlertKind::Error | AlertKind::Delay => format!("{} ", alert.what),
        _ => String::new(),
    };
    format!("{what}{}{}", at.unwrap_or_default(), alert.text)
}

fn alert_line(text: &mut String, screen: Screen, alert: &Alert) -> io::Result<()> {
    let mut bytes = Vec::new();
    folded(&mut bytes, screen, "  ! ", "    ", &visible(&alert_words(alert, screen)))?;
    text.push_str(String::from_utf8_lossy(&bytes).trim_end());
    Ok(())
}

fn run_facts(
    out: &mut impl Write,
    report: &Report,
    run: &RunReport,
    standing: &Standing,
    screen: Screen,
) -> io::Result<()> {
    let is_open = run.status == RunStatus::Open;
    let mut words = format!("{}: {}", event_words(&run.run), run.status);
    if let Some(phase) = run.phase {
        let _ = write!(words, ", {phase} phase");
    }
    if let Some(percent) = run.progress_percent.filter(|_| is_open) {
        let _ = write!(words, ", {percent} %");
    }
    fact(out, screen, "run", &words)?;
    if !run.phases_done.is_empty() {
        let done: Vec<String> = run.phases_done.iter().map(ToString::to_string).collect();
        fact(out, screen, "done", &done.join(", "))?;
    }
    let started = match run.ended_at {
        Some(ended) => format!(
            "{}, over {} after {}",
            time(run.started_at),
            screen.time(ended),
            duration(ended - run.started_at)
        ),
        None => screen.time(run.started_at),
    };
    fact(out, screen, "started", &format!("{started}, life {} of it", run.epoch))?;
    let since = run.since.map_or_else(|| "everything".to_owned(), |since| screen.time(since));
    fact(out, screen, "since", &since)?;
    if is_open {
        let holder =
            if standing.is_held { "a process has the store open" } else { "no process has the store open" };
        let stored = match run.changed_at {
            Some(changed) => format!("last {}; {holder}", screen.time(changed)),
            None => holder.to_owned(),
        };
        fact(out, screen, "stored", &stored)?;
        if let Some(rate) = rates(standing, screen) {
            fact(out, screen, "reading", &rate)?;
        }
        fact(
            out,
            screen,
            "extracted",
            &format!(
                "{}, {}, {} of them not announced",
                count(run.pages, "page", "pages"),
                count(run.batches, "batch", "batches"),
                run.open_batches
            ),
        )?;
        fact(out, screen, "on its way", &on_its_way(standing))?;
    }
    if run.attachments.queued > 0 {
        fact(out, screen, "queue", &attachments(run.attachments))?;
    }
    if let Some(deaths) = deaths(report, run) {
        fact(out, screen, "deaths", &deaths)?;
    }
    if let Some(event) = &run.event {
        let answer = match run.message {
            Some(message) => format!("answered by message {message}"),
            None => "not answered yet".to_owned(),
        };
        let at = run.event_accepted_at.map(|at| format!(", {}", screen.age(at))).unwrap_or_default();
        let event = event_words(event);
        fact(out, screen, "event", &format!("number {}{at}, {answer}: {event}", run.events))?;
        if run.events_reused > 0 {
            let reused = count(run.events_reused, "event", "events");
            fact(out, screen, "", &format!("{reused} came with ids used before"))?;
        }
    }
    Ok(())
}

/// What the lives that ended without an answer cost, as far as that is known.
pub(crate) fn deaths(report: &Report, run: &RunReport) -> Option<String> {
    if run.deaths == 0 {
        return None;
    }
    let mut text = format!("{} of it ended without an answer", count(run.deaths, "life", "lives"));
    let last = report.deaths.iter().rev().find(|death| death.run.as_ref() == Some(&run.run));
    if let Some(death) = last {
        let _ = match death.changed_at {
            Some(changed) => write!(
                text,
                "; the last cost at most {}, the current page and {} in vain",
                duration(death.found_at - changed),
                count(death.batches, "upload", "uploads")
            ),
            None => write!(text, "; the last cost at most what followed its checkpoint"),
        };
    }
    Some(text)
}

/// The identity of an event in words. The id of a run that we made from an event is shown in the same way.
pub(crate) fn event_words(identity: &str) -> String {
    let parts: Option<Vec<Option<String>>> = serde_json::from_str(identity).ok();
    match parts.as_deref() {
        Some([Some(event_type), _, request, version]) => {
            let mut words = event_type.clone();
            if let Some(request) = request {
                let _ = write!(words, ", request {request}");
            }
            if let Some(version) = version {
                let _ = write!(words, ", version {version}");
            }
            words
        }
        _ => identity.to_owned(),
    }
}

pub(crate) fn rates(standing: &Standing, screen: Screen) -> Option<String> {
    let last_page = standing.last_page_at?;
    let whole =
        standing.whole.map(|rate| format!("{:.0} records a second over the run", rate.items_per_second()));
    let recent = match standing.recent {
        Some(rate) => format!("{:.0} records a second over the last minutes", rate.items_per_second()),
        None => "nothing over the last minutes".to_owned(),
    };
    let ago = screen.age(last_page);
    Some(format!("last page {ago}; {recent}{}", whole.map(|whole| format!(", {whole}")).unwrap_or_default()))
}

pub(crate) fn on_its_way(standing: &Standing) -> String {
    let of = |counts: BatchCounts, state: &str| {
        (counts.batches > 0).then(|| {
            format!(
                "{} {state} ({})",
                count(counts.batches, "batch", "batches"),
                count(counts.items, "record", "records")
            )
        })
    };
    let open = (standing.open_items > 0)
        .then(|| format!("{} in no batch yet", count(standing.open_items, "record", "records")));
    let parts = [
        open,
        of(standing.staged, "staged"),
        of(standing.uploaded, "uploaded"),
        of(standing.confirmed, "confirmed"),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "nothing: what was read is announced".to_owned() } else { parts.join(", ") }
}

fn stream_row(
    stream: &StreamReport,
    started_at: Option<chrono::DateTime<chrono::Utc>>,
    screen: Screen,
) -> [String; 7] {
    let rate = started_at.and_then(|started_at| stream.recent(started_at, screen.now));
    [
        stream.stream.clone(),
        stream.phase.to_string(),
        stream.pages.to_string(),
        stream.items.to_string(),
        stream.last_page_at.map_or_else(|| "-".to_owned(), |at| screen.age(at)),
        rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.0}", rate.items_per_second())),
        if stream.exhausted { "exhausted".to_owned() } else { cut(stream.cursor.as_deref()) },
    ]
}

fn child_listings(streams: &[ChildStreamReport]) -> Listing {
    let mut table = Listing::new(&[
        "listing",
        "#named",
        "#exhausted",
        "#pending",
        "#pages",
        "#records",
        "#bytes pending",
    ]);
    for children in streams {
        let figures = [
            children.named,
            children.exhausted,
            children.pending,
            children.pages,
            children.items,
            children.pending_bytes,
        ];
        table.row([children.stream.clone()].into_iter().chain(figures.map(|figure| figure.to_string())));
    }
    table
}

/// Where the records of a run are: the number read is the sum of the other columns.
fn records(types: &[TypeReport]) -> Listing {
    let skips = types.iter().any(|counts| counts.skipped > 0);
    let rejects = types.iter().any(|counts| counts.rejected > 0);
    let repeats = types.iter().any(|counts| counts.repeated > 0);
    let unchanged = types.iter().any(|counts| counts.unchanged > 0);
    let mut header = vec!["item type", "#read"];
    if skips {
        header.push("#skipped");
    }
    if rejects {
        header.push("#rejected");
    }
    if repeats {
        header.push("#repeated");
    }
    if unchanged {
        header.push("#unchanged");
    }
    header.extend(["#open", "#staged", "#uploaded", "#confirmed", "#announced"]);
    let mut table = Listing::new(&header);
    for counts in types {
        let mut row = vec![counts.item_type.clone(), counts.read.to_string()];
        if skips {
            row.push(counts.skipped.to_string());
        }
        if rejects {
            row.push(counts.rejected.to_string());
        }
        if repeats {
            row.push(counts.repeated.to_string());
        }
        if unchanged {
            row.push(counts.unchanged.to_string());
        }
        let places = [
            counts.open_items,
            counts.batches_staged.items,
            counts.batches_uploaded.items,
            counts.batches_confirmed.items,
            counts.announced,
        ];
        row.extend(places.map(|number| number.to_string()));
        table.row(row);
    }
    table
}

/// What checks found in records: the count of each kind, and the first finding of each.
fn findings(out: &mut impl Write, screen: Screen, kinds: &[FindingsReport]) -> io::Result<()> {
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
    table.print(out, screen, "findings in records")?;
    if kinds.iter().any(|kind| !kind.kept.is_empty()) {
        writeln!(out, "\n  the first of each kind")?;
    }
    for kind in kinds {
        let item_type = kind.item_type.as_deref().unwrap_or("(any)");
        for text in &kind.kept {
            let line = format!("{}: {}", visible(item_type), visible(text));
            folded(out, screen, "    ", "      ", &line)?;
        }
    }
    Ok(())
}

pub(crate) fn fate_words(message: &MessageReport) -> String {
    match (message.fate, message.delivered_times) {
        (MessageFate::Sealed, _) => "NOT DELIVERED".to_owned(),
        (fate, times) if times > 1 => format!("{fate} {times} times"),
        (fate, _) => fate.to_string(),
    }
}

fn messages(messages: &[MessageReport], screen: Screen) -> Listing {
    let mut table = Listing::new(&["#no", "event type", "fate", "sealed", "#artifacts"]);
    for message in messages {
        table.row([
            message.message.to_string(),
            message.event_type.clone(),
            fate_words(message),
            screen.time(message.sealed_at),
            message.artifacts.to_string(),
        ]);
    }
    table
}

fn ledger(runs: &[LedgerReport], screen: Screen) -> Listing {
    let mut table =
        Listing::new(&["run", "status", "over", "took", "#read", "#announced", "#deaths", "besides"]);
    for run in runs {
        let sum =
            |of: fn(&highwater::inspect::LedgerTypeReport) -> u64| run.item_types.iter().map(of).sum::<u64>();
        let mut besides = Vec::new();
        if run.findings.errors > 0 {
            besides.push(count(run.findings.errors, "error", "errors"));
        }
        if run.findings.warnings > 0 {
            besides.push(count(run.findings.warnings, "warning", "warnings"));
        }
        if run.attachments.queued > 0 {
            besides.push(attachments(run.attachments));
        }
        table.row([
            event_words(&run.run),
            run.status.to_string(),
            screen.age(run.ended_at),
            duration(run.ended_at - run.started_at),
            sum(|counts| counts.read).to_string(),
            sum(|counts| counts.announced).to_string(),
            run.deaths.to_string(),
            if besides.is_empty() { "-".to_owned() } else { besides.join(", ") },
        ]);
    }
    table
}

pub(crate) fn attachments(of: AttachmentsReport) -> String {
    let AttachmentsReport { queued, settled, failed, left, .. } = of;
    format!("{}: {settled} settled, {failed} failed, {left} left", count(queued, "attachment", "attachments"))
}

fn failed_attachments(failed: &[&AttachmentReport], screen: Screen) -> Listing {
    let mut table = Listing::new(&["attachment", "parent", "file", "#tries", "failed", "reason"]);
    for failed in failed {
        table.row([
            failed.id.clone(),
            failed.parent_id.clone(),
            failed.file_name.clone(),
            failed.tries.to_string(),
            failed.failed_at.map_or_else(|| "-".to_owned(), |at| screen.age(at)),
            failed.reason.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}
