//! What `highwater-dump` shows of stores of real runs: finished, unfinished, dead, in a delay, with failed
//! attachments.

use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use highwater::airdrop::{
    CheckPolicy, Context, Event, ExternalSyncUnit, Extractor, Listing, OutcomeKind, Serve, SourceError,
};
use highwater::record::{Field, Metadata, RecordType};
use highwater::{Page, Phase, Record, Store, SystemClock};
use highwater_airdrop::{Local, SyncSettings};
use serde_json::{Value, json};

use crate::place::{DUMP, Place, clock, of_kind, store_amid_work, store_with_attachments, upload_all};

#[test]
fn tables_show_what_was_done() {
    let place = Place::new();
    store_amid_work(&place.store());
    let (code, stdout, stderr) = place.says(&["state.redb"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(stdout, @r###"
    sync unit acme/tickets
      run        20260102T040505.000000Z: open, 10 %
      started    2026-01-02T04:05:05Z (30s ago), life 1 of it
      since      2026-01-02T03:04:05Z (1h 1m ago)
      stored     last 2026-01-02T04:05:05Z (30s ago); no process has the store open
      reading    last page 30s ago; 1 records a second over the last minutes
      extracted  3 pages, 3 batches, 2 of them not announced
      on its way 6 records in no batch yet, 1 batch staged (4 records), 1 batch uploaded (4 records)
      watermark  2026-01-02T03:04:05Z (1h 1m ago)
      known      since 2026-01-02T03:04:05Z (1h 1m ago), 2 runs begun

      listings
        listing  phase  pages  records  last page  a second  cursor
        issues   data       3       18  30s ago           1  3

      records, by where they are
        item type  read  open  staged  uploaded  confirmed  announced
        issues       15     3       4         4          0          4
        users         3     3       0         0          0          0

      bookmarks that finished runs left
        listing  bytes  bookmark
        issues       6  "tail"

      the extractor's own values
        key   bytes  value
        seen      1  2

      runs that are over, 1 of 1
        run                      status    over    took  read  announced  deaths  besides
        20260102T030405.000000Z  finished  1h ago  1m       8          8       0  -

    sync unit another
      run        20260102T040505.000000Z: open
      started    2026-01-02T04:05:05Z (30s ago), life 1 of it
      since      everything
      stored     last 2026-01-02T04:05:05Z (30s ago); no process has the store open
      extracted  0 pages, 0 batches, 0 of them not announced
      on its way nothing: what was read is announced
      watermark  none: the next run extracts everything
      known      since 2026-01-02T04:05:05Z (30s ago), 1 run begun
    "###);
}

#[test]
fn a_stream_that_reads_far_more_than_ever_is_shown_first() {
    let place = Place::new();
    let store = Store::open(place.store()).unwrap();
    let unit = store.sync_unit("acme/tickets").unwrap();
    let read = |items: u32| {
        let run = unit.begin().unwrap();
        let fetch = |_: Option<u32>| -> highwater::Result<Page<u32>> {
            let mut page = Page::last();
            for item in 0..items {
                page.push("issues", Record::new(item.to_string(), &json!({}))?);
            }
            Ok(page)
        };
        for batch in run.batches("issues", fetch) {
            let batch = batch.unwrap();
            let id = batch.key().to_string();
            batch.acknowledge(id).unwrap();
        }
        run
    };
    read(900).finish().unwrap();
    for (items, is_told) in [(9_009, false), (12_000, true)] {
        drop(read(items));
        let shown = on_one_line(&place.shows(&["state.redb"]));
        let says = "! issues reads far more than in any finished run before: 12000 records in 1 page, until now at most \
                    900 records in 1 page; see `highwater-dump tail state.redb`, ";
        assert_eq!(shown.contains(says), is_told, "{shown}");
        let (_, json, _) = place.says(&["state.redb", "--json"]);
        assert_eq!(json.contains(r#""far_more_than":{"pages":1,"items":900}"#), is_told, "{json}");
        unit.abandon().unwrap();
    }
}

#[test]
fn json_shows_what_was_done() {
    let place = Place::new();
    store_amid_work(&place.store());
    let (code, stdout, stderr) = place.says(&["state.redb", "--json", "--unit", "acme/tickets"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(stdout, @r###"
    {"kind":"store","version":1,"path":"state.redb","source":"closed","read_at":"2026-01-02T04:05:35Z"}
    {"kind":"unit","sync_unit":"acme/tickets","internal":false,"created_at":"2026-01-02T03:04:05Z","watermark":"2026-01-02T03:04:05Z","runs":2,"messages":0,"messages_kept":0,"messages_undelivered":0,"ledger_runs":1,"attachments_failed":0,"attachments_requeued":0}
    {"kind":"standing","sync_unit":"acme/tickets","read_at":"2026-01-02T04:05:35Z","is_held":false,"last_page_at":"2026-01-02T04:05:05Z","recent":{"pages":3,"items":18,"seconds":30.0},"whole":null,"open_items":6,"staged":{"batches":1,"items":4,"gzip_bytes":373},"uploaded":{"batches":1,"items":4,"gzip_bytes":371},"confirmed":{"batches":0,"items":0,"gzip_bytes":0}}
    {"kind":"run","sync_unit":"acme/tickets","run":"20260102T040505.000000Z","status":"open","phase":null,"phases_done":[],"started_at":"2026-01-02T04:05:05Z","ended_at":null,"since":"2026-01-02T03:04:05Z","ignored_watermark":null,"epoch":1,"changed_at":"2026-01-02T04:05:05Z","deaths":0,"lost":false,"pages":3,"batches":3,"open_batches":2,"not_before":null,"delay_seconds":null,"progress_percent":10,"attachments":{"queued":0,"settled":0,"failed":0,"left":0},"events":0,"events_reused":0,"event":null,"event_accepted_at":null,"message":null,"artifacts_max":null}
    {"kind":"stream","sync_unit":"acme/tickets","run":"20260102T040505.000000Z","stream":"issues","phase":"data","pages":3,"items":18,"exhausted":false,"cursor":3,"bookmark":null,"last_page_at":"2026-01-02T04:05:05Z","minutes":[{"at":"2026-01-02T04:05:00Z","pages":3,"items":18}]}
    {"kind":"item_type","sync_unit":"acme/tickets","run":"20260102T040505.000000Z","item_type":"issues","read":15,"skipped":0,"batched":12,"open_items":3,"open_bytes":264,"confirmed":4,"announced":4,"batches":3,"artifacts_announced":1,"announced_bytes":371,"last_artifact":"artifact-1","batches_staged":{"batches":1,"items":4,"gzip_bytes":373},"batches_uploaded":{"batches":1,"items":4,"gzip_bytes":371},"batches_confirmed":{"batches":0,"items":0,"gzip_bytes":0},"batches_announced":{"batches":0,"items":0,"gzip_bytes":0}}
    {"kind":"item_type","sync_unit":"acme/tickets","run":"20260102T040505.000000Z","item_type":"users","read":3,"skipped":0,"batched":0,"open_items":3,"open_bytes":78,"confirmed":0,"announced":0,"batches":0,"artifacts_announced":0,"announced_bytes":0,"last_artifact":null,"batches_staged":{"batches":0,"items":0,"gzip_bytes":0},"batches_uploaded":{"batches":0,"items":0,"gzip_bytes":0},"batches_confirmed":{"batches":0,"items":0,"gzip_bytes":0},"batches_announced":{"batches":0,"items":0,"gzip_bytes":0}}
    {"kind":"bookmark","sync_unit":"acme/tickets","stream":"issues","bytes":6,"bookmark":"tail"}
    {"kind":"value","sync_unit":"acme/tickets","key":"seen","bytes":1,"value":2}
    {"kind":"ledger","sync_unit":"acme/tickets","run":"20260102T030405.000000Z","status":"finished","started_at":"2026-01-02T03:04:05Z","ended_at":"2026-01-02T03:05:05Z","since":null,"watermark":"2026-01-02T03:04:05Z","epoch":1,"deaths":0,"pages":2,"events":0,"events_reused":0,"findings":{"errors":0,"warnings":0},"item_types":[{"item_type":"issues","read":6,"skipped":0,"announced":6,"artifacts":2,"artifact_bytes":568},{"item_type":"users","read":2,"skipped":0,"announced":2,"artifacts":1,"artifact_bytes":75}],"attachments":{"queued":0,"settled":0,"failed":0,"left":0}}
    "###);
}

#[test]
fn attachments_are_counted_and_those_that_failed_are_listed_without_their_urls() {
    let place = Place::new();
    store_with_attachments(&place.store());
    let shown = place.shows(&["state.redb"]);
    assert!(shown.contains("  queue      30 attachments: 1 settled, 25 failed, 4 left\n"), "{shown}");
    assert!(
        shown.contains("  ! 2026-01-02T03:05:05Z (1h ago): 26 attachments failed. 1: 410 10, "),
        "{shown}"
    );
    assert!(shown.contains("\n  attachments that failed, 5 of 26\n"), "{shown}");
    assert!(shown.contains("\n  attachments that failed and are queued again, 1 of 1\n"), "{shown}");
    let all = place.shows(&["attachments", "state.redb"]);
    let row = |text: &str, id: &str| -> Vec<String> {
        let row = text.lines().find(|line| line.trim_start().starts_with(&format!("{id} ")));
        row.map(|row| row.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    };
    // The first line of each, where the last cells are folded.
    assert_eq!(row(&all, "A1")[..8], ["A1", "ISSUE-0", "a.png", "failed", "2", "1h", "1m", "ago"]);
    assert_eq!(row(&all, "A2")[3..5], ["queued", "again"]);
    assert!(row(&all, "A11").contains(&"waiting".to_owned()), "{all}");
    assert!(all.contains(" https://files.example/?...\n"), "{all}");
    let failed = place.shows(&["attachments", "state.redb", "--failed", "--last", "3"]);
    assert_eq!(failed.lines().filter(|line| line.starts_with('A')).count(), 3, "{failed}");
    assert!(row(&failed, "A36").contains(&"failed".to_owned()), "{failed}");
    assert!(row(&failed, "A2").is_empty() && row(&failed, "A11").is_empty(), "{failed}");
    let lines = place.lines(&["attachments", "state.redb", "--json"]);
    let states: Vec<_> = of_kind(&lines, "attachment").iter().map(|line| line["state"].clone()).collect();
    let of = |state: &str| states.iter().filter(|found| **found == state).count();
    assert_eq!((of("failed"), of("requeued"), of("waiting"), states.len()), (26, 1, 4, 31));

    let lines = place.lines(&["state.redb", "--json"]);
    let run = of_kind(&lines, "run")[0];
    assert_eq!(run["attachments"], json!({"queued": 30, "settled": 1, "failed": 25, "left": 4}));
    let ledger = of_kind(&lines, "ledger")[0];
    assert_eq!(ledger["attachments"], json!({"queued": 3, "settled": 1, "failed": 2, "left": 0}));
    let unit = of_kind(&lines, "unit")[0];
    assert_eq!((&unit["attachments_failed"], &unit["attachments_requeued"]), (&json!(26), &json!(1)));
    let failed = of_kind(&lines, "attachment");
    assert_eq!(failed.len(), 6);
    let expected = json!({
        "kind": "attachment", "sync_unit": "acme/tickets", "run": "20260102T030405.000000Z", "id": "A2",
        "parent_id": "ISSUE-1", "file_name": "a.png", "url": "https://files.example/?...",
        "state": "requeued", "requeued": true, "reason": "denied", "tries": 1,
        "failed_at": "2026-01-02T03:04:05Z", "ready_at": null, "artifact_id": null,
    });
    assert_eq!(*failed[5], expected);
    assert_eq!(failed[4]["reason"], "410 26");
    assert!(!shown.contains("secret") && !format!("{lines:?}").contains("secret"));
    assert_eq!(place.shows(&["check", "state.redb"]).lines().count(), 1);
}

/// Names the folder of a worker that is another process.
const WORKER_DIR: &str = "HIGHWATER_TEST_DUMP_WORKER_DIR";
/// Names what it is to do: see [`Issues`].
const WORKER_ACT: &str = "HIGHWATER_TEST_DUMP_WORKER_ACT";

/// A source of issues, page by page; at page 3 it does as it is told.
struct Issues {
    act: String,
}

const PAGES: u32 = 5;

impl Extractor for Issues {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(vec![ExternalSyncUnit::new("project", "Project", "")])
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        let issues = RecordType::new().field("page", Field::int());
        Ok(Metadata::new().record_type("issues", issues).into())
    }

    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Report
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }

    fn page(&self, _: &Context, listing: &Listing, cursor: Option<u32>) -> Result<Page<u32>, SourceError> {
        let at = cursor.unwrap_or(0);
        match self.act.as_str() {
            // Three issues have comments; the comments of the last one make it wait.
            "comment" => {
                let comment = |id: &str| Record::new(format!("COMMENT-{id}"), &json!({ "page": 0 }));
                return match listing.parent() {
                    Some("ISSUE-3") => Err(SourceError::RateLimited { after: Duration::from_secs(600) }),
                    Some(issue) => Ok(Page::last().record("comments", comment(issue)?)),
                    None => Ok(["ISSUE-1", "ISSUE-2", "ISSUE-3"]
                        .iter()
                        .fold(Page::last(), |page, issue| page.child("comments", issue, &()))),
                };
            }
            "die" if at == 3 => std::process::abort(),
            "fail at length" if at == 3 => return Err("\u{a7}".repeat(10_000).into()),
            "fail" if at == 3 => return Err("the tracker says: no such filter \u{1b}[2J".into()),
            // The records of page 3 do not match the metadata, and it is interrupted.
            "odd" if at == 4 => return Err(SourceError::RateLimited { after: Duration::from_secs(600) }),
            "wait" if at == 3 => return Err(SourceError::RateLimited { after: Duration::from_secs(600) }),
            _ => {}
        }
        let mut page = if at + 1 < PAGES { Page::more(at + 1) } else { Page::last() };
        for item in 0..10 {
            let id = format!("ISSUE-{at}-{item}");
            let odd = self.act == "odd" && at == 3;
            let is = if odd { json!("three") } else { json!(at) };
            page.push("issues", Record::new(id, &json!({ "page": is }))?);
        }
        Ok(page)
    }
}

pub(crate) fn settings() -> SyncSettings {
    SyncSettings::new("project").sync_unit_id("import").phases([Phase::Metadata, Phase::Data])
}

/// One invocation of a worker, in `dir`, that does as it is told at page 3; `None`, and the sync is over.
pub(crate) fn invocation(dir: &Path, act: &str) -> Option<OutcomeKind> {
    let clock = SystemClock::new();
    let local = Local::open(dir).unwrap();
    let event = if let Some(event) = local.next_event(&settings(), &clock).unwrap() {
        event
    } else {
        local.begin_sync(&settings(), &clock).unwrap();
        local.next_event(&settings(), &clock).unwrap()?
    };
    let event = Event::from_json(&event.json).unwrap();
    let store = Store::options().batch_items(20).open(dir.join("state.redb")).unwrap();
    let source = Issues { act: act.to_owned() };
    // Page by page, so that it is known what is stored when it dies or fails.
    let serve = Serve::new().without_attachments_phase().ahead(0);
    Some(serve.serve(&store, &local, &source, &event).unwrap().kind)
}

/// Metadata, and then a data phase that does as it is told.
pub(crate) fn run_that(dir: &Path, act: &str) -> Option<OutcomeKind> {
    assert_eq!(invocation(dir, "go on"), Some(OutcomeKind::Done));
    let mut snapshot = highwater::inspect::Snapshot::open(dir.join("state.redb")).unwrap();
    let run = snapshot.unit("import", 0).unwrap().unwrap().run.unwrap();
    assert_eq!((run.epoch, run.deaths), (1, 0), "lives of a run that one invocation worked on");
    invocation(dir, act)
}

#[test]
#[ignore = "runs only as the child of a_death_is_told_by_what_it_may_have_cost"]
fn a_worker_that_dies() {
    let dir = std::env::var(WORKER_DIR).unwrap();
    let act = std::env::var(WORKER_ACT).unwrap();
    match act.strip_prefix("only ") {
        Some(act) => invocation(Path::new(&dir), act),
        None => run_that(Path::new(&dir), &act),
    };
}

/// A worker in another process.
pub(crate) fn worker(dir: &Path, act: &str) -> std::process::ExitStatus {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "screens::a_worker_that_dies", "--ignored", "--nocapture"])
        .env(WORKER_DIR, dir)
        .env(WORKER_ACT, act)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.wait().unwrap()
}

/// The dump of a store that a real clock was with.
fn now(place: &Place, args: &[&str]) -> String {
    let output = place.dump(args).env_remove("HIGHWATER_DUMP_NOW").assert().code(0);
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

/// Text as it was before it was folded.
pub(crate) fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn alert(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("  ! ")).collect()
}

#[test]
fn a_death_is_told_by_what_it_may_have_cost() {
    let place = Place::new();
    let dir = place.dir.path();
    assert!(!worker(dir, "die").success());
    let shown = now(&place, &["state.redb"]);
    let told = alert(&shown);
    assert!(told.len() == 1 && told[0].contains("no process has the store open"), "{shown}");
    let told = on_one_line(&shown);
    assert!(
        told.contains("the newest event is not answered: the extractor was killed, or failed."),
        "{shown}"
    );
    assert!(told.contains("10 records in no batch yet, 1 batch "), "{shown}");
    // The metadata had the first.
    assert!(told.contains(", life 2 of it since everything"), "{shown}");
    let explained = now(&place, &["runs", "state.redb"]);
    assert!(explained.contains("    issues: 30 read = 10 in no batch yet + 20 "), "{explained}");
    assert!(explained.contains(" (batch 2) + 0 announced\n"), "{explained}");
    // What is in no batch is there to be seen, and found.
    let open: Vec<Value> = now(&place, &["batch", "state.redb", "--open", "--item-type", "issues"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ids: Vec<_> = open.iter().map(|record| record["id"].as_str().unwrap()).collect();
    let expected: Vec<_> = (0..10).map(|item| format!("ISSUE-2-{item}")).collect();
    assert_eq!(ids, expected);
    assert_eq!(now(&place, &["batch", "state.redb", "--open", "--item-type", "links"]), "");
    let found = now(&place, &["find", "state.redb", "ISSUE-2-7"]);
    assert_eq!(found.lines().next(), Some("issues: 1 record in no batch yet"), "{found}");

    // The same event again takes the run up.
    assert_eq!(invocation(dir, "go on"), Some(OutcomeKind::Done));
    let shown = now(&place, &["state.redb"]);
    assert_eq!(alert(&shown), Vec::<&str>::new());
    assert!(on_one_line(&shown).contains(", in 3 lives since everything"), "{shown}");
    assert!(
        shown.contains("deaths     1 life of it ended without an answer; the last, life 2: lost at most: "),
        "{shown}"
    );
    let events = now(&place, &["events", "state.redb"]);
    let order: Vec<_> =
        ["1. EXTRACTION_METADATA_START", "2. EXTRACTION_DATA_START", "DEATH of life 2: ", "-> message 2, "]
            .iter()
            .map(|text| events.find(text).unwrap_or_else(|| panic!("{text} in {events}")))
            .collect();
    assert!(order.is_sorted() || order[3] < order[2], "{events}");
    let lines = place.lines(&["events", "state.redb", "--json"]);
    let deaths = of_kind(&lines, "death");
    assert_eq!((deaths.len(), &deaths[0]["epoch"]), (1, &json!(2)));
    assert!(deaths[0]["changed_at"].as_str() <= deaths[0]["found_at"].as_str());
    assert_eq!(of_kind(&lines, "event").len(), 2);
    let runs = place.lines(&["runs", "state.redb", "--json"]);
    let over = of_kind(&runs, "ledger")[0];
    assert_eq!((&over["deaths"], &over["status"]), (&json!(1), &json!("finished")));
    // A run without a death has none.
    run_that(dir, "go on");
    let runs = now(&place, &["runs", "state.redb", "--last", "1"]);
    assert!(!runs.contains("without an answer") && runs.matches("run ").count() == 1, "{runs}");
    assert_eq!(place.shows(&["check", "state.redb"]).lines().count(), 1);
}

#[test]
fn the_last_error_is_said_first_with_its_reason_until_it_is_answered_otherwise() {
    let place = Place::new();
    let dir = place.dir.path();
    assert_eq!(run_that(dir, "fail"), Some(OutcomeKind::Error));
    let shown = now(&place, &["state.redb"]);
    let told = alert(&shown);
    assert!(told[0].starts_with("  ! ERROR "), "{shown}");
    assert!(on_one_line(&shown).contains("message 2, EXTRACTION_DATA_ERROR: "), "{shown}");
    assert!(on_one_line(&shown).contains("the tracker says: no such filter \\u{1b}[2J"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    let events = now(&place, &["events", "state.redb", "--last", "1"]);
    assert!(
        events.contains("EXTRACTION_DATA_ERROR, delivered, after ") && events.contains("no such filter"),
        "{events}"
    );
    let lines = place.lines(&["state.redb", "--json"]);
    let error = of_kind(&lines, "alert")[0];
    assert_eq!(error["what"], "error");
    let text = error["text"].as_str().unwrap();
    assert!(text.contains("no such filter \u{1b}[2J"), "{text}");
    let message =
        of_kind(&lines, "message").into_iter().find(|message| message["answer"] == "error").unwrap();
    assert!(message["error"].as_str().unwrap().contains("no such filter"));

    Local::open(dir).unwrap().begin_sync(&settings(), &SystemClock::new()).unwrap();
    assert_eq!(run_that(dir, "go on"), Some(OutcomeKind::Done));
    assert_eq!(alert(&now(&place, &["state.redb"])), Vec::<&str>::new());
}

#[test]
fn a_long_error_leaves_room_for_the_state_and_is_whole_among_the_events() {
    let place = Place::new();
    assert_eq!(run_that(place.dir.path(), "fail at length"), Some(OutcomeKind::Error));
    let of_it = |args: &[&str]| now(&place, args).matches('\u{a7}').count();
    let (screen, events) = (of_it(&["state.redb"]), of_it(&["events", "state.redb"]));
    assert!((300..500).contains(&screen) && events > 900, "{screen} {events}");
    assert!((300..500).contains(&of_it(&["tail", "state.redb", "--looks", "1"])));
}

#[test]
fn a_delay_is_told_with_the_time_that_is_left() {
    let place = Place::new();
    assert_eq!(run_that(place.dir.path(), "wait"), Some(OutcomeKind::Delay));
    let shown = now(&place, &["state.redb"]);
    let told = alert(&shown);
    assert!(told[0].starts_with("  ! delay until ") && told[0].contains("(in 9m 5"), "{shown}");
    assert!(on_one_line(&shown).contains("the source asked for no requests for 10m"), "{shown}");
    let lines = place.lines(&["state.redb", "--json"]);
    assert_eq!(of_kind(&lines, "alert")[0]["what"], "delay");
    // Who compares it with a store of the next run sees it too.
    let next = place.dir.path().join("next.redb");
    std::fs::copy(place.store(), &next).unwrap();
    let store = Store::open(&next).unwrap();
    let unit = store.sync_unit("import").unwrap();
    unit.abandon().unwrap();
    drop(unit.begin().unwrap());
    drop((unit, store));
    let differs = place.shows(&["diff", "state.redb", "next.redb"]);
    assert!(differs.contains("import: run: delay: 10m -> none\n"), "{differs}");
}

#[test]
fn child_listings_are_counted_by_how_far_they_are() {
    let place = Place::new();
    assert_eq!(run_that(place.dir.path(), "comment"), Some(OutcomeKind::Delay));
    let shown = now(&place, &["state.redb"]);
    let (_, table) = shown.split_once("\n  child listings\n").unwrap_or_else(|| panic!("{shown}"));
    let lines: Vec<Vec<&str>> = table.lines().take(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["listing", "named", "exhausted", "pending", "pages", "records", "bytes", "pending"]
    );
    assert_eq!(lines[1][..6], ["comments", "3", "2", "1", "2", "2"], "{shown}");
    assert!(lines[1][6].parse::<u64>().unwrap() > 0, "{shown}");
}

#[test]
fn a_store_that_is_held_in_silence_is_told_of_and_one_that_works_is_not() {
    let place = Place::new();
    let store = Store::options().clock(crate::place::clock()).open(place.store()).unwrap();
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let as_of = |time: &str| {
        let output = place.dump(&["state.redb"]).env("HIGHWATER_DUMP_NOW", time).assert().code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let shown = as_of("2026-01-02T03:09:05Z");
    assert_eq!(alert(&shown), Vec::<&str>::new(), "{shown}");
    let shown = as_of("2026-01-02T03:09:06Z");
    assert!(alert(&shown)[0].contains("(5m 1s ago): nothing was stored since, although"), "{shown}");
    drop((run, store));
    assert_eq!(alert(&as_of("2026-01-02T03:09:06Z")), Vec::<&str>::new(), "nobody has it open");
}

#[test]
fn runs_say_where_read_and_announced_part_and_in_which_batches() {
    let place = Place::new();
    store_amid_work(&place.store());
    let shown = place.shows(&["runs", "state.redb", "--unit", "acme/tickets"]);
    insta::assert_snapshot!(shown, @r###"
    run 20260102T030405.000000Z: finished 2026-01-02T03:05:05Z (1h ago), after 1m, 2 pages, of
      everything
        item type  read  skipped  rejected  announced  not  artifacts
        issues        6        0         0          6    0          2
        users         2        0         0          2    0          1

    run 20260102T040505.000000Z: open, started 2026-01-02T04:05:05Z (30s ago), 3 pages
        issues: 15 read = 3 in no batch yet + 4 staged (batch 3) + 4 uploaded (batch 2) + 4 announced
        users: 3 read = 3 in no batch yet + 0 announced
    "###);
    assert_eq!(place.shows(&["runs", "state.redb", "--unit", "another"]).lines().count(), 1);
    let (code, _, stderr) = place.says(&["runs", "state.redb"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("2 sync units, choose one: --unit acme/tickets, --unit another"), "{stderr}");
}

#[test]
fn a_record_is_found_in_each_place_where_its_bytes_are_and_else_it_is_said_what_is_out_of_reach() {
    let place = Place::new();
    store_amid_work(&place.store());
    let find = |id: &str| place.shows(&["find", "state.redb", id, "--unit", "acme/tickets"]);
    assert!(
        find("ISSUE-5").starts_with("issues: 1 record in batch 2, which is uploaded\n"),
        "{}",
        find("ISSUE-5")
    );
    assert!(find("ISSUE-9").starts_with("issues: 1 record in batch 3, which is staged\n"));
    assert!(find("ISSUE-14").starts_with("issues: 1 record in no batch yet\n"));
    assert!(find("USER-1").starts_with("users: 1 record in no batch yet\n"));
    // Batch 1 is confirmed, and nobody has a part of an id.
    for id in ["ISSUE-0", "ISSUE-", "5"] {
        let shown = find(id);
        assert!(
            shown.starts_with("not among the records of the newest run whose bytes are stored\n"),
            "{shown}"
        );
        let shown = on_one_line(&shown);
        for says in [
            "not searched: 4 records of run 20260102T040505.000000Z (open) are confirmed (issues: 4), 4 of them announced. The store drops",
            "the same for a record that the platform has and for one that never came",
            "next: the run is open. `highwater-dump state.redb --unit acme/tickets` shows how far its listings are read",
            "`highwater-dump rewind state.redb acme/tickets --to RUN|TIME --dry-run`",
        ] {
            assert!(shown.contains(says), "{shown}");
        }
    }
    let lines = place.lines(&["find", "state.redb", "no", "--unit", "acme/tickets", "--json"]);
    let found = of_kind(&lines, "found")[0];
    assert_eq!(found["confirmed"], json!([{"item_type": "issues", "records": 4}]));
    assert_eq!(found["run"], json!({"run": "20260102T040505.000000Z", "status": "open"}));
    // Where nothing is confirmed, it is known that it did not come.
    let shown = on_one_line(&place.shows(&["find", "state.redb", "ISSUE-0", "--unit", "another"]));
    assert!(
        shown.contains(
            "it has not come in this run so far, or it is out of the extraction scope next: the run is open. "
        ),
        "{shown}"
    );
    let lines = place.lines(&["find", "state.redb", "ISSUE-5", "--unit", "acme/tickets", "--json"]);
    let places = &of_kind(&lines, "found")[0]["places"];
    assert_eq!(*places, json!([{"item_type": "issues", "seq": 2, "state": "uploaded", "records": 1}]));
}

#[test]
fn a_running_extractor_is_followed_and_each_look_tells_what_changed() {
    let place = Place::new();
    let store = Store::options().batch_items(4).open(place.store()).unwrap();
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let mut tail = Process::new(DUMP)
        .current_dir(place.dir.path())
        .args(["tail", "state.redb", "--looks", "3", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(tail.stdout.take().unwrap()));
    let mut next = |kind: &str| loop {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if line["kind"] == kind {
            break line;
        }
    };
    assert_eq!((&next("store")["source"], &next("run")["pages"]), (&json!("copy"), &json!(0)));
    let batch = run.batches("issues", crate::place::pages(2, 3)).next().unwrap().unwrap();
    let seen = next("run");
    assert_eq!(seen["pages"], 2, "it was told by the next look");
    assert_eq!(next("standing")["staged"]["items"], 4);
    drop(batch);
    // Nothing changed since, so the third look has nothing to tell.
    let output = tail.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
    assert!(lines.next().is_none());

    drop((run, store));
    let shown = place.shows(&["tail", "state.redb", "--looks", "1"]);
    assert!(
        shown.contains("acme/tickets: open 10 %, 2 pages, 8 read") && shown.contains("4 staged"),
        "{shown}"
    );
    let (code, _, stderr) = place.says(&["tail", "nothing.redb"]);
    assert!(code == Some(1) && stderr.contains("nothing.redb"), "{stderr}");
    let (code, _, stderr) = place.says(&["tail", "state.redb", "--every", "1"]);
    assert!(code == Some(2) && stderr.contains("1 is not in 2.."), "{stderr}");
    let store = Store::open(place.store()).unwrap();
    assert!(store.sync_unit("acme/tickets").unwrap().abandon().unwrap());
    drop(store);
    assert!(place.shows(&["tail", "state.redb", "--until-over"]).contains("acme/tickets: abandoned"));
}

/// The commands, as the help lists them.
fn commands(place: &Place) -> Vec<String> {
    let help = place.shows(&["help"]);
    let listed = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let names = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn every_command_has_help_with_an_example_that_fits_80_columns() {
    let place = Place::new();
    let commands = commands(&place);
    assert!(commands.len() >= 12 && commands.contains(&"attachments".to_owned()), "{commands:?}");
    for command in commands.iter().filter(|command| *command != "help") {
        let output = place.dump(&["help", command]).env("COLUMNS", "80").assert().code(0);
        let help = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        assert_eq!(help, {
            let output = place.dump(&[command, "--help"]).env("COLUMNS", "80").assert().code(0);
            String::from_utf8(output.get_output().stdout.clone()).unwrap()
        });
        let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("no example: {help}"));
        assert!(examples.contains(&format!("\n  highwater-dump {command} ")), "{help}");
        let wide = help.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{command}");
        let page = place.shows(&["man", command]);
        assert!(page.contains(".TH") && page.contains(command.as_str()), "{page}");
    }
    let output = place.dump(&["--help"]).env("COLUMNS", "80").assert().code(0);
    let help = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert_eq!(help.lines().find(|line| line.chars().count() > 80), None);
    let (code, _, stderr) = place.says(&["man", "nothing"]);
    assert!(code == Some(2) && stderr.contains("no command nothing"), "{stderr}");
}

#[test]
fn completions_and_the_manual_know_every_command() {
    let place = Place::new();
    let texts = [
        place.shows(&["completions", "bash"]),
        place.shows(&["completions", "zsh"]),
        place.shows(&["completions", "fish"]),
        place.shows(&["man"]),
    ];
    for text in texts {
        for command in commands(&place) {
            // In a manual page a hyphen is escaped.
            let escaped = command.replace('-', "\\-");
            assert!(text.contains(&command) || text.contains(&escaped), "{command} in {text}");
        }
    }
    let (code, _, _) = place.says(&["completions", "tcsh"]);
    assert_eq!(code, Some(2));
}

#[test]
fn every_screen_fits_its_width_whatever_the_names_are() {
    let place = Place::new();
    let name = format!("{}\u{202e}<script>", "long-name-".repeat(40));
    let store = Store::options().batch_items(1).open(place.store()).unwrap();
    let run = store.sync_unit(format!("unit {name}")).unwrap().begin().unwrap();
    let reason = format!("{}\u{9b}2J", "x".repeat(10_000));
    let item_type = "t".repeat(250);
    let mut page = Some(
        Page::<u32>::last()
            .record(item_type.as_str(), Record::new(name.clone(), &json!({})).unwrap())
            .record(
                "attachments",
                highwater::record::Attachment::new(
                    name.clone(),
                    "https://files.example/?key=secret",
                    reason.clone(),
                    "P",
                )
                .to_record()
                .unwrap(),
            ),
    );
    for batch in
        run.batches("s".repeat(200), |_: Option<u32>| Ok::<_, highwater::Error>(page.take().unwrap()))
    {
        let batch = batch.unwrap();
        let id = format!("artifact-{}-{}", batch.key().seq, "y".repeat(400));
        batch.uploaded(id).unwrap();
    }
    run.attachments().next().unwrap().unwrap().fail(&reason).unwrap();
    drop((run, store));
    for width in [40, 60, 80, 100, 132] {
        for args in [
            &["state.redb"][..],
            &["runs", "state.redb"],
            &["events", "state.redb"],
            &["attachments", "state.redb"],
            &["batch", "state.redb"],
            &["find", "state.redb", &name],
            &["tail", "state.redb", "--looks", "1"],
        ] {
            let output = place.dump(args).env("COLUMNS", width.to_string()).assert().code(0);
            let shown = String::from_utf8(output.get_output().stdout.clone()).unwrap();
            let wide = shown.lines().find(|line| line.chars().count() > width);
            assert_eq!(wide, None, "{width}, {args:?}");
            let is_unsafe = |c: char| (c.is_control() && c != '\n') || ('\u{200b}'..'\u{2070}').contains(&c);
            assert!(!shown.contains(is_unsafe) && !shown.contains("secret"), "{width}, {args:?}: {shown}");
        }
    }
}

#[test]
fn in_a_pipe_each_row_is_one_line_and_nothing_is_folded() {
    let place = Place::new();
    let store = Store::open(place.store()).unwrap();
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let mut page = Page::<u32>::last();
    for id in ["A1", "A2"] {
        let attachment =
            highwater::record::Attachment::new(id, "https://files.example/1", "a.png", "ISSUE-1");
        page.push("attachments", attachment.to_record().unwrap());
    }
    let mut page = Some(page);
    upload_all(&run, "issues", |_| Ok(page.take().unwrap()));
    let reason = "denied: no permission for this file ".repeat(5);
    run.attachments().for_each(|attachment| attachment.unwrap().fail(reason.trim()).unwrap());
    drop((run, store));
    let listed = |columns: Option<&str>| {
        let mut command = place.dump(&["attachments", "state.redb"]);
        command.env_remove("COLUMNS").envs(columns.map(|columns| ("COLUMNS", columns)));
        String::from_utf8(command.assert().code(0).get_output().stdout.clone()).unwrap()
    };
    // A header and two rows, each with all of its cells.
    let piped = listed(None);
    let row = piped.lines().find(|line| line.starts_with("A2 ")).unwrap();
    assert!(row.contains(reason.trim()) && row.ends_with(" https://files.example/1"), "{piped}");
    assert_eq!(piped.lines().count(), 3, "{piped}");
    assert!(listed(Some("100")).lines().count() > 3, "with a width, the same rows are folded");
}

/// A run that rejects a record; finished, and it is asked for by the next.
pub(crate) fn rejects(place: &Place, finishes: bool) {
    let store = Store::options().clock(crate::place::clock()).open(place.store()).unwrap();
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let fetch = |_: Option<u32>| -> highwater::Result<Page<u32>> {
        let mut page = Page::last().record("issues", Record::new("ISSUE-1", &json!({}))?);
        page.reject("issues", "ISSUE-2", "its parent is \u{202e}gone");
        Ok(page)
    };
    for batch in run.batches("issues", fetch) {
        batch.unwrap().acknowledge("artifact-1").unwrap();
    }
    if finishes {
        run.finish().unwrap();
    }
}

#[test]
fn rejected_records_are_told_of_and_listed_with_their_reasons() {
    for finishes in [false, true] {
        let place = Place::new();
        rejects(&place, finishes);
        let shown = place.shows(&["state.redb"]);
        assert!(
            shown.contains("  ! 1 record rejected, and left out: the next run asks for them. 1: issues: "),
            "{shown}"
        );
        let listed = place.shows(&["rejected", "state.redb"]);
        let row: Vec<_> = listed.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[..2], ["issues", "ISSUE-2"]);
        assert!(listed.contains("its parent is \\u{202e}gone"), "{listed}");
        assert_eq!(place.shows(&["rejected", "state.redb", "--last", "0"]), "none is listed: --last 0\n");
        let lines = place.lines(&["rejected", "state.redb", "--json"]);
        let stage = if finishes { "to_be_asked" } else { "rejected" };
        assert_eq!(of_kind(&lines, "rejected")[0]["stage"], stage);
        let runs = place.shows(&["runs", "state.redb"]);
        let expected = if finishes {
            "    issues        2        0         1          1    0          1\n"
        } else {
            "issues: 2 read = 1 rejected + 1 announced\n"
        };
        assert!(runs.contains(expected), "{runs}");
    }
}

/// Why a record is missing: it was rejected, or it came again and was left out.
#[test]
fn find_tells_what_was_rejected_and_what_was_left_out() {
    let place = Place::new();
    let clock = clock();
    let store = Store::options().clock(clock.clone()).open(place.store()).unwrap();
    let unit = store.sync_unit("acme/tickets").unwrap();
    let fetch = |cursor: Option<u32>| -> highwater::Result<Page<u32>> {
        let mut page = if cursor.is_none() { Page::more(1) } else { Page::last() };
        page.set_leave_out_unchanged("issues");
        let modified: chrono::DateTime<chrono::Utc> = "2026-01-02T05:00:00Z".parse().unwrap();
        page.push("issues", Record::new("SAME", &json!({}))?.modified(modified));
        page.push_once("users", Record::new("ada", &json!({}))?);
        if cursor.is_none() {
            page.reject("issues", "BAD", "it has no status");
        }
        Ok(page)
    };
    let run = unit.begin().unwrap();
    upload_all(&run, "issues", fetch);
    run.finish().unwrap();
    clock.advance(Duration::from_secs(60));
    upload_all(&unit.begin().unwrap(), "issues", fetch);
    for (id, says) in [
        ("BAD", "issues: rejected in this run: it has no status\n"),
        ("ada", "users: it is announced once in this run: whenever it came again, it was left out\n"),
        ("SAME", "issues: the last finished run announced it: it is left out while it is unchanged\n"),
    ] {
        let shown = place.shows(&["find", "state.redb", id]);
        assert!(shown.starts_with(says), "{shown}");
        let found = place.lines(&["find", "state.redb", id, "--json"]);
        let found = of_kind(&found, "found")[0];
        let is_there = |name: &str| found.get(name).is_some_and(|list| list.as_array().unwrap().len() == 1);
        let expected = [id == "BAD", id == "ada", id == "SAME"];
        assert_eq!(["rejected", "once", "at_edge"].map(is_there), expected, "{found}");
    }
    let other = place.shows(&["find", "state.redb", "OTHER"]);
    assert!(other.starts_with("not among the records of the newest run"), "{other}");
}
