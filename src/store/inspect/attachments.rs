//! The attachments of a unit: how many are where, and which were given up.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::Result;
use crate::record::Attachment;
use crate::store::rows::{self, FailedRow, KEPT_FROM, Key, Table, UnitRow, run_and_number, run_key};
use crate::store::tables::{Rows, View};

use super::scan::each;
use super::words::time;

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

/// What one of the two tables of attachments that were given up holds.
pub(super) fn failed_attachments(
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
