//! Restores a unit from a checkpoint.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::model::Micros;
use crate::transfer::{State, recount};

use super::super::attachments::rebuild::restore_queue;
use super::super::batches::states::BatchInfo;
use super::super::digest::KnownId;
use super::super::edge;
use super::super::once;
use super::super::open::SyncUnit;
use super::super::rejected;
use super::super::rows::{
    BATCHES, BOOKMARKS, BatchRow, BatchState, BookmarkRow, EVENTS, EventRow, FINDINGS, FileRow, Json, Key,
    LEDGER, MESSAGES, MOST_READ, MessageRow, MostReadRow, PAST, POSITIONS, PastRow, RUN_IDS, RUNS, Row,
    RunIdRow, STREAMS, TYPES, Table, TypeRow, UNITS, VALUES, message_key, run_key,
};
use super::super::tables::{Change, Rows, Tables};
use super::super::used_ids::{self, take_those_of_rows};
use super::children::restore_children;
use super::form::{AnnouncedPart, Checkpoint, IdHash, MessagePart, RunIdPart, RunPart, StatusPart, damaged};

impl Checkpoint {
    /// What is known of a run's id: the whole id, if another part of the checkpoint has it.
    pub(super) fn known_run_id(&self, part: &RunIdPart) -> KnownId {
        let newest = self.run.iter().map(|run| (run.no, &run.id));
        let over = self.ledger.iter().map(|entry| (entry.run, &entry.id));
        let known = part.id.known();
        match newest.chain(over).find(|(run, _)| *run == part.run) {
            Some((_, id)) if known.is(id, part.id.number()) => KnownId::Whole(id.clone()),
            _ => known,
        }
    }
}

impl SyncUnit {
    /// Replaces whatever is stored of the unit by a checkpoint. `sealed` lists what its sealed message names, in the
    /// message's order.
    ///
    /// # Errors
    /// `WorkerState` if the checkpoint contradicts itself; then nothing of the unit is stored.
    pub(crate) fn restore(&self, checkpoint: &Checkpoint, sealed: &[(BatchInfo, String)]) -> Result<()> {
        self.inner.tables.change(|change| self.discard(change))?;
        self.inner.tables.change(|change| {
            let past = |ids: &[IdHash]| ids.iter().map(|id| id.known()).collect();
            let past =
                PastRow { run_ids: past(&checkpoint.past_runs), deletions: past(&checkpoint.deletions) };
            if past != PastRow::default() {
                change.put(&PAST, &self.key(), &past)?;
            }
            let no = Tables::new_unit_no(change)?;
            change.put(&UNITS, &self.key(), &checkpoint.unit.row(no))?;
            let restoring = Restoring { unit: self.id().as_str(), no, checkpoint, change };
            restoring.unit_rows()?;
            checkpoint.run.as_ref().map_or(Ok(()), |run| restoring.run(run, sealed))
        })
    }
}

/// A checkpoint that is being restored to the rows of a unit, in one transaction.
struct Restoring<'a> {
    unit: &'a str,
    no: u64,
    checkpoint: &'a Checkpoint,
    change: &'a Change<'a>,
}

impl Restoring<'_> {
    fn damaged(&self, reason: String) -> Error {
        damaged(self.unit, reason)
    }

    /// The rows of the unit that do not depend on its run.
    fn unit_rows(&self) -> Result<()> {
        let Self { change, checkpoint, .. } = self;
        let unit = Key::unit(self.no);
        for part in &checkpoint.run_ids {
            let number = self.free_number(&RUN_IDS, &unit, part.id)?;
            let row = RunIdRow { run: part.run, id: checkpoint.known_run_id(part) };
            change.put(&RUN_IDS, &unit.clone().and_number(number), &row)?;
        }
        for (stream, json) in &checkpoint.bookmarks {
            let row = BookmarkRow { json: json.clone(), run: 0 };
            change.put(&BOOKMARKS, &unit.clone().and_name(stream), &row)?;
        }
        for (key, json) in &checkpoint.position.values {
            change.put(&VALUES, &unit.clone().and_name(key), &Json(json.clone()))?;
        }
        for (stream, &(pages, items)) in &checkpoint.most_read {
            change.put(&MOST_READ, &unit.clone().and_name(stream), &MostReadRow { pages, items })?;
        }
        rejected::restore_unit(change, self.no, &checkpoint.rejected)?;
        once::restore_unit(change, self.no, &checkpoint.once)?;
        edge::restore_unit(change, self.no, &checkpoint.edge)?;
        for part in &checkpoint.ledger {
            change.put(&LEDGER, &run_key(self.no, part.run), &part.row())?;
        }
        checkpoint.kept.restore(change, self.unit, self.no)
    }

    /// The number under which to store the row of an id.
    fn free_number<R: Row>(&self, table: &Table<R>, prefix: &Key, id: IdHash) -> Result<u64> {
        let mut number = id.number();
        while self.change.get(table, &prefix.clone().and_number(number))?.is_some() {
            number = number.wrapping_add(1);
        }
        Ok(number)
    }

    /// The unit's newest run.
    fn run(&self, run: &RunPart, sealed: &[(BatchInfo, String)]) -> Result<()> {
        let Self { change, checkpoint, .. } = self;
        let position = &checkpoint.position;
        let prefix = run_key(self.no, run.no);
        let newest = self.events(run, &prefix)?;
        for (name, stream) in &position.streams {
            change.put(&STREAMS, &prefix.clone().and_name(name), &stream.row())?;
        }
        restore_children(change, &prefix, position)?;
        for part in &position.findings {
            change.put(&FINDINGS, &part.kind.key(&prefix), &part.row())?;
        }
        rejected::restore_run(change, self.no, run.no, &position.rejected)?;
        once::restore_run(change, &prefix, &position.once)?;
        edge::restore_run(change, &prefix, &position.edge)?;
        let open_batches = self.unannounced(run, &prefix)?;
        let message = checkpoint.message.as_ref().filter(|_| newest.is_some());
        let row = run.row(position, newest, message.map(|message| message.no), open_batches);
        if let (Some(message), Some(event)) = (message, newest) {
            self.message(run, message, event, sealed)?;
        }
        let is_open = run.status == StatusPart::Open;
        restore_queue(change, self.no, run.no, is_open, &position.queue, self.files())?;
        take_those_of_rows(change, &prefix, row.started_at)?;
        used_ids::keep_newest(change, &prefix, &checkpoint.used.0)?;
        change.put(&RUNS, &prefix, &row)?;
        let json = serde_json::to_string(position).map_err(|error| self.damaged(error.to_string()))?;
        change.put(&POSITIONS, &prefix, &Json(json))
    }

    /// The events of the run; returns the number of the newest.
    fn events(&self, run: &RunPart, prefix: &Key) -> Result<Option<u64>> {
        let mut newest = None;
        for part in &self.checkpoint.events {
            let number = self.free_number(&EVENTS, prefix, part.id)?;
            let row = EventRow {
                identity: part.id.known(),
                order: part.order,
                accepted_at: Micros(0),
                message: part.message,
            };
            self.change.put(&EVENTS, &prefix.clone().and_number(number), &row)?;
            if part.order == run.events {
                newest = Some(number);
            }
        }
        Ok(newest)
    }

    /// The batches that are uploaded and not announced, and the counts of each item type, which must balance. Returns
    /// the number of open batches.
    fn unannounced(&self, run: &RunPart, prefix: &Key) -> Result<u64> {
        let Self { change, checkpoint, .. } = self;
        let mut types: BTreeMap<&str, TypeRow> = BTreeMap::new();
        for (name, &(read, batches, left_out)) in &checkpoint.position.types {
            // An announced batch was confirmed before.
            let AnnouncedPart { records, artifacts, bytes } =
                checkpoint.announced.get(name).copied().unwrap_or_default();
            let counts = TypeRow {
                read,
                left_out,
                batches,
                batched: records,
                confirmed: records,
                announced: records,
                artifacts_announced: artifacts,
                announced_bytes: bytes,
                ..TypeRow::default()
            };
            types.insert(name, counts);
        }
        let mut open_batches = 0;
        for part in &checkpoint.artifacts {
            let batch = part.row();
            let (items, is) = (u64::from(batch.items), batch.transfer_state(run.epoch).counts());
            recount(&mut open_batches, false, is.open, 1);
            let Some(counts) = types.get_mut(part.item_type.as_str()) else {
                let name = &part.item_type;
                return Err(self.damaged(format!("it names artifacts of {name}, but no {name} were read")));
            };
            recount(&mut counts.batched, false, true, items);
            recount(&mut counts.confirmed, false, is.confirmed, items);
            recount(&mut counts.announced, false, is.announced, items);
            recount(&mut counts.artifacts_announced, false, is.announced, 1);
            recount(&mut counts.announced_bytes, false, is.announced, batch.gzip_bytes);
            change.put(&BATCHES, &prefix.clone().and_number(part.seq), &batch)?;
        }
        for (name, counts) in types {
            let TypeRow { read, left_out, batched, announced, .. } = counts;
            if u128::from(read) != u128::from(batched) + u128::from(left_out) {
                let uploaded = batched - announced;
                return Err(self.damaged(format!(
                    "of {read} {name} read, {left_out} were left out, {announced} are announced and {uploaded} uploaded"
                )));
            }
            change.put(&TYPES, &prefix.clone().and_name(name), &counts)?;
        }
        Ok(open_batches)
    }

    /// The message that answers the newest event, and the batches that it announces.
    fn message(
        &self,
        run: &RunPart,
        message: &MessagePart,
        event: u64,
        sealed: &[(BatchInfo, String)],
    ) -> Result<()> {
        if sealed.len() != message.batches.len() {
            return Err(
                self.damaged("its message names artifacts that differ from those it lists".to_owned())
            );
        }
        for (seq, (info, artifact)) in message.batches.iter().zip(sealed) {
            let mut batch = BatchRow {
                item_type: info.item_type.clone(),
                stream: String::new(),
                epoch: run.epoch,
                items: info.items,
                line_bytes: 0,
                gzip_bytes: 0,
                dates: info.dates,
                cursor_after: None,
                state: BatchState::Confirmed,
                artifact: Some(artifact.clone()),
                uploaded_in: 0,
                given_up: 0,
                saved: true,
            };
            // Its records are counted among the announced ones.
            batch.set_transfer_state(State::Sealed, message.no);
            self.change.put(&BATCHES, &run_key(self.no, run.no).and_number(*seq), &batch)?;
        }
        let stored = MessageRow {
            run: run.no,
            phase: message.phase,
            event,
            kind: message.kind.row(),
            event_type: message.event_type.clone(),
            fate: message.fate.row(),
            sealed_at: message.sealed_at,
            artifacts: message.batches.len() as u64,
            finishes: message.finishes,
            key: message.key.clone(),
            body: message.body.clone().into_bytes(),
            error: None,
        };
        self.change.put(&MESSAGES, &message_key(self.no, message.no), &stored)
    }

    /// The artifacts from which the queue of attachments can be rebuilt.
    fn files(&self) -> impl Iterator<Item = (u64, FileRow)> + '_ {
        self.checkpoint.files.iter().map(|part| (part.seq, part.row()))
    }
}
