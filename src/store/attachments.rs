//! The queue of attachments: named while data is extracted, worked off days later, each settled once.
//!
//! A record of item type `attachments` that is staged in the data phase is queued in the same transaction, under the
//! number of its line among all such lines of the run. Once per (id, parent id) and run: named again, it is worked off
//! at its last place. One that a finished run settled is queued anew only if its url, name or date changed.
//!
//! | step | stored by it | killed right after it, the next life |
//! | --- | --- | --- |
//! | staged | the attachment, pending | streams it |
//! | uploaded | the artifact id of its bytes | confirms that id, streams nothing |
//! | retry | tries, why, when the next is due | tries again, then |
//! | settled | gone from the queue; its line for the platform is in an open batch | goes on with the others |
//! | failed | gone from the queue, listed with the reason | goes on with the others |
//!
//! A transaction takes in whatever came to an end since the one before it. Each attachment is a row of its own, and a
//! settled one leaves the queue, so none of these depends on how many there are.
//!
//! Without the store file the queue is made again from the artifacts in which the run announced the metadata. All lines
//! of a run are known before its first attachment is streamed, and an attachment is worked off at the last of them; so
//! what lies before the checkpoint's position need not be known again, but for the unsettled few that it names.

mod failed;
pub(super) mod queue;
mod queued;
pub(super) mod rebuild;
pub(super) mod settle;

pub use failed::FailedAttachment;
pub use queue::AttachmentCounts;
pub use queued::{Attachments, QueuedAttachment};
pub(crate) use settle::{Pending, Settling, UNSETTLED_MAX};
