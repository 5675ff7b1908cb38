//! The promise on a real disk with real processes: a worker is killed with SIGKILL at any moment, over and over, or
//! ended with SIGTERM, and the platform continues as platforms do. Only here are renames and directory syncs tested.
//!
//! The worker is this binary, started again with an event in its environment. The oracle reads only the platform's
//! directory.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater::airdrop::{
    Context, Event, ExternalSyncUnit, Extractor, Listing, OutcomeKind, Serve, SourceError, StopToken,
};
use highwater::{Clock, Error, Page, Record, Store, SystemClock};
use highwater_airdrop::{Local, SyncSettings};
use serde_json::{Value, json};

use super::support;

const DIR: &str = "HIGHWATER_TEST_DIR";
const EVENT: &str = "HIGHWATER_TEST_EVENT";
/// Milliseconds that a page takes.
const PAGE_TAKES: &str = "HIGHWATER_TEST_PAGE_TAKES";
/// Milliseconds that a worker waits for the store.
const STORE_WAIT: &str = "HIGHWATER_TEST_STORE_WAIT";

/// What a worker prints when it listens to SIGTERM, and when it has received it.
const LISTENS: &str = "listens to SIGTERM";
const WAS_TOLD: &str = "was asked to stop";

const STREAMS: [(&str, u32); 3] = [("issues", 31), ("comments", 17), ("links", 1)];
const PAGE_ITEMS: u32 = 53;
const LANES: usize = 3;
const ESU: &str = "external_sync_units";

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// A source of some thousand records; each contains the number of the reading of its page.
struct Generated {
    reading: AtomicU64,
}

impl Extractor for Generated {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        let (id, name) = ("project".to_owned(), "Project".to_owned());
        Ok(vec![ExternalSyncUnit::new(id, name, "")])
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({ "schema_version": "v0.2.0", "record_types": {} }))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(STREAMS.iter().map(|(stream, _)| (*stream).to_owned()).collect())
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<u32>,
    ) -> Result<Page<u32>, SourceError> {
        let stream = listing.stream();
        let at = cursor.unwrap_or(0);
        println!("page {at} of {stream}");
        std::thread::sleep(Duration::from_millis(number(PAGE_TAKES, 1)));
        let reading = self.reading.fetch_add(1, Ordering::Relaxed) + 1;
        let reading = format!("{}-{reading}", std::process::id());
        let bookmark: Option<String> = context.bookmark(stream)?;
        let pages = STREAMS.iter().find(|(name, _)| *name == stream).unwrap().1;
        let mut page = if at + 1 < pages { Page::more(at + 1) } else { Page::last() };
        for item in 0..PAGE_ITEMS {
            let is = format!("{stream}-{at}-{item}");
            let data = json!({ "is": is, "page": at, "reading": reading, "bookmark": bookmark });
            page.push(stream, Record::new(is, &data)?);
            if item % 3 == 0 {
                let is = format!("user-of-{stream}-{at}-{item}");
                let data = json!({ "is": is, "page": at, "reading": reading, "bookmark": bookmark });
                page.push("users", Record::new(is, &data)?);
            }
        }
        Ok(if at + 1 < pages { page } else { page.bookmark(&context.run_id().as_str()) })
    }
}

/// Every record of a run, by what tells it apart.
fn expected() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (stream, pages) in STREAMS {
        for at in 0..pages {
            all.extend((0..PAGE_ITEMS).map(|item| format!("{stream}-{at}-{item}")));
            all.extend((0..PAGE_ITEMS).step_by(3).map(|item| format!("user-of-{stream}-{at}-{item}")));
        }
    }
    all
}

/// Not a test of its own: one invocation of a worker.
#[test]
fn worker() {
    let Ok(text) = std::env::var(EVENT) else { return };
    let told = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&told)).unwrap();
    println!("{LISTENS}");
    let stop = StopToken::from(told);
    let dir = std::env::var(DIR).unwrap();
    let event = Event::from_json(&text).unwrap();
    let wait = Duration::from_millis(number(STORE_WAIT, 5000));
    let store = Store::options().batch_items(97).wait(wait).open(Path::new(&dir).join("state.redb"));
    let store = store.unwrap_or_else(|error| panic!("cannot open the store: {error}"));
    let local = Local::open(&dir).unwrap();
    let serve = Serve::new().budget(Duration::from_millis(120)).lanes(LANES).stop_token(stop.clone());
    let served = serve.serve(&store, &local, &Generated { reading: AtomicU64::new(0) }, &event);
    if stop.is_stopped() {
        println!("{WAS_TOLD}");
    }
    // The same event comes again.
    if matches!(served, Err(Error::Stopped { .. })) {
        return;
    }
    let outcome = served.unwrap();
    assert_ne!(outcome.kind, OutcomeKind::Error, "{:?}", outcome.message);
}

/// This binary again, as `test`, with what it says in a file.
fn start(test: &str, log: &Path, environment: &[(&str, &str)]) -> Child {
    let log = File::create(log).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("disk::{test}"), "--nocapture", "--test-threads", "1"])
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::from(log.try_clone().unwrap()))
        .stdout(Stdio::from(log))
        .spawn()
        .unwrap()
}

fn settings() -> SyncSettings {
    SyncSettings::new("project").sync_unit_id("import").id_seed("id")
}

fn ended(child: &mut Child, log: &Path) -> ExitStatus {
    let status = child.wait().unwrap();
    let failed = status.code().is_some_and(|code| code != 0);
    assert!(!failed, "the worker failed: {}", fs::read_to_string(log).unwrap());
    status
}

/// Checks all runs in the platform's directory. Returns the number of finished ones.
///
/// `unsure` are the runs whose last message was accepted, but whose worker died before it recorded this. The next run
/// may continue from such a run or from the one before it; then it fetches a window twice and skips none.
fn check(dir: &Path, kills: u64, unsure: &BTreeSet<String>) -> usize {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let messages: Vec<Value> =
        read("messages.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let confirmed: BTreeSet<String> = read("confirmed.txt").lines().map(str::to_owned).collect();
    let uploads: BTreeSet<String> = fs::read_dir(dir.join("artifacts"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut requests = BTreeSet::new();
    let mut named = BTreeSet::new();
    let mut units = BTreeSet::new();
    let mut runs: Vec<(String, BTreeMap<String, Value>, bool)> = Vec::new();
    for message in &messages {
        let context = &message["event_context"];
        assert!(
            requests.insert(context["request_id"].to_string()),
            "two messages answer one event: {message}"
        );
        let run = context["run_id"].as_str().unwrap();
        if runs.last().is_none_or(|(last, ..)| last != run) {
            assert!(runs.iter().all(|(other, ..)| other != run), "{run} comes back");
            runs.push((run.to_owned(), BTreeMap::new(), false));
        }
        let (_, records, finished) = runs.last_mut().unwrap();
        *finished |= message["event_type"] == "EXTRACTION_ATTACHMENTS_DONE";
        for artifact in message["event_data"]["artifacts"].as_array().into_iter().flatten() {
            let id = artifact["id"].as_str().unwrap().to_owned();
            let lines = support::lines(&fs::read(dir.join("artifacts").join(&id)).unwrap());
            assert_eq!(artifact["item_count"], lines.len());
            let item_type = artifact["item_type"].as_str().unwrap();
            let fresh = if item_type == ESU { units.insert(id) } else { named.insert(id) };
            assert!(fresh, "an artifact is in two messages: {artifact}");
            if [ESU, "external_domain_metadata"].contains(&item_type) {
                continue;
            }
            for line in lines {
                let is = line["data"]["is"].as_str().unwrap().to_owned();
                let twice = records.insert(is, line["data"].clone());
                assert_eq!(twice, None, "announced twice in run {run}");
            }
        }
    }
    let odd: Vec<&String> = confirmed.symmetric_difference(&named).collect();
    assert!(odd.is_empty(), "confirmed or announced, but not both: {odd:?}");
    let excess = uploads.len() - named.len() - units.len();
    assert!(excess as u64 <= LANES as u64 * kills, "{excess} uploads too many after {kills} kills");
    let all = expected();
    for (place, (run, records, finished)) in runs.iter().enumerate() {
        if !finished {
            continue;
        }
        let found: BTreeSet<&String> = records.keys().collect();
        let missing: Vec<_> = all.iter().filter(|is| !found.contains(is)).take(5).collect();
        assert!(missing.is_empty() && found.len() == all.len(), "run {run}: {missing:?} are in no message");
        let mut readings = BTreeMap::new();
        let older: Vec<&String> = runs[..place].iter().rev().map(|(run, ..)| run).collect();
        let skipped = older.iter().take_while(|run| unsure.contains(**run)).count();
        let mut from: Vec<Value> = older.iter().take(skipped + 1).map(|run| json!(run)).collect();
        if skipped == older.len() {
            from.push(Value::Null);
        }
        let begun_from = &records.values().next().unwrap()["bookmark"];
        assert!(from.contains(begun_from), "run {run} goes on from {begun_from}, not from one of {from:?}");
        for (is, data) in records {
            assert_eq!(&data["bookmark"], begun_from, "the bookmark changed within run {run}");
            let stream = STREAMS.iter().find(|(stream, _)| is.contains(stream)).unwrap().0;
            let reading = readings.entry((stream, data["page"].as_u64())).or_insert(&data["reading"]);
            assert_eq!(*reading, &data["reading"], "{is}: a page is of one reading");
        }
    }
    runs.iter().filter(|(.., finished)| *finished).count()
}

#[test]
fn every_record_is_announced_exactly_once_however_often_the_worker_is_killed() {
    let seconds = number("HIGHWATER_KILL_SECONDS", 25);
    let seed = number("HIGHWATER_KILL_SEED", fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("worker.log");
    let clock = SystemClock::new();
    let local = Local::open(dir.path()).unwrap();
    let began = Instant::now();
    let (mut kills, mut lives, mut synced) = (0_u64, 0_u64, 0);
    let (mut killed, mut unsure) = (false, BTreeSet::new());
    // When the time is up nothing is killed any more, and the current sync must finish.
    loop {
        let kills_on = began.elapsed() < Duration::from_secs(seconds);
        let Some(event) = local.next_event(&settings(), &clock).unwrap() else {
            if lives > 0 {
                synced += 1;
                if killed {
                    let report = local.sync_report(&settings(), &clock).unwrap().unwrap();
                    unsure.insert(report.run.to_string());
                }
                let over = !kills_on && synced >= 2;
                if over || synced % 8 == 0 {
                    assert_eq!(check(dir.path(), kills, &unsure), synced);
                }
                if over {
                    break;
                }
            }
            local.begin_sync(&settings(), &clock).unwrap();
            continue;
        };
        lives += 1;
        assert!(lives < 100_000, "it comes to no end");
        let dir = dir.path().to_str().unwrap();
        let mut child = start("worker", &log, &[(DIR, dir), (EVENT, &event.json)]);
        if kills_on {
            let within = *rng.choice(&[8_000, 40_000, 150_000, 400_000]).unwrap();
            let until = Instant::now() + Duration::from_micros(rng.u64(..within));
            while Instant::now() < until && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            child.kill().unwrap();
        }
        killed = ended(&mut child, &log).code().is_none();
        kills += u64::from(killed);
    }
    println!(
        "kills={kills} lives={lives} syncs={synced} unsure={} records={} a sync",
        unsure.len(),
        expected().len()
    );
    assert!(kills >= 100, "{kills} kills prove little");
}

#[test]
fn a_worker_that_is_told_to_end_hands_over_what_it_has_and_the_run_goes_on_after_it() {
    let seed = number("HIGHWATER_KILL_SEED", fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("worker.log");
    let clock = SystemClock::new();
    let local = Local::open(dir.path()).unwrap();
    local.begin_sync(&settings(), &clock).unwrap();
    let (mut lives, mut told) = (0, 0);
    while let Some(event) = local.next_event(&settings(), &clock).unwrap() {
        lives += 1;
        assert!(lives < 1_000, "it comes to no end");
        let dir = dir.path().to_str().unwrap();
        let slow = [(DIR, dir), (EVENT, &*event.json), (PAGE_TAKES, "10")];
        let mut worker = start("worker", &log, &slow);
        while !fs::read_to_string(&log).unwrap().contains(LISTENS) {
            assert!(worker.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(rng.u64(..90_000)));
        if worker.try_wait().unwrap().is_none() {
            signal("TERM", &worker);
        }
        // It ends by itself, and well.
        assert_eq!(ended(&mut worker, &log).code(), Some(0));
        told += usize::from(fs::read_to_string(&log).unwrap().contains(WAS_TOLD));
    }
    println!("lives={lives} told={told}");
    assert!(told >= 5, "{told} of {lives} workers were asked to stop");
    // No upload is left behind either: there was time for all of them.
    assert_eq!(check(dir.path(), 0, &BTreeSet::new()), 1);
}

/// Not a test of its own: makes stores, one after the other.
#[test]
fn creator() {
    let Ok(dir) = std::env::var(DIR) else { return };
    if std::env::var(EVENT).is_ok() {
        return;
    }
    for number in 0.. {
        let dir = Path::new(&dir).join(format!("{number}"));
        fs::create_dir(&dir).unwrap();
        drop(Store::open(dir.join("state.redb")).unwrap());
    }
}

#[test]
fn a_store_killed_while_it_is_created_is_none_or_a_whole_one() {
    let mut rng = fastrand::Rng::with_seed(5);
    let began = Instant::now();
    let (mut kills, mut amid, mut stores) = (0, 0, 0);
    while kills < 25 || (kills < 120 && began.elapsed() < Duration::from_secs(8)) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("creator.log");
        let mut child = start("creator", &log, &[(DIR, dir.path().to_str().unwrap())]);
        std::thread::sleep(Duration::from_micros(rng.u64(5_000..60_000)));
        child.kill().unwrap();
        assert_eq!(ended(&mut child, &log).code(), None);
        kills += 1;
        for entry in fs::read_dir(dir.path()).unwrap() {
            let dir = entry.unwrap().path();
            if !dir.is_dir() {
                continue;
            }
            let names = || -> Vec<String> {
                fs::read_dir(&dir)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect()
            };
            amid += usize::from(names().iter().any(|name| name != "state.redb"));
            let store = Store::open(dir.join("state.redb")).unwrap();
            assert_eq!(names(), ["state.redb"], "what the dead left is swept");
            store.sync_unit("unit").unwrap().begin().unwrap().finish().unwrap();
            stores += 1;
        }
    }
    println!("kills={kills} amid={amid} stores={stores}");
    assert!(amid >= 10 && stores > kills, "{amid} of {kills} kills were amid a creation");
}

fn signal(name: &str, child: &Child) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_stopped_owner_still_holds_the_store_and_its_successor_sends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, second_log) = (dir.path().join("worker.log"), dir.path().join("second.log"));
    let clock = SystemClock::new();
    let local = Local::open(dir.path()).unwrap();
    local.begin_sync(&settings(), &clock).unwrap();
    let directory = dir.path().to_str().unwrap();
    // Up to the data phase in peace.
    let event = loop {
        let event = local.next_event(&settings(), &clock).unwrap().unwrap();
        if event.event_type == "EXTRACTION_DATA_START" {
            break event;
        }
        ended(&mut start("worker", &log, &[(DIR, directory), (EVENT, &event.json)]), &log);
    };
    let messages = || local.messages().unwrap().count();
    let before = messages();
    let slow = [(DIR, directory), (EVENT, &*event.json), (PAGE_TAKES, "300")];
    let mut owner = start("worker", &log, &slow);
    while !fs::read_to_string(&log).unwrap().contains("page 0 of issues") {
        assert!(owner.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(1));
    }
    signal("STOP", &owner);
    // The successor waits for as long as it may, and no longer; and it sends nothing to the platform.
    let started = clock.elapsed();
    let impatient = [(DIR, directory), (EVENT, &*event.json), (STORE_WAIT, "400")];
    let mut successor = start("worker", &second_log, &impatient);
    assert_eq!(successor.wait().unwrap().code(), Some(101));
    assert!(clock.elapsed() >= started + Duration::from_millis(400));
    let said = fs::read_to_string(&second_log).unwrap();
    assert!(
        said.contains("cannot open the store") && said.contains("is in use by another process"),
        "{said}"
    );
    assert_eq!(messages(), before);
    // A worker that waits gets the store when the owner continues and ends; it gives the same answer as the owner.
    let mut successor = start("worker", &second_log, &[(DIR, directory), (EVENT, &event.json)]);
    std::thread::sleep(Duration::from_millis(100));
    assert!(successor.try_wait().unwrap().is_none());
    signal("CONT", &owner);
    ended(&mut owner, &log);
    ended(&mut successor, &second_log);
    assert_eq!(messages(), before + 1, "one event, one message");
    assert!(!fs::read_to_string(&second_log).unwrap().contains("page"), "nothing is extracted twice");
    while let Some(event) = local.next_event(&settings(), &clock).unwrap() {
        ended(&mut start("worker", &log, &[(DIR, directory), (EVENT, &event.json)]), &log);
    }
    assert_eq!(check(dir.path(), 0, &BTreeSet::new()), 1);
}

/// The check can fail.
#[test]
fn the_oracle_sees_a_lost_a_repeated_and_an_unannounced_artifact() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::open(dir.path()).unwrap();
    let store = Store::open(dir.path().join("state.redb")).unwrap();
    let source = Generated { reading: AtomicU64::new(0) };
    let serve =
        |event: &str| Serve::new().serve(&store, &local, &source, &Event::from_json(event)?).map(drop);
    local.sync(&settings(), &SystemClock::new(), serve, |_| {}).unwrap();
    assert_eq!(check(dir.path(), 0, &BTreeSet::new()), 1);

    let messages = fs::read_to_string(dir.path().join("messages.jsonl")).unwrap();
    let confirmed = fs::read_to_string(dir.path().join("confirmed.txt")).unwrap();
    let data = messages.lines().position(|line| line.contains("EXTRACTION_DATA_DONE")).unwrap();
    let changed = |change: &dyn Fn(&mut Vec<Value>)| -> String {
        let mut lines: Vec<Value> =
            messages.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        change(&mut lines);
        lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n") + "\n"
    };
    let one = RefCell::new(Value::Null);
    let without_one = changed(&|lines| {
        *one.borrow_mut() = lines[data]["event_data"]["artifacts"].as_array_mut().unwrap().pop().unwrap();
    });
    let id = one.borrow()["id"].as_str().unwrap().to_owned();
    let unnamed = confirmed.replace(&format!("{id}\n"), "");
    let twice = changed(&|lines| {
        let mut again = lines[data].clone();
        again["event_context"]["request_id"] = json!("another");
        lines.insert(data, again);
    });
    let same_event = changed(&|lines| {
        let mut again = lines[data].clone();
        again["event_data"] = json!({});
        lines.push(again);
    });
    for (messages, confirmed, what) in [
        (&without_one, &confirmed, "confirmed or announced, but not both"),
        (&without_one, &unnamed, "1 uploads too many after 0 kills"),
        (&messages, &unnamed, "confirmed or announced, but not both"),
        (&twice, &confirmed, "an artifact is in two messages"),
        (&same_event, &confirmed, "two messages answer one event"),
    ] {
        fs::write(dir.path().join("messages.jsonl"), messages).unwrap();
        fs::write(dir.path().join("confirmed.txt"), confirmed).unwrap();
        let panic = std::panic::catch_unwind(|| check(dir.path(), 0, &BTreeSet::new())).unwrap_err();
        let said = panic.downcast::<String>().unwrap();
        assert!(said.contains(what), "{said}");
    }
    // With room for the upload, what is missing is the records.
    fs::write(dir.path().join("messages.jsonl"), &without_one).unwrap();
    fs::write(dir.path().join("confirmed.txt"), &unnamed).unwrap();
    let panic = std::panic::catch_unwind(|| check(dir.path(), 1, &BTreeSet::new())).unwrap_err();
    assert!(panic.downcast::<String>().unwrap().contains("are in no message"));
}
