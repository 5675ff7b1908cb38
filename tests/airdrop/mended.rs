//! A worker state can be mended as a file: it is restored, mended by the code that mends a store, and written back
//! under a token that no worker has. The next sync finds what the plan said.

use std::time::Duration;

use crate::world::{Call, Source, World, all_of, event, page_of, paged};
use highwater::airdrop::{Context, OutcomeKind, SavedState};
use highwater::limits::CHECKPOINT_BYTES_MAX;
use highwater::mend::{Mend, Plan, Requeue, RewindTo, UnitFile};
use highwater::record::Attachment;
use highwater::{Clock, Error, ErrorKind};
use serde_json::{Value, json};

const METADATA: &str = "EXTRACTION_METADATA_START";
const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";
const ATTACHMENTS: &str = "EXTRACTION_ATTACHMENTS_START";

fn world() -> World {
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    world
}

/// A whole sync, each phase on a new machine.
fn sync(world: &mut World, run: &str) {
    for (phase, request) in [(METADATA, "1"), (DATA, "2"), (ATTACHMENTS, "3")] {
        world.lose_disk();
        let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
            Ok(page_of(stream, cursor.unwrap_or(0), 3, 2).bookmark(&run))
        });
        let outcome = world.serve(&mut source, &event(phase, run, &format!("{run}-{request}"))).unwrap();
        drop(source);
        assert_eq!(outcome.kind, OutcomeKind::Done);
        world.clock.advance(Duration::from_secs(600));
    }
    world.clock.advance(Duration::from_secs(3_600));
}

/// A source that stops after each page, so that a run stays open, and says since when it is asked.
fn slow(world: &World) -> Source<'static> {
    let clock = world.clock.clone();
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        clock.advance(Duration::from_secs(11 * 60));
        Ok(page_of(stream, cursor.unwrap_or(0), 4, 2))
    })
}

/// Mends the worker state of the unit, and puts it back.
fn mend(world: &World, mend: &Mend) -> Plan {
    let before = world.airdrop.state_text();
    let state = SavedState::read(&before, "unit").unwrap();
    let plan = state.store().plan("unit", mend).unwrap();
    state.store().mend(&plan, "a test").unwrap();
    let after = state.to_text().unwrap();
    assert_ne!(token(&before), token(&after), "the holder is another");
    world.airdrop.set_state_text(&after);
    plan
}

fn token(state: &str) -> String {
    let state: Value = serde_json::from_str(state).unwrap();
    crate::world::checkpoint(&state)["token"].as_str().unwrap().to_owned()
}

/// The start of the sync that an event asks the extractor for.
fn since_of_next(world: &mut World, run: &str) -> Option<chrono::DateTime<chrono::Utc>> {
    world.lose_disk();
    let mut since = None;
    let outcome = {
        let mut source = Source::new(|context: &Context, stream: &str, cursor: Option<u32>| {
            since = Some(context.since());
            Ok(page_of(stream, cursor.unwrap_or(0), 3, 2))
        });
        world.serve(&mut source, &event(DATA, run, &format!("{run}-d"))).unwrap()
    };
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.announced(run), all_of("issues", 3, 2));
    since.unwrap()
}

#[test]
fn a_rewound_worker_state_starts_the_next_sync_where_the_plan_said_whoever_has_it() {
    for keeps_disk in [false, true] {
        let mut world = world();
        for run in ["one", "two", "three"] {
            sync(&mut world, run);
        }
        // A run in progress, with artifacts that are confirmed and in no message.
        world.serve(&mut slow(&world), &event(DATA, "four", "4")).unwrap();
        let disk = world.disk.clone();
        let plan = mend(&world, &Mend::Rewind { to: RewindTo::Run("one".to_owned()) });
        // The phases of these runs were each on another machine.
        let bookmarks: Vec<_> =
            plan.next_run.as_ref().unwrap().streams.iter().map(|next| &next.bookmark).collect();
        assert_eq!(bookmarks, [&Some(json!("one"))]);
        assert_eq!(plan.changes.len(), 4, "{:?}", plan.lines());
        assert!(plan.lines().iter().any(|line| line.contains("run four") && line.contains("abandoned")));
        let since = plan.next_run.unwrap().since;
        assert!(since.is_some());
        // An event of the run that was abandoned changes nothing, also where the disk of its worker still is.
        if keeps_disk {
            world.start_on(disk.image().disk());
        } else {
            world.lose_disk();
        }
        let error = world.serve(&mut slow(&world), &event(DATA_ON, "four", "5")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        assert_eq!(since_of_next(&mut world, "five"), since);
    }
}

#[test]
fn a_worker_that_holds_the_unit_while_its_state_is_mended_stops() {
    let mut world = world();
    sync(&mut world, "one");
    let airdrop = &world.airdrop;
    let clock = world.clock.clone();
    let mut mended = false;
    let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
        if cursor == Some(1) && !mended {
            let state = SavedState::read(&airdrop.state_text(), "unit").unwrap();
            let plan = state.store().plan("unit", &Mend::Abandon).unwrap();
            state.store().mend(&plan, "a test").unwrap();
            airdrop.set_state_text(&state.to_text().unwrap());
            mended = true;
        }
        clock.advance(Duration::from_secs(60));
        Ok(page_of(stream, cursor.unwrap_or(0), 4, 2))
    });
    let error = world.serve(&mut source, &event(DATA, "two", "4")).unwrap_err();
    drop(source);
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert!(world.airdrop.announced("two").is_empty());
    assert!(since_of_next(&mut world, "three").is_some());
}

#[test]
fn after_a_reset_everything_is_asked_for_though_the_sdk_keys_said_otherwise() {
    let mut world = world();
    sync(&mut world, "one");
    assert_ne!(world.airdrop.state()["lastSuccessfulSyncStarted"], "");
    let plan = mend(&world, &Mend::Reset { keep_attachments: false, drop_values: true });
    assert_eq!(plan.next_run.unwrap().since, None);
    assert_eq!(world.airdrop.state()["lastSuccessfulSyncStarted"], "");
    assert_eq!(world.airdrop.state()["workersNewest"], "");
    assert_eq!(since_of_next(&mut world, "two"), None);
}

#[test]
fn a_unit_forgotten_in_a_worker_state_begins_anew_and_knows_its_late_events() {
    let mut world = world();
    sync(&mut world, "one");
    mend(&world, &Mend::Forget);
    world.lose_disk();
    let error = world.serve(&mut paged(1, 1), &event(DATA, "one", "late")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert_eq!(since_of_next(&mut world, "two"), None);
}

#[test]
fn a_cursor_set_in_a_worker_state_is_where_the_next_run_begins_on_whatever_machine() {
    let mut world = world();
    sync(&mut world, "one");
    let set = |force| Mend::SetCursor { stream: "issues".to_owned(), cursor: "1".to_owned(), force };
    let plan = mend(&world, &set(false));
    assert_eq!(plan.next_run.unwrap().streams[0].cursor, Some(json!(1)));
    world.lose_disk();
    let outcome = world.serve(&mut paged(3, 2), &event(DATA, "two", "2")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.announced("two"), all_of("issues", 3, 2)[2..]);
}

#[test]
fn failed_attachments_of_a_run_amid_its_attachments_are_queued_again_in_its_worker_state() {
    let mut world = world();
    // None of them may be opened.
    let source = || {
        Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
            let mut page = page_of(stream, cursor.unwrap_or(0), 1, 1);
            for n in 0..3 {
                let url = format!("https://files.example/{n}");
                let file = Attachment::new(format!("A{n}"), url, "a.png", "P");
                page.push("attachments", file.to_record().unwrap());
            }
            Ok(page)
        })
    };
    for (phase, request) in [(METADATA, "1"), (DATA, "2"), (ATTACHMENTS, "3")] {
        world.lose_disk();
        world.serve(&mut source(), &event(phase, "one", request)).unwrap();
    }
    let plan = mend(&world, &Mend::Requeue(Requeue::default()));
    assert_eq!(plan.next_run.unwrap().attachments_requeued, 3);
}

#[test]
fn a_worker_state_moves_and_keeps_what_is_not_ours() {
    let mut world = world();
    sync(&mut world, "one");
    let mut state = world.airdrop.state();
    state["theirs"] = json!({ "kept": [1.0, "as it came"] });
    world.airdrop.set_state(&state);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("unit.jsonl");
    let answer = json!({ "state": world.airdrop.state_text(), "objects": "{}" }).to_string();
    let saved = SavedState::read(&answer, "unit").unwrap();
    saved.store().export("unit", &file).unwrap();
    let file = UnitFile::open(file).unwrap();
    let plan = saved.store().plan_import(&file, true).unwrap();
    saved.store().import(&file, &plan, "a test").unwrap();
    let answer: Value = serde_json::from_str(&saved.to_text().unwrap()).unwrap();
    assert_eq!(answer["objects"], "{}");
    let state: Value = serde_json::from_str(answer["state"].as_str().unwrap()).unwrap();
    assert_eq!(state["theirs"], json!({ "kept": [1.0, "as it came"] }));
    world.airdrop.set_state(&state);
    let now = world.clock.now();
    let since = since_of_next(&mut world, "two").unwrap();
    assert!(since < now);
}

/// The limit is the last size that the platform takes.
#[test]
fn a_mended_state_of_just_as_many_bytes_as_the_platform_takes_is_written() {
    let mut world = world();
    sync(&mut world, "one");
    let whole = world.airdrop.state();
    let posted = |state: &str| json!(state).to_string().len();
    // Each text has a token of its own, which is packed with the rest: not all are of one size.
    let (mut pad, mut is_refused) = (CHECKPOINT_BYTES_MAX - posted(&whole.to_string()) - 30, false);
    for _ in 0..2_000 {
        let mut state = whole.clone();
        state["theirs"] = "x".repeat(pad).into();
        match SavedState::read(&state.to_string(), "unit").unwrap().to_text().map(|text| posted(&text)) {
            Ok(CHECKPOINT_BYTES_MAX) if is_refused => return,
            Ok(bytes) => {
                assert!(bytes <= CHECKPOINT_BYTES_MAX, "{bytes} bytes");
                pad += (CHECKPOINT_BYTES_MAX - bytes).max(1);
            }
            Err(Error::TooLarge { found, limit, .. }) => {
                assert!(found > limit, "{found} bytes, over {limit}?");
                is_refused = true;
                pad -= usize::try_from(found - limit).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no text has just as many bytes as are taken");
}

/// In a store of its own, too: what is sealed and not known to be accepted is not sent once the run is abandoned by
/// hand.
#[test]
fn a_sealed_message_of_a_run_that_is_abandoned_by_hand_is_not_sent_again() {
    let mut world = World::new(2);
    world.airdrop.kill_at(Call::Send, 0, &world.disk);
    world.serve(&mut paged(3, 2), &event(DATA, "one", "1")).unwrap_err();
    world.restart();
    let sent = world.airdrop.attempts().len();
    let plan = world.store.plan("unit", &Mend::Abandon).unwrap();
    assert!(
        plan.lines()[0].contains("message 1, which may or may not have been accepted, has 6 records"),
        "{:?}",
        plan.lines()
    );
    world.store.mend(&plan, "a test").unwrap();
    world.serve(&mut paged(3, 2), &event(DATA, "one", "1")).unwrap();
    assert_eq!(world.airdrop.attempts().len(), sent);
    let error = world.serve(&mut paged(3, 2), &event(DATA_ON, "one", "2")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    world.serve(&mut paged(3, 2), &event(DATA, "two", "3")).unwrap();
    assert_eq!(world.airdrop.announced("two"), all_of("issues", 3, 2));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(&path, world.disk.image().to_bytes()).unwrap();
    let findings = highwater::inspect::check(&path).unwrap().findings;
    assert!(findings.is_empty(), "{findings:?}");
}
