//! What is wrong with text that is not JSON, and where.

use super::finding::{Finding, Rule, Severity};
use super::path::{Excerpt, FieldPath};

/// What is wrong with text that is not JSON, and where; the text begins on `first_line`.
pub(super) fn not_json(text: &[u8], error: &serde_json::Error, first_line: u64) -> Finding {
    let mut finding = Finding::new(Severity::Error, Rule::Json, FieldPath::default(), String::new());
    let line_start = match error.line().checked_sub(2) {
        None => 0,
        Some(before) => {
            let newline = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(before);
            newline.map_or(0, |(position, _)| position + 1)
        }
    };
    // serde_json counts bytes from 1, and its position is after what it could not read.
    let start = (line_start + error.column().saturating_sub(1)).min(text.len());
    if text.trim_ascii().is_empty() {
        "the text is empty".clone_into(&mut finding.message);
        finding.expected = Some("expected a JSON object".to_owned());
        finding.line = Some(first_line);
        return finding;
    }
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    let rest = text.get(start..).unwrap_or_default();
    let before = text.get(..start).unwrap_or_default().trim_ascii_end();
    let expected = if error.is_eof() {
        "the text ends too early: a quote, a } or a ] is missing"
    } else if std::str::from_utf8(text).is_err() {
        "the text is not UTF-8: write it in that encoding"
    } else if said.starts_with("recursion limit") {
        "it is nested too deeply: the limit is 127 levels"
    } else if said.starts_with("control character") {
        "close the string on its line, and write newlines and tabs in it as \\n and \\t"
    } else if text.starts_with(b"\xef\xbb\xbf") {
        "the text begins with a byte order mark: write UTF-8 without it"
    } else if rest.starts_with(b"'") {
        "strings and keys need double quotes"
    } else if [&b"NaN"[..], b"Infinity", b"-Infinity", b"undefined", b"None"]
        .iter()
        .any(|name| rest.starts_with(name))
    {
        "JSON has no such value: write null"
    } else if rest.starts_with(b"True") || rest.starts_with(b"False") {
        "write true or false, in lower case"
    } else if said.starts_with("trailing comma")
        || (before.ends_with(b",") && rest.trim_ascii_start().starts_with(b"}"))
    {
        "remove the comma before the bracket"
    } else if rest.starts_with(b"//") || rest.starts_with(b"/*") || rest.starts_with(b"#") {
        "JSON has no comments: remove it"
    } else if rest.starts_with(b",") && !before.is_empty() {
        "write records one after the other, without commas between"
    } else if said.starts_with("key must be a string") {
        "keys need double quotes"
    } else if said.starts_with("expected `,`") {
        "put a comma between the two, or close the bracket or quote before"
    } else if said.starts_with("trailing characters") {
        "remove what follows the document"
    } else {
        "fix it there"
    };
    finding.message = format!("the text is not JSON: {said}");
    finding.expected = Some(expected.to_owned());
    let newlines = match std::str::from_utf8(text) {
        Ok(_) => (error.line().max(1) - 1) as u64,
        Err(error) => text.iter().take(error.valid_up_to()).filter(|&&byte| byte == b'\n').count() as u64,
    };
    finding.line = Some(first_line + newlines);
    let lossy = String::from_utf8_lossy(text);
    // Up to the first invalid UTF-8, the lossy text equals the text.
    let start = std::str::from_utf8(text).map_or_else(|error| error.valid_up_to(), |_| start);
    if lossy.is_char_boundary(start) {
        let end =
            lossy.get(start..).and_then(|rest| rest.chars().next()).map_or(start, |c| start + c.len_utf8());
        finding.excerpt = Some(Excerpt::of(&lossy, start..end));
    }
    finding
}
