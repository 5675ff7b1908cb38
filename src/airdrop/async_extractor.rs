//! The async version of [`Extractor`]: for sources with an async client.

use std::future::Future;
use std::pin::Pin;

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::BoxError;
use crate::record::Attachment;
use crate::store::Page;

use super::check::CheckPolicy;
use super::context::Context;
use super::extractor::ExternalSyncUnit;
use super::listing::Listing;
use super::source_error::{AttachmentError, SourceError};

/// The async version of [`Extractor`](super::Extractor). Each method means the same. What is said there about errors,
/// about repeated calls, and about which method is called when, holds here too.
/// [`Serve::serve_async`](super::Serve::serve_async) drives it.
///
/// Write the methods as `async fn`. They are polled on the task that awaits `serve_async`, so they may use everything
/// that its runtime offers: clients, timers, tasks. This crate depends on no runtime. The methods must not block: no
/// other call of the same invocation goes on meanwhile. With [`Serve::concurrency`](super::Serve::concurrency),
/// several pages are awaited at once.
///
/// Each call owns its arguments.
///
/// ```
/// use highwater::airdrop::{AsyncExtractor, Context, ExternalSyncUnit, Listing, SourceError};
/// use highwater::{Page, Record};
/// use serde_json::{Value, json};
/// # struct Client;
/// # impl Client {
/// #     async fn issues(&self, _: u32) -> Result<(Vec<Value>, Option<u32>), std::io::Error> { Ok((vec![], None)) }
/// # }
/// struct Tracker { client: Client }
///
/// impl AsyncExtractor for Tracker {
///     type Cursor = u32;
///
///     async fn external_sync_units(&self, _: Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
///         Ok(vec![ExternalSyncUnit::new("project", "Project", "")])
///     }
///
///     async fn metadata(&self, _: Context) -> Result<Value, SourceError> {
///         Ok(json!({ "schema_version": "v0.2.0", "record_types": {} }))
///     }
///
///     async fn streams(&self, _: Context) -> Result<Vec<String>, SourceError> {
///         Ok(vec!["issues".to_owned()])
///     }
///
///     async fn page(
///         &self,
///         _: Context,
///         _: Listing,
///         cursor: Option<u32>,
///     ) -> Result<Page<u32>, SourceError> {
///         let (issues, next) = self.client.issues(cursor.unwrap_or(0)).await?;
///         let mut page = Page::with_next(next);
///         for issue in issues {
///             page.push("issues", Record::new(issue["id"].to_string(), &issue)?);
///         }
///         Ok(page)
///     }
/// }
/// ```
pub trait AsyncExtractor: Sync + 'static {
    /// Like [`Extractor::Cursor`](super::Extractor::Cursor).
    type Cursor: Serialize + DeserializeOwned + Send + 'static;

    /// Like [`Extractor::external_sync_units`](super::Extractor::external_sync_units).
    fn external_sync_units(
        &self,
        context: Context,
    ) -> impl Future<Output = Result<Vec<ExternalSyncUnit>, SourceError>> + Send;

    /// Like [`Extractor::metadata`](super::Extractor::metadata).
    fn metadata(&self, context: Context) -> impl Future<Output = Result<Value, SourceError>> + Send;

    /// Like [`Extractor::initial_domain_mapping`](super::Extractor::initial_domain_mapping): none, unless overridden.
    fn initial_domain_mapping(
        &self,
        context: Context,
    ) -> impl Future<Output = Result<Option<Value>, SourceError>> + Send {
        let _ = context;
        std::future::ready(Ok(None))
    }

    /// Like [`Extractor::check_policy`](super::Extractor::check_policy).
    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Off
    }

    /// Like [`Extractor::streams`](super::Extractor::streams).
    fn streams(&self, context: Context) -> impl Future<Output = Result<Vec<String>, SourceError>> + Send;

    /// Like [`Extractor::page`](super::Extractor::page).
    fn page(
        &self,
        context: Context,
        listing: Listing,
        cursor: Option<Self::Cursor>,
    ) -> impl Future<Output = Result<Page<Self::Cursor>, SourceError>> + Send;

    /// Like [`Extractor::can_refetch`](super::Extractor::can_refetch).
    fn can_refetch(&self, item_type: &str) -> bool {
        let _ = item_type;
        false
    }

    /// Like [`Extractor::refetch`](super::Extractor::refetch).
    fn refetch(
        &self,
        context: Context,
        item_type: String,
        ids: Vec<String>,
    ) -> impl Future<Output = Result<Page<Self::Cursor>, SourceError>> + Send {
        let _ = context;
        let count = ids.len();
        let reason = format!("this extractor does not ask again for {count} rejected records of {item_type}");
        std::future::ready(Err(reason.into()))
    }

    /// Like [`Extractor::open_attachment`](super::Extractor::open_attachment): denied, unless overridden.
    fn open_attachment(
        &self,
        context: Context,
        attachment: Attachment,
    ) -> impl Future<Output = Result<AsyncAttachmentBody, AttachmentError>> + Send {
        let _ = context;
        let reason = format!("this extractor does not open attachments such as {}", attachment.id);
        std::future::ready(Err(AttachmentError::Denied { reason }))
    }
}

/// The chunks of a body.
pub(super) type Chunks = Pin<Box<dyn Stream<Item = Result<Vec<u8>, BoxError>> + Send>>;

/// The bytes of an attachment, as a stream of chunks: for the body of an HTTP client's response.
#[non_exhaustive]
pub struct AsyncAttachmentBody {
    pub(super) chunks: Chunks,
    /// The number of bytes, if the source says: 1 byte to 2 GiB. A body of another length is not uploaded.
    pub length_bytes: Option<u64>,
    /// The media type, if the source says. Unless set, that of the attachment's metadata is used.
    pub content_type: Option<String>,
}

impl AsyncAttachmentBody {
    /// A body of unknown length and type. The stream is polled on the task that awaits
    /// [`Serve::serve_async`](super::Serve::serve_async), one chunk at a time, no faster than the platform accepts
    /// them.
    pub fn new<S, B, E>(chunks: S) -> Self
    where
        S: Stream<Item = Result<B, E>> + Send + 'static,
        B: AsRef<[u8]>,
        E: Into<BoxError>,
    {
        Self { chunks: Box::pin(Owned(Box::pin(chunks))), length_bytes: None, content_type: None }
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

impl std::fmt::Debug for AsyncAttachmentBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncAttachmentBody")
            .field("length_bytes", &self.length_bytes)
            .field("content_type", &self.content_type)
            .finish_non_exhaustive()
    }
}

/// The chunks of an author's stream, as bytes that we own.
struct Owned<S>(Pin<Box<S>>);

impl<S, B, E> Stream for Owned<S>
where
    S: Stream<Item = Result<B, E>>,
    B: AsRef<[u8]>,
    E: Into<BoxError>,
{
    type Item = Result<Vec<u8>, BoxError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let chunk = self.0.as_mut().poll_next(context);
        chunk.map(|chunk| chunk.map(|chunk| chunk.map(|bytes| bytes.as_ref().to_vec()).map_err(Into::into)))
    }
}
