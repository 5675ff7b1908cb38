//! What a store knows of one sync unit, as figures: every stored row that a person or a script may ask about.
//!
//! A [`Report`] is read in one look, so its figures agree with one another. It holds one run (a store keeps the rows
//! of one), and of what grows with history only the newest: bodies of messages and lines of batches are read when
//! they are asked for.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::Result;
use crate::model::{Micros, Phase};
use crate::record::{Attachment, FindingCounts};
use crate::store::findings::FindingKind;
use crate::store::most_read::far_more_than;
use crate::store::rejected;
use crate::store::rows::{
    self, BATCHES, BOOKMARKS, BatchRow, EVENTS, FAILED, FINDINGS, FailedRow, Json, KEPT_FROM, Key, LEDGER,
    LedgerRow, MESSAGES, MessageRow, MostReadRow, QUEUES, REQUEUED, RUNS, Row, RunRow, STREAMS, TYPES, Table,
    UnitRow, VALUES, name_of, number_of, run_and_number, run_key,
};
use crate::store::tables::{Rows, View};

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$word_doc])* $word,)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$word => $text,)*
                })
            }
        }
    )*};
}

words! {
    /// Whether a run goes on.
    RunStatus {
        /// It was begun and is not over.
        Open = "open",
        /// Everything that it read is announced, and the watermark has moved.
        Finished = "finished",
        /// Another run took its place; the watermark did not move.
        Abandoned = "abandoned",
    }
    /// What a message says of the event that it answers.
    MessageKind {
        /// The phase is over.
        Done = "DONE",
        /// There is more; go on at once.
        Progress = "PROGRESS",
        /// There is more; go on after a while.
        Delay = "DELAY",
        /// It cannot be done.
        Error = "ERROR",
    }
    /// What became of a sealed message.
    MessageFate {
        /// It is not known to have been accepted: it will be sent again, byte for byte, until it is.
        Sealed = "not delivered",
        /// Its acceptance was recorded.
        Delivered = "delivered",
        /// A later event proved that it had been accepted.
        Proven = "proven",
    }
    /// Where a batch is in its life. One that was acknowledged, or whose message was accepted, is not stored any more.
    BatchStage {
        /// Its bytes are in the store only.
        Staged = "staged",
        /// The platform has its bytes; whether it knows them to be ours is not known.
        Uploaded = "uploaded",
        /// The platform knows it to be ours; no message names it yet.
        Confirmed = "confirmed",
        /// A sealed message names it.
        Announced = "announced",
    }
}

/// Everything that a store knows of one sync unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The unit itself.
    pub unit: UnitReport,
    /// Its newest run, over or not.
    pub run: Option<RunReport>,
    /// The streams of that run; none once it is over.
    pub streams: Vec<StreamReport>,
    /// The counts of that run, by item type; none once it is over: the ledger has them then.
    pub item_types: Vec<TypeReport>,
    /// What checks found in the records of that run, by kind; none once it is over: the ledger has the sums then.
    pub findings: Vec<FindingsReport>,
    /// The bookmarks that finished runs left.
    pub bookmarks: Vec<BookmarkReport>,
    /// The extractor's own values.
    pub values: Vec<ValueReport>,
    /// The newest sealed messages, oldest first, and any older one that is not delivered.
    pub messages: Vec<MessageReport>,
    /// The newest runs that are over, oldest first.
    pub ledger: Vec<LedgerReport>,
    /// The attachments that were given up, in the order of their runs, and those of them that are to be tried again.
    pub failed_attachments: Vec<FailedAttachmentReport>,
}

/// What a sync unit is known by.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct UnitReport {
    /// Its id.
    pub sync_unit: String,
    /// When it was first heard of.
    #[serde(serialize_with = "time")]
    pub created_at: DateTime<Utc>,
    /// Time up to which a finished run vouches.
    #[serde(serialize_with = "optional_time")]
    pub watermark: Option<DateTime<Utc>>,
    /// Runs begun.
    pub runs: u64,
    /// Messages sealed, those included that were refused or are not kept any more.
    pub messages: u64,
    /// Messages that are kept.
    pub messages_kept: u64,
    /// Those of them that are not known to be delivered.
    pub messages_undelivered: u64,
    /// Runs that are over and whose figures are kept.
    pub ledger_runs: u64,
    /// Attachments that were given up.
    pub attachments_failed: u64,
    /// Attachments that were given up, and are to be tried again by the next run that comes to its attachments.
    pub attachments_requeued: u64,
}

/// How far the attachments of a run are: each that was queued is settled, failed or left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AttachmentsReport {
    /// Named by the source, each once.
    pub queued: u64,
    /// The platform has them.
    pub settled: u64,
    /// Given up.
    pub failed: u64,
    /// In the queue.
    pub left: u64,
}

impl From<rows::LedgerAttachments> for AttachmentsReport {
    fn from(counts: rows::LedgerAttachments) -> Self {
        let rows::LedgerAttachments { queued, settled, failed } = counts;
        Self { queued, settled, failed, left: queued.saturating_sub(settled).saturating_sub(failed) }
    }
}

/// The newest run of a unit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RunReport {
    /// The unit.
    pub sync_unit: String,
    /// Its id.
    pub run: String,
    /// Whether it goes on.
    pub status: RunStatus,
    /// The phase that it entered last.
    pub phase: Option<Phase>,
    /// The phases whose DONE is sealed.
    pub phases_done: Vec<Phase>,
    /// When it started: it will vouch for what was there until then.
    #[serde(serialize_with = "time")]
    pub started_at: DateTime<Utc>,
    /// When it was over.
    #[serde(serialize_with = "optional_time")]
    pub ended_at: Option<DateTime<Utc>>,
    /// What was modified at or after this is wanted; `None` is everything.
    #[serde(serialize_with = "optional_time")]
    pub since: Option<DateTime<Utc>>,
    /// A watermark that was not used, for lying in the future when the run began.
    #[serde(serialize_with = "optional_time")]
    pub ignored_watermark: Option<DateTime<Utc>>,
    /// Lives that have taken it up.
    pub epoch: u64,
    /// What it extracted before is not known to this store, so it cannot go on.
    pub lost: bool,
    /// Pages staged.
    pub pages: u64,
    /// Batches closed.
    pub batches: u64,
    /// Those of them that are neither acknowledged nor announced.
    pub open_batches: u64,
    /// When the source may be asked again.
    #[serde(serialize_with = "optional_time")]
    pub not_before: Option<DateTime<Utc>>,
    /// Seconds that it asked to be left alone.
    pub delay_seconds: Option<u64>,
    /// Percent of the phase that is done, as the extractor estimates it.
    pub progress_percent: Option<u8>,
    /// How far its attachments are; once it is over, the ledger has that.
    pub attachments: AttachmentsReport,
    /// Events accepted.
    pub events: u64,
    /// Events whose ids the platform had used before.
    pub events_reused: u64,
    /// The identity of the newest event, or, where a checkpoint brought it back, its hash.
    pub event: Option<String>,
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
    /// It gave its last page.
    pub exhausted: bool,
    /// Where its next page starts, as JSON text.
    #[serde(serialize_with = "optional_raw")]
    pub cursor: Option<String>,
    /// What it leaves to the next run, as JSON text.
    #[serde(serialize_with = "optional_raw")]
    pub bookmark: Option<String>,
    /// The most that it has read in a finished run before, if it has read far more than that by now: ten times as many
    /// records, and 10,000, or as many pages, and 1,000. Not there otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub far_more_than: Option<MostReadReport>,
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

/// Batches in one state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BatchCounts {
    /// How many.
    pub batches: u64,
    /// Records in them.
    pub items: u64,
    /// Bytes of their gzip members.
    pub gzip_bytes: u64,
}

/// The counts of an item type in the newest run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TypeReport {
    /// The unit.
    pub sync_unit: String,
    /// The run.
    pub run: String,
    /// The item type.
    pub item_type: String,
    /// Records that the source gave.
    pub read: u64,
    /// Those that the platform does not want: they were staged nowhere.
    pub skipped: u64,
    /// Those that were rejected, which were staged nowhere either. Records that were asked for again in vain are not read.
    pub rejected: u64,
    /// Those in closed batches.
    pub batched: u64,
    /// Those in the batch that is still open.
    pub open_items: u64,
    /// Bytes of those, as lines.
    pub open_bytes: u64,
    /// Those that the platform knows to be ours.
    pub confirmed: u64,
    /// Those in a sealed message, or acknowledged.
    pub announced: u64,
    /// Batches closed.
    pub batches: u64,
    /// Those in a sealed message, or acknowledged.
    pub artifacts_announced: u64,
    /// The artifact that was acknowledged last.
    pub last_artifact: Option<String>,
    /// Batches that are staged.
    pub batches_staged: BatchCounts,
    /// Batches that are uploaded and not known to be confirmed.
    pub batches_uploaded: BatchCounts,
    /// Batches that are confirmed and in no message.
    pub batches_confirmed: BatchCounts,
    /// Batches in the sealed message that is not known to be delivered.
    pub batches_announced: BatchCounts,
}

/// Findings of one kind in the records, or the metadata, of the newest run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FindingsReport {
    /// The unit.
    pub sync_unit: String,
    /// The run.
    pub run: String,
    /// The item type; none for what is counted by rule alone, because there are too many kinds.
    pub item_type: Option<String>,
    /// `error` or `warning`.
    pub severity: String,
    /// The rule that was broken, as [`Rule::as_str`](crate::record::Rule::as_str) has it.
    pub rule: String,
    /// The place in the record, `[]` for each position in an array. Empty for the record as a whole, or where there are
    /// too many kinds.
    pub path: String,
    /// How many.
    pub count: u64,
    /// The first of them, as text.
    pub kept: Vec<String>,
}

/// What a stream of a finished run left to the next.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BookmarkReport {
    /// The unit.
    pub sync_unit: String,
    /// The stream.
    pub stream: String,
    /// Bytes of it.
    pub bytes: u64,
    /// Itself, as JSON text.
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
    /// Bytes of it.
    pub bytes: u64,
    /// Itself, as JSON text.
    #[serde(serialize_with = "raw")]
    pub value: String,
}

/// A sealed message, without its body.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MessageReport {
    /// The unit.
    pub sync_unit: String,
    /// Its number in the unit, from 1.
    pub message: u64,
    /// The id of the run that it belongs to, if that is known still.
    pub run: Option<String>,
    /// The phase that it belongs to.
    pub phase: Phase,
    /// Its event type, as it is spelled in its body.
    pub event_type: String,
    /// What that says.
    pub answer: MessageKind,
    /// What became of it.
    pub fate: MessageFate,
    /// How often its acceptance was recorded.
    pub delivered_times: u32,
    /// When it was sealed.
    #[serde(serialize_with = "time")]
    pub sealed_at: DateTime<Utc>,
    /// Artifacts that it announces.
    pub artifacts: u64,
    /// Its acceptance ends the run.
    pub ends_run: bool,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// Its idempotency key.
    pub key: String,
    /// The identity of the event that it answers, or, where a checkpoint brought it back, its hash.
    pub event: String,
}

/// What remains of a run that is over.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct LedgerReport {
    /// The unit.
    pub sync_unit: String,
    /// The run's id.
    pub run: String,
    /// Finished or abandoned.
    pub status: RunStatus,
    /// When it started.
    #[serde(serialize_with = "time")]
    pub started_at: DateTime<Utc>,
    /// When it was over.
    #[serde(serialize_with = "time")]
    pub ended_at: DateTime<Utc>,
    /// What was modified at or after this was wanted; `None` is everything.
    #[serde(serialize_with = "optional_time")]
    pub since: Option<DateTime<Utc>>,
    /// The watermark that it set; none for an abandoned run.
    #[serde(serialize_with = "optional_time")]
    pub watermark: Option<DateTime<Utc>>,
    /// Lives that had taken it up.
    pub epoch: u64,
    /// Pages staged.
    pub pages: u64,
    /// Events accepted.
    pub events: u64,
    /// Events whose ids the platform had used before.
    pub events_reused: u64,
    /// What was found in its records, and in its metadata.
    pub findings: FindingCounts,
    /// Its counts, by item type.
    pub item_types: Vec<LedgerTypeReport>,
    /// What became of its attachments.
    pub attachments: AttachmentsReport,
}

/// An attachment that was given up. Its url is not shown: it may be a credential.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FailedAttachmentReport {
    /// The unit.
    pub sync_unit: String,
    /// The id of the run that gave it up, if that is known still.
    pub run: Option<String>,
    /// Its id.
    pub id: String,
    /// The id of what it belongs to.
    pub parent_id: String,
    /// What people call the file.
    pub file_name: String,
    /// Why it was given up.
    pub reason: String,
    /// Attempts made.
    pub tries: u32,
    /// When it was given up.
    #[serde(serialize_with = "time")]
    pub failed_at: DateTime<Utc>,
    /// It is to be tried again by the next run that comes to its attachments.
    pub requeued: bool,
}

/// The counts of an item type in a run that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LedgerTypeReport {
    /// The item type.
    pub item_type: String,
    /// Records that the source gave.
    pub read: u64,
    /// Those that the platform did not want.
    pub skipped: u64,
    /// Those that were rejected.
    pub rejected: u64,
    /// Those that were announced, or acknowledged.
    pub announced: u64,
    /// Artifacts that they were in.
    pub artifacts: u64,
}

/// A batch of the newest run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BatchReport {
    /// The unit.
    pub sync_unit: String,
    /// The run.
    pub run: String,
    /// The life of the run that staged it.
    pub epoch: u64,
    /// The kind of its records.
    pub item_type: String,
    /// Its number in the run, from 1.
    pub seq: u64,
    /// Where it is in its life.
    pub state: BatchStage,
    /// The number of the sealed message that names it.
    pub message: Option<u64>,
    /// What the platform calls it.
    pub artifact_id: Option<String>,
    /// How often a confirm was refused for good, so that its id was given up.
    pub given_up: u32,
    /// Records in it.
    pub items: u64,
    /// Bytes of them as lines.
    pub line_bytes: u64,
    /// Bytes of its gzip member.
    pub gzip_bytes: u64,
    /// The stream whose page filled it; none if it was closed before it was full.
    pub stream: Option<String>,
    /// The cursor after the page that filled it, as JSON text.
    #[serde(serialize_with = "optional_raw")]
    pub cursor_after: Option<String>,
}

/// One object of a listing: `kind` says which.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Line<'a> {
    /// A sync unit; what follows until the next is its.
    Unit(&'a UnitReport),
    /// Its newest run.
    Run(&'a RunReport),
    /// A stream of that run.
    Stream(&'a StreamReport),
    /// An item type of that run.
    ItemType(&'a TypeReport),
    /// What was found in the records of that run, of one kind.
    Findings(&'a FindingsReport),
    /// A bookmark.
    Bookmark(&'a BookmarkReport),
    /// A value of the extractor's own.
    Value(&'a ValueReport),
    /// A sealed message.
    Message(&'a MessageReport),
    /// A run that is over.
    Ledger(&'a LedgerReport),
    /// A batch.
    Batch(&'a BatchReport),
    /// An attachment that was given up.
    FailedAttachment(&'a FailedAttachmentReport),
}

impl Report {
    /// The report as a listing: one object for each thing, the unit first.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("state.redb");
    /// use highwater::{Store, inspect::Snapshot};
    /// drop(Store::open(&path)?.sync_unit("acme/tickets")?.begin()?);
    ///
    /// let mut snapshot = Snapshot::open(&path)?;
    /// let report = snapshot.unit("acme/tickets", 5)?.expect("it was begun");
    /// let kinds = report.lines().map(|line| serde_json::to_value(line).unwrap()["kind"].clone());
    /// assert_eq!(kinds.collect::<Vec<_>>(), ["unit", "run"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        std::iter::once(Line::Unit(&self.unit))
            .chain(self.run.iter().map(Line::Run))
            .chain(self.streams.iter().map(Line::Stream))
            .chain(self.item_types.iter().map(Line::ItemType))
            .chain(self.findings.iter().map(Line::Findings))
            .chain(self.bookmarks.iter().map(Line::Bookmark))
            .chain(self.values.iter().map(Line::Value))
            .chain(self.messages.iter().map(Line::Message))
            .chain(self.ledger.iter().map(Line::Ledger))
            .chain(self.failed_attachments.iter().map(Line::FailedAttachment))
    }
}

/// Reads everything of a unit, and of messages and the ledger the newest `last`.
pub(super) fn read(view: &View<'_>, id: &str, unit: &UnitRow, last: usize) -> Result<Report> {
    let prefix = Key::unit(unit.no);
    let current = match unit.run {
        Some(no) => Some((no, view.need(&RUNS, &run_key(unit.no, no))?)),
        None => None,
    };
    let mut report = Report {
        unit: UnitReport {
            sync_unit: id.to_owned(),
            created_at: unit.created_at.to_time(),
            watermark: unit.watermark.map(Micros::to_time),
            runs: unit.next_run.saturating_sub(1),
            messages: unit.next_message.saturating_sub(1),
            messages_kept: 0,
            messages_undelivered: 0,
            ledger_runs: 0,
            attachments_failed: 0,
            attachments_requeued: 0,
        },
        run: None,
        streams: Vec::new(),
        item_types: Vec::new(),
        findings: Vec::new(),
        bookmarks: Vec::new(),
        values: Vec::new(),
        messages: Vec::new(),
        ledger: Vec::new(),
        failed_attachments: Vec::new(),
    };
    let mut run_ids = BTreeMap::new();
    let mut ledger = VecDeque::new();
    each(view, &LEDGER, &prefix, number_of, |no, row| {
        report.unit.ledger_runs += 1;
        run_ids.insert(no, row.id.clone());
        push_last(&mut ledger, last, (no, row));
    })?;
    for (no, row) in ledger {
        report.ledger.push(ledger_report(id, row, &rejected::counts(view, &run_key(unit.no, no))?));
    }
    if let Some((no, row)) = current {
        run_ids.insert(no, row.id.clone());
        let key = run_key(unit.no, no);
        report.streams = streams(view, id, unit.no, &row.id, &key)?;
        report.item_types = item_types(view, id, &row.id, &key)?;
        report.findings = findings(view, id, &row.id, &key)?;
        let event = row.event.map(|hash| event_name(view, unit.no, no, hash)).transpose()?;
        let counts = view.get(&QUEUES, &key)?.unwrap_or_default().counts;
        report.run = Some(run_report(id, row, event, counts.into()));
    }
    for (table, requeued) in [(&FAILED, false), (&REQUEUED, true)] {
        let failed = failed_attachments(view, id, unit, table, &run_ids)?;
        let count = if requeued {
            &mut report.unit.attachments_requeued
        } else {
            &mut report.unit.attachments_failed
        };
        *count = failed.len() as u64;
        let failed = failed.into_iter().map(|failed| FailedAttachmentReport { requeued, ..failed });
        report.failed_attachments.extend(failed);
    }
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
    add_messages(view, &mut report, unit.no, &run_ids, last)?;
    Ok(report)
}

/// Adds the newest `last` messages, and any older one that is not delivered; counts all.
fn add_messages(
    view: &View<'_>,
    report: &mut Report,
    unit: u64,
    run_ids: &BTreeMap<u64, String>,
    last: usize,
) -> Result<()> {
    let prefix = Key::unit(unit);
    let mut newest = VecDeque::new();
    view.scan(&MESSAGES, &prefix, &prefix, |tail, row| {
        let no = number_of(tail)
            .map_err(|error| view.tables().damaged(MESSAGES.name, &prefix, error.to_string()))?;
        let message = message_report(view, &report.unit.sync_unit, unit, no, &row, run_ids.get(&row.run))?;
        report.unit.messages_kept += 1;
        report.unit.messages_undelivered += u64::from(message.fate == MessageFate::Sealed);
        if let Some(older) = push_last(&mut newest, last, message)
            && older.fate == MessageFate::Sealed
        {
            report.messages.push(older);
        }
        Ok(true)
    })?;
    report.messages.extend(newest);
    Ok(())
}

/// Calls `each` with every row under `prefix`, and what its key ends in.
pub(super) fn each<R: Row, T>(
    view: &View<'_>,
    table: &Table<R>,
    prefix: &Key,
    tail_of: impl Fn(&[u8]) -> Result<T, crate::store::codec::DecodeError>,
    mut each: impl FnMut(T, R),
) -> Result<()> {
    view.scan(table, prefix, prefix, |tail, row| {
        let tail =
            tail_of(tail).map_err(|error| view.tables().damaged(table.name, prefix, error.to_string()))?;
        each(tail, row);
        Ok(true)
    })
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
                cursor: row.cursor,
                bookmark: row.bookmark,
                far_more_than: most.map(|MostReadRow { pages, items }| MostReadReport { pages, items }),
            })
        })
        .collect()
}

fn findings(view: &View<'_>, id: &str, run: &str, key: &Key) -> Result<Vec<FindingsReport>> {
    let mut findings = Vec::new();
    each(view, &FINDINGS, key, FindingKind::of_key, |kind, row| {
        let FindingKind { item_type, severity, rule, path } = kind;
        findings.push(FindingsReport {
            sync_unit: id.to_owned(),
            run: run.to_owned(),
            item_type: Some(item_type).filter(|item_type| !item_type.is_empty()),
            severity,
            rule,
            path,
            count: row.count,
            kept: row.kept,
        });
    })?;
    Ok(findings)
}

fn name(tail: &[u8]) -> Result<String, crate::store::codec::DecodeError> {
    name_of(tail).map(str::to_owned)
}

/// Keeps the newest `last`; returns what has to go for the new one.
fn push_last<T>(newest: &mut VecDeque<T>, last: usize, item: T) -> Option<T> {
    newest.push_back(item);
    if newest.len() > last { newest.pop_front() } else { None }
}

fn item_types(view: &View<'_>, id: &str, run: &str, key: &Key) -> Result<Vec<TypeReport>> {
    let mut types = BTreeMap::new();
    let rejected = rejected::counts(view, key)?;
    each(view, &TYPES, key, name, |item_type, row| {
        let none = BatchCounts::default();
        let rejected = rejected.get(&item_type).copied().unwrap_or(0);
        types.insert(
            item_type.clone(),
            TypeReport {
                sync_unit: id.to_owned(),
                run: run.to_owned(),
                item_type,
                read: row.read,
                skipped: row.left_out.saturating_sub(rejected),
                rejected,
                batched: row.batched,
                open_items: row.open_items.into(),
                open_bytes: row.open_bytes,
                confirmed: row.confirmed,
                announced: row.announced,
                batches: row.batches,
                artifacts_announced: row.artifacts_announced,
                last_artifact: row.last_artifact,
                batches_staged: none,
                batches_uploaded: none,
                batches_confirmed: none,
                batches_announced: none,
            },
        );
    })?;
    let mut strays = Vec::new();
    each(view, &BATCHES, key, number_of, |seq, row| {
        let Some(counts) = types.get_mut(&row.item_type) else {
            strays.push((seq, row.item_type));
            return;
        };
        let counts = match stage_of(&row) {
            BatchStage::Staged => &mut counts.batches_staged,
            BatchStage::Uploaded => &mut counts.batches_uploaded,
            BatchStage::Confirmed => &mut counts.batches_confirmed,
            BatchStage::Announced => &mut counts.batches_announced,
        };
        counts.batches += 1;
        counts.items += u64::from(row.items);
        counts.gzip_bytes += row.gzip_bytes;
    })?;
    match strays.first() {
        Some((seq, item_type)) => {
            let key = key.clone().and_number(*seq);
            Err(view.tables().damaged(
                BATCHES.name,
                &key,
                format!("no counts are stored for its {item_type}"),
            ))
        }
        None => Ok(types.into_values().collect()),
    }
}

/// What one of the two tables of attachments that were given up holds.
fn failed_attachments(
    view: &View<'_>,
    id: &str,
    unit: &UnitRow,
    table: &Table<FailedRow>,
    run_ids: &BTreeMap<u64, String>,
) -> Result<Vec<FailedAttachmentReport>> {
    let prefix = Key::unit(unit.no);
    let mut failed = Vec::new();
    let mut damaged = None;
    each(view, table, &prefix, run_and_number, |(run, number), row| {
        // That is in the queue of the run again.
        if unit.run == Some(run) && number >= KEPT_FROM {
            return;
        }
        match Attachment::from_line(&row.json) {
            Ok(attachment) => failed.push(FailedAttachmentReport {
                sync_unit: id.to_owned(),
                run: run_ids.get(&run).cloned(),
                id: attachment.id,
                parent_id: attachment.parent_id,
                file_name: attachment.file_name,
                reason: row.reason,
                tries: row.tries,
                failed_at: row.failed_at.to_time(),
                requeued: false,
            }),
            Err(error) => {
                let key = run_key(unit.no, run).and_number(number);
                damaged.get_or_insert_with(|| view.tables().damaged(table.name, &key, error.to_string()));
            }
        }
    })?;
    damaged.map_or(Ok(failed), Err)
}

fn run_report(id: &str, row: RunRow, event: Option<String>, attachments: AttachmentsReport) -> RunReport {
    RunReport {
        sync_unit: id.to_owned(),
        run: row.id,
        status: status_of(row.status),
        phase: row.phase,
        phases_done: Phase::ALL.into_iter().filter(|&phase| row.done.contains(phase)).collect(),
        started_at: row.started_at.to_time(),
        ended_at: row.ended_at.map(Micros::to_time),
        since: row.since.map(Micros::to_time),
        ignored_watermark: row.since_ignored.map(Micros::to_time),
        epoch: row.epoch,
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
        event,
        message: row.message,
        artifacts_max: row.artifacts_max,
    }
}

/// What an event is known by: its identity, or, where only its hash is kept, that.
fn event_name(view: &View<'_>, unit: u64, run: u64, hash: u64) -> Result<String> {
    let event = view.get(&EVENTS, &run_key(unit, run).and_number(hash))?;
    Ok(event.map_or_else(|| format!("hash {hash:016x}"), |event| event.identity.shown(hash)))
}

fn ledger_report(id: &str, row: LedgerRow, rejected: &BTreeMap<String, u64>) -> LedgerReport {
    let rejected_of = |item_type: &str| rejected.get(item_type).copied().unwrap_or(0);
    LedgerReport {
        sync_unit: id.to_owned(),
        run: row.id,
        status: status_of(row.status),
        started_at: row.started_at.to_time(),
        ended_at: row.ended_at.to_time(),
        since: row.since.map(Micros::to_time),
        watermark: row.watermark.map(Micros::to_time),
        epoch: row.epochs,
        pages: row.pages,
        events: row.events,
        events_reused: row.events_reused,
        findings: FindingCounts::new(row.errors, row.warnings),
        item_types: row
            .types
            .into_iter()
            .map(|counts| LedgerTypeReport {
                read: counts.read,
                skipped: counts.left_out.saturating_sub(rejected_of(&counts.item_type)),
                rejected: rejected_of(&counts.item_type),
                announced: counts.announced,
                artifacts: counts.artifacts,
                item_type: counts.item_type,
            })
            .collect(),
        attachments: row.attachments.into(),
    }
}

pub(super) fn message_report(
    view: &View<'_>,
    id: &str,
    unit: u64,
    no: u64,
    row: &MessageRow,
    run: Option<&String>,
) -> Result<MessageReport> {
    let (fate, delivered_times) = match row.fate {
        rows::MessageFate::Sealed => (MessageFate::Sealed, 0),
        rows::MessageFate::Delivered { times } => (MessageFate::Delivered, times),
        rows::MessageFate::Proven => (MessageFate::Proven, 0),
    };
    Ok(MessageReport {
        sync_unit: id.to_owned(),
        message: no,
        run: run.cloned(),
        phase: row.phase,
        event_type: row.event_type.clone(),
        answer: match row.kind {
            rows::MessageKind::Done => MessageKind::Done,
            rows::MessageKind::Progress => MessageKind::Progress,
            rows::MessageKind::Delay => MessageKind::Delay,
            rows::MessageKind::Error => MessageKind::Error,
        },
        fate,
        delivered_times,
        sealed_at: row.sealed_at.to_time(),
        artifacts: row.artifacts,
        ends_run: row.finishes,
        body_bytes: row.body.len() as u64,
        key: row.key.clone(),
        event: event_name(view, unit, row.run, row.event)?,
    })
}

pub(super) fn batch_report(id: &str, run: &str, seq: u64, row: BatchRow) -> BatchReport {
    BatchReport {
        sync_unit: id.to_owned(),
        run: run.to_owned(),
        epoch: row.epoch,
        state: stage_of(&row),
        message: match row.state {
            rows::BatchState::Announced(message) => Some(message),
            _ => None,
        },
        item_type: row.item_type,
        seq,
        artifact_id: row.artifact,
        given_up: row.given_up,
        items: row.items.into(),
        line_bytes: row.line_bytes,
        gzip_bytes: row.gzip_bytes,
        stream: Some(row.stream).filter(|stream| !stream.is_empty()),
        cursor_after: row.cursor_after,
    }
}

fn stage_of(row: &BatchRow) -> BatchStage {
    match row.state {
        rows::BatchState::Staged => BatchStage::Staged,
        rows::BatchState::Uploaded => BatchStage::Uploaded,
        rows::BatchState::Confirmed => BatchStage::Confirmed,
        rows::BatchState::Announced(_) => BatchStage::Announced,
    }
}

fn status_of(status: rows::RunStatus) -> RunStatus {
    match status {
        rows::RunStatus::Open => RunStatus::Open,
        rows::RunStatus::Finished => RunStatus::Finished,
        rows::RunStatus::Abandoned => RunStatus::Abandoned,
    }
}

pub(super) fn time<S: Serializer>(moment: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&moment.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

// serde hands the field over as it stands in the struct.
#[allow(clippy::ref_option)]
fn optional_time<S: Serializer>(moment: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => time(moment, serializer),
        None => serializer.serialize_none(),
    }
}

fn raw<S: Serializer>(json: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match RawValue::from_string(on_one_line(json).into_owned()) {
        Ok(json) => json.serialize(serializer),
        // What is no JSON is shown as the text that it is; a check reports it.
        Err(_) => serializer.serialize_str(json),
    }
}

#[allow(clippy::ref_option)]
fn optional_raw<S: Serializer>(json: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match json {
        Some(json) => raw(json, serializer),
        None => serializer.serialize_none(),
    }
}

/// JSON text without the line breaks that may stand between its parts: those within its strings are escaped.
fn on_one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) { Cow::Owned(json.replace(['\n', '\r'], " ")) } else { json.into() }
}
