//! How the rows of batches and attachments store the state of an upload.
//!
//! A row is read as a [`State`]. [`transfer`](crate::transfer) computes the next state, which is stored: it refuses
//! moves that it does not know, and the counts of the run follow from the states before and after a move.
//!
//! A row records in which life of the run its id was stored. Later lives do not know whether its confirm was tried.

use crate::error::{Error, Result};
use crate::model::ArtifactId;
use crate::transfer::{Event, Held, Illegal, Past, State};

use super::rows::{AttachmentRow, BatchRow, BatchState};
use super::run_handle::Run;

impl BatchRow {
    /// The state of the batch, as seen by the life at `epoch`.
    pub(super) fn transfer_state(&self, epoch: u64) -> State {
        match self.state {
            BatchState::Staged => staged(self.given_up),
            BatchState::Uploaded => uploaded(self.given_up, self.saved, self.uploaded_in == epoch),
            BatchState::Confirmed => State::Confirmed,
            BatchState::Announced(_) => State::Sealed,
        }
    }

    /// Sets the state of the batch. `message`: the one that names it, if any.
    pub(super) fn set_transfer_state(&mut self, state: State, message: u64) {
        match state {
            State::Staged(past) | State::Named(past) => {
                // The old id stays for checkpoints that are saved before there is a new one: only this disk has the
                // bytes.
                self.state = BatchState::Staged;
                self.given_up = self.given_up.max(past.given_up.into());
                self.saved = false;
            }
            State::Uploaded(held) | State::Known(held) | State::Rejected(held) => {
                self.state = BatchState::Uploaded;
                self.saved = held.saved;
            }
            State::Confirmed => self.state = BatchState::Confirmed,
            State::Sealed => self.state = BatchState::Announced(message),
            State::Stuck(_) | State::Failed | State::Delivered => {}
        }
    }
}

impl AttachmentRow {
    /// The state of the attachment, as seen by the life at `epoch`.
    pub(super) fn transfer_state(&self, epoch: u64) -> State {
        match &self.artifact {
            None => staged(self.given_up),
            Some((_, uploaded_in)) => uploaded(self.given_up, self.saved, *uploaded_in == epoch),
        }
    }

    /// Sets the state of the attachment.
    pub(super) fn set_transfer_state(&mut self, state: State) {
        match state {
            State::Staged(past) | State::Named(past) => {
                self.artifact = None;
                self.saved = false;
                self.given_up = self.given_up.max(past.given_up.into());
            }
            State::Uploaded(held) | State::Known(held) | State::Rejected(held) => self.saved = held.saved,
            // In these states it has no row.
            State::Confirmed | State::Sealed | State::Stuck(_) | State::Failed | State::Delivered => {}
        }
    }
}

fn staged(given_up: u32) -> State {
    State::Staged(Past { given_up: given_up > 0, anew: 0 })
}

fn uploaded(given_up: u32, saved: bool, in_this_life: bool) -> State {
    let state = State::Uploaded(Held { given_up: given_up > 0, saved, in_doubt: false });
    if in_this_life { state } else { state.taken_up() }
}

/// The error for a caller that stores ids itself.
pub(super) fn id_used(run: &Run, artifact: &ArtifactId, name: &str) -> Error {
    Error::Invalid {
        what: format!("the artifact id {artifact} of {name} of {}", run.unit),
        reason: "this run has used it for another upload; upload it again, under a new id".to_owned(),
    }
}

/// The state of a batch after some events that are stored at once.
pub(super) fn batch_moved(run: &Run, seq: u64, state: State, events: &[Event]) -> Result<State> {
    // The code that confirms decides whether a checkpoint must be saved first.
    let rules = run.batch_rules(true, false);
    rules.through(state, events).map_err(|illegal| illegal_move(run, &format!("batch {seq}"), illegal))
}

/// The state of an attachment after some events that are stored at once.
pub(super) fn attachment_moved(run: &Run, number: u64, state: State, events: &[Event]) -> Result<State> {
    let rules = run.attachment_rules(false);
    rules
        .through(state, events)
        .map_err(|illegal| illegal_move(run, &format!("attachment {number}"), illegal))
}

fn illegal_move(run: &Run, name: &str, illegal: Illegal) -> Error {
    Error::Invalid { what: format!("{name} of run {} of {}", run.id, run.unit), reason: illegal.to_string() }
}
