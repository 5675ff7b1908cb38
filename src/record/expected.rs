//! What a value should be, in words: what was expected of its kind, and what to write instead.

use std::fmt;

use serde_json::Value;

use super::convert_value::{convert, is_natural, to_enum};
use super::finding::Rule;
use super::hints::meant_or_one_of;
use super::moment::Reading;
use super::path::quoted;
use super::schema::{EnumDecl, Kind, Range};

pub(super) const TIMESTAMP_EXPECTED: &str =
    "expected RFC 3339 with offset, such as \"1972-03-29T22:04:47+01:00\"";
pub(super) const NULL_EXPECTED: &str = "write null, or leave it out, if there is no value";
pub(super) const DATE_EXPECTED: &str = "expected a day such as \"2020-12-31\"";

/// What to write instead, if that is clear from the value.
pub(super) fn suggestion(kind: &Kind, value: &Value) -> Option<String> {
    if value.as_str().is_some_and(|text| text.trim().is_empty()) {
        return Some(NULL_EXPECTED.to_owned());
    }
    if is_natural(kind, value) || matches!(kind, Kind::Any) {
        return None;
    }
    let written = convert(kind, value, &Reading::default(), false).ok()?;
    Some(match (kind, value, &written) {
        (Kind::Reference(_), Value::Number(_), _) => {
            format!("write {written}, or null if there is no reference")
        }
        (_, Value::String(_), Value::Bool(_) | Value::Number(_)) => {
            format!("write {written}, without quotes")
        }
        _ => format!("write {written}"),
    })
}

pub(super) fn enum_expected(values: &EnumDecl, given: &str) -> String {
    if given.is_empty() {
        return NULL_EXPECTED.to_owned();
    }
    match to_enum(values, &Value::from(given)) {
        Ok(key) if values.values.iter().any(|value| value.name.as_deref() == Some(given)) => {
            format!("it is the name of a value: write its key, {}", quoted(&key))
        }
        Ok(key) => format!("write {}", quoted(&key)),
        Err(_) => meant_or_one_of(given, "keys", values.keys()),
    }
}

pub(super) fn rule_of(kind: &Kind) -> Rule {
    match kind {
        Kind::Enum(_) => Rule::EnumValue,
        Kind::Date => Rule::Date,
        Kind::Timestamp => Rule::Timestamp,
        Kind::Reference(_) | Kind::TypedReference(_) | Kind::Permission { .. } | Kind::Participation => {
            Rule::ReferenceForm
        }
        _ => Rule::Type,
    }
}

pub(super) fn wanted(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "a bool is true or false",
        Kind::Int(_) => "an int is a number without decimals",
        Kind::Float(_) => "a float is a number",
        Kind::Text(_) => "text is a string",
        Kind::RichText => "rich text is a string or an array",
        Kind::Reference(_) => "a reference is a string",
        Kind::TypedReference(_) => "a typed reference is an object",
        Kind::Enum(_) => "an enum value is a string",
        Kind::Date => "a date is a string",
        Kind::Timestamp => "a timestamp is a string",
        Kind::Struct(_) => "a struct is an object",
        Kind::Permission { .. } => "a permission is an object",
        Kind::Privilege(_) => "a privilege is an object",
        Kind::Participation => "a participation is a string or an object",
        Kind::Any => "anything goes",
    }
}

pub(super) fn form(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "write true or false, without quotes",
        Kind::Int(_) => "write a number such as 12, or declare the field as text",
        Kind::Float(_) => "write a number such as 1.5, or declare the field as text",
        Kind::Text(_) => "write one text, in quotes, or declare the field as what it is",
        Kind::RichText => "write \"...\", or [\"...\", {\"ref_type\": \"users\", \"id\": \"7\"}]",
        Kind::Reference(_) => "write the id of the record, in quotes, or null if there is no reference",
        Kind::Date => DATE_EXPECTED,
        Kind::Timestamp => TIMESTAMP_EXPECTED,
        Kind::Permission { .. } => "write {\"member_id\": \"...\", \"role\": \"...\"}",
        _ => "write {...} with its fields, or null if there is no value",
    }
}

/// Bounds in words.
pub(super) fn span<T: fmt::Display + Copy>(range: &Range<T>) -> String {
    match (range.min, range.max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("{min} or more"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => "anything".to_owned(),
    }
}
