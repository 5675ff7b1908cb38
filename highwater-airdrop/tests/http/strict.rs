//! The local Airdrop accepts what the protocol allows and refuses everything else. Two requests show each rule: one
//! that follows it, and one that breaks only it. A refusal gives a reason, in JSON, and leaves no trace.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use crate::AIRDROP;
use crate::served::{Served, file};
use serde_json::{Value, json};
use tempfile::TempDir;

const BEARER: &str = "Bearer some-token";
const BARE: &str = "some-token";
const STATE: &str = "sync_unit=unit%2F1&request_id=request-1";

/// A request, of which every part can be made wrong.
#[derive(Debug, Clone)]
struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What stands instead of the true `Content-Length`.
    framing: Option<Vec<(&'static str, String)>>,
    half_close: bool,
}

impl Request {
    fn get(path: impl Into<String>, authorization: &str) -> Self {
        let mut headers = Vec::new();
        if !authorization.is_empty() {
            headers.push(("Authorization", authorization.to_owned()));
        }
        Self { method: "GET", path: path.into(), headers, body: Vec::new(), framing: None, half_close: false }
    }

    fn post(path: impl Into<String>, authorization: &str, body: &Value) -> Self {
        let mut request = Self::get(path, authorization);
        request.method = "POST";
        request.body = body.to_string().into_bytes();
        request.with("Content-Type", "application/json")
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// With its path changed, or the same if `from` is not in it.
    fn path(mut self, from: &str, to: &str) -> Self {
        assert!(self.path.contains(from), "{} has no {from}", self.path);
        self.path = self.path.replace(from, to);
        self
    }

    fn framed(mut self, framing: &[(&'static str, String)]) -> Self {
        self.framing = Some(framing.to_vec());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Self { method, path, .. } = self;
        write!(bytes, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n").unwrap();
        let length = vec![("Content-Length", self.body.len().to_string())];
        let framing = match &self.framing {
            Some(framing) => framing.clone(),
            None if self.method == "POST" => length,
            None => Vec::new(),
        };
        for (name, value) in self.headers.iter().chain(&framing) {
            write!(bytes, "{name}: {value}\r\n").unwrap();
        }
        bytes.extend(b"\r\n");
        bytes.extend(&self.body);
        bytes
    }
}

struct Airdrop {
    _scratch: TempDir,
    dir: PathBuf,
    served: Served,
}

impl Airdrop {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("platform");
        let served = Served::start(AIRDROP.as_ref(), &dir, &[]);
        Self { _scratch: scratch, dir, served }
    }

    fn answer(&self, request: &Request) -> (u16, String) {
        self.served.raw(&request.bytes(), request.half_close)
    }

    /// What is answered to a request that keeps the rules.
    fn taken(&self, request: &Request) -> Value {
        let (status, answer) = self.answer(request);
        assert!((200..300).contains(&status), "{request:?}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() }
    }

    /// A request that breaks a rule is refused with a reason, and leaves no trace.
    fn refused(&self, request: &Request, status: u16, reason: &str) {
        let before = self.traces();
        let (found, answer) = self.answer(request);
        let said: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1)
            .unwrap_or_else(|error| panic!("{error}: {answer}"));
        let message = said["message"].as_str().unwrap();
        assert_eq!(found, status, "{message}: {request:?}");
        assert!(message.contains(reason), "{message:?} does not say {reason:?}");
        assert_eq!(self.traces(), before, "{request:?}");
    }

    /// All that the platform keeps, but the list of calls and what is there of uploads that were cut off.
    fn traces(&self) -> BTreeSet<(String, Vec<u8>)> {
        let mut traces = BTreeSet::new();
        for folder in [self.dir.clone(), self.dir.join("artifacts")] {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_file() && name != "calls.jsonl" {
                    traces.insert((name, fs::read(entry.path()).unwrap()));
                }
            }
        }
        traces
    }

    /// Prepares an upload of so many bytes: its id, and the fields of its form.
    fn prepared(&self, bytes: usize) -> (String, Vec<(String, String)>) {
        let answer = self.taken(&prepare(&bytes.to_string()));
        let fields = answer["form_data"].as_object().unwrap();
        let fields = fields.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
        let id = answer["artifact_id"].as_str().unwrap();
        assert_eq!(answer["upload_url"], format!("{}/upload/{id}", self.served.base));
        (id.to_owned(), fields.collect())
    }

    fn uploaded(&self) -> String {
        self.uploaded_bytes(b"file")
    }

    fn uploaded_bytes(&self, bytes: &[u8]) -> String {
        let (id, fields) = self.prepared(bytes.len());
        self.taken(&upload(&id, &form(&fields, bytes)));
        id
    }

    fn confirmed(&self) -> String {
        self.confirmed_bytes(b"file")
    }

    fn confirmed_bytes(&self, bytes: &[u8]) -> String {
        let id = self.uploaded_bytes(bytes);
        self.taken(&confirm(&id));
        id
    }
}

fn prepare(file_size: &str) -> Request {
    let query = "request_id=request-1&file_type=application%2Fx-gzip&file_name=issues.jsonl.gz";
    Request::get(format!("/internal/airdrop.artifacts.upload-url?{query}&file_size={file_size}"), BEARER)
}

fn field(name: &str, value: &str) -> String {
    format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

fn form(fields: &[(String, String)], file: &[u8]) -> Vec<u8> {
    let mut body: String = fields.iter().map(|(name, value)| field(name, value)).collect();
    body.push_str("--b\r\nContent-Disposition: form-data; name=\"file\"\r\nContent-Type: a/b\r\n\r\n");
    [body.as_bytes(), file, b"\r\n--b--\r\n"].concat()
}

fn upload(id: &str, form: &[u8]) -> Request {
    let mut request = Request::get(format!("/upload/{id}"), "").body(form).method("POST");
    request.headers.push(("Content-Type", "multipart/form-data; boundary=b".to_owned()));
    request
}

fn confirm(id: &str) -> Request {
    let body = json!({ "request_id": "request-1", "artifact_id": id });
    Request::post("/internal/airdrop.artifacts.confirm-upload", BEARER, &body)
}

fn state_get() -> Request {
    Request::get(format!("/internal/airdrop.external-worker.get?{STATE}"), BARE)
}

fn state_update(state: &str) -> Request {
    Request::post(
        format!("/internal/airdrop.external-worker.update?{STATE}"),
        BARE,
        &json!({ "state": state }),
    )
}

fn message(body: &Value) -> Request {
    Request::post("/internal/airdrop.external-extractor.message", BARE, body)
}

/// A message that answers an event of its own.
fn done(request: &str, artifacts: &[&str]) -> Value {
    let artifacts: Vec<Value> =
        artifacts.iter().map(|id| json!({ "id": id, "item_type": "issues", "item_count": 1 })).collect();
    json!({
        "event_type": "EXTRACTION_DATA_DONE",
        "event_context": { "run_id": "run-1", "request_id": request },
        "event_data": { "artifacts": artifacts },
    })
}

#[test]
fn bodies_are_as_long_as_they_say_and_come_in_one_piece() {
    let airdrop = Airdrop::new();
    let (id, fields) = airdrop.prepared(4);
    let requests = [
        message(&done("request-1", &[])),
        confirm(&airdrop.uploaded()),
        state_update("{}"),
        Request::post("/internal/airdrop.recipe.blueprints.create", BARE, &json!({ "a": 1 })),
        upload(&id, &form(&fields, b"file")),
    ];
    for request in requests {
        let length = request.body.len();
        let says = |length: &str| vec![("Content-Length", length.to_owned())];
        let chunked = [format!("{length:x}\r\n").as_bytes(), &request.body, b"\r\n0\r\n\r\n"].concat();
        let chunks = [("Transfer-Encoding", "chunked".to_owned())];
        airdrop.refused(
            &request.clone().body(chunked).framed(&chunks),
            411,
            "a chunked body is not accepted",
        );
        airdrop.refused(&request.clone().framed(&[]), 411, "needs a Content-Length");
        airdrop.refused(&request.clone().framed(&says("some")), 400, "is not a length");
        airdrop.refused(&request.clone().framed(&says("-1")), 400, "is not a length");
        let twice = [says(&length.to_string()), says(&length.to_string())].concat();
        airdrop.refused(&request.clone().framed(&twice), 400, "one Content-Length");
        let mut longer = request.clone().framed(&says(&(length + 1).to_string()));
        longer.half_close = true;
        let after = format!("ended after {length} of the {} bytes", length + 1);
        // A form is over at its end, whatever else was to come.
        let reason = if request.path.starts_with("/upload/") { "ended after" } else { after.as_str() };
        airdrop.refused(&longer, 400, reason);
        // What is cut off is not JSON, or no form, any more.
        let cut = request.clone().framed(&says(&(length - 5).to_string()));
        let reason = if request.path.starts_with("/upload/") {
            "before the boundary that ends it"
        } else {
            "is not JSON"
        };
        airdrop.refused(&cut, 400, reason);
        airdrop.taken(&request);
    }
}

#[test]
fn what_is_no_http_is_refused() {
    let airdrop = Airdrop::new();
    let good = "GET /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(airdrop.served.raw(good.as_bytes(), false).0, 200);
    let long = good.replace("Host: x", &format!("Host: {}", "x".repeat(70_000)));
    for (text, status, reason) in [
        (good.replace("HTTP/1.1", "HTTP/7"), 400, "this is not an HTTP request"),
        (good.replace("Host: x", "Host x"), 400, "this is not an HTTP request"),
        (good.replace("\r\n\r\n", "\r\n"), 400, "ended within its head"),
        (long, 431, "at most 65536 bytes"),
        (good.replace("/faults", "/nothing"), 404, "there is nothing at /nothing"),
        (
            good.replace("GET", "PUT").replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"),
            405,
            "is not what /faults takes",
        ),
    ] {
        let (found, answer) = airdrop.served.raw(text.as_bytes(), true);
        assert!(found == status && answer.contains(reason), "{answer}");
    }
}

#[test]
fn each_address_takes_its_own_form_of_token() {
    let airdrop = Airdrop::new();
    let id = airdrop.uploaded();
    let blueprint = Request::post("/internal/airdrop.recipe.blueprints.create", BARE, &json!({ "a": 1 }));
    let slugs = json!({ "external_system_type": "ADaaS", "import_slug": "a", "snap_in_slug": "b" });
    let mapping = Request::post("/internal/airdrop.recipe.initial-domain-mappings.install", BARE, &slugs);
    let download_url = format!("/internal/airdrop.artifacts.download-url?request_id=r&artifact_id={id}");
    for request in [prepare("4"), confirm(&id), Request::get(download_url, BEARER)] {
        airdrop.refused(&request.clone().with("Authorization", BARE), 401, "Bearer and the token");
        airdrop.refused(&request.clone().with("Authorization", "Bearer "), 401, "Bearer and the token");
        airdrop.refused(&request.clone().without("Authorization"), 401, "Bearer and the token");
        airdrop.taken(&request);
    }
    airdrop.taken(&state_update("{}"));
    let snap_in = Request::get("/internal/snap-ins.get?id=snap-in", BARE);
    for request in
        [state_get(), state_update("{}"), message(&done("request-1", &[])), snap_in, blueprint, mapping]
    {
        airdrop.refused(&request.clone().with("Authorization", BEARER), 401, "the bare token");
        airdrop.refused(&request.clone().without("Authorization"), 401, "the bare token");
        airdrop.taken(&request);
    }
    let (other, fields) = airdrop.prepared(4);
    let upload = upload(&other, &form(&fields, b"file"));
    let download = Request::get(format!("/download/{id}"), "");
    for request in [upload, download] {
        for token in [BARE, BEARER] {
            airdrop.refused(&request.clone().with("Authorization", token), 400, "the token stays with you");
        }
        let (status, answer) = airdrop.answer(&request);
        assert!((200..300).contains(&status), "{answer}");
    }
}

#[test]
fn an_upload_is_prepared_with_all_that_it_needs() {
    let airdrop = Airdrop::new();
    let good = prepare("4");
    for name in ["request_id", "file_type", "file_name"] {
        let reason = format!("{name} is missing");
        airdrop.refused(&good.clone().path(&format!("{name}="), "other="), 400, &reason);
        let mut empty = good.clone();
        let (before, after) = empty.path.split_once(&format!("{name}=")).unwrap();
        let after = after.find('&').map_or("", |end| &after[end..]);
        empty.path = format!("{before}{name}={after}");
        airdrop.refused(&empty, 400, &reason);
    }
    airdrop.taken(&good);
    let named = |chars: usize| prepare("4").path("issues.jsonl.gz", &"n".repeat(chars));
    airdrop.refused(&named(257), 400, "the limit is 256");
    airdrop.taken(&named(256));
    airdrop.refused(&prepare("many"), 400, "whole number of bytes");
    airdrop.refused(&prepare("2147483649"), 413, "the limit is 2147483648");
    airdrop.taken(&prepare("2147483648"));
}

#[test]
fn a_form_has_every_field_before_the_file_and_a_file_as_long_as_was_told() {
    let airdrop = Airdrop::new();
    let (id, fields) = airdrop.prepared(4);
    assert_eq!(fields.len(), 4);
    for at in 0..fields.len() {
        let name = &fields[at].0;
        let mut fewer = fields.clone();
        fewer.remove(at);
        // That there is a size at all is covered by the signature.
        let (status, reason) = match name.as_str() {
            "x-file-size" => (403, "x-signature is not as form_data says".to_owned()),
            name => (400, format!("the form field {name} was not sent before the file")),
        };
        airdrop.refused(&upload(&id, &form(&fewer, b"file")), status, &reason);
        // All are there, but one comes too late.
        let whole = form(&fewer, b"file");
        let late = whole.strip_suffix(b"--b--\r\n").unwrap();
        let late = [late, field(name, &fields[at].1).as_bytes(), b"--b--\r\n"].concat();
        airdrop.refused(&upload(&id, &late), status, &reason);
        let twice = [fields.clone(), vec![fields[at].clone()]].concat();
        airdrop.refused(&upload(&id, &form(&twice, b"file")), 400, &format!("{name} was sent twice"));
        let mut changed = fields.clone();
        changed[at].1.push('0');
        airdrop.refused(&upload(&id, &form(&changed, b"file")), 403, "is not as form_data says");
    }
    let more = [fields.clone(), vec![("acl".to_owned(), "public".to_owned())]].concat();
    airdrop.refused(&upload(&id, &form(&more, b"file")), 400, "form_data names no form field acl");
    airdrop.refused(&upload(&id, &form(&fields, b"fil")), 400, "declared to be 4 bytes and has 3");
    airdrop.refused(&upload(&id, &form(&fields, b"files")), 400, "declared to be 4 bytes and has more");
    let good = upload(&id, &form(&fields, b"file"));
    let text = String::from_utf8(good.body.clone()).unwrap();
    let no_file = text.replace("name=\"file\"", "name=\"other\"");
    airdrop.refused(&good.clone().body(no_file), 400, "without the part `file`");
    let behind = text.replace("\r\n--b--\r\n", &format!("\r\n{}--b--\r\n", field("x", "y")));
    airdrop.refused(&good.clone().body(behind), 400, "something follows the file");
    airdrop.refused(&good.clone().with("Content-Type", "application/gzip"), 415, "multipart/form-data");
    let other = good.clone().with("Content-Type", "multipart/form-data; boundary=c");
    airdrop.refused(&other, 400, "does not begin with the boundary");
    airdrop.refused(&good.clone().path(&id, "another"), 403, "is not as form_data says");
    airdrop.taken(&good);
    assert_eq!(fs::read(airdrop.dir.join("artifacts").join(&id)).unwrap(), b"file");
    airdrop.refused(&good, 409, "was uploaded before");
}

#[test]
fn only_what_was_uploaded_is_confirmed_and_downloaded() {
    let airdrop = Airdrop::new();
    let (prepared, _) = airdrop.prepared(4);
    airdrop.refused(&confirm(&prepared), 404, "was never uploaded");
    let id = airdrop.uploaded();
    let good = confirm(&id);
    for (body, status, reason) in [
        (json!({ "artifact_id": id }).to_string(), 400, "request_id is missing"),
        (json!({ "request_id": "r" }).to_string(), 400, "artifact_id is missing"),
        (
            json!({ "request_id": "r", "artifact_id": 7 }).to_string(),
            400,
            "artifact_id is missing, or no text",
        ),
        (json!([]).to_string(), 400, "must be a JSON object"),
        ("{".to_owned(), 400, "is not JSON"),
    ] {
        airdrop.refused(&good.clone().body(body), status, reason);
    }
    airdrop.refused(&good.clone().with("Content-Type", "text/plain"), 415, "must be application/json");
    airdrop.taken(&good);
    // Twice is the same as once.
    airdrop.taken(&good);
    assert_eq!(fs::read_to_string(airdrop.dir.join("confirmed.txt")).unwrap(), format!("{id}\n"));

    let path = |id: &str| format!("/internal/airdrop.artifacts.download-url?request_id=r&artifact_id={id}");
    airdrop.refused(&Request::get(path(&prepared), BEARER), 404, "has no upload with this id");
    airdrop.refused(
        &Request::get(path(&id).replace("request_id=r&", ""), BEARER),
        400,
        "request_id is missing",
    );
    let address =
        airdrop.taken(&Request::get(path(&id), BEARER))["download_url"].as_str().unwrap().to_owned();
    let download = Request::get(address.strip_prefix(&airdrop.served.base).unwrap(), "");
    assert!(airdrop.answer(&download).1.ends_with("\r\n\r\nfile"));
    airdrop.refused(&download.path(&id, &prepared), 404, "has no upload with this id");
}

#[test]
fn a_worker_state_is_json_of_at_most_a_megabyte_for_each_unit() {
    let airdrop = Airdrop::new();
    airdrop.refused(&state_get(), 404, "no state of the sync unit unit/1");
    let state = |bytes: usize| format!("\"{}\"", "\\\\".repeat((bytes - 2) / 2));
    airdrop.refused(&state_update(&state(1_000_002)), 413, "the limit is 1000000");
    airdrop.taken(&state_update(&state(1_000_000)));
    assert_eq!(airdrop.taken(&state_get())["state"], state(1_000_000));
    airdrop.refused(&state_update("{"), 400, "is not JSON");
    let good = state_update("{\"a\":1}");
    airdrop.refused(&good.clone().body("{\"state\":{}}"), 400, "state is missing, or no text");
    airdrop.refused(&good.clone().path("sync_unit=unit%2F1&", ""), 400, "sync_unit is missing");
    airdrop.refused(&good.clone().path("&request_id=request-1", ""), 400, "request_id is missing");
    airdrop.taken(&good);
    assert_eq!(airdrop.taken(&state_get()), json!({ "state": "{\"a\":1}", "objects": "{}" }));
    airdrop.refused(&state_get().path("unit%2F1", "unit%2F2"), 404, "no state of the sync unit unit/2");
}

#[test]
fn the_extraction_scope_of_the_directory_is_given_with_a_state_or_without_one() {
    let airdrop = Airdrop::new();
    airdrop.refused(&state_get(), 404, "no state of the sync unit unit/1");
    let scope = r#"{"users":{"extract":false}}"#;
    fs::write(airdrop.dir.join("objects.json"), scope).unwrap();
    assert_eq!(airdrop.taken(&state_get()), json!({ "state": "{}", "objects": scope }));
    airdrop.taken(&state_update("{\"a\":1}"));
    assert_eq!(airdrop.taken(&state_get()), json!({ "state": "{\"a\":1}", "objects": scope }));
    fs::remove_file(airdrop.dir.join("objects.json")).unwrap();
    assert_eq!(airdrop.taken(&state_get())["objects"], "{}");
}

#[test]
fn a_message_names_its_event_and_only_what_is_confirmed_and_there_is_one_of_it() {
    let airdrop = Airdrop::new();
    let (confirmed, unconfirmed) = (airdrop.confirmed(), airdrop.uploaded());
    let (prepared, _) = airdrop.prepared(4);
    let changed = |pointer: &str, value: Value| {
        let mut body = done("request-1", &[&confirmed]);
        *body.pointer_mut(pointer).unwrap() = value;
        message(&body)
    };
    let artifact = "/event_data/artifacts/0";
    for (request, reason) in [
        (changed("/event_context/request_id", Value::Null), "event_context.request_id is missing"),
        (changed("/event_type", Value::Null), "event_type is missing"),
        (changed("/event_type", json!("EXTRACTION_DATA_DANCE")), "is not the event type of a message"),
        (changed("/event_type", json!("EXTRACTION_DATA_DELAY")), "event_data.delay must be whole seconds"),
        (changed("/event_type", json!("EXTRACTION_DATA_ERROR")), "event_data.error.message is missing"),
        (changed("/event_data/artifacts", json!({})), "must be a list"),
        (changed(&format!("{artifact}/id"), Value::Null), "has no id"),
        (changed(&format!("{artifact}/item_type"), Value::Null), "has no item_type"),
        (changed(&format!("{artifact}/item_count"), json!("1")), "has no item_count"),
        (changed(&format!("{artifact}/id"), json!("artifact-unheard-of")), "was never uploaded"),
        (changed(&format!("{artifact}/id"), json!(prepared)), "was never uploaded"),
        (changed(&format!("{artifact}/id"), json!(unconfirmed)), "is not confirmed"),
        (message(&json!([])), "event_context.request_id is missing"),
        (message(&json!({})).body("{"), "is not JSON"),
        (message(&json!({})).body(b"\"\xff\"".to_vec()), "is not UTF-8"),
    ] {
        airdrop.refused(&request, 400, reason);
    }
    // External sync units are announced without a confirm.
    let mut units = done("request-0", &[&unconfirmed]);
    units["event_type"] = json!("EXTRACTION_EXTERNAL_SYNC_UNITS_DONE");
    airdrop.taken(&message(&units));
    let mut delay = done("request-00", &[]);
    delay["event_type"] = json!("DATA_EXTRACTION_DELAYED");
    delay["event_data"]["delay"] = json!(7);
    airdrop.taken(&message(&delay));

    let good = message(&done("request-1", &[&confirmed]));
    airdrop.refused(&good.clone().with("Content-Type", "text/plain"), 415, "must be application/json");
    airdrop.taken(&good);
    let before = airdrop.traces();
    airdrop.taken(&good);
    assert_eq!(airdrop.traces(), before, "the same bytes again are the same message");
    airdrop.refused(&message(&done("request-1", &[])), 409, "was used before, with another message");

    let sized = |request: &str, bytes: usize| {
        let mut body = done(request, &[]);
        body["event_context"]["filler"] = json!("");
        let rest = bytes - body.to_string().len();
        body["event_context"]["filler"] = json!("x".repeat(rest));
        assert_eq!(body.to_string().len(), bytes);
        message(&body)
    };
    airdrop.refused(&sized("request-2", 200_001), 413, "the limit is 200000");
    airdrop.taken(&sized("request-2", 200_000));
}

#[test]
fn what_is_said_of_attachments_names_uploads_that_are_confirmed_each_once() {
    let airdrop = Airdrop::new();
    let (confirmed, unconfirmed) = (airdrop.confirmed(), airdrop.uploaded());
    let good = json!({
        "id": { "devrev": confirmed, "external": "att-1" }, "parent_id": { "external": "issue-1" },
        "actor_id": { "external": "user-1" }, "inline": true,
    });
    let says = |lines: &[Value], count: usize| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for line in lines {
            gzip.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        let id = airdrop.confirmed_bytes(&gzip.finish().unwrap());
        json!({ "id": id, "item_type": "ssor_attachment", "item_count": count })
    };
    let message_of = |request: &str, artifacts: &[Value]| {
        let mut body = done(request, &[]);
        body["event_type"] = json!("EXTRACTION_ATTACHMENTS_DONE");
        body["event_data"]["artifacts"] = json!(artifacts);
        message(&body)
    };
    let changed = |pointer: &str, value: Value| {
        let mut line = good.clone();
        *line.pointer_mut(pointer).unwrap() = value;
        message_of("request-1", &[says(&[line], 1)])
    };
    for (request, reason) in [
        (changed("/id/devrev", json!(unconfirmed)), "which is not uploaded and confirmed"),
        (changed("/id/devrev", json!("artifact-unheard-of")), "which is not uploaded and confirmed"),
        (changed("/id/devrev", json!("")), "id.devrev"),
        (changed("/id", json!(confirmed)), "does not name an upload"),
        (changed("/id/external", json!(7)), "does not name an upload"),
        (changed("/id/external", json!("")), "id.external is empty"),
        (changed("/parent_id", Value::Null), "does not name an upload"),
        (changed("/parent_id/external", json!("")), "parent_id.external is empty"),
        (changed("/actor_id", json!("user-1")), "does not name an upload"),
        (changed("/inline", json!("yes")), "does not name an upload"),
        (message_of("request-1", &[says(&[good.clone(), good.clone()], 2)]), "line 2: it names an upload"),
        (
            message_of(
                "request-1",
                &[says(std::slice::from_ref(&good), 1), says(std::slice::from_ref(&good), 1)],
            ),
            "it names an upload that another line names",
        ),
        (message_of("request-1", &[says(std::slice::from_ref(&good), 2)]), "has 1 lines"),
        (
            message_of(
                "request-1",
                &[json!({ "id": confirmed, "item_type": "ssor_attachment", "item_count": 1 })],
            ),
            "it is not gzipped text",
        ),
    ] {
        airdrop.refused(&request, 400, reason);
    }
    let message = message_of("request-1", &[says(std::slice::from_ref(&good), 1)]);
    airdrop.taken(&message);
    airdrop.taken(&message);
    let mut bare = good;
    for optional in ["actor_id", "inline"] {
        bare.as_object_mut().unwrap().remove(optional);
    }
    bare["id"]["devrev"] = json!(airdrop.confirmed());
    airdrop.taken(&message_of("request-2", &[says(&[bare], 1)]));
}

#[test]
fn mappings_are_installed_with_a_blueprint_that_is_there() {
    let airdrop = Airdrop::new();
    let snap_in = Request::get("/internal/snap-ins.get?id=snap-in", BARE);
    airdrop.refused(&snap_in.clone().path("?id=snap-in", ""), 400, "id is missing");
    let snap_in = airdrop.taken(&snap_in)["snap_in"].clone();
    assert!(snap_in["imports"][0]["name"].is_string() && snap_in["snap_in_version"]["slug"].is_string());

    let blueprint = Request::post("/internal/airdrop.recipe.blueprints.create", BARE, &json!({ "a": 1 }));
    airdrop.refused(&blueprint.clone().body("{}"), 400, "is empty");
    airdrop.refused(&blueprint.clone().body("[]"), 400, "must be a JSON object");
    let id = airdrop.taken(&blueprint)["recipe_blueprint"]["id"].as_str().unwrap().to_owned();

    let mapping = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({
            "external_system_type": "ADaaS", "import_slug": "a", "snap_in_slug": "b", "starting_recipe_blueprint": id,
        });
        change(&mut body);
        Request::post("/internal/airdrop.recipe.initial-domain-mappings.install", BARE, &body)
    };
    for field in ["external_system_type", "import_slug", "snap_in_slug"] {
        let without = mapping(&|body| drop(body.as_object_mut().unwrap().remove(field)));
        airdrop.refused(&without, 400, &format!("{field} is missing"));
    }
    let unknown = mapping(&|body| body["starting_recipe_blueprint"] = json!("blueprint-unheard-of"));
    airdrop.refused(&unknown, 400, "there is no recipe blueprint");
    airdrop.taken(&mapping(&|_| {}));
    airdrop.taken(&mapping(&|body| drop(body.as_object_mut().unwrap().remove("starting_recipe_blueprint"))));
    let kept = fs::read_to_string(airdrop.dir.join("mappings.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), 2);
}

#[test]
fn faults_are_set_and_lifted_while_it_runs() {
    let airdrop = Airdrop::new();
    let set = |text: &str| Request::get("/faults", "").method("POST").body(text);
    airdrop.refused(&set("dance-500"), 400, "is not a call");
    airdrop.taken(&set("429:prepare,1,7\nprepare-403:2\nprepare-lost:3 prepare-500"));
    let (status, answer) = airdrop.answer(&prepare("4"));
    assert!(status == 429 && answer.contains("\r\nRetry-After: 7\r\n"), "{answer}");
    assert_eq!(airdrop.answer(&prepare("4")).0, 403);
    airdrop.taken(&Request::get("/faults?fault=prepare-500", "").method("DELETE"));
    let lost = std::panic::catch_unwind(|| airdrop.answer(&prepare("4")));
    assert!(lost.unwrap_err().downcast::<String>().unwrap().contains("no answer: \"\""));
    airdrop.taken(&prepare("4"));
    let came_true = airdrop.served.came_true();
    assert_eq!(came_true.values().copied().collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn attachments_are_streamed_and_the_length_of_every_third_is_not_told() {
    let airdrop = Airdrop::new();
    for n in 0..7 {
        let request = Request::get(format!("/ext/attachment/{n}?bytes=100000"), "").bytes();
        let mut connection =
            std::net::TcpStream::connect(airdrop.served.base.strip_prefix("http://").unwrap()).unwrap();
        std::io::Write::write_all(&mut connection, &request).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut connection, &mut answer).unwrap();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let mut rest = &answer[end..];
        let mut body = Vec::<u8>::new();
        if n % 3 == 0 {
            assert!(
                head.contains("Transfer-Encoding: chunked") && !head.contains("Content-Length"),
                "{head}"
            );
            loop {
                let line = rest.windows(2).position(|window| window == b"\r\n").unwrap();
                let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
                body.extend(&rest[line + 2..line + 2 + length]);
                rest = &rest[line + 4 + length..];
                if length == 0 {
                    break;
                }
            }
            assert!(rest.is_empty());
        } else {
            assert!(head.contains("Content-Length: 100000") && !head.contains("chunked"), "{head}");
            body.extend(rest);
        }
        assert!(body == file(n, 100_000), "attachment {n}");
    }
    let default = airdrop.answer(&Request::get("/ext/attachment/1", "")).1;
    assert!(default.contains("Content-Length: 65536"), "{}", &default[..200]);
    airdrop.refused(&Request::get("/ext/attachment/1?bytes=many", ""), 400, "must be a whole number");
    airdrop.refused(&Request::get("/ext/attachment/one", ""), 404, "no attachment");
}

#[test]
fn a_file_of_the_external_system_that_breaks_off_is_half_of_what_it_says() {
    let airdrop = Airdrop::new();
    airdrop.taken(&Request::get("/faults", "").method("POST").body("ext-short:1,1 ext-short:3,1 ext-404:2"));
    // What is answered is read as text, and so is what is expected.
    let half = String::from_utf8_lossy(&file(1, 500)).into_owned();
    let (_, answer) = airdrop.answer(&Request::get("/ext/attachment/1?bytes=1000", ""));
    assert!(answer.contains("Content-Length: 1000\r\n"), "{answer}");
    assert!(answer.ends_with(&format!("\r\n\r\n{half}")), "{answer}");
    let (_, answer) = airdrop.answer(&Request::get("/ext/attachment/3?bytes=1000", ""));
    assert!(answer.contains("Transfer-Encoding: chunked") && !answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    for n in [1, 3] {
        let (_, answer) = airdrop.answer(&Request::get(format!("/ext/attachment/{n}?bytes=1000"), ""));
        let whole = String::from_utf8_lossy(&file(n, 1000)).into_owned();
        assert!(answer.contains(&whole), "it is whole the second time: {answer}");
    }
    for _ in 0..2 {
        airdrop.refused(&Request::get("/ext/attachment/2", ""), 404, "a fault was set");
    }
    assert_eq!(airdrop.served.came_true().values().copied().collect::<Vec<_>>(), [2, 1, 1]);
}
