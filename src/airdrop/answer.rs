//! The answer to an event: composed of what is confirmed, sealed, sent, and recorded as accepted or refused.
//!
//! In every case exactly one message answers an event, and it is sealed before it is sent: sent again, by this life or a
//! later one, it is the same bytes under the same key. A definite refusal undoes the seal.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use tracing::{info, warn};

use crate::error::{Error, Result, chain};
use crate::model::{MESSAGE_BYTES_SOFT, Phase, RunId, Safeguard};
use crate::record::FindingCounts;
use crate::store::{AttachmentCounts, MessageKind, Run, Sealing, StoredMessage, message_key_text};

use super::delivery::entry;
use super::event::{Event, Spelling};
use super::keeper::Keeper;
use super::message::{
    ARTIFACTS_FIELD_BYTES, Answer, AnswerKind, ERROR_MESSAGE_BYTES_MAX, ErrorCode, WorkerMetadata, compose,
};
use super::platform::SealedMessage;
use super::retry::{GaveUp, attempts};
use super::serve::Invocation;
use super::window::Window;

/// What came of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// What the message says.
    pub kind: OutcomeKind,
    /// The event type of the message; empty if the event was answered long ago and nothing was sent.
    pub event_type: String,
    /// The message as it was sent: JSON on one line. `None` as above.
    pub message: Option<String>,
    /// Artifacts that it announces.
    pub artifacts: u64,
    /// The run, where there is one.
    pub run: Option<RunId>,
    /// The message had been sealed before, and was only sent again.
    pub replayed: bool,
    /// How far the attachments of the run are; those that failed are listed by
    /// [`SyncUnit::failed_attachments`](crate::SyncUnit::failed_attachments).
    pub attachments: AttachmentCounts,
    /// A watermark that was left aside for lying in the future: see [`Run::ignored_watermark`].
    pub ignored_watermark: Option<DateTime<Utc>>,
    /// What was found in the run's records so far, and in its metadata: see
    /// [`CheckPolicy`](super::CheckPolicy). A page that was refused is not in it.
    pub findings: FindingCounts,
}

/// What the message that answered an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// The phase is over.
    Done,
    /// There is more, at once.
    Progress,
    /// There is more, after a while.
    Delay,
    /// It went wrong; the message says how.
    Error,
    /// The event was answered by an earlier life, and its message is no longer kept: nothing was sent.
    AnsweredEarlier,
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

/// How the work of an invocation ended.
#[derive(Debug)]
pub(super) enum Ending {
    Done,
    Progress,
    /// `asked` says that the source asked for it just now; otherwise it is what is left of an earlier wait.
    Delay {
        seconds: u64,
        asked: bool,
    },
    Failed {
        code: Option<ErrorCode>,
        message: String,
    },
}

impl Ending {
    /// The source asked to be left alone for so long.
    pub(super) fn asked_to_wait(wait: Duration) -> Self {
        // Whole seconds that are not less.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::Delay { seconds, asked: true }
    }
}

pub(super) fn failed(message: &str) -> Ending {
    Ending::Failed { code: None, message: message.to_owned() }
}

/// What the message says beside how it ended.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The item type extracted last.
    pub(super) item_type: Option<String>,
    pub(super) window: Option<Window>,
    /// External sync units, where they go into the message itself.
    pub(super) units: Option<Vec<Box<RawValue>>>,
}

impl Invocation<'_> {
    /// Seals the message and sends it. What does not fit goes into the next: then it is PROGRESS, if the phase has it.
    pub(super) fn answer(
        &self,
        run: &Run,
        keeper: Option<&Keeper<'_>>,
        phase: Phase,
        mut ending: Ending,
        said: &Said,
    ) -> Result<Outcome> {
        loop {
            let (percent, artifacts_max) = run.progress_and_artifacts_max()?;
            let mut bytes = self.base_bytes()?;
            let mut batches = Vec::new();
            let mut artifacts = Vec::new();
            let confirmed = run.confirmed()?;
            for (info, artifact) in &confirmed {
                let entry = entry(info, artifact);
                bytes += entry.bytes()?;
                // One always goes, or nothing ever would.
                if !artifacts.is_empty()
                    && (bytes > MESSAGE_BYTES_SOFT
                        || artifacts.len() as u64 >= artifacts_max.unwrap_or(u64::MAX))
                {
                    break;
                }
                batches.push(info.seq);
                artifacts.push(entry);
            }
            let all = artifacts.len() == confirmed.len();
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
            let mut answer = Answer::new(says);
            answer.artifacts = artifacts;
            // An ERROR carries no units: it may be for them that the message was too large.
            if kind != MessageKind::Error {
                answer.external_sync_units.clone_from(&said.units);
            }
            answer.worker = WorkerMetadata {
                item_type: said.item_type.clone(),
                oldest_state: said.window.and_then(|window| window.from),
                newest_state: said.window.map(|window| window.to),
            };
            let composed = match compose(self.event, self.settings.spelling, &answer) {
                Ok(composed) => composed,
                Err(error @ Error::TooLarge { .. }) if !matches!(ending, Ending::Failed { .. }) => {
                    ending = failed(&chain(&error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let sent_unsealed = run.breaks(Safeguard::SealBeforeSend);
            if sent_unsealed {
                let key = message_key_text(&incoming_name(self.event), &composed.body);
                let event_type = composed.event_type.to_owned();
                let (body, artifacts) = (composed.body.clone(), batches.len() as u64);
                self.send(&StoredMessage { no: 0, key, event_type, body, kind, artifacts })?;
            }
            let sealed = run.seal(&Sealing {
                phase,
                kind,
                event_type: composed.event_type.to_owned(),
                batches: &batches,
                body: composed.body,
                finishes: self.finishes(phase),
                delay_seconds,
            });
            let message = match sealed {
                Ok(message) => message,
                // DONE balances or is not sent.
                Err(error @ Error::Unfinished { .. }) if kind == MessageKind::Done => {
                    ending = failed(&chain(&error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            say_sealed(&message);
            if let Some(keeper) = keeper
                && !run.breaks(Safeguard::SendAfterSave)
            {
                match keeper.save_sealed(run, kind) {
                    // It was not sent, so nothing keeps an ERROR from taking its place.
                    Err(error @ Error::TooLarge { .. }) if kind != MessageKind::Error => {
                        run.refused(message.no, None)?;
                        ending = failed(&chain(&error));
                        continue;
                    }
                    saved => saved?,
                }
            }
            let sent = if sent_unsealed { Sent::Accepted } else { self.send(&message)? };
            match sent {
                Sent::Accepted => return accepted(run, keeper, message, false),
                Sent::Refused { status: 413, .. } if batches.len() > 1 => {
                    run.refused(message.no, Some(batches.len() as u64 / 2))?;
                }
                Sent::Refused { status, reason } => {
                    run.refused(message.no, None)?;
                    if let Some(keeper) = keeper {
                        keeper.save(run, None)?;
                    }
                    return Err(not_delivered(&message, &format!("refused with {status}: {reason}")));
                }
            }
        }
    }

    /// Whether the phase's DONE ends the run.
    fn finishes(&self, phase: Phase) -> bool {
        match phase {
            Phase::ExternalSyncUnits | Phase::Attachments => true,
            Phase::Data => !self.settings.attachments_phase,
            Phase::Metadata => false,
        }
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
                // Only the newest, and only if it was never accepted, can still be taken back.
                if run.is_undelivered(message.no)? {
                    let artifacts_max =
                        (status == 413 && message.artifacts > 1).then_some(message.artifacts / 2);
                    run.refused(message.no, artifacts_max)?;
                    if let Some(keeper) = keeper {
                        keeper.save(run, None)?;
                    }
                }
                Err(not_delivered(&message, &format!("refused with {status}: {reason}")))
            }
        }
    }

    /// Tries to hand over a message until it is accepted or refused, or the invocation is over.
    fn send(&self, message: &StoredMessage) -> Result<Sent> {
        let sealed = SealedMessage {
            key: message.key.clone(),
            event_type: message.event_type.clone(),
            body: message.body.clone(),
        };
        match attempts(self.clock, self.hard_at(), self.seed, || self.platform.send(&sealed)) {
            Ok(()) => {
                info!(event_type = message.event_type, artifacts = message.artifacts, "message delivered");
                Ok(Sent::Accepted)
            }
            Err(GaveUp::Refused { status, reason }) => {
                warn!(event_type = message.event_type, status, reason, "message refused");
                Ok(Sent::Refused { status, reason })
            }
            Err(GaveUp::Tried(reason)) => {
                warn!(event_type = message.event_type, reason, "message not delivered");
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
        let message = StoredMessage {
            no: 0,
            key: message_key_text(&incoming_name(self.event), &composed.body),
            event_type: composed.event_type.to_owned(),
            body: composed.body,
            kind,
            artifacts: 0,
        };
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
            }),
            Sent::Refused { status, reason } => {
                Err(not_delivered(&message, &format!("refused with {status}: {reason}")))
            }
        }
    }

    /// What an ERROR says; it may be what the extractor said, so the event's secrets are not in it.
    fn error_of(&self, code: Option<ErrorCode>, message: &str) -> AnswerKind {
        AnswerKind::Error { code, message: self.event.hide_secrets(message) }
    }

    /// Bytes of the message before any artifact is in it, with room for an error's text.
    pub(super) fn base_bytes(&self) -> Result<usize> {
        let says = AnswerKind::Error { code: None, message: String::new() };
        let empty = compose(self.event, self.settings.spelling, &Answer::new(says))?;
        Ok(empty.body.len() + ARTIFACTS_FIELD_BYTES + ERROR_MESSAGE_BYTES_MAX)
    }
}

/// What a message that no run seals is keyed by.
fn incoming_name(event: &Event) -> String {
    event.identity().unwrap_or_else(|_| event.event_type().name(Spelling::Seed).to_owned())
}

enum Sent {
    Accepted,
    Refused { status: u16, reason: String },
}

fn say_sealed(message: &StoredMessage) {
    let (bytes, artifacts) = (message.body.len(), message.artifacts);
    info!(event_type = message.event_type, kind = ?message.kind, artifacts, bytes, "message sealed");
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
        // Said again: that is to be known if the event comes once more.
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
    })
}

fn not_delivered(message: &StoredMessage, reason: &str) -> Error {
    Error::NotDelivered { message: message.event_type.clone(), reason: reason.to_owned() }
}
