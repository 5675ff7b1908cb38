//! Kills an extractor at every step, and checks that every record is still announced exactly once.
//!
//! A *schedule* is a seed and the *acts* that happen to the extractor. One run of a schedule yields all crashes that
//! it could have had: each moment of the world outside, with each image that the disk may have then. Each such
//! *state* is opened by the real store, which must pass its own check. States with the same rows and the same world
//! are one; each distinct one is *continued*: the real runtime goes on from it until every sync is done, and the
//! oracle gives its verdict. In addition, seeded schedules are played with several crashes, lives and faults each.
//!
//! A schedule that fails is made shorter, act by act, as long as it still fails. The rest is printed as one line,
//! which [`Explore::replay`] plays again.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

#[cfg(feature = "async")]
use crate::airdrop::AsyncExtractor;
use crate::airdrop::Extractor;
use crate::error::Result;
use crate::model::Safeguard;

use super::catalogue::acts_of;
use super::controls::Uploads;
use super::crash::{CrashImage, CrashPoint, Kept, Moment, Recording, Sampling};
use super::disk::SimDisk;
use super::image::Image;
use super::play::Play;
use super::report::{Broken, Failure, Report, Violation};
use super::schedule::{Act, Schedule, Setting};
#[cfg(feature = "async")]
use super::setup::Awaiting;
use super::setup::{Make, Setup};
use super::world::{Life, World};

/// What to explore, and how far; created by [`Explore::new`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Explore {
    seed: u64,
    states: u64,
    threads: usize,
    setup: Setup,
    only: Vec<Act>,
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
            setup: Setup {
                batch_items: 5,
                broken: None,
                broken_of: None,
                syncs_ignored: false,
                has_disk: true,
                expected: BTreeMap::new(),
            },
            only: Vec::new(),
        }
    }

    /// How many crash states to explore, at least.
    pub fn states(mut self, states: u64) -> Self {
        self.states = states;
        self
    }

    /// The seed of all random choices; the same seed explores the same states.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Threads to explore on: 1 to 64.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 64);
        self
    }

    /// Records in a batch: small batches make many of them.
    pub fn batch_items(mut self, items: u32) -> Self {
        self.setup.batch_items = items.max(1);
        self
    }

    /// Expects the first sync to announce this many records of an item type, wherever it was killed. The source must
    /// have the same records whenever it is asked.
    ///
    /// Everything else compares what was announced with what the extractor returned. So this is what finds a page that
    /// is never asked for, a record that is read and not added, and one that is added with [`Page::push`] by several
    /// pages, or by several lives.
    ///
    /// ```
    /// use highwater::testing::{Explore, SimSource};
    /// let report = Explore::new().states(50).expect_records("issues", 1_000_000).run(SimSource::new);
    /// assert!(report.failure.is_some_and(|failure| failure.violation.what.contains("1000000 were expected")));
    /// ```
    ///
    /// [`Page::push`]: crate::Page::push
    pub fn expect_records(mut self, item_type: impl Into<String>, records: u64) -> Self {
        self.setup.expected.insert(item_type.into(), records);
        self
    }

    /// A negative control: removes a rule of the runtime. The exploration must find that.
    pub fn without_rule(mut self, rule: Safeguard) -> Self {
        self.setup.broken = Some(rule);
        self
    }

    /// A negative control: removes a rule about uploads for those of one kind only.
    pub fn without_rule_of(mut self, uploads: Uploads, rule: Safeguard) -> Self {
        self.setup.broken = Some(rule);
        self.setup.broken_of = Some(uploads);
        self
    }

    /// A negative control: the disk ignores syncs.
    pub fn without_syncs(mut self) -> Self {
        self.setup.syncs_ignored = true;
        self
    }

    /// Explores a worker without a disk: every life finds an empty disk, or, if the schedule says so, a stale one
    /// from an earlier life. The platform has its checkpoint.
    pub fn without_disk(mut self) -> Self {
        self.setup.has_disk = false;
        self
    }

    /// Adds these acts to every schedule.
    pub fn with_acts(mut self, acts: impl IntoIterator<Item = Act>) -> Self {
        self.only.extend(acts);
        self
    }

    /// Explores until the budget of states is used up or a promise is broken. `make` is called for every life of the
    /// extractor, on any thread. The extractor that it makes must depend only on the [`Life`].
    ///
    /// ```
    /// use highwater::testing::{Explore, SimSource};
    /// let report = Explore::new().states(300).run(SimSource::new);
    /// assert!(report.failure.is_none(), "{report}");
    /// ```
    pub fn run<E: Extractor>(&self, make: impl Fn(&Life) -> E + Sync) -> Report {
        self.explore(&make)
    }

    /// Like [`Explore::run`], with async extractors: the engine of each life runs on its own thread, and the
    /// extractor's futures are polled by the exploring thread.
    #[cfg(feature = "async")]
    pub fn run_async<E: AsyncExtractor>(&self, make: impl Fn(&Life) -> E + Sync) -> Report {
        self.explore(&Awaiting(make))
    }

    fn explore<M: Make>(&self, make: &M) -> Report {
        let total = Mutex::new(Report { seed: self.seed, ..Report::default() });
        let first = Mutex::new(None);
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        {
                            let total = total.lock().unwrap_or_else(PoisonError::into_inner);
                            let failed = total.lost + total.duplicated + total.unopenable + total.other > 0;
                            if failed || total.states >= self.states {
                                return;
                            }
                        }
                        let mut found = Exploration::of(self, number, make).run();
                        let failure = found.failure.take();
                        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                        total.add(found);
                        // If there are several, that of the first schedule, so that the number of threads does not
                        // matter.
                        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(failure) = failure
                            && first.as_ref().is_none_or(|(other, _)| *other > number)
                        {
                            *first = Some((number, failure));
                        }
                    }
                });
            }
        });
        let first = first.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut report = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.failure = first.map(|(_, failure)| self.shorten(failure, make));
        report
    }

    /// Plays one schedule, as a report printed it.
    ///
    /// # Errors
    /// `Invalid` if the text is not a schedule.
    pub fn replay<E: Extractor>(&self, schedule: &str, make: impl Fn(&Life) -> E + Sync) -> Result<Report> {
        let schedule: Schedule = schedule.parse()?;
        let mut report = Report { seed: schedule.seed, ..Report::default() };
        let played = Play::of(&self.setup, &schedule, &make).play(&mut report);
        if let Err(violation) = played.verdict {
            report.note(Failure { violation, schedule, crash: played.crash });
        }
        Ok(report)
    }

    /// Removes acts as long as the remaining schedule breaks the same promise.
    fn shorten<M: Make>(&self, failure: Failure, make: &M) -> Failure {
        let mut shortest = failure;
        let mut at = 0;
        while at < shortest.schedule.acts.len() {
            let mut schedule = shortest.schedule.clone();
            schedule.acts.remove(at);
            let played = Play::of(&self.setup, &schedule, make).play(&mut Report::default());
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

/// The crashes of one schedule, while they are explored.
struct Exploration<'a, M> {
    settings: &'a Explore,
    make: &'a M,
    /// Which schedule it is.
    number: u64,
    schedule: Schedule,
    rng: fastrand::Rng,
    report: Report,
}

impl<'a, M: Make> Exploration<'a, M> {
    fn of(settings: &'a Explore, number: u64, make: &'a M) -> Self {
        let mut rng = fastrand::Rng::with_seed(settings.seed.wrapping_mul(0x1_0001).wrapping_add(number));
        let mut acts = settings.only.clone();
        // Without a disk, every moment of the first schedule is explored. It has child listings, unless told
        // otherwise.
        acts.extend(acts_of(number, settings.setup.has_disk, &mut rng));
        if number == 0 && !settings.setup.has_disk && settings.only.is_empty() {
            acts.extend([Act::With(Setting::Children), Act::With(Setting::AtOnce)]);
        }
        let schedule = Schedule { seed: rng.u64(..1 << 32), acts };
        Self { settings, make, number, schedule, rng, report: Report::default() }
    }

    /// Explores the crashes of the schedule, then plays it a few times with several crashes.
    fn run(mut self) -> Report {
        let base = Play::of(&self.settings.setup, &self.schedule, self.make);
        let disk = base.disk.clone();
        let world = base.world.clone();
        let played = base.play(&mut self.report);
        if let Err(violation) = played.verdict {
            self.note(violation, [], played.crash);
            return self.report;
        }
        let seed = self.rng.u64(..);
        if self.settings.setup.has_disk {
            // A life that ended on a failing disk is followed by one on the same disk: the recording goes on.
            self.crashes(&disk.recording(), &world, seed);
        } else {
            self.lost_disks(&world, &played.left);
        }
        for _ in 0..12 {
            if self.report.failure.is_some() {
                break;
            }
            self.deaths(world.changes(), disk.position());
        }
        self.report
    }

    fn note(&mut self, violation: Violation, acts: impl IntoIterator<Item = Act>, crash: String) {
        let mut schedule = self.schedule.clone();
        schedule.acts.extend(acts);
        self.report.note(Failure { violation, schedule, crash });
    }

    /// Opens states that one crash of the schedule can leave, and continues the distinct ones: the moments in a
    /// random order, each with all its images, until there are as many states as the schedule should have.
    fn crashes(&mut self, recording: &Recording, world: &World, seed: u64) {
        let mut moments = recording.moments(&world.positions(0));
        // If a store was replaced, nobody finds the disk that it had then.
        let replaced = world.replaced_at().unwrap_or(usize::MAX);
        moments.retain(|moment| moment.outside < replaced);
        let (sampling, states) = self.budget(moments.len(), seed);
        let mut known = Known::default();
        self.rng.shuffle(&mut moments);
        for moment in moments {
            if self.report.states >= states {
                return;
            }
            // The process is killed here, and the machine goes on: what the next life reads of the disk must be
            // durable.
            if self.number == 0 || self.rng.u8(..4) == 0 {
                let killed = recording.killed_at(moment.position);
                if let Err(violation) = self.settings.setup.durable_at_open(&killed) {
                    let Moment { outside: changes, position } = moment;
                    let crash = format!("killed at position {position}, everything written is there");
                    self.note(violation, [Act::Kill { changes, position }], crash);
                    return;
                }
            }
            for crash in recording.images_at(moment.position, &sampling) {
                if let Err((violation, second)) = self.crash(&crash, moment, world, &mut known) {
                    let points = [Some(crash.point), second].into_iter().flatten();
                    let acts = points.map(|point| Act::Crash { changes: moment.outside, point });
                    self.note(violation, acts, recording.describe(&crash.point));
                    return;
                }
            }
        }
    }

    /// How closely to explore each moment, and after how many states to stop. The first schedule has most of the
    /// budget for its crashes, and every subset of as many unsynced operations as the budget allows. The others are
    /// for the acts.
    fn budget(&self, moments: usize, seed: u64) -> (Sampling, u64) {
        let sampling = Sampling { exhaustive_max: 5, subsets: 24, torn: 4, seed };
        match self.number {
            0 => {
                let states = self.settings.states / 3;
                let each = states / (moments as u64).max(1);
                let exhaustive_max = each.checked_ilog2().unwrap_or(0).clamp(7, 12);
                (Sampling { exhaustive_max, ..sampling }, states)
            }
            _ => (sampling, (self.settings.states / 60).max(50)),
        }
    }

    /// Opens what one crash left, checks it, and continues it unless the same state was seen before. A failure is
    /// returned with the crash during recovery that showed it, if there is one.
    fn crash(
        &mut self,
        crash: &CrashImage,
        moment: Moment,
        world: &World,
        known: &mut Known,
    ) -> Result<(), (Violation, Option<CrashPoint>)> {
        let setup = &self.settings.setup;
        let first = |violation| (violation, None);
        self.report.states += 1;
        // If opening syncs nothing, a recovery can leave anything; the purpose of that rule is checked above.
        let second = self.rng.u8(..50) == 0 && setup.broken != Some(Safeguard::DurableAtOpen);
        let disk = crash.image.disk();
        let fingerprint = setup.fingerprint(&disk).map_err(first)?;
        if second {
            self.second_crashes(&disk, fingerprint)?;
        }
        // The same rows were checked before.
        if known.checked.insert(fingerprint) {
            setup.check(&crash.image.disk()).map_err(first)?;
        }
        let new = known.continued.insert((fingerprint, moment.outside));
        if !new && self.rng.u8(..20) > 0 {
            return Ok(());
        }
        self.report.continuations += 1;
        let world = world.at(moment.outside);
        world.died();
        let play = Play::on(setup, world, crash.image.disk(), Image::default(), &[], self.make);
        play.play(&mut self.report).verdict.map_err(first)
    }

    /// Crashes again while a disk is recovered. That must not change what is stored.
    fn second_crashes(
        &mut self,
        disk: &SimDisk,
        fingerprint: u64,
    ) -> Result<(), (Violation, Option<CrashPoint>)> {
        let recovery = disk.recording();
        let sampling = Sampling { exhaustive_max: 3, subsets: 4, torn: 1, seed: self.rng.u64(..) };
        for moment in recovery.moments(&[]) {
            for crash in recovery.images_at(moment.position, &sampling) {
                self.report.second_crashes += 1;
                self.report.states += 1;
                let wrong = |violation| (violation, Some(crash.point));
                let again = self.settings.setup.fingerprint(&crash.image.disk()).map_err(wrong)?;
                if again != fingerprint {
                    let what = format!("a crash during recovery, {}, changed what is stored", crash.point);
                    return Err(wrong(Violation { kind: Broken::Lost, what }));
                }
            }
        }
        Ok(())
    }

    /// Without a disk: dies before a change of what the platform has (every one in the first schedule, some in the
    /// others), and goes on with only what is outside, or, if the schedule says so, with what an earlier life had
    /// `left`.
    fn lost_disks(&mut self, world: &World, left: &[Image]) {
        let setup = &self.settings.setup;
        let fresh = setup.fresh_disk();
        let mut moments = world.before_traces();
        if self.number > 0 {
            self.rng.shuffle(&mut moments);
            moments.truncate(usize::try_from(self.settings.states / 60).unwrap_or(usize::MAX).max(8));
        }
        for changes in moments {
            self.report.states += 1;
            self.report.continuations += 1;
            let after = world.at(changes);
            after.died();
            // The disk of the life that died here is unknown: it counts as empty.
            let lives = after.lives();
            let mut play = Play::on(setup, after, fresh.disk(), fresh.clone(), &[], self.make);
            play.left.extend(left.iter().take(lives.saturating_sub(1)).cloned());
            play.left.resize(lives, fresh.clone());
            if let Err(violation) = play.play(&mut self.report).verdict {
                let crash = format!("the process and its disk are gone after {changes} changes outside");
                self.note(violation, [Act::Kill { changes, position: 0 }], crash);
                return;
            }
        }
    }

    /// Plays the schedule with one to three random deaths, which may happen in any later life too.
    fn deaths(&mut self, changes: usize, position: usize) {
        let mut acts = Vec::new();
        let mut at = 0;
        let rng = &mut self.rng;
        for death in 0..rng.u8(1..=3) {
            at += rng.usize(..changes.max(2) * 2 / 3);
            // On the first disk at any position; on a later disk, which is new, at an early one. Without a disk
            // a death happens at a change outside.
            let position = match (self.settings.setup.has_disk, death) {
                (false, _) => 0,
                (true, 0) => rng.usize(..position.max(2)),
                (true, _) => rng.usize(..position.max(4) / 3),
            };
            let point = |kept| CrashPoint { position, kept };
            let kind = rng.u8(..5);
            acts.push(match kind {
                0 | 4 => Act::Kill { changes: at, position },
                1 => Act::Crash { changes: at, point: point(Kept::Torn(rng.u64(..))) },
                _ => Act::Crash { changes: at, point: point(Kept::Random(rng.u64(..))) },
            });
            if kind == 4 {
                // The next life acts, and power fails when as little of its work as possible is done.
                let point = CrashPoint { position: 0, kept: Kept::Random(rng.u64(..)) };
                acts.push(Act::Crash { changes: at + rng.usize(1..4), point });
            }
        }
        let mut schedule = self.schedule.clone();
        schedule.acts.extend(acts.iter().copied());
        let played = Play::of(&self.settings.setup, &schedule, self.make).play(&mut self.report);
        if let Err(violation) = played.verdict {
            self.note(violation, acts, played.crash);
        }
    }
}

/// The states of one schedule that were seen.
#[derive(Default)]
struct Known {
    /// The rows that the store has checked.
    checked: HashSet<u64>,
    /// The rows from which a run went on, each with the world at that moment.
    continued: HashSet<(u64, usize)>,
}
