//! The records: issue `i` is a function of `i`, in integer arithmetic that any language can repeat.

use chrono::{DateTime, SecondsFormat, Utc};
use highwater::record::{Field, Metadata, RecordType};
use highwater::{BoxError, Record};
use serde::Serialize;

/// The item type of the records.
pub(crate) const ITEM_TYPE: &str = "issues";

/// 2020-01-01T00:00:00Z in milliseconds: when issue 0 was created. Each later issue was created a second after the
/// one before.
const FIRST_CREATED_MS: u64 = 1_577_836_800_000;
/// An issue was last modified less than this many milliseconds after it was created.
const MODIFIED_WITHIN_MS: u64 = 8_640_000;
const DAY_MS: u64 = 86_400_000;

const PRIORITIES: [&str; 4] = ["P-0", "P-1", "P-2", "P-3"];
const STATUSES: [&str; 6] = ["open", "triage", "in_progress", "blocked", "in_review", "closed"];
const WORDS: [&str; 64] = [
    "login",
    "page",
    "button",
    "crash",
    "export",
    "invoice",
    "customer",
    "search",
    "filter",
    "latency",
    "timeout",
    "retry",
    "webhook",
    "token",
    "session",
    "upload",
    "mobile",
    "android",
    "browser",
    "dashboard",
    "chart",
    "report",
    "table",
    "column",
    "index",
    "cache",
    "queue",
    "worker",
    "memory",
    "thread",
    "database",
    "migration",
    "schema",
    "rollback",
    "deploy",
    "cluster",
    "network",
    "proxy",
    "header",
    "cookie",
    "form",
    "field",
    "label",
    "modal",
    "tooltip",
    "layout",
    "theme",
    "font",
    "image",
    "video",
    "email",
    "digest",
    "comment",
    "mention",
    "thread",
    "sprint",
    "backlog",
    "epic",
    "milestone",
    "release",
    "hotfix",
    "patch",
    "audit",
    "billing",
];

/// An issue as the external system would return it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issue {
    key: u32,
    created_ms: u64,
    updated_ms: u64,
    title: String,
    body: String,
    priority: u32,
    status: u32,
    creator: u32,
    owner: u32,
    labels: [&'static str; 2],
    estimate: u32,
    project: u32,
    comments: u32,
    blocked: bool,
    due_ms: u64,
    parent: Option<u32>,
}

impl Issue {
    /// Issue number `key`.
    pub(crate) fn generate(key: u32) -> Self {
        let hash = hash(key);
        let created_ms = FIRST_CREATED_MS + u64::from(key) * 1_000;
        Self {
            key,
            created_ms,
            updated_ms: created_ms + u64::from(hash) % MODIFIED_WITHIN_MS,
            title: sentence(hash, 5 + hash % 4),
            body: sentence(hash ^ 0x5bd1_e995, 24 + hash % 25),
            priority: hash % 4,
            status: (hash >> 4) % 6,
            creator: (hash >> 3) % 500,
            owner: (hash >> 7) % 500,
            labels: [word(hash), word(hash >> 8)],
            estimate: (hash >> 11) % 21,
            project: (hash >> 13) % 40,
            comments: (hash >> 17) % 30,
            blocked: (hash >> 19).is_multiple_of(8),
            due_ms: created_ms + DAY_MS * u64::from(1 + (hash >> 5) % 90),
            parent: (key > 0 && hash.is_multiple_of(16)).then(|| hash % key),
        }
    }

    /// When it was last modified.
    pub(crate) fn updated_at(&self) -> Result<DateTime<Utc>, BoxError> {
        moment(self.updated_ms)
    }

    /// The id of its creator.
    pub(crate) fn creator(&self) -> String {
        format!("user-{}", self.creator)
    }

    /// The record for the platform.
    pub(crate) fn to_record(&self) -> Result<Record, BoxError> {
        #[derive(Serialize)]
        struct Data<'a> {
            actual_close_date: Option<&'a str>,
            creator: String,
            headline: &'a str,
            owner: String,
            priority: &'a str,
            target_close_date: String,
            status: &'a str,
            body: &'a str,
            labels: [&'a str; 2],
            estimate: u32,
            project: String,
            comments_count: u32,
            is_blocked: bool,
            parent: Option<String>,
            item_url_field: String,
        }
        let updated = text_of(self.updated_ms)?;
        let status = named(&STATUSES, self.status);
        let data = Data {
            actual_close_date: (status == "closed").then_some(updated.as_str()),
            creator: self.creator(),
            headline: &self.title,
            owner: format!("user-{}", self.owner),
            priority: named(&PRIORITIES, self.priority),
            target_close_date: text_of(self.due_ms)?,
            status,
            body: &self.body,
            labels: self.labels,
            estimate: self.estimate,
            project: format!("project-{}", self.project),
            comments_count: self.comments,
            is_blocked: self.blocked,
            parent: self.parent.map(|parent| format!("issue-{parent}")),
            item_url_field: format!("https://tracker.example.com/browse/ISSUE-{}", self.key),
        };
        let record = Record::new(format!("issue-{}", self.key), &data)?;
        Ok(record.created_text(&text_of(self.created_ms)?)?.modified_text(&updated)?)
    }
}

/// The external domain metadata of the issues, and of the types that they refer to.
pub(crate) fn metadata() -> Metadata {
    let named_only = |name: &str| RecordType::new().name(name).field("name", Field::text().name("Name"));
    let issue = RecordType::new()
        .name("Issue")
        .field("actual_close_date", Field::timestamp().name("Closed"))
        .field("creator", Field::reference(["#record:users"]).name("Creator").required())
        .field("headline", Field::text().name("Headline").required())
        .field("owner", Field::reference(["#record:users"]).name("Owner").required())
        .field("priority", Field::enumeration(PRIORITIES).name("Priority").required())
        .field("target_close_date", Field::timestamp().name("Due").required())
        .field("status", Field::enumeration(STATUSES).name("Status").required())
        .field("body", Field::text().name("Body").required())
        .field("labels", Field::text().collection_of(2, 2).name("Labels").required())
        .field("estimate", Field::int().min(0).max(20).name("Estimate").required())
        .field("project", Field::reference(["#record:projects"]).name("Project").required())
        .field("comments_count", Field::int().min(0).name("Comments").required())
        .field("is_blocked", Field::bool().name("Blocked").required())
        .field("parent", Field::reference(["#record:issues"]).name("Parent"))
        .field("item_url_field", Field::text().name("Address").required());
    Metadata::new()
        .record_type(ITEM_TYPE, issue)
        .record_type("projects", named_only("Project"))
        .record_type("users", named_only("User"))
}

/// A pseudo-random number of 32 bits.
fn hash(key: u32) -> u32 {
    let mut hash = (key ^ 0x9e37_79b9).wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// `count` words, derived from the seed.
fn sentence(seed: u32, count: u32) -> String {
    let mut state = seed;
    let mut text = String::with_capacity(count as usize * 8);
    for at in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if at > 0 {
            text.push(' ');
        }
        text.push_str(word(state >> 16));
    }
    text
}

fn word(at: u32) -> &'static str {
    named(&WORDS, at)
}

fn named<const N: usize>(names: &[&'static str; N], at: u32) -> &'static str {
    names[at as usize % N]
}

fn moment(ms: u64) -> Result<DateTime<Utc>, BoxError> {
    let at = i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis);
    at.ok_or_else(|| format!("{ms} ms after 1970 is beyond the calendar").into())
}

/// RFC 3339, always with three digits for milliseconds.
fn text_of(ms: u64) -> Result<String, BoxError> {
    Ok(moment(ms)?.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater::record::Checker;

    /// Computed by the same arithmetic in another language.
    const KNOWN: [(u32, &str); 2] =
        [(0, include_str!("known/issue-0.json")), (399_999, include_str!("known/issue-399999.json"))];

    #[test]
    fn known_issues_are_what_they_are_elsewhere() {
        for (key, line) in KNOWN {
            assert_eq!(Issue::generate(key).to_record().unwrap().to_line(), line.trim_end());
        }
    }

    #[test]
    fn the_first_400_000_are_309_596_078_bytes_of_json_lines() {
        const ISSUES: u32 = 400_000;
        let bytes = |keys: std::ops::Range<u32>| -> u64 {
            keys.map(|key| Issue::generate(key).to_record().unwrap().to_line().len() as u64 + 1).sum()
        };
        let total = std::thread::scope(|scope| {
            let half = scope.spawn(|| bytes(0..ISSUES / 2));
            bytes(ISSUES / 2..ISSUES) + half.join().unwrap()
        });
        assert_eq!(total, 309_596_078);
    }

    #[test]
    fn the_metadata_is_whole_and_the_records_are_as_it_says() {
        let metadata = metadata();
        assert_eq!(metadata.check(), []);
        let checker = Checker::new(&metadata, ITEM_TYPE).unwrap();
        let mut closed = 0;
        for key in 0..2_000 {
            let issue = Issue::generate(key);
            closed += u32::from(issue.status == 5);
            assert_eq!(checker.check(&issue.to_record().unwrap()), [], "issue {key}");
        }
        assert!(closed > 100, "both kinds of actual_close_date are among them");
    }
}
