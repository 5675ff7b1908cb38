//! Walks the values of a record, guided by their declarations, and reports what is wrong with them.
//!
//! The walk is a serde visitor: it is driven by the parser, sees each value once, and keeps none.

use std::fmt;

use chrono::Offset;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::any::{AnyWalk, Seen, duplicate_key, nothing_but_an_object};
use super::convert_value::is_natural;
use super::expected::{
    DATE_EXPECTED, NULL_EXPECTED, TIMESTAMP_EXPECTED, enum_expected, form, rule_of, span, suggestion, wanted,
};
use super::finding::{Finding, Rule, Severity, Sink};
use super::hints::{meant_or_one_of, nearest};
use super::moment::{self, Reading};
use super::path::{At, quoted, shown};
use super::schema::{EnumDecl, FieldDecl, Fields, ITEM_URL, Kind, RESERVED, Range, Schema};

/// Buffers that are reused from record to record.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) sink: Sink,
    /// The id of the record; empty if it has none.
    pub(super) id: String,
    /// Which fields of the open objects were present.
    pub(super) seen: Vec<bool>,
}

/// The declarations that a walk uses, and where it puts its findings.
pub(super) struct Cx<'c> {
    pub(super) schema: &'c Schema,
    /// The severity of an undeclared field; `None`: no finding.
    pub(super) undeclared: Option<Severity>,
    pub(super) walk: &'c mut Walk,
}

/// Checks one value against a field's declaration; of a collection, the whole or one element.
pub(super) fn check_value(schema: &Schema, field: &FieldDecl, value: &Value, element: bool) -> Vec<Finding> {
    let mut walk = Walk::default();
    let at = At::ROOT;
    let mut cx = Cx { schema, undeclared: None, walk: &mut walk };
    let walked = FieldWalk { cx: &mut cx, field, element, at: &at }.deserialize(value);
    debug_assert!(walked.is_ok(), "a value that is parsed can be walked");
    walk.sink.take()
}

pub(super) fn check_timestamp(sink: &mut Sink, at: &At<'_>, text: &str) {
    if !moment::is_timestamp(text) {
        let message = format!("{} is not a timestamp: {}", quoted(text), moment::why_no_timestamp(text));
        let in_utc =
            || moment::timestamp(text, &Reading { format: None, offset: Some(chrono::Utc.fix()) }).ok();
        let expected = suggestion(&Kind::Timestamp, &Value::from(text))
            .or_else(|| in_utc().map(|at| format!("write \"{at}\", if it is in UTC")))
            .unwrap_or_else(|| TIMESTAMP_EXPECTED.to_owned());
        sink.error(at, Rule::Timestamp, message, expected);
    }
}

/// Walks `data`: an object with the record type's fields.
pub(super) struct DataWalk<'a, 'c> {
    pub(super) cx: &'a mut Cx<'c>,
    pub(super) fields: &'c Fields,
    pub(super) at: &'a At<'a>,
}

impl DataWalk<'_, '_> {
    fn other(self, found: &str) {
        let expected = if found.starts_with("the string \"{") {
            "it is JSON in a string: write the object itself, without the quotes around it"
        } else {
            "expected an object with the fields of the record: {} if there are none"
        };
        self.cx.walk.sink.error(self.at, Rule::Envelope, format!("data is {found}"), expected);
    }
}

impl<'de> DeserializeSeed<'de> for DataWalk<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DataWalk<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    nothing_but_an_object!();
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.cx.fields(self.fields, self.at, &mut map)
    }
}

impl<'c> Cx<'c> {
    /// Walks the members of an object whose fields are declared: `data`, or a struct.
    fn fields<'de, A: MapAccess<'de>>(
        &mut self,
        fields: &'c Fields,
        at: &At<'_>,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let base = self.walk.seen.len();
        self.walk.seen.resize(base + fields.list.len(), false);
        let mut expected = 0;
        let mut others = Seen::default();
        while let Some(key) = map.next_key_seed(FieldKey { fields, expected })? {
            let position = match key {
                Named::Declared(position) => position,
                Named::Undeclared(key) => {
                    self.undeclared(fields, &key, at, &mut others, map)?;
                    continue;
                }
            };
            expected = position + 1;
            let Some(field) = fields.list.get(position) else {
                return Err(A::Error::custom("a field without a declaration"));
            };
            let at = at.key(&field.key);
            if let Some(seen) = self.walk.seen.get_mut(base + position)
                && std::mem::replace(seen, true)
            {
                duplicate_key(&mut self.walk.sink, &at);
            }
            let given = map.next_value_seed(FieldWalk { cx: self, field, element: false, at: &at })?;
            if given == Given::Null && field.required {
                self.walk.sink.error(
                    &at,
                    Rule::Required,
                    "the field is required, but null",
                    REQUIRED_EXPECTED,
                );
            }
        }
        for (position, field) in fields.list.iter().enumerate().filter(|(_, field)| field.required) {
            if self.walk.seen.get(base + position) == Some(&false) {
                let message = "the field is required, but missing";
                self.walk.sink.error(&at.key(&field.key), Rule::Required, message, REQUIRED_EXPECTED);
            }
        }
        self.walk.seen.truncate(base);
        Ok(())
    }

    /// Walks the value of a field that is not declared. `others` are the members before it.
    fn undeclared<'de, A: MapAccess<'de>>(
        &mut self,
        fields: &Fields,
        key: &str,
        at: &At<'_>,
        others: &mut Seen,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let at = at.key(key);
        let sink = &mut self.walk.sink;
        if others.twice(key) {
            duplicate_key(sink, &at);
            map.next_value_seed(AnyWalk { sink, at: &at, keep: false })?;
            return Ok(());
        }
        map.next_value_seed(AnyWalk { sink, at: &at, keep: false })?;
        if let Some(severity) = self.undeclared
            && key != ITEM_URL
            && !sink.is_full(severity)
        {
            let message = format!("the field {} is not declared", quoted(key));
            let expected = match nearest(key, fields.keys()) {
                Some(near) => format!("did you mean {}?", quoted(near)),
                None if RESERVED.contains(&key) => format!("{key} is beside \"data\", not in it"),
                None => "declare it in the metadata, or leave it out of the records".to_owned(),
            };
            sink.put(severity, &at, Rule::Undeclared, message, expected);
        }
        Ok(())
    }
}

const REQUIRED_EXPECTED: &str =
    "every record has a value here: fix the source, or remove is_required from the metadata";

enum Named {
    Declared(usize),
    Undeclared(String),
}

/// Looks up a key among the fields. Records mostly have their fields in the same order, so the field after the last
/// one is tried first.
struct FieldKey<'w> {
    fields: &'w Fields,
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for FieldKey<'_> {
    type Value = Named;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldKey<'_> {
    type Value = Named;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        if self.fields.list.get(self.expected).is_some_and(|field| field.key == key) {
            return Ok(Named::Declared(self.expected));
        }
        Ok(match self.fields.find(key) {
            Some((position, _)) => Named::Declared(position),
            None => Named::Undeclared(key.to_owned()),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    Null,
    Value,
}

/// Walks the value of one field.
struct FieldWalk<'a, 'c> {
    cx: &'a mut Cx<'c>,
    field: &'c FieldDecl,
    /// Whether the value is an element of the field's collection, not the whole of it.
    element: bool,
    at: &'a At<'a>,
}

/// The largest whole number up to which all are exact as floats, which are JavaScript's only numbers.
const EXACT_INT_MAX: u128 = 1 << 53;
const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;

const OVER_64_BITS: &str = "does not fit 64 bits with a sign, which most readers use";

/// A value that is neither an array nor an object.
#[derive(Clone, Copy)]
enum Scalar<'v> {
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'v str),
}

impl Scalar<'_> {
    fn to_value(self) -> Value {
        match self {
            Scalar::Bool(value) => Value::from(value),
            Scalar::Int(value) => match (i64::try_from(value), u64::try_from(value)) {
                (Ok(value), _) => Value::from(value),
                (_, Ok(value)) => Value::from(value),
                _ => Value::Null,
            },
            Scalar::Float(value) => Value::from(value),
            Scalar::Text(text) => Value::from(text),
        }
    }

    fn shown(self) -> String {
        match self {
            Scalar::Bool(value) => value.to_string(),
            Scalar::Int(value) => format!("the number {value}"),
            Scalar::Float(value) => format!("the number {}", Value::from(value)),
            Scalar::Text(text) => format!("the string {}", quoted(text)),
        }
    }
}

impl FieldWalk<'_, '_> {
    fn is_whole_collection(&self) -> bool {
        self.field.collection.is_some() && !self.element
    }

    fn scalar(self, value: Scalar<'_>) -> Given {
        let at = self.at;
        if self.is_whole_collection() {
            let expected = match value {
                Scalar::Text("") => NULL_EXPECTED.to_owned(),
                Scalar::Text(text) if text.contains([',', ';']) => {
                    let separator = if text.contains(';') { ';' } else { ',' };
                    let pieces = text.split(separator).take(3).map(|piece| quoted(piece.trim()));
                    format!("lists are arrays, not CSV: write [{}]", pieces.collect::<Vec<_>>().join(", "))
                }
                Scalar::Text(text) => format!("write [{}]", quoted(text)),
                other => format!("write [{}]", other.shown().trim_start_matches("the number ")),
            };
            let message = format!("the field is a collection, but this is {}", value.shown());
            self.cx.walk.sink.error(at, Rule::Collection, message, expected);
            return Given::Value;
        }
        match (&self.field.kind, value) {
            (Kind::Bool, Scalar::Bool(_))
            | (Kind::RichText, Scalar::Text(_))
            | (Kind::Any, _)
            | (Kind::Float(Range { min: None, max: None }), Scalar::Int(_) | Scalar::Float(_)) => {}
            (Kind::Int(range), Scalar::Int(value)) => self.int(range, value),
            // serde_json returns whole numbers beyond 64 bits as floats, and every float this large is whole.
            (Kind::Int(range), Scalar::Float(value)) if value.abs() >= TWO_TO_63 => {
                self.huge_int(range, value);
            }
            #[expect(clippy::cast_precision_loss, reason = "bounds of a float are floats")]
            (Kind::Float(range), Scalar::Int(value)) => self.bounds(range, value as f64, &value.to_string()),
            (Kind::Float(range), Scalar::Float(value)) => self.bounds(range, value, &value.to_string()),
            (Kind::Text(range), Scalar::Text(text)) => self.text_length(range, text),
            (Kind::Enum(values), Scalar::Text(key)) => {
                if !values.contains(key) {
                    self.cx.walk.sink.error(
                        at,
                        Rule::EnumValue,
                        format!("{} is not a key of the enum", quoted(key)),
                        enum_expected(values, key),
                    );
                }
            }
            (Kind::Date, Scalar::Text(text)) => {
                if !moment::is_date(text) {
                    let message = format!("{} is not a date: {}", quoted(text), moment::why_no_date(text));
                    let expected = suggestion(&Kind::Date, &Value::from(text))
                        .unwrap_or_else(|| DATE_EXPECTED.to_owned());
                    self.cx.walk.sink.error(at, Rule::Date, message, expected);
                }
            }
            (Kind::Timestamp, Scalar::Text(text)) => check_timestamp(&mut self.cx.walk.sink, at, text),
            (Kind::Reference(_) | Kind::Participation, Scalar::Text(text)) => {
                if text.is_empty() {
                    let expected = "write null, or leave it out, if there is no reference";
                    self.cx.walk.sink.error(at, Rule::ReferenceForm, "the reference is empty", expected);
                }
            }
            (_, other) => self.mismatch(&other.to_value()),
        }
        Given::Value
    }

    fn int(self, range: &Range<i128>, value: i128) {
        if !range.contains(value) {
            return self.bounds(range, value, &value.to_string());
        }
        if i64::try_from(value).is_err() {
            self.imprecise(&format!("the number {value} {OVER_64_BITS}"));
        } else if value.unsigned_abs() > EXACT_INT_MAX {
            self.imprecise(&format!("the number {value} is over 2^53, where JavaScript rounds"));
        }
    }

    /// A whole number beyond 64 bits: only the nearest float is known, so its digits are not shown.
    fn huge_int(self, range: &Range<i128>, value: f64) {
        let shown = format!("of about {value:e}");
        // Saturates: a number beyond every bound stays beyond them.
        #[expect(clippy::cast_possible_truncation, reason = "saturates")]
        let whole = value as i128;
        if range.contains(whole) {
            self.imprecise(&format!("a whole number {shown} {OVER_64_BITS}"));
        } else {
            self.bounds(range, whole, &shown);
        }
    }

    fn imprecise(self, message: &str) {
        let expected = "declare the field as text, and write it in quotes, if every digit counts";
        self.cx.walk.sink.warning(self.at, Rule::Precision, message.to_owned(), expected);
    }

    fn bounds<T: PartialOrd + Copy + fmt::Display>(self, range: &Range<T>, value: T, shown: &str) {
        if !range.contains(value) {
            let message = format!("the number {shown} is out of bounds");
            let or_null = if shown == "-1" { ", or null if -1 stands for none" } else { "" };
            self.cx.walk.sink.error(
                self.at,
                Rule::Bounds,
                message,
                format!("expected {}{or_null}", span(range)),
            );
        }
    }

    fn text_length(self, range: &Range<u64>, text: &str) {
        // A text has at most as many characters as bytes, and at least a quarter of that.
        let bytes = text.len() as u64;
        if range.min.is_none_or(|min| bytes / 4 >= min) && range.max.is_none_or(|max| bytes <= max) {
            return;
        }
        let characters = text.chars().count() as u64;
        if !range.contains(characters) {
            let message = format!("the text {} has {characters} characters", quoted(text));
            self.cx.walk.sink.error(self.at, Rule::Bounds, message, format!("expected {}", span(range)));
        }
    }

    /// A value of another JSON type than the field's.
    fn mismatch(self, found: &Value) {
        let kind = &self.field.kind;
        let message = format!("{}, but this is {}", wanted(kind), shown(found));
        let expected = suggestion(kind, found).unwrap_or_else(|| match (kind, found) {
            (Kind::Int(_), Value::Number(_)) => "round it, or declare the field as float".to_owned(),
            (Kind::Enum(values), _) => meant_or_one_of("", "keys", values.keys()),
            (Kind::TypedReference(targets), _) => {
                let ref_type = targets.types.first().map_or("...", String::as_str);
                let id = found.as_str().map_or_else(|| "\"...\"".to_owned(), quoted);
                format!("write {{\"ref_type\": \"{ref_type}\", \"id\": {id}}}")
            }
            _ => form(kind).to_owned(),
        });
        self.cx.walk.sink.error(self.at, rule_of(kind), message, expected);
    }

    /// An object in a field that is not one.
    fn object_mismatch(self, members: &Map<String, Value>) -> Given {
        // How serde_json returns a number if another crate enabled its arbitrary precision.
        if let Some(Value::String(number)) = members.get("$serde_json::private::Number") {
            return match (number.parse::<i128>(), number.parse::<f64>()) {
                (Ok(number), _) => self.scalar(Scalar::Int(number)),
                (_, Ok(number)) => self.scalar(Scalar::Float(number)),
                _ => Given::Value,
            };
        }
        if self.is_whole_collection() {
            let message = "the field is a collection, but this is an object";
            self.cx.walk.sink.error(self.at, Rule::Collection, message, "write an array: [{...}]");
            return Given::Value;
        }
        let kind = &self.field.kind;
        let whole = Value::Object(members.clone());
        let expected = if matches!(kind, Kind::Reference(_)) && members.contains_key("ref_type") {
            Some("write the id alone, or declare the field as typed_reference".to_owned())
        } else if matches!(kind, Kind::RichText) && members.get("content").is_some_and(Value::is_array) {
            Some("write what is under \"content\" alone".to_owned())
        } else if let Some(written) = suggestion(kind, &whole) {
            Some(written)
        } else if matches!(kind, Kind::Reference(_)) {
            None
        } else {
            // The member that usually holds the value of such an object.
            ["name", "value", "key", "id", "label", "title"].iter().find_map(|name| {
                let member = members.get(*name).filter(|member| !member.is_null())?;
                let written = if is_natural(kind, member) {
                    format!("write {member}")
                } else {
                    suggestion(kind, member)?
                };
                Some(format!("{written}, its {} alone", quoted(name)))
            })
        };
        let Some(expected) = expected else {
            self.mismatch(&whole);
            return Given::Value;
        };
        let message = format!("{}, but this is an object", wanted(kind));
        self.cx.walk.sink.error(self.at, rule_of(kind), message, expected);
        Given::Value
    }

    fn collection<'de, A: SeqAccess<'de>>(self, length: Range<u64>, mut seq: A) -> Result<Given, A::Error> {
        let mut elements = 0;
        loop {
            let at = self.at.position(elements);
            let seed = FieldWalk { cx: self.cx, field: self.field, element: true, at: &at };
            match seq.next_element_seed(seed)? {
                Some(Given::Value) => {}
                Some(Given::Null) => {
                    let expected = "leave the element out: a collection holds values";
                    self.cx.walk.sink.warning(
                        &at,
                        Rule::Collection,
                        "an element of the collection is null",
                        expected,
                    );
                }
                None => break,
            }
            elements += 1;
        }
        if !length.contains(elements as u64) {
            let message = format!("the collection has {elements} elements");
            self.cx.walk.sink.error(self.at, Rule::Bounds, message, format!("expected {}", span(&length)));
        }
        Ok(Given::Value)
    }

    /// An array of strings and mentions.
    fn rich_text<'de, A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Given, A::Error> {
        let mut position = 0;
        loop {
            let at = self.at.position(position);
            let seed = AnyWalk { sink: &mut self.cx.walk.sink, at: &at, keep: true };
            let Some(part) = seq.next_element_seed(seed)? else { break };
            position += 1;
            match part {
                Value::String(_) => {}
                Value::Object(mention) => {
                    check_ref(&mut self.cx.walk.sink, &at, &mention, "mention");
                    if let Some(Value::String(ref_type)) = mention.get("ref_type") {
                        self.mention_type(&at, ref_type);
                    }
                }
                other => {
                    let message = format!(
                        "a part of rich text is a string or a mention, but this is {}",
                        shown(&other)
                    );
                    let expected = "expected \"text\", or {\"ref_type\": \"users\", \"id\": \"7\"}";
                    self.cx.walk.sink.error(&at, Rule::Type, message, expected);
                }
            }
        }
        Ok(Given::Value)
    }

    /// A mention may refer to the record types, and to an attachment, which is an `artifact`.
    fn mention_type(&mut self, at: &At<'_>, ref_type: &str) {
        let known = || self.cx.schema.record_types.iter().map(|declared| declared.key.as_str());
        if ref_type != "artifact" && !known().any(|known| known == ref_type) {
            let message = format!("{} is not a declared record type", quoted(ref_type));
            let expected = meant_or_one_of(ref_type, "declared record types", known());
            self.cx.walk.sink.warning(&at.key("ref_type"), Rule::RefType, message, expected);
        }
    }

    fn object<'de, A: MapAccess<'de>>(mut self, map: A) -> Result<Given, A::Error> {
        if self.is_whole_collection() {
            let members = self.members(map)?;
            return Ok(self.object_mismatch(&members));
        }
        match &self.field.kind {
            Kind::Struct(Some(index)) => {
                if let Some(declared) = self.cx.schema.structs.get(*index) {
                    let mut map = map;
                    self.cx.fields(&declared.fields, self.at, &mut map)?;
                }
            }
            Kind::Struct(None) | Kind::Privilege(_) | Kind::Participation | Kind::Any => {
                AnyWalk { sink: &mut self.cx.walk.sink, at: self.at, keep: false }.visit_map(map)?;
            }
            Kind::TypedReference(targets) => {
                let members = self.members(map)?;
                check_ref(&mut self.cx.walk.sink, self.at, &members, "typed reference");
                if let Some(Value::String(ref_type)) = members.get("ref_type")
                    && !ref_type.is_empty()
                    && !targets.names().any(|name| name == ref_type)
                {
                    let message = format!("the field may not refer to {}", quoted(ref_type));
                    let expected = match ref_type.strip_prefix("#record:") {
                        Some(name) => format!("write \"{name}\""),
                        None => meant_or_one_of(ref_type, "record types it refers to", targets.names()),
                    };
                    self.cx.walk.sink.error(&self.at.key("ref_type"), Rule::RefType, message, expected);
                }
            }
            Kind::Permission { role, .. } => {
                let members = self.members(map)?;
                self.permission(&members, role.as_ref());
            }
            _ => {
                let members = self.members(map)?;
                return Ok(self.object_mismatch(&members));
            }
        }
        Ok(Given::Value)
    }

    /// The members of an object, unchanged.
    fn members<'de, A: MapAccess<'de>>(&mut self, map: A) -> Result<Map<String, Value>, A::Error> {
        AnyWalk { sink: &mut self.cx.walk.sink, at: self.at, keep: true }.members(map)
    }

    fn permission(self, members: &Map<String, Value>, role: Option<&EnumDecl>) {
        let sink = &mut self.cx.walk.sink;
        let at = self.at.key("member_id");
        match members.get("member_id") {
            Some(Value::String(id)) if !id.is_empty() => {}
            Some(Value::Number(number)) => {
                let message = format!("a reference is a string, but this is the number {number}");
                sink.error(&at, Rule::ReferenceForm, message, format!("write \"{number}\""));
            }
            Some(other) => {
                let message = format!("member_id is {}", shown(other));
                sink.error(&at, Rule::ReferenceForm, message, "expected the id of a member, a string");
            }
            None => {
                let expected = "a permission is {\"member_id\": \"...\", \"role\": \"...\"}";
                sink.error(self.at, Rule::ReferenceForm, "the permission has no member_id", expected);
            }
        }
        let at = self.at.key("role");
        match (members.get("role"), role) {
            (Some(Value::String(key)), Some(values)) if !values.contains(key) => {
                let message = format!("{} is not a key of the roles", quoted(key));
                sink.error(&at, Rule::EnumValue, message, enum_expected(values, key));
            }
            (None | Some(Value::Null | Value::String(_)), _) => {}
            (Some(other), _) => {
                let message = format!("the role is {}", shown(other));
                sink.error(&at, Rule::EnumValue, message, "expected the key of a role, a string");
            }
        }
        unknown_members(sink, self.at, members, "permission", &["member_id", "role"]);
    }
}

/// `{"ref_type", "id", "fallback_record_name"}`: a typed reference, or a mention in rich text.
fn check_ref(sink: &mut Sink, at: &At<'_>, members: &Map<String, Value>, what: &str) {
    for key in ["ref_type", "id"] {
        match members.get(key) {
            Some(Value::String(text)) if !text.is_empty() => {}
            Some(Value::Number(number)) => {
                let message = format!("the {key} of the {what} is the number {number}");
                sink.error(&at.key(key), Rule::ReferenceForm, message, format!("write \"{number}\""));
            }
            Some(other) => {
                let message = format!("the {key} of the {what} is {}", shown(other));
                sink.error(&at.key(key), Rule::ReferenceForm, message, "expected a string, not empty");
            }
            None => {
                let expected = format!("a {what} is {{\"ref_type\": \"users\", \"id\": \"7\"}}");
                sink.error(at, Rule::ReferenceForm, format!("the {what} has no {key}"), expected);
            }
        }
    }
    if let Some(name) = members.get("fallback_record_name")
        && !matches!(name, Value::String(_) | Value::Null)
    {
        let message = format!("the fallback_record_name of the {what} is {}", shown(name));
        let expected = "expected the text to show, a string, or leave it out";
        sink.error(&at.key("fallback_record_name"), Rule::ReferenceForm, message, expected);
    }
    unknown_members(sink, at, members, what, &["ref_type", "id", "fallback_record_name"]);
}

fn unknown_members(sink: &mut Sink, at: &At<'_>, members: &Map<String, Value>, what: &str, known: &[&str]) {
    for key in members.keys().filter(|key| !known.contains(&key.as_str())) {
        let message = format!("the key {} has no meaning in a {what}, and is ignored", quoted(key));
        sink.warning(
            &at.key(key),
            Rule::Undeclared,
            message,
            meant_or_one_of(key, "keys", known.iter().copied()),
        );
    }
}

impl<'de> DeserializeSeed<'de> for FieldWalk<'_, '_> {
    type Value = Given;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldWalk<'_, '_> {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Given, E> {
        Ok(Given::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Given, E> {
        Ok(self.scalar(Scalar::Bool(value)))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Given, E> {
        Ok(self.scalar(Scalar::Int(value.into())))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Given, E> {
        Ok(self.scalar(Scalar::Int(value.into())))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Given, E> {
        // The one whole number that serde_json returns as a float although it fits: -0.
        if value == 0.0 && value.is_sign_negative() {
            return Ok(self.scalar(Scalar::Int(0)));
        }
        Ok(self.scalar(Scalar::Float(value)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Given, E> {
        Ok(self.scalar(Scalar::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Given, A::Error> {
        match self.field.collection {
            Some(length) if !self.element => return self.collection(length, seq),
            _ if matches!(self.field.kind, Kind::RichText) => return self.rich_text(seq),
            _ => {}
        }
        let mut elements = 0;
        loop {
            let at = self.at.position(elements);
            let seed = AnyWalk { sink: &mut self.cx.walk.sink, at: &at, keep: false };
            if seq.next_element_seed(seed)?.is_none() {
                break;
            }
            elements += 1;
        }
        if matches!(self.field.kind, Kind::Any) {
            return Ok(Given::Value);
        }
        let (message, expected) = if self.element {
            let message = "an element of the collection is an array itself".to_owned();
            (message, "write its elements into the collection directly")
        } else {
            let message = format!("the field holds one value, but this is an array of {elements}");
            (message, "write one value, or add \"collection\": {} to the field in the metadata")
        };
        self.cx.walk.sink.error(self.at, Rule::Collection, message, expected);
        Ok(Given::Value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Given, A::Error> {
        self.object(map)
    }
}
