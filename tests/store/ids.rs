//! Ids are compared as a whole.
//!
//! Two names with the same 64-bit XXH3 are two names: a hash tells where to look, and nothing more.

use highwater::record::Attachment;
use highwater::testing::SimDisk;
use highwater::{Store, VirtualClock};

use crate::attachment_loop::stage;

/// Their XXH3 of 64 bits is the same.
const TWINS: [&str; 2] = ["cgacponhdmlhpbcg", "ihganlcdfnnmgpck"];

fn store(disk: &SimDisk) -> Store {
    let clock = VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap());
    Store::options().batch_items(1).clock(clock).open_on(Box::new(disk.clone()), "state.redb").unwrap()
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
    stage(&run, "issues", named.iter().cloned());
    assert_eq!(run.attachment_counts().unwrap().queued, 6);
    let parents: Vec<usize> =
        ["P", one, other, "a", "ab", "b"].map(|parent| run.attachments_of(parent).unwrap().len()).into();
    assert_eq!(parents, [2, 1, 1, 1, 1, 0]);
    let mut seen = Vec::new();
    for queued in run.attachments() {
        let queued = queued.unwrap();
        seen.push((queued.id.clone(), queued.parent_id.clone()));
        let id = format!("upload {}", seen.len());
        queued.acknowledge(id).unwrap();
    }
    assert_eq!(seen, named.map(|named| (named.id, named.parent_id)));
    run.finish().unwrap();

    // The next run knows each of them.
    let run = unit.begin().unwrap();
    stage(&run, "issues", [attachment(one, "P"), attachment(other, "P"), attachment("new", "P")]);
    assert_eq!(run.attachment_counts().unwrap().queued, 1);
}
