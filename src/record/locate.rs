//! Finds where the value at a path is in a text. Used only for findings, so correct records cost nothing.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::finding::{Finding, Rule};
use super::path::{Excerpt, FieldPath, PathStep};

/// Bytes of text to search for the places of the findings of one document.
const LOCATE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Locates each finding in the text of the document: its line, counted from `first_line`, and an excerpt. If there
/// are very many in a very long text, only the first are located.
pub(super) fn locate_all(findings: &mut [Finding], text: &str, first_line: u64) {
    let affordable = (LOCATE_BYTES_MAX / text.len().max(1)).max(10);
    for (index, finding) in findings.iter_mut().enumerate() {
        if index < affordable {
            let about_a_key = matches!(
                finding.rule,
                Rule::UnknownKey | Rule::Undeclared | Rule::ReservedField | Rule::DuplicateKey
            );
            let range = range_of(text, &finding.path, about_a_key);
            let before = text.get(..range.start).unwrap_or_default();
            finding.line = Some(first_line + before.bytes().filter(|&b| b == b'\n').count() as u64);
            finding.excerpt = Some(Excerpt::of(text, range));
        } else {
            finding.line = Some(first_line);
        }
    }
}

/// The bytes of the value at `path`, or of the innermost value around it that exists. For a scalar, the value itself;
/// for an object or an array its key, which says more than a bracket. With `key`, always the key.
fn range_of(text: &str, path: &FieldPath, key: bool) -> Range<usize> {
    let Ok(mut value) = serde_json::from_str::<&RawValue>(text) else {
        return 0..text.len();
    };
    let mut name = None;
    for step in path.steps() {
        match serde_json::Deserializer::from_str(value.get()).deserialize_any(Pick(step)) {
            Ok(Some(found)) => (name, value) = found,
            _ => break,
        }
    }
    let shown = match name {
        Some(name) if key || value.get().starts_with(['{', '[']) => name,
        _ => value,
    };
    let start = shown.get().as_ptr().addr().saturating_sub(text.as_ptr().addr());
    start..start.saturating_add(shown.get().len())
}

/// Picks one member of an object, with its key, or one element of an array; if a key occurs twice, the last, as JSON
/// readers do.
struct Pick<'s>(&'s PathStep);

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Option<(Option<&'de RawValue>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let PathStep::Key(wanted) = self.0
                && serde_json::from_str::<String>(key.get()).is_ok_and(|key| key == *wanted)
            {
                found = Some((Some(key), value));
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let mut position = 0;
        loop {
            if *self.0 == PathStep::Position(position) {
                let Some(value) = seq.next_element::<&RawValue>()? else { break };
                found = Some((None, value));
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
            position += 1;
        }
        Ok(found)
    }
}
