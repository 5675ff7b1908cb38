//! Keeps a checkpoint with the platform, for workers whose disk does not survive them.
//!
//! The guarantees depend on the order of saves: upload, save, confirm; seal, save, send; and after a run's last
//! message, delivered, save. Nothing is confirmed or sent that the saved checkpoint does not hold.
//!
//! The worker state holds, beside the checkpoint, the keys of the TypeScript SDK (see `sdk`), and those of the
//! connector, which are kept unchanged (see `document`). Its size is measured as it is posted: as a string in a JSON
//! document.
//!
//! The platform keeps one JSON document per sync unit, the last writer wins, and there is no compare-and-set. So a
//! holder writes a token of its own when it takes the unit over, and compares it before each attempt at a save:
//! another token means that this holder is no longer the live one, and it stops. The platform offers no means to
//! close the window between that read and the save;
//! [`Serve::settle_after_takeover`](super::Serve::settle_after_takeover) waits for it to pass.

use std::cell::{RefCell, RefMut};
use std::time::Duration;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::{debug, info};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::{Micros, Safeguard, StateLimits};
use crate::store::{
    BatchInfo, CHECKPOINT_KEY, Checkpoint, Deletion, Incoming, Inherited, MessageKind, Page, PageOf,
    Position, Room, Run, SyncUnit,
};

use super::deadlines::Deadlines;
use super::document::{Document, posted_bytes};
use super::platform::{Platform, WorkerState};
use super::retry::{GaveUp, attempts};
use super::sdk::{self, Scope, SdkState};

/// The holder of a unit, for one invocation.
pub(crate) struct Keeper<'a> {
    platform: &'a dyn Platform,
    clock: &'a dyn Clock,
    sync_unit: String,
    seed: u64,
    deadlines: &'a Deadlines,
    token: String,
    /// The token that is saved with the platform, as far as is known.
    standing: RefCell<Option<String>>,
    /// The worker state as it was read when the unit was taken over.
    found: WorkerState,
    /// What the extractor may still set; computed when it first sets something.
    room: RefCell<Option<Room>>,
    limits: StateLimits,
}

impl<'a> Keeper<'a> {
    /// Takes a unit over: brings the disk up to date, and stores `token`, which the first save will write. No other
    /// holder may have it. Returns whether all that the store now knows of the unit comes from the checkpoint.
    /// Nothing is saved with the platform yet.
    ///
    /// # Errors
    /// `NotFetched`, or `WorkerState` if what was fetched is invalid; `Corrupt`, `Io`.
    pub(crate) fn take_over(
        unit: &SyncUnit,
        platform: &'a dyn Platform,
        clock: &'a dyn Clock,
        seed: u64,
        deadlines: &'a Deadlines,
        settle: Option<Duration>,
        token: u64,
    ) -> Result<Option<(Self, bool)>> {
        let sync_unit = unit.id().to_string();
        let token = format!("{token:016x}");
        let standing = RefCell::default();
        let found = WorkerState::default();
        let room = RefCell::default();
        let limits = StateLimits::default();
        let mut this =
            Self { platform, clock, sync_unit, seed, deadlines, token, standing, found, room, limits };
        let mut found = this.look()?;
        let holder = unit.holder()?;
        let is_current = |found: &Option<Checkpoint>| {
            if unit.breaks(Safeguard::HolderToken) {
                return holder.epoch >= found.as_ref().map_or(0, Checkpoint::epoch);
            }
            let token = found.as_ref().map(|found| &found.token);
            token == holder.tokens.0.as_ref() || (token.is_some() && token == holder.tokens.1.as_ref())
        };
        let mut restored = false;
        if !is_current(&found) {
            if let Some(wait) = settle {
                // If a stop is requested meanwhile, nothing is taken over.
                if deadlines.is_stopped() || !deadlines.sleep(wait) {
                    return Ok(None);
                }
                found = this.look()?;
            }
            match &found {
                Some(checkpoint) => {
                    unit.restore(checkpoint, &sealed_in(checkpoint, unit.id().as_str())?)?;
                    restored = true;
                }
                None => unit.forget_stale()?,
            }
        }
        let standing = found.map(|found| found.token);
        unit.intend(standing.as_deref(), &this.token)?;
        this.standing.replace(standing);
        info!(target: "highwater", restored, "sync unit taken over");
        Ok(Some((this, restored)))
    }

    /// Uses other limits.
    pub(crate) fn with_limits(self, limits: StateLimits) -> Self {
        Self { limits, ..self }
    }

    /// Saves a checkpoint at `position`, or without one at the position of the last saved one. Returns its bytes.
    ///
    /// # Durability
    /// When this returns `Ok`, the platform has it, and this disk has recorded that.
    ///
    /// # Errors
    /// `Fenced` if another holder has taken the unit over; `NotSaved`; `TooLarge`; `Corrupt`, `Io`.
    pub(crate) fn save(&self, run: &Run, position: Option<&Position>) -> Result<usize> {
        let fresh = if position.is_none() && run.has_no_position()? { run.position()? } else { None };
        let position = position.or(fresh.as_ref());
        let checkpoint = run.checkpoint(&self.token, position, self.room_left(run)?)?;
        let bytes = self.put(&checkpoint, |_| Ok(()))?;
        if position.is_some() {
            run.saved(&checkpoint)?;
        }
        Ok(bytes)
    }

    /// Saves a message that was just sealed, at the run's current position. If an ERROR does not fit there, it is saved
    /// at the position of the last checkpoint, which did fit and names everything that is confirmed.
    ///
    /// # Errors
    /// Those of [`Keeper::save`].
    pub(crate) fn save_sealed(&self, run: &Run, kind: MessageKind) -> Result<()> {
        match self.save(run, run.position()?.as_ref()) {
            Err(Error::TooLarge { .. }) if kind == MessageKind::Error => self.save(run, None).map(drop),
            saved => saved.map(drop),
        }
    }

    /// Counts a page that is about to be staged: later checkpoints must hold what it sets.
    ///
    /// # Errors
    /// `NoRoom`, naming the part that does not fit; the page must not be staged. `Corrupt`, `Io`.
    pub(crate) fn admit<C: Serialize>(&self, run: &Run, of: &PageOf, page: &Page<C>) -> Result<()> {
        if let Some(own) = page.connector_state_json() {
            sdk::check_connector_state(own)?;
        }
        let pending = run.pending_child_bytes()?;
        self.room(run)?.as_mut().map_or(Ok(()), |room| room.admit(of, pending, page))
    }

    /// What the extractor may still set, counted from what is stored when it is first asked for.
    fn room(&self, run: &Run) -> Result<RefMut<'_, Option<Room>>> {
        let mut room = self.room.borrow_mut();
        if room.is_none() {
            let mut others = self.document()?;
            others.remove(CHECKPOINT_KEY);
            if run.has_connector_state()? {
                // These keys count as set by the extractor.
                sdk::remove_connector_state(&mut others);
            }
            *room = Some(run.room(self.limits.own, posted_bytes(&others.to_text()) as u64)?);
        }
        Ok(room)
    }

    fn room_left(&self, run: &Run) -> Result<u64> {
        Ok(self.room(run)?.as_ref().map_or(0, Room::left))
    }

    /// Saves that a run is over, without a new position.
    pub(crate) fn save_standing(&self, run: &Run) -> Result<()> {
        self.put(&run.checkpoint(&self.token, None, self.room_left(run)?)?, |_| Ok(())).map(drop)
    }

    /// Saves that the unit's attachments are forgotten, as they are in the store, and that this event asked for it.
    /// Those that the SDK had left to do are forgotten, too.
    pub(crate) fn forget_attachments(&self, unit: &SyncUnit, deletion: &Deletion) -> Result<()> {
        let checkpoint = match unit.newest_run()? {
            Some(run) => run.checkpoint(&self.token, None, self.room_left(&run)?)?.after(deletion),
            None => unit.checkpoint_without_run(&self.token, deletion)?,
        };
        let what = self.what();
        self.put(&checkpoint, |document| sdk::forget_attachments(document, &what))?;
        Ok(())
    }

    /// Removes what is kept of the unit, except what outlives a deletion.
    ///
    /// What is saved has a token that no disk knows. So a disk that was not emptied, because its process died before
    /// that, does not count as the unit's.
    pub(crate) fn remove(&self, unit: &SyncUnit, deletion: &Deletion) -> Result<()> {
        let checkpoint = unit.checkpoint_without_run(&deletion_token(&self.token), deletion)?;
        // If the SDK's keys stayed, the unit would inherit them when it comes again.
        self.put(&checkpoint, |document| {
            sdk::remove(document);
            Ok(())
        })?;
        Ok(())
    }

    /// Removes what is kept of a unit whose worker state cannot be read. Keys that can be read and that belong to
    /// neither us nor the SDK stay. The saved token cannot be read, so it is not
    /// compared. No other holder may have `token`.
    pub(crate) fn start_over(
        unit: &SyncUnit,
        deletion: &Deletion,
        token: u64,
        platform: &dyn Platform,
        seed: u64,
        deadlines: &Deadlines,
    ) -> Result<()> {
        let sync_unit = unit.id().as_str();
        let fetched = attempts(deadlines, seed, || platform.worker_state());
        let state = fetched.map_err(|gave_up| not_fetched(sync_unit, &gave_up))?.unwrap_or_default().state;
        let mut document = read(state.as_deref(), &what(sync_unit)).unwrap_or_default();
        let checkpoint = unit.checkpoint_without_run(&deletion_token(&format!("{token:016x}")), deletion)?;
        set_checkpoint(&mut document, &checkpoint, sync_unit)?;
        sdk::remove(&mut document);
        let text = document.to_text();
        attempts(deadlines, seed, || platform.save_worker_state(&text))
            .map_err(|gave_up| not_saved(sync_unit, &gave_up))
    }

    /// Saves the worker state with this checkpoint and with `change` applied. Each attempt reads, compares and saves:
    /// a holder that was overtaken while it waited must not save.
    fn put(&self, checkpoint: &Checkpoint, change: impl Fn(&mut Document) -> Result<()>) -> Result<usize> {
        let mut tried = false;
        let saved = attempts(self.deadlines, self.seed, || {
            let state = self.platform.worker_state()?.unwrap_or_default().state;
            let (text, bytes) = match self.compose(state.as_deref(), checkpoint, &change, tried) {
                Ok(composed) => composed,
                Err(error) => return Ok(Err(error)),
            };
            tried = true;
            self.platform.save_worker_state(&text)?;
            Ok(Ok(bytes))
        });
        let bytes = saved.map_err(|gave_up| not_saved(&self.sync_unit, &gave_up))??;
        self.standing.replace(Some(checkpoint.token.clone()));
        debug!(target: "highwater", bytes, "checkpoint saved");
        Ok(bytes)
    }

    /// The worker state that replaces the current one, if that is ours, and its size as posted. `tried`: a save of
    /// the same may have been applied already.
    fn compose(
        &self,
        state: Option<&str>,
        checkpoint: &Checkpoint,
        change: impl Fn(&mut Document) -> Result<()>,
        tried: bool,
    ) -> Result<(String, usize)> {
        let what = self.what();
        // Keys that are neither ours nor the SDK's stay unchanged and in their place.
        let mut document = read(state, &what)?;
        let found = checkpoint_of(&document, &self.sync_unit)?.map(|found| found.token);
        // A save whose answer was lost may have been applied.
        let ours = found == *self.standing.borrow()
            || found.as_deref() == Some(&self.token)
            || (tried && found.as_ref() == Some(&checkpoint.token));
        if !ours {
            return Err(Error::Fenced { sync_unit: self.sync_unit.clone(), run: "in progress".to_owned() });
        }
        set_checkpoint(&mut document, checkpoint, &self.sync_unit)?;
        // A unit without a run has nothing to write there.
        if !checkpoint.has_no_run() {
            sdk::write(&mut document, &what, &checkpoint.standing())?;
            if let Some(own) = checkpoint.connector_state() {
                sdk::write_connector_state(&mut document, own);
            }
        }
        change(&mut document)?;
        let text = document.to_text();
        let bytes = posted_bytes(&text);
        // What outlives a deletion takes a few kB, and a deletion is the way out of a state that is too large.
        if bytes > self.limits.max && !checkpoint.has_no_run() {
            return Err(Error::TooLarge {
                what,
                found: bytes as u64,
                limit: self.limits.max as u64,
                unit: "bytes as posted",
            });
        }
        Ok((text, bytes))
    }

    /// Whether a worker state of this size has little room left.
    pub(crate) fn is_nearly_full(&self, bytes: usize) -> bool {
        bytes >= self.limits.soft
    }

    /// The connector's own keys, as they were when the unit was taken over.
    pub(crate) fn connector_state(&self) -> Result<Option<Value>> {
        sdk::connector_state(self.document()?, &self.what())
    }

    /// The extraction scope, as it was then.
    pub(crate) fn scope(&self) -> Result<Scope> {
        Scope::read(self.found.objects.as_deref(), &self.sync_unit)
    }

    /// What the unit of an event inherits from the TypeScript SDK: if there was no checkpoint of ours when the unit
    /// was taken over, or if the SDK has run the unit since that was saved.
    ///
    /// # Errors
    /// `WorkerState`, naming the invalid key.
    pub(crate) fn inherited(&self, event: &Incoming) -> Result<Option<Inherited>> {
        let mut document = Document::read(self.found.state.as_deref(), &self.what())?;
        let carried = sdk::lift(&mut document);
        // A checkpoint without a run holds only what outlived a deletion.
        let checkpoint = checkpoint_of(&document, &self.sync_unit)?.filter(|found| !found.has_no_run());
        let Some(sdk) = SdkState::read(&document, &self.what())? else { return Ok(None) };
        let rewritten =
            checkpoint.as_ref().is_some_and(|found| carried || sdk.is_newer_than(&found.standing()));
        if checkpoint.is_some() && !rewritten {
            return Ok(None);
        }
        sdk.check_window(&self.what())?;
        if rewritten {
            info!(target: "highwater", "the TypeScript SDK ran the unit in between");
        }
        let now = Micros::from_time(self.clock.now());
        Ok(Some(sdk.inherited(event, now, rewritten)))
    }

    fn look(&mut self) -> Result<Option<Checkpoint>> {
        let fetched = attempts(self.deadlines, self.seed, || self.platform.worker_state());
        self.found = fetched.map_err(|gave_up| not_fetched(&self.sync_unit, &gave_up))?.unwrap_or_default();
        checkpoint_of(&self.document()?, &self.sync_unit)
    }

    /// The worker state as it was when the unit was taken over.
    fn document(&self) -> Result<Document> {
        read(self.found.state.as_deref(), &self.what())
    }

    fn what(&self) -> String {
        what(&self.sync_unit)
    }
}

pub(super) fn what(sync_unit: &str) -> String {
    format!("the worker state of {sync_unit}")
}

fn not_fetched(sync_unit: &str, gave_up: &GaveUp) -> Error {
    Error::NotFetched { sync_unit: sync_unit.to_owned(), reason: gave_up.to_string() }
}

fn not_saved(sync_unit: &str, gave_up: &GaveUp) -> Error {
    Error::NotSaved { sync_unit: sync_unit.to_owned(), reason: gave_up.to_string() }
}

/// The token that is saved when a unit's state is deleted: derived from its holder's, so it is no other holder's.
fn deletion_token(holder: &str) -> String {
    format!("{holder}-deleted")
}

/// Puts a checkpoint into a worker state.
pub(super) fn set_checkpoint(
    document: &mut Document,
    checkpoint: &Checkpoint,
    sync_unit: &str,
) -> Result<()> {
    let json = RawValue::from_string(checkpoint.to_json(sync_unit)?);
    let json =
        json.map_err(|error| Error::WorkerState { what: what(sync_unit), reason: error.to_string() })?;
    document.set(CHECKPOINT_KEY, &json);
    Ok(())
}

/// The checkpoint in a worker state.
#[cfg(feature = "testing")]
pub(crate) fn checkpoint_in(state: Option<&str>, sync_unit: &str) -> Result<Option<Checkpoint>> {
    checkpoint_of(&read(state, &what(sync_unit))?, sync_unit)
}

/// A worker state, with a misplaced checkpoint moved to its place.
pub(super) fn read(state: Option<&str>, what: &str) -> Result<Document> {
    let mut document = Document::read(state, what)?;
    sdk::lift(&mut document);
    Ok(document)
}

pub(super) fn checkpoint_of(document: &Document, sync_unit: &str) -> Result<Option<Checkpoint>> {
    let json = document.get(CHECKPOINT_KEY).map(RawValue::get).filter(|json| *json != "null");
    json.map(|json| Checkpoint::from_json(json, sync_unit)).transpose()
}

/// The batches that the sealed message in a checkpoint announces, if there is one.
pub(super) fn sealed_in(checkpoint: &Checkpoint, sync_unit: &str) -> Result<Vec<(BatchInfo, String)>> {
    checkpoint.sealed_body().map_or(Ok(Vec::new()), |body| announced(body, sync_unit))
}

/// The batches that a message composed by us announces, in its order, without their seq, each with its artifact.
///
/// # Errors
/// `WorkerState` if it is not one of ours.
fn announced(body: &str, sync_unit: &str) -> Result<Vec<(BatchInfo, String)>> {
    #[derive(Deserialize)]
    struct Body {
        event_data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        artifacts: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        id: String,
        item_type: String,
        item_count: u32,
        oldest_created_date: Option<String>,
        newest_created_date: Option<String>,
        oldest_modified_date: Option<String>,
        newest_modified_date: Option<String>,
    }
    let range = |oldest: Option<String>, newest: Option<String>| {
        let moment =
            |text: String| DateTime::parse_from_rfc3339(&text).ok().map(|at| Micros::from_time(at.to_utc()));
        Some((moment(oldest?)?, moment(newest?)?))
    };
    let body: Body = serde_json::from_str(body).map_err(|error| Error::WorkerState {
        what: format!("{CHECKPOINT_KEY} in {}", what(sync_unit)),
        reason: format!("its sealed message cannot be read: {error}"),
    })?;
    let entries = body.event_data.artifacts.into_iter();
    Ok(entries
        .map(|entry| {
            let created = range(entry.oldest_created_date, entry.newest_created_date);
            let modified = range(entry.oldest_modified_date, entry.newest_modified_date);
            (BatchInfo::new(entry.item_type, entry.item_count, created, modified), entry.id)
        })
        .collect())
}
