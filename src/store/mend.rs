//! Mending a unit by hand: rewind, set a cursor, reset, queue attachments again, abandon, forget, move to another
//! store.
//!
//! Each act is *planned* first: a [`Plan`] is made from the rows and changes nothing. It lists everything that would
//! change, and what the next run would then ask the source for. [`Store::mend`](crate::Store::mend) carries out a
//! plan in one transaction. That makes the plan again and compares: it does exactly what was shown, or nothing. A
//! kill leaves the store as before or as after.
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
//! # What is guaranteed
//!
//! - A run that is open when its unit is rewound is abandoned in the same transaction: no later message of it
//!   announces anything, and its events are refused from then on.
//! - A rewind restores the watermark, the bounds and the bookmarks that a finished run left. The last 8 finished runs
//!   have all of them; of older ones only the watermark is known, and bookmarks are dropped. To extract a window
//!   twice is harmless; to skip it is not.
//! - An extractor's own values stay as they are, unless a reset is to drop them.
//! - A unit whose state is kept with the platform cannot be mended in a store, which is only a copy of it: see
//!   [`SavedState`](crate::airdrop::SavedState).
//! - What was done is kept, with the time and the name of who did it, and outlives the unit.

mod compact;
mod left;
mod plan;
mod portable;
mod shape;
mod unit;

pub use compact::Compaction;
pub use plan::{Act, Mend, NextRun, NextStream, Plan, PlannedChange, Requeue, RewindTo};
pub use portable::UnitFile;
