//! The conversation about a unit's runs: the messages that were sealed, and the events that they answer.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::Result;
use crate::model::{Micros, Phase};
use crate::store::rows::{
    self, DEATHS, EVENTS, Key, LEDGER, MESSAGES, MessageRow, message_key, number_of, run_and_number, run_key,
};
use crate::store::tables::{Rows, View};

use super::scan::{each, push_last};
use super::words::{MessageFate, MessageKind, optional_time, time};

/// A sealed message, without its body.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MessageReport {
    /// The unit.
    pub sync_unit: String,
    /// Its number in the unit, from 1.
    pub message: u64,
    /// The id of the run that it belongs to, if that is still known.
    pub run: Option<String>,
    /// The phase that it belongs to.
    pub phase: Phase,
    /// Its event type, as it is spelled in its body.
    pub event_type: String,
    /// The kind of answer.
    pub answer: MessageKind,
    /// Whether it was accepted.
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
    /// The error text of an ERROR; unknown if a checkpoint brought it here.
    pub error: Option<String>,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// Its idempotency key.
    pub key: String,
    /// The identity of the event that it answers, or, if a checkpoint brought it back, its hash.
    pub event: String,
}

/// An event that was accepted.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EventReport {
    /// The unit.
    pub sync_unit: String,
    /// The id of its run, if that is still known.
    pub run: Option<String>,
    /// Its place among the events of its run, from 1.
    pub order: u64,
    /// Its identity, or, if a checkpoint brought it back, its hash.
    pub event: String,
    /// When it was accepted.
    #[serde(serialize_with = "time")]
    pub accepted_at: DateTime<Utc>,
    /// The message that answers it, if that is sealed and still kept.
    pub answer: Option<MessageReport>,
}

/// A life of a run that ended without an answer: it was killed, or ended with an error of its own.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DeathReport {
    /// The unit.
    pub sync_unit: String,
    /// The id of its run, if that is still known.
    pub run: Option<String>,
    /// Which life of the run it was, from 1.
    pub epoch: u64,
    /// When it last stored something; unknown if a checkpoint brought the run here.
    #[serde(serialize_with = "optional_time")]
    pub changed_at: Option<DateTime<Utc>>,
    /// When the next life resumed the run, or an operator abandoned it; if neither, when the store was read. The death cost
    /// at most the time between the two.
    #[serde(serialize_with = "time")]
    pub found_at: DateTime<Utc>,
    /// Whether a next life has resumed the run.
    pub resumed: bool,
    /// Batches that had no artifact id then: at most this many uploads were lost.
    pub batches: u64,
    /// Records in those batches.
    pub items: u64,
}

/// The events of a unit that are kept, in the order of their runs.
pub(super) fn events(
    view: &View<'_>,
    id: &str,
    unit: u64,
    run_ids: &BTreeMap<u64, String>,
) -> Result<Vec<EventReport>> {
    let prefix = Key::unit(unit);
    let mut rows = Vec::new();
    each(view, &EVENTS, &prefix, run_and_number, |(run, hash), row| rows.push((run, hash, row)))?;
    rows.sort_by_key(|(run, _, row)| (*run, row.order));
    rows.into_iter()
        .map(|(run, hash, row)| {
            let answer = match row.message {
                Some(no) => view
                    .get(&MESSAGES, &message_key(unit, no))?
                    .map(|message| message_report(view, id, unit, no, &message, run_ids.get(&run)))
                    .transpose()?,
                None => None,
            };
            Ok(EventReport {
                sync_unit: id.to_owned(),
                run: run_ids.get(&run).cloned(),
                order: row.order,
                event: row.identity.shown(hash),
                accepted_at: row.accepted_at.to_time(),
                answer,
            })
        })
        .collect()
}

/// The deaths of a unit's runs that are kept, in the order of their runs.
pub(super) fn deaths(
    view: &View<'_>,
    id: &str,
    unit: u64,
    run_ids: &BTreeMap<u64, String>,
) -> Result<Vec<DeathReport>> {
    let (mut deaths, mut runs) = (Vec::new(), Vec::new());
    each(view, &DEATHS, &Key::unit(unit), run_and_number, |(run, epoch), row| {
        deaths.push(DeathReport {
            sync_unit: id.to_owned(),
            run: run_ids.get(&run).cloned(),
            epoch,
            changed_at: row.changed_at.map(Micros::to_time),
            found_at: row.found_at.to_time(),
            resumed: true,
            batches: row.batches,
            items: row.items,
        });
        runs.push(run);
    })?;
    for (death, run) in deaths.iter_mut().zip(runs) {
        // The last life of a run that was abandoned had no next one.
        let over = view.get(&LEDGER, &run_key(unit, run))?;
        death.resumed =
            over.is_none_or(|over| over.status == rows::RunStatus::Finished || death.epoch < over.epochs);
    }
    Ok(deaths)
}

/// The newest messages of a unit.
#[derive(Debug, Default)]
pub(super) struct Newest {
    /// Messages that are stored, and how many of them are not known to be delivered.
    pub(super) kept: u64,
    pub(super) undelivered: u64,
    /// The newest `last`, oldest first, after any older one that is not delivered.
    pub(super) messages: Vec<MessageReport>,
}

/// Reads the newest `last` messages, and any older one that is not delivered; counts all.
pub(super) fn newest(
    view: &View<'_>,
    id: &str,
    unit: u64,
    run_ids: &BTreeMap<u64, String>,
    last: usize,
) -> Result<Newest> {
    let prefix = Key::unit(unit);
    let (mut found, mut undelivered, mut newest) = (Newest::default(), Vec::new(), VecDeque::new());
    view.scan(&MESSAGES, &prefix, &prefix, |tail, row| {
        let no = number_of(tail)
            .map_err(|error| view.tables().damaged(MESSAGES.name, &prefix, error.to_string()))?;
        found.kept += 1;
        found.undelivered += u64::from(row.fate == rows::MessageFate::Sealed);
        let older = push_last(&mut newest, last, (no, row));
        undelivered.extend(older.filter(|(_, row)| row.fate == rows::MessageFate::Sealed));
        Ok(true)
    })?;
    undelivered.extend(newest);
    for (no, row) in undelivered {
        found.messages.push(message_report(view, id, unit, no, &row, run_ids.get(&row.run))?);
    }
    Ok(found)
}

/// The identity of an event, or its hash if only that is kept; and when it was accepted.
pub(super) fn event_name(
    view: &View<'_>,
    unit: u64,
    run: u64,
    hash: u64,
) -> Result<(String, Option<Micros>)> {
    let event = view.get(&EVENTS, &run_key(unit, run).and_number(hash))?;
    Ok(match event {
        Some(event) => (event.identity.shown(hash), Some(event.accepted_at)),
        None => (format!("hash {hash:016x}"), None),
    })
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
        answer: row.kind.into(),
        fate,
        delivered_times,
        sealed_at: row.sealed_at.to_time(),
        artifacts: row.artifacts,
        ends_run: row.finishes,
        error: row.error.clone(),
        body_bytes: row.body.len() as u64,
        key: row.key.clone(),
        event: event_name(view, unit, row.run, row.event)?.0,
    })
}
