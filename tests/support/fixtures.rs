//! The stores and worker states of `tests/fixtures`: their content, and what was reported about it when they were
//! made.

// Each test that takes this in uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use highwater::inspect::{Snapshot, check};
use highwater::testing::Image;
use serde_json::{Map, Value, json};

/// The folder of a format.
pub(crate) fn folder(format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format)
}

/// The store file.
pub(crate) fn store_of(format: &str, name: &str) -> Image {
    let mut bytes = Vec::new();
    let file = fs::File::open(folder(format).join(format!("{name}.redb.gz"))).unwrap();
    GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    Image::from_bytes(&bytes)
}

/// What is in `NAME.KIND.json`.
pub(crate) fn read(format: &str, name: &str, kind: &str) -> Value {
    let text = fs::read_to_string(folder(format).join(format!("{name}.{kind}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// By sync unit, the report, the batches, and the lines of those that have bytes, as this version shows them.
pub(crate) fn shown(path: &Path) -> Value {
    let mut snapshot = Snapshot::open(path).unwrap();
    let reports: Vec<_> = snapshot.units(1_000).map(Result::unwrap).collect();
    let mut shown = Map::new();
    for report in reports {
        let unit = report.unit.sync_unit.clone();
        let batches = snapshot.batches(&unit).unwrap().unwrap();
        let mut lines = Map::new();
        for batch in &batches {
            let mut bytes = Vec::new();
            if snapshot.batch_lines(&unit, batch.seq, &mut bytes).unwrap().is_some() {
                lines.insert(batch.seq.to_string(), json!(String::from_utf8(bytes).unwrap()));
            }
        }
        let rejected = snapshot.rejected(&unit, true).unwrap().unwrap();
        let mut of_unit = json!({ "report": report, "batches": batches, "lines": lines });
        if !rejected.is_empty() {
            of_unit["rejected"] = json!(rejected);
        }
        shown.insert(unit, of_unit);
    }
    Value::Object(shown)
}

/// Fails if a store is not shown as the version that wrote it showed it. What that did not know, and this version tells
/// besides, is of no account.
#[track_caller]
pub(crate) fn is_shown_as(found: &Value, expected: &Value, case: &str) {
    fn difference(found: &Value, expected: &Value, at: &str) -> Option<String> {
        match (found, expected) {
            (Value::Object(found), Value::Object(expected)) => {
                expected.iter().find_map(|(name, expected)| {
                    difference(found.get(name).unwrap_or(&Value::Null), expected, &format!("{at}/{name}"))
                })
            }
            (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => {
                let mut pairs = found.iter().zip(expected).enumerate();
                pairs.find_map(|(no, (found, expected))| difference(found, expected, &format!("{at}/{no}")))
            }
            _ if found == expected => None,
            _ => Some(format!("{at}: {found}, expected {expected}")),
        }
    }
    if let Some(difference) = difference(found, expected, "") {
        panic!("{case}: {difference}");
    }
}

/// Fails if the check of a store finds anything.
#[track_caller]
pub(crate) fn is_whole(path: &Path) {
    let findings = check(path).unwrap().findings;
    assert!(findings.is_empty(), "{}: {findings:?}", path.display());
}

/// Writes a store file, and what this version shows of it.
pub(crate) fn write_store(format: &str, name: &str, image: &Image) {
    write_file(format, name, image);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    fs::write(&path, image.to_bytes()).unwrap();
    is_whole(&path);
    write(format, name, "shown", &format!("{:#}", shown(&path)));
}

/// Writes a store file alone.
pub(crate) fn write_file(format: &str, name: &str, image: &Image) {
    let folder = folder(format);
    fs::create_dir_all(&folder).unwrap();
    let mut file = GzEncoder::new(Vec::new(), Compression::best());
    file.write_all(&image.to_bytes()).unwrap();
    fs::write(folder.join(format!("{name}.redb.gz")), file.finish().unwrap()).unwrap();
}

/// Writes `NAME.KIND.json`.
pub(crate) fn write(format: &str, name: &str, kind: &str, text: &str) {
    fs::write(folder(format).join(format!("{name}.{kind}.json")), format!("{text}\n")).unwrap();
}
