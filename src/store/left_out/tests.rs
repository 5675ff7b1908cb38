//! What is left out for having been announced, compared with a reference that remembers everything: over random pages,
//! lives, machines and runs.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use chrono::DateTime;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::json;

use crate::artifact::decompress;
use crate::clock::VirtualClock;
use crate::error::Error;
use crate::model::{BATCH_BYTES_MAX, EDGE_BYTES_MAX, ONCE_BYTES_MAX, Phase, StreamName};
use crate::record::Record;
use crate::store::backend::memory::Memory;
use crate::store::checkpoint::Checkpoint;
use crate::store::rows::{
    EDGE, EDGE_COUNTS, EdgeCountRow, ONCE, ONCE_COUNTS, OnceCountRow, RUNS, UNITS, WindowRow,
};
use crate::store::{Page, Run, Store, SyncUnit};

use super::*;

/// How a page brings a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Each,
    Once,
}

/// A record of a page: its item type, its id, its version, when it was modified, and how it is brought.
type Brought = (u8, u8, u8, u8, Way);

/// A record that was read: its item type, its id, and its line.
type Read = (u8, u8, String);

/// Seconds between the beginnings of two runs; records are modified at these times.
const TICK_SECONDS: i64 = 10;
const FIRST_SECOND: i64 = 1_750_000_000;

#[derive(Debug, Clone)]
enum Step {
    /// Records, and the item type of which unchanged ones are left out.
    Page(Vec<Brought>, Option<u8>),
    /// What is staged is uploaded; a checkpoint is saved; what is uploaded is announced.
    Save,
    /// The process dies, and goes on with its disk.
    Dies,
    /// It goes on on another machine, from the checkpoint.
    Moves,
    Finish,
    Abandon,
    Delete,
    /// The unit is set back to the beginning.
    Reset,
    /// The platform asks the run for all of the past.
    Window,
}

fn record((item_type, id, version, tick, _): Brought) -> Record {
    let record = Record::new(format!("{item_type}-{id}"), &json!({ "version": version })).unwrap();
    record.modified(DateTime::from_timestamp(FIRST_SECOND + TICK_SECONDS * i64::from(tick), 0).unwrap())
}

fn name(item_type: u8) -> String {
    format!("type-{item_type}")
}

/// What a worker does, in a store in memory.
struct Worker {
    unit: SyncUnit,
    run: Run,
    clock: VirtualClock,
    /// By artifact: what the platform knows.
    announced: BTreeMap<String, Vec<String>>,
    saved: Option<Checkpoint>,
    pages: u32,
    /// Bytes that a checkpoint has for ids.
    room: u64,
}

fn empty_unit(clock: &VirtualClock) -> SyncUnit {
    let store = Store::options().clock(clock.clone()).open_in(Memory::new(), "a store").unwrap();
    store.sync_unit("unit").unwrap()
}

fn first_moment() -> VirtualClock {
    VirtualClock::at(DateTime::from_timestamp(FIRST_SECOND, 0).unwrap())
}

impl Worker {
    fn new(room: u64) -> Self {
        let clock = first_moment();
        let unit = empty_unit(&clock);
        let run = unit.begin().unwrap();
        Self { unit, run, clock, announced: BTreeMap::new(), saved: None, pages: 0, room }
    }

    fn page(&mut self, brought: &[Brought], edge: Option<u8>, next: Option<u32>) {
        let mut page = Page::with_next(next);
        for one in brought {
            let (item_type, .., way) = one;
            match way {
                Way::Each => page.push(&name(*item_type), record(*one)),
                Way::Once => page.push_once(&name(*item_type), record(*one)),
            }
        }
        if let Some(item_type) = edge {
            page.set_leave_out_unchanged(&name(item_type));
        }
        self.pages += 1;
        self.run.stage(&StreamName::new("all").unwrap(), Phase::Data, 3, page).unwrap();
    }

    fn save(&mut self) {
        self.run.close_open().unwrap();
        for batch in self.run.unsettled().unwrap() {
            let id = crate::model::ArtifactId::new(format!("{}/{}", self.run.id(), batch.info.seq)).unwrap();
            if batch.artifact.is_none() {
                self.run.uploaded(batch.info.seq, &id).unwrap();
            }
        }
        let position = self.run.position().unwrap();
        let checkpoint = self.run.checkpoint("token", position.as_ref(), self.room).unwrap();
        // Through its text, as it is kept.
        let json = checkpoint.to_json("unit").unwrap();
        self.run.saved(&checkpoint).unwrap();
        self.saved = Some(Checkpoint::from_json(&json, "unit").unwrap());
        self.announce();
    }

    /// Announces what is uploaded.
    fn announce(&mut self) {
        for batch in self.run.unsettled().unwrap() {
            let Some(artifact) = batch.artifact else { continue };
            // A batch that was restored from a checkpoint has no bytes here; the platform has them.
            if let Ok(member) = self.run.payload(batch.info.seq) {
                let mut text = Vec::new();
                decompress(&member, BATCH_BYTES_MAX, &mut text).unwrap();
                let lines = String::from_utf8(text).unwrap().lines().map(str::to_owned).collect();
                self.announced.insert(artifact.to_string(), lines);
            }
        }
        for batch in self.run.batches("none", |_: Option<u32>| Ok::<_, Error>(Page::last())) {
            let batch = batch.unwrap();
            let id = batch.artifact_id().unwrap();
            batch.acknowledge(id).unwrap();
        }
    }

    fn begin(&mut self) {
        self.clock.advance(Duration::from_secs(TICK_SECONDS.unsigned_abs()));
        self.run = self.unit.begin().unwrap();
        self.announced.clear();
        self.pages = 0;
    }

    /// What is announced of the run, sorted.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.announced.values().flatten().cloned().collect();
        lines.sort();
        lines
    }
}

/// Something that a run read, and what came of it.
#[derive(Debug, Clone)]
struct Event {
    run: usize,
    /// Unchanged records of its type were to be left out, and it was modified since the run began.
    at_edge: bool,
    line: String,
}

/// All that was ever read.
#[derive(Debug, Clone, Default)]
struct Reference {
    /// The number of the run, when each run began, and the one that was finished last.
    run: usize,
    begun: Vec<i64>,
    finished: Option<usize>,
    /// Whether the current run continues where the finished one ended, and whether the next one would.
    goes_on: bool,
    stands: bool,
    /// What was staged or left out as unchanged, by item type and id, in that order.
    events: BTreeMap<(u8, u8), Vec<Event>>,
    /// The records that the run must announce, what it has staged once, and what it left out.
    lines: Vec<Read>,
    once: BTreeSet<(u8, u8)>,
    repeated: u64,
    unchanged: u64,
}

impl Reference {
    fn new() -> Self {
        Self { begun: vec![FIRST_SECOND], ..Self::default() }
    }

    /// Whether a finished run, the last one, has read this line at the edge, and nothing else of the record was
    /// staged since.
    fn is_unchanged(&self, of: (u8, u8), line: &str) -> bool {
        let Some(finished) = self.finished.filter(|_| self.goes_on) else { return false };
        for event in self.events.get(&of).into_iter().flatten().rev() {
            if event.line != line || event.run < finished {
                return false;
            }
            if event.run == finished && event.at_edge {
                return true;
            }
        }
        false
    }

    fn page(&mut self, brought: &[Brought], edge: Option<u8>) {
        // A page has those of one type and way together.
        let mut groups: Vec<(u8, Way)> = Vec::new();
        for (item_type, .., way) in brought {
            if !groups.contains(&(*item_type, *way)) {
                groups.push((*item_type, *way));
            }
        }
        for group in groups {
            for one in brought.iter().filter(|(item_type, .., way)| (*item_type, *way) == group) {
                let (item_type, id, _, tick, way) = *one;
                let line = record(*one).to_line();
                if way == Way::Once && !self.once.insert((item_type, id)) {
                    self.repeated += 1;
                    continue;
                }
                let is_on = edge == Some(item_type);
                let modified = FIRST_SECOND + TICK_SECONDS * i64::from(tick);
                if is_on && self.is_unchanged((item_type, id), &line) {
                    self.unchanged += 1;
                } else {
                    self.lines.push((item_type, id, line.clone()));
                }
                let at_edge = is_on && modified >= self.begun[self.run];
                let event = Event { run: self.run, at_edge, line };
                self.events.entry((item_type, id)).or_default().push(event);
            }
        }
    }

    /// The next run begins.
    fn begin(&mut self, worker: &Worker) {
        self.run += 1;
        self.begun.push(worker.run.started_at().timestamp());
        self.goes_on = self.stands;
        self.lines.clear();
        self.once.clear();
        (self.repeated, self.unchanged) = (0, 0);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let way = prop_oneof![Just(Way::Each), Just(Way::Once)];
    let brought = (0..2_u8, 0..3_u8, 0..2_u8, 0..6_u8, way);
    let edge = prop_oneof![1 => Just(None), 4 => (0..2_u8).prop_map(Some)];
    let page =
        (prop::collection::vec(brought, 0..6), edge).prop_map(|(brought, edge)| Step::Page(brought, edge));
    let step = prop_oneof![
        8 => page,
        3 => Just(Step::Save),
        1 => Just(Step::Dies),
        2 => Just(Step::Moves),
        4 => Just(Step::Finish),
        1 => Just(Step::Abandon),
        1 => Just(Step::Delete),
        1 => Just(Step::Reset),
        1 => Just(Step::Window),
    ];
    prop::collection::vec(step, 1..40)
}

/// Plays the steps, and compares each run's end with the reference. `befalls`: the worker, after each page.
fn play(steps: &[Step], room: u64, befalls: impl Fn(&Worker), compare: impl Fn(&Worker, &Reference)) {
    let mut worker = Worker::new(room);
    let mut reference = Reference::new();
    // As it stood when the checkpoint was saved.
    let mut saved: Option<Reference> = None;
    for step in steps {
        let tables = |worker: &Worker| worker.unit.inner.clone();
        let mut is_over = false;
        match step {
            Step::Page(brought, edge) => {
                worker.page(brought, *edge, Some(worker.pages));
                reference.page(brought, *edge);
                befalls(&worker);
            }
            Step::Save => {
                worker.save();
                saved = Some(reference.clone());
            }
            Step::Dies => worker.run = worker.unit.begin().unwrap(),
            Step::Moves => {
                let (Some(checkpoint), Some(then)) = (&worker.saved, &saved) else { continue };
                worker.unit = empty_unit(&worker.clock);
                worker.unit.restore(checkpoint, &[]).unwrap();
                worker.run = worker.unit.begin().unwrap();
                worker.announce();
                reference = then.clone();
            }
            Step::Finish => {
                worker.page(&[], None, None);
                worker.save();
                compare(&worker, &reference);
                let run = std::mem::replace(&mut worker.run, worker.unit.newest_run().unwrap().unwrap());
                run.finish().unwrap();
                (reference.finished, reference.stands) = (Some(reference.run), true);
                is_over = true;
            }
            Step::Abandon => {
                worker.unit.abandon().unwrap();
                is_over = true;
            }
            Step::Delete => {
                worker.unit.delete().unwrap();
                (reference.finished, reference.stands) = (None, false);
                reference.events.clear();
                is_over = true;
            }
            Step::Reset => {
                worker.unit.abandon().unwrap();
                let set_back = tables(&worker).tables.change(|change| {
                    let mut unit = change.need(&UNITS, &worker.unit.key())?;
                    unit.watermark = None;
                    change.put(&UNITS, &worker.unit.key(), &unit)
                });
                set_back.unwrap();
                reference.stands = false;
                is_over = true;
            }
            Step::Window => {
                let widened = tables(&worker).tables.change(|change| {
                    let mut row = change.need(&RUNS, &worker.run.run_key())?;
                    row.window = Some(WindowRow { from: None, to: row.started_at });
                    change.put(&RUNS, &worker.run.run_key(), &row)
                });
                widened.unwrap();
                reference.goes_on = false;
            }
        }
        if is_over {
            worker.begin();
            reference.begin(&worker);
            worker.save();
            saved = Some(reference.clone());
        }
    }
}

/// Compares the announced lines with those of the reference, and the counts.
fn is_equal(worker: &Worker, reference: &Reference) {
    let mut expected: Vec<String> = reference.lines.iter().map(|(_, _, line)| line.clone()).collect();
    expected.sort();
    assert_eq!(worker.lines(), expected);
    let left_out = worker.run.left_out().unwrap();
    let (repeated, unchanged) = (reference.repeated, reference.unchanged);
    assert_eq!(left_out, LeftOutCounts { repeated, unchanged, ..LeftOutCounts::default() });
}

fn config() -> ProptestConfig {
    let failures = FileFailurePersistence::Direct("proptest-regressions/left_out.txt");
    ProptestConfig { cases: 96, failure_persistence: Some(Box::new(failures)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_announced_is_what_a_reference_that_remembers_everything_says(steps in steps()) {
        play(&steps, u64::MAX, |_| {}, is_equal);
    }

    /// A checkpoint has room for a few ids, or for none: then records repeat, and none is lost.
    #[test]
    fn without_room_in_the_checkpoint_records_repeat_and_none_is_lost(
        mut steps in steps(), room in prop_oneof![Just(0), Just(1_250), Just(2_600), Just(5_200)],
    ) {
        // No record of a type that is announced once is at the edge. Otherwise the edge could know a version that is
        // announced again for lack of room, which the reference does not have.
        for step in &mut steps {
            let Step::Page(brought, edge) = step else { continue };
            for one in brought.iter_mut() {
                one.4 = if one.0 == 0 { Way::Each } else { Way::Once };
            }
            *edge = edge.map(|_| 0);
        }
        play(&steps, room, |_| {}, |worker, reference| {
            // A record that is announced again may have another version.
            let mut found: Vec<String> = worker.lines();
            for (item_type, id, _) in &reference.lines {
                let start = format!(r#"{{"id":"{item_type}-{id}""#);
                let at = found.iter().position(|line| line.starts_with(&start));
                found.remove(at.unwrap_or_else(|| panic!("{start} is lost")));
            }
        });
    }
}

/// What a worker forgets, or takes for known though nothing was announced, is found.
#[test]
fn a_worker_that_remembers_less_or_more_is_found() {
    let issue = |version, way| (0, 1, version, 5, way);
    let once = [
        Step::Page(vec![issue(0, Way::Once)], None),
        Step::Page(vec![issue(1, Way::Once)], None),
        Step::Finish,
    ];
    let edge = [
        Step::Page(vec![issue(0, Way::Each)], Some(0)),
        Step::Finish,
        Step::Page(vec![issue(0, Way::Each)], Some(0)),
        Step::Page(vec![issue(1, Way::Each)], Some(0)),
        Step::Finish,
        Step::Page(vec![issue(1, Way::Each), issue(0, Way::Each)], Some(0)),
        Step::Finish,
    ];
    let forgets = |worker: &Worker| {
        let forgotten = worker.unit.inner.tables.change(|change| {
            change.remove_all(&ONCE, &Key::unit(worker.run.unit_no))?;
            change.remove_all(&EDGE, &Key::unit(worker.run.unit_no))
        });
        forgotten.unwrap();
    };
    // The version of before counts as known.
    let mistakes = |worker: &Worker| {
        let mistaken = worker.unit.inner.tables.change(|change| {
            let prefix = Key::unit(worker.run.unit_no);
            let first = record(issue(0, Way::Each)).to_line() + "\n";
            for (tail, mut row) in change.all(&EDGE, &prefix)? {
                row.content = crate::store::digest::Digest::of(&first);
                change.put(&EDGE, &prefix.clone().and_bytes(&tail), &row)?;
            }
            Ok(())
        });
        mistaken.unwrap();
    };
    for steps in [&once[..], &edge] {
        play(steps, u64::MAX, |_| {}, is_equal);
        let fails = |befalls: &dyn Fn(&Worker)| {
            catch_unwind(AssertUnwindSafe(|| play(steps, u64::MAX, befalls, is_equal))).is_err()
        };
        assert!(fails(&forgets));
        assert_eq!(fails(&mistakes), steps.len() == edge.len());
    }
}

#[test]
fn without_room_in_the_store_records_at_the_edge_come_again_and_it_is_said() {
    let mut worker = Worker::new(u64::MAX);
    let ids = EDGE_BYTES_MAX / (80 + 6) - 1;
    let key = worker.run.run_key().and_name(&name(0));
    let row = EdgeCountRow { ids, ..EdgeCountRow::default() };
    worker.unit.inner.tables.change(|change| change.put(&EDGE_COUNTS, &key, &row)).unwrap();
    let issues: Vec<Brought> = (0..3).map(|id| (0, id, 0, 5, Way::Each)).collect();
    worker.page(&issues, Some(0), Some(1));
    let counts = worker.unit.inner.tables.view(|rows| rows.need(&EDGE_COUNTS, &key)).unwrap();
    assert_eq!(counts, EdgeCountRow { unchanged: 0, ids: ids + 1, forgotten: 2 });
    worker.page(&[], None, None);
    worker.save();
    std::mem::replace(&mut worker.run, worker.unit.newest_run().unwrap().unwrap()).finish().unwrap();
    worker.begin();
    worker.page(&issues, Some(0), None);
    worker.save();
    assert_eq!((worker.lines().len(), worker.run.left_out().unwrap().unchanged), (2, 1));
}

/// What is modified within the overlap is asked for again, and known.
#[test]
fn the_edge_reaches_back_by_the_overlap() {
    let clock = first_moment();
    let overlap = Duration::from_secs(60);
    let options = Store::options().clock(clock.clone()).overlap(overlap);
    let unit = options.open_in(Memory::new(), "a store").unwrap().sync_unit("unit").unwrap();
    let modified = |seconds: i64| {
        let at = DateTime::from_timestamp(FIRST_SECOND + seconds, 0).unwrap();
        Record::new(format!("I{seconds}"), &json!({})).unwrap().modified(at)
    };
    for expected in [0, 2, 0] {
        let run = unit.begin().unwrap();
        let page = Page::<u32>::last().leave_out_unchanged("issues");
        let page = [-61, -60, 0].into_iter().fold(page, |page, at| page.record("issues", modified(at)));
        run.stage(&StreamName::new("all").unwrap(), Phase::Data, 10, page).unwrap();
        assert_eq!(run.left_out().unwrap().unchanged, expected);
        for batch in run.batches("none", |_: Option<u32>| Ok::<_, Error>(Page::last())) {
            let batch = batch.unwrap();
            let id = batch.key().to_string();
            batch.acknowledge(id).unwrap();
        }
        run.finish().unwrap();
        clock.advance(Duration::from_secs(100));
    }
}

#[test]
fn without_room_in_the_store_records_repeat_and_it_is_said() {
    let mut worker = Worker::new(u64::MAX);
    // As many as leave room for one.
    let ids = ONCE_BYTES_MAX / (64 + 6) - 1;
    let row = OnceCountRow { repeated: 0, ids, forgotten: 0 };
    let key = worker.run.run_key().and_name(&name(0));
    worker.unit.inner.tables.change(|change| change.put(&ONCE_COUNTS, &key, &row)).unwrap();
    let users: Vec<Brought> = (0..3).map(|id| (0, id, 0, 0, Way::Once)).collect();
    worker.page(&users, None, Some(1));
    worker.page(&users, None, Some(2));
    let counts = worker.unit.inner.tables.view(|rows| rows.need(&ONCE_COUNTS, &key)).unwrap();
    assert_eq!(counts, OnceCountRow { repeated: 1, ids: ids + 1, forgotten: 4 });
    worker.save();
    assert_eq!(worker.lines().len(), 5);
    // No more is written of a type that has taken all, nor of another.
    worker.page(&[(1, 0, 0, 0, Way::Once), (1, 0, 0, 0, Way::Once)], None, Some(3));
    worker.save();
    assert_eq!(worker.lines().len(), 7);
}

#[test]
fn a_flat_record_cannot_be_announced_once() {
    let run = empty_unit(&first_moment()).begin().unwrap();
    let page = Page::<u32>::last().record_once("users", Record::flat(&json!({ "id": "U" })).unwrap());
    let error = run.stage(&StreamName::new("all").unwrap(), Phase::Data, 3, page).unwrap_err();
    assert!(error.to_string().contains("it is flat, so it has no id"), "{error}");
    assert_eq!(run.left_out().unwrap(), LeftOutCounts::default());
}
