//! What was delivered to the platform, record by record, and how two syncs differ.
//!
//! A record counts as delivered if a message names its artifact, and that artifact is uploaded and confirmed
//! (external sync units need no confirmation, by protocol). A record is identified by item type and id; its content
//! is the hash of its line. The line of an uploaded attachment contains an artifact id, which the platform assigns:
//! it is replaced by the hash of the upload, so that the bytes of attachments are compared as well. The addresses of
//! this platform and of the source differ in each sync, and are ignored.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;
use serde_json::Value;
use twox_hash::XxHash3_64;

use super::source::SourceCall;
use crate::audit::{METADATA, UNITS, each_line, lines_of, named, record_id};
use crate::call::{Call, CallRecord};
use crate::error::Result;
use crate::local::Local;
use crate::message_check::UPLOADED;
use crate::sync::{Invocation, invocations};

/// A record: its item type and id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub struct RecordKey {
    /// Its item type.
    pub item_type: String,
    /// Its id; for an uploaded attachment its external id.
    pub id: String,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    content: u64,
    times: u64,
}

/// What was delivered.
#[derive(Debug, Clone, Default)]
pub(super) struct Delivered {
    records: BTreeMap<String, HashMap<String, Seen>>,
}

/// The result of a run, from the files of its platform.
#[derive(Debug, Default)]
pub(super) struct Ran {
    pub(super) delivered: Delivered,
    pub(super) calls: Vec<CallRecord>,
    pub(super) invocations: Vec<Invocation>,
    /// Uploads that were stored, and that nothing names.
    pub(super) wasted_uploads: u64,
    /// The requests to the source; they are not in the files.
    pub(super) source: Vec<SourceCall>,
}

impl Ran {
    /// Reads a run; `bases` are the base URLs of its platform and its source.
    ///
    /// # Errors
    /// `Io` if the disk fails; `NotALocal` if the files are inconsistent.
    pub(super) fn read(local: &Local, run: &str, bases: &[&str]) -> Result<Self> {
        let hosts: Vec<&str> = bases.iter().map(|base| base.trim_start_matches("http://")).collect();
        let mut calls: Vec<CallRecord> = lines_of(&local.dir().join("calls.jsonl"))?;
        let is_kept = |call: &&CallRecord| call.call == Call::Upload && call.applied;
        // A line may name an upload of an earlier run.
        let contents: HashMap<String, String> = calls
            .iter()
            .filter(is_kept)
            .filter_map(|call| Some((call.artifact.clone()?, call.content.as_ref()?.hash.clone())))
            .collect();
        calls.retain(|call| call.run.as_deref() == Some(run));
        let invocations = invocations(local.dir(), run)?;
        let confirmed: HashSet<String> = local.confirmed()?.into_iter().map(|id| id.to_string()).collect();
        let mut delivered = Delivered::default();
        let mut used: HashSet<String> = HashSet::new();
        for artifact in named(local, &invocations)? {
            used.insert(artifact.id.clone());
            if artifact.item_type != UNITS && !confirmed.contains(&artifact.id) {
                continue;
            }
            let records = delivered.records.entry(artifact.item_type.clone()).or_default();
            // An artifact that cannot be read is not delivered.
            let _ = each_line(local, &artifact.id, |line| {
                let (id, content) = match artifact.item_type.as_str() {
                    METADATA => (String::new(), hash_without(line, &hosts)),
                    UPLOADED => {
                        let Some((id, upload, content)) = link(line, &confirmed, &contents) else { return };
                        used.insert(upload);
                        (id, content)
                    }
                    _ => {
                        let Some(id) = record_id(line) else { return };
                        (id, hash_without(line, &hosts))
                    }
                };
                let seen = records.entry(id).or_insert(Seen { content, times: 0 });
                seen.content = content;
                seen.times += artifact.times;
            });
        }
        let is_named = |call: &&CallRecord| call.artifact.as_ref().is_some_and(|id| used.contains(id));
        let wasted_uploads = calls.iter().filter(is_kept).filter(|call| !is_named(call)).count() as u64;
        Ok(Self { delivered, calls, invocations, wasted_uploads, source: Vec::new() })
    }
}

/// The hash of a line, in which these hosts are ignored.
fn hash_without(line: &[u8], hosts: &[&str]) -> u64 {
    let Ok(text) = std::str::from_utf8(line) else { return XxHash3_64::oneshot(line) };
    let mut text = Cow::Borrowed(text);
    for host in hosts {
        if text.contains(host) {
            text = Cow::Owned(text.replace(host, ""));
        }
    }
    XxHash3_64::oneshot(text.as_bytes())
}

/// A line about an uploaded attachment: its external id, the artifact, and a hash of the other fields and the
/// content. `None` if the upload is missing or unconfirmed.
fn link(
    line: &[u8],
    confirmed: &HashSet<String>,
    contents: &HashMap<String, String>,
) -> Option<(String, String, u64)> {
    let mut value: Value = serde_json::from_slice(line).ok()?;
    let id = value.get_mut("id")?.as_object_mut()?;
    let upload = id.get("devrev")?.as_str()?.to_owned();
    let content = contents.get(upload.as_str()).filter(|_| confirmed.contains(&upload))?;
    id.insert("devrev".to_owned(), Value::from(content.as_str()));
    let outside = record_id(line)?;
    Some((outside, upload, XxHash3_64::oneshot(value.to_string().as_bytes())))
}

/// The differences between two clean syncs: they are ignored in the cases.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct SetAside {
    /// Records that only one of the two delivered.
    pub in_one_only: BTreeSet<RecordKey>,
    /// Records whose content differs.
    pub content_differs: BTreeSet<RecordKey>,
}

impl SetAside {
    /// Whether the two are the same.
    pub fn is_empty(&self) -> bool {
        self.in_one_only.is_empty() && self.content_differs.is_empty()
    }
}

/// The differences between a case and the clean sync.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Difference {
    pub(super) lost: Vec<RecordKey>,
    pub(super) altered: Vec<RecordKey>,
}

impl Delivered {
    /// Records, by item type.
    pub(super) fn totals(&self) -> BTreeMap<String, u64> {
        self.records.iter().map(|(item_type, records)| (item_type.clone(), records.len() as u64)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.iter().all(|(item_type, records)| is_apart(item_type) || records.is_empty())
    }

    /// Adds what a later sync delivered.
    pub(super) fn extend(&mut self, later: &Delivered) {
        for (item_type, records) in &later.records {
            let all = self.records.entry(item_type.clone()).or_default();
            for (id, seen) in records {
                let before = all.get(id).map_or(0, |before| before.times);
                all.insert(id.clone(), Seen { content: seen.content, times: seen.times.max(before) });
            }
        }
    }

    /// If another clean sync delivers something more often, it may be delivered that often.
    pub(super) fn as_often_as(&mut self, other: &Delivered) {
        for (item_type, records) in &mut self.records {
            for (id, seen) in records {
                seen.times = seen.times.max(other.get(item_type, id).map_or(0, |also| also.times));
            }
        }
    }

    fn get(&self, item_type: &str, id: &str) -> Option<&Seen> {
        self.records.get(item_type)?.get(id)
    }

    fn each(&self) -> impl Iterator<Item = (&str, &str, &Seen)> {
        self.records.iter().flat_map(|(item_type, records)| {
            records.iter().map(move |(id, seen)| (item_type.as_str(), id.as_str(), seen))
        })
    }

    /// How another clean sync differs.
    pub(super) fn set_aside(&self, other: &Delivered) -> SetAside {
        let mut aside = SetAside::default();
        for (item_type, id, seen) in self.each() {
            match other.get(item_type, id) {
                None => drop(aside.in_one_only.insert(key(item_type, id))),
                Some(also) if also.content != seen.content => {
                    aside.content_differs.insert(key(item_type, id));
                }
                Some(_) => {}
            }
        }
        let only_there = other.each().filter(|(item_type, id, _)| self.get(item_type, id).is_none());
        aside.in_one_only.extend(only_there.map(|(item_type, id, _)| key(item_type, id)));
        aside
    }

    /// What `found` lacks compared to this, and what differs in it.
    pub(super) fn difference(&self, found: &Delivered, aside: &SetAside) -> Difference {
        let mut difference = Difference::default();
        for (item_type, id, seen) in self.each() {
            match found.get(item_type, id) {
                Some(found) if found.content == seen.content => {}
                found => {
                    let key = key(item_type, id);
                    if aside.in_one_only.contains(&key) {
                    } else if found.is_none() {
                        difference.lost.push(key);
                    } else if !aside.content_differs.contains(&key) {
                        difference.altered.push(key);
                    }
                }
            }
        }
        difference.lost.sort();
        difference.altered.sort();
        difference
    }

    /// The records of one run that it delivered more often than a clean run does; each listed once for each time too
    /// many.
    pub(super) fn repeated(&self, clean: &Delivered) -> Vec<RecordKey> {
        let mut repeated: Vec<RecordKey> = Vec::new();
        for (item_type, id, seen) in self.each().filter(|(item_type, ..)| !is_apart(item_type)) {
            let usual = clean.get(item_type, id).map_or(1, |seen| seen.times.max(1));
            repeated.extend((usual..seen.times).map(|_| key(item_type, id)));
        }
        repeated.sort();
        repeated
    }
}

/// Item types that describe the source, and may be sent any number of times.
fn is_apart(item_type: &str) -> bool {
    matches!(item_type, METADATA | UNITS)
}

fn key(item_type: &str, id: &str) -> RecordKey {
    RecordKey { item_type: item_type.to_owned(), id: id.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(ids: &[(&str, u64)]) -> Delivered {
        let seen = |(id, times): &(&str, u64)| ((*id).to_owned(), Seen { content: 1, times: *times });
        Delivered { records: BTreeMap::from([("issues".to_owned(), ids.iter().map(seen).collect())]) }
    }

    #[test]
    fn what_one_of_two_clean_syncs_repeats_is_not_repeated_in_a_case() {
        let mut clean = delivered(&[("a", 1), ("b", 3)]);
        let case = delivered(&[("a", 2), ("b", 3), ("c", 2)]);
        let repeated =
            |clean: &Delivered| case.repeated(clean).iter().map(|key| key.id.clone()).collect::<Vec<_>>();
        assert_eq!(repeated(&clean), ["a", "c"]);
        clean.as_often_as(&delivered(&[("a", 2), ("b", 1)]));
        assert_eq!(repeated(&clean), ["c"]);
    }
}
