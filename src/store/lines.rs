//! The lines of records: written once, into one buffer, where they are checked, and from where they go into batches.

use crate::error::{Error, Result};
use crate::model::BATCH_BYTES_MAX;
use crate::record::Record;

use super::rows::Dates;

/// The lines of records of one item type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    lines: Vec<Line>,
    /// The ids, one after the other.
    ids: String,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// Where it ends, its newline included.
    end: usize,
    /// Where its id ends.
    id_end: usize,
    is_flat: bool,
    dates: Dates,
}

impl Lines {
    /// Writes them.
    ///
    /// # Errors
    /// `TooLarge` if one is beyond what a batch may hold.
    pub(super) fn of(records: &[Record]) -> Result<Self> {
        let mut lines = Self {
            bytes: Vec::with_capacity(records.iter().map(Record::line_bytes).sum()),
            lines: Vec::with_capacity(records.len()),
            ids: String::with_capacity(records.iter().filter_map(Record::id).map(str::len).sum()),
        };
        for record in records {
            let start = lines.bytes.len();
            record.write_line(&mut lines.bytes);
            lines.bytes.push(b'\n');
            let found = (lines.bytes.len() - start) as u64;
            if found > BATCH_BYTES_MAX {
                let what = format!("record {}", record.id().unwrap_or("without an id"));
                return Err(Error::TooLarge { what, found, limit: BATCH_BYTES_MAX, unit: "bytes" });
            }
            let mut dates = Dates::default();
            dates.add(record.created_micros(), record.modified_micros());
            lines.end(record.id(), dates);
        }
        Ok(lines)
    }

    /// Ends a line whose bytes were written.
    fn end(&mut self, id: Option<&str>, dates: Dates) {
        self.ids.push_str(id.unwrap_or_default());
        self.lines.push(Line { end: self.bytes.len(), id_end: self.ids.len(), is_flat: id.is_none(), dates });
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Bytes of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Each line, its newline included.
    pub(crate) fn each(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len())
            .map(|line| self.bytes.get(self.start_of(line)..self.start_of(line + 1)).unwrap_or_default())
    }

    /// The id of each record; `None` if it is flat.
    pub(super) fn ids(&self) -> impl Iterator<Item = Option<&str>> {
        let mut start = 0;
        self.lines.iter().map(move |line| {
            let id = self.ids.get(start..line.id_end);
            start = line.id_end;
            id.filter(|_| !line.is_flat)
        })
    }

    /// The dates of each record.
    pub(super) fn dates(&self) -> impl Iterator<Item = Dates> {
        self.lines.iter().map(|line| line.dates)
    }

    /// Those that are to be kept.
    pub(super) fn only(&self, keep: &[bool]) -> Self {
        let mut kept = Self::default();
        for (((line, id), dates), _) in
            self.each().zip(self.ids()).zip(self.dates()).zip(keep).filter(|(_, keep)| **keep)
        {
            kept.bytes.extend_from_slice(line);
            kept.end(id, dates);
        }
        kept
    }

    fn start_of(&self, line: usize) -> usize {
        line.checked_sub(1).and_then(|before| self.lines.get(before)).map_or(0, |before| before.end)
    }

    /// Bytes of the lines from `from` to before `to`.
    pub(super) fn bytes_between(&self, from: usize, to: usize) -> u64 {
        (self.start_of(to) - self.start_of(from)) as u64
    }

    /// The lines from `from` to before `to`.
    pub(super) fn between(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(self.start_of(from)..self.start_of(to)).unwrap_or_default()
    }

    /// The earliest and latest dates of those lines.
    pub(super) fn dates_between(&self, from: usize, to: usize) -> Dates {
        let mut dates = Dates::default();
        for line in self.lines.get(from..to).unwrap_or_default() {
            dates.merge(line.dates);
        }
        dates
    }
}
