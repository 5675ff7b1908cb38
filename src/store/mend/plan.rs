//! An operator's request and the plan for it: all that it changes, and what the next run then asks for, as data and
//! in words.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::cut;
use crate::error::{Error, Result};

use super::super::inspect::{count, optional_time, time};

/// Characters of a cursor or a bookmark in the plan's words; the plan itself holds the whole.
pub(super) const SHOWN_CHARS: usize = 120;

/// What an operator wants done to a sync unit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mend {
    /// Sets the unit back to the state in which a finished run left it.
    Rewind {
        /// Which run.
        to: RewindTo,
    },
    /// Makes a stream begin with a cursor in the next run, and in every run until one is finished.
    SetCursor {
        /// The stream.
        stream: String,
        /// The cursor as JSON text; `null` makes the stream begin without one again.
        cursor: String,
        /// Also if the stream is not known, or its cursors had another shape.
        force: bool,
    },
    /// Makes the next run extract everything, as if no run had finished.
    Reset {
        /// Settled attachments stay settled, unless the source names them with another url, name or date.
        keep_attachments: bool,
        /// Drops the extractor's own values, too.
        drop_values: bool,
    },
    /// Queues given-up attachments again.
    Requeue(Requeue),
    /// Abandons the open run.
    Abandon,
    /// Forgets the whole unit.
    Forget,
}

/// Where to set a unit back to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RewindTo {
    /// As this run left it, by its id. The run must be finished.
    Run(String),
    /// As it was at that time: as the last run that was finished by then left it.
    Time(DateTime<Utc>),
}

/// Which of the given-up attachments: all, unless one of the two is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requeue {
    /// Those with one of these ids, unless empty.
    pub ids: Vec<String>,
    /// Those whose reason contains this text.
    pub reason: Option<String>,
}

/// All that an act changes, and what the next run then asks for. Made by [`Store::plan`](crate::Store::plan) or
/// [`Snapshot::plan`](crate::inspect::Snapshot::plan); it is valid as long as the store does not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The sync unit.
    pub sync_unit: String,
    /// The act, in a few words.
    pub act: String,
    /// Everything that changes; if empty, there is nothing to do.
    pub changes: Vec<PlannedChange>,
    /// What the next run asks for; `None` if the unit is not known afterwards.
    pub next_run: Option<NextRun>,
    /// What else the operator should know.
    pub notes: Vec<String>,
    /// `None` for an import.
    #[serde(skip)]
    pub(super) mend: Option<Mend>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlannedChange {
    /// The open run is abandoned.
    AbandonRun {
        /// Its id.
        run: String,
        /// When it started.
        #[serde(serialize_with = "time")]
        started_at: DateTime<Utc>,
        /// Pages staged.
        pages: u64,
        /// Records staged that no message has announced: they are dropped here, and fetched again.
        records_dropped: u64,
        /// Attachments that were still to be transferred.
        attachments_left: u64,
        /// A sealed message that the platform may or may not have accepted.
        message_undelivered: Option<u64>,
        /// Records that this message announces.
        records_undelivered: u64,
        /// Records that its other messages announced. The next run asks for what has changed since the same time, so
        /// it announces them again.
        records_announced: u64,
        /// Until when the source wanted no requests; the next run does not know of it.
        #[serde(serialize_with = "optional_time")]
        delay_until: Option<DateTime<Utc>>,
    },
    /// The time up to which finished runs vouch.
    Watermark {
        /// Before.
        #[serde(serialize_with = "optional_time")]
        from: Option<DateTime<Utc>>,
        /// After.
        #[serde(serialize_with = "optional_time")]
        to: Option<DateTime<Utc>>,
    },
    /// The oldest and the newest moment that finished runs were asked for.
    Bounds {
        /// Before.
        #[serde(serialize_with = "times")]
        from: [Option<DateTime<Utc>>; 2],
        /// After.
        #[serde(serialize_with = "times")]
        to: [Option<DateTime<Utc>>; 2],
    },
    /// The bookmark of a stream.
    Bookmark {
        /// The stream.
        stream: String,
        /// Before.
        from: Option<Value>,
        /// After.
        to: Option<Value>,
    },
    /// The cursor that a stream begins with in the next run.
    Cursor {
        /// The stream.
        stream: String,
        /// Before.
        from: Option<Value>,
        /// After.
        to: Option<Value>,
    },
    /// Everything known about attachments is forgotten, so that all of them are extracted again.
    ForgetAttachments {
        /// Attachments that are known.
        known: u64,
        /// Those of them that are given up.
        failed: u64,
    },
    /// Given-up attachments are queued again.
    Requeue {
        /// How many.
        attachments: u64,
        /// Reasons for which they were given up, with counts; if there are many, the most frequent.
        reasons: Vec<(String, u64)>,
    },
    /// The extractor's own values are dropped.
    DropValues {
        /// Their keys.
        keys: Vec<String>,
    },
    /// The whole unit is forgotten.
    ForgetUnit {
        /// Runs begun.
        runs: u64,
        /// Runs in the ledger.
        ledger_runs: u64,
        /// Attachments that are known.
        attachments: u64,
    },
    /// A unit is imported from a file.
    Import {
        /// Rows in the file.
        rows: u64,
        /// When it was exported.
        exported_at: String,
        /// The unit's own state here is forgotten first.
        replaces: bool,
    },
}

/// What a run that begins now asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NextRun {
    /// Records modified at or after this, less the overlap that the extractor sets; `None`: everything.
    #[serde(serialize_with = "optional_time")]
    pub since: Option<DateTime<Utc>>,
    /// The streams that have a bookmark or begin with a cursor. Others begin without either.
    pub streams: Vec<NextStream>,
    /// Given-up attachments that are to be tried again.
    pub attachments_requeued: u64,
    /// Records that earlier runs rejected, and that are asked for again.
    pub rejected: u64,
    /// For a rewind or a reset: the records that the runs since then, as far as they are known, have read, by item type.
    /// About as many are asked for again; a record that several runs read counts for each.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub read_since: BTreeMap<String, u64>,
}

/// How a stream begins in the next run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NextStream {
    /// Its name.
    pub stream: String,
    /// What [`Run::bookmark`](crate::Run::bookmark) returns for it.
    pub bookmark: Option<Value>,
    /// The cursor of its first page; `None`: its beginning.
    pub cursor: Option<Value>,
}

pub(super) fn changed_since(plan: &Plan) -> Error {
    invalid(
        format!("the plan to {}", plan.act),
        "the store has changed since it was made, so nothing was done; plan again".to_owned(),
    )
}

pub(super) fn invalid(what: String, reason: String) -> Error {
    Error::Invalid { what, reason }
}

/// JSON text as a value; invalid JSON becomes a string.
pub(super) fn value(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|_| Value::String(json.to_owned()))
}

pub(super) fn shown_json(value: &Value) -> String {
    cut::to_chars(&value.to_string(), SHOWN_CHARS)
}

/// A few names, and how many more.
pub(super) fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text =
        names.iter().take(SHOWN).map(|name| cut::to_chars(name, 80)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        // Writing to a string does not fail.
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

pub(super) fn shown(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn shown_time(at: Option<&DateTime<Utc>>) -> String {
    at.map_or_else(|| "none".to_owned(), |at| shown(*at))
}

fn shown_or_none(value: Option<&Value>) -> String {
    value.map_or_else(|| "none".to_owned(), shown_json)
}

fn times<S: Serializer>(at: &[Option<DateTime<Utc>>; 2], serializer: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.map(shown)).serialize(serializer)
}

/// What an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename = "act")]
#[non_exhaustive]
pub struct Act {
    /// The sync unit; `None`: the store.
    pub sync_unit: Option<String>,
    /// When.
    #[serde(serialize_with = "time")]
    pub at: DateTime<Utc>,
    /// Who, as they called themselves.
    pub by: String,
    /// What, in a few words.
    pub act: String,
    /// All that it changed, in words.
    pub changes: Vec<String>,
}

impl fmt::Display for PlannedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AbandonRun {
                run,
                started_at,
                pages,
                records_dropped,
                attachments_left,
                message_undelivered,
                records_undelivered,
                records_announced,
                delay_until,
            } => {
                let pages = count(*pages, "page");
                write!(f, "run {run}, started {}, {pages}, is abandoned", shown(*started_at))?;
                if *records_dropped > 0 {
                    let records = count(*records_dropped, "record");
                    write!(f, "; {records} that no message has announced: dropped here, and fetched again")?;
                }
                if let Some(message) = message_undelivered {
                    let records = count(*records_undelivered, "record");
                    write!(f, "; message {message}, which may or may not have been accepted, has {records}")?;
                }
                if *records_announced > 0 {
                    let records = count(*records_announced, "record");
                    write!(f, "; announced by it, and again by the next run: {records}")?;
                }
                if *attachments_left > 0 {
                    write!(f, "; not transferred: {}", count(*attachments_left, "attachment"))?;
                }
                if let Some(until) = delay_until {
                    write!(
                        f,
                        "; the source wanted no requests until {}: the next run asks at once",
                        shown(*until)
                    )?;
                }
                Ok(())
            }
            Self::Watermark { from, to } => {
                write!(f, "watermark: {} -> {}", shown_time(from.as_ref()), shown_time(to.as_ref()))
            }
            Self::Bounds { from, to } => {
                let pair = |[oldest, newest]: &[Option<DateTime<Utc>>; 2]| {
                    if oldest.is_none() && newest.is_none() {
                        return "none".to_owned();
                    }
                    // A run that extracted everything began there.
                    let oldest = match oldest {
                        Some(oldest) if *oldest == DateTime::UNIX_EPOCH => "the beginning".to_owned(),
                        oldest => shown_time(oldest.as_ref()),
                    };
                    format!("{oldest} to {}", shown_time(newest.as_ref()))
                };
                write!(f, "windows of finished runs: {} -> {}", pair(from), pair(to))
            }
            Self::Bookmark { stream, from, to } => {
                let (from, to) = (shown_or_none(from.as_ref()), shown_or_none(to.as_ref()));
                write!(f, "bookmark of stream {stream}: {from} -> {to}")
            }
            Self::Cursor { stream, from, to } => {
                let (from, to) = (shown_or_none(from.as_ref()), shown_or_none(to.as_ref()));
                write!(f, "stream {stream} begins with the cursor: {from} -> {to}")
            }
            Self::ForgetAttachments { known, failed } => write!(
                f,
                "forgotten: {}, {failed} of them failed: the next run extracts them again",
                count(*known, "known attachment")
            ),
            Self::Requeue { attachments, reasons } => {
                write!(f, "queued again: {}", count(*attachments, "failed attachment"))?;
                for (reason, count) in reasons {
                    write!(f, "; {count}: {}", cut::to_chars(reason, SHOWN_CHARS))?;
                }
                Ok(())
            }
            Self::DropValues { keys } => {
                write!(f, "the extractor's own values are dropped: {}", some_of(keys))
            }
            Self::ForgetUnit { runs, ledger_runs, attachments } => write!(
                f,
                "the whole unit is forgotten: {} begun, {ledger_runs} in the ledger, {}",
                count(*runs, "run"),
                count(*attachments, "attachment")
            ),
            Self::Import { rows, exported_at, replaces } => {
                let replaces = if *replaces { ", in place of what is there" } else { "" };
                write!(f, "imported: {}, exported {exported_at}{replaces}", count(*rows, "row"))
            }
        }
    }
}

impl Plan {
    /// The plan in words, a line for each thing; without its act.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.changes.iter().map(ToString::to_string).collect();
        if lines.is_empty() {
            lines.push("nothing changes".to_owned());
        }
        if let Some(next) = &self.next_run {
            lines.push(match next.since {
                Some(since) => format!(
                    "the next run asks for records modified since {}, less the overlap that the extractor sets",
                    shown(since)
                ),
                None => "the next run asks for everything".to_owned(),
            });
            if !next.read_since.is_empty() {
                let of_type = |(item_type, records): (&String, &u64)| format!("{item_type}: {records}");
                let by_type: Vec<_> = next.read_since.iter().map(of_type).collect();
                let records = count(next.read_since.values().sum(), "record");
                let by_type = by_type.join(", ");
                lines.push(match next.since {
                    Some(_) => format!(
                        "about {records} will be asked for again, as many as the runs since then have read ({by_type})"
                    ),
                    None => format!(
                        "the runs that are known have read {records} ({by_type}), a record counted in each run that read it"
                    ),
                });
            }
            for NextStream { stream, bookmark, cursor } in &next.streams {
                let mut line = format!("the next run begins stream {stream}");
                match cursor {
                    Some(cursor) => {
                        let _ = write!(line, " with the cursor {}", shown_json(cursor));
                    }
                    None => line.push_str(" at its beginning"),
                }
                if let Some(bookmark) = bookmark {
                    let _ = write!(line, ", with the bookmark {}", shown_json(bookmark));
                }
                lines.push(line);
            }
            if next.rejected > 0 {
                lines
                    .push(format!("the next run asks for {} again", count(next.rejected, "rejected record")));
            }
            if next.attachments_requeued > 0 {
                let attachments = count(next.attachments_requeued, "failed attachment");
                lines.push(format!("the next run tries {attachments} again"));
            }
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines
    }
}
