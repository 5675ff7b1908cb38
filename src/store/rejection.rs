//! A record that a page rejects: it is not announced because it is invalid.

use serde_json::Value;

use crate::cut;
use crate::error::{Error, Result};
use crate::model::{FINDING_BYTES_MAX, ID_BYTES_MAX, REJECTED_JSON_BYTES_MAX};
use crate::record::{Finding, Findings};

/// Bytes of a kind, by which rejected records are counted.
const KIND_BYTES_MAX: usize = 120;

/// A rejected record: the id with which to request it again, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) id: String,
    /// What it is counted by: the rule and the place of the first error, or the author's reason.
    pub(crate) kind: String,
    pub(crate) reason: String,
    /// Its JSON text, cut to [`REJECTED_JSON_BYTES_MAX`] bytes, and how many it has.
    pub(crate) json: Option<(String, u64)>,
}

impl Rejection {
    /// With a reason of the author's own.
    pub(crate) fn new(id: &str, reason: &str) -> Self {
        Self {
            id: id.to_owned(),
            kind: cut::to_bytes(reason, KIND_BYTES_MAX),
            reason: cut::to_bytes(reason, FINDING_BYTES_MAX),
            json: None,
        }
    }

    /// What a normaliser could not make a record of. If the source has no id, this has none, and it cannot be stored.
    pub(crate) fn of_source(raw: &Value, findings: &Findings) -> Self {
        let id = findings.iter().find_map(|finding| finding.record.clone()).unwrap_or_default();
        Self { json: Some(kept(raw.to_string())), ..Self::new(&id, "").because(findings) }
    }

    /// A record, by its id and line, that does not match the metadata.
    pub(crate) fn of_record(id: &str, line: &[u8], findings: &[Finding]) -> Self {
        let json = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        Self { json: Some(kept(json)), ..Self::new(id, "").because(findings) }
    }

    /// Sets the reason: the first error, and the number of further ones.
    fn because(self, findings: &[Finding]) -> Self {
        let mut errors = findings.iter().filter(|finding| finding.is_error());
        let Some(first) = errors.next() else { return self };
        let more = match errors.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let room = FINDING_BYTES_MAX.saturating_sub(more.len());
        let reason = format!("{}{more}", cut::to_bytes(&first.without_record(), room));
        Self { kind: cut::to_bytes(&first.kind_text(), KIND_BYTES_MAX), reason, ..self }
    }

    /// Checks that it can be requested again.
    ///
    /// # Errors
    /// `Invalid` or `TooLarge`, naming it.
    pub(crate) fn checked(self, item_type: &str) -> Result<Self> {
        let what = || format!("the id of a rejected record of {item_type}");
        if self.id.is_empty() {
            let reason = format!(
                "it must not be empty, because the next run requests the record by it; the record was rejected because: {}",
                self.reason
            );
            return Err(Error::Invalid { what: what(), reason });
        }
        if self.id.len() > ID_BYTES_MAX {
            let (found, limit) = (self.id.len() as u64, ID_BYTES_MAX as u64);
            return Err(Error::TooLarge { what: what(), found, limit, unit: "bytes" });
        }
        Ok(self)
    }
}

/// The part of a record's JSON text that is kept, and the length of the whole.
fn kept(json: String) -> (String, u64) {
    let bytes = json.len() as u64;
    (
        if json.len() > REJECTED_JSON_BYTES_MAX {
            cut::to_bytes(&json, REJECTED_JSON_BYTES_MAX)
        } else {
            json
        },
        bytes,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::store::page::Page;

    #[test]
    fn a_page_counts_what_it_rejects_and_rejects_in_the_group_that_is_meant() {
        let record = |id: &str| Record::new(id, &serde_json::json!({})).unwrap();
        let mut page = Page::<u8>::last();
        page.push("issues", record("I-1"));
        page.push("users", record("U-1"));
        page.push("users", record("U-2"));
        page.reject("comments", "C-1", "it has no text");
        page.reject_at(1, vec![(1, Rejection::new("U-2", "it has no name"))]);
        assert_eq!((page.items(), page.rejected()), (2, 2));
        let named: Vec<_> = page.rejected_by_type().into_iter().collect();
        assert_eq!(
            named,
            [("comments", ("C-1", "it has no text", 1)), ("users", ("U-2", "it has no name", 1))]
        );
    }

    #[test]
    fn what_was_changed_in_a_record_counts_only_while_the_page_has_it() {
        for (rejected, counted) in [(vec![], 3), (vec![1], 3), (vec![2], 2), (vec![0, 3], 3), (vec![2, 4], 0)]
        {
            let mut page = Page::<u8>::last();
            for (number, text) in ["a", "b", r"\ud83d", "c", r"\ud83d\ud83d"].into_iter().enumerate() {
                let record =
                    Record::from_raw(format!("I-{number}"), &format!(r#"{{"text":"{text}"}}"#)).unwrap();
                page.push("issues", record);
            }
            let expected = 5 - rejected.len();
            let at = rejected.iter().map(|place| (*place, Rejection::new(&format!("I-{place}"), "bad")));
            page.reject_at(0, at.collect());
            assert_eq!(page.items(), expected);
            let findings = page.into_parts().unwrap().findings;
            let kinds = findings.iter().flat_map(|(_, tally)| tally.kinds());
            assert_eq!(kinds.map(|(_, _, _, times, _)| times).sum::<u64>(), counted, "without {rejected:?}");
        }
    }

    #[test]
    fn of_a_rejected_record_the_text_is_kept_whole_up_to_a_limit_and_its_length_always() {
        let of = |bytes: usize| {
            let record =
                Record::new("I-1", &serde_json::json!({ "text": "\u{e9}".repeat(bytes / 2) })).unwrap();
            let line = record.to_line();
            let rejection = Rejection::of_record("I-1", format!("{line}\n").as_bytes(), &[]);
            (line, rejection.json.unwrap())
        };
        let (line, kept) = of(100);
        assert_eq!(kept, (line.clone(), line.len() as u64));
        let (line, (kept, bytes)) = of(REJECTED_JSON_BYTES_MAX);
        assert_eq!(bytes, line.len() as u64);
        let room = REJECTED_JSON_BYTES_MAX;
        assert!((room - 4..=room).contains(&kept.len()), "{} bytes are kept", kept.len());
        assert!(kept.starts_with(&line[..room - 8]));
    }
}
