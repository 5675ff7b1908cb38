//! The extraction window: the range of time that a run extracts.
//!
//! It is resolved once per run, from the first event of the run that defines it. It is stored, so it is the same in
//! every later invocation. The event may name each end by a rule (`extraction_start_time`, `extraction_end_time`). An
//! end that it does not name follows from the mode: an initial import goes back to `extract_from`, or to the
//! beginning; an incremental one to the start of the last run that succeeded. The unit's [`Bounds`] change only when
//! the run ends.
//!
//! Durations are written as in Go, and parsed with Go's arithmetic, to the last digit
//! (<https://pkg.go.dev/time#ParseDuration>).

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

use crate::airdrop::event::{Event, Mode, TimeSetting, WindowEnd, moment, wrong};
use crate::error::Result;

/// What `unbounded` means: 1970-01-01T00:00:00Z.
const UNBOUNDED: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// The range of time that a run extracts, in UTC and whole microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its start; `None`: everything.
    pub from: Option<DateTime<Utc>>,
    /// Its end, later than `from`.
    pub to: DateTime<Utc>,
}

/// The range of time that the finished runs of a sync unit have extracted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The earliest start of a window.
    pub(crate) oldest: Option<DateTime<Utc>>,
    /// The latest end of one.
    pub(crate) newest: Option<DateTime<Utc>>,
}

/// Resolves the window that an event asks for.
///
/// `last_start` is the start of the last run that succeeded.
///
/// # Errors
/// `Event`, naming the field, if a rule is unknown, lacks its value or has one that cannot be read, if it needs a
/// bound that is not known, or if the window would end before it starts.
pub(crate) fn resolve(
    event: &Event,
    now: DateTime<Utc>,
    bounds: Bounds,
    last_start: Option<DateTime<Utc>>,
) -> Result<Window> {
    let now = now.trunc_subsecs(6);
    let known = Known { now, bounds, last_start };
    let start = event.time_setting(WindowEnd::Start)?;
    let end = event.time_setting(WindowEnd::End)?;
    let mut to = match &end {
        Some(setting) => known.moment(WindowEnd::End, setting)?,
        None => now,
    };
    let from = if let Some(setting) = &start {
        Some(known.moment(WindowEnd::Start, setting)?)
    } else {
        let last_start = match event.mode()? {
            Some(Mode::Initial) => None,
            _ if event.reset_extract_from()? => None,
            _ => last_start,
        };
        match last_start {
            Some(last_start) => {
                // If the clock was set back in the meantime, an empty window is not an error.
                if end.is_none() {
                    let after = last_start.checked_add_signed(TimeDelta::microseconds(1));
                    to = to.max(after.unwrap_or(last_start));
                }
                Some(last_start)
            }
            None => event.extract_from()?,
        }
    };
    match from {
        Some(from) if from >= to => {
            let field = match (start, end) {
                (None, None) => "payload.event_context.extract_from",
                (None, Some(_)) => WindowEnd::End.path(),
                (Some(_), _) => WindowEnd::Start.path(),
            };
            Err(wrong(field, format!("must make a window that ends after it starts, not {from:?} to {to:?}")))
        }
        from => Ok(Window { from, to }),
    }
}

/// What a rule can refer to.
struct Known {
    now: DateTime<Utc>,
    bounds: Bounds,
    last_start: Option<DateTime<Utc>>,
}

impl Known {
    fn moment(&self, end: WindowEnd, setting: &TimeSetting) -> Result<DateTime<Utc>> {
        let value_path = format!("{}.value", end.path());
        let value = |what: &str| {
            let missing = || wrong(&value_path, format!("is missing: {} needs {what}", setting.kind));
            setting.value.as_deref().ok_or_else(missing)
        };
        let shifted = |from: DateTime<Utc>, sign: i128| {
            let text = value("a duration such as 2h45m")?;
            let Some(nanos) = parse_duration(text) else {
                let text: String = text.chars().take(40).collect();
                return Err(wrong(
                    &value_path,
                    format!(
                        "must be a duration of at most 292 years, such as 500ms, 1.5h or 2h45m, not {text:?}"
                    ),
                ));
            };
            // `i64::MIN` cannot be negated; there one nanosecond more or less does not matter.
            let nanos = i64::try_from(sign * i128::from(nanos)).unwrap_or(i64::MAX);
            from.checked_add_signed(TimeDelta::nanoseconds(nanos))
                .map(|moment| moment.trunc_subsecs(6))
                .ok_or_else(|| wrong(&value_path, "is out of range"))
        };
        match setting.kind.as_str() {
            "absolute_time" => moment(&value_path, value("a time")?),
            "current_time" => Ok(self.now),
            "unbounded" => Ok(UNBOUNDED),
            "workers_oldest" => Ok(self.oldest()),
            "workers_newest" => self.newest(end),
            // Nothing is older than the start of time.
            "workers_oldest_minus_window" => match self.bounds.oldest {
                Some(oldest) => shifted(oldest, -1),
                None => Ok(UNBOUNDED),
            },
            "workers_newest_plus_window" => shifted(self.newest(end)?, 1),
            _ => Err(wrong(
                &format!("{}.type", end.path()),
                "must be absolute_time, current_time, unbounded, workers_oldest, workers_newest, \
                 workers_oldest_minus_window or workers_newest_plus_window",
            )),
        }
    }

    fn oldest(&self) -> DateTime<Utc> {
        self.bounds.oldest.unwrap_or(UNBOUNDED)
    }

    fn newest(&self, end: WindowEnd) -> Result<DateTime<Utc>> {
        self.bounds.newest.or(self.last_start).ok_or_else(|| {
            wrong(end.path(), "must not refer to the newest time extracted: no run has succeeded yet")
        })
    }
}

/// Nanoseconds of a Go duration: signed, of any number of parts, each a decimal number and a unit. `None` if it is
/// not one, or does not fit in 64 bits.
fn parse_duration(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..)?),
        Some(b'+') => (false, text.get(1..)?),
        _ => (false, text),
    };
    if unsigned == "0" {
        return Some(0);
    }
    if unsigned.is_empty() {
        return None;
    }
    let mut rest = unsigned;
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_at_first(rest, |c| !c.is_ascii_digit());
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_at_first(after, |c| !c.is_ascii_digit()),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let (unit, after) = split_at_first(after, |c| c == '.' || c.is_ascii_digit());
        let unit = unit_nanos(unit)?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(unit)?)?.checked_add(fraction_nanos(fraction, unit))?;
        if nanos > i64::MIN.unsigned_abs() {
            return None;
        }
        rest = after;
    }
    if negative { 0_i64.checked_sub_unsigned(nanos) } else { i64::try_from(nanos).ok() }
}

/// The part after the point, in Go's floating-point arithmetic, so that the last nanosecond is the same.
// At most 1.0 * 3.6e12, and never negative.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn fraction_nanos(digits: &str, unit: u64) -> u64 {
    let mut value: u64 = 0;
    let mut scale: f64 = 1.0;
    for digit in digits.bytes() {
        // Further digits do not fit in 63 bits and are ignored.
        if value > i64::MAX.unsigned_abs() / 10 {
            break;
        }
        value = value * 10 + u64::from(digit - b'0');
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // The micro sign and the Greek letter mu.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

fn split_at_first(text: &str, end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const MINUTE: i64 = 60 * SECOND;
    const HOUR: i64 = 60 * MINUTE;

    /// Texts and values from Go's own documentation and behaviour.
    #[test]
    fn durations_are_read_as_go_reads_them() {
        let good = [
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("0s", 0),
            ("5s", 5 * SECOND),
            ("+5s", 5 * SECOND),
            ("-5s", -5 * SECOND),
            ("1478s", 1478 * SECOND),
            ("5.0s", 5 * SECOND),
            ("5.s", 5 * SECOND),
            (".5s", SECOND / 2),
            ("1.004s", SECOND + SECOND / 1000 * 4),
            ("100.00100s", 100 * SECOND + SECOND / 1000),
            ("-.25h", -15 * MINUTE),
            ("10ns", 10),
            ("11us", 11_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("500ms", SECOND / 2),
            ("1.5h", 90 * MINUTE),
            ("2h45m", 2 * HOUR + 45 * MINUTE),
            ("3h30m", 3 * HOUR + 30 * MINUTE),
            ("10.5s4m", 4 * MINUTE + 10 * SECOND + SECOND / 2),
            ("-2m3.4s", -(2 * MINUTE + 3 * SECOND + SECOND / 10 * 4)),
            ("1h2m3s4ms5us6ns", HOUR + 2 * MINUTE + 3 * SECOND + 4_005_006),
            ("1h1h", 2 * HOUR),
            ("52763797000ns", 52_763_797_000),
            // More digits than there are nanoseconds, or than a 64 bit number holds.
            ("0.9999999999s", 999_999_999),
            ("0.3333333333333333333h", 20 * MINUTE),
            ("0.100000000000000000000h", 6 * MINUTE),
            ("0.830103483285477580700h", 49 * MINUTE + 48 * SECOND + 372_539_827),
            ("9007199254740993ns", (1 << 53) + 1),
            ("9007199254.740993ms", (1 << 53) + 1),
            ("9223372036854775807ns", i64::MAX),
            ("9223372036854775.807us", i64::MAX),
            ("9223372036s854ms775us807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("-9223372036854775.808us", i64::MIN),
            ("-2562047h47m16.854775808s", i64::MIN),
        ];
        for (text, nanos) in good {
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
        }
        let bad = [
            "",
            "3",
            "-",
            "+",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "1w",
            "1y",
            "1H",
            "5 s",
            " 5s",
            "5s ",
            "--5s",
            "5s-3s",
            "1.2.3s",
            "1e3s",
            "x",
            "NaN",
            "3000000h",
            "9223372036854775808ns",
            "9223372036854775810ns",
            "-9223372036854775809ns",
            "9223372036854776us",
            "9223372036854ms775us808ns",
            "9223372036854775.808us",
            "99999999999999999999999999s",
            "\u{661}s",
            "1\u{b5}",
            "1h30",
        ];
        for text in bad {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    /// The longest form, as Go prints it, computed from integers alone.
    fn as_go_prints(nanos: i64) -> String {
        let sign = if nanos < 0 { "-" } else { "" };
        let total = nanos.unsigned_abs();
        let decimal = |whole: u64, part: u64, width: usize, unit: &str| {
            let part = format!("{part:0width$}");
            let part = part.trim_end_matches('0');
            let point = if part.is_empty() { "" } else { "." };
            format!("{whole}{point}{part}{unit}")
        };
        let text = match total {
            0 => "0s".to_owned(),
            1..1_000 => format!("{total}ns"),
            1_000..1_000_000 => decimal(total / 1_000, total % 1_000, 3, "\u{b5}s"),
            1_000_000..1_000_000_000 => decimal(total / 1_000_000, total % 1_000_000, 6, "ms"),
            _ => {
                let seconds = total / 1_000_000_000;
                let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
                let seconds = decimal(seconds % 60, total % 1_000_000_000, 9, "s");
                match (hours, minutes) {
                    (0, 0) => seconds,
                    (0, _) => format!("{minutes}m{seconds}"),
                    _ => format!("{hours}h{minutes}m{seconds}"),
                }
            }
        };
        format!("{sign}{text}")
    }

    #[test]
    fn the_oracle_prints_as_go_does() {
        assert_eq!(as_go_prints(2 * HOUR + 45 * MINUTE), "2h45m0s");
        assert_eq!(as_go_prints(-1_500_000), "-1.5ms");
        assert_eq!(as_go_prints(i64::MIN), "-2562047h47m16.854775808s");
    }

    fn config() -> ProptestConfig {
        let file = "proptest-regressions/window.txt";
        ProptestConfig {
            failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct(file))),
            ..ProptestConfig::default()
        }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn what_go_prints_reads_back(nanos in prop_oneof![any::<i64>(), -10_000_000_000i64..10_000_000_000]) {
            prop_assert_eq!(parse_duration(&as_go_prints(nanos)), Some(nanos));
        }

        #[test]
        fn whole_parts_add_up_in_any_order(parts in proptest::collection::vec((0u64..100_000, 0usize..6), 1..6)) {
            let units: [(&str, u64); 6] = [
                ("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000),
                ("m", 60_000_000_000), ("h", 3_600_000_000_000),
            ];
            let text = parts.iter().map(|(count, unit)| format!("{count}{}", units[*unit].0)).collect::<Vec<_>>().concat();
            let sum: u128 = parts.iter().map(|(count, unit)| u128::from(*count) * u128::from(units[*unit].1)).sum();
            prop_assert_eq!(parse_duration(&text), i64::try_from(sum).ok());
        }

        #[test]
        fn reading_garbage_does_not_panic(text in "[-+.0-9a-zA-Z\u{b5} ]*") {
            let _ = parse_duration(&text);
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    const NOW: &str = "2026-03-26T10:00:00.123456Z";

    fn asked(context: &Value, bounds: Bounds, last_start: Option<&str>) -> Result<Window> {
        let event =
            json!({ "payload": { "event_type": "EXTRACTION_METADATA_START", "event_context": context } });
        resolve(&Event::from_json(&event.to_string()).unwrap(), at(NOW), bounds, last_start.map(at))
    }

    fn known() -> Bounds {
        Bounds { oldest: Some(at("2026-01-01T00:00:00Z")), newest: Some(at("2026-02-01T00:00:00Z")) }
    }

    #[test]
    fn each_rule_finds_its_moment() {
        let none = Bounds::default();
        let rules = [
            (
                json!({"type": "absolute_time", "value": "2026-01-02T03:04:05+01:00"}),
                none,
                None,
                "2026-01-02T02:04:05Z",
            ),
            (json!({"type": "unbounded"}), known(), None, "1970-01-01T00:00:00Z"),
            (json!({"type": "unbounded", "value": null}), none, None, "1970-01-01T00:00:00Z"),
            (json!({"type": "workers_oldest"}), known(), None, "2026-01-01T00:00:00Z"),
            (json!({"type": "workers_oldest"}), none, Some("2026-01-05T00:00:00Z"), "1970-01-01T00:00:00Z"),
            (
                json!({"type": "workers_newest"}),
                known(),
                Some("2026-01-05T00:00:00Z"),
                "2026-02-01T00:00:00Z",
            ),
            (json!({"type": "workers_newest"}), none, Some("2026-01-05T00:00:00Z"), "2026-01-05T00:00:00Z"),
            (
                json!({"type": "workers_oldest_minus_window", "value": "2h45m"}),
                known(),
                None,
                "2025-12-31T21:15:00Z",
            ),
            (
                json!({"type": "workers_oldest_minus_window", "value": "-1h"}),
                known(),
                None,
                "2026-01-01T01:00:00Z",
            ),
            (
                json!({"type": "workers_oldest_minus_window", "value": "1h"}),
                none,
                None,
                "1970-01-01T00:00:00Z",
            ),
            (
                json!({"type": "workers_newest_plus_window", "value": "1.5h"}),
                known(),
                None,
                "2026-02-01T01:30:00Z",
            ),
            (
                json!({"type": "workers_newest_plus_window", "value": "1500us"}),
                none,
                Some("2026-01-05T00:00:00Z"),
                "2026-01-05T00:00:00.0015Z",
            ),
            // A clock's nanoseconds are cut to the stored precision.
            (
                json!({"type": "workers_newest_plus_window", "value": "1999ns"}),
                known(),
                None,
                "2026-02-01T00:00:00.000001Z",
            ),
        ];
        for (rule, bounds, last_start, from) in rules {
            let window = asked(&json!({ "extraction_start_time": rule }), bounds, last_start).unwrap();
            assert_eq!(window, Window { from: Some(at(from)), to: at(NOW) }, "{rule}");
            // The same rule at the other end, where it makes a window.
            let context = json!({ "mode": "INITIAL", "extraction_end_time": rule });
            assert_eq!(
                asked(&context, bounds, last_start).unwrap(),
                Window { from: None, to: at(from) },
                "{rule}"
            );
        }
        let both = json!({
            "mode": "INCREMENTAL", "extract_from": "2020-01-01T00:00:00Z", "reset_extract_from": true,
            "extraction_start_time": {"type": "workers_newest"}, "extraction_end_time": {"type": "current_time"}
        });
        let window = Window { from: Some(at("2026-02-01T00:00:00Z")), to: at(NOW) };
        assert_eq!(asked(&both, known(), None).unwrap(), window, "the rules come before extract_from");
    }

    #[test]
    fn without_rules_the_mode_decides() {
        let from = "2026-01-10T00:00:00Z";
        let last = "2026-02-10T00:00:00Z";
        let cases = [
            (json!({"mode": "INITIAL"}), Some(last), None),
            (json!({"mode": "INITIAL", "extract_from": from}), Some(last), Some(from)),
            (json!({"mode": "INCREMENTAL"}), Some(last), Some(last)),
            (json!({"mode": "INCREMENTAL", "extract_from": from}), Some(last), Some(last)),
            (json!({"mode": "INCREMENTAL", "reset_extract_from": false}), Some(last), Some(last)),
            (json!({"mode": "INCREMENTAL", "reset_extract_from": true}), Some(last), None),
            (
                json!({"mode": "INCREMENTAL", "reset_extract_from": true, "extract_from": from}),
                Some(last),
                Some(from),
            ),
            (json!({"mode": "INCREMENTAL"}), None, None),
            (json!({"mode": "INCREMENTAL", "extract_from": from}), None, Some(from)),
            (json!({}), None, None),
            (json!({}), Some(last), Some(last)),
            // If an end has a rule, the start follows from the mode.
            (
                json!({"mode": "INCREMENTAL", "extraction_end_time": {"type": "current_time"}}),
                Some(last),
                Some(last),
            ),
        ];
        for (context, last_start, expected) in cases {
            let window = asked(&context, known(), last_start).unwrap();
            assert_eq!(window, Window { from: expected.map(at), to: at(NOW) }, "{context} {last_start:?}");
        }
    }

    #[test]
    fn a_clock_set_back_does_not_stop_an_incremental_run() {
        let ahead = "2026-03-26T10:00:01Z";
        let window = asked(&json!({"mode": "INCREMENTAL"}), known(), Some(ahead)).unwrap();
        assert_eq!(window, Window { from: Some(at(ahead)), to: at("2026-03-26T10:00:01.000001Z") });
    }

    #[test]
    fn what_cannot_be_resolved_is_an_error_that_names_the_field() {
        let start = "extraction_start_time";
        let cases = [
            (
                json!({start: {"type": "yesterday"}}),
                "extraction_start_time.type must be absolute_time, current_time",
            ),
            (
                json!({start: {"type": "absolute_time"}}),
                "extraction_start_time.value is missing: absolute_time needs",
            ),
            (
                json!({start: {"type": "absolute_time", "value": "2026-01-01"}}),
                "extraction_start_time.value must be an RFC 3339 time",
            ),
            (
                json!({start: {"type": "workers_oldest_minus_window"}}),
                "extraction_start_time.value is missing",
            ),
            (
                json!({start: {"type": "workers_oldest_minus_window", "value": "7d"}}),
                "1.5h or 2h45m, not \"7d\"",
            ),
            (
                json!({start: {"type": "workers_oldest_minus_window", "value": "9999999h"}}),
                "not \"9999999h\"",
            ),
            (json!({"extraction_end_time": {"type": "nonsense"}}), "extraction_end_time.type must be"),
            (
                json!({start: {"type": "current_time"}}),
                "extraction_start_time must make a window that ends after",
            ),
            (
                json!({start: {"type": "absolute_time", "value": "2027-01-01T00:00:00Z"}}),
                "extraction_start_time must make",
            ),
            (
                json!({"mode": "INCREMENTAL", "extraction_end_time": {"type": "workers_oldest"}}),
                "extraction_end_time must make a window",
            ),
            (
                json!({"mode": "INITIAL", "extract_from": "2027-01-01T00:00:00Z"}),
                "extract_from must make a window",
            ),
            (json!({"mode": "INITIAL", "extract_from": "soon"}), "extract_from must be an RFC 3339 time"),
        ];
        for (context, expected) in cases {
            let error = asked(&context, known(), Some("2026-02-10T00:00:00Z")).unwrap_err().to_string();
            assert!(error.contains(expected), "{context}: {error}");
        }
        for kind in ["workers_newest", "workers_newest_plus_window"] {
            let context = json!({ start: {"type": kind, "value": "1h"} });
            let error = asked(&context, Bounds::default(), None).unwrap_err().to_string();
            assert!(error.contains("no run has succeeded yet"), "{error}");
        }
        // At the limits of the time type.
        let edge = Bounds { oldest: Some(DateTime::<Utc>::MIN_UTC), newest: Some(DateTime::<Utc>::MAX_UTC) };
        for kind in ["workers_oldest_minus_window", "workers_newest_plus_window"] {
            let context = json!({ start: {"type": kind, "value": "1h"} });
            assert!(asked(&context, edge, None).unwrap_err().to_string().contains("is out of range"));
        }
    }
}
