//! What a connector's author writes: where units, metadata and pages come from.

use std::fmt;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{BoxError, panic_text};
use crate::record::Attachment;
use crate::store::Page;

use super::check::CheckPolicy;
use super::context::Context;
use super::listing::Listing;
use super::message::ErrorCode;

/// A source of records, as `serve` drives it.
///
/// A method is called again, with the same arguments, after any failure or kill: it must not depend on how often.
/// `Sync`: pages and attachments may be asked for by several threads at once, so what an extractor changes while it is
/// asked (a connection, a count) stands behind a `Mutex` or an atomic.
pub trait Extractor: Sync {
    /// The resume position of a listing. It is stored as JSON, so give new fields `#[serde(default)]`.
    type Cursor: Serialize + DeserializeOwned + Send;

    /// Lists what can be synced.
    ///
    /// # Errors
    /// Whatever went wrong; the platform is told.
    fn external_sync_units(&self, context: &Context<'_>) -> Result<Vec<ExternalSyncUnit>, SourceError>;

    /// Describes the record types: the external domain metadata document. [`Metadata`](crate::record::Metadata) is a
    /// typed way to write one.
    ///
    /// Unless [`Extractor::check_policy`] is [`CheckPolicy::Off`] it is asked for once more in each invocation that fetches
    /// a page: records are checked by what it says then. If it fails there, that is as if the page had.
    ///
    /// # Errors
    /// Whatever went wrong; the platform is told.
    fn metadata(&self, context: &Context<'_>) -> Result<Value, SourceError>;

    /// Says how the external system's records become the platform's: the connector's *initial domain mapping*, its own
    /// JSON document. Asked for once per version of the snap-in, in the first phase of a run and before anything else
    /// of it, and installed then. None unless overridden.
    ///
    /// Installing it twice is the same as once, and it is so after a kill between the installing and its being
    /// remembered.
    ///
    /// # Errors
    /// Whatever went wrong; the platform is told, and asks again.
    fn initial_domain_mapping(&self, context: &Context<'_>) -> Result<Option<Value>, SourceError> {
        let _ = context;
        Ok(None)
    }

    /// Says what is done about records that are not what [`Extractor::metadata`] declares. Nothing, unless this is
    /// written.
    ///
    /// It is the extractor's, not a setting of [`Serve`](super::Serve): so that its author's tests, the explorer and the
    /// worker in production all do the same.
    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Off
    }

    /// Names the streams of the data phase, in the order in which they are extracted. The same all through a run: it is
    /// asked in each of its invocations, and a stream that is missing there is left where it stands.
    ///
    /// # Errors
    /// Whatever went wrong; the platform is told, as of a page.
    fn streams(&self, context: &Context<'_>) -> Result<Vec<String>, SourceError>;

    /// Fetches one page of a listing; `cursor` is what the page before it left, `None` at its start in a run.
    ///
    /// # Errors
    /// Whatever went wrong; nothing of the page is stored. [`SourceError::RateLimited`] is waited for, or ends the invocation
    /// with DELAY, as [`Serve::wait_up_to`](super::Serve::wait_up_to) says; everything else ends it with ERROR.
    fn page(
        &self,
        context: &Context<'_>,
        listing: &Listing,
        cursor: Option<Self::Cursor>,
    ) -> Result<Page<Self::Cursor>, SourceError>;

    /// Opens an attachment that a page of this run named, to stream it to the platform. Called from several threads at
    /// once; the reader is read in the thread that opened it, and a read that blocks for ever holds the invocation up:
    /// give it a time-out.
    ///
    /// # Errors
    /// What became of the attempt. Unless it is written for an extractor, every attachment counts as denied.
    fn open_attachment(
        &self,
        context: &Context<'_>,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let _ = context;
        let reason = format!("this extractor does not open attachments such as {}", attachment.id);
        Err(AttachmentError::Denied { reason })
    }
}

/// The bytes of an attachment.
#[non_exhaustive]
pub struct AttachmentBody {
    /// The bytes, from the first to the last.
    pub reader: Box<dyn Read + Send>,
    /// How many there are, if the source says so: 1 byte to 2 GiB. One that has others is not uploaded.
    pub length_bytes: Option<u64>,
    /// Their media type, if the source says so; else that of the attachment's metadata.
    pub content_type: Option<String>,
}

impl AttachmentBody {
    /// Bytes of unknown number and type.
    pub fn new(reader: impl Read + Send + 'static) -> Self {
        Self { reader: Box::new(reader), length_bytes: None, content_type: None }
    }

    /// Says how many bytes there are.
    #[must_use]
    pub fn length(mut self, bytes: u64) -> Self {
        self.length_bytes = Some(bytes);
        self
    }

    /// Says their media type.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }
}

impl fmt::Debug for AttachmentBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachmentBody")
            .field("length_bytes", &self.length_bytes)
            .field("content_type", &self.content_type)
            .finish_non_exhaustive()
    }
}

/// Why an attachment was not opened. Any error turns into [`AttachmentError::Temporary`] with `?`.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachmentError {
    /// The source asked to be left alone. A short wait is waited for, as
    /// [`Serve::wait_up_to`](super::Serve::wait_up_to) says, for a longer one the phase ends with DELAY; neither counts
    /// against the attachment.
    RateLimited {
        /// For how long; more than 24 hours counts as 24 hours.
        after: Duration,
    },
    /// It is not there any more: given up, and listed as failed.
    Gone {
        /// What the source said.
        reason: String,
    },
    /// It may not be read: given up, and listed as failed.
    Denied {
        /// What the source said.
        reason: String,
    },
    /// It may be there later: tried again after a while, a few times.
    Temporary {
        /// What went wrong.
        source: BoxError,
    },
}

impl<E: Into<BoxError>> From<E> for AttachmentError {
    fn from(source: E) -> Self {
        AttachmentError::Temporary { source: source.into() }
    }
}

/// One container that a user can choose to sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExternalSyncUnit {
    /// Its id in the external system.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// About how many items it holds, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_count: Option<u64>,
    /// The item type that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_type: Option<String>,
}

impl ExternalSyncUnit {
    /// One of which is not known how many items it holds.
    pub fn new(id: impl Into<String>, name: impl Into<String>, description: impl Into<String>) -> Self {
        let (id, name, description) = (id.into(), name.into(), description.into());
        Self { id, name, description, item_count: None, item_type: None }
    }

    /// Says about how many items of which type it holds.
    #[must_use]
    pub fn items(mut self, count: u64, item_type: impl Into<String>) -> Self {
        self.item_count = Some(count);
        self.item_type = Some(item_type.into());
        self
    }
}

/// Why the source gave no page. Any error turns into [`SourceError::Failed`] with `?`.
#[derive(Debug)]
#[non_exhaustive]
pub enum SourceError {
    /// The source asked to be left alone for so long.
    RateLimited {
        /// How long; more than 24 hours counts as 24 hours.
        after: Duration,
    },
    /// Anything else.
    Failed {
        /// The platform's name for it, where it has one.
        code: Option<ErrorCode>,
        /// The cause, whose text the platform is told.
        source: BoxError,
    },
}

impl SourceError {
    /// A failure that the platform has a name for.
    pub fn coded(code: ErrorCode, source: impl Into<BoxError>) -> Self {
        SourceError::Failed { code: Some(code), source: source.into() }
    }
}

impl<E: Into<BoxError>> From<E> for SourceError {
    fn from(source: E) -> Self {
        SourceError::Failed { code: None, source: source.into() }
    }
}

/// Calls the extractor; a panic in it is its failure.
pub(super) fn caught<T, E: From<String>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(E::from(format!("the extractor panicked: {}", panic_text(panic.as_ref()))))
    })
}
