//! What a record is: one JSON object that becomes one line of an artifact; and what metadata says of records.
//!
//! [`Metadata`] declares record types, built up or read from JSON, and checks itself. A [`Normalizer`] makes records
//! of what a source says, by the metadata. A [`Checker`] checks records against their record type: one at a time, in
//! a [`Batch`], or as a [`Stream`] of a whole file. What any of them finds is a [`Finding`].
//!
//! A line is `{"id":"...","created_date":"...","modified_date":"...","data":{...}}`: id first, then the dates, then
//! everything else under `data`; or, for the few item types that the platform wants flat (attachments, external sync
//! units, the metadata document), any JSON object as it is. Source:
//! <https://developer.devrev.ai/airdrop/data-extraction>.

mod attachment;
mod check;
mod convert;
mod finding;
mod hints;
mod locate;
mod metadata;
mod moment;
mod normalize;
mod read;
mod schema;
mod stream;
mod values;
mod workflow;

pub use attachment::Attachment;
pub(crate) use attachment::ITEM_TYPE as ATTACHMENTS;
pub use check::{Batch, Checker};
pub use finding::{Excerpt, FieldPath, Finding, FindingCounts, Findings, Rule, Severity, Tally};
pub use metadata::{EnumValue, Field, Metadata, RecordType, StageDiagram};
pub use moment::TimeFormat;
pub use normalize::{FieldRule, Normalizer, Undeclared};
pub use stream::{Stream, reader};

use chrono::{DateTime, FixedOffset, SecondsFormat};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::model::{BATCH_BYTES_MAX, ID_BYTES_MAX, Micros};

/// A date of the envelope: the moment, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Date {
    at: Micros,
    text: Box<str>,
}

impl Date {
    fn new(at: DateTime<FixedOffset>) -> Self {
        let text = at.to_rfc3339_opts(SecondsFormat::AutoSi, true).into_boxed_str();
        Self { at: Micros::from_time(at.to_utc()), text }
    }

    /// Keeps the text as it is, if it is RFC 3339 with offset.
    fn from_text(text: String) -> Option<Self> {
        let at = DateTime::parse_from_rfc3339(&text).ok()?;
        Some(Self { at: Micros::from_time(at.to_utc()), text: text.into_boxed_str() })
    }
}

/// One record, ready to be a line of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    id: Option<String>,
    created: Option<Date>,
    modified: Option<Date>,
    operation: Option<String>,
    /// A JSON object on one line: the record's `data`, or, without an id, the whole line.
    object: Box<str>,
}

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
    /// `Record` if the data is no JSON object, or the id is empty, or over [`ID_BYTES_MAX`]
    /// bytes, or the record is over [`BATCH_BYTES_MAX`] bytes.
    pub fn new(id: impl Into<String>, data: &impl Serialize) -> Result<Self> {
        let id = checked_id(id.into())?;
        let object = serde_json::to_string(data).map_err(|error| refused(&id, error.to_string()))?;
        Self::with_object(Some(id), object)
    }

    /// A record whose `data` is JSON text already; it is checked, not rewritten.
    ///
    /// # Errors
    /// As [`Record::new`]; also if the text is not JSON.
    pub fn from_raw(id: impl Into<String>, data: &str) -> Result<Self> {
        let id = checked_id(id.into())?;
        let object = checked_json(&id, data)?;
        Self::with_object(Some(id), object)
    }

    /// A line that is no id-and-data record: the whole JSON object is the line.
    ///
    /// # Errors
    /// As [`Record::new`].
    pub fn flat(line: &impl Serialize) -> Result<Self> {
        let object = serde_json::to_string(line).map_err(|error| refused("(flat)", error.to_string()))?;
        Self::with_object(None, object)
    }

    /// As [`Record::flat`], from JSON text, which is checked, not rewritten.
    ///
    /// # Errors
    /// As [`Record::new`]; also if the text is not JSON.
    pub fn flat_raw(line: &str) -> Result<Self> {
        let object = checked_json("(flat)", line)?;
        Self::with_object(None, object)
    }

    /// Sets when the source says that it was created. The offset is kept as given.
    #[must_use]
    pub fn created(mut self, at: impl Into<DateTime<FixedOffset>>) -> Self {
        self.created = Some(Date::new(at.into()));
        self
    }

    /// Sets when the source says that it was last modified. The offset is kept as given.
    #[must_use]
    pub fn modified(mut self, at: impl Into<DateTime<FixedOffset>>) -> Self {
        self.modified = Some(Date::new(at.into()));
        self
    }

    /// As [`Record::created`], in the source's own words: RFC 3339 with offset and seconds, kept to the last digit.
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
    /// `Record` if the text is no such moment.
    pub fn created_text(mut self, text: &str) -> Result<Self> {
        self.created = Some(self.date("created_date", text)?);
        Ok(self)
    }

    /// As [`Record::modified`], in the source's own words: see [`Record::created_text`].
    ///
    /// # Errors
    /// `Record` if the text is no such moment.
    pub fn modified_text(mut self, text: &str) -> Result<Self> {
        self.modified = Some(self.date("modified_date", text)?);
        Ok(self)
    }

    fn date(&self, field: &str, text: &str) -> Result<Date> {
        let date = if moment::is_timestamp(text) { Date::from_text(text.to_owned()) } else { None };
        date.ok_or_else(|| {
            let found: String = text.chars().take(40).collect();
            let reason = format!("{field} is {found:?}, expected RFC 3339 with offset: 2020-12-31T23:59:59Z");
            refused(self.id.as_deref().unwrap_or("(flat)"), reason)
        })
    }

    /// Sets what happened to it: `created`, `updated`, `deleted`.
    #[must_use]
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Sets the dates as they were written; what is no RFC 3339 with offset is left out.
    fn with_dates(mut self, created: Option<String>, modified: Option<String>) -> Self {
        self.created = created.and_then(Date::from_text);
        self.modified = modified.and_then(Date::from_text);
        self
    }

    fn with_operation(mut self, operation: Option<String>) -> Self {
        self.operation = operation;
        self
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
        let mut line = Vec::with_capacity(self.object.len() + 160);
        self.write_line(&mut line);
        // Every part is text.
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Appends the line, without the newline.
    pub(crate) fn write_line(&self, out: &mut Vec<u8>) {
        let Some(id) = &self.id else {
            out.extend_from_slice(self.object.as_bytes());
            return;
        };
        out.extend_from_slice(b"{\"id\":");
        write_string(out, id);
        for (key, date) in [("created_date", &self.created), ("modified_date", &self.modified)] {
            if let Some(date) = date {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(b"\":\"");
                out.extend_from_slice(date.text.as_bytes());
                out.push(b'"');
            }
        }
        if let Some(operation) = &self.operation {
            out.extend_from_slice(b",\"operation\":");
            write_string(out, operation);
        }
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(self.object.as_bytes());
        out.push(b'}');
    }

    fn with_object(id: Option<String>, object: String) -> Result<Self> {
        let name = id.as_deref().unwrap_or("(flat)");
        if !object.starts_with('{') {
            let found: String = object.chars().take(40).collect();
            return Err(refused(name, format!("expected a JSON object, found {found}")));
        }
        if object.len() as u64 > BATCH_BYTES_MAX {
            return Err(refused(
                name,
                format!("it is {} bytes, over the limit of {BATCH_BYTES_MAX}", object.len()),
            ));
        }
        Ok(Self { id, created: None, modified: None, operation: None, object: object.into_boxed_str() })
    }
}

fn refused(id: &str, reason: String) -> Error {
    Error::Record { id: id.chars().take(80).collect(), reason }
}

fn checked_id(id: String) -> Result<String> {
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        let reason = format!("an id has 1 to {ID_BYTES_MAX} bytes, this one {}", id.len());
        return Err(refused(&id, reason));
    }
    Ok(id)
}

/// Checks JSON text; what stands on several lines is put on one (a newline cannot be inside a JSON string).
fn checked_json(id: &str, text: &str) -> Result<String> {
    let value: &RawValue = serde_json::from_str(text).map_err(|error| refused(id, error.to_string()))?;
    let text = value.get();
    Ok(if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ") } else { text.to_owned() })
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    // A string always serialises, and a vector takes every write.
    let written = serde_json::to_writer(&mut *out, text);
    debug_assert!(written.is_ok());
}

/// What a text that is not JSON lacks, and where; of a text that begins on `first_line`.
fn not_json(text: &[u8], error: &serde_json::Error, first_line: u64) -> Finding {
    let mut finding = Finding::new(Severity::Error, Rule::Json, FieldPath::default(), String::new());
    let line_start = match error.line().checked_sub(2) {
        None => 0,
        Some(before) => {
            let newline = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(before);
            newline.map_or(0, |(position, _)| position + 1)
        }
    };
    // serde_json counts bytes from 1, and stands behind what it stumbled over.
    let start = (line_start + error.column().saturating_sub(1)).min(text.len());
    if text.trim_ascii().is_empty() {
        "the text is empty".clone_into(&mut finding.message);
        finding.expected = Some("expected a JSON object".to_owned());
        finding.line = Some(first_line);
        return finding;
    }
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    let rest = text.get(start..).unwrap_or_default();
    let before = text.get(..start).unwrap_or_default().trim_ascii_end();
    let expected = if error.is_eof() {
        "the text ends too early: a quote, a } or a ] is missing"
    } else if std::str::from_utf8(text).is_err() {
        "the text is not UTF-8: write it in that encoding"
    } else if said.starts_with("recursion limit") {
        "it is nested too deep: 128 levels are the most"
    } else if said.starts_with("control character") {
        "close the string on its line, and write newlines and tabs in it as \\n and \\t"
    } else if text.starts_with(b"\xef\xbb\xbf") {
        "the text begins with a byte order mark: write UTF-8 without it"
    } else if rest.starts_with(b"'") {
        "strings and keys stand in double quotes"
    } else if [&b"NaN"[..], b"Infinity", b"-Infinity", b"undefined", b"None"]
        .iter()
        .any(|name| rest.starts_with(name))
    {
        "JSON has no such value: write null"
    } else if rest.starts_with(b"True") || rest.starts_with(b"False") {
        "write true or false, in lower case"
    } else if said.starts_with("trailing comma")
        || (before.ends_with(b",") && rest.trim_ascii_start().starts_with(b"}"))
    {
        "remove the comma before the bracket"
    } else if rest.starts_with(b"//") || rest.starts_with(b"/*") || rest.starts_with(b"#") {
        "JSON has no comments: remove it"
    } else if rest.starts_with(b",") && !before.is_empty() {
        "records stand one after the other, without commas between"
    } else if said.starts_with("key must be a string") {
        "keys stand in double quotes"
    } else if said.starts_with("expected `,`") {
        "put a comma between the two, or close what is open before"
    } else if said.starts_with("trailing characters") {
        "remove what stands behind the document"
    } else {
        "mend it there"
    };
    finding.message = format!("the text is not JSON: {said}");
    finding.expected = Some(expected.to_owned());
    finding.line = Some(first_line + (error.line().max(1) - 1) as u64);
    let lossy = String::from_utf8_lossy(text);
    // Up to where it is UTF-8, the lossy text is the text.
    let start = std::str::from_utf8(text).map_or_else(|error| error.valid_up_to(), |_| start);
    if lossy.is_char_boundary(start) {
        let end =
            lossy.get(start..).and_then(|rest| rest.chars().next()).map_or(start, |c| start + c.len_utf8());
        finding.excerpt = Some(Excerpt::of(&lossy, start..end));
    }
    finding
}
