//! Which pages are fetched, when, and of which listings: child listings, several at once, and with a source that asks
//! to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use highwater::airdrop::{
    AttachmentBody, AttachmentError, Context, ExternalSyncUnit, Extractor, Listing, OutcomeKind, Serve,
    SourceError,
};
use highwater::limits::{CHILD_LISTINGS_MAX, CURSOR_BYTES_MAX};
use highwater::record::Attachment;
use highwater::{Clock, Page, Record};
use serde_json::{Value, json};

use crate::fixtures;
use crate::formats::{set_at, write_moment};
use crate::world::{Airdrop, Call, Fetched, World, event};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";
const FILES: &str = "EXTRACTION_ATTACHMENTS_START";

/// What fetches a page of a listing. It may be called by several threads.
type FetchPage<'a> = dyn Fn(&Context, &Listing, u32) -> Fetched + Sync + 'a;

/// A source whose pages come from a boxed closure, so that the code that serves it is compiled once.
struct Tracker<'a> {
    streams: Vec<&'static str>,
    page: Box<FetchPage<'a>>,
    asked: Mutex<Vec<String>>,
}

impl<'a> Tracker<'a> {
    fn new(streams: &[&'static str], page: impl Fn(&Context, &Listing, u32) -> Fetched + Sync + 'a) -> Self {
        Self { streams: streams.to_vec(), page: Box::new(page), asked: Mutex::default() }
    }

    /// The pages that were asked for since it was last asked.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// What a listing and a page of it are called.
fn name(listing: &Listing, at: u32) -> String {
    let of = listing.parent().map(|parent| format!(" of {parent}")).unwrap_or_default();
    format!("{}{of} {at}", listing.stream())
}

impl Extractor for Tracker<'_> {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({ "schema_version": "v0.2.0", "record_types": {} }))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(self.streams.iter().map(|&stream| stream.to_owned()).collect())
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<u32>,
    ) -> Result<Page<u32>, SourceError> {
        let at = cursor.unwrap_or(0);
        self.asked.lock().unwrap().push(name(listing, at));
        (self.page)(context, listing, at)
    }
}

/// Page `at` of `pages`, with one record: its listing and number.
fn page(listing: &Listing, at: u32, pages: u32) -> Page<u32> {
    let is = name(listing, at);
    let page = if at + 1 < pages { Page::more(at + 1) } else { Page::last() };
    page.record(listing.stream(), Record::new(is.clone(), &json!({ "is": is })).unwrap())
}

/// Adds an attachment of which too little is known for the page to be stored.
fn make_unstorable(page: &mut Page<u32>) {
    page.push("attachments", Record::new("A-1", &json!({ "url": "no more of it" })).unwrap());
}

/// Answers an event of the run.
fn answer(world: &World, extractor: &impl Extractor, event_type: &str, number: &str) -> OutcomeKind {
    let event = event(event_type, "run", number);
    world.serve.serve(&world.store, &world.airdrop, extractor, &event).unwrap().kind
}

/// Two pages of issues, two issues on each, of which each has two pages of comments; and one of users.
fn issues_with_comments(_: &Context, listing: &Listing, at: u32) -> Fetched {
    match (listing.stream(), listing.parent()) {
        ("issues", None) => {
            let [a, b] = [2 * at, 2 * at + 1].map(|issue| format!("I-{issue}"));
            Ok(page(listing, at, 2).child("comments", &a, &json!({ "of": a })).child("comments", &b, &()))
        }
        ("comments", Some(issue)) => {
            let of: Option<BTreeMap<String, String>> = listing.data()?;
            assert_eq!(of.is_some_and(|of| of["of"] == issue), issue == "I-0" || issue == "I-2");
            Ok(page(listing, at, 2))
        }
        _ => Ok(page(listing, at, 1)),
    }
}

/// What is read of it, in order.
fn depth_first() -> Vec<String> {
    let of_page = |at: u32| {
        let comments =
            [2 * at, 2 * at + 1].map(|issue| [0, 1].map(|at| format!("comments of I-{issue} {at}")));
        [format!("issues {at}")].into_iter().chain(comments.into_iter().flatten())
    };
    of_page(0).chain(of_page(1)).chain(["users 0".to_owned()]).collect()
}

fn sorted(mut records: Vec<String>) -> Vec<String> {
    records.sort_unstable();
    records
}

#[test]
fn child_listings_are_read_before_the_next_page_that_could_name_more() {
    let world = World::new(5);
    let tracker = Tracker::new(&["issues", "users"], issues_with_comments);
    let outcome =
        world.serve.serve(&world.store, &world.airdrop, &tracker, &event(DATA, "run", "1")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!(tracker.asked(), depth_first());
    assert_eq!(sorted(world.airdrop.announced("run")), sorted(depth_first()));
}

/// One page an invocation, on a new machine each time where there is no disk.
fn one_page_an_invocation(has_disk: bool) {
    let mut world = World::new(5);
    world.serve = world.serve.budget(Duration::ZERO);
    if !has_disk {
        world.serve = world.serve.checkpoints();
    }
    let tracker = Tracker::new(&["issues", "users"], issues_with_comments);
    let mut asked = Vec::new();
    for number in 0.. {
        let event = event(if number == 0 { DATA } else { DATA_ON }, "run", &number.to_string());
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        asked.extend(tracker.asked());
        if outcome.kind == OutcomeKind::Done {
            break;
        }
        assert_eq!(outcome.kind, OutcomeKind::Progress);
        if has_disk {
            world.restart();
        } else {
            world.lose_disk();
        }
        assert!(number < 20);
    }
    assert_eq!(asked, depth_first());
    assert_eq!(sorted(world.airdrop.announced("run")), sorted(depth_first()));
}

#[test]
fn child_listings_go_on_where_they_stood_in_another_life() {
    one_page_an_invocation(true);
}

#[test]
fn child_listings_go_on_where_they_stood_on_another_machine() {
    one_page_an_invocation(false);
}

#[test]
fn a_child_listing_that_is_named_again_is_read_once_also_after_it_was_read() {
    let mut world = World::new(5);
    world.serve = world.serve.budget(Duration::ZERO);
    let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| {
        Ok(match listing.stream() {
            "issues" => {
                // The same one of another stream is another one.
                let page = page(listing, at, 3).child("comments", "I-1", &()).child("comments", "I-1", &1);
                page.child("links", "I-1", &())
            }
            _ => page(listing, at, 1),
        })
    });
    for number in 0..7 {
        let event = event(if number == 0 { DATA } else { DATA_ON }, "run", &number.to_string());
        if world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap().kind
            == OutcomeKind::Done
        {
            break;
        }
        world.restart();
    }
    let expected =
        ["issues 0", "comments of I-1 0", "links of I-1 0", "issues 1", "issues 2"].map(str::to_owned);
    assert_eq!(tracker.asked(), expected);
    assert_eq!(sorted(world.airdrop.announced("run")), sorted(expected.to_vec()));
}

#[test]
fn done_is_not_said_while_a_child_listing_is_pending() {
    let mut world = World::new(5);
    world.serve = world.serve.without_attachments_phase();
    let fails = Mutex::new(true);
    let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| match listing.stream() {
        "issues" => Ok(page(listing, at, 1).child("comments", "I-1", &())),
        _ if *fails.lock().unwrap() => Err("not now".into()),
        _ => Ok(page(listing, at, 1)),
    });
    let serve = |number: &str, kind: &str| {
        world.serve.serve(&world.store, &world.airdrop, &tracker, &event(kind, "run", number)).unwrap()
    };
    assert_eq!(serve("1", DATA).kind, OutcomeKind::Error);
    let error = world.airdrop.last().error();
    assert!(error.contains("fetching a page of child listing comments of I-1 of"), "{error}");
    assert_eq!(serve("2", DATA_ON).kind, OutcomeKind::Error);
    *fails.lock().unwrap() = false;
    assert_eq!(serve("3", DATA_ON).kind, OutcomeKind::Done);
    let asked = ["issues 0", "comments of I-1 0", "comments of I-1 0", "comments of I-1 0"];
    assert_eq!(tracker.asked(), asked);
}

#[test]
fn a_page_that_names_too_many_child_listings_is_refused_whole() {
    let world = World::new(5);
    for (run, named, wanted) in
        [("a", CHILD_LISTINGS_MAX + 1, OutcomeKind::Error), ("b", 300, OutcomeKind::Done)]
    {
        let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| {
            let mut page = page(listing, at, 1);
            for issue in 0..if listing.stream() == "issues" { named } else { 0 } {
                page.push_child("comments", &format!("I-{issue}"), &());
            }
            Ok(page)
        });
        let event = event(DATA, run, "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        assert_eq!(outcome.kind, wanted);
        if wanted == OutcomeKind::Error {
            let error = world.airdrop.last().error();
            assert!(error.contains("20001 child listings, over the limit of 20000"), "{error}");
            assert!(world.airdrop.announced(run).is_empty());
        } else {
            assert_eq!(world.airdrop.announced(run).len(), 301);
        }
    }
}

#[test]
fn what_of_child_listings_has_no_room_in_a_checkpoint_is_refused_by_an_error_that_says_so() {
    let mut world = World::new(5);
    world.serve = world.serve.checkpoints();
    let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| {
        let mut page = page(listing, at, 1);
        for issue in 0..if listing.stream() == "issues" { 200 } else { 0 } {
            page.push_child("comments", &format!("I-{issue}"), &"x".repeat(4_000));
        }
        Ok(page)
    });
    let outcome =
        world.serve.serve(&world.store, &world.airdrop, &tracker, &event(DATA, "run", "1")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    let error = world.airdrop.last().error();
    assert!(error.contains("the pending child listings"), "{error}");
    assert!(world.airdrop.announced("run").is_empty());
}

#[test]
fn a_child_listing_has_no_bookmark_and_its_cursor_must_lead_on() {
    let refused = |page: fn(&Listing, u32) -> Page<u32>| {
        let world = World::new(5);
        let tracker = Tracker::new(&["issues"], move |_: &Context, listing: &Listing, at| {
            Ok(match listing.stream() {
                "issues" => Page::last().child("comments", "I-1", &()),
                _ => page(listing, at),
            })
        });
        let event = event(DATA, "run", "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        world.airdrop.last().error()
    };
    let error = refused(|listing, at| page(listing, at, 1).bookmark(&1));
    assert!(error.contains("the bookmark of child listing comments of I-1 is not allowed"), "{error}");
    let error = refused(|_, at| Page::more(at.max(1)));
    assert!(error.contains("the cursor 1 of child listing comments of I-1 is not allowed"), "{error}");
    let error = refused(|_, at| Page::last().child("comments", &"x".repeat(at as usize), &()));
    assert!(error.contains("the parent of a child listing \"\" is not allowed"), "{error}");
    let error = refused(|_, _| Page::last().child("comments", "I-2", &"x".repeat(CURSOR_BYTES_MAX)));
    assert!(error.contains("the data of child listing comments of I-2"), "{error}");
}

#[test]
fn a_page_of_the_plain_loop_names_no_child_listings() {
    let world = World::new(5);
    let run = world.store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let fetch = |_: Option<u32>| Ok::<_, highwater::Error>(Page::last().child("comments", "I-1", &()));
    let error = run.batches("issues", fetch).find_map(Result::err).unwrap().to_string();
    assert!(error.contains("child listing comments of I-1 is not allowed"), "{error}");
}

#[test]
fn as_many_listings_are_read_at_once_as_is_set_and_each_in_its_order() {
    let mut world = World::new(5);
    // In threads: each waits for the two others.
    world.serve = Serve::new().concurrency(3);
    let together = Barrier::new(3);
    let streams = ["a", "b", "c", "d", "e", "f"];
    let tracker = Tracker::new(&streams, |_: &Context, listing: &Listing, at| {
        together.wait();
        Ok(page(listing, at, 4))
    });
    let outcome =
        world.serve.serve(&world.store, &world.airdrop, &tracker, &event(DATA, "run", "1")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    let asked = tracker.asked();
    let mut expected = Vec::new();
    for stream in streams {
        let pages: Vec<String> = (0..4).map(|at| format!("{stream} {at}")).collect();
        let of_stream: Vec<_> = asked.iter().filter(|page| page.starts_with(stream)).cloned().collect();
        assert_eq!(of_stream, pages);
        expected.extend(pages);
    }
    assert_eq!(sorted(world.airdrop.announced("run")), expected);
}

#[test]
fn a_panic_in_a_page_is_that_pages_failure_and_the_others_in_flight_are_stored() {
    let mut world = World::new(5);
    world.serve = Serve::new().concurrency(2);
    let together = Barrier::new(2);
    let tracker = Tracker::new(&["a", "b"], |_: &Context, listing: &Listing, at| {
        if at == 0 {
            together.wait();
        }
        if listing.stream() == "a" {
            std::panic::resume_unwind(Box::new("a bug"));
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(page(listing, at, 1))
    });
    let outcome =
        world.serve.serve(&world.store, &world.airdrop, &tracker, &event(DATA, "run", "1")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    let error = world.airdrop.last().error();
    assert!(error.contains("fetching a page of stream a of") && error.contains("a bug"), "{error}");
    assert_eq!(world.airdrop.announced("run"), ["b 0"]);
}

/// What was stored before it is announced, and the next event goes on with it.
#[test]
fn a_page_that_does_not_come_keeps_no_answer_back() {
    let mut world = World::new(5);
    world.serve = Serve::new();
    let hangs = AtomicBool::new(true);
    let (clock, airdrop) = (&world.clock, &world.airdrop);
    let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| {
        if at == 1 && hangs.swap(false, Ordering::Relaxed) {
            clock.advance(Duration::from_secs(11 * 60 + 45));
            // It comes only after the answer.
            let answered = (0..1_000).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                !airdrop.attempts().is_empty()
            });
            assert!(answered, "the answer waits for the page");
        }
        Ok(page(listing, at, 3))
    });
    let serve = |event_type, number| {
        world.serve.serve(&world.store, airdrop, &tracker, &event(event_type, "run", number)).unwrap().kind
    };
    assert_eq!(serve(DATA, "1"), OutcomeKind::Progress);
    assert_eq!(airdrop.announced("run"), ["issues 0"]);
    assert_eq!(serve(DATA_ON, "2"), OutcomeKind::Done);
    assert_eq!(airdrop.announced("run"), ["issues 0", "issues 1", "issues 2"]);
}

/// An invocation with a stream of three pages, of which the first is refused: the outcome, and which pages were
/// fetched.
fn first_refused(ahead: Option<u64>) -> Vec<String> {
    for inline in [None, Some(1), Some(2), Some(3)] {
        let mut world = World::new(5);
        // In threads or not, what is begun is awaited.
        world.serve = inline.map_or(Serve::new(), |seed| Serve::new().inline(seed));
        if let Some(bytes) = ahead {
            world.serve = world.serve.ahead(bytes);
        }
        let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| {
            let mut page = page(listing, at, 3);
            if at == 0 {
                page.reject("issues", "I-1", "it cannot be asked for again");
            }
            Ok(page)
        });
        let event = event(DATA, "run", "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        let error = world.airdrop.last().error();
        assert!(error.contains("it cannot be asked for again"), "{error}");
        assert!(world.airdrop.announced("run").is_empty(), "what came ahead of it is dropped");
        let asked = tracker.asked();
        if inline == Some(3) {
            return asked;
        }
    }
    unreachable!("the last one returns")
}

#[test]
fn the_next_page_is_asked_for_before_the_last_is_stored_unless_it_may_not() {
    assert_eq!(first_refused(None), ["issues 0", "issues 1"]);
    assert_eq!(first_refused(Some(1_000)), ["issues 0", "issues 1"]);
    // What came has more bytes than may be ahead.
    assert_eq!(first_refused(Some(1)), ["issues 0"]);
    assert_eq!(first_refused(Some(0)), ["issues 0"]);
}

#[test]
fn a_page_ahead_finds_the_values_of_those_before_it() {
    for seed in 0..8 {
        let mut world = World::new(5);
        world.serve = Serve::new().inline(seed);
        let tracker = Tracker::new(&["a", "b"], |context: &Context, listing: &Listing, at| {
            let found = context.value::<String>("last")?;
            let before = match (listing.stream(), at) {
                ("a", 0) => None,
                ("b", 0) => Some("a 5".to_owned()),
                (_, at) => Some(name(listing, at - 1)),
            };
            assert_eq!(found, before, "{seed}");
            let odd = context.value::<u32>("odd")?;
            assert_eq!(odd, if at > 0 && at % 2 == 0 { Some(at - 1) } else { None }, "{seed}");
            let page = page(listing, at, 6).value("last", &name(listing, at));
            let goes = at % 2 == 0 || at == 5;
            Ok(if goes { page.without_value("odd") } else { page.value("odd", &at) })
        });
        let event = event(DATA, "run", "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done);
        assert_eq!(world.airdrop.announced("run").len(), 12);
    }
}

#[test]
fn if_a_page_ahead_fails_or_is_to_wait_those_before_it_are_stored_and_announced() {
    for ahead in [0, 32 << 20] {
        for seed in 0..4 {
            for (fails, kind) in [(true, OutcomeKind::Error), (false, OutcomeKind::Delay)] {
                let mut world = World::new(5);
                world.serve = Serve::new().inline(seed).ahead(ahead);
                let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| match at {
                    3 if fails => Err("not now".into()),
                    3 => Err(SourceError::RateLimited { after: Duration::from_secs(100) }),
                    _ => Ok(page(listing, at, 5)),
                });
                let event = event(DATA, "run", "1");
                let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
                assert_eq!(outcome.kind, kind);
                assert_eq!(world.airdrop.announced("run"), ["issues 0", "issues 1", "issues 2"]);
            }
        }
    }
}

#[test]
fn a_cursor_that_leads_nowhere_is_not_followed_ahead() {
    for (cycle, asked) in [(1, 2), (2, 4)] {
        let mut world = World::new(5);
        world.serve = Serve::new();
        let tracker = Tracker::new(&["issues"], |_: &Context, listing: &Listing, at| {
            Ok(Page::more(at % cycle + 1)
                .record("issues", Record::new(name(listing, at), &json!({})).unwrap()))
        });
        let event = event(DATA, "run", "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        let error = world.airdrop.last().error();
        assert!(error.contains("would be read forever"), "{error}");
        assert_eq!(tracker.asked().len(), asked, "{error}");
    }
}

/// The outcome and the duration of an invocation whose source asks to wait `after`, `times` times before each page.
fn left_alone(after: Duration, times: usize, at_once: usize, ahead: u64) -> (OutcomeKind, Duration, Airdrop) {
    refused(&|| SourceError::RateLimited { after }, times, at_once, ahead)
}

/// The same for a source that refuses each page so many times.
fn refused(
    error: &(dyn Fn() -> SourceError + Sync),
    times: usize,
    at_once: usize,
    ahead: u64,
) -> (OutcomeKind, Duration, Airdrop) {
    let mut world = World::new(5);
    world.serve = world.serve.concurrency(at_once).ahead(ahead);
    let refused: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let tracker = Tracker::new(&["a", "b"], |_: &Context, listing: &Listing, at| {
        let mut refused = refused.lock().unwrap();
        let times_before = refused.entry(name(listing, at)).or_default();
        *times_before += 1;
        if *times_before <= times { Err(error()) } else { Ok(page(listing, at, 3)) }
    });
    let started = world.clock.elapsed();
    let outcome =
        world.serve.serve(&world.store, &world.airdrop, &tracker, &event(DATA, "run", "1")).unwrap();
    (outcome.kind, world.clock.elapsed().saturating_sub(started), world.airdrop)
}

#[test]
fn a_short_wait_ends_no_invocation_and_a_long_one_does() {
    let second = Duration::from_secs(1);
    for (at_once, ahead) in [(1, 0), (1, 1 << 20), (2, 0), (2, 1 << 20)] {
        let (kind, took, airdrop) = left_alone(second, 1, at_once, ahead);
        assert_eq!((kind, airdrop.messages().len()), (OutcomeKind::Done, 1));
        // Two that are refused at once wait together. The first two are; the others, if they are begun at once.
        let waits = if at_once == 1 { 6..=6 } else { 3..=5 };
        assert!(waits.map(|seconds| second * seconds).any(|wait| wait == took), "{took:?}");
        assert_eq!(airdrop.announced("run").len(), 6);
        let (kind, _, airdrop) = left_alone(second * 11, 1, at_once, ahead);
        assert_eq!(kind, OutcomeKind::Delay);
        assert_eq!(airdrop.last().body["event_data"]["delay"], json!(11));
    }
}

#[test]
fn a_page_that_fails_for_a_passing_reason_is_fetched_again_three_times() {
    let second = Duration::from_secs(1);
    let passing = || SourceError::from_status("/pages", 503, None);
    for (at_once, ahead) in [(1, 0), (1, 1 << 20), (2, 0), (2, 1 << 20)] {
        for (times, waits) in [(1, 1), (2, 1 + 2), (3, 1 + 2 + 4)] {
            let (kind, took, airdrop) = refused(&passing, times, at_once, ahead);
            assert_eq!((kind, airdrop.messages().len()), (OutcomeKind::Done, 1), "{times}");
            assert_eq!(airdrop.announced("run").len(), 6);
            // Two that fail at once wait together.
            assert!(took >= second * 3 * waits && took <= second * 6 * waits, "{times}: {took:?}");
        }
        let (kind, took, airdrop) = refused(&passing, 4, at_once, ahead);
        assert_eq!(kind, OutcomeKind::Error);
        let error = airdrop.last().error();
        assert!(error.contains("stream a") || error.contains("stream b"), "{error}");
        assert!(error.ends_with("/pages was answered with 503; tried 4 times"), "{error}");
        assert!(took <= second * 2 * 7, "{took:?}");
    }
}

/// One listing goes on while another fails: the tries of each are counted by themselves.
#[test]
fn a_listing_that_always_fails_ends_the_invocation_although_others_go_on() {
    let mut world = World::new(5);
    world.serve = world.serve.concurrency(2).ahead(0);
    let tracker = Tracker::new(&["a", "b"], |_: &Context, listing: &Listing, at| {
        if listing.stream() == "b" {
            return Err(SourceError::temporary("no"));
        }
        Ok(page(listing, at, 1_000))
    });
    let event = event(DATA, "run", "1");
    let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    assert!(world.airdrop.last().error().ends_with("no; tried 4 times"), "{}", world.airdrop.last().error());
    let asked = tracker.asked();
    assert_eq!(asked.iter().filter(|name| name.starts_with('b')).count(), 4, "{asked:?}");
    assert!(asked.len() > 4, "{asked:?}");
}

#[test]
fn a_page_is_not_fetched_again_if_there_is_no_time_for_it_or_no_wait_is_wanted() {
    let second = Duration::from_secs(1);
    for (budget, wait_up_to, takes, tries) in
        [(60, 10, 0, 4), (60, 0, 0, 1), (60, 2, 0, 3), (3, 10, 0, 2), (60, 10, 30, 1), (60, 10, 20, 2)]
    {
        let mut world = World::new(5);
        world.serve = world.serve.budget(second * budget).wait_up_to(second * wait_up_to);
        let tracker = Tracker::new(&["a"], |_: &Context, _: &Listing, _| {
            world.clock.advance(second * takes);
            Err(SourceError::temporary("no"))
        });
        let event = event(DATA, "run", "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        assert_eq!((outcome.kind, tracker.asked().len()), (OutcomeKind::Error, tries), "{budget} {takes}");
    }
}

#[test]
fn a_source_that_asks_for_no_time_at_all_is_not_asked_for_ever() {
    let (kind, took, airdrop) = left_alone(Duration::ZERO, usize::MAX, 1, 1 << 20);
    assert_eq!((kind, airdrop.messages().len()), (OutcomeKind::Delay, 1));
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_short_wait_that_has_no_room_in_the_budget_is_a_delay() {
    let mut world = World::new(5);
    world.serve = world.serve.budget(Duration::from_secs(5));
    let tracker = Tracker::new(&["a"], |_: &Context, _: &Listing, _| {
        Err(SourceError::RateLimited { after: Duration::from_secs(5) })
    });
    let outcome =
        world.serve.serve(&world.store, &world.airdrop, &tracker, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, tracker.asked().len()), (OutcomeKind::Delay, 1));
}

#[test]
fn streams_and_the_metadata_for_the_checks_may_be_asked_for_again_after_a_short_wait() {
    struct Limited(Mutex<BTreeSet<&'static str>>, fn() -> SourceError);
    impl Limited {
        fn once(&self, what: &'static str) -> Result<(), SourceError> {
            let first = self.0.lock().unwrap().insert(what);
            if first { Err((self.1)()) } else { Ok(()) }
        }
    }
    impl Extractor for Limited {
        type Cursor = u32;
        fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
            Ok(Vec::new())
        }
        fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
            self.once("metadata")?;
            let fields = json!({ "is": { "type": "text", "name": "Is" } });
            Ok(
                json!({ "schema_version": "v0.2.0", "record_types": { "a": { "name": "A", "fields": fields } } }),
            )
        }
        fn check_policy(&self) -> highwater::airdrop::CheckPolicy {
            highwater::airdrop::CheckPolicy::Report
        }
        fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
            self.once("streams")?;
            Ok(vec!["a".to_owned()])
        }
        fn page(&self, _: &Context, listing: &Listing, at: Option<u32>) -> Result<Page<u32>, SourceError> {
            Ok(page(listing, at.unwrap_or(0), 1))
        }
    }
    let refusals: [fn() -> SourceError; 2] = [
        || SourceError::RateLimited { after: Duration::from_secs(2) },
        || SourceError::temporary("the connection broke off"),
    ];
    for refusal in refusals {
        let world = World::new(5);
        let source = Limited(Mutex::default(), refusal);
        let event = event(DATA, "run", "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &source, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done);
        assert_eq!(source.0.lock().unwrap().len(), 2);
    }
}

#[test]
fn an_attachment_that_is_to_wait_a_little_holds_no_other_up_and_ends_no_invocation() {
    struct Files {
        opened: Mutex<Vec<String>>,
        after: Duration,
    }
    impl Extractor for Files {
        type Cursor = u32;
        fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
            Ok(Vec::new())
        }
        fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
            Ok(json!({}))
        }
        fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
            Ok(vec!["issues".to_owned()])
        }
        fn page(&self, _: &Context, _: &Listing, _: Option<u32>) -> Result<Page<u32>, SourceError> {
            let mut page = Page::last();
            for id in ["a", "b", "c"] {
                page.push("attachments", Attachment::new(id, "https://f", id, "I-1").to_record()?);
            }
            Ok(page)
        }
        fn open_attachment(&self, _: &Context, file: &Attachment) -> Result<AttachmentBody, AttachmentError> {
            let mut opened = self.opened.lock().unwrap();
            opened.push(file.id.clone());
            if file.id == "a" && opened.iter().filter(|id| *id == "a").count() < 3 {
                return Err(AttachmentError::RateLimited { after: self.after });
            }
            Ok(AttachmentBody::new(&b"bytes"[..]))
        }
    }
    let serve = |after: u64| {
        let mut world = World::new(5);
        world.serve = world.serve.attachments_at_once(1);
        let source = Files { opened: Mutex::default(), after: Duration::from_secs(after) };
        let serve = |kind: &str, number: &str| answer(&world, &source, kind, number);
        assert_eq!(serve(DATA, "1"), OutcomeKind::Done);
        let started = world.clock.elapsed();
        let kind = serve(FILES, "2");
        let took = world.clock.elapsed().saturating_sub(started);
        (kind, source.opened.into_inner().unwrap(), took, world.airdrop.calls(Call::Send))
    };
    let (kind, opened, took, sent) = serve(3);
    assert_eq!((kind, sent), (OutcomeKind::Done, 2));
    assert_eq!(opened, ["a", "b", "c", "a", "a"]);
    assert_eq!(took, Duration::from_secs(6));
    assert_eq!(serve(30).0, OutcomeKind::Delay);
}

/// The worker of the fixture of child listings.
fn by_checkpoints() -> World {
    let mut world = World::new(2);
    world.serve = world.serve.checkpoints();
    world
}

#[test]
fn pending_child_listings_that_a_version_before_left_are_read_to_their_end() {
    for has_disk in [true, false] {
        let mut world = by_checkpoints();
        set_at(&world, "format-2", "child-listings");
        if has_disk {
            world.start_on(fixtures::store_of("format-2", "child-listings").disk());
        }
        let tracker = Tracker::new(&["issues", "users"], issues_with_comments);
        // The event that died, which had its answer sealed, and the one after it.
        for (number, kind) in [("2", OutcomeKind::Progress), ("3", OutcomeKind::Done)] {
            let event = event(DATA_ON, "run", number);
            let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
            assert_eq!(outcome.kind, kind, "{has_disk}");
        }
        assert_eq!(tracker.asked(), depth_first()[3..], "{has_disk}");
        assert_eq!(sorted(world.airdrop.announced("run")), sorted(depth_first()), "{has_disk}");
    }
}

#[test]
#[ignore = "writes what is in tests/fixtures/format-2 of child listings"]
fn writes_the_newest_format_of_child_listings() {
    let world = by_checkpoints();
    let tracker = Tracker::new(&["issues", "users"], issues_with_comments);
    // A page an invocation: the first of issues, then the first two of comments. The last one is killed.
    let serve = |number: u32| {
        let event = event(if number == 0 { DATA } else { DATA_ON }, "run", &number.to_string());
        world.serve.clone().budget(Duration::ZERO).serve(&world.store, &world.airdrop, &tracker, &event)
    };
    for number in 0..2 {
        assert_eq!(serve(number).unwrap().kind, OutcomeKind::Progress);
    }
    world.airdrop.kill_at(Call::Send, 0, &world.disk);
    serve(2).unwrap_err();
    assert!(world.disk.is_dead(), "it was to be killed");
    assert_eq!(tracker.asked(), depth_first()[..3]);
    write_moment(&world, "child-listings");
}

/// A page that is refused only at the commit, among others that are committed together with it.
#[test]
fn a_page_that_cannot_be_stored_keeps_none_back_of_those_that_came_with_it() {
    for seed in 0..8 {
        let mut world = World::new(5);
        world.serve = Serve::new().inline(seed).concurrency(2);
        let tracker = Tracker::new(&["a", "b"], |_: &Context, listing: &Listing, at| {
            let mut page = page(listing, at, 3);
            if (listing.stream(), at) == ("b", 2) {
                make_unstorable(&mut page);
            }
            Ok(page)
        });
        let event = event(DATA, "run", "1");
        let outcome = world.serve.serve(&world.store, &world.airdrop, &tracker, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error, "{seed}");
        let error = world.airdrop.last().error();
        assert!(error.contains("A-1"), "{error}");
        let announced = sorted(world.airdrop.announced("run"));
        let expected = ["a 0", "a 1", "a 2", "b 0", "b 1"];
        assert_eq!(announced, expected, "{seed}: what came before or beside it is announced");
    }
}

/// The same for one whose next pages came ahead of it, maybe while it was being committed: they are dropped, and
/// fetched again once it is mended.
#[test]
fn what_came_ahead_of_a_page_that_cannot_be_stored_is_dropped_and_comes_again() {
    for inline in [None].into_iter().chain((0..32).map(Some)) {
        let mut world = World::new(5);
        let serve = inline.map_or(Serve::new(), |seed| Serve::new().inline(seed));
        world.serve = serve.concurrency(2);
        let is_mended = AtomicBool::new(false);
        let tracker = Tracker::new(&["a", "b"], |_: &Context, listing: &Listing, at| {
            let mut page = page(listing, at, 6);
            if (listing.stream(), at) == ("b", 2) && !is_mended.load(Ordering::SeqCst) {
                make_unstorable(&mut page);
            }
            Ok(page)
        });
        let serve = |event_type, number| answer(&world, &tracker, event_type, number);
        assert_eq!(serve(DATA, "1"), OutcomeKind::Error, "{inline:?}");
        let announced = world.airdrop.announced("run");
        let of_b: Vec<_> = announced.iter().filter(|name| name.starts_with('b')).collect();
        assert_eq!(of_b, ["b 0", "b 1"], "{inline:?}");
        is_mended.store(true, Ordering::SeqCst);
        assert_eq!(serve(DATA_ON, "2"), OutcomeKind::Done, "{inline:?}");
        let expected: Vec<_> =
            ["a", "b"].iter().flat_map(|of| (0..6).map(move |at| format!("{of} {at}"))).collect();
        assert_eq!(sorted(world.airdrop.announced("run")), expected, "{inline:?}");
    }
}

/// What happened to uploads is stored with the page that is committed next. If that page cannot be stored, it is stored
/// all the same: no upload is made again.
#[test]
fn a_page_that_cannot_be_stored_keeps_no_id_of_an_upload_from_being_stored() {
    for inline in [None].into_iter().chain((0..32).map(Some)) {
        let mut world = World::new(1);
        let serve = inline.map_or(Serve::new(), |seed| Serve::new().inline(seed));
        world.serve = serve.ahead(0);
        let is_mended = AtomicBool::new(false);
        let tracker = Tracker::new(&["a"], |_: &Context, listing: &Listing, at| {
            let mut page = page(listing, at, 6);
            if at == 4 && !is_mended.load(Ordering::SeqCst) {
                make_unstorable(&mut page);
            }
            Ok(page)
        });
        let serve = |event_type, number| answer(&world, &tracker, event_type, number);
        assert_eq!(serve(DATA, "1"), OutcomeKind::Error, "{inline:?}");
        is_mended.store(true, Ordering::SeqCst);
        assert_eq!(serve(DATA_ON, "2"), OutcomeKind::Done, "{inline:?}");
        let expected: Vec<_> = (0..6).map(|at| format!("a {at}")).collect();
        assert_eq!(world.airdrop.announced("run"), expected, "{inline:?}");
        assert_eq!((world.airdrop.uploads(), world.airdrop.named().len()), (6, 6), "{inline:?}");
    }
}
