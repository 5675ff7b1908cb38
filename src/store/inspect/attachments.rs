//! The attachments of a unit: how many are in which state, and each by itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::Result;
use crate::model::Micros;
use crate::record::Attachment;
use crate::store::rows::{
    self, ATTACHMENTS, AttachmentRow, FAILED, FailedRow, KEPT_FROM, Key, LEDGER, REQUEUED, RunStatus, SEEN,
    Table, UnitRow, number_of, run_and_number, run_key,
};
use crate::store::tables::{Rows, View};

use super::reasons::Reasons;
use super::scan::{push_last, run_id};
use super::words::{AttachmentState, optional_time};

/// Rows that are read in one view.
const GROUP: usize = 500;

/// The attachments of a run by status: each that was queued is settled, failed or left.
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

/// An attachment that is not settled: it waits, or was given up.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AttachmentReport {
    /// The unit.
    pub sync_unit: String,
    /// The id of the run that queued it or gave it up, if that is still known.
    pub run: Option<String>,
    /// Its id. Empty, like the rest of its metadata, if a checkpoint held only its place.
    pub id: String,
    /// The id of the record it belongs to.
    pub parent_id: String,
    /// The name of the file.
    pub file_name: String,
    /// The address of its bytes, without possible credentials: user, query and fragment are left out.
    pub url: String,
    /// Its state.
    pub state: AttachmentState,
    /// It was given up, and will be tried again by the next run that reaches its attachments phase.
    pub requeued: bool,
    /// Why it was given up, or why the last attempt failed.
    pub reason: Option<String>,
    /// Attempts that failed.
    pub tries: u32,
    /// When it was given up.
    #[serde(serialize_with = "optional_time")]
    pub failed_at: Option<DateTime<Utc>>,
    /// When it will be tried again.
    #[serde(serialize_with = "optional_time")]
    pub ready_at: Option<DateTime<Utc>>,
    /// The platform's id for its bytes, if they are uploaded.
    pub artifact_id: Option<String>,
}

/// An address without possible credentials.
fn without_credentials(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (address, rest) = url.split_at(end);
    let mut shown = match address.split_once("://") {
        Some((scheme, place)) => {
            let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        // `data:` and similar addresses contain the bytes themselves.
        None => match address.split_once(':') {
            Some((scheme, _)) => format!("{scheme}:..."),
            None => address.to_owned(),
        },
    };
    if !rest.is_empty() {
        shown.push_str("?...");
    }
    shown
}

fn report(id: &str, run: Option<&String>, json: &str) -> Result<AttachmentReport> {
    let mut report = AttachmentReport {
        sync_unit: id.to_owned(),
        run: run.cloned(),
        id: String::new(),
        parent_id: String::new(),
        file_name: String::new(),
        url: String::new(),
        state: AttachmentState::Waiting,
        requeued: false,
        reason: None,
        tries: 0,
        failed_at: None,
        ready_at: None,
        artifact_id: None,
    };
    if !json.is_empty() {
        let attachment = Attachment::from_line(json)?;
        report.url = without_credentials(&attachment.url);
        (report.id, report.parent_id) = (attachment.id, attachment.parent_id);
        report.file_name = attachment.file_name;
    }
    Ok(report)
}

fn failed_report(id: &str, run: Option<&String>, row: FailedRow, requeued: bool) -> Result<AttachmentReport> {
    let state = if requeued { AttachmentState::Requeued } else { AttachmentState::Failed };
    Ok(AttachmentReport {
        state,
        requeued,
        reason: Some(row.reason),
        tries: row.tries,
        failed_at: Some(row.failed_at.to_time()),
        ..report(id, run, &row.json)?
    })
}

fn queued_report(id: &str, run: Option<&String>, row: AttachmentRow) -> Result<AttachmentReport> {
    let state = if row.artifact.is_some() { AttachmentState::Uploaded } else { AttachmentState::Waiting };
    Ok(AttachmentReport {
        state,
        reason: row.reason,
        tries: row.tries,
        ready_at: row.ready_at.map(Micros::to_time),
        artifact_id: row.artifact.map(|(artifact, _)| artifact),
        ..report(id, run, &row.json)?
    })
}

/// The number of rows in one of the two tables of given-up attachments, why, and the newest of them.
pub(super) fn failed_attachments(
    view: &View<'_>,
    id: &str,
    unit: &UnitRow,
    requeued: bool,
    run_ids: &BTreeMap<u64, String>,
    last: usize,
) -> Result<(u64, Reasons, VecDeque<AttachmentReport>)> {
    let table = if requeued { &REQUEUED } else { &FAILED };
    let prefix = Key::unit(unit.no);
    let (mut count, mut reasons, mut newest) = (0, Reasons::default(), VecDeque::new());
    view.scan(table, &prefix, &prefix, |tail, row| {
        let (run, number) = place(view, table, &prefix, tail)?;
        if !is_in_queue(unit, run, number) {
            count += 1;
            reasons.add(row.reason.clone());
            push_last(&mut newest, last, (run, number, row));
        }
        Ok(true)
    })?;
    let read = |(run, number, row)| {
        failed_report(id, run_ids.get(&run), row, requeued).map_err(|error| {
            let key = run_key(unit.no, run).and_number(number);
            view.tables().damaged(table.name, &key, error.to_string())
        })
    };
    Ok((count, reasons, newest.into_iter().map(read).collect::<Result<_>>()?))
}

/// Whether a requeued attachment is in the queue of the current run again.
fn is_in_queue(unit: &UnitRow, run: u64, number: u64) -> bool {
    unit.run == Some(run) && number >= KEPT_FROM
}

fn place<R>(view: &View<'_>, table: &Table<R>, prefix: &Key, tail: &[u8]) -> Result<(u64, u64)>
where
    R: rows::Row,
{
    run_and_number(tail).map_err(|error| view.tables().damaged(table.name, prefix, error.to_string()))
}

/// The progress of a listing of attachments: given up, queued again, in the queue.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    table: u8,
    /// The last one read there.
    after: Option<(u64, u64)>,
}

/// The next group of a unit's attachments; `None` at the end.
pub(super) fn next_group(
    view: &View<'_>,
    id: &str,
    unit: &UnitRow,
    place_now: &Place,
    only_failed: bool,
) -> Result<(Vec<AttachmentReport>, Place)> {
    let mut at = place_now.clone();
    let tables = if only_failed { 1 } else { 3 };
    let mut found = Vec::new();
    let mut ids = BTreeMap::new();
    let unit_prefix = Key::unit(unit.no);
    while found.is_empty() && at.table < tables {
        let mut rows_read = 0;
        let from = |after: Option<(u64, u64)>| match after {
            Some((run, number)) => run_key(unit.no, run).and_number(number).and_name("\0"),
            None => unit_prefix.clone(),
        };
        let mut after = at.after;
        if at.table < 2 {
            let requeued = at.table == 1;
            let table = if requeued { &REQUEUED } else { &FAILED };
            let mut rows = Vec::new();
            view.scan(table, &unit_prefix, &from(after), |tail, row| {
                let (run, number) = place(view, table, &unit_prefix, tail)?;
                after = Some((run, number));
                rows_read += 1;
                if !is_in_queue(unit, run, number) {
                    rows.push((run, number, row));
                }
                Ok(rows_read < GROUP)
            })?;
            for (run, number, row) in rows {
                let name = match ids.entry(run) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(unknown) => unknown.insert(run_id(view, unit.no, run)?),
                };
                let report = failed_report(id, name.as_ref(), row, requeued).map_err(|error| {
                    let key = run_key(unit.no, run).and_number(number);
                    view.tables().damaged(table.name, &key, error.to_string())
                })?;
                found.push(report);
            }
        } else if let Some(run) = unit.run {
            let prefix = run_key(unit.no, run);
            let name = run_id(view, unit.no, run)?;
            let start = if after.is_some() { from(after) } else { prefix.clone() };
            view.scan(&ATTACHMENTS, &prefix, &start, |tail, row| {
                let damaged = |error: String| view.tables().damaged(ATTACHMENTS.name, &prefix, error);
                let number = number_of(tail).map_err(|error| damaged(error.to_string()))?;
                after = Some((run, number));
                rows_read += 1;
                let report =
                    queued_report(id, name.as_ref(), row).map_err(|error| damaged(error.to_string()))?;
                found.push(report);
                Ok(rows_read < GROUP)
            })?;
        }
        at = if rows_read < GROUP {
            Place { table: at.table + 1, after: None }
        } else {
            Place { after, ..at }
        };
    }
    Ok((found, at))
}

/// An attachment with an id that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FoundAttachment {
    /// The id of the record it belongs to.
    pub parent_id: String,
    /// Its state.
    pub state: AttachmentState,
    /// The run that queued it last, if that is still known.
    pub run: Option<String>,
    /// When that run was over, if it is and is still known.
    #[serde(serialize_with = "optional_time")]
    pub run_ended_at: Option<DateTime<Utc>>,
    /// Why it was given up, if it was.
    pub reason: Option<String>,
}

/// The attachments with an id that a unit has seen, each with another parent.
pub(super) fn seen(view: &View<'_>, unit: &UnitRow, id: &str) -> Result<Vec<FoundAttachment>> {
    let mut ending = Vec::new();
    let Ok(bytes) = u32::try_from(id.len()) else { return Ok(Vec::new()) };
    ending.extend_from_slice(&bytes.to_be_bytes());
    ending.extend_from_slice(id.as_bytes());
    let prefix = Key::unit(unit.no);
    let mut keys = Vec::new();
    view.scan_bytes(&SEEN, &prefix, |tail, _| {
        if tail.ends_with(&ending) {
            keys.push(tail.to_vec());
        }
        Ok(())
    })?;
    let mut found = Vec::new();
    for tail in keys {
        let row = view.need(&SEEN, &prefix.clone().and_bytes(&tail))?;
        let place = run_key(unit.no, row.run).and_number(row.number);
        let over = view.get(&LEDGER, &run_key(unit.no, row.run))?;
        let failed = view.get(&FAILED, &place)?;
        let state = if let Some(queued) = view.get(&ATTACHMENTS, &place)? {
            if queued.artifact.is_some() { AttachmentState::Uploaded } else { AttachmentState::Waiting }
        } else if view.get(&REQUEUED, &place)?.is_some() {
            AttachmentState::Requeued
        } else if failed.is_some() {
            AttachmentState::Failed
        } else if over.as_ref().is_some_and(|over| over.status == RunStatus::Abandoned) {
            AttachmentState::Dropped
        } else {
            AttachmentState::Settled
        };
        // The parent's id, after its length.
        let parent = tail.get(4..tail.len().saturating_sub(ending.len())).unwrap_or_default();
        found.push(FoundAttachment {
            parent_id: String::from_utf8_lossy(parent).into_owned(),
            state,
            run: run_id(view, unit.no, row.run)?,
            run_ended_at: over.map(|over| over.ended_at.to_time()),
            reason: failed.map(|failed| failed.reason),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::without_credentials;

    #[test]
    fn an_address_is_shown_without_what_may_be_a_credential() {
        for (url, shown) in [
            ("https://files.example/9", "https://files.example/9"),
            ("https://files.example/a.png?key=secret#secret", "https://files.example/a.png?..."),
            ("https://files.example/a.png#secret", "https://files.example/a.png?..."),
            ("https://user:secret@files.example:8443/a@b", "https://files.example:8443/a@b"),
            ("https://secret@files.example", "https://files.example"),
            ("https://files.example?secret", "https://files.example?..."),
            ("data:text/plain;base64,c2VjcmV0", "data:..."),
            ("/files/9", "/files/9"),
            ("", ""),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}
