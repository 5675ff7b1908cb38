//! Uploads in flight in one invocation: batches and attachments, each with a life of its own.
//!
//! What may be done with an upload, and when its id may be given up, is decided by [`transfer`](crate::transfer) and
//! nowhere else. This module makes the calls that it asks for, several at once in lanes, reports the results to it, and
//! makes the store store the new states. It also keeps these limits:
//! - Right before each confirm, the store's path must still lead to the open file: what another process confirms is not
//!   confirmed here too.
//! - Each upload is tried at least once in an invocation; no retry outlives the invocation's hard limit.
//! - There are at most as many uploads without a stored id as lanes: a kill makes these be uploaded again.
//! - No more is confirmed than one message can carry.
//! - Where checkpoints are kept, one is due after 30 seconds, 20 batches or 200 attachments. A save first closes open
//!   batches, and waits for all batches to be uploaded.
//! - One transaction stores everything about batches that ended since the last commit; the caller may add it to one of
//!   its own ([`Delivery::take_batch_changes`]). Another does so for attachments, together with the lines that name them.
//!
//! This module does not decide what a failure of the source means: such an upload is returned to the caller by
//! [`Delivery::take_attempted`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::error::{Error, Result, chain};
use crate::model::ArtifactId;
use crate::record::Attachment;
use crate::store::{BatchSettling, Pending, Run, Settling, UnsettledBatch};
use crate::transfer::{Event, Rules, State, ToDo, Why};

use super::attempt::{Attempt, AttemptResult, Call};
use super::body::Failure;
use super::deadlines::Deadlines;
use super::in_flight::{InFlight, MessageSize, UploadNo, What, entry, line, name};
use super::keeper::Keeper;
use super::lanes::Lanes;
use super::platform::{Fate, PlatformError};
use super::retry::{TRIES, back_off, millis};

/// Uploads, and time, after which a checkpoint is due.
const SAVE_BATCHES: usize = 20;
const SAVE_ATTACHMENTS: usize = 200;
const SAVE_AFTER: Duration = Duration::from_secs(30);
/// How long what happened to a batch waits for a commit that can store it.
const STORE_WITHIN: Duration = Duration::from_millis(50);
/// How long the loop waits for a lane before it checks the clock again.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// When an attachment is tried again whose failure has not been judged.
const UNJUDGED: Duration = Duration::MAX;
/// The item type of the lines that list uploaded attachments.
const LINES: &str = "ssor_attachment";

/// Why nothing more is uploaded in this invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Halt {
    /// A failure that retrying does not solve.
    Failed(String),
    /// The platform asked for a longer wait than this invocation has.
    AskedToWait(Duration),
}

/// What a delivery needs to know about its invocation.
pub(crate) struct DeliverySettings {
    /// Calls about batches, and about attachments, at once.
    pub(crate) batches_at_once: usize,
    pub(crate) attachments_at_once: usize,
    pub(crate) seed: u64,
    /// Whether uploads are confirmed; external sync units are not.
    pub(crate) confirms: bool,
    /// Bytes of the message without artifacts.
    pub(crate) base_bytes: usize,
    pub(crate) artifacts_max: Option<u64>,
}

/// A change to be stored.
enum Change {
    Id,
    Confirmed,
    GivingUp,
    /// An attachment will be tried again.
    Retry {
        reason: String,
        wait: Duration,
    },
    /// An attachment is not tried any more.
    Failed(String),
}

/// What happened to uploads, and is being stored.
type Moves = Vec<(UploadNo, Event)>;

/// What happened to uploads of batches, for the caller to store.
pub(crate) struct BatchChanges {
    /// As the store gets it.
    pub(crate) settled: Vec<(u64, BatchSettling)>,
    moves: Moves,
}

/// Calls of one kind.
struct Calls {
    at_once: usize,
    in_flight: usize,
}

/// The uploads in flight in one invocation.
pub(crate) struct Delivery<'a> {
    run: &'a Run,
    clock: &'a dyn Clock,
    deadlines: &'a Deadlines,
    lanes: Lanes<'a, Attempt, Result<AttemptResult>>,
    keeper: Option<&'a Keeper<'a>>,
    batch_rules: Rules,
    attachment_rules: Rules,
    chance: fastrand::Rng,
    uploads: BTreeMap<UploadNo, InFlight>,
    batches: Calls,
    attachments: Calls,
    message: MessageSize,
    /// None of the attachments of this number or a higher one was begun.
    position: u64,
    /// When a checkpoint was last saved.
    saved_at: Duration,
    /// Changes that are not stored yet.
    unstored: Vec<(UploadNo, Change)>,
    /// When they must be stored.
    store_by: Duration,
    /// Results of attempts to upload attachments, including those that cannot be delivered, in order.
    attempted: Vec<(u64, Result<(), Failure>)>,
    left_over: bool,
    halt: Option<Halt>,
}

impl<'a> Delivery<'a> {
    /// Resumes the batches that earlier lives left.
    pub(crate) fn new(
        run: &'a Run,
        clock: &'a dyn Clock,
        deadlines: &'a Deadlines,
        lanes: Lanes<'a, Attempt, Result<AttemptResult>>,
        keeper: Option<&'a Keeper<'a>>,
        settings: &DeliverySettings,
    ) -> Result<Self> {
        let calls = |at_once: usize| Calls { at_once: at_once.max(1), in_flight: 0 };
        let mut this = Self {
            run,
            clock,
            deadlines,
            lanes,
            keeper,
            batch_rules: run.batch_rules(settings.confirms, keeper.is_some()),
            attachment_rules: run.attachment_rules(keeper.is_some()),
            chance: fastrand::Rng::with_seed(settings.seed),
            uploads: BTreeMap::new(),
            batches: calls(settings.batches_at_once),
            attachments: calls(settings.attachments_at_once),
            message: MessageSize {
                bytes: settings.base_bytes,
                artifacts: 0,
                artifacts_max: settings.artifacts_max.unwrap_or(u64::MAX),
                full: false,
            },
            position: 0,
            saved_at: clock.elapsed(),
            unstored: Vec::new(),
            store_by: Duration::MAX,
            attempted: Vec::new(),
            left_over: false,
            halt: None,
        };
        for (info, artifact) in run.confirmed()? {
            this.message.add(entry(&info, &artifact).bytes()?);
        }
        this.add(run.unsettled()?);
        // A life that was killed between two commits may not have made the second one.
        this.commit()?;
        Ok(this)
    }

    /// Makes its calls in these lanes from now on.
    pub(crate) fn in_lanes<'b>(self, lanes: Lanes<'b, Attempt, Result<AttemptResult>>) -> Delivery<'b>
    where
        'a: 'b,
    {
        Delivery { lanes, ..self }
    }

    /// Adds batches that were just closed, or that an earlier life left.
    pub(crate) fn add(&mut self, batches: Vec<UnsettledBatch>) {
        for UnsettledBatch { info, state, artifact } in batches {
            let no = UploadNo::Batch(info.seq);
            if self.batch_rules.to_do(state) == ToDo::Upload {
                let (seq, items) = (info.seq, info.items);
                debug!(target: "highwater", seq, item_type = info.item_type, items, "batch closed");
            }
            self.take_up(no, What::Batch(info), state, artifact, Duration::ZERO);
        }
    }

    /// Adds an attachment from the queue.
    pub(crate) fn add_attachment(&mut self, pending: Pending) {
        let Pending { number, attachment, state, artifact, tries, wait } = pending;
        self.position = number + 1;
        let ready_at = self.clock.elapsed().saturating_add(wait);
        let what = What::Attachment { attachment, tries };
        self.take_up(UploadNo::Attachment(number), what, state, artifact, ready_at);
    }

    fn take_up(
        &mut self,
        no: UploadNo,
        what: What,
        state: State,
        artifact: Option<ArtifactId>,
        ready_at: Duration,
    ) {
        let rules = match no {
            UploadNo::Batch(_) => self.batch_rules,
            UploadNo::Attachment(_) => self.attachment_rules,
        };
        let upload = InFlight {
            what,
            rules,
            state,
            artifact,
            call_tries: 0,
            ready_at,
            begun_at: self.clock.elapsed(),
            called: false,
            place: None,
        };
        self.uploads.insert(no, upload);
        self.note_what_to_store(no);
    }

    /// More batches wait than the lanes can soon take: the source may pause.
    pub(crate) fn crowded(&self) -> bool {
        let calls = self.of_batches().filter(|upload| matches!(upload.to_do(), ToDo::Upload | ToDo::Confirm));
        calls.count() > self.batches.at_once.saturating_mul(2)
    }

    /// Whether the message can take no more.
    pub(crate) fn message_full(&self) -> bool {
        self.message.full
    }

    pub(crate) fn halt(&self) -> Option<&Halt> {
        self.halt.as_ref()
    }

    /// Whether something is left for the next invocation.
    pub(crate) fn left_over(&self) -> bool {
        self.left_over
    }

    /// Makes the calls about batches that can be made and handles those that ended, without waiting.
    pub(crate) fn step(&mut self) -> Result<()> {
        self.start()?;
        self.gather(Duration::ZERO)?;
        self.commit()?;
        self.start()
    }

    /// Stores what ended, and waits until a call ends, or a batch is due for a retry.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.wait_until(None)
    }

    /// Like [`Delivery::wait`], but not beyond this moment.
    pub(crate) fn wait_until(&mut self, until: Option<Duration>) -> Result<()> {
        self.commit()?;
        self.start()?;
        let left = |until: Duration| until.saturating_sub(self.clock.elapsed());
        if self.batches.in_flight > 0 {
            if let Some(done) = self.lanes.poll(until.map_or(POLL, |until| left(until).min(POLL))) {
                self.take_in(done?);
            }
            self.commit()?;
        } else if let Some(ready_at) = self.next_batch_ready().into_iter().chain(until).min() {
            self.deadlines.sleep(left(ready_at));
        }
        Ok(())
    }

    /// Continues until all batches that can be delivered in this invocation are. After a halt nothing more is
    /// uploaded, but what was uploaded is confirmed.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            self.leave_late_batches();
            if self.halt.is_some() {
                self.leave_batches(|_, to_do| to_do == ToDo::Upload);
            }
            let in_flight = self.batches.in_flight > 0;
            if self.of_batches().next().is_none() && !in_flight {
                return Ok(());
            }
            let all_wait = !in_flight && self.of_batches().all(|upload| upload.to_do() == ToDo::Save);
            if all_wait && !self.save()? {
                // An earlier one could not be uploaded, so no checkpoint can name them.
                self.leave_batches(|_, _| true);
            } else if !all_wait {
                self.wait()?;
            }
        }
    }

    /// Whether a checkpoint is to be saved now.
    pub(crate) fn save_due(&self) -> bool {
        let awaits = |upload: &&InFlight| upload.to_do() == ToDo::Save;
        self.keeper.is_some()
            && (self.of_batches().filter(awaits).count() >= SAVE_BATCHES
                || self.unsaved_attachments() >= SAVE_ATTACHMENTS
                || self.clock.elapsed().saturating_sub(self.saved_at) >= SAVE_AFTER)
    }

    pub(crate) fn keeps_checkpoints(&self) -> bool {
        self.keeper.is_some()
    }

    /// Closes open batches, waits until they are uploaded, and saves a checkpoint. Returns whether one could be
    /// saved.
    pub(crate) fn save(&mut self) -> Result<bool> {
        let Some(keeper) = self.keeper else { return Ok(false) };
        self.add(self.run.close_open()?);
        while self.of_batches().any(|upload| upload.to_do() == ToDo::Upload) {
            self.leave_late_batches();
            if self.halt.is_some() {
                self.leave_batches(|_, to_do| to_do == ToDo::Upload);
                if self.batches.in_flight == 0 {
                    break;
                }
            }
            self.wait()?;
        }
        let Some(position) = self.run.position()? else { return Ok(false) };
        let bytes = match keeper.save(self.run, Some(&position)) {
            // The uploads that it would have named are not confirmed, and the platform gets an error.
            Err(error @ Error::TooLarge { .. }) => {
                self.meet(Halt::Failed(chain(&error)));
                return Ok(false);
            }
            saved => saved?,
        };
        self.message.full |= keeper.is_nearly_full(bytes);
        for upload in self.uploads.values_mut() {
            if let Ok((state, _)) = upload.rules.next(upload.state, Event::Saved) {
                upload.state = state;
            }
        }
        self.saved_at = self.clock.elapsed();
        Ok(true)
    }

    fn of_batches(&self) -> impl Iterator<Item = &InFlight> {
        let batches = UploadNo::Batch(0)..UploadNo::Attachment(0);
        self.uploads.range(batches).map(|(_, upload)| upload)
    }

    fn of_attachments(&self) -> impl Iterator<Item = &InFlight> {
        self.uploads.range(UploadNo::Attachment(0)..).map(|(_, upload)| upload)
    }

    /// Leaves batches without a call in flight to the next invocation.
    fn leave_batches(&mut self, which: impl Fn(&InFlight, ToDo) -> bool) {
        let before = self.uploads.len();
        self.uploads.retain(|no, upload| {
            let left = !upload.called && which(upload, upload.to_do());
            matches!(no, UploadNo::Attachment(_)) || !left
        });
        self.left_over |= self.uploads.len() < before;
    }

    /// After a stop, leaves batches for which there is no time to the next invocation; once the time is over, also
    /// those with a call in progress. The result of such a call is ignored, as if the process had died during it.
    fn leave_late_batches(&mut self) {
        let Some(leave_at) = self.deadlines.leave_at() else { return };
        if self.clock.elapsed() < leave_at {
            return self.leave_batches(|upload, to_do| to_do != ToDo::Save && upload.ready_at >= leave_at);
        }
        let before = self.uploads.len();
        self.uploads.retain(|no, _| matches!(no, UploadNo::Attachment(_)));
        self.left_over |= self.uploads.len() < before;
        self.batches.in_flight = 0;
    }

    fn next_batch_ready(&self) -> Option<Duration> {
        let waits = |upload: &&InFlight| upload.to_do() != ToDo::Save;
        self.of_batches().filter(waits).map(|upload| upload.ready_at).min()
    }

    /// Makes the calls about batches that can be made now.
    pub(crate) fn start(&mut self) -> Result<()> {
        let now = self.clock.elapsed();
        let mut held_back = false;
        let without_id = self.without_id();
        let batches = UploadNo::Batch(0)..UploadNo::Attachment(0);
        for (&no, upload) in self.uploads.range_mut(batches) {
            if self.batches.in_flight >= self.batches.at_once {
                break;
            }
            let What::Batch(info) = &upload.what else { continue };
            if !upload.is_ready(now) {
                continue;
            }
            let call = match (upload.to_do(), &upload.artifact) {
                (ToDo::Upload, _) if self.batches.in_flight + without_id >= self.batches.at_once => continue,
                (ToDo::Upload, _) => Call::Batch {
                    file_name: format!("{}.jsonl.gz", info.item_type),
                    bytes: self.run.payload(info.seq)?,
                },
                (ToDo::Confirm, Some(artifact)) => {
                    if upload.place.is_none() {
                        upload.place = self.message.take(entry(info, artifact.as_str()).bytes()?);
                    }
                    if upload.place.is_none() {
                        held_back = true;
                        continue;
                    }
                    Call::Confirm(artifact.clone())
                }
                _ => continue,
            };
            upload.begin(now);
            self.batches.in_flight += 1;
            self.lanes.submit(Attempt { no, call });
        }
        if held_back {
            self.leave_batches(|upload, to_do| to_do == ToDo::Confirm && upload.place.is_none());
        }
        Ok(())
    }

    /// Makes the calls about attachments that can be made now. If `begin` is false, no attachment begins, but
    /// confirms go on. Returns whether a call was made.
    pub(crate) fn start_attachments(&mut self, begin: bool) -> bool {
        let now = self.clock.elapsed();
        let mut any = false;
        for (&no, upload) in self.uploads.range_mut(UploadNo::Attachment(0)..) {
            if self.attachments.in_flight >= self.attachments.at_once {
                break;
            }
            let (UploadNo::Attachment(number), What::Attachment { attachment, .. }) = (no, &upload.what)
            else {
                continue;
            };
            if !upload.is_ready(now) {
                continue;
            }
            let call = match (upload.to_do(), &upload.artifact) {
                (ToDo::Upload, _) if begin => Call::Attachment(attachment.clone()),
                (ToDo::Confirm, Some(artifact)) => {
                    // An attachment that cannot be announced is not confirmed.
                    if let Err(error) = line(attachment, artifact) {
                        upload.ready_at = UNJUDGED;
                        self.attempted.push((number, Err(Failure::Final(chain(&error)))));
                        continue;
                    }
                    Call::Confirm(artifact.clone())
                }
                _ => continue,
            };
            any = true;
            upload.begin(now);
            self.attachments.in_flight += 1;
            self.lanes.submit(Attempt { no, call });
        }
        any
    }

    /// Handles the calls that ended: waits for the first, not for the others.
    pub(crate) fn gather(&mut self, mut wait: Duration) -> Result<()> {
        while self.batches.in_flight + self.attachments.in_flight > 0
            && let Some(done) = self.lanes.poll(wait)
        {
            self.take_in(done?);
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn take_in(&mut self, done: AttemptResult) {
        let no = done.no;
        // If it is missing, it was left to the next invocation during the call.
        let Some(upload) = self.uploads.get_mut(&no) else { return };
        upload.called = false;
        match no {
            UploadNo::Batch(_) => self.batches.in_flight -= 1,
            UploadNo::Attachment(_) => self.attachments.in_flight -= 1,
        }
        match (done.result, no) {
            (Ok(Some(artifact)), _) => {
                if let (UploadNo::Attachment(number), What::Attachment { attachment, .. }) =
                    (no, &upload.what)
                {
                    debug!(target: "highwater", attachment = attachment.id, artifact = artifact.as_str(), "attachment uploaded");
                    self.attempted.push((number, Ok(())));
                }
                upload.artifact = Some(artifact);
                self.happened(no, Event::Uploaded, "");
            }
            (Ok(None), _) => self.happened(no, Event::Confirmed, ""),
            (Err(failure), UploadNo::Attachment(number)) if upload.is_staged() => {
                upload.ready_at = UNJUDGED;
                self.attempted.push((number, Err(failure)));
            }
            (Err(Failure::Platform(error)), _) => self.call_failed(no, error),
            (Err(failure), _) => self.stop(no, &failure.to_string()),
        }
    }

    /// Handles a failed call about an upload, and schedules a retry.
    fn call_failed(&mut self, no: UploadNo, error: PlatformError) {
        let Some(upload) = self.uploads.get(&no) else { return };
        let confirming = !upload.is_staged();
        let event = match (confirming, &error) {
            (true, PlatformError::Refused { .. }) => Some(Event::ConfirmRefused),
            (true, PlatformError::Retry { fate: Fate::Unknown, .. }) => Some(Event::ConfirmLost),
            (false, PlatformError::Refused { .. }) => Some(Event::UploadRefused),
            (false, PlatformError::StorageRefused { .. }) => Some(Event::StorageRefused),
            _ => None,
        };
        let said = error.to_string();
        if let Some(event) = event {
            self.happened(no, event, &said);
        }
        let (after, reason) = match error {
            PlatformError::Retry { after, reason, .. } => (after, reason),
            PlatformError::StorageRefused { after, .. } => (after, said),
            PlatformError::Refused { .. } => return,
        };
        let Some(upload) = self.uploads.get(&no) else { return };
        if matches!(upload.to_do(), ToDo::Upload | ToDo::Confirm) {
            self.again(no, after, &reason);
        }
    }

    /// Moves an upload on; `said` is the platform's text.
    fn happened(&mut self, no: UploadNo, event: Event, said: &str) {
        let Some(upload) = self.uploads.get_mut(&no) else { return };
        let (state, to_do) = match upload.rules.next(upload.state, event) {
            Ok(next) => next,
            Err(illegal) => return self.stop(no, &illegal.to_string()),
        };
        upload.state = state;
        match to_do {
            ToDo::Report(why) => self.stuck(no, why, said),
            _ => self.note_what_to_store(no),
        }
    }

    /// Records what to store of an upload, if anything.
    fn note_what_to_store(&mut self, no: UploadNo) {
        let Some(upload) = self.uploads.get(&no) else { return };
        let change = match upload.to_do() {
            ToDo::StoreId => Change::Id,
            ToDo::StoreConfirmed => Change::Confirmed,
            ToDo::StoreGivingUp => Change::GivingUp,
            _ => return,
        };
        self.store_later(no, change);
    }

    fn store_later(&mut self, no: UploadNo, change: Change) {
        let by = match change {
            // A life that does not know of a refusal must take the next one as final.
            Change::GivingUp => Duration::ZERO,
            _ => self.clock.elapsed().saturating_add(STORE_WITHIN),
        };
        self.store_by = if self.unstored.is_empty() { by } else { self.store_by.min(by) };
        self.unstored.push((no, change));
    }

    /// When changes of batches must be stored, if there are any.
    pub(crate) fn store_by(&self) -> Option<Duration> {
        if !self.unstored.iter().any(|(no, _)| matches!(no, UploadNo::Batch(_))) {
            return None;
        }
        let now = self.clock.elapsed();
        let waits = |upload: &InFlight| upload.to_do() == ToDo::Upload && upload.is_ready(now);
        let are_lanes_taken = self.batches.in_flight + self.without_id() >= self.batches.at_once;
        let is_urgent = are_lanes_taken && self.of_batches().any(waits);
        Some(if is_urgent { Duration::ZERO } else { self.store_by })
    }

    /// Batches that are uploaded under an id that is not stored. Each keeps its lane until it is, so that a kill costs no
    /// more uploads than there are lanes.
    fn without_id(&self) -> usize {
        self.of_batches().filter(|upload| upload.to_do() == ToDo::StoreId).count()
    }

    /// An upload cannot go on. A batch stays as it is stored, and halts the delivery. An attachment is returned to
    /// the caller, to be given up, unless the attachment is not the cause.
    fn stuck(&mut self, no: UploadNo, why: Why, said: &str) {
        let Some(upload) = self.uploads.get_mut(&no) else { return };
        let artifact = upload.artifact.as_ref().map_or("", ArtifactId::as_str);
        let name = name(self.run, &upload.what);
        match (why, no) {
            (Why::UploadRefused, _) => {
                let reason = format!("the upload of {name} was {said}");
                self.stop(no, &reason);
            }
            (Why::StorageRefused, _) => {
                let reason = format!("the upload of {name} failed: {said}; {why}");
                self.stop(no, &reason);
            }
            (Why::IdsUsed, _) => {
                let reason = format!(
                    "{name} was given the artifact id {artifact}, which this run has used before; {why}"
                );
                self.stop(no, &reason);
            }
            (Why::RefusedInDoubt | Why::RefusedTwice, UploadNo::Batch(_)) => {
                let reason = format!("the confirm of artifact {artifact} ({name}) was {said}; {why}");
                self.stop(no, &reason);
            }
            (Why::RefusedInDoubt | Why::RefusedTwice, UploadNo::Attachment(number)) => {
                let reason = format!("the confirm of artifact {artifact} was {said}; {why}");
                upload.ready_at = UNJUDGED;
                self.attempted.push((number, Err(Failure::Final(reason))));
            }
        }
    }

    /// Leaves an upload to the next invocation, and ends this one with an error.
    fn stop(&mut self, no: UploadNo, reason: &str) {
        self.leave(no);
        self.meet(Halt::Failed(reason.to_owned()));
    }

    /// Leaves an upload to the next invocation, as it is stored.
    pub(crate) fn leave(&mut self, no: UploadNo) {
        let Some(upload) = self.uploads.remove(&no) else { return };
        if let Some(bytes) = upload.place {
            self.message.give_back(bytes);
        }
        self.left_over = true;
    }

    /// Repeats a call after this wait, without counting the attempt: the source asked for that.
    pub(crate) fn put_off(&mut self, no: UploadNo, wait: Duration) {
        let Some(upload) = self.uploads.get_mut(&no) else { return };
        upload.ready_at = self.clock.elapsed().saturating_add(wait);
        upload.call_tries = upload.call_tries.saturating_sub(1);
    }

    /// Repeats a call after a while, unless it was made too often, or the invocation would be over.
    pub(crate) fn again(&mut self, no: UploadNo, after: Option<Duration>, reason: &str) {
        let Some(upload) = self.uploads.get_mut(&no) else { return };
        let call = if upload.is_staged() { "upload" } else { "confirm" };
        let tries = upload.call_tries;
        let wait = back_off(tries.max(1), after, &mut self.chance);
        upload.ready_at = self.clock.elapsed().saturating_add(wait);
        if tries >= TRIES {
            let name = name(self.run, &upload.what);
            self.stop(no, &format!("the {call} of {name} failed {TRIES} times: {reason}"));
        } else if upload.ready_at >= self.deadlines.hard_at() {
            self.leave(no);
            if let Some(after) = after {
                self.meet(Halt::AskedToWait(after));
            }
        } else {
            let wait_ms = millis(wait);
            match &upload.what {
                What::Batch(info) => {
                    warn!(target: "highwater", seq = info.seq, call, tries, reason, wait_ms, "batch is tried again");
                }
                What::Attachment { attachment, .. } => {
                    let attachment = &attachment.id;
                    warn!(
                        target: "highwater",
                        attachment, call, tries, reason, wait_ms,
                        "call about an attachment is tried again"
                    );
                }
            }
        }
    }

    /// Keeps the first failure, or else the longest wait.
    fn meet(&mut self, halt: Halt) {
        match &halt {
            Halt::Failed(reason) => warn!(target: "highwater", reason, "delivery failed"),
            Halt::AskedToWait(wait) => {
                info!(target: "highwater", wait_ms = millis(*wait), "the platform asked to wait");
            }
        }
        self.halt = Some(match (self.halt.take(), halt) {
            (Some(Halt::Failed(reason)), _) => Halt::Failed(reason),
            (Some(Halt::AskedToWait(one)), Halt::AskedToWait(other)) => Halt::AskedToWait(one.max(other)),
            (_, halt) => halt,
        });
    }

    /// Stores what ended, and moves it on.
    pub(crate) fn commit(&mut self) -> Result<()> {
        while !self.unstored.is_empty() {
            let changes = self.take_batch_changes()?;
            if !changes.settled.is_empty() {
                let used = self.run.settle_batches(&changes.settled);
                self.batches_stored(changes, used)?;
            }
            self.commit_attachments()?;
        }
        Ok(())
    }

    /// Takes what happened to uploads of batches. The caller stores it, and returns it to
    /// [`Delivery::batches_stored`].
    pub(crate) fn take_batch_changes(&mut self) -> Result<BatchChanges> {
        let changes: Vec<_> =
            self.unstored.extract_if(.., |(no, _)| matches!(no, UploadNo::Batch(_))).collect();
        let moves = moves(&changes);
        let settled =
            changes.iter().filter_map(|(no, change)| self.settling_of_batch(*no, change).transpose());
        match settled.collect() {
            Ok(settled) => Ok(BatchChanges { settled, moves }),
            Err(error) => Err(self.not_stored(moves, error)),
        }
    }

    /// Moves batches on whose changes were stored, except those whose id the run has `used` before; or leaves them to
    /// the next invocation, if nothing was stored.
    pub(crate) fn batches_stored(&mut self, changes: BatchChanges, used: Result<Vec<u64>>) -> Result<()> {
        match used {
            Ok(used) => {
                self.all_stored(changes.moves, &used.into_iter().map(UploadNo::Batch).collect());
                Ok(())
            }
            Err(error) => Err(self.not_stored(changes.moves, error)),
        }
    }

    /// Stores what ended of attachments, and moves it on.
    fn commit_attachments(&mut self) -> Result<()> {
        let changes: Vec<_> =
            self.unstored.extract_if(.., |(no, _)| matches!(no, UploadNo::Attachment(_))).collect();
        let moves = moves(&changes);
        let settled = changes.into_iter().filter_map(|(no, change)| self.settling(no, change).transpose());
        let stored = settled.collect::<Result<Vec<_>>>().and_then(|settled| {
            if settled.is_empty() {
                return Ok(Default::default());
            }
            self.run.settle_attachments(settled, LINES, self.position)
        });
        match stored {
            Ok((closed, used)) => {
                self.add(closed);
                self.all_stored(moves, &used.into_iter().map(UploadNo::Attachment).collect());
                Ok(())
            }
            Err(error) => Err(self.not_stored(moves, error)),
        }
    }

    /// Nothing was stored. An error that the platform is told of does not end the work at once: what waits for the
    /// store then waits for the next invocation.
    fn not_stored(&mut self, moves: Moves, error: Error) -> Error {
        for (no, _) in moves {
            self.leave(no);
        }
        error
    }

    fn all_stored(&mut self, moves: Moves, used: &BTreeSet<UploadNo>) {
        for (no, event) in moves {
            self.stored(no, if used.contains(&no) { Event::IdUsed } else { event });
        }
    }

    /// The form in which the store gets a change of a batch.
    fn settling_of_batch(&mut self, no: UploadNo, change: &Change) -> Result<Option<(u64, BatchSettling)>> {
        let Some(upload) = self.uploads.get(&no) else { return Ok(None) };
        let (What::Batch(info), Some(artifact)) = (&upload.what, &upload.artifact) else { return Ok(None) };
        let settling = match change {
            Change::Id => BatchSettling::Uploaded(artifact.clone()),
            Change::GivingUp => BatchSettling::GivenUp,
            // Only an attachment's.
            Change::Retry { .. } | Change::Failed(_) => return Ok(None),
            Change::Confirmed => {
                if upload.place.is_none() {
                    // It is announced unconfirmed.
                    self.message.add(entry(info, artifact.as_str()).bytes()?);
                }
                BatchSettling::Confirmed
            }
        };
        Ok(Some((info.seq, settling)))
    }

    /// The form in which the store gets a change of an attachment.
    fn settling(&mut self, no: UploadNo, change: Change) -> Result<Option<(u64, Settling)>> {
        let UploadNo::Attachment(number) = no else { return Ok(None) };
        let Some(upload) = self.uploads.get(&no) else { return Ok(None) };
        let What::Attachment { attachment, .. } = &upload.what else { return Ok(None) };
        let settling = match (change, &upload.artifact) {
            (Change::Id, Some(artifact)) => Settling::Uploaded(artifact.clone()),
            (Change::Confirmed, Some(artifact)) => Settling::Settled(Some(line(attachment, artifact)?)),
            (Change::Id | Change::Confirmed, None) => return Ok(None),
            (Change::GivingUp, _) => Settling::GivenUp,
            (Change::Retry { reason, wait }, _) => Settling::Retry { reason, wait },
            (Change::Failed(reason), _) => {
                self.uploads.remove(&no);
                Settling::Failed(reason)
            }
        };
        Ok(Some((number, settling)))
    }

    /// Moves an upload on after its change was stored.
    fn stored(&mut self, no: UploadNo, event: Event) {
        self.happened(no, event, "");
        let Some(upload) = self.uploads.get_mut(&no) else { return };
        if event == Event::IdUsed {
            let artifact = upload.artifact.as_ref().map_or("", ArtifactId::as_str);
            warn!(target: "highwater", upload = ?no, artifact, "the platform gave an artifact id that the run has used before");
        }
        if event == Event::ConfirmStored {
            let artifact = upload.artifact.as_ref().map_or("", ArtifactId::as_str);
            match &upload.what {
                What::Batch(info) => debug!(target: "highwater", seq = info.seq, artifact, "batch confirmed"),
                What::Attachment { attachment, .. } => {
                    debug!(target: "highwater", attachment = attachment.id, artifact, "attachment settled");
                }
            }
        }
        // The next call, whichever it is, is a new one.
        upload.call_tries = 0;
        match upload.to_do() {
            ToDo::Upload => {
                if let Some(bytes) = upload.place.take() {
                    self.message.give_back(bytes);
                }
            }
            // A message or a line names it; that happens elsewhere.
            ToDo::Announce | ToDo::Nothing => drop(self.uploads.remove(&no)),
            _ => {}
        }
    }

    // The part for the caller that processes the queue of attachments.

    /// Results of uploading attachments since the last call: the platform accepted the bytes, or why not. A failed
    /// one is tried again only if one of the methods below says so.
    pub(crate) fn take_attempted(&mut self) -> Vec<(u64, Result<(), Failure>)> {
        std::mem::take(&mut self.attempted)
    }

    /// An attachment in flight.
    pub(crate) fn attachment(&self, number: u64) -> Option<(&Attachment, &InFlight)> {
        let upload = self.uploads.get(&UploadNo::Attachment(number))?;
        match &upload.what {
            What::Attachment { attachment, .. } => Some((attachment, upload)),
            What::Batch(_) => None,
        }
    }

    /// Counts a failure against an attachment. It is tried again after a while, or given up after `tries_max`
    /// failures.
    pub(crate) fn count(&mut self, number: u64, reason: String, tries_max: u32) {
        let Some(upload) = self.uploads.get_mut(&UploadNo::Attachment(number)) else { return };
        let What::Attachment { attachment, tries } = &mut upload.what else { return };
        *tries += 1;
        if *tries >= tries_max {
            return self.give_up(number, reason);
        }
        let (tries, wait) = (*tries, back_off(*tries, None, &mut self.chance));
        warn!(target: "highwater", attachment = attachment.id, tries, wait_ms = millis(wait), "attachment is tried again");
        upload.call_tries = 0;
        upload.ready_at = self.clock.elapsed().saturating_add(wait);
        self.store_later(UploadNo::Attachment(number), Change::Retry { reason, wait });
    }

    /// Gives an attachment up. The reason is stored, and listed.
    pub(crate) fn give_up(&mut self, number: u64, reason: String) {
        let no = UploadNo::Attachment(number);
        let Some(upload) = self.uploads.get_mut(&no) else { return };
        if let What::Attachment { attachment, tries } = &upload.what {
            warn!(target: "highwater", attachment = attachment.id, tries, "attachment given up");
        }
        match upload.rules.next(upload.state, Event::GivenUp) {
            Ok((state, _)) => {
                upload.state = state;
                self.store_later(no, Change::Failed(reason));
            }
            Err(illegal) => self.stop(no, &illegal.to_string()),
        }
    }

    /// The number of attachments in flight.
    pub(crate) fn attachments(&self) -> usize {
        self.of_attachments().count()
    }

    /// The number of calls about attachments in flight.
    pub(crate) fn attachments_in_flight(&self) -> usize {
        self.attachments.in_flight
    }

    /// Attachments for which a call may be made now.
    pub(crate) fn attachments_ready(&self) -> usize {
        let now = self.clock.elapsed();
        self.of_attachments().filter(|upload| upload.ready_at <= now).count()
    }

    /// When the next of them is due.
    pub(crate) fn next_attachment(&self) -> Option<Duration> {
        self.of_attachments().map(|upload| upload.ready_at).min()
    }

    /// Like [`Delivery::next_attachment`], for those for which a call may be made if no attachment may `begin`.
    pub(crate) fn next_attachment_call(&self, begin: bool) -> Option<Duration> {
        let may = |upload: &&InFlight| match upload.to_do() {
            ToDo::Upload => begin,
            to_do => to_do == ToDo::Confirm,
        };
        self.of_attachments().filter(may).map(|upload| upload.ready_at).min()
    }

    /// Attachments that are uploaded, and that no saved checkpoint names.
    pub(crate) fn unsaved_attachments(&self) -> usize {
        self.of_attachments().filter(|upload| upload.to_do() == ToDo::Save).count()
    }

    /// Leaves all attachments to the next invocation, including those with a call in progress.
    pub(crate) fn leave_attachments(&mut self) {
        self.uploads.retain(|no, _| matches!(no, UploadNo::Batch(_)));
        self.attachments.in_flight = 0;
    }
}

/// What changes mean to their uploads, once they are stored.
fn moves(changes: &[(UploadNo, Change)]) -> Moves {
    let event = |change: &Change| match change {
        Change::Id => Some(Event::IdStored),
        Change::Confirmed => Some(Event::ConfirmStored),
        Change::GivingUp => Some(Event::GivingUpStored),
        Change::Retry { .. } | Change::Failed(_) => None,
    };
    changes.iter().filter_map(|(no, change)| Some((*no, event(change)?))).collect()
}
