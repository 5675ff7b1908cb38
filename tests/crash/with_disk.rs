//! The promise, explored: whatever the disk, the platform, the source and the clock do, and wherever the process dies,
//! every staged record is announced exactly once.

use highwater::testing::{Act, Explore, Setting, SimSource};

fn states() -> u64 {
    std::env::var("HIGHWATER_EXPLORE_STATES")
        .map_or(20_000, |states| states.parse().expect("a number of states"))
}

#[test]
fn every_record_is_announced_exactly_once_wherever_the_process_dies() {
    let report = Explore::new().states(states()).run(SimSource::new);
    println!("{report}");
    assert!(report.failure.is_none(), "{report}");
    // What did not happen was not proven.
    for fault in FAULTS {
        assert!(
            report.faults.get(*fault).is_some_and(|&times| times > 0),
            "{fault} never happened\n{report}"
        );
    }
    for reason in ["failed-five-times", "refused-by-the-source"] {
        assert!(report.given_up.contains_key(reason), "no attachment was given up: {reason}\n{report}");
    }
    assert!(report.states >= states() && report.deaths > 0 && report.second_crashes > 0, "{report}");
    // With a disk, nothing lies outside of the promise: no failure is counted apart.
    assert_eq!(report.outside, 0, "{report}");
}

/// Everything that may befall an extractor.
const FAULTS: &[&str] = &[
    "clock/ahead",
    "clock/back",
    "confirm/302-before",
    "confirm/408-after",
    "confirm/408-before",
    "confirm/425-before",
    "confirm/429",
    "confirm/429-after-3",
    "confirm/500-after",
    "confirm/500-before",
    "confirm/bad-body",
    "confirm/lost",
    "confirm/refused-400",
    "confirm/reset-after",
    "confirm/reset-before",
    "confirm/timed-out",
    "disk/full",
    "disk/read-failed",
    "disk/read-of-a-killed-life",
    "disk/set-len-failed",
    "disk/sync-failed",
    "disk/sync-forgot",
    "disk/write-failed",
    "event/again",
    "event/continue-after-delay",
    "event/continue-after-kill",
    "event/continue-after-progress",
    "event/delete-attachments",
    "event/delete-data",
    "event/early",
    "event/ids-reused",
    "event/late",
    "event/late-deletion",
    "event/newer-names",
    "event/of-abandoned-run",
    "event/without-ids",
    "mapping/installed",
    "message/302-before",
    "message/408-after",
    "message/408-before",
    "message/425-before",
    "message/429",
    "message/429-after-3",
    "message/500-after",
    "message/500-before",
    "message/bad-body",
    "message/lost",
    "message/refused-400",
    "message/refused-413",
    "message/reset-after",
    "message/reset-before",
    "message/timed-out",
    "message/units-inline",
    "open/429-after-3",
    "open/500-before",
    "open/lost",
    "open/refused-400",
    "open/timed-out",
    "page/429-after-3",
    "page/500-before",
    "page/lost",
    "page/refused-400",
    "phase/external-sync-units",
    "platform/id-repeated",
    "platform/scope",
    "prepare/408-after",
    "prepare/408-before",
    "prepare/425-before",
    "prepare/429",
    "prepare/429-after-3",
    "prepare/500-after",
    "prepare/500-before",
    "prepare/bad-body",
    "prepare/lost",
    "prepare/refused-400",
    "prepare/timed-out",
    "run/given-up",
    "run/incremental",
    "run/without-attachments-phase",
    "source/asked-again",
    "source/attachment",
    "source/bad-still",
    "source/child-listing",
    "source/child-of-a-child",
    "source/empty-page",
    "source/gone",
    "source/id-repeated",
    "source/mended",
    "source/newest-first",
    "source/page-ahead-read-again",
    "source/page-changed",
    "source/page-over-a-batch",
    "source/page-shrank",
    "source/page-under-a-batch",
    "source/several-item-types",
    "source/wrong-record",
    "store/replaced",
    "unit/two",
    "upload/302-before",
    "upload/408-after",
    "upload/429",
    "upload/429-after-3",
    "upload/500-after",
    "upload/500-before",
    "upload/lost",
    "upload/refused-400",
    "upload/reset-after",
    "upload/reset-before",
    "upload/storage-400",
    "upload/storage-403",
    "upload/storage-503",
    "upload/timed-out",
    "worker/pages-ahead",
    "worker/several-at-once",
];

/// An attachment is given up with a reason after the platform's storage refused or lost it five times.
#[test]
fn an_attachment_that_the_platform_did_not_take_five_times_may_be_given_up() {
    let fates =
        ["storage-503", "408-after", "reset-before", "storage-400", "lost", "storage-403", "302-before"];
    let acts: Vec<_> =
        (12..40).map(|upload| format!("call=upload/{upload}/{}", fates[upload % fates.len()])).collect();
    let report = Explore::new().replay(&format!("seed=7 {}", acts.join(" ")), SimSource::new).unwrap();
    assert!(report.failure.is_none(), "{report}");
    assert!(report.faults.contains_key("upload/storage-503"), "{report}");
    assert!(report.given_up.contains_key("failed-five-times"), "{report}");
}

/// An attachment's confirm is refused, and once more under its second id, or, if the process died before the first
/// refusal was stored, under the same id: then the next life cannot know that there was no other attempt, and gives up
/// the attachment, not the id.
#[test]
fn an_attachment_that_could_not_be_confirmed_may_be_given_up_wherever_the_process_dies() {
    let mut given_up = 0;
    for position in (100..1_400).step_by(7) {
        let schedule =
            format!("seed=7 call=confirm/12/refused-400 call=confirm/13/refused-400 kill=0@{position}");
        let report = Explore::new().replay(&schedule, SimSource::new).unwrap();
        assert!(report.failure.is_none(), "{report}");
        if report.deaths == 1 && report.given_up.contains_key("not-confirmed") {
            assert_eq!(report.faults.get("confirm/refused-400"), Some(&2), "{report}");
            given_up += 1;
        }
    }
    assert!(given_up > 0);
}

/// The same if it is not known whether the first confirm took effect.
#[test]
fn an_attachment_that_is_refused_in_doubt_may_be_given_up() {
    let schedule = "seed=7 call=confirm/12/timed-out call=confirm/14/refused-400";
    let report = Explore::new().replay(schedule, SimSource::new).unwrap();
    assert!(report.failure.is_none(), "{report}");
    assert_eq!(report.given_up.get("not-confirmed"), Some(&1), "{report}");
}

/// The open store is replaced by an empty one, and then an old event comes. The new store cannot know that the event
/// is old: it treats it as the first event of a new run, and the events of the current run as past ones. The platform
/// gets no more messages of the current run and gives it up.
#[test]
fn a_run_that_an_empty_store_takes_for_the_past_is_given_up_and_the_next_is_whole() {
    for schedule in [
        "seed=3 store-replaced=35 give-up=1",
        "seed=3 store-replaced=35 give-up=1 late=2",
        "seed=3 store-replaced=90 with=delete-data",
        "seed=3 store-replaced=90 with=delete-data late=1",
    ] {
        let report = Explore::new().replay(schedule, SimSource::new).unwrap();
        assert!(report.failure.is_none(), "{report}");
        assert_eq!(report.faults.get("store/replaced"), Some(&1), "{report}");
        assert_eq!(report.faults.get("run/given-up-unanswered"), Some(&1), "{report}");
    }
}

/// A deletion of attachments that comes late is done again by such a store: what a run had named until then is gone,
/// and nothing else.
#[test]
fn a_late_deletion_takes_attachments_along_only_where_an_empty_store_could_not_know_it() {
    let replaced = "seed=3 store-replaced=90 with=delete-attachments";
    let report = Explore::new().replay(replaced, SimSource::new).unwrap();
    assert!(report.failure.is_none(), "{report}");
    for fault in ["event/late-deletion", "store/replaced"] {
        assert_eq!(report.faults.get(fault), Some(&1), "{report}");
    }
    // What is named after it is uploaded.
    let whole = Explore::new().replay("seed=3 with=delete-attachments", SimSource::new).unwrap();
    assert!(whole.failure.is_none(), "{whole}");
    assert_eq!(whole.faults.get("event/late-deletion"), Some(&1), "{whole}");
}

/// A worker that is asked to stop ends with PROGRESS, or with nothing said: wherever that is, and also if it is
/// killed then.
#[test]
fn workers_that_are_asked_to_stop_lose_and_repeat_nothing() {
    for settings in [&[][..], &[Setting::Children, Setting::AtOnce]] {
        let acts = settings.iter().map(|setting| Act::With(*setting));
        let stops = (2..150).step_by(13).map(|changes| Act::Stop { changes });
        let report = Explore::new().states(150).with_acts(acts.chain(stops)).run(SimSource::new);
        println!("{report}");
        assert!(report.failure.is_none(), "{settings:?}: {report}");
        assert!(report.faults.get("worker/stopped").is_some_and(|&times| times >= 8), "{report}");
    }
}

/// Users that many pages bring: one of each id is announced in a run, of those pages that were kept.
#[test]
fn what_is_announced_once_in_a_run_is_announced_exactly_once() {
    for settings in [&[Setting::Once][..], &[Setting::Once, Setting::Rejects, Setting::AtOnce]] {
        let acts = settings.iter().map(|setting| Act::With(*setting));
        let report = Explore::new().states(200).with_acts(acts).run(SimSource::new);
        println!("{report}");
        assert!(report.failure.is_none(), "{settings:?}: {report}");
        assert!(report.faults.get("source/brought-again").is_some_and(|&times| times > 0), "{report}");
    }
}

/// Pages that come ahead of the commit of those before them: what was not committed is read again, in its order, and
/// what each finds of the values before it is checked by the source.
#[test]
fn pages_fetched_ahead_are_announced_exactly_once() {
    for settings in [
        &[Setting::Ahead, Setting::Children, Setting::AtOnce][..],
        &[Setting::Ahead, Setting::Once],
        &[Setting::Ahead, Setting::ChecksRefuse],
    ] {
        let acts = settings.iter().map(|setting| Act::With(*setting));
        let report = Explore::new().states(600).with_acts(acts).run(SimSource::new);
        println!("{report}");
        assert!(report.failure.is_none(), "{settings:?}: {report}");
    }
}

/// Comments that come again in the next sync: left out is what a finished run has announced, line for line.
#[test]
fn unchanged_records_at_the_edge_are_left_out_only_if_they_were_announced() {
    for settings in [&[Setting::Edge][..], &[Setting::Edge, Setting::Once, Setting::Rejects]] {
        let acts = settings.iter().map(|setting| Act::With(*setting));
        let report = Explore::new().states(200).with_acts(acts).run(SimSource::new);
        println!("{report}");
        assert!(report.failure.is_none(), "{settings:?}: {report}");
        assert!(report.faults.get("source/unchanged").is_some_and(|&times| times > 0), "{report}");
    }
}
