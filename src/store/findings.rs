//! What checks found in the records of a run: how many findings of each kind, and the first of them as text.
//!
//! Each kind has a row: `unit, run, item type, severity, rule, place -> count, texts`. It is written in the
//! transaction that stages the page, so the findings of a page are counted exactly if the page is staged. If a page
//! is refused, or the process dies, they are counted when the page is fetched again and staged. A checkpoint restores
//! the counts of its position, with the first text of each kind. When the run is over, the sums go to the ledger and
//! the rows are removed.
//!
//! Everything is limited: kinds, texts of a kind, bytes of a text. Above the limit on kinds, findings are counted by
//! coarser kinds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cut;
use crate::error::Result;
use crate::model::{FINDING_BYTES_MAX, FINDING_KINDS_MAX, FINDINGS_KEPT};
use crate::record::{FindingCounts, Rule, Severity, Tally};

use super::codec::DecodeError;
use super::rows::{FINDINGS, FindingRow, Key, LEDGER, LedgerRow, name_of};
use super::run_handle::Run;
use super::tables::{Change, Rows};

/// Bytes of a place in a record, in a key.
const PATH_BYTES_MAX: usize = 120;
/// Bytes of text that a checkpoint keeps of all findings together.
const CHECKPOINT_TEXT_BYTES_MAX: usize = 12 * 1024;

/// What findings are counted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct FindingKind {
    /// Empty if the finding is counted by its rule alone.
    pub(crate) item_type: String,
    pub(crate) severity: String,
    pub(crate) rule: String,
    /// The place in the record, `[]` for each position in an array. Empty for the record as a whole, or if there are
    /// too many kinds already.
    pub(crate) path: String,
}

impl FindingKind {
    pub(crate) fn key(&self, run: &Key) -> Key {
        run.clone()
            .and_inner_name(&self.item_type)
            .and_inner_name(&self.severity)
            .and_inner_name(&self.rule)
            .and_name(&self.path)
    }

    /// The kind whose key ends with these bytes.
    pub(crate) fn of_key(tail: &[u8]) -> Result<Self, DecodeError> {
        let mut parts = name_of(tail)?.splitn(4, '\0').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(item_type), Some(severity), Some(rule), Some(path)) => {
                Ok(Self { item_type, severity, rule, path })
            }
            _ => Err(DecodeError::Damaged("its key has not the parts of a finding's".to_owned())),
        }
    }

    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error.to_string()
    }

    fn without_path(&self) -> Self {
        Self { path: String::new(), ..self.clone() }
    }

    fn without_item_type(&self) -> Self {
        Self { item_type: String::new(), ..self.without_path() }
    }
}

/// The findings of a kind, in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FindingPart {
    pub(crate) kind: FindingKind,
    count: u64,
    first: Option<String>,
}

impl FindingPart {
    /// The row that it restores.
    pub(crate) fn row(&self) -> FindingRow {
        FindingRow { count: self.count, kept: self.first.clone().into_iter().collect() }
    }
}

impl Run {
    /// Findings in the records of this run that are staged, also once the run is over.
    pub(crate) fn finding_counts(&self) -> Result<FindingCounts> {
        self.inner.tables.view(|rows| match rows.get(&LEDGER, &self.run_key())? {
            Some(LedgerRow { errors, warnings, .. }) => Ok(FindingCounts::new(errors, warnings)),
            None => sums(rows, &self.run_key()),
        })
    }
}

/// Counts the findings in a page that is being staged.
pub(super) fn add_findings(run: &Run, change: &Change<'_>, findings: &[(String, Tally)]) -> Result<()> {
    if findings.iter().all(|(_, tally)| tally.is_empty()) {
        return Ok(());
    }
    let key = run.run_key();
    let mut rows = all(change, &key)?;
    let mut touched = BTreeSet::new();
    for (item_type, tally) in findings {
        for (severity, rule, path, count, kept) in tally.kinds() {
            let kind = FindingKind {
                item_type: item_type.clone(),
                severity: severity.to_string(),
                rule: rule.to_string(),
                path: cut::to_bytes(path, PATH_BYTES_MAX),
            };
            let kind = counted_as(&rows, kind);
            let row = rows.entry(kind.clone()).or_default();
            row.count = row.count.saturating_add(count);
            for finding in kept {
                if row.kept.len() as u64 >= FINDINGS_KEPT {
                    break;
                }
                row.kept.push(cut::to_bytes(&finding.to_string(), FINDING_BYTES_MAX));
            }
            touched.insert(kind);
        }
    }
    for kind in touched {
        if let Some(row) = rows.get(&kind) {
            change.put(&FINDINGS, &kind.key(&key), row)?;
        }
    }
    Ok(())
}

/// The findings so far, for a checkpoint.
pub(super) fn findings_part(run: &Run, rows: &impl Rows) -> Result<Vec<FindingPart>> {
    let mut room = CHECKPOINT_TEXT_BYTES_MAX;
    let part = |(kind, row): (FindingKind, FindingRow)| {
        let first = row.kept.into_iter().next().filter(|text| text.len() <= room);
        room -= first.as_ref().map_or(0, String::len);
        FindingPart { kind, count: row.count, first }
    };
    Ok(all(rows, &run.run_key())?.into_iter().map(part).collect())
}

/// The findings of a run by severity.
pub(super) fn sums(rows: &impl Rows, run: &Key) -> Result<FindingCounts> {
    let mut counts = FindingCounts::default();
    for (kind, row) in all(rows, run)? {
        if kind.is_error() {
            counts.errors = counts.errors.saturating_add(row.count);
        } else {
            counts.warnings = counts.warnings.saturating_add(Rule::warnings(&kind.rule, row.count));
        }
    }
    Ok(counts)
}

fn all(rows: &impl Rows, run: &Key) -> Result<BTreeMap<FindingKind, FindingRow>> {
    rows.all(&FINDINGS, run)?
        .into_iter()
        .map(|(tail, row)| {
            let kind = FindingKind::of_key(&tail)
                .map_err(|error| rows.tables().damaged(FINDINGS.name, run, error.to_string()))?;
            Ok((kind, row))
        })
        .collect()
}

/// The kind that a finding is counted under: its own, unless there are too many.
fn counted_as(rows: &BTreeMap<FindingKind, FindingRow>, kind: FindingKind) -> FindingKind {
    let has_room = |kinds: usize, kind: &FindingKind| rows.len() < kinds || rows.contains_key(kind);
    if has_room(FINDING_KINDS_MAX, &kind) {
        return kind;
    }
    let wider = kind.without_path();
    if has_room(2 * FINDING_KINDS_MAX, &wider) { wider } else { kind.without_item_type() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(item_type: &str, path: &str) -> FindingKind {
        FindingKind {
            item_type: item_type.to_owned(),
            severity: "error".to_owned(),
            rule: "type".to_owned(),
            path: path.to_owned(),
        }
    }

    #[test]
    fn golden_bytes_of_a_key() {
        let key = kind("t", "data.a").key(&Key::unit(1).and_number(2));
        let expected = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02t\0error\0type\0data.a";
        assert_eq!(key.as_bytes(), expected);
        assert_eq!(FindingKind::of_key(&expected[16..]), Ok(kind("t", "data.a")));
        assert_eq!(FindingKind::of_key(b"\0error\0type\0"), Ok(kind("", "")));
        for broken in [&b"t\0error\0type"[..], b"", b"\xff\0\0\0"] {
            assert!(FindingKind::of_key(broken).is_err());
        }
    }

    #[test]
    fn too_many_kinds_are_told_apart_by_less_and_a_known_one_stays_itself() {
        let row = || FindingRow { count: 1, kept: Vec::new() };
        let mut rows: BTreeMap<_, _> =
            (0..FINDING_KINDS_MAX - 1).map(|at| (kind("t", &format!("data.{at}")), row())).collect();
        assert_eq!(counted_as(&rows, kind("t", "data.new")), kind("t", "data.new"));
        rows.insert(kind("t", "data.last"), row());
        assert_eq!(counted_as(&rows, kind("t", "data.last")), kind("t", "data.last"));
        assert_eq!(counted_as(&rows, kind("t", "data.new")), kind("t", ""));
        rows.extend((0..FINDING_KINDS_MAX).map(|at| (kind(&format!("type-{at}"), ""), row())));
        assert_eq!(counted_as(&rows, kind("type-3", "data.new")), kind("type-3", ""));
        assert_eq!(counted_as(&rows, kind("another", "data.new")), kind("", ""));
    }
}
