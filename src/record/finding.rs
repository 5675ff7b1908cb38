//! What a check found: where, what is wrong, and what to do.
//!
//! A finding contains all that is needed to correct the document: it quotes the value, names the declaration that it
//! breaks, and suggests the nearest name if one was misspelt. Quoted values are cut and escaped, so a finding can be
//! printed on a terminal or logged as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::Serialize;

pub use super::path::Excerpt;
use super::path::{At, FieldPath, quoted};

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Probably a mistake, but the platform accepts it.
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
    /// A key occurs twice in one object: readers use the last one.
    DuplicateKey = "duplicate_key";
    /// An unpaired surrogate, half of a character, which strict readers refuse.
    Surrogate = "surrogate";
    /// A control character in text, in a key or in an id.
    ControlCharacter = "control_character";
    /// Over a limit of this crate.
    Limit = "limit";

    /// Metadata: a value of the wrong JSON type, or a required one that is missing.
    Shape = "shape";
    /// Metadata: a key that has no meaning there.
    UnknownKey = "unknown_key";
    /// Metadata: a schema version other than the one known.
    SchemaVersion = "schema_version";
    /// Metadata: a record type whose key cannot be an item type, or is not declared.
    RecordType = "record_type";
    /// Metadata: a field type that does not exist, or settings of another type.
    FieldType = "field_type";
    /// Metadata: a date is declared that every record has anyway.
    ReservedField = "reserved_field";
    /// Metadata: a reference to something undeclared.
    Reference = "reference";
    /// Metadata: a category that is not declared.
    Category = "category";
    /// Metadata: a struct type that is not declared, or cannot have a value.
    Struct = "struct";
    /// Metadata: an enum without values, or with one of them twice.
    EnumValues = "enum_values";
    /// Metadata: a stage diagram that does not match its controlling enum, or itself.
    StageDiagram = "stage_diagram";
    /// Metadata: link names for something that is not an enum value.
    LinkNaming = "link_naming";
    /// Metadata: a condition on or for something undeclared.
    Condition = "condition";
    /// A number, a length or a count out of bounds; in metadata, bounds that no value satisfies.
    Bounds = "bounds";
    /// Metadata: a default that the field itself could not hold.
    DefaultValue = "default_value";

    /// A record is not `id`, dates and `data`.
    Envelope = "envelope";
    /// A record's id is missing, or cannot be one.
    Id = "id";
    /// A record's id occurred before in the same batch.
    DuplicateId = "duplicate_id";
    /// A required field is absent or `null`.
    Required = "required";
    /// A value of the wrong type.
    Type = "type";
    /// A string that is not a key of its enum.
    EnumValue = "enum_value";
    /// A timestamp that is not RFC 3339 with offset.
    Timestamp = "timestamp";
    /// A date that is not `YYYY-MM-DD`.
    Date = "date";
    /// A malformed reference, typed reference, mention or permission.
    ReferenceForm = "reference_form";
    /// A `ref_type` that the field may not refer to.
    RefType = "ref_type";
    /// A single value for a declared collection, or a collection for a single value.
    Collection = "collection";
    /// A field that the metadata does not declare.
    Undeclared = "undeclared";
    /// A value that cannot be converted without guessing.
    Conversion = "conversion";
    /// A placeholder for "none" that became `null`.
    StandIn = "stand_in";
    /// An int that some readers change: over 64 bits with a sign, or one that JavaScript rounds.
    Precision = "precision";
}

impl Rule {
    /// Whether warnings by this rule count once per field: a field that is not declared is in most records.
    fn is_once_a_field(self) -> bool {
        self == Rule::Undeclared
    }

    /// The number of warnings that some findings of one kind add to a sum, by the rule's name.
    pub(crate) fn warnings(rule: &str, findings: u64) -> u64 {
        if rule == Rule::Undeclared.as_str() { findings.min(1) } else { findings }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing found, in metadata or in a record.
///
/// As JSON it is one object with `"kind":"finding"`. `line`, `record`, `expected` and `excerpt` are left out if
/// unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename = "finding")]
#[non_exhaustive]
pub struct Finding {
    /// How serious a finding is.
    pub severity: Severity,
    /// The rule that was broken.
    pub rule: Rule,
    /// Its place in the document; empty for the document as a whole.
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

    /// The kind that it is counted under, for people: the rule, and the place without positions.
    pub(crate) fn kind_text(&self) -> String {
        let place = self.path.without_positions();
        if place.is_empty() { self.rule.to_string() } else { format!("{} at {place}", self.rule) }
    }

    /// The text of the finding, without its severity and the id of its record.
    pub(crate) fn without_record(&self) -> String {
        let shown = Self { record: None, line: None, ..self.clone() }.to_string();
        let severity = format!("{}: ", self.severity);
        shown.strip_prefix(&severity).map_or_else(|| shown.clone(), str::to_owned)
    }

    pub(super) fn new(severity: Severity, rule: Rule, path: FieldPath, message: String) -> Self {
        Self { severity, rule, path, line: None, record: None, message, expected: None, excerpt: None }
    }

    pub(super) fn expecting(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
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
    /// Errors: against the rules.
    pub errors: u64,
    /// Warnings: the platform accepts them. A field that is not declared counts once, however many records have it.
    pub warnings: u64,
}

impl FindingCounts {
    pub(crate) fn new(errors: u64, warnings: u64) -> Self {
        Self { errors, warnings }
    }
}

/// Counts findings, and keeps the first few of each kind: a connector's mistake is usually in every record.
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

/// Kinds that a [`Tally`] counts separately; further ones are counted under the rule alone.
const KINDS_MAX: usize = 1_000;

impl Tally {
    /// Keeps the first `keep` findings of each kind.
    pub fn keeping(keep: u64) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Counts a finding. Keeps and returns it if it is one of the first of its kind.
    pub fn add(&mut self, finding: Finding) -> Option<&Finding> {
        let mut key = (finding.severity, finding.rule, finding.path.without_positions());
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&key) {
            key.2.clear();
        }
        let kind = self.kinds.entry(key).or_default();
        kind.count += 1;
        match finding.severity {
            Severity::Error => self.errors += 1,
            Severity::Warning if kind.count > 1 && finding.rule.is_once_a_field() => {}
            Severity::Warning => self.warnings += 1,
        }
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

    /// Warnings so far. A field that is not declared counts once, however many records have it; [`Tally::counts`] has
    /// how many do.
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

    /// [`Tally::counts`], with the kept findings of each kind.
    pub fn kinds(&self) -> impl Iterator<Item = (Severity, Rule, &str, u64, &[Finding])> {
        self.kinds.iter().map(|((severity, rule, path), kind)| {
            (*severity, *rule, path.as_str(), kind.count, kind.kept.as_slice())
        })
    }
}

/// Findings of one document that are reported one by one.
const FINDINGS_MAX: usize = 1_000;

/// Collects the findings while a document is walked.
#[derive(Debug, Default)]
pub(super) struct Sink {
    findings: Vec<Finding>,
    /// The number of findings beyond [`FINDINGS_MAX`], and the worst severity among them.
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

    /// Takes the findings out.
    pub(super) fn take(&mut self) -> Vec<Finding> {
        let sink = std::mem::take(self);
        let mut findings = sink.findings;
        if let Some(severity) = sink.worst {
            let message = format!("and {} more findings in this document", sink.more);
            let finding = Finding::new(severity, Rule::Limit, FieldPath::default(), message);
            findings.push(finding.expecting("fix the earlier ones first"));
        }
        findings
    }

    /// Adds findings.
    pub(super) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    pub(super) fn add(&mut self, finding: Finding) {
        if !self.is_full(finding.severity) {
            self.findings.push(finding);
        }
    }

    /// Drops the findings at a place, except those that no reader accepts: another value of the key follows.
    pub(super) fn forget(&mut self, at: &At<'_>) {
        if self.findings.is_empty() || self.findings.len() >= FINDINGS_MAX {
            return;
        }
        let path = at.path();
        self.findings.retain(|finding| {
            matches!(finding.rule, Rule::Surrogate | Rule::ControlCharacter) || !finding.path.is_within(&path)
        });
    }

    /// Whether a finding is only counted.
    pub(super) fn is_full(&mut self, severity: Severity) -> bool {
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
