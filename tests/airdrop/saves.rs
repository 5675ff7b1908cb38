//! What the next life can conclude from a checkpoint, and from a sealed message. Each test covers one rule of
//! `accept`, of the keeper or of a refusal that no other test covers.

use std::cell::Cell;
use std::sync::Mutex;
use std::time::Duration;

use crate::world::{Answer, Call, Source, World, all_of, event, page_of, paged};
use highwater::airdrop::{Context, OutcomeKind};
use highwater::{Clock, Error, ErrorKind};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";

fn world() -> World {
    let mut world = World::new(1);
    world.serve = world.serve.clone().checkpoints();
    world
}

/// A source of four pages, one in each invocation.
fn slow(world: &World) -> Source<'static> {
    let clock = world.clock.clone();
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        clock.advance(Duration::from_secs(9 * 60));
        Ok(page_of(stream, cursor.unwrap_or(0), 4, 2))
    })
}

/// Every save since the event was accepted was acknowledged and lost: what that invocation announced is not known.
#[test]
fn a_run_whose_saves_were_lost_is_answered_with_error_for_good() {
    let mut world = world();
    let mut source = paged(2, 2);
    world.airdrop.kill_at(Call::Upload, 0, &world.disk);
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    for request in ["2", "3"] {
        world.lose_disk();
        let outcome = world.serve(&mut source, &event(DATA_ON, "run", request)).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        let text = world.airdrop.last().error();
        assert!(text.contains("run run is not known here"), "{text}");
    }
    assert!(world.airdrop.announced("run").is_empty());
    let outcome = world.serve(&mut source, &event(DATA, "run-2", "4")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.announced("run-2"), all_of("issues", 2, 2));
}

/// A message that was refused is unsealed in the checkpoint, too: the next life goes on from there, and does not send
/// the refused bytes again.
#[test]
fn a_refused_message_is_not_sent_again_by_a_life_without_the_disk() {
    let mut world = world();
    let mut source = slow(&world);
    world.airdrop.answer(Call::Send, 0, Answer::Refused(400));
    let refused = world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Retry);
    world.lose_disk();
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    let attempts = world.airdrop.attempts();
    assert_eq!(attempts.len(), 2);
    assert_ne!(attempts[0].body, attempts[1].body, "it has one page more");
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 2, 2));
}

/// The same where it is refused when it is sent again.
#[test]
fn a_message_refused_when_it_is_sent_again_is_unsealed_in_the_checkpoint() {
    let mut world = world();
    let mut source = slow(&world);
    world.airdrop.always(Call::Send, Some(Answer::Unavailable));
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    let sealed = world.airdrop.attempts()[0].body.clone();
    world.airdrop.always(Call::Send, Some(Answer::Refused(400)));
    world.lose_disk();
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    assert_eq!(world.airdrop.attempts().last().unwrap().body, sealed, "it was sent again");
    world.airdrop.always(Call::Send, None);
    world.lose_disk();
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_ne!(world.airdrop.attempts().last().unwrap().body, sealed, "it was not sent a third time");
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 2, 2));
}

/// The answer to the last message of a run was lost. The next event of that run proves that it was accepted: the run is
/// finished, and the next one reads from the start of that run.
#[test]
fn a_last_message_that_is_proven_finishes_its_run() {
    let mut world = World::new(1);
    world.serve = world.serve.clone().without_attachments_phase();
    let since = Mutex::new(Cell::new(None));
    let mut source = Source::new(|context: &Context, stream: &str, cursor: Option<u32>| {
        since.lock().unwrap().set(context.since());
        Ok(page_of(stream, cursor.unwrap_or(0), 1, 1))
    });
    let started = world.clock.now();
    world.airdrop.always(Call::Send, Some(Answer::Lost));
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    assert_eq!(world.airdrop.messages().len(), 1);
    world.airdrop.always(Call::Send, None);
    let late = world.serve(&mut source, &event(DATA_ON, "run", "2")).unwrap_err();
    assert!(matches!(late, Error::StaleEvent { .. }), "{late:?}");
    world.serve(&mut source, &event(DATA, "run-2", "3")).unwrap();
    assert_eq!(since.lock().unwrap().get(), Some(started));
}

/// Killed between a save at the platform and the commit after it: the intended token, which stands with the platform,
/// says that the disk is current. It keeps what no checkpoint has any more: the bytes of a message before the last
/// one.
#[test]
fn a_disk_whose_intended_token_was_saved_is_kept() {
    let mut world = world();
    let mut source = slow(&world);
    world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    let first = world.airdrop.attempts()[0].clone();
    world.serve(&mut source, &event(DATA_ON, "run", "2")).unwrap();
    // Another invocation's token is another.
    world.serve = world.serve.clone().inline(8);
    world.airdrop.kill_at(Call::SaveState, 0, &world.disk);
    world.serve(&mut source, &event(DATA_ON, "run", "3")).unwrap_err();
    world.restart();
    let sent = world.airdrop.attempts().len();
    let outcome = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert!(outcome.replayed);
    assert_eq!(world.airdrop.attempts().len(), sent + 1, "it is sent again");
    assert_eq!(world.airdrop.attempts().last(), Some(&first), "the same bytes, which only the disk has");
}

/// A death loses the uploads that no checkpoint names. So a save is due after twenty of them, however little time has
/// passed.
#[test]
fn of_a_fast_source_no_more_than_twenty_uploads_and_those_under_way_wait_for_a_save() {
    let world = world();
    world.serve(&mut paged(120, 1), &event(DATA, "run", "1")).unwrap();
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 120, 1));
    let saves = world.airdrop.calls(Call::SaveState);
    assert!(saves >= 120 / 22, "{saves} saves");
}
