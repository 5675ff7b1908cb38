//! An extractor as the engine calls it: its cursors are JSON, whatever their type is.
//!
//! So the engine is compiled once, and not once more for each extractor: a connector compiles only its own code.

use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::record::Attachment;
use crate::store::Page;

use super::check::CheckPolicy;
use super::context::Context;
use super::extractor::{AttachmentBody, ExternalSyncUnit, Extractor};
use super::listing::Listing;
use super::source_error::{AttachmentError, SourceError};

/// A cursor, as JSON.
pub(super) type CursorJson = Box<RawValue>;

/// Any extractor.
pub(super) type AnyExtractor<'e> = dyn Extractor<Cursor = CursorJson> + 'e;

/// An extractor with cursors of any type, as one whose cursors are JSON.
pub(super) struct JsonCursors<'e, E>(pub(super) &'e E);

impl<E: Extractor> Extractor for JsonCursors<'_, E> {
    type Cursor = CursorJson;

    fn external_sync_units(&self, context: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        self.0.external_sync_units(context)
    }

    fn metadata(&self, context: &Context) -> Result<Value, SourceError> {
        self.0.metadata(context)
    }

    fn initial_domain_mapping(&self, context: &Context) -> Result<Option<Value>, SourceError> {
        self.0.initial_domain_mapping(context)
    }

    fn check_policy(&self) -> CheckPolicy {
        self.0.check_policy()
    }

    fn streams(&self, context: &Context) -> Result<Vec<String>, SourceError> {
        self.0.streams(context)
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<CursorJson>,
    ) -> Result<Page<CursorJson>, SourceError> {
        let read = |json: CursorJson| context.run.read_cursor(listing.stream(), listing.parent(), json.get());
        let cursor = cursor.map(read).transpose()?;
        json_cursor(self.0.page(context, listing, cursor)?, &listing.to_string())
    }

    fn can_refetch(&self, item_type: &str) -> bool {
        self.0.can_refetch(item_type)
    }

    fn refetch(
        &self,
        context: &Context,
        item_type: &str,
        ids: &[String],
    ) -> Result<Page<CursorJson>, SourceError> {
        json_cursor(self.0.refetch(context, item_type, ids)?, "a page of rejected records")
    }

    fn open_attachment(
        &self,
        context: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        self.0.open_attachment(context, attachment)
    }
}

/// A page with its cursor as JSON.
fn json_cursor<C: serde::Serialize>(page: Page<C>, of: &str) -> Result<Page<CursorJson>, SourceError> {
    page.map_next(|next| to_raw_value(&next))
        .map_err(|error| format!("the cursor of {of} cannot be written as JSON: {error}").into())
}
