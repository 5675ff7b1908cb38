//! Invariant 4: the watermark never runs ahead. It moves only when a run is finished: to the time when that run
//! started, or to now if the clock has stepped back before that. The same holds for bookmarks.

use std::path::Path;
use std::time::Duration;

use crate::world::{Source, World, event_of, event_with, page_of};
use chrono::{DateTime, TimeDelta, Utc};
use highwater::airdrop::{Context, OutcomeKind, Serve};
use highwater::{Clock, Error, Page, Run, Store, VirtualClock, limits};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

fn noon() -> DateTime<Utc> {
    "2026-01-02T12:00:00.000007Z".parse().unwrap()
}

fn at(minutes: i64) -> DateTime<Utc> {
    noon() + TimeDelta::minutes(minutes)
}

fn open(path: &Path, clock: &VirtualClock) -> Store {
    Store::options().clock(clock.clone()).open(path).unwrap()
}

/// Reads a stream to its end, leaving a bookmark there.
fn read(run: &Run, stream: &str, bookmark: Option<&str>) {
    let fetch = |_: Option<u32>| -> Result<Page<u32>, Error> {
        let page = Page::last();
        Ok(match bookmark {
            Some(bookmark) => page.bookmark(&bookmark),
            None => page,
        })
    };
    assert_eq!(run.batches(stream, fetch).count(), 0);
}

#[test]
fn the_watermark_is_the_start_of_the_last_finished_run_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let clock = VirtualClock::at(noon());
    {
        let unit = open(&path, &clock).sync_unit("acme/tickets").unwrap();
        assert_eq!(unit.watermark().unwrap(), None);
        let run = unit.begin().unwrap();
        assert_eq!((run.since(), run.started_at(), run.resumed()), (None, noon(), false));
    }
    // The start is kept when the run is taken up, in another process and in the same one.
    clock.advance(7 * MINUTE);
    let unit = open(&path, &clock).sync_unit("acme/tickets").unwrap();
    drop(unit.begin().unwrap());
    clock.advance(MINUTE);
    let run = unit.begin().unwrap();
    assert_eq!((run.since(), run.started_at(), run.resumed()), (None, noon(), true));
    assert_eq!(unit.watermark().unwrap(), None, "nothing is finished");
    run.finish().unwrap();
    assert_eq!(unit.watermark().unwrap(), Some(noon()));
    drop(unit);

    let unit = open(&path, &clock).sync_unit("acme/tickets").unwrap();
    assert_eq!(unit.watermark().unwrap(), Some(noon()));
    let run = unit.begin().unwrap();
    assert_eq!((run.since(), run.started_at()), (Some(noon()), at(8)));
    // `since` does not move within a run, whatever else happens.
    clock.advance(60 * MINUTE);
    drop(run);
    let run = unit.begin().unwrap();
    assert_eq!((run.since(), run.started_at(), run.resumed()), (Some(noon()), at(8), true));
    run.finish().unwrap();
    assert_eq!(unit.watermark().unwrap(), Some(at(8)));
}

#[test]
fn a_clock_that_steps_back_before_the_finish_gives_the_earlier_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = VirtualClock::at(noon());
    let unit = open(&dir.path().join("state.redb"), &clock).sync_unit("unit").unwrap();
    let run = unit.begin().unwrap();
    clock.step_to(at(-90));
    run.finish().unwrap();
    assert_eq!(unit.watermark().unwrap(), Some(at(-90)));
    assert_eq!(unit.begin().unwrap().since(), Some(at(-90)));
}

#[test]
fn a_watermark_of_a_bad_clock_is_not_used_and_the_latest_past_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let clock = VirtualClock::at(noon());
    let unit = open(&dir.path().join("state.redb"), &clock).sync_unit("unit").unwrap();
    let finished_at = |minutes: i64| {
        clock.step_to(at(minutes));
        unit.begin().unwrap().finish().unwrap();
    };
    // Nothing of the past is known yet: everything.
    finished_at(1_000_000);
    clock.step_to(at(0));
    let run = unit.begin().unwrap();
    assert_eq!((run.since(), run.ignored_watermark()), (None, Some(at(1_000_000))));
    run.finish().unwrap();

    finished_at(10);
    finished_at(5);
    finished_at(2_000_000);
    clock.step_to(at(20));
    let run = unit.begin().unwrap();
    assert_eq!((run.since(), run.ignored_watermark()), (Some(at(10)), Some(at(2_000_000))));
    // It is said in every life of the run, however the clock goes on.
    drop(run);
    clock.step_to(at(3_000_000));
    let run = unit.begin().unwrap();
    assert_eq!((run.since(), run.ignored_watermark()), (Some(at(10)), Some(at(2_000_000))));
    assert_eq!(unit.watermark().unwrap(), Some(at(2_000_000)), "it is what the last finished run left");
    clock.step_to(at(21));
    run.finish().unwrap();
    assert_eq!(unit.watermark().unwrap(), Some(at(20)));

    // Up to the limit a clock may differ from the one before.
    finished_at(100);
    let ahead = TimeDelta::from_std(limits::CLOCK_AHEAD_MAX).unwrap();
    clock.step_to(at(100) - ahead);
    let run = unit.begin().unwrap();
    assert_eq!((run.since(), run.ignored_watermark()), (Some(at(100)), None));
    assert!(unit.abandon().unwrap());
    clock.step_to(at(100) - ahead - TimeDelta::microseconds(1));
    assert_eq!(unit.begin().unwrap().ignored_watermark(), Some(at(100)));
}

#[test]
fn the_overlap_is_taken_off_since_and_not_off_the_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let clock = VirtualClock::at(noon());
    let options = Store::options().clock(clock.clone()).overlap(3 * MINUTE);
    let unit = options.open(dir.path().join("state.redb")).unwrap().sync_unit("unit").unwrap();
    for minutes in [0, 60, 120] {
        clock.step_to(at(minutes));
        let run = unit.begin().unwrap();
        // Once, not once more for each run.
        assert_eq!(run.since(), (minutes > 0).then(|| at(minutes - 63)));
        run.finish().unwrap();
        assert_eq!(unit.watermark().unwrap(), Some(at(minutes)));
    }
}

#[test]
fn bookmarks_move_only_when_the_run_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let clock = VirtualClock::at(noon());
    let store = open(&dir.path().join("state.redb"), &clock);
    let (unit, other) = (store.sync_unit("unit").unwrap(), store.sync_unit("unit2").unwrap());
    let bookmarks = |run: &Run| ["a", "b"].map(|stream| run.bookmark::<String>(stream).unwrap());
    let some = |bookmark: &str| Some(bookmark.to_owned());

    let run = unit.begin().unwrap();
    read(&run, "a", Some("a1"));
    read(&run, "b", Some("b1"));
    assert_eq!(bookmarks(&run), [None, None], "it is for the next run");
    let run = unit.begin().unwrap();
    assert_eq!(bookmarks(&run), [None, None], "and this is the same one");
    run.finish().unwrap();

    let run = unit.begin().unwrap();
    assert_eq!(bookmarks(&run), [some("a1"), some("b1")]);
    read(&run, "a", Some("a2"));
    assert_eq!(bookmarks(&run), [some("a1"), some("b1")]);
    assert!(unit.abandon().unwrap());

    let run = unit.begin().unwrap();
    assert_eq!(bookmarks(&run), [some("a1"), some("b1")], "an abandoned run leaves none");
    read(&run, "a", None);
    read(&run, "b", Some("b3"));
    run.finish().unwrap();

    let run = unit.begin().unwrap();
    assert_eq!(bookmarks(&run), [some("a1"), some("b3")], "a stream that leaves none keeps its own");
    assert_eq!(bookmarks(&other.begin().unwrap()), [None, None]);
    let error = run.bookmark::<u64>("a").unwrap_err();
    assert_eq!(error.to_string(), "the bookmark of stream a of unit does not have the requested type");
}

#[test]
fn an_abandoned_run_and_another_unit_leave_the_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let clock = VirtualClock::at(noon());
    let store = open(&dir.path().join("state.redb"), &clock);
    let (unit, other) = (store.sync_unit("unit").unwrap(), store.sync_unit("unit2").unwrap());
    unit.begin().unwrap().finish().unwrap();
    clock.advance(MINUTE);
    drop(unit.begin().unwrap());
    assert!(unit.abandon().unwrap());
    clock.advance(MINUTE);
    other.begin().unwrap().finish().unwrap();
    assert_eq!(unit.watermark().unwrap(), Some(noon()));
    assert_eq!(other.watermark().unwrap(), Some(at(2)));
    assert_eq!(unit.begin().unwrap().since(), Some(noon()));
    other.delete().unwrap();
    assert_eq!((other.watermark().unwrap(), unit.watermark().unwrap()), (None, Some(noon())));
    assert_eq!(other.begin().unwrap().since(), None);
}

#[test]
fn two_imports_of_one_project_do_not_share_a_watermark() {
    let world = World::new(5);
    let sync = |unit: &str, run: &str| {
        let mut since = None;
        let mut source = Source::new(|context: &Context, stream: &str, _| {
            since = context.since();
            Ok(page_of(stream, 0, 1, 1))
        });
        for event_type in ["EXTRACTION_DATA_START", "EXTRACTION_ATTACHMENTS_START"] {
            // Both name the same external sync unit.
            let event = event_of(unit, event_type, run, &format!("{run}-{event_type}"));
            assert_eq!(world.serve(&mut source, &event).unwrap().kind, OutcomeKind::Done);
        }
        drop(source);
        since
    };
    let started = world.clock.now();
    assert_eq!(sync("import-a", "run-1"), None);
    world.clock.advance(MINUTE);
    assert_eq!(sync("import-b", "run-2"), None, "the other import has everything to extract still");
    world.clock.advance(MINUTE);
    assert_eq!(sync("import-a", "run-3"), Some(started));
    let watermark = |unit: &str| world.store.sync_unit(unit).unwrap().watermark().unwrap().unwrap();
    assert!(watermark("import-a") > watermark("import-b"));
}

/// What an extractor is told of where to begin: since, bookmark, start of the window.
type Told = (Option<DateTime<Utc>>, Option<String>, Option<DateTime<Utc>>);

/// Serves one event whose context also has these members, and returns what the context told each page. A stream has two
/// pages, the last with a bookmark; an invocation has time for one.
fn told(world: &World, event_type: &str, run: &str, asked: &Value) -> (OutcomeKind, Vec<Told>) {
    let mut heard = Vec::new();
    let mut source = Source::new(|context: &Context, stream: &str, cursor: Option<u32>| {
        let from = context.window().and_then(|window| window.from);
        heard.push((context.since(), context.bookmark(stream).unwrap(), from));
        let page = page_of(stream, cursor.unwrap_or(0), 2, 1);
        Ok(if cursor.is_some() { page.bookmark(&run) } else { page })
    });
    let request = format!("{run}-{event_type}");
    let mut context = json!({
        "run_id": run, "request_id": request, "sequence_version": request, "sync_unit_id": "unit",
    });
    for (key, value) in asked.as_object().unwrap() {
        context[key] = value.clone();
    }
    let kind = world.serve(&mut source, &event_with(event_type, &context)).unwrap().kind;
    drop(source);
    (kind, heard)
}

#[test]
fn a_run_that_is_asked_for_more_than_the_watermark_is_told_so_in_every_life() {
    const START: &str = "EXTRACTION_DATA_START";
    const CONTINUE: &str = "EXTRACTION_DATA_CONTINUE";
    const END: &str = "EXTRACTION_ATTACHMENTS_START";
    let early = at(-10_000);
    let absolute = |at: DateTime<Utc>| json!({ "type": "absolute_time", "value": at.to_rfc3339() });
    let incremental = |mut more: Value| {
        more["mode"] = json!("INCREMENTAL");
        more
    };
    // What is asked for, and since when something is wanted; none where it is since the watermark.
    let cases = [
        (json!({}), None),
        (incremental(json!({})), None),
        (incremental(json!({ "reset_extract_from": true })), Some(None)),
        (
            incremental(json!({ "reset_extract_from": true, "extract_from": early.to_rfc3339() })),
            Some(Some(early)),
        ),
        (json!({ "mode": "INITIAL" }), Some(None)),
        (json!({ "mode": "INITIAL", "extract_from": early.to_rfc3339() }), Some(Some(early))),
        (incremental(json!({ "extraction_start_time": absolute(early) })), Some(Some(early))),
        (
            incremental(json!({ "extraction_start_time": { "type": "unbounded" } })),
            Some(Some(DateTime::UNIX_EPOCH)),
        ),
        // Where an import began is said with every event: without a reset it does not count any more.
        (incremental(json!({ "extract_from": early.to_rfc3339() })), None),
    ];
    for (asked, back) in cases {
        for disk in ["kept", "killed", "lost"] {
            let mut world = World::new(5);
            let serve = Serve::new().inline(7).budget(Duration::ZERO);
            world.serve = if disk == "lost" { serve.checkpoints() } else { serve };
            let nothing = json!({});
            let run_of = |world: &mut World, run: &str, asked: &Value| {
                let (kind, mut heard) = told(world, START, run, asked);
                assert_eq!((kind, heard.len()), (OutcomeKind::Progress, 1));
                match disk {
                    "killed" => world.restart(),
                    "lost" => world.lose_disk(),
                    _ => {}
                }
                world.clock.advance(MINUTE);
                // What asked for it is not repeated.
                let (kind, more) = told(world, CONTINUE, run, &nothing);
                assert_eq!((kind, more.len()), (OutcomeKind::Done, 1));
                heard.extend(more);
                assert_eq!(told(world, END, run, &nothing), (OutcomeKind::Done, Vec::new()));
                assert_eq!(heard[0], heard[1], "{asked}, disk {disk}");
                heard.remove(0)
            };
            let first = world.clock.now();
            assert_eq!(run_of(&mut world, "run-1", &nothing), (None, None, None));
            let second = world.clock.now();
            let expected = match back {
                None => (Some(first), Some("run-1".to_owned()), Some(first)),
                Some(from) => (from, None, from),
            };
            assert_eq!(run_of(&mut world, "run-2", &asked), expected, "{asked}, disk {disk}");
            // And the run after it goes on from there.
            let expected = (Some(second), Some("run-2".to_owned()), Some(second));
            assert_eq!(run_of(&mut world, "run-3", &nothing), expected, "{asked}, disk {disk}");
        }
    }
    // A start after the watermark leaves nothing out, and a first run wants everything whatever its window.
    let world = World::new(5);
    let late = json!({ "extraction_start_time": absolute(at(-1)) });
    assert_eq!(told(&world, START, "run-1", &late).1[0], (None, None, Some(at(-1))));
    told(&world, END, "run-1", &json!({}));
    let watermark = world.clock.now();
    world.clock.advance(10 * MINUTE);
    let late = json!({ "extraction_start_time": absolute(at(5)) });
    assert_eq!(
        told(&world, START, "run-2", &late).1[0],
        (Some(watermark), Some("run-1".to_owned()), Some(at(5)))
    );
}

/// What happens to a unit, in whichever order.
#[derive(Debug, Clone, Copy)]
enum Act {
    Begin,
    Finish,
    Abandon,
    Reopen,
    /// The clock goes on, or steps, by so many seconds.
    Clock(i64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Begin),
        3 => Just(Act::Finish),
        1 => Just(Act::Abandon),
        1 => Just(Act::Reopen),
        2 => (0..400_i64).prop_map(Act::Clock),
        2 => (-2000..2000_i64).prop_map(Act::Clock),
    ]
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 40,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/watermark.txt",
        ))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// Against the rules of the design, as a list of finished runs.
    #[test]
    fn since_is_the_last_usable_watermark_whatever_the_clock_does(acts in vec(act(), 1..60)) {
        let mut world = World::new(1);
        let mut left: Vec<DateTime<Utc>> = Vec::new();
        let mut open: Option<(DateTime<Utc>, Option<DateTime<Utc>>)> = None;
        for act in acts {
            let unit = world.store.sync_unit("unit").unwrap();
            let now = world.clock.now();
            match act {
                Act::Clock(seconds) => world.clock.step_to(now + TimeDelta::seconds(seconds)),
                Act::Reopen => world.restart(),
                Act::Abandon => assert_eq!(unit.abandon().unwrap(), open.take().is_some()),
                Act::Begin | Act::Finish => {
                    let run = unit.begin().unwrap();
                    let usable = |at: &DateTime<Utc>| *at <= now + limits::CLOCK_AHEAD_MAX;
                    let past = || left.iter().filter(|at| **at <= now).max().copied();
                    let expected = left.last().copied().filter(usable).or_else(past);
                    let ignored = left.last().copied().filter(|at| !usable(at));
                    let is_new = open.is_none();
                    let (started, since) = *open.get_or_insert((now, expected));
                    assert_eq!((run.started_at(), run.since(), run.resumed()), (started, since, !is_new));
                    if is_new {
                        assert_eq!(run.ignored_watermark(), ignored);
                    }
                    if matches!(act, Act::Finish) {
                        run.finish().unwrap();
                        left.push(started.min(now));
                        open = None;
                    }
                }
            }
            let unit = world.store.sync_unit("unit").unwrap();
            assert_eq!(unit.watermark().unwrap(), left.last().copied());
        }
    }
}
