//! What a connector's author implements: the sources of units, metadata, pages and files.

use std::fmt;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::panic_text;
use crate::record::Attachment;
use crate::store::Page;

use super::check::CheckPolicy;
use super::context::Context;
use super::listing::Listing;
use super::source_error::{AttachmentError, SourceError};

/// A source of records: what a connector's author implements, and [`serve`](super::serve()) calls.
///
/// After any failure or kill, a method is called again with the same arguments. Its result must not depend on how
/// often it was called.
///
/// `Sync`: several threads may call it for pages and attachments at once, so anything that an extractor changes in
/// these calls (a connection, a count) must be behind a `Mutex` or an atomic.
pub trait Extractor: Sync {
    /// The resume position of a listing. It is stored as JSON, so give new fields `#[serde(default)]`.
    type Cursor: Serialize + DeserializeOwned + Send;

    /// Lists what can be synced.
    ///
    /// # Errors
    /// Whatever went wrong. The answer is an ERROR with its text.
    fn external_sync_units(&self, context: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError>;

    /// Describes the record types: the external domain metadata document. [`Metadata`](crate::record::Metadata) is a
    /// typed way to write one.
    ///
    /// Unless [`Extractor::check_policy`] is [`CheckPolicy::Off`], it is also called in each invocation that fetches a
    /// page, to check the records. An error is then an error of the page.
    ///
    /// # Errors
    /// Whatever went wrong. The answer is an ERROR with its text.
    fn metadata(&self, context: &Context) -> Result<Value, SourceError>;

    /// Returns the connector's *initial domain mapping*: a JSON document of its own, which says how its records become
    /// the platform's. It is installed once per version of the snap-in, before anything else in the first phase of a
    /// run. `None` unless overridden.
    ///
    /// After a kill between the install and its commit it is installed again, which is the same as once.
    ///
    /// # Errors
    /// Whatever went wrong. The answer is an ERROR with its text; the next event of the run tries again.
    fn initial_domain_mapping(&self, context: &Context) -> Result<Option<Value>, SourceError> {
        let _ = context;
        Ok(None)
    }

    /// Sets what happens to records that do not match [`Extractor::metadata`]. Nothing is checked, unless overridden.
    ///
    /// This is a method of the extractor and not a setting of [`Serve`](super::Serve), so that the author's tests, the
    /// explorer and the worker in production all do the same.
    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Off
    }

    /// Names the streams of the data phase, in the order in which they are extracted. Called in each invocation of the
    /// phase; return the same names throughout a run. A stream that is missing is not read any further.
    ///
    /// # Errors
    /// Whatever went wrong; answered like an error of a page.
    fn streams(&self, context: &Context) -> Result<Vec<String>, SourceError>;

    /// Fetches one page of a listing. `cursor` is the one that the page before returned; `None` at the listing's start
    /// in a run.
    ///
    /// # Errors
    /// Whatever went wrong. Nothing of the page is stored. [`SourceError::RateLimited`] is waited for, or ends the
    /// invocation with DELAY, as [`Serve::wait_up_to`](super::Serve::wait_up_to) says. After
    /// [`SourceError::Temporary`] the page is fetched again. Everything else ends the invocation with ERROR.
    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<Self::Cursor>,
    ) -> Result<Page<Self::Cursor>, SourceError>;

    /// Whether [`Extractor::refetch`] supports an item type. Unless this is overridden, it supports none: a page that
    /// rejects a record of the type is then answered with ERROR, and nothing of the page is stored.
    fn can_refetch(&self, item_type: &str) -> bool {
        let _ = item_type;
        false
    }

    /// Fetches records that earlier runs rejected, by their ids: at most [`REFETCH_IDS`](crate::limits::REFETCH_IDS)
    /// of one item type. Called before the first stream of a data phase, until each id was requested once in the run.
    ///
    /// The result is a last page without a bookmark. It decides about each id: it contains the record of that type
    /// and id, rejects it again ([`Page::reject`], [`Page::push_or_reject`], or [`CheckPolicy::LeaveOut`]), or marks
    /// it as [gone](Page::gone). If it leaves out an id, the answer is ERROR, and the same ids are requested again.
    /// It may contain other records too, such as the comments of an issue; it must not name child listings.
    ///
    /// A record that passes is announced, and is not requested again once this run has finished.
    ///
    /// ```
    /// use highwater::airdrop::{Context, Extractor, ExternalSyncUnit, Listing, SourceError};
    /// use highwater::record::{Field, Metadata, Normalizer, RecordType};
    /// use highwater::Page;
    /// use serde_json::{Value, json};
    /// # struct Client;
    /// # impl Client {
    /// #     fn issue(&self, _id: &str) -> Result<Option<Value>, std::io::Error> { Ok(None) }
    /// #     fn issues(&self, _cursor: Option<u32>) -> Result<(Vec<Value>, Option<u32>), std::io::Error> { Ok((vec![], None)) }
    /// # }
    /// struct Tracker { client: Client, issues: Normalizer }
    ///
    /// impl Extractor for Tracker {
    ///     type Cursor = u32;
    ///     # fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> { Ok(vec![]) }
    ///     # fn metadata(&self, _: &Context) -> Result<Value, SourceError> { Ok(json!({})) }
    ///     # fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> { Ok(vec!["issues".into()]) }
    ///     fn page(&self, _: &Context, _: &Listing, cursor: Option<u32>) -> Result<Page<u32>, SourceError> {
    ///         let (issues, next) = self.client.issues(cursor)?;
    ///         let mut page = Page::with_next(next);
    ///         for raw in issues {
    ///             page.push_or_reject("issues", &raw, self.issues.normalize(&raw));
    ///         }
    ///         Ok(page)
    ///     }
    ///
    ///     fn can_refetch(&self, item_type: &str) -> bool {
    ///         item_type == "issues"
    ///     }
    ///
    ///     fn refetch(&self, _: &Context, item_type: &str, ids: &[String]) -> Result<Page<u32>, SourceError> {
    ///         let mut page = Page::last();
    ///         for id in ids {
    ///             match self.client.issue(id)? {
    ///                 Some(raw) => page.push_or_reject(item_type, &raw, self.issues.normalize(&raw)),
    ///                 None => page.gone(item_type, id),
    ///             }
    ///         }
    ///         Ok(page)
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of a page. Ids that were decided before stay decided.
    fn refetch(
        &self,
        context: &Context,
        item_type: &str,
        ids: &[String],
    ) -> Result<Page<Self::Cursor>, SourceError> {
        let _ = context;
        Err(format!("this extractor cannot refetch {} rejected records of {item_type}", ids.len()).into())
    }

    /// Opens an attachment that a page of this run named, to stream it to the platform. Called from several threads
    /// at once. The reader is read in the thread that opened it. Give it a time-out: a read that blocks forever
    /// blocks the invocation.
    ///
    /// # Errors
    /// Why it was not opened. Unless overridden, every attachment is denied.
    fn open_attachment(
        &self,
        context: &Context,
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
    /// The number of bytes, if the source says: 1 byte to 2 GiB. A body of another length is not uploaded.
    pub length_bytes: Option<u64>,
    /// The media type, if the source says. Unless set, that of the attachment's metadata is used.
    pub content_type: Option<String>,
}

impl AttachmentBody {
    /// A body of unknown length and type.
    pub fn new(reader: impl Read + Send + 'static) -> Self {
        Self { reader: Box::new(reader), length_bytes: None, content_type: None }
    }

    /// Sets the number of bytes.
    #[must_use]
    pub fn length(mut self, bytes: u64) -> Self {
        self.length_bytes = Some(bytes);
        self
    }

    /// Sets the media type.
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

/// One container that a user can choose to sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExternalSyncUnit {
    /// Its id in the external system.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// A description, for people.
    pub description: String,
    /// The approximate number of items in it, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_count: Option<u64>,
    /// The item type that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_type: Option<String>,
}

impl ExternalSyncUnit {
    /// A unit without a count of its items.
    pub fn new(id: impl Into<String>, name: impl Into<String>, description: impl Into<String>) -> Self {
        let (id, name, description) = (id.into(), name.into(), description.into());
        Self { id, name, description, item_count: None, item_type: None }
    }

    /// Sets the approximate number of items of one type.
    #[must_use]
    pub fn items(mut self, count: u64, item_type: impl Into<String>) -> Self {
        self.item_count = Some(count);
        self.item_type = Some(item_type.into());
        self
    }
}

/// Calls the extractor; a panic in it becomes its error.
pub(super) fn caught<T, E: From<String>>(call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(E::from(format!("the extractor panicked: {}", panic_text(panic.as_ref()))))
    })
}
