//! What the benches extract: pages of issues, attachments, and child listings.

use std::ops::Range;
use std::time::Duration;

use highwater::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, SourceError,
};
use highwater::record::Attachment;
use highwater::{Page, Record};
use serde::Serialize;
use serde_json::{Value, json};

use super::issue::{ITEM_TYPE, Issue, metadata};

/// A source that has the same issues on every page, as its client parsed them.
pub(crate) struct Source {
    pub(crate) issues: Vec<Issue>,
    pub(crate) pages: u32,
    /// How long an answer takes.
    pub(crate) answer: Duration,
    /// Called when a page is asked for, with the number of its records.
    pub(crate) asked: fn(usize),
}

impl Source {
    /// One that answers at once.
    pub(crate) fn new(issues: Vec<Issue>, pages: u32) -> Self {
        Self { issues, pages, answer: Duration::ZERO, asked: |_| {} }
    }
}

impl Extractor for Source {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(serde_json::to_value(metadata())?)
    }

    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Refuse
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec![ITEM_TYPE.to_owned()])
    }

    fn page(&self, _: &Context, _: &Listing, at: Option<u32>) -> Result<Page<u32>, SourceError> {
        (self.asked)(self.issues.len());
        std::thread::sleep(self.answer);
        let next = at.unwrap_or(0) + 1;
        let mut page = if next < self.pages { Page::more(next) } else { Page::last() };
        for issue in &self.issues {
            page.push(ITEM_TYPE, issue.to_record()?);
        }
        Ok(page)
    }
}

/// A source of attachments with these numbers, on one page.
pub(crate) struct Files(pub(crate) Range<u32>);

impl Extractor for Files {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({}))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["attachments".to_owned()])
    }

    fn page(&self, _: &Context, _: &Listing, _: Option<u32>) -> Result<Page<u32>, SourceError> {
        let mut page = Page::last();
        for number in self.0.clone() {
            let url = format!("https://tracker.example.com/files/{number}");
            let attachment =
                Attachment::new(format!("file-{number}"), url, "file.txt", format!("issue-{number}"));
            page.push("attachments", attachment.to_record()?);
        }
        Ok(page)
    }

    fn open_attachment(&self, _: &Context, _: &Attachment) -> Result<AttachmentBody, AttachmentError> {
        Ok(AttachmentBody::new(&b"bytes"[..]).length(5))
    }
}

/// A source whose one stream names child listings, each with one page of [`COMMENTS`] comments.
pub(crate) struct Threads {
    pub(crate) listings: u32,
    /// How many a page names.
    pub(crate) page_listings: u32,
    /// How long an answer of a child listing takes.
    pub(crate) answer: Duration,
}

/// The comments of a child listing.
pub(crate) const COMMENTS: u32 = 3;

/// Comment number `number` of all.
pub(crate) fn comment(number: u32) -> highwater::Result<Record> {
    #[derive(Serialize)]
    struct Comment<'c> {
        issue: &'c str,
        author: &'c str,
        body: &'c str,
    }
    let issue = format!("issue-{}", number / COMMENTS);
    let author = format!("user-{}", number.wrapping_mul(0x9e37_79b9) % 500);
    let body = format!(
        "{author} on {issue}: retry works sometimes but not always, see the attached log of {number}"
    );
    let text = "2021-03-04T05:06:07.000Z";
    Record::new(format!("comment-{number}"), &Comment { issue: &issue, author: &author, body: &body })?
        .created_text(text)?
        .modified_text(text)
}

impl Extractor for Threads {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({}))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec![ITEM_TYPE.to_owned()])
    }

    fn page(&self, _: &Context, listing: &Listing, at: Option<u32>) -> Result<Page<u32>, SourceError> {
        if listing.parent().is_some() {
            std::thread::sleep(self.answer);
            let number: u32 = listing.data()?;
            let mut page = Page::last();
            for comment_number in number * COMMENTS..(number + 1) * COMMENTS {
                page.push("comments", comment(comment_number)?);
            }
            return Ok(page);
        }
        let from = at.unwrap_or(0);
        let to = (from + self.page_listings).min(self.listings);
        let page = if to < self.listings { Page::more(to) } else { Page::last() };
        Ok((from..to).fold(page, |page, number| page.child("comments", &format!("issue-{number}"), &number)))
    }
}

/// The same comments, so many, on full pages of one stream.
pub(crate) struct Comments(pub(crate) u32);

impl Extractor for Comments {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({}))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["comments".to_owned()])
    }

    fn page(&self, _: &Context, _: &Listing, at: Option<u32>) -> Result<Page<u32>, SourceError> {
        let from = at.unwrap_or(0);
        let to = (from + 2_000).min(self.0);
        let mut page = if to < self.0 { Page::more(to) } else { Page::last() };
        for number in from..to {
            page.push("comments", comment(number)?);
        }
        Ok(page)
    }
}
