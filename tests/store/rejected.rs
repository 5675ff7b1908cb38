//! Rejected records in a caller's own loop: stored with the page, requested by the next run, settled when that run is
//! finished. The reference remembers everything, and tells which ids are to be requested.

use std::collections::{BTreeMap, BTreeSet};

use highwater::inspect::{Snapshot, check};
use highwater::limits::REJECTED_IDS_MAX;
use highwater::testing::SimDisk;
use highwater::{Error, Page, Record, Result, Run, Store, SyncUnit};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::json;

use crate::support::lines;

fn record(id: &str) -> Record {
    Record::new(id, &json!({})).unwrap()
}

/// Reads one page into a run; the ids that are in its batches.
fn read(run: &Run, page: impl Fn() -> Page<u32>) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for batch in run.batches("issues", |_: Option<u32>| Ok::<_, Error>(page())) {
        let batch = batch?;
        let of_batch = lines(&batch.bytes()?).into_iter();
        ids.extend(of_batch.map(|line| line["id"].as_str().unwrap().to_owned()));
        let key = batch.key().to_string();
        batch.acknowledge(key)?;
    }
    ids.sort();
    Ok(ids)
}

fn left(run: &Run) -> BTreeSet<String> {
    run.rejected().unwrap().into_iter().map(|one| one.id).collect()
}

#[test]
fn over_the_limit_nothing_of_the_page_is_stored_and_what_is_settled_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let unit = Store::open(&path).unwrap().sync_unit("acme/tickets").unwrap();
    let page = |prefix: &str, count: u64| {
        let mut page = Page::last().record("issues", record("good"));
        // Each twice: an id counts once.
        for at in (0..count).chain(0..count) {
            page.reject("issues", &format!("{prefix}-{at}"), "bad");
        }
        page
    };
    let run = unit.begin().unwrap();
    let error = read(&run, || page("a", REJECTED_IDS_MAX + 1)).unwrap_err();
    let Error::TooManyRejected { found, limit, .. } = &error else { panic!("{error}") };
    assert_eq!((*found, *limit), (REJECTED_IDS_MAX + 1, REJECTED_IDS_MAX));
    assert!(error.to_string().contains("of issues: bad; mend"), "{error}");
    assert_eq!(read(&run, || page("a", REJECTED_IDS_MAX)).unwrap(), ["good"]);
    run.finish().unwrap();
    // All are still to be asked for, so not one more is taken.
    let run = unit.begin().unwrap();
    assert!(matches!(read(&run, || page("b", 1)), Err(Error::TooManyRejected { .. })));
    // One is gone: there is room for one.
    let gone = |_: &str, ids: &[String]| {
        let mut page = Page::<u32>::last();
        for id in ids {
            if id == "a-7" { page.gone("issues", id) } else { page.reject("issues", id, "bad still") }
        }
        Ok::<_, Error>(page)
    };
    assert_eq!(run.refetch(gone).unwrap(), REJECTED_IDS_MAX);
    assert!(matches!(read(&run, || page("b", 2)), Err(Error::TooManyRejected { .. })));
    assert_eq!(read(&run, || page("b", 1)).unwrap(), ["good"]);
    run.finish().unwrap();
    let run = unit.begin().unwrap();
    let ids = left(&run);
    assert!(ids.len() as u64 == REJECTED_IDS_MAX && ids.contains("b-0") && !ids.contains("a-7"));
    assert_eq!(run.rejected().unwrap()[0].asked, 1);
    drop(run);
    assert_eq!(check(&path).unwrap().findings, []);
    // What was read is what was announced and what was rejected, in the ledger and for people.
    let mut snapshot = Snapshot::open(&path).unwrap();
    let report = snapshot.unit("acme/tickets", 9).unwrap().unwrap();
    let counts: Vec<_> = report.ledger.iter().map(|run| &run.item_types[0]).collect();
    let of = |at: usize| (counts[at].read, counts[at].rejected, counts[at].skipped, counts[at].announced);
    assert_eq!((of(0), of(1)), ((2_001, 2_000, 0, 1), (3, 2, 0, 1)));
    // A unit that is deleted forgets them.
    unit.delete().unwrap();
    assert!(left(&unit.begin().unwrap()).is_empty());
}

#[test]
fn a_closure_that_fails_is_the_source_of_the_error_and_nothing_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let unit = Store::open(dir.path().join("state.redb")).unwrap().sync_unit("acme/tickets").unwrap();
    let run = unit.begin().unwrap();
    let page = || {
        let mut page = Page::last();
        page.reject("issues", "I-1", "bad");
        page
    };
    assert!(read(&run, page).unwrap().is_empty());
    run.finish().unwrap();
    let run = unit.begin().unwrap();
    let failing = |_: &str, _: &[String]| -> std::result::Result<Page<u32>, std::io::Error> {
        Err(std::io::Error::other("down"))
    };
    let error = run.refetch(failing).unwrap_err();
    assert_eq!(error.to_string(), "fetching a page of stream of rejected issues of acme/tickets failed");
    assert_eq!(left(&run), ["I-1".to_owned()].into());
    // Nor may a stream be named as they are counted.
    let named = run.batches("@highwater/refetched", |_: Option<u32>| Ok::<_, Error>(Page::last())).next();
    assert!(matches!(named, Some(Err(Error::Invalid { .. }))));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Became {
    Passed,
    Bad,
    Gone,
}

/// One run: what becomes of each id that is requested again (cyclically), what its page has, and how it ends.
#[derive(Debug, Clone)]
struct Sync {
    asks: bool,
    became: Vec<Became>,
    /// For each record, whether it is bad.
    page: Vec<(u8, bool)>,
    finishes: bool,
    /// The store is reopened before the page is read.
    reopens: bool,
}

fn sync() -> impl Strategy<Value = Sync> {
    let became = prop_oneof![Just(Became::Passed), Just(Became::Bad), Just(Became::Gone)];
    let page = prop::collection::vec((0..12_u8, any::<bool>()), 0..8);
    (any::<[bool; 3]>(), prop::collection::vec(became, 1..6), page).prop_map(
        |([asks, not_finished, reopens], became, page)| Sync {
            asks,
            became,
            page,
            finishes: !not_finished,
            reopens,
        },
    )
}

fn config() -> ProptestConfig {
    let failures = FileFailurePersistence::Direct("proptest-regressions/rejected.txt");
    ProptestConfig { cases: 48, failure_persistence: Some(Box::new(failures)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever passes, is gone or is bad again, in runs that are finished or given up: what the next run is to ask
    /// for is what the reference has, and each record is announced as often as it was read good.
    #[test]
    fn what_is_asked_for_is_what_was_rejected_and_has_neither_passed_nor_gone(
        syncs in prop::collection::vec(sync(), 1..8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let disk = SimDisk::new();
        let open = || -> (Store, SyncUnit) {
            let store = Store::options().batch_items(3).open_on(Box::new(disk.clone()), "state.redb").unwrap();
            let unit = store.sync_unit("unit").unwrap();
            (store, unit)
        };
        let mut reference: BTreeSet<String> = BTreeSet::new();
        for one in syncs {
            let (mut store, mut unit) = open();
            let mut run = unit.begin().unwrap();
            prop_assert_eq!(&left(&run), &reference);
            let mut after = reference.clone();
            let mut expected = Vec::new();
            if one.asks {
                let became: BTreeMap<String, Became> =
                    reference.iter().cloned().zip(one.became.iter().copied().cycle()).collect();
                let asked = run.refetch(|item_type, ids| {
                    let mut page = Page::<u32>::last();
                    for id in ids {
                        match became[id] {
                            Became::Passed => page.push(item_type, record(id)),
                            Became::Bad => page.reject(item_type, id, "bad still"),
                            Became::Gone => page.gone(item_type, id),
                        }
                    }
                    Ok::<_, Error>(page)
                });
                prop_assert_eq!(asked.unwrap(), reference.len() as u64);
                prop_assert!(left(&run).is_empty());
                after.retain(|id| became[id] == Became::Bad);
                expected.extend(became.into_iter().filter(|(_, is)| *is == Became::Passed).map(|(id, _)| id));
            }
            if one.reopens {
                drop((run, unit, store));
                (store, unit) = open();
                run = unit.begin().unwrap();
                prop_assert!(run.resumed());
            }
            let page = || {
                let mut page = Page::last();
                for (id, is_bad) in &one.page {
                    let id = format!("I-{id}");
                    if *is_bad { page.reject("issues", &id, "bad") } else { page.push("issues", record(&id)) }
                }
                page
            };
            let found = read(&run, page).unwrap();
            let name = |(id, _): &(u8, bool)| format!("I-{id}");
            expected.extend(one.page.iter().filter(|(_, is_bad)| !is_bad).map(name));
            expected.sort();
            prop_assert_eq!(found, expected);
            after.extend(one.page.iter().filter(|(_, is_bad)| *is_bad).map(name));
            if one.finishes {
                run.finish().unwrap();
                reference = after;
            } else {
                unit.abandon().unwrap();
            }
            drop((unit, store));
            std::fs::write(&path, disk.image().to_bytes()).unwrap();
            prop_assert_eq!(check(&path).unwrap().findings, []);
        }
    }
}
