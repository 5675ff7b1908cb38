//! `runs`: the result of every run that is kept, with the whereabouts of each record.

use std::fmt::Write as _;
use std::io::Write;

use clap::Args;
use highwater::inspect::{BatchReport, BatchStage, LedgerReport, Line, Report, Standing, TypeReport};

use crate::ending::{EXIT_CODES, Exit, Outcome};
use crate::figures::{attachments, deaths, event_words};
use crate::stores::{Asked, no_unit, none_listed, open_at, store_line};
use crate::text::{Listing, Screen, count, duration, folded, json_line, stdout, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump runs state.redb --unit acme/tickets --last 10

For each run and item type: the records that were read are the sum of those that
were skipped, rejected or announced. In an open run the rest are listed too: in
which batches they are, or that they are in none yet.";

/// Lists the runs, newest last: records read and announced, deaths, findings
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Runs {
    #[command(flatten)]
    asked: Asked,
}

impl Runs {
    pub(crate) fn run(&self) -> Outcome {
        let Asked { store, unit, last, json } = &self.asked;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let report =
            snapshot.unit(&unit, last.unwrap_or(usize::MAX))?.ok_or_else(|| no_unit(store, &unit))?;
        let batches = snapshot.batches(&unit)?.unwrap_or_default();
        let screen = Screen::new();
        let mut out = stdout();
        if *json {
            json_line(&mut out, &store_line(store, snapshot.source(), screen.now))?;
            report.ledger.iter().try_for_each(|run| json_line(&mut out, &Line::Ledger(run)))?;
            if let Some(run) = report.open_run() {
                json_line(&mut out, &Line::Run(run))?;
                let types = report.item_types.iter().map(Line::ItemType);
                types
                    .chain(batches.iter().map(Line::Batch))
                    .try_for_each(|line| json_line(&mut out, &line))?;
            }
            out.flush()?;
            return Ok(Exit::Fine);
        }
        let mut is_first = true;
        for run in &report.ledger {
            if !std::mem::take(&mut is_first) {
                writeln!(out)?;
            }
            over(&mut out, screen, run)?;
        }
        if report.open_run().is_some() {
            if !is_first {
                writeln!(out)?;
            }
            let standing = report.standing(screen.now, snapshot.source());
            at_hand(&mut out, screen, &report, &standing, &batches)?;
        } else if is_first {
            writeln!(out, "{}", none_listed(*last, "no run yet"))?;
        }
        out.flush()?;
        Ok(Exit::Fine)
    }
}

fn over(out: &mut impl Write, screen: Screen, run: &LedgerReport) -> std::io::Result<()> {
    let mut line = format!(
        "{}: {} {}, after {}, {}",
        event_words(&run.run),
        run.status,
        screen.time(run.ended_at),
        duration(run.ended_at - run.started_at),
        count(run.pages, "page", "pages")
    );
    let since =
        run.since.map_or_else(|| "of everything".to_owned(), |since| format!("since {}", screen.time(since)));
    let _ = write!(line, ", {since}");
    if run.deaths > 0 {
        let _ = write!(line, ", {} without an answer", count(run.deaths, "life", "lives"));
    }
    if run.findings.errors + run.findings.warnings > 0 {
        let (errors, warnings) = (run.findings.errors, run.findings.warnings);
        let _ = write!(
            line,
            ", {}, {}",
            count(errors, "error", "errors"),
            count(warnings, "warning", "warnings")
        );
    }
    folded(out, screen, "run ", "  ", &visible(&line))?;
    let repeats = run.item_types.iter().any(|counts| counts.repeated > 0);
    let unchanged = run.item_types.iter().any(|counts| counts.unchanged > 0);
    let mut header = vec!["item type", "#read", "#skipped", "#rejected"];
    if repeats {
        header.push("#repeated");
    }
    if unchanged {
        header.push("#unchanged");
    }
    header.extend(["#announced", "#not", "#artifacts"]);
    let mut table = Listing::new(&header);
    for counts in &run.item_types {
        let left_out = counts.skipped + counts.rejected + counts.repeated + counts.unchanged;
        let mut row = vec![
            counts.item_type.clone(),
            counts.read.to_string(),
            counts.skipped.to_string(),
            counts.rejected.to_string(),
        ];
        if repeats {
            row.push(counts.repeated.to_string());
        }
        if unchanged {
            row.push(counts.unchanged.to_string());
        }
        row.extend([
            counts.announced.to_string(),
            counts.read.saturating_sub(left_out + counts.announced).to_string(),
            counts.artifacts.to_string(),
        ]);
        table.row(row);
    }
    if !table.is_empty() {
        table.lines(out, screen, "    ")?;
    }
    if run.attachments.queued > 0 {
        folded(out, screen, "    ", "      ", &attachments(run.attachments))?;
    }
    Ok(())
}

fn at_hand(
    out: &mut impl Write,
    screen: Screen,
    report: &Report,
    standing: &Standing,
    batches: &[BatchReport],
) -> std::io::Result<()> {
    let Some(run) = &report.run else { return Ok(()) };
    let line = format!(
        "{}: {}, started {}, {}",
        event_words(&run.run),
        run.status,
        screen.time(run.started_at),
        count(run.pages, "page", "pages")
    );
    folded(out, screen, "run ", "  ", &visible(&line))?;
    for counts in &report.item_types {
        folded(out, screen, "    ", "      ", &visible(&explained(counts, batches)))?;
    }
    if let Some(deaths) = deaths(report, run, standing) {
        folded(out, screen, "    ", "      ", &deaths)?;
    }
    if run.attachments.queued > 0 {
        folded(out, screen, "    ", "      ", &attachments(run.attachments))?;
    }
    Ok(())
}

/// Where the records of an item type are, and in which batches.
fn explained(counts: &TypeReport, batches: &[BatchReport]) -> String {
    let mut parts = Vec::new();
    if counts.skipped > 0 {
        parts.push(format!("{} skipped", counts.skipped));
    }
    if counts.rejected > 0 {
        parts.push(format!("{} rejected", counts.rejected));
    }
    if counts.repeated > 0 {
        parts.push(format!("{} repeated", counts.repeated));
    }
    if counts.unchanged > 0 {
        parts.push(format!("{} unchanged", counts.unchanged));
    }
    if counts.open_items > 0 {
        parts.push(format!("{} in no batch yet", counts.open_items));
    }
    for (state, of) in [
        (BatchStage::Staged, counts.batches_staged),
        (BatchStage::Uploaded, counts.batches_uploaded),
        (BatchStage::Confirmed, counts.batches_confirmed),
    ] {
        if of.items > 0 {
            let seqs = batches
                .iter()
                .filter(|batch| batch.item_type == counts.item_type && batch.state == state)
                .map(|batch| batch.seq);
            parts.push(format!("{} {state} (batch {})", of.items, ranges(seqs)));
        }
    }
    parts.push(format!("{} announced", counts.announced));
    format!("{}: {} read = {}", counts.item_type, counts.read, parts.join(" + "))
}

/// Numbers in order, consecutive ones as a range: `1-3, 7`.
fn ranges(numbers: impl Iterator<Item = u64>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut().filter(|(_, last)| last.checked_add(1) == Some(number)) {
            Some((_, last)) => *last = number,
            None => ranges.push((number, number)),
        }
    }
    let shown = |(first, last): &(u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(shown).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn numbers_that_follow_one_another_are_a_range() {
        for (numbers, shown) in [
            (&[][..], ""),
            (&[3], "3"),
            (&[1, 2], "1-2"),
            (&[1, 2, 3, 7, 9, 10], "1-3, 7, 9-10"),
            (&[u64::MAX - 1, u64::MAX], "18446744073709551614-18446744073709551615"),
        ] {
            assert_eq!(ranges(numbers.iter().copied()), shown);
        }
    }
}
