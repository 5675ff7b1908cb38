//! Ids are compared whole, and an artifact id is used once in a run.
//!
//! Two names whose XXH3 of 64 bits is the same are two: a hash says where to look, and nothing more.

use std::time::Duration;

use highwater::record::Attachment;
use highwater::testing::SimDisk;
use highwater::{Error, ErrorKind, Page, Record, Run, Store, VirtualClock};

/// Their XXH3 of 64 bits is the same.
const TWINS: [&str; 2] = ["cgacponhdmlhpbcg", "ihganlcdfnnmgpck"];

fn store(disk: &SimDisk) -> Store {
    let clock = VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap());
    Store::options().batch_items(1).clock(clock).open_on(Box::new(disk.clone()), "state.redb").unwrap()
}

/// Stages a page of attachments as a stream of its own.
fn stage(run: &Run, stream: &str, attachments: &[Attachment]) {
    let mut page = Page::<u8>::last();
    for attachment in attachments {
        page.push("attachments", attachment.to_record().unwrap());
    }
    let mut page = Some(page);
    for batch in run.batches(stream, |_: Option<u8>| page.take().ok_or("there is one page")) {
        let batch = batch.unwrap();
        let id = batch.key().to_string();
        batch.acknowledge(id).unwrap();
    }
}

fn attachment(id: &str, parent: &str) -> Attachment {
    Attachment::new(id, format!("https://files.example/{id}"), "a.png", parent)
}

#[test]
fn two_attachments_with_one_hash_are_two() {
    assert_eq!(
        twox_hash::XxHash3_64::oneshot(TWINS[0].as_bytes()),
        twox_hash::XxHash3_64::oneshot(TWINS[1].as_bytes())
    );
    let disk = SimDisk::new();
    let store = store(&disk);
    let unit = store.sync_unit("acme/files").unwrap();
    let [one, other] = TWINS;
    let named = [
        // As ids, as parents, and where a boundary between the two would be the only difference.
        attachment(one, "P"),
        attachment(other, "P"),
        attachment("A", one),
        attachment("A", other),
        attachment("bc", "a"),
        attachment("c", "ab"),
    ];
    let run = unit.begin().unwrap();
    stage(&run, "issues", &named);
    assert_eq!(run.attachment_counts().unwrap().queued, 6);
    let parents: Vec<usize> =
        ["P", one, other, "a", "ab", "b"].map(|parent| run.attachments_of(parent).unwrap().len()).into();
    assert_eq!(parents, [2, 1, 1, 1, 1, 0]);
    let mut seen = Vec::new();
    for queued in run.attachments() {
        let queued = queued.unwrap();
        seen.push((queued.id.clone(), queued.parent_id.clone()));
        queued.acknowledge().unwrap();
    }
    assert_eq!(seen, named.map(|named| (named.id, named.parent_id)));
    run.finish().unwrap();

    // The next run knows each of them.
    let run = unit.begin().unwrap();
    stage(&run, "issues", &[attachment(one, "P"), attachment(other, "P"), attachment("new", "P")]);
    assert_eq!(run.attachment_counts().unwrap().queued, 1);
}

/// Stages one issue, and takes it as a batch.
fn batch(run: &Run, stream: &str) -> highwater::Batch {
    let page = |_: Option<u8>| -> highwater::Result<Page<u8>> {
        Ok(Page::last().record("issues", Record::new(stream, &serde_json::json!({}))?))
    };
    run.batches(stream, page).next().unwrap().unwrap()
}

#[track_caller]
fn is_refused(result: highwater::Result<()>, by: &str) {
    match result {
        Err(error @ Error::ArtifactIdUsed { .. }) => {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            let text = error.to_string();
            assert!(text.contains("artifact-1") && text.contains(by), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_artifact_id_is_used_once_in_a_run_whatever_it_was_used_for() {
    let disk = SimDisk::new();
    let open = store(&disk);
    let unit = open.sync_unit("acme/files").unwrap();
    let run = unit.begin().unwrap();
    stage(&run, "files", &[attachment("A1", "P"), attachment("A2", "P")]);
    let first = batch(&run, "one");
    first.uploaded("artifact-1").unwrap();
    // Said again of the same batch, it is the same.
    first.uploaded("artifact-1").unwrap();
    let first_seq = first.key().seq;
    let second = batch(&run, "two");
    is_refused(second.uploaded("artifact-1"), &format!("batch {first_seq}"));
    assert_eq!(second.artifact_id(), None);
    let file = run.attachments().next().unwrap().unwrap();
    is_refused(file.uploaded("artifact-1"), &format!("batch {first_seq}"));
    file.uploaded("file-1").unwrap();
    // Nothing was stored of what was refused.
    second.uploaded("artifact-2").unwrap();
    first.acknowledge("artifact-1").unwrap();
    drop((second, file, run, unit, open));

    // Nor is it forgotten by a new life, though its batch is gone.
    let disk = disk.image().disk();
    let open = store(&disk);
    let unit = open.sync_unit("acme/files").unwrap();
    let run = unit.begin().unwrap();
    let third = batch(&run, "three");
    let third = if third.artifact_id().is_some() {
        third.acknowledge("artifact-2").unwrap();
        batch(&run, "three")
    } else {
        third
    };
    is_refused(third.uploaded("artifact-1"), &format!("batch {first_seq}"));
    third.acknowledge("artifact-3").unwrap();
    for queued in run.attachments() {
        let queued = queued.unwrap();
        if queued.artifact_id().is_none() {
            is_refused(queued.uploaded("artifact-1"), "batch");
        }
        queued.retry_later("busy", Duration::ZERO).unwrap();
    }
    for queued in run.attachments() {
        queued.unwrap().acknowledge().unwrap();
    }
    run.finish().unwrap();

    // It goes with its run: what a platform gives in the next one is compared with the next one's.
    let run = unit.begin().unwrap();
    let next = batch(&run, "one");
    next.uploaded("artifact-1").unwrap();
    next.acknowledge("artifact-1").unwrap();
    run.finish().unwrap();
}
