//! What needs the crate's inside: rows that only a conversation writes, rows that nothing of ours would write, and
//! owners that come while the file is looked at.

use serde_json::json;

use crate::model::{ArtifactId, Micros, Phase, RunId, Step, StreamName};
use crate::record::{Checker, Metadata, Record, RecordType, Tally};
use crate::store::digest::{Digest, KnownId};
use crate::store::findings::FindingKind;
use crate::store::page::Page;
use crate::store::rows::{
    BOOKMARKS, BatchRow, BookmarkRow, CHUNKS, EDGE, EDGE_COUNTS, EDGE_OF, EVENTS, EdgeCountRow, EdgeOfRow,
    EdgeRow, FINDINGS, FindingRow, FormatRow, Json, LedgerRow, META, MessageFate, MessageKind, MessageRow,
    ONCE, ONCE_COUNTS, OnceCountRow, OnceRow, REJECTED, REJECTED_COUNTS, REJECTED_IN_RUN, RUN_IDS,
    RejectedCountRow, RejectedFate, RejectedRow, Row, RunIdRow, RunRow, RunStatus as Status, STREAMS,
    StreamRow, TYPES, Table, TypeRow, UnitRow, VALUES,
};
use crate::store::tables::Change;
use crate::store::{Accepted, BatchSettling, Incoming, Run, Sealing, Store, SyncUnit};

use super::super::rows::{
    BATCHES, BatchState, Key, LEDGER, MESSAGES, PAYLOADS, Payload, RUNS, UNITS, message_key, run_key,
};
use super::super::tables::Rows;
use super::*;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

const UNIT: &str = "acme/tickets";

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    store: Option<Store>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let store = Some(Self::options().open(&path).unwrap());
        Self { _dir: dir, path, store }
    }

    fn options() -> crate::store::StoreOptions {
        let start = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        Store::options().batch_items(2).clock(crate::clock::VirtualClock::at(start))
    }

    fn unit(&self) -> SyncUnit {
        self.store.as_ref().unwrap().sync_unit(UNIT).unwrap()
    }

    fn close(&mut self) {
        drop(self.store.take());
    }

    fn reopen(&mut self) {
        self.store = Some(Self::options().open(&self.path).unwrap());
    }

    fn report(&self) -> Report {
        self.is_whole();
        Snapshot::open(&self.path).unwrap().unit(UNIT, 5).unwrap().unwrap()
    }

    fn findings(&self) -> Vec<String> {
        let report = check(&self.path).unwrap();
        report.findings.into_iter().map(|f| format!("{}: {}", f.table.unwrap_or("file"), f.problem)).collect()
    }

    #[track_caller]
    fn is_whole(&self) {
        assert_eq!(self.findings(), Vec::<String>::new());
    }

    fn change(&self, change: impl FnOnce(&Change<'_>)) {
        self.store
            .as_ref()
            .unwrap()
            .inner
            .tables
            .change(|tables| {
                change(tables);
                Ok(())
            })
            .unwrap();
    }
}

fn event(run: &str, number: u32, phase: Phase, step: Step) -> Incoming {
    Incoming {
        identity: format!("[\"{run}\",{number}]"),
        has_ids: true,
        run_id: Some(RunId::new(run).unwrap()),
        phase,
        step,
    }
}

#[track_caller]
fn work(unit: &SyncUnit, event: &Incoming) -> Run {
    match unit.accept(event, false, None).unwrap() {
        Accepted::Work(run) => run,
        other => panic!("{other:?}"),
    }
}

fn stage(run: &Run, phase: Phase, records: u32, next: Option<u32>) {
    let mut page = match next {
        Some(next) => Page::more(next),
        None => Page::last().bookmark(&json!({"tail": 1})),
    };
    for record in 0..records {
        page.push("issues", Record::new(format!("ISSUE-{record}"), &json!({"n": record})).unwrap());
    }
    let mut tally = Tally::keeping(10);
    let checker = Checker::new(&Metadata::new().record_type("issues", RecordType::new()), "issues").unwrap();
    for (_, lines) in page.records() {
        for finding in lines.each().flat_map(|line| checker.check_line(line)) {
            tally.add(finding);
        }
    }
    page.found("issues", tally);
    run.stage(&StreamName::new("issues").unwrap(), phase, 2, page.value("key", &1)).unwrap();
}

fn upload(run: &Run, seq: u64) {
    upload_as(run, seq, &format!("artifact-{seq}"));
}

fn upload_as(run: &Run, seq: u64, artifact: &str) {
    assert!(run.uploaded(seq, &ArtifactId::new(artifact).unwrap()).unwrap());
}

fn seal(run: &Run, phase: Phase, kind: MessageKind, batches: &[u64], delay_seconds: Option<u64>) -> u64 {
    let sealing = Sealing {
        phase,
        kind,
        event_type: format!("EXTRACTION_{phase}_{kind:?}").to_uppercase(),
        batches,
        body: format!("{{\"artifacts\":{}}}", batches.len()),
        finishes: phase == Phase::Data,
        delay_seconds,
        error: None,
    };
    run.seal(&sealing).unwrap().no
}

/// A finished run, then one amid its data phase: a batch announced in a message of unknown fate, one confirmed, one
/// uploaded, one staged, a record that waits for its batch.
fn amid_a_conversation(place: &Place) {
    let unit = place.unit();
    let run = work(&unit, &event("first", 1, Phase::Data, Step::Start));
    stage(&run, Phase::Data, 2, None);
    upload(&run, 1);
    run.settle_batches(&[(1, BatchSettling::Confirmed)]).unwrap();
    run.delivered(seal(&run, Phase::Data, MessageKind::Done, &[1], None)).unwrap();

    let run = work(&unit, &event("second", 1, Phase::Metadata, Step::Start));
    seal(&run, Phase::Metadata, MessageKind::Done, &[], None);
    let run = work(&unit, &event("second", 2, Phase::Data, Step::Start));
    stage(&run, Phase::Data, 9, Some(1));
    for seq in 1..=3 {
        upload(&run, seq);
    }
    run.settle_batches(&[(1, BatchSettling::Confirmed)]).unwrap();
    run.settle_batches(&[(2, BatchSettling::Confirmed)]).unwrap();
    seal(&run, Phase::Data, MessageKind::Progress, &[1], None);
}

#[test]
fn every_step_of_a_conversation_is_whole_and_shown_as_it_is() {
    let place = Place::new();
    let unit = place.unit();
    let run = work(&unit, &event("a", 1, Phase::Metadata, Step::Start));
    place.is_whole();
    let report = place.report();
    let shown = report.run.as_ref().unwrap();
    assert_eq!((shown.run.as_str(), shown.phase, shown.events), ("a", Some(Phase::Metadata), 1));
    assert_eq!((shown.event.as_deref(), shown.message), (Some("[\"a\",1]"), None));

    let message = seal(&run, Phase::Metadata, MessageKind::Done, &[], None);
    place.is_whole();
    let report = place.report();
    assert_eq!(report.run.as_ref().unwrap().phases_done, [Phase::Metadata]);
    assert_eq!((report.unit.messages, report.unit.messages_undelivered), (1, 1));
    let shown = &report.messages[0];
    let is = (shown.answer, shown.fate, shown.run.as_deref(), shown.artifacts);
    assert_eq!(is, (words::MessageKind::Done, words::MessageFate::Sealed, Some("a"), 0));
    run.delivered(message).unwrap();
    assert_eq!(place.report().messages[0].fate, words::MessageFate::Delivered);

    // Its predecessor's fate is proven by the next event where it was not recorded.
    let run = work(&unit, &event("a", 2, Phase::Data, Step::Start));
    stage(&run, Phase::Data, 5, Some(1));
    place.is_whole();
    let counts = &place.report().item_types[0];
    assert_eq!((counts.read, counts.batched, counts.open_items, counts.confirmed), (5, 4, 1, 0));
    assert_eq!((counts.batches_staged.batches, counts.batches_staged.items), (2, 4));
    upload(&run, 1);
    place.is_whole();
    let counts = &place.report().item_types[0];
    assert_eq!((counts.batches_staged.items, counts.batches_uploaded.items), (2, 2));
    run.settle_batches(&[(1, BatchSettling::GivenUp)]).unwrap();
    place.is_whole();
    upload_as(&run, 1, "artifact-1-anew");
    run.settle_batches(&[(1, BatchSettling::Confirmed)]).unwrap();
    place.is_whole();
    let counts = &place.report().item_types[0];
    assert_eq!((counts.confirmed, counts.announced, counts.batches_confirmed.batches), (2, 0, 1));
    let message = seal(&run, Phase::Data, MessageKind::Delay, &[1], Some(30));
    place.is_whole();
    let report = place.report();
    let shown = report.run.as_ref().unwrap();
    assert_eq!((shown.delay_seconds, shown.message, shown.open_batches), (Some(30), Some(message), 1));
    assert_eq!(shown.not_before.unwrap().timestamp(), 1_700_000_030);
    let counts = &report.item_types[0];
    assert_eq!((counts.announced, counts.batches_announced.batches, counts.artifacts_announced), (2, 1, 1));
    let batches = Snapshot::open(&place.path).unwrap().batches(UNIT).unwrap().unwrap();
    assert_eq!((batches[0].state, batches[0].message), (BatchStage::Announced, Some(message)));
    assert_eq!((batches[1].state, batches[1].message), (BatchStage::Staged, None));
    run.refused(message, Some(1)).unwrap();
    place.is_whole();
    assert_eq!(place.report().run.unwrap().artifacts_max, Some(1));
    let message = seal(&run, Phase::Data, MessageKind::Progress, &[1], None);
    let (shown, body) = Snapshot::open(&place.path).unwrap().message(UNIT, None).unwrap().unwrap();
    assert_eq!((shown.message, shown.body_bytes, body.as_slice()), (message, 15, &b"{\"artifacts\":1}"[..]));

    let run = work(&unit, &event("a", 3, Phase::Data, Step::Continue));
    place.is_whole();
    let fates: Vec<_> = place.report().messages.iter().map(|message| message.fate).collect();
    assert_eq!(fates, [words::MessageFate::Delivered, words::MessageFate::Proven]);
    assert_eq!(place.report().item_types[0].batches_announced, BatchCounts::default());
    stage(&run, Phase::Data, 1, None);
    run.close_open().unwrap();
    for seq in [2, 3] {
        upload(&run, seq);
        run.settle_batches(&[(seq, BatchSettling::Confirmed)]).unwrap();
    }
    // A message delivered twice over, whose event's ids are then used for a new one.
    let message = seal(&run, Phase::Data, MessageKind::Progress, &[2], None);
    run.delivered(message).unwrap();
    run.delivered(message).unwrap();
    assert_eq!(place.report().messages.last().unwrap().delivered_times, 2);
    let run = work(&unit, &event("a", 3, Phase::Data, Step::Continue));
    place.is_whole();
    assert_eq!(place.report().run.unwrap().events_reused, 1);
    let message = seal(&run, Phase::Data, MessageKind::Done, &[3], None);
    place.is_whole();
    run.delivered(message).unwrap();
    place.is_whole();
    let report = place.report();
    assert_eq!(report.run.as_ref().unwrap().status, RunStatus::Finished);
    assert_eq!(report.unit.watermark.unwrap().timestamp(), 1_700_000_000);
    assert_eq!((report.streams.len(), report.item_types.len(), report.bookmarks.len()), (0, 0, 1));
    let counts = &report.ledger[0].item_types[0];
    assert_eq!((counts.read, counts.announced, counts.artifacts), (6, 6, 3));

    // A run of unknown fate, abandoned for the next: its message is still not known to be delivered.
    let run = work(&unit, &event("b", 1, Phase::Data, Step::Start));
    stage(&run, Phase::Data, 3, Some(1));
    upload(&run, 1);
    run.settle_batches(&[(1, BatchSettling::Confirmed)]).unwrap();
    seal(&run, Phase::Data, MessageKind::Progress, &[1], None);
    place.is_whole();
    work(&unit, &event("c", 1, Phase::Data, Step::Start));
    place.is_whole();
    let report = place.report();
    assert_eq!((report.unit.messages_undelivered, report.ledger[1].status), (1, RunStatus::Abandoned));
    // That one is shown however few are asked for.
    let report = Snapshot::open(&place.path).unwrap().unit(UNIT, 0).unwrap().unwrap();
    assert_eq!((report.messages.len(), report.ledger.len()), (1, 0));
    assert_eq!((report.unit.messages_kept, report.unit.ledger_runs), (1, 2));

    assert!(unit.abandon().unwrap());
    place.is_whole();
    assert_eq!(place.report().run.unwrap().status, RunStatus::Abandoned);
    assert!(!unit.abandon().unwrap());
    unit.delete().unwrap();
    place.is_whole();
    assert!(Snapshot::open(&place.path).unwrap().unit(UNIT, 5).unwrap().is_none());
}

/// A checkpoint carries the figures of the newest runs only: none of them need be of a finished one.
#[test]
fn a_unit_restored_after_many_abandoned_runs_is_whole() {
    let from = Place::new();
    amid_a_conversation(&from);
    let mut run = from.unit().newest_run().unwrap().unwrap();
    for number in 0..12 {
        run = work(&from.unit(), &event(&format!("given up {number}"), 1, Phase::Data, Step::Start));
    }
    from.is_whole();
    let checkpoint = run.checkpoint("token", None, u64::MAX).unwrap();
    let to = Place::new();
    to.unit().restore(&checkpoint, &[]).unwrap();
    to.is_whole();
}

#[test]
fn every_step_of_an_acknowledging_loop_is_whole() {
    let place = Place::new();
    let unit = place.unit();
    for _ in 0..2 {
        let run = unit.begin().unwrap();
        place.is_whole();
        let fetch = |cursor: Option<u32>| -> Result<Page<u32>> {
            let mut page =
                if cursor == Some(3) { Page::last() } else { Page::more(cursor.map_or(1, |c| c + 1)) };
            for record in 0..3 {
                page.push("issues", Record::new(format!("{record}"), &json!({}))?);
            }
            Ok(page.record("users", Record::new("ada", &json!({}))?))
        };
        for batch in run.batches("issues", fetch) {
            let batch = batch.unwrap();
            let id = batch.key().to_string();
            place.is_whole();
            batch.uploaded(&id).unwrap();
            place.is_whole();
            batch.acknowledge(&id).unwrap();
            place.is_whole();
        }
        run.finish().unwrap();
        place.is_whole();
    }
}

fn alter<R: Row>(change: &Change<'_>, table: &Table<R>, key: &Key, alter: impl FnOnce(&mut R)) {
    let mut row = change.get(table, key).unwrap().unwrap();
    alter(&mut row);
    change.put(table, key, &row).unwrap();
}

/// A rule of the check, and a change that breaks it.
type Broken = (&'static str, fn(&Change<'_>));

fn unit_key() -> Key {
    Key::name(UNIT)
}

fn second() -> Key {
    run_key(1, 2)
}

fn unit_key_no() -> Key {
    Key::unit(1)
}

fn edge_key(run: u64) -> Key {
    run_key(1, run).and_inner_name("issues").and_digest(&Digest::of("I"))
}

fn rejected() -> RejectedRow {
    RejectedRow {
        fate: RejectedFate::Rejected,
        run: 1,
        rejected_at: Micros(0),
        asked: 0,
        kind: "kind".to_owned(),
        reason: "reason".to_owned(),
        json: None,
    }
}

/// What [`stage`] has found in its records.
fn undeclared() -> FindingKind {
    FindingKind {
        item_type: "issues".to_owned(),
        severity: "warning".to_owned(),
        rule: "undeclared".to_owned(),
        path: "data.n".to_owned(),
    }
}

fn batch(seq: u64) -> Key {
    second().and_number(seq)
}

/// A piece of the bytes of a batch.
fn piece(seq: u64, number: u64) -> Key {
    batch(seq).and_number(number)
}

fn issues() -> Key {
    second().and_name("issues")
}

fn alter_run(change: &Change<'_>, by: impl FnOnce(&mut RunRow)) {
    alter(change, &RUNS, &second(), by);
}

fn alter_batch(change: &Change<'_>, seq: u64, by: impl FnOnce(&mut BatchRow)) {
    alter(change, &BATCHES, &batch(seq), by);
}

fn alter_types(change: &Change<'_>, by: impl FnOnce(&mut TypeRow)) {
    alter(change, &TYPES, &issues(), by);
}

fn alter_stream(change: &Change<'_>, by: impl FnOnce(&mut StreamRow)) {
    alter(change, &STREAMS, &issues(), by);
}

fn alter_unit(change: &Change<'_>, by: impl FnOnce(&mut UnitRow)) {
    alter(change, &UNITS, &unit_key(), by);
}

fn alter_message(change: &Change<'_>, number: u64, by: impl FnOnce(&mut MessageRow)) {
    alter(change, &MESSAGES, &message_key(1, number), by);
}

fn alter_ledger(change: &Change<'_>, by: impl FnOnce(&mut LedgerRow)) {
    alter(change, &LEDGER, &run_key(1, 1), by);
}

fn newest_event() -> Key {
    second().and_hash("[\"second\",2]")
}

/// The unit is number 1, its runs 1 and 2, the messages 1 (of the first) to 3; batch 1 is announced, 2 confirmed,
/// 3 uploaded, 4 staged.
const BROKEN: &[Broken] = &[
    // The file as a whole, and the units.
    ("units: its number 1 was never given out", |change| {
        alter(change, &META, &Key::name("format"), |row: &mut FormatRow| row.next_unit = 1);
    }),
    ("units: another unit has its number 1 too", |change| {
        let unit = change.get(&UNITS, &unit_key()).unwrap().unwrap();
        change.put(&UNITS, &Key::name("twin"), &unit).unwrap();
    }),
    ("values: a row belongs to unit number 9, which does not exist", |change| {
        change.put(&VALUES, &Key::unit(9).and_name("key"), &Json("1".to_owned())).unwrap();
    }),
    ("units: run number 2 is not its newest", |change| alter_unit(change, |unit| unit.next_run = 7)),
    ("units: its newest run is not known", |change| alter_unit(change, |unit| unit.run = None)),
    ("units: its watermark is not that of its last finished run", |change| {
        alter_unit(change, |unit| unit.watermark = Some(Micros(1)));
    }),
    ("runs: run number 2 is missing", |change| change.remove(&RUNS, &second()).unwrap()),
    ("runs: run number 5 is not the unit's run", |change| {
        let run = change.get(&RUNS, &second()).unwrap().unwrap();
        change.put(&RUNS, &run_key(1, 5), &run).unwrap();
    }),
    ("run_ids: the id other belongs to no run, or to another one", |change| {
        change
            .put(
                &RUN_IDS,
                &Key::unit(1).and_hash("other"),
                &RunIdRow { run: 2, id: KnownId::Whole("other".to_owned()) },
            )
            .unwrap();
    }),
    ("runs: run second: its id leads to another row", |change| {
        change.remove(&RUN_IDS, &Key::unit(1).and_hash("second")).unwrap();
    }),
    ("runs: run : invalid run id", |change| alter_run(change, |run| run.id = String::new())),
    ("runs: run second: it counts from 0", |change| alter_run(change, |run| run.epoch = 0)),
    ("runs: run second: it is open and has an end", |change| {
        alter_run(change, |run| run.ended_at = Some(Micros(1)));
    }),
    ("runs: run second: it is open, and the ledger has it as over", |change| {
        let entry = change.get(&LEDGER, &run_key(1, 1)).unwrap().unwrap();
        change.put(&LEDGER, &second(), &entry).unwrap();
    }),
    ("runs: run second: it is over, and the ledger does not have it", |change| {
        alter_run(change, |run| run.status = Status::Finished);
    }),
    ("runs: run second: the ledger disagrees with it", |change| {
        alter_run(change, |run| run.status = Status::Finished);
        let entry = change.get(&LEDGER, &run_key(1, 1)).unwrap().unwrap();
        change.put(&LEDGER, &second(), &entry).unwrap();
    }),
    ("streams: 1 rows belong to run number 2, which is not open", |change| {
        alter_run(change, |run| run.status = Status::Finished);
    }),
    ("batches: 4 rows belong to run number 2, which is not open", |change| {
        alter_run(change, |run| run.status = Status::Finished);
    }),
    ("types: 1 rows belong to run number 3, which is not open", |change| {
        change.put(&TYPES, &run_key(1, 3).and_name("issues"), &TypeRow::default()).unwrap();
    }),
    // What was read, and where it is.
    ("types: issues of run second: read: 10, should be 9", |change| {
        alter_types(change, |counts| counts.read += 1);
    }),
    ("types: issues of run second: confirmed: 5, should be 4", |change| {
        alter_types(change, |counts| counts.confirmed += 1);
    }),
    ("types: issues of run second: announced: 3, should be 2", |change| {
        alter_types(change, |counts| counts.announced += 1);
    }),
    ("types: issues of run second: artifacts announced: 2, should be 1", |change| {
        alter_types(change, |counts| counts.artifacts_announced += 1);
    }),
    ("types: issues of run second: 2 items and", |change| {
        alter_types(change, |counts| counts.open_items += 1);
    }),
    ("types: run second: its streams have 10 records, but 9 are counted as read", |change| {
        alter_stream(change, |stream| stream.items += 1);
    }),
    ("runs: run second: 1 pages are counted, but its streams have 2", |change| {
        alter_stream(change, |stream| stream.pages += 1);
    }),
    (
        "streams: stream issues of run second: its cursor and whether it is exhausted contradict each other",
        |change| {
            alter_stream(change, |stream| stream.exhausted = true);
        },
    ),
    ("streams: stream issues of run second: its cursor is not JSON", |change| {
        alter_stream(change, |stream| stream.cursor = Some("{".to_owned()));
    }),
    ("streams: stream issues of run second: its bookmark is not JSON", |change| {
        alter_stream(change, |stream| stream.bookmark = Some("{".to_owned()));
    }),
    ("streams: stream  of run second: invalid stream name", |change| {
        let row = change.get(&STREAMS, &issues()).unwrap().unwrap();
        change.put(&STREAMS, &second(), &row).unwrap();
    }),
    ("types: invalid item type \"a/b\"", |change| {
        change.put(&TYPES, &second().and_name("a/b"), &TypeRow::default()).unwrap();
    }),
    ("runs: run second: 4 open batches are counted, but there are 3", |change| {
        alter_run(change, |run| run.open_batches += 1);
    }),
    ("runs: run second: 5 batch numbers were given out, but 4 batches are counted", |change| {
        alter_run(change, |run| run.next_seq += 1);
    }),
    ("batches: batch 9 of run second: its number was never given out", |change| {
        let row = change.get(&BATCHES, &batch(4)).unwrap().unwrap();
        change.put(&BATCHES, &batch(9), &row).unwrap();
    }),
    ("batches: batch 4 of run second: it is empty, or belongs to no life of the run", |change| {
        alter_batch(change, 4, |batch| batch.epoch = 77);
    }),
    ("batches: batch 4 of run second: its item type bugs has no counts", |change| {
        alter_batch(change, 4, |batch| batch.item_type = "bugs".to_owned());
    }),
    ("batches: batch 3 of run second: its state and its artifact id contradict each other", |change| {
        alter_batch(change, 3, |batch| batch.artifact = None);
    }),
    ("batches: batch 1 of run second: it is announced by message 9, which is missing", |change| {
        alter_batch(change, 1, |batch| batch.state = BatchState::Announced(9));
    }),
    ("messages: message 3 announces 1 artifacts, but names 0 batches", |change| {
        alter_batch(change, 1, |batch| batch.state = BatchState::Confirmed);
    }),
    ("batches: batch 1 of run second: it is announced by message 3, which is missing", |change| {
        alter_message(change, 3, |message| message.fate = MessageFate::Proven);
    }),
    ("chunks: chunk 1 of issues: 1 lines instead of 3", |change| {
        let key = second().and_inner_name("issues").and_number(1);
        alter(change, &CHUNKS, &key, |chunk| chunk.items = 3);
    }),
    ("chunks: chunk 8 of issues belongs to no item type", |change| {
        let key = second().and_inner_name("issues");
        let chunk = change.get(&CHUNKS, &key.clone().and_number(1)).unwrap().unwrap();
        change.put(&CHUNKS, &key.and_number(8), &chunk).unwrap();
    }),
    ("payloads: the bytes of batch 3 are missing", |change| change.remove_all(&PAYLOADS, &batch(3)).unwrap()),
    ("payloads: the bytes of batch 1: no batch needs them", |change| {
        let bytes = change.get(&PAYLOADS, &piece(3, 0)).unwrap().unwrap();
        change.put(&PAYLOADS, &piece(1, 0), &bytes).unwrap();
    }),
    ("payloads: the bytes of batch 4: piece 0 is missing", |change| {
        let bytes = change.get(&PAYLOADS, &piece(4, 0)).unwrap().unwrap();
        change.remove(&PAYLOADS, &piece(4, 0)).unwrap();
        change.put(&PAYLOADS, &piece(4, 1), &bytes).unwrap();
    }),
    ("payloads: the bytes of batch 4: its pieces have ", |change| {
        let bytes = change.get(&PAYLOADS, &piece(4, 0)).unwrap().unwrap();
        change.put(&PAYLOADS, &piece(4, 1), &bytes).unwrap();
    }),
    ("payloads: the bytes of batch 4: they hold 2 lines of", |change| {
        alter_batch(change, 4, |batch| batch.items = 3);
    }),
    ("payloads: the bytes of batch 4: they hold 2 lines of", |change| {
        alter_batch(change, 4, |batch| batch.line_bytes += 1);
    }),
    ("payloads: the bytes of batch 4: its pieces have ", |change| {
        alter_batch(change, 4, |batch| batch.gzip_bytes += 1);
    }),
    ("payloads: the bytes of batch 4: they are not a complete gzip member", |change| {
        let member = b"\x1f\x8bnot gzip at all".to_vec();
        alter_batch(change, 4, |batch| batch.gzip_bytes = member.len() as u64);
        change.put(&PAYLOADS, &piece(4, 0), &Payload(member)).unwrap();
    }),
    // What was found in records.
    ("findings: 1 rows belong to run number 2, which is not open", |change| {
        alter_run(change, |run| run.status = Status::Finished);
    }),
    ("findings: a row belongs to unit number 9, which does not exist", |change| {
        change.put(&FINDINGS, &undeclared().key(&run_key(9, 2)), &FindingRow::default()).unwrap();
    }),
    ("findings: a row of run second: its key has not the parts", |change| {
        change.put(&FINDINGS, &second().and_name("issues"), &FindingRow::default()).unwrap();
    }),
    ("findings: warning undeclared in bugs of run second: nothing of that item type was read", |change| {
        let kind = FindingKind { item_type: "bugs".to_owned(), ..undeclared() };
        change.put(&FINDINGS, &kind.key(&second()), &FindingRow { count: 1, kept: Vec::new() }).unwrap();
    }),
    ("findings: bad undeclared in issues of run second: there is no such kind", |change| {
        let kind = FindingKind { severity: "bad".to_owned(), ..undeclared() };
        change.put(&FINDINGS, &kind.key(&second()), &FindingRow { count: 1, kept: Vec::new() }).unwrap();
    }),
    ("findings: warning undeclared in issues of run second: 8 are counted, but 9 are kept", |change| {
        alter(change, &FINDINGS, &undeclared().key(&second()), |row| row.count = 8);
    }),
    // Rejected records.
    ("rejected: a row belongs to unit number 9, which does not exist", |change| {
        change.put(&REJECTED, &Key::unit(9).and_rejected("issues", "I"), &rejected()).unwrap();
    }),
    ("rejected_in_run: 1 rows belong to run number 1, which is not open", |change| {
        change.put(&REJECTED_IN_RUN, &run_key(1, 1).and_rejected("issues", "I"), &rejected()).unwrap();
    }),
    ("rejected: its key has no item type", |change| {
        change.put(&REJECTED, &unit_key_no().and_name("issues"), &rejected()).unwrap();
    }),
    ("rejected_in_run: its key has no item type", |change| {
        change.put(&REJECTED_IN_RUN, &second().and_name("issues"), &rejected()).unwrap();
    }),
    ("rejected: issues I: it is settled, and kept to be asked for", |change| {
        let row = RejectedRow { fate: RejectedFate::Gone, ..rejected() };
        change.put(&REJECTED, &unit_key_no().and_rejected("issues", "I"), &row).unwrap();
    }),
    ("rejected: a/b I: its item type cannot be one", |change| {
        change.put(&REJECTED, &unit_key_no().and_rejected("a/b", "I"), &rejected()).unwrap();
    }),
    ("rejected: issues : its id has 0 bytes", |change| {
        change.put(&REJECTED, &unit_key_no().and_rejected("issues", ""), &rejected()).unwrap();
    }),
    ("rejected: issues I: it was first rejected by run number 7, which was never given out", |change| {
        let row = RejectedRow { run: 7, ..rejected() };
        change.put(&REJECTED, &unit_key_no().and_rejected("issues", "I"), &row).unwrap();
    }),
    ("rejected: issues I: 20000 bytes of it are kept, over the limit", |change| {
        let row = RejectedRow { json: Some(("x".repeat(20_000), 20_000)), ..rejected() };
        change.put(&REJECTED, &unit_key_no().and_rejected("issues", "I"), &row).unwrap();
    }),
    ("rejected_in_run: issues I: it was requested, but no run had rejected it", |change| {
        let row = RejectedRow { fate: RejectedFate::Passed, ..rejected() };
        change.put(&REJECTED_IN_RUN, &second().and_rejected("issues", "I"), &row).unwrap();
    }),
    ("rejected_in_run: issues I: it is rejected, but none of its type is counted", |change| {
        change.put(&REJECTED_IN_RUN, &second().and_rejected("issues", "I"), &rejected()).unwrap();
    }),
    ("rejected_counts: 3 issues are rejected, but 0 were left out", |change| {
        change.put(&REJECTED_COUNTS, &second().and_name("issues"), &RejectedCountRow { records: 3 }).unwrap();
    }),
    ("rejected_counts: run number 7 has counts but is not in the ledger", |change| {
        let key = run_key(1, 7).and_name("issues");
        change.put(&REJECTED_COUNTS, &key, &RejectedCountRow { records: 3 }).unwrap();
    }),
    // Records that are announced once.
    ("once_ids: 1 rows belong to run number 1, which is not open", |change| {
        let key = run_key(1, 1).and_inner_name("issues").and_digest(&Digest::of("I"));
        change.put(&ONCE, &key, &OnceRow {}).unwrap();
    }),
    ("once_ids: its key has no item type and digest", |change| {
        change.put(&ONCE, &second().and_name("issues"), &OnceRow {}).unwrap();
    }),
    ("once_ids: 1 ids of issues are kept and not counted", |change| {
        let key = second().and_inner_name("issues").and_digest(&Digest::of("I"));
        change.put(&ONCE, &key, &OnceRow {}).unwrap();
    }),
    ("once_counts: 1 ids of issues are counted and 0 kept", |change| {
        let row = OnceCountRow { ids: 1, ..OnceCountRow::default() };
        change.put(&ONCE_COUNTS, &second().and_name("issues"), &row).unwrap();
    }),
    ("0 were left out; 3 are repeated, and 0 ids are kept", |change| {
        let row = OnceCountRow { repeated: 3, ..OnceCountRow::default() };
        change.put(&ONCE_COUNTS, &second().and_name("issues"), &row).unwrap();
    }),
    ("once_counts: run number 7 has counts but is not in the ledger", |change| {
        let key = run_key(1, 7).and_name("issues");
        change.put(&ONCE_COUNTS, &key, &OnceCountRow::default()).unwrap();
    }),
    // Records at the edge.
    ("edge: there are records of run number 1, which is neither open nor remembered", |change| {
        change.put(&EDGE, &edge_key(1), &EdgeRow { content: Digest::of("I") }).unwrap();
    }),
    ("edge: 1 records of issues are kept and not counted", |change| {
        change.put(&EDGE, &edge_key(2), &EdgeRow { content: Digest::of("I") }).unwrap();
    }),
    ("edge: its key has no item type and digest", |change| {
        change.put(&EDGE, &second().and_name("issues"), &EdgeRow { content: Digest::of("I") }).unwrap();
    }),
    ("edge_of: they are of run number 7, which was never given out", |change| {
        change.put(&EDGE_OF, &unit_key_no(), &EdgeOfRow { run: 7, watermark: Micros(0) }).unwrap();
    }),
    ("0 were left out; 3 are unchanged, 1 are counted to be kept, and 0 are", |change| {
        let row = EdgeCountRow { unchanged: 3, ids: 1, forgotten: 0 };
        change.put(&EDGE_COUNTS, &second().and_name("issues"), &row).unwrap();
    }),
    ("edge_counts: run number 7 has counts but is not in the ledger", |change| {
        let key = run_key(1, 7).and_name("issues");
        change.put(&EDGE_COUNTS, &key, &EdgeCountRow::default()).unwrap();
    }),
    // Events and messages.
    ("events: the newest event of run second is missing", |change| {
        change.remove(&EVENTS, &newest_event()).unwrap();
    }),
    ("events: its newest event has number 2 of 3", |change| alter_run(change, |run| run.events += 1)),
    ("runs: the run and its newest event name different answers", |change| {
        alter_run(change, |run| run.message = None);
    }),
    ("runs: run second has events but no newest one", |change| alter_run(change, |run| run.event = None)),
    ("messages: message 2 of run second: it is not delivered, but the run went on", |change| {
        alter_message(change, 2, |message| message.fate = MessageFate::Sealed);
    }),
    ("messages: message 2 of run second: it is older than the run's first", |change| {
        alter_run(change, |run| run.first_message = 3);
    }),
    ("messages: message 3 of run second: it is the DONE of a phase that the run has not done", |change| {
        alter_message(change, 3, |message| message.kind = MessageKind::Done);
    }),
    ("messages: message 2 of run second: it ends the run and was delivered, but the run is open", |change| {
        alter_message(change, 2, |message| message.finishes = true);
    }),
    ("messages: message 3: its number, or its run's, was never given out", |change| {
        alter_unit(change, |unit| unit.next_message = 3);
    }),
    ("messages: message 3: its body is not JSON", |change| {
        alter_message(change, 3, |message| message.body = b"{\"cut".to_vec());
    }),
    ("events: event [\"second\",2]: message 3, which answers it, is missing", |change| {
        change.remove(&MESSAGES, &message_key(1, 3)).unwrap();
    }),
    ("events: event [\"second\",2]: message 3, which answers it, answers another event", |change| {
        alter_message(change, 3, |message| message.event = 7);
    }),
    ("events: event [\"second\",2]: its number, or its run's, was never given out", |change| {
        alter(change, &EVENTS, &newest_event(), |event| event.order = 0);
    }),
    // What outlives a run.
    ("ledger: run first: its id leads to another row", |change| {
        alter(change, &RUN_IDS, &Key::unit(1).and_hash("first"), |row| row.run = 2);
    }),
    ("ledger: run first: it has a watermark but was not finished, or is not over", |change| {
        alter_ledger(change, |run| run.status = Status::Abandoned);
    }),
    ("units: its watermark is not that of its last finished run", |change| {
        alter_ledger(change, |run| run.watermark = None);
    }),
    ("ledger: run first: it was finished, but not everything that it read was announced", |change| {
        alter_ledger(change, |run| run.types[0].announced = 1);
    }),
    ("ledger: it has 1002 runs, over the limit", |change| {
        let entry = change.get(&LEDGER, &run_key(1, 1)).unwrap().unwrap();
        (3..1_004).for_each(|no| change.put(&LEDGER, &run_key(1, no), &entry).unwrap());
    }),
    ("bookmarks: invalid bookmark of stream issues", |change| {
        let row = BookmarkRow { json: "{".to_owned(), run: 1 };
        change.put(&BOOKMARKS, &Key::unit(1).and_name("issues"), &row).unwrap();
    }),
    ("values: invalid value key", |change| {
        change.put(&VALUES, &Key::unit(1).and_name("key"), &Json("{".to_owned())).unwrap();
    }),
    ("values: key \\x07: its key is too short", |change| {
        change.put(&VALUES, &Key::name("\x07"), &Json("1".to_owned())).unwrap();
    }),
];

#[test]
fn every_rule_of_the_check_can_fail() {
    let place = Place::new();
    amid_a_conversation(&place);
    place.is_whole();
    let mut place = place;
    place.close();
    let whole = std::fs::read(&place.path).unwrap();
    for (expected, change) in BROKEN {
        place.reopen();
        place.change(change);
        place.close();
        let findings = place.findings();
        assert!(findings.iter().any(|found| found.contains(expected)), "{expected}: {findings:#?}");
        std::fs::write(&place.path, &whole).unwrap();
    }
    place.is_whole();
}

#[test]
fn a_look_in_place_is_not_disturbed_by_another_look() {
    let mut place = Place::new();
    amid_a_conversation(&place);
    place.close();
    let mut snapshot = Snapshot::open(&place.path).unwrap();
    assert_eq!(snapshot.source(), Source::Closed);
    place.is_whole();
    assert_eq!(snapshot.units(5).count(), 1);
    // The negative control of the next test.
    assert_eq!(snapshot.source(), Source::Closed);
}

#[test]
fn an_owner_that_opens_the_file_under_a_look_is_noticed_and_not_turned_away() {
    for (closes, changes) in [(false, true), (true, true), (false, false)] {
        let mut place = Place::new();
        let more = |place: &Place, unit: &str, next: u32| {
            let run = place.store.as_ref().unwrap().sync_unit(unit).unwrap().begin().unwrap();
            stage(&run, Phase::Data, 5, Some(next));
        };
        more(&place, "a", 1);
        more(&place, "b", 1);
        place.close();

        let mut snapshot = Snapshot::open(&place.path).unwrap();
        assert_eq!(snapshot.source(), Source::Closed);
        let mut units = snapshot.units(5);
        let first = units.next().unwrap().unwrap();
        assert_eq!((first.unit.sync_unit.as_str(), first.item_types[0].read), ("a", 5));

        place.reopen();
        if changes {
            // Enough for pages of the moment that is looked at to be used again.
            for next in 2..22 {
                more(&place, "b", next);
            }
        }
        if closes {
            place.close();
        }
        let second = units.next().unwrap().unwrap();
        let expected = if changes { 105 } else { 5 };
        assert_eq!((second.unit.sync_unit.as_str(), second.item_types[0].read), ("b", expected));
        assert!(units.next().is_none());
        assert_eq!(snapshot.source(), Source::Copy { copies: 1 });
        assert_eq!(snapshot.unit("a", 5).unwrap().unwrap().item_types[0].read, 5);
        drop(snapshot);
        place.close();
        place.is_whole();
    }
}

#[test]
fn a_damaged_file_that_is_open_is_damaged_and_not_just_busy() {
    let place = Place::new();
    amid_a_conversation(&place);
    // The owner does not read these pages again, so it does not notice.
    let mut bytes = std::fs::read(&place.path).unwrap();
    let path = place.path.with_extension("copy");
    std::fs::write(&path, &bytes).unwrap();
    let owner = Store::open(&path).unwrap();
    for at in (4096..bytes.len()).step_by(64) {
        bytes[at] ^= 0x55;
    }
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    io::copy(&mut &bytes[4096..], &mut SeekTo(file, 4096)).unwrap();
    assert!(matches!(Snapshot::open(&path), Err(Error::Corrupt { .. })));
    let report = check(&path).unwrap();
    assert_eq!((report.findings.len(), report.findings[0].table), (1, None));
    std::mem::forget(owner);
}

/// Writes to a file from a place on.
struct SeekTo(File, u64);

impl Write for SeekTo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.seek(SeekFrom::Start(self.1))?;
        let written = self.0.write(bytes)?;
        self.1 += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn json_text_is_shown_on_one_line_as_exact_as_it_is_stored() {
    let place = Place::new();
    place.unit().begin().unwrap();
    place.change(|change| {
        let json = "{\n \"big\": 123456789012345678901234567890,\r\n \"text\": \"a\\nb\" }";
        change.put(&VALUES, &Key::unit(1).and_name("odd"), &Json(json.to_owned())).unwrap();
        change.put(&VALUES, &Key::unit(1).and_name("none"), &Json("{\n".to_owned())).unwrap();
    });
    let report = Snapshot::open(&place.path).unwrap().unit(UNIT, 5).unwrap().unwrap();
    let lines: Vec<String> = report.lines().map(|line| serde_json::to_string(&line).unwrap()).collect();
    assert!(lines.iter().all(|line| !line.contains('\n')));
    let odd = lines.iter().find(|line| line.contains("\"odd\"")).unwrap();
    assert!(odd.contains("123456789012345678901234567890") && odd.contains("\"a\\nb\""), "{odd}");
    let none = lines.iter().find(|line| line.contains("\"none\"")).unwrap();
    assert!(none.contains("\"value\":\"{\\n\""), "{none}");
}
