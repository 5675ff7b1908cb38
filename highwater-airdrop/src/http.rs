//! A small HTTP/1.1 server for few clients: one thread per connection, requests one after the other.
//!
//! A body has the length given by `Content-Length`, or there is none. Chunked bodies are refused, as by the file
//! store behind Airdrop. A request that cannot be parsed is answered with a JSON reason; then its connection is
//! closed, as the start of the next request is unknown.
//!
//! There is room for [`CONNECTIONS_MAX`] connections, or for as many as the process may have files open. When it is
//! full, a new connection replaces the one that has been idle longest, as with any server.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hasher as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use twox_hash::XxHash3_64;

/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Headers of a request at most.
const HEADERS_MAX: usize = 100;
/// How long a connection may be idle.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the next piece of a body may take. The file store answers `RequestTimeout` (400) after about this time.
const BODY_IDLE_MAX: Duration = Duration::from_secs(20);
/// How many bytes of an unwanted body are read, and for how long, so that the client sees the answer.
const REST_BYTES_MAX: u64 = 8 * 1024 * 1024;
const REST_MAX: Duration = Duration::from_secs(2);
/// Bytes of a streamed answer that are sent at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Connections at once.
const CONNECTIONS_MAX: usize = 500;
/// How often a new connection checks for a free place.
const FULL_WAIT: Duration = Duration::from_millis(10);

/// A request whose head was read.
pub(crate) struct Request<'c> {
    pub(crate) method: String,
    /// The path, as it was sent.
    pub(crate) path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    pub(crate) body: Body<'c>,
}

impl Request<'_> {
    /// A parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// All headers, as they were sent.
    pub(crate) fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// All parameters of the query, in order.
    pub(crate) fn parameters(&self) -> &[(String, String)] {
        &self.query
    }
}

fn find<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The unread part of a request's body.
pub(crate) struct Body<'c> {
    connection: &'c mut BufReader<Shared>,
    length: u64,
    left: u64,
    /// Set while the client waits for `100 Continue`.
    asks_first: bool,
    hash: XxHash3_64,
}

impl Body<'_> {
    /// The whole body, if it is not longer than allowed.
    pub(crate) fn read_all(&mut self, bytes_max: u64, what: &str) -> Result<Vec<u8>, Answer> {
        if self.length > bytes_max {
            let reason = format!("{what} is {} bytes, the limit is {bytes_max}", self.length);
            return Err(Answer::refused(413, reason));
        }
        let mut bytes = Vec::new();
        match self.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(Answer::refused(400, error.to_string())),
        }
    }

    /// The number of bytes read, and their hash, which is stable across versions.
    pub(crate) fn heard(&self) -> (u64, u64) {
        (self.length - self.left, self.hash.clone().finish())
    }

    /// Reads and drops the rest of the body, up to a limit. Returns whether that was all of it.
    fn pass_over(&mut self) -> bool {
        if self.left > REST_BYTES_MAX || self.asks_first {
            return self.left == 0;
        }
        io::copy(self, &mut io::sink()).is_ok()
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if std::mem::take(&mut self.asks_first) {
            self.connection.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.connection.read(&mut buffer[..wanted]).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let (found, length) = (self.length - self.left, self.length);
                let seconds = BODY_IDLE_MAX.as_secs();
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("RequestTimeout: after {found} of {length} bytes nothing came for {seconds} s"),
                )
            }
            _ => error,
        })?;
        if read == 0 {
            let (found, length) = (self.length - self.left, self.length);
            let reason =
                format!("the body ended after {found} of the {length} bytes that Content-Length says");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        self.left -= read as u64;
        self.hash.write(&buffer[..read]);
        Ok(read)
    }
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The reason, if it is a refusal.
    reason: Option<String>,
    headers: Vec<(Cow<'static, str>, String)>,
    body: Content,
}

enum Content {
    Bytes(Vec<u8>),
    /// Its length, if it is sent to the client.
    Stream(Box<dyn Read>, Option<u64>),
}

impl Answer {
    pub(crate) fn json(status: u16, value: &Value) -> Self {
        let headers = vec![("Content-Type".into(), "application/json".to_owned())];
        Self { status, reason: None, headers, body: Content::Bytes(format!("{value}\n").into_bytes()) }
    }

    /// A refusal with a reason for people.
    pub(crate) fn refused(status: u16, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        let answer = Self::json(status, &json!({ "message": reason }));
        Self { reason: Some(reason), ..answer }
    }

    /// A success without content.
    pub(crate) fn empty() -> Self {
        Self { status: 204, reason: None, headers: Vec::new(), body: Content::Bytes(Vec::new()) }
    }

    /// Bytes of this length. The length is sent only if `told` is set.
    pub(crate) fn stream(reader: impl Read + 'static, length: u64, told: bool) -> Self {
        let headers = vec![("Content-Type".into(), "application/octet-stream".to_owned())];
        let body = Content::Stream(Box::new(reader.take(length)), told.then_some(length));
        Self { status: 200, reason: None, headers, body }
    }

    /// The reason for people, if it is a refusal.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether the same request may succeed later: the answers after which the platform's SDK retries.
    pub(crate) fn is_passing(&self) -> bool {
        let has_after = self.headers.iter().any(|(name, _)| name == "Retry-After");
        matches!(self.status, 408 | 425 | 500..600) || (self.status == 429 && has_after)
    }

    pub(crate) fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header.into(), value.into()));
        self
    }

    /// The answer of another server: status, headers and body.
    pub(crate) fn of(status: u16, headers: &[(String, String)], body: Vec<u8>) -> Self {
        let headers = headers.iter().map(|(name, value)| (name.clone().into(), value.clone())).collect();
        Self { status, reason: None, headers, body: Content::Bytes(body) }
    }

    /// The same, but the connection breaks off in the middle of the body.
    pub(crate) fn cut(mut self) -> Self {
        if let Content::Bytes(bytes) = self.body {
            let length = bytes.len() as u64;
            let half = io::Cursor::new(bytes).take(length / 2);
            self.body = Content::Stream(Box::new(half.chain(BreaksOff)), Some(length));
        }
        self
    }

    fn write(self, connection: &mut Shared, keeps: bool) -> io::Result<()> {
        let mut head = Vec::new();
        write!(head, "HTTP/1.1 {} {}\r\n", self.status, phrase(self.status))?;
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n")?;
        }
        if !keeps {
            write!(head, "Connection: close\r\n")?;
        }
        match self.body {
            Content::Bytes(bytes) => {
                if !matches!(self.status, 204 | 304) {
                    write!(head, "Content-Length: {}\r\n", bytes.len())?;
                }
                write!(head, "\r\n")?;
                head.extend(bytes);
                connection.write_all(&head)
            }
            Content::Stream(mut reader, Some(length)) => {
                write!(head, "Content-Length: {length}\r\n\r\n")?;
                connection.write_all(&head)?;
                io::copy(&mut reader, connection).map(drop)
            }
            Content::Stream(mut reader, None) => {
                write!(head, "Transfer-Encoding: chunked\r\n\r\n")?;
                connection.write_all(&head)?;
                let mut buffer = vec![0; CHUNK_BYTES];
                loop {
                    let read = reader.read(&mut buffer)?;
                    let mut chunk = format!("{read:x}\r\n").into_bytes();
                    chunk.extend(&buffer[..read]);
                    chunk.extend(b"\r\n");
                    connection.write_all(&chunk)?;
                    if read == 0 {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// A reader that fails: the connection breaks off there.
pub(crate) struct BreaksOff;

impl Read for BreaksOff {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::BrokenPipe, "a fault was set"))
    }
}

/// What follows a request.
pub(crate) enum Reply {
    Answer(Answer),
    /// The connection is closed without an answer.
    HangUp,
}

/// A connection, shared by its thread and the list of all.
struct Shared(Arc<TcpStream>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

/// Connections by number; if one is idle, since when.
type Open = HashMap<u64, (Arc<TcpStream>, Option<Instant>)>;

/// All connections.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<Open>,
}

impl Connections {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self) -> bool {
        self.lock().len() >= CONNECTIONS_MAX
    }

    /// Closes the connection that has been idle longest.
    fn make_room(&self) {
        let mut open = self.lock();
        let longest = open.iter().filter_map(|(id, (_, idle))| Some((idle.as_ref()?, *id))).min();
        let Some((_, id)) = longest else { return };
        if let Some((stream, idle)) = open.get_mut(&id) {
            // Its thread notices that; a connection that is already gone needs no closing.
            let _ = stream.shutdown(Shutdown::Both);
            *idle = None;
        }
    }

    fn close_all(&self) {
        for (stream, _) in self.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A connection's place in the list: given up when it is dropped.
struct Place {
    id: u64,
    all: Arc<Connections>,
}

impl Place {
    fn is_idle(&self, idle: bool) {
        if let Some((_, since)) = self.all.lock().get_mut(&self.id) {
            *since = idle.then(Instant::now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}

/// A server that answers in its own threads until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    connections: Arc<Connections>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Answers connections, one thread for each.
    pub(crate) fn start<H>(listener: TcpListener, handle: H) -> io::Result<Self>
    where
        H: Fn(&mut Request<'_>) -> Reply + Send + Sync + 'static,
    {
        let address = listener.local_addr()?;
        let (over, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(Connections::default()));
        let (ends, all, handle) = (Arc::clone(&over), Arc::clone(&connections), Arc::new(handle));
        let accepting = std::thread::Builder::new().spawn(move || accept(&listener, &ends, &all, &handle))?;
        Ok(Self { address, over, connections, accepting: Some(accepting) })
    }

    /// Answers for as long as the process lives.
    pub(crate) fn wait(mut self) {
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let Some(accepting) = self.accepting.take() else { return };
        // Wakes the thread, so that it notices.
        let woken = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        self.connections.close_all();
        if woken.is_ok() {
            let _ = accepting.join();
        }
    }
}

/// Accepts connections until `over` is set. It goes on after any error of a client, and if there are too many open
/// files.
fn accept<H>(listener: &TcpListener, over: &AtomicBool, all: &Arc<Connections>, handle: &Arc<H>)
where
    H: Fn(&mut Request<'_>) -> Reply + Send + Sync + 'static,
{
    let mut next = 0_u64;
    while !over.load(Ordering::SeqCst) {
        if all.is_full() {
            all.make_room();
            std::thread::sleep(FULL_WAIT);
            continue;
        }
        let Ok((stream, _)) = listener.accept() else {
            // Usually too many open files; or the client has gone.
            all.make_room();
            std::thread::sleep(FULL_WAIT);
            continue;
        };
        if over.load(Ordering::SeqCst) {
            return;
        }
        let stream = Arc::new(stream);
        next += 1;
        all.lock().insert(next, (Arc::clone(&stream), Some(Instant::now())));
        let (place, handle) = (Place { id: next, all: Arc::clone(all) }, Arc::clone(handle));
        // An error of a connection concerns only its client. If no thread can be started, it is closed.
        let _ = std::thread::Builder::new().spawn(move || drop(converse(stream, &place, &*handle)));
    }
}

fn converse(
    connection: Arc<TcpStream>,
    place: &Place,
    handle: &dyn Fn(&mut Request<'_>) -> Reply,
) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(IDLE_MAX))?;
    connection.set_write_timeout(Some(IDLE_MAX))?;
    let mut connection = BufReader::new(Shared(connection));
    loop {
        connection.get_ref().0.set_read_timeout(Some(IDLE_MAX))?;
        place.is_idle(true);
        let head = read_head(&mut connection);
        place.is_idle(false);
        connection.get_ref().0.set_read_timeout(Some(BODY_IDLE_MAX))?;
        let head = match head {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(Unread::Refused(answer)) => return close_with(answer, connection),
            Err(Unread::Lost(error)) => return Err(error),
        };
        let Head { method, path, query, headers, length, keeps, asks_first } = head;
        let body =
            Body { connection: &mut connection, length, left: length, asks_first, hash: XxHash3_64::new() };
        let mut request = Request { method, path, query, headers, body };
        let reply = handle(&mut request);
        let whole = request.body.pass_over();
        match reply {
            Reply::HangUp => return connection.get_ref().0.shutdown(Shutdown::Both),
            Reply::Answer(answer) if keeps && whole => answer.write(connection.get_mut(), true)?,
            Reply::Answer(answer) => return close_with(answer, connection),
        }
    }
}

/// Answers and closes, so that the client can read the answer even if it is still sending.
fn close_with(answer: Answer, mut connection: BufReader<Shared>) -> io::Result<()> {
    answer.write(connection.get_mut(), false)?;
    connection.get_ref().0.shutdown(Shutdown::Write)?;
    connection.get_ref().0.set_read_timeout(Some(REST_MAX))?;
    io::copy(&mut connection.take(REST_BYTES_MAX), &mut io::sink()).map(drop)
}

struct Head {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    length: u64,
    keeps: bool,
    asks_first: bool,
}

/// Why there is no request.
enum Unread {
    Refused(Answer),
    Lost(io::Error),
}

/// Reads the head of the next request; `None` if the client has no other.
fn read_head(connection: &mut BufReader<Shared>) -> Result<Option<Head>, Unread> {
    let refused = |status, reason: String| Err(Unread::Refused(Answer::refused(status, reason)));
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let room = (HEAD_BYTES_MAX - text.len()) as u64;
        if room == 0 {
            return refused(431, format!("the head of a request has at most {HEAD_BYTES_MAX} bytes"));
        }
        match connection.by_ref().take(room).read_until(b'\n', &mut text) {
            Ok(0) if text.is_empty() => return Ok(None),
            Ok(0) => return refused(400, "the request ended within its head".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(Unread::Lost(error)),
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(&text) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return refused(400, "the head of the request is not whole".to_owned());
        }
        Err(error) => return refused(400, format!("this is not an HTTP request: {error}")),
    }
    let headers: Vec<(String, String)> = parsed
        .headers
        .iter()
        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).trim().to_owned()))
        .collect();
    let method = parsed.method.unwrap_or_default().to_owned();
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    if find(&headers, "Transfer-Encoding").is_some() {
        let reason = "a chunked body is not accepted: send a Content-Length, if necessary by writing the body to a file first";
        return refused(411, reason.to_owned());
    }
    let mut lengths = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("Content-Length"));
    let length = match (lengths.next(), lengths.next()) {
        (None, _) if matches!(method.as_str(), "POST" | "PUT" | "PATCH") => {
            return refused(411, format!("a {method} needs a Content-Length"));
        }
        (None, _) => 0,
        (Some((_, text)), None) if text.bytes().all(|byte| byte.is_ascii_digit()) => match text.parse() {
            Ok(length) => length,
            Err(_) => return refused(400, format!("Content-Length: {text:?} is not a length")),
        },
        (Some((_, text)), None) => return refused(400, format!("Content-Length: {text:?} is not a length")),
        (Some(_), Some(_)) => return refused(400, "a request has one Content-Length".to_owned()),
    };
    let says = |name: &str, word: &str| {
        let value = find(&headers, name).unwrap_or_default();
        value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let newer = parsed.version == Some(1);
    let keeps = if newer { !says("Connection", "close") } else { says("Connection", "keep-alive") };
    let asks_first = newer && length > 0 && says("Expect", "100-continue");
    Ok(Some(Head { method, path: path.to_owned(), query, headers, length, keeps, asks_first }))
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Other",
    }
}
