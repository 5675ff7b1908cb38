//! The audit reports what a worker lost, if the worker really loses it.
#![cfg(unix)]

use std::path::Path;

use highwater::Phase;
use highwater_airdrop::{
    Airdrop, AirdropOptions, Audit, Fault, Outcome, SyncOptions, SyncSettings, Verdict, audit, calls,
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

#[test]
fn findings_in_announced_records_are_listed_by_kind_and_a_warning_is_no_reason_for_suspicion() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let (airdrop, outcome) = synced(dir.path(), &[]);
    let again = || audit(airdrop.local(), outcome.report.as_ref().unwrap(), outcome.is_done()).unwrap();
    assert!(again().record_findings.is_empty(), "{}", again());
    for (old, new, severity, verdict, count) in [
        ("{\"title\":", "{\"colour\":\"red\",\"title\":", "warning", Verdict::Clean, BATCH_ITEMS * BATCHES),
        ("\"title\":\"issue 7\"", "\"title\":7", "error", Verdict::Suspicious, 1),
    ] {
        for id in airdrop.local().artifacts().unwrap() {
            let path = airdrop.local().artifact_path(&id).unwrap();
            let (mut text, bytes) = (String::new(), std::fs::read(&path).unwrap());
            flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
            if text.contains("issue-") {
                let file = std::fs::File::create(&path).unwrap();
                let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
                gzip.write_all(text.replace(old, new).as_bytes()).unwrap();
                gzip.finish().unwrap();
            }
        }
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
