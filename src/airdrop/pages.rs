//! Fetches the pages of the data phase in lanes, commits them in order, and delivers batches as they fill.
//!
//! The [`Scheduler`] decides which page is fetched next. This file carries it out:
//! - A page is fetched in a lane and returned to this thread. If its cursor leads on, the next page of its listing is
//!   begun *ahead* of the commit. The page is checked, and it is *held* until it is committed.
//! - Held pages are committed in one transaction: the pages of each listing in their order, and those of different
//!   listings in the order in which they arrived. They are committed when a lane would be idle otherwise; when they
//!   have 2,000 records and no other page arrives within 5 ms; at the latest when they are 100 pages, 4,000 records
//!   (with those of the open batch), 4 MiB or 50 ms old; and at once if a page names child listings, which come next. The store accepts a page only if
//!   its listing is at the cursor that the page was fetched with.
//! - A lane commits, one transaction after the other. Pages that arrive meanwhile are checked and held. Once they are
//!   as much as a commit takes, nothing is begun until a thread that compresses for the commit is done. Then half as much
//!   again is begun, so that its core has work. Where a checkpoint is kept, the loop waits for each commit.
//! - Uploads go on all the while. What happened to them is stored with the pages that are committed next. If there are
//!   none, it is stored 50 ms after this thread has learned of it, or at once if the next uploads wait for that.
//! - A page that is fetched ahead sees the values set by the held pages of its listing. A page of another listing is
//!   begun only once these are stored.
//! - If a page is refused, the pages fetched ahead of it are dropped. If a page does not arrive, the pages before it
//!   are committed.
//! - If the source asks to wait, nothing is begun until then. If that takes longer than
//!   [`Serve::wait_up_to`](super::Serve::wait_up_to), or than is left of this invocation, the answer is DELAY. Pages
//!   in flight are awaited and committed first, as before every other answer.
//! - If a page fails for a temporary reason, nothing is begun for a moment; then it is fetched again, a few times, as
//!   long as there is time for another page.
//! - An invocation stops between pages, and never before the first. So every invocation that has time for one page
//!   makes progress, unless a stop is requested. A page that does not arrive is given up some time before the hard
//!   limit, so that staged batches can still be announced.
//!
//! A kill costs the pages in flight, at most [`Serve::concurrency`](super::Serve::concurrency), the held pages, those
//! that are being committed, and what happened to uploads and is not stored.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{Span, debug, info, warn};

use crate::error::{Result, chain};
use crate::model::{Phase, Safeguard, StreamName};
use crate::store::{
    Child, Committed, CommittedPage, CursorWatch, Page, PageOf, ReadyPage, Run, UnderRow,
    make_ready_in_order, refetched,
};

use super::answer::{MessageDetails, Outcome};
use super::check::Checks;
use super::context::{Context, ValuesAhead};
use super::delivery::{BatchChanges, Delivery, POLL};
use super::extractor::caught;
use super::invocation::{Ending, Invocation, Stop, is_told};
use super::json_cursors::{AnyExtractor, CursorJson};
use super::keeper::Keeper;
use super::lanes::Lanes;
use super::listing::Listing;
use super::rejected;
use super::retry::{ShortWaits, SourceTries, millis};
use super::scheduler::{Came, LeftChild, ListingNo, Next, Scheduler, Then};
use super::settings::Serve;
use super::source_error::SourceError;

/// How many pages, records and bytes of lines a commit takes, and for how long they are held for it.
const HELD_PAGES: usize = 100;
/// Two batches, so that they are compressed at the same time.
const HELD_ITEMS: usize = 4_000;
/// With so many records held, the next page is awaited only this long: a source that is slow shall not delay them.
const HELD_ITEMS_ENOUGH: usize = 2_000;
const AWAIT_MORE: Duration = Duration::from_millis(5);
const HELD_BYTES: usize = 4 << 20;
/// In halves of what a commit takes.
const ONE_COMMIT: usize = 2;
const ONE_AND_A_HALF: usize = 3;
const HELD_FOR: Duration = Duration::from_millis(50);

/// A page to fetch.
struct PageFetch {
    no: ListingNo,
    listing: Listing,
    cursor: Option<CursorJson>,
    /// The values set by earlier pages that are not committed.
    values: ValuesAhead,
}

/// The result of a fetch.
struct FetchedPage {
    no: ListingNo,
    page: Result<Page<CursorJson>, SourceError>,
}

/// What is done in a lane.
enum Job {
    Fetch(PageFetch),
    Commit(ToCommit),
}

/// Its result, and how far a commit is.
enum Done {
    Fetched(Box<FetchedPage>),
    /// A thread has compressed its share of a commit's batches.
    CoreIsFree,
    /// An error if the commit panicked.
    Committed(std::thread::Result<CommitDone>),
}

/// What is stored in one transaction.
struct ToCommit {
    held: Vec<Held>,
    changes: BatchChanges,
}

/// The result of a commit.
struct CommitDone {
    /// Of each page, unless an earlier page of its listing could not be stored, or nothing could.
    pages: Vec<(Held, Option<Result<CommittedPage>>)>,
    changes: BatchChanges,
    /// The batches whose id the run has used before.
    used: Result<Vec<u64>>,
    /// How many records each open batch has, if all was stored in one transaction.
    open_items: Vec<u32>,
}

/// The lanes in which pages are fetched, in the first group, and committed.
type PageLanes<'a> = Lanes<'a, Job, Done>;

/// The group of the lane that commits. It has a thread of its own, so that the allocator keeps memory for commits only
/// once.
const COMMITS: usize = 1;

impl Invocation<'_> {
    /// Extracts the data, from where its listings are, and answers. It answers while the lanes still exist, so that a
    /// page that does not arrive does not delay the answer.
    pub(super) fn data(
        &self,
        extractor: &AnyExtractor<'_>,
        context: &Context,
        keeper: Option<&Keeper<'_>>,
        mut delivery: Delivery<'_>,
        mut details: MessageDetails,
    ) -> Result<Outcome> {
        let span = Span::current();
        let fetch = |PageFetch { no, listing, cursor, values }: PageFetch| {
            let context = &context.ahead(values);
            let page = span.in_scope(|| caught(|| extractor.page(context, &listing, cursor)));
            FetchedPage { no, page }
        };
        let work = |job: Job, tell: &(dyn Fn(Done) + Sync)| match job {
            Job::Fetch(page) => Done::Fetched(Box::new(fetch(page))),
            Job::Commit(to_commit) => {
                // Only once, so that a replay does not depend on the number of cores.
                let is_told = AtomicBool::new(false);
                let core_is_free = || {
                    if !is_told.swap(true, Ordering::Relaxed) {
                        tell(Done::CoreIsFree);
                    }
                };
                Done::Committed(catch_unwind(AssertUnwindSafe(|| {
                    span.in_scope(|| commit(&context.run, to_commit, &core_is_free))
                })))
            }
        };
        let go = |lanes: PageLanes<'_>| {
            let worked = Pages::new(self, extractor, context, keeper, &mut delivery, lanes)
                .and_then(|pages| pages.fetch_all(&mut details.item_type));
            self.conclude(&context.run, keeper, Phase::Data, delivery, worked, &details)
        };
        match self.settings.inline_seed {
            Some(seed) if self.settings.ahead > 0 => go(Lanes::inline_ahead(&work, seed)),
            Some(seed) => go(Lanes::inline(&work, seed)),
            None => {
                std::thread::scope(|scope| go(Lanes::pool(scope, &work, &[self.settings.concurrency, 1])))
            }
        }
    }
}

/// A page that is held.
struct Held {
    no: ListingNo,
    page: ReadyPage,
}

/// Commits pages, and what happened to uploads. Calls `core_is_free` whenever a thread has compressed its share.
fn commit(run: &Run, ToCommit { held, changes }: ToCommit, core_is_free: &(dyn Fn() + Sync)) -> CommitDone {
    let mut pages: Vec<_> = held.iter().map(|held| &held.page).collect();
    let is_reversed = run.breaks(Safeguard::PagesInOrder);
    if is_reversed {
        pages.reverse();
    }
    match run.commit(&pages, &changes.settled, core_is_free) {
        Ok(Committed { mut pages, used, open_items }) => {
            if is_reversed {
                pages.reverse();
            }
            let pages = held.into_iter().zip(pages).map(|(held, page)| (held, Some(Ok(page)))).collect();
            CommitDone { pages, changes, used: Ok(used), open_items }
        }
        Err(error) if held.is_empty() => {
            CommitDone { pages: Vec::new(), changes, used: Err(error), open_items: Vec::new() }
        }
        Err(error) if held.len() == 1 && changes.settled.is_empty() => {
            let pages = held.into_iter().zip([Some(Err(error))]).collect();
            CommitDone { pages, changes, used: Ok(Vec::new()), open_items: Vec::new() }
        }
        // What cannot be stored must not keep the rest from being stored.
        Err(_) => {
            let used = match changes.settled.as_slice() {
                [] => Ok(Vec::new()),
                settled => run.settle_batches(settled),
            };
            let mut is_over = used.as_ref().is_err_and(|error| !is_told(error));
            let mut refused = BTreeSet::new();
            let one_by_one = held.into_iter().map(|one| {
                // The pages that follow it in its listing cannot be stored either.
                if is_over || refused.contains(&one.no) {
                    return (one, None);
                }
                let committed = run
                    .commit(&[&one.page], &[], core_is_free)
                    .map(|committed| committed.pages.into_iter().next());
                if let Err(error) = &committed {
                    refused.insert(one.no);
                    is_over = !is_told(error);
                }
                (one, committed.transpose())
            });
            CommitDone { pages: one_by_one.collect(), changes, used, open_items: Vec::new() }
        }
    }
}

/// A listing from its first page in this invocation until it is exhausted.
struct Open {
    of: PageOf,
    listing: Listing,
    /// The next cursor of the newest page that arrived, as JSON.
    next: Option<String>,
    /// The values set by pages that arrived and are not committed, oldest first.
    values: VecDeque<ValuesAhead>,
    in_flight: Option<InFlight>,
    /// The tries at the next page.
    tries: SourceTries,
    /// The cursors seen in this invocation.
    watch: CursorWatch,
}

impl Open {
    fn new(of: PageOf, listing: Listing, tries: SourceTries) -> Self {
        let (values, watch) = (VecDeque::new(), CursorWatch::default());
        Self { of, listing, next: None, values, in_flight: None, tries, watch }
    }
}

/// A page that is being fetched.
struct InFlight {
    /// The cursor it is fetched with, as JSON.
    from: Option<String>,
    begun_at: Duration,
    /// It follows a refused page.
    is_void: bool,
}

/// The pages of one invocation, from the source to the store and to the platform.
struct Pages<'p, 'd> {
    invocation: &'p Invocation<'p>,
    extractor: &'p AnyExtractor<'p>,
    context: &'p Context,
    keeper: Option<&'p Keeper<'p>>,
    delivery: &'p mut Delivery<'d>,
    lanes: PageLanes<'p>,
    scheduler: Scheduler,
    streams: Vec<StreamName>,
    open: BTreeMap<ListingNo, Open>,
    /// Loaded before the first page is fetched.
    checks: Option<Checks>,
    checks_asked: bool,
    held: Vec<Held>,
    held_since: Duration,
    /// Records of the open batch after the last commit, if there was exactly one.
    open_items: usize,
    /// Since when a commit is under way; `None` if none is.
    committing_since: Option<Duration>,
    /// Whether a thread that compresses for it is done.
    has_free_core: bool,
    begun: u64,
    committed: u64,
    /// The longest time that a fetch took, and that a commit took with what follows it.
    longest_fetch: Duration,
    longest_commit: Duration,
    waits: ShortWaits,
    /// Set when nothing more is to be begun: how the work then ends.
    closing: Option<Ending>,
}

impl<'p, 'd> Pages<'p, 'd> {
    fn new(
        invocation: &'p Invocation<'p>,
        extractor: &'p AnyExtractor<'p>,
        context: &'p Context,
        keeper: Option<&'p Keeper<'p>>,
        delivery: &'p mut Delivery<'d>,
        lanes: PageLanes<'p>,
    ) -> Result<Self, Stop> {
        let run = &*context.run;
        if let Some(seconds) = run.delay_left_seconds()? {
            return Err(Ending::Delay { seconds, asked: false }.into());
        }
        let streams = invocation
            .ask(context, Phase::Data, || extractor.streams(context))
            .map_err(|stop| stop.while_doing(&format!("asking for the streams of {}", run.sync_unit())))?;
        let streams = streams.into_iter().map(StreamName::new).collect::<Result<Vec<_>>>()?;
        let mut unfinished = Vec::new();
        for (no, stream) in streams.iter().enumerate() {
            // A name that is listed twice is one stream.
            if streams.iter().position(|other| other == stream) == Some(no) && !run.is_exhausted(stream)? {
                unfinished.push(no);
            }
        }
        let under = |under| match under {
            UnderRow::Nothing => None,
            UnderRow::Stream(name) => {
                streams.iter().position(|stream| stream.as_str() == name).map(ListingNo::Stream)
            }
            UnderRow::Child(number) => Some(ListingNo::Child(number)),
        };
        let left = run.pending_children()?.into_iter().map(|(number, row)| LeftChild {
            number,
            named_with: row.named_with,
            under: under(row.under),
        });
        let Serve { concurrency, ahead, .. } = *invocation.settings;
        let scheduler = Scheduler::new(concurrency, ahead, unfinished.into_iter(), left);
        Ok(Self {
            invocation,
            extractor,
            context,
            keeper,
            delivery,
            lanes,
            scheduler,
            streams,
            open: BTreeMap::new(),
            checks: None,
            checks_asked: false,
            held: Vec::new(),
            held_since: Duration::ZERO,
            open_items: 0,
            committing_since: None,
            has_free_core: false,
            begun: 0,
            committed: 0,
            longest_fetch: Duration::ZERO,
            longest_commit: Duration::ZERO,
            waits: ShortWaits::new(invocation.settings.wait_up_to),
            closing: None,
        })
    }

    fn now(&self) -> Duration {
        self.invocation.clock.elapsed()
    }

    /// Fetches pages until all listings are exhausted or there is a reason to stop. `last_item_type` is set to the
    /// item type of the last record that was fetched.
    fn fetch_all(mut self, last_item_type: &mut Option<String>) -> Result<(), Stop> {
        self.refetch()?;
        loop {
            self.delivery.gather(Duration::ZERO).or_else(|error| self.meet(error.into()))?;
            if !self.is_committing() {
                if self.are_pages_due() {
                    self.commit()?;
                } else if self.delivery.store_by().is_some_and(|by| by <= self.now()) {
                    // Without the pages: lines of a batch that is not full would be stored uncompressed.
                    self.commit_pages(0)?;
                }
            }
            self.begin()?;
            self.delivery.start().or_else(|error| self.meet(error.into()))?;
            let in_flight = self.scheduler.in_flight() > 0;
            if self.is_committing() {
                if let Some(done) = self.lanes.poll(POLL) {
                    self.take_in(done, last_item_type)?;
                }
            } else if !self.held.is_empty() && (!in_flight || self.scheduler.waits_for_commit()) {
                // A lane would be idle.
                self.commit()?;
            } else if in_flight {
                let enough = self.held_items() >= HELD_ITEMS_ENOUGH;
                let wait = if enough { AWAIT_MORE } else { POLL };
                if let Some(done) = self.lanes.poll(wait.min(self.commit_due_in())) {
                    self.take_in(done, last_item_type)?;
                } else if enough {
                    self.commit()?;
                } else if (self.closing.is_some() || self.committed > 0 || self.is_stopped())
                    && self.held.is_empty()
                    && self.now() >= self.invocation.deadlines.abort_at()
                {
                    info!(target: "highwater", pages = self.scheduler.in_flight(), "gave up pages that did not arrive");
                    return Err(self.closing.take().unwrap_or(Ending::Progress).into());
                }
            } else if let Some(ending) = self.closing.take() {
                return Err(ending.into());
            } else {
                match self.scheduler.next(self.now()) {
                    Next::Done => {
                        let percent = self.invocation.settings.rejected_percent;
                        return rejected::check_part(&self.context.run, percent);
                    }
                    // A pause may outlast the time that is left after a stop.
                    Next::Paused(_) if self.is_stopped() => self.close(Ending::Progress),
                    Next::Paused(until) => self.delivery.wait_until(Some(until))?,
                    // There are more batches to upload than the lanes can take soon.
                    Next::Fetch(_) | Next::Wait => self.delivery.wait()?,
                }
            }
        }
    }

    /// Requests the records that earlier runs rejected, before anything else is fetched.
    fn refetch(&mut self) -> Result<(), Stop> {
        let context = self.context;
        let run = &*context.run;
        while let Some((item_type, ids)) = run.next_rejected(|item_type| self.context.extracts(item_type))? {
            while self.delivery.crowded() && !self.is_closed() && !self.is_stopped() {
                self.delivery.wait()?;
            }
            if self.is_closed() || self.is_late() || self.is_stopped() {
                return Err(Ending::Progress.into());
            }
            self.load_checks()?;
            let began_at = self.now();
            let mut page =
                rejected::refetch(self.invocation, self.extractor, self.context, &item_type, &ids)?;
            let of = PageOf::Stream(refetched()?);
            self.settle(&of, &mut page)?;
            if let Some(keeper) = self.keeper {
                keeper.admit(run, &of, &page)?;
            }
            self.delivery.add(run.stage_refetched(page)?);
            self.begun += 1;
            self.committed += 1;
            self.delivery.step()?;
            self.save_if_due()?;
            self.longest_fetch = self.longest_fetch.max(self.now().saturating_sub(began_at));
        }
        Ok(())
    }

    /// Loads the checks for pages, unless they are loaded.
    fn load_checks(&mut self) -> Result<(), Stop> {
        if !self.checks_asked {
            self.checks = self.invocation.checks(self.extractor, self.context)?;
            self.checks_asked = true;
        }
        Ok(())
    }

    /// Decides which records of a page are staged: those that are in scope and not rejected.
    fn settle(&mut self, of: &PageOf, page: &mut Page<CursorJson>) -> Result<(), Stop> {
        let stream = of.stream().as_str();
        page.leave_out(|item_type| !self.context.extracts(item_type));
        if let Some(checks) = &mut self.checks {
            checks.page(stream, page).map_err(|reason| Stop::failed(&reason))?;
        }
        page.rejected_max(self.invocation.settings.rejected_max);
        rejected::check_refetchable(self.extractor, &self.context.run, stream, page)
    }

    /// Whether this invocation delivers no more batches.
    fn is_closed(&self) -> bool {
        self.delivery.halt().is_some() || self.delivery.message_full()
    }

    fn is_stopped(&self) -> bool {
        self.invocation.deadlines.is_stopped()
    }

    /// Saves a checkpoint if one is due.
    fn save_if_due(&mut self) -> Result<()> {
        if self.delivery.save_due() {
            self.delivery.save()?;
        }
        Ok(())
    }

    /// Begins every page that may be fetched now.
    fn begin(&mut self) -> Result<(), Stop> {
        while self.closing.is_none() && !self.is_full() {
            let Next::Fetch(no) = self.scheduler.next(self.now()) else { break };
            if self.is_closed() || self.is_stopped() {
                self.close(Ending::Progress);
            } else if self.is_late() {
                info!(target: "highwater", pages = self.committed, "deadline reached");
                self.close(Ending::Progress);
            } else if self.delivery.crowded() {
                break;
            } else if let Err(stop) = self.begin_one(no) {
                self.meet(stop)?;
            }
        }
        Ok(())
    }

    /// Whether the next page would probably end after the soft deadline. The first page always has time.
    fn is_late(&self) -> bool {
        self.begun > 0 && self.longest_fetch + self.longest_commit >= self.context.time_left()
    }

    /// Begins the next page of a listing whose page just arrived, if it may be fetched ahead of the commit.
    fn go_ahead(&mut self, no: ListingNo) -> Result<(), Stop> {
        let may = self.scheduler.may_go_ahead(no, self.now())
            && self.closing.is_none()
            && !self.is_full()
            && !self.is_closed()
            && !self.is_stopped()
            && !self.is_late()
            && !self.delivery.crowded();
        if may && let Err(stop) = self.begin_one(no) {
            self.meet(stop)?;
        }
        Ok(())
    }

    fn begin_one(&mut self, no: ListingNo) -> Result<(), Stop> {
        self.load_checks()?;
        let context = self.context;
        let run = &*context.run;
        let begun_at = self.now();
        let open = match self.open.entry(no) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => {
                let (of, listing) = match no {
                    ListingNo::Stream(at) => {
                        let Some(stream) = self.streams.get(at) else { return Ok(()) };
                        (PageOf::Stream(stream.clone()), Listing::of_stream(stream.clone()))
                    }
                    ListingNo::Child(number) => {
                        let child = run.child_listing(number)?;
                        let listing = Listing::of_child(&child);
                        let Child { stream, parent, .. } = child;
                        (PageOf::Child { number, stream, parent }, listing)
                    }
                };
                let tries = SourceTries::new(self.invocation.settings.wait_up_to);
                vacant.insert(Open::new(of, listing, tries))
            }
        };
        // If no page is held, the stored position counts.
        let from = if open.values.is_empty() {
            match no {
                ListingNo::Stream(_) => run.stream_position(open.of.stream())?.flatten(),
                ListingNo::Child(number) => run.child_listing(number)?.cursor,
            }
        } else {
            open.next.clone()
        };
        let cursor = from
            .as_deref()
            .map(|json| run.read_cursor(open.listing.stream(), open.listing.parent(), json))
            .transpose()?;
        let values = open.values.iter().flatten().map(|(key, json)| (key.clone(), json.clone())).collect();
        let listing = open.listing.clone();
        open.in_flight = Some(InFlight { from, begun_at, is_void: false });
        self.scheduler.begun(no);
        self.begun += 1;
        self.lanes.submit(Job::Fetch(PageFetch { no, listing, cursor, values }));
        Ok(())
    }

    /// Handles what a lane has done.
    ///
    /// # Errors
    /// A failure that is not sent to the platform, or after which nothing is being committed.
    fn take_in(&mut self, done: Done, last_item_type: &mut Option<String>) -> Result<(), Stop> {
        match done {
            Done::Fetched(page) => self.fetched(*page, last_item_type).or_else(|stop| self.meet(stop)),
            Done::CoreIsFree => {
                self.has_free_core = true;
                Ok(())
            }
            Done::Committed(Ok(committed)) => self.commit_ended(committed),
            Done::Committed(Err(panic)) => resume_unwind(panic),
        }
    }

    /// Handles the result of a fetch.
    fn fetched(&mut self, fetched: FetchedPage, last_item_type: &mut Option<String>) -> Result<(), Stop> {
        let FetchedPage { no, page } = fetched;
        let Some(open) = self.open.get_mut(&no) else { return Ok(()) };
        let Some(InFlight { from, begun_at, is_void }) = open.in_flight.take() else { return Ok(()) };
        let of = open.of.clone();
        self.longest_fetch = self.longest_fetch.max(self.invocation.clock.elapsed().saturating_sub(begun_at));
        if is_void {
            self.scheduler.gave_none(no);
            return Ok(());
        }
        let page = match page {
            Ok(page) => page,
            Err(SourceError::RateLimited { after }) => {
                self.scheduler.gave_none(no);
                self.asked_to_wait(after);
                return Ok(());
            }
            // It was given up because of the stop.
            Err(_) if self.invocation.deadlines.is_past_stop() => {
                self.scheduler.gave_none(no);
                self.close(Ending::Progress);
                return Ok(());
            }
            Err(error) => {
                self.scheduler.gave_none(no);
                let what = format!("fetching a page of {of} of {}", self.context.run.sync_unit());
                let SourceError::Temporary { source } = error else {
                    return self.meet(Stop::from(error).while_doing(&what));
                };
                let one_page = self.longest_fetch + self.longest_commit;
                let Some(wait) = open.tries.next(self.context.time_left().saturating_sub(one_page)) else {
                    let failure = open.tries.failure(source.as_ref());
                    return self.meet(Stop::failed(&failure).while_doing(&what));
                };
                let reason = self.invocation.event.hide_secrets(&chain(source.as_ref()));
                warn!(target: "highwater", %reason, wait_ms = millis(wait), "{what} again");
                self.scheduler.pause(self.invocation.clock.elapsed().saturating_add(wait));
                return Ok(());
            }
        };
        self.waits.over();
        open.tries.over();
        if let Some(item_type) = page.last_item_type() {
            *last_item_type = Some(item_type.to_owned());
        }
        let next = match of.lead_on(from.as_deref(), &page, &mut open.watch) {
            Ok(next) => next,
            Err(error) => {
                self.scheduler.gave_none(no);
                return self.meet(error.into());
            }
        };
        let place = open.values.len();
        open.values.push_back(page.values());
        open.next.clone_from(&next);
        let then = match next {
            _ if page.names_children() => Then::Children,
            Some(_) => Then::NextPage,
            None => Then::Nothing,
        };
        let (bytes, sets_values) = (page.line_bytes(), page.sets_values());
        self.scheduler.came(no, Came { then, bytes, sets_values });
        self.go_ahead(no)?;
        match self.make_ready(of, page, from, next) {
            Ok(page) => {
                if self.held.is_empty() {
                    self.held_since = self.now();
                }
                self.held.push(Held { no, page });
                Ok(())
            }
            Err(stop) => {
                self.refused(no, place);
                self.meet(stop)
            }
        }
    }

    /// Refuses all pages of a listing that arrived and are not stored, except the oldest `keep`.
    fn refused(&mut self, no: ListingNo, keep: usize) {
        self.scheduler.refused(no, keep);
        let Some(open) = self.open.get_mut(&no) else { return };
        open.values.truncate(keep);
        if let Some(in_flight) = &mut open.in_flight {
            in_flight.is_void = true;
        }
    }

    /// Checks a page.
    fn make_ready(
        &mut self,
        of: PageOf,
        mut page: Page<CursorJson>,
        from: Option<String>,
        next: Option<String>,
    ) -> Result<ReadyPage, Stop> {
        let (items, by_type, more) = (page.items(), page.items_by_type(), next.is_some());
        self.settle(&of, &mut page)?;
        if let Some(keeper) = self.keeper {
            keeper.admit(&self.context.run, &of, &page)?;
        }
        let listing = of.to_string();
        let ready = make_ready_in_order(of, page, from, next)?;
        debug!(target: "highwater", listing, items, ?by_type, more, "page fetched");
        Ok(ready)
    }

    /// Records of the held pages.
    fn held_items(&self) -> usize {
        self.held.iter().map(|held| held.page.items()).sum()
    }

    /// When the held pages are old enough to be committed.
    fn commit_by(&self) -> Option<Duration> {
        (!self.held.is_empty()).then(|| self.held_since.saturating_add(HELD_FOR))
    }

    /// How long until held pages, or changes of uploads, must be committed.
    fn commit_due_in(&self) -> Duration {
        let by = self.commit_by().into_iter().chain(self.delivery.store_by()).min();
        by.map_or(Duration::MAX, |by| by.saturating_sub(self.now()))
    }

    /// Whether held pages must be committed now, if no others are being committed.
    fn are_pages_due(&self) -> bool {
        let Some(newest) = self.held.last() else { return false };
        self.held.iter().any(|held| held.page.names_children())
            // The room of a checkpoint is computed from what is stored.
            || (self.keeper.is_some() && newest.page.has_more())
            || self.commit_by().is_some_and(|by| by <= self.now())
            // The page that is being fetched may never arrive.
            || self.now() >= self.invocation.deadlines.abort_at()
            || self.enough(ONE_COMMIT).is_some()
    }

    /// How many of the held pages are as much as so many halves of what a commit takes, if they are that much.
    fn enough(&self, halves: usize) -> Option<usize> {
        enough(self.held.iter().map(|held| (held.page.items(), held.page.bytes())), self.open_items, halves)
    }

    fn is_committing(&self) -> bool {
        self.committing_since.is_some()
    }

    /// Whether nothing more is begun before the commit that is under way has ended.
    fn is_full(&self) -> bool {
        self.is_committing()
            && self.enough(if self.has_free_core { ONE_AND_A_HALF } else { ONE_COMMIT }).is_some()
    }

    /// Begins to commit held pages, as many as a commit takes, and what happened to uploads.
    fn commit(&mut self) -> Result<(), Stop> {
        self.commit_pages(self.enough(ONE_COMMIT).unwrap_or(self.held.len()))
    }

    /// Begins to commit so many of the held pages, and what happened to uploads.
    fn commit_pages(&mut self, pages: usize) -> Result<(), Stop> {
        let changes = match self.delivery.take_batch_changes() {
            Ok(changes) => changes,
            Err(error) => return self.meet(error.into()),
        };
        let later = self.held.split_off(pages);
        let held = std::mem::replace(&mut self.held, later);
        self.committing_since = Some(self.now());
        self.has_free_core = false;
        let to_commit = ToCommit { held, changes };
        if self.keeper.is_some() {
            // The room of a checkpoint is computed from what is stored.
            return self.commit_ended(commit(&self.context.run, to_commit, &|| ()));
        }
        self.lanes.submit_to(COMMITS, Job::Commit(to_commit));
        Ok(())
    }

    /// Handles the result of a commit: delivers the batches that it closed, and saves a checkpoint if one is due.
    fn commit_ended(&mut self, done: CommitDone) -> Result<(), Stop> {
        let CommitDone { pages, changes, used, open_items } = done;
        let began_at = self.committing_since.take().unwrap_or_default();
        self.open_items = match open_items.as_slice() {
            [items] => usize::try_from(*items).unwrap_or(usize::MAX),
            _ => 0,
        };
        self.delivery.batches_stored(changes, used).or_else(|error| self.meet(error.into()))?;
        for (held, committed) in pages {
            match committed {
                Some(Ok(committed)) => self.committed(&held, committed)?,
                Some(Err(error)) => {
                    self.refused(held.no, 0);
                    self.held.retain(|later| later.no != held.no);
                    self.meet(error.into())?;
                }
                None => {}
            }
        }
        self.save_if_due().or_else(|error| self.meet(error.into()))?;
        self.longest_commit = self.longest_commit.max(self.now().saturating_sub(began_at));
        Ok(())
    }

    /// Handles a page that was committed.
    fn committed(&mut self, Held { no, page }: &Held, committed: CommittedPage) -> Result<()> {
        self.committed += 1;
        self.delivery.add(committed.closed);
        self.scheduler.committed(*no, page.has_more(), &committed.children);
        let Some(open) = self.open.get_mut(no) else { return Ok(()) };
        open.values.pop_front();
        if let PageOf::Stream(stream) = page.of() {
            self.context.run.tell_far_more(stream, &mut open.watch)?;
        }
        if !page.has_more() {
            self.open.remove(no);
        }
        Ok(())
    }

    /// The source asked to wait.
    fn asked_to_wait(&mut self, after: Duration) {
        let now = self.now();
        // Other pages in flight are refused for the same reason.
        let again = self.scheduler.is_paused(now);
        match self.waits.next(after, self.context.time_left(), again) {
            Ok(wait) => {
                info!(target: "highwater", wait_ms = millis(wait), "the source asked to wait");
                self.scheduler.pause(now.saturating_add(wait));
            }
            Err(wait) => self.close(Ending::asked_to_wait(wait)),
        }
    }

    /// Handles a failure of a page. If it is sent to the platform, the pages in flight are awaited first.
    ///
    /// # Errors
    /// A failure that is not sent to the platform.
    fn meet(&mut self, stop: Stop) -> Result<(), Stop> {
        let ending = Stop::ending(Err(stop)).map_err(Stop::Error)?;
        self.close(ending);
        Ok(())
    }

    /// Begins nothing more. Of several endings a failure wins over a delay, a longer delay over a shorter one, and
    /// both over PROGRESS.
    fn close(&mut self, ending: Ending) {
        let rank = |ending: &Ending| match ending {
            Ending::Done | Ending::Progress => (0, 0),
            Ending::Delay { seconds, .. } => (1, *seconds),
            Ending::Failed { .. } => (2, 0),
        };
        if self.closing.as_ref().is_none_or(|before| rank(before) < rank(&ending)) {
            self.closing = Some(ending);
        }
    }
}

/// How many of these pages, given by their records and bytes, are as much as so many halves of what a commit takes, if
/// they are that much. `open_items` records are in the open batch: together they fill batches, because lines of a batch
/// that stays open are stored uncompressed.
fn enough(pages: impl Iterator<Item = (usize, usize)>, open_items: usize, halves: usize) -> Option<usize> {
    let of = |limit: usize| limit / 2 * halves;
    // Of larger batches a commit fills none, or one.
    let (mut items, mut bytes) = (if open_items < HELD_ITEMS_ENOUGH { open_items } else { 0 }, 0);
    let is_enough = |(no, page): &(usize, (usize, usize))| {
        items += page.0;
        bytes += page.1;
        *no >= of(HELD_PAGES) || items >= of(HELD_ITEMS) || bytes >= of(HELD_BYTES)
    };
    (1..).zip(pages).find(is_enough).map(|(pages, _)| pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_takes_as_many_pages_as_fill_batches_with_what_is_open() {
        let pages_of = |items, pages, open| enough(vec![(items, 1); pages].into_iter(), open, ONE_COMMIT);
        assert_eq!([pages_of(100, 39, 0), pages_of(100, 60, 0)], [None, Some(40)]);
        assert_eq!([pages_of(100, 60, 500), pages_of(100, 34, 500)], [Some(35), None]);
        // A batch that is larger than what a commit takes.
        assert_eq!(pages_of(100, 60, 9_000), Some(40));
        assert_eq!(pages_of(1, 200, 0), Some(100));
        assert_eq!(enough([(1, 3 << 20), (1, 1 << 20)].into_iter(), 0, ONE_COMMIT), Some(2));
        assert_eq!(enough(vec![(100, 1); 60].into_iter(), 0, ONE_AND_A_HALF), Some(60));

        // However the pages lie at first, after some commits no batch is open.
        for (page, first) in [(100, 300), (250, 1_750), (500, 500)] {
            let mut open = first;
            for _ in 0..4 {
                open = (open + page * pages_of(page, 100, open).unwrap()) % 2_000;
            }
            assert_eq!(open, 0, "pages of {page}");
        }
    }
}
