//! What a page is asked for of: a stream of the extractor.

use std::fmt;

use crate::model::StreamName;

/// What the extractor is asked for a page of; see [`Extractor::page`](super::Extractor::page).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    stream: StreamName,
}

impl Listing {
    /// A stream that the extractor names itself.
    pub(super) fn of_stream(stream: StreamName) -> Self {
        Self { stream }
    }

    /// The stream.
    pub fn stream(&self) -> &str {
        self.stream.as_str()
    }
}

/// As errors and logs name it.
impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}", self.stream)
    }
}
