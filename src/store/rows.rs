//! The rows of the store, their tables and their keys.
//!
//! A key is `unit: u64 big-endian`, then, if the row belongs to a run, `run: u64 big-endian`, then the rest: a name
//! as UTF-8 or a number as `u64 big-endian`. So a unit, and a run in it, is one range scan. A unit's number is never
//! used again, so the rows of a deleted unit cannot be taken for those of its successor. A number made from an id may
//! lead to the row of another id, so every lookup compares the id in the row (`digest`).
//!
//! | table | key after unit (and run) | value |
//! | --- | --- | --- |
//! | `meta` | `format`, alone | [`FormatRow`] |
//! | `units` | the sync unit id, alone | [`UnitRow`] |
//! | `runs` | run | [`RunRow`] |
//! | `run_ids` | number of the run id | [`RunIdRow`] |
//! | `streams` | run, stream name | [`StreamRow`] |
//! | `child_listings` | run, number | [`ChildRow`] |
//! | `child_listing_ids` | run, stream name, a zero byte, parent id | [`ChildIdRow`] |
//! | `child_streams` | run, stream name | [`ChildStreamRow`] |
//! | `types` | run, item type | [`TypeRow`] |
//! | `chunks` | run, item type, a zero byte, number | [`ChunkRow`]: lines of a batch that is still open |
//! | `batches` | run, seq | [`BatchRow`] |
//! | `payloads` | run, seq, number of the piece from 0 | a piece of a gzip member; in format 1 the whole, without a number |
//! | `bookmarks` | stream name | [`BookmarkRow`] |
//! | `values` | key; `@highwater/` and a name for a note of ours | JSON text |
//! | `events` | run, number of the identity | [`EventRow`] |
//! | `messages` | message number | [`MessageRow`] |
//! | `ledger` | run | [`LedgerRow`] |
//! | `findings` | run, item type, a zero byte, severity, a zero byte, rule, a zero byte, place | [`FindingRow`] |
//! | `rejected` | item type, a zero byte, id | [`RejectedRow`]: of finished runs, to be requested again |
//! | `rejected_in_run` | run, item type, a zero byte, id | [`RejectedRow`]: of the run that is open |
//! | `rejected_counts` | run, item type | [`RejectedCountRow`], for as long as the run is in the ledger |
//! | `once_ids` | run, item type, a zero byte, digest of the id | [`OnceRow`]: of a record that a run announces once |
//! | `once_counts` | run, item type | [`OnceCountRow`], for as long as the run is in the ledger |
//! | `edge` | run, item type, a zero byte, digest of the id | [`EdgeRow`]: of a record that the next run may be given again |
//! | `edge_of` | alone | [`EdgeOfRow`]: the finished run of which there are such records |
//! | `edge_counts` | run, item type | [`EdgeCountRow`], for as long as the run is in the ledger |
//! | `positions` | run | JSON text: where the last saved checkpoint stands |
//! | `queues` | run | [`QueueRow`] |
//! | `attachments` | run, number | [`AttachmentRow`] |
//! | `attachment_ids` | the parent's id, the id, each after its length in bytes as `u32 big-endian` | [`SeenRow`] |
//! | `seen_attachments` | hash of the parent's id, hash of the id | [`SeenByHashRow`], of format 1, until the attachment is named again |
//! | `most_read` | unit, stream name | [`MostReadRow`] |
//! | `past_runs` | the sync unit id, alone | [`PastRow`] |
//! | `attachment_files` | run, seq | [`FileRow`] |
//! | `failed_attachments`, `requeued_attachments` | run, number | [`FailedRow`] |
//! | `used_ids` | run, artifact id | [`UsedRow`] |
//! | `used_ids_newest` | run | [`UsedNewestRow`], where checkpoints are kept |
//! | `standings` | run | [`StandingRow`], of the last few finished runs |
//! | `standing_bookmarks` | run, stream name | [`BookmarkRow`], as that run left it |
//! | `rewound` | alone | [`RewoundRow`], until a run is finished again |
//! | `last_cursors` | run, stream name | JSON text: the last cursor that the stream had in that run |
//! | `next_cursors` | stream name | [`NextCursorRow`] |
//! | `acts` | the sync unit id, a zero byte, number | [`ActRow`] |
//! | `deaths` | run, epoch | [`DeathRow`] |

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::model::{Micros, Phase, Phases, RESERVED_VALUE_PREFIX};

use super::codec::{self, DecodeError};
use super::digest::{Digest, KnownId, name_hash};

/// A value of a table.
pub(crate) trait Row: Sized {
    fn to_bytes(&self) -> Result<Vec<u8>, DecodeError>;
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// A table, by its name and the type of its rows.
#[derive(Debug)]
pub(crate) struct Table<R> {
    pub(crate) name: &'static str,
    rows: PhantomData<fn() -> R>,
}

impl<R: Row> Table<R> {
    const fn new(name: &'static str) -> Self {
        Self { name, rows: PhantomData }
    }
}

macro_rules! tables {
    ($($table:ident: $row:ty = $name:literal;)*) => {
        $(pub(crate) const $table: Table<$row> = Table::new($name);)*
        /// All tables, to read everything that is stored.
        pub(crate) const ALL_TABLES: &[&str] = &[$($name),*];

        /// Whether bytes are a valid row of a table; `None` if there is no such table.
        #[cfg(feature = "inspect")]
        pub(crate) fn check_row(table: &str, bytes: &[u8]) -> Option<Result<(), DecodeError>> {
            match table {
                $($name => Some(<$row>::from_bytes(bytes).map(drop)),)*
                _ => None,
            }
        }
    };
}

tables! {
    META: FormatRow = "meta";
    UNITS: UnitRow = "units";
    RUNS: RunRow = "runs";
    RUN_IDS: RunIdRow = "run_ids";
    STREAMS: StreamRow = "streams";
    CHILDREN: ChildRow = "child_listings";
    CHILD_IDS: ChildIdRow = "child_listing_ids";
    CHILD_STREAMS: ChildStreamRow = "child_streams";
    TYPES: TypeRow = "types";
    CHUNKS: ChunkRow = "chunks";
    BATCHES: BatchRow = "batches";
    PAYLOADS: Payload = "payloads";
    BOOKMARKS: BookmarkRow = "bookmarks";
    VALUES: Json = "values";
    EVENTS: EventRow = "events";
    MESSAGES: MessageRow = "messages";
    LEDGER: LedgerRow = "ledger";
    FINDINGS: FindingRow = "findings";
    REJECTED: RejectedRow = "rejected";
    REJECTED_IN_RUN: RejectedRow = "rejected_in_run";
    REJECTED_COUNTS: RejectedCountRow = "rejected_counts";
    ONCE: OnceRow = "once_ids";
    ONCE_COUNTS: OnceCountRow = "once_counts";
    EDGE: EdgeRow = "edge";
    EDGE_OF: EdgeOfRow = "edge_of";
    EDGE_COUNTS: EdgeCountRow = "edge_counts";
    POSITIONS: Json = "positions";
    QUEUES: QueueRow = "queues";
    ATTACHMENTS: AttachmentRow = "attachments";
    SEEN: SeenRow = "attachment_ids";
    SEEN_BY_HASH: SeenByHashRow = "seen_attachments";
    MOST_READ: MostReadRow = "most_read";
    PAST: PastRow = "past_runs";
    FILES: FileRow = "attachment_files";
    FAILED: FailedRow = "failed_attachments";
    REQUEUED: FailedRow = "requeued_attachments";
    USED: UsedRow = "used_ids";
    USED_NEWEST: UsedNewestRow = "used_ids_newest";
    STANDINGS: StandingRow = "standings";
    STANDING_BOOKMARKS: BookmarkRow = "standing_bookmarks";
    REWOUND: RewoundRow = "rewound";
    LAST_CURSORS: Json = "last_cursors";
    NEXT_CURSORS: NextCursorRow = "next_cursors";
    ACTS: ActRow = "acts";
    DEATHS: DeathRow = "deaths";
}

/// A key, built part by part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    pub(crate) fn unit(no: u64) -> Self {
        Self(no.to_be_bytes().to_vec())
    }
    pub(crate) fn name(name: &str) -> Self {
        Self(name.as_bytes().to_vec())
    }
    pub(crate) fn and_number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }
    pub(crate) fn and_name(mut self, name: &str) -> Self {
        self.0.extend_from_slice(name.as_bytes());
        self
    }
    /// For a name that a checkpoint keeps only as a hash.
    pub(crate) fn and_hash(self, name: &str) -> Self {
        self.and_number(name_hash(name))
    }
    /// For a table of rejected records.
    pub(crate) fn and_rejected(self, item_type: &str, id: &str) -> Self {
        self.and_inner_name(item_type).and_name(id)
    }
    /// For an id of which there is no more than its digest.
    pub(crate) fn and_digest(self, digest: &Digest) -> Self {
        self.and_bytes(digest.as_bytes())
    }
    /// For an id of any length and content, which may be followed by more.
    pub(crate) fn and_id(mut self, id: &str) -> Self {
        // An id is part of a row of less than 4 GiB.
        let bytes = u32::try_from(id.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&bytes.to_be_bytes());
        self.0.extend_from_slice(id.as_bytes());
        self
    }
    /// For a name that is not the last part. Names hold no control characters, so a zero byte ends one.
    pub(crate) fn and_inner_name(mut self, name: &str) -> Self {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self
    }
    /// For the end of a key that was read.
    pub(crate) fn and_bytes(mut self, rest: &[u8]) -> Self {
        self.0.extend_from_slice(rest);
        self
    }
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
    /// The first key after all that start with this one; `None` if there is none.
    pub(crate) fn end(&self) -> Option<Key> {
        let mut end = self.0.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Some(Key(end));
            }
        }
        None
    }
}

/// The key of a run: the prefix of all its rows.
pub(crate) fn run_key(unit: u64, run: u64) -> Key {
    Key::unit(unit).and_number(run)
}

pub(crate) fn message_key(unit: u64, message: u64) -> Key {
    Key::unit(unit).and_number(message)
}

pub(crate) fn event_key(unit: u64, run: u64, hash: u64) -> Key {
    run_key(unit, run).and_number(hash)
}

/// Attachments of one parent are adjacent.
pub(crate) fn seen_key(unit: u64, parent_id: &str, id: &str) -> Key {
    Key::unit(unit).and_id(parent_id).and_id(id)
}

/// The key of format 1 for what [`seen_key`] leads to. Two attachments can share it.
pub(crate) fn seen_hash_key(unit: u64, parent_id: &str, id: &str) -> Key {
    Key::unit(unit).and_hash(parent_id).and_hash(id)
}

/// The key of a note, which no extractor can set.
pub(crate) fn note_key(unit: u64, name: &str) -> Key {
    Key::unit(unit).and_name(&format!("{RESERVED_VALUE_PREFIX}{name}"))
}

/// Attachments that a run queued again are kept in `requeued_attachments` from this number on until the run finishes,
/// so that an abandoned run loses none.
pub(crate) const KEPT_FROM: u64 = 1 << 63;

/// A run and a number at the end of a key.
pub(crate) fn run_and_number(tail: &[u8]) -> Result<(u64, u64), DecodeError> {
    let (run, number) = tail.split_at(tail.len().min(8));
    Ok((number_of(run)?, number_of(number)?))
}

/// A number at the end of a key.
pub(crate) fn number_of(tail: &[u8]) -> Result<u64, DecodeError> {
    let bytes: [u8; 8] = tail
        .try_into()
        .map_err(|_| DecodeError::Damaged(format!("its key ends in {} bytes instead of 8", tail.len())))?;
    Ok(u64::from_be_bytes(bytes))
}

/// A name at the end of a key.
pub(crate) fn name_of(tail: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(tail).map_err(|_| DecodeError::Damaged("its key is not UTF-8".to_owned()))
}

/// The item type and the id at the end of the key of a rejected record.
pub(crate) fn rejected_of(tail: &[u8]) -> Result<(&str, &str), DecodeError> {
    let parts = name_of(tail)?.split_once('\0');
    parts.ok_or_else(|| DecodeError::Damaged("its key has no item type".to_owned()))
}

/// The item type and the digest at the end of a key.
pub(crate) fn digest_of(tail: &[u8]) -> Result<(&str, Digest), DecodeError> {
    let damaged = || DecodeError::Damaged("its key has no item type and digest".to_owned());
    let end = tail.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
    let (name, digest) = tail.split_at_checked(end).ok_or_else(damaged)?;
    let digest = digest.split_first().and_then(|(_, digest)| Digest::from_bytes(digest));
    Ok((name_of(name)?, digest.ok_or_else(damaged)?))
}

macro_rules! bincode_rows {
    ($($row:ty = $version:literal $(, grew [$($grew:literal),*])?;)*) => {$(
        impl Row for $row {
            fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
                codec::encode($version, self)
            }
            fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
                codec::decode($version, &[$($($grew),*)?], bytes)
            }
        }
    )*};
}

bincode_rows! {
    FormatRow = 1;
    UnitRow = 1;
    RunRow = 2, grew [2];
    RunIdRow = 1;
    StreamRow = 2, grew [2];
    ChildRow = 1;
    ChildIdRow = 1;
    ChildStreamRow = 1;
    TypeRow = 2, grew [1];
    ChunkRow = 1;
    BatchRow = 1;
    BookmarkRow = 1;
    EventRow = 1;
    MessageRow = 2, grew [1];
    LedgerRow = 2, grew [2];
    FindingRow = 1;
    RejectedRow = 1;
    RejectedCountRow = 1;
    OnceRow = 1;
    OnceCountRow = 1;
    EdgeRow = 1;
    EdgeOfRow = 1;
    EdgeCountRow = 1;
    QueueRow = 1;
    AttachmentRow = 1;
    SeenRow = 1;
    SeenByHashRow = 1;
    MostReadRow = 1;
    PastRow = 1;
    FileRow = 1;
    FailedRow = 1;
    UsedRow = 1;
    UsedNewestRow = 1;
    StandingRow = 1;
    RewoundRow = 1;
    NextCursorRow = 1;
    ActRow = 1;
    DeathRow = 1;
}

/// Bytes that belong to others, stored unchanged: a piece of a gzip member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Vec<u8>);

impl Row for Payload {
    fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
        Ok(codec::seal(1, &self.0))
    }
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (_, body) = codec::open(bytes, 1)?;
        Ok(Self(body.to_vec()))
    }
}

/// JSON text that belongs to others, stored unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Json(pub(crate) String);

impl Row for Json {
    fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
        Ok(codec::seal(1, self.0.as_bytes()))
    }
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (_, body) = codec::open(bytes, 1)?;
        match std::str::from_utf8(body) {
            Ok(text) => Ok(Self(text.to_owned())),
            Err(_) => Err(DecodeError::Damaged("it is not UTF-8".to_owned())),
        }
    }
}

/// The format of the whole file, and the number that the next unit gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FormatRow {
    pub(crate) format: u32,
    pub(crate) next_unit: u64,
}

/// A sync unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnitRow {
    /// Its number in all other keys.
    pub(crate) no: u64,
    pub(crate) created_at: Micros,
    /// The newest run, over or not.
    pub(crate) run: Option<u64>,
    pub(crate) next_run: u64,
    pub(crate) next_message: u64,
    /// The time up to which a finished run vouches: the start of the last one.
    pub(crate) watermark: Option<Micros>,
    /// The oldest and the newest moment that finished runs were asked for.
    pub(crate) bounds: (Option<Micros>, Option<Micros>),
    /// For a unit with checkpoints: the holder token that was last found on the platform, and the one that was to
    /// replace it.
    pub(crate) holder: (Option<String>, Option<String>),
    /// The watermark that came from other software.
    pub(crate) inherited: Option<Micros>,
    /// The version of the connector that installed the mappings.
    pub(crate) connector_version: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunStatus {
    Open,
    Finished,
    /// A newer run replaced it, or its store was lost: it does not go on.
    Abandoned,
}

/// One run. It is rewritten with every page, so it contains no long list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRow {
    pub(crate) id: String,
    pub(crate) status: RunStatus,
    pub(crate) started_at: Micros,
    pub(crate) ended_at: Option<Micros>,
    /// The run extracts what was modified at or after this; `None`: everything.
    pub(crate) since: Option<Micros>,
    /// A watermark that was not used, because it lay in the future.
    pub(crate) since_ignored: Option<Micros>,
    /// What the platform asked for, once it is resolved.
    pub(crate) window: Option<WindowRow>,
    /// Raised by every life that resumes the run; writes of an older life are refused.
    pub(crate) epoch: u64,
    /// Begun by an event that cannot begin a run: the run's earlier records are not known here.
    pub(crate) lost: bool,
    pub(crate) phase: Option<Phase>,
    pub(crate) done: Phases,
    pub(crate) pages: u64,
    pub(crate) next_seq: u64,
    pub(crate) next_chunk: u64,
    /// Batches that are not yet acknowledged or announced.
    pub(crate) open_batches: u64,
    pub(crate) not_before: Option<NotBefore>,
    pub(crate) progress: Option<u8>,
    /// Events accepted, and the number of the newest one's row.
    pub(crate) events: u64,
    pub(crate) event: Option<u64>,
    /// How often the platform reused the ids of an answered event for a new one.
    pub(crate) events_reused: u64,
    /// The number of its first message.
    pub(crate) first_message: u64,
    /// The message that answers the newest event, if it is sealed.
    pub(crate) message: Option<u64>,
    /// After a message that was too large: artifacts that the next one may carry.
    pub(crate) artifacts_max: Option<u64>,
    /// Since version 2.
    pub(crate) activity: Activity,
}

/// What shows an operator whether a run is alive. A checkpoint does not have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Activity {
    /// When anything of the run was last stored.
    pub(crate) changed_at: Option<Micros>,
    /// Lives that ended without an answer.
    pub(crate) deaths: u64,
}

/// The window of the records to extract; without a beginning, from the start of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowRow {
    pub(crate) from: Option<Micros>,
    pub(crate) to: Micros,
}

/// When the source may be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotBefore {
    pub(crate) at: Micros,
    /// The wait that was asked for: a remaining wait longer than this means that the clock stepped back.
    pub(crate) asked_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunIdRow {
    pub(crate) run: u64,
    pub(crate) id: KnownId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamRow {
    pub(crate) phase: Phase,
    /// JSON text; `None` before the first page and after the last.
    pub(crate) cursor: Option<String>,
    pub(crate) exhausted: bool,
    pub(crate) pages: u64,
    pub(crate) items: u64,
    /// JSON text for the next run, used once this one has finished.
    pub(crate) bookmark: Option<String>,
    /// Since version 2.
    pub(crate) pace: Pace,
}

/// How fast a stream was read recently. A checkpoint does not have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pace {
    pub(crate) last_page_at: Option<Micros>,
    /// The newest minutes in which a page came, at most [`MINUTES_KEPT`], oldest first.
    pub(crate) minutes: Vec<MinuteRow>,
}

/// What a stream returned in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MinuteRow {
    /// Minutes since 1970.
    pub(crate) minute: i64,
    pub(crate) pages: u64,
    pub(crate) items: u64,
}

/// Five whole minutes, and the current one.
pub(crate) const MINUTES_KEPT: usize = 6;

pub(crate) const MINUTE_MICROS: i64 = 60_000_000;

impl Pace {
    /// Counts a page.
    pub(crate) fn add(&mut self, now: Micros, items: u64) {
        let minute = now.0.div_euclid(MINUTE_MICROS);
        // After a clock stepped back, minutes of the future are dropped.
        self.minutes.retain(|other| other.minute <= minute);
        match self.minutes.last_mut().filter(|last| last.minute == minute) {
            Some(last) => {
                last.pages += 1;
                last.items += items;
            }
            None => self.minutes.push(MinuteRow { minute, pages: 1, items }),
        }
        self.minutes.drain(..self.minutes.len().saturating_sub(MINUTES_KEPT));
        self.last_page_at = Some(now);
    }
}

/// The listing that waits for a child listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UnderRow {
    Nothing,
    Stream(String),
    /// Another child listing, by its number.
    Child(u64),
}

/// A child listing that is not exhausted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChildRow {
    pub(crate) stream: String,
    pub(crate) parent: String,
    /// JSON text of the extractor's.
    pub(crate) data: String,
    /// The number of the first child listing that the same page named.
    pub(crate) named_with: u64,
    pub(crate) under: UnderRow,
    /// JSON text; `None` before the first page.
    pub(crate) cursor: Option<String>,
}

/// Records that a child listing was named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChildIdRow {
    pub(crate) no: u64,
}

/// The counts of the child listings of one stream in one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChildStreamRow {
    pub(crate) named: u64,
    pub(crate) exhausted: u64,
    pub(crate) pages: u64,
    pub(crate) items: u64,
    /// Bytes of those that are not exhausted.
    pub(crate) pending_bytes: u64,
}

/// The counts of one item type in one run, and the contents of its open batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TypeRow {
    /// Records that the source gave.
    pub(crate) read: u64,
    /// Records that are not staged: out of scope, rejected, announced before in the run, or unchanged since the run
    /// before (`rejected_counts`, `once_counts` and `edge_counts` have how many).
    pub(crate) left_out: u64,
    /// Records in closed batches.
    pub(crate) batched: u64,
    /// Records whose batches the platform has linked to the run.
    pub(crate) confirmed: u64,
    /// Records in a sealed message, or acknowledged.
    pub(crate) announced: u64,
    pub(crate) batches: u64,
    pub(crate) artifacts_announced: u64,
    /// Items and bytes of the open batch, whose lines are in `chunks`.
    pub(crate) open_items: u32,
    pub(crate) open_bytes: u64,
    pub(crate) last_artifact: Option<String>,
    /// Bytes of the artifacts that are announced. Since version 2: those announced before are not counted.
    pub(crate) announced_bytes: u64,
}

/// The earliest and latest dates of some records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dates {
    pub(crate) created: Option<(Micros, Micros)>,
    pub(crate) modified: Option<(Micros, Micros)>,
}

impl Dates {
    pub(crate) fn add(&mut self, created: Option<Micros>, modified: Option<Micros>) {
        widen(&mut self.created, created.map(|at| (at, at)));
        widen(&mut self.modified, modified.map(|at| (at, at)));
    }
    pub(crate) fn merge(&mut self, other: Dates) {
        widen(&mut self.created, other.created);
        widen(&mut self.modified, other.modified);
    }
}

fn widen(range: &mut Option<(Micros, Micros)>, by: Option<(Micros, Micros)>) {
    *range = match (*range, by) {
        (Some((least, greatest)), Some((low, high))) => Some((least.min(low), greatest.max(high))),
        (one, None) | (None, one) => one,
    };
}

/// Lines of one item type, while their batch is open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkRow {
    pub(crate) items: u32,
    pub(crate) dates: Dates,
    #[serde(with = "serde_bytes")]
    pub(crate) lines: Vec<u8>,
}

/// The state of a batch. A batch that was acknowledged, or whose message was accepted, has no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BatchState {
    Staged,
    /// The platform has the bytes under the id; whether it has linked them to the run is unknown.
    Uploaded,
    Confirmed,
    /// Named by the sealed message of that number.
    Announced(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchRow {
    pub(crate) item_type: String,
    pub(crate) stream: String,
    /// The epoch in which it was staged: part of its key.
    pub(crate) epoch: u64,
    pub(crate) items: u32,
    pub(crate) line_bytes: u64,
    pub(crate) gzip_bytes: u64,
    pub(crate) dates: Dates,
    /// The cursor after it, if it is the last batch that its page closed.
    pub(crate) cursor_after: Option<String>,
    pub(crate) state: BatchState,
    /// Its artifact id; an id that was given up stays until there is another.
    pub(crate) artifact: Option<String>,
    /// The epoch in which it was uploaded: a later life cannot know whether its confirm was tried.
    pub(crate) uploaded_in: u64,
    /// How often the platform refused a confirm for good, so that the id was given up.
    pub(crate) given_up: u32,
    /// A saved checkpoint names it under its id.
    pub(crate) saved: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BookmarkRow {
    pub(crate) json: String,
    pub(crate) run: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventRow {
    pub(crate) identity: KnownId,
    /// Its place among the events of its run, from 1.
    pub(crate) order: u64,
    pub(crate) accepted_at: Micros,
    pub(crate) message: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MessageKind {
    Done,
    Progress,
    Delay,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MessageFate {
    /// It may or may not have been sent and accepted.
    Sealed,
    /// Its acceptance was recorded that often.
    Delivered { times: u32 },
    /// A later event proved that it had been accepted.
    Proven,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MessageRow {
    pub(crate) run: u64,
    pub(crate) phase: Phase,
    /// The number of the row of the event that it answers.
    pub(crate) event: u64,
    pub(crate) kind: MessageKind,
    pub(crate) event_type: String,
    pub(crate) fate: MessageFate,
    pub(crate) sealed_at: Micros,
    pub(crate) artifacts: u64,
    /// Its acceptance ends the run.
    pub(crate) finishes: bool,
    pub(crate) key: String,
    /// The JSON text.
    #[serde(with = "serde_bytes")]
    pub(crate) body: Vec<u8>,
    /// The error text of an ERROR. Since version 2; a checkpoint does not have it.
    pub(crate) error: Option<String>,
}

/// What remains of a run that is over.
///
/// A new figure of a run is first a field of [`RunRow`]. `lifecycle` copies it here when the run finishes, the
/// checkpoint carries both (`form`), `inspect/report` and `inspect/past_runs` show them, and `docs/dump.schema.json`
/// declares them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LedgerRow {
    pub(crate) id: String,
    pub(crate) status: RunStatus,
    pub(crate) started_at: Micros,
    pub(crate) ended_at: Micros,
    pub(crate) since: Option<Micros>,
    /// The watermark it set; `None` for an abandoned run.
    pub(crate) watermark: Option<Micros>,
    pub(crate) epochs: u64,
    pub(crate) pages: u64,
    pub(crate) events: u64,
    pub(crate) events_reused: u64,
    /// What checks found in its records.
    pub(crate) errors: u64,
    pub(crate) warnings: u64,
    pub(crate) types: Vec<LedgerType>,
    pub(crate) attachments: LedgerAttachments,
    /// Lives that ended without an answer. Since version 2.
    pub(crate) deaths: u64,
    /// Bytes of the artifacts of each of `types`, in their order. Since version 2; none if they are not known.
    pub(crate) bytes: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LedgerType {
    pub(crate) item_type: String,
    pub(crate) read: u64,
    pub(crate) left_out: u64,
    pub(crate) announced: u64,
    pub(crate) artifacts: u64,
}

/// Findings of one kind in the records of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FindingRow {
    pub(crate) count: u64,
    /// The first findings, as text.
    pub(crate) kept: Vec<String>,
}

/// The status of a rejected record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RejectedFate {
    /// It will be requested again.
    Rejected,
    /// This run requested it, and it passed.
    Passed,
    /// This run requested it, and the source does not have it any more.
    Gone,
}

/// A record that was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RejectedRow {
    pub(crate) fate: RejectedFate,
    /// The run that first rejected it, and when it was last rejected.
    pub(crate) run: u64,
    pub(crate) rejected_at: Micros,
    /// In how many runs it was requested and rejected again.
    pub(crate) asked: u32,
    pub(crate) kind: String,
    /// Empty if a checkpoint had no room for it.
    pub(crate) reason: String,
    /// The start of its JSON text, and the length of the whole; only for the first of each kind.
    pub(crate) json: Option<(String, u64)>,
}

/// Records of an item type that a run rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RejectedCountRow {
    pub(crate) records: u64,
}

/// That a record was staged which the run announces once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OnceRow {}

/// Records of an item type that a run announces once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OnceCountRow {
    /// Those that were left out, for the run had announced them before.
    pub(crate) repeated: u64,
    /// Ids that are kept.
    pub(crate) ids: u64,
    /// Records that were staged while there was no room for their ids, or whose ids a checkpoint had no room for.
    pub(crate) forgotten: u64,
}

/// A record at the edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EdgeRow {
    /// The digest of its line.
    pub(crate) content: Digest,
}

/// The finished run whose records at the edge a unit remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EdgeOfRow {
    pub(crate) run: u64,
    /// The watermark that it left the unit with.
    pub(crate) watermark: Micros,
}

/// Records of an item type at the edge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EdgeCountRow {
    /// Those that were left out, for they are unchanged since the run before.
    pub(crate) unchanged: u64,
    /// Those that this run keeps for the next.
    pub(crate) ids: u64,
    /// Those that had no room, in the store or in a checkpoint.
    pub(crate) forgotten: u64,
}

/// The attachments of one run: each that was queued is settled, failed, or in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LedgerAttachments {
    pub(crate) queued: u64,
    pub(crate) settled: u64,
    pub(crate) failed: u64,
}

/// The queue of one run's attachments, as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueRow {
    pub(crate) counts: LedgerAttachments,
    /// No attachment of this number or a higher one was ever tried.
    pub(crate) position: u64,
    /// Attachments that were queued again: of earlier runs, or failed ones of this run.
    pub(crate) requeued: u64,
    /// Staged records that announce a settled attachment: they belong to no stream.
    pub(crate) lines: u64,
    /// Restored from a checkpoint: the lines of `attachment_files` still have to be loaded.
    pub(crate) rebuild: bool,
}

/// An attachment that is not settled. Its number is the place of its line among all of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttachmentRow {
    /// Its line; empty if a checkpoint held only its number.
    pub(crate) json: String,
    /// The id under which the platform has its bytes, and the epoch in which it got them.
    pub(crate) artifact: Option<(String, u64)>,
    /// A saved checkpoint names this id.
    pub(crate) saved: bool,
    /// How often the platform refused a confirm for good, so that the id was given up.
    pub(crate) given_up: u32,
    /// Attempts that failed, when the next is due, and why the last one failed.
    pub(crate) tries: u32,
    pub(crate) ready_at: Option<Micros>,
    pub(crate) reason: Option<String>,
}

/// What is known of an attachment, whatever its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenRow {
    /// The run that queued it last, and its number there.
    pub(crate) run: u64,
    pub(crate) number: u64,
    /// The digest of its url, name and date.
    pub(crate) fingerprint: Digest,
    /// It was settled as failed.
    pub(crate) failed: bool,
}

/// The same, as format 1 wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenByHashRow {
    pub(crate) run: u64,
    pub(crate) number: u64,
    /// XXH3 of 64 bits, of the same.
    pub(crate) fingerprint: u64,
    pub(crate) failed: bool,
}

/// The most that a stream has read in a finished run: the most pages, and the most records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MostReadRow {
    pub(crate) pages: u64,
    pub(crate) items: u64,
}

/// What outlives the deletion of a unit's state, the newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastRow {
    /// Ids of runs.
    pub(crate) run_ids: Vec<KnownId>,
    /// Identities of the events that asked for a deletion, of the whole state or of attachments.
    pub(crate) deletions: Vec<KnownId>,
}

/// A batch of attachments' metadata: the queue can be rebuilt from its artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRow {
    /// Its artifact, once a message announces it.
    pub(crate) artifact: Option<String>,
    /// The number of its first line.
    pub(crate) first: u64,
    pub(crate) items: u32,
    /// Its lines are in the queue.
    pub(crate) loaded: bool,
}

/// An artifact id that the run has used, for any upload: it is not accepted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsedRow {
    pub(crate) used_at: Micros,
}

/// The artifact ids that a run has used, as its last saved checkpoint lists them: the newest last, each as 32 bits of
/// its XXH3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsedNewestRow {
    pub(crate) hashes: Vec<u32>,
}

/// A life of a run that ended without an answer, as the next life found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeathRow {
    /// When it last stored something; `None` if a checkpoint brought the run here.
    pub(crate) changed_at: Option<Micros>,
    pub(crate) found_at: Micros,
    /// Batches without an artifact id then, and records in them: each may have been uploaded, and is uploaded again.
    pub(crate) batches: u64,
    pub(crate) items: u64,
}

/// An attachment that was settled as failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailedRow {
    pub(crate) json: String,
    pub(crate) reason: String,
    pub(crate) tries: u32,
    pub(crate) failed_at: Micros,
}

/// The state in which a finished run left its unit, for a rewind. Its bookmarks are in a table of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StandingRow {
    pub(crate) watermark: Option<Micros>,
    pub(crate) bounds: (Option<Micros>, Option<Micros>),
    /// The number of bookmarks.
    pub(crate) bookmarks: u64,
}

/// The state that an operator has set a unit back to, until a run finishes from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RewoundRow {
    pub(crate) at: Micros,
    /// The finished run that it was set back to; `None`: to before the first.
    pub(crate) run: Option<u64>,
    pub(crate) watermark: Option<Micros>,
}

/// The cursor with which a stream begins in the next run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NextCursorRow {
    /// JSON text.
    pub(crate) json: String,
    /// The first run that it is for; it is used until that run or a later one finishes.
    pub(crate) from_run: u64,
    pub(crate) set_at: Micros,
}

/// What an operator did to a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActRow {
    pub(crate) at: Micros,
    /// Who did it, as they called themselves.
    pub(crate) by: String,
    /// In a few words.
    pub(crate) act: String,
    /// All that it changed, line by line.
    pub(crate) changes: Vec<String>,
}

#[cfg(test)]
mod tests;
