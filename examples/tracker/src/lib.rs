//! A connector for the tracker.

mod api;

use highwater::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing,
    SourceClient, SourceError,
};
use highwater::record::{Attachment, Field, Metadata};
use highwater::{Page, Record};
use serde_json::{Value, json};

use crate::api::{Comments, Deleted, Issue, Issues, User};

type PageResult = Result<Page<String>, SourceError>;
type BodyResult = Result<AttachmentBody, AttachmentError>;

/// The connector.
pub struct Tracker {
    source: SourceClient,
}

impl Tracker {
    /// A connector that signs in with the key of the connection.
    pub fn new(source: SourceClient, secret: &str) -> Self {
        let source = source.sign_in("/token", &json!({ "secret": secret }), "/access_token");
        Self { source }
    }

    fn issues(&self, since: Option<i64>, after: Option<String>) -> PageResult {
        let query = [("since", since.into()), ("after", after.into())];
        let listing: Issues = self.source.get_json("/issues", &query)?;
        let mut page = Page::with_next(listing.next);
        for issue in listing.issues {
            if issue["deleted"] == true {
                let issue: Deleted = serde_json::from_value(issue)?;
                let record = Record::deleted(issue.id)?.modified_text(&issue.modified)?;
                page.push("issues", record);
                continue;
            }
            let issue: Issue = serde_json::from_value(issue)?;
            page.push_child("comments", &issue.id, &());
            for file in issue.files {
                let url = format!("/files/{}", file.id);
                page.push_attachment(&Attachment::new(file.id, url, file.name, &issue.id))?;
            }
            let data = json!({ "title": issue.title, "author": issue.author.id });
            let record = Record::new(issue.id, &data)?.modified_text(&issue.modified)?;
            page.push("issues", record);
            push_user(&mut page, issue.author)?;
        }
        Ok(page)
    }

    fn comments(&self, issue: &str, after: Option<String>) -> PageResult {
        let path = format!("/issues/{issue}/comments");
        let query = [("after", after.into())];
        // None if the issue was deleted meanwhile, which the next run is told.
        let listing: Option<Comments> = self.source.get_json_if_found(&path, &query)?;
        let listing = listing.unwrap_or_default();
        let mut page = Page::with_next(listing.next);
        for comment in listing.comments {
            let data = json!({ "text": comment.text, "author": comment.author.id, "issue": issue });
            page.push("comments", Record::new(comment.id, &data)?);
            push_user(&mut page, comment.author)?;
        }
        Ok(page)
    }
}

fn push_user(page: &mut Page<String>, user: User) -> Result<(), SourceError> {
    let record = Record::new(user.id, &json!({ "name": user.name }))?;
    page.push_once("users", record);
    Ok(())
}

impl Extractor for Tracker {
    type Cursor = String;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        let unit = ExternalSyncUnit::new("tracker", "The tracker", "All of its issues");
        Ok(vec![unit])
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        let author = || Field::reference(["#record:users"]);
        let comment = [
            ("text", Field::text().required()),
            ("author", author().required()),
            ("issue", Field::reference(["#record:issues"]).required()),
        ];
        let metadata = Metadata::new()
            .record_type("issues", [("title", Field::text()), ("author", author())])
            .record_type("comments", comment)
            .record_type("users", [("name", Field::text().required())]);
        Ok(metadata.into())
    }

    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Refuse
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }

    fn page(&self, context: &Context, listing: &Listing, cursor: Option<String>) -> PageResult {
        match listing.parent() {
            None => self.issues(context.since().map(|since| since.timestamp()), cursor),
            Some(issue) => self.comments(issue, cursor),
        }
    }

    fn open_attachment(&self, _: &Context, file: &Attachment) -> BodyResult {
        Ok(AttachmentBody::new(self.source.get(&file.url, &[])?))
    }
}
