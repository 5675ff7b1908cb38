//! The page that `report` writes: it has what the store has, needs no other file, and no name in it has a meaning to
//! a browser.
//!
//! With `HIGHWATER_TEST_HTML_DIR`, pages are written to that folder, to be opened in a browser.

use std::path::Path;
use std::time::Duration;

use highwater::airdrop::OutcomeKind;
use highwater::{Page, Record, Store, SystemClock};
use highwater_airdrop::Local;
use serde_json::json;

use crate::place::{Place, clock, store_with_attachments, upload_all};
use crate::screens::{invocation, run_that, settings, worker};

/// A page of the present time, which is also to be opened in a browser.
fn page(place: &Place, name: &str) -> String {
    let args = ["report", "state.redb", "--html", "page.html", "--last", "3"];
    place.dump(&args).env_remove("HIGHWATER_DUMP_NOW").assert().code(0);
    let html = std::fs::read_to_string(place.dir.path().join("page.html")).unwrap();
    if let Some(dir) = std::env::var_os("HIGHWATER_TEST_HTML_DIR") {
        std::fs::write(Path::new(&dir).join(name), &html).unwrap();
    }
    for outside in ["http://", "https://", "src=", "url(", "@import", "<script", "<link", "<iframe"] {
        assert!(!html.contains(outside), "{outside}: it needs no other file, and runs nothing");
    }
    let is_unsafe = |c: char| (c.is_control() && c != '\n') || ('\u{200b}'..'\u{2070}').contains(&c);
    assert!(!html.contains(is_unsafe));
    for element in ["section", "table", "figure", "svg", "ul", "dl", "div"] {
        let opened =
            html.matches(&format!("<{element}>")).count() + html.matches(&format!("<{element} ")).count();
        assert_eq!(opened, html.matches(&format!("</{element}>")).count(), "{element}");
    }
    html
}

/// The cells of the rows of the table with a caption, each row as one text.
fn rows(html: &str, caption: &str) -> Vec<String> {
    let (_, table) =
        html.split_once(&format!("<caption>{caption}")).unwrap_or_else(|| panic!("{caption}: {html}"));
    let (table, _) = table.split_once("</table>").unwrap();
    let (_, body) = table.split_once("<tbody>").unwrap();
    let text = |row: &str| {
        let cells = row.split('<').filter_map(|piece| piece.split_once('>')).map(|(_, text)| text.trim());
        cells.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("|")
    };
    body.split("<tr>").skip(1).map(text).collect()
}

#[test]
fn a_report_tells_of_a_death_an_error_a_delay_and_findings() {
    let place = Place::new();
    let dir = place.dir.path();
    assert!(!worker(dir, "die").success());
    let html = page(&place, "dead.html");
    assert!(
        html.contains("the newest event is not answered: the extractor was killed, or failed."),
        "{html}"
    );
    let types = rows(&html, "The same, by item type");
    let issues = types.iter().find(|row| row.starts_with("issues|")).unwrap();
    let (figures, bytes) = issues.rsplit_once('|').unwrap();
    // It died while its batch was uploaded: the id is stored, or it is not.
    let lost = match figures {
        "issues|30|10|20|0|0|0|0|0" => "|1|20",
        "issues|30|10|0|20|0|0|0|0" => "|0|0",
        other => panic!("{other}"),
    };
    assert!(bytes.parse::<u64>().unwrap() > 0, "{issues}");

    assert_eq!(invocation(dir, "go on"), Some(OutcomeKind::Done));
    let html = page(&place, "went-on.html");
    let deaths = rows(&html, "Lives that ended without an answer");
    // Life 2 of the run, which may have uploaded one batch of 20 in vain.
    assert!(deaths.len() == 1 && deaths[0].contains("|2|") && deaths[0].ends_with(lost), "{deaths:?}");
    let phases = rows(&html, "The same, by phase");
    assert!(phases.iter().any(|row| row.starts_with("metadata|1|")), "{phases:?}");
    assert!(phases.iter().any(|row| row.starts_with("data|1|")), "{phases:?}");
    assert!(html.contains("at work: ") || html.contains("lost to deaths, at most: "), "{html}");

    Local::open(dir).unwrap().begin_sync(&settings(), &SystemClock::new()).unwrap();
    assert_eq!(run_that(dir, "fail"), Some(OutcomeKind::Error));
    let html = page(&place, "failed.html");
    let errors = rows(&html, "ERROR messages that are kept");
    assert!(errors.len() == 1 && errors[0].contains("no such filter \\u{1b}[2J"), "{errors:?}");
    assert!(html.contains("<ul class=\"alerts\"><li>ERROR "), "{html}");
    assert_eq!(rows(&html, "Runs that are over: the newest 1 of 1").len(), 1);

    Local::open(dir).unwrap().begin_sync(&settings(), &SystemClock::new()).unwrap();
    assert_eq!(run_that(dir, "odd"), Some(OutcomeKind::Delay));
    let html = page(&place, "delayed.html");
    assert!(html.contains("<li>delay until "), "{html}");
    let findings = rows(&html, "What checks found");
    assert!(
        findings.len() == 1 && findings[0].starts_with("issues|") && findings[0].contains("|data.page|10|"),
        "{findings:?}"
    );
}

/// Runs over three weeks: run `n` announces 100 * `n` issues and one user, the 7th is abandoned, the 21st is open.
fn store_of_weeks(path: &Path, unit: &str) {
    let clock = clock();
    let store = Store::options().clock(clock.clone()).batch_items(5_000).open(path).unwrap();
    let unit = store.sync_unit(unit).unwrap();
    for number in 1..=21_u32 {
        let run = unit.begin().unwrap();
        let mut page = Page::<u32>::last();
        for record in 0..100 * number {
            page.push("issues", Record::new(format!("ISSUE-{record}"), &json!({})).unwrap());
        }
        page.push("users", Record::new("USER", &json!({})).unwrap());
        let mut page = Some(page);
        clock.advance(Duration::from_secs(u64::from(number) * 60));
        if number == 7 {
            drop(
                run.batches("issues", |_: Option<u32>| Ok::<_, highwater::Error>(page.take().unwrap()))
                    .next(),
            );
            drop(run);
            assert!(unit.abandon().unwrap());
        } else {
            upload_all(&run, "issues", |_| Ok(page.take().unwrap()));
            if number < 21 {
                run.finish().unwrap();
            }
        }
        clock.advance(Duration::from_secs(24 * 3_600));
    }
}

#[test]
fn a_report_draws_every_run_and_lists_the_newest() {
    let place = Place::new();
    store_of_weeks(&place.store(), "acme/tickets");
    let html = page(&place, "weeks.html");
    // Each plot has a bar for each of the runs that are over, and the one that was abandoned, and the open one, are told from the others.
    let plots: Vec<&str> =
        html.split("<svg viewBox").skip(1).map(|plot| plot.split_once("</svg>").unwrap().0).collect();
    assert_eq!(plots.len(), 3);
    for plot in plots {
        assert_eq!(
            ["", "class=\"bad\"", "class=\"c4\""]
                .map(|class| plot.matches(&format!("<rect {class}")).count()),
            [21, 1, 1],
            "{plot}"
        );
    }
    assert!(html.contains("2001 records") && html.contains("<span>3000</span><span>1500</span>"), "{html}");
    let listed = rows(&html, "Runs that are over: the newest 3 of 20");
    let read: Vec<_> = listed.iter().map(|row| row.split('|').nth(4).unwrap().to_owned()).collect();
    assert_eq!(read, ["2001", "1901", "1801"]);
    // 100 * (1 + ... + 20) issues were read, and those of the 7th run were not announced.
    let types = rows(&html, "Records by item type, of 20 runs that are over");
    let counts: Vec<_> = types.iter().map(|row| row.rsplit_once('|').unwrap()).collect();
    assert_eq!([counts[0].0, counts[1].0], ["issues|20|21,000|20,300|19", "users|20|20|19|19"]);
    let bytes: Vec<u64> = counts.iter().map(|(_, bytes)| bytes.replace(',', "").parse().unwrap()).collect();
    assert!(bytes[0] > bytes[1] && bytes[1] > 0, "{types:?}");
    let open = rows(&html, "The same, by item type");
    assert!(open[0].starts_with("issues|2100|0|0|0|0|2100|1|") && open[0].ends_with("|0"), "{open:?}");
    assert!(html.contains("announced: 2101 (100.0 %)"), "{html}");
}

#[test]
fn failed_attachments_are_counted_by_reason_and_their_addresses_are_not_told() {
    let place = Place::new();
    store_with_attachments(&place.store());
    let html = page(&place, "attachments.html");
    let reasons = rows(&html, "Why attachments were given up");
    assert_eq!(reasons.len(), 26, "{reasons:?}");
    assert!(
        reasons.contains(&"410 26|1".to_owned()) && reasons.contains(&"busy again|1".to_owned()),
        "{reasons:?}"
    );
    assert_eq!(rows(&html, "Attachments that were given up: the newest 3 of 27").len(), 3);
    assert!(!html.contains("secret"));
}

#[test]
fn whatever_names_are_a_report_is_one_page_of_text() {
    let place = Place::new();
    let hostile = format!("</td><script>alert(1)</script>\u{202e}&#0;\"' onload=x {}", "w".repeat(400));
    let endless = format!("<img src=x>{}\u{1b}", "x".repeat(10_000));
    store_of_weeks(&place.store(), &hostile);
    let store = Store::options().clock(clock()).batch_items(1).open(place.store()).unwrap();
    let run = store.sync_unit("another").unwrap().begin().unwrap();
    let mut page_of = Some({
        let mut page = Page::<String>::more(hostile.clone());
        page.push("<b>type", Record::new(hostile.clone(), &json!({})).unwrap());
        let attachment =
            highwater::record::Attachment::new(&hostile, "https://files.example/", &endless, &hostile);
        page.push("attachments", attachment.to_record().unwrap());
        page.reject("<b>type", "REJECTED", &hostile);
        page
    });
    // The first batch is full before a second page is asked for.
    let fetch = |_: Option<String>| Ok::<_, highwater::Error>(page_of.take().unwrap());
    for batch in run.batches("<i>stream", fetch).take(1) {
        batch.unwrap().acknowledge("artifact").unwrap();
    }
    drop(run);
    drop(store);
    let html = page(&place, "hostile.html");
    assert!(
        html.contains(
            "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}&amp;#0;&quot;&#39; onload=x"
        ),
        "{html}"
    );
    assert!(html.contains("&lt;b&gt;type") && html.contains("&lt;i&gt;stream"), "{html}");
    assert!(!html.contains(&"x".repeat(3_000)), "what has no end is cut");
}

#[test]
fn a_report_is_written_whole_and_never_over_a_store() {
    let place = Place::new();
    let (code, _, stderr) = place.says(&["report", "state.redb", "--html", "page.html"]);
    assert!(code == Some(1) && stderr.contains("state.redb"), "{stderr}");
    assert!(!place.dir.path().join("page.html").exists());

    store_of_weeks(&place.store(), "acme/tickets");
    let before = std::fs::read(place.store()).unwrap();
    let (code, _, stderr) = place.says(&["report", "state.redb", "--html", "state.redb"]);
    assert!(code == Some(2) && stderr.contains("is a store and will not be overwritten"), "{stderr}");
    assert_eq!(std::fs::read(place.store()).unwrap(), before);

    let (code, _, stderr) = place.says(&["report", "state.redb", "--html", "nowhere/page.html"]);
    assert!(code == Some(1) && stderr.contains("cannot write nowhere/page.html: "), "{stderr}");
    let (code, _, stderr) = place.says(&["report", "state.redb", "--html", "page.html", "--unit", "nobody"]);
    assert!(code == Some(1) && stderr.contains("has no sync unit \"nobody\""), "{stderr}");

    // One that is there is replaced; stdout is a file, too.
    std::fs::write(place.dir.path().join("page.html"), "what was there").unwrap();
    place.shows(&["report", "state.redb", "--html", "page.html"]);
    let html = std::fs::read_to_string(place.dir.path().join("page.html")).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
    assert_eq!(place.shows(&["report", "state.redb", "--html", "-"]), html);
    assert_eq!(std::fs::read(place.store()).unwrap(), before);
}
