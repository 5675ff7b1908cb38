//! The rules of a normaliser: how each field is read from the source.
//!
//! A new setting also belongs in `FieldRule::or`, which merges rules. Except for the path in the source, settings are
//! only declared here: `convert_object` applies those for a field as a whole, `convert_value` those for its type, and
//! `moment` those for its time.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use chrono::FixedOffset;
use serde_json::{Map, Value};

use super::moment::{Reading, TimeFormat};
use super::schema::{FieldDecl, Fields, Kind, RESERVED, RecordDecl, Schema};

/// What happens to fields of the source that the metadata does not declare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Undeclared {
    /// They stay in the record. The platform ignores them.
    #[default]
    Keep,
    /// They are left out. `item_url_field` stays: the platform takes it without a declaration.
    Drop,
    /// The record is refused.
    Refuse,
}

/// A function of an extractor's own.
pub(super) type Function = Arc<dyn Fn(&Value) -> Result<Value, String> + Send + Sync>;

/// How one field is read from the source, if it is not simply the member of the same name.
#[derive(Clone, Default)]
pub struct FieldRule {
    pub(super) source: Option<String>,
    pub(super) null_if: Option<Vec<Value>>,
    format: Option<TimeFormat>,
    offset: Option<FixedOffset>,
    pub(super) split: Option<Split>,
    pub(super) of_value: Option<Function>,
    pub(super) of_object: Option<Function>,
}

/// How a string becomes the elements of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
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

    /// A rule that reads another member of the source, or a nested one: `"assignee.id"`. For an array, it reads from
    /// each element: `"labels.name"`.
    pub fn of(source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..Self::default() }
    }

    /// Sets the placeholders for "none": they become `null`, also if the field's type could hold them. Strings are
    /// compared in any case, numbers by value. A value that the metadata declares for the field (a key or a name of
    /// its enum, its default, a negative number within its bounds) is never a placeholder.
    ///
    /// Unless set, `""`, `"null"` and `"N/A"` become `null` if the type cannot hold them: in a number or a date, but
    /// not in a text. Each value that became `null` is in [`Record::changes`](super::Record::changes).
    #[must_use]
    pub fn null_if<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.null_if = Some(values.into_iter().map(Into::into).collect());
        self
    }

    /// Sets how the source writes its dates and timestamps.
    #[must_use]
    pub fn format(mut self, format: TimeFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Sets the offset from UTC of times that the source writes without one.
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

    /// Treats a string as one element of the collection, whatever characters it contains.
    #[must_use]
    pub fn never_split(mut self) -> Self {
        self.split = Some(Split::Never);
        self
    }

    /// Passes the value, or `null` if the source has none, through a function first. The result is then converted to
    /// the field's type; an error becomes a finding. The function is not called for an object that is already a
    /// record.
    #[must_use]
    pub fn with(
        mut self,
        function: impl Fn(&Value) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        self.of_value = Some(Arc::new(function));
        self
    }

    /// Like [`FieldRule::with`], but the function gets the whole object of the source.
    #[must_use]
    pub fn with_object(
        mut self,
        function: impl Fn(&Value) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        self.of_object = Some(Arc::new(function));
        self
    }

    /// The settings of this rule; those that it does not set come from the other.
    pub(super) fn or(&self, other: &FieldRule) -> FieldRule {
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

    pub(super) fn reading(&self) -> Reading {
        Reading { format: self.format.clone(), offset: self.offset }
    }
}

/// How the fields of one record type are read: their rules, combined with those of the types and of the source.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) schema: Arc<Schema>,
    record_type: usize,
    pub(super) undeclared: Undeclared,
    own: HashMap<String, FieldRule>,
    of_types: HashMap<String, FieldRule>,
    /// The settings for every field but the id.
    of_source: FieldRule,
    /// Rules by the place of the field: `owner`, `address.city`, `created_date`.
    rules: HashMap<String, FieldRule>,
    /// First member of the source path, and the fields read from it, by their index.
    readers: HashMap<String, Vec<usize>>,
    /// Members that become the envelope.
    envelope: Vec<String>,
}

/// Structs within structs whose members have rules by their path.
const STRUCT_RULES_DEPTH: usize = 8;

impl Plan {
    pub(super) fn new(schema: Arc<Schema>, record_type: usize) -> Self {
        let mut plan = Self {
            schema,
            record_type,
            undeclared: Undeclared::default(),
            own: HashMap::new(),
            of_types: HashMap::new(),
            of_source: FieldRule::default(),
            rules: HashMap::new(),
            readers: HashMap::new(),
            envelope: Vec::new(),
        };
        plan.put_together();
        plan
    }

    /// Sets the rule of a field.
    pub(super) fn set(&mut self, field: String, rule: FieldRule) {
        self.own.insert(field, rule);
        self.put_together();
    }

    /// Sets the rule of a type.
    pub(super) fn set_type(&mut self, field_type: String, rule: FieldRule) {
        self.of_types.insert(field_type, rule);
        self.put_together();
    }

    /// Sets the placeholders for "none" where no other rule does.
    pub(super) fn set_null_if(&mut self, values: Vec<Value>) {
        self.of_source.null_if = Some(values);
        self.put_together();
    }

    pub(super) fn record_decl(&self) -> Option<&RecordDecl> {
        self.schema.record_types.get(self.record_type)
    }

    pub(super) fn fields(&self) -> Option<&Fields> {
        self.record_decl().map(|declared| &declared.fields)
    }

    /// The rule of the field at a path.
    pub(super) fn rule(&self, path: &str) -> &FieldRule {
        self.rules.get(path).unwrap_or(&self.of_source)
    }

    /// The fields that are read from a member of the source.
    pub(super) fn readers(&self, member: &str) -> &[usize] {
        self.readers.get(member).map_or(&[], Vec::as_slice)
    }

    /// Whether a member of the source is read, for `data` or for the envelope.
    pub(super) fn reads(&self, member: &str) -> bool {
        self.readers.contains_key(member) || self.envelope.iter().any(|read| read == member)
    }

    /// Whether a rule for this path makes sense.
    pub(super) fn is_field(&self, path: &str) -> bool {
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

    fn put_together(&mut self) {
        self.rules.clear();
        self.readers.clear();
        self.envelope.clear();
        let schema = Arc::clone(&self.schema);
        let fields =
            schema.record_types.get(self.record_type).map_or(&[][..], |declared| &declared.fields.list);
        let none = FieldRule::default();
        let head = |rule: &FieldRule, key: &str| match &rule.source {
            Some(source) => source.split('.').next().unwrap_or_default().to_owned(),
            None => key.to_owned(),
        };
        for (index, field) in fields.iter().enumerate() {
            let own = self.own.get(&field.key).unwrap_or(&none);
            self.readers.entry(head(own, &field.key)).or_default().push(index);
            // A name that contains a dot is also tried whole.
            if let Some(source) = own.source.as_ref().filter(|source| source.contains('.')) {
                self.readers.entry(source.clone()).or_default().push(index);
            }
        }
        for key in RESERVED {
            let own = self.own.get(key).unwrap_or(&none);
            self.envelope.push(head(own, key));
            let rule = match key {
                "id" => own.clone(),
                _ => own.or(self.of_types.get("timestamp").unwrap_or(&none)).or(&self.of_source),
            };
            self.rules.insert(key.to_owned(), rule);
        }
        let mut open: Vec<(String, &FieldDecl)> =
            fields.iter().map(|field| (field.key.clone(), field)).collect();
        while let Some((path, field)) = open.pop() {
            let of_type = self.of_types.get(field.kind.name()).unwrap_or(&none);
            let rule = self.own.get(&path).unwrap_or(&none).or(of_type).or(&self.of_source);
            if let Kind::Struct(Some(index)) = field.kind
                && path.split('.').count() < STRUCT_RULES_DEPTH
            {
                let inner = schema.structs.get(index).into_iter().flat_map(|declared| &declared.fields.list);
                open.extend(inner.map(|field| (format!("{path}.{}", field.key), field)));
            }
            // A field with the name of an envelope member is read like that member.
            self.rules.entry(path).or_insert(rule);
        }
    }
}

/// Reads a field's value from a source object. `None` if it is not there.
pub(super) fn apply(
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
