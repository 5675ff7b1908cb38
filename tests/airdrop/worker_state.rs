//! A worker state that cannot be read is reported to the platform, with the key and how to start over. A state in
//! which nothing was written yet counts as missing, and keys of others need not be readable.

use crate::world::{Answer, Call, World, all_of, event, paged};
use highwater::airdrop::OutcomeKind;
use highwater::{Error, ErrorKind};
use serde_json::{Value, json};

fn world(state: &str) -> World {
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    world.airdrop.set_state_text(state);
    world
}

/// A run's metadata and data on a new machine each, to DONE.
fn whole_data_phase(world: &mut World) {
    for (event_type, request) in [("EXTRACTION_METADATA_START", "1"), ("EXTRACTION_DATA_START", "2")] {
        world.lose_disk();
        let outcome = world.serve(&mut paged(3, 2), &event(event_type, "run", request)).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done);
    }
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 3, 2));
}

#[test]
fn a_state_in_which_nothing_was_written_yet_is_none() {
    for none in ["", "  ", "null", "[]", " [ ]\n", "\"\"", "{}", r#"{"highwater":null}"#] {
        let mut world = world(none);
        whole_data_phase(&mut world);
        assert_eq!(world.airdrop.checkpoint()["run"]["status"], "open", "{none:?}");
    }
}

#[test]
fn a_state_that_cannot_be_read_is_an_error_that_names_the_key_and_says_how_to_start_over() {
    for (state, says) in [
        ("{", "the worker state of unit"),
        (r#"{"own":{"page":"#, r#""own" in the worker state of unit"#),
        (r#"{"own":1,"more"#, r#"what follows "own" in the worker state of unit"#),
        (r#"{"own":1}}"#, "the worker state of unit"),
        ("7", "it must be a JSON object, not a number"),
        ("[1]", "it must be a JSON object, not a list"),
        ("\"{}\"", "it must be a JSON object, not a string"),
        ("undefined", "the worker state of unit cannot be read: it is not JSON"),
        (r#"{"highwater":7}"#, "highwater in the worker state of unit"),
        (r#"{"highwater":{}}"#, "highwater in the worker state of unit"),
        (
            r#"{"highwater":{"version":2,"body":"","checksum":"\ud800"}}"#,
            "highwater in the worker state of unit",
        ),
        (r#"{"highwater":{"version":3}}"#, "newer than 2"),
        (r#"{"lastSyncStarted":"\ud800"}"#, "lastSyncStarted in the worker state of unit"),
        (r#"{"toDevRev":[]}"#, "toDevRev in the worker state of unit"),
        (r#"{"sdkState":"","connectorState":{}}"#, "sdkState in the worker state of unit"),
        (r#"{"sdkState":{"toDevRev":"\udfff"}}"#, "sdkState in the worker state of unit"),
    ] {
        let mut world = world(state);
        for (event_type, request) in [
            ("EXTRACTION_METADATA_START", "1"),
            ("EXTRACTION_DATA_CONTINUE", "2"),
            ("EXTRACTION_ATTACHMENTS_DELETE", "3"),
        ] {
            world.lose_disk();
            let outcome = world.serve(&mut paged(1, 1), &event(event_type, "run", request)).unwrap();
            assert_eq!(outcome.kind, OutcomeKind::Error, "{state}");
            let error = world.airdrop.last().error();
            assert!(error.contains(says) && error.contains("EXTRACTION_DATA_DELETE"), "{state}: {error}");
            assert!(!error.contains("highwater-dump"), "which cannot see it: {error}");
        }
        assert_eq!(world.airdrop.state_text(), state);
        assert_eq!(world.airdrop.calls(Call::SaveState), 0);
        // As it says.
        world.lose_disk();
        let deleted = world.serve(&mut paged(1, 1), &event("EXTRACTION_DATA_DELETE", "run", "4")).unwrap();
        assert_eq!(deleted.kind, OutcomeKind::Done, "{state}");
        whole_data_phase(&mut world);
    }
}

#[test]
fn keys_of_the_connectors_that_cannot_be_read_are_told_to_the_run_that_is_to_go_on_from_them() {
    let deep = format!("{}1{}", "[".repeat(130), "]".repeat(130));
    for own in [deep.as_str(), "1e400"] {
        let mut world = world(&format!(r#"{{"lastSyncStarted":"2026-01-02T11:00:00Z","own":{own}}}"#));
        for request in ["1", "2"] {
            world.lose_disk();
            let go_on = event("EXTRACTION_DATA_CONTINUE", "run", request);
            assert_eq!(world.serve(&mut paged(1, 1), &go_on).unwrap().kind, OutcomeKind::Error);
            let error = world.airdrop.last().error();
            assert!(error.starts_with("the connector's own keys in the worker state of unit"), "{error}");
            assert!(error.contains("EXTRACTION_DATA_DELETE"), "{error}");
            assert!(world.airdrop.state_text().contains(own), "they stay as they are");
        }
    }
}

#[test]
fn half_a_character_in_what_is_others_does_not_matter_and_stays_as_it_is() {
    let own = r#""text":"cut \ud83d","\udc00":["\ud800"],"big":12345678901234567890123"#;
    for state in [format!("{{{own}}}"), format!(r#"{{"sdkState":{{}},"connectorState":{{{own}}}}}"#)] {
        let mut world = world(&state);
        whole_data_phase(&mut world);
        assert!(world.airdrop.state_text().contains(own), "{}", world.airdrop.state_text());
        // And through a deletion of what is ours.
        let delete = event("EXTRACTION_DATA_DELETE", "run", "9");
        assert_eq!(world.serve(&mut paged(1, 1), &delete).unwrap().kind, OutcomeKind::Done);
        assert!(world.airdrop.state_text().contains(own), "{}", world.airdrop.state_text());
        assert!(!world.airdrop.state_text().contains("lastSyncStarted"));
    }
}

#[test]
fn a_state_that_could_not_be_fetched_is_not_called_one_that_was_not_saved() {
    for event_type in ["EXTRACTION_METADATA_START", "EXTRACTION_DATA_DELETE"] {
        let world = world("{}");
        world.airdrop.always(Call::LoadState, Some(Answer::Unavailable));
        let error = world.serve(&mut paged(1, 1), &event(event_type, "run", "1")).unwrap_err();
        assert!(matches!(error, Error::NotFetched { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Retry);
        assert!(error.to_string().starts_with("the worker state of unit could not be fetched"), "{error}");
        world.airdrop.always(Call::LoadState, None);
        world.airdrop.always(Call::SaveState, Some(Answer::Refused(400)));
        let error = world.serve(&mut paged(1, 1), &event(event_type, "run", "1")).unwrap_err();
        assert!(matches!(error, Error::NotSaved { .. }), "{error:?}");
        assert_eq!(world.airdrop.messages().len(), 0, "the same event is tried again");
    }
}

#[test]
fn a_state_that_others_break_in_between_is_told_by_the_event_that_follows() {
    let mut world = world("{}");
    let start = event("EXTRACTION_METADATA_START", "run", "1");
    world.serve(&mut paged(3, 2), &start).unwrap();
    let mut state: Value = world.airdrop.state();
    state["highwater"]["checksum"] = json!("00");
    for keeps_disk in [true, false] {
        world.airdrop.set_state(&state);
        if !keeps_disk {
            world.lose_disk();
        }
        let go_on = event("EXTRACTION_DATA_START", "run", if keeps_disk { "2" } else { "3" });
        assert_eq!(world.serve(&mut paged(3, 2), &go_on).unwrap().kind, OutcomeKind::Error);
        assert!(world.airdrop.last().error().contains("highwater in the worker state of unit"));
    }
}
