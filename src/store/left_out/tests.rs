//! What is left out for having been announced, compared with a reference that remembers everything: over random pages,
//! lives, machines and runs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::json;

use crate::artifact::decompress;
use crate::error::Error;
use crate::model::{BATCH_BYTES_MAX, ONCE_BYTES_MAX, Phase, StreamName};
use crate::record::Record;
use crate::store::checkpoint::Checkpoint;
use crate::store::rows::{ONCE_COUNTS, OnceCountRow};
use crate::store::{Page, Run, Store, SyncUnit};

use super::*;

/// How a page brings a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Each,
    Once,
}

/// A record of a page: its item type, its id, its version, and how it is brought.
type Brought = (u8, u8, u8, Way);

#[derive(Debug, Clone)]
enum Step {
    Page(Vec<Brought>),
    /// What is staged is uploaded; a checkpoint is saved; what is uploaded is announced.
    Save,
    /// The process dies, and goes on with its disk.
    Dies,
    /// It goes on on another machine, from the checkpoint.
    Moves,
    Finish,
    Abandon,
    Delete,
}

fn line(&(item_type, id, version, _): &Brought) -> String {
    record(item_type, id, version).to_line()
}

fn record(item_type: u8, id: u8, version: u8) -> Record {
    Record::new(format!("{item_type}-{id}"), &json!({ "version": version })).unwrap()
}

fn name(item_type: u8) -> String {
    format!("type-{item_type}")
}

/// What a worker does, in a store in memory.
struct Worker {
    unit: SyncUnit,
    run: Run,
    /// By artifact: what the platform knows.
    announced: BTreeMap<String, Vec<String>>,
    saved: Option<Checkpoint>,
    pages: u32,
    /// Bytes that a checkpoint has for ids.
    room: u64,
}

fn empty_unit() -> SyncUnit {
    Store::in_memory("a store").unwrap().sync_unit("unit").unwrap()
}

impl Worker {
    fn new(room: u64) -> Self {
        let unit = empty_unit();
        let run = unit.begin().unwrap();
        Self { unit, run, announced: BTreeMap::new(), saved: None, pages: 0, room }
    }

    fn page(&mut self, brought: &[Brought], next: Option<u32>) {
        let mut page = next.map_or_else(Page::last, Page::more);
        for (item_type, id, version, way) in brought {
            let record = record(*item_type, *id, *version);
            match way {
                Way::Each => page.push(&name(*item_type), record),
                Way::Once => page.push_once(&name(*item_type), record),
            }
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
            // Of a batch that a checkpoint brought there are no bytes, and the platform has them.
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

/// All that was ever staged.
#[derive(Debug, Clone, Default)]
struct Reference {
    /// Of the run: the lines that are to be announced, and what it has staged once.
    lines: Vec<String>,
    once: BTreeSet<(u8, u8)>,
    repeated: u64,
}

impl Reference {
    fn page(&mut self, brought: &[Brought]) {
        // A page has those of one type and way together.
        let mut groups: Vec<(u8, Way)> = Vec::new();
        for (item_type, _, _, way) in brought {
            if !groups.contains(&(*item_type, *way)) {
                groups.push((*item_type, *way));
            }
        }
        for group in groups {
            for record in brought.iter().filter(|(item_type, _, _, way)| (*item_type, *way) == group) {
                let (item_type, id, _, way) = *record;
                if way == Way::Once && !self.once.insert((item_type, id)) {
                    self.repeated += 1;
                    continue;
                }
                self.lines.push(line(record));
            }
        }
    }

    fn begin(&mut self) {
        *self = Self::default();
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let way = prop_oneof![Just(Way::Each), Just(Way::Once)];
    let page = prop::collection::vec((0..3_u8, 0..4_u8, 0..3_u8, way), 0..6).prop_map(Step::Page);
    let step = prop_oneof![
        8 => page,
        3 => Just(Step::Save),
        1 => Just(Step::Dies),
        2 => Just(Step::Moves),
        2 => Just(Step::Finish),
        1 => Just(Step::Abandon),
        1 => Just(Step::Delete),
    ];
    prop::collection::vec(step, 1..40)
}

/// Plays the steps, and compares each run's end with the reference.
fn play(steps: &[Step], room: u64, compare: impl Fn(&Worker, &Reference)) {
    let mut worker = Worker::new(room);
    let mut reference = Reference::default();
    // As it stood when the checkpoint was saved.
    let mut saved: Option<Reference> = None;
    for step in steps {
        match step {
            Step::Page(brought) => {
                worker.page(brought, Some(worker.pages));
                reference.page(brought);
            }
            Step::Save => {
                worker.save();
                saved = Some(reference.clone());
            }
            Step::Dies => worker.run = worker.unit.begin().unwrap(),
            Step::Moves => {
                let (Some(checkpoint), Some(then)) = (&worker.saved, &saved) else { continue };
                worker.unit = empty_unit();
                worker.unit.restore(checkpoint, &[]).unwrap();
                worker.run = worker.unit.begin().unwrap();
                worker.announce();
                reference = then.clone();
            }
            Step::Finish => {
                worker.page(&[], None);
                worker.save();
                compare(&worker, &reference);
                let run = std::mem::replace(&mut worker.run, worker.unit.newest_run().unwrap().unwrap());
                run.finish().unwrap();
                worker.begin();
                reference.begin();
                worker.save();
                saved = Some(reference.clone());
            }
            Step::Abandon => {
                worker.unit.abandon().unwrap();
                worker.begin();
                reference.begin();
                worker.save();
                saved = Some(reference.clone());
            }
            Step::Delete => {
                worker.unit.delete().unwrap();
                worker.begin();
                reference = Reference::default();
                worker.save();
                saved = Some(reference.clone());
            }
        }
    }
}

fn config() -> ProptestConfig {
    let failures = FileFailurePersistence::Direct("proptest-regressions/left_out.txt");
    ProptestConfig { cases: 96, failure_persistence: Some(Box::new(failures)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_announced_is_what_a_reference_that_remembers_everything_says(steps in steps()) {
        play(&steps, u64::MAX, |worker, reference| {
            let mut expected = reference.lines.clone();
            expected.sort();
            assert_eq!(worker.lines(), expected);
            let left_out = worker.run.left_out().unwrap();
            assert_eq!(left_out, LeftOutCounts { repeated: reference.repeated, ..LeftOutCounts::default() });
        });
    }

    /// A checkpoint has room for a few ids, or for none: then records repeat, and none is lost.
    #[test]
    fn without_room_in_the_checkpoint_records_repeat_and_none_is_lost(
        steps in steps(), room in prop_oneof![Just(0), Just(1_250), Just(1_300), Just(2_600)],
    ) {
        play(&steps, room, |worker, reference| {
            let mut missing = reference.lines.clone();
            missing.sort();
            let mut found = worker.lines();
            // Of a record that is announced again it may be another version.
            let id = |line: &String| line.split_once(r#","data""#).unwrap().0.to_owned();
            missing.iter_mut().for_each(|line| *line = id(line));
            found.iter_mut().for_each(|line| *line = id(line));
            for id in missing {
                let at = found.iter().position(|other| *other == id);
                found.remove(at.unwrap_or_else(|| panic!("{id} is lost")));
            }
        });
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
    let users: Vec<Brought> = (0..3).map(|id| (0, id, 0, Way::Once)).collect();
    worker.page(&users, Some(1));
    worker.page(&users, Some(2));
    let counts = worker.unit.inner.tables.view(|rows| rows.need(&ONCE_COUNTS, &key)).unwrap();
    assert_eq!(counts, OnceCountRow { repeated: 1, ids: ids + 1, forgotten: 4 });
    worker.save();
    assert_eq!(worker.lines().len(), 5);
    // No more is written of a type that has taken all, nor of another.
    worker.page(&[(1, 0, 0, Way::Once), (1, 0, 0, Way::Once)], Some(3));
    worker.save();
    assert_eq!(worker.lines().len(), 7);
}

#[test]
fn a_flat_record_cannot_be_announced_once() {
    let run = empty_unit().begin().unwrap();
    let page = Page::<u32>::last().record_once("users", Record::flat(&json!({ "id": "U" })).unwrap());
    let error = run.stage(&StreamName::new("all").unwrap(), Phase::Data, 3, page).unwrap_err();
    assert!(error.to_string().contains("it is flat, and has no id to know it by"), "{error}");
    assert_eq!(run.left_out().unwrap(), LeftOutCounts::default());
}
