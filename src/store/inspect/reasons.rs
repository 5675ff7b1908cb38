//! Reasons, counted: how many attachments failed for each, how many records were rejected for each.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Reasons that are counted separately.
const SEPARATE_MAX: usize = 1_000;
/// What stands for all further reasons.
const OTHERS: &str = "other reasons";
/// Reasons in a sentence, and the characters of each.
const TOLD: usize = 3;
const TOLD_CHARS: usize = 80;

/// Counts by reason. If there are very many reasons, only the first ones are counted separately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reasons(BTreeMap<String, u64>);

impl Reasons {
    /// Counts one more.
    pub(in crate::store) fn add(&mut self, reason: String) {
        let is_separate = self.0.len() < SEPARATE_MAX || self.0.contains_key(&reason);
        *self.0.entry(if is_separate { reason } else { OTHERS.to_owned() }).or_default() += 1;
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// The reasons and their counts, the most frequent first: at most `most`, and then all others as one.
    pub fn most_frequent(&self, most: usize) -> Vec<(String, u64)> {
        let mut reasons: Vec<_> = self.0.iter().map(|(reason, count)| (reason.clone(), *count)).collect();
        reasons.sort_by(|(one, ones), (other, others)| {
            (one == OTHERS, Reverse(ones), one).cmp(&(other == OTHERS, Reverse(others), other))
        });
        let rest: u64 = reasons.iter().skip(most).map(|(_, count)| count).sum();
        reasons.truncate(most);
        if rest > 0 {
            reasons.push((OTHERS.to_owned(), rest));
        }
        reasons
    }

    /// The most frequent reasons, in words: `7: gone, 2: denied, 1: other reasons`.
    pub(super) fn in_words(&self) -> String {
        let told = self.most_frequent(TOLD).into_iter();
        let told =
            told.map(|(reason, count)| format!("{count}: {}", crate::cut::to_chars(&reason, TOLD_CHARS)));
        told.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_reasons_come_first_and_all_are_counted() {
        let mut reasons = Reasons::default();
        for (reason, times) in [("gone", 2), ("denied", 5), ("busy", 2), ("odd", 1)] {
            (0..times).for_each(|_| reasons.add(reason.to_owned()));
        }
        assert_eq!(reasons.in_words(), "5: denied, 2: busy, 2: gone, 1: other reasons");
        // More different reasons than are counted separately.
        (0..SEPARATE_MAX as u64 * 2).for_each(|n| reasons.add(format!("reason {n}")));
        let told = reasons.most_frequent(usize::MAX);
        assert_eq!(told.len(), SEPARATE_MAX + 1);
        assert_eq!(told.iter().map(|(_, count)| count).sum::<u64>(), 10 + 2_000);
        assert_eq!(reasons.total(), 10 + 2_000);
        assert_eq!(told.last(), Some(&(OTHERS.to_owned(), 2_000 - (1_000 - 4))));
        assert_eq!(reasons.most_frequent(2)[..2], [("denied".to_owned(), 5), ("busy".to_owned(), 2)]);
    }
}
