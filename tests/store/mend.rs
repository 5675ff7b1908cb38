//! Mending is all or nothing: a kill or a power loss at any step of any act leaves a valid store, as it was before
//! the act or after it, and the act can be repeated.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::fixtures::{is_whole, shown};
use highwater::inspect::Snapshot;
use highwater::mend::{Mend, Requeue, RewindTo, UnitFile};
use highwater::record::Attachment;
use highwater::testing::{Fault, Image, Sampling, SimDisk};
use highwater::{ErrorKind, Level, Page, Record, Run, Store, SyncUnit, VirtualClock};
use serde_json::{Value, json};

const UNIT: &str = "acme/tickets";
const SEED: u64 = 29;

fn clock() -> VirtualClock {
    VirtualClock::at("2024-01-02T03:00:00Z".parse().unwrap())
}

/// When all of it is over.
fn later() -> VirtualClock {
    VirtualClock::at(clock_now())
}

fn open_on(disk: &SimDisk, clock: &VirtualClock) -> highwater::Result<Store> {
    let options = Store::options().batch_items(3).level(Level::new(0).unwrap());
    options.cache_bytes(1024 * 1024).clock(clock.clone()).open_on(Box::new(disk.clone()), "state.redb")
}

fn read(run: &Run, stream: &str, pages: u32, acknowledge: bool) {
    let fetch = |cursor: Option<u32>| {
        let at = cursor.unwrap_or(0);
        let last = at + 1 >= pages;
        let mut page = if last {
            Page::last().bookmark(&json!({ "of": run.id().as_str() }))
        } else {
            Page::more(at + 1)
        };
        for n in 0..2 {
            page.push("issues", Record::new(format!("{at}-{n}"), &json!({ "text": "x".repeat(200) }))?);
            let file =
                Attachment::new(format!("{}-{at}-{n}", run.id()), "https://files.example/a", "a.png", "P");
            page.push("attachments", file.to_record()?);
        }
        Ok::<_, highwater::Error>(page.value("seen", &at))
    };
    for batch in run.batches(stream, fetch) {
        let batch = batch.unwrap();
        if acknowledge {
            let key = batch.key().to_string();
            batch.acknowledge(key).unwrap();
        }
    }
}

fn runs(unit: &SyncUnit, clock: &VirtualClock, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        clock.advance(Duration::from_secs(3_600));
        let run = unit.begin().unwrap();
        read(&run, "issues", 3, true);
        for (n, attachment) in run.attachments().enumerate() {
            let attachment = attachment.unwrap();
            if n % 2 == 0 {
                attachment.fail("status 503").unwrap();
            } else {
                attachment.acknowledge(format!("{}-{n}", run.id())).unwrap();
            }
        }
        ids.push(run.id().to_string());
        run.finish().unwrap();
    }
    ids
}

/// A closed store with runs that were finished, one that is open with batches and attachments on their way, and
/// another unit; and the ids of the finished runs.
fn store() -> (Image, Vec<String>) {
    let (disk, clock) = (SimDisk::new(), clock());
    let store = open_on(&disk, &clock).unwrap();
    let unit = store.sync_unit(UNIT).unwrap();
    let ids = runs(&unit, &clock, 3);
    let run = unit.begin().unwrap();
    read(&run, "issues", 4, false);
    read(&store.sync_unit("another").unwrap().begin().unwrap(), "issues", 2, false);
    drop((run, unit, store));
    (disk.image(), ids)
}

/// What a store says: of every unit, and of what the next run asks for.
fn state(image: &Image, path: &Path) -> Result<Value, String> {
    fs::write(path, image.to_bytes()).unwrap();
    let findings = highwater::inspect::check(path).map_err(|error| error.to_string())?.findings;
    if !findings.is_empty() {
        return Err(format!("{findings:?}"));
    }
    let next =
        Snapshot::open(path).unwrap().plan(UNIT, &Mend::Abandon, clock_now()).map(|plan| plan.next_run);
    Ok(json!({ "shown": shown(path), "next": next.ok() }))
}

fn clock_now() -> chrono::DateTime<chrono::Utc> {
    "2024-01-03T00:00:00Z".parse().unwrap()
}

/// What a crash of an act left, image by image.
#[derive(Debug, Default)]
struct Left {
    images: usize,
    before: usize,
    after: usize,
    wrong: Vec<String>,
}

fn crashes(image: &Image, sampling: &Sampling, syncs_ignored: bool, act: impl Fn(&mut Store)) -> Left {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let before = state(image, &path).unwrap();
    let disk = image.disk();
    let mut store = open_on(&disk, &later()).unwrap();
    let from = disk.position();
    if syncs_ignored {
        disk.inject(Fault::SyncsIgnored);
    }
    act(&mut store);
    drop(store);
    let recording = disk.recording();
    let after = state(&disk.image(), &path).unwrap();
    let mut left = Left::default();
    let mut seen: HashSet<u128> = HashSet::new();
    let mut again = BTreeSet::new();
    for moment in recording.moments(&[]).into_iter().filter(|moment| moment.position >= from) {
        for crash in recording.images_at(moment.position, sampling) {
            if !seen.insert(crash.image.hash()) {
                continue;
            }
            left.images += 1;
            // The next owner opens it, and its recovery makes it durable. What is damaged is opened as a file is:
            // every page is verified first.
            let disk = crash.image.disk();
            let opened = if syncs_ignored {
                fs::write(&path, crash.image.to_bytes()).unwrap();
                Store::options()
                    .clock(later())
                    .open(&path)
                    .map(|_| Image::from_bytes(&fs::read(&path).unwrap()))
            } else {
                open_on(&disk, &later()).map(|store| {
                    drop(store);
                    disk.image()
                })
            };
            let opened = opened.map_err(|error| error.to_string());
            match opened.and_then(|image| state(&image, &path)) {
                Ok(found) if found == after => left.after += 1,
                Ok(found) if found == before => {
                    left.before += 1;
                    // Once for each length of what was written before the crash, which is enough for what is one state.
                    if !syncs_ignored && again.insert(disk.image().len()) {
                        act(&mut open_on(&disk, &later()).unwrap());
                        assert_eq!(state(&disk.image(), &path), Ok(after.clone()));
                    }
                }
                Ok(_) => left.wrong.push(format!("{}: neither as before nor as after", crash.point)),
                Err(error) => left.wrong.push(format!("{}: {error}", crash.point)),
            }
        }
    }
    left
}

fn sampling() -> Sampling {
    Sampling { exhaustive_max: 6, subsets: 24, torn: 12, seed: SEED }
}

fn mend(store: &Store, mend: &Mend) {
    let plan = store.plan(UNIT, mend).unwrap();
    store.mend(&plan, "a test").unwrap();
}

#[test]
fn an_act_that_dies_at_any_step_leaves_the_store_as_before_or_as_after() {
    let (image, ids) = store();
    let acts = [
        Mend::Rewind { to: RewindTo::Run(ids[0].clone()) },
        Mend::SetCursor { stream: "issues".to_owned(), cursor: "2".to_owned(), force: false },
        Mend::Reset { keep_attachments: false, drop_values: true },
        Mend::Requeue(Requeue::default()),
        Mend::Abandon,
        Mend::Forget,
    ];
    for act in &acts {
        let left = crashes(&image, &sampling(), false, |store| mend(store, act));
        println!("{act:?}: images={} before={} after={}", left.images, left.before, left.after);
        assert!(left.wrong.is_empty(), "{act:?}: {:#?}", left.wrong);
        assert!(left.before > 3 && left.after > 3, "{act:?}: {left:?}");
    }
}

#[test]
fn taking_a_unit_in_and_compacting_are_as_safe() {
    let (image, _) = store();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("unit.jsonl");
    let disk = image.disk();
    let exporting = open_on(&disk, &later()).unwrap();
    mend(&exporting, &Mend::Abandon);
    exporting.export(UNIT, &file).unwrap();
    drop(exporting);
    let file = UnitFile::open(&file).unwrap();
    let import = |store: &mut Store| {
        let plan = store.plan_import(&file, true).unwrap();
        store.import(&file, &plan, "a test").unwrap();
    };
    let left = crashes(&image, &sampling(), false, import);
    println!("import: images={} before={} after={}", left.images, left.before, left.after);
    assert!(left.wrong.is_empty(), "{:#?}", left.wrong);
    assert!(left.before > 3 && left.after > 3, "{left:?}");

    let few = Sampling { exhaustive_max: 5, subsets: 8, torn: 6, seed: SEED };
    let left = crashes(&disk.image(), &few, false, |store| store.compact("a test").unwrap());
    println!("compact: images={} of one state", left.images);
    assert!(left.wrong.is_empty(), "{:#?}", left.wrong);
    assert!(left.images > 20, "{left:?}");
}

/// The negative control: where syncs do nothing, the same harness sees stores that are neither.
#[test]
fn on_a_disk_that_ignores_syncs_the_same_check_finds_what_is_wrong() {
    let (image, ids) = store();
    let act = Mend::Rewind { to: RewindTo::Run(ids[0].clone()) };
    let sampling = Sampling { exhaustive_max: 4, subsets: 60, torn: 40, seed: SEED };
    let left = crashes(&image, &sampling, true, |store| mend(store, &act));
    println!("syncs ignored: images={} wrong={}", left.images, left.wrong.len());
    assert!(!left.wrong.is_empty(), "nothing was found: {left:?}");
}

#[test]
fn a_plan_is_carried_out_only_on_the_store_that_it_was_made_of() {
    let (image, ids) = store();
    let disk = image.disk();
    let store = open_on(&disk, &later()).unwrap();
    let plan = store.plan(UNIT, &Mend::Rewind { to: RewindTo::Run(ids[0].clone()) }).unwrap();
    let run = store.sync_unit(UNIT).unwrap().begin().unwrap();
    read(&run, "others", 2, false);
    let error = store.mend(&plan, "a test").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("has changed since"), "{error}");
    // The life that was at it when its run was abandoned changes nothing more.
    mend(&store, &Mend::Rewind { to: RewindTo::Run(ids[0].clone()) });
    assert_eq!(run.finish().unwrap_err().kind(), ErrorKind::Fenced);
    drop(store);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    fs::write(&path, disk.image().to_bytes()).unwrap();
    is_whole(&path);
}

#[test]
fn bookmarks_of_the_last_eight_finished_runs_are_kept_and_no_more() {
    let (disk, clock) = (SimDisk::new(), clock());
    let store = open_on(&disk, &clock).unwrap();
    let unit = store.sync_unit(UNIT).unwrap();
    let ids = runs(&unit, &clock, 20);
    // Those that are abandoned are not counted.
    for _ in 0..3 {
        read(&unit.begin().unwrap(), "issues", 2, false);
        unit.abandon().unwrap();
    }
    for (at, id) in ids.iter().enumerate() {
        let plan = store.plan(UNIT, &Mend::Rewind { to: RewindTo::Run(id.clone()) }).unwrap();
        let next = plan.next_run.unwrap();
        let bookmark = next.streams.first().and_then(|stream| stream.bookmark.clone());
        assert_eq!(bookmark, (at >= 12).then(|| json!({ "of": id })), "{at}");
    }
}
