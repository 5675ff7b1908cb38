//! After a stop an invocation begins nothing more. It ends in time with PROGRESS, or without a message, and the next
//! one continues where it stopped.
//!
//! If something must be slow, the test's source or platform blocks until the test releases it, and the test moves the
//! clock: nothing depends on the speed of this machine.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use highwater::airdrop::{
    AttachmentBody, AttachmentError, Context, Fate, OutcomeKind, Platform, PlatformError, SealedMessage,
    Serve, SourceError, StopToken, Upload,
};
use highwater::record::Attachment;
use highwater::{ArtifactId, Clock, Error, ErrorKind, Page, VirtualClock};
use serde_json::json;

use crate::world::{Airdrop, Answer, Call, Source, World, all_of, event, page_of, pass_on};

const DATA: &str = "EXTRACTION_DATA_START";
const DATA_ON: &str = "EXTRACTION_DATA_CONTINUE";
const SECOND: Duration = Duration::from_secs(1);

/// A world whose invocations stop when the token is asked, and have 8 s then.
fn world() -> (World, StopToken) {
    let mut world = World::new(5);
    let stop = StopToken::new();
    world.serve = world.serve.stop_token(stop.clone());
    (world, stop)
}

/// The rest of the run, in a worker that nobody stops, must end with DONE and have announced all.
fn ends_whole(world: &mut World, source: &mut Source<'_>, event_type: &str, request: &str, all: &[String]) {
    world.serve = Serve::new().inline(7);
    let outcome = world.serve(source, &event(event_type, "run", request)).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done, "{:?}", outcome.message);
    let mut announced = world.airdrop.announced("run");
    announced.sort();
    let mut all = all.to_vec();
    all.sort();
    assert_eq!(announced, all);
    assert_eq!(world.airdrop.confirmed(), world.airdrop.named());
}

#[test]
fn no_page_begins_after_a_stop_and_what_is_staged_is_announced() {
    let (mut world, stop) = world();
    let mut source = Source::new(|context: &Context, stream: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        if at == 1 {
            assert!(context.time_left() > SECOND);
            stop.stop();
            assert_eq!(context.time_left(), Duration::ZERO);
        }
        Ok(page_of(stream, at, 4, 3))
    });
    let outcome = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Progress, 2));
    assert_eq!(source.asked().len(), 2);
    assert_eq!(world.airdrop.announced("run").len(), 6);
    // The token stays asked: the next invocation of that worker begins nothing either.
    let outcome = world.serve(&mut source, &event(DATA_ON, "run", "2")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts, source.asked().len()), (OutcomeKind::Progress, 0, 2));
    ends_whole(&mut world, &mut source, DATA_ON, "3", &all_of("issues", 4, 3));
    assert_eq!(source.asked().len(), 4, "no page is fetched twice");
}

#[test]
fn a_run_whose_last_page_comes_after_the_stop_is_done() {
    let (world, stop) = world();
    let mut source = Source::new(|_: &Context, stream: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        if at == 1 {
            stop.stop();
        }
        Ok(page_of(stream, at, 2, 3))
    });
    let outcome = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Done, 2));
}

/// Waits that the source or the platform asked for: a worker that is stopped in one of them wakes up.
#[test]
fn every_wait_ends_when_somebody_asks_to_stop() {
    // The source, before a page; before streams; and before rejected records come again, in `rejected.rs`.
    let (mut world, stop) = world();
    let clock = world.clock.clone();
    world.serve = world.serve.wait_up_to(60 * SECOND);
    // The clock moves when somebody waits: after 3 of 50 s somebody asks to stop.
    world.store = crate::world::open_with(&world.disk, StopsAt::new(&clock, 3 * SECOND, &stop), 5);
    let mut source = Source::new(|_: &Context, stream: &str, at: Option<u32>| match at {
        Some(1) => Err(SourceError::RateLimited { after: 50 * SECOND }),
        at => Ok(page_of(stream, at.unwrap_or(0), 3, 3)),
    });
    let outcome = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Progress, 1));
    assert_eq!(clock.elapsed(), 3 * SECOND);

    // The platform, before an upload is tried again.
    let (mut world, stop) = self::world();
    let clock = world.clock.clone();
    world.store = crate::world::open_with(&world.disk, StopsAt::new(&clock, 3 * SECOND, &stop), 5);
    world.airdrop.always(Call::Upload, Some(Answer::Busy(100)));
    let mut source = crate::world::paged(2, 3);
    let outcome = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Progress, 0));
    assert_eq!(clock.elapsed(), 3 * SECOND);
    world.airdrop.always(Call::Upload, None);
    ends_whole(&mut world, &mut source, DATA_ON, "2", &all_of("issues", 2, 3));

    // The platform, before a message is sent again: there is no time for it, so the next delivery of the event does it.
    let (mut world, stop) = self::world();
    let clock = world.clock.clone();
    world.store = crate::world::open_with(&world.disk, StopsAt::new(&clock, 3 * SECOND, &stop), 5);
    world.airdrop.always(Call::Send, Some(Answer::Busy(100)));
    let error = world.serve(&mut source, &event(DATA, "run", "1")).unwrap_err();
    assert!(matches!(error, Error::NotDelivered { .. }), "{error}");
    assert_eq!(clock.elapsed(), 3 * SECOND);
    world.airdrop.always(Call::Send, None);
    ends_whole(&mut world, &mut source, DATA, "1", &all_of("issues", 2, 3));

    // A worker without a disk that takes a unit over waits for a late save of another; stopped then, it takes nothing
    // over.
    let (mut world, stop) = self::world();
    world.serve = Serve::new().inline(7).checkpoints();
    world.serve(&mut crate::world::paged(1, 3), &event(DATA, "run", "1")).unwrap();
    world.lose_disk();
    let clock = world.clock.clone();
    let at = clock.elapsed() + 3 * SECOND;
    world.store = crate::world::open_with(&world.disk, StopsAt::new(&clock, at, &stop), 5);
    world.serve = world.serve.settle_after_takeover(60 * SECOND).stop_token(stop);
    let before = (world.airdrop.state_text(), world.airdrop.messages().len());
    let error = world.serve(&mut source, &event("EXTRACTION_ATTACHMENTS_START", "run", "2")).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert_eq!((world.airdrop.state_text(), world.airdrop.messages().len()), before);
    assert_eq!(clock.elapsed(), at);
}

/// A clock on which somebody asks to stop when it stands at a moment.
#[derive(Debug)]
struct StopsAt {
    clock: VirtualClock,
    at: Duration,
    stop: StopToken,
}

impl StopsAt {
    fn new(clock: &VirtualClock, at: Duration, stop: &StopToken) -> Self {
        Self { clock: clock.clone(), at, stop: stop.clone() }
    }
}

impl Clock for StopsAt {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        self.clock.now()
    }
    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }
    fn sleep(&self, wait: Duration) {
        self.clock.sleep(wait);
        if self.clock.elapsed() >= self.at {
            self.stop.stop();
        }
    }
}

#[test]
fn a_phase_without_progress_says_nothing_and_the_same_event_resumes() {
    for (event_type, call) in [
        ("EXTRACTION_METADATA_START", Some(Call::Upload)),
        ("EXTRACTION_METADATA_START", None),
        ("EXTRACTION_EXTERNAL_SYNC_UNITS_START", None),
    ] {
        let (mut world, stop) = world();
        let clock = world.clock.clone();
        let mut source = crate::world::paged(1, 3);
        match call {
            // Asked when the document is staged and the platform takes none.
            Some(call) => {
                world.store = crate::world::open_with(&world.disk, StopsAt::new(&clock, SECOND, &stop), 5);
                world.airdrop.always(call, Some(Answer::Busy(100)));
            }
            // Asked while the source lets it wait.
            None => {
                stop.stop();
            }
        }
        let error = world.serve(&mut source, &event(event_type, "run", "1")).unwrap_err();
        assert!(matches!(&error, Error::Stopped { event_type: of } if of == event_type), "{error}");
        assert_eq!(error.kind(), ErrorKind::Retry);
        assert!(world.airdrop.attempts().is_empty(), "nothing is sent");
        world.airdrop.always(Call::Upload, None);
        world.serve = Serve::new().inline(7);
        let outcome = world.serve(&mut source, &event(event_type, "run", "1")).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done, "{:?}", outcome.message);
    }
}

/// The mapping is installed when the event is delivered again; the lack of time is not answered with an ERROR.
#[test]
fn a_mapping_that_a_stop_left_uninstalled_is_installed_when_the_event_comes_again() {
    let (mut world, stop) = world();
    let clock = world.clock.clone();
    world.store = crate::world::open_with(&world.disk, StopsAt::new(&clock, SECOND, &stop), 5);
    for call in [Call::CheckMapping, Call::Blueprint, Call::Mapping] {
        world.airdrop.always(call, Some(Answer::Busy(100)));
        let mut source = crate::world::paged(1, 3);
        source.mapping = Some(json!({ "starting_recipe_blueprint": {} }));
        let context = json!({
            "run_id": "run", "request_id": "1", "sequence_version": "1", "sync_unit_id": "unit",
            "external_sync_unit_id": "external", "snap_in_version_id": "version-1",
        });
        let event = crate::world::event_with("EXTRACTION_METADATA_START", &context);
        let error = world.serve(&mut source, &event).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{call:?}: {error}");
        assert!(world.airdrop.attempts().is_empty() && world.airdrop.mappings().is_empty());
        world.airdrop.always(call, None);
    }
}

/// A gate that threads wait at until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// A platform that opens a gate once a message was accepted: what `serve` still waits for then, it does not need.
struct OpensAfterMessage<'a> {
    airdrop: &'a Airdrop,
    gate: &'a Gate,
    /// Uploads from this one on do not end before the gate opens.
    hangs_from: usize,
    uploads: AtomicUsize,
}

impl Platform for OpensAfterMessage<'_> {
    pass_on!(airdrop: confirm, worker_state, save_worker_state);

    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        if self.uploads.fetch_add(1, Ordering::Relaxed) >= self.hangs_from {
            self.gate.wait();
        }
        self.airdrop.upload(upload)
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        self.airdrop.send(message)?;
        self.gate.open();
        Ok(())
    }
}

#[test]
fn a_page_that_hangs_is_given_up_and_the_message_sent_without_it() {
    let (mut world, stop) = world();
    let gate = Gate::default();
    let clock = world.clock.clone();
    let mut source = Source::new(|context: &Context, stream: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        if at == 2 && !stop.is_stopped() {
            stop.stop();
            // It is seen here; from now on there are 8 s, three quarters of them for this page.
            assert_eq!(context.time_left(), Duration::ZERO);
            clock.advance(6 * SECOND);
            gate.wait();
        }
        Ok(page_of(stream, at, 4, 3))
    });
    let serve = Serve::new().stop_token(stop.clone());
    let platform = OpensAfterMessage {
        airdrop: &world.airdrop,
        gate: &gate,
        hangs_from: usize::MAX,
        uploads: AtomicUsize::new(0),
    };
    let outcome = serve.serve(&world.store, &platform, &source, &event(DATA, "run", "1")).unwrap();
    assert_eq!((outcome.kind, outcome.artifacts), (OutcomeKind::Progress, 2));
    ends_whole(&mut world, &mut source, DATA_ON, "2", &all_of("issues", 4, 3));
    assert_eq!(source.asked().len(), 5, "the page that was given up is fetched again, and no other");
}

#[test]
fn an_upload_that_hangs_is_left_to_the_next_invocation() {
    let (mut world, stop) = world();
    let gate = Gate::default();
    let platform = OpensAfterMessage {
        airdrop: &world.airdrop,
        gate: &gate,
        hangs_from: 1,
        uploads: AtomicUsize::new(0),
    };
    let clock = world.clock.clone();
    let over = AtomicBool::new(false);
    let mut source = Source::new(|_: &Context, stream: &str, at: Option<u32>| {
        let at = at.unwrap_or(0);
        if at == 1 {
            stop.stop();
        }
        Ok(page_of(stream, at, 4, 5))
    });
    let outcome = std::thread::scope(|scope| {
        // Time passes while somebody is in a call.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if platform.uploads.load(Ordering::Relaxed) > 1 {
                    clock.advance(SECOND / 10);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let serve = Serve::new().stop_token(stop.clone());
        let outcome = serve.serve(&world.store, &platform, &source, &event(DATA, "run", "1"));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap()
    });
    // The first may have been confirmed by then.
    assert!(outcome.kind == OutcomeKind::Progress && outcome.artifacts <= 1, "{outcome:?}");
    ends_whole(&mut world, &mut source, DATA_ON, "2", &all_of("issues", 4, 5));
}

/// A page of issues that name an attachment each.
fn with_attachments(stream: &str, count: u32) -> Page<u32> {
    let mut page = page_of(stream, 0, 1, count);
    for no in 0..count {
        let (id, url) = (format!("file-{no}"), format!("https://files.example/{no}"));
        page.push("attachments", Attachment::new(id, url, "a.bin", "issue").to_record().unwrap());
    }
    page
}

#[test]
fn no_attachment_begins_after_a_stop_and_one_that_was_aborted_counts_no_failure() {
    let (mut world, stop) = world();
    let mut source = Source::new(|_: &Context, stream: &str, _: Option<u32>| Ok(with_attachments(stream, 6)));
    let done = world.serve(&mut source, &event(DATA, "run", "1")).unwrap();
    assert_eq!(done.kind, OutcomeKind::Done);
    world.serve = Serve::new().inline(7).stop_token(stop.clone()).attachments_at_once(2).attachment_tries(1);
    let (opened, clock) = (std::sync::Arc::new(AtomicUsize::new(0)), world.clock.clone());
    let (counts, asks) = (opened.clone(), stop.clone());
    source.open = Some(Box::new(move |_| {
        if counts.fetch_add(1, Ordering::Relaxed) == 2 {
            asks.stop();
            // While it is read, the time for it ends.
            let clock = clock.clone();
            let stream = std::iter::repeat_with(move || clock.advance(SECOND)).take(30).map(|()| b'a');
            return Ok(AttachmentBody::new(Slow(stream)));
        }
        Ok::<_, AttachmentError>(AttachmentBody::new(&b"the bytes"[..]))
    }));
    let outcome = world.serve(&mut source, &event("EXTRACTION_ATTACHMENTS_START", "run", "2")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Progress);
    // The other of the two was begun before it.
    assert!((3..=4).contains(&opened.load(Ordering::Relaxed)), "{opened:?}");
    assert_eq!(outcome.attachments.failed, 0);
    let settled = outcome.attachments.settled;
    assert!((2..=3).contains(&settled), "{settled}");
    world.serve = Serve::new().inline(7).attachment_tries(1);
    let outcome = world.serve(&mut source, &event("EXTRACTION_ATTACHMENTS_CONTINUE", "run", "3")).unwrap();
    assert_eq!((outcome.kind, outcome.attachments.settled), (OutcomeKind::Done, 6));
    assert_eq!(outcome.attachments.failed, 0);
}

/// One byte each time.
struct Slow<I>(I);

impl<I: Iterator<Item = u8>> std::io::Read for Slow<I> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (Some(first), Some(byte)) = (buffer.first_mut(), self.0.next()) else { return Ok(0) };
        *first = byte;
        Ok(1)
    }
}

/// A platform that refuses the first upload for a second, and notes when each was tried.
struct BusyFirst<'a> {
    airdrop: &'a Airdrop,
    clock: &'a VirtualClock,
    uploaded_at: &'a Mutex<Vec<Duration>>,
}

impl Platform for BusyFirst<'_> {
    pass_on!(airdrop: confirm, send);

    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let mut uploaded_at = self.uploaded_at.lock().unwrap();
        uploaded_at.push(self.clock.elapsed());
        if uploaded_at.len() == 1 {
            let reason = "busy".to_owned();
            return Err(PlatformError::Retry { fate: Fate::NotApplied, after: Some(SECOND), reason });
        }
        self.airdrop.upload(upload)
    }
}

/// During a short wait, what was staged goes up: the source's pause is no pause of the platform.
#[test]
fn uploads_go_on_while_the_source_is_left_alone() {
    let world = World::new(3);
    let clock = world.clock.clone();
    let uploaded_at = Mutex::new(Vec::new());
    let source = Source::new(|_: &Context, stream: &str, at: Option<u32>| match at {
        Some(1) if clock.elapsed() < 5 * SECOND => Err(SourceError::RateLimited { after: 5 * SECOND }),
        at => Ok(page_of(stream, at.unwrap_or(0), 2, 3)),
    });
    let platform = BusyFirst { airdrop: &world.airdrop, clock: &world.clock, uploaded_at: &uploaded_at };
    let outcome = world.serve.serve(&world.store, &platform, &source, &event(DATA, "run", "1")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    let uploaded_at = uploaded_at.into_inner().unwrap();
    // The first batch's second try is made within the wait.
    assert!(
        uploaded_at.len() == 3 && uploaded_at[1] < 3 * SECOND && uploaded_at[2] >= 5 * SECOND,
        "{uploaded_at:?}"
    );
}
