//! What stands for an id where there is no room for it: the first 128 bits of its SHA-256.
//!
//! A checkpoint names the events of a run, the runs of a unit and artifacts by it. Nobody can make two ids that share
//! these bits, so they count as the id itself. Written as 32 hexadecimal digits: a number of 128 bits does not survive a
//! program that reads numbers as doubles.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The first 128 bits of the SHA-256 of an id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest([u8; 16]);

impl Digest {
    /// The same for the same text, on every machine and in every version.
    #[allow(dead_code, reason = "the next form of a checkpoint names ids by it")]
    pub(crate) fn of(text: &str) -> Self {
        let whole = Sha256::digest(text.as_bytes());
        let mut first = [0; 16];
        first.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        Self(first)
    }

    #[allow(dead_code, reason = "rows that a checkpoint brings back are keyed by it")]
    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digest = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(number) if is_digest => Ok(Self(number.to_be_bytes())),
            _ => Err("a digest is 32 hexadecimal digits"),
        }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_first_half_of_the_sha_256_of_the_text() {
        // FIPS 180-4, the example of a message of one block: https://csrc.nist.gov/projects/cryptographic-standards-and-guidelines/example-values
        assert_eq!(Digest::of("abc").to_string(), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(Digest::of("").to_string(), "e3b0c44298fc1c149afbf4c8996fb924");
    }

    #[test]
    fn a_digest_is_read_back_and_nothing_else_is_one() {
        let digest = Digest::of("run");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(serde_json::from_value::<Digest>(serde_json::json!(digest)).unwrap(), digest);
        for text in ["", "ba7816bf", "+a7816bf8f01cfea414140de5dae2223", "ba7816bf8f01cfea414140de5dae22233"]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_that_a_64_bit_hash_takes_for_one_are_two() {
        // Two names whose XXH3 of 64 bits is the same.
        let (one, other) = ("cgacponhdmlhpbcg", "ihganlcdfnnmgpck");
        assert_eq!(
            twox_hash::XxHash3_64::oneshot(one.as_bytes()),
            twox_hash::XxHash3_64::oneshot(other.as_bytes())
        );
        assert_ne!(Digest::of(one), Digest::of(other));
    }
}
