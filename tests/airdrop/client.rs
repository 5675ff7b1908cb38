//! The client sends what the protocol requires, field by field, and reports the result of each attempt.
//!
//! The server here reads raw HTTP from its sockets, so that it sees the framing itself.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use highwater::airdrop::{
    Body, Client, Event, Fate, Platform, PlatformError, SealedMessage, Upload, WorkerState,
};
use highwater::{ArtifactId, Error, VirtualClock};
use serde_json::{Value, json};

const TOKEN: &str = "tok-3n.that_nobody/may+see";
const SIGNATURE: &str = "sig-that-nobody-may-see";
const POLICY: &str = "policy-that-nobody-may-see";

/// One request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    method: String,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Whether all the bytes came that its length promised.
    complete: bool,
    connection: usize,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} came twice");
        value
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn query(&self) -> Vec<(&str, &str)> {
        let mut query: Vec<_> =
            self.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        query.sort_unstable();
        query
    }

    /// What holds for every request: framed by a true length if it has a body, and complete.
    pub(super) fn check(&self, method: &str, path: &str) {
        assert_eq!((self.method.as_str(), self.path.as_str()), (method, path));
        assert!(self.complete);
        assert_eq!(self.header("Transfer-Encoding"), None, "chunks");
        let length = self.header("Content-Length").map(|length| length.parse().unwrap());
        assert_eq!(length, (method == "POST").then_some(self.body.len()));
        assert_eq!(self.header("User-Agent"), Some(concat!("highwater/", env!("CARGO_PKG_VERSION"))));
        assert_eq!(self.header("Accept-Encoding"), None, "an artifact is wanted as it is");
    }
}

/// What the server does with a request.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Takes the request, starts to answer, and hangs up within the header.
    CutHeader,
    /// Says 200 and hangs up within the body.
    CutBody,
    /// Hangs up when it has seen the header of the request.
    HangUp,
    /// Reads the request and does not answer, until the client gives up.
    Silence,
    /// Says 200, and the first byte of a body that never ends.
    Stall,
    /// Says this, and hangs up.
    Raw(String),
}

pub(super) fn answer(status: u16, body: &Value) -> Reply {
    Reply::Answer(
        status,
        vec![("Content-Type", "application/json".to_owned())],
        body.to_string().into_bytes(),
    )
}

#[derive(Default)]
struct Record {
    requests: Vec<Request>,
    faults: HashMap<String, VecDeque<Reply>>,
    connections: usize,
}

/// A platform and a file store on one loopback port.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    record: Arc<Mutex<Record>>,
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let record = Arc::new(Mutex::new(Record::default()));
        let server = Self { address, record: record.clone() };
        // It ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, record) = (stream.unwrap(), record.clone());
                let connection = {
                    let mut record = record.lock().unwrap();
                    record.connections += 1;
                    record.connections
                };
                thread::spawn(move || serve(stream, connection, address, &record));
            }
        });
        server
    }

    /// The next request for `path` is not answered as usual.
    pub(super) fn fault(&self, path: &str, reply: Reply) {
        self.record.lock().unwrap().faults.entry(path.to_owned()).or_default().push_back(reply);
    }

    /// The requests since the last time, after it was seen that no fault is left unused.
    pub(super) fn requests(&self) -> Vec<Request> {
        let mut record = self.record.lock().unwrap();
        assert!(record.faults.values().all(VecDeque::is_empty), "a fault was not met");
        std::mem::take(&mut record.requests)
    }

    fn connections(&self) -> usize {
        self.record.lock().unwrap().connections
    }

    fn event(&self) -> Value {
        let base = format!("http://{}", self.address);
        json!({
            "context": {
                "secrets": { "service_account_token": TOKEN },
                "snap_in_id": "don:snap_in/2", "snap_in_version_id": "don:snap_in_version/3"
            },
            "execution_metadata": { "devrev_endpoint": base },
            "payload": {
                "event_type": "EXTRACTION_DATA_START",
                "event_context": {
                    "callback_url": format!("{base}/callback?key={SIGNATURE}"),
                    "worker_data_url": format!("{base}/worker_data"),
                    "request_id": "req/1 &=", "request_id_adaas": "adaas-1", "sync_unit_id": "unit-1",
                    "snap_in_slug": "snap-1"
                }
            }
        })
    }

    fn client(&self) -> Client {
        client(&self.event()).unwrap()
    }

    /// For a server that never answers, or never to the end.
    fn hasty_client(&self) -> Client {
        self.client().request_timeout(Duration::from_millis(500))
    }
}

fn client(event: &Value) -> Result<Client, Error> {
    Client::new(&Event::from_json(&event.to_string()).unwrap())
}

/// Serves one connection, request after request.
fn serve(stream: TcpStream, connection: usize, address: SocketAddr, record: &Mutex<Record>) {
    let mut reader = BufReader::new(stream);
    while let Some(mut request) = read_head(&mut reader, connection) {
        let fault = record.lock().unwrap().faults.get_mut(&request.path).and_then(VecDeque::pop_front);
        if let Some(Reply::HangUp) = fault {
            request.complete = false;
            record.lock().unwrap().requests.push(request);
            return;
        }
        let length = request.header("Content-Length").map_or(0, |length| length.parse().unwrap());
        request.complete =
            (&mut reader).take(length).read_to_end(&mut request.body).unwrap_or(0) as u64 == length;
        let complete = request.complete;
        let reply = fault.unwrap_or_else(|| usual(&request, address));
        record.lock().unwrap().requests.push(request);
        if !complete || !send(reader.get_mut(), reply) {
            return;
        }
    }
}

fn read_head(reader: &mut BufReader<TcpStream>, connection: usize) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        match line.strip_suffix("\r\n") {
            Some("") => break,
            Some(line) => lines.push(line.to_owned()),
            None => return None,
        }
    }
    let mut words = lines.first()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    });
    let headers = lines.iter().skip(1).map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_owned(), value.trim().to_owned())
    });
    Some(Request {
        method,
        path: path.to_owned(),
        query: pairs.collect(),
        headers: headers.collect(),
        body: Vec::new(),
        complete: true,
        connection,
    })
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Replies, and says whether the connection goes on.
fn send(stream: &mut TcpStream, reply: Reply) -> bool {
    match reply {
        Reply::Answer(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} Some Reason\r\nContent-Length: {}\r\n", body.len());
            for (name, value) in headers {
                head.extend([name, ": ", &value, "\r\n"]);
            }
            head.push_str("\r\n");
            // One write: two would wait for each other's acknowledgement.
            stream.write_all(&[head.as_bytes(), &body].concat()).is_ok()
        }
        Reply::CutHeader => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Len");
            false
        }
        Reply::CutBody => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"artifact_id\"");
            false
        }
        Reply::HangUp => false,
        Reply::Raw(text) => {
            let _ = stream.write_all(text.as_bytes());
            false
        }
        Reply::Silence => {
            let _ = io::copy(stream, &mut io::sink());
            false
        }
        Reply::Stall => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{");
            let _ = io::copy(stream, &mut io::sink());
            false
        }
    }
}

/// What a platform in good health says.
fn usual(request: &Request, address: SocketAddr) -> Reply {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/internal/airdrop.artifacts.upload-url") => answer(
            200,
            &json!({
                "artifact_id": "don:artifact/7",
                "upload_url": format!("http://{address}/files/put?signature={SIGNATURE}"),
                "form_data": { "key": "in/7", "X-Amz-Signature": SIGNATURE, "Policy": POLICY, "acl\"x": "private" }
            }),
        ),
        ("POST", "/files/put") => Reply::Answer(204, vec![("ETag", "\"abc\"".to_owned())], Vec::new()),
        ("GET", "/internal/airdrop.artifacts.download-url") => answer(
            200,
            &json!({ "download_url": format!("http://{address}/files/get?signature={SIGNATURE}") }),
        ),
        // The file store may say that it is gzip, which it is.
        ("GET", "/files/get") => {
            Reply::Answer(200, vec![("Content-Encoding", "gzip".to_owned())], b"\x1f\x8b as it was".to_vec())
        }
        ("GET", "/worker_data.get") => answer(
            200,
            &json!({ "state": "{\"a\":\"\u{e9}\"}", "objects": "{\"issues\":{\"extract\":false}}", "more": 1 }),
        ),
        ("GET", "/internal/snap-ins.get") => answer(
            200,
            &json!({ "snap_in": { "imports": [{ "name": "import-1" }, {}], "snap_in_version": { "slug": "slug-1" } } }),
        ),
        ("POST", "/internal/airdrop.recipe.blueprints.create") => {
            answer(201, &json!({ "recipe_blueprint": { "id": "blueprint-1" } }))
        }
        ("POST", _) => answer(200, &json!({ "ok": true })),
        _ => answer(404, &json!({ "message": "no such page" })),
    }
}

fn id() -> ArtifactId {
    ArtifactId::new("don:artifact/7").unwrap()
}

fn batch(bytes: &[u8]) -> Upload<'_> {
    Upload { file_name: "issues.jsonl.gz", content_type: "application/x-gzip", body: Body::Batch(bytes) }
}

fn message(body: &str) -> SealedMessage {
    SealedMessage {
        key: "unit \u{e9}/run-1/3".to_owned(),
        event_type: "EXTRACTION_DATA_DONE".to_owned(),
        body: body.to_owned(),
    }
}

/// A form's parts, read as RFC 7578 has them: their headers and their bytes.
fn parts(request: &Request) -> Vec<(Vec<String>, Vec<u8>)> {
    let content_type = request.header("Content-Type").unwrap();
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    assert!(
        (1..=70).contains(&boundary.len())
            && boundary.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    );
    let find = |from: usize, what: &[u8]| {
        let found = request.body[from..].windows(what.len()).position(|window| window == what);
        found.map(|at| from + at)
    };
    let (first, next) = (format!("--{boundary}\r\n"), format!("\r\n--{boundary}"));
    assert!(request.body.starts_with(first.as_bytes()));
    let mut parts = Vec::new();
    let mut at = first.len();
    loop {
        let head_end = find(at, b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&request.body[at..head_end]).unwrap();
        let end = find(head_end + 4, next.as_bytes()).unwrap();
        parts.push((
            head.split("\r\n").map(str::to_owned).collect(),
            request.body[head_end + 4..end].to_vec(),
        ));
        at = end + next.len();
        if request.body[at..].starts_with(b"--") {
            assert_eq!(&request.body[at..], b"--\r\n", "nothing comes after the form");
            return parts;
        }
        assert!(request.body[at..].starts_with(b"\r\n"));
        at += 2;
    }
}

/// The four fields of the usual form, in their order.
fn check_fields(parts: &[(Vec<String>, Vec<u8>)]) {
    let fields: Vec<_> =
        parts.iter().map(|(head, value)| (head.join("|"), String::from_utf8_lossy(value))).collect();
    let expected =
        [("key", "in/7"), ("X-Amz-Signature", SIGNATURE), ("Policy", POLICY), ("acl%22x", "private")];
    assert_eq!(fields.len(), expected.len());
    for ((head, value), (name, expected)) in fields.iter().zip(expected) {
        assert_eq!(head, &format!("Content-Disposition: form-data; name=\"{name}\""));
        assert_eq!(value, expected);
    }
}

#[test]
fn a_batch_is_prepared_and_uploaded_whole_with_its_true_length() {
    let server = Server::start();
    // Longer than any buffer, with bytes that look like the end of a form.
    let bytes: Vec<u8> = (0..700_000u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
    let bytes = [b"\r\n--highwater-".as_slice(), &bytes].concat();
    assert_eq!(server.client().upload(batch(&bytes)).unwrap(), id());
    let [prepare, upload] = server.requests().try_into().unwrap();

    prepare.check("GET", "/internal/airdrop.artifacts.upload-url");
    assert_eq!(prepare.header("Authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    let size = bytes.len().to_string();
    assert_eq!(
        prepare.query(),
        [
            ("file_name", "issues.jsonl.gz"),
            ("file_size", size.as_str()),
            ("file_type", "application/x-gzip"),
            ("request_id", "req/1 &=")
        ]
    );
    assert!(prepare.body.is_empty());

    upload.check("POST", "/files/put");
    assert_eq!(upload.query(), [("signature", SIGNATURE)]);
    assert_eq!(upload.header("Authorization"), None, "the file store has no business with the token");
    assert!(!upload.headers.iter().any(|(_, value)| value.contains(TOKEN)));
    let parts = parts(&upload);
    let ((file_head, file), fields) = parts.split_last().unwrap();
    check_fields(fields);
    let disposition = "Content-Disposition: form-data; name=\"file\"";
    assert_eq!(file_head, &[disposition, "Content-Type: application/octet-stream"], "no file name");
    assert!(file == &bytes);
}

/// A source that gives its bytes in odd pieces, and is interrupted now and then.
struct Pieces<'a> {
    left: &'a [u8],
    calls: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(5) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = buffer.len().min(1 + self.calls * 37 % 5000).min(self.left.len());
        let (now, later) = self.left.split_at(most);
        buffer[..most].copy_from_slice(now);
        self.left = later;
        Ok(most)
    }
}

fn streamed(
    client: &Client,
    bytes: &[u8],
    told: Option<u64>,
    file_name: &str,
) -> Result<ArtifactId, PlatformError> {
    let mut source = Pieces { left: bytes, calls: 0 };
    let body = Body::Stream { reader: &mut source, length_bytes: told };
    client.upload(Upload { file_name, content_type: "image/png", body })
}

#[test]
fn a_stream_is_uploaded_with_its_true_length_whether_that_was_told_or_not() {
    let server = Server::start();
    let client = server.client();
    let bytes: Vec<u8> = (0..500_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    for (bytes, told) in [(&bytes[..], true), (&bytes[..], false), (&[], true), (&[], false)] {
        let length = told.then_some(bytes.len() as u64);
        streamed(&client, bytes, length, "a \"b\"\r\nX: \u{e9}.png").unwrap();
        let [prepare, upload] = server.requests().try_into().unwrap();
        prepare.check("GET", "/internal/airdrop.artifacts.upload-url");
        let size = bytes.len().to_string();
        assert_eq!(
            prepare.query(),
            [
                ("file_name", "a \"b\"\r\nX: \u{e9}.png"),
                ("file_size", size.as_str()),
                ("file_type", "image/png"),
                ("request_id", "req/1 &=")
            ]
        );
        upload.check("POST", "/files/put");
        let parts = parts(&upload);
        let ((file_head, file), fields) = parts.split_last().unwrap();
        check_fields(fields);
        let disposition =
            "Content-Disposition: form-data; name=\"file\"; filename=\"a %22b%22%0D%0AX: \u{e9}.png\"";
        assert_eq!(file_head, &[disposition, "Content-Type: image/png"]);
        assert!(file == bytes);
    }
}

#[test]
fn every_attempt_sends_the_whole_body() {
    let server = Server::start();
    let client = server.client();
    let bytes = vec![7; 300_000];
    for _ in 0..3 {
        server.fault("/files/put", Reply::Answer(503, Vec::new(), Vec::new()));
        assert!(client.upload(batch(&bytes)).is_err());
    }
    client.upload(batch(&bytes)).unwrap();
    let uploads: Vec<_> =
        server.requests().into_iter().filter(|request| request.path == "/files/put").collect();
    assert_eq!(uploads.len(), 4);
    for upload in uploads {
        upload.check("POST", "/files/put");
        assert!(parts(&upload).last().unwrap().1 == bytes);
    }
}

#[test]
fn a_stream_that_is_not_as_long_as_told_makes_no_artifact() {
    let server = Server::start();
    let client = server.client();
    let bytes = vec![7; 200_000];
    for (told, said) in
        [(200_001, "ended after 200000 of the 200001 declared bytes"), (199_999, "longer than the 199999")]
    {
        let error = streamed(&client, &bytes, Some(told), "x.png").unwrap_err();
        assert!(matches!(error, PlatformError::Retry { fate: Fate::NotApplied, .. }), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
        // The server has it from the socket when that is closed, which may be later.
        let upload = loop {
            let requests = server.requests();
            if let Some(upload) = requests.into_iter().find(|request| request.path == "/files/put") {
                break upload;
            }
            thread::yield_now();
        };
        assert!(!upload.complete, "the form must not look whole");
    }
}

/// A source that fails half way.
struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other(format!("gone: https://source.example/f?key={SIGNATURE}")));
        }
        let most = buffer.len().min(self.0);
        self.0 -= most;
        Ok(most)
    }
}

#[test]
fn a_source_that_fails_is_told_from_the_platform() {
    let server = Server::start();
    let client = server.client();
    for told in [Some(500_000), None] {
        let body = Body::Stream { reader: &mut Failing(250_000), length_bytes: told };
        let upload = Upload { file_name: "x", content_type: "image/png", body };
        let error = client.upload(upload).unwrap_err();
        assert!(matches!(error, PlatformError::Retry { fate: Fate::NotApplied, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("reading what is to be uploaded: gone: (url)"), "{text}");
    }
}

#[test]
fn a_file_over_the_limit_is_not_even_prepared() {
    let server = Server::start();
    let error = streamed(&server.client(), b"x", Some(2 * 1024 * 1024 * 1024 + 1), "x").unwrap_err();
    assert!(matches!(error, PlatformError::Refused { status: 413, .. }), "{error:?}");
    assert!(server.requests().is_empty());
}

#[test]
fn a_redirect_is_success_for_a_stream_only_and_is_never_followed() {
    let server = Server::start();
    let client = server.client();
    let redirect =
        |status| Reply::Answer(status, vec![("Location", "/elsewhere".to_owned())], b"moved".to_vec());
    for status in [301, 303, 307] {
        server.fault("/files/put", redirect(status));
        assert_eq!(streamed(&client, b"abc", Some(3), "x.png").unwrap(), id());
        for path in
            ["/files/put", "/callback", "/internal/airdrop.artifacts.upload-url", "/worker_data.update"]
        {
            server.fault(path, redirect(status));
        }
        let errors = [
            client.upload(batch(b"abc")).unwrap_err(),
            client.upload(batch(b"abc")).unwrap_err(),
            client.send(&message("{}")).unwrap_err(),
            client.save_worker_state("{}").unwrap_err(),
        ];
        // The first did not get farther than to ask where to upload to, which changes nothing.
        let fates = [Fate::NotApplied, Fate::Unknown, Fate::Unknown, Fate::Unknown];
        for (error, expected) in errors.into_iter().zip(fates) {
            assert!(matches!(error, PlatformError::Retry { fate, .. } if fate == expected), "{error:?}");
            assert!(error.to_string().contains("a redirect, which is not followed"), "{error}");
        }
    }
    assert!(server.requests().iter().all(|request| request.path != "/elsewhere"));
}

#[test]
fn a_form_may_have_no_fields() {
    let server = Server::start();
    let client = server.client();
    for form_data in [json!([]), json!({}), Value::Null] {
        let prepared = json!({
            "artifact_id": "don:artifact/7", "upload_url": format!("http://{}/files/put", server.address),
            "form_data": form_data
        });
        server.fault("/internal/airdrop.artifacts.upload-url", answer(200, &prepared));
        client.upload(batch(b"abc")).unwrap();
        let [_, upload] = server.requests().try_into().unwrap();
        upload.check("POST", "/files/put");
        assert_eq!(parts(&upload).len(), 1);
    }
}

#[test]
fn an_upload_is_confirmed_by_request_and_artifact() {
    let server = Server::start();
    server.client().confirm(&id()).unwrap();
    let [confirm] = server.requests().try_into().unwrap();
    confirm.check("POST", "/internal/airdrop.artifacts.confirm-upload");
    assert_eq!(confirm.query(), []);
    assert_eq!(confirm.header("Authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(confirm.header("Content-Type"), Some("application/json"));
    assert_eq!(confirm.json(), json!({ "request_id": "req/1 &=", "artifact_id": "don:artifact/7" }));
}

#[test]
fn a_message_goes_to_the_callback_as_it_was_sealed() {
    let server = Server::start();
    let body = "{\"event_type\": \"X\",  \"n\":1.0, \"t\":\"\u{e9}\"}";
    server.client().send(&message(body)).unwrap();
    let [sent] = server.requests().try_into().unwrap();
    sent.check("POST", "/callback");
    assert_eq!(sent.query(), [("key", SIGNATURE)]);
    assert_eq!(sent.header("Authorization"), Some(TOKEN), "no Bearer");
    assert_eq!(sent.header("Content-Type"), Some("application/json"));
    assert_eq!(sent.header("X-DevRev-Client-Platform"), Some("snap-1"));
    assert_eq!(sent.header("X-DevRev-Client-Id"), Some("don:snap_in_version/3"));
    assert_eq!(sent.header("X-DevRev-Client-Version"), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(sent.header("Idempotency-Key"), Some("unit%20%C3%A9/run-1/3"));
    assert_eq!(sent.body, body.as_bytes(), "byte for byte");
}

#[test]
fn worker_state_is_fetched_and_saved_under_unit_and_request() {
    let server = Server::start();
    let client = server.client();
    let query = [("request_id", "adaas-1"), ("sync_unit", "unit-1")];
    let found = client.worker_state().unwrap().unwrap();
    assert_eq!(found.state.as_deref(), Some("{\"a\":\"\u{e9}\"}"));
    assert_eq!(found.objects.as_deref(), Some("{\"issues\":{\"extract\":false}}"));
    let [get] = server.requests().try_into().unwrap();
    get.check("GET", "/worker_data.get");
    assert_eq!((get.query(), get.header("Authorization")), (query.to_vec(), Some(TOKEN)));

    server.fault("/worker_data.get", answer(404, &json!({ "message": "none yet" })));
    assert_eq!(client.worker_state().unwrap(), None);
    server.fault("/worker_data.get", answer(200, &json!({ "objects": null })));
    assert_eq!(client.worker_state().unwrap(), Some(WorkerState::default()));
    // As large as the platform keeps it, and all of it escaped.
    let large = "\"".repeat(1_000_000);
    server.fault("/worker_data.get", answer(200, &json!({ "state": large })));
    assert_eq!(client.worker_state().unwrap().unwrap().state.unwrap(), large);
    server.requests();

    client.save_worker_state("{\"a\":\"\u{e9}\"}").unwrap();
    let [update] = server.requests().try_into().unwrap();
    update.check("POST", "/worker_data.update");
    assert_eq!((update.query(), update.header("Authorization")), (query.to_vec(), Some(TOKEN)));
    assert_eq!(update.header("Content-Type"), Some("application/json"));
    assert_eq!(update.json(), json!({ "state": "{\"a\":\"\u{e9}\"}" }));
}

#[test]
fn an_artifact_is_downloaded_as_it_is() {
    let server = Server::start();
    let client = server.client();
    assert_eq!(client.download(&id()).unwrap(), b"\x1f\x8b as it was");
    let [ask, get] = server.requests().try_into().unwrap();
    ask.check("GET", "/internal/airdrop.artifacts.download-url");
    assert_eq!(ask.query(), [("artifact_id", "don:artifact/7"), ("request_id", "req/1 &=")]);
    assert_eq!(ask.header("Authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    get.check("GET", "/files/get");
    assert_eq!((get.query(), get.header("Authorization")), (vec![("signature", SIGNATURE)], None));

    server.fault("/files/get", Reply::CutBody);
    let error = client.download(&id()).unwrap_err();
    assert!(
        matches!(error, PlatformError::Retry { fate: Fate::NotApplied, .. }),
        "half a file is none: {error:?}"
    );
    server.fault("/files/get", Reply::Answer(403, Vec::new(), xml("AccessDenied")));
    let error = client.download(&id()).unwrap_err();
    // Its address had expired: the next attempt asks for another.
    assert_eq!(error.to_string(), "downloading an artifact: AccessDenied (answered 403)");
}

#[test]
fn an_initial_domain_mapping_is_installed_with_its_blueprint_once_the_snap_in_is_known() {
    let server = Server::start();
    let client = server.client();
    let mapping = json!({
        "starting_recipe_blueprint": { "name": "b", "steps": [1] },
        "additional_mappings": { "record_type_mappings": { "issues": {} }, "import_slug": "own" }
    });
    client.check_mapping(&mapping).unwrap();
    let blueprint = client.create_blueprint(&mapping).unwrap();
    assert_eq!(blueprint.as_deref(), Some("blueprint-1"));
    client.install_mapping(&mapping, blueprint.as_deref()).unwrap();
    let [snap_in, create, install] = server.requests().try_into().unwrap();
    snap_in.check("GET", "/internal/snap-ins.get");
    assert_eq!(snap_in.query(), [("id", "don:snap_in/2")]);
    create.check("POST", "/internal/airdrop.recipe.blueprints.create");
    assert_eq!(create.json(), json!({ "name": "b", "steps": [1] }));
    install.check("POST", "/internal/airdrop.recipe.initial-domain-mappings.install");
    assert_eq!(
        install.json(),
        json!({
            "external_system_type": "ADaaS", "import_slug": "own", "snap_in_slug": "slug-1",
            "starting_recipe_blueprint": "blueprint-1", "record_type_mappings": { "issues": {} }
        })
    );
    for request in [snap_in, create, install] {
        assert_eq!(request.header("Authorization"), Some(TOKEN), "no Bearer: {}", request.path);
    }

    for bare in [json!({}), json!({ "starting_recipe_blueprint": {}, "additional_mappings": null })] {
        let client = server.client();
        assert_eq!(client.create_blueprint(&bare).unwrap(), None);
        client.install_mapping(&bare, None).unwrap();
        let [_, install] = server.requests().try_into().unwrap();
        let body =
            json!({ "external_system_type": "ADaaS", "import_slug": "import-1", "snap_in_slug": "slug-1" });
        assert_eq!(install.json(), body);
    }
    for installs in [false, true] {
        let client = server.client();
        let call = |mapping: &Value| {
            if installs { client.install_mapping(mapping, None) } else { client.check_mapping(mapping) }
        };
        server.fault("/internal/snap-ins.get", answer(200, &json!({ "snap_in": { "imports": [] } })));
        let error = call(&mapping).unwrap_err().to_string();
        assert!(error.contains("the name of an import"), "{error}");
        server.requests();
        let error = call(&json!({ "additional_mappings": [] })).unwrap_err().to_string();
        assert!(error.contains("must be an object"), "{error}");
        assert!(server.requests().is_empty());
        // What was answered wrong is asked for again.
        call(&mapping).unwrap();
        server.requests();
    }
}

fn xml(code: &str) -> Vec<u8> {
    let hidden = format!("<StringToSign>{SIGNATURE}</StringToSign><Policy>{POLICY}</Policy>");
    format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code>{hidden}</Error>").into_bytes()
}

/// The calls that change something, each with the path that it ends at.
type Call = fn(&Client) -> Result<(), PlatformError>;
const CALLS: [(&str, Call); 5] = [
    ("/callback", |client| client.send(&message("{\"a\":1}"))),
    ("/internal/airdrop.artifacts.confirm-upload", |client| client.confirm(&id())),
    ("/worker_data.update", |client| client.save_worker_state("{}")),
    ("/internal/airdrop.recipe.initial-domain-mappings.install", |client| {
        client.install_mapping(&json!({}), None)
    }),
    ("/files/put", |client| client.upload(batch(b"abc")).map(drop)),
];

/// What an error tells: fate and wait in seconds of what may be tried again, status of what may not.
type Told = Result<(Fate, Option<u64>), u16>;

fn told(error: &PlatformError) -> Told {
    match error {
        PlatformError::Retry { fate, after, .. } => Ok((*fate, after.map(|after| after.as_secs()))),
        PlatformError::StorageRefused { after, .. } => {
            Ok((Fate::NotApplied, after.map(|after| after.as_secs())))
        }
        PlatformError::Refused { status, .. } => Err(*status),
        other => panic!("{other}"),
    }
}

#[test]
fn each_fault_has_its_fate() {
    let server = Server::start();
    let now = DateTime::parse_from_rfc3339("2026-01-31T12:00:00Z").unwrap().with_timezone(&Utc);
    let client = server.client().clock(VirtualClock::at(now));
    let hasty = server.hasty_client();
    let body = || format!("{{\"message\":\"no {TOKEN}\"}}").into_bytes();
    let status = |status| Reply::Answer(status, Vec::new(), body());
    let later = |status, after: &str| Reply::Answer(status, vec![("Retry-After", after.to_owned())], body());
    let unknown = Ok((Fate::Unknown, None));
    let not_applied = |after| Ok((Fate::NotApplied, after));
    let faults: [(Reply, Told); 20] = [
        (Reply::CutHeader, unknown),
        // All of a small body is on its way by then.
        (Reply::HangUp, unknown),
        (Reply::Silence, unknown),
        (status(500), unknown),
        (status(503), unknown),
        (later(503, "7"), Ok((Fate::Unknown, Some(7)))),
        (status(429), not_applied(None)),
        (later(429, "120"), not_applied(Some(120))),
        (later(429, "Sat, 31 Jan 2026 12:00:45 GMT"), not_applied(Some(45))),
        (later(429, "whenever"), not_applied(None)),
        (status(400), Err(400)),
        (status(401), Err(401)),
        (status(403), Err(403)),
        (status(404), Err(404)),
        (status(409), Err(409)),
        (status(413), Err(413)),
        (status(408), unknown),
        (later(408, "1.5"), Ok((Fate::Unknown, Some(1)))),
        (status(425), not_applied(None)),
        (later(429, "99999999999999999999"), not_applied(Some(24 * 60 * 60))),
    ];
    for (path, call) in CALLS {
        for (fault, expected) in &faults {
            // A form goes out in pieces, so there it may be either.
            if matches!(fault, Reply::HangUp) && path == "/files/put" {
                continue;
            }
            server.fault(path, fault.clone());
            let silent = matches!(fault, Reply::Silence);
            let error = call(if silent { &hasty } else { &client }).unwrap_err();
            // The storage returns these for temporary reasons.
            let passing = path == "/files/put" && matches!(fault, Reply::Answer(403 | 503, ..));
            assert_eq!(
                matches!(error, PlatformError::StorageRefused { .. }),
                passing,
                "{path}, {fault:?}: {error:?}"
            );
            let expected = match expected {
                Ok((_, after)) if passing => not_applied(*after),
                Err(_) if passing => not_applied(None),
                expected => *expected,
            };
            assert_eq!(told(&error), expected, "{path}, {fault:?}: {error}");
            assert_eq!(error.to_string().contains("no answer in time"), silent, "{error}");
            // The next attempt is not hindered by it.
            call(&client).unwrap_or_else(|error| panic!("{path} after {fault:?}: {error}"));
            server.requests();
        }
    }
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
#[test]
fn what_the_storage_refuses_for_a_passing_reason_is_told_from_a_definite_no() {
    let server = Server::start();
    let client = server.client();
    for (status, code, passing) in [
        (400, "RequestTimeout", true),
        (400, "EntityTooLarge", false),
        (403, "AccessDenied", true),
        (403, "RequestTimeTooSkewed", true),
        (503, "SlowDown", true),
        (500, "SlowDown", true),
        (404, "NoSuchBucket", false),
    ] {
        server.fault("/files/put", Reply::Answer(status, Vec::new(), xml(code)));
        let error = client.upload(batch(b"abc")).unwrap_err();
        assert_eq!(
            matches!(error, PlatformError::StorageRefused { .. }),
            passing,
            "{status} {code}: {error:?}"
        );
        assert_eq!(matches!(error, PlatformError::Refused { .. }), !passing, "{status} {code}: {error:?}");
        assert!(error.to_string().contains(code), "{error}");
    }
}

/// Taken for "nothing is kept yet" it would start the sync unit over.
#[test]
fn a_worker_state_answer_that_is_no_object_is_no_empty_state() {
    let server = Server::start();
    let page = json!({ "message": "the service is busy" });
    for body in [json!("ok"), json!([]), json!(null), json!(1), json!({}), page] {
        server.fault("/worker_data.get", answer(200, &body));
        let error = server.client().worker_state().unwrap_err();
        assert!(matches!(error, PlatformError::Retry { .. }), "{body}: {error:?}");
    }
}

/// It was no JSON to us, so the worker state was never fetched, and no event of the sync unit was ever answered.
#[test]
fn half_a_character_in_a_worker_state_keeps_nobody_from_reading_it() {
    let server = Server::start();
    let found = |body: &str| {
        server.fault("/worker_data.get", Reply::Answer(200, Vec::new(), body.as_bytes().to_vec()));
        server.client().worker_state().unwrap().unwrap().state
    };
    // In a state that is JSON within a string the escape is escaped, so it stays as it is.
    assert_eq!(found(r#"{"state":"{\"own\":\"\\ud83d\"}"}"#).unwrap(), r#"{"own":"\ud83d"}"#);
    let repaired = found(r#"{"state":{"own":"a\ud83d","n":1}}"#).unwrap();
    assert_eq!(repaired, "{\"own\":\"a\u{fffd}\",\"n\":1}");
    assert_eq!(found(r#"{"state":null,"objects":null}"#), None);
}

/// RFC 9110, section 15.2: any number of them may come before the answer.
#[test]
fn an_interim_answer_is_not_the_answer() {
    let server = Server::start();
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    for (status, accepted) in [(200, true), (409, false)] {
        let text = format!("{interim}HTTP/1.1 {status} Some Reason\r\nContent-Length: 0\r\n\r\n");
        server.fault("/callback", Reply::Raw(text));
        let sent = server.client().send(&message("{}"));
        match sent {
            Ok(()) => assert!(accepted),
            Err(PlatformError::Refused { status: 409, .. }) => assert!(!accepted),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(server.requests().len(), 2, "each was sent once");
}

#[test]
fn a_platform_that_is_not_there_has_seen_nothing() {
    // Nothing listens on the first port of all.
    let nowhere = Server { address: "127.0.0.1:1".parse().unwrap(), record: Arc::default() };
    for (path, call) in CALLS {
        let error = call(&nowhere.client()).unwrap_err();
        assert!(matches!(error, PlatformError::Retry { fate: Fate::NotApplied, .. }), "{path}: {error:?}");
    }
    // Nor one that speaks no TLS where it should.
    let server = Server::start();
    let event = server.event().to_string().replace("http://", "https://");
    let client =
        Client::new(&Event::from_json(&event).unwrap()).unwrap().request_timeout(Duration::from_secs(5));
    for (path, call) in CALLS {
        let error = call(&client).unwrap_err();
        assert!(matches!(error, PlatformError::Retry { fate: Fate::NotApplied, .. }), "{path}: {error:?}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_request_that_was_cut_off_within_its_body_was_not_acted_on() {
    let server = Server::start();
    let client = server.client();
    // More than a socket takes in before it is read from.
    let large = "x".repeat(32_000_000);
    server.fault("/worker_data.update", Reply::HangUp);
    server.fault("/callback", Reply::HangUp);
    server.fault("/files/put", Reply::HangUp);
    for error in [
        client.save_worker_state(&large).unwrap_err(),
        client.send(&message(&large)).unwrap_err(),
        client.upload(batch(large.as_bytes())).unwrap_err(),
    ] {
        assert!(matches!(error, PlatformError::Retry { fate: Fate::NotApplied, .. }), "{error:?}");
    }
    assert!(
        server.requests().iter().filter(|request| request.method == "POST").all(|request| !request.complete)
    );
}

#[test]
fn what_was_accepted_stays_accepted_though_the_answer_breaks_off() {
    let server = Server::start();
    let client = server.client();
    for (fault, client) in [(Reply::CutBody, client), (Reply::Stall, server.hasty_client())] {
        for (path, call) in CALLS {
            server.fault(path, fault.clone());
            call(&client).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(server.requests().iter().any(|request| request.path == path));
        }
        // But not where the answer is what was asked for.
        let path = "/internal/airdrop.artifacts.upload-url";
        server.fault(path, fault.clone());
        let error = client.upload(batch(b"abc")).unwrap_err();
        assert!(matches!(error, PlatformError::Retry { .. }), "{error:?}");
        server.fault("/worker_data.get", fault.clone());
        assert!(matches!(client.worker_state().unwrap_err(), PlatformError::Retry { .. }));
    }
}

#[test]
fn an_answer_that_makes_no_sense_is_no_success() {
    let server = Server::start();
    let client = server.client();
    let prepare = "/internal/airdrop.artifacts.upload-url";
    let good = json!({ "artifact_id": "a", "upload_url": "http://127.0.0.1:1/", "form_data": {} });
    let without = |name: &str, value: Value| {
        let mut broken = good.clone();
        broken[name] = value;
        answer(200, &broken)
    };
    let cases = [
        (Reply::Answer(200, Vec::new(), b"<html>".to_vec()), "expected, JSON"),
        (Reply::Answer(204, Vec::new(), Vec::new()), "expected, JSON"),
        (Reply::Answer(200, Vec::new(), vec![b' '; 1_000_000]), "at most 262144 bytes"),
        (without("artifact_id", Value::Null), "an artifact_id"),
        (without("artifact_id", json!("")), "an artifact_id"),
        (without("artifact_id", json!("a\nb")), "an artifact_id"),
        (without("upload_url", json!("ftp://x")), "an upload_url"),
        (without("upload_url", json!("/relative")), "an upload_url"),
        (without("form_data", json!("x")), "a form_data"),
        (Reply::Answer(200, vec![("X", "y".repeat(100_000))], Vec::new()), "header is too large"),
    ];
    for (reply, expected) in cases {
        server.fault(prepare, reply);
        let error = client.upload(batch(b"abc")).unwrap_err();
        assert!(matches!(error, PlatformError::Retry { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(server.requests().iter().all(|request| request.path == prepare));
    }
    server.fault("/worker_data.get", answer(200, &json!({ "state": "x".repeat(9_000_000) })));
    assert!(client.worker_state().unwrap_err().to_string().contains("bytes"));
}

#[test]
fn connections_are_kept_alive() {
    let server = Server::start();
    let client = server.client();
    client.upload(batch(b"abc")).unwrap();
    let both = server.connections();
    assert_eq!(both, 2, "calls and files go separate ways");
    for (path, call) in CALLS {
        // The connection is reused after an answer, and after an error with a body.
        server.fault(path, Reply::Answer(503, Vec::new(), vec![b'x'; 100_000]));
        assert!(call(&client).is_err());
        call(&client).unwrap();
    }
    client.worker_state().unwrap();
    client.download(&id()).unwrap();
    assert_eq!(server.connections(), both);
    let requests = server.requests();
    assert!(requests.len() > 15 && requests.iter().all(|request| request.connection <= both));
    // One that a fault has broken is not used again.
    server.fault("/callback", Reply::CutHeader);
    assert!(client.send(&message("{}")).is_err());
    client.send(&message("{}")).unwrap();
    assert_eq!(server.connections(), both + 1);
}

#[test]
fn many_threads_may_use_one_client() {
    let server = Server::start();
    let client = server.client();
    thread::scope(|scope| {
        for lane in 0..8u8 {
            let client = &client;
            scope.spawn(move || {
                for _ in 0..5 {
                    client.upload(batch(&vec![lane; 50_000])).unwrap();
                    client.confirm(&id()).unwrap();
                }
            });
        }
    });
    let requests = server.requests();
    let uploads: Vec<_> = requests.iter().filter(|request| request.path == "/files/put").collect();
    assert_eq!((requests.len(), uploads.len()), (120, 40));
    for upload in uploads {
        let file = parts(upload).pop().unwrap().1;
        assert!(file.len() == 50_000 && file.iter().all(|byte| *byte == file[0]), "two bodies were mixed");
    }
}

#[test]
fn a_call_that_lacks_a_field_names_it_and_sends_nothing() {
    let server = Server::start();
    let lacks = |path: &str, instead: Value| {
        let mut event = server.event();
        *event.pointer_mut(&format!("/{}", path.replace('.', "/"))).unwrap() = instead;
        client(&event).unwrap()
    };
    let endpoint = "execution_metadata.devrev_endpoint";
    let worker_data = "payload.event_context.worker_data_url";
    let unit = "payload.event_context.sync_unit_id";
    let request = "payload.event_context.request_id";
    let snap_in = "context.snap_in_id";
    let cases: [(&str, Value, Call); 9] = [
        (endpoint, Value::Null, |client| client.upload(batch(b"abc")).map(drop)),
        (endpoint, json!("platform"), |client| client.confirm(&id())),
        (endpoint, json!(7), |client| client.download(&id()).map(drop)),
        (worker_data, Value::Null, |client| client.worker_state().map(drop)),
        (worker_data, json!("ftp://x"), |client| client.save_worker_state("{}")),
        (unit, Value::Null, |client| client.save_worker_state("{}")),
        (unit, json!([]), |client| client.worker_state().map(drop)),
        (request, json!(1.5), |client| client.confirm(&id())),
        (snap_in, Value::Null, |client| client.install_mapping(&json!({}), None)),
    ];
    for (field, instead, call) in cases {
        let error = call(&lacks(field, instead)).unwrap_err();
        assert!(matches!(&error, PlatformError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(field), "{error}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_client_needs_a_token_and_an_address_to_answer_to() {
    let server = Server::start();
    let cases = [
        ("context.secrets.service_account_token", Value::Null, "is missing"),
        ("context.secrets.service_account_token", json!("a\r\nX: b"), "an HTTP header can carry"),
        ("payload.event_context.callback_url", Value::Null, "is missing"),
        ("payload.event_context.callback_url", json!("callback"), "an http or https URL"),
        ("payload.event_context.callback_url", json!(format!("ftp://x/{SIGNATURE}")), "an http or https URL"),
        ("payload.event_context.snap_in_slug", json!("a\r\nX: b"), "an HTTP header can carry"),
        ("context.snap_in_version_id", json!("\u{e9}\n"), "an HTTP header can carry"),
    ];
    for (path, instead, expected) in cases {
        let mut event = server.event();
        *event.pointer_mut(&format!("/{}", path.replace('.', "/"))).unwrap() = instead;
        let error = client(&event).unwrap_err();
        assert!(matches!(&error, Error::Event { field, .. } if field == path), "{error:?}");
        assert!(error.to_string().contains(expected) && !error.to_string().contains(SIGNATURE), "{error}");
    }
    // A connector without a slug still gets its answer out.
    let mut event = server.event();
    event["payload"]["event_context"]["snap_in_slug"] = Value::Null;
    event["context"]["snap_in_version_id"] = Value::Null;
    client(&event).unwrap().send(&message("{}")).unwrap();
    let [sent] = server.requests().try_into().unwrap();
    assert_eq!((sent.header("X-DevRev-Client-Platform"), sent.header("X-DevRev-Client-Id")), (None, None));
}

#[test]
fn no_secret_shows_in_an_error_or_in_debug() {
    fn seen(shown: &mut Vec<String>, what: &impl Debug) {
        shown.extend([format!("{what:?}"), format!("{what:#?}")]);
    }
    let server = Server::start();
    let client = server.client();
    let mut shown = Vec::new();
    seen(&mut shown, &client);
    // A platform and a file store that repeat everything they were sent.
    let echo = format!(
        "denied: {TOKEN} at http://{}/files/put?signature={SIGNATURE}\r\nAuthorization: Bearer {TOKEN}",
        server.address
    );
    let bodies = [
        echo.clone().into_bytes(),
        json!({ "message": echo }).to_string().into_bytes(),
        xml("SignatureDoesNotMatch"),
    ];
    for (path, call) in CALLS {
        for status in [400, 403, 429, 500] {
            for body in &bodies {
                server.fault(path, Reply::Answer(status, Vec::new(), body.clone()));
                let error = call(&client).unwrap_err();
                shown.push(error.to_string());
                seen(&mut shown, &error);
            }
        }
        for fault in [Reply::CutHeader, Reply::HangUp] {
            server.fault(path, fault);
            let error = call(&client).unwrap_err();
            shown.push(error.to_string());
            seen(&mut shown, &error);
        }
    }
    for text in &shown {
        assert!(!text.contains(TOKEN) && !text.contains(SIGNATURE) && !text.contains(POLICY), "{text}");
        assert!(!text.contains("://"), "a URL: {text}");
        assert!(text.len() < 2_000, "not cut: {text}");
    }
    // It is not that nothing is told.
    assert!(shown.iter().any(|text| text.contains("denied: (hidden) at (url)")), "{shown:#?}");
    assert!(shown.iter().any(|text| text.contains("uploading: SignatureDoesNotMatch")));
}

/// The checks above would see a client that errs.
#[test]
fn the_server_sees_chunks_and_wrong_lengths() {
    let server = Server::start();
    let raw = |text: &str| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        io::copy(&mut stream, &mut io::sink()).unwrap();
    };
    raw("POST /callback HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
    raw("POST /callback HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}");
    let requests = server.requests();
    assert_eq!(requests[0].header("Transfer-Encoding"), Some("chunked"));
    assert!(requests.iter().any(|request| !request.complete));
    assert!(std::panic::catch_unwind(|| requests[0].check("POST", "/callback")).is_err());
}

/// A proxy on a loopback port: HTTP (`CONNECT`) and SOCKS 5 (RFC 1928). Whatever host it is asked for, it leads to
/// `platform`.
struct Proxy {
    address: SocketAddr,
    asked_for: Arc<Mutex<BTreeSet<String>>>,
}

impl Proxy {
    fn start(platform: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), asked_for: Arc::default() };
        let asked_for = proxy.asked_for.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, asked_for) = (stream.unwrap(), asked_for.clone());
                thread::spawn(move || {
                    let mut first = [0];
                    stream.read_exact(&mut first).unwrap();
                    let target = if first == [5] { socks(&mut stream) } else { connect(&mut stream) };
                    asked_for.lock().unwrap().insert(target);
                    let mut there = TcpStream::connect(platform).unwrap();
                    let (mut back, mut to) = (stream.try_clone().unwrap(), there.try_clone().unwrap());
                    thread::spawn(move || io::copy(&mut stream, &mut to));
                    let _ = io::copy(&mut there, &mut back);
                });
            }
        });
        proxy
    }

    /// What it was asked for since the last time.
    fn asked_for(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked_for.lock().unwrap()).into_iter().collect()
    }
}

/// Takes `CONNECT host:port`, but for its first letter.
fn connect(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let head = String::from_utf8(head).unwrap();
    head.strip_prefix("ONNECT ").unwrap().split(' ').next().unwrap().to_owned()
}

/// Reads a SOCKS 5 greeting, without its first byte, and a request for a host by name.
fn socks(stream: &mut TcpStream) -> String {
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let methods = take(1)[0];
    take(methods.into());
    stream.write_all(&[5, 0]).unwrap();
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(take(4), [5, 1, 0, 3], "a connection to a host that is named");
    let length = take(1)[0];
    let host = String::from_utf8(take(length.into())).unwrap();
    let port = take(2);
    let port = u16::from_be_bytes([port[0], port[1]]);
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    format!("{host}:{port}")
}

const CHILD_EVENT: &str = "HIGHWATER_TEST_EVENT";

/// What a child process does, with the proxies in its environment: each kind of call once.
#[test]
fn each_call_in_a_child() {
    let Ok(event) = std::env::var(CHILD_EVENT) else { return };
    let client = Client::new(&Event::from_json(&event).unwrap()).unwrap();
    client.worker_state().unwrap();
    client.upload(batch(b"bytes")).unwrap();
    client.confirm(&id()).unwrap();
    client.download(&id()).unwrap();
    client.send(&message("{}")).unwrap();
}

/// Makes each call in a process with these variables; what it said if one failed.
fn in_a_child(event: &Value, variables: &[(&str, &str)]) -> Result<(), String> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "client::each_call_in_a_child", "--nocapture"]);
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
        child.env_remove(name).env_remove(name.to_lowercase());
    }
    let output = child.env(CHILD_EVENT, event.to_string()).envs(variables.iter().copied()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("running 1 test"), "{said}");
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// Has the server name itself by this host wherever it gives out an address, and gives an event that does the same.
fn named(server: &Server, base: &str) -> Value {
    let json = server.event().to_string().replace(&format!("http://{}", server.address), base);
    let upload_url = json!({ "artifact_id": "don:artifact/7", "upload_url": format!("{base}/files/put"), "form_data": {} });
    server.fault("/internal/airdrop.artifacts.upload-url", answer(200, &upload_url));
    let download_url = json!({ "download_url": format!("{base}/files/get") });
    server.fault("/internal/airdrop.artifacts.download-url", answer(200, &download_url));
    serde_json::from_str(&json).unwrap()
}

#[test]
fn a_proxy_is_asked_for_what_is_elsewhere_and_never_for_this_machine() {
    let server = Server::start();
    let proxy = Proxy::start(server.address);
    let (http, socks) = (format!("http://{}", proxy.address), format!("socks5h://{}", proxy.address));
    // Names that no resolver knows: RFC 2606.
    for variable in
        [("ALL_PROXY", &socks), ("HTTPS_PROXY", &http), ("HTTP_PROXY", &http), ("http_proxy", &socks)]
    {
        let variable = (variable.0, variable.1.as_str());
        let event = named(&server, "http://platform.invalid");
        in_a_child(&event, &[variable]).unwrap();
        assert_eq!(proxy.asked_for(), ["platform.invalid:80"], "{variable:?}");
        assert_eq!(server.requests().len(), 7, "{variable:?}");
        for host in ["127.0.0.1", "localhost"] {
            let event = named(&server, &format!("http://{host}:{}", server.address.port()));
            in_a_child(&event, &[variable]).unwrap();
            assert!(proxy.asked_for().is_empty(), "{variable:?}: {host}");
            assert_eq!(server.requests().len(), 7, "{variable:?}: {host}");
        }
        for excepted in ["platform.invalid", ".invalid", "other.invalid,platform.invalid", "*"] {
            let mut event = server.event();
            event["payload"]["event_context"]["worker_data_url"] = json!("http://platform.invalid/worker");
            in_a_child(&event, &[variable, ("NO_PROXY", excepted)]).unwrap_err();
            assert!(proxy.asked_for().is_empty() && server.requests().is_empty(), "{variable:?}: {excepted}");
        }
    }
}

/// Else the first call would go out directly, from a worker that must not.
#[test]
fn a_proxy_that_makes_no_sense_is_refused_by_the_name_of_its_variable() {
    let server = Server::start();
    for (name, value) in [
        ("ALL_PROXY", "socks6://user:sig-that-nobody-may-see@proxy.invalid:1080"),
        ("https_proxy", "http://"),
        ("HTTP_PROXY", "ftp://user:sig-that-nobody-may-see@proxy.invalid"),
    ] {
        let said = in_a_child(&server.event(), &[(name, value)]).unwrap_err();
        assert!(said.contains(&format!("the environment variable {name}")), "{said}");
        assert!(!said.contains(SIGNATURE), "{said}");
        assert!(server.requests().is_empty());
    }
    in_a_child(&server.event(), &[("ALL_PROXY", ""), ("HTTP_PROXY", "")]).unwrap();
    assert_eq!(server.requests().len(), 7);
}
