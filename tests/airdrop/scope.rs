//! The extraction scope: records of an item type that is out of scope are counted and not staged, and DONE still
//! balances. The scope is the same in every invocation of a run.

use std::time::Duration;

use crate::world::{Airdrop, Answer, Call, Source, World, all_of, event, page_of};
use highwater::airdrop::{Context, OutcomeKind, Serve};
use highwater::inspect::{Snapshot, check};
use highwater::{Record, Store, VirtualClock};
use serde_json::json;

const NO_COMMENTS: &str = r#"{"comments":{"extract":false},"issues":{"extract":true}}"#;

/// Three pages, each with two issues and three comments; each takes the whole budget.
fn source(clock: &VirtualClock) -> Source<'static> {
    let clock = clock.clone();
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        clock.advance(Duration::from_secs(11 * 60));
        let mut page = page_of(stream, cursor.unwrap_or(0), 3, 2);
        for comment in 0..3 {
            page.push("comments", Record::new(format!("c{comment}"), &json!({ "is": "comment" })).unwrap());
        }
        Ok(page)
    })
}

/// The data phase from its START until it is done; how many invocations it took.
fn data(world: &World, run: &str) -> u32 {
    let mut source = source(&world.clock);
    for number in 1..10 {
        let name = if number == 1 { "EXTRACTION_DATA_START" } else { "EXTRACTION_DATA_CONTINUE" };
        let outcome = world.serve(&mut source, &event(name, run, &number.to_string())).unwrap();
        match outcome.kind {
            OutcomeKind::Done => return number,
            OutcomeKind::Progress => {}
            kind => panic!("{kind:?}: {:?}", world.airdrop.last()),
        }
    }
    panic!("the data phase does not end");
}

fn comments(airdrop: &Airdrop) -> u64 {
    let artifacts = airdrop.messages().into_iter().flat_map(|message| message.artifacts());
    artifacts.filter(|it| it["item_type"] == "comments").map(|it| it["item_count"].as_u64().unwrap()).sum()
}

fn issues(airdrop: &Airdrop, run: &str) -> Vec<String> {
    let mut found = airdrop.announced(run);
    found.retain(|is| is != "comment");
    found
}

#[test]
fn an_item_type_out_of_scope_is_announced_nowhere_and_done_balances() {
    let settings: [fn(Serve) -> Serve; 2] = [Serve::checkpoints, Serve::extraction_scope];
    for set in settings {
        let mut world = World::new(2);
        world.serve = set(world.serve.clone());
        world.airdrop.set_objects(Some(NO_COMMENTS));
        assert_eq!(data(&world, "run"), 3);
        assert_eq!(issues(&world.airdrop, "run"), all_of("issues", 3, 2));
        assert_eq!(comments(&world.airdrop), 0);
    }
    // Where nobody asks for it, and where it leaves nothing out: the same source, and everything is announced.
    for (set, objects) in [
        (None, Some(NO_COMMENTS)),
        (Some(Serve::extraction_scope as fn(Serve) -> Serve), None),
        (Some(Serve::extraction_scope), Some("{}")),
        (Some(Serve::checkpoints), Some("")),
    ] {
        let mut world = World::new(2);
        if let Some(set) = set {
            world.serve = set(world.serve.clone());
        }
        world.airdrop.set_objects(objects);
        data(&world, "run");
        assert_eq!(comments(&world.airdrop), 9, "{objects:?}");
    }
}

#[test]
fn the_scope_of_a_run_is_the_same_in_all_of_its_invocations_and_asked_for_anew_by_the_next() {
    for checkpoints in [false, true] {
        let mut world = World::new(2);
        world.serve = world.serve.clone().extraction_scope();
        if checkpoints {
            world.serve = world.serve.clone().checkpoints();
        }
        world.airdrop.set_objects(Some(NO_COMMENTS));
        let first = event("EXTRACTION_DATA_START", "run", "1");
        world.serve(&mut source(&world.clock), &first).unwrap();
        let asked = world.airdrop.calls(Call::LoadState);
        world.airdrop.set_objects(Some(r#"{"issues":{"extract":false}}"#));
        for request in ["2", "3"] {
            if checkpoints {
                world.lose_disk();
            } else {
                world.restart();
            }
            let go_on = event("EXTRACTION_DATA_CONTINUE", "run", request);
            world.serve(&mut source(&world.clock), &go_on).unwrap();
        }
        assert_eq!(issues(&world.airdrop, "run"), all_of("issues", 3, 2));
        assert_eq!(comments(&world.airdrop), 0);
        if !checkpoints {
            assert_eq!(world.airdrop.calls(Call::LoadState), asked, "once in a run");
        }
        world.serve(&mut source(&world.clock), &event("EXTRACTION_ATTACHMENTS_START", "run", "9")).unwrap();
        data(&world, "next");
        assert_eq!(issues(&world.airdrop, "next"), Vec::<String>::new());
        assert_eq!(comments(&world.airdrop), 9);
    }
}

#[test]
fn an_extractor_is_told_so_that_it_need_not_fetch() {
    let mut world = World::new(2);
    world.serve = world.serve.clone().extraction_scope();
    world.airdrop.set_objects(Some(NO_COMMENTS));
    let mut told = Vec::new();
    let mut source = Source::new(|context: &Context, stream: &str, _: Option<u32>| {
        told.push(["comments", "issues", "unheard of"].map(|item_type| context.extracts(item_type)));
        Ok(page_of(stream, 0, 1, 1))
    });
    world.serve(&mut source, &event("EXTRACTION_DATA_START", "run", "1")).unwrap();
    drop(source);
    assert_eq!(told, [[false, true, true]]);
}

#[test]
fn a_scope_that_makes_no_sense_is_an_error_that_names_it_and_nothing_is_extracted() {
    let broken = [
        ("{", "objects"),
        ("[]", "must be an object by item type"),
        ("7", "must be an object by item type"),
        (r#"{"issues":false}"#, "issues"),
        (r#"{"issues":{"extract":"no"}}"#, "issues.extract"),
        (r#"{"a/b":{"extract":false}}"#, "a/b"),
    ];
    for (objects, named) in broken {
        for set in [Serve::checkpoints as fn(Serve) -> Serve, Serve::extraction_scope] {
            let mut world = World::new(2);
            world.serve = set(world.serve.clone());
            world.airdrop.set_objects(Some(objects));
            let mut source = source(&world.clock);
            let outcome = world.serve(&mut source, &event("EXTRACTION_DATA_START", "run", "1")).unwrap();
            assert_eq!(outcome.kind, OutcomeKind::Error, "{objects}");
            let error = world.airdrop.last().error();
            assert!(error.contains(named), "{objects}: {error}");
            assert!(source.asked().is_empty());
            // Mended, the run goes on.
            world.airdrop.set_objects(Some(NO_COMMENTS));
            for request in ["2", "3", "4"] {
                world.serve(&mut source, &event("EXTRACTION_DATA_CONTINUE", "run", request)).unwrap();
            }
            assert_eq!(issues(&world.airdrop, "run"), all_of("issues", 3, 2));
            assert_eq!(comments(&world.airdrop), 0);
        }
    }
}

#[test]
fn a_scope_that_cannot_be_read_is_an_error_and_asked_for_again() {
    let mut world = World::new(2);
    world.serve = world.serve.clone().extraction_scope();
    world.airdrop.set_objects(Some(NO_COMMENTS));
    world.airdrop.answer(Call::LoadState, 0, Answer::Refused(403));
    let mut source = source(&world.clock);
    world.serve(&mut source, &event("EXTRACTION_DATA_START", "run", "1")).unwrap();
    let error = world.airdrop.last().error();
    assert!(error.contains("extraction scope could not be read") && error.contains("403"), "{error}");
    world.airdrop.answer(Call::LoadState, 0, Answer::Unavailable);
    let outcome = world.serve(&mut source, &event("EXTRACTION_DATA_CONTINUE", "run", "2")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Progress, "{:?}", world.airdrop.last());
    assert_eq!(comments(&world.airdrop), 0);
}

#[test]
fn what_is_skipped_is_counted_in_the_store_and_its_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let world = World::new(2);
    world.airdrop.set_objects(Some(NO_COMMENTS));
    let serve = world.serve.clone().extraction_scope().without_attachments_phase();
    for (name, request) in
        [("EXTRACTION_DATA_START", "1"), ("EXTRACTION_DATA_CONTINUE", "2"), ("EXTRACTION_DATA_CONTINUE", "3")]
    {
        let store = Store::options().clock(world.clock.clone()).open(&path).unwrap();
        let source = source(&world.clock);
        serve.serve(&store, &world.airdrop, &source, &event(name, "run", request)).unwrap();
        drop(store);
        let found = check(&path).unwrap();
        assert!(found.findings.is_empty(), "{found:?}");
        let report = Snapshot::open(&path).unwrap().unit("unit", 5).unwrap().unwrap();
        if request == "3" {
            let counts = |name: &str| {
                let counts =
                    report.ledger[0].item_types.iter().find(|counts| counts.item_type == name).unwrap();
                (counts.read, counts.skipped, counts.announced, counts.artifacts)
            };
            assert_eq!(counts("comments"), (9, 9, 0, 0));
            assert_eq!((counts("issues").0, counts("issues").1, counts("issues").2), (6, 0, 6));
        } else {
            let comments = report.item_types.iter().find(|counts| counts.item_type == "comments").unwrap();
            let pages: u64 = request.parse().unwrap();
            assert_eq!((comments.read, comments.skipped, comments.batched), (3 * pages, 3 * pages, 0));
        }
    }
}
