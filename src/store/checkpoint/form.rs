//! The structs of a checkpoint, and its form in a worker state.
//!
//! ```json
//! { "version": 2, "checksum": "32 hexadecimal digits", "body": "base64 of a gzip member" }
//! ```
//!
//! The body is one string, and the checksum is that of the string: 128 bits of its SHA-256. So a program that parses
//! the worker state and writes it again (keys in another order, numbers read as doubles) leaves the checkpoint valid,
//! and a change of any byte of it is detected. The gzip member holds one JSON document, [`Checkpoint`].
//!
//! Why base64 of a gzip member: a worker state is a JSON string inside a JSON document, so a quotation mark in it is
//! written as `\\\"`, four bytes, and one in a sealed message as eight. Measured on `state` as posted, a checkpoint
//! of a sealed message with 620 artifacts takes 301 kB as JSON text, 269 kB as base64, and 11 kB as base64 of its
//! gzip member. One full of random letters takes 486, 646 and 487 kB.
//!
//! A field is added with `#[serde(default)]`. If a field changes its meaning, that is a new version; the reader of
//! the version before gets a file of its own, like [`version_1`](super::version_1).
//!
//! All of it is read with `serde_json::from_slice`: a second way to read it would be compiled a second time, which is
//! slow.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::artifact::{Level, compress, decompress};
use crate::error::Error;
use crate::model::{Micros, Phase, Phases};
use crate::transfer::{Held, State};

use super::super::digest::{Digest, KnownId};
use super::super::edge::EdgePart;
use super::super::findings::FindingPart;
use super::super::kept::KeptPart;
use super::super::once::OncePart;
use super::super::rejected::RejectedPart;
use super::super::rows::{
    Activity, BatchRow, BatchState, ChildRow, ChildStreamRow, Dates, FailedRow, FileRow, LedgerAttachments,
    LedgerRow, LedgerType, MessageFate, MessageKind, NotBefore, Pace, QueueRow, RunRow, RunStatus, StreamRow,
    UnderRow, UnitRow, WindowRow,
};

/// The newest version, which this crate writes.
pub(super) const VERSION: u64 = 2;
/// The most bytes of the JSON document in a body: many times what a worker state can hold.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The compression level of the body: most of it is the same few names.
const BODY_LEVEL: u32 = 6;

/// The key in the worker state that holds the checkpoint.
pub(crate) const CHECKPOINT_KEY: &str = "highwater";

/// An error about the checkpoint of a unit.
pub(super) fn damaged(sync_unit: &str, reason: String) -> Error {
    Error::WorkerState { what: format!("{CHECKPOINT_KEY} in the worker state of {sync_unit}"), reason }
}

/// A checkpoint in its form in the worker state.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    version: u64,
    checksum: String,
    body: String,
}

impl Envelope {
    pub(super) fn seal(checkpoint: &Checkpoint) -> Result<Self, String> {
        let json = serde_json::to_vec(checkpoint).map_err(|error| error.to_string())?;
        let level = Level::new(BODY_LEVEL).map_err(|error| error.to_string())?;
        let member = compress(&[&json], level).map_err(|error| error.to_string())?.concat();
        let body = STANDARD.encode(member);
        Ok(Self { version: VERSION, checksum: Digest::of(&body).to_string(), body })
    }

    pub(super) fn open(&self) -> Result<Checkpoint, String> {
        let found = Digest::of(&self.body).to_string();
        if found != self.checksum {
            let expected = &self.checksum;
            return Err(format!(
                "the checksum of its body is {found}, expected {expected}: somebody else changed it"
            ));
        }
        let member =
            STANDARD.decode(&self.body).map_err(|error| format!("its body is not base64: {error}"))?;
        let mut json = Vec::new();
        decompress(&member, BODY_BYTES_MAX, &mut json)
            .map_err(|error| format!("its body is not a gzip member: {error}"))?;
        serde_json::from_slice(&json).map_err(|error| format!("its body: {error}"))
    }
}

/// What is known of a unit and its run, in a portable form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Names the holder that saved it.
    pub(crate) token: String,
    pub(super) unit: UnitPart,
    pub(super) run: Option<RunPart>,
    /// Runs of the unit, the newest first.
    pub(super) run_ids: Vec<RunIdPart>,
    /// Events of the run, the newest first.
    pub(super) events: Vec<EventPart>,
    pub(super) bookmarks: BTreeMap<String, String>,
    pub(super) ledger: Vec<LedgerPart>,
    pub(super) position: Position,
    pub(super) announced: BTreeMap<String, AnnouncedPart>,
    /// Batches that are uploaded and not announced.
    pub(super) artifacts: Vec<ArtifactPart>,
    /// Artifacts from which the queue of attachments can be rebuilt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) files: Vec<FilePart>,
    pub(super) message: Option<MessagePart>,
    /// The newest artifact ids that the run has used.
    #[serde(default, skip_serializing_if = "UsedPart::is_empty")]
    pub(super) used: UsedPart,
    /// By stream, the most pages and records that it has read in a finished run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) most_read: BTreeMap<String, (u64, u64)>,
    /// The rejected records of finished runs.
    #[serde(default, skip_serializing_if = "RejectedPart::is_empty")]
    pub(super) rejected: RejectedPart,
    /// Counts of records that past runs announced once.
    #[serde(default, skip_serializing_if = "OncePart::is_empty")]
    pub(super) once: OncePart,
    /// Records at the edge that the unit remembers.
    #[serde(default, skip_serializing_if = "EdgePart::is_empty")]
    pub(super) edge: EdgePart,
    /// What is kept when the unit's state is deleted: ids of runs, and the events that requested a deletion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) past_runs: Vec<IdHash>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) deletions: Vec<IdHash>,
    /// What runs and operators left for later runs.
    #[serde(default, skip_serializing_if = "KeptPart::is_empty")]
    pub(super) kept: KeptPart,
}

/// Hashes of 32 bits, the newest last. Written as base64 of their big-endian bytes: as numbers they would take twice
/// the room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UsedPart(pub(super) Vec<u32>);

impl UsedPart {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for UsedPart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|hash| hash.to_be_bytes()).collect();
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for UsedPart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)?;
        let (hashes, []) = bytes.as_chunks() else {
            return Err(serde::de::Error::custom("the bytes are not a whole number of 4-byte hashes"));
        };
        Ok(Self(hashes.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect()))
    }
}

/// An id that is kept only as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum IdHash {
    Digest(Digest),
    /// XXH3 of 64 bits, of an id that came with an earlier checkpoint.
    Short(u64),
}

impl IdHash {
    /// What is known of an id whose row is kept under `number`.
    pub(super) fn of(id: &KnownId, number: u64) -> Self {
        match id {
            KnownId::Number => Self::Short(number),
            KnownId::Whole(id) => Self::Digest(Digest::of(id)),
            KnownId::Digest(digest) => Self::Digest(*digest),
            KnownId::Short(hash) => Self::Short(*hash),
        }
    }

    /// The number of its row, or of the first free one after it.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Digest(digest) => digest.number(),
            Self::Short(hash) => hash,
        }
    }

    pub(super) fn known(self) -> KnownId {
        match self {
            Self::Digest(digest) => KnownId::Digest(digest),
            Self::Short(hash) => KnownId::Short(hash),
        }
    }
}

impl fmt::Display for IdHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdHash::Digest(digest) => digest.fmt(f),
            IdHash::Short(hash) => write!(f, "{hash:016x}"),
        }
    }
}

impl FromStr for IdHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 {
            return text.parse().map(Self::Digest);
        }
        u64::from_str_radix(text, 16).map(Self::Short).map_err(|_| "a hash is 16 or 32 hexadecimal digits")
    }
}

impl Serialize for IdHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunIdPart {
    pub(super) id: IdHash,
    pub(super) run: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EventPart {
    pub(super) id: IdHash,
    /// Its place among the events of its run, from 1.
    pub(super) order: u64,
    /// The message that answered it.
    pub(super) message: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UnitPart {
    pub(super) created_at: Micros,
    pub(super) run: Option<u64>,
    pub(super) next_run: u64,
    pub(super) next_message: u64,
    pub(super) watermark: Option<Micros>,
    pub(super) bounds: (Option<Micros>, Option<Micros>),
    pub(super) inherited: Option<Micros>,
    pub(super) connector_version: Option<String>,
}

impl UnitPart {
    pub(super) fn of(row: &UnitRow) -> Self {
        Self {
            created_at: row.created_at,
            run: row.run,
            next_run: row.next_run,
            next_message: row.next_message,
            watermark: row.watermark,
            bounds: row.bounds,
            inherited: row.inherited,
            connector_version: row.connector_version.clone(),
        }
    }

    pub(super) fn row(&self, no: u64) -> UnitRow {
        UnitRow {
            no,
            created_at: self.created_at,
            run: self.run,
            next_run: self.next_run,
            next_message: self.next_message,
            watermark: self.watermark,
            bounds: self.bounds,
            holder: (None, None),
            inherited: self.inherited,
            connector_version: self.connector_version.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StatusPart {
    Open,
    Finished,
    Abandoned,
}

impl StatusPart {
    fn of(status: RunStatus) -> Self {
        match status {
            RunStatus::Open => Self::Open,
            RunStatus::Finished => Self::Finished,
            RunStatus::Abandoned => Self::Abandoned,
        }
    }

    fn row(self) -> RunStatus {
        match self {
            Self::Open => RunStatus::Open,
            Self::Finished => RunStatus::Finished,
            Self::Abandoned => RunStatus::Abandoned,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WindowPart {
    pub(super) from: Option<Micros>,
    pub(super) to: Micros,
}

impl WindowPart {
    fn of(row: WindowRow) -> Self {
        Self { from: row.from, to: row.to }
    }

    pub(super) fn row(self) -> WindowRow {
        WindowRow { from: self.from, to: self.to }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NotBeforePart {
    pub(super) at: Micros,
    pub(super) asked_seconds: u64,
}

/// A run, except what its position holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunPart {
    pub(super) no: u64,
    pub(super) id: String,
    pub(super) status: StatusPart,
    pub(super) started_at: Micros,
    pub(super) ended_at: Option<Micros>,
    pub(super) since: Option<Micros>,
    pub(super) since_ignored: Option<Micros>,
    pub(super) window: Option<WindowPart>,
    pub(super) epoch: u64,
    pub(super) lost: bool,
    pub(super) phase: Option<Phase>,
    pub(super) done: Phases,
    pub(super) not_before: Option<NotBeforePart>,
    /// Number of events accepted, which is the place of the newest.
    pub(super) events: u64,
    pub(super) events_reused: u64,
    pub(super) first_message: u64,
    pub(super) artifacts_max: Option<u64>,
}

impl RunPart {
    pub(super) fn of(no: u64, row: &RunRow) -> Self {
        Self {
            no,
            id: row.id.clone(),
            status: StatusPart::of(row.status),
            started_at: row.started_at,
            ended_at: row.ended_at,
            since: row.since,
            since_ignored: row.since_ignored,
            window: row.window.map(WindowPart::of),
            epoch: row.epoch,
            lost: row.lost,
            phase: row.phase,
            done: row.done,
            not_before: row
                .not_before
                .map(|NotBefore { at, asked_seconds }| NotBeforePart { at, asked_seconds }),
            events: row.events,
            events_reused: row.events_reused,
            first_message: row.first_message,
            artifacts_max: row.artifacts_max,
        }
    }

    /// The row of a run at a position, with its newest event, the message that answers it and the number of open
    /// batches.
    pub(super) fn row(
        &self,
        position: &Position,
        event: Option<u64>,
        message: Option<u64>,
        open_batches: u64,
    ) -> RunRow {
        RunRow {
            id: self.id.clone(),
            status: self.status.row(),
            started_at: self.started_at,
            ended_at: self.ended_at,
            since: self.since,
            since_ignored: self.since_ignored,
            window: self.window.map(WindowPart::row),
            epoch: self.epoch,
            lost: self.lost,
            phase: self.phase,
            done: self.done,
            pages: position.pages,
            next_seq: position.next_seq.max(1),
            next_chunk: 1,
            open_batches,
            not_before: self
                .not_before
                .as_ref()
                .map(|part| NotBefore { at: part.at, asked_seconds: part.asked_seconds }),
            progress: position.progress,
            events: self.events,
            event,
            events_reused: self.events_reused,
            first_message: self.first_message,
            message,
            artifacts_max: self.artifacts_max,
            activity: Activity::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LedgerPart {
    pub(super) run: u64,
    pub(super) id: String,
    pub(super) status: StatusPart,
    pub(super) started_at: Micros,
    pub(super) ended_at: Micros,
    pub(super) since: Option<Micros>,
    pub(super) watermark: Option<Micros>,
    pub(super) epochs: u64,
    pub(super) pages: u64,
    pub(super) events: u64,
    pub(super) events_reused: u64,
    pub(super) errors: u64,
    pub(super) warnings: u64,
    pub(super) types: Vec<LedgerTypePart>,
    pub(super) attachments: CountsPart,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LedgerTypePart {
    pub(super) item_type: String,
    pub(super) read: u64,
    /// Records that were left out.
    pub(super) skipped: u64,
    pub(super) announced: u64,
    pub(super) artifacts: u64,
    /// Bytes of the artifacts; 0 if they are not known.
    #[serde(default)]
    pub(super) bytes: u64,
}

impl LedgerPart {
    pub(super) fn of(run: u64, row: LedgerRow) -> Self {
        let of_type = |(row, bytes): (LedgerType, u64)| LedgerTypePart {
            item_type: row.item_type,
            read: row.read,
            skipped: row.left_out,
            announced: row.announced,
            artifacts: row.artifacts,
            bytes,
        };
        let bytes = row.bytes.into_iter().chain(std::iter::repeat(0));
        Self {
            run,
            id: row.id,
            status: StatusPart::of(row.status),
            started_at: row.started_at,
            ended_at: row.ended_at,
            since: row.since,
            watermark: row.watermark,
            epochs: row.epochs,
            pages: row.pages,
            events: row.events,
            events_reused: row.events_reused,
            errors: row.errors,
            warnings: row.warnings,
            types: row.types.into_iter().zip(bytes).map(of_type).collect(),
            attachments: CountsPart::of(row.attachments),
        }
    }

    pub(super) fn row(&self) -> LedgerRow {
        let row_of = |part: &LedgerTypePart| LedgerType {
            item_type: part.item_type.clone(),
            read: part.read,
            left_out: part.skipped,
            announced: part.announced,
            artifacts: part.artifacts,
        };
        LedgerRow {
            id: self.id.clone(),
            status: self.status.row(),
            started_at: self.started_at,
            ended_at: self.ended_at,
            since: self.since,
            watermark: self.watermark,
            epochs: self.epochs,
            pages: self.pages,
            events: self.events,
            events_reused: self.events_reused,
            errors: self.errors,
            warnings: self.warnings,
            types: self.types.iter().map(row_of).collect(),
            attachments: self.attachments.row(),
            deaths: 0,
            bytes: self.types.iter().map(|part| part.bytes).collect(),
        }
    }

    /// Its approximate size in bytes.
    pub(super) fn bytes(&self) -> usize {
        let types: usize = self.types.iter().map(|part| part.item_type.len() + 60).sum();
        300 + self.id.len() + types
    }

    /// Leaves out the counts by item type: they are for people only.
    pub(super) fn without_types(self) -> Self {
        Self { types: Vec::new(), ..self }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountsPart {
    pub(super) queued: u64,
    pub(super) settled: u64,
    pub(super) failed: u64,
}

impl CountsPart {
    fn of(row: LedgerAttachments) -> Self {
        Self { queued: row.queued, settled: row.settled, failed: row.failed }
    }

    fn row(self) -> LedgerAttachments {
        LedgerAttachments { queued: self.queued, settled: self.settled, failed: self.failed }
    }
}

/// Records and artifacts of an item type that are announced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AnnouncedPart {
    pub(super) records: u64,
    pub(super) artifacts: u64,
    /// Bytes of the artifacts.
    #[serde(default)]
    pub(super) bytes: u64,
}

/// A batch that is uploaded and not announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ArtifactPart {
    pub(super) seq: u64,
    pub(super) item_type: String,
    pub(super) stream: String,
    pub(super) epoch: u64,
    pub(super) items: u32,
    pub(super) line_bytes: u64,
    pub(super) gzip_bytes: u64,
    pub(super) dates: DatesPart,
    pub(super) artifact: Option<String>,
    pub(super) given_up: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DatesPart {
    pub(super) created: Option<(Micros, Micros)>,
    pub(super) modified: Option<(Micros, Micros)>,
}

impl ArtifactPart {
    /// Leaves out the cursor after it, which the position holds.
    pub(super) fn of(seq: u64, row: BatchRow) -> Self {
        Self {
            seq,
            item_type: row.item_type,
            stream: row.stream,
            epoch: row.epoch,
            items: row.items,
            line_bytes: row.line_bytes,
            gzip_bytes: row.gzip_bytes,
            dates: DatesPart { created: row.dates.created, modified: row.dates.modified },
            artifact: row.artifact,
            given_up: row.given_up,
        }
    }

    /// The batch is uploaded, and a saved checkpoint names it; whether its confirm was tried is unknown.
    pub(super) fn row(&self) -> BatchRow {
        let mut row = BatchRow {
            item_type: self.item_type.clone(),
            stream: self.stream.clone(),
            epoch: self.epoch,
            items: self.items,
            line_bytes: self.line_bytes,
            gzip_bytes: self.gzip_bytes,
            dates: Dates { created: self.dates.created, modified: self.dates.modified },
            cursor_after: None,
            state: BatchState::Staged,
            artifact: self.artifact.clone(),
            uploaded_in: 0,
            given_up: self.given_up,
            saved: false,
        };
        let held = Held { given_up: self.given_up > 0, saved: true, in_doubt: true };
        row.set_transfer_state(State::Uploaded(held), 0);
        row
    }
}

/// An artifact with the metadata of attachments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePart {
    pub(super) seq: u64,
    pub(super) artifact: Option<String>,
    pub(super) first: u64,
    pub(super) items: u32,
}

impl FilePart {
    pub(super) fn of(seq: u64, row: FileRow) -> Self {
        Self { seq, artifact: row.artifact, first: row.first, items: row.items }
    }

    pub(super) fn row(&self) -> FileRow {
        FileRow { artifact: self.artifact.clone(), first: self.first, items: self.items, loaded: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KindPart {
    Done,
    Progress,
    Delay,
    Error,
}

impl KindPart {
    pub(super) fn of(kind: MessageKind) -> Self {
        match kind {
            MessageKind::Done => Self::Done,
            MessageKind::Progress => Self::Progress,
            MessageKind::Delay => Self::Delay,
            MessageKind::Error => Self::Error,
        }
    }

    pub(super) fn row(self) -> MessageKind {
        match self {
            Self::Done => MessageKind::Done,
            Self::Progress => MessageKind::Progress,
            Self::Delay => MessageKind::Delay,
            Self::Error => MessageKind::Error,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FatePart {
    Sealed,
    Delivered { times: u32 },
    Proven,
}

impl FatePart {
    pub(super) fn of(fate: MessageFate) -> Self {
        match fate {
            MessageFate::Sealed => Self::Sealed,
            MessageFate::Delivered { times } => Self::Delivered { times },
            MessageFate::Proven => Self::Proven,
        }
    }

    pub(super) fn row(self) -> MessageFate {
        match self {
            Self::Sealed => MessageFate::Sealed,
            Self::Delivered { times } => MessageFate::Delivered { times },
            Self::Proven => MessageFate::Proven,
        }
    }
}

/// The message that answers the newest event. Once its acceptance is known, only that there was one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MessagePart {
    pub(super) no: u64,
    pub(super) phase: Phase,
    pub(super) kind: KindPart,
    pub(super) event_type: String,
    pub(super) fate: FatePart,
    pub(super) sealed_at: Micros,
    pub(super) finishes: bool,
    pub(super) key: String,
    pub(super) body: String,
    /// The batches that it announces, in the order in which its body names their artifacts.
    pub(super) batches: Vec<u64>,
}

/// A point between pages.
///
/// Version 1 wrote it in the same way, so a field that was added since is left out while it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(super) pages: u64,
    pub(super) next_seq: u64,
    pub(super) progress: Option<u8>,
    pub(super) streams: BTreeMap<String, StreamPart>,
    /// By item type: records read, batches closed, and records that were read and left out.
    pub(super) types: BTreeMap<String, (u64, u64, u64)>,
    pub(super) values: BTreeMap<String, String>,
    /// Findings in the records up to there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) findings: Vec<FindingPart>,
    #[serde(default, skip_serializing_if = "QueuePart::is_empty")]
    pub(super) queue: QueuePart,
    /// The records that the run rejected up to there, and the outcome of those that it asked for again.
    #[serde(default, skip_serializing_if = "RejectedPart::is_empty")]
    pub(super) rejected: RejectedPart,
    /// Records that the run announces once, and has staged up to there.
    #[serde(default, skip_serializing_if = "OncePart::is_empty")]
    pub(super) once: OncePart,
    /// Records at the edge that the run has staged up to there, or left out as unchanged.
    #[serde(default, skip_serializing_if = "EdgePart::is_empty")]
    pub(super) edge: EdgePart,
    /// Child listings that are pending, and counts of all by stream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) children: Vec<ChildPart>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) child_streams: BTreeMap<String, ChildStreamPart>,
}

/// A child listing that is pending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChildPart {
    pub(super) no: u64,
    /// The number of the first child listing that the same page named.
    pub(super) named_with: u64,
    pub(super) stream: String,
    pub(super) parent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<String>,
    /// The stream that it belongs to, or the number of another child listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) under_stream: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) under: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<String>,
}

impl ChildPart {
    pub(super) fn of(no: u64, row: ChildRow) -> Self {
        let (under_stream, under) = match row.under {
            UnderRow::Nothing => (None, None),
            UnderRow::Stream(stream) => (Some(stream), None),
            UnderRow::Child(no) => (None, Some(no)),
        };
        let data = Some(row.data).filter(|data| data != NO_DATA);
        Self {
            no,
            named_with: row.named_with,
            stream: row.stream,
            parent: row.parent,
            data,
            under_stream,
            under,
            cursor: row.cursor,
        }
    }

    pub(super) fn row(&self) -> ChildRow {
        let under = match (&self.under_stream, self.under) {
            (Some(stream), _) => UnderRow::Stream(stream.clone()),
            (None, Some(no)) => UnderRow::Child(no),
            (None, None) => UnderRow::Nothing,
        };
        ChildRow {
            stream: self.stream.clone(),
            parent: self.parent.clone(),
            data: self.data.clone().unwrap_or_else(|| NO_DATA.to_owned()),
            named_with: self.named_with,
            under,
            cursor: self.cursor.clone(),
        }
    }
}

/// The JSON of a child listing that keeps no data.
const NO_DATA: &str = "null";

/// The counts of all child listings of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChildStreamPart {
    pub(super) named: u64,
    pub(super) exhausted: u64,
    pub(super) pages: u64,
    pub(super) items: u64,
}

impl ChildStreamPart {
    pub(super) fn of(row: &ChildStreamRow) -> Self {
        Self { named: row.named, exhausted: row.exhausted, pages: row.pages, items: row.items }
    }

    /// Without the bytes of the pending ones.
    pub(super) fn row(&self) -> ChildStreamRow {
        ChildStreamRow {
            named: self.named,
            exhausted: self.exhausted,
            pages: self.pages,
            items: self.items,
            pending_bytes: 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamPart {
    pub(super) phase: Phase,
    pub(super) cursor: Option<String>,
    pub(super) exhausted: bool,
    pub(super) pages: u64,
    pub(super) items: u64,
    pub(super) bookmark: Option<String>,
}

impl StreamPart {
    pub(super) fn of(row: StreamRow) -> Self {
        Self {
            phase: row.phase,
            cursor: row.cursor,
            exhausted: row.exhausted,
            pages: row.pages,
            items: row.items,
            bookmark: row.bookmark,
        }
    }

    pub(super) fn row(&self) -> StreamRow {
        StreamRow {
            phase: self.phase,
            cursor: self.cursor.clone(),
            exhausted: self.exhausted,
            pages: self.pages,
            items: self.items,
            bookmark: self.bookmark.clone(),
            pace: Pace::default(),
        }
    }
}

/// What is known of attachments at a position.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct QueuePart {
    pub(in crate::store) queue: QueueCountsPart,
    pub(in crate::store) unsettled: Vec<UnsettledPart>,
    /// Runs and numbers of attachments that are given up or queued again.
    pub(in crate::store) failed: Vec<(u64, u64, FailedPart)>,
    pub(in crate::store) requeued: Vec<(u64, u64, FailedPart)>,
}

/// Number, artifact id, ids given up, tries, when the next is due; and the line, if no artifact of ours holds it.
pub(in crate::store) type UnsettledPart = (u64, Option<String>, u32, u32, Option<Micros>, Option<String>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct QueueCountsPart {
    pub(super) counts: CountsPart,
    pub(in crate::store) position: u64,
    pub(super) requeued: u64,
    pub(super) lines: u64,
    pub(super) rebuild: bool,
}

impl QueueCountsPart {
    pub(in crate::store) fn of(row: &QueueRow) -> Self {
        Self {
            counts: CountsPart::of(row.counts),
            position: row.position,
            requeued: row.requeued,
            lines: row.lines,
            rebuild: row.rebuild,
        }
    }

    /// The queue as it is restored: its lines are still to be loaded.
    pub(in crate::store) fn row(&self) -> QueueRow {
        QueueRow {
            counts: self.counts.row(),
            position: self.position,
            requeued: self.requeued,
            lines: self.lines,
            rebuild: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct FailedPart {
    pub(super) json: String,
    pub(super) reason: String,
    pub(super) tries: u32,
    pub(super) failed_at: Micros,
}

impl FailedPart {
    pub(in crate::store) fn of(row: FailedRow) -> Self {
        Self { json: row.json, reason: row.reason, tries: row.tries, failed_at: row.failed_at }
    }

    pub(in crate::store) fn row(&self) -> FailedRow {
        FailedRow {
            json: self.json.clone(),
            reason: self.reason.clone(),
            tries: self.tries,
            failed_at: self.failed_at,
        }
    }
}

impl Position {
    /// The JSON text of a position without its attachments.
    pub(in crate::store) fn without_attachments(json: &str) -> serde_json::Result<String> {
        let mut position: Self = serde_json::from_slice(json.as_bytes())?;
        position.queue = QueuePart::default();
        serde_json::to_string(&position)
    }
}

impl QueuePart {
    pub(in crate::store) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an attachment that is not settled here still needs a file of lines.
    pub(in crate::store) fn needs(&self, file: &FileRow) -> bool {
        let end = file.first.saturating_add(u64::from(file.items));
        // How many lines an inherited file has is not known before it is loaded.
        file.items == 0
            || end > self.queue.position
            || self.unsettled.iter().any(|(number, ..)| (file.first..end).contains(number))
    }
}
