//! Metadata in the form that the checks use: declarations, looked up by key.

use std::collections::HashMap;

use serde_json::Value;

/// The only version of the format.
pub(super) const SCHEMA_VERSION: &str = "v0.2.0";

/// What every record has beside its data; never declared.
pub(super) const RESERVED: [&str; 3] = ["id", "created_date", "modified_date"];

/// A field that the platform accepts without a declaration: the address of the item in the source.
pub(super) const ITEM_URL: &str = "item_url_field";

pub(super) const FIELD_TYPES: [&str; 16] = [
    "bool",
    "int",
    "float",
    "text",
    "rich_text",
    "reference",
    "typed_reference",
    "enum",
    "date",
    "timestamp",
    "struct",
    "permission",
    "record_type_privilege",
    "field_privilege",
    "conditional_privilege",
    "participation",
];

/// The types that have settings, in a block with the type's name.
pub(super) fn types_with_block() -> impl Iterator<Item = &'static str> {
    let plain = ["bool", "rich_text", "date", "timestamp"];
    FIELD_TYPES.into_iter().filter(move |name| !plain.contains(name))
}

/// Metadata as the checks use it.
#[derive(Debug, Default)]
pub(super) struct Schema {
    pub(super) record_types: Vec<RecordDecl>,
    pub(super) structs: Vec<StructDecl>,
}

#[derive(Debug)]
pub(super) struct RecordDecl {
    pub(super) key: String,
    pub(super) fields: Fields,
    pub(super) no_identifier: bool,
}

#[derive(Debug)]
pub(super) struct StructDecl {
    pub(super) key: String,
    pub(super) fields: Fields,
}

/// The fields of a record type or a struct type, in the order of the document.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) list: Vec<FieldDecl>,
    index: HashMap<String, usize>,
    /// The key of each, as it stands in compact JSON: with quotes, and the colon behind them.
    written: Vec<String>,
}

impl Fields {
    pub(super) fn find(&self, key: &str) -> Option<(usize, &FieldDecl)> {
        let position = *self.index.get(key)?;
        Some((position, self.list.get(position)?))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|field| field.key.as_str())
    }

    /// The key of the field at a position, as it stands in compact JSON, and the colon behind it.
    pub(super) fn written(&self, position: usize) -> Option<&str> {
        self.written.get(position).map(String::as_str)
    }

    pub(super) fn push(&mut self, field: FieldDecl) {
        self.index.insert(field.key.clone(), self.list.len());
        self.written.push(format!("{}:", Value::from(field.key.as_str())));
        self.list.push(field);
    }
}

#[derive(Debug)]
pub(super) struct FieldDecl {
    pub(super) key: String,
    pub(super) kind: Kind,
    /// The allowed number of elements, if it is a collection.
    pub(super) collection: Option<Range<u64>>,
    /// Whether an extracted record must have it. Fields that are only written to the source are not extracted.
    pub(super) required: bool,
    pub(super) default: Option<Value>,
}

/// Bounds, both included.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Range<T> {
    pub(super) min: Option<T>,
    pub(super) max: Option<T>,
}

impl<T: PartialOrd + Copy> Range<T> {
    pub(super) fn contains(&self, value: T) -> bool {
        self.min.is_none_or(|min| value >= min) && self.max.is_none_or(|max| value <= max)
    }
}

#[derive(Debug)]
pub(super) enum Kind {
    Bool,
    Int(Range<i128>),
    Float(Range<f64>),
    Text(Range<u64>),
    RichText,
    Reference(Targets),
    TypedReference(Targets),
    Enum(EnumDecl),
    Date,
    Timestamp,
    /// The index of the struct type; `None` accepts any object.
    Struct(Option<usize>),
    Permission {
        member: Targets,
        role: Option<EnumDecl>,
    },
    /// A privilege may be any object; the platform defines its content.
    Privilege(&'static str),
    /// A reference or an object: the platform documents no more.
    Participation,
    /// The declaration is broken, which has a finding of its own.
    Any,
}

impl Kind {
    /// The type's name in metadata; empty for one that is broken.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int(_) => "int",
            Kind::Float(_) => "float",
            Kind::Text(_) => "text",
            Kind::RichText => "rich_text",
            Kind::Reference(_) => "reference",
            Kind::TypedReference(_) => "typed_reference",
            Kind::Enum(_) => "enum",
            Kind::Date => "date",
            Kind::Timestamp => "timestamp",
            Kind::Struct(_) => "struct",
            Kind::Permission { .. } => "permission",
            Kind::Privilege(name) => name,
            Kind::Participation => "participation",
            Kind::Any => "",
        }
    }
}

/// What a reference may refer to.
#[derive(Debug, Clone, Default)]
pub(super) struct Targets {
    /// The record types, those of a category included.
    pub(super) types: Vec<String>,
    /// The field that it is by, if it is not the id; `None` if the targets differ in that.
    pub(super) by: Option<By>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum By {
    Id,
    Field(String),
}

impl Targets {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.types.iter().map(String::as_str)
    }
}

#[derive(Debug, Default)]
pub(super) struct EnumDecl {
    pub(super) values: Vec<EnumValue>,
    pub(super) index: HashMap<String, usize>,
}

#[derive(Debug)]
pub(super) struct EnumValue {
    pub(super) key: String,
    pub(super) name: Option<String>,
    pub(super) deprecated: bool,
}

impl EnumDecl {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|value| value.key.as_str())
    }
}
