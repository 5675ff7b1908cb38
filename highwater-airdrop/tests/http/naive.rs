//! A worker that sends the same requests as the platform's SDK for TypeScript (1.20.0, recorded against a stand-in):
//! no `file_size` for a batch, a part `file` without a file name, the bare token at some addresses, no
//! `Idempotency-Key`. It handles failures as the SDK does: a batch whose upload fails is dropped, the state is saved
//! before the message, the artifacts are in memory only, and a message that is refused is followed by ERROR.
//!
//! The worker is this test binary, started again.
#![cfg(unix)]

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::TcpStream;

use flate2::Compression;
use flate2::write::GzEncoder;
use highwater_airdrop::Worker;
use serde_json::{Value, json};

/// Set if this binary runs as the worker.
pub(crate) const NAIVE: &str = "HIGHWATER_TEST_NAIVE";
pub(crate) const BATCHES: u64 = 3;
pub(crate) const BATCH_ITEMS: u64 = 100;
/// Set if it saves no state.
pub(crate) const STATELESS: &str = "HIGHWATER_TEST_STATELESS";
/// The number of batches after which an invocation ends with PROGRESS, if it is set.
pub(crate) const STEP: &str = "HIGHWATER_TEST_STEP";
/// The address of the tracker from which issues are fetched. Any answer that is not a page is treated as an empty page.
pub(crate) const TRACKER: &str = "HIGHWATER_TEST_TRACKER";

/// Sends a request and returns its answer, if there is one.
fn call(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<(u16, Value)> {
    let (host, path) = url.strip_prefix("http://")?.split_once('/')?;
    let mut connection = TcpStream::connect(host).ok()?;
    let mut head =
        format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json, text/plain, */*\r\n");
    head.push_str(
        "User-Agent: axios/1.18.1\r\nAccept-Encoding: gzip, compress, deflate, br\r\nConnection: close\r\n",
    );
    for (name, value) in headers {
        head.extend([*name, ": ", *value, "\r\n"]);
    }
    if method == "POST" {
        head.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
    }
    head.push_str("\r\n");
    connection.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n")?.1;
    Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

fn post(url: &str, token: &str, body: &Value) -> Option<u16> {
    let headers = [("Content-Type", "application/json"), ("Authorization", token)];
    call("POST", url, &headers, body.to_string().as_bytes()).map(|(status, _)| status)
}

fn issue(name: impl std::fmt::Display) -> Value {
    let date = "2026-01-02T00:00:00.000Z";
    let fields = json!({ "title": format!("issue {name}") });
    json!({ "id": format!("issue-{name}"), "created_date": date, "modified_date": date, "data": fields })
}

struct Sdk {
    event: Value,
    artifacts: Vec<Value>,
}

impl Sdk {
    fn text(&self, pointer: &str) -> &str {
        self.event.pointer(pointer).and_then(Value::as_str).unwrap()
    }

    /// Three requests, one after the other; what fails is the end of the batch.
    fn upload(&mut self, item_type: &str, lines: &[Value]) -> Option<()> {
        let endpoint = self.text("/execution_metadata/devrev_endpoint").to_owned();
        let request = self.text("/payload/event_context/request_id").to_owned();
        let bearer = format!("Bearer {}", self.text("/context/secrets/service_account_token"));
        let query =
            format!("request_id={request}&file_type=application%2Fx-gzip&file_name={item_type}.jsonl.gz");
        let url = format!("{endpoint}/internal/airdrop.artifacts.upload-url?{query}");
        let (200, prepared) = call("GET", &url, &[("Authorization", &bearer)], b"")? else { return None };
        let boundary = "--------------------------1eb9be3e4d72cd449285279f";
        let mut form = Vec::new();
        for (name, value) in prepared["form_data"].as_object()? {
            let value = value.as_str()?;
            write!(
                form,
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            )
            .ok()?;
        }
        write!(form, "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"\r\n").ok()?;
        write!(form, "Content-Type: application/octet-stream\r\n\r\n").ok()?;
        let mut gzip = GzEncoder::new(&mut form, Compression::default());
        // The last line ends without a line break.
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        write!(gzip, "{}", lines.join("\n")).ok()?;
        gzip.finish().ok()?;
        write!(form, "\r\n--{boundary}--\r\n").ok()?;
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let url = prepared["upload_url"].as_str()?;
        let (204, _) = call("POST", url, &[("Content-Type", &content_type)], &form)? else { return None };
        let id = prepared["artifact_id"].clone();
        let confirm = json!({ "request_id": request, "artifact_id": id });
        let url = format!("{endpoint}/internal/airdrop.artifacts.confirm-upload");
        let 200 = post(&url, &bearer, &confirm)? else { return None };
        self.artifacts.push(json!({ "id": id, "item_type": item_type, "item_count": lines.len() }));
        Some(())
    }

    fn state_url(&self, act: &str) -> String {
        let unit = self.text("/payload/event_context/sync_unit_id");
        let request = self.text("/payload/event_context/request_id_adaas");
        let url = self.text("/payload/event_context/worker_data_url");
        format!("{url}.{act}?sync_unit={unit}&request_id={request}")
    }

    fn invoke(&mut self) {
        let token = self.text("/context/secrets/service_account_token").to_owned();
        let event_type = self.text("/payload/event_type").to_owned();
        let endpoint = self.text("/execution_metadata/devrev_endpoint").to_owned();
        let state = match call("GET", &self.state_url("get"), &[("Authorization", &token)], b"") {
            Some((200, body)) => serde_json::from_str(body["state"].as_str().unwrap()).unwrap(),
            Some((404, _)) => json!({ "cursor": 0, "endpoint": endpoint }),
            other => panic!("{other:?}"),
        };
        let mut cursor = state["cursor"].as_u64().unwrap();
        let is_first = self.text("/payload/event_context/mode") == "INITIAL";
        // What a stopped sync left names the address of then, as do the addresses of files that are still to be read.
        assert!(!is_first || state["endpoint"] == *endpoint, "{state}");
        if event_type == "START_EXTRACTING_METADATA" {
            let fields = json!({ "title": { "type": "text", "name": "Title" } });
            let types = json!({ "issues": { "name": "Issue", "fields": fields } });
            let metadata = json!({ "schema_version": "v0.2.0", "record_types": types });
            let _ = self.upload("external_domain_metadata", &[metadata]);
        } else if !is_first {
            let _ = self.upload("issues", &[issue("new")]);
        } else {
            let step: u64 = std::env::var(STEP).map_or(BATCHES, |step| step.parse().unwrap());
            let until = BATCHES.min(cursor + step);
            while cursor < until {
                let from = cursor * BATCH_ITEMS;
                let items: Vec<Value> = match std::env::var(TRACKER) {
                    Err(_) => (from..from + BATCH_ITEMS).map(issue).collect(),
                    Ok(url) => {
                        let url = format!("{url}/issues?first={from}&count={BATCH_ITEMS}");
                        let key = [("Authorization", "Bearer the-key-of-the-tracker")];
                        let page = call("GET", &url, &key, b"").map(|(_, page)| page).unwrap_or_default();
                        page["issues"].as_array().into_iter().flatten().map(issue).collect()
                    }
                };
                let _ = self.upload("issues", &items);
                cursor += 1;
            }
        }
        if std::env::var_os(STATELESS).is_none() {
            let state = json!({ "state": json!({ "cursor": cursor, "endpoint": endpoint }).to_string() });
            let _ = post(&self.state_url("update"), &token, &state);
        }
        let (_, answer) = event_type.split_once("_EXTRACTING_").unwrap();
        let verdict = if is_first && answer == "DATA" && cursor < BATCHES { "PROGRESS" } else { "DONE" };
        let message = |verdict: &str, data: Value| {
            json!({
                "event_type": format!("{answer}_EXTRACTION_{verdict}"),
                "event_context": self.event["payload"]["event_context"],
                "event_data": data,
                "worker_metadata": { "adaas_library_version": "1.20.0" },
            })
        };
        let done = message(verdict, json!({ "artifacts": self.artifacts }));
        let url = self.text("/payload/event_context/callback_url");
        // No answer is tried again; a 4xx is not.
        let status = post(url, &token, &done).or_else(|| post(url, &token, &done));
        if status.is_some_and(|status| status >= 400) {
            let error = json!({ "message": "Worker exited without emitting event." });
            let _ = post(url, &token, &message("ERROR", json!({ "error": error })));
        }
    }
}

/// Not a test of its own: one invocation of the worker.
#[test]
fn naive_worker() {
    if std::env::var_os(NAIVE).is_some() {
        let path = std::env::args().next_back().unwrap();
        let event = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        Sdk { event, artifacts: Vec::new() }.invoke();
    }
}

/// Not a test of its own: the worker as a function, at a port that is told by the last argument.
#[test]
fn naive_function() {
    if std::env::var_os(NAIVE).is_none() {
        return;
    }
    let port: u16 = std::env::args().next_back().unwrap().parse().unwrap();
    // The one before it may not be gone altogether.
    let listener = loop {
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => break listener,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    };
    for stream in listener.incoming() {
        let mut stream = std::io::BufReader::new(stream.unwrap());
        let (mut length, mut line) = (0, String::new());
        while stream.read_line(&mut line).unwrap_or(0) > 2 {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if length == 0 || stream.read_exact(&mut body).is_err() {
            continue;
        }
        Sdk { event: serde_json::from_slice(&body).unwrap(), artifacts: Vec::new() }.invoke();
        let _ =
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}

/// It as a command.
pub(crate) fn worker() -> Worker {
    let this = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let words = [&this, "--exact", "naive::naive_worker", "--nocapture", "{event}"];
    Worker::Command(words.map(str::to_owned).into())
}
