//! Decides which page is fetched next.
//!
//! The decisions are pure: the scheduler is told what happens to pages, and returns the listing whose page to fetch
//! next. It knows neither the source nor the store, and the only time it knows is the moment passed in.
//!
//! The listings are kept in one order. The children of a listing come before it, in the order in which they were
//! named; streams come in the extractor's order. So children are read before their parent's next page, depth first.
//! Pages may be fetched from the first `at_once` listings in that order that have no children left, one page per
//! listing at a time. If `at_once` is 1, one listing is read after the other.
//!
//! A page is *in flight* ([`Scheduler::begun`]) until it arrives ([`Scheduler::came`]) or fails to
//! ([`Scheduler::gave_none`]). Then it is *held* until it is committed ([`Scheduler::committed`]) or refused
//! ([`Scheduler::refused`]). Pages are committed in the order in which they arrived. What may follow a held page
//! ([`Then`]):
//!
//! | the page | its listing |
//! | --- | --- |
//! | has a next page, and names no child listings | goes on, ahead of the commit |
//! | names child listings | waits for the commit: the children come first |
//! | is the last, and names no child listings | *gives way* to the next listing |
//! | is refused | waits until none of its pages is in flight or held, then goes on from its last committed page |
//!
//! A page is fetched *ahead* if an earlier page of its listing is held. That is done only while all held pages
//! together have fewer than `ahead_bytes` bytes. A held page that sets values can be seen by the pages fetched ahead
//! of its own listing, but not by others: while it is held, no page of another listing is begun.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ListingNo {
    /// A stream, by its index among the extractor's streams.
    Stream(usize),
    /// A child listing, by its number in the run. Numbers rise in the order in which listings are named.
    Child(u64),
}

/// A child listing that an earlier life left unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeftChild {
    pub(super) number: u64,
    /// The number of the first child listing that the same page named.
    pub(super) named_with: u64,
    /// The listing that waits for it.
    pub(super) under: Option<ListingNo>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Fetch a page of this listing.
    Fetch(ListingNo),
    /// Wait until a page arrives or is committed.
    Wait,
    /// Wait until this moment.
    Paused(Duration),
    /// Every listing is exhausted.
    Done,
}

/// What may follow a page of its listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The next page: its cursor is known.
    NextPage,
    /// The child listings that the page names.
    Children,
    /// Nothing: the page is the last, and names no child listings.
    Nothing,
}

/// A page that arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    pub(super) then: Then,
    /// About how many bytes its records take.
    pub(super) bytes: u64,
    pub(super) sets_values: bool,
}

#[derive(Debug)]
struct Node {
    in_flight: bool,
    /// The pages that arrived and are not committed, oldest first.
    held: VecDeque<Came>,
    /// One of its pages was refused: it goes on once nothing of it is in flight or held.
    is_refused: bool,
    /// The listing that waits for it.
    under: Option<ListingNo>,
    /// The number of listings that it waits for, and how many of these give way.
    children: usize,
    children_held: usize,
}

impl Node {
    fn under(under: Option<ListingNo>) -> Self {
        Self {
            in_flight: false,
            held: VecDeque::new(),
            is_refused: false,
            under,
            children: 0,
            children_held: 0,
        }
    }

    /// What may follow the newest held page; `None` if no page is held.
    fn then(&self) -> Option<Then> {
        self.held.back().map(|came| came.then)
    }

    fn gives_way(&self) -> bool {
        self.then() == Some(Then::Nothing) && !self.is_refused
    }
}

/// The listings that are not exhausted, and the state of their pages.
#[derive(Debug)]
pub(super) struct Scheduler {
    at_once: usize,
    /// No page is fetched ahead once held pages have this many bytes.
    ahead_bytes: u64,
    /// In reverse: the listing whose turn is first is last.
    order: Vec<ListingNo>,
    nodes: BTreeMap<ListingNo, Node>,
    in_flight: usize,
    held_bytes: u64,
    /// For each listing, how many of its held pages set values.
    set_values: BTreeMap<ListingNo, usize>,
    paused_until: Option<Duration>,
}

impl Scheduler {
    /// Takes the streams in their order, and the child listings that earlier lives left. If `ahead_bytes` is 0, no
    /// page is fetched ahead.
    pub(super) fn new(
        at_once: usize,
        ahead_bytes: u64,
        streams: impl DoubleEndedIterator<Item = usize>,
        left: impl IntoIterator<Item = LeftChild>,
    ) -> Self {
        let mut this = Self {
            at_once: at_once.max(1),
            ahead_bytes,
            order: Vec::new(),
            nodes: streams.map(|no| (ListingNo::Stream(no), Node::under(None))).collect(),
            in_flight: 0,
            held_bytes: 0,
            set_values: BTreeMap::new(),
            paused_until: None,
        };
        let streams: Vec<_> = this.nodes.keys().rev().copied().collect();
        let left: Vec<_> = left.into_iter().collect();
        this.nodes.extend(left.iter().map(|child| (ListingNo::Child(child.number), Node::under(None))));
        // Listings named later come first: they replaced the listing whose last page named them.
        let mut by_under: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for LeftChild { number, named_with, under } in left {
            let under = under.filter(|under| this.nodes.contains_key(under));
            let place = (std::cmp::Reverse(named_with), number);
            by_under.entry(under).or_default().insert(place, ListingNo::Child(number));
            if let Some(node) = this.nodes.get_mut(&ListingNo::Child(number)) {
                node.under = under;
            }
            if let Some(node) = under.and_then(|under| this.nodes.get_mut(&under)) {
                node.children += 1;
            }
        }
        // Each listing is put before the listings that wait for it. As `order` is reversed, that is after them.
        let mut of = |under| by_under.remove(&under).unwrap_or_default().into_values();
        let mut open: Vec<_> = of(None).chain(streams.into_iter().rev()).collect();
        while let Some(no) = open.pop() {
            this.order.push(no);
            open.extend(of(Some(no)));
        }
        this
    }

    fn put_at(&mut self, at: usize, under: Option<ListingNo>, children: &[u64]) {
        if let Some(node) = under.and_then(|under| self.nodes.get_mut(&under)) {
            node.children += children.len();
        }
        let numbers = children.iter().map(|child| ListingNo::Child(*child));
        self.nodes.extend(numbers.clone().map(|no| (no, Node::under(under))));
        self.order.splice(at..at, numbers.rev());
    }

    /// What to do next, at this moment.
    pub(super) fn next(&self, now: Duration) -> Next {
        if self.order.is_empty() {
            return Next::Done;
        }
        if self.is_full() {
            return Next::Wait;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Next::Paused(until);
        }
        let mut turns = self.turns();
        turns.find(|(no, node)| self.may_begin(*no, node)).map_or(Next::Wait, |(no, _)| Next::Fetch(no))
    }

    /// Whether the next page of this listing may be fetched now, before its newest page is committed.
    pub(super) fn may_go_ahead(&self, no: ListingNo, now: Duration) -> bool {
        let may = |(other, node): (ListingNo, &Node)| other == no && self.may_begin(no, node);
        !self.is_full() && !self.is_paused(now) && self.turns().any(may)
    }

    /// Whether a page could be begun if the held pages were committed.
    pub(super) fn waits_for_commit(&self) -> bool {
        !self.is_full() && self.turns().any(|(_, node)| !node.in_flight)
    }

    /// The listings whose turn it is.
    fn turns(&self) -> impl Iterator<Item = (ListingNo, &Node)> {
        let nodes = self.order.iter().rev().filter_map(|no| Some((*no, self.nodes.get(no)?)));
        // If all children of a listing only wait to be committed, it is the next to be read: no other listing takes
        // its turn.
        nodes.filter(|(_, node)| node.children == node.children_held && !node.gives_way()).take(self.at_once)
    }

    fn may_begin(&self, no: ListingNo, node: &Node) -> bool {
        let leads_on = match node.then() {
            None => true,
            Some(then) => then == Then::NextPage && !node.is_refused && self.held_bytes < self.ahead_bytes,
        };
        node.children == 0 && !node.in_flight && leads_on && self.set_values.keys().all(|other| *other == no)
    }

    /// The number of pages being fetched.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether no more pages may be fetched at once.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight >= self.at_once
    }

    /// A page of a listing is now being fetched. The listing had none in flight.
    pub(super) fn begun(&mut self, no: ListingNo) {
        self.turn(no, true);
        self.in_flight += 1;
    }

    /// The page arrived, and waits to be committed.
    pub(super) fn came(&mut self, no: ListingNo, came: Came) {
        let Some(node) = self.landed(no) else { return };
        assert!(!node.is_refused, "{no:?} went on after a refused page");
        node.held.push_back(came);
        self.held_bytes += came.bytes;
        if came.sets_values {
            *self.set_values.entry(no).or_default() += 1;
        }
        if came.then == Then::Nothing
            && let Some(node) = self.waiting_for(no)
        {
            node.children_held += 1;
        }
    }

    /// No page arrived, or it followed a refused one: it is to be fetched again.
    pub(super) fn gave_none(&mut self, no: ListingNo) {
        if let Some(node) = self.landed(no) {
            node.is_refused &= !node.held.is_empty();
        }
    }

    /// All held pages of a listing except the oldest `keep` are refused, and so is its page in flight, if there is
    /// one.
    pub(super) fn refused(&mut self, no: ListingNo, keep: usize) {
        let Some(node) = self.nodes.get_mut(&no) else { return };
        let gave_way = node.gives_way() && keep < node.held.len();
        let refused = node.held.split_off(keep.min(node.held.len()));
        node.is_refused = node.in_flight || !node.held.is_empty();
        for came in refused {
            self.no_longer_held(no, came);
        }
        if gave_way && let Some(waiting) = self.waiting_for(no) {
            waiting.children_held -= 1;
        }
    }

    /// The oldest held page of a listing is committed; it named these child listings. `more`: it was not the last
    /// page. If it was, the children replace their parent: what waited for the parent now waits for them.
    pub(super) fn committed(&mut self, no: ListingNo, more: bool, children: &[u64]) {
        let Some(node) = self.nodes.get_mut(&no) else { return };
        let came = node.held.pop_front();
        assert!(came.is_some(), "{no:?}: a page is committed and none is held");
        let gave_way = came.is_some_and(|came| came.then == Then::Nothing);
        let is_behind = node.in_flight || !node.held.is_empty();
        node.is_refused &= is_behind;
        let (is_refused, under) = (node.is_refused, node.under);
        assert!(
            !is_behind || is_refused || (more && children.is_empty()),
            "{no:?}: a page was fetched before its children"
        );
        if let Some(came) = came {
            self.no_longer_held(no, came);
        }
        if more && children.is_empty() {
            return;
        }
        // Search from the end: it is near it.
        let at = self.order.iter().rposition(|other| *other == no).unwrap_or(0);
        if more {
            return self.put_at(at + 1, Some(no), children);
        }
        self.nodes.remove(&no);
        self.order.remove(at);
        if let Some(waiting) = under.and_then(|under| self.nodes.get_mut(&under)) {
            waiting.children -= 1;
            waiting.children_held -= usize::from(gave_way);
        }
        self.put_at(at, under, children);
    }

    /// Begins no page before this moment.
    pub(super) fn pause(&mut self, until: Duration) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether no page may begin at this moment.
    pub(super) fn is_paused(&self, now: Duration) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    /// The listing that waits for this one.
    fn waiting_for(&mut self, no: ListingNo) -> Option<&mut Node> {
        let under = self.nodes.get(&no)?.under?;
        self.nodes.get_mut(&under)
    }

    fn no_longer_held(&mut self, no: ListingNo, came: Came) {
        self.held_bytes -= came.bytes;
        if came.sets_values
            && let Some(pages) = self.set_values.get_mut(&no)
        {
            *pages -= 1;
            if *pages == 0 {
                self.set_values.remove(&no);
            }
        }
    }

    /// The page of a listing is no longer in flight.
    fn landed(&mut self, no: ListingNo) -> Option<&mut Node> {
        self.turn(no, false);
        self.in_flight -= 1;
        self.nodes.get_mut(&no)
    }

    fn turn(&mut self, no: ListingNo, in_flight: bool) {
        let node = self.nodes.get_mut(&no);
        let was = node.as_ref().map(|node| node.in_flight);
        assert_eq!(was, Some(!in_flight), "{no:?}: in flight is set to {in_flight}");
        if let Some(node) = node {
            node.in_flight = in_flight;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;
    const FIRST: ListingNo = ListingNo::Stream(0);
    const SECOND: ListingNo = ListingNo::Stream(1);
    const THIRD: ListingNo = ListingNo::Stream(2);

    const LAST: Came = Came { then: Then::Nothing, bytes: 1, sets_values: false };
    const MORE: Came = Came { then: Then::NextPage, ..LAST };
    const NAMES: Came = Came { then: Then::Children, ..LAST };

    /// One that fetches no page ahead.
    fn scheduler(at_once: usize, streams: usize) -> Scheduler {
        Scheduler::new(at_once, 0, 0..streams, [])
    }

    /// One that fetches pages ahead until those that are held have three bytes.
    fn scheduler_ahead(at_once: usize, streams: usize) -> Scheduler {
        Scheduler::new(at_once, 3, 0..streams, [])
    }

    /// Fetches a page and commits it.
    fn page(scheduler: &mut Scheduler, no: ListingNo, more: bool) {
        assert_eq!(scheduler.next(NOW), Next::Fetch(no));
        scheduler.begun(no);
        scheduler.came(no, if more { MORE } else { LAST });
        scheduler.committed(no, more, &[]);
    }

    #[test]
    fn with_one_at_once_streams_are_read_one_after_the_other() {
        let mut scheduler = scheduler(1, 2);
        page(&mut scheduler, FIRST, true);
        page(&mut scheduler, FIRST, false);
        page(&mut scheduler, SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
        assert_eq!(Scheduler::new(1, 0, 0..0, []).next(NOW), Next::Done);
    }

    #[test]
    fn without_room_no_page_of_a_listing_is_fetched_before_the_one_before_it_is_committed() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        assert_eq!((scheduler.next(NOW), scheduler.is_full()), (Next::Wait, true));
        scheduler.came(FIRST, MORE);
        assert!(!scheduler.may_go_ahead(FIRST, NOW));
        assert_eq!((scheduler.next(NOW), scheduler.is_full()), (Next::Wait, false));
        scheduler.committed(FIRST, true, &[]);
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
    }

    #[test]
    fn a_listing_whose_last_page_is_held_gives_its_place_away() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, LAST);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND));
        scheduler.begun(SECOND);
        scheduler.came(SECOND, LAST);
        assert_eq!(scheduler.next(NOW), Next::Wait, "two pages are not committed");
        scheduler.committed(SECOND, false, &[]);
        scheduler.committed(FIRST, false, &[]);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    #[test]
    fn nothing_overtakes_a_listing_whose_last_child_is_held() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, NAMES);
        scheduler.committed(FIRST, true, &[1, 2]);
        for child in [1, 2].map(ListingNo::Child) {
            assert_eq!(scheduler.next(NOW), Next::Fetch(child));
            scheduler.begun(child);
            scheduler.came(child, LAST);
        }
        assert_eq!(scheduler.next(NOW), Next::Wait);
        for child in [1, 2].map(ListingNo::Child) {
            scheduler.committed(child, false, &[]);
        }
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
    }

    #[test]
    fn the_first_so_many_are_read_at_once_and_no_others() {
        let mut scheduler = scheduler(2, 3);
        scheduler.begun(FIRST);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND));
        scheduler.begun(SECOND);
        assert_eq!(scheduler.next(NOW), Next::Wait);
        scheduler.came(SECOND, MORE);
        assert_eq!(scheduler.next(NOW), Next::Wait, "the third is not among the first two");
        scheduler.came(FIRST, LAST);
        scheduler.committed(FIRST, false, &[]);
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

    #[test]
    fn children_come_before_the_next_page_and_take_the_place_of_a_parent_that_is_exhausted() {
        let [one, two, three, four] = [1, 2, 3, 4].map(ListingNo::Child);
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, NAMES);
        scheduler.committed(FIRST, true, &[1, 2]);
        assert_eq!(scheduler.next(NOW), Next::Fetch(one));
        scheduler.begun(one);
        scheduler.came(one, NAMES);
        assert_eq!(scheduler.next(NOW), Next::Wait, "the next listing is not known yet");
        // Its last page names one: that is read next, and the stream waits for it.
        scheduler.committed(one, false, &[3]);
        page(&mut scheduler, three, false);
        page(&mut scheduler, two, false);
        page(&mut scheduler, FIRST, true);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, NAMES);
        scheduler.committed(FIRST, false, &[4]);
        page(&mut scheduler, four, false);
        page(&mut scheduler, SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    #[test]
    fn children_of_an_earlier_life_stand_as_they_stood() {
        // The first child named 3 and goes on. The last page of a stream named 4 and 5. Then 5's last page named 6
        // and 7.
        let child = |number, named_with, under| LeftChild { number, named_with, under };
        let one = Some(ListingNo::Child(1));
        let gone = Some(ListingNo::Child(99));
        let left = [
            child(1, 1, Some(FIRST)),
            child(2, 1, Some(FIRST)),
            child(3, 3, one),
            child(4, 4, None),
            child(5, 4, gone),
            child(6, 6, None),
            child(7, 6, None),
        ];
        let mut scheduler = Scheduler::new(1, 3, 0..1, left);
        for no in [6, 7, 4, 5, 3, 1, 2] {
            page(&mut scheduler, ListingNo::Child(no), false);
        }
        page(&mut scheduler, FIRST, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    #[test]
    fn pages_of_a_listing_are_fetched_ahead_until_what_is_held_has_so_many_bytes() {
        let mut scheduler = scheduler_ahead(1, 2);
        for _ in 0..3 {
            assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
            scheduler.begun(FIRST);
            assert!(!scheduler.may_go_ahead(FIRST, NOW), "its cursor is not known");
            scheduler.came(FIRST, MORE);
        }
        assert_eq!((scheduler.next(NOW), scheduler.waits_for_commit()), (Next::Wait, true));
        scheduler.committed(FIRST, true, &[]);
        assert!(scheduler.may_go_ahead(FIRST, NOW));
        scheduler.begun(FIRST);
        assert!(!scheduler.waits_for_commit(), "no lane is idle");
        scheduler.came(FIRST, LAST);
        assert_eq!(
            scheduler.next(NOW),
            Next::Fetch(SECOND),
            "it gives way, although two earlier pages are held"
        );
        for more in [true, true, false] {
            scheduler.committed(FIRST, more, &[]);
        }
        page(&mut scheduler, SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    #[test]
    fn no_page_is_fetched_ahead_of_children() {
        let mut scheduler = scheduler_ahead(2, 1);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, NAMES);
        assert!(!scheduler.may_go_ahead(FIRST, NOW));
        assert_eq!((scheduler.next(NOW), scheduler.waits_for_commit()), (Next::Wait, true));
        // The pages that were fetched ahead.
        scheduler.committed(FIRST, true, &[]);
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
    }

    #[test]
    fn while_a_page_that_sets_values_is_held_only_its_own_listing_goes_on() {
        let mut scheduler = scheduler_ahead(3, 3);
        scheduler.begun(FIRST);
        scheduler.begun(SECOND);
        scheduler.came(FIRST, Came { sets_values: true, ..MORE });
        scheduler.came(SECOND, MORE);
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
        scheduler.begun(FIRST);
        assert!(!scheduler.may_go_ahead(SECOND, NOW));
        assert_eq!((scheduler.next(NOW), scheduler.waits_for_commit()), (Next::Wait, true));
        scheduler.committed(FIRST, true, &[]);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND));
    }

    #[test]
    fn what_follows_a_page_that_is_refused_is_fetched_again_from_where_its_listing_was_committed() {
        let mut scheduler = scheduler_ahead(2, 2);
        for _ in 0..2 {
            scheduler.begun(FIRST);
            scheduler.came(FIRST, MORE);
        }
        scheduler.begun(FIRST);
        scheduler.refused(FIRST, 1);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND));
        scheduler.gave_none(FIRST);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND), "the first page is not committed");
        scheduler.committed(FIRST, true, &[]);
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
        // The last page, which gave way.
        scheduler.begun(FIRST);
        scheduler.came(FIRST, LAST);
        scheduler.refused(FIRST, 0);
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
    }

    /// A source: each page is a list of the listings that it names.
    #[derive(Debug, Clone)]
    struct Tree {
        pages: Vec<Vec<Tree>>,
    }

    fn trees(depth: u32) -> BoxedStrategy<Tree> {
        let leaf = proptest::collection::vec(Just(Vec::new()), 1..3).prop_map(|pages| Tree { pages });
        leaf.prop_recursive(depth, 40, 4, |inner| {
            let page = proptest::collection::vec(inner, 0..4);
            proptest::collection::vec(page, 1..4).prop_map(|pages| Tree { pages })
        })
        .boxed()
    }

    /// The pages of a listing, depth first: the order when one page is fetched at once. Listings are numbered as
    /// pages are committed.
    fn depth_first(tree: &Tree, no: ListingNo, named: &mut u64, read: &mut Vec<(ListingNo, usize)>) {
        for (at, page) in tree.pages.iter().enumerate() {
            read.push((no, at));
            let first = *named + 1;
            *named += page.len() as u64;
            for (child, number) in page.iter().zip(first..) {
                depth_first(child, ListingNo::Child(number), named, read);
            }
        }
    }

    /// The state of a listing while a source is played.
    struct Played<'t> {
        tree: &'t Tree,
        /// The number of its pages that are committed.
        at: usize,
        under: Option<ListingNo>,
        named_with: u64,
    }

    impl Played<'_> {
        /// Page `at` as the scheduler sees it.
        fn came(&self, at: usize, chance: &mut fastrand::Rng) -> Came {
            let then = match self.tree.pages.get(at + 1) {
                _ if !self.tree.pages[at].is_empty() => Then::Children,
                Some(_) => Then::NextPage,
                None => Then::Nothing,
            };
            Came { then, bytes: chance.u64(..4), sets_values: chance.u8(..3) == 0 }
        }
    }

    /// A page that is being fetched, or that arrived.
    struct Page {
        no: ListingNo,
        at: usize,
        /// It follows a refused page.
        is_void: bool,
        came: Came,
    }

    fn of(no: ListingNo) -> impl Fn(&&Page) -> bool {
        move |page| page.no == no
    }

    /// Asserts that a page may be begun.
    fn check_begin(no: ListingNo, ahead_bytes: u64, in_flight: &[Page], held: &[Page]) {
        assert!(!in_flight.iter().any(|page| page.no == no), "one page at a time");
        assert!(
            held.iter().filter(of(no)).all(|page| page.came.then == Then::NextPage),
            "the page before has no next page"
        );
        let bytes: u64 = held.iter().map(|page| page.came.bytes).sum();
        assert!(!held.iter().any(|page| page.no == no) || bytes < ahead_bytes, "{bytes} bytes are held");
        let unseen = held.iter().filter(|page| page.came.sets_values && page.no != no).count();
        assert_eq!(unseen, 0, "values of another listing are not committed");
    }

    /// Refuses the held pages of a listing from this index on, and the pages that follow them.
    fn refuse(
        scheduler: &mut Scheduler,
        no: ListingNo,
        keep: usize,
        in_flight: &mut [Page],
        held: &mut Vec<Page>,
    ) {
        scheduler.refused(no, keep);
        let mut place = 0;
        held.retain(|page| {
            let is_of = page.no == no;
            place += usize::from(is_of);
            !is_of || place <= keep
        });
        in_flight.iter_mut().filter(|page| page.no == no).for_each(|page| page.is_void = true);
    }

    /// Plays a source to its end. The seed decides in which order pages arrive, which are refused, and which are
    /// committed only in a later life.
    fn play(
        streams: &[Tree],
        (at_once, ahead_bytes): (usize, u64),
        refuses: bool,
        seed: u64,
    ) -> Vec<(ListingNo, usize)> {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut scheduler = Scheduler::new(at_once, ahead_bytes, 0..streams.len(), []);
        let mut open: BTreeMap<ListingNo, Played<'_>> = (0..)
            .zip(streams)
            .map(|(no, tree)| (ListingNo::Stream(no), Played { tree, at: 0, under: None, named_with: 0 }))
            .collect();
        let (mut in_flight, mut held, mut read) = (Vec::<Page>::new(), Vec::<Page>::new(), Vec::new());
        let mut named = 0;
        loop {
            let next = scheduler.next(NOW);
            match next {
                Next::Fetch(no) if chance.u8(..8) > 0 || in_flight.is_empty() && held.is_empty() => {
                    check_begin(no, ahead_bytes, &in_flight, &held);
                    assert!(open.values().all(|other| other.under != Some(no)), "children come first");
                    assert!(scheduler.waits_for_commit() || scheduler.is_full());
                    let at = open[&no].at + held.iter().filter(of(no)).count();
                    scheduler.begun(no);
                    let came = open[&no].came(at, &mut chance);
                    in_flight.push(Page { no, at, is_void: false, came });
                    assert!(in_flight.len() <= at_once && scheduler.in_flight() == in_flight.len());
                    continue;
                }
                Next::Done => {
                    assert!(open.is_empty() && in_flight.is_empty() && held.is_empty());
                    return read;
                }
                Next::Paused(_) => unreachable!("nothing paused it"),
                Next::Fetch(_) => {}
                Next::Wait => {
                    assert!(!in_flight.is_empty() || !held.is_empty(), "nothing would happen any more");
                }
            }
            if !held.is_empty() && (in_flight.is_empty() || chance.bool()) {
                let no = held[0].no;
                if refuses && chance.u8(..8) == 0 {
                    refuse(&mut scheduler, no, 0, &mut in_flight, &mut held);
                    continue;
                }
                let page = held.remove(0);
                let Played { tree, at, under, .. } = open.get_mut(&no).unwrap();
                assert_eq!(page.at, *at, "committed in order");
                let children = &tree.pages[*at];
                read.push((no, *at));
                *at += 1;
                let more = *at < tree.pages.len();
                let under = if more { Some(no) } else { *under };
                let numbers: Vec<u64> = (named + 1..).take(children.len()).collect();
                let named_with = named + 1;
                named += children.len() as u64;
                if !more {
                    open.remove(&no);
                }
                for (tree, number) in children.iter().zip(&numbers) {
                    open.insert(ListingNo::Child(*number), Played { tree, at: 0, under, named_with });
                }
                scheduler.committed(no, more, &numbers);
            } else if !in_flight.is_empty() {
                let page = in_flight.swap_remove(chance.usize(..in_flight.len()));
                let no = page.no;
                if page.is_void || chance.u8(..8) == 0 {
                    scheduler.gave_none(no);
                    continue;
                }
                scheduler.came(no, page.came);
                held.push(page);
                if refuses && chance.u8(..8) == 0 {
                    let keep = held.iter().filter(of(no)).count() - 1;
                    refuse(&mut scheduler, no, keep, &mut in_flight, &mut held);
                }
            }
            if chance.u8(..16) == 0 {
                // Another life: pages that were in flight or held are fetched again.
                in_flight.clear();
                held.clear();
                let streams = open.keys().filter_map(|no| match no {
                    ListingNo::Stream(at) => Some(*at),
                    ListingNo::Child(_) => None,
                });
                let left = open.iter().filter_map(|(no, Played { under, named_with, .. })| match no {
                    ListingNo::Child(number) => {
                        Some(LeftChild { number: *number, named_with: *named_with, under: *under })
                    }
                    ListingNo::Stream(_) => None,
                });
                let streams = streams.collect::<Vec<_>>().into_iter();
                scheduler = Scheduler::new(at_once, ahead_bytes, streams, left);
            }
        }
    }

    fn config() -> ProptestConfig {
        let file = "proptest-regressions/scheduler.txt";
        ProptestConfig {
            failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct(file))),
            ..ProptestConfig::default()
        }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn every_page_is_read_once_in_its_listings_order_whatever_comes_when(
            streams in proptest::collection::vec(trees(3), 1..4), at_once in 1usize..5,
            ahead_bytes in 0u64..8, refuses in any::<bool>(), seed in any::<u64>(),
        ) {
            let read = play(&streams, (at_once, ahead_bytes), refuses, seed);
            let mut expected = Vec::new();
            let mut named = 0;
            for (no, tree) in streams.iter().enumerate() {
                depth_first(tree, ListingNo::Stream(no), &mut named, &mut expected);
            }
            if at_once == 1 && !refuses {
                prop_assert_eq!(&read, &expected);
            }
            // With several at once the numbers differ, but there are as many pages; each listing's are in order, and
            // children come after the page that named them.
            prop_assert_eq!(read.len(), expected.len());
            let mut at = BTreeMap::new();
            for (no, page) in read {
                prop_assert_eq!(page, *at.entry(no).and_modify(|at| *at += 1).or_insert(0));
            }
        }
    }
}
