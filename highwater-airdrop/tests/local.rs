//! The promises of the local Airdrop as a platform: each act counts once and durably, wherever its process dies, and
//! what the platform would refuse is refused. (The syncs that it plays are in `local_sync.rs`.)
//!
//! The oracle reads the files of the directory itself, never through the code under test.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use highwater::ArtifactId;
use highwater::airdrop::{Body, Fate, Platform, PlatformError, SealedMessage, Upload};
use highwater_airdrop::{Error, Local, UPLOAD_BYTES_MAX, WORKER_STATE_BYTES_MAX};
use serde_json::{Value, json};
use tempfile::TempDir;

// --- the oracle: the files, and nothing but the files

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

fn lines(dir: &Path, name: &str) -> Vec<String> {
    let text = text(dir, name);
    assert!(text.is_empty() || text.ends_with('\n'), "{name} ends in a torn line: {text:?}");
    text.lines().map(str::to_owned).collect()
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Nothing is there but what was asked for.
fn assert_clean(dir: &Path) {
    assert_eq!(names(&dir.join("incoming")), BTreeSet::new());
}

// --- short forms of the acts

fn upload(local: &Local, bytes: &[u8]) -> ArtifactId {
    try_upload(local, Body::Batch(bytes)).unwrap()
}

fn try_upload(local: &Local, body: Body<'_>) -> Result<ArtifactId, PlatformError> {
    local.upload(Upload { file_name: "a.bin", content_type: "application/octet-stream", body })
}

fn id(text: &str) -> ArtifactId {
    ArtifactId::new(text).unwrap()
}

fn message(key: &str, event_type: &str, artifacts: &[&str]) -> SealedMessage {
    let artifacts: Vec<Value> =
        artifacts.iter().map(|id| json!({"id": id, "item_type": "issues", "item_count": 3})).collect();
    let body = json!({"event_type": event_type, "event_context": {"run_id": "r"}, "event_data": {"artifacts": artifacts}});
    SealedMessage { key: key.into(), event_type: event_type.into(), body: body.to_string() }
}

fn done(key: &str, artifacts: &[&str]) -> SealedMessage {
    message(key, "EXTRACTION_DATA_DONE", artifacts)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, PlatformError>, expected: u16, names: &str) {
    match result {
        Err(PlatformError::Refused { status, reason }) => {
            assert_eq!(status, expected, "{reason}");
            assert!(reason.contains(names), "{reason:?} does not name {names:?}");
        }
        other => panic!("expected a refusal with {expected}, found {other:?}"),
    }
}

#[track_caller]
fn assert_unknown<T: std::fmt::Debug>(result: Result<T, PlatformError>, names: &[&str]) {
    match result {
        Err(PlatformError::Retry { fate: Fate::Unknown, after: None, reason }) => {
            for name in names {
                assert!(reason.contains(name), "{reason:?} does not name {name:?}");
            }
        }
        other => panic!("expected an error of unknown fate, found {other:?}"),
    }
}

// --- acts

#[test]
fn what_was_answered_is_in_the_files_and_known_after_reopen() {
    let dir = dir();
    let path = dir.path().join("made/with/its/parents");
    let (one, two) = {
        let local = Local::open(&path).unwrap();
        let one = upload(&local, b"first");
        let two = upload(&local, b"");
        local.confirm(&one).unwrap();
        local.send(&done("key 1", &[one.as_str()])).unwrap();
        (one, two)
    };
    assert_eq!(fs::read(path.join("artifacts").join(one.as_str())).unwrap(), b"first");
    assert_eq!(fs::read(path.join("artifacts").join(two.as_str())).unwrap(), b"");
    assert_eq!(lines(&path, "confirmed.txt"), [one.as_str()]);
    assert_eq!(lines(&path, "messages.jsonl"), [done("key 1", &[one.as_str()]).body]);
    assert_clean(&path);

    let local = Local::open(&path).unwrap();
    assert_eq!(local.dir(), path);
    assert_eq!(local.artifacts().unwrap(), [one.clone(), two.clone()]);
    assert_eq!(local.artifact_bytes(&one).unwrap(), b"first");
    assert_eq!(local.artifact_path(&two).unwrap(), path.join("artifacts").join(two.as_str()));
    assert_eq!(local.confirmed().unwrap(), std::slice::from_ref(&one));
    let messages: Vec<Value> = local.messages().unwrap().map(Result::unwrap).collect();
    assert_eq!(messages, [serde_json::from_str::<Value>(&done("", &[one.as_str()]).body).unwrap()]);
    // Said again, they add nothing.
    local.confirm(&one).unwrap();
    local.send(&done("key 1", &[one.as_str()])).unwrap();
    assert_eq!(lines(&path, "confirmed.txt").len(), 1);
    assert_eq!(lines(&path, "messages.jsonl").len(), 1);
    // Another key is another message, even with the same bytes.
    local.send(&done("key 2", &[one.as_str()])).unwrap();
    assert_eq!(lines(&path, "messages.jsonl").len(), 2);
    let error = local.artifact_bytes(&id("artifact-9999-000001")).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("artifact-9999-000001"), "{error}");
}

#[test]
fn no_artifact_id_is_given_twice_across_handles_reopens_and_lost_counters() {
    let dir = dir();
    let mut ids = BTreeSet::new();
    let mut count = 0;
    for life in 0..4 {
        let (one, two) = (Local::open(dir.path()).unwrap(), Local::open(dir.path()).unwrap());
        for _ in 0..3 {
            for local in [&one, &two] {
                count += 1;
                let id = upload(local, format!("upload {count}").as_bytes());
                assert!(!id.as_str().contains(['/', '\\', '.']), "{id}");
                ids.insert(id);
            }
        }
        if life == 1 {
            fs::remove_file(dir.path().join("uploaders.txt")).unwrap();
        }
    }
    assert_eq!(ids.len(), count);
    let kept: BTreeSet<String> = ids
        .iter()
        .map(|id| {
            String::from_utf8(fs::read(dir.path().join("artifacts").join(id.as_str())).unwrap()).unwrap()
        })
        .collect();
    assert_eq!(kept.len(), count, "an upload was written over");
}

/// Gives `chunks` of bytes, then the end or an error; counts what was taken from it.
struct Source<'a> {
    chunks: u64,
    chunk_bytes: usize,
    fails: bool,
    taken: u64,
    between: Box<dyn FnMut(u64) + 'a>,
}

impl Source<'_> {
    fn new(chunks: u64, chunk_bytes: usize) -> Self {
        Self { chunks, chunk_bytes, fails: false, taken: 0, between: Box::new(|_| {}) }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        (self.between)(self.taken);
        if self.taken == 0 {
            self.taken = 1;
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.taken > self.chunks {
            return if self.fails { Err(io::Error::other("the line went dead")) } else { Ok(0) };
        }
        let count = self.chunk_bytes.min(out.len());
        out[..count].fill(b'a' + u8::try_from(self.taken % 26).unwrap());
        self.taken += 1;
        Ok(count)
    }
}

#[test]
fn a_body_of_another_length_than_declared_is_refused_and_nothing_of_it_is_kept() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    for length_bytes in [None, Some(3_000)] {
        let mut source = Source::new(3, 1_000);
        let id = try_upload(&local, Body::Stream { reader: &mut source, length_bytes }).unwrap();
        let mut expected = vec![b'b'; 1_000];
        expected.extend([b'c'; 1_000]);
        expected.extend([b'd'; 1_000]);
        assert_eq!(local.artifact_bytes(&id).unwrap(), expected);
    }
    let before = names(&dir.path().join("artifacts"));
    for (length, found) in [(3_001, "has 3000"), (2_999, "has more"), (0, "has more")] {
        let body = &mut Source::new(3, 1_000);
        let result = try_upload(&local, Body::Stream { reader: body, length_bytes: Some(length) });
        assert_refused(result, 400, found);
    }
    // An endless source is not read to its end.
    let mut endless = Source::new(u64::MAX, 1_000);
    let result = try_upload(&local, Body::Stream { reader: &mut endless, length_bytes: Some(10_000) });
    assert_refused(result, 400, "a.bin");
    assert!(endless.taken < 20, "{} chunks were taken of a body of ten", endless.taken);
    // A body with a declared length that is too long is not read at all.
    let mut huge = Source::new(u64::MAX, 1_000);
    let length_bytes = Some(UPLOAD_BYTES_MAX + 1);
    assert_refused(try_upload(&local, Body::Stream { reader: &mut huge, length_bytes }), 413, "a.bin");
    assert_eq!(huge.taken, 0);
    // One that breaks off never reached us.
    let mut broken = Source { fails: true, ..Source::new(3, 1_000) };
    match try_upload(&local, Body::Stream { reader: &mut broken, length_bytes: None }) {
        Err(PlatformError::Retry { fate: Fate::NotApplied, reason, .. }) => {
            assert!(reason.contains("a.bin") && reason.contains("byte 3000"), "{reason}");
            assert!(reason.contains("the line went dead"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(names(&dir.path().join("artifacts")), before);
    assert_clean(dir.path());
}

#[test]
fn what_the_platform_would_refuse_is_refused_and_leaves_no_trace() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    let confirmed = upload(&local, b"1");
    let unconfirmed = upload(&local, b"2");
    local.confirm(&confirmed).unwrap();
    local.send(&done("said", &[confirmed.as_str()])).unwrap();
    let before: Vec<String> =
        ["confirmed.txt", "messages.jsonl", "message_keys.jsonl"].map(|name| text(dir.path(), name)).into();

    for unknown in ["artifact-0001-999999", "..", ".", "../confirmed.txt", "a/b", "/etc/passwd", "\u{e9}"] {
        assert_refused(local.confirm(&id(unknown)), 404, unknown);
        let named = format!("{unknown:?}");
        for event_type in ["EXTRACTION_DATA_DONE", "EXTRACTION_EXTERNAL_SYNC_UNITS_DONE"] {
            assert_refused(
                local.send(&message("m", event_type, &[confirmed.as_str(), unknown])),
                400,
                &named,
            );
        }
    }
    for event_type in ["EXTRACTION_DATA_PROGRESS", "EXTRACTION_METADATA_DONE", "UNKNOWN_EVENT_TYPE"] {
        let artifacts = [confirmed.as_str(), unconfirmed.as_str()];
        assert_refused(local.send(&message("m", event_type, &artifacts)), 400, unconfirmed.as_str());
    }
    let as_body = |body: &str| SealedMessage { body: body.into(), ..done("m", &[]) };
    for body in
        ["", "{", "DONE", "{\"event_type\":\"EXTRACTION_DATA_DONE\"} {}", "{\"event_type\":\"\u{0}\"}"]
    {
        assert_refused(local.send(&as_body(body)), 400, "not JSON");
    }
    for body in [
        "[]",
        "{}",
        "null",
        "{\"event_type\":7}",
        "{\"event_type\":\"X\",\"event_data\":{\"artifacts\":[{}]}}",
    ] {
        assert_refused(local.send(&as_body(body)), 400, "not a message");
    }
    assert_refused(
        local.send(&as_body("{\"event_type\":\"EXTRACTION_DATA_ERROR\"}")),
        400,
        "EXTRACTION_DATA_ERROR",
    );
    assert_refused(local.send(&done("", &[])), 400, "key");
    assert_refused(local.send(&done(&"k".repeat(2_049), &[])), 400, "2048");
    assert_refused(local.send(&sized("m", 200_001)), 413, "200001");
    assert_refused(local.send(&done("said", &[])), 409, "said");

    let after: Vec<String> =
        ["confirmed.txt", "messages.jsonl", "message_keys.jsonl"].map(|name| text(dir.path(), name)).into();
    assert_eq!(after, before);

    // And just within the limits, all is well.
    local.send(&sized("m", 200_000)).unwrap();
    local.send(&done(&"k".repeat(2_048), &[])).unwrap();
    for event_type in ["EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE"] {
        local.send(&message(event_type, event_type, &[unconfirmed.as_str()])).unwrap();
    }
    assert_eq!(lines(dir.path(), "messages.jsonl").len(), 5);
}

/// A message of so many bytes.
fn sized(key: &str, bytes: usize) -> SealedMessage {
    let mut message = done(key, &[]);
    let filler = bytes - message.body.len() - r#","x":"""#.len();
    message.body.truncate(message.body.len() - 1);
    message.body += r#","x":""#;
    message.body += &"x".repeat(filler);
    message.body += r#""}"#;
    assert_eq!(message.body.len(), bytes);
    message
}

#[test]
fn a_message_on_several_lines_becomes_one_bare_line() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    let value: Value = serde_json::from_str(&done("", &[]).body).unwrap();
    let pretty = SealedMessage {
        key: "a key\nwith \"everything\" \u{e9}".into(),
        event_type: "EXTRACTION_DATA_DONE".into(),
        body: serde_json::to_string_pretty(&value).unwrap().replace('\n', "\r\n"),
    };
    local.send(&pretty).unwrap();
    local.send(&pretty).unwrap();
    Local::open(dir.path()).unwrap().send(&pretty).unwrap();
    let lines = lines(dir.path(), "messages.jsonl");
    assert_eq!(lines.len(), 1);
    assert_eq!(serde_json::from_str::<Value>(&lines[0]).unwrap(), value);
}

// --- every torn state

#[test]
fn a_confirm_killed_at_any_byte_counts_once_or_not_at_all() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    let (one, two) = (upload(&local, b"1"), upload(&local, b"2"));
    local.confirm(&one).unwrap();
    let first = text(dir.path(), "confirmed.txt");
    local.confirm(&two).unwrap();
    let both = text(dir.path(), "confirmed.txt");
    drop(local);
    let file = dir.path().join("confirmed.txt");
    for cut in first.len()..=both.len() {
        // Cut short, or, after power loss, with zeroes where the bytes should be.
        for torn in [both[..cut].to_owned(), format!("{}{}", &both[..cut], "\0".repeat(both.len() - cut))] {
            fs::write(&file, &torn).unwrap();
            let local = Local::open(dir.path()).unwrap();
            let known: Vec<ArtifactId> = local.confirmed().unwrap();
            let expected = if cut == both.len() { vec![one.clone(), two.clone()] } else { vec![one.clone()] };
            assert_eq!(known, expected, "{torn:?}");
            let announced = local.send(&done(&format!("key {cut} {}", torn.len()), &[two.as_str()]));
            assert_eq!(announced.is_ok(), cut == both.len(), "{torn:?}: {announced:?}");
            local.confirm(&two).unwrap();
            local.confirm(&one).unwrap();
            assert_eq!(text(dir.path(), "confirmed.txt"), both, "{torn:?}");
        }
    }
}

#[test]
fn a_message_killed_at_any_byte_of_either_file_counts_once_or_not_at_all() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    // Short, as every byte of it is a place to die at.
    let two = |body: &str| SealedMessage { key: "two".into(), event_type: "X".into(), body: body.into() };
    let (keys, messages) = (dir.path().join("message_keys.jsonl"), dir.path().join("messages.jsonl"));
    local.send(&done("one", &[])).unwrap();
    let (keys_one, messages_one) = (fs::read(&keys).unwrap(), fs::read(&messages).unwrap());
    local.send(&two(r#"{"event_type":"X"}"#)).unwrap();
    let (keys_two, messages_two) = (fs::read(&keys).unwrap(), fs::read(&messages).unwrap());
    drop(local);

    let zeroed = |whole: &[u8], from: usize| {
        let mut bytes = whole.to_vec();
        bytes[from..].fill(0);
        bytes
    };
    let last_newline_kept = |mut bytes: Vec<u8>| {
        *bytes.last_mut().unwrap() = b'\n';
        bytes
    };
    // What is in the two files, and whether the second message counts.
    let mut states = Vec::new();
    for cut in keys_one.len()..keys_two.len() {
        states.push((keys_two[..cut].to_vec(), messages_one.clone(), false));
        states.push((zeroed(&keys_two, cut), messages_one.clone(), false));
    }
    for cut in messages_one.len()..messages_two.len() {
        states.push((keys_two.clone(), messages_two[..cut].to_vec(), false));
        // After power loss: the length is there, the bytes are not; the last sector may be.
        states.push((keys_two.clone(), zeroed(&messages_two, cut), false));
        if cut + 1 < messages_two.len() {
            states.push((keys_two.clone(), last_newline_kept(zeroed(&messages_two, cut)), false));
        }
    }
    states.push((keys_two.clone(), messages_two.clone(), true));
    assert!(states.len() > 100, "{}", states.len());

    for (keys_bytes, messages_bytes, counts) in states {
        let state = format!(
            "{:?} {:?}",
            String::from_utf8_lossy(&keys_bytes),
            String::from_utf8_lossy(&messages_bytes)
        );
        for same in [true, false] {
            fs::write(&keys, &keys_bytes).unwrap();
            fs::write(&messages, &messages_bytes).unwrap();
            let local = Local::open(dir.path()).unwrap();
            let expected = if counts { &messages_two } else { &messages_one };
            assert_eq!(&fs::read(&messages).unwrap(), expected, "{state}");
            assert_eq!(local.messages().unwrap().count(), if counts { 2 } else { 1 }, "{state}");
            // Sent again, it is the same message; another under its key is another, unless it counts already.
            let again = two(if same { r#"{"event_type":"X"}"# } else { r#"{"event_type":"X","y":1}"# });
            let sent = local.send(&again);
            if same {
                sent.unwrap();
                assert_eq!(fs::read(&messages).unwrap(), messages_two, "{state}");
                assert_eq!(fs::read(&keys).unwrap(), keys_two, "{state}");
            } else if counts {
                assert_refused(sent, 409, "two");
            } else {
                sent.unwrap();
                assert_eq!(lines(dir.path(), "messages.jsonl")[1], again.body, "{state}");
            }
            local.send(&done("one", &[])).unwrap();
            assert_eq!(local.messages().unwrap().count(), 2, "{state}");
            drop(local);
            assert_eq!(Local::open(dir.path()).unwrap().messages().unwrap().count(), 2, "{state}");
        }
    }
}

#[test]
fn a_recovery_that_is_killed_itself_is_gone_on_with() {
    let dir = dir();
    let (keys, messages) = (dir.path().join("message_keys.jsonl"), dir.path().join("messages.jsonl"));
    let local = Local::open(dir.path()).unwrap();
    local.send(&done("one", &[])).unwrap();
    let messages_one = fs::read(&messages).unwrap();
    local.send(&done("two", &[])).unwrap();
    drop(local);
    // The torn line is cut, its key not yet.
    fs::write(&messages, &messages_one).unwrap();
    let local = Local::open(dir.path()).unwrap();
    assert_eq!(lines(dir.path(), "message_keys.jsonl").len(), 1);
    // Had the key stayed, the next message would stand where it points to.
    local.send(&done("six", &[])).unwrap();
    local.send(&done("two", &[])).unwrap();
    assert_eq!(lines(dir.path(), "messages.jsonl").len(), 3);
    // Keys alone and nothing to point to.
    drop(local);
    fs::write(&messages, b"").unwrap();
    fs::write(&keys, "{\"key\":\"one\",\"at\":0,\"bytes\":9}\n").unwrap();
    let local = Local::open(dir.path()).unwrap();
    assert_eq!(text(dir.path(), "message_keys.jsonl"), "");
    local.send(&done("one", &[])).unwrap();
    assert_eq!(lines(dir.path(), "messages.jsonl").len(), 1);
}

#[test]
fn a_dead_owners_leftovers_are_swept_and_a_living_ones_are_not() {
    let dir = dir();
    drop(Local::open(dir.path()).unwrap());
    let incoming = dir.path().join("incoming");
    fs::write(incoming.join(".tmpDead01"), b"half an upload").unwrap();
    fs::write(incoming.join(".tmpDead02"), b"").unwrap();
    let local = Local::open(dir.path()).unwrap();
    assert_clean(dir.path());

    // Others open the directory, upload and save while this one's body is still coming.
    let opened = Cell::new(0);
    let mut source = Source::new(5, 1_000);
    source.between = Box::new(|_| {
        fs::write(incoming.join(".tmpDead03"), b"").unwrap();
        let other = Local::open(dir.path()).unwrap();
        assert_eq!(names(&incoming).len(), 1, "one is alive");
        upload(&other, b"meanwhile");
        other.save_worker_state("{}").unwrap();
        opened.set(opened.get() + 1);
    });
    let id = try_upload(&local, Body::Stream { reader: &mut source, length_bytes: Some(5_000) }).unwrap();
    drop(source);
    assert!(opened.get() >= 6);
    assert_eq!(local.artifact_bytes(&id).unwrap().len(), 5_000);
    assert_eq!(local.artifacts().unwrap().len(), opened.get() + 1);
    assert_clean(dir.path());
}

// --- several handles

#[test]
fn two_handles_on_one_directory_see_each_others_acts() {
    let dir = dir();
    let (one, two) = (Local::open(dir.path()).unwrap(), Local::open(dir.path()).unwrap());
    let artifact = upload(&one, b"1");
    assert_refused(two.send(&done("k0", &[artifact.as_str()])), 400, "not confirmed");
    one.confirm(&artifact).unwrap();
    two.confirm(&artifact).unwrap();
    assert_eq!(lines(dir.path(), "confirmed.txt").len(), 1);
    for round in 0..5 {
        for (sender, other) in [(&one, &two), (&two, &one)] {
            let key = format!("k{round} {}", std::ptr::eq(sender, &raw const one));
            sender.send(&done(&key, &[artifact.as_str()])).unwrap();
            other.send(&done(&key, &[artifact.as_str()])).unwrap();
            assert_refused(other.send(&done(&key, &[])), 409, &key);
        }
    }
    assert_eq!(lines(dir.path(), "messages.jsonl").len(), 10);
    // A torn end that a dead one left behind is no obstacle to the living.
    fs::OpenOptions::new()
        .append(true)
        .open(dir.path().join("confirmed.txt"))
        .unwrap()
        .write_all(b"artif")
        .unwrap();
    let second = upload(&two, b"2");
    two.confirm(&second).unwrap();
    assert_eq!(lines(dir.path(), "confirmed.txt"), [artifact.as_str(), second.as_str()]);
}

#[test]
fn many_threads_on_two_handles_lose_and_repeat_nothing() {
    let dir = dir();
    let handles = [Local::open(dir.path()).unwrap(), Local::open(dir.path()).unwrap()];
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let handles = &handles;
            scope.spawn(move || {
                for act in 0..10 {
                    let artifact = upload(&handles[thread % 2], format!("{thread} {act}").as_bytes());
                    let sealed = done(&format!("{thread} {act}"), &[artifact.as_str()]);
                    for local in handles {
                        local.confirm(&artifact).unwrap();
                        local.send(&sealed).unwrap();
                    }
                }
            });
        }
    });
    let confirmed: BTreeSet<String> = lines(dir.path(), "confirmed.txt").into_iter().collect();
    assert_eq!(lines(dir.path(), "confirmed.txt").len(), 40);
    assert_eq!(confirmed, names(&dir.path().join("artifacts")));
    let announced: BTreeSet<String> = lines(dir.path(), "messages.jsonl")
        .iter()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["event_data"]["artifacts"][0]["id"].to_string()
        })
        .collect();
    assert_eq!(announced.len(), 40);
    assert_eq!(lines(dir.path(), "messages.jsonl").len(), 40);
    assert_clean(dir.path());
}

/// The child of the next test: does one act after another, and says each one that was answered.
#[test]
fn child_that_is_killed() {
    let Ok(path) = std::env::var("HIGHWATER_LOCAL_CHILD") else { return };
    let from: u64 = std::env::var("HIGHWATER_LOCAL_FROM").unwrap().parse().unwrap();
    let local = Local::open(path).unwrap();
    let mut out = io::stdout();
    for number in from.. {
        let artifact = upload(&local, &vec![b'x'; 10_000]);
        writeln!(out, "uploaded {artifact}").unwrap();
        local.confirm(&artifact).unwrap();
        writeln!(out, "confirmed {artifact}").unwrap();
        // Its body is the same in every life: the artifact is not in it.
        local.send(&done(&format!("message {number}"), &[])).unwrap();
        writeln!(out, "sent {number}").unwrap();
    }
}

#[test]
fn killed_for_real_it_keeps_what_it_answered_and_repeats_nothing() {
    let dir = dir();
    let mut uploaded = BTreeSet::new();
    let mut confirmed = BTreeSet::new();
    let mut next_message = 0;
    let mut kills = 0;
    for life in 0..15_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env("HIGHWATER_LOCAL_CHILD", dir.path())
            .env("HIGHWATER_LOCAL_FROM", next_message.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Each life ends a different number of acts in, wherever the child is by then.
        let mut acts = 0;
        let mut all = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        while acts < 3 + life {
            let line = all.next().expect("the child goes on until it is killed");
            acts += usize::from(note(&line, &mut uploaded, &mut confirmed, &mut next_message));
        }
        child.kill().unwrap();
        kills += 1;
        // What it said before the blow fell.
        for line in all {
            note(&line, &mut uploaded, &mut confirmed, &mut next_message);
        }
        child.wait().unwrap();
        // The next life sends the last message again: the same key, the same bytes.
        next_message = next_message.saturating_sub(1);

        let local = Local::open(dir.path()).unwrap();
        let kept: Vec<String> = lines(dir.path(), "confirmed.txt");
        let kept_set: BTreeSet<String> = kept.iter().cloned().collect();
        assert_eq!(kept.len(), kept_set.len(), "confirmed twice");
        assert!(kept_set.is_superset(&confirmed), "an answered confirm is lost");
        let artifacts = names(&dir.path().join("artifacts"));
        assert!(artifacts.is_superset(&uploaded) && artifacts.is_superset(&kept_set), "an upload is lost");
        let messages = local.messages().unwrap().map(Result::unwrap).count() as u64;
        assert!(messages == next_message + 1 || messages == next_message + 2, "{messages}, {next_message}");
        assert_eq!(messages, lines(dir.path(), "message_keys.jsonl").len() as u64);
        assert_clean(dir.path());
    }
    assert_eq!(kills, 15);
    assert!(next_message > 15 && confirmed.len() > 15);
}

/// Notes what the child was answered. The harness puts its own words on the child's first line.
fn note(
    line: &str,
    uploaded: &mut BTreeSet<String>,
    confirmed: &mut BTreeSet<String>,
    next_message: &mut u64,
) -> bool {
    let after = |word: &str| line.find(word).map(|at| line[at + word.len()..].to_owned());
    if let Some(id) = after("uploaded ") {
        uploaded.insert(id);
    } else if let Some(id) = after("confirmed ") {
        confirmed.insert(id);
    } else if let Some(number) = after("sent ") {
        *next_message = number.parse::<u64>().unwrap() + 1;
    } else {
        return false;
    }
    true
}

// --- directories that make no sense, and disks that refuse

#[test]
fn a_directory_that_was_tampered_with_is_an_error_that_names_the_file() {
    let prepared = || {
        let dir = dir();
        let local = Local::open(dir.path()).unwrap();
        for number in 0..3 {
            let artifact = upload(&local, b"1");
            local.confirm(&artifact).unwrap();
            local.send(&done(&format!("key {number}"), &[artifact.as_str()])).unwrap();
        }
        (dir, local)
    };
    let junk_in_second_line = |text: &str| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines[1] = "not / ours";
        lines.join("\n") + "\n"
    };
    for name in ["confirmed.txt", "message_keys.jsonl"] {
        let (dir, local) = prepared();
        drop(local);
        let tampered = junk_in_second_line(&text(dir.path(), name));
        fs::write(dir.path().join(name), &tampered).unwrap();
        let error = Local::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::NotALocal { .. }), "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("not / ours"), "{error}");
        assert_eq!(text(dir.path(), name), tampered, "nothing is mended by guessing");
    }
    // More is missing than a kill can take.
    let (dir, local) = prepared();
    let messages = text(dir.path(), "messages.jsonl");
    let two_lines_less = messages.lines().next().unwrap().to_owned() + "\n";
    fs::write(dir.path().join("messages.jsonl"), &two_lines_less).unwrap();
    let error = Local::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("messages.jsonl") && error.contains("key 1"), "{error}");
    // A handle that was open all along notices too.
    assert_unknown(local.send(&done("key 9", &[])), &["messages.jsonl", "bytes"]);
    assert_eq!(text(dir.path(), "messages.jsonl"), two_lines_less);
    // A line that somebody put there is no message.
    let (dir, local) = prepared();
    fs::write(dir.path().join("messages.jsonl"), messages.replacen('{', "[", 1)).unwrap();
    let read: Vec<_> = local.messages().unwrap().collect();
    assert_eq!(read.len(), 1, "it ends with the first error");
    let error = read[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("messages.jsonl") && error.contains("byte 0"), "{error}");
    // A counter that is not a number.
    let (dir, _local) = prepared();
    fs::write(dir.path().join("uploaders.txt"), "many").unwrap();
    let again = Local::open(dir.path()).unwrap();
    assert_unknown(try_upload(&again, Body::Batch(b"1")), &["uploaders.txt", "many"]);
}

#[test]
fn a_disk_that_refuses_is_an_error_of_unknown_fate_that_names_path_and_cause() {
    let dir = dir();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Local::open(file.join("below")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(error.to_string().contains("file"), "{error}");
    let error = Local::open(&file).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");

    let path = dir.path().join("local");
    let local = Local::open(&path).unwrap();
    fs::remove_dir(path.join("incoming")).unwrap();
    assert_unknown(try_upload(&local, Body::Batch(b"1")), &["incoming", "No such file"]);
    assert_unknown(local.save_worker_state("{}"), &["worker_state.json", "No such file"]);
    fs::create_dir(path.join("incoming")).unwrap();
    fs::remove_dir(path.join("artifacts")).unwrap();
    assert_unknown(try_upload(&local, Body::Batch(b"1")), &["artifacts", "No such file"]);
    assert_clean(&path);
    fs::create_dir(path.join("worker_state.json")).unwrap();
    assert_unknown(local.worker_state(), &["worker_state.json"]);

    let path = dir.path().join("other");
    fs::create_dir_all(path.join("messages.jsonl")).unwrap();
    let error = Local::open(&path).unwrap_err();
    assert!(error.to_string().contains("messages.jsonl"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_files_as_they_were() {
    let full = |name: &str| {
        let dir = dir();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(name)).unwrap();
        let local = Local::open(dir.path()).unwrap();
        (dir, local)
    };
    let (dir, local) = full("confirmed.txt");
    let artifact = upload(&local, b"1");
    for _ in 0..2 {
        assert_unknown(local.confirm(&artifact), &["confirmed.txt", "No space"]);
    }
    assert_refused(local.send(&done("k", &[artifact.as_str()])), 400, "not confirmed");
    drop(dir);
    // The key is written first, and taken back.
    let (dir, local) = full("messages.jsonl");
    for _ in 0..2 {
        assert_unknown(local.send(&done("k", &[])), &["messages.jsonl", "No space"]);
        assert_eq!(text(dir.path(), "message_keys.jsonl"), "");
    }
    let (dir, local) = full("message_keys.jsonl");
    assert_unknown(local.send(&done("k", &[])), &["message_keys.jsonl", "No space"]);
    assert_eq!(text(dir.path(), "messages.jsonl"), "");
}

#[test]
fn the_worker_state_is_the_last_one_saved_within_its_limit() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    assert_eq!(local.worker_state().unwrap(), None);
    local.save_worker_state("{\"cursor\":1}").unwrap();
    local.save_worker_state("{\"cursor\":2}").unwrap();
    assert_eq!(text(dir.path(), "worker_state.json"), "{\"cursor\":2}");
    assert_refused(local.save_worker_state("{\"cursor\":"), 400, "not JSON");
    let big = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert_refused(local.save_worker_state(&big(WORKER_STATE_BYTES_MAX + 1)), 413, "1000001");
    assert_eq!(local.worker_state().unwrap().and_then(|kept| kept.state).as_deref(), Some("{\"cursor\":2}"));
    local.save_worker_state(&big(WORKER_STATE_BYTES_MAX)).unwrap();
    // Killed before the new one had its name.
    fs::write(dir.path().join("incoming/.tmpNew"), b"{\"cursor\":3}").unwrap();
    let local = Local::open(dir.path()).unwrap();
    assert_eq!(local.worker_state().unwrap().unwrap().state.unwrap().len(), WORKER_STATE_BYTES_MAX);
    assert_clean(dir.path());
}

#[test]
fn the_worker_state_of_a_unit_is_its_own() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    // What a file system takes for the same name, or for a path, is told apart.
    let units = ["unit", "unit/1", "unit%2F1", "../unit", "\u{e9}", "."];
    for unit in units {
        assert_eq!(local.worker_state_of(unit).unwrap(), None, "{unit}");
        local.save_worker_state_of(unit, &format!("{unit:?}")).unwrap();
    }
    let local = Local::open(dir.path()).unwrap();
    for unit in units {
        assert_eq!(local.worker_state_of(unit).unwrap(), Some(format!("{unit:?}")), "{unit}");
    }
    assert_eq!(local.worker_state().unwrap(), None);
    assert_refused(local.save_worker_state_of("unit", "{"), 400, "not JSON");
    assert_refused(local.save_worker_state_of("", "{}"), 400, "a sync unit's id");
    assert_refused(local.worker_state_of(&"\u{e9}".repeat(50)), 400, "a sync unit's id");
    let big = format!("\"{}\"", "x".repeat(WORKER_STATE_BYTES_MAX - 1));
    assert_refused(local.save_worker_state_of("unit", &big), 413, "1000001");
    assert_eq!(local.worker_state_of("unit").unwrap().as_deref(), Some("\"unit\""));
    assert_clean(dir.path());
}

#[test]
fn an_upload_has_the_id_that_was_prepared_and_each_id_one_upload() {
    let dir = dir();
    let local = Local::open(dir.path()).unwrap();
    let upload =
        |bytes: &'static [u8]| Upload { file_name: "a", content_type: "a/b", body: Body::Batch(bytes) };
    let (first, second) = (local.prepare().unwrap(), local.prepare().unwrap());
    assert_ne!(first, second);
    assert_eq!(local.artifacts().unwrap(), [], "nothing is there before it is uploaded");
    assert_refused(local.confirm(&first), 404, "never uploaded");
    local.upload_as(&second, upload(b"second")).unwrap();
    assert_refused(local.upload_as(&second, upload(b"again")), 409, "was uploaded before");
    assert_eq!(local.artifact_bytes(&second).unwrap(), b"second");
    let path = ArtifactId::new("../confirmed.txt").unwrap();
    assert_refused(local.upload_as(&path, upload(b"x")), 400, "is not an artifact id");
    // Prepared by one handle, uploaded by another: the platform was restarted.
    let another = Local::open(dir.path()).unwrap();
    let third = another.prepare().unwrap();
    assert!(third != first && third != second);
    another.upload_as(&first, upload(b"first")).unwrap();
    assert_eq!(local.artifacts().unwrap(), [first, second]);
    assert_clean(dir.path());
}
