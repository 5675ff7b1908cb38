//! The lines of records: written once, into pieces, as records are added to a page. There they are checked, and from there
//! they go into batches.

use crate::artifact::PIECE_BYTES;
use crate::error::{Error, Result};
use crate::model::{BATCH_BYTES_MAX, Micros};
use crate::record::Record;

use super::rows::Dates;

/// The lines of records of one item type, in pieces of [`PIECE_BYTES`], unless a line is longer. One buffer for a whole
/// page, freed with it, would teach glibc's allocator to keep that much in each of its arenas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    pieces: Vec<Piece>,
    lines: Vec<Line>,
    /// The ids, one after the other.
    ids: String,
}

/// Whole lines, one after the other.
#[derive(Debug, Clone)]
struct Piece {
    /// Bytes of the pieces before it.
    start: usize,
    bytes: Vec<u8>,
}

/// Lines of one piece, one after the other.
#[derive(Debug)]
pub(super) struct LinesPart<'l> {
    pub(super) items: usize,
    /// The earliest and latest dates of them.
    pub(super) dates: Dates,
    pub(super) bytes: &'l [u8],
}

/// One line.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// The piece that it is in.
    piece: usize,
    /// Where it ends, counted from the first line, its newline included.
    end: usize,
    /// Where its id ends.
    id_end: usize,
    is_flat: bool,
    created: Option<Micros>,
    modified: Option<Micros>,
}

impl Lines {
    /// Appends the line of a record.
    ///
    /// # Errors
    /// `TooLarge` if it is beyond what a batch may hold. It is appended all the same.
    pub(super) fn push(&mut self, record: &Record) -> Result<()> {
        let start = self.bytes();
        self.write(record.line_bytes(), |bytes| {
            record.write_line(bytes);
            bytes.push(b'\n');
        });
        self.end(record.id(), record.created_micros(), record.modified_micros());
        let found = (self.bytes() - start) as u64;
        if found > BATCH_BYTES_MAX {
            let what = format!("record {}", record.id().unwrap_or("without an id"));
            return Err(Error::TooLarge { what, found, limit: BATCH_BYTES_MAX, unit: "bytes" });
        }
        Ok(())
    }

    /// Writes a line of about so many bytes to the last piece if there is room, else to a new one.
    fn write(&mut self, line_bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes();
        match self.pieces.last_mut() {
            Some(Piece { bytes, .. }) if bytes.len() + line_bytes <= PIECE_BYTES => {
                let needed = bytes.len() + line_bytes;
                if needed > bytes.capacity() {
                    let capacity = needed.max(2 * bytes.len()).min(PIECE_BYTES);
                    bytes.reserve_exact(capacity - bytes.len());
                }
                write(bytes);
            }
            before => {
                // The first piece grows as needed: a small page has no other.
                let capacity = if before.is_some() { PIECE_BYTES } else { 0 };
                let mut bytes = Vec::with_capacity(capacity.max(line_bytes));
                write(&mut bytes);
                self.pieces.push(Piece { start, bytes });
            }
        }
    }

    /// Ends a line whose bytes were written to the last piece.
    fn end(&mut self, id: Option<&str>, created: Option<Micros>, modified: Option<Micros>) {
        self.ids.push_str(id.unwrap_or_default());
        let (piece, end) = (self.pieces.len().saturating_sub(1), self.bytes());
        self.lines.push(Line {
            piece,
            end,
            id_end: self.ids.len(),
            is_flat: id.is_none(),
            created,
            modified,
        });
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Bytes of them.
    pub(super) fn bytes(&self) -> usize {
        self.pieces.last().map_or(0, |piece| piece.start + piece.bytes.len())
    }

    /// Each line, its newline included.
    pub(crate) fn each(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.lines.iter().map(move |line| {
            let piece = self.pieces.get(line.piece);
            let bytes = piece.and_then(|piece| piece.bytes.get(start - piece.start..line.end - piece.start));
            start = line.end;
            bytes.unwrap_or_default()
        })
    }

    /// The id of each record; `None` if it is flat.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Option<&str>> {
        let mut start = 0;
        self.lines.iter().map(move |line| {
            let id = self.ids.get(start..line.id_end);
            start = line.id_end;
            id.filter(|_| !line.is_flat)
        })
    }

    /// When each record was modified.
    pub(super) fn modified(&self) -> impl Iterator<Item = Option<Micros>> {
        self.lines.iter().map(|line| line.modified)
    }

    /// Those that are to be kept.
    pub(super) fn only(&self, keep: &[bool]) -> Self {
        let mut kept = Self::default();
        for (((bytes, id), line), keep) in self.each().zip(self.ids()).zip(&self.lines).zip(keep) {
            if *keep {
                kept.write(bytes.len(), |piece| piece.extend_from_slice(bytes));
                kept.end(id, line.created, line.modified);
            }
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

    /// The lines from `from` to before `to`, piece by piece.
    pub(super) fn between(&self, from: usize, to: usize) -> impl Iterator<Item = LinesPart<'_>> {
        let mut start = self.start_of(from);
        let lines = self.lines.get(from..to).unwrap_or_default();
        lines.chunk_by(|one, next| one.piece == next.piece).filter_map(move |lines| {
            let (first, last) = (lines.first()?, lines.last()?);
            let piece = self.pieces.get(first.piece)?;
            let bytes = piece.bytes.get(start - piece.start..last.end - piece.start)?;
            start = last.end;
            let mut dates = Dates::default();
            for line in lines {
                dates.add(line.created, line.modified);
            }
            Some(LinesPart { items: lines.len(), dates, bytes })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(records: &[Record]) -> Lines {
        let mut lines = Lines::default();
        records.iter().try_for_each(|record| lines.push(record)).unwrap();
        lines
    }

    /// Ids and dates are those of these records.
    fn is_of(lines: &Lines, records: &[&Record]) {
        assert!(lines.ids().eq(records.iter().map(|record| record.id())));
        let expected: Vec<_> = records.iter().map(|record| record.modified_micros()).collect();
        assert_eq!(lines.modified().collect::<Vec<_>>(), expected);
        let parts = lines.between(0, lines.len());
        let (items, earliest): (Vec<_>, Vec<_>) =
            parts.map(|part| (part.items, part.dates.modified.map(|(at, _)| at))).unzip();
        assert_eq!(items.iter().sum::<usize>(), records.len());
        assert_eq!(earliest.into_iter().flatten().min(), expected.into_iter().flatten().min());
    }

    #[test]
    fn lines_in_many_pieces_are_those_of_the_records_one_after_the_other() {
        let mut rng = fastrand::Rng::with_seed(7);
        for round in 0..50 {
            let records: Vec<Record> = (0..rng.u32(0..200))
                .map(|number| {
                    // Some are longer than a piece, and some ids are longer once they are escaped.
                    let text =
                        "x".repeat(if rng.u8(..20) == 0 { rng.usize(..200_000) } else { rng.usize(..3_000) });
                    let id = format!("{number}{}", "\"\n".repeat(rng.usize(..40)));
                    let record = Record::new(id, &json!({ "text": text })).unwrap();
                    if rng.bool() { record.modified_text("2024-05-01T12:00:00Z").unwrap() } else { record }
                })
                .collect();
            let expected: Vec<Vec<u8>> =
                records.iter().map(|record| [record.to_line().as_bytes(), b"\n"].concat()).collect();
            let lines = of(&records);
            // But for one line, which is long or has an id with escapes, each has the bytes of a piece.
            for piece in lines.pieces.iter().map(|piece| &piece.bytes) {
                let last =
                    piece.strip_suffix(b"\n").and_then(|lines| lines.iter().rposition(|byte| *byte == b'\n'));
                assert!(last.is_none_or(|before| before <= PIECE_BYTES), "{} bytes", piece.len());
            }
            let is_it = |rng: &mut fastrand::Rng, lines: &Lines, expected: &[Vec<u8>]| {
                assert!(lines.each().eq(expected.iter().map(Vec::as_slice)), "round {round}");
                assert_eq!((lines.len(), lines.bytes()), (expected.len(), expected.concat().len()));
                for _ in 0..20 {
                    let from = rng.usize(..=expected.len());
                    let to = rng.usize(from..=expected.len());
                    let bytes = expected[from..to].concat();
                    let parts: Vec<_> = lines.between(from, to).map(|part| part.bytes).collect();
                    assert_eq!(parts.concat(), bytes, "{from}..{to}");
                    assert_eq!(lines.bytes_between(from, to), bytes.len() as u64);
                }
            };
            is_it(&mut rng, &lines, &expected);
            let keep: Vec<bool> = records.iter().map(|_| rng.bool()).collect();
            let kept: Vec<Vec<u8>> =
                expected.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(line, _)| line.clone()).collect();
            is_it(&mut rng, &lines.only(&keep), &kept);
            let mut kept_records: Vec<&Record> = records.iter().collect();
            is_of(&lines, &kept_records);
            let mut of = keep.iter();
            kept_records.retain(|_| *of.next().unwrap());
            is_of(&lines.only(&keep), &kept_records);
        }
    }

    #[test]
    fn a_small_page_takes_no_whole_piece() {
        for (count, data) in [1, 2, 3, 10, 100]
            .into_iter()
            .flat_map(|count| [(count, json!({})), (count, json!({ "text": "a comment".repeat(10) }))])
        {
            let records: Vec<_> = (0..count).map(|n| Record::new(format!("C-{n}"), &data).unwrap()).collect();
            let lines = of(&records);
            let capacity: usize = lines.pieces.iter().map(|piece| piece.bytes.capacity()).sum();
            assert!(capacity < 2 * lines.bytes(), "{capacity} for {}", lines.bytes());
        }
    }

    #[test]
    fn a_piece_is_not_enlarged_for_a_line_without_escapes() {
        for operation in [false, true] {
            let record = Record::new("ISSUE-1", &json!({ "text": "a text" })).unwrap();
            let record = record.created_text("2024-05-01T12:00:00.123Z").unwrap();
            let record = record.modified_text("2024-05-01T12:00:00.123Z").unwrap();
            let record = if operation { record.operation("updated") } else { record };
            let bytes = record.to_line().len() + 1;
            assert!((bytes..bytes + 40).contains(&record.line_bytes()), "{bytes}, {}", record.line_bytes());
        }
    }
}
