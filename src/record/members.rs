//! Reads the members of a metadata object, each as the JSON type that it must have, and reports those of another
//! type.

use serde_json::{Map, Value};

use super::finding::Rule;
use super::hints::{example_of, list, meant_key, nearest, settings_with};
use super::path::{At, quoted, shown};
use super::read::Reader;
use super::schema::Range;

impl<'v> Reader<'v, '_> {
    pub(super) fn object(
        &mut self,
        at: &At<'_>,
        value: &'v Value,
        expected: &str,
    ) -> Option<&'v Map<String, Value>> {
        match value {
            Value::Object(map) => Some(map),
            other => {
                self.sink.error(
                    at,
                    Rule::Shape,
                    format!("{} is {}, not an object", at.name(), shown(other)),
                    format!("expected {expected}"),
                );
                None
            }
        }
    }

    /// An object that may be left out, or be `null`.
    pub(super) fn block(
        &mut self,
        at: &At<'_>,
        map: &'v Map<String, Value>,
        key: &str,
    ) -> Option<&'v Map<String, Value>> {
        match map.get(key) {
            None | Some(Value::Null) => None,
            Some(value) => self.object(&at.key(key), value, example_of(key)),
        }
    }

    pub(super) fn string(&mut self, at: &At<'_>, map: &'v Map<String, Value>, key: &str) -> Option<&'v str> {
        match map.get(key)? {
            Value::String(text) => Some(text),
            other => {
                let expected = "expected a string; leave it out if there is none";
                self.sink.error(&at.key(key), Rule::Shape, format!("{key} is {}", shown(other)), expected);
                None
            }
        }
    }

    /// Whether it is `true`; `null` and a missing key mean `false`.
    pub(super) fn boolean(&mut self, at: &At<'_>, map: &'v Map<String, Value>, key: &str) -> bool {
        match map.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                let expected = "expected true or false, without quotes";
                self.sink.error(&at.key(key), Rule::Shape, format!("{key} is {}", shown(other)), expected);
                false
            }
        }
    }

    pub(super) fn one_of(&mut self, at: &At<'_>, map: &'v Map<String, Value>, key: &str, allowed: &[&str]) {
        if let Some(value) = self.string(at, map, key)
            && !allowed.contains(&value)
        {
            let expected = match nearest(value, allowed.iter().copied()) {
                Some(near) => format!("did you mean {}?", quoted(near)),
                None => format!("expected one of {}", list(allowed)),
            };
            self.sink.error(&at.key(key), Rule::Shape, format!("{key} is {}", quoted(value)), expected);
        }
    }

    pub(super) fn lengths(&mut self, at: &At<'_>, block: &'v Map<String, Value>) -> Range<u64> {
        self.known_keys(at, block, &["min_length", "max_length"]);
        self.range(at, block, "min_length", "max_length", "a whole number, 0 or more", Value::as_u64)
    }

    pub(super) fn range<T: PartialOrd + Copy + std::fmt::Display>(
        &mut self,
        at: &At<'_>,
        block: &'v Map<String, Value>,
        min_key: &str,
        max_key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Range<T> {
        let mut bound = |key: &str| {
            let value = block.get(key).filter(|value| !value.is_null())?;
            let bound = read(value);
            if bound.is_none() {
                let message = format!("{key} is {}", shown(value));
                self.sink.error(&at.key(key), Rule::Bounds, message, format!("expected {expected}"));
            }
            bound
        };
        let (min, max) = (bound(min_key), bound(max_key));
        if let (Some(low), Some(high)) = (min, max)
            && low > high
        {
            let message =
                format!("{min_key} is {low}, above {max_key}, which is {high}: no value is allowed");
            self.sink.error(at, Rule::Bounds, message, "swap the two, or correct one");
            return Range { min: None, max: None };
        }
        Range { min, max }
    }

    /// Unknown keys are only a warning, because the platform's format grows.
    pub(super) fn known_keys(&mut self, at: &At<'_>, map: &'v Map<String, Value>, known: &[&str]) {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let expected =
                if let Some(near) = nearest(key, known.iter().copied()).or_else(|| meant_key(key, known)) {
                    format!("did you mean {}?", quoted(near))
                } else if let Some((block, example)) = settings_with(key, map) {
                    format!("it stands one level deeper: \"{block}\": {example}")
                } else {
                    format!("known here: {}", list(known))
                };
            let message = format!("the key {} has no meaning here, and is ignored", quoted(key));
            self.sink.warning(&at.key(key), Rule::UnknownKey, message, expected);
        }
    }
}
