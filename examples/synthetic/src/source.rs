//! The issues as an external system over HTTP: what it serves, and how the extractor asks it.
//!
//! ```text
//! GET /issues?first=F&count=C   {"issues": [F, ..], "next": F + C, or null at the end}
//! GET /files/N?bytes=B          B bytes: byte i is N + i, in 8 bits
//! ```
//!
//! An issue is told by its number, as all else of it follows from that.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use chrono::Utc;
use highwater::airdrop::SourceError;
use serde::Deserialize;
use serde_json::json;
use ureq::Agent;

use crate::attachment::{STALL, retry_after};
use crate::common::{Failure, print};

/// Issues of a page at most.
const COUNT_MAX: u32 = 100_000;
/// Bytes of a file at most.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A page of issues.
#[derive(Debug, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) issues: Vec<u32>,
    /// Where the next page begins; none: this is the last.
    pub(crate) next: Option<u32>,
}

/// The external system, as the extractor sees it.
#[derive(Debug)]
pub(crate) struct Tracker {
    url: String,
    /// How long to leave it alone where it does not say.
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

    /// Where the file of an issue is.
    pub(crate) fn file(&self, key: u32, bytes: u64) -> String {
        format!("{}/files/{key}?bytes={bytes}", self.url)
    }

    /// A page from an issue on. What fails may be asked for again; nothing was changed by it.
    pub(crate) fn page(&self, first: u32, count: u32) -> Result<Numbers, SourceError> {
        let mut response =
            self.agent.get(format!("{}/issues?first={first}&count={count}", self.url)).call()?;
        match response.status().as_u16() {
            200 => Ok(serde_json::from_str(&response.body_mut().read_to_string()?)?),
            429 => {
                let said = response.headers().get("Retry-After").and_then(|value| value.to_str().ok());
                let after = said.and_then(|said| retry_after(said, Utc::now())).unwrap_or(self.retry_after);
                Err(SourceError::RateLimited { after })
            }
            status => Err(format!("the tracker answered {status}").into()),
        }
    }
}

/// Serves so many issues until it is killed. The first line on standard output is what its addresses begin with.
pub(crate) fn serve(port: u16, items: u32) -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(|error| format!("cannot serve at port {port} (--port): {error}"))?;
    print(&format!("http://{}\n", listener.local_addr()?))?;
    for stream in listener.incoming() {
        let stream = stream?;
        // Whatever ends a connection concerns nobody but its client.
        std::thread::spawn(move || drop(answer(stream, items)));
    }
    Ok(())
}

/// Answers one request, and closes.
fn answer(stream: TcpStream, items: u32) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first)?;
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |name: &str| -> Option<u64> {
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let small =
        |name: &str, most: u32| number(name).and_then(|it| u32::try_from(it).ok()).map(|it| it.min(most));
    let file = path.strip_prefix("/files/").and_then(|number| number.parse::<u64>().ok());
    let (status, kind, body) = match (path, small("first", items), small("count", COUNT_MAX), file) {
        ("/issues", Some(first), Some(count), _) => {
            let next = first.saturating_add(count).min(items);
            let page = json!({
                "issues": (first..next).collect::<Vec<_>>(),
                "next": (next < items).then_some(next),
            });
            ("200 OK", "application/json", page.to_string().into_bytes())
        }
        (.., Some(file)) => {
            let bytes = number("bytes").unwrap_or(0).min(BYTES_MAX);
            let body = (0..bytes).map(|at| file.wrapping_add(at).to_le_bytes()[0]).collect();
            ("200 OK", "application/octet-stream", body)
        }
        _ => ("404 Not Found", "text/plain", b"there is nothing here\n".to_vec()),
    };
    let mut stream = stream.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}
