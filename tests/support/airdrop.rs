//! A platform and a source that behave as a test tells them, with a store and a clock.

// Each test that takes this in uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use highwater::airdrop::{
    AttachmentBody, AttachmentError, Body, CheckPolicy, Context, Event, ExternalSyncUnit, Extractor, Fate,
    Listing, Outcome, Platform, PlatformError, SealedMessage, Serve, SourceError, Upload, WorkerState,
};
use highwater::record::Attachment;
use highwater::testing::SimDisk;
use highwater::{ArtifactId, Clock, Level, Page, Record, Store, VirtualClock};
use serde_json::{Value, json};

/// The content of the checkpoint in a worker state; null if there is none.
pub(crate) fn checkpoint(state: &Value) -> Value {
    let Some(body) = state["highwater"]["body"].as_str() else { return Value::Null };
    let member = STANDARD.decode(body).expect("a body is base64");
    serde_json::from_reader(GzDecoder::new(&*member)).expect("a body is the gzip member of JSON")
}

/// A call to the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Upload,
    Confirm,
    Send,
    LoadState,
    SaveState,
    CheckMapping,
    Blueprint,
    Mapping,
}

/// How a call is answered, if not as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It takes effect, and the answer is lost.
    Lost,
    /// 5xx, and it takes no effect, which nobody knows.
    Unavailable,
    /// 429, after so many seconds.
    Busy(u64),
    /// A final 4xx.
    Refused(u16),
}

/// The platform: it keeps what it is given, and answers by a script.
#[derive(Debug, Default)]
pub(crate) struct Airdrop {
    inner: Mutex<Inner>,
    /// What artifact ids begin with.
    pub(crate) id_prefix: String,
    /// Letters in each artifact id that no other has.
    pub(crate) id_letters: usize,
}

#[derive(Debug, Default)]
struct Inner {
    script: BTreeMap<(Call, u64), Answer>,
    always: BTreeMap<Call, Answer>,
    kills: Option<(Call, u64, SimDisk)>,
    calls: BTreeMap<Call, u64>,
    uploads: BTreeMap<String, (String, Vec<Value>)>,
    /// What was there before, as it is given back.
    kept: BTreeMap<String, Vec<u8>>,
    confirmed: BTreeSet<String>,
    attempts: Vec<SealedMessage>,
    accepted: Vec<SealedMessage>,
    state: WorkerState,
    mappings: Vec<(Value, Option<String>)>,
}

impl Airdrop {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the call that follows after `skip` others of its kind so.
    pub(crate) fn answer(&self, call: Call, skip: u64, answer: Answer) {
        let mut inner = self.lock();
        let next = inner.calls.get(&call).copied().unwrap_or(0);
        inner.script.insert((call, next + skip), answer);
    }

    /// Answers every call of a kind so, or, from now on, as asked.
    pub(crate) fn always(&self, call: Call, answer: Option<Answer>) {
        let mut inner = self.lock();
        match answer {
            Some(answer) => inner.always.insert(call, answer),
            None => inner.always.remove(&call),
        };
    }

    /// The process dies right after the call that follows after `skip` others of its kind has taken effect.
    pub(crate) fn kill_at(&self, call: Call, skip: u64, disk: &SimDisk) {
        let mut inner = self.lock();
        let next = inner.calls.get(&call).copied().unwrap_or(0);
        inner.kills = Some((call, next + skip, disk.clone()));
    }

    pub(crate) fn calls(&self, call: Call) -> u64 {
        self.lock().calls.get(&call).copied().unwrap_or(0)
    }

    /// Every attempt to send a message, accepted or not.
    pub(crate) fn attempts(&self) -> Vec<SealedMessage> {
        self.lock().attempts.clone()
    }

    /// Puts this worker state there, as somebody else left it.
    pub(crate) fn set_state(&self, state: &Value) {
        self.set_state_text(&state.to_string());
    }

    pub(crate) fn set_state_text(&self, state: &str) {
        self.lock().state.state = Some(state.to_owned());
    }

    /// The worker state that is kept, as text.
    pub(crate) fn state_text(&self) -> String {
        self.lock().state.state.clone().expect("a worker state is kept")
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.state_text()).expect("a worker state is JSON")
    }

    /// The keys of other programs in the worker state. Asserts that ours have only what is kept after a deletion.
    pub(crate) fn state_after_deletion(&self) -> Value {
        assert_eq!(self.checkpoint().get("run"), Some(&Value::Null), "{}", self.checkpoint());
        let mut state = self.state();
        state.as_object_mut().expect("an object").remove("highwater");
        state
    }

    /// The content of the checkpoint in the worker state; null if there is none.
    pub(crate) fn checkpoint(&self) -> Value {
        checkpoint(&self.state())
    }

    /// Sets the extraction scope, as text.
    pub(crate) fn set_objects(&self, objects: Option<&str>) {
        self.lock().state.objects = objects.map(str::to_owned);
    }

    /// The mappings that were installed, each with its blueprint.
    pub(crate) fn mappings(&self) -> Vec<(Value, Option<String>)> {
        self.lock().mappings.clone()
    }

    /// The accepted messages, each once.
    pub(crate) fn messages(&self) -> Vec<Message> {
        let of = |message: &SealedMessage| Message {
            event_type: message.event_type.clone(),
            body: serde_json::from_str(&message.body).expect("a message is JSON"),
        };
        self.lock().accepted.iter().map(of).collect()
    }

    pub(crate) fn last(&self) -> Message {
        self.messages().pop().expect("a message was accepted")
    }

    /// Has an artifact that somebody else uploaded.
    pub(crate) fn keep(&self, id: &str, lines: &[Value]) {
        let mut member = GzEncoder::new(Vec::new(), Compression::fast());
        for line in lines {
            writeln!(member, "{line}").unwrap();
        }
        self.lock().kept.insert(id.to_owned(), member.finish().unwrap());
    }

    /// Goes on from what another platform had: its uploads with their lines, what was confirmed, accepted messages.
    pub(crate) fn take_over(&self, platform: &Value) {
        for (id, upload) in platform["uploads"].as_object().unwrap() {
            let lines = upload["lines"].as_array().unwrap();
            self.keep(id, lines);
            let file = (upload["file_name"].as_str().unwrap().to_owned(), lines.clone());
            self.lock().uploads.insert(id.clone(), file);
        }
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let accepted = platform["accepted"].as_array().unwrap().iter().map(|message| SealedMessage {
            key: text(&message["key"]),
            event_type: text(&message["event_type"]),
            body: text(&message["body"]),
        });
        let mut inner = self.lock();
        inner.confirmed.extend(platform["confirmed"].as_array().unwrap().iter().map(text));
        inner.accepted.extend(accepted);
    }

    /// All that [`Airdrop::take_over`] goes on from, and beside it the key of each attempt to send.
    pub(crate) fn to_take_over(&self) -> Value {
        let inner = self.lock();
        let upload = |(id, (file_name, lines)): (&String, &(String, Vec<Value>))| {
            (id.clone(), json!({ "file_name": file_name, "lines": lines }))
        };
        let accepted = inner.accepted.iter().map(
            |message| json!({ "key": message.key, "event_type": message.event_type, "body": message.body }),
        );
        json!({
            "uploads": inner.uploads.iter().map(upload).collect::<serde_json::Map<_, _>>(),
            "confirmed": inner.confirmed,
            "accepted": accepted.collect::<Vec<_>>(),
            "sent": inner.attempts.iter().map(|message| &message.key).collect::<Vec<_>>(),
        })
    }

    /// The lines of an item type that a run announced.
    pub(crate) fn lines_of(&self, run: &str, item_type: &str) -> Vec<Value> {
        let messages =
            self.messages().into_iter().filter(|message| message.body["event_context"]["run_id"] == run);
        let artifacts = messages.flat_map(|message| message.artifacts());
        let of_type = artifacts.filter(|artifact| artifact["item_type"] == item_type);
        of_type.flat_map(|artifact| self.artifact(artifact["id"].as_str().unwrap()).1).collect()
    }

    pub(crate) fn uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    pub(crate) fn confirmed(&self) -> BTreeSet<String> {
        self.lock().confirmed.clone()
    }

    /// The file name and the lines of an artifact.
    pub(crate) fn artifact(&self, id: &str) -> (String, Vec<Value>) {
        self.lock().uploads.get(id).cloned().unwrap_or_else(|| panic!("{id} was never uploaded"))
    }

    /// What tells the announced records of a run apart, in the order of announcing. Checks on the way that no
    /// artifact is in two messages, that each was confirmed, and that the messages count its records right.
    pub(crate) fn announced(&self, run: &str) -> Vec<String> {
        let mut named = BTreeSet::new();
        let mut records = Vec::new();
        for message in self.messages() {
            for artifact in message.artifacts() {
                let id = artifact["id"].as_str().unwrap().to_owned();
                assert!(named.insert(id.clone()), "{id} is in two messages");
                let (file_name, lines) = self.artifact(&id);
                let item_type = artifact["item_type"].as_str().unwrap();
                assert_eq!(file_name, format!("{item_type}.jsonl.gz"));
                assert_eq!(artifact["item_count"], lines.len());
                assert!(
                    self.lock().confirmed.contains(&id) || item_type == "external_sync_units",
                    "{id} is announced and not confirmed"
                );
                if message.body["event_context"]["run_id"] == run && item_type != "external_domain_metadata" {
                    records.extend(lines.iter().map(is));
                }
            }
        }
        records
    }

    /// Every artifact that is named by an accepted message.
    pub(crate) fn named(&self) -> BTreeSet<String> {
        let ids = |message: Message| {
            message.artifacts().iter().map(|artifact| artifact["id"].as_str().unwrap().to_owned()).collect()
        };
        self.messages().into_iter().flat_map::<Vec<String>, _>(ids).collect()
    }
}

/// An accepted message.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) event_type: String,
    pub(crate) body: Value,
}

impl Message {
    pub(crate) fn artifacts(&self) -> Vec<Value> {
        self.body["event_data"]["artifacts"].as_array().cloned().unwrap_or_default()
    }

    pub(crate) fn error(&self) -> String {
        let error = &self.body["event_data"]["error"]["message"];
        error.as_str().unwrap_or_else(|| panic!("no error in {}", self.body)).to_owned()
    }
}

impl Inner {
    /// Makes a call: `Ok(true)` if it takes effect and is answered so; `Err` whether it took effect or not.
    fn call(&mut self, call: Call) -> (bool, Result<(), PlatformError>) {
        let number = self.calls.entry(call).or_default();
        let at = *number;
        *number += 1;
        if let Some((_, _, disk)) = self.kills.take_if(|(of, nth, _)| *of == call && *nth == at) {
            disk.kill();
        }
        let answer = self.script.remove(&(call, at)).or_else(|| self.always.get(&call).copied());
        let retry = |fate, after| PlatformError::Retry { fate, after, reason: "as told".to_owned() };
        match answer {
            None => (true, Ok(())),
            Some(Answer::Lost) => (true, Err(retry(Fate::Unknown, None))),
            Some(Answer::Unavailable) => (false, Err(retry(Fate::Unknown, None))),
            Some(Answer::Busy(seconds)) => {
                (false, Err(retry(Fate::NotApplied, Some(Duration::from_secs(seconds)))))
            }
            Some(Answer::Refused(status)) => {
                (false, Err(PlatformError::Refused { status, reason: "as told".to_owned() }))
            }
        }
    }
}

impl Platform for Airdrop {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let lines = match upload.body {
            Body::Batch(bytes) => {
                assert_eq!(upload.content_type, "application/x-gzip");
                crate::support::lines(bytes)
            }
            Body::Stream { reader, .. } => {
                let read = std::io::copy(reader, &mut std::io::sink()).map(|_| Vec::new());
                let failed =
                    |error: std::io::Error| PlatformError::Refused { status: 400, reason: error.to_string() };
                read.map_err(failed)?
            }
        };
        let mut inner = self.lock();
        let (applies, result) = inner.call(Call::Upload);
        let no = inner.uploads.len();
        let id = format!("{}artifact-{no}{}", self.id_prefix, letters(self.id_letters, no as u64));
        if applies {
            inner.uploads.insert(id.clone(), (upload.file_name.to_owned(), lines));
        }
        result.map(|()| ArtifactId::new(id).unwrap())
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        let (applies, result) = inner.call(Call::Confirm);
        assert!(inner.uploads.contains_key(artifact.as_str()), "{artifact} was never uploaded");
        if applies {
            inner.confirmed.insert(artifact.to_string());
        }
        result
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        inner.attempts.push(message.clone());
        let (applies, result) = inner.call(Call::Send);
        if applies {
            match inner.accepted.iter().find(|other| other.key == message.key) {
                Some(other) => assert_eq!(other, message, "the same key, and another message"),
                None => inner.accepted.push(message.clone()),
            }
        }
        result
    }

    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        let reason = format!("{artifact} was never uploaded");
        let uploaded = self.lock().uploads.get(artifact.as_str()).cloned();
        if let Some((_, lines)) = uploaded.filter(|_| !self.lock().kept.contains_key(artifact.as_str())) {
            self.keep(artifact.as_str(), &lines);
        }
        self.lock().kept.get(artifact.as_str()).cloned().ok_or(PlatformError::Refused { status: 404, reason })
    }

    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        let mut inner = self.lock();
        let (_, result) = inner.call(Call::LoadState);
        let kept = inner.state != WorkerState::default();
        result.map(|()| kept.then(|| inner.state.clone()))
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        let (applies, result) = inner.call(Call::SaveState);
        if applies {
            inner.state.state = Some(state.to_owned());
        }
        result
    }

    fn check_mapping(&self, _: &Value) -> Result<(), PlatformError> {
        self.lock().call(Call::CheckMapping).1
    }

    fn create_blueprint(&self, mapping: &Value) -> Result<Option<String>, PlatformError> {
        let mut inner = self.lock();
        let (_, result) = inner.call(Call::Blueprint);
        result.map(|()| mapping.get("starting_recipe_blueprint").map(|_| "blueprint".to_owned()))
    }

    fn install_mapping(&self, mapping: &Value, blueprint: Option<&str>) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        let (applies, result) = inner.call(Call::Mapping);
        if applies {
            inner.mappings.push((mapping.clone(), blueprint.map(str::to_owned)));
        }
        result
    }
}

/// Calls that a platform in front of another, in the field of that name, passes on as they are.
#[allow(unused_macros, reason = "not every test that takes this file in has one")]
macro_rules! pass_on {
    ($to:ident: $($call:ident),+) => { $(pass_on! { @ $to $call })+ };
    (@ $to:ident upload) => {
        fn upload(
            &self,
            upload: ::highwater::airdrop::Upload<'_>,
        ) -> Result<::highwater::ArtifactId, ::highwater::airdrop::PlatformError> {
            self.$to.upload(upload)
        }
    };
    (@ $to:ident confirm) => {
        fn confirm(&self, artifact: &::highwater::ArtifactId) -> Result<(), ::highwater::airdrop::PlatformError> {
            self.$to.confirm(artifact)
        }
    };
    (@ $to:ident send) => {
        fn send(
            &self,
            message: &::highwater::airdrop::SealedMessage,
        ) -> Result<(), ::highwater::airdrop::PlatformError> {
            self.$to.send(message)
        }
    };
    (@ $to:ident worker_state) => {
        fn worker_state(
            &self,
        ) -> Result<Option<::highwater::airdrop::WorkerState>, ::highwater::airdrop::PlatformError> {
            self.$to.worker_state()
        }
    };
    (@ $to:ident save_worker_state) => {
        fn save_worker_state(&self, state: &str) -> Result<(), ::highwater::airdrop::PlatformError> {
            self.$to.save_worker_state(state)
        }
    };
}
#[allow(unused_imports, reason = "the same")]
pub(crate) use pass_on;

pub(crate) type Fetched = Result<Page<u32>, SourceError>;

/// A closure that gives pages.
pub(crate) trait Pages: FnMut(&Context, &str, Option<u32>) -> Fetched + Send {}

impl<F: FnMut(&Context, &str, Option<u32>) -> Fetched + Send> Pages for F {}

/// A source whose pages come from a boxed closure, so that all sources have one type and the code that serves them is
/// compiled once.
pub(crate) struct Source<'a> {
    pub(crate) streams: Vec<&'static str>,
    page: Mutex<Box<dyn Pages + 'a>>,
    asked: Mutex<Vec<(String, Option<u32>)>>,
    pub(crate) metadata: Result<Value, Duration>,
    pub(crate) units: Vec<ExternalSyncUnit>,
    pub(crate) mapping: Option<Value>,
    mapping_asked: AtomicU32,
    pub(crate) policy: CheckPolicy,
    /// What becomes of an attachment that is opened; it is denied if this is not set.
    pub(crate) open: Option<Open>,
    /// What is fetched of rejected records; they cannot be asked for if this is not set.
    pub(crate) refetch: Option<Refetch<'a>>,
}

type Refetch<'a> = Box<dyn Fn(&str, &[String]) -> Fetched + Sync + 'a>;

type Open = Box<dyn Fn(&Attachment) -> Result<AttachmentBody, AttachmentError> + Sync>;

impl<'a> Source<'a> {
    pub(crate) fn new(page: impl Pages + 'a) -> Self {
        Self {
            streams: vec!["issues"],
            page: Mutex::new(Box::new(page)),
            asked: Mutex::default(),
            metadata: Ok(json!({ "schema_version": "v0.2.0", "record_types": {} })),
            units: Vec::new(),
            mapping: None,
            mapping_asked: AtomicU32::new(0),
            policy: CheckPolicy::Off,
            open: None,
            refetch: None,
        }
    }

    pub(crate) fn streams<const N: usize>(mut self, streams: [&'static str; N]) -> Self {
        self.streams = streams.to_vec();
        self
    }

    /// Every page that was asked for.
    pub(crate) fn asked(&self) -> Vec<(String, Option<u32>)> {
        self.asked.lock().unwrap().clone()
    }

    /// How often the mapping was asked for.
    pub(crate) fn mapping_asked(&self) -> u32 {
        self.mapping_asked.load(Ordering::Relaxed)
    }
}

impl Extractor for Source<'_> {
    type Cursor = u32;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(self.units.clone())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        self.metadata.clone().map_err(|after| SourceError::RateLimited { after })
    }

    fn initial_domain_mapping(&self, _: &Context) -> Result<Option<Value>, SourceError> {
        self.mapping_asked.fetch_add(1, Ordering::Relaxed);
        Ok(self.mapping.clone())
    }

    fn check_policy(&self) -> CheckPolicy {
        self.policy
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(self.streams.iter().map(|&stream| stream.to_owned()).collect())
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<u32>,
    ) -> Result<Page<u32>, SourceError> {
        self.asked.lock().unwrap().push((listing.stream().to_owned(), cursor));
        // A panic in the closure leaves nothing half done.
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        (*page)(context, listing.stream(), cursor)
    }

    fn can_refetch(&self, _: &str) -> bool {
        self.refetch.is_some()
    }

    fn refetch(&self, _: &Context, item_type: &str, ids: &[String]) -> Fetched {
        self.refetch.as_ref().ok_or("it is not to be asked")?(item_type, ids)
    }

    fn open_attachment(
        &self,
        _: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let denied = || AttachmentError::Denied { reason: "it is not to be opened".to_owned() };
        self.open.as_ref().ok_or_else(denied)?(attachment)
    }
}

/// Page `at` of a stream that has `pages`, with `items` records; what tells each apart is `<stream>-<at>-<item>`.
pub(crate) fn page_of(stream: &str, at: u32, pages: u32, items: u32) -> Page<u32> {
    let mut page = if at + 1 < pages { Page::more(at + 1) } else { Page::last() };
    for is in records_of(stream, at, items) {
        page.push(stream, Record::new(is.clone(), &json!({ "is": is })).unwrap());
    }
    page
}

/// What tells a record apart.
pub(crate) fn is(line: &Value) -> String {
    line["data"]["is"].as_str().unwrap_or_default().to_owned()
}

pub(crate) fn records_of(stream: &str, at: u32, items: u32) -> Vec<String> {
    (0..items).map(|item| format!("{stream}-{at}-{item}")).collect()
}

/// Letters that do not compress, other ones for each seed.
pub(crate) fn letters(bytes: usize, mut seed: u64) -> String {
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = usize::try_from(seed >> 58).unwrap();
        text.push(char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[at]));
    }
    text
}

/// All records of a stream.
pub(crate) fn all_of(stream: &str, pages: u32, items: u32) -> Vec<String> {
    (0..pages).flat_map(|at| records_of(stream, at, items)).collect()
}

/// A source of one stream of that many pages.
pub(crate) fn paged(pages: u32, items: u32) -> Source<'static> {
    Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
        Ok(page_of(stream, cursor.unwrap_or(0), pages, items))
    })
}

/// An event of the unit "unit", whose request id is its sequence version too.
pub(crate) fn event(event_type: &str, run: &str, request: &str) -> Event {
    event_of("unit", event_type, run, request)
}

pub(crate) fn event_of(unit: &str, event_type: &str, run: &str, request: &str) -> Event {
    event_with(
        event_type,
        &json!({
            "run_id": run,
            "request_id": request,
            "sequence_version": request,
            "sync_unit_id": unit,
            "external_sync_unit_id": "external",
            "external_system_id": "system",
            "unknown": { "kept": [1.0, "as it came"] },
        }),
    )
}

pub(crate) fn event_with(event_type: &str, context: &Value) -> Event {
    let event = json!({
        "context": { "secrets": { "service_account_token": "secret-token" } },
        "payload": {
            "event_type": event_type,
            "connection_data": { "key": "secret-key" },
            "event_context": context,
        },
    });
    Event::from_json(&event.to_string()).unwrap()
}

/// A store on a simulated disk, a clock that stands still, and the platform.
pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) clock: VirtualClock,
    pub(crate) store: Store,
    pub(crate) airdrop: Airdrop,
    pub(crate) serve: Serve,
    batch_items: u32,
}

impl World {
    pub(crate) fn new(batch_items: u32) -> Self {
        let clock = VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap());
        let disk = SimDisk::new();
        let store = open(&disk, &clock, batch_items);
        let airdrop = Airdrop::default();
        Self { disk, clock, store, airdrop, serve: Serve::new().inline(7), batch_items }
    }

    pub(crate) fn serve(&self, source: &mut Source<'_>, event: &Event) -> highwater::Result<Outcome> {
        self.serve.serve(&self.store, &self.airdrop, source, event)
    }

    /// A new process on a new machine, with an empty disk.
    pub(crate) fn lose_disk(&mut self) {
        self.start_on(SimDisk::new());
    }

    /// A new process, after the old one came to its end: by itself, or by [`SimDisk::kill`].
    pub(crate) fn restart(&mut self) {
        self.start_on(self.disk.image().disk());
    }

    /// A new process, on a disk that is there.
    pub(crate) fn start_on(&mut self, disk: SimDisk) {
        self.store = open(&disk, &self.clock, self.batch_items);
        self.disk = disk;
    }
}

pub(crate) fn open(disk: &SimDisk, clock: &VirtualClock, batch_items: u32) -> Store {
    open_with(disk, clock.clone(), batch_items)
}

/// As [`open`], with a clock of another kind.
pub(crate) fn open_with(disk: &SimDisk, clock: impl Clock + 'static, batch_items: u32) -> Store {
    let options = Store::options().batch_items(batch_items).level(Level::new(0).unwrap());
    options.cache_bytes(1024 * 1024).clock(clock).open_on(Box::new(disk.clone()), "state.redb").unwrap()
}
