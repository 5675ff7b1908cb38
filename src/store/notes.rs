//! What a unit inherits from other software, and small notes that a run keeps for the modules above.
//!
//! A note is a JSON value under a key that an extractor cannot set (`@highwater/...`). Like the extractor's own
//! values, it is part of the checkpoint's position, so a run that is restored from a checkpoint finds the notes that
//! it had there. Unlike them, it belongs to one run, and is dropped when that run is over.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::{Micros, Phase, Phases, RESERVED_VALUE_PREFIX, Step};

use super::rows::{Json, Key, POSITIONS, RunRow, UNITS, UnitRow, VALUES, WindowRow, note_key, number_of};
use super::run_handle::Run;
use super::tables::{Change, Rows};

/// The state that other software kept of a unit: a new unit begins with it, a known unit is updated by it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inherited {
    /// When the last run that was finished had started.
    pub(crate) watermark: Option<Micros>,
    /// The oldest and the newest moment that finished runs were asked for.
    pub(crate) bounds: (Option<Micros>, Option<Micros>),
    /// The version of the connector that installed the mappings.
    pub(crate) connector_version: Option<String>,
    /// The run of the current event, if the other software was in the middle of it.
    pub(crate) run: Option<InheritedRun>,
    /// The unit is known here, and other software has run it since.
    pub(crate) rewritten: bool,
}

/// The start of a run that other software began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InheritedStart {
    At(Micros),
    /// It starts now, because the run has extracted nothing yet.
    Now,
    /// Nobody knows: the watermark does not move with this run.
    Unknown,
}

/// A run that other software began.
#[derive(Debug, Clone)]
pub(crate) struct InheritedRun {
    pub(crate) start: InheritedStart,
    pub(crate) window: Option<WindowRow>,
    /// A note, by its name and as JSON text.
    pub(crate) note: Option<(&'static str, String)>,
}

/// The note that says which attachments of a run other software had left to do. `{}`: none.
pub(crate) const LEFT_ATTACHMENTS: &str = "sdk";

/// The note of a run whose start is not known.
const START_UNKNOWN: &str = "start-unknown";

/// What is stored of a note.
#[derive(Serialize, Deserialize)]
struct Note<T> {
    run: u64,
    note: T,
}

impl Inherited {
    /// Whether the unit does not know it yet.
    pub(super) fn is_news_to(&self, unit: &UnitRow) -> bool {
        self.rewritten || (unit.run.is_none() && unit.watermark.is_none())
    }

    /// Updates a unit by what it inherits. Its own bounds and watermark stay where they are later, or reach further.
    pub(super) fn to_unit(&self, unit: &mut UnitRow) {
        if self.watermark > unit.watermark {
            unit.watermark = self.watermark;
            unit.inherited = self.watermark;
        }
        let (oldest, newest) = unit.bounds;
        let earliest = [oldest, self.bounds.0].into_iter().flatten().min();
        unit.bounds = (earliest, newest.max(self.bounds.1));
        if self.connector_version.is_some() {
            unit.connector_version.clone_from(&self.connector_version);
        }
    }
}

impl InheritedRun {
    /// Makes a new run the one that it inherits: the phases before the event's are done.
    pub(super) fn to_run(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        no: u64,
        row: &mut RunRow,
        (phase, step): (Phase, Step),
    ) -> Result<()> {
        row.lost = false;
        if let InheritedStart::At(started_at) = self.start {
            row.started_at = started_at;
        }
        row.window = self.window;
        let mut done = Phases::default();
        for before in [Phase::Metadata, Phase::Data] {
            if before < phase {
                done.insert(before);
                row.phase = Some(before);
            }
        }
        row.done = done;
        if step == Step::Continue {
            row.phase = Some(phase);
        }
        if let Some((name, json)) = &self.note {
            let json = format!(r#"{{"run":{no},"note":{json}}}"#);
            change.put(&VALUES, &note_key(unit.no, name), &Json(json))?;
        }
        if self.start == InheritedStart::Unknown {
            let json = format!(r#"{{"run":{no},"note":true}}"#);
            change.put(&VALUES, &note_key(unit.no, START_UNKNOWN), &Json(json))?;
        }
        Ok(())
    }
}

/// Whether the start of a unit's newest run is not known.
pub(super) fn start_is_unknown(change: &Change<'_>, unit: u64) -> Result<bool> {
    Ok(change.get(&VALUES, &note_key(unit, START_UNKNOWN))?.is_some())
}

/// Empties the note about attachments that other software had left to do, also in the positions of the unit's
/// checkpoints. The note itself stays: it shows that other software began the run.
pub(super) fn forget_left_attachments(change: &Change<'_>, unit: u64) -> Result<()> {
    let key = note_key(unit, LEFT_ATTACHMENTS);
    let emptied = |json: &str| {
        let note = serde_json::from_str(json).map(|Note { run, .. }: Note<IgnoredAny>| run);
        note.and_then(|run| serde_json::to_string(&Note { run, note: serde_json::Map::new() }))
    };
    if let Some(Json(json)) = change.get(&VALUES, &key)? {
        let damaged =
            |error: serde_json::Error| change.tables().damaged(VALUES.name, &key, error.to_string());
        change.put(&VALUES, &key, &Json(emptied(&json).map_err(damaged)?))?;
    }
    let prefix = Key::unit(unit);
    for (tail, Json(json)) in change.all(&POSITIONS, &prefix)? {
        let damaged = |reason: String| change.tables().damaged(POSITIONS.name, &prefix, reason);
        let mut position: Value = serde_json::from_str(&json).map_err(|error| damaged(error.to_string()))?;
        let name = format!("{RESERVED_VALUE_PREFIX}{LEFT_ATTACHMENTS}");
        let Some(Value::String(note)) = position.get_mut("values").and_then(|values| values.get_mut(name))
        else {
            continue;
        };
        *note = emptied(note).map_err(|error| damaged(error.to_string()))?;
        let run = number_of(&tail).map_err(|error| damaged(error.to_string()))?;
        change.put(&POSITIONS, &prefix.clone().and_number(run), &Json(position.to_string()))?;
    }
    Ok(())
}

/// Drops the notes of a unit's run.
pub(super) fn drop_notes(change: &Change<'_>, unit: u64) -> Result<()> {
    change.remove_all(&VALUES, &note_key(unit, ""))
}

impl Run {
    /// A note that this run keeps.
    ///
    /// # Errors
    /// `Corrupt` if it does not read; `Io`.
    pub(crate) fn note<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let key = note_key(self.unit_no, name);
        let Some(Json(json)) = self.inner.tables.view(|rows| rows.get(&VALUES, &key))? else {
            return Ok(None);
        };
        let note: Note<T> = serde_json::from_str(&json).map_err(|error| Error::Corrupt {
            what: format!("the note {name} of run {} of {}", self.id, self.unit),
            reason: error.to_string(),
        })?;
        Ok((note.run == self.no).then_some(note.note))
    }

    /// Keeps a note until the run is over.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`; nothing was changed.
    pub(crate) fn set_note(&self, name: &str, note: &impl Serialize) -> Result<()> {
        let what = format!("the note {name}");
        let json = serde_json::to_string(&Note { run: self.no, note })
            .map_err(|error| Error::Invalid { what, reason: error.to_string() })?;
        self.change(|change, _| change.put(&VALUES, &note_key(self.unit_no, name), &Json(json)))
    }

    /// Whether the run has finished a phase.
    pub(crate) fn has_done(&self, phase: Phase) -> Result<bool> {
        self.look(|_, row| Ok(row.done.contains(phase)))
    }

    /// The version of the connector that installed the unit's mappings.
    pub(crate) fn connector_version(&self) -> Result<Option<String>> {
        let unit = self.inner.tables.view(|rows| rows.need(&UNITS, &Key::name(self.unit.as_str())))?;
        Ok(unit.connector_version)
    }

    /// Records that the mappings of this version are installed.
    ///
    /// # Durability
    /// When this returns `Ok`, it survives power loss.
    ///
    /// # Errors
    /// `Fenced`, `Corrupt`, `Io`; nothing was changed.
    pub(crate) fn set_connector_version(&self, version: &str) -> Result<()> {
        self.change(|change, _| {
            let key = Key::name(self.unit.as_str());
            let mut unit = change.need(&UNITS, &key)?;
            unit.connector_version = Some(version.to_owned());
            change.put(&UNITS, &key, &unit)
        })
    }
}

/// The state of a unit for reports to others: everything known is in it, and `None` is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) watermark: Option<Micros>,
    pub(crate) bounds: (Option<Micros>, Option<Micros>),
    pub(crate) connector_version: Option<String>,
    /// The start and the window of the open run.
    pub(crate) open: Option<(Micros, Option<WindowRow>)>,
}
