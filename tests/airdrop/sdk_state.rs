//! A connector moves from the TypeScript SDK to this library, and back, without starting over: a unit begins with
//! what the SDK left in the worker state, and the SDK's keys are kept up to date.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::world::{Call, Source, World, all_of, event, event_with, page_of};
use chrono::{DateTime, Utc};
use highwater::airdrop::{AttachmentBody, Context, Event, OutcomeKind, Window};
use highwater::inspect::check;
use highwater::record::Attachment;
use highwater::{Clock, Store, VirtualClock};
use serde_json::{Value, json};

const EARLIER: &str = "2026-01-01T08:00:00.000Z";
const STARTED: &str = "2026-01-02T11:00:00.000Z";
const OLDEST: &str = "2025-12-01T00:00:00.000Z";
const NEWEST: &str = "2025-12-31T00:00:00.000Z";
const PENDING_OLDEST: &str = "2025-12-30T00:00:00.000Z";
const PENDING_NEWEST: &str = "2026-01-02T10:59:00.000Z";

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// A state as the SDK writes it, its keys among the connector's own.
fn flat(changes: &Value) -> Value {
    let mut state = json!({
        "issues": { "completed": false, "page": 3 },
        "lastSyncStarted": "",
        "lastSuccessfulSyncStarted": "",
        "pendingWorkersOldest": "",
        "pendingWorkersNewest": "",
        "workersOldest": "",
        "workersNewest": "",
        "snapInVersionId": "version-1",
        "toDevRev": {
            "attachmentsMetadata": { "artifactIds": [], "lastProcessed": 0, "lastProcessedAttachmentsIdsList": [] },
            "of a later version": 1.5,
        },
        "cursor": "b2",
    });
    for (key, value) in changes.as_object().unwrap() {
        state[key] = value.clone();
    }
    state
}

fn nested(changes: &Value) -> Value {
    let mut sdk = flat(changes);
    let sdk_keys = sdk.as_object_mut().unwrap();
    let connector =
        json!({ "issues": sdk_keys.shift_remove("issues"), "cursor": sdk_keys.shift_remove("cursor") });
    json!({ "connectorState": connector, "sdkState": sdk, "beside": [1, 2] })
}

fn in_the_middle() -> Value {
    json!({
        "lastSyncStarted": STARTED,
        "lastSuccessfulSyncStarted": EARLIER,
        "pendingWorkersOldest": PENDING_OLDEST,
        "pendingWorkersNewest": PENDING_NEWEST,
        "workersOldest": OLDEST,
        "workersNewest": NEWEST,
    })
}

fn at_rest() -> Value {
    json!({ "lastSuccessfulSyncStarted": EARLIER, "workersOldest": OLDEST, "workersNewest": NEWEST })
}

/// A world whose workers keep nothing but what the platform keeps for them.
fn world() -> World {
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    world
}

/// What an extractor was told in the first page of an invocation.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    since: Option<DateTime<Utc>>,
    started_at: DateTime<Utc>,
    window: Option<Window>,
    connector: Option<Value>,
}

type Ear = Arc<Mutex<Vec<Told>>>;

/// Four pages of one record; a page takes the whole budget.
fn source(clock: &VirtualClock, ear: &Ear) -> Source<'static> {
    let (clock, ear) = (clock.clone(), Arc::clone(ear));
    Source::new(move |context: &Context, stream: &str, cursor: Option<u32>| {
        ear.lock().unwrap().push(Told {
            since: context.since(),
            started_at: context.started_at(),
            window: context.window(),
            connector: context.connector_state().cloned(),
        });
        clock.advance(Duration::from_secs(11 * 60));
        Ok(page_of(stream, cursor.unwrap_or(0), 4, 1))
    })
}

/// Answers an event on a machine that nobody has seen before.
fn serve(world: &mut World, ear: &Ear, event: &Event) -> OutcomeKind {
    world.lose_disk();
    let mut source = source(&world.clock, ear);
    let outcome = world.serve(&mut source, event).unwrap();
    outcome.kind
}

/// Goes on with the data phase until it is done.
fn data_to_the_end(world: &mut World, ear: &Ear, run: &str) {
    for request in 100..110 {
        if serve(world, ear, &event("EXTRACTION_DATA_CONTINUE", run, &request.to_string()))
            == OutcomeKind::Done
        {
            return;
        }
    }
    panic!("the data phase does not end");
}

/// A run from metadata to attachments.
fn whole_run(world: &mut World, ear: &Ear, run: &str) {
    assert_eq!(serve(world, ear, &event("EXTRACTION_METADATA_START", run, "1")), OutcomeKind::Done);
    serve(world, ear, &event("EXTRACTION_DATA_START", run, "2"));
    data_to_the_end(world, ear, run);
    assert_eq!(serve(world, ear, &event("EXTRACTION_ATTACHMENTS_START", run, "900")), OutcomeKind::Done);
}

/// The worker state but for what is ours, as text: order counts.
fn without_ours(world: &World) -> Value {
    let mut state = world.airdrop.state();
    assert!(state.as_object_mut().unwrap().shift_remove("highwater").is_some());
    state
}

/// As the SDK writes a time.
fn in_millis(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[test]
fn a_finished_state_of_the_sdk_is_the_watermark_and_the_bounds_of_the_next_run() {
    for layout in [flat, nested] {
        let (mut world, ear) = (world(), Ear::default());
        world.airdrop.set_state(&layout(&at_rest()));
        let started = world.clock.now();
        let start = event_with(
            "EXTRACTION_METADATA_START",
            &json!({
                "run_id": "run", "request_id": "1", "sequence_version": "1", "sync_unit_id": "unit", "mode": "INCREMENTAL",
                "extraction_start_time": { "type": "workers_newest" },
                "extraction_end_time": { "type": "current_time" },
            }),
        );
        assert_eq!(serve(&mut world, &ear, &start), OutcomeKind::Done);
        serve(&mut world, &ear, &event("EXTRACTION_DATA_START", "run", "2"));
        data_to_the_end(&mut world, &ear, "run");
        assert_eq!(
            serve(&mut world, &ear, &event("EXTRACTION_ATTACHMENTS_START", "run", "900")),
            OutcomeKind::Done
        );
        let window = Some(Window { from: Some(at(NEWEST)), to: started });
        for told in ear.lock().unwrap().iter() {
            // Asked for by the event: the last run ended before the moment of the watermark.
            let since = Some(at(NEWEST));
            assert_eq!(*told, Told { since, started_at: started, window, connector: None });
        }
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 1));
        let expected = layout(&json!({
            "lastSuccessfulSyncStarted": in_millis(started),
            "workersOldest": OLDEST,
            "workersNewest": in_millis(started),
        }));
        assert_eq!(without_ours(&world).to_string(), expected.to_string(), "in this order, and nothing else");
        // And the run after it starts where this one did.
        ear.lock().unwrap().clear();
        whole_run(&mut world, &ear, "next");
        assert_eq!(ear.lock().unwrap()[0].since, Some(started));
    }
}

#[test]
fn a_run_that_the_sdk_was_in_the_middle_of_goes_on_as_that_run() {
    for (layout, connector) in [
        (flat as fn(&Value) -> Value, json!({ "issues": { "completed": false, "page": 3 }, "cursor": "b2" })),
        (nested, json!({ "issues": { "completed": false, "page": 3 }, "cursor": "b2" })),
    ] {
        let (mut world, ear) = (world(), Ear::default());
        world.airdrop.set_state(&layout(&in_the_middle()));
        data_to_the_end(&mut world, &ear, "run of the SDK");
        let told = ear.lock().unwrap().clone();
        assert_eq!(told.len(), 4, "each page in a life of its own");
        let expected = Told {
            since: Some(at(PENDING_OLDEST)),
            started_at: at(STARTED),
            window: Some(Window { from: Some(at(PENDING_OLDEST)), to: at(PENDING_NEWEST) }),
            connector: Some(connector),
        };
        assert!(told.iter().all(|told| *told == expected), "{told:?}");
        assert_eq!(world.airdrop.announced("run of the SDK"), all_of("issues", 4, 1));
        let until_the_end = layout(&in_the_middle());
        assert_eq!(without_ours(&world).to_string(), until_the_end.to_string());

        let attachments = event("EXTRACTION_ATTACHMENTS_START", "run of the SDK", "900");
        assert_eq!(serve(&mut world, &ear, &attachments), OutcomeKind::Done);
        let expected = layout(&json!({
            "lastSuccessfulSyncStarted": STARTED, "workersOldest": OLDEST, "workersNewest": PENDING_NEWEST,
        }));
        assert_eq!(without_ours(&world).to_string(), expected.to_string());

        // The next run is one like any other: the connector's own keys are of the past.
        ear.lock().unwrap().clear();
        whole_run(&mut world, &ear, "next");
        let told = ear.lock().unwrap()[0].clone();
        assert_eq!((told.since, told.connector), (Some(at(STARTED)), None));
    }
}

#[test]
fn an_attachments_start_of_a_run_that_the_sdk_began_ends_that_run() {
    let (mut world, ear) = (world(), Ear::default());
    let left = json!({ "attachmentsMetadata": {
        "artifactIds": ["one", "two"],
        "lastProcessed": 7,
        "lastProcessedAttachmentsIdsList": [{ "id": "a", "parent_id": "p", "status": "success" }],
    }});
    let mut state = in_the_middle();
    state["toDevRev"] = left;
    world.airdrop.set_state(&flat(&state));
    let named =
        |id: String, parent: &str| json!({ "id": id, "url": "", "file_name": "f", "parent_id": parent });
    let first: Vec<_> = (1..=9).map(|n| named(format!("first-{n}"), "p")).collect();
    world.airdrop.keep("one", &first);
    world.airdrop.keep("two", &[named("a".to_owned(), "p"), named("a".to_owned(), "another")]);
    let start = event("EXTRACTION_ATTACHMENTS_START", "run of the SDK", "900");
    assert_eq!(serve(&mut world, &ear, &start), OutcomeKind::Done);
    let state = world.airdrop.state();
    // The extractor opens none, so what was left of them is now listed as given up.
    let checkpoint = world.airdrop.checkpoint();
    let failed = checkpoint.pointer("/position/queue/failed").and_then(Value::as_array).unwrap();
    let failed: Vec<Value> =
        failed.iter().map(|row| serde_json::from_str(row[2]["json"].as_str().unwrap()).unwrap()).collect();
    let left = [first[7].clone(), first[8].clone(), named("a".to_owned(), "another")];
    assert_eq!(failed, left);
    assert_eq!(state["lastSuccessfulSyncStarted"], STARTED);
    assert_eq!(state["toDevRev"]["attachmentsMetadata"]["artifactIds"], json!([]), "nothing is left to do");
}

#[test]
fn what_the_sdk_left_of_attachments_costs_no_more_than_the_attachment_that_makes_no_sense() {
    for version in ["1", "2"] {
        let (mut world, ear) = (world(), Ear::default());
        let left = json!({ "attachmentsMetadata": {
            "artifactIds": ["one"],
            "lastProcessed": 0,
            "lastProcessedAttachmentsIdsList": [
                { "id": 1, "parent_id": 10, "status": "success" },
                { "id": 6, "status": "success" },
                { "id": "2", "parent_id": "10", "status": "failed" },
            ],
        }});
        let state = if version == "1" {
            let mut state = in_the_middle();
            state["toDevRev"] = left;
            flat(&state)
        } else {
            of_version_2(&json!({ "toDevRev": left }))
        };
        world.airdrop.set_state(&state);
        let line =
            |id: Value, parent: Value| json!({ "id": id, "url": "", "file_name": "f", "parent_id": parent });
        let mut whole = line(json!(4), json!(10));
        whole["author_id"] = json!(99);
        whole["grand_parent_id"] = json!(5);
        let lines = [
            line(json!(1), json!("10")),
            line(json!("2"), json!(10)),
            line(json!({}), json!(10)),
            whole,
            json!("no object"),
            line(json!("5"), json!("10")),
            line(json!("6"), json!(10)),
            // As the SDK announced it, and uploaded it.
            json!({ "id": 6, "url": "", "file_name": "f" }),
        ];
        world.airdrop.keep("one", &lines);
        for (event_type, request) in [("START", "900"), ("CONTINUE", "901")] {
            world.lose_disk();
            let mut source = source(&world.clock, &ear);
            source.open = Some(Box::new(|attachment: &Attachment| {
                assert!(["4", "5"].contains(&attachment.id.as_str()), "{attachment:?}");
                Ok(AttachmentBody::new(std::io::Cursor::new(b"bytes".to_vec())))
            }));
            let event = event(&format!("EXTRACTION_ATTACHMENTS_{event_type}"), "run of the SDK", request);
            let outcome = world.serve(&mut source, &event);
            if event_type == "START" {
                let outcome = outcome.unwrap();
                assert_eq!(outcome.kind, OutcomeKind::Done, "version {version}");
                assert_eq!((outcome.attachments.settled, outcome.attachments.failed), (2, 3));
            }
        }
        let mut settled = world.airdrop.lines_of("run of the SDK", "ssor_attachment");
        settled.sort_by_key(|line| line["id"]["external"].to_string());
        let told: Vec<_> = settled
            .iter()
            .map(|line| {
                (&line["id"]["external"], &line["parent_id"]["external"], &line["actor_id"]["external"])
            })
            .collect();
        let (four, five, ten, none) = (json!("4"), json!("5"), json!("10"), Value::Null);
        assert_eq!(told, [(&four, &ten, &json!("99")), (&five, &ten, &none)]);
        let failed: Vec<_> =
            world.store.sync_unit("unit").unwrap().failed_attachments().map(Result::unwrap).collect();
        let listed: Vec<_> =
            failed.iter().map(|failed| (failed.attachment.id.as_str(), failed.reason.as_str())).collect();
        assert_eq!(listed[0], ("2", "the TypeScript SDK gave it up"));
        assert!(listed[1].0 == "(line 3 of artifact 1)" && listed[1].1.contains("`id`"), "{listed:?}");
        assert!(
            listed[2].0 == "(line 5 of artifact 1)" && listed[2].1.contains("cannot be read"),
            "{listed:?}"
        );
    }
}

/// What the SDK had left to do of the attachments of one artifact, and that artifact.
fn attachments_left(world: &World, layout: fn(&Value) -> Value) {
    let mut state = in_the_middle();
    state["toDevRev"] = json!({
        "attachmentsMetadata": {
            "artifactIds": ["one"],
            "lastProcessed": 1,
            "lastProcessedAttachmentsIdsList": [{ "id": "2", "parent_id": "p", "status": "success" }],
        },
        "of a later version": 1.5,
    });
    world.airdrop.set_state(&layout(&state));
    let named = |id: u32| json!({ "id": id.to_string(), "url": "", "file_name": "f", "parent_id": "p" });
    world.airdrop.keep("one", &[1, 2, 3].map(named));
}

/// The attachments that the SDK's keys name, and the count of those that were given up: the source opens none.
fn attachments_of(world: &World, layout: fn(&Value) -> Value) -> (Value, usize) {
    let (state, checkpoint) = (&world.airdrop.state(), world.airdrop.checkpoint());
    let keys = if layout(&json!({})).get("sdkState").is_some() { &state["sdkState"] } else { state };
    let failed = checkpoint.pointer("/position/queue/failed").and_then(Value::as_array);
    assert_eq!(keys["toDevRev"]["of a later version"], 1.5);
    (keys["toDevRev"]["attachmentsMetadata"].clone(), failed.map_or(0, Vec::len))
}

#[test]
fn attachments_that_the_sdk_left_are_forgotten_with_the_others() {
    let nothing_left =
        json!({ "artifactIds": [], "lastProcessed": 0, "lastProcessedAttachmentsIdsList": [] });
    let delete = event("EXTRACTION_ATTACHMENTS_DELETE", "delete", "800");
    let end = event("EXTRACTION_ATTACHMENTS_START", "run of the SDK", "900");
    for layout in [flat as fn(&Value) -> Value, nested] {
        // If the keys are kept as they are, the attachments are streamed.
        let (mut world, ear) = (world(), Ear::default());
        attachments_left(&world, layout);
        assert_eq!(serve(&mut world, &ear, &end), OutcomeKind::Done);
        assert_eq!(attachments_of(&world, layout), (nothing_left.clone(), 1));

        // Before anything of the unit is known here.
        let (mut world, ear) = (self::world(), Ear::default());
        attachments_left(&world, layout);
        let before = world.airdrop.state();
        for _ in 0..2 {
            assert_eq!(serve(&mut world, &ear, &delete), OutcomeKind::Done);
            let mut expected = before.clone();
            let nested = expected.get("sdkState").is_some();
            let keys = if nested { &mut expected["sdkState"] } else { &mut expected };
            keys["toDevRev"]["attachmentsMetadata"] = nothing_left.clone();
            let state = world.airdrop.state_after_deletion();
            assert_eq!(state.to_string(), expected.to_string(), "and nothing else");
        }
        assert_eq!(world.airdrop.calls(Call::SaveState), 1, "the second time it is late");
        assert_eq!(serve(&mut world, &ear, &end), OutcomeKind::Done);
        assert_eq!(attachments_of(&world, layout), (nothing_left.clone(), 0));

        // In the middle of the run that goes on here, whether the disk is kept or not.
        for keeps_disk in [false, true] {
            let (mut world, ear) = (self::world(), Ear::default());
            attachments_left(&world, layout);
            let serve = |world: &mut World, event: &Event| {
                if keeps_disk {
                    world.restart();
                } else {
                    world.lose_disk();
                }
                let mut source = source(&world.clock, &ear);
                world.serve(&mut source, event).unwrap().kind
            };
            let go_on = |request: &str| event("EXTRACTION_DATA_CONTINUE", "run of the SDK", request);
            assert_eq!(serve(&mut world, &go_on("1")), OutcomeKind::Progress);
            assert_ne!(attachments_of(&world, layout).0, nothing_left);
            assert_eq!(serve(&mut world, &delete), OutcomeKind::Done);
            assert_eq!(attachments_of(&world, layout).0, nothing_left);
            assert_eq!(serve(&mut world, &go_on("2")), OutcomeKind::Progress);
            data_to_the_end(&mut world, &ear, "run of the SDK");
            assert_eq!(serve(&mut world, &end), OutcomeKind::Done);
            assert_eq!(attachments_of(&world, layout), (nothing_left.clone(), 0));
            assert_eq!(world.airdrop.checkpoint().pointer("/run/status"), Some(&json!("finished")));
            assert_eq!(world.airdrop.announced("run of the SDK"), all_of("issues", 4, 1));
            let told = ear.lock().unwrap().clone();
            assert!(
                told.iter().all(|told| told.connector.is_some()),
                "the connector's keys are no attachments"
            );
        }
    }
}

#[test]
fn a_start_begins_a_run_whatever_was_left_unfinished() {
    let (mut world, ear) = (world(), Ear::default());
    world.airdrop.set_state(&flat(&in_the_middle()));
    let started = world.clock.now();
    whole_run(&mut world, &ear, "run");
    let told = ear.lock().unwrap()[0].clone();
    let window = Some(Window { from: Some(at(EARLIER)), to: started });
    assert_eq!(told, Told { since: Some(at(EARLIER)), started_at: started, window, connector: None });
    assert_eq!(world.airdrop.state()["lastSuccessfulSyncStarted"], in_millis(started));

    // Its data START, once the SDK has been through the metadata, is of the SDK's run: its start and window are kept.
    let (mut world, ear) = (self::world(), Ear::default());
    world.airdrop.set_state(&nested(&in_the_middle()));
    serve(&mut world, &ear, &event("EXTRACTION_DATA_START", "run", "2"));
    let told = ear.lock().unwrap()[0].clone();
    let window = Some(Window { from: Some(at(PENDING_OLDEST)), to: at(PENDING_NEWEST) });
    let since = Some(at(PENDING_OLDEST));
    assert_eq!(told, Told { since, started_at: at(STARTED), window, connector: None });
}

#[test]
fn a_state_in_which_nothing_was_started_yet_is_a_new_unit() {
    let (mut world, ear) = (world(), Ear::default());
    world.airdrop.set_state(&flat(&json!({ "workersOldest": null })));
    whole_run(&mut world, &ear, "run");
    assert_eq!(ear.lock().unwrap()[0].since, None);

    // A CONTINUE of a run whose start is not known is an ERROR, and the watermark stays.
    let (mut world, ear) = (self::world(), Ear::default());
    world.airdrop.set_state(&flat(&at_rest()));
    let go_on = event("EXTRACTION_DATA_CONTINUE", "unknown", "1");
    assert_eq!(serve(&mut world, &ear, &go_on), OutcomeKind::Error);
    assert!(
        world.airdrop.last().error().contains("run unknown is not known here"),
        "{:?}",
        world.airdrop.last()
    );
    assert_eq!(world.airdrop.state()["lastSuccessfulSyncStarted"], EARLIER);
    whole_run(&mut world, &ear, "run");
    assert_eq!(ear.lock().unwrap()[0].since, Some(at(EARLIER)));
}

#[test]
fn a_key_of_a_wrong_type_is_an_error_that_names_it_and_nothing_is_overwritten() {
    let metadata = |changes: Value| json!({ "toDevRev": { "attachmentsMetadata": changes } });
    let broken = [
        (json!({ "lastSyncStarted": 5 }), "lastSyncStarted"),
        (json!({ "lastSyncStarted": "yesterday" }), "lastSyncStarted"),
        (json!({ "lastSuccessfulSyncStarted": "2026-13-01T00:00:00Z" }), "lastSuccessfulSyncStarted"),
        (json!({ "pendingWorkersOldest": [] }), "pendingWorkersOldest"),
        (json!({ "pendingWorkersOldest": NEWEST, "pendingWorkersNewest": OLDEST }), "pendingWorkersOldest"),
        (json!({ "pendingWorkersNewest": true }), "pendingWorkersNewest"),
        (json!({ "workersOldest": {} }), "workersOldest"),
        (json!({ "workersNewest": 1.5 }), "workersNewest"),
        (json!({ "snapInVersionId": 7 }), "snapInVersionId"),
        (json!({ "toDevRev": "no" }), "toDevRev"),
        (metadata(json!([])), "toDevRev.attachmentsMetadata"),
        (metadata(json!({ "artifactIds": "one" })), "toDevRev.attachmentsMetadata.artifactIds"),
        (metadata(json!({ "artifactIds": [1] })), "toDevRev.attachmentsMetadata.artifactIds"),
        (metadata(json!({ "artifactIds": ["one", ""] })), "toDevRev.attachmentsMetadata.artifactIds"),
        (metadata(json!({ "artifactIds": ["a\nb"] })), "toDevRev.attachmentsMetadata.artifactIds"),
        (metadata(json!({ "artifactIds": ["x".repeat(600)] })), "toDevRev.attachmentsMetadata.artifactIds"),
        (metadata(json!({ "lastProcessed": -1 })), "toDevRev.attachmentsMetadata.lastProcessed"),
        (
            metadata(json!({ "lastProcessedAttachmentsIdsList": [{ "parent_id": "a" }] })),
            "toDevRev.attachmentsMetadata.lastProcessedAttachmentsIdsList",
        ),
    ];
    for (changes, key) in broken {
        for (layout, prefix) in [(flat as fn(&Value) -> Value, ""), (nested, "sdkState.")] {
            let (mut world, ear) = (world(), Ear::default());
            world.airdrop.set_state(&layout(&changes));
            let before = world.airdrop.state_text();
            let start = event("EXTRACTION_METADATA_START", "run", "1");
            assert_eq!(serve(&mut world, &ear, &start), OutcomeKind::Error, "{changes}");
            let error = world.airdrop.last().error();
            let named = format!("{prefix}{key} in the worker state of unit");
            assert!(error.starts_with(&named), "{changes}: {error}");
            assert_eq!(world.airdrop.state_text(), before);
            assert_eq!(world.airdrop.calls(Call::SaveState), 0);
            // Once it is mended, the same event goes on.
            world.airdrop.set_state(&layout(&at_rest()));
            assert_eq!(serve(&mut world, &ear, &start), OutcomeKind::Done);
        }
    }
    let (mut world, ear) = (world(), Ear::default());
    world.airdrop.set_state(&json!({ "sdkState": [], "connectorState": {} }));
    serve(&mut world, &ear, &event("EXTRACTION_METADATA_START", "run", "1"));
    assert!(world.airdrop.last().error().starts_with("sdkState in the worker state of unit"));
}

#[test]
fn what_a_unit_of_ours_leaves_is_what_the_sdk_and_we_begin_with() {
    let (mut world, ear) = (world(), Ear::default());
    // More than milliseconds: what is written must not be later.
    world.clock.advance(Duration::from_micros(123_456));
    let started = world.clock.now();
    assert_eq!(serve(&mut world, &ear, &event("EXTRACTION_METADATA_START", "run", "1")), OutcomeKind::Done);
    let state = world.airdrop.state();
    let in_run = |key: &str| state[key].as_str().unwrap_or_else(|| panic!("no {key} in {state}"));
    assert_eq!(in_run("lastSyncStarted"), "2026-01-02T12:00:00.123Z");
    assert_eq!(in_run("lastSuccessfulSyncStarted"), "");
    serve(&mut world, &ear, &event("EXTRACTION_DATA_START", "run", "2"));
    let state = world.airdrop.state();
    assert_eq!(state["pendingWorkersOldest"], "1970-01-01T00:00:00.000Z");
    assert_eq!(state["pendingWorkersNewest"], "2026-01-02T12:00:00.123Z");
    data_to_the_end(&mut world, &ear, "run");
    serve(&mut world, &ear, &event("EXTRACTION_ATTACHMENTS_START", "run", "900"));
    let expected = json!({
        "lastSyncStarted": "",
        "pendingWorkersOldest": "",
        "pendingWorkersNewest": "",
        "lastSuccessfulSyncStarted": "2026-01-02T12:00:00.123Z",
        "workersOldest": "1970-01-01T00:00:00.000Z",
        "workersNewest": "2026-01-02T12:00:00.123Z",
        "snapInVersionId": "",
        "toDevRev": {
            "attachmentsMetadata": { "artifactIds": [], "lastProcessed": 0, "lastProcessedAttachmentsIdsList": [] },
        },
    });
    assert_eq!(without_ours(&world), expected);

    // The SDK has it for a run, in its newer layout, which has no place for what is not its own.
    let mut sdk = expected;
    sdk["lastSuccessfulSyncStarted"] = STARTED.into();
    let sdk_workers_newest = sdk["workersNewest"].as_str().unwrap().to_owned();
    world.airdrop.set_state(&json!({ "connectorState": { "page": 1 }, "sdkState": sdk }));
    ear.lock().unwrap().clear();
    whole_run(&mut world, &ear, "after the SDK");
    assert_eq!(
        ear.lock().unwrap()[0].since,
        Some(at(&sdk_workers_newest)),
        "later than the start that 1.x left"
    );
    assert!(ear.lock().unwrap()[0].started_at > started);
    let state = world.airdrop.state();
    assert_eq!(state["connectorState"], json!({ "page": 1 }));
    assert!(state.get("lastSuccessfulSyncStarted").is_none(), "it stands where it was found: {state}");
}

#[test]
fn deleting_the_data_state_forgets_what_the_sdk_knew_too() {
    for layout in [flat, nested] {
        for broken in [false, true] {
            let (mut world, ear) = (world(), Ear::default());
            world.airdrop.set_state(&layout(&at_rest()));
            serve(&mut world, &ear, &event("EXTRACTION_METADATA_START", "run", "1"));
            if broken {
                world.airdrop.set_state(&layout(&json!({ "lastSyncStarted": 5 })));
            }
            assert_eq!(
                serve(&mut world, &ear, &event("EXTRACTION_DATA_DELETE", "run", "2")),
                OutcomeKind::Done
            );
            let state = world.airdrop.state_after_deletion();
            assert!(state.get("sdkState").is_none(), "{state}");
            assert!(state.get("lastSuccessfulSyncStarted").is_none(), "{state}");
            whole_run(&mut world, &ear, "next");
            assert_eq!(ear.lock().unwrap()[0].since, None, "everything, as of a new unit");
        }
    }
}

#[test]
fn a_store_that_inherited_a_unit_passes_its_own_check() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let (world, ear) = (world(), Ear::default());
    world.airdrop.set_state(&nested(&in_the_middle()));
    for (event_type, request) in [("DATA_CONTINUE", "1"), ("DATA_CONTINUE", "2"), ("DATA_CONTINUE", "3")] {
        let event = event(&format!("EXTRACTION_{event_type}"), "run", request);
        let store = Store::options().clock(world.clock.clone()).open(&path).unwrap();
        world.serve.serve(&store, &world.airdrop, &source(&world.clock, &ear), &event).unwrap();
        drop(store);
        let check = check(&path).unwrap();
        assert!(check.findings.is_empty(), "{check:?}");
    }
    assert_eq!(
        Store::open(&path).unwrap().sync_unit("unit").unwrap().watermark().unwrap(),
        Some(at(EARLIER))
    );
}

#[test]
fn a_worker_killed_at_any_save_takes_the_state_over_all_the_same() {
    let mut kills = 0;
    for skip in 0..6 {
        for keeps_disk in [false, true] {
            let (mut world, ear) = (world(), Ear::default());
            world.airdrop.set_state(&flat(&in_the_middle()));
            world.airdrop.kill_at(Call::SaveState, skip, &world.disk);
            let go_on = event("EXTRACTION_DATA_CONTINUE", "run", "1");
            let killed = world.serve(&mut source(&world.clock, &ear), &go_on).is_err();
            if !killed {
                break;
            }
            kills += 1;
            if keeps_disk {
                world.restart();
            } else {
                world.lose_disk();
            }
            world.serve(&mut source(&world.clock, &ear), &go_on).unwrap();
            data_to_the_end(&mut world, &ear, "run");
            serve(&mut world, &ear, &event("EXTRACTION_ATTACHMENTS_START", "run", "900"));
            assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 1), "killed at save {skip}");
            assert!(ear.lock().unwrap().iter().all(|told| told.started_at == at(STARTED)));
            assert_eq!(world.airdrop.state()["lastSuccessfulSyncStarted"], STARTED);
        }
    }
    assert!(kills >= 6, "an invocation has three saves or more, each with and without a disk: {kills}");
}

/// A state as the SDK 2.x writes it: no start times.
fn of_version_2(changes: &Value) -> Value {
    let mut state = json!({
        "connectorState": { "issues": { "completed": false, "page": 3 }, "cursor": "b2" },
        "sdkState": {
            "pendingWorkersOldest": "",
            "pendingWorkersNewest": "",
            "workersOldest": "",
            "workersNewest": "",
            "snapInVersionId": "version-1",
            "toDevRev": {
                "attachmentsMetadata": { "artifactIds": [], "lastProcessed": 0, "lastProcessedAttachmentsIdsList": [] },
            },
        },
    });
    for (key, value) in changes.as_object().unwrap() {
        state["sdkState"][key] = value.clone();
    }
    state
}

#[test]
fn what_version_2_finished_is_the_watermark_unless_it_lies_in_the_future() {
    for (newest, since) in [(NEWEST, Some(at(NEWEST))), ("2026-01-02T12:00:00.001Z", None), ("", None)] {
        let (mut world, ear) = (world(), Ear::default());
        world.airdrop.set_state(&of_version_2(&json!({ "workersOldest": OLDEST, "workersNewest": newest })));
        whole_run(&mut world, &ear, "run");
        assert!(ear.lock().unwrap().iter().all(|told| told.since == since), "{newest}");
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 1));
    }
}

#[test]
fn a_run_of_version_2_goes_on_and_does_not_move_the_watermark() {
    let pending = json!({
        "pendingWorkersOldest": PENDING_OLDEST, "pendingWorkersNewest": PENDING_NEWEST,
        "workersOldest": OLDEST, "workersNewest": NEWEST,
    });
    for (state, since) in [(pending, Some(at(NEWEST))), (json!({}), None)] {
        let known = since.is_some();
        for first in ["EXTRACTION_DATA_CONTINUE", "EXTRACTION_ATTACHMENTS_START"] {
            let (mut world, ear) = (world(), Ear::default());
            world.airdrop.set_state(&of_version_2(&state));
            if first == "EXTRACTION_DATA_CONTINUE" {
                data_to_the_end(&mut world, &ear, "run of the SDK");
                assert_eq!(world.airdrop.announced("run of the SDK"), all_of("issues", 4, 1));
                let told = ear.lock().unwrap()[0].clone();
                assert_eq!(told.connector.unwrap()["cursor"], "b2", "the cursors of the SDK are at hand");
                if known {
                    assert_eq!(told.since, Some(at(PENDING_OLDEST)), "its window reaches back behind that");
                    let window = Window { from: Some(at(PENDING_OLDEST)), to: at(PENDING_NEWEST) };
                    assert_eq!(told.window, Some(window), "its window is kept");
                }
            }
            let end = event("EXTRACTION_ATTACHMENTS_START", "run of the SDK", "900");
            assert_eq!(serve(&mut world, &ear, &end), OutcomeKind::Done, "{first}");
            let state = world.airdrop.state();
            assert_eq!(state["sdkState"]["pendingWorkersNewest"], "", "nothing is under way");
            if known {
                assert_eq!(state["sdkState"]["workersNewest"], PENDING_NEWEST);
            }
            // The next run asks for the same window again: nothing is skipped.
            ear.lock().unwrap().clear();
            whole_run(&mut world, &ear, "next");
            assert_eq!(ear.lock().unwrap()[0].since, since);
            // Which moves the watermark, as any run does.
            let started = ear.lock().unwrap()[0].started_at;
            ear.lock().unwrap().clear();
            whole_run(&mut world, &ear, "after that");
            assert_eq!(ear.lock().unwrap()[0].since, Some(started));
        }
    }
}

#[test]
fn a_state_that_the_sdk_rewrote_in_between_is_read_and_its_newer_start_counts() {
    let later = "2026-06-01T00:00:00.000Z";
    for keeps_disk in [true, false] {
        let (mut world, ear) = (world(), Ear::default());
        whole_run(&mut world, &ear, "ours");
        let ours = world.airdrop.state();
        // 1.x finishes a run, and leaves what it does not know where it is.
        let mut state = ours.clone();
        state["lastSuccessfulSyncStarted"] = later.into();
        state["workersNewest"] = later.into();
        world.airdrop.set_state(&state);
        world.clock.advance(Duration::from_secs(365 * 86_400));
        ear.lock().unwrap().clear();
        if keeps_disk {
            let start = event("EXTRACTION_METADATA_START", "next", "1");
            world.serve(&mut source(&world.clock, &ear), &start).unwrap();
        }
        whole_run(&mut world, &ear, "next");
        assert_eq!(ear.lock().unwrap()[0].since, Some(at(later)), "keeps its disk: {keeps_disk}");
        assert_eq!(
            world.airdrop.checkpoint()["ledger"].as_array().unwrap().len(),
            2,
            "ours is not forgotten"
        );
        let written = world.airdrop.state()["lastSuccessfulSyncStarted"].as_str().unwrap().to_owned();
        assert!(at(&written) > at(later), "{written}");

        // An older one, from a state that somebody put back, changes nothing.
        let mut state = world.airdrop.state();
        state["lastSuccessfulSyncStarted"] = EARLIER.into();
        world.airdrop.set_state(&state);
        ear.lock().unwrap().clear();
        whole_run(&mut world, &ear, "after that");
        assert_eq!(ear.lock().unwrap()[0].since.map(in_millis), Some(written));
    }
}

#[test]
fn a_run_that_the_sdk_began_in_between_goes_on_here() {
    let (mut world, ear) = (world(), Ear::default());
    whole_run(&mut world, &ear, "ours");
    let mut state = world.airdrop.state();
    world.clock.advance(Duration::from_secs(86_400));
    let started = in_millis(world.clock.now());
    state["lastSyncStarted"] = started.clone().into();
    state["cursor"] = "c7".into();
    world.airdrop.set_state(&state);
    world.clock.advance(Duration::from_secs(600));
    ear.lock().unwrap().clear();
    data_to_the_end(&mut world, &ear, "run of the SDK");
    let told = ear.lock().unwrap()[0].clone();
    assert_eq!((told.started_at, told.connector.unwrap()), (at(&started), json!({ "cursor": "c7" })));
    let end = event("EXTRACTION_ATTACHMENTS_START", "run of the SDK", "900");
    assert_eq!(serve(&mut world, &ear, &end), OutcomeKind::Done);
    assert_eq!(world.airdrop.state()["lastSuccessfulSyncStarted"], started);
}

#[test]
fn a_checkpoint_that_version_2_took_for_a_key_of_the_connectors_is_found_again() {
    for keeps_disk in [true, false] {
        let (mut world, ear) = (world(), Ear::default());
        world.airdrop.set_state(&flat(&at_rest()));
        whole_run(&mut world, &ear, "ours");
        // 2.x turns a flat state into the keys that it knows, and all others as the connector's.
        let Value::Object(members) = world.airdrop.state() else { panic!("no object") };
        let sdk_keys = ["lastSyncStarted", "lastSuccessfulSyncStarted", "toDevRev", "snapInVersionId"];
        let is_sdk = |name: &str| sdk_keys.contains(&name) || name.to_lowercase().contains("workers");
        let (sdk, own): (serde_json::Map<_, _>, _) = members.into_iter().partition(|(name, _)| is_sdk(name));
        assert!(own.contains_key("highwater") && own.contains_key("cursor"));
        world.clock.advance(Duration::from_secs(86_400));
        let finished = in_millis(world.clock.now());
        let mut state = json!({ "connectorState": Value::Object(own), "sdkState": Value::Object(sdk) });
        state["sdkState"]["workersNewest"] = finished.clone().into();
        world.airdrop.set_state(&state);
        world.clock.advance(Duration::from_secs(600));
        ear.lock().unwrap().clear();
        if keeps_disk {
            let start = event("EXTRACTION_METADATA_START", "next", "1");
            world.serve(&mut source(&world.clock, &ear), &start).unwrap();
        }
        whole_run(&mut world, &ear, "next");
        assert_eq!(ear.lock().unwrap()[0].since, Some(at(&finished)), "the newer end of a window");
        assert_eq!(
            world.airdrop.checkpoint()["ledger"].as_array().unwrap().len(),
            2,
            "ours is not forgotten"
        );
        let state = world.airdrop.state();
        let own = json!({ "issues": { "completed": false, "page": 3 }, "cursor": "b2" });
        assert_eq!(state["connectorState"], own, "it is in its own place again");
    }
}

#[test]
fn the_connectors_own_keys_are_written_with_the_page_that_sets_them() {
    for layout in [flat as fn(&Value) -> Value, nested, of_version_2] {
        let mut world = world();
        world.airdrop.set_state(&layout(&at_rest()));
        let clock = world.clock.clone();
        let mut pages = Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
            clock.advance(Duration::from_secs(11 * 60));
            let at = cursor.unwrap_or(0);
            Ok(page_of(stream, at, 4, 1).connector_state(&json!({ "issues": { "page": at, "of": "us" } })))
        });
        let own = |world: &World| {
            let mut state = world.airdrop.state();
            if let Some(nested) = state.get("connectorState") {
                assert!(state.get("sdkState").is_some(), "2.x takes both halves or none");
                return nested.clone();
            }
            let known = flat(&json!({}));
            let sdk = |name: &str| known.get(name).is_some() && !["issues", "cursor"].contains(&name);
            state.as_object_mut().unwrap().retain(|name, _| !sdk(name) && name != "highwater");
            state
        };
        let serve = |world: &mut World, pages: &mut Source<'_>, event_type: &str, request: &str| {
            world.lose_disk();
            world.serve(pages, &event(event_type, "run", request)).unwrap().kind
        };
        let before = own(&world);
        assert_eq!(serve(&mut world, &mut pages, "EXTRACTION_METADATA_START", "1"), OutcomeKind::Done);
        assert_eq!(own(&world), before, "until a page sets them");
        serve(&mut world, &mut pages, "EXTRACTION_DATA_START", "2");
        for page in 0..4_u32 {
            assert_eq!(own(&world), json!({ "issues": { "page": page, "of": "us" } }), "all of them");
            serve(&mut world, &mut pages, "EXTRACTION_DATA_CONTINUE", &(page + 3).to_string());
        }
        assert_eq!(serve(&mut world, &mut pages, "EXTRACTION_ATTACHMENTS_START", "9"), OutcomeKind::Done);
        assert_eq!(own(&world), json!({ "issues": { "page": 3, "of": "us" } }), "also when the run is over");
        assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 1));
    }
}

#[test]
fn what_cannot_stand_among_the_connectors_own_keys_is_refused() {
    for (state, says) in [
        (json!(7), "it must be an object, not a number"),
        (json!({ "lastSyncStarted": "" }), "the key lastSyncStarted is reserved"),
        (json!({ "sdkState": {} }), "the key sdkState is reserved"),
        (json!({ "highwater": {} }), "the key highwater is reserved"),
        (json!({ "own": "x".repeat(70_000) }), "over the limit of 65536"),
    ] {
        let world = world();
        let mut source = Source::new(move |_: &Context, stream: &str, _: Option<u32>| {
            Ok(page_of(stream, 0, 1, 1).connector_state(&state))
        });
        world.serve(&mut source, &event("EXTRACTION_METADATA_START", "run", "1")).unwrap();
        let outcome = world.serve(&mut source, &event("EXTRACTION_DATA_START", "run", "2")).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        assert!(world.airdrop.last().error().contains(says), "{}", world.airdrop.last().error());
    }
}
