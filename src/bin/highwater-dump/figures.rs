//! The facts about a unit that both the first screen and the report show.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use highwater::html::Table;
use highwater::inspect::{
    Alert, AlertKind, AttachmentReport, AttachmentsReport, BatchCounts, ChildStreamReport, DeathReport,
    FindingsReport, LedgerReport, LedgerTypeReport, MessageFate, MessageReport, Report, RunReport, RunStatus,
    Standing, TypeReport,
};
use highwater::mend::Act;

use crate::text::{Listing, Screen, count, cut, duration, shell_path, shell_word, time};

/// A list: its columns, and what is in them.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Those of numbers start with `#`, which is not shown.
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Figures {
    fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// With another column, which has a cell for each row.
    pub(crate) fn with(mut self, head: &'static str, cells: impl IntoIterator<Item = String>) -> Self {
        self.heads.push(head);
        for (row, cell) in self.rows.iter_mut().zip(cells) {
            row.push(cell);
        }
        self
    }

    /// Its rows in the other order, and as many of the first as that.
    pub(crate) fn newest(mut self, last: usize) -> Self {
        self.rows.reverse();
        self.rows.truncate(last);
        self
    }

    /// For a terminal.
    pub(crate) fn listing(self) -> Listing {
        let mut listing = Listing::new(&self.heads);
        self.rows.into_iter().for_each(|row| listing.row(row));
        listing
    }

    /// For a browser.
    pub(crate) fn table(self, caption: &str) -> Table {
        let mut table = Table::new(caption, &self.heads);
        self.rows.into_iter().for_each(|row| table.row(row));
        table
    }
}

/// What is known, and how it is called.
pub(crate) type Facts = Vec<(&'static str, String)>;

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

/// The command that shows more of what an alert is about, or mends it. `unit`: if the store has several.
pub(crate) fn next_words(alert: &Alert, store: &Path, unit: Option<&str>) -> String {
    let store = shell_path(store);
    let of_unit = unit.map(|unit| format!(" --unit {}", shell_word(unit))).unwrap_or_default();
    let shows = |command: &str| format!("`highwater-dump {command} {store}{of_unit}`");
    let mends =
        |command: &str| format!("`highwater-dump {command} {store} {}`", shell_word(&alert.sync_unit));
    match alert.what {
        AlertKind::Lost => mends("abandon"),
        AlertKind::Idle => shows("tail"),
        AlertKind::FarMore => format!("{}, {}", shows("tail"), mends("abandon")),
        AlertKind::FailedAttachments => {
            format!("`highwater-dump attachments {store}{of_unit} --failed`, {}", mends("requeue"))
        }
        AlertKind::Rejected => shows("rejected"),
        AlertKind::SetCursor => format!("{}, {}", shows("acts"), mends("set-cursor")),
        AlertKind::Forgotten | AlertKind::IgnoredWatermark => shows("runs"),
        AlertKind::Findings => format!("`highwater-dump {store}{of_unit}`, \"findings in records\""),
        _ => shows("events"),
    }
}

/// When an operator did what, and who it was.
pub(crate) fn act_words(act: &Act, screen: Screen) -> String {
    format!("{}, by {}: {}", screen.time(act.at), act.by, act.act)
}

/// What stands of a unit now. `mended`: what an operator did to it last.
pub(crate) fn facts(report: &Report, standing: &Standing, mended: Option<&Act>, screen: Screen) -> Facts {
    let unit = &report.unit;
    let mut facts =
        report.run.as_ref().map_or_else(Facts::new, |run| run_facts(report, run, standing, screen));
    let watermark = unit
        .watermark
        .map_or_else(|| "none: the next run extracts everything".to_owned(), |at| screen.time(at));
    facts.push(("watermark", watermark));
    if unit.attachments_requeued > 0 {
        let attachments = count(unit.attachments_requeued, "attachment", "attachments");
        facts.push((
            "requeued",
            format!("{attachments} that had failed: the next run with an attachments phase tries them"),
        ));
    }
    let runs = count(unit.runs, "run", "runs");
    facts.push(("known", format!("since {}, {runs} begun", screen.time(unit.created_at))));
    if let Some(act) = mended {
        facts.push(("mended", act_words(act, screen)));
    }
    facts
}

fn run_facts(report: &Report, run: &RunReport, standing: &Standing, screen: Screen) -> Facts {
    let mut facts = Facts::new();
    let mut fact = |name, text: &str| facts.push((name, text.to_owned()));
    let is_open = run.status == RunStatus::Open;
    let mut words = format!("{}: {}", event_words(&run.run), run.status);
    if let Some(phase) = run.phase {
        let _ = write!(words, ", {phase} phase");
    }
    if let Some(percent) = run.progress_percent.filter(|_| is_open) {
        let _ = write!(words, ", {percent} %");
    }
    fact("run", &words);
    if !run.phases_done.is_empty() {
        let done: Vec<String> = run.phases_done.iter().map(ToString::to_string).collect();
        fact("done", &done.join(", "));
    }
    let started = match run.ended_at {
        Some(ended) => format!(
            "{}, over {} after {}, in {}",
            time(run.started_at),
            screen.time(ended),
            duration(ended - run.started_at),
            count(run.epoch, "life", "lives")
        ),
        None => format!("{}, life {} of it", screen.time(run.started_at), run.epoch),
    };
    fact("started", &started);
    let since = run.since.map_or_else(|| "everything".to_owned(), |since| screen.time(since));
    fact("since", &since);
    if is_open {
        let holder =
            if standing.is_held { "a process has the store open" } else { "no process has the store open" };
        let stored = match run.changed_at {
            Some(changed) => format!("last {}; {holder}", screen.time(changed)),
            None => holder.to_owned(),
        };
        fact("stored", &stored);
        if let Some(rate) = rates(standing, screen) {
            fact("reading", &rate);
        }
        fact(
            "extracted",
            &format!(
                "{}, {}, {} of them not announced",
                count(run.pages, "page", "pages"),
                count(run.batches, "batch", "batches"),
                run.open_batches
            ),
        );
        fact("on its way", &on_its_way(standing));
    }
    if run.attachments.queued > 0 {
        fact("queue", &attachments(run.attachments));
    }
    if let Some(deaths) = deaths(report, run, standing) {
        fact("deaths", &deaths);
    }
    if let Some(event) = &run.event {
        let answer = match run.message {
            Some(message) => format!("answered by message {message}"),
            None if is_open => "not answered yet".to_owned(),
            None => "not answered: the run is over".to_owned(),
        };
        let at = run.event_accepted_at.map(|at| format!(", {}", screen.age(at))).unwrap_or_default();
        let event = event_words(event);
        fact("event", &format!("number {}{at}, {answer}: {event}", run.events));
        if run.events_reused > 0 {
            let reused = count(run.events_reused, "event", "events");
            fact("", &format!("{reused} came with ids used before"));
        }
    }
    facts
}

/// What the lives that ended without an answer cost, as far as that is known.
pub(crate) fn deaths(report: &Report, run: &RunReport, standing: &Standing) -> Option<String> {
    let deaths = run.deaths + u64::from(standing.death.is_some());
    if deaths == 0 {
        return None;
    }
    let mut text = format!("{} of it ended without an answer", count(deaths, "life", "lives"));
    let last = report.deaths.iter().rev().find(|death| death.run.as_ref() == Some(&run.run));
    if let Some(death) = standing.death.as_ref().or(last) {
        let _ = write!(text, "; the last, life {}: {}", death.epoch, death_words(death));
    }
    Some(text)
}

/// What the death of a life cost.
pub(crate) fn death_words(death: &DeathReport) -> String {
    let lost = match death.changed_at {
        Some(changed) => format!(
            "{}, the current page, {} ({})",
            duration(death.found_at - changed),
            count(death.batches, "upload", "uploads"),
            count(death.items, "record", "records")
        ),
        None => "everything after its checkpoint".to_owned(),
    };
    if death.resumed {
        format!("lost at most: {lost}")
    } else {
        format!("no life resumed the run; lost at most: {lost}")
    }
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

fn rates(standing: &Standing, screen: Screen) -> Option<String> {
    let last_page = standing.last_page_at?;
    let whole = standing
        .whole
        .map(|rate| format!("{:.0} records a second over the run, pauses included", rate.items_per_second()));
    let recent = match standing.recent {
        Some(rate) => format!("{:.0} records a second over the last minutes", rate.items_per_second()),
        None => "nothing over the last minutes".to_owned(),
    };
    let ago = screen.age(last_page);
    Some(format!("last page {ago}; {recent}{}", whole.map(|whole| format!(", {whole}")).unwrap_or_default()))
}

fn on_its_way(standing: &Standing) -> String {
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

/// The listings of the newest run.
pub(crate) fn listings(report: &Report, screen: Screen) -> Figures {
    let life_at = report.run.as_ref().map(|run| report.life_at(run));
    let heads = ["listing", "phase", "#pages", "#records", "last page", "#a second", "cursor"];
    let mut figures = Figures::new(&heads);
    for stream in &report.streams {
        let rate = life_at.and_then(|life_at| stream.recent(life_at, screen.now));
        figures.row([
            stream.stream.clone(),
            stream.phase.to_string(),
            stream.pages.to_string(),
            stream.items.to_string(),
            stream.last_page_at.map_or_else(|| "-".to_owned(), |at| screen.age(at)),
            rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.0}", rate.items_per_second())),
            if stream.exhausted { "exhausted".to_owned() } else { cut(stream.cursor.as_deref()) },
        ]);
    }
    figures
}

pub(crate) fn child_listings(streams: &[ChildStreamReport]) -> Figures {
    let mut table = Figures::new(&[
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

/// Why records were left out, and how each reason is called.
const LEFT_OUT: [&str; 4] = ["#skipped", "#rejected", "#repeated", "#unchanged"];

/// How many records were left out for each reason, of those that any record was left out for.
fn left_out(all: &[[u64; 4]]) -> (Vec<&'static str>, Vec<Vec<u64>>) {
    let is_any: Vec<bool> = (0..4).map(|at| all.iter().any(|counts| counts.get(at) > Some(&0))).collect();
    let of = |counts: &[u64; 4]| {
        counts.iter().zip(&is_any).filter(|(_, is_any)| **is_any).map(|(count, _)| *count).collect()
    };
    let heads = LEFT_OUT.iter().zip(&is_any).filter(|(_, is_any)| **is_any).map(|(head, _)| *head);
    (heads.collect(), all.iter().map(of).collect())
}

/// Where the records of a run are: what was read is the sum of the other columns.
pub(crate) fn records(types: &[TypeReport]) -> Figures {
    let all: Vec<_> = types
        .iter()
        .map(|counts| [counts.skipped, counts.rejected, counts.repeated, counts.unchanged])
        .collect();
    let (reasons, all) = left_out(&all);
    let mut heads = vec!["item type", "#read"];
    heads.extend(reasons);
    heads.extend(["#open", "#staged", "#uploaded", "#confirmed", "#announced"]);
    let mut figures = Figures::new(&heads);
    for (counts, left_out) in types.iter().zip(all) {
        let places = [
            counts.open_items,
            counts.batches_staged.items,
            counts.batches_uploaded.items,
            counts.batches_confirmed.items,
            counts.announced,
        ];
        let numbers = [counts.read].into_iter().chain(left_out).chain(places);
        figures.row([counts.item_type.clone()].into_iter().chain(numbers.map(|number| number.to_string())));
    }
    figures
}

/// Records and bytes by item type, of runs that are over.
pub(crate) fn by_type(runs: &[LedgerReport]) -> Figures {
    let mut types: BTreeMap<&str, Vec<&LedgerTypeReport>> = BTreeMap::new();
    for counts in runs.iter().flat_map(|run| &run.item_types) {
        types.entry(&counts.item_type).or_default().push(counts);
    }
    let sum = |of: &[&LedgerTypeReport], number: fn(&LedgerTypeReport) -> u64| {
        of.iter().map(|counts| number(counts)).sum::<u64>()
    };
    let all: Vec<_> = types
        .values()
        .map(|of| {
            [
                sum(of, |counts| counts.skipped),
                sum(of, |counts| counts.rejected),
                sum(of, |counts| counts.repeated),
                sum(of, |counts| counts.unchanged),
            ]
        })
        .collect();
    let (reasons, all) = left_out(&all);
    let mut heads = vec!["item type", "#runs", "#read"];
    heads.extend(reasons);
    heads.extend(["#announced", "#artifacts", "#bytes"]);
    let mut figures = Figures::new(&heads);
    for ((item_type, of), left_out) in types.iter().zip(all) {
        let numbers = [of.len() as u64, sum(of, |counts| counts.read)].into_iter().chain(left_out);
        let numbers = numbers.chain([sum(of, |counts| counts.announced), sum(of, |counts| counts.artifacts)]);
        let mut row = vec![(*item_type).to_owned()];
        row.extend(numbers.map(|number| number.to_string()));
        row.push(bytes_words(of));
        figures.row(row);
    }
    figures
}

/// Bytes of the artifacts of some runs and item types, as far as they are known.
pub(crate) fn bytes_words(of: &[&LedgerTypeReport]) -> String {
    let known: Vec<u64> = of.iter().filter_map(|counts| counts.artifact_bytes).collect();
    let sum: u64 = known.iter().sum();
    match known.len() {
        0 => "not known".to_owned(),
        some if some < of.len() => format!("at least {sum}"),
        _ => sum.to_string(),
    }
}

/// What checks found in records, by kind.
pub(crate) fn findings(kinds: &[FindingsReport]) -> Figures {
    let mut figures = Figures::new(&["item type", "severity", "rule", "at", "#findings"]);
    for kind in kinds {
        figures.row([
            kind.item_type.clone().unwrap_or_else(|| "(any)".to_owned()),
            kind.severity.clone(),
            kind.rule.clone(),
            if kind.path.is_empty() { "-".to_owned() } else { kind.path.clone() },
            kind.count.to_string(),
        ]);
    }
    figures
}

pub(crate) fn fate_words(message: &MessageReport) -> String {
    match (message.fate, message.delivered_times) {
        (MessageFate::Sealed, _) => "NOT DELIVERED".to_owned(),
        (fate, times) if times > 1 => format!("{fate} {times} times"),
        (fate, _) => fate.to_string(),
    }
}

pub(crate) fn messages(messages: &[MessageReport], screen: Screen) -> Figures {
    let mut table = Figures::new(&["#no", "event type", "fate", "sealed", "#artifacts"]);
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

pub(crate) fn ledger(runs: &[LedgerReport], screen: Screen) -> Figures {
    let mut table =
        Figures::new(&["run", "status", "over", "took", "#read", "#announced", "#deaths", "besides"]);
    for run in runs {
        let sum = |of: fn(&LedgerTypeReport) -> u64| run.item_types.iter().map(of).sum::<u64>();
        let mut besides = Vec::new();
        let rejected = sum(|counts| counts.rejected);
        if rejected > 0 {
            besides.push(format!("{rejected} rejected"));
        }
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

pub(crate) fn failed_attachments(failed: &[&AttachmentReport], screen: Screen) -> Figures {
    let mut table = Figures::new(&["attachment", "parent", "file", "#tries", "failed", "reason"]);
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
