//! What the tracker answers.

use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Issues {
    pub(crate) issues: Vec<Issue>,
    #[serde(deserialize_with = "Option::deserialize")]
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
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Comment {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) author: User,
}
