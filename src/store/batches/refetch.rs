//! Requests the records that earlier runs rejected.
//!
//! The result of a chunk of ids is staged as a page of a stream of its own, whose row counts its pages and records.
//! The ids that are still to be requested are in the rows of `rejected`, not in a cursor.

use serde::Serialize;

use crate::error::{BoxError, Error, Result};
use crate::model::Phase;

use super::super::page::Page;
use super::super::rejected::refetched;
use super::super::run_handle::Run;
use super::states::UnsettledBatch;

impl Run {
    /// Requests the records that earlier runs rejected, until each was requested once in this run: in chunks of one
    /// item type with at most [`REFETCH_IDS`](crate::limits::REFETCH_IDS) ids. Returns how many were requested.
    ///
    /// `fetch` is given an item type and ids. It returns a last page with a result for each id: its record, another
    /// rejection, or that it is gone. The page names no child listings. Records that pass are in the batches that the
    /// next [`Run::batches`] yields. Call it before the first stream:
    ///
    /// ```
    /// use highwater::{Page, Record, Store};
    /// use serde_json::json;
    /// # let dir = tempfile::tempdir()?;
    /// let store = Store::open(dir.path().join("state.redb"))?;
    /// let unit = store.sync_unit("acme/tickets")?;
    /// // A run reads a bad record.
    /// let list = |_: Option<u32>| -> highwater::Result<Page<u32>> {
    ///     let mut page = Page::last();
    ///     page.reject("issues", "ISSUE-7", "it has no project");
    ///     Ok(page)
    /// };
    /// let run = unit.begin()?;
    /// assert_eq!(run.batches("issues", list).count(), 0);
    /// run.finish()?;
    /// // It was fixed since, and the next run requests it.
    /// let run = unit.begin()?;
    /// assert_eq!(run.rejected()?[0].id, "ISSUE-7");
    /// run.refetch(|item_type, ids| -> highwater::Result<Page<u32>> {
    ///     let mut page = Page::last();
    ///     for id in ids {
    ///         page.push(item_type, Record::new(id, &json!({"project": "acme"}))?);
    ///     }
    ///     Ok(page)
    /// })?;
    /// let nothing_new = |_: Option<u32>| -> highwater::Result<Page<u32>> { Ok(Page::last()) };
    /// for batch in run.batches("issues", nothing_new) {
    ///     let batch = batch?;
    ///     let key = batch.key().to_string();
    ///     batch.acknowledge(key)?;
    /// }
    /// run.finish()?;
    /// assert!(unit.begin()?.rejected()?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Durability
    /// When this returns `Ok`, the results survive power loss. After a kill, the next call goes on with the chunk
    /// that was being fetched.
    ///
    /// # Errors
    /// `Fetch` with the closure's own error; `Invalid` if a page has no result for an id; those of staging a page;
    /// `Fenced`, `Corrupt`, `Io`. Results that were stored before are kept.
    pub fn refetch<C, F, E>(&self, mut fetch: F) -> Result<u64>
    where
        C: Serialize,
        F: FnMut(&str, &[String]) -> std::result::Result<Page<C>, E>,
        E: Into<BoxError>,
    {
        let mut asked = 0;
        while let Some((item_type, ids)) = self.next_rejected(|_| true)? {
            let page = fetch(&item_type, &ids).map_err(|error| Error::Fetch {
                sync_unit: self.unit.to_string(),
                stream: format!("of rejected {item_type}"),
                source: error.into(),
            })?;
            self.stage_refetched(page.asked(&item_type, &ids))?;
            asked += ids.len() as u64;
        }
        Ok(asked)
    }

    /// Stores a page that was requested for rejected records, and the result for each.
    ///
    /// # Durability
    /// When this returns `Ok`, all of it survives power loss.
    pub(crate) fn stage_refetched<C: Serialize>(&self, page: Page<C>) -> Result<Vec<UnsettledBatch>> {
        self.stage(&refetched()?, Phase::Data, self.inner.settings.batch_items, page)
    }
}
