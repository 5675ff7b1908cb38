//! The attachments phase: processes the queue that the data phase left, and decides what a failure means.
//!
//! How an attachment gets to the platform, and what is stored when, is decided in `delivery`. This module decides when
//! each one begins, and what to do if one could not be uploaded:
//! - A failure of the source counts against the attachment; after several, it is given up and listed. If the failure
//!   cannot change (gone, denied, empty, too large), it is given up at once.
//! - A failure of the platform counts against the attachment only if another one succeeded in this invocation. If
//!   none does, the platform is at fault: the phase ends with an error and gives nothing up.
//! - If the source asks for a short wait, the attachment is tried again after it, and others go on meanwhile. For a
//!   longer wait, the phase ends with a delay: the longest that was asked for.
//! - After the soft deadline no attachment begins, except the first: it always does, however long the invocation
//!   waited before, and however long the queue took to rebuild. A stream is aborted before the hard deadline; that
//!   counts against the attachment only if it had most of the invocation.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::info;

use crate::artifact::decompress;
use crate::clock::{Clock, in_words};
use crate::error::{ErrorKind, Result, chain};
use crate::model::{ArtifactId, BATCH_BYTES_MAX, Phase};
use crate::store::{Pending, Run, UNSETTLED_MAX};

use super::answer::{MessageDetails, Outcome};
use super::attempt::{Attempt, AttemptResult, attempt};
use super::body::{Failure, Flaw, upload_attachment};
use super::context::Context;
use super::deadlines::Deadlines;
use super::delivery::{Delivery, Halt, POLL};
use super::event::Event;
use super::extractor::caught;
use super::in_flight::UploadNo;
use super::invocation::{Ending, Invocation, Stop};
use super::json_cursors::AnyExtractor;
use super::keeper::Keeper;
use super::lanes::Lanes;
use super::platform::{Fate, PlatformError};
use super::retry::{ShortWaits, TRIES};
use super::source_error::AttachmentError;

/// Refusals and failures of the platform in a row after which the platform counts as failing, not the attachments.
const FAILURES_IN_A_ROW: u32 = 20;

/// Invocations in a row that had no time to rebuild the queue and made no progress over the one before, after which
/// the platform gets an error.
const REMAKE_CUTS_MAX: u32 = 3;

/// The note that keeps a [`RemakeCut`].
const REMAKE_CUT: &str = "queue-remake-cut";

/// A record that there was no time to rebuild the queue: the fewest artifacts left to read so far, and the number of
/// invocations since then, including that one, that made no progress. It is kept with the checkpoint, which has no
/// room for the artifacts' lines.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RemakeCut {
    left: usize,
    times: u32,
}

impl Invocation<'_> {
    /// Streams the attachments that the data phase queued, and answers. The lanes still exist then, so a stream that
    /// cannot be aborted does not delay the answer.
    pub(super) fn attachments(
        &self,
        extractor: &AnyExtractor<'_>,
        context: &Context,
        keeper: Option<&Keeper<'_>>,
        delivery: Delivery<'_>,
        details: &MessageDetails,
    ) -> Result<Outcome> {
        let run = &*context.run;
        if let Err(stop) = self.take_up_queue(context) {
            return self.conclude(run, keeper, Phase::Attachments, delivery, Err(stop), details);
        }
        let at_once = self.settings.attachments_at_once;
        let settings = QueueSettings {
            at_once,
            tries_max: self.settings.attachment_tries,
            wait_up_to: self.settings.wait_up_to,
            deadlines: &self.deadlines,
        };
        let upload = |attachment: &_| {
            let open = || caught(|| extractor.open_attachment(context, attachment));
            upload_attachment(attachment, open, self.platform, self.clock, &self.deadlines)
        };
        let in_place = || self.store.ensure_in_place();
        let attempt =
            |call: Attempt, _: &(dyn Fn(_) + Sync)| attempt(self.platform, in_place, Some(&upload), &call);
        let work_off = |lanes: Lanes<'_, Attempt, Result<AttemptResult>>| {
            let mut delivery = delivery.in_lanes(lanes);
            let worked = Queue::new(self.event, run, self.clock, &mut delivery, settings).work_off();
            delivery.leave_attachments();
            self.conclude(run, keeper, Phase::Attachments, delivery, worked, details)
        };
        match self.settings.inline_seed {
            Some(seed) => work_off(Lanes::inline(&attempt, seed)),
            None => std::thread::scope(|scope| {
                work_off(Lanes::pool(scope, &attempt, &[self.settings.lanes + at_once]))
            }),
        }
    }

    /// Makes the queue of attachments ready. If a checkpoint or a state of the TypeScript SDK restored the run, it is
    /// rebuilt from the artifacts that announced them.
    fn take_up_queue(&self, context: &Context) -> Result<(), Stop> {
        if let Some(seconds) = context.run.delay_left_seconds()? {
            return Err(Ending::Delay { seconds, asked: false }.into());
        }
        let inherited = context.run.sdk_attachments()?.unwrap_or_default();
        context.run.inherit_files(&inherited.artifact_ids)?;
        let files = context.run.files_to_load()?;
        for (read, (seq, artifact)) in files.iter().enumerate() {
            if self.deadlines.is_stopped() {
                return Err(Ending::Progress.into());
            }
            if self.clock.elapsed() >= self.deadlines.abort_at() {
                return Err(self.remake_cut(&context.run, read, files.len())?);
            }
            let unreadable = |reason: &str| {
                let unit = context.run.sync_unit();
                let what = format!("artifact {artifact} with attachments of {unit} cannot be read");
                format!("{what}: {reason}")
            };
            let lines = self
                .attempt(|| self.lines_of(artifact))
                .map_err(|gave_up| self.gave_up(&gave_up, |reason| unreadable(&reason.to_string())))?;
            context.run.load_file(*seq, &lines, |place, at, line| inherited.judge(place, at, line)).map_err(
                |error| match error.kind() {
                    ErrorKind::Invalid => Stop::failed(&unreadable(&chain(&error))),
                    _ => error.into(),
                },
            )?;
        }
        context.run.queue_rebuilt()?;
        if !files.is_empty() && self.clock.elapsed() >= self.deadlines.abort_at() {
            // The queue is complete, but no attachment may begin any more.
            return Err(self.remake_cut(&context.run, files.len(), files.len())?);
        }
        if context.run.note::<RemakeCut>(REMAKE_CUT)?.is_some_and(|cut| cut.times > 0) {
            context.run.set_note(REMAKE_CUT, &RemakeCut::default())?;
        }
        Ok(())
    }

    /// How an invocation ends whose time was over after reading `read` of `files` artifacts to rebuild the queue. If
    /// the disk survives, the next invocation goes on from here. If not, it starts over; after [`REMAKE_CUTS_MAX`]
    /// invocations without progress the platform gets an error, or it would send CONTINUE forever.
    fn remake_cut(&self, run: &Run, read: usize, files: usize) -> Result<Stop> {
        if read == 0 {
            // Its time was already over: that says nothing about how long the artifacts take.
            return Ok(Ending::Progress.into());
        }
        let before = run.note::<RemakeCut>(REMAKE_CUT)?.unwrap_or_default();
        let left = files - read;
        let further = before.times == 0 || left < before.left;
        let cut = if further {
            RemakeCut { left, times: 1 }
        } else {
            RemakeCut { left: before.left, times: before.times.saturating_add(1) }
        };
        run.set_note(REMAKE_CUT, &cut)?;
        info!(target: "highwater", read, files, times = cut.times, "no time to rebuild the queue of attachments");
        if cut.times < REMAKE_CUTS_MAX {
            return Ok(Ending::Progress.into());
        }
        Ok(Stop::failed(&format!(
            "the queue of attachments of {unit} cannot be rebuilt within one invocation: {read} of {files} artifacts that \
             name them were read in {time}, and each of {times} invocations began with the first, because its disk was empty. \
             Keep the store on a disk that outlives an invocation, or raise the hard limit if the platform gives more time",
            unit = run.sync_unit(),
            time = in_words(self.clock.elapsed().saturating_sub(self.started).as_secs()),
            times = cut.times,
        )))
    }

    /// The lines of an artifact, downloaded once. If a connection ends early without an error, a cut artifact looks
    /// complete until it is decompressed.
    fn lines_of(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        let member = self.platform.download(artifact)?;
        let mut lines = Vec::new();
        decompress(&member, 2 * BATCH_BYTES_MAX, &mut lines).map_err(|error| PlatformError::Retry {
            fate: Fate::NotApplied,
            after: None,
            reason: format!("the download is not a complete gzip member: {error}"),
        })?;
        Ok(lines)
    }
}

struct QueueSettings<'q> {
    at_once: usize,
    tries_max: u32,
    wait_up_to: Duration,
    deadlines: &'q Deadlines,
}

/// The queue of attachments, as one invocation processes it.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Queue<'q, 'a> {
    event: &'q Event,
    run: &'q Run,
    clock: &'q dyn Clock,
    delivery: &'q mut Delivery<'a>,
    settings: QueueSettings<'q>,
    /// Read from the queue and not begun; nothing was read from `next` on.
    upcoming: VecDeque<Pending>,
    next: u64,
    /// There is nothing from `next` on.
    over: bool,
    started: Duration,
    begun_any: bool,
    /// The soft deadline was logged.
    late: bool,
    /// Whether the platform accepted any, and how often it has failed since.
    uploaded_any: bool,
    failures_in_a_row: u32,
    /// The longest wait that the source asked for.
    asked_to_wait: Option<Duration>,
    /// Attachments for which the source asked for a short wait.
    waits: BTreeMap<u64, ShortWaits>,
    /// Why nothing more is uploaded: the platform accepts none.
    platform_failure: Option<String>,
}

impl<'q, 'a> Queue<'q, 'a> {
    fn new(
        event: &'q Event,
        run: &'q Run,
        clock: &'q dyn Clock,
        delivery: &'q mut Delivery<'a>,
        settings: QueueSettings<'q>,
    ) -> Self {
        Self {
            event,
            run,
            clock,
            delivery,
            settings,
            upcoming: VecDeque::new(),
            next: 0,
            over: false,
            started: clock.elapsed(),
            begun_any: false,
            late: false,
            uploaded_any: false,
            failures_in_a_row: 0,
            asked_to_wait: None,
            waits: BTreeMap::new(),
            platform_failure: None,
        }
    }

    /// Processes the queue until it is empty or there is a reason to stop. What was uploaded is confirmed, if
    /// possible; what still runs when the invocation must end is left to the next one.
    fn work_off(mut self) -> Result<(), Stop> {
        loop {
            let stopped = self.begin()?;
            if self.take_in()? {
                if self.delivery.unsaved_attachments() > 0 && self.delivery.save_due() {
                    self.delivery.save()?;
                }
                let deadlines = self.settings.deadlines;
                let leave_at = deadlines.leave_at().unwrap_or_else(|| deadlines.hard_at());
                if self.delivery.attachments_in_flight() > 0 && self.clock.elapsed() >= leave_at {
                    return Err(self.ending().into());
                }
            } else if self.delivery.unsaved_attachments() > 0 {
                if !self.delivery.save()? {
                    return Err(self.ending().into());
                }
            } else if let Some(ready_at) = self.next_ready(stopped)
                && ready_at < self.settings.deadlines.hard_at()
            {
                self.settings.deadlines.sleep(ready_at.saturating_sub(self.clock.elapsed()));
            } else if stopped || self.delivery.attachments() > 0 {
                return Err(self.ending().into());
            } else if self.run.take_up_requeued(self.delivery.keeps_checkpoints())? == 0 {
                return Ok(());
            }
        }
    }

    /// Begins what may begin. Returns whether no attachment may.
    fn begin(&mut self) -> Result<bool> {
        self.delivery.step()?;
        let stopped = self.is_stopped();
        if self.is_late() && !std::mem::replace(&mut self.late, true) {
            info!(target: "highwater", unsettled = self.delivery.attachments(), "deadline reached");
        }
        if !stopped {
            self.take_up()?;
        }
        self.begun_any |= self.delivery.start_attachments(!stopped);
        Ok(stopped)
    }

    /// Handles and stores the attachments that ended. Returns whether there were any, or may be.
    fn take_in(&mut self) -> Result<bool> {
        let in_flight = self.delivery.attachments_in_flight() > 0;
        self.delivery.gather(if in_flight { POLL } else { Duration::ZERO })?;
        let attempted = self.delivery.take_attempted();
        let any = in_flight || !attempted.is_empty();
        for (number, result) in attempted {
            match result {
                Ok(()) => {
                    self.waits.remove(&number);
                    self.uploaded_any = true;
                    self.failures_in_a_row = 0;
                }
                Err(failure) => self.judge(number, failure),
            }
        }
        self.delivery.commit()?;
        Ok(any)
    }

    fn ending(&self) -> Ending {
        match (&self.platform_failure, self.delivery.halt(), self.asked_to_wait) {
            (Some(reason), ..) | (None, Some(Halt::Failed(reason)), _) => Ending::failed(reason),
            (_, Some(Halt::AskedToWait(platform)), source) => {
                Ending::asked_to_wait((*platform).max(source.unwrap_or_default()))
            }
            (_, _, Some(wait)) => Ending::asked_to_wait(wait),
            (None, None, None) => self.idle().map_or(Ending::Progress, Ending::asked_to_wait),
        }
    }

    /// How long there is nothing to do but wait; `None` if there is something.
    fn idle(&self) -> Option<Duration> {
        let more = !self.upcoming.is_empty() || (!self.over && self.delivery.attachments() < UNSETTLED_MAX);
        let wait = self.delivery.next_attachment()?.saturating_sub(self.clock.elapsed());
        (!more && !self.is_full() && !wait.is_zero()).then_some(wait)
    }

    /// Whether no attachment may begin.
    fn is_stopped(&self) -> bool {
        self.is_full()
            || self.platform_failure.is_some()
            || self.asked_to_wait.is_some()
            || self.delivery.halt().is_some()
            || self.settings.deadlines.is_stopped()
            || self.is_late()
            // It would be aborted at once.
            || self.clock.elapsed() >= self.settings.deadlines.abort_at()
    }

    /// Whether this invocation can accept no more.
    fn is_full(&self) -> bool {
        self.delivery.message_full() || self.delivery.left_over()
    }

    /// Whether the soft deadline is over, for all but the first attachment.
    fn is_late(&self) -> bool {
        self.begun_any && self.clock.elapsed() >= self.settings.deadlines.soft_at()
    }

    /// Takes attachments out of the queue: as many as the lanes can soon use.
    fn take_up(&mut self) -> Result<()> {
        let mut ready = self.delivery.attachments_ready();
        let mut begun = self.delivery.attachments();
        while ready < self.settings.at_once && begun < UNSETTLED_MAX {
            if self.upcoming.is_empty() {
                self.upcoming.extend(self.run.pending(self.next)?);
            }
            self.over = self.upcoming.is_empty();
            let Some(pending) = self.upcoming.pop_front() else { break };
            self.next = pending.number + 1;
            ready += usize::from(pending.wait.is_zero());
            begun += 1;
            self.delivery.add_attachment(pending);
        }
        Ok(())
    }

    /// When the next waiting attachment is due; `None` if none of them may still begin.
    fn next_ready(&self, stopped: bool) -> Option<Duration> {
        let ready_at = self.delivery.next_attachment_call(!stopped)?;
        // The soft deadline is a reason to check again, once an attachment has begun.
        Some(if stopped || !self.begun_any {
            ready_at
        } else {
            ready_at.min(self.settings.deadlines.soft_at())
        })
    }

    /// Decides what to do about an attachment that could not be uploaded.
    fn judge(&mut self, number: u64, failure: Failure) {
        let reason = self.event.hide_secrets(&failure.to_string());
        match failure {
            Failure::Source(AttachmentError::RateLimited { after }) => {
                let left = self.settings.deadlines.soft_at().saturating_sub(self.clock.elapsed());
                let waits = self.waits.entry(number).or_insert(ShortWaits::new(self.settings.wait_up_to));
                match waits.next(after, left, false) {
                    Ok(wait) => self.delivery.put_off(UploadNo::Attachment(number), wait),
                    Err(wait) => {
                        self.asked_to_wait = self.asked_to_wait.max(Some(wait));
                        self.delivery.leave(UploadNo::Attachment(number));
                    }
                }
            }
            Failure::Body(Flaw::Aborted)
                if self.settings.deadlines.is_stopped() || !self.had_most_of_it(number) =>
            {
                self.delivery.leave(UploadNo::Attachment(number));
            }
            Failure::Source(AttachmentError::Gone { .. } | AttachmentError::Denied { .. })
            | Failure::Body(Flaw::Empty | Flaw::TooLarge)
            | Failure::Final(_) => self.delivery.give_up(number, reason),
            Failure::Source(AttachmentError::Temporary { .. }) | Failure::Body(_) => {
                self.count(number, reason);
            }
            Failure::Platform(error) => self.judge_platform(number, &error, reason),
        }
    }

    /// Whether an attachment took more than half of the invocation so far. If it did not finish in that time, it would
    /// not finish in the next invocation either.
    fn had_most_of_it(&self, number: u64) -> bool {
        let now = self.clock.elapsed();
        let begun_at = self.delivery.attachment(number).map_or(now, |(_, upload)| upload.begun_at);
        now.saturating_sub(begun_at) * 2 >= now.saturating_sub(self.started)
    }

    /// The platform did not accept an attachment: decides whether that is about the attachment or about the platform.
    fn judge_platform(&mut self, number: u64, error: &PlatformError, reason: String) {
        let Some((attachment, upload)) = self.delivery.attachment(number) else { return };
        self.failures_in_a_row += 1;
        let (after, refused) = match error {
            PlatformError::Retry { after, .. } => (*after, false),
            PlatformError::StorageRefused { after, .. } => (*after, true),
            PlatformError::Refused { .. } => (None, true),
        };
        // An attachment that should only be sent later has no fault.
        let counts = (self.uploaded_any || refused) && after.is_none();
        if self.failures_in_a_row >= FAILURES_IN_A_ROW || (!counts && upload.call_tries >= TRIES) {
            self.platform_failure.get_or_insert(format!(
                "the upload of attachment {} of {} failed, as did {} before it: {error}",
                attachment.id,
                self.run.sync_unit(),
                self.failures_in_a_row - 1
            ));
            self.delivery.leave(UploadNo::Attachment(number));
        } else if counts {
            self.count(number, reason);
        } else {
            self.delivery.again(UploadNo::Attachment(number), after, &error.to_string());
        }
    }

    fn count(&mut self, number: u64, reason: String) {
        self.delivery.count(number, reason, self.settings.tries_max);
    }
}
