//! What does a child listing cost, of many?
//!
//! A stream names child listings, each of which has one page of three comments, and `serve` reads them one at a time
//! into a store on a disk. The source answers at once. The baseline has the same comments on full pages of one
//! stream. Then the same for ever more listings, in one process, whose memory is to stay as it is. At last a source
//! that takes 50 ms to answer, of which `concurrency(20)` asks 20 at once; the ideal is the time of the source alone.
//!
//! `HIGHWATER_BENCH_LISTINGS` sets the most listings of the second; without `--bench`, as in a test, there are few.

#[allow(dead_code, reason = "of what the benches share, it needs the folder")]
mod common;
#[path = "common/issue.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod issue;
#[path = "common/platform.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod platform;
#[path = "common/sync.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod sync;

use std::time::{Duration, Instant};

use highwater::Store;
use highwater::airdrop::{Extractor, Serve};

use platform::{Sink, bytes_written, cpu_time, peak_memory_kib};
use sync::{COMMENTS, Comments, Threads};

/// The most listings that a page names.
const PAGE_LISTINGS: u32 = 10_000;
/// How many listings are asked at once of a slow source, and how long each takes.
const AT_ONCE: u32 = 20;
const ANSWER: Duration = Duration::from_millis(50);

/// Extracts everything into a new store, and prints what it cost; returns the wall time.
fn sync(name: &str, listings: u32, serve: &Serve, source: &impl Extractor) -> Duration {
    let (folder, _) = common::folder_on_disk();
    let path = folder.path().join("state.redb");
    let store = Store::open(&path).unwrap();
    let (began, cpu, bytes) = (Instant::now(), cpu_time().unwrap(), bytes_written().unwrap());
    platform::phase(serve, &store, &Sink::default(), source, "run", "DATA").unwrap();
    let wall = began.elapsed();
    let cpu = cpu_time().unwrap().saturating_sub(cpu);
    let bytes = bytes_written().unwrap() - bytes;
    println!(
        "| {name} | {listings} | {:.2} | {:.2} | {:.1} | {} | {:.1} |",
        wall.as_secs_f64(),
        cpu.as_secs_f64(),
        mebibytes(bytes),
        mebibytes(std::fs::metadata(&path).unwrap().len()).round(),
        mebibytes(peak_memory_kib().unwrap() * 1024),
    );
    wall
}

fn mebibytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1024).unwrap()) / 1024.0
}

fn main() {
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let default = if measuring { 1_000_000 } else { 20_000 };
    let most = std::env::var("HIGHWATER_BENCH_LISTINGS").ok().and_then(|most| most.parse().ok());
    let most: u32 = most.unwrap_or(default);
    let (_folder, file_system) = common::folder_on_disk();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    println!(
        "{cores} cores, {file_system}; {COMMENTS} comments a listing; memory is the most of the process so far"
    );
    println!("| source | listings | seconds | CPU seconds | MiB written | file, MiB | memory, MiB |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let hour = Duration::from_secs(3_600);
    let serve = Serve::new().budget(hour).hard_limit(2 * hour);
    sync("comments on full pages", 10_000, &serve, &Comments(10_000 * COMMENTS));
    let threads = |listings, answer| Threads { listings, page_listings: PAGE_LISTINGS, answer };
    for listings in [10_000, 60_000, 1_000_000].into_iter().filter(|listings| *listings <= most) {
        sync("child listings", listings, &serve, &threads(listings, Duration::ZERO));
    }
    let listings = AT_ONCE * if measuring { 100 } else { 2 };
    let serve = serve.concurrency(usize::try_from(AT_ONCE).unwrap());
    let wall = sync("50 ms an answer, 20 at once", listings, &serve, &threads(listings, ANSWER));
    let ideal = ANSWER * (listings / AT_ONCE);
    println!("\nthe ideal of the last is {ideal:.1?}: {:.2} of it", wall.as_secs_f64() / ideal.as_secs_f64());
}
