//! Metadata: the record types and the fields of their records, built up or read from JSON.
//!
//! The document itself is kept, so what this version does not know goes to the platform unchanged; the methods are a
//! typed way to write it. [`Metadata::check`] reads all of it and reports every inconsistency at once.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::broken::not_json;
use super::finding::{Finding, Findings, Rule, Severity};
use super::hints::meant_or_one_of;
use super::locate::locate_all;
use super::path::{FieldPath, quoted};
use super::schema::{SCHEMA_VERSION, Schema};
use super::{any, read};

/// The external domain metadata of an extractor: the document that its metadata phase delivers.
///
/// ```
/// use highwater::record::{EnumValue, Field, Metadata, RecordType};
/// let metadata = Metadata::new()
///     .record_type("users", RecordType::new().field("email", Field::text().identifier()))
///     .record_type(
///         "issues",
///         RecordType::new()
///             .name("Issue")
///             .field("title", Field::text().required().max(255))
///             .field("owner", Field::reference(["#record:users"]))
///             .field("labels", Field::enumeration(["bug", "idea"]).collection())
///             .field("priority", Field::enumeration([EnumValue::new("p0").name("Blocker"), "p1".into()])),
///     );
/// assert_eq!(metadata.check(), []);
/// // It is one JSON document: `Record::flat(&metadata)` is the one record of the metadata artifact.
/// assert!(highwater::Record::flat(&metadata)?.to_line().starts_with(r#"{"schema_version":"v0.2.0","#));
/// # Ok::<(), highwater::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Metadata {
    document: Value,
    /// The text that it was read from, as long as the document has not changed.
    text: Option<Arc<str>>,
}

impl Default for Metadata {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.document == other.document
    }
}

impl Metadata {
    /// Metadata without any record type yet.
    pub fn new() -> Self {
        Self { document: json!({"schema_version": SCHEMA_VERSION, "record_types": {}}), text: None }
    }

    /// Reads metadata from JSON text. Any JSON is kept unchanged; [`Metadata::check`] finds what is wrong with it.
    ///
    /// ```
    /// use highwater::record::Metadata;
    /// let metadata = Metadata::from_json(
    ///     r##"{"record_types": {"issues": {"fields": {
    ///         "owner": {"type": "reference", "reference": {"refers_to": {"#record:user": {}}}}
    ///     }}, "users": {"fields": {}}}}"##,
    /// )?;
    /// let findings = metadata.check();
    /// assert_eq!(findings[0].path.to_string(), r##"record_types.issues.fields.owner.reference.refers_to.#record:user"##);
    /// assert_eq!(findings[0].line, Some(2));
    /// assert_eq!(findings[0].expected.as_deref(), Some(r#"did you mean "users"?"#));
    /// # Ok::<(), highwater::record::Findings>(())
    /// ```
    ///
    /// # Errors
    /// A finding with the line, if the text is not JSON.
    pub fn from_json(text: &str) -> Result<Self, Findings> {
        match serde_json::from_str(text) {
            Ok(document) => Ok(Self { document, text: Some(text.into()) }),
            Err(error) => Err(Findings::one(not_json(text.as_bytes(), &error, 1))),
        }
    }

    /// [`Metadata::from_json`] from bytes, which must be UTF-8.
    ///
    /// # Errors
    /// Those of [`Metadata::from_json`].
    pub fn from_slice(text: &[u8]) -> Result<Self, Findings> {
        match std::str::from_utf8(text) {
            Ok(text) => Self::from_json(text),
            Err(error) => {
                let line =
                    1 + text.iter().take(error.valid_up_to()).filter(|&&byte| byte == b'\n').count() as u64;
                let message = "the text is not UTF-8".to_owned();
                let mut finding = Finding::new(Severity::Error, Rule::Json, FieldPath::default(), message)
                    .expecting("write JSON in that encoding");
                finding.line = Some(line);
                Err(Findings::one(finding))
            }
        }
    }

    /// Metadata from JSON that is parsed already. Findings in it have no line.
    pub fn from_value(document: Value) -> Self {
        Self { document, text: None }
    }

    /// Adds a record type, or replaces the one of that key, which is the item type of its records. An array of its
    /// fields is enough if there is no more to say of it.
    #[must_use]
    pub fn record_type(self, key: impl Into<String>, record_type: impl Into<RecordType>) -> Self {
        self.with_member("record_types", key.into(), record_type.into().0)
    }

    /// Adds a category, with the name that people see, or replaces the one of that key.
    #[must_use]
    pub fn category(self, key: impl Into<String>, name: impl Into<String>) -> Self {
        let name = Value::String(name.into());
        self.with_member("record_type_categories", key.into(), Map::from_iter([("name".to_owned(), name)]))
    }

    /// Adds a struct type with its fields, or replaces the one of that key.
    #[must_use]
    pub fn struct_type<K: Into<String>>(
        self,
        key: impl Into<String>,
        fields: impl IntoIterator<Item = (K, Field)>,
    ) -> Self {
        let fields = fields.into_iter().map(|(key, field)| (key.into(), Value::Object(field.into_map())));
        let fields = Value::Object(fields.collect());
        self.with_member("struct_types", key.into(), Map::from_iter([("fields".to_owned(), fields)]))
    }

    /// The keys of the record types, in the order of the document.
    pub fn record_types(&self) -> impl Iterator<Item = &str> {
        let record_types = self.document.get("record_types").and_then(Value::as_object);
        record_types.into_iter().flat_map(|types| types.keys().map(String::as_str))
    }

    /// Finds every inconsistency, in the order of the document: errors, and warnings about what is merely ignored.
    /// Metadata that the platform accepts completely has no findings.
    pub fn check(&self) -> Vec<Finding> {
        let (_, mut findings) = read::read(&self.document);
        if let Some(text) = &self.text {
            findings.extend(any::duplicate_keys(text));
            locate_all(&mut findings, text, 1);
            findings.sort_by_key(|finding| finding.line);
        }
        findings
    }

    /// The record type in the form that the checks use.
    pub(super) fn schema_of(&self, record_type: &str) -> Result<(Arc<Schema>, usize), Findings> {
        let (schema, _) = read::read(&self.document);
        if let Some(index) = schema.record_types.iter().position(|declared| declared.key == record_type) {
            return Ok((Arc::new(schema), index));
        }
        let message = format!("the metadata declares no record type {}", quoted(record_type));
        let known = schema.record_types.iter().map(|declared| declared.key.as_str());
        let expected = meant_or_one_of(record_type, "declared record types", known);
        let finding = Finding::new(Severity::Error, Rule::RecordType, FieldPath::default(), message);
        Err(Findings::one(finding.expecting(expected)))
    }

    fn with_member(mut self, group: &str, key: String, member: Map<String, Value>) -> Self {
        self.text = None;
        if let Value::Object(document) = &mut self.document {
            let group = document.entry(group).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(members) = group {
                members.insert(key, Value::Object(member));
            }
        }
        self
    }
}

impl Serialize for Metadata {
    /// The document itself.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.document.serialize(serializer)
    }
}

impl From<Metadata> for Value {
    /// The document itself.
    fn from(metadata: Metadata) -> Self {
        metadata.document
    }
}

/// A record type, while it is built.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordType(Map<String, Value>);

impl Default for RecordType {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Into<String>, const N: usize> From<[(K, Field); N]> for RecordType {
    fn from(fields: [(K, Field); N]) -> Self {
        fields.into_iter().fold(Self::new(), |record_type, (key, field)| record_type.field(key, field))
    }
}

impl RecordType {
    /// A record type without fields.
    pub fn new() -> Self {
        Self(Map::from_iter([("fields".to_owned(), Value::Object(Map::new()))]))
    }

    /// Sets the name that people see.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        self.set("name", name.into())
    }

    /// Puts it into a category, which [`Metadata::category`] declares.
    #[must_use]
    pub fn category(self, key: impl Into<String>) -> Self {
        self.set("category", key.into())
    }

    /// Adds a field, or replaces the one of that key. `id`, `created_date` and `modified_date` are never declared.
    #[must_use]
    pub fn field(mut self, key: impl Into<String>, field: Field) -> Self {
        if let Some(Value::Object(fields)) = self.0.get_mut("fields") {
            fields.insert(key.into(), Value::Object(field.into_map()));
        }
        self
    }

    /// Declares that its records have no id.
    #[must_use]
    pub fn no_identifier(self) -> Self {
        self.set("no_identifier", true)
    }

    /// Adds a workflow.
    #[must_use]
    pub fn stage_diagram(self, diagram: StageDiagram) -> Self {
        self.set("stage_diagram", diagram.0)
    }

    /// Names the links of this type in both directions: for values of the enum field `link_type_field`, how they read
    /// forward and backward (`"blocks"`, `"is blocked by"`).
    #[must_use]
    pub fn link_naming<'n>(
        self,
        link_type_field: &str,
        names: impl IntoIterator<Item = (&'n str, &'n str, &'n str)>,
    ) -> Self {
        let names = names
            .into_iter()
            .map(|(key, forward, backward)| {
                (key.to_owned(), json!({"forward_name": forward, "backward_name": backward}))
            })
            .collect::<Map<String, Value>>();
        self.set(
            "link_naming_data",
            json!({"link_type_field": link_type_field, "link_direction_names": names}),
        )
    }

    /// Sets any key of the record type, for example one that has no method here.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }
}

/// A field of a record type or a struct type, while it is built.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    attributes: Map<String, Value>,
    /// The settings of its own type.
    settings: Map<String, Value>,
    kind: &'static str,
}

macro_rules! plain_fields {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name() -> Self {
            Self::of($kind)
        }
    )*};
}

impl Field {
    plain_fields! {
        /// `true` or `false`.
        bool = "bool";
        /// A number without decimals.
        int = "int";
        /// A number.
        float = "float";
        /// Plain text.
        text = "text";
        /// Text with marks, and mentions of other records: a string, or an array of strings and mentions such as
        /// `{"ref_type": "users", "id": "7"}`. Which marks the platform reads is not checked.
        rich_text = "rich_text";
        /// A day: `2020-12-31`.
        date = "date";
        /// A moment: `2020-12-31T23:59:59+01:00`.
        timestamp = "timestamp";
        /// What may be done to records, for extractors that import permissions.
        record_type_privilege = "record_type_privilege";
        /// What may be done to fields, for extractors that import permissions.
        field_privilege = "field_privilege";
        /// What may be done under conditions, for extractors that import permissions.
        conditional_privilege = "conditional_privilege";
    }

    /// The id of another record, which may be of any of `targets`: `"#record:users"`, `"#category:people"`.
    pub fn reference<'t>(targets: impl IntoIterator<Item = &'t str>) -> Self {
        Self::of("reference").setting("refers_to", refers_to(targets))
    }

    /// The id and the type of another record: `{"ref_type": "users", "id": "7"}`.
    pub fn typed_reference<'t>(targets: impl IntoIterator<Item = &'t str>) -> Self {
        Self::of("typed_reference").setting("refers_to", refers_to(targets))
    }

    /// One of a set of values.
    pub fn enumeration<V: Into<EnumValue>>(values: impl IntoIterator<Item = V>) -> Self {
        Self::of("enum").setting("values", enum_values(values))
    }

    /// An object of its own, of a type that [`Metadata::struct_type`] declares.
    pub fn structure(key: impl Into<String>) -> Self {
        Self::of("struct").setting("key", key.into())
    }

    /// A permission: a reference to one of `members`, and one of `roles`.
    pub fn permission<'t, V: Into<EnumValue>>(
        members: impl IntoIterator<Item = &'t str>,
        roles: impl IntoIterator<Item = V>,
    ) -> Self {
        let members = json!({"refers_to": refers_to(members)});
        Self::of("permission")
            .setting("member_id", members)
            .setting("role", json!({"values": enum_values(roles)}))
    }

    /// Declares that the source always has a value: a record without one is an error.
    #[must_use]
    pub fn required(self) -> Self {
        self.set("is_required", true)
    }

    /// Declares that the field identifies its record, so that references may be [by it](Self::by_field).
    #[must_use]
    pub fn identifier(self) -> Self {
        self.set("is_identifier", true)
    }

    /// Makes the field a collection: an array of values of its type.
    #[must_use]
    pub fn collection(self) -> Self {
        self.set("collection", json!({}))
    }

    /// Makes the field a collection of `min` to `max` elements.
    #[must_use]
    pub fn collection_of(self, min: u64, max: u64) -> Self {
        self.set("collection", json!({"min_length": min, "max_length": max}))
    }

    /// Sets the smallest number allowed or, for text, the smallest number of characters.
    #[must_use]
    pub fn min(self, min: impl Into<Value>) -> Self {
        let key = if self.kind == "text" { "min_length" } else { "min" };
        self.setting(key, min)
    }

    /// Sets the largest number allowed or, for text, the largest number of characters.
    #[must_use]
    pub fn max(self, max: impl Into<Value>) -> Self {
        let key = if self.kind == "text" { "max_length" } else { "max" };
        self.setting(key, max)
    }

    /// Declares that references to `target` are by its field `field`, an identifier, instead of by its id.
    #[must_use]
    pub fn by_field(mut self, target: &str, field: &str) -> Self {
        if let Some(Value::Object(targets)) = self.settings.get_mut("refers_to") {
            targets.insert(target.to_owned(), json!({"by_field": field}));
        }
        self
    }

    /// Sets the name that people see.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        self.set("name", name.into())
    }

    /// Sets any attribute of the field, for example one that has no method here.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// Sets any setting of the field's own type, for example one that has no method here.
    #[must_use]
    pub fn setting(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings.insert(key.into(), value.into());
        self
    }

    fn of(kind: &'static str) -> Self {
        Self { attributes: Map::new(), settings: Map::new(), kind }
    }

    fn into_map(self) -> Map<String, Value> {
        let mut map = Map::from_iter([("type".to_owned(), Value::from(self.kind))]);
        map.extend(self.attributes);
        if !self.settings.is_empty() {
            map.insert(self.kind.to_owned(), Value::Object(self.settings));
        }
        map
    }
}

fn refers_to<'t>(targets: impl IntoIterator<Item = &'t str>) -> Map<String, Value> {
    targets.into_iter().map(|target| (target.to_owned(), json!({}))).collect()
}

fn enum_values<V: Into<EnumValue>>(values: impl IntoIterator<Item = V>) -> Vec<Value> {
    values.into_iter().map(|value| Value::Object(value.into().0)).collect()
}

/// One value of an enum.
#[derive(Debug, Clone, PartialEq)]
pub struct EnumValue(Map<String, Value>);

impl EnumValue {
    /// A value that records hold as `key`.
    pub fn new(key: impl Into<String>) -> Self {
        Self(Map::from_iter([("key".to_owned(), Value::String(key.into()))]))
    }

    /// Sets the name that people see.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.0.insert("name".to_owned(), Value::String(name.into()));
        self
    }

    /// Declares that records may still hold the value, but that it is no longer used.
    #[must_use]
    pub fn deprecated(mut self) -> Self {
        self.0.insert("is_deprecated".to_owned(), Value::Bool(true));
        self
    }
}

impl From<&str> for EnumValue {
    fn from(key: &str) -> Self {
        Self::new(key)
    }
}

impl From<String> for EnumValue {
    fn from(key: String) -> Self {
        Self::new(key)
    }
}

/// The workflow of a record type, while it is built.
///
/// ```
/// use highwater::record::{Field, Metadata, RecordType, StageDiagram};
/// let diagram = StageDiagram::new("status")
///     .stage("todo", "open", ["done"])
///     .stage("done", "closed", [])
///     .starting_stage("todo");
/// let issues = RecordType::new().field("status", Field::enumeration(["todo", "done"])).stage_diagram(diagram);
/// assert_eq!(Metadata::new().record_type("issues", issues).check(), []);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct StageDiagram(Map<String, Value>);

impl StageDiagram {
    /// A diagram of the values of the enum field `controlling_field`.
    pub fn new(controlling_field: impl Into<String>) -> Self {
        let field = Value::String(controlling_field.into());
        Self(Map::from_iter([("controlling_field".to_owned(), field), ("stages".to_owned(), json!({}))]))
    }

    /// Adds a stage for the enum value `key`, in a state (`open`, `in_progress`, `closed`, or one declared with
    /// [`StageDiagram::state`]), from which those in `transitions_to` can be reached.
    #[must_use]
    pub fn stage<'t>(
        mut self,
        key: impl Into<String>,
        in_state: &str,
        transitions_to: impl IntoIterator<Item = &'t str>,
    ) -> Self {
        let transitions: Vec<&str> = transitions_to.into_iter().collect();
        let mut stage = Map::from_iter([("state".to_owned(), Value::from(in_state))]);
        if !transitions.is_empty() {
            stage.insert("transitions_to".to_owned(), Value::from(transitions));
        }
        if let Some(Value::Object(declared)) = self.0.get_mut("stages") {
            declared.insert(key.into(), Value::Object(stage));
        }
        self
    }

    /// Sets the stage that a new record is in.
    #[must_use]
    pub fn starting_stage(mut self, key: impl Into<String>) -> Self {
        self.0.insert("starting_stage".to_owned(), Value::String(key.into()));
        self
    }

    /// Declares a state, with the name that people see.
    #[must_use]
    pub fn state(mut self, key: impl Into<String>, name: &str, is_end_state: bool) -> Self {
        if let Value::Object(declared) = self.0.entry("states").or_insert_with(|| json!({})) {
            declared.insert(key.into(), json!({"name": name, "is_end_state": is_end_state}));
        }
        self
    }

    /// Declares that every stage can be reached from every other; no transitions are listed.
    #[must_use]
    pub fn all_transitions_allowed(mut self) -> Self {
        self.0.insert("all_transitions_allowed".to_owned(), Value::Bool(true));
        self
    }
}
