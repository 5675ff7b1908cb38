//! The server of the examples' external systems: HTTP/1.1, one request per connection.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use super::{Failure, print};

/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request's body at most.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// A request.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    query: String,
    /// The token after `Authorization: Bearer`.
    pub(crate) token: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// A parameter of the query, if it is a number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok())
    }

    fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Self> {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self { method, path: path.to_owned(), query: query.to_owned(), ..Self::default() };
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? <= 2 {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => request.token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
                "content-length" => length = value.trim().parse().unwrap_or(0),
                _ => {}
            }
        }
        stream.take(BODY_BYTES_MAX.min(length)).read_to_end(&mut request.body)?;
        Ok(request)
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    status: &'static str,
    kind: &'static str,
    body: Vec<u8>,
    retry_after_seconds: Option<u64>,
    is_cut: bool,
}

impl Answer {
    /// JSON.
    pub(crate) fn json(body: &serde_json::Value) -> Self {
        Self::with("200 OK", "application/json", body.to_string().into_bytes())
    }

    /// Arbitrary bytes.
    pub(crate) fn bytes(body: Vec<u8>) -> Self {
        Self::with("200 OK", "application/octet-stream", body)
    }

    /// Another status than 200, with a reason.
    pub(crate) fn refusal(status: &'static str, reason: &str) -> Self {
        Self::with(status, "text/plain", format!("{reason}\n").into_bytes())
    }

    fn with(status: &'static str, kind: &'static str, body: Vec<u8>) -> Self {
        Self { status, kind, body, retry_after_seconds: None, is_cut: false }
    }

    /// Sets `Retry-After`.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Breaks off the connection in the middle of the body.
    pub(crate) fn cut(mut self) -> Self {
        self.is_cut = true;
        self
    }

    fn send(&self, stream: &mut TcpStream) -> io::Result<()> {
        let Self { status, kind, body, .. } = self;
        let retry_after = self.retry_after_seconds.map(|seconds| format!("Retry-After: {seconds}\r\n"));
        let retry_after = retry_after.unwrap_or_default();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{retry_after}Connection: close\r\n\r\n"
        )?;
        let sent = if self.is_cut { length / 2 } else { length };
        stream.write_all(body.get(..sent).unwrap_or_default())
    }
}

/// Answers requests on 127.0.0.1, each in its own thread, until the process is killed. The first line on standard
/// output is its base URL.
pub(crate) fn serve(
    port: u16,
    answer: impl Fn(&Request) -> Answer + Clone + Send + 'static,
) -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(|error| format!("cannot serve at port {port} (--port): {error}"))?;
    print(&format!("http://{}\n", listener.local_addr()?))?;
    for stream in listener.incoming() {
        let (stream, answer) = (stream?, answer.clone());
        // An error of a connection concerns only its client.
        std::thread::spawn(move || drop(answer_one(stream, answer)));
    }
    Ok(())
}

/// Answers one request, and closes.
fn answer_one(stream: TcpStream, answer: impl Fn(&Request) -> Answer) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    let request = Request::read(&mut stream)?;
    answer(&request).send(stream.get_mut())
}
