//! Reads metadata into the form that the checks use, and finds every inconsistency.
//!
//! One walk does both, so there is one list of what metadata may contain. What cannot be understood is a finding, and
//! is then treated as accepting anything. So one mistake does not hide the next, and does not appear again in every
//! record. Source: the platform's metadata schema, version `v0.2.0`.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::finding::{Finding, Rule, Sink};
use super::hints::{meant_or_one_of, nearest, type_of_another_system};
use super::path::{At, quoted, shown};
use super::schema::{
    EnumDecl, EnumValue, FIELD_TYPES, FieldDecl, Fields, Kind, RESERVED, Range, RecordDecl, SCHEMA_VERSION,
    Schema, StructDecl, Targets, types_with_block,
};
use crate::model::ItemType;

/// Reads a metadata document, and checks it.
pub(super) fn read(document: &Value) -> (Schema, Vec<Finding>) {
    let mut sink = Sink::default();
    let schema = match document {
        Value::Object(document) => Reader::new(document, &mut sink).document(document),
        other => {
            let message = format!("the metadata is {}, not an object", shown(other));
            sink.error(
                &At::ROOT,
                Rule::Shape,
                message,
                "expected {\"schema_version\": ..., \"record_types\": {...}}",
            );
            Schema::default()
        }
    };
    (schema, sink.take())
}

/// What is declared, by key, so that a reference can be looked up before its target was read.
pub(super) struct Reader<'v, 's> {
    pub(super) record_types: &'v Map<String, Value>,
    pub(super) categories: &'v Map<String, Value>,
    structs: &'v Map<String, Value>,
    pub(super) categories_unreadable: bool,
    structs_unreadable: bool,
    pub(super) sink: &'s mut Sink,
}

static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

/// Whether a group of declarations is there but not an object, so that no name can be looked up in it. That already
/// has a finding.
fn is_unreadable(document: &Map<String, Value>, key: &str) -> bool {
    document.get(key).is_some_and(|group| !group.is_object())
}

pub(super) fn member<'v>(map: &'v Map<String, Value>, key: &str) -> &'v Map<String, Value> {
    map.get(key).and_then(Value::as_object).unwrap_or(&NONE)
}

impl<'v, 's> Reader<'v, 's> {
    fn new(document: &'v Map<String, Value>, sink: &'s mut Sink) -> Self {
        Self {
            record_types: member(document, "record_types"),
            categories: member(document, "record_type_categories"),
            structs: member(document, "struct_types"),
            categories_unreadable: is_unreadable(document, "record_type_categories"),
            structs_unreadable: is_unreadable(document, "struct_types"),
            sink,
        }
    }

    fn document(mut self, document: &'v Map<String, Value>) -> Schema {
        const KEYS: [&str; 5] =
            ["schema_version", "record_types", "record_type_categories", "struct_types", "team_data"];
        let root = At::ROOT;
        self.known_keys(&root, document, &KEYS);
        if let Some(version) = document.get("schema_version")
            && version != SCHEMA_VERSION
        {
            let message = format!("the schema version is {}", shown(version));
            let at = root.key("schema_version");
            self.sink.error(
                &at,
                Rule::SchemaVersion,
                message,
                format!("write \"{SCHEMA_VERSION}\", or leave it out"),
            );
        }
        for key in ["record_types", "record_type_categories", "struct_types"] {
            let at = root.key(key);
            match document.get(key) {
                Some(value) => {
                    let example = match key {
                        "record_types" => {
                            "{\"issues\": {\"fields\": {...}}, ...}: a key for each record type"
                        }
                        "struct_types" => {
                            "{\"address\": {\"fields\": {...}}, ...}: a key for each struct type"
                        }
                        _ => "{\"work\": {\"name\": \"Work\"}, ...}: a key for each category",
                    };
                    self.object(&at, value, example);
                }
                None if key == "record_types" => {
                    let expected = if document.contains_key("id") && document.contains_key("data") {
                        "this is a record: metadata is {\"record_types\": {\"issues\": {\"fields\": {...}}}}"
                    } else {
                        "add \"record_types\": {\"issues\": {\"fields\": {...}}}, a key for each item type"
                    };
                    self.sink.error(&root, Rule::Shape, "record_types is missing", expected);
                }
                None => {}
            }
        }
        let at = root.key("record_type_categories");
        for (key, value) in self.categories {
            let at = at.key(key);
            let Some(category) = self.object(&at, value, "an object, which may be empty: {}") else {
                continue;
            };
            self.known_keys(&at, category, &["name", "are_record_type_conversions_possible"]);
            self.string(&at, category, "name");
            self.boolean(&at, category, "are_record_type_conversions_possible");
        }
        let structs = self.struct_types(&root);
        let record_types = self.record_types(&root);
        let schema = Schema { record_types, structs };
        self.unsatisfiable_structs(&root, &schema);
        self.defaults(&root, &schema);
        schema
    }

    fn struct_types(&mut self, root: &At<'_>) -> Vec<StructDecl> {
        let at = root.key("struct_types");
        let mut structs = Vec::new();
        for (key, value) in self.structs {
            let at = at.key(key);
            let mut fields = Fields::default();
            if let Some(declared) = self.object(&at, value, "{\"fields\": {...}}") {
                self.known_keys(&at, declared, &["fields", "name"]);
                self.string(&at, declared, "name");
                fields = self.fields(&at, declared);
            }
            structs.push(StructDecl { key: key.clone(), fields });
        }
        structs
    }

    fn record_types(&mut self, root: &At<'_>) -> Vec<RecordDecl> {
        let at = root.key("record_types");
        let mut record_types = Vec::new();
        for (key, value) in self.record_types {
            let at = at.key(key);
            if let Err(error) = ItemType::new(key.as_str()) {
                self.sink.error(
                    &at,
                    Rule::RecordType,
                    error.to_string(),
                    "a record type is an item type by its key",
                );
            }
            if matches!(
                key.as_str(),
                "attachments" | "ssor_attachment" | "external_domain_metadata" | "external_sync_units"
            ) {
                let message = format!("{} is an item type of the platform's own", quoted(key));
                self.sink.warning(&at, Rule::RecordType, message, "choose another key for this record type");
            }
            let mut read = RecordDecl { key: key.clone(), fields: Fields::default(), no_identifier: false };
            if let Some(declared) = self.object(&at, value, "{\"fields\": {...}}") {
                self.record_type(&at, declared, &mut read);
            }
            record_types.push(read);
        }
        record_types
    }

    fn record_type(&mut self, at: &At<'_>, declared: &'v Map<String, Value>, read: &mut RecordDecl) {
        const KEYS: [&str; 12] = [
            "fields",
            "name",
            "description",
            "category",
            "is_loadable",
            "is_snapshot",
            "no_identifier",
            "scope",
            "conditions",
            "stage_diagram",
            "link_naming_data",
            "attachments",
        ];
        self.known_keys(at, declared, &KEYS);
        for key in ["name", "description"] {
            self.string(at, declared, key);
        }
        for key in ["is_loadable", "is_snapshot"] {
            self.boolean(at, declared, key);
        }
        read.no_identifier = self.boolean(at, declared, "no_identifier");
        if let Some(category) = self.string(at, declared, "category")
            && !self.categories.contains_key(category)
            && !self.categories_unreadable
        {
            let message =
                format!("the category {} is not declared under record_type_categories", quoted(category));
            let expected =
                meant_or_one_of(category, "declared categories", self.categories.keys().map(String::as_str));
            self.sink.error(&at.key("category"), Rule::Category, message, expected);
        }
        self.one_of(at, declared, "scope", &["metadata_is_system_scoped", "data_is_system_scoped"]);
        if let Some(attachments) = self.block(at, declared, "attachments") {
            let at = at.key("attachments");
            self.known_keys(&at, attachments, &["is_extractable", "is_loadable"]);
            self.boolean(&at, attachments, "is_extractable");
            self.boolean(&at, attachments, "is_loadable");
        }
        read.fields = self.fields(at, declared);
        for field in &mut read.fields.list {
            if !RESERVED.contains(&field.key.as_str()) {
                continue;
            }
            // What is beside the data is always there, whether the data has it or not.
            field.required = false;
            if field.key != "id" {
                let message = format!("{} is declared as a field", quoted(&field.key));
                let expected = "remove it: every record has it beside its data, where the platform reads it";
                let at = at.key("fields");
                self.sink.warning(&at.key(&field.key), Rule::ReservedField, message, expected);
            }
        }
        if let Some(conditions) = self.block(at, declared, "conditions") {
            self.conditions(&at.key("conditions"), conditions, &read.fields);
        }
        if let Some(diagram) = self.block(at, declared, "stage_diagram") {
            self.stage_diagram(&at.key("stage_diagram"), diagram, &read.fields);
        }
        if let Some(naming) = self.block(at, declared, "link_naming_data") {
            self.link_naming(&at.key("link_naming_data"), naming, &read.fields);
        }
    }

    fn fields(&mut self, at: &At<'_>, declared: &'v Map<String, Value>) -> Fields {
        let mut fields = Fields::default();
        let Some(value) = declared.get("fields") else {
            let expected = "add \"fields\": {\"title\": {\"type\": \"text\"}, ...}";
            self.sink.error(at, Rule::Shape, "fields is missing", expected);
            return fields;
        };
        let at = at.key("fields");
        let Some(declared) =
            self.object(&at, value, "{\"title\": {\"type\": \"text\"}, ...}: a key for each field")
        else {
            return fields;
        };
        for (key, value) in declared {
            let at = at.key(key);
            let field = match self.object(&at, value, "{\"type\": \"text\"}") {
                Some(declared) => self.field(&at, key, declared),
                None => FieldDecl {
                    key: key.clone(),
                    kind: Kind::Any,
                    collection: None,
                    required: false,
                    default: None,
                },
            };
            fields.push(field);
        }
        fields
    }

    fn field(&mut self, at: &At<'_>, key: &str, declared: &'v Map<String, Value>) -> FieldDecl {
        const ATTRIBUTES: [&str; 13] = [
            "type",
            "name",
            "description",
            "is_required",
            "is_read_only",
            "is_write_only",
            "is_indexed",
            "is_identifier",
            "is_filterable",
            "default_value",
            "collection",
            "type_key",
            "field_reference",
        ];
        let known: Vec<&str> = ATTRIBUTES.into_iter().chain(types_with_block()).collect();
        self.known_keys(at, declared, &known);
        for key in ["name", "description"] {
            self.string(at, declared, key);
        }
        for key in ["is_read_only", "is_indexed", "is_identifier", "is_filterable"] {
            self.boolean(at, declared, key);
        }
        let required = self.boolean(at, declared, "is_required");
        let write_only = self.boolean(at, declared, "is_write_only");
        if let Some(block) = self.block(at, declared, "type_key") {
            self.type_keys(&at.key("type_key"), block);
        }
        let kind = match declared.get("type") {
            Some(Value::String(name)) => {
                for block in types_with_block() {
                    if block != name && declared.get(block).is_some_and(|value| !value.is_null()) {
                        let message = format!(
                            "the field is of type {}, but has settings for {}",
                            quoted(name),
                            quoted(block)
                        );
                        let remove = if FIELD_TYPES.contains(&name.as_str()) { "remove it, or " } else { "" };
                        let expected = format!("{remove}make the type {}", quoted(block));
                        self.sink.error(&at.key(block), Rule::FieldType, message, expected);
                    }
                }
                self.kind(at, name, declared)
            }
            Some(other) => {
                let message = format!("the type is {}", shown(other));
                let expected = format!("expected one of {}", FIELD_TYPES.join(", "));
                self.sink.error(&at.key("type"), Rule::FieldType, message, expected);
                Kind::Any
            }
            None => {
                let expected = format!("add \"type\": one of {}", FIELD_TYPES.join(", "));
                self.sink.error(at, Rule::FieldType, "the field has no type", expected);
                Kind::Any
            }
        };
        let collection = self.block(at, declared, "collection").map(|block| {
            let at = at.key("collection");
            self.lengths(&at, block)
        });
        FieldDecl {
            key: key.to_owned(),
            kind,
            collection,
            required: required && !write_only,
            default: declared.get("default_value").filter(|value| !value.is_null()).cloned(),
        }
    }

    fn kind(&mut self, at: &At<'_>, name: &str, declared: &'v Map<String, Value>) -> Kind {
        let settings = at.key(name);
        match name {
            "bool" => Kind::Bool,
            "rich_text" => Kind::RichText,
            "date" => Kind::Date,
            "timestamp" => Kind::Timestamp,
            "int" => Kind::Int(match self.block(at, declared, name) {
                Some(block) => {
                    self.known_keys(&settings, block, &["min", "max"]);
                    let whole = |value: &Value| {
                        value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
                    };
                    self.range(&settings, block, "min", "max", "a whole number", whole)
                }
                None => Range::default(),
            }),
            "float" => Kind::Float(match self.block(at, declared, name) {
                Some(block) => {
                    self.known_keys(&settings, block, &["min", "max"]);
                    self.range(&settings, block, "min", "max", "a number", Value::as_f64)
                }
                None => Range::default(),
            }),
            "text" => Kind::Text(match self.block(at, declared, name) {
                Some(block) => self.lengths(&settings, block),
                None => Range::default(),
            }),
            "enum" => match declared.get(name) {
                Some(value) if !value.is_null() => {
                    let values = self.object(&settings, value, "{\"values\": [{\"key\": ...}, ...]}");
                    values.and_then(|block| self.enumeration(&settings, block)).map_or(Kind::Any, Kind::Enum)
                }
                _ => {
                    let expected = "add \"enum\": {\"values\": [{\"key\": \"open\"}, {\"key\": \"closed\"}]}";
                    self.sink.error(at, Rule::EnumValues, "the enum has no values", expected);
                    Kind::Any
                }
            },
            "reference" | "typed_reference" => {
                let Some(value) = declared.get(name) else {
                    let message = format!("the {name} does not say what it refers to");
                    let expected = format!("add \"{name}\": {{\"refers_to\": {{\"#record:users\": {{}}}}}}");
                    self.sink.error(at, Rule::Reference, message, expected);
                    return Kind::Any;
                };
                let targets = self
                    .object(&settings, value, "{\"refers_to\": {\"#record:users\": {}}}")
                    .and_then(|block| self.targets(&settings, block, &["refers_to", "reference_type"]));
                match targets {
                    Some(targets) if name == "reference" => Kind::Reference(targets),
                    Some(targets) => Kind::TypedReference(targets),
                    None => Kind::Any,
                }
            }
            "struct" => self.structure(at, declared),
            "permission" => self.permission(at, declared),
            "record_type_privilege" => self.privilege(at, declared, "record_type_privilege"),
            "field_privilege" => self.privilege(at, declared, "field_privilege"),
            "conditional_privilege" => self.privilege(at, declared, "conditional_privilege"),
            "participation" => {
                if let Some(block) = self.block(at, declared, name) {
                    self.targets(&settings, block, &["refers_to"]);
                }
                Kind::Participation
            }
            unknown => {
                let message = format!("there is no field type {}", quoted(unknown));
                let near =
                    nearest(unknown, FIELD_TYPES).map(|near| format!("did you mean {}?", quoted(near)));
                let expected = near
                    .or_else(|| type_of_another_system(unknown))
                    .unwrap_or_else(|| format!("expected one of {}", FIELD_TYPES.join(", ")));
                self.sink.error(&at.key("type"), Rule::FieldType, message, expected);
                Kind::Any
            }
        }
    }

    fn structure(&mut self, at: &At<'_>, declared: &'v Map<String, Value>) -> Kind {
        let settings = at.key("struct");
        let Some(block) = self.block(at, declared, "struct") else {
            if !declared.contains_key("struct") {
                let expected =
                    "add \"struct\": {\"key\": \"address\"} and declare \"address\" under struct_types";
                self.sink.error(
                    at,
                    Rule::Struct,
                    "the field does not say which struct type it has",
                    expected,
                );
            }
            return Kind::Any;
        };
        self.known_keys(&settings, block, &["key"]);
        let Some(key) = self.string(&settings, block, "key") else {
            return Kind::Struct(None);
        };
        match self.structs.keys().position(|declared| declared == key) {
            Some(index) => Kind::Struct(Some(index)),
            None if self.structs_unreadable => Kind::Any,
            None => {
                let message = format!("the struct type {} is not declared under struct_types", quoted(key));
                let expected =
                    meant_or_one_of(key, "declared struct types", self.structs.keys().map(String::as_str));
                self.sink.error(&settings.key("key"), Rule::Struct, message, expected);
                Kind::Any
            }
        }
    }

    fn permission(&mut self, at: &At<'_>, declared: &'v Map<String, Value>) -> Kind {
        let mut member = Targets::default();
        let mut role = None;
        if let Some(block) = self.block(at, declared, "permission") {
            let at = at.key("permission");
            self.known_keys(&at, block, &["member_id", "role"]);
            if let Some(block) = self.block(&at, block, "member_id") {
                member = self
                    .targets(&at.key("member_id"), block, &["refers_to", "reference_type"])
                    .unwrap_or_default();
            }
            if let Some(block) = self.block(&at, block, "role") {
                role = self.enumeration(&at.key("role"), block);
            }
        }
        Kind::Permission { member, role }
    }

    fn privilege(&mut self, at: &At<'_>, declared: &'v Map<String, Value>, name: &'static str) -> Kind {
        if let Some(block) = self.block(at, declared, name) {
            self.type_keys(&at.key(name), block);
        }
        Kind::Privilege(name)
    }

    fn type_keys(&mut self, at: &At<'_>, block: &'v Map<String, Value>) {
        self.known_keys(at, block, &["type_keys"]);
        let keys = match block.get("type_keys") {
            Some(Value::Array(keys)) => keys,
            Some(other) => {
                let message = format!("type_keys is {}", shown(other));
                self.sink.error(
                    &at.key("type_keys"),
                    Rule::Shape,
                    message,
                    "expected [\"#record:issues\", ...]",
                );
                return;
            }
            None => {
                self.sink.error(
                    at,
                    Rule::Shape,
                    "type_keys is missing",
                    "add \"type_keys\": [\"#record:issues\", ...]",
                );
                return;
            }
        };
        let at = at.key("type_keys");
        for (position, key) in keys.iter().enumerate() {
            let at = at.position(position);
            match key {
                Value::String(key) => {
                    self.target(&at, key);
                }
                other => {
                    let message = format!("the type key is {}", shown(other));
                    self.sink.error(&at, Rule::Shape, message, "expected a string like \"#record:issues\"");
                }
            }
        }
    }

    fn enumeration(&mut self, at: &At<'_>, block: &'v Map<String, Value>) -> Option<EnumDecl> {
        self.known_keys(at, block, &["values"]);
        let values = match block.get("values") {
            Some(Value::Array(values)) if !values.is_empty() => values,
            Some(Value::Array(_)) | None => {
                let expected = "add \"values\": [{\"key\": \"open\"}, {\"key\": \"closed\"}]";
                self.sink.error(at, Rule::EnumValues, "the enum has no values", expected);
                return None;
            }
            Some(other) => {
                let message = format!("values is {}", shown(other));
                self.sink.error(
                    &at.key("values"),
                    Rule::EnumValues,
                    message,
                    "expected [{\"key\": \"open\"}, ...]",
                );
                return None;
            }
        };
        let mut read = EnumDecl::default();
        let mut names: HashMap<&str, usize> = HashMap::new();
        let at = at.key("values");
        for (position, value) in values.iter().enumerate() {
            let at = at.position(position);
            let Value::Object(value) = value else {
                let expected = match value {
                    Value::String(key) => format!("write {{\"key\": {}}}", quoted(key)),
                    _ => "expected {\"key\": \"open\", \"name\": \"Open\"}".to_owned(),
                };
                self.sink.error(&at, Rule::EnumValues, format!("the value is {}", shown(value)), expected);
                continue;
            };
            self.known_keys(&at, value, &["key", "name", "description", "is_deprecated"]);
            self.string(&at, value, "description");
            let name = self.string(&at, value, "name").map(str::to_owned);
            let deprecated = self.boolean(&at, value, "is_deprecated");
            let Some(key) = value.get("key") else {
                self.sink.error(
                    &at,
                    Rule::EnumValues,
                    "the value has no key",
                    "add \"key\": what records hold, as a string",
                );
                continue;
            };
            let Some(key) = key.as_str() else {
                let message = format!("the key is {}", shown(key));
                let expected = format!("keys are strings, and so are the values in records: write \"{key}\"");
                self.sink.error(&at.key("key"), Rule::EnumValues, message, expected);
                continue;
            };
            if let Some(first) = read.index.get(key) {
                let message = format!("the key {} occurs twice, first in values[{first}]", quoted(key));
                self.sink.error(
                    &at.key("key"),
                    Rule::EnumValues,
                    message,
                    "remove one, or give it a key of its own",
                );
                continue;
            }
            if let Some(name) = value.get("name").and_then(Value::as_str)
                && let Some(first) = names.insert(name, position)
            {
                let message = format!("the name {} occurs twice, first in values[{first}]", quoted(name));
                let expected = "give each value a different name: people choose by it";
                self.sink.warning(&at.key("name"), Rule::EnumValues, message, expected);
            }
            read.index.insert(key.to_owned(), read.values.len());
            read.values.push(EnumValue { key: key.to_owned(), name, deprecated });
        }
        if read.values.is_empty() { None } else { Some(read) }
    }

    /// A struct that requires itself can have no value.
    fn unsatisfiable_structs(&mut self, root: &At<'_>, schema: &Schema) {
        let at = root.key("struct_types");
        for (index, declared) in schema.structs.iter().enumerate() {
            let mut reached = vec![false; schema.structs.len()];
            let mut open = vec![index];
            while let Some(next) = open.pop() {
                let required =
                    schema.structs.get(next).into_iter().flat_map(|declared| &declared.fields.list);
                for field in required.filter(|field| field.required && field.collection.is_none()) {
                    if let Kind::Struct(Some(inner)) = field.kind
                        && let Some(seen) = reached.get_mut(inner)
                        && !std::mem::replace(seen, true)
                    {
                        open.push(inner);
                    }
                }
            }
            if reached.get(index) == Some(&true) {
                let message =
                    format!("the struct type {} requires itself, so it has no value", quoted(&declared.key));
                let expected = "make one of the fields in this cycle optional";
                self.sink.error(&at.key(&declared.key), Rule::Struct, message, expected);
            }
        }
    }

    fn defaults(&mut self, root: &At<'_>, schema: &Schema) {
        for (group, key, fields) in schema
            .record_types
            .iter()
            .map(|declared| ("record_types", &declared.key, &declared.fields))
            .chain(schema.structs.iter().map(|declared| ("struct_types", &declared.key, &declared.fields)))
        {
            let (at_group, field_key) = (root.key(group), key);
            let at_type = at_group.key(field_key);
            let at_fields = at_type.key("fields");
            for field in &fields.list {
                let Some(default) = &field.default else { continue };
                let at_field = at_fields.key(&field.key);
                let at = at_field.key("default_value");
                // The default of a collection is a whole collection or one element.
                let as_whole = super::values::check_value(schema, field, default, false);
                let as_element =
                    field.collection.map(|_| super::values::check_value(schema, field, default, true));
                if let Some(finding) = as_whole.first()
                    && as_element.is_none_or(|findings| !findings.is_empty())
                {
                    let message = format!("the field could not hold its own default: {}", finding.message);
                    self.sink.error(
                        &at,
                        Rule::DefaultValue,
                        message,
                        finding.expected.clone().unwrap_or_default(),
                    );
                }
            }
        }
    }
}
