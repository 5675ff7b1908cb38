//! Stores of every format can be shown, opened and continued. A crash during the migration leaves the old store or
//! the new one.
//!
//! They are in `tests/fixtures`, with what the version that wrote them reported. The last test here writes those of
//! the newest format that belong to no checkpoint.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use highwater::mend::{Mend, RewindTo};
use highwater::record::Attachment;
use highwater::testing::{Fault, Image, Sampling, SimDisk};
use highwater::{Page, Record, Result, Run, Store, VirtualClock};
use serde_json::{Value, json};

use crate::fixtures::{is_shown_as, is_whole, read, shown, store_of, write_file, write_store};
use crate::support::lines;

const FORMAT_1: [&str; 8] = [
    "attachments",
    "attachments-restored",
    "batches",
    "batches-closed",
    "data",
    "data-restored-sealed",
    "finished",
    "queue",
];

const FORMAT_2: [&str; 8] = [
    "attachments",
    "attachments-restored",
    "batches",
    "batches-closed",
    "child-listings",
    "data",
    "data-restored-sealed",
    "finished",
];

fn expected(format: &str, name: &str) -> Value {
    read(format, name.trim_end_matches("-closed"), "shown")
}

fn open(disk: &SimDisk) -> Result<Store> {
    Store::options().batch_items(2).open_on(Box::new(disk.clone()), "state.redb")
}

/// Fails if the store in an image is not shown as it was, or not whole.
fn is_as_it_was(image: &Image, path: &Path, expected: &Value, case: &str) {
    fs::write(path, image.to_bytes()).unwrap();
    is_shown_as(&shown(path), expected, case);
    is_whole(path);
}

#[test]
fn a_store_of_any_format_is_shown_as_it_is_and_opens_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    for (format, names) in [("format-1", &FORMAT_1[..]), ("format-2", &FORMAT_2[..])] {
        for name in names {
            let (image, expected) = (store_of(format, name), expected(format, name));
            is_as_it_was(&image, &path, &expected, name);
            assert!(
                fs::read(&path).unwrap() == image.to_bytes(),
                "{format}, {name}: a look changed the file"
            );
            drop(Store::open(&path).unwrap());
            let changed = fs::read(&path).unwrap() != image.to_bytes();
            assert!(changed, "{format}, {name}: it was neither recovered nor migrated");
            is_shown_as(&shown(&path), &expected, &format!("{format}, {name}, opened"));
            is_whole(&path);
        }
    }
}

#[test]
fn killed_at_any_step_of_the_migration_it_opens_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut kills = 0;
    for name in ["batches", "batches-closed", "queue"] {
        let (image, expected) = (store_of("format-1", name), expected("format-1", name));
        let whole = image.disk();
        drop(open(&whole).unwrap());
        for position in 0..whole.position() {
            let disk = image.disk();
            disk.inject(Fault::Dies { position });
            drop(open(&disk));
            kills += disk.fault_counts().deaths;
            let next = disk.image().disk();
            drop(open(&next).unwrap());
            is_as_it_was(&next.image(), &path, &expected, &format!("{name}, killed at {position}"));
        }
    }
    assert!(kills > 20, "{kills}");
}

/// Every image that a power failure during the migration may leave: opened, with a second power failure while it is
/// opened.
#[test]
fn power_lost_at_any_step_of_the_migration_it_opens_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let sampling = Sampling { exhaustive_max: 6, subsets: 24, torn: 8, seed: 1 };
    let again = Sampling { exhaustive_max: 2, subsets: 2, torn: 2, seed: 2 };
    for name in ["batches", "queue", "data-restored-sealed", "attachments-restored"] {
        let (image, expected) = (store_of("format-1", name), expected("format-1", name));
        let disk = image.disk();
        drop(open(&disk).unwrap());
        let recording = disk.recording();
        let (mut seen, mut opened, mut cut_off_twice) = (BTreeSet::new(), BTreeSet::new(), 0);
        let mut opens = |image: &Image, case: &dyn std::fmt::Display| {
            let disk = image.disk();
            drop(open(&disk).unwrap_or_else(|error| panic!("{name}, {case}: {error}")));
            // Many images are opened to the same.
            if opened.insert(disk.image().hash()) {
                is_as_it_was(&disk.image(), &path, &expected, &format!("{name}, {case}"));
            }
            disk.recording()
        };
        for moment in recording.moments(&[]) {
            for crash in recording.images_at(moment.position, &sampling) {
                if !seen.insert(crash.image.hash()) {
                    continue;
                }
                let second = opens(&crash.image, &crash.point);
                if seen.len() % 8 == 0 {
                    cut_off_twice += 1;
                    for moment in second.moments(&[]) {
                        for crash in second.images_at(moment.position, &again) {
                            opens(&crash.image, &format_args!("again, {}", crash.point));
                        }
                    }
                }
            }
        }
        let (images, ends) = (seen.len(), opened.len());
        println!("{name}: images={images} opened_to={ends} cut_off_twice={cut_off_twice}");
        assert!(images > 50 && ends > 1 && cut_off_twice > 5, "{name}: {images}, {ends}, {cut_off_twice}");
    }
}

#[test]
fn a_run_of_any_format_goes_on_to_its_end() {
    let nothing_more = |_: Option<u32>| -> Result<Page<u32>> { Ok(Page::last()) };
    let the_rest = |cursor: Option<u32>| listed(2, cursor.expect("its first page is stored"));
    // Two batches of two issues were acknowledged; the one after them was uploaded, under this id.
    goes_on(
        ("format-1", nothing_more),
        "loop-2-acme/loop/20231114T221320.000000Z-4/1/issues/3",
        &["2-1-1", "2-1-2", "ada-0", "ada-1", "file-2-0", "file-2-1"],
    );
    goes_on(
        ("format-2", the_rest),
        "loop-2-3",
        &["2-2-1", "2-2-2", "2-3-1", "2-3-2", "ada-0", "ada-1", "ada-2", "ada-3", "file-2-0", "file-2-1"],
    );
}

/// The open run of `acme/loop` goes on: no record that was acknowledged comes again, every other comes once.
fn goes_on(
    (format, fetch): (&str, impl FnMut(Option<u32>) -> Result<Page<u32>>),
    uploaded_as: &str,
    left: &[&str],
) {
    let disk = store_of(format, "batches").disk();
    let store = open(&disk).unwrap();
    let unit = store.sync_unit("acme/loop").unwrap();
    let before = unit.watermark().unwrap();
    let run = unit.begin().unwrap();
    assert!(run.resumed());
    let mut records = Vec::new();
    for batch in run.batches("issues", fetch) {
        let batch = batch.unwrap();
        let uploaded = batch.artifact_id();
        assert_eq!(uploaded.as_deref(), (batch.key().seq == 3).then_some(uploaded_as), "{format}");
        let ids = lines(&batch.bytes().unwrap()).into_iter();
        records.extend(ids.map(|line| line["id"].as_str().unwrap().to_owned()));
        batch.acknowledge(uploaded.unwrap_or_else(|| format!("now {}", records.len()))).unwrap();
    }
    records.sort();
    assert_eq!(records, left, "{format}");
    let count = run.attachment_counts().unwrap().left();
    let acknowledge = |file: highwater::QueuedAttachment| {
        let id = file.artifact_id().unwrap_or_else(|| format!("upload of {}", file.id));
        file.acknowledge(id).unwrap();
    };
    assert_eq!(run.attachments().map(Result::unwrap).map(acknowledge).count() as u64, count);
    assert_eq!(count, 2, "{format}");
    run.finish().unwrap();
    assert!(unit.watermark().unwrap() >= before);
    assert!(!unit.begin().unwrap().resumed());
}

/// Page `at` of what run `no` lists: two issues and a user each, and on the first two pages an attachment each.
fn listed(no: u32, at: u32) -> Result<Page<u32>> {
    let mut page = if at < 3 { Page::more(at + 1) } else { Page::last().bookmark(&json!({ "tail": no })) };
    for item in 1..=2 {
        page.push("issues", Record::new(format!("{no}-{at}-{item}"), &json!({}))?);
    }
    page.push("users", Record::new(format!("ada-{at}"), &json!({}))?);
    if at == 0 {
        page.reject("issues", &format!("{no}-bad"), "it has no project");
    }
    if at < 2 {
        let id = format!("file-{no}-{at}");
        let url = format!("https://files.example/{id}");
        let attachment = Attachment::new(id.clone(), url, format!("{id}.bin"), format!("{no}-{at}-0"));
        page.push("attachments", attachment.to_record()?);
    }
    Ok(page.value("life", &no))
}

/// A run of two pages, each with an issue that is modified after every run has begun and a user that is announced once.
fn read_again(run: &Run, run_no: u32) {
    let fetch = |cursor: Option<u32>| -> Result<Page<u32>> {
        let at = cursor.unwrap_or(0);
        let page = if at == 0 { Page::more(1) } else { Page::last().bookmark(&json!({ "tail": run_no })) };
        let issue = Record::new(format!("issue-{at}"), &json!({ "version": run_no * at }))?;
        let issue = issue.modified("2023-11-15T00:00:00Z".parse::<DateTime<Utc>>().unwrap());
        let ada = Record::new("ada", &json!({}))?;
        Ok(page.leave_out_unchanged("issues").record("issues", issue).record_once("users", ada))
    };
    for batch in run.batches("issues", fetch) {
        let batch = batch.unwrap();
        let id = format!("again-{run_no}-{}", batch.key());
        batch.acknowledge(id).unwrap();
    }
}

/// The unit `acme/again`: records come again in its runs; its third run is open.
fn comes_again(store: &Store, clock: &VirtualClock) {
    let unit = store.sync_unit("acme/again").unwrap();
    for no in 0..3 {
        let run = unit.begin().unwrap();
        read_again(&run, no);
        if no < 2 {
            run.finish().unwrap();
        }
        clock.advance(Duration::from_secs(60));
    }
}

/// The unit `acme/mended`: two runs, set back to the first, with a cursor that an operator set.
fn is_mended(store: &Store, clock: &VirtualClock) {
    let unit = store.sync_unit("acme/mended").unwrap();
    let mut first = None;
    for no in 0..2 {
        let run = unit.begin().unwrap();
        first.get_or_insert(run.id().to_string());
        read_again(&run, no);
        run.finish().unwrap();
        clock.advance(Duration::from_secs(60));
    }
    let cursor = Mend::SetCursor { stream: "issues".to_owned(), cursor: "1".to_owned(), force: false };
    for mend in [Mend::Rewind { to: RewindTo::Run(first.unwrap()) }, cursor] {
        let plan = store.plan("acme/mended", &mend).unwrap();
        store.mend(&plan, "an operator").unwrap();
    }
}

#[test]
#[ignore = "writes what is in tests/fixtures/format-2 of a unit that lives without checkpoints"]
fn writes_the_newest_format() {
    let clock = VirtualClock::at("2023-11-14T22:13:20Z".parse().unwrap());
    let disk = SimDisk::new();
    let options = Store::options().batch_items(2).clock(clock.clone());
    let store = options.open_on(Box::new(disk.clone()), "state.redb").unwrap();
    let unit = store.sync_unit("acme/loop").unwrap();

    drop(unit.begin().unwrap());
    assert!(unit.abandon().unwrap());
    for no in 0..2 {
        let run = unit.begin().unwrap();
        for batch in run.batches("issues", |cursor: Option<u32>| listed(no, cursor.unwrap_or(0))) {
            let batch = batch.unwrap();
            let id = format!("loop-{no}-{}", batch.key());
            batch.acknowledge(id).unwrap();
        }
        for file in run.attachments() {
            let file = file.unwrap();
            if file.id.ends_with("-1") {
                file.fail("410 Gone").unwrap();
            } else {
                let id = format!("upload of {}", file.id);
                file.uploaded(&id).unwrap();
                file.acknowledge(id).unwrap();
            }
        }
        run.finish().unwrap();
        if no == 0 {
            assert_eq!(unit.requeue_failed(|_| true).unwrap(), 1);
        }
    }
    let run = unit.begin().unwrap();
    let mut held = Vec::new();
    for batch in run.batches("issues", |cursor: Option<u32>| listed(2, cursor.unwrap_or(0))) {
        let batch = batch.unwrap();
        match batch.key().seq {
            seq @ 1..=2 => batch.acknowledge(format!("loop-2-{seq}")).unwrap(),
            3 => batch.uploaded("loop-2-3").unwrap(),
            4 => held.push(batch),
            _ => {
                held.push(batch);
                break;
            }
        }
    }
    drop(held);
    comes_again(&store, &clock);
    is_mended(&store, &clock);
    let deleted = store.sync_unit("acme/deleted").unwrap();
    deleted.begin().unwrap().finish().unwrap();
    deleted.delete().unwrap();
    write_store("format-2", "batches", &disk.image());
    drop((run, unit, deleted, store));
    write_file("format-2", "batches-closed", &disk.image());
}
