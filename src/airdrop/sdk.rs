//! The keys of others in a worker state: the TypeScript SDK's, the connector's own, and the extraction scope.
//!
//! The platform keeps one JSON document per sync unit. Ours is under one key of it; the SDK's keys are beside it, in
//! one of two layouts:
//!
//! ```json
//! { "lastSyncStarted": "", "workersOldest": "", "toDevRev": {}, "the connector's own": 1 }
//! { "connectorState": { "the connector's own": 1 }, "sdkState": { "lastSyncStarted": "" } }
//! ```
//!
//! The first is that of SDK 1.x, the second that of 2.x, which reads the first and writes the second. 2.x keeps no
//! start times; those in its layout were left by 1.x or by us, so they may be older than its last run. It drops keys
//! beside those two. When it takes over a flat state, it keeps unknown keys, including a checkpoint of ours, among
//! the connector's own.
//!
//! *Reading*: a unit that has nothing of ours inherits these keys, so that a connector can move over without starting
//! again. A unit of ours is updated by them if the SDK has run it in between. A key that is missing, `null` or an
//! empty string is unset. A key of another type is an error that names it: guessing would skip records. If the start
//! of a run is not known, the watermark does not move with it: its window is extracted twice rather than skipped.
//!
//! *Writing*: they are kept current in the layout in which they were found, so that a connector can move back between
//! two runs; so are the connector's own keys, if the extractor sets them. Times are cut to milliseconds, as the SDK
//! writes them: so its watermark is never later than ours.

use std::collections::BTreeSet;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::model::{ArtifactId, ID_BYTES_MAX, ItemType, Micros, Phase, Step, VALUE_BYTES_MAX};
use crate::record::Attachment;
use crate::store::{
    CHECKPOINT_KEY, Incoming, Inherited, InheritedLine, InheritedRun, InheritedStart, LEFT_ATTACHMENTS, Run,
    Standing, WindowRow,
};

use super::document::{Document, kind_of, lossy_value};

const SDK_STATE: &str = "sdkState";
const CONNECTOR_STATE: &str = "connectorState";
const TO_DEVREV: &str = "toDevRev";
const ATTACHMENTS: &str = "attachmentsMetadata";

const SYNC_STARTED: &str = "lastSyncStarted";
const SUCCESSFUL_STARTED: &str = "lastSuccessfulSyncStarted";
const PENDING_OLDEST: &str = "pendingWorkersOldest";
const PENDING_NEWEST: &str = "pendingWorkersNewest";
const OLDEST: &str = "workersOldest";
const NEWEST: &str = "workersNewest";
const VERSION: &str = "snapInVersionId";

/// All keys of the SDK, for extracting and for loading.
const KEYS: [&str; 9] = [
    SYNC_STARTED,
    SUCCESSFUL_STARTED,
    PENDING_OLDEST,
    PENDING_NEWEST,
    OLDEST,
    NEWEST,
    VERSION,
    TO_DEVREV,
    "fromDevRev",
];

/// What the SDK knew about a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SdkState {
    /// In the layout of 2.x, which keeps no start times.
    nested: bool,
    sync_started: Option<Micros>,
    successful_started: Option<Micros>,
    pending: (Option<Micros>, Option<Micros>),
    bounds: (Option<Micros>, Option<Micros>),
    version: Option<String>,
    attachments: SdkAttachments,
}

/// The attachments that the SDK left to do in a run that it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SdkAttachments {
    /// The metadata artifacts still to be processed, in order.
    pub(crate) artifact_ids: Vec<String>,
    /// How many attachments of the first of them are done.
    pub(crate) last_processed: u64,
    /// Attachment id and parent id of later ones that are settled; the parent is empty in an older state.
    pub(crate) processed: BTreeSet<(String, String)>,
    /// Those of them that it gave up.
    pub(crate) failed: BTreeSet<(String, String)>,
}

impl SdkAttachments {
    /// Decides about line `at` of artifact `place`.
    pub(crate) fn judge(&self, place: u64, at: u64, line: &str) -> InheritedLine {
        let line = inherited_line(line);
        let is_in = |set: &BTreeSet<(String, String)>, id: &str, parent: &str| {
            [parent, ""].iter().any(|parent| set.contains(&(id.to_owned(), (*parent).to_owned())))
        };
        let named = |set: &BTreeSet<(String, String)>, attachment: &Attachment| {
            is_in(set, &attachment.id, &attachment.parent_id)
        };
        match line {
            Ok((attachment, json)) if named(&self.failed, &attachment) => {
                InheritedLine::Failed { json, reason: "the TypeScript SDK gave it up".to_owned() }
            }
            _ if place == 0 && at < self.last_processed => InheritedLine::Settled,
            Ok((attachment, _)) if named(&self.processed, &attachment) => InheritedLine::Settled,
            Ok((_, json)) => InheritedLine::Queued(json),
            Err(Senseless { id: Some(id), parent_id, .. })
                if is_in(&self.processed, &id, parent_id.as_deref().unwrap_or_default()) =>
            {
                InheritedLine::Settled
            }
            Err(Senseless { id, parent_id, reason }) => {
                let id = id.unwrap_or_else(|| format!("(line {} of artifact {})", at + 1, place + 1));
                let parent_id = parent_id.unwrap_or_else(|| "(unknown)".to_owned());
                let json = json!({ "id": id, "url": "", "file_name": "(unknown)", "parent_id": parent_id });
                InheritedLine::Failed { json: json.to_string(), reason }
            }
        }
    }
}

/// A line that does not name a valid attachment: its id and its parent's, as far as they can be read, and what is
/// wrong.
struct Senseless {
    id: Option<String>,
    parent_id: Option<String>,
    reason: String,
}

/// A line of attachment metadata that the SDK announced, in our form: a numeric id becomes text.
fn inherited_line(line: &str) -> Result<(Attachment, String), Senseless> {
    let fields = lossy_value(line).and_then(serde_json::from_value);
    let mut fields: Map<String, Value> = fields.map_err(|error| Senseless {
        id: None,
        parent_id: None,
        reason: format!("its line cannot be read: {error}"),
    })?;
    for name in ["id", "parent_id", "grand_parent_id", "author_id"] {
        if let Some(field) = fields.get_mut(name)
            && let Some(text) = id_text(field)
        {
            *field = text.into();
        }
    }
    // A value that was read as JSON can be written as JSON.
    let json = serde_json::to_string(&fields).unwrap_or_default();
    Attachment::from_line(&json).map(|attachment| (attachment, json)).map_err(|error| {
        let id = |name: &str| {
            let text = fields.get(name).and_then(id_text)?;
            (1..=ID_BYTES_MAX).contains(&text.len()).then_some(text)
        };
        Senseless { id: id("id"), parent_id: id("parent_id"), reason: error.to_string() }
    })
}

/// An id that is a text, or a number, which is written as JavaScript would: all its numbers are floats.
fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.as_f64().map(js_number_text),
        _ => None,
    }
}

/// A number as text, as JavaScript's `String` writes it:
/// <https://tc39.es/ecma262/#sec-numeric-types-number-tostring>.
fn js_number_text(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let sign = if number < 0.0 { "-" } else { "" };
    // Both write the fewest digits that identify the float.
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or(0);
    // Digits before the point; `n` is the specification's name.
    let n = usize::try_from(exponent + 1).unwrap_or(0);
    let (whole, fraction) = digits.split_at_checked(n).unwrap_or((&digits, ""));
    match exponent {
        0..=20 if fraction.is_empty() => format!("{sign}{digits:0<n$}"),
        0..=20 => format!("{sign}{whole}.{fraction}"),
        -6..=-1 => {
            let zeroes = "0".repeat(usize::try_from(-exponent - 1).unwrap_or(0));
            format!("{sign}0.{zeroes}{digits}")
        }
        _ => format!("{sign}{mantissa}e{exponent:+}"),
    }
}

impl SdkState {
    /// Reads the SDK's keys; `None` if there are none.
    ///
    /// # Errors
    /// `WorkerState`, naming the first invalid key.
    pub(crate) fn read(document: &Document, what: &str) -> Result<Option<Self>> {
        let Some((prefix, keys)) = sdk_keys(document, what)? else { return Ok(None) };
        let keys = Keys { what, prefix, keys: &keys };
        Ok(Some(Self {
            nested: !prefix.is_empty(),
            sync_started: keys.moment(SYNC_STARTED)?,
            successful_started: keys.moment(SUCCESSFUL_STARTED)?,
            pending: (keys.moment(PENDING_OLDEST)?, keys.moment(PENDING_NEWEST)?),
            bounds: (keys.moment(OLDEST)?, keys.moment(NEWEST)?),
            version: keys.text(VERSION)?.map(str::to_owned),
            attachments: keys.attachments()?,
        }))
    }

    /// Validates the window of the current run: it must not be empty. A window of ours that is shorter than a
    /// millisecond is empty once the SDK has written it.
    ///
    /// # Errors
    /// `WorkerState`, naming the key.
    pub(crate) fn check_window(&self, what: &str) -> Result<()> {
        if let (Some(oldest), Some(newest)) = self.pending
            && oldest >= newest
        {
            let prefix = if self.nested { "sdkState." } else { "" };
            return Err(Error::WorkerState {
                what: format!("{prefix}{PENDING_OLDEST} in {what}"),
                reason: format!("it must be before {PENDING_NEWEST}"),
            });
        }
        Ok(())
    }

    /// What the unit of an event inherits. A CONTINUE, or an attachments START, continues a run that the SDK began;
    /// so does a data START if the SDK left that phase unfinished. A metadata START begins a run, whatever was left.
    ///
    /// `rewritten`: the unit is known here, and the SDK has run it since.
    pub(crate) fn inherited(&self, event: &Incoming, now: Micros, rewritten: bool) -> Inherited {
        let continues = event.step == Step::Continue || event.phase == Phase::Attachments;
        let unfinished = self.sync_started > self.successful_started
            || self.pending.0.is_some()
            || self.pending.1.is_some();
        let run = if continues {
            let note = serde_json::to_string(&self.attachments).ok().map(|json| (LEFT_ATTACHMENTS, json));
            let start = match self.sync_started {
                Some(started_at) => Some(InheritedStart::At(started_at)),
                None if self.nested => Some(InheritedStart::Unknown),
                // 1.x records when a run starts, so it began none.
                None => None,
            };
            start.map(|start| InheritedRun { start, window: self.window(), note })
        } else {
            let started_at = self.sync_started.filter(|_| self.sync_started > self.successful_started);
            (event.phase == Phase::Data && unfinished).then(|| InheritedRun {
                // Without a start it starts now: nothing was extracted yet.
                start: started_at.map_or(InheritedStart::Now, InheritedStart::At),
                window: self.window(),
                note: None,
            })
        };
        Inherited {
            watermark: self.watermark(now),
            bounds: self.bounds,
            connector_version: self.version.clone(),
            run,
            rewritten,
        }
    }

    /// The time up to which a finished run of the SDK vouches. 2.x keeps only the end of the window that it finished;
    /// an end in the future says nothing about what existed then.
    fn watermark(&self, now: Micros) -> Option<Micros> {
        let finished = self.bounds.1.filter(|&newest| self.nested && newest <= now);
        self.successful_started.max(finished)
    }

    /// Whether the SDK has run since a unit of ours in this state was saved beside its keys.
    pub(crate) fn is_newer_than(&self, standing: &Standing) -> bool {
        let cut = |at: Micros| Micros(at.0.div_euclid(1_000) * 1_000);
        let (started, window) = standing.open.unzip();
        let window = window.flatten();
        let is_another =
            |theirs: Option<Micros>, ours: Option<Micros>| theirs.is_some() && theirs != ours.map(cut);
        self.successful_started > standing.watermark.map(cut)
            || self.bounds.1 > standing.bounds.1.map(cut)
            || is_another(self.sync_started, started)
            || is_another(self.pending.1, window.map(|window| window.to))
    }

    /// The window that the SDK had resolved for its run.
    fn window(&self) -> Option<WindowRow> {
        let (from, to) = self.pending;
        Some(WindowRow {
            from,
            to: to.or(self.sync_started.filter(|at| from.is_none_or(|from| from < *at)))?,
        })
        .filter(|_| from.is_some() || to.is_some())
    }
}

impl Run {
    /// The attachments left to do, if the SDK began this run and was in the middle of it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn sdk_attachments(&self) -> Result<Option<SdkAttachments>> {
        self.note(LEFT_ATTACHMENTS)
    }
}

/// The SDK's keys, and the prefix of their names in errors; `None` if there are none.
fn sdk_keys(document: &Document, what: &str) -> Result<Option<(&'static str, Map<String, Value>)>> {
    match document.value(SDK_STATE, what)? {
        Some(Value::Object(nested)) => return Ok(Some(("sdkState.", nested))),
        Some(other) => return Err(unexpected(what, SDK_STATE, "an object", &other)),
        None => {}
    }
    let mut flat = Map::new();
    for key in KEYS {
        if let Some(value) = document.value(key, what)? {
            flat.insert(key.to_owned(), value);
        }
    }
    Ok(Some(("", flat)).filter(|(_, flat)| !flat.is_empty()))
}

/// Puts changed keys of the SDK back in their place; at the top level if there were none.
fn put_sdk_keys(document: &mut Document, keys: Map<String, Value>) {
    if document.contains(SDK_STATE) {
        document.set(SDK_STATE, &keys);
        return;
    }
    for (key, value) in keys {
        document.set(&key, &value);
    }
}

/// Updates the SDK's keys in their place; at the top level if there are none.
///
/// # Errors
/// `WorkerState` if they cannot be read.
pub(crate) fn write(document: &mut Document, what: &str, standing: &Standing) -> Result<()> {
    let mut keys = sdk_keys(document, what)?.map(|(_, keys)| keys).unwrap_or_default();
    let (started, window) = standing.open.unzip();
    let window = window.flatten();
    // A window without a beginning reaches back to the start of time.
    let from = window.map(|window| window.from.unwrap_or(Micros(0)));
    // Keys about the current run are unset if there is none.
    for (key, at) in
        [(SYNC_STARTED, started), (PENDING_OLDEST, from), (PENDING_NEWEST, window.map(|window| window.to))]
    {
        keys.insert(key.to_owned(), at.map(text).unwrap_or_default().into());
    }
    let (oldest, newest) = standing.bounds;
    let known = [(SUCCESSFUL_STARTED, standing.watermark), (OLDEST, oldest), (NEWEST, newest)];
    let version = (VERSION, standing.connector_version.clone());
    for (key, value) in known.map(|(key, at)| (key, at.map(text))).into_iter().chain([version]) {
        match value {
            Some(value) => drop(keys.insert(key.to_owned(), value.into())),
            // A key that is not known here keeps its value.
            None => drop(keys.entry(key).or_insert_with(|| "".into())),
        }
    }
    if let Value::Object(to_devrev) = keys.entry(TO_DEVREV).or_insert_with(|| Map::new().into())
        && (started.is_none() || !to_devrev.contains_key(ATTACHMENTS))
    {
        to_devrev.insert(ATTACHMENTS.to_owned(), nothing_left());
    }
    put_sdk_keys(document, keys);
    // 2.x would not start if half of its layout were missing.
    if document.contains(SDK_STATE) && !document.contains(CONNECTOR_STATE) {
        document.set(CONNECTOR_STATE, &Map::new());
    }
    Ok(())
}

fn nothing_left() -> Value {
    json!({ "artifactIds": [], "lastProcessed": 0, "lastProcessedAttachmentsIdsList": [] })
}

/// Empties the SDK's keys about attachments.
///
/// # Errors
/// `WorkerState`, naming the first invalid one.
pub(crate) fn forget_attachments(document: &mut Document, what: &str) -> Result<()> {
    SdkState::read(document, what)?;
    let Some((_, mut keys)) = sdk_keys(document, what)? else { return Ok(()) };
    let metadata = keys.get_mut(TO_DEVREV).and_then(|to_devrev| to_devrev.get_mut(ATTACHMENTS));
    let Some(metadata) = metadata else { return Ok(()) };
    *metadata = nothing_left();
    put_sdk_keys(document, keys);
    Ok(())
}

/// Empties the SDK's keys about what finished runs have extracted.
///
/// # Errors
/// `WorkerState` if they cannot be read.
pub(crate) fn forget_standing(document: &mut Document, what: &str) -> Result<()> {
    let Some((_, mut keys)) = sdk_keys(document, what)? else { return Ok(()) };
    for key in [SUCCESSFUL_STARTED, OLDEST, NEWEST] {
        if let Some(value) = keys.get_mut(key) {
            *value = "".into();
        }
    }
    put_sdk_keys(document, keys);
    Ok(())
}

/// Removes the SDK's keys, in either layout.
pub(crate) fn remove(document: &mut Document) {
    document.retain(|name| name.is_none_or(|name| name != SDK_STATE && !KEYS.contains(&name)));
}

/// Moves a checkpoint of ours, which 2.x took for a key of the connector, back to its place. Returns whether there
/// was one.
pub(crate) fn lift(document: &mut Document) -> bool {
    if !document.contains(SDK_STATE) {
        return false;
    }
    let own = document.get(CONNECTOR_STATE).map(RawValue::get).unwrap_or_default();
    let Ok(mut own) = Document::read(Some(own), CONNECTOR_STATE) else { return false };
    let Some(ours) = own.remove(CHECKPOINT_KEY) else { return false };
    document.set(CONNECTOR_STATE, &own);
    if !document.contains(CHECKPOINT_KEY) {
        document.set(CHECKPOINT_KEY, &ours);
    }
    true
}

/// The connector's own keys: all that are neither the SDK's nor ours. `None` if there are none. Unpaired
/// surrogates in them are replaced.
///
/// # Errors
/// `WorkerState` if they are not JSON.
pub(crate) fn connector_state(mut document: Document, what: &str) -> Result<Option<Value>> {
    let raw = if document.contains(SDK_STATE) {
        document.remove(CONNECTOR_STATE)
    } else {
        document.remove(CHECKPOINT_KEY);
        remove(&mut document);
        if document.is_empty() { None } else { RawValue::from_string(document.to_text()).ok() }
    };
    let value = raw.map(|raw| lossy_value(raw.get())).transpose();
    value.map_err(|error| Error::WorkerState {
        what: format!("the connector's own keys in {what}"),
        reason: error.to_string(),
    })
}

/// Replaces all of the connector's own keys; `json` is an object.
pub(crate) fn write_connector_state(document: &mut Document, json: &str) {
    let Ok(own) = Document::read(Some(json), CONNECTOR_STATE) else { return };
    if document.contains(SDK_STATE) {
        document.set(CONNECTOR_STATE, &own);
        return;
    }
    remove_connector_state(document);
    document.extend(own);
}

/// Removes the connector's own keys.
pub(crate) fn remove_connector_state(document: &mut Document) {
    if document.contains(SDK_STATE) {
        document.remove(CONNECTOR_STATE);
    } else {
        document.retain(|name| name.is_some_and(is_reserved));
    }
}

/// Whether a key of the worker state is not the connector's.
fn is_reserved(name: &str) -> bool {
    KEYS.contains(&name) || [SDK_STATE, CONNECTOR_STATE, CHECKPOINT_KEY].contains(&name)
}

/// Validates what an extractor sets as the connector's own keys: an object without a key that is ours or the SDK's.
///
/// # Errors
/// `Invalid`, naming the key.
pub(crate) fn check_connector_state(json: &str) -> Result<()> {
    let invalid = |reason: String| Error::Invalid { what: "the connector's own state".to_owned(), reason };
    let own: Value = serde_json::from_str(json).map_err(|error| invalid(error.to_string()))?;
    let Value::Object(own) = own else {
        return Err(invalid(format!("it must be an object, not {}", kind_of(&own))));
    };
    match own.keys().find(|name| is_reserved(name)) {
        Some(name) => Err(invalid(format!("the key {name} is reserved"))),
        None => Ok(()),
    }
}

/// A time, as the SDK writes it.
fn text(at: Micros) -> String {
    at.to_time().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The keys of the SDK.
struct Keys<'a> {
    /// What errors call the document.
    what: &'a str,
    prefix: &'static str,
    keys: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn unexpected(&self, key: &str, expected: &str, found: &Value) -> Error {
        unexpected(self.what, &self.path(key), expected, found)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(self.unexpected(key, "a string", other)),
        }
    }

    fn moment(&self, key: &str) -> Result<Option<Micros>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let moment = DateTime::parse_from_rfc3339(text).map_err(|_| Error::WorkerState {
            what: format!("{} in {}", self.path(key), self.what),
            reason: "it must be a time such as 2026-01-02T12:00:00.000Z, or empty".to_owned(),
        })?;
        Ok(Some(Micros::from_time(moment.to_utc())))
    }

    fn attachments(&self) -> Result<SdkAttachments> {
        let mut path = TO_DEVREV.to_owned();
        let Some(to_devrev) = self.part(self.keys.get(TO_DEVREV), &path)? else {
            return Ok(SdkAttachments::default());
        };
        path = format!("{path}.{ATTACHMENTS}");
        let Some(metadata) = self.part(to_devrev.get(ATTACHMENTS), &path)? else {
            return Ok(SdkAttachments::default());
        };
        let list = |key: &str| match metadata.get(key) {
            None | Some(Value::Null) => Ok([].as_slice()),
            Some(Value::Array(list)) => Ok(list.as_slice()),
            Some(other) => Err(self.unexpected(&format!("{path}.{key}"), "a list", other)),
        };
        let artifact_ids = list("artifactIds")?.iter().map(|id| match id {
            Value::String(id) => match ArtifactId::new(id) {
                Ok(id) => Ok(id.to_string()),
                Err(error) => Err(Error::WorkerState {
                    what: format!("{} in {}", self.path(&format!("{path}.artifactIds")), self.what),
                    reason: error.to_string(),
                }),
            },
            other => Err(self.unexpected(&format!("{path}.artifactIds"), "a list of strings", other)),
        });
        let last_processed = match metadata.get("lastProcessed") {
            None | Some(Value::Null) => 0,
            Some(number) => number.as_u64().ok_or_else(|| {
                self.unexpected(&format!("{path}.lastProcessed"), "a whole number from 0 on", number)
            })?,
        };
        let key = "lastProcessedAttachmentsIdsList";
        let (mut processed, mut failed) = (BTreeSet::new(), BTreeSet::new());
        for entry in list(key)? {
            // SDK versions that did not distinguish parents kept only ids; of an attachment without a parent, only
            // the id is kept.
            let id = id_text(entry).or_else(|| entry.get("id").and_then(id_text));
            let parent = match entry.get("parent_id") {
                None | Some(Value::Null) => Some(String::new()),
                Some(parent) => id_text(parent),
            };
            let (Some(id), Some(parent)) = (id, parent) else {
                let expected = "a list of objects with id and parent_id";
                return Err(self.unexpected(&format!("{path}.{key}"), expected, entry));
            };
            let one = (id, parent);
            let set =
                if entry.get("status") == Some(&json!("failed")) { &mut failed } else { &mut processed };
            set.insert(one);
        }
        Ok(SdkAttachments {
            artifact_ids: artifact_ids.collect::<Result<_>>()?,
            last_processed,
            processed,
            failed,
        })
    }

    fn part(&self, value: Option<&'a Value>, path: &str) -> Result<Option<&'a Map<String, Value>>> {
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(part)) => Ok(Some(part)),
            Some(other) => Err(self.unexpected(path, "an object", other)),
        }
    }
}

/// What is wrong with a key. Its value is not shown, because it may be anything.
fn unexpected(what: &str, path: &str, expected: &str, found: &Value) -> Error {
    Error::WorkerState {
        what: format!("{path} in {what}"),
        reason: format!("it must be {expected}, but it is or contains {}", kind_of(found)),
    }
}

/// The item types that are out of the platform's scope.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    left_out: BTreeSet<String>,
}

impl Scope {
    /// Reads the scope: an object by item type, each an object whose `extract` is `true`, `false` or missing. Without
    /// a text, or if a type is not listed, it is extracted.
    ///
    /// # Errors
    /// `Invalid`, naming the invalid value.
    pub(crate) fn read(text: Option<&str>, sync_unit: &str) -> Result<Self> {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(Self::default()) };
        let what = |of: &str| format!("{of} in the extraction scope (objects) of {sync_unit}");
        let invalid = |of: &str, reason: &str| Error::Invalid { what: what(of), reason: reason.to_owned() };
        let whole: Value = serde_json::from_str(text).map_err(|error| Error::Invalid {
            what: what("the text"),
            reason: format!("it is not JSON: {error}"),
        })?;
        let types = match whole {
            Value::Null => return Ok(Self::default()),
            Value::Object(types) => types,
            _ => return Err(invalid("the text", "it must be an object by item type")),
        };
        let mut left_out = BTreeSet::new();
        for (name, asked) in types {
            let item_type = ItemType::new(name)?.to_string();
            let Value::Object(asked) = asked else {
                return Err(invalid(&item_type, "it must be an object, such as {\"extract\": false}"));
            };
            match asked.get("extract") {
                None | Some(Value::Null | Value::Bool(true)) => {}
                Some(Value::Bool(false)) => drop(left_out.insert(item_type)),
                Some(_) => return Err(invalid(&format!("{item_type}.extract"), "it must be true or false")),
            }
        }
        let bytes: usize = left_out.iter().map(|name| name.len() + 3).sum();
        if bytes > VALUE_BYTES_MAX {
            return Err(Error::TooLarge {
                what: what(&format!("a list of {} item types that are left out", left_out.len())),
                found: bytes as u64,
                limit: VALUE_BYTES_MAX as u64,
                unit: "bytes",
            });
        }
        Ok(Self { left_out })
    }

    /// Whether an item type is in the scope.
    pub(crate) fn extracts(&self, item_type: &str) -> bool {
        !self.left_out.contains(item_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RunId;
    use crate::store::{Accepted, Store};

    fn document(json: &Value) -> Document {
        Document::read(Some(&json.to_string()), "the worker state of unit").unwrap()
    }

    fn event(phase: Phase, step: Step) -> Incoming {
        let run_id = Some(RunId::new("run").unwrap());
        Incoming { identity: format!("{phase}/{step:?}"), has_ids: true, run_id, phase, step }
    }

    const NOW: Micros = Micros(1_800_000_000_000_000);

    fn left() -> Value {
        json!({
            "lastSyncStarted": "2026-01-02T11:00:00Z",
            "toDevRev": { "attachmentsMetadata": {
                "artifactIds": ["one", "two"],
                "lastProcessed": 7,
                "lastProcessedAttachmentsIdsList": ["old", { "id": "a", "parent_id": "p", "status": "failed" }],
            }},
        })
    }

    #[test]
    fn what_was_left_of_the_attachments_is_kept_until_the_run_is_over() {
        let sdk = SdkState::read(&document(&left()), "unit").unwrap().unwrap();
        let expected = SdkAttachments {
            artifact_ids: vec!["one".to_owned(), "two".to_owned()],
            last_processed: 7,
            processed: [("old".to_owned(), String::new())].into(),
            failed: [("a".to_owned(), "p".to_owned())].into(),
        };
        for (phase, step) in [
            (Phase::Data, Step::Continue),
            (Phase::Attachments, Step::Start),
            (Phase::Attachments, Step::Continue),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("state.redb");
            let unit = Store::open(&path).unwrap().sync_unit("unit").unwrap();
            let incoming = event(phase, step);
            let inherited = sdk.inherited(&incoming, NOW, false);
            drop(unit.accept(&incoming, false, Some(&inherited)).unwrap());
            drop(unit);
            // In another life, and through a checkpoint.
            let unit = Store::open(&path).unwrap().sync_unit("unit").unwrap();
            let Accepted::Work(run) = unit.accept(&incoming, false, None).unwrap() else {
                panic!("{phase} {step:?} is not worked on")
            };
            assert_eq!(run.sdk_attachments().unwrap().as_ref(), Some(&expected));
            let checkpoint = run.checkpoint("token", run.position().unwrap().as_ref(), u64::MAX).unwrap();
            unit.restore(&checkpoint, &[]).unwrap();
            let Accepted::Work(run) = unit.accept(&incoming, false, None).unwrap() else {
                panic!("{phase} {step:?} is not worked on")
            };
            assert_eq!(run.sdk_attachments().unwrap().as_ref(), Some(&expected));
            assert!(unit.abandon().unwrap());
            assert_eq!(unit.begin().unwrap().sdk_attachments().unwrap(), None);
            let inherited = unit.accept(&event(phase, step), false, Some(&inherited));
            assert!(inherited.is_err() || unit.watermark().unwrap().is_none(), "a unit inherits once");
        }
        // A data START fetches everything in its window again, so no attachments are left to do.
        assert!(sdk.inherited(&event(Phase::Data, Step::Start), NOW, false).run.unwrap().note.is_none());
        assert!(sdk.inherited(&event(Phase::Metadata, Step::Start), NOW, false).run.is_none());
    }

    #[test]
    fn a_line_of_the_sdk_is_read_as_one_of_ours_or_costs_its_attachment() {
        let left = SdkState::read(&document(&left()), "unit").unwrap().unwrap().attachments;
        let numbers = r#"{"id":7,"url":"u","file_name":"f","parent_id":8.0,"author_id":-1,"grand_parent_id":1e3,"more":[1]}"#;
        let texts = r#"{"id":"7","url":"u","file_name":"f","parent_id":"8","author_id":"-1","grand_parent_id":"1000","more":[1]}"#;
        assert_eq!(left.judge(0, 7, numbers), InheritedLine::Queued(texts.to_owned()));
        let line = |id: &str, parent: &str| {
            json!({ "id": id, "url": "", "file_name": "f", "parent_id": parent }).to_string()
        };
        assert_eq!(
            left.judge(0, 6, &line("x", "y")),
            InheritedLine::Settled,
            "before the place it had come to"
        );
        assert_eq!(left.judge(1, 6, &line("x", "y")), InheritedLine::Queued(line("x", "y")));
        assert_eq!(left.judge(1, 9, &line("old", "any")), InheritedLine::Settled);
        for (place, at) in [(0, 0), (0, 9), (1, 0)] {
            let failed = left.judge(place, at, &line("a", "p"));
            assert!(matches!(failed, InheritedLine::Failed { json, .. } if json == line("a", "p")));
        }
        // The SDK has rounded ids. An unpaired surrogate does not prevent the upload.
        let mut rounded = left.clone();
        rounded.processed.insert(("9007199254740992".to_owned(), "1e+21".to_owned()));
        let line = r#"{"id":9007199254740993,"url":"","file_name":"f","parent_id":1e21}"#;
        assert_eq!(rounded.judge(1, 9, line), InheritedLine::Settled);
        let half = r#"{"id":"h","url":"u","file_name":"cut \ud83d.png","parent_id":"p"}"#;
        let whole = "{\"id\":\"h\",\"url\":\"u\",\"file_name\":\"cut \u{fffd}.png\",\"parent_id\":\"p\"}";
        assert_eq!(left.judge(0, 7, half), InheritedLine::Queued(whole.to_owned()));
        // An attachment without a parent is invalid, but the SDK uploaded it.
        assert_eq!(left.judge(1, 9, r#"{"id":"old","url":"","file_name":"f"}"#), InheritedLine::Settled);
        for (line, id, parent, says) in [
            ("{", "(line 8 of artifact 2)", "(unknown)", "cannot be read"),
            ("[1]", "(line 8 of artifact 2)", "(unknown)", "cannot be read"),
            (r#"{"id":3,"parent_id":"p","file_name":"f"}"#, "3", "p", "`url`"),
            (
                r#"{"id":"","url":"","file_name":"f","parent_id":{}}"#,
                "(line 8 of artifact 2)",
                "(unknown)",
                "`id`",
            ),
        ] {
            let InheritedLine::Failed { json, reason } = left.judge(1, 7, line) else { panic!("{line}") };
            let listed = Attachment::from_line(&json).unwrap();
            assert_eq!((listed.id.as_str(), listed.parent_id.as_str()), (id, parent));
            assert!(reason.contains(says), "{reason}");
        }
    }

    #[test]
    fn a_number_is_written_as_javascript_writes_it() {
        // As `String(number)` gives them in Node.js.
        for (number, text) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("7", "7"),
            ("8.0", "8"),
            ("-1", "-1"),
            ("1e3", "1000"),
            ("0.1", "0.1"),
            ("123.456", "123.456"),
            ("-123.456", "-123.456"),
            ("9007199254740993", "9007199254740992"),
            ("-9007199254740993", "-9007199254740992"),
            ("9007199254740995", "9007199254740996"),
            ("18446744073709551615", "18446744073709552000"),
            ("123456789012345678901", "123456789012345680000"),
            ("1e20", "100000000000000000000"),
            ("999999999999999900000", "999999999999999900000"),
            ("1e21", "1e+21"),
            ("1000000000000000000000", "1e+21"),
            ("-1.5e21", "-1.5e+21"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("5e-324", "5e-324"),
            ("0.000001", "0.000001"),
            ("0.00000123", "0.00000123"),
            ("1e-7", "1e-7"),
            ("-1.25e-7", "-1.25e-7"),
        ] {
            let value: Value = serde_json::from_str(number).unwrap();
            assert_eq!(id_text(&value).as_deref(), Some(text), "{number}");
        }
    }

    #[test]
    fn a_document_without_the_keys_of_the_sdk_is_none_of_its_states() {
        for json in [json!({}), json!({ "page": 3 }), json!({ "connectorState": { "page": 3 } })] {
            assert_eq!(SdkState::read(&document(&json), "unit").unwrap(), None);
        }
        for key in KEYS {
            let state = document(&json!({ key: null }));
            assert!(SdkState::read(&state, "unit").unwrap().is_some(), "{key}");
        }
    }

    #[test]
    fn the_connectors_own_keys_are_all_but_those_of_others() {
        let own = |state: &Value| connector_state(document(state), "the state").unwrap();
        let mut flat = left();
        assert_eq!(own(&flat), None);
        flat["highwater"] = json!({});
        flat["b"] = json!(1);
        flat["a"] = json!(2);
        assert_eq!(own(&flat).unwrap().to_string(), r#"{"b":1,"a":2}"#);
        assert_eq!(own(&json!({ "connectorState": 7, "sdkState": {}, "highwater": 1 })), Some(json!(7)));
        // An unpaired surrogate in them does not matter.
        let half = r#"{"lastSyncStarted":"","a":"\ud83d","\ud83d":1}"#;
        let half = Document::read(Some(half), "the state").unwrap();
        let own = connector_state(half, "the state").unwrap().unwrap();
        assert_eq!(own, json!({ "a": "\u{fffd}", "\u{fffd}": 1 }));
    }

    #[test]
    fn a_window_that_is_half_known_is_that_of_the_run() {
        let window = |from: &str, to: &str| {
            let mut state = left();
            state[PENDING_OLDEST] = from.into();
            state[PENDING_NEWEST] = to.into();
            SdkState::read(&document(&state), "unit").unwrap().unwrap().window()
        };
        let micros = |text: &str| Micros::from_time(text.parse().unwrap());
        let (early, started) = ("2026-01-01T00:00:00Z", "2026-01-02T11:00:00Z");
        assert_eq!(window("", ""), None);
        let from = Some(micros(early));
        assert_eq!(window(early, ""), Some(WindowRow { from, to: micros(started) }));
        assert_eq!(window("", early), Some(WindowRow { from: None, to: micros(early) }));
        assert_eq!(window("2026-01-03T00:00:00Z", ""), None, "it would end before it starts");
    }

    #[test]
    fn a_scope_leaves_out_what_it_says_and_nothing_else() {
        for none in [None, Some(""), Some("  "), Some("null"), Some("{}")] {
            assert!(Scope::read(none, "unit").unwrap().extracts("issues"));
        }
        let scope = r#"{"a":{"extract":false,"more":1},"b":{"extract":true},"c":{},"d":{"extract":null}}"#;
        let scope = Scope::read(Some(scope), "unit").unwrap();
        assert_eq!(
            ["a", "b", "c", "d", "e"].map(|name| scope.extracts(name)),
            [false, true, true, true, true]
        );
    }
}
