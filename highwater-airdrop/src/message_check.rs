//! The address of messages, and the checks of a message.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};

use flate2::read::MultiGzDecoder;
use highwater::ArtifactId;
use highwater::airdrop::{EventType, OutcomeKind, Platform as _, SealedMessage, Spelling};
use highwater::limits::MESSAGE_BYTES_MAX;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Api, Exchange, artifact_id, failed};
use crate::http::Answer;
use crate::local::UNKNOWN_EVENT;

/// The item type of artifacts about uploaded attachments.
pub(crate) const UPLOADED: &str = "ssor_attachment";
/// Item types that are announced without being confirmed.
const UNCONFIRMED: &str = "external_sync_units";

impl Api {
    pub(crate) fn message(&self, exchange: &mut Exchange<'_, '_>, _: &str) -> Result<Answer, Answer> {
        let bytes = exchange.json_bytes(MESSAGE_BYTES_MAX as u64, "the message")?;
        let refused = |reason: String| Answer::refused(400, reason);
        let body = String::from_utf8(bytes).map_err(|_| refused("the message is not UTF-8".to_owned()))?;
        let message: Value = serde_json::from_str(&body)
            .map_err(|error| refused(format!("the message is not JSON: {error}")))?;
        look(exchange, &message);
        let request_id = exchange.seen.request_id.clone().ok_or_else(|| {
            refused("event_context.request_id is missing: the message echoes event_context whole".to_owned())
        })?;
        let event_type =
            exchange.seen.event_type.clone().ok_or_else(|| refused("event_type is missing".to_owned()))?;
        self.check_echo(exchange, &request_id, message.get("event_context").unwrap_or(&Value::Null))?;
        check_shape(exchange, &event_type, &message)?;
        let artifacts = message.pointer("/event_data/artifacts").and_then(Value::as_array);
        let artifacts = artifacts.map_or(&[][..], Vec::as_slice);
        self.check_artifacts(exchange, &event_type, artifacts)?;
        self.check_attachments(exchange, artifacts)?;
        self.keep(exchange, &request_id, &event_type, body)?;
        let (named, records) = (exchange.seen.artifacts.len(), exchange.seen.records);
        self.note_taken(format!("{event_type}, {named} artifacts of {records} records"));
        Ok(Answer::json(200, &json!({})))
    }

    /// Stores a message. The first message that answers an event gets the event's request id as its key. If the same
    /// bytes are sent again, they are the same message if they have an `Idempotency-Key` or the server is strict.
    /// Otherwise nothing distinguishes a repeated message from a second one, and it is stored as a second one.
    fn keep(
        &self,
        exchange: &mut Exchange<'_, '_>,
        request_id: &str,
        event_type: &str,
        body: String,
    ) -> Result<(), Answer> {
        let message = SealedMessage { key: request_id.to_owned(), event_type: event_type.to_owned(), body };
        if exchange.is_strict() {
            return self.local.send(&message).map_err(failed);
        }
        let has_key = exchange.request.header("Idempotency-Key").is_some_and(|key| !key.is_empty());
        match self.local.is_kept(&message).map_err(|error| Answer::refused(503, error.to_string()))? {
            None => return self.local.keep_message(&message).map_err(failed),
            Some(true) if has_key => return Ok(()),
            Some(true) => {
                let text = "the same message came twice, and without an Idempotency-Key nothing says that it is the \
                            same: what it names is announced twice";
                exchange.lint("message-twice", 409, text)?;
            }
            Some(false) => {
                let text = format!("the event {request_id} has another answer already");
                exchange.lint("answered-twice", 409, text)?;
            }
        }
        self.local.keep_message_beside(&message).map_err(failed)
    }

    /// Compares the context of a message with that of its event, if the event is known: every field of the event must
    /// be there, unchanged. Fields that a worker adds are accepted.
    fn check_echo(
        &self,
        exchange: &mut Exchange<'_, '_>,
        request_id: &str,
        echoed: &Value,
    ) -> Result<(), Answer> {
        let Some(given) = self.given(request_id) else { return Ok(()) };
        let changed =
            given.as_object().into_iter().flatten().find(|(field, value)| echoed.get(field) != Some(value));
        let Some((field, value)) = changed else { return Ok(()) };
        let found = match echoed.get(field) {
            Some(found) => format!("is {found}, and was {value} in the event"),
            None => "is missing".to_owned(),
        };
        let text = format!("event_context.{field} {found}: the message echoes event_context whole");
        exchange.lint("context-echo", 400, text)
    }

    /// Checks that the artifacts of a message are uploaded, and confirmed.
    fn check_artifacts(
        &self,
        exchange: &mut Exchange<'_, '_>,
        event_type: &str,
        artifacts: &[Value],
    ) -> Result<(), Answer> {
        if artifacts.is_empty() {
            return Ok(());
        }
        let confirmed = self.confirmed()?;
        let of_units = event_type.contains("SYNC_UNIT");
        for artifact in artifacts {
            let text = artifact.get("id").and_then(Value::as_str).unwrap_or_default();
            let known = ArtifactId::new(text).ok().filter(|id| self.local.artifact_path(id).is_ok());
            let Some(id) = known else {
                let text = format!("the message names artifact {text:?}, which was never uploaded");
                exchange.lint("not-uploaded", 400, text)?;
                continue;
            };
            let is_unit = artifact.get("item_type").is_some_and(|is| is == UNCONFIRMED);
            if !of_units && !is_unit && !confirmed.contains(&id) {
                let text = format!("the message names artifact {id}, which is not confirmed");
                exchange.lint("not-confirmed", 400, text)?;
            }
        }
        Ok(())
    }

    fn confirmed(&self) -> Result<HashSet<ArtifactId>, Answer> {
        let confirmed = self.local.confirmed().map_err(|error| Answer::refused(503, error.to_string()))?;
        Ok(confirmed.into_iter().collect())
    }

    /// Checks the lines about attachments in the artifacts of a message. Each line must be complete, and must name a
    /// confirmed upload that no other line of the message names.
    fn check_attachments(&self, exchange: &mut Exchange<'_, '_>, artifacts: &[Value]) -> Result<(), Answer> {
        let of_attachments: Vec<&Value> = artifacts
            .iter()
            .filter(|artifact| artifact.get("item_type").is_some_and(|is| is == UPLOADED))
            .collect();
        if of_attachments.is_empty() {
            return Ok(());
        }
        let (confirmed, mut named) = (self.confirmed()?, HashSet::new());
        for artifact in of_attachments {
            let Ok(id) = artifact_id(artifact.get("id").and_then(Value::as_str).unwrap_or_default()) else {
                continue;
            };
            // A missing artifact was noted before.
            let Ok((file, _)) = self.artifact(&id) else { continue };
            let mut lines = 0_u64;
            for line in BufReader::new(MultiGzDecoder::new(file)).lines() {
                lines += 1;
                let wrong = |reason: String| format!("artifact {id}, line {lines}: {reason}");
                let checked = line
                    .map_err(|error| format!("it is not gzipped text: {error}"))
                    .and_then(|line| {
                        serde_json::from_str::<UploadedAttachment>(&line)
                            .map_err(|error| format!("it does not name an upload: {error}"))
                    })
                    .and_then(|line| line.check());
                let text = match checked {
                    Ok(upload) if !confirmed.contains(&upload) => {
                        format!("it names {upload}, which is not uploaded and confirmed as an attachment")
                    }
                    Ok(upload) if !named.insert(upload.clone()) => {
                        "it names an upload that another line names".to_owned()
                    }
                    Ok(_) => continue,
                    Err(reason) => reason,
                };
                exchange.lint("attachment-line", 400, wrong(text))?;
                break;
            }
            if artifact.get("item_count").and_then(Value::as_u64) != Some(lines) {
                let text = format!("artifact {id} has {lines} lines, and its item_count disagrees");
                exchange.lint("item-count", 400, text)?;
            }
        }
        Ok(())
    }
}

/// Checks a message that is not stored.
pub(crate) fn hear_message(exchange: &mut Exchange<'_, '_>) {
    if let Ok(bytes) = exchange.request.body.read_all(MESSAGE_BYTES_MAX as u64, "the message")
        && let Ok(message) = serde_json::from_slice::<Value>(&bytes)
    {
        look(exchange, &message);
    }
}

/// Notes the parts of a message.
fn look(exchange: &mut Exchange<'_, '_>, message: &Value) {
    let text = |pointer: &str| {
        let text = message.pointer(pointer).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let artifacts = message.pointer("/event_data/artifacts").and_then(Value::as_array);
    let artifacts = artifacts.map_or(&[][..], Vec::as_slice);
    let seen = &mut exchange.seen;
    seen.request_id = text("/event_context/request_id");
    seen.event_type = text("/event_type");
    seen.artifacts =
        artifacts.iter().filter_map(|artifact| Some(artifact.get("id")?.as_str()?.to_owned())).collect();
    let counts = artifacts.iter().filter_map(|artifact| artifact.get("item_count")?.as_u64());
    seen.records = counts.fold(0, u64::saturating_add);
}

/// Checks the parts that a message must have.
fn check_shape(exchange: &mut Exchange<'_, '_>, event_type: &str, message: &Value) -> Result<(), Answer> {
    let data = message.get("event_data");
    let field = |name: &str| data.and_then(|data| data.get(name)).unwrap_or(&Value::Null);
    let kind = answers().into_iter().find(|(name, _)| *name == event_type).map(|(_, kind)| kind);
    match kind {
        None if event_type == UNKNOWN_EVENT => {}
        None => {
            exchange.lint("event-type", 400, format!("{event_type:?} is not the event type of a message"))?;
        }
        Some(OutcomeKind::Delay) if !field("delay").is_u64() => {
            let text = format!("event_data.delay must be whole seconds, not {}", field("delay"));
            exchange.lint("delay", 400, text)?;
        }
        Some(OutcomeKind::Error) if field("error").get("message").and_then(Value::as_str).is_none() => {
            let text = "event_data.error.message is missing: it says what went wrong";
            exchange.lint("error-message", 400, text)?;
        }
        Some(_) => {}
    }
    match field("artifacts") {
        Value::Null => {}
        Value::Array(artifacts) => {
            for artifact in artifacts {
                for name in ["id", "item_type"] {
                    if artifact.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                        let text = format!("an artifact in event_data.artifacts has no {name}: {artifact}");
                        exchange.lint("artifact-fields", 400, text)?;
                    }
                }
                if !artifact.get("item_count").is_some_and(Value::is_u64) {
                    let text = format!("an artifact in event_data.artifacts has no item_count: {artifact}");
                    exchange.lint("artifact-fields", 400, text)?;
                }
            }
        }
        other => {
            let text = format!("event_data.artifacts must be a list, not {other}");
            exchange.lint("artifact-fields", 400, text)?;
        }
    }
    Ok(())
}

/// A line of an artifact about an uploaded attachment.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadedAttachment {
    id: UploadedId,
    parent_id: External,
    #[serde(default)]
    actor_id: Option<External>,
    #[serde(default, rename = "inline")]
    _inline: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadedId {
    devrev: String,
    external: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct External {
    external: String,
}

impl UploadedAttachment {
    /// The artifact with its bytes.
    fn check(&self) -> Result<ArtifactId, String> {
        let Self { id, parent_id, actor_id, .. } = self;
        let actor_id = actor_id.as_ref().map(|actor| &actor.external);
        for (name, value) in [
            ("id.external", Some(&id.external)),
            ("parent_id.external", Some(&parent_id.external)),
            ("actor_id.external", actor_id),
        ] {
            if value.is_some_and(String::is_empty) {
                return Err(format!("{name} is empty"));
            }
        }
        ArtifactId::new(&id.devrev).map_err(|error| format!("id.devrev: {error}"))
    }
}

/// The names of all messages, in both spellings, with their meaning.
fn answers() -> Vec<(&'static str, OutcomeKind)> {
    let event_types = [
        "EXTRACTION_EXTERNAL_SYNC_UNITS_START",
        "EXTRACTION_METADATA_START",
        "EXTRACTION_DATA_START",
        "EXTRACTION_ATTACHMENTS_START",
        "EXTRACTION_DATA_DELETE",
        "EXTRACTION_ATTACHMENTS_DELETE",
        "UNKNOWN",
    ];
    let kinds = [OutcomeKind::Done, OutcomeKind::Progress, OutcomeKind::Delay, OutcomeKind::Error];
    let mut all = Vec::new();
    for (event_type, _) in event_types.map(EventType::parse) {
        for kind in kinds {
            for spelling in [Spelling::Seed, Spelling::Newer] {
                // An event that cannot have this answer has no name for it.
                all.extend(event_type.answer(kind, spelling).map(|name| (name, kind)));
            }
        }
    }
    all
}
