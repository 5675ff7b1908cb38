//! The promise without a disk: a worker that finds no disk, or a stale one, continues from the checkpoint kept with
//! the platform, and still every staged record is announced exactly once.

use highwater::testing::{Act, Broken, Call, CallFault, Explore, Safeguard, Setting, SimSource, Uploads};

fn states() -> u64 {
    std::env::var("HIGHWATER_EXPLORE_NO_DISK_STATES")
        .map_or(500, |states| states.parse().expect("a number of states"))
}

#[test]
fn every_record_is_announced_exactly_once_without_a_disk() {
    let report = Explore::new().without_disk().states(states()).run(SimSource::new);
    println!("{report}");
    assert!(report.failure.is_none(), "{report}");
    assert!(report.outside > 0, "{report}");
    // What is counted apart proves nothing: most schedules are held to the whole promise.
    assert!(report.outside * 2 < report.continuations, "{report}");
    for fault in [
        "disk/stale",
        "event/continue-after-kill",
        "event/late-deletion",
        "event/without-ids",
        "load-state/408-before",
        "load-state/500-before",
        "load-state/bad-body",
        "load-state/stale",
        "load-state/refused-400",
        "load-state/truncated",
        "message/units-inline",
        "platform/id-repeated",
        "platform/scope",
        "save-state/408-after",
        "save-state/408-before",
        "save-state/425-before",
        "save-state/429",
        "save-state/429-after-3",
        "save-state/500-after",
        "save-state/500-before",
        "save-state/dropped",
        "save-state/late",
        "save-state/lost",
        "save-state/refused-400",
        "save-state/reset-after",
        "save-state/timed-out",
        "source/child-listing",
        "source/child-of-a-child",
        "source/value-too-large",
        "state/nearly-full",
        "state/of-the-sdk",
        "worker/pages-ahead",
        "worker/second",
        "worker/settles",
        "worker/several-at-once",
    ] {
        assert!(report.faults.get(fault).is_some_and(|&times| times > 0), "{fault} never happened\n{report}");
    }
}

#[test]
fn workers_that_are_asked_to_stop_lose_and_repeat_nothing_without_a_disk() {
    let stops = (2..150).step_by(17).map(|changes| Act::Stop { changes });
    let report = Explore::new().without_disk().states(12).with_acts(stops).run(SimSource::new);
    println!("{report}");
    assert!(report.failure.is_none(), "{report}");
    assert!(report.faults.get("worker/stopped").is_some_and(|&times| times >= 8), "{report}");
}

#[test]
fn what_is_announced_once_in_a_run_is_announced_exactly_once_without_a_disk() {
    let report =
        Explore::new().without_disk().states(100).with_acts([Act::With(Setting::Once)]).run(SimSource::new);
    println!("{report}");
    assert!(report.failure.is_none(), "{report}");
    assert!(report.faults.get("source/brought-again").is_some_and(|&times| times > 0), "{report}");
}

#[test]
fn ids_of_records_announced_once_that_are_ahead_of_the_cursors_are_found() {
    let explore =
        Explore::new().without_rule(Safeguard::KnownAtPosition).with_acts([Act::With(Setting::Once)]);
    broken(&explore, "KnownAtPosition", Broken::Lost);
}

#[test]
fn pages_fetched_ahead_are_announced_exactly_once_without_a_disk() {
    let acts = [Setting::Ahead, Setting::Children, Setting::AtOnce].map(Act::With);
    let report = Explore::new().without_disk().states(40).with_acts(acts).run(SimSource::new);
    println!("{report}");
    assert!(report.failure.is_none(), "{report}");
}

#[test]
fn unchanged_records_at_the_edge_are_left_out_only_if_they_were_announced_without_a_disk() {
    let report =
        Explore::new().without_disk().states(60).with_acts([Act::With(Setting::Edge)]).run(SimSource::new);
    println!("{report}");
    assert!(report.failure.is_none(), "{report}");
    assert!(report.faults.get("source/unchanged").is_some_and(|&times| times > 0), "{report}");
}

fn broken_without(rule: Safeguard, kind: Broken) {
    broken(&Explore::new().without_rule(rule), &format!("{rule:?}"), kind);
}

fn broken(explore: &Explore, what: &str, kind: Broken) {
    let explore = explore.clone().without_disk().states(6_000);
    let report = explore.run(SimSource::new);
    let failure = report.failure.as_ref().unwrap_or_else(|| panic!("nobody noticed: {what}\n{report}"));
    // The shortest schedule is a real one: it fails again, in the same way.
    let again = explore.replay(&failure.schedule.to_string(), SimSource::new).unwrap();
    let replayed =
        again.failure.unwrap_or_else(|| panic!("the replay of a failing schedule fails\n{report}"));
    assert_eq!(replayed.violation.kind, failure.violation.kind, "{report}");
    println!("{what}: {report}");
    assert_eq!(failure.violation.kind, kind, "{report}");
}

#[test]
fn confirming_before_the_save_is_found() {
    broken_without(Safeguard::ConfirmAfterSave, Broken::Unconfirmed);
}

#[test]
fn confirming_batches_or_attachments_alone_before_the_save_is_found() {
    for uploads in [Uploads::Batches, Uploads::Attachments] {
        let explore = Explore::new().without_rule_of(uploads, Safeguard::ConfirmAfterSave);
        broken(&explore, &format!("ConfirmAfterSave of {uploads:?}"), Broken::Unconfirmed);
    }
}

#[test]
fn sending_before_the_save_is_found() {
    broken_without(Safeguard::SendAfterSave, Broken::Stuck);
}

#[test]
fn setting_what_does_not_fit_in_the_worker_state_is_found() {
    let explore =
        Explore::new().without_rule(Safeguard::StateFits).with_acts([Act::With(Setting::StateFull)]);
    broken(&explore, "StateFits", Broken::Stuck);
}

#[test]
fn a_checkpoint_cut_inside_a_page_is_found() {
    // A refused prepare ends an invocation, sometimes in the middle of a page.
    let refused = [14, 16].map(|number| {
        let fault = CallFault::Refused(413);
        Act::Call { call: Call::Prepare, number, fault }
    });
    let explore = Explore::new().without_rule(Safeguard::CutAtPages).with_acts(refused);
    broken(&explore, "CutAtPages", Broken::Unopenable);
}

#[test]
fn taking_the_newer_disk_instead_of_the_holders_is_found() {
    // Each life finds the disk of the life before the last one, which another life has replaced since.
    let stale = (2..12).map(|life| Act::StaleDisk { life, of: life - 2 });
    let explore = Explore::new().without_rule(Safeguard::HolderToken).with_acts(stale);
    // It goes back to a phase that is over: an ERROR for no reason.
    broken(&explore, "HolderToken", Broken::Conversation);
}

/// An attachment is given up with a reason after its source failed four times and the platform lost its upload once:
/// the fifth failure is one of the platform.
#[test]
fn an_attachment_that_the_platform_lost_once_and_the_source_failed_four_times_may_be_given_up() {
    let schedule = "seed=4091442843 call=page/3/429-after-40 call=load-state/0/lost call=load-state/2/500-before \
        call=load-state/4/500-after call=load-state/6/timed-out call=load-state/8/429 call=load-state/10/429-after-3 \
        call=load-state/12/429-after-3000 call=load-state/14/refused-400 call=load-state/16/refused-413 with=scope \
        call=prepare/2/refused-413 call=prepare/10/refused-413 call=upload/5/lost call=upload/20/lost again=4 \
        call=save-state/7/late kill=80@0 crash=82@0:random:c71a027fad1d677";
    let report = Explore::new().without_disk().replay(schedule, SimSource::new).unwrap();
    assert!(report.failure.is_none(), "{report}");
    assert_eq!(report.faults.get("upload/lost"), Some(&2), "{report}");
    assert!(report.given_up.contains_key("failed-five-times"), "{report}");
}
