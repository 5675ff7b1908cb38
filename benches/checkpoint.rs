//! What does a checkpoint cost: to make, to restore, and in bytes?
//!
//! A worker without a disk extracts until a message is full. Of the worker states that it saves, the first, the
//! largest and the last are restored to a store in memory, and made again from it. The baseline is bare `serde_json`,
//! which parses and writes the document in the checkpoint, and its bytes.

#[path = "common/platform.rs"]
#[allow(dead_code, reason = "of what the benches share, it needs a part")]
mod platform;

use std::hint::black_box;
use std::io::Read;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flate2::read::GzDecoder;
use highwater::airdrop::{
    Context, ExternalSyncUnit, Extractor, Listing, Platform, PlatformError, SavedState, SealedMessage, Serve,
    SourceError, Upload, WorkerState,
};
use highwater::{ArtifactId, Page, Record, Store};
use serde_json::{Value, json};

use platform::Sink;

/// Takes everything, and keeps each worker state.
#[derive(Default)]
struct Keeps {
    sink: Sink,
    saved: Mutex<Vec<String>>,
}

impl Platform for Keeps {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let short = self.sink.upload(upload)?;
        let id = format!("don:core:dvrv-us-1:devo/1:artifact/{short}");
        Ok(ArtifactId::new(id).expect("an id"))
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        self.sink.confirm(artifact)
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        self.sink.send(message)
    }

    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        let last = self.saved.lock().unwrap().last().cloned();
        Ok(last.map(|state| WorkerState::new(Some(state), None)))
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        self.saved.lock().unwrap().push(state.to_owned());
        Ok(())
    }
}

/// A stream without an end, of pages with one record.
struct Endless;

impl Extractor for Endless {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({}))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }

    fn page(&self, _: &Context, _: &Listing, at: Option<u32>) -> Result<Page<u32>, SourceError> {
        let next = at.unwrap_or(0) + 1;
        let record = Record::new(format!("issue-{next}"), &json!({}))?;
        Ok(Page::more(next).record("issues", record))
    }
}

/// The document in the checkpoint of a worker state: its body is base64 of gzipped JSON.
fn document(state: &str) -> Vec<u8> {
    let state: Value = serde_json::from_str(state).unwrap();
    let member = STANDARD.decode(state["highwater"]["body"].as_str().unwrap()).unwrap();
    let mut json = Vec::new();
    GzDecoder::new(&member[..]).read_to_end(&mut json).unwrap();
    json
}

fn checkpoint(criterion: &mut Criterion) {
    let keeps = Keeps::default();
    // On any file system, as this is not timed.
    let folder = tempfile::tempdir().unwrap();
    let store = Store::options().batch_items(1).open(folder.path().join("state.redb")).unwrap();
    let event = platform::event("EXTRACTION_DATA_START", "run", 0).unwrap();
    Serve::new().checkpoints().inline(7).serve(&store, &keeps, &Endless, &event).unwrap();
    let saved = keeps.saved.into_inner().unwrap();
    let largest = (0..saved.len()).max_by_key(|at| document(&saved[*at]).len()).unwrap();
    for (name, state) in [
        ("first", &saved[0]),
        ("before the message", &saved[largest - 1]),
        ("largest", &saved[largest]),
        ("last", saved.last().unwrap()),
    ] {
        let json = document(state);
        let value: Value = serde_json::from_slice(&json).unwrap();
        eprintln!(
            "{name}: {} bytes as saved, {} of JSON in it: {:.2}",
            state.len(),
            json.len(),
            f64::from(u32::try_from(state.len()).unwrap()) / f64::from(u32::try_from(json.len()).unwrap()),
        );
        let mut group = criterion.benchmark_group(format!("checkpoint/{name}"));
        group.throughput(Throughput::Bytes(json.len() as u64));
        group.bench_function("restored", |bencher| bencher.iter(|| SavedState::read(state, "unit").unwrap()));
        group.bench_function("parsed by serde_json", |bencher| {
            bencher.iter(|| serde_json::from_slice::<Value>(black_box(&json)).unwrap());
        });
        let restored = SavedState::read(state, "unit").unwrap();
        group.bench_function("made", |bencher| bencher.iter(|| restored.to_text().unwrap()));
        group.bench_function("written by serde_json", |bencher| {
            bencher.iter(|| serde_json::to_vec(black_box(&value)).unwrap());
        });
        group.finish();
    }
}

criterion_group!(benches, checkpoint);
criterion_main!(benches);
