//! Kills an extractor at every step, and looks whether every record is announced exactly once all the same.
//!
//! A *schedule* is a seed and what befalls the extractor. From one run of a schedule come all the crashes that it
//! could have had: each moment of the world outside, with each image that the disk may be left with. Each such
//! *state* is opened by the real store, which must pass its own check. States that hold the same rows and stand
//! before the same world are one; each distinct one is *continued*: the real runtime goes on from it until every
//! sync is done, and the oracle gives its verdict. Beside that, seeded schedules are played with several crashes,
//! lives and faults each.
//!
//! A schedule that fails is made shorter, act by act, for as long as it still fails. What remains is printed as one
//! line, which [`Explore::replay`] plays again.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::airdrop::{Event, Extractor, Serve};
use crate::artifact::Level;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::{Rule, SyncUnitId};
use crate::store::Store;

use super::controls::table_without;
use super::crash::{CrashPoint, Kept, Moment, Recording, Sampling};
use super::disk::{Fault, SimDisk};
use super::image::Image;
use super::schedule::{Act, Schedule, acts_of};
use super::world::{BUDGET, Broken, Life, SentEvent, Violation, Watched, World, still_clock};

/// Lives after which a schedule is stuck: each makes at least one page of progress, and no sync has so many.
const LIVES_MAX: u64 = 400;
/// Calls to the platform at once.
const LANES: usize = 2;
/// Attachments streamed at once, in every other schedule; one in the rest.
const STREAMS: usize = 10;

/// What to explore, and how far; made by [`Explore::new`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Explore {
    seed: u64,
    states: u64,
    threads: usize,
    batch_items: u32,
    broken: Option<Rule>,
    syncs_ignored: bool,
    has_disk: bool,
    only: Vec<Act>,
}

/// What was explored and what was found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// Crash states that were opened and checked.
    pub states: u64,
    /// Those that were continued to the end.
    pub continuations: u64,
    /// Lives of the extractor in all.
    pub lives: u64,
    /// Deaths, in all schedules with more than the one crash of a state.
    pub deaths: u64,
    /// Images that were left by a second crash, during the recovery from the first.
    pub second_crashes: u64,
    /// How often each fault fired.
    pub faults: BTreeMap<String, u64>,
    /// Schedules that lost a record.
    pub lost: u64,
    /// Schedules that announced one twice, or one that was never staged.
    pub duplicated: u64,
    /// States that did not open or did not pass the store's own check.
    pub unopenable: u64,
    /// Schedules that broke any other promise.
    pub other: u64,
    /// The seed of all of it.
    pub seed: u64,
    /// The shortest schedule found that breaks a promise, and how.
    pub failure: Option<Failure>,
}

/// A schedule that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How.
    pub violation: Violation,
    /// What befell the extractor: for [`Explore::replay`].
    pub schedule: Schedule,
    /// The crash in words, operation by operation.
    pub crash: String,
}

impl Default for Explore {
    fn default() -> Self {
        Self::new()
    }
}

impl Explore {
    /// 20,000 states on two threads, from seed 1, in batches of 5 records.
    pub fn new() -> Self {
        Self {
            seed: 1,
            states: 20_000,
            threads: 2,
            batch_items: 5,
            broken: None,
            syncs_ignored: false,
            has_disk: true,
            only: Vec::new(),
        }
    }

    /// How many crash states to go through, at least.
    pub fn states(mut self, states: u64) -> Self {
        self.states = states;
        self
    }

    /// Where everything random comes from; the same seed explores the same.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Threads to explore on: 1 to 64.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 64);
        self
    }

    /// Records in a batch: small ones make many.
    pub fn batch_items(mut self, items: u32) -> Self {
        self.batch_items = items.max(1);
        self
    }

    /// A negative control: takes away a rule of the runtime, which the exploration must then notice.
    pub fn without_rule(mut self, rule: Rule) -> Self {
        self.broken = Some(rule);
        self
    }

    /// A negative control: the disk ignores syncs.
    pub fn without_syncs(mut self) -> Self {
        self.syncs_ignored = true;
        self
    }

    /// Explores a worker without a disk: every life finds an empty one, or, as the schedule has it, a stale one that an
    /// earlier life left. The platform keeps its checkpoint.
    pub fn without_disk(mut self) -> Self {
        self.has_disk = false;
        self
    }

    /// Lets these acts befall every schedule.
    pub fn with_acts(mut self, acts: impl IntoIterator<Item = Act>) -> Self {
        self.only.extend(acts);
        self
    }

    /// Explores until the budget of states is used up or a promise is found broken. `make` is called for every life of
    /// the extractor, on any thread; what it makes must depend on nothing but the [`Life`].
    ///
    /// ```
    /// use highwater::testing::{Explore, SimSource};
    /// let report = Explore::new().states(300).run(SimSource::new);
    /// assert!(report.failure.is_none(), "{report}");
    /// ```
    pub fn run<E: Extractor>(&self, make: impl Fn(&Life) -> E + Sync) -> Report {
        let total = Mutex::new(Report { seed: self.seed, ..Report::default() });
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        {
                            let total = total.lock().unwrap_or_else(PoisonError::into_inner);
                            if total.failure.is_some() || total.states >= self.states {
                                return;
                            }
                        }
                        let found = self.explore_one(number, &make);
                        total.lock().unwrap_or_else(PoisonError::into_inner).add(found);
                    }
                });
            }
        });
        let mut report = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = report.failure.take() {
            report.failure = Some(self.shorten(failure, &make));
        }
        report
    }

    /// Plays one schedule, as a report printed it.
    ///
    /// # Errors
    /// `Invalid` if the text is no schedule.
    pub fn replay<E: Extractor>(&self, schedule: &str, make: impl Fn(&Life) -> E + Sync) -> Result<Report> {
        let schedule: Schedule = schedule.parse()?;
        let mut report = Report { seed: schedule.seed, ..Report::default() };
        let played = Play::of(self, &schedule, &make).play(&mut report);
        if let Err(violation) = played.verdict {
            report.note(Failure { violation, schedule, crash: played.crash });
        }
        Ok(report)
    }

    /// Explores the crashes of one schedule, then plays a few with several crashes.
    fn explore_one<E: Extractor>(&self, number: u64, make: &(impl Fn(&Life) -> E + Sync)) -> Report {
        let mut rng = fastrand::Rng::with_seed(self.seed.wrapping_mul(0x1_0001).wrapping_add(number));
        let mut report = Report::default();
        let mut acts = self.only.clone();
        acts.extend(acts_of(number, self.has_disk, &mut rng));
        let schedule = Schedule { seed: rng.u64(..1 << 32), acts };
        let base = Play::of(self, &schedule, make);
        let disk = base.disk.clone();
        let world = base.world.clone();
        let played = base.play(&mut report);
        if let Err(violation) = played.verdict {
            report.note(Failure { violation, schedule, crash: played.crash });
            return report;
        }
        let left = played.left;
        // A life that ended on a failing disk is followed by one on the same disk: the recording goes on.
        let sampling = Sampling { exhaustive_max: 5, subsets: 24, torn: 4, seed: rng.u64(..) };
        // The first schedule has the most of the budget for its crashes, and of as many unsynced operations as the budget
        // allows every subset; the others are for what befalls besides.
        let recording = disk.recording();
        let moments = recording.moments(&world.positions(0));
        let (sampling, states) = match number {
            0 => {
                let states = self.states / 3;
                let moments = moments.len() as u64;
                let exhaustive_max = (states / moments.max(1)).checked_ilog2().unwrap_or(0).clamp(7, 12);
                (Sampling { exhaustive_max, ..sampling }, states)
            }
            _ => (sampling, (self.states / 60).max(50)),
        };
        if self.has_disk {
            let crashes = (&recording, moments);
            self.explore_states(&schedule, &world, crashes, &sampling, states, &mut rng, make, &mut report);
        } else {
            self.explore_lost_disks(number, &schedule, &world, &left, &mut rng, make, &mut report);
        }
        for _ in 0..12 {
            if report.failure.is_some() {
                break;
            }
            self.play_deaths(&schedule, world.changes(), disk.position(), &mut rng, make, &mut report);
        }
        report
    }

    /// Opens states that one crash of the schedule can leave, and continues the distinct ones: the moments in a random
    /// order, each with all its images, until there were so many states.
    #[allow(clippy::too_many_arguments)]
    fn explore_states<E: Extractor>(
        &self,
        schedule: &Schedule,
        world: &World,
        (recording, mut moments): (&Recording, Vec<Moment>),
        sampling: &Sampling,
        states: u64,
        rng: &mut fastrand::Rng,
        make: &(impl Fn(&Life) -> E + Sync),
        report: &mut Report,
    ) {
        let mut seen = HashSet::new();
        let mut checked = HashSet::new();
        rng.shuffle(&mut moments);
        for moment in moments {
            if report.states >= states {
                return;
            }
            for crash in recording.images_at(moment.position, sampling) {
                report.states += 1;
                let failure = |violation, second: Option<CrashPoint>| {
                    let mut schedule = schedule.clone();
                    let points = [Some(crash.point), second].into_iter().flatten();
                    schedule.acts.extend(points.map(|point| Act::Crash { changes: moment.outside, point }));
                    Failure { violation, schedule, crash: recording.describe(&crash.point) }
                };
                let second = rng.u8(..50) == 0;
                let fingerprint = match self.open_state(&crash.image, second, rng, report) {
                    Ok(fingerprint) => fingerprint,
                    Err((violation, second)) => {
                        report.note(failure(violation, second));
                        return;
                    }
                };
                // The same rows were checked once.
                if checked.insert(fingerprint)
                    && let Err(violation) = self.check(&crash.image.disk())
                {
                    report.note(failure(violation, None));
                    return;
                }
                let new = seen.insert((fingerprint, moment.outside));
                if !new && rng.u8(..20) > 0 {
                    continue;
                }
                report.continuations += 1;
                let world = world.at(moment.outside);
                world.died();
                let play = Play::on(self, world, crash.image.disk(), Image::default(), &[], make);
                if let Err(violation) = play.play(report).verdict {
                    report.note(failure(violation, None));
                    return;
                }
            }
        }
    }

    /// Without a disk: dies before a change outside (each of them in the first schedule, some in the others), and goes on
    /// from nothing but what is outside, or, as the schedule has it, what a life before had `left`.
    #[allow(clippy::too_many_arguments)]
    fn explore_lost_disks<E: Extractor>(
        &self,
        number: u64,
        schedule: &Schedule,
        world: &World,
        left: &[Image],
        rng: &mut fastrand::Rng,
        make: &(impl Fn(&Life) -> E + Sync),
        report: &mut Report,
    ) {
        let fresh = self.fresh_disk();
        let mut moments: Vec<usize> = (1..=world.changes()).collect();
        if number > 0 {
            rng.shuffle(&mut moments);
            moments.truncate(usize::try_from(self.states / 60).unwrap_or(usize::MAX).max(8));
        }
        for changes in moments {
            report.states += 1;
            report.continuations += 1;
            let after = world.at(changes);
            after.died();
            // What the life that died here had on its disk is not known: it left an empty one.
            let lives = after.lives();
            let mut play = Play::on(self, after, fresh.disk(), fresh.clone(), &[], make);
            play.left.extend(left.iter().take(lives.saturating_sub(1)).cloned());
            play.left.resize(lives, fresh.clone());
            if let Err(violation) = play.play(report).verdict {
                let mut schedule = schedule.clone();
                schedule.acts.push(Act::Kill { changes, position: 0 });
                let crash = format!("the process and its disk are gone after {changes} changes outside");
                report.note(Failure { violation, schedule, crash });
                return;
            }
        }
    }

    /// Opens what a crash left, and crashes again while it recovers. What is wrong is told with that second crash.
    fn open_state(
        &self,
        image: &Image,
        second: bool,
        rng: &mut fastrand::Rng,
        report: &mut Report,
    ) -> Result<u64, (Violation, Option<CrashPoint>)> {
        let disk = image.disk();
        let fingerprint = self.fingerprint(&disk).map_err(|violation| (violation, None))?;
        if second {
            let recovery = disk.recording();
            let sampling = Sampling { exhaustive_max: 3, subsets: 4, torn: 1, seed: rng.u64(..) };
            for moment in recording_ends(&recovery) {
                for crash in recovery.images_at(moment, &sampling) {
                    report.second_crashes += 1;
                    report.states += 1;
                    let wrong = |violation| (violation, Some(crash.point));
                    let again = self.fingerprint(&crash.image.disk()).map_err(wrong)?;
                    if again != fingerprint {
                        let what =
                            format!("a crash during recovery, {}, changed what is stored", crash.point);
                        return Err(wrong(Violation { kind: Broken::Lost, what }));
                    }
                }
            }
        }
        Ok(fingerprint)
    }

    /// A number for what a disk holds, as the store reads it.
    fn fingerprint(&self, disk: &SimDisk) -> Result<u64, Violation> {
        self.open(disk, still_clock())
            .and_then(|store| store.fingerprint())
            .map_err(|error| unopenable(&error))
    }

    /// Lets the store on a disk check itself, every page and every row. (With a rule taken away its rows need not agree:
    /// then it is for the oracle to see what came of that.)
    fn check(&self, disk: &SimDisk) -> Result<(), Violation> {
        if self.broken.is_some() || self.syncs_ignored {
            return Ok(());
        }
        let found = self.open(disk, still_clock()).and_then(|mut store| store.check());
        match found.map_err(|error| unopenable(&error))? {
            None => Ok(()),
            Some(finding) => {
                let what = format!("the store does not pass its own check: {finding}");
                Err(Violation { kind: Broken::Unopenable, what })
            }
        }
    }

    fn open(&self, disk: &SimDisk, clock: crate::clock::VirtualClock) -> Result<Store> {
        Store::options()
            .batch_items(self.batch_items)
            .level(Level::new(0)?)
            .cache_bytes(1024 * 1024)
            .clock(clock)
            .break_rule(self.broken)
            .transfer_table(self.broken.and_then(table_without))
            .open_on(Box::new(disk.clone()), "the simulated store")
    }

    /// A disk where a store was just created.
    fn fresh_disk(&self) -> Image {
        let disk = SimDisk::new();
        drop(self.open(&disk, still_clock()));
        disk.image()
    }

    /// Plays the schedule with one to three deaths at random, each of which any later life may meet again.
    fn play_deaths<E: Extractor>(
        &self,
        schedule: &Schedule,
        changes: usize,
        position: usize,
        rng: &mut fastrand::Rng,
        make: &(impl Fn(&Life) -> E + Sync),
        report: &mut Report,
    ) {
        let mut schedule = schedule.clone();
        let mut at = 0;
        for death in 0..rng.u8(1..=3) {
            at += rng.usize(..changes.max(2) * 2 / 3);
            // Of the first disk any position; of a later one, which begins anew, an early one. Without a disk it dies by what
            // happens outside.
            let position = match (self.has_disk, death) {
                (false, _) => 0,
                (true, 0) => rng.usize(..position.max(2)),
                (true, _) => rng.usize(..position.max(4) / 3),
            };
            let point = |kept| CrashPoint { position, kept };
            schedule.acts.push(match rng.u8(..4) {
                0 => Act::Kill { changes: at, position },
                1 => Act::Crash { changes: at, point: point(Kept::Torn(rng.u64(..))) },
                _ => Act::Crash { changes: at, point: point(Kept::Random(rng.u64(..))) },
            });
        }
        let played = Play::of(self, &schedule, make).play(report);
        if let Err(violation) = played.verdict {
            report.note(Failure { violation, schedule, crash: played.crash });
        }
    }

    /// Takes acts away for as long as what is left breaks the same promise.
    fn shorten<E: Extractor>(&self, failure: Failure, make: &(impl Fn(&Life) -> E + Sync)) -> Failure {
        let mut shortest = failure;
        let mut at = 0;
        while at < shortest.schedule.acts.len() {
            let mut schedule = shortest.schedule.clone();
            schedule.acts.remove(at);
            let played = Play::of(self, &schedule, make).play(&mut Report::default());
            match played.verdict {
                Err(violation) if violation.kind == shortest.violation.kind => {
                    shortest = Failure { violation, schedule, crash: played.crash };
                    at = 0;
                }
                _ => at += 1,
            }
        }
        shortest
    }
}

fn unopenable(error: &Error) -> Violation {
    Violation { kind: Broken::Unopenable, what: chain(error) }
}

/// The moments just before a sync, and the end.
fn recording_ends(recording: &Recording) -> Vec<usize> {
    recording.moments(&[]).into_iter().map(|moment| moment.position).collect()
}

/// One schedule being played.
struct Play<'a, F> {
    settings: &'a Explore,
    world: World,
    disk: SimDisk,
    /// Where a store was just created: one is created under another name and renamed when it is whole, so no crash is
    /// inside of that.
    fresh: Image,
    /// Without a disk: what each life left, for a later one to find.
    left: Vec<Image>,
    /// Where it dies, death by death, the next last.
    crashes: Vec<Act>,
    make: &'a F,
}

struct Played {
    verdict: Result<(), Violation>,
    /// The last crash, in words.
    crash: String,
    /// Without a disk: what each life left.
    left: Vec<Image>,
}

/// Attachments streamed at once, in the schedules of a seed.
fn streams(seed: u64) -> usize {
    if seed.is_multiple_of(2) { STREAMS } else { 1 }
}

impl<'a, F, E> Play<'a, F>
where
    E: Extractor,
    F: Fn(&Life) -> E,
{
    /// A schedule at its beginning: on a disk where the store was just created.
    fn of(settings: &'a Explore, schedule: &Schedule, make: &'a F) -> Self {
        let world = World::new(schedule.seed, schedule.acts.clone().into(), settings.has_disk);
        let fresh = settings.fresh_disk();
        Self::on(settings, world, fresh.disk(), fresh, &schedule.acts, make)
    }

    /// A world that goes on, on a disk that it finds.
    fn on(
        settings: &'a Explore,
        world: World,
        disk: SimDisk,
        fresh: Image,
        acts: &[Act],
        make: &'a F,
    ) -> Self {
        let mut crashes: Vec<Act> = acts.iter().filter(|act| is_crash(act)).copied().collect();
        crashes.reverse();
        Self { settings, world, disk, fresh, left: Vec::new(), crashes, make }
    }

    /// Plays until every sync is done, or a promise is broken.
    fn play(mut self, report: &mut Report) -> Played {
        let mut crash = String::new();
        let mut verdict = Ok(());
        let mut lives = 0;
        if self.settings.syncs_ignored {
            self.disk.inject(Fault::SyncsIgnored);
        }
        loop {
            // Without a disk, who dies after a life was over dies before the next one does anything.
            if !self.settings.has_disk
                && self.dies_at().is_some_and(|(changes, _)| self.world.changes() >= changes)
            {
                self.world.died();
                report.deaths += 1;
                crash = self.start_again();
                continue;
            }
            let overtakes = self.world.lock().may_overtake() && self.nothing_is_sealed();
            let event = self.world.lock().next_event(overtakes);
            let Some(event) = event else { break };
            lives += 1;
            if lives > LIVES_MAX {
                let what = format!("no end after {lives} lives, at {}", event.event_type);
                verdict = Err(Violation { kind: Broken::Stuck, what });
                break;
            }
            if !self.settings.has_disk {
                self.disk = self.found_disk();
            }
            verdict = self.live(&event, report);
            if verdict.is_err() {
                break;
            }
            if self.disk.is_dead() {
                self.world.died();
                report.deaths += 1;
                crash = self.start_again();
                verdict = self.settings.check(&self.disk.image().disk());
                if verdict.is_err() {
                    break;
                }
            }
            if !self.settings.has_disk {
                self.left.push(self.disk.image());
            }
        }
        if verdict.is_ok() {
            verdict = self.settings.check(&self.disk.image().disk());
        }
        report.lives += lives;
        let world = self.world.lock();
        for (fault, times) in &world.fired {
            *report.faults.entry(fault.clone()).or_default() += times;
        }
        // Without a disk, whatever was uploaded since the last checkpoint is uploaded again.
        let at_once = if self.settings.has_disk { (LANES + streams(world.seed)) as u64 } else { 64 };
        let verdict = verdict.and_then(|()| world.verdict(at_once));
        drop(world);
        Played { verdict, crash, left: self.left }
    }

    /// Whether no message waits to be accepted, by what the store holds, or without a disk the checkpoint.
    fn nothing_is_sealed(&self) -> bool {
        let unit = self.world.lock().unit();
        let sealed = if self.settings.has_disk {
            let store = self.settings.open(&self.disk.image().disk(), still_clock());
            store.and_then(|store| SyncUnitId::new(unit).and_then(|unit| store.any_unit(unit).has_sealed()))
        } else {
            self.world.lock().sealed_in_checkpoint(&unit)
        };
        // What cannot be read now is for the next life to find out.
        sealed.is_ok_and(|sealed| !sealed)
    }

    /// The disk that the next life finds: an empty one, or what an earlier life left.
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

    /// The number of changes outside, and the position of the disk, at which it dies next. Without a disk it is the first
    /// alone that counts.
    fn dies_at(&self) -> Option<(usize, usize)> {
        let (changes, position) = match self.crashes.last()? {
            Act::Crash { changes, point } => (*changes, point.position),
            Act::Kill { changes, position } => (*changes, *position),
            _ => return None,
        };
        Some((changes, if self.settings.has_disk { position } else { 0 }))
    }

    /// One life: the real store and the real runtime, given one event.
    fn live(&self, event: &SentEvent, report: &mut Report) -> Result<(), Violation> {
        let dies_at = self.dies_at();
        if let Some((_, position)) = dies_at
            && self.settings.has_disk
        {
            self.disk.inject(Fault::Dies { position });
        }
        // Delivered again, it may hear what an earlier life had sealed.
        let first = !self.world.lock().sent.iter().any(|sent| sent.request == event.request);
        self.world.send(event.clone());
        let life = self.world.begin_life(&self.disk, dies_at);
        let before = {
            let world = self.world.lock();
            let number = world.sent.len() as u64 - 1;
            for act in world.acts.iter() {
                match act {
                    Act::DiskFull { life, writes } if *life == number => {
                        self.disk.inject(Fault::FullAfter { writes: *writes });
                    }
                    Act::DiskFails { life, operation, after } if *life == number => {
                        self.disk.inject(Fault::Fails { operation: *operation, after: *after });
                    }
                    _ => {}
                }
            }
            (world.accepted_count(), world.advanced(), world.failed_calls)
        };
        let (accepted_before, advanced_before, failed_before) = before;
        let faults_before = self.disk.fault_counts();
        let result = self.serve(event, &life);
        let faults = self.disk.fault_counts();
        let failed = faults != faults_before;
        for (name, times) in [
            ("disk/full", faults.no_space - faults_before.no_space),
            ("disk/read-failed", faults.reads - faults_before.reads),
            ("disk/write-failed", faults.writes - faults_before.writes),
            ("disk/set-len-failed", faults.set_lens - faults_before.set_lens),
            ("disk/sync-failed", faults.syncs - faults_before.syncs),
        ] {
            if times > 0 {
                *report.faults.entry(name.to_owned()).or_default() += times;
            }
        }
        self.disk.heal();
        if self.settings.syncs_ignored {
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
        match outcome {
            Ok(()) => self.world.served(&event.request),
            Err(error) => match error.kind() {
                // The disk failed, and the process ended: that is what it is for.
                ErrorKind::Io | ErrorKind::Corrupt if failed => self.world.died(),
                // The platform would not take the message; it will hear it again.
                ErrorKind::Retry => {}
                ErrorKind::Fenced if event.stray => {}
                // A save of its own landed late, and it could not tell it from another holder's.
                ErrorKind::Fenced if !self.settings.has_disk => {}
                _ => {
                    let what = format!("{} was not answered: {}", event.event_type, chain(&error));
                    let kind = if error.kind() == ErrorKind::Corrupt {
                        Broken::Unopenable
                    } else {
                        Broken::Conversation
                    };
                    return Err(Violation { kind, what });
                }
            },
        }
        let world = self.world.lock();
        let untroubled = !failed && world.failed_calls == failed_before;
        if first && untroubled && world.advanced() == advanced_before && world.only_says_progress() {
            let what = format!("{} was answered with PROGRESS, and nothing was done", event.event_type);
            return Err(Violation { kind: Broken::Stuck, what });
        }
        if event.stray && world.accepted_count() > accepted_before && !world.reuses_ids() {
            let what = format!("{} delivered again was given a new answer", event.request);
            return Err(Violation { kind: Broken::Conversation, what });
        }
        Ok(())
    }

    /// What a process does: opens the store, serves the event, and ends.
    #[allow(clippy::type_complexity)]
    fn serve(&self, event: &SentEvent, life: &Life) -> Result<(Result<()>, Option<Violation>)> {
        let store = self.settings.open(&self.disk, self.world.clock())?;
        let event = Event::from_json(&event.json)?;
        let mut watched = Watched { extractor: (self.make)(life), life: life.clone(), violation: None };
        let seed = life.seed() ^ self.world.changes() as u64;
        let streams = streams(life.seed());
        let mut serve = Serve::new().budget(BUDGET).lanes(LANES).streams(streams).inline(seed);
        if !self.settings.has_disk {
            serve = serve.checkpoints();
        }
        let outcome = serve.serve(&store, &self.world, &mut watched, &event).map(drop);
        Ok((outcome, watched.violation))
    }

    /// Starts the machine, or the process, again after a death.
    fn start_again(&mut self) -> String {
        let recording = self.disk.recording();
        let crash = if let Some(Act::Crash { point, .. }) = self.crashes.pop() {
            // Nothing is recorded after a death, so it happened where the recording ends.
            let point = CrashPoint { position: recording.end(), ..point };
            let image = recording.image(&point).map(|crash| crash.image);
            self.disk = image.unwrap_or_else(|| self.disk.image()).disk();
            recording.describe(&point)
        } else {
            self.disk = recording.killed_at(recording.end());
            format!("killed at position {}, everything written is there", recording.end())
        };
        if self.settings.syncs_ignored {
            self.disk.inject(Fault::SyncsIgnored);
        }
        crash
    }
}

fn is_crash(act: &Act) -> bool {
    matches!(act, Act::Crash { .. } | Act::Kill { .. })
}

impl Report {
    fn add(&mut self, other: Report) {
        self.states += other.states;
        self.continuations += other.continuations;
        self.lives += other.lives;
        self.deaths += other.deaths;
        self.second_crashes += other.second_crashes;
        for (fault, times) in other.faults {
            *self.faults.entry(fault).or_default() += times;
        }
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.unopenable += other.unopenable;
        self.other += other.other;
        if self.failure.is_none() {
            self.failure = other.failure;
        }
    }

    fn note(&mut self, failure: Failure) {
        match failure.violation.kind {
            Broken::Lost => self.lost += 1,
            Broken::Duplicated => self.duplicated += 1,
            Broken::Unopenable => self.unopenable += 1,
            _ => self.other += 1,
        }
        self.failure.get_or_insert(failure);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fault, times) in &self.faults {
            writeln!(f, "fault {fault}: {times}")?;
        }
        writeln!(
            f,
            "seed={} deaths={} second_crashes={} other={}",
            self.seed, self.deaths, self.second_crashes, self.other
        )?;
        if let Some(failure) = &self.failure {
            writeln!(f, "BROKEN {:?}: {}", failure.violation.kind, failure.violation.what)?;
            writeln!(f, "shortest schedule: {}", failure.schedule)?;
            if !failure.crash.is_empty() {
                writeln!(f, "its crash: {}", failure.crash)?;
            }
        }
        write!(
            f,
            "states={} continuations={} lives={} faults={} lost={} duplicated={} unopenable={}",
            self.states,
            self.continuations,
            self.lives,
            self.faults.values().sum::<u64>(),
            self.lost,
            self.duplicated,
            self.unopenable
        )
    }
}
