//! What a unit inherits from somebody else's software, and small notes that a run keeps for the wing above.
//!
//! A note is a JSON value under a key that an extractor cannot set (`@highwater/...`), beside the extractor's own
//! values and with their life: it is part of the checkpoint's position, so a run that goes on from a checkpoint finds
//! the notes that it had there. Unlike those it belongs to one run, and is gone when that run is over.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::{Micros, Phase, Phases, RESERVED_VALUE_PREFIX, Step};

use super::rows::{Json, Key, POSITIONS, RunRow, UNITS, UnitRow, VALUES, WindowRow, note_key, number_of};
use super::run::Run;
use super::tables::{Change, Rows};

/// What a unit that is not known here is begun from: the state that other software kept of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inherited {
    /// When the last run that was finished had started.
    pub(crate) watermark: Option<Micros>,
    /// The oldest and the newest moment that finished runs were asked for.
    pub(crate) bounds: (Option<Micros>, Option<Micros>),
    /// The version of the connector whose mappings are installed.
    pub(crate) connector_version: Option<String>,
    /// The run that the event at hand belongs to, if the other software was in the middle of it.
    pub(crate) run: Option<InheritedRun>,
}

/// A run that other software began.
#[derive(Debug, Clone)]
pub(crate) struct InheritedRun {
    /// `None`: its start counts from now, for it has extracted nothing yet.
    pub(crate) started_at: Option<Micros>,
    pub(crate) window: Option<WindowRow>,
    /// A note, by its name and as JSON text.
    pub(crate) note: Option<(&'static str, String)>,
}

/// The note that says what other software had left to do of a run's attachments. `{}`: nothing.
pub(crate) const LEFT_ATTACHMENTS: &str = "sdk";

/// What is stored of a note.
#[derive(Serialize, Deserialize)]
struct Note<T> {
    run: u64,
    note: T,
}

impl Inherited {
    /// Gives a unit that has nothing of its own what it inherits.
    pub(super) fn to_unit(&self, unit: &mut UnitRow) {
        unit.watermark = self.watermark;
        unit.inherited = self.watermark;
        unit.bounds = self.bounds;
        unit.connector_version.clone_from(&self.connector_version);
    }
}

impl InheritedRun {
    /// Makes a run that was just begun the one that it inherits: its phases before the event's are done.
    pub(super) fn to_run(
        &self,
        change: &Change<'_>,
        unit: &UnitRow,
        no: u64,
        row: &mut RunRow,
        (phase, step): (Phase, Step),
    ) -> Result<()> {
        row.lost = false;
        row.started_at = self.started_at.unwrap_or(row.started_at);
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
        Ok(())
    }
}

/// Empties the note about attachments that other software had left to do, also in the positions of the unit's
/// checkpoints. The note itself stays: it tells that the run was begun by other software.
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

    /// Whether the run has a phase behind it.
    pub(crate) fn has_done(&self, phase: Phase) -> Result<bool> {
        self.look(|_, row| Ok(row.done.contains(phase)))
    }

    /// The version of the connector whose mappings are installed for the unit.
    pub(crate) fn connector_version(&self) -> Result<Option<String>> {
        let unit = self.inner.tables.view(|rows| rows.need(&UNITS, &Key::name(self.unit.as_str())))?;
        Ok(unit.connector_version)
    }

    /// Remembers that the mappings of this version are installed.
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

/// How a unit stands, as others may be told: all that is known is in it, and what is not known is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) watermark: Option<Micros>,
    pub(crate) bounds: (Option<Micros>, Option<Micros>),
    pub(crate) connector_version: Option<String>,
    /// The start and the window of the run that is not over.
    pub(crate) open: Option<(Micros, Option<WindowRow>)>,
}
