//! A connector for the tracker.

pub mod api;

use std::sync::Mutex;

use highwater::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, SourceError,
};
use highwater::record::{Attachment, Field, Metadata, RecordType};
use highwater::{Page, Record};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{Answer, Comments, Issue, Issues, Request, Token, Transport};

/// The connector.
pub struct Tracker {
    pub transport: Transport,
    pub secret: String,
    /// The newest token, empty at first.
    pub token: Mutex<String>,
}

impl Tracker {
    fn send(&self, request: Request<'_>) -> Result<Answer, SourceError> {
        let answer = (self.transport)(request)?;
        if answer.status == 429 {
            return Err(SourceError::RateLimited { after: answer.retry_after });
        }
        Ok(answer)
    }

    fn get(&self, path: &str) -> Result<Answer, SourceError> {
        let token = self.token.lock().unwrap().clone();
        let answer = self.send(Request::Get { path, token: &token })?;
        if answer.status != 401 {
            return Ok(answer);
        }
        let Token { access_token } = read("/token", self.send(Request::SignIn { secret: &self.secret })?)?;
        self.token.lock().unwrap().clone_from(&access_token);
        self.send(Request::Get { path, token: &access_token })
    }

    fn list<T: DeserializeOwned>(&self, path: &str) -> Result<T, SourceError> {
        read(path, self.get(path)?)
    }
}

fn read<T: DeserializeOwned>(path: &str, answer: Answer) -> Result<T, SourceError> {
    match answer.status {
        200 => Ok(serde_json::from_reader(answer.body)?),
        status => Err(format!("the tracker answered {path} with {status}").into()),
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
        let text = |name| Field::text().name(name);
        let author = || Field::reference(["#record:users"]).name("Author");
        let issue = Field::reference(["#record:issues"]).name("Issue").required();
        let comment = RecordType::new().field("text", text("Text").required()).field("issue", issue);
        let metadata = Metadata::new()
            .record_type("issues", RecordType::new().field("title", text("Title")).field("author", author()))
            .record_type("comments", comment.field("author", author().required()))
            .record_type("users", RecordType::new().field("name", text("Name").required()));
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
        let after = cursor.unwrap_or_default();
        match listing.parent() {
            None => self.issues(context, &after),
            Some(issue) => self.comments(issue, &after),
        }
    }

    fn open_attachment(
        &self,
        _: &Context<'_>,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let answer = self.get(&attachment.url)?;
        let reason = format!("the tracker answered {}", answer.status);
        match answer.status {
            200 => Ok(AttachmentBody::new(answer.body)),
            403 => Err(AttachmentError::Denied { reason }),
            404 | 410 => Err(AttachmentError::Gone { reason }),
            _ => Err(reason.into()),
        }
    }
}
