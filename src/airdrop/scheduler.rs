//! Which page is fetched next.
//!
//! Pure: it is told what becomes of the listings, and says which of them a page is to be fetched of. It knows neither
//! the source nor the store, and no clock but the moment that it is given.
//!
//! The listings stand in one order: a listing's children before itself, in the order in which they were named, and the
//! streams in the extractor's. So children are worked off before their parent's next page, depth first. A page may be
//! fetched of the first `at_once` listings in that order that have no children left, and of each only one at a time. With
//! one at once, that is one listing after the other.
//!
//! A listing is in one of three states:
//!
//! | state | what it waits for | leaves it by |
//! | --- | --- | --- |
//! | idle | its turn | [`Scheduler::begun`] |
//! | in flight | its page | [`Scheduler::came`], or [`Scheduler::gave_none`], which makes it idle |
//! | held | the commit of its page | [`Scheduler::committed`]: idle if there is more, else it is gone |
//!
//! A listing whose page is held, and was its last, gives its place to the next one: so the pages of many short listings can
//! be committed together.
//!
//! One page of a listing is under way at a time. To fetch pages ahead of one listing is to let a held page, whose cursor is
//! known, be followed by the next: that is decided in [`Scheduler::next`] and nowhere else.

use std::collections::BTreeMap;
use std::time::Duration;

/// A listing, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ListingNo {
    /// A stream, by its place among the extractor's.
    Stream(usize),
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A page of this listing is to be fetched.
    Fetch(ListingNo),
    /// Nothing, until a page comes or is committed.
    Wait,
    /// Nothing, until this moment.
    Paused(Duration),
    /// Every listing is exhausted.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    InFlight,
    /// `more`: it was not the last page.
    Held {
        more: bool,
    },
}

/// The listings that are not exhausted, and what becomes of them.
#[derive(Debug)]
pub(super) struct Scheduler {
    at_once: usize,
    /// The one whose turn is next comes last.
    order: Vec<ListingNo>,
    states: BTreeMap<ListingNo, State>,
    in_flight: usize,
    paused_until: Option<Duration>,
}

impl Scheduler {
    /// These streams, in this order.
    pub(super) fn new(at_once: usize, streams: impl DoubleEndedIterator<Item = usize>) -> Self {
        let order: Vec<_> = streams.rev().map(ListingNo::Stream).collect();
        let states = order.iter().map(|no| (*no, State::Idle)).collect();
        Self { at_once: at_once.max(1), order, states, in_flight: 0, paused_until: None }
    }

    /// What is to be done next, at this moment.
    pub(super) fn next(&self, now: Duration) -> Next {
        if self.order.is_empty() {
            return Next::Done;
        }
        if self.in_flight >= self.at_once {
            return Next::Wait;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Next::Paused(until);
        }
        let states = self.order.iter().rev().filter_map(|no| Some((*no, *self.states.get(no)?)));
        states
            .filter(|(_, state)| *state != State::Held { more: false })
            .take(self.at_once)
            .find(|(_, state)| *state == State::Idle)
            .map_or(Next::Wait, |(no, _)| Next::Fetch(no))
    }

    /// Pages that are being fetched.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether as many pages are being fetched as may be.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight >= self.at_once
    }

    /// A page is being fetched of a listing that was idle.
    pub(super) fn begun(&mut self, no: ListingNo) {
        self.turn(no, State::Idle, State::InFlight);
        self.in_flight += 1;
    }

    /// The page came, and waits to be committed.
    pub(super) fn came(&mut self, no: ListingNo, more: bool) {
        self.turn(no, State::InFlight, State::Held { more });
        self.in_flight -= 1;
    }

    /// No page came: it is to be fetched again.
    pub(super) fn gave_none(&mut self, no: ListingNo) {
        self.turn(no, State::InFlight, State::Idle);
        self.in_flight -= 1;
    }

    /// The page is committed.
    pub(super) fn committed(&mut self, no: ListingNo) {
        match self.states.get(&no) {
            Some(State::Held { more: false }) => {
                self.states.remove(&no);
                // It stood near the end.
                if let Some(at) = self.order.iter().rposition(|other| *other == no) {
                    self.order.remove(at);
                }
            }
            _ => self.turn(no, State::Held { more: true }, State::Idle),
        }
    }

    /// Begins no page of any listing before this moment.
    pub(super) fn pause(&mut self, until: Duration) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether nothing may begin at this moment.
    pub(super) fn is_paused(&self, now: Duration) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    fn turn(&mut self, no: ListingNo, from: State, to: State) {
        let before = self.states.insert(no, to);
        assert_eq!(before, Some(from), "{no:?} turns to {to:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const FIRST: ListingNo = ListingNo::Stream(0);
    const SECOND: ListingNo = ListingNo::Stream(1);
    const THIRD: ListingNo = ListingNo::Stream(2);

    fn scheduler(at_once: usize, streams: usize) -> Scheduler {
        Scheduler::new(at_once, 0..streams)
    }

    /// A page is fetched and committed.
    fn page(scheduler: &mut Scheduler, no: ListingNo, more: bool) {
        assert_eq!(scheduler.next(NOW), Next::Fetch(no));
        scheduler.begun(no);
        scheduler.came(no, more);
        scheduler.committed(no);
    }

    #[test]
    fn with_one_at_once_streams_are_read_one_after_the_other() {
        let mut scheduler = scheduler(1, 2);
        page(&mut scheduler, FIRST, true);
        page(&mut scheduler, FIRST, false);
        page(&mut scheduler, SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
        assert_eq!(Scheduler::new(1, 0..0).next(NOW), Next::Done);
    }

    #[test]
    fn no_page_of_a_listing_is_fetched_before_the_one_before_it_is_committed() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        assert_eq!((scheduler.next(NOW), scheduler.is_full()), (Next::Wait, true));
        scheduler.came(FIRST, true);
        assert_eq!((scheduler.next(NOW), scheduler.is_full()), (Next::Wait, false));
        scheduler.committed(FIRST);
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
    }

    #[test]
    fn a_listing_whose_last_page_is_held_gives_its_place_away() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, false);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND));
        scheduler.begun(SECOND);
        scheduler.came(SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Wait, "two are not committed");
        scheduler.committed(SECOND);
        scheduler.committed(FIRST);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    #[test]
    fn the_first_so_many_are_read_at_once_and_no_others() {
        let mut scheduler = scheduler(2, 3);
        scheduler.begun(FIRST);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND));
        scheduler.begun(SECOND);
        assert_eq!(scheduler.next(NOW), Next::Wait);
        scheduler.came(SECOND, true);
        assert_eq!(scheduler.next(NOW), Next::Wait, "the third is none of the first two");
        scheduler.came(FIRST, false);
        scheduler.committed(FIRST);
        assert_eq!(scheduler.next(NOW), Next::Fetch(THIRD));
    }

    #[test]
    fn a_pause_holds_every_listing_back_and_ends() {
        let mut scheduler = scheduler(2, 2);
        let second = Duration::from_secs(1);
        scheduler.begun(FIRST);
        scheduler.gave_none(FIRST);
        scheduler.pause(second * 2);
        scheduler.pause(second);
        assert_eq!(scheduler.next(second), Next::Paused(second * 2));
        assert!(scheduler.is_paused(second) && !scheduler.is_paused(second * 2));
        assert_eq!(scheduler.next(second * 2), Next::Fetch(FIRST));
    }
}
