//! Checks a record against its record type.
//!
//! The text is walked once, guided by the declarations, and nothing is built from it: checking a correct record costs
//! no more than parsing it, and a fraction of that if its line is as this crate writes it (`clean`). What is checked:
//! the envelope (id, dates, `data`), required fields, types, bounds, enum keys, the form of references and of rich
//! text, collections, struct types, duplicate ids in a batch. Conditions (`conditions` in the metadata) are about
//! entering records, not about extracting them, and are not applied.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::any::{AnyWalk, Loose, Seen, duplicate_key, nothing_but_an_object};
use super::broken::not_json;
use super::clean::{clean_id, is_printable};
use super::expected::TIMESTAMP_EXPECTED;
use super::finding::{Finding, Findings, Rule, Severity};
use super::hints::nearest;
use super::line::Record;
use super::metadata::Metadata;
use super::path::{At, FieldPath, quoted, shown};
use super::schema::{Fields, RecordDecl, Schema};
use super::text::{self, DEPTH_MAX, Flaw, Flawed, Look};
use super::values::{Cx, DataWalk, Walk, check_timestamp};
use crate::model::ID_BYTES_MAX;

/// Checks records of one record type. Cheap to clone; may be used from several threads.
///
/// ```
/// use highwater::record::{Checker, Field, Metadata, RecordType};
/// let metadata = Metadata::new().record_type(
///     "issues",
///     RecordType::new()
///         .field("title", Field::text().required())
///         .field("priority", Field::enumeration(["P-0", "P-1"])),
/// );
/// let checker = Checker::new(&metadata, "issues")?;
/// assert!(checker.check_line(r#"{"id":"7","data":{"title":"A crash","priority":"P-0"}}"#).is_empty());
/// let findings = checker.check_line(r#"{"id":"8","data":{"title":null,"priority":"P1"}}"#);
/// assert_eq!(findings[0].to_string(), r#"error: record "8": data.title: the field is required, but null; every record has a value here: fix the source, or remove is_required from the metadata"#);
/// assert_eq!(findings[1].to_string(), r#"error: record "8": data.priority: "P1" is not a key of the enum; did you mean "P-1"?"#);
/// # Ok::<(), highwater::record::Findings>(())
/// ```
#[derive(Debug, Clone)]
pub struct Checker {
    schema: Arc<Schema>,
    record_type: usize,
    undeclared: Option<Severity>,
    require_dates: bool,
}

impl Checker {
    /// A checker for records of `record_type`. Check the metadata first: a declaration in which [`Metadata::check`]
    /// finds errors accepts everything.
    ///
    /// # Errors
    /// A finding, if the metadata does not declare the record type.
    pub fn new(metadata: &Metadata, record_type: &str) -> Result<Self, Findings> {
        let (schema, record_type) = metadata.schema_of(record_type)?;
        Ok(Self { schema, record_type, undeclared: Some(Severity::Warning), require_dates: false })
    }

    /// Sets the severity of a field that is not declared: a warning by default; `None` for no finding.
    #[must_use]
    pub fn undeclared(mut self, severity: impl Into<Option<Severity>>) -> Self {
        self.undeclared = severity.into();
        self
    }

    /// Sets whether `created_date` and `modified_date` are required. By default they are not.
    #[must_use]
    pub fn require_dates(mut self, required: bool) -> Self {
        self.require_dates = required;
        self
    }

    /// Checks one record, given as a line of an artifact.
    pub fn check_line(&self, line: &(impl AsRef<[u8]> + ?Sized)) -> Vec<Finding> {
        let mut walk = Walk::default();
        self.walk_line(line.as_ref(), &mut walk)
    }

    /// Checks one record.
    pub fn check(&self, record: &Record) -> Vec<Finding> {
        self.check_line(&record.to_line())
    }

    /// A checker for the records of one batch, in which no id may occur twice.
    pub fn batch(&self) -> BatchChecker<'_> {
        BatchChecker { checker: self, walk: Walk::default(), ids: Ids::default(), records: 0 }
    }

    fn walk_line(&self, line: &[u8], walk: &mut Walk) -> Vec<Finding> {
        let mut findings = match self.walk(line, walk) {
            Ok(()) => walk.sink.take(),
            Err(error) => {
                let mut finding = not_json(line, &error, 1);
                finding.line = None;
                vec![finding]
            }
        };
        name_record(&mut findings, &walk.id);
        findings
    }

    /// Walks the text of one record; its findings are in `walk.sink`. An error is about the JSON itself; then the
    /// findings are meaningless.
    pub(super) fn walk(&self, text: &[u8], walk: &mut Walk) -> Result<(), serde_json::Error> {
        walk.sink.clear();
        walk.id.clear();
        walk.seen.clear();
        if is_printable(text) && self.is_clean(text, walk) {
            return Ok(());
        }
        if text::may_be_flawed(text) {
            let found = text::flaws(text, Look::Controls, DEPTH_MAX);
            let is_cut = found.iter().any(|found| found.flaw == Flaw::Surrogate);
            for found in found {
                walk.sink.extend(told(found, text));
            }
            if is_cut {
                let mut mended = text.to_vec();
                text::replace_surrogates(&mut mended);
                return self.walk_whole(&mended, walk);
            }
        }
        self.walk_whole(text, walk)
    }

    /// Whether the walk would find nothing, as far as that is cheap to say. Sets the id.
    fn is_clean(&self, text: &[u8], walk: &mut Walk) -> bool {
        let id =
            self.declared().and_then(|declared| clean_id(&self.schema, declared, self.require_dates, text));
        walk.id.push_str(id.unwrap_or_default());
        id.is_some()
    }

    /// Walks text that is valid UTF-8 except for what the walk finds.
    fn walk_whole(&self, text: &[u8], walk: &mut Walk) -> Result<(), serde_json::Error> {
        // Checking the whole text at once is cheaper than string by string, as `from_slice` does.
        let Ok(text) = std::str::from_utf8(text) else {
            let mut json = serde_json::Deserializer::from_slice(text);
            RecordWalk { checker: self, walk }.deserialize(&mut json)?;
            json.end()?;
            // Strings that no value is built from are skipped as bytes.
            return Err(serde::de::Error::custom("invalid unicode code point"));
        };
        // Printable text was looked at.
        let has_control = || text.bytes().min() < Some(b' ');
        if !text.is_ascii() && !has_control() && self.is_clean(text.as_bytes(), walk) {
            return Ok(());
        }
        let mut json = serde_json::Deserializer::from_str(text);
        RecordWalk { checker: self, walk }.deserialize(&mut json)?;
        json.end()
    }

    fn declared(&self) -> Option<&RecordDecl> {
        self.schema.record_types.get(self.record_type)
    }

    fn fields(&self) -> Option<&Fields> {
        self.declared().map(|declared| &declared.fields)
    }
}

/// The finding for a flaw in the text of a record. `None` if the walk itself refuses it.
fn told(Flawed { flaw, range, path }: Flawed, text: &[u8]) -> Option<Finding> {
    let as_written = || String::from_utf8_lossy(text.get(range).unwrap_or_default()).into_owned();
    match flaw {
        Flaw::Surrogate => {
            let message = format!("unpaired surrogate, a character cut in half: {}", as_written());
            Some(
                Finding::new(Severity::Error, Rule::Surrogate, path, message)
                    .expecting("write whole characters: strict JSON readers refuse the whole text"),
            )
        }
        Flaw::Control(control) => Some(control_character(path, control)),
        Flaw::TooDeep | Flaw::TooLarge => None,
    }
}

fn control_character(path: FieldPath, control: char) -> Finding {
    let message = format!("the control character U+{:04X} is in the text", u32::from(control));
    Finding::new(Severity::Warning, Rule::ControlCharacter, path, message)
        .expecting("remove it: text does not need it, and some databases refuse U+0000")
}

pub(super) fn name_record(findings: &mut [Finding], id: &str) {
    if !id.is_empty() {
        for finding in findings {
            finding.record = Some(id.to_owned());
        }
    }
}

/// Records that go into one artifact, checked one after the other.
///
/// ```
/// # use highwater::record::{Checker, Field, Metadata, RecordType, Rule};
/// # let metadata = Metadata::new().record_type("issues", RecordType::new());
/// let checker = Checker::new(&metadata, "issues")?;
/// let mut batch = checker.batch();
/// assert!(batch.check_line(r#"{"id":"7","data":{}}"#).is_empty());
/// assert!(batch.check_line(r#"{"id":"8","data":{}}"#).is_empty());
/// assert_eq!(batch.check_line(r#"{"id":"7","data":{}}"#)[0].rule, Rule::DuplicateId);
/// # Ok::<(), highwater::record::Findings>(())
/// ```
#[derive(Debug)]
pub struct BatchChecker<'c> {
    checker: &'c Checker,
    walk: Walk,
    ids: Ids,
    records: u64,
}

impl BatchChecker<'_> {
    /// Checks the next record, given as a line of an artifact. Findings count the lines of the batch, from 1.
    pub fn check_line(&mut self, line: &(impl AsRef<[u8]> + ?Sized)) -> Vec<Finding> {
        self.records += 1;
        let mut findings = self.checker.walk_line(line.as_ref(), &mut self.walk);
        findings.extend(self.ids.add(&self.walk.id, self.records));
        for finding in &mut findings {
            finding.line = Some(self.records);
        }
        findings
    }
}

/// The ids that are remembered at least; a stream may have any number.
const IDS_REMEMBERED: usize = 1 << 16;

/// The ids of a batch, as hashes of 64 bits, with their lines: at least the last [`IDS_REMEMBERED`], at most twice as
/// many.
#[derive(Debug, Default)]
pub(super) struct Ids {
    hasher: RandomState,
    recent: HashMap<u64, u64, BuildHasherDefault<Hashed>>,
    older: HashMap<u64, u64, BuildHasherDefault<Hashed>>,
}

/// The hash of a key that is one already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Not called: a key is a `u64`.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

impl Ids {
    pub(super) fn add(&mut self, id: &str, line: u64) -> Option<Finding> {
        if id.is_empty() {
            return None;
        }
        let hash = self.hasher.hash_one(id);
        let first = self.older.get(&hash).copied().or_else(|| self.recent.get(&hash).copied());
        if let Some(first) = first {
            let message = format!("the id {} is already on line {first}", quoted(id));
            let mut finding =
                Finding::new(Severity::Error, Rule::DuplicateId, At::ROOT.key("id").path(), message)
                    .expecting("each record of a batch has an id of its own; keep the newest of the two");
            finding.record = Some(id.to_owned());
            return Some(finding);
        }
        if self.recent.len() >= IDS_REMEMBERED {
            std::mem::swap(&mut self.recent, &mut self.older);
            self.recent.clear();
        }
        self.recent.insert(hash, line);
        None
    }
}

/// Walks a whole record.
struct RecordWalk<'w> {
    checker: &'w Checker,
    walk: &'w mut Walk,
}

impl RecordWalk<'_> {
    fn other(self, found: &str) {
        let expected = "a record is an object: {\"id\": \"...\", \"data\": {...}}, one on each line";
        self.walk.sink.error(&At::ROOT, Rule::Envelope, format!("the record is {found}"), expected);
    }

    fn id(&mut self, id: &Loose<'_>) {
        let at = At::ROOT.key("id");
        let sink = &mut self.walk.sink;
        self.walk.id.clear();
        match id {
            Loose::Text(id) if id.is_empty() => {
                sink.error(&at, Rule::Id, "the id is empty", "expected the record's id in the source");
            }
            Loose::Text(id) if id.len() > ID_BYTES_MAX => {
                let message = format!("the id has {} bytes", id.len());
                sink.error(&at, Rule::Id, message, format!("expected at most {ID_BYTES_MAX}"));
            }
            Loose::Text(id) => {
                let line_break = id.chars().find(|c| matches!(c, '\n' | '\r' | '\t'));
                if let Some(control) = line_break {
                    sink.add(control_character(at.path(), control));
                }
                self.walk.id.push_str(id);
            }
            Loose::Other(Value::Number(number)) => {
                let expected = format!("ids are strings: write \"{number}\"");
                sink.error(&at, Rule::Id, format!("the id is the number {number}"), expected);
            }
            other => sink.error(&at, Rule::Id, format!("the id is {}", other.shown()), "expected a string"),
        }
    }

    fn date(&mut self, key: &str, date: &Loose<'_>) {
        let at = At::ROOT.key(key);
        match date {
            Loose::Null => {}
            Loose::Text(text) => check_timestamp(&mut self.walk.sink, &at, text),
            Loose::Other(value) => {
                let message = format!("a timestamp is a string, but this is {}", shown(value));
                self.walk.sink.error(&at, Rule::Timestamp, message, TIMESTAMP_EXPECTED);
            }
        }
    }

    fn operation(&mut self, operation: &Loose<'_>) {
        if let Loose::Other(value) = operation {
            let message = format!("the operation is {}", shown(value));
            let expected = "expected a string such as \"created\", or leave it out";
            self.walk.sink.error(&At::ROOT.key("operation"), Rule::Envelope, message, expected);
        }
    }

    /// Checks for keys beside `data` that do not belong there.
    fn strays(&mut self, strays: &[String], has_id: bool, has_data: bool) {
        let fields = self.checker.fields();
        let is_field = |key: &String| fields.is_some_and(|fields| fields.find(key).is_some());
        if !has_data {
            let message = match strays.iter().find(|key| is_field(key)).or(strays.first()) {
                Some(key) => {
                    format!("the record has no \"data\", and has {} at the top instead", quoted(key))
                }
                None => "the record has no \"data\"".to_owned(),
            };
            let expected = match strays {
                [only] if !has_id => {
                    format!(
                        "if {} holds the records, write each of them on a line of its own instead",
                        quoted(only)
                    )
                }
                [only] if !is_field(only) => {
                    format!("if {} holds the fields, call it \"data\"", quoted(only))
                }
                _ => "put everything but id, created_date, modified_date and operation under \"data\": {...}"
                    .to_owned(),
            };
            self.walk.sink.error(&At::ROOT, Rule::Envelope, message, expected);
            return;
        }
        for key in strays {
            let at = At::ROOT.key(key);
            if is_field(key) {
                let message = format!("the field {} is beside \"data\"", quoted(key));
                self.walk.sink.error(&at, Rule::Envelope, message, "move it under \"data\"");
            } else {
                const KNOWN: [&str; 5] = ["id", "created_date", "modified_date", "operation", "data"];
                if self.walk.sink.is_full(Severity::Warning) {
                    continue;
                }
                let message =
                    format!("the key {} has no meaning beside \"data\", and is ignored", quoted(key));
                let expected = match nearest(key, KNOWN) {
                    Some(near) => format!("did you mean {}?", quoted(near)),
                    None => "known here: id, created_date, modified_date, operation, data".to_owned(),
                };
                self.walk.sink.warning(&at, Rule::Envelope, message, expected);
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for RecordWalk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RecordWalk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record")
    }

    nothing_but_an_object!();

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let checker = self.checker;
        let mut strays: Vec<String> = Vec::new();
        let mut seen_strays = Seen::default();
        let mut given = [false; 5];
        while let Some(key) = map.next_key_seed(EnvelopeKey)? {
            let position = match &key {
                Envelope::Id => 0,
                Envelope::Created => 1,
                Envelope::Modified => 2,
                Envelope::Operation => 3,
                Envelope::Data => 4,
                Envelope::Stray(_) => 5,
            };
            if let Some(given) = given.get_mut(position)
                && std::mem::replace(given, true)
            {
                duplicate_key(&mut self.walk.sink, &At::ROOT.key(key.as_str()));
            }
            match key {
                Envelope::Id => self.id(&map.next_value()?),
                Envelope::Created => self.date("created_date", &map.next_value()?),
                Envelope::Modified => self.date("modified_date", &map.next_value()?),
                Envelope::Operation => self.operation(&map.next_value()?),
                Envelope::Data => {
                    let at = At::ROOT.key("data");
                    let Some(fields) = checker.fields() else {
                        map.next_value_seed(AnyWalk { sink: &mut self.walk.sink, at: &at, keep: false })?;
                        continue;
                    };
                    let mut cx =
                        Cx { schema: &checker.schema, undeclared: checker.undeclared, walk: self.walk };
                    map.next_value_seed(DataWalk { cx: &mut cx, fields, at: &at })?;
                }
                Envelope::Stray(key) => {
                    let at = At::ROOT.key(&key);
                    let twice = seen_strays.twice(&key);
                    if twice {
                        duplicate_key(&mut self.walk.sink, &at);
                    }
                    map.next_value_seed(AnyWalk { sink: &mut self.walk.sink, at: &at, keep: false })?;
                    if !twice {
                        strays.push(key);
                    }
                }
            }
        }
        let [has_id, has_created, has_modified, _, has_data] = given;
        let no_identifier = checker.declared().is_some_and(|declared| declared.no_identifier);
        let is_something_else = !has_id && !has_data && strays.len() == 1;
        if !has_id && !no_identifier && !is_something_else {
            let expected = match nearest("id", strays.iter().map(String::as_str)) {
                Some(near) => format!("did you mean \"id\" instead of {}?", quoted(near)),
                None => "add \"id\": the record's id in the source, as a string".to_owned(),
            };
            self.walk.sink.error(&At::ROOT, Rule::Id, "the record has no id", expected);
        }
        if checker.require_dates {
            for (has, key) in [(has_created, "created_date"), (has_modified, "modified_date")] {
                if !has {
                    self.walk.sink.error(
                        &At::ROOT,
                        Rule::Required,
                        format!("the record has no {key}"),
                        TIMESTAMP_EXPECTED,
                    );
                }
            }
        }
        if !strays.is_empty() || !has_data {
            self.strays(&strays, has_id, has_data);
        }
        Ok(())
    }
}

enum Envelope {
    Id,
    Created,
    Modified,
    Operation,
    Data,
    Stray(String),
}

impl Envelope {
    fn as_str(&self) -> &str {
        match self {
            Envelope::Id => "id",
            Envelope::Created => "created_date",
            Envelope::Modified => "modified_date",
            Envelope::Operation => "operation",
            Envelope::Data => "data",
            Envelope::Stray(key) => key,
        }
    }
}

struct EnvelopeKey;

impl<'de> DeserializeSeed<'de> for EnvelopeKey {
    type Value = Envelope;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for EnvelopeKey {
    type Value = Envelope;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(match key {
            "id" => Envelope::Id,
            "created_date" => Envelope::Created,
            "modified_date" => Envelope::Modified,
            "operation" => Envelope::Operation,
            "data" => Envelope::Data,
            other => Envelope::Stray(other.to_owned()),
        })
    }
}
