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
//! A listing whose page is held, was its last and names no child listings *gives way* to the next one: so the pages of many
//! short listings can be committed together.
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
    /// A child listing, by its number in the run: the later it was named, the higher.
    Child(u64),
}

/// A child listing that an earlier life left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeftChild {
    pub(super) number: u64,
    /// The number of the first child listing that the same page named.
    pub(super) named_with: u64,
    /// What waits for it.
    pub(super) under: Option<ListingNo>,
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
    /// `gives_way`: it was the last page, and names no child listings.
    Held {
        gives_way: bool,
    },
}

#[derive(Debug)]
struct Node {
    state: State,
    /// The listing that waits for it.
    under: Option<ListingNo>,
    /// Listings that it waits for, and how many of them give way.
    children: usize,
    children_held: usize,
}

impl Node {
    fn under(under: Option<ListingNo>) -> Self {
        Self { state: State::Idle, under, children: 0, children_held: 0 }
    }
}

/// The listings that are not exhausted, and what becomes of them.
#[derive(Debug)]
pub(super) struct Scheduler {
    at_once: usize,
    /// The one whose turn is next comes last.
    order: Vec<ListingNo>,
    nodes: BTreeMap<ListingNo, Node>,
    in_flight: usize,
    paused_until: Option<Duration>,
}

impl Scheduler {
    /// These streams, in this order, and the child listings that earlier lives left.
    pub(super) fn new(
        at_once: usize,
        streams: impl DoubleEndedIterator<Item = usize>,
        left: impl IntoIterator<Item = LeftChild>,
    ) -> Self {
        let mut this = Self {
            at_once: at_once.max(1),
            order: Vec::new(),
            nodes: streams.map(|no| (ListingNo::Stream(no), Node::under(None))).collect(),
            in_flight: 0,
            paused_until: None,
        };
        let streams: Vec<_> = this.nodes.keys().rev().copied().collect();
        let left: Vec<_> = left.into_iter().collect();
        this.nodes.extend(left.iter().map(|child| (ListingNo::Child(child.number), Node::under(None))));
        // What was named last comes first, as it took the place of the listing whose last page named it.
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
        // Each before those that wait for nothing but it: the last in `order` is the first.
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
        let nodes = self.order.iter().rev().filter_map(|no| Some((*no, self.nodes.get(no)?)));
        nodes
            // One whose children wait for no more than a commit has its turn next: nothing overtakes it.
            .filter(|(_, node)| {
                node.children == node.children_held && node.state != State::Held { gives_way: true }
            })
            .take(self.at_once)
            .find(|(_, node)| node.children == 0 && node.state == State::Idle)
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

    /// The page came, and waits to be committed. `gives_way`: it was the last one, and names no child listings, so the next
    /// listing may go on before that.
    pub(super) fn came(&mut self, no: ListingNo, gives_way: bool) {
        self.turn(no, State::InFlight, State::Held { gives_way });
        self.in_flight -= 1;
        if gives_way && let Some(node) = self.waiting_for(no) {
            node.children_held += 1;
        }
    }

    /// No page came: it is to be fetched again.
    pub(super) fn gave_none(&mut self, no: ListingNo) {
        self.turn(no, State::InFlight, State::Idle);
        self.in_flight -= 1;
    }

    /// The page is committed, and named these child listings. `more`: it was not the last one. If it was, they take their
    /// parent's place: what waited for it waits for them.
    pub(super) fn committed(&mut self, no: ListingNo, more: bool, children: &[u64]) {
        // It stands near the end.
        let at = self.order.iter().rposition(|other| *other == no).unwrap_or(0);
        if more {
            self.turn(no, State::Held { gives_way: false }, State::Idle);
            return self.put_at(at + 1, Some(no), children);
        }
        let Some(Node { state, under, .. }) = self.nodes.remove(&no) else { return };
        assert!(matches!(state, State::Held { .. }), "{no:?} is committed and was {state:?}");
        self.order.remove(at);
        if let Some(waiting) = under.and_then(|under| self.nodes.get_mut(&under)) {
            waiting.children -= 1;
            waiting.children_held -= usize::from(state == State::Held { gives_way: true });
        }
        self.put_at(at, under, children);
    }

    /// Begins no page of any listing before this moment.
    pub(super) fn pause(&mut self, until: Duration) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether nothing may begin at this moment.
    pub(super) fn is_paused(&self, now: Duration) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    /// What waits for a listing.
    fn waiting_for(&mut self, no: ListingNo) -> Option<&mut Node> {
        let under = self.nodes.get(&no)?.under?;
        self.nodes.get_mut(&under)
    }

    fn turn(&mut self, no: ListingNo, from: State, to: State) {
        let node = self.nodes.get_mut(&no);
        assert_eq!(node.as_ref().map(|node| node.state), Some(from), "{no:?} turns to {to:?}");
        if let Some(node) = node {
            node.state = to;
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

    fn scheduler(at_once: usize, streams: usize) -> Scheduler {
        Scheduler::new(at_once, 0..streams, [])
    }

    /// A page is fetched and committed.
    fn page(scheduler: &mut Scheduler, no: ListingNo, more: bool) {
        assert_eq!(scheduler.next(NOW), Next::Fetch(no));
        scheduler.begun(no);
        scheduler.came(no, !more);
        scheduler.committed(no, more, &[]);
    }

    #[test]
    fn with_one_at_once_streams_are_read_one_after_the_other() {
        let mut scheduler = scheduler(1, 2);
        page(&mut scheduler, FIRST, true);
        page(&mut scheduler, FIRST, false);
        page(&mut scheduler, SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
        assert_eq!(Scheduler::new(1, 0..0, []).next(NOW), Next::Done);
    }

    #[test]
    fn no_page_of_a_listing_is_fetched_before_the_one_before_it_is_committed() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        assert_eq!((scheduler.next(NOW), scheduler.is_full()), (Next::Wait, true));
        scheduler.came(FIRST, false);
        assert_eq!((scheduler.next(NOW), scheduler.is_full()), (Next::Wait, false));
        scheduler.committed(FIRST, true, &[]);
        assert_eq!(scheduler.next(NOW), Next::Fetch(FIRST));
    }

    #[test]
    fn a_listing_whose_last_page_is_held_gives_its_place_away() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, true);
        assert_eq!(scheduler.next(NOW), Next::Fetch(SECOND));
        scheduler.begun(SECOND);
        scheduler.came(SECOND, true);
        assert_eq!(scheduler.next(NOW), Next::Wait, "two are not committed");
        scheduler.committed(SECOND, false, &[]);
        scheduler.committed(FIRST, false, &[]);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    #[test]
    fn nothing_overtakes_a_listing_whose_last_child_is_held() {
        let mut scheduler = scheduler(1, 2);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, false);
        scheduler.committed(FIRST, true, &[1, 2]);
        for child in [1, 2].map(ListingNo::Child) {
            assert_eq!(scheduler.next(NOW), Next::Fetch(child));
            scheduler.begun(child);
            scheduler.came(child, true);
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
        scheduler.came(SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Wait, "the third is none of the first two");
        scheduler.came(FIRST, true);
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
        scheduler.came(FIRST, false);
        scheduler.committed(FIRST, true, &[1, 2]);
        assert_eq!(scheduler.next(NOW), Next::Fetch(one));
        scheduler.begun(one);
        scheduler.came(one, false);
        assert_eq!(scheduler.next(NOW), Next::Wait, "who comes next is not known");
        // Its last page names one: that comes next, and the stream waits for it.
        scheduler.committed(one, false, &[3]);
        page(&mut scheduler, three, false);
        page(&mut scheduler, two, false);
        page(&mut scheduler, FIRST, true);
        scheduler.begun(FIRST);
        scheduler.came(FIRST, false);
        scheduler.committed(FIRST, false, &[4]);
        page(&mut scheduler, four, false);
        page(&mut scheduler, SECOND, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    #[test]
    fn children_of_an_earlier_life_stand_as_they_stood() {
        // The first child named 3 and goes on. 4 and 5 were named by the last page of a stream, and the last page of one that
        // was named with them named 6 and 7.
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
        let mut scheduler = Scheduler::new(1, 0..1, left);
        for no in [6, 7, 4, 5, 3, 1, 2] {
            page(&mut scheduler, ListingNo::Child(no), false);
        }
        page(&mut scheduler, FIRST, false);
        assert_eq!(scheduler.next(NOW), Next::Done);
    }

    /// A source: a page is a list of the listings that it names.
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

    /// The pages of a listing, depth first: what is read with one at once. Numbers are given as pages are committed.
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

    /// Where a listing of a played source stands.
    struct Played<'t> {
        tree: &'t Tree,
        /// Pages of it that are committed.
        at: usize,
        under: Option<ListingNo>,
        named_with: u64,
    }

    /// Plays a source to its end: pages come in the order that the seed says, and are committed as they came, some in a later
    /// life.
    fn play(streams: &[Tree], at_once: usize, seed: u64) -> Vec<(ListingNo, usize)> {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut scheduler = Scheduler::new(at_once, 0..streams.len(), []);
        let mut open: BTreeMap<ListingNo, Played<'_>> = (0..)
            .zip(streams)
            .map(|(no, tree)| (ListingNo::Stream(no), Played { tree, at: 0, under: None, named_with: 0 }))
            .collect();
        let (mut in_flight, mut held, mut read) = (Vec::new(), Vec::new(), Vec::new());
        let mut named = 0;
        loop {
            let next = scheduler.next(NOW);
            match next {
                Next::Fetch(no) if chance.u8(..8) > 0 || in_flight.is_empty() && held.is_empty() => {
                    assert!(!in_flight.contains(&no) && !held.contains(&no), "one page at a time");
                    assert!(open.values().all(|other| other.under != Some(no)), "children come first");
                    scheduler.begun(no);
                    in_flight.push(no);
                    assert!(in_flight.len() <= at_once && scheduler.in_flight() == in_flight.len());
                    continue;
                }
                Next::Done => {
                    assert!(open.is_empty() && in_flight.is_empty() && held.is_empty());
                    return read;
                }
                Next::Paused(_) => unreachable!("nothing asked for it"),
                Next::Fetch(_) => {}
                Next::Wait => assert!(!in_flight.is_empty() || !held.is_empty(), "nobody would go on"),
            }
            if !held.is_empty() && (in_flight.is_empty() || chance.bool()) {
                let no = held.remove(0);
                let Played { tree, at, under, .. } = open.get_mut(&no).unwrap();
                let page = &tree.pages[*at];
                read.push((no, *at));
                *at += 1;
                let more = *at < tree.pages.len();
                let under = if more { Some(no) } else { *under };
                let numbers: Vec<u64> = (named + 1..).take(page.len()).collect();
                let named_with = named + 1;
                named += page.len() as u64;
                if !more {
                    open.remove(&no);
                }
                for (tree, number) in page.iter().zip(&numbers) {
                    open.insert(ListingNo::Child(*number), Played { tree, at: 0, under, named_with });
                }
                scheduler.committed(no, more, &numbers);
            } else if !in_flight.is_empty() {
                let no = in_flight.swap_remove(chance.usize(..in_flight.len()));
                if chance.u8(..8) == 0 {
                    scheduler.gave_none(no);
                } else {
                    let Played { tree, at, .. } = &open[&no];
                    scheduler.came(no, at + 1 == tree.pages.len() && tree.pages[*at].is_empty());
                    held.push(no);
                }
            }
            if chance.u8(..16) == 0 {
                // Another life: what was in flight or held is fetched again.
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
                scheduler = Scheduler::new(at_once, streams.collect::<Vec<_>>().into_iter(), left);
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
            streams in proptest::collection::vec(trees(3), 1..4), at_once in 1usize..5, seed in any::<u64>(),
        ) {
            let read = play(&streams, at_once, seed);
            let mut expected = Vec::new();
            let mut named = 0;
            for (no, tree) in streams.iter().enumerate() {
                depth_first(tree, ListingNo::Stream(no), &mut named, &mut expected);
            }
            if at_once == 1 {
                prop_assert_eq!(&read, &expected);
            }
            // With more the numbers are other ones: as many pages, each listing's in order, children after their parent's page.
            prop_assert_eq!(read.len(), expected.len());
            let mut at = BTreeMap::new();
            for (no, page) in read {
                prop_assert_eq!(page, *at.entry(no).and_modify(|at| *at += 1).or_insert(0));
            }
        }
    }
}
