//! `tail`: follows a store while its extractor runs.
//!
//! A store that is open in another process is read from a copy. So it is read at most every 2 seconds, and for at
//! most a tenth of the time, however large it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use highwater::ErrorKind;
use highwater::inspect::{Line, Report, RunStatus, Snapshot, Standing, is_internal};

use crate::ending::{EXIT_CODES, Exit, Failure, Outcome, complain};
use crate::stores::{no_unit, store_line};
use crate::text::{ALERT_CHARS, Screen, at_most, count, folded, json_line, stdout, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump tail state.redb --unit acme/tickets

Prints a line for each unit in which something changed. A running extractor is
not disturbed: the store is read from a copy, at most every 2 seconds, and for
at most a tenth of the time.";

/// The fewest seconds between two reads.
const EVERY_MIN: u64 = 2;
/// At most one part in this many of the time is spent reading.
const SHARE: u32 = 10;

/// Follows a store while its extractor runs, until it is interrupted
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Tail {
    /// The store file
    store: PathBuf,
    /// The sync unit; without it, all that are not internal
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// Seconds between two reads, at least 2
    #[arg(long, value_name = "SECONDS", default_value_t = EVERY_MIN, value_parser = clap::value_parser!(u64).range(EVERY_MIN..))]
    every: u64,
    /// Stop after this many reads
    #[arg(long, value_name = "N")]
    looks: Option<u64>,
    /// Stop when no run is open
    #[arg(long)]
    until_over: bool,
    /// Print JSON objects, one per line, for each read at which something changed
    #[arg(long)]
    json: bool,
}

/// What was last printed about a unit.
type Shown = (Option<String>, u64, u64, u64, Option<chrono::DateTime<chrono::Utc>>);

impl Tail {
    pub(crate) fn run(&self) -> Outcome {
        let mut said: BTreeMap<String, Shown> = BTreeMap::new();
        let mut looks = 0;
        loop {
            let began = Instant::now();
            match self.look(&mut said) {
                Ok(is_open) if self.until_over && !is_open => return Ok(Exit::Fine),
                Ok(_) => {}
                // The store is written to too fast to be copied: the next attempt may succeed.
                Err(Failure::Store(error)) if error.kind() == ErrorKind::InUse => {
                    complain(&format!("{}: too busy to be copied; trying again", self.store.display()));
                }
                Err(failure) => return Err(failure),
            }
            looks += 1;
            if self.looks.is_some_and(|most| looks >= most) {
                return Ok(Exit::Fine);
            }
            sleep(pause(Duration::from_secs(self.every), began.elapsed()));
        }
    }

    /// Prints what changed since the last read; returns whether a run is open.
    fn look(&self, said: &mut BTreeMap<String, Shown>) -> Outcome<bool> {
        let mut snapshot = Snapshot::open(&self.store)?;
        let ids = match &self.unit {
            Some(unit) => vec![unit.clone()],
            None => snapshot.unit_ids()?.into_iter().filter(|id| !is_internal(id)).collect(),
        };
        let screen = Screen::new();
        let mut out = stdout();
        let (mut is_open, mut has_begun) = (false, false);
        for unit in ids {
            let report = snapshot.unit(&unit, 1)?.ok_or_else(|| no_unit(&self.store, &unit))?;
            let standing = report.standing(screen.now, snapshot.source());
            let run = report.run.as_ref();
            is_open |= report.open_run().is_some();
            let now: Shown = (
                run.map(|run| run.run.clone()),
                run.map_or(0, |run| run.epoch),
                run.map_or(0, |run| run.pages),
                report.unit.messages,
                run.and_then(|run| run.ended_at.or(run.changed_at)),
            );
            if said.get(&unit) == Some(&now) {
                continue;
            }
            if self.json {
                if !std::mem::replace(&mut has_begun, true) {
                    json_line(&mut out, &store_line(&self.store, snapshot.source(), screen.now))?;
                }
                let run = run.map(Line::Run);
                run.into_iter()
                    .chain([Line::Standing(&standing)])
                    .chain(standing.alerts.iter().map(Line::Alert))
                    .try_for_each(|line| json_line(&mut out, &line))?;
            } else {
                let line = words(&report, &standing);
                let lead = format!("{} ", screen.now.format("%H:%M:%S"));
                folded(&mut out, screen, &lead, "         ", &visible(&line))?;
            }
            said.insert(unit, now);
        }
        out.flush()?;
        Ok(is_open)
    }
}

/// How long to wait after a read that took this long.
fn pause(every: Duration, took: Duration) -> Duration {
    every.max(took.saturating_mul(SHARE)).saturating_sub(took)
}

fn words(report: &Report, standing: &Standing) -> String {
    let unit = &report.unit.sync_unit;
    let Some(run) = &report.run else { return format!("{unit}: no run yet") };
    let mut line = format!("{unit}: {}", run.status);
    if let Some(phase) = run.phase {
        let _ = write!(line, ", {phase}");
    }
    let read: u64 = report.item_types.iter().map(|counts| counts.read).sum();
    let announced: u64 = report.item_types.iter().map(|counts| counts.announced).sum();
    if run.status == RunStatus::Open {
        if let Some(percent) = run.progress_percent {
            let _ = write!(line, " {percent} %");
        }
        let _ = write!(line, ", {}, {read} read", count(run.pages, "page", "pages"));
        if let Some(rate) = standing.recent {
            let _ = write!(line, " ({:.0}/s)", rate.items_per_second());
        }
        let _ = write!(
            line,
            ": {} open, {} staged, {} uploaded, {} confirmed, {announced} announced",
            standing.open_items, standing.staged.items, standing.uploaded.items, standing.confirmed.items
        );
        if run.attachments.queued > 0 {
            let of = run.attachments;
            let _ =
                write!(line, "; attachments: {} settled, {} failed, {} left", of.settled, of.failed, of.left);
        }
    } else if let Some(over) = report.ledger.last() {
        let sum = |of: fn(&highwater::inspect::LedgerTypeReport) -> u64| {
            over.item_types.iter().map(of).sum::<u64>()
        };
        let _ = write!(
            line,
            ", {}, {} read, {} announced",
            count(over.pages, "page", "pages"),
            sum(|counts| counts.read),
            sum(|counts| counts.announced)
        );
    }
    if let Some(alert) = standing.alerts.first() {
        let _ = write!(line, "; ! {}", at_most(ALERT_CHARS, &alert.text));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_begin_two_seconds_apart_at_least_and_take_a_tenth_of_the_time_at_most() {
        for (took, pause_of) in
            [(0, 2_000), (50, 1_950), (199, 1_801), (200, 1_800), (1_000, 9_000), (60_000, 540_000)]
        {
            let took = Duration::from_millis(took);
            let waits = pause(Duration::from_secs(EVERY_MIN), took);
            assert_eq!(waits, Duration::from_millis(pause_of), "{took:?}");
            assert!(took + waits >= Duration::from_secs(2) && took * 10 <= took + waits);
        }
        assert_eq!(pause(Duration::from_secs(30), Duration::from_secs(1)), Duration::from_secs(29));
    }
}
