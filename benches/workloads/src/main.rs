//! Fixed workloads, and beside them what cannot be saved: `.ci/instructions` counts the instructions of each. `compare` shows
//! the time that they take, and `levels` what each level of compression makes of files of JSON Lines.
//!
//! It is a program of its own, not a bench of the library, so that it is built with the library's defaults, and soon.

#[path = "../../common/issue.rs"]
mod issue;
#[path = "../../common/platform.rs"]
mod platform;
#[path = "../../common/sync.rs"]
mod sync;

use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use highwater::airdrop::{Extractor, OutcomeKind, Serve};
use highwater::{Level, Page, Store};
use tempfile::TempDir;

use issue::{ITEM_TYPE, Issue};
use platform::{Sink, cpu_time, event};
use sync::{Files, Source};

/// Records of a batch.
const BATCH_ITEMS: u32 = 2_000;
/// How often `compare` measures each.
const ROUNDS: usize = 5;

type Done<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    // A page fills a batch: what small pages make of one commit is a matter of time.
    let size = Size { items: 10_000, page_items: BATCH_ITEMS, level: 2 };
    let done = match std::env::args().nth(1).as_deref() {
        Some("lines") => lines(&size).map(drop),
        Some("serve") => serve(&size),
        Some("loop") => batches(&size),
        Some("attachments") => attachments(500),
        Some("compare") => compare(),
        Some("levels") if std::env::args().len() > 2 => levels(std::env::args().skip(2)),
        _ => Err("expected lines, serve, loop, attachments, compare, or levels FILE...".into()),
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

/// What cannot be saved: the lines of typed records serialised into one buffer, and compressed by batches. Returns the bytes.
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
    let source = Source { issues: size.issues(), pages: size.pages(), answer: Duration::ZERO };
    answer(&store, &source, "EXTRACTION_DATA_START", size.items / BATCH_ITEMS)
}

fn answer(store: &Store, source: &impl Extractor, event_type: &str, artifacts: u32) -> Done {
    let outcome = Serve::new().serve(store, &Sink::default(), source, &event(event_type)?)?;
    if outcome.kind == OutcomeKind::Done && outcome.artifacts == u64::from(artifacts) {
        return Ok(());
    }
    Err(format!("{event_type} ended as {:?} with {} artifacts", outcome.kind, outcome.artifacts).into())
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
    answer(&store, &Files(files), "EXTRACTION_DATA_START", 1)?;
    answer(&store, &Files(files), "EXTRACTION_ATTACHMENTS_START", 1)
}

/// Time of `serve` and of the lines alone, by level and size of the pages.
fn compare() -> Done {
    println!(
        "| level | records of a page | bytes/item | lines and gzip: CPU | serve: CPU | ratio | serve: wall |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (level, page_items) in [(1, 2_000), (2, 2_000), (2, 100), (6, 2_000)] {
        let size = Size { items: 120_000, page_items, level };
        let mut bytes = 0;
        // The least of each, as what else the machine does only adds to it.
        let (mut alone, mut cpu, mut wall) = (Duration::MAX, Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            let before = cpu_time()?;
            bytes = lines(&size)?;
            let between = cpu_time()?;
            alone = alone.min(between.saturating_sub(before));
            let began = Instant::now();
            serve(&size)?;
            cpu = cpu.min(cpu_time()?.saturating_sub(between));
            wall = wall.min(began.elapsed());
        }
        let items = f64::from(size.items);
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / items;
        println!(
            "| {level} | {page_items} | {:.0} | {:.2} us | {:.2} us | {:.2} | {:.2} us |",
            f64::from(bytes) / items,
            micros(alone),
            micros(cpu),
            cpu.as_secs_f64() / alone.as_secs_f64(),
            micros(wall)
        );
    }
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
