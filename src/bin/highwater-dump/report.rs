//! `report`: writes a store as one page for a browser, to read, to send and to print.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use chrono::TimeDelta;
use clap::Args;
use highwater::html::{Document, Table, grouped};
use highwater::inspect::{
    Conversation, FindingsReport, LedgerReport, MessageKind, Report as UnitState, RunReport, RunStatus,
    Snapshot, Source, Standing, TimeSpent, TypeReport,
};
use highwater::limits::LEDGER_RUNS_MAX;
use highwater::mend::Act;

use crate::ending::{EXIT_CODES, Exit, Failure, Outcome};
use crate::figures::{self, alert_words, event_words, fate_words};
use crate::files::replace;
use crate::plots::{self, Bar, Fill, Part, Scale};
use crate::stores::{no_unit, open, shown_units};
use crate::text::{Screen, at_most, count, duration, time, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump report state.redb --html report.html

The page needs no other file and no network. It has what the other commands
show, with plots: runs over time, where records are, where the time of the
newest runs went. Ages are as of the time when the page was made.";

/// Characters of an error or a reason that a page shows at most.
const REASON_CHARS: usize = 2_000;
/// Reasons of failed attachments and rejected records that are listed; the rest are counted together.
const REASONS_MAX: usize = 50;

/// Writes a page for a browser: units, runs over time, records, failures, findings
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Report {
    /// The store file
    store: PathBuf,
    /// The file to write; an existing one is replaced. `-` is stdout
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
    /// Show only this sync unit
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// Also show internal units: how lists of external sync units were sent
    #[arg(long)]
    internal: bool,
    /// How many runs, messages and failed attachments the tables list for each unit, newest first. Plots show all
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
}

impl Report {
    pub(crate) fn run(&self) -> Outcome {
        let to_stdout = self.html == Path::new("-");
        if !to_stdout {
            refuse_store(&self.html)?;
        }
        let page = self.page()?;
        if to_stdout {
            io::stdout().lock().write_all(page.as_bytes())?;
        } else {
            replace(&self.html, page.as_bytes()).map_err(|error| cannot_write(&self.html, &error))?;
            let mut out = io::stdout().lock();
            writeln!(
                out,
                "{}: {} bytes",
                visible(&self.html.to_string_lossy()),
                grouped(&page.len().to_string())
            )?;
        }
        Ok(Exit::Fine)
    }

    fn page(&self) -> Outcome<String> {
        let mut snapshot = open(&self.store)?;
        let screen = Screen::new();
        let (shown, hidden) = shown_units(&mut snapshot, &self.store, self.unit.as_deref(), self.internal)?;
        let mut units = Vec::new();
        for id in shown {
            match Unit::read(&mut snapshot, &id, screen)? {
                Some(unit) => units.push(unit),
                None if self.unit.is_some() => return Err(no_unit(&self.store, &id)),
                None => {}
            }
        }

        let name = self.store.file_name().unwrap_or(self.store.as_os_str()).to_string_lossy();
        let mut page = Document::new(&format!("{name}: highwater store"), plots::STYLE);
        page.heading(1, &name);
        let read = match snapshot.source() {
            Source::Closed => "closed",
            Source::LeftOpen => "left open by a process that is gone",
            _ => "open in a process: read from a copy of one moment",
        };
        page.facts(&[
            ("store", self.store.display().to_string()),
            ("as of", time(screen.now)),
            ("the file was", read.to_owned()),
        ]);
        overview(&mut page, &units, screen);
        if hidden > 0 {
            let hidden = count(hidden as u64, "internal unit is", "internal units are");
            page.paragraph("dim", &format!("{hidden} not shown: --internal"));
        }
        for unit in &units {
            page.html("<section>");
            unit.add(&mut page, screen, self.last);
            page.html("</section>\n");
        }
        Ok(page.finish())
    }
}

/// Refuses to overwrite a store, this one or another.
fn refuse_store(path: &Path) -> Outcome<()> {
    let mut start = [0; 4];
    match File::open(path).and_then(|mut file| file.read_exact(&mut start)) {
        Ok(()) if start == *b"redb" => Err(Failure::Usage(format!(
            "{}: is a store and will not be overwritten; give another file with --html",
            path.display()
        ))),
        // If the file does not exist or cannot be read, the write reports what is wrong.
        _ => Ok(()),
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Absent(format!("cannot write {}: {error}", path.display()))
}

/// A line for each unit.
fn overview(page: &mut Document, units: &[Unit], screen: Screen) {
    if units.is_empty() {
        page.paragraph("", "No sync unit yet.");
        return;
    }
    let mut table = Table::new(
        "Sync units",
        &["unit", "newest run", "stored last", "watermark", "#runs begun", "#alerts", "what is wrong first"],
    );
    for Unit { report, standing, .. } in units {
        let changed = |run: &RunReport| run.changed_at.or(run.ended_at);
        table.row([
            report.unit.sync_unit.clone(),
            report.run.as_ref().map_or_else(|| "none".to_owned(), state_words),
            report.run.as_ref().and_then(changed).map_or_else(|| "-".to_owned(), |at| screen.age(at)),
            report.unit.watermark.map_or_else(|| "none".to_owned(), |at| screen.age(at)),
            report.unit.runs.to_string(),
            standing.alerts.len().to_string(),
            standing
                .alerts
                .first()
                .map_or_else(|| "-".to_owned(), |alert| at_most(REASON_CHARS, &alert_words(alert, screen))),
        ]);
    }
    page.table(&table);
}

fn state_words(run: &RunReport) -> String {
    match (run.phase, run.progress_percent) {
        (Some(phase), Some(percent)) if run.status == RunStatus::Open => {
            format!("{}, {phase} phase, {percent} %", run.status)
        }
        (Some(phase), None) if run.status == RunStatus::Open => format!("{}, {phase} phase", run.status),
        _ => run.status.to_string(),
    }
}

/// What is read of a unit.
struct Unit {
    report: UnitState,
    standing: Standing,
    conversation: Conversation,
    /// What an operator did to it last.
    mended: Option<Act>,
}

impl Unit {
    fn read(snapshot: &mut Snapshot, id: &str, screen: Screen) -> Outcome<Option<Self>> {
        let Some(report) = snapshot.unit(id, usize::try_from(LEDGER_RUNS_MAX).unwrap_or(usize::MAX))? else {
            return Ok(None);
        };
        let Some(conversation) = snapshot.conversation(id)? else { return Ok(None) };
        let standing = report.standing(screen.now, snapshot.source());
        let mended = snapshot.acts(Some(id))?.pop();
        Ok(Some(Self { report, standing, conversation, mended }))
    }

    fn add(&self, page: &mut Document, screen: Screen, last: usize) {
        let Self { report, standing, .. } = self;
        page.heading(2, &report.unit.sync_unit);
        let alerts: Vec<_> =
            standing.alerts.iter().map(|alert| at_most(REASON_CHARS, &alert_words(alert, screen))).collect();
        page.list("alerts", &alerts);
        let facts = figures::facts(report, standing, self.mended.as_ref(), screen).into_iter();
        let facts: Vec<_> = facts.map(|(name, text)| (name, at_most(REASON_CHARS, &text))).collect();
        page.facts(&facts);
        self.runs(page, screen, last);
        if let Some(run) = &report.run {
            records(page, run, &report.item_types);
            listings(page, report, screen);
        }
        self.time(page);
        self.deaths(page);
        self.failures(page, screen, last);
        findings(page, report);
    }

    /// The runs that are over, and the one that is open.
    fn runs(&self, page: &mut Document, screen: Screen, last: usize) {
        let ledger = &self.report.ledger;
        if ledger.is_empty() {
            return;
        }
        page.heading(3, "Runs");
        let legend = [
            (Fill::First, "finished"),
            (Fill::Second, "finished, with lives that ended without an answer"),
            (Fill::Bad, "abandoned"),
            (Fill::Fourth, "open"),
        ];
        let plots = [
            ("Records that each run announced", Scale::Count),
            ("Bytes of the artifacts that each run announced", Scale::Bytes),
            ("How long each run took", Scale::Seconds),
        ];
        for (caption, scale) in plots {
            let open = self.report.open_run().map(|run| open_bar(run, &self.report.item_types, scale));
            let bars: Vec<_> = ledger.iter().map(|run| bar(run, scale)).chain(open).collect();
            if bars.iter().any(|bar| bar.height > 0) {
                plots::over_time(page, caption, &legend, &bars, scale);
            }
        }

        let caption = format!(
            "Runs that are over: the newest {} of {}",
            ledger.len().min(last),
            self.report.unit.ledger_runs
        );
        let pages = ledger.iter().map(|run| run.pages.to_string());
        let bytes = ledger.iter().map(|run| figures::bytes_words(&run.item_types.iter().collect::<Vec<_>>()));
        let table = figures::ledger(ledger, screen).with("#pages", pages).with("#bytes", bytes);
        page.table(&table.newest(last).table(&caption));
        let runs = count(ledger.len() as u64, "run that is over", "runs that are over");
        page.table(&figures::by_type(ledger).table(&format!("Records by item type, of {runs}")));
    }

    /// Where the time of the newest runs went, as far as their events show.
    fn time(&self, page: &mut Document) {
        let spent = self.conversation.time_spent(&self.report, &self.standing);
        if spent.is_empty() {
            return;
        }
        page.heading(3, "Where the time went");
        let sum = |of: fn(&TimeSpent) -> TimeDelta| spent.iter().map(of).sum::<TimeDelta>();
        let part = |name, time: TimeDelta, fill| {
            let millis = u64::try_from(time.num_milliseconds()).unwrap_or(0);
            Part { name, size: millis, shown: duration(time), fill }
        };
        let caption = "Time of the runs whose events are kept: the newest, and the one before it";
        plots::whole(
            page,
            caption,
            &[
                part("at work", sum(|times| times.work), Fill::Third),
                part("until the platform went on", sum(|times| times.between), Fill::First),
                part("waiting for the source (DELAY)", sum(|times| times.delay), Fill::Second),
                part("lost to deaths, at most", sum(|times| times.lost), Fill::Bad),
            ],
        );
        let heads = [
            "phase",
            "#invocations",
            "at work",
            "until the platform went on",
            "DELAY",
            "lost to deaths, at most",
        ];
        let mut table = Table::new("The same, by phase", &heads);
        for times in &spent {
            let phase = times.phase.map_or_else(|| "not known".to_owned(), |phase| phase.to_string());
            let numbers = [times.work, times.between, times.delay, times.lost].map(duration);
            table.row([phase, times.invocations.to_string()].into_iter().chain(numbers));
        }
        page.table(&table);
    }

    fn deaths(&self, page: &mut Document) {
        let deaths: Vec<_> = self.conversation.deaths.iter().chain(&self.standing.death).collect();
        if deaths.is_empty() {
            return;
        }
        page.heading(3, "Deaths");
        let mut table = Table::new(
            "Lives that ended without an answer, and what each cost at most",
            &["stored last", "run", "#life", "found", "lost", "#uploads lost", "#records in them"],
        );
        for death in deaths.into_iter().rev() {
            table.row([
                death.changed_at.map_or_else(|| "not known".to_owned(), time),
                death.run.as_deref().map_or_else(|| "-".to_owned(), event_words),
                death.epoch.to_string(),
                if death.resumed { time(death.found_at) } else { "no life has resumed the run".to_owned() },
                death.changed_at.map_or_else(
                    || "what followed its checkpoint".to_owned(),
                    |changed| format!("{}, and the current page", duration(death.found_at - changed)),
                ),
                death.batches.to_string(),
                death.items.to_string(),
            ]);
        }
        page.table(&table);
    }

    /// Errors that were sent, attachments that were given up, and records that were rejected.
    fn failures(&self, page: &mut Document, screen: Screen, last: usize) {
        let report = &self.report;
        let mut errors =
            Table::new("ERROR messages that are kept", &["sealed", "#message", "phase", "fate", "reason"]);
        let said = report.messages.iter().filter(|message| message.answer == MessageKind::Error);
        for message in said.rev().take(last) {
            errors.row([
                screen.time(message.sealed_at),
                message.message.to_string(),
                message.phase.to_string(),
                fate_words(message),
                message.error.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        let reasons = report.failed_reasons.most_frequent(REASONS_MAX);
        let mut reasons = by_count("Why attachments were given up", &["reason", "#attachments"], reasons);
        let caption = format!(
            "Attachments that were given up: the newest {} of {}",
            report.failed_attachments.len().min(last),
            report.unit.attachments_failed + report.unit.attachments_requeued
        );
        let all: Vec<_> = report.failed_attachments.iter().collect();
        let states = all.iter().map(|failed| failed.state.to_string());
        let failed = figures::failed_attachments(&all, screen).with("state", states);
        let mut failed = failed.newest(last).table(&caption);
        let rejected = report.rejected_reasons.most_frequent(REASONS_MAX);
        let mut rejected =
            by_count("Records that were rejected", &["item type and reason", "#records"], rejected);
        let tables = [&mut errors, &mut reasons, &mut failed, &mut rejected];
        if tables.iter().any(|table| !table.is_empty()) {
            page.heading(3, "Failures");
        }
        for table in tables {
            page.table(table);
        }
    }
}

/// The bar of a run that is over.
fn bar(run: &LedgerReport, scale: Scale) -> Bar {
    let took = run.ended_at - run.started_at;
    let deaths =
        if run.deaths > 0 { format!(", {}", count(run.deaths, "death", "deaths")) } else { String::new() };
    let title = format!(
        "{}: {} {}, after {}, {} announced, {} bytes{deaths}",
        event_words(&run.run),
        run.status,
        time(run.ended_at),
        duration(took),
        count(announced(run), "record", "records"),
        figures::bytes_words(&run.item_types.iter().collect::<Vec<_>>())
    );
    Bar {
        from: run.started_at,
        until: run.ended_at,
        height: match scale {
            Scale::Count => announced(run),
            Scale::Bytes => artifact_bytes(run),
            Scale::Seconds => seconds(took),
        },
        title: at_most(REASON_CHARS, &title),
        fill: match run.status {
            RunStatus::Finished if run.deaths == 0 => Fill::First,
            RunStatus::Finished => Fill::Second,
            _ => Fill::Bad,
        },
    }
}

/// The bar of the open run, until it last stored something: it may have stood still since.
fn open_bar(run: &RunReport, types: &[TypeReport], scale: Scale) -> Bar {
    let until = run.changed_at.unwrap_or(run.started_at).max(run.started_at);
    let announced = types.iter().map(|counts| counts.announced).sum();
    let bytes = types.iter().map(|counts| counts.announced_bytes).sum();
    let title = format!(
        "{}: open, stored last {}, after {}, {} announced, {bytes} bytes",
        event_words(&run.run),
        time(until),
        duration(until - run.started_at),
        count(announced, "record", "records")
    );
    Bar {
        from: run.started_at,
        until,
        height: match scale {
            Scale::Count => announced,
            Scale::Bytes => bytes,
            Scale::Seconds => seconds(until - run.started_at),
        },
        title: at_most(REASON_CHARS, &title),
        fill: Fill::Fourth,
    }
}

fn announced(run: &LedgerReport) -> u64 {
    run.item_types.iter().map(|counts| counts.announced).sum()
}

/// As far as they are known.
fn artifact_bytes(run: &LedgerReport) -> u64 {
    run.item_types.iter().filter_map(|counts| counts.artifact_bytes).sum()
}

fn seconds(time: TimeDelta) -> u64 {
    u64::try_from(time.num_seconds()).unwrap_or(0)
}

/// Reasons, the most frequent first.
fn by_count(caption: &str, heads: &[&str], reasons: Vec<(String, u64)>) -> Table {
    let mut table = Table::new(caption, heads);
    for (reason, count) in reasons {
        table.row([at_most(REASON_CHARS, &reason), count.to_string()]);
    }
    table
}

/// Where the records of the newest run are.
fn records(page: &mut Document, run: &RunReport, types: &[TypeReport]) {
    if types.is_empty() {
        return;
    }
    page.heading(
        3,
        if run.status == RunStatus::Open { "Records of the open run" } else { "Records of the newest run" },
    );
    let sum = |of: fn(&TypeReport) -> u64| types.iter().map(of).sum::<u64>();
    let part = |name, size: u64, fill| Part { name, size, shown: grouped(&size.to_string()), fill };
    let skipped = sum(|counts| counts.skipped);
    let rejected = sum(|counts| counts.rejected);
    let again = sum(|counts| counts.repeated + counts.unchanged);
    plots::whole(
        page,
        "Where the records that were read are",
        &[
            part("announced", sum(|counts| counts.announced), Fill::Third),
            part("on its way: staged, uploaded or confirmed", sum(on_the_way), Fill::First),
            part("in no batch yet", sum(|counts| counts.open_items), Fill::Second),
            part("skipped, repeated or unchanged", skipped + again, Fill::Fourth),
            part("rejected", rejected, Fill::Bad),
        ],
    );
    let of = |number: fn(&TypeReport) -> u64| types.iter().map(move |counts| number(counts).to_string());
    let table = figures::records(types)
        .with("#artifacts", of(|counts| counts.artifacts_announced))
        .with("#bytes of them", of(|counts| counts.announced_bytes))
        .with("#bytes on their way", of(bytes_on_the_way));
    page.table(&table.table("The same, by item type"));
}

fn bytes_on_the_way(counts: &TypeReport) -> u64 {
    let parts = [counts.batches_staged, counts.batches_uploaded, counts.batches_confirmed];
    parts.iter().map(|counts| counts.gzip_bytes).sum::<u64>() + counts.open_bytes
}

fn on_the_way(counts: &TypeReport) -> u64 {
    counts.batches_staged.items + counts.batches_uploaded.items + counts.batches_confirmed.items
}

fn listings(page: &mut Document, report: &UnitState, screen: Screen) {
    page.table(&figures::listings(report, screen).table("Listings of that run"));
    page.table(&figures::child_listings(&report.child_streams).table("Child listings of that run"));
}

fn findings(page: &mut Document, report: &UnitState) {
    if report.findings.is_empty() {
        return;
    }
    page.heading(3, "Findings");
    let first = |kind: &FindingsReport| kind.kept.first().cloned().unwrap_or_else(|| "-".to_owned());
    let table = figures::findings(&report.findings).with("the first", report.findings.iter().map(first));
    page.table(&table.table("What checks found in records and metadata of the newest run"));
}
