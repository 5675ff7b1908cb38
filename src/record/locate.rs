//! Where in a text the value at a path stands. Used only once something is found, so that what is right costs nothing.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::finding::{FieldPath, Finding, Rule, Severity, Step, quoted};

/// The bytes of what stands at `path`, or of the innermost thing around it that exists: a scalar itself; of an object
/// or an array its key, which says more than a bracket does. With `key`, the key in any case.
pub(super) fn range_of(text: &str, path: &FieldPath, key: bool) -> Range<usize> {
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

/// Takes one member of an object, with its key, or one of an array; of a key that stands twice, the last, as JSON
/// readers do.
struct Pick<'s>(&'s Step);

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Option<(Option<&'de RawValue>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let Step::Key(wanted) = self.0
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
            if *self.0 == Step::Position(position) {
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

/// Depth of a document up to which keys that stand twice are looked for: that of the parser itself.
const DEPTH_MAX: usize = 128;

/// Finds every key that stands twice in one object.
pub(super) fn duplicate_keys(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_str::<&RawValue>(text) {
        duplicates_in(value, &mut Vec::new(), &mut found);
    }
    found
}

fn duplicates_in(value: &RawValue, path: &mut Vec<Step>, found: &mut Vec<Finding>) {
    if path.len() >= DEPTH_MAX {
        return;
    }
    let Ok(members) = serde_json::Deserializer::from_str(value.get()).deserialize_any(Members) else {
        return;
    };
    let mut seen = std::collections::HashSet::new();
    for (step, inner) in members {
        path.push(step);
        if let Some(Step::Key(key)) = path.last()
            && !seen.insert(key.clone())
        {
            let message = format!("the key {} stands twice in this object", quoted(key));
            found.push(
                Finding::new(
                    Severity::Error,
                    Rule::DuplicateKey,
                    FieldPath::from_steps(path.clone()),
                    message,
                )
                .expecting("keep one of the two: of the others, JSON readers lose all but the last"),
            );
        }
        duplicates_in(inner, path, found);
        path.pop();
    }
}

/// The members of an object or an array; nothing for a scalar.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Step, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
            members.push((Step::Key(key), value));
        }
        Ok(members)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(value) = seq.next_element::<&RawValue>()? {
            members.push((Step::Position(members.len()), value));
        }
        Ok(members)
    }
}
