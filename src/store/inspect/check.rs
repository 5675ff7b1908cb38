//! Whether a store is undamaged: its pages, its rows, and whether its rows agree with each other.
//!
//! First every page is checked against its checksum. If one does not match, nothing that is read can be trusted, so
//! that is the only finding. Then every row of every table is decoded. Then, unit by unit, everything that two rows
//! both know is compared. All inconsistencies are reported, not only the first.
//!
//! These must hold at every moment, whether batches are acknowledged by a loop or announced by sealed messages:
//!
//! - `read = batched + open`, and the open lines are those in the chunks;
//! - `batched = confirmed + staged + uploaded`, and `confirmed = announced +` the batches that are confirmed and in
//!   no message;
//! - a batch has its bytes exactly while it is staged or uploaded, and they have as many lines as it says;
//! - the message that announces a batch is sealed and not yet delivered, and its count of batches is right;
//! - an attachment that was queued is settled, given up, or in the queue under its number;
//! - the newest event of a run, the message that answers it and the run agree;
//! - the watermark is that of the last finished run, and a run that is over has left its row in the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;

use serde::Serialize;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};
use crate::model::{LEDGER_RUNS_MAX, Micros, RunId, StreamName, SyncUnitId, ValueKey};
use crate::store::codec::DecodeError;
use crate::store::digest::{KnownId, number_of_id};
#[cfg(feature = "testing")]
use crate::store::open::Store;
use crate::store::rows::{
    ACTS, ATTACHMENTS, BATCHES, BOOKMARKS, CHILD_IDS, CHILD_STREAMS, CHILDREN, CHUNKS, DEATHS, EDGE,
    EDGE_COUNTS, EDGE_OF, EVENTS, EventRow, FAILED, FILES, FINDINGS, FormatRow, Json, Key, LAST_CURSORS,
    LEDGER, LedgerRow, MESSAGES, META, MOST_READ, MessageFate, MessageKind, MessageRow, NEXT_CURSORS, ONCE,
    ONCE_COUNTS, PAST, PAYLOADS, POSITIONS, QUEUES, REJECTED, REJECTED_COUNTS, REJECTED_IN_RUN, REQUEUED,
    REWOUND, RUN_IDS, RUNS, Row, RunIdRow, RunRow, RunStatus, SEEN, SEEN_BY_HASH, STANDING_BOOKMARKS,
    STANDINGS, STREAMS, TYPES, Table, UNITS, USED, USED_NEWEST, UnitRow, VALUES, name_of, run_key,
};
use crate::store::tables::View;

use super::edge;
use super::once;
use super::rejected;
use super::snapshot::{Pages, Snapshot, Source};

/// What a [`check`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CheckReport {
    /// How the store was read; `None` if its pages are too damaged for that.
    pub source: Option<Source>,
    /// Sync units checked.
    pub units: u64,
    /// Rows read, of every table.
    pub rows: u64,
    /// Every inconsistency; if there are none, the store is undamaged.
    pub findings: Vec<CheckFinding>,
}

/// An inconsistency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckFinding {
    /// The table, unless it is the file as a whole.
    pub table: Option<&'static str>,
    /// The sync unit, if the row is known to belong to one.
    pub sync_unit: Option<String>,
    /// What is inconsistent.
    pub problem: String,
}

/// Checks a store, read like [`Snapshot::open`] does: every page, every row, and whether the rows agree with each
/// other.
///
/// A damaged store is not an error but a report with findings.
///
/// # Errors
/// `Io`, `NotAStore`, `NewerFormat` or `InUse`, like [`Snapshot::open`].
pub fn check(path: impl AsRef<Path>) -> Result<CheckReport> {
    let damaged = |source, problem| {
        let findings = vec![CheckFinding { table: None, sync_unit: None, problem }];
        CheckReport { source, units: 0, rows: 0, findings }
    };
    let mut snapshot = match Snapshot::open_with(path.as_ref(), Pages::Unverified) {
        Ok(snapshot) => snapshot,
        Err(Error::Corrupt { reason, .. }) => return Ok(damaged(None, reason)),
        Err(error) => return Err(error),
    };
    // To open any other file verified it already: it was not closed, so that it had to be recovered.
    if snapshot.source() == Source::Closed
        && let Some(problem) = snapshot.verify()?
    {
        return Ok(damaged(Some(snapshot.source()), problem));
    }
    let (units, rows, findings) = snapshot.look(check_rows)?;
    Ok(CheckReport { source: Some(snapshot.source()), units, rows, findings })
}

/// Checks every row, and whether the rows agree; returns the number of units and of rows, and the findings.
fn check_rows(view: &View<'_>) -> Result<(u64, u64, Vec<CheckFinding>)> {
    let (of_runs, untold) = (BTreeMap::new(), BTreeMap::new());
    let mut check = Check { view, rows: 0, findings: Vec::new(), of_runs, untold };
    let units = check.tables()?;
    for (id, unit) in &units {
        check.unit(id, unit)?;
    }
    Ok((units.len() as u64, check.rows, check.findings))
}

#[cfg(feature = "testing")]
impl Store {
    /// The first inconsistency: of the pages, or of the rows.
    pub(crate) fn check(&mut self) -> Result<Option<String>> {
        let problem = match std::sync::Arc::get_mut(&mut self.inner) {
            Some(inner) => inner.tables.verify()?,
            None => Some("it is in use, so its pages cannot be checked"),
        };
        if let Some(problem) = problem {
            return Ok(Some(problem.to_owned()));
        }
        let (_, _, findings) = self.inner.tables.view(check_rows)?;
        Ok(findings
            .first()
            .map(|finding| format!("{}: {}", finding.table.unwrap_or("the file"), finding.problem)))
    }
}

pub(super) struct Check<'a> {
    pub(super) view: &'a View<'a>,
    rows: u64,
    findings: Vec<CheckFinding>,
    /// Rows of the tables that only an open run has rows in, by table, unit number and run number.
    pub(super) of_runs: BTreeMap<(&'static str, u64, u64), u64>,
    /// Attachments without a line, by unit number and run number.
    pub(super) untold: BTreeMap<(u64, u64), u64>,
}

/// The ids of the units, by their numbers.
type Units = BTreeMap<u64, String>;

/// The rows of one table of one unit, by the end of their keys.
pub(super) type Of<K, R> = BTreeMap<K, R>;

impl Check<'_> {
    pub(super) fn found(&mut self, table: &'static str, unit: Option<&str>, problem: impl Into<String>) {
        self.findings.push(CheckFinding {
            table: Some(table),
            sync_unit: unit.map(str::to_owned),
            problem: problem.into(),
        });
    }

    /// Decodes every row of every table; returns the units.
    fn tables(&mut self) -> Result<Vec<(String, UnitRow)>> {
        let mut format: Option<FormatRow> = None;
        self.table(&META, |_, _, row| {
            format = Some(row);
            Ok(())
        })?;
        let mut units: Vec<(String, UnitRow)> = Vec::new();
        self.table(&UNITS, |_, key, row| {
            let id = name_of(key)?;
            SyncUnitId::new(id).map_err(|error| DecodeError::Damaged(error.to_string()))?;
            units.push((id.to_owned(), row));
            Ok(())
        })?;
        let mut ids = Units::new();
        for (id, unit) in &units {
            if ids.insert(unit.no, id.clone()).is_some() {
                self.found(UNITS.name, Some(id), format!("another unit has its number {} too", unit.no));
            }
            if format.as_ref().is_some_and(|format| unit.no >= format.next_unit) {
                self.found(UNITS.name, Some(id), format!("its number {} was never given out", unit.no));
            }
        }
        self.owned(&RUNS, &ids)?;
        self.owned(&RUN_IDS, &ids)?;
        self.of_open_run(&STREAMS, &ids)?;
        self.of_open_run(&CHILDREN, &ids)?;
        self.of_open_run(&CHILD_IDS, &ids)?;
        self.of_open_run(&CHILD_STREAMS, &ids)?;
        self.of_open_run(&TYPES, &ids)?;
        self.of_open_run(&CHUNKS, &ids)?;
        self.of_open_run(&BATCHES, &ids)?;
        self.of_open_run(&PAYLOADS, &ids)?;
        self.owned(&BOOKMARKS, &ids)?;
        self.owned(&VALUES, &ids)?;
        self.owned(&EVENTS, &ids)?;
        self.owned(&MESSAGES, &ids)?;
        self.owned(&LEDGER, &ids)?;
        self.of_open_run(&FINDINGS, &ids)?;
        self.owned(&REJECTED, &ids)?;
        self.of_open_run(&REJECTED_IN_RUN, &ids)?;
        self.owned(&REJECTED_COUNTS, &ids)?;
        self.of_open_run(&ONCE, &ids)?;
        self.owned(&ONCE_COUNTS, &ids)?;
        self.owned(&EDGE, &ids)?;
        self.owned(&EDGE_OF, &ids)?;
        self.owned(&EDGE_COUNTS, &ids)?;
        self.owned(&POSITIONS, &ids)?;
        self.of_open_run(&QUEUES, &ids)?;
        self.queued(&ids)?;
        self.owned(&SEEN, &ids)?;
        self.owned(&SEEN_BY_HASH, &ids)?;
        self.owned(&MOST_READ, &ids)?;
        self.table(&PAST, |_, _, _| Ok(()))?;
        self.of_open_run(&FILES, &ids)?;
        self.owned(&FAILED, &ids)?;
        self.owned(&REQUEUED, &ids)?;
        self.owned(&USED, &ids)?;
        self.owned(&USED_NEWEST, &ids)?;
        self.owned(&STANDINGS, &ids)?;
        self.owned(&STANDING_BOOKMARKS, &ids)?;
        self.owned(&REWOUND, &ids)?;
        self.owned(&LAST_CURSORS, &ids)?;
        self.owned(&NEXT_CURSORS, &ids)?;
        self.table(&ACTS, |_, _, _| Ok(()))?;
        self.owned(&DEATHS, &ids)?;
        Ok(units)
    }

    /// Decodes a table of rows that each belong to a unit.
    fn owned<R: Row>(&mut self, table: &Table<R>, units: &Units) -> Result<()> {
        self.each_owned(table, units, |_, _, _, _| Ok(()))
    }

    /// Decodes a table in which only the open run of a unit has rows, and counts those of each run.
    fn of_open_run<R: Row>(&mut self, table: &Table<R>, units: &Units) -> Result<()> {
        self.each_owned(table, units, |check, unit, tail, _| {
            let (run, _) = number_first(tail)?;
            *check.of_runs.entry((table.name, unit, run)).or_default() += 1;
            Ok(())
        })
    }

    /// Decodes the queues of attachments, which may be long: each row is read once, and none is kept.
    fn queued(&mut self, units: &Units) -> Result<()> {
        self.each_owned(&ATTACHMENTS, units, |check, unit, tail, row| {
            let (run, number) = number_first(tail)?;
            *check.of_runs.entry((ATTACHMENTS.name, unit, run)).or_default() += 1;
            if row.json.is_empty() {
                *check.untold.entry((unit, run)).or_default() += 1;
            } else if !is_json(&row.json) {
                let problem = format!("attachment {}: its line is not JSON", shown(number));
                check.found(ATTACHMENTS.name, units.get(&unit).map(String::as_str), problem);
            }
            Ok(())
        })
    }

    /// Decodes a table of rows that each belong to a unit, with the number of the unit and the rest of the key.
    fn each_owned<R: Row>(
        &mut self,
        table: &Table<R>,
        units: &Units,
        mut each: impl FnMut(&mut Self, u64, &[u8], R) -> Result<(), DecodeError>,
    ) -> Result<()> {
        self.table(table, |check, key, row| {
            let (unit, tail) = number_first(key)?;
            if !units.contains_key(&unit) {
                check.found(
                    table.name,
                    None,
                    format!("a row belongs to unit number {unit}, which does not exist"),
                );
            }
            each(check, unit, tail, row)
        })
    }

    /// Decodes every row of a table. A newer format is an error, damage is a finding.
    fn table<R: Row>(
        &mut self,
        table: &Table<R>,
        mut each: impl FnMut(&mut Self, &[u8], R) -> Result<(), DecodeError>,
    ) -> Result<()> {
        let view = self.view;
        let scanned = view.scan_bytes(table, &Key::name(""), |key, bytes| {
            self.rows += 1;
            match R::from_bytes(bytes).and_then(|row| each(self, key, row)) {
                Ok(()) => Ok(()),
                Err(DecodeError::Damaged(reason)) => {
                    self.found(table.name, None, format!("key {}: {reason}", shown(key)));
                    Ok(())
                }
                Err(DecodeError::Newer { found, supported }) => Err(Error::NewerFormat {
                    what: format!("table {}, key {}", table.name, shown(key)),
                    found: found.into(),
                    supported: supported.into(),
                }),
            }
        });
        match scanned {
            Err(Error::Corrupt { reason, .. }) => {
                self.found(table.name, None, reason);
                Ok(())
            }
            scanned => scanned,
        }
    }

    /// The rows of a table under a key. Rows that do not decode already have a finding, and are left out.
    pub(super) fn rows<R: Row, K: Ord>(
        &self,
        table: &Table<R>,
        prefix: &Key,
        key_of: impl Fn(&[u8]) -> Result<K, DecodeError>,
    ) -> Result<Of<K, R>> {
        let mut rows = BTreeMap::new();
        let scanned = self.view.scan_bytes(table, prefix, |tail, bytes| {
            if let (Ok(key), Ok(row)) = (key_of(tail), R::from_bytes(bytes)) {
                rows.insert(key, row);
            }
            Ok(())
        });
        match scanned {
            Ok(()) | Err(Error::Corrupt { .. }) => Ok(rows),
            Err(error) => Err(error),
        }
    }

    fn unit(&mut self, id: &str, unit: &UnitRow) -> Result<()> {
        let prefix = Key::unit(unit.no);
        let runs = self.rows(&RUNS, &prefix, number)?;
        let run_ids = self.rows(&RUN_IDS, &prefix, number)?;
        let ledger = self.rows(&LEDGER, &prefix, number)?;
        let messages = self.rows(&MESSAGES, &prefix, number)?;
        let events = self.rows(&EVENTS, &prefix, |tail| {
            let (run, hash) = number_first(tail)?;
            Ok((run, number(hash)?))
        })?;

        let mut numbers = BTreeSet::new();
        for (&hash, row) in &run_ids {
            let leads_to = |run_id| row_of(run_id, &run_ids, |row| &row.id).map(|(number, _)| number);
            let of_another = row.id.whole().is_some_and(|run_id| leads_to(run_id) != Some(hash));
            if of_another || row.run >= unit.next_run || !numbers.insert(row.run) {
                let run_id = row.id.shown(hash);
                self.found(
                    RUN_IDS.name,
                    Some(id),
                    format!("the id {run_id} belongs to no run, or to another one"),
                );
            }
        }
        match (unit.run, unit.run.and_then(|no| runs.get(&no))) {
            (Some(no), Some(_)) if no + 1 == unit.next_run => {}
            (Some(no), Some(_)) => {
                self.found(UNITS.name, Some(id), format!("run number {no} is not its newest"));
            }
            (Some(no), None) => self.found(RUNS.name, Some(id), format!("run number {no} is missing")),
            (None, _) if unit.next_run > 1 => self.found(UNITS.name, Some(id), "its newest run is not known"),
            (None, _) => {}
        }
        for (&no, run) in &runs {
            if unit.run != Some(no) {
                self.found(RUNS.name, Some(id), format!("run number {no} is not the unit's run"));
                continue;
            }
            self.run_identity(
                id,
                no,
                run,
                row_of(&run.id, &run_ids, |row| &row.id).map(|(_, row)| row.run),
                ledger.get(&no),
            );
            self.conversation(id, no, run, &messages, &events);
            self.extraction(id, unit, no, run, &messages)?;
        }
        self.strays(id, unit, &runs);
        for (table, problem) in rejected::problems(self.view, unit)? {
            self.found(table, Some(id), problem);
        }
        for (table, problem) in
            once::problems(self.view, unit)?.into_iter().chain(edge::problems(self.view, unit)?)
        {
            self.found(table, Some(id), problem);
        }
        self.ledger(id, unit, &ledger, &run_ids)?;
        self.kept_messages(id, unit, &messages, &events);
        self.kept_values(id, unit)
    }

    fn run_identity(
        &mut self,
        id: &str,
        no: u64,
        run: &RunRow,
        known_as: Option<u64>,
        over: Option<&LedgerRow>,
    ) {
        let mut found =
            |problem: String| self.found(RUNS.name, Some(id), format!("run {}: {problem}", run.id));
        if RunId::new(run.id.as_str()).is_err() {
            found("invalid run id".to_owned());
        }
        if known_as != Some(no) {
            found("its id leads to another row".to_owned());
        }
        if run.epoch == 0 || run.next_seq == 0 || run.next_chunk == 0 {
            found("it counts from 0".to_owned());
        }
        match (run.status, over) {
            (RunStatus::Open, None) => {
                if run.ended_at.is_some() {
                    found("it is open and has an end".to_owned());
                }
            }
            (RunStatus::Open, Some(_)) => found("it is open, and the ledger has it as over".to_owned()),
            (_, None) => found("it is over, and the ledger does not have it".to_owned()),
            (status, Some(entry)) => {
                if entry.status != status || entry.id != run.id || run.ended_at != Some(entry.ended_at) {
                    found("the ledger disagrees with it".to_owned());
                }
            }
        }
    }

    /// Checks that the newest run, its events and its messages agree.
    fn conversation(
        &mut self,
        id: &str,
        no: u64,
        run: &RunRow,
        messages: &Of<u64, MessageRow>,
        events: &Of<(u64, u64), EventRow>,
    ) {
        let newest = run.event.map(|hash| (hash, events.get(&(no, hash))));
        match newest {
            Some((hash, None)) => {
                self.found(
                    EVENTS.name,
                    Some(id),
                    format!("the newest event of run {} is missing: hash {hash:016x}", run.id),
                );
            }
            Some((_, Some(event))) => {
                if event.order != run.events {
                    let (order, of) = (event.order, run.events);
                    self.found(EVENTS.name, Some(id), format!("its newest event has number {order} of {of}"));
                }
                if event.message != run.message {
                    self.found(RUNS.name, Some(id), "the run and its newest event name different answers");
                }
            }
            None if run.events > 0 || run.message.is_some() => {
                self.found(RUNS.name, Some(id), format!("run {} has events but no newest one", run.id));
            }
            None => {}
        }
        for (&number, message) in messages.iter().filter(|(_, message)| message.run == no) {
            let mut found = |problem: &str| {
                self.found(MESSAGES.name, Some(id), format!("message {number} of run {}: {problem}", run.id));
            };
            if message.fate == MessageFate::Sealed && run.message != Some(number) {
                found("it is not delivered, but the run went on");
            }
            if number < run.first_message {
                found("it is older than the run's first");
            }
            if message.kind == MessageKind::Done && !run.done.contains(message.phase) {
                found("it is the DONE of a phase that the run has not done");
            }
            if message.finishes && message.fate != MessageFate::Sealed && run.status == RunStatus::Open {
                found("it ends the run and was delivered, but the run is open");
            }
        }
    }

    /// Checks for rows that only an open run may have.
    fn strays(&mut self, id: &str, unit: &UnitRow, runs: &Of<u64, RunRow>) {
        let open = unit.run.filter(|no| runs.get(no).is_none_or(|run| run.status == RunStatus::Open));
        let strays: Vec<_> = self
            .of_runs
            .iter()
            .filter(|((_, of, run), _)| *of == unit.no && open != Some(*run))
            .map(|((table, _, run), rows)| {
                (*table, format!("{rows} rows belong to run number {run}, which is not open"))
            })
            .collect();
        for (table, problem) in strays {
            self.found(table, Some(id), problem);
        }
    }

    fn ledger(
        &mut self,
        id: &str,
        unit: &UnitRow,
        ledger: &Of<u64, LedgerRow>,
        run_ids: &Of<u64, RunIdRow>,
    ) -> Result<()> {
        let mut last = None;
        for (&no, row) in ledger {
            let mut found =
                |problem: &str| self.found(LEDGER.name, Some(id), format!("run {}: {problem}", row.id));
            let known = row_of(&row.id, run_ids, |row| &row.id);
            if no >= unit.next_run || known.is_none_or(|(_, known)| known.run != no) {
                found("its id leads to another row");
            }
            // A finished run has none if its start is not known, and the unit had none.
            if row.status == RunStatus::Open
                || (row.status == RunStatus::Abandoned && row.watermark.is_some())
            {
                found("it has a watermark but was not finished, or is not over");
            }
            if row.status == RunStatus::Finished {
                if row.types.iter().any(|counts| counts.read != counts.left_out + counts.announced) {
                    found("it was finished, but not everything that it read was announced");
                }
                last = Some(row.watermark);
            }
        }
        if ledger.len() as u64 > LEDGER_RUNS_MAX {
            self.found(LEDGER.name, Some(id), format!("it has {} runs, over the limit", ledger.len()));
        }
        // An operator may have rewound it since.
        let rewound = self.rows(&REWOUND, &Key::unit(unit.no), |_| Ok(()))?.remove(&());
        if let Some(rewound) = rewound {
            last = Some(rewound.watermark);
        }
        // If the ledger does not reach back to the first run (it has a limit, and a checkpoint keeps less), the last
        // finished run may be older than all of it.
        if last.is_none() && ledger.keys().next().is_some_and(|&oldest| oldest > 1) {
            return Ok(());
        }
        // Other software may have finished one since.
        if unit.watermark != last.unwrap_or(unit.inherited) && unit.watermark != unit.inherited {
            self.found(UNITS.name, Some(id), "its watermark is not that of its last finished run");
        }
        Ok(())
    }

    fn kept_messages(
        &mut self,
        id: &str,
        unit: &UnitRow,
        messages: &Of<u64, MessageRow>,
        events: &Of<(u64, u64), EventRow>,
    ) {
        for (&number, message) in messages {
            let mut found =
                |problem: &str| self.found(MESSAGES.name, Some(id), format!("message {number}: {problem}"));
            if number == 0 || number >= unit.next_message || message.run >= unit.next_run {
                found("its number, or its run's, was never given out");
            }
            // A checkpoint does not keep the bytes of an accepted message.
            let restored = message.body.is_empty() && message.fate != MessageFate::Sealed;
            if !restored && !std::str::from_utf8(&message.body).is_ok_and(is_json) {
                found("its body is not JSON");
            }
        }
        for ((run, hash), event) in events {
            let identity = event.identity.shown(*hash);
            let leads_to =
                |identity: &str| number_in(identity, |number| Some(&events.get(&(*run, number))?.identity));
            let of_another = event.identity.whole().is_some_and(|identity| leads_to(identity) != Some(*hash));
            let mut found =
                |problem: &str| self.found(EVENTS.name, Some(id), format!("event {identity}: {problem}"));
            if of_another || *run >= unit.next_run || event.order == 0 {
                found("its number, or its run's, was never given out");
            }
            if let Some(number) = event.message {
                match messages.get(&number) {
                    // For older events, a checkpoint restores only the number of the message that answered them.
                    None if event.accepted_at == Micros(0) => {}
                    None => found(&format!("message {number}, which answers it, is missing")),
                    Some(message) if message.run != *run || message.event != *hash => {
                        found(&format!("message {number}, which answers it, answers another event"));
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn kept_values(&mut self, id: &str, unit: &UnitRow) -> Result<()> {
        let prefix = Key::unit(unit.no);
        for (stream, row) in self.rows(&BOOKMARKS, &prefix, name)? {
            if StreamName::new(stream.as_str()).is_err() || !is_json(&row.json) || row.run >= unit.next_run {
                self.found(BOOKMARKS.name, Some(id), format!("invalid bookmark of stream {stream}"));
            }
        }
        for (stream, row) in self.rows(&NEXT_CURSORS, &prefix, name)? {
            if StreamName::new(stream.as_str()).is_err()
                || !is_json(&row.json)
                || row.from_run > unit.next_run
            {
                self.found(
                    NEXT_CURSORS.name,
                    Some(id),
                    format!("the next cursor of stream {stream} is invalid"),
                );
            }
        }
        for (run, row) in self.rows(&STANDINGS, &prefix, number)? {
            let kept = self.rows(&STANDING_BOOKMARKS, &run_key(unit.no, run), name)?;
            let whole = kept.values().all(|row| is_json(&row.json) && row.run < unit.next_run);
            if run >= unit.next_run || kept.len() as u64 != row.bookmarks || !whole {
                let problem = format!("the state in which run number {run} left the unit is incomplete");
                self.found(STANDINGS.name, Some(id), problem);
            }
        }
        for (key, Json(value)) in self.rows(&VALUES, &prefix, name)? {
            if ValueKey::new(key.as_str()).is_err() || !is_json(&value) {
                self.found(VALUES.name, Some(id), format!("invalid value {key}"));
            }
        }
        Ok(())
    }
}

/// The number under which an id is found.
fn number_in<'a>(id: &str, known_at: impl Fn(u64) -> Option<&'a KnownId>) -> Option<u64> {
    let is_at = |number| Ok::<_, Infallible>(known_at(number).map(|known| known.is(id, number)));
    let Ok((number, found)) = number_of_id(id, is_at);
    found.then_some(number)
}

/// The row of an id, and its number.
fn row_of<'a, R>(id: &str, rows: &'a Of<u64, R>, id_of: impl Fn(&R) -> &KnownId) -> Option<(u64, &'a R)> {
    let number = number_in(id, |number| rows.get(&number).map(&id_of))?;
    Some((number, rows.get(&number)?))
}

pub(super) fn short() -> DecodeError {
    DecodeError::Damaged("its key is too short".to_owned())
}

/// The number at the start of a key, and the rest.
fn number_first(key: &[u8]) -> Result<(u64, &[u8]), DecodeError> {
    let (number, rest) = key.split_first_chunk().ok_or_else(short)?;
    Ok((u64::from_be_bytes(*number), rest))
}

pub(super) fn number(key: &[u8]) -> Result<u64, DecodeError> {
    crate::store::rows::number_of(key)
}

pub(super) fn name(key: &[u8]) -> Result<String, DecodeError> {
    name_of(key).map(str::to_owned)
}

pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn shown(key: &[u8]) -> String {
    crate::store::tables::show(key)
}
