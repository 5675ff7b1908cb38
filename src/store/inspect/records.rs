//! The records of a run: how many of each item type are in which state, in which batches, and the findings in them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::store::edge;
use crate::store::findings::FindingKind;
use crate::store::once;
use crate::store::rejected;
use crate::store::rows::{self, BATCHES, BatchRow, FINDINGS, Key, TYPES, number_of};
use crate::store::tables::{Rows, View};

use super::scan::{each, name};
use super::words::{BatchStage, is_zero, optional_raw};

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
    /// Records read from the source.
    pub read: u64,
    /// Records out of the extraction scope: they were not staged.
    pub skipped: u64,
    /// Records that were rejected, and so not staged. Records that were requested again and rejected again are not
    /// counted as read.
    #[serde(skip_serializing_if = "is_zero")]
    pub rejected: u64,
    /// Those that the run had announced before, and announces once.
    #[serde(skip_serializing_if = "is_zero")]
    pub repeated: u64,
    /// Those that the run announces once and does not remember: they may have been announced more than once.
    #[serde(skip_serializing_if = "is_zero")]
    pub once_forgotten: u64,
    /// Those that are unchanged since the last finished run announced them.
    #[serde(skip_serializing_if = "is_zero")]
    pub unchanged: u64,
    /// Those at the edge that the next run does not know of: it may announce them again.
    #[serde(skip_serializing_if = "is_zero")]
    pub edge_forgotten: u64,
    /// Those in closed batches.
    pub batched: u64,
    /// Those in the batch that is still open.
    pub open_items: u64,
    /// Bytes of those, as lines.
    pub open_bytes: u64,
    /// Records whose batches the platform has linked to the run.
    pub confirmed: u64,
    /// Those in a sealed message, or acknowledged.
    pub announced: u64,
    /// Batches closed.
    pub batches: u64,
    /// Those in a sealed message, or acknowledged.
    pub artifacts_announced: u64,
    /// Bytes of those, except of those that an earlier version of this crate announced.
    pub announced_bytes: u64,
    /// The artifact that was last acknowledged.
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
    /// The item type; `None` if findings are counted by rule alone, because there are too many kinds.
    pub item_type: Option<String>,
    /// `error` or `warning`.
    pub severity: String,
    /// The rule that was broken, as [`Rule::as_str`](crate::record::Rule::as_str) names it.
    pub rule: String,
    /// The place in the record, `[]` for each position in an array. Empty for the record as a whole, or if there are
    /// too many kinds.
    pub path: String,
    /// How many.
    pub count: u64,
    /// The first of them, as text.
    pub kept: Vec<String>,
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
    /// The item type of its records.
    pub item_type: String,
    /// Its number in the run, from 1.
    pub seq: u64,
    /// Its state.
    pub state: BatchStage,
    /// The number of the sealed message that names it.
    pub message: Option<u64>,
    /// The platform's id for it.
    pub artifact_id: Option<String>,
    /// How often a confirm was refused for good, so that its id was given up.
    pub given_up: u32,
    /// Records in it.
    pub items: u64,
    /// Bytes of them as lines.
    pub line_bytes: u64,
    /// Bytes of its gzip member.
    pub gzip_bytes: u64,
    /// The stream whose page filled it; `None` if it was closed before it was full.
    pub stream: Option<String>,
    /// The cursor after the page that filled it, as JSON text.
    #[serde(serialize_with = "optional_raw")]
    pub cursor_after: Option<String>,
}

pub(super) fn findings(view: &View<'_>, id: &str, run: &str, key: &Key) -> Result<Vec<FindingsReport>> {
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

pub(super) fn item_types(view: &View<'_>, id: &str, run: &str, key: &Key) -> Result<Vec<TypeReport>> {
    let mut types = BTreeMap::new();
    let rejected = rejected::counts(view, key)?;
    let once = once::counts(view, key)?;
    let edge = edge::counts(view, key)?;
    each(view, &TYPES, key, name, |item_type, row| {
        let none = BatchCounts::default();
        let rejected = rejected.get(&item_type).copied().unwrap_or(0);
        let once = once.get(&item_type).cloned().unwrap_or_default();
        let edge = edge.get(&item_type).cloned().unwrap_or_default();
        types.insert(
            item_type.clone(),
            TypeReport {
                sync_unit: id.to_owned(),
                run: run.to_owned(),
                item_type,
                read: row.read,
                skipped: row.left_out.saturating_sub(rejected + once.repeated + edge.unchanged),
                rejected,
                repeated: once.repeated,
                once_forgotten: once.forgotten,
                unchanged: edge.unchanged,
                edge_forgotten: edge.forgotten,
                batched: row.batched,
                open_items: row.open_items.into(),
                open_bytes: row.open_bytes,
                confirmed: row.confirmed,
                announced: row.announced,
                batches: row.batches,
                artifacts_announced: row.artifacts_announced,
                announced_bytes: row.announced_bytes,
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
        let counts = match row.state.into() {
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

pub(super) fn batch_report(id: &str, run: &str, seq: u64, row: BatchRow) -> BatchReport {
    BatchReport {
        sync_unit: id.to_owned(),
        run: run.to_owned(),
        epoch: row.epoch,
        state: row.state.into(),
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
