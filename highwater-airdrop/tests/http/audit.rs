//! The audit reports what a worker lost, if the worker really loses it.
#![cfg(unix)]

use std::path::Path;

use highwater::Phase;
use highwater_airdrop::{
    Airdrop, AirdropOptions, Audit, AuditFinding, Fault, Outcome, Progress, SyncOptions, SyncSettings,
    Verdict, audit, calls,
};
use serde_json::json;

use crate::naive::{BATCH_ITEMS, BATCHES, NAIVE, worker};

fn sync(dir: &Path, faults: &[&str]) -> Audit {
    let (airdrop, outcome) = synced(dir, faults);
    audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap()
}

fn synced(dir: &Path, faults: &[&str]) -> (Airdrop, Outcome) {
    let mut options = AirdropOptions::default();
    options.port = Some(0);
    options.faults = faults.iter().map(|fault| fault.parse::<Fault>().unwrap()).collect();
    let airdrop = Airdrop::start(dir, options).unwrap();
    let settings = SyncSettings::new("tickets").newer_names(true).phases([Phase::Metadata, Phase::Data]);
    let mut options = SyncOptions::new(settings);
    options.env = vec![(NAIVE.to_owned(), "1".to_owned())];
    let outcome = airdrop.sync(&options, &worker(), &mut |_| {});
    // A worker whose message was refused answers ERROR.
    assert_eq!(outcome.is_done(), !faults.contains(&"message-413:2"), "{faults:?}: {:?}", outcome.failure);
    for (at, fault) in faults.iter().enumerate() {
        assert_eq!(outcome.faults["faults"][at]["came_true"], 1, "{fault}");
    }
    (airdrop, outcome)
}

#[test]
fn an_artifact_that_is_missing_is_lost_whatever_its_item_count_says() {
    for (count, records) in [("0", 1), ("18446744073709551615", u64::MAX)] {
        // Not there at all; or there, and not confirmed.
        for (rule, records) in
            [("named-not-uploaded", records), ("named-not-confirmed", records.max(BATCH_ITEMS))]
        {
            let dir = tempfile::tempdir().unwrap();
            let (airdrop, outcome) = synced(dir.path(), &[]);
            let path = dir.path().join("messages.jsonl");
            let messages = std::fs::read_to_string(&path).unwrap();
            let changed = messages
                .replace(&format!("\"item_count\":{BATCH_ITEMS}"), &format!("\"item_count\":{count}"));
            assert_ne!(messages, changed);
            std::fs::write(&path, changed).unwrap();
            if rule == "named-not-confirmed" {
                std::fs::write(dir.path().join("confirmed.txt"), "").unwrap();
            } else {
                std::fs::remove_dir_all(dir.path().join("artifacts")).unwrap();
            }
            let audit = audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
            assert_eq!(audit.verdict, Verdict::Lost, "{audit}");
            let found = audit.findings.iter().find(|finding| finding.rule == rule).unwrap();
            // One more is of the metadata.
            assert_eq!(found.count, records.saturating_mul(BATCHES).saturating_add(1), "{audit}");
        }
    }
}

#[test]
fn a_sync_in_which_nothing_fails_is_clean_the_first_and_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let first = sync(dir.path(), &[]);
    assert_eq!(first.verdict, Verdict::Clean, "{first}");
    assert_eq!(first.records["issues"], BATCHES * BATCH_ITEMS);
    let next = sync(dir.path(), &[]);
    assert_eq!(next.verdict, Verdict::Clean, "{next}");
    assert_eq!(next.records["issues"], 1);
    assert!(calls(dir.path(), &first.run).unwrap().iter().all(|call| call.lints.is_empty()));
}

#[test]
fn what_is_lost_is_told_with_its_rule_and_its_number() {
    let all = BATCHES * BATCH_ITEMS;
    // The first upload, confirm and message are of the metadata.
    for (fault, verdict, rule, count) in [
        ("upload-403:3", Verdict::Lost, "upload-refused", BATCH_ITEMS),
        ("upload-503:4", Verdict::Lost, "upload-refused", BATCH_ITEMS),
        ("confirm-400:2", Verdict::Lost, "never-confirmed", BATCH_ITEMS),
        ("confirm-503-applied:2", Verdict::Lost, "confirmed-not-named", BATCH_ITEMS),
        ("prepare-429:3", Verdict::Suspicious, "prepare-failed", 1),
        // The run is not over: it may follow.
        ("message-413:2", Verdict::Unfinished, "confirmed-not-named", all),
        ("message-kill-before:2", Verdict::Lost, "confirmed-not-named", all),
        ("message-lost:2", Verdict::Suspicious, "artifact-twice", all),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let audit = sync(dir.path(), &[fault]);
        assert_eq!(audit.verdict, verdict, "{fault}: {audit}");
        let found = audit.findings.iter().find(|finding| finding.rule == rule);
        assert_eq!(found.map(|finding| finding.count), Some(count), "{fault}: {audit}");
    }
}

#[test]
fn what_is_made_good_is_no_finding() {
    // Killed before it was confirmed, everything is extracted again.
    let dir = tempfile::tempdir().unwrap();
    let audit = sync(dir.path(), &["confirm-kill-before:3"]);
    assert_eq!(audit.verdict, Verdict::Clean, "{audit}");
    assert_eq!(audit.records["issues"], BATCHES * BATCH_ITEMS);
    assert_eq!(audit.invocations.len(), 3);
}

/// Rewrites the artifacts of issues.
fn rewrite(airdrop: &Airdrop, by: impl Fn(&str) -> String) {
    use std::io::{Read as _, Write as _};
    for id in airdrop.local().artifacts().unwrap() {
        let path = airdrop.local().artifact_path(&id).unwrap();
        let (mut text, bytes) = (String::new(), std::fs::read(&path).unwrap());
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
        if text.contains("issue-") {
            let file = std::fs::File::create(&path).unwrap();
            let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            gzip.write_all(by(&text).as_bytes()).unwrap();
            gzip.finish().unwrap();
        }
    }
}

/// Gives the three artifacts of issues other item types in the messages that name them.
fn retype(dir: &Path, item_types: [&str; 3]) {
    let path = dir.join("messages.jsonl");
    let messages = std::fs::read_to_string(&path).unwrap();
    let of = |item_type: &str| format!("\"item_type\":\"{item_type}\"");
    let issues = of("issues");
    let mut parts = messages.split(&issues);
    let mut retyped = parts.next().unwrap().to_owned();
    for item_type in item_types {
        retyped.extend([&of(item_type), parts.next().unwrap()]);
    }
    assert_eq!(parts.next(), None, "{messages}");
    std::fs::write(&path, retyped).unwrap();
}

/// Makes the lines that come again from the text of an artifact.
type More<'a> = &'a dyn Fn(&str) -> Vec<String>;

fn line(text: &str, id: &str) -> String {
    text.lines().find(|line| line.contains(&format!("\"id\":\"{id}\""))).unwrap_or_default().to_owned()
}

/// Puts lines in place of the last ones of the artifact that has issue 7, so that the counts stay right.
fn twice(text: &str, more: More<'_>) -> String {
    if line(text, "issue-7").is_empty() {
        return text.to_owned();
    }
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let more = more(text);
    lines.truncate(lines.len() - more.len());
    lines.extend(more);
    lines.join("\n")
}

/// Issue 7 with another title and its date.
fn changed_to(text: &str, title: &str, date: &str) -> String {
    let old = line(text, "issue-7");
    let anew = old.replace("\"title\":\"issue 7\"", &format!("\"title\":\"{title}\""));
    anew.replace("\"modified_date\":\"2026-01-02", &format!("\"modified_date\":\"{date}"))
}

fn changed(text: &str) -> String {
    changed_to(text, "anew", "2026-01-03")
}

fn rules(found: &[AuditFinding]) -> Vec<&str> {
    found.iter().map(|found| found.rule.as_str()).collect()
}

#[test]
fn a_record_that_comes_again_is_a_finding_unless_it_changed_and_its_date_with_it() {
    let again = |text: &str| line(text, "issue-7");
    let other = |text: &str| line(text, "issue-8");
    // The same value, with its keys in another order.
    let order = |text: &str| {
        let line = line(text, "issue-7");
        let moved = line.replace("{\"id\":\"issue-7\",", "{").replace("}}", "},\"id\":\"issue-7\"}");
        assert_ne!(line, moved);
        moved
    };
    let undated = |text: &str, title: &str| {
        let date = "\"modified_date\":\"2026-01-02T00:00:00.000Z\",";
        let line = changed_to(text, title, "2026-01-02");
        assert!(line.contains(date), "{line}");
        line.replace(date, "")
    };
    let twice_and_changed = (Verdict::Suspicious, vec!["record-twice"], vec!["record-changed"]);
    let only_changed = (Verdict::Clean, vec![], vec!["record-changed"]);
    let cases: [(More<'_>, _); 7] = [
        (&|text| vec![again(text)], (Verdict::Suspicious, vec!["record-twice"], vec![])),
        (&|text| vec![order(text)], (Verdict::Suspicious, vec!["record-twice"], vec![])),
        (&|text| vec![changed(text)], only_changed.clone()),
        // One that changed does not excuse another.
        (&|text| vec![changed(text), other(text)], twice_and_changed.clone()),
        // After the change it comes again as it is then: that is the listing's fault.
        (&|text| vec![changed(text), changed(text)], twice_and_changed),
        (
            &|text| vec![changed_to(text, "anew", "2026-01-02")],
            (Verdict::Suspicious, vec!["record-same-date"], vec![]),
        ),
        (&|text| vec![undated(text, "issue 7"), undated(text, "anew")], only_changed),
    ];
    for (more, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (airdrop, outcome) = synced(dir.path(), &[]);
        rewrite(&airdrop, |text| twice(text, more));
        let audit = audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
        let (verdict, findings, notes) = expected;
        assert_eq!(audit.verdict, verdict, "{audit}");
        assert_eq!(rules(&audit.findings), findings, "{audit}");
        assert_eq!(rules(&audit.notes), notes, "{audit}");
        let text = audit.to_string();
        assert!(!text.contains("keep the newest"), "{text}");
        assert_eq!(findings.contains(&"record-same-date"), text.contains("modified_date did not change"));
        if !notes.is_empty() {
            assert!(text.contains("note: 1 records came again with another content"), "{text}");
            assert!(text.contains("    issues issue-7\n"), "{text}");
        }
    }
}

#[test]
fn an_attachment_comes_again_with_its_record_as_often_as_that_changed() {
    let excused = ["record-changed", "attachment-along"];
    for (parent, changes, times, findings, notes) in [
        ("issue-7", 1, 1, None, &excused[..]),
        // It cannot come along more often than its record changed.
        ("issue-7", 1, 2, Some(1), &excused),
        ("issue-7", 2, 2, None, &excused),
        ("issue-7", 0, 1, Some(1), &[]),
        // Another record changed.
        ("issue-8", 1, 1, Some(1), &excused[..1]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (airdrop, outcome) = synced(dir.path(), &[]);
        retype(dir.path(), ["issues", "issues", "attachments"]);
        rewrite(&airdrop, |text| {
            let last = format!("issue-{}", BATCHES * BATCH_ITEMS - 1);
            if line(text, &last).is_empty() {
                return twice(text, &|text| {
                    let date = |n| format!("2026-01-1{n}");
                    (0..changes).map(|n| changed_to(text, &format!("anew {n}"), &date(n))).collect()
                });
            }
            let file = |n| {
                let url = format!("https://files.example.com/{n}");
                let id = format!("file-{n}");
                json!({ "id": id, "url": url, "file_name": "a.txt", "parent_id": parent }).to_string()
            };
            let files = (0..BATCH_ITEMS - times).map(file).chain((0..times).map(|_| file(0)));
            files.collect::<Vec<_>>().join("\n")
        });
        let audit = audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
        assert_eq!(audit.records["attachments"], BATCH_ITEMS - times, "{audit}");
        let again = audit.findings.iter().find(|found| found.rule == "record-twice");
        assert_eq!(again.map(|found| found.count), findings, "{parent} {changes} {times}: {audit}");
        assert_eq!(rules(&audit.notes), notes, "{parent} {changes} {times}: {audit}");
    }
}

#[test]
fn an_upload_comes_again_as_often_as_its_attachment_changed_and_not_as_its_record_did() {
    let last = |batches: u64| format!("issue-{}", batches * BATCH_ITEMS - 1);
    for (is_changed, findings, notes) in
        [(true, None, vec!["record-changed", "attachment-along"]), (false, Some(1), vec!["record-changed"])]
    {
        let dir = tempfile::tempdir().unwrap();
        let (airdrop, outcome) = synced(dir.path(), &[]);
        retype(dir.path(), ["issues", "attachments", "ssor_attachment"]);
        rewrite(&airdrop, |text| {
            let file = |n: u64, url: &str| {
                let id = format!("file-{n}");
                json!({ "id": id, "url": url, "file_name": "a.txt", "parent_id": "issue-7" }).to_string()
            };
            let upload = |n: u64, to: u64| {
                let id = json!({ "devrev": format!("upload-{to}"), "external": format!("file-{n}") });
                json!({ "id": id, "parent_id": { "external": "issue-7" } }).to_string()
            };
            let lines: Vec<String> = if !line(text, &last(2)).is_empty() {
                let again =
                    if is_changed { "https://files.example.com/anew" } else { "https://files.example.com" };
                let files = (0..BATCH_ITEMS - 1).map(|n| file(n, "https://files.example.com"));
                files.chain([file(0, again)]).collect()
            } else if !line(text, &last(3)).is_empty() {
                (0..BATCH_ITEMS - 1).map(|n| upload(n, n)).chain([upload(0, BATCH_ITEMS)]).collect()
            } else {
                return twice(text, &|text| vec![changed(text)]);
            };
            lines.join("\n")
        });
        let audit = audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
        let again = audit.findings.iter().find(|found| found.rule == "attachment-twice");
        assert_eq!(again.map(|found| found.count), findings, "{audit}");
        let notes_of = rules(&audit.notes);
        assert!(notes.iter().all(|note| notes_of.contains(note)), "{notes_of:?}: {audit}");
        // The line that came again unchanged has its own excuse, the change of its record.
        assert_eq!(audit.findings.iter().filter(|found| found.rule == "record-twice").count(), 0, "{audit}");
    }
}

#[test]
fn a_sync_of_which_there_is_no_report_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = AirdropOptions::default();
    options.port = Some(0);
    let airdrop = Airdrop::start(dir.path(), options).unwrap();
    let settings = SyncSettings::new("tickets").newer_names(true).phases([Phase::Metadata, Phase::Data]);
    let mut options = SyncOptions::new(settings);
    options.env = vec![(NAIVE.to_owned(), "1".to_owned())];
    // What the platform remembers is removed behind the last answer.
    let outcome = airdrop.sync(&options, &worker(), &mut |progress| {
        if let Progress::Ended(_, says) = progress
            && says.starts_with("DATA_EXTRACTION_DONE")
        {
            std::fs::remove_file(dir.path().join("platform.json")).unwrap();
        }
    });
    assert!(outcome.report.is_none() && !outcome.is_done(), "{outcome:?}");
    let error = outcome.to_json()["error"].to_string();
    assert!(error.contains("there is no report of the run of tickets"), "{error}");
}

#[test]
fn findings_in_announced_records_are_listed_by_kind_and_a_warning_is_no_reason_for_suspicion() {
    let dir = tempfile::tempdir().unwrap();
    let (airdrop, outcome) = synced(dir.path(), &[]);
    let again = || audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
    assert!(again().record_findings.is_empty(), "{}", again());
    for (old, new, severity, verdict, count) in [
        ("{\"title\":", "{\"colour\":\"red\",\"title\":", "warning", Verdict::Clean, BATCH_ITEMS * BATCHES),
        ("\"title\":\"issue 7\"", "\"title\":7", "error", Verdict::Suspicious, 1),
    ] {
        rewrite(&airdrop, |text| text.replace(old, new));
        let audit = again();
        assert_eq!(audit.verdict, verdict, "{audit}");
        let found =
            audit.record_findings.iter().find(|found| found.severity.to_string() == severity).unwrap();
        assert_eq!((found.item_type.as_str(), found.count), ("issues", count), "{audit}");
        assert!(audit.to_string().contains(&format!("{count} times in issues: {severity}")), "{audit}");
    }
    // Errors come first.
    assert_eq!(again().record_findings.len(), 2);
    assert_eq!(again().record_findings[0].rule.to_string(), "type");
}
