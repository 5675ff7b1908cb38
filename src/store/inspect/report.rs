//! Everything that a store knows about one sync unit, as figures: all stored rows that a person or a script may ask
//! about.
//!
//! A [`Report`] is read in one view, so its figures agree with each other. It covers one run (a store keeps the rows
//! of one), and only the newest of what grows with history. Bodies of messages and lines of batches are read on
//! request.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::Result;
use crate::model::{Micros, Phase, RESERVED_UNIT_PREFIX};
use crate::store::edge;
use crate::store::most_read::far_more_than;
use crate::store::once;
use crate::store::rejected;
use crate::store::rows::{
    BOOKMARKS, CHILD_STREAMS, Json, Key, LEDGER, MINUTE_MICROS, MinuteRow, MostReadRow, NEXT_CURSORS, QUEUES,
    RUNS, RunRow, STREAMS, UnitRow, VALUES, number_of, run_key,
};
use crate::store::tables::{Rows, View};

use super::attachments::{AttachmentReport, AttachmentsReport, failed_attachments};
use super::messages::{self, DeathReport, MessageReport, deaths, event_name};
use super::past_runs::{LedgerReport, ledger_report};
use super::reasons::Reasons;
use super::records::{FindingsReport, TypeReport, findings, item_types};
use super::rejected as rejected_reports;
use super::scan::{each, name, push_last};
use super::words::{RunStatus, is_zero, optional_raw, optional_time, raw, time};

/// Whether a sync unit is internal: under such a name the store keeps how the list of external sync units of an
/// external system was delivered.
pub fn is_internal(sync_unit: &str) -> bool {
    sync_unit.starts_with(RESERVED_UNIT_PREFIX)
}

/// Everything that a store knows about one sync unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The unit itself.
    pub unit: UnitReport,
    /// Its newest run, over or not.
    pub run: Option<RunReport>,
    /// The streams of that run; empty once it is over.
    pub streams: Vec<StreamReport>,
    /// The child listings of that run, by stream; empty once it is over.
    pub child_streams: Vec<ChildStreamReport>,
    /// The counts of that run, by item type; empty once it is over: then the ledger has them.
    pub item_types: Vec<TypeReport>,
    /// The findings in the records of that run, by kind; empty once it is over: then the ledger has the sums.
    pub findings: Vec<FindingsReport>,
    /// The bookmarks that finished runs left.
    pub bookmarks: Vec<BookmarkReport>,
    /// The extractor's own values.
    pub values: Vec<ValueReport>,
    /// The newest sealed messages, oldest first, and any older one that is not delivered.
    pub messages: Vec<MessageReport>,
    /// The newest runs that are over, oldest first.
    pub ledger: Vec<LedgerReport>,
    /// The newest attachments that were given up, in the order of their runs, and then the newest of those that will
    /// be tried again.
    pub failed_attachments: Vec<AttachmentReport>,
    /// Why attachments were given up, without those that are queued again.
    #[serde(skip)]
    pub failed_reasons: Reasons,
    /// Why records were rejected that the open run, or the next one, requests: `item type: what is wrong`.
    #[serde(skip)]
    pub rejected_reasons: Reasons,
    /// The cursors that an operator has set, and no run has used to its end: by stream, as JSON text, and when.
    #[serde(skip)]
    pub set_cursors: Vec<(String, String, DateTime<Utc>)>,
    /// The lives of the newest runs that ended without an answer, in the order of their runs.
    pub deaths: Vec<DeathReport>,
}

/// A sync unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct UnitReport {
    /// Its id.
    pub sync_unit: String,
    /// Whether it is internal: see [`is_internal`].
    pub internal: bool,
    /// When it was first seen.
    #[serde(serialize_with = "time")]
    pub created_at: DateTime<Utc>,
    /// The time up to which a finished run vouches.
    #[serde(serialize_with = "optional_time")]
    pub watermark: Option<DateTime<Utc>>,
    /// Runs begun.
    pub runs: u64,
    /// Messages sealed, including those that were refused or are not kept any more.
    pub messages: u64,
    /// Messages that are kept.
    pub messages_kept: u64,
    /// Those of them that are not known to be delivered.
    pub messages_undelivered: u64,
    /// Runs that are over and in the ledger.
    pub ledger_runs: u64,
    /// Attachments that were given up.
    pub attachments_failed: u64,
    /// Attachments that were given up, and will be tried again by the next run that reaches its attachments phase.
    pub attachments_requeued: u64,
    /// Records that are rejected, and that the next run asks for again.
    #[serde(skip_serializing_if = "is_zero")]
    pub records_rejected: u64,
}

/// The newest run of a unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RunReport {
    /// The unit.
    pub sync_unit: String,
    /// Its id.
    pub run: String,
    /// Its status.
    pub status: RunStatus,
    /// The phase that it entered last.
    pub phase: Option<Phase>,
    /// The phases whose DONE is sealed.
    pub phases_done: Vec<Phase>,
    /// When it started, which will be its watermark.
    #[serde(serialize_with = "time")]
    pub started_at: DateTime<Utc>,
    /// When it was over.
    #[serde(serialize_with = "optional_time")]
    pub ended_at: Option<DateTime<Utc>>,
    /// The run extracts what was modified at or after this; `None`: everything.
    #[serde(serialize_with = "optional_time")]
    pub since: Option<DateTime<Utc>>,
    /// A watermark that was not used, because it lay in the future when the run began.
    #[serde(serialize_with = "optional_time")]
    pub ignored_watermark: Option<DateTime<Utc>>,
    /// Number of its lives.
    pub epoch: u64,
    /// When anything of it was last stored; unknown if a checkpoint brought it here.
    #[serde(serialize_with = "optional_time")]
    pub changed_at: Option<DateTime<Utc>>,
    /// Lives that ended without an answer, as far as this store knows.
    pub deaths: u64,
    /// Its earlier records are not known to this store, so it cannot go on.
    pub lost: bool,
    /// Pages staged.
    pub pages: u64,
    /// Batches closed.
    pub batches: u64,
    /// Those of them that are neither acknowledged nor announced.
    pub open_batches: u64,
    /// When the source may be called again.
    #[serde(serialize_with = "optional_time")]
    pub not_before: Option<DateTime<Utc>>,
    /// Seconds for which it asked for no requests.
    pub delay_seconds: Option<u64>,
    /// Percent of the phase that is done, as the extractor estimates it.
    pub progress_percent: Option<u8>,
    /// Its attachments by status; once it is over, the ledger has them.
    pub attachments: AttachmentsReport,
    /// Events accepted.
    pub events: u64,
    /// Events whose ids the platform had used before.
    pub events_reused: u64,
    /// The identity of the newest event, or, if a checkpoint brought it back, its hash.
    pub event: Option<String>,
    /// When that was accepted.
    #[serde(serialize_with = "optional_time")]
    pub event_accepted_at: Option<DateTime<Utc>>,
    /// The number of the message that answers it, if it is sealed.
    pub message: Option<u64>,
    /// After a message that was too large: artifacts that the next one may carry.
    pub artifacts_max: Option<u64>,
}

/// A stream of the newest run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StreamReport {
    /// The unit.
    pub sync_unit: String,
    /// The run.
    pub run: String,
    /// Its name.
    pub stream: String,
    /// The phase that it belongs to.
    pub phase: Phase,
    /// Pages staged.
    pub pages: u64,
    /// Records in them.
    pub items: u64,
    /// Whether it has returned its last page.
    pub exhausted: bool,
    /// The cursor of its next page, as JSON text.
    #[serde(serialize_with = "optional_raw")]
    pub cursor: Option<String>,
    /// Its bookmark for the next run, as JSON text.
    #[serde(serialize_with = "optional_raw")]
    pub bookmark: Option<String>,
    /// When its last page was stored; unknown if a checkpoint brought it here.
    #[serde(serialize_with = "optional_time")]
    pub last_page_at: Option<DateTime<Utc>>,
    /// The newest minutes in which a page came, at most 6, oldest first.
    pub minutes: Vec<MinuteReport>,
    /// The most that it has read in a finished run before, if it has now read far more: ten times as many records,
    /// and at least 10,000, or ten times as many pages, and at least 1,000. Otherwise missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub far_more_than: Option<MostReadReport>,
}

/// The child listings of a stream of the newest run, in counts.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ChildStreamReport {
    /// The unit.
    pub sync_unit: String,
    /// The run.
    pub run: String,
    /// The stream.
    pub stream: String,
    /// Child listings that pages named.
    pub named: u64,
    /// Those that have returned their last page.
    pub exhausted: u64,
    /// Those that have not.
    pub pending: u64,
    /// Bytes of the pending ones.
    pub pending_bytes: u64,
    /// Pages staged.
    pub pages: u64,
    /// Records in them.
    pub items: u64,
}

/// The most that a stream has read in a finished run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MostReadReport {
    /// Pages of one run.
    pub pages: u64,
    /// Records of one run.
    pub items: u64,
}

/// What a stream returned in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MinuteReport {
    /// The beginning of the minute.
    #[serde(serialize_with = "time")]
    pub at: DateTime<Utc>,
    /// Pages staged in it.
    pub pages: u64,
    /// Records in them.
    pub items: u64,
}

/// The bookmark of a stream from a finished run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BookmarkReport {
    /// The unit.
    pub sync_unit: String,
    /// The stream.
    pub stream: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its JSON text.
    #[serde(serialize_with = "raw")]
    pub bookmark: String,
}

/// A value of the extractor's own.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ValueReport {
    /// The unit.
    pub sync_unit: String,
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its JSON text.
    #[serde(serialize_with = "raw")]
    pub value: String,
}

impl Report {
    /// The newest run, if it is open.
    pub fn open_run(&self) -> Option<&RunReport> {
        self.run.as_ref().filter(|run| run.status == RunStatus::Open)
    }
}

/// Reads everything of a unit; of messages and the ledger only the newest `last`.
pub(super) fn read(view: &View<'_>, id: &str, unit: &UnitRow, last: usize) -> Result<Report> {
    let prefix = Key::unit(unit.no);
    let current = match unit.run {
        Some(no) => Some((no, view.need(&RUNS, &run_key(unit.no, no))?)),
        None => None,
    };
    let rejected_reasons = rejected_reports::reasons(view, unit)?;
    let mut report = Report {
        unit: UnitReport {
            sync_unit: id.to_owned(),
            internal: is_internal(id),
            created_at: unit.created_at.to_time(),
            watermark: unit.watermark.map(Micros::to_time),
            runs: unit.next_run.saturating_sub(1),
            messages: unit.next_message.saturating_sub(1),
            messages_kept: 0,
            messages_undelivered: 0,
            ledger_runs: 0,
            attachments_failed: 0,
            attachments_requeued: 0,
            records_rejected: rejected_reasons.total(),
        },
        run: None,
        streams: Vec::new(),
        child_streams: Vec::new(),
        item_types: Vec::new(),
        findings: Vec::new(),
        bookmarks: Vec::new(),
        values: Vec::new(),
        messages: Vec::new(),
        ledger: Vec::new(),
        failed_attachments: Vec::new(),
        failed_reasons: Reasons::default(),
        rejected_reasons,
        set_cursors: Vec::new(),
        deaths: Vec::new(),
    };
    each(view, &NEXT_CURSORS, &prefix, name, |stream, row| {
        report.set_cursors.push((stream, row.json, row.set_at.to_time()));
    })?;
    let mut run_ids = BTreeMap::new();
    let mut ledger = VecDeque::new();
    each(view, &LEDGER, &prefix, number_of, |no, row| {
        report.unit.ledger_runs += 1;
        run_ids.insert(no, row.id.clone());
        push_last(&mut ledger, last, (no, row));
    })?;
    for (no, row) in ledger {
        let run = run_key(unit.no, no);
        report.ledger.push(ledger_report(
            id,
            row,
            &rejected::counts(view, &run)?,
            &once::counts(view, &run)?,
            &edge::counts(view, &run)?,
        ));
    }
    if let Some((no, row)) = current {
        run_ids.insert(no, row.id.clone());
        let key = run_key(unit.no, no);
        report.streams = streams(view, id, unit.no, &row.id, &key)?;
        report.child_streams = child_streams(view, id, &row.id, &key)?;
        report.item_types = item_types(view, id, &row.id, &key)?;
        report.findings = findings(view, id, &row.id, &key)?;
        let event = match row.event {
            Some(hash) => Some(event_name(view, unit.no, no, hash)?),
            None => None,
        };
        let counts = view.get(&QUEUES, &key)?.unwrap_or_default().counts;
        report.run = Some(run_report(id, row, event, counts.into()));
    }
    for requeued in [false, true] {
        let (count, reasons, newest) = failed_attachments(view, id, unit, requeued, &run_ids, last)?;
        if requeued {
            report.unit.attachments_requeued = count;
        } else {
            (report.unit.attachments_failed, report.failed_reasons) = (count, reasons);
        }
        report.failed_attachments.extend(newest);
    }
    report.deaths = deaths(view, id, unit.no, &run_ids)?;
    each(view, &BOOKMARKS, &prefix, name, |stream, row| {
        report.bookmarks.push(BookmarkReport {
            sync_unit: id.to_owned(),
            stream,
            bytes: row.json.len() as u64,
            bookmark: row.json,
        });
    })?;
    each(view, &VALUES, &prefix, name, |key, Json(value)| {
        report.values.push(ValueReport { sync_unit: id.to_owned(), key, bytes: value.len() as u64, value });
    })?;
    let messages::Newest { kept, undelivered, messages } =
        messages::newest(view, id, unit.no, &run_ids, last)?;
    (report.unit.messages_kept, report.unit.messages_undelivered) = (kept, undelivered);
    report.messages = messages;
    Ok(report)
}

fn child_streams(view: &View<'_>, id: &str, run: &str, key: &Key) -> Result<Vec<ChildStreamReport>> {
    let mut reports = Vec::new();
    each(view, &CHILD_STREAMS, key, name, |stream, counts| {
        reports.push(ChildStreamReport {
            sync_unit: id.to_owned(),
            run: run.to_owned(),
            stream,
            pending: counts.named.saturating_sub(counts.exhausted),
            named: counts.named,
            exhausted: counts.exhausted,
            pending_bytes: counts.pending_bytes,
            pages: counts.pages,
            items: counts.items,
        });
    })?;
    Ok(reports)
}

fn streams(view: &View<'_>, id: &str, unit: u64, run: &str, key: &Key) -> Result<Vec<StreamReport>> {
    let mut rows = Vec::new();
    each(view, &STREAMS, key, name, |stream, row| rows.push((stream, row)))?;
    rows.into_iter()
        .map(|(stream, row)| {
            let most = far_more_than(view, unit, &stream, &row)?;
            Ok(StreamReport {
                sync_unit: id.to_owned(),
                run: run.to_owned(),
                stream,
                phase: row.phase,
                pages: row.pages,
                items: row.items,
                exhausted: row.exhausted,
                last_page_at: row.pace.last_page_at.map(Micros::to_time),
                minutes: row.pace.minutes.iter().map(minute).collect(),
                cursor: row.cursor,
                bookmark: row.bookmark,
                far_more_than: most.map(|MostReadRow { pages, items }| MostReadReport { pages, items }),
            })
        })
        .collect()
}

fn minute(row: &MinuteRow) -> MinuteReport {
    let at = Micros(row.minute.saturating_mul(MINUTE_MICROS)).to_time();
    MinuteReport { at, pages: row.pages, items: row.items }
}

fn run_report(
    id: &str,
    row: RunRow,
    event: Option<(String, Option<Micros>)>,
    attachments: AttachmentsReport,
) -> RunReport {
    RunReport {
        sync_unit: id.to_owned(),
        run: row.id,
        status: row.status.into(),
        phase: row.phase,
        phases_done: Phase::ALL.into_iter().filter(|&phase| row.done.contains(phase)).collect(),
        started_at: row.started_at.to_time(),
        ended_at: row.ended_at.map(Micros::to_time),
        since: row.since.map(Micros::to_time),
        ignored_watermark: row.since_ignored.map(Micros::to_time),
        epoch: row.epoch,
        changed_at: row.activity.changed_at.map(Micros::to_time),
        deaths: row.activity.deaths,
        lost: row.lost,
        pages: row.pages,
        batches: row.next_seq.saturating_sub(1),
        open_batches: row.open_batches,
        not_before: row.not_before.map(|until| until.at.to_time()),
        delay_seconds: row.not_before.map(|until| until.asked_seconds),
        progress_percent: row.progress,
        attachments,
        events: row.events,
        events_reused: row.events_reused,
        event_accepted_at: event.as_ref().and_then(|(_, at)| at.map(Micros::to_time)),
        event: event.map(|(name, _)| name),
        message: row.message,
        artifacts_max: row.artifacts_max,
    }
}
