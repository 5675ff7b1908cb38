//! Mending a unit by hand: set back, set to a cursor, reset, given up, forgotten, moved to another store.
//!
//! Each act is *planned* first: a [`Plan`] is made from the rows and changes nothing. It says all that would change, and what
//! the next run would then ask the source for. [`Store::mend`](crate::Store::mend) carries a plan out in one transaction,
//! which makes the plan again and compares, so what was shown is what is done, or nothing is. A kill leaves the store as
//! before or as after.
//!
//! ```
//! use highwater::mend::{Mend, RewindTo};
//! use highwater::{Page, Record, Result, Store};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("state.redb");
//! # let fetch = |_: Option<u32>| -> Result<Page<u32>> {
//! #     Ok(Page::last().record("issues", Record::new("ISSUE-1", &serde_json::json!({}))?))
//! # };
//! let store = Store::open(path)?;
//! let unit = store.sync_unit("acme/tickets")?;
//! let mut runs = Vec::new();
//! for _ in 0..2 {
//!     let run = unit.begin()?;
//!     for batch in run.batches("issues", fetch) {
//!         let batch = batch?;
//!         let key = batch.key().to_string();
//!         batch.acknowledge(key)?;
//!     }
//!     runs.push((run.id().to_string(), run.started_at()));
//!     run.finish()?;
//! }
//!
//! let (first, started_at) = runs.swap_remove(0);
//! let plan = store.plan("acme/tickets", &Mend::Rewind { to: RewindTo::Run(first) })?;
//! assert_eq!(plan.next_run.as_ref().unwrap().since, Some(started_at));
//! store.mend(&plan, "who reads this")?;
//! assert_eq!(unit.begin()?.since(), Some(started_at));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What may be relied on
//!
//! - A run that is open when its unit is set back is abandoned in the same transaction: what it had announced is announced by
//!   no later message of it, and its events are refused from then on.
//! - A rewind gives back the watermark, the bounds and the bookmarks that a finished run left: all of them of the last 8
//!   finished runs; of older ones the watermark alone, and bookmarks are dropped. To extract a window twice is harmless, to
//!   skip it is not.
//! - What an extractor keeps for itself (its values) stays as it is, unless a reset is told to drop it.
//! - A unit whose state is kept with the platform is not mended in a store, which is only a copy of it: see
//!   [`SavedState`](crate::airdrop::SavedState).
//! - What was done is kept with the time and with who did it, and outlives the unit.

mod compact;
mod left;
mod plan;
mod portable;
mod unit;

pub use compact::Compaction;
pub use plan::{Act, Mend, NextRun, NextStream, Plan, PlannedChange, Requeue, RewindTo};
pub use portable::UnitFile;
