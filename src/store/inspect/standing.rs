//! The state of a sync unit, and what is wrong with it, at the moment of reading.
//!
//! Stored rows do not know the time; these figures do: ages, rates, and whether a silence is too long.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use crate::clock::in_words;

use super::messages::{DeathReport, MessageReport};
use super::past_runs::LedgerTypeReport;
use super::records::{BatchCounts, TypeReport};
use super::report::{Report, RunReport, StreamReport};
use super::snapshot::Source;
use super::words::{AlertKind, MessageFate, MessageKind, count, optional_time, time};

/// An extractor that stores nothing for this long causes an alert: a page, an upload and a confirm each take far
/// less.
const IDLE: TimeDelta = TimeDelta::minutes(5);
/// The recent rate covers this many minutes, and the current one.
const RECENT: TimeDelta = TimeDelta::minutes(5);

/// How much was read in how much time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rate {
    /// Pages.
    pub pages: u64,
    /// Records in them.
    pub items: u64,
    /// The time in seconds.
    pub seconds: f64,
}

impl Rate {
    fn over(pages: u64, items: u64, time: TimeDelta) -> Option<Self> {
        let seconds = time.as_seconds_f64();
        (seconds > 0.0).then_some(Self { pages, items, seconds })
    }

    /// Records a second.
    #[allow(clippy::cast_precision_loss, reason = "a rate is not exact")]
    pub fn items_per_second(&self) -> f64 {
        self.items as f64 / self.seconds
    }
}

/// An alert: what an operator should know first.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Alert {
    /// The unit.
    pub sync_unit: String,
    /// What kind of alert it is.
    pub what: AlertKind,
    /// Since when, if that is known; for a delay, until when.
    #[serde(serialize_with = "optional_time")]
    pub at: Option<DateTime<Utc>>,
    /// What is wrong, for people, without the time.
    pub text: String,
}

/// The state of a sync unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Standing {
    /// The unit.
    pub sync_unit: String,
    /// The moment of reading.
    #[serde(serialize_with = "time")]
    pub read_at: DateTime<Utc>,
    /// A process has the store open.
    pub is_held: bool,
    /// When a page of any listing of the run was last stored.
    #[serde(serialize_with = "optional_time")]
    pub last_page_at: Option<DateTime<Utc>>,
    /// What the run read in the last minutes, while it is open.
    pub recent: Option<Rate>,
    /// What the run read from its start until it last stored a page, while it is open.
    pub whole: Option<Rate>,
    /// Records that are in no batch yet.
    pub open_items: u64,
    /// Batches that only the store has.
    pub staged: BatchCounts,
    /// Batches that the platform has, and may not have linked to the run.
    pub uploaded: BatchCounts,
    /// Batches that are confirmed, and in no message yet.
    pub confirmed: BatchCounts,
    /// What is wrong, the most urgent first.
    #[serde(skip)]
    pub alerts: Vec<Alert>,
    /// The death of the newest life of the open run: the newest event is not answered, and no process has the store open.
    #[serde(skip)]
    pub death: Option<DeathReport>,
}

fn sum(types: &[TypeReport], of: impl Fn(&TypeReport) -> BatchCounts) -> BatchCounts {
    types.iter().map(of).fold(BatchCounts::default(), |sum, counts| BatchCounts {
        batches: sum.batches + counts.batches,
        items: sum.items + counts.items,
        gzip_bytes: sum.gzip_bytes + counts.gzip_bytes,
    })
}

impl StreamReport {
    /// What the stream returned in the last minutes of a life that started at `life_at`; `None` if nothing, or if the clock
    /// is before that.
    pub fn recent(&self, life_at: DateTime<Utc>, now: DateTime<Utc>) -> Option<Rate> {
        let first = now - RECENT;
        // The oldest minute that is counted whole.
        let from = DateTime::from_timestamp(first.timestamp().div_euclid(60) * 60, 0)?.max(life_at);
        let minutes = self.minutes.iter().filter(|minute| minute.at + TimeDelta::minutes(1) > from);
        let (pages, items) =
            minutes.fold((0, 0), |(pages, items), minute| (pages + minute.pages, items + minute.items));
        if pages == 0 { None } else { Rate::over(pages, items, now - from) }
    }
}

impl Report {
    /// The state of the unit at `now`, in a store that was read in this way.
    pub fn standing(&self, now: DateTime<Utc>, source: Source) -> Standing {
        let is_held = matches!(source, Source::Copy { .. });
        let run = self.open_run();
        let last_page_at = self.streams.iter().filter_map(|stream| stream.last_page_at).max();
        let recent = run.and_then(|run| {
            let rates: Vec<_> =
                self.streams.iter().filter_map(|stream| stream.recent(self.life_at(run), now)).collect();
            let sum = |of: fn(&Rate) -> u64| rates.iter().map(of).sum();
            let seconds = rates.first()?.seconds;
            Some(Rate { pages: sum(|rate| rate.pages), items: sum(|rate| rate.items), seconds })
        });
        let death = run.and_then(|run| self.newest_death(run, now, is_held));
        let whole = run.and_then(|run| {
            let items = self.streams.iter().map(|stream| stream.items).sum();
            Rate::over(run.pages, items, last_page_at? - run.started_at)
        });
        Standing {
            sync_unit: self.unit.sync_unit.clone(),
            read_at: now,
            is_held,
            last_page_at,
            recent,
            whole,
            open_items: self.item_types.iter().map(|counts| counts.open_items).sum(),
            staged: sum(&self.item_types, |counts| counts.batches_staged),
            uploaded: sum(&self.item_types, |counts| counts.batches_uploaded),
            confirmed: sum(&self.item_types, |counts| counts.batches_confirmed),
            alerts: self.alerts(now, is_held),
            death,
        }
    }

    /// When the newest life of a run started, as far as that is known: when the run did, the newest event came, or the life
    /// after the newest death resumed the run.
    pub fn life_at(&self, run: &RunReport) -> DateTime<Utc> {
        let deaths = self.deaths.iter().filter(|death| death.run.as_ref() == Some(&run.run));
        let resumed_at = deaths.map(|death| death.found_at).max();
        run.started_at.max(run.event_accepted_at.unwrap_or_default()).max(resumed_at.unwrap_or_default())
    }

    /// The death of the newest life of an open run, if it has ended without an answer.
    fn newest_death(&self, run: &RunReport, now: DateTime<Utc>, is_held: bool) -> Option<DeathReport> {
        let staged = sum(&self.item_types, |counts| counts.batches_staged);
        (run.is_unanswered() && !is_held).then(|| DeathReport {
            sync_unit: self.unit.sync_unit.clone(),
            run: Some(run.run.clone()),
            epoch: run.epoch,
            changed_at: run.changed_at,
            found_at: now,
            resumed: false,
            batches: staged.batches,
            items: staged.items,
        })
    }

    /// What is wrong, the most urgent first.
    fn alerts(&self, now: DateTime<Utc>, is_held: bool) -> Vec<Alert> {
        let mut alerts = Vec::new();
        let mut tell = |what, at, text: String| {
            alerts.push(Alert { sync_unit: self.unit.sync_unit.clone(), what, at, text });
        };
        if let Some(error) = self.messages.last().filter(|message| message.answer == MessageKind::Error) {
            tell(AlertKind::Error, Some(error.sealed_at), error_text(error));
        }
        for message in self.messages.iter().filter(|message| message.fate == MessageFate::Sealed) {
            let MessageReport { message, event_type, artifacts, sealed_at, .. } = message;
            tell(
                AlertKind::Undelivered,
                Some(*sealed_at),
                format!(
                    "message {message}, {event_type}, is not known to be delivered: {}",
                    count(*artifacts, "artifact")
                ),
            );
        }
        let run = self.open_run();
        if let Some(run) = run {
            run_alerts(run, now, is_held, &mut tell);
        }
        for (stream, cursor, set_at) in &self.set_cursors {
            let text = format!(
                "listing {stream} begins with the cursor {cursor}, set by an operator, until a run has finished: what \
                 comes before it is not read"
            );
            tell(AlertKind::SetCursor, Some(*set_at), text);
        }
        for stream in &self.streams {
            let Some(most) = stream.far_more_than else { continue };
            tell(
                AlertKind::FarMore,
                None,
                format!(
                    "{} reads far more than in any finished run before: {} in {}, until now at most {} in {}",
                    stream.stream,
                    count(stream.items, "record"),
                    count(stream.pages, "page"),
                    count(most.items, "record"),
                    count(most.pages, "page"),
                ),
            );
        }
        if self.unit.attachments_failed > 0 {
            let failed = count(self.unit.attachments_failed, "attachment");
            let last = self.failed_attachments.iter().rev().find(|failed| !failed.requeued);
            tell(
                AlertKind::FailedAttachments,
                last.and_then(|failed| failed.failed_at),
                format!("{failed} failed. {}", self.failed_reasons.in_words()),
            );
        }
        // Counts of the open run, or of the last one: records that were rejected, those that are announced once but are not
        // remembered, and those at the edge that are not remembered.
        let [rejected, once_forgotten, edge_forgotten] = if run.is_some() {
            let of = |of: fn(&TypeReport) -> u64| self.item_types.iter().map(of).sum::<u64>();
            [
                of(|counts| counts.rejected),
                of(|counts| counts.once_forgotten),
                of(|counts| counts.edge_forgotten),
            ]
        } else {
            let types = || self.ledger.last().into_iter().flat_map(|run| &run.item_types);
            let of = |of: fn(&LedgerTypeReport) -> u64| types().map(of).sum::<u64>();
            [
                of(|counts| counts.rejected),
                of(|counts| counts.once_forgotten),
                of(|counts| counts.edge_forgotten),
            ]
        };
        if rejected > 0 {
            let text = format!(
                "{} rejected, and left out: the next run asks for them. {}",
                count(rejected, "record"),
                self.rejected_reasons.in_words()
            );
            tell(AlertKind::Rejected, None, text);
        }
        for (forgotten, which, when) in [
            (once_forgotten, "to be announced once in a run", "again"),
            (edge_forgotten, "at the edge", "again by the next run"),
        ] {
            if forgotten > 0 {
                let records = count(forgotten, "record");
                let text =
                    format!("{records} {which} had no room to be remembered: they may be announced {when}");
                tell(AlertKind::Forgotten, None, text);
            }
        }
        let errors: u64 =
            self.findings.iter().filter(|kind| kind.severity == "error").map(|kind| kind.count).sum();
        if errors > 0 {
            let text = format!("records do not match the metadata: {}", count(errors, "error"));
            tell(AlertKind::Findings, None, text);
        }
        if let Some(ignored) = self.run.as_ref().and_then(|run| run.ignored_watermark) {
            let text = "the watermark was not used, as it lay in the future when the run began";
            tell(AlertKind::IgnoredWatermark, Some(ignored), text.to_owned());
        }
        alerts
    }
}

impl RunReport {
    /// Whether its newest event has no answer yet.
    fn is_unanswered(&self) -> bool {
        self.event.is_some() && self.message.is_none()
    }
}

/// What is wrong with an open run.
fn run_alerts(
    run: &RunReport,
    now: DateTime<Utc>,
    is_held: bool,
    tell: &mut impl FnMut(AlertKind, Option<DateTime<Utc>>, String),
) {
    if run.lost {
        let text = "the run cannot go on: its earlier records are not known here";
        tell(AlertKind::Lost, None, text.to_owned());
    }
    if run.is_unanswered() && !is_held {
        let text = "no process has the store open, and the newest event is not answered: the extractor was \
                    killed, or failed. The next event, or the same one again, resumes the run: what is stored is \
                    kept, and the pages that were being fetched are fetched again";
        tell(AlertKind::Unanswered, run.changed_at.or(run.event_accepted_at), text.to_owned());
    }
    let works = run.is_unanswered() || run.event.is_none();
    if let Some(changed_at) = run.changed_at.filter(|at| is_held && works && now - *at > IDLE) {
        let text = "nothing was stored since, although a process has the store open: the source or the \
                    platform does not answer, or the process does nothing";
        tell(AlertKind::Idle, Some(changed_at), text.to_owned());
    }
    if let (Some(until), Some(seconds)) = (run.not_before, run.delay_seconds) {
        let over = if until <= now { "; that is over, and no event has come since" } else { "" };
        let text = format!("the source asked for no requests for {}{over}", in_words(seconds));
        tell(AlertKind::Delay, Some(until), text);
    }
}

fn error_text(message: &MessageReport) -> String {
    let reason = message.error.as_deref().unwrap_or("its text is not kept");
    format!("message {}, {}: {reason}", message.message, message.event_type)
}
