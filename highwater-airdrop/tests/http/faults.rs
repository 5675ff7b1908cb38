//! Over real HTTP, with a platform that refuses, breaks down or loses its answer: nothing is lost and nothing is
//! announced twice, with a disk and without.
//!
//! Each fault is checked to come true. The oracle computes the expectation itself, and reads what was delivered from
//! the platform's files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::AIRDROP;
use crate::served::{Files, Served, Verdict, calls, came_true};
use crate::support::{program, said};
use highwater::SystemClock;
use highwater_airdrop::{Local, SyncSettings};
use serde_json::Value;

const ITEMS: u64 = 4_000;
const SOURCE: [&str; 6] = ["--items", "4000", "--page-size", "150", "--batch-items", "250"];

/// A checkpoint is saved after so many uploads, and those that are in flight meanwhile.
const UPLOADS_OF_A_CHECKPOINT: u64 = 20 + 4;

/// A whole sync with faults, by `airdrop sync`; returns its report, and what the workers said.
fn sync(dir: &Path, store: bool, faults: &[&str], source: &[&str]) -> (Value, String) {
    sync_with(dir, store, &[], faults, source)
}

/// [`sync`] with more arguments of `airdrop sync`.
fn sync_with(dir: &Path, store: bool, more: &[&str], faults: &[&str], source: &[&str]) -> (Value, String) {
    let (platform, temporary, disk) = (dir.join("platform"), dir.join("temporary"), dir.join("disk"));
    fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(AIRDROP);
    command.args(["sync", "--json", "--retry-errors", "1", "--dir"]).arg(&platform).args(more);
    for fault in faults {
        command.args(["--fault", fault]);
    }
    command.arg("--").arg(program("synthetic-extractor")).args(["invoke", "--event", "{event}"]).args(source);
    if store {
        command.arg("--store").arg(disk);
    }
    let output: Output = command.env("TMPDIR", &temporary).stdin(Stdio::null()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{faults:?}, store {store}: {error}: {}", said(&output)));
    assert_eq!(report["done"], true, "{report}");
    // What the audit may say: that a call was refused for good, and that attachments were given up.
    let findings = report["audit"]["findings"].as_array().unwrap();
    let allowed =
        ["attachment-given-up", "prepare-failed", "message-failed", "state-failed", "state-get-failed"];
    let odd = findings.iter().filter(|finding| !allowed.contains(&finding["rule"].as_str().unwrap())).count();
    assert_eq!(odd, 0, "{faults:?}, store {store}: {report}");
    assert_eq!(output.status.code(), Some(if findings.is_empty() { 0 } else { 3 }), "{report}");
    // A worker without a disk leaves nothing on it.
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "{faults:?}, store {store}");
    (report, String::from_utf8(output.stderr).unwrap())
}

/// The consequences of a fault. In addition nothing is lost or repeated.
struct Expected {
    fault: &'static str,
    times: u64,
    /// Events that had to be given again, as their worker ended without an answer.
    restarts: u64,
    /// Whether the platform was told ERROR on the way.
    error: bool,
    /// Uploads that were given up, at most.
    unnamed_uploads_max: u64,
}

fn check(expected: &Expected, store: bool) {
    let Expected { fault, times, restarts, error, unnamed_uploads_max } = expected;
    let dir = tempfile::tempdir().unwrap();
    let (report, _) = sync(dir.path(), store, &[fault], &SOURCE);
    let what = format!("{fault}, store {store}: {report}");
    assert_eq!(came_true(&report["faults"])[*fault], *times, "{what}");
    let platform = dir.path().join("platform");
    let verdict = Verdict::read(&platform, report["run"].as_str().unwrap(), ITEMS);
    assert!(verdict.is_clean() && verdict.announced == ITEMS, "{what}: {verdict:?}");
    assert!(verdict.unnamed_uploads <= *unnamed_uploads_max, "{what}: {verdict:?}");
    assert_eq!(report["restarts"], *restarts, "{what}");
    let messages = fs::read_to_string(platform.join("messages.jsonl")).unwrap();
    assert_eq!(messages.contains("EXTRACTION_DATA_ERROR"), *error, "{what}");
}

#[test]
fn what_the_external_system_does_not_give_is_given_up_and_every_other_attachment_announced() {
    // With how often each comes true: what cannot change is asked for once, what may change five times.
    let faults = [
        ("ext-404:2", 1),
        ("ext-410:3", 1),
        ("ext-401:5", 5),
        ("ext-403:6", 1),
        ("ext-short:10", 5),
        // These get better. The length of every third file is not told.
        ("ext-short:12,1", 1),
        ("ext-short:13,1", 1),
        ("ext-500:14,2", 2),
        ("ext-429:20,1", 1),
    ];
    let files = Files { count: 60, bytes: 70_000, gone: [2, 3, 5, 6, 10].into() };
    let source = ["--items", "300", "--attachments", "60", "--attachment-bytes", "70000", "--streams", "7"];
    std::thread::scope(|scope| {
        for store in [true, false] {
            let (files, source) = (&files, &source);
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                let (report, said) = sync(dir.path(), store, &faults.map(|(fault, _)| fault), source);
                let expected = faults.iter().map(|(fault, times)| ((*fault).to_owned(), *times)).collect();
                assert_eq!(came_true(&report["faults"]), expected, "store {store}: {report}");
                let platform = dir.path().join("platform");
                let verdict = Verdict::read_with(&platform, report["run"].as_str().unwrap(), 300, files);
                assert_eq!(verdict, Verdict { announced: 300, files: 55, ..Verdict::default() });
                assert_eq!(report["answers"]["attachments"], "EXTRACTION_ATTACHMENTS_DONE", "{report}");
                assert_eq!(report["invocations"]["attachments"], 1, "a short 429 is waited for: {report}");
                assert_eq!(report["restarts"], 0, "{report}");
                let messages = fs::read_to_string(platform.join("messages.jsonl")).unwrap();
                assert!(!messages.contains("_DELAY") && !messages.contains("_ERROR"));
                assert!(said.contains("55 of 60 attachments, 5 given up"), "{said}");
                let failed = report["audit"]["failed_attachments"].as_array().unwrap();
                let number = |id: &Value| id.as_str()?.strip_prefix("attachment-")?.parse::<u64>().ok();
                let numbers: BTreeSet<u64> =
                    failed.iter().filter_map(|failed| number(&failed["id"])).collect();
                assert_eq!((failed.len(), &numbers), (5, &files.gone), "{report}");
                for failed in failed {
                    let text = |field: &str| failed[field].as_str().unwrap_or_default();
                    assert!(!text("file_name").is_empty() && !text("parent_id").is_empty(), "{failed}");
                }
            });
        }
    });
}

/// A sync that extracts everything again names all files again, and streams only one that it did not get the first time.
#[test]
fn a_file_that_did_not_change_is_not_missing_in_the_next_sync() {
    let dir = tempfile::tempdir().unwrap();
    let source = ["--items", "300", "--attachments", "20", "--streams", "3"];
    let (first, _) = sync(dir.path(), true, &["ext-404:2"], &source);
    assert_eq!(first["audit"]["attachments"], serde_json::json!([20, 19]), "{first}");
    let rules = |report: &Value| -> Vec<String> {
        let findings = report["audit"]["findings"].as_array().unwrap().iter();
        findings.map(|finding| format!("{} {}", finding["rule"], finding["count"])).collect()
    };
    assert_eq!(rules(&first), [r#""attachment-given-up" 1"#], "{first}");
    let (second, _) = sync_with(dir.path(), true, &["--full"], &[], &source);
    assert_eq!(rules(&second), Vec::<String>::new(), "{second}");
    assert_eq!(second["audit"]["attachments"], serde_json::json!([20, 1]), "{second}");
}

#[test]
fn whatever_fails_once_nothing_is_lost_and_nothing_is_announced_twice() {
    let plain = |fault, times| Expected { fault, times, restarts: 0, error: false, unnamed_uploads_max: 0 };
    // The first two uploads are the list of units and the metadata; the first two messages announce them.
    let all = [
        Expected { error: true, ..plain("prepare-403:7", 1) },
        // The URL may have expired: the upload is prepared again.
        plain("upload-403:7", 1),
        // One upload under a new id takes the place of the one that cannot be confirmed.
        Expected { unnamed_uploads_max: 1, ..plain("confirm-400:5", 1) },
        plain("upload-503:6,3", 3),
        plain("confirm-503:4,2", 2),
        plain("upload-lost:8", 1),
        plain("confirm-lost:9", 1),
        plain("message-lost:3", 1),
        // A message that is refused for its size is made again with half of the artifacts, in the same life.
        plain("message-413:3", 1),
        plain("429:upload,4,1", 1),
        plain("prepare-500:5", 1),
    ];
    // They wait more than they work.
    std::thread::scope(|scope| {
        for expected in &all {
            for store in [true, false] {
                let given_up = match (expected.fault, store) {
                    // It was made, and nobody knows its id.
                    ("upload-lost:8", _) => 1,
                    // No checkpoint can be saved after the refused one, so what was uploaded after it is lost.
                    ("prepare-403:7", false) => UPLOADS_OF_A_CHECKPOINT,
                    _ => expected.unnamed_uploads_max,
                };
                let expected = Expected { unnamed_uploads_max: given_up, ..*expected };
                scope.spawn(move || check(&expected, store));
            }
        }
        for fault in ["state-lost:4", "state-lost:6", "state-503:5,2", "state-get-500:3"] {
            let times = if fault.ends_with(",2") { 2 } else { 1 };
            scope.spawn(move || check(&plain(fault, times), false));
        }
    });
}

/// One invocation, by hand.
fn invoke(event: &str, dir: &Path, store: bool) -> Output {
    let file = dir.join("event.json");
    fs::write(&file, event).unwrap();
    let mut command = Command::new(program("synthetic-extractor"));
    command.args(["invoke", "--event"]).arg(&file).args(SOURCE);
    if store {
        command.arg("--store").arg(dir.join("disk"));
    }
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_message_that_is_not_taken_for_long_is_the_same_bytes_when_it_is_taken_at_last() {
    std::thread::scope(|scope| {
        for store in [true, false] {
            scope.spawn(move || refused_for_long(store));
        }
    });
}

fn refused_for_long(store: bool) {
    let dir = tempfile::tempdir().unwrap();
    let platform = dir.path().join("platform");
    let served = Served::start(Path::new(AIRDROP), &platform, &[]);
    let settings = SyncSettings::new("synthetic").endpoint(&served.base);
    let (local, clock) = (Local::open(&platform).unwrap(), SystemClock::new());
    let run = local.begin_sync(&settings, &clock).unwrap();
    let mut refused = 0;
    while let Some(event) = local.next_event(&settings, &clock).unwrap() {
        let given_up = event.event_type == "EXTRACTION_DATA_START";
        if given_up {
            let text = "message-500";
            let request = format!(
                "POST /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            assert_eq!(served.raw(request.as_bytes(), false).0, 200);
            for _ in 0..2 {
                let before = local.messages().unwrap().count();
                let output = invoke(&event.json, dir.path(), store);
                assert_eq!(output.status.code(), Some(1), "{}", said(&output));
                assert!(said(&output).contains("answered 500"), "{}", said(&output));
                assert_eq!(local.messages().unwrap().count(), before);
            }
            refused = served.came_true()["message-500"];
            served.ask("DELETE", "/faults");
        }
        let output = invoke(&event.json, dir.path(), store);
        assert!(output.status.success(), "{}", said(&output));
    }
    assert!(refused >= 10, "{refused}: each life tries five times");
    let verdict = Verdict::read(&platform, run.as_str(), ITEMS);
    assert!(verdict.is_clean() && verdict.announced == ITEMS, "store {store}: {verdict:?}");
    assert_eq!(verdict.unnamed_uploads, 0, "nothing is uploaded twice, store {store}");
    let messages: Vec<_> = calls(&platform).into_iter().filter(|(call, ..)| call == "message").collect();
    let failed: Vec<_> = messages.iter().filter(|(.., status)| *status == Some(500)).collect();
    assert_eq!(failed.len() as u64, refused);
    let taken = messages.iter().position(|(.., status)| *status == Some(500)).unwrap() + failed.len();
    assert_eq!(messages[taken].2, Some(200));
    assert!(failed.iter().all(|(_, hash, _)| *hash == messages[taken].1), "{messages:?}");
}
