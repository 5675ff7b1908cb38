//! The metadata of an attachment: where its bytes are, and which record it belongs to.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::model::ID_BYTES_MAX;

use super::line::{Record, refused};

/// The item type under which the metadata of attachments is staged in the data phase.
pub(crate) const ITEM_TYPE: &str = "attachments";

/// An attachment, as a source lists it: a flat record of item type `attachments`. It is queued in the transaction of
/// the data phase that stages it; its bytes are streamed in the attachments phase.
///
/// It is identified by its id and its parent's id. A record may have further fields; they are passed on.
/// Source of the fields: <https://developer.devrev.ai/airdrop/attachments-extraction>.
///
/// ```
/// use highwater::Page;
/// use highwater::record::Attachment;
/// let mut shot = Attachment::new("ATT-9", "https://files.example/9", "crash.png", "ISSUE-1");
/// shot.author_id = Some("USER-7".into());
/// let page = Page::<()>::last().record("attachments", shot.to_record()?);
/// # assert_eq!(page.items(), 1);
/// # Ok::<(), highwater::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Attachment {
    /// Its id in the external system, 1 to [`ID_BYTES_MAX`] bytes.
    pub id: String,
    /// Where the bytes are, for the extractor that opens it. May be empty if the extractor looks up the address then.
    pub url: String,
    /// The name of the file, for people.
    pub file_name: String,
    /// The id of the record that it belongs to, 1 to [`ID_BYTES_MAX`] bytes.
    pub parent_id: String,
    /// The id of the user who attached it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author_id: Option<String>,
    /// Whether it is shown inside a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<bool>,
    /// Its media type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The id of the parent's own parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grand_parent_id: Option<String>,
    /// When it was created, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_date: Option<String>,
    /// When it was last modified, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified_date: Option<String>,
}

/// Without the url, which may be a credential.
impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("id", &self.id)
            .field("parent_id", &self.parent_id)
            .field("file_name", &self.file_name)
            .finish_non_exhaustive()
    }
}

impl Attachment {
    /// An attachment with the required fields only.
    pub fn new(
        id: impl Into<String>,
        url: impl Into<String>,
        file_name: impl Into<String>,
        parent_id: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            url: url.into(),
            file_name: file_name.into(),
            parent_id: parent_id.into(),
            author_id: None,
            inline: None,
            content_type: None,
            grand_parent_id: None,
            created_date: None,
            modified_date: None,
        }
    }

    /// The record to stage under item type `attachments`.
    ///
    /// # Errors
    /// `Record` if it cannot be a line. Its fields are checked when it is staged.
    pub fn to_record(&self) -> Result<Record> {
        Record::flat(self)
    }

    /// Reads the line of a record.
    ///
    /// # Errors
    /// `Record`, naming the attachment, the field and what is expected there.
    pub(crate) fn from_line(line: &str) -> Result<Self> {
        let fields: Map<String, Value> =
            serde_json::from_str(line).map_err(|error| refused("(attachment)", error.to_string()))?;
        let id = fields.get("id").and_then(Value::as_str).unwrap_or("(without an id)");
        let text = |name: &str, bytes_min: usize, bytes_max: usize| match fields.get(name) {
            Some(Value::String(text)) if (bytes_min..=bytes_max).contains(&text.len()) => Ok(text.clone()),
            found => {
                let found = found.map_or("nothing".to_owned(), |found| match found {
                    Value::String(text) => format!("{} bytes", text.len()),
                    Value::Object(_) => "an object".to_owned(),
                    Value::Array(_) => "an array".to_owned(),
                    other => other.to_string(),
                });
                let size = match (bytes_min, bytes_max) {
                    (0, _) => String::new(),
                    (_, usize::MAX) => " that is not empty".to_owned(),
                    _ => format!(" of {bytes_min} to {bytes_max} bytes"),
                };
                let flat = if fields.contains_key("data") { "; it is flat, not under `data`" } else { "" };
                let reason = format!(
                    "an attachment's field `{name}` is expected to be a string{size}, found {found}{flat}"
                );
                Err(refused(id, reason))
            }
        };
        let optional = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => text(name, 0, usize::MAX).map(Some),
        };
        let inline = match fields.get("inline") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(inline)) => Some(*inline),
            Some(found) => {
                let reason =
                    format!("an attachment's field `inline` is expected to be true or false, found {found}");
                return Err(refused(id, reason));
            }
        };
        Ok(Self {
            id: text("id", 1, ID_BYTES_MAX)?,
            url: text("url", 0, usize::MAX)?,
            file_name: text("file_name", 1, usize::MAX)?,
            parent_id: text("parent_id", 1, ID_BYTES_MAX)?,
            author_id: optional("author_id")?,
            inline,
            content_type: optional("content_type")?,
            grand_parent_id: optional("grand_parent_id")?,
            created_date: optional("created_date")?,
            modified_date: optional("modified_date")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Attachment;

    #[test]
    fn what_is_missing_or_of_another_type_is_named() {
        let whole = r#"{"id":"A","url":"u","file_name":"f","parent_id":"P","inline":null,"other":1}"#;
        let read = Attachment::from_line(whole).expect("it is whole");
        assert_eq!(read, Attachment::new("A", "u", "f", "P"));
        for (line, expected) in [
            (r#"{"url":"u","file_name":"f","parent_id":"P"}"#, "field `id`"),
            (
                r#"{"id":"A","file_name":"f","parent_id":"P"}"#,
                "field `url` is expected to be a string, found nothing",
            ),
            (r#"{"id":"A","url":"u","file_name":"","parent_id":"P"}"#, "not empty, found 0 bytes"),
            (
                r#"{"id":"A","url":"u","file_name":"f","parent_id":7}"#,
                "field `parent_id` is expected to be a string of 1 to 512 bytes, found 7",
            ),
            (r#"{"id":"A","url":"u","file_name":"f","parent_id":"P","inline":"yes"}"#, "field `inline`"),
            (r#"{"id":"A","data":{"url":"u"}}"#, "not under `data`"),
        ] {
            let error = Attachment::from_line(line).expect_err(line).to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
