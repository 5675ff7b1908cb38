//! Whether a backend keeps its promises: one case for each of them.
//!
//! For authors of a backend. The promises are in the docs of [`Backend`]'s module and traits. The suite needs a
//! [`Subject`]: a way to open one store, as often as asked, and to kill its owner or make its disk fail. A subject
//! that cannot do the latter is tested without it. [`failures`] runs all cases:
//!
//! ```
//! use highwater::testing::conformance::{Subject, failures};
//! use highwater::testing::{Backend, Memory};
//!
//! struct InMemory(Memory);
//!
//! impl Subject for InMemory {
//!     fn open(&self) -> highwater::Result<Box<dyn Backend>> {
//!         Ok(Box::new(self.0.clone()))
//!     }
//! }
//!
//! assert_eq!(failures(&|| Box::new(InMemory(Memory::new()))), []);
//! ```
//!
//! Each case begins with a new, empty store. None of them measures time. Cases about two concurrent changes give the
//! other one a moment in which to go wrong; their result is right whether it uses the moment or not.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::store::backend::contract::{
    Backend, CommitError, KeyRange, Limit, ReadTransaction, WriteTransaction,
};

/// The table of the cases, and another one.
const TABLE: &str = "rows";
const OTHER: &str = "others";
/// Steps of one commit after which a disruption must have happened.
const STEPS_MAX: u64 = 2_000;
/// The moment that the other change gets.
const A_MOMENT: Duration = Duration::from_millis(30);

/// One store of a backend, in the form that the suite needs.
pub trait Subject {
    /// Opens the store; if it is open already, as a second owner.
    ///
    /// # Errors
    /// `InUse` if it is open already and can be so only once.
    fn open(&self) -> Result<Box<dyn Backend>>;

    /// Kills an owner, without closing the store. The next owner finds what it wrote, durable or not.
    fn kill(&self, owner: Box<dyn Backend>) {
        drop(owner);
    }

    /// The power fails, after every owner has died or closed the store: what is not durable is lost, wholly or
    /// partly. `seed` decides what is kept, where there is a choice.
    fn lose_power(&self, seed: u64) {
        let _ = seed;
    }

    /// Arms a disruption for the `step`th step from now, counted from 0, of anything done below the backend. Returns
    /// whether this is supported.
    fn arm(&self, disruption: Disruption, step: u64) -> bool {
        let _ = (disruption, step);
        false
    }

    /// Disarms a disruption; returns whether it has happened.
    fn disarm(&self) -> bool {
        false
    }
}

/// What can happen during a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disruption {
    /// The process dies: nothing that it does later has an effect.
    Death,
    /// One operation fails, or its answer is lost; the process lives.
    Failure,
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The name of the case.
    pub case: &'static str,
    /// What happened instead.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.what)
    }
}

/// Runs every case on a new store; returns the broken promises.
pub fn failures(new: &dyn Fn() -> Box<dyn Subject>) -> Vec<Failure> {
    let failure = |case: &Case| case.run(new().as_ref()).err().map(|what| Failure { case: case.name, what });
    CASES.iter().filter_map(failure).collect()
}

/// One promise, as a test of it.
#[derive(Clone, Copy)]
pub struct Case {
    /// The promise.
    pub name: &'static str,
    test: fn(&dyn Subject) -> Outcome,
}

impl Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

impl Case {
    /// Tests it on a new, empty store.
    ///
    /// # Errors
    /// What happened instead.
    pub fn run(&self, subject: &dyn Subject) -> Result<(), String> {
        (self.test)(subject).map_err(|NotKept(what)| what)
    }
}

macro_rules! cases {
    ($($name:literal: $test:ident;)*) => {
        /// Every case.
        pub const CASES: &[Case] = &[$(Case { name: $name, test: $test }),*];
    };
}

cases! {
    "any bytes are kept as they are": bytes_are_kept;
    "a key has one value, the last that was put": the_last_value;
    "what is removed is gone, and to remove nothing is not an error": removal;
    "a table has its own rows, and one that was never written has none": tables;
    "keys are ordered byte by byte": order;
    "a scan has every row of its range once, in pages of any size": scans;
    "a page is no longer than asked for": limits;
    "a range is removed from its first key up to its end, which stays": range_removal;
    "a change reads what it has written": own_writes;
    "nobody reads a change before its commit": uncommitted;
    "a view is of one moment": views;
    "a change that is dropped, also by a panic, leaves nothing": dropped;
    "what is committed survives a loss of power": durability;
    "a change is whole or not there, wherever the process dies": atomicity;
    "what was read after a death survives a loss of power": read_is_durable;
    "changes made at once do not undo one another": lost_updates;
    "of changes that read what the other writes, one comes first": write_skew;
    "a second owner is refused, or reads what the first has committed": second_owner;
    "after a commit of unknown fate every call fails": unknown_refuses;
    "opened again, a change of unknown fate is complete or missing, and stays so": unknown_is_settled;
}

/// What happened instead of what was promised.
struct NotKept(String);

type Outcome<T = ()> = Result<T, NotKept>;

impl From<Error> for NotKept {
    fn from(error: Error) -> Self {
        Self(crate::error::chain(&error))
    }
}

impl From<CommitError> for NotKept {
    fn from(error: CommitError) -> Self {
        Self(format!("a commit failed: {error:?}"))
    }
}

fn expect(kept: bool, what: impl FnOnce() -> String) -> Outcome {
    if kept { Ok(()) } else { Err(NotKept(what())) }
}

#[allow(clippy::needless_pass_by_value, reason = "what is compared is made for it")]
fn equal<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Outcome {
    expect(found == expected, || {
        let cut = |value: &T| format!("{value:?}").chars().take(200).collect::<String>();
        format!("{what}: {}, expected {}", cut(&found), cut(&expected))
    })
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// All rows of a range, read in pages of this size.
fn read(
    view: &(impl ReadTransaction + ?Sized),
    table: &str,
    range: KeyRange<'_>,
    rows: usize,
) -> Outcome<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = Vec::new();
    let mut from = range.from.to_vec();
    loop {
        let page = view.scan(table, range.starting(&from), Limit { rows, bytes: usize::MAX })?;
        expect(!page.rows.is_empty() || !page.more, || {
            "a page without rows says that there are more".to_owned()
        })?;
        let more = page.more;
        all.extend(page.rows);
        match all.last() {
            Some((last, _)) if more => {
                from.clone_from(last);
                from.push(0);
            }
            _ => return Ok(all),
        }
    }
}

fn contents(backend: &dyn Backend, table: &str) -> Outcome<Rows> {
    Ok(read(backend.read()?.as_ref(), table, KeyRange::ALL, 100)?.into_iter().collect())
}

fn get(backend: &dyn Backend, key: &[u8]) -> Outcome<Option<Vec<u8>>> {
    Ok(backend.read()?.get(TABLE, key)?)
}

fn put(backend: &dyn Backend, rows: &[(&[u8], &[u8])]) -> Outcome {
    let change = backend.write()?;
    for (key, value) in rows {
        change.put(TABLE, key, value)?;
    }
    Ok(change.commit()?)
}

fn rows(rows: &[(&[u8], &[u8])]) -> Rows {
    rows.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

fn bytes_are_kept(subject: &dyn Subject) -> Outcome {
    let all: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..750_000_u32).flat_map(u32::to_le_bytes).collect();
    let backend = subject.open()?;
    let expected: &[(&[u8], &[u8])] = &[
        (b"", b"of the empty key"),
        (b"empty", b""),
        (&all, b"a key of all"),
        (b"all", &all),
        (b"large", &large),
    ];
    put(backend.as_ref(), expected)?;
    for (key, value) in expected {
        equal("a value", get(backend.as_ref(), key)?, Some(value.to_vec()))?;
    }
    equal("a key that nobody put", get(backend.as_ref(), b"e")?, None)?;
    equal("the rows", contents(backend.as_ref(), TABLE)?, rows(expected))
}

fn the_last_value(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    put(backend.as_ref(), &[(b"key", b"first"), (b"key", b"second")])?;
    equal("put twice in one change", get(backend.as_ref(), b"key")?, Some(b"second".to_vec()))?;
    put(backend.as_ref(), &[(b"key", b"3")])?;
    equal("the rows", contents(backend.as_ref(), TABLE)?, rows(&[(b"key", b"3")]))?;
    let all: [(&[u8], &[u8]); 3] = [(b"key", b"4"), (b"other", b"5"), (b"key", b"last")];
    let change = backend.write()?;
    change.put_all(TABLE, &mut all.into_iter().map(|(key, value)| Ok((key.to_vec(), value.to_vec()))))?;
    change.commit()?;
    let expected = rows(&[(b"key", b"last"), (b"other", b"5")]);
    equal("rows that were put together", contents(backend.as_ref(), TABLE)?, expected)
}

fn removal(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    put(backend.as_ref(), &[(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])?;
    let change = backend.write()?;
    change.remove(TABLE, b"b")?;
    change.remove(TABLE, b"never put")?;
    change.remove(OTHER, b"of a table that was never written")?;
    change.remove_range(OTHER, KeyRange::ALL)?;
    change.put(TABLE, b"c", b"put and removed")?;
    change.remove(TABLE, b"c")?;
    change.remove(TABLE, b"d")?;
    change.put(TABLE, b"d", b"removed and put")?;
    change.commit()?;
    let expected = rows(&[(b"a", b"1"), (b"d", b"removed and put")]);
    equal("the rows", contents(backend.as_ref(), TABLE)?, expected)
}

fn tables(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    equal("a table of a new store", contents(backend.as_ref(), OTHER)?, Rows::new())?;
    equal("a row of a table of a new store", get(backend.as_ref(), b"key")?, None)?;
    let change = backend.write()?;
    equal("a table in the first change", change.get(OTHER, b"key")?, None)?;
    change.put(TABLE, b"key", b"here")?;
    change.put(OTHER, b"key", b"there")?;
    change.put(OTHER, b"other", b"there")?;
    change.commit()?;
    equal("the one table", contents(backend.as_ref(), TABLE)?, rows(&[(b"key", b"here")]))?;
    equal(
        "the other",
        contents(backend.as_ref(), OTHER)?,
        rows(&[(b"key", b"there"), (b"other", b"there")]),
    )?;
    let change = backend.write()?;
    change.remove_range(TABLE, KeyRange::ALL)?;
    change.commit()?;
    equal("the other, the one emptied", contents(backend.as_ref(), OTHER)?.len(), 2)
}

/// Keys that are easy to order wrongly: as text, by length, as signed numbers, up to a zero byte.
fn keys_hard_to_order() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = [
        &b""[..],
        b"\0",
        b"\0\0",
        b"\0\xff",
        b"\x01",
        b"A",
        b"B",
        b"a",
        b"a\0",
        b"a\0\0",
        b"a\0b",
        b"aa",
        b"ab",
        b"b",
        b"\x7f",
        b"\x80",
        b"\x80\0",
        "\u{e9}".as_bytes(),
        "z\u{301}".as_bytes(),
        b"\xfe\xff",
        b"\xff",
        b"\xff\0",
        b"\xff\xff",
        b"10",
        b"9",
    ]
    .map(<[u8]>::to_vec)
    .into();
    keys.extend(
        [0_u64, 1, 255, 256, 65_535, 1 << 31, 1 << 32, u64::MAX].map(|number| number.to_be_bytes().to_vec()),
    );
    keys
}

fn order(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    let mut keys = keys_hard_to_order();
    let change = backend.write()?;
    for key in keys.iter().rev() {
        change.put(TABLE, key, b"")?;
    }
    change.commit()?;
    keys.sort_unstable();
    let view = backend.read()?;
    let found: Vec<_> =
        read(view.as_ref(), TABLE, KeyRange::ALL, 7)?.into_iter().map(|(key, _)| key).collect();
    equal("the order", &found, &keys)?;
    // Each key as the beginning and the end of a range.
    for (at, from) in keys.iter().enumerate() {
        for (to, end) in keys.iter().enumerate() {
            let range = KeyRange { from, end: Some(end) };
            let found = read(view.as_ref(), TABLE, range, 100)?.len();
            equal(&format!("rows from {from:02x?} to {end:02x?}"), found, to.saturating_sub(at))?;
        }
    }
    Ok(())
}

/// A table of 500 rows, and its content.
fn filled(backend: &dyn Backend) -> Outcome<Vec<(Vec<u8>, Vec<u8>)>> {
    let all: Vec<(Vec<u8>, Vec<u8>)> = (0..500_u16)
        .map(|at| (format!("{at:03}").into_bytes(), vec![at.to_be_bytes()[1]; usize::from(at % 50)]))
        .collect();
    let change = backend.write()?;
    for (key, value) in &all {
        change.put(TABLE, key, value)?;
    }
    change.commit()?;
    Ok(all)
}

fn scans(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    let all = filled(backend.as_ref())?;
    let view = backend.read()?;
    for page in [1, 2, 3, 7, 64, 499, 500, 501] {
        equal(&format!("all rows, {page} a page"), &read(view.as_ref(), TABLE, KeyRange::ALL, page)?, &all)?;
        let range = KeyRange { from: b"1", end: Some(b"37") };
        let expected: Vec<_> =
            all.iter().filter(|(key, _)| key[..] >= b"1"[..] && key[..] < b"37"[..]).cloned().collect();
        equal(&format!("from 1 to 37, {page} a page"), &read(view.as_ref(), TABLE, range, page)?, &expected)?;
    }
    for range in [
        KeyRange { from: b"5", end: None },
        KeyRange { from: b"123", end: Some(b"123") },
        KeyRange { from: b"2", end: Some(b"1") },
        KeyRange { from: b"", end: Some(b"") },
    ] {
        equal(&format!("an empty range, {range:?}"), read(view.as_ref(), TABLE, range, 9)?.len(), 0)?;
    }
    Ok(())
}

fn limits(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    let all = filled(backend.as_ref())?;
    let change = backend.write()?;
    let view = backend.read()?;
    for transaction in [view.as_ref(), change.as_ref() as &dyn ReadTransaction] {
        for rows in [1, 2, 100, 500, 1_000] {
            let page = transaction.scan(TABLE, KeyRange::ALL, Limit { rows, bytes: usize::MAX })?;
            equal(&format!("rows of at most {rows}"), page.rows.len(), rows.min(all.len()))?;
            expect(page.more || rows >= all.len(), || format!("a page of {rows} says that it is all"))?;
        }
        for bytes in [0, 1, 100, 5_000] {
            let page = transaction.scan(TABLE, KeyRange::ALL, Limit { rows: usize::MAX, bytes })?;
            let sizes: Vec<usize> = page.rows.iter().map(|(key, value)| key.len() + value.len()).collect();
            let (last, before) =
                sizes.split_last().ok_or_else(|| NotKept("a page without any row".to_owned()))?;
            let before: usize = before.iter().sum();
            expect((before < bytes || before == 0) && before + last >= bytes && page.more, || {
                format!("a page of {bytes} bytes has {before}, and its last row {last}")
            })?;
        }
    }
    Ok(())
}

fn range_removal(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    let mut expected: Rows = filled(backend.as_ref())?.into_iter().collect();
    for range in [
        KeyRange { from: b"1", end: Some(b"2") },
        KeyRange { from: b"300", end: Some(b"301") },
        KeyRange { from: b"310", end: Some(b"310") },
        KeyRange { from: b"35", end: Some(b"34") },
        KeyRange { from: b"49", end: None },
        KeyRange { from: b"", end: Some(b"003") },
    ] {
        let change = backend.write()?;
        // Rows that the change itself has put are removed as well; what it puts afterwards stays.
        change.put(TABLE, b"15", b"put before")?;
        change.remove_range(TABLE, range)?;
        let is_in = |key: &[u8]| key >= range.from && range.end.is_none_or(|end| key < end);
        expected.retain(|key, _| !is_in(key));
        if !is_in(b"15") {
            expected.insert(b"15".to_vec(), b"put before".to_vec());
        }
        change.put(TABLE, range.from, b"put after")?;
        expected.insert(range.from.to_vec(), b"put after".to_vec());
        change.commit()?;
        equal(&format!("without {range:?}"), contents(backend.as_ref(), TABLE)?, expected.clone())?;
    }
    Ok(())
}

fn own_writes(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    let mut expected: Rows = filled(backend.as_ref())?.into_iter().collect();
    let change = backend.write()?;
    change.put(TABLE, b"0005", b"between two")?;
    change.put(TABLE, b"010", b"in place of another")?;
    change.remove(TABLE, b"011")?;
    change.remove_range(TABLE, KeyRange { from: b"02", end: Some(b"03") })?;
    change.put(TABLE, b"025", b"again")?;
    change.put(TABLE, b"9", b"behind all")?;
    expected.insert(b"0005".to_vec(), b"between two".to_vec());
    expected.insert(b"010".to_vec(), b"in place of another".to_vec());
    expected.retain(|key, _| **key != *b"011" && !key.starts_with(b"02"));
    expected.insert(b"025".to_vec(), b"again".to_vec());
    expected.insert(b"9".to_vec(), b"behind all".to_vec());
    equal("a row that it put", change.get(TABLE, b"010")?, Some(b"in place of another".to_vec()))?;
    equal("a row that it removed", change.get(TABLE, b"020")?, None)?;
    for page in [1, 3, 1_000] {
        let found: Rows = read(change.as_ref(), TABLE, KeyRange::ALL, page)?.into_iter().collect();
        equal(&format!("its rows, {page} a page"), &found, &expected)?;
    }
    // Written to between two pages, it goes on with what is there then.
    let page =
        change.scan(TABLE, KeyRange { from: b"4", end: None }, Limit { rows: 1, bytes: usize::MAX })?;
    equal("the first row from 4 on", page.rows.len(), 1)?;
    change.remove(TABLE, b"401")?;
    expected.remove(&b"401"[..]);
    let page =
        change.scan(TABLE, KeyRange { from: b"400\0", end: None }, Limit { rows: 1, bytes: usize::MAX })?;
    equal("the row behind it", page.rows.first().map(|(key, _)| key.clone()), Some(b"402".to_vec()))?;
    change.commit()?;
    equal("the rows after the commit", contents(backend.as_ref(), TABLE)?, expected)
}

fn uncommitted(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    put(backend.as_ref(), &[(b"key", b"before"), (b"removed", b"there")])?;
    let change = backend.write()?;
    change.put(TABLE, b"key", b"after")?;
    change.put(TABLE, b"new", b"row")?;
    change.remove(TABLE, b"removed")?;
    let before = rows(&[(b"key", b"before"), (b"removed", b"there")]);
    equal("before the commit", contents(backend.as_ref(), TABLE)?, before)?;
    change.commit()?;
    equal("after it", contents(backend.as_ref(), TABLE)?, rows(&[(b"key", b"after"), (b"new", b"row")]))
}

fn views(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    let all = filled(backend.as_ref())?;
    let view = backend.read()?;
    let first = view.scan(TABLE, KeyRange::ALL, Limit { rows: 10, bytes: usize::MAX })?;
    for at in 0..20_u8 {
        let change = backend.write()?;
        change.remove_range(TABLE, KeyRange { from: b"1", end: Some(b"4") })?;
        change.put(TABLE, b"450", &[at; 5_000])?;
        change.put(OTHER, &[at], &[at; 5_000])?;
        change.commit()?;
    }
    equal(
        "its first page, read again",
        view.scan(TABLE, KeyRange::ALL, Limit { rows: 10, bytes: usize::MAX })?,
        first,
    )?;
    equal("its rows", &read(view.as_ref(), TABLE, KeyRange::ALL, 7)?, &all)?;
    equal("a table that was empty", read(view.as_ref(), OTHER, KeyRange::ALL, 7)?.len(), 0)?;
    equal("rows of another view", contents(backend.as_ref(), TABLE)?.len(), 200)
}

fn dropped(subject: &dyn Subject) -> Outcome {
    let backend = subject.open()?;
    put(backend.as_ref(), &[(b"key", b"kept")])?;
    let write = |change: &dyn WriteTransaction| -> Result<()> {
        change.put(TABLE, b"key", b"changed")?;
        change.put(OTHER, b"key", b"new")?;
        change.remove_range(TABLE, KeyRange { from: b"k", end: None })
    };
    let change = backend.write()?;
    write(change.as_ref())?;
    drop(change);
    equal("after a drop", contents(backend.as_ref(), TABLE)?, rows(&[(b"key", b"kept")]))?;
    let unwound = std::thread::scope(|scope| {
        let unwinding = scope.spawn(|| {
            let change = backend.write();
            let done = change.as_ref().map(|change| write(change.as_ref()).is_ok());
            // Unwinds as a panic does, and says nothing on the way.
            std::panic::resume_unwind(Box::new(done.unwrap_or(false)));
        });
        unwinding.join()
    });
    let done = unwound.err().and_then(|done| done.downcast_ref::<bool>().copied());
    equal("a change before a panic", done, Some(true))?;
    equal("after a panic", contents(backend.as_ref(), TABLE)?, rows(&[(b"key", b"kept")]))?;
    equal("another table", contents(backend.as_ref(), OTHER)?, Rows::new())?;
    put(backend.as_ref(), &[(b"key", b"later")])?;
    equal("after the next change", contents(backend.as_ref(), TABLE)?, rows(&[(b"key", b"later")]))
}

fn durability(subject: &dyn Subject) -> Outcome {
    for seed in 0..12_u8 {
        let backend = subject.open()?;
        equal("rows so far", contents(backend.as_ref(), TABLE)?.len(), usize::from(seed))?;
        put(backend.as_ref(), &[(&[seed], &[seed; 3_000])])?;
        let change = backend.write()?;
        change.put(TABLE, b"never committed", b"")?;
        drop(change);
        subject.kill(backend);
        subject.lose_power(seed.into());
    }
    Ok(())
}

/// The two states between which [`replace`] changes a store.
fn states() -> (Rows, Rows) {
    let state = |name: &str, from: u8, to: u8| -> Rows {
        (from..to)
            .map(|at| (vec![at], format!("{name} {at}").repeat(usize::from(at) * 20).into_bytes()))
            .collect()
    };
    (state("old", 0, 12), state("new", 6, 20))
}

/// Replaces whatever is there by the second state.
fn replace(backend: &dyn Backend, with: &Rows) -> Result<(), CommitError> {
    let change = match backend.write() {
        Ok(change) => change,
        Err(error) => return Err(CommitError::NotApplied(error)),
    };
    let write = || -> Result<()> {
        for table in [TABLE, OTHER] {
            change.remove_range(table, KeyRange::ALL)?;
            for (key, value) in with {
                change.put(table, key, value)?;
            }
        }
        Ok(())
    };
    match write() {
        Ok(()) => change.commit(),
        // Nothing of it can be there, because its commit was never called.
        Err(error) => Err(CommitError::NotApplied(error)),
    }
}

/// Which of the two states a store is in; it is an error if it is in neither.
fn state_of(backend: &dyn Backend, what: &str) -> Outcome<bool> {
    let (old, new) = states();
    let found = (contents(backend, TABLE)?, contents(backend, OTHER)?);
    let is_new = found == (new.clone(), new);
    expect(is_new || found == (old.clone(), old), || {
        let rows = [found.0.len(), found.1.len()];
        format!("{what}: neither the old state nor the new, but tables of {rows:?} rows")
    })?;
    Ok(is_new)
}

/// Changes a store from the old state to the new one, with a disruption at every step, one after the other. `then`
/// gets the result of the commit, and the backend.
fn with_disruption(
    subject: &dyn Subject,
    disruption: Disruption,
    mut then: impl FnMut(u64, Result<(), CommitError>, Box<dyn Backend>) -> Outcome,
) -> Outcome {
    let (old, new) = states();
    for step in 0..STEPS_MAX {
        let backend = subject.open()?;
        replace(backend.as_ref(), &old)?;
        let can = subject.arm(disruption, step);
        let ended = replace(backend.as_ref(), &new);
        let came = subject.disarm();
        then(step, ended, backend)?;
        if !can || !came {
            return Ok(());
        }
    }
    Err(NotKept(format!("a disruption came at each of {STEPS_MAX} steps of a commit")))
}

fn atomicity(subject: &dyn Subject) -> Outcome {
    with_disruption(subject, Disruption::Death, |step, ended, backend| {
        subject.kill(backend);
        subject.lose_power(step);
        let backend = subject.open()?;
        let is_new = state_of(backend.as_ref(), &format!("died at step {step}"))?;
        expect(is_new || ended.is_err(), || format!("died at step {step}: committed, and not there"))?;
        expect(!is_new || !matches!(ended, Err(CommitError::NotApplied(_) | CommitError::Conflict)), || {
            format!("died at step {step}: not applied, and there")
        })
    })
}

fn read_is_durable(subject: &dyn Subject) -> Outcome {
    with_disruption(subject, Disruption::Death, |step, _, backend| {
        subject.kill(backend);
        // The next process on the same machine finds what this one wrote, synced or not.
        let backend = subject.open()?;
        let what = format!("died at step {step}");
        let read = state_of(backend.as_ref(), &what)?;
        subject.kill(backend);
        for seed in 0..3 {
            subject.lose_power(seed);
            let is_new = state_of(subject.open()?.as_ref(), &what)?;
            expect(is_new == read, || format!("{what}: what was read was gone after a loss of power"))?;
        }
        Ok(())
    })
}

/// Begins a change, reads, lets another change be made at the same time, writes and commits. Returns for both whether
/// their writes count.
fn at_once(
    subject: &dyn Subject,
    one: impl Fn(&dyn WriteTransaction) -> Result<()>,
    other: impl Fn(&dyn WriteTransaction) -> Result<()> + Sync,
    reads: impl Fn(&dyn WriteTransaction) -> Result<()>,
) -> Outcome<(bool, bool)> {
    // Two workers, if the store can be shared, otherwise two threads of one.
    let first = subject.open()?;
    let second = match subject.open() {
        Ok(second) => Some(second),
        Err(Error::InUse { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let (first, second) = (first.as_ref(), second.as_deref().unwrap_or(first.as_ref()));
    let committed = |commit: Result<(), CommitError>| match commit {
        Ok(()) => Ok(true),
        Err(CommitError::Conflict) => Ok(false),
        Err(error) => Err(NotKept::from(error)),
    };
    let change = first.write()?;
    reads(change.as_ref())?;
    let other = &other;
    std::thread::scope(|scope| {
        let (sender, done) = mpsc::channel();
        let theirs = scope.spawn(move || -> Outcome<bool> {
            let change = second.write()?;
            other(change.as_ref())?;
            let ended = committed(change.commit());
            // Nobody receives any more if it had to wait.
            let _ = sender.send(());
            ended
        });
        let _ = done.recv_timeout(A_MOMENT);
        let wrote = one(change.as_ref());
        let ours = committed(match wrote {
            Ok(()) => change.commit(),
            Err(error) => Err(CommitError::NotApplied(error)),
        });
        let theirs = theirs.join().unwrap_or_else(|_| Err(NotKept("a change panicked".to_owned())));
        Ok((ours?, theirs?))
    })
}

fn number(change: &(impl ReadTransaction + ?Sized), key: &[u8]) -> Result<u64> {
    let value = change.get(TABLE, key)?.unwrap_or_default();
    Ok(value.try_into().map_or(0, u64::from_be_bytes))
}

fn lost_updates(subject: &dyn Subject) -> Outcome {
    let add = |change: &dyn WriteTransaction| {
        let sum = number(change, b"sum")? + 1;
        change.put(TABLE, b"sum", &sum.to_be_bytes())
    };
    let mut expected = 0;
    for _ in 0..3 {
        let read = std::cell::Cell::new(0);
        let (ours, theirs) = at_once(
            subject,
            |change| change.put(TABLE, b"sum", &(read.get() + 1_u64).to_be_bytes()),
            add,
            |change| {
                read.set(number(change, b"sum")?);
                Ok(())
            },
        )?;
        expect(ours || theirs, || "of two changes at once, both were refused".to_owned())?;
        expected += u64::from(ours) + u64::from(theirs);
        let found = number(subject.open()?.read()?.as_ref(), b"sum")?;
        equal("the sum of what was added", found, expected)?;
    }
    Ok(())
}

fn write_skew(subject: &dyn Subject) -> Outcome {
    // Each may put its row only if the other's is not there, so there is never more than one.
    let unless = |change: &dyn WriteTransaction, other: &[u8], own: &[u8]| {
        if change.get(TABLE, other)?.is_none() { change.put(TABLE, own, b"") } else { Ok(()) }
    };
    let free = std::cell::Cell::new(false);
    at_once(
        subject,
        |change| if free.get() { change.put(TABLE, b"one", b"") } else { Ok(()) },
        |change| unless(change, b"one", b"two"),
        |change| {
            free.set(change.get(TABLE, b"two")?.is_none());
            Ok(())
        },
    )?;
    let found = contents(subject.open()?.as_ref(), TABLE)?.len();
    equal("rows of which there may be one", found, 1)
}

fn second_owner(subject: &dyn Subject) -> Outcome {
    let first = subject.open()?;
    put(first.as_ref(), &[(b"first", b"1")])?;
    let second = match subject.open() {
        Ok(second) => second,
        Err(Error::InUse { .. }) => {
            drop(first);
            equal("the first's row", get(subject.open()?.as_ref(), b"first")?, Some(b"1".to_vec()))?;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for round in 0..3_u8 {
        for (writer, reader) in [(&first, &second), (&second, &first)] {
            put(writer.as_ref(), &[(b"turn", &[round])])?;
            equal("what the other wrote", get(reader.as_ref(), b"turn")?, Some(vec![round]))?;
            put(reader.as_ref(), &[(b"turn", b"back")])?;
            equal("what was written back", get(writer.as_ref(), b"turn")?, Some(b"back".to_vec()))?;
        }
    }
    Ok(())
}

fn unknown_refuses(subject: &dyn Subject) -> Outcome {
    with_disruption(subject, Disruption::Failure, |step, ended, backend| {
        if !matches!(ended, Err(CommitError::Unknown(_))) {
            return Ok(());
        }
        let answers = [
            ("a view", backend.read().and_then(|view| view.get(TABLE, b"key")).is_ok()),
            ("a change", backend.write().and_then(|change| change.put(TABLE, b"late", b"")).is_ok()),
        ];
        for (what, answered) in answers {
            expect(!answered, || format!("failed at step {step}: {what} was given all the same"))?;
        }
        Ok(())
    })
}

fn unknown_is_settled(subject: &dyn Subject) -> Outcome {
    with_disruption(subject, Disruption::Failure, |step, ended, backend| {
        let what = format!("failed at step {step}");
        drop(backend);
        let backend = subject.open()?;
        let is_new = state_of(backend.as_ref(), &what)?;
        match &ended {
            Ok(()) => expect(is_new, || format!("{what}: committed, and not there"))?,
            Err(CommitError::Unknown(_)) => {}
            Err(error) => expect(!is_new, || format!("{what}: {error:?}, and there"))?,
        }
        // A change that was not there must not appear later: with the next change, the next opening, or a loss of
        // power.
        put(backend.as_ref(), &[(b"next", b"change")])?;
        let change = backend.write()?;
        change.remove(TABLE, b"next")?;
        change.commit()?;
        equal(&what, state_of(backend.as_ref(), &what)?, is_new)?;
        drop(backend);
        subject.lose_power(step);
        equal(&what, state_of(subject.open()?.as_ref(), &what)?, is_new)
    })
}
