//! A bad record is rejected, and the rest of its page is delivered. The next run requests it first, until it passes
//! or is gone. Nothing is lost meanwhile, with a disk and without: each record that is read is announced, or is among
//! the rejected.
//!
//! The test's source keeps what was read, and its platform what was announced. The store is asked only for the ids
//! that are still to be requested.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use crate::world::{Fetched, Source, World, event};
use highwater::airdrop::{AttachmentBody, CheckPolicy, Context, OutcomeKind, SourceError};
use highwater::inspect::{RejectedStage, Snapshot};
use highwater::limits::{REFETCH_IDS, REJECTED_FEW, REJECTED_IDS_MAX};
use highwater::record::{Attachment, Field, Metadata, Normalizer, RecordType};
use highwater::testing::{Act, Explore, Setting, SimSource};
use highwater::{Page, Record};
use serde_json::{Value, json};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";

fn metadata() -> Metadata {
    let issues = RecordType::new().field("is", Field::text()).field("size", Field::int());
    Metadata::new().record_type("issues", issues)
}

/// An issue of the source: its size is a number, or it is bad.
fn issue(id: &str, is_bad: bool) -> Value {
    json!({ "id": id, "is": id, "size": if is_bad { json!("big") } else { json!(7) } })
}

/// The same as a record, which nobody has looked at.
fn record(id: &str, is_bad: bool) -> Record {
    let Value::Object(mut data) = issue(id, is_bad) else { unreachable!() };
    data.remove("id");
    Record::new(id, &data).unwrap()
}

/// Each way of rejecting: the normaliser's refusal, the author's own, and the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Normalizer,
    Author,
    Policy,
}

const WAYS: [Way; 3] = [Way::Normalizer, Way::Author, Way::Policy];

impl Way {
    fn add(self, page: &mut Page<u32>, id: &str, is_bad: bool) {
        match self {
            Way::Normalizer => {
                let normalizer = Normalizer::from_metadata(&metadata(), "issues").unwrap();
                let raw = issue(id, is_bad);
                page.push_or_reject("issues", &raw, normalizer.normalize(&raw));
            }
            Way::Author if is_bad => page.reject("issues", id, "its size is not a number"),
            Way::Author | Way::Policy => page.push("issues", record(id, is_bad)),
        }
    }

    fn policy(self) -> CheckPolicy {
        if self == Way::Policy { CheckPolicy::LeaveOut } else { CheckPolicy::Off }
    }
}

/// A source of `pages` pages with 20 issues each, `<run>-<page>-<item>`; `is_bad` says whether the record
/// of an id is bad, when it is listed and when it is requested again.
fn source<'a>(
    way: Way,
    pages: u32,
    is_bad: impl Fn(&str) -> bool + Send + Sync + 'a,
    refetch: Option<&'a (dyn Fn(&str) -> Again + Sync)>,
    asked: &'a Mutex<Vec<Vec<String>>>,
) -> Source<'a> {
    let mut source = Source::new(move |context: &Context, _: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        let mut page = if at + 1 < pages { Page::more(at + 1) } else { Page::last() };
        for item in 0..20 {
            let id = format!("{}-{at}-{item}", context.run_id());
            way.add(&mut page, &id, is_bad(&id));
        }
        Ok(page)
    });
    source.metadata = Ok(serde_json::to_value(metadata()).unwrap());
    source.policy = way.policy();
    if let Some(refetch) = refetch {
        source.refetch = Some(Box::new(move |item_type, ids| {
            assert_eq!(item_type, "issues");
            asked.lock().unwrap().push(ids.to_vec());
            Ok(answer(way, ids, refetch))
        }));
    }
    source
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Passes,
    Bad,
    Gone,
    Silent,
}

fn answer(way: Way, ids: &[String], became: &dyn Fn(&str) -> Again) -> Page<u32> {
    let mut page = Page::last();
    for id in ids {
        match became(id) {
            Again::Passes => way.add(&mut page, id, false),
            Again::Bad => way.add(&mut page, id, true),
            Again::Gone => page.gone("issues", id),
            Again::Silent => {}
        }
    }
    page
}

/// The worlds that everything holds in: with a disk, and on a new machine for each event.
fn worlds() -> [(World, bool); 2] {
    let mut without = World::new(7);
    without.serve = without.serve.clone().checkpoints().without_attachments_phase();
    let mut with = World::new(7);
    with.serve = with.serve.clone().without_attachments_phase();
    [(with, false), (without, true)]
}

fn announced(world: &World, run: &str) -> BTreeSet<String> {
    let announced = world.airdrop.announced(run);
    let set: BTreeSet<_> = announced.iter().cloned().collect();
    assert_eq!(set.len(), announced.len(), "announced twice");
    set
}

fn of_run(run: &str, pages: u32) -> BTreeSet<String> {
    (0..pages)
        .flat_map(|at| (0..20).map(move |item| (at, item)))
        .map(|(at, item)| format!("{run}-{at}-{item}"))
        .collect()
}

fn serve(
    world: &mut World,
    loses_disk: bool,
    source: &mut Source<'_>,
    name: &str,
    run: &str,
    no: u32,
) -> OutcomeKind {
    if loses_disk {
        world.lose_disk();
    } else {
        world.restart();
    }
    let outcome = world.serve(source, &event(name, run, &no.to_string())).unwrap();
    is_whole(world);
    outcome.kind
}

/// The store's own check.
fn is_whole(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(&path, world.disk.image().to_bytes()).unwrap();
    assert_eq!(highwater::inspect::check(&path).unwrap().findings, []);
}

fn rejected(world: &World, with_json: bool) -> Vec<highwater::inspect::RejectedReport> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(&path, world.disk.image().to_bytes()).unwrap();
    Snapshot::open(&path).unwrap().rejected("unit", with_json).unwrap().unwrap()
}

#[test]
fn a_bad_record_is_left_out_and_asked_for_first_until_it_passes_or_is_gone() {
    for way in WAYS {
        for (mut world, loses_disk) in worlds() {
            let asked = Mutex::default();
            let bad: BTreeSet<String> = ["a-0-3", "a-1-0", "a-1-19"].map(str::to_owned).into();
            let never = |_: &str| -> Again { panic!("nothing was rejected before") };
            let mut first = source(way, 2, |id| bad.contains(id), Some(&never), &asked);
            assert_eq!(serve(&mut world, loses_disk, &mut first, DATA, "a", 1), OutcomeKind::Done);
            assert_eq!(&of_run("a", 2) - &announced(&world, "a"), bad, "{way:?}");
            // One passes, one is bad still, and one is gone.
            let became = |id: &str| match id {
                "a-0-3" => Again::Passes,
                "a-1-0" => Again::Bad,
                _ => Again::Gone,
            };
            let mut second = source(way, 1, |_| false, Some(&became), &asked);
            assert_eq!(serve(&mut world, loses_disk, &mut second, DATA, "b", 2), OutcomeKind::Done);
            assert_eq!(asked.lock().unwrap().concat(), ["a-0-3", "a-1-0", "a-1-19"]);
            let mut expected = of_run("b", 1);
            expected.insert("a-0-3".to_owned());
            assert_eq!(announced(&world, "b"), expected);
            // Only the one that is bad still is asked for, and it passes.
            asked.lock().unwrap().clear();
            let passes = |_: &str| Again::Passes;
            let mut third = source(way, 1, |_| false, Some(&passes), &asked);
            assert_eq!(serve(&mut world, loses_disk, &mut third, DATA, "c", 3), OutcomeKind::Done);
            assert_eq!(asked.lock().unwrap().concat(), ["a-1-0"]);
            assert!(announced(&world, "c").contains("a-1-0"));
            asked.lock().unwrap().clear();
            let mut fourth = source(way, 1, |_| false, Some(&passes), &asked);
            assert_eq!(serve(&mut world, loses_disk, &mut fourth, DATA, "d", 4), OutcomeKind::Done);
            assert!(asked.lock().unwrap().is_empty() && rejected(&world, false).is_empty());
        }
    }
}

#[test]
fn what_passed_in_a_run_that_is_given_up_is_asked_for_by_the_next() {
    for (mut world, loses_disk) in worlds() {
        let asked = Mutex::default();
        let passes = |_: &str| Again::Passes;
        let mut first = source(Way::Author, 1, |id| id == "a-0-3", Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut first, DATA, "a", 1), OutcomeKind::Done);
        // It passes, and another is rejected; but the run is not finished.
        let clock = world.clock.clone();
        let mut second = Source::new(move |_: &Context, _: &str, at: Option<u32>| {
            clock.advance(Duration::from_secs(11 * 60));
            let mut page = Page::more(at.unwrap_or(0) + 1);
            page.reject("issues", "b-0-0", "bad");
            Ok(page)
        });
        second.refetch = Some(Box::new(|_, ids| Ok(answer(Way::Author, ids, &passes))));
        assert_eq!(serve(&mut world, loses_disk, &mut second, DATA, "b", 2), OutcomeKind::Progress);
        let stages: Vec<_> = rejected(&world, false).into_iter().map(|one| (one.id, one.stage)).collect();
        let expected =
            [("a-0-3".to_owned(), RejectedStage::Passed), ("b-0-0".to_owned(), RejectedStage::Rejected)];
        assert_eq!(stages, expected);
        let mut third = source(Way::Author, 1, |_| false, Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut third, DATA, "c", 3), OutcomeKind::Done);
        assert_eq!(
            asked.lock().unwrap().concat(),
            ["a-0-3"],
            "what that run rejected is fetched again anyway"
        );
        assert!(announced(&world, "c").contains("a-0-3"));
    }
}

#[test]
fn without_refetch_a_page_that_rejects_is_an_error_and_nothing_of_it_is_lost() {
    for way in WAYS {
        for (mut world, loses_disk) in worlds() {
            let asked = Mutex::default();
            for no in 1..3 {
                let mut source = source(way, 3, |id| id == "a-1-5", None, &asked);
                let name = if no == 1 { DATA } else { DATA_ON };
                assert_eq!(serve(&mut world, loses_disk, &mut source, name, "a", no), OutcomeKind::Error);
                let error = world.airdrop.last().error();
                for part in ["rejects 1 records of issues", "a-1-5", "Extractor::refetch", "fetched again"] {
                    assert!(error.contains(part), "{part} in {error}");
                }
            }
            // It is mended at the source.
            let mut mended = source(way, 3, |_| false, None, &asked);
            assert_eq!(serve(&mut world, loses_disk, &mut mended, DATA_ON, "a", 3), OutcomeKind::Done);
            assert_eq!(announced(&world, "a"), of_run("a", 3));
        }
    }
}

#[test]
fn an_extractor_that_cannot_ask_any_more_is_told_and_the_ids_are_kept() {
    for (mut world, loses_disk) in worlds() {
        let asked = Mutex::default();
        let passes = |_: &str| Again::Passes;
        let mut first = source(Way::Author, 1, |id| id == "a-0-3", Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut first, DATA, "a", 1), OutcomeKind::Done);
        let mut unable = source(Way::Author, 1, |_| false, None, &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut unable, DATA, "b", 2), OutcomeKind::Error);
        let error = world.airdrop.last().error();
        assert!(error.contains("a-0-3") && error.contains("can_refetch for issues"), "{error}");
        let mut able = source(Way::Author, 1, |_| false, Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut able, DATA_ON, "b", 3), OutcomeKind::Done);
        assert!(announced(&world, "b").contains("a-0-3"));
    }
}

type Answer = fn(&[String]) -> Fetched;

#[test]
fn an_answer_that_does_not_answer_is_an_error_and_the_same_ids_are_asked_for_again() {
    for (mut world, loses_disk) in worlds() {
        let asked = Mutex::default();
        let passes = |_: &str| Again::Passes;
        let mut first = source(Way::Author, 1, |id| id == "a-0-3", Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut first, DATA, "a", 1), OutcomeKind::Done);
        let answers: [(Answer, &str); 6] = [
            (|ids| Ok(answer(Way::Author, ids, &|_| Again::Silent)), "it has no result for a-0-3"),
            (|_| Ok(Page::more(1).record("issues", record("a-0-3", false))), "it must be a last page"),
            (|_| Ok(Page::last().bookmark(&1)), "it must leave no bookmark"),
            (|_| Ok(Page::last().child("comments", "ISSUE-1", &())), "it must name no child listings"),
            (|_| Err("the tracker is down".into()), "requesting 1 rejected records of issues of"),
            (|_| panic!("no tracker"), "the extractor panicked: no tracker"),
        ];
        for (no, (answers, says)) in (2..).zip(answers) {
            let mut source = source(Way::Author, 1, |_| false, Some(&passes), &asked);
            source.refetch = Some(Box::new(move |_, ids| answers(ids)));
            let name = if no == 2 { DATA } else { DATA_ON };
            assert_eq!(
                serve(&mut world, loses_disk, &mut source, name, "b", no),
                OutcomeKind::Error,
                "{says}"
            );
            let error = world.airdrop.last().error();
            assert!(error.contains(says), "{says} in {error}");
            assert!(announced(&world, "b").is_empty());
        }
        // A short wait would be waited for.
        let long = Duration::from_secs(11);
        let mut busy = source(Way::Author, 1, |_| false, Some(&passes), &asked);
        busy.refetch = Some(Box::new(move |_, _| Err(SourceError::RateLimited { after: long })));
        assert_eq!(serve(&mut world, loses_disk, &mut busy, DATA_ON, "b", 8), OutcomeKind::Delay);
        world.clock.advance(long);
        let mut able = source(Way::Author, 1, |_| false, Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut able, DATA_ON, "b", 9), OutcomeKind::Done);
        assert!(announced(&world, "b").contains("a-0-3"));
    }
}

#[test]
fn a_page_that_says_of_its_own_accord_that_a_record_is_gone_is_an_error() {
    let world = World::new(7);
    let mut source = Source::new(|_: &Context, _: &str, _: Option<u32>| {
        let mut page = Page::last();
        page.gone("issues", "I-1");
        Ok(page)
    });
    assert_eq!(world.serve(&mut source, &event(DATA, "a", "1")).unwrap().kind, OutcomeKind::Error);
    let error = world.airdrop.last().error();
    assert!(error.contains("record I-1 of issues is gone") && error.contains("requested for"), "{error}");
}

/// Many are asked for in chunks, and who is stopped between two of them goes on with the next.
#[test]
fn many_are_asked_for_in_chunks_each_once_however_many_invocations_it_takes() {
    for (mut world, loses_disk) in worlds() {
        world.serve = world.serve.clone().rejected_percent(100);
        let asked = Mutex::default();
        let passes = |_: &str| Again::Passes;
        let mut first = source(Way::Author, 20, |id| !id.ends_with("-0"), Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut first, DATA, "a", 1), OutcomeKind::Done);
        assert_eq!(announced(&world, "a").len(), 20);
        let clock = world.clock.clone();
        let mut invocations = 0;
        for no in 2.. {
            let mut next = source(Way::Author, 1, |_| false, None, &asked);
            let (clock, asked) = (clock.clone(), &asked);
            next.refetch = Some(Box::new(move |_, ids| {
                clock.advance(Duration::from_secs(9 * 60));
                asked.lock().unwrap().push(ids.to_vec());
                Ok(answer(Way::Author, ids, &passes))
            }));
            let name = if no == 2 { DATA } else { DATA_ON };
            invocations += 1;
            if serve(&mut world, loses_disk, &mut next, name, "b", no) == OutcomeKind::Done {
                break;
            }
        }
        let asked = asked.lock().unwrap().clone();
        assert!(asked.iter().all(|ids| ids.len() <= REFETCH_IDS) && invocations == 5, "{invocations}");
        let once: BTreeSet<_> = asked.iter().flatten().cloned().collect();
        assert_eq!((asked.concat().len(), &once), (380, &(&of_run("a", 20) - &announced(&world, "a"))));
        assert_eq!(&announced(&world, "b") - &of_run("b", 1), once);
    }
}

#[test]
fn more_than_the_limit_of_ids_is_an_error_at_once_and_nothing_of_the_page_is_stored() {
    for (mut world, loses_disk) in worlds() {
        world.serve = world.serve.clone().rejected_percent(100).rejected_max(5);
        let asked = Mutex::default();
        let became = |id: &str| if id == "a-0-0" { Again::Passes } else { Again::Bad };
        // 4 in the first run.
        let of_first = |id: &str| ["a-0-0", "a-0-1", "a-0-2", "a-0-3"].contains(&id);
        let mut first = source(Way::Author, 1, of_first, Some(&became), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut first, DATA, "a", 1), OutcomeKind::Done);
        // 3 of those are still bad; 2 more are not too many, 3 more are.
        let bad = ["b-0-0", "b-1-0", "b-2-0"];
        for no in 2..4 {
            let mut second = source(Way::Author, 4, |id| bad.contains(&id), Some(&became), &asked);
            let name = if no == 2 { DATA } else { DATA_ON };
            assert_eq!(serve(&mut world, loses_disk, &mut second, name, "b", no), OutcomeKind::Error);
            let error = world.airdrop.last().error();
            assert!(
                error.contains("over the limit of 5 ids") && error.contains("b-2-0 of issues"),
                "{error}"
            );
            assert!(second.asked().contains(&("issues".to_owned(), Some(2))), "it is fetched again");
        }
        assert_eq!(asked.lock().unwrap().concat().len(), 4, "they are asked for once in a run");
        world.serve = world.serve.clone().rejected_max(6);
        let mut second = source(Way::Author, 4, |id| bad.contains(&id), Some(&became), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut second, DATA_ON, "b", 4), OutcomeKind::Done);
        let mut expected = &of_run("b", 4) - &bad.map(str::to_owned).into();
        expected.insert("a-0-0".to_owned());
        assert_eq!(announced(&world, "b"), expected);
        let left: Vec<_> = rejected(&world, false).into_iter().map(|one| (one.id, one.asked)).collect();
        let of = |id: &str, asked| (id.to_owned(), asked);
        let expected = ["a-0-1", "a-0-2", "a-0-3"].map(|id| of(id, 1)).into_iter();
        assert_eq!(left, expected.chain(bad.map(|id| of(id, 0))).collect::<Vec<_>>());
    }
}

#[test]
fn more_than_the_part_of_a_run_is_an_error_once_everything_is_read() {
    for (mut world, loses_disk) in worlds() {
        let asked = Mutex::default();
        let passes = |_: &str| Again::Passes;
        // 11 of 220: 5 %, and one more than what is never too many.
        let bad = |id: &str| id.ends_with("-7");
        for no in 1..3 {
            let mut source = source(Way::Author, 11, bad, Some(&passes), &asked);
            let name = if no == 1 { DATA } else { DATA_ON };
            assert_eq!(serve(&mut world, loses_disk, &mut source, name, "a", no), OutcomeKind::Error);
            let error = world.airdrop.last().error();
            for part in ["rejected 11 of 220 records", "more than 1 %", "Serve::rejected_percent"] {
                assert!(error.contains(part), "{part} in {error}");
            }
        }
        // What passed was announced by then, and the limit can be raised for the run to go on.
        assert_eq!(announced(&world, "a").len(), 209);
        world.serve = world.serve.clone().rejected_percent(5);
        let mut on = source(Way::Author, 11, bad, Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut on, DATA_ON, "a", 3), OutcomeKind::Done);
        assert_eq!(on.asked(), [], "nothing is read again");
        // A few bad records in a small run do not stop it.
        world.serve = world.serve.clone().rejected_percent(0);
        let few = |id: &str| id.ends_with("-7") || id.ends_with("-8");
        let mut small = source(Way::Author, 5, few, Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut small, DATA, "b", 4), OutcomeKind::Done);
        assert_eq!(REJECTED_FEW, 10);
    }
}

/// 1,000 ids of 60 bytes of a run without a disk: they are in the worker state, and all asked for on another machine.
#[test]
fn a_thousand_ids_fit_into_a_checkpoint_and_more_than_fit_are_an_error_that_says_so() {
    let mut world = World::new(2_000);
    world.serve = world.serve.clone().checkpoints().without_attachments_phase().rejected_percent(100);
    let long = |at: u32, bytes: usize| format!("{at:0bytes$}");
    let list = move |bytes: usize| {
        Source::new(move |_: &Context, _: &str, at: Option<u32>| {
            let at = at.unwrap_or(0);
            let mut page = if at < 9 { Page::more(at + 1) } else { Page::last() };
            for item in 0..100 {
                page.reject("issues", &long(at * 100 + item, bytes), "bad");
            }
            Ok(page)
        })
    };
    let asked = Mutex::new(0);
    let mut first = list(60);
    first.refetch = Some(Box::new(|_, _| panic!("nothing was rejected before")));
    assert_eq!(serve(&mut world, true, &mut first, DATA, "a", 1), OutcomeKind::Done);
    assert_eq!(rejected(&world, false).len() as u64, REJECTED_IDS_MAX);
    let mut second = Source::new(|_: &Context, _: &str, _: Option<u32>| Ok(Page::last()));
    second.refetch = Some(Box::new(|_, ids| {
        *asked.lock().unwrap() += ids.len();
        Ok(answer(Way::Author, ids, &|_| Again::Gone))
    }));
    assert_eq!(serve(&mut world, true, &mut second, DATA, "b", 2), OutcomeKind::Done);
    drop(second);
    assert_eq!(asked.into_inner().unwrap(), 1_000);
    assert!(rejected(&world, false).is_empty());
    // 1,000 of 512 bytes do not fit.
    let mut third = list(512);
    third.refetch = Some(Box::new(|_, _| panic!("all are gone")));
    assert_eq!(serve(&mut world, true, &mut third, DATA, "c", 3), OutcomeKind::Error);
    let error = world.airdrop.last().error();
    assert!(
        error.contains("of a rejected record of issues takes") && error.contains("bytes are left")
            || error.contains("are left of"),
        "{error}"
    );
    assert!(rejected(&world, false).len() < 1_000);
}

#[test]
fn what_is_out_of_scope_is_not_rejected_and_not_asked_for_until_it_is_wanted_again() {
    for (mut world, loses_disk) in worlds() {
        world.serve = world.serve.clone().extraction_scope();
        let asked = Mutex::default();
        let passes = |_: &str| Again::Passes;
        let mut first = source(Way::Author, 1, |id| id == "a-0-3", Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut first, DATA, "a", 1), OutcomeKind::Done);
        world.airdrop.set_objects(Some(r#"{"issues":{"extract":false}}"#));
        let mut second = source(Way::Author, 1, |id| id == "b-0-3", Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut second, DATA, "b", 2), OutcomeKind::Done);
        assert!(announced(&world, "b").is_empty() && asked.lock().unwrap().is_empty());
        world.airdrop.set_objects(None);
        let mut third = source(Way::Author, 1, |_| false, Some(&passes), &asked);
        assert_eq!(serve(&mut world, loses_disk, &mut third, DATA, "c", 3), OutcomeKind::Done);
        assert_eq!(asked.lock().unwrap().concat(), ["a-0-3"]);
    }
}

/// What no single record is at fault for, and what has no id to ask by, is refused whole.
#[test]
fn left_out_is_one_record_and_never_an_item_type_that_is_not_declared_or_a_record_without_an_id() {
    let unknown = || Page::last().record("epics", Record::new("E-1", &json!({})).unwrap());
    let without_id = || Page::last().record("issues", Record::flat(&json!({ "size": 7 })).unwrap());
    for (page, says) in [(&unknown as &(dyn Fn() -> Page<u32> + Send + Sync), "epics"), (&without_id, "data")]
    {
        let world = World::new(7);
        let asked = Mutex::default();
        let mut source = source(Way::Policy, 1, |_| false, Some(&|_: &str| Again::Passes), &asked);
        source.policy = CheckPolicy::LeaveOut;
        let mut refused = Source::new(|_: &Context, _: &str, _: Option<u32>| Ok(page()));
        refused.metadata = source.metadata.clone();
        refused.policy = source.policy;
        refused.refetch = source.refetch.take();
        let outcome = world.serve(&mut refused, &event(DATA, "a", "1")).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        let error = world.airdrop.last().error();
        assert!(error.contains("is refused, and nothing of it is stored") && error.contains(says), "{error}");
    }
}

#[test]
fn a_record_that_names_no_id_cannot_be_rejected_and_says_why_it_was() {
    let world = World::new(7);
    let mut source = Source::new(|_: &Context, _: &str, _: Option<u32>| {
        let normalizer = Normalizer::from_metadata(&metadata(), "issues").unwrap();
        let raw = json!({ "size": 7 });
        let mut page = Page::last();
        page.push_or_reject("issues", &raw, normalizer.normalize(&raw));
        Ok(page)
    });
    source.refetch = Some(Box::new(|_, _| panic!("nothing was rejected")));
    assert_eq!(world.serve(&mut source, &event(DATA, "a", "1")).unwrap().kind, OutcomeKind::Error);
    let error = world.airdrop.last().error();
    assert!(error.contains("the id of a rejected record of issues") && error.contains("has no"), "{error}");
}

#[test]
fn the_first_of_a_kind_are_kept_whole_up_to_a_limit_and_shown_on_request() {
    let mut world = World::new(7);
    world.serve = world.serve.clone().rejected_percent(100).without_attachments_phase();
    let mut source = Source::new(|_: &Context, _: &str, _: Option<u32>| {
        let mut page = Page::last();
        for item in 0..30 {
            let normalizer = Normalizer::from_metadata(&metadata(), "issues").unwrap();
            let text = if item == 0 { "x".repeat(20_000) } else { "secret".to_owned() };
            let mut raw = json!({ "id": format!("I-{item:02}"), "is": text, "size": "big" });
            if item % 2 == 1 {
                raw["is"] = json!(["secret"]);
            }
            page.push_or_reject("issues", &raw, normalizer.normalize(&raw));
        }
        Ok(page)
    });
    source.refetch = Some(Box::new(|_, _| panic!("nothing was rejected before")));
    assert_eq!(serve(&mut world, false, &mut source, DATA, "a", 1), OutcomeKind::Done);
    let shown = rejected(&world, true);
    assert_eq!(shown.len(), 30);
    let kinds: BTreeSet<_> = shown.iter().map(|one| one.reason_kind.as_str()).collect();
    assert_eq!(kinds, ["conversion at data.is", "conversion at data.size"].into());
    let kept: Vec<_> = shown.iter().filter(|one| one.json.is_some()).collect();
    assert_eq!(kept.len(), 20, "10 of a kind");
    assert!(kept[0].json_bytes > Some(20_000) && kept[0].json.as_ref().unwrap().len() <= 16 * 1024);
    let whole: Value = serde_json::from_str(kept[1].json.as_ref().unwrap()).unwrap();
    assert_eq!(whole, json!({ "id": "I-01", "is": ["secret"], "size": "big" }));
    assert!(shown.iter().all(|one| one.first_run.as_deref() == Some("a") && !one.reason.is_empty()));
    assert!(rejected(&world, false).iter().all(|one| one.json.is_none()));
}

/// The place of an attachment in the queue does not count those that were rejected before it.
#[test]
fn attachments_that_are_not_rejected_are_streamed_also_where_others_are() {
    for checkpoints in [false, true] {
        let mut world = World::new(2);
        if checkpoints {
            world.serve = world.serve.clone().checkpoints();
        }
        let mut source = Source::new(|_: &Context, _: &str, at: Option<u32>| {
            let at = at.unwrap_or(0);
            let mut page = if at < 2 { Page::more(at + 1) } else { Page::last() };
            page.reject("attachments", &format!("bad-{at}"), "it has no url");
            for item in 0..3 {
                let id = format!("file-{at}-{item}");
                let file = Attachment::new(id.clone(), format!("https://files.example/{id}"), id, "I-1");
                page.push("attachments", file.to_record()?);
            }
            Ok(page)
        });
        source.refetch = Some(Box::new(|_, _| panic!("nothing was rejected before")));
        source.open = Some(Box::new(|file| Ok(AttachmentBody::new(std::io::Cursor::new(file.id.clone())))));
        assert_eq!(serve(&mut world, checkpoints, &mut source, DATA, "a", 1), OutcomeKind::Done);
        let start = "EXTRACTION_ATTACHMENTS_START";
        assert_eq!(serve(&mut world, checkpoints, &mut source, start, "a", 2), OutcomeKind::Done);
        let links = world.airdrop.lines_of("a", "ssor_attachment");
        let ids: BTreeSet<_> = links.iter().map(|line| line["id"]["external"].as_str().unwrap()).collect();
        let expected: Vec<String> =
            (0..3).flat_map(|at| (0..3).map(move |item| format!("file-{at}-{item}"))).collect();
        assert_eq!(ids, expected.iter().map(String::as_str).collect());
        assert_eq!((links.len(), rejected(&world, false).len()), (9, 3));
    }
}

/// The explorer's own oracle: what it saw handed over is announced or was bad, and each run asks for what those
/// before it left, wherever the process dies.
#[test]
fn wherever_the_process_dies_what_was_rejected_is_asked_for_and_what_passes_is_announced_once() {
    for explore in [Explore::new().states(600), Explore::new().states(50).without_disk()] {
        let rejects = Act::With(Setting::Rejects);
        let report = explore.with_acts([rejects]).run(SimSource::new);
        println!("{report}");
        assert!(report.failure.is_none(), "{report}");
        for what in ["asked-again", "mended", "bad-still", "gone"] {
            let times = report.faults.get(&format!("source/{what}")).copied();
            assert!(times.is_some_and(|times| times > 20), "{what}: {times:?}\n{report}");
        }
    }
}
