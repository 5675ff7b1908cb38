//! The most that each stream has read in a finished run, `unit, stream -> pages, records`, and a warning if it reads
//! far more.
//!
//! A source may never end in ways that its cursors do not show: a listing that grows as it is read, or a filter that
//! is not applied. That is not an error, because the source may really have that much. But if a stream reads far more
//! than in any finished run, `tracing` warns of it once in an invocation, and the dump shows it as long as the run is
//! open.

use std::collections::BTreeMap;

use tracing::warn;

use crate::error::Result;
use crate::model::StreamName;

use super::rows::{Key, MOST_READ, MostReadRow, STREAMS, StreamRow, name_of};
use super::run_handle::Run;
use super::tables::{Change, Rows};

/// How many times the earlier maximum counts as far more.
const FACTOR: u64 = 10;
/// Fewer pages, or records, than these never count as far more.
const PAGES_MIN: u64 = 1_000;
const ITEMS_MIN: u64 = 10_000;
/// Bytes of stream names and counts in a checkpoint: streams beyond that are left out, and not warned of.
const CHECKPOINT_BYTES: usize = 10_000;
const FIGURES_BYTES: usize = 20;

/// Whether this is far more than `most`, the most that a stream has read in a run before.
fn is_far_more(read: &MostReadRow, most: &MostReadRow) -> bool {
    let exceeds = |read: u64, most: u64, min: u64| read >= min && read / FACTOR > most;
    exceeds(read.pages, most.pages, PAGES_MIN) || exceeds(read.items, most.items, ITEMS_MIN)
}

/// The most that a stream of a unit has read in a finished run, if it has now read far more.
pub(super) fn far_more_than(
    rows: &impl Rows,
    unit: u64,
    stream: &str,
    read: &StreamRow,
) -> Result<Option<MostReadRow>> {
    let read = MostReadRow { pages: read.pages, items: read.items };
    let most = rows.get(&MOST_READ, &Key::unit(unit).and_name(stream))?;
    Ok(most.filter(|most| is_far_more(&read, most)))
}

/// Warns of a stream that has read far more than in any finished run. Returns whether it did.
pub(super) fn tell(run: &Run, stream: &StreamName) -> Result<bool> {
    let stream = stream.as_str();
    let found = run.look(|rows, _| {
        let Some(read) = rows.get(&STREAMS, &run.run_key().and_name(stream))? else { return Ok(None) };
        Ok(far_more_than(rows, run.unit_no, stream, &read)?.map(|most| (read, most)))
    })?;
    let Some((read, most)) = found else { return Ok(false) };
    warn!(
            target: "highwater",
        stream,
        pages = read.pages,
        items = read.items,
        pages_most = most.pages,
        items_most = most.items,
        "stream reads far more than in any finished run before"
    );
    Ok(true)
}

/// Records what a stream has read in a run that is finished.
pub(super) fn keep(change: &Change<'_>, unit: u64, stream: &str, read: &StreamRow) -> Result<()> {
    let key = Key::unit(unit).and_name(stream);
    let before = change.get(&MOST_READ, &key)?;
    let most = before.clone().unwrap_or_default();
    let row = MostReadRow { pages: read.pages.max(most.pages), items: read.items.max(most.items) };
    if before.as_ref() == Some(&row) { Ok(()) } else { change.put(&MOST_READ, &key, &row) }
}

/// For a checkpoint: pages and records by stream, of as many streams as there is room for.
pub(super) fn part(rows: &impl Rows, unit: u64) -> Result<BTreeMap<String, (u64, u64)>> {
    let mut part = BTreeMap::new();
    let mut left = CHECKPOINT_BYTES;
    let prefix = Key::unit(unit);
    rows.scan(&MOST_READ, &prefix, &prefix, |name, row| {
        // The check finds damaged names.
        let Ok(name) = name_of(name) else { return Ok(true) };
        left = left.saturating_sub(name.len() + FIGURES_BYTES);
        if left > 0 {
            part.insert(name.to_owned(), (row.pages, row.items));
        }
        Ok(left > 0)
    })?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::super::open::SyncUnit;
    use super::super::{Page, Store};
    use super::*;
    use crate::record::Record;

    fn row(pages: u64, items: u64) -> MostReadRow {
        MostReadRow { pages, items }
    }

    #[test]
    fn ten_times_as_much_is_far_more_unless_it_is_little() {
        let cases = [
            (row(10, 20_000), row(10, 1_999), true),
            (row(10, 20_000), row(10, 2_000), false),
            (row(10, 9_999), row(1, 1), false),
            (row(10, 10_000), row(0, 0), true),
            // A source that returns empty pages forever.
            (row(1_000, 0), row(90, 0), true),
            (row(1_000, 0), row(100, 0), false),
            (row(999, 0), row(1, 0), false),
        ];
        for (read, most, expected) in cases {
            assert_eq!(is_far_more(&read, &most), expected, "{read:?} {most:?}");
        }
    }

    fn unit(store: &Store) -> SyncUnit {
        store.sync_unit("acme/tickets").unwrap()
    }

    /// A run that reads this many records, in one page.
    fn read(unit: &SyncUnit, items: u32) -> Run {
        let run = unit.begin().unwrap();
        let fetch = |_: Option<u8>| {
            let mut page = Page::last();
            for item in 0..items {
                page.push("issues", Record::new(item.to_string(), &serde_json::json!({}))?);
            }
            Ok::<_, crate::error::Error>(page)
        };
        for batch in run.batches("issues", fetch) {
            let batch = batch.unwrap();
            let id = batch.key().to_string();
            batch.acknowledge(id).unwrap();
        }
        run
    }

    #[test]
    fn the_most_of_any_finished_run_is_what_a_run_is_compared_with_also_after_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state.redb")).unwrap();
        let issues = StreamName::new("issues").unwrap();
        let run = read(&unit(&store), 30_000);
        assert!(!tell(&run, &issues).unwrap(), "there is no run before it");
        // An abandoned run proves nothing.
        assert!(unit(&store).abandon().unwrap());
        for items in [300, 1_000, 500] {
            read(&unit(&store), items).finish().unwrap();
        }
        let run = read(&unit(&store), 10_009);
        assert!(!tell(&run, &issues).unwrap());
        assert!(unit(&store).abandon().unwrap());
        let run = read(&unit(&store), 10_010);
        assert!(tell(&run, &issues).unwrap());
        let checkpoint = run.checkpoint("token", run.position().unwrap().as_ref(), u64::MAX).unwrap();
        let there = Store::open(dir.path().join("there.redb")).unwrap();
        unit(&there).restore(&checkpoint, &[]).unwrap();
        let run = unit(&there).newest_run().unwrap().unwrap();
        assert!(tell(&run, &issues).unwrap());
        assert!(!tell(&run, &StreamName::new("issue").unwrap()).unwrap());
        unit(&there).delete().unwrap();
        assert!(!tell(&read(&unit(&there), 10_010), &issues).unwrap());
    }

    #[test]
    fn a_checkpoint_has_as_many_streams_as_fit() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state.redb")).unwrap();
        let read = StreamRow {
            phase: crate::model::Phase::Data,
            cursor: None,
            exhausted: true,
            pages: 3,
            items: 7,
            bookmark: None,
            pace: super::super::rows::Pace::default(),
        };
        let part = store.inner.tables.change(|change| {
            for number in 0..1_000 {
                keep(change, 1, &format!("stream-{number:04}-{}", "x".repeat(68)), &read)?;
            }
            part(change, 1)
        });
        let part = part.unwrap();
        assert_eq!(part.len(), 99);
        assert!(part.values().all(|figures| *figures == (3, 7)));
    }
}
