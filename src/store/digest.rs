//! How an id is known: by its text, or, if there was no room for that, by the first 128 bits of its SHA-256.
//!
//! A checkpoint names the events of a run and the runs of a unit by this [`Digest`]. Nobody can make two ids that
//! share these bits, so they count as the id itself. In JSON it is written as 32 hexadecimal digits: a number of 128
//! bits would not survive a program that reads numbers as doubles. In a row it is 16 bytes.
//!
//! Rows are kept under a number of 64 bits ([`number_of_id`]), which two ids can share. So every lookup by id
//! compares the [`KnownId`] in the row.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The first 128 bits of the SHA-256 of an id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest([u8; 16]);

impl Digest {
    /// The same for the same text, on every machine and in every version.
    pub(crate) fn of(text: &str) -> Self {
        Self::of_bytes(text.as_bytes())
    }

    /// The same for the same bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self::first_of(Sha256::new().chain_update(bytes))
    }

    /// The same as of the two texts in one.
    #[cfg(feature = "inspect")]
    pub(crate) fn of_both(first: &str, second: &str) -> Self {
        Self::first_of(Sha256::new().chain_update(first).chain_update(second))
    }

    fn first_of(hash: Sha256) -> Self {
        let mut first = [0; 16];
        first.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Self(first)
    }

    /// Its bytes, in a key.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The digest with these bytes; `None` if there are not 16.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The number under which a row is kept if only this is known of its id. If that number is taken, a later one is.
    pub(crate) fn number(&self) -> u64 {
        let mut first = [0; 8];
        first.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        u64::from_be_bytes(first)
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
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

/// XXH3 of 64 bits: the same for the same name, on every machine and in every version.
pub(crate) fn name_hash(name: &str) -> u64 {
    twox_hash::XxHash3_64::oneshot(name.as_bytes())
}

/// What is known of an id.
///
/// A row of format 1 holds an `Option<String>` in its place. The first two variants are encoded as that is, so such a
/// row can be read as it is. Their order never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KnownId {
    /// XXH3 of 64 bits, which is the number that the row is kept under: an earlier version's checkpoint held only
    /// that.
    Number,
    Whole(String),
    Digest(Digest),
    /// XXH3 of 64 bits, in a row that is not kept under it.
    Short(u64),
}

impl KnownId {
    /// Whether the row under `number` is that of an id.
    pub(crate) fn is(&self, id: &str, number: u64) -> bool {
        match self {
            KnownId::Number => number == name_hash(id),
            KnownId::Whole(other) => other == id,
            KnownId::Digest(digest) => *digest == Digest::of(id),
            KnownId::Short(hash) => *hash == name_hash(id),
        }
    }

    /// The same, for a row that is not kept under `number`.
    pub(crate) fn without_number(self, number: u64) -> Self {
        match self {
            KnownId::Number => KnownId::Short(number),
            known => known,
        }
    }

    /// What is known of the id once it was named; `None` if the whole id was known already.
    pub(crate) fn named(&self, id: &str) -> Option<Self> {
        self.whole().is_none().then(|| KnownId::Whole(id.to_owned()))
    }

    /// For people: its text, or what is known instead.
    #[cfg(feature = "inspect")]
    pub(crate) fn shown(&self, number: u64) -> String {
        match self {
            KnownId::Number => format!("hash {number:016x}"),
            KnownId::Whole(id) => id.clone(),
            KnownId::Digest(digest) => format!("digest {digest}"),
            KnownId::Short(hash) => format!("hash {hash:016x}"),
        }
    }

    /// Its text, if it is known.
    pub(crate) fn whole(&self) -> Option<&str> {
        match self {
            KnownId::Whole(id) => Some(id),
            _ => None,
        }
    }
}

/// The number under which the row of an id is kept, and whether the row exists. `is_at` returns whether the row
/// under a number is that of the id, and `None` if there is no row.
///
/// A row that was made for an id is kept under the id's [`name_hash`], one that was made for its digest under
/// [`Digest::number`]. If another id's row is there, it is kept under the next free number. It stays there when the
/// whole id becomes known. A new row belongs under the first of the two.
pub(crate) fn number_of_id<E>(
    id: &str,
    mut is_at: impl FnMut(u64) -> Result<Option<bool>, E>,
) -> Result<(u64, bool), E> {
    let mut from = |mut number: u64| loop {
        match is_at(number)? {
            Some(false) => number = number.wrapping_add(1),
            found => return Ok((number, found.is_some())),
        }
    };
    let first = from(name_hash(id))?;
    if first.1 {
        return Ok(first);
    }
    let second = from(Digest::of(id).number())?;
    Ok(if second.1 { second } else { first })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn a_digest_is_the_first_half_of_the_sha_256_of_the_text() {
        // FIPS 180-4, the example of a message of one block:
        // https://csrc.nist.gov/projects/cryptographic-standards-and-guidelines/example-values
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

    #[test]
    fn an_id_that_is_known_whole_is_told_and_not_named_again() {
        let whole = KnownId::Whole("run".to_owned());
        assert_eq!((whole.whole(), whole.named("run")), (Some("run"), None));
        for known in [KnownId::Number, KnownId::Digest(Digest::of("run")), KnownId::Short(name_hash("run"))] {
            assert_eq!((known.whole(), known.named("run")), (None, Some(whole.clone())), "{known:?}");
        }
    }

    /// The place of an id among some rows.
    fn look(rows: &BTreeMap<u64, KnownId>, id: &str) -> (u64, bool) {
        let at = |number| Ok::<_, Infallible>(rows.get(&number).map(|known| known.is(id, number)));
        let Ok(found) = number_of_id(id, at);
        found
    }

    #[test]
    fn an_id_is_found_by_whatever_is_known_of_it_and_never_taken_for_another_with_its_hash() {
        let (one, other) = ("cgacponhdmlhpbcg", "ihganlcdfnnmgpck");
        let hash = name_hash(one);
        let digest = Digest::of(one);
        for (number, known) in
            [(hash, KnownId::Whole(one.to_owned())), (digest.number(), KnownId::Digest(digest))]
        {
            let mut rows = BTreeMap::from([(number, known)]);
            assert_eq!(look(&rows, one), (number, true));
            let (free, found) = look(&rows, other);
            assert!(!found && !rows.contains_key(&free));
            rows.insert(free, KnownId::Whole(other.to_owned()));
            assert_eq!((look(&rows, one), look(&rows, other)), ((number, true), (free, true)));
        }
        // Only the hash is known: it may be either.
        let rows = BTreeMap::from([(hash, KnownId::Number)]);
        assert_eq!((look(&rows, one), look(&rows, other)), ((hash, true), (hash, true)));
        assert!(KnownId::Number.without_number(hash).is(one, 1) && !KnownId::Short(hash).is("a", hash));
        // Another id's row is in its place.
        let rows = BTreeMap::from([
            (hash, KnownId::Whole("a".to_owned())),
            (digest.number(), KnownId::Whole("b".to_owned())),
            (digest.number().wrapping_add(1), KnownId::Digest(digest)),
        ]);
        assert_eq!(look(&rows, one), (digest.number().wrapping_add(1), true));
        assert_eq!(look(&rows, other), (hash.wrapping_add(1), false));
    }
}
