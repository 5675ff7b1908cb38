//! Checkpoints of version 1, as version 0.1.0 saved them: read, and never written.
//!
//! That version wrote its rows as JSON. Its checksum is that of the whole document, written again in the order of its
//! fields with 0 in place of the checksum. So these structs, their fields and the order of the fields never change.
//! Ids are hashed to 64 bits, as numbers: JavaScript rounded them when it wrote the document again, and the checksum
//! detects that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{Micros, Phase, Phases};

use super::super::codec;
use super::super::edge::EdgePart;
use super::super::kept::KeptPart;
use super::super::once::OncePart;
use super::super::rejected::RejectedPart;
use super::form::{
    AnnouncedPart, ArtifactPart, Checkpoint, CountsPart, DatesPart, EventPart, FatePart, FilePart, IdHash,
    KindPart, LedgerPart, LedgerTypePart, MessagePart, NotBeforePart, Position, RunIdPart, RunPart,
    StatusPart, UnitPart, UsedPart, WindowPart,
};

#[derive(Debug, Serialize, Deserialize)]
struct Whole {
    version: u32,
    crc: u32,
    token: String,
    unit: Unit,
    run: Option<(u64, Run)>,
    run_ids: Vec<(u64, u64)>,
    events: Vec<(u64, u64, Option<u64>)>,
    bookmarks: BTreeMap<String, String>,
    ledger: Vec<(u64, Ledger)>,
    position: Position,
    announced: BTreeMap<String, (u64, u64)>,
    artifacts: Vec<(u64, StoredBatch)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<(u64, File)>,
    message: Option<Message>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Unit {
    no: u64,
    created_at: Micros,
    run: Option<u64>,
    next_run: u64,
    next_message: u64,
    watermark: Option<Micros>,
    bounds: (Option<Micros>, Option<Micros>),
    holder: (Option<String>, Option<String>),
    inherited: Option<Micros>,
    connector_version: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Status {
    Open,
    Finished,
    Abandoned,
}

#[derive(Debug, Serialize, Deserialize)]
struct Window {
    from: Option<Micros>,
    to: Micros,
}

#[derive(Debug, Serialize, Deserialize)]
struct NotBefore {
    at: Micros,
    asked_seconds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Run {
    id: String,
    status: Status,
    started_at: Micros,
    ended_at: Option<Micros>,
    since: Option<Micros>,
    since_ignored: Option<Micros>,
    window: Option<Window>,
    epoch: u64,
    lost: bool,
    phase: Option<Phase>,
    done: Phases,
    pages: u64,
    next_seq: u64,
    next_chunk: u64,
    open_batches: u64,
    not_before: Option<NotBefore>,
    progress: Option<u8>,
    events: u64,
    event: Option<u64>,
    events_reused: u64,
    first_message: u64,
    message: Option<u64>,
    artifacts_max: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ledger {
    id: String,
    status: Status,
    started_at: Micros,
    ended_at: Micros,
    since: Option<Micros>,
    watermark: Option<Micros>,
    epochs: u64,
    pages: u64,
    events: u64,
    events_reused: u64,
    errors: u64,
    warnings: u64,
    types: Vec<LedgerType>,
    attachments: CountsPart,
}

#[derive(Debug, Serialize, Deserialize)]
struct LedgerType {
    item_type: String,
    read: u64,
    skipped: u64,
    announced: u64,
    artifacts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum BatchState {
    Staged,
    Uploaded,
    Confirmed,
    Announced(u64),
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredBatch {
    item_type: String,
    stream: String,
    epoch: u64,
    items: u32,
    line_bytes: u64,
    gzip_bytes: u64,
    dates: DatesPart,
    cursor_after: Option<String>,
    state: BatchState,
    artifact: Option<String>,
    uploaded_in: u64,
    given_up: u32,
    saved: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    artifact: Option<String>,
    first: u64,
    items: u32,
    loaded: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Kind {
    Done,
    Progress,
    Delay,
    Error,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum MessageFate {
    Sealed,
    Delivered { times: u32 },
    Proven,
}

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    no: u64,
    event: u64,
    phase: Phase,
    kind: Kind,
    event_type: String,
    fate: MessageFate,
    sealed_at: Micros,
    finishes: bool,
    key: String,
    body: String,
    batches: Vec<u64>,
}

/// Reads the JSON text of a checkpoint of version 1.
pub(super) fn read(json: &str) -> Result<Checkpoint, String> {
    let mut whole: Whole = serde_json::from_slice(json.as_bytes()).map_err(|error| error.to_string())?;
    let expected = std::mem::take(&mut whole.crc);
    let found = codec::checksum(&serde_json::to_vec(&whole).map_err(|error| error.to_string())?);
    if expected != found {
        return Err(format!(
            "its checksum is {found:08x}, expected {expected:08x}: somebody else changed it"
        ));
    }
    Ok(whole.into())
}

impl From<Status> for StatusPart {
    fn from(status: Status) -> Self {
        match status {
            Status::Open => Self::Open,
            Status::Finished => Self::Finished,
            Status::Abandoned => Self::Abandoned,
        }
    }
}

impl From<Whole> for Checkpoint {
    fn from(whole: Whole) -> Self {
        let unit = UnitPart {
            created_at: whole.unit.created_at,
            run: whole.unit.run,
            next_run: whole.unit.next_run,
            next_message: whole.unit.next_message,
            watermark: whole.unit.watermark,
            bounds: whole.unit.bounds,
            inherited: whole.unit.inherited,
            connector_version: whole.unit.connector_version,
        };
        let event = whole.run.as_ref().and_then(|(_, run)| run.event);
        Self {
            token: whole.token,
            unit,
            run: whole.run.map(|(no, run)| run.into_part(no)),
            run_ids: whole
                .run_ids
                .into_iter()
                .map(|(hash, run)| RunIdPart { id: IdHash::Short(hash), run })
                .collect(),
            events: whole
                .events
                .into_iter()
                .map(|(hash, order, message)| EventPart { id: IdHash::Short(hash), order, message })
                .collect(),
            bookmarks: whole.bookmarks,
            ledger: whole.ledger.into_iter().map(|(run, row)| row.into_part(run)).collect(),
            position: whole.position,
            announced: whole
                .announced
                .into_iter()
                .map(|(name, (records, artifacts))| (name, AnnouncedPart { records, artifacts, bytes: 0 }))
                .collect(),
            artifacts: whole.artifacts.into_iter().map(|(seq, row)| row.into_part(seq)).collect(),
            files: whole.files.into_iter().map(|(seq, row)| row.into_part(seq)).collect(),
            message: whole.message.filter(|message| event == Some(message.event)).map(Message::into_part),
            used: UsedPart::default(),
            most_read: BTreeMap::new(),
            rejected: RejectedPart::default(),
            once: OncePart::default(),
            edge: EdgePart::default(),
            past_runs: Vec::new(),
            deletions: Vec::new(),
            kept: KeptPart::default(),
        }
    }
}

impl Run {
    fn into_part(self, no: u64) -> RunPart {
        RunPart {
            no,
            id: self.id,
            status: self.status.into(),
            started_at: self.started_at,
            ended_at: self.ended_at,
            since: self.since,
            since_ignored: self.since_ignored,
            window: self.window.map(|window| WindowPart { from: window.from, to: window.to }),
            epoch: self.epoch,
            lost: self.lost,
            phase: self.phase,
            done: self.done,
            not_before: self
                .not_before
                .map(|wait| NotBeforePart { at: wait.at, asked_seconds: wait.asked_seconds }),
            events: self.events,
            events_reused: self.events_reused,
            first_message: self.first_message,
            artifacts_max: self.artifacts_max,
        }
    }
}

impl Ledger {
    fn into_part(self, run: u64) -> LedgerPart {
        let of_type = |row: LedgerType| LedgerTypePart {
            item_type: row.item_type,
            read: row.read,
            skipped: row.skipped,
            announced: row.announced,
            artifacts: row.artifacts,
            bytes: 0,
        };
        LedgerPart {
            run,
            id: self.id,
            status: self.status.into(),
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
            types: self.types.into_iter().map(of_type).collect(),
            attachments: self.attachments,
        }
    }
}

impl StoredBatch {
    fn into_part(self, seq: u64) -> ArtifactPart {
        ArtifactPart {
            seq,
            item_type: self.item_type,
            stream: self.stream,
            epoch: self.epoch,
            items: self.items,
            line_bytes: self.line_bytes,
            gzip_bytes: self.gzip_bytes,
            dates: self.dates,
            artifact: self.artifact,
            given_up: self.given_up,
        }
    }
}

impl File {
    fn into_part(self, seq: u64) -> FilePart {
        FilePart { seq, artifact: self.artifact, first: self.first, items: self.items }
    }
}

impl Message {
    fn into_part(self) -> MessagePart {
        MessagePart {
            no: self.no,
            phase: self.phase,
            kind: match self.kind {
                Kind::Done => KindPart::Done,
                Kind::Progress => KindPart::Progress,
                Kind::Delay => KindPart::Delay,
                Kind::Error => KindPart::Error,
            },
            event_type: self.event_type,
            fate: match self.fate {
                MessageFate::Sealed => FatePart::Sealed,
                MessageFate::Delivered { times } => FatePart::Delivered { times },
                MessageFate::Proven => FatePart::Proven,
            },
            sealed_at: self.sealed_at,
            finishes: self.finishes,
            key: self.key,
            body: self.body,
            batches: self.batches,
        }
    }
}
