//! `verify` with faults of the external system, from its recorded answers; and with a worker that is served as a
//! function.
#![cfg(unix)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use highwater::Phase;
use highwater_airdrop::{
    CaseVerdict, End, SourceOptions, StopAll, SyncOptions, SyncSettings, VerifyOptions, VerifyReport, Worker,
    verify,
};

use crate::naive::{BATCH_ITEMS, BATCHES, NAIVE, TRACKER, worker};
use crate::support::program;

/// The tracker of the synthetic worker.
struct Tracker {
    child: Child,
    url: String,
}

impl Tracker {
    fn start(items: u64) -> Self {
        let mut child = Command::new(program("synthetic-extractor"))
            .args(["source", "--items", &items.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tracker before another one: it answers the first request for each of some targets with 503, or not at all if `cut `
/// is before the target.
fn flaky(tracker: &str, targets: &'static [&'static str]) -> String {
    let tracker = tracker.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut left: Vec<&str> = targets.to_vec();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut first, mut line) = (String::new(), String::new());
            stream.read_line(&mut first).unwrap();
            while stream.read_line(&mut line).unwrap_or(0) > 2 {
                line.clear();
            }
            let target = first.split(' ').nth(1).unwrap_or_default();
            let is_refused = |refused: &&str| target.contains(refused.trim_start_matches("cut "));
            let refused = left.iter().position(is_refused);
            let (status, body) = if let Some(at) = refused {
                if left.swap_remove(at).starts_with("cut ") {
                    continue;
                }
                ("503 Service Unavailable", "{}".to_owned())
            } else {
                let answer = ureq::get(format!("{tracker}{target}")).call().unwrap();
                ("200 OK", answer.into_body().read_to_string().unwrap())
            };
            let head = format!("Content-Length: {}\r\nConnection: close", body.len());
            let _ = write!(stream.get_mut(), "HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}");
        }
    });
    url
}

fn options(sync: SyncOptions, url: &str, only: &[&str]) -> VerifyOptions {
    let mut options = VerifyOptions::new(sync);
    options.slow = Duration::from_millis(50);
    options.only = only.iter().map(|id| (*id).to_owned()).collect();
    options.source = Some(SourceOptions::new(url));
    options
}

fn run(dir: &Path, options: &VerifyOptions, worker: &Worker) -> highwater_airdrop::Result<VerifyReport> {
    verify(dir, options, worker, &StopAll::default(), &|_| {})
}

fn naive_sync() -> SyncOptions {
    let settings = SyncSettings::new("tickets").newer_names(true).phases([Phase::Metadata, Phase::Data]);
    let mut sync = SyncOptions::new(settings);
    sync.env = vec![(NAIVE.to_owned(), "1".to_owned())];
    sync
}

/// The report on a worker that takes a refusal for an empty page.
fn naive(dir: &Path, url: &str, only: &[&str]) -> highwater_airdrop::Result<VerifyReport> {
    let mut sync = naive_sync();
    sync.env.push((TRACKER.to_owned(), "{source}".to_owned()));
    run(dir, &options(sync, url, only), &worker())
}

#[test]
fn a_page_that_is_lost_when_the_source_refuses_once_is_found_offline_with_its_number_of_records() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(BATCHES * BATCH_ITEMS);
    let url = tracker.url.clone();
    let expected = [
        ("first:source-429:2", BATCH_ITEMS),
        ("first:source-429-after-date:1", BATCH_ITEMS),
        ("first:source-500:3", BATCH_ITEMS),
        ("first:source-cut:1", BATCH_ITEMS),
        ("first:source-empty-page:2", BATCH_ITEMS),
        ("first:source-slow:2", 0),
    ];
    let ids = expected.map(|(id, _)| id);
    // It is there while it is recorded, and not after.
    naive(dir.path(), &url, &ids[..1]).unwrap();
    drop(tracker);
    let report = naive(dir.path(), &url, &ids).unwrap();
    for (case, (id, lost)) in report.cases.iter().zip(expected) {
        assert_eq!((case.id.as_str(), case.lost.len() as u64), (id, lost), "{case:?}");
        assert!(case.came_true && case.end == End::Done && case.unrecorded.is_empty(), "{case:?}");
        assert_eq!(case.said_done(), lost > 0, "{id}");
        assert_eq!(case.timeline.iter().any(|call| call.fault.is_some()), lost > 0, "{id}");
    }
    let text = report.to_text(&|case| case.to_owned());
    assert!(text.contains("source GET /issues 429 "), "{text}");
    // The recording tells nobody else, and not the key.
    let recording = dir.path().join("source.jsonl");
    assert_eq!(std::fs::metadata(&recording).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&recording).unwrap().contains("the-key-of-the-tracker"));
}

#[test]
fn another_source_is_recorded_anew_and_never_answered_from_the_recording_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let only = ["first:source-429:2"];
    let first = Tracker::start(BATCHES * BATCH_ITEMS);
    let report = naive(dir.path(), &first.url, &only).unwrap();
    assert_eq!(report.cases[0].lost.len() as u64, BATCH_ITEMS, "{report:?}");
    let recording = dir.path().join("source.jsonl");
    let before = std::fs::read(&recording).unwrap();
    // Another one that cannot be recorded leaves the recording as it is.
    let gone = naive(dir.path(), "http://127.0.0.1:9", &only).unwrap_err().to_string();
    assert!(gone.contains("gave no answer"), "{gone}");
    assert_eq!(std::fs::read(&recording).unwrap(), before);
    // Another one with half a page more than one page: only it could lose so few.
    let second = Tracker::start(BATCH_ITEMS + BATCH_ITEMS / 2);
    let report = naive(dir.path(), &second.url, &only).unwrap();
    assert_eq!(report.cases[0].lost.len() as u64, BATCH_ITEMS / 2, "{report:?}");
    let text = std::fs::read_to_string(&recording).unwrap();
    assert!(text.contains(&second.url) && !text.contains(&first.url), "{text}");
    // A file that was named is refused, and left as it is.
    let named = dir.path().join("named.jsonl");
    std::fs::write(&named, &before).unwrap();
    let mut sync = naive_sync();
    sync.env.push((TRACKER.to_owned(), "{source}".to_owned()));
    let mut options = options(sync, &second.url, &only);
    options.source.as_mut().unwrap().recording = Some(named.clone());
    let refused = run(dir.path(), &options, &worker()).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("it is a recording of {}", first.url)) && refused.contains("--recording"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&named).unwrap(), before);
}

#[test]
fn a_worker_that_ignores_refusals_is_found_by_its_first_cases() {
    let tracker = Tracker::start(BATCHES * BATCH_ITEMS);
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut sync = naive_sync();
        sync.env.push((TRACKER.to_owned(), "{source}".to_owned()));
        let mut options = options(sync, &tracker.url, &[]);
        (options.cases, options.seed) = (4, seed);
        let report = run(dir.path(), &options, &worker()).unwrap();
        assert!(report.cases.iter().all(|case| case.id.contains(":source-")), "{report:?}");
        assert!(report.cases.iter().any(|case| !case.lost.is_empty()), "{report:?}");
    }
}

#[test]
fn our_worker_loses_nothing_whatever_its_source_does() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(1_000);
    let synthetic = program("synthetic-extractor");
    let words = [
        synthetic.to_str().unwrap(),
        "invoke",
        "--items=1000",
        "--page-size=300",
        "--batch-items=300",
        "--attachments=2",
        "--retry-after=1s",
        "--source={source}",
        "--event={event}",
    ];
    let words = Worker::Command(words.map(str::to_owned).into());
    let only = [
        "first:source-429:2",
        "first:source-429-after-1:3",
        "first:source-429-after-date:1",
        "first:source-500:2",
        "first:source-401:4",
        "first:source-cut:2",
        "first:source-cut:5",
        "first:source-empty-page:2",
        "first:source-slow:1",
        "next:source-500:2",
    ];
    let options = options(SyncOptions::new(SyncSettings::new("synthetic")), &tracker.url, &only);
    let report = run(dir.path(), &options, &words).unwrap();
    assert!(report.set_aside.is_empty(), "{:?}", report.set_aside);
    assert_eq!(
        (report.cases.len(), report.verdict()),
        (only.len(), CaseVerdict::Clean),
        "{:?}",
        report.cases
    );
    assert!(report.cases.iter().all(|case| case.came_true), "{:?}", report.cases);
    // The same faults make it stop: they did come true.
    assert!(report.cases.iter().any(|case| case.verdict() == CaseVerdict::Stopped));
}

#[test]
fn a_source_that_is_not_there_or_not_asked_is_told_and_nothing_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = naive(dir.path(), &format!("http://{free}"), &[]).unwrap_err().to_string();
    assert!(gone.contains("gave no answer") && gone.contains("nothing is recorded yet"), "{gone}");
    let deaf = run(dir.path(), &options(naive_sync(), "http://127.0.0.1:9", &[]), &worker());
    let deaf = deaf.unwrap_err().to_string();
    assert!(deaf.contains("never asks the source") && deaf.contains("{source}"), "{deaf}");
    assert!(!dir.path().join("source.jsonl").exists());
}

#[test]
fn what_was_never_recorded_is_told_and_no_finding() {
    // A source that leads the worker elsewhere each time it is asked: to what the recording cannot have.
    let dir = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(BATCHES * BATCH_ITEMS);
    naive(dir.path(), &tracker.url, &["first:source-slow:1"]).unwrap();
    let path = dir.path().join("source.jsonl");
    let kept: Vec<String> = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .filter(|line| !line.contains("first=200"))
        .map(str::to_owned)
        .collect();
    std::fs::write(&path, kept.join("\n")).unwrap();
    let missing = naive(dir.path(), &tracker.url, &[]).unwrap_err().to_string();
    assert!(
        missing.contains("GET /issues?first=200&count=100, which was never recorded")
            && missing.contains("--ignore-param"),
        "{missing}"
    );
}

#[test]
fn a_function_is_killed_by_the_command_that_says_how() {
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let pid = dir.path().join("pid");
    let this = std::env::current_exe().unwrap();
    let start = format!(
        "{NAIVE}=1 '{}' --exact naive::naive_function --nocapture {port} </dev/null >/dev/null 2>&1 & echo $! >'{}'",
        this.display(),
        pid.display()
    );
    let kill = format!("kill -9 $(cat '{}'); {start}", pid.display());
    assert!(Command::new("sh").args(["-c", &start]).status().unwrap().success());
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut sync = naive_sync();
    sync.kill = Some(kill);
    let mut options = VerifyOptions::new(sync);
    options.only = ["first:message-kill-before:2", "first:message-kill-after:2"].map(str::to_owned).into();
    let url = format!("http://127.0.0.1:{port}/");
    let report = run(&dir.path().join("verify"), &options, &Worker::Function(url));
    let last: String = std::fs::read_to_string(&pid).unwrap();
    assert!(Command::new("kill").args(["-9", last.trim()]).status().unwrap().success());
    let report = report.unwrap();
    assert_eq!(report.cases[0].lost.len() as u64, BATCHES * BATCH_ITEMS, "{report:?}");
    assert_eq!(report.cases[1].verdict(), CaseVerdict::Clean, "{report:?}");
    assert!(report.cases.iter().all(|case| case.came_true), "{report:?}");
}

#[test]
fn a_failure_of_the_source_while_it_is_recorded_is_told_and_is_a_warning_if_it_was_swallowed() {
    let tracker = Tracker::start(BATCHES * BATCH_ITEMS);
    let page = |report: &VerifyReport| report.to_html(&str::to_owned);
    // It takes the failure for an empty page, and never asks again: its clean sync is the smaller one.
    let dir = tempfile::tempdir().unwrap();
    let swallowed = flaky(&tracker.url, &["/issues?first=100&"]);
    let report = naive(dir.path(), &swallowed, &["first:source-slow:1"]).unwrap();
    let recording = report.recording.as_ref().unwrap();
    assert!(recording.is_suspicious(), "{recording}");
    assert_eq!((&recording.failures, &recording.not_repeated), (&[(503, 1)].into(), &[(503, 1)].into()));
    assert_eq!(recording.requests, ["GET /issues?first=100&count=100"]);
    assert_eq!(report.clean[0].records["issues"], (BATCHES - 1) * BATCH_ITEMS);
    // It does not decide: no case has a finding.
    assert_eq!(report.verdict(), CaseVerdict::Clean);
    let text = report.to_text(&str::to_owned);
    let line = text.lines().find(|line| line.starts_with("warning: recording of the source: ")).unwrap();
    for part in
        ["failures: 1 (1 with 503); not repeated until answered: 1 (1 with 503)", "first=100&count=100"]
    {
        assert!(line.contains(part), "{line}");
    }
    assert!(page(&report).contains("Warning: recording"), "{}", page(&report));
    assert_eq!(report.to_json()["recording"]["not_repeated"]["503"], 1);
    // It is told of the file, too, when nothing is recorded any more.
    let again = naive(dir.path(), &swallowed, &["first:source-slow:1"]).unwrap();
    assert_eq!(again.recording, report.recording);

    // Of what was not answered at all, nothing is recorded that could be replayed.
    let dir = tempfile::tempdir().unwrap();
    let swallowed = flaky(&tracker.url, &["cut /issues?first=100&"]);
    let error = naive(dir.path(), &swallowed, &["first:source-slow:1"]).unwrap_err().to_string();
    assert!(error.contains("gave no answer: GET /issues"), "{error}");

    // It repeats the request, after which nothing is missing.
    let dir = tempfile::tempdir().unwrap();
    let repeated = flaky(&tracker.url, &["/issues?first=100&", "cut /issues?first=200&"]);
    let synthetic = program("synthetic-extractor");
    let words = ["invoke", "--items=300", "--page-size=100", "--source={source}", "--event={event}"];
    let words: Vec<String> =
        [synthetic.to_str().unwrap()].into_iter().chain(words).map(str::to_owned).collect();
    let sync = SyncOptions::new(SyncSettings::new("synthetic"));
    let options = options(sync, &repeated, &["first:source-slow:1"]);
    let report = run(dir.path(), &options, &Worker::Command(words.clone())).unwrap();
    let recording = report.recording.as_ref().unwrap();
    assert!(!recording.is_suspicious(), "{recording}");
    assert_eq!((&recording.failures, recording.not_repeated.len()), (&[(503, 1)].into(), 0));
    assert_eq!(recording.unanswered, 1);
    assert_eq!(report.clean[0].records["issues"], BATCHES * BATCH_ITEMS);
    let text = report.to_text(&str::to_owned);
    assert!(text.contains("\nrecording of the source: ") && !text.contains("warning: "), "{text}");
    assert!(text.contains("failures: 2 (1 with 503, 1 without an answer); the worker repeated"), "{text}");
    assert!(page(&report).contains("Recording of the source"), "{}", page(&report));
    let again = run(dir.path(), &options, &Worker::Command(words)).unwrap();
    assert_eq!(again.recording, report.recording);

    // Without a recording there is nothing to tell.
    let dir = tempfile::tempdir().unwrap();
    let mut options = VerifyOptions::new(naive_sync());
    options.only = vec!["first:message-slow:1".to_owned()];
    let report = run(dir.path(), &options, &worker()).unwrap();
    assert!(report.recording.is_none() && report.to_json()["recording"].is_null(), "{report:?}");
}
