//! Negative controls: with a rule removed, the same exploration must find a broken promise. A check that cannot fail
//! proves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use highwater::airdrop::{Context, ExternalSyncUnit, Extractor, Listing, SourceError};
use highwater::record::{Metadata, RecordType};
use highwater::testing::{
    Act, Broken, Call, CallFault, Explore, Report, Safeguard, Setting, SimSource, Uploads, Violation,
};
use highwater::{Page, Record};
use serde_json::{Value, json};

/// Explores without a rule, and asserts that the promise that it holds up is found broken.
fn broken_without(rule: Safeguard, acts: impl IntoIterator<Item = Act>) -> Report {
    broken(&Explore::new().without_rule(rule).with_acts(acts), &format!("{rule:?}"))
}

fn broken(explore: &Explore, what: &str) -> Report {
    let explore = explore.clone().states(60_000);
    let report = explore.run(SimSource::new);
    let failure = report.failure.as_ref().unwrap_or_else(|| panic!("nobody noticed: {what}\n{report}"));
    // The shortest schedule is a real one: it fails again, in the same way.
    let again = explore.replay(&failure.schedule.to_string(), SimSource::new).unwrap();
    let replayed = again.failure.unwrap_or_else(|| panic!("its replay does not fail: {report}"));
    assert_eq!(replayed.violation.kind, failure.violation.kind, "{report}");
    println!("{what}: {report}");
    report
}

fn kind(report: &Report) -> Broken {
    report.failure.as_ref().unwrap().violation.kind
}

#[test]
fn confirming_before_the_commit_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::CommitBeforeConfirm, [])), Broken::Unconfirmed);
}

#[test]
fn a_cursor_committed_without_its_rows_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::RowsWithCursor, [])), Broken::Lost);
}

#[test]
fn an_outbox_row_dropped_at_acknowledge_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::OutboxUntilAnnounced, [])), Broken::Lost);
}

#[test]
fn a_message_that_is_not_sealed_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::SealBeforeSend, [])), Broken::Duplicated);
}

#[test]
fn a_watermark_taken_at_the_finish_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::WatermarkFromStart, [])), Broken::Watermark);
}

#[test]
fn a_start_taken_anew_on_resume_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::StartKept, [])), Broken::Watermark);
}

#[test]
fn an_unconfirmed_artifact_in_a_message_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::AnnounceConfirmed, [])), Broken::Unconfirmed);
}

/// An event that comes again counts as a new one then, and so as proof that the message before it was accepted: its
/// artifacts, and the records in them, are in no message. Which of the two is found first depends on the bytes of the
/// file.
#[test]
fn forgetting_seen_events_is_found() {
    let report = broken_without(Safeguard::EventsRemembered, []);
    assert!(matches!(kind(&report), Broken::Lost | Broken::Unconfirmed), "{report}");
    assert!(report.failure.unwrap().violation.what.contains("in no message"));
}

#[test]
fn a_watermark_moved_by_a_new_start_is_found() {
    let report = broken_without(Safeguard::AbandonedLeavesWatermark, [Act::GiveUp { event: 2 }]);
    assert_eq!(kind(&report), Broken::Watermark);
}

#[test]
fn a_unit_keyed_without_its_own_id_is_found() {
    assert_eq!(kind(&broken_without(Safeguard::KeyedBySyncUnit, [Act::TwoUnits])), Broken::Watermark);
}

#[test]
fn a_disk_that_ignores_syncs_is_found() {
    assert_eq!(kind(&broken(&Explore::new().without_syncs(), "syncs")), Broken::Watermark);
}

#[test]
fn what_is_read_at_open_and_is_not_durable_is_found() {
    let report = broken_without(Safeguard::DurableAtOpen, []);
    assert_eq!(kind(&report), Broken::Lost);
    assert!(report.failure.unwrap().violation.what.contains("taken back by a power failure"));
}

#[test]
fn a_rejected_record_that_is_forgotten_is_found() {
    let report = broken_without(Safeguard::RejectedKept, [Act::With(Setting::Rejects)]);
    assert_eq!(kind(&report), Broken::Lost);
    assert!(report.failure.unwrap().violation.what.contains("has asked again for {}, expected one of"));
}

#[test]
fn forgetting_what_was_announced_once_is_found() {
    let report = broken_without(Safeguard::OnceKept, [Act::With(Setting::Once)]);
    assert_eq!(kind(&report), Broken::Duplicated);
    assert!(report.failure.unwrap().violation.what.contains("and once is wanted"));
}

#[test]
fn pages_that_are_committed_out_of_order_are_found() {
    let report = broken_without(Safeguard::PagesInOrder, [Act::With(Setting::Ahead)]);
    assert_eq!(kind(&report), Broken::Duplicated);
}

#[test]
fn leaving_out_what_no_finished_run_announced_is_found() {
    let report = broken_without(Safeguard::EdgeOfFinished, [Act::With(Setting::Edge)]);
    assert_eq!(kind(&report), Broken::Lost);
    assert!(report.failure.unwrap().violation.what.contains("and no finished run has announced it"));
}

/// Only where an empty store took another's place may attachments be missing for it.
#[test]
fn a_deletion_of_attachments_that_is_done_again_is_found() {
    let acts = [Act::With(Setting::DeleteAttachments)];
    let report = broken_without(Safeguard::DeletedOnce, acts);
    assert_eq!(kind(&report), Broken::Lost);
    assert!(report.failure.unwrap().violation.what.contains("is in no message, and had no reason"));
}

/// Explores with a rule about uploads taken away from those of one kind, and asserts that it finds what follows from
/// it.
fn broken_of(uploads: Uploads, rule: Safeguard, found: Broken) {
    let report = broken(&Explore::new().without_rule_of(uploads, rule), &format!("{rule:?} of {uploads:?}"));
    assert_eq!(kind(&report), found, "{rule:?} of {uploads:?}: {report}");
}

#[test]
fn a_rule_taken_from_batches_alone_is_missed() {
    for (rule, found) in [
        (Safeguard::CommitBeforeConfirm, Broken::Unconfirmed),
        (Safeguard::AnnounceConfirmed, Broken::Unconfirmed),
        (Safeguard::OutboxUntilAnnounced, Broken::Lost),
        (Safeguard::IdKeptInDoubt, Broken::Unconfirmed),
    ] {
        broken_of(Uploads::Batches, rule, found);
    }
}

#[test]
fn a_rule_taken_from_attachments_alone_is_missed() {
    for rule in [Safeguard::CommitBeforeConfirm, Safeguard::AnnounceConfirmed] {
        broken_of(Uploads::Attachments, rule, Broken::Unconfirmed);
    }
}

/// A confirm that took effect, its answer lost, and then refused: the artifact of an attachment is given up, though the
/// platform has it as ours, and the attachment is announced under another.
#[test]
fn an_id_of_an_attachment_given_up_in_doubt_is_found() {
    let of = |number, fault| Act::Call { call: Call::Confirm, number, fault };
    let lost = (9..14).map(|number| of(number, CallFault::Lost));
    let refused = (14..18).map(|number| of(number, CallFault::Refused(400)));
    let explore = Explore::new().without_rule_of(Uploads::Attachments, Safeguard::IdKeptInDoubt);
    let report = broken(&explore.with_acts(lost.chain(refused)), "IdKeptInDoubt of attachments");
    assert_eq!(kind(&report), Broken::Unconfirmed);
    let failure = report.failure.unwrap();
    assert!(failure.violation.what.ends_with("is confirmed and in no message"));
    // With the rule, the attachment is given up: what was confirmed of it may be left in no message.
    let kept = Explore::new().replay(&failure.schedule.to_string(), SimSource::new).unwrap();
    assert!(kept.failure.is_none(), "{kept}");
}

/// A source of two pages, with one issue each of the same author.
#[derive(Clone, Default)]
struct TwoPages {
    /// The second page is not asked for.
    stops_early: bool,
    /// The source always refuses.
    refuses: bool,
    /// How the author, who is in both pages, is announced.
    author: Author,
}

#[derive(Clone, Default)]
enum Author {
    #[default]
    Once,
    WithEachPage,
    /// Unless this life has announced it.
    OnceInALife(Arc<AtomicBool>),
}

impl Extractor for TwoPages {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(vec![ExternalSyncUnit::new("unit-a", "Unit", "")])
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(Metadata::new().record_type("issues", RecordType::new()).into())
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }

    fn page(&self, _: &Context, _: &Listing, cursor: Option<u32>) -> Result<Page<u32>, SourceError> {
        if self.refuses {
            return Err("the source knows no parameter updated_sinse".into());
        }
        let number = cursor.unwrap_or(1);
        let mut page = Page::with_next((!self.stops_early && number == 1).then_some(2));
        page.push("issues", Record::new(format!("I{number}"), &json!({}))?);
        let author = Record::new("U1", &json!({}))?;
        match &self.author {
            Author::Once => page.push_once("users", author),
            Author::OnceInALife(announced) if announced.swap(true, Ordering::Relaxed) => {}
            Author::WithEachPage | Author::OnceInALife(_) => page.push("users", author),
        }
        Ok(page)
    }
}

/// What no comparison of an extractor with itself finds.
#[test]
fn a_count_that_differs_from_what_was_expected_is_found() {
    let explore = Explore::new().states(300).expect_records("issues", 2).expect_records("users", 1);
    let report = explore.run(|_| TwoPages::default());
    assert!(report.failure.is_none() && report.states >= 300, "{report}");

    let stops_early = || TwoPages { stops_early: true, ..TwoPages::default() };
    let with_each = || TwoPages { author: Author::WithEachPage, ..TwoPages::default() };
    // A set of ids in the extractor dies with its process.
    let in_a_life = || TwoPages { author: Author::OnceInALife(Arc::default()), ..TwoPages::default() };
    let wrong: [(&(dyn Fn() -> TwoPages + Sync), _, _); 3] = [
        (&stops_early, Broken::Lost, "1 records of issues, and 2 were expected"),
        (&with_each, Broken::Duplicated, "2 records of users, and 1 were expected"),
        (&in_a_life, Broken::Duplicated, "2 records of users, and 1 were expected"),
    ];
    for (source, kind, what) in wrong {
        let report = explore.clone().states(5_000).run(|_| source());
        let failure = report.failure.as_ref().unwrap_or_else(|| panic!("nobody noticed: {what}\n{report}"));
        assert_eq!(failure.violation.kind, kind);
        assert!(failure.violation.what.ends_with(what), "{failure:?}");
        let again = explore.replay(&failure.schedule.to_string(), |_| source()).unwrap();
        assert_eq!(again.failure.as_ref().map(|again| &again.violation), Some(&failure.violation));
        let unasked = Explore::new().states(300).run(|_| source());
        assert!(unasked.failure.is_none(), "{unasked}");
    }
}

#[test]
fn a_source_that_always_fails_is_found_with_what_it_says() {
    let report = Explore::new().states(50).run(|_| TwoPages { refuses: true, ..TwoPages::default() });
    let Violation { kind, what, .. } = report.failure.unwrap().violation;
    assert_eq!(kind, Broken::Stuck);
    assert!(
        what.starts_with("it did not end within 400 lives")
            && what.contains("knows no parameter updated_sinse"),
        "{what}"
    );
}
