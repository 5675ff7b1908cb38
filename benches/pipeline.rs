//! What does the whole way of a record cost, from the source to the platform?
//!
//! `serve` checks typed records and stages them in a store on a disk, and delivers them: to a platform in this
//! process that takes everything at once, and over loopback HTTP to one in a process of its own. The baseline makes
//! the same bytes without this crate: the lines are serialised into one buffer, and compressed by batches, by as many
//! threads as there are cores. Each is measured on one core and on two, in processes that `taskset` keeps there.
//!
//! A second table shows what pages ahead gain. The source takes 50 ms or no time to answer; the baselines are
//! `ahead(0)`, and the time of the source alone.
//!
//! `HIGHWATER_BENCH_RECORDS` sets how many records are extracted at a time.

#[allow(dead_code, reason = "of what the benches share, it needs the folder")]
mod common;
#[path = "common/http.rs"]
mod http;
#[path = "common/issue.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod issue;
#[path = "common/platform.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod platform;
#[path = "common/sync.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod sync;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use highwater::airdrop::{Client, OutcomeKind, Platform, Serve};
use highwater::{Level, Store};

use issue::Issue;
use platform::{Sink, bytes_written, cpu_time};
use sync::Source;

/// Records of a batch.
const BATCH_ITEMS: u32 = 2_000;
/// How often each is measured, in turn.
const ROUNDS: usize = 5;

/// What one process measures.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// `alone`, `sink`, or the address of a platform.
    to: &'a str,
    level: u32,
    page_items: u32,
    items: u32,
    answer_ms: u32,
    /// Whether pages are fetched ahead.
    ahead: bool,
    /// By as many threads the baseline is made.
    cores: usize,
}

/// Wall and CPU time, and the bytes: of the baseline those that it made, of `serve` those that it wrote to files.
#[derive(Clone, Copy)]
struct Spent {
    wall: Duration,
    cpu: Duration,
    bytes: u64,
}

impl<'a> Part<'a> {
    /// Measures it in a process of its own, on as many cores as it says.
    fn measure(&self) -> Spent {
        let Self { to, level, page_items, items, answer_ms, ahead, cores } = *self;
        let list = if cores == 1 { "0" } else { "0,1" };
        let program = std::env::current_exe().unwrap();
        let numbers = [level, page_items, items, answer_ms, ahead.into(), u32::try_from(cores).unwrap()];
        let said = Command::new("taskset")
            .args(["-c", list])
            .arg(program)
            .args(["part", to])
            .args(numbers.map(|number| number.to_string()))
            .output()
            .expect("taskset, of util-linux, starts");
        assert!(said.status.success(), "{to}: {}", String::from_utf8_lossy(&said.stderr));
        let text = String::from_utf8(said.stdout).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        let [wall, cpu] = [next(), next()].map(Duration::from_micros);
        Spent { wall, cpu, bytes: next() }
    }

    /// What [`measure`](Self::measure) passed on the command line.
    fn from_args(to: &'a str, args: impl Iterator<Item = String>) -> Self {
        let numbers: Vec<u32> = args.map(|text| text.parse().unwrap()).collect();
        let [level, page_items, items, answer_ms, ahead, cores] = numbers[..] else { panic!("six numbers") };
        let cores = usize::try_from(cores).unwrap();
        Self { to, level, page_items, items, answer_ms, ahead: ahead == 1, cores }
    }

    fn run(&self) {
        let issues = Issue::many(self.page_items.into());
        let answer = Duration::from_millis(self.answer_ms.into());
        let source = Source { answer, ..Source::new(issues, self.items / self.page_items) };
        let (folder, _) = common::folder_on_disk();
        let level = Level::new(self.level).unwrap();
        let store = Store::options().level(level).open(folder.path().join("state.redb")).unwrap();
        let event = match self.to {
            "alone" | "sink" => platform::event("EXTRACTION_DATA_START", "run", 0),
            address => http::event_at(address, "EXTRACTION_DATA_START"),
        };
        let event = event.unwrap();
        let (began, cpu_before) = (Instant::now(), cpu_time().unwrap());
        let written_before = bytes_written().unwrap();
        let serve = |platform: &dyn Platform| {
            let serve = if self.ahead { Serve::new() } else { Serve::new().ahead(0) };
            let outcome = serve.serve(&store, platform, &source, &event).unwrap();
            assert_eq!(outcome.kind, OutcomeKind::Done);
            assert_eq!(outcome.artifacts, u64::from(self.items / BATCH_ITEMS));
            bytes_written().unwrap() - written_before
        };
        let bytes = match self.to {
            "alone" => self.alone(&source),
            "sink" => serve(&Sink::default()),
            _ => serve(&Client::new(&event).unwrap()),
        };
        let cpu = cpu_time().unwrap().saturating_sub(cpu_before);
        println!("{} {} {bytes}", began.elapsed().as_micros(), cpu.as_micros());
    }

    /// The lines of the records and their compression, shared out by batches. Returns the bytes.
    fn alone(&self, source: &Source) -> u64 {
        let batches = usize::try_from(self.items / BATCH_ITEMS).unwrap();
        let share = |thread: usize| {
            let (mut bytes, mut lines) = (0, Vec::new());
            for _ in (thread..batches).step_by(self.cores) {
                lines.clear();
                for _ in 0..BATCH_ITEMS / self.page_items {
                    issue::write_lines(&source.issues, &mut lines).unwrap();
                }
                let out = Vec::with_capacity(lines.len() / 3);
                let mut encoder = GzEncoder::new(out, Compression::new(self.level));
                encoder.write_all(&lines).unwrap();
                bytes += encoder.finish().unwrap().len() as u64;
            }
            bytes
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.cores).map(|thread| scope.spawn(move || share(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        })
    }
}

/// Measures each in turn, [`ROUNDS`] times; returns the medians.
fn medians(parts: &[Part<'_>]) -> Vec<Spent> {
    let rounds: Vec<Vec<Spent>> = (0..ROUNDS).map(|_| parts.iter().map(Part::measure).collect()).collect();
    let median = |at: usize, of: fn(&Spent) -> Duration| {
        let mut times: Vec<_> = rounds.iter().map(|round| of(&round[at])).collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let each = |at: usize| Spent {
        wall: median(at, |spent| spent.wall),
        cpu: median(at, |spent| spent.cpu),
        bytes: rounds[0][at].bytes,
    };
    (0..parts.len()).map(each).collect()
}

fn ratio(of: Duration, to: Duration) -> f64 {
    of.as_secs_f64() / to.as_secs_f64()
}

/// What `serve` costs, beside the lines and their compression alone.
fn costs(items: u32, address: &str) {
    println!(
        "\nBytes and microseconds of a record. Alone: its line, compressed, by as many threads as cores.\n"
    );
    println!(
        "| to | level | page | cores | alone: bytes | written | alone: CPU | serve: CPU | ratio | alone: wall | serve: wall | to one core |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(items);
    let settings =
        [("sink", 2, BATCH_ITEMS), (address, 2, BATCH_ITEMS), ("sink", 6, BATCH_ITEMS), ("sink", 2, 100)];
    for (to, level, page_items) in settings {
        let part = |to, cores| Part { to, level, page_items, items, answer_ms: 0, ahead: true, cores };
        let spent = medians(&[part("alone", 1), part(to, 1), part("alone", 2), part(to, 2)]);
        let name = if to == "sink" { "memory" } else { "HTTP" };
        for (cores, pair) in [1, 2].iter().zip(spent.chunks(2)) {
            let (alone, serve) = (pair[0], pair[1]);
            println!(
                "| {name} | {level} | {page_items} | {cores} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
                alone.bytes / u64::from(items),
                serve.bytes / u64::from(items),
                micros(alone.cpu),
                micros(serve.cpu),
                ratio(serve.cpu, alone.cpu),
                micros(alone.wall),
                micros(serve.wall),
                ratio(serve.wall, spent[1].wall),
            );
        }
    }
}

/// What pages ahead gain.
fn pages_ahead(items: u32) {
    println!("\nPages ahead, milliseconds of wall time:\n");
    println!("| an answer takes | cores | the source alone | ahead(0) | ahead | ratio |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for answer_ms in [50, 0] {
        for cores in [1, 2] {
            let (level, page_items) = (2, BATCH_ITEMS);
            let part = |ahead| Part { to: "sink", level, page_items, items, answer_ms, ahead, cores };
            let spent = medians(&[part(false), part(true)]);
            let (without, with) = (spent[0].wall, spent[1].wall);
            let source = answer_ms * (items / page_items);
            let (before, after) = (without.as_millis(), with.as_millis());
            println!(
                "| {answer_ms} ms | {cores} | {source} | {before} | {after} | {:.2} |",
                ratio(with, without)
            );
        }
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some(http::ARGUMENT) => return http::serve().unwrap(),
        Some("part") => {
            let to = args.next().unwrap();
            return Part::from_args(&to, args).run();
        }
        _ => {}
    }
    let items = std::env::var("HIGHWATER_BENCH_RECORDS").ok().and_then(|items| items.parse().ok());
    let items = items.unwrap_or(120_000_u32).next_multiple_of(BATCH_ITEMS);
    let (_folder, file_system) = common::folder_on_disk();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    println!("{cores} cores, {file_system}; {items} records; medians of {ROUNDS} rounds in turn");
    let platform = http::Served::start().unwrap();
    costs(items, platform.address());
    pages_ahead(items.min(60_000));
}
