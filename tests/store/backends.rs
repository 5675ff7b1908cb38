//! Every backend keeps every promise of a backend; and the suite that checks this fails, case by case, for a backend
//! that does not.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use highwater::testing::conformance::{CASES, Disruption, Failure, Subject, failures};
use highwater::testing::{
    Backend, CommitError, CrashPoint, DiskOperation, Fault, Image, Kept, KeyRange, Limit, LostAnswer, Memory,
    ReadTransaction, RowPage, SimDisk, WriteTransaction, redb_on_disk, redb_on_file,
};
use highwater::{Disk, Error, Page, Record, Result, Store};
use tempfile::TempDir;

fn assert_none(failures: &[Failure]) {
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

// --- redb on a file

struct OnFile(TempDir);

impl Subject for OnFile {
    fn open(&self) -> Result<Box<dyn Backend>> {
        redb_on_file(self.0.path().join("state.redb"))
    }

    /// What a killed process leaves is the file as it is while it is open.
    fn kill(&self, owner: Box<dyn Backend>) {
        let [file, left] = ["state.redb", "left"].map(|name| self.0.path().join(name));
        fs::copy(&file, &left).unwrap();
        drop(owner);
        fs::rename(left, file).unwrap();
    }
}

#[test]
fn redb_on_a_file_keeps_every_promise() {
    assert_none(&failures(&|| Box::new(OnFile(tempfile::tempdir().unwrap()))));
}

// --- redb on the simulated disk

struct OnSimDisk {
    disk: Mutex<SimDisk>,
    owner: Mutex<Weak<()>>,
    /// What fails where something is to, and how often it had when it was last told to.
    fails: DiskOperation,
    failed: Mutex<u64>,
}

/// The disk, while somebody owns it.
#[derive(Debug)]
struct Owned(SimDisk, #[allow(dead_code, reason = "it is there as long as this is")] Arc<()>);

impl Disk for Owned {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(at, out)
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(at, bytes)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

fn failures_of(disk: &SimDisk) -> u64 {
    let counts = disk.fault_counts();
    counts.writes + counts.syncs
}

impl OnSimDisk {
    fn new(fails: DiskOperation) -> Self {
        // As a file gets its name when it is whole, no crash is inside of its creation.
        let disk = SimDisk::new();
        drop(redb_on_disk(disk.clone()).unwrap());
        Self {
            disk: Mutex::new(disk.image().disk()),
            owner: Mutex::default(),
            fails,
            failed: Mutex::default(),
        }
    }
}

impl Subject for OnSimDisk {
    fn open(&self) -> Result<Box<dyn Backend>> {
        let mut owner = self.owner.lock().unwrap();
        if owner.upgrade().is_some() {
            return Err(Error::InUse { path: "the disk".into() });
        }
        let token = Arc::new(());
        *owner = Arc::downgrade(&token);
        redb_on_disk(Owned(self.disk.lock().unwrap().clone(), token))
    }

    fn kill(&self, owner: Box<dyn Backend>) {
        let mut disk = self.disk.lock().unwrap();
        disk.kill();
        drop(owner);
        *disk = disk.recording().killed_at(disk.position());
    }

    fn lose_power(&self, seed: u64) {
        let mut disk = self.disk.lock().unwrap();
        let kept = match seed % 3 {
            0 => Kept::Subset(0),
            1 => Kept::Random(seed),
            _ => Kept::Torn(seed),
        };
        let recording = disk.recording();
        let image: Image = recording.image(&CrashPoint { position: recording.end(), kept }).unwrap().image;
        *disk = image.disk();
    }

    fn arm(&self, disruption: Disruption, step: u64) -> bool {
        let disk = self.disk.lock().unwrap();
        *self.failed.lock().unwrap() = failures_of(&disk);
        let step = usize::try_from(step).unwrap();
        match disruption {
            Disruption::Death => disk.inject(Fault::Dies { position: disk.position() + step }),
            _ => disk.inject(Fault::Fails { operation: self.fails, after: step as u64 }),
        }
        true
    }

    fn disarm(&self) -> bool {
        let disk = self.disk.lock().unwrap();
        disk.heal();
        disk.is_dead() || failures_of(&disk) > *self.failed.lock().unwrap()
    }
}

#[test]
fn redb_on_a_disk_that_crashes_and_fails_keeps_every_promise() {
    for fails in [DiskOperation::Write, DiskOperation::Sync] {
        assert_none(&failures(&move || Box::new(OnSimDisk::new(fails))));
    }
}

// --- memory

struct InMemory(Memory);

impl Subject for InMemory {
    fn open(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(self.0.clone()))
    }

    fn arm(&self, disruption: Disruption, step: u64) -> bool {
        if disruption != Disruption::Failure {
            return false;
        }
        let answers = [LostAnswer::NotApplied, LostAnswer::Applied];
        let answer = answers.get(usize::try_from(step).unwrap());
        self.0.lose_answer(answer.copied());
        answer.is_some()
    }

    fn disarm(&self) -> bool {
        !self.0.is_to_lose_answer()
    }
}

#[test]
fn memory_keeps_every_promise() {
    assert_none(&failures(&|| Box::new(InMemory(Memory::new()))));
}

#[test]
fn a_store_in_memory_does_what_one_in_a_file_does() {
    let memory = Memory::new();
    let open = || Store::options().batch_items(2).open_in(memory.clone(), "memory").unwrap();
    let fetch = |cursor: Option<u32>| -> Result<Page<u32>> {
        let at = cursor.unwrap_or(0);
        let page = if at < 4 { Page::more(at + 1) } else { Page::last() };
        Ok(page.record("issues", Record::new(at.to_string(), &serde_json::json!({}))?))
    };
    let mut seen = Vec::new();
    loop {
        // A new process each time, which acknowledges one batch.
        let run = open().sync_unit("acme/tickets").unwrap().begin().unwrap();
        let Some(batch) = run.batches("issues", fetch).next() else {
            run.finish().unwrap();
            break;
        };
        let batch = batch.unwrap();
        seen.push(batch.items());
        batch.acknowledge(format!("artifact-{}", seen.len())).unwrap();
    }
    assert_eq!(seen, [2, 2, 1]);
    assert!(open().sync_unit("acme/tickets").unwrap().watermark().unwrap().is_some());
}

// --- backends that break one promise each

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// The wrapper alone, to show that it breaks nothing by itself.
    Nothing,
    LongValuesAreCut,
    TheFirstValueStays,
    RemovesNothing,
    OneTable,
    SignedOrder,
    DropsARowBetweenPages,
    PagesWithoutLimit,
    RemovesTheEndToo,
    ReadsWithoutItsWrites,
    WritesAtOnce,
    ViewsGoOn,
    CommitsWhenDropped,
    DurableOneCommitLater,
    DiesInTheMiddle,
    ReadBeforeItIsDurable,
    TheLastCommitWins,
    SnapshotIsolation,
    EachOwnerHasACopy,
    GoesOnAfterAnUnknownFate,
    ComesLater,
}

/// The flaw that each case must find, with how it tells it, in the order of the cases.
const FLAWS: [(Flaw, &str); 20] = [
    (Flaw::LongValuesAreCut, "a value: "),
    (Flaw::TheFirstValueStays, "put twice in one change: "),
    (Flaw::RemovesNothing, "the rows: "),
    (Flaw::OneTable, "the one table: "),
    (Flaw::SignedOrder, "the order: "),
    (Flaw::DropsARowBetweenPages, "all rows, 1 a page: "),
    (Flaw::PagesWithoutLimit, "rows of at most 1: "),
    (Flaw::RemovesTheEndToo, "without KeyRange "),
    (Flaw::ReadsWithoutItsWrites, "a row that it put: "),
    (Flaw::WritesAtOnce, "before the commit: "),
    (Flaw::ViewsGoOn, "its rows: "),
    (Flaw::CommitsWhenDropped, "after a drop: "),
    (Flaw::DurableOneCommitLater, "rows so far: "),
    (Flaw::DiesInTheMiddle, "died at step 1: neither the old state nor the new"),
    (Flaw::ReadBeforeItIsDurable, "died at step 0: what was read was gone"),
    (Flaw::TheLastCommitWins, "the sum of what was added: 1, expected 2"),
    (Flaw::SnapshotIsolation, "rows of which there may be one: 2"),
    (Flaw::EachOwnerHasACopy, "what the other wrote: None"),
    (Flaw::GoesOnAfterAnUnknownFate, "failed at step 0: a view was given all the same"),
    (Flaw::ComesLater, "failed at step 0: true, expected false"),
];

const TABLES: [&str; 2] = ["rows", "others"];
const ALL: Limit = Limit { rows: usize::MAX, bytes: usize::MAX };

type Row = (Vec<u8>, Vec<u8>);
type Contents = BTreeMap<&'static str, Vec<Row>>;

fn contents(memory: &Memory) -> Contents {
    let view = memory.read().unwrap();
    TABLES.map(|table| (table, view.scan(table, KeyRange::ALL, ALL).unwrap().rows)).into()
}

fn with_contents(contents: &Contents) -> Memory {
    let memory = Memory::new();
    let change = memory.write().unwrap();
    for (table, rows) in contents {
        for (key, value) in rows {
            change.put(table, key, value).unwrap();
        }
    }
    change.commit().unwrap();
    memory
}

/// What one write asks for.
#[derive(Debug, Clone)]
enum Write {
    Put(String, Vec<u8>, Vec<u8>),
    Remove(String, Vec<u8>),
    RemoveRange(String, Vec<u8>, Option<Vec<u8>>),
}

impl Write {
    fn apply(&self, change: &dyn WriteTransaction) -> Result<()> {
        match self {
            Write::Put(table, key, value) => change.put(table, key, value),
            Write::Remove(table, key) => change.remove(table, key),
            Write::RemoveRange(table, from, end) => {
                change.remove_range(table, KeyRange { from, end: end.as_deref() })
            }
        }
    }
}

fn apply(memory: &Memory, writes: &[Write]) {
    let change = memory.write().unwrap();
    for write in writes {
        write.apply(change.as_ref()).unwrap();
    }
    change.commit().unwrap();
}

/// What owners of a flawed store have in common.
#[derive(Debug)]
struct Shared {
    flaw: Flaw,
    memory: Mutex<Memory>,
    /// What a loss of power brings back.
    durable: Mutex<Option<Contents>>,
    armed: Mutex<Option<(Disruption, u64)>>,
    came: Mutex<bool>,
    late: Mutex<Vec<Write>>,
}

struct FlawedSubject(Arc<Shared>);

impl FlawedSubject {
    fn new(flaw: Flaw) -> Self {
        Self(Arc::new(Shared {
            flaw,
            memory: Mutex::default(),
            durable: Mutex::default(),
            armed: Mutex::default(),
            came: Mutex::default(),
            late: Mutex::default(),
        }))
    }
}

impl Subject for FlawedSubject {
    fn open(&self) -> Result<Box<dyn Backend>> {
        let memory = self.0.memory.lock().unwrap();
        let memory = match self.0.flaw {
            Flaw::EachOwnerHasACopy => with_contents(&contents(&memory)),
            _ => memory.clone(),
        };
        Ok(Box::new(Flawed { shared: Arc::clone(&self.0), memory }))
    }

    fn lose_power(&self, _: u64) {
        if let Some(durable) = self.0.durable.lock().unwrap().take() {
            *self.0.memory.lock().unwrap() = with_contents(&durable);
        }
    }

    fn arm(&self, disruption: Disruption, step: u64) -> bool {
        *self.0.armed.lock().unwrap() = Some((disruption, step));
        *self.0.came.lock().unwrap() = false;
        true
    }

    fn disarm(&self) -> bool {
        *self.0.armed.lock().unwrap() = None;
        *self.0.came.lock().unwrap()
    }
}

#[derive(Debug)]
struct Flawed {
    shared: Arc<Shared>,
    memory: Memory,
}

impl Backend for Flawed {
    fn read(&self) -> Result<Box<dyn ReadTransaction + '_>> {
        let (flaw, memory) = (self.shared.flaw, &self.memory);
        Ok(Box::new(View { flaw, memory, view: memory.read()? }))
    }

    fn write(&self) -> Result<Box<dyn WriteTransaction + '_>> {
        let alone = !matches!(
            self.shared.flaw,
            Flaw::WritesAtOnce | Flaw::TheLastCommitWins | Flaw::SnapshotIsolation
        );
        let inner = if alone { Some(self.memory.write()?) } else { None };
        let before = contents(&self.memory);
        Ok(Box::new(Change { of: self, inner, before, base: self.read()?, writes: Mutex::default() }))
    }
}

/// Rows of a range as a flawed backend hands them over.
fn flawed_scan(
    flaw: Flaw,
    inner: &(impl ReadTransaction + ?Sized),
    table: &str,
    range: KeyRange<'_>,
    limit: Limit,
) -> Result<RowPage> {
    let signed = |key: &[u8]| -> Vec<i8> { key.iter().map(|byte| byte.cast_signed()).collect() };
    match flaw {
        Flaw::SignedOrder => {
            let mut rows = inner.scan(table, KeyRange::ALL, ALL)?.rows;
            rows.retain(|(key, _)| {
                signed(key) >= signed(range.from) && range.end.is_none_or(|end| signed(key) < signed(end))
            });
            rows.sort_by_key(|(key, _)| signed(key));
            RowPage::collect(rows.into_iter().map(Ok), limit)
        }
        Flaw::PagesWithoutLimit => inner.scan(table, range, ALL),
        Flaw::DropsARowBetweenPages if range.from.ends_with(b"\0") => {
            let mut page = inner.scan(table, range, limit)?;
            page.rows = page.rows.split_off(page.rows.len().min(1));
            Ok(RowPage { more: page.more && !page.rows.is_empty(), ..page })
        }
        _ => inner.scan(table, range, limit),
    }
}

struct View<'a> {
    flaw: Flaw,
    memory: &'a Memory,
    view: Box<dyn ReadTransaction + 'a>,
}

impl ReadTransaction for View<'_> {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let table = if self.flaw == Flaw::OneTable { TABLES[0] } else { table };
        match self.flaw {
            Flaw::ViewsGoOn => self.memory.read()?.get(table, key),
            _ => self.view.get(table, key),
        }
    }

    fn scan(&self, table: &str, range: KeyRange<'_>, limit: Limit) -> Result<RowPage> {
        let table = if self.flaw == Flaw::OneTable { TABLES[0] } else { table };
        match self.flaw {
            Flaw::ViewsGoOn => self.memory.read()?.scan(table, range, limit),
            flaw => flawed_scan(flaw, self.view.as_ref(), table, range, limit),
        }
    }
}

struct Change<'a> {
    of: &'a Flawed,
    inner: Option<Box<dyn WriteTransaction + 'a>>,
    before: Contents,
    base: Box<dyn ReadTransaction + 'a>,
    writes: Mutex<Vec<Write>>,
}

impl Change<'_> {
    fn flaw(&self) -> Flaw {
        self.of.shared.flaw
    }

    fn write(&self, write: Write) -> Result<()> {
        if self.flaw() == Flaw::WritesAtOnce {
            apply(&self.of.memory, std::slice::from_ref(&write));
        }
        if let Some(inner) = &self.inner {
            write.apply(inner.as_ref())?;
        }
        self.writes.lock().unwrap().push(write);
        Ok(())
    }

    /// How a commit that is in disruption ends, if it is.
    fn disruption(&self) -> Option<Result<(), CommitError>> {
        let shared = &self.of.shared;
        let (disruption, step) = (*shared.armed.lock().unwrap())?;
        let unknown = || Err(CommitError::Unknown(Error::Invalid { what: "a".into(), reason: "b".into() }));
        let writes = self.writes.lock().unwrap();
        let memory = &self.of.memory;
        let ended = match (self.flaw(), disruption) {
            (Flaw::DiesInTheMiddle, Disruption::Death) if step <= writes.len() as u64 => {
                apply(memory, &writes[..usize::try_from(step).unwrap()]);
                unknown()
            }
            (Flaw::ReadBeforeItIsDurable, Disruption::Death) if step == 0 => {
                *shared.durable.lock().unwrap() = Some(self.before.clone());
                apply(memory, &writes);
                unknown()
            }
            (Flaw::GoesOnAfterAnUnknownFate, Disruption::Failure) if step == 0 => unknown(),
            (Flaw::ComesLater, Disruption::Failure) if step == 0 => {
                shared.late.lock().unwrap().clone_from(&writes);
                unknown()
            }
            _ => return None,
        };
        *shared.came.lock().unwrap() = true;
        Some(ended)
    }
}

impl ReadTransaction for Change<'_> {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let table = if self.flaw() == Flaw::OneTable { TABLES[0] } else { table };
        match (&self.inner, self.flaw()) {
            (None, _) | (_, Flaw::ReadsWithoutItsWrites) => self.base.get(table, key),
            (Some(inner), _) => inner.get(table, key),
        }
    }

    fn scan(&self, table: &str, range: KeyRange<'_>, limit: Limit) -> Result<RowPage> {
        match (&self.inner, self.flaw()) {
            (None, _) | (_, Flaw::ReadsWithoutItsWrites) => self.base.scan(table, range, limit),
            (Some(inner), flaw) => flawed_scan(flaw, inner.as_ref(), table, range, limit),
        }
    }
}

impl WriteTransaction for Change<'_> {
    fn put(&self, table: &str, key: &[u8], value: &[u8]) -> Result<()> {
        let table = if self.flaw() == Flaw::OneTable { TABLES[0] } else { table };
        let value = match self.flaw() {
            Flaw::LongValuesAreCut => &value[..value.len().min(65_535)],
            Flaw::TheFirstValueStays if self.get(table, key)?.is_some() => return Ok(()),
            _ => value,
        };
        self.write(Write::Put(table.to_owned(), key.to_vec(), value.to_vec()))
    }

    fn remove(&self, table: &str, key: &[u8]) -> Result<()> {
        if self.flaw() == Flaw::RemovesNothing {
            return Ok(());
        }
        self.write(Write::Remove(table.to_owned(), key.to_vec()))
    }

    fn remove_range(&self, table: &str, range: KeyRange<'_>) -> Result<()> {
        if let (Flaw::RemovesTheEndToo, Some(end)) = (self.flaw(), range.end) {
            self.write(Write::Remove(table.to_owned(), end.to_vec()))?;
        }
        self.write(Write::RemoveRange(table.to_owned(), range.from.to_vec(), range.end.map(<[u8]>::to_vec)))
    }

    fn commit(mut self: Box<Self>) -> Result<(), CommitError> {
        let inner = self.inner.take();
        // Made by hand, not by what it is a copy of.
        let (memory, shared) = (&self.of.memory, &self.of.shared);
        if shared.armed.lock().unwrap().is_some() {
            drop(inner);
            if let Some(ended) = self.disruption() {
                self.writes.lock().unwrap().clear();
                return ended;
            }
            apply(memory, &std::mem::take(&mut *self.writes.lock().unwrap()));
            return Ok(());
        }
        let writes = std::mem::take(&mut *self.writes.lock().unwrap());
        match self.flaw() {
            Flaw::SnapshotIsolation if contents(memory) != self.before => {
                let now = contents(memory);
                let changed = |table: &str, key: &[u8]| {
                    let of = |contents: &Contents| {
                        contents[table].iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
                    };
                    of(&now) != of(&self.before)
                };
                let is_conflict = |write: &Write| match write {
                    Write::Put(table, key, _) | Write::Remove(table, key) => changed(table, key),
                    Write::RemoveRange(..) => true,
                };
                if writes.iter().any(is_conflict) {
                    return Err(CommitError::Conflict);
                }
                apply(memory, &writes);
            }
            Flaw::TheLastCommitWins | Flaw::SnapshotIsolation => apply(memory, &writes),
            Flaw::DurableOneCommitLater => {
                *shared.durable.lock().unwrap() = Some(self.before.clone());
                return inner.map_or(Ok(()), WriteTransaction::commit);
            }
            _ => inner.map_or(Ok(()), WriteTransaction::commit)?,
        }
        let late = std::mem::take(&mut *shared.late.lock().unwrap());
        apply(memory, &late);
        Ok(())
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if let (Flaw::CommitsWhenDropped, Some(inner)) = (self.of.shared.flaw, self.inner.take()) {
            inner.commit().unwrap();
        }
    }
}

#[test]
fn each_case_fails_on_a_backend_that_is_broken_in_that_point() {
    assert_eq!(CASES.len(), FLAWS.len(), "each case has a flaw that it must find");
    for (case, (flaw, expected)) in CASES.iter().zip(FLAWS) {
        let found = case.run(&FlawedSubject::new(flaw));
        println!("{flaw:?}: {}: {found:?}", case.name);
        let found = found.expect_err(&format!("{flaw:?} is not found by: {}", case.name));
        assert!(found.starts_with(expected), "{flaw:?} is to be found as {expected:?}, not as: {found}");
        // And the flaw is the reason: without it the case passes.
        assert_eq!(case.run(&FlawedSubject::new(Flaw::Nothing)), Ok(()), "{}", case.name);
    }
}
