//! A record: one JSON object that becomes one line of an artifact.
//!
//! A record makes at most two allocations: its id, unless the caller gives a `String`, and its object, unless the record
//! that this thread dropped last left a buffer of about its size. Typed data is serialised into a thread-local buffer. It
//! is not scanned again, because a serialiser writes only valid characters and finite numbers. Text that is passed
//! through, as JSON text or inside typed data ([`RawValue`]), is scanned.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::io;

use chrono::{DateTime, FixedOffset, SecondsFormat};
use memchr::memchr2;
use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::finding::{Finding, Rule, Severity};
use super::moment;
use super::path::FieldPath;
use super::text::{self, DEPTH_MAX, Flaw, Flawed, Look};
use crate::cut;
use crate::error::{Error, Result};
use crate::model::{BATCH_BYTES_MAX, ID_BYTES_MAX, Micros};

/// A date beside `data`: the moment, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Date {
    at: Micros,
    /// In place, up to a time with milliseconds and offset.
    text: SmallVec<[u8; 32]>,
}

impl Date {
    fn new(at: DateTime<FixedOffset>) -> Self {
        let text = at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        Self { at: Micros::from_time(at.to_utc()), text: SmallVec::from_slice(text.as_bytes()) }
    }

    /// Keeps the text unchanged, if it is RFC 3339 with offset, as the platform reads it.
    fn from_text(text: &str) -> Option<Self> {
        let at = moment::read_timestamp(text)?;
        Some(Self { at: Micros::from_time(at), text: SmallVec::from_slice(text.as_bytes()) })
    }
}

/// A JSON object on one line, in UTF-8. A record is mostly dropped, as it goes into a page, before the next is made: that one
/// takes over its buffer.
#[derive(PartialEq, Eq)]
struct Object(Vec<u8>);

impl Object {
    fn new(text: &[u8]) -> Self {
        // It fails if the thread is about to end.
        let mut object = SPARE.try_with(Cell::take).unwrap_or_default();
        // One that is much larger would be kept for as long as the record is.
        if object.capacity() < text.len() || object.capacity() / 2 > text.len() {
            object = Vec::with_capacity(text.len());
        }
        object.clear();
        object.extend_from_slice(text);
        Self(object)
    }
}

impl Clone for Object {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let object = std::mem::take(&mut self.0);
        if object.capacity() <= BUFFER_BYTES_MAX {
            let _ = SPARE.try_with(|spare| spare.set(object));
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

/// One record, ready to be a line of an artifact.
#[derive(Debug, Clone)]
pub struct Record {
    id: Option<String>,
    created: Option<Date>,
    modified: Option<Date>,
    operation: Option<String>,
    /// The record's `data`, or, without an id, the whole line.
    object: Object,
    /// What was changed when it was made.
    changes: Vec<Finding>,
}

/// Two records are equal if their lines are, whatever was changed in making them.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        let parts = |record: &Self| {
            (record.id.clone(), record.created.clone(), record.modified.clone(), record.operation.clone())
        };
        self.object == other.object && parts(self) == parts(other)
    }
}

impl Eq for Record {}

impl Record {
    /// A record with `data` from anything that serialises to a JSON object.
    ///
    /// ```
    /// use highwater::Record;
    /// #[derive(serde::Serialize)]
    /// struct Issue { title: String }
    /// let record = Record::new("ISSUE-1", &Issue { title: "a crash".into() })?;
    /// assert_eq!(record.to_line(), r#"{"id":"ISSUE-1","data":{"title":"a crash"}}"#);
    /// # Ok::<(), highwater::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Record` if the data is not a JSON object, the id is empty or over [`ID_BYTES_MAX`] bytes, or the record is over
    /// [`BATCH_BYTES_MAX`] bytes.
    pub fn new(id: impl Into<String>, data: &impl Serialize) -> Result<Self> {
        let id = checked_id(id.into())?;
        Self::serialised(Some(id), data)
    }

    /// A record whose `data` is JSON text already; it is checked, not rewritten.
    ///
    /// # Errors
    /// Those of [`Record::new`]; also if the text is not JSON.
    pub fn from_raw(id: impl Into<String>, data: &str) -> Result<Self> {
        let id = checked_id(id.into())?;
        let object = checked_json(&id, data)?;
        Self::with_object(Some(id), &object, true)
    }

    /// The record of a deletion, if the source tells of it: `operation` is `deleted`, and there are no data.
    ///
    /// ```
    /// use highwater::Record;
    /// let record = Record::deleted("ISSUE-1")?;
    /// assert_eq!(record.to_line(), r#"{"id":"ISSUE-1","operation":"deleted","data":{}}"#);
    /// # Ok::<(), highwater::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Record` if the id is empty or over [`ID_BYTES_MAX`] bytes.
    pub fn deleted(id: impl Into<String>) -> Result<Self> {
        Ok(Self::new(id, &serde_json::Map::new())?.operation("deleted"))
    }

    /// A flat record: the whole JSON object is the line, without `id` and `data` around it.
    ///
    /// # Errors
    /// Those of [`Record::new`].
    pub fn flat(line: &impl Serialize) -> Result<Self> {
        Self::serialised(None, line)
    }

    /// [`Record::flat`] from JSON text, which is checked, not rewritten.
    ///
    /// # Errors
    /// Those of [`Record::new`]; also if the text is not JSON.
    pub fn flat_raw(line: &str) -> Result<Self> {
        let object = checked_json("(flat)", line)?;
        Self::with_object(None, &object, true)
    }

    /// Sets the record's creation time, as the source has it. The offset is kept.
    #[must_use]
    pub fn created(mut self, at: impl Into<DateTime<FixedOffset>>) -> Self {
        self.created = Some(Date::new(at.into()));
        self
    }

    /// Sets the time of the record's last modification, as the source has it. The offset is kept.
    #[must_use]
    pub fn modified(mut self, at: impl Into<DateTime<FixedOffset>>) -> Self {
        self.modified = Some(Date::new(at.into()));
        self
    }

    /// [`Record::created`] from the source's own text: RFC 3339 with offset and seconds, kept to the last digit.
    ///
    /// ```
    /// use highwater::Record;
    /// let record = Record::new("ISSUE-1", &serde_json::json!({}))?.created_text("2020-01-01T00:00:00.000Z")?;
    /// assert_eq!(record.to_line(), r#"{"id":"ISSUE-1","created_date":"2020-01-01T00:00:00.000Z","data":{}}"#);
    /// assert!(record.modified_text("yesterday").is_err());
    /// # Ok::<(), highwater::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Record` if the text is not such a time.
    pub fn created_text(mut self, text: &str) -> Result<Self> {
        self.created = Some(self.date("created_date", text)?);
        Ok(self)
    }

    /// [`Record::modified`] from the source's own text: see [`Record::created_text`].
    ///
    /// # Errors
    /// `Record` if the text is not such a time.
    pub fn modified_text(mut self, text: &str) -> Result<Self> {
        self.modified = Some(self.date("modified_date", text)?);
        Ok(self)
    }

    fn date(&self, field: &str, text: &str) -> Result<Date> {
        Date::from_text(text).ok_or_else(|| {
            let found = cut::to_chars(text, 40);
            let reason = format!("{field} is {found:?}, expected RFC 3339 with offset: 2020-12-31T23:59:59Z");
            refused(self.id.as_deref().unwrap_or("(flat)"), reason)
        })
    }

    /// Sets what happened to the record: `created`, `updated`, `deleted` (or [`Record::deleted`]).
    #[must_use]
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Sets the dates as they were written; a date that is not RFC 3339 with offset is left out.
    pub(super) fn with_dates(mut self, created: Option<&str>, modified: Option<&str>) -> Self {
        self.created = created.and_then(Date::from_text);
        self.modified = modified.and_then(Date::from_text);
        self
    }

    pub(super) fn with_changes(mut self, mut changes: Vec<Finding>) -> Self {
        changes.append(&mut self.changes);
        self.changes = changes;
        self
    }

    pub(super) fn with_operation(mut self, operation: Option<String>) -> Self {
        self.operation = operation;
        self
    }

    /// What was changed to make this record, as warnings: unpaired surrogates that became U+FFFD, and, if a
    /// [`Normalizer`](super::Normalizer) made it, placeholders that became `null` and undeclared fields that were left
    /// out. When the record is staged, they are counted with the findings of the run, by field.
    ///
    /// ```
    /// use highwater::Record;
    /// let record = Record::from_raw("7", r#"{"title":"cut \ud83d"}"#)?;
    /// assert_eq!(record.to_line(), r#"{"id":"7","data":{"title":"cut \ufffd"}}"#);
    /// assert_eq!(record.changes()[0].path.to_string(), "data.title");
    /// # Ok::<(), highwater::Error>(())
    /// ```
    pub fn changes(&self) -> &[Finding] {
        &self.changes
    }

    /// [`Record::changes`].
    pub(crate) fn into_changes(self) -> Vec<Finding> {
        self.changes
    }

    /// The id, unless the record is flat.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub(crate) fn created_micros(&self) -> Option<Micros> {
        self.created.as_ref().map(|date| date.at)
    }

    pub(crate) fn modified_micros(&self) -> Option<Micros> {
        self.modified.as_ref().map(|date| date.at)
    }

    /// The record as one line of JSON, without the newline.
    pub fn to_line(&self) -> String {
        let mut line = Vec::with_capacity(self.line_bytes());
        self.write_line(&mut line);
        // Every part is text.
        String::from_utf8_lossy(&line).into_owned()
    }

    /// How many bytes the line has, its newline included, and a few more; fewer than it has if its id or operation needs
    /// escapes.
    pub(crate) fn line_bytes(&self) -> usize {
        let dates = [&self.created, &self.modified].into_iter().flatten();
        let dates = dates.map(|date| date.text.len() + ",\"modified_date\":\"\"".len());
        let texts = [&self.id, &self.operation].into_iter().flatten().map(String::len);
        let members = "{\"id\":\"\",\"operation\":\"\",\"data\":}\n".len();
        self.object.0.len() + members + dates.chain(texts).sum::<usize>()
    }

    /// Appends the line, without the newline.
    pub(crate) fn write_line(&self, out: &mut Vec<u8>) {
        let Some(id) = &self.id else {
            out.extend_from_slice(&self.object.0);
            return;
        };
        out.extend_from_slice(b"{\"id\":");
        write_string(out, id);
        for (key, date) in [("created_date", &self.created), ("modified_date", &self.modified)] {
            if let Some(date) = date {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(b"\":\"");
                out.extend_from_slice(&date.text);
                out.push(b'"');
            }
        }
        if let Some(operation) = &self.operation {
            out.extend_from_slice(b",\"operation\":");
            write_string(out, operation);
        }
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(&self.object.0);
        out.push(b'}');
    }

    fn serialised(id: Option<String>, data: &impl Serialize) -> Result<Self> {
        let mut buffer = BUFFER.take();
        buffer.clear();
        let mut written = Written::default();
        let mut serializer = serde_json::Serializer::with_formatter(&mut buffer, Watch(&mut written));
        let result = data.serialize(&mut serializer);
        let Written { depth_max, is_raw, .. } = written;
        if is_raw {
            on_one_line(&mut buffer);
        }
        let record = match result {
            Ok(()) => Self::with_object(id, &buffer, is_raw || depth_max >= DEPTH_MAX),
            Err(error) => Err(refused(id.as_deref().unwrap_or("(flat)"), error.to_string())),
        };
        if buffer.capacity() <= BUFFER_BYTES_MAX {
            BUFFER.set(buffer);
        }
        record
    }

    /// `may_be_flawed`: it is text of another's making, or is nested so deeply that it must be looked at.
    fn with_object(id: Option<String>, object: &[u8], may_be_flawed: bool) -> Result<Self> {
        let name = id.as_deref().unwrap_or("(flat)");
        if object.first() != Some(&b'{') {
            let found = cut::to_chars(&String::from_utf8_lossy(object), 40);
            return Err(refused(name, format!("expected a JSON object, found {found}")));
        }
        if object.len() as u64 > BATCH_BYTES_MAX {
            return Err(refused(
                name,
                format!("it is {} bytes, over the limit of {BATCH_BYTES_MAX}", object.len()),
            ));
        }
        let mut object = Object::new(object);
        let changes = if may_be_flawed { strict(id.as_deref(), &mut object.0)? } else { Vec::new() };
        Ok(Self { id, created: None, modified: None, operation: None, object, changes })
    }
}

thread_local! {
    /// What records are serialised into, before their size is known.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// The buffer of the record that was dropped last.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes of such a buffer that a thread keeps, at most.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// What was serialised.
#[derive(Default)]
struct Written {
    depth: usize,
    depth_max: usize,
    /// Part of it was text already.
    is_raw: bool,
}

/// Writes compact JSON, and watches what is written.
struct Watch<'w>(&'w mut Written);

impl Watch<'_> {
    fn open(&mut self) {
        self.0.depth += 1;
        self.0.depth_max = self.0.depth_max.max(self.0.depth);
    }
}

impl Formatter for Watch<'_> {
    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.depth -= 1;
        writer.write_all(b"}")
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.depth -= 1;
        writer.write_all(b"]")
    }

    fn write_number_str<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: &str) -> io::Result<()> {
        self.0.is_raw = true;
        writer.write_all(value.as_bytes())
    }

    fn write_raw_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        self.0.is_raw = true;
        writer.write_all(fragment.as_bytes())
    }
}

/// Makes JSON text acceptable to every reader: unpaired surrogates become U+FFFD, byte for byte.
///
/// # Errors
/// `Record`, if it is nested deeper, or has a larger number, than readers accept.
fn strict(id: Option<&str>, object: &mut [u8]) -> Result<Vec<Finding>> {
    // With an id, the object is under "data".
    let levels = DEPTH_MAX - usize::from(id.is_some());
    let found = text::flaws(object, Look::Strict, levels);
    let mut halves = Vec::new();
    for Flawed { flaw, range, path } in found {
        let path = if id.is_some() { path.under("data") } else { path };
        let reason = match flaw {
            Flaw::Surrogate => {
                halves.push(path);
                continue;
            }
            Flaw::Control(_) => continue,
            Flaw::TooDeep => format!(
                "it is nested deeper than {levels} levels at {}",
                cut::to_chars(&path.to_string(), 120)
            ),
            Flaw::TooLarge => {
                let number = String::from_utf8_lossy(object.get(range).unwrap_or_default());
                let number = cut::to_chars(&number, 40);
                format!(
                    "the number {number} at {} is greater than readers can represent, 1.8e308",
                    cut::to_chars(&path.to_string(), 120)
                )
            }
        };
        return Err(refused(id.unwrap_or("(flat)"), reason));
    }
    if halves.is_empty() {
        return Ok(Vec::new());
    }
    // One escape replaces another, so it is still text.
    let replaced = text::replace_surrogates(object);
    let mut changes = surrogates_replaced(halves, replaced);
    for change in &mut changes {
        change.record = id.map(str::to_owned);
    }
    Ok(changes)
}

/// The findings for replaced surrogates: one for each with a known path, and the number of the others.
pub(super) fn surrogates_replaced(paths: Vec<FieldPath>, replaced: u64) -> Vec<Finding> {
    let more = replaced.saturating_sub(paths.len() as u64);
    let one = |path| {
        let message = "an unpaired surrogate, a character cut in half, became U+FFFD".to_owned();
        Finding::new(Severity::Warning, Rule::Surrogate, path, message)
            .expecting("cut text between characters, not between UTF-16 code units")
    };
    let mut findings: Vec<_> = paths.into_iter().map(one).collect();
    if let Some(last) = findings.last_mut().filter(|_| more > 0) {
        last.message = format!("{}, and {more} more after it", last.message);
    }
    findings
}

pub(super) fn refused(id: &str, reason: String) -> Error {
    Error::Record { id: cut::to_chars(id, 80), reason }
}

fn checked_id(id: String) -> Result<String> {
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        let reason = format!("an id has 1 to {ID_BYTES_MAX} bytes, this one {}", id.len());
        return Err(refused(&id, reason));
    }
    Ok(id)
}

/// Checks JSON text, and puts it on one line.
fn checked_json<'t>(id: &str, text: &'t str) -> Result<Cow<'t, [u8]>> {
    let value: &RawValue = serde_json::from_str(text).map_err(|error| refused(id, error.to_string()))?;
    let text = value.get();
    let mut text = Cow::Borrowed(text.as_bytes());
    if memchr2(b'\n', b'\r', &text).is_some() {
        on_one_line(text.to_mut());
    }
    Ok(text)
}

/// A newline cannot be inside a JSON string.
fn on_one_line(text: &mut [u8]) {
    for byte in text {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    // A string always serialises, and writing to a vector does not fail.
    let written = serde_json::to_writer(&mut *out, text);
    debug_assert!(written.is_ok());
}
