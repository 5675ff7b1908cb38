//! A worker state has a size limit. What exceeds it is refused before it is staged, by an error that names it, its
//! size and the room left. The platform gets an ERROR in every case, and a worker that needs less goes on.

use std::collections::BTreeSet;

use crate::world::{Source, World, all_of, event, event_with, letters, page_of};
use highwater::airdrop::{Context, Event, OutcomeKind};
use highwater::limits::{CHECKPOINT_BYTES_MAX, CHECKPOINT_STATE_BYTES_MAX};
use highwater::{Page, Record};
use serde_json::{Value, json};

/// Bytes of the worker state as it is posted.
fn posted(world: &World) -> usize {
    json!(world.airdrop.state_text()).to_string().len()
}

fn world() -> World {
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    world
}

/// Answers an event on a new machine.
fn serve(world: &mut World, source: &mut Source<'_>, event: &Event) -> OutcomeKind {
    world.lose_disk();
    let outcome = world.serve(source, event).unwrap();
    let bytes = posted(world);
    assert!(bytes <= CHECKPOINT_BYTES_MAX, "{bytes} bytes are posted");
    outcome.kind
}

/// Goes through a run's data phase, to its DONE or ERROR; says which.
fn data(world: &mut World, source: &mut Source<'_>, run: &str) -> OutcomeKind {
    let start = event("EXTRACTION_METADATA_START", run, "1");
    assert_eq!(serve(world, source, &start), OutcomeKind::Done);
    let mut kind = serve(world, source, &event("EXTRACTION_DATA_START", run, "2"));
    for request in 3..100 {
        if kind != OutcomeKind::Progress {
            return kind;
        }
        kind = serve(world, source, &event("EXTRACTION_DATA_CONTINUE", run, &request.to_string()));
    }
    panic!("the data phase does not end");
}

/// Streams that live as long as the test.
fn streams(names: impl Iterator<Item = String>) -> Vec<&'static str> {
    names.map(|name| &*name.leak()).collect()
}

type Fill = fn(&str, u32) -> Page<u32>;

#[test]
fn what_does_not_fit_is_refused_by_name_with_its_size_and_what_is_left() {
    let one = || vec!["issues"];
    let many: fn(usize, usize) -> Vec<&'static str> =
        |count, bytes| streams((0..count).map(|at| format!("{at:05}{}", letters(bytes - 5, at as u64))));
    let cases: [(&str, Vec<&'static str>, Fill, &str, u64); 5] = [
        (
            "values",
            one(),
            |_, at| Page::more(at + 1).value(&format!("value-{at}"), &letters(60_000, at.into())),
            "the value value-7",
            60_000,
        ),
        (
            "bookmarks",
            many(20, 10),
            |stream, _| Page::last().bookmark(&letters(60_000, stream[..5].parse().unwrap())),
            "the bookmark of stream 00007",
            60_000,
        ),
        ("streams", many(20_000, 12), |_, _| Page::last(), "stream 0", 50),
        ("long names", many(1_200, 512), |_, _| Page::last(), "stream 0", 550),
        (
            "item types",
            one(),
            |_, at| {
                (0..20).fold(Page::more(at + 1), |page, n| {
                    let item_type = letters(400, u64::from(at * 20 + n));
                    page.record(&item_type, Record::new("1", &json!({ "is": "1" })).unwrap())
                })
            },
            "item type ",
            800,
        ),
    ];
    for (name, streams, fill, names, bytes) in cases {
        let mut world = world();
        let mut source = Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
            Ok(fill(stream, cursor.unwrap_or(0)))
        });
        source.streams = streams;
        assert_eq!(data(&mut world, &mut source, "run"), OutcomeKind::Error, "{name}");
        let error = world.airdrop.last().error();
        let (what, rest) = error.split_once(" takes ").unwrap_or_else(|| panic!("{name}: {error}"));
        assert!(what.starts_with(names), "{name}: {error}");
        let numbers: Vec<u64> = rest
            .split(|c: char| !c.is_ascii_digit())
            .filter(|digits| !digits.is_empty())
            .map(|digits| digits.parse().unwrap())
            .collect();
        let [found, left, limit] = numbers[..] else { panic!("{name}: {error}") };
        assert!((bytes..bytes + 100).contains(&found) && left < found, "{name}: {error}");
        assert!(limit > CHECKPOINT_STATE_BYTES_MAX as u64 - 2_000, "{name}: {error}");
        assert!(posted(&world) > 100_000, "{name}: it was filled: {}", posted(&world));

        // The same event has the same answer again; a worker that sets no more values goes on from what is stored.
        let mut less = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
            Ok(page_of(stream, cursor.unwrap_or(0), 2, 3))
        });
        assert_eq!(data(&mut world, &mut less, "next"), OutcomeKind::Done, "{name}");
        let records: BTreeSet<String> = world.airdrop.announced("next").into_iter().collect();
        assert_eq!(records, all_of("issues", 2, 3).into_iter().collect(), "{name}");
    }
}

#[test]
fn a_full_state_leaves_room_for_messages_and_artifacts_of_any_size() {
    let mut world = world();
    world.airdrop.id_letters = 480;
    let context = json!({
        "run_id": "run", "sync_unit_id": "unit", "external_sync_unit_id": "external", "external_system_id": "system",
        "unknown": letters(20_000, 98),
    });
    let event = |event_type: &str, request: u32| {
        let mut context = context.clone();
        context["request_id"] = request.to_string().into();
        context["sequence_version"] = request.to_string().into();
        event_with(event_type, &context)
    };
    // Filled to the last byte that the first refusal says is left.
    let sizes = |left: usize| [vec![60_000; 7], vec![left]].concat();
    let page = move |at: u32, left: usize| {
        let page = page_of("issues", at, 400, 3);
        let size = sizes(left).get(at as usize).copied();
        size.map_or(page_of("issues", at, 400, 3), |bytes| {
            page.value(&format!("value-{at}"), &letters(bytes, at.into()))
        })
    };
    let mut source =
        Source::new(move |_: &Context, _: &str, cursor: Option<u32>| Ok(page(cursor.unwrap_or(0), 27_000)));
    assert_eq!(serve(&mut world, &mut source, &event("EXTRACTION_METADATA_START", 1)), OutcomeKind::Done);
    let mut kind = serve(&mut world, &mut source, &event("EXTRACTION_DATA_START", 2));
    let mut largest = posted(&world);
    let mut progress = 0;
    for request in 3..300 {
        if kind != OutcomeKind::Progress {
            break;
        }
        progress += 1;
        kind = serve(&mut world, &mut source, &event("EXTRACTION_DATA_CONTINUE", request));
        largest = largest.max(posted(&world));
    }
    assert_eq!(kind, OutcomeKind::Done);
    assert!(progress >= 2, "messages were full");
    assert!(largest > 600_000, "{largest} bytes at most");
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 400, 3));
}

/// The connector's own keys are the extractor's, and count as no one else's beside that: there is room for as much
/// more in the next run as there was in the first.
#[test]
fn the_connectors_own_keys_that_the_extractor_set_count_once() {
    let mut world = world();
    for (run, values) in [("run", 4), ("next", 5)] {
        let own = json!({ "own": letters(60_000, 1) });
        let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
            let page = page_of(stream, cursor.unwrap_or(0), 2, 3).connector_state(&own);
            Ok((0..values).fold(page, |page, at| page.value(&format!("value-{at}"), &letters(45_000, at))))
        });
        assert_eq!(data(&mut world, &mut source, run), OutcomeKind::Done, "{run}");
        assert_eq!(world.airdrop.state()["own"], own["own"]);
        assert_eq!(world.airdrop.announced(run), all_of("issues", 2, 3));
    }
}

#[test]
fn what_others_keep_counts_and_is_told() {
    for (bytes, phase, says) in [
        (899_500, "EXTRACTION_METADATA_START", "the worker state of unit is 90"),
        (500_000, "EXTRACTION_DATA_START", "0 are left of 0"),
        (899_500, "EXTRACTION_DATA_START", "bytes as posted, over the limit of 900000"),
    ] {
        let mut world = world();
        let own = json!({ "own": letters(bytes, 1) });
        world.airdrop.set_state(&own);
        let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
            Ok(page_of(stream, cursor.unwrap_or(0), 2, 3))
        });
        for request in ["1", "2"] {
            assert_eq!(serve(&mut world, &mut source, &event(phase, "run", request)), OutcomeKind::Error);
            let error = world.airdrop.last().error();
            assert!(error.contains(says), "{error}");
            assert_eq!(world.airdrop.state()["own"], own["own"], "it is others' and stays");
        }
    }
}

#[test]
fn a_deletion_for_which_others_leave_no_room_is_told() {
    let mut world = world();
    let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
        Ok(page_of(stream, cursor.unwrap_or(0), 2, 3))
    });
    let start = event("EXTRACTION_METADATA_START", "run", "1");
    assert_eq!(serve(&mut world, &mut source, &start), OutcomeKind::Done);
    let mut state = world.airdrop.state();
    state["own"] = letters(CHECKPOINT_BYTES_MAX, 1).into();
    world.airdrop.set_state(&state);
    let delete = event("EXTRACTION_ATTACHMENTS_DELETE", "run", "2");
    for _ in 0..2 {
        world.lose_disk();
        assert_eq!(world.serve(&mut source, &delete).unwrap().kind, OutcomeKind::Error);
        let error = world.airdrop.last().error();
        assert!(error.contains("bytes as posted, over the limit of 900000"), "{error}");
        assert_eq!(world.airdrop.state(), state, "nothing was saved");
    }
    state["own"] = json!(1);
    world.airdrop.set_state(&state);
    assert_eq!(serve(&mut world, &mut source, &delete), OutcomeKind::Done);
}

#[test]
fn a_state_that_others_fill_or_break_while_a_page_is_fetched_is_told_at_once() {
    for (key, value, cut, says) in [
        ("/own", json!(letters(CHECKPOINT_BYTES_MAX, 1)), 0, "bytes as posted, over the limit of 900000"),
        ("/highwater/checksum", json!("00"), 0, "highwater in the worker state of unit"),
        ("/own", json!(1), 1, "in the worker state of unit cannot be read: it is not JSON"),
    ] {
        for keeps_disk in [true, false] {
            let mut world = world();
            let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
                Ok(page_of(stream, cursor.unwrap_or(0), 3, 3))
            });
            let start = event("EXTRACTION_METADATA_START", "run", "1");
            assert_eq!(serve(&mut world, &mut source, &start), OutcomeKind::Done);
            let before = world.airdrop.state_text();
            let data = event("EXTRACTION_DATA_START", "run", "2");
            let outcome = {
                let mut breaking = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
                    if cursor == Some(1) {
                        let mut state = world.airdrop.state();
                        state["own"] = json!(1);
                        *state.pointer_mut(key).unwrap() = value.clone();
                        let text = state.to_string();
                        world.airdrop.set_state_text(&text[..text.len() - cut]);
                    }
                    Ok(page_of(stream, cursor.unwrap_or(0), 3, 3))
                });
                world.serve(&mut breaking, &data).unwrap()
            };
            assert_eq!(outcome.kind, OutcomeKind::Error, "{says}");
            let error = world.airdrop.last().error();
            assert!(error.contains(says), "{error}");
            // Once it is mended, the same event goes on.
            world.airdrop.set_state_text(&before);
            if !keeps_disk {
                world.lose_disk();
            }
            let mut source = Source::new(|_: &Context, stream: &str, cursor: Option<u32>| {
                Ok(page_of(stream, cursor.unwrap_or(0), 3, 3))
            });
            let mut kind = world.serve(&mut source, &data).unwrap().kind;
            if kind == OutcomeKind::Progress {
                kind = world.serve(&mut source, &event("EXTRACTION_DATA_CONTINUE", "run", "3")).unwrap().kind;
            }
            assert_eq!(kind, OutcomeKind::Done);
            assert_eq!(world.airdrop.announced("run"), all_of("issues", 3, 3));
        }
    }
}

#[test]
fn a_scope_that_does_not_fit_is_an_error_that_says_so() {
    let mut world = world();
    let scope: Value = (0..20_000).map(|at| (format!("type-{at}"), json!({ "extract": false }))).collect();
    world.airdrop.set_objects(Some(&scope.to_string()));
    let mut source = Source::new(|_: &Context, stream: &str, _: Option<u32>| Ok(page_of(stream, 0, 1, 3)));
    assert_eq!(data(&mut world, &mut source, "run"), OutcomeKind::Error);
    let error = world.airdrop.last().error();
    assert!(error.contains("a list of 20000 item types that are left out"), "{error}");
}
