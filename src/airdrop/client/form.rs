//! The form around an uploaded file: its fields, the name of the file, and the stream that must have its declared
//! length.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};

use serde_json::Value;

/// The most characters of a file name that the platform accepts.
const FILE_NAME_CHARS_MAX: usize = 256;
/// Characters at the end of a file name that are kept when it is cut: its extension.
const FILE_NAME_CHARS_KEPT: usize = 20;

/// Counts what is read.
pub(super) struct Counted<'a> {
    pub(super) inner: &'a mut dyn Read,
    pub(super) bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => {
                    let read = read?;
                    self.bytes += read as u64;
                    return Ok(read);
                }
            }
        }
    }
}

/// A stream that must have its declared length: a shorter or a longer one is an error before the form is complete, so
/// that it does not become an artifact.
pub(super) struct Exactly<'a> {
    pub(super) reader: &'a mut dyn Read,
    pub(super) told: u64,
    pub(super) left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let source = |error: io::Error| {
            io::Error::new(error.kind(), format!("reading what is to be uploaded: {error}"))
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            return match self.reader.read(&mut [0]).map_err(source)? {
                0 => Ok(0),
                _ => {
                    Err(io::Error::other(format!("the file is longer than the {} declared bytes", self.told)))
                }
            };
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(buffer.get_mut(..wanted).unwrap_or_default()).map_err(source)?;
        if read == 0 {
            let given = self.told - self.left;
            return Err(io::Error::other(format!(
                "the file ended after {given} of the {} declared bytes",
                self.told
            )));
        }
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

/// The fields of a form: an object, an empty list, or a list of keys and values.
pub(super) fn form_fields(form_data: Option<&Value>) -> Option<Vec<(String, String)>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    match form_data {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Object(fields)) => {
            fields.iter().map(|(name, value)| Some((name.clone(), text(value)?))).collect()
        }
        Some(Value::Array(fields)) => {
            fields.iter().map(|field| Some((text(field.get("key")?)?, text(field.get("value")?)?))).collect()
        }
        Some(_) => None,
    }
}

/// A file name that the platform accepts: a longer one is cut to its start and its last characters.
pub(super) fn short_file_name(name: &str) -> String {
    let chars = name.chars().count();
    if chars <= FILE_NAME_CHARS_MAX {
        return name.to_owned();
    }
    let start = name.chars().take(FILE_NAME_CHARS_MAX - 3 - FILE_NAME_CHARS_KEPT);
    start.chain("...".chars()).chain(name.chars().skip(chars - FILE_NAME_CHARS_KEPT)).collect()
}

/// A name between the quotes of a form's header. Quotes and line breaks are escaped as browsers do, and other control
/// characters in the same way.
pub(super) fn in_quotes(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len());
    for c in name.chars() {
        if c == '"' || c.is_control() {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                // Writing to a string does not fail.
                let _ = write!(quoted, "%{byte:02X}");
            }
        } else {
            quoted.push(c);
        }
    }
    quoted
}

/// A line that a file contains only by malice, and for that it would have to guess 128 random bits.
pub(super) fn boundary() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("highwater-{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_control_character_of_a_file_name_is_in_the_header() {
        assert_eq!(in_quotes("a\0\r\n\"\u{7f}\u{85}b \u{e9}.png"), "a%00%0D%0A%22%7F%C2%85b \u{e9}.png");
    }

    #[test]
    fn a_long_file_name_keeps_its_end() {
        assert_eq!(short_file_name("issues.jsonl.gz"), "issues.jsonl.gz");
        let name = "\u{e9}".repeat(256);
        assert_eq!(short_file_name(&name), name);
        let long = format!("{}{}", "a".repeat(300), "0123456789abcdef.pdf");
        let short = short_file_name(&long);
        assert_eq!(short, format!("{}...0123456789abcdef.pdf", "a".repeat(233)));
        assert_eq!(short.chars().count(), 256);
    }

    #[test]
    fn a_form_is_an_object_an_empty_list_or_a_list_of_keys_and_values() {
        let fields = |value: Value| form_fields(Some(&value));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(fields(json!({"b": "1", "a": 2})), Some(vec![pair("b", "1"), pair("a", "2")]));
        assert_eq!(fields(json!([])), Some(Vec::new()));
        assert_eq!(form_fields(None), Some(Vec::new()));
        assert_eq!(fields(json!([{"key": "k", "value": "v"}])), Some(vec![pair("k", "v")]));
        assert_eq!(fields(json!({"a": {}})), None);
        assert_eq!(fields(json!(["a"])), None);
        assert_eq!(fields(json!("a")), None);
    }
}
