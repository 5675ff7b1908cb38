//! Converts the values of an object, field by field, by the rules of a normaliser.

use serde_json::{Map, Value};

use super::convert_value::{EXACT_MAX, convert, is_natural, pieces, text_of};
use super::field_rules::{FieldRule, Plan, Split, Undeclared};
use super::finding::{Rule, Sink};
use super::hints::meant_or_one_of;
use super::path::{At, FieldPath, quoted, shown};
use super::schema::{FieldDecl, Fields, ITEM_URL, Kind};

/// Handles a field that is not declared; returns whether it stays.
pub(super) fn undeclared(
    policy: Undeclared,
    fields: &Fields,
    key: &str,
    at: &At<'_>,
    sink: &mut Sink,
    changes: &mut Sink,
) -> bool {
    match policy {
        _ if key == ITEM_URL => true,
        Undeclared::Keep => true,
        Undeclared::Drop => {
            let message = "the field is not declared, and was left out";
            changes.warning(&at.key(key), Rule::Undeclared, message, "declare it in the metadata to keep it");
            false
        }
        Undeclared::Refuse => {
            let message = format!("the field {} is not declared", quoted(key));
            let expected = meant_or_one_of(key, "declared fields", fields.keys());
            sink.error(&at.key(key), Rule::Undeclared, message, expected);
            false
        }
    }
}

/// Whether a value is one that the extractor's author listed as "none".
pub(super) fn is_said_none(values: &[Value], value: &Value) -> bool {
    let Some(text) = text_of(value) else { return values.contains(value) };
    let text = text.trim();
    values.iter().any(|stand_in| match stand_in {
        Value::String(stand_in) => stand_in.eq_ignore_ascii_case(text),
        Value::Number(number) => {
            number.to_string() == text
                || text.parse::<f64>().is_ok_and(|given| {
                    // Above 2^53, different numbers may be equal as floats.
                    given.abs() < EXACT_MAX && number.as_f64() == Some(given)
                })
        }
        _ => false,
    })
}

/// Whether a string is one that sources usually write for "none".
pub(super) fn is_usual_none(text: &str) -> bool {
    ["", "null", "N/A"].iter().any(|stand_in| stand_in.eq_ignore_ascii_case(text.trim()))
}

/// Counts a value that became `null`.
pub(super) fn became_null(changes: &mut Sink, at: &At<'_>, value: &Value) {
    let message = format!("{} means \"none\", and became null", shown(value));
    changes.warning(at, Rule::StandIn, message, "");
}

/// Converts the values of one object.
pub(super) struct Converter<'n, 's> {
    pub(super) plan: &'n Plan,
    /// Whether the values belong to a record already: then values of the field's type stay.
    pub(super) in_record: bool,
    /// Places that have a finding already.
    pub(super) failed: &'s mut Vec<FieldPath>,
    pub(super) sink: &'s mut Sink,
    pub(super) changes: &'s mut Sink,
}

impl Converter<'_, '_> {
    /// The members of an object whose fields are declared: of a record, or of a struct.
    pub(super) fn object(
        &mut self,
        fields: &Fields,
        members: &Map<String, Value>,
        path: &str,
        at: &At<'_>,
    ) -> Map<String, Value> {
        let mut converted = Map::new();
        for (key, value) in members {
            if let Some((_, field)) = fields.find(key) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let rule = self.plan.rule(&path);
                let value = self.field(field, rule, &path, value, &at.key(key));
                converted.insert(key.clone(), value);
            } else if undeclared(self.plan.undeclared, fields, key, at, self.sink, self.changes) {
                converted.insert(key.clone(), value.clone());
            }
        }
        converted
    }

    /// The value of one field; `null` and a finding if it cannot be converted.
    pub(super) fn field(
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
            // The collection is empty, whatever the type of its elements.
            Value::String(text) if text.trim().is_empty() => return self.none(at, value),
            value if stands_for_none(field, rule, value) => return self.none(at, value),
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
            return self.none(at, value);
        }
        if let (Kind::Struct(Some(index)), Value::Object(members)) = (&field.kind, value) {
            let Some(declared) = self.plan.schema.structs.get(*index) else { return value.clone() };
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

    fn none(&mut self, at: &At<'_>, value: &Value) -> Value {
        became_null(self.changes, at, value);
        Value::Null
    }

    fn fail(&mut self, at: &At<'_>, reason: &str, help: &str) -> Value {
        self.failed.push(at.path());
        self.sink.error(at, Rule::Conversion, reason, help);
        Value::Null
    }
}

/// Whether a value means "none" in this field: if the author lists it, or if it is a usual one that the field's type
/// cannot hold; never if it is one of the field's declared values.
fn stands_for_none(field: &FieldDecl, rule: &FieldRule, value: &Value) -> bool {
    if let Some(values) = &rule.null_if
        && is_said_none(values, value)
    {
        return !is_of_its_own(field, value);
    }
    match (&field.kind, value) {
        (Kind::Text(_) | Kind::RichText | Kind::Any, _) => false,
        (kind, Value::String(text)) => {
            text.trim().is_empty()
                || (is_usual_none(text) && convert(kind, value, &rule.reading(), false).is_err())
        }
        _ => false,
    }
}

/// Whether the metadata gives a value a meaning in this field.
fn is_of_its_own(field: &FieldDecl, value: &Value) -> bool {
    let Some(text) = text_of(value) else { return false };
    let text = text.trim();
    if let Some(Value::String(default)) = &field.default
        && default.eq_ignore_ascii_case(text)
    {
        return true;
    }
    match &field.kind {
        Kind::Enum(values) => values.values.iter().any(|value| {
            value.key.eq_ignore_ascii_case(text)
                || value.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(text))
        }),
        // If the bounds include negative numbers, a negative number within them has a meaning.
        Kind::Int(range) if range.min.is_some() => {
            text.parse::<i128>().is_ok_and(|number| number < 0 && range.contains(number))
        }
        Kind::Float(range) if range.min.is_some() => {
            text.parse::<f64>().is_ok_and(|number| number < 0.0 && range.contains(number))
        }
        _ => false,
    }
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
        // Text may contain a comma; only words without spaces are a list.
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
                // The elements report what is wrong with them.
                (None, _) => Ok(pieces(text, separators.first().copied().unwrap_or(','))),
            }
        }
    }
}
