//! What happens in each schedule of an exploration: only a rate limit in the first; then every act in turn, and some
//! at random.

use super::disk::DiskOperation;
use super::schedule::{Act, Call, CallFault, Setting};

/// The results that any call may have.
const FAULTS: [CallFault; 9] = [
    CallFault::Lost,
    CallFault::ErrorBefore,
    CallFault::ErrorAfter,
    CallFault::TimedOut,
    CallFault::Busy(None),
    CallFault::Busy(Some(3)),
    CallFault::Busy(Some(3000)),
    CallFault::Refused(400),
    CallFault::Refused(413),
];

/// Further results that a call may have: what proxies, storages and broken connections answer.
const MORE_FAULTS: [CallFault; 10] = [
    CallFault::Status { code: 408, applied: true },
    CallFault::Status { code: 408, applied: false },
    CallFault::Status { code: 425, applied: false },
    CallFault::Status { code: 302, applied: false },
    CallFault::Reset { applied: true },
    CallFault::Reset { applied: false },
    CallFault::BadBody,
    CallFault::Storage(400),
    CallFault::Storage(403),
    CallFault::Storage(503),
];

/// The acts of schedule number `number`.
pub(super) fn acts_of(number: u64, has_disk: bool, rng: &mut fastrand::Rng) -> Vec<Act> {
    let mut acts = vec![Act::Call { call: Call::Page, number: 3, fault: CallFault::Busy(Some(40)) }];
    if number == 0 {
        return acts;
    }
    let all = catalogue(has_disk, rng);
    let turn = usize::try_from(number).unwrap_or(0);
    acts.extend(in_wait(turn, has_disk));
    acts.extend(set_up(turn, has_disk, rng));
    // The catalogue in turn, two by two, so that each act comes early; and two at random.
    let by_chance: Vec<usize> = (0..rng.usize(..3)).map(|_| rng.usize(..all.len())).collect();
    for at in [turn * 2, turn * 2 + 1].into_iter().chain(by_chance) {
        acts.extend(all.get(at % all.len()).into_iter().flatten());
    }
    acts
}

/// Every act that may happen in a schedule, each with the acts that belong to it.
fn catalogue(has_disk: bool, rng: &mut fastrand::Rng) -> Vec<Vec<Act>> {
    let mut all = Vec::new();
    if !has_disk {
        all.extend((0..4).map(|_| {
            vec![Act::Call { call: Call::SaveState, number: rng.u64(..12), fault: CallFault::Late }]
        }));
        for _ in 0..12 {
            let life = rng.u64(1..9);
            all.push(vec![Act::StaleDisk { life, of: rng.u64(..life) }]);
        }
    }
    all.extend(failing_calls(has_disk, rng));
    for operation in [DiskOperation::Read, DiskOperation::Write, DiskOperation::SetLen, DiskOperation::Sync] {
        all.push(vec![Act::DiskFails { life: rng.u64(..6), operation, after: rng.u64(..20) }]);
    }
    let others = [
        Act::DiskFull { life: rng.u64(..6), writes: rng.u64(..5) },
        Act::Again { event: rng.u64(..7) },
        Act::Late { event: rng.u64(..5) },
        Act::Early { event: 2 },
        Act::GiveUp { event: 2 },
        Act::ReuseIds { event: 2 },
        Act::ClockSteps { event: rng.u64(1..6), seconds: -100_000 },
        Act::ClockSteps { event: rng.u64(1..6), seconds: 100_000_000 },
        Act::TwoUnits,
        Act::Stop { changes: rng.usize(3..90) },
    ];
    all.extend(others.map(|act| vec![act]));
    all
}

/// Every fault of every call, once early and once late.
fn failing_calls(has_disk: bool, rng: &mut fastrand::Rng) -> Vec<Vec<Act>> {
    let mut calls = vec![Call::Prepare, Call::Upload, Call::Confirm, Call::Message, Call::Page, Call::Open];
    if !has_disk {
        calls.extend([Call::LoadState, Call::SaveState, Call::SaveState, Call::Download]);
    }
    let mut all = Vec::new();
    for call in calls {
        // Those of attachments come after those of the data.
        let (early, late) = match call {
            Call::Message => (4, 8),
            Call::Open | Call::Download => (3, 6),
            Call::Page => (6, 12),
            _ => (8, 24),
        };
        for fault in FAULTS {
            let numbers = [rng.u64(..early), rng.u64(early..late)];
            all.push(numbers.map(|number| Act::Call { call, number, fault }).to_vec());
        }
    }
    all
}

/// Acts that might miss their moment by chance alone are set for many moments, in the first schedules.
fn in_wait(turn: usize, has_disk: bool) -> Vec<Act> {
    let fails = |operation| (0..12).map(move |life| Act::DiskFails { life, operation, after: 0 });
    let stale = |of: fn(u64) -> u64| (1..12).map(move |life| Act::StaleDisk { life, of: of(life) }).collect();
    match turn {
        1 if !has_disk => stale(|life| life - 1),
        2 if !has_disk => stale(|life| life / 2),
        3 if !has_disk => stale(|life| life.saturating_sub(3)),
        1 => fails(DiskOperation::SetLen).collect(),
        2 => fails(DiskOperation::Sync).collect(),
        3 => fails(DiskOperation::Write).chain(fails(DiskOperation::Read)).collect(),
        4 => {
            let fault = CallFault::Busy(Some(40));
            let busy = [5, 8, 11].map(|number| Act::Call { call: Call::Page, number, fault });
            (0..12).map(|event| Act::Early { event }).chain(busy).collect()
        }
        5 => (2..5).map(|life| Act::DiskFull { life, writes: life }).collect(),
        12 if has_disk => with(&[Setting::Children]),
        13 if has_disk => with(&[Setting::Children, Setting::AtOnce]),
        14 => (0..12).map(|event| Act::Overtake { event }).collect(),
        6..=13 => {
            // Every fault in turn, with a call that succeeds between two of them.
            let each = [
                Call::Page,
                Call::Open,
                Call::Prepare,
                Call::Upload,
                Call::Confirm,
                Call::Message,
                Call::LoadState,
                Call::SaveState,
            ];
            let call = each.get(turn - 6).copied().unwrap_or(Call::Page);
            let numbers = (0..).step_by(2);
            numbers.zip(FAULTS).map(|(number, fault)| Act::Call { call, number, fault }).collect()
        }
        _ => Vec::new(),
    }
}

fn with(settings: &[Setting]) -> Vec<Act> {
    settings.iter().map(|setting| Act::With(*setting)).collect()
}

/// Unusual setups, and acts that happen once in a sync: one of them in each schedule after the first ones.
fn set_up(turn: usize, has_disk: bool, rng: &mut fastrand::Rng) -> Vec<Act> {
    let mut all: Vec<Vec<Act>> = vec![
        with(&[Setting::NewerNames, Setting::Mapping]),
        with(&[Setting::NoAttachments]),
        with(&[Setting::Units]),
        with(&[Setting::UnitsInline, Setting::NewerNames]),
        with(&[Setting::ChecksReport]),
        with(&[Setting::ChecksRefuse]),
        with(&[Setting::Rejects]),
        with(&[Setting::DeleteData]),
        with(&[Setting::DeleteAttachments]),
        with(&[Setting::Scope]),
        with(&[Setting::NoIds]),
        with(&[Setting::Children]),
        with(&[Setting::Children, Setting::AtOnce]),
    ];
    let first = if has_disk {
        all.extend([
            vec![Act::StoreReplaced { changes: rng.usize(3..90) }],
            same_ids(rng),
            vec![Act::ReuseIds { event: 2 }],
            more_faults(Call::Message, 0),
            more_faults(Call::Upload, 0),
            more_faults(Call::Confirm, 0),
            more_faults(Call::Prepare, 0),
            more_faults(Call::Message, 5),
            (0..12).map(|life| Act::DiskForgets { life, after: rng.u64(..6) }).collect(),
        ]);
        15
    } else {
        let state = |call, number, fault| vec![Act::Call { call, number, fault }];
        let without_disk = [
            with(&[Setting::Settle]),
            with(&[Setting::SdkState]),
            with(&[Setting::StateFull]),
            more_faults(Call::LoadState, 1),
            more_faults(Call::SaveState, 1),
            same_ids(rng),
            [2, 5, 11]
                .iter()
                .flat_map(|number| state(Call::LoadState, *number, CallFault::Truncated))
                .collect(),
        ];
        all.splice(..0, without_disk);
        // Not covered by the promise.
        all.extend([
            state(Call::SaveState, rng.u64(..30), CallFault::Dropped),
            state(Call::LoadState, rng.u64(2..30), CallFault::Stale),
            vec![Act::SecondWorker { changes: rng.usize(3..90) }],
        ]);
        7
    };
    let Some(at) = turn.checked_sub(first) else { return Vec::new() };
    let round = at / all.len();
    let mut acts = all.swap_remove(at % all.len());
    // Pages come ahead in every other schedule, and with each of these in every other round.
    if (at + round).is_multiple_of(2) {
        acts.push(Act::With(Setting::Ahead));
    }
    acts
}

/// Ids that were given before: now and then, and so often that an upload fails.
fn same_ids(rng: &mut fastrand::Rng) -> Vec<Act> {
    let from = rng.u64(20..30);
    let numbers = (2..from).step_by(3).chain(from..from + 8);
    numbers.map(|number| Act::Call { call: Call::Prepare, number, fault: CallFault::SameId }).collect()
}

/// The further results of a call, each in turn from the `from`-th on, with a call that succeeds between two of them.
fn more_faults(call: Call, from: usize) -> Vec<Act> {
    let faults = MORE_FAULTS.iter().cycle().skip(from).take(MORE_FAULTS.len());
    (0..).step_by(2).zip(faults).map(|(number, fault)| Act::Call { call, number, fault: *fault }).collect()
}
