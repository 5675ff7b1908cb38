//! Ids, limits, phases, and the pure rules for which event a run accepts next.
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
/// Bytes of a message at which no more artifacts are added.
pub const MESSAGE_BYTES_SOFT: usize = 160_000;
/// Bytes of a worker state, as posted, at which an invocation ends.
pub const CHECKPOINT_BYTES_SOFT: usize = 600_000;
/// Bytes of a worker state, as posted, above which it is not saved.
pub const CHECKPOINT_BYTES_MAX: usize = 900_000;
/// Bytes that the cursors, bookmarks and values of a unit may take together where checkpoints are kept, as JSON with
/// their names; less what other keys of the same worker state take.
pub const CHECKPOINT_STATE_BYTES_MAX: usize = 450_000;
/// Child listings of a run that may be pending (named and not exhausted) at one time.
pub const CHILD_LISTINGS_MAX: u64 = 20_000;
/// Bytes of them together: of their streams, parents, data and cursors, and 60 for each. If checkpoints are kept,
/// they share [`CHECKPOINT_STATE_BYTES_MAX`] with the extractor's other values.
pub const CHILD_LISTINGS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of the extractor's data for a child listing, as JSON.
pub const CHILD_DATA_BYTES_MAX: usize = 4 * 1024;
/// The most bytes of a message that the platform's queue accepts.
pub const MESSAGE_BYTES_MAX: usize = 200_000;
/// Findings of one kind that a run keeps as text; further ones are counted.
pub const FINDINGS_KEPT: u64 = 10;
/// Bytes of a finding's text; the rest is cut.
pub const FINDING_BYTES_MAX: usize = 600;
/// Kinds of findings that a run counts by item type, rule and place. The same number again is counted by item type
/// and rule; further ones by rule alone.
pub const FINDING_KINDS_MAX: usize = 64;
/// Ids of rejected records that a sync unit may have at one time, unless set otherwise.
pub const REJECTED_IDS_MAX: u64 = 1_000;
/// The percentage of the records read in a run that may be rejected, unless set otherwise.
pub const REJECTED_PERCENT_MAX: u8 = 1;
/// This many rejected records of a run are always allowed, whatever the percentage: else one bad record would stop a
/// small run.
pub const REJECTED_FEW: u64 = 10;
/// Rejected records of a run that are kept whole: at most [`FINDINGS_KEPT`] of one item type and kind.
pub const REJECTED_KEPT_MAX: usize = 100;
/// Bytes of a rejected record's JSON text that are kept; the rest is cut.
pub const REJECTED_JSON_BYTES_MAX: usize = 16 * 1024;
/// Bytes of ids of records to be announced once that a run remembers: 64 and the length of the item type for each.
pub const ONCE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of them in a checkpoint, as JSON, if there is room for that.
pub const ONCE_CHECKPOINT_BYTES_MAX: usize = 128 * 1024;
/// Bytes of records at the edge that a run remembers for the next: 80 and the length of the item type for each.
pub const EDGE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of them in a checkpoint, as JSON, if there is room for that: once for the run and once for the unit.
pub const EDGE_CHECKPOINT_BYTES_MAX: usize = 64 * 1024;
/// Ids that an extractor is asked for at once.
pub const REFETCH_IDS: usize = 100;
/// Finished and abandoned runs whose counts the ledger keeps, per sync unit.
pub const LEDGER_RUNS_MAX: u64 = 1_000;
/// A watermark further ahead of the clock than this comes from a bad clock and is not used.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(5 * 60);

/// How many bytes a worker state may take, as posted. The explorer uses smaller limits, so that it comes near them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StateLimits {
    /// At which an invocation ends.
    pub(crate) soft: usize,
    /// Above which it is not saved.
    pub(crate) max: usize,
    /// For what an extractor sets.
    pub(crate) own: usize,
}

impl Default for StateLimits {
    fn default() -> Self {
        Self { soft: CHECKPOINT_BYTES_SOFT, max: CHECKPOINT_BYTES_MAX, own: CHECKPOINT_STATE_BYTES_MAX }
    }
}

/// The prefix of our own unit ids: the external-sync-units phase has no sync unit to keep its state under.
pub(crate) const RESERVED_UNIT_PREFIX: &str = "@external-sync-units/";
/// The prefix of our own value keys: what a run keeps beside its rows.
pub(crate) const RESERVED_VALUE_PREFIX: &str = "@highwater/";
/// The value key for the connector's own keys of the worker state, if the extractor sets them.
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
            reason: "it must not contain control characters".to_owned(),
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
            /// Accepts a name of 1 to [`ID_BYTES_MAX`] bytes without control characters.
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
    /// The id, in the external system, of the record that a child listing belongs to.
    pub(crate) ParentId = "the parent of a child listing";
    /// The platform's id of an uploaded batch.
    pub ArtifactId = "the artifact id";
    /// The name of a small value of the extractor's own.
    pub(crate) ValueKey = "the value key";
}

/// The kind of a record within a sync unit. It becomes a file name, so it must not contain a slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemType(String);

impl ItemType {
    /// Accepts a name of 1 to [`ID_BYTES_MAX`] bytes without control characters or slashes.
    ///
    /// # Errors
    /// `TooLarge` or `Invalid`, naming it.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        check_name("the item type", &name)?;
        if name.contains(['/', '\\']) {
            return Err(Error::Invalid {
                what: format!("the item type {name:?}"),
                reason: "it becomes a file name, so it must not contain a slash".to_owned(),
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

    /// The same moment; if chrono cannot represent it, the nearest one that it can.
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

    /// The time since `earlier`; zero if that is later.
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
    /// The containers that can be chosen; only before a first import, and without a sync unit.
    ExternalSyncUnits,
    /// The record types.
    Metadata,
    /// The records.
    Data,
    /// The files that records refer to.
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

/// Whether an event starts a phase or continues it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// It starts the phase.
    Start,
    /// It continues the phase.
    Continue,
}

/// What an event means for the run that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// The phase starts or continues.
    Work,
    /// The phase is over already: its DONE is sent again, with nothing new in it.
    Repeat,
    /// The phases before it are not over, so records would be lost: ERROR.
    Refuse,
}

/// Decides what an event of `phase` means for a run whose phase is `current` and which has completed `done`.
///
/// A CONTINUE of a phase that never started means that a PROGRESS was accepted which this store does not know of: the
/// store is an old copy, and to go on from it would lose records.
pub(crate) fn phase_move(current: Option<Phase>, done: Phases, step: Step, phase: Phase) -> Move {
    if done.contains(phase) {
        return Move::Repeat;
    }
    // Attachments come after data; a platform that has the metadata already may skip that phase.
    let skips_data = phase == Phase::Attachments && !done.contains(Phase::Data);
    match current {
        Some(current) if current > phase => Move::Repeat,
        Some(current) if current == phase => Move::Work,
        Some(current) if !done.contains(current) => Move::Refuse,
        _ if step == Step::Continue || skips_data => Move::Refuse,
        _ => Move::Work,
    }
}

/// A safety rule that a negative control can disable, to show that a check notices it.
#[cfg_attr(
    not(feature = "testing"),
    allow(dead_code, unreachable_pub, reason = "`testing` disables them, and makes them public")
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
    /// An id is given up only if, before its confirm was refused, no attempt ended with an unknown outcome.
    IdKeptInDoubt,
    /// Events that were seen are remembered.
    EventsRemembered,
    /// An abandoned run does not move the watermark.
    AbandonedLeavesWatermark,
    /// The unit is keyed by `sync_unit_id`.
    KeyedBySyncUnit,
    /// Without a disk: only what a saved checkpoint names is confirmed.
    ConfirmAfterSave,
    /// Without a disk: only a message in a saved checkpoint is sent.
    SendAfterSave,
    /// Without a disk: a checkpoint is taken between pages.
    CutAtPages,
    /// Without a disk: the holder's token is compared for equality, not for being newer.
    HolderToken,
    /// Without a disk: what would not fit in the worker state is refused when it is set.
    StateFits,
    /// An opened store shows only durable rows, also those that a killed owner had not synced. Without this rule,
    /// nothing is synced between opening a store and its first change, which syncs everything.
    DurableAtOpen,
    /// A rejected record is kept to be requested again.
    RejectedKept,
    /// The id of a record that is announced once is kept with the page that brings it.
    OnceKept,
    /// Unchanged records are left out for what a finished run has announced, and not for what the current run has.
    EdgeOfFinished,
    /// Without a disk: a checkpoint knows of the staged records exactly those up to its position, which its cursors
    /// name.
    KnownAtPosition,
    /// The pages of a listing are committed in the order in which they were fetched.
    PagesInOrder,
    /// A deletion that was done before, or that a past run asks for, changes nothing.
    DeletedOnce,
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

    #[test]
    fn a_limit_is_what_the_documentation_and_the_peers_know() {
        assert_eq!(BATCH_BYTES_MAX, 67_108_864);
        assert_eq!((CURSOR_BYTES_MAX, VALUE_BYTES_MAX), (65_536, 65_536));
        assert_eq!(CLOCK_AHEAD_MAX.as_secs(), 300);
    }

    #[test]
    fn a_name_is_kept_and_shown_as_it_was_given() {
        let item_type = ItemType::new("issues").unwrap();
        assert_eq!((item_type.as_str(), item_type.to_string().as_str()), ("issues", "issues"));
        let unit = SyncUnitId::new("acme/tickets").unwrap();
        assert_eq!((unit.as_str(), unit.to_string().as_str()), ("acme/tickets", "acme/tickets"));
        assert_eq!(
            Phase::ALL.map(|phase| phase.to_string()).join(", "),
            "external sync units, metadata, data, attachments"
        );
    }

    #[test]
    fn a_span_between_moments_is_never_negative_and_never_overflows() {
        let (earlier, later) = (Micros(1_000_000), Micros(3_500_000));
        assert_eq!(later.since(earlier), Duration::from_millis(2_500));
        assert_eq!(earlier.since(later), Duration::ZERO);
        assert_eq!(Micros(i64::MIN).since(Micros(i64::MAX)), Duration::ZERO);
        assert_eq!(earlier.plus(Duration::from_millis(2_500)), later);
        assert_eq!(later.minus(Duration::from_millis(2_500)), earlier);
        assert_eq!(later.plus(Duration::MAX), Micros(i64::MAX));
        assert_eq!(Micros(0).minus(Duration::MAX), Micros(-i64::MAX));
        assert_eq!(Micros(-3).minus(Duration::MAX), Micros(i64::MIN));
    }

    #[test]
    fn the_phases_behind_a_run_are_told_apart() {
        for among in 0..16_u8 {
            let mut done = Phases::default();
            let chosen = |at: usize| among & (1 << at) != 0;
            Phase::ALL
                .iter()
                .enumerate()
                .filter(|(at, _)| chosen(*at))
                .for_each(|(_, &phase)| done.insert(phase));
            for (at, &phase) in Phase::ALL.iter().enumerate() {
                assert_eq!(done.contains(phase), chosen(at), "{done:?} {phase}");
                let mut with = done;
                with.insert(phase);
                let mut without = with;
                without.remove(phase);
                assert!(with.contains(phase) && !without.contains(phase), "{done:?} {phase}");
                without.remove(phase);
                assert_eq!(
                    without == done,
                    !chosen(at),
                    "removing {phase} twice touched another of {done:?}"
                );
            }
        }
        assert_eq!(Phase::ALL.map(Phase::continues), [false, false, true, true]);
    }

    /// The current phase of a run, its completed phases, an event, and what that means.
    type Case = (Option<Phase>, &'static [Phase], Step, Phase, Move);

    #[test]
    fn an_event_means_what_the_run_has_behind_it_allows() {
        use Move::{Refuse, Repeat, Work};
        use Phase::{Attachments, Data, ExternalSyncUnits as Units, Metadata};
        use Step::{Continue, Start};
        let table: &[Case] = &[
            // A run begins with any phase except attachments, which come after data, and never with a CONTINUE.
            (None, &[], Start, Units, Work),
            (None, &[], Start, Metadata, Work),
            (None, &[], Start, Data, Work),
            (None, &[], Start, Attachments, Refuse),
            (None, &[], Continue, Metadata, Refuse),
            (None, &[], Continue, Data, Refuse),
            (None, &[], Continue, Attachments, Refuse),
            // The current phase goes on, also if the platform sends START again.
            (Some(Metadata), &[], Start, Metadata, Work),
            (Some(Data), &[], Continue, Data, Work),
            (Some(Data), &[Metadata], Start, Data, Work),
            (Some(Attachments), &[Data], Continue, Attachments, Work),
            // A completed phase is repeated.
            (Some(Metadata), &[Metadata], Start, Metadata, Repeat),
            (Some(Data), &[Data], Continue, Data, Repeat),
            (Some(Attachments), &[Data, Attachments], Start, Attachments, Repeat),
            (Some(Attachments), &[Data, Attachments], Start, Data, Repeat),
            // Phases before the current one are over, even if they were skipped.
            (Some(Data), &[], Start, Metadata, Repeat),
            (Some(Attachments), &[Data], Start, Metadata, Repeat),
            // The next phase starts once the current one is over; not before, and not with a CONTINUE.
            (Some(Metadata), &[Metadata], Start, Data, Work),
            (Some(Metadata), &[], Start, Data, Refuse),
            (Some(Metadata), &[Metadata], Continue, Data, Refuse),
            (Some(Data), &[Data], Start, Attachments, Work),
            (Some(Data), &[], Start, Attachments, Refuse),
            (Some(Data), &[Data], Continue, Attachments, Refuse),
            (Some(Metadata), &[Metadata], Start, Attachments, Refuse),
        ];
        for (current, behind, step, phase, expected) in table {
            let mut done = Phases::default();
            behind.iter().for_each(|&phase| done.insert(phase));
            let found = phase_move(*current, done, *step, *phase);
            assert_eq!(found, *expected, "{current:?} {behind:?} {step:?} {phase:?}");
        }
    }
}
