//! Airdrop's addresses, and what is refused at each: the strictest reading of the protocol, so that what passes here
//! passes there.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::sync::{Mutex, PoisonError};

use flate2::read::MultiGzDecoder;
use highwater::ArtifactId;
use highwater::airdrop::{
    AnswerKind, Body, EventType, Fate, Platform, PlatformError, SealedMessage, Spelling, Upload, answer_name,
};
use highwater::limits::MESSAGE_BYTES_MAX;
use highwater_airdrop::{Local, UPLOAD_BYTES_MAX};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use twox_hash::XxHash3_64;

use crate::external;
use crate::fault::{Act, Call, Fault, Faults};
use crate::form::{self, Form};
use crate::http::{Answer, Reply, Request};

/// Bytes of the JSON of a request at most, but for those that have a limit of their own.
const JSON_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of the request that saves a worker state: the state is a JSON string in it, most of it escaped.
const STATE_REQUEST_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Characters of a file name.
const FILE_NAME_CHARS_MAX: usize = 256;

/// What an address takes as proof of who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Auth {
    /// `Authorization: Bearer <token>`.
    Bearer,
    /// `Authorization: <token>`.
    Bare,
    /// None: the address itself is the proof, and a token must not be told to a file store.
    Absent,
    /// Anything.
    Free,
}

type Handler = fn(&Api, &mut Request<'_>, &str) -> Result<Answer, Answer>;

/// An address: how its path begins, or all of it.
struct Route {
    method: &'static str,
    path: &'static str,
    auth: Auth,
    /// What a fault calls it. What has none is not Airdrop's.
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
    /// What follows the path of this route; a path that ends with a slash needs something to follow.
    fn rest<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.path)?;
        (rest.is_empty() != self.path.ends_with('/') && !rest.contains('/')).then_some(rest)
    }
}

/// The messages that were taken, those that were said again included.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    pub(crate) count: u64,
    /// What the last one says, for people.
    pub(crate) last: String,
}

/// The platform's side of HTTP, over a directory.
pub(crate) struct Api {
    local: Local,
    faults: Faults,
    /// What addresses in answers begin with.
    base: String,
    taken: Mutex<Taken>,
    /// The contexts of the events that were given to the worker, by request id, where this process gives them.
    given: Mutex<HashMap<String, Value>>,
    /// Held while a list of the directory grows.
    lists: Mutex<()>,
}

#[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "every address has the same signature")]
impl Api {
    pub(crate) fn new(local: Local, base: String, faults: &[Fault]) -> Self {
        let (taken, given) = (Mutex::default(), Mutex::default());
        Self { local, faults: Faults::new(faults), base, taken, given, lists: Mutex::new(()) }
    }

    pub(crate) fn local(&self) -> &Local {
        &self.local
    }

    /// Where it is served.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The messages that were taken so far.
    pub(crate) fn taken(&self) -> Taken {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the context of an event that is given to the worker: its message must echo it whole.
    pub(crate) fn give(&self, request_id: &str, context: &Value) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.entry(request_id.to_owned()).or_insert_with(|| context.clone());
    }

    /// Compares the context of a message with that of its event, where that is known: any field of the event that is
    /// missing or another is refused by name. What a worker adds is let pass.
    fn check_echo(&self, request_id: &str, echoed: &Value) -> Result<(), Answer> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(context) = given.get(request_id).and_then(Value::as_object) else { return Ok(()) };
        let Some((field, value)) = context.iter().find(|(field, value)| echoed.get(field) != Some(value))
        else {
            return Ok(());
        };
        let found = match echoed.get(field) {
            Some(found) => format!("is {found}, and was {value} in the event"),
            None => "is missing".to_owned(),
        };
        let reason = format!("event_context.{field} {found}: the message echoes event_context whole");
        Err(Answer::refused(400, reason))
    }

    /// What becomes of a request.
    pub(crate) fn handle(&self, request: &mut Request<'_>) -> Reply {
        let path = request.path.clone();
        let mut known =
            ROUTES.iter().filter_map(|route| route.rest(&path).map(|rest| (route, rest))).peekable();
        if known.peek().is_none() {
            return Reply::Answer(Answer::refused(404, format!("there is nothing at {path}")));
        }
        let allowed: Vec<&str> = known.clone().map(|(route, _)| route.method).collect();
        let Some((route, rest)) = known.find(|(route, _)| route.method == request.method) else {
            let allowed = allowed.join(", ");
            let reason = format!("{} is not what {path} takes: {allowed}", request.method);
            return Reply::Answer(Answer::refused(405, reason).with("Allow", allowed));
        };
        let befallen = route.call.and_then(|call| self.faults.befall(call));
        let reply = if let Some(Act::Status { status, retry_after_seconds }) = befallen {
            // All of it is heard, so that the client is not cut off while it speaks.
            let _ = io::copy(&mut request.body, &mut io::sink());
            Reply::Answer(fault(status, retry_after_seconds))
        } else {
            let authorized = authorize(request, route.auth);
            match authorized.and_then(|()| (route.handle)(self, request, rest)) {
                Ok(_) if befallen.is_some() => Reply::HangUp,
                Ok(answer) | Err(answer) => Reply::Answer(answer),
            }
        };
        match route.call.map(|call| self.note(call, request, &reply)) {
            Some(Err(answer)) => Reply::Answer(answer),
            _ => reply,
        }
    }

    /// Notes a call in the directory: what it was, what was heard of its body, and how it was answered (`null`: not at
    /// all). It is for people and tests; nothing is read from it.
    fn note(&self, call: Call, request: &Request<'_>, reply: &Reply) -> Result<(), Answer> {
        let status = match reply {
            Reply::Answer(answer) => Some(answer.status),
            Reply::HangUp => None,
        };
        let (bytes, hash) = request.body.heard();
        let hash = format!("{hash:016x}");
        let line = json!({ "call": call.name(), "bytes": bytes, "hash": hash, "status": status });
        self.add_to("calls.jsonl", &line)
    }

    /// A place to upload to. What its form must hold follows from the id alone, so a server that is started anew still
    /// knows it.
    fn prepare(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        needed(request, "request_id")?;
        let file_type = needed(request, "file_type")?;
        let file_name = needed(request, "file_name")?;
        let chars = file_name.chars().count();
        if chars > FILE_NAME_CHARS_MAX {
            let reason = format!("file_name has {chars} characters, the limit is {FILE_NAME_CHARS_MAX}");
            return Err(Answer::refused(400, reason));
        }
        let file_size: u64 = needed(request, "file_size")?
            .parse()
            .map_err(|_| Answer::refused(400, "file_size must be a whole number of bytes"))?;
        if file_size > UPLOAD_BYTES_MAX {
            let reason = format!("file_size is {file_size} bytes, the limit is {UPLOAD_BYTES_MAX}");
            return Err(Answer::refused(413, reason));
        }
        let id = self.local.prepare().map_err(|error| Answer::refused(503, error.to_string()))?;
        let fields: Map<String, Value> = form_data(id.as_str(), file_type, file_size)
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect();
        let answer = json!({
            "artifact_id": id.as_str(),
            "upload_url": format!("{}/upload/{id}", self.base),
            "form_data": fields,
        });
        Ok(Answer::json(200, &answer))
    }

    fn upload(&self, request: &mut Request<'_>, id: &str) -> Result<Answer, Answer> {
        let content_type = request.header("Content-Type").unwrap_or_default();
        let boundary = form::boundary(content_type).ok_or_else(|| {
            Answer::refused(415, "an upload is multipart/form-data, with the boundary in its Content-Type")
        })?;
        let id = artifact_id(id)?;
        let unfit = |error: io::Error| Answer::refused(400, error.to_string());
        let Form { fields, mut file } = Form::read(&mut request.body, &boundary).map_err(unfit)?;
        let sent = |name: &str| -> Result<&str, Answer> {
            let mut sent = fields.iter().filter(|(known, _)| known == name);
            match (sent.next(), sent.next()) {
                (Some((_, value)), None) => Ok(value),
                (Some(_), Some(_)) => {
                    Err(Answer::refused(400, format!("the form field {name} was sent twice")))
                }
                (None, _) => {
                    let reason =
                        format!("the form field {name} was not sent before the file; form_data names it");
                    Err(Answer::refused(400, reason))
                }
            }
        };
        let bytes = sent("x-file-size")?.parse().unwrap_or(0);
        let expected = form_data(id.as_str(), sent("Content-Type")?, bytes);
        for (name, value) in &expected {
            if sent(name)? != value {
                let reason = format!("the form field {name} is not as form_data says");
                return Err(Answer::refused(403, reason));
            }
        }
        if let Some((name, _)) =
            fields.iter().find(|(name, _)| expected.iter().all(|(known, _)| known != name))
        {
            return Err(Answer::refused(400, format!("form_data names no form field {name}")));
        }
        let body = Body::Stream { reader: &mut file, length_bytes: Some(bytes) };
        let upload = Upload { file_name: "the file", content_type: sent("Content-Type")?, body };
        self.local.upload_as(&id, upload).map_err(|error| match error {
            PlatformError::Retry { fate: Fate::NotApplied, reason, .. } => Answer::refused(400, reason),
            error => failed(error),
        })?;
        Ok(Answer::empty())
    }

    fn confirm(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        let body = object(request, JSON_BYTES_MAX, "the request")?;
        text(&body, "request_id")?;
        let id = artifact_id(text(&body, "artifact_id")?)?;
        self.local.confirm(&id).map_err(failed)?;
        Ok(Answer::json(200, &json!({})))
    }

    fn download_url(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        needed(request, "request_id")?;
        let id = artifact_id(needed(request, "artifact_id")?)?;
        self.artifact(&id)?;
        Ok(Answer::json(200, &json!({ "download_url": format!("{}/download/{id}", self.base) })))
    }

    fn download(&self, _: &mut Request<'_>, id: &str) -> Result<Answer, Answer> {
        let (file, bytes) = self.artifact(&artifact_id(id)?)?;
        Ok(Answer::stream(file, bytes, true))
    }

    /// The bytes of an artifact, and how many they are.
    fn artifact(&self, id: &ArtifactId) -> Result<(File, u64), Answer> {
        let path = self.local.artifact_path(id).map_err(|error| Answer::refused(404, error.to_string()))?;
        let opened = File::open(path).and_then(|file| file.metadata().map(|about| (file, about.len())));
        opened.map_err(|error| Answer::refused(503, error.to_string()))
    }

    fn state(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        needed(request, "request_id")?;
        let unit = needed(request, "sync_unit")?;
        // The scope is one for all units of the directory.
        let objects = self.local.worker_state().map_err(failed)?.and_then(|kept| kept.objects);
        match (self.local.worker_state_of(unit).map_err(failed)?, objects) {
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

    fn save_state(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        needed(request, "request_id")?;
        let unit = needed(request, "sync_unit")?.to_owned();
        let body = object(request, STATE_REQUEST_BYTES_MAX, "the worker state")?;
        let state = text(&body, "state")?;
        self.local.save_worker_state_of(&unit, state).map_err(failed)?;
        Ok(Answer::json(200, &json!({})))
    }

    /// One message for an event: its key is the event's request id, whatever `Idempotency-Key` says.
    fn message(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        let limit = MESSAGE_BYTES_MAX as u64;
        let bytes = json_bytes(request, limit, "the message")?;
        let refused = |reason: String| Answer::refused(400, reason);
        let body = String::from_utf8(bytes).map_err(|_| refused("the message is not UTF-8".to_owned()))?;
        let message: Value = serde_json::from_str(&body)
            .map_err(|error| refused(format!("the message is not JSON: {error}")))?;
        let key =
            message.pointer("/event_context/request_id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let key = key.ok_or_else(|| {
            refused("event_context.request_id is missing: the message echoes event_context whole".to_owned())
        })?;
        self.check_echo(key, &message["event_context"])?;
        let event_type = check_message(&message).map_err(refused)?;
        let (key, event_type) = (key.to_owned(), event_type.to_owned());
        let artifacts = message.pointer("/event_data/artifacts").and_then(Value::as_array);
        self.check_attachments(artifacts.map_or(&[], Vec::as_slice))?;
        let counts =
            artifacts.into_iter().flatten().filter_map(|artifact| artifact.get("item_count")?.as_u64());
        let (artifacts, records) =
            counts.fold((0, 0), |(artifacts, records), count| (artifacts + 1, records + count));
        let says = format!("{event_type}, {artifacts} artifacts of {records} records");
        self.local.send(&SealedMessage { key, event_type, body }).map_err(failed)?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = Taken { count: taken.count + 1, last: says };
        Ok(Answer::json(200, &json!({})))
    }

    /// Looks at what is said of attachments in the artifacts of a message: a line must be whole, and name an upload
    /// that was confirmed, which no other line of the message names.
    fn check_attachments(&self, artifacts: &[Value]) -> Result<(), Answer> {
        let of_attachments: Vec<&Value> = artifacts
            .iter()
            .filter(|artifact| artifact.get("item_type").is_some_and(|is| is == UPLOADED))
            .collect();
        if of_attachments.is_empty() {
            return Ok(());
        }
        let confirmed = self.local.confirmed().map_err(|error| Answer::refused(503, error.to_string()))?;
        let (confirmed, mut named) = (confirmed.into_iter().collect::<HashSet<_>>(), HashSet::new());
        for artifact in of_attachments {
            let id = artifact_id(artifact.get("id").and_then(Value::as_str).unwrap_or_default())?;
            // An artifact that is not there is refused when the message is taken.
            let Ok((file, _)) = self.artifact(&id) else { continue };
            let mut lines = 0_u64;
            for line in BufReader::new(MultiGzDecoder::new(file)).lines() {
                lines += 1;
                let refused =
                    |reason: String| Answer::refused(400, format!("artifact {id}, line {lines}: {reason}"));
                let line = line.map_err(|error| refused(format!("it is no gzipped text: {error}")))?;
                let line: UploadedAttachment = serde_json::from_str(&line)
                    .map_err(|error| refused(format!("it does not say what was uploaded: {error}")))?;
                let upload = line.check().map_err(refused)?;
                if !confirmed.contains(&upload) {
                    let reason =
                        format!("it names {upload}, which is not uploaded and confirmed as an attachment");
                    return Err(refused(reason));
                }
                if !named.insert(upload) {
                    return Err(refused("it names an upload that another line names".to_owned()));
                }
            }
            if artifact.get("item_count").and_then(Value::as_u64) != Some(lines) {
                let reason = format!("artifact {id} has {lines} lines, and its item_count says otherwise");
                return Err(Answer::refused(400, reason));
            }
        }
        Ok(())
    }

    fn snap_in(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        needed(request, "id")?;
        let snap_in = json!({ "imports": [{ "name": "local-import" }], "snap_in_version": { "slug": "local-snap-in" } });
        Ok(Answer::json(200, &json!({ "snap_in": snap_in })))
    }

    fn create_blueprint(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        let body = object(request, JSON_BYTES_MAX, "the blueprint")?;
        if body.is_empty() {
            return Err(Answer::refused(400, "the blueprint is empty"));
        }
        let body = Value::from(body);
        let id = blueprint_id(&body);
        self.add_to("blueprints.jsonl", &body)?;
        Ok(Answer::json(200, &json!({ "recipe_blueprint": { "id": id } })))
    }

    fn install_mapping(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        let body = object(request, JSON_BYTES_MAX, "the mapping")?;
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
    fn add_to(&self, list: &str, line: &Value) -> Result<(), Answer> {
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

    fn attachment(&self, request: &mut Request<'_>, number: &str) -> Result<Answer, Answer> {
        let number: u64 =
            number.parse().map_err(|_| Answer::refused(404, format!("there is no attachment {number:?}")))?;
        let bytes = match request.parameter("bytes") {
            None => external::BYTES,
            Some(text) => text.parse().map_err(|_| Answer::refused(400, "bytes must be a whole number"))?,
        };
        let (file, told) = (external::Attachment::new(number), external::tells_length(number));
        match self.faults.befall_file(number) {
            Some(Act::Status { status, retry_after_seconds }) => Err(fault(status, retry_after_seconds)),
            Some(Act::Short | Act::Lost) => {
                Ok(Answer::stream(file.take(bytes / 2).chain(external::BreaksOff), bytes, told))
            }
            None => Ok(Answer::stream(file, bytes, told)),
        }
    }

    fn show_faults(&self, _: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        Ok(Answer::json(200, &self.faults.report()))
    }

    fn add_faults(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        let text = request.body.read_all(JSON_BYTES_MAX, "the list of faults")?;
        let text = String::from_utf8_lossy(&text);
        let faults = text.split_whitespace().map(str::parse).collect::<Result<Vec<Fault>, String>>();
        self.faults.add(faults.map_err(|reason| Answer::refused(400, reason))?);
        self.show_faults(request, "")
    }

    fn lift_faults(&self, request: &mut Request<'_>, _: &str) -> Result<Answer, Answer> {
        self.faults.lift(request.parameter("fault"));
        self.show_faults(request, "")
    }
}

/// The answer to a call that a fault befell.
fn fault(status: u16, retry_after_seconds: Option<u64>) -> Answer {
    let answer = Answer::refused(status, "a fault was set");
    match retry_after_seconds {
        Some(seconds) => answer.with("Retry-After", seconds.to_string()),
        None => answer,
    }
}

fn authorize(request: &Request<'_>, auth: Auth) -> Result<(), Answer> {
    let given = request.header("Authorization");
    let bearer = given
        .and_then(|given| given.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"));
    let (fits, status, expected) = match auth {
        Auth::Bearer => (
            bearer.is_some_and(|(_, token)| !token.trim().is_empty()),
            401,
            "Authorization: Bearer and the token",
        ),
        Auth::Bare => {
            let bare = given.is_some_and(|given| !given.is_empty() && !given.contains(' '));
            (bare, 401, "Authorization: the bare token, without Bearer")
        }
        Auth::Absent => {
            (given.is_none(), 400, "no Authorization: the address is the proof, and the token stays with you")
        }
        Auth::Free => return Ok(()),
    };
    if fits { Ok(()) } else { Err(Answer::refused(status, format!("{} takes {expected}", request.path))) }
}

/// The fields of an upload's form. The signature stands for what a file store signs: that nothing was changed.
fn form_data(id: &str, content_type: &str, bytes: u64) -> Vec<(String, String)> {
    let signature = XxHash3_64::oneshot(format!("{id}\n{content_type}\n{bytes}").as_bytes());
    [
        ("key", format!("artifacts/{id}")),
        ("Content-Type", content_type.to_owned()),
        ("x-file-size", bytes.to_string()),
        ("x-signature", format!("{signature:016x}")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// A parameter of the query that must be there.
fn needed<'r>(request: &'r Request<'_>, name: &str) -> Result<&'r str, Answer> {
    let value = request.parameter(name).filter(|value| !value.is_empty());
    value.ok_or_else(|| Answer::refused(400, format!("the parameter {name} is missing")))
}

fn json_bytes(request: &mut Request<'_>, bytes_max: u64, what: &str) -> Result<Vec<u8>, Answer> {
    let content_type = request.header("Content-Type").unwrap_or_default();
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Answer::refused(
            415,
            format!("the Content-Type must be application/json, it is {content_type:?}"),
        ));
    }
    request.body.read_all(bytes_max, what)
}

fn object(request: &mut Request<'_>, bytes_max: u64, what: &str) -> Result<Map<String, Value>, Answer> {
    match serde_json::from_slice(&json_bytes(request, bytes_max, what)?) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Answer::refused(400, format!("{what} must be a JSON object"))),
        Err(error) => Err(Answer::refused(400, format!("{what} is not JSON: {error}"))),
    }
}

/// A field that must be a text.
fn text<'b>(body: &'b Map<String, Value>, field: &str) -> Result<&'b str, Answer> {
    let value = body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    value.ok_or_else(|| Answer::refused(400, format!("the field {field} is missing, or no text")))
}

fn artifact_id(id: &str) -> Result<ArtifactId, Answer> {
    ArtifactId::new(id).map_err(|error| Answer::refused(404, error.to_string()))
}

fn failed(error: PlatformError) -> Answer {
    match error {
        PlatformError::Refused { status, reason } => Answer::refused(status, reason),
        PlatformError::Retry { reason, .. } | PlatformError::StorageRefused { reason, .. } => {
            Answer::refused(503, reason)
        }
    }
}

/// Looks at what a message must have of its own; returns its event type.
fn check_message(message: &Value) -> Result<&str, String> {
    let event_type = message.get("event_type").and_then(Value::as_str).ok_or("event_type is missing")?;
    let (_, kind) = answers()
        .into_iter()
        .find(|(name, _)| *name == event_type)
        .ok_or_else(|| format!("{event_type:?} is the name of no message"))?;
    let data = message.get("event_data");
    let field = |name: &str| data.and_then(|data| data.get(name)).unwrap_or(&Value::Null);
    match kind {
        AnswerKind::Delay { .. } if !field("delay").is_u64() => {
            return Err(format!("event_data.delay must be whole seconds, it is {}", field("delay")));
        }
        AnswerKind::Error { .. } if field("error").get("message").and_then(Value::as_str).is_none() => {
            return Err("event_data.error.message is missing: it says what went wrong".to_owned());
        }
        _ => {}
    }
    match field("artifacts") {
        Value::Null => {}
        Value::Array(artifacts) => {
            for artifact in artifacts {
                for name in ["id", "item_type"] {
                    if artifact.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                        return Err(format!("an artifact in event_data.artifacts has no {name}: {artifact}"));
                    }
                }
                if !artifact.get("item_count").is_some_and(Value::is_u64) {
                    return Err(format!("an artifact in event_data.artifacts has no item_count: {artifact}"));
                }
            }
        }
        other => return Err(format!("event_data.artifacts must be a list, it is {other}")),
    }
    Ok(event_type)
}

/// The item type of what is said of uploaded attachments.
const UPLOADED: &str = "ssor_attachment";

/// A line of an artifact of that item type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadedAttachment {
    id: UploadedId,
    parent_id: External,
    #[serde(default)]
    actor_id: Option<External>,
    #[serde(default, rename = "inline")]
    _inline: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadedId {
    devrev: String,
    external: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct External {
    external: String,
}

impl UploadedAttachment {
    /// The artifact that holds its bytes.
    fn check(&self) -> Result<ArtifactId, String> {
        let Self { id, parent_id, actor_id, .. } = self;
        let actor_id = actor_id.as_ref().map(|actor| &actor.external);
        for (name, value) in [
            ("id.external", Some(&id.external)),
            ("parent_id.external", Some(&parent_id.external)),
            ("actor_id.external", actor_id),
        ] {
            if value.is_some_and(String::is_empty) {
                return Err(format!("{name} is empty"));
            }
        }
        ArtifactId::new(&id.devrev).map_err(|error| format!("id.devrev: {error}"))
    }
}

/// The names of all messages, in both spellings, with what they say.
fn answers() -> Vec<(&'static str, AnswerKind)> {
    let event_types = [
        "EXTRACTION_EXTERNAL_SYNC_UNITS_START",
        "EXTRACTION_METADATA_START",
        "EXTRACTION_DATA_START",
        "EXTRACTION_ATTACHMENTS_START",
        "EXTRACTION_DATA_DELETE",
        "EXTRACTION_ATTACHMENTS_DELETE",
        "UNKNOWN",
    ];
    let kinds = [
        AnswerKind::Done,
        AnswerKind::Progress { percent: None },
        AnswerKind::Delay { seconds: 0 },
        AnswerKind::Error { code: None, message: String::new() },
    ];
    let mut all = Vec::new();
    for (event_type, _) in event_types.map(EventType::parse) {
        for kind in &kinds {
            for spelling in [Spelling::Seed, Spelling::Newer] {
                // What an event has no such answer to has no name.
                all.extend(answer_name(&event_type, kind, spelling).ok().map(|name| (name, kind.clone())));
            }
        }
    }
    all
}

/// The id of a blueprint: it follows from what is in it.
fn blueprint_id(blueprint: &Value) -> String {
    format!("blueprint-{:016x}", XxHash3_64::oneshot(blueprint.to_string().as_bytes()))
}
