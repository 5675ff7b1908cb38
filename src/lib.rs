//! Durable, resumable state for data extractors. A page of records and the cursor after it are stored in one
//! transaction, and from then on every record is announced exactly once, wherever and however often the process dies.
//!
//! What you do with it:
//!
//! - **Extract for Airdrop.** Implement [`airdrop::Extractor`] (pages, metadata, files), and give each event to
//!   [`airdrop::serve`]. Uploads, retries, deadlines and the one message per event are done there.
//! - **Extract for another platform.** Open a [`Store`], [begin](SyncUnit::begin) a run, upload what [`Run::batches`]
//!   yields, and [finish](Run::finish) the run: the loop below.
//! - **Check records** against their metadata before they are sent: [`record`].
//! - **Test it.** `testing::Explore` (feature `testing`) kills your extractor at every step, and counts what arrived.
//! - **Inspect a store**, also one whose owner was killed, and mend it: with the program `highwater-dump` (feature
//!   `cli`), or with `inspect` and `mend` (feature `inspect`).
//!
//! One file holds the state of any number of sync units. The crate is not a scheduler, not a client of anybody's API,
//! not a queue between machines, and not a place for the records: their bytes are dropped as soon as the platform has
//! them.
//!
//! # The loop
//!
//! ```
//! use highwater::Store;
//! # use highwater::{Page, Record, Result};
//! # use std::collections::BTreeMap;
//! # struct Tracker;
//! # impl Tracker {
//! #     fn issues(&self, _since: Option<chrono::DateTime<chrono::Utc>>, cursor: Option<u32>) -> Result<Page<u32>> {
//! #         let number = cursor.unwrap_or(1);
//! #         let page = if number < 3 { Page::more(number + 1) } else { Page::last() };
//! #         Ok(page.record("issues", Record::new(format!("ISSUE-{number}"), &serde_json::json!({"number": number}))?))
//! #     }
//! # }
//! # struct Platform(BTreeMap<String, Vec<u8>>);
//! # impl Platform {
//! #     fn upload(&mut self, key: String, bytes: Vec<u8>) -> Result<String> {
//! #         self.0.insert(key.clone(), bytes);
//! #         Ok(key)
//! #     }
//! # }
//! # let (tracker, mut platform) = (Tracker, Platform(BTreeMap::new()));
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("state.redb");
//! let store = Store::open(path)?;
//! let run = store.sync_unit("acme/tickets")?.begin()?; // resumes an unfinished run
//! let since = run.since(); // when the last finished run started; None: extract everything
//! for batch in run.batches("issues", |cursor| tracker.issues(since, cursor)) {
//!     let batch = batch?; // durable, under a key that stays the same
//!     let id = platform.upload(batch.key().to_string(), batch.bytes()?)?; // idempotent by key
//!     batch.acknowledge(id)?; // never yielded again
//! }
//! run.finish()?; // now `since` moves
//! # assert_eq!(platform.0.len(), 1);
//! # let next = store.sync_unit("acme/tickets")?.begin()?;
//! # assert!(next.since().is_some() && !next.resumed());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It is safe to leave the loop early, to drop a batch, and to die: each has the same effect. The next `begin`
//! resumes the run, and the next [`Run::batches`] first yields what was not acknowledged. If an upload is not
//! idempotent, or the platform has a separate step to confirm it, [`Batch::uploaded`] stores the id between the two.
//!
//! # Words
//!
//! | word | meaning |
//! | --- | --- |
//! | sync unit | what is synced on its own (a project, a repository, a board); all state belongs to one |
//! | run | one extraction of a sync unit, from `begin` to `finish`, over any number of lives of the process |
//! | stream, page, cursor | one listing of the source; what one fetch of it returns; where the next fetch starts |
//! | reject | leave a bad record out, so that the next run requests it again |
//! | stage | the one transaction that stores a page's records and the cursor after it |
//! | batch, artifact | records of one item type as gzipped JSON Lines; the same, once the platform has given it an id |
//! | confirm, announce, acknowledge | the platform links an artifact to the run; a message names it; both, in the caller's loop |
//! | watermark, bookmark | when the last finished run started; what a stream left for the next run to start from |
//! | event, message, seal | what Airdrop sends; the one answer to it; to store the answer's bytes before it is sent |
//!
//! # Guarantees
//!
//! From the moment a page is staged, for a run that is not abandoned:
//!
//! - **G1, nothing staged is lost.** Each staged record is in exactly one announced batch. (If a run is abandoned,
//!   the next run fetches again what it had not announced: the watermark has not moved.)
//! - **G2, nothing is announced twice.** A batch is acknowledged once, or named by exactly one message. A message is
//!   sealed before it is sent; if it is sent again, it has the same bytes and the same key.
//! - **G3, confirmed is what is announced**, at every accepted DONE, and at every accepted ERROR before which the
//!   outcome of each confirm could be determined. So G1 and G2 hold whether a platform counts announced artifacts or
//!   confirmed ones. (The protocol does not confirm external sync units. If the platform gives up a run, artifacts
//!   that were confirmed after its last accepted message are in no message; the next run delivers them under new
//!   ids.)
//! - **G4, the watermark never runs ahead.** It moves only when a run finishes, to the moment when that run
//!   *started*, in its first life. A stream's bookmark moves with it.
//! - **G5, a kill costs little**: the pages that were being fetched or stored, and those that came meanwhile or in the
//!   last 50 ms, are fetched again ([`Serve::ahead`](airdrop::Serve::ahead) has the exact figures). A worker without a disk
//!   ([`Serve::checkpoints`](airdrop::Serve::checkpoints)) repeats everything after its last checkpoint. Every
//!   invocation that lives long enough for one page makes progress.
//!
//! # Not claimed
//!
//! - **N1.** A message is sent again if its answer was lost. The receiver must recognise it, by its bytes or its key
//!   (`Idempotency-Key`).
//! - **N2.** A kill during an upload leaves at most one upload per call in flight that nobody confirms or announces;
//!   without a disk, all uploads since the last checkpoint.
//! - **N3.** The platform must keep its side of the protocol: an event that is delivered again has the same
//!   `request_id`; confirming twice is the same as once; CONTINUE is sent only after a PROGRESS or DELAY of ours was
//!   accepted.
//! - **N4.** A lost store file cannot be restored, unless a checkpoint is kept with the platform. A CONTINUE of a run
//!   that the store does not know is answered with ERROR, and the next START extracts everything. An old copy of the
//!   file does not know what was announced since it was made.
//! - **N5.** A disk must not report a sync before the data is durable. The store detects damage (every value has a
//!   checksum), but cannot restore what was never written.
//! - **N6.** Two workers without a disk must not share a sync unit. The platform keeps what was saved last, and has
//!   no compare-and-set. The loser is fenced at its next save; between its read and that save it can repeat or lose
//!   records. [`Serve::settle_after_takeover`](airdrop::Serve::settle_after_takeover) waits for that window to pass.
//! - **N7.** Once per run does not mean once forever: what was modified after the last finished run *started* is
//!   announced again by the next run.
//!
//! # More documentation
//!
//! The folder `docs` of the repository has the guide, which builds a connector step by step, recipes, and a page each
//! on Airdrop, attachments, operations, the format, the proof, the benchmarks, and the design with the table of
//! modules.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::print_stdout,
        clippy::print_stderr,
        // Time and chance come from `Clock` and seeds (see `clippy.toml`), so that every run can be replayed.
        clippy::disallowed_methods
    )
)]

// Layer 0: ids, limits and pure transitions; time; the one error type.
mod clock;
mod cut;
mod error;
#[cfg(feature = "html")]
#[doc(hidden)]
pub mod html;
mod model;
mod transfer;

// Layer 1: what a record is; JSON Lines and gzip.
mod artifact;
pub mod record;

// Layers 2 and 3: what is stored.
mod store;

// Layers 1 and 4: Airdrop.
pub mod airdrop;

// Layer 5: proof.
#[cfg(feature = "testing")]
pub mod testing;

pub use artifact::Level;
pub use clock::{Clock, SystemClock, VirtualClock};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use model::{ArtifactId, ItemType, Phase, RunId, SyncUnitId};
pub use record::Record;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use store::Disk;
pub use store::{
    AttachmentCounts, Attachments, Batch, BatchKey, Batches, FailedAttachment, LeftOutCounts, Page,
    QueuedAttachment, RejectedRecord, Run, Store, StoreOptions, SyncUnit,
};
#[cfg(feature = "inspect")]
pub use store::{inspect, mend};

/// The limits of everything that is stored or sent.
pub mod limits {
    pub use crate::model::{
        BATCH_BYTES_MAX, BATCH_ITEMS, CHECKPOINT_BYTES_MAX, CHECKPOINT_BYTES_SOFT,
        CHECKPOINT_STATE_BYTES_MAX, CHILD_DATA_BYTES_MAX, CHILD_LISTINGS_BYTES_MAX, CHILD_LISTINGS_MAX,
        CLOCK_AHEAD_MAX, CURSOR_BYTES_MAX, EDGE_BYTES_MAX, EDGE_CHECKPOINT_BYTES_MAX,
        EXTERNAL_SYNC_UNIT_BATCH_ITEMS, FINDING_BYTES_MAX, FINDING_KINDS_MAX, FINDINGS_KEPT, ID_BYTES_MAX,
        LEDGER_RUNS_MAX, MESSAGE_BYTES_MAX, MESSAGE_BYTES_SOFT, ONCE_BYTES_MAX, ONCE_CHECKPOINT_BYTES_MAX,
        OPEN_BATCHES_MAX, REFETCH_IDS, REJECTED_FEW, REJECTED_IDS_MAX, REJECTED_JSON_BYTES_MAX,
        REJECTED_KEPT_MAX, REJECTED_PERCENT_MAX, VALUE_BYTES_MAX,
    };
}

/// The examples of the README and of the pages that need no other crate are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/attachments.md")]
mod pages {}
