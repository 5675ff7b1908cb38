//! The events of a sync as the platform sends them, the spelling of their answers, and the settings for both.

use highwater::Phase;
use serde_json::{Map, Value, json};

/// The SDK's answer to an event that it does not know.
pub(crate) const UNKNOWN_EVENT: &str = "UNKNOWN_EVENT_TYPE";
/// Invocations of one run, by default.
const INVOCATIONS_MAX: u64 = 100_000;

/// The settings of a sync's events: the sync unit, the phases, the spelling of event types, the context.
///
/// ```
/// use highwater::airdrop::{Platform, SealedMessage};
/// use highwater::{Phase, SystemClock};
/// use highwater_airdrop::{Local, SyncSettings};
///
/// # let dir = tempfile::tempdir()?;
/// let airdrop = Local::open(dir.path())?;
/// let settings = SyncSettings::new("acme/tickets").newer_names(true);
/// // A worker that only answers DONE.
/// let worker = |event: &str| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///     let event: serde_json::Value = serde_json::from_str(event)?;
///     let answer = match event["payload"]["event_type"].as_str() {
///         Some("START_EXTRACTING_EXTERNAL_SYNC_UNITS") => "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE",
///         Some("START_EXTRACTING_METADATA") => "METADATA_EXTRACTION_DONE",
///         Some("START_EXTRACTING_DATA") => "DATA_EXTRACTION_DONE",
///         _ => "ATTACHMENT_EXTRACTION_DONE",
///     };
///     let context = &event["payload"]["event_context"];
///     airdrop.send(&SealedMessage {
///         key: context["request_id"].to_string(),
///         event_type: answer.into(),
///         body: serde_json::json!({"event_type": answer, "event_context": context}).to_string(),
///     })?;
///     Ok(())
/// };
/// let report = airdrop.sync(&settings, &SystemClock::new(), worker, |_step| {})?;
/// assert!(report.initial);
/// assert_eq!(report.messages, 4);
/// assert_eq!(report.answers[&Phase::Data], "DATA_EXTRACTION_DONE");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SyncSettings {
    pub(super) external_sync_unit_id: String,
    pub(crate) sync_unit_id: String,
    pub(super) newer_names: bool,
    pub(super) strict: bool,
    pub(super) initial: Option<bool>,
    connection_data: Option<Value>,
    pub(super) phases: Vec<Phase>,
    pub(super) error_retries: u64,
    pub(super) invocations_max: u64,
    pub(super) id_seed: Option<String>,
    endpoint: String,
    context: Map<String, Value>,
}

impl SyncSettings {
    /// A sync of the unit with this id in the external system. The platform's own id is the same, unless
    /// [`SyncSettings::sync_unit_id`] sets another.
    pub fn new(external_sync_unit_id: impl Into<String>) -> Self {
        let id = external_sync_unit_id.into();
        Self {
            sync_unit_id: id.clone(),
            external_sync_unit_id: id,
            newer_names: false,
            strict: true,
            initial: None,
            connection_data: None,
            phases: Phase::ALL.to_vec(),
            error_retries: 0,
            invocations_max: INVOCATIONS_MAX,
            id_seed: None,
            endpoint: "https://airdrop.invalid".to_owned(),
            context: Map::new(),
        }
    }

    /// Sets the platform's own id of the sync unit, by which syncs are distinguished.
    #[must_use]
    pub fn sync_unit_id(mut self, id: impl Into<String>) -> Self {
        self.sync_unit_id = id.into();
        self
    }

    /// Sets whether events are spelled the newer way (`START_EXTRACTING_DATA` for `EXTRACTION_DATA_START`).
    #[must_use]
    pub fn newer_names(mut self, newer: bool) -> Self {
        self.newer_names = newer;
        self
    }

    /// Sets whether answers are checked strictly, as they are by default. If not, these are tolerated: a field of the
    /// context that is not echoed, a delay that is not a whole number of seconds, and a second answer. Then the first
    /// answer counts, and an invalid delay counts as zero.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Sets the mode: `INITIAL` if true, else `INCREMENTAL`. By default it is initial until a sync of the unit was
    /// finished.
    #[must_use]
    pub fn initial(mut self, initial: bool) -> Self {
        self.initial = Some(initial);
        self
    }

    /// Sets the event's `connection_data`: the address of the external system, and the key for it.
    #[must_use]
    pub fn connection_data(mut self, data: impl Into<Value>) -> Self {
        self.connection_data = Some(data.into());
        self
    }

    /// Sets whether there is an attachments phase, as there is by default. Without it the sync ends with the data
    /// phase.
    #[must_use]
    pub fn attachments(mut self, attachments: bool) -> Self {
        self.phases.retain(|phase| *phase != Phase::Attachments);
        self.phases.extend(attachments.then_some(Phase::Attachments));
        self
    }

    /// Sets the phases of a sync: all four by default. Their order is fixed. An incremental sync never lists external
    /// sync units.
    #[must_use]
    pub fn phases(mut self, phases: impl IntoIterator<Item = Phase>) -> Self {
        let wanted: Vec<Phase> = phases.into_iter().collect();
        self.phases = Phase::ALL.into_iter().filter(|phase| wanted.contains(phase)).collect();
        self
    }

    /// Sets how often a phase is started again after ERROR, under the same run id. Zero by default: the sync then
    /// fails, and the next one begins a new run.
    #[must_use]
    pub fn error_retries(mut self, retries: u64) -> Self {
        self.error_retries = retries;
        self
    }

    /// Sets the limit on the events of a run: 100,000 by default. It ends a sync whose worker never finishes.
    #[must_use]
    pub fn invocations_max(mut self, invocations: u64) -> Self {
        self.invocations_max = invocations;
        self
    }

    /// Sets a prefix for run and request ids; a number follows it. For tests: without it, ids are UUIDs made from the
    /// time of day and that number. A directory never assigns a number twice, whatever the clock does.
    #[must_use]
    pub fn id_seed(mut self, seed: impl Into<String>) -> Self {
        self.id_seed = Some(seed.into());
        self
    }

    /// Sets the address that the event names for artifacts, messages and worker state, without a slash at its end.
    /// The default leads nowhere, for a worker that uses the [`Local`](super::Local) itself.
    #[must_use]
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into();
        self
    }

    /// Sets a field of `event_context`, for example `extract_from`. The fields by which the driver identifies its
    /// events (ids, mode and sequence version) cannot be changed.
    #[must_use]
    pub fn context(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.context.insert(field.into(), value.into());
        self
    }
}

#[cfg(feature = "program")]
impl SyncSettings {
    /// The same, with a word in the connection data and the context replaced by another.
    pub(crate) fn told(mut self, word: &str, by: &str) -> Self {
        fn tell(value: &mut Value, word: &str, by: &str) {
            match value {
                Value::String(text) => *text = text.replace(word, by),
                Value::Array(values) => values.iter_mut().for_each(|value| tell(value, word, by)),
                Value::Object(fields) => fields.values_mut().for_each(|value| tell(value, word, by)),
                _ => {}
            }
        }
        self.connection_data.iter_mut().for_each(|value| tell(value, word, by));
        self.context.values_mut().for_each(|value| tell(value, word, by));
        self
    }
}

/// What a message says about its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Progress,
    Delay,
    Error,
}

/// The kind of a message, by its event type in either spelling.
pub(super) fn answer_of(event_type: &str) -> Option<(Phase, Verdict)> {
    for (phase, seed, newer) in [
        (Phase::ExternalSyncUnits, "EXTRACTION_EXTERNAL_SYNC_UNITS_", "EXTERNAL_SYNC_UNIT_EXTRACTION_"),
        (Phase::Metadata, "EXTRACTION_METADATA_", "METADATA_EXTRACTION_"),
        (Phase::Data, "EXTRACTION_DATA_", "DATA_EXTRACTION_"),
        (Phase::Attachments, "EXTRACTION_ATTACHMENTS_", "ATTACHMENT_EXTRACTION_"),
    ] {
        for (prefix, delay) in [(seed, "DELAY"), (newer, "DELAYED")] {
            let verdict = match event_type.strip_prefix(prefix) {
                Some("DONE") => Verdict::Done,
                Some("ERROR") => Verdict::Error,
                Some("PROGRESS") if phase.continues() => Verdict::Progress,
                Some(suffix) if suffix == delay && phase.continues() => Verdict::Delay,
                _ => continue,
            };
            return Some((phase, verdict));
        }
    }
    None
}

pub(super) fn event_type(phase: Phase, newer: bool, goes_on: bool) -> String {
    let step = match (newer, goes_on) {
        (false, false) => "START",
        (false, true) => "CONTINUE",
        (true, false) => "START_EXTRACTING",
        (true, true) => "CONTINUE_EXTRACTING",
    };
    let what = match phase {
        Phase::ExternalSyncUnits => "EXTERNAL_SYNC_UNITS",
        Phase::Metadata => "METADATA",
        Phase::Data => "DATA",
        Phase::Attachments => "ATTACHMENTS",
    };
    if newer { format!("{step}_{what}") } else { format!("EXTRACTION_{what}_{step}") }
}

/// An event as the platform would send it, with placeholders for what a directory lacks: tokens and organisations.
pub(super) fn event_json(
    settings: &SyncSettings,
    (run, initial): (&str, bool),
    (phase, event_type): (Phase, &str),
    request_id: &str,
    sequence: u64,
) -> Value {
    let SyncSettings { external_sync_unit_id, sync_unit_id, endpoint, .. } = settings;
    let don = "don:integration:dvrv-local-1:devo/local";
    let system = format!("{don}:external_system_type/ADAAS:external_system/local-system");
    let version = format!("{don}:snap_in_package/local:snap_in_version/local");
    let mut context = Map::new();
    let mut set = |field: &str, value: Value| {
        context.insert(field.to_owned(), value);
    };
    set("callback_url", format!("{endpoint}/internal/airdrop.external-extractor.message").into());
    set("worker_data_url", format!("{endpoint}/internal/airdrop.external-worker").into());
    set("external_system", system.clone().into());
    set("external_system_id", "local-system".into());
    set("external_system_name", "Local system".into());
    set("external_system_type", "ADaaS".into());
    set("import_slug", "local-import".into());
    set("snap_in_slug", "local-snap-in".into());
    set("snap_in_version_id", version.clone().into());
    set("dev_org", format!("{don}:devo/local").into());
    set("dev_oid", "DEV-local".into());
    set("dev_user", format!("{don}:devu/1").into());
    set("dev_uid", "DEVU-1".into());
    set("sync_tier", "sync_tier_1".into());
    set("initial_sync_scope", "full-history".into());
    set("reset_extract_from", false.into());
    // Before the import there is no sync unit yet.
    if phase != Phase::ExternalSyncUnits {
        set("external_sync_unit", format!("{system}:external_sync_unit/{external_sync_unit_id}").into());
        set("external_sync_unit_id", external_sync_unit_id.clone().into());
        set("external_sync_unit_name", external_sync_unit_id.clone().into());
    }
    for (field, value) in &settings.context {
        set(field, value.clone());
    }
    if phase != Phase::ExternalSyncUnits {
        set("sync_unit", format!("{system}:sync_unit/{sync_unit_id}").into());
        set("sync_unit_id", sync_unit_id.clone().into());
    }
    set("mode", if initial { "INITIAL" } else { "INCREMENTAL" }.into());
    for field in ["run_id", "sync_run_id", "sync_run"] {
        set(field, run.into());
    }
    for field in ["request_id", "request_id_adaas", "uuid"] {
        set(field, request_id.into());
    }
    set("sequence_version", sequence.to_string().into());
    let connection_data = settings.connection_data.clone().unwrap_or_else(|| {
        json!({
            "org_id": "local",
            "org_name": "Local organisation",
            "key": "no-key-is-needed",
            "key_type": "none",
        })
    });
    json!({
        "context": {
            "secrets": { "service_account_token": "no-token-is-needed" },
            "snap_in_id": format!("{don}:snap_in/local"),
            "snap_in_version_id": version,
        },
        "execution_metadata": {
            "devrev_endpoint": endpoint,
            "request_id": request_id,
            "function_name": "extraction",
        },
        "payload": {
            "event_type": event_type,
            "connection_data": connection_data,
            "event_context": context,
            "event_data": {},
        },
        "input_data": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_known_in_both_spellings_and_nothing_else_is() {
        for (text, phase, verdict) in [
            ("EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", Phase::ExternalSyncUnits, Verdict::Done),
            ("EXTERNAL_SYNC_UNIT_EXTRACTION_DONE", Phase::ExternalSyncUnits, Verdict::Done),
            ("EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR", Phase::ExternalSyncUnits, Verdict::Error),
            ("EXTERNAL_SYNC_UNIT_EXTRACTION_ERROR", Phase::ExternalSyncUnits, Verdict::Error),
            ("EXTRACTION_METADATA_DONE", Phase::Metadata, Verdict::Done),
            ("METADATA_EXTRACTION_ERROR", Phase::Metadata, Verdict::Error),
            ("EXTRACTION_DATA_PROGRESS", Phase::Data, Verdict::Progress),
            ("DATA_EXTRACTION_PROGRESS", Phase::Data, Verdict::Progress),
            ("EXTRACTION_DATA_DELAY", Phase::Data, Verdict::Delay),
            ("DATA_EXTRACTION_DELAYED", Phase::Data, Verdict::Delay),
            ("EXTRACTION_ATTACHMENTS_DELAY", Phase::Attachments, Verdict::Delay),
            ("ATTACHMENT_EXTRACTION_DELAYED", Phase::Attachments, Verdict::Delay),
            ("ATTACHMENT_EXTRACTION_DONE", Phase::Attachments, Verdict::Done),
        ] {
            assert_eq!(answer_of(text), Some((phase, verdict)), "{text}");
        }
        for text in [
            "EXTRACTION_METADATA_PROGRESS",
            "EXTRACTION_DATA_DELAYED",
            "DATA_EXTRACTION_DELAY",
            "EXTRACTION_DATA_DELETE_DONE",
            "EXTRACTION_DATA_START",
            "UNKNOWN_EVENT_TYPE",
            "",
        ] {
            assert_eq!(answer_of(text), None, "{text}");
        }
    }

    #[test]
    fn events_are_spelled_as_the_platform_spells_them() {
        let spelled = |newer| {
            let mut all: Vec<String> =
                Phase::ALL.iter().map(|phase| event_type(*phase, newer, false)).collect();
            all.extend([Phase::Data, Phase::Attachments].iter().map(|phase| event_type(*phase, newer, true)));
            all
        };
        assert_eq!(
            spelled(false),
            [
                "EXTRACTION_EXTERNAL_SYNC_UNITS_START",
                "EXTRACTION_METADATA_START",
                "EXTRACTION_DATA_START",
                "EXTRACTION_ATTACHMENTS_START",
                "EXTRACTION_DATA_CONTINUE",
                "EXTRACTION_ATTACHMENTS_CONTINUE",
            ]
        );
        assert_eq!(
            spelled(true),
            [
                "START_EXTRACTING_EXTERNAL_SYNC_UNITS",
                "START_EXTRACTING_METADATA",
                "START_EXTRACTING_DATA",
                "START_EXTRACTING_ATTACHMENTS",
                "CONTINUE_EXTRACTING_DATA",
                "CONTINUE_EXTRACTING_ATTACHMENTS",
            ]
        );
    }
}
