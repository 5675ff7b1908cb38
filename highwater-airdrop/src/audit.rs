//! Checks the result of a run from the platform's side: whether every record that was uploaded is announced, and what
//! looks wrong.
//!
//! It reads the files of the directory: `calls.jsonl`, `invocations.jsonl`, `messages.jsonl`, `confirmed.txt` and the
//! artifacts. It cannot see what the connector never uploaded, such as a page that was not fetched. A comparison with
//! a clean sync can.
//!
//! Uploads are identified by their bytes. An upload that was refused, was never confirmed, or is named by no message
//! is *made good* if the same bytes, or all the records in it, are in an artifact that a message names. A call that
//! failed for a temporary reason (5xx, 408, 425, 429 with `Retry-After`, no answer) is made good if the same call
//! succeeds later in the run. For a call that was refused for good and has no bytes to compare, it is unknown whether
//! it was.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, BufRead as _};
use std::path::Path;

use highwater::ArtifactId;
use highwater::limits::MESSAGE_BYTES_MAX;
use highwater::record::{Checker, Finding, Metadata, Rule, Severity, Tally, reader};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use twox_hash::XxHash3_64;

use crate::call::{Call, CallRecord};
use crate::error::{Error, Result};
use crate::local::{Local, SyncReport, WORKER_STATE_BYTES_MAX};
use crate::message_check::UPLOADED;
use crate::sync::{Invocation, Totals, invocations};

/// Examples of a finding.
const EXAMPLES_MAX: usize = 5;
/// The rule for failed attachments.
const GIVEN_UP: &str = "attachment-given-up";
/// Failed attachments that an audit lists.
const FAILED_LISTED_MAX: usize = 1_000;
/// Failed attachments that an audit prints.
const FAILED_PRINTED_MAX: usize = 20;
/// From this percentage on, a size is near its limit.
const NEAR_PERCENT: u64 = 80;
/// The item type of the metadata.
pub(crate) const METADATA: &str = "external_domain_metadata";
/// The item type of what can be synced.
pub(crate) const UNITS: &str = "external_sync_units";
/// The item type that names attachments.
const ATTACHMENTS: &str = "attachments";

/// The verdict on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is missing, and nothing looks wrong.
    Clean,
    /// Something looks wrong.
    Suspicious,
    /// The sync did not end with DONE: what is not announced yet may still follow.
    Unfinished,
    /// Something that was uploaded is not announced.
    Lost,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Clean => "clean",
            Verdict::Suspicious => "suspicious",
            Verdict::Unfinished => "unfinished",
            Verdict::Lost => "lost",
        })
    }
}

/// Something that the audit found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AuditFinding {
    /// The verdict that it leads to; `clean` for a note.
    pub verdict: Verdict,
    /// The rule's name: a few words with hyphens, always the same.
    pub rule: String,
    /// The count of what the text describes.
    pub count: u64,
    /// What was found.
    pub text: String,
    /// Some ids or reasons, as examples.
    pub examples: Vec<String>,
}

/// Time and bytes of one invocation.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct InvocationFigures {
    /// Its number in the run.
    pub number: u64,
    /// The event.
    pub event_type: String,
    /// The message.
    pub answer: Option<String>,
    /// The number of calls.
    pub calls: u64,
    /// Bytes that were uploaded and kept.
    pub uploaded_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// An attachment that no upload was linked to when the attachments phase was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FailedAttachment {
    /// Its id in the source.
    pub id: String,
    /// The record that it belongs to.
    pub parent_id: String,
    /// The name of the file.
    pub file_name: String,
}

/// Findings of one kind in the metadata, or in the announced records of an item type.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RecordFindings {
    /// The item type; `external_domain_metadata` for the metadata.
    pub item_type: String,
    /// How serious they are.
    pub severity: Severity,
    /// The rule that was broken.
    pub rule: Rule,
    /// The place in the record, `[]` for each position in an array; empty for the record as a whole.
    pub path: String,
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub first: String,
}

/// The result of an audit.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Audit {
    /// The run.
    pub run: String,
    /// The worst of the findings; not better than unfinished if the sync did not end with DONE.
    pub verdict: Verdict,
    /// What was found, the worst first.
    pub findings: Vec<AuditFinding>,
    /// What was seen and is no finding: it does not change the verdict.
    pub notes: Vec<AuditFinding>,
    /// Records that are announced, by item type; each id once.
    pub records: Totals,
    /// Attachments that were named, and those that are linked to an upload.
    pub attachments: (u64, u64),
    /// The attachments that failed, in the order in which they were named: the first 1,000. Empty until the attachments
    /// phase is done.
    pub failed_attachments: Vec<FailedAttachment>,
    /// What checks find in the metadata and the announced records, by kind: errors first. Warnings do not change the
    /// verdict.
    pub record_findings: Vec<RecordFindings>,
    /// Bytes of the largest message and of the largest worker state.
    pub largest_bytes: (u64, u64),
    /// Calls that failed.
    pub calls_failed: u64,
    /// Time and bytes by invocation.
    pub invocations: Vec<InvocationFigures>,
}

/// Every line of a file, each a JSON value of this kind. The last line may be torn; a missing file has no lines.
pub(crate) fn lines_of<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    let lines = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
    lines
        .enumerate()
        .map(|(at, line)| {
            serde_json::from_slice(line).map_err(|error| Error::NotALocal {
                path: path.to_path_buf(),
                reason: format!("line {}: {error}", at + 1),
            })
        })
        .collect()
}

/// The calls of a run, in the order of their answers.
///
/// # Errors
/// `Io` if the disk fails; `NotALocal` if a line is invalid.
pub fn calls(dir: &Path, run: &str) -> Result<Vec<CallRecord>> {
    let mut calls: Vec<CallRecord> = lines_of(&dir.join("calls.jsonl"))?;
    calls.retain(|call| call.run.as_deref() == Some(run));
    Ok(calls)
}

/// An artifact that messages name.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Named {
    /// Its id.
    pub id: String,
    /// Its item type.
    pub item_type: String,
    /// Its records, as the message says.
    pub item_count: u64,
    /// How often messages name it.
    pub times: u64,
}

/// The artifacts that the messages of a run name, in order, without repetition.
///
/// # Errors
/// `Io` and `NotALocal` as [`Local::messages`].
pub fn named(local: &Local, invocations: &[Invocation]) -> Result<Vec<Named>> {
    let requests: HashSet<&str> =
        invocations.iter().map(|invocation| invocation.request_id.as_str()).collect();
    let mut all: Vec<Named> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for message in local.messages()? {
        let message = message?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let request = text(message.pointer("/event_context/request_id"));
        if !requests.contains(request.as_str()) {
            continue;
        }
        let artifacts = message.pointer("/event_data/artifacts").and_then(Value::as_array);
        for artifact in artifacts.into_iter().flatten() {
            let id = text(artifact.get("id"));
            if let Some(named) = places.get(&id).and_then(|at| all.get_mut(*at)) {
                named.times += 1;
                continue;
            }
            places.insert(id.clone(), all.len());
            let item_count = artifact.get("item_count").and_then(Value::as_u64).unwrap_or(0);
            all.push(Named { id, item_type: text(artifact.get("item_type")), item_count, times: 1 });
        }
    }
    Ok(all)
}

/// Calls `each` with every line of an artifact. It stops with an error if the artifact is not gzipped text.
///
/// # Errors
/// A description of what is wrong with the artifact.
pub fn each_line(local: &Local, id: &str, mut each: impl FnMut(&[u8])) -> Result<(), String> {
    let id = ArtifactId::new(id).map_err(|error| error.to_string())?;
    let path = local.artifact_path(&id).map_err(|error| error.to_string())?;
    let file = File::open(&path).map_err(|error| error.to_string())?;
    let mut lines = reader(file).map_err(|error| error.to_string())?;
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => each(line.strip_suffix(b"\n").unwrap_or(&line)),
            Err(error) => return Err(format!("it is not gzipped text: {error}")),
        }
    }
}

/// The id of a record, read from its line: its `id`; for an uploaded attachment its external id.
pub fn record_id(line: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Outline {
        id: Value,
    }
    match serde_json::from_slice::<Outline>(line).ok()?.id {
        Value::String(id) => Some(id),
        Value::Number(id) => Some(id.to_string()),
        Value::Object(id) => id.get("external")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// Audits a run. `done`: whether its sync ended with DONE.
///
/// # Errors
/// `Io` if the disk fails; `NotALocal` if the files of the directory are inconsistent.
pub fn audit(local: &Local, report: &SyncReport, done: bool) -> Result<Audit> {
    let run = report.run.to_string();
    let calls = calls(local.dir(), &run)?;
    let invocations = invocations(local.dir(), &run)?;
    let named = named(local, &invocations)?;
    let confirmed: HashSet<String> = local.confirmed()?.into_iter().map(|id| id.to_string()).collect();
    let mut look =
        Look { local, done, calls: &calls, findings: Vec::new(), failed: Vec::new(), records: Vec::new() };
    let delivered = look.delivered(&named, &confirmed);
    look.uploads(&delivered, &confirmed);
    look.failed_calls();
    look.attachments(&named, &delivered, report);
    look.metadata(&named, &delivered);
    look.lints();
    let largest_bytes = look.sizes();
    let figures = look.invocations(&invocations);
    let (mut findings, notes): (Vec<_>, Vec<_>) =
        look.findings.into_iter().partition(|finding| finding.verdict > Verdict::Clean);
    findings.sort_by(|a, b| b.verdict.cmp(&a.verdict).then_with(|| a.rule.cmp(&b.rule)));
    let at_best = if done { Verdict::Clean } else { Verdict::Unfinished };
    Ok(Audit {
        run,
        verdict: findings.iter().map(|finding| finding.verdict).fold(at_best, Verdict::max),
        findings,
        notes,
        records: delivered.ids.iter().map(|(item_type, ids)| (item_type.clone(), ids.len() as u64)).collect(),
        attachments: (
            delivered.ids.get(ATTACHMENTS).map_or(0, BTreeSet::len) as u64,
            delivered.ids.get(UPLOADED).map_or(0, BTreeSet::len) as u64,
        ),
        failed_attachments: look.failed,
        record_findings: look.records,
        largest_bytes,
        calls_failed: calls.iter().filter(|call| is_failure(call)).count() as u64,
        invocations: figures,
    })
}

/// Whether the connector got an error for a call, or no answer.
fn is_failure(call: &CallRecord) -> bool {
    // 404 is a valid answer if there is no state yet.
    let is_no_state = call.call == Call::StateGet && call.status == Some(404);
    !call.succeeded() && !is_no_state
}

/// What messages announce.
#[derive(Debug, Default)]
struct Delivered {
    /// Ids of records by item type.
    ids: BTreeMap<String, BTreeSet<String>>,
    /// Artifacts that a message names, or a line about attachments.
    artifacts: HashSet<String>,
}

/// A record: its item type and id.
type Key = (String, String);

/// What is compared of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Compared {
    /// The hash of its value as JSON: the order of keys does not matter.
    content: u64,
    /// The hash of the time of its `modified_date`.
    date: Option<u64>,
}

impl Compared {
    fn of(line: &[u8]) -> Self {
        // Such as a number that is too large: it has an id, and no value.
        let Ok(mut value) = serde_json::from_slice::<Value>(line) else {
            return Self { content: XxHash3_64::oneshot(line), date: None };
        };
        value.sort_all_objects();
        let date = value.get("modified_date").and_then(Value::as_str).map(|date| {
            let time = chrono::DateTime::parse_from_rfc3339(date);
            let text = time.map_or_else(|_| date.to_owned(), |time| time.to_utc().to_rfc3339());
            XxHash3_64::oneshot(text.as_bytes())
        });
        Self { content: XxHash3_64::oneshot(value.to_string().as_bytes()), date }
    }
}

/// Records of a run that came more than once.
#[derive(Debug, Default)]
struct Again {
    /// The last line of each record, by item type and the hash of its id.
    last: HashMap<String, HashMap<u64, Compared>>,
    /// Those that came with another content, and how often.
    changed: BTreeMap<Key, u64>,
    /// Those that came with another content and the same `modified_date`, and how often.
    same_date: BTreeMap<Key, u64>,
    /// Those that came with the content that they had, and how often.
    same: BTreeMap<Key, u64>,
    /// The parents of the attachments that came more than once, by the ids of both.
    parents: BTreeMap<String, String>,
}

impl Again {
    fn see(&mut self, item_type: &str, record: String, line: &[u8], is_new: bool) {
        let compared = Compared::of(line);
        let of_type = self.last.entry(item_type.to_owned()).or_default();
        let before = of_type.insert(XxHash3_64::oneshot(record.as_bytes()), compared);
        if is_new {
            return;
        }
        let which = match before {
            // Each upload has an id of its own, so the lines of an attachment that was uploaded again differ.
            _ if item_type == UPLOADED => &mut self.same,
            Some(before) if before.content == compared.content => &mut self.same,
            Some(Compared { date: Some(date), .. }) if compared.date == Some(date) => &mut self.same_date,
            _ => &mut self.changed,
        };
        if item_type == ATTACHMENTS
            && let Ok(line) = serde_json::from_slice(line)
            && let Some(parent) = parent_id(&line)
        {
            self.parents.insert(record.clone(), parent.to_owned());
        }
        *which.entry((item_type.to_owned(), record)).or_default() += 1;
    }
}

/// The id of the record that a line about an attachment says it belongs to.
fn parent_id(line: &Value) -> Option<&str> {
    let parent = line.get("parent_id")?;
    parent.as_str().or_else(|| parent.get("external")?.as_str())
}

/// The record of the connector that has an id; `None` unless it is the only one.
fn only_record(id: &str, ids: &BTreeMap<String, BTreeSet<String>>) -> Option<Key> {
    let own = [METADATA, UNITS, ATTACHMENTS, UPLOADED];
    let mut types =
        ids.iter().filter(|(item_type, ids)| !own.contains(&item_type.as_str()) && ids.contains(id));
    let (item_type, _) = types.next()?;
    types.next().is_none().then(|| (item_type.clone(), id.to_owned()))
}

/// What earlier runs announced of attachments.
#[derive(Debug, Default)]
struct Before {
    /// The lines that describe them.
    lines: HashSet<Vec<u8>>,
    /// The ids of those that are linked to an upload.
    linked: HashSet<String>,
}

/// An audit while it is made.
struct Look<'a> {
    local: &'a Local,
    done: bool,
    calls: &'a [CallRecord],
    findings: Vec<AuditFinding>,
    failed: Vec<FailedAttachment>,
    records: Vec<RecordFindings>,
}

impl Look<'_> {
    fn find(&mut self, verdict: Verdict, rule: &str, count: u64, text: String, examples: Vec<String>) {
        if count > 0 {
            self.findings.push(AuditFinding { verdict, rule: rule.to_owned(), count, text, examples });
        }
    }

    /// A missing record is lost if the run is done; before that it may still be announced.
    fn missing(&self) -> Verdict {
        if self.done { Verdict::Lost } else { Verdict::Suspicious }
    }

    /// Reads the artifacts that messages name.
    fn delivered(&mut self, named: &[Named], confirmed: &HashSet<String>) -> Delivered {
        let mut delivered = Delivered::default();
        let mut again_lines = Again::default();
        let (mut absent, mut unconfirmed, mut again) =
            (Examples::default(), Examples::default(), Examples::default());
        let (mut unreadable, mut miscounted) = (Examples::default(), Examples::default());
        for Named { id, item_type, item_count, times } in named {
            delivered.artifacts.insert(id.clone());
            if *times > 1 {
                again.add(
                    (*item_count).max(1).saturating_mul(times - 1),
                    format!("{id} of {item_count} {item_type}, {times} times"),
                );
            }
            let is_there = ArtifactId::new(id).is_ok_and(|id| self.local.artifact_path(&id).is_ok());
            if !is_there {
                // It may contain records, whatever the message says.
                absent.add((*item_count).max(1), format!("{id} of {item_count} {item_type}"));
                continue;
            }
            let ids = delivered.ids.entry(item_type.clone()).or_default();
            let (mut lines, mut linked) = (0_u64, Vec::new());
            let read = each_line(self.local, id, |line| {
                lines += 1;
                if item_type == UPLOADED
                    && let Ok(line) = serde_json::from_slice::<Value>(line)
                    && let Some(upload) = line.pointer("/id/devrev").and_then(Value::as_str)
                {
                    linked.push(upload.to_owned());
                }
                // Metadata has no id.
                if item_type != METADATA
                    && let Some(record) = record_id(line)
                {
                    let is_new = ids.insert(record.clone());
                    again_lines.see(item_type, record, line, is_new);
                }
            });
            delivered.artifacts.extend(linked);
            if item_type != UNITS && !confirmed.contains(id) {
                let records = lines.max(*item_count).max(1);
                unconfirmed.add(records, format!("{id} of {records} {item_type}"));
            }
            if let Err(reason) = read {
                unreadable.add(1, format!("{id}: {reason}"));
            } else if lines != *item_count {
                miscounted
                    .add(1, format!("{id} of {item_type} has {lines} lines, its item_count is {item_count}"));
            }
        }
        let lost = Verdict::Lost;
        self.take(lost, "named-not-uploaded", &absent, |n| {
            format!("{n} records are in artifacts that a message names and that were never uploaded")
        });
        self.take(lost, "named-not-confirmed", &unconfirmed, |n| {
            format!("{n} records are in artifacts that a message names and that were never confirmed")
        });
        let suspicious = Verdict::Suspicious;
        self.take(suspicious, "artifact-twice", &again, |n| {
            format!("{n} records are announced once more, in an artifact that is named more than once")
        });
        self.records_again(again_lines, &delivered.ids);
        self.take(lost, "artifact-unreadable", &unreadable, |n| {
            format!("{n} announced artifacts cannot be read")
        });
        self.take(suspicious, "item-count", &miscounted, |n| {
            format!("{n} artifacts have a number of lines that differs from their item_count")
        });
        delivered
    }

    /// Finds records that came more than once. It is no fault that a record changed while its source was listed, nor
    /// that what it has came again with it: an attachment as often as its record changed, and an upload as often as its
    /// attachment did.
    fn records_again(&mut self, again: Again, ids: &BTreeMap<String, BTreeSet<String>>) {
        let Again { changed, same_date, mut same, parents, .. } = again;
        // How often each may come again.
        let may = |(item_type, record): &Key| match item_type.as_str() {
            ATTACHMENTS => changed.get(&only_record(parents.get(record)?, ids)?),
            UPLOADED => changed.get(&(ATTACHMENTS.to_owned(), record.clone())),
            _ => None,
        };
        let mut along = Examples::default();
        for (key, times) in &mut same {
            let Some(most) = may(key) else { continue };
            let forgiven = *most.min(times);
            *times -= forgiven;
            along.add(forgiven, format!("{} {}", key.0, key.1));
        }
        same.retain(|_, times| *times > 0);
        let (mut twice, mut linked_twice) = (Examples::default(), Examples::default());
        for ((item_type, record), times) in same {
            let found = if item_type == UPLOADED { &mut linked_twice } else { &mut twice };
            found.add(times, format!("{item_type} {record}"));
        }
        let (mut anew, mut undated) = (Examples::default(), Examples::default());
        for (found, records) in [(&mut anew, &changed), (&mut undated, &same_date)] {
            for (item_type, record) in records.keys() {
                found.add(1, format!("{item_type} {record}"));
            }
        }
        self.take(Verdict::Suspicious, "record-twice", &twice, |n| {
            format!(
                "{n} times a record came again with the same content: the source's listing repeats itself, its pages \
                 overlap, or two listings have the record. Look at the cursor, and announce a record once"
            )
        });
        self.take(Verdict::Suspicious, "attachment-twice", &linked_twice, |n| {
            format!("{n} times an attachment was uploaded and linked again")
        });
        self.take(Verdict::Suspicious, "record-same-date", &undated, |n| {
            format!(
                "{n} records came again with another content, and their modified_date did not change: either it is \
                 not the time of the change, or the same record is not read alike each time"
            )
        });
        self.take(Verdict::Clean, "record-changed", &anew, |n| {
            format!(
                "{n} records came again with another content, as they changed while their source was listed: the \
                 platform takes the later line"
            )
        });
        self.take(Verdict::Clean, "attachment-along", &along, |n| {
            format!("{n} times an attachment came again, with a change of what it belongs to")
        });
    }

    fn take(&mut self, verdict: Verdict, rule: &str, found: &Examples, text: impl FnOnce(u64) -> String) {
        self.find(verdict, rule, found.count, text(found.count), found.some.clone());
    }

    /// Finds uploads of batches whose records are not announced.
    fn uploads(&mut self, delivered: &Delivered, confirmed: &HashSet<String>) {
        let names: HashMap<&str, &str> = self
            .calls
            .iter()
            .filter(|call| call.call == Call::Prepare)
            .filter_map(|call| Some((call.artifact.as_deref()?, call.file_name.as_deref()?)))
            .collect();
        let uploads = || self.calls.iter().filter(|call| call.call == Call::Upload);
        let arrived: HashSet<&str> = uploads()
            .filter(|call| {
                call.applied && call.artifact.as_ref().is_some_and(|id| delivered.artifacts.contains(id))
            })
            .filter_map(|call| Some(call.content.as_ref()?.hash.as_str()))
            .collect();
        let (mut seen, mut refused, mut unconfirmed, mut unnamed) =
            (HashSet::new(), Examples::default(), Examples::default(), Examples::default());
        for upload in uploads() {
            let (Some(id), Some(content)) = (&upload.artifact, &upload.content) else { continue };
            // A batch is always gzip; attachments are checked by their lines.
            let Some(lines) = content.lines else { continue };
            let name = names.get(id.as_str()).copied().unwrap_or("a batch");
            let stem = name.split('.').next().unwrap_or_default();
            let is_batch =
                delivered.ids.contains_key(stem) || name.ends_with(".jsonl.gz") || name.ends_with(".json.gz");
            if !is_batch || arrived.contains(content.hash.as_str()) || !seen.insert(content.hash.clone()) {
                continue;
            }
            let (missing, mut ids) = self.missing_of(id, stem, lines, delivered);
            if missing == 0 {
                continue;
            }
            ids.truncate(3);
            let ids = if ids.is_empty() { String::new() } else { format!(": {}, ...", ids.join(", ")) };
            let which = if !upload.applied {
                &mut refused
            } else if confirmed.contains(id) {
                &mut unnamed
            } else {
                &mut unconfirmed
            };
            which.add(missing, format!("{missing} records of {name} ({id}){ids}"));
        }
        let verdict = self.missing();
        self.take(verdict, "upload-refused", &refused, |n| {
            format!("{n} records were in uploads that failed and were not repeated")
        });
        self.take(verdict, "never-confirmed", &unconfirmed, |n| {
            format!("{n} records are in uploads that were never confirmed, and in no announced artifact")
        });
        self.take(verdict, "confirmed-not-named", &unnamed, |n| {
            format!("{n} records are in confirmed artifacts that no message names")
        });
    }

    /// The records of an upload that are not announced.
    fn missing_of(&self, id: &str, item_type: &str, lines: u64, delivered: &Delivered) -> (u64, Vec<String>) {
        let (mut read, mut ids) = (0_u64, Vec::new());
        let none = BTreeSet::new();
        let known = delivered.ids.get(item_type).unwrap_or(&none);
        let whole = each_line(self.local, id, |line| {
            read += 1;
            match record_id(line) {
                Some(record) if known.contains(&record) => {}
                record => ids.push(record.unwrap_or_default()),
            }
        });
        if whole.is_ok() && read > 0 {
            // The metadata of a run are the same each time.
            let missing = if item_type == METADATA && !known.is_empty() { 0 } else { ids.len() as u64 };
            (missing, ids)
        } else {
            (lines, Vec::new())
        }
    }

    /// Finds failed calls that have no bytes to compare.
    fn failed_calls(&mut self) {
        let key = |call: &CallRecord| match call.call {
            Call::Prepare => (call.call, call.file_name.clone()),
            Call::Message => (call.call, call.request_id.clone()),
            _ => (call.call, None),
        };
        let mut open: BTreeMap<(Call, Option<String>), Vec<&CallRecord>> = BTreeMap::new();
        for call in self.calls {
            // Uploads and confirmations are checked by their bytes. Downloads, and files of the source, concern only
            // the connector.
            let counts = matches!(
                call.call,
                Call::Prepare | Call::Message | Call::State | Call::StateGet | Call::Unknown
            );
            if !counts {
                continue;
            }
            if is_failure(call) {
                open.entry(key(call)).or_default().push(call);
            } else if let Some(failed) = open.get_mut(&key(call)) {
                // An upload that could not be prepared cannot be matched with a later one.
                failed.retain(|failed| call.call == Call::Prepare && !failed.passing);
            }
        }
        let mut found: BTreeMap<Call, Examples> = BTreeMap::new();
        for failed in open.into_values().flatten() {
            // A message that was refused for good may be followed by another; the artifacts show whether they were
            // announced.
            let status = failed.status.map_or("no answer".to_owned(), |status| status.to_string());
            let reason = failed.reason.as_deref().unwrap_or("no reason");
            let what = failed.file_name.as_deref().or(failed.artifact.as_deref()).unwrap_or_default();
            let example = format!("invocation {}, {what} {status}: {reason}", failed.invocation);
            found.entry(failed.call).or_default().add(1, example);
        }
        for (call, found) in found {
            self.take(Verdict::Suspicious, &format!("{call}-failed"), &found, |n| {
                format!("{n} {call} calls failed, and no later call is known to make up for them")
            });
        }
    }

    fn attachments(&mut self, named: &[Named], delivered: &Delivered, report: &SyncReport) {
        let ended = report
            .answers
            .iter()
            .any(|(phase, answer)| *phase == highwater::Phase::Attachments && answer.ends_with("_DONE"));
        if !ended {
            return;
        }
        let none = BTreeSet::new();
        let ids = delivered.ids.get(ATTACHMENTS).unwrap_or(&none);
        let linked = delivered.ids.get(UPLOADED).unwrap_or(&none);
        let mut given_up: BTreeSet<&str> = ids.difference(linked).map(String::as_str).collect();
        if !given_up.is_empty() {
            let before = self.attachments_before(named);
            self.each_attachment(named, |id, line| {
                if before.linked.contains(&id) && before.lines.contains(line) {
                    given_up.remove(id.as_str());
                }
                !given_up.is_empty()
            });
        }
        let examples = given_up.iter().take(EXAMPLES_MAX).map(|id| (*id).to_owned()).collect();
        let (count, of) = (given_up.len() as u64, ids.len());
        let text =
            format!("{count} of {of} attachments that were named are linked to no upload: given up, or lost");
        self.find(Verdict::Suspicious, GIVEN_UP, count, text, examples);
        let mut failed = Vec::new();
        if !given_up.is_empty() {
            self.each_attachment(named, |id, line| {
                if failed.len() < FAILED_LISTED_MAX && given_up.remove(id.as_str()) {
                    failed.push(failed_attachment(id, line));
                }
                failed.len() < FAILED_LISTED_MAX && !given_up.is_empty()
            });
        }
        self.failed = failed;
    }

    /// Calls `each` with the id and the line of every attachment that messages name. No further artifact is read once
    /// it has returned false.
    fn each_attachment(&self, named: &[Named], mut each: impl FnMut(String, &[u8]) -> bool) {
        let mut goes_on = true;
        for Named { id, .. } in named.iter().filter(|named| named.item_type == ATTACHMENTS) {
            if !goes_on {
                return;
            }
            // An artifact that cannot be read is a finding already.
            let _ = each_line(self.local, id, |line| {
                if let Some(id) = record_id(line) {
                    goes_on = each(id, line);
                }
            });
        }
    }

    /// What earlier runs announced of attachments. A file that is described as it was then need not be streamed again.
    fn attachments_before(&self, named: &[Named]) -> Before {
        let mut before = Before::default();
        let of_run: HashSet<&str> = named.iter().map(|named| named.id.as_str()).collect();
        // A message that cannot be read was a finding of its own run.
        for message in self.local.messages().into_iter().flatten().flatten() {
            let artifacts = message.pointer("/event_data/artifacts").and_then(Value::as_array);
            for artifact in artifacts.into_iter().flatten() {
                let text = |key| artifact.get(key).and_then(Value::as_str).unwrap_or_default();
                let (id, item_type) = (text("id"), text("item_type"));
                if of_run.contains(id) || ![ATTACHMENTS, UPLOADED].contains(&item_type) {
                    continue;
                }
                let _ = each_line(self.local, id, |line| {
                    if item_type == UPLOADED {
                        before.linked.extend(record_id(line));
                    } else {
                        before.lines.insert(line.to_vec());
                    }
                });
            }
        }
        before
    }

    /// Checks what is announced against the metadata of the run.
    fn metadata(&mut self, named: &[Named], delivered: &Delivered) {
        let Some(of_run) = named.iter().rfind(|named| named.item_type == METADATA) else { return };
        let mut text = Vec::new();
        if each_line(self.local, &of_run.id, |line| text.extend_from_slice(line)).is_err() {
            // That is a finding already.
            return;
        }
        let metadata = match Metadata::from_slice(&text) {
            Ok(metadata) => metadata,
            Err(findings) => {
                let text = format!("the metadata cannot be used: {findings}");
                return self.find(Verdict::Suspicious, "metadata", 1, text, Vec::new());
            }
        };
        let declared: HashSet<&str> = metadata.record_types().collect();
        let known = [METADATA, UNITS, ATTACHMENTS, UPLOADED];
        let undeclared: Vec<String> = delivered
            .ids
            .keys()
            .filter(|item_type| {
                !declared.contains(item_type.as_str()) && !known.contains(&item_type.as_str())
            })
            .cloned()
            .collect();
        let count = undeclared.len() as u64;
        let text = format!("{count} announced item types are not declared in the metadata");
        self.find(Verdict::Suspicious, "undeclared-item-type", count, text, undeclared);
        let mut tally = Tally::keeping(1);
        for finding in metadata.check() {
            tally.add(finding);
        }
        let mut tallies = BTreeMap::from([(METADATA, tally)]);
        let mut found: BTreeMap<&str, Examples> = BTreeMap::new();
        for artifact in named.iter().filter(|named| declared.contains(named.item_type.as_str())) {
            let Ok(checker) = Checker::new(&metadata, &artifact.item_type) else { continue };
            let path = ArtifactId::new(&artifact.id).ok().and_then(|id| self.local.artifact_path(&id).ok());
            let Some(Ok(file)) = path.map(File::open) else { continue };
            let Ok(findings) = checker.stream(file) else { continue };
            // Records that come again were looked at in all artifacts: see `records_again`.
            let of_one = |finding: &Finding| finding.rule != Rule::DuplicateId;
            for finding in findings.filter_map(std::result::Result::ok).filter(of_one) {
                if finding.severity == Severity::Error {
                    found.entry(&artifact.item_type).or_default().add(1, finding.to_string());
                }
                tallies.entry(&artifact.item_type).or_insert_with(|| Tally::keeping(1)).add(finding);
            }
        }
        self.records =
            tallies.iter().flat_map(|(item_type, tally)| record_findings(item_type, tally)).collect();
        self.records.sort_by_key(|findings| std::cmp::Reverse(findings.severity));
        for (item_type, found) in found {
            self.take(Verdict::Suspicious, "record-not-as-declared", &found, |n| {
                format!("{n} times a record of {item_type} does not match the metadata")
            });
        }
    }

    fn lints(&mut self) {
        let mut found: BTreeMap<&str, Examples> = BTreeMap::new();
        for lint in self.calls.iter().flat_map(|call| &call.lints) {
            // For these rules the files show the same, with the records.
            if !matches!(lint.rule.as_str(), "not-uploaded" | "not-confirmed") {
                found.entry(&lint.rule).or_default().add(1, lint.text.clone());
            }
        }
        for (rule, found) in found {
            self.take(Verdict::Suspicious, rule, &found, |n| {
                format!("{n} requests look wrong, but were accepted")
            });
        }
    }

    /// The largest message and worker state; finds those near a limit.
    fn sizes(&mut self) -> (u64, u64) {
        let largest = |call: Call| {
            let bytes = self.calls.iter().filter(|of| of.call == call).map(|call| call.bytes);
            bytes.max().unwrap_or(0)
        };
        let (message, state) = (largest(Call::Message), largest(Call::State));
        for (what, bytes, limit) in [
            ("message", message, MESSAGE_BYTES_MAX as u64),
            ("worker state", state, WORKER_STATE_BYTES_MAX as u64),
        ] {
            let near = u64::from(bytes.saturating_mul(100) > limit.saturating_mul(NEAR_PERCENT));
            let text = format!("the largest {what} has {bytes} bytes, the limit is {limit}");
            self.find(Verdict::Suspicious, "near-limit", near, text, Vec::new());
        }
        (message, state)
    }

    fn invocations(&mut self, invocations: &[Invocation]) -> Vec<InvocationFigures> {
        let mut figures = Vec::new();
        let (mut idle, mut last_state) = (Examples::default(), None);
        for invocation in invocations {
            let calls = || self.calls.iter().filter(|call| call.invocation == invocation.number);
            let applied = |call: Call| calls().filter(move |of| of.call == call && of.applied);
            let uploaded_bytes =
                applied(Call::Upload).filter_map(|call| Some(call.content.as_ref()?.bytes)).sum();
            let state = applied(Call::State).next_back().map(|call| call.hash.clone());
            let moved = uploaded_bytes > 0 || (state.is_some() && state != last_state);
            let goes_on = invocation.answer.as_deref().is_some_and(|answer| answer.ends_with("_PROGRESS"));
            if goes_on && !moved {
                idle.add(1, format!("invocation {}, {}", invocation.number, invocation.event_type));
            }
            last_state = state.or(last_state);
            figures.push(InvocationFigures {
                number: invocation.number,
                event_type: invocation.event_type.clone(),
                answer: invocation.answer.clone(),
                calls: calls().count() as u64,
                uploaded_bytes,
                seconds: invocation.seconds,
            });
        }
        self.take(Verdict::Suspicious, "no-progress", &idle, |n| {
            format!("{n} invocations ended with PROGRESS, uploaded nothing and changed no state")
        });
        figures
    }
}

/// A failed attachment, from the line that named it.
fn failed_attachment(id: String, line: &[u8]) -> FailedAttachment {
    let line: Value = serde_json::from_slice(line).unwrap_or_default();
    let text = |field| line.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    FailedAttachment { id, parent_id: text("parent_id"), file_name: text("file_name") }
}

fn record_findings(item_type: &str, tally: &Tally) -> Vec<RecordFindings> {
    tally
        .kinds()
        .map(|(severity, rule, path, count, kept)| RecordFindings {
            item_type: item_type.to_owned(),
            severity,
            rule,
            path: path.to_owned(),
            count,
            first: kept.first().map(Finding::to_string).unwrap_or_default(),
        })
        .collect()
}

/// A text of the worker, with control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            printed.extend(char.escape_debug());
        } else {
            printed.push(char);
        }
    }
    printed
}

/// A count, and some of what was counted.
#[derive(Debug, Default)]
struct Examples {
    count: u64,
    some: Vec<String>,
}

impl Examples {
    fn add(&mut self, count: u64, example: String) {
        self.count = self.count.saturating_add(count);
        if self.some.len() < EXAMPLES_MAX {
            self.some.push(example);
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for finding in &self.findings {
            writeln!(text, "{}: {} [{}]", finding.verdict, finding.text, finding.rule)?;
            for example in &finding.examples {
                writeln!(text, "    {}", printable(example))?;
            }
        }
        for note in &self.notes {
            writeln!(text, "note: {} [{}]", note.text, note.rule)?;
            for example in &note.examples {
                writeln!(text, "    {}", printable(example))?;
            }
        }
        if !self.failed_attachments.is_empty() {
            let failed =
                self.findings.iter().find(|finding| finding.rule == GIVEN_UP).map_or(0, |found| found.count);
            writeln!(text, "failed attachments: {failed}")?;
            for FailedAttachment { id, parent_id, file_name } in
                self.failed_attachments.iter().take(FAILED_PRINTED_MAX)
            {
                writeln!(text, "    {}", printable(&format!("{id}: {file_name} of {parent_id}")))?;
            }
            if failed > FAILED_PRINTED_MAX as u64 {
                writeln!(text, "    and {} more", failed - FAILED_PRINTED_MAX as u64)?;
            }
        }
        if !self.record_findings.is_empty() {
            writeln!(text, "findings in metadata and records:")?;
            for RecordFindings { item_type, count, first, .. } in &self.record_findings {
                writeln!(text, "    {}", printable(&format!("{count} times in {item_type}: {first}")))?;
            }
        }
        write!(f, "{text}verdict: {}", self.verdict)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_attachment_belongs_to_the_only_record_that_has_the_id_of_its_parent() {
        let ids = |all: &[(&str, &[&str])]| -> BTreeMap<String, BTreeSet<String>> {
            let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
            all.iter().map(|(item_type, ids)| ((*item_type).to_owned(), set(ids))).collect()
        };
        let parent = |line: &Value, ids| parent_id(line).and_then(|id| only_record(id, ids));
        let one = ids(&[("issues", &["1"]), ("users", &["2"]), (ATTACHMENTS, &["1"])]);
        let issue = Some(("issues".to_owned(), "1".to_owned()));
        assert_eq!(parent(&json!({ "parent_id": "1" }), &one), issue);
        assert_eq!(parent(&json!({ "parent_id": { "external": "1" } }), &one), issue);
        assert_eq!(parent(&json!({ "parent_id": "3", "other": "1" }), &one), None);
        let two = ids(&[("issues", &["1"]), ("users", &["1"])]);
        assert_eq!(parent(&json!({ "parent_id": "1" }), &two), None);
    }

    #[test]
    fn lines_are_compared_as_values_and_dates_as_times() {
        let of = |line: &str| Compared::of(line.as_bytes());
        let line = of(r#"{"id":"1","modified_date":"2026-01-02T00:00:00Z","data":{"a":1,"b":[1,2]}}"#);
        let other =
            of(r#"{"data": {"b": [1, 2], "a": 1}, "modified_date": "2026-01-02T00:00:00Z", "id": "1"}"#);
        assert_eq!(line, other);
        let order = of(r#"{"id":"1","modified_date":"2026-01-02T00:00:00.000Z","data":{"a":1,"b":[2,1]}}"#);
        assert_eq!((line.date, line.content == order.content), (order.date, false));
        assert_ne!(line.date, of(r#"{"modified_date":"2026-01-02T00:00:01Z"}"#).date);
        assert_eq!(of("{}").date, None);
        assert_ne!(of(r#"{"id":"1","a":1e999}"#), of(r#"{"id":"1","a":2e999}"#));
    }
}
