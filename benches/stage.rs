//! What does it cost to stage a batch?
//!
//! A page of records becomes a durable batch, through the public API: serialised, compressed and committed with its
//! cursor and counts. The baselines do the unavoidable work for the same records: the lines written and compressed in
//! memory; the compressed bytes in a bare two-phase redb commit; the same bytes in a file, `fdatasync`ed. Not timed
//! are creating the records, and acknowledging the batch, which keeps the file small.

mod common;

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use flate2::Compression;
use flate2::write::GzEncoder;
use highwater::{Page, Record, Store};
use redb::{Database, TableDefinition};

const CACHE_BYTES: usize = 1536 * 1024;

fn stage(criterion: &mut Criterion) {
    for items in [100, 2_000, 10_000] {
        let records = common::records(7, items);
        let lines = common::lines(&records);
        let gzipped = gzip(&lines);
        let (folder, file_system) = common::folder_on_disk();
        eprintln!(
            "{items} records, {} bytes of JSON Lines, {} gzipped; on {file_system}",
            lines.len(),
            gzipped.len()
        );
        let mut group = criterion.benchmark_group(format!("stage/{items}"));
        group.throughput(Throughput::ElementsAndBytes {
            elements: items.into(),
            bytes: u64::try_from(lines.len()).unwrap(),
        });
        highwater(&mut group, &folder.path().join("state.redb"), &records);
        group.bench_function("lines and gzip, in memory", |bencher| {
            bencher.iter(|| gzip(&common::lines(&records)));
        });
        bare_redb(&mut group, &folder.path().join("bare.redb"), &gzipped);
        bare_file(&mut group, &folder.path().join("bare"), &gzipped);
        group.finish();
    }
}

/// Requests the batch; it is yielded once its page is staged.
fn highwater(group: &mut BenchmarkGroup<'_, WallTime>, path: &std::path::Path, records: &[Record]) {
    let items = u32::try_from(records.len()).unwrap();
    let store = Store::options().batch_items(items).open(path).unwrap();
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let next_page = RefCell::new(None);
    let mut cursor = 0_u64;
    let mut batches = run.batches("issues", |_: Option<u64>| {
        next_page.borrow_mut().take().ok_or("a page is asked for that was not laid out")
    });
    group.bench_function("highwater", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                cursor += 1;
                let mut page = Page::more(cursor);
                for record in records {
                    page.push("issues", record.clone());
                }
                next_page.replace(Some(page));
                let started = Instant::now();
                let batch = batches.next().unwrap().unwrap();
                spent += started.elapsed();
                assert_eq!(batch.items(), items);
                batch.acknowledge(format!("artifact {cursor}")).unwrap();
            }
            spent
        });
    });
}

/// The bytes alone, as durable as in the store.
fn bare_redb(group: &mut BenchmarkGroup<'_, WallTime>, path: &std::path::Path, bytes: &[u8]) {
    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("payloads");
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).unwrap();
    let commit = |key: u64, bytes: Option<&[u8]>| {
        let mut transaction = db.begin_write().unwrap();
        transaction.set_two_phase_commit(true);
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            match bytes {
                Some(bytes) => drop(table.insert(key, bytes).unwrap()),
                None => drop(table.remove(key).unwrap()),
            }
        }
        transaction.commit().unwrap();
    };
    let mut key = 0;
    group.bench_function("bare redb commit", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                key += 1;
                let started = Instant::now();
                commit(key, Some(bytes));
                spent += started.elapsed();
                commit(key, None);
            }
            spent
        });
    });
}

/// The lower bound: the bytes overwrite earlier ones, in a file whose blocks are allocated.
fn bare_file(group: &mut BenchmarkGroup<'_, WallTime>, path: &std::path::Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    group.bench_function("bare write and fdatasync", |bencher| {
        bencher.iter(|| {
            file.rewind().unwrap();
            file.write_all(bytes).unwrap();
            file.sync_data().unwrap();
        });
    });
}

fn gzip(lines: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(lines.len() / 3), Compression::new(2));
    encoder.write_all(lines.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

criterion_group!(benches, stage);
criterion_main!(benches);
