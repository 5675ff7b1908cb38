//! The queue of attachments. Records of the data phase name them, the attachments phase transfers them (perhaps days
//! later), and each is settled once.
//!
//! A record of item type `attachments` that is staged in the data phase is queued in the same transaction. Its number
//! in the queue is the number of its line among all such lines of the run. Within a run, an (id, parent id) pair is
//! queued once: if it is named again, it moves to the later place. An attachment that a finished run has settled is
//! queued again only if its url, name or date has changed.
//!
//! | step | what it stores | what the next life does if the process is killed right after it |
//! | --- | --- | --- |
//! | staged | the attachment, pending | streams it |
//! | uploaded | the artifact id of its bytes | confirms that id, streams nothing |
//! | retry | tries, why, when the next is due | tries again at that time |
//! | settled | the attachment leaves the queue; its line for the platform is in an open batch | goes on with the others |
//! | failed | the attachment leaves the queue and is listed with the reason | goes on with the others |
//!
//! One transaction stores the outcome of every attachment that ended since the transaction before. Each attachment is
//! a row of its own, and a settled one leaves the queue, so the cost of a step does not depend on how many
//! attachments there are.
//!
//! Without the store file, the queue is rebuilt from the artifacts in which the run announced the metadata. All lines
//! of a run are known before its first attachment is streamed, and each attachment is processed at the last line that
//! names it. So lines before the checkpoint's position are not needed again, except those of the few unsettled
//! attachments that the checkpoint names.

mod failed;
pub(super) mod queue;
mod queued;
pub(super) mod rebuild;
pub(super) mod settle;

pub use failed::FailedAttachment;
pub use queue::AttachmentCounts;
pub use queued::{Attachments, QueuedAttachment};
pub(crate) use settle::{Pending, Settling, UNSETTLED_MAX};
