//! Looking for one record: where its bytes still are, and what else is known about its id.
//!
//! The bytes of a batch are dropped when it is confirmed. So if a record is not found, the platform may have it, or
//! it never came. The result includes how many records cannot be searched for this reason.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::artifact::decompress;
use crate::error::{Error, Result};
use crate::record;
use crate::store::batches::payload;
use crate::store::digest::Digest;
use crate::store::edge;
use crate::store::findings::FindingKind;
use crate::store::rows::{
    BATCHES, BatchState, CHUNKS, EDGE, FINDINGS, Key, LEDGER, ONCE, RUNS, Row, RunRow, TYPES, Table, UnitRow,
    digest_of, number_of, run_key,
};
use crate::store::tables::{Rows, View};

use super::attachments::{FoundAttachment, seen};
use super::rejected::{self, RejectedReport};
use super::scan::{each, name};
use super::words::{AttachmentState, BatchStage, RejectedStage, RunStatus, time};

/// Where records with an id are, and what else is known about it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Found {
    /// The unit.
    pub sync_unit: String,
    /// The id that was looked for.
    pub id: String,
    /// Each place with records of that id.
    pub places: Vec<FoundPlace>,
    /// The newest run, which was searched; `None` if there was none yet.
    pub run: Option<FoundRun>,
    /// Records of that run that are confirmed, so that their bytes and ids are not stored any more.
    pub out_of_reach: u64,
    /// Of these, the records that a message has announced: the platform shows no others.
    pub announced: u64,
    /// The same, by item type.
    pub confirmed: Vec<FoundConfirmed>,
    /// It was rejected: by item type, as what and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<FoundRejected>,
    /// Item types of which the open run has staged it, and leaves it out when it comes again:
    /// [`Page::record_once`](crate::Page::record_once).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub once: Vec<String>,
    /// Item types of which the last finished run announced it, so that it is left out while it is unchanged:
    /// [`Page::leave_out_unchanged`](crate::Page::leave_out_unchanged).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub at_edge: Vec<String>,
    /// Findings of the checks that name the id, as text. The first few of each kind are kept.
    pub findings: Vec<String>,
    /// Attachments with the id that the unit has seen, each with another parent.
    pub attachments: u64,
    /// Those of them that were given up, and are not queued again.
    pub attachments_failed: u64,
    /// The state of each of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments_found: Vec<FoundAttachment>,
}

/// The run that was searched.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FoundRun {
    /// Its id.
    pub run: String,
    /// Its status.
    pub status: RunStatus,
}

/// Records of an item type that cannot be searched.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FoundConfirmed {
    /// The item type.
    pub item_type: String,
    /// How many.
    pub records: u64,
}

/// Records with an id in one place.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FoundPlace {
    /// Their item type.
    pub item_type: String,
    /// The batch that contains them; `None` while it is open.
    pub seq: Option<u64>,
    /// The state of that batch.
    pub state: Option<BatchStage>,
    /// How many: more than one if the source returned the same id again.
    pub records: u64,
}

/// A rejected record with an id.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FoundRejected {
    /// Its item type.
    pub item_type: String,
    /// Its state.
    pub stage: RejectedStage,
    /// Why it was last rejected; empty if the record is only known from a checkpoint.
    pub reason: String,
    /// When it was last rejected.
    #[serde(serialize_with = "time")]
    pub rejected_at: DateTime<Utc>,
}

#[derive(Deserialize)]
struct Line {
    id: Value,
}

/// The number of lines that are records with an id.
fn count_in(lines: &[u8], needle: &Finder<'_>, id: &str) -> u64 {
    let with_needle = lines.split(|byte| *byte == b'\n').filter(|line| needle.find(line).is_some());
    let ids = with_needle.filter_map(|line| serde_json::from_slice(line).ok());
    let is_it = |line: &Line| match &line.id {
        Value::String(text) => text == id,
        other => {
            let text = other.to_string();
            text == id
        }
    };
    ids.filter(is_it).count() as u64
}

/// The item types of which a run has kept an id in a table. A table with rows of very many types is not one of ours.
fn known_to<R: Row>(view: &View<'_>, table: &Table<R>, run: &Key, id: &Digest) -> Result<Vec<String>> {
    let mut known = Vec::new();
    let mut from = run.clone();
    loop {
        let mut next = None;
        view.scan(table, run, &from, |tail, _| {
            next = Some(digest_of(tail).map(|(item_type, _)| item_type.to_owned()));
            Ok(false)
        })?;
        let Some(item_type) = next else { return Ok(known) };
        let item_type =
            item_type.map_err(|error| view.tables().damaged(table.name, run, error.to_string()))?;
        let of_type = run.clone().and_inner_name(&item_type);
        if view.get(table, &of_type.clone().and_digest(id))?.is_some() {
            known.push(item_type);
        }
        match of_type.end() {
            Some(end) => from = end,
            None => return Ok(known),
        }
    }
}

/// Looks for an id in the newest run of a unit, and among all its attachments.
pub(super) fn find(view: &View<'_>, sync_unit: &str, unit: &UnitRow, id: &str) -> Result<Found> {
    let mut found = Found {
        sync_unit: sync_unit.to_owned(),
        id: id.to_owned(),
        places: Vec::new(),
        run: None,
        out_of_reach: 0,
        announced: 0,
        confirmed: Vec::new(),
        rejected: Vec::new(),
        once: Vec::new(),
        at_edge: Vec::new(),
        findings: Vec::new(),
        attachments: 0,
        attachments_failed: 0,
        attachments_found: seen(view, unit, id)?,
    };
    let failed = |found: &&FoundAttachment| found.state == AttachmentState::Failed;
    found.attachments = found.attachments_found.len() as u64;
    found.attachments_failed = found.attachments_found.iter().filter(failed).count() as u64;
    for record in rejected::read(view, sync_unit, unit, false)?.into_iter().filter(|record| record.id == id) {
        let RejectedReport { item_type, stage, reason, rejected_at, .. } = record;
        found.rejected.push(FoundRejected { item_type, stage, reason, rejected_at });
    }
    let digest = Digest::of(id);
    if let Some(kept) = edge::kept_of(view, unit.no)? {
        found.at_edge = known_to(view, &EDGE, &run_key(unit.no, kept.run), &digest)?;
    }
    let Some(run) = unit.run.map(|run| run_key(unit.no, run)) else { return Ok(found) };
    found.once = known_to(view, &ONCE, &run, &digest)?;
    let RunRow { id: run_id, status, .. } = view.need(&RUNS, &run)?;
    found.run = Some(FoundRun { run: run_id, status: status.into() });
    let mut confirmed: BTreeMap<String, u64> = BTreeMap::new();
    for counts in view.get(&LEDGER, &run)?.into_iter().flat_map(|over| over.types) {
        found.announced += counts.announced;
        *confirmed.entry(counts.item_type).or_default() += counts.announced;
    }
    // As in JSON text, without the quotation marks, because a numeric id has none.
    let quoted = Value::from(id).to_string();
    let needle = Finder::new(quoted.trim_matches('"'));
    let mut types = Vec::new();
    each(view, &TYPES, &run, name, |item_type, counts| {
        found.announced += counts.announced;
        types.push((item_type, counts.confirmed));
    })?;
    for (item_type, of_type) in types {
        *confirmed.entry(item_type.clone()).or_default() += of_type;
        let mut records = 0;
        let prefix = run.clone().and_inner_name(&item_type);
        view.scan(&CHUNKS, &prefix, &prefix, |_, chunk| {
            records += count_in(&chunk.lines, &needle, id);
            Ok(true)
        })?;
        if records > 0 {
            found.places.push(FoundPlace { item_type, seq: None, state: None, records });
        }
    }
    found.out_of_reach = confirmed.values().sum();
    found.confirmed = confirmed
        .into_iter()
        .filter(|(_, records)| *records > 0)
        .map(|(item_type, records)| FoundConfirmed { item_type, records })
        .collect();
    let mut batches = Vec::new();
    each(view, &BATCHES, &run, number_of, |seq, row| batches.push((seq, row)))?;
    for (seq, batch) in batches {
        if !matches!(batch.state, BatchState::Staged | BatchState::Uploaded) {
            continue;
        }
        let key: Key = run.clone().and_number(seq);
        let member = payload::read(view, &key, &batch)?;
        let mut lines = Vec::new();
        decompress(&member, batch.line_bytes, &mut lines).map_err(|error| Error::Corrupt {
            what: format!("batch {seq} of {sync_unit}"),
            reason: error.to_string(),
        })?;
        let records = count_in(&lines, &needle, id);
        if records > 0 {
            let (item_type, state) = (batch.item_type, Some(batch.state.into()));
            found.places.push(FoundPlace { item_type, seq: Some(seq), state, records });
        }
    }
    // The form in which a finding names its record: an id that contains this one is another.
    let named = record::quoted(id);
    each(view, &FINDINGS, &run, FindingKind::of_key, |_, row| {
        found.findings.extend(row.kept.into_iter().filter(|text| text.contains(&named)));
    })?;
    Ok(found)
}
