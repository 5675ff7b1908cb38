//! Airdrop over HTTP; and a source's API, through the same library.
//!
//! Each method of [`Client`] makes one attempt and reports its result; the caller waits, retries and gives up. The
//! outcome of a request that changes something is *unknown* once its last byte was passed to the connection and no
//! answer came. Before that, the request cannot have taken effect, because its `Content-Length` was not reached. What
//! a status proves is in the table of `http_status`. The platform's redirects are not followed, because they would
//! send the token elsewhere.
//!
//! An upload always has a correct `Content-Length`, because the file store refuses chunked bodies: the form around
//! the file is made beforehand, and a stream of unknown length goes through a temporary file. Upload URLs and form
//! fields are credentials: they live only as long as one call, and no reason quotes them, or the token.

mod form;

use std::fmt;
use std::io::{self, Cursor, Read, Seek, Write};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Map, Value, json};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderValue, Response, Uri};
use ureq::{Agent, SendBody};

use crate::airdrop::document::lossy_value;
use crate::airdrop::event::{Event, Secret, wrong};
use crate::airdrop::http_status::{Call, retry_after};
use crate::airdrop::message::LIBRARY_VERSION;
use crate::airdrop::platform::{Body, Fate, Platform, PlatformError, SealedMessage, Upload, WorkerState};
use crate::airdrop::source_client::{SourceAnswer, SourceClient, SourceRequest};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::model::{ArtifactId, BATCH_BYTES_MAX};

use form::{Counted, Exactly, boundary, form_fields, in_quotes, short_file_name};

/// The time limit of one call, unless set otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for transferring one file, unless set otherwise: as long as an invocation should last.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// An idle connection is not used after this time: servers close theirs after five seconds or more, and a request
/// that meets a closing connection has an unknown outcome.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Connections kept open to one host: as many as attachments may be streamed at once.
const IDLE_CONNECTIONS: usize = 50;
/// Bytes of an artifact that the platform takes.
const ARTIFACT_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes of an answer that are read where little is expected.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;
/// Bytes of an answer with a worker state: 1 MB of JSON as a JSON string, most of it escaped.
const STATE_ANSWER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Characters of the platform's text that go into a reason.
const SAID_CHARS_MAX: usize = 300;
/// The variables in which ureq looks for a proxy, in its order.
const PROXY_VARIABLES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
/// The status reported for a request that was not sent.
const NOT_SENT: u16 = 400;

type Attempt<T> = Result<T, PlatformError>;

/// Airdrop over HTTP: the [`Platform`] of one event.
///
/// It keeps connections open between calls, and may be used from many threads. Creating one sends nothing.
///
/// A proxy is used if `ALL_PROXY`, `HTTPS_PROXY` or `HTTP_PROXY` (or the same in lower case) names one: the first that
/// is set and not empty counts, for http and https alike. `NO_PROXY` excludes hosts. Its URL begins with `http`,
/// `https` (both are asked to `CONNECT`), `socks4`, `socks4a`, `socks5` or `socks5h`. A loopback address (`localhost`,
/// 127.0.0.0/8, `::1`) is never reached through a proxy.
///
/// `ureq` and `ureq_proto` log through the `log` crate. At TRACE, `ureq_proto` logs every byte of a request, the token
/// included: keep both below TRACE.
pub struct Client {
    event: Event,
    clock: Arc<dyn Clock>,
    /// For everything but files; limited in total time.
    calls: Agent,
    /// For files; limited in the time of a stall, and in a very long total time.
    transfers: Agent,
    request_timeout: Duration,
    transfer_timeout: Duration,
    token: Secret,
    callback_url: Uri,
    /// The headers by which a message identifies its sender.
    sender: Vec<(&'static str, HeaderValue)>,
    snap_in: OnceLock<SnapIn>,
}

/// What a mapping is installed for: names that do not change while an event is answered, so they are requested once.
#[derive(Clone)]
struct SnapIn {
    import: String,
    version: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("event", &self.event)
            .field("request_timeout", &self.request_timeout)
            .field("transfer_timeout", &self.transfer_timeout)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client that answers `event`, with the addresses and the token from it.
    ///
    /// # Errors
    /// `Event` if the event has no token or no callback URL, or if a field that goes into a header cannot; `Invalid`
    /// if a variable names an invalid proxy. Any other missing field is an error of the call that needs it.
    pub fn new(event: &Event) -> Result<Self> {
        check_proxies()?;
        let token = event
            .service_account_token()?
            .ok_or_else(|| wrong("context.secrets.service_account_token", "is missing"))?;
        header("context.secrets.service_account_token", token.expose())?;
        let path = "payload.event_context.callback_url";
        let callback_url = event.callback_url()?.ok_or_else(|| wrong(path, "is missing"))?;
        let callback_url = url(&callback_url).ok_or_else(|| wrong(path, "must be an http or https URL"))?;
        let mut sender = Vec::new();
        if let Some(slug) = event.snap_in_slug()? {
            sender.push(("X-DevRev-Client-Platform", header("payload.event_context.snap_in_slug", &slug)?));
        }
        if let Some(id) = event.snap_in_version_id()? {
            sender.push(("X-DevRev-Client-Id", header("context.snap_in_version_id", &id)?));
        }
        sender.push(("X-DevRev-Client-Version", HeaderValue::from_static(LIBRARY_VERSION)));
        Ok(Self {
            event: event.clone(),
            clock: Arc::new(SystemClock::new()),
            calls: calls_agent(REQUEST_TIMEOUT),
            transfers: transfers_agent(REQUEST_TIMEOUT, TRANSFER_TIMEOUT),
            request_timeout: REQUEST_TIMEOUT,
            transfer_timeout: TRANSFER_TIMEOUT,
            token,
            callback_url,
            sender,
            snap_in: OnceLock::new(),
        })
    }

    /// Sets the time limit of one call; 30 seconds unless set. The transfer of a file fails if it stalls for as long.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self.calls = calls_agent(timeout);
        self.transfers = transfers_agent(timeout, self.transfer_timeout);
        self
    }

    /// Sets the time limit for transferring one file; 10 minutes unless set.
    #[must_use]
    pub fn transfer_timeout(mut self, timeout: Duration) -> Self {
        self.transfer_timeout = timeout;
        self.transfers = transfers_agent(self.request_timeout, timeout);
        self
    }

    /// Sets the clock to which a `Retry-After` date is compared.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token.expose())
    }

    fn request_id(&self) -> Attempt<String> {
        needed("payload.event_context.request_id", self.event.request_id())
    }

    fn endpoint(&self, path: &str) -> Attempt<Uri> {
        let field = "execution_metadata.devrev_endpoint";
        let endpoint = needed(field, self.event.devrev_endpoint())?;
        let address = url(&format!("{}{path}", endpoint.trim_end_matches('/')));
        address.ok_or_else(|| not_sent(wrong(field, "must be an http or https URL").to_string()))
    }

    fn worker_data(&self, suffix: &str) -> Attempt<(Uri, [(&'static str, String); 2])> {
        let field = "payload.event_context.worker_data_url";
        let address = needed(field, self.event.worker_data_url())?;
        let address = url(&format!("{address}{suffix}"))
            .ok_or_else(|| not_sent(wrong(field, "must be an http or https URL").to_string()))?;
        let unit = needed("payload.event_context.sync_unit_id", self.event.sync_unit_id())?;
        let request = needed("payload.event_context.request_id_adaas", self.event.worker_state_request_id())?;
        Ok((address, [("sync_unit", unit), ("request_id", request)]))
    }

    fn get(
        &self,
        address: &Uri,
        query: &[(&str, &str)],
    ) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        direct_if_loopback(address, self.calls.get(address)).query_pairs(query.iter().copied())
    }

    fn post(&self, address: &Uri, query: &[(&str, &str)]) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
        direct_if_loopback(address, self.calls.post(address)).query_pairs(query.iter().copied())
    }

    /// Sends a request that changes nothing.
    fn call(
        &self,
        call: Call,
        step: &str,
        request: ureq::RequestBuilder<ureq::typestate::WithoutBody>,
    ) -> Attempt<Value> {
        let answer = request.call().map_err(|error| self.lost(step, &error, Fate::NotApplied));
        let response = self.succeeded(call, step, answer)?;
        self.json(step, response, ANSWER_BYTES_MAX)
    }

    /// Sends a request; only the status of the answer matters.
    fn tell(
        &self,
        call: Call,
        step: &str,
        request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        body: &str,
    ) -> Attempt<()> {
        drain(self.post_json(call, step, request, body)?);
        Ok(())
    }

    fn post_json(
        &self,
        call: Call,
        step: &str,
        request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        body: &str,
    ) -> Attempt<Response<ureq::Body>> {
        let request = request.header("Content-Type", "application/json");
        let answer = self.send_body(step, request, &mut Cursor::new(body), body.len() as u64);
        self.succeeded(call, step, answer)
    }

    /// Sends a body of this many bytes. The outcome is unknown only if all of it was sent.
    fn send_body(
        &self,
        step: &str,
        request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        body: &mut dyn Read,
        bytes: u64,
    ) -> Attempt<Response<ureq::Body>> {
        let mut body = Counted { inner: body, bytes: 0 };
        let answer = request.header("Content-Length", bytes).send(SendBody::from_reader(&mut body));
        answer.map_err(|error| {
            let fate = if body.bytes < bytes { Fate::NotApplied } else { Fate::Unknown };
            self.lost(step, &error, fate)
        })
    }

    /// No answer came.
    fn lost(&self, step: &str, error: &ureq::Error, fate: Fate) -> PlatformError {
        let what = match error {
            ureq::Error::Timeout(which) => format!("no answer in time ({which})"),
            ureq::Error::Io(error) => error.to_string(),
            ureq::Error::HostNotFound => "the host was not found".to_owned(),
            ureq::Error::ConnectionFailed => "no connection".to_owned(),
            ureq::Error::Protocol(error) => format!("the answer is not HTTP: {error}"),
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => format!("no secure connection: {error}"),
            ureq::Error::LargeResponseHeader(..) => "the answer's header is too large".to_owned(),
            ureq::Error::ConnectProxyFailed(_) => "the proxy made no connection".to_owned(),
            ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => "too many redirects".to_owned(),
            // The text of other errors may contain a URL.
            _ => "the request cannot be made".to_owned(),
        };
        PlatformError::Retry { fate, after: None, reason: format!("{step}: {}", self.clean(&what)) }
    }

    /// Classifies answers by the table of `http_status`.
    fn succeeded(
        &self,
        call: Call,
        step: &str,
        answer: Attempt<Response<ureq::Body>>,
    ) -> Attempt<Response<ureq::Body>> {
        let mut response = answer?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| retry_after(text, self.clock.now()));
        let mut said = Vec::new();
        // If reading it fails, the part that was read is enough.
        let _ = response.body_mut().as_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut said);
        let said = self.clean(&gist(&String::from_utf8_lossy(&said)));
        let colon = if said.is_empty() { "" } else { ": " };
        match PlatformError::from_status(call, status.as_u16(), after, format!("{step}{colon}{said}")) {
            Some(error) => Err(error),
            None => Ok(response),
        }
    }

    fn json(&self, step: &str, mut response: Response<ureq::Body>, bytes_max: u64) -> Attempt<Value> {
        let mut text = Vec::new();
        let mut body = response.body_mut().as_reader().take(bytes_max + 1);
        body.read_to_end(&mut text).map_err(|error| self.lost(step, &error.into(), Fate::Unknown))?;
        if text.len() as u64 > bytes_max {
            return Err(malformed(step, &format!("at most {bytes_max} bytes")));
        }
        // The text is another program's: an unpaired surrogate in it is no reason to refuse the rest.
        let text = String::from_utf8(text).map_err(|_| malformed(step, "JSON"))?;
        lossy_value(&text).map_err(|_| malformed(step, "JSON"))
    }

    /// Another program's text, made safe to show: cut, on one line, without secrets and without URLs.
    fn clean(&self, said: &str) -> String {
        clean(&self.event.hide_secrets(said))
    }

    /// Requests a place to upload to.
    fn prepare(&self, file_name: &str, content_type: &str, bytes: u64) -> Attempt<Prepared> {
        let step = "preparing an upload";
        let address = self.endpoint("/internal/airdrop.artifacts.upload-url")?;
        let (request_id, bytes) = (self.request_id()?, bytes.to_string());
        let query = [
            ("request_id", request_id.as_str()),
            ("file_type", content_type),
            ("file_name", file_name),
            ("file_size", &bytes),
        ];
        let answer = self.call(
            Call::Prepare,
            step,
            self.get(&address, &query).header("Authorization", self.bearer()),
        )?;
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        let artifact = text("artifact_id").and_then(|id| ArtifactId::new(id).ok());
        Ok(Prepared {
            artifact: artifact.ok_or_else(|| malformed(step, "an artifact_id"))?,
            address: text("upload_url").and_then(url).ok_or_else(|| malformed(step, "an upload_url"))?,
            fields: form_fields(answer.get("form_data")).ok_or_else(|| malformed(step, "a form_data"))?,
        })
    }

    fn snap_in(&self) -> Attempt<SnapIn> {
        if let Some(snap_in) = self.snap_in.get() {
            return Ok(snap_in.clone());
        }
        let step = "asking for the snap-in";
        let address = self.endpoint("/internal/snap-ins.get")?;
        let id = needed("context.snap_in_id", self.event.snap_in_id())?;
        let request = self.get(&address, &[("id", &id)]).header("Authorization", self.token.expose());
        let answer = self.call(Call::SnapIn, step, request)?;
        let name = |pointer: &str, what: &str| {
            let name = answer.pointer(pointer).and_then(Value::as_str);
            name.map(str::to_owned).ok_or_else(|| malformed(step, what))
        };
        let import = name("/snap_in/imports/0/name", "the name of an import")?;
        let version = name("/snap_in/snap_in_version/slug", "the slug of its version")?;
        Ok(self.snap_in.get_or_init(|| SnapIn { import, version }).clone())
    }
}

/// The part of an initial domain mapping that is sent with the install itself.
fn additional_mappings(mapping: &Value) -> Attempt<Map<String, Value>> {
    match mapping.get("additional_mappings") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(additional)) => Ok(additional.clone()),
        Some(_) => Err(not_sent("the additional_mappings of the initial domain mapping must be an object")),
    }
}

impl Platform for Client {
    fn worker_state(&self) -> Attempt<Option<WorkerState>> {
        let step = "fetching the worker state";
        let (address, query) = self.worker_data(".get")?;
        let query = query.each_ref().map(|(name, value)| (*name, value.as_str()));
        let request = self.get(&address, &query).header("Authorization", self.token.expose());
        let answer = request.call();
        let response = match self.succeeded(
            Call::WorkerState,
            step,
            answer.map_err(|e| self.lost(step, &e, Fate::NotApplied)),
        ) {
            Err(PlatformError::Refused { status: 404, .. }) => return Ok(None),
            response => response?,
        };
        let mut answer = self.json(step, response, STATE_ANSWER_BYTES_MAX)?;
        // Treating it as empty would start the sync unit over: it could be an error page that came with 200.
        if answer.get("state").or(answer.get("objects")).is_none() {
            return Err(malformed(step, "an object with a state"));
        }
        let mut text = |name: &str| match answer.get_mut(name).map(Value::take) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(bare) => Some(bare.to_string()),
        };
        Ok(Some(WorkerState { state: text("state"), objects: text("objects") }))
    }

    fn save_worker_state(&self, state: &str) -> Attempt<()> {
        let (address, query) = self.worker_data(".update")?;
        let query = query.each_ref().map(|(name, value)| (*name, value.as_str()));
        let request = self.post(&address, &query).header("Authorization", self.token.expose());
        self.tell(
            Call::SaveWorkerState,
            "saving the worker state",
            request,
            &json!({ "state": state }).to_string(),
        )
    }

    fn check_mapping(&self, mapping: &Value) -> Attempt<()> {
        additional_mappings(mapping)?;
        self.snap_in().map(drop)
    }

    fn create_blueprint(&self, mapping: &Value) -> Attempt<Option<String>> {
        let step = "creating the recipe blueprint";
        let blueprint = mapping.get("starting_recipe_blueprint").and_then(Value::as_object);
        let Some(blueprint) = blueprint.filter(|blueprint| !blueprint.is_empty()) else {
            return Ok(None);
        };
        let address = self.endpoint("/internal/airdrop.recipe.blueprints.create")?;
        let request = self.post(&address, &[]).header("Authorization", self.token.expose());
        let body = Value::Object(blueprint.clone()).to_string();
        let answer =
            self.json(step, self.post_json(Call::CreateBlueprint, step, request, &body)?, ANSWER_BYTES_MAX)?;
        let id = answer.pointer("/recipe_blueprint/id").and_then(Value::as_str);
        Ok(Some(id.ok_or_else(|| malformed(step, "a recipe_blueprint with an id"))?.to_owned()))
    }

    fn install_mapping(&self, mapping: &Value, blueprint: Option<&str>) -> Attempt<()> {
        let additional = additional_mappings(mapping)?;
        let snap_in = self.snap_in()?;
        let mut body = Map::new();
        body.insert("external_system_type".to_owned(), "ADaaS".into());
        body.insert("import_slug".to_owned(), snap_in.import.into());
        body.insert("snap_in_slug".to_owned(), snap_in.version.into());
        if let Some(blueprint) = blueprint {
            body.insert("starting_recipe_blueprint".to_owned(), blueprint.into());
        }
        body.extend(additional);
        let address = self.endpoint("/internal/airdrop.recipe.initial-domain-mappings.install")?;
        let request = self.post(&address, &[]).header("Authorization", self.token.expose());
        self.tell(
            Call::InstallMapping,
            "installing the initial domain mapping",
            request,
            &Value::Object(body).to_string(),
        )
    }

    fn upload(&self, upload: Upload<'_>) -> Attempt<ArtifactId> {
        let file_name = short_file_name(upload.file_name);
        let content_type = match HeaderValue::from_str(upload.content_type) {
            Ok(_) if !upload.content_type.is_empty() => upload.content_type,
            _ => "application/octet-stream",
        };
        // Without a file name it could be taken for a text field, hence the type.
        let batch_header = "name=\"file\"\r\nContent-Type: application/octet-stream".to_owned();
        let stream_header =
            format!("name=\"file\"; filename=\"{}\"\r\nContent-Type: {content_type}", in_quotes(&file_name));
        let spooled;
        let (mut file, bytes, header, streamed): (Box<dyn Read>, u64, String, bool) = match upload.body {
            Body::Batch(batch) => (Box::new(batch), batch.len() as u64, batch_header, false),
            Body::Stream { reader, length_bytes: Some(bytes) } => {
                (Box::new(Exactly { reader, told: bytes, left: bytes }), bytes, stream_header, true)
            }
            Body::Stream { reader, length_bytes: None } => {
                spooled = self.spool(reader)?;
                (Box::new(&spooled.0), spooled.1, stream_header, true)
            }
        };
        if bytes > ARTIFACT_BYTES_MAX {
            let reason = format!("the file is {bytes} bytes, over the limit of {ARTIFACT_BYTES_MAX}");
            return Err(PlatformError::Refused { status: 413, reason });
        }
        let prepared = self.prepare(&file_name, content_type, bytes)?;

        let boundary = boundary();
        let mut head = String::new();
        for (name, value) in &prepared.fields {
            let disposition = "\r\nContent-Disposition: form-data; name=\"";
            for part in ["--", &boundary, disposition, &in_quotes(name), "\"\r\n\r\n", value, "\r\n"] {
                head.push_str(part);
            }
        }
        for part in ["--", &boundary, "\r\nContent-Disposition: form-data; ", &header, "\r\n\r\n"] {
            head.push_str(part);
        }
        let tail = format!("\r\n--{boundary}--\r\n");
        let bytes = bytes + head.len() as u64 + tail.len() as u64;
        let mut form = head.as_bytes().chain(&mut file).chain(tail.as_bytes());
        let step = "uploading";
        let request = direct_if_loopback(&prepared.address, self.transfers.post(&prepared.address));
        let request = request.header("Content-Type", format!("multipart/form-data; boundary={boundary}"));
        let call = if streamed { Call::UploadAttachment } else { Call::UploadBatch };
        drain(self.succeeded(call, step, self.send_body(step, request, &mut form, bytes))?);
        Ok(prepared.artifact)
    }

    fn confirm(&self, artifact: &ArtifactId) -> Attempt<()> {
        let address = self.endpoint("/internal/airdrop.artifacts.confirm-upload")?;
        let request = self.post(&address, &[]).header("Authorization", self.bearer());
        let body = json!({ "request_id": self.request_id()?, "artifact_id": artifact.as_str() });
        self.tell(Call::Confirm, "confirming an upload", request, &body.to_string())
    }

    /// `Refused` too if it is over [`BATCH_BYTES_MAX`] bytes.
    fn download(&self, artifact: &ArtifactId) -> Attempt<Vec<u8>> {
        let step = "asking where to download an artifact";
        let address = self.endpoint("/internal/airdrop.artifacts.download-url")?;
        let request_id = self.request_id()?;
        let query = [("request_id", request_id.as_str()), ("artifact_id", artifact.as_str())];
        let answer = self.call(
            Call::DownloadUrl,
            step,
            self.get(&address, &query).header("Authorization", self.bearer()),
        )?;
        let address = answer.get("download_url").and_then(Value::as_str).and_then(url);
        let address = address.ok_or_else(|| malformed(step, "a download_url"))?;

        let step = "downloading an artifact";
        let answer = direct_if_loopback(&address, self.transfers.get(&address)).call();
        let mut response = self.succeeded(
            Call::Download,
            step,
            answer.map_err(|error| self.lost(step, &error, Fate::NotApplied)),
        )?;
        let mut bytes = Vec::new();
        let mut body = response.body_mut().as_reader().take(BATCH_BYTES_MAX + 1);
        body.read_to_end(&mut bytes).map_err(|error| self.lost(step, &error.into(), Fate::NotApplied))?;
        if bytes.len() as u64 > BATCH_BYTES_MAX {
            let reason = format!("{step}: it is over {BATCH_BYTES_MAX} bytes");
            return Err(PlatformError::Refused { status: NOT_SENT, reason });
        }
        Ok(bytes)
    }

    fn send(&self, message: &SealedMessage) -> Attempt<()> {
        let mut request = self.post(&self.callback_url, &[]).header("Authorization", self.token.expose());
        for (name, value) in &self.sender {
            request = request.header(*name, value);
        }
        request = request.header("Idempotency-Key", in_header(&message.key));
        self.tell(Call::Send, "sending the message", request, &message.body)
    }
}

impl Client {
    /// Copies a stream of unknown length to a temporary file, so that its length is known; the file is at its start
    /// again.
    fn spool(&self, reader: &mut dyn Read) -> Attempt<(std::fs::File, u64)> {
        let failed = |what: &str, error: &io::Error| PlatformError::Retry {
            fate: Fate::NotApplied,
            after: None,
            reason: format!("{what}: {}", self.clean(&error.to_string())),
        };
        let aside = "putting a file of unknown length aside";
        let mut file = tempfile::tempfile().map_err(|error| failed(aside, &error))?;
        let mut left = ARTIFACT_BYTES_MAX + 1;
        let mut buffer = vec![0; 64 * 1024];
        // Not `io::copy`: it must be known which side failed.
        while left > 0 {
            let read = match reader.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(|error| failed("reading what is to be uploaded", &error))?,
            };
            let read = buffer.get(..read).unwrap_or_default();
            if read.is_empty() {
                break;
            }
            file.write_all(read).map_err(|error| failed(aside, &error))?;
            left = left.saturating_sub(read.len() as u64);
        }
        let bytes = file.stream_position().map_err(|error| failed(aside, &error))?;
        file.rewind().map_err(|error| failed(aside, &error))?;
        Ok((file, bytes))
    }
}

/// A place to upload to. Its address and fields are credentials: no `Debug`.
struct Prepared {
    artifact: ArtifactId,
    address: Uri,
    fields: Vec<(String, String)>,
}

fn calls_agent(timeout: Duration) -> Agent {
    agent().max_redirects(0).timeout_global(Some(timeout)).build().new_agent()
}

fn transfers_agent(stall: Duration, whole: Duration) -> Agent {
    agent()
        .max_redirects(0)
        .timeout_global(Some(whole))
        .timeout_connect(Some(stall))
        .timeout_recv_response(Some(stall))
        .timeout_per_read(Some(stall))
        .timeout_per_write(Some(stall))
        .build()
        .new_agent()
}

impl SourceClient {
    /// A client of the API at `base_url`, such as `https://tracker.example/api`. Paths are appended to it.
    ///
    /// Connecting, waiting for the answer, and each wait for more of a body are limited to 30 seconds each.
    /// Connections are kept open. A proxy is used as [`Client`] describes. A redirect of a GET is followed unless the
    /// request has headers other than `Authorization`; `Authorization` is not sent on to another host.
    ///
    /// # Errors
    /// `Invalid` if it is not an http or https URL, or has a query, or if a variable names an invalid proxy.
    pub fn over_http(base_url: &str) -> Result<Self> {
        check_proxies()?;
        let address = url(base_url).filter(|url| url.query().is_none()).ok_or_else(|| Error::Invalid {
            what: "the URL of the source".to_owned(),
            reason: "it must be an http or https URL without a query, such as https://tracker.example/api"
                .to_owned(),
        })?;
        let limit = Some(REQUEST_TIMEOUT);
        let agent = agent()
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(limit)
            .timeout_send_request(limit)
            .timeout_recv_response(limit)
            .timeout_per_read(limit)
            .build()
            .new_agent();
        let base_url = base_url.trim_end_matches('/').to_owned();
        Ok(Self::new(move |request: &SourceRequest<'_>| {
            let SourceRequest { path, query, headers, json, .. } = request;
            let mark = if query.is_empty() { "" } else { "?" };
            let url = format!("{base_url}{path}{mark}{query}");
            let response = match json {
                None => {
                    let mut get = direct_if_loopback(&address, agent.get(url));
                    for (name, value) in *headers {
                        get = get.header(*name, *value);
                    }
                    if headers.iter().any(|(name, _)| !name.eq_ignore_ascii_case("authorization")) {
                        get = get.config().max_redirects(0).build();
                    }
                    get.call()
                }
                Some(json) => {
                    let post =
                        direct_if_loopback(&address, agent.post(url)).config().max_redirects(0).build();
                    let post = post.header("Content-Type", "application/json");
                    headers.iter().fold(post, |post, (name, value)| post.header(*name, *value)).send(*json)
                }
            }?;
            let retry_after = response.headers().get("Retry-After").and_then(|text| text.to_str().ok());
            Ok(SourceAnswer {
                status: response.status().as_u16(),
                retry_after: retry_after.map(str::to_owned),
                body: Box::new(response.into_body().into_reader()),
            })
        }))
    }
}

/// Refuses proxies that ureq would ignore and bypass: a worker behind a proxy must not connect directly.
///
/// # Errors
/// `Invalid`, naming the variable. Its value is not shown, because it may contain a password.
fn check_proxies() -> Result<()> {
    for name in PROXY_VARIABLES {
        let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else { continue };
        if value.to_str().is_none_or(|value| ureq::Proxy::new(value).is_err()) {
            return Err(Error::Invalid {
                what: format!("the environment variable {name}"),
                reason: "it must be the URL of a proxy, such as http://proxy.example:3128 or socks5h://proxy.example:1080"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Keeps requests to this machine away from a proxy, which would look for the address on its own machine.
fn direct_if_loopback<B>(address: &Uri, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
    if is_loopback(address) { request.config().proxy(None).build() } else { request }
}

fn is_loopback(address: &Uri) -> bool {
    let host = address.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    if let Ok(ip) = host.parse::<IpAddr>() {
        return ip.to_canonical().is_loopback();
    }
    let host = host.to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn agent() -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects_will_error(false)
        .max_idle_age(IDLE_MAX)
        .max_idle_connections(2 * IDLE_CONNECTIONS)
        .max_idle_connections_per_host(IDLE_CONNECTIONS)
        .user_agent(concat!("highwater/", env!("CARGO_PKG_VERSION")))
}

/// Reads the rest of an unused answer, so that the connection can be reused. The status is all that matters, so an
/// error here is ignored.
fn drain(mut response: Response<ureq::Body>) {
    let _ = io::copy(&mut response.body_mut().as_reader().take(ANSWER_BYTES_MAX), &mut io::sink());
}

fn url(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let http = matches!(url.scheme_str(), Some("http" | "https"));
    (http && url.host().is_some_and(|host| !host.is_empty())).then_some(url)
}

fn header(field: &str, value: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(value).map_err(|_| wrong(field, "must be text that an HTTP header can carry"))
}

fn needed<T>(field: &str, value: Result<Option<T>>) -> Attempt<T> {
    match value {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(not_sent(wrong(field, "is missing").to_string())),
        Err(error) => Err(not_sent(error.to_string())),
    }
}

fn not_sent(reason: impl Into<String>) -> PlatformError {
    PlatformError::Refused { status: NOT_SENT, reason: reason.into() }
}

fn malformed(step: &str, expected: &str) -> PlatformError {
    let reason = format!("{step}: the answer is not what was expected, {expected}");
    PlatformError::Retry { fate: Fate::Unknown, after: None, reason }
}

/// A key in a form that a header can carry: everything but plain ASCII is percent-encoded, so different keys stay
/// different.
fn in_header(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            text.push(char::from(byte));
        } else {
            text.push('%');
            let digits = [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16));
            text.extend(digits.into_iter().flatten().map(|digit| digit.to_ascii_uppercase()));
        }
    }
    text
}

/// The useful part of an answer: the message of a JSON error; of the file store's XML only the code, because the rest
/// may contain parts of the credentials.
fn gist(said: &str) -> String {
    let said = said.trim();
    if said.starts_with('<') {
        let code = said.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        return code.map(|(code, _)| code.to_owned()).unwrap_or_default();
    }
    if let Ok(Value::Object(fields)) = serde_json::from_str(said) {
        let message = ["message", "error", "reason"].iter().find_map(|name| fields.get(*name)?.as_str());
        if let Some(message) = message {
            return message.to_owned();
        }
    }
    said.to_owned()
}

fn clean(said: &str) -> String {
    let mut text = String::new();
    let mut rest = said;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at);
        text.push_str(before.trim_end_matches(|c: char| c.is_ascii_alphanumeric()));
        text.push_str("(url)");
        let end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ')' | '}' | ']');
        rest = after.find(end).and_then(|end| after.get(end..)).unwrap_or_default();
    }
    text.push_str(rest);
    let one_line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut cut: String = one_line.take(SAID_CHARS_MAX + 1).collect();
    if cut.chars().count() > SAID_CHARS_MAX {
        cut.pop();
        cut.push_str("...");
    }
    cut.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_address_is_known_in_each_of_its_spellings() {
        for (address, expected) in [
            ("http://127.0.0.1:8080/a", true),
            ("http://127.255.3.4/", true),
            ("http://[::1]:1/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("https://localhost/", true),
            ("http://LocalHost:80/", true),
            ("http://files.localhost/", true),
            ("http://128.0.0.1/", false),
            ("http://[::2]/", false),
            ("http://localhost.example/", false),
            ("http://notlocalhost/", false),
        ] {
            assert_eq!(is_loopback(&url(address).unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn what_others_say_is_shown_without_urls_and_line_breaks() {
        let said = "bad key 17 at https://files.example/put?sig=abc \"http://x/y\"\nand HTTPS://z done";
        assert_eq!(clean(said), "bad key 17 at (url) \"(url)\" and (url) done");
        assert_eq!(clean("https://a"), "(url)");
        let long = clean(&"\u{e9}".repeat(1000));
        assert_eq!(long.chars().count(), SAID_CHARS_MAX + 3);
        assert_eq!(gist(r#" {"code":1,"message":"no such sync"} "#), "no such sync");
        assert_eq!(
            gist("<?xml?><Error><Code>AccessDenied</Code><Policy>abc</Policy></Error>"),
            "AccessDenied"
        );
        assert_eq!(gist("<html>abc</html>"), "");
        assert_eq!(gist("plain"), "plain");
    }

    #[test]
    fn a_key_in_a_header_stays_different_from_every_other() {
        assert_eq!(in_header("unit-1/run 2/3"), "unit-1/run%202/3");
        assert_eq!(in_header("\u{e9}%\n"), "%C3%A9%25%0A");
    }
}
