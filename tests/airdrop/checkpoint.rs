//! A checkpoint lives among others: a platform or a program parses the worker state and writes it again, an earlier
//! version saved it. It restores all the same, and one that was damaged is told, never guessed from.

use std::fmt::Write as _;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use crate::world::{Call, Pages, Source, World, all_of, event, event_of, letters, page_of, records_of};
use highwater::airdrop::{AttachmentBody, AttachmentError, Context, Event, OutcomeKind};
use highwater::record::Attachment;
use highwater::{Page, Record};
use serde_json::{Value, json};

/// What a program in JavaScript makes of a JSON text that it parses and writes again: numbers become doubles, and, to be
/// sure, the keys are sorted. Written for this test alone.
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
fn source(world: &World, value_bytes: usize) -> Source<impl Pages + use<>> {
    let clock = world.clock.clone();
    Source::new(move |_: &Context<'_>, stream: &str, cursor: Option<u32>| {
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

/// What version 0.1.0 left: see the fixtures' README.
fn fixture(name: &str) -> (Value, Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let read = |kind: &str| {
        let text = fs::read_to_string(path.join(format!("{name}.{kind}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    (read("state"), read("platform"))
}

/// The source of the fixtures: six pages of three issues and two attachments, of which some are denied and one is busy.
fn files(run: &'static str) -> Source<impl Pages> {
    let mut source = Source::new(move |_: &Context<'_>, stream: &str, cursor: Option<u32>| {
        let at = cursor.unwrap_or(0);
        let mut page =
            if at < 5 { Page::more(at + 1) } else { Page::last().bookmark(&json!({ "tail": run })) };
        for is in records_of(stream, at, 3) {
            page.push(stream, Record::new(is.clone(), &json!({ "is": is })).unwrap());
        }
        for item in 0..2 {
            let id = format!("{run}-{at}-{item}");
            let url = format!("https://files.example/{id}");
            let attachment =
                Attachment::new(id.clone(), url, format!("{id}.bin"), format!("issues-{at}-{item}"));
            page.push("attachments", attachment.to_record().unwrap());
        }
        Ok(page.value("seen", &json!({ "run": run, "page": at })))
    });
    source.metadata = Ok(json!({
        "schema_version": "v0.2.0", "record_types": { "issues": { "fields": { "is": { "type": "text" } } } },
    }));
    source.open = Some(Box::new(|attachment: &Attachment| {
        let (_, of) = attachment.id.split_once('-').unwrap();
        match of {
            "1-0" | "3-1" | "4-0" => Err(AttachmentError::Denied { reason: "403".into() }),
            "2-1" => Err("the line is busy".into()),
            _ => Ok(AttachmentBody::new(Cursor::new(attachment.id.clone().into_bytes()))),
        }
    }));
    source
}

#[test]
fn a_checkpoint_of_version_1_goes_on_in_the_middle_of_its_run() {
    for name in ["finished", "data", "data-restored-sealed", "attachments", "attachments-restored"] {
        let (state, platform) = fixture(name);
        let mut world = World::new(4);
        world.serve = world.serve.clone().checkpoints().streams(2).attachment_tries(2);
        world.airdrop.set_state(&state);
        world.airdrop.take_over(&platform);
        let at: chrono::DateTime<chrono::Utc> = platform["at"].as_str().unwrap().parse().unwrap();
        world.clock.advance((at - highwater::Clock::now(&world.clock)).to_std().unwrap());

        let serve = |world: &mut World, event_type: &str, request: &str| {
            world.lose_disk();
            let event = event_of("acme/files", &format!("EXTRACTION_{event_type}"), "second", request);
            let outcome = world.serve(&mut files("second"), &event).unwrap();
            assert_eq!(world.airdrop.state()["highwater"]["version"], 2);
            world.clock.advance(Duration::from_secs(60));
            outcome.kind
        };
        if name == "finished" {
            assert_eq!(serve(&mut world, "METADATA_START", "METADATA-1"), OutcomeKind::Done);
        }
        if !name.starts_with("attachments") {
            // The event that died: begun, amid its pages, or sealed and delivered.
            assert_eq!(serve(&mut world, "DATA_START", "DATA-1"), OutcomeKind::Done, "{name}");
        }
        let (event_type, request) = match name {
            "attachments" | "attachments-restored" => ("ATTACHMENTS_CONTINUE", 2),
            _ => ("ATTACHMENTS_START", 1),
        };
        let mut kind = serve(&mut world, event_type, &format!("ATTACHMENTS-{request}"));
        for request in request + 1..request + 20 {
            if kind == OutcomeKind::Done {
                break;
            }
            kind = serve(&mut world, "ATTACHMENTS_CONTINUE", &format!("ATTACHMENTS-{request}"));
        }
        assert_eq!(kind, OutcomeKind::Done, "{name}");

        let announced = world.airdrop.announced("second");
        let mut issues: Vec<_> = announced.iter().filter(|is| is.starts_with("issues")).cloned().collect();
        issues.sort();
        assert_eq!(issues, all_of("issues", 6, 3), "{name}: each once");
        let mut lines = world.airdrop.lines_of("second", "ssor_attachment");
        let external = |line: &Value| line["id"]["external"].as_str().unwrap().to_owned();
        lines.sort_by_key(external);
        let uploaded =
            ["0-0", "0-1", "1-1", "2-0", "3-0", "4-1", "5-0", "5-1"].map(|of| format!("second-{of}"));
        let settled: Vec<_> = lines.iter().map(external).filter(|id| id.starts_with("second")).collect();
        assert_eq!(settled, uploaded, "{name}: each once");
        let checkpoint = world.airdrop.checkpoint();
        assert_eq!(checkpoint["run"]["status"], "finished", "{name}");
        assert_eq!(checkpoint["bookmarks"]["issues"], r#"{"tail":"second"}"#, "{name}");
    }
}
