//! The part of a check about what the open run of a unit has extracted: its records, batches, listings
//! and attachments.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::artifact::{decompress, line_count};
use crate::error::{Error, Result};
use crate::model::{FINDINGS_KEPT, ItemType, StreamName};
use crate::store::batches::payload;
use crate::store::findings::FindingKind;
use crate::store::page::child_bytes;
use crate::store::rows::{
    ATTACHMENTS, BATCHES, BatchRow, BatchState, CHILD_IDS, CHILD_STREAMS, CHILDREN, CHUNKS, FINDINGS, Key,
    MESSAGES, MessageFate, MessageRow, PAYLOADS, Payload, QUEUES, QueueRow, RUNS, Row, RunRow, RunStatus,
    STREAMS, TYPES, TypeRow, UnderRow, UnitRow, run_key,
};

use super::check::{Check, Of, is_json, name, number, short};

/// How many records of an item type are in batches that are not yet announced, by the batches' state.
#[derive(Default)]
struct Sums {
    /// Staged or uploaded.
    with_bytes: (u64, u64),
    /// Confirmed, and in no message.
    confirmed: (u64, u64),
}

impl Check<'_> {
    /// Checks where everything is that the newest run has read.
    pub(super) fn extraction(
        &mut self,
        id: &str,
        unit: &UnitRow,
        no: u64,
        run: &RunRow,
        messages: &Of<u64, MessageRow>,
    ) -> Result<()> {
        if run.status != RunStatus::Open {
            return Ok(());
        }
        let key = run_key(unit.no, no);
        let types = self.rows(&TYPES, &key, name)?;
        let batches = self.rows(&BATCHES, &key, number)?;
        let read: u64 = types.values().map(|counts| counts.read).sum();
        let lines = self.rows(&QUEUES, &key, |_| Ok(()))?.remove(&()).map_or(0, |queue| queue.lines);
        self.streams(id, run, &key, read.saturating_sub(lines))?;
        self.chunks(id, run, &key, &types)?;
        self.payloads(id, &key, &batches)?;
        self.findings(id, run, &key, &types)?;
        self.attachments(id, unit.no, no, run)?;
        for (&seq, batch) in &batches {
            self.batch(id, run, seq, batch, &types);
        }
        self.announced(id, run, no, &batches, messages);
        self.counts(id, run, &types, &batches);
        Ok(())
    }

    /// Checks that a batch can belong to the run, and that its state is possible.
    fn batch(&mut self, id: &str, run: &RunRow, seq: u64, batch: &BatchRow, types: &Of<String, TypeRow>) {
        let mut found = |problem: &str| {
            self.found(BATCHES.name, Some(id), format!("batch {seq} of run {}: {problem}", run.id));
        };
        if !(1..run.next_seq).contains(&seq) {
            found("its number was never given out");
        }
        if batch.items == 0 || !(1..=run.epoch).contains(&batch.epoch) || batch.uploaded_in > run.epoch {
            found("it is empty, or belongs to no life of the run");
        }
        if !types.contains_key(&batch.item_type) {
            found(&format!("its item type {} has no counts", batch.item_type));
        }
        if batch.artifact.is_some() == (batch.state == BatchState::Staged && batch.given_up == 0) {
            found("its state and its artifact id contradict each other");
        }
    }

    /// Checks that each sealed message of the run names as many batches as it says, and that each named batch has a
    /// sealed message.
    fn announced(
        &mut self,
        id: &str,
        run: &RunRow,
        no: u64,
        batches: &Of<u64, BatchRow>,
        messages: &Of<u64, MessageRow>,
    ) {
        let mut announced: BTreeMap<u64, u64> = BTreeMap::new();
        for (&seq, batch) in batches {
            let BatchState::Announced(message) = batch.state else { continue };
            *announced.entry(message).or_default() += 1;
            let of = messages.get(&message);
            if of.is_none_or(|of| of.run != no || of.fate != MessageFate::Sealed) {
                let problem = format!(
                    "batch {seq} of run {}: it is announced by message {message}, which is missing",
                    run.id
                );
                self.found(BATCHES.name, Some(id), problem);
            }
        }
        for (&number, message) in messages.iter().filter(|(_, message)| message.run == no) {
            let names = announced.get(&number).copied().unwrap_or_default();
            if message.fate == MessageFate::Sealed && message.artifacts != names {
                let says = message.artifacts;
                self.found(
                    MESSAGES.name,
                    Some(id),
                    format!("message {number} announces {says} artifacts, but names {names} batches"),
                );
            }
        }
    }

    /// Checks that the counts of the run and its item types match the rows.
    fn counts(&mut self, id: &str, run: &RunRow, types: &Of<String, TypeRow>, batches: &Of<u64, BatchRow>) {
        let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
        for batch in batches.values() {
            let sums = sums.entry(batch.item_type.as_str()).or_default();
            let sum = match batch.state {
                BatchState::Staged | BatchState::Uploaded => &mut sums.with_bytes,
                BatchState::Confirmed => &mut sums.confirmed,
                BatchState::Announced(_) => continue,
            };
            sum.0 += 1;
            sum.1 += u64::from(batch.items);
        }
        for (item_type, counts) in types {
            let sums = sums.remove(item_type.as_str()).unwrap_or_default();
            self.balance(id, run, item_type, counts, &sums);
        }
        let open =
            batches.values().filter(|batch| !matches!(batch.state, BatchState::Announced(_))).count() as u64;
        if run.open_batches != open {
            let says = run.open_batches;
            self.found(
                RUNS.name,
                Some(id),
                format!("run {}: {says} open batches are counted, but there are {open}", run.id),
            );
        }
        let closed: u64 = types.values().map(|counts| counts.batches).sum();
        if run.next_seq != closed + 1 {
            let given = run.next_seq.saturating_sub(1);
            self.found(
                RUNS.name,
                Some(id),
                format!(
                    "run {}: {given} batch numbers were given out, but {closed} batches are counted",
                    run.id
                ),
            );
        }
    }

    /// Checks that the counts of an item type agree with each other and with its batches.
    fn balance(&mut self, id: &str, run: &RunRow, item_type: &str, counts: &TypeRow, sums: &Sums) {
        let mut same = |what: &str, says: u64, is: u64| {
            if says != is {
                let problem = format!("{item_type} of run {}: {what}: {says}, should be {is}", run.id);
                self.found(TYPES.name, Some(id), problem);
            }
        };
        same("read", counts.read, counts.left_out + counts.batched + u64::from(counts.open_items));
        same("confirmed", counts.confirmed, counts.batched.saturating_sub(sums.with_bytes.1));
        same("announced", counts.announced, counts.confirmed.saturating_sub(sums.confirmed.1));
        let unannounced = sums.with_bytes.0 + sums.confirmed.0;
        same("artifacts announced", counts.artifacts_announced, counts.batches.saturating_sub(unannounced));
    }

    fn streams(&mut self, id: &str, run: &RunRow, key: &Key, read: u64) -> Result<()> {
        let (mut pages, mut items) = self.children(id, run, key)?;
        for (stream, row) in self.rows(&STREAMS, key, name)? {
            pages += row.pages;
            items += row.items;
            let mut found = |problem: &str| {
                self.found(STREAMS.name, Some(id), format!("stream {stream} of run {}: {problem}", run.id));
            };
            if StreamName::new(stream.as_str()).is_err() {
                found("invalid stream name");
            }
            if row.pages > 0 && row.exhausted == row.cursor.is_some() {
                found("its cursor and whether it is exhausted contradict each other");
            }
            if !row.cursor.as_deref().is_none_or(is_json) {
                found("its cursor is not JSON");
            }
            if !row.bookmark.as_deref().is_none_or(is_json) {
                found("its bookmark is not JSON");
            }
        }
        if run.pages != pages {
            let says = run.pages;
            self.found(
                RUNS.name,
                Some(id),
                format!("run {}: {says} pages are counted, but its streams have {pages}", run.id),
            );
        }
        if items != read {
            let problem =
                format!("run {}: its streams have {items} records, but {read} are counted as read", run.id);
            self.found(TYPES.name, Some(id), problem);
        }
        Ok(())
    }

    /// Checks the child listings; returns the number of their pages and records.
    fn children(&mut self, id: &str, run: &RunRow, key: &Key) -> Result<(u64, u64)> {
        let ids = self.rows(&CHILD_IDS, key, |tail| {
            let at = tail.iter().position(|byte| *byte == 0).ok_or_else(short)?;
            let (stream, parent) = tail.split_at(at);
            Ok((name(stream)?, name(parent.get(1..).unwrap_or_default())?))
        })?;
        let pending = self.rows(&CHILDREN, key, number)?;
        let mut sums: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
        for (stream, _) in ids.keys() {
            sums.entry(stream.clone()).or_default().0 += 1;
        }
        for (number, row) in &pending {
            let of_stream = sums.entry(row.stream.clone()).or_default();
            of_stream.1 += 1;
            of_stream.2 += child_bytes(&row.stream, &row.parent, &row.data, row.cursor.as_deref());
            let named = ids.get(&(row.stream.clone(), row.parent.clone())).map(|row| row.no);
            let waits = match row.under {
                UnderRow::Child(under) => under < *number && pending.contains_key(&under),
                UnderRow::Stream(_) | UnderRow::Nothing => true,
            };
            let problem = if named != Some(*number) {
                "another one has its name"
            } else if !is_json(&row.data) || !row.cursor.as_deref().is_none_or(is_json) {
                "its cursor or its data is not JSON"
            } else if !waits {
                "the listing that waits for it does not exist"
            } else {
                continue;
            };
            let of = format!("{} of {}", row.stream, row.parent);
            let problem = format!("child listing {number} ({of}) of run {}: {problem}", run.id);
            self.found(CHILDREN.name, Some(id), problem);
        }
        let (mut pages, mut items) = (0, 0);
        for (stream, row) in self.rows(&CHILD_STREAMS, key, name)? {
            pages += row.pages;
            items += row.items;
            let (known, is_pending, bytes) = sums.remove(&stream).unwrap_or_default();
            // If a checkpoint restored the run, exhausted ones are counted but not known.
            if known > row.named
                || row.named.checked_sub(row.exhausted) != Some(is_pending)
                || row.pending_bytes != bytes
            {
                let problem = format!(
                    "child listings of stream {stream} of run {}: {} named, {} exhausted, {} bytes pending are counted; \
                     {known} are known, {is_pending} of them pending, of {bytes} bytes",
                    run.id, row.named, row.exhausted, row.pending_bytes
                );
                self.found(CHILD_STREAMS.name, Some(id), problem);
            }
        }
        if let Some(stream) = sums.keys().next() {
            let problem = format!("child listings of stream {stream} of run {}: they have no counts", run.id);
            self.found(CHILD_STREAMS.name, Some(id), problem);
        }
        Ok((pages, items))
    }

    /// The lines of open batches.
    fn chunks(&mut self, id: &str, run: &RunRow, key: &Key, types: &Of<String, TypeRow>) -> Result<()> {
        let mut open: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let chunks = self.rows(&CHUNKS, key, |tail| {
            let (inner, number) = tail.split_last_chunk().ok_or_else(short)?;
            let inner = inner.strip_suffix(&[0]).ok_or_else(short)?;
            Ok((name(inner)?, u64::from_be_bytes(*number)))
        })?;
        for ((item_type, number), chunk) in chunks {
            let sum = open.entry(item_type.clone()).or_default();
            sum.0 += u64::from(chunk.items);
            sum.1 += chunk.lines.len() as u64;
            let lines = line_count(&chunk.lines);
            if lines != u64::from(chunk.items) || chunk.lines.last().is_some_and(|&last| last != b'\n') {
                let problem =
                    format!("chunk {number} of {item_type}: {lines} lines instead of {}", chunk.items);
                self.found(CHUNKS.name, Some(id), problem);
            }
            if !(1..run.next_chunk).contains(&number) || !types.contains_key(&item_type) {
                self.found(
                    CHUNKS.name,
                    Some(id),
                    format!("chunk {number} of {item_type} belongs to no item type"),
                );
            }
        }
        for (item_type, counts) in types {
            let (items, bytes) = open.remove(item_type).unwrap_or_default();
            if (items, bytes) != (counts.open_items.into(), counts.open_bytes) {
                let problem = format!(
                    "{item_type} of run {}: {} items and {} bytes are open, the chunks hold {items} and {bytes}",
                    run.id, counts.open_items, counts.open_bytes
                );
                self.found(TYPES.name, Some(id), problem);
            }
            if ItemType::new(item_type.as_str()).is_err() {
                self.found(TYPES.name, Some(id), format!("invalid item type {item_type:?}"));
            }
        }
        Ok(())
    }

    /// Checks that the counts of the queue of attachments match its rows.
    fn attachments(&mut self, id: &str, unit: u64, no: u64, run: &RunRow) -> Result<()> {
        let rows = self.of_runs.get(&(ATTACHMENTS.name, unit, no)).copied().unwrap_or_default();
        let untold = self.untold.get(&(unit, no)).copied().unwrap_or_default();
        match self.rows(&QUEUES, &run_key(unit, no), |_| Ok(()))?.remove(&()) {
            None if rows > 0 => {
                self.found(QUEUES.name, Some(id), format!("run {}: its attachments have no counts", run.id));
            }
            // Its rows are being loaded.
            None | Some(QueueRow { rebuild: true, .. }) => {}
            Some(QueueRow { counts, .. }) => {
                let left = counts.queued.checked_sub(counts.settled + counts.failed);
                if left != Some(rows) || untold > 0 {
                    let problem = format!(
                        "run {}: of {} attachments {} are settled and {} given up; {rows} are in the queue, {untold} \
                         of them without a line",
                        run.id, counts.queued, counts.settled, counts.failed
                    );
                    self.found(QUEUES.name, Some(id), problem);
                }
            }
        }
        Ok(())
    }

    /// Checks the bytes of batches: that they exist exactly while they are needed, and are right. One batch is read
    /// at a time.
    fn payloads(&mut self, id: &str, key: &Key, batches: &Of<u64, BatchRow>) -> Result<()> {
        let with_bytes = |batch: &BatchRow| matches!(batch.state, BatchState::Staged | BatchState::Uploaded);
        // A batch that no life of this store uploaded was restored from a checkpoint, which has no bytes.
        let restored =
            |batch: &BatchRow| matches!(batch.state, BatchState::Uploaded) && batch.uploaded_in == 0;
        let needed = batches.iter().filter(|(_, batch)| with_bytes(batch) && !restored(batch));
        let mut missing: BTreeSet<u64> = needed.map(|(&seq, _)| seq).collect();
        let view = self.view;
        // A row that cannot be decoded is reported with all others of its kind.
        let (mut stored, mut undecodable) = (BTreeSet::new(), BTreeSet::new());
        let scanned = view.scan_bytes(&PAYLOADS, key, |tail, bytes| {
            let Ok(seq) = number(tail.get(..8).unwrap_or(tail)) else { return Ok(()) };
            let of = if Payload::from_bytes(bytes).is_ok() { &mut stored } else { &mut undecodable };
            of.insert(seq);
            Ok(())
        });
        missing.retain(|seq| !stored.contains(seq) && !undecodable.contains(seq));
        for &seq in stored.difference(&undecodable) {
            let mut found = |problem: String| {
                self.found(PAYLOADS.name, Some(id), format!("the bytes of batch {seq}: {problem}"));
            };
            let Some(batch) = batches.get(&seq).filter(|batch| with_bytes(batch)) else {
                found("no batch needs them".to_owned());
                continue;
            };
            let member = match payload::read(view, &key.clone().and_number(seq), batch) {
                Ok(member) => member,
                Err(Error::Corrupt { reason, .. }) => {
                    found(reason);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match decompress(&member, batch.line_bytes, &mut io::sink()) {
                Ok(contents) => {
                    if contents.lines != u64::from(batch.items) || contents.line_bytes != batch.line_bytes {
                        found(format!(
                            "they hold {} lines of {} bytes instead of {} of {}",
                            contents.lines, contents.line_bytes, batch.items, batch.line_bytes
                        ));
                    }
                }
                Err(error) => found(format!("they are not a complete gzip member: {error}")),
            }
        }
        for seq in missing {
            self.found(PAYLOADS.name, Some(id), format!("the bytes of batch {seq} are missing"));
        }
        match scanned {
            Ok(()) | Err(Error::Corrupt { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Checks the findings in records: that their kind exists, and that records of it were read.
    fn findings(&mut self, id: &str, run: &RunRow, key: &Key, types: &Of<String, TypeRow>) -> Result<()> {
        let rows = self.rows(&FINDINGS, key, |tail| Ok(tail.to_vec()))?;
        for (tail, row) in rows {
            let kind = match FindingKind::of_key(&tail) {
                Ok(kind) => kind,
                Err(error) => {
                    self.found(FINDINGS.name, Some(id), format!("a row of run {}: {error}", run.id));
                    continue;
                }
            };
            let FindingKind { item_type, severity, rule, .. } = &kind;
            let mut found = |problem: &str| {
                let problem = format!("{severity} {rule} in {item_type} of run {}: {problem}", run.id);
                self.found(FINDINGS.name, Some(id), problem);
            };
            if !(item_type.is_empty() || types.contains_key(item_type)) {
                found("nothing of that item type was read");
            }
            if !matches!(severity.as_str(), "error" | "warning") || rule.is_empty() {
                found("there is no such kind");
            }
            let kept = row.kept.len() as u64;
            if row.count == 0 || kept > row.count || kept > FINDINGS_KEPT {
                found(&format!("{} are counted, but {kept} are kept", row.count));
            }
        }
        Ok(())
    }
}
