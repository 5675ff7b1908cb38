//! The audit reports what a worker lost, if the worker really loses it.
#![cfg(unix)]

use std::path::Path;

use highwater::Phase;
use highwater_airdrop::{
    Airdrop, AirdropOptions, Audit, AuditFinding, Fault, Outcome, SyncOptions, SyncSettings, Verdict, audit,
    calls,
};

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

/// Makes the lines that come again from the text of an artifact.
type More<'a> = &'a dyn Fn(&str) -> Vec<String>;

#[test]
fn a_record_that_comes_again_is_a_finding_only_if_neither_it_nor_what_it_belongs_to_changed() {
    let (id, old) = ("issue-7", "\"title\":\"issue 7\"");
    let line = |text: &str, id: &str| {
        text.lines().find(|line| line.contains(&format!("\"{id}\""))).unwrap_or_default().to_owned()
    };
    // Puts lines in place of the last ones of the artifact that has issue 7, so that the counts stay right.
    let twice = |text: &str, more: More<'_>| {
        if line(text, id).is_empty() {
            return text.to_owned();
        }
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let more = more(text);
        lines.truncate(lines.len() - more.len());
        lines.extend(more);
        lines.join("\n")
    };
    let again = |text: &str| line(text, id);
    let changed = |text: &str| line(text, id).replace(old, "\"title\":\"anew\"");
    let other = |text: &str| line(text, "issue-8");
    let twice_and_changed = (Verdict::Suspicious, vec!["record-twice"], vec!["record-changed"]);
    let cases: [(More<'_>, _); 4] = [
        (&|text| vec![again(text)], (Verdict::Suspicious, vec!["record-twice"], vec![])),
        (&|text| vec![changed(text)], (Verdict::Clean, vec![], vec!["record-changed"])),
        // One that changed does not excuse another.
        (&|text| vec![changed(text), other(text)], twice_and_changed.clone()),
        // After the change it comes again as it is then: that is the listing's fault.
        (&|text| vec![changed(text), changed(text)], twice_and_changed),
    ];
    for (more, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (airdrop, outcome) = synced(dir.path(), &[]);
        rewrite(&airdrop, |text| twice(text, more));
        let audit = audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
        let rules = |found: &[AuditFinding]| -> Vec<String> {
            found.iter().map(|found| found.rule.clone()).collect()
        };
        let (verdict, findings, notes) = expected;
        assert_eq!(audit.verdict, verdict, "{audit}");
        assert_eq!(rules(&audit.findings), findings, "{audit}");
        assert_eq!(rules(&audit.notes), notes, "{audit}");
        assert!(audit.record_findings.is_empty(), "{audit}");
        assert!(!audit.to_string().contains("keep the newest"), "{audit}");
        if !notes.is_empty() {
            let text = audit.to_string();
            assert!(text.contains("note: 1 records came again with another content"), "{text}");
            assert!(text.contains("    issues issue-7\n"), "{text}");
        }
    }

    // What belongs to a record that changed comes again with it.
    let dir = tempfile::tempdir().unwrap();
    let (airdrop, outcome) = synced(dir.path(), &[]);
    rewrite(&airdrop, |text| {
        let before = line(text, "issue-8");
        let child = before.replace("\"title\":\"issue 8\"", "\"title\":\"issue-7\"");
        let text = if before.is_empty() { text.to_owned() } else { text.replace(&before, &child) };
        twice(&text, &|text| vec![changed(text), child.clone()])
    });
    let audit = audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
    assert_eq!(audit.verdict, Verdict::Clean, "{audit}");
    assert_eq!(audit.notes.len(), 2, "{audit}");
    assert!(audit.to_string().contains("with a changed record that it refers to"), "{audit}");
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
