//! A worker state as a JSON object whose members are parsed only when they are needed.
//!
//! The platform keeps one text per sync unit, in which others write too: the TypeScript SDK, a connector written with
//! it, a person who edits it. So a member that is not ours is kept byte for byte, whatever it contains: a number that
//! a double cannot represent, or an unpaired surrogate (`JSON.stringify` writes one as `\ud83d`, and no Rust string can
//! contain it).
//!
//! `null`, `[]` and `""` are a state in which nothing was written yet. Anything else that is not an object is an
//! error.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// A JSON object, its members in order. If a name occurs twice, the last member counts, as in JavaScript.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document {
    members: Vec<Member>,
}

#[derive(Debug, Clone)]
struct Member {
    /// `None` if no Rust string can contain it: then it is neither ours nor the SDK's.
    name: Option<String>,
    raw_name: Box<RawValue>,
    value: Box<RawValue>,
}

impl Document {
    /// Reads a worker state; `what` is what errors call it.
    ///
    /// # Errors
    /// `WorkerState`, naming the member that cannot be read.
    pub(crate) fn read(text: Option<&str>, what: &str) -> Result<Self> {
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(Self::default());
        };
        if !text.starts_with('{') {
            let wrong = |reason: String| Error::WorkerState { what: what.to_owned(), reason };
            return match serde_json::from_str::<Value>(text) {
                Ok(Value::Null) => Ok(Self::default()),
                Ok(Value::Array(list)) if list.is_empty() => Ok(Self::default()),
                Ok(Value::String(text)) if text.is_empty() => Ok(Self::default()),
                Ok(other) => Err(wrong(format!("it must be a JSON object, not {}", kind_of(&other)))),
                Err(error) => Err(wrong(format!("it is not JSON: {error}"))),
            };
        }
        let mut reading = Reading::default();
        let mut json = serde_json::Deserializer::from_str(text);
        match (&mut reading).deserialize(&mut json).and_then(|()| json.end()) {
            Ok(()) => Ok(Self { members: reading.members }),
            Err(error) => {
                let what = match (reading.at, reading.members.last()) {
                    (Some(name), _) => format!("{} in {what}", name.get()),
                    (None, Some(last)) => format!("what follows {} in {what}", last.raw_name.get()),
                    (None, None) => what.to_owned(),
                };
                Err(Error::WorkerState { what, reason: format!("it is not JSON: {error}") })
            }
        }
    }

    /// The JSON text.
    pub(crate) fn to_text(&self) -> String {
        let text = |member: &Member| format!("{}:{}", member.raw_name.get(), member.value.get());
        format!("{{{}}}", self.members.iter().map(text).collect::<Vec<_>>().join(","))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The JSON text of a member.
    pub(crate) fn get(&self, name: &str) -> Option<&RawValue> {
        self.members.iter().find(|member| member.name.as_deref() == Some(name)).map(|member| &*member.value)
    }

    /// A member, parsed; `what` is what errors call the document.
    ///
    /// # Errors
    /// `WorkerState`, naming the member.
    pub(crate) fn value(&self, name: &str, what: &str) -> Result<Option<Value>> {
        let Some(raw) = self.get(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|error| Error::WorkerState {
            what: format!("{name} in {what}"),
            reason: format!("it cannot be read: {error}"),
        })
    }

    /// Sets a member: in its place if it exists, else at the end.
    pub(crate) fn set(&mut self, name: &str, value: &impl Serialize) {
        // We write strings, and values that were read as JSON: neither can fail.
        let Ok(value) = serde_json::value::to_raw_value(value) else { return };
        if let Some(member) = self.members.iter_mut().find(|member| member.name.as_deref() == Some(name)) {
            member.value = value;
        } else if let Ok(raw_name) = serde_json::value::to_raw_value(name) {
            self.members.push(Member { name: Some(name.to_owned()), raw_name, value });
        }
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.members.iter().position(|member| member.name.as_deref() == Some(name))?;
        Some(self.members.remove(at).value)
    }

    /// Appends the members of another document, which has no name in common with this one.
    pub(crate) fn extend(&mut self, other: Self) {
        self.members.extend(other.members);
    }

    /// Keeps the members whose name `wanted` accepts; it gets `None` for a name that no Rust string can hold.
    pub(crate) fn retain(&mut self, mut wanted: impl FnMut(Option<&str>) -> bool) {
        self.members.retain(|member| wanted(member.name.as_deref()));
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // No serializer accepts such a name as a key, so the text is written whole.
        RawValue::from_string(self.to_text()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// Bytes of a text as a string in a JSON document, which is how the platform gets it.
pub(crate) fn posted_bytes(text: &str) -> usize {
    serde_json::to_string(text).map_or(usize::MAX, |json| json.len())
}

/// A value without unpaired surrogates: those that `JSON.stringify` wrote become U+FFFD, the replacement character.
///
/// # Errors
/// Those of JSON parsing.
pub(crate) fn lossy_value(json: &str) -> serde_json::Result<Value> {
    serde_json::from_str(json).or_else(|_| serde_json::from_str(&without_lone_surrogates(json)))
}

/// JSON text in which each escape of an unpaired surrogate is replaced by that of U+FFFD.
fn without_lone_surrogates(json: &str) -> String {
    let unit =
        |text: &str| text.strip_prefix("\\u").and_then(|text| u16::from_str_radix(text.get(..4)?, 16).ok());
    let mut text = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        text.push_str(before);
        let (kept, bytes) = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (escape.get(..12), 12),
            (Some(0xD800..=0xDFFF), _) => (None, 6),
            (Some(_), _) => (escape.get(..6), 6),
            (None, _) => (escape.get(..2), 2),
        };
        text.push_str(kept.unwrap_or("\\ufffd"));
        rest = escape.get(bytes..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

/// The type of a JSON value, in words.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// An object while it is read: its members so far, and the one whose value is being read.
#[derive(Default)]
struct Reading {
    members: Vec<Member>,
    /// The place of each name.
    places: BTreeMap<String, usize>,
    at: Option<Box<RawValue>>,
}

impl<'de> DeserializeSeed<'de> for &mut Reading {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Reading {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(raw_name) = map.next_key::<Box<RawValue>>()? {
            self.at = Some(raw_name.clone());
            let value = map.next_value()?;
            self.at = None;
            let name = serde_json::from_str::<String>(raw_name.get()).ok();
            let next = self.members.len();
            let at = name.clone().map_or(next, |name| *self.places.entry(name).or_insert(next));
            match self.members.get_mut(at) {
                Some(member) => member.value = value,
                None => self.members.push(Member { name, raw_name, value }),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Document {
        Document::read(Some(text), "the state").unwrap()
    }

    #[test]
    fn what_is_not_ours_stays_byte_for_byte() {
        let text = r#"{"half":"\ud83d and \uDE00","\ud800":[1,{"a":1e400}],"big":123456789012345678901234567890,"e":"\u00e9"}"#;
        let mut document = read(text);
        assert_eq!(document.to_text(), text);
        assert_eq!(serde_json::to_string(&document).unwrap(), text);
        document.set("ours", &"x");
        assert_eq!(document.to_text(), format!("{},\"ours\":\"x\"}}", &text[..text.len() - 1]));
        assert!(document.remove("ours").is_some());
        assert_eq!(document.to_text(), text);
    }

    #[test]
    fn of_members_of_one_name_the_last_counts_in_the_place_of_the_first() {
        let mut document = read(r#"{ "a" : 1, "b": 2, "\u0061": 3 }"#);
        assert_eq!(document.to_text(), r#"{"a":3,"b":2}"#);
        document.set("a", &4);
        assert_eq!(document.to_text(), r#"{"a":4,"b":2}"#);
    }

    #[test]
    fn nothing_written_yet_is_none_and_what_is_no_object_is_an_error() {
        for none in [None, Some(""), Some(" \n"), Some("null"), Some("[]"), Some("\"\""), Some("{}")] {
            assert!(Document::read(none, "the state").unwrap().is_empty(), "{none:?}");
        }
        for (text, says) in [
            ("[1]", "the state cannot be read: it must be a JSON object, not a list"),
            ("7", "not a number"),
            ("\"x\"", "not a string"),
            ("true", "not a boolean"),
            ("nul", "it is not JSON"),
            ("{", "the state cannot be read: it is not JSON: EOF"),
            (r#"{"a":1,"#, "what follows \"a\" in the state"),
            (r#"{"a":1,"key":{"b":"#, "\"key\" in the state"),
            (r#"{"a":1}x"#, "what follows \"a\" in the state"),
        ] {
            let error = Document::read(Some(text), "the state").unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn half_a_character_becomes_the_replacement_character_and_a_whole_one_stays() {
        for (json, says) in [
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""a\ude00\ud83db""#, "a\u{fffd}\u{fffd}b"),
            (r#""\ud83d\ude00""#, "\u{1f600}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (r#""\\ud83d\ud83d""#, "\\ud83d\u{fffd}"),
            (r#""\ud83d\n\u00e9\ud83d""#, "\u{fffd}\n\u{e9}\u{fffd}"),
        ] {
            let raw: Box<RawValue> = serde_json::from_str(json).unwrap();
            assert_eq!(lossy_value(raw.get()).unwrap(), Value::String(says.to_owned()), "{json}");
        }
    }

    #[test]
    fn a_text_is_measured_as_it_is_posted() {
        for text in ["", "abc", "{\"a\":\"\\\"\u{1}\u{e9}\"}"] {
            let posted = serde_json::json!({ "state": text }).to_string();
            assert_eq!(posted_bytes(text), posted.len() - "{\"state\":}".len());
        }
    }
}
