//! The way of a batch from the store to the platform: upload, store the id, confirm, store that.
//!
//! Rules, each of which the crash explorer can see broken:
//! - A batch is confirmed only under an id that is stored.
//! - An upload that did not get as far as its commit is made anew, under a new id.
//! - A stored id is given up only after a *definite* refusal of the confirm with no earlier attempt of unknown fate,
//!   and only once. A refusal after an attempt of unknown fate is an error that names the artifact.
//! - No more is confirmed than one message can carry.
//! - Where checkpoints are kept, a batch is confirmed only when a saved one names it under its id. A save is due after
//!   30 seconds or 20 uploads; it first closes what is open and waits for all uploads.
//! - Every batch is tried at least once in an invocation; no retry outlives the invocation's hard limit.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::error::Result;
use crate::model::{ArtifactId, CHECKPOINT_BYTES_SOFT, MESSAGE_BYTES_SOFT, Rule};
use crate::store::{BatchInfo, Run, Unsettled, UnsettledBatch};

use super::keeper::Keeper;
use super::lanes::{Call, Done, Job, Lanes};
use super::message::ArtifactEntry;
use super::platform::{Fate, PlatformError};
use super::retry::{TRIES, back_off, millis};

/// Uploads, and time, after which a checkpoint is to be saved.
const SAVE_UPLOADS: u32 = 20;
const SAVE_AFTER: Duration = Duration::from_secs(30);
/// How long the loop waits for a lane before it looks at the clock again.
const POLL: Duration = Duration::from_millis(50);

/// Why the outbox could not deliver something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It cannot be mended by going on.
    Failed(String),
    /// The platform asked to be left alone for longer than this invocation has.
    AskedToWait(Duration),
}

/// What is on its way in one invocation.
pub(crate) struct Outbox<'a> {
    run: &'a Run,
    clock: &'a dyn Clock,
    lanes: Lanes<'a, Job, Done>,
    keeper: Option<&'a Keeper<'a>>,
    /// Uploads that no saved checkpoint names, and when one was last saved.
    unsaved: u32,
    saved_at: Duration,
    lanes_max: usize,
    chance: fastrand::Rng,
    /// Elapsed time after which no retry starts.
    hard: Duration,
    /// Whether uploads are confirmed; external sync units are not.
    confirms: bool,
    tasks: BTreeMap<u64, Task>,
    in_flight: usize,
    /// Bytes and artifacts of the message, were it sealed now with all that is confirmed or being confirmed.
    message_bytes: usize,
    artifacts: u64,
    artifacts_max: u64,
    message_full: bool,
    left_over: bool,
    trouble: Option<Trouble>,
}

struct Task {
    info: BatchInfo,
    given_up: u32,
    /// A saved checkpoint names it under its id.
    saved: bool,
    step: Step,
    tries: u32,
    ready_at: Duration,
    in_flight: bool,
}

enum Step {
    Upload,
    Confirm {
        artifact: ArtifactId,
        /// An attempt was made whose fate is not known.
        unknown: bool,
        /// Its place in the message is counted.
        counted: bool,
    },
}

/// What the outbox needs to know of its invocation.
pub(crate) struct OutboxSettings {
    pub(crate) lanes_max: usize,
    pub(crate) seed: u64,
    pub(crate) hard: Duration,
    pub(crate) confirms: bool,
    /// Bytes of the message without artifacts.
    pub(crate) base_bytes: usize,
    pub(crate) artifacts_max: Option<u64>,
}

impl Task {
    /// Uploaded, and not to be confirmed before a checkpoint names it.
    fn awaits_save(&self, saves: bool) -> bool {
        saves && !self.saved && matches!(self.step, Step::Confirm { .. })
    }
}

impl<'a> Outbox<'a> {
    /// Takes up what earlier lives left.
    pub(crate) fn new(
        run: &'a Run,
        clock: &'a dyn Clock,
        lanes: Lanes<'a, Job, Done>,
        keeper: Option<&'a Keeper<'a>>,
        settings: &OutboxSettings,
    ) -> Result<Self> {
        let mut this = Self {
            run,
            clock,
            lanes,
            keeper,
            unsaved: 0,
            saved_at: clock.elapsed(),
            lanes_max: settings.lanes_max.max(1),
            chance: fastrand::Rng::with_seed(settings.seed),
            hard: settings.hard,
            confirms: settings.confirms,
            tasks: BTreeMap::new(),
            in_flight: 0,
            message_bytes: settings.base_bytes,
            artifacts: 0,
            artifacts_max: settings.artifacts_max.unwrap_or(u64::MAX),
            message_full: false,
            left_over: false,
            trouble: None,
        };
        for (info, artifact) in run.confirmed()? {
            this.message_bytes += entry(&info, &artifact).bytes()?;
            this.artifacts += 1;
        }
        let mut unsettled = run.unsettled()?;
        if !this.confirms {
            // Killed between the two commits that follow an upload: the second is made up for, nothing is confirmed.
            for batch in &unsettled {
                if let Unsettled::Uploaded { artifact, .. } = &batch.state {
                    this.take_unconfirmed(&batch.info, artifact)?;
                }
            }
            unsettled.retain(|batch| matches!(batch.state, Unsettled::Staged));
        }
        this.add(unsettled);
        Ok(this)
    }

    /// Takes in batches that were just closed.
    pub(crate) fn add(&mut self, batches: Vec<UnsettledBatch>) {
        for UnsettledBatch { info, state, given_up, saved } in batches {
            let step = match state {
                Unsettled::Staged => Step::Upload,
                Unsettled::Uploaded { artifact, earlier } => {
                    Step::Confirm { artifact, unknown: earlier, counted: false }
                }
            };
            if matches!(step, Step::Upload) {
                let (seq, items) = (info.seq, info.items);
                debug!(seq, item_type = info.item_type, items, "batch closed");
            }
            self.unsaved += u32::from(!saved && matches!(step, Step::Confirm { .. }));
            let task =
                Task { given_up, saved, step, tries: 0, ready_at: Duration::ZERO, in_flight: false, info };
            self.tasks.insert(task.info.seq, task);
        }
    }

    /// More waits than the lanes can soon take: the source may pause.
    pub(crate) fn crowded(&self) -> bool {
        let saves = self.saves();
        let moving = self.tasks.values().filter(|task| !task.awaits_save(saves)).count();
        moving > self.lanes_max.saturating_mul(2)
    }

    /// Whether the message can take no more.
    pub(crate) fn message_full(&self) -> bool {
        self.message_full
    }

    pub(crate) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Whether something is left for the next invocation.
    pub(crate) fn left_over(&self) -> bool {
        self.left_over
    }

    /// Starts what can be started and takes in what has come to an end, without waiting.
    pub(crate) fn step(&mut self) -> Result<()> {
        self.start()?;
        while self.in_flight > 0 {
            let Some(done) = self.lanes.poll(Duration::ZERO) else { break };
            self.settle(done)?;
        }
        self.start()
    }

    /// Waits until something has come to an end, or a retry is due.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.start()?;
        if self.in_flight > 0 {
            if let Some(done) = self.lanes.poll(POLL) {
                self.settle(done)?;
            }
        } else if let Some(ready_at) = self.next_ready() {
            self.clock.sleep(ready_at.saturating_sub(self.clock.elapsed()));
        }
        Ok(())
    }

    /// Goes on until all that can be settled in this invocation is. After trouble nothing more is uploaded, but what
    /// was uploaded is confirmed.
    pub(crate) fn drain(&mut self) -> Result<()> {
        let saves = self.saves();
        loop {
            if self.trouble.is_some() {
                self.drop_tasks(|task| matches!(task.step, Step::Upload));
            }
            if self.tasks.is_empty() && self.in_flight == 0 {
                return Ok(());
            }
            let all_wait = self.in_flight == 0 && self.tasks.values().all(|task| task.awaits_save(saves));
            if all_wait && !self.save()? {
                // Something before them could not be uploaded, so no checkpoint can name them.
                self.drop_tasks(|_| true);
            } else if !all_wait {
                self.wait()?;
            }
        }
    }

    /// Whether a checkpoint is to be saved now.
    pub(crate) fn save_due(&self) -> bool {
        self.keeper.is_some()
            && (self.unsaved >= SAVE_UPLOADS
                || self.clock.elapsed().saturating_sub(self.saved_at) >= SAVE_AFTER)
    }

    /// Closes what is open, waits until it is uploaded, and saves a checkpoint. Says whether one could be saved.
    pub(crate) fn save(&mut self) -> Result<bool> {
        let Some(keeper) = self.keeper else { return Ok(false) };
        self.add(self.run.close_open()?);
        while self.tasks.values().any(|task| matches!(task.step, Step::Upload)) {
            if self.trouble.is_some() {
                self.drop_tasks(|task| matches!(task.step, Step::Upload));
                if self.in_flight == 0 {
                    break;
                }
            }
            self.wait()?;
        }
        let Some(position) = self.run.position()? else { return Ok(false) };
        self.message_full |= keeper.save(self.run, Some(&position))? >= CHECKPOINT_BYTES_SOFT;
        for task in self.tasks.values_mut() {
            task.saved |= matches!(task.step, Step::Confirm { .. });
        }
        self.unsaved = 0;
        self.saved_at = self.clock.elapsed();
        Ok(true)
    }

    /// Whether only what a saved checkpoint names is confirmed.
    fn saves(&self) -> bool {
        self.keeper.is_some() && !self.run.breaks(Rule::ConfirmAfterSave)
    }

    fn next_ready(&self) -> Option<Duration> {
        let saves = self.saves();
        self.tasks.values().filter(|task| !task.awaits_save(saves)).map(|task| task.ready_at).min()
    }

    /// Leaves tasks that are not being attempted to the next invocation.
    fn drop_tasks(&mut self, which: impl Fn(&Task) -> bool) {
        let before = self.tasks.len();
        self.tasks.retain(|_, task| task.in_flight || !which(task));
        self.left_over |= self.tasks.len() < before;
    }

    fn start(&mut self) -> Result<()> {
        let now = self.clock.elapsed();
        let saves = self.saves();
        let mut held_back = false;
        for task in self.tasks.values_mut() {
            if self.in_flight >= self.lanes_max {
                break;
            }
            if task.in_flight || task.ready_at > now || task.awaits_save(saves) {
                continue;
            }
            let call = match &mut task.step {
                Step::Upload => Call::Upload {
                    file_name: format!("{}.jsonl.gz", task.info.item_type),
                    bytes: self.run.payload(task.info.seq)?,
                },
                Step::Confirm { artifact, counted, .. } => {
                    if !*counted {
                        let bytes = entry(&task.info, artifact.as_str()).bytes()?;
                        if self.message_bytes + bytes > MESSAGE_BYTES_SOFT
                            || self.artifacts >= self.artifacts_max
                        {
                            self.message_full = true;
                            held_back = true;
                            continue;
                        }
                        self.message_bytes += bytes;
                        self.artifacts += 1;
                        *counted = true;
                    }
                    Call::Confirm { artifact: artifact.clone() }
                }
            };
            task.in_flight = true;
            task.tries += 1;
            self.in_flight += 1;
            self.lanes.submit(Job { seq: task.info.seq, call });
        }
        if held_back {
            self.drop_tasks(|task| matches!(task.step, Step::Confirm { counted: false, .. }));
        }
        Ok(())
    }

    fn settle(&mut self, done: Done) -> Result<()> {
        self.in_flight -= 1;
        let Some(mut task) = self.tasks.remove(&done.seq) else { return Ok(()) };
        task.in_flight = false;
        match (task.step, done.result) {
            (Step::Upload, Ok(artifact)) => {
                let Some(artifact) = artifact else { return Ok(()) };
                if !self.run.breaks(Rule::CommitBeforeConfirm) {
                    self.run.uploaded(done.seq, &artifact)?;
                }
                if self.confirms && !self.run.breaks(Rule::AnnounceConfirmed) {
                    task.step = Step::Confirm { artifact, unknown: false, counted: false };
                    task.tries = 0;
                    task.saved = false;
                    self.unsaved += 1;
                    self.tasks.insert(done.seq, task);
                } else {
                    self.take_unconfirmed(&task.info, &artifact)?;
                }
            }
            (Step::Confirm { artifact, .. }, Ok(_)) => {
                if self.run.breaks(Rule::CommitBeforeConfirm) {
                    self.run.uploaded(done.seq, &artifact)?;
                }
                self.run.confirm(done.seq)?;
                debug!(seq = done.seq, artifact = artifact.as_str(), "batch confirmed");
            }
            (Step::Upload, Err(PlatformError::Refused { status, reason })) => {
                self.left_over = true;
                let name = self.name(&task.info);
                self.meet(Trouble::Failed(format!(
                    "the upload of {name} was refused with {status}: {reason}"
                )));
            }
            (
                Step::Confirm { artifact, unknown, counted },
                Err(PlatformError::Refused { status, reason }),
            ) => {
                if counted {
                    self.message_bytes -= entry(&task.info, artifact.as_str()).bytes()?;
                    self.artifacts -= 1;
                }
                if !unknown && task.given_up == 0 {
                    self.run.give_up_id(done.seq)?;
                    task.given_up += 1;
                    task.step = Step::Upload;
                    task.tries = 0;
                    self.tasks.insert(done.seq, task);
                    return Ok(());
                }
                self.left_over = true;
                let name = self.name(&task.info);
                let history = if unknown {
                    "an earlier attempt may have taken effect, so it is not uploaded again"
                } else {
                    "as was that of the upload before it"
                };
                self.meet(Trouble::Failed(format!(
                    "the confirm of artifact {artifact} ({name}) was refused with {status}: {reason}; {history}"
                )));
            }
            (mut step, Err(error)) => {
                let (fate, after) = match &error {
                    PlatformError::Retry { fate, after, .. } => (*fate, *after),
                    PlatformError::StorageRefused { after, .. } => (Fate::NotApplied, *after),
                    PlatformError::Refused { .. } => (Fate::NotApplied, None),
                };
                let reason = match error {
                    PlatformError::Retry { reason, .. } => reason,
                    other => other.to_string(),
                };
                if let (Step::Confirm { unknown, .. }, Fate::Unknown) = (&mut step, fate) {
                    *unknown = true;
                }
                let call = if matches!(step, Step::Upload) { "upload" } else { "confirm" };
                task.step = step;
                let wait = back_off(task.tries, after, &mut self.chance);
                task.ready_at = self.clock.elapsed().saturating_add(wait);
                if task.tries >= TRIES {
                    self.left_over = true;
                    let name = self.name(&task.info);
                    self.meet(Trouble::Failed(format!(
                        "the {call} of {name} failed {TRIES} times: {reason}"
                    )));
                } else if task.ready_at >= self.hard {
                    self.left_over = true;
                    if let Some(after) = after {
                        self.meet(Trouble::AskedToWait(after));
                    }
                } else {
                    let (seq, tries, wait_ms) = (done.seq, task.tries, millis(wait));
                    warn!(seq, call, tries, reason, wait_ms, "batch is tried again");
                    self.tasks.insert(done.seq, task);
                }
            }
        }
        Ok(())
    }

    /// Counts an upload as settled whose phase has no confirm.
    fn take_unconfirmed(&mut self, info: &BatchInfo, artifact: &ArtifactId) -> Result<()> {
        self.message_bytes += entry(info, artifact.as_str()).bytes()?;
        self.artifacts += 1;
        self.run.confirm(info.seq)
    }

    /// Keeps the first trouble, but lets a failure take the place of a wait.
    fn meet(&mut self, trouble: Trouble) {
        match &trouble {
            Trouble::Failed(reason) => warn!(reason, "delivery failed"),
            Trouble::AskedToWait(wait) => info!(wait_ms = millis(*wait), "the platform asked to wait"),
        }
        if !matches!(self.trouble, Some(Trouble::Failed(_))) {
            self.trouble = Some(trouble);
        }
    }

    fn name(&self, info: &BatchInfo) -> String {
        format!("batch {} of {} ({} {})", info.seq, self.run.sync_unit(), info.items, info.item_type)
    }
}

/// A batch as a message names it.
pub(crate) fn entry(info: &BatchInfo, artifact: &str) -> ArtifactEntry {
    let (created, modified) = (info.dates.created, info.dates.modified);
    ArtifactEntry {
        id: artifact.to_owned(),
        item_type: info.item_type.clone(),
        item_count: info.items.into(),
        oldest_created: created.map(|(oldest, _)| oldest.to_time()),
        newest_created: created.map(|(_, newest)| newest.to_time()),
        oldest_modified: modified.map(|(oldest, _)| oldest.to_time()),
        newest_modified: modified.map(|(_, newest)| newest.to_time()),
    }
}
