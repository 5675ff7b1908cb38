//! What stands outside the extractor and outlives it: the platform, the source as it was read, and the oracle.
//!
//! Everything that happens outside is a [`Change`] in a journal; the state of the world after any number of changes
//! can be made again from it. So a crash is a pair of a number of changes and a disk image, and thousands of them
//! come from one run.
//!
//! The oracle does not ask the store anything. It compares what the source handed over with what the platform was
//! told: a page counts as staged when the source is asked for the page after it, or when the phase is over; a page
//! that was asked for again counts as its last reading.

mod driver;
mod oracle;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::airdrop::{
    Body, Fate, Platform, PlatformError, SealedMessage, Upload, WorkerState, checkpoint_in,
};
use crate::artifact::{Level, compress_all};
use crate::clock::{Clock, VirtualClock};
use crate::error::Result;
use crate::model::ArtifactId;

use super::disk::SimDisk;
use super::schedule::{Act, Answer, Call};

pub(super) use watched::Watched;

/// How long a page takes in the simulated world. With [`BUDGET`], an invocation has two or three pages.
const PAGE_TAKES: Duration = Duration::from_secs(2);
/// What an invocation is given for pages.
pub(super) const BUDGET: Duration = Duration::from_secs(7);
const CALL_TAKES: Duration = Duration::from_millis(20);
/// How long it takes to open an attachment.
const OPEN_TAKES: Duration = Duration::from_secs(1);
/// Streams that end badly before an attachment may be given up: as many as `Serve` has it.
const TRIES: u64 = 5;

/// What a promise was broken by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub kind: Broken,
    /// What was seen.
    pub what: String,
}

/// A promise, broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Broken {
    /// A staged record is in no accepted message.
    Lost,
    /// A record is in two, or an artifact is, or a record is announced that was never staged.
    Duplicated,
    /// The store did not open after a crash, or did not pass its own check.
    Unopenable,
    /// Confirmed is not what is announced; or too many uploads were left unconfirmed.
    Unconfirmed,
    /// `since`, a bookmark or a value is not what the last finished run left.
    Watermark,
    /// One event, two messages; or a message that changed when it was sent again.
    Conversation,
    /// Nothing goes on.
    Stuck,
}

/// What an extractor that is explored is made for.
#[derive(Debug, Clone)]
pub struct Life {
    world: World,
}

impl Life {
    /// Pages that were read in all lives before, and in this one so far. A source that changes with it changes
    /// between reads, and yet the same at every replay.
    pub fn reads(&self) -> u64 {
        self.world.lock().reads
    }

    /// A number that is another at every moment, and the same at every replay.
    pub fn moment(&self) -> u64 {
        self.world.lock().journal.len() as u64
    }

    /// The seed of the schedule.
    pub fn seed(&self) -> u64 {
        self.world.lock().seed
    }

    /// Counts that the source did something that an extractor must bear, for the report.
    pub fn count(&self, what: &str) {
        self.world.lock().count(what);
    }

    /// The clock of the simulated world.
    pub fn clock(&self) -> VirtualClock {
        self.world.lock().clock.clone()
    }
}

/// A shared handle of the world.
#[derive(Debug, Clone)]
pub(super) struct World {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) seed: u64,
    has_disk: bool,
    clock: VirtualClock,
    journal: Vec<Entry>,
    /// Of the present life: where it dies, and its disk.
    disk: SimDisk,
    dies_at: Option<(usize, usize)>,
    pub(super) acts: Arc<[Act]>,
    pub(super) fired: BTreeMap<String, u64>,
    // What follows from the journal.
    reads: u64,
    calls: BTreeMap<Call, u64>,
    states: BTreeMap<String, Arc<str>>,
    /// A save whose answer was lost, and that has not landed yet.
    late: Option<(String, Arc<str>)>,
    uploads: BTreeMap<String, Arc<Vec<String>>>,
    confirmed: BTreeSet<String>,
    accepted: Vec<Arc<Accepted>>,
    by_key: BTreeMap<String, usize>,
    pub(super) sent: Vec<Arc<SentEvent>>,
    /// For each sent event: the accepted message that answered it, when it did.
    answers: BTreeMap<usize, usize>,
    recorded: BTreeSet<String>,
    pages: BTreeMap<(String, String), Vec<Arc<HandOut>>>,
    runs: Vec<RunSeen>,
    /// How the streams of attachments ended, by run, parent and id.
    streams: BTreeMap<(String, Named), Streamed>,
    pub(super) deaths: u64,
    /// Calls that were not answered as asked.
    /// Calls that failed, of any kind; and those of an upload's way.
    pub(super) failed_calls: u64,
    failures: u64,
    changed_message: Option<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    change: Change,
    /// Operations that the disk of the life had recorded.
    position: usize,
    now: DateTime<Utc>,
    elapsed: Duration,
}

/// Something that happened outside.
#[derive(Debug, Clone)]
enum Change {
    Sent(Arc<SentEvent>),
    Called { call: Call, effect: Option<Effect>, failed: bool, late: bool },
    Read(Arc<HandOut>),
    Streamed { run: String, named: Named, end: StreamEnd },
    Served { request: String },
    Died,
}

/// What an attachment is known by: its parent's id, and its own.
type Named = (String, String);

/// How the source's side of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamEnd {
    Whole,
    /// Not as it should have, and it may another time.
    Broken,
    /// It never will.
    Final,
}

/// How often the streams of an attachment ended badly.
#[derive(Debug, Clone, Copy, Default)]
struct Streamed {
    broken: u64,
    last: u64,
}

#[derive(Debug, Clone)]
enum Effect {
    Upload { id: String, lines: Arc<Vec<String>> },
    Confirm { id: String },
    Accept(Arc<Accepted>),
    Save { unit: String, state: Arc<str> },
}

/// An event that the platform sent.
#[derive(Debug, Clone)]
pub(super) struct SentEvent {
    pub(super) json: String,
    pub(super) event_type: String,
    pub(super) unit: String,
    pub(super) run: String,
    pub(super) request: String,
    pub(super) at: DateTime<Utc>,
    /// Sent a second time, or of a run that was given up: whatever is said to it, nothing may change.
    pub(super) stray: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Accepted {
    pub(super) key: String,
    pub(super) body: String,
    pub(super) event_type: String,
    pub(super) request: String,
    pub(super) run: String,
    artifacts: Vec<String>,
    pub(super) delay: u64,
}

/// One page, as the source handed it over.
#[derive(Debug)]
struct HandOut {
    run: String,
    stream: String,
    cursor: Option<String>,
    next: Option<String>,
    bookmark: Option<String>,
    since: Option<DateTime<Utc>>,
    read_at: DateTime<Utc>,
    lines: Vec<String>,
}

#[derive(Debug, Clone)]
struct RunSeen {
    id: String,
    unit: String,
    sent_at: DateTime<Utc>,
    /// Whether a page was read in it, and the `since` that it was given then.
    read: bool,
    since: Option<DateTime<Utc>>,
    finished: bool,
    abandoned: bool,
}

impl World {
    pub(super) fn new(seed: u64, acts: Arc<[Act]>, has_disk: bool) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                seed,
                has_disk,
                clock: still_clock(),
                journal: Vec::new(),
                disk: SimDisk::new(),
                dies_at: None,
                acts,
                fired: BTreeMap::new(),
                reads: 0,
                calls: BTreeMap::new(),
                states: BTreeMap::new(),
                late: None,
                uploads: BTreeMap::new(),
                confirmed: BTreeSet::new(),
                accepted: Vec::new(),
                by_key: BTreeMap::new(),
                sent: Vec::new(),
                answers: BTreeMap::new(),
                recorded: BTreeSet::new(),
                pages: BTreeMap::new(),
                runs: Vec::new(),
                streams: BTreeMap::new(),
                deaths: 0,
                failed_calls: 0,
                failures: 0,
                changed_message: None,
            })),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world as it stood after the first `changes` of the journal, with a clock of its own.
    pub(super) fn at(&self, changes: usize) -> Self {
        let inner = self.lock();
        let world = Self::new(inner.seed, Arc::clone(&inner.acts), inner.has_disk);
        {
            let mut other = world.lock();
            for entry in inner.journal.iter().take(changes) {
                other.apply(entry);
            }
        }
        world
    }

    /// A life begins, on this disk; it dies at that pair of changes and position, if any.
    pub(super) fn begin_life(&self, disk: &SimDisk, dies_at: Option<(usize, usize)>) -> Life {
        let mut inner = self.lock();
        inner.disk = disk.clone();
        inner.dies_at = dies_at;
        Life { world: self.clone() }
    }

    pub(super) fn clock(&self) -> VirtualClock {
        self.lock().clock.clone()
    }

    /// How many changes the world has seen.
    pub(super) fn changes(&self) -> usize {
        self.lock().journal.len()
    }

    /// For each change from `from` on, the position of the disk when it happened.
    pub(super) fn positions(&self, from: usize) -> Vec<usize> {
        self.lock().journal.iter().skip(from).map(|entry| entry.position).collect()
    }

    /// How many lives have begun.
    pub(super) fn lives(&self) -> usize {
        self.lock().sent.len()
    }

    pub(super) fn send(&self, event: SentEvent) {
        self.lock().record(Change::Sent(Arc::new(event)));
    }

    /// The extractor returned as one does that has answered.
    pub(super) fn served(&self, request: &str) {
        self.lock().record(Change::Served { request: request.to_owned() });
    }

    pub(super) fn died(&self) {
        self.lock().record(Change::Died);
    }
}

impl Inner {
    fn record(&mut self, change: Change) {
        let entry = Entry {
            change,
            position: self.disk.position(),
            now: self.clock.now(),
            elapsed: self.clock.elapsed(),
        };
        self.apply(&entry);
    }

    fn apply(&mut self, entry: &Entry) {
        // Time first: another world's clock stands where this entry's did.
        self.clock.advance(entry.elapsed.saturating_sub(self.clock.elapsed()));
        self.clock.step_to(entry.now);
        match &entry.change {
            Change::Sent(event) => {
                if !event.stray && !self.runs.iter().any(|run| run.id == event.run) {
                    for run in &mut self.runs {
                        // The platform has moved on: whatever the older run had not finished is given up.
                        run.abandoned |= run.unit == event.unit && !run.finished;
                    }
                    self.runs.push(RunSeen {
                        id: event.run.clone(),
                        unit: event.unit.clone(),
                        sent_at: event.at,
                        read: false,
                        since: None,
                        finished: false,
                        abandoned: false,
                    });
                }
                if !event.stray {
                    // Ids that are used again are answered anew.
                    self.recorded.remove(&event.request);
                }
                self.sent.push(Arc::clone(event));
            }
            Change::Called { call, effect, failed, late } => {
                self.failed_calls += u64::from(*failed);
                let uploads = matches!(call, Call::Prepare | Call::Upload | Call::Confirm);
                self.failures += u64::from(*failed && uploads);
                if let Some((unit, state)) = self.late.take() {
                    self.states.insert(unit, state);
                }
                *self.calls.entry(*call).or_default() += 1;
                match effect {
                    Some(Effect::Upload { id, lines }) => {
                        self.uploads.insert(id.clone(), Arc::clone(lines));
                    }
                    Some(Effect::Confirm { id }) => {
                        self.confirmed.insert(id.clone());
                    }
                    Some(Effect::Accept(message)) => {
                        let known = self.by_key.get(&message.key).copied();
                        let at = known.unwrap_or(self.accepted.len());
                        if let Some(before) = known.and_then(|known| self.accepted.get(known))
                            && before.body != message.body
                        {
                            let what = format!("message {} changed when it was sent again", message.key);
                            self.changed_message = Some(what);
                        }
                        if known.is_none() {
                            self.by_key.insert(message.key.clone(), at);
                            self.accepted.push(Arc::clone(message));
                            if message.event_type == "EXTRACTION_ATTACHMENTS_DONE"
                                && let Some(run) = self.runs.iter_mut().find(|run| run.id == message.run)
                            {
                                run.finished = true;
                            }
                        }
                        // It answers the event that was sent last with its request id.
                        let sent = self.sent.iter().rposition(|event| event.request == message.request);
                        if let Some(sent) = sent {
                            self.answers.insert(sent, at);
                        }
                    }
                    Some(Effect::Save { unit, state }) if *late => {
                        self.late = Some((unit.clone(), Arc::clone(state)));
                    }
                    Some(Effect::Save { unit, state }) => {
                        self.states.insert(unit.clone(), Arc::clone(state));
                    }
                    None => {}
                }
            }
            Change::Read(page) => {
                self.reads += 1;
                let pages = self.pages.entry((page.run.clone(), page.stream.clone())).or_default();
                // Read again: what came of the reading before, and of all after it, was not kept.
                let again = pages.iter().rposition(|before| before.cursor == page.cursor);
                if let Some(again) = again {
                    pages.truncate(again);
                }
                pages.push(Arc::clone(page));
                if let Some(run) = self.runs.iter_mut().find(|run| run.id == page.run) {
                    run.read = true;
                    run.since = page.since;
                }
            }
            Change::Streamed { run, named, end } => {
                let streamed = self.streams.entry((run.clone(), named.clone())).or_default();
                match end {
                    StreamEnd::Whole => {}
                    StreamEnd::Broken => streamed.broken += 1,
                    StreamEnd::Final => streamed.last += 1,
                }
            }
            Change::Served { request } => {
                self.recorded.insert(request.clone());
            }
            Change::Died => self.deaths += 1,
        }
        self.journal.push(entry.clone());
    }

    pub(super) fn accepted_count(&self) -> usize {
        self.accepted.len()
    }

    /// Whether the platform may use ids again, so that one of them stands for several events.
    pub(super) fn reuses_ids(&self) -> bool {
        self.acts.iter().any(|act| matches!(act, Act::ReuseIds { .. }))
    }

    /// The accepted message that answered the `at`-th sent event.
    pub(super) fn answer_to(&self, at: usize) -> Option<Arc<Accepted>> {
        self.answers.get(&at).and_then(|&message| self.accepted.get(message)).cloned()
    }

    /// A number that grows with every page that is read, every attachment that is opened, and every upload and confirm.
    pub(super) fn advanced(&self) -> u64 {
        [Call::Page, Call::Open, Call::Upload, Call::Confirm]
            .iter()
            .filter_map(|call| self.calls.get(call))
            .sum()
    }

    /// Whether the newest message says PROGRESS and announces nothing.
    pub(super) fn only_says_progress(&self) -> bool {
        let last = self.accepted.last();
        last.is_some_and(|last| last.event_type.ends_with("PROGRESS") && last.artifacts.is_empty())
    }

    /// Whether the checkpoint of a unit holds a message that is to be sent, or one that does may land yet.
    pub(super) fn sealed_in_checkpoint(&self, unit: &str) -> Result<bool> {
        let saved = checkpoint_in(self.states.get(unit).map(AsRef::as_ref), unit)?;
        Ok(self.late.is_some() || saved.is_some_and(|checkpoint| checkpoint.sealed_body().is_some()))
    }

    /// The unit of the event that was sent last.
    pub(super) fn unit(&self) -> String {
        self.sent.last().map(|event| event.unit.clone()).unwrap_or_default()
    }

    /// Whether the process dies before the next change.
    fn dies_now(&mut self) -> bool {
        if let Some((changes, position)) = self.dies_at
            && self.journal.len() >= changes
            && self.disk.position() >= position
        {
            self.disk.kill();
        }
        self.disk.is_dead()
    }

    /// What a call is answered with, by the schedule; counts what fires.
    fn fault(&mut self, call: Call) -> Option<Answer> {
        let number = self.calls.get(&call).copied().unwrap_or(0);
        let acts = Arc::clone(&self.acts);
        let answer = acts.iter().find_map(|act| match act {
            Act::Call { call: of, number: nth, answer } if *of == call && *nth == number => Some(*answer),
            _ => None,
        });
        if let Some(answer) = answer {
            self.count(&format!("{call}/{answer}"));
        }
        answer
    }

    pub(super) fn count(&mut self, what: &str) {
        *self.fired.entry(what.to_owned()).or_default() += 1;
    }

    /// Makes a call: dies, fails, or has its effect, as the schedule has it.
    fn call(&mut self, call: Call, effect: Option<Effect>) -> Result<(), PlatformError> {
        if self.dies_now() {
            return Err(gone());
        }
        let fault = self.fault(call);
        self.clock.advance(CALL_TAKES);
        let unknown = |reason: &str| PlatformError::Retry {
            fate: Fate::Unknown,
            after: None,
            reason: format!("simulated: {reason}"),
        };
        let (applies, result) = match fault {
            None => (true, Ok(())),
            Some(Answer::Lost) => (true, Err(unknown("answer lost"))),
            Some(Answer::Late) => (call == Call::SaveState, Err(unknown("answer lost"))),
            Some(Answer::ErrorBefore) => (false, Err(unknown("500 before"))),
            Some(Answer::ErrorAfter) => (true, Err(unknown("500 after"))),
            Some(Answer::TimedOut) => {
                self.clock.advance(Duration::from_secs(30));
                (false, Err(unknown("timed out")))
            }
            Some(Answer::Busy(seconds)) => {
                let after = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                let reason = "simulated: 429".to_owned();
                (false, Err(PlatformError::Retry { fate: Fate::NotApplied, after, reason }))
            }
            Some(Answer::Refused(status)) => {
                (false, Err(PlatformError::Refused { status, reason: "simulated".to_owned() }))
            }
        };
        let failed = result.is_err();
        self.record(Change::Called {
            call,
            effect: effect.filter(|_| applies),
            failed,
            late: fault == Some(Answer::Late),
        });
        result
    }

    /// What the last finished run left for the next of its unit; several, where the extractor could not know whether
    /// the last message was accepted.
    fn watermarks(&self, of: &RunSeen) -> Vec<Option<&RunSeen>> {
        let mut possible = Vec::new();
        for run in self.runs.iter().rev().skip_while(|run| run.id != of.id).skip(1) {
            if run.unit != of.unit || !run.finished {
                continue;
            }
            possible.push(Some(run));
            let last = self.sent.iter().rev().find(|event| event.run == run.id && !event.stray);
            if last.is_some_and(|event| self.recorded.contains(&event.request)) {
                return possible;
            }
        }
        possible.push(None);
        possible
    }
}

impl Inner {
    /// When the first page of a run was read, of those whose reading was kept.
    fn first_read(&self, run: &RunSeen) -> DateTime<Utc> {
        let pages = self.pages.iter().filter(|((id, _), _)| *id == run.id).flat_map(|(_, pages)| pages);
        pages.map(|page| page.read_at).min().unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// The bookmark that a run, or, if it left none, a finished one before it, left for a stream.
    fn bookmark_left(&self, run: Option<&RunSeen>, stream: &str) -> Option<String> {
        let run = run?;
        let pages = self.pages.get(&(run.id.clone(), stream.to_owned()));
        let own = pages.and_then(|pages| pages.iter().rev().find_map(|page| page.bookmark.clone()));
        own.or_else(|| {
            let older = self.runs.iter().rev().skip_while(|older| older.id != run.id).skip(1);
            self.bookmark_left(
                older.into_iter().find(|older| older.unit == run.unit && older.finished),
                stream,
            )
        })
    }
}

/// A clock for looking at a store: nothing that is looked at depends on it.
pub(super) fn still_clock() -> VirtualClock {
    VirtualClock::at(DateTime::from_timestamp(1_750_000_000, 0).unwrap_or_default())
}

/// What the one line of an upload that is no batch begins with.
const STREAM: &str = "stream: ";

fn is_stream(lines: &[String]) -> bool {
    lines.first().is_some_and(|line| line.starts_with(STREAM))
}

fn gone() -> PlatformError {
    PlatformError::Retry {
        fate: Fate::Unknown,
        after: None,
        reason: "simulated: the process is dead".to_owned(),
    }
}

/// The lines of a gzipped JSON Lines artifact, read by a reader that shares nothing with the writer but the format.
fn lines_of(bytes: &[u8]) -> Vec<String> {
    let mut text = String::new();
    match crate::artifact::reader(bytes).and_then(|mut reader| reader.read_to_string(&mut text)) {
        Ok(_) => text.lines().map(str::to_owned).collect(),
        Err(error) => vec![format!("unreadable: {error}")],
    }
}

impl Platform for World {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let lines = match upload.body {
            Body::Batch(bytes) => lines_of(bytes),
            Body::Stream { reader, .. } => {
                let mut bytes = Vec::new();
                let read = reader.read_to_end(&mut bytes);
                read.map_err(|error| PlatformError::Retry {
                    fate: Fate::NotApplied,
                    after: None,
                    reason: error.to_string(),
                })?;
                vec![format!("{STREAM}{}", String::from_utf8_lossy(&bytes))]
            }
        };
        let mut inner = self.lock();
        inner.call(Call::Prepare, None)?;
        let id = format!("artifact-{}", inner.journal.len());
        let lines = Arc::new(lines);
        inner.call(Call::Upload, Some(Effect::Upload { id: id.clone(), lines }))?;
        ArtifactId::new(id).map_err(|error| PlatformError::Refused { status: 500, reason: error.to_string() })
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        if !inner.disk.is_dead() && !inner.uploads.contains_key(artifact.as_str()) {
            return Err(PlatformError::Refused {
                status: 404,
                reason: format!("{artifact} was never uploaded"),
            });
        }
        inner.call(Call::Confirm, Some(Effect::Confirm { id: artifact.to_string() }))
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        let body: Value = serde_json::from_str(&message.body).unwrap_or_default();
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let artifacts = body.pointer("/event_data/artifacts").and_then(Value::as_array);
        let accepted = Accepted {
            key: message.key.clone(),
            event_type: text("/event_type"),
            request: text("/event_context/request_id"),
            run: text("/event_context/run_id"),
            artifacts: artifacts
                .into_iter()
                .flatten()
                .map(|artifact| artifact.get("id").and_then(Value::as_str).unwrap_or_default().to_owned())
                .collect(),
            delay: body.pointer("/event_data/delay").and_then(Value::as_u64).unwrap_or(0),
            body: message.body.clone(),
        };
        self.lock().call(Call::Message, Some(Effect::Accept(Arc::new(accepted))))
    }

    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        let mut inner = self.lock();
        inner.call(Call::Download, None)?;
        let refused = |reason: String| PlatformError::Refused { status: 404, reason };
        let lines = inner.uploads.get(artifact.as_str());
        let lines = lines.ok_or_else(|| refused(format!("{artifact} was never uploaded")))?;
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        let members = Level::new(0).and_then(|level| compress_all(&[vec![text.as_bytes()]], level));
        let mut members = members.map_err(|error| refused(error.to_string()))?;
        Ok(members.pop().unwrap_or_default())
    }

    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        let mut inner = self.lock();
        inner.call(Call::LoadState, None)?;
        let unit = inner.unit();
        let state = inner.states.get(&unit).map(ToString::to_string);
        Ok(state.map(|state| WorkerState { state: Some(state), objects: None }))
    }

    fn install_mapping(&self, _: &Value, _: Option<&str>) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        if inner.dies_now() {
            return Err(gone());
        }
        inner.clock.advance(CALL_TAKES);
        inner.count("mapping/installed");
        Ok(())
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        let unit = inner.unit();
        inner.call(Call::SaveState, Some(Effect::Save { unit, state: state.into() }))
    }
}
