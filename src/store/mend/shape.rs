//! The shape of a cursor: what an operator gives by hand is compared with what the extractor made.

use serde_json::Value;

/// Whether a cursor given by hand has the shape of one that the extractor made; if not, the difference. `null` fits
/// everything, because a field may be empty at times.
pub(super) fn same_shape(at: &str, last: &Value, given: &Value) -> Result<(), String> {
    let place = || if at.is_empty() { "it".to_owned() } else { at.to_owned() };
    match (last, given) {
        (Value::Null, _)
        | (_, Value::Null)
        | (Value::Bool(_), Value::Bool(_))
        | (Value::String(_), Value::String(_)) => Ok(()),
        (Value::Number(one), Value::Number(other)) if one.is_f64() == other.is_f64() => Ok(()),
        (Value::Number(_), Value::Number(_)) => {
            Err(format!("{} is a whole number in one and has a fraction in the other", place()))
        }
        (Value::Array(one), Value::Array(other)) => match one.first() {
            Some(first) => (0..)
                .zip(other)
                .try_for_each(|(index, item)| same_shape(&format!("{at}[{index}]"), first, item)),
            None => Ok(()),
        },
        (Value::Object(one), Value::Object(other)) => {
            for (key, item) in one {
                match other.get(key) {
                    Some(given) => same_shape(&format!("{at}.{key}"), item, given)?,
                    None => return Err(format!("{at}.{key} is missing")),
                }
            }
            match other.keys().find(|key| !one.contains_key(*key)) {
                Some(key) => Err(format!("{at}.{key} is new")),
                None => Ok(()),
            }
        }
        (last, given) => Err(format!("{} is {}, and was {}", place(), kind(given), kind(last))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
