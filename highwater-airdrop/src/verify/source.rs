//! A proxy between a worker and its external system. It first records the answers; from then on it replays them, with
//! one thing going wrong.

use std::collections::{BTreeSet, HashMap};
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use ureq::Agent;

use super::recording::{Answered, Asked, Matching, Recording, is_credential, is_credential_of};
use crate::error::{Error, Result};
use crate::http::{Answer, Reply, Request, Server};

/// Bytes of a request's body at most.
const REQUEST_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of an answer that is recorded at most.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long the external system may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The `Retry-After` of an answer.
const RETRY_AFTER_SECONDS: i64 = 1;
/// Headers of a request that are about its connection.
const OF_CONNECTION: [&str; 9] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
];

/// The reason of a refusal by a fault.
const FAULT: &str = "a fault was set";

/// Stands for the address of the proxy in the worker's settings.
pub const SOURCE_PLACE: &str = "{source}";

/// What happens to a request to the external system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceAct {
    Status(u16),
    /// 429 with `Retry-After` in seconds, or as a date.
    TooMany {
        dated: bool,
    },
    /// The connection breaks off in the middle of the body.
    Cut,
    /// The answer has no items, and its next page is the same page again.
    Empty,
    Slow(Duration),
}

impl SourceAct {
    pub(super) fn word(self) -> String {
        match self {
            SourceAct::Status(status) => status.to_string(),
            SourceAct::TooMany { dated: false } => format!("429-after-{RETRY_AFTER_SECONDS}"),
            SourceAct::TooMany { dated: true } => "429-after-date".to_owned(),
            SourceAct::Cut => "cut".to_owned(),
            SourceAct::Empty => "empty-page".to_owned(),
            SourceAct::Slow(_) => "slow".to_owned(),
        }
    }
}

/// A fault: at the K-th request for a recorded answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceFault {
    /// The name in reports.
    pub(super) text: String,
    pub(super) answer: usize,
    pub(super) nth: u64,
    pub(super) act: SourceAct,
}

/// A request that was made, and its answer.
#[derive(Debug, Clone)]
pub(super) struct SourceCall {
    /// Which answer it got, if there was one.
    pub(super) answer: Option<usize>,
    /// How often that answer was requested by then, from 1.
    pub(super) nth: u64,
    /// The request, without credentials.
    pub(super) request: String,
    pub(super) place: String,
    pub(super) status: Option<u16>,
    pub(super) fault: Option<String>,
    pub(super) invocation: u64,
    pub(super) at_ms: u64,
}

/// Whether it records or replays.
enum Mode {
    Record { upstream: String, agent: Agent },
    Replay(Arc<Recording>),
}

/// The state of a sync.
#[derive(Default)]
struct Now {
    initial: bool,
    fault: Option<SourceFault>,
    /// How often each answer was requested.
    asked: HashMap<usize, u64>,
    /// How many answers a request got, by the first one that was recorded for it.
    given: HashMap<usize, usize>,
    calls: Vec<SourceCall>,
    recorded: Vec<Answered>,
    /// Secrets that no recording may contain.
    secrets: BTreeSet<String>,
    unanswered: Vec<Unanswered>,
}

/// A request that the external system gave no answer to, or not all of one.
pub(super) struct Unanswered {
    initial: bool,
    asked: Asked,
    /// How many answers were recorded before.
    after: usize,
    pub(super) reason: String,
}

impl Unanswered {
    /// Whether the same sync asked again, and was answered.
    pub(super) fn was_repeated(&self, answers: &[Answered]) -> bool {
        let mut later = answers.iter().skip(self.after).filter(|answer| answer.initial == self.initial);
        later.any(|answer| answer.is_final() && answer.answers(&self.asked))
    }
}

/// A proxy in place of the external system, with its own address, until it is dropped.
pub(super) struct Source {
    shared: Arc<Shared>,
    _server: Server,
    base: String,
}

struct Shared {
    mode: Mode,
    matching: Matching,
    base: String,
    now: Mutex<Now>,
    started: Instant,
    /// The current invocation.
    invocation: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// What was recorded.
pub(super) struct Recorded {
    pub(super) answers: Vec<Answered>,
    pub(super) secrets: BTreeSet<String>,
    pub(super) unanswered: Vec<Unanswered>,
}

impl Source {
    /// Passes requests on, and records the answers.
    pub(super) fn record(upstream: &str, matching: Matching, secrets: BTreeSet<String>) -> Result<Self> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        let mode = Mode::Record { upstream: upstream.to_owned(), agent };
        Self::start(mode, matching, secrets, Box::new(|| 0))
    }

    /// Replays the recording.
    pub(super) fn replay(
        recording: Arc<Recording>,
        matching: Matching,
        secrets: BTreeSet<String>,
        invocation: Box<dyn Fn() -> u64 + Send + Sync>,
    ) -> Result<Self> {
        Self::start(Mode::Replay(recording), matching, secrets, invocation)
    }

    fn start(
        mode: Mode,
        matching: Matching,
        secrets: BTreeSet<String>,
        invocation: Box<dyn Fn() -> u64 + Send + Sync>,
    ) -> Result<Self> {
        let unserved = |source: std::io::Error| Error::Port { port: 0, source: source.into() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(unserved)?;
        let base = format!("http://{}", listener.local_addr().map_err(unserved)?);
        let now = Mutex::new(Now { secrets, ..Now::default() });
        let shared =
            Arc::new(Shared { mode, matching, base: base.clone(), now, started: Instant::now(), invocation });
        let answering = Arc::clone(&shared);
        let server = Server::start(listener, move |request| answering.handle(request)).map_err(unserved)?;
        Ok(Self { shared, _server: server, base })
    }

    /// Its base URL.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Begins a sync: whether it is a first one, and which fault it has.
    pub(super) fn begin(&self, initial: bool, fault: Option<SourceFault>) {
        let mut now = self.shared.now();
        now.initial = initial;
        now.fault = fault;
        now.asked.clear();
        now.given.clear();
        now.calls.clear();
    }

    /// The requests since the sync began.
    pub(super) fn calls(&self) -> Vec<SourceCall> {
        self.shared.now().calls.clone()
    }

    /// What was recorded, over all syncs.
    pub(super) fn recorded(&self) -> Recorded {
        let mut now = self.shared.now();
        Recorded {
            answers: std::mem::take(&mut now.recorded),
            secrets: now.secrets.clone(),
            unanswered: std::mem::take(&mut now.unanswered),
        }
    }
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, request: &mut Request<'_>) -> Reply {
        let body = match request.body.read_all(REQUEST_BYTES_MAX, "the request") {
            Ok(body) => body,
            Err(refused) => return Reply::Answer(refused),
        };
        let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &self.mode {
            Mode::Record { upstream, agent } => self.pass_on(upstream, agent, request, &body),
            Mode::Replay(recording) => self.replay(recording, request, &body, at_ms),
        }
    }

    /// The request, without what must not be shown.
    fn asked(&self, secrets: &BTreeSet<String>, request: &Request<'_>, body: &[u8]) -> Asked {
        let open = |text: &str| {
            secrets.iter().filter(|secret| secret.len() >= 6).fold(text.to_owned(), |text, secret| {
                if text.contains(secret.as_str()) { text.replace(secret.as_str(), "REDACTED") } else { text }
            })
        };
        let query: Vec<(String, String)> =
            request.parameters().iter().map(|(name, value)| (name.clone(), open(value))).collect();
        self.matching.asked(&request.method, &open(&request.path), &query, body)
    }

    fn pass_on(&self, upstream: &str, agent: &Agent, request: &Request<'_>, body: &[u8]) -> Reply {
        let (initial, secrets) = {
            let mut now = self.now();
            for (name, value) in request.headers().iter().filter(|(name, _)| is_credential(name)) {
                now.secrets.insert(value.clone());
                if name.eq_ignore_ascii_case("authorization") {
                    now.secrets.extend(value.split_once(' ').map(|(_, token)| token.trim().to_owned()));
                }
            }
            let named = request.parameters().iter().filter(|(name, value)| is_credential_of(name, value));
            now.secrets.extend(named.map(|(_, value)| value.clone()).collect::<Vec<_>>());
            (now.initial, now.secrets.clone())
        };
        let asked = self.asked(&secrets, request, body);
        match fetch(upstream, &self.base, agent, request, body) {
            Ok((status, headers, bytes)) => {
                let answered = Answered::new(initial, asked, status, headers.clone(), bytes.clone());
                self.now().recorded.push(answered);
                // Its links lead back to this proxy.
                let here = |text: &str| text.replace(upstream, &self.base);
                let headers: Vec<(String, String)> = headers
                    .into_iter()
                    .filter(|(name, _)| !is_framing(name))
                    .map(|(name, value)| (name, here(&value)))
                    .collect();
                let bytes = match String::from_utf8(bytes) {
                    Ok(text) => here(&text).into_bytes(),
                    Err(error) => error.into_bytes(),
                };
                Reply::Answer(Answer::of(status, &headers, bytes))
            }
            Err(reason) => {
                let reason = format!("{} {}: {reason}", request.method, request.path);
                let mut now = self.now();
                let after = now.recorded.len();
                now.unanswered.push(Unanswered { initial, asked, after, reason: reason.clone() });
                Reply::Answer(refused(request, 502, reason))
            }
        }
    }

    fn replay(&self, recording: &Recording, request: &Request<'_>, body: &[u8], at_ms: u64) -> Reply {
        let mut now = self.now();
        let asked = self.asked(&now.secrets, request, body);
        let candidates = recording.answers_to(now.initial, &asked);
        // Requests with other bodies differ; the same request at another time is the same.
        let turn = candidates.first().copied().unwrap_or(usize::MAX);
        // Requests after the last recorded one get its answer.
        let given = now.given.get(&turn).copied().unwrap_or(0).min(candidates.len().saturating_sub(1));
        let found = candidates.get(given).and_then(|at| Some((*at, recording.answer(*at)?)));
        let mut call = SourceCall {
            answer: found.map(|(at, _)| at),
            nth: 0,
            request: asked.request.clone(),
            place: found.map(|(_, answer)| answer.place()).unwrap_or_default(),
            status: None,
            fault: None,
            invocation: (self.invocation)(),
            at_ms,
        };
        let Some((at, answer)) = found else {
            call.status = Some(501);
            now.calls.push(call);
            let reason = format!("{} was never recorded", asked.request);
            return Reply::Answer(refused(request, 501, reason));
        };
        let times = now.asked.entry(at).or_default();
        *times += 1;
        call.nth = *times;
        let fault = now.fault.clone().filter(|fault| fault.answer == at && fault.nth == call.nth);
        call.fault = fault.as_ref().map(|fault| fault.text.clone());
        let (headers, bytes) = answer.replayed(&self.base);
        let act = fault.map(|fault| fault.act);
        let reply = match act {
            None | Some(SourceAct::Slow(_)) => {
                now.given.insert(turn, given + 1);
                Answer::of(answer.status, &headers, bytes)
            }
            Some(SourceAct::Status(status)) => refused(request, status, FAULT),
            Some(SourceAct::TooMany { dated }) => {
                let after = if dated {
                    // Dates have whole seconds.
                    let at = Utc::now() + TimeDelta::seconds(RETRY_AFTER_SECONDS + 1);
                    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
                } else {
                    RETRY_AFTER_SECONDS.to_string()
                };
                refused(request, 429, FAULT).with("Retry-After", after)
            }
            Some(SourceAct::Cut) => Answer::of(answer.status, &headers, bytes).cut(),
            Some(SourceAct::Empty) => {
                Answer::of(answer.status, &headers, recording.empty_page(at).unwrap_or(bytes))
            }
        };
        call.status = Some(reply.status);
        now.calls.push(call);
        drop(now);
        if let Some(SourceAct::Slow(time)) = act {
            std::thread::sleep(time);
        }
        Reply::Answer(reply)
    }
}

/// A refusal. If the request is `HEAD` it has no body: the client would take it for the start of the next answer.
fn refused(request: &Request<'_>, status: u16, reason: impl Into<String>) -> Answer {
    if request.method == "HEAD" {
        Answer::of(status, &[], Vec::new())
    } else {
        Answer::refused(status, reason)
    }
}

/// Whether a header is about the transfer of the body.
fn is_framing(name: &str) -> bool {
    ["connection", "content-length", "content-encoding", "keep-alive", "transfer-encoding"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

type Fetched = (u16, Vec<(String, String)>, Vec<u8>);

/// Sends a request to the external system; the error is for people.
fn fetch(
    upstream: &str,
    base: &str,
    agent: &Agent,
    request: &Request<'_>,
    body: &[u8],
) -> std::result::Result<Fetched, String> {
    let mut url = format!("{upstream}{}", request.path);
    if !request.parameters().is_empty() {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(
            request.parameters().iter().map(|(name, value)| (name.clone(), value.replace(base, upstream))),
        );
        url = format!("{url}?{}", query.finish());
    }
    let mut builder = ureq::http::Request::builder().method(request.method.as_str()).uri(url);
    for (name, value) in request.headers() {
        if !OF_CONNECTION.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            builder = builder.header(name, value);
        }
    }
    builder = builder.header("Accept-Encoding", "identity");
    let sent = if body.is_empty() && matches!(request.method.as_str(), "GET" | "HEAD" | "DELETE" | "OPTIONS")
    {
        builder
            .body(())
            .map_err(|error| error.to_string())
            .and_then(|request| agent.run(request).map_err(|error| error.to_string()))
    } else {
        builder
            .body(body)
            .map_err(|error| error.to_string())
            .and_then(|request| agent.run(request).map_err(|error| error.to_string()))
    };
    let response = sent?;
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_reader().take(ANSWER_BYTES_MAX + 1);
    reader.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > ANSWER_BYTES_MAX {
        return Err(format!("its answer has more than {ANSWER_BYTES_MAX} bytes"));
    }
    Ok((status, headers, bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpStream;

    use super::*;

    /// Answers in the order in which they were recorded: method, target, body of the request, body of the answer.
    fn replaying(recorded: &[(&str, &str, &str, &str)]) -> Source {
        let answers = recorded.iter().map(|(method, target, body, text)| {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let query: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
            let asked = Matching::default().asked(method, path, &query, body.as_bytes());
            Answered::new(true, asked, 200, Vec::new(), text.as_bytes().to_vec())
        });
        let recording = Arc::new(Recording::new(answers.collect()));
        let source = Source::replay(recording, Matching::default(), BTreeSet::new(), Box::new(|| 0)).unwrap();
        source.begin(true, None);
        source
    }

    fn get(source: &Source, target: &str) -> String {
        let response = ureq::get(format!("{}{target}", source.base())).call().unwrap();
        response.into_body().read_to_string().unwrap()
    }

    fn post(source: &Source, target: &str, body: &str) -> String {
        let response = ureq::post(format!("{}{target}", source.base())).send(body).unwrap();
        response.into_body().read_to_string().unwrap()
    }

    /// What is received on one connection for a request for `/file` with this method, followed by a `GET`.
    fn and_then_get(source: &Source, method: &str) -> String {
        let mut connection = TcpStream::connect(source.base().trim_start_matches("http://")).unwrap();
        write!(connection, "{method} /file HTTP/1.1\r\n\r\nGET /file HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn whatever_a_head_is_answered_the_next_request_of_its_connection_gets_its_own_answer() {
        let file = ("GET", "/file", "", "a file");
        let source = replaying(&[file, ("HEAD", "/file", "", "")]);
        let fault = |act| SourceFault { text: String::new(), answer: 1, nth: 1, act };
        let acts =
            [SourceAct::Status(500), SourceAct::TooMany { dated: false }, SourceAct::TooMany { dated: true }];
        for (act, status) in acts.map(Some).into_iter().chain([None]).zip([500, 429, 429, 200]) {
            source.begin(true, act.map(fault));
            let text = and_then_get(&source, "HEAD");
            let (first, next) = text.split_once("\r\n\r\n").unwrap();
            assert!(first.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
            assert_eq!(first.contains("Retry-After: "), status == 429, "{text}");
            assert!(next.starts_with("HTTP/1.1 200 ") && next.ends_with("\r\n\r\na file"), "{text}");
        }
        // A request that was never recorded; for another method the refusal says so.
        let source = replaying(&[file]);
        let text = and_then_get(&source, "HEAD");
        assert!(text.starts_with("HTTP/1.1 501 ") && text.contains("\r\n\r\nHTTP/1.1 200 "), "{text}");
        let text = and_then_get(&source, "DELETE");
        assert!(text.contains("DELETE /file was never recorded\"}\nHTTP/1.1 200 "), "{text}");
        // An external system that cannot be reached.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let source = Source::record(&format!("http://{free}"), Matching::default(), BTreeSet::new()).unwrap();
        let text = and_then_get(&source, "HEAD");
        assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("\r\n\r\nHTTP/1.1 502 "), "{text}");
    }

    #[test]
    fn answers_to_one_body_are_given_in_their_order_whatever_other_bodies_ask() {
        let source = replaying(&[
            ("POST", "/search", "job", "pending"),
            ("POST", "/search", "job", "done"),
            ("POST", "/search", "users", "all users"),
        ]);
        for _ in 0..2 {
            assert_eq!(post(&source, "/search", "users"), "all users");
        }
        assert_eq!(post(&source, "/search", "job"), "pending");
        assert_eq!(post(&source, "/search", "users"), "all users");
        assert_eq!([post(&source, "/search", "job"), post(&source, "/search", "job")], ["done", "done"]);
        // Another sync begins with the first answer.
        source.begin(true, None);
        assert_eq!(post(&source, "/search", "job"), "pending");
    }

    #[test]
    fn whoever_asks_for_changes_since_now_until_there_are_none_comes_to_an_end() {
        let source = replaying(&[
            ("GET", "/changes?since=2026-01-01T00:00:00Z", "", "some"),
            ("GET", "/changes?since=2026-01-01T00:00:09Z", "", "none"),
        ]);
        let days = ["2026-02-01", "2026-02-02", "2026-02-03"];
        let told = days.map(|day| get(&source, &format!("/changes?since={day}")));
        assert_eq!(told, ["some", "none", "none"]);
    }
}
