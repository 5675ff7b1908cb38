//! An event of a past run changes nothing, however late it comes. That includes deletions; it holds with a disk and
//! without, wherever the process died.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::world::{Call, Source, World, all_of, event, event_with, page_of};
use highwater::airdrop::{Context, Event, OutcomeKind};
use highwater::testing::Fault;
use highwater::{Clock, Error};
use serde_json::json;

const METADATA: &str = "EXTRACTION_METADATA_START";
const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";
const ATTACHMENTS: &str = "EXTRACTION_ATTACHMENTS_START";
const DELETE: &str = "EXTRACTION_DATA_DELETE";

/// How a worker lives.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Worker {
    /// It keeps its disk, and no checkpoints.
    Disk,
    /// It keeps both.
    Both,
    /// Every invocation is on a new machine.
    NoDisk,
}

const WORKERS: [Worker; 3] = [Worker::Disk, Worker::Both, Worker::NoDisk];

struct Unit {
    world: World,
    worker: Worker,
    /// From when on the last page was asked for.
    since: Arc<Mutex<Option<DateTime<Utc>>>>,
}

impl Unit {
    fn new(worker: Worker) -> Self {
        let mut world = World::new(2);
        if worker != Worker::Disk {
            world.serve = world.serve.clone().checkpoints();
        }
        Self { world, worker, since: Arc::default() }
    }

    fn since(&self) -> Option<DateTime<Utc>> {
        *self.since.lock().unwrap()
    }

    /// A new process, on the machine that the worker has then.
    fn next_life(&mut self) {
        match self.worker {
            Worker::Disk | Worker::Both => self.world.restart(),
            Worker::NoDisk => self.world.lose_disk(),
        }
    }

    /// Four pages, one in each invocation.
    fn try_serve(&mut self, event: &Event) -> highwater::Result<OutcomeKind> {
        let (clock, since) = (self.world.clock.clone(), Arc::clone(&self.since));
        let mut source = Source::new(move |context: &Context, stream: &str, cursor: Option<u32>| {
            *since.lock().unwrap() = context.since();
            clock.advance(Duration::from_secs(9 * 60));
            Ok(page_of(stream, cursor.unwrap_or(0), 4, 3))
        });
        let outcome = self.world.serve(&mut source, event);
        self.world.clock.advance(Duration::from_secs(60));
        outcome.map(|outcome| outcome.kind)
    }

    fn serve(&mut self, event: &Event) -> OutcomeKind {
        self.next_life();
        self.try_serve(event).unwrap()
    }

    /// The first half of a run; says when it started.
    fn begin(&mut self, run: &str) -> DateTime<Utc> {
        let started_at = self.world.clock.now();
        assert_eq!(self.serve(&event(METADATA, run, &format!("{run}-1"))), OutcomeKind::Done);
        assert_eq!(self.serve(&event(DATA, run, &format!("{run}-2"))), OutcomeKind::Progress);
        started_at
    }

    fn end(&mut self, run: &str) {
        let done = (3..10).any(|request| {
            self.serve(&event(DATA_ON, run, &format!("{run}-{request}"))) == OutcomeKind::Done
        });
        assert!(done, "{run} does not end");
        assert_eq!(self.serve(&event(ATTACHMENTS, run, &format!("{run}-10"))), OutcomeKind::Done);
        let mut announced = self.world.airdrop.announced(run);
        announced.sort();
        assert_eq!(announced, all_of("issues", 4, 3), "{:?}, {run}: each once", self.worker);
    }

    fn run(&mut self, run: &str) -> DateTime<Utc> {
        let started_at = self.begin(run);
        self.end(run);
        started_at
    }

    /// An event that comes too late to do anything.
    fn is_late(&mut self, late: &Event) {
        self.next_life();
        let messages = self.world.airdrop.attempts().len();
        match self.try_serve(late) {
            Err(Error::StaleEvent { .. }) => {}
            other => panic!("{:?}: {other:?}", self.worker),
        }
        assert_eq!(self.world.airdrop.attempts().len(), messages, "nothing is sent");
    }
}

#[test]
fn a_late_deletion_amid_a_later_run_changes_nothing_and_is_answered_done() {
    for worker in WORKERS {
        for deletion in [DELETE, "EXTRACTION_ATTACHMENTS_DELETE"] {
            let mut unit = Unit::new(worker);
            let first = unit.run("first");
            let delete = event(deletion, "first", "delete-1");
            assert_eq!(unit.serve(&delete), OutcomeKind::Done);
            let second = unit.run("second");
            let all_again = deletion == DELETE;
            assert_eq!(unit.since(), (!all_again).then_some(first), "{worker:?} {deletion}");
            unit.begin("third");
            let kept = (worker != Worker::Disk).then(|| unit.world.airdrop.state());
            for late in [
                delete,
                // Never answered, and of a run that another has followed.
                event(deletion, "second", "delete-2"),
                event(deletion, "first", "delete-3"),
            ] {
                let messages = unit.world.airdrop.messages().len();
                assert_eq!(unit.serve(&late), OutcomeKind::Done);
                let sent = unit.world.airdrop.attempts().pop().unwrap();
                assert_eq!(sent.event_type, format!("{deletion}_DONE"));
                assert!(unit.world.airdrop.messages().len() <= messages + 1);
            }
            if let Some(kept) = kept {
                assert_eq!(unit.world.airdrop.state(), kept, "{worker:?} {deletion}");
            }
            unit.end("third");
            assert_eq!(unit.since(), Some(second), "{worker:?} {deletion}");
            // The control: for the current run the event is still a deletion.
            assert_eq!(unit.serve(&event(deletion, "third", "delete-4")), OutcomeKind::Done);
            unit.run("fourth");
            assert_eq!(unit.since().is_none(), all_again, "{worker:?} {deletion}");
        }
    }
}

#[test]
fn an_event_of_a_run_before_a_deletion_changes_nothing() {
    for worker in WORKERS {
        let mut unit = Unit::new(worker);
        unit.run("first");
        unit.begin("second");
        // Amid the second run: the next of it is one of a past run as well.
        assert_eq!(unit.serve(&event(DELETE, "second", "delete")), OutcomeKind::Done);
        let late = [
            event(METADATA, "first", "first-1"),
            event(DATA_ON, "first", "first-99"),
            event(DATA_ON, "second", "second-3"),
            event(ATTACHMENTS, "second", "second-10"),
        ];
        for late in &late {
            unit.is_late(late);
        }
        unit.begin("third");
        for late in &late {
            unit.is_late(late);
        }
        unit.end("third");
        assert_eq!(unit.since(), None);
    }
}

#[test]
fn a_deletion_that_no_id_tells_from_another_is_made() {
    for worker in WORKERS {
        let mut unit = Unit::new(worker);
        unit.run("first");
        let without_ids =
            event_with(DELETE, &json!({ "sync_unit_id": "unit", "external_sync_unit_id": "e" }));
        for run in ["second", "third"] {
            assert_eq!(unit.serve(&without_ids), OutcomeKind::Done);
            unit.run(run);
            assert_eq!(unit.since(), None, "{worker:?}");
        }
    }
}

/// Where a deletion can die: at an operation of the disk, or right after a call to the platform.
#[derive(Debug, Clone, Copy)]
enum Death {
    Disk(usize),
    Call(Call, u64),
}

#[test]
fn a_deletion_that_dies_anywhere_is_made_whole_when_it_is_delivered_again_and_is_late_after_that() {
    for worker in WORKERS {
        let mut deaths = 0;
        let at_calls = [Call::LoadState, Call::SaveState, Call::Send]
            .into_iter()
            .flat_map(|call| (0..2).map(move |skip| Death::Call(call, skip)));
        for death in (0..60).map(Death::Disk).chain(at_calls) {
            for delivered_again in [true, false] {
                let mut unit = Unit::new(worker);
                let first = unit.run("first");
                unit.next_life();
                match death {
                    Death::Disk(after) => {
                        let position = unit.world.disk.position() + after;
                        unit.world.disk.inject(Fault::Dies { position });
                    }
                    Death::Call(call, skip) => {
                        unit.world.airdrop.kill_at(call, skip, &unit.world.disk);
                    }
                }
                let delete = event(DELETE, "first", "delete");
                let answered = unit.try_serve(&delete).is_ok();
                if !unit.world.disk.is_dead() {
                    continue;
                }
                deaths += 1;
                if delivered_again {
                    assert_eq!(unit.serve(&delete), OutcomeKind::Done, "{worker:?} {death:?}");
                }
                let second = unit.run("second");
                let since = unit.since();
                if delivered_again || answered {
                    assert_eq!(since, None, "{worker:?} {death:?}");
                } else {
                    assert!(since.is_none() || since == Some(first), "{worker:?} {death:?}: {since:?}");
                }
                unit.begin("third");
                assert_eq!(unit.serve(&delete), OutcomeKind::Done, "{worker:?} {death:?}");
                unit.end("third");
                assert_eq!(unit.since(), Some(second), "{worker:?} {death:?} {delivered_again}");
            }
        }
        assert!(deaths >= 10, "{worker:?}: {deaths}");
    }
}

#[test]
fn what_outlives_a_deletion_stands_beside_what_is_others_and_says_nothing_of_the_unit() {
    let mut unit = Unit::new(Worker::NoDisk);
    unit.world.airdrop.set_state(&json!({ "own": "kept" }));
    unit.run("first");
    assert_eq!(unit.serve(&event(DELETE, "first", "delete")), OutcomeKind::Done);
    assert_eq!(unit.world.airdrop.state_after_deletion(), json!({ "own": "kept" }));
    let checkpoint = unit.world.airdrop.checkpoint();
    assert_eq!((&checkpoint["run"], &checkpoint["unit"]["watermark"]), (&json!(null), &json!(null)));
    assert_eq!(checkpoint["past_runs"].as_array().unwrap().len(), 1);
    assert_eq!(checkpoint["deletions"].as_array().unwrap().len(), 1);
    assert!(unit.world.airdrop.state_text().len() < 1_000, "{}", unit.world.airdrop.state_text().len());
}

/// Two ids whose XXH3 of 64 bits is the same.
const TWINS: [&str; 2] = ["cgacponhdmlhpbcg", "ihganlcdfnnmgpck"];

#[test]
fn two_runs_whose_ids_have_one_64_bit_hash_are_two_without_a_disk() {
    for [first, second] in [TWINS, [TWINS[1], TWINS[0]]] {
        for worker in WORKERS {
            let mut unit = Unit::new(worker);
            let started_at = unit.run(first);
            unit.run(second);
            assert_eq!(unit.since(), Some(started_at), "{worker:?}");
            unit.is_late(&event(METADATA, first, "late"));
            // And through a deletion.
            assert_eq!(unit.serve(&event(DELETE, second, "delete")), OutcomeKind::Done);
            unit.is_late(&event(METADATA, first, "late"));
            unit.is_late(&event(METADATA, second, "late"));
            let mut other = Unit::new(worker);
            other.run(first);
            assert_eq!(other.serve(&event(DELETE, first, "delete")), OutcomeKind::Done);
            other.run(second);
        }
    }
}
