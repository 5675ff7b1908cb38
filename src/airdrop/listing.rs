//! What a page belongs to: a stream of the extractor, or a child listing that a page named.

use std::fmt;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::model::StreamName;
use crate::store::Child;

/// The listing whose page an extractor is asked for; see [`Extractor::page`](super::Extractor::page).
///
/// It is a stream that [`Extractor::streams`](super::Extractor::streams) names, or a child listing that a page of
/// this run named with [`Page::child`](crate::Page::child), such as the comments of one issue.
///
/// ```
/// use highwater::airdrop::{Listing, SourceError};
/// use highwater::{Page, Record};
/// # fn comments_of(_issue: &str, _cursor: u32) -> Vec<u32> { Vec::new() }
/// fn page(listing: &Listing, cursor: Option<u32>) -> Result<Page<u32>, SourceError> {
///     let at = cursor.unwrap_or(0);
///     match (listing.stream(), listing.parent()) {
///         ("comments", Some(issue)) => {
///             let mut page = Page::last();
///             for number in comments_of(issue, at) {
///                 let comment = serde_json::json!({ "issue": issue });
///                 page.push("comments", Record::new(format!("COMMENT-{number}"), &comment)?);
///             }
///             Ok(page)
///         }
///         _ => Ok(Page::more(at + 1).child("comments", "ISSUE-1", &())),
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    stream: StreamName,
    parent: Option<String>,
    /// As JSON.
    data: Option<String>,
}

impl Listing {
    /// A stream that the extractor names itself.
    pub(super) fn of_stream(stream: StreamName) -> Self {
        Self { stream, parent: None, data: None }
    }

    /// A child listing.
    pub(super) fn of_child(child: &Child) -> Self {
        let Child { stream, parent, data, .. } = child;
        Self { stream: stream.clone(), parent: Some(parent.to_string()), data: Some(data.clone()) }
    }

    /// The stream.
    pub fn stream(&self) -> &str {
        self.stream.as_str()
    }

    /// The parent of a child listing; `None` for a stream that the extractor names itself.
    pub fn parent(&self) -> Option<&str> {
        self.parent.as_deref()
    }

    /// The data that the naming page left for it; `()` or null, as JSON, if it is not a child listing.
    ///
    /// # Errors
    /// `Invalid` if it does not have the requested type.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.data.as_deref().unwrap_or("null")).map_err(|error| Error::Invalid {
            what: format!("the data of {self}"),
            reason: format!("it does not have the requested type: {error}"),
        })
    }
}

/// Its name in errors and logs.
impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.parent {
            None => write!(f, "stream {}", self.stream),
            Some(parent) => write!(f, "child listing {} of {parent}", self.stream),
        }
    }
}
