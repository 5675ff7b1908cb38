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

use chrono::{DateTime, Utc};
use clap::Args;
use highwater::ErrorKind;
use highwater::inspect::{Line, Report, RunStatus, Snapshot, Standing, is_internal};

use crate::ending::{EXIT_CODES, Exit, Failure, Outcome, complain};
use crate::figures::{alert_words, death_words, next_words};
use crate::stores::{no_unit, store_line, unit_id};
use crate::text::{ALERT_CHARS, Screen, at_most, count, folded, json_line, stdout, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump tail state.redb --unit acme/tickets

Prints a line for each unit in which something changed, also that its process
has died. The pace (123/s) is that between two looks, at first that of the last
minutes. A running extractor is not disturbed: the store is read from a copy, at
most every 2 seconds, and for at most a tenth of the time.";

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

/// What of a unit has to change for a line to be printed.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    run: Option<String>,
    epoch: u64,
    pages: u64,
    messages: u64,
    changed_at: Option<DateTime<Utc>>,
    is_dead: bool,
}

/// What a look saw of a unit.
#[derive(Debug)]
struct Seen {
    at: DateTime<Utc>,
    read: u64,
    shown: Shown,
}

impl Seen {
    fn of(report: &Report, standing: &Standing) -> Self {
        let run = report.run.as_ref();
        let shown = Shown {
            run: run.map(|run| run.run.clone()),
            epoch: run.map_or(0, |run| run.epoch),
            pages: run.map_or(0, |run| run.pages),
            messages: report.unit.messages,
            changed_at: run.and_then(|run| run.ended_at.or(run.changed_at)),
            is_dead: standing.death.is_some(),
        };
        Self { at: standing.read_at, read: report.item_types.iter().map(|counts| counts.read).sum(), shown }
    }

    /// Records read in a second since an earlier look at the same run.
    #[allow(clippy::cast_precision_loss, reason = "a pace is not exact")]
    fn pace_since(&self, before: &Self) -> Option<f64> {
        let seconds = (self.at - before.at).as_seconds_f64();
        let same_run = self.shown.run == before.shown.run;
        (same_run && seconds > 0.0).then(|| self.read.saturating_sub(before.read) as f64 / seconds)
    }
}

impl Tail {
    pub(crate) fn run(&self) -> Outcome {
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        let mut looks = 0;
        loop {
            let began = Instant::now();
            match self.look(&mut seen) {
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
    fn look(&self, seen: &mut BTreeMap<String, Seen>) -> Outcome<bool> {
        let mut snapshot = Snapshot::open(&self.store)?;
        let ids = match &self.unit {
            Some(unit) => vec![unit_id(&mut snapshot, &self.store, unit)?],
            None => snapshot.unit_ids()?.into_iter().filter(|id| !is_internal(id)).collect(),
        };
        let named = self.unit.is_some() || ids.len() > 1;
        let screen = Screen::new();
        let mut out = stdout();
        let (mut is_open, mut has_begun) = (false, false);
        for unit in ids {
            let report = snapshot.unit(&unit, 1)?.ok_or_else(|| no_unit(&self.store, &unit))?;
            let standing = report.standing(screen.now, snapshot.source());
            is_open |= report.open_run().is_some();
            let now = Seen::of(&report, &standing);
            let before = seen.get(&unit);
            if before.is_some_and(|before| before.shown == now.shown) {
                seen.insert(unit, now);
                continue;
            }
            if self.json {
                if !std::mem::replace(&mut has_begun, true) {
                    json_line(&mut out, &store_line(&self.store, snapshot.source(), screen.now))?;
                }
                let run = report.run.as_ref().map(Line::Run);
                run.into_iter()
                    .chain([Line::Standing(&standing)])
                    .chain(standing.alerts.iter().map(Line::Alert))
                    .chain(standing.death.iter().map(Line::Death))
                    .try_for_each(|line| json_line(&mut out, &line))?;
            } else {
                let recent = standing.recent.map(|rate| rate.items_per_second());
                let pace = before.and_then(|before| now.pace_since(before)).or(recent);
                let mut line = words(&report, &standing, pace);
                if let Some(alert) = standing.alerts.first() {
                    let next = next_words(alert, &self.store, named.then_some(&unit));
                    let _ =
                        write!(line, "; ! {}; see {next}", at_most(ALERT_CHARS, &alert_words(alert, screen)));
                }
                let lead = format!("{} ", screen.now.format("%H:%M:%S"));
                folded(&mut out, screen, &lead, "         ", &visible(&line))?;
            }
            seen.insert(unit, now);
        }
        out.flush()?;
        Ok(is_open)
    }
}

/// How long to wait after a read that took this long.
fn pause(every: Duration, took: Duration) -> Duration {
    every.max(took.saturating_mul(SHARE)).saturating_sub(took)
}

/// `pace`: records that are read in a second.
fn words(report: &Report, standing: &Standing, pace: Option<f64>) -> String {
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
        if let Some(pace) = pace.filter(|_| standing.death.is_none()) {
            let _ = write!(line, " ({pace:.0}/s)");
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
    if let Some(death) = &standing.death {
        let _ = write!(line, "; DEATH of life {}: {}", death.epoch, death_words(death));
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
