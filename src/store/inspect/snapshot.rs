//! A snapshot of a store: opened in place or from a copy, and read again if it changed meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::artifact::decompress;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};

use super::super::backend::redb::{check_start, guarded, is_open_elsewhere};
use super::super::backend::store_file::open_to_read;
use super::super::batches::payload;
use super::super::open::{CACHE_BYTES, Store};
use super::super::rows::{
    BATCHES, BatchState, CHUNKS, Key, LEDGER, MESSAGES, RUNS, UNITS, UnitRow, message_key, name_of,
    number_of, run_key,
};
use super::super::tables::{Rows, Tables, View};

use super::attachments::{AttachmentReport, Place, next_group};
use super::find::{self, Found};
use super::messages::{self, DeathReport, EventReport, MessageReport, message_report};
use super::overlay::{Base, Overlay};
use super::records::{BatchReport, batch_report};
use super::rejected::{self, RejectedReport};
use super::report::{self, Report};
use super::scan::{each, name, run_id};

/// Copies of a file that is open elsewhere before it counts as too busy.
const COPIES_MAX: u32 = 20;
/// A file that was not written to for this long shows the next write in its timestamp: file systems round to a few
/// milliseconds.
const SETTLED: Duration = Duration::from_millis(20);
/// Bytes at the start of a file that every commit changes (redb `docs/design.md`, "Super-header").
const HEADER_BYTES: u64 = 512;

/// Bytes that are copied at a time.
const COPIED_BLOCK_BYTES: usize = 64 * 1024;

/// How a store was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// In place; its last owner closed it.
    Closed,
    /// In place; its last owner did not close it: it was killed, or lost power.
    LeftOpen,
    /// From a copy, because a process has it open.
    Copy {
        /// Copies made until one showed a single moment.
        copies: u32,
    },
}

/// A store that is read without owning it.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    /// `None` only while it is being dropped.
    tables: Option<Tables>,
    source: Source,
    /// The file itself and its state at opening, if it is read in place.
    watched: Option<Watched>,
}

/// How much is verified before rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// Every page is compared with its checksum; if one differs, the file is refused.
    Verified,
    /// The caller verifies them.
    Unverified,
}

/// What changes if the file changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    header: Vec<u8>,
}

impl Stamp {
    fn of(base: &Base) -> io::Result<Self> {
        base.with(|mut file| {
            let about = file.metadata()?;
            let mut header = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.take(HEADER_BYTES).read_to_end(&mut header)?;
            Ok(Self { bytes: about.len(), modified: about.modified().ok(), header })
        })
    }
}

/// A file that nobody had open.
#[derive(Debug)]
struct Watched {
    base: Base,
    stamp: Stamp,
}

impl Watched {
    /// Whether nobody has opened it, and nothing in it has changed.
    fn is_untouched(&self) -> io::Result<bool> {
        // In this order: an owner that ends between the two has changed the header.
        Ok(self.base.with(is_open_elsewhere)? == Some(false) && Stamp::of(&self.base)? == self.stamp)
    }
}

impl Store {
    /// Reports on one sync unit of a store that is open here, like [`Snapshot::unit`].
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub fn report(&self, sync_unit: &str, last: usize) -> Result<Option<Report>> {
        self.inner.tables.view(|view| match view.get(&UNITS, &Key::name(sync_unit))? {
            Some(unit) => report::read(view, sync_unit, &unit, last).map(Some),
            None => Ok(None),
        })
    }
}

impl Store {
    /// The rejected records of one sync unit of a store that is open here, like [`Snapshot::rejected`], without their
    /// content.
    ///
    /// # Errors
    /// `Corrupt` or `Io`.
    pub fn rejected(&self, sync_unit: &str) -> Result<Option<Vec<RejectedReport>>> {
        self.inner.tables.view(|view| match view.get(&UNITS, &Key::name(sync_unit))? {
            Some(unit) => rejected::read(view, sync_unit, &unit, false).map(Some),
            None => Ok(None),
        })
    }
}

impl Snapshot {
    /// Opens a store to read it, whether its owner has closed it, was killed, or has it open.
    ///
    /// # Errors
    /// `Io` if it cannot be read, or not be copied to the directory for temporary files; `NotAStore`, `NewerFormat`,
    /// `Corrupt`; `InUse` if its owner changed it during each of many copies.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), Pages::Verified)
    }

    pub(super) fn open_with(path: &Path, pages: Pages) -> Result<Self> {
        let file = open_to_read(path)?;
        let reading = |error| Error::io(format!("read the store {}", path.display()), error);
        let base = Base::new(file);
        let stamp = Stamp::of(&base).map_err(reading)?;
        let left_open = check_start(path, &stamp.header)?;
        let watched = Watched { base: base.clone(), stamp };
        if watched.is_untouched().map_err(reading)? {
            let tables = look_at(base, path, pages);
            if watched.is_untouched().map_err(reading)? {
                return Ok(Self {
                    path: path.to_owned(),
                    tables: Some(tables?),
                    source: if left_open { Source::LeftOpen } else { Source::Closed },
                    watched: Some(watched),
                });
            }
            drop_tables(path, tables.ok());
        }
        Self::open_copy(path)
    }

    fn open_copy(path: &Path) -> Result<Self> {
        let reading = |error| Error::io(format!("read the store {}", path.display()), error);
        let clock = SystemClock::new();
        let mut settled = None;
        for copies in 1..=COPIES_MAX {
            let base = Base::new(open_to_read(path)?);
            let before = Stamp::of(&base).map_err(reading)?;
            let copy = Base::new(copy_of(path, &base)?);
            match look_at(copy, path, Pages::Verified) {
                Ok(tables) => {
                    return Ok(Self {
                        path: path.to_owned(),
                        tables: Some(tables),
                        source: Source::Copy { copies },
                        watched: None,
                    });
                }
                // It counts as damaged only if a copy that is certainly of one moment is damaged.
                Err(error @ Error::Corrupt { .. }) => {
                    let after = Stamp::of(&base).map_err(reading)?;
                    if after == before && settled.as_ref() == Some(&before) {
                        return Err(error);
                    }
                    if after == before {
                        clock.sleep(SETTLED);
                    }
                    settled = (after == before).then_some(after);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::InUse { path: path.to_owned() })
    }

    /// How it was read. It becomes [`Source::Copy`] when somebody opens the file while it is being read.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The sync units, in the order of their ids, each with the newest `last` of its messages and of the ledger.
    ///
    /// They are read one by one, so memory does not grow with their number. Each report shows one moment; if an owner
    /// opens the file meanwhile, later units may show a later one.
    pub fn units(&mut self, last: usize) -> Units<'_> {
        Units { snapshot: self, last, next: Some(Key::name("")) }
    }

    /// The ids of the sync units, in order.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn unit_ids(&mut self) -> Result<Vec<String>> {
        self.look(|view| {
            let (prefix, mut ids) = (Key::name(""), Vec::new());
            each(view, &UNITS, &prefix, name, |id, _| ids.push(id))?;
            Ok(ids)
        })
    }

    /// One sync unit; `None` if the store does not know it.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn unit(&mut self, sync_unit: &str, last: usize) -> Result<Option<Report>> {
        self.look_at_unit(sync_unit, |view, unit| report::read(view, sync_unit, unit, last))
    }

    /// The batches of a unit's newest run that are stored, in order; `None` if the store does not know the unit.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn batches(&mut self, sync_unit: &str) -> Result<Option<Vec<BatchReport>>> {
        self.look_at_unit(sync_unit, |view, unit| {
            let mut batches = Vec::new();
            if let Some(no) = unit.run {
                let run = view.need(&RUNS, &run_key(unit.no, no))?;
                each(view, &BATCHES, &run_key(unit.no, no), number_of, |seq, row| {
                    batches.push(batch_report(sync_unit, &run.id, seq, row));
                })?;
            }
            Ok(batches)
        })
    }

    /// The rejected records of a unit, by item type and id: those that will be requested again, and the outcome of
    /// those in the open run. `with_json`: with the kept part of their content, which users wrote. `None` if the
    /// store does not know the unit.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn rejected(&mut self, sync_unit: &str, with_json: bool) -> Result<Option<Vec<RejectedReport>>> {
        self.look_at_unit(sync_unit, |view, unit| rejected::read(view, sync_unit, unit, with_json))
    }

    /// Writes the JSON Lines of a batch that is staged or uploaded; returns their number. `None`, and nothing is
    /// written, if there is no such batch, or if it is confirmed and its bytes are not stored any more.
    ///
    /// # Errors
    /// `Io` with the error of `out` as its source; those of [`Snapshot::open`].
    pub fn batch_lines(&mut self, sync_unit: &str, seq: u64, out: &mut dyn Write) -> Result<Option<u64>> {
        let found = self.look_at_unit(sync_unit, |view, unit| {
            let Some(run) = unit.run else { return Ok(None) };
            let key = run_key(unit.no, run).and_number(seq);
            match view.get(&BATCHES, &key)? {
                Some(row) if matches!(row.state, BatchState::Staged | BatchState::Uploaded) => {
                    Ok(Some((row.line_bytes, payload::read(view, &key, &row)?)))
                }
                _ => Ok(None),
            }
        })?;
        let Some((line_bytes, member)) = found.flatten() else { return Ok(None) };
        let contents = decompress(&member, line_bytes, out).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Error::Corrupt {
                what: format!("{}, batch {seq} of {sync_unit}", self.path.display()),
                reason: error.to_string(),
            },
            _ => Error::io(format!("write the lines of batch {seq} of {sync_unit}"), error),
        })?;
        Ok(Some(contents.lines))
    }

    /// A sealed message and its body; the newest if no number is given. `None` if it is not stored, or the store does
    /// not know the unit.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn message(
        &mut self,
        sync_unit: &str,
        message: Option<u64>,
    ) -> Result<Option<(MessageReport, Vec<u8>)>> {
        let found = self.look_at_unit(sync_unit, |view, unit| {
            let mut newest = None;
            if let Some(no) = message {
                newest = view.get(&MESSAGES, &message_key(unit.no, no))?.map(|row| (no, row));
            } else {
                each(view, &MESSAGES, &Key::unit(unit.no), number_of, |no, row| {
                    newest = Some((no, row));
                })?;
            }
            let Some((no, row)) = newest else { return Ok(None) };
            let run = run_id(view, unit.no, row.run)?;
            let report = message_report(view, sync_unit, unit.no, no, &row, run.as_ref())?;
            Ok(Some((report, row.body)))
        });
        found.map(Option::flatten)
    }

    /// Writes the records of the newest run that are in no batch yet, as JSON Lines, by item type, or those of one;
    /// returns their number. `None`, and nothing is written, if the store does not know the unit.
    ///
    /// # Errors
    /// `Io` with the error of `out` as its source; those of [`Snapshot::open`].
    pub fn open_lines(
        &mut self,
        sync_unit: &str,
        item_type: Option<&str>,
        out: &mut dyn Write,
    ) -> Result<Option<u64>> {
        let found = self.look_at_unit(sync_unit, |view, unit| {
            let (mut records, mut lines) = (0, Vec::new());
            let Some(run) = unit.run.map(|run| run_key(unit.no, run)) else { return Ok((0, lines)) };
            let prefix = match item_type {
                Some(item_type) => run.and_inner_name(item_type),
                None => run,
            };
            view.scan(&CHUNKS, &prefix, &prefix, |_, chunk| {
                records += u64::from(chunk.items);
                lines.extend_from_slice(&chunk.lines);
                Ok(true)
            })?;
            Ok((records, lines))
        })?;
        let Some((records, lines)) = found else { return Ok(None) };
        out.write_all(&lines)
            .map_err(|error| Error::io(format!("write the open records of {sync_unit}"), error))?;
        Ok(Some(records))
    }

    /// Where records with an id are, and what else is known about it; `None` if the store does not know the unit.
    ///
    /// It reads every record of the newest run whose bytes are stored.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn find(&mut self, sync_unit: &str, id: &str) -> Result<Option<Found>> {
        self.look_at_unit(sync_unit, |view, unit| find::find(view, sync_unit, unit, id))
    }

    /// The events of a unit that are kept, and the lives that ended without an answer, of the newest run and of the
    /// one before it; `None` if the store does not know the unit.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn conversation(&mut self, sync_unit: &str) -> Result<Option<Conversation>> {
        self.look_at_unit(sync_unit, |view, unit| {
            let mut run_ids = BTreeMap::new();
            each(view, &LEDGER, &Key::unit(unit.no), number_of, |no, row| {
                run_ids.insert(no, row.id);
            })?;
            each(view, &RUNS, &Key::unit(unit.no), number_of, |no, row| {
                run_ids.insert(no, row.id);
            })?;
            Ok(Conversation {
                events: messages::events(view, sync_unit, unit.no, &run_ids)?,
                deaths: messages::deaths(view, sync_unit, unit.no, &run_ids)?,
            })
        })
    }

    /// The attachments of a unit that are not settled: those that were given up, and, unless `only_failed`, those that are
    /// queued again after that, and the queue of the newest run. `None` if the store does not know the unit.
    ///
    /// They are read in groups, so memory does not grow with their number. Each group shows one moment.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`].
    pub fn attachments(&mut self, sync_unit: &str, only_failed: bool) -> Result<Option<Attachments<'_>>> {
        let known = self.look_at_unit(sync_unit, |_, _| Ok(()))?;
        Ok(known.map(|()| Attachments {
            snapshot: self,
            sync_unit: sync_unit.to_owned(),
            only_failed,
            next: Some(Place::default()),
            group: VecDeque::new(),
        }))
    }

    /// Reads one moment of a unit; `None` if the store does not know it.
    fn look_at_unit<T>(
        &mut self,
        sync_unit: &str,
        body: impl Fn(&View<'_>, &UnitRow) -> Result<T>,
    ) -> Result<Option<T>> {
        self.look(|view| view.get(&UNITS, &Key::name(sync_unit))?.map(|unit| body(view, &unit)).transpose())
    }

    /// Reads one moment of the store; from a copy, if the file was opened or changed meanwhile.
    pub(in crate::store) fn look<T>(&mut self, body: impl Fn(&View<'_>) -> Result<T>) -> Result<T> {
        loop {
            let Some(tables) = &self.tables else { return Err(Error::InUse { path: self.path.clone() }) };
            let result = guarded(&self.path, || tables.view(&body));
            if self.is_untouched()? {
                return result;
            }
            *self = Self::open_copy(&self.path)?;
        }
    }

    /// Checks every page against its checksum; returns what is wrong.
    pub(super) fn verify(&mut self) -> Result<Option<String>> {
        loop {
            let Some(tables) = &mut self.tables else { return Err(Error::InUse { path: self.path.clone() }) };
            let verified = guarded(&self.path, || tables.verify());
            if self.is_untouched()? {
                return match verified {
                    Ok(problem) => Ok(problem.map(str::to_owned)),
                    Err(Error::Corrupt { reason, .. }) => Ok(Some(reason)),
                    Err(error) => Err(error),
                };
            }
            *self = Self::open_copy(&self.path)?;
        }
    }

    /// Whether a file that is read in place has not changed since it was opened.
    fn is_untouched(&self) -> Result<bool> {
        self.watched
            .as_ref()
            .map_or(Ok(true), Watched::is_untouched)
            .map_err(|error| Error::io(format!("read the store {}", self.path.display()), error))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        drop_tables(&self.path, self.tables.take());
    }
}

/// The sync units of a [`Snapshot`]; made by [`Snapshot::units`]. After an error it yields no more.
#[derive(Debug)]
pub struct Units<'a> {
    snapshot: &'a mut Snapshot,
    last: usize,
    /// The next unit has this key or a later one.
    next: Option<Key>,
}

impl Iterator for Units<'_> {
    type Item = Result<Report>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.next.take()?;
        let last = self.last;
        let found = self.snapshot.look(|view| {
            let mut found = None;
            view.scan(&UNITS, &Key::name(""), &from, |id, unit| {
                found = Some((id.to_vec(), unit));
                Ok(false)
            })?;
            let Some((id, unit)) = found else { return Ok(None) };
            let id =
                name_of(&id).map_err(|error| view.tables().damaged(UNITS.name, &from, error.to_string()))?;
            report::read(view, id, &unit, last).map(Some)
        });
        match found {
            Ok(Some(report)) => {
                // The lowest key after this one.
                self.next = Some(Key::name(&report.unit.sync_unit).and_name("\0"));
                Some(Ok(report))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// The conversation about a unit's newest runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Conversation {
    /// The events that were accepted, in order.
    pub events: Vec<EventReport>,
    /// The lives that ended without an answer, in order.
    pub deaths: Vec<DeathReport>,
}

/// The attachments of a unit; made by [`Snapshot::attachments`]. After an error it yields no more.
#[derive(Debug)]
pub struct Attachments<'a> {
    snapshot: &'a mut Snapshot,
    sync_unit: String,
    only_failed: bool,
    /// Where the next group starts.
    next: Option<Place>,
    group: VecDeque<AttachmentReport>,
}

impl Iterator for Attachments<'_> {
    type Item = Result<AttachmentReport>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.group.is_empty() {
            let place = self.next.take()?;
            let (sync_unit, only_failed) = (&self.sync_unit, self.only_failed);
            let read = self
                .snapshot
                .look_at_unit(sync_unit, |view, unit| next_group(view, sync_unit, unit, &place, only_failed));
            match read {
                Ok(Some((group, next))) if !group.is_empty() => {
                    self.group = group.into();
                    self.next = Some(next);
                }
                Ok(_) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.group.pop_front().map(Ok)
    }
}

/// A copy without a name, which is deleted with its last reader.
fn copy_of(path: &Path, base: &Base) -> Result<File> {
    let copying = |error| {
        let (path, directory) = (path.display(), std::env::temp_dir());
        Error::io(
            format!("copy the store {path}, which is open elsewhere, to {}", directory.display()),
            error,
        )
    };
    let copy = tempfile::tempfile().map_err(copying)?;
    base.with(|file| copy_file(file, &copy)).map_err(copying)?;
    Ok(copy)
}

/// Copies a file into an empty one. Blocks of zeros take no space in the copy: a store has many where it was preallocated.
#[doc(hidden)]
pub fn copy_file(mut from: &File, mut to: &File) -> io::Result<()> {
    from.seek(SeekFrom::Start(0))?;
    let (mut block, zeros, mut bytes) = (vec![0; COPIED_BLOCK_BYTES], vec![0; COPIED_BLOCK_BYTES], 0);
    loop {
        let read = match from.read(&mut block) {
            Ok(0) => return to.set_len(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        bytes += read as u64;
        match block.get(..read).filter(|block| zeros.get(..read) != Some(*block)) {
            Some(block) => to.write_all(block)?,
            None => drop(to.seek(SeekFrom::Start(bytes))?),
        }
    }
}

fn look_at(base: Base, path: &Path, pages: Pages) -> Result<Tables> {
    guarded(path, || {
        let overlay = Overlay::over(base)
            .map_err(|error| Error::io(format!("read the store {}", path.display()), error))?;
        Tables::look(Arc::new(overlay), path, CACHE_BYTES, pages == Pages::Verified)
    })
}

/// Drops tables whose file may be damaged.
fn drop_tables(path: &Path, tables: Option<Tables>) {
    // An error of closing it does not matter: nothing had to be written.
    drop(guarded(path, || {
        drop(tables);
        Ok(())
    }));
}
