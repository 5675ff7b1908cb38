//! Converts one value to the type of its field, without loss and without guessing.

use serde_json::{Map, Number, Value, json};

use super::hints::{list, meant_or_one_of};
use super::moment::{self, Reading, Why};
use super::path::{quoted, shown};
use super::schema::{By, EnumDecl, Kind, Targets};

/// The parts between separators, trimmed; separators in double quotes do not count.
pub(super) fn pieces(text: &str, separator: char) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    let mut in_quotes = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => {
                chars.next();
                piece.push('"');
            }
            '"' if in_quotes || piece.trim().is_empty() => in_quotes = !in_quotes,
            c if c == separator && !in_quotes => pieces.push(std::mem::take(&mut piece)),
            c => piece.push(c),
        }
    }
    pieces.push(piece);
    pieces.into_iter().map(|piece| piece.trim().to_owned()).filter(|piece| !piece.is_empty()).collect()
}

/// Whether a value of a record has its field's type already, whatever its bounds.
pub(super) fn is_natural(kind: &Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::Any, _)
        | (Kind::Bool, Value::Bool(_))
        | (Kind::Float(_), Value::Number(_))
        | (Kind::Text(_) | Kind::RichText, Value::String(_))
        | (Kind::Privilege(_) | Kind::Struct(None) | Kind::Participation, Value::Object(_)) => true,
        (Kind::Int(_), Value::Number(number)) => number.is_i64() || number.is_u64(),
        (Kind::Reference(_) | Kind::Participation, Value::String(text)) => !text.is_empty(),
        (Kind::Enum(values), Value::String(key)) => values.contains(key),
        (Kind::Date, Value::String(text)) => moment::is_date(text),
        (Kind::Timestamp, Value::String(text)) => moment::is_timestamp(text),
        (Kind::TypedReference(_), Value::Object(members)) => {
            ["ref_type", "id"].iter().all(|key| members.get(*key).is_some_and(Value::is_string))
        }
        _ => false,
    }
}

/// A string or a number as text.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A string, or a number without decimals: a possible id.
pub(super) fn plain_id(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

pub(super) fn not(value: &Value, what: &str, help: &'static str) -> Why {
    (format!("{} is no {what}", shown(value)), help)
}

/// Converts a value to a type; if it cannot, says why, and what would help.
pub(super) fn convert(
    kind: &Kind,
    value: &Value,
    reading: &Reading,
    in_record: bool,
) -> Result<Value, (String, String)> {
    let plain = |result: Result<Value, Why>| result.map_err(|(reason, help)| (reason, help.to_owned()));
    match kind {
        Kind::Any => Ok(value.clone()),
        Kind::Bool => plain(to_bool(value)),
        Kind::Int(_) => plain(to_int(value)),
        Kind::Float(_) => plain(to_float(value)),
        Kind::Text(_) | Kind::RichText => match value {
            Value::String(_) => Ok(value.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(Value::String(value.to_string())),
            Value::Array(parts) if matches!(kind, Kind::RichText) => plain(to_rich_text(parts)),
            other => plain(Err(not(other, "text", "give the field a rule with its source, or a function"))),
        },
        Kind::Enum(values) => to_enum(values, value).map(Value::String),
        Kind::Date => plain(
            text_of(value)
                .ok_or_else(|| not(value, "date", ""))
                .and_then(|text| moment::date(&text, reading))
                .map(Value::String),
        ),
        Kind::Timestamp => plain(
            text_of(value)
                .ok_or_else(|| not(value, "moment", ""))
                .and_then(|text| moment::timestamp(&text, reading))
                .map(Value::String),
        ),
        Kind::Reference(targets) => to_reference(targets, value).map(Value::String),
        Kind::TypedReference(targets) => to_typed_reference(targets, value),
        Kind::Permission { member, role } => to_permission(member, role.as_ref(), value),
        Kind::Participation => match value {
            Value::Object(_) => Ok(value.clone()),
            other => plain_id(other)
                .map(Value::String)
                .ok_or_else(|| (format!("{} is not a reference", shown(other)), String::new())),
        },
        Kind::Struct(_) | Kind::Privilege(_) => match value {
            Value::Object(_) => Ok(value.clone()),
            other => {
                let help =
                    if in_record { "" } else { "give the field a rule with its source, or a function" };
                plain(Err(not(other, "object", help)))
            }
        },
    }
}

fn to_bool(value: &Value) -> Result<Value, Why> {
    let text = match value {
        Value::Bool(_) => return Ok(value.clone()),
        other => text_of(other).unwrap_or_default(),
    };
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Ok(Value::Bool(true)),
        "false" | "f" | "no" | "n" | "off" | "0" => Ok(Value::Bool(false)),
        _ => Err(not(
            value,
            "bool",
            "true, yes, on, 1 and false, no, off, 0 are; for others, give the field a function",
        )),
    }
}

/// Larger whole numbers are not exact as floats.
pub(super) const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

fn to_int(value: &Value) -> Result<Value, Why> {
    let no = || {
        not(
            value,
            "number without decimals",
            "round it with a function, or declare the field as float or text",
        )
    };
    match value {
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(value.clone()),
        Value::Number(number) => match number.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and within 2^53")]
            Some(float) if float.fract() == 0.0 && float.abs() <= EXACT_MAX => Ok(Value::from(float as i64)),
            _ => Err(no()),
        },
        Value::String(text) => {
            let text = text.trim();
            let digits = match text.split_once('.') {
                Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|digit| digit == b'0') => {
                    whole
                }
                _ => text,
            };
            let digits = without_plus(digits);
            if digits.strip_prefix('-').unwrap_or(digits).bytes().all(|digit| digit.is_ascii_digit()) {
                if let Ok(number) = digits.parse::<i64>() {
                    return Ok(Value::from(number));
                }
                if let Ok(number) = digits.parse::<u64>() {
                    return Ok(Value::from(number));
                }
            }
            Err(no())
        }
        _ => Err(no()),
    }
}

/// A plus sign before digits has no meaning.
fn without_plus(text: &str) -> &str {
    text.strip_prefix('+').filter(|digits| !digits.starts_with('-')).unwrap_or(text)
}

fn to_float(value: &Value) -> Result<Value, Why> {
    let no = || {
        not(
            value,
            "number",
            "write a point before decimals and nothing between thousands, or give the field a function",
        )
    };
    match value {
        Value::Number(_) => Ok(value.clone()),
        Value::String(text) => {
            let text = without_plus(text.trim());
            // By JSON's own grammar, which has no infinity, no hexadecimal and no bare point.
            serde_json::from_str::<Number>(text).map(Value::Number).map_err(|_| no())
        }
        _ => Err(no()),
    }
}

fn to_rich_text(parts: &[Value]) -> Result<Value, Why> {
    let mut converted = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Value::String(_) => converted.push(part.clone()),
            Value::Number(number) => converted.push(Value::String(number.to_string())),
            Value::Null => {}
            Value::Object(mention) => {
                let mut mention = mention.clone();
                for key in ["id", "ref_type"] {
                    if let Some(id) = mention.get(key).and_then(plain_id) {
                        mention.insert(key.to_owned(), Value::String(id));
                    }
                }
                converted.push(Value::Object(mention));
            }
            other => return Err(not(other, "part of rich text", "parts are strings and mentions")),
        }
    }
    Ok(Value::Array(converted))
}

/// The key of the intended value: by key, by name, or, if only one matches, by either in any case.
pub(super) fn to_enum(values: &EnumDecl, value: &Value) -> Result<String, (String, String)> {
    let text = match value {
        Value::Bool(value) => value.to_string(),
        other => text_of(other).ok_or_else(|| {
            let help = "name the member that is the key: FieldRule::of(\"priority.name\")".to_owned();
            (format!("{} is not a key of the enum", shown(other)), help)
        })?,
    };
    let text = text.trim();
    if values.contains(text) {
        return Ok(text.to_owned());
    }
    let named = |same: fn(&str, &str) -> bool| {
        let mut keys: Vec<&str> = values
            .values
            .iter()
            .filter(|value| {
                same(&value.key, text) || value.name.as_deref().is_some_and(|name| same(name, text))
            })
            .map(|value| value.key.as_str())
            .collect();
        keys.dedup();
        keys
    };
    let by_name = named(|known, given| known == given);
    let found = if by_name.is_empty() {
        named(|known, given| known.to_lowercase() == given.to_lowercase())
    } else {
        by_name
    };
    match found.as_slice() {
        [key] => Ok((*key).to_owned()),
        [] => Err((
            format!("{} is neither a key nor a name of the enum", quoted(text)),
            meant_or_one_of(text, "keys", values.keys()),
        )),
        several => Err((
            format!("{} could be several values of the enum: {}", quoted(text), list(several)),
            "give the field a function that decides".to_owned(),
        )),
    }
}

/// The id of the intended record, or the field that the reference is by.
fn to_reference(targets: &Targets, value: &Value) -> Result<String, (String, String)> {
    let Value::Object(members) = value else {
        return plain_id(value).ok_or_else(|| {
            let help = "a reference is from a string, a number without decimals, or an object with an id";
            (format!("{} is not a reference", shown(value)), help.to_owned())
        });
    };
    let by = match &targets.by {
        Some(By::Field(field)) => field.as_str(),
        Some(By::Id) => "id",
        None if targets.types.is_empty() => "id",
        None => {
            let help = "name the member to use: FieldRule::of(\"owner.id\")".to_owned();
            return Err((
                "an object, and the targets are not all referred to by the same field".to_owned(),
                help,
            ));
        }
    };
    members.get(by).and_then(plain_id).ok_or_else(|| {
        let keys: Vec<&str> = members.keys().map(String::as_str).collect();
        let help = format!("name the member to use: FieldRule::of(\"...\"); it has {}", list(&keys));
        (format!("the object has no {} to refer by", quoted(by)), help)
    })
}

fn to_typed_reference(targets: &Targets, value: &Value) -> Result<Value, (String, String)> {
    let only = match targets.types.as_slice() {
        [only] => Some(only.as_str()),
        _ => None,
    };
    let members = value.as_object();
    let ref_type = members
        .and_then(|members| members.get("ref_type"))
        .and_then(Value::as_str)
        .or(only)
        .ok_or_else(|| {
            let names: Vec<&str> = targets.names().collect();
            let help = format!(
                "give the field a function that makes {{\"ref_type\": ..., \"id\": ...}}; the types are {}",
                list(&names)
            );
            (format!("{} does not say of which type the record is", shown(value)), help)
        })?;
    let id = match members {
        Some(members) => members.get("id").and_then(plain_id),
        None => plain_id(value),
    };
    let id = id.ok_or_else(|| {
        (format!("{} has no id to refer by", shown(value)), "an id is a string or a number".to_owned())
    })?;
    let mut reference = json!({"ref_type": ref_type, "id": id});
    if let Some(name @ Value::String(_)) = members.and_then(|members| members.get("fallback_record_name"))
        && let Some(reference) = reference.as_object_mut()
    {
        reference.insert("fallback_record_name".to_owned(), name.clone());
    }
    Ok(reference)
}

fn to_permission(
    member: &Targets,
    role: Option<&EnumDecl>,
    value: &Value,
) -> Result<Value, (String, String)> {
    let Value::Object(members) = value else {
        return Err((
            format!("{} is not a permission", shown(value)),
            "a permission is from {\"member_id\": ..., \"role\": ...}".to_owned(),
        ));
    };
    let mut permission = Map::new();
    if let Some(id) = members.get("member_id") {
        permission.insert("member_id".to_owned(), Value::String(to_reference(member, id)?));
    }
    match (members.get("role"), role) {
        (Some(Value::Null) | None, _) => {}
        (Some(given), Some(values)) => {
            permission.insert("role".to_owned(), Value::String(to_enum(values, given)?));
        }
        (Some(given), None) => {
            permission.insert("role".to_owned(), given.clone());
        }
    }
    Ok(Value::Object(permission))
}
