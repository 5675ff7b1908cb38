//! Shared by the benches: a seeded input, and a folder on a disk.

use std::fs;
use std::path::{Path, PathBuf};

use highwater::Record;
use serde_json::json;
use tempfile::TempDir;

/// The words of sentences; a real title or description compresses about as well.
const WORDS: &str = "the crash after login page when user opens settings twice and a request times out before token \
    refresh in production since release of last week please see attached log customer reports that import stops half \
    way with no message at all retry works sometimes but not always";

/// Records like a tracker's, about 900 bytes each as JSON: the same for the same seed.
pub(crate) fn records(seed: u64, count: u32) -> Vec<Record> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    (0..count)
        .map(|number| {
            let created =
                chrono::DateTime::from_timestamp(1_600_000_000 + rng.i64(0..150_000_000), 0).unwrap();
            let modified = created + chrono::TimeDelta::seconds(rng.i64(0..5_000_000));
            let data = json!({
                "title": sentence(&mut rng, &words, 8),
                "description": sentence(&mut rng, &words, 90),
                "state": rng.choice(["open", "in progress", "blocked", "closed"]),
                "priority": rng.u8(1..=5),
                "reporter": format!("USER-{}", rng.u16(..2_000)),
                "assignee": format!("USER-{}", rng.u16(..2_000)),
                "labels": [rng.choice(&words), rng.choice(&words)],
                "url": format!("https://tracker.example/acme/issues/{number}?id={:016x}", rng.u64(..)),
                "estimate_hours": f64::from(rng.u16(..400)) / 4.0,
            });
            Record::new(format!("ISSUE-{number}"), &data).unwrap().created(created).modified(modified)
        })
        .collect()
}

fn sentence(rng: &mut fastrand::Rng, words: &[&str], length: usize) -> String {
    let sentence: Vec<&str> = (0..length).map(|_| words[rng.usize(..words.len())]).collect();
    sentence.join(" ")
}

/// The records as JSON Lines.
pub(crate) fn lines(records: &[Record]) -> String {
    records.iter().map(|record| record.to_line() + "\n").collect()
}

/// An empty folder in the build directory, removed when dropped, and its file system. Refuses a file system in
/// memory, where a sync costs nothing and a measurement is meaningless.
pub(crate) fn folder_on_disk() -> (TempDir, String) {
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file_system = file_system_of(&fs::canonicalize(beside).unwrap());
    assert!(
        !["tmpfs", "ramfs", "devtmpfs"].contains(&file_system.as_str()),
        "{} is on {file_system}, in memory, where a sync costs nothing: set CARGO_TARGET_DIR to a folder on a disk",
        beside.display()
    );
    (tempfile::tempdir_in(beside).unwrap(), file_system)
}

/// The file system of the mount that contains a path, by its name in Linux.
fn file_system_of(path: &Path) -> String {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return "unknown".to_owned() };
    let under = mounts.lines().filter_map(|mount| {
        // proc(5): the mount point is the fifth field; after a lone hyphen comes the file system.
        let (fields, rest) = mount.split_once(" - ")?;
        let point = PathBuf::from(fields.split(' ').nth(4)?.replace("\\040", " "));
        let file_system = rest.split(' ').next()?;
        path.starts_with(&point).then(|| (point.as_os_str().len(), file_system.to_owned()))
    });
    // If several mounts cover each other, the last one is visible.
    under.max_by_key(|(length, _)| *length).map_or("unknown".to_owned(), |(_, file_system)| file_system)
}
