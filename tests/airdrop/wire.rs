//! The names on the wire: every event in both spellings, every answer to it, and nothing else.
//!
//! The tables here are written from the protocol, not from the code.

use chrono::{TimeZone, Utc};
use highwater::airdrop::{
    ARTIFACTS_FIELD_BYTES, Answer, AnswerKind, ArtifactEntry, ERROR_MESSAGE_BYTES_MAX, ErrorCode, Event,
    EventType, Mode, Spelling, Step, TimeSetting, WindowEnd, WorkerMetadata, compose,
};
use highwater::{Error, ErrorKind, Phase, limits};
use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const TOKEN: &str = "token-that-nobody-may-see";
const KEY: &str = "key-that-nobody-may-see";

/// Event in both spellings; then DONE, ERROR, PROGRESS and DELAY in both, `""` where there is none.
#[rustfmt::skip]
const CONVERSATION: [[[&str; 2]; 5]; 8] = [
    [["EXTRACTION_EXTERNAL_SYNC_UNITS_START", "START_EXTRACTING_EXTERNAL_SYNC_UNITS"],
     ["EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE"],
     ["EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR", "EXTERNAL_SYNC_UNIT_EXTRACTION_ERROR"], ["", ""], ["", ""]],
    [["EXTRACTION_METADATA_START", "START_EXTRACTING_METADATA"],
     ["EXTRACTION_METADATA_DONE", "METADATA_EXTRACTION_DONE"],
     ["EXTRACTION_METADATA_ERROR", "METADATA_EXTRACTION_ERROR"], ["", ""], ["", ""]],
    [["EXTRACTION_DATA_START", "START_EXTRACTING_DATA"],
     ["EXTRACTION_DATA_DONE", "DATA_EXTRACTION_DONE"], ["EXTRACTION_DATA_ERROR", "DATA_EXTRACTION_ERROR"],
     ["EXTRACTION_DATA_PROGRESS", "DATA_EXTRACTION_PROGRESS"], ["EXTRACTION_DATA_DELAY", "DATA_EXTRACTION_DELAYED"]],
    [["EXTRACTION_DATA_CONTINUE", "CONTINUE_EXTRACTING_DATA"],
     ["EXTRACTION_DATA_DONE", "DATA_EXTRACTION_DONE"], ["EXTRACTION_DATA_ERROR", "DATA_EXTRACTION_ERROR"],
     ["EXTRACTION_DATA_PROGRESS", "DATA_EXTRACTION_PROGRESS"], ["EXTRACTION_DATA_DELAY", "DATA_EXTRACTION_DELAYED"]],
    [["EXTRACTION_ATTACHMENTS_START", "START_EXTRACTING_ATTACHMENTS"],
     ["EXTRACTION_ATTACHMENTS_DONE", "ATTACHMENT_EXTRACTION_DONE"],
     ["EXTRACTION_ATTACHMENTS_ERROR", "ATTACHMENT_EXTRACTION_ERROR"],
     ["EXTRACTION_ATTACHMENTS_PROGRESS", "ATTACHMENT_EXTRACTION_PROGRESS"],
     ["EXTRACTION_ATTACHMENTS_DELAY", "ATTACHMENT_EXTRACTION_DELAYED"]],
    [["EXTRACTION_ATTACHMENTS_CONTINUE", "CONTINUE_EXTRACTING_ATTACHMENTS"],
     ["EXTRACTION_ATTACHMENTS_DONE", "ATTACHMENT_EXTRACTION_DONE"],
     ["EXTRACTION_ATTACHMENTS_ERROR", "ATTACHMENT_EXTRACTION_ERROR"],
     ["EXTRACTION_ATTACHMENTS_PROGRESS", "ATTACHMENT_EXTRACTION_PROGRESS"],
     ["EXTRACTION_ATTACHMENTS_DELAY", "ATTACHMENT_EXTRACTION_DELAYED"]],
    [["EXTRACTION_DATA_DELETE", "START_DELETING_EXTRACTOR_STATE"],
     ["EXTRACTION_DATA_DELETE_DONE", "EXTRACTOR_STATE_DELETION_DONE"],
     ["EXTRACTION_DATA_DELETE_ERROR", "EXTRACTOR_STATE_DELETION_ERROR"], ["", ""], ["", ""]],
    [["EXTRACTION_ATTACHMENTS_DELETE", "START_DELETING_EXTRACTOR_ATTACHMENTS_STATE"],
     ["EXTRACTION_ATTACHMENTS_DELETE_DONE", "EXTRACTOR_ATTACHMENTS_STATE_DELETION_DONE"],
     ["EXTRACTION_ATTACHMENTS_DELETE_ERROR", "EXTRACTOR_ATTACHMENTS_STATE_DELETION_ERROR"], ["", ""], ["", ""]],
];

fn kinds() -> [AnswerKind; 4] {
    [
        AnswerKind::Done,
        AnswerKind::Error { code: None, message: "the source is gone".to_owned() },
        AnswerKind::Progress { percent: Some(40) },
        AnswerKind::Delay { seconds: 30 },
    ]
}

/// A whole event, every field of the protocol filled, and some that the protocol does not know.
fn whole_event(event_type: &str) -> Value {
    json!({
        "context": {
            "secrets": { "service_account_token": TOKEN, "other": KEY },
            "snap_in_id": "don:integration:dvrv-us-1:devo/1:snap_in/2",
            "snap_in_version_id": "don:integration:dvrv-us-1:devo/1:snap_in_version/3",
            "novel": 1
        },
        "execution_metadata": {
            "devrev_endpoint": "https://platform.example", "request_id": "fn-1", "function_name": "extraction"
        },
        "payload": {
            "event_type": event_type,
            "connection_data": { "org_id": "org-1", "org_name": "Acme", "key": KEY, "key_type": "pat" },
            "event_context": {
                "callback_url": "https://platform.example/callback",
                "worker_data_url": "https://platform.example/state",
                "mode": "INCREMENTAL", "run_id": "run-1", "sync_run_id": "run-1", "sync_run": "run-1",
                "request_id": "req-1", "request_id_adaas": "req-1", "uuid": "req-1", "sequence_version": "17",
                "zeta": { "unknown": [1, 2.50, null] },
                "sync_unit": "don:sync_unit/9", "sync_unit_id": "unit-9", "external_sync_unit_id": "ext-9",
                "external_sync_unit_name": "Nine", "external_system_id": "sys-1",
                "external_system_name": "Sys", "external_system_type": "ADaaS", "import_slug": "import-1",
                "snap_in_slug": "snap-1", "snap_in_version_id": "version-in-context", "dev_oid": "o",
                "dev_uid": "u", "sync_tier": "t", "initial_sync_scope": "time-scoped",
                "extract_from": "2026-01-02T03:04:05.123456789+01:00", "reset_extract_from": true,
                "extraction_start_time": { "type": "workers_oldest_minus_window", "value": "1h" },
                "extraction_end_time": { "type": "current_time" },
                "alpha": "after zeta"
            },
            "event_data": { "stats_file": "s" },
            "novel": []
        },
        "input_data": { "global_values": { "region": "eu" } }
    })
}

fn event(value: &Value) -> Event {
    Event::from_json(&value.to_string()).unwrap()
}

fn with_context(event_type: &str, context: &Value) -> Event {
    event(&json!({ "payload": { "event_type": event_type, "event_context": context } }))
}

fn minimal(event_type: &str) -> Event {
    with_context(event_type, &json!({ "external_sync_unit_id": "u" }))
}

fn sent(event: &Event, spelling: Option<Spelling>, answer: &Answer) -> Value {
    serde_json::from_str(&compose(event, spelling, answer).unwrap().body).unwrap()
}

#[test]
fn every_answer_is_spelled_as_its_event_was_or_as_set() {
    let mut impossible = 0;
    for [events, answers @ ..] in CONVERSATION {
        for (as_came, name) in events.iter().enumerate() {
            let event = minimal(name);
            assert!(!matches!(event.event_type(), EventType::Unknown(_)), "{name}");
            for (kind, expected) in kinds().into_iter().zip(answers) {
                let word = format!("{kind:?} to {name}");
                let answer = Answer::new(kind);
                let settings = [(None, as_came), (Some(Spelling::Seed), 0), (Some(Spelling::Newer), 1)];
                for (spelling, index) in settings {
                    if expected[index].is_empty() {
                        let error = compose(&event, spelling, &answer).unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::Invalid, "{word}");
                        assert!(error.to_string().contains("it cannot be continued"), "{error}");
                        impossible += 1;
                        continue;
                    }
                    let composed = compose(&event, spelling, &answer).unwrap();
                    let body: Value = serde_json::from_str(&composed.body).unwrap();
                    assert_eq!(composed.event_type, expected[index], "{word}");
                    assert_eq!(body["event_type"], expected[index], "{word}");
                }
            }
        }
    }
    // Four types, two spellings, two kinds, three settings.
    assert_eq!(impossible, 48);
}

#[test]
fn both_spellings_of_an_event_are_the_same_event() {
    let mut seen = std::collections::BTreeSet::new();
    for [[seed, newer], ..] in CONVERSATION {
        let [one, other] = [seed, newer].map(|name| event(&whole_event(name)));
        assert_eq!(one.event_type(), other.event_type());
        assert_eq!((one.spelling(), other.spelling()), (Spelling::Seed, Spelling::Newer));
        assert_eq!(one.identity().unwrap(), other.identity().unwrap());
        assert!(seen.insert(one.identity().unwrap()), "two types share an identity");
    }
}

#[test]
fn types_have_their_phase_and_step() {
    let phases = [
        (Some(Phase::ExternalSyncUnits), Step::Start),
        (Some(Phase::Metadata), Step::Start),
        (Some(Phase::Data), Step::Start),
        (Some(Phase::Data), Step::Continue),
        (Some(Phase::Attachments), Step::Start),
        (Some(Phase::Attachments), Step::Continue),
        (None, Step::Start),
        (None, Step::Start),
    ];
    for ([[name, _], ..], expected) in CONVERSATION.into_iter().zip(phases) {
        let event_type = minimal(name).event_type().clone();
        assert_eq!((event_type.phase(), event_type.step()), expected, "{name}");
    }
}

#[test]
fn an_unknown_type_is_answered_as_such_and_only_with_an_error() {
    // Loading is not spoken yet.
    for name in ["START_LOADING_DATA", "EXTRACTION_DATA_DONE", "extraction_data_start", ""] {
        let event = minimal(name);
        assert!(matches!(event.event_type(), EventType::Unknown(found) if found == name));
        for kind in kinds() {
            let error = matches!(kind, AnswerKind::Error { .. });
            for spelling in [None, Some(Spelling::Seed), Some(Spelling::Newer)] {
                let composed = compose(&event, spelling, &Answer::new(kind.clone()));
                if error {
                    let body: Value = serde_json::from_str(&composed.unwrap().body).unwrap();
                    assert_eq!(body["event_type"], "UNKNOWN_EVENT_TYPE");
                    assert_eq!(body["event_data"], json!({ "error": { "message": "the source is gone" } }));
                } else {
                    assert_eq!(composed.unwrap_err().kind(), ErrorKind::Invalid);
                }
            }
        }
    }
}

#[test]
fn the_event_context_is_echoed_whole_and_in_order() {
    let context = "{ \"zeta\" : {\"n\": 1.50, \"big\": 123456789012345678901234567890},\n  \
         \"external_sync_unit_id\": \"u\", \"alpha\": [null, \"a \\\" b  c\", \"\\u00e9\"], \"beta\": {} }";
    let echo = "\"event_context\":{\"zeta\":{\"n\":1.50,\"big\":123456789012345678901234567890},\
         \"external_sync_unit_id\":\"u\",\"alpha\":[null,\"a \\\" b  c\",\"\\u00e9\"],\"beta\":{}}";
    let text = format!(
        "[ {{\"payload\":{{\"event_type\":\"EXTRACTION_DATA_START\",\"event_context\":{context}}}}} ]"
    );
    let composed = compose(&Event::from_json(&text).unwrap(), None, &Answer::new(AnswerKind::Done)).unwrap();
    assert!(composed.body.contains(echo), "{}", composed.body);
    assert!(!composed.body.contains('\n'), "a message is one line");

    let whole = whole_event("EXTRACTION_DATA_START");
    let body = sent(&event(&whole), None, &Answer::new(AnswerKind::Done));
    assert_eq!(body["event_context"], whole["payload"]["event_context"]);
}

fn entry() -> ArtifactEntry {
    ArtifactEntry {
        id: "artifact/1".to_owned(),
        item_type: "issues".to_owned(),
        item_count: 2_000,
        oldest_created: Some(Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap()),
        newest_created: None,
        oldest_modified: None,
        newest_modified: Some(Utc.timestamp_micros(1_700_000_000_000_001).unwrap()),
    }
}

#[test]
fn a_message_has_the_fields_that_apply_and_no_other() {
    let said = json!([{
        "id": "artifact/1", "item_type": "issues", "item_count": 2000,
        "oldest_created_date": "2026-01-02T03:04:05Z", "newest_modified_date": "2023-11-14T22:13:20.000001Z"
    }]);
    let event = minimal("EXTRACTION_DATA_START");
    let data = |kind: AnswerKind, artifacts: &[ArtifactEntry]| {
        let answer = Answer { artifacts: artifacts.to_vec(), ..Answer::new(kind) };
        sent(&event, None, &answer)["event_data"].clone()
    };
    let none: &[ArtifactEntry] = &[];
    let one = &[entry()];
    assert_eq!(data(AnswerKind::Done, one), json!({ "artifacts": said }));
    assert_eq!(data(AnswerKind::Done, none), json!({ "artifacts": [] }));
    let progress = |percent| AnswerKind::Progress { percent };
    assert_eq!(data(progress(Some(40)), one), json!({ "artifacts": said, "progress": 40 }));
    assert_eq!(data(progress(Some(200)), none), json!({ "artifacts": [], "progress": 100 }));
    assert_eq!(data(progress(None), none), json!({ "artifacts": [] }));
    assert_eq!(data(AnswerKind::Delay { seconds: 30 }, one), json!({ "artifacts": said, "delay": 30 }));
    let code = Some(ErrorCode::ExternalSystemNoAccess);
    let error = AnswerKind::Error { code, message: "401".to_owned() };
    let text = json!({ "message": "ERROR_CODE=EXTERNAL_SYSTEM_NO_ACCESS 401" });
    assert_eq!(data(error.clone(), none), json!({ "error": text }));
    assert_eq!(data(error, one), json!({ "artifacts": said, "error": text }));

    let metadata = sent(&minimal("EXTRACTION_METADATA_START"), None, &Answer::new(AnswerKind::Done));
    assert_eq!(metadata["event_data"], json!({}));
    let keys: Vec<_> = metadata.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["event_type", "event_context", "event_data", "worker_metadata"]);
    assert_eq!(metadata["worker_metadata"], json!({ "adaas_library_version": env!("CARGO_PKG_VERSION") }));

    let worker = WorkerMetadata {
        item_type: Some("issues".to_owned()),
        oldest_state: Some(Utc.with_ymd_and_hms(1970, 1, 1, 0, 0, 0).unwrap()),
        newest_state: Some(Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap()),
    };
    let answer = Answer { worker, ..Answer::new(AnswerKind::Done) };
    assert_eq!(
        sent(&event, None, &answer)["worker_metadata"],
        json!({
            "adaas_library_version": env!("CARGO_PKG_VERSION"), "item_type": "issues",
            "oldest_state_date": "1970-01-01T00:00:00Z", "newest_state_date": "2026-01-02T03:04:05Z"
        })
    );
}

#[test]
fn external_sync_units_go_inline_where_asked_and_only_there() {
    let unit = r#"{"id":"repo-1","name":"One","description":"d","item_count":1.0}"#;
    let units = vec![RawValue::from_string(unit.to_owned()).unwrap()];
    let inline = Answer { external_sync_units: Some(units), ..Answer::new(AnswerKind::Done) };
    let event = minimal("EXTRACTION_EXTERNAL_SYNC_UNITS_START");
    let body = compose(&event, None, &inline).unwrap().body;
    assert!(body.contains(&format!(r#""event_data":{{"external_sync_units":[{unit}]}}"#)), "{body}");
    let none = Answer { external_sync_units: Some(Vec::new()), ..Answer::new(AnswerKind::Done) };
    assert_eq!(sent(&event, None, &none)["event_data"], json!({ "external_sync_units": [] }));
    let artifact = Answer { artifacts: vec![entry()], ..Answer::new(AnswerKind::Done) };
    assert_eq!(sent(&event, None, &artifact)["event_data"]["artifacts"][0]["id"], "artifact/1");

    assert!(matches!(compose(&minimal("EXTRACTION_DATA_START"), None, &inline), Err(Error::Invalid { .. })));
    assert!(matches!(
        compose(&minimal("EXTRACTION_DATA_DELETE"), None, &artifact),
        Err(Error::Invalid { .. })
    ));
}

#[test]
fn every_error_code_is_worded_as_the_platform_knows_it() {
    let words = [
        "EXTERNAL_SYNC_UNIT_DELETED",
        "EXTERNAL_SYNC_UNIT_DEACTIVATED",
        "USER_DELETED",
        "EXTERNAL_SYSTEM_NO_ACCESS",
        "EXTERNAL_SYSTEM_NO_PERMISSION",
        "HISTORICAL_DATA_EXTRACTION_DONE",
    ];
    assert_eq!(ErrorCode::ALL.len(), words.len());
    for (code, word) in ErrorCode::ALL.into_iter().zip(words) {
        let kind = AnswerKind::Error { code: Some(code), message: String::new() };
        let body = sent(&minimal("START_EXTRACTING_DATA"), None, &Answer::new(kind));
        assert_eq!(body["event_data"]["error"]["message"], format!("ERROR_CODE={word}"));
    }
}

#[test]
fn a_long_error_is_cut_and_stays_text() {
    for filler in ["x", "\u{e9}", "\u{1f980}", "\u{1}"] {
        for lead in 0..4 {
            let message = "a".repeat(lead) + &filler.repeat(100_000);
            let kind = AnswerKind::Error { code: None, message: message.clone() };
            let body = sent(&minimal("START_EXTRACTING_DATA"), None, &Answer::new(kind));
            let said = body["event_data"]["error"]["message"].as_str().unwrap().to_owned();
            assert!(said.len() <= ERROR_MESSAGE_BYTES_MAX && said.len() > ERROR_MESSAGE_BYTES_MAX - 4);
            assert!(message.starts_with(said.strip_suffix("...").unwrap()));
        }
    }
}

#[test]
fn a_message_over_the_platforms_limit_is_not_composed() {
    let event = |bytes: usize| with_context("EXTRACTION_DATA_START", &json!({ "x": "y".repeat(bytes) }));
    let base = compose(&event(0), None, &Answer::new(AnswerKind::Done)).unwrap().body.len();
    let fits = limits::MESSAGE_BYTES_MAX - base;
    let largest = compose(&event(fits), None, &Answer::new(AnswerKind::Done)).unwrap();
    assert_eq!(largest.body.len(), limits::MESSAGE_BYTES_MAX);
    let error = compose(&event(fits + 1), None, &Answer::new(AnswerKind::Done)).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("EXTRACTION_DATA_DONE is 200001 bytes"), "{error}");
}

#[test]
fn a_whole_event_gives_all_its_fields() {
    let event = event(&json!([whole_event("EXTRACTION_DATA_CONTINUE")]));
    let text = |found: highwater::Result<Option<String>>| found.unwrap().unwrap();
    assert_eq!(event.run_id().unwrap().unwrap().as_str(), "run-1");
    assert_eq!(text(event.request_id()), "req-1");
    assert_eq!(text(event.worker_state_request_id()), "req-1");
    assert_eq!(text(event.sequence_version()), "17");
    assert_eq!(text(event.sync_unit_id()), "unit-9");
    assert_eq!(text(event.external_sync_unit_id()), "ext-9");
    assert_eq!(text(event.external_system_id()), "sys-1");
    assert_eq!(text(event.snap_in_id()), "don:integration:dvrv-us-1:devo/1:snap_in/2");
    assert_eq!(text(event.snap_in_slug()), "snap-1");
    assert_eq!(text(event.snap_in_version_id()), "don:integration:dvrv-us-1:devo/1:snap_in_version/3");
    assert_eq!(text(event.import_slug()), "import-1");
    assert_eq!(text(event.callback_url()), "https://platform.example/callback");
    assert_eq!(text(event.worker_data_url()), "https://platform.example/state");
    assert_eq!(text(event.devrev_endpoint()), "https://platform.example");
    assert_eq!(text(event.org_id()), "org-1");
    assert_eq!(text(event.org_name()), "Acme");
    assert_eq!(text(event.key_type()), "pat");
    assert_eq!(event.connection_key().unwrap().unwrap().expose(), KEY);
    assert_eq!(event.service_account_token().unwrap().unwrap().expose(), TOKEN);
    assert_eq!(event.mode().unwrap(), Some(Mode::Incremental));
    // 03:04:05 at one hour east, cut to microseconds.
    assert_eq!(event.extract_from().unwrap().unwrap().to_rfc3339(), "2026-01-02T02:04:05.123456+00:00");
    assert!(event.reset_extract_from().unwrap());
    assert_eq!(
        event.time_setting(WindowEnd::Start).unwrap(),
        Some(TimeSetting { kind: "workers_oldest_minus_window".to_owned(), value: Some("1h".to_owned()) })
    );
    assert_eq!(
        event.time_setting(WindowEnd::End).unwrap(),
        Some(TimeSetting { kind: "current_time".to_owned(), value: None })
    );
    assert_eq!(event.field("input_data.global_values.region").unwrap(), Some(&json!("eu")));
    assert_eq!(event.unit_key().unwrap().as_str(), "unit-9");
    assert_eq!(event.identity().unwrap(), r#"["EXTRACTION_DATA_CONTINUE","run-1","req-1","17"]"#);
    assert!(event.has_ids().unwrap());
}

#[test]
fn a_minimal_event_is_enough_until_a_step_needs_more() {
    let event = minimal("EXTRACTION_DATA_START");
    assert_eq!(event.unit_key().unwrap().as_str(), "u");
    assert_eq!(event.identity().unwrap(), r#"["EXTRACTION_DATA_START",null,null,null]"#);
    assert!(!event.has_ids().unwrap());
    assert_eq!(event.callback_url().unwrap(), None);
    assert_eq!(event.mode().unwrap(), None);
    assert_eq!(event.extract_from().unwrap(), None);
    assert!(!event.reset_extract_from().unwrap());
    assert_eq!(event.time_setting(WindowEnd::Start).unwrap(), None);
    assert_eq!(event.service_account_token().unwrap(), None);
    for context in [json!({}), json!({ "sync_unit_id": null, "external_sync_unit_id": "" })] {
        let error = with_context("EXTRACTION_DATA_START", &context).unit_key().unwrap_err();
        assert!(matches!(error, Error::Event { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(".sync_unit_id is missing") && text.contains(".external_sync_unit_id:"),
            "{text}"
        );
    }
}

#[test]
fn any_one_of_the_ids_tells_an_event_from_the_next() {
    for id in ["request_id", "request_id_adaas", "uuid", "sequence_version"] {
        let with = |value: Value| with_context("EXTRACTION_DATA_START", &json!({ id: value }));
        assert!(with(json!("1")).has_ids().unwrap(), "{id}");
        assert_ne!(with(json!("1")).identity().unwrap(), with(json!("2")).identity().unwrap());
        assert_eq!(with(json!("1")).identity().unwrap(), with(json!(1)).identity().unwrap());
    }
    // A run's id alone names no event.
    assert!(!with_context("EXTRACTION_DATA_START", &json!({ "run_id": "r" })).has_ids().unwrap());
    // Neighbouring parts do not run into each other.
    let split = |request: &str, version: &str| {
        with_context("X", &json!({ "request_id": request, "sequence_version": version })).identity().unwrap()
    };
    assert_ne!(split("a\",\"b", "c"), split("a", "b\",\"c"));
}

#[test]
fn the_external_sync_units_phase_has_a_unit_of_its_own_for_each_system() {
    let unit = |context: Value| with_context("EXTRACTION_EXTERNAL_SYNC_UNITS_START", &context).unit_key();
    let one = unit(json!({ "external_system_id": "one" })).unwrap();
    let other = unit(json!({ "external_system_id": 2, "sync_unit_id": "not used" })).unwrap();
    let none = unit(json!({})).unwrap();
    let (one, other, none) = (one.as_str(), other.as_str(), none.as_str());
    assert!(one.ends_with("/one") && other.ends_with("/2") && none.ends_with("/default"));
    // A sync unit cannot take the place of one.
    let thief = with_context("EXTRACTION_DATA_START", &json!({ "sync_unit_id": one }));
    assert!(thief.unit_key().unwrap_err().to_string().contains("reserved"));
    assert!(unit(json!({ "external_system_id": "x".repeat(510) })).is_err(), "over the limit of an id");
}

/// Puts `value` in place of what stands at `path`.
fn with(path: &str, value: Value) -> Event {
    let mut whole = whole_event("EXTRACTION_DATA_START");
    *whole.pointer_mut(&format!("/{}", path.replace('.', "/"))).unwrap() = value;
    event(&whole)
}

/// Older platforms send these where they ask for nothing.
#[test]
fn a_time_setting_without_a_type_is_none() {
    for setting in
        [json!({}), json!({ "value": "5h" }), json!({ "type": "" }), json!({ "type": null, "value": "" })]
    {
        let event = with_context(
            "EXTRACTION_METADATA_START",
            &json!({ "extraction_start_time": setting, "extraction_end_time": setting }),
        );
        for end in [WindowEnd::Start, WindowEnd::End] {
            assert_eq!(event.time_setting(end).unwrap(), None, "{setting}");
        }
    }
}

/// `JSON.stringify` writes a character that was cut in half as the escape of an unpaired surrogate (ECMA-262,
/// `QuoteJSONString`).
#[test]
fn half_a_character_in_an_event_is_echoed_as_it_came() {
    let context = r#"{"external_sync_unit_id":"u","external_sync_unit_name":"cut \ud83d","\udc00":["\ud800x"],"run_id":"r"}"#;
    let event = format!(
        r#"{{"payload":{{"event_type":"EXTRACTION_DATA_START","event_context":{context},"other":"\ud83d"}}}}"#
    );
    for text in [event.clone(), format!("[{event}]")] {
        let event = Event::from_json(&text).unwrap();
        assert_eq!(event.run_id().unwrap().unwrap().as_str(), "r");
        let composed = compose(&event, None, &Answer::new(AnswerKind::Done)).unwrap();
        assert!(composed.body.contains(&format!(r#""event_context":{context}"#)), "{}", composed.body);
    }
    assert!(Event::from_json(r#"{"payload":{"event_type":"\ud83d""#).is_err(), "cut JSON stays an error");
}

#[test]
fn a_field_of_the_wrong_type_is_an_error_that_names_its_path_when_it_is_asked_for() {
    type Ask = fn(&Event) -> Option<Error>;
    let asks: [(&str, Ask); 14] = [
        ("payload.event_context.request_id", |event| event.identity().err()),
        ("payload.event_context.run_id", |event| event.identity().err()),
        ("payload.event_context.sequence_version", |event| event.identity().err()),
        ("payload.event_context.sync_unit_id", |event| event.unit_key().err()),
        ("payload.event_context.mode", |event| event.mode().err()),
        ("payload.event_context.extract_from", |event| event.extract_from().err()),
        ("payload.event_context.reset_extract_from", |event| event.reset_extract_from().err()),
        ("payload.event_context.extraction_start_time", |event| event.time_setting(WindowEnd::Start).err()),
        ("payload.event_context.extraction_end_time.type", |event| event.time_setting(WindowEnd::End).err()),
        ("payload.event_context.callback_url", |event| event.callback_url().err()),
        ("execution_metadata.devrev_endpoint", |event| event.devrev_endpoint().err()),
        ("context.secrets.service_account_token", |event| event.service_account_token().err()),
        ("payload.connection_data.key", |event| event.connection_key().err()),
        ("context.snap_in_version_id", |event| event.snap_in_version_id().err()),
    ];
    for (path, ask) in asks {
        for broken in [json!([KEY]), json!(1.5)] {
            let event = with(path, broken);
            let error = ask(&event).unwrap_or_else(|| panic!("{path} of the wrong type was taken"));
            assert!(matches!(&error, Error::Event { field, .. } if field == path), "{path}: {error}");
            assert!(!error.to_string().contains(KEY), "{error}");
            // A caller that does not request it gets no error.
            assert!(compose(&event, None, &Answer::new(AnswerKind::Done)).is_ok(), "{path}");
        }
        let whole = event(&whole_event("EXTRACTION_DATA_START"));
        assert!(ask(&whole).is_none(), "{path} as it should be");
    }
    for (field, text) in [("mode", "SIDEWAYS"), ("extract_from", "yesterday")] {
        let event = with(&format!("payload.event_context.{field}"), json!(text));
        let error = event.mode().err().or(event.extract_from().err()).unwrap().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn what_is_no_event_is_refused_and_says_why() {
    let event = r#"{"payload":{"event_type":"EXTRACTION_DATA_START"}}"#;
    let cases = [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("nothing", "is not JSON"),
        ("null", "the event must be an object, not null"),
        ("\"text\"", "the event must be an object, not a string"),
        ("[]", "must have exactly one event, not 0"),
        (&format!("[{event},{event}]"), "must have exactly one event, not 2"),
        (&format!("[[{event}]]"), "the event must be an object, not an array"),
        (&format!("{event}{event}"), "is not JSON"),
        ("{}", "payload.event_type is missing"),
        (r#"{"payload":{"event_type":null}}"#, "payload.event_type is missing"),
        (r#"{"payload":{"event_type":7}}"#, "payload.event_type must be a string"),
        (r#"{"payload":[]}"#, "payload must be an object, not an array"),
        (
            r#"{"payload":{"event_type":"X","event_context":{}},"payload":{"event_type":"Y","event_context":{}}}"#,
            "duplicate field `payload`",
        ),
    ];
    for (text, expected) in cases {
        let error = Event::from_json(text).unwrap_err();
        assert!(matches!(error, Error::Event { .. }) && error.kind() == ErrorKind::Invalid, "{error:?}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
    assert!(Event::from_json(event).is_ok());
    assert!(Event::from_json_bytes(event.as_bytes()).is_ok());
    assert!(Event::from_json_bytes(b"{\"a\":\"\xff\"}").unwrap_err().to_string().contains("is not UTF-8"));
    // Deeper than a stack.
    assert!(Event::from_json(&"[".repeat(100_000)).is_err());
}

#[test]
fn no_secret_shows_in_debug_errors_or_messages() {
    let event = event(&whole_event("EXTRACTION_DATA_START"));
    let mut shown = vec![format!("{event:?}"), format!("{event:#?}")];
    shown.push(format!("{:?}", event.service_account_token().unwrap()));
    shown.push(format!("{:?}", event.connection_key().unwrap()));
    shown.push(compose(&event, None, &Answer::new(AnswerKind::Done)).unwrap().body);
    let as_text = whole_event("EXTRACTION_DATA_START").to_string();
    for secret in [TOKEN, KEY] {
        // Cut right behind a secret, the text is not JSON.
        let cut = &as_text[..as_text.find(secret).unwrap() + secret.len()];
        shown.push(Event::from_json(cut).unwrap_err().to_string());
    }
    for level in ["context", "payload"] {
        let mut whole = whole_event("EXTRACTION_DATA_START");
        whole[level] = json!(TOKEN);
        match Event::from_json(&whole.to_string()) {
            Ok(event) => shown.push(event.service_account_token().unwrap_err().to_string()),
            Err(error) => shown.push(format!("{error} {error:?}")),
        }
    }
    for text in &shown {
        assert!(!text.contains("nobody-may-see"), "{text}");
    }
    // It would be seen if it were there: the ids are.
    assert!(shown[0].contains("run-1") && shown[0].contains("unit-9"), "{}", shown[0]);
    assert!(as_text.contains(TOKEN) && as_text.contains(KEY));
}

fn moments() -> impl Strategy<Value = Option<chrono::DateTime<Utc>>> {
    proptest::option::of((0i64..4_000_000_000_000_000).prop_map(|at| Utc.timestamp_micros(at).unwrap()))
}

fn entries() -> impl Strategy<Value = Vec<ArtifactEntry>> {
    let dates = (moments(), moments(), moments(), moments());
    let entry =
        (".{1,40}", "[^/\\\\]{1,20}", any::<u64>(), dates).prop_map(|(id, item_type, item_count, dates)| {
            let (oldest_created, newest_created, oldest_modified, newest_modified) = dates;
            ArtifactEntry {
                id,
                item_type,
                item_count,
                oldest_created,
                newest_created,
                oldest_modified,
                newest_modified,
            }
        });
    proptest::collection::vec(entry, 0..20)
}

fn regressions() -> ProptestConfig {
    let file = "proptest-regressions/wire.txt";
    ProptestConfig {
        failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct(file))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(regressions())]

    /// What the caller adds up is never less than what is sent, and hardly more.
    #[test]
    fn the_size_of_a_message_is_known_before_it_is_composed(entries in entries(), which in 0usize..4) {
        let event = minimal("EXTRACTION_DATA_CONTINUE");
        let kind = kinds()[which].clone();
        let bare = compose(&event, None, &Answer::new(kind.clone())).unwrap().body.len();
        let told: usize = entries.iter().map(|entry| entry.bytes().unwrap()).sum();
        let answer = Answer { artifacts: entries, ..Answer::new(kind) };
        let composed = compose(&event, None, &answer).unwrap().body.len();
        let bound = bare + ARTIFACTS_FIELD_BYTES + told;
        prop_assert!(composed <= bound, "{composed} bytes, {bound} told");
        prop_assert!(composed + ARTIFACTS_FIELD_BYTES + 1 >= bound, "{composed} bytes, {bound} told");
    }

    /// However an event is laid out, its context comes back the same, on one line.
    #[test]
    fn any_context_is_echoed_as_it_came(text in ".*", number in any::<i64>(), name in ".*") {
        let context = json!({ "text": text, name.clone(): [number, { name: text }] });
        let whole = json!({ "payload": { "event_type": "EXTRACTION_DATA_START", "event_context": context } });
        let pretty = serde_json::to_string_pretty(&whole).unwrap();
        let event = Event::from_json(&pretty).unwrap();
        prop_assert_eq!(event.context_json(), context.to_string());
    }

    #[test]
    fn reading_garbage_does_not_panic(text in "[\\[\\]{}\",:a-z0-9. ]*") {
        let _ = Event::from_json(&text);
    }
}
