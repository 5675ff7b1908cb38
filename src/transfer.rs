//! The life of an upload, of a batch or an attachment, as one pure function.
//!
//! An upload has one [`State`]. [`Rules::next`] takes the state and an event, and returns the next state and what to
//! do in it, or that the move is illegal. Nothing here touches a disk, a clock or the platform, and nothing else
//! decides what may be done with an upload: the engine does what it is told and reports the outcome, and the store
//! stores only states that this function returned.
//!
//! | state | what to do | event | next state |
//! | --- | --- | --- | --- |
//! | `Staged` | upload the bytes | the platform took them under an id | `Named` |
//! | | | refused for a temporary reason | `Staged`, three times; then `Stuck` |
//! | | | refused | `Stuck` |
//! | `Named` | store the id | it is stored | `Uploaded` |
//! | | | this run has used it before | `Staged`, three times; then `Stuck` |
//! | `Uploaded` | where checkpoints are kept, save a checkpoint that names it; then confirm | a saved one does |
//! `Uploaded`, saved |
//! | | | confirmed | `Known` |
//! | | | the outcome of the confirm is unknown | `Uploaded`, in doubt |
//! | | | the confirm was refused | `Rejected`; in doubt, or for the second time, `Stuck` |
//! | `Known` | store that | it is stored | `Confirmed` |
//! | `Rejected` | store that the id is given up | it is stored | `Staged`, given up once |
//! | `Confirmed` | announce it | a sealed message names it | `Sealed` |
//! | | | the line that names it is staged (an attachment) | `Delivered` |
//! | `Sealed` | send the message | it was accepted | `Delivered` |
//! | | | it was refused | `Confirmed` |
//! | `Stuck` | report why | it is given up (an attachment) | `Failed` |
//! | `Failed` | nothing | it is queued again | `Staged` |
//! | `Delivered` | nothing | | |
//!
//! In addition, `Staged` and `Uploaded` uploads may be acknowledged (the caller's word for delivered) or given up. An
//! external sync unit is never confirmed: for it, `Uploaded` is treated as `Known`.
//!
//! `Named`, `Known`, `Rejected` and `Stuck` are never stored. If a process dies in one of them, the stored state is
//! the one before, and the next life does not know which calls were made: see [`State::taken_up`]. So an id is given
//! up only after a *definite* refusal of its confirm, with no earlier attempt whose outcome is unknown, and only
//! once: if the platform may have linked the artifact to the run, the same records under a second id would be there
//! twice.

use std::fmt;

/// How many times in a row an upload is prepared again, because its storage refused it for a temporary reason or the
/// platform gave it an id that the run has used before.
pub(crate) const ANEW_MAX: u8 = 3;

/// The steps that the uploads of a phase take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// An upload is confirmed before it is announced: all but external sync units.
    confirms: bool,
    /// An upload is confirmed only when a saved checkpoint names it: where checkpoints are kept.
    saves: bool,
    /// Other behaviour, for a negative control.
    #[cfg(feature = "testing")]
    table: Option<Table>,
}

/// Another table in place of the one in this module: the state after an event; `None` if the move is illegal.
#[cfg(feature = "testing")]
pub(crate) type Table = fn(Rules, State, Event) -> Option<State>;

/// Tables for batches and for attachments.
#[cfg(feature = "testing")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tables {
    pub(crate) batches: Option<Table>,
    pub(crate) attachments: Option<Table>,
}

/// The state of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Only we, or the source, have its bytes.
    Staged(Past),
    /// The platform has the bytes, under an id that is not stored.
    Named(Past),
    /// Its id is stored. Whether the platform has linked it to the run is unknown.
    Uploaded(Held),
    /// The platform has linked it to the run; that is not stored yet.
    Known(Held),
    /// The platform refused to link it, and never will under this id; that is not stored yet.
    Rejected(Held),
    /// It is stored that the platform has linked it to the run. No message names it.
    Confirmed,
    /// A sealed message names it.
    Sealed,
    /// It is delivered.
    Delivered,
    /// It cannot go on, and is not given up.
    Stuck(Why),
    /// It was given up, and is listed.
    Failed,
}

/// Earlier attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Past {
    /// It had an id before, which was given up.
    pub(crate) given_up: bool,
    /// How many times in a row it was prepared again.
    pub(crate) anew: u8,
}

/// An id that is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    /// It had another before, which was given up.
    pub(crate) given_up: bool,
    /// A saved checkpoint names it.
    pub(crate) saved: bool,
    /// A confirm was tried, or may have been, whose outcome is unknown.
    pub(crate) in_doubt: bool,
}

/// Why an upload cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// The upload was refused.
    UploadRefused,
    /// The storage refused the upload for temporary reasons, too often.
    StorageRefused,
    /// The platform gave it ids that the run had used before, too often.
    IdsUsed,
    /// The confirm was refused after an attempt whose outcome is unknown.
    RefusedInDoubt,
    /// The confirm was refused under a second id, too.
    RefusedTwice,
}

/// An event in the life of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The platform took the bytes, under an id.
    Uploaded,
    /// The upload was refused.
    UploadRefused,
    /// The storage refused the upload for a temporary reason: its URL had expired, or the bytes came too slowly.
    StorageRefused,
    /// The id is stored.
    IdStored,
    /// The run has used the id before, for this upload or another: it is not stored.
    IdUsed,
    /// A saved checkpoint names it under its id.
    Saved,
    /// The platform confirmed it.
    Confirmed,
    /// The outcome of the confirm is unknown.
    ConfirmLost,
    /// The platform refused the confirm for good.
    ConfirmRefused,
    /// It is stored that the platform confirmed it.
    ConfirmStored,
    /// It is stored that the id is given up.
    GivingUpStored,
    /// A message that names it is sealed.
    Sealed,
    /// That message was refused, for good.
    MessageRefused,
    /// That message was accepted, or a later event proves it.
    MessageAccepted,
    /// The line that names it is staged.
    LineStaged,
    /// The caller has delivered it.
    Acknowledged,
    /// It is given up and listed.
    GivenUp,
    /// It will be tried again.
    QueuedAgain,
}

/// What to do next with an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ToDo {
    Upload,
    StoreId,
    /// Save a checkpoint that names it.
    Save,
    Confirm,
    StoreConfirmed,
    StoreGivingUp,
    /// Name it in a message, or in a line.
    Announce,
    /// Send the message that names it.
    Send,
    Report(Why),
    Nothing,
}

/// A move that no upload makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Illegal {
    pub(crate) state: State,
    pub(crate) event: Event,
}

impl Rules {
    pub(crate) fn new(confirms: bool, saves: bool) -> Self {
        Self {
            confirms,
            saves,
            #[cfg(feature = "testing")]
            table: None,
        }
    }

    /// Uses another table of moves, for a negative control.
    #[cfg(feature = "testing")]
    pub(crate) fn with_table(self, table: Option<Table>) -> Self {
        Self { table, ..self }
    }

    /// The state after `event`, and what to do in it.
    pub(crate) fn next(self, state: State, event: Event) -> Result<(State, ToDo), Illegal> {
        #[cfg(feature = "testing")]
        let after = self.table.map_or_else(|| self.after(state, event), |table| table(self, state, event));
        #[cfg(not(feature = "testing"))]
        let after = self.after(state, event);
        let after = after.ok_or(Illegal { state, event })?;
        Ok((after, self.to_do(after)))
    }

    /// The state after several events, as they are stored in one transaction.
    pub(crate) fn through(self, state: State, events: &[Event]) -> Result<State, Illegal> {
        events.iter().try_fold(state, |state, &event| self.next(state, event).map(|(after, _)| after))
    }

    #[allow(clippy::match_same_arms, reason = "one arm for each line of the table")]
    pub(crate) fn after(self, state: State, event: Event) -> Option<State> {
        use Event as E;
        use State as S;
        let tried = self.to_do(state) == ToDo::Confirm;
        Some(match (state, event) {
            (S::Staged(past), E::Uploaded) => S::Named(past),
            (S::Staged(_), E::UploadRefused) => S::Stuck(Why::UploadRefused),
            (S::Staged(past), E::StorageRefused) => {
                past.anew().map_or(S::Stuck(Why::StorageRefused), S::Staged)
            }
            (S::Named(past), E::IdUsed) => past.anew().map_or(S::Stuck(Why::IdsUsed), S::Staged),
            (S::Named(Past { given_up, .. }), E::IdStored) => {
                S::Uploaded(Held { given_up, saved: false, in_doubt: false })
            }
            (S::Uploaded(held), E::Saved) => S::Uploaded(Held { saved: true, ..held }),
            (S::Uploaded(held), E::Confirmed) if tried => S::Known(held),
            (S::Uploaded(held), E::ConfirmLost) if tried => S::Uploaded(Held { in_doubt: true, ..held }),
            (S::Uploaded(held), E::ConfirmRefused) if tried => match held {
                Held { in_doubt: true, .. } => S::Stuck(Why::RefusedInDoubt),
                Held { given_up: true, .. } => S::Stuck(Why::RefusedTwice),
                _ => S::Rejected(held),
            },
            (S::Uploaded(_), E::ConfirmStored) if !self.confirms => S::Confirmed,
            (S::Known(_), E::ConfirmStored) => S::Confirmed,
            (S::Rejected(_), E::GivingUpStored) => S::Staged(Past { given_up: true, anew: 0 }),
            (S::Confirmed, E::Sealed) => S::Sealed,
            (S::Confirmed, E::LineStaged) => S::Delivered,
            (S::Sealed, E::MessageRefused) => S::Confirmed,
            (S::Sealed, E::MessageAccepted) => S::Delivered,
            (S::Staged(_) | S::Uploaded(_), E::Acknowledged) => S::Delivered,
            (S::Staged(_) | S::Uploaded(_) | S::Stuck(_), E::GivenUp) => S::Failed,
            (S::Failed, E::QueuedAgain) => S::Staged(Past::default()),
            _ => return None,
        })
    }

    /// What to do with an upload in this state.
    pub(crate) fn to_do(self, state: State) -> ToDo {
        match state {
            State::Staged(_) => ToDo::Upload,
            State::Named(_) => ToDo::StoreId,
            State::Uploaded(_) if !self.confirms => ToDo::StoreConfirmed,
            State::Uploaded(Held { saved: false, .. }) if self.saves => ToDo::Save,
            State::Uploaded(_) => ToDo::Confirm,
            State::Known(_) => ToDo::StoreConfirmed,
            State::Rejected(_) => ToDo::StoreGivingUp,
            State::Confirmed => ToDo::Announce,
            State::Sealed => ToDo::Send,
            State::Stuck(why) => ToDo::Report(why),
            State::Delivered | State::Failed => ToDo::Nothing,
        }
    }
}

impl Past {
    /// Prepared once more; `None` if that was done too often.
    fn anew(self) -> Option<Self> {
        (self.anew < ANEW_MAX).then_some(Self { anew: self.anew + 1, ..self })
    }
}

impl State {
    /// A new one.
    pub(crate) const NEW: State = State::Staged(Past { given_up: false, anew: 0 });

    /// A stored state, as a later life sees it: every call that could be made in it may have been made, with an
    /// unknown outcome.
    pub(crate) fn taken_up(self) -> State {
        match self {
            State::Staged(past) => State::Staged(Past { anew: 0, ..past }),
            State::Uploaded(held) => State::Uploaded(Held { in_doubt: true, ..held }),
            other => other,
        }
    }

    /// Whether it may be stored; other states exist only in the memory of a process.
    #[cfg(test)]
    fn is_stored(self) -> bool {
        !matches!(self, State::Named(_) | State::Known(_) | State::Rejected(_) | State::Stuck(_))
    }

    /// Which of the run's counts include it.
    pub(crate) fn counts(self) -> Counts {
        let sealed = matches!(self, State::Sealed | State::Delivered);
        Counts {
            open: !sealed && self != State::Failed,
            confirmed: sealed || self == State::Confirmed,
            announced: sealed,
            failed: self == State::Failed,
        }
    }
}

/// Which of a run's counts include an upload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one for each figure")]
pub(crate) struct Counts {
    /// It is in flight, and in no message.
    pub(crate) open: bool,
    /// The platform has linked it to the run, or it was acknowledged.
    pub(crate) confirmed: bool,
    /// A message or a line names it, or it was acknowledged.
    pub(crate) announced: bool,
    /// It was given up.
    pub(crate) failed: bool,
}

/// Changes a count by `items` if an upload begins or ceases to belong to it.
pub(crate) fn recount(figure: &mut u64, before: bool, after: bool, items: u64) {
    match (before, after) {
        (false, true) => *figure = figure.saturating_add(items),
        (true, false) => *figure = figure.saturating_sub(items),
        _ => {}
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::UploadRefused => f.write_str("the upload was refused"),
            Why::StorageRefused | Why::IdsUsed => {
                write!(f, "it was uploaded again {ANEW_MAX} times, with the same result")
            }
            Why::RefusedInDoubt => {
                f.write_str("an earlier attempt may have taken effect, so it is not uploaded again")
            }
            Why::RefusedTwice => f.write_str("and so was the one of the upload before it"),
        }
    }
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} cannot happen to an upload that is {:?}", self.event, self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 18] = [
        Event::Uploaded,
        Event::UploadRefused,
        Event::StorageRefused,
        Event::IdStored,
        Event::IdUsed,
        Event::Saved,
        Event::Confirmed,
        Event::ConfirmLost,
        Event::ConfirmRefused,
        Event::ConfirmStored,
        Event::GivingUpStored,
        Event::Sealed,
        Event::MessageRefused,
        Event::MessageAccepted,
        Event::LineStaged,
        Event::Acknowledged,
        Event::GivenUp,
        Event::QueuedAgain,
    ];
    const WHYS: [Why; 5] =
        [Why::UploadRefused, Why::StorageRefused, Why::IdsUsed, Why::RefusedInDoubt, Why::RefusedTwice];

    fn rules() -> impl Iterator<Item = Rules> {
        [(true, false), (true, true), (false, false)]
            .into_iter()
            .map(|(confirms, saves)| Rules::new(confirms, saves))
    }

    fn states() -> Vec<State> {
        let mut states = vec![State::Confirmed, State::Sealed, State::Delivered, State::Failed];
        states.extend(WHYS.map(State::Stuck));
        for given_up in [false, true] {
            for anew in 0..=ANEW_MAX {
                let past = Past { given_up, anew };
                states.extend([State::Staged(past), State::Named(past)]);
            }
            for (saved, in_doubt) in [(false, false), (false, true), (true, false), (true, true)] {
                let held = Held { given_up, saved, in_doubt };
                states.extend([State::Uploaded(held), State::Known(held), State::Rejected(held)]);
            }
        }
        states
    }

    /// The table of the module doc again, written by hand, by name alone.
    fn expected(rules: Rules, state: State, event: Event) -> Option<State> {
        let staged = |given_up, anew| State::Staged(Past { given_up, anew });
        let uploaded = |given_up, saved, in_doubt| State::Uploaded(Held { given_up, saved, in_doubt });
        match state {
            State::Staged(Past { given_up, anew }) => match event {
                Event::Uploaded => Some(State::Named(Past { given_up, anew })),
                Event::UploadRefused => Some(State::Stuck(Why::UploadRefused)),
                Event::StorageRefused if anew == 3 => Some(State::Stuck(Why::StorageRefused)),
                Event::StorageRefused => Some(staged(given_up, anew + 1)),
                Event::Acknowledged => Some(State::Delivered),
                Event::GivenUp => Some(State::Failed),
                _ => None,
            },
            State::Named(Past { given_up, anew }) => match event {
                Event::IdStored => Some(uploaded(given_up, false, false)),
                Event::IdUsed if anew == 3 => Some(State::Stuck(Why::IdsUsed)),
                Event::IdUsed => Some(staged(given_up, anew + 1)),
                _ => None,
            },
            State::Uploaded(held) => {
                let Held { given_up, saved, in_doubt } = held;
                let may_confirm = rules.confirms && (saved || !rules.saves);
                match event {
                    Event::Saved => Some(uploaded(given_up, true, in_doubt)),
                    Event::Acknowledged => Some(State::Delivered),
                    Event::GivenUp => Some(State::Failed),
                    Event::ConfirmStored if !rules.confirms => Some(State::Confirmed),
                    Event::Confirmed if may_confirm => Some(State::Known(held)),
                    Event::ConfirmLost if may_confirm => Some(uploaded(given_up, saved, true)),
                    Event::ConfirmRefused if may_confirm => Some(match (in_doubt, given_up) {
                        (true, _) => State::Stuck(Why::RefusedInDoubt),
                        (false, true) => State::Stuck(Why::RefusedTwice),
                        (false, false) => State::Rejected(held),
                    }),
                    _ => None,
                }
            }
            State::Known(_) => (event == Event::ConfirmStored).then_some(State::Confirmed),
            State::Rejected(_) => (event == Event::GivingUpStored).then_some(staged(true, 0)),
            State::Confirmed => match event {
                Event::Sealed => Some(State::Sealed),
                Event::LineStaged => Some(State::Delivered),
                _ => None,
            },
            State::Sealed => match event {
                Event::MessageRefused => Some(State::Confirmed),
                Event::MessageAccepted => Some(State::Delivered),
                _ => None,
            },
            State::Stuck(_) => (event == Event::GivenUp).then_some(State::Failed),
            State::Failed => (event == Event::QueuedAgain).then_some(staged(false, 0)),
            State::Delivered => None,
        }
    }

    #[test]
    fn every_pair_of_state_and_event_does_what_the_table_says() {
        let mut legal = 0;
        for rules in rules() {
            for state in states() {
                for event in EVENTS {
                    let found = rules.next(state, event).map(|(after, _)| after);
                    let expected = expected(rules, state, event).ok_or(Illegal { state, event });
                    assert_eq!(found, expected, "{rules:?}: {event:?} in {state:?}");
                    legal += usize::from(found.is_ok());
                }
            }
        }
        assert!(legal > 100, "{legal}");
    }

    /// The facts, whatever the process knows.
    #[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    struct World {
        state: State,
        /// The platform has linked, or may have linked, an id that was given up; and the current id.
        known_of_given_up: bool,
        known: bool,
        stored: bool,
        saved: bool,
    }

    impl World {
        /// The world after an event; `None` if the process should never have let it happen.
        fn after(self, rules: Rules, state: State, event: Event) -> Option<World> {
            let mut after = World { state, ..self };
            match event {
                Event::Uploaded => after = World { known: false, stored: false, saved: false, ..after },
                Event::IdStored => after.stored = true,
                Event::Saved => after.saved = true,
                Event::Confirmed | Event::ConfirmLost if !self.stored || (rules.saves && !self.saved) => {
                    return None;
                }
                Event::Confirmed | Event::ConfirmLost => after.known = true,
                Event::GivingUpStored => {
                    after.known_of_given_up |= self.known;
                    after.known = false;
                }
                _ => {}
            }
            (!(after.known && after.known_of_given_up)).then_some(after)
        }

        /// The world after a death: of what is not stored, the state before is left, and the call made in it may have
        /// taken effect.
        fn after_death(self, rules: Rules) -> World {
            let before = match self.state {
                State::Named(past) => State::Staged(past),
                State::Known(held) | State::Rejected(held) => State::Uploaded(held),
                stored => stored,
            };
            let called = before != self.state && rules.to_do(before) == ToDo::Confirm;
            World { state: before.taken_up(), known: self.known || called, ..self }
        }
    }

    /// Explores every way through the life of an upload, with a death of the process after any step. Returns where an
    /// id is confirmed before it is stored and (where checkpoints are kept) saved, or where the platform may have
    /// linked two ids of one upload; and the number of worlds.
    fn go_every_way(rules: Rules) -> (Option<(World, Event)>, usize) {
        let first =
            World { state: State::NEW, known_of_given_up: false, known: false, stored: false, saved: false };
        let mut seen = std::collections::HashSet::from([first]);
        let mut left = vec![first];
        while let Some(world) = left.pop() {
            let mut next = vec![world.after_death(rules)];
            for event in EVENTS {
                let Ok((state, _)) = rules.next(world.state, event) else { continue };
                match world.after(rules, state, event) {
                    Some(after) => next.push(after),
                    None => return (Some((world, event)), seen.len()),
                }
            }
            left.extend(next.into_iter().filter(|world| seen.insert(*world)));
        }
        (None, seen.len())
    }

    #[test]
    fn on_no_way_can_the_platform_know_two_ids_of_one_upload() {
        for rules in rules() {
            let (broken, worlds) = go_every_way(rules);
            assert_eq!(broken, None, "{rules:?}");
            assert!(worlds > 20, "{worlds}");
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn with_a_rule_taken_away_there_is_a_way_on_which_it_can() {
        let given_up_in_doubt: Table = |rules, state, event| match (state, event) {
            (State::Uploaded(held), Event::ConfirmRefused) => Some(State::Rejected(held)),
            _ => rules.after(state, event),
        };
        let confirmed_unstored: Table = |rules, state, event| match (state, event) {
            (State::Staged(_), Event::Uploaded) => {
                Some(State::Uploaded(Held { saved: true, ..Held::default() }))
            }
            _ => rules.after(state, event),
        };
        let confirmed_unsaved: Table = |rules, state, event| match (state, event) {
            (State::Named(_), Event::IdStored) => {
                Some(State::Uploaded(Held { saved: true, ..Held::default() }))
            }
            _ => rules.after(state, event),
        };
        let found = |table, saves| go_every_way(Rules::new(true, saves).with_table(Some(table))).0;
        assert!(found(given_up_in_doubt, false).is_some());
        assert!(found(confirmed_unstored, false).is_some());
        assert!(found(confirmed_unsaved, true).is_some());
        assert!(found(confirmed_unsaved, false).is_none(), "nothing is saved there");
    }

    #[test]
    fn what_is_stored_is_taken_up_in_doubt_and_what_is_not_stored_is_never_left_to_a_later_life() {
        for state in states() {
            assert_eq!(state.taken_up().is_stored(), state.is_stored());
            assert_eq!(state.taken_up().counts(), state.counts());
            assert_eq!(state.taken_up().taken_up(), state.taken_up());
            match state.taken_up() {
                State::Uploaded(held) => assert!(held.in_doubt),
                // A later life has as many attempts as the first.
                State::Staged(past) => assert_eq!(past.anew, 0),
                _ => {}
            }
        }
        for rules in rules() {
            for state in states() {
                let stores = matches!(
                    rules.to_do(state),
                    ToDo::StoreId | ToDo::StoreConfirmed | ToDo::StoreGivingUp | ToDo::Report(_)
                );
                let unconfirmed = !rules.confirms && matches!(state, State::Uploaded(_));
                assert_eq!(stores, !state.is_stored() || unconfirmed, "{rules:?}: {state:?}");
            }
        }
    }

    #[test]
    fn figures_follow_from_the_states_on_either_side_of_a_move() {
        let figures = |states: &[State]| {
            let (mut open, mut confirmed, mut announced, mut failed) = (0, 0, 0, 0);
            let mut before = Counts::default();
            for state in states {
                let after = state.counts();
                recount(&mut open, before.open, after.open, 1);
                recount(&mut confirmed, before.confirmed, after.confirmed, 7);
                recount(&mut announced, before.announced, after.announced, 7);
                recount(&mut failed, before.failed, after.failed, 1);
                before = after;
            }
            (open, confirmed, announced, failed)
        };
        let uploaded = State::Uploaded(Held::default());
        assert_eq!(figures(&[State::NEW]), (1, 0, 0, 0));
        assert_eq!(figures(&[State::NEW, uploaded, State::Confirmed]), (1, 7, 0, 0));
        assert_eq!(figures(&[State::NEW, uploaded, State::Confirmed, State::Sealed]), (0, 7, 7, 0));
        assert_eq!(figures(&[State::Confirmed, State::Sealed, State::Confirmed]), (1, 7, 0, 0));
        assert_eq!(figures(&[State::NEW, State::Delivered]), (0, 7, 7, 0));
        assert_eq!(figures(&[State::NEW, State::Failed]), (0, 0, 0, 1));
        assert_eq!(figures(&[State::NEW, State::Failed, State::NEW]), (1, 0, 0, 0));
        // A count of a damaged row may be too small; it does not go below zero.
        let mut figure = 3;
        recount(&mut figure, true, false, 7);
        assert_eq!(figure, 0);
    }

    #[test]
    fn what_went_wrong_is_told_in_words() {
        let said = WHYS.map(|why| why.to_string());
        assert!(said[0].contains("refused") && said[1].contains("3 times") && said[2] == said[1], "{said:?}");
        assert!(
            said[3].contains("may have taken effect") && said[4].contains("upload before it"),
            "{said:?}"
        );
        let illegal = Illegal { state: State::Delivered, event: Event::Sealed }.to_string();
        assert_eq!(illegal, "Sealed cannot happen to an upload that is Delivered");
    }
}
