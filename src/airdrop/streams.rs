//! The way of an attachment from the source to the platform: open, stream, store the id, confirm, store that.
//!
//! The rules of the outbox hold here, too: a stream is confirmed only under an id that is stored (and, where checkpoints
//! are kept, that a saved one names), and one that did not get as far is streamed anew, under a new id. Besides:
//! - What came to an end since the last commit is stored in one transaction, together with the lines that say so.
//! - A failure of the source counts against the attachment; after so many it is given up, and listed. What cannot
//!   change (gone, denied, empty, too large) is given up at once.
//! - A failure of the platform counts against the attachment only if another got through in this invocation; if none
//!   does, it is the platform's, and the phase ends with an error that gives nothing up.
//! - A source that asks to be left alone ends the phase with a delay: the longest that any stream was asked for.
//! - After the soft deadline no stream begins but the first. One that runs is aborted before the hard one; that counts
//!   against it only if it had most of the invocation.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::{debug, info, warn};

use crate::artifact::decompress;
use crate::clock::Clock;
use crate::error::{ErrorKind, Result, chain};
use crate::model::{ArtifactId, BATCH_BYTES_MAX, Phase};
use crate::record::{Attachment, Record};
use crate::store::{Pending, Run, Settling, UNSETTLED_MAX};

use super::answer::{Ending, Outcome, Said, failed};
use super::event::Event;
use super::extractor::{AttachmentError, Extractor};
use super::keeper::Keeper;
use super::lanes::{Lanes, guarded};
use super::outbox::{Outbox, Trouble};
use super::platform::{Body, Fate, Platform, PlatformError, Upload};
use super::retry::{TRIES, back_off, millis};
use super::serve::{Context, Invocation, caught};

/// The item type of the lines that say which attachments were uploaded.
const LINES: &str = "ssor_attachment";
/// Bytes of a file that the platform takes.
const BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Uploads after which a checkpoint is to be saved.
const SAVE_UPLOADS: usize = 200;
/// Refusals and failures of the platform, one after the other, from which on it is not about the attachments.
const FAILURES_IN_A_ROW: u32 = 20;
/// How long the loop waits for a stream before it looks at the rest.
const POLL: Duration = Duration::from_millis(50);

impl Invocation<'_> {
    /// Streams the attachments that the data phase queued, and answers: while the lanes are there, so that a stream which
    /// cannot be aborted does not keep the answer back.
    pub(super) fn attachments<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
        keeper: Option<&Keeper<'_>>,
        mut outbox: Outbox<'_>,
        said: &Said,
    ) -> Result<Outcome> {
        let run = context.run;
        let early = match run.delay_left_seconds()? {
            Some(seconds) => Some(Ending::Delay { seconds, asked: false }),
            None => self.rebuild_queue(context)?,
        };
        if let Some(ending) = early {
            return self.settle(run, keeper, Phase::Attachments, outbox, Ok(ending), said);
        }
        let hard = self.hard_at();
        // What is left after it is for the last batch, the confirms and the message.
        let abort_at = context.soft_at + hard.saturating_sub(context.soft_at).mul_f64(0.75);
        let settings = StreamSettings {
            streams_max: self.settings.streams,
            tries_max: self.settings.attachment_tries,
            seed: self.seed,
            soft: context.soft_at,
            hard,
            saves: keeper.is_some(),
        };
        let attempt = |job: &StreamJob| attempt(extractor, context, self.platform, self.clock, abort_at, job);
        let work_off = |lanes: Lanes<'_, StreamJob, StreamDone>| {
            let ending = Streams::new(self.event, run, self.clock, lanes, settings).work_off(&mut outbox);
            self.settle(run, keeper, Phase::Attachments, outbox, ending, said)
        };
        match self.settings.inline_seed {
            Some(seed) => work_off(Lanes::inline(&attempt, seed)),
            None => std::thread::scope(|scope| work_off(Lanes::pool(scope, &attempt, self.settings.streams))),
        }
    }

    /// Makes the queue of attachments again, where a checkpoint or a state of the TypeScript SDK brought the run back,
    /// from the artifacts that announced them. Says how the invocation ends, if it cannot go on.
    fn rebuild_queue(&self, context: &Context<'_>) -> Result<Option<Ending>> {
        let inherited = context.run.sdk_attachments()?.unwrap_or_default();
        context.run.inherit_files(&inherited.artifact_ids)?;
        for (seq, artifact) in context.run.files_to_load()? {
            if context.time_left().is_zero() {
                return Ok(Some(Ending::Progress));
            }
            let loaded = self.attempt(|| self.platform.download(&artifact)).and_then(|member| {
                let mut lines = Vec::new();
                decompress(&member, 2 * BATCH_BYTES_MAX, &mut lines).map_err(|error| error.to_string())?;
                Ok(lines)
            });
            let load = |lines: Vec<u8>| {
                context.run.load_file(seq, &lines, |place, at, attachment| {
                    inherited.is_settled(place, at, attachment)
                })
            };
            let reason = match loaded.map(load) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) if error.kind() == ErrorKind::Invalid => chain(&error),
                Ok(Err(error)) => return Err(error),
                Err(reason) => reason,
            };
            let unit = context.run.sync_unit();
            let what = format!("artifact {artifact}, which names attachments of {unit}, cannot be read back");
            return Ok(Some(failed(&format!("{what}: {reason}"))));
        }
        context.run.queue_rebuilt()?;
        Ok(None)
    }
}

struct StreamJob {
    number: u64,
    call: StreamCall,
}

enum StreamCall {
    Upload(Attachment),
    Confirm(ArtifactId),
}

/// What came of one attempt.
struct StreamDone {
    number: u64,
    result: Result<Option<ArtifactId>, Failure>,
}

enum Failure {
    Source(AttachmentError),
    Body(Flaw),
    Platform(PlatformError),
}

/// What was wrong with the bytes of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Flaw {
    Empty,
    TooLarge,
    Shorter { declared: u64, found: u64 },
    Longer { declared: u64 },
    Broken(String),
    Aborted,
}

impl Flaw {
    fn text(&self) -> String {
        match self {
            Flaw::Empty => "it is empty".to_owned(),
            Flaw::TooLarge => format!("it is over {BYTES_MAX} bytes, the most that the platform takes"),
            Flaw::Shorter { declared, found } => {
                format!("it ended after {found} bytes, of {declared} that were declared")
            }
            Flaw::Longer { declared } => format!("it goes on after the {declared} bytes that were declared"),
            Flaw::Broken(reason) => format!("it broke off: {reason}"),
            Flaw::Aborted => "the invocation ended before it did".to_owned(),
        }
    }
}

/// Makes one attempt at a stream or its confirm.
fn attempt<E: Extractor>(
    extractor: &E,
    context: &Context<'_>,
    platform: &dyn Platform,
    clock: &dyn Clock,
    abort_at: Duration,
    job: &StreamJob,
) -> StreamDone {
    let result = match &job.call {
        StreamCall::Confirm(artifact) => {
            guarded(|| platform.confirm(artifact)).map(|()| None).map_err(Failure::Platform)
        }
        StreamCall::Upload(attachment) => {
            stream(extractor, context, platform, clock, abort_at, attachment).map(Some)
        }
    };
    StreamDone { number: job.number, result }
}

fn stream<E: Extractor>(
    extractor: &E,
    context: &Context<'_>,
    platform: &dyn Platform,
    clock: &dyn Clock,
    abort_at: Duration,
    attachment: &Attachment,
) -> Result<ArtifactId, Failure> {
    let opened = caught(|| extractor.open_attachment(context, attachment));
    let body = opened.map_err(Failure::Source)?;
    match body.length_bytes {
        Some(0) => return Err(Failure::Body(Flaw::Empty)),
        Some(bytes) if bytes > BYTES_MAX => return Err(Failure::Body(Flaw::TooLarge)),
        _ => {}
    }
    let content_type = body.content_type.as_deref().or(attachment.content_type.as_deref());
    let mut reader =
        Watched { reader: body.reader, declared: body.length_bytes, found: 0, clock, abort_at, flaw: None };
    let uploaded = guarded(|| {
        platform.upload(Upload {
            file_name: &attachment.file_name,
            content_type: content_type.unwrap_or("application/octet-stream"),
            body: Body::Stream { reader: &mut reader, length_bytes: body.length_bytes },
        })
    });
    match reader.flaw {
        Some(flaw) => Err(Failure::Body(flaw)),
        None => uploaded.map_err(Failure::Platform),
    }
}

/// The bytes of a stream, watched while the platform reads them: what is wrong with them is an error of the read, so
/// that nothing is uploaded that would have to be taken back.
struct Watched<'a> {
    reader: Box<dyn Read + Send>,
    declared: Option<u64>,
    found: u64,
    clock: &'a dyn Clock,
    abort_at: Duration,
    flaw: Option<Flaw>,
}

impl Watched<'_> {
    fn read_on(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        if self.clock.elapsed() >= self.abort_at {
            return Err(Flaw::Aborted);
        }
        let broken = |error: io::Error| Flaw::Broken(error.to_string());
        let count = read(self.reader.as_mut(), buffer).map_err(broken)?;
        self.found += count as u64;
        match self.declared {
            _ if buffer.is_empty() => {}
            Some(declared) if self.found > declared => return Err(Flaw::Longer { declared }),
            Some(declared) if count == 0 && self.found < declared => {
                return Err(Flaw::Shorter { declared, found: self.found });
            }
            // Who knows the length may not read past it, so that is looked at before the last bytes are handed over.
            Some(declared)
                if count > 0
                    && self.found == declared
                    && read(self.reader.as_mut(), &mut [0]).map_err(broken)? > 0 =>
            {
                return Err(Flaw::Longer { declared });
            }
            None if count == 0 && self.found == 0 => return Err(Flaw::Empty),
            None if self.found > BYTES_MAX => return Err(Flaw::TooLarge),
            _ => {}
        }
        Ok(count)
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(flaw) = &self.flaw {
            return Err(io::Error::other(flaw.text()));
        }
        self.read_on(buffer).map_err(|flaw| {
            let error = io::Error::other(flaw.text());
            self.flaw = Some(flaw);
            error
        })
    }
}

fn read(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A reader that says more than it was asked for is not believed.
            Ok(count) if count > buffer.len() => return Err(io::Error::other("it read more than asked for")),
            result => return result,
        }
    }
}

/// How attachments are streamed.
struct StreamSettings {
    streams_max: usize,
    tries_max: u32,
    seed: u64,
    /// Elapsed times: after which no stream begins, and no retry of a call.
    soft: Duration,
    hard: Duration,
    /// Only what a saved checkpoint names is confirmed.
    saves: bool,
}

/// The attachments that are on their way in one invocation.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Streams<'a> {
    event: &'a Event,
    run: &'a Run,
    clock: &'a dyn Clock,
    lanes: Lanes<'a, StreamJob, StreamDone>,
    settings: StreamSettings,
    chance: fastrand::Rng,
    tasks: BTreeMap<u64, Task>,
    in_flight: usize,
    /// Read from the queue and not begun; from `next` on nothing was read.
    upcoming: VecDeque<Pending>,
    next: u64,
    started: Duration,
    /// There is nothing from `next` on.
    over: bool,
    /// None of this number or a higher one was begun.
    position: u64,
    begun_any: bool,
    /// It was said that the soft deadline is over.
    late: bool,
    uploaded_any: bool,
    failures_in_a_row: u32,
    /// What came to an end and is not stored.
    settled: Vec<(u64, Settling)>,
    asked_to_wait: Option<Duration>,
    trouble: Option<String>,
    full: bool,
}

struct Task {
    attachment: Attachment,
    step: Step,
    given_up: u32,
    /// Failures that count against it, in all lives; and those of its present call.
    tries: u32,
    call_tries: u32,
    ready_at: Duration,
    begun_at: Duration,
    in_flight: bool,
}

enum Step {
    Upload,
    Confirm {
        artifact: ArtifactId,
        /// An attempt was made whose fate is not known.
        unknown: bool,
        /// It may be made: its id is stored, and named by a saved checkpoint where there are any.
        allowed: bool,
    },
}

impl<'a> Streams<'a> {
    fn new(
        event: &'a Event,
        run: &'a Run,
        clock: &'a dyn Clock,
        lanes: Lanes<'a, StreamJob, StreamDone>,
        settings: StreamSettings,
    ) -> Self {
        Self {
            event,
            run,
            clock,
            lanes,
            chance: fastrand::Rng::with_seed(settings.seed),
            settings,
            tasks: BTreeMap::new(),
            in_flight: 0,
            upcoming: VecDeque::new(),
            next: 0,
            started: clock.elapsed(),
            over: false,
            position: 0,
            begun_any: false,
            late: false,
            uploaded_any: false,
            failures_in_a_row: 0,
            settled: Vec::new(),
            asked_to_wait: None,
            trouble: None,
            full: false,
        }
    }

    /// Works off the queue, until it is empty or there is a reason to stop. What was uploaded is confirmed, if that can
    /// be had at all; what is still running when the invocation has to end is left to the next.
    fn work_off(&mut self, outbox: &mut Outbox<'_>) -> Result<Ending> {
        loop {
            outbox.step()?;
            self.full |= outbox.message_full();
            let stopped = self.stopped(outbox);
            if self.is_late() && !std::mem::replace(&mut self.late, true) {
                info!(unsettled = self.tasks.len(), "deadline reached");
            }
            if !stopped {
                self.take_up()?;
            }
            self.start(stopped);
            if self.in_flight > 0 {
                self.gather();
                self.commit(outbox)?;
                if self.unsaved() >= SAVE_UPLOADS || (self.unsaved() > 0 && outbox.save_due()) {
                    self.save(outbox)?;
                }
                if self.in_flight > 0 && self.clock.elapsed() >= self.settings.hard {
                    return Ok(self.end(outbox));
                }
            } else if self.unsaved() > 0 {
                if !self.save(outbox)? {
                    return Ok(self.end(outbox));
                }
            } else if let Some(ready_at) = self.next_ready(stopped)
                && ready_at < self.settings.hard
            {
                self.clock.sleep(ready_at.saturating_sub(self.clock.elapsed()));
            } else if stopped || !self.tasks.is_empty() {
                return Ok(self.end(outbox));
            } else if self.run.take_up_requeued()? == 0 {
                return Ok(Ending::Done);
            }
        }
    }

    fn end(&self, outbox: &Outbox<'_>) -> Ending {
        match (&self.trouble, outbox.trouble(), self.asked_to_wait) {
            (Some(reason), ..) | (None, Some(Trouble::Failed(reason)), _) => failed(reason),
            (_, Some(Trouble::AskedToWait(outbox)), streams) => {
                Ending::asked_to_wait((*outbox).max(streams.unwrap_or_default()))
            }
            (_, _, Some(wait)) => Ending::asked_to_wait(wait),
            (None, None, None) => self.idle().map_or(Ending::Progress, Ending::asked_to_wait),
        }
    }

    /// How long there is nothing to do but to wait; none if there is something.
    fn idle(&self) -> Option<Duration> {
        let more = !self.upcoming.is_empty() || (!self.over && self.tasks.len() < UNSETTLED_MAX);
        let ready_at = self.tasks.values().map(|task| task.ready_at).min()?;
        let wait = ready_at.saturating_sub(self.clock.elapsed());
        (!more && !self.full && !wait.is_zero()).then_some(wait)
    }

    /// Whether no stream may begin.
    fn stopped(&self, outbox: &Outbox<'_>) -> bool {
        self.full
            || self.trouble.is_some()
            || self.asked_to_wait.is_some()
            || outbox.trouble().is_some()
            || self.is_late()
    }

    /// Whether the soft deadline is over, for all but the first stream.
    fn is_late(&self) -> bool {
        self.begun_any && self.clock.elapsed() >= self.settings.soft
    }

    /// Takes attachments out of the queue, as many as the lanes can soon take.
    fn take_up(&mut self) -> Result<()> {
        let now = self.clock.elapsed();
        let mut ready = self.tasks.values().filter(|task| task.ready_at <= now).count();
        while ready < self.settings.streams_max && self.tasks.len() < UNSETTLED_MAX {
            if self.upcoming.is_empty() {
                self.upcoming.extend(self.run.pending(self.next)?);
            }
            self.over = self.upcoming.is_empty();
            let Some(pending) = self.upcoming.pop_front() else { break };
            self.next = pending.number + 1;
            self.position = self.next;
            ready += usize::from(pending.wait.is_zero());
            let step = match pending.artifact {
                None => Step::Upload,
                Some((artifact, earlier)) => {
                    let allowed = pending.saved || !self.settings.saves;
                    Step::Confirm { artifact, unknown: earlier, allowed }
                }
            };
            let task = Task {
                attachment: pending.attachment,
                step,
                given_up: pending.given_up,
                tries: pending.tries,
                call_tries: 0,
                ready_at: now.saturating_add(pending.wait),
                begun_at: now,
                in_flight: false,
            };
            self.tasks.insert(pending.number, task);
        }
        Ok(())
    }

    /// Begins what may begin. Confirms go on when no stream may.
    fn start(&mut self, stopped: bool) {
        let now = self.clock.elapsed();
        for (&number, task) in &mut self.tasks {
            if self.in_flight >= self.settings.streams_max {
                break;
            }
            if task.in_flight || task.ready_at > now {
                continue;
            }
            let call = match &task.step {
                Step::Upload if stopped => continue,
                Step::Upload => StreamCall::Upload(task.attachment.clone()),
                Step::Confirm { allowed: false, .. } => continue,
                Step::Confirm { artifact, .. } => StreamCall::Confirm(artifact.clone()),
            };
            self.begun_any = true;
            task.in_flight = true;
            task.begun_at = now;
            task.call_tries += 1;
            self.in_flight += 1;
            self.lanes.submit(StreamJob { number, call });
        }
    }

    /// When the next thing that waits is due; none if nothing waits that may still begin.
    fn next_ready(&self, stopped: bool) -> Option<Duration> {
        let waits = |task: &&Task| match task.step {
            Step::Upload => !stopped,
            Step::Confirm { allowed, .. } => allowed,
        };
        let ready_at = self.tasks.values().filter(waits).map(|task| task.ready_at).min()?;
        // The soft deadline is a reason to look again, once a stream was begun.
        Some(if stopped || !self.begun_any { ready_at } else { ready_at.min(self.settings.soft) })
    }

    /// Uploads that no saved checkpoint names.
    fn unsaved(&self) -> usize {
        let waits = |task: &&Task| matches!(task.step, Step::Confirm { allowed: false, .. });
        self.tasks.values().filter(waits).count()
    }

    /// Takes in what has come to an end: waits for the first, not for the others.
    fn gather(&mut self) {
        let mut wait = POLL;
        while self.in_flight > 0
            && let Some(done) = self.lanes.poll(wait)
        {
            self.settle(done);
            wait = Duration::ZERO;
        }
    }

    /// Stores what has come to an end.
    fn commit(&mut self, outbox: &mut Outbox<'_>) -> Result<()> {
        if self.settled.is_empty() {
            return Ok(());
        }
        let group = std::mem::take(&mut self.settled);
        outbox.add(self.run.settle_attachments(group, LINES, self.position)?);
        if !self.settings.saves {
            self.allow();
        }
        Ok(())
    }

    /// Saves a checkpoint that names what is uploaded. Says whether one could be saved.
    fn save(&mut self, outbox: &mut Outbox<'_>) -> Result<bool> {
        let saved = outbox.save()?;
        if saved {
            self.allow();
        }
        Ok(saved)
    }

    fn allow(&mut self) {
        for task in self.tasks.values_mut() {
            if let Step::Confirm { allowed, .. } = &mut task.step {
                *allowed = true;
            }
        }
    }

    fn settle(&mut self, done: StreamDone) {
        self.in_flight -= 1;
        let number = done.number;
        let Some(mut task) = self.tasks.remove(&number) else { return };
        task.in_flight = false;
        match (task.step, done.result) {
            (Step::Upload, Ok(Some(artifact))) => {
                self.uploaded_any = true;
                self.failures_in_a_row = 0;
                debug!(attachment = task.attachment.id, artifact = artifact.as_str(), "attachment uploaded");
                self.settled.push((number, Settling::Uploaded(artifact.clone())));
                task.step = Step::Confirm { artifact, unknown: false, allowed: false };
                task.call_tries = 0;
                self.tasks.insert(number, task);
            }
            (Step::Confirm { artifact, .. }, Ok(_)) => match line(&task.attachment, &artifact) {
                Ok(line) => {
                    debug!(
                        attachment = task.attachment.id,
                        artifact = artifact.as_str(),
                        "attachment settled"
                    );
                    self.settled.push((number, Settling::Settled(Some(line))));
                }
                Err(error) => self.give_up(number, &task.attachment, task.tries, &chain(&error)),
            },
            (Step::Confirm { artifact, unknown, allowed }, Err(Failure::Platform(error))) => {
                self.confirm_failed(
                    number,
                    Task { step: Step::Upload, ..task },
                    artifact,
                    unknown,
                    allowed,
                    error,
                );
            }
            (Step::Upload, Err(failure)) => {
                self.upload_failed(number, Task { step: Step::Upload, ..task }, failure);
            }
            // An upload says its artifact, and a confirm does not ask the source.
            (Step::Upload, Ok(None)) | (Step::Confirm { .. }, Err(_)) => {}
        }
    }

    fn upload_failed(&mut self, number: u64, task: Task, failure: Failure) {
        match failure {
            Failure::Source(AttachmentError::RateLimited { after }) => {
                self.asked_to_wait = self.asked_to_wait.max(Some(after));
            }
            Failure::Source(AttachmentError::Gone { reason }) => {
                self.give_up(number, &task.attachment, task.tries, &format!("gone: {reason}"));
            }
            Failure::Source(AttachmentError::Denied { reason }) => {
                self.give_up(number, &task.attachment, task.tries, &format!("denied: {reason}"));
            }
            Failure::Source(AttachmentError::Temporary { source }) => {
                self.count(number, task, &chain(source.as_ref()));
            }
            // Who had most of an invocation, and did not come to an end, would have no more of the next.
            Failure::Body(flaw @ Flaw::Aborted) => {
                let now = self.clock.elapsed();
                if now.saturating_sub(task.begun_at) * 2 >= now.saturating_sub(self.started) {
                    self.count(number, task, &flaw.text());
                }
            }
            Failure::Body(flaw @ (Flaw::Empty | Flaw::TooLarge)) => {
                self.give_up(number, &task.attachment, task.tries, &flaw.text());
            }
            Failure::Body(flaw) => self.count(number, task, &flaw.text()),
            Failure::Platform(error) => {
                self.failures_in_a_row += 1;
                let reason = format!("the upload failed: {error}");
                let (after, refused) = match &error {
                    PlatformError::Retry { after, .. } => (*after, false),
                    PlatformError::StorageRefused { after, .. } => (*after, true),
                    PlatformError::Refused { .. } => (None, true),
                };
                // Nothing is wrong with what is only to be sent later.
                let counts = (self.uploaded_any || refused) && after.is_none();
                if self.failures_in_a_row >= FAILURES_IN_A_ROW || (!counts && task.call_tries >= TRIES) {
                    self.trouble.get_or_insert(format!(
                        "the upload of attachment {} of {} failed, as did {} before it: {error}",
                        task.attachment.id,
                        self.run.sync_unit(),
                        self.failures_in_a_row - 1
                    ));
                } else if counts {
                    self.count(number, task, &reason);
                } else {
                    self.again(number, task, after, &error.to_string());
                }
            }
        }
    }

    fn confirm_failed(
        &mut self,
        number: u64,
        mut task: Task,
        artifact: ArtifactId,
        unknown: bool,
        allowed: bool,
        error: PlatformError,
    ) {
        match error {
            PlatformError::Refused { status, reason } if !unknown && task.given_up == 0 => {
                self.settled.push((number, Settling::GivenUp));
                task.given_up += 1;
                self.again(number, task, None, &format!("refused with {status}: {reason}"));
            }
            PlatformError::Refused { status, reason } => {
                let history = if unknown {
                    "an earlier attempt may have taken effect, so it is not uploaded again"
                } else {
                    "as was that of the upload before it"
                };
                let reason = format!(
                    "the confirm of artifact {artifact} was refused with {status}: {reason}; {history}"
                );
                self.give_up(number, &task.attachment, task.tries, &reason);
            }
            PlatformError::StorageRefused { .. } | PlatformError::Retry { .. } => {
                let (fate, after) = match &error {
                    PlatformError::Retry { fate, after, .. } => (*fate, *after),
                    _ => (Fate::NotApplied, None),
                };
                let reason = error.to_string();
                let unknown = unknown || fate == Fate::Unknown;
                task.step = Step::Confirm { artifact, unknown, allowed };
                if task.call_tries >= TRIES {
                    self.trouble.get_or_insert(format!(
                        "the confirm of attachment {} of {} failed {TRIES} times: {reason}",
                        task.attachment.id,
                        self.run.sync_unit()
                    ));
                } else {
                    self.again(number, task, after, &reason);
                }
            }
        }
    }

    /// The reason is stored and listed, and may be what the source said.
    fn give_up(&mut self, number: u64, attachment: &Attachment, tries: u32, reason: &str) {
        warn!(attachment = attachment.id, tries, "attachment given up");
        self.settled.push((number, Settling::Failed(self.event.hide_secrets(reason))));
    }

    /// Counts a failure against an attachment: it is tried again, or given up.
    fn count(&mut self, number: u64, mut task: Task, reason: &str) {
        task.tries += 1;
        if task.tries >= self.settings.tries_max {
            self.give_up(number, &task.attachment, task.tries, reason);
            return;
        }
        let wait = back_off(task.tries, None, &mut self.chance);
        warn!(
            attachment = task.attachment.id,
            tries = task.tries,
            wait_ms = millis(wait),
            "attachment is tried again"
        );
        let reason = self.event.hide_secrets(reason);
        self.settled.push((number, Settling::Retry { reason, wait }));
        task.call_tries = 0;
        task.ready_at = self.clock.elapsed().saturating_add(wait);
        self.tasks.insert(number, task);
    }

    /// Makes the call again after a while, unless that is after the invocation. `reason`: what the platform said.
    fn again(&mut self, number: u64, mut task: Task, after: Option<Duration>, reason: &str) {
        let wait = back_off(task.call_tries.max(1), after, &mut self.chance);
        warn!(
            attachment = task.attachment.id,
            tries = task.call_tries,
            wait_ms = millis(wait),
            reason,
            "call about an attachment is tried again"
        );
        task.ready_at = self.clock.elapsed().saturating_add(wait);
        if task.ready_at < self.settings.hard {
            self.tasks.insert(number, task);
        } else {
            self.full = true;
            self.asked_to_wait = self.asked_to_wait.max(after);
        }
    }
}

/// What is announced of an attachment.
fn line(attachment: &Attachment, artifact: &ArtifactId) -> Result<Record> {
    let mut line = Map::new();
    line.insert("id".to_owned(), json!({ "devrev": artifact.as_str(), "external": attachment.id }));
    line.insert("parent_id".to_owned(), json!({ "external": attachment.parent_id }));
    if let Some(author) = &attachment.author_id {
        line.insert("actor_id".to_owned(), json!({ "external": author }));
    }
    if let Some(inline) = attachment.inline {
        line.insert("inline".to_owned(), Value::Bool(inline));
    }
    Record::flat(&line)
}
