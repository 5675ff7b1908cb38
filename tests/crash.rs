//! The promise, explored: whatever the disk, the platform, the source and the clock do, and wherever the process dies,
//! every staged record is announced exactly once.

use highwater::testing::{Explore, SimSource};

fn states() -> u64 {
    std::env::var("HIGHWATER_EXPLORE_STATES")
        .map_or(20_000, |states| states.parse().expect("a number of states"))
}

#[test]
fn every_record_is_announced_exactly_once_wherever_the_process_dies() {
    let report = Explore::new().states(states()).run(SimSource::new);
    println!("{report}");
    assert!(report.failure.is_none(), "{report}");
}
