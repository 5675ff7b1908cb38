//! The attachments phase: works off the queue that the data phase left, and decides what a failure means.
//!
//! How an attachment gets to the platform, and what is stored of it when, is the delivery's. Here it is decided which is
//! begun when, and what is done about one that could not be uploaded:
//! - A failure of the source counts against the attachment; after so many it is given up, and listed. What cannot
//!   change (gone, denied, empty, too large) is given up at once.
//! - A failure of the platform counts against the attachment only if another got through in this invocation; if none
//!   does, it is the platform's, and the phase ends with an error that gives nothing up.
//! - A source that asks to be left alone for a short while is asked again after it, and other attachments go on meanwhile.
//!   For a longer one, the phase ends with a delay: the longest that was asked for.
//! - After the soft deadline no attachment is begun but the first: it always does, however long the invocation waited before,
//!   and however long it took to have the queue ready. One that runs is aborted before the hard one; that counts
//!   against it only if it had most of the invocation, and nobody asked to stop.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::info;

use crate::artifact::decompress;
use crate::clock::Clock;
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
use super::extractor::{AttachmentError, Extractor, caught};
use super::in_flight::UploadNo;
use super::invocation::{Ending, Invocation, Stop};
use super::keeper::Keeper;
use super::lanes::Lanes;
use super::platform::{Fate, PlatformError};
use super::retry::{ShortWaits, TRIES};

/// Refusals and failures of the platform, one after the other, from which on it is not about the attachments.
const FAILURES_IN_A_ROW: u32 = 20;

/// Invocations in a row without the time to make the queue again, none of which came further than the one before, from
/// which on the platform is told.
const REMAKE_CUTS_MAX: u32 = 3;

/// The note that keeps a [`RemakeCut`].
const REMAKE_CUT: &str = "queue-remake-cut";

/// That there was no time to make the queue again: how many artifacts were left to read at best, and how many invocations
/// since then, that one included, came no further. It is kept with the checkpoint, which the artifacts' lines do not fit
/// into.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RemakeCut {
    left: usize,
    times: u32,
}

impl Invocation<'_> {
    /// Streams the attachments that the data phase queued, and answers: while the lanes are there, so that a stream which
    /// cannot be aborted does not keep the answer back.
    pub(super) fn attachments<E: Extractor>(
        &self,
        extractor: &E,
        context: &Context<'_>,
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
        let attempt = |call: Attempt| attempt(self.platform, Some(&upload), &call);
        let work_off = |lanes: Lanes<'_, Attempt, AttemptResult>| {
            let mut delivery = delivery.in_lanes(lanes);
            let worked = Queue::new(self.event, run, self.clock, &mut delivery, settings).work_off();
            delivery.leave_attachments();
            self.conclude(run, keeper, Phase::Attachments, delivery, worked, details)
        };
        match self.settings.inline_seed {
            Some(seed) => work_off(Lanes::inline(&attempt, seed)),
            None => std::thread::scope(|scope| {
                work_off(Lanes::pool(scope, &attempt, self.settings.lanes + at_once))
            }),
        }
    }

    /// Has the queue of attachments ready to be worked off. Where a checkpoint or a state of the TypeScript SDK brought the
    /// run back, it is made again from the artifacts that announced them.
    fn take_up_queue(&self, context: &Context<'_>) -> Result<(), Stop> {
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
                let what =
                    format!("artifact {artifact}, which names attachments of {unit}, cannot be read back");
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
            // It is whole, and no attachment may begin any more.
            return Err(self.remake_cut(&context.run, files.len(), files.len())?);
        }
        if context.run.note::<RemakeCut>(REMAKE_CUT)?.is_some_and(|cut| cut.times > 0) {
            context.run.set_note(REMAKE_CUT, &RemakeCut::default())?;
        }
        Ok(())
    }

    /// How an invocation ends whose time was over when it had read `read` of `files` artifacts to make the queue again. Where
    /// this disk is there for the next one, that goes on from here. Where none is, it begins anew, and after
    /// [`REMAKE_CUTS_MAX`] that came no further the platform is told, or it would send CONTINUE for ever.
    fn remake_cut(&self, run: &Run, read: usize, files: usize) -> Result<Stop> {
        if read == 0 {
            // Its time was over before: that says nothing of how long the artifacts take.
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
        info!(read, files, times = cut.times, "no time to make the queue of attachments again");
        if cut.times < REMAKE_CUTS_MAX {
            return Ok(Ending::Progress.into());
        }
        Ok(Stop::failed(&format!(
            "the queue of attachments of {unit} cannot be made again within one invocation: {read} of {files} artifacts that \
             name them were read in {seconds} s, and each of {times} invocations began with the first, as its disk was empty. \
             Keep the store on a disk that outlives an invocation, or raise the hard limit if the platform gives more time",
            unit = run.sync_unit(),
            seconds = self.clock.elapsed().saturating_sub(self.started).as_secs(),
            times = cut.times,
        )))
    }

    /// The lines of an artifact, fetched once. Where a connection may end before the body does, a cut artifact looks like a
    /// whole one until it is decompressed.
    fn lines_of(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        let member = self.platform.download(artifact)?;
        let mut lines = Vec::new();
        decompress(&member, 2 * BATCH_BYTES_MAX, &mut lines).map_err(|error| PlatformError::Retry {
            fate: Fate::NotApplied,
            after: None,
            reason: format!("what was downloaded is no whole gzip member: {error}"),
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

/// The queue of attachments, as it is worked off in one invocation.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Queue<'q, 'a> {
    event: &'q Event,
    run: &'q Run,
    clock: &'q dyn Clock,
    delivery: &'q mut Delivery<'a>,
    settings: QueueSettings<'q>,
    /// Read from the queue and not begun; from `next` on nothing was read.
    upcoming: VecDeque<Pending>,
    next: u64,
    /// There is nothing from `next` on.
    over: bool,
    started: Duration,
    begun_any: bool,
    /// It was said that the soft deadline is over.
    late: bool,
    /// Whether the platform took any, and how often it failed since.
    uploaded_any: bool,
    failures_in_a_row: u32,
    /// How long the source asked to be left alone.
    asked_to_wait: Option<Duration>,
    /// Attachments that the source asked to be asked for later.
    waits: BTreeMap<u64, ShortWaits>,
    /// Why no more is uploaded: the platform takes none.
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

    /// Works off the queue, until it is empty or there is a reason to stop. What was uploaded is confirmed, if that can
    /// be had at all; what is still running when the invocation has to end is left to the next.
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

    /// Begins what may begin. Says whether no attachment may.
    fn begin(&mut self) -> Result<bool> {
        self.delivery.step()?;
        let stopped = self.is_stopped();
        if self.is_late() && !std::mem::replace(&mut self.late, true) {
            info!(unsettled = self.delivery.attachments(), "deadline reached");
        }
        if !stopped {
            self.take_up()?;
        }
        self.begun_any |= self.delivery.start_attachments(!stopped)?;
        Ok(stopped)
    }

    /// Takes in what has come to an end, and stores it. Says whether anything had, or may.
    fn take_in(&mut self) -> Result<bool> {
        let in_flight = self.delivery.attachments_in_flight() > 0;
        self.delivery.gather(if in_flight { POLL } else { Duration::ZERO });
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

    /// How long there is nothing to do but to wait; none if there is something.
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

    /// Whether this invocation can take in no more.
    fn is_full(&self) -> bool {
        self.delivery.message_full() || self.delivery.left_over()
    }

    /// Whether the soft deadline is over, for all but the first attachment.
    fn is_late(&self) -> bool {
        self.begun_any && self.clock.elapsed() >= self.settings.deadlines.soft_at()
    }

    /// Takes attachments out of the queue, as many as the lanes can soon take.
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

    /// When the next thing that waits is due; none if nothing waits that may still begin.
    fn next_ready(&self, stopped: bool) -> Option<Duration> {
        let ready_at = self.delivery.next_attachment_call(!stopped)?;
        // The soft deadline is a reason to look again, once an attachment was begun.
        Some(if stopped || !self.begun_any {
            ready_at
        } else {
            ready_at.min(self.settings.deadlines.soft_at())
        })
    }

    /// Decides what is done about an attachment that could not be uploaded.
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

    /// The platform did not take an attachment: is it about that one, or about the platform?
    fn judge_platform(&mut self, number: u64, error: &PlatformError, reason: String) {
        let Some((attachment, upload)) = self.delivery.attachment(number) else { return };
        self.failures_in_a_row += 1;
        let (after, refused) = match error {
            PlatformError::Retry { after, .. } => (*after, false),
            PlatformError::StorageRefused { after, .. } => (*after, true),
            PlatformError::Refused { .. } => (None, true),
        };
        // Nothing is wrong with what is only to be sent later.
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
