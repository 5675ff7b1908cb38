//! The file of a store stays small, however many batches pass through it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use highwater::{Disk, Level, Page, Record, Store};
use serde_json::json;

/// A disk in memory that keeps only what is on it now.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Disk for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        out.copy_from_slice(&self.0.lock().unwrap()[at..at + out.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        self.0.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Batches of a run.
const BATCHES: u32 = 10_000;
/// Batches that are not acknowledged at a time, and bytes of each.
const OPEN: usize = 8;
const BATCH_BYTES: u64 = 5_000;
/// Bytes of an artifact id.
const ID_BYTES: u64 = 32;

/// The most bytes that the file has, as `docs/benchmarks.md` says: for a run of so many batches so far.
fn bound(batches: u32) -> u64 {
    768 * 1024 + 6 * OPEN as u64 * BATCH_BYTES + 3 * u64::from(batches) * (ID_BYTES + 40)
}

/// A run of so many batches. Returns the size of the file after each tenth of them.
fn run(store: &Store, disk: &Memory, batches: u32) -> Vec<(u32, u64)> {
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let text = "x".repeat(1_170);
    let fetch = |at: Option<u32>| -> highwater::Result<Page<u32>> {
        let next = at.unwrap_or(0) + 1;
        let mut page = if next < batches { Page::more(next) } else { Page::last() };
        for number in 0..4 {
            page.push("issues", Record::new(format!("I-{next}-{number}"), &json!({ "text": text }))?);
        }
        Ok(page)
    };
    // In no order, as random ids are: so most room is lost between them.
    let id = |number: u32| {
        let mixed = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        format!("{mixed:032x}")
    };
    let (mut sizes, mut open) = (Vec::new(), VecDeque::new());
    for (number, batch) in (1..).zip(run.batches("issues", fetch)) {
        let batch = batch.unwrap();
        let bytes = batch.bytes().unwrap().len() as u64;
        assert!(bytes <= BATCH_BYTES && bytes > BATCH_BYTES * 9 / 10, "{bytes}");
        open.push_back((id(number), batch));
        if open.len() == OPEN {
            let (id, batch) = open.pop_front().unwrap();
            batch.acknowledge(id).unwrap();
        }
        if number.is_multiple_of(batches / 10) {
            sizes.push((number, disk.len().unwrap()));
        }
    }
    for (id, batch) in open {
        batch.acknowledge(id).unwrap();
    }
    run.finish().unwrap();
    sizes
}

#[test]
fn the_file_has_room_for_open_batches_and_the_used_ids_of_one_run_however_many_batches_pass() {
    let disk = Memory::default();
    let options = Store::options().batch_items(4).level(Level::new(0).unwrap());
    let store = options.open_on(Box::new(disk.clone()), "state.redb").unwrap();
    let sizes = run(&store, &disk, BATCHES);
    assert_eq!(sizes.len(), 10);
    for (number, size) in &sizes {
        assert!(*size <= bound(*number), "{size} bytes after {number} batches");
    }
    let size = disk.len().unwrap();
    assert!(
        size > bound(0),
        "without the ids of the run, which are all that it keeps, the bound would be too low"
    );
    // The next run uses that room again.
    run(&store, &disk, BATCHES / 10);
    assert_eq!(disk.len().unwrap(), size);
}
