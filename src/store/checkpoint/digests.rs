//! Many digests in a checkpoint.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::digest::Digest;

/// Digests of many ids. In JSON they are base64 of their bytes, 16 for each: written one by one they would take twice
/// the room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Digests(Vec<Digest>);

impl Digests {
    pub(crate) fn push(&mut self, digest: Digest) {
        self.0.push(digest);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Digest> {
        self.0.iter()
    }

    /// Keeps as many groups of `each` digests as fit into the `left` bytes of JSON, and subtracts them; returns how
    /// many groups it drops.
    pub(crate) fn fit(&mut self, left: &mut usize, each: usize) -> u64 {
        let room = left.saturating_sub(DIGESTS_BYTES) / (each * DIGEST_BYTES);
        let dropped = (self.0.len() / each).saturating_sub(room);
        self.0.truncate(room * each);
        if !self.0.is_empty() {
            *left -= DIGESTS_BYTES + self.0.len() * DIGEST_BYTES;
        }
        dropped as u64
    }
}

/// Bytes of JSON that a digest takes among others, and that they take together with their name.
const DIGEST_BYTES: usize = 22;
const DIGESTS_BYTES: usize = 600;

impl Serialize for Digests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(Digest::as_bytes).copied().collect();
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Digests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        let (digests, []) = bytes.as_chunks() else {
            return Err(D::Error::custom("digests of 16 bytes each are cut"));
        };
        Ok(Self(digests.iter().filter_map(|bytes: &[u8; 16]| Digest::from_bytes(bytes)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_digests_are_read_back_from_base64_and_cut_to_what_fits() {
        let mut digests = Digests::default();
        (0..100).for_each(|number| digests.push(Digest::of(&number.to_string())));
        let json = serde_json::to_string(&digests).unwrap();
        assert!(json.len() <= 100 * DIGEST_BYTES + DIGESTS_BYTES, "{}", json.len());
        assert_eq!(serde_json::from_str::<Digests>(&json).unwrap(), digests);
        for cut in ["\"AAAA\"", "\"?\"", "7"] {
            assert!(serde_json::from_str::<Digests>(cut).is_err(), "{cut}");
        }
        let (whole, mut left) = (digests.clone(), 10_000);
        assert_eq!((digests.fit(&mut left, 1), &digests, left), (0, &whole, 10_000 - 600 - 2_200));
        left = 600 + 22 * 7 + 21;
        assert_eq!((digests.fit(&mut left, 1), digests.len(), left), (93, 7, 21));
        assert_eq!((digests.fit(&mut left, 1), digests.is_empty(), left), (7, true, 21));
        let mut pairs = whole;
        left = 600 + 44 * 3 + 43;
        assert_eq!((pairs.fit(&mut left, 2), pairs.len(), left), (47, 6, 43));
    }
}
