//! The answer to an event: composed from what is confirmed, then sealed, sent, and recorded as accepted or refused.
//!
//! Exactly one message answers an event, and it is sealed before it is sent: if it is sent again, by this life or a
//! later one, it has the same bytes and the same key. A definite refusal undoes the seal, unless an attempt just
//! before it may have been accepted.

use chrono::{DateTime, Utc};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::{info, warn};

use crate::clock::in_words;
use crate::error::{Error, Result};
use crate::model::{MESSAGE_BYTES_SOFT, Phase, RunId, Safeguard};
use crate::record::FindingCounts;
use crate::store::{
    AttachmentCounts, LeftOutCounts, MessageKind, Run, Sealing, StoredMessage, message_key_text,
};

use super::delivery::{Delivery, Halt};
use super::event_type::{OutcomeKind, Spelling};
use super::in_flight::entry;
use super::invocation::{Ending, Invocation, Stop, is_told};
use super::keeper::Keeper;
use super::message::{
    ARTIFACTS_FIELD_BYTES, Answer, AnswerKind, ArtifactEntry, Composed, ERROR_MESSAGE_BYTES_MAX, ErrorCode,
    WorkerMetadata, compose, error_text,
};
use super::platform::SealedMessage;
use super::retry::{GaveUp, attempts_while};
use super::window::Window;

/// The HTTP status of a refusal because of size.
const TOO_LARGE: u16 = 413;

/// How an event was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// What the message says.
    pub kind: OutcomeKind,
    /// The event type of the message. Empty if the event was answered earlier, its message is no longer kept, and
    /// nothing was sent.
    pub event_type: String,
    /// The message as it was sent: JSON on one line. `None` if nothing was sent.
    pub message: Option<String>,
    /// How many artifacts the message announces.
    pub artifacts: u64,
    /// The run, if the event belongs to one.
    pub run: Option<RunId>,
    /// Whether the message had been sealed earlier and was only sent again.
    pub replayed: bool,
    /// The run's attachments, counted by status. The failed ones are listed by
    /// [`SyncUnit::failed_attachments`](crate::SyncUnit::failed_attachments).
    pub attachments: AttachmentCounts,
    /// A watermark that was not used, because it lies in the future: see [`Run::ignored_watermark`].
    pub ignored_watermark: Option<DateTime<Utc>>,
    /// The findings in the run's records so far, and in its metadata: see [`CheckPolicy`](super::CheckPolicy). Findings
    /// in refused pages are not counted.
    pub findings: FindingCounts,
    /// Records that the run has read so far and left out, by the reason.
    pub left_out: LeftOutCounts,
}

impl Outcome {
    /// The text of an ERROR, as its message contains it; `None` for every other message, and if nothing was sent.
    pub fn error_text(&self) -> Option<String> {
        let message: Value = serde_json::from_str(self.message.as_deref()?).ok()?;
        message.pointer("/event_data/error/message")?.as_str().map(str::to_owned)
    }
}

impl From<MessageKind> for OutcomeKind {
    fn from(kind: MessageKind) -> Self {
        match kind {
            MessageKind::Done => Self::Done,
            MessageKind::Progress => Self::Progress,
            MessageKind::Delay => Self::Delay,
            MessageKind::Error => Self::Error,
        }
    }
}

/// What the message contains besides its kind.
#[derive(Debug, Default)]
pub(super) struct MessageDetails {
    /// The last item type extracted.
    pub(super) item_type: Option<String>,
    pub(super) window: Option<Window>,
    /// External sync units, if they go into the message itself.
    pub(super) units: Option<Vec<Box<RawValue>>>,
}

/// The confirmed artifacts that one message can announce.
struct Announced {
    batches: Vec<u64>,
    artifacts: Vec<ArtifactEntry>,
    all: bool,
}

impl Invocation<'_> {
    /// Delivers what was extracted, and answers.
    pub(super) fn conclude(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        mut delivery: Delivery<'_>,
        worked: Result<(), Stop>,
        details: &MessageDetails,
    ) -> Result<Outcome> {
        let mut ending = Stop::ending(worked)?;
        let drained = run.close_open().and_then(|closed| {
            delivery.add(closed);
            delivery.drain()
        });
        if let Err(error) = drained {
            let instead = Stop::ending(Err(error.into()))?;
            if !matches!(ending, Ending::Failed { .. }) {
                ending = instead;
            }
        }
        if !matches!(ending, Ending::Failed { .. }) {
            match delivery.halt() {
                Some(Halt::Failed(reason)) => ending = Ending::failed(reason),
                Some(Halt::AskedToWait(wait)) => ending = Ending::asked_to_wait(*wait),
                None if delivery.left_over() && matches!(ending, Ending::Done) => ending = Ending::Progress,
                None => {}
            }
        }
        if !phase.continues() {
            if self.deadlines.is_stopped() && matches!(ending, Ending::Progress | Ending::Delay { .. }) {
                return Err(self.stopped());
            }
            ending = match ending {
                Ending::Progress => Ending::failed(&format!(
                    "not all of the {phase} could be uploaded in this invocation, and its phase has no CONTINUE"
                )),
                Ending::Delay { seconds, .. } => {
                    let wait = in_words(seconds);
                    Ending::failed(&format!("asked to wait {wait}, and the {phase} phase has no DELAY"))
                }
                other => other,
            };
        }
        self.answer(run, keeper, phase, ending, details)
    }

    /// Seals the message and sends it. Artifacts that do not fit go into the next message: then this one is PROGRESS,
    /// if the phase has it.
    pub(super) fn answer(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        mut ending: Ending,
        details: &MessageDetails,
    ) -> Result<Outcome> {
        loop {
            match self.try_to_answer(run, keeper, phase, ending, details) {
                Ok(outcome) => return Ok(outcome),
                Err(Stop::Ending(instead)) => ending = instead,
                Err(Stop::Error(error)) => return Err(error),
            }
        }
    }

    /// Composes, seals, saves and sends one message. Stops if another message must be sent instead.
    fn try_to_answer(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        mut ending: Ending,
        details: &MessageDetails,
    ) -> Result<Outcome, Stop> {
        let (percent, artifacts_max) = run.progress_and_artifacts_max()?;
        let Announced { batches, artifacts, all } = self.announced(run, artifacts_max)?;
        if !all && phase.continues() && matches!(ending, Ending::Done | Ending::Failed { .. }) {
            ending = Ending::Progress;
        }
        let (kind, delay_seconds, says) = match &ending {
            Ending::Done => (MessageKind::Done, None, AnswerKind::Done),
            Ending::Progress => (MessageKind::Progress, None, AnswerKind::Progress { percent }),
            Ending::Delay { seconds, asked } => {
                (MessageKind::Delay, asked.then_some(*seconds), AnswerKind::Delay { seconds: *seconds })
            }
            Ending::Failed { code, message } => (MessageKind::Error, None, self.error_of(*code, message)),
        };
        let error = match &says {
            AnswerKind::Error { code, message } => Some(error_text(*code, message)),
            _ => None,
        };
        let composed = match self.composed(kind, says, artifacts, details) {
            Ok(composed) => composed,
            Err(error) => return self.answer_instead(error, kind),
        };
        let sent_unsealed = run.breaks(Safeguard::SealBeforeSend);
        if sent_unsealed {
            self.send(&self.unsealed(kind, &composed, batches.len() as u64))?;
        }
        let sealed = run.seal(&Sealing {
            phase,
            kind,
            event_type: composed.event_type.to_owned(),
            batches: &batches,
            body: composed.body,
            finishes: self.finishes(phase),
            delay_seconds,
            error,
        });
        let message = match sealed {
            Ok(message) => message,
            Err(error) => return self.answer_instead(error, kind),
        };
        log_sealed(&message);
        if let Some(keeper) = keeper
            && !run.breaks(Safeguard::SendAfterSave)
            && let Err(error) = keeper.save_sealed(run, kind)
        {
            if is_told(&error) {
                // It was not sent, so an ERROR may replace it.
                run.refused(message.no, None)?;
            }
            return self.answer_instead(error, kind);
        }
        let sent = if sent_unsealed { Sent::Accepted } else { self.send(&message)? };
        match sent {
            Sent::Accepted => Ok(accepted(run, keeper, message, false)?),
            Sent::Refused { status: TOO_LARGE, .. } if batches.len() > 1 => {
                run.refused(message.no, Some(batches.len() as u64 / 2))?;
                Err(Stop::Ending(ending))
            }
            Sent::Refused { status, reason } => {
                take_back(run, keeper, &message, None)?;
                Err(refused(&message, status, &reason).into())
            }
        }
    }

    /// What replaces a message that could not be composed, sealed or saved: too large, a DONE that does not balance,
    /// a worker state that another program damaged in the meantime. It is an ERROR that says so. If the message was an
    /// ERROR already, it is replaced by an ERROR that is not sealed in a run and announces nothing.
    fn answer_instead(&self, error: Error, kind: MessageKind) -> Result<Outcome, Stop> {
        match Stop::told(error) {
            Stop::Ending(ending) if kind == MessageKind::Error => Ok(self.answer_statelessly(ending)?),
            stop => Err(stop),
        }
    }

    /// What the next message announces: the confirmed artifacts, as far as they fit.
    fn announced(&self, run: &Run, artifacts_max: Option<u64>) -> Result<Announced> {
        let mut bytes = self.base_bytes()?;
        let mut batches = Vec::new();
        let mut artifacts = Vec::new();
        let confirmed = run.confirmed()?;
        for (info, artifact) in &confirmed {
            let entry = entry(info, artifact);
            bytes += entry.bytes()?;
            let too_many = artifacts.len() as u64 >= artifacts_max.unwrap_or(u64::MAX);
            // At least one always goes, or none ever would.
            if !artifacts.is_empty() && (bytes > MESSAGE_BYTES_SOFT || too_many) {
                break;
            }
            batches.push(info.seq);
            artifacts.push(entry);
        }
        let all = artifacts.len() == confirmed.len();
        Ok(Announced { batches, artifacts, all })
    }

    fn composed(
        &self,
        kind: MessageKind,
        says: AnswerKind,
        artifacts: Vec<ArtifactEntry>,
        details: &MessageDetails,
    ) -> Result<Composed> {
        let mut answer = Answer::new(says);
        answer.artifacts = artifacts;
        // An ERROR carries no units: they may be why the message was too large.
        if kind != MessageKind::Error {
            answer.external_sync_units.clone_from(&details.units);
        }
        answer.worker = WorkerMetadata {
            item_type: details.item_type.clone(),
            oldest_state: details.window.and_then(|window| window.from),
            newest_state: details.window.map(|window| window.to),
        };
        compose(self.event, self.settings.spelling, &answer)
    }

    /// Sends a message that was sealed earlier.
    pub(super) fn deliver(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        message: StoredMessage,
        replayed: bool,
    ) -> Result<Outcome> {
        match self.send(&message)? {
            Sent::Accepted => accepted(run, keeper, message, replayed),
            Sent::Refused { status, reason } => {
                // Only the newest message can still be undone, and only if it was never accepted.
                if run.is_undelivered(message.no)? {
                    let artifacts_max =
                        (status == TOO_LARGE && message.artifacts > 1).then_some(message.artifacts / 2);
                    take_back(run, keeper, &message, artifacts_max)?;
                }
                Err(refused(&message, status, &reason))
            }
        }
    }

    /// Tries to send a message until it is accepted or refused, or the invocation is over. Before each attempt, the
    /// store's path must still lead to the open file: what another process answers is not answered here too.
    fn send(&self, message: &StoredMessage) -> Result<Sent> {
        let sealed = SealedMessage {
            key: message.key.clone(),
            event_type: message.event_type.clone(),
            body: message.body.clone(),
        };
        let may = || self.store.ensure_in_place();
        match attempts_while(&self.deadlines, self.seed, may, || self.platform.send(&sealed)) {
            Ok(()) => {
                info!(target: "highwater", event_type = message.event_type, artifacts = message.artifacts, "message delivered");
                Ok(Sent::Accepted)
            }
            // A platform that accepted it, and whose answer was lost, may refuse it the second time. So it stays
            // sealed: a new event proves that it was accepted, and the same event sends the same bytes. A message
            // that is too large was never accepted.
            Err(GaveUp::Refused { status, reason, in_doubt: true }) if status != TOO_LARGE => {
                warn!(target: "highwater", event_type = message.event_type, status, reason, "message refused, or accepted before");
                let reason = format!(
                    "refused with {status}: {reason}, after an attempt that may have been accepted; it stays sealed"
                );
                Err(not_delivered(message, &reason))
            }
            Err(GaveUp::Refused { status, reason, .. }) => {
                warn!(target: "highwater", event_type = message.event_type, status, reason, "message refused");
                Ok(Sent::Refused { status, reason })
            }
            Err(GaveUp::Stopped(error)) => Err(error),
            Err(GaveUp::Tried(reason)) => {
                warn!(target: "highwater", event_type = message.event_type, reason, "message not delivered");
                Err(not_delivered(message, &reason))
            }
        }
    }

    /// Answers an event that has no run to seal its message in.
    pub(super) fn answer_statelessly(&self, ending: Ending) -> Result<Outcome> {
        let (kind, says) = match ending {
            Ending::Failed { code, message } => (MessageKind::Error, self.error_of(code, &message)),
            Ending::Done | Ending::Progress | Ending::Delay { .. } => (MessageKind::Done, AnswerKind::Done),
        };
        let composed = compose(self.event, self.settings.spelling, &Answer::new(says))?;
        let message = self.unsealed(kind, &composed, 0);
        match self.send(&message)? {
            Sent::Accepted => Ok(Outcome {
                kind: kind.into(),
                event_type: message.event_type,
                message: Some(message.body),
                artifacts: 0,
                run: None,
                replayed: false,
                attachments: AttachmentCounts::default(),
                ignored_watermark: None,
                findings: FindingCounts::default(),
                left_out: LeftOutCounts::default(),
            }),
            Sent::Refused { status, reason } => Err(refused(&message, status, &reason)),
        }
    }

    /// A message that no run seals.
    fn unsealed(&self, kind: MessageKind, composed: &Composed, artifacts: u64) -> StoredMessage {
        let (event_type, body) = (composed.event_type.to_owned(), composed.body.clone());
        let identity = self.event.identity();
        let event = identity.unwrap_or_else(|_| self.event.event_type().name(Spelling::Seed).to_owned());
        StoredMessage { no: 0, key: message_key_text(&event, &body), event_type, body, kind, artifacts }
    }

    /// The content of an ERROR. It may contain the extractor's text, so the event's secrets are removed.
    fn error_of(&self, code: Option<ErrorCode>, message: &str) -> AnswerKind {
        AnswerKind::Error { code, message: self.event.hide_secrets(message) }
    }

    /// Bytes of the message without artifacts, with room for an error's text.
    pub(super) fn base_bytes(&self) -> Result<usize> {
        let says = AnswerKind::Error { code: None, message: String::new() };
        let empty = compose(self.event, self.settings.spelling, &Answer::new(says))?;
        Ok(empty.body.len() + ARTIFACTS_FIELD_BYTES + ERROR_MESSAGE_BYTES_MAX)
    }
}

/// Undoes the seal of a message that was refused: its artifacts go into the next one.
fn take_back(
    run: &Run,
    keeper: Option<&Keeper<'_>>,
    message: &StoredMessage,
    artifacts_max: Option<u64>,
) -> Result<()> {
    run.refused(message.no, artifacts_max)?;
    if let Some(keeper) = keeper {
        keeper.save(run, None)?;
    }
    Ok(())
}

enum Sent {
    Accepted,
    Refused { status: u16, reason: String },
}

fn log_sealed(message: &StoredMessage) {
    let (bytes, artifacts) = (message.body.len(), message.artifacts);
    info!(target: "highwater", event_type = message.event_type, kind = ?message.kind, artifacts, bytes, "message sealed");
}

/// Records that a message was accepted.
fn accepted(
    run: &Run,
    keeper: Option<&Keeper<'_>>,
    message: StoredMessage,
    replayed: bool,
) -> Result<Outcome> {
    let over = run.delivered(message.no)?;
    match keeper {
        Some(keeper) if over => keeper.save_standing(run)?,
        // It was sent again. The checkpoint must record that, for when the event comes once more.
        Some(keeper) if replayed => drop(keeper.save(run, None)?),
        _ => {}
    }
    Ok(Outcome {
        kind: message.kind.into(),
        event_type: message.event_type,
        message: Some(message.body),
        artifacts: message.artifacts,
        attachments: run.attachment_totals()?,
        run: Some(run.id().clone()),
        replayed,
        ignored_watermark: run.ignored_watermark(),
        findings: run.finding_counts()?,
        left_out: run.left_out_totals()?,
    })
}

fn refused(message: &StoredMessage, status: u16, reason: &str) -> Error {
    not_delivered(message, &format!("refused with {status}: {reason}"))
}

fn not_delivered(message: &StoredMessage, reason: &str) -> Error {
    Error::NotDelivered { message: message.event_type.clone(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_has_the_text_of_an_error() {
        let outcome = |message: Option<&str>| Outcome {
            kind: OutcomeKind::Error,
            event_type: "EXTRACTION_DATA_ERROR".to_owned(),
            message: message.map(str::to_owned),
            artifacts: 0,
            run: None,
            replayed: false,
            attachments: AttachmentCounts::default(),
            ignored_watermark: None,
            findings: FindingCounts::default(),
            left_out: LeftOutCounts::default(),
        };
        let error = outcome(Some(r#"{"event_data":{"error":{"message":"the source is gone"}}}"#));
        assert_eq!(error.error_text().as_deref(), Some("the source is gone"));
        assert_eq!(outcome(Some(r#"{"event_data":{"progress":7}}"#)).error_text(), None);
        assert_eq!(outcome(None).error_text(), None);
    }
}
