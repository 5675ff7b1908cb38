//! What remains of the runs that are over.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::model::Micros;
use crate::record::FindingCounts;
use crate::store::rows::{EdgeCountRow, LedgerRow, OnceCountRow};

use super::attachments::AttachmentsReport;
use super::words::{RunStatus, is_zero, optional_time, time};

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
    /// The run extracted what was modified at or after this; `None`: everything.
    #[serde(serialize_with = "optional_time")]
    pub since: Option<DateTime<Utc>>,
    /// The watermark that it set; `None` for an abandoned run.
    #[serde(serialize_with = "optional_time")]
    pub watermark: Option<DateTime<Utc>>,
    /// Number of its lives.
    pub epoch: u64,
    /// Lives that ended without an answer, as far as this store knows.
    pub deaths: u64,
    /// Pages staged.
    pub pages: u64,
    /// Events accepted.
    pub events: u64,
    /// Events whose ids the platform had used before.
    pub events_reused: u64,
    /// The findings in its records, and in its metadata.
    pub findings: FindingCounts,
    /// Its counts, by item type.
    pub item_types: Vec<LedgerTypeReport>,
    /// Its attachments, by outcome.
    pub attachments: AttachmentsReport,
}

/// The counts of an item type in a run that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LedgerTypeReport {
    /// The item type.
    pub item_type: String,
    /// Records read from the source.
    pub read: u64,
    /// Records out of the extraction scope.
    pub skipped: u64,
    /// Those that were rejected.
    #[serde(skip_serializing_if = "is_zero")]
    pub rejected: u64,
    /// Those that a run announces once, and that this one had already announced.
    #[serde(skip_serializing_if = "is_zero")]
    pub repeated: u64,
    /// Those that a run announces once, but whose ids it could not remember: it may have announced them again.
    #[serde(skip_serializing_if = "is_zero")]
    pub once_forgotten: u64,
    /// Those that did not change since the last finished run announced them.
    #[serde(skip_serializing_if = "is_zero")]
    pub unchanged: u64,
    /// Those at the edge that the next run could not remember: it announces them again.
    #[serde(skip_serializing_if = "is_zero")]
    pub edge_forgotten: u64,
    /// Those that were announced, or acknowledged.
    pub announced: u64,
    /// Artifacts that they were in.
    pub artifacts: u64,
    /// Bytes of those artifacts; `None` if they are not known, because an earlier version of this crate announced them,
    /// here or in another worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_bytes: Option<u64>,
}

/// `rejected`, `once` and `edge` are counts by item type: of rejected records, of those that a run announces once, and of
/// those at the edge.
pub(super) fn ledger_report(
    id: &str,
    row: LedgerRow,
    rejected: &BTreeMap<String, u64>,
    once: &BTreeMap<String, OnceCountRow>,
    edge: &BTreeMap<String, EdgeCountRow>,
) -> LedgerReport {
    let rejected_of = |item_type: &str| rejected.get(item_type).copied().unwrap_or(0);
    let once_of = |item_type: &str| once.get(item_type).cloned().unwrap_or_default();
    let edge_of = |item_type: &str| edge.get(item_type).cloned().unwrap_or_default();
    let bytes = row.bytes.into_iter().chain(std::iter::repeat(0));
    LedgerReport {
        sync_unit: id.to_owned(),
        run: row.id,
        status: row.status.into(),
        started_at: row.started_at.to_time(),
        ended_at: row.ended_at.to_time(),
        since: row.since.map(Micros::to_time),
        watermark: row.watermark.map(Micros::to_time),
        epoch: row.epochs,
        deaths: row.deaths,
        pages: row.pages,
        events: row.events,
        events_reused: row.events_reused,
        findings: FindingCounts::new(row.errors, row.warnings),
        item_types: row
            .types
            .into_iter()
            .zip(bytes)
            .map(|(counts, bytes)| LedgerTypeReport {
                read: counts.read,
                skipped: counts.left_out.saturating_sub(
                    rejected_of(&counts.item_type)
                        + once_of(&counts.item_type).repeated
                        + edge_of(&counts.item_type).unchanged,
                ),
                rejected: rejected_of(&counts.item_type),
                repeated: once_of(&counts.item_type).repeated,
                once_forgotten: once_of(&counts.item_type).forgotten,
                unchanged: edge_of(&counts.item_type).unchanged,
                edge_forgotten: edge_of(&counts.item_type).forgotten,
                announced: counts.announced,
                artifacts: counts.artifacts,
                artifact_bytes: Some(bytes).filter(|bytes| *bytes > 0 || counts.artifacts == 0),
                item_type: counts.item_type,
            })
            .collect(),
        attachments: row.attachments.into(),
    }
}
