//! The loop over attachments without `serve`: each one that is due is yielded, in the order of staging, until it is
//! acknowledged or given up, and never after that; whatever pages are staged, and however often the process is
//! restarted.
//!
//! The reference is an in-memory model that knows the staged pages and the calls.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use highwater::record::Attachment;
use highwater::testing::SimDisk;
use highwater::{
    AttachmentCounts, Error, ErrorKind, Level, Page, QueuedAttachment, Run, Store, SyncUnit, VirtualClock,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

const UNIT: &str = "acme/files";

/// A store on a simulated disk.
struct World {
    disk: SimDisk,
    clock: VirtualClock,
    store: Store,
}

impl World {
    fn new() -> Self {
        let disk = SimDisk::new();
        let clock = VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap());
        let store = Self::open(&disk, &clock);
        Self { disk, clock, store }
    }

    fn open(disk: &SimDisk, clock: &VirtualClock) -> Store {
        let options = Store::options().batch_items(1_000).level(Level::new(0).unwrap());
        let options = options.cache_bytes(1024 * 1024).clock(clock.clone());
        options.open_on(Box::new(disk.clone()), "state.redb").unwrap()
    }

    /// A new process, after the old one was killed.
    fn restart(&mut self) {
        self.disk = self.disk.image().disk();
        self.store = Self::open(&self.disk, &self.clock);
    }

    fn unit(&self) -> SyncUnit {
        self.store.sync_unit(UNIT).unwrap()
    }
}

/// Stages a page of attachments as a stream of its own.
pub(crate) fn stage(run: &Run, stream: &str, attachments: impl IntoIterator<Item = Attachment>) {
    let mut page = Page::<u8>::last();
    for attachment in attachments {
        page.push("attachments", attachment.to_record().unwrap());
    }
    let mut page = Some(page);
    for batch in run.batches(stream, |_: Option<u8>| page.take().ok_or("there is one page")) {
        let batch = batch.unwrap();
        let id = batch.key().to_string();
        batch.acknowledge(id).unwrap();
    }
}

fn of(id: u8, parent: u8) -> Attachment {
    Attachment::new(format!("A{id}"), format!("https://files.example/{id}"), "a.png", format!("P{parent}"))
}

fn ids(attachments: &[QueuedAttachment]) -> Vec<&str> {
    attachments.iter().map(|attachment| attachment.id.as_str()).collect()
}

fn all(run: &Run) -> Vec<QueuedAttachment> {
    run.attachments().map(Result::unwrap).collect()
}

fn counts(run: &Run) -> (u64, u64, u64, u64) {
    let counts = run.attachment_counts().unwrap();
    (counts.queued, counts.settled, counts.failed, counts.left())
}

#[test]
fn they_come_in_the_order_of_staging_and_those_of_a_parent_together() {
    let mut world = World::new();
    let run = world.unit().begin().unwrap();
    stage(&run, "one", [of(1, 1), of(2, 2), of(3, 1)]);
    stage(&run, "two", [of(4, 2), of(5, 1), of(1, 1)]);
    // Named again before it was tried, it has its last place.
    assert_eq!(ids(&all(&run)), ["A2", "A3", "A4", "A5", "A1"]);
    let of_parent: BTreeSet<String> =
        run.attachments_of("P1").unwrap().iter().map(|attachment| attachment.id.clone()).collect();
    assert_eq!(of_parent, ["A1", "A3", "A5"].map(str::to_owned).into());
    assert!(run.attachments_of("P3").unwrap().is_empty());
    // One that is held is not handed out again, by neither.
    let mut held: Vec<_> = run.attachments().take(2).map(Result::unwrap).collect();
    assert_eq!(ids(&held), ["A2", "A3"]);
    assert_eq!(ids(&all(&run)), ["A4", "A5", "A1"]);
    assert_eq!(run.attachments_of("P1").unwrap().len(), 2);
    held.remove(0).acknowledge("artifact").unwrap();
    drop(held);
    assert_eq!(ids(&all(&run)), ["A3", "A4", "A5", "A1"]);
    drop(run);
    world.restart();
    let run = world.unit().begin().unwrap();
    assert_eq!(ids(&all(&run)), ["A3", "A4", "A5", "A1"]);
    assert_eq!(counts(&run), (5, 1, 0, 4));
}

#[test]
fn one_to_be_left_alone_comes_when_it_is_due_and_counts_its_tries() {
    let mut world = World::new();
    let run = world.unit().begin().unwrap();
    stage(&run, "one", [of(1, 1), of(2, 1)]);
    let first = run.attachments().next().unwrap().unwrap();
    first.retry_later("busy", Duration::from_secs(60)).unwrap();
    assert_eq!(ids(&all(&run)), ["A2"]);
    assert_eq!(ids(&run.attachments_of("P1").unwrap()), ["A2"]);
    drop(run);
    world.restart();
    world.clock.advance(Duration::from_secs(59));
    let run = world.unit().begin().unwrap();
    assert_eq!(ids(&all(&run)), ["A2"]);
    world.clock.advance(Duration::from_secs(1));
    let found = all(&run);
    assert_eq!(ids(&found), ["A1", "A2"]);
    assert_eq!((found[0].tries(), found[1].tries()), (1, 0));
}

/// Two uploads under one id are one artifact to the platform, and one of them would be lost.
#[test]
fn an_artifact_id_is_acknowledged_once_in_a_run_be_it_of_a_batch_or_an_attachment() {
    let mut world = World::new();
    let run = world.unit().begin().unwrap();
    stage(&run, "one", [of(1, 1), of(2, 1)]);
    let page = |_: Option<u8>| -> highwater::Result<Page<u8>> {
        let record = |n: u32| highwater::Record::new(format!("ISSUE-{n}"), &serde_json::json!({}));
        Ok(Page::last().record("issues", record(1)?).record("comments", record(2)?))
    };
    let mut batches = run.batches("two", page).map(Result::unwrap);
    let refused = |error: Error, what: &str| {
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains("used") && text.contains(what), "{text}");
    };
    batches.next().unwrap().acknowledge("artifact-1").unwrap();
    let batch = batches.next().unwrap();
    refused(batch.uploaded("artifact-1").unwrap_err(), "artifact-1");
    refused(batch.acknowledge("artifact-1").unwrap_err(), "artifact-1");
    drop(batches);
    refused(all(&run).remove(0).acknowledge("artifact-1").unwrap_err(), "artifact-1");
    drop(run);
    world.restart();
    let run = world.unit().begin().unwrap();
    refused(all(&run).remove(0).uploaded("artifact-1").unwrap_err(), "artifact-1");
    // Nothing of what was refused is stored: each is there still, and is taken under an id of its own.
    assert_eq!(counts(&run), (2, 0, 0, 2));
    let again = run.batches("two", |_: Option<u8>| Err("it was read to its end")).next().unwrap().unwrap();
    assert_eq!(again.artifact_id(), None);
    again.acknowledge("artifact-2").unwrap();
    let mut attachments = all(&run).into_iter();
    attachments.next().unwrap().acknowledge("artifact-3").unwrap();
    let last = attachments.next().unwrap();
    last.uploaded("artifact-4").unwrap();
    last.acknowledge("artifact-4").unwrap();
    assert_eq!(counts(&run), (2, 2, 0, 0));
    run.finish().unwrap();
    // The next run may use them again.
    let run = world.unit().begin().unwrap();
    run.batches("two", page).next().unwrap().unwrap().acknowledge("artifact-1").unwrap();
}

#[test]
fn an_id_is_stored_between_upload_and_confirm_and_another_is_refused() {
    let mut world = World::new();
    let run = world.unit().begin().unwrap();
    stage(&run, "one", [of(1, 1)]);
    let attachment = run.attachments().next().unwrap().unwrap();
    assert_eq!(attachment.artifact_id(), None);
    attachment.uploaded("artifact-1").unwrap();
    attachment.uploaded("artifact-1").unwrap();
    let error = attachment.uploaded("artifact-2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("artifact-2"), "{error}");
    drop((attachment, run));
    world.restart();
    let run = world.unit().begin().unwrap();
    let attachment = run.attachments().next().unwrap().unwrap();
    assert_eq!(attachment.artifact_id().as_deref(), Some("artifact-1"));
    let error = attachment.acknowledge("artifact-2").unwrap_err();
    assert!(error.to_string().contains("uploaded as artifact-1"), "{error}");
    run.attachments().next().unwrap().unwrap().acknowledge("artifact-1").unwrap();
    assert_eq!(counts(&run), (1, 1, 0, 0));
}

#[test]
fn a_run_is_not_finished_while_one_is_neither_settled_nor_given_up() {
    let world = World::new();
    let mut run = world.unit().begin().unwrap();
    stage(&run, "one", [of(1, 1), of(2, 1), of(3, 1)]);
    for (left, settle) in [3_u64, 2, 1].into_iter().zip(0..) {
        let error = run.finish().unwrap_err();
        assert!(matches!(error, Error::Unfinished { .. }), "{error:?}");
        assert!(error.to_string().contains(&format!("{left} attachments")), "{error}");
        run = world.unit().begin().unwrap();
        let attachment = run.attachments().next().unwrap().unwrap();
        match settle {
            0 => attachment.fail("410 Gone").unwrap(),
            _ => attachment.acknowledge(format!("artifact {left}")).unwrap(),
        }
    }
    run.finish().unwrap();
    let failed: Vec<_> = world.unit().failed_attachments().map(Result::unwrap).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].reason.as_str(), failed[0].tries), ("410 Gone", 1));
    assert!(failed[0].run.is_some());
    assert_eq!(failed[0].attachment, of(1, 1));
}

#[test]
fn a_later_life_fences_what_an_earlier_one_holds() {
    let world = World::new();
    let run = world.unit().begin().unwrap();
    stage(&run, "one", [of(1, 1)]);
    let held = run.attachments().next().unwrap().unwrap();
    let later = world.unit().begin().unwrap();
    assert_eq!(held.acknowledge("artifact").unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(counts(&later), (1, 0, 0, 1));
    assert_eq!(ids(&all(&later)), ["A1"]);
}

#[test]
fn what_was_queued_again_outlives_a_run_that_is_abandoned() {
    let world = World::new();
    let run = world.unit().begin().unwrap();
    stage(&run, "one", [of(1, 1), of(2, 1), of(3, 1)]);
    for attachment in all(&run) {
        attachment.fail("denied").unwrap();
    }
    run.finish().unwrap();
    assert_eq!(world.unit().requeue_failed(|_| true).unwrap(), 3);
    // One is settled, one failed again, one was begun, by a run that is then abandoned.
    let run = world.unit().begin().unwrap();
    let mut found = all(&run).into_iter();
    found.next().unwrap().acknowledge("artifact 1").unwrap();
    found.next().unwrap().fail("denied again").unwrap();
    found.next().unwrap().uploaded("artifact").unwrap();
    drop((found, run));
    assert!(world.unit().abandon().unwrap());
    let run = world.unit().begin().unwrap();
    // Nor does one come twice that the source names.
    stage(&run, "one", [of(3, 1)]);
    assert_eq!(ids(&all(&run)), ["A3", "A1"]);
    let failed: Vec<_> = world.unit().failed_attachments().map(Result::unwrap).collect();
    assert_eq!((failed.len(), failed[0].reason.as_str()), (1, "denied again"));
    for attachment in all(&run) {
        assert_eq!((attachment.tries(), attachment.artifact_id()), (0, None));
        let id = format!("artifact of {}", attachment.id);
        attachment.acknowledge(id).unwrap();
    }
    assert_eq!(counts(&run), (2, 2, 0, 0));
    run.finish().unwrap();
    let run = world.unit().begin().unwrap();
    assert!(all(&run).is_empty(), "what is settled comes again");
}

// --- the property

#[derive(Debug, Clone)]
enum Act {
    /// A page that names these: id, parent, version.
    Page(Vec<(u8, u8, u8)>),
    /// Takes some; each has the next fate.
    Loop {
        take: usize,
        fates: Vec<Fate>,
    },
    /// The same, of one parent.
    Of {
        parent: u8,
        fates: Vec<Fate>,
    },
    /// Settles one that is held.
    Settle {
        which: usize,
        fate: Fate,
    },
    /// Queues what failed again: that with an even id, or all.
    Requeue {
        all: bool,
    },
    Wait(u64),
    Reopen,
    Finish,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Acknowledge,
    UploadAndDrop,
    UploadAndAcknowledge,
    Fail,
    RetryLater(u64),
    Hold,
    Drop,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Acknowledge),
        1 => Just(Fate::UploadAndDrop),
        2 => Just(Fate::UploadAndAcknowledge),
        2 => Just(Fate::Fail),
        2 => (0..40_u64).prop_map(Fate::RetryLater),
        2 => Just(Fate::Hold),
        2 => Just(Fate::Drop),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let named = (0..8_u8, 0..3_u8, prop_oneof![4 => Just(0_u8), 1 => Just(1_u8)]);
    prop_oneof![
        6 => vec(named, 0..6).prop_map(Act::Page),
        8 => (0..8_usize, vec(fate(), 1..6)).prop_map(|(take, fates)| Act::Loop { take, fates }),
        3 => (0..3_u8, vec(fate(), 1..4)).prop_map(|(parent, fates)| Act::Of { parent, fates }),
        3 => (any::<usize>(), fate()).prop_map(|(which, fate)| Act::Settle { which, fate }),
        2 => any::<bool>().prop_map(|all| Act::Requeue { all }),
        2 => (0..30_u64).prop_map(Act::Wait),
        2 => Just(Act::Reopen),
        3 => Just(Act::Finish),
    ]
}

type Name = (String, String);
type Failed = BTreeMap<(u64, u64), (Attachment, String, u32)>;

/// The numbers of what is queued again come after those of all lines.
const REQUEUED: u64 = 1 << 40;

#[derive(Debug, Clone)]
struct Row {
    attachment: Attachment,
    tries: u32,
    uploaded: bool,
    ready_at: u64,
}

#[derive(Debug, Clone)]
struct Seen {
    run: u64,
    number: u64,
    version: (String, String, Option<String>),
    failed: bool,
}

/// What a caller can know.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    run: u64,
    lines: u64,
    requeued_lines: u64,
    queue: BTreeMap<u64, Row>,
    counts: (u64, u64, u64),
    failed: Failed,
    requeued: Failed,
    seen: BTreeMap<Name, Seen>,
    held: BTreeSet<u64>,
}

fn name_of(attachment: &Attachment) -> Name {
    (attachment.id.clone(), attachment.parent_id.clone())
}

fn version_of(attachment: &Attachment) -> (String, String, Option<String>) {
    (attachment.url.clone(), attachment.file_name.clone(), attachment.modified_date.clone())
}

impl Model {
    fn stage(&mut self, attachment: &Attachment) {
        self.lines += 1;
        let number = self.lines;
        let name = name_of(attachment);
        if let Some(seen) = self.seen.get(&name) {
            if seen.run == self.run {
                // It waits, and was not tried: it goes to its last place. Whatever else became of it stands.
                let waits = self.queue.get(&seen.number).is_some_and(|row| row.tries == 0 && !row.uploaded);
                if !waits || seen.number >= REQUEUED {
                    return;
                }
                self.queue.remove(&seen.number);
                self.counts.0 -= 1;
            } else if seen.failed {
                self.failed.remove(&(seen.run, seen.number));
                self.requeued.remove(&(seen.run, seen.number));
            } else if seen.version == version_of(attachment) {
                return;
            }
        }
        self.counts.0 += 1;
        self.put(number, attachment);
    }

    fn put(&mut self, number: u64, attachment: &Attachment) {
        let seen = Seen { run: self.run, number, version: version_of(attachment), failed: false };
        self.seen.insert(name_of(attachment), seen);
        let row = Row { attachment: attachment.clone(), tries: 0, uploaded: false, ready_at: 0 };
        self.queue.insert(number, row);
    }

    /// The attachment that a loop yields next if it has reached `from`.
    fn next(&mut self, from: u64) -> Option<u64> {
        loop {
            let due = |(number, row): &(&u64, &Row)| row.ready_at <= self.now && !self.held.contains(number);
            if let Some((&number, _)) = self.queue.range(from..).find(due) {
                return Some(number);
            }
            if self.requeued.is_empty() {
                return None;
            }
            for ((run, _), (attachment, ..)) in std::mem::take(&mut self.requeued) {
                if run == self.run {
                    self.counts.2 -= 1;
                } else {
                    self.counts.0 += 1;
                }
                self.put(REQUEUED + self.requeued_lines, &attachment);
                self.requeued_lines += 1;
            }
        }
    }

    fn of_parent(&self, parent: &str) -> BTreeSet<u64> {
        let due = |(number, row): &(&u64, &Row)| {
            row.ready_at <= self.now && !self.held.contains(number) && row.attachment.parent_id == parent
        };
        self.queue.iter().filter(due).map(|(number, _)| *number).collect()
    }

    fn number_of(&self, attachment: &Attachment) -> u64 {
        self.seen[&name_of(attachment)].number
    }

    /// What becomes of one that the caller has; whether it is let go of.
    fn settle(&mut self, number: u64, fate: Fate) -> bool {
        let row = self.queue.get_mut(&number).unwrap();
        match fate {
            Fate::Acknowledge | Fate::UploadAndAcknowledge => {
                self.queue.remove(&number);
                self.counts.1 += 1;
            }
            Fate::UploadAndDrop => row.uploaded = true,
            Fate::Fail => {
                let row = self.queue.remove(&number).unwrap();
                self.seen.get_mut(&name_of(&row.attachment)).unwrap().failed = true;
                let reason = format!("no such luck with {number}");
                self.failed.insert((self.run, number), (row.attachment, reason, row.tries + 1));
                self.counts.2 += 1;
            }
            Fate::RetryLater(wait) => {
                row.tries += 1;
                row.ready_at = self.now + wait;
            }
            Fate::Hold => return false,
            Fate::Drop => {}
        }
        true
    }
}

/// Does with a real one what the model does; gives it back if it is held.
fn settle(attachment: QueuedAttachment, number: u64, fate: Fate) -> Option<QueuedAttachment> {
    let artifact = format!("artifact-{number}");
    match fate {
        Fate::Acknowledge => attachment.acknowledge(artifact).unwrap(),
        Fate::UploadAndDrop => attachment.uploaded(artifact).unwrap(),
        Fate::UploadAndAcknowledge => {
            attachment.uploaded(&artifact).unwrap();
            attachment.acknowledge(artifact).unwrap();
        }
        Fate::Fail => attachment.fail(format!("no such luck with {number}")).unwrap(),
        Fate::RetryLater(wait) => attachment.retry_later("later", Duration::from_secs(wait)).unwrap(),
        Fate::Hold => return Some(attachment),
        Fate::Drop => drop(attachment),
    }
    None
}

struct Play {
    world: World,
    run: Option<Run>,
    held: Vec<(u64, QueuedAttachment)>,
    model: Model,
    streams: u64,
}

impl Play {
    fn new() -> Self {
        let world = World::new();
        let run = world.unit().begin().unwrap();
        let model = Model { run: 1, ..Model::default() };
        Self { world, run: Some(run), held: Vec::new(), model, streams: 0 }
    }

    fn run(&self) -> &Run {
        self.run.as_ref().unwrap()
    }

    /// Gives one that was yielded its fate.
    fn decide(&mut self, attachment: QueuedAttachment, number: u64, fate: Fate) {
        let row = &self.model.queue[&number];
        assert_eq!(*attachment, row.attachment);
        assert_eq!((attachment.tries(), attachment.artifact_id().is_some()), (row.tries, row.uploaded));
        let let_go = self.model.settle(number, fate);
        match settle(attachment, number, fate) {
            Some(attachment) => {
                assert!(!let_go);
                self.model.held.insert(number);
                self.held.push((number, attachment));
            }
            None => drop(self.model.held.remove(&number)),
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Page(named) => {
                self.streams += 1;
                let attachments: Vec<_> = named
                    .iter()
                    .map(|&(id, parent, version)| {
                        let mut attachment = of(id, parent);
                        attachment.modified_date = (version > 0).then(|| format!("{version}"));
                        attachment
                    })
                    .collect();
                // One that the caller holds, and that is named again meanwhile, is let go of before.
                self.let_go();
                for attachment in &attachments {
                    self.model.stage(attachment);
                }
                stage(self.run(), &format!("page {}", self.streams), attachments);
            }
            Act::Loop { take, fates } => {
                let run = self.run.take().unwrap();
                let mut from = 0;
                let mut fates = fates.iter().cycle();
                let mut attachments = run.attachments();
                for _ in 0..*take {
                    let expected = self.model.next(from);
                    let found = attachments.next().transpose().unwrap();
                    assert_eq!(found.is_some(), expected.is_some(), "{found:?} instead of {expected:?}");
                    let (Some(number), Some(found)) = (expected, found) else { break };
                    from = number + 1;
                    self.decide(found, number, *fates.next().unwrap());
                }
                self.run = Some(run);
            }
            Act::Of { parent, fates } => {
                let parent = format!("P{parent}");
                let found = self.run().attachments_of(&parent).unwrap();
                let numbers: BTreeSet<u64> =
                    found.iter().map(|attachment| self.model.number_of(attachment)).collect();
                assert_eq!(numbers, self.model.of_parent(&parent));
                assert_eq!(numbers.len(), found.len());
                for (attachment, fate) in found.into_iter().zip(fates.iter().cycle()) {
                    let number = self.model.number_of(&attachment);
                    self.decide(attachment, number, *fate);
                }
            }
            Act::Settle { which, fate } => {
                if !self.held.is_empty() {
                    let (number, attachment) = self.held.swap_remove(which % self.held.len());
                    self.decide(attachment, number, *fate);
                }
            }
            Act::Requeue { all } => {
                let wanted = |id: &str| *all || ["A0", "A2", "A4", "A6"].contains(&id);
                let moved = self.world.unit().requeue_failed(|failed| wanted(&failed.attachment.id)).unwrap();
                let (again, failed): (Failed, Failed) = std::mem::take(&mut self.model.failed)
                    .into_iter()
                    .partition(|(_, (attachment, ..))| wanted(&attachment.id));
                assert_eq!(moved, again.len() as u64);
                self.model.failed = failed;
                self.model.requeued.extend(again);
            }
            Act::Wait(seconds) => {
                self.world.clock.advance(Duration::from_secs(*seconds));
                self.model.now += seconds;
            }
            Act::Reopen => {
                self.let_go();
                self.run = None;
                self.world.restart();
                self.run = Some(self.world.unit().begin().unwrap());
            }
            Act::Finish => {
                self.let_go();
                let result = self.run.take().unwrap().finish();
                if self.model.queue.is_empty() {
                    result.unwrap();
                    let model = &mut self.model;
                    model.run += 1;
                    (model.lines, model.requeued_lines, model.counts) = (0, 0, (0, 0, 0));
                } else {
                    let error = result.unwrap_err();
                    assert!(matches!(error, Error::Unfinished { .. }), "{error:?}");
                }
                self.run = Some(self.world.unit().begin().unwrap());
            }
        }
        self.compare();
    }

    fn let_go(&mut self) {
        self.held.clear();
        self.model.held.clear();
    }

    fn compare(&self) {
        let AttachmentCounts { queued, settled, failed, .. } = self.run().attachment_counts().unwrap();
        assert_eq!((queued, settled, failed), self.model.counts);
        let found: Vec<_> = self
            .world
            .unit()
            .failed_attachments()
            .map(Result::unwrap)
            .map(|failed| (failed.attachment, failed.reason, failed.tries))
            .collect();
        assert_eq!(found, self.model.failed.values().cloned().collect::<Vec<_>>());
    }

    /// Everything is settled in the end, by a new process, in the order of the model.
    fn end(&mut self) {
        self.act(&Act::Reopen);
        self.act(&Act::Wait(1_000));
        self.act(&Act::Loop { take: usize::MAX, fates: vec![Fate::Acknowledge] });
        assert!(self.model.queue.is_empty());
        self.act(&Act::Finish);
    }
}

#[test]
fn whatever_is_staged_settled_and_reopened_the_loop_is_as_the_model() {
    let config = ProptestConfig {
        cases: 256,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/attachment_loop.txt",
        ))),
        ..ProptestConfig::default()
    };
    let (settled, failed) = (Cell::new(0), Cell::new(0));
    let outcome = TestRunner::new(config).run(&vec(act(), 1..40), |acts| {
        let mut play = Play::new();
        for act in &acts {
            play.act(act);
        }
        failed.set(failed.get() + play.model.failed.len());
        play.end();
        settled.set(settled.get() + play.model.seen.len());
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let (settled, failed) = (settled.get(), failed.get());
    assert!(settled > 500 && failed > 50, "{settled} and {failed}: too few to mean anything");
}
