//! The initial domain mapping is installed once per version of the snap-in, before anything else in a run.

use crate::world::{Answer, Call, Source, World, all_of, event, paged};
use highwater::airdrop::{Event, OutcomeKind, Platform};
use highwater_airdrop::Local;
use serde_json::{Value, json};

fn mapping() -> Value {
    json!({ "starting_recipe_blueprint": { "name": "b" }, "additional_mappings": { "kept": [1, 2.5] } })
}

fn with_mapping(pages: u32) -> Source<'static> {
    let mut source = paged(pages, 1);
    source.mapping = Some(mapping());
    source
}

/// An event of that version of the snap-in.
fn of_version(version: &str, event_type: &str, run: &str, request: &str) -> Event {
    let json = json!({
        "context": { "snap_in_version_id": version },
        "payload": { "event_type": format!("EXTRACTION_{event_type}"), "event_context": {
            "run_id": run, "request_id": request, "sequence_version": request, "sync_unit_id": "unit",
        }},
    });
    Event::from_json(&json.to_string()).unwrap()
}

/// A whole run; how often the extractor was asked for its mapping.
fn run_of(world: &World, version: &str, run: &str, metadata: bool) -> u32 {
    let mut source = with_mapping(1);
    for (request, step) in ["METADATA_START", "DATA_START", "ATTACHMENTS_START"].iter().enumerate() {
        if request == 0 && !metadata {
            continue;
        }
        let outcome =
            world.serve(&mut source, &of_version(version, step, run, &request.to_string())).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done, "{step}");
    }
    assert_eq!(world.airdrop.announced(run), all_of("issues", 1, 1));
    source.mapping_asked()
}

#[test]
fn a_mapping_is_installed_once_per_version_in_the_first_phase_of_a_run() {
    for checkpoints in [false, true] {
        for metadata in [true, false] {
            let mut world = World::new(2);
            if checkpoints {
                world.serve = world.serve.clone().checkpoints();
            }
            let installed = (mapping(), Some("blueprint".to_owned()));
            assert_eq!(run_of(&world, "v1", "one", metadata), 1);
            assert_eq!(world.airdrop.mappings(), std::slice::from_ref(&installed));
            if checkpoints {
                world.lose_disk();
                assert_eq!(world.airdrop.state()["snapInVersionId"], "v1");
            } else {
                world.restart();
            }
            assert_eq!(run_of(&world, "v1", "two", metadata), 0, "it is installed");
            assert_eq!(run_of(&world, "v2", "three", metadata), 1, "of another version it is not");
            assert_eq!(world.airdrop.mappings(), [installed.clone(), installed]);
        }
    }
}

#[test]
fn a_mapping_comes_before_anything_else_of_the_run() {
    let world = World::new(2);
    world.airdrop.always(Call::Mapping, Some(Answer::Refused(400)));
    let mut source = with_mapping(1);
    for (request, step) in ["METADATA_START", "METADATA_START"].iter().enumerate() {
        let event = of_version("v1", step, "run", &request.to_string());
        assert_eq!(world.serve(&mut source, &event).unwrap().kind, OutcomeKind::Error);
        let error = world.airdrop.last().error();
        assert!(error.contains("initial domain mapping of snap-in version v1"), "{error}");
        assert!(error.contains("400"), "{error}");
    }
    assert_eq!(world.airdrop.uploads(), 0);
    assert_eq!(source.mapping_asked(), 2, "each event tries again");
    // Taken at last, the run goes on as if nothing had been.
    world.airdrop.always(Call::Mapping, None);
    let event = of_version("v1", "METADATA_START", "run", "9");
    assert_eq!(world.serve(&mut source, &event).unwrap().kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.mappings().len(), 1);
}

#[test]
fn a_mapping_that_cannot_be_installed_leaves_no_blueprint_behind() {
    let world = World::new(2);
    let mut source = with_mapping(1);
    let mut request = 0;
    let mut next = || {
        request += 1;
        let event = of_version("v1", "METADATA_START", "run", &request.to_string());
        world.serve(&mut source, &event).unwrap().kind
    };
    for answer in [Answer::Unavailable, Answer::Refused(404)] {
        world.airdrop.always(Call::CheckMapping, Some(answer));
        assert_eq!(next(), OutcomeKind::Error);
        let error = world.airdrop.last().error();
        assert!(error.contains("initial domain mapping of snap-in version v1"), "{error}");
    }
    assert_eq!((world.airdrop.calls(Call::Blueprint), world.airdrop.calls(Call::Mapping)), (0, 0));
    // Once it can be, there is one.
    world.airdrop.always(Call::CheckMapping, None);
    world.airdrop.answer(Call::CheckMapping, 0, Answer::Unavailable);
    assert_eq!(next(), OutcomeKind::Done);
    assert_eq!(world.airdrop.calls(Call::Blueprint), 1);
    assert_eq!(world.airdrop.mappings(), [(mapping(), Some("blueprint".to_owned()))]);
}

#[test]
fn a_blueprint_that_fails_is_no_reason_to_stop() {
    for answer in [Answer::Refused(422), Answer::Unavailable] {
        let world = World::new(2);
        world.airdrop.always(Call::Blueprint, Some(answer));
        run_of(&world, "v1", "run", true);
        assert_eq!(world.airdrop.mappings(), [(mapping(), None)]);
    }
}

#[test]
fn an_install_that_may_succeed_later_is_tried_again_with_the_blueprint_that_is_there() {
    let world = World::new(2);
    world.airdrop.answer(Call::Mapping, 0, Answer::Unavailable);
    world.airdrop.answer(Call::Mapping, 1, Answer::Busy(3));
    run_of(&world, "v1", "run", true);
    assert_eq!((world.airdrop.calls(Call::Mapping), world.airdrop.calls(Call::Blueprint)), (3, 1));
    assert_eq!(world.airdrop.mappings(), [(mapping(), Some("blueprint".to_owned()))]);
}

#[test]
fn killed_before_it_is_remembered_it_is_installed_again() {
    let mut world = World::new(2);
    world.airdrop.kill_at(Call::Mapping, 0, &world.disk);
    let start = of_version("v1", "METADATA_START", "run", "1");
    world.serve(&mut with_mapping(1), &start).unwrap_err();
    assert_eq!(world.airdrop.mappings().len(), 1, "the kill came after it");
    world.restart();
    assert_eq!(world.serve(&mut with_mapping(1), &start).unwrap().kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.mappings().len(), 2);
    assert_eq!(run_of(&world, "v1", "next", true), 0);
}

#[test]
fn without_a_mapping_or_a_version_nothing_is_installed() {
    let world = World::new(2);
    let mut none = paged(1, 1);
    world.serve(&mut none, &of_version("v1", "METADATA_START", "run", "1")).unwrap();
    assert_eq!((none.mapping_asked(), world.airdrop.calls(Call::Mapping)), (1, 0));
    let mut source = with_mapping(1);
    world.serve(&mut source, &event("EXTRACTION_METADATA_START", "next", "1")).unwrap();
    assert_eq!((source.mapping_asked(), world.airdrop.calls(Call::Mapping)), (0, 0));
}

#[test]
fn a_version_that_the_sdk_has_installed_is_not_installed_again() {
    for (version, installs) in [("v1", 0), ("v2", 1)] {
        let mut world = World::new(2);
        world.serve = world.serve.clone().checkpoints();
        world.airdrop.set_state(&json!({ "snapInVersionId": "v1", "lastSuccessfulSyncStarted": "" }));
        run_of(&world, version, "run", true);
        assert_eq!(world.airdrop.mappings().len(), installs);
        assert_eq!(world.airdrop.state()["snapInVersionId"], version);
    }
}

#[test]
fn a_local_airdrop_records_what_was_installed() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::open(dir.path()).unwrap();
    local.check_mapping(&mapping()).unwrap();
    let blueprint = local.create_blueprint(&mapping()).unwrap();
    assert!(blueprint.is_some() && local.create_blueprint(&json!({})).unwrap().is_none());
    local.install_mapping(&json!({}), None).unwrap();
    local.install_mapping(&mapping(), blueprint.as_deref()).unwrap();
    let recorded = std::fs::read_to_string(dir.path().join("domain_mapping.json")).unwrap();
    let recorded: Value = serde_json::from_str(&recorded).unwrap();
    assert_eq!(recorded, json!({ "mapping": mapping(), "blueprint": blueprint }));
    std::fs::write(dir.path().join("objects.json"), "{}").unwrap();
    assert_eq!(local.worker_state().unwrap().unwrap().objects.as_deref(), Some("{}"));
}
