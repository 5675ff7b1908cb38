//! Recognises records without a finding, at a fraction of what it costs to find out what is wrong with one.
//!
//! Nearly every record is correct, and nearly every line is written by this crate: compact, the members of the envelope in
//! one order, whole numbers short, strings without rare escapes. Such a line is read byte by byte against the declarations.
//! Whatever else stands there ends the look, and [`Checker`](super::Checker) walks the line. So the walk alone defines the
//! rules, and each rule here may be narrower than the walk's, never wider.

use memchr::memchr2;

use super::moment;
use super::schema::{EnumDecl, FieldDecl, Fields, ITEM_URL, Kind, RecordDecl, Schema};
use crate::model::ID_BYTES_MAX;

/// Structs within structs that are followed.
const DEPTH_MAX: usize = 8;

/// Digits of a number that is read: fewer than those of the largest whole number that every reader has exactly.
const DIGITS_MAX: usize = 15;

/// The id of a record in which the walk finds nothing, whatever it looks for. `None`: it has to be walked.
pub(super) fn clean_id<'t>(
    schema: &Schema,
    declared: &RecordDecl,
    require_dates: bool,
    text: &'t str,
) -> Option<&'t str> {
    // No whitespace between the parts, and no string that JSON forbids. One pass without a branch.
    if text.bytes().fold(false, |found, byte| found | (byte < b' ')) {
        return None;
    }
    let mut line = Line { schema, rest: text };
    line.skip("{\"id\":")?;
    let id = line.plain()?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return None;
    }
    for key in [",\"created_date\":", ",\"modified_date\":"] {
        match line.skip(key) {
            Some(()) => moment::is_timestamp(line.plain()?).then_some(())?,
            None if require_dates => return None,
            None => {}
        }
    }
    if line.skip(",\"operation\":").is_some() {
        line.string()?;
    }
    line.skip(",\"data\":")?;
    line.fields(&declared.fields, DEPTH_MAX)?;
    line.skip("}")?;
    line.rest.is_empty().then_some(id)
}

/// The rest of a line. Each method reads on, or returns `None` where the walk has to decide.
struct Line<'s, 't> {
    schema: &'s Schema,
    rest: &'t str,
}

/// A string between its quotes.
struct Text<'t> {
    raw: &'t str,
    has_escapes: bool,
}

impl<'t> Line<'_, 't> {
    fn skip(&mut self, expected: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    fn string(&mut self) -> Option<Text<'t>> {
        let body = self.rest.strip_prefix('"')?;
        let mut end = 0;
        let mut has_escapes = false;
        loop {
            let rest = body.as_bytes().get(end..)?;
            end += memchr2(b'"', b'\\', rest)?;
            if body.as_bytes().get(end) == Some(&b'"') {
                self.rest = body.get(end + 1..)?;
                return Some(Text { raw: body.get(..end)?, has_escapes });
            }
            has_escapes = true;
            if !matches!(body.as_bytes().get(end + 1)?, b'"' | b'\\' | b'/' | b'n' | b'r' | b't') {
                return None;
            }
            end += 2;
        }
    }

    /// A string without escapes.
    fn plain(&mut self) -> Option<&'t str> {
        let text = self.string()?;
        (!text.has_escapes).then_some(text.raw)
    }

    /// A number without an exponent, and whether it is whole.
    fn number(&mut self) -> Option<(&'t str, bool)> {
        let length = self.rest.bytes().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'.'))?;
        let (number, rest) = self.rest.split_at_checked(length)?;
        let (whole, decimals) = match number.split_once('.') {
            Some((whole, decimals)) => (whole, Some(decimals)),
            None => (number, None),
        };
        let digits = whole.strip_prefix('-').unwrap_or(whole);
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_number = are_digits(digits)
            && (digits == "0" || !digits.starts_with('0'))
            && number != "-0"
            && decimals.is_none_or(are_digits)
            && number.len() <= DIGITS_MAX;
        self.rest = rest;
        is_number.then_some((number, decimals.is_none()))
    }

    /// An object with declared fields.
    fn fields(&mut self, fields: &Fields, depth: usize) -> Option<()> {
        self.skip("{")?;
        let mut seen: u128 = 0;
        let mut has_url = false;
        let mut expected = 0;
        let mut is_first = true;
        while self.skip("}").is_none() {
            if !std::mem::replace(&mut is_first, false) {
                self.skip(",")?;
            }
            let key = self.plain()?;
            self.skip(":")?;
            let next =
                fields.list.get(expected).filter(|field| field.key == key).map(|field| (expected, field));
            let Some((position, field)) = next.or_else(|| fields.find(key)) else {
                if key != ITEM_URL || std::mem::replace(&mut has_url, true) {
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
            if !field.required && self.skip("null").is_some() {
                continue;
            }
            self.field(field, depth)?;
        }
        let is_seen = |position: usize| {
            seen.checked_shr(u32::try_from(position).unwrap_or(u32::MAX)).is_some_and(|bits| bits & 1 == 1)
        };
        fields
            .list
            .iter()
            .enumerate()
            .all(|(position, field)| !field.required || is_seen(position))
            .then_some(())
    }

    fn field(&mut self, field: &FieldDecl, depth: usize) -> Option<()> {
        let Some(length) = field.collection else { return self.value(&field.kind, depth) };
        self.skip("[")?;
        let mut elements = 0;
        while self.skip("]").is_none() {
            if elements > 0 {
                self.skip(",")?;
            }
            self.value(&field.kind, depth)?;
            elements += 1;
        }
        length.contains(elements).then_some(())
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Option<()> {
        let is_fine = match kind {
            Kind::Bool => return self.skip("true").or_else(|| self.skip("false")),
            Kind::Int(range) => {
                let (number, is_whole) = self.number()?;
                is_whole && range.contains(number.parse::<i64>().ok()?.into())
            }
            Kind::Float(range) => range.contains(self.number()?.0.parse().ok()?),
            Kind::Text(range) => {
                let Text { raw, has_escapes } = self.string()?;
                let bytes = raw.len() as u64;
                // At most as many characters as bytes, and at least a quarter of that.
                range.max.is_none_or(|max| bytes <= max)
                    && range.min.is_none_or(|min| !has_escapes && bytes / 4 >= min)
            }
            Kind::RichText => return self.string().map(drop),
            Kind::Reference(_) | Kind::Participation => !self.string()?.raw.is_empty(),
            Kind::Enum(values) => is_key(values, self.plain()?),
            Kind::Date => moment::is_date(self.plain()?),
            Kind::Timestamp => moment::is_timestamp(self.plain()?),
            Kind::Struct(Some(index)) => {
                return self.fields(&self.schema.structs.get(*index)?.fields, depth.checked_sub(1)?);
            }
            Kind::Struct(None)
            | Kind::TypedReference(_)
            | Kind::Permission { .. }
            | Kind::Privilege(_)
            | Kind::Any => return None,
        };
        is_fine.then_some(())
    }
}

/// A few keys are compared one by one, which costs less than a hash.
fn is_key(values: &EnumDecl, key: &str) -> bool {
    if values.values.len() <= 8 { values.keys().any(|known| known == key) } else { values.contains(key) }
}
