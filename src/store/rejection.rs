//! A record that is not announced because something is wrong with it, as a page brings it.

use serde_json::Value;

use crate::cut;
use crate::error::{Error, Result};
use crate::model::{FINDING_BYTES_MAX, ID_BYTES_MAX, REJECTED_JSON_BYTES_MAX};
use crate::record::{Finding, Findings, Record};

/// Bytes of what rejected records are counted by.
const KIND_BYTES_MAX: usize = 120;

/// One record that is rejected: by which id it is to be asked for again, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) id: String,
    /// What it is counted by with others: the rule and the place that the first error names, or the author's reason.
    pub(crate) kind: String,
    pub(crate) reason: String,
    /// Its JSON text, cut to [`REJECTED_JSON_BYTES_MAX`] bytes, and how many it has.
    pub(crate) json: Option<(String, u64)>,
}

impl Rejection {
    /// For the author's own reason.
    pub(crate) fn new(id: &str, reason: &str) -> Self {
        Self {
            id: id.to_owned(),
            kind: cut::to_bytes(reason, KIND_BYTES_MAX),
            reason: cut::to_bytes(reason, FINDING_BYTES_MAX),
            json: None,
        }
    }

    /// Of what a normaliser could not make a record of. Without an id where the source has none: then it cannot be stored.
    pub(crate) fn of_source(raw: &Value, findings: &Findings) -> Self {
        let id = findings.iter().find_map(|finding| finding.record.clone()).unwrap_or_default();
        Self { json: Some(kept(raw.to_string())), ..Self::new(&id, "").because(findings) }
    }

    /// Of a record that is not what the metadata declares. `None` if it has no id to ask for it by.
    pub(crate) fn of_record(record: &Record, findings: &[Finding]) -> Option<Self> {
        let rejection = Self::new(record.id()?, "").because(findings);
        Some(Self { json: Some(kept(record.to_line())), ..rejection })
    }

    /// Says why: the first error, and how many more there are.
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

    /// Checks that it can be asked for again.
    ///
    /// # Errors
    /// `Invalid` or `TooLarge`, naming it.
    pub(crate) fn checked(self, item_type: &str) -> Result<Self> {
        let what = || format!("the id of a rejected record of {item_type}");
        if self.id.is_empty() {
            let reason = format!(
                "it must not be empty, for the next run asks for the record by it; the record was rejected for: {}",
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

/// As much of a record's JSON text as is kept, and how long it is.
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
