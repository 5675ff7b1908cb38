//! A connector for the tracker.

mod api;

use highwater::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing,
    SourceClient, SourceError,
};
use highwater::record::{Attachment, Field, Metadata, RecordType};
use highwater::{Page, Record};
use serde_json::{Value, json};

use crate::api::{Comments, Issue, Issues};

/// The connector.
pub struct Tracker {
    source: SourceClient,
}

impl Tracker {
    /// A connector that signs in with the key of the connection.
    pub fn new(source: SourceClient, secret: &str) -> Self {
        Self { source: source.sign_in("/token", &json!({ "secret": secret }), "/access_token") }
    }

    fn issues(&self, context: &Context<'_>, after: Option<&str>) -> Result<Page<String>, SourceError> {
        let since = context.since().map(|since| since.timestamp().to_string());
        let query = [("since", since.as_deref()), ("after", after)];
        let listing: Issues = self.source.get_json("/issues", &query)?;
        let mut page = Page::with_next(listing.next);
        for issue in listing.issues {
            match issue {
                Issue::Whole { id, modified, title, author, files } => {
                    page.push_child("comments", &id, &());
                    for file in files {
                        let url = format!("/files/{}", file.id);
                        page.push("attachments", Attachment::new(file.id, url, file.name, &id).to_record()?);
                    }
                    let data = json!({ "title": title, "author": author.id });
                    page.push("issues", Record::new(id, &data)?.modified_text(&modified)?);
                    page.push_once("users", Record::new(author.id, &json!({ "name": author.name }))?);
                }
                Issue::Other { id, modified, deleted: true } => {
                    page.push("issues", Record::deleted(id)?.modified_text(&modified)?);
                }
                Issue::Other { id, .. } => return Err(format!("issue {id} is not whole").into()),
            }
        }
        Ok(page)
    }

    fn comments(&self, issue: &str, after: Option<&str>) -> Result<Page<String>, SourceError> {
        let path = format!("/issues/{issue}/comments");
        let listing: Comments = self.source.get_json(&path, &[("after", after)])?;
        let mut page = Page::with_next(listing.next);
        for comment in listing.comments {
            let data = json!({ "text": comment.text, "author": comment.author.id, "issue": issue });
            page.push("comments", Record::new(comment.id, &data)?);
            page.push_once("users", Record::new(comment.author.id, &json!({ "name": comment.author.name }))?);
        }
        Ok(page)
    }
}

impl Extractor for Tracker {
    type Cursor = String;

    fn external_sync_units(&self, _: &Context<'_>) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(vec![ExternalSyncUnit::new("tracker", "The tracker", "All of its issues")])
    }

    fn metadata(&self, _: &Context<'_>) -> Result<Value, SourceError> {
        let author = || Field::reference(["#record:users"]);
        let issue = Field::reference(["#record:issues"]).required();
        let comment = RecordType::new().field("text", Field::text().required()).field("issue", issue);
        Ok(Metadata::new()
            .record_type("issues", RecordType::new().field("title", Field::text()).field("author", author()))
            .record_type("comments", comment.field("author", author().required()))
            .record_type("users", RecordType::new().field("name", Field::text().required()))
            .into())
    }

    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Refuse
    }

    fn streams(&self, _: &Context<'_>) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }

    fn page(
        &self,
        context: &Context<'_>,
        listing: &Listing,
        cursor: Option<String>,
    ) -> Result<Page<String>, SourceError> {
        match listing.parent() {
            None => self.issues(context, cursor.as_deref()),
            Some(issue) => self.comments(issue, cursor.as_deref()),
        }
    }

    fn open_attachment(&self, _: &Context<'_>, file: &Attachment) -> Result<AttachmentBody, AttachmentError> {
        Ok(AttachmentBody::new(self.source.get(&file.url, &[])?))
    }
}
