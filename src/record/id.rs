//! Ids as sources have them: texts, or whole numbers.

use std::fmt;
use std::ops::Deref;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

/// An id in the external system, as text. It is read from a JSON string or from a whole number of 64 bits, whose digits it is,
/// and is written as a string: so references are texts too, as the platform wants them. To read an empty string, a fraction or
/// a larger number is an error. How long it may be is checked where it is used ([`Record::new`](crate::Record::new)).
///
/// ```
/// use highwater::Record;
/// use highwater::record::Id;
/// #[derive(serde::Deserialize)]
/// struct Issue { id: Id, author: Id }
///
/// let issue: Issue = serde_json::from_str(r#"{"id": 17, "author": "USER-3"}"#)?;
/// let record = Record::new(issue.id, &serde_json::json!({ "author": issue.author }))?;
/// assert_eq!(record.to_line(), r#"{"id":"17","data":{"author":"USER-3"}}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Id(String);

impl Id {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Deref for Id {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl From<&Id> for String {
    fn from(id: &Id) -> Self {
        id.0.clone()
    }
}

/// Any text, also an empty one, which a record then refuses.
impl From<String> for Id {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;

        impl Visitor<'_> for TextOrNumber {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id: a string or a whole number")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                self.visit_string(text.to_owned())
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Id, E> {
                if text.is_empty() { Err(E::custom("an id is empty")) } else { Ok(Id(text)) }
            }
        }

        deserializer.deserialize_any(TextOrNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_text_or_the_digits_and_nothing_else_is_one() {
        let id = |json: &str| serde_json::from_str::<Id>(json);
        for (json, text) in [
            ("\"A-1\"", "A-1"),
            ("\"017\"", "017"),
            ("17", "17"),
            ("-3", "-3"),
            ("18446744073709551615", "18446744073709551615"),
            ("\"\\u00e9\"", "\u{e9}"),
        ] {
            let id = id(json).unwrap();
            assert_eq!((id.as_str(), serde_json::to_string(&id).unwrap()), (text, format!("\"{text}\"")));
        }
        // A number that has lost digits, or could be written in two ways, would name another record.
        for json in ["1.0", "1e3", "18446744073709551616", "null", "true", "\"\"", "[1]", "{}"] {
            let error = id(json).unwrap_err().to_string();
            assert!(error.contains("an id"), "{json}: {error}");
        }
    }
}
