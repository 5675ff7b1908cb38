//! Airdrop's addresses, and how a request to each is handled.
//!
//! Refused is what the platform, or the file store behind it, is known to refuse, and what cannot be understood at
//! all. Everything else that looks wrong is a [`Lint`]: it is noted and let through, unless the server is strict.
//! `artifacts.rs` has the addresses of uploads and downloads, `message.rs` that of messages.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use highwater::ArtifactId;
use highwater::airdrop::{Platform as _, PlatformError};
use serde_json::{Map, Value, json};
use twox_hash::XxHash3_64;

use crate::artifacts::hear_upload;
use crate::call::{Call, CallRecord, Content, Lint};
use crate::external;
use crate::fault::{Act, Befallen, Fault, Faults};
use crate::http::{Answer, BreaksOff, Reply, Request};
use crate::local::Local;
use crate::message_check::hear_message;
use crate::worker::Leash;

/// Bytes of a request's JSON at most, except for requests with their own limit.
pub(crate) const JSON_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of the request that saves a worker state: the state is a JSON string in it, most of it escaped.
const STATE_REQUEST_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How an address checks who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Auth {
    /// `Authorization: Bearer <token>`.
    Bearer,
    /// `Authorization: <token>`.
    Bare,
    /// None: the address itself is the proof, and the token must not be sent to a file store.
    Absent,
    /// Anything.
    Free,
}

/// A request that is being handled, and what is found in it.
pub(crate) struct Exchange<'r, 'c> {
    pub(crate) request: &'r mut Request<'c>,
    strict: bool,
    pub(crate) seen: Seen,
}

/// What is found in a request.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) request_id: Option<String>,
    pub(crate) file_name: Option<String>,
    pub(crate) artifact: Option<String>,
    pub(crate) artifacts: Vec<String>,
    pub(crate) records: u64,
    pub(crate) event_type: Option<String>,
    pub(crate) content: Option<Content>,
    lints: Vec<Lint>,
}

impl Exchange<'_, '_> {
    /// Whether requests that look wrong are refused.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    /// Notes something that looks wrong; a strict server refuses the request with this status instead.
    pub(crate) fn lint(&mut self, rule: &str, status: u16, text: impl Into<String>) -> Result<(), Answer> {
        let text = text.into();
        if self.strict {
            return Err(Answer::refused(status, text));
        }
        self.seen.lints.push(Lint { rule: rule.to_owned(), text });
        Ok(())
    }

    /// A parameter of the query that is required.
    pub(crate) fn needed(&mut self, name: &str) -> Result<String, Answer> {
        let value = self.request.parameter(name).filter(|value| !value.is_empty()).map(str::to_owned);
        if name == "request_id" {
            self.seen.request_id.clone_from(&value);
        }
        value.ok_or_else(|| Answer::refused(400, format!("the parameter {name} is missing")))
    }

    pub(crate) fn json_bytes(&mut self, bytes_max: u64, what: &str) -> Result<Vec<u8>, Answer> {
        let content_type = self.request.header("Content-Type").unwrap_or_default().to_owned();
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let text = format!("the Content-Type must be application/json, not {content_type:?}");
            self.lint("content-type", 415, text)?;
        }
        self.request.body.read_all(bytes_max, what)
    }

    fn object(&mut self, bytes_max: u64, what: &str) -> Result<Map<String, Value>, Answer> {
        match serde_json::from_slice(&self.json_bytes(bytes_max, what)?) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(Answer::refused(400, format!("{what} must be a JSON object"))),
            Err(error) => Err(Answer::refused(400, format!("{what} is not JSON: {error}"))),
        }
    }

    /// The JSON object of a request that acts on an artifact.
    pub(crate) fn artifact_request(&mut self) -> Result<ArtifactId, Answer> {
        let body = self.object(JSON_BYTES_MAX, "the request")?;
        self.seen.request_id = Some(text(&body, "request_id")?.to_owned());
        let id = text(&body, "artifact_id")?;
        self.seen.artifact = Some(id.to_owned());
        artifact_id(id)
    }

    fn authorize(&mut self, auth: Auth) -> Result<(), Answer> {
        let given = self.request.header("Authorization");
        let token = given.map(|given| match given.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("Bearer") => (true, token.trim()),
            _ => (false, given),
        });
        let path = self.request.path.clone();
        match (auth, token) {
            (Auth::Free, _) | (Auth::Absent, None) => Ok(()),
            (Auth::Absent, Some(_)) => {
                let expected = "no Authorization: the address is the proof, and the token stays with you";
                Err(Answer::refused(400, format!("{path} takes {expected}")))
            }
            (Auth::Bearer, Some((true, token))) | (Auth::Bare, Some((false, token)))
                if !token.is_empty() && !token.contains(' ') =>
            {
                Ok(())
            }
            (auth, token) => {
                let expected = match auth {
                    Auth::Bearer => "Authorization: Bearer and the token",
                    _ => "Authorization: the bare token, without Bearer",
                };
                let text = format!("{path} takes {expected}");
                if token.is_some_and(|(_, token)| !token.is_empty()) {
                    self.lint("token-form", 401, text)
                } else {
                    Err(Answer::refused(401, text))
                }
            }
        }
    }
}

type Handler = fn(&Api, &mut Exchange<'_, '_>, &str) -> Result<Answer, Answer>;

/// An address: the start of its path, or all of it.
struct Route {
    method: &'static str,
    path: &'static str,
    auth: Auth,
    /// The name for faults. An address without one is not Airdrop's.
    call: Option<Call>,
    handle: Handler,
}

const ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "/internal/airdrop.artifacts.upload-url",
        auth: Auth::Bearer,
        call: Some(Call::Prepare),
        handle: Api::prepare,
    },
    Route {
        method: "POST",
        path: "/upload/",
        auth: Auth::Absent,
        call: Some(Call::Upload),
        handle: Api::upload,
    },
    Route {
        method: "POST",
        path: "/internal/airdrop.artifacts.confirm-upload",
        auth: Auth::Bearer,
        call: Some(Call::Confirm),
        handle: Api::confirm,
    },
    Route {
        method: "GET",
        path: "/internal/airdrop.artifacts.download-url",
        auth: Auth::Bearer,
        call: Some(Call::DownloadUrl),
        handle: Api::download_url,
    },
    Route {
        method: "GET",
        path: "/download/",
        auth: Auth::Absent,
        call: Some(Call::Download),
        handle: Api::download,
    },
    Route {
        method: "GET",
        path: "/internal/airdrop.external-worker.get",
        auth: Auth::Bare,
        call: Some(Call::StateGet),
        handle: Api::state,
    },
    Route {
        method: "POST",
        path: "/internal/airdrop.external-worker.update",
        auth: Auth::Bare,
        call: Some(Call::State),
        handle: Api::save_state,
    },
    Route {
        method: "POST",
        path: "/internal/airdrop.external-extractor.message",
        auth: Auth::Bare,
        call: Some(Call::Message),
        handle: Api::message,
    },
    Route {
        method: "GET",
        path: "/internal/snap-ins.get",
        auth: Auth::Bare,
        call: Some(Call::SnapIn),
        handle: Api::snap_in,
    },
    Route {
        method: "POST",
        path: "/internal/airdrop.recipe.blueprints.create",
        auth: Auth::Bare,
        call: Some(Call::Blueprint),
        handle: Api::create_blueprint,
    },
    Route {
        method: "POST",
        path: "/internal/airdrop.recipe.initial-domain-mappings.install",
        auth: Auth::Bare,
        call: Some(Call::Mapping),
        handle: Api::install_mapping,
    },
    Route {
        method: "GET",
        path: "/ext/attachment/",
        auth: Auth::Free,
        call: Some(Call::Attachment),
        handle: Api::attachment,
    },
    Route { method: "GET", path: "/faults", auth: Auth::Free, call: None, handle: Api::show_faults },
    Route { method: "POST", path: "/faults", auth: Auth::Free, call: None, handle: Api::add_faults },
    Route { method: "DELETE", path: "/faults", auth: Auth::Free, call: None, handle: Api::lift_faults },
];

impl Route {
    /// The rest of the path after this route; a path that ends with a slash needs one.
    fn rest<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.path)?;
        (rest.is_empty() != self.path.ends_with('/') && !rest.contains('/')).then_some(rest)
    }
}

/// The accepted messages, including repeated ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    pub(crate) count: u64,
    /// A description of the last one.
    pub(crate) last: String,
    /// Why the last refused message was refused.
    pub(crate) refused: Option<String>,
}

/// The run and invocation of the current event: calls are attributed to them.
#[derive(Debug, Clone, Default)]
struct Current {
    run: Option<String>,
    invocation: u64,
}

/// The platform's side of HTTP, over a directory.
pub(crate) struct Api {
    pub(crate) local: Local,
    faults: Faults,
    strict: bool,
    /// The start of the addresses in answers.
    pub(crate) base: String,
    pub(crate) leash: Arc<Leash>,
    started: Instant,
    taken: Mutex<Taken>,
    current: Mutex<Current>,
    /// The contexts of the events that were given to the worker, by request id, if this process gives them.
    given: Mutex<HashMap<String, Value>>,
    /// Held while a line is added to a list of the directory.
    lists: Mutex<()>,
    /// Called for each call.
    observer: Option<Observer>,
}

/// Called for each call when it is answered.
pub type Observer = Arc<dyn Fn(&CallRecord) + Send + Sync>;

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("base", &self.base)
            .field("dir", &self.local.dir())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "every address has the same signature")]
impl Api {
    pub(crate) fn new(
        local: Local,
        base: String,
        faults: &[Fault],
        strict: bool,
        observer: Option<Observer>,
    ) -> Self {
        Self {
            local,
            faults: Faults::new(faults),
            strict,
            base,
            leash: Arc::default(),
            started: Instant::now(),
            taken: Mutex::default(),
            current: Mutex::default(),
            given: Mutex::default(),
            lists: Mutex::default(),
            observer,
        }
    }

    /// Whether requests that look wrong are refused.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The messages accepted so far.
    pub(crate) fn taken(&self) -> Taken {
        lock(&self.taken).clone()
    }

    pub(crate) fn note_taken(&self, says: String) {
        let mut taken = lock(&self.taken);
        taken.count += 1;
        taken.last = says;
        taken.refused = None;
    }

    /// Notes that the worker is given an event: its message must echo the context whole, and the calls that follow
    /// belong to this run and invocation.
    pub(crate) fn give(&self, run: &str, invocation: u64, request_id: &str, context: &Value) {
        *lock(&self.current) = Current { run: Some(run.to_owned()), invocation };
        lock(&self.taken).refused = None;
        lock(&self.given).entry(request_id.to_owned()).or_insert_with(|| context.clone());
    }

    /// The current invocation, or the last one.
    pub(crate) fn invocation(&self) -> u64 {
        lock(&self.current).invocation
    }

    /// The context of an event that was given to the worker.
    pub(crate) fn given(&self, request_id: &str) -> Option<Value> {
        lock(&self.given).get(request_id).cloned()
    }

    /// Handles a request.
    pub(crate) fn handle(&self, request: &mut Request<'_>) -> Reply {
        let path = request.path.clone();
        let mut known =
            ROUTES.iter().filter_map(|route| route.rest(&path).map(|rest| (route, rest))).peekable();
        if known.peek().is_none() {
            return self.refuse_unknown(request, Answer::refused(404, format!("there is nothing at {path}")));
        }
        let allowed: Vec<&str> = known.clone().map(|(route, _)| route.method).collect();
        let Some((route, rest)) = known.find(|(route, _)| route.method == request.method) else {
            let allowed = allowed.join(", ");
            let reason = format!("{} is not what {path} takes: {allowed}", request.method);
            return self.refuse_unknown(request, Answer::refused(405, reason).with("Allow", allowed));
        };
        let mut exchange = Exchange { request, strict: self.strict, seen: Seen::default() };
        let Some(call) = route.call else {
            let handled = (route.handle)(self, &mut exchange, rest);
            return Reply::Answer(handled.unwrap_or_else(|refused| refused));
        };
        let came = Instant::now();
        let (number, befallen) = self.faults.befall(call);
        let (reply, applied) = self.befall(route, rest, &mut exchange, befallen.as_ref());
        let noted = self.note(&exchange, (call, number), befallen.as_ref(), &reply, applied, came);
        match befallen {
            Some(Befallen { act: Act::Kill { .. }, .. }) => self.leash.kill("by a fault"),
            Some(Befallen { act: Act::KillLater(after), .. }) => self.leash.kill_later(after, "by a fault"),
            _ => {}
        }
        match noted {
            Err(answer) => Reply::Answer(answer),
            Ok(()) => reply,
        }
    }

    /// Answers and notes a request that is not a call.
    fn refuse_unknown(&self, request: &mut Request<'_>, answer: Answer) -> Reply {
        let exchange = Exchange { request, strict: self.strict, seen: Seen::default() };
        let reply = Reply::Answer(answer);
        match self.note(&exchange, (Call::Unknown, 0), None, &reply, false, Instant::now()) {
            Err(answer) => Reply::Answer(answer),
            Ok(()) => reply,
        }
    }

    /// Handles a request by its address, or by the fault that applies to it. Returns whether it took effect.
    fn befall(
        &self,
        route: &Route,
        rest: &str,
        exchange: &mut Exchange<'_, '_>,
        befallen: Option<&Befallen>,
    ) -> (Reply, bool) {
        let applied = match befallen.map(|befallen| &befallen.act) {
            None | Some(Act::Slow(_) | Act::KillLater(_) | Act::Short) => true,
            Some(Act::Status { applied, .. } | Act::HangUp { applied } | Act::Kill { applied }) => *applied,
        };
        let handled = if applied {
            let authorized = exchange.authorize(route.auth);
            Some(authorized.and_then(|()| (route.handle)(self, exchange, rest)))
        } else {
            // The whole body is read, so that the client is not cut off while it sends.
            hear(route.call, exchange, rest);
            None
        };
        let took_effect = matches!(handled, Some(Ok(_)));
        // A refusal is kept, whatever the fault is, except a kill.
        let reply = match (befallen.map(|befallen| &befallen.act), handled) {
            (Some(Act::Kill { .. }), _) => Reply::HangUp,
            (_, Some(Err(refused))) => Reply::Answer(refused),
            (Some(Act::Status { status, retry_after, .. }), _) => {
                Reply::Answer(fault(*status, retry_after.as_deref()))
            }
            (Some(Act::HangUp { .. } | Act::Short), _) | (_, None) => Reply::HangUp,
            (Some(Act::Slow(time)), Some(Ok(answer))) => {
                std::thread::sleep(*time);
                Reply::Answer(answer)
            }
            (None | Some(Act::KillLater(_)), Some(Ok(answer))) => Reply::Answer(answer),
        };
        (reply, took_effect)
    }

    /// Notes a call in the directory.
    fn note(
        &self,
        exchange: &Exchange<'_, '_>,
        (call, number): (Call, u64),
        befallen: Option<&Befallen>,
        reply: &Reply,
        applied: bool,
        came: Instant,
    ) -> Result<(), Answer> {
        let (status, reason, passing) = match reply {
            Reply::Answer(answer) => {
                (Some(answer.status), answer.reason().map(str::to_owned), answer.is_passing())
            }
            Reply::HangUp => (None, None, true),
        };
        if call == Call::Message && status.is_none_or(|status| status >= 400) {
            let text = match (&reason, status) {
                (Some(reason), Some(status)) => format!("its message was refused with {status}: {reason}"),
                (_, Some(status)) => format!("its message was answered {status}"),
                _ => "its message was not answered".to_owned(),
            };
            lock(&self.taken).refused = Some(text);
        }
        let (bytes, hash) = exchange.request.body.heard();
        let current = lock(&self.current).clone();
        let seen = &exchange.seen;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let record = CallRecord {
            number,
            call,
            bytes,
            hash: format!("{hash:016x}"),
            status,
            applied,
            reason,
            passing,
            fault: befallen.map(|befallen| befallen.fault.clone()),
            run: current.run,
            invocation: current.invocation,
            request_id: seen.request_id.clone(),
            file_name: seen.file_name.clone(),
            artifact: seen.artifact.clone(),
            artifacts: seen.artifacts.clone(),
            records: seen.records,
            event_type: seen.event_type.clone(),
            content: seen.content.clone(),
            lints: seen.lints.clone(),
            at_ms: millis(came.duration_since(self.started)),
            took_ms: millis(came.elapsed()),
        };
        if let Some(observer) = &self.observer {
            observer(&record);
        }
        let line = serde_json::to_value(&record).map_err(|error| Answer::refused(503, error.to_string()))?;
        self.add_to("calls.jsonl", &line)
    }

    fn state(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        exchange.needed("request_id")?;
        let unit = exchange.needed("sync_unit")?;
        // The scope is one for all units of the directory.
        let objects = self.local.worker_state().map_err(failed)?.and_then(|kept| kept.objects);
        match (self.local.worker_state_of(&unit).map_err(failed)?, objects) {
            (None, None) => {
                Err(Answer::refused(404, format!("there is no state of the sync unit {unit} yet")))
            }
            (state, objects) => {
                let empty = || "{}".to_owned();
                let (state, objects) = (state.unwrap_or_else(empty), objects.unwrap_or_else(empty));
                Ok(Answer::json(200, &json!({ "state": state, "objects": objects })))
            }
        }
    }

    fn save_state(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        exchange.needed("request_id")?;
        let unit = exchange.needed("sync_unit")?;
        let body = exchange.object(STATE_REQUEST_BYTES_MAX, "the worker state")?;
        let state = text(&body, "state")?;
        self.local.save_worker_state_of(&unit, state).map_err(failed)?;
        Ok(Answer::json(200, &json!({})))
    }

    fn snap_in(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        exchange.needed("id")?;
        let snap_in = json!({ "imports": [{ "name": "local-import" }], "snap_in_version": { "slug": "local-snap-in" } });
        Ok(Answer::json(200, &json!({ "snap_in": snap_in })))
    }

    fn create_blueprint(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        let body = exchange.object(JSON_BYTES_MAX, "the blueprint")?;
        if body.is_empty() {
            return Err(Answer::refused(400, "the blueprint is empty"));
        }
        let body = Value::from(body);
        let id = blueprint_id(&body);
        self.add_to("blueprints.jsonl", &body)?;
        Ok(Answer::json(200, &json!({ "recipe_blueprint": { "id": id } })))
    }

    fn install_mapping(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        let body = exchange.object(JSON_BYTES_MAX, "the mapping")?;
        for field in ["external_system_type", "import_slug", "snap_in_slug"] {
            text(&body, field)?;
        }
        if body.contains_key("starting_recipe_blueprint") {
            let id = text(&body, "starting_recipe_blueprint")?;
            let created = self.list("blueprints.jsonl")?;
            if !created.iter().any(|blueprint| blueprint_id(blueprint) == id) {
                return Err(Answer::refused(400, format!("there is no recipe blueprint {id:?}")));
            }
        }
        self.add_to("mappings.jsonl", &body.into())?;
        Ok(Answer::json(200, &json!({})))
    }

    /// Adds a line to a list of the directory.
    pub(crate) fn add_to(&self, list: &str, line: &Value) -> Result<(), Answer> {
        let _held = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.local.dir().join(list);
        let file = File::options().create(true).append(true).open(&path);
        let added = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        added.map_err(|error| Answer::refused(503, format!("{}: {error}", path.display())))
    }

    fn list(&self, list: &str) -> Result<Vec<Value>, Answer> {
        let path = self.local.dir().join(list);
        let failed =
            |reason: &dyn fmt::Display| Answer::refused(503, format!("{}: {reason}", path.display()));
        match fs::read_to_string(&path) {
            Ok(text) => {
                text.lines().map(serde_json::from_str).collect::<Result<_, _>>().map_err(|e| failed(&e))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(&error)),
        }
    }

    fn attachment(&self, exchange: &mut Exchange<'_, '_>, number: &str) -> Result<Answer, Answer> {
        let number: u64 =
            number.parse().map_err(|_| Answer::refused(404, format!("there is no attachment {number:?}")))?;
        let bytes = match exchange.request.parameter("bytes") {
            None => external::BYTES,
            Some(text) => text.parse().map_err(|_| Answer::refused(400, "bytes must be a whole number"))?,
        };
        let (file, told) = (external::Attachment::new(number), external::tells_length(number));
        match self.faults.befall_file(number) {
            Some(Act::Status { status, retry_after, .. }) => Err(fault(status, retry_after.as_deref())),
            Some(_) => Ok(Answer::stream(file.take(bytes / 2).chain(BreaksOff), bytes, told)),
            None => Ok(Answer::stream(file, bytes, told)),
        }
    }

    fn show_faults(&self, _: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        Ok(Answer::json(200, &self.faults.report()))
    }

    fn add_faults(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        let text = exchange.request.body.read_all(JSON_BYTES_MAX, "the list of faults")?;
        let text = String::from_utf8_lossy(&text);
        let faults = text.split_whitespace().map(str::parse).collect::<Result<Vec<Fault>, String>>();
        self.faults.add(faults.map_err(|reason| Answer::refused(400, reason))?);
        self.show_faults(exchange, "")
    }

    fn lift_faults(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        self.faults.lift(exchange.request.parameter("fault"));
        self.show_faults(exchange, "")
    }
}

/// Reads a request that has no effect, to note what it would have done.
fn hear(call: Option<Call>, exchange: &mut Exchange<'_, '_>, rest: &str) {
    exchange.seen.request_id = exchange.request.parameter("request_id").map(str::to_owned);
    match call {
        Some(Call::Prepare) => {
            exchange.seen.file_name = exchange.request.parameter("file_name").map(str::to_owned);
        }
        Some(Call::Upload) => hear_upload(exchange, rest),
        Some(Call::Confirm) => {
            // What it contains is noted; an invalid request does not matter here.
            let _ = exchange.artifact_request();
        }
        Some(Call::Message) => hear_message(exchange),
        _ => {}
    }
    let _ = io::copy(&mut exchange.request.body, &mut io::sink());
}

/// The answer to a call to which a fault was applied.
fn fault(status: u16, retry_after: Option<&str>) -> Answer {
    let answer = Answer::refused(status, "a fault was set");
    match retry_after {
        Some(after) => answer.with("Retry-After", after),
        None => answer,
    }
}

/// A field that must be a string.
fn text<'b>(body: &'b Map<String, Value>, field: &str) -> Result<&'b str, Answer> {
    let value = body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    value.ok_or_else(|| Answer::refused(400, format!("the field {field} is missing, or no text")))
}

pub(crate) fn artifact_id(id: &str) -> Result<ArtifactId, Answer> {
    ArtifactId::new(id).map_err(|error| Answer::refused(404, error.to_string()))
}

pub(crate) fn failed(error: PlatformError) -> Answer {
    match error {
        PlatformError::Refused { status, reason } | PlatformError::StorageRefused { status, reason, .. } => {
            Answer::refused(status, reason)
        }
        PlatformError::Retry { reason, .. } => Answer::refused(503, reason),
        other => Answer::refused(503, other.to_string()),
    }
}

/// The id of a blueprint, derived from its content.
fn blueprint_id(blueprint: &Value) -> String {
    format!("blueprint-{:016x}", XxHash3_64::oneshot(blueprint.to_string().as_bytes()))
}
