//! What the workloads extract: pages of issues, and attachments.

use std::time::Duration;

use highwater::Page;
use highwater::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, SourceError,
};
use highwater::record::Attachment;
use serde_json::{Value, json};

use super::issue::{ITEM_TYPE, Issue, metadata};

/// A source that has the same issues on every page, as its client parsed them.
pub(crate) struct Source {
    pub(crate) issues: Vec<Issue>,
    pub(crate) pages: u32,
    /// How long an answer takes.
    pub(crate) answer: Duration,
}

impl Extractor for Source {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context<'_>) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context<'_>) -> Result<Value, SourceError> {
        Ok(serde_json::to_value(metadata())?)
    }

    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Refuse
    }

    fn streams(&self, _: &Context<'_>) -> Result<Vec<String>, SourceError> {
        Ok(vec![ITEM_TYPE.to_owned()])
    }

    fn page(&self, _: &Context<'_>, _: &Listing, at: Option<u32>) -> Result<Page<u32>, SourceError> {
        std::thread::sleep(self.answer);
        let next = at.unwrap_or(0) + 1;
        let mut page = if next < self.pages { Page::more(next) } else { Page::last() };
        for issue in &self.issues {
            page.push(ITEM_TYPE, issue.to_record()?);
        }
        Ok(page)
    }
}

/// A source of so many attachments, on one page.
pub(crate) struct Files(pub(crate) u32);

impl Extractor for Files {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context<'_>) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context<'_>) -> Result<Value, SourceError> {
        Ok(json!({}))
    }

    fn streams(&self, _: &Context<'_>) -> Result<Vec<String>, SourceError> {
        Ok(vec!["attachments".to_owned()])
    }

    fn page(&self, _: &Context<'_>, _: &Listing, _: Option<u32>) -> Result<Page<u32>, SourceError> {
        let mut page = Page::last();
        for number in 0..self.0 {
            let url = format!("https://tracker.example.com/files/{number}");
            let attachment =
                Attachment::new(format!("file-{number}"), url, "file.txt", format!("issue-{number}"));
            page.push("attachments", attachment.to_record()?);
        }
        Ok(page)
    }

    fn open_attachment(&self, _: &Context<'_>, _: &Attachment) -> Result<AttachmentBody, AttachmentError> {
        Ok(AttachmentBody::new(&b"bytes"[..]).length(5))
    }
}
