//! Reads what a reference may refer to, and reports undeclared targets.

use serde_json::{Map, Value};

use super::finding::Rule;
use super::hints::meant_or_one_of;
use super::path::{At, quoted, shown};
use super::read::{Reader, member};
use super::schema::{By, Targets};

impl<'v> Reader<'v, '_> {
    /// Reads `refers_to`, and looks up its targets.
    pub(super) fn targets(
        &mut self,
        at: &At<'_>,
        block: &'v Map<String, Value>,
        keys: &[&str],
    ) -> Option<Targets> {
        self.known_keys(at, block, keys);
        if keys.contains(&"reference_type") {
            self.one_of(at, block, "reference_type", &["parent", "child"]);
        }
        let refers_to = match block.get("refers_to") {
            Some(Value::Object(refers_to)) if !refers_to.is_empty() => refers_to,
            Some(value) => {
                let message = if value.is_object() {
                    "the reference refers to nothing".to_owned()
                } else {
                    format!("refers_to is {}", shown(value))
                };
                let expected = "expected {\"#record:users\": {}} or {\"#category:people\": {}}";
                self.sink.error(&at.key("refers_to"), Rule::Reference, message, expected);
                return None;
            }
            None => {
                let expected = "add \"refers_to\": {\"#record:users\": {}} or {\"#category:people\": {}}";
                self.sink.error(
                    at,
                    Rule::Reference,
                    "the reference does not say what it refers to",
                    expected,
                );
                return None;
            }
        };
        let mut targets = Targets::default();
        let mut bys = Vec::new();
        let mut broken = false;
        let at = at.key("refers_to");
        for (key, detail) in refers_to {
            let at = at.key(key);
            let found = self.target(&at, key);
            broken |= found.is_none();
            let types = found.unwrap_or_default();
            let mut by = By::Id;
            if let Some(detail) = self.object(&at, detail, "an object: {}, or {\"by_field\": \"email\"}") {
                self.known_keys(&at, detail, &["by_field"]);
                if let Some(field) = self.string(&at, detail, "by_field") {
                    self.by_field(&at.key("by_field"), field, &types);
                    by = By::Field(field.to_owned());
                }
            }
            bys.push(by);
            targets.types.extend(types.into_iter().map(str::to_owned));
        }
        targets.types.sort_unstable();
        targets.types.dedup();
        bys.dedup();
        targets.by = bys.pop().filter(|_| bys.is_empty());
        if broken { None } else { Some(targets) }
    }

    /// The record types of a target key; `None` and a finding if nothing like it is declared.
    pub(super) fn target(&mut self, at: &At<'_>, key: &str) -> Option<Vec<&'v str>> {
        let record_types = || self.record_types.keys().map(String::as_str);
        let categories = || self.categories.keys().map(String::as_str);
        if let Some(name) = key.strip_prefix("#record:") {
            if let Some((name, _)) = self.record_types.get_key_value(name) {
                return Some(vec![name.as_str()]);
            }
            let expected = if self.categories.contains_key(name) {
                format!("it is a category: write \"#category:{name}\"")
            } else {
                meant_or_one_of(name, "declared record types", record_types())
            };
            let message = format!("the record type {} is not declared under record_types", quoted(name));
            self.sink.error(at, Rule::Reference, message, expected);
        } else if let Some(name) = key.strip_prefix("#category:") {
            if self.categories_unreadable {
                return None;
            }
            if self.categories.contains_key(name) {
                let of_it = |(_, value): &(&String, &Value)| {
                    value.get("category").and_then(Value::as_str) == Some(name)
                };
                let types: Vec<_> =
                    self.record_types.iter().filter(of_it).map(|(key, _)| key.as_str()).collect();
                if types.is_empty() {
                    let message = format!("no record type is in the category {}", quoted(name));
                    let expected = format!("give at least one record type \"category\": {}", quoted(name));
                    self.sink.warning(at, Rule::Reference, message, expected);
                }
                return Some(types);
            }
            let expected = if self.record_types.contains_key(name) {
                format!("it is a record type: write \"#record:{name}\"")
            } else {
                meant_or_one_of(name, "declared categories", categories())
            };
            let message =
                format!("the category {} is not declared under record_type_categories", quoted(name));
            self.sink.error(at, Rule::Reference, message, expected);
        } else {
            let name = key.trim_start_matches('#');
            let expected = if self.record_types.contains_key(name) {
                format!("write \"#record:{name}\"")
            } else if self.categories.contains_key(name) {
                format!("write \"#category:{name}\"")
            } else {
                "write \"#record:<record type>\" or \"#category:<category>\"".to_owned()
            };
            let message = format!("{} names neither a record type nor a category", quoted(key));
            self.sink.error(at, Rule::Reference, message, expected);
        }
        None
    }

    /// A reference by another field than the id needs that field in every target, marked as an identifier.
    fn by_field(&mut self, at: &At<'_>, field: &str, types: &[&'v str]) {
        for name in types {
            let fields = member(member(self.record_types, name), "fields");
            match fields.get(field) {
                // Every record has an id, declared or not.
                _ if field == "id" && !fields.contains_key(field) => {
                    let expected =
                        "leave by_field out: references are by the id unless another field is named";
                    let message = "the reference is by \"id\", which is not a field";
                    self.sink.error(at, Rule::Reference, message, expected);
                    return;
                }
                None => {
                    let message = format!("the record type {} has no field {}", quoted(name), quoted(field));
                    let expected = meant_or_one_of(field, "fields of it", fields.keys().map(String::as_str));
                    self.sink.error(at, Rule::Reference, message, expected);
                }
                Some(target) if target.get("is_identifier") != Some(&Value::Bool(true)) => {
                    let message = format!(
                        "the field {} of the record type {} is not an identifier",
                        quoted(field),
                        quoted(name)
                    );
                    let expected =
                        format!("add \"is_identifier\": true to record_types.{name}.fields.{field}");
                    self.sink.error(at, Rule::Reference, message, expected);
                }
                Some(_) => {}
            }
        }
    }
}
