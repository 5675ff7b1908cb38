//! The types of events, and of the messages that answer them: what each means, and its name in both spellings.

use crate::model::{Phase, Step};

/// What an event asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventType {
    /// List the external sync units.
    ExternalSyncUnits,
    /// Deliver the metadata document.
    Metadata,
    /// Extract records.
    Data {
        /// Whether the phase begins, or continues where the last invocation ended.
        step: Step,
    },
    /// Extract attachments.
    Attachments {
        /// Whether the phase begins, or continues where the last invocation ended.
        step: Step,
    },
    /// Delete the state of the sync unit.
    DeleteData,
    /// Delete the state of the sync unit's attachments.
    DeleteAttachments,
    /// An event type that this version does not know, by its original name.
    Unknown(String),
}

/// The two sets of names for the types of events and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spelling {
    /// `EXTRACTION_DATA_START`, `EXTRACTION_DATA_DONE`.
    Seed,
    /// `START_EXTRACTING_DATA`, `DATA_EXTRACTION_DONE`.
    Newer,
}

/// The kind of the message that answered an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// The phase is over.
    Done,
    /// There is more; continue at once.
    Progress,
    /// There is more; continue after a while.
    Delay,
    /// It failed; the message says why.
    Error,
    /// The event was answered by an earlier life, and its message is no longer kept: nothing was sent.
    AnsweredEarlier,
}

/// All known events: the meaning, and both names.
const NAMES: [(EventType, &str, &str); 8] = [
    (
        EventType::ExternalSyncUnits,
        "EXTRACTION_EXTERNAL_SYNC_UNITS_START",
        "START_EXTRACTING_EXTERNAL_SYNC_UNITS",
    ),
    (EventType::Metadata, "EXTRACTION_METADATA_START", "START_EXTRACTING_METADATA"),
    (EventType::Data { step: Step::Start }, "EXTRACTION_DATA_START", "START_EXTRACTING_DATA"),
    (EventType::Data { step: Step::Continue }, "EXTRACTION_DATA_CONTINUE", "CONTINUE_EXTRACTING_DATA"),
    (
        EventType::Attachments { step: Step::Start },
        "EXTRACTION_ATTACHMENTS_START",
        "START_EXTRACTING_ATTACHMENTS",
    ),
    (
        EventType::Attachments { step: Step::Continue },
        "EXTRACTION_ATTACHMENTS_CONTINUE",
        "CONTINUE_EXTRACTING_ATTACHMENTS",
    ),
    (EventType::DeleteData, "EXTRACTION_DATA_DELETE", "START_DELETING_EXTRACTOR_STATE"),
    (
        EventType::DeleteAttachments,
        "EXTRACTION_ATTACHMENTS_DELETE",
        "START_DELETING_EXTRACTOR_ATTACHMENTS_STATE",
    ),
];

impl EventType {
    /// Reads a name in either spelling. An unknown name counts as [`Spelling::Newer`].
    ///
    /// ```
    /// use highwater::airdrop::{EventType, Spelling, Step};
    /// let data = EventType::Data { step: Step::Start };
    /// assert_eq!(EventType::parse("EXTRACTION_DATA_START"), (data.clone(), Spelling::Seed));
    /// assert_eq!(EventType::parse("START_EXTRACTING_DATA"), (data, Spelling::Newer));
    /// assert!(matches!(EventType::parse("DANCE").0, EventType::Unknown(name) if name == "DANCE"));
    /// ```
    pub fn parse(name: &str) -> (Self, Spelling) {
        for (event_type, seed, newer) in NAMES {
            if name == seed {
                return (event_type, Spelling::Seed);
            }
            if name == newer {
                return (event_type, Spelling::Newer);
            }
        }
        (Self::Unknown(name.to_owned()), Spelling::Newer)
    }

    /// The name in the given spelling. An unknown type keeps the name that it came with.
    pub fn name(&self, spelling: Spelling) -> &str {
        if let Self::Unknown(name) = self {
            return name;
        }
        let names = NAMES.iter().find(|(event_type, ..)| event_type == self);
        match (names, spelling) {
            (Some((_, seed, _)), Spelling::Seed) => seed,
            (Some((_, _, newer)), Spelling::Newer) => newer,
            // Not reached: a test checks that the table is complete.
            (None, _) => "UNKNOWN_EVENT_TYPE",
        }
    }

    /// The event type of the message that answers an event of this type in this way. `None` if the protocol has no such
    /// message: only data and attachments can be continued, and an unknown type can only be answered with ERROR.
    ///
    /// ```
    /// use highwater::airdrop::{EventType, OutcomeKind, Spelling};
    /// let answer = |kind| EventType::Metadata.answer(kind, Spelling::Seed);
    /// assert_eq!(answer(OutcomeKind::Done), Some("EXTRACTION_METADATA_DONE"));
    /// assert_eq!(answer(OutcomeKind::Delay), None);
    /// ```
    pub fn answer(&self, kind: OutcomeKind, spelling: Spelling) -> Option<&'static str> {
        use EventType::{
            Attachments, Data, DeleteAttachments, DeleteData, ExternalSyncUnits, Metadata, Unknown,
        };
        use OutcomeKind::{Delay, Done, Error as Failed, Progress};
        let (seed, newer) = match (self, kind) {
            (ExternalSyncUnits, Done) => {
                ("EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE")
            }
            (ExternalSyncUnits, Failed) => {
                ("EXTRACTION_EXTERNAL_SYNC_UNITS_ERROR", "EXTERNAL_SYNC_UNIT_EXTRACTION_ERROR")
            }
            (Metadata, Done) => ("EXTRACTION_METADATA_DONE", "METADATA_EXTRACTION_DONE"),
            (Metadata, Failed) => ("EXTRACTION_METADATA_ERROR", "METADATA_EXTRACTION_ERROR"),
            (Data { .. }, Done) => ("EXTRACTION_DATA_DONE", "DATA_EXTRACTION_DONE"),
            (Data { .. }, Progress) => ("EXTRACTION_DATA_PROGRESS", "DATA_EXTRACTION_PROGRESS"),
            (Data { .. }, Delay) => ("EXTRACTION_DATA_DELAY", "DATA_EXTRACTION_DELAYED"),
            (Data { .. }, Failed) => ("EXTRACTION_DATA_ERROR", "DATA_EXTRACTION_ERROR"),
            (Attachments { .. }, Done) => ("EXTRACTION_ATTACHMENTS_DONE", "ATTACHMENT_EXTRACTION_DONE"),
            (Attachments { .. }, Progress) => {
                ("EXTRACTION_ATTACHMENTS_PROGRESS", "ATTACHMENT_EXTRACTION_PROGRESS")
            }
            (Attachments { .. }, Delay) => ("EXTRACTION_ATTACHMENTS_DELAY", "ATTACHMENT_EXTRACTION_DELAYED"),
            (Attachments { .. }, Failed) => ("EXTRACTION_ATTACHMENTS_ERROR", "ATTACHMENT_EXTRACTION_ERROR"),
            (DeleteData, Done) => ("EXTRACTION_DATA_DELETE_DONE", "EXTRACTOR_STATE_DELETION_DONE"),
            (DeleteData, Failed) => ("EXTRACTION_DATA_DELETE_ERROR", "EXTRACTOR_STATE_DELETION_ERROR"),
            (DeleteAttachments, Done) => {
                ("EXTRACTION_ATTACHMENTS_DELETE_DONE", "EXTRACTOR_ATTACHMENTS_STATE_DELETION_DONE")
            }
            (DeleteAttachments, Failed) => {
                ("EXTRACTION_ATTACHMENTS_DELETE_ERROR", "EXTRACTOR_ATTACHMENTS_STATE_DELETION_ERROR")
            }
            (Unknown(_), Failed) => ("UNKNOWN_EVENT_TYPE", "UNKNOWN_EVENT_TYPE"),
            (Unknown(_), Done | Progress | Delay)
            | (ExternalSyncUnits | Metadata | DeleteData | DeleteAttachments, Progress | Delay)
            | (_, OutcomeKind::AnsweredEarlier) => return None,
        };
        Some(match spelling {
            Spelling::Seed => seed,
            Spelling::Newer => newer,
        })
    }

    /// The phase of the event; `None` for a deletion and for an unknown type.
    pub fn phase(&self) -> Option<Phase> {
        match self {
            Self::ExternalSyncUnits => Some(Phase::ExternalSyncUnits),
            Self::Metadata => Some(Phase::Metadata),
            Self::Data { .. } => Some(Phase::Data),
            Self::Attachments { .. } => Some(Phase::Attachments),
            Self::DeleteData | Self::DeleteAttachments | Self::Unknown(_) => None,
        }
    }

    /// Whether the event begins its phase or continues it. A type without a CONTINUE is always a start.
    pub fn step(&self) -> Step {
        match self {
            Self::Data { step } | Self::Attachments { step } => *step,
            _ => Step::Start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_has_a_phase_or_is_a_deletion_and_reads_back_from_both_names() {
        for (event_type, seed, newer) in NAMES {
            assert_eq!(event_type.name(Spelling::Seed), seed);
            assert_eq!(event_type.name(Spelling::Newer), newer);
            let deletes = matches!(event_type, EventType::DeleteData | EventType::DeleteAttachments);
            assert_eq!(event_type.phase().is_none(), deletes, "{event_type:?}");
        }
    }
}
