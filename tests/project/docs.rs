//! The README and the pages of `docs/`: their links exist, what they say about files and limits is true, and the
//! tests that they show exist. Their blocks of code are compiled by `.ci/blocks`, their commands run by `.ci/run`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use highwater::limits;

/// Lines of the README at most: it is to be read to its end.
const README_LINES_MAX: usize = 120;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The README and the pages of `docs/`, relative to the root, with their text.
fn pages() -> BTreeMap<PathBuf, String> {
    let docs = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| Path::new("docs").join(entry.unwrap().file_name()));
    let pages = docs.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.chain(["README.md".into(), "CHANGELOG.md".into()]).map(|page| (page.clone(), read(&page))).collect()
}

/// The files that a page builds, block by block: `<!-- file: PATH -->` stands above each. Between blocks is an empty
/// line.
fn files(text: &str) -> BTreeMap<&str, String> {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for part in text.split("<!-- file: ").skip(1) {
        let (path, rest) = part.split_once(" -->\n\n```rust\n").expect("a block below the name of its file");
        let block = rest.split("```\n").next().unwrap();
        let file = files.entry(path).or_default();
        *file += if file.is_empty() { "" } else { "\n" };
        *file += block;
    }
    files
}

/// The lines that are prose: neither code nor its fences.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// The anchors of a page, as GitHub makes them of its headings: letters and digits in lower case, `-` for a space.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// What is wrong with the links of a page, and with the paths that it names in backticks.
fn findings(page: &Path, text: &str, pages: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let mut findings = Vec::new();
    let prose: String = prose(text).collect::<Vec<_>>().join("\n");
    let here = page.parent().unwrap();
    for link in prose.split("](").skip(1) {
        let link = link.split(')').next().unwrap();
        if link.starts_with("https://") {
            continue;
        }
        let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
        let mut target = if path.is_empty() { page.to_owned() } else { here.to_owned() };
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match part {
                ".." => assert!(target.pop(), "{link} leads out of the tree"),
                part => target.push(part),
            }
        }
        if !root().join(&target).exists() {
            findings.push(format!("{}: {link} leads nowhere", page.display()));
        }
        if let Some(anchor) = anchor
            && !pages.get(&target).is_some_and(|text| anchors(text).contains(anchor))
        {
            findings.push(format!("{}: {link}: no heading is called so", page.display()));
        }
    }
    let tops = ["src/", "tests/", "docs/", "examples/", "benches/", "highwater-airdrop/"];
    for named in prose.split('`').skip(1).step_by(2) {
        if tops.iter().any(|top| named.starts_with(top)) && !root().join(named).exists() {
            findings.push(format!("{}: there is no {named}", page.display()));
        }
    }
    findings
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    assert!(pages.len() > 5, "{:?}", pages.keys());
    let mut found: Vec<String> = Vec::new();
    for (page, text) in pages.iter().filter(|(page, _)| page.file_name().unwrap() != "CHANGELOG.md") {
        found.extend(findings(page, text, &pages));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let pages = pages();
    let page = Path::new("docs/format.md");
    for (text, finding) in [
        ("[a](../src/manager.rs)", "leads nowhere"),
        ("[a](design.md#why-not)", "no heading"),
        ("[a](#why-two-phase-commits)", "no heading"),
        ("[a](../src/lib.rs#limits)", "no heading"),
        ("and `src/manager.rs`", "there is no"),
    ] {
        let found = findings(page, text, &pages);
        assert!(found.iter().any(|found| found.contains(finding)), "{text}: {found:?}");
    }
    for text in [
        "[a](design.md#why-two-phase-commits)",
        "[a](#limits)",
        "[a](../README.md)",
        "```text\n[a](b.md)\n```",
    ] {
        assert_eq!(findings(page, text, &pages), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn the_readme_leads_to_every_page_and_can_be_read_to_its_end() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= README_LINES_MAX, "{} lines", readme.lines().count());
    for page in pages().keys().filter(|page| page.starts_with("docs")) {
        assert!(readme.contains(&format!("({})", page.display())), "{} is not in the README", page.display());
    }
}

#[test]
fn the_table_of_limits_has_every_limit_at_its_value() {
    let constants: BTreeMap<&str, u64> = [
        ("BATCH_ITEMS", u64::from(limits::BATCH_ITEMS)),
        ("EXTERNAL_SYNC_UNIT_BATCH_ITEMS", limits::EXTERNAL_SYNC_UNIT_BATCH_ITEMS.into()),
        ("BATCH_BYTES_MAX", limits::BATCH_BYTES_MAX),
        ("OPEN_BATCHES_MAX", limits::OPEN_BATCHES_MAX),
        ("CURSOR_BYTES_MAX", limits::CURSOR_BYTES_MAX as u64),
        ("VALUE_BYTES_MAX", limits::VALUE_BYTES_MAX as u64),
        ("CHILD_LISTINGS_MAX", limits::CHILD_LISTINGS_MAX),
        ("CHILD_LISTINGS_BYTES_MAX", limits::CHILD_LISTINGS_BYTES_MAX),
        ("CHILD_DATA_BYTES_MAX", limits::CHILD_DATA_BYTES_MAX as u64),
        ("ID_BYTES_MAX", limits::ID_BYTES_MAX as u64),
        ("MESSAGE_BYTES_SOFT", limits::MESSAGE_BYTES_SOFT as u64),
        ("MESSAGE_BYTES_MAX", limits::MESSAGE_BYTES_MAX as u64),
        ("CHECKPOINT_BYTES_SOFT", limits::CHECKPOINT_BYTES_SOFT as u64),
        ("CHECKPOINT_BYTES_MAX", limits::CHECKPOINT_BYTES_MAX as u64),
        ("CHECKPOINT_STATE_BYTES_MAX", limits::CHECKPOINT_STATE_BYTES_MAX as u64),
        ("FINDINGS_KEPT", limits::FINDINGS_KEPT),
        ("FINDING_BYTES_MAX", limits::FINDING_BYTES_MAX as u64),
        ("FINDING_KINDS_MAX", limits::FINDING_KINDS_MAX as u64),
        ("REJECTED_IDS_MAX", limits::REJECTED_IDS_MAX),
        ("REJECTED_PERCENT_MAX", limits::REJECTED_PERCENT_MAX.into()),
        ("REJECTED_FEW", limits::REJECTED_FEW),
        ("REJECTED_KEPT_MAX", limits::REJECTED_KEPT_MAX as u64),
        ("REJECTED_JSON_BYTES_MAX", limits::REJECTED_JSON_BYTES_MAX as u64),
        ("EDGE_BYTES_MAX", limits::EDGE_BYTES_MAX),
        ("EDGE_CHECKPOINT_BYTES_MAX", limits::EDGE_CHECKPOINT_BYTES_MAX as u64),
        ("ONCE_BYTES_MAX", limits::ONCE_BYTES_MAX),
        ("ONCE_CHECKPOINT_BYTES_MAX", limits::ONCE_CHECKPOINT_BYTES_MAX as u64),
        ("REFETCH_IDS", limits::REFETCH_IDS as u64),
        ("LEDGER_RUNS_MAX", limits::LEDGER_RUNS_MAX),
        ("CLOCK_AHEAD_MAX", limits::CLOCK_AHEAD_MAX.as_secs()),
    ]
    .into();
    let page = read("docs/format.md");
    let (_, table) = page.split_once("| limit (`highwater::limits`)").expect("the page has the limits");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let said: BTreeMap<&str, u64> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let digits: String = cells[2].chars().filter(char::is_ascii_digit).collect();
            (cells[1].trim_matches('`'), digits.parse().expect("a number"))
        })
        .collect();
    assert_eq!(said, constants);
    // And these are all there are.
    let exported = read("src/lib.rs");
    let exported = exported.split_once("pub mod limits {").expect("the module").1;
    let exported = exported.split_once("};").expect("its end").0;
    for name in exported.split(|c: char| !(c.is_ascii_uppercase() || c == '_')).filter(|name| name.len() > 2)
    {
        assert!(constants.contains_key(name), "{name} is not in docs/format.md");
    }
}

#[test]
fn what_is_shown_of_a_test_stands_in_it() {
    let tests = [read("examples/git/tests/explore.rs")];
    let mut shown = 0;
    for (page, text) in pages() {
        for block in text.split("```rust,ignore\n").skip(1) {
            let block: Vec<&str> = block.split("```").next().unwrap().lines().map(str::trim).collect();
            let stands = tests.iter().any(|test| {
                let lines: Vec<&str> = test.lines().map(str::trim).collect();
                lines.windows(block.len()).any(|lines| lines == block)
            });
            assert!(stands, "{}: {block:?}", page.display());
            shown += 1;
        }
    }
    assert!(shown > 0, "nothing is shown");
}

/// Lines of the guide's connector at most, without the types of its API.
const CONNECTOR_LINES_MAX: usize = 150;

#[test]
fn the_guide_builds_the_tracker_as_it_stands_in_examples() {
    let guide = read("docs/guide.md");
    let built = files(&guide);
    let paths: Vec<&str> = built.keys().copied().collect();
    assert_eq!(paths, ["src/api.rs", "src/lib.rs", "src/main.rs", "tests/crash.rs"]);
    for (path, text) in &built {
        let stands = read(Path::new("examples/tracker").join(path));
        for (number, (here, there)) in text.lines().zip(stands.lines()).enumerate() {
            assert_eq!(here, there, "docs/guide.md and examples/tracker/{path}, line {}", number + 1);
        }
        assert_eq!(text.lines().count(), stands.lines().count(), "{path}");
    }
    let lines = built["src/lib.rs"].lines().count();
    assert!(lines <= CONNECTOR_LINES_MAX, "{lines} lines");
}
