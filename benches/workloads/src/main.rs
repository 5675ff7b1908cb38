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
use highwater::airdrop::{Extractor, OutcomeKind, Serve};
use highwater::{Level, Page, Store};
use tempfile::TempDir;

use issue::{ITEM_TYPE, Issue};
use platform::{Sink, cpu_time, peak_memory_kib};
use sync::{Files, Source};

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
        Some(MEMORY_OF_EVENT) if std::env::args().len() == 5 => memory_of_event(),
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

    /// A new store, in a folder beside this program.
    fn store(&self) -> Done<(TempDir, Store)> {
        let program = std::env::current_exe()?;
        let folder = tempfile::tempdir_in(program.parent().ok_or("the program is in no folder")?)?;
        let store = Store::options().level(Level::new(self.level)?).open(folder.path().join("state.redb"))?;
        Ok((folder, store))
    }
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

/// The most memory that a process takes that answers one event, as Airdrop starts them, and one that answers all events
/// of all syncs, for ever more records. `HIGHWATER_BENCH_RECORDS` sets the most.
fn memory() -> Done {
    let most = std::env::var("HIGHWATER_BENCH_RECORDS").map_or(Ok(10_000_000), |text| text.parse::<u32>())?;
    println!("| records | events | a process for each event, KiB | one process, KiB |");
    println!("| --- | --- | --- | --- |");
    for items in [100_000, 1_000_000, 10_000_000].into_iter().filter(|items| *items <= most) {
        let size = Size { items, page_items: BATCH_ITEMS, level: 2 };
        let (folder, store) = size.store()?;
        drop(store);
        let (mut events, mut peak) = (0, 0);
        loop {
            let path = folder.path().join("state.redb");
            let numbers = [items.to_string(), events.to_string()];
            let child = Command::new(std::env::current_exe()?)
                .arg(MEMORY_OF_EVENT)
                .arg(path)
                .args(numbers)
                .output()?;
            let said = String::from_utf8(child.stdout)?;
            let (kind, peak_of_event) = said.trim().split_once(' ').ok_or_else(|| {
                format!("event {events} was not answered: {}", String::from_utf8_lossy(&child.stderr))
            })?;
            events += 1;
            peak = peak.max(peak_of_event.parse::<u64>()?);
            if kind == "Done" {
                break;
            }
        }
        serve(&size)?;
        println!("| {items} | {events} | {peak} | {} |", peak_memory_kib()?);
    }
    Ok(())
}

/// The name of [`memory_of_event`] on the command line, before the path of the store, the records of the whole sync, and
/// the number of the event.
const MEMORY_OF_EVENT: &str = "memory-of-event";

/// Answers one event, and prints how, and the most memory that it took.
fn memory_of_event() -> Done {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [path, items, request] = args.as_slice() else { return Err("expected three arguments".into()) };
    let (items, request) = (items.parse()?, request.parse()?);
    let size = Size { items, page_items: BATCH_ITEMS, level: 2 };
    let store = Store::options().level(Level::new(size.level)?).open(path)?;
    let step = if request == 0 { "START" } else { "CONTINUE" };
    let event = platform::event(&format!("EXTRACTION_DATA_{step}"), "run", request)?;
    let source = Source::new(size.issues(), size.pages());
    // No artifact has the id of one of an earlier event.
    let outcome = Serve::new().serve(&store, &Sink::from(request << 32), &source, &event)?;
    match outcome.kind {
        OutcomeKind::Done | OutcomeKind::Progress => {}
        other => return Err(format!("{other:?}, {:?}", outcome.message).into()),
    }
    println!("{:?} {}", outcome.kind, peak_memory_kib()?);
    Ok(())
}

/// Speed and ratio of each level, for each file: the best of three times a second.
fn levels(files: impl Iterator<Item = String>) -> Done {
    println!("| file | level | MB/s | ratio |");
    println!("| --- | --- | --- | --- |");
    for file in files {
        let lines = std::fs::read(&file).map_err(|error| format!("read {file}: {error}"))?;
        if lines.is_empty() {
            return Err(format!("{file} is empty: expected JSON Lines").into());
        }
        let bytes = f64::from(u32::try_from(lines.len())?);
        for level in 1..=9 {
            let (mut member, mut best) = (Vec::new(), f64::MAX);
            for _ in 0..3 {
                let (began, mut times) = (cpu_time()?, 0.0);
                while cpu_time()?.saturating_sub(began) < Duration::from_secs(1) {
                    let mut encoder =
                        GzEncoder::new(Vec::with_capacity(lines.len() / 3), Compression::new(level));
                    encoder.write_all(&lines)?;
                    member = encoder.finish()?;
                    times += 1.0;
                }
                best = best.min((cpu_time()?.saturating_sub(began)).as_secs_f64() / times);
            }
            let ratio = bytes / f64::from(u32::try_from(member.len())?);
            println!("| {file} | {level} | {:.0} | {ratio:.2} |", bytes / 1e6 / best);
        }
    }
    Ok(())
}
