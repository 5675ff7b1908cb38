//! An upload in flight: its state, its name, and its share of the message.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::model::{ArtifactId, MESSAGE_BYTES_SOFT};
use crate::record::{Attachment, Record};
use crate::store::{BatchInfo, Run};
use crate::transfer::{Rules, State, ToDo};

use super::message::ArtifactEntry;

/// Identifies an upload: a batch by its seq, an attachment by its number in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum UploadNo {
    Batch(u64),
    Attachment(u64),
}

/// An upload in flight.
pub(super) struct InFlight {
    pub(super) what: What,
    pub(super) rules: Rules,
    pub(super) state: State,
    /// The newest id under which the platform has it, or had it.
    pub(super) artifact: Option<ArtifactId>,
    /// Attempts at its current call.
    pub(super) call_tries: u32,
    pub(super) ready_at: Duration,
    pub(super) begun_at: Duration,
    /// An attempt is being made.
    pub(super) called: bool,
    /// Bytes of the message that are reserved for it.
    pub(super) place: Option<usize>,
}

pub(super) enum What {
    Batch(BatchInfo),
    Attachment {
        attachment: Attachment,
        /// Failures that count against it, over all lives.
        tries: u32,
    },
}

impl InFlight {
    pub(super) fn to_do(&self) -> ToDo {
        self.rules.to_do(self.state)
    }

    /// Whether its next call is not being made, and is due.
    pub(super) fn is_ready(&self, now: Duration) -> bool {
        !self.called && self.ready_at <= now
    }

    pub(super) fn begin(&mut self, now: Duration) {
        self.called = true;
        self.begun_at = now;
        self.call_tries += 1;
    }

    /// No artifact id is stored for it.
    pub(super) fn is_staged(&self) -> bool {
        matches!(self.state, State::Staged(_))
    }
}

pub(super) fn name(run: &Run, what: &What) -> String {
    let unit = run.sync_unit();
    match what {
        What::Batch(info) => format!("batch {} of {unit} ({} {})", info.seq, info.items, info.item_type),
        What::Attachment { attachment, .. } => format!("attachment {} of {unit}", attachment.id),
    }
}

/// A batch in a message.
pub(super) fn entry(info: &BatchInfo, artifact: &str) -> ArtifactEntry {
    let (created, modified) = (info.dates.created, info.dates.modified);
    ArtifactEntry {
        id: artifact.to_owned(),
        item_type: info.item_type.clone(),
        item_count: info.items.into(),
        oldest_created: created.map(|(oldest, _)| oldest.to_time()),
        newest_created: created.map(|(_, newest)| newest.to_time()),
        oldest_modified: modified.map(|(oldest, _)| oldest.to_time()),
        newest_modified: modified.map(|(_, newest)| newest.to_time()),
    }
}

/// An attachment in a line.
pub(super) fn line(attachment: &Attachment, artifact: &ArtifactId) -> Result<Record> {
    let mut line = Map::new();
    line.insert("id".to_owned(), json!({ "devrev": artifact.as_str(), "external": attachment.id }));
    line.insert("parent_id".to_owned(), json!({ "external": attachment.parent_id }));
    if let Some(author) = &attachment.author_id {
        line.insert("actor_id".to_owned(), json!({ "external": author }));
    }
    if let Some(inline) = attachment.inline {
        line.insert("inline".to_owned(), Value::Bool(inline));
    }
    Record::flat(&line)
}

/// The size of the message if it were sealed now with everything that is confirmed or being confirmed.
pub(super) struct MessageSize {
    pub(super) bytes: usize,
    pub(super) artifacts: u64,
    pub(super) artifacts_max: u64,
    pub(super) full: bool,
}

impl MessageSize {
    /// Reserves this many bytes for an artifact, if there are.
    pub(super) fn take(&mut self, bytes: usize) -> Option<usize> {
        if self.bytes + bytes > MESSAGE_BYTES_SOFT || self.artifacts >= self.artifacts_max {
            self.full = true;
            return None;
        }
        self.add(bytes);
        Some(bytes)
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.artifacts += 1;
    }

    pub(super) fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.artifacts -= 1;
    }
}
