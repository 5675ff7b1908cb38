//! Checks the records of a file one after the other: each on a line or over several lines, plain or gzipped.
//!
//! One document at a time is in memory, however long the file. Lines are counted from 1. After text that is not JSON,
//! reading continues where the next record can begin: after the closing bracket of the broken one, or at the next
//! line that begins with `{`. So one mistake is one finding.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, Read};

use serde_json::value::RawValue;

use super::broken::not_json;
use super::check::{Checker, Ids, name_record};
use super::finding::{Finding, Rule, Severity};
use super::locate::locate_all;
use super::path::{Excerpt, FieldPath};
use super::values::Walk;
use crate::error::{Error, Result};
use crate::model::BATCH_BYTES_MAX;

/// The most lines beginning with `{` within one document that are tried as the beginning of the next.
const BEGINNINGS_MAX: u32 = 64;

impl Checker {
    /// Checks records one after the other, plain or gzipped, in constant memory.
    ///
    /// A duplicate id is found if it is among the last 65,536 records, so in any artifact.
    ///
    /// ```
    /// # use highwater::record::{Checker, Field, Metadata, RecordType};
    /// # let metadata = Metadata::new().record_type("issues", RecordType::new().field("size", Field::int()));
    /// let checker = Checker::new(&metadata, "issues").unwrap();
    /// let text = "{\"id\":\"1\",\"data\":{}}\n{\n  \"id\": \"2\",\n  \"data\": {\"size\": 1.5}\n}\n";
    /// let mut stream = checker.stream(text.as_bytes())?;
    /// let finding = stream.next().expect("one finding")?;
    /// assert_eq!((finding.line, finding.record.as_deref()), (Some(4), Some("2")));
    /// assert!(stream.next().is_none());
    /// assert_eq!(stream.records(), 2);
    /// # Ok::<(), highwater::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Io`, if the first bytes cannot be read.
    pub fn stream<'c>(&'c self, input: impl Read + 'c) -> Result<RecordStream<'c>> {
        Ok(RecordStream {
            checker: self,
            input: crate::artifact::reader(input).map_err(read_failed)?,
            text: Vec::new(),
            line: 0,
            walk: Walk::default(),
            ids: Ids::default(),
            found: VecDeque::new(),
            records: 0,
            ended: false,
        })
    }
}

/// Reads `input` as plain text, whether it is gzipped or not.
///
/// # Errors
/// Any I/O error of its first bytes.
pub fn reader<'r>(input: impl Read + 'r) -> io::Result<Box<dyn BufRead + 'r>> {
    crate::artifact::reader(input)
}

fn read_failed(error: io::Error) -> Error {
    Error::io("read the records", error)
}

/// The findings of records that are read one after the other.
pub struct RecordStream<'c> {
    checker: &'c Checker,
    input: Box<dyn BufRead + 'c>,
    /// The document that is being read, up to the end of the last line read.
    text: Vec<u8>,
    /// The number of that line.
    line: u64,
    walk: Walk,
    ids: Ids,
    found: VecDeque<Finding>,
    records: u64,
    ended: bool,
}

impl fmt::Debug for RecordStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordStream")
            .field("line", &self.line)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

impl Iterator for RecordStream<'_> {
    type Item = Result<Finding>;

    /// Reads on until something is found.
    ///
    /// # Errors
    /// `Io` if the input cannot be read, or its gzip is damaged. The stream has then ended.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(finding) = self.found.pop_front() {
                return Some(Ok(finding));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.read_document() {
                self.ended = true;
                return Some(Err(read_failed(error)));
            }
        }
    }
}

impl RecordStream<'_> {
    /// Documents read so far, correct or not.
    pub fn records(&self) -> u64 {
        self.records
    }

    fn read_document(&mut self) -> io::Result<()> {
        self.text.clear();
        let first_line = self.line + 1;
        match self.read_line()? {
            Outcome::End => {
                self.ended = true;
                return Ok(());
            }
            Outcome::TooLong => return self.too_long(first_line),
            Outcome::Line => {}
        }
        if first_line == 1 {
            self.drop_byte_order_mark();
        }
        let text = self.text.trim_ascii();
        if text.is_empty() {
            return Ok(());
        }
        match self.checker.walk(text, &mut self.walk) {
            Ok(()) => {
                self.records += 1;
                if let Some(finding) = self.ids.add(&self.walk.id, first_line) {
                    self.walk.sink.add(finding);
                }
                if !self.walk.sink.is_empty() {
                    self.found.extend(placed(&mut self.walk, &self.text, first_line));
                }
                Ok(())
            }
            Err(_) => self.read_otherwise(first_line),
        }
    }

    /// The line is not one document: it begins one, holds several, or is broken.
    fn read_otherwise(&mut self, first_line: u64) -> io::Result<()> {
        if !self.text.trim_ascii_start().starts_with(b"{") && !self.text.trim_ascii_start().starts_with(b"[")
        {
            self.no_record(first_line);
            return Ok(());
        }
        let mut beginnings = 0;
        loop {
            let (used, error) = self.take_documents(first_line);
            let Some(error) = error else { return Ok(()) };
            if !error.is_eof() {
                let rest = self.text.get(used..).unwrap_or_default().trim_ascii_start();
                let is_garbage = used > 0 && !rest.starts_with(b",") && !rest.starts_with(b"{");
                self.records -= u64::from(used > 0);
                self.broken(&error, first_line)?;
                if is_garbage && let Some(finding) = self.found.back_mut() {
                    finding.expected = Some("remove what follows the record".to_owned());
                }
                return Ok(());
            }
            // The documents taken were on one line: text of several lines ends with a whole document.
            self.text.drain(..used);
            // A document is open. It continues until its brackets are closed.
            let mut nesting = Nesting::default();
            nesting.feed(&self.text);
            if nesting.depth <= 0 && !nesting.in_string {
                return self.broken(&error, first_line);
            }
            if self.records == 0 && self.text.trim_ascii_start().starts_with(b"[") {
                self.one_array(first_line);
                return Ok(());
            }
            while nesting.depth > 0 && !nesting.in_string {
                if self.input.fill_buf()?.first() == Some(&b'{') && beginnings < BEGINNINGS_MAX {
                    beginnings += 1;
                    if self.cannot_go_on_with_object() {
                        self.unclosed(first_line, &format!("before line {}", self.line + 1));
                        return Ok(());
                    }
                }
                let old = self.text.len();
                match self.read_line()? {
                    Outcome::End => {
                        self.unclosed(first_line, "before the end of the input");
                        self.ended = true;
                        return Ok(());
                    }
                    Outcome::TooLong => return self.too_long(first_line),
                    Outcome::Line => nesting.feed(self.text.get(old..).unwrap_or_default()),
                }
            }
            if nesting.in_string {
                // JSON has no newline in a string, so the closing quote is missing.
                return match serde_json::from_slice::<&RawValue>(&self.text) {
                    Err(error) => self.broken(&error, first_line),
                    Ok(_) => Ok(()),
                };
            }
        }
    }

    /// Checks the whole documents at the beginning of the text. Returns how many bytes they take, and, if there is
    /// more text, why it is not a document.
    fn take_documents(&mut self, first_line: u64) -> (usize, Option<serde_json::Error>) {
        let mut used = 0;
        let mut line = first_line;
        let mut counted = 0;
        let mut documents = serde_json::Deserializer::from_slice(&self.text).into_iter::<&RawValue>();
        loop {
            let document = match documents.next() {
                Some(Ok(document)) => document.get(),
                Some(Err(error)) => return (used, Some(error)),
                None => return (self.text.len(), None),
            };
            used = documents.byte_offset();
            let start = used.saturating_sub(document.len());
            line += newlines(self.text.get(counted..start).unwrap_or_default());
            counted = start;
            self.records += 1;
            if let Err(error) = self.checker.walk(document.as_bytes(), &mut self.walk) {
                // Nested too deeply for the walk, or a number out of range.
                self.walk.sink.clear();
                self.found.push_back(not_json(document.as_bytes(), &error, line));
                continue;
            }
            if let Some(finding) = self.ids.add(&self.walk.id, line) {
                self.walk.sink.add(finding);
            }
            self.found.extend(placed(&mut self.walk, document.as_bytes(), line));
        }
    }

    /// Whether an object is impossible where the text ends, so that a line beginning with one is the next record.
    fn cannot_go_on_with_object(&mut self) -> bool {
        self.text.push(b'{');
        let cannot = serde_json::from_slice::<&RawValue>(&self.text).is_err_and(|error| !error.is_eof());
        self.text.pop();
        cannot
    }

    fn broken(&mut self, error: &serde_json::Error, first_line: u64) -> io::Result<()> {
        self.records += 1;
        self.found.push_back(not_json(&self.text, error, first_line));
        let mut nesting = Nesting::default();
        nesting.feed(&self.text);
        self.skip_to_next(nesting)
    }

    /// A line that does not begin an object: another format, or the rest of a broken record.
    fn no_record(&mut self, first_line: u64) {
        self.records += 1;
        let text = String::from_utf8_lossy(&self.text);
        let message = "the line is not a JSON object".to_owned();
        let mut finding = Finding::new(Severity::Error, Rule::Json, FieldPath::default(), message)
            .expecting("a record begins with {: {\"id\": \"...\", \"data\": {...}}");
        finding.line = Some(first_line);
        finding.excerpt = Some(Excerpt::of(&text, 0..text.trim_end().len()));
        self.found.push_back(finding);
    }

    fn unclosed(&mut self, first_line: u64, before: &str) {
        self.records += 1;
        let message = format!("the record that begins on line {first_line} is not closed {before}");
        let mut finding = Finding::new(Severity::Error, Rule::Json, FieldPath::default(), message)
            .expecting("add the } or ] that is missing");
        finding.line = Some(first_line);
        let text = String::from_utf8_lossy(&self.text);
        finding.excerpt = Some(Excerpt::of(&text, 0..text.len()));
        self.found.push_back(finding);
    }

    fn one_array(&mut self, first_line: u64) {
        self.records += 1;
        let message = "the records stand in one JSON array";
        let mut finding = Finding::new(Severity::Error, Rule::Envelope, FieldPath::default(), message.to_owned())
            .expecting("write one record after the other, without [ and ] around and commas between: jq -c '.[]' does it");
        finding.line = Some(first_line);
        self.found.push_back(finding);
        self.ended = true;
    }

    fn too_long(&mut self, first_line: u64) -> io::Result<()> {
        if self.records == 0 && self.text.trim_ascii_start().starts_with(b"[") {
            self.one_array(first_line);
            return Ok(());
        }
        self.records += 1;
        let message = format!("the record is over {BATCH_BYTES_MAX} bytes");
        let mut finding = Finding::new(Severity::Error, Rule::Limit, FieldPath::default(), message)
            .expecting("one record may not be larger: leave large contents out, or make attachments of them");
        finding.line = Some(first_line);
        self.found.push_back(finding);
        let mut nesting = Nesting::default();
        nesting.feed(&self.text);
        self.text.clear();
        if nesting.in_line {
            self.skip_line(&mut nesting)?;
        }
        self.skip_to_next(nesting)
    }

    /// Skips lines until the brackets are closed, or a line begins with one.
    fn skip_to_next(&mut self, mut nesting: Nesting) -> io::Result<()> {
        while nesting.depth > 0 {
            // A string does not continue on the next line: its quote was missing.
            nesting.in_string = false;
            match self.input.fill_buf()?.first() {
                None | Some(b'{') => return Ok(()),
                Some(_) => self.skip_line(&mut nesting)?,
            }
        }
        Ok(())
    }

    fn skip_line(&mut self, nesting: &mut Nesting) -> io::Result<()> {
        loop {
            let available = self.input.fill_buf()?;
            let (end, is_end) = match available.iter().position(|&byte| byte == b'\n') {
                Some(newline) => (newline + 1, true),
                None => (available.len(), available.is_empty()),
            };
            nesting.feed(available.get(..end).unwrap_or_default());
            self.input.consume(end);
            if is_end {
                self.line += 1;
                return Ok(());
            }
        }
    }

    /// Appends a line to the text, with its newline.
    fn read_line(&mut self) -> io::Result<Outcome> {
        let room = BATCH_BYTES_MAX.saturating_sub(self.text.len() as u64) + 1;
        let old = self.text.len();
        self.input.by_ref().take(room).read_until(b'\n', &mut self.text)?;
        if self.text.len() == old {
            return Ok(Outcome::End);
        }
        if self.text.len() as u64 > BATCH_BYTES_MAX {
            if self.text.ends_with(b"\n") {
                self.line += 1;
            }
            return Ok(Outcome::TooLong);
        }
        self.line += 1;
        Ok(Outcome::Line)
    }

    fn drop_byte_order_mark(&mut self) {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        if self.text.starts_with(MARK) {
            self.text.drain(..MARK.len());
            let message = "the input begins with a byte order mark".to_owned();
            let mut finding = Finding::new(Severity::Error, Rule::Json, FieldPath::default(), message)
                .expecting("write UTF-8 without it: JSON has none");
            finding.line = Some(1);
            self.found.push_back(finding);
        }
    }
}

enum Outcome {
    Line,
    End,
    TooLong,
}

fn newlines(text: &[u8]) -> u64 {
    text.split(|&byte| byte == b'\n').count() as u64 - 1
}

/// The findings of a record, with the lines and excerpts of its text.
fn placed(walk: &mut Walk, text: &[u8], first_line: u64) -> Vec<Finding> {
    let mut findings = walk.sink.take();
    name_record(&mut findings, &walk.id);
    if let Ok(text) = std::str::from_utf8(text) {
        locate_all(&mut findings, text, first_line);
    }
    findings
}

/// The nesting of brackets at the end of a text.
#[derive(Debug, Default, Clone, Copy)]
struct Nesting {
    depth: i64,
    in_string: bool,
    escaped: bool,
    /// Whether it ended without a newline.
    in_line: bool,
}

impl Nesting {
    fn feed(&mut self, text: &[u8]) {
        for &byte in text {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
        }
        self.in_line = text.last().is_some_and(|&byte| byte != b'\n');
    }
}
