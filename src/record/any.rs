//! Walks values of any shape, declared or not: reads them, keeps them if asked to, and finds duplicate keys.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::finding::{Finding, Rule, Severity, Sink};
use super::path::{At, quoted, shown};

/// A value that is read without walking into it.
pub(super) enum Loose<'de> {
    Null,
    Text(Cow<'de, str>),
    Other(Value),
}

impl Loose<'_> {
    pub(super) fn shown(&self) -> String {
        match self {
            Loose::Null => "null".to_owned(),
            Loose::Text(text) => format!("the string {}", quoted(text)),
            Loose::Other(value) => shown(value),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Loose<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LooseVisitor;
        impl<'de> Visitor<'de> for LooseVisitor {
            type Value = Loose<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Loose::Null)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Loose::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Loose::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Loose::Other(Value::Bool(value)))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Loose::Other(Value::from(value)))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(Loose::Other(Value::from(value)))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(Loose::Other(Value::from(value)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    items.push(Value::Null);
                }
                Ok(Loose::Other(Value::Array(items)))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose::Other(Value::Object(Map::new())))
            }
        }
        deserializer.deserialize_any(LooseVisitor)
    }
}

/// Walks any value and finds keys that occur twice in one object; builds a value if asked to.
pub(super) struct AnyWalk<'a> {
    pub(super) sink: &'a mut Sink,
    pub(super) at: &'a At<'a>,
    pub(super) keep: bool,
}

impl AnyWalk<'_> {
    fn kept(&self, value: impl Into<Value>) -> Value {
        if self.keep { value.into() } else { Value::Null }
    }

    /// The members of an object.
    pub(super) fn members<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Map<String, Value>, A::Error> {
        let Self { sink, at, keep } = self;
        let mut members = Map::new();
        let mut seen = Seen::default();
        while let Some(Key(key)) = map.next_key()? {
            let at = at.key(&key);
            if seen.twice(&key) {
                duplicate_key(sink, &at);
            }
            let value = map.next_value_seed(AnyWalk { sink, at: &at, keep })?;
            if keep {
                members.insert(key.into_owned(), value);
            }
        }
        Ok(members)
    }
}

impl<'de> DeserializeSeed<'de> for AnyWalk<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyWalk<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(self.kept(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(self.kept(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(self.kept(value))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(self.kept(value))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(if self.keep { Value::from(text) } else { Value::Null })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let mut position = 0;
        loop {
            let at = self.at.position(position);
            match seq.next_element_seed(AnyWalk { sink: self.sink, at: &at, keep: self.keep })? {
                Some(item) if self.keep => items.push(item),
                Some(_) => {}
                None => return Ok(Value::Array(items)),
            }
            position += 1;
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        self.members(map).map(Value::Object)
    }
}

/// A key, borrowed from the text if it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'k>(#[serde(borrow)] Cow<'k, str>);

/// The keys of an object so far: a few are compared one by one, many are looked up.
#[derive(Default)]
pub(super) struct Seen {
    few: Vec<String>,
    many: HashSet<String>,
}

impl Seen {
    const FEW: usize = 8;

    /// Adds a key; returns whether it was there before.
    pub(super) fn twice(&mut self, key: &str) -> bool {
        if self.many.is_empty() {
            if self.few.iter().any(|seen| seen == key) {
                return true;
            }
            if self.few.len() < Self::FEW {
                self.few.push(key.to_owned());
                return false;
            }
            self.many.extend(self.few.drain(..));
        }
        !self.many.insert(key.to_owned())
    }
}

/// Every key of a document that occurs twice in one object, as errors: one of the two values is lost.
pub(super) fn duplicate_keys(text: &str) -> Vec<Finding> {
    let mut sink = Sink::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let walked = AnyWalk { sink: &mut sink, at: &At::ROOT, keep: false }.deserialize(&mut json);
    let mut findings = if walked.is_ok() { sink.take() } else { Vec::new() };
    for finding in &mut findings {
        finding.severity = Severity::Error;
    }
    findings
}

/// A duplicate key: readers use the last one, so findings about the earlier ones do not count.
pub(super) fn duplicate_key(sink: &mut Sink, at: &At<'_>) {
    sink.forget(at);
    let expected = "keep one of the two: JSON readers keep the last, and lose the others";
    sink.warning(at, Rule::DuplicateKey, "the key occurs twice in this object", expected);
}

/// The visitor methods for values that should be an object and are not; they call `self.other(description)`.
macro_rules! nothing_but_an_object {
    () => {
        fn visit_unit<E>(self) -> Result<(), E> {
            self.other("null");
            Ok(())
        }
        fn visit_bool<E>(self, value: bool) -> Result<(), E> {
            self.other(&value.to_string());
            Ok(())
        }
        fn visit_i64<E>(self, value: i64) -> Result<(), E> {
            self.other(&format!("the number {value}"));
            Ok(())
        }
        fn visit_u64<E>(self, value: u64) -> Result<(), E> {
            self.other(&format!("the number {value}"));
            Ok(())
        }
        fn visit_f64<E>(self, value: f64) -> Result<(), E> {
            self.other(&format!("the number {value}"));
            Ok(())
        }
        fn visit_str<E>(self, text: &str) -> Result<(), E> {
            self.other(&format!("the string {}", quoted(text)));
            Ok(())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            let mut items = 0;
            while seq.next_element::<IgnoredAny>()?.is_some() {
                items += 1;
            }
            self.other(&format!("an array of {items}"));
            Ok(())
        }
    };
}
pub(super) use nothing_but_an_object;
