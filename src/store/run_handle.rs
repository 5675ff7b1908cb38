//! A run in the hands of its holder: its names, one change to it, one view of it.
//!
//! The modules above work on a run through a change or a view of its handle; both are refused if a later life has
//! resumed the run. How a run begins and ends is in `lifecycle`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use crate::cut;
use crate::error::{Error, Result};
use crate::model::{Micros, RunId, Safeguard, SyncUnitId};
use crate::transfer::Rules;

use super::digest::{KnownId, number_of_id};
use super::open::{Inner, SyncUnit};
use super::rows::{
    BOOKMARKS, Json, Key, RUNS, Row, RunRow, RunStatus, Table, UNITS, UnitRow, VALUES, number_of, run_key,
};
use super::tables::{Change, Rows, View};

/// One extraction of a sync unit, as one life of the process holds it; made by
/// [`SyncUnit::begin`](crate::SyncUnit::begin).
///
/// Dropping it is always safe: nothing is acknowledged or finished by drop, and the next `begin` resumes the run.
#[derive(Debug)]
pub struct Run {
    pub(super) inner: Arc<Inner>,
    pub(super) unit: SyncUnitId,
    pub(super) unit_no: u64,
    pub(super) no: u64,
    pub(super) id: RunId,
    pub(super) epoch: u64,
    started_at: Micros,
    since: Option<Micros>,
    since_ignored: Option<Micros>,
    resumed: bool,
    /// Batches that the caller holds: they are not yielded twice at once.
    pub(super) held: Arc<Mutex<BTreeSet<u64>>>,
    pub(super) held_attachments: Arc<Mutex<BTreeSet<u64>>>,
    /// Whether the unit may have records at the edge; `None` until that was looked up.
    pub(super) has_edge: Arc<Mutex<Option<bool>>>,
}

impl Run {
    /// The handle of a run in the life that its row is at.
    pub(super) fn new(unit: &SyncUnit, unit_no: u64, no: u64, row: &RunRow, resumed: bool) -> Result<Self> {
        Ok(Self {
            inner: Arc::clone(&unit.inner),
            unit: unit.id.clone(),
            unit_no,
            no,
            id: RunId::new(row.id.clone())?,
            epoch: row.epoch,
            started_at: row.started_at,
            since: row.since,
            since_ignored: row.since_ignored,
            resumed,
            held: Arc::default(),
            held_attachments: Arc::default(),
            has_edge: Arc::default(),
        })
    }

    /// The id of the run: the platform's, or, if it was begun without one, made from its start time.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The sync unit that is extracted.
    pub fn sync_unit(&self) -> &SyncUnitId {
        &self.unit
    }

    /// When the run started, in its first life. This becomes the watermark when the run is finished.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at.to_time()
    }

    /// Whether it is neither finished nor abandoned.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub(crate) fn is_open(&self) -> Result<bool> {
        let row = self.inner.tables.view(|rows| rows.get(&RUNS, &self.run_key()))?;
        Ok(row.is_some_and(|row| row.status == RunStatus::Open))
    }

    /// Whether an earlier life began the run.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Where to extract from: records modified at or after this time. It is the time when the last finished run
    /// started, less the [overlap](crate::StoreOptions::overlap). `None`: extract everything. It is the same in every
    /// life of the run.
    pub fn since(&self) -> Option<DateTime<Utc>> {
        self.since.map(Micros::to_time)
    }

    /// A watermark that was not used, because it was more than [`CLOCK_AHEAD_MAX`](crate::limits::CLOCK_AHEAD_MAX)
    /// ahead of the clock when the run began: either clock was wrong. [`Run::since`] is then the latest earlier
    /// watermark that is not in the future.
    pub fn ignored_watermark(&self) -> Option<DateTime<Utc>> {
        self.since_ignored.map(Micros::to_time)
    }

    /// The bookmark that the last finished run left for a stream.
    ///
    /// # Errors
    /// `Value` if it is not of the type asked for; `Corrupt` or `Io`.
    pub fn bookmark<B: DeserializeOwned>(&self, stream: &str) -> Result<Option<B>> {
        let key = Key::unit(self.unit_no).and_name(stream);
        let row = self.inner.tables.view(|rows| rows.get(&BOOKMARKS, &key))?;
        row.map(|row| self.read_json(&format!("the bookmark of stream {stream}"), &row.json)).transpose()
    }

    /// A value of the extractor's own, as last set with [`Page::value`](crate::Page::value).
    ///
    /// # Errors
    /// `Value` if it is not of the type asked for; `Corrupt` or `Io`.
    pub fn value<V: DeserializeOwned>(&self, key: &str) -> Result<Option<V>> {
        let row = self.inner.tables.view(|rows| rows.get(&VALUES, &Key::unit(self.unit_no).and_name(key)))?;
        row.map(|Json(json)| self.read_value(key, &json)).transpose()
    }

    /// Reads a value of the extractor's own.
    ///
    /// # Errors
    /// `Value` if it is not of the type asked for.
    pub(crate) fn read_value<V: DeserializeOwned>(&self, key: &str, json: &str) -> Result<V> {
        self.read_json(&format!("the value {key}"), json)
    }

    fn read_json<T: DeserializeOwned>(&self, what: &str, json: &str) -> Result<T> {
        serde_json::from_str(json).map_err(|error| Error::Value {
            what: what.to_owned(),
            sync_unit: self.unit.to_string(),
            source: error.into(),
        })
    }

    /// The moves of batches with these steps.
    #[cfg_attr(not(feature = "testing"), allow(clippy::unused_self, reason = "a control sets another table"))]
    pub(crate) fn batch_rules(&self, confirms: bool, saves: bool) -> Rules {
        let rules = Rules::new(confirms, saves);
        #[cfg(feature = "testing")]
        let rules = rules.with_table(self.inner.settings.transfer_tables.batches);
        rules
    }

    /// The moves of attachments.
    #[cfg_attr(not(feature = "testing"), allow(clippy::unused_self, reason = "a control sets another table"))]
    pub(crate) fn attachment_rules(&self, saves: bool) -> Rules {
        let rules = Rules::new(true, saves);
        #[cfg(feature = "testing")]
        let rules = rules.with_table(self.inner.settings.transfer_tables.attachments);
        rules
    }

    pub(crate) fn breaks(&self, rule: Safeguard) -> bool {
        self.inner.breaks(rule)
    }

    /// Changes the run, unless a later life has resumed it.
    pub(super) fn change<T>(&self, body: impl FnOnce(&Change<'_>, &mut RunRow) -> Result<T>) -> Result<T> {
        let change = self.inner.tables.begin()?;
        let mut row = self.open_row(&change)?;
        let result = body(&change, &mut row)?;
        row.activity.changed_at = Some(Micros::from_time(self.inner.clock.now()));
        change.put(&RUNS, &self.run_key(), &row)?;
        change.commit()?;
        Ok(result)
    }

    /// Reads the run, unless a later life has resumed it or it is over.
    pub(super) fn look<T>(&self, body: impl FnOnce(&View<'_>, &RunRow) -> Result<T>) -> Result<T> {
        let view = self.inner.tables.look_now()?;
        let row = self.open_row(&view)?;
        body(&view, &row)
    }

    /// The run's row, if this handle is its newest life and it is not over.
    fn open_row(&self, rows: &impl Rows) -> Result<RunRow> {
        let unit = rows.get(&UNITS, &Key::name(self.unit.as_str()))?;
        let row = self.checked_row(rows, &unit.ok_or_else(|| self.fenced())?)?;
        if row.status == RunStatus::Open { Ok(row) } else { Err(self.fenced()) }
    }

    /// The run's row, if this handle is its newest life.
    pub(super) fn checked_row(&self, rows: &impl Rows, unit: &UnitRow) -> Result<RunRow> {
        match rows.get(&RUNS, &run_key(self.unit_no, self.no))? {
            Some(row) if row.epoch == self.epoch && unit.run == Some(self.no) && unit.no == self.unit_no => {
                Ok(row)
            }
            _ => Err(self.fenced()),
        }
    }

    fn fenced(&self) -> Error {
        Error::Fenced { sync_unit: self.unit.to_string(), run: self.id.to_string() }
    }

    pub(super) fn unfinished(&self, reason: String) -> Error {
        Error::Unfinished { sync_unit: self.unit.to_string(), run: self.id.to_string(), reason }
    }

    pub(super) fn run_key(&self) -> Key {
        run_key(self.unit_no, self.no)
    }

    pub(super) fn batch_key(&self, seq: u64) -> Key {
        self.run_key().and_number(seq)
    }

    /// The number at the end of a key of this run.
    pub(super) fn number_in(&self, table: &str, tail: &[u8]) -> Result<u64> {
        number_of(tail).map_err(|error| self.inner.tables.damaged(table, &self.run_key(), error.to_string()))
    }

    /// Another handle of the same life, for a batch or a caller to hold.
    pub(crate) fn another(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            unit: self.unit.clone(),
            id: self.id.clone(),
            held: Arc::clone(&self.held),
            held_attachments: Arc::clone(&self.held_attachments),
            has_edge: Arc::clone(&self.has_edge),
            ..*self
        }
    }
}

/// Reads a stored cursor; `listing` is how errors name the listing it belongs to.
///
/// # Errors
/// `Cursor` if it is not of the type asked for.
pub(super) fn read_cursor<C: DeserializeOwned>(run: &Run, listing: &str, json: &str) -> Result<C> {
    serde_json::from_str(json).map_err(|error| Error::Cursor {
        sync_unit: run.unit.to_string(),
        stream: listing.to_owned(),
        cursor: cut::to_chars(json, 200),
        source: error.into(),
    })
}

/// The row of an id in a table that is keyed by numbers of ids, and its number, or the first free one.
pub(super) fn find_by_id<R: Row>(
    rows: &impl Rows,
    table: &Table<R>,
    prefix: &Key,
    id: &str,
    id_of: impl Fn(&R) -> &KnownId,
) -> Result<(u64, Option<R>)> {
    let key = |number| prefix.clone().and_number(number);
    let (number, found) = number_of_id(id, |number| {
        let row = rows.get(table, &key(number))?;
        Ok::<_, Error>(row.map(|row| id_of(&row).is(id, number)))
    })?;
    Ok((number, if found { rows.get(table, &key(number))? } else { None }))
}
