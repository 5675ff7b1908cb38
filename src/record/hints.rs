//! What was probably meant: the name nearest to a misspelt one, and other formats' names for the same thing.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::path::quoted;

/// Bytes of a name that is compared with others.
const NAME_BYTES: usize = 128;

/// The name nearest to a misspelt one, if it is near enough to have been meant.
pub(super) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // A name this long is not misspelt, and comparing costs the product of the lengths.
    if name.len() > NAME_BYTES {
        return None;
    }
    let lower = name.to_lowercase();
    let near_enough = |candidate: &str| {
        let (given, known) = (lower.chars().count(), candidate.chars().count());
        if given.max(known) < 3 { 0 } else { 1.max(given.min(known) / 3) }
    };
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= NAME_BYTES)
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= near_enough(candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean" the nearest name, or a list of all of them.
pub(super) fn meant_or_one_of<'n>(
    name: &str,
    what: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {}?", quoted(near)),
        None if known.is_empty() => format!("there are no {what}: declare it first, or remove this"),
        None => format!("expected one of the {what}: {}", list(&known)),
    }
}

/// The most names in a list.
const LISTED: usize = 30;

/// Names in quotes, at most [`LISTED`] of them.
pub(super) fn list(names: &[&str]) -> String {
    let mut text = names.iter().take(LISTED).map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        let _ = write!(text, " and {} more", names.len() - LISTED);
    }
    text
}

/// The key that was meant where spelling alone does not show it: names of older versions, and of other formats.
pub(super) fn meant_key<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower = key.to_lowercase();
    let meant = match lower.as_str() {
        "role" => "reference_type",
        "are_transitions_possible" => "are_record_type_conversions_possible",
        "loading" | "loadable" => "is_loadable",
        "is_system" | "readonly" => "is_read_only",
        "unique" => "is_identifier",
        "default" => "default_value",
        "label" | "title" | "display_name" => "name",
        "array" | "is_array" | "list" | "is_list" | "multiple" | "multi" | "items" | "is_collection" => {
            "collection"
        }
        "properties" | "attributes" | "columns" => "fields",
        "options" | "choices" | "enum_values" => "values",
        _ => "",
    };
    let with_is = format!("is_{lower}");
    known.iter().copied().find(|known| *known == meant || *known == with_is)
}

/// Where a field's settings belong, for one of their keys that is beside the field's type instead.
pub(super) fn settings_with(key: &str, field: &Map<String, Value>) -> Option<(&'static str, &'static str)> {
    let field_type = field.get("type")?.as_str()?;
    Some(match (field_type, key.to_lowercase().as_str()) {
        ("int", "min" | "max" | "minimum" | "maximum") => ("int", "{\"min\": 0, \"max\": 9}"),
        ("float", "min" | "max" | "minimum" | "maximum") => ("float", "{\"min\": 0.0, \"max\": 0.9}"),
        ("text", "min_length" | "max_length" | "minlength" | "maxlength") => {
            ("text", "{\"max_length\": 255}")
        }
        ("enum", "values" | "options" | "choices") => ("enum", "{\"values\": [{\"key\": \"open\"}, ...]}"),
        ("reference", "refers_to" | "reference_type") => {
            ("reference", "{\"refers_to\": {\"#record:users\": {}}}")
        }
        ("typed_reference", "refers_to" | "reference_type") => {
            ("typed_reference", "{\"refers_to\": {\"#record:users\": {}}}")
        }
        ("struct", "key") => ("struct", "{\"key\": \"address\"}"),
        ("struct", "fields" | "properties") => {
            ("struct", "{\"key\": \"address\"}, and the fields stand under struct_types.address")
        }
        ("permission", "member_id" | "role") => ("permission", "{\"member_id\": {...}, \"role\": {...}}"),
        _ => return None,
    })
}

/// The type here for a field type of another system.
pub(super) fn type_of_another_system(name: &str) -> Option<String> {
    let near = match name.to_ascii_lowercase().as_str() {
        "string" | "str" | "varchar" | "char" | "url" | "email" => "text",
        "boolean" | "checkbox" => "bool",
        "integer" | "long" | "bigint" => "int",
        "number" | "double" | "decimal" | "real" => "float",
        "datetime" | "date_time" | "date-time" | "time" => "timestamp",
        "object" | "map" | "record" => "struct",
        "markdown" | "html" | "richtext" => "rich_text",
        "select" | "picklist" | "option" => "enum",
        "relation" | "link" | "lookup" | "user" => "reference",
        "multiselect" | "multi_select" | "multi_enum" | "tags" | "labels" => {
            return Some("write \"type\": \"enum\" and \"collection\": {}".to_owned());
        }
        "array" | "list" | "set" | "collection" => {
            return Some("write the type of its elements, and \"collection\": {} beside it".to_owned());
        }
        _ => return None,
    };
    Some(format!("did you mean {}?", quoted(near)))
}

/// An example of a block of settings.
pub(super) fn example_of(key: &str) -> &'static str {
    match key {
        "collection" => "{}, or {\"min_length\": 0, \"max_length\": 5}",
        "int" | "float" => "{\"min\": 0, \"max\": 9}",
        "text" => "{\"max_length\": 255}",
        "struct" => "{\"key\": \"address\"}",
        "role" => "{\"values\": [{\"key\": \"reader\"}]}",
        "member_id" | "participation" => "{\"refers_to\": {\"#record:users\": {}}}",
        "permission" => "{\"member_id\": {...}, \"role\": {...}}",
        "attachments" => "{\"is_extractable\": true}",
        "conditions" => "an object: a key for each field that has conditions",
        "stage_diagram" => "{\"controlling_field\": \"status\", \"stages\": {...}}",
        "states" => "an object: a key for each state",
        "link_naming_data" => "{\"link_type_field\": ..., \"link_direction_names\": {...}}",
        _ => "{\"type_keys\": [\"#record:issues\"]}",
    }
}
