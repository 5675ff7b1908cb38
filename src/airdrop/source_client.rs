//! A client of the source's HTTP API: what a request is, what each answer means, and a token that expires.

use std::fmt;
use std::fmt::Write as _;
use std::io::{BufReader, Cursor, Read};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::BoxError;
use crate::record::Id;

use super::access_token::AccessToken;
use super::source_error::SourceError;

type Transport = dyn Fn(&SourceRequest<'_>) -> Result<SourceAnswer, BoxError> + Send + Sync;

/// A request to the source: a GET, or a POST of JSON.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct SourceRequest<'r> {
    /// The path, as the extractor gave it.
    pub path: &'r str,
    /// The query, encoded: `since=0&after=7`. Empty if there is none.
    pub query: &'r str,
    /// The token. `None` if there is none, or if this request asks for one.
    pub token: Option<&'r str>,
    /// The headers to send, that of the token among them.
    pub headers: &'r [(&'r str, &'r str)],
    /// What is posted, as JSON. `None` for a GET.
    pub json: Option<&'r str>,
}

/// Shows neither headers nor what is posted.
impl fmt::Debug for SourceRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, query, .. } = self;
        f.debug_struct("SourceRequest").field("path", path).field("query", query).finish_non_exhaustive()
    }
}

/// The source's answer.
#[non_exhaustive]
pub struct SourceAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The text of the `Retry-After` header, if there is one.
    pub retry_after: Option<String>,
    /// The body.
    pub body: Box<dyn Read + Send>,
}

impl SourceAnswer {
    /// An answer with a body that is in memory.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, retry_after: None, body: Box::new(Cursor::new(body.into())) }
    }

    /// Sets the text of the `Retry-After` header.
    #[must_use]
    pub fn retry_after(mut self, text: impl Into<String>) -> Self {
        self.retry_after = Some(text.into());
        self
    }
}

impl fmt::Debug for SourceAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceAnswer")
            .field("status", &self.status)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

/// The value of a query's parameter: a text, a whole number, a time, or an `Option` of one; `None` leaves out the parameter.
///
/// A time becomes `2026-01-02T03:04:05Z` (RFC 3339, in UTC). It is cut to the second, which as the start of a span of time
/// asks for a little more; for the end of one, pass a text.
///
/// ```
/// use highwater::airdrop::QueryValue;
/// let cursor: Option<u32> = Some(2);
/// let query: [(&str, QueryValue); 2] = [("page", cursor.into()), ("sort", "updated_at".into())];
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryValue(Option<String>);

impl QueryValue {
    pub(super) fn into_text(self) -> Option<String> {
        self.0
    }
}

impl<T: Into<QueryValue>> From<Option<T>> for QueryValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self(None), Into::into)
    }
}

impl From<DateTime<Utc>> for QueryValue {
    fn from(time: DateTime<Utc>) -> Self {
        Self(Some(time.to_rfc3339_opts(SecondsFormat::Secs, true)))
    }
}

macro_rules! query_values {
    ($($of:ty),*) => {
        $(impl From<$of> for QueryValue {
            fn from(value: $of) -> Self {
                Self(Some(value.to_string()))
            }
        })*
    };
}

query_values!(&str, String, &String, &Id, u32, u64, usize, i32, i64);

/// A client of the source's HTTP API. Each method makes one request; `serve` repeats the page or the file if that
/// failed for a temporary reason.
///
/// Any status but 200 (2xx when signing in) is the error of [`SourceError::from_status`], and a request without an
/// answer is [`SourceError::Temporary`]. So is an answer that is not whole JSON, as it may have been cut off.
///
/// ```
/// use highwater::airdrop::{SourceAnswer, SourceClient, SourceError};
/// use serde_json::{Value, json};
///
/// // In production: `SourceClient::over_http("https://tracker.example")`.
/// let source = SourceClient::new(|request| {
///     Ok(match (request.path, request.token) {
///         ("/token", _) => SourceAnswer::new(200, r#"{"access_token": "T"}"#),
///         ("/issues", Some("T")) => SourceAnswer::new(200, json!({ "query": request.query }).to_string()),
///         _ => SourceAnswer::new(401, ""),
///     })
/// });
/// let source = source.sign_in("/token", &json!({ "secret": "..." }), "/access_token");
/// let issues: Value = source.get_json("/issues", &[("after", "a&b".into()), ("until", None::<u32>.into())])?;
/// assert_eq!(issues, json!({ "query": "after=a%26b" }));
/// # Ok::<(), SourceError>(())
/// ```
pub struct SourceClient {
    transport: Box<Transport>,
    headers: Vec<(String, String)>,
    /// The name of the token's header, and what stands there before the token.
    token_header: (String, String),
    authorization: Authorization,
}

enum Authorization {
    None,
    Token(String),
    SignIn { path: String, json: String, pointer: String, token: AccessToken },
}

impl SourceClient {
    /// A client that sends its requests through `transport`. That returns the source's answer, whatever its status,
    /// or why there is none. A test passes a closure that plays the source.
    pub fn new(
        transport: impl Fn(&SourceRequest<'_>) -> Result<SourceAnswer, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            transport: Box::new(transport),
            headers: Vec::new(),
            token_header: ("Authorization".to_owned(), "Bearer ".to_owned()),
            authorization: Authorization::None,
        }
    }

    /// Sends a header with each request.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets how the token is sent: the name of the header, and the text before the token. Unless set,
    /// `Authorization: Bearer TOKEN`.
    #[must_use]
    pub fn token_header(mut self, name: impl Into<String>, before: impl Into<String>) -> Self {
        self.token_header = (name.into(), before.into());
        self
    }

    /// Sends this token with each request. It is kept in memory alone.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.authorization = Authorization::Token(token.into());
        self
    }

    /// Gets a token for the requests: posts `json` to `path`, and reads the token at `pointer` in the answer, a JSON
    /// Pointer (RFC 6901) such as `/access_token`. That happens before the first request, and whenever the token has
    /// expired, which a 401 says; then the request is repeated once. Token and `json` are kept in memory alone, and
    /// are in no error.
    #[must_use]
    pub fn sign_in(mut self, path: impl Into<String>, json: &Value, pointer: impl Into<String>) -> Self {
        self.authorization = Authorization::SignIn {
            path: path.into(),
            json: json.to_string(),
            pointer: pointer.into(),
            token: AccessToken::new(),
        };
        self
    }

    /// The body at a path. Parameters of the query are encoded; one that is `None` is left out.
    ///
    /// # Errors
    /// Why there is no such body. The text names the path, not the query.
    pub fn get(&self, path: &str, query: &[(&str, QueryValue)]) -> Result<Box<dyn Read + Send>, SourceError> {
        let query = encoded(query);
        self.authorized(|token| self.send(path, &query, token, None))
    }

    /// Makes a call with the token, if there is one, and once more with a new one if the first was refused.
    fn authorized<T>(&self, call: impl Fn(Option<&str>) -> Result<T, SourceError>) -> Result<T, SourceError> {
        match &self.authorization {
            Authorization::None => call(None),
            Authorization::Token(token) => call(Some(token)),
            Authorization::SignIn { path, json, pointer, token } => {
                token.with(|| self.new_token(path, json, pointer), |token| call(Some(token)))
            }
        }
    }

    /// The JSON at a path: see [`SourceClient::get`].
    ///
    /// # Errors
    /// Those of `get`. `Temporary` if the body is not whole or not JSON; `Failed` if it is JSON of another shape.
    pub fn get_json<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, QueryValue)],
    ) -> Result<T, SourceError> {
        read_json(path, self.get(path, query)?)
    }

    /// The JSON at a path, or `None` if the source answers that there is nothing: 404 or 410. For what may be deleted
    /// while a run reads, such as the parent of a child listing: its listing then ends with [`Page::last`](crate::Page::last).
    ///
    /// # Errors
    /// Those of [`SourceClient::get_json`], except for these two statuses.
    pub fn get_json_if_found<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, QueryValue)],
    ) -> Result<Option<T>, SourceError> {
        let query = encoded(query);
        // Not also those of signing in, which say nothing of what is at the path.
        let found = self.authorized(|token| match self.send(path, &query, token, None) {
            Err(SourceError::Failed { status: Some(404 | 410), .. }) => Ok(None),
            sent => sent.map(Some),
        })?;
        found.map(|body| read_json(path, body)).transpose()
    }

    fn new_token(&self, path: &str, json: &str, pointer: &str) -> Result<String, SourceError> {
        // Any JSON fits, so no error quotes part of the answer.
        let answer: Value = read_json(path, self.send(path, "", None, Some(json))?)?;
        match answer.pointer(pointer).and_then(Value::as_str) {
            Some(token) => Ok(token.to_owned()),
            None => {
                Err(format!("the answer of {path} has no string at {pointer}: expected the token").into())
            }
        }
    }

    fn send(
        &self,
        path: &str,
        query: &str,
        token: Option<&str>,
        json: Option<&str>,
    ) -> Result<Box<dyn Read + Send>, SourceError> {
        let (name, before) = &self.token_header;
        let token_header = token.map(|token| format!("{before}{token}"));
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let headers: Vec<_> =
            headers.chain(token_header.as_deref().map(|value| (name.as_str(), value))).collect();
        let request = SourceRequest { path, query, token, headers: &headers, json };
        let answer = (self.transport)(&request).map_err(SourceError::temporary)?;
        match answer.status {
            200 => Ok(answer.body),
            201..=299 if json.is_some() => Ok(answer.body),
            status => Err(SourceError::from_status(path, status, answer.retry_after.as_deref())),
        }
    }
}

/// Does not show the token.
impl fmt::Debug for SourceClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceClient").finish_non_exhaustive()
    }
}

fn read_json<T: DeserializeOwned>(path: &str, body: impl Read) -> Result<T, SourceError> {
    serde_json::from_reader(BufReader::new(body)).map_err(|error| {
        let what = format!("the answer of {path}: {error}");
        // JSON of another shape will be that again. Anything else was perhaps cut off, or comes from a proxy.
        if error.is_data() { what.into() } else { SourceError::temporary(what) }
    })
}

/// The query of a URL. All but the unreserved characters of RFC 3986 (section 2.3) is percent-encoded.
fn encoded(parameters: &[(&str, QueryValue)]) -> String {
    let mut query = String::new();
    for (name, value) in parameters {
        let QueryValue(Some(value)) = value else { continue };
        if !query.is_empty() {
            query.push('&');
        }
        encode(name, &mut query);
        query.push('=');
        encode(value, &mut query);
    }
    query
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}
