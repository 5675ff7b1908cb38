//! Async extractors: the same engine, explored like the other one. Their futures are polled on the task of the
//! caller, and dropping the caller's future is a kill.
//!
//! The executor is written here; tests about timing poll by hand.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{self, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use highwater::airdrop::{
    AsyncAttachmentBody, AsyncExtractor, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor,
    Listing, OutcomeKind, Platform, PlatformError, SealedMessage, Serve, SourceError, StopToken, Upload,
    WorkerState,
};
use highwater::record::Attachment;
use highwater::testing::{Act, Explore, Life, Setting, SimCursor, SimSource};
use highwater::{ArtifactId, Page};
use serde_json::{Value, json};

use crate::world::{Airdrop, World, all_of, event, page_of};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";

struct Unparks(Thread);

impl Wake for Unparks {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future until it is ready, or `give_up` says so after a poll: then it is dropped.
fn block_on_until<F: Future>(future: F, give_up: impl Fn() -> bool) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unparks(thread::current())));
    let mut task = task::Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut task) {
            Poll::Ready(ready) => return Some(ready),
            Poll::Pending if give_up() => return None,
            Poll::Pending => thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    block_on_until(future, || false).expect("it is never given up")
}

/// A future that is pending once; its task is polled again.
async fn once_pending() {
    let mut polled = false;
    poll_fn(|task| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The explorer's bad source, which is awaited.
struct Awaited(SimSource);

impl AsyncExtractor for Awaited {
    type Cursor = SimCursor;

    async fn external_sync_units(&self, context: Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        once_pending().await;
        self.0.external_sync_units(&context)
    }

    async fn metadata(&self, context: Context) -> Result<Value, SourceError> {
        once_pending().await;
        self.0.metadata(&context)
    }

    async fn initial_domain_mapping(&self, context: Context) -> Result<Option<Value>, SourceError> {
        once_pending().await;
        self.0.initial_domain_mapping(&context)
    }

    fn check_policy(&self) -> CheckPolicy {
        self.0.check_policy()
    }

    async fn streams(&self, context: Context) -> Result<Vec<String>, SourceError> {
        once_pending().await;
        self.0.streams(&context)
    }

    async fn page(
        &self,
        context: Context,
        listing: Listing,
        cursor: Option<SimCursor>,
    ) -> Result<Page<SimCursor>, SourceError> {
        once_pending().await;
        self.0.page(&context, &listing, cursor)
    }

    fn can_refetch(&self, item_type: &str) -> bool {
        self.0.can_refetch(item_type)
    }

    async fn refetch(
        &self,
        context: Context,
        item_type: String,
        ids: Vec<String>,
    ) -> Result<Page<SimCursor>, SourceError> {
        once_pending().await;
        self.0.refetch(&context, &item_type, &ids)
    }

    async fn open_attachment(
        &self,
        context: Context,
        attachment: Attachment,
    ) -> Result<AsyncAttachmentBody, AttachmentError> {
        once_pending().await;
        let body = self.0.open_attachment(&context, &attachment)?;
        let (length, content_type) = (body.length_bytes, body.content_type);
        let mut chunks = AsyncAttachmentBody::new(Chunks(body.reader));
        chunks.length_bytes = length;
        chunks.content_type = content_type;
        Ok(chunks)
    }
}

/// A reader, some bytes at a time, as a stream that is pending before each.
struct Chunks(Box<dyn std::io::Read + Send>);

impl futures_core::Stream for Chunks {
    type Item = std::io::Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        let mut chunk = vec![0; 7];
        Poll::Ready(match self.0.read(&mut chunk) {
            Ok(0) => None,
            Ok(count) => {
                chunk.truncate(count);
                Some(Ok(chunk))
            }
            Err(error) => Some(Err(error)),
        })
    }
}

#[test]
fn every_record_of_a_source_that_is_awaited_is_announced_exactly_once() {
    let make = |life: &Life| Awaited(SimSource::new(life));
    for (settings, with_disk, states) in [
        (&[][..], true, 400),
        (&[Setting::Rejects, Setting::ChecksReport], true, 60),
        (&[Setting::Children, Setting::AtOnce], true, 60),
        (&[], false, 30),
    ] {
        let acts = settings.iter().map(|setting| Act::With(*setting));
        let stops = (3..100).step_by(19).map(|changes| Act::Stop { changes });
        let explore = Explore::new().states(states).with_acts(acts.chain(stops));
        let explore = if with_disk { explore } else { explore.without_disk() };
        let report = explore.run_async(make);
        println!("{report}");
        assert!(report.failure.is_none(), "{settings:?}: {report}");
        assert!(report.deaths > 0 && report.faults.contains_key("source/attachment"), "{report}");
    }
}

/// The platform of a test, for an engine that owns it.
#[derive(Clone)]
struct Shared(Arc<Airdrop>);

impl Platform for Shared {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        self.0.upload(upload)
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        self.0.confirm(artifact)
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        self.0.send(message)
    }

    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        self.0.worker_state()
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        self.0.save_worker_state(state)
    }
}

impl Shared {
    fn new() -> Self {
        Self(Arc::default())
    }

    /// All that it has seen.
    fn seen(&self) -> (usize, BTreeSet<String>, usize) {
        (self.0.uploads(), self.0.confirmed(), self.0.attempts().len())
    }

    /// Waits until no engine has it any more.
    fn is_left(&self) {
        let began = Instant::now();
        while Arc::strong_count(&self.0) > 1 {
            assert!(began.elapsed() < Duration::from_secs(60), "an engine that was cut off does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What befalls a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Befalls {
    Nothing,
    /// It is not there before all of so many are awaited.
    Together(usize),
    Panics,
    Hangs,
}

/// A source of streams, two pages of three records each, with an attachment on each.
struct Tracker {
    streams: Vec<&'static str>,
    befalls: Mutex<Befalls>,
    awaited: AtomicUsize,
    awaited_max: AtomicUsize,
    asked: Mutex<Vec<String>>,
    dropped: Arc<AtomicUsize>,
    stop: StopToken,
}

impl Tracker {
    fn new(streams: &[&'static str], befalls: Befalls) -> Self {
        Self {
            streams: streams.to_vec(),
            befalls: Mutex::new(befalls),
            awaited: AtomicUsize::new(0),
            awaited_max: AtomicUsize::new(0),
            asked: Mutex::default(),
            dropped: Arc::default(),
            stop: StopToken::new(),
        }
    }

    fn all(&self) -> Vec<String> {
        let mut all: Vec<_> = self.streams.iter().flat_map(|stream| all_of(stream, 2, 3)).collect();
        all.sort();
        all
    }
}

/// Counts when it is dropped.
struct Counts(Arc<AtomicUsize>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl AsyncExtractor for Tracker {
    type Cursor = u32;

    async fn external_sync_units(&self, _: Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    async fn metadata(&self, _: Context) -> Result<Value, SourceError> {
        Ok(json!({ "schema_version": "v0.2.0", "record_types": {} }))
    }

    async fn streams(&self, _: Context) -> Result<Vec<String>, SourceError> {
        Ok(self.streams.iter().map(|&stream| stream.to_owned()).collect())
    }

    async fn page(
        &self,
        context: Context,
        listing: Listing,
        cursor: Option<u32>,
    ) -> Result<Page<u32>, SourceError> {
        let _dropped = Counts(Arc::clone(&self.dropped));
        let at = cursor.unwrap_or(0);
        self.asked.lock().unwrap().push(format!("{}-{at}", listing.stream()));
        let befalls = *self.befalls.lock().unwrap();
        match befalls {
            Befalls::Together(pages) if at == 0 => {
                let awaited = self.awaited.fetch_add(1, Ordering::SeqCst) + 1;
                self.awaited_max.fetch_max(awaited, Ordering::SeqCst);
                while self.awaited.load(Ordering::SeqCst) < pages {
                    once_pending().await;
                }
            }
            Befalls::Panics if at == 1 => panic!("a bug in {}", context.run_id()),
            Befalls::Hangs if at == 1 => {
                self.stop.stop();
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        let stream = listing.stream();
        let mut page = page_of(stream, at, 2, 3);
        let (id, url) = (format!("{stream}-{at}"), format!("https://files.example/{stream}-{at}"));
        page.push("attachments", Attachment::new(id, url, "a.bin", "issue").to_record()?);
        Ok(page)
    }

    async fn open_attachment(
        &self,
        _: Context,
        attachment: Attachment,
    ) -> Result<AsyncAttachmentBody, AttachmentError> {
        once_pending().await;
        let bytes: Box<dyn std::io::Read + Send> = match attachment.id.as_str() {
            "a-1" => return Err(AttachmentError::Gone { reason: "it was deleted".to_owned() }),
            id => Box::new(std::io::Cursor::new(id.repeat(100).into_bytes())),
        };
        Ok(AsyncAttachmentBody::new(Chunks(bytes)).length(300).content_type("text/plain"))
    }
}

fn records(platform: &Shared) -> Vec<String> {
    // Attachments have nothing that tells them apart as records do.
    let mut records = platform.0.announced("run");
    records.retain(|is| !is.is_empty());
    records.sort();
    records
}

/// The future can be spawned on a runtime of many threads.
fn is_send<T: Send>(future: T) -> T {
    future
}

#[test]
fn pages_are_awaited_together_and_attachments_streamed_in_chunks() {
    let (world, platform) = (World::new(2), Shared::new());
    let tracker = Tracker::new(&["a", "b", "c"], Befalls::Together(3));
    let serve = Serve::new().concurrency(3);
    let serving = serve.serve_async(&world.store, platform.clone(), &tracker, &event(DATA, "run", "1"));
    let outcome = block_on(is_send(serving)).unwrap();
    assert_eq!((outcome.kind, outcome.attachments.queued), (OutcomeKind::Done, 6));
    assert_eq!(tracker.awaited_max.load(Ordering::SeqCst), 3);
    assert_eq!(records(&platform), tracker.all());
    let event = event("EXTRACTION_ATTACHMENTS_START", "run", "2");
    let outcome = block_on(serve.serve_async(&world.store, platform.clone(), &tracker, &event)).unwrap();
    let counts = outcome.attachments;
    assert_eq!((outcome.kind, counts.settled, counts.failed), (OutcomeKind::Done, 5, 1), "{counts:?}");
    platform.is_left();
}

#[test]
fn a_panic_in_a_future_is_that_pages_failure() {
    let (world, platform) = (World::new(2), Shared::new());
    let tracker = Tracker::new(&["a"], Befalls::Panics);
    let event = event(DATA, "run", "1");
    let outcome =
        block_on(world.serve.serve_async(&world.store, platform.clone(), &tracker, &event)).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    let error = platform.0.last().error();
    assert!(error.contains("fetching a page of stream a of") && error.contains("a bug in run"), "{error}");
}

/// The engine is cut off wherever the future is dropped; another serves the same event at once, on the same store.
#[test]
fn a_future_that_is_dropped_is_a_kill_and_the_same_event_resumes() {
    let (mut drops, mut amid) = (0, 0);
    for polls in 0.. {
        let (world, platform) = (World::new(2), Shared::new());
        let tracker = Tracker::new(&["a", "b"], Befalls::Nothing);
        let start = event(DATA, "run", "1");
        let polled = AtomicUsize::new(0);
        let serving = world.serve.serve_async(&world.store, platform.clone(), &tracker, &start);
        let give_up = || polled.fetch_add(1, Ordering::Relaxed) >= polls;
        let outcome = block_on_until(serving, give_up);
        let seen = platform.seen();
        let is_over = outcome.is_some();
        drops += usize::from(!is_over);
        amid += usize::from(!is_over && seen.0 > 0 && seen.2 == 0);
        // Since then at most the one call in progress has ended.
        let outcome = block_on(Serve::new().serve_async(&world.store, platform.clone(), &tracker, &start));
        assert_eq!(outcome.unwrap().kind, OutcomeKind::Done);
        assert_eq!(records(&platform), tracker.all(), "dropped after {polls} polls");
        assert_eq!(platform.0.confirmed(), platform.0.named());
        assert_eq!(platform.0.messages().len(), 1);
        platform.is_left();
        if is_over {
            break;
        }
    }
    println!("{drops} drops, {amid} of them amid the work");
    assert!(drops >= 3, "{drops} drops prove little");
}

/// While the engine waits for a page, no call is being made: after the drop nothing at all is confirmed, sent or
/// stored.
#[test]
fn nothing_is_confirmed_sent_or_stored_after_the_future_is_dropped() {
    let (world, platform) = (World::new(2), Shared::new());
    let tracker = Tracker::new(&["a", "b"], Befalls::Hangs);
    // Asked to stop by nobody: the page hangs, and the future is dropped.
    let start = event(DATA, "run", "1");
    // The page before it is stored when it is asked for.
    let serve = world.serve.clone().ahead(0);
    let serving = serve.serve_async(&world.store, platform.clone(), &tracker, &start);
    let hangs = || tracker.asked.lock().unwrap().last().is_some_and(|page| page == "a-1");
    assert!(block_on_until(serving, hangs).is_none());
    assert_eq!(tracker.dropped.load(Ordering::SeqCst), 2, "the author's futures are dropped with it");
    let seen = platform.seen();
    let disk = world.disk.image().hash();
    platform.is_left();
    assert_eq!(platform.seen(), seen);
    assert_eq!(world.disk.image().hash(), disk);
    *tracker.befalls.lock().unwrap() = Befalls::Nothing;
    let outcome = block_on(serve.serve_async(&world.store, platform.clone(), &tracker, &start));
    assert_eq!(outcome.unwrap().kind, OutcomeKind::Done);
    assert_eq!(records(&platform), tracker.all());
    assert_eq!(*tracker.asked.lock().unwrap(), ["a-0", "a-1", "a-1", "b-0", "b-1"]);
}

#[test]
fn a_future_that_hangs_is_given_up_after_a_stop_and_dropped() {
    let (world, platform) = (World::new(2), Shared::new());
    let tracker = Tracker::new(&["a", "b"], Befalls::Hangs);
    let clock = world.clock.clone();
    let stop = tracker.stop.clone();
    let serve = Serve::new().stop_token(stop.clone());
    // Time passes once somebody was asked to stop, and as long as the page hangs.
    let (dropped, over) = (Arc::clone(&tracker.dropped), Arc::new(AtomicUsize::new(0)));
    let ends = Arc::clone(&over);
    let passes = thread::spawn(move || {
        while ends.load(Ordering::SeqCst) == 0 {
            if stop.is_stopped() && dropped.load(Ordering::SeqCst) < 2 {
                clock.advance(Duration::from_millis(100));
            }
            thread::sleep(Duration::from_millis(2));
        }
    });
    let outcome =
        block_on(serve.serve_async(&world.store, platform.clone(), &tracker, &event(DATA, "run", "1")));
    over.store(1, Ordering::SeqCst);
    passes.join().unwrap();
    assert_eq!(outcome.unwrap().kind, OutcomeKind::Progress);
    assert_eq!(tracker.dropped.load(Ordering::SeqCst), 2);
    *tracker.befalls.lock().unwrap() = Befalls::Nothing;
    let on = event(DATA_ON, "run", "2");
    let outcome = block_on(Serve::new().serve_async(&world.store, platform.clone(), &tracker, &on)).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!(records(&platform), tracker.all());
}
