//! A stand-in for the external system that attachments are fetched from. The content of an attachment depends only on
//! its number.

use std::io::{self, Read};

/// Bytes of an attachment, unless the address says otherwise.
pub(crate) const BYTES: u64 = 64 * 1024;

/// Whether the length of an attachment is sent in advance; it is not for every third one.
pub(crate) fn tells_length(number: u64) -> bool {
    !number.is_multiple_of(3)
}

/// The endless content of an attachment: byte `i` is the highest byte of `(number + 1) * 2654435761 + (i / 4) *
/// 2246822519` in 32 bits, plus `i % 4`.
pub(crate) struct Attachment {
    number: u64,
    at: u64,
}

impl Attachment {
    pub(crate) fn new(number: u64) -> Self {
        Self { number, at: 0 }
    }

    #[allow(clippy::cast_possible_truncation, reason = "it is arithmetic in 32 bits and of single bytes")]
    fn byte(&self, at: u64) -> u8 {
        let seed = (self.number as u32).wrapping_add(1).wrapping_mul(2_654_435_761);
        let word = seed.wrapping_add(((at / 4) as u32).wrapping_mul(2_246_822_519));
        ((word >> 24) as u8).wrapping_add((at % 4) as u8)
    }
}

impl Read for Attachment {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for slot in buffer.iter_mut() {
            *slot = self.byte(self.at);
            self.at += 1;
        }
        Ok(buffer.len())
    }
}
