//! A batch is uploaded, its id is stored, it is confirmed, and is announced in exactly one message; whatever the
//! platform refuses, loses or cannot accept at once, and from however many threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::world::{
    Airdrop, Answer, Call, Source, World, all_of, event, page_of, paged, pass_on, records_of,
};
use chrono::{DateTime, FixedOffset};
use highwater::airdrop::{
    Context, ExternalSyncUnit, Fate, Outcome, OutcomeKind, Platform, PlatformError, SealedMessage, Serve,
    SourceError, Upload,
};
use highwater::testing::Fault;
use highwater::{ArtifactId, Clock, ErrorKind, Page, Record, limits};
use serde_json::{Value, json};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";

fn start(world: &World, source: &mut Source<'_>) -> Outcome {
    world.serve(source, &event(DATA, "run", "1")).unwrap()
}

fn go_on(world: &World, source: &mut Source<'_>, request: &str) -> Outcome {
    world.serve(source, &event(DATA_ON, "run", request)).unwrap()
}

/// Everything was announced once, and what is confirmed is what was announced.
fn assert_all(world: &World, records: &[String]) {
    let mut announced = world.airdrop.announced("run");
    announced.sort();
    let mut records = records.to_vec();
    records.sort();
    assert_eq!(announced, records);
    assert_eq!(world.airdrop.confirmed(), world.airdrop.named(), "confirmed = announced");
}

#[test]
fn an_artifact_is_announced_with_what_is_in_it() {
    let world = World::new(3);
    let at = |text: &str| -> DateTime<FixedOffset> { text.parse().unwrap() };
    let mut source = Source::new(|_: &Context, _: &str, _| {
        let mut page = Page::last();
        for (id, created, modified) in [
            ("1", "2024-05-01T10:00:00.5+02:00", "2024-05-03T00:00:00Z"),
            ("2", "2024-05-01T09:00:00+02:00", "2024-05-02T00:00:00Z"),
        ] {
            let record = Record::new(id, &json!({ "is": id }))?.created(at(created)).modified(at(modified));
            page.push("issues", record);
        }
        Ok(page.record("users", Record::new("ada", &json!({ "is": "ada" }))?))
    });
    assert_eq!(start(&world, &mut source).kind, OutcomeKind::Done);
    let message = world.airdrop.last();
    let mut artifacts = message.artifacts();
    let ids: Vec<Value> = artifacts.iter_mut().map(|artifact| artifact["id"].take()).collect();
    assert!(ids.iter().all(|id| world.airdrop.confirmed().contains(id.as_str().unwrap())));
    let expected = [
        json!({ "id": null, "item_type": "issues", "item_count": 2,
            "oldest_created_date": "2024-05-01T07:00:00Z", "newest_created_date": "2024-05-01T08:00:00.500Z",
            "oldest_modified_date": "2024-05-02T00:00:00Z", "newest_modified_date": "2024-05-03T00:00:00Z" }),
        json!({ "id": null, "item_type": "users", "item_count": 1 }),
    ];
    assert_eq!(artifacts, expected);
    assert_eq!(message.body["worker_metadata"]["item_type"], "users");
}

#[test]
fn a_refused_upload_leaves_its_batch_staged_and_the_next_event_delivers_it() {
    let mut world = World::new(1);
    let mut source = paged(1, 4);
    world.airdrop.answer(Call::Upload, 1, Answer::Refused(403));
    let outcome = start(&world, &mut source);
    assert_eq!(outcome.kind, OutcomeKind::Error);
    let text = world.airdrop.last().error();
    assert!(text.contains("of unit (1 issues) was refused with 403: as told"), "{text}");
    assert_eq!(world.airdrop.confirmed(), world.airdrop.named(), "what was uploaded is settled all the same");
    world.restart();
    assert!(start(&world, &mut source).replayed);
    assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
    assert_all(&world, &all_of("issues", 1, 4));
    assert_eq!((source.asked().len(), world.airdrop.uploads()), (1, 4));
}

#[test]
fn an_upload_of_unknown_fate_is_made_anew_and_only_the_new_one_is_announced() {
    for answer in [Answer::Lost, Answer::Unavailable] {
        let world = World::new(5);
        world.airdrop.answer(Call::Upload, 0, answer);
        assert_eq!(start(&world, &mut paged(1, 3)).kind, OutcomeKind::Done);
        assert_all(&world, &all_of("issues", 1, 3));
        assert_eq!(world.airdrop.uploads(), if answer == Answer::Lost { 2 } else { 1 });
    }
}

#[test]
fn an_upload_that_is_unavailable_three_times_ends_with_nothing_lost() {
    for checkpoints in [false, true] {
        let mut world = World::new(5);
        if checkpoints {
            world.serve = world.serve.clone().checkpoints();
        }
        for skip in 0..3 {
            world.airdrop.answer(Call::Upload, skip, Answer::Unavailable);
        }
        let mut source = paged(1, 3);
        let started = world.clock.now();
        assert_eq!(start(&world, &mut source).kind, OutcomeKind::Done, "checkpoints: {checkpoints}");
        assert!(world.clock.now() > started, "it is left alone in between");
        assert_all(&world, &all_of("issues", 1, 3));
        assert_eq!((world.airdrop.calls(Call::Upload), world.airdrop.uploads()), (4, 1));
        assert_eq!((world.airdrop.calls(Call::Confirm), world.airdrop.named().len()), (1, 1));
        assert_eq!((source.asked().len(), world.airdrop.messages().len()), (1, 1));
    }
}

#[test]
fn a_call_that_fails_too_often_is_an_error_and_the_next_event_delivers() {
    for (call, name) in [(Call::Upload, "upload"), (Call::Confirm, "confirm")] {
        let mut world = World::new(5);
        let mut source = paged(1, 3);
        world.airdrop.always(call, Some(Answer::Unavailable));
        assert_eq!(start(&world, &mut source).kind, OutcomeKind::Error);
        let text = world.airdrop.last().error();
        assert!(text.contains(&format!("the {name} of batch 1 of unit (3 issues) failed 5 times")), "{text}");
        assert_eq!(world.airdrop.calls(call), 5);
        assert!(world.airdrop.named().is_empty());
        world.restart();
        world.airdrop.always(call, None);
        assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
        assert_all(&world, &all_of("issues", 1, 3));
        assert_eq!(world.airdrop.uploads(), 1);
    }
}

#[test]
fn a_confirm_refused_for_good_is_followed_by_one_new_upload() {
    let world = World::new(5);
    world.airdrop.answer(Call::Confirm, 0, Answer::Refused(400));
    assert_eq!(start(&world, &mut paged(1, 3)).kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.uploads(), 2);
    assert_eq!(world.airdrop.named(), ["artifact-1".to_owned()].into());
    assert_all(&world, &all_of("issues", 1, 3));
}

#[test]
fn a_confirm_refused_twice_is_an_error_that_names_the_artifact() {
    let mut world = World::new(5);
    world.airdrop.answer(Call::Confirm, 0, Answer::Refused(400));
    world.airdrop.answer(Call::Confirm, 1, Answer::Refused(404));
    let mut source = paged(1, 3);
    assert_eq!(start(&world, &mut source).kind, OutcomeKind::Error);
    let text = world.airdrop.last().error();
    assert!(text.contains("artifact-1") && text.contains("refused with 404"), "{text}");
    assert_eq!((world.airdrop.uploads(), world.airdrop.named().len()), (2, 0));
    // It is tried again when asked for, under the id that it has; never uploaded a third time.
    world.restart();
    world.airdrop.answer(Call::Confirm, 0, Answer::Refused(404));
    assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Error);
    assert_eq!(go_on(&world, &mut source, "3").kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.uploads(), 2);
    assert_all(&world, &all_of("issues", 1, 3));
}

#[test]
fn a_confirm_refused_after_one_of_unknown_fate_is_an_error_that_names_the_artifact() {
    for unknown in [Answer::Lost, Answer::Unavailable] {
        let world = World::new(5);
        world.airdrop.answer(Call::Confirm, 0, unknown);
        world.airdrop.answer(Call::Confirm, 1, Answer::Refused(409));
        let mut source = paged(1, 3);
        assert_eq!(start(&world, &mut source).kind, OutcomeKind::Error);
        let text = world.airdrop.last().error();
        assert!(text.contains("artifact-0") && text.contains("refused with 409"), "{text}");
        assert!(text.contains("an earlier attempt may have taken effect"), "{text}");
        assert_eq!(world.airdrop.uploads(), 1, "it is not uploaded again: it might be there twice");
        assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
        assert_all(&world, &all_of("issues", 1, 3));
    }
    // A refusal of one that certainly took no effect is a definite one.
    let world = World::new(5);
    world.airdrop.answer(Call::Confirm, 0, Answer::Busy(1));
    world.airdrop.answer(Call::Confirm, 1, Answer::Refused(409));
    assert_eq!(start(&world, &mut paged(1, 3)).kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.uploads(), 2);
}

#[test]
fn whatever_a_killed_life_tried_a_later_one_does_not_know() {
    // Killed in the confirm: the next life confirms the same id, and takes a refusal for what it may be.
    for refused in [false, true] {
        let mut world = World::new(5);
        world.airdrop.kill_at(Call::Confirm, 0, &world.disk);
        let mut source = paged(1, 3);
        let error = world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        world.restart();
        if refused {
            world.airdrop.answer(Call::Confirm, 0, Answer::Refused(400));
        }
        let outcome = start(&world, &mut source);
        let expected = if refused { OutcomeKind::Error } else { OutcomeKind::Done };
        assert_eq!((outcome.kind, world.airdrop.uploads()), (expected, 1));
        if refused {
            assert!(world.airdrop.last().error().contains("artifact-0"));
            assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
        }
        assert_all(&world, &all_of("issues", 1, 3));
        assert_eq!(source.asked().len(), 1);
    }
    // Killed during the upload: its id is not known, so the batch is uploaded again; the old upload stays unconfirmed.
    let mut world = World::new(5);
    world.airdrop.kill_at(Call::Upload, 0, &world.disk);
    let mut source = paged(1, 3);
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    world.restart();
    assert_eq!(start(&world, &mut source).kind, OutcomeKind::Done);
    assert_eq!((world.airdrop.uploads(), world.airdrop.named().len()), (2, 1));
    assert_all(&world, &all_of("issues", 1, 3));
    // Killed in the message: the same bytes under the same key.
    let mut world = World::new(5);
    world.airdrop.kill_at(Call::Send, 0, &world.disk);
    let mut source = paged(1, 3);
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    world.restart();
    assert!(start(&world, &mut source).replayed);
    assert_eq!(world.airdrop.messages().len(), 1);
    assert_all(&world, &all_of("issues", 1, 3));
}

/// A life that took up what a killed one had uploaded confirmed it, and there is nothing yet that it belongs to.
#[test]
fn external_sync_units_are_never_confirmed_wherever_the_process_dies() {
    let list = event("EXTRACTION_EXTERNAL_SYNC_UNITS_START", "run", "1");
    let mut uploads = BTreeSet::new();
    for operations in 0.. {
        let mut world = World::new(5);
        let mut source = paged(1, 1);
        source.units = vec![ExternalSyncUnit::new("unit", "Unit", "")];
        world.disk.inject(Fault::Dies { position: world.disk.position() + operations });
        let survived = world.serve(&mut source, &list).is_ok();
        uploads.insert(world.airdrop.uploads());
        world.restart();
        assert_eq!(world.serve(&mut source, &list).unwrap().kind, OutcomeKind::Done);
        assert_eq!(world.airdrop.calls(Call::Confirm), 0, "killed after {operations} disk operations");
        assert_eq!(world.airdrop.named().len(), 1);
        if survived {
            break;
        }
    }
    assert_eq!(uploads, [0, 1].into());
}

#[test]
fn an_error_settles_every_confirm_first() {
    let world = World::new(1);
    // Confirms fail on and off while the source fails for good.
    for skip in [0, 1, 3, 4, 6] {
        world.airdrop.answer(Call::Confirm, skip, Answer::Unavailable);
    }
    let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
        if cursor.is_some() {
            return Err("the source is gone".into());
        }
        Ok(page_of(stream, 0, 2, 4))
    });
    let outcome = start(&world, &mut source);
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Error, 4));
    assert_all(&world, &records_of("issues", 0, 4));
    assert_eq!(go_on(&world, &mut paged(2, 4), "2").kind, OutcomeKind::Done);
    assert_all(&world, &all_of("issues", 2, 4));
}

#[test]
fn an_error_whose_artifacts_do_not_fit_says_progress_first() {
    let world = World::new(1);
    world.airdrop.answer(Call::Send, 0, Answer::Refused(413));
    let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
        if cursor.is_some() {
            return Err("the source is gone".into());
        }
        Ok(page_of(stream, 0, 2, 8))
    });
    let kinds = [start(&world, &mut source), go_on(&world, &mut source, "2")]
        .map(|outcome| (outcome.kind, outcome.artifacts));
    assert_eq!(kinds, [(OutcomeKind::Progress, 4), (OutcomeKind::Error, 4)]);
    assert!(world.airdrop.last().error().contains("the source is gone"));
    assert_all(&world, &records_of("issues", 0, 8));
}

#[test]
fn no_more_is_confirmed_than_one_message_carries_and_the_rest_goes_into_the_next() {
    let mut world = World::new(1);
    // Long ids: some 300 artifacts fill a message.
    world.airdrop.id_prefix = "x".repeat(400);
    let mut source = paged(1, 700);
    let mut outcome = start(&world, &mut source);
    for number in 2.. {
        let message = world.airdrop.attempts().pop().unwrap();
        assert!(message.body.len() <= limits::MESSAGE_BYTES_SOFT, "{} bytes", message.body.len());
        assert_eq!(world.airdrop.confirmed(), world.airdrop.named());
        if outcome.kind == OutcomeKind::Done {
            break;
        }
        assert_eq!(outcome.kind, OutcomeKind::Progress);
        // There is only room left for an error's text and for one more artifact.
        assert!(message.body.len() > limits::MESSAGE_BYTES_SOFT - 3000, "{} bytes", message.body.len());
        world.restart();
        outcome = go_on(&world, &mut source, &format!("{number}"));
    }
    assert_eq!(world.airdrop.messages().len(), 3);
    assert_all(&world, &all_of("issues", 1, 700));
    assert_eq!((source.asked().len(), world.airdrop.uploads()), (1, 700));
}

#[test]
fn a_platform_that_is_busy_is_waited_for_or_asked_for_a_delay() {
    let world = World::new(5);
    let before = world.clock.elapsed();
    world.airdrop.answer(Call::Upload, 0, Answer::Busy(17));
    world.airdrop.answer(Call::Confirm, 0, Answer::Busy(18));
    assert_eq!(start(&world, &mut paged(1, 3)).kind, OutcomeKind::Done);
    assert!(world.clock.elapsed() >= before + Duration::from_secs(35));
    assert_all(&world, &all_of("issues", 1, 3));

    // Longer than the invocation has.
    let world = World::new(5);
    world.airdrop.answer(Call::Upload, 0, Answer::Busy(5000));
    let mut source = paged(1, 3);
    assert_eq!(start(&world, &mut source).kind, OutcomeKind::Delay);
    assert_eq!(world.airdrop.last().body["event_data"]["delay"], 5000);
    world.clock.advance(Duration::from_secs(5000));
    assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
    assert_all(&world, &all_of("issues", 1, 3));
}

#[test]
fn no_retry_outlives_the_invocation_and_what_is_left_is_for_the_next() {
    let mut world = World::new(1);
    let hard = Duration::from_secs(3);
    world.serve = Serve::new().inline(7).hard_limit(hard);
    world.airdrop.always(Call::Upload, Some(Answer::Unavailable));
    let before = world.clock.elapsed();
    let mut source = paged(1, 3);
    let outcome = start(&world, &mut source);
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Progress, 0));
    assert!(world.clock.elapsed() < before + hard);
    assert!(world.airdrop.calls(Call::Upload) >= 3, "each is tried at least once");
    world.airdrop.always(Call::Upload, None);
    assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
    assert_all(&world, &all_of("issues", 1, 3));
}

/// The platform in a bad hour: every call takes its time, many fail, and some bring the code that makes them down.
struct Chaos<'a> {
    airdrop: &'a Airdrop,
    chance: Mutex<fastrand::Rng>,
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
    failed: AtomicUsize,
}

impl Chaos<'_> {
    fn call<T>(&self, call: impl FnOnce() -> Result<T, PlatformError>) -> Result<T, PlatformError> {
        let at_once = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        self.at_once_max.fetch_max(at_once, Ordering::Relaxed);
        let (takes, fate) = {
            let mut chance = self.chance.lock().unwrap();
            (chance.u64(..1500), chance.u8(..100))
        };
        std::thread::sleep(Duration::from_micros(takes));
        let retry = |fate| PlatformError::Retry { fate, after: None, reason: "a bad hour".to_owned() };
        let result = match fate {
            0..8 => Err(retry(Fate::Unknown)),
            8..16 => call().and(Err(retry(Fate::Unknown))),
            16..22 => Err(retry(Fate::NotApplied)),
            22..24 => {
                self.at_once.fetch_sub(1, Ordering::Relaxed);
                self.failed.fetch_add(1, Ordering::Relaxed);
                panic!("the platform's own code is broken");
            }
            _ => call(),
        };
        self.failed.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
        self.at_once.fetch_sub(1, Ordering::Relaxed);
        result
    }
}

impl Platform for Chaos<'_> {
    pass_on!(airdrop: send);

    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        self.call(|| self.airdrop.upload(upload))
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        self.call(|| self.airdrop.confirm(artifact))
    }
}

#[test]
fn lanes_of_threads_deliver_every_record_once_however_badly_the_platform_behaves() {
    let world = World::new(7);
    let chaos = Chaos {
        airdrop: &world.airdrop,
        chance: Mutex::new(fastrand::Rng::with_seed(11)),
        at_once: AtomicUsize::new(0),
        at_once_max: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
    };
    let serve = Serve::new().lanes(6);
    let source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
        let at = cursor.unwrap_or(0);
        if at % 11 == 10 && chaos.chance.lock().unwrap().bool() {
            return Err(SourceError::RateLimited { after: Duration::from_secs(1) });
        }
        Ok(page_of(stream, at, 24, 17))
    })
    .streams(["issues", "users", "links"]);
    let mut outcomes = Vec::new();
    loop {
        let event_type = if outcomes.is_empty() { DATA } else { DATA_ON };
        let event = event(event_type, "run", &format!("{}", outcomes.len()));
        let outcome = serve.serve(&world.store, &chaos, &source, &event).unwrap();
        outcomes.push(outcome.kind);
        if outcome.kind == OutcomeKind::Done {
            break;
        }
        assert!(outcomes.len() < 100, "{outcomes:?}");
        world.clock.advance(Duration::from_secs(1));
    }
    let expected: Vec<String> =
        ["issues", "users", "links"].iter().flat_map(|stream| all_of(stream, 24, 17)).collect();
    assert_all(&world, &expected);
    let requests: BTreeSet<String> = world
        .airdrop
        .messages()
        .iter()
        .map(|message| message.body["event_context"]["request_id"].to_string())
        .collect();
    assert_eq!((requests.len(), world.airdrop.messages().len()), (outcomes.len(), outcomes.len()));
    let (at_once, failed) = (chaos.at_once_max.into_inner(), chaos.failed.into_inner());
    println!("{outcomes:?}: {} uploads, {at_once} calls at once, {failed} failed", world.airdrop.uploads());
    assert!((2..=6).contains(&at_once), "{at_once} calls at once");
    assert!(failed > 50 && world.airdrop.named().len() > 150);
}

/// The platform as one worker without a disk sees it: the answer to one of its saves is told here.
struct SavesMeet<'a, F> {
    airdrop: &'a Airdrop,
    saves: AtomicUsize,
    at: usize,
    meet: F,
}

impl<F: Fn(&str) -> Result<(), PlatformError> + Sync> Platform for SavesMeet<'_, F> {
    pass_on!(airdrop: upload, confirm, send, worker_state);

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        if self.saves.fetch_add(1, Ordering::Relaxed) == self.at {
            return (self.meet)(state);
        }
        self.airdrop.save_worker_state(state)
    }
}

/// The answer 503 to a save that was applied or not.
fn unavailable() -> PlatformError {
    PlatformError::Retry { fate: Fate::Unknown, after: None, reason: "503".to_owned() }
}

/// A save that fails is tried again, and while it waits another holder may take the unit over: the next attempt looks
/// first.
#[test]
fn a_save_that_is_tried_again_is_fenced_if_another_holder_took_over_meanwhile() {
    for at in 0..3 {
        let mut world = World::new(2);
        world.serve = world.serve.clone().checkpoints();
        let mut other = World::new(2);
        other.serve = Serve::new().inline(8).checkpoints();
        let theirs = Mutex::new(None);
        let platform = SavesMeet {
            airdrop: &world.airdrop,
            saves: AtomicUsize::new(0),
            at,
            meet: |_: &str| {
                let event = event(DATA, "run", "1");
                let taken = other.serve.serve(&other.store, &world.airdrop, &paged(2, 2), &event);
                assert_eq!(taken.unwrap().kind, OutcomeKind::Done);
                *theirs.lock().unwrap() = Some(world.airdrop.state_text());
                Err(unavailable())
            },
        };
        let error = world
            .serve
            .serve(&world.store, &platform, &paged(2, 2), &event(DATA, "run", "1"))
            .expect_err("another holder is live");
        assert_eq!(error.kind(), ErrorKind::Fenced, "save {at}: {error:?}");
        let theirs = theirs.into_inner().unwrap().expect("the other took over");
        assert_eq!(world.airdrop.state_text(), theirs, "save {at}: the other's checkpoint stays");
    }
}

#[test]
fn a_save_or_a_removal_whose_answer_was_lost_is_made_again_by_its_own_holder() {
    for at in 0..3 {
        let mut world = World::new(2);
        world.serve = world.serve.clone().checkpoints();
        world.airdrop.answer(Call::SaveState, at, Answer::Lost);
        assert_eq!(start(&world, &mut paged(2, 2)).kind, OutcomeKind::Done);
        assert_all(&world, &all_of("issues", 2, 2));

        world.airdrop.answer(Call::SaveState, 0, Answer::Lost);
        let outcome = world.serve(&mut paged(2, 2), &event("EXTRACTION_DATA_DELETE", "run", "2")).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done);
        assert_eq!(world.airdrop.state_after_deletion(), serde_json::json!({}));
    }
}

/// Each attempt at a save is a look and a save, and a look that fails is an attempt.
#[test]
fn a_look_that_fails_counts_as_an_attempt_at_the_save() {
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    // The first look takes the unit over.
    for skip in 1..6 {
        world.airdrop.answer(Call::LoadState, skip, Answer::Unavailable);
    }
    let error = world.serve(&mut paged(2, 2), &event(DATA, "run", "1")).unwrap_err();
    assert!(error.to_string().contains("tried 5 times"), "{error}");
    assert_eq!((world.airdrop.calls(Call::LoadState), world.airdrop.calls(Call::SaveState)), (6, 0));
}

/// A platform that speaks HTTP of its own maps its statuses by the table.
struct Timid<'a> {
    airdrop: &'a Airdrop,
    /// The status of the first answer to each message, which was applied before it.
    status: u16,
    sent: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Platform for Timid<'_> {
    pass_on!(airdrop: upload, confirm);

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        let mut sent = self.sent.lock().unwrap();
        let bodies = sent.entry(message.key.clone()).or_default();
        bodies.push(message.body.clone());
        self.airdrop.send(message)?;
        if bodies.len() == 1 {
            let error = PlatformError::from_status(
                highwater::airdrop::Call::Send,
                self.status,
                None,
                "sending".to_owned(),
            );
            return Err(error.expect("it is no success"));
        }
        Ok(())
    }
}

/// RFC 9110 section 15.5.9: after 408 a client may repeat the request; a proxy sends it for what it has passed on.
#[test]
fn a_message_answered_408_425_or_5xx_is_sent_again_with_the_same_bytes_and_stays_sealed() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let world = World::new(4);
        let timid = Timid { airdrop: &world.airdrop, status, sent: Mutex::default() };
        let outcome = Serve::new()
            .inline(1)
            .serve(&world.store, &timid, &paged(3, 2), &event(DATA, "run", "1"))
            .unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done, "{status}");
        let sent = timid.sent.into_inner().unwrap();
        let bodies: Vec<_> = sent.values().collect();
        assert_eq!(bodies.len(), 1, "{status}: one message");
        assert!(bodies[0].len() == 2 && bodies[0][0] == bodies[0][1], "{status}: the same bytes twice");
        assert_all(&world, &all_of("issues", 3, 2));
    }
}

/// Each page is handed out with the cursor after it, and how often each was asked for is counted.
fn refused_cursor(next: impl Fn(u32) -> u32 + Sync) -> (World, String) {
    let world = World::new(4);
    let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
        let at = cursor.unwrap_or(0);
        let record =
            Record::new(format!("{stream}-{at}"), &json!({ "is": format!("{stream}-{at}") })).unwrap();
        Ok(Page::more(next(at)).record(stream, record))
    });
    let outcome = start(&world, &mut source);
    // Batches staged before it are announced first; in a PROGRESS, if they do not fit into the ERROR.
    assert_eq!(outcome.kind, OutcomeKind::Error);
    let said = world.airdrop.last().body["event_data"]["error"]["message"].as_str().unwrap().to_owned();
    (world, said)
}

#[test]
fn a_cursor_that_stands_still_is_an_error_and_its_page_is_announced_never() {
    let (world, said) = refused_cursor(|at| if at < 3 { at + 1 } else { at });
    assert!(said.contains("the cursor 3 of stream issues is not allowed"), "{said}");
    assert!(said.contains("RateLimited"), "{said}");
    let announced = world.airdrop.announced("run");
    assert_eq!(announced, ["issues-0", "issues-1", "issues-2"], "page 3 led nowhere");
    // Nor does it get anywhere in a later invocation.
    let mut source =
        Source::new(|_: &Context, _: &str, cursor: Option<u32>| Ok(Page::more(cursor.unwrap_or(0))));
    let outcome = go_on(&world, &mut source, "2");
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Error, 0));
}

#[test]
fn a_cycle_of_cursors_is_an_error_within_one_invocation() {
    for (before, cycle) in [(0, 2), (1, 3), (5, 7), (20, 2)] {
        let next = move |at: u32| if at + 1 < before + cycle { at + 1 } else { before };
        let (world, said) = refused_cursor(next);
        assert!(said.contains("form a cycle"), "{before}, {cycle}: {said}");
        let pages = world.airdrop.announced("run").len();
        let most = 2 * before.max(cycle) + cycle + 2;
        assert!(pages <= most as usize, "{before}, {cycle}: {pages} pages, at most {most}");
    }
}

#[test]
fn a_cursor_that_stands_still_is_an_error_of_the_plain_loop() {
    let world = World::new(4);
    let run = world.store.sync_unit("plain").unwrap().begin().unwrap();
    let mut fetched = 0;
    let result: Result<Vec<_>, _> = run
        .batches("issues", |cursor: Option<u32>| {
            fetched += 1;
            Ok::<_, std::io::Error>(Page::more(cursor.unwrap_or(7)))
        })
        .collect();
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("the cursor 7 of stream issues"), "{error}");
    assert_eq!(fetched, 2);
    let mut at = 0;
    let result: Result<Vec<_>, _> = run
        .batches("users", |_: Option<u32>| {
            at += 1;
            Ok::<_, std::io::Error>(Page::more(at % 5))
        })
        .collect();
    assert!(result.unwrap_err().to_string().contains("form a cycle"));
    assert!(at < 20, "{at} pages");
}

/// A platform that something is done to on the way to it.
struct Between<'a> {
    airdrop: &'a Airdrop,
    /// Chooses the id of an upload, from those that were given before it and its own.
    names: &'a (dyn Fn(&[ArtifactId], ArtifactId) -> ArtifactId + Sync),
    /// Decides the result of a confirm before it is made.
    before_confirm: &'a (dyn Fn() -> Result<(), PlatformError> + Sync),
    /// The same for an upload, for a message, and for a worker state that is saved.
    before_upload: &'a (dyn Fn() -> Result<(), PlatformError> + Sync),
    before_send: &'a (dyn Fn() -> Result<(), PlatformError> + Sync),
    before_save: &'a (dyn Fn(&str) -> Result<(), PlatformError> + Sync),
    given: Mutex<Vec<ArtifactId>>,
}

impl<'a> Between<'a> {
    fn new(
        airdrop: &'a Airdrop,
        names: &'a (dyn Fn(&[ArtifactId], ArtifactId) -> ArtifactId + Sync),
        before_confirm: &'a (dyn Fn() -> Result<(), PlatformError> + Sync),
    ) -> Self {
        Self {
            airdrop,
            names,
            before_confirm,
            before_upload: &|| Ok(()),
            before_send: &|| Ok(()),
            before_save: &|_| Ok(()),
            given: Mutex::default(),
        }
    }
}

impl Platform for Between<'_> {
    pass_on!(airdrop: worker_state);

    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        (self.before_upload)()?;
        let id = self.airdrop.upload(upload)?;
        let mut given = self.given.lock().unwrap();
        let id = (self.names)(&given, id);
        given.push(id.clone());
        Ok(id)
    }
    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        (self.before_confirm)()?;
        self.airdrop.confirm(artifact)
    }
    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        (self.before_send)()?;
        self.airdrop.send(message)
    }
    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        (self.before_save)(state)?;
        self.airdrop.save_worker_state(state)
    }
}

#[test]
fn a_store_that_was_replaced_is_noticed_before_a_confirm_and_nothing_is_confirmed_twice_or_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let open = || highwater::Store::options().batch_items(2).open(&path).unwrap();
    // Pages come ahead, so several batches are closed in one commit, and their confirms wait together.
    let serve = Serve::new().inline(7);
    let airdrop = Airdrop::default();
    let start = event(DATA, "run", "1");
    let confirms = AtomicUsize::new(0);
    // Amid the first confirm of the first worker somebody deletes its store, and another worker does the whole run.
    let replace = || {
        if confirms.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        std::fs::remove_file(&path).unwrap();
        let outcome = serve.serve(&open(), &airdrop, &paged(2, 2), &start).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done);
        let reason = "as told".to_owned();
        Err(PlatformError::Retry { fate: Fate::NotApplied, after: None, reason })
    };
    let store = open();
    let platform = Between::new(&airdrop, &|_, id| id, &replace);
    let error = serve.serve(&store, &platform, &paged(2, 2), &start).unwrap_err();
    assert!(matches!(error, highwater::Error::Replaced { .. }), "{error:?}");
    assert!(error.to_string().contains("state.redb"), "{error}");
    assert_eq!(confirms.load(Ordering::SeqCst), 1, "no confirm follows the one amid which it was replaced");
    let mut announced = airdrop.announced("run");
    announced.sort();
    assert_eq!(announced, all_of("issues", 2, 2));
    assert_eq!((airdrop.confirmed(), airdrop.messages().len()), (airdrop.named(), 1));
}

/// Somebody deletes the first worker's store while its message is sealed and not sent, and another worker does the
/// whole run: between the seal and the first attempt (while the checkpoint is saved), or between two attempts.
#[test]
fn a_store_that_was_replaced_between_seal_and_send_is_noticed_and_nothing_is_sent() {
    for between_attempts in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let open = || highwater::Store::options().batch_items(2).open(&path).unwrap();
        let airdrop = Airdrop::default();
        let start = event(DATA, "run", "1");
        let replaced = AtomicUsize::new(0);
        let replace = || {
            assert_eq!(replaced.fetch_add(1, Ordering::SeqCst), 0, "it is replaced once");
            std::fs::remove_file(&path).unwrap();
            let outcome = Serve::new().inline(7).serve(&open(), &airdrop, &paged(2, 2), &start).unwrap();
            assert_eq!(outcome.kind, OutcomeKind::Done);
        };
        let serve = if between_attempts { Serve::new() } else { Serve::new().checkpoints() };
        let store = open();
        let sends = AtomicUsize::new(0);
        let before_send = || {
            if sends.fetch_add(1, Ordering::SeqCst) > 0 || !between_attempts {
                return Ok(());
            }
            replace();
            let reason = "as told".to_owned();
            Err(PlatformError::Retry { fate: Fate::NotApplied, after: None, reason })
        };
        // A checkpoint is saved when the unit is taken over, before the confirms, and when the message is sealed.
        let saves = AtomicUsize::new(0);
        let before_save = |_: &str| {
            if saves.fetch_add(1, Ordering::SeqCst) == 2 {
                replace();
            }
            Ok(())
        };
        let mut platform = Between::new(&airdrop, &|_, id| id, &|| Ok(()));
        platform.before_send = &before_send;
        platform.before_save = &before_save;
        let error = serve.inline(7).serve(&store, &platform, &paged(2, 2), &start).unwrap_err();
        assert!(matches!(error, highwater::Error::Replaced { .. }), "{error:?}");
        assert_eq!(replaced.load(Ordering::SeqCst), 1);
        assert_eq!(sends.load(Ordering::SeqCst), usize::from(between_attempts), "nothing is sent after it");
        assert_eq!(airdrop.messages().len(), 1, "the other worker's");
    }
}

#[test]
fn an_artifact_id_that_is_given_twice_is_not_taken_and_the_upload_is_made_anew() {
    for checkpoints in [false, true] {
        let mut world = World::new(5);
        if checkpoints {
            world.serve = world.serve.clone().checkpoints();
        }
        // Every other upload is given the very first id.
        let repeats = |given: &[ArtifactId], id: ArtifactId| match given {
            [first, ..] if given.len() % 2 == 1 => first.clone(),
            _ => id,
        };
        let platform = Between::new(&world.airdrop, &repeats, &|| Ok(()));
        let source = paged(4, 5);
        let outcome = world.serve.serve(&world.store, &platform, &source, &event(DATA, "run", "1"));
        assert_eq!(outcome.unwrap().kind, OutcomeKind::Done, "checkpoints: {checkpoints}");
        assert_all(&world, &all_of("issues", 4, 5));
        assert!(platform.given.lock().unwrap().len() > 4, "some were made anew");
    }
}

#[test]
fn an_artifact_id_that_an_earlier_message_announced_is_not_taken_either() {
    let mut world = World::new(5);
    world.serve = world.serve.clone().budget(Duration::ZERO);
    let repeats = |given: &[ArtifactId], id: ArtifactId| if given.len() == 1 { given[0].clone() } else { id };
    let platform = Between::new(&world.airdrop, &repeats, &|| Ok(()));
    let mut source = paged(2, 5);
    let serve = |source: &mut Source<'_>, event_type: &str, request: &str| {
        world.serve.serve(&world.store, &platform, source, &event(event_type, "run", request)).unwrap().kind
    };
    assert_eq!(serve(&mut source, DATA, "1"), OutcomeKind::Progress);
    assert_eq!(world.airdrop.named().len(), 1);
    let mut request = 2;
    while serve(&mut source, DATA_ON, &request.to_string()) != OutcomeKind::Done {
        request += 1;
    }
    assert_all(&world, &all_of("issues", 2, 5));
}

#[test]
fn an_artifact_id_that_is_given_over_and_over_is_an_error_that_names_it() {
    let world = World::new(5);
    let repeats = |given: &[ArtifactId], id: ArtifactId| given.first().cloned().unwrap_or(id);
    let platform = Between::new(&world.airdrop, &repeats, &|| Ok(()));
    let mut source = paged(2, 5);
    let outcome = world.serve.serve(&world.store, &platform, &source, &event(DATA, "run", "1")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    let text = world.airdrop.last().error();
    let first = platform.given.lock().unwrap()[0].clone();
    assert!(text.contains(first.as_str()) && text.contains("used before"), "{text}");
    assert_eq!(world.airdrop.confirmed(), world.airdrop.named(), "confirmed = announced");
    assert_eq!(platform.given.lock().unwrap().len(), 1 + 4, "it is made anew three times");
    // When the platform has mended itself, nothing is lost.
    assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
    assert_all(&world, &all_of("issues", 2, 5));
}

/// A storage refuses an upload for a temporary reason, such as an expired URL: the batch is prepared and uploaded
/// again, three times. Then the phase ends in an ERROR, and the next event delivers it.
#[test]
fn a_batch_that_its_storage_refuses_for_a_passing_reason_is_uploaded_anew_three_times() {
    for (refusals, kind) in [(1, OutcomeKind::Done), (3, OutcomeKind::Done), (4, OutcomeKind::Error)] {
        for checkpoints in [false, true] {
            let mut world = World::new(5);
            if checkpoints {
                world.serve = world.serve.clone().checkpoints();
            }
            let uploads = AtomicUsize::new(0);
            let refuse = || {
                if uploads.fetch_add(1, Ordering::SeqCst) >= refusals {
                    return Ok(());
                }
                let reason = "the storage: expired".to_owned();
                Err(PlatformError::StorageRefused { status: 403, after: None, reason })
            };
            let mut platform = Between::new(&world.airdrop, &|_, id| id, &|| Ok(()));
            platform.before_upload = &refuse;
            let mut source = paged(1, 3);
            let outcome = world.serve.serve(&world.store, &platform, &source, &event(DATA, "run", "1"));
            assert_eq!(outcome.unwrap().kind, kind, "{refusals} refusals, checkpoints: {checkpoints}");
            let made = uploads.load(Ordering::SeqCst);
            if kind == OutcomeKind::Error {
                assert_eq!(made, 4, "once, and three times anew");
                let text = world.airdrop.last().error();
                assert!(text.contains("403") && text.contains("it was uploaded again 3 times"), "{text}");
                assert!(world.airdrop.named().is_empty());
                assert_eq!(go_on(&world, &mut source, "2").kind, OutcomeKind::Done);
            } else {
                assert_eq!(made, refusals + 1);
            }
            assert_all(&world, &all_of("issues", 1, 3));
            assert_eq!((source.asked().len(), world.airdrop.uploads()), (1, 1));
        }
    }
}
