//! The worker state of a sync unit, taken from the platform to be inspected or mended by hand.
//!
//! Its checkpoint is restored to a store in memory, mended there like any store, and written out again under a token
//! that no worker has. So every disk that a worker kept becomes stale, and a worker that holds the unit stops at its
//! next save. Keys of others stay unchanged, except the keys in which the TypeScript SDK records what its runs have
//! extracted: they would count as news, and undo the changes.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::{CHECKPOINT_BYTES_MAX, CHECKPOINT_STATE_BYTES_MAX, SyncUnitId};
use crate::store::{CHECKPOINT_KEY, Store, SyncUnit};

use super::document::{Document, posted_bytes};
use super::keeper::{checkpoint_of, read, sealed_in, set_checkpoint, what};
use super::sdk;

/// The member of the platform's answer that holds the state, as text.
const STATE: &str = "state";

/// A worker state with a checkpoint in it.
///
/// ```
/// use highwater::airdrop::SavedState;
///
/// let error = SavedState::read(r#"{"own":1}"#, "acme/tickets").unwrap_err();
/// assert!(error.to_string().contains("no checkpoint"));
/// ```
#[derive(Debug)]
pub struct SavedState {
    /// The object around it, as the platform answers: `{"state": "..."}`.
    answer: Option<Map<String, Value>>,
    document: Document,
    unit: SyncUnit,
    store: Store,
}

impl SavedState {
    /// Reads a worker state, or the platform's answer that contains one. `sync_unit` is the name of its unit, which
    /// the state itself does not contain.
    ///
    /// # Errors
    /// `WorkerState` if it cannot be read; `Invalid` if it has no checkpoint.
    pub fn read(text: &str, sync_unit: &str) -> Result<Self> {
        let id = SyncUnitId::new(sync_unit)?;
        let answer = answer_around(text);
        let state = answer.as_ref().and_then(|answer| answer.get(STATE)?.as_str()).unwrap_or(text);
        let document = read(Some(state), &what(sync_unit))?;
        let Some(checkpoint) = checkpoint_of(&document, sync_unit)? else {
            return Err(Error::Invalid {
                what: what(sync_unit),
                reason: "there is no checkpoint of highwater in it".to_owned(),
            });
        };
        let store = Store::in_memory(&what(sync_unit))?;
        let unit = store.any_unit(id);
        unit.restore(&checkpoint, &sealed_in(&checkpoint, sync_unit)?)?;
        Ok(Self { answer, document, unit, store })
    }

    /// The store in memory that holds the checkpoint; changes to it are written out.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The worker state to put back, in the form in which it came: with a checkpoint of what the store holds now,
    /// under a new token.
    ///
    /// # Errors
    /// `TooLarge` if the platform would refuse it; `WorkerState` if keys of the TypeScript SDK cannot be read;
    /// `Corrupt`.
    pub fn to_text(&self) -> Result<String> {
        let sync_unit = self.unit.id().as_str();
        let what = what(sync_unit);
        // Random, as each `RandomState` is.
        let token = format!("{:016x}", RandomState::new().build_hasher().finish());
        let checkpoint = match self.unit.newest_run()? {
            Some(run) => {
                let position = if run.is_open()? { run.position()? } else { None };
                let mut others = self.document.clone();
                others.remove(CHECKPOINT_KEY);
                let others = posted_bytes(&others.to_text()) as u64;
                let room = run.room(CHECKPOINT_STATE_BYTES_MAX, others)?;
                run.checkpoint(&token, position.as_ref(), room.left())?
            }
            None => self.unit.checkpoint_of_unit(&token)?,
        };
        let mut document = self.document.clone();
        set_checkpoint(&mut document, &checkpoint, sync_unit)?;
        if checkpoint.has_no_run() {
            sdk::remove(&mut document);
        } else {
            sdk::forget_standing(&mut document, &what)?;
            sdk::write(&mut document, &what, &checkpoint.standing())?;
            if let Some(own) = checkpoint.connector_state() {
                sdk::write_connector_state(&mut document, own);
            }
        }
        let text = document.to_text();
        let bytes = posted_bytes(&text);
        if bytes > CHECKPOINT_BYTES_MAX {
            let (found, limit) = (bytes as u64, CHECKPOINT_BYTES_MAX as u64);
            return Err(Error::TooLarge { what, found, limit, unit: "bytes as posted" });
        }
        Ok(match &self.answer {
            Some(answer) => {
                let mut answer = answer.clone();
                answer.insert(STATE.to_owned(), text.into());
                Value::Object(answer).to_string()
            }
            None => text,
        })
    }
}

/// The object around a state that was saved as the platform answered it.
fn answer_around(text: &str) -> Option<Map<String, Value>> {
    let answer: Map<String, Value> = serde_json::from_str(text).ok()?;
    (answer.get(STATE).is_some_and(Value::is_string) && !answer.contains_key(CHECKPOINT_KEY))
        .then_some(answer)
}
