//! Recognises records without a finding, at a fraction of what it costs to find out what is wrong with one.
//!
//! Nearly every record is correct, and nearly every line is written by this crate: compact, the members of the
//! envelope in one order, strings without rare escapes. Such a line is read byte by byte against the declarations.
//! Whatever else it has ends this, and [`Checker`](super::Checker) walks the line. So the walk alone defines the
//! rules; a rule here may be narrower than the walk's, never wider.

use super::moment;
use super::schema::{EnumDecl, FieldDecl, Fields, ITEM_URL, Kind, RecordDecl, Schema};
use crate::model::ID_BYTES_MAX;

/// Structs within structs that are followed.
const DEPTH_MAX: usize = 8;

/// Bytes of a number that is read. So whole numbers are below 2^53, up to which every reader has them exactly.
const NUMBER_BYTES_MAX: usize = 15;

/// Up to so many keys of an enum are compared one by one, which costs less than a hash.
const FEW_KEYS: usize = 8;

/// The id of a record in which the walk finds nothing. `None`: the walk has to decide.
pub(super) fn clean_id<'t>(
    schema: &Schema,
    declared: &RecordDecl,
    require_dates: bool,
    text: &'t str,
) -> Option<&'t str> {
    let mut line = Line { schema, text, at: 0 };
    line.expect(b"{\"id\":")?;
    let id = line.plain()?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return None;
    }
    let has_created = line.skip(b",\"created_date\":");
    if has_created {
        line.timestamp()?;
    }
    let has_modified = line.skip(b",\"modified_date\":");
    if has_modified {
        line.timestamp()?;
    }
    if require_dates && !(has_created && has_modified) {
        return None;
    }
    if line.skip(b",\"operation\":") {
        line.string()?;
    }
    line.expect(b",\"data\":")?;
    line.object(&declared.fields, DEPTH_MAX)?;
    line.expect(b"}")?;
    (line.at == text.len()).then_some(id)
}

/// A line, and how far it is read.
struct Line<'s, 't> {
    schema: &'s Schema,
    text: &'t str,
    at: usize,
}

/// A key of an object with declared fields.
enum Key<'f> {
    Field(usize, &'f FieldDecl),
    /// The one that needs no declaration.
    ItemUrl,
}

/// What is between the quotes of a string.
struct Text<'t> {
    raw: &'t str,
    has_escapes: bool,
}

/// What is read is `Some`. Whatever has to be walked is `None`.
impl<'t> Line<'_, 't> {
    #[inline]
    fn skip<const N: usize>(&mut self, expected: &[u8; N]) -> bool {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let is_there = rest.first_chunk() == Some(expected);
        if is_there {
            self.at += N;
        }
        is_there
    }

    #[inline]
    fn expect<const N: usize>(&mut self, expected: &[u8; N]) -> Option<()> {
        self.skip(expected).then_some(())
    }

    fn string(&mut self) -> Option<Text<'t>> {
        self.expect(b"\"")?;
        let begin = self.at;
        let mut has_escapes = false;
        loop {
            self.at += plain_length(self.text.as_bytes().get(self.at..)?);
            match self.text.as_bytes().get(self.at)? {
                b'"' => break,
                b'\\' => {
                    has_escapes = true;
                    let escaped = self.text.as_bytes().get(self.at + 1)?;
                    matches!(escaped, b'"' | b'\\' | b'/' | b'n' | b'r' | b't').then_some(())?;
                    self.at += 2;
                }
                _ => return None,
            }
        }
        let raw = self.text.get(begin..self.at)?;
        self.at += 1;
        Some(Text { raw, has_escapes })
    }

    /// A string without escapes.
    fn plain(&mut self) -> Option<&'t str> {
        let Text { raw, has_escapes } = self.string()?;
        (!has_escapes).then_some(raw)
    }

    fn timestamp(&mut self) -> Option<()> {
        moment::is_timestamp(self.plain()?).then_some(())
    }

    /// A number without an exponent.
    fn number(&mut self) -> Option<&'t str> {
        let begin = self.at;
        self.skip(b"-");
        let whole = self.digits()?;
        if whole.len() > 1 && whole.starts_with('0') {
            return None;
        }
        if self.skip(b".") {
            self.digits()?;
        }
        let number = self.text.get(begin..self.at)?;
        (number.len() <= NUMBER_BYTES_MAX).then_some(number)
    }

    fn digits(&mut self) -> Option<&'t str> {
        let begin = self.at;
        while self.text.as_bytes().get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        self.text.get(begin..self.at).filter(|digits| !digits.is_empty())
    }

    /// An object with declared fields.
    fn object(&mut self, fields: &Fields, depth: usize) -> Option<()> {
        self.expect(b"{")?;
        let mut seen: u128 = 0;
        let mut has_url = false;
        let mut expected = 0;
        let mut is_first = true;
        while !self.skip(b"}") {
            if !is_first {
                self.expect(b",")?;
            }
            is_first = false;
            let Key::Field(position, field) = self.key(fields, expected)? else {
                if std::mem::replace(&mut has_url, true) {
                    return None;
                }
                self.string()?;
                continue;
            };
            let bit = 1_u128.checked_shl(u32::try_from(position).ok()?)?;
            if seen & bit != 0 {
                return None;
            }
            seen |= bit;
            expected = position + 1;
            if field.required || !self.skip(b"null") {
                self.field(field, depth)?;
            }
        }
        let mut bit: u128 = 1;
        for field in &fields.list {
            if field.required && seen & bit == 0 {
                return None;
            }
            bit <<= 1;
        }
        Some(())
    }

    /// A key and the colon behind it. Mostly it is that of the field at `expected`.
    fn key<'f>(&mut self, fields: &'f Fields, expected: usize) -> Option<Key<'f>> {
        if let (Some(written), Some(field)) = (fields.written(expected), fields.list.get(expected))
            && self.text.as_bytes().get(self.at..self.at + written.len()) == Some(written.as_bytes())
        {
            self.at += written.len();
            return Some(Key::Field(expected, field));
        }
        let key = self.plain()?;
        self.expect(b":")?;
        match fields.find(key) {
            Some((position, field)) => Some(Key::Field(position, field)),
            None => (key == ITEM_URL).then_some(Key::ItemUrl),
        }
    }

    fn field(&mut self, field: &FieldDecl, depth: usize) -> Option<()> {
        let Some(length) = field.collection else { return self.value(&field.kind, depth) };
        self.expect(b"[")?;
        let mut elements = 0;
        while !self.skip(b"]") {
            if elements > 0 {
                self.expect(b",")?;
            }
            self.value(&field.kind, depth)?;
            elements += 1;
        }
        length.contains(elements).then_some(())
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Option<()> {
        let is_right = match kind {
            Kind::Bool => self.skip(b"true") || self.skip(b"false"),
            // Decimals are no `i64`.
            Kind::Int(range) => range.contains(self.number()?.parse::<i64>().ok()?.into()),
            Kind::Float(range) => range.contains(self.number()?.parse().ok()?),
            Kind::Text(range) => {
                let bytes = self.string()?.raw.len() as u64;
                // A text has at most as many characters as bytes, and at least a quarter of that; an escape here is
                // two bytes.
                range.max.is_none_or(|max| bytes <= max) && range.min.is_none_or(|min| bytes / 4 >= min)
            }
            Kind::RichText => return self.string().map(|_| ()),
            Kind::Reference(_) | Kind::Participation => !self.string()?.raw.is_empty(),
            Kind::Enum(values) => is_key(values, self.plain()?),
            Kind::Date => moment::is_date(self.plain()?),
            Kind::Timestamp => return self.timestamp(),
            Kind::Struct(Some(index)) => {
                let declared = self.schema.structs.get(*index)?;
                return self.object(&declared.fields, depth.checked_sub(1)?);
            }
            Kind::Struct(None)
            | Kind::TypedReference(_)
            | Kind::Permission { .. }
            | Kind::Privilege(_)
            | Kind::Any => false,
        };
        is_right.then_some(())
    }
}

fn is_key(values: &EnumDecl, key: &str) -> bool {
    if values.values.len() <= FEW_KEYS {
        values.keys().any(|known| known == key)
    } else {
        values.contains(key)
    }
}

/// The number of bytes before the first quote, backslash or control character below the space.
#[inline]
fn plain_length(text: &[u8]) -> usize {
    /// A byte in each place of a word.
    const EACH: u64 = 0x0101_0101_0101_0101;
    /// The highest bit of each byte of a word that is below `limit`, which is at most 0x80: right up to the first.
    fn below(word: u64, limit: u64) -> u64 {
        word.wrapping_sub(EACH * limit) & !word & (EACH * 0x80)
    }
    let (words, rest) = text.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let is = |byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
        let found = is(b'"') | is(b'\\') | below(word, 0x20);
        if found != 0 {
            return number * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let in_rest = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '));
    text.len() - rest.len() + in_rest.unwrap_or(rest.len())
}
