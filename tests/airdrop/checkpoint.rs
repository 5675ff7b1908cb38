//! A platform or a program may parse the worker state and write it again: the checkpoint in it still restores. A
//! damaged checkpoint is reported, and nothing is guessed from it. (Those of earlier versions are in `formats`.)

use std::fmt::Write as _;
use std::time::Duration;

use crate::world::{Call, Source, World, all_of, event, letters, page_of};
use highwater::airdrop::{Context, Event, OutcomeKind};
use serde_json::{Value, json};

/// A JSON text as a JavaScript program writes it after parsing it: numbers become doubles. In addition the keys are
/// sorted. Written for this test alone.
fn rewritten(text: &str) -> String {
    let mut out = String::new();
    write_as_javascript(&mut out, &serde_json::from_str(text).unwrap());
    out
}

fn write_as_javascript(out: &mut String, value: &Value) {
    match value {
        // A double is written with the fewest digits that tell it from others, whole ones without a point.
        Value::Number(number) => write!(out, "{}", number.as_f64().unwrap()).unwrap(),
        Value::Array(list) => {
            out.push('[');
            for (at, item) in list.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_as_javascript(out, item);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut names: Vec<_> = members.keys().collect();
            names.sort_unstable_by(|one, other| other.cmp(one));
            out.push('{');
            for (at, name) in names.into_iter().enumerate() {
                write!(out, "{}{}:", if at > 0 { "," } else { "" }, json!(name)).unwrap();
                write_as_javascript(out, &members[name]);
            }
            out.push('}');
        }
        other => write!(out, "{other}").unwrap(),
    }
}

#[test]
fn the_emulation_of_javascript_rounds_and_sorts() {
    assert_eq!(
        rewritten(
            r#"{"a":{"y":1.0,"x":9007199254740993},"b":[true,null,"\u00e9\"",-0.5,7972250764018056494]}"#
        ),
        "{\"b\":[true,null,\"\u{e9}\\\"\",-0.5,7972250764018056000],\"a\":{\"y\":1,\"x\":9007199254740992}}"
    );
}

/// Six pages, each an invocation of its own; each sets one value of so many bytes.
fn source(world: &World, value_bytes: usize) -> Source<'static> {
    let clock = world.clock.clone();
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        clock.advance(Duration::from_secs(11 * 60));
        let at = cursor.unwrap_or(0);
        let value = letters(value_bytes, u64::from(at) + 1);
        Ok(page_of(stream, at, 6, 3).value(&format!("value-{at}"), &value).bookmark(&u64::MAX))
    })
}

#[test]
fn a_worker_state_that_javascript_wrote_again_restores_at_any_size() {
    for value_bytes in [0, 1_000, 65_000] {
        let mut world = World::new(2);
        world.serve = world.serve.clone().checkpoints();
        let (mut largest, mut changed) = (0, 0);
        let mut serve = |world: &mut World, event: &Event| {
            world.lose_disk();
            let mut source = source(world, value_bytes);
            let outcome = world.serve(&mut source, event).unwrap();
            let state = rewritten(&world.airdrop.state_text());
            changed += usize::from(state != world.airdrop.state_text());
            largest = largest.max(state.len());
            world.airdrop.set_state_text(&state);
            outcome.kind
        };
        for run in ["first", "second"] {
            assert_eq!(serve(&mut world, &event("EXTRACTION_METADATA_START", run, "1")), OutcomeKind::Done);
            serve(&mut world, &event("EXTRACTION_DATA_START", run, "2"));
            let done = (3..20).any(|request| {
                let go_on = event("EXTRACTION_DATA_CONTINUE", run, &request.to_string());
                serve(&mut world, &go_on) == OutcomeKind::Done
            });
            assert!(done, "{run} does not end");
            let end = event("EXTRACTION_ATTACHMENTS_START", run, "90");
            assert_eq!(serve(&mut world, &end), OutcomeKind::Done);
            assert_eq!(world.airdrop.announced(run), all_of("issues", 6, 3));
        }
        assert!(changed > 0, "its keys stood in this order anyway");
        let bookmark = &world.airdrop.checkpoint()["bookmarks"]["issues"];
        assert_eq!(*bookmark, json!(u64::MAX.to_string()), "what is in the body is not rounded");
        assert!(largest > 6 * value_bytes, "{largest} bytes with values of {value_bytes}");
    }
}

#[test]
fn nothing_outside_the_body_is_a_number_that_a_double_rounds() {
    fn look(value: &Value) {
        match value {
            Value::Number(number) => assert!(number.as_u64().unwrap() < 1 << 53, "{number}"),
            Value::Array(list) => list.iter().for_each(look),
            Value::Object(members) => members.values().for_each(look),
            _ => {}
        }
    }
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    for (at, event_type) in ["METADATA_START", "DATA_START", "DATA_CONTINUE"].into_iter().enumerate() {
        let event = event(&format!("EXTRACTION_{event_type}"), "run", &at.to_string());
        world.serve(&mut source(&world, 10), &event).unwrap();
        look(&world.airdrop.state());
    }
}

#[test]
fn a_body_that_was_changed_is_an_error_to_the_platform_and_a_deletion_starts_over() {
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    let start = event("EXTRACTION_METADATA_START", "run", "1");
    world.serve(&mut source(&world, 10), &start).unwrap();
    world.serve(&mut source(&world, 10), &event("EXTRACTION_DATA_START", "run", "2")).unwrap();
    let mut state = world.airdrop.state();
    let body = state["highwater"]["body"].as_str().unwrap();
    let at = body.len() / 2;
    let other = if body.as_bytes()[at] == b'A' { "B" } else { "A" };
    state["highwater"]["body"] = format!("{}{other}{}", &body[..at], &body[at + 1..]).into();
    state["own"] = json!("kept");
    world.airdrop.set_state(&state);
    let before = world.airdrop.state_text();
    let saves = world.airdrop.calls(Call::SaveState);

    for request in ["3", "4"] {
        world.lose_disk();
        let go_on = event("EXTRACTION_DATA_CONTINUE", "run", request);
        let outcome = world.serve(&mut source(&world, 10), &go_on).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        let error = world.airdrop.last().error();
        for says in
            ["highwater in the worker state of unit cannot be read", "checksum", "EXTRACTION_DATA_DELETE"]
        {
            assert!(error.contains(says), "{error}");
        }
        assert!(!error.contains("highwater-dump"), "which cannot see it: {error}");
        assert_eq!(
            (world.airdrop.state_text(), world.airdrop.calls(Call::SaveState)),
            (before.clone(), saves)
        );
    }

    // As it says.
    let delete = event("EXTRACTION_DATA_DELETE", "run", "5");
    assert_eq!(world.serve(&mut source(&world, 10), &delete).unwrap().kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.state_after_deletion(), json!({ "own": "kept" }));
    world.lose_disk();
    let start = event("EXTRACTION_METADATA_START", "next", "1");
    assert_eq!(world.serve(&mut source(&world, 10), &start).unwrap().kind, OutcomeKind::Done);
}
