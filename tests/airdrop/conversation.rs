//! Exactly one message answers an event: which event is new, which was seen before, how each is answered in each
//! phase, and when an invocation ends. (How artifacts get into a message is in `delivery`.)

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::world::{
    Answer, Call, Source, World, all_of, event, event_of, event_with, is, page_of, paged, records_of,
};
use chrono::TimeDelta;
use highwater::airdrop::{
    Context, Event, ExternalSyncUnit, Outcome, OutcomeKind, Serve, SourceError, Spelling,
};
use highwater::{Clock, Error, ErrorKind, Record};
use serde_json::{Value, json};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";
const METADATA: &str = "EXTRACTION_METADATA_START";
const ATTACHMENTS: &str = "EXTRACTION_ATTACHMENTS_START";
const ATTACHMENTS_ON: &str = "EXTRACTION_ATTACHMENTS_CONTINUE";

/// A world in which an invocation has time for one page.
fn page_by_page() -> World {
    let mut world = World::new(5);
    world.serve = Serve::new().inline(7).budget(Duration::ZERO);
    world
}

fn done(world: &World, source: &mut Source<'_>, event: &Event) -> Outcome {
    let outcome = world.serve(source, event).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done, "{:?}", outcome.message);
    outcome
}

/// A data phase and what follows it, from START to the end of the run.
fn whole_run(world: &World, run: &str, pages: u32) {
    let mut source = paged(pages, 3);
    let mut number = 0;
    let mut next = |event_type| {
        number += 1;
        world.serve(&mut source, &event(event_type, run, &format!("{run}/{number}"))).unwrap().kind
    };
    let mut kind = next(DATA);
    while kind == OutcomeKind::Progress {
        kind = next(DATA_ON);
    }
    assert_eq!((kind, next(ATTACHMENTS)), (OutcomeKind::Done, OutcomeKind::Done));
}

/// Serving this says that it is of the past, and nothing is sent.
fn assert_stale(world: &World, source: &mut Source<'_>, event: &Event, reason: &str) {
    let (sent, asked) = (world.airdrop.attempts().len(), source.asked().len());
    let error = world.serve(source, event).unwrap_err();
    assert!(matches!(error, Error::StaleEvent { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(error.to_string().contains(reason), "{error}");
    assert_eq!((world.airdrop.attempts().len(), source.asked().len()), (sent, asked));
}

/// Event and answer in one spelling; the data phase is entered, goes on, and ends.
#[rustfmt::skip]
const SPELLINGS: [[[&str; 2]; 7]; 2] = [
    [["EXTRACTION_EXTERNAL_SYNC_UNITS_START", "EXTRACTION_EXTERNAL_SYNC_UNITS_DONE"],
     ["EXTRACTION_METADATA_START", "EXTRACTION_METADATA_DONE"],
     ["EXTRACTION_DATA_START", "EXTRACTION_DATA_PROGRESS"],
     ["EXTRACTION_DATA_CONTINUE", "EXTRACTION_DATA_DONE"],
     ["EXTRACTION_ATTACHMENTS_START", "EXTRACTION_ATTACHMENTS_DONE"],
     ["EXTRACTION_DATA_DELETE", "EXTRACTION_DATA_DELETE_DONE"],
     ["EXTRACTION_ATTACHMENTS_DELETE", "EXTRACTION_ATTACHMENTS_DELETE_DONE"]],
    [["START_EXTRACTING_EXTERNAL_SYNC_UNITS", "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE"],
     ["START_EXTRACTING_METADATA", "METADATA_EXTRACTION_DONE"],
     ["START_EXTRACTING_DATA", "DATA_EXTRACTION_PROGRESS"],
     ["CONTINUE_EXTRACTING_DATA", "DATA_EXTRACTION_DONE"],
     ["START_EXTRACTING_ATTACHMENTS", "ATTACHMENT_EXTRACTION_DONE"],
     ["START_DELETING_EXTRACTOR_STATE", "EXTRACTOR_STATE_DELETION_DONE"],
     ["START_DELETING_EXTRACTOR_ATTACHMENTS_STATE", "EXTRACTOR_ATTACHMENTS_STATE_DELETION_DONE"]],
];

fn units(count: usize) -> Vec<ExternalSyncUnit> {
    let unit = |at: usize| ExternalSyncUnit::new(format!("unit-{at}"), format!("Unit {at}"), "");
    (0..count).map(unit).collect()
}

#[test]
fn every_phase_is_answered_in_the_spelling_of_its_event_or_the_one_that_is_set() {
    for (spelled, answered) in [(0, None), (1, None), (0, Some(Spelling::Newer)), (1, Some(Spelling::Seed))] {
        let mut world = page_by_page();
        let answers = match answered {
            None => spelled,
            Some(Spelling::Seed) => 0,
            Some(Spelling::Newer) => 1,
        };
        if let Some(spelling) = answered {
            world.serve = world.serve.spelling(spelling);
        }
        let mut source = paged(2, 7);
        source.units = units(2);
        for (number, ([event_type, _], [_, answer])) in
            SPELLINGS[spelled].iter().zip(SPELLINGS[answers]).enumerate()
        {
            let event = event(event_type, "run", &format!("{number}"));
            let outcome = world.serve(&mut source, &event).unwrap();
            assert!(!outcome.replayed);
            let message = world.airdrop.last();
            assert_eq!((message.event_type.as_str(), outcome.event_type.as_str()), (answer, answer));
            assert_eq!(message.body["event_type"], answer);
            let context: Value = serde_json::from_str(event.context_json()).unwrap();
            assert_eq!(message.body["event_context"], context, "the context is echoed whole");
            let item_types: Vec<Value> =
                message.artifacts().iter().map(|artifact| artifact["item_type"].clone()).collect();
            let expected: &[&str] = match number {
                0 => &["external_sync_units"],
                1 => &["external_domain_metadata"],
                2 | 3 => &["issues", "issues"],
                _ => &[],
            };
            assert_eq!(item_types, expected, "{event_type}");
            assert_eq!(outcome.artifacts, expected.len() as u64);
        }
        assert_eq!(world.airdrop.messages().len(), SPELLINGS[spelled].len());
        assert_eq!(world.airdrop.announced("run").len(), 14 + 2);
    }
}

#[test]
fn a_holder_token_is_random_unless_a_seed_makes_it() {
    let tokens = |serve: &Serve| -> BTreeSet<String> {
        let token = |_: u32| {
            // The clocks of all of them stand still at the same moment.
            let mut world = World::new(5);
            world.serve = serve.clone().checkpoints();
            done(&world, &mut paged(1, 1), &event(DATA, "run", "1"));
            world.airdrop.checkpoint()["token"].as_str().unwrap().to_owned()
        };
        (0..8).map(token).collect()
    };
    let random = tokens(&Serve::new());
    assert_eq!(random.len(), 8, "{random:?}");
    assert!(random.iter().all(|token| token.len() == 16), "{random:?}");
    let seeded = tokens(&Serve::new().inline(7));
    assert_eq!(seeded.len(), 1, "a run can be replayed");
    assert!(seeded.is_disjoint(&tokens(&Serve::new().inline(8))));
}

#[test]
fn a_seen_event_is_answered_with_the_same_bytes_under_the_same_key() {
    let mut world = World::new(5);
    let mut source = paged(2, 7);
    let start = event(DATA, "run", "1");
    let first = done(&world, &mut source, &start);
    assert_eq!((first.artifacts, source.asked().len()), (3, 2));
    for _ in 0..4 {
        world.restart();
        let again = done(&world, &mut source, &start);
        assert!(again.replayed);
        assert_eq!((again.message.as_ref(), again.artifacts), (first.message.as_ref(), 3));
    }
    let attempts = world.airdrop.attempts();
    assert_eq!(attempts.len(), 5);
    assert!(attempts.iter().all(|attempt| *attempt == attempts[0]));
    assert_eq!((source.asked().len(), world.airdrop.calls(Call::Upload)), (2, 3), "nothing was done again");
    // Also when the run is over; and the message is kept until the next run has begun and ended.
    done(&world, &mut source, &event(ATTACHMENTS, "run", "2"));
    assert!(done(&world, &mut source, &event(ATTACHMENTS, "run", "2")).replayed);
    assert!(done(&world, &mut source, &start).replayed);
    assert_eq!(world.airdrop.messages().len(), 2);
}

#[test]
fn a_new_event_proves_that_the_message_before_it_was_accepted() {
    let world = page_by_page();
    let mut source = paged(2, 5);
    world.airdrop.always(Call::Send, Some(Answer::Lost));
    let error = world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    assert!(matches!(error, Error::NotDelivered { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Retry);
    world.airdrop.always(Call::Send, None);
    let outcome = done(&world, &mut source, &event(DATA_ON, "run", "2"));
    assert_eq!(outcome.artifacts, 1, "the first page was announced before");
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 2, 5));
}

#[test]
fn a_5xx_or_a_lost_answer_leaves_the_message_sealed() {
    for answer in [Answer::Unavailable, Answer::Lost, Answer::Busy(1)] {
        let mut world = World::new(5);
        let mut source = paged(1, 7);
        world.airdrop.always(Call::Send, Some(answer));
        let start = event(DATA, "run", "1");
        for life in 1..=2 {
            let error = world.serve(&mut source, &start).unwrap_err();
            assert!(error.to_string().contains("EXTRACTION_DATA_DONE was not accepted"), "{error}");
            assert_eq!(world.airdrop.attempts().len(), 5 * life, "{answer:?}");
            world.restart();
        }
        world.airdrop.always(Call::Send, None);
        assert!(done(&world, &mut source, &start).replayed);
        let attempts = world.airdrop.attempts();
        assert!(attempts.iter().all(|attempt| *attempt == attempts[0]));
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 1, 7));
        assert_eq!(source.asked().len(), 1);
    }
}

#[test]
fn a_definite_refusal_unseals_and_the_artifacts_go_into_the_next_message() {
    for next in [event(DATA, "run", "1"), event(DATA_ON, "run", "2")] {
        let mut world = page_by_page();
        let mut source = paged(2, 5);
        world.airdrop.answer(Call::Send, 0, Answer::Refused(400));
        let error = world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
        assert!(matches!(error, Error::NotDelivered { .. }), "{error:?}");
        assert!(error.to_string().contains("refused with 400: as told"), "{error}");
        world.restart();
        let outcome = done(&world, &mut source, &next);
        assert_eq!((outcome.artifacts, outcome.replayed), (2, false));
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 2, 5));
        let attempts = world.airdrop.attempts();
        assert_ne!(attempts[0].key, attempts[1].key, "another message has another key");
        assert_eq!(world.airdrop.calls(Call::Upload), 2);
    }
}

/// A receiver that recognises a message by its key may refuse it as "answered already", after its first answer was
/// lost.
#[test]
fn a_refusal_after_an_attempt_that_may_have_been_accepted_does_not_unseal() {
    for (first, checkpoints) in [
        (Answer::Lost, false),
        (Answer::Lost, true),
        (Answer::Unavailable, false),
        (Answer::Unavailable, true),
    ] {
        let mut world = World::new(5);
        if checkpoints {
            world.serve = world.serve.clone().checkpoints();
        }
        let mut source = paged(2, 5);
        done(&world, &mut source, &event(METADATA, "run", "0"));
        world.airdrop.answer(Call::Send, 0, first);
        world.airdrop.answer(Call::Send, 1, Answer::Refused(409));
        let start = event(DATA, "run", "1");
        let error = world.serve(&mut source, &start).unwrap_err();
        assert!(matches!(error, Error::NotDelivered { .. }), "{error:?}");
        assert!(error.to_string().contains("it stays sealed"), "{error}");
        if first == Answer::Unavailable {
            // The platform has not got it, so it delivers the same event again, and gets the same bytes.
            assert!(done(&world, &mut source, &start).replayed);
        }
        done(&world, &mut source, &event(ATTACHMENTS, "run", "2"));
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 2, 5));
    }
    // What is too large was never accepted.
    let world = World::new(1);
    let mut source = paged(1, 8);
    world.airdrop.answer(Call::Send, 0, Answer::Unavailable);
    world.airdrop.answer(Call::Send, 1, Answer::Refused(413));
    let outcome = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Progress, 4));
    // A refusal after one that surely had no effect is as definite as the first.
    let world = World::new(5);
    world.airdrop.answer(Call::Send, 0, Answer::Busy(1));
    world.airdrop.answer(Call::Send, 1, Answer::Refused(400));
    world.serve(&mut paged(1, 5), &event(DATA, "run", "1")).unwrap_err();
    assert!(!done(&world, &mut paged(1, 5), &event(DATA, "run", "1")).replayed);
}

#[test]
fn a_message_too_large_is_said_again_with_half_of_its_artifacts() {
    let mut world = World::new(1);
    let mut source = paged(1, 8);
    world.airdrop.answer(Call::Send, 0, Answer::Refused(413));
    world.airdrop.answer(Call::Send, 1, Answer::Refused(413));
    let mut outcome = world.serve(&mut source, &event(DATA, "run", "0")).unwrap();
    let mut carried = Vec::new();
    for number in 1.. {
        carried.push(outcome.artifacts);
        if outcome.kind == OutcomeKind::Done {
            break;
        }
        assert_eq!(
            (outcome.kind, outcome.event_type.as_str()),
            (OutcomeKind::Progress, "EXTRACTION_DATA_PROGRESS")
        );
        world.restart();
        outcome = world.serve(&mut source, &event(DATA_ON, "run", &format!("{number}"))).unwrap();
    }
    assert_eq!(carried, [2, 2, 2, 2]);
    assert_eq!(world.airdrop.announced("run").len(), 8);
    assert_eq!((source.asked().len(), world.airdrop.uploads()), (1, 8));
}

#[test]
fn a_replay_that_is_too_large_is_halved_when_the_event_comes_again() {
    let world = World::new(1);
    let mut source = paged(1, 8);
    let start = event(DATA, "run", "1");
    world.airdrop.always(Call::Send, Some(Answer::Unavailable));
    world.serve(&mut source, &start).unwrap_err();
    world.airdrop.always(Call::Send, None);
    world.airdrop.answer(Call::Send, 0, Answer::Refused(413));
    let error = world.serve(&mut source, &start).unwrap_err();
    assert!(error.to_string().contains("refused with 413"), "{error}");
    let outcome = world.serve(&mut source, &start).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts, outcome.replayed), (OutcomeKind::Progress, 4, false));
    done(&world, &mut source, &event(DATA_ON, "run", "2"));
    assert_eq!(world.airdrop.announced("run").len(), 8);
}

#[test]
fn a_phase_whose_done_was_refused_is_not_done() {
    let world = World::new(5);
    let mut source = paged(1, 5);
    world.airdrop.answer(Call::Send, 0, Answer::Refused(400));
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    let outcome = world.serve(&mut source, &event(ATTACHMENTS, "run", "2")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    assert!(world.airdrop.last().error().contains("its data phase is not done"));
    done(&world, &mut source, &event(DATA_ON, "run", "3"));
    done(&world, &mut source, &event(ATTACHMENTS, "run", "4"));
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 1, 5));
}

#[test]
fn one_artifact_too_large_for_a_message_is_not_delivered_and_stays() {
    let world = World::new(5);
    let mut source = paged(1, 3);
    world.airdrop.answer(Call::Send, 0, Answer::Refused(413));
    let error = world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    assert!(matches!(error, Error::NotDelivered { .. }), "{error:?}");
    assert_eq!(done(&world, &mut source, &event(DATA, "run", "1")).artifacts, 1);
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 1, 3));
}

#[test]
fn an_event_of_a_past_run_is_an_error_and_nothing_is_sent() {
    let world = page_by_page();
    whole_run(&world, "run-1", 2);
    let mut source = paged(1, 1);
    assert_stale(&world, &mut source, &event(ATTACHMENTS, "run-1", "new"), "which is over");
    assert_eq!(world.serve(&mut source, &event(DATA, "run-2", "1")).unwrap().kind, OutcomeKind::Done);
    // Now its messages are of no use: the platform has moved on.
    for request in ["run-1/1", "run-1/2", "run-1/3", "new"] {
        assert_stale(
            &world,
            &mut source,
            &event(DATA_ON, "run-1", request),
            "which a newer run has followed",
        );
        assert_stale(&world, &mut source, &event(DATA, "run-1", request), "which a newer run has followed");
    }
    // And the current run is unchanged.
    done(&world, &mut source, &event(ATTACHMENTS, "run-2", "2"));
    assert_eq!(world.airdrop.announced("run-2").len(), 1);
}

/// A source that dies at its `dies_at`-th page: the process with it.
fn dying(world: &World, pages: u32, dies_at: u32) -> Source<'_> {
    let number = AtomicU32::new(0);
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        if number.fetch_add(1, Ordering::Relaxed) == dies_at {
            world.disk.kill();
        }
        Ok(page_of(stream, cursor.unwrap_or(0), pages, 5))
    })
}

#[test]
fn killed_before_anything_was_sealed_the_same_event_resumes_and_its_start_is_kept() {
    let mut world = World::new(5);
    let start = event(DATA, "run", "1");
    let started = world.clock.now();
    // With pages ahead, those that came and are not stored would be asked for again, too.
    world.serve = world.serve.ahead(0);
    let error = world.serve(&mut dying(&world, 4, 2), &start).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(world.airdrop.attempts().is_empty());
    world.clock.advance(Duration::from_secs(3600));
    world.restart();
    let mut source = Source::new(|context: &Context, stream: &str, cursor: Option<u32>| {
        assert_eq!(context.started_at(), started);
        Ok(page_of(stream, cursor.unwrap_or(0), 4, 5))
    });
    done(&world, &mut source, &start);
    assert_eq!(source.asked(), [("issues".to_owned(), Some(2)), ("issues".to_owned(), Some(3))]);
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 5));
    done(&world, &mut source, &event(ATTACHMENTS, "run", "2"));
    assert_eq!(world.store.sync_unit("unit").unwrap().watermark().unwrap(), Some(started));
}

#[test]
fn an_event_that_was_overtaken_unanswered_is_an_error_and_nothing_is_sent() {
    let mut world = World::new(5);
    assert!(world.serve(&mut dying(&world, 2, 0), &event(DATA, "run", "1")).is_err());
    world.restart();
    let mut source = paged(2, 5);
    done(&world, &mut source, &event(DATA, "run", "2"));
    assert_stale(&world, &mut source, &event(DATA, "run", "1"), "a newer event has followed it");
    assert!(done(&world, &mut source, &event(DATA, "run", "2")).replayed);
}

#[test]
fn a_platform_that_uses_its_ids_again_makes_progress() {
    let world = page_by_page();
    let mut source = paged(4, 5);
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    let again = event(DATA_ON, "run", "2");
    // Answered, and said again once; then it must be a new event of the same ids. And so on.
    for page in 2..4 {
        let new = world.serve(&mut source, &again).unwrap();
        assert_eq!((new.kind, new.replayed, source.asked().len()), (OutcomeKind::Progress, false, page));
        // A replay that is not accepted, or is not known to be, does not count.
        world.airdrop.always(Call::Send, Some(Answer::Unavailable));
        assert!(world.serve(&mut source, &again).is_err());
        assert!(world.serve(&mut source, &again).is_err());
        world.airdrop.always(Call::Send, None);
        let same = world.serve(&mut source, &again).unwrap();
        assert_eq!((same.message, same.replayed, source.asked().len()), (new.message, true, page));
    }
    // What is over is over, however often it is asked for.
    let last = done(&world, &mut source, &again);
    assert!(!last.replayed);
    for _ in 0..4 {
        let same = done(&world, &mut source, &again);
        assert_eq!((same.message.as_ref(), same.replayed), (last.message.as_ref(), true));
    }
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 5));
    // Only the newest event can be a new one; an older one of the run is a replay each time.
    for _ in 0..4 {
        assert!(world.serve(&mut source, &event(DATA, "run", "1")).unwrap().replayed);
    }
}

#[test]
fn an_event_without_ids_is_a_replay_only_while_its_message_is_undelivered() {
    let world = page_by_page();
    let started = world.clock.now();
    let bare = |event_type| event_with(event_type, &json!({ "external_sync_unit_id": "project" }));
    let mut source = paged(4, 5);
    let mut serve = |event_type| world.serve(&mut source, &bare(event_type));
    assert_eq!(serve(DATA).unwrap().kind, OutcomeKind::Progress);
    assert_eq!(serve(DATA_ON).unwrap().kind, OutcomeKind::Progress);
    world.airdrop.always(Call::Send, Some(Answer::Unavailable));
    serve(DATA_ON).unwrap_err();
    world.airdrop.always(Call::Send, None);
    let third = serve(DATA_ON).unwrap();
    assert_eq!((third.kind, third.replayed), (OutcomeKind::Progress, true));
    let fourth = serve(DATA_ON).unwrap();
    assert_eq!((fourth.kind, fourth.replayed), (OutcomeKind::Done, false));
    assert_eq!(serve(ATTACHMENTS).unwrap().kind, OutcomeKind::Done);
    assert_eq!(source.asked().len(), 4);
    let mut announced = world.airdrop.announced("");
    assert!(announced.is_empty());
    announced = world
        .airdrop
        .named()
        .iter()
        .flat_map(|id| world.airdrop.artifact(id).1)
        .map(|line| is(&line))
        .collect();
    announced.sort();
    assert_eq!(announced, all_of("issues", 4, 5));
    // The same event begins the next sync.
    world.clock.advance(Duration::from_secs(60));
    let mut since = None;
    let mut source = Source::new(|context: &Context, stream: &str, _| {
        since = context.since();
        Ok(page_of(stream, 0, 1, 1))
    });
    assert_eq!(world.serve(&mut source, &bare(DATA)).unwrap().kind, OutcomeKind::Done);
    drop(source);
    assert_eq!(since, Some(started));
}

#[test]
fn an_event_that_cannot_begin_a_run_is_an_error_and_so_is_all_that_follows_of_that_run() {
    for first in [DATA_ON, ATTACHMENTS, ATTACHMENTS_ON] {
        let mut world = World::new(5);
        whole_run(&world, "run-1", 1);
        let watermark = world.store.sync_unit("unit").unwrap().watermark().unwrap();
        let mut source = paged(1, 1);
        for (number, event_type) in
            [first, METADATA, DATA, DATA_ON, ATTACHMENTS, ATTACHMENTS_ON].iter().enumerate()
        {
            world.restart();
            world.clock.advance(Duration::from_secs(60));
            let event = event(event_type, "run-2", &format!("{number}"));
            assert_eq!(world.serve(&mut source, &event).unwrap().kind, OutcomeKind::Error);
            let message = world.airdrop.last();
            assert!(message.event_type.ends_with("_ERROR"), "{}", message.event_type);
            assert!(message.error().contains("run run-2 is not known here"), "{}", message.error());
        }
        assert!(source.asked().is_empty());
        assert_eq!(world.store.sync_unit("unit").unwrap().watermark().unwrap(), watermark);
        // A new sync goes from where the last good one stood.
        let mut source = Source::new(|context: &Context, stream: &str, _| {
            assert_eq!(context.since(), watermark);
            Ok(page_of(stream, 0, 1, 1))
        });
        done(&world, &mut source, &event(DATA, "run-3", "1"));
    }
}

#[test]
fn a_new_run_abandons_the_unfinished_one_and_fetches_its_window_again() {
    let mut world = page_by_page();
    whole_run(&world, "run-1", 1);
    let watermark = world.store.sync_unit("unit").unwrap().watermark().unwrap();
    world.clock.advance(Duration::from_secs(600));
    let mut source = paged(3, 5);
    assert_eq!(world.serve(&mut source, &event(DATA, "run-2", "1")).unwrap().kind, OutcomeKind::Progress);
    world.restart();
    world.clock.advance(Duration::from_secs(600));
    let mut again = Source::new(|context: &Context, stream: &str, cursor: Option<u32>| {
        assert_eq!(context.since(), watermark);
        Ok(page_of(stream, cursor.unwrap_or(0), 1, 5))
    });
    done(&world, &mut again, &event(DATA, "run-3", "1"));
    assert_eq!(again.asked(), [("issues".to_owned(), None)], "from the start");
    assert_stale(&world, &mut source, &event(DATA_ON, "run-2", "2"), "which a newer run has followed");
    assert_stale(&world, &mut source, &event(DATA, "run-2", "1"), "which a newer run has followed");
    done(&world, &mut again, &event(ATTACHMENTS, "run-3", "2"));
    assert_eq!(world.airdrop.announced("run-2"), records_of("issues", 0, 5));
    assert_eq!(world.airdrop.announced("run-3"), records_of("issues", 0, 5));
}

#[test]
fn a_run_whose_last_message_is_of_unknown_fate_does_not_move_the_watermark_when_a_new_one_starts() {
    let world = World::new(5);
    let mut source = paged(1, 1);
    done(&world, &mut source, &event(DATA, "run-1", "1"));
    world.airdrop.always(Call::Send, Some(Answer::Lost));
    world.serve(&mut source, &event(ATTACHMENTS, "run-1", "2")).unwrap_err();
    world.airdrop.always(Call::Send, None);
    let unit = world.store.sync_unit("unit").unwrap();
    assert_eq!(unit.watermark().unwrap(), None);
    done(&world, &mut source, &event(DATA, "run-2", "1"));
    assert_eq!(unit.watermark().unwrap(), None, "to extract a window twice is harmless, to skip it is not");
}

#[test]
fn without_an_attachments_phase_the_run_ends_with_the_data() {
    let mut world = World::new(5);
    world.serve = Serve::new().inline(7).without_attachments_phase();
    let started = world.clock.now();
    let mut source = paged(1, 1);
    done(&world, &mut source, &event(DATA, "run-1", "1"));
    assert_eq!(world.store.sync_unit("unit").unwrap().watermark().unwrap(), Some(started));
    assert_stale(&world, &mut source, &event(ATTACHMENTS, "run-1", "2"), "which is over");
}

#[test]
fn an_invocation_that_another_has_overtaken_sends_nothing() {
    let world = World::new(5);
    let start = event(DATA, "run", "1");
    let nested = AtomicBool::new(false);
    let mut source = Source::new(|_: &Context, stream: &str, _| {
        if !nested.swap(true, Ordering::Relaxed) {
            // The platform took this one for dead, and sent the event to another.
            done(&world, &mut paged(1, 5), &start);
        }
        Ok(page_of(stream, 0, 1, 7))
    });
    let error = world.serve(&mut source, &start).unwrap_err();
    assert!(matches!(&error, Error::Fenced { run, .. } if run == "run"), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(world.airdrop.attempts().len(), 1);
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 1, 5));
}

#[test]
fn pages_stop_where_the_next_would_outlive_the_budget_but_never_before_the_first() {
    for (budget, page_takes, expected) in
        [(0, 0, vec![1, 1, 1, 1, 1, 1]), (10, 4, vec![2, 2, 2]), (10, 60, vec![1; 6]), (10, 1, vec![6])]
    {
        let mut world = World::new(5);
        world.serve = Serve::new().inline(7).budget(Duration::from_secs(budget));
        let clock = world.clock.clone();
        let mut source = Source::new(|context: &Context, stream: &str, cursor: Option<u32>| {
            assert!(context.time_left() <= Duration::from_secs(budget));
            clock.advance(Duration::from_secs(page_takes));
            Ok(page_of(stream, cursor.unwrap_or(0), 6, 5).progress(33))
        });
        let mut pages = Vec::new();
        let mut event_type = DATA;
        loop {
            let before = source.asked().len();
            let event = event(event_type, "run", &format!("{before}"));
            let outcome = world.serve(&mut source, &event).unwrap();
            pages.push(source.asked().len() - before);
            event_type = DATA_ON;
            let said = &world.airdrop.last().body["event_data"];
            match outcome.kind {
                OutcomeKind::Done => break,
                kind => assert_eq!((kind, &said["progress"]), (OutcomeKind::Progress, &json!(33))),
            }
        }
        assert_eq!(pages, expected, "a budget of {budget} s, and {page_takes} s a page");
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 6, 5));
    }
}

/// Pages; the source refuses the second one until a certain time.
fn limited(world: &World, after: Duration) -> Source<'_> {
    let ready = world.clock.elapsed() + after;
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        let at = cursor.unwrap_or(0);
        if at == 1 && world.clock.elapsed() < ready {
            return Err(SourceError::RateLimited { after });
        }
        Ok(page_of(stream, at, 3, 5))
    })
}

#[test]
fn an_absurd_rate_limit_is_a_delay_of_a_day() {
    const DAY: u64 = 24 * 60 * 60;
    for (after, seconds) in [
        (Duration::MAX, DAY),
        (Duration::from_secs(u64::MAX), DAY),
        (Duration::from_secs(DAY) + Duration::from_nanos(1), DAY),
        (Duration::from_secs(DAY - 1) + Duration::from_nanos(1), DAY),
        (Duration::from_secs(DAY - 1), DAY - 1),
    ] {
        let world = World::new(5);
        let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| match cursor {
            None => Ok(page_of(stream, 0, 3, 5)),
            Some(_) => Err(SourceError::RateLimited { after }),
        });
        assert_eq!(world.serve(&mut source, &event(DATA, "run", "1")).unwrap().kind, OutcomeKind::Delay);
        assert_eq!(world.airdrop.last().body["event_data"]["delay"], json!(seconds), "{after:?}");
        world.clock.advance(Duration::from_secs(seconds));
        done(&world, &mut paged(3, 5), &event(DATA_ON, "run", "2"));
    }
}

#[test]
fn a_rate_limit_is_a_delay_in_whole_seconds_and_an_early_continue_hears_what_is_left() {
    let mut world = World::new(5);
    world.serve = world.serve.wait_up_to(Duration::ZERO);
    let after = Duration::from_millis(2500);
    let serve = |world: &World, number: u32| {
        let mut source = limited(world, after);
        let event = event(if number == 0 { DATA } else { DATA_ON }, "run", &format!("{number}"));
        let outcome = world.serve(&mut source, &event).unwrap();
        (outcome.kind, world.airdrop.last().body["event_data"]["delay"].clone(), source.asked().len())
    };
    assert_eq!(serve(&world, 0), (OutcomeKind::Delay, json!(3), 2), "rounded up");
    assert_eq!(world.airdrop.last().artifacts().len(), 1, "what was staged is in it");
    world.restart();
    for (number, (passed, left)) in [(0, 3), (900, 3), (200, 2), (1000, 1), (800, 1)].into_iter().enumerate()
    {
        world.clock.advance(Duration::from_millis(passed));
        let number = u32::try_from(number).unwrap() + 1;
        assert_eq!(serve(&world, number), (OutcomeKind::Delay, json!(left), 0), "the source is left alone");
    }
    world.clock.advance(Duration::from_millis(100));
    let mut source = paged(3, 5);
    done(&world, &mut source, &event(DATA_ON, "run", "later"));
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 3, 5));
}

#[test]
fn a_clock_that_steps_back_ends_a_delay() {
    let world = World::new(5);
    let mut source = limited(&world, Duration::from_secs(30));
    assert_eq!(world.serve(&mut source, &event(DATA, "run", "1")).unwrap().kind, OutcomeKind::Delay);
    drop(source);
    world.clock.step_to(world.clock.now() - TimeDelta::hours(5));
    // More is left than was asked for, which cannot be: so the source is asked.
    done(&world, &mut paged(3, 5), &event(DATA_ON, "run", "2"));
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 3, 5));
}

#[test]
fn in_a_phase_without_delay_a_rate_limit_is_waited_out_or_is_an_error() {
    let world = World::new(5);
    let started = world.clock.elapsed();
    let mut source = paged(1, 1);
    source.metadata = Err(Duration::from_secs(700));
    let outcome = world.serve(&mut source, &event(METADATA, "run", "1")).unwrap();
    assert_eq!(
        (outcome.kind, outcome.event_type.as_str()),
        (OutcomeKind::Error, "EXTRACTION_METADATA_ERROR")
    );
    let error = world.airdrop.last().error();
    assert!(error.contains("asked to wait 11m 40s,"), "{error}");
    assert_eq!(world.clock.elapsed(), started);
    // Waits that fit are waited out, until no more do.
    source.metadata = Err(Duration::from_secs(250));
    let outcome = world.serve(&mut source, &event(METADATA, "run", "2")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    assert_eq!(world.clock.elapsed(), started + Duration::from_secs(500));
    source.metadata = Ok(json!({}));
    done(&world, &mut source, &event(METADATA, "run", "3"));
}

#[test]
fn a_panic_or_an_error_of_the_extractor_is_a_sealed_error_and_the_run_goes_on() {
    let fails = |panics: bool| {
        move |_: &Context, stream: &str, cursor: Option<u32>| {
            let at = cursor.unwrap_or(0);
            assert!(at < 2 || !panics, "page {at} is broken");
            if at == 2 {
                return Err(format!("page {at} is broken").into());
            }
            Ok(page_of(stream, at, 4, 5))
        }
    };
    for panics in [true, false] {
        let mut world = World::new(5);
        let mut source = Source::new(fails(panics));
        let start = event(DATA, "run", "1");
        let outcome = world.serve(&mut source, &start).unwrap();
        assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Error, 2));
        let text = world.airdrop.last().error();
        assert!(text.contains("fetching a page of stream issues of unit"), "{text}");
        assert!(text.contains("page 2 is broken"), "{text}");
        assert_eq!(text.contains("the extractor panicked"), panics, "{text}");
        world.restart();
        let again = world.serve(&mut source, &start).unwrap();
        assert_eq!((again.message, again.replayed), (outcome.message, true));
        assert_eq!(source.asked().len(), 3);
        let mut mended = paged(4, 5);
        done(&world, &mut mended, &event(DATA_ON, "run", "2"));
        assert_eq!(mended.asked().len(), 2);
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 5));
    }
}

#[test]
fn an_event_of_unknown_type_or_without_a_sync_unit_is_an_error_and_touches_nothing() {
    let world = World::new(5);
    let mut source = paged(1, 1);
    let outcome = world.serve(&mut source, &event("START_LOADING_DATA", "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.run), (OutcomeKind::Error, None));
    let message = world.airdrop.last();
    assert_eq!(message.event_type, "UNKNOWN_EVENT_TYPE");
    assert!(message.error().contains("START_LOADING_DATA"), "{}", message.error());
    // The same when it is sent again: nothing is stored, and nothing differs.
    world.serve(&mut source, &event("START_LOADING_DATA", "run", "1")).unwrap();
    assert_eq!(world.airdrop.messages().len(), 1);

    for (context, field) in [
        (json!({ "run_id": "run", "request_id": "2" }), "payload.event_context.sync_unit_id"),
        (json!({ "sync_unit_id": ["a"], "request_id": "3" }), "payload.event_context.sync_unit_id"),
        (json!({ "sync_unit_id": "unit", "request_id": {} }), "payload.event_context.request_id"),
        (json!({ "sync_unit_id": "unit", "run_id": "a\nb", "request_id": "4" }), "run id"),
    ] {
        for (event_type, answer) in [
            (DATA, "EXTRACTION_DATA_ERROR"),
            (METADATA, "EXTRACTION_METADATA_ERROR"),
            ("CONTINUE_EXTRACTING_ATTACHMENTS", "ATTACHMENT_EXTRACTION_ERROR"),
        ] {
            let outcome = world.serve(&mut source, &event_with(event_type, &context)).unwrap();
            assert_eq!((outcome.kind, outcome.event_type.as_str()), (OutcomeKind::Error, answer));
            assert!(world.airdrop.last().error().contains(field), "{}", world.airdrop.last().error());
        }
    }
    let missing = event_with("EXTRACTION_DATA_DELETE", &json!({}));
    assert_eq!(world.serve(&mut source, &missing).unwrap().event_type, "EXTRACTION_DATA_DELETE_ERROR");
    for (run_id, field) in [(json!({}), "payload.event_context.run_id"), (json!("x".repeat(600)), "run_id")] {
        let context = json!({ "sync_unit_id": "unit", "run_id": run_id, "request_id": "5" });
        for event_type in ["EXTRACTION_DATA_DELETE", "EXTRACTION_ATTACHMENTS_DELETE"] {
            let outcome = world.serve(&mut source, &event_with(event_type, &context)).unwrap();
            assert_eq!(outcome.event_type, format!("{event_type}_ERROR"));
            assert!(world.airdrop.last().error().contains(field), "{}", world.airdrop.last().error());
        }
    }
    assert!(source.asked().is_empty());
    done(&world, &mut source, &event(DATA, "run", "1"));
}

#[test]
fn deleting_the_data_state_forgets_the_unit_and_no_other() {
    let world = World::new(5);
    let mut source = paged(1, 1);
    for unit in ["unit", "other"] {
        done(&world, &mut source, &event_of(unit, DATA, "run", "1"));
        done(&world, &mut source, &event_of(unit, ATTACHMENTS, "run", "2"));
    }
    let watermark = |unit: &str| world.store.sync_unit(unit).unwrap().watermark().unwrap();
    done(&world, &mut source, &event("EXTRACTION_ATTACHMENTS_DELETE", "run", "3"));
    assert!(watermark("unit").is_some());
    for _ in 0..2 {
        done(&world, &mut source, &event("EXTRACTION_DATA_DELETE", "run", "4"));
        assert!(watermark("unit").is_none() && watermark("other").is_some());
    }
    let mut source = Source::new(|context: &Context, stream: &str, _| {
        assert_eq!(context.since(), None);
        Ok(page_of(stream, 0, 1, 1))
    });
    done(&world, &mut source, &event(DATA, "next", "5"));
}

#[test]
fn external_sync_units_are_one_artifact_for_25000_unconfirmed_and_asked_for_anew_each_time() {
    let world = World::new(5);
    let mut source = paged(1, 1);
    source.units = units(25_001);
    let list = |request: &str| {
        let context = json!({ "external_system_id": "system", "run_id": "run", "request_id": request });
        event_with("EXTRACTION_EXTERNAL_SYNC_UNITS_START", &context)
    };
    assert_eq!(done(&world, &mut source, &list("1")).artifacts, 2);
    let counts = |world: &World| -> Vec<Value> {
        world.airdrop.last().artifacts().iter().map(|artifact| artifact["item_count"].clone()).collect()
    };
    assert_eq!(counts(&world), [25_000, 1]);
    assert_eq!(world.airdrop.calls(Call::Confirm), 0);
    let id = world.airdrop.last().artifacts()[1]["id"].as_str().unwrap().to_owned();
    let line = &world.airdrop.artifact(&id).1[0];
    assert_eq!(*line, json!({ "id": "unit-25000", "name": "Unit 25000", "description": "" }));
    // Asked again under the same run id, as a user who reloads a page does: what is there now.
    assert!(done(&world, &mut source, &list("1")).replayed);
    source.units = units(3);
    assert_eq!(done(&world, &mut source, &list("2")).artifacts, 1);
    assert_eq!(counts(&world), [3]);
}

#[test]
fn external_sync_units_go_into_the_message_itself_where_that_is_set() {
    let mut world = World::new(5);
    world.serve = Serve::new().inline(7).external_sync_units_inline();
    let mut source = paged(1, 1);
    source.units = units(2);
    let list = event("START_EXTRACTING_EXTERNAL_SYNC_UNITS", "run", "1");
    assert_eq!(done(&world, &mut source, &list).artifacts, 0);
    let listed = world.airdrop.last().body["event_data"]["external_sync_units"].clone();
    let unit =
        |at: u32| json!({ "id": format!("unit-{at}"), "name": format!("Unit {at}"), "description": "" });
    assert_eq!(listed, json!([unit(0), unit(1)]));
    assert_eq!(world.airdrop.calls(Call::Upload), 0);
    // More artifacts than fit into a message are an ERROR with that reason.
    source.units = units(10_000);
    let outcome =
        world.serve(&mut source, &event("START_EXTRACTING_EXTERNAL_SYNC_UNITS", "run", "2")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    assert!(
        world.airdrop.last().error().contains("over the limit of 200000"),
        "{}",
        world.airdrop.last().error()
    );
}

#[test]
fn secrets_reach_neither_the_store_nor_a_message_nor_an_error() {
    let world = page_by_page();
    let mut source = paged(2, 5);
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    world.airdrop.always(Call::Send, Some(Answer::Unavailable));
    let continued = event(DATA_ON, "run", "2");
    let error = world.serve(&mut source, &continued).unwrap_err();
    world.serve(&mut source, &event("UNKNOWN", "run", "3")).unwrap_err();
    let stored = world.disk.image().to_bytes();
    let said: String =
        world.airdrop.attempts().iter().map(|attempt| attempt.key.clone() + &attempt.body).collect();
    let shown = format!("{error:?} {error} {continued:?} {:?}", world.store);
    for secret in ["secret-token", "secret-key"] {
        assert!(!stored.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()), "{secret} is stored");
        assert!(!said.contains(secret) && !shown.contains(secret), "{secret} was said");
    }
}

/// Where a run can stand.
#[derive(Debug, Clone, Copy)]
enum Stands {
    Unknown,
    MetadataFailed,
    MetadataDone,
    DataInProgress,
    DataInProgressWithoutMetadata,
    DataDone,
    Over,
    Lost,
}

/// How an event must be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// The source is asked, and the phase is done.
    Works,
    /// DONE, and the source is not asked.
    Repeats,
    /// ERROR, and the source is not asked.
    Errs,
    /// An error for the caller, and no message.
    Stale,
}

const EVENTS: [&str; 5] = [METADATA, DATA, DATA_ON, ATTACHMENTS, ATTACHMENTS_ON];

/// Metadata, then data, then attachments: none is skipped but the metadata, none is gone back to, and none goes on that
/// was not begun. The columns are `EVENTS`.
#[rustfmt::skip]
const MOVES: [(Stands, [Comes; 5]); 8] = {
    use Comes::{Errs, Repeats, Stale, Works};
    [
        (Stands::Unknown,                       [Works,   Works,   Errs,    Errs,  Errs]),
        (Stands::MetadataFailed,                [Works,   Errs,    Errs,    Errs,  Errs]),
        (Stands::MetadataDone,                  [Repeats, Works,   Errs,    Errs,  Errs]),
        (Stands::DataInProgress,                [Repeats, Works,   Works,   Errs,  Errs]),
        (Stands::DataInProgressWithoutMetadata, [Repeats, Works,   Works,   Errs,  Errs]),
        (Stands::DataDone,                      [Repeats, Repeats, Repeats, Works, Errs]),
        (Stands::Over,                          [Stale,   Stale,   Stale,   Stale, Stale]),
        (Stands::Lost,                          [Errs,    Errs,    Errs,    Errs,  Errs]),
    ]
};

fn bring_to(stands: Stands) -> World {
    let world = page_by_page();
    let mut source = paged(2, 5);
    let number = AtomicU32::new(0);
    let mut go = |event_type: &str, expected: OutcomeKind| {
        let request = format!("before-{}", number.fetch_add(1, Ordering::Relaxed));
        let outcome = world.serve(&mut source, &event(event_type, "run", &request)).unwrap();
        assert_eq!(outcome.kind, expected, "{event_type}: {:?}", outcome.message);
    };
    match stands {
        Stands::Unknown => {}
        Stands::MetadataFailed => {
            let mut broken = paged(2, 5);
            broken.metadata = Err(Duration::from_secs(10_000));
            let outcome = world.serve(&mut broken, &event(METADATA, "run", "before")).unwrap();
            assert_eq!(outcome.kind, OutcomeKind::Error);
        }
        Stands::MetadataDone => go(METADATA, OutcomeKind::Done),
        Stands::DataInProgress => {
            go(METADATA, OutcomeKind::Done);
            go(DATA, OutcomeKind::Progress);
        }
        Stands::DataInProgressWithoutMetadata => go(DATA, OutcomeKind::Progress),
        Stands::DataDone | Stands::Over => {
            go(METADATA, OutcomeKind::Done);
            go(DATA, OutcomeKind::Progress);
            go(DATA_ON, OutcomeKind::Done);
            if matches!(stands, Stands::Over) {
                go(ATTACHMENTS, OutcomeKind::Done);
            }
        }
        Stands::Lost => go(DATA_ON, OutcomeKind::Error),
    }
    world
}

#[test]
fn every_event_in_every_state_of_a_run_is_work_a_repetition_an_error_or_stale_as_the_table_has_it() {
    for (stands, row) in MOVES {
        for (event_type, comes) in EVENTS.into_iter().zip(row) {
            let mut world = bring_to(stands);
            world.restart();
            world.serve = Serve::new().inline(7);
            let sent = world.airdrop.attempts().len();
            let uploads = world.airdrop.uploads();
            let named = world.airdrop.named();
            let mut source = paged(2, 5);
            let found = world.serve(&mut source, &event(event_type, "run", "now"));
            let works = !source.asked().is_empty() || world.airdrop.uploads() > uploads;
            let case = format!("{event_type} where {stands:?}");
            let new = world.airdrop.attempts().len() - sent;
            match (comes, found) {
                (Comes::Stale, Err(Error::StaleEvent { .. })) => assert_eq!(new, 0, "{case}"),
                (Comes::Stale, found) => panic!("{case}: {found:?}"),
                (_, Err(error)) => panic!("{case}: {error:?}"),
                (comes, Ok(outcome)) => {
                    let expected = if comes == Comes::Errs { OutcomeKind::Error } else { OutcomeKind::Done };
                    assert_eq!((outcome.kind, new), (expected, 1), "{case}: {:?}", outcome.message);
                    // There is nothing to do in the attachments phase where nothing is queued.
                    let does = comes == Comes::Works && !event_type.contains("ATTACHMENTS");
                    assert_eq!(works, does, "{case}");
                    if !works {
                        assert_eq!(world.airdrop.named(), named, "{case}: nothing new is announced");
                    }
                }
            }
        }
    }
}

/// A record that cannot be stored is the extractor's mistake: the platform is told, and the rest of the run stands.
#[test]
fn a_page_that_cannot_be_stored_is_an_error_that_names_it() {
    let world = World::new(5);
    let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
        let page = page_of(stream, cursor.unwrap_or(0), 3, 5);
        Ok(if cursor == Some(1) { page.record("a/b", Record::new("1", &json!({}))?) } else { page })
    });
    let outcome = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Error, 1));
    assert!(
        world.airdrop.last().error().contains("the item type \"a/b\""),
        "{}",
        world.airdrop.last().error()
    );
    done(&world, &mut paged(3, 5), &event(DATA_ON, "run", "2"));
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 3, 5));
}
