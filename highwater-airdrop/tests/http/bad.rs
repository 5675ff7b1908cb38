//! Whatever the worker or the directory is like, `verify` ends with a sentence that tells what to do, leaves no
//! process running, and touches only its own files.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::AIRDROP;
use crate::support::said;

fn verify(dir: &Path, options: &[&str], script: &str) -> Command {
    let mut command = Command::new(AIRDROP);
    command.args(["verify", "--dir"]).arg(dir).args(options).args(["--", "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs; one that is dead and not yet reaped does not.
fn runs(process: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

/// Two processes that are deaf to SIGTERM and never end; their ids are in the folder.
const DEAF: &str = r#"trap '' TERM INT HUP; sleep 600 & echo $! >"$HIGHWATER_DIR/child"; echo $$ >"$HIGHWATER_DIR/worker"; wait; sleep 600"#;

fn deaf_processes(dir: &Path) -> Vec<String> {
    let own = dir.join("clean/1/worker");
    let read = |name: &str| fs::read_to_string(own.join(name)).unwrap_or_default().trim().to_owned();
    vec![read("child"), read("worker")]
}

fn started(dir: &Path, options: &[&str]) -> Child {
    let child = verify(dir, options, DEAF).env("TMPDIR", dir).spawn().unwrap();
    until("the worker starts", || deaf_processes(dir).iter().all(|process| runs(process)));
    child
}

#[test]
fn a_worker_that_cannot_be_verified_is_told_with_what_it_did() {
    for (script, options, reason) in [
        (
            "echo nonsense",
            &[][..],
            "was given 2 times and never answered: the worker succeeded, but sent no message",
        ),
        ("echo '{\"event_type\":\"EXTRACTION_DATA_DONE\"}'; exit 7", &[], "exit status: 7"),
        ("head -c 50000000 /dev/zero", &[], "never answered"),
        ("exec sleep 600", &["--invocation-budget", "100ms"], "killed after its 100ms"),
        ("kill -9 $$", &[], "signal: 9"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let output = verify(dir.path(), &[&["--restarts", "1"], options].concat(), script).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(reason) && text.contains("clean first sync"), "{script}: {text}");
        let log = dir.path().canonicalize().unwrap().join("clean/1/worker.log");
        assert!(text.contains(log.to_str().unwrap()), "it says where to look: {text}");
        assert!(fs::metadata(&log).unwrap().len() < 40 * 1024 * 1024, "not all that it prints is kept");
    }
}

#[test]
fn no_process_and_no_event_is_left_behind_by_a_budget_or_by_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        verify(dir.path(), &["--restarts", "0", "--invocation-budget", "2s"], DEAF).output().unwrap();
    assert!(said(&output).contains("killed after its 2s"), "{}", said(&output));
    let processes = deaf_processes(dir.path());
    until("they end", || !processes.iter().any(|process| runs(process)));
    for signal in ["-TERM", "-INT", "-HUP"] {
        let dir = tempfile::tempdir().unwrap();
        let child = started(dir.path(), &[]);
        let processes = deaf_processes(dir.path());
        // They hold the keys to the external system and the platform.
        let events = || {
            let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
            entries.filter(|name| name.to_string_lossy().starts_with("event-")).count()
        };
        assert_eq!(events(), 1);
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.code().is_some_and(|code| code > 128), "{signal}: {}", said(&output));
        assert!(said(&output).contains("begin again"), "{}", said(&output));
        assert_eq!(events(), 0, "{signal}");
        until("they end", || !processes.iter().any(|process| runs(process)));
    }
}

#[test]
fn a_directory_that_is_in_use_or_not_its_own_is_left_as_it_is() {
    let refused = |output: Output, reason: &str| {
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(reason), "{}", said(&output));
    };
    let dir = tempfile::tempdir().unwrap();
    let mut first = started(dir.path(), &[]);
    refused(verify(dir.path(), &[], "true").output().unwrap(), "use another directory");
    assert!(deaf_processes(dir.path()).iter().all(|process| runs(process)), "the first one goes on");
    Command::new("kill").arg(first.id().to_string()).status().unwrap();
    first.wait().unwrap();
    // Its own leftovers are in nobody's way.
    refused(verify(dir.path(), &["--restarts", "0"], "true").output().unwrap(), "clean first sync");

    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("case")).unwrap();
    fs::write(dir.path().join("case/thesis"), "years of work").unwrap();
    refused(
        verify(dir.path(), &[], "true").output().unwrap(),
        "was not made by verify: use another directory",
    );
    assert_eq!(fs::read_to_string(dir.path().join("case/thesis")).unwrap(), "years of work");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is added");
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let html = dir.path().join("nowhere/report.html");
    let output = verify(dir.path(), &["--html", html.to_str().unwrap()], "true").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("cannot write"), "{}", said(&output));
    assert!(!dir.path().join("clean").exists(), "no sync was made");
    // Where there is no report in the end, there is no empty one.
    let html = dir.path().join("report.html");
    let output = verify(dir.path(), &["--restarts", "0", "--html", html.to_str().unwrap()], "true").output();
    assert_eq!(output.unwrap().status.code(), Some(1));
    assert!(!html.exists());
}

#[test]
fn a_worker_of_which_the_output_cannot_be_kept_is_not_left_running() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("process");
    // The folder of its second sync has another place for what it prints: none.
    let script = format!(
        r#"echo $$ >>'{note}'; mkdir -p "$HIGHWATER_DIR/.."; rm -rf "$HIGHWATER_DIR/../worker.log"; mkdir "$HIGHWATER_DIR/../worker.log"; [ $(wc -l <'{note}') = 1 ] || sleep 600"#,
        note = note.display()
    );
    let output = verify(&dir.path().join("verify"), &["--restarts", "1"], &script).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("worker.log"), "{}", said(&output));
    for process in fs::read_to_string(&note).unwrap().lines() {
        assert!(!runs(process), "{process} is left");
    }
}
