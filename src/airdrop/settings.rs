//! How events are answered: the settings of an extractor's author or operator.

use std::time::Duration;

use crate::model::{REJECTED_IDS_MAX, REJECTED_PERCENT_MAX, StateLimits};

use super::deadlines::StopToken;
use super::event_type::Spelling;

/// How events are answered. [`Serve::new`] has the defaults; [`Serve::serve`] answers one event.
#[derive(Debug, Clone)]
#[must_use]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Serve {
    pub(super) soft: Duration,
    pub(super) hard: Duration,
    pub(super) stop: StopToken,
    pub(super) stop_within: Duration,
    pub(super) lanes: usize,
    pub(super) concurrency: usize,
    pub(super) ahead: u64,
    pub(super) wait_up_to: Duration,
    pub(super) attachments_at_once: usize,
    pub(super) attachment_tries: u32,
    pub(super) inline_seed: Option<u64>,
    pub(super) spelling: Option<Spelling>,
    pub(super) attachments_phase: bool,
    pub(super) units_inline: bool,
    pub(super) checkpoints: bool,
    pub(super) scope: bool,
    pub(super) takeover_wait: Option<Duration>,
    pub(super) state_limits: StateLimits,
    pub(super) rejected_max: u64,
    pub(super) rejected_percent: u8,
}

impl Default for Serve {
    fn default() -> Self {
        Self::new()
    }
}

impl Serve {
    /// The defaults: 10 minutes for pages, 12 minutes in all, 4 calls at once, answers spelled like their events.
    pub fn new() -> Self {
        Self {
            soft: Duration::from_secs(10 * 60),
            hard: Duration::from_secs(12 * 60),
            stop: StopToken::new(),
            stop_within: Duration::from_secs(8),
            lanes: 4,
            concurrency: 1,
            ahead: 32 << 20,
            wait_up_to: Duration::from_secs(10),
            attachments_at_once: 10,
            attachment_tries: 5,
            inline_seed: None,
            spelling: None,
            attachments_phase: true,
            units_inline: false,
            checkpoints: false,
            scope: false,
            takeover_wait: None,
            state_limits: StateLimits::default(),
            rejected_max: REJECTED_IDS_MAX,
            rejected_percent: REJECTED_PERCENT_MAX,
        }
    }

    /// The time for fetching pages; 10 minutes by default. A page that would probably end later is not begun, except
    /// the first of an invocation. Then staged batches are uploaded, and the answer is PROGRESS.
    pub fn budget(mut self, soft: Duration) -> Self {
        self.soft = soft;
        self
    }

    /// When the platform kills the extractor, counted from the start of the invocation; 12 minutes by default. No
    /// retry begins later.
    pub fn hard_limit(mut self, hard: Duration) -> Self {
        self.hard = hard;
        self
    }

    /// Lets invocations be stopped early, for example on SIGTERM. A stop counts as the end of the
    /// [`budget`](Serve::budget), and the hard limit then comes [`stop_within`](Serve::stop_within) later:
    /// - No page, no attachment and no other call to the source is begun, not even the first; every wait ends.
    ///   [`Context::time_left`](super::Context::time_left) returns zero, for pages that check it.
    /// - Pages and attachments in progress are awaited for three quarters of that time, then given up.
    /// - Staged batches are uploaded and confirmed for nine tenths of it; the rest are left to the next invocation.
    /// - The answer is PROGRESS, unless it already was DONE, DELAY or ERROR. If the phase has no PROGRESS (external
    ///   sync units and metadata), or the worker state is not fetched yet, nothing is sent, and [`Serve::serve`]
    ///   returns [`Error::Stopped`](crate::Error::Stopped): the same event resumes.
    ///
    /// A stop is like a kill with a warning: whenever it comes, nothing is lost or announced twice.
    ///
    /// The call of a page that was given up goes on in its thread, and `serve` returns only after it has ended. The
    /// answer was sent by then, so the process may be ended without waiting.
    pub fn stop_token(mut self, stop: StopToken) -> Self {
        self.stop = stop;
        self
    }

    /// How long after a [stop](Serve::stop_token) the extractor is killed: 8 s by default, which fits the 10 s of
    /// `docker stop` and the 30 s of Kubernetes. Never later than the [`hard_limit`](Serve::hard_limit).
    pub fn stop_within(mut self, wait: Duration) -> Self {
        self.stop_within = wait;
        self
    }

    /// How many calls to the platform are made at once: 1 to 64, 4 by default. The upload of a batch counts until its id is
    /// stored.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes.clamp(1, 64);
        self
    }

    /// Pages fetched at once: 1 to 64, 1 by default. Each listing has at most one page in flight, so this is how many
    /// listings are read at once. [`Extractor::page`](super::Extractor::page) is then called by as many threads.
    ///
    /// With 1, streams are read one after the other, in their order. With more, the first listings that are not
    /// exhausted, as many as this, are read at once. Pages are stored as they arrive, those of each listing in order.
    /// [`Serve::ahead`] describes what a kill costs.
    ///
    /// ```
    /// use highwater::airdrop::Serve;
    /// let serve = Serve::new().concurrency(8);
    /// # let _ = serve;
    /// ```
    pub fn concurrency(mut self, pages: usize) -> Self {
        self.concurrency = pages.clamp(1, 64);
        self
    }

    /// How many bytes of records may have arrived without being stored when the next page of a listing is begun; 32
    /// MiB by default. So the next page is fetched while the one before it is checked, compressed and stored, and
    /// while batches are uploaded. With 0, a page is fetched only once the one before it is stored.
    ///
    /// Memory use is bounded by this, or by two and a half times what is stored together (see below), if that is more, plus
    /// one page for each that is [fetched at once](Serve::concurrency).
    ///
    /// # What an extractor sees
    /// [`Extractor::page`](super::Extractor::page) is called with a cursor while the page that returned it may not be
    /// stored yet. It may never be: if it is refused, or the process is killed, the next invocation fetches it again.
    /// So a source must not treat a cursor as an acknowledgement. If it forgets what came before a cursor, as a queue
    /// may, set this to 0. A page is never fetched before the previous page of its listing has arrived. If
    /// [`Serve::concurrency`] is 1, `page` is never called twice at once, but each call may be on another thread.
    ///
    /// [`Context::value`](super::Context::value) returns what earlier pages set, stored or not. Nothing is fetched
    /// ahead of a page that names [child listings](crate::Page::child), or whose cursor does not lead on. If a page
    /// ahead fails, or the source asks to wait, the pages before it are stored first. If a page is refused, the pages
    /// fetched ahead of it are dropped.
    ///
    /// # What a kill costs
    /// The pages in flight, one per listing and at most [`Serve::concurrency`] in all, and the pages that arrived and
    /// are not stored. These are stored together, after others that are being stored, once the first of them is 50 ms
    /// old, or they have 4,000 records, 4 MiB or 100 pages; and at once if nothing can be fetched before that. While
    /// they are being stored, others may arrive, until these have half as much again. The next invocation fetches them
    /// again, and nothing is announced twice. With 0, a kill costs at most one page of each listing.
    ///
    /// What happened to uploads is stored with the pages, or 50 ms later if there are none. The next invocation uploads a
    /// batch again if the id of its upload was not stored; there are at most [`Serve::lanes`] of these.
    ///
    /// ```
    /// use highwater::airdrop::Serve;
    /// let serve = Serve::new().ahead(8 << 20);
    /// # let _ = serve;
    /// ```
    pub fn ahead(mut self, bytes: u64) -> Self {
        self.ahead = bytes;
        self
    }

    /// The longest wait requested by the source ([`SourceError::RateLimited`](super::SourceError::RateLimited)) that
    /// is waited for in place, in the data and attachments phases: 10 s by default, none with zero. A longer wait, or
    /// one for which the [`budget`](Serve::budget) has no room, ends the invocation with DELAY.
    ///
    /// Nothing is fetched during the wait. Uploads go on, and so do attachments other than the one that was refused.
    /// If the source asks again and again without an answer in between, each wait is longer, until it is too long to
    /// wait in place.
    ///
    /// ```
    /// use highwater::airdrop::Serve;
    /// use std::time::Duration;
    /// let serve = Serve::new().wait_up_to(Duration::from_secs(30));
    /// # let _ = serve;
    /// ```
    pub fn wait_up_to(mut self, wait: Duration) -> Self {
        self.wait_up_to = wait;
        self
    }

    /// How many attachments are streamed at once: 1 to 50, 10 by default.
    pub fn attachments_at_once(mut self, attachments: usize) -> Self {
        self.attachments_at_once = attachments.clamp(1, 50);
        self
    }

    /// After how many failures an attachment is given up and listed, counted over all invocations: at least 1, 5 by
    /// default.
    pub fn attachment_tries(mut self, tries: u32) -> Self {
        self.attachment_tries = tries.max(1);
        self
    }

    /// Makes all calls on this thread, one after the other, so that a run can be replayed: the seed decides their
    /// order, and the holder token of a checkpoint.
    pub fn inline(mut self, seed: u64) -> Self {
        self.inline_seed = Some(seed);
        self
    }

    /// Overrides the spelling of the answers' event types. By default an answer is spelled like its event.
    pub fn spelling(mut self, spelling: Spelling) -> Self {
        self.spelling = Some(spelling);
        self
    }

    /// Ends a run with the data phase: for a platform that never starts the attachments phase.
    pub fn without_attachments_phase(mut self) -> Self {
        self.attachments_phase = false;
        self
    }

    /// Keeps a checkpoint of the sync unit with the platform, for a worker whose disk does not survive it. If a store
    /// lacks the unit's state, it is restored from the checkpoint. Nothing is confirmed or sent before a checkpoint
    /// that contains it is saved.
    ///
    /// A state that the TypeScript SDK left there is read: its last successful start becomes the watermark, and a run
    /// that the SDK had begun is continued. The SDK's keys are then kept up to date beside the checkpoint, so that a
    /// connector can go back to the SDK between two runs. All other keys stay as they are. The extraction scope is
    /// read, too.
    ///
    /// The promise then holds only while one invocation per sync unit is live, and its saves arrive in order (N6).
    pub fn checkpoints(mut self) -> Self {
        self.checkpoints = true;
        self
    }

    /// Reads the extraction scope when the data phase begins, also without [`Serve::checkpoints`]. Records of item
    /// types that are out of scope are counted and not staged. The scope holds for the whole run.
    pub fn extraction_scope(mut self) -> Self {
        self.scope = true;
        self
    }

    /// How long to wait if the checkpoint found belongs to another worker, before it is read again and taken over.
    /// This is for a platform where a save of that worker may arrive late. Zero by default.
    pub fn settle_after_takeover(mut self, wait: Duration) -> Self {
        self.takeover_wait = Some(wait);
        self
    }

    /// Applies other limits to the worker state.
    #[cfg(feature = "testing")]
    pub(crate) fn state_limits(mut self, limits: StateLimits) -> Self {
        self.state_limits = limits;
        self
    }

    /// How many ids of [rejected](crate::Page::reject) records a sync unit may have at a time, including those of
    /// earlier runs that still are rejected: [`REJECTED_IDS_MAX`](crate::limits::REJECTED_IDS_MAX) by default. A page
    /// that would exceed this is answered with ERROR at once; nothing of it is stored, and the next event fetches it
    /// again. With 0, no record may be rejected.
    pub fn rejected_max(mut self, ids: u64) -> Self {
        self.rejected_max = ids;
        self
    }

    /// The part of the records read in a run that may be rejected, in percent:
    /// [`REJECTED_PERCENT_MAX`](crate::limits::REJECTED_PERCENT_MAX) by default, 100 for all of them. It is checked
    /// at the end of the data phase, when all records are read; if more are rejected, the answer is ERROR instead of
    /// DONE. [`REJECTED_FEW`](crate::limits::REJECTED_FEW) records are never too many. A record that was requested
    /// again and rejected again does not count.
    pub fn rejected_percent(mut self, percent: u8) -> Self {
        self.rejected_percent = percent.min(100);
        self
    }

    /// Puts external sync units into the message itself, instead of an artifact.
    pub fn external_sync_units_inline(mut self) -> Self {
        self.units_inline = true;
        self
    }
}
