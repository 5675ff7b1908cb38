//! Plays one schedule: life after life of the real store and the real runtime, until every sync is done or a promise
//! is broken.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::airdrop::{Event, Platform, PlatformError, SealedMessage, Serve, Upload, WorkerState};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::{ArtifactId, Safeguard, StateLimits, SyncUnitId};

use super::crash::CrashPoint;
use super::disk::{Fault, FaultCounts, SimDisk};
use super::image::Image;
use super::report::{Broken, Report, Violation};
use super::schedule::{Act, Schedule, Setting};
use super::setup::{Make, Setup, Work, Worked};
use super::world::{BUDGET, Life, SMALL_STATE, SentEvent, World, still_clock};

/// A schedule with more lives than this is stuck: each life makes at least one page of progress, and no sync has this
/// many pages.
const LIVES_MAX: u64 = 400;
/// Calls to the platform at once.
const LANES: usize = 2;
/// Attachments streamed at once, in every other schedule; one in the rest.
const STREAMS: usize = 10;
/// Pages fetched at once, in schedules that fetch more than one.
const PAGES_AT_ONCE: usize = 3;
/// How long a worker waits after taking over, in schedules in which it waits.
const SETTLE: Duration = Duration::from_secs(1);

/// One schedule being played.
pub(super) struct Play<'a, M> {
    setup: &'a Setup,
    pub(super) world: World,
    pub(super) disk: SimDisk,
    /// The position when a store had just been created. A store is created under another name and renamed when it is
    /// complete, so there is no crash before that.
    fresh: Image,
    /// Without a disk: what each life left, for a later life to find.
    pub(super) left: Vec<Image>,
    /// Where it dies, death by death, the next one last.
    crashes: Vec<Act>,
    /// Where the open store was replaced by another one.
    in_place: Mutex<Option<SimDisk>>,
    make: &'a M,
}

pub(super) struct Played {
    pub(super) verdict: Result<(), Violation>,
    /// The last crash, in words.
    pub(super) crash: String,
    /// Without a disk: what each life left.
    pub(super) left: Vec<Image>,
}

/// The state of the world when a life began.
struct Before {
    accepted: usize,
    advanced: u64,
    failed_calls: u64,
    faults: FaultCounts,
    /// How often events had happened that may be answered with an ERROR.
    mishaps: u64,
    /// Whether its event was sent for the first time. If it is delivered again, the answer may be what an earlier
    /// life sealed.
    first: bool,
}

/// Attachments streamed at once, in the schedules of a seed.
fn streams(seed: u64) -> usize {
    if seed.is_multiple_of(2) { STREAMS } else { 1 }
}

impl<'a, M: Make> Play<'a, M> {
    /// A schedule at its beginning, on a disk with a new store.
    pub(super) fn of(setup: &'a Setup, schedule: &Schedule, make: &'a M) -> Self {
        let world = World::new(schedule.seed, schedule.acts.clone().into(), setup.has_disk);
        let fresh = setup.fresh_disk();
        Self::on(setup, world, fresh.disk(), fresh, &schedule.acts, make)
    }

    /// A world that goes on, on the disk that it finds.
    pub(super) fn on(
        setup: &'a Setup,
        world: World,
        disk: SimDisk,
        fresh: Image,
        acts: &[Act],
        make: &'a M,
    ) -> Self {
        let mut crashes: Vec<Act> = acts.iter().filter(|act| is_crash(act)).copied().collect();
        crashes.reverse();
        Self { setup, world, disk, fresh, left: Vec::new(), crashes, in_place: Mutex::default(), make }
    }

    /// Plays until every sync is done, or a promise is broken.
    pub(super) fn play(mut self, report: &mut Report) -> Played {
        if self.setup.syncs_ignored {
            self.disk.inject(Fault::SyncsIgnored);
        }
        let mut crash = String::new();
        let verdict = self.lives(&mut crash, report);
        let world = self.world.lock();
        for (fault, times) in &world.fired {
            *report.faults.entry(fault.clone()).or_default() += times;
        }
        // Without a disk, everything uploaded since the last checkpoint is uploaded again.
        let at_once = if self.setup.has_disk { (LANES + streams(world.seed)) as u64 } else { 64 };
        // The ERROR last: any other broken promise says more.
        let mut verdict = verdict.and_then(|()| world.verdict(at_once)).and_then(|given_up| {
            for (reason, times) in given_up {
                *report.given_up.entry(reason).or_default() += times;
            }
            match &world.error_for_no_reason {
                Some(what) => Err(Violation { kind: Broken::Conversation, what: what.clone() }),
                None => Ok(()),
            }
        });
        verdict = verdict.and_then(|()| world.announced_as_expected(&self.setup.expected));
        if world.outside_the_promise {
            report.outside += 1;
            // What the promise does not cover may lose or repeat records: that is counted, and is not a failure.
            if let Err(violation) = &verdict
                && !matches!(violation.kind, Broken::Unopenable | Broken::Stuck)
            {
                *report.outside_broken.entry(violation.kind).or_default() += 1;
                verdict = Ok(());
            }
        }
        drop(world);
        Played { verdict, crash, left: self.left }
    }

    /// Plays life after life, until the platform has no more events. Returns the last crash.
    fn lives(&mut self, crash: &mut String, report: &mut Report) -> Result<(), Violation> {
        let mut lives = 0;
        loop {
            // Without a disk, a death after a life was over is a death before the next life does anything.
            if !self.setup.has_disk
                && self.dies_at().is_some_and(|(changes, _)| self.world.changes() >= changes)
            {
                self.world.died();
                report.deaths += 1;
                *crash = self.start_again()?;
                continue;
            }
            let overtakes = self.world.lock().may_overtake() && self.nothing_is_sealed();
            let event = self.world.lock().next_event(overtakes);
            let Some(event) = event else { break };
            lives += 1;
            report.lives += 1;
            if lives > LIVES_MAX {
                let last = self.world.lock().last_error().unwrap_or_default();
                let what = format!("it did not end within {LIVES_MAX} lives, at {}{last}", event.event_type);
                return Err(Violation { kind: Broken::Stuck, what });
            }
            if !self.setup.has_disk {
                self.disk = self.found_disk();
            }
            self.live(&event, report)?;
            if let Some(disk) = lock(&self.in_place).take() {
                // Whether it died or not: the next life finds the other store.
                let before = std::mem::replace(&mut self.disk, disk);
                if before.is_dead() {
                    self.world.died();
                    report.deaths += 1;
                    self.crashes.pop();
                }
            }
            if self.disk.is_dead() {
                self.world.died();
                report.deaths += 1;
                *crash = self.start_again()?;
                self.setup.check(&self.disk.image().disk())?;
            }
            if !self.setup.has_disk {
                self.left.push(self.disk.image());
            }
        }
        self.setup.check(&self.disk.image().disk())
    }

    /// Whether the store, or without a disk the checkpoint, has no message that still must be accepted.
    fn nothing_is_sealed(&self) -> bool {
        let unit = self.world.lock().unit();
        let sealed = if self.setup.has_disk {
            let store = self.setup.open(&self.disk.image().disk(), still_clock());
            store.and_then(|store| SyncUnitId::new(unit).and_then(|unit| store.any_unit(unit).has_sealed()))
        } else {
            self.world.lock().sealed_in_checkpoint(&unit)
        };
        // If it cannot be read now, the next life will find out.
        sealed.is_ok_and(|sealed| !sealed)
    }

    /// The disk that the next life finds: an empty one, or one that an earlier life left.
    fn found_disk(&self) -> SimDisk {
        let mut world = self.world.lock();
        let number = world.sent.len() as u64;
        let stale = world.acts.iter().find_map(|act| match act {
            Act::StaleDisk { life, of } if *life == number => usize::try_from(*of).ok(),
            _ => None,
        });
        match stale.and_then(|of| self.left.get(of)) {
            Some(image) => {
                world.count("disk/stale");
                image.disk()
            }
            None => self.fresh.disk(),
        }
    }

    /// The number of changes outside and the position of the disk at which it dies next. Without a disk only the
    /// first counts.
    fn dies_at(&self) -> Option<(usize, usize)> {
        let (changes, position) = match self.crashes.last()? {
            Act::Crash { changes, point } => (*changes, point.position),
            Act::Kill { changes, position } => (*changes, *position),
            _ => return None,
        };
        Some((changes, if self.setup.has_disk { position } else { 0 }))
    }

    /// One life: the real store and the real runtime, given one event.
    fn live(&self, event: &SentEvent, report: &mut Report) -> Result<(), Violation> {
        let dies_at = self.dies_at();
        if let Some((_, position)) = dies_at
            && self.setup.has_disk
        {
            self.disk.inject(Fault::Dies { position });
        }
        let first = !self.world.lock().sent.iter().any(|sent| sent.request == event.request);
        self.world.event_comes(event.clone());
        let life = self.world.begin_life(&self.disk, dies_at);
        self.inject_faults();
        let before = self.before(first);
        let result = self.serve(event, &life);
        let disk_failed = self.count_faults(before.faults, report);
        self.disk.heal();
        if self.setup.syncs_ignored {
            self.disk.inject(Fault::SyncsIgnored);
        }
        let (outcome, violation) = match result {
            Ok(done) => done,
            Err(error) => (Err(error), None),
        };
        if let Some(violation) = violation {
            return Err(violation);
        }
        if self.disk.is_dead() {
            return Ok(());
        }
        self.ended(event, outcome, disk_failed)?;
        self.went_on(event, &before, disk_failed)
    }

    /// Makes the disk fail in this life as the schedule says.
    fn inject_faults(&self) {
        let world = self.world.lock();
        let number = world.sent.len() as u64 - 1;
        for act in world.acts.iter() {
            match act {
                Act::DiskFull { life, writes } if *life == number => {
                    self.disk.inject(Fault::FullAfter { writes: *writes });
                }
                Act::DiskForgets { life, after } if *life == number => {
                    self.disk.inject(Fault::Forgets { after: *after });
                }
                Act::DiskFails { life, operation, after } if *life == number => {
                    self.disk.inject(Fault::Fails { operation: *operation, after: *after });
                }
                _ => {}
            }
        }
    }

    fn before(&self, first: bool) -> Before {
        let world = self.world.lock();
        Before {
            accepted: world.accepted.len(),
            advanced: world.advanced(),
            failed_calls: world.failed_calls,
            faults: self.disk.fault_counts(),
            mishaps: world.mishaps(),
            first,
        }
    }

    /// Counts how often the disk failed since then; returns whether it did.
    fn count_faults(&self, before: FaultCounts, report: &mut Report) -> bool {
        let faults = self.disk.fault_counts();
        for (name, times) in [
            ("disk/full", faults.no_space - before.no_space),
            ("disk/read-failed", faults.reads - before.reads),
            ("disk/write-failed", faults.writes - before.writes),
            ("disk/set-len-failed", faults.set_lens - before.set_lens),
            ("disk/sync-failed", faults.syncs - before.syncs),
            ("disk/sync-forgot", faults.syncs_forgotten - before.syncs_forgotten),
        ] {
            if times > 0 {
                *report.faults.entry(name.to_owned()).or_default() += times;
            }
        }
        faults != before
    }

    /// Whether a life that was not killed ended in an allowed way.
    fn ended(&self, event: &SentEvent, outcome: Result<()>, disk_failed: bool) -> Result<(), Violation> {
        let Err(error) = outcome else {
            self.world.served(&event.request);
            return Ok(());
        };
        if matches!(error, Error::StaleEvent { .. }) && !event.stray {
            self.world.outdated(&event.request);
        }
        let state_unreadable = self.world.lock().is_cut_short();
        match error.kind() {
            // The disk failed, and the process ended, as it should.
            ErrorKind::Io | ErrorKind::Corrupt if disk_failed => self.world.died(),
            // The platform did not accept the message; it will receive it again.
            ErrorKind::Retry => {}
            ErrorKind::Fenced if event.stray => {}
            // The worker state was truncated during the invocation, so nothing could be saved or sent. The next life
            // finds out, and answers accordingly if it still is.
            ErrorKind::Corrupt if state_unreadable && matches!(error, Error::WorkerState { .. }) => {}
            // Another worker, or another store, has replaced it.
            ErrorKind::Fenced if self.world.lock().second_worker => {}
            // One of its own saves arrived late, and it could not distinguish it from another holder's.
            ErrorKind::Fenced if !self.setup.has_disk => {}
            kind => {
                let what = format!("{} was not answered: {}", event.event_type, chain(&error));
                let kind = if kind == ErrorKind::Corrupt { Broken::Unopenable } else { Broken::Conversation };
                return Err(Violation { kind, what });
            }
        }
        Ok(())
    }

    /// Checks that a life did something, and that a stray event did nothing.
    fn went_on(&self, event: &SentEvent, before: &Before, disk_failed: bool) -> Result<(), Violation> {
        let mut world = self.world.lock();
        let untroubled = !disk_failed && world.failed_calls == before.failed_calls;
        // Without ids, a new event may be taken for the one before, whose answer may have been accepted.
        if before.first
            && !world.is(Setting::NoIds)
            && untroubled
            && !world.stop.is_stopped()
            && world.advanced() == before.advanced
            && world.only_says_progress()
        {
            let what = format!("{} was answered with PROGRESS, and nothing was done", event.event_type);
            return Err(Violation { kind: Broken::Stuck, what });
        }
        if untroubled && before.first && world.mishaps() == before.mishaps {
            let said = world.accepted.get(before.accepted..).unwrap_or_default();
            if let Some(error) = said.iter().find(|message| message.event_type.ends_with("ERROR"))
                && !world.may_be_in_error(event)
            {
                let at = error.body.find(r#""error""#).unwrap_or(0);
                let error = error.body.get(at..).unwrap_or_default();
                let what = format!("{} was answered with an ERROR for no reason: {error}", event.event_type);
                world.error_for_no_reason.get_or_insert(what);
            }
        }
        // A store that replaced another one knows no earlier event.
        let forgotten = world.store_replaced();
        if event.stray && world.accepted.len() > before.accepted && !world.reuses_ids() && !forgotten {
            let what = format!("{} delivered again was given a new answer", event.request);
            return Err(Violation { kind: Broken::Conversation, what });
        }
        Ok(())
    }

    /// What a process does: opens the store, serves the event, and ends. A second worker may come meanwhile.
    fn serve(&self, event: &SentEvent, life: &Life) -> Result<Worked> {
        let crowd = Crowd { play: self, event, found: Mutex::default() };
        let (outcome, mut violation) = self.work(&self.disk, &crowd, event, life)?;
        if let Some(of_second) = lock(&crowd.found).take() {
            violation = violation.or(of_second.violation);
            if self.setup.has_disk {
                *lock(&self.in_place) = Some(of_second.disk);
            }
        }
        Ok((outcome, violation))
    }

    /// One worker, on its disk.
    fn work(
        &self,
        disk: &SimDisk,
        platform: &dyn Platform,
        event: &SentEvent,
        life: &Life,
    ) -> Result<Worked> {
        let store = self.setup.open(disk, self.world.clock())?;
        let event = Event::from_json(&event.json)?;
        let serve = self.settings(life.seed() ^ self.world.changes() as u64, life);
        Ok(self.make.work(Work { serve, store: &store, platform, event: &event, life }))
    }

    fn settings(&self, seed: u64, life: &Life) -> Serve {
        // Child listings have many pages: fewer lives, with more pages in each.
        let budget = if life.is(Setting::Children) { BUDGET * 3 } else { BUDGET };
        let mut serve =
            Serve::new().budget(budget).lanes(LANES).attachments_at_once(streams(life.seed())).inline(seed);
        serve = serve.stop_token(self.world.lock().stop.clone());
        // The sources have more bad records than a run may reject.
        serve = serve.rejected_percent(100);
        if !self.setup.has_disk {
            serve = serve.checkpoints();
        }
        if life.is(Setting::NoAttachments) {
            serve = serve.without_attachments_phase();
        }
        if life.is(Setting::UnitsInline) {
            serve = serve.external_sync_units_inline();
        }
        if life.is(Setting::Scope) {
            serve = serve.extraction_scope();
        }
        if life.is(Setting::Settle) {
            life.count("worker/settles");
            serve = serve.settle_after_takeover(SETTLE);
        }
        if life.is(Setting::AtOnce) {
            life.count("worker/several-at-once");
            serve = serve.concurrency(PAGES_AT_ONCE);
        }
        if life.is(Setting::Ahead) {
            life.count("worker/pages-ahead");
        } else {
            serve = serve.ahead(0);
        }
        if life.is(Setting::StateFull) {
            serve = serve.state_limits(match self.setup.broken {
                Some(Safeguard::StateFits) => StateLimits { own: usize::MAX, max: usize::MAX, ..SMALL_STATE },
                _ => SMALL_STATE,
            });
        }
        serve
    }

    /// Restarts the machine, or the process, after a death.
    fn start_again(&mut self) -> Result<String, Violation> {
        let recording = self.disk.recording();
        let crash = if let Some(Act::Crash { point, .. }) = self.crashes.pop() {
            // Nothing is recorded after a death, so it happened where the recording ends.
            let point = CrashPoint { position: recording.end(), ..point };
            let image = recording.image(&point).map(|crash| crash.image);
            self.disk = image.unwrap_or_else(|| self.disk.image()).disk();
            recording.describe(&point)
        } else {
            self.disk = recording.killed_at(recording.end());
            if self.setup.has_disk {
                self.setup.durable_at_open(&recording.killed_at(recording.end()))?;
                self.world.lock().count("disk/read-of-a-killed-life");
            }
            format!("killed at position {}, everything written is there", recording.end())
        };
        if self.setup.syncs_ignored {
            self.disk.inject(Fault::SyncsIgnored);
        }
        Ok(crash)
    }
}

/// What a second worker left.
struct Second {
    disk: SimDisk,
    violation: Option<Violation>,
}

/// The platform, as seen by a worker that a second worker may interrupt. The second one comes before a call of the
/// first; it is given the same event, and completes it.
///
/// With a disk, where the second one has replaced the store, it comes before an upload. Between the check whether the
/// store file is still the same and the confirmation or message right after it, nothing could be done.
/// is still in its place and the confirm or the message that follows at once, nothing could be done about it.
struct Crowd<'p, 'a, M> {
    play: &'p Play<'a, M>,
    event: &'p SentEvent,
    found: Mutex<Option<Second>>,
}

impl<M: Make> Crowd<'_, '_, M> {
    /// Before a call that follows a check whether the store file is still the same.
    fn looked(&self) -> &World {
        if self.play.setup.has_disk { &self.play.world } else { self.world() }
    }

    fn world(&self) -> &World {
        let (play, world) = (self.play, &self.play.world);
        if world.second_worker_comes() {
            if play.setup.has_disk {
                play.disk.replace();
            }
            let disk = play.fresh.disk();
            let before = world.works_on(disk.clone(), None);
            let life = Life::of(world);
            let outcome = play.work(&disk, world, self.event, &life);
            let violation = outcome.ok().and_then(|(_, violation)| violation);
            world.works_on(before.0, before.1);
            *lock(&self.found) = Some(Second { disk, violation });
        }
        world
    }
}

impl<M: Make> Platform for Crowd<'_, '_, M> {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        self.world().upload(upload)
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        self.looked().confirm(artifact)
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        self.looked().send(message)
    }

    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        self.world().download(artifact)
    }

    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        self.world().worker_state()
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        self.world().save_worker_state(state)
    }

    fn install_mapping(&self, mapping: &Value, blueprint: Option<&str>) -> Result<(), PlatformError> {
        self.world().install_mapping(mapping, blueprint)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_crash(act: &Act) -> bool {
    matches!(act, Act::Crash { .. } | Act::Kill { .. })
}
