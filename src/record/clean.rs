//! Recognises records without a finding, at a fraction of what it costs to find out what is wrong with one.
//!
//! Nearly every record is correct, and nearly every line is written by this crate: compact, the members of the
//! envelope in one order, strings without rare escapes. Such a line is read byte by byte against the declarations.
//! Whatever else it has ends this, and [`Checker`](super::Checker) walks the line. So the walk alone defines the
//! rules; a rule here may be narrower than the walk's, never wider.

use memchr::memchr2;

use super::moment;
use super::schema::{EnumDecl, FieldDecl, Fields, ITEM_URL, Kind, RecordDecl, Schema};
use crate::model::ID_BYTES_MAX;

/// Structs within structs that are followed.
const DEPTH_MAX: usize = 8;

/// Bytes of a number that is read. So whole numbers are below 2^53, up to which every reader has them exactly.
const NUMBER_BYTES_MAX: usize = 15;

/// Up to so many keys of an enum are compared one by one, which costs less than a hash.
const FEW_KEYS: usize = 8;

/// Whether a text is printable ASCII, so that it is UTF-8 and its strings need no look at each byte.
pub(super) fn is_printable(text: &[u8]) -> bool {
    text.iter().fold(true, |is, byte| is & (b' '..=b'~').contains(byte))
}

/// The id of a record in which the walk finds nothing. `None`: the walk has to decide. The text is UTF-8, without
/// control characters below the space.
pub(super) fn clean_id<'t>(
    schema: &Schema,
    declared: &RecordDecl,
    require_dates: bool,
    text: &'t [u8],
) -> Option<&'t str> {
    let mut line = Line { schema, rest: text };
    line.expect(b"{\"id\":")?;
    let id = str::from_utf8(line.plain()?).ok()?;
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
    line.rest.is_empty().then_some(id)
}

/// A line, of which a part is read.
struct Line<'s, 't> {
    schema: &'s Schema,
    rest: &'t [u8],
}

/// A key of an object with declared fields.
enum Key<'f> {
    Field(usize, &'f FieldDecl),
    /// The one that needs no declaration.
    ItemUrl,
}

/// The fields that an object has, by their positions: a bit for each of the first 128.
#[derive(Default)]
struct Seen([u64; 2]);

impl Seen {
    /// `None` if it is in it, or beyond the bits.
    #[inline]
    fn add(&mut self, position: usize) -> Option<()> {
        let bits = self.0.get_mut(position / 64)?;
        let bit = 1 << (position % 64);
        (std::mem::replace(bits, *bits | bit) & bit == 0).then_some(())
    }

    #[inline]
    fn has(&self, position: usize) -> bool {
        self.0.get(position / 64).is_some_and(|bits| bits >> (position % 64) & 1 == 1)
    }
}

/// What is between the quotes of a string.
struct Text<'t> {
    raw: &'t [u8],
    has_escapes: bool,
}

/// What is read is `Some`. Whatever has to be walked is `None`.
impl<'t> Line<'_, 't> {
    #[inline]
    fn skip<const N: usize>(&mut self, expected: &[u8; N]) -> bool {
        let Some((first, rest)) = self.rest.split_first_chunk() else { return false };
        let is_there = first == expected;
        if is_there {
            self.rest = rest;
        }
        is_there
    }

    #[inline]
    fn expect<const N: usize>(&mut self, expected: &[u8; N]) -> Option<()> {
        self.skip(expected).then_some(())
    }

    fn string(&mut self) -> Option<Text<'t>> {
        self.expect(b"\"")?;
        let text = self.rest;
        let (mut length, mut has_escapes) = (0, false);
        loop {
            length += memchr2(b'"', b'\\', text.get(length..)?)?;
            if text.get(length) == Some(&b'"') {
                break;
            }
            has_escapes = true;
            matches!(text.get(length + 1)?, b'"' | b'\\' | b'/' | b'n' | b'r' | b't').then_some(())?;
            length += 2;
        }
        let (raw, rest) = text.split_at_checked(length)?;
        self.rest = rest.get(1..)?;
        Some(Text { raw, has_escapes })
    }

    /// A string without escapes.
    fn plain(&mut self) -> Option<&'t [u8]> {
        let Text { raw, has_escapes } = self.string()?;
        (!has_escapes).then_some(raw)
    }

    fn timestamp(&mut self) -> Option<()> {
        moment::is_timestamp(self.plain()?).then_some(())
    }

    /// A number without an exponent.
    fn number(&mut self) -> Option<&'t str> {
        let begin = self.rest;
        self.skip(b"-");
        let whole = self.digits()?;
        if whole.len() > 1 && whole.starts_with(b"0") {
            return None;
        }
        if self.skip(b".") {
            self.digits()?;
        }
        let number = begin.get(..begin.len() - self.rest.len())?;
        if number.len() <= NUMBER_BYTES_MAX { str::from_utf8(number).ok() } else { None }
    }

    fn digits(&mut self) -> Option<&'t [u8]> {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        (!digits.is_empty()).then_some(digits)
    }

    /// An object with declared fields.
    fn object(&mut self, fields: &Fields, depth: usize) -> Option<()> {
        self.expect(b"{")?;
        let mut seen = Seen::default();
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
            seen.add(position)?;
            expected = position + 1;
            if field.required || !self.skip(b"null") {
                self.field(field, depth)?;
            }
        }
        let mut required = fields.list.iter().enumerate().filter(|(_, field)| field.required);
        required.all(|(position, _)| seen.has(position)).then_some(())
    }

    /// A key and the colon behind it. Mostly it is that of the field at `expected`.
    fn key<'f>(&mut self, fields: &'f Fields, expected: usize) -> Option<Key<'f>> {
        if let (Some(written), Some(field)) = (fields.written(expected), fields.list.get(expected))
            && let Some((first, rest)) = self.rest.split_at_checked(written.len())
            && first == written.as_bytes()
        {
            self.rest = rest;
            return Some(Key::Field(expected, field));
        }
        let key = str::from_utf8(self.plain()?).ok()?;
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

fn is_key(values: &EnumDecl, key: &[u8]) -> bool {
    if values.values.len() <= FEW_KEYS {
        values.keys().any(|known| known.as_bytes() == key)
    } else {
        str::from_utf8(key).is_ok_and(|key| values.contains(key))
    }
}
