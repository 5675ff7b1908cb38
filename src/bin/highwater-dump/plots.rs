//! Plots in a page. Shapes are SVG that stretches to the available width. Text is outside the SVG, so that it keeps
//! its size. Each shape has its figures as a title; whatever a plot shows, a table or legend shows too.

use std::fmt::Write as _;

use chrono::{DateTime, TimeDelta, Utc};
use highwater::html::{Document, escaped, grouped};

use crate::text::{count, duration, time};

/// The style of plots.
pub(crate) const STYLE: &str = "\
figure{margin:1rem 0}figcaption{color:var(--dim);margin-bottom:.6rem}svg{display:block;width:100%}\
.stack{height:1.4rem;border-radius:.2rem}.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;padding:0;margin:.4rem 0 0;font-size:.9rem}\
.legend i{display:inline-block;width:.75rem;height:.75rem;margin-right:.4rem;border-radius:.15rem}\
.plot{display:grid;grid-template-columns:minmax(4.2rem,max-content) 1fr;column-gap:.6rem;font-size:.8rem;color:var(--dim);font-variant-numeric:tabular-nums}\
.plot svg{height:8.5rem;border-bottom:1px solid var(--dim);background:linear-gradient(var(--line),var(--line)) 0 0/100% 1px no-repeat,linear-gradient(var(--line),var(--line)) 0 50%/100% 1px no-repeat}\
.y{display:flex;flex-direction:column;justify-content:space-between;text-align:right;line-height:1;margin:-.4em 0}.x{grid-column:2;display:flex;justify-content:space-between;gap:1rem;padding-top:.25rem}\
.c1{fill:var(--c1);background:var(--c1)}.c2{fill:var(--c2);background:var(--c2)}.c3{fill:var(--c3);background:var(--c3)}.c4{fill:var(--c4);background:var(--c4)}\
.bad{fill:var(--bad);background:var(--bad)}.cut{fill:var(--paper)}.legend i{print-color-adjust:exact;-webkit-print-color-adjust:exact}";

/// How a shape is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    First,
    Second,
    Third,
    Fourth,
    Bad,
}

impl Fill {
    fn class(self) -> &'static str {
        match self {
            Fill::First => "c1",
            Fill::Second => "c2",
            Fill::Third => "c3",
            Fill::Fourth => "c4",
            Fill::Bad => "bad",
        }
    }
}

/// A part of a whole.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) name: &'a str,
    pub(crate) size: u64,
    /// The size, as text.
    pub(crate) shown: String,
    pub(crate) fill: Fill,
}

/// One bar for a whole, divided into its parts. Nothing is drawn if the whole is zero.
#[allow(clippy::cast_precision_loss, reason = "a plot is not exact")]
pub(crate) fn whole(page: &mut Document, caption: &str, parts: &[Part<'_>]) {
    let sum: u64 = parts.iter().map(|part| part.size).sum();
    if sum == 0 {
        return;
    }
    let (mut shapes, mut legend) = (String::new(), String::new());
    let mut x = 0.0;
    for part in parts.iter().filter(|part| part.size > 0) {
        let share = part.size as f64 / sum as f64;
        let title = escaped(&format!("{}: {} ({:.1} %)", part.name, part.shown, share * 100.0));
        let class = part.fill.class();
        let width = share * 1_000.0;
        // Writing to a `String` does not fail.
        let _ = write!(
            shapes,
            "<rect class=\"{class}\" x=\"{x:.2}\" width=\"{width:.2}\" height=\"10\"><title>{title}</title></rect>"
        );
        let _ = write!(legend, "<li><i class=\"{class}\"></i>{title}</li>");
        x += width;
    }
    let caption = escaped(caption);
    page.html(&format!(
        "<figure><figcaption>{caption}</figcaption><svg class=\"stack\" viewBox=\"0 0 1000 10\" \
         preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{caption}\">{shapes}</svg>\
         <ul class=\"legend\">{legend}</ul></figure>\n"
    ));
}

/// A bar at a point in time.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) from: DateTime<Utc>,
    pub(crate) until: DateTime<Utc>,
    pub(crate) height: u64,
    pub(crate) title: String,
    pub(crate) fill: Fill,
}

/// What the height of a bar means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Count,
    Bytes,
    Seconds,
}

/// The tops of an axis of seconds; half of each is a round number too.
const SECONDS: [u64; 17] =
    [2, 4, 10, 20, 30, 60, 120, 240, 600, 1_200, 1_800, 3_600, 7_200, 14_400, 28_800, 43_200, 86_400];

impl Scale {
    /// The top of the axis of a plot in which this is the largest height. It is not less than the height and not much
    /// more; it is a round number, and so is its half.
    fn top(self, number: u64) -> u64 {
        let days = number.div_ceil(86_400);
        match self {
            Scale::Count | Scale::Bytes => round_above(number),
            Scale::Seconds if days > 1 => round_above(days).saturating_mul(86_400),
            Scale::Seconds => SECONDS.into_iter().find(|top| *top >= number).unwrap_or(86_400),
        }
    }

    /// A height, as the axis shows it.
    fn shown(self, number: u64) -> String {
        let short = |unit: &str| match number {
            ..10_000 => format!("{number}{}", if unit.is_empty() { "" } else { " B" }),
            10_000..1_000_000 => format!("{} k{unit}", thousandths(number)),
            1_000_000..1_000_000_000 => format!("{} M{unit}", thousandths(number / 1_000)),
            _ => format!("{} G{unit}", thousandths(number / 1_000_000)),
        };
        match self {
            Scale::Count => short(""),
            Scale::Bytes => short("B"),
            Scale::Seconds => duration(TimeDelta::seconds(i64::try_from(number).unwrap_or(i64::MAX / 1_000))),
        }
    }
}

/// A thousandth of a number, without zeroes at its end.
fn thousandths(number: u64) -> String {
    match number % 1_000 {
        0 => (number / 1_000).to_string(),
        rest => format!("{}.{rest:03}", number / 1_000).trim_end_matches('0').to_owned(),
    }
}

/// Bars over time, the earliest first. Nothing is drawn for fewer than two bars.
#[allow(clippy::cast_precision_loss, reason = "a plot is not exact")]
pub(crate) fn over_time(
    page: &mut Document,
    caption: &str,
    legend: &[(Fill, &str)],
    bars: &[Bar],
    scale: Scale,
) {
    let ([first, .., _], Some(until)) = (bars, bars.iter().map(|bar| bar.until).max()) else { return };
    let from = first.from;
    let span = (until - from).as_seconds_f64().max(1.0);
    let top = scale.top(axis(bars));
    // Wide enough to be visible, and narrow enough not to cover its neighbours.
    let narrowest = (600.0 / bars.len() as f64).clamp(0.6, 14.0);
    let mut shapes = String::new();
    for bar in bars {
        let width = ((bar.until - bar.from).as_seconds_f64() / span * 1_000.0).max(narrowest);
        let x =
            ((bar.from - from).as_seconds_f64() / span * 1_000.0).clamp(0.0, 1_000.0 - width.min(1_000.0));
        // A run with no records is visible too.
        let height = (bar.height as f64 / top as f64 * 100.0).clamp(0.8, 100.0);
        let _ = write!(
            shapes,
            "<rect class=\"{}\" x=\"{x:.2}\" y=\"{:.2}\" width=\"{width:.2}\" height=\"{height:.2}\"><title>{}</title></rect>",
            bar.fill.class(),
            100.0 - height,
            escaped(&bar.title)
        );
        if bar.height > top {
            let _ = write!(
                shapes,
                "<rect class=\"cut\" x=\"{x:.2}\" y=\"6\" width=\"{width:.2}\" height=\"3\"/>"
            );
        }
    }
    let mut kinds = String::new();
    for (fill, name) in legend.iter().filter(|(fill, _)| bars.iter().any(|bar| bar.fill == *fill)) {
        let _ = write!(kinds, "<li><i class=\"{}\"></i>{}</li>", fill.class(), escaped(name));
    }
    let cut = bars.iter().map(|bar| bar.height).filter(|height| *height > top);
    if let Some(highest) = cut.clone().max() {
        let bars = count(cut.count() as u64, "bar is", "bars are");
        let highest = match scale {
            Scale::Seconds => scale.shown(highest),
            _ => format!("{}, exactly {}", scale.shown(highest), grouped(&highest.to_string())),
        };
        let highest = escaped(&highest);
        let _ = write!(kinds, "<li>{bars} cut, so that the others are seen: the highest is {highest}</li>");
    }
    let caption = escaped(caption);
    page.html(&format!(
        "<figure><figcaption>{caption}</figcaption><div class=\"plot\">\
         <div class=\"y\"><span>{}</span><span>{}</span><span>0</span></div>\
         <svg viewBox=\"0 0 1000 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{caption}\">{shapes}</svg>\
         <div class=\"x\"><span>{}</span><span>{}</span></div></div><ul class=\"legend\">{kinds}</ul></figure>\n",
        escaped(&scale.shown(top)),
        escaped(&scale.shown(top / 2)),
        time(from),
        time(until)
    ));
}

/// A run is cut if it is more than this many times as high as nearly all others.
const CUT_TIMES: u64 = 10;
/// Fewer bars than this are never cut.
const CUT_BARS_MIN: usize = 20;

/// What the axis has to show: all bars, unless a twentieth of them, such as the first import, is so much higher than the
/// rest that the rest could not be seen.
fn axis(bars: &[Bar]) -> u64 {
    let mut heights: Vec<u64> = bars.iter().map(|bar| bar.height).filter(|height| *height > 0).collect();
    heights.sort_unstable();
    let highest = heights.last().copied().unwrap_or_default();
    let most = (heights.len() * 19 / 20).checked_sub(1).and_then(|at| heights.get(at)).copied();
    match most.filter(|most| heights.len() >= CUT_BARS_MIN && highest / most > CUT_TIMES) {
        Some(most) => most * 2,
        None => highest,
    }
}

/// The smallest round even number that is not below the number: 2, 4, 6, 8, 10, 12, 16, 20, 30, 40, 50, 60, 80, 100, 120
/// and so on.
fn round_above(number: u64) -> u64 {
    if let Some(round) = [2, 4, 6, 8].into_iter().find(|round| *round >= number) {
        return round;
    }
    let mut tens: u64 = 1;
    loop {
        for step in [10, 12, 16, 20, 30, 40, 50, 60, 80] {
            match tens.checked_mul(step) {
                Some(round) if round < number => {}
                Some(round) => return round,
                None => return u64::MAX,
            }
        }
        tens = tens.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_plot_is_round_and_not_below_what_it_shows() {
        for (number, round) in
            [(0, 2), (2, 2), (3, 4), (9, 10), (11, 12), (21, 30), (41, 50), (100, 100), (12_345, 16_000)]
        {
            assert_eq!(Scale::Count.top(number), round);
        }
        assert_eq!(Scale::Bytes.top(u64::MAX), u64::MAX);
        for (seconds, top, half) in [
            (0, "2s", "1s"),
            (31, "1m", "30s"),
            (376, "10m", "5m"),
            (7_300, "4h", "2h"),
            (80_000, "1d", "12h"),
            (90_000, "2d", "1d"),
            (86_400 * 33, "40d", "20d"),
        ] {
            let found = Scale::Seconds.top(seconds);
            assert_eq!(
                (Scale::Seconds.shown(found).as_str(), Scale::Seconds.shown(found / 2).as_str()),
                (top, half)
            );
        }
    }

    #[test]
    fn an_axis_is_told_in_few_characters_and_exactly() {
        for (number, count, bytes) in [
            (0, "0", "0 B"),
            (9_999, "9999", "9999 B"),
            (25_000, "25 k", "25 kB"),
            (1_250_000, "1.25 M", "1.25 MB"),
            (60_000_000, "60 M", "60 MB"),
            (12_000_000_000, "12 G", "12 GB"),
        ] {
            assert_eq!(
                (Scale::Count.shown(number).as_str(), Scale::Bytes.shown(number).as_str()),
                (count, bytes)
            );
        }
    }

    #[test]
    fn pieces_are_in_proportion_and_a_whole_of_nothing_is_no_plot() {
        let part = |name, size| Part { name, size, shown: size.to_string(), fill: Fill::First };
        let mut page = Document::new("", "");
        whole(&mut page, "nothing", &[part("a", 0)]);
        assert!(!page.finish().contains("<svg"));
        let mut page = Document::new("", "");
        whole(&mut page, "<b>", &[part("a", 1), part("none", 0), part("b", 3)]);
        let html = page.finish();
        assert!(
            html.contains("x=\"0.00\" width=\"250.00\"") && html.contains("x=\"250.00\" width=\"750.00\""),
            "{html}"
        );
        assert!(html.contains("b: 3 (75.0 %)") && !html.contains("none:") && !html.contains("<b>"), "{html}");
    }

    #[test]
    fn a_bar_that_would_hide_the_others_is_cut_and_told_of() {
        let at = |seconds| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let page_of = |highest: u64, others: i64| {
            let bar = |at_hour: i64, height| Bar {
                from: at(at_hour * 3_600),
                until: at(at_hour * 3_600 + 60),
                height,
                title: String::new(),
                fill: Fill::First,
            };
            let bars: Vec<_> =
                [bar(0, highest)].into_iter().chain((1..=others).map(|hour| bar(hour, 20))).collect();
            let mut page = Document::new("", "");
            over_time(&mut page, "runs", &[(Fill::First, "finished")], &bars, Scale::Count);
            page.finish()
        };
        let html = page_of(2_400_000, 30);
        assert!(html.contains("<span>40</span><span>20</span><span>0</span>"), "{html}");
        assert!(
            html.contains(
                "1 bar is cut, so that the others are seen: the highest is 2.4 M, exactly 2,400,000"
            ),
            "{html}"
        );
        assert_eq!(html.matches("class=\"cut\"").count(), 1, "{html}");
        assert_eq!(html.matches("height=\"100.00\"").count(), 1, "{html}");
        assert_eq!(html.matches("height=\"50.00\"").count(), 30, "{html}");
        // Not so much higher, or among few.
        for (highest, others, top) in [(200, 30, 200), (2_400_000, 10, 3_000_000)] {
            let html = page_of(highest, others);
            let axis = Scale::Count.shown(top);
            assert!(html.contains(&format!("<span>{axis}</span>")) && !html.contains("cut"), "{html}");
        }
    }

    #[test]
    fn bars_stand_at_their_times_and_stay_in_the_plot() {
        let at = |seconds| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let bar = |from, until, height| Bar {
            from: at(from),
            until: at(until),
            height,
            title: "<run>".to_owned(),
            fill: Fill::First,
        };
        let mut page = Document::new("", "");
        over_time(
            &mut page,
            "runs",
            &[(Fill::First, "good"), (Fill::Bad, "gone")],
            &[bar(0, 100, 20), bar(900, 1_000, 0)],
            Scale::Count,
        );
        let html = page.finish();
        for part in [
            "x=\"0.00\" y=\"0.00\" width=\"100.00\" height=\"100.00\"",
            "x=\"900.00\" y=\"99.20\" width=\"100.00\" height=\"0.80\"",
            "<span>20</span><span>10</span><span>0</span>",
            "<span>1970-01-01T00:00:00Z</span><span>1970-01-01T00:16:40Z</span>",
            "&lt;run&gt;",
            "good",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        assert!(!html.contains("gone"), "no bar has that fill");
    }
}
