//! Reading a store without owning it: what it contains, and whether it is undamaged.
//!
//! Reading never writes to the file, takes no lock on it, and never makes another process fail to open it. How the
//! file is read depends on its owner; [`Source`] says which way it was.
//!
//! - **Closed, or left open by an owner that was killed:** in place, through an overlay that keeps in memory the few
//!   pages that recovering the file writes. After every read it checks whether somebody has opened or changed the
//!   file since. If so, what was read is dropped and read again from a copy, so the figures always belong to one
//!   moment.
//! - **Open elsewhere:** from a temporary copy. The owner may write while it is made, so the copy is used only if
//!   every page that its root leads to has the checksum that the root implies, which makes it one committed moment.
//!   Otherwise it is made again, a limited number of times.
//!
//! The contents of a file that is open, or was left open, may not be durable yet: a power failure can undo what its
//! owner has written and not synced. So open the store before you act on it; [`Store::open`](crate::Store::open)
//! syncs the file first.
//!
//! Every page is checked before anything is read from a file, also in place. Figures from a damaged file would be
//! guesses, so such a file is refused with [`Error::Corrupt`](crate::Error::Corrupt), and [`check`] says what is
//! wrong with it.
//!
//! ```
//! use highwater::{Page, Record, Store, inspect::Snapshot};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("state.redb");
//! let store = Store::open(&path)?;
//! let run = store.sync_unit("acme/tickets")?.begin()?;
//! let fetch = |_: Option<u32>| -> highwater::Result<Page<u32>> {
//!     Ok(Page::last().record("issues", Record::new("ISSUE-1", &serde_json::json!({}))?))
//! };
//! let batch = run.batches("issues", fetch).next().expect("one record, one batch")?;
//!
//! let mut snapshot = Snapshot::open(&path)?;                        // the store is open still
//! for report in snapshot.units(5) {
//!     let report = report?;
//!     assert_eq!(report.item_types[0].read, 1);
//!     assert_eq!(report.item_types[0].batches_staged.items, 1);     // not acknowledged yet
//! }
//! assert!(highwater::inspect::check(&path)?.findings.is_empty());
//! # drop(batch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attachments;
mod check;
mod check_run;
mod edge;
mod find;
mod line;
mod messages;
mod once;
mod overlay;
mod past_runs;
mod reasons;
mod records;
mod rejected;
mod report;
mod scan;
mod snapshot;
mod spent;
mod standing;
#[cfg(test)]
mod tests;
mod words;

pub use attachments::{AttachmentReport, AttachmentsReport, FoundAttachment};
pub use check::{CheckFinding, CheckReport, check};
pub use find::{Found, FoundConfirmed, FoundPlace, FoundRejected, FoundRun};
pub use line::Line;
pub use messages::{DeathReport, EventReport, MessageReport};
pub use past_runs::{LedgerReport, LedgerTypeReport};
pub use reasons::Reasons;
pub use records::{BatchCounts, BatchReport, FindingsReport, TypeReport};
pub use rejected::RejectedReport;
pub use report::{
    BookmarkReport, ChildStreamReport, MinuteReport, MostReadReport, Report, RunReport, StreamReport,
    UnitReport, ValueReport, is_internal,
};
#[doc(hidden)]
pub use snapshot::copy_file;
pub use snapshot::{Attachments, Conversation, Snapshot, Source, Units};
pub use spent::TimeSpent;
pub use standing::{Alert, Rate, Standing};
pub use words::{AlertKind, AttachmentState, BatchStage, MessageFate, MessageKind, RejectedStage, RunStatus};
pub(in crate::store) use words::{count, optional_time, time};
