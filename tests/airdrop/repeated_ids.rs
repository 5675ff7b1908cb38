//! A platform returns an artifact id twice in a run, after the worker has moved to another machine: the second one is
//! refused, as the id is in the checkpoint.

use std::sync::Mutex;
use std::time::Duration;

use crate::world::{Airdrop, Source, World, all_of, event, page_of, pass_on};
use highwater::ArtifactId;
use highwater::airdrop::{Context, Event, Outcome, OutcomeKind, Platform, PlatformError, Upload};

/// It gives so many of the next uploads this id.
struct Repeats<'a> {
    airdrop: &'a Airdrop,
    next: Mutex<Option<(ArtifactId, u32)>>,
    first: Mutex<Option<ArtifactId>>,
}

impl Platform for Repeats<'_> {
    pass_on!(airdrop: confirm, send, worker_state, save_worker_state);

    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let given = self.airdrop.upload(upload)?;
        self.first.lock().unwrap().get_or_insert_with(|| given.clone());
        match self.next.lock().unwrap().as_mut() {
            Some((repeated, left)) if *left > 0 => {
                *left -= 1;
                Ok(repeated.clone())
            }
            _ => Ok(given),
        }
    }
}

/// Four pages, one in each invocation.
fn source(world: &World) -> Source<'static> {
    let clock = world.clock.clone();
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        clock.advance(Duration::from_secs(9 * 60));
        Ok(page_of(stream, cursor.unwrap_or(0), 4, 3))
    })
}

#[test]
fn an_id_that_the_run_used_on_another_machine_is_not_accepted_again() {
    // How often it is repeated, and whether the upload is made in the end.
    for (times, made) in [(1, true), (2, true), (50, false)] {
        let mut world = World::new(3);
        world.serve = world.serve.clone().checkpoints();
        let mut repeats: Option<ArtifactId> = None;
        let mut serve = |world: &mut World, event: &Event, times: u32| -> Outcome {
            world.lose_disk();
            let next = Mutex::new(repeats.clone().map(|id| (id, times)));
            let platform = Repeats { airdrop: &world.airdrop, next, first: Mutex::default() };
            let outcome = world.serve.serve(&world.store, &platform, &source(world), event).unwrap();
            if event.event_type().name(event.spelling()) == "EXTRACTION_DATA_START" {
                repeats = platform.first.into_inner().unwrap();
            }
            outcome
        };
        serve(&mut world, &event("EXTRACTION_METADATA_START", "run", "1"), 0);
        serve(&mut world, &event("EXTRACTION_DATA_START", "run", "2"), 0);
        // Two machines on, the message that names the artifact is long accepted.
        serve(&mut world, &event("EXTRACTION_DATA_CONTINUE", "run", "3"), 0);
        let outcome = serve(&mut world, &event("EXTRACTION_DATA_CONTINUE", "run", "4"), times);
        if !made {
            assert_eq!(outcome.kind, OutcomeKind::Error);
            let error = world.airdrop.last().error();
            assert!(error.contains("artifact-1"), "it names the id: {error}");
        }
        let done = (5..10).any(|request| {
            let go_on = event("EXTRACTION_DATA_CONTINUE", "run", &request.to_string());
            serve(&mut world, &go_on, 0).kind == OutcomeKind::Done
        });
        assert!(done, "{times}");
        let mut announced = world.airdrop.announced("run");
        announced.sort();
        assert_eq!(announced, all_of("issues", 4, 3), "{times}: each once");
    }
}
