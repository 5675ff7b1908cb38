//! How long until a process is at work: until it asks for its first page, and until its first batch is staged?
//!
//! A process is started, opens the store and serves an event of the data phase; the clock stops at a line that it
//! prints. Each time it gets a copy of the same store, warm in the cache of files: none, a small one, and one with a
//! long history of finished runs and settled attachments. A *killed* one was left by a process that was ended with
//! SIGKILL between two pages. The baselines: a process that does nothing but print a line, and bare redb that opens
//! the same file and verifies it.
//!
//! `HIGHWATER_BENCH_RUNS` and `HIGHWATER_BENCH_ATTACHMENTS` set the finished runs and their attachments; without
//! `--bench`, as in a test, there are few.

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

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group};
use highwater::Store;
use highwater::airdrop::Serve;
use redb::Database;

use issue::Issue;
use platform::Sink;
use sync::{Files, Source};

/// Records of a page, which is a batch: few, so that to make them up takes no time.
const PAGE_ITEMS: u32 = 100;
/// What the program does in a process of its own: nothing, or serve an event with the store at this path.
const NOTHING: &str = "nothing";
const WORK: &str = "work";
const CACHE_BYTES: usize = 1536 * 1024;

/// Asks for pages and stages them, each before the next, until it is killed. Prints a line whenever it asks for one.
fn work(path: &Path) {
    let store = Store::options().batch_items(PAGE_ITEMS).open(path).unwrap();
    let source =
        Source { asked: |_| println!("page"), ..Source::new(Issue::many(PAGE_ITEMS.into()), u32::MAX) };
    let event = platform::event("EXTRACTION_DATA_START", "the open run", 0).unwrap();
    Serve::new().ahead(0).serve(&store, &Sink::default(), &source, &event).unwrap();
}

/// Starts a process, and kills it after this many lines; returns the time until the last of them.
fn lines_of(what: &[&std::ffi::OsStr], lines: usize) -> Duration {
    let program = std::env::current_exe().unwrap();
    let began = Instant::now();
    let mut process = Command::new(program).args(what).stdout(Stdio::piped()).spawn().unwrap();
    // Open until it is killed, so that it can go on.
    let mut out = BufReader::new(process.stdout.take().unwrap()).lines();
    let said = out.by_ref().take(lines).flatten().count();
    let spent = began.elapsed();
    // SIGKILL, on Unix.
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(said, lines, "it ended too soon");
    spent
}

/// A store with this many finished runs, and this many attachments that they settled.
fn history(path: &Path, runs: u32, attachments: u32) {
    let store = Store::open(path).unwrap();
    let (serve, sink) = (Serve::new().attachments_at_once(50), Sink::default());
    for run in 0..runs {
        let (from, to) = (run * (attachments / runs), (run + 1) * (attachments / runs));
        for phase in ["DATA", "ATTACHMENTS"] {
            platform::phase(&serve, &store, &sink, &Files(from..to), &format!("run-{run}"), phase).unwrap();
        }
    }
}

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn resume(criterion: &mut Criterion) {
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let runs = number("HIGHWATER_BENCH_RUNS", if measuring { 1_000 } else { 2 });
    let attachments = number("HIGHWATER_BENCH_ATTACHMENTS", if measuring { 1_000_000 } else { 200 });
    let (folder, file_system) = common::folder_on_disk();
    let [small, long] = ["small", "long"].map(|name| folder.path().join(name));
    history(&small, 1, 1);
    history(&long, runs, attachments);
    let killed = |clean: &PathBuf| {
        let killed = clean.with_extension("killed");
        fs::copy(clean, &killed).unwrap();
        lines_of(&[WORK.as_ref(), killed.as_os_str()], 5);
        killed
    };
    let (small_killed, long_killed) = (killed(&small), killed(&long));
    let bytes = |path: &Path| fs::metadata(path).unwrap().len();
    eprintln!(
        "{runs} finished runs, {attachments} settled attachments, {} KiB; small: {} KiB; on {file_system}",
        bytes(&long_killed) / 1024,
        bytes(&small_killed) / 1024,
    );

    let used = folder.path().join("used");
    // So often with a new copy of the store, which may be none.
    let each = |of: Option<&Path>, iterations: u64, once: &dyn Fn() -> Duration| {
        let mut spent = Duration::ZERO;
        for _ in 0..iterations {
            let _ = fs::remove_file(&used);
            if let Some(store) = of {
                fs::copy(store, &used).unwrap();
                fs::File::open(&used).unwrap().sync_all().unwrap();
            }
            spent += once();
        }
        spent
    };
    let mut group = criterion.benchmark_group("process");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(3));
    group.bench_function("nothing", |bencher| {
        bencher.iter_custom(|n| each(None, n, &|| lines_of(&[NOTHING.as_ref()], 1)));
    });
    let stores = [
        ("no store", None),
        ("small store", Some(&small)),
        ("small store, killed", Some(&small_killed)),
        ("long history", Some(&long)),
        ("long history, killed", Some(&long_killed)),
    ];
    for (name, store) in stores {
        let store = store.map(PathBuf::as_path);
        for (what, lines) in [("first page", 1), ("first batch staged", 2)] {
            let once = || lines_of(&[WORK.as_ref(), used.as_os_str()], lines);
            group.bench_function(format!("{name}: {what}"), |bencher| {
                bencher.iter_custom(|n| each(store, n, &once));
            });
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("open");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(3));
    for (name, store) in [("clean", long.as_path()), ("killed", long_killed.as_path())] {
        group.throughput(Throughput::Bytes(bytes(store)));
        let highwater = || {
            let began = Instant::now();
            let store = Store::open(&used).unwrap();
            let spent = began.elapsed();
            drop(store);
            spent
        };
        let redb = || {
            let began = Instant::now();
            let mut builder = Database::builder();
            let database =
                builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).open(&used).unwrap();
            let spent = began.elapsed();
            drop(database);
            spent
        };
        group.bench_function(format!("{name}: highwater"), |bencher| {
            bencher.iter_custom(|n| each(Some(store), n, &highwater));
        });
        group.bench_function(format!("{name}: bare redb"), |bencher| {
            bencher.iter_custom(|n| each(Some(store), n, &redb));
        });
    }
    group.finish();
}

criterion_group!(benches, resume);

fn main() {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(NOTHING) => {
            println!();
            // Until it is killed, as the others.
            std::thread::sleep(Duration::from_secs(60));
        }
        Some(WORK) => work(Path::new(&args.next().unwrap())),
        _ => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
