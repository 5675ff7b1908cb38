//! A connector for the tracker.

pub mod api;

use highwater::airdrop::{
    AccessToken, AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing,
    SourceError,
};
use highwater::record::{Attachment, Field, Metadata, RecordType};
use highwater::{Page, Record};
use serde_json::{Value, json};

use crate::api::{Body, Comments, Issue, Issues, Token, Transport};

/// The connector.
pub struct Tracker {
    pub transport: Transport,
    pub token: AccessToken,
}

impl Tracker {
    fn send(&self, path: &str, token: Option<&str>) -> Result<Body, SourceError> {
        let answer = (self.transport)(path, token).map_err(SourceError::temporary)?;
        match answer.status {
            200 => Ok(answer.body),
            status => Err(SourceError::from_status(path, status, answer.retry_after.as_deref())),
        }
    }

    fn get(&self, path: &str) -> Result<Body, SourceError> {
        let renew = || Ok(serde_json::from_reader::<_, Token>(self.send("/token", None)?)?.access_token);
        self.token.with(renew, |token| self.send(path, Some(token)))
    }

    fn list<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, SourceError> {
        serde_json::from_reader(self.get(path)?).map_err(SourceError::temporary)
    }
}

impl Tracker {
    fn issues(&self, context: &Context<'_>, after: &str) -> Result<Page<String>, SourceError> {
        let since = context.since().map_or(0, |since| since.timestamp());
        let listing: Issues = self.list(&format!("/issues?since={since}&after={after}"))?;
        let mut page = listing.next.map_or_else(Page::last, Page::more);
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
                    let record = Record::new(id, &json!({}))?.operation("deleted");
                    page.push("issues", record.modified_text(&modified)?);
                }
                Issue::Other { id, .. } => return Err(format!("issue {id} is not whole").into()),
            }
        }
        Ok(page)
    }

    fn comments(&self, issue: &str, after: &str) -> Result<Page<String>, SourceError> {
        let listing: Comments = self.list(&format!("/issues/{issue}/comments?after={after}"))?;
        let mut page = listing.next.map_or_else(Page::last, Page::more);
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
        let metadata = Metadata::new()
            .record_type("issues", RecordType::new().field("title", Field::text()).field("author", author()))
            .record_type("comments", comment.field("author", author().required()))
            .record_type("users", RecordType::new().field("name", Field::text().required()));
        Ok(serde_json::to_value(metadata)?)
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
        match (listing.parent(), cursor.unwrap_or_default()) {
            (None, after) => self.issues(context, &after),
            (Some(issue), after) => self.comments(issue, &after),
        }
    }

    fn open_attachment(&self, _: &Context<'_>, file: &Attachment) -> Result<AttachmentBody, AttachmentError> {
        Ok(AttachmentBody::new(self.get(&file.url)?))
    }
}
