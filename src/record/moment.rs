//! Days and moments as text: the forms that the platform accepts, and the forms that can be converted without
//! guessing.
//!
//! The platform accepts `YYYY-MM-DD` and RFC 3339 with offset, in upper case and with seconds. Conversions keep the
//! digits and the offset: a moment is rewritten, never recomputed in another zone. A text without an offset, or whose
//! day and month could be swapped, is not converted unless a rule says how.

use std::fmt::Write as _;

use chrono::format::{Parsed, StrftimeItems};
use chrono::{
    DateTime, Datelike, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, Offset, SecondsFormat, TimeZone,
    Timelike, Utc,
};

use super::path::quoted;

/// Whether it is a day: `2020-12-31`.
pub(super) fn is_date(text: impl AsRef<[u8]>) -> bool {
    let mut rest = Cursor(text.as_ref());
    rest.strict_date() && rest.0.is_empty()
}

/// Whether it is a moment by RFC 3339 with offset, as the platform reads it: `2020-12-31T23:59:59.5+01:00`.
pub(super) fn is_timestamp(text: impl AsRef<[u8]>) -> bool {
    let text = text.as_ref();
    usual(text).is_some() || is_any_timestamp(text)
}

/// The moment, if [`is_timestamp`].
pub(super) fn read_timestamp(text: &str) -> Option<DateTime<Utc>> {
    let other = || DateTime::parse_from_rfc3339(text).ok().filter(|_| is_any_timestamp(text.as_bytes()));
    usual(text.as_bytes()).or_else(|| Some(other()?.to_utc()))
}

fn is_any_timestamp(text: &[u8]) -> bool {
    let mut rest = Cursor(text);
    rest.strict_date()
        && rest.skip(b"T")
        && rest.two(23).is_some()
        && rest.skip(b":")
        && rest.two(59).is_some()
        && rest.skip(b":")
        && rest.two(59).is_some()
        && (!rest.skip(b".") || !rest.digits().is_empty())
        && (rest.skip(b"Z")
            || (rest.skip(b"+-") && rest.two(23).is_some() && rest.skip(b":") && rest.two(59).is_some()))
        && rest.0.is_empty()
}

/// The moment, if it is written as most sources do: `2020-12-31T23:59:59Z` or `2020-12-31T23:59:59.123Z`. `None`: it is
/// written in another form, or is no moment.
fn usual(text: &[u8]) -> Option<DateTime<Utc>> {
    let (first, rest) = text.split_first_chunk()?;
    let (second, rest) = rest.split_first_chunk()?;
    let third = match rest {
        [colon, tens, ones, b'Z'] => [*colon, *tens, *ones, b'.', b'0', b'0', b'0', b'Z'],
        rest => rest.try_into().ok()?,
    };
    let [y1, y2, y3, y4, _, m1, m2, _] = digits_of(*first, *b"0000-00-")?;
    let [d1, d2, _, h1, h2, _, i1, i2] = digits_of(*second, *b"00T00:00")?;
    let [_, s1, s2, _, f1, f2, f3, _] = digits_of(third, *b":00.000Z")?;
    let number = |digits: &[u8]| digits.iter().fold(0, |number, digit| number * 10 + u32::from(*digit));
    let year = i32::try_from(number(&[y1, y2, y3, y4])).ok()?;
    let day = NaiveDate::from_ymd_opt(year, number(&[m1, m2]), number(&[d1, d2]))?;
    let (hour, minute, second) = (number(&[h1, h2]), number(&[i1, i2]), number(&[s1, s2]));
    Some(day.and_hms_milli_opt(hour, minute, second, number(&[f1, f2, f3]))?.and_utc())
}

/// The digits of eight bytes where `form` has zeros, if elsewhere they are as in `form`. All bytes are looked at at once.
#[inline]
fn digits_of(text: [u8; 8], form: [u8; 8]) -> Option<[u8; 8]> {
    /// A byte in each place of a word.
    const EACH: u64 = 0x0101_0101_0101_0101;
    let form = u64::from_le_bytes(form);
    // 1 for each byte of the form that is no zero: all are ASCII, so no byte carries into the next.
    let marks = (((form ^ (EACH * 0x30)) + EACH * 0x7f) & (EACH * 0x80)) >> 7;
    // 0 to 9 for a digit, 0 for a byte that is as in the form; anything else, plus this, reaches the highest bit.
    let digits = u64::from_le_bytes(text) ^ form;
    let found = digits.wrapping_add(EACH * (0x7f - 9) + marks * 9) | digits;
    (found & (EACH * 0x80) == 0).then_some(digits.to_le_bytes())
}

/// Why a string is not an RFC 3339 timestamp, for the message.
pub(super) fn why_no_timestamp(text: &str) -> &'static str {
    match Parts::read(text) {
        Some(Parts { time: None, .. }) => "it is a day without a time",
        Some(Parts { offset: None, .. }) => "it has no offset, such as Z or +01:00",
        Some(_) => "it is written in another form of ISO 8601",
        None if DateTime::parse_from_rfc2822(text).is_ok() => "it is written as RFC 2822, the form of e-mail",
        None if is_number(text) => "it is a number, perhaps of seconds since 1970",
        None => "it cannot be read as a moment",
    }
}

/// Why a string is not a date, for the message.
pub(super) fn why_no_date(text: &str) -> &'static str {
    match Parts::read(text) {
        Some(Parts { time: Some(_), .. }) => "it has a time of day",
        Some(_) => "it is written in another form of ISO 8601",
        None if DateTime::parse_from_rfc2822(text).is_ok() => "it is written as RFC 2822, the form of e-mail",
        None if is_number(text) => "it is a number, perhaps of seconds since 1970",
        None => "it cannot be read as a day",
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.parse::<f64>().is_ok()
}

/// How a source writes its moments and days, if the value alone does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeFormat {
    /// A number of seconds since 1970-01-01T00:00:00Z, decimals allowed.
    EpochSeconds,
    /// A number of milliseconds since 1970-01-01T00:00:00Z, decimals allowed.
    EpochMillis,
    /// A pattern of chrono's [`strftime`](chrono::format::strftime): `"%d.%m.%Y %H:%M"`.
    Pattern(String),
}

/// How to read one field's moments.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    pub(super) format: Option<TimeFormat>,
    /// The offset of moments that are written without one.
    pub(super) offset: Option<FixedOffset>,
}

/// Numbers in this range must be seconds: the years 1973 to 5138.
const EPOCH_SECONDS: std::ops::Range<u64> = 100_000_000..100_000_000_000;
/// Numbers of milliseconds for the same years.
const EPOCH_MILLIS: std::ops::Range<u64> = 100_000_000_000..100_000_000_000_000;

const SET_OFFSET: &str = "give the field a rule with the offset of the source: FieldRule::new().offset(...)";
const SET_FORMAT: &str = "give the field a rule with the format of the source: FieldRule::new().format(...)";

/// Why a value was not converted: what is wrong with it, and what would make it possible.
pub(super) type Why = (String, &'static str);

/// Rewrites a moment as RFC 3339 with offset.
pub(super) fn timestamp(text: &str, reading: &Reading) -> Result<String, Why> {
    if is_timestamp(text) {
        return Ok(text.to_owned());
    }
    match &reading.format {
        Some(TimeFormat::Pattern(pattern)) => {
            let (date, time, offset) = by_pattern(text, pattern)?;
            let Some(time) = time else {
                return Err(no_time(text));
            };
            let Some(offset) = offset.or(reading.offset) else {
                return Err((format!("the pattern {} has no offset", quoted(pattern)), SET_OFFSET));
            };
            from_local(date.and_time(time), offset).ok_or_else(|| beyond(text))
        }
        Some(TimeFormat::EpochSeconds) => epoch(text, 1, reading.offset),
        Some(TimeFormat::EpochMillis) => epoch(text, 1_000, reading.offset),
        None => iso_or_mail(text.trim(), reading),
    }
}

fn iso_or_mail(text: &str, reading: &Reading) -> Result<String, Why> {
    if let Some(parts) = Parts::read(text) {
        let Some(time) = parts.time else {
            return Err(no_time(text));
        };
        let offset = match parts.offset {
            Some(offset) => offset,
            None => match reading.offset {
                Some(offset) => written(offset),
                None => {
                    return Err((format!("{} has no offset, such as Z or +01:00", quoted(text)), SET_OFFSET));
                }
            },
        };
        let text = format!("{}T{}{offset}", parts.date, time);
        return if is_timestamp(&text) { Ok(text) } else { Err(beyond(&text)) };
    }
    if let Ok(at) = DateTime::parse_from_rfc2822(text) {
        return in_range(&at).ok_or_else(|| beyond(text));
    }
    if is_number(text) {
        return number(text, reading);
    }
    Err((format!("{} is not in an unambiguous form of date and time", quoted(text)), SET_FORMAT))
}

/// Rewrites a number since 1970: seconds or milliseconds, by its size.
fn number(text: &str, reading: &Reading) -> Result<String, Why> {
    let whole = text.trim_start_matches(['-', '+']).split('.').next().unwrap_or_default();
    match whole.parse::<u64>() {
        Ok(size) if EPOCH_SECONDS.contains(&size) => epoch(text, 1, reading.offset),
        Ok(size) if EPOCH_MILLIS.contains(&size) => epoch(text, 1_000, reading.offset),
        _ => Err((
            format!("the number {text} could be seconds, milliseconds, or not a time at all"),
            "give the field a rule: FieldRule::new().format(TimeFormat::EpochSeconds), or null_if if it means nothing",
        )),
    }
}

/// A number of 1/`per_second` seconds, with decimals, read digit by digit.
fn epoch(text: &str, per_second: i64, offset: Option<FixedOffset>) -> Result<String, Why> {
    let wrong = || {
        (
            format!(
                "{} is not a number of {}",
                quoted(text),
                if per_second == 1 { "seconds" } else { "milliseconds" }
            ),
            SET_FORMAT,
        )
    };
    let digits = text.trim();
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    let nanos_of_one = 1_000_000_000 / per_second;
    let whole: i128 = whole.parse().map_err(|_| wrong())?;
    let fraction_nanos = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0_i128, |nanos, digit| nanos * 10 + i128::from(digit - b'0'))
        * i128::from(nanos_of_one)
        / 1_000_000_000;
    let Some(nanos) = whole.checked_mul(i128::from(nanos_of_one)).map(|nanos| nanos + fraction_nanos) else {
        return Err(beyond(text));
    };
    let nanos = if negative { -nanos } else { nanos };
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).map_err(|_| beyond(text))?;
    let rest = u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default();
    let at = DateTime::from_timestamp(seconds, rest).ok_or_else(|| beyond(text))?;
    let offset = offset.unwrap_or_else(|| Utc.fix());
    in_range(&at.with_timezone(&offset)).ok_or_else(|| beyond(text))
}

/// Rewrites a day as `YYYY-MM-DD`.
pub(super) fn date(text: &str, reading: &Reading) -> Result<String, Why> {
    if is_date(text) {
        return Ok(text.to_owned());
    }
    match &reading.format {
        Some(TimeFormat::Pattern(pattern)) => {
            let (date, _, _) = by_pattern(text, pattern)?;
            let text = date.format("%Y-%m-%d").to_string();
            return if is_date(&text) { Ok(text) } else { Err(beyond(&text)) };
        }
        Some(TimeFormat::EpochSeconds) => return epoch(text, 1, reading.offset).map(|at| day_of(&at)),
        Some(TimeFormat::EpochMillis) => return epoch(text, 1_000, reading.offset).map(|at| day_of(&at)),
        None => {}
    }
    let text = text.trim();
    let moment = match Parts::read(text) {
        Some(Parts { date, time: None, .. }) => return Ok(date),
        Some(Parts { date, time: Some(time), .. }) => Some((date, time)),
        None => DateTime::parse_from_rfc2822(text)
            .ok()
            .map(|at| (at.format("%Y-%m-%d").to_string(), at.format("%H:%M:%S%.f").to_string())),
    };
    match moment {
        // Many sources write a day as midnight.
        Some((date, time))
            if time.bytes().all(|digit| matches!(digit, b'0' | b':' | b'.')) && is_date(&date) =>
        {
            Ok(date)
        }
        Some(_) => Err((
            format!("{} has a time of day, so the day depends on the time zone", quoted(text)),
            "declare the field as timestamp, or give it a rule with a format or a function",
        )),
        None if is_number(text) => Err((
            format!("the number {text} is not a day by itself"),
            "give the field a rule with the unit: FieldRule::new().format(TimeFormat::EpochSeconds)",
        )),
        None => Err((format!("{} is not in an unambiguous form of date", quoted(text)), SET_FORMAT)),
    }
}

fn day_of(timestamp: &str) -> String {
    timestamp.split('T').next().unwrap_or_default().to_owned()
}

fn no_time(text: &str) -> Why {
    (
        format!("{} is a day without a time", quoted(text)),
        "declare the field as date, or give it a rule with a function that sets the time",
    )
}

fn beyond(text: &str) -> Why {
    (format!("{} is not a moment of the calendar between the years 0 and 9999", quoted(text)), SET_FORMAT)
}

fn written(offset: FixedOffset) -> String {
    if offset.local_minus_utc() == 0 { "Z".to_owned() } else { offset.to_string() }
}

fn from_local(local: NaiveDateTime, offset: FixedOffset) -> Option<String> {
    in_range(&offset.from_local_datetime(&local).single()?)
}

/// RFC 3339 has four digits for the year, and the platform does not accept leap seconds.
fn in_range(at: &DateTime<FixedOffset>) -> Option<String> {
    let fits = (0..=9999).contains(&at.year()) && at.nanosecond() < 1_000_000_000;
    fits.then(|| at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

type Local = (NaiveDate, Option<NaiveTime>, Option<FixedOffset>);

fn by_pattern(text: &str, pattern: &str) -> Result<Local, Why> {
    let mut parsed = Parsed::new();
    let not_so = |error: chrono::ParseError| {
        (format!("{} does not fit the pattern {pattern:?}: {error}", quoted(text)), SET_FORMAT)
    };
    chrono::format::parse(&mut parsed, text, StrftimeItems::new(pattern)).map_err(not_so)?;
    if let Ok(at) = parsed.to_datetime() {
        return Ok((at.date_naive(), Some(at.time()), Some(*at.offset())));
    }
    let date = parsed.to_naive_date().map_err(not_so)?;
    Ok((date, parsed.to_naive_time().ok(), parsed.to_fixed_offset().ok()))
}

/// A moment in some form of ISO 8601, split into the parts of RFC 3339.
struct Parts {
    date: String,
    time: Option<String>,
    offset: Option<String>,
}

impl Parts {
    /// Reads `2020-12-31`, `20201231`, and both with a time: `T` or a space between, colons or not, seconds or not,
    /// decimals after a point or a comma; and an offset: `Z`, `+01`, `+0100`, `+01:00`.
    fn read(text: &str) -> Option<Self> {
        let mut rest = Cursor(text.as_bytes());
        let year = rest.number(4, 9999)?;
        let dashes = rest.skip(b"-");
        let month = rest.number(2, 12)?;
        if dashes && !rest.skip(b"-") {
            return None;
        }
        let day = rest.number(2, 31)?;
        NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)?;
        let date = format!("{year:04}-{month:02}-{day:02}");
        if rest.0.is_empty() {
            return Some(Self { date, time: None, offset: None });
        }
        if !rest.skip(b"Tt ") {
            return None;
        }
        let hour = rest.number(2, 23)?;
        let colons = rest.skip(b":");
        let minute = rest.number(2, 59)?;
        let mut time = format!("{hour:02}:{minute:02}:");
        if (colons && rest.skip(b":")) || (!colons && rest.0.first().is_some_and(u8::is_ascii_digit)) {
            // Writing to a string does not fail.
            let _ = write!(time, "{:02}", rest.number(2, 59)?);
            if rest.skip(b".,") {
                let digits = rest.digits();
                if digits.is_empty() {
                    return None;
                }
                time.push('.');
                time.push_str(std::str::from_utf8(digits).ok()?);
            }
        } else {
            time.push_str("00");
        }
        let _ = rest.skip(b" ");
        let offset = if rest.0.is_empty() { None } else { Some(rest.offset()?) };
        Some(Self { date, time: Some(time), offset })
    }
}

/// Reads ASCII digits and marks from the front.
struct Cursor<'t>(&'t [u8]);

impl<'t> Cursor<'t> {
    /// Skips one byte if it is one of `marks`.
    fn skip(&mut self, marks: &[u8]) -> bool {
        match self.0.split_first() {
            Some((first, rest)) if marks.contains(first) => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn digits(&mut self) -> &'t [u8] {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at_checked(count).unwrap_or_default();
        self.0 = rest;
        digits
    }

    /// A number of exactly `count` digits.
    fn number(&mut self, count: usize, max: u32) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let mut number = 0;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return None;
            }
            number = number * 10 + u32::from(digit - b'0');
        }
        self.0 = rest;
        (number <= max).then_some(number)
    }

    fn two(&mut self, max: u32) -> Option<u32> {
        self.number(2, max)
    }

    fn strict_date(&mut self) -> bool {
        let Some(year) = self.number(4, 9999) else { return false };
        if !self.skip(b"-") {
            return false;
        }
        let Some(month) = self.two(12).filter(|month| *month > 0) else { return false };
        if !self.skip(b"-") {
            return false;
        }
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        self.two(days).is_some_and(|day| day > 0)
    }

    /// The offset at the end of the text. `None` if there is something else.
    fn offset(&mut self) -> Option<String> {
        if self.0 == b"Z"
            || self.0 == b"z"
            || self.0.eq_ignore_ascii_case(b"UTC")
            || self.0.eq_ignore_ascii_case(b"GMT")
        {
            return Some("Z".to_owned());
        }
        let sign = match self.0.split_first()? {
            (b'+', rest) => {
                self.0 = rest;
                '+'
            }
            (b'-', rest) => {
                self.0 = rest;
                '-'
            }
            _ => return None,
        };
        let hours = self.two(23)?;
        let minutes = if self.0.is_empty() {
            0
        } else {
            let _ = self.skip(b":");
            self.two(59)?
        };
        if !self.0.is_empty() {
            return None;
        }
        Some(format!("{sign}{hours:02}:{minutes:02}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rfc_3339_with_offset_is_a_timestamp() {
        for right in [
            "1972-03-29T22:04:47+01:00",
            "2020-02-29T00:00:00Z",
            "2020-12-31T23:59:59.123456789012-23:59",
            "0000-01-01T00:00:00.0Z",
            "9999-12-31T23:59:59.9999999999999999999+23:59",
        ] {
            assert!(is_timestamp(right), "{right}");
            // What we accept as a moment can be compared as one.
            assert!(DateTime::parse_from_rfc3339(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "2020-12-31",
            "2020-12-31T23:59:59",
            "2020-12-31 23:59:59Z",
            "2020-12-31t23:59:59Z",
            "2020-12-31T23:59:59z",
            "2020-12-31T23:59Z",
            "2020-12-31T23:59:59.Z",
            "2020-12-31T23:59:60Z",
            "2020-12-31T24:00:00Z",
            "2020-12-31T23:59:59+0100",
            "2020-12-31T23:59:59+01",
            "2020-12-31T23:59:59+24:00",
            "2019-02-29T00:00:00Z",
            "2020-13-01T00:00:00Z",
            "2020-00-01T00:00:00Z",
            "2020-01-00T00:00:00Z",
            "2020-12-31T23:59:59Z ",
            "1609459199",
        ] {
            assert!(!is_timestamp(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_moment_in_the_usual_form_is_the_one_that_chrono_reads() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut usual_ones = 0;
        for _ in 0..200_000 {
            let mut text = *b"2020-02-28T23:59:59.123Z";
            // A few bytes are others: mostly digits, sometimes anything.
            for _ in 0..rng.usize(..6) {
                let any = if rng.u8(..8) == 0 { rng.u8(..0x80) } else { rng.u8(b'0'..=b'9') };
                text[rng.usize(..24)] = any;
            }
            let mut text = String::from_utf8(text.to_vec()).unwrap();
            if rng.bool() {
                text.replace_range(19..23, "");
            }
            if rng.u8(..10) == 0 {
                text.truncate(rng.usize(..text.len()));
            }
            if let Some(at) = usual(text.as_bytes()) {
                usual_ones += 1;
                assert_eq!(DateTime::parse_from_rfc3339(&text).unwrap(), at, "{text}");
                assert!(is_any_timestamp(text.as_bytes()), "{text}");
            } else {
                // Then it is either no moment, or one of another form.
                let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
                let is_usual = ["0000-00-00T00:00:00Z", "0000-00-00T00:00:00.000Z"].contains(&form.as_str());
                assert!(!is_usual || !is_any_timestamp(text.as_bytes()), "{text}");
            }
        }
        assert!((50_000..190_000).contains(&usual_ones), "{usual_ones}");
        assert_eq!(usual("2020-12-31T23:59:59\u{e9}123Z".as_bytes()), None);
        assert_eq!(usual("2020-12-31T23:59:\u{e9}Z".as_bytes()), None);
    }

    /// chrono is the oracle: it reads a superset of our strict form.
    #[test]
    fn every_day_of_four_centuries_is_a_date_exactly_if_the_calendar_has_it() {
        for year in (1899..=1905).chain(1999..=2001) {
            for month in 0..=13 {
                for day in 0..=32 {
                    let text = format!("{year:04}-{month:02}-{day:02}");
                    assert_eq!(is_date(&text), NaiveDate::from_ymd_opt(year, month, day).is_some(), "{text}");
                }
            }
        }
    }
}
