//! Tables of upload moves, each with one rule disabled: a negative control is an exploration with one of them.

use crate::model::Safeguard;
use crate::transfer::{Event, Held, Past, Rules, State, Table, Tables};

/// What the platform receives from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Uploads {
    /// Records.
    Batches,
    /// The files that records name.
    Attachments,
}

/// The tables without a rule; the real ones if the rule is not about uploads. `of`: the uploads for which it is
/// disabled; all, unless given.
pub(crate) fn tables_without(rule: Safeguard, of: Option<Uploads>) -> Tables {
    let table = |uploads| table_without(rule).filter(|_| of.is_none_or(|of| of == uploads));
    Tables { batches: table(Uploads::Batches), attachments: table(Uploads::Attachments) }
}

/// The table without a rule; `None` if the rule is not about uploads.
fn table_without(rule: Safeguard) -> Option<Table> {
    match rule {
        Safeguard::CommitBeforeConfirm => Some(id_stored_after_the_confirm),
        Safeguard::AnnounceConfirmed => Some(announced_unconfirmed),
        Safeguard::ConfirmAfterSave => Some(confirmed_unsaved),
        Safeguard::OutboxUntilAnnounced => Some(gone_once_confirmed),
        Safeguard::IdKeptInDoubt => Some(given_up_in_doubt),
        _ => None,
    }
}

/// An upload is confirmed at once; its id is stored afterwards.
fn id_stored_after_the_confirm(rules: Rules, state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Staged(Past { given_up, .. }), Event::Uploaded) => {
            Some(State::Uploaded(Held { given_up, saved: true, in_doubt: false }))
        }
        (State::Uploaded(Held { given_up, .. }), Event::Confirmed) => {
            Some(State::Named(Past { given_up, anew: 0 }))
        }
        (State::Named(Past { given_up, .. }), Event::IdStored) => {
            Some(State::Known(Held { given_up, saved: true, in_doubt: false }))
        }
        // In the store's form, which takes several events at once.
        (State::Uploaded(_), Event::IdStored) => Some(state),
        (State::Named(_), Event::ConfirmStored) => Some(State::Confirmed),
        _ => rules.after(state, event),
    }
}

/// An uploaded batch counts as confirmed.
fn announced_unconfirmed(rules: Rules, state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Named(Past { given_up, .. }), Event::IdStored) => {
            Some(State::Known(Held { given_up, saved: false, in_doubt: false }))
        }
        _ => rules.after(state, event),
    }
}

/// An upload counts as named by a saved checkpoint.
fn confirmed_unsaved(rules: Rules, state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Named(Past { given_up, .. }), Event::IdStored) => {
            Some(State::Uploaded(Held { given_up, saved: true, in_doubt: false }))
        }
        _ => rules.after(state, event),
    }
}

/// A confirmed upload is forgotten. For attachments this changes nothing: the confirm and the line that names them
/// are stored in one transaction.
fn gone_once_confirmed(rules: Rules, state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Known(_), Event::ConfirmStored) => Some(State::Delivered),
        _ => rules.after(state, event),
    }
}

/// An id whose confirm is refused is given up, whatever the outcome of earlier attempts.
fn given_up_in_doubt(rules: Rules, state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Uploaded(held), Event::ConfirmRefused) => Some(State::Rejected(held)),
        _ => rules.after(state, event),
    }
}
