//! Text that is safe to print: what could drive a terminal or turn its text around is escaped, in JSON by an escape that
//! means the same, so that what a script reads is exact.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Characters of a cursor, bookmark or value that a table shows; JSON shows all.
const CUT_CHARS: usize = 60;

/// How tables look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) colour: bool,
}

impl Style {
    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether a character acts on a terminal instead of showing on it: controls, what changes the direction of text,
/// and what breaks lines or shows nothing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Text that shows all that is in it.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// JSON text that shows all that is in it, and means the same: outside of its strings there is nothing to escape.
pub(crate) fn visible_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_unsafe) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A `String` takes whatever is written to it.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// A writer of JSON that goes to a terminal: whole lines are made visible. To anything else the bytes go as they are.
pub(crate) struct Screened<'a, W: Write> {
    out: &'a mut W,
    screens: bool,
    /// The start of a character whose rest comes with the next write.
    held: Vec<u8>,
}

impl<'a, W: Write> Screened<'a, W> {
    pub(crate) fn new(out: &'a mut W, is_terminal: bool) -> Self {
        Self { out, screens: is_terminal, held: Vec::new() }
    }
}

impl<W: Write> Write for Screened<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.screens {
            return self.out.write(bytes);
        }
        self.held.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.held) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Ok(_) | Err(_) => self.held.len(),
        };
        let text = String::from_utf8_lossy(&self.held[..whole]).into_owned();
        self.out.write_all(visible_json(&text).as_bytes())?;
        self.held.drain(..whole);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// One line of `--json`.
pub(crate) fn json_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(line)?;
    writeln!(out, "{}", visible_json(&json))
}

/// Standard output, for much text.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// How text looks there.
pub(crate) fn style() -> Style {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    Style { colour: io::stdout().is_terminal() && !dumb && !is_set("NO_COLOR") }
}

pub(crate) fn time(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

pub(crate) fn time_or(moment: Option<DateTime<Utc>>, none: &str) -> String {
    moment.map_or_else(|| none.to_owned(), time)
}

/// One thing, or several.
pub(crate) fn count(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

pub(crate) fn cut(json: Option<&str>) -> String {
    let Some(json) = json else { return "-".to_owned() };
    let mut chars = json.chars();
    let mut shown: String = chars.by_ref().take(CUT_CHARS).collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    visible(&shown).into_owned()
}

/// A table that is printed below a caption, numbers to the right.
pub(crate) struct Listing {
    table: Table,
}

impl Listing {
    /// `header`: names of columns; those of numbers start with `#`, which is not shown.
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(header.iter().map(|name| name.trim_start_matches('#')));
        for (at, name) in header.iter().enumerate() {
            if let Some(column) = table.column_mut(at) {
                column.set_padding((0, 2));
                if name.starts_with('#') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { table }
    }

    pub(crate) fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.table.add_row(cells.into_iter().map(|cell| visible(&cell).into_owned()));
    }

    pub(crate) fn print(&self, out: &mut impl Write, caption: &str) -> io::Result<()> {
        if self.table.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n  {caption}")?;
        self.lines(out, "    ")
    }

    /// The table alone, each line after `indent`.
    pub(crate) fn lines(&self, out: &mut impl Write, indent: &str) -> io::Result<()> {
        self.table.lines().try_for_each(|line| writeln!(out, "{indent}{}", line.trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURNED: &str = "{\"a\u{202e}\u{1b}\":\"\u{7f}\u{e0041}\u{e9}\"}\n";

    #[test]
    fn escaped_json_means_the_same() {
        let plain = TURNED.replace('\u{1b}', "\\u001b");
        let shown = visible_json(&plain);
        assert_eq!(shown, "{\"a\\u202e\\u001b\":\"\\u007f\\udb40\\udc41\u{e9}\"}\n");
        let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(value(&shown), value(&plain));
    }

    #[test]
    fn only_a_terminal_gets_other_bytes_than_are_stored_and_no_character_is_torn() {
        for is_terminal in [false, true] {
            let mut out = Vec::new();
            let mut screened = Screened::new(&mut out, is_terminal);
            for byte in TURNED.as_bytes() {
                screened.write_all(&[*byte]).unwrap();
            }
            let expected = if is_terminal { visible_json(TURNED) } else { Cow::Borrowed(TURNED) };
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        // What is no UTF-8 does not get stuck.
        let mut out = Vec::new();
        Screened::new(&mut out, true).write_all(b"a\xff\xfeb").unwrap();
        assert_eq!(out, "a\u{fffd}\u{fffd}b".as_bytes());
    }

    #[test]
    fn colour_is_there_only_where_it_is_wanted() {
        assert_eq!(Style { colour: false }.paint("1", "x"), "x");
        assert_eq!(Style { colour: true }.paint("1", "x"), "\u{1b}[1mx\u{1b}[0m");
    }

    #[test]
    fn a_long_cursor_is_cut_and_shows_it() {
        assert_eq!(cut(None), "-");
        assert_eq!(cut(Some(&"x".repeat(60))), "x".repeat(60));
        assert_eq!(cut(Some(&"\u{e9}".repeat(61))), format!("{}...", "\u{e9}".repeat(60)));
    }
}
