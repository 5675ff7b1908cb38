//! What do pages ahead gain? `serve` extracts a stream into a store on a disk, alternately with pages ahead and, as
//! the baseline, without: from a source that takes 50 ms to answer, and from one that takes no time. The ideal is the
//! time of the source alone, and of serialising and compressing alone on one core.
//!
//! It reports wall and CPU time of each, and the ratio to the baseline. `taskset -c 0` shows the gain of a second
//! core.

mod common;
#[path = "common/platform.rs"]
mod platform;

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use highwater::airdrop::{Context, ExternalSyncUnit, Extractor, Listing, OutcomeKind, Serve, SourceError};
use highwater::{Page, Record, Store};
use serde_json::{Value, json};

use platform::{Sink, cpu_time, event};

/// Records per page: a batch.
const PAGE_ITEMS: u32 = 2_000;
/// How often each is measured.
const ROUNDS: u32 = 5;

/// A source with the same records on every page.
struct Source {
    records: Vec<Record>,
    pages: u32,
    answer: Duration,
}

impl Extractor for Source {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context<'_>) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context<'_>) -> Result<Value, SourceError> {
        Ok(json!({}))
    }

    fn streams(&self, _: &Context<'_>) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }

    fn page(&self, _: &Context<'_>, _: &Listing, at: Option<u32>) -> Result<Page<u32>, SourceError> {
        std::thread::sleep(self.answer);
        let next = at.unwrap_or(0) + 1;
        let mut page = if next < self.pages { Page::more(next) } else { Page::last() };
        for record in &self.records {
            page.push("issues", record.clone());
        }
        Ok(page)
    }
}

/// Wall and CPU time of one sync.
fn sync(source: &Source, serve: &Serve) -> (Duration, Duration) {
    let (folder, _) = common::folder_on_disk();
    let store = Store::open(folder.path().join("state.redb")).unwrap();
    let (started, cpu_before) = (Instant::now(), cpu_time().unwrap());
    let outcome =
        serve.serve(&store, &Sink::default(), source, &event("EXTRACTION_DATA_START").unwrap()).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!(outcome.artifacts, u64::from(source.pages));
    (started.elapsed(), cpu_time().unwrap().saturating_sub(cpu_before))
}

/// Wall and CPU time of the unavoidable work: the lines of every page are written, and compressed as a batch.
fn lines_and_gzip(source: &Source) -> (Duration, Duration) {
    let (started, cpu_before) = (Instant::now(), cpu_time().unwrap());
    for _ in 0..source.pages {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(2));
        encoder.write_all(common::lines(&source.records).as_bytes()).unwrap();
        std::hint::black_box(encoder.finish().unwrap());
    }
    (started.elapsed(), cpu_time().unwrap().saturating_sub(cpu_before))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let (_folder, file_system) = common::folder_on_disk();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    println!(
        "{cores} cores, {file_system}; pages of {PAGE_ITEMS} records; medians of {ROUNDS} rounds in turn"
    );
    for (name, answer, pages) in [("50 ms an answer", 50, 30), ("no time an answer", 0, 60)] {
        let records = common::records(7, PAGE_ITEMS);
        let source = Source { records, pages, answer: Duration::from_millis(answer) };
        let settings = [("ahead(0)", Serve::new().ahead(0)), ("ahead", Serve::new())];
        let mut times: [(Vec<Duration>, Vec<Duration>); 2] = Default::default();
        for _ in 0..ROUNDS {
            for ((_, serve), times) in settings.iter().zip(&mut times) {
                let (wall, cpu) = sync(&source, serve);
                times.0.push(wall);
                times.1.push(cpu);
            }
        }
        let [without, with] = times.map(|(wall, cpu)| (median(wall), median(cpu)));
        let source_alone = source.answer * pages;
        let (lines_wall, lines_cpu) = lines_and_gzip(&source);
        let [source_alone, lines_wall, lines_cpu] =
            [source_alone, lines_wall, lines_cpu].map(|time| time.as_millis());
        println!("{name}, {pages} pages: the source alone takes {source_alone} ms");
        println!("  lines and gzip alone: wall {lines_wall} ms, cpu {lines_cpu} ms");
        for ((setting, _), (wall, cpu)) in settings.iter().zip([without, with]) {
            let ratio = wall.as_secs_f64() / without.0.as_secs_f64();
            let (wall, cpu) = (wall.as_millis(), cpu.as_millis());
            println!("  {setting:8} wall {wall:>6} ms, cpu {cpu:>6} ms, wall to the baseline {ratio:.2}");
        }
    }
}
