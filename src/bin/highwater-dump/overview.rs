//! The first screen: for each sync unit its problems, its state, and its past runs.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use highwater::inspect::{Alert, FindingsReport, Line, Reasons, Report, Standing};
use highwater::mend::Act;

use crate::ending::{Exit, Outcome};
use crate::figures::{self, act_words, alert_words, next_words};
use crate::stores::{no_unit, note, open, shown_units, store_line};
use crate::text::{
    ALERT_CHARS, Listing, Screen, at_most, count, cut, fact, folded, json_line, stdout, visible,
};

/// Reasons of failed attachments and rejected records that are listed; the rest are counted together.
const REASONS_MAX: usize = 10;

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
        let (shown, hidden) = shown_units(&mut snapshot, &self.store, self.unit.as_deref(), self.internal)?;
        let is_only = self.unit.is_none() && shown.len() == 1;
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
                let named = (!is_only).then_some(unit.as_str());
                let mended = snapshot.acts(Some(unit))?.pop();
                let next = |alert: &Alert| next_words(alert, &self.store, named);
                print(&mut out, &report, &standing, mended.as_ref(), next, screen)?;
            }
        }
        if shown.is_empty() && !self.json {
            let acts = snapshot.acts(None)?;
            match acts.last() {
                Some(act) => writeln!(out, "no sync unit; mended {}", visible(&act_words(act, screen)))?,
                None => writeln!(out, "no sync unit yet")?,
            }
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
    report.chain(standing.death.iter().map(Line::Death)).try_for_each(|line| json_line(out, &line))
}

/// Everything about a unit, for people.
fn print(
    out: &mut impl Write,
    report: &Report,
    standing: &Standing,
    mended: Option<&Act>,
    next: impl Fn(&Alert) -> String,
    screen: Screen,
) -> io::Result<()> {
    let unit = &report.unit;
    let mut name = String::new();
    folded_line(&mut name, screen, &format!("sync unit {}", visible(&unit.sync_unit)))?;
    writeln!(out, "{}", screen.paint("1", &name))?;
    for alert in &standing.alerts {
        let mut text = String::new();
        alert_line(&mut text, screen, alert, &next(alert))?;
        writeln!(out, "{}", screen.paint("1;33", &text))?;
    }
    for (name, text) in figures::facts(report, standing, mended, screen) {
        fact(out, screen, name, &text)?;
    }

    figures::listings(report, screen).listing().print(out, screen, "listings")?;
    figures::child_listings(&report.child_streams).listing().print(out, screen, "child listings")?;
    figures::records(&report.item_types).listing().print(out, screen, "records, by where they are")?;
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
    figures::messages(&report.messages, screen).listing().print(out, screen, &kept)?;
    let kept = format!("runs that are over, {} of {}", report.ledger.len(), unit.ledger_runs);
    figures::ledger(&report.ledger, screen).listing().print(out, screen, &kept)?;
    reasons(out, screen, &report.failed_reasons, ["why attachments failed", "#attachments"])?;
    reasons(out, screen, &report.rejected_reasons, ["why records were rejected", "#records"])?;
    for (requeued, of, what) in [
        (false, unit.attachments_failed, "attachments that failed"),
        (true, unit.attachments_requeued, "attachments that failed and are queued again"),
    ] {
        let some: Vec<_> =
            report.failed_attachments.iter().filter(|failed| failed.requeued == requeued).collect();
        let caption = format!("{what}, {} of {of}", some.len());
        figures::failed_attachments(&some, screen).listing().print(out, screen, &caption)?;
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

fn alert_line(text: &mut String, screen: Screen, alert: &Alert, next: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    let words = at_most(ALERT_CHARS, &visible(&alert_words(alert, screen)));
    folded(&mut bytes, screen, "  ! ", "    ", &format!("{words}; see {}", visible(next)))?;
    text.push_str(String::from_utf8_lossy(&bytes).trim_end());
    Ok(())
}

/// Counts by reason, the most frequent first.
fn reasons(
    out: &mut impl Write,
    screen: Screen,
    reasons: &Reasons,
    [caption, counted]: [&str; 2],
) -> io::Result<()> {
    let mut listing = Listing::new(&[counted, "reason"]);
    for (reason, count) in reasons.most_frequent(REASONS_MAX) {
        listing.row([count.to_string(), reason]);
    }
    listing.print(out, screen, caption)
}

/// What checks found in records: the count of each kind, and the first finding of each.
fn findings(out: &mut impl Write, screen: Screen, kinds: &[FindingsReport]) -> io::Result<()> {
    figures::findings(kinds).listing().print(out, screen, "findings in records")?;
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
