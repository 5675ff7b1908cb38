//! What the tracker answers.

use highwater::record::Id;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub(crate) struct Issues {
    pub(crate) issues: Vec<Value>,
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Issue {
    pub(crate) id: Id,
    pub(crate) modified: String,
    pub(crate) title: String,
    pub(crate) author: User,
    pub(crate) files: Vec<File>,
}

#[derive(Deserialize)]
pub(crate) struct Deleted {
    pub(crate) id: Id,
    pub(crate) modified: String,
}

#[derive(Deserialize)]
pub(crate) struct User {
    pub(crate) id: Id,
    pub(crate) name: String,
}

#[derive(Deserialize)]
pub(crate) struct File {
    pub(crate) id: Id,
    pub(crate) name: String,
}

#[derive(Default, Deserialize)]
pub(crate) struct Comments {
    pub(crate) comments: Vec<Comment>,
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Comment {
    pub(crate) id: Id,
    pub(crate) text: String,
    pub(crate) author: User,
}
