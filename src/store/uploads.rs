//! How the life of an upload stands in the rows of batches and of attachments.
//!
//! What a row says is a [`State`], and what is stored is what [`transfer`](crate::transfer) makes of it: a move that it
//! does not know is refused, and the figures of the run follow from the states on either side of the move.
//!
//! A row tells in which life of the run its id was stored. To every later one it is in doubt whether a confirm was tried.

use crate::error::{Error, Result};
use crate::model::ArtifactId;
use crate::transfer::{Event, Held, Illegal, Past, State};

use super::rows::{AttachmentRow, BatchRow, BatchState};
use super::run::Run;

impl BatchRow {
    /// Where the batch is in its life, to the life of the run that is at `epoch`.
    pub(super) fn transfer_state(&self, epoch: u64) -> State {
        match self.state {
            BatchState::Staged => staged(self.given_up),
            BatchState::Uploaded => uploaded(self.given_up, self.saved, self.uploaded_in == epoch),
            BatchState::Confirmed => State::Confirmed,
            BatchState::Announced(_) => State::Sealed,
        }
    }

    /// Puts the batch where it is now. `message`: the one that names it, if one does.
    pub(super) fn set_transfer_state(&mut self, state: State, message: u64) {
        match state {
            State::Staged(past) | State::Named(past) => {
                // The id stays for a checkpoint that is saved before there is another: the bytes are on this disk alone.
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
    /// Where the attachment is in its life, to the life of the run that is at `epoch`.
    pub(super) fn transfer_state(&self, epoch: u64) -> State {
        match &self.artifact {
            None => staged(self.given_up),
            Some((_, uploaded_in)) => uploaded(self.given_up, self.saved, *uploaded_in == epoch),
        }
    }

    /// Puts the attachment where it is now.
    pub(super) fn set_transfer_state(&mut self, state: State) {
        match state {
            State::Staged(past) | State::Named(past) => {
                self.artifact = None;
                self.saved = false;
                self.given_up = self.given_up.max(past.given_up.into());
            }
            State::Uploaded(held) | State::Known(held) | State::Rejected(held) => self.saved = held.saved,
            // A row of it is there no more.
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

/// The error for whoever stores an id by themselves.
pub(super) fn id_used(run: &Run, artifact: &ArtifactId, name: &str) -> Error {
    Error::Invalid {
        what: format!("the artifact id {artifact} of {name} of {}", run.unit),
        reason: "this run has used it for another upload; upload anew, under an id of its own".to_owned(),
    }
}

/// Where a batch is after some events that are stored at once.
pub(super) fn batch_moved(run: &Run, seq: u64, state: State, events: &[Event]) -> Result<State> {
    // Whether a checkpoint is to be saved first is for those who confirm to know.
    let rules = run.batch_rules(true, false);
    rules.through(state, events).map_err(|illegal| illegal_move(run, &format!("batch {seq}"), illegal))
}

/// Where an attachment is after some events that are stored at once.
pub(super) fn attachment_moved(run: &Run, number: u64, state: State, events: &[Event]) -> Result<State> {
    let rules = run.attachment_rules(false);
    rules
        .through(state, events)
        .map_err(|illegal| illegal_move(run, &format!("attachment {number}"), illegal))
}

fn illegal_move(run: &Run, name: &str, illegal: Illegal) -> Error {
    Error::Invalid { what: format!("{name} of run {} of {}", run.id, run.unit), reason: illegal.to_string() }
}
