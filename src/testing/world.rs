//! Everything outside the extractor that outlives it: the platform, the source as it was read, and the oracle.
//!
//! Everything that happens outside is a [`Change`] in a journal. The state of the world after any number of changes
//! can be rebuilt from it. So a crash is a number of changes and a disk image, and thousands of crashes come from one
//! run.
//!
//! The oracle asks the store nothing. It compares what the source returned with what the platform received. A page
//! counts as staged when the source is asked for the next page, or when the phase is over; of a page that was fetched
//! again only the last reading counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::airdrop::{StopToken, checkpoint_in, posted_bytes};
use crate::clock::{Clock, VirtualClock};
use crate::error::Result;
use crate::model::StateLimits;
use crate::record::Attachment;

use super::disk::SimDisk;
use super::schedule::{Act, Call, CallFault, Setting};

/// The time for pages of an invocation: enough for two or three.
pub(super) const BUDGET: Duration = Duration::from_secs(7);
/// The limit of a small worker state: about twice what an exploration needs without ballast.
pub(super) const SMALL_STATE: StateLimits = StateLimits { soft: 7_000, max: 10_000, own: 6_000 };
/// The start of the line in an upload that is not a batch.
pub(super) const STREAM: &str = "stream: ";

/// What an explored extractor is created for.
#[derive(Debug, Clone)]
pub struct Life {
    pub(super) world: World,
}

impl Life {
    /// A life in this world.
    pub(super) fn of(world: &World) -> Self {
        Self { world: world.clone() }
    }

    /// The number of pages read in all earlier lives, and in this one so far. A source that changes with it changes
    /// between reads, and still is the same at every replay.
    pub fn reads(&self) -> u64 {
        self.world.lock().reads
    }

    /// A number that differs at every moment, and is the same at every replay.
    pub fn moment(&self) -> u64 {
        self.world.lock().journal.len() as u64
    }

    /// The seed of the schedule.
    pub fn seed(&self) -> u64 {
        self.world.lock().seed
    }

    /// Whether the schedule has an unusual setup.
    pub fn is(&self, setting: Setting) -> bool {
        self.world.lock().is(setting)
    }

    /// Whether a life finds the disk of the life before it.
    pub(super) fn has_disk(&self) -> bool {
        self.world.lock().has_disk
    }

    /// Counts, for the report, that the source did something that an extractor must tolerate.
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
    inner: Arc<Mutex<Outside>>,
}

#[derive(Debug)]
pub(super) struct Outside {
    pub(super) seed: u64,
    pub(super) has_disk: bool,
    pub(super) clock: VirtualClock,
    pub(super) journal: Vec<JournalEntry>,
    /// For the present life: where it dies, and its disk.
    pub(super) disk: SimDisk,
    pub(super) dies_at: Option<(usize, usize)>,
    /// Requests the present life to stop.
    pub(super) stop: StopToken,
    pub(super) acts: Arc<[Act]>,
    pub(super) fired: BTreeMap<String, u64>,
    // What follows from the journal.
    pub(super) reads: u64,
    pub(super) calls: BTreeMap<Call, u64>,
    pub(super) states: BTreeMap<String, Arc<str>>,
    /// The state before the newest save.
    pub(super) states_before: BTreeMap<String, Arc<str>>,
    /// A save whose answer was lost, and that has not arrived yet.
    pub(super) late: Option<(String, Arc<str>)>,
    pub(super) uploads: BTreeMap<String, Uploaded>,
    pub(super) confirmed: BTreeSet<String>,
    pub(super) accepted: Vec<Arc<Accepted>>,
    pub(super) by_key: BTreeMap<String, usize>,
    pub(super) sent: Vec<Arc<SentEvent>>,
    /// For each sent event: the accepted message that answered it, if there is one.
    pub(super) answers: BTreeMap<usize, usize>,
    pub(super) recorded: BTreeSet<String>,
    /// Events that a store took for events of a past run, because it had been given an older event that it did not
    /// know.
    pub(super) outdated: BTreeSet<String>,
    pub(super) pages: BTreeMap<(String, String), Vec<Arc<HandOut>>>,
    pub(super) runs: Vec<RunSeen>,
    /// How the streams of attachments ended, by run, parent and id.
    pub(super) streams: BTreeMap<OfRun, StreamEnds>,
    /// The attachments being read, newest last. Not in the journal, as no stream outlives its life.
    pub(super) open_streams: Vec<OfRun>,
    /// What the client failed to get for the page that a thread fetches, unless it got it later.
    pub(super) not_given: HashMap<ThreadId, BTreeSet<String>>,
    pub(super) deaths: u64,
    /// Failed calls: of any kind, and those of an upload.
    pub(super) failed_calls: u64,
    pub(super) failures: u64,
    pub(super) changed_message: Option<String>,
    /// A worker state that was over its limit when it was posted.
    pub(super) state_over_limit: Option<String>,
    /// Whether a second worker came while one was at work.
    pub(super) second_worker: bool,
    /// With a disk: how many messages were accepted before its store was replaced by another.
    pub(super) replaced_after: Option<usize>,
    /// Whether something happened that the promise does not cover.
    pub(super) outside_the_promise: bool,
    /// The first ERROR that had no cause.
    pub(super) error_for_no_reason: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct JournalEntry {
    change: Change,
    /// Operations that the disk of the life had recorded.
    position: usize,
    now: DateTime<Utc>,
    elapsed: Duration,
}

/// Something that happened outside.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Sent(Arc<SentEvent>),
    Called {
        call: Call,
        effect: Option<Effect>,
        failed: bool,
        fault: Option<CallFault>,
        about: About,
    },
    Read(Arc<HandOut>),
    Streamed {
        of: OfRun,
        end: StreamEnd,
    },
    Served {
        request: String,
    },
    /// A store that replaced another one has taken an old event for a new run, and so this event for one of a past
    /// run.
    Outdated {
        request: String,
    },
    /// A second worker came; with a disk, it also replaced the first worker's store.
    SecondWorker,
    Died,
}

/// What identifies an attachment: its parent's id, and its own.
pub(super) type Named = (String, String);

/// An attachment of a run.
pub(super) type OfRun = (String, Named);

/// What a call to the platform was about, if that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    Nothing,
    /// The upload of an attachment.
    Stream(OfRun),
    /// The artifact to confirm.
    Artifact(String),
}

/// An upload that the platform has.
#[derive(Debug, Clone)]
pub(super) struct Uploaded {
    pub(super) lines: Arc<Vec<String>>,
    /// The run whose event it was made for.
    pub(super) run: String,
    /// The attachment whose bytes it has.
    pub(super) of: Option<OfRun>,
    /// The confirmations that were tried, in order.
    pub(super) confirms: Vec<Confirm>,
    /// The life in which it was uploaded.
    pub(super) life: usize,
}

/// A confirmation that was tried: in which life, and with what result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confirm {
    life: usize,
    fate: ConfirmFate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConfirmFate {
    /// It certainly had no effect; another attempt may have one.
    NotApplied,
    /// Refused for good.
    Refused,
    /// Confirmed, or unknown.
    Other,
}

impl Uploaded {
    /// Whether a confirmation of it was refused for good, and whether one was refused *in doubt*: another attempt may
    /// have confirmed it, or a later life cannot know whether there was one.
    pub(super) fn refused(&self) -> Option<bool> {
        let mut refused = None;
        let mut in_doubt = false;
        for confirm in &self.confirms {
            match confirm.fate {
                ConfirmFate::NotApplied => {}
                ConfirmFate::Other => in_doubt = true,
                ConfirmFate::Refused => {
                    refused = Some(refused == Some(true) || in_doubt || confirm.life > self.life);
                }
            }
        }
        refused
    }
}

/// How a stream ended on the source's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    Whole,
    /// It failed; another attempt may succeed.
    Broken,
    /// It failed, and always will.
    Final,
}

/// How often the streams of an attachment failed, on the source's side or the platform's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StreamEnds {
    pub(super) broken: u64,
    pub(super) last: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Effect {
    Upload { id: String, lines: Arc<Vec<String>>, of: Option<OfRun> },
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
    /// Sent a second time, or of a run that was given up: whatever the answer is, nothing may change.
    pub(super) stray: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Accepted {
    pub(super) key: String,
    pub(super) body: String,
    pub(super) event_type: String,
    pub(super) request: String,
    pub(super) run: String,
    pub(super) artifacts: Vec<String>,
    pub(super) delay: u64,
}

/// One page, as the source returned it.
#[derive(Debug)]
pub(super) struct HandOut {
    pub(super) run: String,
    pub(super) stream: String,
    /// Whether it is of a child listing, and which child listings it names.
    pub(super) is_child: bool,
    pub(super) children: Vec<String>,
    pub(super) cursor: Option<String>,
    pub(super) next: Option<String>,
    pub(super) bookmark: Option<String>,
    pub(super) since: Option<DateTime<Utc>>,
    pub(super) read_at: DateTime<Utc>,
    /// The lines to be announced.
    pub(super) lines: Vec<String>,
    /// Item types, ids and lines; of those with the same id, one is to be announced in a run.
    pub(super) once: Vec<(Named, String)>,
    /// Lines to be announced, unless a finished run has announced exactly this line.
    pub(super) edge: Vec<String>,
    /// Item types and ids of bad records.
    pub(super) rejected: Vec<Named>,
    /// For a page of rejected records: those that were requested, and which of them are good now, or gone.
    pub(super) asked: Vec<Named>,
    pub(super) settled: Vec<Named>,
}

/// The stream under which such pages are noted.
pub(super) const AGAIN: &str = "@again";

#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone)]
pub(super) struct RunSeen {
    pub(super) id: String,
    pub(super) unit: String,
    pub(super) sent_at: DateTime<Utc>,
    /// Whether a page was read in the run, and the `since` that it was given.
    pub(super) read: bool,
    pub(super) since: Option<DateTime<Utc>>,
    pub(super) finished: bool,
    pub(super) abandoned: bool,
    /// Whether the platform had the unit's state deleted after it.
    pub(super) deleted: bool,
    /// Whether the platform had the state of the unit's attachments deleted after it.
    pub(super) attachments_deleted: bool,
    /// Attachments that a repeated deletion took from it. The store that had done the deletion was replaced, and the
    /// store in its place did the deletion again.
    pub(super) taken_by_late_deletion: BTreeSet<Named>,
    /// Whether the run went on although its last event was not answered. The life that had the event may have stored
    /// nothing of it: then the next life finds that the phase never began, or, without a disk, that a checkpoint was
    /// lost.
    pub(super) overtaken: bool,
}

/// The item type that is out of scope, if the platform has a scope.
pub(super) const OUT_OF_SCOPE: &str = "users";

/// The time of the last successful start in a state that the TypeScript SDK left.
pub(super) const SDK_START: &str = "2020-02-03T04:05:06.000Z";

/// What the platform has at the beginning.
fn first_states(acts: &[Act], has_disk: bool) -> BTreeMap<String, Arc<str>> {
    let mut states = BTreeMap::new();
    if !has_disk && acts.contains(&Act::With(Setting::SdkState)) {
        let state = json!({
            "issues": { "cursor": 7 },
            "lastSyncStarted": SDK_START, "lastSuccessfulSyncStarted": SDK_START,
            "snapInVersionId": "version-0",
            "toDevRev": { "attachmentsMetadata": {
                "artifactIds": [], "lastProcessed": 0, "lastProcessedAttachmentsIdsList": [] } },
        });
        states.insert("unit-a".to_owned(), state.to_string().into());
    }
    states
}

impl World {
    pub(super) fn new(seed: u64, acts: Arc<[Act]>, has_disk: bool) -> Self {
        let states = first_states(&acts, has_disk);
        Self {
            inner: Arc::new(Mutex::new(Outside {
                seed,
                has_disk,
                clock: still_clock(),
                journal: Vec::new(),
                disk: SimDisk::new(),
                dies_at: None,
                stop: StopToken::new(),
                acts,
                fired: BTreeMap::new(),
                reads: 0,
                calls: BTreeMap::new(),
                states,
                states_before: BTreeMap::new(),
                late: None,
                uploads: BTreeMap::new(),
                confirmed: BTreeSet::new(),
                accepted: Vec::new(),
                by_key: BTreeMap::new(),
                sent: Vec::new(),
                answers: BTreeMap::new(),
                recorded: BTreeSet::new(),
                outdated: BTreeSet::new(),
                pages: BTreeMap::new(),
                runs: Vec::new(),
                streams: BTreeMap::new(),
                open_streams: Vec::new(),
                not_given: HashMap::new(),
                deaths: 0,
                failed_calls: 0,
                failures: 0,
                changed_message: None,
                state_over_limit: None,
                second_worker: false,
                replaced_after: None,
                outside_the_promise: false,
                error_for_no_reason: None,
            })),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Outside> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world after the first `changes` of the journal, with its own clock.
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

    /// The numbers of changes after which comes a change that leaves a trace outside, and the number of all changes.
    /// Without a disk, a death between two of these is the same as a death just before the later one: a page that was
    /// read, or an address that was requested, is forgotten with the life.
    pub(super) fn before_traces(&self) -> Vec<usize> {
        let world = self.at(0);
        let (inner, mut replayed) = (self.lock(), world.lock());
        let mut moments = Vec::new();
        for (changes, entry) in inner.journal.iter().enumerate() {
            let before = replayed.traces();
            replayed.apply(entry);
            if changes > 0 && replayed.traces() != before {
                moments.push(changes);
            }
        }
        moments.push(inner.journal.len());
        moments
    }

    /// A life begins, on this disk. It dies at that pair of number of changes and position, if there is one.
    pub(super) fn begin_life(&self, disk: &SimDisk, dies_at: Option<(usize, usize)>) -> Life {
        let mut inner = self.lock();
        inner.disk = disk.clone();
        inner.dies_at = dies_at;
        inner.stop = StopToken::new();
        inner.stop_if_asked();
        Life { world: self.clone() }
    }

    pub(super) fn clock(&self) -> VirtualClock {
        self.lock().clock.clone()
    }

    /// The number of changes so far.
    pub(super) fn changes(&self) -> usize {
        self.lock().journal.len()
    }

    /// The number of changes before the open store was replaced by another one.
    pub(super) fn replaced_at(&self) -> Option<usize> {
        let inner = self.lock();
        let replaced = |entry: &JournalEntry| matches!(entry.change, Change::SecondWorker);
        inner.journal.iter().position(replaced).filter(|_| inner.has_disk)
    }

    /// For each change from `from` on, the disk's position when it happened.
    pub(super) fn positions(&self, from: usize) -> Vec<usize> {
        self.lock().journal.iter().skip(from).map(|entry| entry.position).collect()
    }

    /// The number of lives that have begun.
    pub(super) fn lives(&self) -> usize {
        self.lock().lives()
    }

    pub(super) fn event_comes(&self, event: SentEvent) {
        self.lock().record(Change::Sent(Arc::new(event)));
    }

    /// The extractor returned, as after an answer.
    pub(super) fn served(&self, request: &str) {
        self.lock().record(Change::Served { request: request.to_owned() });
    }

    /// Whether a second worker comes now, by the schedule. It comes once.
    pub(super) fn second_worker_comes(&self) -> bool {
        let mut inner = self.lock();
        let changes = inner.journal.len();
        let comes = |act: &Act| match act {
            Act::SecondWorker { changes: at } | Act::StoreReplaced { changes: at } => *at <= changes,
            _ => false,
        };
        if inner.second_worker || inner.disk.is_dead() || !inner.acts.iter().any(comes) {
            return false;
        }
        inner.record(Change::SecondWorker);
        let what = if inner.has_disk { "store/replaced" } else { "worker/second" };
        inner.count(what);
        true
    }

    /// Replaces the disk of the worker that is at work by the other's, with the moment at which it dies.
    pub(super) fn works_on(
        &self,
        disk: SimDisk,
        dies_at: Option<(usize, usize)>,
    ) -> (SimDisk, Option<(usize, usize)>) {
        let mut inner = self.lock();
        (std::mem::replace(&mut inner.disk, disk), std::mem::replace(&mut inner.dies_at, dies_at))
    }

    /// A store took the event for one of a past run. Nothing is noted, unless that store replaced another one and was
    /// then given an event that it could not know to be old.
    pub(super) fn outdated(&self, request: &str) {
        let mut inner = self.lock();
        if inner.could_not_know() {
            inner.record(Change::Outdated { request: request.to_owned() });
        }
    }

    pub(super) fn died(&self) {
        self.lock().record(Change::Died);
    }
}

impl Outside {
    pub(super) fn record(&mut self, change: Change) {
        let entry = JournalEntry {
            change,
            position: self.disk.position(),
            now: self.clock.now(),
            elapsed: self.clock.elapsed(),
        };
        self.apply(&entry);
        self.stop_if_asked();
    }

    /// Requests the present life to stop, if the schedule says so now.
    fn stop_if_asked(&mut self) {
        if self.acts.contains(&Act::Stop { changes: self.journal.len() }) && !self.stop.is_stopped() {
            self.stop.stop();
            self.count("worker/stopped");
        }
    }

    fn apply(&mut self, entry: &JournalEntry) {
        // The time first: in another world, the clock was at this entry's time.
        self.clock.advance(entry.elapsed.saturating_sub(self.clock.elapsed()));
        self.clock.step_to(entry.now);
        match &entry.change {
            Change::Sent(event) => self.event_sent(event),
            Change::Called { call, effect, failed, fault, about } => {
                self.outside_the_promise |= matches!(fault, Some(CallFault::Dropped | CallFault::Stale));
                self.failed_calls += u64::from(*failed);
                // Without a disk, an invocation that cannot save leaves the uploads made since the last save.
                let uploads = matches!(call, Call::Prepare | Call::Upload | Call::Confirm)
                    || (!self.has_disk && matches!(call, Call::LoadState | Call::SaveState));
                self.failures += u64::from(*failed && uploads);
                if let Some((unit, state)) = self.late.take() {
                    self.states.insert(unit, state);
                }
                *self.calls.entry(*call).or_default() += 1;
                self.came_of(about, *failed, *fault);
                if let Some(effect) = effect {
                    self.take_effect(effect, *fault == Some(CallFault::Late));
                }
            }
            Change::Read(page) => self.page_read(page),
            Change::Streamed { of, end } => {
                let ends = self.streams.entry(of.clone()).or_default();
                match end {
                    StreamEnd::Whole => {}
                    StreamEnd::Broken => ends.broken += 1,
                    StreamEnd::Final => ends.last += 1,
                }
            }
            Change::Served { request } => {
                self.recorded.insert(request.clone());
            }
            Change::Outdated { request } => {
                self.outdated.insert(request.clone());
            }
            Change::SecondWorker => {
                self.second_worker = true;
                // A store that replaced another one does not request these again.
                if self.has_disk {
                    self.replaced_after = Some(self.accepted.len());
                    let over = |id: &String| self.runs.iter().any(|run| run.id == *id && run.finished);
                    self.pages.retain(|(run, stream), _| stream != AGAIN || over(run));
                }
                self.outside_the_promise |= !self.has_disk;
                // One of the two ends early, as at a death.
                self.deaths += 1;
            }
            Change::Died => self.deaths += 1,
        }
        self.journal.push(entry.clone());
    }

    /// What the platform, and everyone else who outlives a life, has received so far.
    fn traces(&self) -> impl PartialEq + use<> {
        let heard = [
            self.sent.len(),
            self.recorded.len(),
            self.outdated.len(),
            self.uploads.len(),
            self.confirmed.len(),
            self.accepted.len(),
        ];
        (heard, self.states.clone(), self.late.clone(), self.second_worker, self.deaths)
    }

    fn event_sent(&mut self, event: &Arc<SentEvent>) {
        let of_run = !event.event_type.contains("SYNC_UNITS") && !event.event_type.contains("DELETE");
        if of_run && !event.stray && !self.runs.iter().any(|run| run.id == event.run) {
            for run in &mut self.runs {
                // The platform has moved on: what the older run had not finished is given up.
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
                deleted: false,
                attachments_deleted: false,
                taken_by_late_deletion: BTreeSet::new(),
                overtaken: false,
            });
        }
        // The event before it was not answered.
        let before = self.sent.iter().rposition(|sent| !sent.stray).filter(|_| !event.stray);
        if let Some(at) = before
            && self.answer_to(at).is_none()
            && let Some(before) = self.sent.get(at).filter(|before| before.request != event.request)
            && before.run == event.run
            && let Some(run) = self.runs.iter_mut().find(|run| run.id == event.run)
        {
            run.overtaken = true;
        }
        if !event.stray {
            // An event with ids that were used before is answered as a new one.
            self.recorded.remove(&event.request);
        }
        self.sent.push(Arc::clone(event));
    }

    /// Notes the result of a call for the upload that it was about.
    fn came_of(&mut self, about: &About, failed: bool, fault: Option<CallFault>) {
        let life = self.lives();
        match about {
            // A refusal by the platform counts against an attachment like a stream that broke off; unless the
            // platform only asked to wait.
            About::Stream(of) if failed && !matches!(fault, Some(CallFault::Busy(Some(_)))) => {
                self.streams.entry(of.clone()).or_default().broken += 1;
            }
            About::Artifact(id) => {
                let fate = match fault {
                    Some(CallFault::Refused(_)) => ConfirmFate::Refused,
                    Some(CallFault::Busy(_) | CallFault::Status { code: 425, .. }) => ConfirmFate::NotApplied,
                    _ => ConfirmFate::Other,
                };
                if let Some(uploaded) = self.uploads.get_mut(id) {
                    uploaded.confirms.push(Confirm { life, fate });
                }
            }
            About::Stream(_) | About::Nothing => {}
        }
    }

    /// Lives that have begun.
    fn lives(&self) -> usize {
        self.sent.len()
    }

    fn take_effect(&mut self, effect: &Effect, late: bool) {
        match effect {
            // What is confirmed stays as it is, whatever is sent to its address.
            Effect::Upload { id, .. } if self.confirmed.contains(id) => {}
            Effect::Upload { id, lines, of } => {
                let run = self.sent.last().map(|event| event.run.clone()).unwrap_or_default();
                let (lines, of, life) = (Arc::clone(lines), of.clone(), self.lives());
                self.uploads.insert(id.clone(), Uploaded { lines, run, of, confirms: Vec::new(), life });
            }
            Effect::Confirm { id } => {
                self.confirmed.insert(id.clone());
            }
            Effect::Accept(message) => self.message_accepted(message),
            Effect::Save { unit, state } if late => self.late = Some((unit.clone(), Arc::clone(state))),
            Effect::Save { unit, state } => {
                let before = self.states.insert(unit.clone(), Arc::clone(state));
                if let Some(before) = before {
                    self.states_before.insert(unit.clone(), before);
                }
            }
        }
    }

    fn message_accepted(&mut self, message: &Arc<Accepted>) {
        let known = self.by_key.get(&message.key).copied();
        let at = known.unwrap_or(self.accepted.len());
        if let Some(before) = known.and_then(|known| self.accepted.get(known))
            && before.body != message.body
        {
            self.changed_message = Some(format!("message {} changed when it was sent again", message.key));
        }
        if known.is_none() {
            self.by_key.insert(message.key.clone(), at);
            self.accepted.push(Arc::clone(message));
            let last = if self.is(Setting::NoAttachments) { "DATA" } else { "ATTACHMENTS" };
            if message.event_type == format!("EXTRACTION_{last}_DONE")
                && let Some(run) = self.runs.iter_mut().find(|run| run.id == message.run)
            {
                run.finished = true;
            }
            for run in &mut self.runs {
                run.deleted |= message.event_type == "EXTRACTION_DATA_DELETE_DONE";
                run.attachments_deleted |= message.event_type == "EXTRACTION_ATTACHMENTS_DELETE_DONE";
            }
        }
        self.deletion_answered(message, known);
        // It answers the event that was sent last with its request id.
        let sent = self.sent.iter().rposition(|event| event.request == message.request);
        if let Some(sent) = sent {
            self.answers.insert(sent, at);
        }
    }

    /// A deletion of attachments that was answered before is new to a store that was put in the place of the one that
    /// did it: what the unfinished runs had named until then is gone.
    fn deletion_answered(&mut self, message: &Accepted, known: Option<usize>) {
        let before = |at: usize| self.replaced_after.is_some_and(|accepted| at < accepted);
        if !known.is_some_and(before) || message.event_type != "EXTRACTION_ATTACHMENTS_DELETE_DONE" {
            return;
        }
        let mut taken = BTreeMap::new();
        for run in self.runs.iter().filter(|run| !run.finished) {
            let lines = self.pages_of(run).flat_map(|page| &page.lines);
            let attachments = lines.filter_map(|line| Attachment::from_line(line).ok());
            let named = attachments.map(|attachment| (attachment.parent_id, attachment.id));
            taken.insert(run.id.clone(), named.collect::<BTreeSet<Named>>());
        }
        for run in &mut self.runs {
            run.taken_by_late_deletion.extend(taken.remove(&run.id).unwrap_or_default());
        }
    }

    fn page_read(&mut self, page: &Arc<HandOut>) {
        self.reads += 1;
        let pages = self.pages.entry((page.run.clone(), page.stream.clone())).or_default();
        // Read again: the result of the earlier reading, and of all after it, was not kept.
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

    /// Whether the setup is unusual.
    pub(super) fn is(&self, setting: Setting) -> bool {
        self.acts.contains(&Act::With(setting))
    }

    /// What the last ERROR said, to go behind a sentence.
    pub(super) fn last_error(&self) -> Option<String> {
        self.accepted.iter().rev().find_map(|message| {
            let body: Value = serde_json::from_str(&message.body).ok()?;
            Some(format!("; the last ERROR: {}", body.pointer("/event_data/error/message")?.as_str()?))
        })
    }

    /// Whether the open store was replaced by another one, which does not know what happened before.
    pub(super) fn store_replaced(&self) -> bool {
        self.has_disk && self.second_worker
    }

    /// Whether such a store was given an event that had been sent before, or is of a run that the platform gave up:
    /// the store could not know.
    fn could_not_know(&self) -> bool {
        let replaced = |entry: &JournalEntry| matches!(entry.change, Change::SecondWorker);
        let Some(at) = self.journal.iter().position(replaced).filter(|_| self.has_disk) else { return false };
        let sent = |entry: &JournalEntry| matches!(entry.change, Change::Sent(_));
        // Both workers had the event that was sent last.
        let from = self.journal.iter().take(at).rposition(sent).unwrap_or(at);
        let stray = |entry: &JournalEntry| matches!(&entry.change, Change::Sent(event) if event.stray);
        self.journal.iter().skip(from).any(stray)
    }

    /// Whether the schedule has worker states that are truncated.
    pub(super) fn is_cut_short(&self) -> bool {
        let cut = |act: &Act| matches!(act, Act::Call { fault: CallFault::Truncated, .. });
        self.acts.iter().any(cut)
    }

    /// Whether the platform may use ids again, so that one id stands for several events.
    pub(super) fn reuses_ids(&self) -> bool {
        self.acts.iter().any(|act| matches!(act, Act::ReuseIds { .. }))
    }

    /// How often the source returned a bad record, or the platform gave an id twice, so far.
    pub(super) fn mishaps(&self) -> u64 {
        let mishaps = ["source/wrong-record", "source/refuses", "platform/id-repeated"];
        mishaps.iter().filter_map(|mishap| self.fired.get(*mishap)).sum()
    }

    /// Whether an event may be answered with an ERROR although nothing has failed since it came.
    pub(super) fn may_be_in_error(&self, event: &SentEvent) -> bool {
        let overtaken = |run: &RunSeen| run.id == event.run && run.overtaken;
        self.runs.iter().any(overtaken)
            || self.is_cut_short()
            // Any part of what the source keeps in its worker state may exceed the room that is left.
            || self.is(Setting::StateFull)
            || self.second_worker
            || self.outside_the_promise
    }

    /// The accepted message that answered the `at`-th sent event.
    pub(super) fn answer_to(&self, at: usize) -> Option<Arc<Accepted>> {
        self.answers.get(&at).and_then(|&message| self.accepted.get(message)).cloned()
    }

    /// A number that grows with every page that is read, attachment that is opened, and upload and confirmation.
    pub(super) fn advanced(&self) -> u64 {
        [Call::Page, Call::Open, Call::Upload, Call::Confirm]
            .iter()
            .filter_map(|call| self.calls.get(call))
            .sum()
    }

    /// Whether the newest message is PROGRESS and announces nothing.
    pub(super) fn only_says_progress(&self) -> bool {
        let last = self.accepted.last();
        last.is_some_and(|last| last.event_type.ends_with("PROGRESS") && last.artifacts.is_empty())
    }

    /// Whether the checkpoint of a unit has a message that is still to be sent, or a late save with one may still
    /// arrive.
    pub(super) fn sealed_in_checkpoint(&self, unit: &str) -> Result<bool> {
        let saved = checkpoint_in(self.states.get(unit).map(AsRef::as_ref), unit)?;
        Ok(self.late.is_some() || saved.is_some_and(|checkpoint| checkpoint.sealed_body().is_some()))
    }

    /// The unit of the event that was sent last.
    pub(super) fn unit(&self) -> String {
        self.sent.last().map(|event| event.unit.clone()).unwrap_or_default()
    }

    /// Measures a worker state that is about to be saved. The platform accepts none that is over its limit.
    pub(super) fn measure(&mut self, state: &str) {
        let limits = if self.is(Setting::StateFull) { SMALL_STATE } else { StateLimits::default() };
        let bytes = posted_bytes(state);
        if bytes >= limits.soft {
            self.count("state/nearly-full");
        }
        if bytes > limits.max && self.state_over_limit.is_none() {
            let what =
                format!("a worker state of {bytes} bytes was posted, over the limit of {}", limits.max);
            self.state_over_limit = Some(what);
        }
    }

    pub(super) fn count(&mut self, what: &str) {
        *self.fired.entry(what.to_owned()).or_default() += 1;
    }

    /// What the last finished run left for the next run of its unit. There are several possibilities if the extractor
    /// could not know whether the last message was accepted.
    pub(super) fn watermarks(&self, of: &RunSeen) -> Vec<Option<&RunSeen>> {
        let mut possible = Vec::new();
        // A store that replaced another one does not know the runs before.
        if self.store_replaced() {
            possible.push(None);
        }
        for run in self.runs.iter().rev().skip_while(|run| run.id != of.id).skip(1) {
            if run.unit != of.unit || !run.finished {
                continue;
            }
            if run.deleted {
                break;
            }
            possible.push(Some(run));
            let of_run = |event: &&Arc<SentEvent>| {
                event.run == run.id && !event.stray && !event.event_type.contains("DELETE")
            };
            let last = self.sent.iter().rev().find(of_run);
            if last.is_some_and(|event| self.recorded.contains(&event.request)) {
                return possible;
            }
        }
        possible.push(None);
        possible
    }
}

impl Outside {
    /// When the first page of a run was read whose reading was kept.
    pub(super) fn first_read(&self, run: &RunSeen) -> DateTime<Utc> {
        let pages = self.pages.iter().filter(|((id, _), _)| *id == run.id).flat_map(|(_, pages)| pages);
        pages.map(|page| page.read_at).min().unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// The bookmark that a run left for a stream; if it left none, that of the last finished run that did.
    pub(super) fn bookmark_left(&self, run: Option<&RunSeen>, stream: &str) -> Option<String> {
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

impl Outside {
    /// The rejected records that a run must request, if `before` is the last finished run that it knows.
    pub(super) fn to_ask(&self, before: Option<&RunSeen>) -> BTreeSet<Named> {
        let Some(before) = before else { return BTreeSet::new() };
        let older = self.runs.iter().rev().skip_while(|older| older.id != before.id).skip(1);
        let older = older.take_while(|older| older.unit != before.unit || !older.deleted);
        let mut left =
            self.to_ask(older.into_iter().find(|older| older.unit == before.unit && older.finished));
        for page in self.pages_of(before) {
            left.retain(|named| !page.settled.contains(named));
        }
        left.extend(self.pages_of(before).flat_map(|page| page.rejected.iter().cloned()));
        left
    }

    /// What a run has requested, as far as that was kept.
    pub(super) fn asked(&self, run: &str) -> BTreeSet<Named> {
        let pages = self.pages.get(&(run.to_owned(), AGAIN.to_owned()));
        pages.into_iter().flatten().flat_map(|page| page.asked.iter().cloned()).collect()
    }

    /// The pages of a run, each as last read.
    pub(super) fn pages_of<'a>(&'a self, run: &'a RunSeen) -> impl Iterator<Item = &'a HandOut> {
        self.listings_of(run).into_values().flatten().map(AsRef::as_ref)
    }

    /// A child listing that a page of a run named, and that was not read to its end.
    pub(super) fn child_left_unread<'a>(&'a self, run: &'a RunSeen) -> Option<&'a str> {
        let listings = self.listings_of(run).into_iter();
        let mut unread = listings
            .filter(|(_, pages)| pages.last().is_none_or(|last| last.is_child && last.next.is_some()));
        unread.next().map(|(listing, _)| listing)
    }

    /// The listings of a run with the pages of each: its streams, and the child listings named by a page whose
    /// reading was kept. A child listing that only another reading named was never read, or must not be.
    fn listings_of<'a>(&'a self, run: &'a RunSeen) -> BTreeMap<&'a str, &'a [Arc<HandOut>]> {
        let pages = self.pages.range((run.id.clone(), String::new())..);
        let read: BTreeMap<&str, &[Arc<HandOut>]> = pages
            .take_while(|((of, _), _)| *of == run.id)
            .map(|((_, listing), pages)| (listing.as_str(), pages.as_slice()))
            .collect();
        let is_child = |pages: &[Arc<HandOut>]| pages.first().is_some_and(|page| page.is_child);
        let mut found: BTreeMap<_, _> = read
            .iter()
            .filter(|(_, pages)| !is_child(pages))
            .map(|(listing, pages)| (*listing, *pages))
            .collect();
        let mut open: Vec<&str> = found.keys().copied().collect();
        while let Some(listing) = open.pop() {
            for child in
                read.get(listing).into_iter().flat_map(|pages| pages.iter()).flat_map(|page| &page.children)
            {
                if found.insert(child, read.get(child.as_str()).copied().unwrap_or_default()).is_none() {
                    open.push(child);
                }
            }
        }
        found
    }
}

/// A clock for inspecting a store: the result does not depend on it.
pub(super) fn still_clock() -> VirtualClock {
    VirtualClock::at(DateTime::from_timestamp(1_750_000_000, 0).unwrap_or_default())
}
