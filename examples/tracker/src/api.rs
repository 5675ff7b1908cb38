//! The tracker's API: what is asked, and what is answered.

use std::io::Read;

use highwater::BoxError;
use serde::Deserialize;

/// Sends `GET` of a path with a token, or, without one, `POST` with the secret; in a test, to wherever the test likes.
pub type Transport = Box<dyn Fn(&str, Option<&str>) -> Result<Answer, BoxError> + Send + Sync>;

/// An answer.
pub struct Answer {
    pub status: u16,
    /// The header, as it is.
    pub retry_after: Option<String>,
    pub body: Body,
}

pub type Body = Box<dyn Read + Send>;

#[derive(Deserialize)]
pub(crate) struct Token {
    pub(crate) access_token: String,
}

#[derive(Deserialize)]
pub(crate) struct Issues {
    pub(crate) issues: Vec<Issue>,
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Issue {
    Whole { id: String, modified: String, title: String, author: User, files: Vec<File> },
    Other { id: String, modified: String, deleted: bool },
}

#[derive(Deserialize)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) name: String,
}

#[derive(Deserialize)]
pub(crate) struct File {
    pub(crate) id: String,
    pub(crate) name: String,
}

#[derive(Deserialize)]
pub(crate) struct Comments {
    pub(crate) comments: Vec<Comment>,
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Comment {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) author: User,
}
