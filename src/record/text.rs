//! Flaws in valid JSON text that some readers refuse: unpaired surrogates, control characters, and nesting or numbers
//! beyond what readers accept.
//!
//! `JSON.stringify` writes an unpaired surrogate as `\ud83d`, and JavaScript reads it again. By RFC 8259, section
//! 8.2, the behaviour of other readers is unpredictable, and strict ones refuse the whole text. The scan works on the
//! text, builds nothing, and expects valid JSON: for other text its result is meaningless, and the parser reports the
//! error.

use std::ops::Range;

use memchr::{memchr, memchr2, memchr3};

use super::path::{FieldPath, PathStep};

/// Flaws of one kind in one text that are reported one by one. Each kind has its own limit, so that many of one kind
/// do not hide another.
const FLAWS_MAX: usize = 1_000;

/// Bytes of a key that are read for a path: enough for all characters that a path shows, each as a pair of escapes.
const KEY_BYTES: usize = 4 * 1_024;

/// Levels of arrays and objects in one line: `serde_json`, and so [`Checker`](super::Checker), reads no more.
pub(super) const DEPTH_MAX: usize = 127;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// An escape that is half of a surrogate pair, without the other half.
    Surrogate,
    /// A control character other than newline, return and tab: the first of its string.
    Control(char),
    /// An array or object nested too deeply. The scan ends there.
    TooDeep,
    /// A number too large for a float: the largest is about 1.8e308.
    TooLarge,
}

/// A flaw, and where it is.
#[derive(Debug)]
pub(super) struct Flawed {
    pub(super) flaw: Flaw,
    /// Its bytes in the text.
    pub(super) range: Range<usize>,
    pub(super) path: FieldPath,
}

/// Which flaws to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// What a strict reader refuses.
    Strict,
    /// That, and control characters.
    Controls,
}

/// Whether the text may contain an unpaired surrogate or a control character. Cheap, and mostly `false`.
pub(super) fn may_be_flawed(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(at) = memchr3(b'\\', 0xc2, 0x7f, rest) {
        match (rest.get(at), rest.get(at + 1)) {
            (Some(0x7f), _) | (Some(b'\\'), Some(b'u' | b'b' | b'f')) | (Some(0xc2), Some(0x80..=0x9f)) => {
                return true;
            }
            // An escaped backslash is two bytes.
            (Some(b'\\'), _) => rest = rest.get(at + 2..).unwrap_or_default(),
            _ => rest = rest.get(at + 1..).unwrap_or_default(),
        }
    }
    false
}

/// Finds the flaws of a text, in order; if there are very many of a kind, only the first. `levels`: the allowed
/// nesting.
pub(super) fn flaws(text: &[u8], look: Look, levels: usize) -> Vec<Flawed> {
    let mut scan = Scan { text, at: 0, open: Vec::new(), look, levels, found: Vec::new(), counts: [0; 4] };
    scan.run();
    scan.found
}

/// Replaces each unpaired surrogate by U+FFFD, byte for byte, so that other text does not move. Returns the number
/// of replacements.
pub(super) fn replace_surrogates(text: &mut [u8]) -> u64 {
    let mut replaced = 0;
    let mut at = 0;
    while let Some(skip) = text.get(at..).and_then(|rest| memchr(b'\\', rest)) {
        at += skip;
        let (length, unpaired) = escape(text, at);
        if unpaired && let Some(escape) = text.get_mut(at..at + 6) {
            escape.copy_from_slice(b"\\ufffd");
            replaced += 1;
        }
        at += length;
    }
    replaced
}

/// The length of the escape at `at` (a surrogate pair counts as one escape), and whether it is half a pair.
fn escape(text: &[u8], at: usize) -> (usize, bool) {
    match code_unit(text, at) {
        Some(0xd800..=0xdbff) => match code_unit(text, at + 6) {
            Some(0xdc00..=0xdfff) => (12, false),
            _ => (6, true),
        },
        Some(0xdc00..=0xdfff) => (6, true),
        Some(_) => (6, false),
        None => (2, false),
    }
}

/// The code unit of an escape `\u....`.
fn code_unit(text: &[u8], at: usize) -> Option<u32> {
    let escape = text.get(at..at.checked_add(6)?)?;
    let digits = escape.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, digit| Some(unit * 16 + char::from(*digit).to_digit(16)?))
}

/// An array or an object that the scan is in.
enum Open {
    /// The bytes of the last key, without its quotes, and whether the next string is a key.
    Object {
        key: Range<usize>,
        key_is_next: bool,
    },
    Array {
        position: usize,
    },
}

struct Scan<'t> {
    text: &'t [u8],
    at: usize,
    open: Vec<Open>,
    look: Look,
    levels: usize,
    found: Vec<Flawed>,
    /// How many flaws of each kind there are so far.
    counts: [usize; 4],
}

impl Scan<'_> {
    fn run(&mut self) {
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    if self.open.len() == self.levels {
                        self.add(Flaw::TooDeep, self.at..self.at + 1);
                        return;
                    }
                    self.open.push(if byte == b'{' {
                        Open::Object { key: 0..0, key_is_next: true }
                    } else {
                        Open::Array { position: 0 }
                    });
                    self.at += 1;
                }
                b'}' | b']' => {
                    self.open.pop();
                    self.at += 1;
                }
                b',' => {
                    match self.open.last_mut() {
                        Some(Open::Object { key_is_next, .. }) => *key_is_next = true,
                        Some(Open::Array { position }) => *position += 1,
                        None => {}
                    }
                    self.at += 1;
                }
                b'-' | b'0'..=b'9' => self.number(),
                _ => self.at += 1,
            }
        }
    }

    fn number(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len()).max(1);
        let number = rest.get(..length).unwrap_or_default();
        // A shorter number without an exponent is in range.
        if (length > 300 || number.iter().any(|byte| matches!(byte, b'e' | b'E')))
            && let Ok(number) = std::str::from_utf8(number)
            && number.parse::<f64>().is_ok_and(f64::is_infinite)
        {
            self.add(Flaw::TooLarge, self.at..self.at + length);
        }
        self.at += length;
    }

    fn string(&mut self) {
        let start = self.at + 1;
        let is_key = match self.open.last_mut() {
            Some(Open::Object { key, key_is_next }) if *key_is_next => {
                *key_is_next = false;
                *key = start..start;
                true
            }
            _ => false,
        };
        // A path names the key, so flaws in a key are reported once the whole key was read.
        let mut flaws: Vec<(Flaw, Range<usize>)> = Vec::new();
        let mut has_control = false;
        self.at = start;
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let Some(length) = memchr2(b'"', b'\\', rest) else {
                self.at = self.text.len();
                break;
            };
            if self.look == Look::Controls
                && !has_control
                && let Some((at, control)) = raw_control(rest.get(..length).unwrap_or_default())
            {
                has_control = true;
                flaws.push((Flaw::Control(control), self.at + at..self.at + at + control.len_utf8()));
            }
            self.at += length;
            if rest.get(length) == Some(&b'"') {
                break;
            }
            let (length, unpaired) = escape(self.text, self.at);
            if unpaired {
                if flaws.len() < FLAWS_MAX {
                    flaws.push((Flaw::Surrogate, self.at..self.at + length));
                }
            } else if self.look == Look::Controls
                && !has_control
                && let Some(control) = escaped_control(self.text, self.at)
            {
                has_control = true;
                flaws.push((Flaw::Control(control), self.at..self.at + length));
            }
            self.at += length;
        }
        let end = self.at.min(self.text.len());
        if is_key && let Some(Open::Object { key, .. }) = self.open.last_mut() {
            *key = start..end.max(start);
        }
        for (flaw, range) in flaws {
            self.add(flaw, range);
        }
        self.at = end + 1;
    }

    fn add(&mut self, flaw: Flaw, range: Range<usize>) {
        let [surrogates, controls, too_deep, too_large] = &mut self.counts;
        let of_kind = match flaw {
            Flaw::Surrogate => surrogates,
            Flaw::Control(_) => controls,
            Flaw::TooDeep => too_deep,
            Flaw::TooLarge => too_large,
        };
        if *of_kind >= FLAWS_MAX {
            return;
        }
        *of_kind += 1;
        let steps = self.open.iter().filter_map(|open| match open {
            Open::Array { position } => Some(PathStep::Position(*position)),
            // A flaw before the first key belongs to the object itself.
            Open::Object { key, .. } if key.start == 0 => None,
            Open::Object { key, .. } => Some(PathStep::key(&self.key(key.clone()))),
        });
        let path = FieldPath::from_steps(steps.collect());
        self.found.push(Flawed { flaw, range, path });
    }

    /// A key as a reader sees it. For a long key only its beginning, which is more than a path shows, so that the
    /// cost of many flaws in or under it does not grow with its length.
    fn key(&self, range: Range<usize>) -> String {
        let key = self.text.get(range).unwrap_or_default();
        let mut quoted = vec![b'"'];
        quoted.extend_from_slice(key.get(..KEY_BYTES).unwrap_or(key));
        // The cut may be inside an escape, a surrogate pair or a character.
        for _ in 0..12 {
            let mut whole = quoted.clone();
            whole.push(b'"');
            replace_surrogates(&mut whole);
            if let Ok(key) = serde_json::from_slice(&whole) {
                return key;
            }
            quoted.pop();
        }
        String::from_utf8_lossy(quoted.get(1..).unwrap_or_default()).into_owned()
    }
}

/// The first unescaped control character of a text.
fn raw_control(text: &[u8]) -> Option<(usize, char)> {
    let mut from = 0;
    while let Some(at) = text.get(from..).and_then(|rest| memchr2(0x7f, 0xc2, rest)) {
        let at = from + at;
        match (text.get(at), text.get(at + 1)) {
            (Some(0x7f), _) => return Some((at, '\u{7f}')),
            (_, Some(second @ 0x80..=0x9f)) => return Some((at, char::from(*second))),
            _ => from = at + 1,
        }
    }
    None
}

/// Control characters that do not belong in text.
fn is_odd(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\r' | '\t')
}

/// The control character that an escape stands for.
fn escaped_control(text: &[u8], at: usize) -> Option<char> {
    let control = match text.get(at + 1)? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'u' => char::from_u32(code_unit(text, at)?)?,
        _ => return None,
    };
    is_odd(control).then_some(control)
}
