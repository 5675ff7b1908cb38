//! An issue of a made-up tracker, typed: some 770 bytes of JSON, always the same for one number. And the unavoidable
//! cost of a batch of such issues: their lines serialised and compressed.

use highwater::Record;
use highwater::record::{Field, Metadata, RecordType};
use serde::Serialize;

/// The item type of the issues.
pub(crate) const ITEM_TYPE: &str = "issues";

const PRIORITIES: [&str; 4] = ["P-0", "P-1", "P-2", "P-3"];
const STATUSES: [&str; 6] = ["open", "triage", "in_progress", "blocked", "in_review", "closed"];
const WORDS: &str = "login page button crash export invoice customer search filter latency timeout retry webhook token session \
    upload mobile android browser dashboard chart report table column index cache queue worker memory thread database migration \
    schema rollback deploy cluster network proxy header cookie form field label modal tooltip layout theme font image video email \
    digest comment mention sprint backlog epic milestone release hotfix patch audit billing";

/// An issue, as a client of the tracker's API would have parsed it.
#[derive(Debug)]
pub(crate) struct Issue {
    id: String,
    created: String,
    modified: String,
    data: Data,
}

#[derive(Debug, Serialize)]
struct Data {
    actual_close_date: Option<String>,
    creator: String,
    headline: String,
    owner: String,
    priority: &'static str,
    target_close_date: String,
    status: &'static str,
    body: String,
    labels: [&'static str; 2],
    estimate: u64,
    project: String,
    comments_count: u64,
    is_blocked: bool,
    parent: Option<String>,
    item_url_field: String,
}

impl Issue {
    /// Issue number `number`.
    fn new(number: u64, words: &[&'static str]) -> Self {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut pick = |below: usize| usize::try_from(next(below as u64)).unwrap_or(0);
        let mut sentence = |length: usize| {
            let mut text = words[pick(words.len())].to_owned();
            for _ in 1..length {
                text.push(' ');
                text.push_str(words[pick(words.len())]);
            }
            text
        };
        let (headline, body) = (sentence(6), sentence(36));
        let labels = [words[pick(words.len())], words[pick(words.len())]];
        let (priority, status) = (PRIORITIES[pick(PRIORITIES.len())], STATUSES[pick(STATUSES.len())]);
        let mut time = |year: u64| {
            let (month, day, minute, second) = (next(12) + 1, next(28) + 1, next(60), next(60));
            format!("{year}-{month:02}-{day:02}T12:{minute:02}:{second:02}.{:03}Z", next(1_000))
        };
        let (created, modified, due) = (time(2_020), time(2_021), time(2_022));
        Self {
            id: format!("issue-{number}"),
            data: Data {
                actual_close_date: (status == "closed").then(|| modified.clone()),
                creator: format!("user-{}", next(500)),
                headline,
                owner: format!("user-{}", next(500)),
                priority,
                target_close_date: due,
                status,
                body,
                labels,
                estimate: next(21),
                project: format!("project-{}", next(40)),
                comments_count: next(30),
                is_blocked: next(8) == 0,
                parent: (next(16) == 0).then(|| format!("issue-{}", next(number + 1))),
                item_url_field: format!("https://tracker.example.com/browse/ISSUE-{number}"),
            },
            created,
            modified,
        }
    }

    /// The issues from 0 to `count - 1`.
    pub(crate) fn many(count: u64) -> Vec<Self> {
        let words: Vec<&str> = WORDS.split_ascii_whitespace().collect();
        (0..count).map(|number| Self::new(number, &words)).collect()
    }

    /// The record; its only allocation is its id.
    pub(crate) fn to_record(&self) -> highwater::Result<Record> {
        Record::new(self.id.clone(), &self.data)?.created_text(&self.created)?.modified_text(&self.modified)
    }

    /// Its `data` as JSON text.
    pub(crate) fn data_text(&self) -> serde_json::Result<String> {
        serde_json::to_string(&self.data)
    }

    /// The record, from `data` as JSON text.
    pub(crate) fn to_record_of(&self, data: &str) -> highwater::Result<Record> {
        Record::from_raw(self.id.clone(), data)?.created_text(&self.created)?.modified_text(&self.modified)
    }
}

/// The metadata of the issues.
pub(crate) fn metadata() -> Metadata {
    let issue = RecordType::new()
        .field("actual_close_date", Field::timestamp())
        .field("creator", Field::reference(["#record:users"]).required())
        .field("headline", Field::text().required())
        .field("owner", Field::reference(["#record:users"]).required())
        .field("priority", Field::enumeration(PRIORITIES).required())
        .field("target_close_date", Field::timestamp().required())
        .field("status", Field::enumeration(STATUSES).required())
        .field("body", Field::text().required())
        .field("labels", Field::text().collection_of(2, 2).required())
        .field("estimate", Field::int().min(0).max(20).required())
        .field("project", Field::reference(["#record:projects"]).required())
        .field("comments_count", Field::int().min(0).required())
        .field("is_blocked", Field::bool().required())
        .field("parent", Field::reference(["#record:issues"]))
        .field("item_url_field", Field::text().required());
    Metadata::new()
        .record_type(ITEM_TYPE, issue)
        .record_type("projects", RecordType::new())
        .record_type("users", RecordType::new())
}

/// The lines of issues, serialised into one buffer without this crate; the bytes are the same as with it.
pub(crate) fn write_lines(issues: &[Issue], out: &mut Vec<u8>) -> serde_json::Result<()> {
    #[derive(Serialize)]
    struct Line<'i> {
        id: &'i str,
        created_date: &'i str,
        modified_date: &'i str,
        data: &'i Data,
    }
    for Issue { id, created, modified, data } in issues {
        let line = Line { id, created_date: created, modified_date: modified, data };
        serde_json::to_writer(&mut *out, &line)?;
        out.push(b'\n');
    }
    Ok(())
}
