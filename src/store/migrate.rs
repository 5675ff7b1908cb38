//! Converts a store of format 1 to format 2.
//!
//! Format 2 adds tables, which are empty in an old store, and changes no row. It stores the bytes of a batch in pieces;
//! those that format 1 stored whole stay so until they are confirmed. `attachment_ids` holds by whole ids
//! what `seen_attachments` held by hashes: a row moves over when its attachment is named again, and until then it is
//! found by the hash. So opening a store moves none of these rows, however many there are. `used_ids` gets the
//! artifact ids of what the unfinished runs have in flight; their number is limited. If a checkpoint restored a run
//! id as a hash, the whole id is stored now if the current run or the ledger has it; otherwise, and for events, it is
//! stored when it is named again.
//!
//! This step is one transaction: if it is killed, the store still has format 1, and the next opening starts over. The
//! dump reads a store of format 1 as it is.

use crate::error::Result;

use super::digest::KnownId;
use super::rows::{FormatRow, Key, LEDGER, META, RUN_IDS, RUNS, RunIdRow, UNITS, number_of, run_key};
use super::tables::{Change, FORMAT, FORMAT_KEY, Rows, Tables};
use super::used_ids::take_those_of_rows;

/// Brings a store to the newest format.
///
/// # Errors
/// `Corrupt`, `Io`; the store still has its old format.
pub(super) fn migrate(tables: &Tables) -> Result<()> {
    let key = Key::name(FORMAT_KEY);
    let row = tables.view(|rows| rows.need(&META, &key))?;
    if row.format >= FORMAT {
        return Ok(());
    }
    tables.change(|change| {
        for (_, unit) in change.all(&UNITS, &Key::name(""))? {
            if let Some(no) = unit.run {
                let run = run_key(unit.no, no);
                let started_at = change.need(&RUNS, &run)?.started_at;
                take_those_of_rows(change, &run, started_at)?;
            }
            name_runs(change, unit.no)?;
        }
        change.put(&META, &key, &FormatRow { format: FORMAT, ..row })
    })
}

/// Stores the whole ids of a unit's runs if other rows have them.
fn name_runs(change: &Change<'_>, unit: u64) -> Result<()> {
    let prefix = Key::unit(unit);
    for (tail, row) in change.all(&RUN_IDS, &prefix)? {
        if row.id.whole().is_some() {
            continue;
        }
        let number = number_of(&tail)
            .map_err(|error| change.tables().damaged(RUN_IDS.name, &prefix, error.to_string()))?;
        let run = run_key(unit, row.run);
        let id = match change.get(&RUNS, &run)? {
            Some(run) => Some(run.id),
            None => change.get(&LEDGER, &run)?.map(|entry| entry.id),
        };
        if let Some(id) = id.filter(|id| row.id.is(id, number)) {
            let row = RunIdRow { id: KnownId::Whole(id), ..row };
            change.put(&RUN_IDS, &prefix.clone().and_number(number), &row)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::super::Store;
    use super::super::backend::redb::Syncs;
    use super::super::conversation::{Accepted, Incoming};
    use super::super::rows::{ALL_TABLES, EVENTS, SEEN_BY_HASH};
    use super::*;
    use crate::artifact::decompress;
    use crate::model::{Phase, RunId, Step};

    /// How a fixture's store knows run ids and events, the oldest first.
    fn known(tables: &Tables) -> (Vec<KnownId>, Vec<KnownId>) {
        let known = tables.view(|rows| {
            let mut runs: Vec<_> =
                rows.all(&RUN_IDS, &Key::name(""))?.into_iter().map(|(_, row)| row).collect();
            runs.sort_by_key(|row| row.run);
            let mut events: Vec<_> =
                rows.all(&EVENTS, &Key::name(""))?.into_iter().map(|(_, row)| row).collect();
            events.sort_by_key(|row| row.order);
            let events = events.into_iter().map(|row| row.identity).collect();
            Ok((runs.into_iter().map(|row| row.id).collect(), events))
        });
        known.unwrap()
    }

    /// A store that version 0.1.0 made from a checkpoint, which named every id by 64 bits.
    #[test]
    fn what_format_1_knows_by_64_bits_becomes_whole_as_soon_as_the_whole_is_known() {
        let fixture =
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/format-1/data-restored-sealed.redb.gz");
        let mut bytes = Vec::new();
        decompress(&std::fs::read(fixture).unwrap(), 64 << 20, &mut bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        std::fs::write(&path, bytes).unwrap();
        let before = known(&Tables::open(&path, 1 << 20, &Syncs::new(false)).unwrap());
        assert_eq!(before, (vec![KnownId::Number; 2], vec![KnownId::Number; 2]));

        // The current run is `second`; the ledger has `first`.
        let store = Store::open(&path).unwrap();
        let whole = |ids: &[&str]| ids.iter().map(|id| KnownId::Whole((*id).to_owned())).collect::<Vec<_>>();
        let unit = store.sync_unit("acme/files").unwrap();
        let tables = &unit.inner.tables;
        assert_eq!(known(tables), (whole(&["first", "second"]), before.1));
        let identity = r#"["EXTRACTION_DATA_START","second","DATA-1","DATA-1"]"#;
        let event = Incoming {
            identity: identity.to_owned(),
            has_ids: true,
            run_id: Some(RunId::new("second").unwrap()),
            phase: Phase::Data,
            step: Step::Start,
        };
        let (number, message) = match unit.accept(&event, false, None).unwrap() {
            Accepted::Replay(run, message) => {
                (tables.view(|rows| rows.need(&RUNS, &run.run_key())).unwrap().event, message)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((number, message.no), (Some(super::super::digest::name_hash(identity)), 7));
        let events = vec![KnownId::Number, KnownId::Whole(identity.to_owned())];
        assert_eq!(known(tables), (whole(&["first", "second"]), events));
    }

    /// The tables of which no store in a folder of `tests/fixtures` has a row.
    fn without_a_row(format: &str) -> BTreeSet<&'static str> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
        let dir = tempfile::tempdir().unwrap();
        let mut without: BTreeSet<&str> = ALL_TABLES.iter().copied().collect();
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_none_or(|extension| extension != "gz") {
                continue;
            }
            let mut bytes = Vec::new();
            decompress(&std::fs::read(&file).unwrap(), 64 << 20, &mut bytes).unwrap();
            let path = dir.path().join("state.redb");
            std::fs::write(&path, bytes).unwrap();
            let tables = Tables::open(&path, 1 << 20, &Syncs::new(false)).unwrap();
            let view = tables.look_now().unwrap();
            without.retain(|table| {
                let mut is_empty = true;
                view.scan_raw(table, &Key::name(""), |_, _| {
                    is_empty = false;
                    Ok(())
                })
                .unwrap();
                is_empty
            });
        }
        without
    }

    /// The fixture of the newest format, which another process wrote, has a row of each table, except of the one
    /// table that only format 1 writes.
    #[test]
    fn a_row_of_each_table_stands_in_a_fixture() {
        assert_eq!(without_a_row("format-2"), [SEEN_BY_HASH.name].into());
        assert!(!without_a_row("format-1").contains(SEEN_BY_HASH.name));
    }
}
