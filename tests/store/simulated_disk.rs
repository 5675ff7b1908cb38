//! The simulated disk, checked with a database that is known to be crash-safe: redb with two-phase commits.
//!
//! Whatever a crash leaves, redb finds in it the last acknowledged commit or the one in progress, and nothing else.
//! The oracle is a plain map that is computed before any database is opened. If syncs are ignored, the same check
//! fails.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use highwater::Disk;
use highwater::testing::{
    CrashImage, DiskOperation, Fault, FaultCounts, Image, Kept, Recording, Sampling, SimDisk,
};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

const SEED: u64 = 41;
const COMMITS: usize = 30;
const TABLES: [TableDefinition<u64, &[u8]>; 3] =
    [TableDefinition::new("rows"), TableDefinition::new("bytes"), TableDefinition::new("number")];

/// redb on the simulated disk.
#[derive(Debug)]
struct Backend(SimDisk);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(at, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(at, bytes)
    }
}

/// Opens, and recovers if need be. Where `verify`, every checksum is verified first: on a disk that breaks its word,
/// redb would otherwise believe what it reads.
fn open_with(disk: &SimDisk, verify: bool) -> Result<Database, redb::DatabaseError> {
    Database::builder()
        .set_cache_size(8 << 20)
        .set_check_integrity_on_open(verify)
        .create_with_backend(Backend(disk.clone()))
}

fn open(disk: &SimDisk) -> Result<Database, redb::DatabaseError> {
    open_with(disk, false)
}

/// A database with three empty tables, closed cleanly.
fn fresh() -> Image {
    let disk = SimDisk::new();
    let database = open(&disk).unwrap();
    let transaction = database.begin_write().unwrap();
    for table in TABLES {
        transaction.open_table(table).unwrap();
    }
    transaction.commit().unwrap();
    database.close().unwrap();
    disk.image()
}

/// Everything in the database: (table, key) to value. Values are shared between states.
type State = BTreeMap<(usize, u64), Arc<[u8]>>;
type Change = Vec<(usize, u64, Option<Arc<[u8]>>)>;

/// What each commit changes, and what the database then holds; state 0 is that before the first commit.
struct Model {
    changes: Vec<Change>,
    states: Vec<State>,
}

/// Small rows and values of hundreds of KiB, written and removed, and the number of the commit.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut model = Model { changes: Vec::new(), states: vec![State::new()] };
    for number in 1..=COMMITS {
        let bytes =
            |rng: &mut fastrand::Rng, len: usize| -> Arc<[u8]> { (0..len).map(|_| rng.u8(..)).collect() };
        let mut change = Change::new();
        for _ in 0..rng.usize(1..8) {
            let len = rng.usize(0..400);
            let value = (rng.u8(0..4) > 0).then(|| bytes(&mut rng, len));
            change.push((0, rng.u64(0..60), value));
        }
        if number % 3 == 1 {
            let len = rng.usize(100_000..500_000);
            change.push((1, rng.u64(0..4), Some(bytes(&mut rng, len))));
        } else if number % 5 == 0 {
            change.push((1, rng.u64(0..4), None));
        }
        change.push((2, 0, Some((number as u64).to_le_bytes().as_slice().into())));
        let mut state = model.states[number - 1].clone();
        for (table, key, value) in &change {
            match value {
                Some(value) => state.insert((*table, *key), value.clone()),
                None => state.remove(&(*table, *key)),
            };
        }
        model.changes.push(change);
        model.states.push(state);
    }
    model
});

/// Makes commit `number` (from 1).
fn commit(database: &Database, number: usize, two_phase: bool) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(two_phase);
    {
        let mut tables = Vec::new();
        for table in TABLES {
            tables.push(transaction.open_table(table)?);
        }
        for (table, key, value) in &MODEL.changes[number - 1] {
            match value {
                Some(value) => tables[*table].insert(key, &**value)?,
                None => tables[*table].remove(key)?,
            };
        }
    }
    transaction.commit()?;
    Ok(())
}

/// The number of the commit whose state the database has. All rows must agree with it.
fn held(database: &Database) -> Result<usize, String> {
    let held = || -> Result<Option<usize>, redb::Error> {
        let transaction = database.begin_read()?;
        let number = transaction.open_table(TABLES[2])?.get(0)?.map(|number| number.value().to_vec());
        let number = number.map_or(0, |number| u64::from_le_bytes(number.try_into().unwrap()));
        let number = usize::try_from(number).unwrap();
        let mut expected = MODEL.states[number].iter();
        for (at, definition) in TABLES.iter().enumerate() {
            for row in transaction.open_table(*definition)?.iter()? {
                let (key, value) = row?;
                let same = expected.next().is_some_and(|((table, expected_key), expected_value)| {
                    (*table, *expected_key) == (at, key.value()) && **expected_value == *value.value()
                });
                if !same {
                    return Ok(None);
                }
            }
        }
        Ok(expected.next().is_none().then_some(number))
    };
    match held() {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err("holds no commit's state".to_owned()),
        Err(error) => Err(format!("does not read: {error}")),
    }
}

/// Opens the disk and tells what it holds; then the process dies.
fn recover(disk: &SimDisk, verify: bool) -> Result<usize, String> {
    let database = open_with(disk, verify).map_err(|error| format!("does not open: {error}"))?;
    let held = held(&database);
    disk.kill();
    held
}

/// A life of a process on a recorded disk, perhaps after others, and what the world outside saw of them.
struct Run {
    recording: Recording,
    /// Where this life began.
    from: usize,
    /// From this position on, the world had seen so many commits.
    seen: Vec<(usize, usize)>,
    /// From this position on, so many commits could be on the disk.
    begun: Vec<(usize, usize)>,
}

impl Run {
    /// A life that opens the database, makes the next `commits` commits and closes it, after what was `seen` and
    /// `begun` before.
    fn live(
        disk: &SimDisk,
        seen: &[(usize, usize)],
        begun: &[(usize, usize)],
        commits: usize,
        how: Life,
    ) -> Self {
        let (mut seen, mut begun) = (seen.to_vec(), begun.to_vec());
        let from = disk.position();
        let database = open(disk).unwrap();
        let first = held(&database).unwrap();
        seen.push((disk.position(), first));
        if how.syncs_ignored {
            disk.inject(Fault::SyncsIgnored);
        }
        for number in first + 1..=COMMITS.min(first + commits) {
            begun.push((disk.position(), number));
            commit(&database, number, how.two_phase).unwrap();
            seen.push((disk.position(), number));
        }
        drop(database);
        Run { recording: disk.recording(), from, seen, begun }
    }

    fn first(how: Life) -> Self {
        Self::live(&FRESH.disk(), &[(0, 0)], &[(0, 0)], COMMITS, how)
    }

    /// A life on what a crash left, in which `held` commits were found.
    fn on(image: &Image, held: usize, how: Life) -> Self {
        Self::live(&image.disk(), &[(0, held)], &[(0, held)], 1, how)
    }

    /// The commits that an image may hold, where the world has seen the first `outside` of `seen`.
    fn allowed(&self, outside: usize, crash: &CrashImage) -> RangeInclusive<usize> {
        let (_, seen) = self.seen[outside.saturating_sub(1)];
        let begun = self.begun.iter().take_while(|(position, _)| *position < crash.earliest).last();
        seen..=begun.map_or(seen, |(_, number)| seen.max(*number))
    }

    /// Opens every image that a crash in this life can leave, each distinct one once, and compares it with what may
    /// be in it.
    fn check(&self, sampling: &Sampling, recovered: &mut Recovered) -> Report {
        let mut report = Report::default();
        let outside: Vec<usize> = self.seen.iter().map(|(position, _)| *position).collect();
        let moments = self.recording.moments(&outside);
        for moment in moments.into_iter().filter(|moment| moment.position >= self.from) {
            report.moments += 1;
            let mut images = self.recording.images_at(moment.position, sampling);
            for crash in images.by_ref() {
                report.images += 1;
                report.torn += u64::from(matches!(crash.point.kept, Kept::Torn(_)));
                let held = recovered.entry(crash.image.hash()).or_insert_with(|| {
                    report.opened += 1;
                    recover(&crash.image.disk(), false)
                });
                let allowed = self.allowed(moment.outside, &crash);
                match held {
                    Ok(number) if allowed.contains(number) => {
                        report.under_way += u64::from(*number > *allowed.start());
                    }
                    wrong => {
                        report.wrong += 1;
                        report.first.get_or_insert_with(|| {
                            let what = self.recording.describe(&crash.point);
                            format!("{}: {wrong:?}, allowed {allowed:?}\n{what}", crash.point)
                        });
                    }
                }
            }
            report.choices += images.considered();
        }
        report
    }
}

#[derive(Clone, Copy)]
struct Life {
    two_phase: bool,
    syncs_ignored: bool,
}

const TWO_PHASE: Life = Life { two_phase: true, syncs_ignored: false };

static FRESH: LazyLock<Image> = LazyLock::new(fresh);

type Recovered = HashMap<u128, Result<usize, String>>;

/// What was gone through, and what was wrong.
#[derive(Default)]
struct Report {
    moments: u64,
    choices: u64,
    images: u64,
    torn: u64,
    /// Images not seen before, so opened.
    opened: u64,
    /// Images with the commit that was under way.
    under_way: u64,
    wrong: u64,
    first: Option<String>,
}

impl Report {
    fn add(&mut self, other: Self) {
        self.moments += other.moments;
        self.choices += other.choices;
        self.images += other.images;
        self.torn += other.torn;
        self.opened += other.opened;
        self.under_way += other.under_way;
        self.wrong += other.wrong;
        self.first = self.first.take().or(other.first);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { moments, choices, images, torn, opened, under_way, wrong, .. } = self;
        write!(
            f,
            "moments={moments} choices={choices} images={images} torn={torn} opened={opened} \
             under_way={under_way} wrong={wrong} seed={SEED}"
        )?;
        self.first.iter().try_for_each(|first| write!(f, "\n{first}"))
    }
}

#[test]
fn every_crash_leaves_the_last_commit_or_the_one_under_way() {
    let run = Run::first(TWO_PHASE);
    let sampling = Sampling { exhaustive_max: 9, subsets: 32, torn: 48, seed: SEED };
    let report = run.check(&sampling, &mut Recovered::new());
    println!("crashes: {report}");
    assert_eq!(report.wrong, 0, "{report}");
    assert!(report.opened > 5000 && report.torn > 500 && report.under_way >= COMMITS as u64, "{report}");
    // The file grew and shrank, and lost that: or the check has missed the changes of length.
    let lengths: BTreeSet<u64> = run
        .recording
        .moments(&[])
        .iter()
        .flat_map(|moment| run.recording.images_at(moment.position, &sampling))
        .map(|crash| crash.image.len())
        .collect();
    assert!(lengths.len() > 2, "{lengths:?}");
}

#[test]
fn a_crash_during_recovery_or_after_it_leaves_no_less() {
    let run = Run::first(TWO_PHASE);
    let first = Sampling { exhaustive_max: 4, subsets: 4, torn: 4, seed: SEED + 1 };
    let second = Sampling { exhaustive_max: 5, subsets: 4, torn: 4, seed: SEED + 2 };
    let mut rng = fastrand::Rng::with_seed(SEED + 3);
    let mut recovered = Recovered::new();
    let mut report = Report::default();
    let mut lives = 0;
    for moment in run.recording.moments(&[]) {
        for crash in run.recording.images_at(moment.position, &first) {
            if rng.u8(0..6) > 0 {
                continue;
            }
            let found = recover(&crash.image.disk(), false).unwrap();
            let life = Run::on(&crash.image, found, TWO_PHASE);
            lives += 1;
            report.add(life.check(&second, &mut recovered));
        }
    }
    println!("second crashes: lives={lives} {report}");
    assert_eq!(report.wrong, 0, "{report}");
    assert!(lives > 100 && report.opened > 2000 && report.under_way > 0, "lives={lives} {report}");
}

/// The process is killed; the next one reads what the first had not synced, and shows it; then power fails.
#[test]
fn power_loss_after_a_kill_takes_nothing_back() {
    let run = Run::first(TWO_PHASE);
    let sampling = Sampling { exhaustive_max: 6, subsets: 6, torn: 6, seed: SEED + 4 };
    let mut recovered = Recovered::new();
    let mut report = Report::default();
    let mut unsynced = 0;
    for position in (0..=run.recording.end()).step_by(7) {
        let seen = run.seen.partition_point(|(at, _)| *at <= position);
        let begun = run.begun.partition_point(|(at, _)| *at < position);
        let next = run.recording.killed_at(position);
        let life = Run::live(&next, &run.seen[..seen], &run.begun[..begun.max(1)], 1, TWO_PHASE);
        unsynced += usize::from(life.seen[seen].1 > run.seen[seen - 1].1);
        report.add(life.check(&sampling, &mut recovered));
    }
    println!("power lost after a kill: {report}");
    assert_eq!(report.wrong, 0, "{report}");
    assert!(unsynced > 0, "no life saw a commit that was not synced");
    assert!(report.opened > 1000, "{report}");
}

/// The negative control: on a disk that ignores syncs, what is proven above is false, and the check sees it.
#[test]
fn ignored_syncs_are_found_out() {
    let run = Run::first(Life { syncs_ignored: true, ..TWO_PHASE });
    let sampling = Sampling { subsets: 50, torn: 50, ..Sampling::new(SEED) };
    let moments: Vec<_> = run.seen.iter().map(|(position, _)| *position).collect();
    let (mut wrong, mut images) = (0, 0);
    for (outside, position) in moments.into_iter().enumerate().skip(1).step_by(7) {
        for crash in run.recording.images_at(position, &sampling) {
            images += 1;
            let allowed = run.allowed(outside + 1, &crash);
            wrong +=
                usize::from(!recover(&crash.image.disk(), true).is_ok_and(|held| allowed.contains(&held)));
        }
    }
    println!("syncs ignored: images={images} wrong={wrong}");
    assert!(wrong > 100, "{wrong} of {images}");
}

/// Runs ten commits with a fault that is injected once the database is open, up to the first that fails.
/// Returns the disk, and the number of commits acknowledged.
fn run_into(fault: &Fault) -> (SimDisk, usize, Option<redb::Error>) {
    let disk = FRESH.disk();
    let database = open(&disk).unwrap();
    disk.inject(fault.clone());
    for number in 1..=10 {
        if let Err(error) = commit(&database, number, true) {
            let next = commit(&database, number, true).unwrap_err();
            assert!(matches!(next, redb::Error::PreviousIo), "a database that failed stays failed: {next:?}");
            return (disk, number - 1, Some(error));
        }
    }
    (disk, 10, None)
}

/// Whatever a fault did, the next life finds what was acknowledged (and, where `or_next`, perhaps the commit that
/// failed), with power lost in between or not, and goes on from there. Returns whether it ever was that commit.
fn next_life_goes_on(disk: &SimDisk, acknowledged: usize, or_next: bool, what: &str) -> bool {
    let mut next_held = false;
    let run = disk.recording();
    let crashes = run.images_at(run.end(), &Sampling { exhaustive_max: 3, subsets: 3, torn: 3, seed: SEED });
    for image in crashes.map(|crash| crash.image).chain([disk.image()]) {
        let next = image.disk();
        let database = open(&next).unwrap();
        let held = held(&database).unwrap();
        assert!(
            held == acknowledged || (or_next && held == acknowledged + 1),
            "{what}: {held} of {acknowledged}"
        );
        next_held |= held > acknowledged;
        if held < COMMITS {
            commit(&database, held + 1, true).unwrap();
        }
        next.kill();
    }
    next_held
}

#[test]
fn a_disk_that_fills_up_at_any_write_keeps_what_was_acknowledged() {
    let mut counts = FaultCounts::default();
    let mut check = |fault: Fault| {
        let (disk, acknowledged, error) = run_into(&fault);
        let what = format!("{fault:?}");
        if let Some(error) = &error {
            let full = matches!(error, redb::Error::Io(cause) if cause.kind() == io::ErrorKind::StorageFull);
            assert!(full && disk.fault_counts().no_space > 0, "{what}: {error:?}");
            next_life_goes_on(&disk, acknowledged, false, &what);
        }
        counts += disk.fault_counts();
        error.is_some()
    };
    let writes = (0..10_000).take_while(|writes| check(Fault::FullAfter { writes: *writes })).count();
    let bytes = (0..10_000).map(|step| FRESH.len() + step * 300_000);
    let sizes = bytes.take_while(|bytes| check(Fault::FullAt { bytes: *bytes })).count();
    println!("full disks: writes={writes} sizes={sizes} {counts}");
    assert!(writes > 50 && sizes > 1, "writes={writes} sizes={sizes}");
}

#[test]
fn an_io_error_anywhere_loses_nothing_acknowledged() {
    let mut counts = FaultCounts::default();
    let mut happened = 0;
    for operation in [DiskOperation::Write, DiskOperation::SetLen, DiskOperation::Sync] {
        for after in 0.. {
            let fault = Fault::Fails { operation, after };
            let (disk, acknowledged, error) = run_into(&fault);
            let Some(error) = error else { break };
            assert!(matches!(error, redb::Error::Io(_)), "{fault:?}: {error:?}");
            happened += usize::from(next_life_goes_on(&disk, acknowledged, true, &format!("{fault:?}")));
            counts += disk.fault_counts();
        }
    }
    // Reads are those of recovery: what is written is cached.
    let run = Run::first(TWO_PHASE);
    let killed = run.recording.killed_at(run.recording.end() / 2).image();
    let expected = recover(&killed.disk(), false).unwrap();
    for after in 0.. {
        let disk = killed.disk();
        disk.inject(Fault::Fails { operation: DiskOperation::Read, after });
        let outcome = recover(&disk, false);
        counts += disk.fault_counts();
        if disk.fault_counts().reads == 0 {
            assert_eq!(outcome, Ok(expected));
            break;
        }
        assert!(outcome.is_err(), "read {after}");
        next_life_goes_on(&disk, expected, false, &format!("read {after}"));
    }
    let FaultCounts { reads, writes, set_lens, syncs, .. } = counts;
    println!(
        "i/o errors: reads={reads} writes={writes} set_lens={set_lens} syncs={syncs} happened={happened}"
    );
    // Its last sync failed: who is told of an error does not know which it was.
    assert!(happened > 0, "no commit that failed was found done");
    assert!([reads, writes, set_lens, syncs].iter().all(|count| *count > 0), "{counts}");
}

#[test]
fn a_process_that_dies_at_any_operation_errs_and_is_gone() {
    let whole = run_into(&Fault::Dies { position: usize::MAX }).0.position();
    let mut counts = FaultCounts::default();
    for position in (0..whole).step_by(2) {
        let disk = FRESH.disk();
        disk.inject(Fault::Dies { position });
        let mut acknowledged = 0;
        if let Ok(database) = open(&disk) {
            while acknowledged < 10 && commit(&database, acknowledged + 1, true).is_ok() {
                acknowledged += 1;
            }
            // Closing is an error too, not a panic, and does not hang.
            assert!(database.close().is_err() || acknowledged == 10);
        }
        assert!(disk.position() <= position);
        next_life_goes_on(&disk, acknowledged, true, &format!("dead at {position}"));
        counts += disk.fault_counts();
    }
    println!("deaths: {counts}");
    assert_eq!(counts.deaths, (whole as u64).div_ceil(2), "{counts}");
}

/// Not a check but figures: run with `--ignored --nocapture`, with optimisation.
#[test]
#[ignore = "measures, and looks at commits of one phase"]
fn report() {
    let mut run = Run::first(TWO_PHASE);
    let sampling = Sampling { subsets: 1024, torn: 256, ..Sampling::new(SEED) };
    for (name, how) in [("two-phase", TWO_PHASE), ("one-phase", Life { two_phase: false, ..TWO_PHASE })] {
        run = Run::first(how);
        let start = Instant::now();
        let report = run.check(&sampling, &mut Recovered::new());
        let rate = per_second(report.opened, start);
        println!("{name}: {report}\n  {rate} images opened and read a second");

        let (mut lives, mut report) = (0, Report::default());
        let mut recovered = Recovered::new();
        let few = Sampling { exhaustive_max: 6, subsets: 16, torn: 16, seed: SEED };
        for moment in run.recording.moments(&[]) {
            for crash in run.recording.images_at(moment.position, &few) {
                let found = recover(&crash.image.disk(), false).unwrap();
                let life = Run::on(&crash.image, found, how);
                report.add(life.check(&few, &mut recovered));
                lives += 1;
            }
        }
        println!("{name}, second crashes: lives={lives} {report}");
    }
    let start = Instant::now();
    let moments = run.recording.moments(&[]);
    let images = moments.iter().flat_map(|moment| run.recording.images_at(moment.position, &sampling));
    let distinct: BTreeSet<u128> = images.map(|crash| crash.image.hash()).collect();
    let rate = per_second(distinct.len() as u64, start);
    println!("{rate} images made and told apart a second, of a file of {} bytes", FRESH.len());
}

fn per_second(count: u64, since: Instant) -> u128 {
    u128::from(count) * 1000 / since.elapsed().as_millis().max(1)
}
