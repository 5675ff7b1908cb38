//! A report as a listing: one object for each thing, for scripts that read line by line.

use serde::Serialize;

use super::attachments::AttachmentReport;
use super::messages::{DeathReport, EventReport, MessageReport};
use super::past_runs::LedgerReport;
use super::records::{BatchReport, FindingsReport, TypeReport};
use super::rejected::RejectedReport;
use super::report::{
    BookmarkReport, ChildStreamReport, Report, RunReport, StreamReport, UnitReport, ValueReport,
};
use super::standing::{Alert, Standing};

/// One object of a listing: `kind` says which.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Line<'a> {
    /// A sync unit; the following objects belong to it, until the next unit.
    Unit(&'a UnitReport),
    /// Its newest run.
    Run(&'a RunReport),
    /// A stream of that run.
    Stream(&'a StreamReport),
    /// The child listings of that run, of one stream.
    ChildStream(&'a ChildStreamReport),
    /// An item type of that run.
    ItemType(&'a TypeReport),
    /// The findings of one kind in the records of that run.
    Findings(&'a FindingsReport),
    /// A bookmark.
    Bookmark(&'a BookmarkReport),
    /// A value of the extractor's own.
    Value(&'a ValueReport),
    /// A sealed message.
    Message(&'a MessageReport),
    /// A run that is over.
    Ledger(&'a LedgerReport),
    /// A batch.
    Batch(&'a BatchReport),
    /// An attachment that is not settled.
    Attachment(&'a AttachmentReport),
    /// A rejected record.
    Rejected(&'a RejectedReport),
    /// An event.
    Event(&'a EventReport),
    /// A life of a run that ended without an answer.
    Death(&'a DeathReport),
    /// The state of a unit at the moment of reading.
    Standing(&'a Standing),
    /// An alert.
    Alert(&'a Alert),
}

impl Report {
    /// The report as a listing: one object for each thing, the unit first.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("state.redb");
    /// use highwater::{Store, inspect::Snapshot};
    /// drop(Store::open(&path)?.sync_unit("acme/tickets")?.begin()?);
    ///
    /// let mut snapshot = Snapshot::open(&path)?;
    /// let report = snapshot.unit("acme/tickets", 5)?.expect("it was begun");
    /// let kinds = report.lines().map(|line| serde_json::to_value(line).unwrap()["kind"].clone());
    /// assert_eq!(kinds.collect::<Vec<_>>(), ["unit", "run"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        std::iter::once(Line::Unit(&self.unit))
            .chain(self.run.iter().map(Line::Run))
            .chain(self.streams.iter().map(Line::Stream))
            .chain(self.child_streams.iter().map(Line::ChildStream))
            .chain(self.item_types.iter().map(Line::ItemType))
            .chain(self.findings.iter().map(Line::Findings))
            .chain(self.bookmarks.iter().map(Line::Bookmark))
            .chain(self.values.iter().map(Line::Value))
            .chain(self.messages.iter().map(Line::Message))
            .chain(self.ledger.iter().map(Line::Ledger))
            .chain(self.failed_attachments.iter().map(Line::Attachment))
            .chain(self.deaths.iter().map(Line::Death))
    }
}
