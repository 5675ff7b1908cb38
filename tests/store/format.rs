//! Stores of format 1, as version 0.1.0 wrote them, are shown, open and go on.
//!
//! The fixtures are in `tests/fixtures/format-1`, with what version 0.1.0 said of each.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use highwater::inspect::{Snapshot, check};
use highwater::testing::{Fault, Image};
use highwater::{Page, Result, Store};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1")
}

fn bytes_of(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = fs::File::open(folder().join(format!("{name}.redb.gz"))).unwrap();
    GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// By sync unit, the report that version 0.1.0 gave.
fn expected(name: &str) -> Vec<(String, Value)> {
    let name = name.trim_end_matches("-closed");
    let text = fs::read_to_string(folder().join(format!("{name}.shown.json"))).unwrap();
    let shown: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let mut expected: Vec<_> =
        shown.into_iter().map(|(unit, shown)| (unit, shown["report"].clone())).collect();
    expected.sort_by(|(one, _), (other, _)| one.cmp(other));
    expected
}

/// By sync unit, the report of this version.
fn shown(path: &Path) -> Vec<(String, Value)> {
    let mut snapshot = Snapshot::open(path).unwrap();
    let mut shown: Vec<_> = snapshot
        .units(1_000)
        .map(|report| {
            let report = report.unwrap();
            (report.unit.sync_unit.clone(), serde_json::to_value(&report).unwrap())
        })
        .collect();
    shown.sort_by(|(one, _), (other, _)| one.cmp(other));
    shown
}

#[track_caller]
fn is_whole(path: &Path) {
    let findings = check(path).unwrap().findings;
    assert!(findings.is_empty(), "{findings:?}");
}

const ALL: [&str; 8] = [
    "attachments",
    "attachments-restored",
    "batches",
    "batches-closed",
    "data",
    "data-restored-sealed",
    "finished",
    "queue",
];

#[test]
fn a_store_of_format_1_is_shown_as_it_is_and_opens_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for name in ALL {
        let path = dir.path().join(format!("{name}.redb"));
        let bytes = bytes_of(name);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(shown(&path), expected(name), "{name}");
        is_whole(&path);
        assert!(fs::read(&path).unwrap() == bytes, "{name}: a look changed the file");
        drop(Store::open(&path).unwrap());
        assert!(fs::read(&path).unwrap() != bytes, "{name}: it was not migrated");
        assert_eq!(shown(&path), expected(name), "{name}, migrated");
        is_whole(&path);
    }
}

#[test]
fn killed_at_any_step_of_the_migration_it_opens_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut kills = 0;
    for name in ["batches", "batches-closed", "queue"] {
        let image = Image::from_bytes(&bytes_of(name));
        let open = |disk: &highwater::testing::SimDisk| {
            Store::options().open_on(Box::new(disk.clone()), "state.redb")
        };
        let whole = image.disk();
        drop(open(&whole).unwrap());
        for position in 0..whole.position() {
            let disk = image.disk();
            disk.inject(Fault::Dies { position });
            drop(open(&disk));
            kills += disk.fault_counts().deaths;
            let next = disk.image().disk();
            drop(open(&next).unwrap());
            let path = dir.path().join(format!("{name}-{position}.redb"));
            fs::write(&path, next.image().to_bytes()).unwrap();
            assert_eq!(shown(&path), expected(name), "{name}, killed at {position}");
            is_whole(&path);
            fs::remove_file(&path).unwrap();
        }
    }
    assert!(kills > 20, "{kills}");
}

#[test]
fn a_run_of_format_1_goes_on_to_its_end() {
    let image = Image::from_bytes(&bytes_of("batches"));
    let store = Store::options().batch_items(2).open_on(Box::new(image.disk()), "state.redb").unwrap();
    let unit = store.sync_unit("acme/loop").unwrap();
    let before = unit.watermark().unwrap();
    let run = unit.begin().unwrap();
    assert!(run.resumed());
    let fetch = |_: Option<Value>| -> Result<Page<Value>> { Ok(Page::last()) };
    let mut yielded = Vec::new();
    for batch in run.batches("issues", fetch) {
        let batch = batch.unwrap();
        yielded.push((batch.key().seq, batch.item_type().to_string(), batch.artifact_id()));
        let id = batch.artifact_id().unwrap_or_else(|| batch.key().to_string());
        batch.acknowledge(id).unwrap();
    }
    let seqs: Vec<u64> = yielded.iter().map(|(seq, _, _)| *seq).collect();
    assert_eq!(seqs, [3, 4, 5], "{yielded:?}");
    assert!(yielded[0].2.is_some(), "{yielded:?}");
    let left = run.attachment_counts().unwrap().left();
    assert_eq!(run.attachments().map(|file| file.unwrap().acknowledge().unwrap()).count() as u64, left);
    assert_eq!(left, 2);
    run.finish().unwrap();
    assert!(unit.watermark().unwrap() >= before);
    assert!(!unit.begin().unwrap().resumed());
}
