//! A page for a browser: one file that needs no other, on a screen of any width, light or dark, and on paper.
//!
//! The programs of this project write their reports with it. Whatever is given as text means nothing to a browser,
//! and shows all that is in it. Tables have captions and heads. Where there is no room for columns, each row is a
//! block, and each figure has its head beside it. On paper nothing is hidden.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::{clock, cut};

/// Characters of a heading or a cell that are shown.
const NAME_CHARS: usize = 200;
/// A cell with at most this many characters is not folded: a time, an age, a word.
const WORD_CHARS: usize = 20;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1d2126;--paper:#fff;--dim:#5d6673;--line:#d5d9df;--soft:#f3f5f7;--bad:#b00020;--on-bad:#fff;\
--c1:#2b6cb0;--c2:#c05a00;--c3:#2f8558;--c4:#8b929c}\
@media screen and (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--paper:#15181c;--dim:#9aa4b1;--line:#363c45;--soft:#20252b;\
--bad:#ff7a85;--on-bad:#15181c;--c1:#6aa9ea;--c2:#f0994d;--c3:#62c08f;--c4:#79818c}}\
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:72rem;margin:0 auto;padding:1.25rem}\
h1{font-size:1.6rem;line-height:1.25;margin:.25rem 0 .75rem}h2{font-size:1.25rem;margin:2.25rem 0 .5rem;padding-top:.75rem;border-top:2px solid var(--line)}\
h3{font-size:1.05rem;margin:1.6rem 0 .3rem}h1,h2,h3,p,li{overflow-wrap:anywhere}p{margin:.4rem 0}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;margin:.6rem 0}dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere;min-width:0}\
.wide{overflow-x:auto;margin:.6rem 0 1rem}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
caption{text-align:left;padding:.25rem 0;color:var(--dim)}th,td{padding:.25rem .75rem .25rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}\
thead th{vertical-align:bottom;font-weight:600;color:var(--dim);font-size:.85rem}tbody th{font-weight:500}.n{text-align:right}.w{white-space:nowrap}\
td:not(.n){overflow-wrap:anywhere}td:not(.n,.w){min-width:9rem}tbody th{overflow-wrap:anywhere;min-width:7rem}.n+td:not(.n),.n+th:not(.n){padding-left:1rem}\
code,pre{font-family:ui-monospace,monospace;font-size:.85em;overflow-wrap:anywhere}pre{background:var(--soft);padding:.6rem;margin:.5rem 0;white-space:pre-wrap;border-radius:.3rem}\
.alerts{list-style:none;padding:0;margin:.6rem 0}.alerts li{border-left:.3rem solid var(--bad);background:var(--soft);padding:.35rem .75rem;margin:.3rem 0}\
.verdict{font-weight:700}.dim{color:var(--dim)}\
@media(max-width:40rem){body{padding:.75rem}dl{display:block}dd{margin:0 0 .4rem}thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}\
table,tbody,caption{display:block}tr{display:block;padding:.35rem 0;border-bottom:1px solid var(--line)}td,tbody th,.n+td:not(.n){display:inline-block;border:0;padding:0 1rem 0 0;text-align:left;min-width:0;max-width:100%}\
tbody th{display:block;font-weight:600}td[data-head]::before{content:attr(data-head) \" \";color:var(--dim)}td.none{display:none!important}}\
@media print{:root{color-scheme:light;font-size:13px}body{font-size:9.5pt;max-width:none;padding:0}h1,h2,h3,figure,tr,.alerts li,dt,dd{break-inside:avoid}h2,h3,caption,thead{break-after:avoid}tbody tr:first-child{break-before:avoid}\
.wide{overflow:visible}.alerts li{border:1px solid;border-left-width:.3rem;background:none}svg{print-color-adjust:exact}}";

/// A page that is being written.
#[derive(Debug)]
pub struct Document {
    html: String,
}

impl Document {
    /// A page with this title; `style` is added to the style of all pages.
    pub fn new(title: &str, style: &str) -> Self {
        let title = escaped(&cut::to_chars(title, NAME_CHARS));
        let html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{title}</title><style>{STYLE}{style}</style></head><body><main>\n"
        );
        Self { html }
    }

    /// A heading of a level from 1 to 6.
    pub fn heading(&mut self, level: u8, text: &str) {
        self.html(&format!("<h{level}>{}</h{level}>\n", escaped(&cut::to_chars(text, NAME_CHARS))));
    }

    /// A paragraph; `class` may be empty.
    pub fn paragraph(&mut self, class: &str, text: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.html(&format!("<p{class}>{}</p>\n", escaped(text)));
    }

    /// Names, and what they are.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        self.html("<dl>");
        for (name, text) in facts {
            self.html(&format!("<dt>{}</dt><dd>{}</dd>\n", escaped(name), escaped(text)));
        }
        self.html("</dl>\n");
    }

    /// A list, with a class.
    pub fn list(&mut self, class: &str, items: &[String]) {
        if items.is_empty() {
            return;
        }
        self.html(&format!("<ul class=\"{class}\">"));
        for item in items {
            self.html(&format!("<li>{}</li>", escaped(item)));
        }
        self.html("</ul>\n");
    }

    /// A table; nothing if it has no rows.
    pub fn table(&mut self, table: &Table) {
        if table.is_empty() {
            return;
        }
        let caption = escaped(&table.caption);
        self.html(&format!(
            "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table>\
             <caption>{caption}</caption><thead><tr>"
        ));
        let class = |is_number: bool| if is_number { " class=\"n\"" } else { "" };
        for (head, is_number) in &table.columns {
            self.html(&format!("<th scope=\"col\"{}>{}</th>", class(*is_number), escaped(head)));
        }
        self.html("</tr></thead><tbody>\n");
        for row in &table.rows {
            self.html("<tr>");
            for (at, (cell, (head, is_number))) in row.iter().zip(&table.columns).enumerate() {
                let cell = if *is_number { grouped(cell) } else { cut::to_chars(cell, NAME_CHARS) };
                let mut classes = Vec::new();
                if *is_number {
                    classes.push("n");
                } else if cell.chars().count() <= WORD_CHARS {
                    classes.push("w");
                }
                // In a block a figure of nothing is left out.
                if at > 0 && matches!(cell.as_str(), "0" | "-" | "") {
                    classes.push("none");
                }
                let class = match classes.as_slice() {
                    [] => String::new(),
                    classes => format!(" class=\"{}\"", classes.join(" ")),
                };
                let text = escaped(&cell);
                let html = if at == 0 {
                    format!("<th scope=\"row\"{class}>{text}</th>")
                } else {
                    format!("<td data-head=\"{}\"{class}>{text}</td>", escaped(head))
                };
                self.html(&html);
            }
            self.html("</tr>\n");
        }
        self.html("</tbody></table></div>\n");
    }

    /// HTML as it is: the text in it has to be [`escaped`].
    pub fn html(&mut self, html: &str) {
        self.html.push_str(html);
    }

    /// The page, whole.
    pub fn finish(mut self) -> String {
        self.html("</main></body></html>\n");
        self.html
    }
}

/// Digits in groups of three, from five digits on: `27,788,968`. Anything else stays as it is.
pub fn grouped(number: &str) -> String {
    if number.len() < 5 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.to_owned();
    }
    let mut text = String::with_capacity(number.len() + number.len() / 3);
    for (at, digit) in number.chars().enumerate() {
        if at > 0 && (number.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds in words: the two largest units.
pub fn seconds_in_words(seconds: u64) -> String {
    clock::in_words(seconds)
}

/// A table, whose first column says what each row is.
#[derive(Debug)]
pub struct Table {
    caption: String,
    /// Heads, and whether the cells are numbers.
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// `heads`: those of numbers start with `#`, which is not shown.
    pub fn new(caption: &str, heads: &[&str]) -> Self {
        let columns =
            heads.iter().map(|head| (head.trim_start_matches('#').to_owned(), head.starts_with('#')));
        Self { caption: caption.to_owned(), columns: columns.collect(), rows: Vec::new() }
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

/// Whether a character acts on who shows it instead of showing: controls, what changes the direction of text, and what
/// breaks lines or shows nothing.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Text that shows all that is in it.
pub fn visible(text: &str) -> Cow<'_, str> {
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

/// Text that shows all that is in it, and means nothing to a browser, in an element or in a quoted attribute.
pub fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c if is_unsafe(c) => {
                // Writing to a `String` does not fail.
                let _ = write!(html, "{}", c.escape_unicode());
            }
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_means_nothing_to_a_browser_and_shows_what_is_in_it() {
        assert_eq!(
            escaped("<script>\"a\" & 'b'\u{202e}\u{1b}</script>"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;\\u{202e}\\u{1b}&lt;/script&gt;"
        );
        assert_eq!(escaped("\u{e9} \u{5d0}"), "\u{e9} \u{5d0}");
    }

    #[test]
    fn a_page_has_its_parts_in_order_and_none_of_its_text_is_html() {
        let hostile = format!("<script>\u{202e}{}", "x".repeat(10_000));
        let mut page = Document::new(&hostile, "");
        page.heading(1, &hostile);
        page.paragraph("dim", "a < b");
        page.facts(&[("name", "<b>".to_owned())]);
        page.list("alerts", &["<i>".to_owned()]);
        let mut table = Table::new("<caption>", &["name", "#count"]);
        page.table(&table);
        table.row([hostile.clone(), "7".to_owned()]);
        table.row(["second".to_owned(), "0".to_owned()]);
        page.table(&table);
        let html = page.finish();
        assert_eq!(html.matches("<table>").count(), 1, "a table without rows is none");
        assert!(!html.contains("<script") && !html.contains('\u{202e}') && html.len() < 10_000, "{html}");
        for part in [
            "<p class=\"dim\">a &lt; b</p>",
            "<dt>name</dt><dd>&lt;b&gt;</dd>",
            "<ul class=\"alerts\"><li>&lt;i&gt;</li></ul>",
            "<caption>&lt;caption&gt;</caption>",
            "<th scope=\"col\" class=\"n\">count</th>",
            "<td data-head=\"count\" class=\"n\">7</td>",
            "<td data-head=\"count\" class=\"n none\">0</td>",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
    }
}
