//! Issues page by page, with the attachments of the first of them. The cursor is the number of the next issue.

use std::time::Duration;

use highwater::Page;
use highwater::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, SourceError,
};
use highwater::record::Attachment;
use serde_json::Value;

use crate::attachment::{self, Files};
use crate::issue::{ITEM_TYPE, Issue, metadata};
use crate::source::{Numbers, Tracker};

/// A source of issues that never change.
#[derive(Debug)]
pub(crate) struct Synthetic {
    /// Issues in it.
    pub(crate) items: u32,
    /// Issues per page.
    pub(crate) page_size: u32,
    /// Extra time for each page.
    pub(crate) page_delay: Duration,
    /// Where the issues come from; `None`: they are generated here.
    pub(crate) tracker: Option<Tracker>,
    /// The files that are attached to issues.
    pub(crate) files: Files,
}

impl Extractor for Synthetic {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        let description = "Issues that are made up, the same ones every time";
        let unit = ExternalSyncUnit::new("synthetic", "Synthetic tracker", description);
        Ok(vec![unit.items(self.items.into(), ITEM_TYPE)])
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(serde_json::to_value(metadata())?)
    }

    /// A generated record that fails is a bug here.
    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Refuse
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec![ITEM_TYPE.to_owned()])
    }

    fn page(&self, context: &Context, _: &Listing, cursor: Option<u32>) -> Result<Page<u32>, SourceError> {
        std::thread::sleep(self.page_delay);
        let first = cursor.unwrap_or(0);
        let numbers = if let Some(tracker) = &self.tracker {
            tracker.page(first, self.page_size)?
        } else {
            let next = first.saturating_add(self.page_size).min(self.items);
            Numbers { issues: (first..next).collect(), next: (next < self.items).then_some(next) }
        };
        let mut page = Page::with_next(numbers.next);
        let window = context.window();
        for key in numbers.issues {
            let issue = Issue::generate(key);
            let modified = issue.updated_at()?;
            if window
                .is_some_and(|window| window.from.is_some_and(|from| modified < from) || modified > window.to)
            {
                continue;
            }
            page.push(ITEM_TYPE, issue.to_record()?);
            if let Some(attachment) = self.files.of_issue(context, self.tracker.as_ref(), key, &issue)? {
                page.push(attachment::ITEM_TYPE, attachment.to_record()?);
            }
        }
        let next = numbers.next.unwrap_or(self.items);
        let percent = u64::from(next) * 100 / u64::from(self.items.max(1));
        Ok(page.progress(u8::try_from(percent).unwrap_or(100)))
    }

    fn open_attachment(
        &self,
        _: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        self.files.open(attachment)
    }
}
