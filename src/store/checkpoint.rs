//! The portable form of a sync unit's state: all that a worker without a disk keeps.
//!
//! A checkpoint has structs of its own (`form`), so that rows may change without it. It can read what earlier
//! versions saved (`version_1`). It has two parts. The *position* is the end of a page: streams with their
//! cursors, counts, values. All batches up to there are uploaded. It is taken only when no batch is open or merely
//! staged, and kept in the store as it was saved. The other part describes *now*: the run, its events, the sealed
//! message, and the batches that are uploaded but not announced, as far as the position covers them. So a checkpoint
//! that is saved between two positions names no artifact that its cursors would extract again.
//!
//! A restored batch has no bytes, and whether its confirm was tried is unknown.
//!
//! A *holder token* names the one live holder of the unit. A disk is used only if it knows the platform's token: as
//! the one that it found there, or as the one that it was about to write. Otherwise the disk is stale and is
//! discarded.

mod children;
pub(super) mod digests;
pub(super) mod form;
mod restore;
mod room;
mod version_1;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::model::{CONNECTOR_STATE_VALUE, Safeguard};

use super::attachments::rebuild::{failed_part, files_needed, queue_part};
use super::attachments::settle::attachments_saved;
use super::batches::states::batches_saved;
use super::digest::{Digest, KnownId};
use super::edge::{self, EdgePart};
use super::findings::findings_part;
use super::kept::KeptPart;
use super::lifecycle::{Deletion, PAST_MAX, get_or_create, new_unit};
use super::most_read;
use super::notes::Standing;
use super::once::{self, OncePart};
use super::open::SyncUnit;
use super::rejected::{self, RejectedPart};
use super::rows::{
    BATCHES, BOOKMARKS, BatchState, CHUNKS, EVENTS, Json, Key, LEDGER, MESSAGES, PAST, POSITIONS, RUN_IDS,
    RUNS, STREAMS, TYPES, UNITS, VALUES, message_key, name_of, number_of, run_key,
};
use super::run_handle::Run;
use super::tables::{Change, Rows};
use super::used_ids;

use children::children_part;
use form::{
    AnnouncedPart, ArtifactPart, Envelope, EventPart, FatePart, FilePart, IdHash, KindPart, LedgerPart,
    MessagePart, RunIdPart, RunPart, StatusPart, StreamPart, UnitPart, UsedPart, WindowPart, damaged,
};
pub(crate) use form::{CHECKPOINT_KEY, Checkpoint, Position};
pub(crate) use room::Room;

/// The most events of a run, and runs of a unit, that a checkpoint names.
const EVENTS_MAX: usize = 256;
const RUNS_MAX: usize = 64;
/// The most ledger rows that a checkpoint keeps, and their bytes. If they are over it, older rows lose their counts
/// by item type.
const LEDGER_MAX: u64 = 8;
const LEDGER_BYTES_MAX: usize = 20_000;

impl Checkpoint {
    /// The JSON text in the worker state.
    ///
    /// # Errors
    /// `Corrupt` if it cannot be written; that is a bug in this crate.
    pub(crate) fn to_json(&self, sync_unit: &str) -> Result<String> {
        let fault =
            |reason: String| Error::Corrupt { what: format!("the checkpoint of {sync_unit}"), reason };
        let envelope = Envelope::seal(self).map_err(fault)?;
        serde_json::to_string(&envelope).map_err(|error| fault(error.to_string()))
    }

    /// Reads the JSON text of a checkpoint of any version so far.
    ///
    /// # Errors
    /// `WorkerState` if it is damaged, or of a newer version.
    pub(crate) fn from_json(json: &str, sync_unit: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Form {
            version: u64,
        }
        let damaged = |reason: String| damaged(sync_unit, reason);
        let said = |error: serde_json::Error| damaged(error.to_string());
        let Form { version } = serde_json::from_slice(json.as_bytes()).map_err(said)?;
        match version {
            1 => version_1::read(json).map_err(damaged),
            form::VERSION => {
                let envelope: Envelope = serde_json::from_slice(json.as_bytes()).map_err(said)?;
                envelope.open().map_err(damaged)
            }
            _ => Err(damaged(format!(
                "it has version {version}, newer than {}, the newest that this version of highwater reads: upgrade",
                form::VERSION
            ))),
        }
    }

    /// The body of the sealed message, if there is one that may still have to be sent.
    pub(crate) fn sealed_body(&self) -> Option<&str> {
        let message = self.message.as_ref().filter(|message| message.fate == FatePart::Sealed)?;
        Some(&message.body)
    }

    /// The state of the unit, for an operator.
    pub(crate) fn standing(&self) -> Standing {
        let open = self.run.as_ref().filter(|run| run.status == StatusPart::Open);
        Standing {
            watermark: self.unit.watermark,
            bounds: self.unit.bounds,
            connector_version: self.unit.connector_version.clone(),
            open: open.map(|run| (run.started_at, run.window.map(WindowPart::row))),
        }
    }

    /// The connector's own keys of the worker state, if the extractor sets them: a JSON object.
    pub(crate) fn connector_state(&self) -> Option<&str> {
        self.position.values.get(CONNECTOR_STATE_VALUE).map(String::as_str)
    }

    /// Adds an event that asked for a deletion.
    pub(crate) fn after(mut self, deletion: &Deletion) -> Self {
        let digest = IdHash::Digest(Digest::of(&deletion.identity));
        if deletion.told_apart && !self.deletions.contains(&digest) {
            self.deletions.push(digest);
            self.deletions.drain(..self.deletions.len().saturating_sub(PAST_MAX));
        }
        self
    }

    /// Whether it holds nothing of the unit but what outlived its deletion.
    pub(crate) fn has_no_run(&self) -> bool {
        self.run.is_none()
    }

    /// The epoch of the run when it was saved.
    pub(crate) fn epoch(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.epoch)
    }
}

/// The artifacts of a run, as a checkpoint lists them.
#[derive(Debug, Default)]
struct Artifacts {
    /// Uploaded at the position, and not announced.
    unannounced: Vec<ArtifactPart>,
    /// The batches that the sealed message announces.
    sealed: Vec<u64>,
    /// The ids under which it announces them.
    announced_ids: Vec<String>,
}

/// What a disk knows about who holds its unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holder {
    /// The token that was last found on the platform, and the one that was then to be written there.
    pub(crate) tokens: (Option<String>, Option<String>),
    /// The epoch of the unit's newest run.
    pub(crate) epoch: u64,
}

impl SyncUnit {
    pub(crate) fn breaks(&self, rule: Safeguard) -> bool {
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
            let mut unit = get_or_create(self, change)?;
            unit.holder = (found.map(str::to_owned), Some(intended.to_owned()));
            change.put(&UNITS, &self.key(), &unit)
        })
    }

    /// Forgets what is stored of the unit, because the platform knows nothing of it: this disk is stale.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
    pub(crate) fn forget_stale(&self) -> Result<()> {
        self.inner.tables.change(|change| self.discard(change))
    }

    /// The checkpoint of a unit without a run: what outlives a deletion of its state, including this deletion.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub(crate) fn checkpoint_without_run(&self, token: &str, deletion: &Deletion) -> Result<Checkpoint> {
        Ok(self.checkpoint_of_unit(token)?.after(deletion))
    }

    /// The checkpoint of a unit without a run: what outlives a deletion of its state.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub(crate) fn checkpoint_of_unit(&self, token: &str) -> Result<Checkpoint> {
        let past = self.inner.tables.view(|rows| self.past_with_runs(rows))?;
        let hashes = |ids: &[KnownId]| ids.iter().map(|id| IdHash::of(id, 0)).collect();
        Ok(Checkpoint {
            token: token.to_owned(),
            unit: UnitPart::of(&new_unit(0, self.now())),
            run: None,
            run_ids: Vec::new(),
            events: Vec::new(),
            bookmarks: BTreeMap::new(),
            ledger: Vec::new(),
            position: Position::default(),
            announced: BTreeMap::new(),
            artifacts: Vec::new(),
            files: Vec::new(),
            message: None,
            used: UsedPart::default(),
            most_read: BTreeMap::new(),
            rejected: RejectedPart::default(),
            once: OncePart::default(),
            edge: EdgePart::default(),
            past_runs: hashes(&past.run_ids),
            deletions: hashes(&past.deletions),
            kept: self.inner.tables.view(|rows| KeptPart::of(rows, self.id.as_str(), None))?,
        })
    }
}

impl Run {
    /// The position of the run, if it is between pages: no batch is open and everything is uploaded.
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
            if !between && !self.breaks(Safeguard::CutAtPages) {
                return Ok(None);
            }
            let row = rows.need(&RUNS, &prefix)?;
            let mut position = Position {
                pages: row.pages,
                next_seq: row.next_seq,
                progress: row.progress,
                values: self.values(rows)?,
                findings: findings_part(self, rows)?,
                queue: queue_part(self, rows)?,
                rejected: rejected::part_of_run(rows, &prefix)?,
                once: once::part_of_run(rows, &prefix)?,
                edge: edge::part_of_run(rows, &prefix)?,
                ..Position::default()
            };
            for (name, stream) in rows.all(&STREAMS, &prefix)? {
                position.streams.insert(self.name(&name)?, StreamPart::of(stream));
            }
            children_part(self, rows, &mut position)?;
            for (name, counts) in rows.all(&TYPES, &prefix)? {
                position.types.insert(self.name(&name)?, (counts.read, counts.batches, counts.left_out));
            }
            Ok(Some(position))
        })
    }

    /// The current checkpoint: at `position`, or without one at the position of the last saved one. `room_bytes`: the
    /// limit on what it contains about announced records, in addition to everything else.
    pub(crate) fn checkpoint(
        &self,
        token: &str,
        position: Option<&Position>,
        room_bytes: u64,
    ) -> Result<Checkpoint> {
        self.inner.tables.view(|rows| {
            let prefix = self.run_key();
            let unit = rows.need(&UNITS, &Key::name(self.unit.as_str()))?;
            let run = rows.need(&RUNS, &prefix)?;
            let mut position = match position {
                Some(position) => position.clone(),
                None => self.saved_position(rows)?,
            };
            if self.breaks(Safeguard::KnownAtPosition) {
                position.once = once::part_of_run(rows, &prefix)?;
                position.edge = edge::part_of_run(rows, &prefix)?;
            }
            position.once.fit(room_bytes / 2);
            position.edge.fit(room_bytes / 4);
            let ledger = self.ledger_parts(rows)?;
            let over: Vec<u64> = ledger.iter().map(|part| part.run).collect();
            let mut edge = edge::part_of_unit(rows, self.unit_no, &over)?;
            edge.fit(room_bytes / 4);
            let Artifacts { unannounced: artifacts, sealed, announced_ids } =
                self.artifact_parts(rows, position.next_seq)?;
            let mut bookmarks = BTreeMap::new();
            for (name, row) in rows.all(&BOOKMARKS, &Key::unit(self.unit_no))? {
                bookmarks.insert(self.name(&name)?, row.json);
            }
            let mut announced = BTreeMap::new();
            for (name, counts) in rows.all(&TYPES, &prefix)? {
                let part = AnnouncedPart {
                    records: counts.announced,
                    artifacts: counts.artifacts_announced,
                    bytes: counts.announced_bytes,
                };
                announced.insert(self.name(&name)?, part);
            }
            let files = files_needed(self, rows, &position.queue, position.next_seq)?;
            let batches = artifacts.iter().filter_map(|part| part.artifact.as_deref());
            let attachments = position.queue.unsettled.iter().filter_map(|part| part.1.as_deref());
            let announced_ids = announced_ids.iter().map(String::as_str);
            let used =
                UsedPart(used_ids::newest(rows, &prefix, announced_ids.chain(batches).chain(attachments))?);
            let past = rows.get(&PAST, &Key::name(self.unit.as_str()))?.unwrap_or_default();
            let hashes = |ids: &[KnownId]| ids.iter().map(|id| IdHash::of(id, 0)).collect();
            Ok(Checkpoint {
                token: token.to_owned(),
                unit: UnitPart::of(&unit),
                run: Some(RunPart::of(self.no, &run)),
                run_ids: self.run_id_parts(rows)?,
                events: self.event_parts(rows)?,
                bookmarks,
                ledger,
                position,
                announced,
                artifacts,
                files: files.into_iter().map(|(seq, file)| FilePart::of(seq, file)).collect(),
                message: run.message.map(|no| self.message_part(rows, no, sealed)).transpose()?,
                used,
                most_read: most_read::part(rows, self.unit_no)?,
                rejected: rejected::part_of_unit(rows, self.unit_no, &over)?,
                once: once::part_of_unit(rows, self.unit_no, &over)?,
                edge,
                past_runs: hashes(&past.run_ids),
                deletions: hashes(&past.deletions),
                kept: KeptPart::of(rows, self.unit.as_str(), Some(self.unit_no))?,
            })
        })
    }

    fn event_parts(&self, rows: &impl Rows) -> Result<Vec<EventPart>> {
        let mut events = Vec::new();
        for (tail, row) in rows.all(&EVENTS, &self.run_key())? {
            let id = IdHash::of(&row.identity, self.number(&tail)?);
            events.push(EventPart { id, order: row.order, message: row.message });
        }
        events.sort_unstable_by_key(|part| std::cmp::Reverse(part.order));
        events.truncate(EVENTS_MAX);
        Ok(events)
    }

    fn run_id_parts(&self, rows: &impl Rows) -> Result<Vec<RunIdPart>> {
        let mut run_ids = Vec::new();
        for (tail, row) in rows.all(&RUN_IDS, &Key::unit(self.unit_no))? {
            run_ids.push(RunIdPart { id: IdHash::of(&row.id, self.number(&tail)?), run: row.run });
        }
        run_ids.sort_unstable_by_key(|part| std::cmp::Reverse(part.run));
        run_ids.truncate(RUNS_MAX);
        Ok(run_ids)
    }

    /// The newest rows of the ledger, the oldest first.
    fn ledger_parts(&self, rows: &impl Rows) -> Result<Vec<LedgerPart>> {
        let mut ledger = Vec::new();
        let newest = run_key(self.unit_no, self.no.saturating_sub(LEDGER_MAX));
        rows.scan(&LEDGER, &Key::unit(self.unit_no), &newest, |tail, row| {
            ledger.push(LedgerPart::of(self.number(tail)?, row));
            Ok(true)
        })?;
        let mut bytes = 0;
        let newest_first = ledger.into_iter().rev().map(|part| {
            bytes += part.bytes();
            if bytes > LEDGER_BYTES_MAX { part.without_types() } else { part }
        });
        let mut ledger: Vec<_> = newest_first.collect();
        ledger.reverse();
        Ok(ledger)
    }

    fn artifact_parts(&self, rows: &impl Rows, next_seq: u64) -> Result<Artifacts> {
        let mut artifacts = Artifacts::default();
        for (tail, batch) in rows.all(&BATCHES, &self.run_key())? {
            let seq = self.number(&tail)?;
            match batch.state {
                // A batch that is staged again before the position is one that the platform refused to confirm; it
                // was uploaded.
                BatchState::Staged | BatchState::Uploaded | BatchState::Confirmed if seq < next_seq => {
                    artifacts.unannounced.push(ArtifactPart::of(seq, batch));
                }
                BatchState::Announced(_) => {
                    artifacts.sealed.push(seq);
                    artifacts.announced_ids.extend(batch.artifact);
                }
                _ => {}
            }
        }
        Ok(artifacts)
    }

    /// Records that a checkpoint at its own position was saved: the batches that it names may be confirmed.
    ///
    /// # Durability
    /// When this returns `Ok`, the next checkpoint is at this position or a later one, also after power loss.
    pub(crate) fn saved(&self, checkpoint: &Checkpoint) -> Result<()> {
        let json = serde_json::to_string(&checkpoint.position)
            .map_err(|error| self.unreadable(error.to_string()))?;
        self.change(|change, row| {
            batches_saved(self, change, row)?;
            attachments_saved(self, change)?;
            self.forget_old_events(change)?;
            used_ids::keep_newest(change, &self.run_key(), &checkpoint.used.0)?;
            change.put(&POSITIONS, &self.run_key(), &Json(json))
        })
    }

    /// Forgets the events that a checkpoint does not hold, because this disk does not need them either.
    ///
    /// A lookup of an event goes on to the next number while there is a row. So a row is kept if others may follow
    /// it. Rows never move: the rows of the run and of its messages hold their numbers.
    fn forget_old_events(&self, change: &Change<'_>) -> Result<()> {
        let mut events = Vec::new();
        for (tail, event) in change.all(&EVENTS, &self.run_key())? {
            events.push((self.number(&tail)?, event.order));
        }
        let mut orders: Vec<u64> = events.iter().map(|(_, order)| *order).collect();
        orders.sort_unstable_by(|one, other| other.cmp(one));
        let Some(&oldest) = orders.get(EVENTS_MAX - 1) else { return Ok(()) };
        for (number, order) in events.into_iter().rev() {
            let key = |number| self.run_key().and_number(number);
            if order < oldest && change.get(&EVENTS, &key(number.wrapping_add(1)))?.is_none() {
                change.remove(&EVENTS, &key(number))?;
            }
        }
        Ok(())
    }

    /// Whether the extractor sets the connector's own keys of the worker state.
    pub(crate) fn has_connector_state(&self) -> Result<bool> {
        let key = Key::unit(self.unit_no).and_name(CONNECTOR_STATE_VALUE);
        self.inner.tables.view(|rows| Ok(rows.get(&VALUES, &key)?.is_some()))
    }

    /// Whether no checkpoint of the run has been saved yet.
    pub(crate) fn has_no_position(&self) -> Result<bool> {
        self.inner.tables.view(|rows| Ok(rows.get(&POSITIONS, &self.run_key())?.is_none()))
    }

    fn saved_position(&self, rows: &impl Rows) -> Result<Position> {
        match rows.get(&POSITIONS, &self.run_key())? {
            Some(Json(json)) => {
                serde_json::from_slice(json.as_bytes()).map_err(|error| self.unreadable(error.to_string()))
            }
            // A run that is over, or of which nothing has been saved yet.
            None => Ok(Position {
                next_seq: 1,
                values: self.values(rows)?,
                queue: failed_part(self, rows)?,
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
        let fate = FatePart::of(row.fate);
        let sealed = fate == FatePart::Sealed;
        Ok(MessagePart {
            no,
            phase: row.phase,
            kind: KindPart::of(row.kind),
            event_type: row.event_type,
            fate,
            sealed_at: row.sealed_at,
            finishes: row.finishes,
            key: row.key,
            body: if sealed { String::from_utf8_lossy(&row.body).into_owned() } else { String::new() },
            batches: if sealed { batches } else { Vec::new() },
        })
    }

    fn name(&self, tail: &[u8]) -> Result<String> {
        name_of(tail).map(str::to_owned).map_err(|error| self.unreadable(error.to_string()))
    }

    fn number(&self, tail: &[u8]) -> Result<u64> {
        number_of(tail).map_err(|error| self.unreadable(error.to_string()))
    }

    fn unreadable(&self, reason: String) -> Error {
        Error::Corrupt { what: format!("what is stored of run {} of {}", self.id, self.unit), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conversation::tests::seal_a_batch;
    use super::super::conversation::{Accepted, Incoming};
    use super::super::digest::name_hash;
    use super::*;
    use crate::clock::VirtualClock;
    use crate::model::{Phase, RunId, Step};
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
        run.checkpoint("the token", Some(&position), u64::MAX).unwrap()
    }

    fn json(checkpoint: &Checkpoint) -> serde_json::Value {
        serde_json::to_value(checkpoint).unwrap()
    }

    #[test]
    fn a_checkpoint_is_written_as_ever_and_read_back() {
        let checkpoint = checkpoint();
        assert_eq!(serde_json::to_string(&checkpoint).unwrap(), GOLDEN);
        let written = checkpoint.to_json("acme/tickets").unwrap();
        assert_eq!(Checkpoint::from_json(&written, "acme/tickets").unwrap(), checkpoint);
        // The compressor decides the bytes of the body; that we read them is ours to test. This one has a run id of
        // 64 bits, and no list of used artifact ids.
        let mut saved = Checkpoint::from_json(GOLDEN_SAVED, "acme/tickets").unwrap();
        assert_eq!(saved.run_ids[0].id, IdHash::Short(0xce76_c6e1_d1fc_c200));
        saved.run_ids.clone_from(&checkpoint.run_ids);
        saved.used.clone_from(&checkpoint.used);
        assert_eq!(saved, checkpoint);
    }

    #[test]
    fn records_that_do_not_add_up_are_told_by_their_counts() {
        let mut changed = json(&checkpoint());
        // One is uploaded.
        changed["announced"]["issues"] = serde_json::json!({ "records": 3, "artifacts": 1 });
        changed["position"]["types"]["issues"][0] = 9.into();
        let changed = serde_json::from_value::<Checkpoint>(changed).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state.redb")).unwrap();
        let error = store.sync_unit("acme/tickets").unwrap().restore(&changed, &[]).unwrap_err().to_string();
        let says = "of 9 issues read, 0 were left out, 3 are announced and 1 uploaded";
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn one_byte_that_was_changed_is_found_wherever_it_is() {
        let written = checkpoint().to_json("acme/tickets").unwrap();
        let whole = json(&checkpoint());
        let mut found = 0;
        for at in 0..written.len() {
            for byte in [b'0', b'x', b' ', b'"', b'\\'] {
                let mut changed = written.clone().into_bytes();
                changed[at] = byte;
                let changed = String::from_utf8(changed).unwrap();
                match Checkpoint::from_json(&changed, "acme/tickets") {
                    Ok(read) => assert_eq!(json(&read), whole, "byte {at}"),
                    Err(error) => {
                        found += 1;
                        let error = error.to_string();
                        assert!(error.contains("highwater in the worker state of acme/tickets"), "{error}");
                    }
                }
            }
        }
        assert!(found > written.len() * 3, "{found} of {} bytes", written.len());
    }

    #[test]
    fn a_newer_version_is_told_and_one_that_was_never_written_is_no_panic() {
        let written = checkpoint().to_json("acme/tickets").unwrap();
        for (version, says) in
            [("3", "newer than 2"), ("18446744073709551615", "newer than 2"), ("-1", "u64")]
        {
            let other = written.replacen("\"version\":2", &format!("\"version\":{version}"), 1);
            let error = Checkpoint::from_json(&other, "acme/tickets").unwrap_err();
            assert!(matches!(error, Error::WorkerState { .. }), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    /// Every row that is found by an id, through a checkpoint and back.
    #[test]
    fn ids_whose_64_bit_hashes_are_one_are_two_after_a_checkpoint_and_hashes_of_64_bits_still_restore() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            |name: &str| Store::open(dir.path().join(name)).unwrap().sync_unit("acme/tickets").unwrap();
        // The id of one run has the same hash as the other's; so do the identities of two events.
        let [one, other] = ["cgacponhdmlhpbcg", "ihganlcdfnnmgpck"];
        let event = |identity: &str, run: &str| Incoming {
            identity: identity.to_owned(),
            has_ids: true,
            run_id: Some(RunId::new(run).unwrap()),
            phase: Phase::Data,
            step: Step::Start,
        };
        let unit = open("a.redb");
        let Accepted::Work(_) = unit.accept(&event("1", one), false, None).unwrap() else {
            panic!("no work")
        };
        let Accepted::Work(run) = unit.accept(&event(one, "second"), false, None).unwrap() else {
            panic!("no work")
        };
        let whole = run.checkpoint("the token", None, u64::MAX).unwrap();
        let is_known = |checkpoint: &Checkpoint, name: &str| {
            let unit = open(name);
            unit.restore(checkpoint, &[]).unwrap();
            // The same event again is resumed; another event with its hash is a new one.
            let event = |identity: &str| event(identity, "second");
            let events = |unit: &SyncUnit| {
                let run = unit.newest_run().unwrap().unwrap();
                unit.inner.tables.view(|rows| Ok(rows.all(&EVENTS, &run.run_key())?.len())).unwrap()
            };
            unit.accept(&event(one), false, None).unwrap();
            assert_eq!(events(&unit), 1);
            let late = |run: &str| {
                let run_id = Some(RunId::new(run).unwrap());
                unit.came_late(&Deletion { identity: String::new(), told_apart: false, run_id }).unwrap()
            };
            let runs = (late(one), late(other));
            unit.accept(&event(other), false, None).unwrap();
            // What was restored by its hash, and is complete now, is named again.
            let run = unit.newest_run().unwrap().unwrap();
            let again = run.checkpoint("the token", None, u64::MAX).unwrap();
            for part in &checkpoint.run_ids {
                let id = again.run_ids.iter().find(|again| again.run == part.run).unwrap().id;
                assert!(id == part.id || id == IdHash::of(&checkpoint.known_run_id(part), 0));
            }
            (runs, events(&unit))
        };
        assert_eq!(is_known(&whole, "b.redb"), ((true, false), 2));
        // If only the hash of a past run was kept, the two runs cannot be distinguished. An event cannot either,
        // until it is named again.
        let mut short = whole;
        for id in short.run_ids.iter_mut().map(|part| &mut part.id) {
            *id =
                IdHash::Short(name_hash(if *id == IdHash::Digest(Digest::of(one)) { one } else { "second" }));
        }
        short.events.iter_mut().for_each(|part| part.id = IdHash::Short(name_hash(one)));
        // The ledger has the id of one, and the current run has its own.
        assert_eq!(is_known(&short, "c.redb"), ((true, false), 2));
        short.ledger.clear();
        assert_eq!(is_known(&short, "d.redb"), ((true, true), 2));
        // An entry of the ledger that belongs to another run is not used.
        let mut other_id = short.clone();
        other_id.run.as_mut().unwrap().id = "third".to_owned();
        assert!(short.run_ids.iter().all(|part| matches!(other_id.known_run_id(part), KnownId::Short(_))));
    }

    /// A lookup finds the row of a twin only while the rows before it are there.
    #[test]
    fn an_old_event_is_kept_while_one_with_its_hash_stands_behind_it() {
        let store = Store::options().open_in(crate::store::backend::memory::Memory::new(), "memory").unwrap();
        let unit = store.sync_unit("acme/tickets").unwrap();
        let event = |identity: &str| Incoming {
            identity: identity.to_owned(),
            has_ids: true,
            run_id: Some(RunId::new("run").unwrap()),
            phase: Phase::Data,
            step: if identity == "0" { Step::Start } else { Step::Continue },
        };
        let [one, other] = ["cgacponhdmlhpbcg", "ihganlcdfnnmgpck"];
        let accept = |identity: &str| match unit.accept(&event(identity), false, None) {
            Ok(Accepted::Work(run)) => run,
            other => panic!("{identity}: {other:?}"),
        };
        for identity in ["0", one, other] {
            accept(identity);
        }
        let number = name_hash(one);
        let stand = |run: &Run| {
            let at = |number| {
                let key = run.run_key().and_number(number);
                unit.inner.tables.view(|rows| Ok(rows.get(&EVENTS, &key)?.is_some())).unwrap()
            };
            (at(name_hash("0")), at(number), at(number + 1))
        };
        let save = |run: &Run| run.saved(&run.checkpoint("the token", None, u64::MAX).unwrap()).unwrap();
        // So many that the other of the two is the oldest that is kept.
        let mut run = None;
        for at in 0..EVENTS_MAX - 1 {
            run = Some(accept(&format!("event {at}")));
        }
        let run = run.unwrap();
        assert_eq!(stand(&run), (true, true, true));
        save(&run);
        assert_eq!(stand(&run), (false, true, true));
        // Delivered again, it is recognised as one that newer events have followed.
        for identity in [one, other] {
            let again = unit.accept(&event(identity), false, None);
            assert!(matches!(again, Err(Error::StaleEvent { .. })), "{identity}: {again:?}");
        }
        // One more event, and both are forgotten.
        let run = accept("the last");
        save(&run);
        assert_eq!(stand(&run), (false, false, false));
        let events = unit.inner.tables.view(|rows| Ok(rows.all(&EVENTS, &run.run_key())?.len()));
        assert_eq!(events.unwrap(), EVENTS_MAX);
    }

    /// External sync units are announced unconfirmed, without a checkpoint between upload and message.
    #[test]
    fn an_artifact_id_that_is_announced_at_once_is_named_too() {
        let dir = tempfile::tempdir().unwrap();
        let unit = Store::open(dir.path().join("state.redb")).unwrap().sync_unit("acme/tickets").unwrap();
        let start = Incoming {
            identity: "1".to_owned(),
            has_ids: true,
            run_id: Some(RunId::new("run").unwrap()),
            phase: Phase::ExternalSyncUnits,
            step: Step::Start,
        };
        let Accepted::Work(run) = unit.accept(&start, false, None).unwrap() else { panic!("no work") };
        seal_a_batch(&run, Phase::ExternalSyncUnits);
        let position = run.position().unwrap();
        let named = run.checkpoint("the token", position.as_ref(), u64::MAX).unwrap().used;
        assert_eq!(named, checkpoint().used);
        assert_eq!(named.0.len(), 1);
    }

    #[test]
    fn version_1_is_read_and_a_value_of_it_that_was_changed_is_found() {
        let read = Checkpoint::from_json(VERSION_1, "acme/tickets").unwrap();
        // What this version would have saved, except for the position's place in the run and its longer hashes.
        assert_eq!(
            read,
            Checkpoint::from_json(&read.to_json("acme/tickets").unwrap(), "acme/tickets").unwrap()
        );
        let expected = checkpoint();
        assert_eq!(read.used, UsedPart::default());
        assert_eq!((read.unit, read.run, read.bookmarks), (expected.unit, expected.run, expected.bookmarks));
        assert_eq!((read.position, read.artifacts), (expected.position, expected.artifacts));
        // Another program may have written it back with another order and spacing.
        let value: serde_json::Value = serde_json::from_str(VERSION_1).unwrap();
        let members: serde_json::Map<_, _> = value.as_object().unwrap().clone().into_iter().rev().collect();
        let reordered = serde_json::to_string_pretty(&members).unwrap();
        assert!(Checkpoint::from_json(&reordered, "acme/tickets").is_ok());
        // A program that reads numbers as doubles rounds its hashes.
        let (hash, _) = VERSION_1.split_once("\"run_ids\":[[").unwrap().1.split_once(',').unwrap();
        let rounded = VERSION_1.replace(hash, &format!("{}000", &hash[..hash.len() - 3]));
        for changed in [rounded, VERSION_1.replace("\"items\":1", "\"items\":2")] {
            let error = Checkpoint::from_json(&changed, "acme/tickets").unwrap_err().to_string();
            assert!(error.contains("acme/tickets") && error.contains("somebody else changed it"), "{error}");
        }
    }

    /// The content of the body.
    const GOLDEN: &str = concat!(
        r#"{"token":"the token","unit":{"created_at":1750000000000000,"run":1,"next_run":2,"next_message":1,"wa"#,
        r#"termark":null,"bounds":[null,null],"inherited":null,"connector_version":null},"run":{"no":1,"id":"20"#,
        r#"250615T150640.000000Z","status":"open","started_at":1750000000000000,"ended_at":null,"since":null,"s"#,
        r#"ince_ignored":null,"window":null,"epoch":1,"lost":false,"phase":null,"done":0,"not_before":null,"eve"#,
        r#"nts":0,"events_reused":0,"first_message":1,"artifacts_max":null},"run_ids":[{"id":"8a3273e996df2960"#,
        r#"fa123288c6ff7d9d","run":1}],"events":[],"bookmarks":{},"ledger":[],"position":{"pages":1,"next_seq":2,"progress":null"#,
        r#","streams":{"issues":{"phase":"data","cursor":null,"exhausted":true,"pages":1,"items":1,"bookmark":""#,
        r#"7"}},"types":{"issues":[1,1,0]},"values":{"seen":"[1,2]"}},"announced":{"issues":{"records":0,"artif"#,
        r#"acts":0,"bytes":0}},"artifacts":[{"seq":1,"item_type":"issues","stream":"","epoch":1,"items":1,"line_bytes":40"#,
        r#","gzip_bytes":63,"dates":{"created":null,"modified":null},"artifact":"artifact-1","given_up":0}],"me"#,
        r#"ssage":null,"used":"7r101w=="}"#,
    );

    /// The same as a checkpoint, with a run id of 64 bits and without artifact ids as it was before, compressed by
    /// another program.
    const GOLDEN_SAVED: &str = concat!(
        r#"{"version":2,"checksum":"e55747649a2cfb70481f719a3e770f3e","body":"H4sIAAAAAAACA3VTy46jMBD8lVWf2RWwk"#,
        r#"0TKd+xpImQ5pgErYDN+JJlF+fdt27xy2BySLpquqn5kAqdvqOAMrsMfKc7AK+ngPIEwyB3WjBMqTod8/8nAeKorMlD4dCyCcgYDW"#,
        r#"stbjNkHMZiBmxucle/7DK7aq9rC+RJh+KoykKpDI0lreUtopVA4bdgdjZVapcRrlp1A6UgvqQLKvDzkx+Lwp6Cfj/xXcvhJnVjHn"#,
        r#"Scx0GPsjLD5f0eo6jmXTFipBL4BJlulzWbzIVWtHwvCUYsu2uq1JZaG9xYzGDtuV5paK4pJTGnHrtgQ21p+R+VsTKaQGfQ2iNGTR"#,
        r#"hr7PlnqRDZc0GsDf+7Hw2Sc75SGI/B0FEcs6qIRosxzWDb3qjbJSxUWo29hUQQnIuqxbtGk1KitdHEJE4ykb7fFW/yKix+Nbg25W"#,
        r#"8fl6HiGwAXSWo8xmicBNXecfAhvrDZr+8+OextvwBkf5rYq0WUMKVpMEskJXmTTfY/4pnIpsiLLK0rdeT/rWow3TqmyilVcKTpDE"#,
        r#"bT2/gwKbeq0gnW8hGLJhi+B8Wt1xoIHop95lt7pCexvYmuilwrZ9dsF0Q+Sav/KccHH31kYT/Iz/wGXCQ26lo1c8M4TSS3hz4JEW"#,
        r#"0l7ZX4M1ml969XEsn9rkGYu9AMAAA=="}"#,
    );

    /// As version 0.1.0 saved it.
    const VERSION_1: &str = concat!(
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
