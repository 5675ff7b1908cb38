//! The event that starts an invocation, read tolerantly.
//!
//! Only `payload.event_type` is needed to read an event. Any other field may be missing, `null` or empty (these are
//! the same to us), and unknown fields may be there. A field of the wrong JSON type is an error when it is used; the
//! error names its path. Ids may be numbers. `event_context` is kept as its original text, without the white space
//! between its parts: the answer repeats it whole, every number to its last digit.
//!
//! Secrets leave only as a [`Secret`]; neither `Debug` nor any error shows the value of a field that could be one.

use std::cmp::Reverse;
use std::fmt;

use chrono::{DateTime, SubsecRound, Utc};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::airdrop::document::lossy_value;
use crate::airdrop::event_type::{EventType, Spelling};
use crate::error::{Error, Result};
use crate::model::{ID_BYTES_MAX, RESERVED_UNIT_PREFIX, RunId, SyncUnitId};

const CONTEXT: &str = "payload.event_context";
const SYNC_UNIT_ID: &str = "payload.event_context.sync_unit_id";
const EXTERNAL_SYNC_UNIT_ID: &str = "payload.event_context.external_sync_unit_id";

/// The purpose of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// A first import.
    Initial,
    /// What has changed since the last one.
    Incremental,
    /// Back into the external system.
    Loading,
}

/// One end of the extraction window, as the platform asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeSetting {
    /// How to find the moment: `absolute_time`, `current_time`, `unbounded`, `workers_oldest` and so on.
    pub kind: String,
    /// A moment or a duration, for the kinds that need one.
    pub value: Option<String>,
}

/// The two ends of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WindowEnd {
    /// `extraction_start_time`.
    Start,
    /// `extraction_end_time`.
    End,
}

impl WindowEnd {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Start => "payload.event_context.extraction_start_time",
            Self::End => "payload.event_context.extraction_end_time",
        }
    }
}

/// Bytes of the shortest secret that is searched for in a text.
const HIDDEN_BYTES_MIN: usize = 4;

/// A secret: it has no `Display`, its `Debug` hides it, and it is never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// One event from the platform.
#[derive(Clone)]
pub struct Event {
    root: Value,
    asked: EventType,
    spelling: Spelling,
    context: String,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("event_type", &self.asked.name(self.spelling))
            .field("sync_unit_id", &self.sync_unit_id().ok().flatten())
            .field("external_sync_unit_id", &self.external_sync_unit_id().ok().flatten())
            .field("run_id", &self.run_id().ok().flatten())
            .field("request_id", &self.request_id().ok().flatten())
            .field("sequence_version", &self.sequence_version().ok().flatten())
            .finish_non_exhaustive()
    }
}

impl Event {
    /// Reads an event from JSON: one object, or, as a snap-in gets it, a list of exactly one.
    ///
    /// ```
    /// use highwater::airdrop::{Event, EventType};
    /// let event = Event::from_json(
    ///     r#"[{"payload":{"event_type":"START_EXTRACTING_METADATA","event_context":{"sync_unit_id":7}}}]"#,
    /// )?;
    /// assert_eq!(event.event_type(), &EventType::Metadata);
    /// assert_eq!(event.unit_key()?.as_str(), "7");
    /// assert_eq!(event.run_id()?, None);
    /// # Ok::<(), highwater::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Event` if the text is not JSON, is not one event, or has no `payload.event_type`. An unknown event type is
    /// not an error here: [`serve`](super::serve()) answers it.
    pub fn from_json(text: &str) -> Result<Self> {
        let unreadable = |error: serde_json::Error| wrong("the event", format!("is not JSON: {error}"));
        // An unpaired surrogate is U+FFFD here; the answer repeats it unchanged.
        let whole = lossy_value(text).map_err(unreadable)?;
        if let Value::Array(list) = &whole {
            if list.len() != 1 {
                let count = list.len();
                return Err(wrong("the list of events", format!("must have exactly one event, not {count}")));
            }
            let [only] = serde_json::from_str::<[&RawValue; 1]>(text).map_err(unreadable)?;
            if matches!(list.first(), Some(Value::Array(_))) {
                return Err(wrong("the event", "must be an object, not an array"));
            }
            return Self::from_json(only.get());
        }
        let Some(name) = find(&whole, "payload.event_type")? else {
            return Err(wrong("payload.event_type", "is missing: it names the type of the event"));
        };
        let Value::String(name) = name else {
            return Err(wrong("payload.event_type", format!("must be a string, not {}", type_name(name))));
        };
        let (event_type, spelling) = EventType::parse(name);
        let context = if matches!(find(&whole, CONTEXT), Ok(Some(_))) {
            raw_context(text).map_err(unreadable)?
        } else {
            "{}".to_owned()
        };
        Ok(Self { root: whole, asked: event_type, spelling, context })
    }

    /// [`Event::from_json`] from bytes.
    ///
    /// # Errors
    /// Those of [`Event::from_json`]; also if the bytes are not UTF-8.
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes);
        Self::from_json(text.map_err(|error| wrong("the event", format!("is not UTF-8: {error}")))?)
    }

    /// What the event asks for.
    pub fn event_type(&self) -> &EventType {
        &self.asked
    }

    /// The spelling of its type. The answer uses the same one, unless [`Serve::spelling`](super::Serve::spelling)
    /// overrides it.
    pub fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// The `event_context` as compact JSON, which every answer repeats; `{}` if there is none.
    pub fn context_json(&self) -> &str {
        &self.context
    }

    /// Any field by its path, such as `input_data.global_values.region`. It may be a secret: keep it out of logs.
    ///
    /// # Errors
    /// `Event` if the path leads through a value that is not an object.
    pub fn field(&self, path: &str) -> Result<Option<&Value>> {
        find(&self.root, path)
    }

    /// The run: `run_id`, else `sync_run_id`, else `sync_run`.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type; `TooLarge` or `Invalid` if it cannot be an id.
    pub fn run_id(&self) -> Result<Option<RunId>> {
        self.first_id(&["run_id", "sync_run_id", "sync_run"])?.map(RunId::new).transpose()
    }

    /// The request: `request_id`, else `request_id_adaas`, else `uuid`.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type or too long.
    pub fn request_id(&self) -> Result<Option<String>> {
        self.first_id(&["request_id", "request_id_adaas", "uuid"])
    }

    /// The request id for worker state: `request_id_adaas`, else [`Event::request_id`].
    ///
    /// # Errors
    /// `Event` if it is of the wrong type or too long.
    pub fn worker_state_request_id(&self) -> Result<Option<String>> {
        self.first_id(&["request_id_adaas", "request_id", "uuid"])
    }

    /// The number of the event within its run, as text.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type or too long.
    pub fn sequence_version(&self) -> Result<Option<String>> {
        self.first_id(&["sequence_version"])
    }

    /// The platform's own id of the sync unit.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type or too long.
    pub fn sync_unit_id(&self) -> Result<Option<String>> {
        self.first_id(&["sync_unit_id"])
    }

    /// The external system's id of the sync unit.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type or too long.
    pub fn external_sync_unit_id(&self) -> Result<Option<String>> {
        self.first_id(&["external_sync_unit_id"])
    }

    /// The external system.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type or too long.
    pub fn external_system_id(&self) -> Result<Option<String>> {
        self.first_id(&["external_system_id"])
    }

    /// What the sync is for.
    ///
    /// # Errors
    /// `Event` if it is not one of `INITIAL`, `INCREMENTAL` and `LOADING`.
    pub fn mode(&self) -> Result<Option<Mode>> {
        let path = "payload.event_context.mode";
        match self.text(path)?.as_deref() {
            None => Ok(None),
            Some("INITIAL") => Ok(Some(Mode::Initial)),
            Some("INCREMENTAL") => Ok(Some(Mode::Incremental)),
            Some("LOADING") => Ok(Some(Mode::Loading)),
            Some(_) => Err(wrong(path, "must be INITIAL, INCREMENTAL or LOADING")),
        }
    }

    /// The start of the time range that an import should extract, cut to microseconds.
    ///
    /// # Errors
    /// `Event` if it is not an RFC 3339 time.
    pub fn extract_from(&self) -> Result<Option<DateTime<Utc>>> {
        let path = "payload.event_context.extract_from";
        self.text(path)?.map(|text| moment(path, &text)).transpose()
    }

    /// Whether an incremental sync should start over from [`Event::extract_from`]; `false` if the event does not say.
    ///
    /// # Errors
    /// `Event` if it is not a boolean.
    pub fn reset_extract_from(&self) -> Result<bool> {
        let path = "payload.event_context.reset_extract_from";
        match self.field(path)? {
            None => Ok(false),
            Some(Value::Bool(reset)) => Ok(*reset),
            Some(other) => Err(wrong(path, format!("must be true or false, not {}", type_name(other)))),
        }
    }

    /// One end of the window that the platform asks for. `None` if it has no `type`: older platforms leave it out or
    /// empty if they ask for nothing.
    ///
    /// # Errors
    /// `Event` if it is not an object, or its parts are not strings.
    #[doc(hidden)]
    pub fn time_setting(&self, end: WindowEnd) -> Result<Option<TimeSetting>> {
        let path = end.path();
        match self.field(path)? {
            None => Ok(None),
            Some(Value::Object(_)) => match self.text(&format!("{path}.type"))? {
                Some(kind) => Ok(Some(TimeSetting { kind, value: self.text(&format!("{path}.value"))? })),
                None => Ok(None),
            },
            Some(other) => Err(wrong(path, format!("must be an object, not {}", type_name(other)))),
        }
    }

    /// The snap-in by its own id.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn snap_in_id(&self) -> Result<Option<String>> {
        self.text("context.snap_in_id")
    }

    /// The snap-in by its slug.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn snap_in_slug(&self) -> Result<Option<String>> {
        self.text("payload.event_context.snap_in_slug")
    }

    /// The version of the snap-in: `context.snap_in_version_id`, else that of `event_context`.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn snap_in_version_id(&self) -> Result<Option<String>> {
        match self.text("context.snap_in_version_id")? {
            None => self.text("payload.event_context.snap_in_version_id"),
            found => Ok(found),
        }
    }

    /// The import by its slug.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn import_slug(&self) -> Result<Option<String>> {
        self.text("payload.event_context.import_slug")
    }

    /// The callback URL, to which the answer is sent. It may hold a token: keep it out of logs.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn callback_url(&self) -> Result<Option<String>> {
        self.text("payload.event_context.callback_url")
    }

    /// The URL of the worker state. It may hold a token: keep it out of logs.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn worker_data_url(&self) -> Result<Option<String>> {
        self.text("payload.event_context.worker_data_url")
    }

    /// The base URL under which artifacts are prepared and confirmed.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn devrev_endpoint(&self) -> Result<Option<String>> {
        self.text("execution_metadata.devrev_endpoint")
    }

    /// The organisation in the external system, by its id.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn org_id(&self) -> Result<Option<String>> {
        self.id("payload.connection_data.org_id")
    }

    /// The organisation in the external system, by its name.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn org_name(&self) -> Result<Option<String>> {
        self.text("payload.connection_data.org_name")
    }

    /// The kind of [`Event::connection_key`].
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn key_type(&self) -> Result<Option<String>> {
        self.text("payload.connection_data.key_type")
    }

    /// The key to the external system.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn connection_key(&self) -> Result<Option<Secret>> {
        Ok(self.text("payload.connection_data.key")?.map(Secret))
    }

    /// The token for the platform.
    ///
    /// # Errors
    /// `Event` if it is of the wrong type.
    pub fn service_account_token(&self) -> Result<Option<Secret>> {
        Ok(self.text("context.secrets.service_account_token")?.map(Secret))
    }

    /// Another program's text with the event's two secrets replaced by `(hidden)`, where they occur exactly as in the
    /// event. A secret of fewer than 4 bytes cannot be distinguished from other text, and stays.
    pub(crate) fn hide_secrets(&self, said: &str) -> String {
        let secrets = [self.service_account_token(), self.connection_key()];
        let mut secrets: Vec<Secret> =
            secrets.into_iter().filter_map(|secret| secret.ok().flatten()).collect();
        // One may be a part of the other.
        secrets.sort_by_key(|secret| Reverse(secret.0.len()));
        let hide = |said: String, secret: &Secret| match secret.expose() {
            short if short.len() < HIDDEN_BYTES_MIN => said,
            secret => said.replace(secret, "(hidden)"),
        };
        secrets.iter().fold(said.to_owned(), hide)
    }

    /// The key under which everything is stored: `sync_unit_id`, else `external_sync_unit_id`. The
    /// external-sync-units phase has neither; it has a reserved key for each external system.
    ///
    /// # Errors
    /// `Event` if the event has neither, or if the id begins with the reserved prefix. Also the errors of
    /// [`Event::sync_unit_id`] and [`Event::external_sync_unit_id`]; `TooLarge` or `Invalid` if it cannot be an id.
    pub fn unit_key(&self) -> Result<SyncUnitId> {
        if self.asked == EventType::ExternalSyncUnits {
            let system = self.external_system_id()?;
            let system = system.as_deref().unwrap_or("default");
            return SyncUnitId::new(format!("{RESERVED_UNIT_PREFIX}{system}"));
        }
        let (path, unit) = match self.sync_unit_id()? {
            Some(unit) => (SYNC_UNIT_ID, Some(unit)),
            None => (EXTERNAL_SYNC_UNIT_ID, self.external_sync_unit_id()?),
        };
        let Some(unit) = unit else {
            return Err(wrong(
                SYNC_UNIT_ID,
                format!(
                    "is missing, and so is {EXTERNAL_SYNC_UNIT_ID}: one of the two must name the sync unit"
                ),
            ));
        };
        if unit.starts_with(RESERVED_UNIT_PREFIX) {
            return Err(wrong(
                path,
                format!("must not start with {RESERVED_UNIT_PREFIX}, which is reserved"),
            ));
        }
        SyncUnitId::new(unit)
    }

    /// A text that identifies the event, the same for both spellings of its type: a JSON list of event type, run,
    /// request and sequence version.
    ///
    /// ```
    /// use highwater::airdrop::Event;
    /// let event = Event::from_json(
    ///     r#"{"payload":{"event_type":"START_EXTRACTING_DATA","event_context":{"uuid":"a","sequence_version":"17"}}}"#,
    /// )?;
    /// assert_eq!(event.identity()?, r#"["EXTRACTION_DATA_START",null,"a","17"]"#);
    /// # Ok::<(), highwater::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Event` if one of them is of the wrong type or too long.
    pub fn identity(&self) -> Result<String> {
        let run_id = self.run_id()?;
        let parts = [
            Some(self.asked.name(Spelling::Seed).to_owned()),
            run_id.map(|run_id| run_id.as_str().to_owned()),
            self.request_id()?,
            self.sequence_version()?,
        ];
        Ok(serde_json::Value::from_iter(parts).to_string())
    }

    /// Whether [`Event::identity`] distinguishes this event from the next of its run: it has a request id or a
    /// sequence version.
    ///
    /// # Errors
    /// `Event` if one of them is of the wrong type or too long.
    pub fn has_ids(&self) -> Result<bool> {
        Ok(self.request_id()?.is_some() || self.sequence_version()?.is_some())
    }

    /// The first of these fields of `event_context` that exists.
    fn first_id(&self, names: &[&str]) -> Result<Option<String>> {
        for name in names {
            if let Some(id) = self.id(&format!("{CONTEXT}.{name}"))? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn id(&self, path: &str) -> Result<Option<String>> {
        let id = match self.field(path)? {
            None => return Ok(None),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            // A larger number, or one with a fraction, may have lost digits: two ids could become one.
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => number.to_string(),
            Some(other) => {
                return Err(wrong(
                    path,
                    format!("must be a string or a whole number, not {}", type_name(other)),
                ));
            }
        };
        if id.len() > ID_BYTES_MAX {
            return Err(wrong(path, format!("must be at most {ID_BYTES_MAX} bytes, not {}", id.len())));
        }
        Ok(Some(id))
    }

    fn text(&self, path: &str) -> Result<Option<String>> {
        match self.field(path)? {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(wrong(path, format!("must be a string, not {}", type_name(other)))),
        }
    }
}

pub(crate) fn wrong(field: &str, expected: impl Into<String>) -> Error {
    Error::Event { field: field.to_owned(), expected: expected.into() }
}

/// An RFC 3339 time, cut to microseconds like everything that is stored and compared.
pub(crate) fn moment(path: &str, text: &str) -> Result<DateTime<Utc>> {
    let moment = DateTime::parse_from_rfc3339(text)
        .map_err(|_| wrong(path, "must be an RFC 3339 time, such as 2026-01-31T12:00:00Z"))?;
    Ok(moment.to_utc().trunc_subsecs(6))
}

/// The value at a path of object fields; `None` for a missing one and for `null`.
fn find<'a>(root: &'a Value, path: &str) -> Result<Option<&'a Value>> {
    let mut value = root;
    let mut walked = String::new();
    for name in path.split('.') {
        let Value::Object(fields) = value else {
            let at = if walked.is_empty() { "the event" } else { &walked };
            return Err(wrong(at, format!("must be an object, not {}", type_name(value))));
        };
        value = match fields.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        if !walked.is_empty() {
            walked.push('.');
        }
        walked.push_str(name);
    }
    Ok(Some(value))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction or too large",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The text of `payload.event_context`, compact. Both members are known to exist, and `payload` to be an object.
fn raw_context(text: &str) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        event_context: &'a RawValue,
    }
    let outer: Outer<'_> = serde_json::from_str(text)?;
    let payload: Payload<'_> = serde_json::from_str(outer.payload.get())?;
    Ok(compact(payload.event_context.get()))
}

/// Valid JSON without the white space between its parts, on one line.
fn compact(json: &str) -> String {
    let mut in_string = false;
    let mut escaped = false;
    let kept = |c: &char| {
        if in_string {
            in_string = escaped || *c != '"';
            escaped = !escaped && *c == '\\';
            return true;
        }
        in_string = *c == '"';
        !matches!(c, ' ' | '\t' | '\n' | '\r')
    };
    json.chars().filter(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(context: &str) -> Event {
        let text =
            format!(r#"{{"payload":{{"event_type":"EXTRACTION_DATA_START","event_context":{context}}}}}"#);
        Event::from_json(&text).unwrap()
    }

    #[test]
    fn the_echo_is_the_text_that_came_less_white_space() {
        let odd = "{ \"b\" : 1.0,\n\t\"a\":[ 12345678901234567890123 , 1e2 ],\r\n\"t\":\"a \\\" b\\\\\" , \"t\":\"\\u00e9 \" }";
        assert_eq!(
            event(odd).context_json(),
            "{\"b\":1.0,\"a\":[12345678901234567890123,1e2],\"t\":\"a \\\" b\\\\\",\"t\":\"\\u00e9 \"}"
        );
        assert_eq!(Event::from_json(r#"{"payload":{"event_type":"X"}}"#).unwrap().context_json(), "{}");
        assert_eq!(event("null").context_json(), "{}");
    }

    #[test]
    fn an_id_is_text_or_a_whole_number_and_its_aliases_are_read_in_order() {
        let found =
            event(r#"{"sync_run":"c","sync_run_id":"b","request_id":"","uuid":-7,"sequence_version":17}"#);
        assert_eq!(found.run_id().unwrap().unwrap().as_str(), "b");
        assert_eq!(found.request_id().unwrap().unwrap(), "-7");
        assert_eq!(found.sequence_version().unwrap().unwrap(), "17");
        for broken in ["1.5", "123456789012345678901234567890", "true", "[]", "{}"] {
            let error = event(&format!(r#"{{"run_id":{broken}}}"#)).run_id().unwrap_err().to_string();
            assert!(
                error.contains("payload.event_context.run_id must be a string or a whole number"),
                "{error}"
            );
        }
        let long = event(&format!(r#"{{"request_id":"{}"}}"#, "x".repeat(ID_BYTES_MAX + 1)));
        assert!(long.identity().unwrap_err().to_string().contains("at most 512 bytes"));
    }

    #[test]
    fn a_unit_is_the_platforms_own_else_the_external_one_and_never_a_reserved_one() {
        let both = event(r#"{"sync_unit_id":"own","external_sync_unit_id":"ext"}"#);
        assert_eq!(both.unit_key().unwrap().as_str(), "own");
        assert_eq!(event(r#"{"external_sync_unit_id":"ext"}"#).unit_key().unwrap().as_str(), "ext");
        let error = event("{}").unit_key().unwrap_err().to_string();
        assert!(
            error.contains("event_context.sync_unit_id") && error.contains("external_sync_unit_id"),
            "{error}"
        );
        let reserved = format!(r#"{{"external_sync_unit_id":"{RESERVED_UNIT_PREFIX}x"}}"#);
        assert!(event(&reserved).unit_key().unwrap_err().to_string().contains("reserved"));
    }

    #[test]
    fn a_path_through_something_that_is_no_object_is_an_error_that_names_it() {
        let error = event("[1]").run_id().unwrap_err().to_string();
        assert_eq!(error, "the event is not usable: payload.event_context must be an object, not an array");
        let error = Event::from_json("7").unwrap_err().to_string();
        assert_eq!(error, "the event is not usable: the event must be an object, not a number");
    }
}
