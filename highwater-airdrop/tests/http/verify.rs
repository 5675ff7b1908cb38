//! `verify` finds what a worker loses, with the right number of records, and finds nothing if the worker loses
//! nothing.
#![cfg(unix)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use highwater::Phase;
use highwater_airdrop::{
    CaseResult, CaseVerdict, End, StopAll, SyncOptions, SyncSettings, VerifyOptions, VerifyReport, Worker,
    verify,
};
use serde_json::Value;

use crate::AIRDROP;
use crate::naive::{BATCH_ITEMS, BATCHES, NAIVE, STATELESS, STEP, TRACKER, worker};
use crate::support::{program, said};

/// Verifies the naive worker; its invocations end after `step` batches.
fn naive(dir: &Path, step: u64, only: &[&str]) -> VerifyReport {
    naive_with((STEP, &step.to_string()), dir, only)
}

/// Verifies the naive worker, with a variable.
fn naive_with((name, value): (&str, &str), dir: &Path, only: &[&str]) -> VerifyReport {
    let settings = SyncSettings::new("tickets").newer_names(true).phases([Phase::Metadata, Phase::Data]);
    let mut sync = SyncOptions::new(settings);
    sync.env = vec![(NAIVE.to_owned(), "1".to_owned()), (name.to_owned(), value.to_owned())];
    let mut options = VerifyOptions::new(sync);
    options.slow = std::time::Duration::from_millis(50);
    options.only = only.iter().map(|id| (*id).to_owned()).collect();
    verify(dir, &options, &worker(), &StopAll::default(), &|_| {}).unwrap()
}

fn case<'r>(report: &'r VerifyReport, id: &str) -> &'r CaseResult {
    report.cases.iter().find(|case| case.id == id).unwrap_or_else(|| panic!("there is no case {id}"))
}

#[test]
fn a_worker_whose_state_is_nowhere_to_be_seen_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let report = naive_with((STATELESS, "1"), dir.path(), &["first:message-slow:2"]);
    assert!(matches!(&report.notes[..], [note] if note.contains("do not contain {dir}")), "{report:?}");
    assert_eq!(report.verdict(), CaseVerdict::Clean);
}

#[test]
fn each_loss_of_a_naive_worker_is_found_with_its_number_of_records() {
    let dir = tempfile::tempdir().unwrap();
    let all = BATCHES * BATCH_ITEMS;
    // The first upload, confirm, state and message are of the metadata.
    let expected = [
        ("first:upload-403:3", CaseVerdict::Lost, BATCH_ITEMS, 0),
        ("first:upload-503:4", CaseVerdict::Lost, BATCH_ITEMS, 0),
        ("first:prepare-429:3", CaseVerdict::Lost, BATCH_ITEMS, 0),
        ("first:confirm-400:2", CaseVerdict::Lost, BATCH_ITEMS, 0),
        ("first:message-413:2", CaseVerdict::Lost, all, 0),
        // It stops before its first batch. What follows is a first sync, too, which finds no newer records.
        ("first:message-413:1", CaseVerdict::Stopped, 0, 0),
        ("first:message-kill-before:2", CaseVerdict::Lost, all, 0),
        ("first:state-kill-after:2", CaseVerdict::Lost, all, 0),
        ("first:message-lost:2", CaseVerdict::Repeated, 0, all),
        // Killed before its state was saved, it extracts everything again.
        ("first:confirm-kill-before:3", CaseVerdict::Clean, 0, 0),
        ("first:message-kill-after:2", CaseVerdict::Clean, 0, 0),
        ("first:message-slow:2", CaseVerdict::Clean, 0, 0),
        // What follows a next sync that stopped delivers its records.
        ("next:message-403:2", CaseVerdict::Stopped, 0, 0),
    ];
    let report = naive(dir.path(), BATCHES, &expected.map(|(id, ..)| id));
    assert!(report.set_aside.is_empty() && report.notes.is_empty(), "{report:?}");
    assert_eq!(report.verdict(), CaseVerdict::Lost);
    for (id, verdict, lost, repeated) in expected {
        let case = case(&report, id);
        assert_eq!(case.verdict(), verdict, "{id}: {case:?}");
        assert_eq!((case.lost.len() as u64, case.repeated.len() as u64), (lost, repeated), "{id}");
        assert!(case.came_true, "{id}");
        assert!(case.dir.as_ref().is_some_and(|dir| dir.is_dir()), "{id}: a case that is asked for is kept");
        assert_eq!(case.timeline.iter().any(|call| call.fault.is_some()), verdict.is_finding(), "{id}");
    }
    let lost = case(&report, "first:upload-403:3");
    assert!(lost.said_done() && lost.lost[0].item_type == "issues" && lost.lost[0].id == "issue-100");
    assert_eq!(case(&report, "first:message-413:2").wasted_uploads, BATCHES, "uploads that nothing names");
    // The text tells how to run it again, and so does the JSON.
    let text = report.to_text(&|case| format!("again {case}"));
    assert!(text.contains("again first:upload-403:3") && text.contains("verdict: lost"), "{text}");
    let row = text.lines().find(|line| line.starts_with("upload ") && line.contains(" 403 ")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>()[..4], ["upload", "403", "1", "100"], "{row}");
    let json = report.to_json();
    assert_eq!((&json["verdict"], &json["deterministic"]), (&"lost".into(), &true.into()));
    assert_eq!(json["cases_run"], expected.len());
    let html = report.to_html(&|case| format!("again <{case}>"));
    // For who looks at it in a browser.
    if let Some(path) = std::env::var_os("HIGHWATER_TEST_HTML") {
        std::fs::write(path, &html).unwrap();
    }
    assert!(html.contains("issues issue-100") && html.contains("again &lt;first:upload-403:3&gt;"), "{html}");
    assert_eq!(html.matches("class=\"fault\"").count(), 8, "the fault of each finding is marked");
    assert!(
        !html.contains("http://") && !html.contains("https://") && !html.contains("src="),
        "it needs no other file"
    );
}

#[test]
fn a_kill_between_state_and_message_loses_before_progress_too_and_one_case_runs_alone() {
    // One batch in each invocation: three of data, the first two of which end with PROGRESS.
    for (id, lost) in
        [("first:message-kill-before:2", BATCH_ITEMS), ("first:message-kill-before:4", BATCH_ITEMS)]
    {
        let dir = tempfile::tempdir().unwrap();
        let report = naive(dir.path(), 1, &[id]);
        assert_eq!(report.cases.len(), 1);
        assert_eq!(report.cases[0].lost.len() as u64, lost, "{report:?}");
        assert_eq!(report.cases[0].end, End::Done);
    }
}

#[test]
fn a_worker_that_delivers_nothing_even_where_nothing_goes_wrong_is_not_called_clean() {
    let dir = tempfile::tempdir().unwrap();
    let settings = SyncSettings::new("tickets").newer_names(true).phases([Phase::Metadata, Phase::Data]);
    let mut sync = SyncOptions::new(settings);
    // It takes a tracker that is not there for one without issues.
    sync.env =
        vec![(NAIVE.to_owned(), "1".to_owned()), (TRACKER.to_owned(), "http://127.0.0.1:9".to_owned())];
    let options = VerifyOptions::new(sync);
    let error = verify(dir.path(), &options, &worker(), &StopAll::default(), &|_| {}).unwrap_err();
    assert!(error.to_string().contains("the clean first sync delivers no record"), "{error}");
}

fn program_verify(dir: &Path, options: &[&str], worker: &[&str]) -> Output {
    Command::new(AIRDROP)
        .args(["verify", "--json", "--slow", "50ms", "--dir"])
        .arg(dir)
        .args(options)
        .arg("--")
        .args(worker)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_report_is_printed_whatever_the_words_are_and_holds_no_key() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    let html = dir.path().join(std::ffi::OsStr::from_bytes(b"report-\xff.html"));
    let Worker::Command(words) = worker() else { panic!("it is a command") };
    let output = Command::new(AIRDROP)
        .args(["verify", "--names", "newer", "--phases", "metadata,data", "--case", "first:upload-403:3"])
        .args(["--env", &format!("{NAIVE}=1"), "--env", "TRELLO_TOKEN=very-secret-1"])
        .args(["--event-context", r#"{"extra":"very-secret-2"}"#, "--dir"])
        .arg(dir.path().join("verify"))
        .arg("--html")
        .arg(&html)
        .arg("--")
        .args(words)
        .output()
        .unwrap();
    let page = std::fs::read_to_string(&html).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    for report in [&*text, &page] {
        assert!(report.contains("TRELLO_TOKEN=...") && report.contains("--event-context @FILE"), "{report}");
        assert!(!report.contains("very-secret"), "{report}");
    }
}

#[test]
fn every_word_of_a_report_is_explained_by_the_help() {
    let output = Command::new(AIRDROP).args(["verify", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    // A line of its own: the word, and behind two spaces what it means.
    let explains = |word: &str| {
        let mut parts = help.lines().filter_map(|line| line.trim_start().split_once("  "));
        parts.any(|(first, rest)| first == word && !rest.trim().is_empty())
    };
    assert!(!explains("manager") && !explains(""), "{help}");
    let dir = tempfile::tempdir().unwrap();
    let ids = ["first:upload-403:3", "first:message-413:1"];
    let text = naive(dir.path(), BATCHES, &ids).to_text(&str::to_owned);
    // The columns, from the line above the table; none of the words before the last has a space.
    let head = text.lines().find(|line| line.starts_with("place ")).unwrap();
    let head = head.strip_suffix(" said DONE").unwrap();
    let mut words: Vec<&str> = head.split_whitespace().collect();
    assert_eq!(words.len(), 9, "{head}");
    words.push("said DONE");
    let own = ["external_sync_units", "external_domain_metadata", "attachments", "ssor_attachment"];
    words.extend(own);
    words.extend(["clean sync", "calls", "invocations", "pairs", "seed", "after a death", "note", "ignored"]);
    words.extend(["recording", "warning", "the budget was over"]);
    words.extend(CaseVerdict::ALL.iter().map(|verdict| verdict.name()));
    assert!(words.contains(&"not run") && words.contains(&"lost"), "{words:?}");
    for word in words {
        assert!(explains(word), "verify --help does not explain {word:?}");
    }
    // Each fault that there is, as the table names it.
    for fault in ["500", "503", "429-after-date", "empty-page", "kill-later", "half-time", "fresh-disk"] {
        assert!(help.contains(fault), "{fault}");
    }
    // What is counted as stopped is named, with the reason.
    let stopped = text.lines().find(|line| line.starts_with("stopped, not a finding: ")).unwrap();
    assert!(stopped.contains(": first:message-413:1: "), "{stopped}");
    assert!(text.contains("cases: 1 lost, 1 stopped"), "{text}");
    // The time that --budget does not count.
    let budget = help.split("--budget <TIME>").nth(1).unwrap().split("--seed").next().unwrap();
    let budget = budget.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(budget.contains("the four clean syncs") && budget.contains("the cases in progress"), "{budget}");
}

#[test]
fn a_worker_that_loses_nothing_is_clean_with_a_disk_and_without() {
    let synthetic = program("synthetic-extractor");
    let synthetic = synthetic.to_str().unwrap();
    let source =
        ["invoke", "--items", "300", "--batch-items", "100", "--attachments", "3", "--event", "{event}"];
    for disk in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut words = vec![synthetic];
        words.extend(source);
        let mut options = vec!["--cases", "12"];
        if disk {
            words.extend(["--store", "{dir}"]);
            options.push("--keeps-disk");
        }
        let output = program_verify(dir.path(), &options, &words);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["cases_run"], 12);
        assert_eq!(report["deterministic"], true, "addresses of the platform count for nothing: {report}");
        assert_eq!(
            std::fs::read_dir(dir.path().join("case")).unwrap().count(),
            0,
            "what is clean is not kept"
        );
        // What is not of the worker's own types is in the list above.
        let known =
            ["attachments", "external_domain_metadata", "external_sync_units", "issues", "ssor_attachment"];
        let counted: Vec<&String> = report["clean"][0]["records"].as_object().unwrap().keys().collect();
        assert_eq!(counted, known);
        let reached = report["cases"].as_array().unwrap().iter().filter(|case| case["came_true"] == true);
        assert!(reached.count() >= 10, "{report}");
    }
}

#[test]
fn what_cannot_be_verified_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let synthetic = program("synthetic-extractor");
    let synthetic = synthetic.to_str().unwrap();
    for (options, worker, reason) in [
        (&[][..], &["/nowhere/worker"][..], "cannot start the worker"),
        (&["--restarts", "0"], &["true"], "does not end with DONE"),
        (
            &["--case", "first:dance:1"],
            &[synthetic, "invoke", "--items", "10", "--event", "{event}"],
            "this sync has no such case; it has first:",
        ),
    ] {
        let output = program_verify(&dir.path().join("verify"), options, worker);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(reason), "{reason}: {}", said(&output));
    }
    // A worker is no option.
    let none = Command::new(AIRDROP).args(["verify", "--dir", "x"]).output().unwrap();
    assert_eq!(none.status.code(), Some(2), "{}", said(&none));
}
