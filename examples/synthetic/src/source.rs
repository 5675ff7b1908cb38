//! The issues as an external system over HTTP, and the client with which the extractor reads it.
//!
//! ```text
//! GET /issues?first=F&count=C   {"issues": [F, ..], "next": F + C, or null at the end}
//! GET /files/N?bytes=B          B bytes: byte i is N + i, in 8 bits
//! ```
//!
//! An issue is returned as its number, because everything else is derived from that.

use std::time::Duration;

use highwater::airdrop::SourceError;
use serde::Deserialize;
use serde_json::json;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::attachment::STALL;
use crate::common::Failure;
use crate::common::server::{self, Answer, Request};

/// Issues per page at most.
const COUNT_MAX: u32 = 100_000;
/// Bytes of a file at most.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A page of issues.
#[derive(Debug, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) issues: Vec<u32>,
    /// The start of the next page; `None`: this is the last.
    pub(crate) next: Option<u32>,
}

/// A client of the external system.
#[derive(Debug)]
pub(crate) struct Tracker {
    url: String,
    /// How long to wait if it asks to wait, and does not say how long.
    retry_after: Duration,
    agent: Agent,
}

impl Tracker {
    pub(crate) fn new(url: &str, retry_after: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(STALL))
            .timeout_global(Some(STALL))
            .build()
            .into();
        Self { url: url.trim_end_matches('/').to_owned(), retry_after, agent }
    }

    /// The address of the file of an issue.
    pub(crate) fn file(&self, key: u32, bytes: u64) -> String {
        format!("{}/files/{key}?bytes={bytes}", self.url)
    }

    /// A page that begins with this issue. A failed request may be repeated: it changes nothing.
    pub(crate) fn page(&self, first: u32, count: u32) -> Result<Numbers, SourceError> {
        let path = format!("/issues?first={first}&count={count}");
        let mut response =
            whole(&path, self.agent.get(format!("{}{path}", self.url)).call()?, self.retry_after)?;
        Ok(serde_json::from_str(&response.body_mut().read_to_string()?)?)
    }
}

/// The answer, if it is what was asked for. `busy`: the wait after a 429 that does not say how long.
pub(crate) fn whole(
    what: &str,
    response: Response<Body>,
    busy: Duration,
) -> Result<Response<Body>, SourceError> {
    let status = response.status().as_u16();
    if status == 200 {
        return Ok(response);
    }
    let busy = (status == 429).then(|| busy.as_secs_f64().to_string());
    let said = response.headers().get("Retry-After").and_then(|value| value.to_str().ok());
    Err(SourceError::from_status(what, status, said.or(busy.as_deref())))
}

/// Serves this many issues until it is killed. The first line on standard output is its base URL.
pub(crate) fn serve(port: u16, items: u32) -> Result<(), Failure> {
    server::serve(port, move |request| answer(request, items))
}

fn answer(request: &Request, items: u32) -> Answer {
    let small = |name: &str, most: u32| {
        request.number(name).and_then(|it| u32::try_from(it).ok()).map(|it| it.min(most))
    };
    let file = request.path.strip_prefix("/files/").and_then(|number| number.parse::<u64>().ok());
    match (request.path.as_str(), small("first", items), small("count", COUNT_MAX), file) {
        ("/issues", Some(first), Some(count), _) => {
            let next = first.saturating_add(count).min(items);
            Answer::json(&json!({
                "issues": (first..next).collect::<Vec<_>>(),
                "next": (next < items).then_some(next),
            }))
        }
        (.., Some(file)) => {
            let bytes = request.number("bytes").unwrap_or(0).min(BYTES_MAX);
            Answer::bytes((0..bytes).map(|at| file.wrapping_add(at).to_le_bytes()[0]).collect())
        }
        _ => Answer::refusal("404 Not Found", "there is nothing here"),
    }
}
