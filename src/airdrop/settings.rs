//! How events are answered: the settings of an author, or of whoever operates the extractor.

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
    /// The defaults: 10 minutes of pages, 12 minutes in all, 4 calls at once, the answer spelled as the event.
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

    /// How long pages are fetched; 10 minutes unless set. A page that is likely to end later is not begun, except the
    /// first of an invocation. Then what is staged is uploaded, and the answer is PROGRESS.
    pub fn budget(mut self, soft: Duration) -> Self {
        self.soft = soft;
        self
    }

    /// When the platform kills the extractor, from the start of the invocation; 12 minutes unless set. No retry begins
    /// later.
    pub fn hard_limit(mut self, hard: Duration) -> Self {
        self.hard = hard;
        self
    }

    /// Lets somebody ask invocations to stop: on SIGTERM, say. It counts as the end of the [`budget`](Serve::budget), and the
    /// hard limit comes [`stop_within`](Serve::stop_within) later:
    /// - No page, no attachment and nothing else of the source is begun, not even the first; every wait ends.
    ///   [`Context::time_left`](super::Context::time_left) says zero, for a page that looks.
    /// - Pages that are being fetched are awaited for three quarters of that time, then given up; so are attachments.
    /// - What is staged is uploaded and confirmed for nine tenths of it; what is not by then is left to the next invocation.
    /// - The answer is PROGRESS, unless it was DONE, DELAY or ERROR already. In a phase that has no PROGRESS (external sync
    ///   units and metadata), and if the worker state was not fetched yet, nothing is sent, and [`Serve::serve`] returns
    ///   [`Error::Stopped`](crate::Error::Stopped): the same event resumes.
    ///
    /// Nothing is lost or announced twice, whenever it comes: it is a kill that was announced.
    ///
    /// The call of a page that was given up goes on in its thread, and `serve` returns after it does. The answer was sent by
    /// then, so whoever does not want to wait may end the process.
    pub fn stop_token(mut self, stop: StopToken) -> Self {
        self.stop = stop;
        self
    }

    /// How long after it was [asked to stop](Serve::stop_token) the extractor is killed: 8 s unless set, which fits into the
    /// 10 s that `docker stop` gives, and the 30 s of Kubernetes. Never later than the [`hard_limit`](Serve::hard_limit).
    pub fn stop_within(mut self, wait: Duration) -> Self {
        self.stop_within = wait;
        self
    }

    /// How many calls to the platform are made at once: 1 to 64, 4 unless set.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes.clamp(1, 64);
        self
    }

    /// Pages fetched at once: 1 to 64, 1 unless set. Of each listing there is one at a time, so this is how many listings are
    /// read at once; [`Extractor::page`](super::Extractor::page) is then called by so many threads.
    ///
    /// With 1, streams are read one after the other, in their order; with more, the first so many that are not exhausted,
    /// and their pages are stored as they come. Each listing's are stored in its own order. What a kill costs is said at
    /// [`Serve::ahead`].
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

    /// Pages ahead: how many bytes of records may have come and not be stored when the next page of a listing is begun; 32 MiB
    /// unless set. So the next page is fetched while the last one is checked, compressed and stored, and batches are uploaded.
    /// With 0, a page is asked for only once the one before it is stored.
    ///
    /// Memory is bounded by that, and one page more for each that is [fetched at once](Serve::concurrency).
    ///
    /// # What an extractor sees
    /// [`Extractor::page`](super::Extractor::page) is called with a cursor while the page that returned it may not be stored
    /// yet, and may never be: if it is refused, or the process is killed, the next invocation asks for it again. So a source
    /// must not take a cursor for a receipt: if it forgets what came before it, as a queue may, set this to 0. A page of one
    /// listing is never asked for before the one before it came, and with [`Serve::concurrency`] 1 `page` is never called
    /// twice at once, though each time perhaps by another thread.
    ///
    /// [`Context::value`](super::Context::value) finds what the pages before set, stored or not. Nothing is asked for ahead
    /// of a page that names [child listings](crate::Page::child), or whose cursor leads nowhere. If a page ahead fails, or the
    /// source asks to be left alone, the pages before it are stored first; of a page that is refused, what came ahead of it is
    /// dropped.
    ///
    /// # What a kill costs
    /// The pages that are being fetched, one of a listing, as many as [`Serve::concurrency`] in all; and those that came and
    /// are not stored. These are stored together once the first of them is 50 ms old, or they have 2,000 records, 4 MiB or
    /// 100 pages; and at once if nothing can be fetched before that. The next invocation fetches them again, and nothing is
    /// announced twice. With 0 and one listing at a time, a kill costs one page.
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

    /// How long a wait may be that the source asks for ([`SourceError::RateLimited`](super::SourceError::RateLimited)) to be
    /// waited for in place, in the data and attachments phases: 10 s unless set, none with zero. A longer one, or one that
    /// the [`budget`](Serve::budget) has no room for, ends the invocation with DELAY.
    ///
    /// Nothing is fetched during the wait; uploads go on, and so do attachments other than the one that was refused. A
    /// source that asks again and again, without an answer in between, is waited for longer each time, until that is too
    /// long.
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

    /// How many attachments are streamed at once: 1 to 50, 10 unless set.
    pub fn attachments_at_once(mut self, attachments: usize) -> Self {
        self.attachments_at_once = attachments.clamp(1, 50);
        self
    }

    /// After how many failures an attachment is given up and listed, counted over all invocations: at least 1, 5 unless
    /// set.
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

    /// Overrides the spelling of the answers' event types. Unless set, an answer is spelled as its event is.
    pub fn spelling(mut self, spelling: Spelling) -> Self {
        self.spelling = Some(spelling);
        self
    }

    /// Ends a run with the data phase: for a platform that never starts the attachments phase.
    pub fn without_attachments_phase(mut self) -> Self {
        self.attachments_phase = false;
        self
    }

    /// Keeps a checkpoint of the sync unit with the platform, for a worker whose disk does not survive it. A store that
    /// lacks the unit's state restores it from there; nothing is confirmed or sent that a saved checkpoint does not
    /// hold.
    ///
    /// A state that the TypeScript SDK left there is read: its last successful start becomes the watermark, and a run
    /// that the SDK had begun is continued. The SDK's keys are then kept current beside the checkpoint, so that a
    /// connector can go back between two runs. All other keys stay as they are. The extraction scope is read, too.
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

    /// How long to wait if the checkpoint found is another worker's, before it is read again and taken over: for a
    /// platform where a save of that worker may arrive late. Zero unless set.
    pub fn settle_after_takeover(mut self, wait: Duration) -> Self {
        self.takeover_wait = Some(wait);
        self
    }

    /// Keeps a worker state to other limits.
    #[cfg(feature = "testing")]
    pub(crate) fn state_limits(mut self, limits: StateLimits) -> Self {
        self.state_limits = limits;
        self
    }

    /// How many ids of [rejected](crate::Page::reject) records a sync unit may have at a time, those of earlier runs that did
    /// not pass yet among them: [`REJECTED_IDS_MAX`](crate::limits::REJECTED_IDS_MAX) unless set. The page that would bring
    /// more is answered with ERROR, at once; nothing of it is stored, and the next event fetches it again. 0: no record may
    /// be rejected.
    pub fn rejected_max(mut self, ids: u64) -> Self {
        self.rejected_max = ids;
        self
    }

    /// Which part of the records that a run read may be rejected, in percent:
    /// [`REJECTED_PERCENT_MAX`](crate::limits::REJECTED_PERCENT_MAX) unless set, 100 for all of them. It is looked at when
    /// everything is read, at the end of the data phase, for only then is it known what a part is of; if it is more, the
    /// answer is ERROR instead of DONE. [`REJECTED_FEW`](crate::limits::REJECTED_FEW) records are never too many. What was
    /// asked for again and rejected once more does not count.
    pub fn rejected_percent(mut self, percent: u8) -> Self {
        self.rejected_percent = percent.min(100);
        self
    }

    /// Puts external sync units into the message itself, instead of into an artifact.
    pub fn external_sync_units_inline(mut self) -> Self {
        self.units_inline = true;
        self
    }
}
