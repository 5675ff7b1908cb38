//! A typed record of the size of the one before it costs no allocation beyond its author's own, from the page to the platform.
//!
//! Every allocation of this process is counted, so this is the only test in its file.

#[path = "../../common/issue.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod issue;
#[path = "../../common/platform.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod platform;
#[path = "../../common/sync.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod sync;

use chrono::DateTime;
use dhat::HeapStats;
use highwater::airdrop::Serve;
use highwater::{Store, VirtualClock};

use issue::Issue;
use platform::Sink;
use sync::Source;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Pages of a sync.
const PAGES: u32 = 3;
/// Records of a page, which is a batch: in one sync, and in another that differs in nothing else. All pages go into one
/// commit.
const PAGE_ITEMS: [u32; 2] = [500, 1_000];
/// The author's own: the record's id.
const OWN: f64 = 1.0;

/// The allocations of a sync with so many records on each page, in a new store and on this thread.
fn allocations(page_items: u32, asked: fn(usize)) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    // No time passes: how many pages go into one commit must not depend on it.
    let clock = VirtualClock::at(DateTime::UNIX_EPOCH);
    let options = Store::options().batch_items(page_items).clock(clock);
    let store = options.open(folder.path().join("state.redb")).unwrap();
    let source = Source { asked, ..Source::new(Issue::many(page_items.into()), PAGES) };
    let before = HeapStats::get().total_blocks;
    let serve = Serve::new().inline(7);
    let artifacts = platform::phase(&serve, &store, &Sink::default(), &source, "run", "DATA").unwrap();
    assert_eq!(artifacts, u64::from(PAGES));
    HeapStats::get().total_blocks - before
}

/// Those of each record: what a page, a batch or an invocation costs is in both syncs.
fn allocations_of_a_record(asked: fn(usize)) -> f64 {
    let [few, many] = PAGE_ITEMS;
    let more = allocations(many, asked) - allocations(few, asked);
    f64::from(u32::try_from(more).unwrap()) / f64::from(PAGES * (many - few))
}

#[test]
fn a_typed_record_costs_no_allocation_beyond_its_authors_own() {
    // For what goes with the bytes of a batch, not with its records: each piece of 63 KiB takes some 25 in the store.
    const SLACK: f64 = 0.08;
    let _profiler = dhat::Profiler::builder().testing().trim_backtraces(Some(4)).build();
    // What a process allocates once is not a record's.
    allocations(PAGE_ITEMS[1], |_| {});
    let beyond = allocations_of_a_record(|_| {}) - OWN;
    println!("{beyond:.3} allocations of a record beyond its author's own");
    assert!(beyond <= SLACK, "{beyond}");

    // The control: one more for each record is seen.
    let one_more = |items| (0..items).for_each(|number| drop(std::hint::black_box(Box::new(number))));
    let control = allocations_of_a_record(one_more) - OWN;
    assert!(control > SLACK, "{control}");
    assert!((control - beyond - 1.0).abs() < 0.01, "{control} after {beyond}");
}
