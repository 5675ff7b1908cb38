//! Records that do not match the metadata are handled by the extractor's policy: ignored, counted, or refused.
//! Whatever happens to the process, each one that is delivered was counted once.
//!
//! The test decides by its own reading of the announced lines which records are bad, never by the counts.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::world::{Airdrop, Call, Pages, Source, World, all_of, event, records_of};
use assert_cmd::Command;
use highwater::airdrop::{
    CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, Outcome, OutcomeKind, Serve, SourceError,
};
use highwater::inspect::{self, FindingsReport, Snapshot};
use highwater::limits::{FINDING_BYTES_MAX, FINDING_KINDS_MAX};
use highwater::record::{Field, Metadata, RecordType, StageDiagram};
use highwater::testing::{Explore, Life, SimCursor, SimDisk, SimSource};
use highwater::{Page, Record, Store, VirtualClock};
use serde_json::{Value, json};

const METADATA: &str = "EXTRACTION_METADATA_START";
const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";
const ATTACHMENTS: &str = "EXTRACTION_ATTACHMENTS_START";

fn metadata() -> Value {
    let issues = RecordType::new().field("is", Field::text()).field("size", Field::int());
    Metadata::new().record_type("issues", issues).into()
}

/// A page of 4 issues; those that `is_bad` has no whole number as their size.
fn page(stream: &str, at: u32, pages: u32, is_bad: impl Fn(u32) -> bool) -> Page<u32> {
    let mut page = if at + 1 < pages { Page::more(at + 1) } else { Page::last() };
    for (item, is) in (0..).zip(records_of(stream, at, 4)) {
        let size = if is_bad(item) { json!("big") } else { json!(item) };
        page.push("issues", Record::new(is.clone(), &json!({ "is": is, "size": size })).unwrap());
    }
    page
}

/// A source of pages, the first two records of each bad.
fn half_bad(pages: u32, policy: CheckPolicy) -> Source<'static> {
    checked(policy, move |_: &Context, stream: &str, at: Option<u32>| {
        Ok(page(stream, at.unwrap_or(0), pages, |item| item < 2))
    })
}

fn checked<'a>(policy: CheckPolicy, page: impl Pages + 'a) -> Source<'a> {
    let mut source = Source::new(page);
    source.metadata = Ok(metadata());
    source.policy = policy;
    source
}

/// Bad records in what was announced.
fn announced_bad(airdrop: &Airdrop) -> u64 {
    let lines = airdrop.named().into_iter().flat_map(|id| airdrop.artifact(&id).1);
    lines.filter(|line| line["data"]["size"] == "big").count() as u64
}

/// A store in a folder, to be looked at from outside.
struct Place {
    dir: tempfile::TempDir,
    airdrop: Airdrop,
    serve: Serve,
    clock: VirtualClock,
}

impl Place {
    fn new() -> Self {
        let clock = VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap());
        let serve = Serve::new().inline(7);
        Self { dir: tempfile::tempdir().unwrap(), airdrop: Airdrop::default(), serve, clock }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("state.redb")
    }

    /// One invocation, in a process of its own.
    fn serve(&self, source: &mut Source<'_>, event_type: &str, request: u32) -> Outcome {
        let store = Store::options().batch_items(3).clock(self.clock.clone()).open(self.path()).unwrap();
        let event = event(event_type, "run", &request.to_string());
        let outcome = self.serve.serve(&store, &self.airdrop, source, &event).unwrap();
        drop(store);
        let report = inspect::check(self.path()).unwrap();
        assert_eq!(report.findings, [], "the store's own check");
        outcome
    }

    fn findings(&self) -> Vec<FindingsReport> {
        Snapshot::open(self.path()).unwrap().unit("unit", 5).unwrap().unwrap().findings
    }

    fn dump(&self, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_highwater-dump"));
        let output = command
            .env("COLUMNS", "100")
            .current_dir(self.dir.path())
            .arg("state.redb")
            .args(args)
            .assert()
            .code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    }

    /// Another machine, with an empty disk.
    fn lose_disk(&self) {
        std::fs::remove_file(self.path()).unwrap();
    }
}

#[test]
fn off_checks_nothing_and_does_not_ask_for_the_metadata_again() {
    let place = Place::new();
    let mut source = half_bad(3, CheckPolicy::Off);
    // If it were asked, this would be a DELAY.
    source.metadata = Err(Duration::from_secs(3_600));
    let outcome = place.serve(&mut source, DATA, 1);
    assert_eq!((outcome.kind, outcome.findings.errors, outcome.findings.warnings), (OutcomeKind::Done, 0, 0));
    assert_eq!(place.airdrop.announced("run"), all_of("issues", 3, 4));
    assert!(place.findings().is_empty());
    // What the other tests count is there.
    assert_eq!(announced_bad(&place.airdrop), 6);
}

#[test]
fn report_counts_what_it_finds_keeps_the_first_of_each_kind_and_delivers_all() {
    let place = Place::new();
    let mut source = checked(CheckPolicy::Report, |_: &Context, stream: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        let more = Record::new(format!("more-{at}"), &json!({ "is": "more", "colour": "red" }))?;
        Ok(page(stream, at, 7, |item| item < 2).record("issues", more))
    });
    let metadata = place.serve(&mut source, METADATA, 1);
    assert_eq!((metadata.kind, metadata.findings.errors), (OutcomeKind::Done, 0));
    let outcome = place.serve(&mut source, DATA, 2);
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!((outcome.findings.errors, outcome.findings.warnings), (14, 1), "a field is one warning");
    assert_eq!((place.airdrop.announced("run").len(), announced_bad(&place.airdrop)), (7 * 5, 14));
    let findings = place.findings();
    let of: Vec<_> = findings
        .iter()
        .map(|f| (f.item_type.as_deref().unwrap(), f.severity.as_str(), f.rule.as_str(), f.path.as_str()))
        .collect();
    let expected =
        [("issues", "error", "type", "data.size"), ("issues", "warning", "undeclared", "data.colour")];
    assert_eq!(of, expected);
    let counts: Vec<_> = findings.iter().map(|f| (f.count, f.kept.len())).collect();
    assert_eq!(counts, [(14, 10), (7, 7)], "10 are kept");
    for (kept, record) in findings[0].kept.iter().zip(["issues-0-0", "issues-0-1", "issues-1-0"]) {
        assert!(kept.starts_with(&format!("error: record \"{record}\": data.size: ")), "{kept}");
    }
    // The end of the run leaves the sums.
    let over = place.serve(&mut source, ATTACHMENTS, 3);
    assert_eq!((over.findings.errors, over.findings.warnings), (14, 1));
    assert!(place.findings().is_empty());
    let report = Snapshot::open(place.path()).unwrap().unit("unit", 5).unwrap().unwrap();
    assert_eq!((report.ledger[0].findings.errors, report.ledger[0].findings.warnings), (14, 1));
    let again = place.serve(&mut source, ATTACHMENTS, 3);
    assert!(again.replayed && again.findings == over.findings);
}

#[test]
fn a_refused_page_is_fetched_again_and_after_mending_goes_on_without_loss_or_repetition() {
    let place = Place::new();
    let mended = AtomicU32::new(0);
    let mut source = checked(CheckPolicy::Refuse, |_: &Context, stream: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        Ok(page(stream, at, 3, |item| at == 1 && item > 1 && mended.load(Ordering::Relaxed) == 0))
    });
    for (event_type, request) in [(DATA, 1), (DATA_ON, 2), (DATA, 3)] {
        let outcome = place.serve(&mut source, event_type, request);
        assert_eq!(outcome.kind, OutcomeKind::Error);
        let error = place.airdrop.last().error();
        let expected = [
            "a page of stream issues is refused, and nothing of it is stored",
            "2 errors:\nissues: error: record \"issues-1-2\": data.size: ",
            "(rule type, 2 times)",
        ];
        for expected in expected {
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(place.airdrop.announced("run"), all_of("issues", 1, 4), "the page before is kept");
        // It may be refused any number of times: nothing of it is in the store.
        assert_eq!((outcome.findings.errors, place.findings().len()), (0, 0));
    }
    mended.store(1, Ordering::Relaxed);
    let outcome = place.serve(&mut source, DATA_ON, 4);
    assert_eq!((outcome.kind, outcome.findings.errors), (OutcomeKind::Done, 0));
    assert_eq!(place.airdrop.announced("run"), all_of("issues", 3, 4));
    let asked: Vec<_> = source.asked().iter().map(|(_, at)| at.unwrap_or(0)).collect();
    // Each time the page after the one that is refused comes ahead of it, and is dropped.
    assert_eq!(asked, [0, 1, 2, 1, 2, 1, 2, 1, 2]);
    assert_eq!(place.serve(&mut source, ATTACHMENTS, 5).kind, OutcomeKind::Done);
}

#[test]
fn what_was_changed_on_the_way_into_a_record_is_counted_under_every_policy() {
    for policy in [CheckPolicy::Off, CheckPolicy::Report, CheckPolicy::Refuse] {
        let place = Place::new();
        let mut source = checked(policy, |_: &Context, _: &str, _: Option<u32>| {
            let half = |id: &str| Record::from_raw(id, r#"{"is":"cut \ud83d"}"#);
            Ok(Page::last().record("issues", half("1")?).record("issues", half("2")?))
        });
        let outcome = place.serve(&mut source, DATA, 1);
        assert_eq!((outcome.kind, outcome.findings.warnings), (OutcomeKind::Done, 2), "{policy:?}");
        let findings = place.findings();
        assert_eq!((findings[0].rule.as_str(), findings[0].path.as_str()), ("surrogate", "data.is"));
        assert_eq!(place.airdrop.announced("run"), ["cut \u{fffd}", "cut \u{fffd}"]);
    }
}

#[test]
fn warnings_and_ids_that_stand_twice_on_a_page_are_counted_and_not_refused() {
    let place = Place::new();
    let mut source = checked(CheckPolicy::Refuse, |_: &Context, _: &str, _: Option<u32>| {
        let record = || Record::new("1", &json!({ "is": "twice", "colour": "red" })).unwrap();
        Ok(Page::last().record("issues", record()).record("issues", record()))
    });
    let outcome = place.serve(&mut source, DATA, 1);
    assert_eq!(outcome.kind, OutcomeKind::Done, "{:?}", outcome.message);
    assert_eq!((outcome.findings.errors, outcome.findings.warnings), (1, 1));
    assert_eq!(place.findings()[0].rule, "duplicate_id");
    assert_eq!(place.airdrop.announced("run"), ["twice", "twice"]);
}

#[test]
fn an_item_type_that_is_not_declared_is_a_finding_in_each_of_its_records_but_attachments_are_the_platforms() {
    let attachment = json!({ "id": "a", "url": "https://x", "file_name": "f", "parent_id": "1" });
    for (policy, kind) in
        [(CheckPolicy::Report, OutcomeKind::Done), (CheckPolicy::Refuse, OutcomeKind::Error)]
    {
        let place = Place::new();
        let mut source = checked(policy, |_: &Context, _: &str, _: Option<u32>| {
            let issue = |id: &str| Record::new(id, &json!({ "is": id })).unwrap();
            let page = Page::last().record("isues", issue("1")).record("isues", issue("2"));
            Ok(page.record("attachments", Record::flat(&attachment)?).record("issues", issue("3")))
        });
        let outcome = place.serve(&mut source, DATA, 1);
        assert_eq!(outcome.kind, kind);
        if kind == OutcomeKind::Error {
            let error = place.airdrop.last().error();
            let expected = "isues: error: record \"1\": the metadata declares no record type \"isues\"; did you mean \
                            \"issues\"? (rule record_type, 2 times)";
            assert!(error.contains(expected), "{error}");
            assert_eq!(place.airdrop.uploads(), 0);
        } else {
            assert_eq!((outcome.findings.errors, outcome.findings.warnings), (2, 0));
            assert_eq!((place.findings()[0].count, place.airdrop.uploads()), (2, 3));
        }
    }
}

#[test]
fn metadata_with_errors_is_refused_with_all_that_a_message_holds_or_counted_and_delivered() {
    let stages = StageDiagram::new("stge").stage("open", "open", ["closed"]);
    let mut broken = Metadata::new().record_type("issues", RecordType::new().stage_diagram(stages));
    broken = broken.record_type("users", RecordType::new());
    for at in 0..40 {
        let field = Field::reference(["#record:usres"]);
        broken = broken.record_type(format!("type-{at}"), RecordType::new().field("owner", field));
    }
    let errors = broken.check().iter().filter(|finding| finding.is_error()).count() as u64;
    assert!(errors > 40, "{errors}");
    for event_type in [METADATA, DATA] {
        let place = Place::new();
        let mut source = half_bad(2, CheckPolicy::Refuse);
        source.metadata = Ok(serde_json::to_value(&broken).unwrap());
        assert_eq!(place.serve(&mut source, event_type, 1).kind, OutcomeKind::Error);
        let error = place.airdrop.last().error();
        assert!(
            error.starts_with(&format!("the metadata is refused, because it has {errors} errors:\n")),
            "{error}"
        );
        let told = error.matches("(rule ").count() as u64;
        assert!(error.ends_with(&format!("\nand {} more of other kinds", errors - told)), "{error}");
        assert!(told > 3 && error.len() <= 2_000, "{}", error.len());
        assert!(source.asked().is_empty() && place.airdrop.uploads() == 0);
    }
    let place = Place::new();
    let mut source = half_bad(2, CheckPolicy::Report);
    source.metadata = Ok(serde_json::to_value(&broken).unwrap());
    let outcome = place.serve(&mut source, METADATA, 1);
    assert_eq!((outcome.kind, outcome.findings.errors), (OutcomeKind::Done, errors));
    assert_eq!(place.findings()[0].item_type.as_deref(), Some("external_domain_metadata"));
    // Asked for again, it is not counted again.
    let outcome = place.serve(&mut source, DATA, 2);
    let in_metadata = |f: &&FindingsReport| {
        f.item_type.as_deref() == Some("external_domain_metadata") && f.severity == "error"
    };
    let counted: u64 = place.findings().iter().filter(in_metadata).map(|f| f.count).sum();
    assert_eq!((outcome.kind, counted), (OutcomeKind::Done, errors));
}

#[test]
fn metadata_that_fail_in_the_data_phase_fail_as_a_page_does() {
    let place = Place::new();
    let mut source = half_bad(2, CheckPolicy::Report);
    source.metadata = Err(Duration::from_secs(3_600));
    assert_eq!(place.serve(&mut source, DATA, 1).kind, OutcomeKind::Delay);
    assert!(source.asked().is_empty());
    place.clock.advance(Duration::from_secs(3_600));
    source.metadata = Ok(metadata());
    let outcome = place.serve(&mut source, DATA_ON, 2);
    assert_eq!((outcome.kind, outcome.findings.errors), (OutcomeKind::Done, 4));
}

/// Serves events until the data phase is done, in a new process after each death; says how many there were.
fn to_done(world: &mut World, source: &mut Source<'_>) -> (Outcome, u32) {
    let (mut request, mut event_type, mut deaths) = (1, DATA, 0);
    loop {
        assert!(request < 50 && deaths < 50, "it does not come to an end");
        match world.serve(source, &event(event_type, "run", &request.to_string())) {
            Ok(outcome) if outcome.kind == OutcomeKind::Done => return (outcome, deaths),
            Ok(_) => (request, event_type) = (request + 1, DATA_ON),
            Err(_) => {
                deaths += 1;
                world.restart();
            }
        }
    }
}

#[test]
fn each_bad_record_that_is_announced_was_counted_once_wherever_the_process_died() {
    let mut deaths_in_all = 0;
    for budget in [Duration::ZERO, Duration::from_secs(600)] {
        for (call, skip) in
            [Call::Upload, Call::Confirm, Call::Send].into_iter().flat_map(|c| [(c, 0), (c, 1), (c, 4)])
        {
            let mut world = World::new(3);
            world.serve = Serve::new().inline(7).budget(budget);
            world.airdrop.kill_at(call, skip, &world.disk);
            let mut source = half_bad(4, CheckPolicy::Report);
            let (outcome, deaths) = to_done(&mut world, &mut source);
            deaths_in_all += deaths;
            assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 4));
            assert_eq!(outcome.findings.errors, announced_bad(&world.airdrop));
        }
        // Fetched, and dead before it was staged: another look finds something else.
        for dies_at in 0..4 {
            let mut world = World::new(3);
            world.serve = Serve::new().inline(7).budget(budget);
            let doomed: Mutex<Option<SimDisk>> = Mutex::new(Some(world.disk.clone()));
            let mut source = checked(CheckPolicy::Report, |_: &Context, stream: &str, at: Option<u32>| {
                let at = at.unwrap_or(0);
                let dies = at == dies_at;
                let disk = dies.then(|| doomed.lock().unwrap().take()).flatten();
                if let Some(disk) = &disk {
                    disk.kill();
                }
                Ok(page(stream, at, 4, |item| disk.is_some() || item < 1))
            });
            let (outcome, deaths) = to_done(&mut world, &mut source);
            assert_eq!(deaths, 1);
            assert_eq!(world.airdrop.announced("run"), all_of("issues", 4, 4));
            assert_eq!((outcome.findings.errors, announced_bad(&world.airdrop)), (4, 4));
        }
    }
    assert!(deaths_in_all >= 12, "{deaths_in_all} processes died");
}

#[test]
fn a_checkpoint_brings_the_counts_back_with_the_first_text_of_each_kind() {
    let mut place = Place::new();
    place.serve = Serve::new().inline(7).budget(Duration::ZERO).checkpoints();
    let mut source = half_bad(5, CheckPolicy::Report);
    let mut outcome = place.serve(&mut source, DATA, 1);
    for request in 2..=5 {
        assert_eq!(outcome.kind, OutcomeKind::Progress);
        assert_eq!(outcome.findings.errors, announced_bad(&place.airdrop));
        place.lose_disk();
        outcome = place.serve(&mut source, DATA_ON, request);
        let kept = &place.findings()[0].kept;
        assert_eq!(kept.len(), 3, "one comes back, two are new");
        assert!(kept[0].contains("issues-0-0"), "{kept:?}");
    }
    assert_eq!((outcome.kind, outcome.findings.errors), (OutcomeKind::Done, 10));
    assert_eq!(place.airdrop.announced("run"), all_of("issues", 5, 4));
    assert_eq!(announced_bad(&place.airdrop), 10);
    place.lose_disk();
    let over = place.serve(&mut source, ATTACHMENTS, 6);
    assert_eq!((over.kind, over.findings.errors), (OutcomeKind::Done, 10));
}

#[test]
fn what_is_kept_is_bounded_and_so_is_its_part_of_a_checkpoint() {
    let mut place = Place::new();
    place.serve = Serve::new().inline(7).checkpoints();
    // Every record has a field of its own that is not declared, at the longest of places.
    let mut source = checked(CheckPolicy::Report, |_: &Context, _: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        let mut page = if at < 9 { Page::more(at + 1) } else { Page::last() };
        for item in 0..100_u32 {
            let key = format!("{at:03}{item:03}{}", "x".repeat(2_000));
            let item_type = format!("type-{}", item % 90);
            page.push(&item_type, Record::new(format!("{at}-{item}"), &json!({ key: 1 }))?);
            page.push("issues", Record::new(format!("{at}-{item}"), &json!({ "size": "x".repeat(3_000) }))?);
        }
        Ok(page)
    });
    let types = (0..90).fold(Metadata::new().record_type("issues", RecordType::new()), |types, at| {
        types.record_type(format!("type-{at}"), RecordType::new())
    });
    source.metadata = Ok(serde_json::to_value(types).unwrap());
    let outcome = place.serve(&mut source, DATA, 1);
    let findings = place.findings();
    assert_eq!((outcome.kind, outcome.findings.warnings), (OutcomeKind::Done, findings.len() as u64));
    assert_eq!(findings.iter().map(|f| f.count).sum::<u64>(), 2_000, "what is not told apart is counted");
    assert!(findings.len() > 2 * FINDING_KINDS_MAX && findings.len() <= 2 * FINDING_KINDS_MAX + 72);
    for of in &findings {
        assert!(of.kept.len() <= 10 && of.kept.iter().all(|text| text.len() <= FINDING_BYTES_MAX));
        assert!(of.path.len() <= 120);
    }
    let part = place.airdrop.checkpoint()["position"]["findings"].to_string();
    assert!((10_000..40_000).contains(&part.len()), "{} bytes", part.len());
    // It is all in there: another machine knows the same counts.
    place.lose_disk();
    let again = place.serve(&mut source, DATA_ON, 2);
    assert_eq!(again.findings, outcome.findings);
}

#[test]
fn the_dump_shows_findings_by_item_type_and_rule() {
    let place = Place::new();
    let mut source = checked(CheckPolicy::Report, |_: &Context, stream: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        let odd = Record::new("odd\u{202e}", &json!({ "is": "odd", "size": "a\u{1b}[31m" }))?;
        Ok(page(stream, at, 2, |item| item < 1).record("issues", odd))
    });
    place.serve(&mut source, DATA, 1);
    let shown = place.dump(&[]);
    let (_, shown) = shown.split_once("\n  findings in records\n").unwrap_or_else(|| panic!("{shown}"));
    let (shown, _) = shown.split_once("\n\n  messages").unwrap();
    insta::assert_snapshot!(shown, @r#"
        item type  severity  rule               at         findings
        issues     error     type               data.size         4
        issues     warning   control_character  data.size         2

      the first of each kind
        issues: error: record "issues-0-0": data.size: an int is a number without decimals, but this is
          the string "big"; write a number such as 12, or declare the field as text
        issues: error: record "odd\u{202e}": data.size: an int is a number without decimals, but this is
          the string "a\u{1b}[31m"; write a number such as 12, or declare the field as text
        issues: error: record "issues-1-0": data.size: an int is a number without decimals, but this is
          the string "big"; write a number such as 12, or declare the field as text
        issues: error: record "odd\u{202e}": data.size: an int is a number without decimals, but this is
          the string "a\u{1b}[31m"; write a number such as 12, or declare the field as text
        issues: warning: record "odd\u{202e}": data.size: the control character U+001B is in the text;
          remove it: text does not need it, and some databases refuse U+0000
        issues: warning: record "odd\u{202e}": data.size: the control character U+001B is in the text;
          remove it: text does not need it, and some databases refuse U+0000
    "#);
    assert!(place.dump(&[]).contains("! records do not match the metadata: 4 errors"));
    // The findings of a record are those with its id, not those of a record whose id begins with it.
    let found = |id: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_highwater-dump"));
        let output = command.current_dir(place.dir.path()).args(["find", "state.redb", id]).assert().code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap().matches("finding: ").count()
    };
    assert_eq!(["issues-0-0", "odd\u{202e}", "issues-0", "issues", "5"].map(found), [1, 4, 0, 0, 0]);
    let lines = place.dump(&["--json"]);
    let line = lines.lines().find(|line| line.contains("\"kind\":\"findings\"")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    for (key, expected) in [
        ("sync_unit", json!("unit")),
        ("run", json!("run")),
        ("item_type", json!("issues")),
        ("severity", json!("error")),
        ("rule", json!("type")),
        ("path", json!("data.size")),
        ("count", json!(4)),
    ] {
        assert_eq!(line[key], expected, "{key}");
    }
    assert_eq!(line["kept"].as_array().unwrap().len(), 4);
    place.serve(&mut source, ATTACHMENTS, 2);
    assert!(place.dump(&[]).contains("4 errors, 2 warnings"));
}

/// The simulated source, whose every record is a finding: its metadata declares nothing.
struct Checked {
    source: SimSource,
    life: Life,
    policy: CheckPolicy,
}

impl Extractor for Checked {
    type Cursor = SimCursor;

    fn external_sync_units(&self, context: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        self.source.external_sync_units(context)
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        self.life.count("metadata/asked");
        let refuses = self.policy == CheckPolicy::Refuse;
        // Now and then one type is not declared, and pages with it are refused.
        let declared = if refuses && self.life.reads().is_multiple_of(5) {
            // That is the reason of an ERROR.
            self.life.count("source/refuses");
            &["users"][..]
        } else {
            &["issues", "users", "comments"]
        };
        let types = declared.iter().filter(|_| refuses).fold(Metadata::new(), |types, name| {
            types.record_type(*name, RecordType::new().field("ordinal", Field::text()))
        });
        Ok(serde_json::to_value(types)?)
    }

    fn check_policy(&self) -> CheckPolicy {
        self.policy
    }

    fn streams(&self, context: &Context) -> Result<Vec<String>, SourceError> {
        self.source.streams(context)
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<SimCursor>,
    ) -> Result<Page<SimCursor>, SourceError> {
        self.source.page(context, listing, cursor)
    }
}

#[test]
fn what_is_checked_and_reported_is_announced_exactly_once_too() {
    explored(CheckPolicy::Report);
}

#[test]
fn what_is_checked_and_refused_is_announced_exactly_once_too() {
    explored(CheckPolicy::Refuse);
}

fn explored(policy: CheckPolicy) {
    for explore in [Explore::new(), Explore::new().without_disk()] {
        let report = explore.states(40).run(|life| Checked {
            source: SimSource::new(life),
            life: life.clone(),
            policy,
        });
        assert!(report.failure.is_none(), "{policy:?}: {report}");
        assert!(report.faults.get("metadata/asked").is_some_and(|&asked| asked > 20), "{report}");
    }
}
