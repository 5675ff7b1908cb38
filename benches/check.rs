//! What does checking cost? A file of records is checked. The baselines parse the same file with bare `serde_json`:
//! into values, as a checker that works on values would; and without building anything, the least possible cost.
//!
//! `HIGHWATER_BENCH_RECORDS` sets the number of records; 100,000 by default, so that a run is short.

use std::hint::black_box;
use std::io::Write;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use highwater::record::{Checker, Field, Metadata, RecordType};
use serde::de::IgnoredAny;
use serde_json::Value;

fn metadata() -> Metadata {
    let issues = RecordType::new()
        .field("actual_close_date", Field::timestamp())
        .field("creator", Field::reference(["#record:users"]).required())
        .field("headline", Field::text().required().max(256))
        .field("owner", Field::reference(["#record:users"]).required())
        .field("priority", Field::enumeration(["P-0", "P-1", "P-2", "P-3"]).required())
        .field("target_close_date", Field::timestamp())
        .field(
            "status",
            Field::enumeration(["open", "triage", "in_progress", "blocked", "in_review", "closed"]),
        )
        .field("body", Field::rich_text())
        .field("labels", Field::text().collection_of(0, 20))
        .field("estimate", Field::int().min(0))
        .field("project", Field::reference(["#record:projects"]))
        .field("comments_count", Field::int().min(0))
        .field("is_blocked", Field::bool())
        .field("parent", Field::reference(["#record:issues"]));
    Metadata::new()
        .record_type("users", RecordType::new())
        .record_type("projects", RecordType::new())
        .record_type("issues", issues)
}

/// Records much like a tracker's, about 770 bytes each, the same in every run.
fn write_records(out: &mut impl Write, records: u64) -> std::io::Result<u64> {
    const WORDS: [&str; 12] = [
        "login", "button", "crash", "export", "invoice", "customer", "timeout", "webhook", "session",
        "table", "index", "cache",
    ];
    let mut bytes = 0;
    for n in 0..records {
        let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut words = |count: u64| {
            (0..count).map(|_| WORDS[usize::try_from(next(12)).unwrap_or(0)]).collect::<Vec<_>>().join(" ")
        };
        let (headline, body, label) = (words(6), words(36), words(1));
        let line = format!(
            r#"{{"id":"issue-{n}","created_date":"2020-01-01T00:00:{:02}.000Z","modified_date":"2021-06-30T12:00:{:02}.000Z","data":{{"actual_close_date":{},"creator":"user-{}","headline":"{headline}","owner":"user-{}","priority":"P-{}","target_close_date":"2022-01-01T00:00:00.000Z","status":"{}","body":"{body}","labels":["{label}","audit"],"estimate":{},"project":"project-{}","comments_count":{},"is_blocked":{},"parent":null,"item_url_field":"https://tracker.example.com/browse/ISSUE-{n}"}}}}"#,
            next(60),
            next(60),
            if next(6) == 0 { "\"2021-06-30T12:00:00.000Z\"" } else { "null" },
            next(500),
            next(500),
            next(4),
            ["open", "triage", "in_progress", "blocked", "in_review", "closed"]
                [usize::try_from(next(6)).unwrap_or(0)],
            next(21),
            next(40),
            next(30),
            next(8) == 0,
        );
        writeln!(out, "{line}")?;
        bytes += line.len() as u64 + 1;
    }
    Ok(bytes)
}

fn check(c: &mut Criterion) {
    let records =
        std::env::var("HIGHWATER_BENCH_RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    let bytes = {
        let mut out = std::io::BufWriter::new(file.as_file_mut());
        let bytes = write_records(&mut out, records).expect("room for the records");
        out.flush().expect("room for the records");
        bytes
    };
    let open = || std::fs::File::open(file.path()).expect("the file that was written");
    let lines = || std::io::BufRead::lines(std::io::BufReader::with_capacity(128 * 1024, open()));
    let metadata = metadata();
    let checker = Checker::new(&metadata, "issues").expect("a declared record type");

    let mut group = c.benchmark_group(format!("check/{records}_records"));
    group
        .throughput(Throughput::Bytes(bytes))
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    group.bench_function("checked", |b| {
        b.iter(|| {
            let mut stream = checker.stream(open()).expect("a readable file");
            assert!(stream.next().is_none(), "the records are right");
            assert_eq!(stream.records(), records);
        });
    });
    group.bench_function("parsed_into_values", |b| {
        b.iter(|| {
            for line in lines() {
                black_box(serde_json::from_str::<Value>(&line.expect("text")).expect("JSON"));
            }
        });
    });
    group.bench_function("parsed_past", |b| {
        b.iter(|| {
            for line in lines() {
                black_box(serde_json::from_str::<IgnoredAny>(&line.expect("text")).expect("JSON"));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, check);
criterion_main!(benches);
