//! Turns what a source says into records, by the metadata: what every connector writes by hand, field by field.
//!
//! Conversions lose nothing and guess nothing: numbers from strings are exact, moments keep their digits and offset,
//! and what could mean two things is a finding that says which rule would decide it. The result is checked like any
//! record, so what the normaliser lets through, the checker does.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use chrono::FixedOffset;
use serde_json::{Map, Value};

use super::Record;
use super::check::Checker;
use super::convert::{convert, is_natural, not, pieces, plain_id, text_of};
use super::finding::{At, FieldPath, Finding, Findings, Rule, Severity, Sink, quoted, shown};
use super::hints::meant_or_one_of;
use super::metadata::Metadata;
use super::moment::{self, Reading, TimeFormat};
use super::schema::{FIELD_TYPES, FieldDecl, Fields, ITEM_URL, Kind, RESERVED, Schema};

/// What is done with fields of the source that the metadata does not declare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Undeclared {
    /// They stay in the record. The platform passes them over.
    #[default]
    Keep,
    /// They are left out. `item_url_field` stays: the platform takes it without a declaration.
    Drop,
    /// The record is refused.
    Refuse,
}

/// A function of an extractor's own.
type Function = Arc<dyn Fn(&Value) -> Result<Value, String> + Send + Sync>;

/// How one field is read from the source, where it is not simply the member of the same name.
#[derive(Clone, Default)]
pub struct FieldRule {
    source: Option<String>,
    null_if: Option<Vec<Value>>,
    format: Option<TimeFormat>,
    offset: Option<FixedOffset>,
    split: Option<Split>,
    of_value: Option<Function>,
    of_object: Option<Function>,
}

/// How a string becomes the elements of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    At(char),
    Never,
}

impl fmt::Debug for FieldRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FieldRule")
            .field("source", &self.source)
            .field("null_if", &self.null_if)
            .field("format", &self.format)
            .field("offset", &self.offset)
            .field("split", &self.split)
            .field("has_function", &(self.of_value.is_some() || self.of_object.is_some()))
            .finish()
    }
}

impl FieldRule {
    /// A rule for the member of the same name.
    pub fn new() -> Self {
        Self::default()
    }

    /// A rule that reads another member of the source, or one inside of it: `"assignee.id"`. Through an array, it
    /// reads from each element: `"labels.name"`.
    pub fn of(source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..Self::default() }
    }

    /// Sets the values that stand for "none", instead of `""`, `-1`, `"null"` and `"N/A"`. Strings are compared
    /// without regard to case. A value that the metadata declares as one of the field's own is never taken so.
    #[must_use]
    pub fn null_if<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.null_if = Some(values.into_iter().map(Into::into).collect());
        self
    }

    /// Says how the source writes its dates and timestamps.
    #[must_use]
    pub fn format(mut self, format: TimeFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Says which offset from UTC the source means where it writes none.
    #[must_use]
    pub fn offset(mut self, offset: FixedOffset) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Splits a string into the elements of the collection at each `separator`, unless it is in double quotes.
    #[must_use]
    pub fn split_at(mut self, separator: char) -> Self {
        self.split = Some(Split::At(separator));
        self
    }

    /// Takes a string as one element of the collection, whatever it holds.
    #[must_use]
    pub fn never_split(mut self) -> Self {
        self.split = Some(Split::Never);
        self
    }

    /// Puts the value, or `null` if the source has none, through a function first. What it returns is then converted
    /// to the field's type; an error becomes a finding. It is not called for what is a record already.
    #[must_use]
    pub fn with(
        mut self,
        function: impl Fn(&Value) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        self.of_value = Some(Arc::new(function));
        self
    }

    /// As [`FieldRule::with`], but the function is given the whole object of the source.
    #[must_use]
    pub fn with_object(
        mut self,
        function: impl Fn(&Value) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        self.of_object = Some(Arc::new(function));
        self
    }

    /// What is set here, and what is not by another rule.
    fn or(&self, other: &FieldRule) -> FieldRule {
        FieldRule {
            source: self.source.clone(),
            null_if: self.null_if.clone().or_else(|| other.null_if.clone()),
            format: self.format.clone().or_else(|| other.format.clone()),
            offset: self.offset.or(other.offset),
            split: self.split.or(other.split),
            of_value: self.of_value.clone().or_else(|| other.of_value.clone()),
            of_object: self.of_object.clone().or_else(|| other.of_object.clone()),
        }
    }

    fn reading(&self) -> Reading {
        Reading { format: self.format.clone(), offset: self.offset }
    }
}

/// Makes records of what a source says.
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
///     "labels": "bug;idea", "estimate": "-1", "closed_at": "Wed, 01 Jan 2020 12:00:00 +0100",
/// }))?;
/// assert_eq!(
///     record.to_line(),
///     r#"{"id":"17","created_date":"2020-01-01T00:00:00Z","data":{"title":"A crash","owner":"4","labels":["bug","idea"],"estimate":null,"closed_at":"2020-01-01T12:00:00+01:00"}}"#,
/// );
/// // What could mean two things is not guessed.
/// let findings = normalizer.normalize(&json!({"key": "18", "title": "", "closed_at": "2020-01-01 12:00"})).unwrap_err();
/// assert_eq!(findings.iter().next().unwrap().path.to_string(), "data.closed_at");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Normalizer {
    schema: Arc<Schema>,
    record_type: usize,
    checker: Checker,
    undeclared: Undeclared,
    rules: HashMap<String, FieldRule>,
    type_rules: HashMap<String, FieldRule>,
    /// The rules of the record's own fields and of the envelope, put together with those of the types.
    plan: Plan,
    /// Rules for what does not exist.
    misplaced: Vec<Finding>,
}

/// Which members of a source object become which fields.
#[derive(Debug, Clone, Default)]
struct Plan {
    /// Rules by the place of the field: `owner`, `address.city`, `created_date`.
    rules: HashMap<String, FieldRule>,
    /// First member of the source, and the fields read from it, by their index.
    readers: HashMap<String, Vec<usize>>,
    /// Members that become the envelope.
    envelope: Vec<String>,
}

impl Normalizer {
    /// A normaliser of the records of `record_type`: each field from the member of its name, `id`, `created_date` and
    /// `modified_date` from theirs, until rules say otherwise.
    ///
    /// # Errors
    /// A finding, if the metadata does not declare the record type.
    pub fn from_metadata(metadata: &Metadata, record_type: &str) -> Result<Self, Findings> {
        let checker = Checker::new(metadata, record_type)?.undeclared(None);
        let (schema, record_type) = metadata.schema_of(record_type)?;
        let mut normalizer = Self {
            schema,
            record_type,
            checker,
            undeclared: Undeclared::default(),
            rules: HashMap::new(),
            type_rules: HashMap::new(),
            plan: Plan::default(),
            misplaced: Vec::new(),
        };
        normalizer.plan = normalizer.plan();
        Ok(normalizer)
    }

    /// Sets what is done with what the metadata does not declare. It stays by default.
    #[must_use]
    pub fn undeclared(mut self, undeclared: Undeclared) -> Self {
        self.undeclared = undeclared;
        self
    }

    /// Sets how one field is read: a field of the record type, one of a struct (`"address.city"`), `id`,
    /// `created_date` or `modified_date`. A rule for anything else makes every record a finding.
    #[must_use]
    pub fn rule(mut self, field: impl Into<String>, rule: FieldRule) -> Self {
        let field = field.into();
        if !self.is_field(&field) {
            let message =
                format!("there is a rule for {}, which is no field of the record type", quoted(&field));
            let known = self.fields().into_iter().flat_map(Fields::keys).chain(RESERVED);
            let finding = Finding::new(Severity::Error, Rule::Undeclared, FieldPath::default(), message)
                .expecting(meant_or_one_of(&field, "fields", known));
            self.misplaced.push(finding);
        }
        self.rules.insert(field, rule);
        self.plan = self.plan();
        self
    }

    /// Sets how every field of a type is read (`"timestamp"`, `"text"`), where the field has no rule that says
    /// otherwise. The source of such a rule is not used.
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
        self.type_rules.insert(field_type, rule);
        self.plan = self.plan();
        self
    }

    /// Makes a record of an object of the source.
    ///
    /// An object that is a record already (`id`, the dates, `operation` and `data`, and nothing else) is taken as
    /// one, unless a rule reads from `data`: its fields go by their own names, and only what is not of its field's
    /// type is converted. So a right record passes unchanged, and normalising twice is the same as once.
    ///
    /// # Errors
    /// Everything that could not be converted, and everything that the checker finds wrong in the rest.
    pub fn normalize(&self, raw: &Value) -> Result<Record, Findings> {
        let mut sink = Sink::default();
        for finding in &self.misplaced {
            sink.add(finding.clone());
        }
        let Value::Object(object) = raw else {
            let message = format!("the source says {}, not an object", shown(raw));
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

    /// As [`Normalizer::normalize`], from JSON text.
    ///
    /// # Errors
    /// As [`Normalizer::normalize`]; also if the text is not JSON.
    pub fn normalize_json(&self, raw: &str) -> Result<Record, Findings> {
        match serde_json::from_str(raw) {
            Ok(value) => self.normalize(&value),
            Err(error) => Err(Findings::one(super::not_json(raw.as_bytes(), &error, 1))),
        }
    }

    fn fields(&self) -> Option<&Fields> {
        self.schema.record_types.get(self.record_type).map(|declared| &declared.fields)
    }

    fn is_field(&self, path: &str) -> bool {
        let Some(mut fields) = self.fields() else { return false };
        if RESERVED.contains(&path) || fields.find(path).is_some() {
            return true;
        }
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            match fields.find(step) {
                Some(_) if steps.peek().is_none() => return true,
                Some((_, FieldDecl { kind: Kind::Struct(Some(index)), .. })) => {
                    match self.schema.structs.get(*index) {
                        Some(declared) => fields = &declared.fields,
                        None => return false,
                    }
                }
                _ => return false,
            }
        }
        false
    }

    fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        let none = FieldRule::default();
        let head = |rule: &FieldRule, key: &str| match &rule.source {
            Some(source) => source.split('.').next().unwrap_or_default().to_owned(),
            None => key.to_owned(),
        };
        for (index, field) in self.fields().into_iter().flat_map(|fields| &fields.list).enumerate() {
            let own = self.rules.get(&field.key).unwrap_or(&none);
            plan.readers.entry(head(own, &field.key)).or_default().push(index);
            // A name with a dot in it is also tried whole.
            if let Some(source) = own.source.as_ref().filter(|source| source.contains('.')) {
                plan.readers.entry(source.clone()).or_default().push(index);
            }
        }
        for key in RESERVED {
            let own = self.rules.get(key).unwrap_or(&none);
            plan.envelope.push(head(own, key));
            let of_type = self.type_rules.get("timestamp").filter(|_| key != "id").unwrap_or(&none);
            plan.rules.insert(key.to_owned(), own.or(of_type));
        }
        let fields = self
            .fields()
            .into_iter()
            .flat_map(|fields| fields.list.iter().map(|field| (field.key.clone(), field)));
        let mut open: Vec<(String, &FieldDecl)> = fields.collect();
        while let Some((path, field)) = open.pop() {
            let of_type = self.type_rules.get(field.kind.name()).unwrap_or(&none);
            let rule = self.rules.get(&path).unwrap_or(&none).or(of_type);
            if let Kind::Struct(Some(index)) = field.kind
                && path.split('.').count() < STRUCT_RULES_DEPTH
            {
                let inner =
                    self.schema.structs.get(index).into_iter().flat_map(|declared| &declared.fields.list);
                open.extend(inner.map(|field| (format!("{path}.{}", field.key), field)));
            }
            plan.rules.insert(path, rule);
        }
        plan
    }

    /// The data of an object that is a record already.
    fn record_data<'r>(&self, object: &'r Map<String, Value>) -> Option<&'r Map<String, Value>> {
        let data = object.get("data")?.as_object()?;
        let is_envelope = |key: &String| {
            matches!(key.as_str(), "id" | "created_date" | "modified_date" | "operation" | "data")
        };
        let data_is_read =
            self.plan.readers.contains_key("data") || self.plan.envelope.iter().any(|key| key == "data");
        (!data_is_read && object.keys().all(is_envelope)).then_some(data)
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
        let mut converter = Converter { normalizer: self, in_record: true, failed: &mut parts.failed, sink };
        if let Some(fields) = self.fields() {
            parts.data = converter.object(fields, data, "", &at);
        }
        parts
    }

    fn parts_of_source(&self, raw: &Value, object: &Map<String, Value>, sink: &mut Sink) -> Parts {
        let mut parts = Parts::default();
        for key in RESERVED {
            let Some(rule) = self.plan.rules.get(key) else { continue };
            match apply(rule, key, raw, object) {
                Ok(value) => Self::envelope(key, &value.unwrap_or(Value::Null), rule, &mut parts, sink),
                Err(reason) => parts.fail(sink, &At::ROOT.key(key), &reason, ""),
            }
        }
        let Some(fields) = self.fields() else { return parts };
        let at = At::ROOT.key("data");
        let mut done = vec![false; fields.list.len()];
        for (member, value) in object {
            let readers = self.plan.readers.get(member).map_or(&[][..], Vec::as_slice);
            for &index in readers {
                if let Some(done) = done.get_mut(index)
                    && let Some(field) = fields.list.get(index)
                    && !std::mem::replace(done, true)
                {
                    self.field(field, raw, object, &at, &mut parts, sink);
                }
            }
            if readers.is_empty() && !self.plan.envelope.contains(member) {
                let kept = undeclared(self.undeclared, fields, member, &at, sink);
                if kept {
                    parts.data.insert(member.clone(), value.clone());
                }
            }
        }
        // A function may make something of nothing.
        for (field, done) in fields.list.iter().zip(done) {
            let has_function = self
                .plan
                .rules
                .get(&field.key)
                .is_some_and(|rule| rule.of_value.is_some() || rule.of_object.is_some());
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
        let Some(rule) = self.plan.rules.get(&field.key) else { return };
        let value = match apply(rule, &field.key, raw, object) {
            Ok(Some(value)) => value,
            Ok(None) => return,
            Err(reason) => return parts.fail(sink, &at, &reason, ""),
        };
        let mut converter = Converter { normalizer: self, in_record: false, failed: &mut parts.failed, sink };
        let value = converter.field(field, rule, &field.key, &value, &at);
        parts.data.insert(field.key.clone(), value);
    }

    /// Reads the id or a date of the envelope.
    fn envelope(key: &str, value: &Value, rule: &FieldRule, parts: &mut Parts, sink: &mut Sink) {
        let at = At::ROOT.key(key);
        if value.is_null() || is_stand_in(value, rule, &[]) {
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
    fn finish(&self, parts: Parts, mut sink: Sink) -> Result<Record, Findings> {
        let no_identifier =
            self.schema.record_types.get(self.record_type).is_some_and(|declared| declared.no_identifier);
        let id = parts.id.clone().unwrap_or_default();
        let built = match (parts.id, no_identifier) {
            (None, true) => {
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
                Record::flat(&line)
            }
            (id, _) => {
                if id.is_none() && !parts.failed.iter().any(|path| path.to_string() == "id") {
                    let source =
                        self.plan.rules.get("id").and_then(|rule| rule.source.as_deref()).unwrap_or("id");
                    let message = format!("the source has no {}, which is the id", quoted(source));
                    let expected = "say where it is: .rule(\"id\", FieldRule::of(\"key\"))";
                    sink.error(&At::ROOT.key("id"), Rule::Id, message, expected);
                }
                // Without an id it is refused anyway; a made-up one lets the rest be checked.
                Record::new(id.unwrap_or_else(|| "?".to_owned()), &parts.data).map(|record| {
                    record.with_dates(parts.created, parts.modified).with_operation(parts.operation)
                })
            }
        };
        let mut findings = sink.take();
        let record = match built {
            Ok(record) => record,
            Err(error) => {
                findings.push(Finding::new(
                    Severity::Error,
                    Rule::Limit,
                    FieldPath::default(),
                    error.to_string(),
                ));
                super::check::name_record(&mut findings, &id);
                return Err(Findings::new(findings));
            }
        };
        let is_new = |finding: &Finding| !parts.failed.iter().any(|failed| finding.path.is_within(failed));
        findings.extend(self.checker.check_line(&record.to_line()).into_iter().filter(is_new));
        super::check::name_record(&mut findings, &id);
        if findings.iter().any(Finding::is_error) { Err(Findings::new(findings)) } else { Ok(record) }
    }
}

/// Structs within structs whose members have rules by their path.
const STRUCT_RULES_DEPTH: usize = 8;

/// A record, while it is put together.
#[derive(Default)]
struct Parts {
    id: Option<String>,
    created: Option<String>,
    modified: Option<String>,
    operation: Option<String>,
    data: Map<String, Value>,
    /// Where a finding stands already.
    failed: Vec<FieldPath>,
}

impl Parts {
    fn fail(&mut self, sink: &mut Sink, at: &At<'_>, reason: &str, help: &str) {
        self.failed.push(at.path());
        sink.error(at, Rule::Conversion, reason, help);
    }
}

/// Reads a field's value from a source object. `None` if it is not there.
fn apply(
    rule: &FieldRule,
    key: &str,
    raw: &Value,
    object: &Map<String, Value>,
) -> Result<Option<Value>, String> {
    if let Some(function) = &rule.of_object {
        return function(raw).map(Some);
    }
    let value = match &rule.source {
        Some(source) => object.get(source).cloned().or_else(|| member_at(raw, source)),
        None => object.get(key).cloned(),
    };
    match &rule.of_value {
        Some(function) => function(&value.unwrap_or(Value::Null)).map(Some),
        None => Ok(value),
    }
}

/// The member at a path; through an array, those of each element.
fn member_at(value: &Value, path: &str) -> Option<Value> {
    match value {
        Value::Object(members) => match path.split_once('.') {
            None => members.get(path).cloned(),
            Some((first, rest)) => match members.get(first)? {
                Value::Null => Some(Value::Null),
                inner => member_at(inner, rest),
            },
        },
        Value::Array(items) => Some(items.iter().filter_map(|item| member_at(item, path)).collect()),
        _ => None,
    }
}

fn undeclared(policy: Undeclared, fields: &Fields, key: &str, at: &At<'_>, sink: &mut Sink) -> bool {
    match policy {
        _ if key == ITEM_URL => true,
        Undeclared::Keep => true,
        Undeclared::Drop => false,
        Undeclared::Refuse => {
            let message = format!("the field {} is not declared", quoted(key));
            let expected = meant_or_one_of(key, "declared fields", fields.keys());
            sink.error(&at.key(key), Rule::Undeclared, message, expected);
            false
        }
    }
}

/// Whether a value stands for "none"; `own` are values of the field that never do.
fn is_stand_in(value: &Value, rule: &FieldRule, own: &[&str]) -> bool {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return false,
    };
    let text = text.trim();
    if own.iter().any(|own| own.eq_ignore_ascii_case(text)) {
        return false;
    }
    match &rule.null_if {
        Some(values) => values.iter().any(|stand_in| match stand_in {
            Value::String(stand_in) => stand_in.eq_ignore_ascii_case(text),
            Value::Number(number) => number.to_string() == text,
            _ => stand_in == value,
        }),
        None => ["", "-1", "null", "N/A"].iter().any(|stand_in| stand_in.eq_ignore_ascii_case(text)),
    }
}

/// Converts the values of one object.
struct Converter<'n, 's> {
    normalizer: &'n Normalizer,
    in_record: bool,
    failed: &'s mut Vec<FieldPath>,
    sink: &'s mut Sink,
}

impl Converter<'_, '_> {
    /// The members of an object whose fields are declared: of a record, or of a struct.
    fn object(
        &mut self,
        fields: &Fields,
        members: &Map<String, Value>,
        path: &str,
        at: &At<'_>,
    ) -> Map<String, Value> {
        let mut converted = Map::new();
        let none = FieldRule::default();
        for (key, value) in members {
            if let Some((_, field)) = fields.find(key) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let rule = self.normalizer.plan.rules.get(&path).unwrap_or(&none);
                let value = self.field(field, rule, &path, value, &at.key(key));
                converted.insert(key.clone(), value);
            } else if undeclared(self.normalizer.undeclared, fields, key, at, self.sink) {
                converted.insert(key.clone(), value.clone());
            }
        }
        converted
    }

    /// The value of one field; `null`, and a finding, if it cannot be converted.
    fn field(
        &mut self,
        field: &FieldDecl,
        rule: &FieldRule,
        path: &str,
        value: &Value,
        at: &At<'_>,
    ) -> Value {
        let Some(_) = field.collection else {
            return self.one(field, rule, path, value, at);
        };
        let elements: Vec<Value> = match value {
            Value::Null => return Value::Null,
            Value::Array(elements) => elements.clone(),
            // Nothing is in it, whatever its elements are.
            Value::String(text) if text.trim().is_empty() => return Value::Null,
            value if stands_for_none(field, rule, value) => return Value::Null,
            Value::String(text) => match split(field, rule, text) {
                Ok(elements) => elements.into_iter().map(Value::String).collect(),
                Err((reason, help)) => return self.fail(at, &reason, help),
            },
            single => vec![single.clone()],
        };
        let mut converted = Vec::with_capacity(elements.len());
        for (position, element) in elements.iter().enumerate() {
            let given = !element.is_null() || self.in_record;
            let element = self.one(field, rule, path, element, &at.position(position));
            if given && (!element.is_null() || self.in_record) {
                converted.push(element);
            }
        }
        Value::Array(converted)
    }

    /// One value of a field, or one element of its collection.
    fn one(&mut self, field: &FieldDecl, rule: &FieldRule, path: &str, value: &Value, at: &At<'_>) -> Value {
        if value.is_null() || (self.in_record && is_natural(&field.kind, value)) {
            return value.clone();
        }
        if stands_for_none(field, rule, value) {
            return Value::Null;
        }
        if let (Kind::Struct(Some(index)), Value::Object(members)) = (&field.kind, value) {
            let Some(declared) = self.normalizer.schema.structs.get(*index) else { return value.clone() };
            return Value::Object(self.object(&declared.fields, members, path, at));
        }
        match convert(&field.kind, value, &rule.reading(), self.in_record) {
            Ok(value) => value,
            Err((reason, help)) => {
                let reason = match &rule.source {
                    Some(source) if !self.in_record => format!("{reason} (from {})", quoted(source)),
                    _ => reason,
                };
                self.fail(at, &reason, &help)
            }
        }
    }

    fn fail(&mut self, at: &At<'_>, reason: &str, help: &str) -> Value {
        self.failed.push(at.path());
        self.sink.error(at, Rule::Conversion, reason, help);
        Value::Null
    }
}

/// Whether a value stands for "none" in this field: never one of the field's own.
fn stands_for_none(field: &FieldDecl, rule: &FieldRule, value: &Value) -> bool {
    let mut own: Vec<&str> = Vec::new();
    match &field.kind {
        Kind::Enum(values) => {
            own.extend(values.keys());
            own.extend(values.values.iter().filter_map(|value| value.name.as_deref()));
        }
        // Bounds that go below 0 say that a negative number within them means something.
        Kind::Int(range) if range.min.is_some() => {
            let number = text_of(value).and_then(|text| text.trim().parse::<i128>().ok());
            if number.is_some_and(|number| number < 0 && range.contains(number)) {
                return false;
            }
        }
        Kind::Float(range) if range.min.is_some() => {
            let number = text_of(value).and_then(|text| text.trim().parse::<f64>().ok());
            if number.is_some_and(|number| number < 0.0 && range.contains(number)) {
                return false;
            }
        }
        // Of the usual stand-ins, an empty text is a text, and so is a number that became one.
        Kind::Text(_) | Kind::RichText
            if rule.null_if.is_none()
                && (value.is_number()
                    || value.as_str().is_some_and(|text| matches!(text.trim(), "" | "-1"))) =>
        {
            return false;
        }
        _ => {}
    }
    if let Some(Value::String(default)) = &field.default {
        own.push(default);
    }
    is_stand_in(value, rule, &own)
}

/// Splits a string into the elements of a collection.
fn split(field: &FieldDecl, rule: &FieldRule, text: &str) -> Result<Vec<String>, (String, &'static str)> {
    const SAY: &str = "give the field a rule: FieldRule::new().split_at(',') or .never_split()";
    match rule.split {
        Some(Split::Never) => return Ok(vec![text.to_owned()]),
        Some(Split::At(separator)) => return Ok(pieces(text, separator)),
        None => {}
    }
    let whole = || Ok(vec![text.to_owned()]);
    let separators: Vec<char> =
        [';', ','].into_iter().filter(|separator| text.contains(*separator)).collect();
    let two = || (format!("{} has both ';' and ',' in it", quoted(text)), SAY);
    match &field.kind {
        _ if separators.is_empty() => whole(),
        Kind::RichText | Kind::Struct(_) | Kind::Privilege(_) | Kind::Any => whole(),
        // Text may have a comma of its own; words in a row are a list.
        Kind::Text(_) => match separators.as_slice() {
            [separator] if !text.contains(char::is_whitespace) || text.contains('"') => {
                Ok(pieces(text, *separator))
            }
            [separator] => {
                Err((format!("{} could be one text with {separator:?} in it, or several", quoted(text)), SAY))
            }
            _ => Err(two()),
        },
        Kind::Reference(_) | Kind::TypedReference(_) | Kind::Permission { .. } | Kind::Participation => {
            match separators.as_slice() {
                [separator] => Ok(pieces(text, *separator)),
                _ => Err(two()),
            }
        }
        kind => {
            let fits = |piece: &str| convert(kind, &Value::from(piece), &rule.reading(), false).is_ok();
            if fits(text) {
                return whole();
            }
            let mut lists = separators
                .iter()
                .map(|separator| pieces(text, *separator))
                .filter(|pieces| pieces.iter().all(|piece| fits(piece)));
            match (lists.next(), lists.next()) {
                (Some(list), None) => Ok(list),
                (Some(_), Some(_)) => Err(two()),
                // The elements say for themselves what is wrong with them.
                (None, _) => Ok(pieces(text, separators.first().copied().unwrap_or(','))),
            }
        }
    }
}
