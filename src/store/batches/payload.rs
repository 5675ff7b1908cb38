//! The bytes of a batch: one gzip member, in pieces, until the platform has confirmed them.

use crate::artifact::Pieces;
use crate::error::Result;
use crate::model::BATCH_BYTES_MAX;

use super::super::codec::DecodeError;
use super::super::rows::{BatchRow, Key, PAYLOADS, Payload, number_of};
use super::super::tables::{Change, Rows};

/// Stores the bytes of the batch with this key.
pub(super) fn put(change: &Change<'_>, batch: &Key, member: Pieces) -> Result<()> {
    let pieces = (0..).zip(member);
    change
        .put_all(&PAYLOADS, pieces.map(|(number, piece)| (batch.clone().and_number(number), Payload(piece))))
}

/// The bytes of the batch with this key and row.
///
/// # Errors
/// `Corrupt` too if they are not all there.
pub(in crate::store) fn read(rows: &impl Rows, batch: &Key, row: &BatchRow) -> Result<Vec<u8>> {
    let damaged = |reason: String| rows.tables().damaged(PAYLOADS.name, batch, reason);
    let bytes = usize::try_from(row.gzip_bytes.min(BATCH_BYTES_MAX)).unwrap_or_default();
    let (mut member, mut pieces) = (Vec::with_capacity(bytes), 0);
    rows.scan(&PAYLOADS, batch, batch, |tail, Payload(piece)| {
        let number = number_of_piece(tail).map_err(|error| damaged(error.to_string()))?;
        if number != pieces {
            return Err(damaged(format!("piece {pieces} is missing")));
        }
        pieces += 1;
        member.extend_from_slice(&piece);
        Ok(member.len() as u64 <= row.gzip_bytes)
    })?;
    if pieces == 0 {
        return Err(damaged("its pieces are missing".to_owned()));
    }
    if member.len() as u64 != row.gzip_bytes {
        return Err(damaged(format!("its pieces have {} bytes instead of {}", member.len(), row.gzip_bytes)));
    }
    Ok(member)
}

/// Drops the bytes of the batch with this key.
pub(super) fn remove(change: &Change<'_>, batch: &Key) -> Result<()> {
    change.remove_all(&PAYLOADS, batch)
}

/// The number of a piece, from what follows the key of its batch: nothing if format 1 stored the whole as one.
fn number_of_piece(tail: &[u8]) -> Result<u64, DecodeError> {
    if tail.is_empty() { Ok(0) } else { number_of(tail) }
}
