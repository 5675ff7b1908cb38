//! The promises of the local Airdrop as the driver of a sync: the phases in order, a new event for each invocation,
//! waits for delays; and after a kill at any point the same event again, or none.
//!
//! The worker here is a script. It remembers what it sealed, as a worker with a store would, and nothing else. The
//! oracle reads the events that it was given, and the files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use highwater::airdrop::{Body, Platform, SealedMessage, Upload};
use highwater::{BoxError, Clock, Phase, VirtualClock};
use highwater_airdrop::{Error, ItemTotals, Local, SyncReport, SyncSettings, SyncStep};
use serde_json::{Value, json};
use tempfile::TempDir;

const SEED: [(&str, &str); 4] = [
    ("EXTRACTION_EXTERNAL_SYNC_UNITS_START", "EXTRACTION_EXTERNAL_SYNC_UNITS_DONE"),
    ("EXTRACTION_METADATA_START", "EXTRACTION_METADATA_DONE"),
    ("EXTRACTION_DATA_START", "EXTRACTION_DATA_DONE"),
    ("EXTRACTION_ATTACHMENTS_START", "EXTRACTION_ATTACHMENTS_DONE"),
];

fn noon() -> DateTime<Utc> {
    "2026-01-02T12:00:00Z".parse().unwrap()
}

/// What the worker does with an invocation.
#[derive(Clone)]
enum Act {
    /// One artifact of so many records of that type, in a message of that event type.
    Say(&'static str, &'static str, u64),
    /// A DELAY.
    Delay(&'static str, Value),
    /// An ERROR.
    Fail(&'static str, &'static str),
    /// Nothing is sent.
    Silence,
    /// Two messages.
    Twice(&'static str),
    /// A message whose `event_context` was changed.
    Mangled(&'static str, fn(&mut Value)),
}

/// Where the next invocation dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Death {
    BeforeWork,
    BeforeSend,
    AfterSend,
}

/// A worker that acts by a script: the n-th new event gets the n-th act.
struct Worker {
    script: Vec<Act>,
    sealed: BTreeMap<String, SealedMessage>,
    events: Vec<Value>,
    death: Option<(usize, Death)>,
    invocations: usize,
}

impl Worker {
    fn new(script: impl Into<Vec<Act>>) -> Self {
        Self {
            script: script.into(),
            sealed: BTreeMap::new(),
            events: Vec::new(),
            death: None,
            invocations: 0,
        }
    }

    fn invoke(&mut self, local: &Local, text: &str) -> Result<(), BoxError> {
        let event: Value = serde_json::from_str(text)?;
        self.invocations += 1;
        self.events.push(event.clone());
        let dies = self.death.filter(|(at, _)| *at == self.invocations).map(|(_, death)| death);
        if dies == Some(Death::BeforeWork) {
            return Err("killed before it began".into());
        }
        let mut context = event["payload"]["event_context"].clone();
        let request = context["request_id"].as_str().unwrap().to_owned();
        if !self.sealed.contains_key(&request) {
            let act = self.script.get(self.sealed.len()).cloned().unwrap_or(Act::Silence);
            let (event_type, data) = match act {
                Act::Say(event_type, item_type, count) => {
                    let mut artifacts = Vec::new();
                    if count > 0 {
                        let body = Body::Batch(request.as_bytes());
                        let id = local.upload(Upload { file_name: "f", content_type: "t", body })?;
                        local.confirm(&id)?;
                        artifacts
                            .push(json!({"id": id.as_str(), "item_type": item_type, "item_count": count}));
                    }
                    (event_type, json!({"artifacts": artifacts}))
                }
                Act::Delay(event_type, delay) => (event_type, json!({"delay": delay})),
                Act::Fail(event_type, text) => (event_type, json!({"error": {"message": text}})),
                Act::Silence => return Ok(()),
                Act::Twice(event_type) => {
                    let body = json!({"event_type": event_type, "event_context": context, "first": true});
                    let (key, event_type) = ("first".to_owned(), event_type.to_owned());
                    local.send(&SealedMessage { key, event_type, body: body.to_string() })?;
                    (event_type_of(&body), json!({}))
                }
                Act::Mangled(event_type, mangle) => {
                    mangle(&mut context);
                    (event_type, json!({}))
                }
            };
            let body = json!({"event_type": event_type, "event_context": context, "event_data": data});
            let message = SealedMessage {
                key: format!("key of {request}"),
                event_type: event_type.to_owned(),
                body: body.to_string(),
            };
            self.sealed.insert(request.clone(), message);
        }
        if dies == Some(Death::BeforeSend) {
            return Err("killed before it sent".into());
        }
        local.send(&self.sealed[&request])?;
        if dies == Some(Death::AfterSend) {
            return Err("killed after it sent".into());
        }
        Ok(())
    }

    fn types(&self) -> Vec<&str> {
        self.events.iter().map(|event| event["payload"]["event_type"].as_str().unwrap()).collect()
    }
}

fn event_type_of(body: &Value) -> &'static str {
    SEED.iter().map(|(_, done)| *done).find(|done| body["event_type"] == **done).unwrap()
}

fn done(phase: usize) -> Act {
    Act::Say(SEED[phase].1, "", 0)
}

/// An import with everything in it: ten invocations.
fn long_script() -> Vec<Act> {
    vec![
        Act::Say("EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", "external_sync_units", 2),
        Act::Say("EXTRACTION_METADATA_DONE", "external_domain_metadata", 1),
        Act::Say("EXTRACTION_DATA_PROGRESS", "issues", 2_000),
        Act::Say("EXTRACTION_DATA_PROGRESS", "issues", 2_000),
        Act::Delay("EXTRACTION_DATA_DELAY", json!(90)),
        Act::Say("EXTRACTION_DATA_PROGRESS", "users", 7),
        Act::Say("EXTRACTION_DATA_DONE", "issues", 5),
        Act::Say("EXTRACTION_ATTACHMENTS_PROGRESS", "ssor_attachment", 3),
        Act::Delay("EXTRACTION_ATTACHMENTS_DELAY", json!(5)),
        Act::Say("EXTRACTION_ATTACHMENTS_DONE", "ssor_attachment", 1),
    ]
}

const LONG_EVENTS: [&str; 10] = [
    "EXTRACTION_EXTERNAL_SYNC_UNITS_START",
    "EXTRACTION_METADATA_START",
    "EXTRACTION_DATA_START",
    "EXTRACTION_DATA_CONTINUE",
    "EXTRACTION_DATA_CONTINUE",
    "EXTRACTION_DATA_CONTINUE",
    "EXTRACTION_DATA_CONTINUE",
    "EXTRACTION_ATTACHMENTS_START",
    "EXTRACTION_ATTACHMENTS_CONTINUE",
    "EXTRACTION_ATTACHMENTS_CONTINUE",
];

struct World {
    dir: TempDir,
    local: Local,
    clock: VirtualClock,
    settings: SyncSettings,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::open(dir.path()).unwrap();
        let settings = SyncSettings::new("acme/tickets").id_seed("id");
        Self { dir, local, clock: VirtualClock::at(noon()), settings }
    }

    fn sync(&self, worker: &mut Worker) -> Result<SyncReport, Error> {
        self.local.sync(&self.settings, &self.clock, |event| worker.invoke(&self.local, event), |_| {})
    }

    /// The driver and its handle die; the next one opens the directory again.
    fn reopen(&mut self) {
        self.local = Local::open(self.dir.path()).unwrap();
    }

    fn waited(&self) -> Duration {
        self.clock.elapsed()
    }
}

fn context<'a>(event: &'a Value, field: &str) -> &'a Value {
    &event["payload"]["event_context"][field]
}

fn messages(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("messages.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

// --- a sync

#[test]
fn an_import_goes_through_every_phase_and_the_next_sync_is_incremental() {
    let world = World::new();
    let mut worker = Worker::new(long_script());
    let report = world.sync(&mut worker).unwrap();
    assert_eq!(worker.types(), LONG_EVENTS);
    assert_eq!(
        world.waited(),
        Duration::from_secs(95),
        "PROGRESS is gone on with at once, DELAY is waited out"
    );

    assert_eq!(report.run.as_str(), "id-1");
    assert!(report.initial);
    let expected =
        [(Phase::ExternalSyncUnits, 1), (Phase::Metadata, 1), (Phase::Data, 5), (Phase::Attachments, 3)];
    assert_eq!(report.invocations, expected.into());
    assert_eq!(report.messages, 10);
    let totals = |artifacts, records| ItemTotals { artifacts, records };
    let expected = [
        ("external_sync_units", totals(1, 2)),
        ("external_domain_metadata", totals(1, 1)),
        ("issues", totals(3, 4_005)),
        ("users", totals(1, 7)),
        ("ssor_attachment", totals(2, 4)),
    ];
    assert_eq!(report.items, expected.map(|(name, totals)| (name.to_owned(), totals)).into());
    let answers: Vec<&str> = report.answers.values().map(String::as_str).collect();
    assert_eq!(answers, SEED.map(|(_, done)| done));

    // Every event has ids of its own, and all are of one run.
    let requests: BTreeSet<String> =
        worker.events.iter().map(|event| context(event, "request_id").to_string()).collect();
    assert_eq!(requests.len(), 10);
    for (number, event) in worker.events.iter().enumerate() {
        assert_eq!(context(event, "sequence_version"), &json!((number + 1).to_string()));
        assert_eq!(context(event, "mode"), "INITIAL");
        for field in ["run_id", "sync_run_id", "sync_run"] {
            assert_eq!(context(event, field), "id-1");
        }
    }

    let mut second = Worker::new([done(1), Act::Say(SEED[2].1, "issues", 3), done(3)]);
    let report = world.sync(&mut second).unwrap();
    assert_eq!(second.types(), [SEED[1].0, SEED[2].0, SEED[3].0]);
    assert_ne!(report.run.as_str(), "id-1");
    assert!(!report.initial);
    assert_eq!(report.messages, 3, "those of the run before are not among them");
    assert_eq!(report.items, [("issues".to_owned(), totals(1, 3))].into());
    for event in &second.events {
        assert_eq!(context(event, "mode"), "INCREMENTAL");
        assert!(!requests.contains(&context(event, "request_id").to_string()));
    }
    assert_eq!(context(&second.events[0], "sequence_version"), "11", "it goes on counting");
    assert_eq!(messages(world.dir.path()).len(), 13);
}

#[test]
fn an_event_is_complete_and_before_the_import_it_has_no_sync_unit() {
    let mut world = World::new();
    world.settings = world
        .settings
        .sync_unit_id("unit-7")
        .endpoint("http://127.0.0.1:8080")
        .context("extract_from", "2020-01-01T00:00:00Z")
        .context("sync_tier", "other")
        .context("run_id", "not mine");
    let mut worker = Worker::new([done(0), done(1), done(2), done(3)]);
    world.sync(&mut worker).unwrap();
    for (phase, event) in worker.events.iter().enumerate() {
        for pointer in [
            "/context/secrets/service_account_token",
            "/context/snap_in_id",
            "/context/snap_in_version_id",
            "/execution_metadata/request_id",
            "/execution_metadata/function_name",
            "/payload/connection_data/org_id",
            "/payload/connection_data/org_name",
            "/payload/connection_data/key",
            "/payload/connection_data/key_type",
        ] {
            assert!(event.pointer(pointer).is_some_and(Value::is_string), "{pointer} of {event}");
        }
        for field in [
            "external_system_id",
            "external_system_name",
            "external_system_type",
            "import_slug",
            "snap_in_slug",
            "snap_in_version_id",
            "dev_oid",
            "dev_uid",
            "initial_sync_scope",
        ] {
            assert!(context(event, field).is_string(), "{field} of {event}");
        }
        assert!(event["payload"]["event_data"].is_object() && event["input_data"].is_object());
        assert_eq!(event["execution_metadata"]["devrev_endpoint"], "http://127.0.0.1:8080");
        for field in ["callback_url", "worker_data_url"] {
            let url = context(event, field).as_str().unwrap();
            assert!(url.starts_with("http://127.0.0.1:8080/internal/"), "{url}");
        }
        for field in ["request_id_adaas", "uuid"] {
            assert_eq!(context(event, field), context(event, "request_id"));
        }
        assert_eq!(context(event, "reset_extract_from"), false);
        assert_eq!(context(event, "extract_from"), "2020-01-01T00:00:00Z");
        assert_eq!(context(event, "sync_tier"), "other");
        assert_eq!(context(event, "run_id"), "id-1", "the driver's own fields stay its own");
        let units = ["sync_unit", "sync_unit_id", "external_sync_unit_id", "external_sync_unit_name"];
        let units: Vec<&Value> = units.iter().map(|field| context(event, field)).collect();
        if phase == 0 {
            assert_eq!(units, [&Value::Null; 4]);
        } else {
            assert!(units[0].as_str().unwrap().ends_with(":sync_unit/unit-7"));
            assert_eq!(units[1..], [&json!("unit-7"), &json!("acme/tickets"), &json!("acme/tickets")]);
        }
    }
}

#[test]
fn the_newer_names_are_spoken_when_asked_for() {
    let mut world = World::new();
    world.settings = world.settings.newer_names(true);
    let mut worker = Worker::new([
        Act::Say("EXTERNAL_SYNC_UNIT_EXTRACTION_DONE", "", 0),
        Act::Say("METADATA_EXTRACTION_DONE", "", 0),
        Act::Delay("DATA_EXTRACTION_DELAYED", json!(1)),
        Act::Say("DATA_EXTRACTION_PROGRESS", "issues", 1),
        Act::Say("DATA_EXTRACTION_DONE", "", 0),
        Act::Say("ATTACHMENT_EXTRACTION_PROGRESS", "", 0),
        Act::Say("ATTACHMENT_EXTRACTION_DONE", "", 0),
    ]);
    let report = world.sync(&mut worker).unwrap();
    assert_eq!(
        worker.types(),
        [
            "START_EXTRACTING_EXTERNAL_SYNC_UNITS",
            "START_EXTRACTING_METADATA",
            "START_EXTRACTING_DATA",
            "CONTINUE_EXTRACTING_DATA",
            "CONTINUE_EXTRACTING_DATA",
            "START_EXTRACTING_ATTACHMENTS",
            "CONTINUE_EXTRACTING_ATTACHMENTS",
        ]
    );
    assert_eq!(report.answers[&Phase::Attachments], "ATTACHMENT_EXTRACTION_DONE");
    assert_eq!(world.waited(), Duration::from_secs(1));
}

#[test]
fn without_an_attachments_phase_the_sync_ends_with_the_data() {
    let mut world = World::new();
    world.settings = world.settings.attachments(false);
    let mut worker = Worker::new([done(0), done(1), done(2), done(1), done(2)]);
    world.sync(&mut worker).unwrap();
    assert!(!world.sync(&mut worker).unwrap().initial);
    assert_eq!(worker.types(), [SEED[0].0, SEED[1].0, SEED[2].0, SEED[1].0, SEED[2].0]);
}

#[test]
fn a_sync_has_the_phases_that_are_wanted_in_their_own_order() {
    let mut world = World::new();
    world.settings = world.settings.phases([Phase::Data, Phase::ExternalSyncUnits]);
    let mut worker = Worker::new([done(0), done(2), done(2)]);
    assert!(world.sync(&mut worker).unwrap().initial);
    assert!(!world.sync(&mut worker).unwrap().initial);
    assert_eq!(worker.types(), [SEED[0].0, SEED[2].0, SEED[2].0]);
    world.settings = world.settings.phases([Phase::ExternalSyncUnits]);
    let error = world.sync(&mut worker).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(worker.types().len(), 3);
}

#[test]
fn a_run_survives_as_many_errors_as_it_may_also_across_a_restart() {
    let mut world = World::new();
    world.settings = world.settings.phases([Phase::Metadata, Phase::Data]).error_retries(2);
    let fails = Act::Fail("EXTRACTION_DATA_ERROR", "gone");
    let progress = Act::Say("EXTRACTION_DATA_PROGRESS", "issues", 1);
    let mut worker = Worker::new([done(1), fails.clone(), progress, fails.clone(), fails, done(1), done(2)]);
    let mut events = 0;
    let error = loop {
        let event = match world.local.next_event(&world.settings, &world.clock) {
            Ok(Some(event)) => event,
            Ok(None) => {
                world.local.begin_sync(&world.settings, &world.clock).unwrap();
                continue;
            }
            Err(error) => break error,
        };
        worker.invoke(&world.local, &event.json).unwrap();
        events += 1;
        world.reopen();
    };
    assert!(matches!(error, Error::SyncFailed { .. }) && error.to_string().contains("id-1"), "{error}");
    let data = SEED[2].0;
    assert_eq!(worker.types(), [SEED[1].0, data, data, "EXTRACTION_DATA_CONTINUE", data]);
    assert_eq!(events, 5);
    let ids = |field: &str| {
        worker.events.iter().map(|event| context(event, field).to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!((ids("run_id").len(), ids("request_id").len()), (1, 5));
    assert_eq!(world.sync(&mut worker).unwrap().messages, 2);
}

#[test]
fn the_observer_is_told_each_step_and_may_use_the_directory() {
    let world = World::new();
    let worker = RefCell::new(Worker::new(long_script()));
    let mut steps = Vec::new();
    world
        .local
        .sync(
            &world.settings,
            &world.clock,
            |event| worker.borrow_mut().invoke(&world.local, event),
            |step| {
                // It would never come back if the directory's lock were held.
                let body = Body::Batch(b"of the observer");
                world.local.upload(Upload { file_name: "f", content_type: "t", body }).unwrap();
                steps.push(match step {
                    SyncStep::Waiting(event) => format!("wait {}", event.wait.as_secs()),
                    SyncStep::Sending(event) => format!("send {}", event.event_type),
                    SyncStep::Answered { phase, message } => format!("{phase} {}", message["event_type"]),
                    step => panic!("{step:?}"),
                });
            },
        )
        .unwrap();
    assert_eq!(steps.len(), 22);
    let from = steps.iter().position(|step| step.starts_with("wait")).unwrap();
    assert_eq!(
        steps[from - 1..from + 3],
        [
            "data \"EXTRACTION_DATA_DELAY\"",
            "wait 90",
            "send EXTRACTION_DATA_CONTINUE",
            "data \"EXTRACTION_DATA_PROGRESS\""
        ]
    );
}

// --- answers that end it

#[test]
fn an_error_ends_the_sync_with_its_text_and_the_next_one_begins_a_new_run() {
    let mut world = World::new();
    let long = "the source is gone ".repeat(500);
    let mut worker = Worker::new([
        done(0),
        done(1),
        Act::Say("EXTRACTION_DATA_PROGRESS", "issues", 1),
        Act::Fail("EXTRACTION_DATA_ERROR", long.clone().leak()),
        Act::Fail("EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR", "still gone"),
        done(0),
        Act::Say("EXTRACTION_METADATA_ERROR", "", 0),
    ]);
    let error = world.sync(&mut worker).unwrap_err();
    assert!(matches!(error, Error::SyncFailed { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("id-1") && text.contains("EXTRACTION_DATA_ERROR"), "{text}");
    assert!(text.contains(&long[..1_900]) && text.len() < 2_200, "{text}");
    // As often as it is asked; also after a restart.
    world.reopen();
    for _ in 0..2 {
        let error = world.local.next_event(&world.settings, &world.clock).unwrap_err();
        assert!(error.to_string().contains("the source is gone"), "{error}");
    }

    let error = world.sync(&mut worker).unwrap_err();
    assert!(error.to_string().ends_with("EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR: still gone"), "{error}");
    let event = worker.events.last().unwrap();
    assert_eq!(context(event, "mode"), "INITIAL", "no sync of it is finished yet");
    assert_ne!(context(event, "run_id"), "id-1");
    let error = world.sync(&mut worker).unwrap_err();
    assert!(error.to_string().contains("no event_data.error.message"), "{error}");
    let runs: BTreeSet<String> =
        worker.events.iter().map(|event| context(event, "run_id").to_string()).collect();
    assert_eq!(runs.len(), 3);
}

#[test]
fn an_error_that_was_accepted_before_the_driver_died_begins_a_new_run_too() {
    let mut world = World::new();
    let script =
        [Act::Fail("EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR", "no"), done(0), done(1), done(2), done(3)];
    let mut worker = Worker::new(script);
    worker.death = Some((1, Death::AfterSend));
    assert!(matches!(world.sync(&mut worker), Err(Error::Worker { .. })));
    world.reopen();
    let report = world.sync(&mut worker).unwrap();
    assert_ne!(report.run.as_str(), "id-1");
    assert_eq!(worker.types(), [SEED[0].0, SEED[0].0, SEED[1].0, SEED[2].0, SEED[3].0]);
}

#[test]
fn a_worker_that_does_not_answer_is_an_error_and_gets_the_same_event_again() {
    let mut world = World::new();
    let mut worker = Worker::new([done(0), Act::Silence]);
    for _ in 0..2 {
        let error = world.sync(&mut worker).unwrap_err();
        assert!(matches!(error, Error::NotAnswered { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("EXTRACTION_METADATA_START") && text.contains("id-3"), "{text}");
        assert!(text.contains("was not answered"), "{text}");
        world.reopen();
    }
    worker.script = vec![done(0), done(1), done(2), done(3)];
    world.sync(&mut worker).unwrap();
    assert_eq!(worker.types(), [SEED[0].0, SEED[1].0, SEED[1].0, SEED[1].0, SEED[2].0, SEED[3].0]);
    assert_eq!(worker.events[1], worker.events[2]);
    assert_eq!(worker.events[2], worker.events[3]);
}

#[test]
fn an_answer_that_cannot_be_is_an_error_that_says_why() {
    let drop_field: fn(&mut Value) = |context| {
        context.as_object_mut().unwrap().remove("dev_uid");
    };
    let change_field: fn(&mut Value) = |context| context["sequence_version"] = json!("17");
    for (act, reason) in [
        (Act::Twice("EXTRACTION_METADATA_DONE"), "2 messages"),
        (Act::Say("EXTRACTION_DATA_DONE", "", 0), "EXTRACTION_DATA_DONE is not an answer"),
        (Act::Say("EXTRACTION_METADATA_PROGRESS", "", 0), "EXTRACTION_METADATA_PROGRESS is not an answer"),
        (Act::Say("UNKNOWN_EVENT_TYPE", "", 0), "try --names newer"),
        (Act::Mangled("EXTRACTION_METADATA_DONE", drop_field), "dev_uid is null, not \"DEVU-1\""),
        (Act::Mangled("EXTRACTION_METADATA_DONE", change_field), "sequence_version is \"17\", not \"2\""),
    ] {
        let world = World::new();
        let mut worker = Worker::new([done(0), act, done(2), done(3)]);
        let error = world.sync(&mut worker).unwrap_err();
        assert!(matches!(error, Error::NotAnswered { .. }), "{error}");
        assert!(error.to_string().contains("EXTRACTION_METADATA_START"), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(worker.events.len(), 2);
    }
    for delay in [Value::Null, json!(1.5), json!(-1), json!("30")] {
        let world = World::new();
        let named = delay.to_string();
        let mut worker = Worker::new([done(0), done(1), Act::Delay("EXTRACTION_DATA_DELAY", delay)]);
        let error = world.sync(&mut worker).unwrap_err().to_string();
        assert!(error.contains("whole seconds") && error.ends_with(&named), "{error}");
    }
    // A field added to the echo is no harm, and neither is a delay of nothing.
    let add_field: fn(&mut Value) = |context| context["added"] = json!(true);
    let world = World::new();
    let mut worker = Worker::new([
        Act::Mangled("EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", add_field),
        done(1),
        Act::Delay("EXTRACTION_DATA_DELAY", json!(0)),
        done(2),
        done(3),
    ]);
    world.sync(&mut worker).unwrap();
    assert_eq!(world.waited(), Duration::ZERO);
}

#[test]
fn a_worker_without_an_end_is_stopped_and_may_go_on_under_a_higher_limit() {
    let mut world = World::new();
    let settings = world.settings.clone();
    world.settings = settings.clone().invocations_max(6);
    let mut script = vec![done(0), done(1)];
    script.extend(vec![Act::Say("EXTRACTION_DATA_PROGRESS", "issues", 1); 8]);
    script.extend([done(2), done(3)]);
    let mut worker = Worker::new(script);
    for _ in 0..2 {
        let error = world.sync(&mut worker).unwrap_err();
        assert!(matches!(error, Error::NoEnd { limit: 6, .. }), "{error}");
        assert!(error.to_string().contains("id-1 of acme/tickets"), "{error}");
        assert_eq!(worker.events.len(), 6);
    }
    world.settings = settings.invocations_max(12);
    assert_eq!(world.sync(&mut worker).unwrap().messages, 12);
    assert_eq!(worker.events.len(), 12);
}

#[test]
fn the_workers_own_error_is_the_source() {
    let world = World::new();
    let failed: Result<SyncReport, Error> =
        world.local.sync(&world.settings, &world.clock, |_| Err("exit code 7"), |_| {});
    let error = failed.unwrap_err();
    assert!(matches!(error, Error::Worker { .. }), "{error}");
    assert!(error.to_string().contains("EXTRACTION_EXTERNAL_SYNC_UNITS_START"), "{error}");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "exit code 7");
}

// --- killed and started again

/// What the platform was told, without where it was told it: one entry per message.
fn told(dir: &Path) -> Vec<Value> {
    messages(dir).iter().map(|message| json!([message["event_type"], message["event_data"]])).collect()
}

#[test]
fn killed_in_any_gap_of_any_invocation_the_sync_comes_to_the_same() {
    let undisturbed = World::new();
    let expected = undisturbed.sync(&mut Worker::new(long_script())).unwrap();

    let mut kills = 0;
    for at in 1..=LONG_EVENTS.len() {
        for death in [Death::BeforeWork, Death::BeforeSend, Death::AfterSend] {
            let what = format!("{death:?} of invocation {at}");
            let mut world = World::new();
            let mut worker = Worker::new(long_script());
            worker.death = Some((at, death));
            let error = world.sync(&mut worker).unwrap_err();
            assert!(matches!(error, Error::Worker { .. }), "{what}: {error}");
            kills += 1;
            assert_eq!(worker.events.len(), at, "{what}");
            // The half-made replacement of a driver that died is in the way of nobody.
            fs::write(world.dir.path().join("incoming/.tmpPlatform"), b"{\"format\":1,").unwrap();
            world.reopen();
            let resumed = world.sync(&mut worker);
            if at == LONG_EVENTS.len() && death == Death::AfterSend {
                // It was finished but for the telling.
                let report = resumed.unwrap();
                assert_eq!(report, expected, "{what}");
                assert_eq!(worker.types(), LONG_EVENTS);
                continue;
            }
            assert_eq!(resumed.unwrap(), expected, "{what}");
            let mut seen: Vec<String> =
                worker.events.iter().map(|event| context(event, "request_id").to_string()).collect();
            if death == Death::AfterSend {
                assert_eq!(worker.types(), LONG_EVENTS, "{what}: it was answered, so it is not sent again");
            } else {
                assert_eq!(worker.events[at - 1], worker.events[at], "{what}: the same event, word for word");
                seen.remove(at);
            }
            assert_eq!(seen.len(), LONG_EVENTS.len(), "{what}");
            assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), LONG_EVENTS.len(), "{what}");
            assert_eq!(told(world.dir.path()).len(), told(undisturbed.dir.path()).len(), "{what}");
            let types =
                |dir: &Path| -> Vec<Value> { told(dir).into_iter().map(|told| told[0].clone()).collect() };
            assert_eq!(types(world.dir.path()), types(undisturbed.dir.path()), "{what}");
        }
    }
    assert_eq!(kills, 30);
}

#[test]
fn killed_while_it_waits_it_waits_out_the_rest_and_never_longer_than_asked() {
    let script =
        || Worker::new([done(0), done(1), Act::Delay("EXTRACTION_DATA_DELAY", json!(100)), done(2), done(3)]);
    // How long the next driver waits, when the clock has moved to `now` since the DELAY.
    for (moved_secs, waits_secs) in
        [(0_i64, 100_u64), (30, 70), (99, 1), (100, 0), (5_000, 0), (-40, 100), (-90_000, 100)]
    {
        let mut world = World::new();
        let mut worker = script();
        let settings = &world.settings;
        world.local.begin_sync(settings, &world.clock).unwrap();
        for _ in 0..3 {
            let event = world.local.next_event(settings, &world.clock).unwrap().unwrap();
            worker.invoke(&world.local, &event.json).unwrap();
        }
        let event = world.local.next_event(settings, &world.clock).unwrap().unwrap();
        assert_eq!(event.wait, Duration::from_secs(100));
        // The driver dies here.
        world.clock.step_to(noon() + chrono::TimeDelta::seconds(moved_secs));
        world.reopen();
        world.sync(&mut worker).unwrap();
        assert_eq!(world.waited(), Duration::from_secs(waits_secs), "moved by {moved_secs}");
        assert_eq!(worker.types()[3], "EXTRACTION_DATA_CONTINUE");
    }
}

#[test]
fn who_invokes_the_worker_alone_gets_the_same_event_until_it_is_answered() {
    let mut world = World::new();
    assert_eq!(world.local.next_event(&world.settings, &world.clock).unwrap(), None, "nothing was begun");
    assert_eq!(world.local.sync_report(&world.settings, &world.clock).unwrap(), None);
    let run = world.local.begin_sync(&world.settings, &world.clock).unwrap();
    let mut worker = Worker::new(long_script());
    let mut count = 0;
    while let Some(event) = world.local.next_event(&world.settings, &world.clock).unwrap() {
        let parsed: Value = serde_json::from_str(&event.json).unwrap();
        assert_eq!(parsed["payload"]["event_type"], *event.event_type);
        assert_eq!(context(&parsed, "request_id"), &*event.request_id);
        // Asked again, begun again, opened again: the same.
        assert_eq!(world.local.next_event(&world.settings, &world.clock).unwrap().as_ref(), Some(&event));
        world.reopen();
        assert_eq!(world.local.begin_sync(&world.settings, &world.clock).unwrap(), run);
        let again = world.local.next_event(&world.settings, &world.clock).unwrap().unwrap();
        assert_eq!(again.json.as_bytes(), event.json.as_bytes());
        worker.invoke(&world.local, &event.json).unwrap();
        count += 1;
    }
    assert_eq!(count, LONG_EVENTS.len());
    assert_eq!(worker.types(), LONG_EVENTS);
    assert_eq!(world.local.next_event(&world.settings, &world.clock).unwrap(), None, "it is finished");
    let report = world.local.sync_report(&world.settings, &world.clock).unwrap().unwrap();
    assert_eq!((report.run, report.messages), (run.clone(), 10));
    assert_ne!(world.local.begin_sync(&world.settings, &world.clock).unwrap(), run, "a new one");
}

// --- ids, units, and what is on disk

#[test]
fn ids_are_uuids_and_never_given_twice_whatever_the_clock_does() {
    let mut world = World::new();
    world.settings = SyncSettings::new("acme/tickets").attachments(false);
    let mut ids = BTreeSet::new();
    let mut events = 0;
    for now in [noon(), noon(), noon() - chrono::TimeDelta::days(1), DateTime::UNIX_EPOCH, noon()] {
        world.clock.step_to(now);
        let mut worker =
            Worker::new(if events == 0 { vec![done(0), done(1), done(2)] } else { vec![done(1), done(2)] });
        let report = world.sync(&mut worker).unwrap();
        events += worker.events.len();
        ids.insert(report.run.as_str().to_owned());
        for event in &worker.events {
            ids.insert(context(event, "request_id").as_str().unwrap().to_owned());
        }
        world.reopen();
    }
    assert_eq!(ids.len(), events + 5);
    for id in &ids {
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        assert!(id.chars().all(|c| c == '-' || c.is_ascii_digit() || ('a'..='f').contains(&c)), "{id}");
        assert_eq!(&id[14..15], "8", "the version in {id}");
        assert!("89ab".contains(&id[19..20]), "the variant in {id}");
    }
    // 2026-01-02T12:00:00Z is 1767355200000000 microseconds, 0x6476672e35000.
    assert!(ids.contains("00647667-2e35-8000-8000-000000000001"), "{ids:?}");
}

#[test]
fn the_same_seed_and_clock_make_the_same_events() {
    let run = || {
        let world = World::new();
        let mut worker = Worker::new(long_script());
        world.sync(&mut worker).unwrap();
        worker.events
    };
    assert_eq!(run(), run());
}

#[test]
fn syncs_of_two_units_in_one_directory_do_not_touch() {
    let mut world = World::new();
    let first = world.settings.clone();
    let second = SyncSettings::new("acme/tickets").sync_unit_id("another import").id_seed("id");
    let mut one = Worker::new([done(0), done(1), done(2), done(3), done(1), done(2), done(3)]);
    one.death = Some((3, Death::BeforeSend));
    assert!(world.sync(&mut one).is_err());
    world.settings = second;
    let mut two = Worker::new([done(0), done(1), done(2), done(3)]);
    let report = world.sync(&mut two).unwrap();
    assert!(report.initial);
    assert_eq!(report.messages, 4);
    world.settings = first;
    assert_eq!(world.sync(&mut one).unwrap().run.as_str(), "id-1", "it was unfinished");
    assert!(!world.sync(&mut one).unwrap().initial);
}

#[test]
fn a_second_driver_of_the_directory_is_told_so() {
    let world = World::new();
    let mut worker = Worker::new([done(0), done(1), done(2), done(3)]);
    let mut refused = 0;
    let other = Local::open(world.dir.path()).unwrap();
    let result = world.local.sync(
        &world.settings,
        &world.clock,
        |event| {
            for local in [&world.local, &other] {
                let second = local.sync(&world.settings, &world.clock, |_| Err("never called"), |_| {});
                let error = second.unwrap_err();
                assert!(matches!(error, Error::InUse { .. }), "{error}");
                assert!(error.to_string().contains("sync.lock"), "{error}");
                refused += 1;
            }
            worker.invoke(&world.local, event)
        },
        |_| {},
    );
    result.unwrap();
    assert_eq!(refused, 8);
}

#[test]
fn settings_that_cannot_be_are_refused_and_nothing_is_begun() {
    let world = World::new();
    for settings in [
        SyncSettings::new(""),
        SyncSettings::new("acme").sync_unit_id("x".repeat(513)),
        SyncSettings::new("a\nb"),
        SyncSettings::new("acme").id_seed("a\tb"),
        SyncSettings::new("acme").invocations_max(0),
    ] {
        let error = world.local.begin_sync(&settings, &world.clock).unwrap_err();
        assert!(matches!(error, Error::Name(_) | Error::NoEnd { .. }), "{error}");
    }
    assert!(!world.dir.path().join("platform.json").exists());
}

#[test]
fn a_platform_file_that_makes_no_sense_or_is_newer_is_an_error_and_stays() {
    let world = World::new();
    let mut worker = Worker::new([done(0)]);
    assert!(world.sync(&mut worker).is_err());
    let path = world.dir.path().join("platform.json");
    let good = fs::read_to_string(&path).unwrap();
    assert!(good.contains("\"format\": 1"));
    for bad in [
        "",
        "{}",
        "not JSON",
        "{\"format\":1,\"ids\":-1,\"units\":{}}",
        &good[..good.len() / 2],
        &good.replace("metadata", "meta"),
    ] {
        fs::write(&path, bad).unwrap();
        let error = world.sync(&mut worker).unwrap_err();
        assert!(matches!(error, Error::NotALocal { .. }), "{error}");
        assert!(error.to_string().contains("platform.json"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), bad);
    }
    fs::write(&path, good.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let error = world.sync(&mut worker).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}
