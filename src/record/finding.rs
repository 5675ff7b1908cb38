//! What a check found: where it stands, what is wrong there, and what would be right.
//!
//! A finding is meant to be enough by itself to mend the document: it quotes the value, names the declaration that
//! it breaks, and offers the nearest name where one was misspelt. Values are quoted cut and escaped, so that a finding
//! can be shown on a terminal and put into a log as it is.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::{Deref, Range};

use serde::{Serialize, Serializer};
use serde_json::Value;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Probably not what was meant; the platform takes it.
    Warning,
    /// Against the rules.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident = $name:literal;)*) => {
        /// The rule that was broken: what findings are counted by.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $rule,)*
        }

        impl Rule {
            /// Its name in JSON.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Rule::$rule => $name,)*
                }
            }
        }
    };
}

rules! {
    /// The text is not JSON, or not UTF-8.
    Json = "json";
    /// A key stands twice in one object: JSON keeps only one of them.
    DuplicateKey = "duplicate_key";
    /// Over a limit of this crate.
    Limit = "limit";

    /// Metadata: a value of the wrong JSON type, or one that must be there and is not.
    Shape = "shape";
    /// Metadata: a key that means nothing there.
    UnknownKey = "unknown_key";
    /// Metadata: a schema version other than the one known.
    SchemaVersion = "schema_version";
    /// Metadata: a record type whose key cannot be an item type, or is not declared.
    RecordType = "record_type";
    /// Metadata: a field type that does not exist, or settings of another type.
    FieldType = "field_type";
    /// Metadata: a field that every record has anyway is declared.
    ReservedField = "reserved_field";
    /// Metadata: a reference to what is not declared.
    Reference = "reference";
    /// Metadata: a category that is not declared.
    Category = "category";
    /// Metadata: a struct type that is not declared, or cannot have a value.
    Struct = "struct";
    /// Metadata: an enum without values, or with one of them twice.
    EnumValues = "enum_values";
    /// Metadata: a stage diagram that does not match its controlling enum, or itself.
    StageDiagram = "stage_diagram";
    /// Metadata: link names for what is no enum value.
    LinkNaming = "link_naming";
    /// Metadata: a condition on or for what is not declared.
    Condition = "condition";
    /// A number, a length or a count out of bounds; in metadata, bounds that nothing satisfies.
    Bounds = "bounds";
    /// Metadata: a default that the field itself could not hold.
    DefaultValue = "default_value";

    /// A record is not `id`, dates and `data`.
    Envelope = "envelope";
    /// A record's id is missing, or cannot be one.
    Id = "id";
    /// A record's id was there before, in the same batch.
    DuplicateId = "duplicate_id";
    /// A required field is absent or `null`.
    Required = "required";
    /// A value of the wrong type.
    Type = "type";
    /// A string that is no key of its enum.
    EnumValue = "enum_value";
    /// A timestamp that is not RFC 3339 with offset.
    Timestamp = "timestamp";
    /// A date that is not `YYYY-MM-DD`.
    Date = "date";
    /// A reference, a typed reference, a mention or a permission that is not in form.
    ReferenceForm = "reference_form";
    /// A `ref_type` that the field may not refer to.
    RefType = "ref_type";
    /// One value where a collection is declared, or the other way round.
    Collection = "collection";
    /// A field that the metadata does not declare.
    Undeclared = "undeclared";
    /// A value that cannot be converted without guessing.
    Conversion = "conversion";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing found, in metadata or in a record.
///
/// As JSON it is one object with `"kind":"finding"`; `line`, `record`, `expected` and `excerpt` are left out where
/// they are not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename = "finding")]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The rule that was broken.
    pub rule: Rule,
    /// Where it stands in its document; empty for the document as a whole.
    pub path: FieldPath,
    /// The line of the input, from 1, where the text is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The id of the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The text around it, where the text is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<Excerpt>,
}

impl Finding {
    /// Whether it is an error, not only a warning.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    pub(super) fn new(severity: Severity, rule: Rule, path: FieldPath, message: String) -> Self {
        Self { severity, rule, path, line: None, record: None, message, expected: None, excerpt: None }
    }

    pub(super) fn expecting(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Finds it in the text of the document: the line, counted from `first_line`, and an excerpt.
    fn locate(&mut self, text: &str, first_line: u64) {
        let about_a_key = matches!(
            self.rule,
            Rule::UnknownKey | Rule::Undeclared | Rule::ReservedField | Rule::DuplicateKey
        );
        let range = super::locate::range_of(text, &self.path, about_a_key);
        let before = text.get(..range.start).unwrap_or_default();
        self.line = Some(first_line + before.bytes().filter(|&b| b == b'\n').count() as u64);
        self.excerpt = Some(Excerpt::of(text, range));
    }
}

impl fmt::Display for Finding {
    /// One line, for people: severity, place, what is wrong; what would be right. The excerpt is not in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity)?;
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if let Some(record) = &self.record {
            write!(f, "record {}: ", quoted(record))?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.expected {
            Some(expected) => write!(f, "; {expected}"),
            None => Ok(()),
        }
    }
}

/// Everything that one check found, as an error: a slice of findings, in the order of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        Self(findings)
    }

    pub(super) fn one(finding: Finding) -> Self {
        Self(vec![finding])
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(Finding::is_error)
    }
}

impl Deref for Findings {
    type Target = [Finding];
    fn deref(&self) -> &[Finding] {
        &self.0
    }
}

impl IntoIterator for Findings {
    type Item = Finding;
    type IntoIter = std::vec::IntoIter<Finding>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Findings {
    type Item = &'a Finding;
    type IntoIter = std::slice::Iter<'a, Finding>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Findings {
    /// One finding a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Findings {}

/// How many findings there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FindingCounts {
    /// Those against the rules.
    pub errors: u64,
    /// Those that the platform takes all the same.
    pub warnings: u64,
}

impl FindingCounts {
    pub(crate) fn new(errors: u64, warnings: u64) -> Self {
        Self { errors, warnings }
    }
}

/// Counts findings, and keeps the first few of each kind: a mistake of a connector's is in every record.
///
/// Two findings are of one kind if they break the same rule with the same severity at the same place, whatever the
/// position in an array.
///
/// ```
/// use highwater::record::{Checker, Metadata, Field, RecordType, Tally};
/// let metadata = Metadata::new().record_type("issues", RecordType::new().field("size", Field::int()));
/// let checker = Checker::new(&metadata, "issues")?;
/// let mut tally = Tally::keeping(2);
/// for n in 0..1_000 {
///     for finding in checker.check_line(&format!(r#"{{"id":"{n}","data":{{"size":"big"}}}}"#)) {
///         tally.add(finding);
///     }
/// }
/// assert_eq!((tally.errors(), tally.kept().count(), tally.dropped()), (1_000, 2, 998));
/// # Ok::<(), highwater::record::Findings>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Tally {
    keep: u64,
    kinds: BTreeMap<(Severity, Rule, String), Kind>,
    errors: u64,
    warnings: u64,
}

#[derive(Debug, Clone, Default)]
struct Kind {
    count: u64,
    kept: Vec<Finding>,
}

/// Kinds that a [`Tally`] tells apart; what is beyond is counted under the rule alone.
const KINDS_MAX: usize = 1_000;

impl Tally {
    /// Keeps the first `keep` findings of each kind.
    pub fn keeping(keep: u64) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Counts a finding. Returns it again if it is one of the first of its kind, which are also kept.
    pub fn add(&mut self, finding: Finding) -> Option<&Finding> {
        match finding.severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        let mut key = (finding.severity, finding.rule, finding.path.without_positions());
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&key) {
            key.2.clear();
        }
        let kind = self.kinds.entry(key).or_default();
        kind.count += 1;
        if kind.count > self.keep {
            return None;
        }
        kind.kept.push(finding);
        kind.kept.last()
    }

    /// Errors so far.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Warnings so far.
    pub fn warnings(&self) -> u64 {
        self.warnings
    }

    /// The findings kept, by kind.
    pub fn kept(&self) -> impl Iterator<Item = &Finding> {
        self.kinds.values().flat_map(|kind| &kind.kept)
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Findings that were counted only.
    pub fn dropped(&self) -> u64 {
        self.kinds.values().map(|kind| kind.count - kind.kept.len() as u64).sum()
    }

    /// Every kind: severity, rule, place without positions, how many there were.
    pub fn counts(&self) -> impl Iterator<Item = (Severity, Rule, &str, u64)> {
        self.kinds().map(|(severity, rule, path, count, _)| (severity, rule, path, count))
    }

    /// As [`Tally::counts`], with the findings of each kind that are kept.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (Severity, Rule, &str, u64, &[Finding])> {
        self.kinds.iter().map(|((severity, rule, path), kind)| {
            (*severity, *rule, path.as_str(), kind.count, kind.kept.as_slice())
        })
    }
}

/// A place in a JSON document: `record_types.issue.fields.owner`, `data.tags[2]`, `data["odd key"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Vec<Step>);

/// Bytes that may be looked through to find where the findings of one document stand.
const LOCATE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Finds each finding in the text of the document: of very many in a very long one, only the first.
pub(super) fn locate_all(findings: &mut [Finding], text: &str, first_line: u64) {
    let affordable = (LOCATE_BYTES_MAX / text.len().max(1)).max(10);
    for (index, finding) in findings.iter_mut().enumerate() {
        if index < affordable {
            finding.locate(text, first_line);
        } else {
            finding.line = Some(first_line);
        }
    }
}

/// One step into a JSON document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Step {
    Key(String),
    Position(usize),
}

impl FieldPath {
    /// Whether it is the document as a whole.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether it is the place `outer`, or inside of it.
    pub(super) fn is_within(&self, outer: &FieldPath) -> bool {
        self.0.starts_with(&outer.0)
    }

    pub(super) fn from_steps(steps: Vec<Step>) -> Self {
        Self(steps)
    }

    /// The path as text with `[]` for each position.
    fn without_positions(&self) -> String {
        let mut text = String::new();
        // A string takes every write.
        let written = write_steps(&mut text, &self.0, false);
        debug_assert!(written.is_ok());
        text
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_steps(f, &self.0, true)
    }
}

impl Serialize for FieldPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn write_steps(out: &mut impl fmt::Write, steps: &[Step], positions: bool) -> fmt::Result {
    for (index, step) in steps.iter().enumerate() {
        match step {
            Step::Position(position) if positions => write!(out, "[{position}]")?,
            Step::Position(_) => out.write_str("[]")?,
            Step::Key(key) if is_plain(key) => {
                if index > 0 {
                    out.write_char('.')?;
                }
                out.write_str(key)?;
            }
            Step::Key(key) => write!(out, "[{}]", quoted(key))?,
        }
    }
    Ok(())
}

fn is_plain(key: &str) -> bool {
    !key.is_empty()
        && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '#' | ':' | '@' | '$'))
}

/// A place while walking a document: a list on the stack, made into a [`FieldPath`] only when something is found.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    up: Option<&'a At<'a>>,
    key: Option<&'a str>,
    position: usize,
}

impl<'a> At<'a> {
    pub(super) const ROOT: At<'static> = At { up: None, key: None, position: 0 };

    pub(super) fn key(&'a self, key: &'a str) -> At<'a> {
        At { up: Some(self), key: Some(key), position: 0 }
    }

    pub(super) fn position(&'a self, position: usize) -> At<'a> {
        At { up: Some(self), key: None, position }
    }

    /// The last step of it, for a message.
    pub(super) fn name(&self) -> String {
        match self.key {
            Some(key) => quoted(key),
            None if self.up.is_some() => format!("element {}", self.position),
            None => "the document".to_owned(),
        }
    }

    pub(super) fn path(&self) -> FieldPath {
        let mut steps = Vec::new();
        let mut at = self;
        while let Some(up) = at.up {
            steps.push(match at.key {
                Some(key) => Step::Key(key.to_owned()),
                None => Step::Position(at.position),
            });
            at = up;
        }
        steps.reverse();
        FieldPath(steps)
    }
}

/// The text around a finding, on one line: what stands before it, the value, and what stands after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The text before the value, cut.
    pub before: String,
    /// The value, cut, and ended at the end of its line.
    pub value: String,
    /// The text after the value, cut.
    pub after: String,
}

impl Excerpt {
    const BEFORE_CHARS: usize = 40;
    const VALUE_CHARS: usize = 60;
    const AFTER_CHARS: usize = 20;

    pub(super) fn of(text: &str, range: Range<usize>) -> Self {
        // Lines may be long: no more is looked at than is shown.
        let before = text.get(..range.start).unwrap_or_default();
        let from = floor_boundary(before, before.len().saturating_sub(8 * Self::BEFORE_CHARS));
        let before = before.get(from..).unwrap_or_default();
        let before = before.rsplit(['\n', '\r']).next().unwrap_or_default().trim_start();
        let rest = text.get(range.start..).unwrap_or_default();
        let to = floor_boundary(rest, 8 * (Self::VALUE_CHARS + Self::AFTER_CHARS));
        let rest = rest.get(..to).unwrap_or_default();
        let rest = rest.split(['\n', '\r']).next().unwrap_or_default().trim_end();
        let (value, after) = rest.split_at_checked(range.len()).unwrap_or((rest, ""));
        let skipped = before.chars().count().saturating_sub(Self::BEFORE_CHARS);
        let before: String = before.chars().skip(skipped).collect();
        let value_cut = cut(value, Self::VALUE_CHARS);
        Self {
            before: if skipped > 0 { format!("...{before}") } else { before },
            after: if value_cut.len() == value.len() { cut(after, Self::AFTER_CHARS) } else { String::new() },
            value: value_cut,
        }
    }
}

/// The last place at or before `at` where a character begins or the text ends.
fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl Serialize for Excerpt {
    /// As one string.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.before, self.value, self.after)
    }
}

/// The first `chars` characters, with three dots if there are more.
fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Characters of a value in a message.
const SHOWN_CHARS: usize = 60;

/// Text in quotes, cut, with everything escaped that could confuse a terminal or a reader.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in cut(text, SHOWN_CHARS).chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unsafe(c) => {
                // A string takes every write.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Control characters, and those that turn the direction of the text around them or are not seen at all.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A JSON value as it stands in a message: what it is, and the value itself where that is short.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", quoted(text)),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Findings of one document that are told one by one.
const FINDINGS_MAX: usize = 1_000;

/// Where findings are put while a document is walked.
#[derive(Debug, Default)]
pub(super) struct Sink {
    findings: Vec<Finding>,
    /// How many there were beyond [`FINDINGS_MAX`], and the worst of them.
    more: u64,
    worst: Option<Severity>,
}

impl Sink {
    pub(super) fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes out what was put in.
    pub(super) fn take(&mut self) -> Vec<Finding> {
        let sink = std::mem::take(self);
        let mut findings = sink.findings;
        if let Some(severity) = sink.worst {
            let message = format!("and {} more findings in this document", sink.more);
            let finding = Finding::new(severity, Rule::Limit, FieldPath::default(), message);
            findings.push(finding.expecting("mend those before first"));
        }
        findings
    }

    pub(super) fn add(&mut self, finding: Finding) {
        if !self.is_full(finding.severity) {
            self.findings.push(finding);
        }
    }

    /// Whether a finding is only counted.
    fn is_full(&mut self, severity: Severity) -> bool {
        let full = self.findings.len() >= FINDINGS_MAX;
        if full {
            self.more += 1;
            self.worst = self.worst.max(Some(severity));
        }
        full
    }

    pub(super) fn error(
        &mut self,
        at: &At<'_>,
        rule: Rule,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.put(Severity::Error, at, rule, message, expected);
    }

    pub(super) fn warning(
        &mut self,
        at: &At<'_>,
        rule: Rule,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.put(Severity::Warning, at, rule, message, expected);
    }

    pub(super) fn put(
        &mut self,
        severity: Severity,
        at: &At<'_>,
        rule: Rule,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        if self.is_full(severity) {
            return;
        }
        let finding = Finding::new(severity, rule, at.path(), message.into());
        let expected = expected.into();
        self.findings.push(if expected.is_empty() { finding } else { finding.expecting(expected) });
    }
}
