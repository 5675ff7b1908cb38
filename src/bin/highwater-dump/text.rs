//! Text that is safe to print. Characters that could control a terminal or reverse the direction of text are escaped;
//! in JSON by an equivalent escape, so that a script reads the exact value.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::path::Path;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use highwater::html::is_unsafe;
pub(crate) use highwater::html::{seconds_in_words, visible};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

/// Characters of a cursor, bookmark or value that a table shows; JSON shows all.
const CUT_CHARS: usize = 60;

/// Columns of a terminal whose width is unknown.
const WIDTH: usize = 100;
/// Columns of what is not a terminal: nothing is folded, so that a pipe finds whole rows. The most that a table takes.
const UNFOLDED: usize = u16::MAX as usize;
/// Lines are never folded to less than this many columns.
const WIDTH_MIN: usize = 40;
/// Characters of a name that are shown; JSON shows all.
const NAME_CHARS: usize = 200;
/// Characters of an alert on the first screen, so that the rest is in sight; `events` and JSON show all.
pub(crate) const ALERT_CHARS: usize = 500;

/// The time that `HIGHWATER_DUMP_NOW` sets, if it sets one; the error is its text that is not a time.
pub(crate) fn told_now() -> Result<Option<DateTime<Utc>>, String> {
    let Some(told) = std::env::var_os("HIGHWATER_DUMP_NOW").filter(|told| !told.is_empty()) else {
        return Ok(None);
    };
    let told = told.to_string_lossy();
    told.parse().map(Some).map_err(|_| told.into_owned())
}

/// The screen: its width, whether it has colours, and the current time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) colour: bool,
    pub(crate) width: usize,
    pub(crate) now: DateTime<Utc>,
}

impl Screen {
    /// Standard output.
    pub(crate) fn new() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let colour = io::stdout().is_terminal() && !dumb && !is_set("NO_COLOR");
        let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let columns = || match terminal_size::terminal_size_of(io::stdout()) {
            Some((width, _)) => width.0.into(),
            None if io::stdout().is_terminal() => WIDTH,
            None => UNFOLDED,
        };
        let width = told.filter(|width| *width > 0).unwrap_or_else(columns).max(WIDTH_MIN);
        Self { colour, width, now: told_now().ok().flatten().unwrap_or_else(Utc::now) }
    }

    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A moment, and how long ago it was.
    pub(crate) fn time(self, moment: DateTime<Utc>) -> String {
        format!("{} ({})", time(moment), self.age(moment))
    }

    /// How long ago it was.
    pub(crate) fn age(self, moment: DateTime<Utc>) -> String {
        let age = self.now - moment;
        if age < TimeDelta::zero() {
            format!("in {}", duration(-age))
        } else {
            format!("{} ago", duration(age))
        }
    }
}

/// The two largest units of a time.
pub(crate) fn duration(time: TimeDelta) -> String {
    match u64::try_from(time.num_seconds()).unwrap_or(0) {
        0 if time > TimeDelta::zero() => "<1s".to_owned(),
        seconds => seconds_in_words(seconds),
    }
}

/// JSON text with such characters escaped. It means the same, as they occur only inside its strings.
pub(crate) fn visible_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_unsafe) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a `String` does not fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Writes JSON: to a terminal with such characters escaped, to anything else unchanged.
pub(crate) struct Screened<'a, W: Write> {
    out: &'a mut W,
    screens: bool,
    /// The start of a UTF-8 character whose other bytes come with the next write.
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

pub(crate) fn time(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A number with its noun, singular or plural.
pub(crate) fn count(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// A path as one word of a command line.
pub(crate) fn shell_path(path: &Path) -> String {
    shell_word(&path.to_string_lossy()).into_owned()
}

/// A text as one word of a command line: in quotation marks, unless it needs none.
pub(crate) fn shell_word(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("'{}'", text.replace('\'', "'\\''")))
}

/// The start of a text that may be long; three dots show that it was cut.
pub(crate) fn at_most(chars: usize, text: &str) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

pub(crate) fn cut(json: Option<&str>) -> String {
    json.map_or_else(|| "-".to_owned(), |json| visible(&at_most(CUT_CHARS, json)).into_owned())
}

/// A foreign text for a cell: made visible, and cut if it is long.
fn shown(text: &str) -> String {
    visible(&at_most(NAME_CHARS, text)).into_owned()
}

/// A table, with numbers aligned to the right. On a narrow screen its cells are folded; on a narrower one each row is
/// printed as a block.
pub(crate) struct Listing {
    header: Vec<String>,
    is_number: Vec<bool>,
    rows: Vec<Vec<String>>,
}

/// Columns between two cells.
const GAP: usize = 2;
/// A text cell is not folded to less than this many columns.
const TEXT_MIN: usize = 12;

impl Listing {
    /// `header`: names of columns; those of numbers start with `#`, which is not shown.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            header: header.iter().map(|name| name.trim_start_matches('#').to_owned()).collect(),
            is_number: header.iter().map(|name| name.starts_with('#')).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(|cell| shown(&cell)).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn print(&self, out: &mut impl Write, screen: Screen, caption: &str) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n  {caption}")?;
        self.lines(out, screen, "    ")
    }

    /// The table alone, each line after `indent`.
    pub(crate) fn lines(&self, out: &mut impl Write, screen: Screen, indent: &str) -> io::Result<()> {
        let width = screen.width.saturating_sub(indent.len());
        let columns = |text: &String| text.width();
        let narrowest: usize = (0..self.header.len())
            .map(|at| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                let widest = cells.chain(self.header.get(at)).map(columns).max().unwrap_or_default();
                GAP + if self.is_number.get(at) == Some(&true) { widest } else { widest.min(TEXT_MIN) }
            })
            .sum();
        if narrowest > width + GAP {
            return self.blocks(out, screen, indent);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width + GAP).unwrap_or(u16::MAX));
        table.set_header(&self.header);
        for row in &self.rows {
            table.add_row(row);
        }
        for (at, is_number) in self.is_number.iter().enumerate() {
            if let Some(column) = table.column_mut(at) {
                column.set_padding((0, 2));
                if *is_number {
                    column.set_cell_alignment(CellAlignment::Right);
                    column.set_constraint(ColumnConstraint::ContentWidth);
                }
            }
        }
        table.lines().try_for_each(|line| writeln!(out, "{indent}{}", line.trim_end()))
    }

    /// Prints each row as a block: its first cell, and below it the others with their names.
    fn blocks(&self, out: &mut impl Write, screen: Screen, indent: &str) -> io::Result<()> {
        for row in &self.rows {
            let mut cells = self.header.iter().zip(row);
            if let Some((name, cell)) = cells.next() {
                let lead = format!("{indent}{name} ");
                folded(out, screen, &lead, &" ".repeat(lead.width().min(8)), cell)?;
            }
            let others: Vec<_> =
                cells.filter(|(_, cell)| *cell != "-").map(|(name, cell)| format!("{name} {cell}")).collect();
            let indent = format!("{indent}  ");
            folded(out, screen, &indent, &indent, &others.join(", "))?;
        }
        Ok(())
    }
}

/// Prints a line after `lead`, folded to the width: the next lines come after `indent`. The text must be safe to
/// print.
pub(crate) fn folded(
    out: &mut impl Write,
    screen: Screen,
    lead: &str,
    indent: &str,
    text: &str,
) -> io::Result<()> {
    let mut line = lead.to_owned();
    let mut is_bare = true;
    for mut word in text.split(' ') {
        if !is_bare && line.width() + 1 + word.width() > screen.width {
            writeln!(out, "{}", line.trim_end())?;
            indent.clone_into(&mut line);
            is_bare = true;
        }
        if !is_bare {
            line.push(' ');
        }
        // A word that is wider than the screen is cut.
        while line.width() + word.width() > screen.width {
            let (start, rest) = word.split_at(start_of(word, screen.width.saturating_sub(line.width())));
            writeln!(out, "{line}{start}")?;
            indent.clone_into(&mut line);
            word = rest;
        }
        line.push_str(word);
        is_bare = false;
    }
    writeln!(out, "{}", line.trim_end())
}

/// The bytes of the characters, at least one, that fit into so many columns.
fn start_of(word: &str, columns: usize) -> usize {
    let mut end = 0;
    for c in word.chars() {
        let next = end + c.len_utf8();
        if end > 0 && word[..next].width() > columns {
            break;
        }
        end = next;
    }
    end
}

/// Prints a name and its value: `  name       text`.
pub(crate) fn fact(out: &mut impl Write, screen: Screen, name: &str, text: &str) -> io::Result<()> {
    folded(out, screen, &format!("  {name:<10} "), &" ".repeat(13), &visible(text))
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
        // Bytes that are not UTF-8 are written too.
        let mut out = Vec::new();
        Screened::new(&mut out, true).write_all(b"a\xff\xfeb").unwrap();
        assert_eq!(out, "a\u{fffd}\u{fffd}b".as_bytes());
    }

    fn screen(colour: bool, width: usize) -> Screen {
        Screen { colour, width, now: DateTime::UNIX_EPOCH + TimeDelta::days(10) }
    }

    #[test]
    fn colour_is_there_only_where_it_is_wanted() {
        assert_eq!(screen(false, 80).paint("1", "x"), "x");
        assert_eq!(screen(true, 80).paint("1", "x"), "\u{1b}[1mx\u{1b}[0m");
    }

    #[test]
    fn a_word_of_a_command_line_is_quoted_where_a_shell_would_take_it_apart() {
        for (text, word) in [
            ("acme/tickets", "acme/tickets"),
            ("", "''"),
            ("two words", "'two words'"),
            ("it's", "'it'\\''s'"),
            ("$(rm)", "'$(rm)'"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn an_age_has_the_two_largest_units() {
        for (seconds, shown) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (3_600, "1h"),
            (3_661, "1h 1m"),
            (86_400 * 3 + 7_200 + 60, "3d 2h"),
            (86_400 * 3 + 60, "3d"),
        ] {
            assert_eq!(duration(TimeDelta::seconds(seconds)), shown);
        }
        let now = screen(false, 80).now;
        assert_eq!(screen(false, 80).age(now - TimeDelta::seconds(2)), "2s ago");
        assert_eq!(screen(false, 80).age(now + TimeDelta::seconds(2)), "in 2s");
    }

    #[test]
    fn whatever_is_listed_fits_the_screen_and_nothing_of_it_is_lost() {
        let mut listing = Listing::new(&["name", "#records", "state"]);
        listing.row(["issues".to_owned(), "12000".to_owned(), "word ".repeat(20)]);
        listing.row(["x".repeat(150), "1".to_owned(), "-".to_owned()]);
        for width in [40, 41, 55, 79, 100, 200] {
            let mut out = Vec::new();
            listing.print(&mut out, screen(false, width), "caption").unwrap();
            fact(&mut out, screen(false, width), "fact", &format!("{} {}", "y".repeat(120), "z ".repeat(50)))
                .unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
            let of = |c| text.chars().filter(|found| *found == c).count();
            assert_eq!((of('x'), of('y'), of('z'), of('w')), (150, 120, 50, 20), "{width}: {text}");
            assert!(text.contains("12000"));
        }
    }

    #[test]
    fn a_character_that_takes_two_columns_counts_as_two() {
        let name = "\u{8ab2}\u{984c}".repeat(60);
        for width in [40, 41, 100] {
            let mut listing = Listing::new(&["name", "#records"]);
            listing.row([name.clone(), "12000".to_owned()]);
            let mut out = Vec::new();
            listing.print(&mut out, screen(false, width), "caption").unwrap();
            fact(&mut out, screen(false, width), "fact", &name).unwrap();
            let text = String::from_utf8(out).unwrap();
            let columns = |line: &str| line.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum::<usize>();
            assert!(text.lines().all(|line| columns(line) <= width), "{width}: {text}");
            assert_eq!(text.chars().filter(|c| !c.is_ascii()).count(), 2 * 120, "{width}: {text}");
        }
    }

    #[test]
    fn a_name_without_an_end_is_cut_and_shows_it() {
        let mut listing = Listing::new(&["name"]);
        listing.row(["x".repeat(10_000)]);
        let mut out = Vec::new();
        listing.lines(&mut out, screen(false, 100), "").unwrap();
        assert!(out.len() < 300 && out.ends_with(b"...\n"));
    }

    #[test]
    fn a_long_cursor_is_cut_and_shows_it() {
        assert_eq!(cut(None), "-");
        assert_eq!(cut(Some(&"x".repeat(60))), "x".repeat(60));
        assert_eq!(cut(Some(&"\u{e9}".repeat(61))), format!("{}...", "\u{e9}".repeat(60)));
    }
}
