//! Tables in memory, gone with the process: for mending a worker state, for tests that need no disk, and as the
//! second backend that the conformance suite tests. The explorer does not use it: a worker whose disk does not
//! survive it still works on a disk, which may be full, fail, or be found by a later life.
//!
//! Changes are made one at a time. The writes of a change are kept beside the tables until it is committed. A table
//! is copied only if a view of it is open then.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

use super::contract::{Backend, CommitError, KeyRange, Limit, ReadTransaction, RowPage, WriteTransaction};

type Rows = BTreeMap<Vec<u8>, Arc<[u8]>>;
type Tables = BTreeMap<String, Arc<Rows>>;

/// A backend in memory. Clones are other workers' connections to the same tables.
#[derive(Debug, Default)]
pub struct Memory {
    server: Arc<Server>,
    /// A commit of this connection ended with an unknown outcome.
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Server {
    tables: Mutex<Tables>,
    /// Locked by the change in progress.
    writing: Mutex<()>,
    /// How the next commit fails, if it is to fail.
    next_commit: Mutex<Option<LostAnswer>>,
}

/// A commit whose answer is lost.
#[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "the suite of backends loses some"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostAnswer {
    /// It happened.
    Applied,
    /// It did not happen.
    NotApplied,
}

impl Memory {
    /// Empty tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next commit, of any connection, end with an unknown outcome; `None` makes it succeed again.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "as above"))]
    pub fn lose_answer(&self, answer: Option<LostAnswer>) {
        *lock(&self.server.next_commit) = answer;
    }

    /// Whether the lost answer is still to come.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "as above"))]
    pub fn is_to_lose_answer(&self) -> bool {
        lock(&self.server.next_commit).is_some()
    }

    fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            let reason = "a commit of this connection ended with an unknown outcome; connect again";
            return Err(Error::io("use the tables in memory", reason));
        }
        Ok(())
    }
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        Self { server: Arc::clone(&self.server), failed: AtomicBool::new(false) }
    }
}

/// A panic leaves whole tables: a table changes in one assignment, and no user's code runs meanwhile.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Memory {
    fn read(&self) -> Result<Box<dyn ReadTransaction + '_>> {
        self.check()?;
        Ok(Box::new(View(lock(&self.server.tables).clone())))
    }

    fn write(&self) -> Result<Box<dyn WriteTransaction + '_>> {
        self.check()?;
        let writing = lock(&self.server.writing);
        let base = View(lock(&self.server.tables).clone());
        Ok(Box::new(Change { memory: self, base, written: Mutex::default(), _writing: writing }))
    }
}

#[derive(Debug)]
struct View(Tables);

impl View {
    fn rows<'a>(
        &'a self,
        table: &str,
        range: KeyRange<'a>,
    ) -> impl Iterator<Item = (&'a Vec<u8>, &'a Arc<[u8]>)> {
        let rows = self.0.get(table).filter(|_| !range.is_empty());
        rows.into_iter().flat_map(move |rows| rows.range::<[u8], _>(bounds(range)))
    }
}

#[allow(clippy::unnecessary_wraps, reason = "a row as a page takes it")]
fn copied((key, value): (&Vec<u8>, &Arc<[u8]>)) -> Result<(Vec<u8>, Vec<u8>)> {
    Ok((key.clone(), value.to_vec()))
}

fn bounds(range: KeyRange<'_>) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Included(range.from), range.end.map_or(Bound::Unbounded, Bound::Excluded))
}

impl ReadTransaction for View {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(table).and_then(|rows| rows.get(key)).map(|value| value.to_vec()))
    }

    fn scan(&self, table: &str, range: KeyRange<'_>, limit: Limit) -> Result<RowPage> {
        RowPage::collect(self.rows(table, range).map(copied), limit)
    }
}

/// By table and key: the new value, or `None` if the row was removed.
type Written = BTreeMap<String, BTreeMap<Vec<u8>, Option<Arc<[u8]>>>>;

struct Change<'a> {
    memory: &'a Memory,
    base: View,
    written: Mutex<Written>,
    _writing: MutexGuard<'a, ()>,
}

impl Change<'_> {
    fn write(&self, table: &str, key: &[u8], value: Option<Arc<[u8]>>) {
        let mut written = lock(&self.written);
        if !written.contains_key(table) {
            written.insert(table.to_owned(), BTreeMap::new());
        }
        if let Some(rows) = written.get_mut(table) {
            rows.insert(key.to_vec(), value);
        }
    }
}

impl ReadTransaction for Change<'_> {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match lock(&self.written).get(table).and_then(|rows| rows.get(key)) {
            Some(value) => Ok(value.as_ref().map(|value| value.to_vec())),
            None => self.base.get(table, key),
        }
    }

    fn scan(&self, table: &str, range: KeyRange<'_>, limit: Limit) -> Result<RowPage> {
        if range.is_empty() {
            return Ok(RowPage::default());
        }
        let written = lock(&self.written);
        let Some(over) = written.get(table) else { return self.base.scan(table, range, limit) };
        let mut over = over.range::<[u8], _>(bounds(range)).peekable();
        let mut under = self.base.rows(table, range).peekable();
        let merged = std::iter::from_fn(|| {
            loop {
                let is_written = match (over.peek(), under.peek()) {
                    (Some((written, _)), Some((kept, _))) => written <= kept,
                    (written, _) => written.is_some(),
                };
                if !is_written {
                    return under.next();
                }
                let (key, value) = over.next()?;
                under.next_if(|(kept, _)| *kept == key);
                if let Some(value) = value {
                    return Some((key, value));
                }
            }
        });
        RowPage::collect(merged.map(copied), limit)
    }
}

impl WriteTransaction for Change<'_> {
    fn put(&self, table: &str, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(table, key, Some(value.into()));
        Ok(())
    }

    fn remove(&self, table: &str, key: &[u8]) -> Result<()> {
        self.write(table, key, None);
        Ok(())
    }

    fn remove_range(&self, table: &str, range: KeyRange<'_>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut keys: BTreeSet<Vec<u8>> = self.base.rows(table, range).map(|(key, _)| key.clone()).collect();
        if let Some(rows) = lock(&self.written).get(table) {
            keys.extend(rows.range::<[u8], _>(bounds(range)).map(|(key, _)| key.clone()));
        }
        for key in keys {
            self.write(table, &key, None);
        }
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), CommitError> {
        self.memory.check().map_err(CommitError::NotApplied)?;
        let Self { memory, base, written, _writing } = *self;
        // Dropped first, so that a table is copied only if another view holds it.
        drop(base);
        let lost = lock(&memory.server.next_commit).take();
        if lost != Some(LostAnswer::NotApplied) {
            let mut tables = lock(&memory.server.tables);
            for (table, rows) in written.into_inner().unwrap_or_else(PoisonError::into_inner) {
                let table = Arc::make_mut(tables.entry(table).or_default());
                for (key, value) in rows {
                    match value {
                        Some(value) => drop(table.insert(key, value)),
                        None => drop(table.remove(&key)),
                    }
                }
            }
        }
        if lost.is_some() {
            memory.failed.store(true, Ordering::Release);
            return Err(CommitError::Unknown(Error::io("commit a change", "the answer was lost")));
        }
        Ok(())
    }
}
