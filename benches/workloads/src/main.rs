//! Fixed workloads, and beside them what cannot be saved: `.ci/instructions` counts the instructions of each.
//! `memory` shows how much of it `serve` takes for ever more records, and `levels` what each level of compression
//! makes of files of JSON Lines.
//!
//! It is a program of its own, not a bench of the library, so that it is built with the library's defaults, and soon.

#[path = "../../common/issue.rs"]
mod issue;
#[path = "../../common/platform.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod platform;
#[path = "../../common/sync.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod sync;

use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use highwater::airdrop::{Extractor, Serve};
use highwater::{Level, Page, Store};
use libdeflater::{CompressionLvl, Compressor};
use tempfile::TempDir;

use issue::{ITEM_TYPE, Issue};
use platform::{Sink, cpu_time, peak_memory_kib};
use sync::{Files, Source, Threads};

/// Records of a batch.
const BATCH_ITEMS: u32 = 2_000;

type Done<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    // A page fills a batch: what small pages make of one commit is a matter of time.
    let size = Size { items: 10_000, page_items: BATCH_ITEMS, level: 2 };
    let done = match std::env::args().nth(1).as_deref() {
        Some("lines") => lines(&size).map(drop),
        Some("serve") => serve(&size),
        Some("loop") => batches(&size),
        Some("attachments") => attachments(500),
        Some("memory") => memory(),
        Some(PART) => part(),
        Some("levels") if std::env::args().len() > 2 => levels(std::env::args().skip(2)),
        _ => Err("expected lines, serve, loop, attachments, memory, or levels FILE...".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("highwater-workloads: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How much, in what pieces, compressed at what level.
#[derive(Clone, Copy)]
struct Size {
    items: u32,
    page_items: u32,
    level: u32,
}

impl Size {
    fn pages(&self) -> u32 {
        self.items / self.page_items
    }

    fn issues(&self) -> Vec<Issue> {
        Issue::many(self.page_items.into())
    }

    /// A new store, in a new folder.
    fn store(&self) -> Done<(TempDir, Store)> {
        let folder = folder()?;
        let store = Store::options().level(Level::new(self.level)?).open(folder.path().join("state.redb"))?;
        Ok((folder, store))
    }
}

/// A new folder beside this program, which is on a disk.
fn folder() -> Done<TempDir> {
    let program = std::env::current_exe()?;
    Ok(tempfile::tempdir_in(program.parent().ok_or("the program is in no folder")?)?)
}

/// What cannot be saved: the lines of typed records serialised into one buffer, and compressed by batches. Returns
/// the bytes.
fn lines(size: &Size) -> Done<u32> {
    let issues = size.issues();
    let (mut bytes, mut lines) = (0, Vec::new());
    for page in 1..=size.pages() {
        issue::write_lines(&issues, &mut lines)?;
        if (page * size.page_items).is_multiple_of(BATCH_ITEMS) {
            let mut encoder =
                GzEncoder::new(Vec::with_capacity(lines.len() / 3), Compression::new(size.level));
            encoder.write_all(&lines)?;
            bytes += u32::try_from(encoder.finish()?.len())?;
            lines.clear();
        }
    }
    Ok(bytes)
}

/// The same records, typed and checked, through `serve` into a store, to a platform that takes everything at once.
fn serve(size: &Size) -> Done {
    let (_folder, store) = size.store()?;
    let source = Source::new(size.issues(), size.pages());
    answer(&store, &source, "DATA", size.items / BATCH_ITEMS)
}

/// Answers the events of a phase; they must make so many artifacts.
fn answer(store: &Store, source: &impl Extractor, phase: &str, artifacts: u32) -> Done {
    let made = platform::phase(&Serve::new(), store, &Sink::default(), source, "run", phase)?;
    if made == u64::from(artifacts) { Ok(()) } else { Err(format!("{phase} made {made} artifacts").into()) }
}

/// The same records, of JSON text, through the loop over the batches.
fn batches(size: &Size) -> Done {
    let (_folder, store) = size.store()?;
    let issues = size.issues();
    let texts = issues.iter().map(Issue::data_text).collect::<Result<Vec<_>, _>>()?;
    let run = store.sync_unit("unit")?.begin()?;
    let fetch = |at: Option<u32>| -> highwater::Result<Page<u32>> {
        let next = at.unwrap_or(0) + 1;
        let mut page = if next < size.pages() { Page::more(next) } else { Page::last() };
        for (issue, text) in issues.iter().zip(&texts) {
            page.push(ITEM_TYPE, issue.to_record_of(text)?);
        }
        Ok(page)
    };
    let mut items = 0;
    for batch in run.batches(ITEM_TYPE, fetch) {
        let batch = batch?;
        items += batch.items();
        black_box(batch.bytes()?);
        let id = batch.key().to_string();
        batch.acknowledge(id)?;
    }
    run.finish()?;
    if items == size.items { Ok(()) } else { Err(format!("{items} records came out").into()) }
}

/// So many attachments, queued by one page, and streamed.
fn attachments(files: u32) -> Done {
    let (_folder, store) = Size { items: 0, page_items: 1, level: 2 }.store()?;
    answer(&store, &Files(0..files), "DATA", 1)?;
    answer(&store, &Files(0..files), "ATTACHMENTS", 1)
}

/// The most memory that `serve` takes, for ever more records and child listings: in a process for each event, as Airdrop
/// starts them, and in one process for all. `HIGHWATER_BENCH_RECORDS` and `HIGHWATER_BENCH_LISTINGS` set the most.
fn memory() -> Done {
    println!("| | number | events | a process for each event, KiB | one process, KiB |");
    println!("| --- | --- | --- | --- | --- |");
    for (what, variable, numbers) in [
        ("records", "HIGHWATER_BENCH_RECORDS", [100_000, 1_000_000, 10_000_000]),
        ("child listings", "HIGHWATER_BENCH_LISTINGS", [10_000, 100_000, 1_000_000]),
    ] {
        let most = std::env::var(variable).map_or(Ok(u32::MAX), |text| text.parse())?;
        for number in numbers.into_iter().filter(|number| *number <= most) {
            let (events, each) = memory_of(what, number, 1)?;
            let (_, one) = memory_of(what, number, u64::MAX)?;
            println!("| {what} | {number} | {events} | {each} | {one} |");
        }
    }
    Ok(())
}

/// The events of a sync, and the most memory of any process, if each answers so many of them.
fn memory_of(what: &str, number: u32, events_of_one: u64) -> Done<(u64, u64)> {
    let folder = folder()?;
    let (mut events, mut peak) = (0, 0);
    loop {
        let mut part = Command::new(std::env::current_exe()?);
        part.args([PART, what, &number.to_string()]).arg(folder.path().join("state.redb"));
        let output = part.args([events.to_string(), events_of_one.to_string()]).output()?;
        let said = String::from_utf8(output.stdout)?;
        let [is_done, answered, kib] = said.split_whitespace().collect::<Vec<_>>()[..] else {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("event {events} was not answered: {}, {said}", output.status).into());
        };
        events += answered.parse::<u64>()?;
        peak = peak.max(kib.parse()?);
        if is_done.parse()? {
            return Ok((events, peak));
        }
    }
}

/// The name of [`part`] on the command line, before its arguments.
const PART: &str = "part-of-sync";

/// Answers some events of a sync: `part-of-sync WHAT NUMBER STORE EVENTS-SO-FAR EVENTS-AT-MOST`. Prints whether the sync is
/// done, the events that were answered, and the most memory that this process took.
fn part() -> Done {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [what, number, path, so_far, at_most] = args.as_slice() else {
        return Err("expected five arguments".into());
    };
    let (number, so_far, at_most): (u32, u64, u64) = (number.parse()?, so_far.parse()?, at_most.parse()?);
    let store = Store::open(path)?;
    let (is_done, events) = if what == "records" {
        let size = Size { items: number, page_items: BATCH_ITEMS, level: 2 };
        answer_some(&store, &Source::new(size.issues(), size.pages()), so_far, at_most)?
    } else {
        let source = Threads { listings: number, page_listings: 1_000, answer: Duration::ZERO };
        answer_some(&store, &source, so_far, at_most)?
    };
    println!("{is_done} {events} {}", peak_memory_kib()?);
    Ok(())
}

/// Answers at most so many events of a data phase; returns whether it is done, and how many were answered.
fn answer_some(store: &Store, source: &impl Extractor, so_far: u64, at_most: u64) -> Done<(bool, u64)> {
    let hour = Duration::from_secs(3_600);
    let serve = Serve::new().budget(hour).hard_limit(2 * hour);
    // No artifact has the id of one of an earlier process.
    let sink = Sink::from(so_far << 32);
    for answered in 1..=at_most {
        let request = so_far + answered - 1;
        if platform::answer(&serve, store, &sink, source, "run", "DATA", request)?.0 {
            return Ok((true, answered));
        }
    }
    Ok((false, at_most))
}

/// Speed and ratio of each level of both compressors, for each file.
fn levels(files: impl Iterator<Item = String>) -> Done {
    println!("| file | level | MB/s | ratio | libdeflate: MB/s | ratio |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for file in files {
        let lines = std::fs::read(&file).map_err(|error| format!("read {file}: {error}"))?;
        if lines.is_empty() {
            return Err(format!("{file} is empty: expected JSON Lines").into());
        }
        for level in 1..=9 {
            let zlib_rs = speed_and_ratio(&lines, || {
                let mut encoder =
                    GzEncoder::new(Vec::with_capacity(lines.len() / 3), Compression::new(level));
                encoder.write_all(&lines)?;
                Ok(encoder.finish()?.len())
            })?;
            let libdeflate = speed_and_ratio(&lines, || {
                let level = CompressionLvl::new(i32::try_from(level)?).map_err(|_| "no such level")?;
                let mut compressor = Compressor::new(level);
                let mut member = vec![0; compressor.gzip_compress_bound(lines.len())];
                Ok(compressor.gzip_compress(&lines, &mut member)?)
            })?;
            println!("| {file} | {level} | {zlib_rs} | {libdeflate} |");
        }
    }
    Ok(())
}

/// Megabytes of lines that are compressed in a second of CPU time, the best of three seconds, and the ratio.
fn speed_and_ratio(lines: &[u8], compress: impl Fn() -> Done<usize>) -> Done<String> {
    let bytes = f64::from(u32::try_from(lines.len())?);
    let (mut member, mut best) = (0, f64::MAX);
    for _ in 0..3 {
        let (began, mut times) = (cpu_time()?, 0.0);
        while cpu_time()?.saturating_sub(began) < Duration::from_secs(1) {
            member = compress()?;
            times += 1.0;
        }
        best = best.min((cpu_time()?.saturating_sub(began)).as_secs_f64() / times);
    }
    let ratio = bytes / f64::from(u32::try_from(member)?);
    Ok(format!("{:.0} | {ratio:.2}", bytes / 1e6 / best))
}
