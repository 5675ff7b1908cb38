//! Ids, limits, phases and the pure rules of which event a run may be given next.
//!
//! Nothing here touches a disk or a clock.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use crate::cut;
use crate::error::{Error, Result};

/// Items of a batch, unless set otherwise: the platform's own batch size.
pub const BATCH_ITEMS: u32 = 2_000;
/// Items of a batch of external sync units.
pub const EXTERNAL_SYNC_UNIT_BATCH_ITEMS: u32 = 25_000;
/// Bytes of JSON Lines that close a batch even if its items are fewer, and that one record may not exceed.
pub const BATCH_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a cursor or a bookmark as JSON.
pub const CURSOR_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one value of an extractor's own, as JSON.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an id or a name: sync unit, run, item type, stream, artifact, value key.
pub const ID_BYTES_MAX: usize = 512;
/// Batches of one run that may be unacknowledged before [`Run::batches`](crate::Run::batches) fetches no more.
pub const OPEN_BATCHES_MAX: u64 = 256;
/// Bytes of a message at which no more artifacts are taken in.
pub const MESSAGE_BYTES_SOFT: usize = 160_000;
/// Bytes of a worker state, as it is posted, at which an invocation ends.
pub const CHECKPOINT_BYTES_SOFT: usize = 600_000;
/// Bytes of a worker state, as it is posted, over which it is not saved.
pub const CHECKPOINT_BYTES_MAX: usize = 900_000;
/// Bytes that the cursors, bookmarks and values of a unit may take together where checkpoints are kept, as JSON with their
/// names; less what others keep in the same worker state.
pub const CHECKPOINT_STATE_BYTES_MAX: usize = 450_000;
/// Child listings of a run that may be pending, that is named and not exhausted, at a time.
pub const CHILD_LISTINGS_MAX: u64 = 20_000;
/// Bytes of them together: of their streams, parents, data and cursors, and 60 for each. Where a checkpoint is kept, they
/// share [`CHECKPOINT_STATE_BYTES_MAX`] with what else the extractor sets.
pub const CHILD_LISTINGS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of what is kept with a child listing for the extractor, as JSON.
pub const CHILD_DATA_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a message that the platform's queue carries at most.
pub const MESSAGE_BYTES_MAX: usize = 200_000;
/// Findings of one kind that a run keeps as text; what is beyond is counted.
pub const FINDINGS_KEPT: u64 = 10;
/// Bytes of a finding's text; what is beyond is cut.
pub const FINDING_BYTES_MAX: usize = 600;
/// Kinds of findings that a run tells apart by item type, rule and place. As many again are told apart by item type
/// and rule; what is beyond is counted by rule alone.
pub const FINDING_KINDS_MAX: usize = 64;
/// Ids of rejected records that a sync unit may have at a time, unless set otherwise.
pub const REJECTED_IDS_MAX: u64 = 1_000;
/// Of the records that a run read, the part that may be rejected, in percent, unless set otherwise.
pub const REJECTED_PERCENT_MAX: u8 = 1;
/// Rejected records of a run that are never too many for a part of it: else one bad record would stop a small run.
pub const REJECTED_FEW: u64 = 10;
/// Rejected records of a run that are kept whole: of one item type and kind at most [`FINDINGS_KEPT`].
pub const REJECTED_KEPT_MAX: usize = 100;
/// Bytes of the JSON text of a rejected record that is kept; what is beyond is cut.
pub const REJECTED_JSON_BYTES_MAX: usize = 16 * 1024;
/// Ids that an extractor is asked for at once.
pub const REFETCH_IDS: usize = 100;
/// Finished and abandoned runs whose figures the ledger keeps, per sync unit.
pub const LEDGER_RUNS_MAX: u64 = 1_000;
/// A watermark further ahead of the clock than this comes from a bad clock and is not used.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(5 * 60);

/// The start of a unit id that is ours: the external-sync-units phase has no sync unit to keep its state under.
pub(crate) const RESERVED_UNIT_PREFIX: &str = "@external-sync-units/";
/// The start of a value key that is ours: what a run keeps beside its rows.
pub(crate) const RESERVED_VALUE_PREFIX: &str = "@highwater/";
/// The value key under which the connector's own keys of the worker state are kept, where the extractor sets them.
pub(crate) const CONNECTOR_STATE_VALUE: &str = "@highwater.connector";

/// Checks a name that becomes part of a key, a file name or a line on a terminal.
fn check_name(what: &str, name: &str) -> Result<()> {
    if name.len() > ID_BYTES_MAX {
        return Err(Error::TooLarge {
            what: format!("{what} {:?}", cut::to_chars(name, 40)),
            found: name.len() as u64,
            limit: ID_BYTES_MAX as u64,
            unit: "bytes",
        });
    }
    if name.is_empty() {
        return Err(Error::Invalid {
            what: format!("{what} \"\""),
            reason: "it must not be empty".to_owned(),
        });
    }
    if name.chars().any(char::is_control) {
        return Err(Error::Invalid {
            what: format!("{what} {name:?}"),
            reason: "it must not hold control characters".to_owned(),
        });
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $seen:vis $type:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $seen struct $type(String);

        impl $type {
            /// Takes a name of 1 to [`ID_BYTES_MAX`] bytes without control characters.
            ///
            /// # Errors
            /// `TooLarge` or `Invalid`, naming it.
            $seen fn new(name: impl Into<String>) -> Result<Self> {
                let name = name.into();
                check_name($what, &name)?;
                Ok(Self(name))
            }

            /// The name as text.
            $seen fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// The independently synced container (a project, a repository, a board); owner of all state.
    pub SyncUnitId = "the sync unit id";
    /// One extraction of a sync unit, from its start to `finish`, across any number of process lives.
    pub RunId = "the run id";
    /// One cursor through one listing of the source.
    pub(crate) StreamName = "the stream name";
    /// Whose listing a child listing is, in the external system.
    pub(crate) ParentId = "the parent of a child listing";
    /// What the platform calls an uploaded batch.
    pub ArtifactId = "the artifact id";
    /// The name of a small value of the extractor's own.
    pub(crate) ValueKey = "the value key";
}

/// The kind of a record within a sync unit. It becomes a file name, so it holds no slash either.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemType(String);

impl ItemType {
    /// Takes a name of 1 to [`ID_BYTES_MAX`] bytes without control characters or slashes.
    ///
    /// # Errors
    /// `TooLarge` or `Invalid`, naming it.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        check_name("the item type", &name)?;
        if name.contains(['/', '\\']) {
            return Err(Error::Invalid {
                what: format!("the item type {name:?}"),
                reason: "it becomes a file name, so it must not hold a slash".to_owned(),
            });
        }
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ItemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Microseconds since 1970-01-01T00:00:00Z: the form in which moments are stored and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Micros(pub(crate) i64);

impl Micros {
    pub(crate) fn from_time(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(6).timestamp_micros())
    }

    /// The same moment; one that chrono cannot hold becomes the nearest that it can.
    pub(crate) fn to_time(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0).unwrap_or(if self.0 < 0 {
            DateTime::<Utc>::MIN_UTC
        } else {
            DateTime::<Utc>::MAX_UTC
        })
    }

    pub(crate) fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub(crate) fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// A part of a run. The platform goes through them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Which containers are there to choose from; only before a first import, and without a sync unit.
    ExternalSyncUnits,
    /// What record types there are.
    Metadata,
    /// The records.
    Data,
    /// The files that records name.
    Attachments,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 4] = [Phase::ExternalSyncUnits, Phase::Metadata, Phase::Data, Phase::Attachments];

    /// Whether an invocation of this phase may end before the phase does: with PROGRESS or DELAY.
    pub fn continues(self) -> bool {
        matches!(self, Phase::Data | Phase::Attachments)
    }

    fn bit(self) -> u8 {
        match self {
            Phase::ExternalSyncUnits => 1,
            Phase::Metadata => 2,
            Phase::Data => 4,
            Phase::Attachments => 8,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::ExternalSyncUnits => "external sync units",
            Phase::Metadata => "metadata",
            Phase::Data => "data",
            Phase::Attachments => "attachments",
        })
    }
}

/// The phases of a run that are over: their DONE is sealed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Phases(u8);

impl Phases {
    pub(crate) fn contains(self, phase: Phase) -> bool {
        self.0 & phase.bit() != 0
    }
    pub(crate) fn insert(&mut self, phase: Phase) {
        self.0 |= phase.bit();
    }
    pub(crate) fn remove(&mut self, phase: Phase) {
        self.0 &= !phase.bit();
    }
}

/// Whether an event opens a phase or goes on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// It opens the phase.
    Start,
    /// It goes on with it.
    Continue,
}

/// What an event means to a run that knows it belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// The phase is entered, or gone on with.
    Work,
    /// The phase is over already: its DONE is said again, with nothing new in it.
    Repeat,
    /// The phases before it are not over, so something would be lost: ERROR.
    Refuse,
}

/// Decides what an event of `phase` means to a run that stands in `current` with `done` behind it.
///
/// A CONTINUE of a phase that was never entered means that a PROGRESS was accepted which this store does not know
/// of: the store is an old copy, and to go on from it would lose records.
pub(crate) fn phase_move(current: Option<Phase>, done: Phases, step: Step, phase: Phase) -> Move {
    if done.contains(phase) {
        return Move::Repeat;
    }
    // Attachments come after data; metadata may be left out by a platform that has it already.
    let skips_data = phase == Phase::Attachments && !done.contains(Phase::Data);
    match current {
        Some(current) if current > phase => Move::Repeat,
        Some(current) if current == phase => Move::Work,
        Some(current) if !done.contains(current) => Move::Refuse,
        _ if step == Step::Continue || skips_data => Move::Refuse,
        _ => Move::Work,
    }
}

/// A rule of ours that a negative control can take away, so that a check shows that it would see it broken.
#[cfg_attr(
    not(feature = "testing"),
    allow(dead_code, unreachable_pub, reason = "`testing` takes them away, and shows them to the world")
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Safeguard {
    /// An upload's id is committed before it is confirmed.
    CommitBeforeConfirm,
    /// A cursor is committed with the rows before it.
    RowsWithCursor,
    /// A confirmed batch stays in the outbox until a message announces it.
    OutboxUntilAnnounced,
    /// A message is sealed before it is sent.
    SealBeforeSend,
    /// The watermark is the time at which the run started.
    WatermarkFromStart,
    /// A resumed run keeps its start.
    StartKept,
    /// Only what is confirmed is announced.
    AnnounceConfirmed,
    /// An id is given up only if no attempt of unknown fate came before the refusal of its confirm.
    IdKeptInDoubt,
    /// Events that were seen are remembered.
    EventsRemembered,
    /// An abandoned run does not move the watermark.
    AbandonedLeavesWatermark,
    /// The unit is keyed by `sync_unit_id`.
    KeyedBySyncUnit,
    /// Without a disk: only what a saved checkpoint names is confirmed.
    ConfirmAfterSave,
    /// Without a disk: only a message that a saved checkpoint holds is sent.
    SendAfterSave,
    /// Without a disk: a checkpoint stands between pages.
    CutAtPages,
    /// Without a disk: the holder's token is compared for equality, not for being newer.
    HolderToken,
    /// What an opened store shows is durable, also what an owner that was killed had not synced. Taken away, nothing is
    /// synced between opening a store and its first change, which syncs all of it.
    DurableAtOpen,
    /// A rejected record is kept to be asked for again.
    RejectedKept,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_over_their_limit_empty_or_with_control_characters_are_refused_by_name() {
        let long = "x".repeat(ID_BYTES_MAX + 1);
        let error = SyncUnitId::new(long).unwrap_err().to_string();
        assert!(error.contains("sync unit id") && error.contains("513 bytes"), "{error}");
        assert!(StreamName::new("").is_err());
        assert!(ArtifactId::new("a\nb").is_err());
        assert!(ItemType::new("a/b").is_err());
        assert!(ItemType::new("x".repeat(ID_BYTES_MAX)).is_ok());
    }

    #[test]
    fn moments_survive_storage_cut_to_microseconds() {
        let time = DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap();
        assert_eq!(Micros::from_time(time).to_time().timestamp_subsec_nanos(), 123_456_000);
        assert_eq!(Micros(i64::MAX).to_time(), DateTime::<Utc>::MAX_UTC);
        assert_eq!(Micros(i64::MIN).to_time(), DateTime::<Utc>::MIN_UTC);
    }
}
