//! What is stored: sync units, their runs, and the iterators over them.

mod attachments;
pub(crate) mod backend;
mod batches;
mod checkpoint;
mod child_listings;
mod codec;
mod conversation;
mod cursors;
mod deaths;
mod digest;
mod disk;
mod edge;
mod findings;
#[cfg(feature = "inspect")]
pub mod inspect;
mod kept;
mod left_out;
mod lifecycle;
mod lines;
#[cfg(feature = "inspect")]
pub mod mend;
mod migrate;
mod most_read;
mod notes;
mod once;
mod open;
mod page;
mod rejected;
mod rejection;
mod rows;
mod run_handle;
mod tables;
mod uploads;
mod used_ids;

pub(crate) use attachments::rebuild::InheritedLine;
pub use attachments::{AttachmentCounts, Attachments, FailedAttachment, QueuedAttachment};
pub(crate) use attachments::{Pending, Settling, UNSETTLED_MAX};
pub(crate) use batches::staging::{Committed, CommittedPage, PageOf, ReadyPage, make_ready_in_order};
pub(crate) use batches::states::{BatchInfo, BatchSettling, UnsettledBatch};
pub use batches::{Batch, BatchKey, Batches};
pub(crate) use checkpoint::{CHECKPOINT_KEY, Checkpoint, Position, Room};
pub(crate) use child_listings::Child;
pub(crate) use conversation::{Accepted, Incoming, Sealing, StoredMessage, message_key_text};
pub(crate) use cursors::CursorWatch;
#[cfg(feature = "testing")]
pub use disk::Disk;
pub use left_out::LeftOutCounts;
pub(crate) use lifecycle::Deletion;
pub(crate) use lines::Lines;
pub(crate) use notes::{Inherited, InheritedRun, InheritedStart, LEFT_ATTACHMENTS, Standing};
pub use open::{Store, StoreOptions, SyncUnit};
pub use page::Page;
#[cfg(feature = "testing")]
pub(crate) use page::PageRecords;
pub use rejected::RejectedRecord;
pub(crate) use rejected::refetched;
pub(crate) use rejection::Rejection;
pub(crate) use rows::UnderRow;
pub(crate) use rows::{MessageKind, WindowRow};
pub use run_handle::Run;
