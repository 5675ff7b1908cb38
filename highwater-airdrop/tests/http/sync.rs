//! `highwater-airdrop sync` plays the platform for a worker in any language: what it gives the worker, when it gives
//! the same event again, when it gives up, and what it reports in the end.
//!
//! The worker here is this binary, started again. It speaks HTTP without the library, so the driver is tested with an
//! independent worker.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::AIRDROP;
use crate::served::{Served, Verdict};
use crate::support::{program, said};
use highwater::SystemClock;
use highwater_airdrop::{Local, SyncSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the worker does: one word for each of its lives; the last word is for all further lives.
const PLAN: &str = "HIGHWATER_TEST_PLAN";
/// Where it notes the events that it was given.
const NOTES: &str = "HIGHWATER_TEST_NOTES";

/// The answer to an event, spelled as it was.
fn answer_to(event: &Value, verdict: &str) -> Value {
    let event_type = event["payload"]["event_type"].as_str().unwrap();
    let newer = !event_type.starts_with("EXTRACTION_");
    let phase = ["EXTERNAL_SYNC_UNITS", "METADATA", "DATA", "ATTACHMENTS"]
        .into_iter()
        .find(|phase| event_type.contains(phase))
        .unwrap();
    let event_type = match (newer, phase) {
        (false, _) => format!("EXTRACTION_{phase}_{verdict}"),
        (true, "EXTERNAL_SYNC_UNITS" | "ATTACHMENTS") => {
            format!("{}_EXTRACTION_{verdict}", phase.strip_suffix('S').unwrap())
        }
        (true, _) => format!("{phase}_EXTRACTION_{verdict}"),
    };
    let mut data = json!({});
    if verdict == "DELAY" {
        data = json!({ "delay": 1 });
    } else if verdict == "ERROR" {
        data = json!({ "error": { "message": "the source is on fire" } });
    }
    let context = &event["payload"]["event_context"];
    json!({ "event_type": event_type, "event_context": context, "event_data": data })
}

/// Sends a message, as any program would.
fn send(event: &Value, message: &Value) {
    let answer = answer_to_message(event, message);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// Sends messages that do not echo the event's context whole: each is refused, and the field named.
fn send_crooked(event: &Value) {
    let refused = |field: &str, how: &str, crooked: &dyn Fn(&mut Value)| {
        let mut message = answer_to(event, "DONE");
        crooked(&mut message["event_context"]);
        let answer = answer_to_message(event, &message);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{field}: {answer}");
        assert!(answer.contains(&format!("event_context.{field} {how}")), "{field}: {answer}");
    };
    let context = event["payload"]["event_context"].as_object().unwrap();
    assert!(context.len() > 10, "{event}");
    for field in context.keys() {
        refused(field, "is missing", &|context| drop(context.as_object_mut().unwrap().shift_remove(field)));
        if field != "request_id" {
            refused(field, "is {", &|context| context[field] = json!({ "another": 1 }));
        }
    }
}

fn answer_to_message(event: &Value, message: &Value) -> String {
    let callback = event["payload"]["event_context"]["callback_url"].as_str().unwrap();
    let (host, path) = callback.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let token = event["context"]["secrets"]["service_account_token"].as_str().unwrap();
    let body = message.to_string();
    let mut connection = TcpStream::connect(host).unwrap();
    write!(
        connection,
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

/// Not a test of its own: one invocation of a worker, its event in the file that the last argument names.
#[test]
fn worker() {
    let (Ok(plan), Ok(notes)) = (std::env::var(PLAN), std::env::var(NOTES)) else { return };
    let path = std::env::args().next_back().unwrap();
    let event: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let life = fs::read_to_string(&notes).unwrap_or_default().lines().count();
    let mut file = fs::File::options().create(true).append(true).open(&notes).unwrap();
    file.write_all(format!("{event}\n").as_bytes()).unwrap();
    let plan: Vec<&str> = plan.split(' ').collect();
    match plan[life.min(plan.len() - 1)] {
        "die" => std::process::abort(),
        "babble" => {
            let noise = vec![b'x'; 64 * 1024];
            for _ in 0..512 {
                std::io::stdout().write_all(&noise).unwrap();
            }
            send(&event, &answer_to(&event, "DONE"));
        }
        "orphan" => {
            #[allow(clippy::zombie_processes, reason = "it is left behind on purpose")]
            let child = Command::new("sleep").arg("600").spawn().unwrap();
            fs::write(format!("{notes}.orphan"), child.id().to_string()).unwrap();
            send(&event, &answer_to(&event, "DONE"));
        }
        "twice" => {
            send(&event, &answer_to(&event, "DONE"));
            let mut other = answer_to(&event, "DONE");
            other["event_data"] = json!({ "artifacts": [] });
            send(&event, &other);
        }
        "unknown" => {
            let mut message = answer_to(&event, "DONE");
            message["event_type"] = json!("UNKNOWN_EVENT_TYPE");
            send(&event, &message);
        }
        "fail" => panic!("on purpose"),
        "sleep" => std::thread::sleep(Duration::from_secs(600)),
        "say-and-die" => {
            send(&event, &answer_to(&event, "DONE"));
            std::process::abort();
        }
        "crooked" => {
            send_crooked(&event);
            let mut message = answer_to(&event, "DONE");
            message["event_context"]["added"] = json!("by the worker");
            send(&event, &message);
        }
        verdict => send(&event, &answer_to(&event, verdict)),
    }
}

struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn platform(&self) -> PathBuf {
        self.dir.path().join("platform")
    }

    /// A sync of the worker above, by a plan.
    fn sync(&self, plan: &str, options: &[&str]) -> Output {
        self.command(plan, options).output().unwrap()
    }

    fn command(&self, plan: &str, options: &[&str]) -> Command {
        let mut command = Command::new(AIRDROP);
        command
            .args(["sync", "--json", "--dir"])
            .arg(self.platform())
            .args(options)
            .arg("--")
            .arg(std::env::current_exe().unwrap())
            // What follows the two dashes is for the worker alone; the test harness takes it for one more filter.
            .args(["--exact", "sync::worker", "--nocapture", "{event}"])
            .env(PLAN, plan)
            .env(NOTES, self.dir.path().join("notes"))
            .stdin(Stdio::null());
        command
    }

    fn report(&self, plan: &str, options: &[&str], status: i32) -> Value {
        let output = self.sync(plan, options);
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["done"], status != 1, "{report}");
        assert_eq!(report["verdict"] == "unfinished", status == 1, "{report}");
        report
    }

    /// The events that the worker was given, one for each life, since it was asked last.
    fn events(&self) -> Vec<Value> {
        let path = self.dir.path().join("notes");
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn event_types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["payload"]["event_type"].as_str().unwrap()).collect()
}

fn request_ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["payload"]["event_context"]["request_id"].as_str().unwrap()).collect()
}

#[test]
fn a_first_sync_has_every_phase_and_the_next_no_units_and_full_asks_for_everything() {
    let world = World::new();
    let report = world.report("DONE", &[], 0);
    assert_eq!(
        (&report["initial"], &report["messages"], &report["restarts"]),
        (&json!(true), &json!(4), &json!(0))
    );
    assert_eq!(report["answers"]["data"], "EXTRACTION_DATA_DONE");
    let all = ["EXTERNAL_SYNC_UNITS", "METADATA", "DATA", "ATTACHMENTS"]
        .map(|phase| format!("EXTRACTION_{phase}_START"));
    assert_eq!(event_types(&world.events()), all);

    let report = world.report("DONE", &["--names", "newer", "--full"], 0);
    assert_eq!(report["initial"], false);
    let events = world.events();
    let newer = ["METADATA", "DATA", "ATTACHMENTS"].map(|phase| format!("START_EXTRACTING_{phase}"));
    assert_eq!(event_types(&events), newer);
    for event in &events {
        assert_eq!(event["payload"]["event_context"]["reset_extract_from"], true);
    }
    let report = world.report("DONE", &["--phases", "data,metadata"], 0);
    assert_eq!(report["messages"], 2);
    assert_eq!(event_types(&world.events()), &all[1..3]);
    let units = world.sync("DONE", &["--phases", "units"]);
    assert!(said(&units).contains("an incremental sync needs at least one"), "{}", said(&units));
}

#[test]
fn a_message_that_does_not_echo_the_context_of_its_event_whole_is_refused_by_the_field() {
    let world = World::new();
    let report = world.report("crooked", &["--strict"], 3);
    assert_eq!((&report["messages"], &report["restarts"]), (&json!(4), &json!(0)), "{report}");
    // Else it is taken, and told.
    let world = World::new();
    let report = world.report("crooked", &[], 3);
    let lint = &report["audit"]["findings"][0];
    assert!(lint["rule"] == "context-echo" && lint["verdict"] == "suspicious", "{report}");
}

#[test]
fn progress_is_gone_on_with_at_once_and_a_delay_after_a_while_that_can_be_cut() {
    let world = World::new();
    let report = world.report("DONE DONE PROGRESS DELAY DONE", &["--fast-delays", "1ms"], 3);
    assert_eq!(report["audit"]["findings"][0]["rule"], "no-progress", "it had nothing to show for it");
    assert_eq!(report["invocations"]["data"], 3);
    let (start, on) = ("EXTRACTION_DATA_START", "EXTRACTION_DATA_CONTINUE");
    assert_eq!(event_types(&world.events())[2..5], [start, on, on]);
}

#[test]
fn a_worker_that_ends_or_hangs_without_a_message_gets_the_same_event_again() {
    let world = World::new();
    let report = world.report("DONE DONE die fail sleep DONE", &["--budget", "5s"], 0);
    assert_eq!((&report["restarts"], &report["messages"]), (&json!(3), &json!(4)));
    let events = world.events();
    assert!(events[2..6].iter().all(|event| *event == events[2]), "the same event, whole");
    let mut ids = request_ids(&events);
    ids.dedup();
    assert_eq!(ids.len(), 4);
    // What was said counts, however the worker ended.
    let report = world.report("say-and-die", &[], 0);
    assert_eq!(report["restarts"], 0);
}

#[test]
fn who_never_answers_is_given_up_and_gone_on_with_by_the_next_sync() {
    let world = World::new();
    let report = world.report("DONE die", &["--restarts", "2"], 1);
    assert_eq!(report["restarts"], 2);
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("EXTRACTION_METADATA_START was given 3 times and never answered"), "{error}");
    let before = world.events();
    assert_eq!(before.len(), 4);
    let report = world.report("DONE", &[], 0);
    assert_eq!(report["initial"], true, "it is the same run");
    let after = world.events();
    assert_eq!(after[0], before[3], "the same event, whole, though it is another server");
}

#[test]
fn an_error_ends_the_sync_unless_the_phase_may_be_started_again() {
    let world = World::new();
    let report = world.report("DONE DONE ERROR", &[], 1);
    assert!(report["error"].as_str().unwrap().contains("the source is on fire"), "{report}");
    world.events();
    // Another run: its phase is tried a second time, but not a third time.
    let report = world.report("DONE DONE ERROR ERROR", &["--retry-errors", "1"], 1);
    assert_eq!(report["invocations"]["data"], 2);
    let events = world.events();
    assert_eq!(event_types(&events)[2..], ["EXTRACTION_DATA_START"; 2]);
    assert_ne!(request_ids(&events)[2], request_ids(&events)[3]);
    let runs: Vec<_> = events.iter().map(|event| &event["payload"]["event_context"]["run_id"]).collect();
    assert!(runs.iter().all(|run| *run == runs[0]), "{runs:?}");
    world.report("DONE DONE ERROR DONE", &["--retry-errors", "1"], 0);
}

#[test]
fn a_sync_that_did_not_end_with_done_is_unfinished_and_never_clean() {
    for (plan, options) in [
        ("DONE DONE ERROR", &[][..]),
        // It dies after a DELAY, or without any message.
        ("DONE DONE DELAY die", &["--restarts", "0", "--fast-delays", "1ms"]),
        ("DONE die", &["--restarts", "0"]),
        ("DONE die", &["--after-death", "give-up"]),
        // Its time is over.
        ("DONE DONE sleep", &["--restarts", "0", "--budget", "1s"]),
    ] {
        let report = World::new().report(plan, options, 1);
        assert_eq!(report["verdict"], "unfinished", "{plan}: {report}");
        // Nothing looks wrong: only the end is missing.
        assert_eq!(report["audit"]["findings"], json!([]), "{plan}: {report}");
    }
    // In words, too; and once it ended with DONE, it is clean.
    let world = World::new();
    let run = |plan: &str| {
        let mut command = Command::new(AIRDROP);
        command.args(["sync", "--quiet", "--dir"]).arg(world.platform()).arg("--");
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "sync::worker", "--nocapture", "{event}"]);
        let notes = world.dir.path().join("notes");
        let output = command.env(PLAN, plan).env(NOTES, notes).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let unfinished = run("DONE DONE ERROR");
    assert!(unfinished.ends_with("\nverdict: unfinished\n"), "{unfinished}");
    let clean = run("DONE");
    assert!(clean.ends_with("\nverdict: clean\n"), "{clean}");
    // A sync that cannot begin is not clean either.
    let none = world.sync("DONE", &["--phases", "units"]);
    let none: Value = serde_json::from_slice(&none.stdout).unwrap();
    assert_eq!(none["verdict"], "unfinished", "{none}");
}

#[test]
fn whatever_a_worker_does_is_told_and_nothing_of_it_stays_behind() {
    let world = World::new();
    let report = world.report("babble orphan twice DONE", &["--quiet"], 3);
    let rules: Vec<_> = report["audit"]["findings"].as_array().unwrap().iter().map(|f| &f["rule"]).collect();
    assert_eq!(rules, ["answered-twice"], "{report}");
    let log = fs::metadata(world.platform().join("worker.log")).unwrap().len();
    assert!(log < 17 * 1024 * 1024, "{log} bytes of what it printed are kept");
    let orphan = fs::read_to_string(world.dir.path().join("notes.orphan")).unwrap();
    let state = fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
    assert!(!state.contains("(sleep) S"), "it lives: {state}");

    let world = World::new();
    let output = world.sync("unknown", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("try --names newer"), "{}", said(&output));
    let output = Command::new(AIRDROP)
        .args(["sync", "--dir"])
        .arg(world.dir.path().join("other"))
        .args(["--", "/nowhere/worker", "{event}"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("cannot start the worker /nowhere/worker"), "{}", said(&output));
}

/// A log collector that died, say.
#[test]
fn that_nobody_reads_standard_error_is_no_failure() {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let world = World::new();
    let output = world.command("DONE", &[]).stderr(closed()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["done"], true, "{report}");
    // What fails, fails as ever.
    let output = world.command("ERROR", &["--quiet"]).stderr(closed()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let output = Command::new(AIRDROP)
        .args(["serve", "--dir"])
        .arg(world.dir.path().join("notes/no-folder"))
        .stderr(closed())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn what_an_event_says_can_be_set_and_a_key_in_a_file_is_told_to_nobody_else() {
    let world = World::new();
    let key = world.dir.path().join("key.json");
    fs::write(&key, r#"{"org_id":"acme","key":"a secret"}"#).unwrap();
    let at_key = format!("@{}", key.display());
    let options = [
        &["--connection-data", &at_key, "--event-context", r#"{"import_slug":"mine","added":7}"#][..],
        &["--extraction-start", "2026-01-02T00:00:00Z", "--extraction-end", "unbounded"],
        &["--mode", "incremental", "--env", "WHO=me"],
    ]
    .concat();
    let report = world.report("DONE", &options, 0);
    assert_eq!((&report["initial"], &report["messages"]), (&json!(false), &json!(3)));
    let payload = &world.events()[1]["payload"];
    assert_eq!(payload["connection_data"], json!({ "org_id": "acme", "key": "a secret" }));
    let context = &payload["event_context"];
    assert_eq!((&context["mode"], &context["added"]), (&json!("INCREMENTAL"), &json!(7)));
    assert_eq!(context["import_slug"], "mine");
    let start = json!({ "type": "absolute_time", "value": "2026-01-02T00:00:00Z" });
    assert_eq!(context["extraction_start_time"], start);
    assert_eq!(context["extraction_end_time"], json!({ "type": "unbounded" }));
    let wrong = world.sync("DONE", &["--connection-data", "a secret"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(!said(&wrong).contains("a secret"), "{}", said(&wrong));
}

#[test]
fn a_full_table_of_open_files_does_not_end_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 128; exec \"$0\" serve --dir \"$1\"", AIRDROP])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut base = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut base).unwrap();
    let host = base.trim_end().strip_prefix("http://").unwrap().to_owned();
    let idle: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(&host).unwrap()).collect();
    for _ in 0..3 {
        let mut connection = TcpStream::connect(&host).unwrap();
        write!(connection, "GET /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    drop(idle);
    assert!(child.try_wait().unwrap().is_none(), "it serves on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn wrong_usage_is_told_apart() {
    let world = World::new();
    for (options, reason) in [
        (&["--fault", "dance-500"][..], "is not a call"),
        (&["--phases", "some"], "possible values"),
        (&["--function", "http://127.0.0.1:1/"], "cannot be used with"),
    ] {
        let output = world.sync("DONE", options);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(reason), "{}", said(&output));
    }
}

/// A function: answers each event by POST, with the message before its own answer, or after a 202.
fn function(listener: &TcpListener, later: bool) {
    for connection in listener.incoming() {
        let mut reader = BufReader::new(connection.unwrap());
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let event: Value = serde_json::from_slice(&body).unwrap();
        let status = if later { "202 Accepted" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let message = answer_to(&event, "DONE");
        if later {
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            drop(reader);
            std::thread::sleep(Duration::from_millis(50));
            send(&event, &message);
        } else {
            send(&event, &message);
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    }
}

#[test]
fn a_function_is_posted_each_event_and_waited_for_if_it_says_202() {
    for later in [false, true] {
        let world = World::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/extract", listener.local_addr().unwrap());
        std::thread::spawn(move || function(&listener, later));
        let output = Command::new(AIRDROP)
            .args(["sync", "--json", "--function", &url, "--dir"])
            .arg(world.platform())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["messages"], &report["restarts"]), (&json!(4), &json!(0)));
    }
}

/// One invocation of the synthetic extractor.
fn invoke(dir: &Path, event: &str, disk: Option<&Path>) -> Output {
    let (file, temporary) = (dir.join("event.json"), dir.join("temporary"));
    fs::create_dir_all(&temporary).unwrap();
    fs::write(&file, event).unwrap();
    let mut command = Command::new(program("synthetic-extractor"));
    command.args([
        "invoke",
        "--items",
        "2000",
        "--page-size",
        "100",
        "--batch-items",
        "200",
        "--budget",
        "1ms",
    ]);
    command.arg("--event").arg(file).env("TMPDIR", &temporary);
    if let Some(disk) = disk {
        command.arg("--store").arg(disk);
    }
    let output = command.output().unwrap();
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 0, "its temporary folder is removed");
    output
}

#[test]
fn the_synthetic_worker_answers_an_event_once_and_forgets_when_it_is_told_to() {
    for store in [false, true] {
        let world = World::new();
        let (platform, dir) = (world.platform(), world.dir.path());
        let disk = store.then(|| dir.join("disk"));
        let served = Served::start(Path::new(AIRDROP), &platform, &[]);
        let settings = SyncSettings::new("synthetic").sync_unit_id("import").endpoint(&served.base);
        let (local, clock) = (Local::open(&platform).unwrap(), SystemClock::new());
        local.begin_sync(&settings, &clock).unwrap();
        let messages = || fs::read_to_string(platform.join("messages.jsonl")).unwrap().lines().count();
        let mut before = 0;
        let mut last = None;
        while let Some(event) = local.next_event(&settings, &clock).unwrap() {
            // If it is given again, it is answered again, with nothing new. (A worker without a disk cannot remember the
            // event for the list of units, because that belongs to no unit.)
            let lives = if event.event_type.contains("UNITS") && !store { 1 } else { 2 };
            for _ in 0..lives {
                let output = invoke(dir, &event.json, disk.as_deref());
                assert!(output.status.success(), "{}", said(&output));
                assert_eq!(messages(), before + 1);
            }
            before += 1;
            last = Some(event.json);
            if before == 5 {
                break;
            }
        }
        let mut event: Value = serde_json::from_str(&last.unwrap()).unwrap();
        event["payload"]["event_type"] = json!("EXTRACTION_DATA_DELETE");
        for name in ["request_id", "request_id_adaas", "uuid"] {
            event["payload"]["event_context"][name] = json!("request-to-delete");
        }
        let state = || local.worker_state_of("import").unwrap().unwrap_or_default();
        assert_eq!(state().contains("highwater"), !store);
        let before = state().len();
        let output = invoke(dir, &event.to_string(), disk.as_deref());
        assert!(output.status.success(), "{}", said(&output));
        let text = fs::read_to_string(platform.join("messages.jsonl")).unwrap();
        assert!(text.lines().last().unwrap().contains("EXTRACTION_DATA_DELETE_DONE"), "{text}");
        // Which runs and deletions are past is not forgotten; without a disk, that is in the state of the worker.
        assert!(if store { state().is_empty() } else { state().len() < before }, "{}", state());
        // What no event can be made of is not answered, and that is told.
        for event in ["{", "{\"payload\":{\"event_type\":\"EXTRACTION_DATA_START\"}}"] {
            let output = invoke(dir, event, disk.as_deref());
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        }
    }
}

#[test]
fn a_server_that_is_started_again_on_its_directory_goes_on_at_the_same_address() {
    let world = World::new();
    let (platform, disk) = (world.platform(), world.dir.path().join("disk"));
    let mut served = Served::start(Path::new(AIRDROP), &platform, &[]);
    let base = served.base.clone();
    let settings = SyncSettings::new("synthetic").endpoint(&base);
    let (local, clock) = (Local::open(&platform).unwrap(), SystemClock::new());
    let run = local.begin_sync(&settings, &clock).unwrap();
    let mut invocations = 0;
    while let Some(event) = local.next_event(&settings, &clock).unwrap() {
        let output = invoke(world.dir.path(), &event.json, Some(&disk));
        assert!(output.status.success(), "{}", said(&output));
        invocations += 1;
        drop(served);
        served = Served::start(Path::new(AIRDROP), &platform, &[]);
        assert_eq!(served.base, base);
    }
    assert!(invocations > 10, "{invocations}");
    let verdict = Verdict::read(&platform, run.as_str(), 2_000);
    assert_eq!(verdict, Verdict { announced: 2_000, ..Verdict::default() });
    // The port is taken: that is an error. Another port would be one that nobody knows.
    let output = Command::new(AIRDROP).args(["serve", "--dir"]).arg(&platform).output().unwrap();
    assert!(
        !output.status.success() && said(&output).contains("choose another with --port"),
        "{}",
        said(&output)
    );
}
