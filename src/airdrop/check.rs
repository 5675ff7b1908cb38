//! Checks an extractor's records by its own metadata before they are sent.
//!
//! A page is checked between fetch and staging. Its findings go into the transaction that stages it. If the policy is
//! to refuse and there are errors, they go into the message of the ERROR, and nothing of the page is stored.
//!
//! The metadata is requested again in every invocation that fetches a page. It is the extractor's own and cheap, and
//! so no invocation has to move a document of unknown size from the metadata phase to another machine.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::model::FINDINGS_KEPT;
use crate::record::{ATTACHMENTS, Checker, Finding, Metadata, Rule, Severity, Tally};
use crate::store::{Lines, Page, Rejection};

use super::message::ERROR_MESSAGE_BYTES_MAX;

/// Bytes of an ERROR's message that are kept for the text around its findings.
const MESSAGE_ROOM_BYTES: usize = 200;

/// What [`serve`](super::serve()) does about records that do not match the extractor's metadata, and about
/// inconsistent metadata: the findings of [`Checker`] and [`Metadata::check`].
///
/// Findings in staged records are counted in the run's state, in the transaction that stages them, so that each page
/// counts once, whenever the process dies. The first [`FINDINGS_KEPT`](crate::limits::FINDINGS_KEPT) of each kind are
/// kept as text until the run is over. [`Outcome::findings`](super::Outcome::findings) has the sums, `highwater-dump`
/// shows all.
///
/// Records of the type `attachments` have a form that the platform sets: they are checked only if the metadata
/// declares them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckPolicy {
    /// Nothing is checked.
    #[default]
    Off,
    /// Findings are counted; every page is staged.
    Report,
    /// A page with an error is not staged: the answer is an ERROR that names record, field and rule. The cursor stays
    /// where it was, earlier pages are kept and announced, and the next event fetches the page again. Findings in a
    /// refused page are not counted in the run's state. Metadata with errors is not delivered.
    ///
    /// Warnings are only counted, and so is an id that occurs twice on a page: a source may repeat a record between
    /// reads.
    Refuse,
    /// A record with an error is left out of its page, and rejected as by [`Page::reject`]: counted, kept for
    /// inspection, and requested again by the next run, through [`Extractor::refetch`](super::Extractor::refetch).
    /// The rest of the page is staged. Findings in a rejected record are kept with it, and not counted as findings.
    ///
    /// A record without an id cannot be requested again, and an undeclared item type is not a fault of the record: a
    /// page with either is refused as by `Refuse`, and so is metadata with errors. Warnings, and an id that occurs
    /// twice on a page, are only counted.
    LeaveOut,
}

/// The checks of one invocation.
#[derive(Debug)]
pub(crate) struct Checks {
    policy: CheckPolicy,
    metadata: Metadata,
    /// The findings in the metadata.
    pub(crate) in_metadata: Tally,
    checkers: BTreeMap<String, Declared>,
}

/// How the metadata declares an item type.
#[derive(Debug)]
enum Declared {
    As(Checker),
    /// Not at all: the finding for each of its records.
    Missing(Vec<Finding>),
    /// It need not be declared.
    ByPlatform,
}

impl Checks {
    /// Checks by this metadata.
    ///
    /// # Errors
    /// What to answer, if the metadata is refused: nothing can be checked by metadata with errors.
    pub(crate) fn new(policy: CheckPolicy, item_type: &str, document: Value) -> Result<Self, String> {
        let metadata = Metadata::from_value(document);
        let mut in_metadata = Tally::keeping(FINDINGS_KEPT);
        for finding in metadata.check() {
            in_metadata.add(finding);
        }
        if policy.refuses()
            && let Some(errors) = errors([(item_type, &in_metadata)])
        {
            return Err(format!("the metadata is refused, because it has {errors}"));
        }
        Ok(Self { policy, metadata, in_metadata, checkers: BTreeMap::new() })
    }

    /// Checks a page; its findings are to be staged with it.
    ///
    /// # Errors
    /// What to answer, if the page is refused.
    pub(crate) fn page<C>(&mut self, stream: &str, page: &mut Page<C>) -> Result<(), String> {
        let mut found: Vec<(String, Tally)> = Vec::new();
        let mut rejected: Vec<(usize, Vec<(usize, Rejection)>)> = Vec::new();
        let leaves_out = self.policy == CheckPolicy::LeaveOut;
        for (group, (item_type, lines)) in page.records().enumerate() {
            let mut tally = Tally::keeping(FINDINGS_KEPT);
            let mut of_type = Vec::new();
            let declared = self.declared(item_type);
            let leaves_out = leaves_out && !matches!(declared, Declared::Missing(_));
            check(declared, lines, |place, id, line, mut findings| {
                if leaves_out
                    && findings.iter().any(is_refused)
                    && let Some(id) = id
                {
                    of_type.push((place, Rejection::of_record(id, line, &findings)));
                    return;
                }
                for finding in &mut findings {
                    // A record is identified by its id; its place is used only if it has none, because lines exist
                    // only in a file.
                    if finding.record.is_some() {
                        finding.line = None;
                    }
                }
                for finding in findings {
                    tally.add(finding);
                }
            });
            if !tally.is_empty() {
                found.push((item_type.to_owned(), tally));
            }
            if !of_type.is_empty() {
                rejected.push((group, of_type));
            }
        }
        if self.policy.refuses()
            && let Some(errors) = errors(found.iter().map(|(item_type, tally)| (item_type.as_str(), tally)))
        {
            return Err(format!(
                "a page of stream {stream} is refused, and nothing of it is stored, because its records do not match what the \
                 metadata declares: {errors}"
            ));
        }
        for (item_type, tally) in found {
            page.found(&item_type, tally);
        }
        for (group, rejected) in rejected {
            page.reject_at(group, rejected);
        }
        Ok(())
    }

    fn declared(&mut self, item_type: &str) -> &Declared {
        let metadata = &self.metadata;
        self.checkers.entry(item_type.to_owned()).or_insert_with(|| match Checker::new(metadata, item_type) {
            Ok(checker) => Declared::As(checker),
            Err(_) if item_type == ATTACHMENTS => Declared::ByPlatform,
            Err(findings) => Declared::Missing(findings.into_iter().collect()),
        })
    }
}

impl CheckPolicy {
    /// Whether a page is refused if errors stay in it.
    fn refuses(self) -> bool {
        matches!(self, CheckPolicy::Refuse | CheckPolicy::LeaveOut)
    }
}

/// Whether a record is refused for a finding. An id that occurs twice on a page is not a reason.
fn is_refused(finding: &Finding) -> bool {
    finding.is_error() && finding.rule != Rule::DuplicateId
}

/// Checks the records of one item type, each as its line; calls `found` with its place, id, line, and findings.
fn check(
    declared: &Declared,
    lines: &Lines,
    mut found: impl FnMut(usize, Option<&str>, &[u8], Vec<Finding>),
) {
    let each = lines.ids().zip(lines.each()).enumerate();
    match declared {
        Declared::ByPlatform => {}
        Declared::As(checker) => {
            let mut batch = checker.batch();
            for (place, (id, line)) in each {
                found(place, id, line, batch.check_line(line.trim_ascii_end()));
            }
        }
        Declared::Missing(findings) => {
            for (place, (id, line)) in each {
                let mut findings = findings.clone();
                for finding in &mut findings {
                    finding.record = id.map(str::to_owned);
                }
                found(place, id, line, findings);
            }
        }
    }
}

/// The errors that are the reason for a refusal: the first of each kind and how many there are, as far as a message
/// has room; `None` if there are none.
fn errors<'t>(found: impl IntoIterator<Item = (&'t str, &'t Tally)>) -> Option<String> {
    let mut count = 0;
    let mut untold = 0;
    let mut text = String::new();
    for (item_type, tally) in found {
        for (severity, rule, _, times, kept) in tally.kinds() {
            if severity != Severity::Error || rule == Rule::DuplicateId {
                continue;
            }
            count += times;
            let Some(first) = kept.first() else { continue };
            let times_shown = if times > 1 { format!(", {times} times") } else { String::new() };
            let line = format!("\n{item_type}: {first} (rule {rule}{times_shown})");
            // At least one always goes: without it nobody knows what to fix.
            if text.is_empty() || text.len() + line.len() + MESSAGE_ROOM_BYTES <= ERROR_MESSAGE_BYTES_MAX {
                text.push_str(&line);
            } else {
                untold += times;
            }
        }
    }
    if untold > 0 {
        // Writing to a string does not fail.
        let _ = write!(text, "\nand {untold} more of other kinds");
    }
    let errors = if count == 1 { "error" } else { "errors" };
    (count > 0).then(|| format!("{count} {errors}:{text}"))
}
