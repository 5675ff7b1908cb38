//! The bytes of a batch: JSON Lines in one gzip member.
//!
//! A line is one record and a newline. The member's header has no name and no time, so the same build of the
//! compressor makes the same bytes of the same lines. Its checksum is computed by `crc32fast`, three to four times as
//! fast as that of zlib-rs (7 ms against 28 ms for 400 MB; the same is about 2 % of the time of compressing them at
//! level 2). Still, a batch is identified by its key, never by a hash of these bytes. gzip: RFC 1952; JSON Lines:
//! <https://jsonlines.org>.

use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::num::NonZeroUsize;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::DeflateEncoder;

use crate::error::{Error, Result};

/// The media type of a batch.
pub(crate) const CONTENT_TYPE: &str = "application/x-gzip";

/// Bytes read from the source of a document at a time.
const READ_BYTES: usize = 128 * 1024;

/// The first two bytes of every gzip member; no text begins with them.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads `input` as plain text. It may be gzipped, in any number of members.
pub(crate) fn reader<'r>(mut input: impl Read + 'r) -> io::Result<Box<dyn BufRead + 'r>> {
    // A pipe may return one byte at a time.
    let mut head = Vec::with_capacity(GZIP_MAGIC.len());
    input.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut head)?;
    let gzipped = head == GZIP_MAGIC;
    let input = BufReader::with_capacity(READ_BYTES, Cursor::new(head).chain(input));
    if gzipped {
        let decoder = flate2::bufread::MultiGzDecoder::new(input);
        return Ok(Box::new(BufReader::with_capacity(READ_BYTES, decoder)));
    }
    Ok(Box::new(input))
}

/// How batches are compressed: by which compressor, and how thoroughly. Level 2 of zlib-rs by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Compressor);

/// Who compresses, and at which of its levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compressor {
    ZlibRs(u32),
    #[cfg(feature = "libdeflate")]
    Libdeflate(libdeflater::CompressionLvl),
}

impl Level {
    /// A level of zlib-rs, from 0 (stored) to 9 (smallest).
    ///
    /// # Errors
    /// `Invalid` above 9.
    pub fn new(level: u32) -> Result<Self> {
        if level > 9 {
            return Err(Error::Invalid {
                what: format!("the compression level {level}"),
                reason: "it must be from 0 (stored) to 9 (smallest)".to_owned(),
            });
        }
        Ok(Self(Compressor::ZlibRs(level)))
    }

    /// A level of [libdeflate](https://github.com/ebiggers/libdeflate), from 1 (fastest) to 12 (smallest). Its level 1
    /// produces fewer bytes than the default, in less CPU time. It compresses a batch in one piece: for each thread that
    /// compresses at the same time, the process keeps memory for the lines and for the result, if neither is over 4 MiB, and 0.2
    /// to 0.7 MiB more; 9 MiB more at levels 10 to 12.
    ///
    /// ```
    /// use highwater::{Level, Store};
    /// let options = Store::options().level(Level::libdeflate(1)?);
    /// assert!(Level::libdeflate(13).is_err());
    /// # Ok::<(), highwater::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Invalid` if it is 0 or above 12.
    #[cfg(feature = "libdeflate")]
    pub fn libdeflate(level: u32) -> Result<Self> {
        // It knows a level 0, too, which does not compress.
        let known = i32::try_from(level).ok().filter(|&level| level > 0);
        let known = known.and_then(|level| libdeflater::CompressionLvl::new(level).ok());
        known.map(|known| Self(Compressor::Libdeflate(known))).ok_or_else(|| Error::Invalid {
            what: format!("the compression level {level} of libdeflate"),
            reason: "it must be from 1 (fastest) to 12 (smallest)".to_owned(),
        })
    }

    /// RFC 1952, 2.3.1: how thorough the compressor was, as zlib says it.
    fn thoroughness(self) -> u8 {
        let level = match self.0 {
            Compressor::ZlibRs(level) => i64::from(level),
            #[cfg(feature = "libdeflate")]
            Compressor::Libdeflate(level) => i32::from(level).into(),
        };
        match level {
            0 | 1 => 4,
            2..=8 => 0,
            _ => 2,
        }
    }

    /// Appends the lines to the member, deflated (RFC 1951).
    fn deflate(self, lines: &[&[u8]], member: Pieces) -> io::Result<Pieces> {
        match self.0 {
            Compressor::ZlibRs(level) => {
                let mut encoder = DeflateEncoder::new(member, Compression::new(level));
                for piece in lines {
                    encoder.write_all(piece)?;
                }
                encoder.finish()
            }
            #[cfg(feature = "libdeflate")]
            Compressor::Libdeflate(level) => libdeflate::deflate(level, lines, member),
        }
    }
}

impl Default for Level {
    /// Level 2: on JSON it is two to four times as fast as level 6, and produces about a fifth more bytes. Level 1
    /// is even faster, but produces a third more bytes than level 2. `docs/benchmarks.md` has the table.
    fn default() -> Self {
        Self(Compressor::ZlibRs(2))
    }
}

/// Bytes of one piece of lines or of a gzip member, at most; only a piece with a longer line has more. With its key and
/// envelope, such a piece fits into 64 KiB. redb stores a large value in a page of its own, whose size is a power of two: a
/// batch of 300 KB in one piece would take 512 KiB, in the file and, while it is written or read, in memory.
pub(crate) const PIECE_BYTES: usize = 63 * 1024;

/// Bytes in pieces of [`PIECE_BYTES`]; the last may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pieces {
    pieces: Vec<Vec<u8>>,
    /// What a new piece has room for.
    capacity: usize,
}

impl Pieces {
    /// Room for about so many bytes.
    fn of_about(bytes: usize) -> Self {
        Self { pieces: Vec::with_capacity(bytes.div_ceil(PIECE_BYTES)), capacity: bytes.min(PIECE_BYTES) }
    }

    /// Bytes of all pieces.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(Vec::len).sum()
    }

    pub(crate) fn concat(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

impl IntoIterator for Pieces {
    type Item = Vec<u8>;
    type IntoIter = std::vec::IntoIter<Vec<u8>>;

    fn into_iter(self) -> Self::IntoIter {
        self.pieces.into_iter()
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pieces.last().is_none_or(|last| last.len() >= PIECE_BYTES) {
            self.pieces.push(Vec::with_capacity(self.capacity));
        }
        let Some(last) = self.pieces.last_mut() else { return Ok(0) };
        let room = PIECE_BYTES.saturating_sub(last.len());
        let fitting = bytes.get(..room).unwrap_or(bytes);
        last.extend_from_slice(fitting);
        Ok(fitting.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts pieces of JSON Lines into one gzip member.
pub(crate) fn compress(lines: &[&[u8]], level: Level) -> Result<Pieces> {
    let deflate = || -> io::Result<Pieces> {
        let length: usize = lines.iter().map(|piece| piece.len()).sum();
        let mut member = Pieces::of_about(length / 3 + 64);
        // RFC 1952, 2.3: deflated, no flags, no time, how thorough the compressor was, made on no system in particular.
        member.write_all(&[GZIP_MAGIC[0], GZIP_MAGIC[1], 8, 0, 0, 0, 0, 0, level.thoroughness(), 255])?;
        let mut member = level.deflate(lines, member)?;
        let mut crc = crc32fast::Hasher::new();
        for piece in lines {
            crc.update(piece);
        }
        member.write_all(&crc.finalize().to_le_bytes())?;
        // The length is kept modulo 2^32.
        #[expect(clippy::cast_possible_truncation, reason = "as RFC 1952 has it")]
        member.write_all(&(length as u32).to_le_bytes())?;
        Ok(member)
    };
    deflate().map_err(|error| Error::io("compress a batch", error))
}

/// What libdeflate does: it takes the lines of a batch in one piece.
#[cfg(feature = "libdeflate")]
mod libdeflate {
    use std::io::{self, Write};
    use std::sync::{Mutex, PoisonError};

    use libdeflater::{CompressionError, CompressionLvl, Compressor};

    use super::Pieces;

    /// What a thread needs to compress a batch, kept for the next one: it takes a tenth of the time to get so much memory from
    /// the system.
    struct Workspace {
        level: CompressionLvl,
        compressor: Compressor,
        lines: Vec<u8>,
        deflated: Vec<u8>,
    }

    /// Those that no thread works with. There are as many of a level as there were threads that compressed at the same time.
    static IDLE: Mutex<Vec<Workspace>> = Mutex::new(Vec::new());

    /// Bytes of lines up to which a workspace is kept.
    const KEPT_BYTES: usize = 4 * 1024 * 1024;

    /// Appends the lines to the member, deflated.
    pub(super) fn deflate(level: CompressionLvl, lines: &[&[u8]], mut member: Pieces) -> io::Result<Pieces> {
        let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = {
            let mut idle = idle();
            let of_level = idle.iter().position(|workspace| workspace.level == level);
            of_level.map(|at| idle.swap_remove(at))
        };
        let mut workspace = kept.unwrap_or_else(|| Workspace::new(level));
        member.write_all(workspace.deflate(lines)?)?;
        if workspace.lines.capacity().max(workspace.deflated.capacity()) <= KEPT_BYTES {
            idle().push(workspace);
        }
        Ok(member)
    }

    impl Workspace {
        fn new(level: CompressionLvl) -> Self {
            Self { level, compressor: Compressor::new(level), lines: Vec::new(), deflated: Vec::new() }
        }

        fn deflate(&mut self, pieces: &[&[u8]]) -> io::Result<&[u8]> {
            let Self { compressor, lines, deflated, .. } = self;
            lines.clear();
            lines.reserve_exact(pieces.iter().map(|piece| piece.len()).sum());
            for piece in pieces {
                lines.extend_from_slice(piece);
            }
            let resize = |deflated: &mut Vec<u8>, bytes: usize| {
                deflated.reserve_exact(bytes.saturating_sub(deflated.len()));
                deflated.resize(bytes.max(deflated.len()), 0);
            };
            // Lines shrink to less than a third, mostly.
            resize(deflated, lines.len() / 3 + 64);
            let mut result = compressor.deflate_compress(lines, deflated);
            if result == Err(CompressionError::InsufficientSpace) {
                resize(deflated, compressor.deflate_compress_bound(lines.len()));
                result = compressor.deflate_compress(lines, deflated);
            }
            let bytes = result.map_err(io::Error::other)?;
            Ok(deflated.get(..bytes).unwrap_or_default())
        }
    }
}

/// Compresses each batch's pieces of JSON Lines into a gzip member of its own, on all cores. Calls `core_is_free`
/// whenever a thread has compressed its share.
pub(crate) fn compress_all(
    batches: &[Vec<&[u8]>],
    level: Level,
    core_is_free: &(dyn Fn() + Sync),
) -> Result<Vec<Pieces>> {
    // To ask for the cores is to read files of the system.
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let cores = if batches.len() < 2 { 1 } else { cores() };
    let compress_share = move |share: &[Vec<&[u8]>]| {
        let members = share.iter().map(|pieces| compress(pieces, level)).collect::<Result<Vec<_>>>();
        core_is_free();
        members
    };
    if cores < 2 {
        return compress_share(batches);
    }
    // The first share is this thread's own.
    let (own, others) = batches.split_at(batches.len().div_ceil(cores));
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            others.chunks(own.len()).map(|share| scope.spawn(move || compress_share(share))).collect();
        let mut members = compress_share(own)?;
        for thread in threads {
            match thread.join() {
                Ok(share) => members.extend(share?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(members)
    })
}

/// Counts lines by their newlines.
// A crate for this would gain little: what is counted was just decompressed, or is about to be.
#[allow(clippy::naive_bytecount)]
pub(crate) fn line_count(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// What a member contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) lines: u64,
    pub(crate) line_bytes: u64,
}

/// Writes the lines of a member to `out`. Decodes all of it: verifies its checksum and its length, and that nothing
/// follows it.
///
/// # Errors
/// `InvalidData` or `UnexpectedEof` if it is not one whole member of at most `line_bytes_max`; those of `out`.
pub(crate) fn decompress(member: &[u8], line_bytes_max: u64, out: &mut dyn Write) -> io::Result<Contents> {
    let damaged = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut decoder = GzDecoder::new(member);
    let mut buffer = vec![0; 64 * 1024];
    let mut contents = Contents { lines: 0, line_bytes: 0 };
    loop {
        let read = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // flate2 reports most damage as `InvalidInput`; here the input is what was stored.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(damaged(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        contents.line_bytes += read.len() as u64;
        if contents.line_bytes > line_bytes_max {
            return Err(damaged(format!("it holds more than {line_bytes_max} bytes of lines")));
        }
        contents.lines += line_count(read);
        out.write_all(read)?;
    }
    match decoder.into_inner() {
        [] => Ok(contents),
        rest => Err(damaged(format!("{} bytes follow the gzip member", rest.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_read_back_whole_and_anything_less_or_more_is_an_error() {
        let member = compress(&[b"{\"id\":1}\n", b"{\"id\":2}\n"], Level::default()).unwrap().concat();
        let mut lines = Vec::new();
        let contents = decompress(&member, 18, &mut lines).unwrap();
        assert_eq!(contents, Contents { lines: 2, line_bytes: 18 });
        assert_eq!(lines, b"{\"id\":1}\n{\"id\":2}\n");

        assert!(decompress(&member, 17, &mut io::sink()).is_err());
        let mut followed = member.clone();
        followed.extend_from_slice(&member);
        assert!(decompress(&followed, 100, &mut io::sink()).is_err());
        for end in 0..member.len() {
            assert!(decompress(&member[..end], 100, &mut io::sink()).is_err(), "cut to {end}");
        }
        // The header's time and flags may change and still decode; the body may not.
        for at in 10..member.len() {
            let mut flipped = member.clone();
            flipped[at] ^= 1;
            assert!(decompress(&flipped, 100, &mut io::sink()).is_err(), "byte {at}");
        }
    }

    /// A batch has the same bytes if it is compressed again after a crash, by another thread, or beside others.
    #[test]
    fn one_build_makes_the_same_bytes_of_the_same_lines() {
        let lines: Vec<Vec<u8>> = (0..4_000_u32)
            .map(|line| {
                let mixed = line.wrapping_mul(0x9e37_79b9);
                format!("{{\"id\":\"issue-{line}\",\"data\":{{\"a\":{mixed},\"b\":\"{:x}\"}}}}\n", mixed / 7)
                    .into_bytes()
            })
            .collect();
        let whole = lines.concat();
        let by_line: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        let mut sizes = Vec::new();
        let zlib_rs = (0..=9).map(Level::new);
        for level in zlib_rs.chain((1..=12).map(Level::libdeflate)) {
            let level = level.unwrap();
            let member = compress(&[&whole], level).unwrap().concat();
            assert_eq!(member, compress(&[&whole], level).unwrap().concat());
            if let Compressor::ZlibRs(level) = level.0 {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::new(level));
                gzip.write_all(&whole).unwrap();
                assert_eq!(member, gzip.finish().unwrap(), "as another encoder writes it");
            }
            // Lines that came by many pages, in members made on several cores.
            for other in
                compress_all(&[by_line.clone(), vec![&whole], by_line.clone()], level, &|| ()).unwrap()
            {
                let (mut one, mut two) = (Vec::new(), Vec::new());
                decompress(&member, u64::MAX, &mut one).unwrap();
                decompress(&other.concat(), u64::MAX, &mut two).unwrap();
                assert_eq!(one, two);
            }
            let again = compress_all(&[by_line.clone(), by_line.clone()], level, &|| ()).unwrap();
            assert_eq!(again[0], again[1]);
            assert_eq!(again[0], compress(&by_line, level).unwrap());
            sizes.push(member.len());
        }
        assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2] && sizes[2] > sizes[6], "{sizes:?}");
        let libdeflate = &sizes[10..];
        assert!(libdeflate[0] > libdeflate[5] && libdeflate[5] > libdeflate[11], "{sizes:?}");
    }

    #[test]
    fn what_does_not_shrink_and_what_is_larger_than_before_are_read_back_too() {
        let mut chance = fastrand::Rng::with_seed(7);
        let levels = [Level::default(), Level::libdeflate(1).unwrap(), Level::libdeflate(12).unwrap()];
        for length in [1, 70_000, 300, 5_000_000, 20_000] {
            let bytes: Vec<u8> = std::iter::repeat_with(|| chance.u8(..)).take(length).collect();
            for level in levels {
                let member = compress(&[&bytes[..length / 2], &bytes[length / 2..]], level).unwrap().concat();
                let mut found = Vec::new();
                decompress(&member, length as u64, &mut found).unwrap();
                assert!(found == bytes, "{length} bytes, {level:?}");
            }
        }
    }

    #[test]
    fn lines_without_bytes_are_a_member_too_and_a_level_that_does_not_exist_is_an_error() {
        for level in [Level::default(), Level::libdeflate(1).unwrap()] {
            for lines in [&[][..], &[&b""[..]][..]] {
                let member = compress(lines, level).unwrap().concat();
                let contents = decompress(&member, 0, &mut io::sink()).unwrap();
                assert_eq!(contents, Contents { lines: 0, line_bytes: 0 });
            }
        }
        for (level, said) in [
            (Level::new(10), "level 10 is not allowed: it must be from 0 (stored) to 9 (smallest)"),
            (Level::libdeflate(0), "level 0 of libdeflate is not allowed: it must be from 1"),
            (
                Level::libdeflate(13),
                "level 13 of libdeflate is not allowed: it must be from 1 (fastest) to 12",
            ),
        ] {
            let error = level.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
