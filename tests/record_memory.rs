//! A file of a million records is checked in constant memory.
//!
//! The records are generated while they are read, and the peak memory of this process is measured, so this is the
//! only test in its file. The control keeps what it reads, and must show in the measurement.

#![cfg(target_os = "linux")]

use std::io::{self, Read};

use highwater::record::{Checker, Field, Metadata, RecordType, Rule, Tally};

const RECORDS: u64 = 1_000_000;

/// Records that are written as they are read. Every hundredth is wrong.
struct Made {
    next: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl Read for Made {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            if self.next == RECORDS {
                return Ok(0);
            }
            self.buffer.clear();
            self.at = 0;
            let size =
                if self.next.is_multiple_of(100) { "\"big\"".to_owned() } else { self.next.to_string() };
            let line = format!(
                "{{\"id\":\"issue-{}\",\"data\":{{\"title\":\"a record like any other\",\"size\":{size}}}}}\n",
                self.next
            );
            self.buffer.extend_from_slice(line.as_bytes());
            self.next += 1;
        }
        let count = (&self.buffer[self.at..]).read(out)?;
        self.at += count;
        Ok(count)
    }
}

fn made() -> Made {
    Made { next: 0, buffer: Vec::new(), at: 0 }
}

/// The most memory that this process has had so far, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_million_records_are_checked_in_constant_memory() {
    const ALLOWED_BYTES: u64 = 12 * 1024 * 1024;
    let fields = RecordType::new().field("title", Field::text().required()).field("size", Field::int());
    let checker = Checker::new(&Metadata::new().record_type("issues", fields), "issues").unwrap();

    let before = peak_bytes();
    let mut tally = Tally::keeping(10);
    let mut stream = checker.stream(made()).unwrap();
    for finding in stream.by_ref() {
        tally.add(finding.unwrap());
    }
    assert_eq!(stream.records(), RECORDS);
    assert_eq!((tally.errors(), tally.kept().count(), tally.dropped()), (10_000, 10, 9_990));
    assert!(tally.kept().all(|finding| finding.rule == Rule::Type));
    let used = peak_bytes() - before;
    assert!(used <= ALLOWED_BYTES, "{used} bytes");

    // The control: a reader that keeps what it read is seen.
    let before = peak_bytes();
    let mut kept = Vec::new();
    io::copy(&mut made(), &mut kept).unwrap();
    assert!(peak_bytes() - before > ALLOWED_BYTES, "{} bytes kept, and not seen", kept.len());
}
