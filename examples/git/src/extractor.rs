//! Commits and users as records, page by page.
//!
//! There is one stream, `commits`. A run extracts a fixed range: the history of the HEAD that its first page found,
//! without the history of the HEAD that the last finished run extracted. (Dates are not used: the dates in a
//! repository come from people's clocks.) Git lists a range in the same order every time, so a position in it is a
//! number.
//!
//! Files of that HEAD are attachments of the commit that changed them last, if it is in the range.
//!
//! Within an invocation one `git log` continues from page to page. A new invocation starts it again, and reads the
//! extracted commits once more, only to know which users were announced.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use highwater::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, SourceError,
};
use highwater::record::{Attachment, Field, Metadata, RecordType};
use highwater::{Page, Record};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::repository::{Commit, FileAtHead, GitError, Log, Repository, Signature, start_of};

const COMMITS: &str = "commits";
const USERS: &str = "users";
const ATTACHMENTS: &str = "attachments";
/// The start of an attachment's url; the hash of the blob follows.
const BLOB: &str = "git-blob:";
/// Bytes of a subject, and of a body, that are kept.
const SUBJECT_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// A page ends early at this many bytes of text.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A position in the listing of a run: the commits before it are staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// The HEAD that the run extracts.
    head: String,
    /// The HEAD that the last finished run extracted; `None`: everything is new.
    base: Option<String>,
    /// The number of commits in the history of `base`.
    known: u64,
    /// The number of commits that the run extracts.
    total: u64,
    /// The number of commits before this position.
    position: u64,
    /// The last of these commits.
    last: Option<String>,
}

/// What a finished run leaves for the next.
#[derive(Debug, Serialize, Deserialize)]
struct Bookmark {
    /// The HEAD that it extracted.
    head: String,
    /// The number of commits in its history. If that grows later, a shallow clone was deepened.
    commits: u64,
}

/// A listing that is being read.
#[derive(Debug)]
struct Walk {
    at: Cursor,
    log: Log,
    announced: HashSet<String>,
    /// The attachments of later commits.
    files: HashMap<String, Vec<FileAtHead>>,
}

/// The data of a commit's record.
#[derive(Serialize)]
struct CommitData<'a> {
    subject: Option<Cow<'a, str>>,
    body: Option<Cow<'a, str>>,
    author: Option<&'a str>,
    committer: Option<&'a str>,
    parents: &'a [String],
}

/// The data of a user's record.
#[derive(Serialize)]
struct UserData<'a> {
    name: Option<&'a str>,
    email: Option<&'a str>,
}

/// Extracts a repository.
#[derive(Debug)]
pub(crate) struct GitExtractor<'a> {
    repository: &'a Repository,
    page_size: u32,
    page_delay: Duration,
    /// Pathspecs of files that are attachments.
    attach: &'a [String],
    bar: &'a ProgressBar,
    /// The listing after the last page, so that the next page need not read it from the start.
    walk: Mutex<Option<Walk>>,
}

impl<'a> GitExtractor<'a> {
    /// An extractor with at most `page_size` commits per page. `page_delay` is added to the time of each page, and of
    /// each attachment.
    pub(crate) fn new(
        repository: &'a Repository,
        page_size: u32,
        page_delay: Duration,
        attach: &'a [String],
        bar: &'a ProgressBar,
    ) -> Self {
        Self { repository, page_size, page_delay, attach, bar, walk: Mutex::default() }
    }

    /// Decides what a new run extracts.
    fn begin(&self, context: &Context) -> Result<Walk, SourceError> {
        let head = self.repository.head()?;
        if self.repository.is_shallow() {
            self.warn(
                "the repository is a shallow clone: what lies behind its oldest commits is not extracted",
            );
        }
        if let Some(bookmark) = context.bookmark::<Bookmark>(COMMITS)? {
            let Bookmark { head: base, commits } = bookmark;
            if self.repository.commit(&base)?.is_none() || !self.repository.is_ancestor(&base, &head)? {
                self.warn(&format!(
                    "history was rewritten: HEAD {head} does not follow {base}, where the last sync ended; \
                     everything is extracted again"
                ));
            } else {
                let (new, known) = self.repository.new_commits(&head, &base)?;
                if known == commits {
                    let total = new.len() as u64;
                    let log = self.repository.log(&head, Some(&base), Some(new))?;
                    let files = self.repository.files(&head, self.attach)?;
                    let at = Cursor { head, base: Some(base), known, total, position: 0, last: None };
                    return Ok(Walk { at, log, announced: HashSet::new(), files });
                }
                self.warn(&format!(
                    "history was rewritten: {base}, where the last sync ended, had {commits} commits behind it and \
                     has {known} now (as when a shallow clone is deepened); everything is extracted again"
                ));
            }
        }
        let total = self.repository.count(&head)?;
        let log = self.repository.log(&head, None, None)?;
        let files = self.repository.files(&head, self.attach)?;
        let at = Cursor { head, base: None, known: 0, total, position: 0, last: None };
        Ok(Walk { at, log, announced: HashSet::new(), files })
    }

    /// Continues where an earlier life ended.
    fn resume(&self, cursor: Cursor) -> Result<Walk, SourceError> {
        let Cursor { head, base, total, .. } = &cursor;
        let (found, wanted) = match base {
            Some(base) => {
                let (new, _) = self.repository.new_commits(head, base)?;
                (new.len() as u64, Some(new))
            }
            None => (self.repository.count(head)?, None),
        };
        if found != *total {
            return Err(changed(&format!("has {found} commits to extract now and had {total}")).into());
        }
        let mut log = self.repository.log(head, base.as_deref(), wanted)?;
        let mut announced = HashSet::new();
        let mut last = None;
        for _ in 0..cursor.position {
            let Some(commit) = log.next()? else { break };
            for signature in [&commit.author, &commit.committer] {
                announced.extend(signature.user_id());
            }
            last = Some(commit.hash);
        }
        if last != cursor.last {
            let (found, expected) = (last.as_deref().unwrap_or("none"), cursor.last.as_deref());
            let expected = expected.unwrap_or("none");
            return Err(changed(&format!(
                "has {found} as commit number {}, where {expected} was",
                cursor.position
            ))
            .into());
        }
        let files = self.repository.files(&cursor.head, self.attach)?;
        Ok(Walk { at: cursor, log, announced, files })
    }

    fn walk(&self) -> MutexGuard<'_, Option<Walk>> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, text: &str) {
        // An error is harmless: the output is not used.
        self.bar.suspend(|| drop(writeln!(io::stderr(), "warning: {text}")));
    }
}

fn changed(how: &str) -> String {
    format!("the history changed while it was extracted: it {how}; start a new sync")
}

impl Extractor for GitExtractor<'_> {
    type Cursor = Cursor;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        let repository = self.repository;
        let commits = match repository.head() {
            Ok(head) => repository.count(&head)?,
            Err(GitError::Empty { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        let description = format!("Git repository, {}", repository.head_name()?);
        let unit = ExternalSyncUnit::new(repository.id(), repository.name(), description);
        Ok(vec![unit.items(commits, COMMITS)])
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(serde_json::to_value(declared())?)
    }

    fn check_policy(&self) -> CheckPolicy {
        CheckPolicy::Refuse
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec![COMMITS.to_owned()])
    }

    fn page(
        &self,
        context: &Context,
        _: &Listing,
        cursor: Option<Cursor>,
    ) -> Result<Page<Cursor>, SourceError> {
        std::thread::sleep(self.page_delay);
        // Taken out: if this page fails, no listing must remain that is ahead of what is staged.
        let mut walk = match (self.walk().take(), cursor) {
            (Some(walk), Some(cursor)) if walk.at == cursor => walk,
            (_, Some(cursor)) => self.resume(cursor)?,
            (_, None) => self.begin(context)?,
        };
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut over = false;
        for _ in 0..self.page_size {
            if bytes >= PAGE_BYTES_MAX {
                break;
            }
            let Some(commit) = walk.log.next()? else {
                over = true;
                break;
            };
            bytes += commit.subject.len() + commit.body.len();
            walk.at.position += 1;
            add(&commit, &mut walk.announced, &mut records)?;
            for file in walk.files.remove(&commit.hash).into_iter().flatten() {
                records.push((ATTACHMENTS, attachment(&commit, &file).to_record()?));
            }
            walk.at.last = Some(commit.hash);
        }
        let at = &walk.at;
        over = over || (at.position >= at.total && walk.log.next()?.is_none());
        if over != (at.position == at.total) {
            return Err(changed(&format!("should have {} commits to extract", at.total)).into());
        }
        self.bar.set_length(at.total);
        self.bar.set_position(at.position);
        let percent = u8::try_from(at.position * 100 / at.total.max(1)).unwrap_or(100);
        let mut page = if over {
            Page::last().bookmark(&Bookmark { head: at.head.clone(), commits: at.known + at.total })
        } else {
            Page::more(at.clone())
        };
        for (item_type, record) in records {
            page.push(item_type, record);
        }
        *self.walk() = Some(walk);
        Ok(page.progress(percent))
    }

    fn open_attachment(
        &self,
        _: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        std::thread::sleep(self.page_delay);
        let hash = attachment.url.strip_prefix(BLOB).unwrap_or_default();
        match self.repository.blob(hash)? {
            Some((bytes, reader)) => Ok(AttachmentBody::new(reader).length(bytes)),
            None => Err(AttachmentError::Gone { reason: format!("the repository has no blob {hash}") }),
        }
    }
}

/// Creates the attachment of a file. Its id is its path or, if that cannot be an id, the hash of its content.
fn attachment(commit: &Commit, file: &FileAtHead) -> Attachment {
    let path = String::from_utf8_lossy(&file.path);
    let is_id = path.len() <= highwater::limits::ID_BYTES_MAX && matches!(path, Cow::Borrowed(_));
    let id = if is_id { path.as_ref() } else { &file.blob };
    let name = path.rsplit('/').next().unwrap_or(&path);
    let url = format!("{BLOB}{}", file.blob);
    let mut attachment = Attachment::new(id, url, name, &commit.hash);
    attachment.author_id = commit.author.user_id();
    attachment.content_type = content_type(name).map(str::to_owned);
    attachment.created_date = commit.author.at.map(|at| at.to_rfc3339());
    attachment
}

/// The media type of an image, by the extension of its name.
fn content_type(name: &str) -> Option<&'static str> {
    let (_, end) = name.rsplit_once('.')?;
    Some(match end.to_ascii_lowercase().as_str() {
        "gif" => "image/gif",
        "jpeg" | "jpg" => "image/jpeg",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        _ => return None,
    })
}

/// The metadata of commits and users.
fn declared() -> Metadata {
    let field =
        |field: Field, name: &str, description: &str| field.name(name).set("description", description);
    let users = || Field::reference(["#record:users"]);
    let commits = RecordType::new()
        .name("Commit")
        .set(
            "description",
            "A commit of the history of HEAD. Its id is its hash; it was created when it was authored, and modified \
             when it was committed.",
        )
        .field("subject", field(Field::text(), "Subject", "The first paragraph of its message, on one line"))
        .field("body", field(Field::text(), "Body", "The rest of its message, plain text"))
        .field("author", field(users(), "Author", "Who wrote the change"))
        .field("committer", field(users(), "Committer", "Who made the commit of it"))
        .field(
            "parents",
            field(
                Field::reference(["#record:commits"]).required().collection(),
                "Parents",
                "The commits that it follows; more than one for a merge",
            ),
        );
    let users = RecordType::new()
        .name("User")
        .set("description", "An author or committer. The id is the e-mail, as it is in the commits.")
        .field("name", field(Field::text(), "Name", "The name in the newest commit that was extracted"))
        .field("email", Field::text().name("E-mail"));
    Metadata::new().record_type(COMMITS, commits).record_type(USERS, users)
}

/// Adds the record of a commit, and of its users if they were not announced yet.
fn add(
    commit: &Commit,
    announced: &mut HashSet<String>,
    records: &mut Vec<(&'static str, Record)>,
) -> highwater::Result<()> {
    let Commit { hash, parents, author, committer, subject, body } = commit;
    let (author_id, committer_id) = (author.user_id(), committer.user_id());
    for (id, signature) in [(&author_id, author), (&committer_id, committer)] {
        let Some(id) = id else { continue };
        if announced.insert(id.clone()) {
            let Signature { email, .. } = signature;
            let email = Some(email.as_str()).filter(|email| email == id);
            records.push((USERS, Record::new(id, &UserData { name: signature.name(), email })?));
        }
    }
    let data = CommitData {
        subject: kept(subject, SUBJECT_BYTES_MAX),
        body: kept(body, BODY_BYTES_MAX),
        author: author_id.as_deref(),
        committer: committer_id.as_deref(),
        parents,
    };
    let mut record = Record::new(hash, &data)?;
    if let Some(at) = author.at {
        record = record.created(at);
    }
    if let Some(at) = committer.at {
        record = record.modified(at);
    }
    records.push((COMMITS, record));
    Ok(())
}

/// A text as a value: none if it is empty, and cut, with a note, if it is very long.
fn kept(text: &str, bytes_max: usize) -> Option<Cow<'_, str>> {
    if text.len() > bytes_max {
        let start = start_of(text, bytes_max);
        return Some(format!("{start}... (cut here, it has {} bytes)", text.len()).into());
    }
    (!text.is_empty()).then_some(text.into())
}
