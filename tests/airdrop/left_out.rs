//! Records that come again, through `serve`: those that a run announces once, and those at the edge of the run before
//! it. What is left out is counted, by the reason; what changed is announced, however little time lies between; and
//! what was read is announced or left out at every DONE, wherever the process dies, on a disk and without one.
//!
//! What a run reads is the test's own list of pages, and what it announces is what the test's platform was told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::world::{Call, Source, World, event, event_with};
use chrono::{DateTime, TimeDelta, Utc};
use highwater::airdrop::{Context, Outcome, OutcomeKind, SavedState};
use highwater::mend::{Mend, RewindTo};
use highwater::{LeftOutCounts, Page, Record, VirtualClock};
use serde_json::{Value, json};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";
/// An invocation has 10 minutes, so each run takes several invocations.
const PAGE_TAKES: Duration = Duration::from_secs(4 * 60);

/// An issue: its id, which version of it, and how many seconds after noon it was modified.
type Issue = (&'static str, u32, i64);

/// A page: its issues, and its users, whom other pages bring too.
type Brought = (&'static [Issue], &'static [&'static str]);

/// The first run starts at noon. What is modified from then on comes again in the second run.
const FIRST: &[Brought] = &[
    (&[("A-0", 1, -60), ("A-1", 1, -1), ("A-2", 1, 0)], &["ada", "bob"]),
    (&[("A-3", 1, 5), ("A-4", 1, 5), ("A-5", 1, 5)], &["bob", "ada", "cy"]),
    (&[("A-6", 1, 300)], &["ada", "cy", "ada"]),
];
/// `A-3` was changed within the second in which it was read, `A-5` later; `B-0` is new, and modified while the second
/// run reads.
const SECOND: &[Brought] = &[
    (&[("A-2", 1, 0), ("A-3", 2, 5), ("A-4", 1, 5)], &["ada", "bob"]),
    (&[("A-5", 2, 900), ("A-6", 1, 300), ("B-0", 1, 4_700)], &["ada", "dot", "bob"]),
];
/// After a run that announced `A-3` in another version and was given up: it is again what it was.
const CHANGED_BACK: &[Brought] = &[(&[("A-2", 1, 0), ("A-3", 1, 5), ("A-4", 1, 5)], &[])];

/// What is read again unchanged in the second run.
const UNCHANGED: [&str; 3] = ["A-2", "A-4", "A-6"];

fn noon() -> DateTime<Utc> {
    "2026-01-02T12:00:00Z".parse().unwrap()
}

/// How pages mark records that come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// Users are announced once, and issues that are unchanged are left out.
    Both,
    /// Nothing: everything is announced as often as it comes.
    Nothing,
}

fn source(pages: &'static [Brought], says: Says, clock: &VirtualClock) -> Source<'static> {
    let clock = clock.clone();
    Source::new(move |_: &Context, _: &str, cursor: Option<u32>| {
        clock.advance(PAGE_TAKES);
        let at = cursor.unwrap_or(0);
        let (issues, users) = pages[usize::try_from(at).unwrap()];
        let is_last = usize::try_from(at).unwrap() + 1 == pages.len();
        let mut page = if is_last { Page::last() } else { Page::more(at + 1) };
        for (id, version, seconds) in issues {
            let record = Record::new(*id, &json!({ "version": version })).unwrap();
            page.push("issues", record.modified(noon() + TimeDelta::seconds(*seconds)));
        }
        if says == Says::Both {
            page.set_leave_out_unchanged("issues");
        }
        for user in users {
            let record = Record::new(*user, &json!({ "name": user })).unwrap();
            match says {
                Says::Both => page.push_once("users", record),
                Says::Nothing => page.push("users", record),
            }
        }
        Ok(page)
    })
}

/// The worlds that everything holds in: with a disk, and on a new machine for each event.
fn worlds() -> [(World, bool); 2] {
    let mut with = World::new(2);
    with.serve = with.serve.clone().without_attachments_phase();
    let mut without = World::new(2);
    without.serve = without.serve.clone().checkpoints().without_attachments_phase();
    [(with, false), (without, true)]
}

fn next_process(world: &mut World, loses_disk: bool) {
    if loses_disk { world.lose_disk() } else { world.restart() }
}

/// By item type: how many records were read, repeated, unchanged and announced.
type Books = BTreeMap<String, [u64; 4]>;

/// A run from its START to its DONE. If the process dies, the next one is given the same event. Says how the run
/// ended, what the books then were, and whether it died on the way.
fn run(world: &mut World, loses_disk: bool, source: &mut Source<'_>, name: &str) -> (Outcome, Books, bool) {
    let mut died = false;
    let mut before = LeftOutCounts::default();
    for number in 0..20 {
        let event_type = if number == 0 { DATA } else { DATA_ON };
        let event = event(event_type, name, &format!("{name}-{number}"));
        let outcome = world.serve(source, &event).or_else(|error| {
            assert!(world.disk.is_dead(), "{error}");
            died = true;
            next_process(world, loses_disk);
            world.serve(source, &event)
        });
        let outcome = outcome.unwrap();
        is_whole(world);
        // It is what the run has left out so far, in every invocation.
        let now = outcome.left_out;
        assert!(now.repeated >= before.repeated && now.unchanged >= before.unchanged, "{now:?} {before:?}");
        before = now;
        let books = match outcome.kind {
            OutcomeKind::Done => Some(books(world, name)),
            OutcomeKind::Progress => None,
            kind => panic!("{kind:?}: {:?}", outcome.error_text()),
        };
        next_process(world, loses_disk);
        if let Some(books) = books {
            return (outcome, books, died);
        }
    }
    panic!("{name} does not end");
}

/// The store's own check.
fn is_whole(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(&path, world.disk.image().to_bytes()).unwrap();
    assert_eq!(highwater::inspect::check(&path).unwrap().findings, []);
}

/// The issues that a run announced, each with its version, and the users; sorted.
fn announced(world: &World, run: &str) -> (Vec<(String, u64)>, Vec<String>) {
    // No artifact is in two messages, and messages count its records right.
    world.airdrop.announced(run);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of_issue = |line: &Value| (text(&line["id"]), line["data"]["version"].as_u64().unwrap());
    let mut issues: Vec<_> = world.airdrop.lines_of(run, "issues").iter().map(of_issue).collect();
    let mut users: Vec<_> =
        world.airdrop.lines_of(run, "users").iter().map(|line| text(&line["id"])).collect();
    issues.sort();
    users.sort();
    (issues, users)
}

fn issues(pages: &[Brought], but: &[&str]) -> Vec<(String, u64)> {
    let all = pages.iter().flat_map(|(issues, _)| *issues).filter(|(id, ..)| !but.contains(id));
    let mut all: Vec<_> = all.map(|(id, version, _)| ((*id).to_owned(), u64::from(*version))).collect();
    all.sort();
    all
}

/// Each user that pages bring, once; and how often one is brought again.
fn users(pages: &[Brought]) -> (Vec<String>, u64) {
    let all: Vec<_> = pages.iter().flat_map(|(_, users)| *users).map(|id| (*id).to_owned()).collect();
    let each: BTreeSet<_> = all.iter().cloned().collect();
    let repeated = (all.len() - each.len()) as u64;
    (each.into_iter().collect(), repeated)
}

/// The books of a run that is over, by item type: read is announced and left out, to the last record.
fn books(world: &World, run: &str) -> Books {
    let report = world.store.report("unit", 100).unwrap().unwrap();
    let over = report.ledger.iter().find(|over| over.run == run).unwrap();
    let of = over.item_types.iter().map(|counts| {
        let left_out = counts.skipped + counts.rejected + counts.repeated + counts.unchanged;
        assert_eq!(counts.read, left_out + counts.announced, "{counts:?}");
        (counts.item_type.clone(), [counts.read, counts.repeated, counts.unchanged, counts.announced])
    });
    of.collect()
}

fn left_out(outcome: &Outcome) -> (u64, u64) {
    let LeftOutCounts { skipped, rejected, repeated, unchanged, .. } = outcome.left_out;
    assert_eq!((skipped, rejected), (0, 0));
    (repeated, unchanged)
}

/// Two runs, of which the process dies in one, at one call; says whether it did.
fn two_runs(world: &mut World, loses_disk: bool, kill: Option<(&str, Call, u64)>) -> bool {
    let case = format!("{kill:?}, loses its disk: {loses_disk}");
    let mut died = false;
    for (name, pages, unchanged) in [("a", FIRST, &[][..]), ("b", SECOND, &UNCHANGED[..])] {
        if let Some((_, call, skip)) = kill.filter(|(run, ..)| *run == name) {
            world.airdrop.kill_at(call, skip, &world.disk);
        }
        let mut source = source(pages, Says::Both, &world.clock);
        let (outcome, books, killed) = run(world, loses_disk, &mut source, name);
        died |= killed;
        let (each, repeated) = users(pages);
        let expected = (issues(pages, unchanged), each.clone());
        assert_eq!(announced(world, name), expected, "{case}, run {name}");
        assert_eq!(left_out(&outcome), (repeated, unchanged.len() as u64), "{case}, run {name}");
        let read = pages.iter().map(|(issues, _)| issues.len() as u64).sum::<u64>();
        let unchanged = unchanged.len() as u64;
        let of_users = each.len() as u64;
        let expected = [
            ("issues".to_owned(), [read, 0, unchanged, read - unchanged]),
            ("users".to_owned(), [of_users + repeated, repeated, 0, of_users]),
        ];
        assert_eq!(books, expected.into(), "{case}, run {name}");
        world.clock.advance(Duration::from_secs(3_600));
    }
    died
}

#[test]
fn what_comes_again_is_left_out_and_counted_and_what_changed_in_the_same_second_is_announced() {
    for (mut world, loses_disk) in worlds() {
        assert!(!two_runs(&mut world, loses_disk, None));
    }
}

#[test]
fn wherever_the_process_dies_what_comes_again_is_announced_once_and_what_changed_is_not_missed() {
    for at in 0..worlds().len() {
        let mut kills = 0;
        for run in ["a", "b"] {
            for call in [Call::Upload, Call::Confirm, Call::Send, Call::SaveState] {
                for skip in 0.. {
                    let [first, second] = worlds();
                    let (mut world, loses_disk) = if at == 0 { first } else { second };
                    if !two_runs(&mut world, loses_disk, Some((run, call, skip))) {
                        break;
                    }
                    kills += 1;
                }
            }
        }
        println!("world {at}: {kills} kills");
        assert!(kills >= 20, "world {at}: {kills}");
    }
}

/// The negative control: that the pages say so is what leaves records out.
#[test]
fn of_pages_that_say_nothing_everything_is_announced_as_often_as_it_comes() {
    for (mut world, loses_disk) in worlds() {
        for (name, pages) in [("a", FIRST), ("b", SECOND)] {
            let mut source = source(pages, Says::Nothing, &world.clock);
            let (outcome, ..) = run(&mut world, loses_disk, &mut source, name);
            let (found, of_users) = announced(&world, name);
            assert_eq!(found, issues(pages, &[]));
            let brought: usize = pages.iter().map(|(_, users)| users.len()).sum();
            assert_eq!((of_users.len(), left_out(&outcome)), (brought, (0, 0)));
            world.clock.advance(Duration::from_secs(3_600));
        }
    }
}

/// Mends a unit where its state is.
fn mend(world: &World, loses_disk: bool, mend: &Mend) {
    if loses_disk {
        let state = SavedState::read(&world.airdrop.state_text(), "unit").unwrap();
        let plan = state.store().plan("unit", mend).unwrap();
        state.store().mend(&plan, "a test").unwrap();
        world.airdrop.set_state_text(&state.to_text().unwrap());
    } else {
        let plan = world.store.plan("unit", mend).unwrap();
        world.store.mend(&plan, "a test").unwrap();
    }
}

/// A unit is set back to get everything again: what a later run announced is not a reason to leave a record out.
#[test]
fn a_run_after_a_reset_or_a_rewind_leaves_nothing_out_as_unchanged() {
    let reset = Mend::Reset { keep_attachments: false, drop_values: false };
    let rewind = Mend::Rewind { to: RewindTo::Run("a".to_owned()) };
    // The control: if it is not set back, `B-0` is unchanged since the second run.
    for (set_back, unchanged) in [(None, &["B-0"][..]), (Some(reset), &[]), (Some(rewind), &[])] {
        for (mut world, loses_disk) in worlds() {
            assert!(!two_runs(&mut world, loses_disk, None));
            if let Some(set_back) = &set_back {
                mend(&world, loses_disk, set_back);
                next_process(&mut world, loses_disk);
            }
            let mut again = source(SECOND, Says::Both, &world.clock);
            let (outcome, ..) = run(&mut world, loses_disk, &mut again, "c");
            let (each, repeated) = users(SECOND);
            assert_eq!(announced(&world, "c"), (issues(SECOND, unchanged), each), "{set_back:?}");
            assert_eq!(left_out(&outcome), (repeated, unchanged.len() as u64), "{set_back:?}");
        }
    }
}

/// So does a platform that asks for what lies before the watermark.
#[test]
fn a_run_of_an_earlier_window_leaves_nothing_out_as_unchanged() {
    let early = (noon() - TimeDelta::days(1)).to_rfc3339();
    for asked in [
        json!({ "mode": "INITIAL" }),
        json!({ "mode": "INCREMENTAL", "extraction_start_time": { "type": "absolute_time", "value": early } }),
    ] {
        for (mut world, loses_disk) in worlds() {
            let mut first = source(FIRST, Says::Both, &world.clock);
            run(&mut world, loses_disk, &mut first, "a");
            world.clock.advance(Duration::from_secs(3_600));
            world.serve = world.serve.clone().budget(Duration::from_secs(3_600));
            world.serve = world.serve.clone().hard_limit(Duration::from_secs(7_200));
            let mut context = json!({
                "run_id": "b", "request_id": "b", "sequence_version": "b", "sync_unit_id": "unit",
            });
            for (key, value) in asked.as_object().unwrap() {
                context[key] = value.clone();
            }
            let mut second = source(SECOND, Says::Both, &world.clock);
            let outcome = world.serve(&mut second, &event_with(DATA, &context)).unwrap();
            assert_eq!(outcome.kind, OutcomeKind::Done, "{:?}", outcome.error_text());
            assert_eq!(announced(&world, "b").0, issues(SECOND, &[]), "{asked}");
            assert_eq!(outcome.left_out.unchanged, 0, "{asked}");
        }
    }
}

/// A run that is given up may have announced what it had read: the version before that is no longer what the platform
/// has.
#[test]
fn what_a_run_that_was_given_up_announced_in_another_version_is_not_left_out_by_the_next() {
    for (mut world, loses_disk) in worlds() {
        let mut first = source(FIRST, Says::Both, &world.clock);
        run(&mut world, loses_disk, &mut first, "a");
        // `A-3` in another version is announced with PROGRESS; then the platform starts another run.
        let clock = world.clock.clone();
        let mut given_up = Source::new(move |_: &Context, _: &str, _: Option<u32>| {
            clock.advance(Duration::from_secs(11 * 60));
            let record = Record::new("A-3", &json!({ "version": 2 }))?;
            let record = record.modified(noon() + TimeDelta::seconds(5));
            Ok(Page::more(1).leave_out_unchanged("issues").record("issues", record))
        });
        let outcome = world.serve(&mut given_up, &event(DATA, "b", "b")).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Progress);
        assert_eq!(announced(&world, "b").0, [("A-3".to_owned(), 2)]);
        drop(given_up);
        next_process(&mut world, loses_disk);
        let mut third = source(CHANGED_BACK, Says::Both, &world.clock);
        let (outcome, ..) = run(&mut world, loses_disk, &mut third, "c");
        assert_eq!(announced(&world, "c").0, [("A-3".to_owned(), 1)]);
        assert_eq!(left_out(&outcome), (0, 2));
    }
}

/// Each reason by itself, in one run, and the same again when the answer is asked for once more.
#[test]
fn an_outcome_counts_what_is_left_out_by_the_reason() {
    for (mut world, loses_disk) in worlds() {
        world.serve = world.serve.clone().extraction_scope();
        let mut first = source(FIRST, Says::Both, &world.clock);
        run(&mut world, loses_disk, &mut first, "a");
        world.airdrop.set_objects(Some(r#"{"comments":{"extract":false}}"#));
        let mut source = Source::new(|_: &Context, _: &str, _: Option<u32>| {
            let mut page = Page::last().leave_out_unchanged("issues");
            for (id, version) in [("A-2", 1), ("A-3", 2), ("A-4", 1)] {
                let seconds = if id == "A-2" { 0 } else { 5 };
                let record = Record::new(id, &json!({ "version": version }))?;
                page.push("issues", record.modified(noon() + TimeDelta::seconds(seconds)));
            }
            page.reject("issues", "A-9", "it has no status");
            for user in ["ada", "ada", "ada", "ada"] {
                page.push_once("users", Record::new(user, &json!({}))?);
            }
            for comment in 0..5 {
                page.push("comments", Record::new(format!("c{comment}"), &json!({}))?);
            }
            Ok(page)
        });
        source.refetch = Some(Box::new(|_, _| panic!("nothing was rejected before")));
        let (outcome, books, _) = run(&mut world, loses_disk, &mut source, "b");
        let LeftOutCounts { skipped, rejected, repeated, unchanged, .. } = outcome.left_out;
        assert_eq!([skipped, rejected, repeated, unchanged], [5, 1, 3, 2]);
        let all: u64 = books.values().map(|[read, .., announced]| read - announced).sum();
        assert_eq!(all, 11);
        let again = world.serve(&mut source, &event(DATA, "b", "b-0")).unwrap();
        assert!(again.replayed);
        assert_eq!(again.left_out, outcome.left_out);
    }
}
