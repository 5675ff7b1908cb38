//! Converts objects of a source into records, as the metadata declares them: code that connectors otherwise write by
//! hand.
//!
//! Conversions lose nothing and guess nothing: numbers from strings are exact, times keep their digits and offset,
//! and an ambiguous value is a finding that names the rule which would decide it. The result is checked like any
//! record, so the checker accepts what the normaliser accepts.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::broken::not_json;
use super::check::{Checker, name_record};
use super::convert_object::{Converter, became_null, is_said_none, is_usual_none, undeclared};
use super::convert_value::{not, plain_id, text_of};
use super::field_rules::{FieldRule, Plan, Undeclared, apply};
use super::finding::{Finding, Findings, Rule, Severity, Sink};
use super::hints::meant_or_one_of;
use super::line::{Record, surrogates_replaced};
use super::metadata::Metadata;
use super::moment;
use super::path::{At, FieldPath, quoted, shown};
use super::schema::{FIELD_TYPES, FieldDecl, Fields, RESERVED};
use super::text::{self, DEPTH_MAX, Flaw, Look};

/// Converts objects of a source into records.
///
/// ```
/// use highwater::record::{Field, FieldRule, Metadata, Normalizer, RecordType};
/// use serde_json::json;
/// let metadata = Metadata::new().record_type("users", RecordType::new()).record_type(
///     "issues",
///     RecordType::new()
///         .field("title", Field::text().required())
///         .field("owner", Field::reference(["#record:users"]))
///         .field("labels", Field::enumeration(["bug", "idea"]).collection())
///         .field("estimate", Field::int())
///         .field("closed_at", Field::timestamp()),
/// );
/// let normalizer = Normalizer::from_metadata(&metadata, "issues")?
///     .rule("id", FieldRule::of("key"))
///     .rule("created_date", FieldRule::of("created_ms"))
///     .rule("owner", FieldRule::of("assignee"));
/// let record = normalizer.normalize(&json!({
///     "key": 17, "created_ms": 1577836800000u64, "title": "A crash", "assignee": {"id": 4, "name": "Ann"},
///     "labels": "bug;idea", "estimate": "N/A", "closed_at": "Wed, 01 Jan 2020 12:00:00 +0100",
/// }))?;
/// assert_eq!(
///     record.to_line(),
///     r#"{"id":"17","created_date":"2020-01-01T00:00:00Z","data":{"title":"A crash","owner":"4","labels":["bug","idea"],"estimate":null,"closed_at":"2020-01-01T12:00:00+01:00"}}"#,
/// );
/// // An ambiguous value is not guessed.
/// let findings = normalizer.normalize(&json!({"key": "18", "title": "", "closed_at": "2020-01-01 12:00"})).unwrap_err();
/// assert_eq!(findings.iter().next().unwrap().path.to_string(), "data.closed_at");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Normalizer {
    checker: Checker,
    plan: Plan,
    /// Rules for fields that do not exist.
    misplaced: Vec<Finding>,
}

impl Normalizer {
    /// A normaliser for records of `record_type`. Each field is read from the member of the same name, and so are
    /// `id`, `created_date` and `modified_date`, unless a rule names another member.
    ///
    /// # Errors
    /// A finding, if the metadata does not declare the record type.
    pub fn from_metadata(metadata: &Metadata, record_type: &str) -> Result<Self, Findings> {
        let checker = Checker::new(metadata, record_type)?.undeclared(None);
        let (schema, record_type) = metadata.schema_of(record_type)?;
        Ok(Self { checker, plan: Plan::new(Arc::clone(&schema), record_type), misplaced: Vec::new() })
    }

    /// Sets what happens to fields that the metadata does not declare. By default they stay.
    #[must_use]
    pub fn undeclared(mut self, undeclared: Undeclared) -> Self {
        self.plan.undeclared = undeclared;
        self
    }

    /// Sets how one field is read: a field of the record type, one of a struct (`"address.city"`), `id`,
    /// `created_date` or `modified_date`. A rule for anything else makes every record a finding.
    #[must_use]
    pub fn rule(mut self, field: impl Into<String>, rule: FieldRule) -> Self {
        let field = field.into();
        if !self.plan.is_field(&field) {
            let message =
                format!("there is a rule for {}, which is not a field of the record type", quoted(&field));
            let known = self.plan.fields().into_iter().flat_map(Fields::keys).chain(RESERVED);
            let finding = Finding::new(Severity::Error, Rule::Undeclared, FieldPath::default(), message)
                .expecting(meant_or_one_of(&field, "fields", known));
            self.misplaced.push(finding);
        }
        self.plan.set(field, rule);
        self
    }

    /// Sets how every field of a type (`"timestamp"`, `"text"`) is read. A field's own rule overrides it. The source
    /// member of such a rule is not used.
    #[must_use]
    pub fn type_rule(mut self, field_type: impl Into<String>, rule: FieldRule) -> Self {
        let field_type = field_type.into();
        if !FIELD_TYPES.contains(&field_type.as_str()) {
            let message =
                format!("there is a rule for the field type {}, which does not exist", quoted(&field_type));
            let finding = Finding::new(Severity::Error, Rule::FieldType, FieldPath::default(), message)
                .expecting(meant_or_one_of(&field_type, "field types", FIELD_TYPES));
            self.misplaced.push(finding);
        }
        self.plan.set_type(field_type, rule);
        self
    }

    /// Sets the placeholders for "none" in the whole source: in every field and in the dates, unless a rule of the
    /// field or of its type sets others. See [`FieldRule::null_if`]. For an id, only its own rule counts.
    ///
    /// ```
    /// use highwater::record::{Field, Metadata, Normalizer, RecordType};
    /// use serde_json::json;
    /// let issues = RecordType::new().field("size", Field::int()).field("note", Field::text());
    /// let metadata = Metadata::new().record_type("issues", issues);
    /// let normalizer = Normalizer::from_metadata(&metadata, "issues")?;
    /// let raw = json!({"id": -1, "size": -1, "note": "Null"});
    /// let line = r#"{"id":"-1","data":{"size":-1,"note":"Null"}}"#;
    /// assert_eq!(normalizer.normalize(&raw)?.to_line(), line);
    ///
    /// let record = normalizer.null_if([json!(-1), json!("null")]).normalize(&raw)?;
    /// assert_eq!(record.to_line(), r#"{"id":"-1","data":{"size":null,"note":null}}"#);
    /// assert_eq!(record.changes().len(), 2);
    /// # Ok::<(), highwater::record::Findings>(())
    /// ```
    #[must_use]
    pub fn null_if<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.plan.set_null_if(values.into_iter().map(Into::into).collect());
        self
    }

    /// Converts an object of the source into a record.
    ///
    /// An object that is already a record (`id`, the dates, `operation` and `data`, and nothing else) is treated as
    /// one, unless a rule reads from `data`: its fields keep their names, and only values that are not of their field's
    /// type are converted. So a correct record passes unchanged, and normalising twice is the same as once.
    ///
    /// # Errors
    /// Everything that could not be converted, and everything that the checker finds wrong in the rest.
    pub fn normalize(&self, raw: &Value) -> Result<Record, Findings> {
        let mut sink = Sink::default();
        for finding in &self.misplaced {
            sink.add(finding.clone());
        }
        let Value::Object(object) = raw else {
            let message = format!("the source returned {}, not an object", shown(raw));
            sink.error(
                &At::ROOT,
                Rule::Envelope,
                message,
                "expected an object with the fields of one record",
            );
            return Err(Findings::new(sink.take()));
        };
        let parts = match self.record_data(object) {
            Some(data) => self.parts_of_record(object, data, &mut sink),
            None => self.parts_of_source(raw, object, &mut sink),
        };
        self.finish(parts, sink)
    }

    /// [`Normalizer::normalize`] from JSON text. An unpaired surrogate, such as `\ud83d` alone, becomes U+FFFD.
    ///
    /// # Errors
    /// Those of [`Normalizer::normalize`]; also if the text is not JSON.
    pub fn normalize_json(&self, raw: &str) -> Result<Record, Findings> {
        let flaws = if text::may_be_flawed(raw.as_bytes()) {
            text::flaws(raw.as_bytes(), Look::Strict, DEPTH_MAX)
        } else {
            Vec::new()
        };
        let halves = flaws.into_iter().filter(|found| found.flaw == Flaw::Surrogate);
        let halves: Vec<_> = halves.map(|found| found.path).collect();
        let mut replaced = 0;
        let read = if halves.is_empty() {
            serde_json::from_str(raw)
        } else {
            let mut mended = raw.as_bytes().to_vec();
            replaced = text::replace_surrogates(&mut mended);
            serde_json::from_slice(&mended)
        };
        let record = match read {
            Ok(value) => self.normalize(&value)?,
            Err(error) => return Err(Findings::one(not_json(raw.as_bytes(), &error, 1))),
        };
        let mut changes = surrogates_replaced(halves, replaced);
        name_record(&mut changes, record.id().unwrap_or_default());
        Ok(record.with_changes(changes))
    }

    /// The data of an object that is a record already.
    fn record_data<'r>(&self, object: &'r Map<String, Value>) -> Option<&'r Map<String, Value>> {
        let data = object.get("data")?.as_object()?;
        let is_envelope = |key: &String| {
            matches!(key.as_str(), "id" | "created_date" | "modified_date" | "operation" | "data")
        };
        (!self.plan.reads("data") && object.keys().all(is_envelope)).then_some(data)
    }

    fn parts_of_record(
        &self,
        object: &Map<String, Value>,
        data: &Map<String, Value>,
        sink: &mut Sink,
    ) -> Parts {
        let mut parts = Parts::default();
        let rule = FieldRule::default();
        for key in RESERVED {
            Self::envelope(key, object.get(key).unwrap_or(&Value::Null), &rule, &mut parts, sink);
        }
        match object.get("operation") {
            Some(Value::String(operation)) => parts.operation = Some(operation.clone()),
            Some(Value::Null) | None => {}
            Some(other) => {
                let message = format!("the operation is {}", shown(other));
                let expected = "expected a string such as \"created\", or leave it out";
                sink.error(&At::ROOT.key("operation"), Rule::Envelope, message, expected);
            }
        }
        let at = At::ROOT.key("data");
        let Parts { failed, changes, .. } = &mut parts;
        let mut converter = Converter { plan: &self.plan, in_record: true, failed, sink, changes };
        if let Some(fields) = self.plan.fields() {
            parts.data = converter.object(fields, data, "", &at);
        }
        parts
    }

    fn parts_of_source(&self, raw: &Value, object: &Map<String, Value>, sink: &mut Sink) -> Parts {
        let mut parts = Parts::default();
        for key in RESERVED {
            let rule = self.plan.rule(key);
            match apply(rule, key, raw, object) {
                Ok(value) => Self::envelope(key, &value.unwrap_or(Value::Null), rule, &mut parts, sink),
                Err(reason) => parts.fail(sink, &At::ROOT.key(key), &reason, ""),
            }
        }
        let Some(fields) = self.plan.fields() else { return parts };
        let at = At::ROOT.key("data");
        let mut done = vec![false; fields.list.len()];
        for (member, value) in object {
            for &index in self.plan.readers(member) {
                if let Some(done) = done.get_mut(index)
                    && let Some(field) = fields.list.get(index)
                    && !std::mem::replace(done, true)
                {
                    self.field(field, raw, object, &at, &mut parts, sink);
                }
            }
            if !self.plan.reads(member)
                && undeclared(self.plan.undeclared, fields, member, &at, sink, &mut parts.changes)
            {
                parts.data.insert(member.clone(), value.clone());
            }
        }
        // A function may compute a value where the source has none.
        for (field, done) in fields.list.iter().zip(done) {
            let rule = self.plan.rule(&field.key);
            let has_function = rule.of_value.is_some() || rule.of_object.is_some();
            if !done && has_function {
                self.field(field, raw, object, &at, &mut parts, sink);
            }
        }
        parts
    }

    fn field(
        &self,
        field: &FieldDecl,
        raw: &Value,
        object: &Map<String, Value>,
        at: &At<'_>,
        parts: &mut Parts,
        sink: &mut Sink,
    ) {
        let at = at.key(&field.key);
        let rule = self.plan.rule(&field.key);
        let value = match apply(rule, &field.key, raw, object) {
            Ok(Some(value)) => value,
            Ok(None) => return,
            Err(reason) => return parts.fail(sink, &at, &reason, ""),
        };
        let Parts { failed, changes, .. } = &mut *parts;
        let mut converter = Converter { plan: &self.plan, in_record: false, failed, sink, changes };
        let value = converter.field(field, rule, &field.key, &value, &at);
        parts.data.insert(field.key.clone(), value);
    }

    /// Reads the id or a date of the envelope.
    fn envelope(key: &str, value: &Value, rule: &FieldRule, parts: &mut Parts, sink: &mut Sink) {
        let at = At::ROOT.key(key);
        if value.is_null() {
            return;
        }
        let is_none = match value {
            Value::String(text) if text.trim().is_empty() => true,
            // Any text may be an id; only dates have known placeholders.
            Value::String(text) if key != "id" => is_usual_none(text),
            _ => false,
        };
        if is_none || rule.null_if.as_ref().is_some_and(|values| is_said_none(values, value)) {
            became_null(&mut parts.changes, &at, value);
            return;
        }
        if key == "id" {
            parts.id = plain_id(value);
            if parts.id.is_none() {
                let help = "give it a rule: .rule(\"id\", FieldRule::of(\"...\"))";
                parts.fail(sink, &at, &format!("the id is {}", shown(value)), help);
            }
            return;
        }
        match text_of(value)
            .ok_or_else(|| not(value, "moment", ""))
            .and_then(|text| moment::timestamp(&text, &rule.reading()))
        {
            Ok(text) if key == "created_date" => parts.created = Some(text),
            Ok(text) => parts.modified = Some(text),
            Err((reason, help)) => parts.fail(sink, &at, &reason, help),
        }
    }

    /// Puts the record together, and checks it.
    fn finish(&self, mut parts: Parts, mut sink: Sink) -> Result<Record, Findings> {
        let id = parts.id.clone().unwrap_or_default();
        let failed = std::mem::take(&mut parts.failed);
        let mut changes = parts.changes.take();
        name_record(&mut changes, &id);
        let built = self.line(parts, &failed, &mut sink);
        let mut findings = sink.take();
        let record = match built {
            Ok(record) => record,
            Err(error) => {
                let place = FieldPath::default();
                findings.push(Finding::new(Severity::Error, Rule::Limit, place, error.to_string()));
                name_record(&mut findings, &id);
                return Err(Findings::new(findings));
            }
        };
        let is_new = |finding: &Finding| !failed.iter().any(|failed| finding.path.is_within(failed));
        findings.extend(self.checker.check_line(&record.to_line()).into_iter().filter(is_new));
        name_record(&mut findings, &id);
        if findings.iter().any(Finding::is_error) {
            Err(Findings::new(findings))
        } else {
            Ok(record.with_changes(changes))
        }
    }

    /// The record made of these parts, flat if its type has no ids.
    fn line(&self, parts: Parts, failed: &[FieldPath], sink: &mut Sink) -> crate::error::Result<Record> {
        let no_identifier = self.plan.record_decl().is_some_and(|declared| declared.no_identifier);
        if parts.id.is_none() && no_identifier {
            let mut line = Map::new();
            let dates = [
                ("created_date", &parts.created),
                ("modified_date", &parts.modified),
                ("operation", &parts.operation),
            ];
            for (key, text) in dates {
                if let Some(text) = text {
                    line.insert(key.to_owned(), Value::from(text.as_str()));
                }
            }
            line.insert("data".to_owned(), Value::Object(parts.data));
            return Record::flat(&line);
        }
        if parts.id.is_none() && !failed.iter().any(|path| path.to_string() == "id") {
            let source = self.plan.rule("id").source.as_deref().unwrap_or("id");
            let message = format!("the source has no {}, which should be the id", quoted(source));
            let expected = "name the member that has it: .rule(\"id\", FieldRule::of(\"key\"))";
            sink.error(&At::ROOT.key("id"), Rule::Id, message, expected);
        }
        // Without an id it is refused anyway; with a made-up one, the rest can be checked.
        Record::new(parts.id.unwrap_or_else(|| "?".to_owned()), &parts.data).map(|record| {
            record
                .with_dates(parts.created.as_deref(), parts.modified.as_deref())
                .with_operation(parts.operation)
        })
    }
}

/// A record that is being put together.
#[derive(Default)]
struct Parts {
    id: Option<String>,
    created: Option<String>,
    modified: Option<String>,
    operation: Option<String>,
    data: Map<String, Value>,
    /// Places that have a finding already.
    failed: Vec<FieldPath>,
    changes: Sink,
}

impl Parts {
    fn fail(&mut self, sink: &mut Sink, at: &At<'_>, reason: &str, help: &str) {
        self.failed.push(at.path());
        sink.error(at, Rule::Conversion, reason, help);
    }
}
