//! The conversation about a unit's runs: the messages that were sealed, and the events that they answer.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::Result;
use crate::model::Phase;
use crate::store::rows::{self, EVENTS, Key, MESSAGES, MessageRow, number_of, run_key};
use crate::store::tables::{Rows, View};

use super::scan::push_last;
use super::words::{MessageFate, MessageKind, time};

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

/// The newest messages of a unit.
#[derive(Debug, Default)]
pub(super) struct Newest {
    /// Messages that are stored, and those of them that are not known to be delivered.
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
    let (mut found, mut newest) = (Newest::default(), VecDeque::new());
    view.scan(&MESSAGES, &prefix, &prefix, |tail, row| {
        let no = number_of(tail)
            .map_err(|error| view.tables().damaged(MESSAGES.name, &prefix, error.to_string()))?;
        let message = message_report(view, id, unit, no, &row, run_ids.get(&row.run))?;
        found.kept += 1;
        found.undelivered += u64::from(message.fate == MessageFate::Sealed);
        if let Some(older) = push_last(&mut newest, last, message)
            && older.fate == MessageFate::Sealed
        {
            found.messages.push(older);
        }
        Ok(true)
    })?;
    found.messages.extend(newest);
    Ok(found)
}

/// What an event is known by: its identity, or, where only its hash is kept, that.
pub(super) fn event_name(view: &View<'_>, unit: u64, run: u64, hash: u64) -> Result<String> {
    let event = view.get(&EVENTS, &run_key(unit, run).and_number(hash))?;
    Ok(event.map_or_else(|| format!("hash {hash:016x}"), |event| event.identity.shown(hash)))
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
        body_bytes: row.body.len() as u64,
        key: row.key.clone(),
        event: event_name(view, unit, row.run, row.event)?,
    })
}
