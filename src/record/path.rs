//! Places in a JSON document, and quoted values: cut and escaped.

use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::cut;

/// A place in a JSON document: `record_types.issue.fields.owner`, `data.tags[2]`, `data["odd key"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Vec<PathStep>);

/// One step into a JSON document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum PathStep {
    Key(String),
    Position(usize),
}

impl PathStep {
    /// The step to a member. For a long key, its beginning is enough to find it.
    pub(super) fn key(key: &str) -> Self {
        PathStep::Key(cut::to_chars(key, KEY_CHARS))
    }
}

/// Characters of a key in a path.
const KEY_CHARS: usize = 200;

impl FieldPath {
    /// Whether it is the document as a whole.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn steps(&self) -> &[PathStep] {
        &self.0
    }

    /// Whether it is the place `outer`, or inside it.
    pub(super) fn is_within(&self, outer: &FieldPath) -> bool {
        self.0.starts_with(&outer.0)
    }

    pub(super) fn from_steps(steps: Vec<PathStep>) -> Self {
        Self(steps)
    }

    /// The same place, if this document is the member `key` of another one.
    pub(super) fn under(mut self, key: &str) -> Self {
        self.0.insert(0, PathStep::key(key));
        self
    }

    /// The path as text with `[]` for each position.
    pub(super) fn without_positions(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let written = write_steps(&mut text, &self.0, false);
        debug_assert!(written.is_ok());
        text
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_steps(f, &self.0, true)
    }
}

impl Serialize for FieldPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn write_steps(out: &mut impl fmt::Write, steps: &[PathStep], positions: bool) -> fmt::Result {
    for (index, step) in steps.iter().enumerate() {
        match step {
            PathStep::Position(position) if positions => write!(out, "[{position}]")?,
            PathStep::Position(_) => out.write_str("[]")?,
            PathStep::Key(key) if is_plain(key) => {
                if index > 0 {
                    out.write_char('.')?;
                }
                out.write_str(key)?;
            }
            PathStep::Key(key) => write!(out, "[{}]", quoted(key))?,
        }
    }
    Ok(())
}

fn is_plain(key: &str) -> bool {
    !key.is_empty()
        && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '#' | ':' | '@' | '$'))
}

/// A place while walking a document: a list on the stack, turned into a [`FieldPath`] only for a finding.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    up: Option<&'a At<'a>>,
    key: Option<&'a str>,
    position: usize,
}

impl<'a> At<'a> {
    pub(super) const ROOT: At<'static> = At { up: None, key: None, position: 0 };

    pub(super) fn key(&'a self, key: &'a str) -> At<'a> {
        At { up: Some(self), key: Some(key), position: 0 }
    }

    pub(super) fn position(&'a self, position: usize) -> At<'a> {
        At { up: Some(self), key: None, position }
    }

    /// Its last step, for a message.
    pub(super) fn name(&self) -> String {
        match self.key {
            Some(key) => quoted(key),
            None if self.up.is_some() => format!("element {}", self.position),
            None => "the document".to_owned(),
        }
    }

    pub(super) fn path(&self) -> FieldPath {
        let mut steps = Vec::new();
        let mut at = self;
        while let Some(up) = at.up {
            steps.push(match at.key {
                Some(key) => PathStep::key(key),
                None => PathStep::Position(at.position),
            });
            at = up;
        }
        steps.reverse();
        FieldPath(steps)
    }
}

/// The text around a finding, on one line: what is before it, the value, and what is after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The text before the value, cut.
    pub before: String,
    /// The value, cut at the end of its line at the latest.
    pub value: String,
    /// The text after the value, cut.
    pub after: String,
}

impl Excerpt {
    const BEFORE_CHARS: usize = 40;
    const VALUE_CHARS: usize = 60;
    const AFTER_CHARS: usize = 20;

    pub(super) fn of(text: &str, range: Range<usize>) -> Self {
        // Lines may be long: only what is shown is read.
        let before = text.get(..range.start).unwrap_or_default();
        let from = cut::floor_boundary(before, before.len().saturating_sub(8 * Self::BEFORE_CHARS));
        let before = before.get(from..).unwrap_or_default();
        let before = before.rsplit(['\n', '\r']).next().unwrap_or_default().trim_start();
        let rest = text.get(range.start..).unwrap_or_default();
        let to = cut::floor_boundary(rest, 8 * (Self::VALUE_CHARS + Self::AFTER_CHARS));
        let rest = rest.get(..to).unwrap_or_default();
        let rest = rest.split(['\n', '\r']).next().unwrap_or_default().trim_end();
        let (value, after) = rest.split_at_checked(range.len()).unwrap_or((rest, ""));
        let skipped = before.chars().count().saturating_sub(Self::BEFORE_CHARS);
        let before: String = before.chars().skip(skipped).collect();
        let value_cut = cut::to_chars(value, Self::VALUE_CHARS);
        Self {
            before: if skipped > 0 { format!("...{before}") } else { before },
            after: if value_cut.len() == value.len() {
                cut::to_chars(after, Self::AFTER_CHARS)
            } else {
                String::new()
            },
            value: value_cut,
        }
    }
}

impl Serialize for Excerpt {
    /// As one string.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.before, self.value, self.after)
    }
}

/// Characters of a value in a message.
const SHOWN_CHARS: usize = 60;

/// Text in quotes, cut, with everything escaped that could confuse a terminal or a reader.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in cut::to_chars(text, SHOWN_CHARS).chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unsafe(c) => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Control characters, and characters that are invisible or change the direction of the text around them.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A JSON value in a message: what it is, and the value itself if it is short.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", quoted(text)),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}
