//! The portable form of a sync unit's state: what a worker without a disk lives by.
//!
//! A checkpoint is one JSON document. It has two parts. The *position* stands at the end of a page all of whose
//! batches, and all before it, are uploaded: streams with their cursors, counts, values. It is taken only when
//! nothing is open or merely staged, and kept in the store as it was saved. The rest is as of *now*: the run, its
//! events, what is uploaded but not announced (of what the position names, and nothing else), the sealed message. So
//! a checkpoint saved between two positions names no artifact that the cursors in it would extract again.
//!
//! A restored batch has no bytes, and nobody knows whether a confirm of it was tried.
//!
//! A *holder token* names the one live holder of the unit. A disk is used only if it knows the platform's token: as
//! the one that it found there, or as the one that it was about to write. Otherwise it is a stale one, and discarded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Micros, Phase, Rule};

use super::SyncUnit;
use super::attachments::{QueuePart, restore_queue};
use super::batches::BatchInfo;
use super::codec;
use super::findings::FindingPart;
use super::notes::Standing;
use super::rows::{
    BATCHES, BOOKMARKS, BatchRow, BatchState, BookmarkRow, CHUNKS, EVENTS, EventRow, FINDINGS, FileRow, Json,
    Key, LEDGER, LedgerRow, MESSAGES, MessageFate, MessageKind, MessageRow, POSITIONS, RUN_IDS, RUNS,
    RunIdRow, RunRow, RunStatus, STREAMS, StreamRow, TYPES, TypeRow, UNITS, UnitRow, VALUES, name_of,
    number_of,
};
use super::run::{Run, message_key, run_key};
use super::tables::{Change, Rows, Tables};

/// The newest form that this version writes and reads.
const VERSION: u32 = 1;
/// Events of a run, runs of a unit, and ledger rows that a checkpoint names.
const EVENTS_MAX: usize = 256;
const RUNS_MAX: usize = 64;
const LEDGER_MAX: u64 = 8;

/// A checkpoint, as it is saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    version: u32,
    /// CRC-32 of the whole as this version writes it, with 0 in this place. Who reads the worker state and writes it again may change spaces
    /// and order, but no value.
    crc: u32,
    /// Names the holder that saved it.
    pub(crate) token: String,
    unit: UnitRow,
    run: Option<(u64, RunRow)>,
    /// Hashes of run ids, with the numbers of the runs.
    run_ids: Vec<(u64, u64)>,
    /// Hashes of events, with their order and the message that answered each.
    events: Vec<(u64, u64, Option<u64>)>,
    bookmarks: BTreeMap<String, String>,
    ledger: Vec<(u64, LedgerRow)>,
    position: Position,
    /// By item type: records and artifacts that are announced.
    announced: BTreeMap<String, (u64, u64)>,
    /// What is uploaded and not announced, by seq.
    artifacts: Vec<(u64, BatchRow)>,
    /// Artifacts from which the queue of attachments can be made again, by seq.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<(u64, FileRow)>,
    message: Option<MessagePart>,
}

/// A point between pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pages: u64,
    next_seq: u64,
    progress: Option<u8>,
    streams: BTreeMap<String, StreamRow>,
    /// By item type: records read, batches closed, and of the read ones those that nobody wants.
    types: BTreeMap<String, (u64, u64, u64)>,
    values: BTreeMap<String, String>,
    /// What was found in the records up to there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    findings: Vec<FindingPart>,
    #[serde(default, skip_serializing_if = "QueuePart::is_empty")]
    queue: QueuePart,
}

/// The newest message; once its acceptance is known, only that its event is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MessagePart {
    no: u64,
    event: u64,
    phase: Phase,
    kind: MessageKind,
    event_type: String,
    fate: MessageFate,
    sealed_at: Micros,
    finishes: bool,
    key: String,
    body: String,
    /// The batches that it announces, in the order in which its body names their artifacts.
    batches: Vec<u64>,
}

impl Checkpoint {
    /// Reads what was saved.
    pub(crate) fn from_json(json: &str, sync_unit: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let what = || format!("the checkpoint of {sync_unit}");
        let damaged = |error: serde_json::Error| Error::Corrupt { what: what(), reason: error.to_string() };
        let Form { version } = serde_json::from_str(json).map_err(damaged)?;
        if version > VERSION {
            return Err(Error::NewerFormat { what: what(), found: version, supported: VERSION });
        }
        let mut checkpoint: Self = serde_json::from_str(json).map_err(damaged)?;
        let says = std::mem::take(&mut checkpoint.crc);
        checkpoint.seal().map_err(damaged)?;
        let found = checkpoint.crc;
        if says != found {
            let reason =
                format!("its checksum is {found:08x}, expected {says:08x}: it was changed by somebody else");
            return Err(Error::Corrupt { what: what(), reason });
        }
        Ok(checkpoint)
    }

    /// Sets the checksum, which is 0 until then.
    fn seal(&mut self) -> serde_json::Result<()> {
        self.crc = codec::checksum(&serde_json::to_vec(self)?);
        Ok(())
    }

    /// The body of the sealed message, if there is one that may have to be sent.
    pub(crate) fn sealed_body(&self) -> Option<&str> {
        let message = self.message.as_ref().filter(|message| message.fate == MessageFate::Sealed)?;
        Some(&message.body)
    }

    /// How the unit stands.
    pub(crate) fn standing(&self) -> Standing {
        Standing::of(&self.unit, self.run.as_ref().map(|(_, run)| run))
    }

    /// The life of the run that saved it.
    pub(crate) fn epoch(&self) -> u64 {
        self.run.as_ref().map_or(0, |(_, run)| run.epoch)
    }
}

/// What a disk knows of who holds its unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holder {
    /// The token found on the platform last, and the one that was then to be written there.
    pub(crate) tokens: (Option<String>, Option<String>),
    /// The life of the unit's newest run.
    pub(crate) epoch: u64,
}

impl SyncUnit {
    pub(crate) fn breaks(&self, rule: Rule) -> bool {
        self.inner.breaks(rule)
    }

    pub(crate) fn holder(&self) -> Result<Holder> {
        self.inner.tables.view(|rows| {
            let Some(unit) = rows.get(&UNITS, &self.key())? else { return Ok(Holder::default()) };
            let epoch = match unit.run {
                Some(run) => rows.need(&RUNS, &run_key(unit.no, run))?.epoch,
                None => 0,
            };
            Ok(Holder { tokens: unit.holder, epoch })
        })
    }

    /// Stores the token that is about to be written to the platform, beside the one that was found there.
    ///
    /// # Durability
    /// When this returns `Ok`, this disk is known to be current if either token is found.
    pub(crate) fn intend(&self, found: Option<&str>, intended: &str) -> Result<()> {
        self.inner.tables.change(|change| {
            let mut unit = self.get_or_create(change)?;
            unit.holder = (found.map(str::to_owned), Some(intended.to_owned()));
            change.put(&UNITS, &self.key(), &unit)
        })
    }

    /// Puts a checkpoint in place of whatever is stored of the unit. `sealed` is what its sealed message names, in the
    /// message's order.
    ///
    /// # Errors
    /// `Corrupt` if the checkpoint does not make sense in itself; then nothing of the unit is stored.
    #[allow(clippy::too_many_lines, reason = "one transaction, table by table")]
    pub(crate) fn restore(&self, checkpoint: &Checkpoint, sealed: &[(BatchInfo, String)]) -> Result<()> {
        self.delete()?;
        let damaged =
            |reason: String| Error::Corrupt { what: format!("the checkpoint of {}", self.id()), reason };
        self.inner.tables.change(|change| {
            let no = Tables::new_unit_no(change)?;
            for (hash, run) in &checkpoint.run_ids {
                change.put(&RUN_IDS, &Key::unit(no).and_number(*hash), &RunIdRow { run: *run, id: None })?;
            }
            for (stream, json) in &checkpoint.bookmarks {
                let row = BookmarkRow { json: json.clone(), run: 0 };
                change.put(&BOOKMARKS, &Key::unit(no).and_name(stream), &row)?;
            }
            for (key, json) in &checkpoint.position.values {
                change.put(&VALUES, &Key::unit(no).and_name(key), &Json(json.clone()))?;
            }
            for (run, row) in &checkpoint.ledger {
                change.put(&LEDGER, &run_key(no, *run), row)?;
            }
            change.put(&UNITS, &self.key(), &UnitRow { no, ..checkpoint.unit.clone() })?;
            let Some((run_no, run)) = &checkpoint.run else { return Ok(()) };
            let position = &checkpoint.position;
            let prefix = run_key(no, *run_no);
            let mut row = RunRow {
                pages: position.pages,
                next_seq: position.next_seq.max(1),
                next_chunk: 1,
                progress: position.progress,
                open_batches: checkpoint.artifacts.len() as u64,
                message: None,
                ..run.clone()
            };
            for (hash, order, message) in &checkpoint.events {
                let event =
                    EventRow { identity: None, order: *order, accepted_at: Micros(0), message: *message };
                change.put(&EVENTS, &prefix.clone().and_number(*hash), &event)?;
            }
            for (name, stream) in &position.streams {
                change.put(&STREAMS, &prefix.clone().and_name(name), stream)?;
            }
            for part in &position.findings {
                change.put(&FINDINGS, &part.kind.key(&prefix), &part.row())?;
            }
            let mut uploaded: BTreeMap<&str, u64> = BTreeMap::new();
            for (seq, batch) in &checkpoint.artifacts {
                *uploaded.entry(&batch.item_type).or_default() += u64::from(batch.items);
                change.put(&BATCHES, &prefix.clone().and_number(*seq), batch)?;
            }
            for (name, (read, batches, skipped)) in &position.types {
                let (announced, artifacts_announced) =
                    checkpoint.announced.get(name).copied().unwrap_or_default();
                let unannounced = uploaded.remove(name.as_str()).unwrap_or(0);
                if *read != announced + unannounced + skipped {
                    return Err(damaged(format!(
                        "of {read} {name} read, {skipped} were skipped, {announced} are announced and {unannounced} uploaded"
                    )));
                }
                let counts = TypeRow {
                    read: *read,
                    skipped: *skipped,
                    batched: announced + unannounced,
                    confirmed: announced,
                    announced,
                    batches: *batches,
                    artifacts_announced,
                    ..TypeRow::default()
                };
                change.put(&TYPES, &prefix.clone().and_name(name), &counts)?;
            }
            if let Some((name, _)) = uploaded.first_key_value() {
                return Err(damaged(format!("it names artifacts of {name}, of which nothing was read")));
            }
            if let Some(message) = &checkpoint.message {
                row.message = (run.event == Some(message.event)).then_some(message.no);
                if sealed.len() != message.batches.len() {
                    return Err(damaged("its message names other artifacts than it says".to_owned()));
                }
                for (seq, (info, artifact)) in message.batches.iter().zip(sealed) {
                    let batch = BatchRow {
                        item_type: info.item_type.clone(),
                        stream: String::new(),
                        epoch: row.epoch,
                        items: info.items,
                        line_bytes: 0,
                        gzip_bytes: 0,
                        dates: info.dates,
                        cursor_after: None,
                        state: BatchState::Announced(message.no),
                        artifact: Some(artifact.clone()),
                        uploaded_in: 0,
                        given_up: 0,
                        saved: true,
                    };
                    change.put(&BATCHES, &prefix.clone().and_number(*seq), &batch)?;
                }
                let stored = MessageRow {
                    run: *run_no,
                    phase: message.phase,
                    event: message.event,
                    kind: message.kind,
                    event_type: message.event_type.clone(),
                    fate: message.fate,
                    sealed_at: message.sealed_at,
                    artifacts: message.batches.len() as u64,
                    finishes: message.finishes,
                    key: message.key.clone(),
                    body: message.body.clone().into_bytes(),
                };
                change.put(&MESSAGES, &message_key(no, message.no), &stored)?;
            }
            let is_open = row.status == RunStatus::Open;
            restore_queue(change, no, *run_no, is_open, &position.queue, &checkpoint.files)?;
            change.put(&RUNS, &prefix, &row)?;
            let json = serde_json::to_string(position).map_err(|error| damaged(error.to_string()))?;
            change.put(&POSITIONS, &prefix, &Json(json))
        })
    }
}

/// Takes what is known of attachments out of the positions of a unit's checkpoints.
pub(super) fn forget_attachments(change: &Change<'_>, unit: &Key) -> Result<()> {
    for (tail, Json(json)) in change.all(&POSITIONS, unit)? {
        let damaged = |reason: String| change.tables().damaged(POSITIONS.name, unit, reason);
        let mut position: Position =
            serde_json::from_str(&json).map_err(|error| damaged(error.to_string()))?;
        position.queue = QueuePart::default();
        let run = number_of(&tail).map_err(|error| damaged(error.to_string()))?;
        let json = serde_json::to_string(&position).map_err(|error| damaged(error.to_string()))?;
        change.put(&POSITIONS, &unit.clone().and_number(run), &Json(json))?;
    }
    Ok(())
}

impl Run {
    /// Where the run stands, if that is between pages: nothing is open and everything is uploaded.
    pub(crate) fn position(&self) -> Result<Option<Position>> {
        self.inner.tables.view(|rows| {
            let prefix = self.run_key();
            let mut between = true;
            rows.scan(&CHUNKS, &prefix, &prefix, |_, _| {
                between = false;
                Ok(false)
            })?;
            rows.scan(&BATCHES, &prefix, &prefix, |_, batch| {
                between &= batch.state != BatchState::Staged;
                Ok(between)
            })?;
            if !between && !self.breaks(Rule::CutAtPages) {
                return Ok(None);
            }
            let row = rows.need(&RUNS, &prefix)?;
            let mut position = Position {
                pages: row.pages,
                next_seq: row.next_seq,
                progress: row.progress,
                values: self.values(rows)?,
                findings: self.findings_part(rows)?,
                queue: self.queue_part(rows)?,
                ..Position::default()
            };
            for (name, stream) in rows.all(&STREAMS, &prefix)? {
                position.streams.insert(self.name(&name)?, stream);
            }
            for (name, counts) in rows.all(&TYPES, &prefix)? {
                position.types.insert(self.name(&name)?, (counts.read, counts.batches, counts.skipped));
            }
            Ok(Some(position))
        })
    }

    /// The checkpoint of now. With a position it stands there, without one where the last saved one stood.
    pub(crate) fn checkpoint(&self, token: &str, position: Option<&Position>) -> Result<Checkpoint> {
        self.inner.tables.view(|rows| {
            let prefix = self.run_key();
            let unit_prefix = Key::unit(self.unit_no);
            let unit = rows.need(&UNITS, &Key::name(self.unit.as_str()))?;
            let run = rows.need(&RUNS, &prefix)?;
            let mut events = Vec::new();
            for (tail, event) in rows.all(&EVENTS, &prefix)? {
                events.push((self.number(&tail)?, event.order, event.message));
            }
            events.sort_unstable_by_key(|(_, order, _)| std::cmp::Reverse(*order));
            events.truncate(EVENTS_MAX);
            let mut run_ids = Vec::new();
            for (tail, row) in rows.all(&RUN_IDS, &unit_prefix)? {
                run_ids.push((self.number(&tail)?, row.run));
            }
            run_ids.sort_unstable_by_key(|(_, run)| std::cmp::Reverse(*run));
            run_ids.truncate(RUNS_MAX);
            let mut bookmarks = BTreeMap::new();
            for (name, row) in rows.all(&BOOKMARKS, &unit_prefix)? {
                bookmarks.insert(self.name(&name)?, row.json);
            }
            let mut ledger = Vec::new();
            let newest = run_key(self.unit_no, self.no.saturating_sub(LEDGER_MAX));
            rows.scan(&LEDGER, &unit_prefix, &newest, |tail, row| {
                ledger.push((self.number(tail)?, row));
                Ok(true)
            })?;
            let position = match position {
                Some(position) => position.clone(),
                None => self.saved_position(rows)?,
            };
            let mut announced = BTreeMap::new();
            for (name, counts) in rows.all(&TYPES, &prefix)? {
                announced.insert(self.name(&name)?, (counts.announced, counts.artifacts_announced));
            }
            let mut artifacts = Vec::new();
            let mut sealed = Vec::new();
            for (tail, batch) in rows.all(&BATCHES, &prefix)? {
                let seq = self.number(&tail)?;
                // Staged behind the position is what the platform would not confirm: it was uploaded all the same.
                match batch.state {
                    BatchState::Staged | BatchState::Uploaded | BatchState::Confirmed
                        if seq < position.next_seq =>
                    {
                        let state = BatchState::Uploaded;
                        artifacts.push((seq, BatchRow { state, uploaded_in: 0, saved: true, ..batch }));
                    }
                    BatchState::Announced(_) => sealed.push(seq),
                    _ => {}
                }
            }
            let files = self.files_needed(rows, &position.queue, position.next_seq)?;
            let message = run.message.map(|no| self.message_part(rows, no, sealed)).transpose()?;
            let mut checkpoint = Checkpoint {
                version: VERSION,
                crc: 0,
                token: token.to_owned(),
                unit: UnitRow { holder: (None, None), ..unit },
                run: Some((self.no, run)),
                run_ids,
                events,
                bookmarks,
                ledger,
                position,
                announced,
                artifacts,
                files,
                message,
            };
            checkpoint.seal().map_err(|error| self.odd(error.to_string()))?;
            Ok(checkpoint)
        })
    }

    /// Records that a checkpoint with this position was saved: what it names may be confirmed.
    ///
    /// # Durability
    /// When this returns `Ok`, the next checkpoint stands there or further on, also after power loss.
    pub(crate) fn saved(&self, position: &Position) -> Result<()> {
        let json = serde_json::to_string(position).map_err(|error| self.odd(error.to_string()))?;
        self.change(|change, _| {
            for (seq, batch) in self.batches_in(change, BatchState::Uploaded)? {
                if !batch.saved {
                    change.put(&BATCHES, &self.batch_key(seq), &BatchRow { saved: true, ..batch })?;
                }
            }
            self.attachments_saved(change)?;
            // Of older events a checkpoint tells nothing, so this disk need not either.
            let mut events = change.all(&EVENTS, &self.run_key())?;
            events.sort_unstable_by_key(|(_, event)| std::cmp::Reverse(event.order));
            for (tail, _) in events.iter().skip(EVENTS_MAX) {
                change.remove(&EVENTS, &self.run_key().and_number(self.number(tail)?))?;
            }
            change.put(&POSITIONS, &self.run_key(), &Json(json))
        })
    }

    /// Whether no checkpoint of the run was saved yet.
    pub(crate) fn has_no_position(&self) -> Result<bool> {
        self.inner.tables.view(|rows| Ok(rows.get(&POSITIONS, &self.run_key())?.is_none()))
    }

    fn saved_position(&self, rows: &impl Rows) -> Result<Position> {
        match rows.get(&POSITIONS, &self.run_key())? {
            Some(Json(json)) => serde_json::from_str(&json).map_err(|error| self.odd(error.to_string())),
            // A run that is over, or of which nothing was saved yet.
            None => Ok(Position {
                next_seq: 1,
                values: self.values(rows)?,
                queue: self.failed_part(rows)?,
                ..Position::default()
            }),
        }
    }

    fn values(&self, rows: &impl Rows) -> Result<BTreeMap<String, String>> {
        rows.all(&VALUES, &Key::unit(self.unit_no))?
            .into_iter()
            .map(|(key, Json(json))| Ok((self.name(&key)?, json)))
            .collect()
    }

    fn message_part(&self, rows: &impl Rows, no: u64, batches: Vec<u64>) -> Result<MessagePart> {
        let row = rows.need(&MESSAGES, &message_key(self.unit_no, no))?;
        let sealed = row.fate == MessageFate::Sealed;
        Ok(MessagePart {
            no,
            event: row.event,
            phase: row.phase,
            kind: row.kind,
            event_type: row.event_type,
            fate: row.fate,
            sealed_at: row.sealed_at,
            finishes: row.finishes,
            key: row.key,
            body: if sealed { String::from_utf8_lossy(&row.body).into_owned() } else { String::new() },
            batches: if sealed { batches } else { Vec::new() },
        })
    }

    fn name(&self, tail: &[u8]) -> Result<String> {
        name_of(tail).map(str::to_owned).map_err(|error| self.odd(error.to_string()))
    }

    fn number(&self, tail: &[u8]) -> Result<u64> {
        number_of(tail).map_err(|error| self.odd(error.to_string()))
    }

    fn odd(&self, reason: String) -> Error {
        Error::Corrupt { what: format!("what is stored of run {} of {}", self.id, self.unit), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::VirtualClock;
    use crate::record::Record;
    use crate::store::{Page, Store};

    /// A checkpoint that stands after the one page of a run.
    fn checkpoint() -> Checkpoint {
        let dir = tempfile::tempdir().unwrap();
        let clock = VirtualClock::at(chrono::DateTime::from_timestamp(1_750_000_000, 0).unwrap());
        let level = crate::artifact::Level::new(0).unwrap();
        let store = Store::options().clock(clock).level(level).open(dir.path().join("state.redb")).unwrap();
        let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
        let page = |_: Option<u32>| -> Result<Page<u32>> {
            let issue = Record::new("I-1", &serde_json::json!({ "title": "a crash" }))?;
            Ok(Page::last().record("issues", issue).bookmark(&7).value("seen", &[1, 2]))
        };
        for batch in run.batches("issues", page) {
            batch.unwrap().uploaded("artifact-1").unwrap();
        }
        let position = run.position().unwrap().unwrap();
        run.checkpoint("the token", Some(&position)).unwrap()
    }

    fn text(checkpoint: &Checkpoint) -> String {
        serde_json::to_string(checkpoint).unwrap()
    }

    #[test]
    fn a_checkpoint_is_written_as_ever_and_read_back() {
        let written = text(&checkpoint());
        assert_eq!(written, GOLDEN);
        // Who writes the worker state again may order and space it otherwise.
        let value: serde_json::Value = serde_json::from_str(&written).unwrap();
        let members: serde_json::Map<_, _> = value.as_object().unwrap().clone().into_iter().rev().collect();
        for json in [written.clone(), serde_json::to_string_pretty(&members).unwrap()] {
            assert_eq!(text(&Checkpoint::from_json(&json, "acme/tickets").unwrap()), written);
        }
    }

    #[test]
    fn any_byte_changed_or_cut_is_an_error_and_never_another_checkpoint() {
        for at in 0..GOLDEN.len() {
            assert!(Checkpoint::from_json(&GOLDEN[..at], "acme/tickets").is_err(), "cut at {at}");
            for bit in [1, 2, 8] {
                let mut bytes = GOLDEN.as_bytes().to_vec();
                bytes[at] ^= bit;
                let Ok(changed) = String::from_utf8(bytes) else { continue };
                if let Ok(read) = Checkpoint::from_json(&changed, "acme/tickets") {
                    assert_eq!(text(&read), GOLDEN, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn a_number_that_was_rounded_and_a_newer_form_are_told() {
        let (hash, _) = GOLDEN.split_once("\"run_ids\":[[").unwrap().1.split_once(',').unwrap();
        let rounded = GOLDEN.replace(hash, &format!("{}000", &hash[..hash.len() - 3]));
        let error = Checkpoint::from_json(&rounded, "acme/tickets").unwrap_err().to_string();
        assert!(error.contains("acme/tickets"), "{error}");
        let newer = GOLDEN.replacen("\"version\":1", "\"version\":2", 1);
        let error = Checkpoint::from_json(&newer, "acme/tickets").unwrap_err();
        assert!(matches!(error, Error::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    }

    const GOLDEN: &str = concat!(
        r#"{"version":1,"crc":3846999088,"token":"the token","unit":{"no":1,"created_at":1750000000000000,"#,
        r#""run":1,"next_run":2,"next_message":1,"watermark":null,"#,
        r#""bounds":[null,null],"holder":[null,null],"inherited":null,"connector_version":null},"#,
        r#""run":[1,{"id":"20250615T150640.000000Z","status":"Open","started_at":1750000000000000,"ended_at":null,"#,
        r#""since":null,"since_ignored":null,"window":null,"epoch":1,"lost":false,"#,
        r#""phase":null,"done":0,"pages":1,"next_seq":2,"next_chunk":2,"#,
        r#""open_batches":1,"not_before":null,"progress":null,"#,
        r#""events":0,"event":null,"events_reused":0,"first_message":1,"#,
        r#""message":null,"artifacts_max":null}],"run_ids":[[14877297092257956352,1]],"#,
        r#""events":[],"bookmarks":{},"ledger":[],"position":{"pages":1,"next_seq":2,"progress":null,"#,
        r#""streams":{"issues":{"phase":"data","cursor":null,"exhausted":true,"pages":1,"items":1,"bookmark":"7"}},"#,
        r#""types":{"issues":[1,1,0]},"values":{"seen":"[1,2]"}},"announced":{"issues":[0,0]},"#,
        r#""artifacts":[[1,{"item_type":"issues","#,
        r#""stream":"","epoch":1,"items":1,"line_bytes":40,"gzip_bytes":63,"dates":{"created":null,"modified":null},"#,
        r#""cursor_after":null,"#,
        r#""state":"Uploaded","artifact":"artifact-1","uploaded_in":0,"given_up":0,"saved":true}]],"#,
        r#""message":null}"#,
    );
}
