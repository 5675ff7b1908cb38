//! How a stored value is encoded: in an envelope that detects every flipped byte.
//!
//! Shape: `version: u8`, `crc: u32 little-endian` (CRC-32 of version and body), `body`. The body of one of our own
//! rows is bincode (standard configuration, little-endian variable-length integers), and all of it must be consumed.
//! What belongs to others (JSON text, gzip members, messages) is stored as its own bytes.
//!
//! bincode cannot add a field, so a changed row is a new version. A row only grows at its end, and an older one is read
//! with the defaults of what it lacks: see [`decode`]. Over half of all one-byte corruptions would decode without an
//! error, hence the checksum. Without a limit, a flipped length would abort the process, hence the limit, which applies
//! even after the checksum has passed.

use std::borrow::Cow;

use crc32fast::Hasher;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that one bincode row may claim to have. Every row is far smaller: the largest holds one long line.
const ROW_BYTES_MAX: usize = 256 * 1024 * 1024;
const ENVELOPE_BYTES: usize = 5;

/// Why stored bytes are not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("it is of version {found}, newer than {supported}")]
    Newer { found: u8, supported: u8 },
    #[error("{0}")]
    Damaged(String),
}

fn crc(version: u8, body: &[u8]) -> u32 {
    let mut crc = Hasher::new();
    crc.update(&[version]);
    crc.update(body);
    crc.finalize()
}

/// CRC-32 of any bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Puts `body` in an envelope.
pub(crate) fn seal(version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENVELOPE_BYTES + body.len());
    bytes.push(version);
    bytes.extend_from_slice(&crc(version, body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Opens an envelope of at most version `supported`; returns the version and the body.
pub(crate) fn open(bytes: &[u8], supported: u8) -> Result<(u8, &[u8]), DecodeError> {
    let Some((&[version, a, b, c, d], body)) = bytes.split_first_chunk::<ENVELOPE_BYTES>() else {
        return Err(DecodeError::Damaged(format!("it has {} bytes, less than its envelope", bytes.len())));
    };
    let found = u32::from_le_bytes([a, b, c, d]);
    let expected = crc(version, body);
    if found != expected {
        return Err(DecodeError::Damaged(format!("its checksum is {found:08x}, expected {expected:08x}")));
    }
    if version > supported {
        return Err(DecodeError::Newer { found: version, supported });
    }
    Ok((version, body))
}

/// Writes a row as the body of an envelope.
pub(crate) fn encode<T: Serialize>(version: u8, row: &T) -> Result<Vec<u8>, DecodeError> {
    let config = bincode::config::standard().with_limit::<ROW_BYTES_MAX>();
    let body = bincode::serde::encode_to_vec(row, config)
        .map_err(|error| DecodeError::Damaged(error.to_string()))?;
    Ok(seal(version, &body))
}

fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let config = bincode::config::standard().with_limit::<ROW_BYTES_MAX>();
    let (row, read) = bincode::serde::decode_from_slice(body, config)
        .map_err(|error| DecodeError::Damaged(error.to_string()))?;
    if read != body.len() {
        return Err(DecodeError::Damaged(format!("{} bytes follow it", body.len() - read)));
    }
    Ok(row)
}

/// The body of a row of `version`; a row of an earlier version gets the fields that it lacks: see [`decode`].
fn body_of<'b>(version: u8, grew: &[usize], bytes: &'b [u8]) -> Result<Cow<'b, [u8]>, DecodeError> {
    let (found, body) = open(bytes, version)?;
    if found == version {
        return Ok(Cow::Borrowed(body));
    }
    let Some(missing) = found.checked_sub(1).and_then(|known| grew.get(usize::from(known)..)) else {
        return Err(DecodeError::Damaged(format!("it is of version {found}, which was never written")));
    };
    let mut whole = body.to_vec();
    whole.resize(body.len() + missing.iter().sum::<usize>(), 0);
    Ok(Cow::Owned(whole))
}

/// Reads a row of at most `version` whose later versions only added fields at its end: `grew` is the number of fields
/// that each version from the second on added. The default of such a field (`None`, 0, `false`, an empty list) is one
/// zero byte, so an older row is read as if it had them.
pub(crate) fn decode<T: DeserializeOwned>(
    version: u8,
    grew: &[usize],
    bytes: &[u8],
) -> Result<T, DecodeError> {
    decode_body(body_of(version, grew, bytes)?.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_with_any_byte_flipped_or_cut_is_an_error() {
        let whole = encode(1, &("acme/tickets".to_owned(), 7_u64, Some(-3_i64))).unwrap();
        assert!(decode::<(String, u64, Option<i64>)>(1, &[], &whole).is_ok());
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                assert!(
                    decode::<(String, u64, Option<i64>)>(1, &[], &flipped).is_err(),
                    "byte {at} bit {bit}"
                );
            }
            assert!(decode::<(String, u64, Option<i64>)>(1, &[], &whole[..at]).is_err(), "cut to {at}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(decode::<(String, u64, Option<i64>)>(1, &[], &longer).is_err());
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let bytes = encode(2, &1_u8).unwrap();
        assert_eq!(decode::<u8>(1, &[], &bytes), Err(DecodeError::Newer { found: 2, supported: 1 }));
    }

    #[test]
    fn a_row_that_grew_is_read_as_every_version_wrote_it() {
        type Newest = (u8, Option<i64>, u64, Vec<String>);
        let read = |bytes: &[u8]| decode::<Newest>(3, &[1, 2], bytes);
        assert_eq!(read(&encode(1, &7_u8).unwrap()), Ok((7, None, 0, Vec::new())));
        assert_eq!(read(&encode(2, &(7_u8, Some(-1_i64))).unwrap()), Ok((7, Some(-1), 0, Vec::new())));
        let newest: Newest = (7, Some(-1), 300, vec!["a".to_owned()]);
        assert_eq!(read(&encode(3, &newest).unwrap()), Ok(newest.clone()));
        assert_eq!(read(&encode(4, &newest).unwrap()), Err(DecodeError::Newer { found: 4, supported: 3 }));
        for version in [0, 1, 2] {
            assert!(
                read(&encode(version, &newest).unwrap()).is_err(),
                "a row of version 3 is none of {version}"
            );
        }
    }

    #[test]
    fn a_body_that_is_whole_but_of_another_shape_is_an_error() {
        let bytes = encode(1, &(1_u8, 2_u8)).unwrap();
        assert!(
            matches!(decode::<u8>(1, &[], &bytes), Err(DecodeError::Damaged(reason)) if reason.contains("follow"))
        );
        let bytes = encode(1, &1_u8).unwrap();
        assert!(decode::<String>(1, &[], &bytes).is_err());
    }

    #[test]
    fn the_checksum_is_the_common_one_and_a_row_may_claim_256_mib() {
        // The check value of CRC-32/ISO-HDLC: https://reveng.sourceforge.io/crc-catalogue/17plus.htm
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(ROW_BYTES_MAX, 268_435_456);
    }
}
