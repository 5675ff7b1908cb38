//! What does an attachment cost after a million others were settled?
//!
//! A source names them, page by page. Then they are streamed, 50 at a time, to a platform that accepts everything at
//! once and keeps nothing, so only our own work is timed. It follows `serve`: attachments are queued with their page,
//! the ids of 50 uploads are stored in one commit, their settling in another, and their lines go into a batch.
//! Everything is on one thread, so that only the number of attachments differs.
//!
//! The baseline is a bare redb table with commits that are as large and as durable: a row is put for each attachment,
//! put again when it is uploaded, and removed when it is settled. It is not a queue: it recognises no attachment,
//! counts nothing, and writes no line.
//!
//! At each end it reports the median of ten times 1,000 attachments: the time, and also CPU time and bytes written,
//! which other work on the machine changes least. `HIGHWATER_BENCH_ATTACHMENTS` sets the number of attachments;
//! without `--bench`, as in a test, there are few.

#[allow(dead_code, reason = "of what the benches share, it needs the folder")]
mod common;
#[path = "common/platform.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a phase")]
mod platform;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use highwater::airdrop::{
    AttachmentBody, AttachmentError, Body, Context, ExternalSyncUnit, Extractor, Listing, Platform,
    PlatformError, SealedMessage, Serve, SourceError, Upload,
};
use highwater::record::Attachment;
use highwater::{ArtifactId, Page, Store};
use redb::{Database, TableDefinition};
use serde_json::{Value, json};

/// Attachments per page, and per measurement.
const GROUP: u64 = 1_000;
const STREAMS: usize = 50;
const CACHE_BYTES: usize = 1536 * 1024;

fn attachment(number: u64) -> Attachment {
    let mut attachment = Attachment::new(
        format!("ATT-{number}"),
        format!("https://tracker.example/acme/files/{number}/content"),
        format!("screenshot-{number}.png"),
        format!("ISSUE-{}", number / 3),
    );
    attachment.author_id = Some(format!("USER-{}", number % 2_000));
    attachment.content_type = Some("image/png".to_owned());
    attachment
}

/// The cost up to a moment.
#[derive(Clone, Copy)]
struct Spent {
    at: Instant,
    on_processor: Duration,
    bytes_written: u64,
}

impl Spent {
    /// The cost so far; zero if the system does not tell it.
    fn now() -> Self {
        // proc(5): the first field is nanoseconds of CPU time.
        let schedule = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
        let on_processor = schedule.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok());
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let bytes_written = io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok());
        Self {
            at: Instant::now(),
            on_processor: Duration::from_nanos(on_processor.unwrap_or_default()),
            bytes_written: bytes_written.unwrap_or_default(),
        }
    }
}

/// Names this many attachments, with a few bytes for each. Notes when each page was fetched.
struct Source {
    count: u64,
    asked: Mutex<Vec<Spent>>,
}

impl Extractor for Source {
    type Cursor = u64;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({}))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["attachments".to_owned()])
    }

    fn page(&self, _: &Context, _: &Listing, cursor: Option<u64>) -> Result<Page<u64>, SourceError> {
        self.asked.lock().unwrap().push(Spent::now());
        let from = cursor.unwrap_or(0);
        let to = (from + GROUP).min(self.count);
        // The last page is empty, so that each other page lasts until the next one.
        let mut page = if from < self.count { Page::more(to) } else { Page::last() };
        for number in from..to {
            page.push("attachments", attachment(number).to_record()?);
        }
        Ok(page)
    }

    fn open_attachment(&self, _: &Context, _: &Attachment) -> Result<AttachmentBody, AttachmentError> {
        Ok(AttachmentBody::new(&b"bytes"[..]).length(5))
    }
}

/// Accepts everything. Notes when each 1,000th attachment was confirmed, and copies the store halfway.
struct Sink {
    count: u64,
    store: PathBuf,
    copy: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    artifacts: u64,
    confirmed: u64,
    at: Vec<Spent>,
    memory_at_start: Option<String>,
}

impl Platform for Sink {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let kind = match upload.body {
            Body::Batch(_) => "batch",
            Body::Stream { reader, .. } => {
                let copied = std::io::copy(reader, &mut std::io::sink()).expect("it is in memory");
                assert_eq!(copied, 5);
                "stream"
            }
        };
        let mut inner = self.inner.lock().unwrap();
        inner.artifacts += 1;
        let id = format!("don:core:dvrv-us-1:devo/1:artifact/{kind}-{}", inner.artifacts);
        Ok(ArtifactId::new(id).expect("an id"))
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        if artifact.as_str().contains("/batch-") {
            return Ok(());
        }
        let mut inner = self.inner.lock().unwrap();
        if inner.at.is_empty() {
            inner.at.push(Spent::now());
        }
        inner.confirmed += 1;
        if inner.confirmed.is_multiple_of(GROUP) {
            inner.at.push(Spent::now());
        }
        if inner.confirmed == 10 * GROUP {
            inner.memory_at_start = Some(memory());
        }
        if inner.confirmed == self.count / 2 {
            fs::copy(&self.store, &self.copy).expect("room for a copy");
        }
        Ok(())
    }

    fn send(&self, _: &SealedMessage) -> Result<(), PlatformError> {
        Ok(())
    }
}

/// Serves a phase until it is done.
fn phase(store: &Store, sink: &Sink, source: &Source, phase: &str) {
    let hour = Duration::from_secs(3_600);
    let serve = Serve::new().inline(7).attachments_at_once(STREAMS).budget(hour).hard_limit(2 * hour);
    platform::phase(&serve, store, sink, source, "run", phase).expect("it is served");
}

/// The cost of each attachment at the start and at the end: microseconds, microseconds of CPU time, and bytes
/// written.
struct Ends {
    start: [f64; 3],
    end: [f64; 3],
}

impl Ends {
    fn of(spent: &[Spent]) -> Self {
        let groups: Vec<[f64; 3]> = spent
            .windows(2)
            .map(|pair| {
                let (from, to) = (pair[0], pair[1]);
                let on_processor = to.on_processor.saturating_sub(from.on_processor);
                let bytes = to.bytes_written.saturating_sub(from.bytes_written);
                [to.at.duration_since(from.at), on_processor, Duration::from_micros(bytes)].map(each)
            })
            .collect();
        let ends = groups.len().min(10);
        Self { start: medians(&groups[..ends]), end: medians(&groups[groups.len() - ends..]) }
    }

    fn print(&self, what: &str) {
        println!("{what}");
        let names = ["us", "us on the processor", "bytes written"];
        for ((name, start), end) in names.iter().zip(self.start).zip(self.end) {
            println!("    {name:<24} {start:>10.1} {end:>10.1} {:>8.2}", end / start);
        }
    }
}

/// The cost of one attachment, in millionths.
#[allow(clippy::cast_precision_loss, reason = "a group is a thousand")]
fn each(group: Duration) -> f64 {
    group.as_secs_f64() * 1e6 / GROUP as f64
}

fn medians(groups: &[[f64; 3]]) -> [f64; 3] {
    std::array::from_fn(|at| {
        let mut all: Vec<f64> = groups.iter().map(|group| group[at]).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    })
}

/// The bare table: when each 1,000 rows were put, and when each 1,000 were put again and removed.
fn bare(path: &Path, count: u64) -> (Ends, Ends) {
    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("attachments");
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).expect("a new file");
    let commit = |from: u64, to: u64, value: Option<&str>| {
        let mut transaction = db.begin_write().expect("a transaction");
        transaction.set_two_phase_commit(true);
        {
            let mut table = transaction.open_table(TABLE).expect("the table");
            for number in from..to {
                match value {
                    Some(more) => {
                        let line = attachment(number).to_record().expect("a record").to_line() + more;
                        drop(table.insert(number, line.as_bytes()).expect("room"));
                    }
                    None => drop(table.remove(number).expect("a row")),
                }
            }
        }
        transaction.commit().expect("a commit");
    };
    let mut at = vec![Spent::now()];
    for from in (0..count).step_by(usize::try_from(GROUP).expect("a thousand")) {
        commit(from, (from + GROUP).min(count), Some(""));
        at.push(Spent::now());
    }
    let queued = Ends::of(&at);
    let mut at = vec![Spent::now()];
    for from in (0..count).step_by(STREAMS) {
        let to = (from + STREAMS as u64).min(count);
        commit(from, to, Some("don:core:dvrv-us-1:devo/1:artifact/stream-1"));
        commit(from, to, None);
        if to.is_multiple_of(GROUP) {
            at.push(Spent::now());
        }
    }
    (queued, Ends::of(&at))
}

/// The memory of the process, now and at its peak.
fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or(" unknown");
        line.trim().to_owned()
    };
    format!("{} now, {} at most", of("VmRSS:"), of("VmHWM:"))
}

fn mebibytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len() / (1024 * 1024))
}

fn main() {
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let default = if measuring { 1_000_000 } else { 4_000 };
    let count = std::env::var("HIGHWATER_BENCH_ATTACHMENTS").ok().and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(default).max(2 * GROUP).next_multiple_of(GROUP);
    let (folder, file_system) = common::folder_on_disk();
    let path = folder.path().join("state.redb");
    let copy = folder.path().join("copy.redb");
    println!("{count} attachments, {STREAMS} streams; on {file_system}");

    let store = Store::open(&path).expect("a new store");
    let source = Source { count, asked: Mutex::default() };
    let inner = Mutex::default();
    let sink = Sink { count, store: path.clone(), copy: copy.clone(), inner };
    let started = Instant::now();
    phase(&store, &sink, &source, "DATA");
    let queued = started.elapsed();
    let file = mebibytes(&path);
    let memory_queued = memory();
    phase(&store, &sink, &source, "ATTACHMENTS");
    let settled = started.elapsed().saturating_sub(queued);
    let memory_at_end = memory();
    let inner = sink.inner.into_inner().unwrap();
    assert_eq!(inner.confirmed, count);
    let failed = store.sync_unit("unit").expect("a unit").failed_attachments().count();
    assert_eq!(failed, 0);
    drop(store);

    let opening = Instant::now();
    drop(Store::open(&copy).expect("a killed store opens"));
    let opened = opening.elapsed();
    let (bare_queued, bare_settled) = bare(&folder.path().join("bare.redb"), count);

    println!("{:<28} {:>10} {:>10} {:>8}", "for each attachment", "first", "last", "ratio");
    Ends::of(&source.asked.lock().unwrap()).print("queued, pages of 1,000");
    bare_queued.print("  bare redb: a row put, commits of 1,000");
    Ends::of(&inner.at).print("streamed, confirmed, settled");
    bare_settled.print("  bare redb: put again, removed, commits of 50");
    println!(
        "in all: queued in {queued:.1?}, settled in {settled:.1?}; the file had {file} MiB when all were queued"
    );
    println!("memory: {memory_queued} when all were queued");
    println!("        {} after 10,000 were settled", inner.memory_at_start.unwrap_or_default());
    println!("        {memory_at_end} after all were");
    println!("opened after a kill in the middle, {} MiB: {opened:.1?}", mebibytes(&copy));
}
