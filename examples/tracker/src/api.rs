//! The tracker's API: what is asked, and what is answered.

use std::io::Read;
use std::time::Duration;

use highwater::BoxError;
use serde::Deserialize;

/// Sends a request: over HTTP, or, in a test, wherever the test likes.
pub type Transport = Box<dyn Fn(Request<'_>) -> Result<Answer, BoxError> + Send + Sync>;

/// A request.
#[derive(Clone, Copy)]
pub enum Request<'a> {
    /// `POST /token`
    SignIn { secret: &'a str },
    /// `GET` of a path, with a token.
    Get { path: &'a str, token: &'a str },
}

/// An answer.
pub struct Answer {
    pub status: u16,
    /// How long to leave the tracker alone, if it refuses for now.
    pub retry_after: Duration,
    pub body: Box<dyn Read + Send>,
}

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
