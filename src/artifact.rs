//! What an artifact is on the wire: JSON Lines in gzip.

use std::io::{self, BufRead, BufReader, Cursor, Read};

/// Bytes read from the source of a document at a time.
const READ_BYTES: usize = 128 * 1024;

/// The two bytes that every gzip member begins with, and no text does.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads `input` as plain text, whether it is gzipped (in any number of members) or not.
pub(crate) fn reader<'r>(mut input: impl Read + 'r) -> io::Result<Box<dyn BufRead + 'r>> {
    // A pipe may hand over one byte at a time.
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
