//! The commands of `highwater-dump` that change a store: they do what a dry run says, a copy is made first, and the
//! next sync finds what was said. Tested on stores of real runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use highwater::inspect::{Snapshot, Source, check};
use highwater::record::Attachment;
use highwater::{Clock, Level, Page, Record, Run, Store, SyncUnit, VirtualClock};
use serde_json::{Value, json};

use crate::screens::on_one_line;

const DUMP: &str = env!("CARGO_BIN_EXE_highwater-dump");
pub(crate) const UNIT: &str = "acme/tickets";
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) fn start() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2024, 1, 2, 3, 0, 0).unwrap()
}

/// A source in which an issue is modified every ten minutes, and everything that was delivered of it.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clock: VirtualClock,
    /// By run, the ids that were read.
    read: RefCell<BTreeMap<String, BTreeSet<u32>>>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: VirtualClock::at(start()), read: RefCell::default() }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("state.redb")
    }

    pub(crate) fn open(&self) -> Store {
        let options = Store::options().clock(self.clock.clone()).batch_items(4).level(Level::new(0).unwrap());
        options.open(self.store()).unwrap()
    }

    /// The issues that were modified at or after a time, up to now: issue `n` is at `n` times ten minutes.
    fn issues(&self, since: Option<DateTime<Utc>>) -> Vec<u32> {
        let now = self.clock.now();
        (0..10_000)
            .take_while(|n| modified(*n) <= now)
            .filter(|n| since.is_none_or(|since| modified(*n) >= since))
            .collect()
    }

    /// A page of five issues of a run; the last leaves a bookmark.
    fn page(&self, run: &Run, issues: &[u32], cursor: Option<Value>) -> Page<Value> {
        let at = cursor.map_or(0, |cursor| usize::try_from(cursor["at"].as_u64().unwrap()).unwrap());
        let to = (at + 5).min(issues.len());
        let mut page = if to < issues.len() {
            Page::more(json!({ "at": to, "of": "issues" }))
        } else {
            Page::last().bookmark(&json!({ "token": run.id().as_str() }))
        };
        for n in &issues[at..to] {
            self.read.borrow_mut().entry(run.id().to_string()).or_default().insert(*n);
            page.push("issues", Record::new(format!("ISSUE-{n}"), &json!({ "n": n })).unwrap());
        }
        page.value("seen", &to)
    }

    /// A whole run an hour after the last.
    fn sync(&self, unit: &SyncUnit) -> String {
        self.clock.advance(HOUR);
        let run = unit.begin().unwrap();
        self.read_all(&run);
        let id = run.id().to_string();
        run.finish().unwrap();
        id
    }

    fn read_all(&self, run: &Run) {
        let issues = self.issues(run.since());
        for batch in
            run.batches("issues", |cursor| Ok::<_, highwater::Error>(self.page(run, &issues, cursor)))
        {
            let batch = batch.unwrap();
            let key = batch.key().to_string();
            batch.acknowledge(key).unwrap();
        }
    }

    /// This many finished runs, and one in progress.
    fn with_runs(finished: usize) -> (Self, Vec<String>) {
        let place = Self::new();
        let store = place.open();
        let unit = store.sync_unit(UNIT).unwrap();
        let runs = (0..finished).map(|_| place.sync(&unit)).collect();
        place.clock.advance(HOUR);
        let run = unit.begin().unwrap();
        let issues = place.issues(run.since());
        let mut batches =
            run.batches("issues", |cursor| Ok::<_, highwater::Error>(place.page(&run, &issues, cursor)));
        drop(batches.next().unwrap().unwrap());
        drop(batches);
        drop(run);
        (place, runs)
    }

    fn dump(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DUMP);
        command.current_dir(self.dir.path()).args(args).env("USER", "oper");
        command.env_remove("NO_COLOR").env("COLUMNS", "100");
        command
    }

    /// Exit code, stdout, stderr.
    fn says(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.dump(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Stdout of a command that ends with 0.
    #[track_caller]
    fn shows(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.says(args);
        assert_eq!(code, Some(0), "{args:?}: {stdout}{stderr}");
        stdout
    }

    /// Stderr of a command that ends with 1 and leaves the store as it is.
    #[track_caller]
    fn refuses(&self, args: &[&str]) -> String {
        let before = std::fs::read(self.store()).unwrap();
        let (code, stdout, stderr) = self.says(args);
        assert_eq!(code, Some(1), "{args:?}: {stdout}{stderr}");
        assert!(before == std::fs::read(self.store()).unwrap(), "{args:?} changed the store");
        stderr
    }

    /// The plan of a dry run, which leaves the store, and the folder, as they are.
    #[track_caller]
    pub(crate) fn plan(&self, args: &[&str]) -> Value {
        let untouched = || {
            let mut names: Vec<_> =
                std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            (std::fs::read(self.store()).unwrap(), names)
        };
        let before = untouched();
        let said: Value =
            serde_json::from_str(&self.shows(&[args, &["--dry-run", "--json"]].concat())).unwrap();
        assert!(before == untouched(), "{args:?} --dry-run changed something");
        assert_eq!((&said["done"], &said["backup"]), (&json!(false), &json!(null)));
        said["plan"].clone()
    }

    /// Does it; the plan, and the copy. The plan is the dry run's, the copy is whole, and so is the store.
    #[track_caller]
    pub(crate) fn mends(&self, args: &[&str]) -> (Value, PathBuf) {
        let planned = self.plan(args);
        let before = self.shown();
        let said: Value = serde_json::from_str(&self.shows(&[args, &["--yes", "--json"]].concat())).unwrap();
        assert_eq!((&said["plan"], &said["done"]), (&planned, &json!(true)));
        let backup = self.dir.path().join(said["backup"].as_str().unwrap());
        assert_eq!(shown_of(&backup), before, "the copy is not what was there");
        assert_eq!(Snapshot::open(&backup).unwrap().source(), Source::Closed);
        self.is_whole();
        (planned, backup)
    }

    #[track_caller]
    pub(crate) fn is_whole(&self) {
        let findings = check(self.store()).unwrap().findings;
        assert!(findings.is_empty(), "{findings:?}");
    }

    fn shown(&self) -> Vec<Value> {
        shown_of(&self.store())
    }
}

/// All that is shown of a store's units.
fn shown_of(path: &std::path::Path) -> Vec<Value> {
    let mut snapshot = Snapshot::open(path).unwrap();
    let reports: Vec<_> = snapshot.units(1_000).map(Result::unwrap).collect();
    reports
        .iter()
        .flat_map(|report| report.lines().map(|line| serde_json::to_value(line).unwrap()).collect::<Vec<_>>())
        .collect()
}

pub(crate) fn modified(n: u32) -> DateTime<Utc> {
    start() + TimeDelta::minutes(10 * i64::from(n))
}

pub(crate) fn time(value: &Value) -> Option<DateTime<Utc>> {
    value.as_str().map(|text| text.parse().unwrap())
}

pub(crate) fn changes<'a>(plan: &'a Value, kind: &str) -> Vec<&'a Value> {
    plan["changes"].as_array().unwrap().iter().filter(|change| change["change"] == kind).collect()
}

#[test]
fn after_a_rewind_a_sync_asks_for_what_the_dry_run_said_and_nothing_is_lost() {
    for back in [1_u8, 3, 8, 9, 11] {
        let (place, runs) = Place::with_runs(12);
        let to = &runs[12 - usize::from(back)];
        let (plan, _) = place.mends(&["rewind", "state.redb", UNIT, "--to", to]);
        // The runs after that one have read so many, as this test has counted.
        let read_after: usize =
            place.read.borrow().iter().filter(|(run, _)| *run > to).map(|(_, read)| read.len()).sum();
        assert_eq!(plan["next_run"]["read_since"], json!({ "issues": read_after }), "{plan}");
        let abandoned = changes(&plan, "abandon_run");
        assert_eq!(abandoned.len(), 1, "{plan}");
        assert!(abandoned[0]["records_dropped"].as_u64().unwrap() > 0);
        let since = time(&plan["next_run"]["since"]).unwrap();
        // Bookmarks of the last 8 finished runs are kept.
        let kept = back <= 8;
        assert_eq!(plan["next_run"]["streams"].as_array().unwrap().len(), usize::from(kept), "{plan}");
        assert_eq!(plan["notes"].to_string().contains("all bookmarks are dropped"), !kept, "{plan}");

        let store = place.open();
        let unit = store.sync_unit(UNIT).unwrap();
        let run = unit.begin().unwrap();
        assert!(!run.resumed());
        assert_eq!(run.since(), Some(since));
        // The run to which it was set back had started an hour after the one before.
        assert_eq!(since, start() + TimeDelta::hours(13 - i64::from(back)));
        let bookmark: Option<Value> = run.bookmark("issues").unwrap();
        assert_eq!(bookmark, kept.then(|| json!({ "token": to })));
        if kept {
            assert_eq!(plan["next_run"]["streams"][0]["bookmark"], bookmark.unwrap());
        }
        place.read_all(&run);
        let id = run.id().to_string();
        run.finish().unwrap();
        // Everything that was modified since then is read again, by arithmetic of this test.
        let read = place.read.borrow()[&id].clone();
        let expected: BTreeSet<u32> = (0..=13 * 6).filter(|n| modified(*n) >= since).collect();
        assert_eq!(read, expected);
        // And no record was left out in all runs together.
        let ever: BTreeSet<u32> = place.read.borrow().values().flatten().copied().collect();
        assert_eq!(ever, (0..=13 * 6).collect());
        drop((unit, store));
        place.is_whole();
    }
}

#[test]
fn a_rewind_goes_to_the_last_run_that_was_finished_by_a_time() {
    let (place, runs) = Place::with_runs(4);
    // The runs were over at 4, 5, 6 and 7 o'clock.
    for (to, run) in [
        ("2024-01-02T06:30", 2),
        ("2024-01-02T05:00:00Z", 1),
        ("2024-01-02T06:59+01:00", 1),
        ("2024-01-02 05:59:59", 1),
        ("2024-01-03", 3),
    ] {
        let plan = place.plan(&["rewind", "state.redb", UNIT, "--to", to]);
        assert!(plan["act"].as_str().unwrap().ends_with(&format!("to run {}", runs[run])), "{to}: {plan}");
    }
    let stderr = place.refuses(&["rewind", "state.redb", UNIT, "--to", "2024-01-02", "--yes"]);
    assert!(stderr.contains("no run was finished by then") && stderr.contains("`reset`"), "{stderr}");
    assert!(stderr.contains(&runs[0]) && stderr.contains(&runs[3]), "{stderr}");
    let stderr = place.refuses(&["rewind", "state.redb", UNIT, "--to", "no-run", "--yes"]);
    assert!(stderr.contains("no such run was finished"), "{stderr}");
    let open = place.open().sync_unit(UNIT).unwrap().begin().unwrap().id().to_string();
    let stderr = place.refuses(&["rewind", "state.redb", UNIT, "--to", &open, "--yes"]);
    assert!(stderr.contains("it is still open") && stderr.contains("`abandon`"), "{stderr}");
}

#[test]
fn a_rewind_can_be_taken_back_and_said_twice_it_changes_nothing_more() {
    let (place, runs) = Place::with_runs(4);
    place.mends(&["rewind", "state.redb", UNIT, "--to", &runs[1]]);
    let plan = place.plan(&["rewind", "state.redb", UNIT, "--to", &runs[1]]);
    assert_eq!(plan["changes"], json!([]));
    assert!(
        place
            .shows(&["rewind", "state.redb", UNIT, "--to", &runs[1], "--yes"])
            .contains("nothing was changed")
    );
    let (plan, _) = place.mends(&["rewind", "state.redb", UNIT, "--to", &runs[3]]);
    assert!(plan["notes"].to_string().contains("moves forward"), "{plan}");
    let run = place.open().sync_unit(UNIT).unwrap().begin().unwrap();
    assert_eq!(run.since(), Some(start() + TimeDelta::hours(4)));
    assert_eq!(run.bookmark::<Value>("issues").unwrap(), Some(json!({ "token": runs[3] })));
}

#[test]
fn a_cursor_that_is_set_is_that_of_each_next_run_until_one_is_finished() {
    let (place, _) = Place::with_runs(3);
    let set = |cursor| ["set-cursor", "state.redb", UNIT, "issues", cursor];
    for (cursor, says) in [
        ("{\"at\":5}", ".of is missing"),
        ("{\"at\":\"5\",\"of\":\"issues\"}", ".at is a text, and was a number"),
        ("{\"at\":5.5,\"of\":\"issues\"}", "has a fraction"),
        ("{\"at\":5,\"of\":\"issues\",\"to\":1}", ".to is new"),
        ("7", "it is a number, and was an object"),
        ("at 7", "it is not JSON"),
    ] {
        let stderr = place.refuses(&[&set(cursor)[..], &["--yes"]].concat());
        assert!(stderr.contains(says), "{cursor}: {stderr}");
    }
    let stderr = place.refuses(&["set-cursor", "state.redb", UNIT, "isues", "1", "--yes"]);
    assert!(stderr.contains("no run has read such a stream; known are issues"), "{stderr}");
    let (plan, _) = place.mends(&[&set("{\"at\":7}")[..], &["--force"]].concat());
    assert_eq!(plan["next_run"]["streams"][0]["cursor"], json!({ "at": 7 }));
    assert!(plan["notes"].to_string().contains("is open and goes on with its own cursors"), "{plan}");
    let warns = || {
        on_one_line(&place.shows(&["state.redb"])).contains("listing issues begins with the cursor {\"at\":")
    };
    assert!(warns());
    let (plan, _) = place.mends(&set("{\"at\":5,\"of\":\"issues\"}"));
    assert_eq!(changes(&plan, "cursor")[0]["from"], json!({ "at": 7 }));

    let store = place.open();
    let unit = store.sync_unit(UNIT).unwrap();
    // The open run goes on as it was, and does not take the cursor away when it is finished.
    let run = unit.begin().unwrap();
    assert!(run.resumed());
    place.read_all(&run);
    run.finish().unwrap();
    place.clock.advance(HOUR);
    let first_cursor = |run: &Run| {
        let mut first = None;
        let issues = place.issues(run.since());
        let mut batches = run.batches("issues", |cursor: Option<Value>| {
            first.get_or_insert_with(|| cursor.clone());
            Ok::<_, highwater::Error>(place.page(run, &issues, cursor))
        });
        drop(batches.next());
        drop(batches);
        first.unwrap()
    };
    for _ in 0..2 {
        let run = unit.begin().unwrap();
        assert!(!run.resumed());
        assert_eq!(first_cursor(&run), Some(json!({ "at": 5, "of": "issues" })));
        unit.abandon().unwrap();
    }
    let run = unit.begin().unwrap();
    place.read_all(&run);
    run.finish().unwrap();
    place.clock.advance(HOUR);
    assert_eq!(first_cursor(&unit.begin().unwrap()), None);
    assert!(!warns(), "a run has finished from there");
    unit.abandon().unwrap();
    drop((unit, store));
    place.mends(&set("{\"at\":5,\"of\":\"issues\"}"));
    let (plan, _) = place.mends(&set("null"));
    assert_eq!(plan["next_run"]["streams"][0]["cursor"], json!(null));
}

/// A store with a run in which attachments failed for two reasons, and one was settled.
fn with_failed(place: &Place) {
    let store = place.open();
    let unit = store.sync_unit(UNIT).unwrap();
    let run = unit.begin().unwrap();
    attachments(&run, 30);
    for attachment in run.attachments() {
        let attachment = attachment.unwrap();
        let n: u32 = attachment.id[1..].parse().unwrap();
        match n {
            0 => attachment.acknowledge("artifact").unwrap(),
            n if n % 3 == 0 => attachment.fail("status 404").unwrap(),
            _ => attachment.fail("status 503").unwrap(),
        }
    }
    run.finish().unwrap();
}

fn attachments(run: &Run, count: u32) {
    let fetch = |_: Option<u8>| {
        let mut page = Page::<u8>::last();
        for n in 0..count {
            let attachment =
                Attachment::new(format!("A{n}"), format!("https://files.example/{n}"), "a.png", "P1");
            page.push("attachments", attachment.to_record()?);
        }
        Ok::<_, highwater::Error>(page)
    };
    for batch in run.batches("files", fetch) {
        let batch = batch.unwrap();
        let key = batch.key().to_string();
        batch.acknowledge(key).unwrap();
    }
}

#[test]
fn failed_attachments_are_queued_again_by_id_by_reason_and_all() {
    let place = Place::new();
    with_failed(&place);
    let requeue = ["requeue", "state.redb", UNIT];
    let plan = place.plan(&requeue);
    assert_eq!(changes(&plan, "requeue")[0]["attachments"], 29);
    assert_eq!(changes(&plan, "requeue")[0]["reasons"], json!([["status 503", 20], ["status 404", 9]]));
    let (plan, _) = place.mends(&[&requeue[..], &["--id", "A3", "--id", "A0"]].concat());
    assert_eq!(changes(&plan, "requeue")[0]["attachments"], 1);
    assert!(plan["notes"].to_string().contains("no such attachment was given up: A0"), "{plan}");
    let (plan, _) = place.mends(&[&requeue[..], &["--reason", "404"]].concat());
    assert_eq!(plan["next_run"]["attachments_requeued"], 9);
    place.mends(&requeue);
    let plan = place.plan(&requeue);
    assert_eq!((&plan["changes"], &plan["next_run"]["attachments_requeued"]), (&json!([]), &json!(29)));
    place.clock.advance(HOUR);
    let run = place.open().sync_unit(UNIT).unwrap().begin().unwrap();
    let again: BTreeSet<String> =
        run.attachments().map(|attachment| attachment.unwrap().id.clone()).collect();
    assert_eq!(again, (1..30).map(|n| format!("A{n}")).collect());
}

#[test]
fn after_a_reset_the_next_run_extracts_everything() {
    for keep in [false, true] {
        let (place, runs) = Place::with_runs(3);
        place.open().sync_unit(UNIT).unwrap().abandon().unwrap();
        with_failed(&place);
        place.mends(&["set-cursor", "state.redb", UNIT, "issues", "{\"at\":5,\"of\":\"issues\"}"]);
        let flags: &[&str] = if keep { &["--keep-attachments", "--drop-values"] } else { &[] };
        let (plan, _) = place.mends(&[&["reset", "state.redb", UNIT], flags].concat());
        assert_eq!(plan["next_run"]["since"], json!(null));
        assert_eq!(plan["next_run"]["streams"], json!([]));
        assert_eq!(changes(&plan, "forget_attachments").len(), usize::from(!keep));
        place.clock.advance(HOUR);
        let store = place.open();
        let unit = store.sync_unit(UNIT).unwrap();
        let run = unit.begin().unwrap();
        assert_eq!(run.since(), None);
        assert_eq!(run.bookmark::<Value>("issues").unwrap(), None);
        assert_eq!(run.value::<Value>("seen").unwrap().is_some(), !keep);
        place.read_all(&run);
        assert_eq!(place.read.borrow()[run.id().as_str()].len(), place.issues(None).len());
        attachments(&run, 30);
        // The one that was settled, and those that failed are tried again as they are named.
        assert_eq!(run.attachments().count(), if keep { 29 } else { 30 });
        unit.abandon().unwrap();
        // A rewind goes back behind the reset.
        drop((run, unit, store));
        place.mends(&["rewind", "state.redb", UNIT, "--to", &runs[2]]);
        assert_eq!(
            place.open().sync_unit(UNIT).unwrap().watermark().unwrap(),
            Some(start() + TimeDelta::hours(3))
        );
    }
}

#[test]
fn an_open_run_is_abandoned_and_a_unit_forgotten_and_both_are_noted() {
    let (place, runs) = Place::with_runs(2);
    let (plan, _) = place.mends(&["abandon", "state.redb", UNIT]);
    assert_eq!(changes(&plan, "abandon_run").len(), 1);
    assert_eq!(place.plan(&["abandon", "state.redb", UNIT])["notes"], json!(["no run is open"]));
    let run = place.open().sync_unit(UNIT).unwrap().begin().unwrap();
    assert!(!run.resumed() && run.since().is_some());
    drop(run);
    let (_, backup) = place.mends(&["forget", "state.redb", UNIT, "--by", "somebody"]);
    assert_eq!(place.shown(), Vec::<Value>::new());
    assert!(place.shows(&["state.redb"]).starts_with("no sync unit; mended "));
    // The copy can be used as it is.
    std::fs::copy(backup, place.store()).unwrap();
    place.mends(&["rewind", "state.redb", UNIT, "--to", &runs[0]]);
}

#[test]
fn nothing_is_done_without_a_yes_while_it_is_open_elsewhere_or_where_the_platform_keeps_the_state() {
    let (place, runs) = Place::with_runs(2);
    let every: Vec<Vec<&str>> = vec![
        vec!["rewind", "state.redb", UNIT, "--to", &runs[0]],
        vec!["set-cursor", "state.redb", UNIT, "issues", "{\"at\":5,\"of\":\"issues\"}"],
        vec!["reset", "state.redb", UNIT],
        vec!["abandon", "state.redb", UNIT],
        vec!["forget", "state.redb", UNIT],
    ];
    for args in &every {
        let stderr = place.refuses(args);
        assert!(stderr.contains("no terminal") && stderr.contains("--yes"), "{args:?}: {stderr}");
    }
    let store = place.open();
    for args in &every {
        let before = place.shown();
        let (code, _, stderr) = place.says(&[args, &["--yes"][..]].concat());
        assert_eq!((code, before), (Some(1), place.shown()), "{args:?}: {stderr}");
        assert!(stderr.contains("in use by another process: stop it"), "{args:?}: {stderr}");
        // To look does no harm.
        place.shows(&[args, &["--dry-run"][..]].concat());
    }
    drop(store);
    let stderr = place.refuses(&["reset", "state.redb", "acme/ticket", "--yes"]);
    assert!(stderr.contains("has no sync unit \"acme/ticket\""), "{stderr}");
    // A copy that cannot be made is the end of it.
    for to in ["no/such/folder/copy", "state.redb"] {
        let before = place.shown();
        let (code, _, stderr) = place.says(&["reset", "state.redb", UNIT, "--yes", "--backup", to]);
        assert_eq!((code, before), (Some(1), place.shown()), "{stderr}");
        assert!(stderr.contains("so nothing was changed"), "{stderr}");
    }
    let (code, _, stderr) = place.says(&["reset", "not-there.redb", UNIT, "--yes"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(!place.dir.path().join("not-there.redb").exists());
    std::fs::create_dir(place.dir.path().join("copies")).unwrap();
    let said = place.shows(&["reset", "state.redb", UNIT, "--yes", "--backup", "copies"]);
    assert!(said.contains("done; the copy made before: copies/state.redb.before-reset-2"), "{said}");
    let said = place.shows(&["abandon", "state.redb", UNIT, "--yes"]);
    assert!(said.contains("no run is open") && said.contains("nothing was changed"), "{said}");
}

#[test]
fn a_unit_moves_to_another_store_whole_and_is_not_taken_in_twice() {
    let (place, _) = Place::with_runs(3);
    let stderr = place.refuses(&["export", "state.redb", UNIT, "unit.jsonl"]);
    assert!(stderr.contains("is open") && stderr.contains("`abandon`"), "{stderr}");
    assert!(!place.dir.path().join("unit.jsonl").exists());
    place.mends(&["abandon", "state.redb", UNIT]);
    with_failed(&place);
    place.shows(&["export", "state.redb", UNIT, "unit.jsonl"]);
    let stderr = place.refuses(&["export", "state.redb", UNIT, "unit.jsonl"]);
    assert!(stderr.contains("write the unit file unit.jsonl"), "{stderr}");
    // The store that imports it has another unit.
    let other =
        Store::options().clock(place.clock.clone()).open(place.dir.path().join("other.redb")).unwrap();
    other.sync_unit("another").unwrap().begin().unwrap();
    drop(other);
    place.shows(&["import", "other.redb", "unit.jsonl", "--dry-run"]);
    place.shows(&["import", "other.redb", "unit.jsonl", "--yes"]);
    let of_unit = |lines: Vec<Value>| -> Vec<Value> {
        lines.into_iter().filter(|line| line["sync_unit"] == UNIT).collect()
    };
    let other = place.dir.path().join("other.redb");
    assert_eq!(of_unit(shown_of(&other)), of_unit(place.shown()));
    assert!(check(&other).unwrap().findings.is_empty());
    let (code, _, stderr) = place.says(&["import", "other.redb", "unit.jsonl", "--yes"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("has this unit already"), "{stderr}");
    place.shows(&["import", "other.redb", "unit.jsonl", "--yes", "--replace"]);
    assert!(check(&other).unwrap().findings.is_empty());
    // A store that was not there.
    place.shows(&["import", "new.redb", "unit.jsonl", "--dry-run"]);
    assert!(!place.dir.path().join("new.redb").exists());
    place.shows(&["import", "new.redb", "unit.jsonl", "--yes"]);
    assert_eq!(of_unit(shown_of(&place.dir.path().join("new.redb"))), of_unit(place.shown()));
    // A settled attachment is known there, and the run goes on from the watermark.
    let store = Store::options().clock(place.clock.clone()).open(place.dir.path().join("new.redb")).unwrap();
    place.clock.advance(HOUR);
    let run = store.sync_unit(UNIT).unwrap().begin().unwrap();
    assert!(run.since().is_some());
    attachments(&run, 1);
    assert_eq!(run.attachments().count(), 0);
    // Whatever is changed of the file, or cut off it, is found.
    let whole = std::fs::read(place.dir.path().join("unit.jsonl")).unwrap();
    let mut found = 0;
    for at in (0..whole.len()).step_by(29) {
        for damaged in [whole[..at].to_vec(), {
            let mut changed = whole.clone();
            changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
            changed
        }] {
            std::fs::write(place.dir.path().join("damaged.jsonl"), damaged).unwrap();
            assert!(
                highwater::mend::UnitFile::open(place.dir.path().join("damaged.jsonl")).is_err(),
                "byte {at}"
            );
            found += 1;
        }
    }
    assert!(found > 50, "{found}");
}

/// The store has the unit as an older version wrote it: read from the fixture beside it.
#[test]
fn a_unit_that_an_older_version_exported_is_imported_whole() {
    let place = Place::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let of = |name: &str| std::fs::read(fixtures.join(name)).unwrap();
    let mut store = Vec::new();
    let packed = of("format-2/batches-closed.redb.gz");
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut store).unwrap();
    std::fs::write(place.dir.path().join("exporting.redb"), store).unwrap();
    let old = of("unit-1/mended.unit");
    assert!(old.starts_with(b"{\"kind\":\"highwater_unit\",\"version\":1,"));
    std::fs::write(place.dir.path().join("old.unit"), &old).unwrap();
    place.shows(&["import", "new.redb", "old.unit", "--yes"]);
    let of_unit = |name: &str| -> Vec<Value> {
        let lines = shown_of(&place.dir.path().join(name)).into_iter();
        lines.filter(|line| line["sync_unit"] == "acme/mended").collect()
    };
    assert!(of_unit("exporting.redb").len() > 3);
    assert_eq!(of_unit("new.redb"), of_unit("exporting.redb"));
    assert!(check(place.dir.path().join("new.redb")).unwrap().findings.is_empty());
    // What is exported now, of the same unit, has the same rows.
    let said = place.shows(&["export", "exporting.redb", "acme/mended", "new.unit"]);
    let again = place.shows(&["export", "new.redb", "acme/mended", "again.unit"]);
    assert!(said.contains("24 rows") && again.contains("25 rows"), "the import is a row too: {said} {again}");
    assert!(old.split(|byte| *byte == b'\n').count() == 24 + 3, "a header, 24 rows, an end and no more");
    // A row of it that was changed is found.
    let mut changed = old.clone();
    let at = changed.len() / 2;
    changed[at] ^= 1;
    std::fs::write(place.dir.path().join("old.unit"), changed).unwrap();
    let (code, _, stderr) = place.says(&["import", "third.redb", "old.unit", "--yes"]);
    assert!(code == Some(1) && stderr.contains("the unit file old.unit"), "{stderr}");
}

#[test]
fn compacting_gives_back_what_it_said() {
    let place = Place::new();
    let store = place.open();
    let unit = store.sync_unit(UNIT).unwrap();
    let run = unit.begin().unwrap();
    let fetch = |cursor: Option<u32>| {
        let at = cursor.unwrap_or(0);
        let mut page = if at < 200 { Page::more(at + 1) } else { Page::last() };
        page.push("issues", Record::new(at.to_string(), &json!({ "text": "x".repeat(20_000) }))?);
        Ok::<_, highwater::Error>(page)
    };
    for batch in run.batches("issues", fetch) {
        drop(batch.unwrap());
    }
    unit.abandon().unwrap();
    drop((run, unit, store));
    let before = std::fs::metadata(place.store()).unwrap().len();
    let plan = place.plan(&["compact", "state.redb"]);
    assert_eq!(plan["bytes"], before);
    let shown = place.shown();
    let said = place.shows(&["compact", "state.redb", "--yes", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["plan"], &said["done"]), (&plan, &json!(true)));
    place.is_whole();
    assert_eq!(place.shown(), shown);
    let after = std::fs::metadata(place.store()).unwrap().len();
    assert!(after < before / 2, "{before} -> {after}");
    assert!(after.abs_diff(plan["bytes_after"].as_u64().unwrap()) <= 64 * 1024, "{plan} {after}");
    let stderr = {
        let _store = place.open();
        place.says(&["compact", "state.redb", "--yes"]).2
    };
    assert!(stderr.contains("in use"), "{stderr}");
}

#[test]
fn the_words_of_a_plan() {
    let (place, runs) = Place::with_runs(2);
    let said = place.shows(&["rewind", "state.redb", UNIT, "--to", &runs[0], "--dry-run"]);
    insta::assert_snapshot!(said, @r#"
    rewind acme/tickets to run 20240102T040000.000000Z
      run 20240102T060000.000000Z, started 2024-01-02T06:00:00Z, 1 page, is abandoned; 5 records that no
        message has announced: dropped here, and fetched again
      watermark: 2024-01-02T05:00:00Z -> 2024-01-02T04:00:00Z
      bookmark of stream issues: {"token":"20240102T050000.000000Z"} ->
        {"token":"20240102T040000.000000Z"}
      the next run asks for records modified since 2024-01-02T04:00:00Z, less the overlap that the
        extractor sets
      about 12 records will be asked for again, as many as the runs since then have read (issues: 12)
      the next run begins stream issues at its beginning, with the bookmark
        {"token":"20240102T040000.000000Z"}
      note: the extractor's own values stay as they are: seen
    nothing was changed
    "#);
    assert!(said.lines().all(|line| line.chars().count() <= 100), "{said}");
    let help = place.shows(&["rewind", "--help"]);
    assert!(help.contains("Example:\n  highwater-dump rewind"), "{help}");
}

#[test]
fn every_command_has_an_example_that_fits_80_columns() {
    let place = Place::new();
    for command in [
        "rewind",
        "set-cursor",
        "reset",
        "requeue",
        "abandon",
        "forget",
        "export",
        "import",
        "compact",
        "acts",
        "diff",
    ] {
        let help = place.shows(&[command, "--help"]);
        let example = format!("Example:\n  highwater-dump {command} ");
        assert!(help.contains(&example), "{help}");
        let (_, after) = help.split_once("Example:\n").unwrap();
        assert!(after.lines().next().unwrap().chars().count() <= 80, "{help}");
    }
}

#[test]
fn what_differs_is_said_in_words_and_what_was_done_is_listed() {
    let (place, runs) = Place::with_runs(3);
    std::fs::copy(place.store(), place.dir.path().join("before.redb")).unwrap();
    assert_eq!(place.shows(&["diff", "before.redb", "state.redb"]), "nothing differs\n");
    assert_eq!(place.shows(&["acts", "state.redb"]), "nothing was changed by hand\n");
    place.mends(&["rewind", "state.redb", UNIT, "--to", &runs[0], "--by", "somebody"]);
    place.open().sync_unit("another").unwrap().begin().unwrap();
    let said = place.shows(&["diff", "before.redb", "state.redb"]);
    // When the run was abandoned is up to the machine's clock.
    let said = said.lines().filter(|line| !line.contains("ended at")).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(said, @r#"
    acme/tickets: ledger runs: 3 -> 4
    acme/tickets: watermark: 2024-01-02T06:00:00Z -> 2024-01-02T04:00:00Z
    acme/tickets: run: status: open -> abandoned
    acme/tickets: stream issues is gone
    acme/tickets: item type issues is gone
    acme/tickets: bookmark issues: {"token":"20240102T060000.000000Z"} ->
      {"token":"20240102T040000.000000Z"}
    acme/tickets: ledger entry of run 20240102T070000.000000Z (abandoned; issues: 5 read, 0 announced)
      is new
    another: is new
    "#);
    let lines = place.shows(&["diff", "before.redb", "state.redb", "--json", "--unit", UNIT]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["of"] == "unit" && line["field"] == "watermark"), "{lines:?}");
    assert!(lines.iter().all(|line| line["sync_unit"] == UNIT), "{lines:?}");
    place.mends(&["forget", "state.redb", UNIT]);
    let acts = place.shows(&["acts", "state.redb", "--json"]);
    let acts: Vec<Value> = acts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        acts.iter().map(|act| (act["by"].as_str().unwrap(), act["act"].as_str().unwrap())).collect();
    let rewound = format!("rewind {UNIT} to run {}", runs[0]);
    assert_eq!(told, [("somebody", rewound.as_str()), ("oper", "forget acme/tickets")]);
    assert_eq!(acts[0]["changes"].as_array().unwrap().len(), 3);
}

#[test]
fn rejected_records_are_asked_for_again_after_a_rewind_too() {
    let place = Place::new();
    let store = place.open();
    let unit = store.sync_unit(UNIT).unwrap();
    let first = place.sync(&unit);
    place.clock.advance(HOUR);
    let run = unit.begin().unwrap();
    let fetch = |_: Option<u8>| {
        let mut page = Page::<u8>::last();
        page.reject("issues", "ISSUE-bad", "it has no project");
        Ok::<_, highwater::Error>(page)
    };
    for batch in run.batches("issues", fetch) {
        drop(batch.unwrap());
    }
    run.finish().unwrap();
    drop((unit, store));
    let (plan, _) = place.mends(&["rewind", "state.redb", UNIT, "--to", &first]);
    assert_eq!(plan["next_run"]["rejected"], 1);
    let said = place.shows(&["abandon", "state.redb", UNIT, "--dry-run"]);
    assert!(said.contains("asks for 1 rejected record again"), "{said}");
    assert_eq!(place.open().sync_unit(UNIT).unwrap().begin().unwrap().rejected().unwrap().len(), 1);
}

/// Puts a store of `tests/fixtures` at `state.redb`, and the worker state that the platform then had beside it; both were
/// left by a worker of `acme/files` that lives by checkpoints.
fn fixture(place: &Place, name: &str) -> PathBuf {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-2");
    let packed = std::fs::File::open(from.join(format!("{name}.redb.gz"))).unwrap();
    let mut store = std::fs::File::create(place.store()).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut store).unwrap();
    let state = place.dir.path().join(format!("{name}.json"));
    std::fs::copy(from.join(format!("{name}.state.json")), &state).unwrap();
    state
}

const FILES: &str = "acme/files";

#[test]
fn where_the_platform_keeps_the_state_every_mending_is_refused_and_its_worker_state_is_mended_instead() {
    let place = Place::new();
    let state = fixture(&place, "attachments");
    let every: [&[&str]; 7] = [
        &["rewind", "state.redb", FILES, "--to", "2026-01-03", "--yes"],
        &["set-cursor", "state.redb", FILES, "issues", "{\"at\":1}", "--yes"],
        &["reset", "state.redb", FILES, "--yes"],
        &["requeue", "state.redb", FILES, "--yes"],
        &["abandon", "state.redb", FILES, "--yes"],
        &["forget", "state.redb", FILES, "--yes"],
        &["export", "state.redb", FILES, "exported.jsonl"],
    ];
    for args in every {
        let stderr = place.refuses(args);
        assert!(stderr.contains("its state is kept with the platform"), "{args:?}: {stderr}");
        assert!(stderr.contains("fetch its worker state, mend that as a file"), "{args:?}: {stderr}");
    }
    // Nor is it put in the place of such a unit.
    let (other, _) = Place::with_runs(1);
    let clock = other.clock.clone();
    let store = Store::options().clock(clock).open(other.dir.path().join("other.redb")).unwrap();
    store.sync_unit(FILES).unwrap().begin().unwrap().finish().unwrap();
    drop(store);
    let exported = other.dir.path().join("files.jsonl");
    other.shows(&["export", "other.redb", FILES, "files.jsonl"]);
    let stderr = place.refuses(&["import", "state.redb", exported.to_str().unwrap(), "--replace", "--yes"]);
    assert!(stderr.contains("its state is kept with the platform"), "{stderr}");
    let names = |name: &std::ffi::OsString| name.to_string_lossy().contains("before-");
    let copies = std::fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(copies.filter(names).count(), 0, "no copy was made of what was not mended");

    let before = std::fs::read(&state).unwrap();
    let said = place.shows(&["reset", "attachments.json", FILES, "--yes"]);
    assert!(
        said.contains("the next run asks for everything") && said.contains("done; the copy made before: "),
        "{said}"
    );
    assert!(std::fs::read(&state).unwrap() != before);
    let copy = std::fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let copy = copy.into_iter().find(|path| path.to_string_lossy().contains("before-reset")).unwrap();
    assert_eq!(std::fs::read(copy).unwrap(), before);
}

#[test]
fn worker_states_are_compared_as_stores_are_and_with_stores() {
    let place = Place::new();
    fixture(&place, "data");
    fixture(&place, "attachments");
    let diff = |a: &str, b: &str| place.shows(&["diff", a, b, "--unit", FILES]);
    assert_eq!(diff("data.json", "data.json"), "nothing differs\n");
    // The README of the fixtures describes these two moments: 4 of the 12 attachments are done, 3 of them settled.
    let said = diff("data.json", "attachments.json");
    for line in [
        "acme/files: run: phase: data -> attachments",
        "acme/files: run: attachments settled: 0 -> 3",
        "acme/files: run: attachments left: 12 -> 8",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    let back = diff("attachments.json", "data.json");
    assert!(back.lines().any(|line| line == "acme/files: run: attachments settled: 3 -> 0"), "{back}");
    // The store was left at the moment of the worker state, which has no messages.
    let said = diff("state.redb", "attachments.json");
    assert!(said.contains("acme/files: messages kept: ") && !said.contains("attachments settled"), "{said}");
    let (code, _, stderr) = place.says(&["diff", "state.redb", "attachments.json"]);
    assert!(
        code == Some(2) && stderr.contains("does not contain the name of its unit: use --unit"),
        "{stderr}"
    );
}
