//! The audit says what was lost, of a worker that loses it.
//!
//! The worker here is this binary once more. It sends the requests that the platform's SDK for TypeScript sends (1.20.0,
//! recorded against a stand-in): no `file_size` of a batch, a part `file` without a file name, the bare token at some
//! addresses, no `Idempotency-Key`; and it treats what fails as the SDK does: a batch whose upload fails is dropped, the
//! state is saved before the message, and the artifacts are in memory only.
#![cfg(unix)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use highwater::Phase;
use highwater_airdrop::{
    Airdrop, AirdropOptions, Audit, Fault, SyncOptions, SyncSettings, Verdict, Worker, audit, calls,
};
use serde_json::{Value, json};

/// Set where this binary is the worker.
const NAIVE: &str = "HIGHWATER_TEST_NAIVE";
const BATCHES: u64 = 3;
const BATCH_ITEMS: u64 = 100;

/// A request, and its answer, or none.
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
        for line in lines {
            writeln!(gzip, "{line}").ok()?;
        }
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
        let state = match call("GET", &self.state_url("get"), &[("Authorization", &token)], b"") {
            Some((200, body)) => serde_json::from_str(body["state"].as_str().unwrap()).unwrap(),
            Some((404, _)) => json!({ "cursor": 0 }),
            other => panic!("{other:?}"),
        };
        let mut cursor = state["cursor"].as_u64().unwrap();
        if self.text("/payload/event_context/mode") == "INCREMENTAL" {
            cursor = BATCHES;
        }
        if event_type == "START_EXTRACTING_METADATA" {
            let fields = json!({ "title": { "type": "text", "name": "Title" } });
            let types = json!({ "issues": { "name": "Issue", "fields": fields } });
            let metadata = json!({ "schema_version": "v0.2.0", "record_types": types });
            let _ = self.upload("external_domain_metadata", &[metadata]);
        } else {
            while cursor < BATCHES {
                let from = cursor * BATCH_ITEMS;
                let date = "2026-01-02T00:00:00.000Z";
                let items: Vec<Value> = (from..from + BATCH_ITEMS)
                    .map(|n| {
                        let fields = json!({ "title": format!("issue {n}") });
                        json!({ "id": format!("issue-{n}"), "created_date": date, "modified_date": date, "data": fields })
                    })
                    .collect();
                let _ = self.upload("issues", &items);
                cursor += 1;
            }
        }
        let state = json!({ "state": json!({ "cursor": cursor }).to_string() });
        let _ = post(&self.state_url("update"), &token, &state);
        let answer = event_type.strip_prefix("START_EXTRACTING_").unwrap();
        let message = json!({
            "event_type": format!("{answer}_EXTRACTION_DONE"),
            "event_context": self.event["payload"]["event_context"],
            "event_data": { "artifacts": self.artifacts },
            "worker_metadata": { "adaas_library_version": "1.20.0" },
        });
        let url = self.text("/payload/event_context/callback_url");
        // No answer is tried again; a 4xx is not.
        if post(url, &token, &message).is_none() {
            let _ = post(url, &token, &message);
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

fn sync(dir: &Path, faults: &[&str]) -> Audit {
    let mut options = AirdropOptions::default();
    options.port = Some(0);
    options.faults = faults.iter().map(|fault| fault.parse::<Fault>().unwrap()).collect();
    let airdrop = Airdrop::start(dir, options).unwrap();
    let settings = SyncSettings::new("tickets").newer_names(true).phases([Phase::Metadata, Phase::Data]);
    let mut options = SyncOptions::new(settings);
    options.env = vec![(NAIVE.to_owned(), "1".to_owned())];
    let this = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let words = [&this, "--exact", "audit::naive_worker", "--nocapture", "{event}"];
    let worker = Worker::Command(words.map(str::to_owned).into());
    let outcome = airdrop.sync(&options, &worker, &mut |_| {});
    assert!(outcome.failure.is_none(), "{faults:?}: {:?}", outcome.failure);
    for (at, fault) in faults.iter().enumerate() {
        assert_eq!(outcome.faults["faults"][at]["came_true"], 1, "{fault}");
    }
    audit(airdrop.local(), outcome.report.as_ref().unwrap(), true).unwrap()
}

#[test]
fn a_sync_in_which_nothing_fails_is_clean_the_first_and_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let first = sync(dir.path(), &[]);
    assert_eq!(first.verdict, Verdict::Clean, "{first}");
    assert_eq!(first.records["issues"], BATCHES * BATCH_ITEMS);
    let next = sync(dir.path(), &[]);
    assert_eq!(next.verdict, Verdict::Clean, "{next}");
    assert!(!next.records.contains_key("issues"));
    assert!(calls(dir.path(), &first.run).unwrap().iter().all(|call| call.lints.is_empty()));
}

#[test]
fn what_is_lost_is_told_with_its_rule_and_its_number() {
    let all = BATCHES * BATCH_ITEMS;
    // The first upload, confirm and message are of the metadata.
    for (fault, verdict, rule, count) in [
        ("upload-403:3", Verdict::Lost, "upload-refused", BATCH_ITEMS),
        ("upload-503:4", Verdict::Lost, "upload-refused", BATCH_ITEMS),
        ("confirm-400:2", Verdict::Lost, "never-confirmed", BATCH_ITEMS),
        ("confirm-503-applied:2", Verdict::Lost, "confirmed-not-named", BATCH_ITEMS),
        ("prepare-429:3", Verdict::Suspicious, "prepare-failed", 1),
        ("message-413:2", Verdict::Lost, "confirmed-not-named", all),
        ("message-kill-before:2", Verdict::Lost, "confirmed-not-named", all),
        ("message-lost:2", Verdict::Suspicious, "artifact-twice", all),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let audit = sync(dir.path(), &[fault]);
        assert_eq!(audit.verdict, verdict, "{fault}: {audit}");
        let found = audit.findings.iter().find(|finding| finding.rule == rule);
        assert_eq!(found.map(|finding| finding.count), Some(count), "{fault}: {audit}");
    }
}

#[test]
fn what_is_made_good_is_no_finding() {
    // Killed before it was confirmed, all is extracted anew.
    let dir = tempfile::tempdir().unwrap();
    let audit = sync(dir.path(), &["confirm-kill-before:3"]);
    assert_eq!(audit.verdict, Verdict::Clean, "{audit}");
    assert_eq!(audit.records["issues"], BATCHES * BATCH_ITEMS);
    assert_eq!(audit.invocations.len(), 3);
}
