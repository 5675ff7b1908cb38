//! A unit exported to a file, to move it to another store.
//!
//! JSON Lines: a header line, lines with rows, and an end line.
//!
//! ```json
//! {"kind":"highwater_unit","version":2,"store_format":2,"sync_unit":"acme/tickets","exported_at":"2026-01-02T03:04:05Z","watermark":null}
//! {"table":"bookmarks","rows":"base64"}
//! {"kind":"end","rows":1,"checksum":"32 hexadecimal digits"}
//! ```
//!
//! A line has rows of one table, one after the other: the lengths of key and row (4 bytes each, big-endian), the key,
//! and the row. (In version 1 a line has one row: `{"table":"bookmarks","key":"hexadecimal","row":"base64"}`.)
//!
//! A row is as it is stored, with the version of its form and a checksum, so a later version of this crate can read
//! it as it reads a store. Its key omits the number of the unit, which gets another number where it is imported. The
//! checksum at the end chains over all lines: for each line, it is the first half of a SHA-256 over the checksum of the
//! lines before and this line. So one reading detects a file that was cut or changed, whatever its size.
//!
//! A unit can be exported only between two runs, because batches in flight stay in the store. It is exported without
//! a holder token, so the platform does not take the new store for the holder of a checkpoint.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::num::TryFromIntError;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Micros, SyncUnitId};

use super::super::backend::store_file;
use super::super::digest::Digest;
use super::super::inspect::Snapshot;
use super::super::open::{Store, SyncUnit};
use super::super::rows::{
    ACTS, ALL_TABLES, Key, META, PAST, RUNS, Row, RunStatus, UNITS, UnitRow, check_row, run_key,
};
use super::super::tables::{Change, FORMAT, Rows, Tables};

use super::super::kept::acts_of;
use super::plan::{Plan, PlannedChange, changed_since, invalid, shown};
use super::unit::{Known, note};

/// The newest version, which this crate writes.
const VERSION: u32 = 2;
/// The kind in the header line.
const KIND: &str = "highwater_unit";
/// A line with this many bytes of rows gets no more of them.
const ROWS_BYTES: usize = 64 * 1024;
/// The longest line that is read: many times the size of any row.
const LINE_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    kind: String,
    version: u32,
    store_format: u32,
    sync_unit: String,
    exported_at: String,
    /// For people.
    watermark: Option<String>,
}

/// What is written of it needs no escapes.
#[derive(Deserialize)]
struct RowsLine<'a> {
    table: &'a str,
    rows: Option<&'a str>,
    /// In version 1, with `row`.
    key: Option<&'a str>,
    row: Option<&'a str>,
}

impl RowsLine<'_> {
    /// Calls `each` with the key and the bytes of each row; an error names what is wrong.
    fn each_row(
        &self,
        wrong: impl Fn(String) -> Error,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let decoded = |base64: &str| STANDARD.decode(base64).map_err(|error| wrong(error.to_string()));
        match (self.rows, self.key, self.row) {
            (Some(rows), None, None) => {
                let rows = decoded(rows)?;
                let mut rest = rows.as_slice();
                while !rest.is_empty() {
                    let (key, row, after) =
                        first_row(rest).ok_or_else(|| wrong("its last row is cut".to_owned()))?;
                    each(key, row)?;
                    rest = after;
                }
                Ok(())
            }
            (None, Some(key), Some(row)) => {
                let key = bytes_of_hex(key).ok_or_else(|| wrong("its key is not hexadecimal".to_owned()))?;
                each(&key, &decoded(row)?)
            }
            _ => Err(wrong("it has neither `rows` nor one `key` and `row`".to_owned())),
        }
    }
}

/// Appends a row to those of a line. Those of our stores are far shorter than 4 GiB.
fn add_row(rows: &mut Vec<u8>, key: &[u8], row: &[u8]) -> Result<(), TryFromIntError> {
    for part in [key, row] {
        rows.extend_from_slice(&u32::try_from(part.len())?.to_be_bytes());
    }
    rows.extend_from_slice(key);
    rows.extend_from_slice(row);
    Ok(())
}

/// The key and the row at the start of those of a line, and what follows.
fn first_row(rows: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (key, rest) = rows.split_first_chunk::<4>()?;
    let (row, rest) = rest.split_first_chunk::<4>()?;
    let length = |bytes: &[u8; 4]| usize::try_from(u32::from_be_bytes(*bytes)).ok();
    let (key, rest) = rest.split_at_checked(length(key)?)?;
    let (row, rest) = rest.split_at_checked(length(row)?)?;
    Some((key, row, rest))
}

#[derive(Serialize, Deserialize)]
struct EndLine {
    kind: String,
    rows: u64,
    checksum: String,
}

/// The checksum of the lines so far.
struct Chain(Digest);

impl Chain {
    fn new() -> Self {
        Self(Digest::of(""))
    }

    fn add(&mut self, line: &str) {
        self.0 = Digest::of_both(&self.0.to_string(), line);
    }
}

/// A file with an exported unit, read once and found complete.
#[derive(Debug, Clone)]
pub struct UnitFile {
    path: PathBuf,
    header: Header,
    rows: u64,
    checksum: String,
}

impl UnitFile {
    /// Opens a file, and reads it to its end.
    ///
    /// # Errors
    /// `Io`; `NewerFormat`; `Invalid` if it is not such a file, or not complete.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut rows = 0;
        let (header, checksum) = read(path, |_, _, _| {
            rows += 1;
            Ok(())
        })?;
        Ok(Self { path: path.to_owned(), header, rows, checksum })
    }

    /// The unit in the file.
    pub fn sync_unit(&self) -> &str {
        &self.header.sync_unit
    }
}

/// Reads a file and calls `each` with the table, the key and the bytes of each row; returns its header and its
/// checksum.
fn read(
    path: &Path,
    mut each: impl FnMut(&'static str, &[u8], &[u8]) -> Result<()>,
) -> Result<(Header, String)> {
    let shown = path.display();
    let wrong = |reason: String| invalid(format!("the unit file {shown}"), reason);
    let reading = |error| Error::io(format!("read the unit file {shown}"), error);
    // It is read twice, and to open a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(reading)?.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    let mut lines = BufReader::new(File::open(path).map_err(reading)?);
    let mut next = || -> Result<Option<String>> {
        let mut line = Vec::new();
        lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(reading)?;
        match line.pop() {
            None => Ok(None),
            Some(b'\n') => String::from_utf8(line).map(Some).map_err(|_| wrong("it is not UTF-8".to_owned())),
            Some(_) => Err(wrong("it is cut: its last line has no end".to_owned())),
        }
    };
    let first = next()?.ok_or_else(|| wrong("it is empty".to_owned()))?;
    let header: Header = serde_json::from_str(&first)
        .map_err(|_| wrong("`highwater-dump export` did not write it".to_owned()))?;
    if header.kind != KIND {
        return Err(wrong(format!("it says that it is {:?}, not {KIND:?}", header.kind)));
    }
    for (what, found, supported) in [
        ("the unit file", header.version, VERSION),
        ("the store of the unit file", header.store_format, FORMAT),
    ] {
        if found > supported {
            return Err(Error::NewerFormat { what: format!("{what} {shown}"), found, supported });
        }
    }
    SyncUnitId::new(header.sync_unit.as_str())?;
    let mut chain = Chain::new();
    chain.add(&first);
    let (mut line_no, mut rows) = (1_u64, 0_u64);
    loop {
        let Some(line) = next()? else { return Err(wrong(format!("it is cut after {rows} rows"))) };
        let parsed = serde_json::from_str::<RowsLine<'_>>(&line);
        // Only a line without rows is tried as the end, so that each line is parsed once.
        if parsed.is_err()
            && let Ok(end) = serde_json::from_str::<EndLine>(&line)
        {
            if end.rows != rows || end.checksum != chain.0.to_string() || end.kind != "end" {
                return Err(wrong(format!(
                    "it was changed or cut: it has {rows} rows and the checksum {}, and ends with {} and {}",
                    chain.0, end.rows, end.checksum
                )));
            }
            if next()?.is_some() {
                return Err(wrong("there is more after its end line".to_owned()));
            }
            return Ok((header, end.checksum));
        }
        line_no += 1;
        let no_rows = |reason: String| wrong(format!("line {line_no}: {reason}"));
        let parsed = parsed.map_err(|error| no_rows(error.to_string()))?;
        let table = ALL_TABLES.iter().find(|table| **table == parsed.table && **table != META.name);
        let table =
            *table.ok_or_else(|| no_rows(format!("there is no table {:?} of a unit", parsed.table)))?;
        parsed.each_row(no_rows, |key, row| {
            rows += 1;
            if let Some(Err(error)) = check_row(table, row) {
                return Err(no_rows(format!("row {rows} is not one of {table}: {error}")));
            }
            each(table, key, row)
        })?;
        chain.add(&line);
    }
}

/// Creates a new file, which is then complete and durable; after a failure there is none. `fill` writes it, and may start
/// over. Returns the number of rows that it wrote.
fn place(path: &Path, fill: impl FnOnce(&File) -> Result<u64>) -> Result<u64> {
    let writing = |error| writing(path, error);
    let new = tempfile::NamedTempFile::new_in(store_file::parent(path)).map_err(writing)?;
    let rows = fill(new.as_file())?;
    store_file::sync_file(new.as_file()).map_err(writing)?;
    new.persist_noclobber(path).map_err(|error| writing(error.error))?;
    store_file::sync_directory(store_file::parent(path)).map_err(writing)?;
    Ok(rows)
}

fn writing(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("write the unit file {}", path.display()), error)
}

/// Writes a unit to a file, in place of what is in it. `path` is its name to be. Returns the number of rows.
fn write(rows: &impl Rows, sync_unit: &str, mut file: &File, path: &Path, now: DateTime<Utc>) -> Result<u64> {
    let unit = at_rest(rows, sync_unit)?;
    let writing = |error| writing(path, error);
    file.rewind().and_then(|()| file.set_len(0)).map_err(writing)?;
    let mut out = BufWriter::new(file);
    let mut chain = Chain::new();
    let mut put = |line: &mut String| {
        chain.add(line);
        line.push('\n');
        out.write_all(line.as_bytes()).map_err(writing)
    };
    let json = |line: serde_json::Result<String>| line.map_err(|error| writing(error.into()));
    let header = Header {
        kind: KIND.to_owned(),
        version: VERSION,
        store_format: FORMAT,
        sync_unit: sync_unit.to_owned(),
        exported_at: shown(now),
        watermark: unit.watermark.map(|at| shown(at.to_time())),
    };
    let mut line = json(serde_json::to_string(&header))?;
    put(&mut line)?;
    let mut count = 0;
    // Neither names of tables nor base64 need escapes in JSON.
    let mut put_rows = |table: &str, rows: &mut Vec<u8>| {
        line.clear();
        line.push_str("{\"table\":\"");
        line.push_str(table);
        line.push_str("\",\"rows\":\"");
        STANDARD.encode_string(&*rows, &mut line);
        line.push_str("\"}");
        rows.clear();
        put(&mut line)
    };
    let of_unit = Key::unit(unit.no);
    let by_name = Key::name(sync_unit);
    for &table in ALL_TABLES {
        let prefix = match table {
            table if table == META.name => continue,
            // The rows of these tables are keyed by the id of the unit.
            table if table == UNITS.name || table == PAST.name => by_name.clone(),
            table if table == ACTS.name => acts_of(sync_unit),
            _ => of_unit.clone(),
        };
        let is_by_name = prefix == by_name;
        let mut of_line = Vec::new();
        rows.scan_raw(table, &prefix, |tail, row| {
            // With the id of another unit, which begins with this one's.
            if is_by_name && !tail.is_empty() {
                return Ok(());
            }
            count += 1;
            add_row(&mut of_line, tail, row).map_err(|error| writing(std::io::Error::other(error)))?;
            if of_line.len() < ROWS_BYTES { Ok(()) } else { put_rows(table, &mut of_line) }
        })?;
        if !of_line.is_empty() {
            put_rows(table, &mut of_line)?;
        }
    }
    let end = EndLine { kind: "end".to_owned(), rows: count, checksum: chain.0.to_string() };
    let end = json(serde_json::to_string(&end))?;
    writeln!(out, "{end}").and_then(|()| out.flush()).map_err(writing)?;
    Ok(count)
}

/// The unit, if it can be exported now.
fn at_rest(rows: &impl Rows, sync_unit: &str) -> Result<UnitRow> {
    let id = SyncUnitId::new(sync_unit)?;
    let known = Known::find(rows, &id, Micros(0))?;
    match known.open {
        None => Ok(known.unit),
        Some((_, run)) => {
            let reason = format!(
                "run {} is open, and its batches cannot be exported: let it end, or `abandon` it",
                run.id
            );
            Err(invalid(format!("exporting {sync_unit:?}"), reason))
        }
    }
}

impl Store {
    /// Writes a unit to a new file, for another store to import. Returns the number of rows.
    ///
    /// # Durability
    /// When this returns `Ok`, the file survives power loss. A kill leaves a complete file or none.
    ///
    /// # Errors
    /// `Invalid` if there is no such unit, a run of it is open, or its state is kept with the platform; `Io`, also if
    /// the file exists already; `Corrupt`.
    pub fn export(&self, sync_unit: &str, path: impl AsRef<Path>) -> Result<u64> {
        let now = self.clock().now();
        let path = path.as_ref();
        place(path, |file| self.inner.tables.view(|rows| write(rows, sync_unit, file, path, now)))
    }

    /// Plans to import a unit from a file. Nothing is changed.
    ///
    /// # Errors
    /// `Invalid` if the store has the unit and `replace` is false; `Corrupt`, `Io`.
    pub fn plan_import(&self, file: &UnitFile, replace: bool) -> Result<Plan> {
        self.inner.tables.view(|rows| plan(rows, file, replace))
    }

    /// Carries out a plan to import a unit from a file.
    ///
    /// # Durability
    /// When this returns `Ok`, all of the unit survives power loss. It is one transaction: a kill leaves all of it or nothing.
    ///
    /// # Errors
    /// `Invalid` if the store or the file has changed since the plan was made; `Corrupt`, `Io`. Nothing was changed.
    pub fn import(&self, file: &UnitFile, plan: &Plan, by: &str) -> Result<()> {
        let unit = self.any_unit(SyncUnitId::new(file.sync_unit())?);
        let now = unit.now();
        self.inner.tables.change(|change| {
            let replaces = plan
                .changes
                .iter()
                .any(|change| matches!(change, PlannedChange::Import { replaces: true, .. }));
            if self::plan(change, file, replaces)? != *plan {
                return Err(changed_since(plan));
            }
            take_in(&unit, change, file)?;
            note(change, plan, by, now)
        })
    }
}

impl Snapshot {
    /// Writes a unit of a snapshot to a new file, like [`Store::export`].
    ///
    /// # Errors
    /// Those of [`Store::export`] and of [`Snapshot::open`].
    pub fn export(&mut self, sync_unit: &str, path: impl AsRef<Path>, now: DateTime<Utc>) -> Result<u64> {
        let path = path.as_ref();
        // A store that changes while it is read is read again.
        place(path, |file| self.look(|rows| write(rows, sync_unit, file, path, now)))
    }

    /// Plans to import a unit, like [`Store::plan_import`].
    ///
    /// # Errors
    /// Those of [`Store::plan_import`] and of [`Snapshot::open`].
    pub fn plan_import(&mut self, file: &UnitFile, replace: bool) -> Result<Plan> {
        self.look(|rows| plan(rows, file, replace))
    }
}

fn plan(rows: &impl Rows, file: &UnitFile, replace: bool) -> Result<Plan> {
    let id = SyncUnitId::new(file.sync_unit())?;
    let mut plan = Plan {
        sync_unit: id.to_string(),
        act: format!("import {id} from {}", file.path.display()),
        changes: Vec::new(),
        next_run: None,
        notes: Vec::new(),
        mend: None,
    };
    let replaces = rows.get(&UNITS, &Key::name(id.as_str()))?.is_some();
    if replaces {
        let known = Known::find(rows, &id, Micros(0))?;
        if !replace {
            let reason = format!(
                "{} has this unit already, with {} runs begun: have it replaced (--replace), or import into another store",
                rows.tables().path().display(),
                known.unit.next_run.saturating_sub(1)
            );
            return Err(invalid(format!("importing {:?}", id.as_str()), reason));
        }
        known.plan_end_of_run(&mut plan, false)?;
        known.plan_forget_all(&mut plan)?;
    }
    plan.changes.push(PlannedChange::Import {
        rows: file.rows,
        exported_at: file.header.exported_at.clone(),
        replaces,
    });
    plan.notes.push(match &file.header.watermark {
        Some(watermark) => {
            format!(
                "the next run asks for records modified since {watermark}, or continues from the bookmarks"
            )
        }
        None => "the next run asks for everything".to_owned(),
    });
    plan.notes.push(
        "the unit also stays in the store it came from: serve only one of the two, or records are announced twice"
            .to_owned(),
    );
    Ok(plan)
}

/// Replaces the unit by the rows of a file.
fn take_in(sync_unit: &SyncUnit, change: &Change<'_>, file: &UnitFile) -> Result<()> {
    let id = sync_unit.id.as_str();
    sync_unit.delete_in(change)?;
    change.remove_all(&ACTS, &acts_of(id))?;
    let no = Tables::new_unit_no(change)?;
    let wrong = |reason: &str| invalid(format!("the unit file {}", file.path.display()), reason.to_owned());
    let mut unit: Option<UnitRow> = None;
    let (header, checksum) = read(&file.path, |table, key, bytes| {
        if table == UNITS.name {
            let row = UnitRow::from_bytes(bytes).map_err(|error| wrong(&error.to_string()))?;
            unit = Some(UnitRow { no, holder: (None, None), ..row });
            return Ok(());
        }
        let to = if table == PAST.name {
            sync_unit.key()
        } else if table == ACTS.name {
            acts_of(id).and_bytes(key)
        } else {
            Key::unit(no).and_bytes(key)
        };
        change.put_raw(table, &to, bytes)
    })?;
    if (&header, &checksum) != (&file.header, &file.checksum) {
        return Err(wrong("it has changed since it was opened"));
    }
    let unit = unit.ok_or_else(|| wrong("the row of the unit itself is missing"))?;
    if let Some(run) = unit.run
        && change.need(&RUNS, &run_key(no, run))?.status == RunStatus::Open
    {
        return Err(wrong("its run is open"));
    }
    change.put(&UNITS, &sync_unit.key(), &unit)
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digits = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.iter().map(digits).collect()
}
