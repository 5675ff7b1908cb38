//! The acts that an extractor is exposed to, as one line of text that can be replayed.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

use super::crash::CrashPoint;
use super::disk::DiskOperation;

/// A call to the outside world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// The first half of an upload: the request for an id and an address.
    Prepare,
    /// The second half: the bytes.
    Upload,
    /// A confirm.
    Confirm,
    /// A message.
    Message,
    /// A page of the source.
    Page,
    /// An attachment is opened.
    Open,
    /// The extractor's client asks the source: [`Life::source`](super::Life::source).
    Source,
    /// An artifact is asked back.
    Download,
    /// The worker state is fetched.
    LoadState,
    /// The worker state is saved.
    SaveState,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallFault {
    /// It takes effect, and the answer is lost. For a page or an attachment: the extractor panics.
    Lost,
    /// 5xx, and it did not take effect. For a page: it fails midway.
    ErrorBefore,
    /// 5xx, but it took effect. For a page: it fails midway.
    ErrorAfter,
    /// No answer for 30 seconds, and no effect. For a page: it fails midway.
    TimedOut,
    /// 429, with or without `Retry-After` in seconds. For a page or an attachment: the source is rate-limited.
    Busy(Option<u32>),
    /// A final 4xx. For a page: the cursor has expired; for an attachment: it is gone.
    Refused(u16),
    /// The answer is lost, and it takes effect later: before the next call. For a page: it fails midway.
    Late,
    /// A status that neither confirms nor refuses, such as 408 or 425, or a redirect, which is not followed.
    Status {
        /// The status.
        code: u16,
        /// Whether it took effect.
        applied: bool,
    },
    /// The connection is reset in the middle of a body, after it took effect or before.
    Reset {
        /// Whether it took effect.
        applied: bool,
    },
    /// It takes effect, but the body of the 2xx is invalid.
    BadBody,
    /// The storage behind an upload's URL refuses the bytes for a temporary reason.
    Storage(u16),
    /// An upload gets the artifact id of an earlier one.
    SameId,
    /// A save of the worker state is acknowledged but never happens. Outside of the promise.
    Dropped,
    /// The worker state from before the newest save is returned. Outside of the promise.
    Stale,
    /// The worker state is returned cut in half.
    Truncated,
}

/// One thing that happens. Numbers count from 0: calls of their kind, events sent, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// A call fails in this way.
    Call {
        /// The kind of call.
        call: Call,
        /// The number of the call.
        number: u64,
        /// How it fails.
        fault: CallFault,
    },
    /// The disk has room for this many more writes in one life.
    DiskFull {
        /// Which life.
        life: u64,
        /// Writes that still succeed.
        writes: u64,
    },
    /// An operation of the disk fails once in one life.
    DiskFails {
        /// Which life.
        life: u64,
        /// The kind of the operation.
        operation: DiskOperation,
        /// How many of them succeed before.
        after: u64,
    },
    /// An event is delivered again right after it was answered.
    Again {
        /// Which event.
        event: u64,
    },
    /// An event is delivered again after the next one was answered.
    Late {
        /// Which event.
        event: u64,
    },
    /// The platform does not wait as long as DELAY asked.
    Early {
        /// The event that was answered with DELAY.
        event: u64,
    },
    /// A life that got this event and died with nothing sealed is followed by CONTINUE, not by the same event again.
    Overtake {
        /// Which event.
        event: u64,
    },
    /// After this event the platform gives up the run, starts a new one, and then sends one more event of the old
    /// run.
    GiveUp {
        /// Which event.
        event: u64,
    },
    /// The platform uses the ids of this CONTINUE for all later ones.
    ReuseIds {
        /// Which event.
        event: u64,
    },
    /// The clock is wrong from this event on.
    ClockSteps {
        /// Which event.
        event: u64,
        /// By how much, ahead or back.
        seconds: i64,
    },
    /// In one life, after this many successful syncs, one fails, and what was written since the last sync is lost:
    /// the system has dropped its pages.
    DiskForgets {
        /// Which life.
        life: u64,
        /// Syncs that still succeed.
        after: u64,
    },
    /// With a disk: before this change outside, somebody replaces the store's file by a new one, and a second worker
    /// gets the same event.
    StoreReplaced {
        /// How many changes the world outside had seen.
        changes: usize,
    },
    /// Without a disk: before this change outside, a second worker gets the event that the first is still working on.
    /// Outside of the promise.
    SecondWorker {
        /// How many changes the world outside had seen.
        changes: usize,
    },
    /// The worker that is at work after this change outside is asked to stop, as by SIGTERM.
    Stop {
        /// How many changes the world outside had seen.
        changes: usize,
    },
    /// A setting of the platform, of the runtime or of the source, for all of the schedule.
    With(Setting),
    /// Without a disk: a life finds the disk that an earlier one left.
    StaleDisk {
        /// Which life.
        life: u64,
        /// Whose disk it finds.
        of: u64,
    },
    /// A second sync unit, of the same external one, is synced between the two syncs of the first.
    TwoUnits,
    /// The machine loses power; it comes back with what the disk had kept.
    Crash {
        /// How many changes the world outside had seen.
        changes: usize,
        /// What the disk had recorded, since it was started last, and what it kept.
        point: CrashPoint,
    },
    /// The process is killed on a machine that keeps running.
    Kill {
        /// How many changes the world outside had seen.
        changes: usize,
        /// What the disk had recorded, since it was started last.
        position: usize,
    },
}

/// Settings that differ from the usual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Setting {
    /// Events and answers have the newer names.
    NewerNames,
    /// The platform has no attachments phase: a run ends with its data phase.
    NoAttachments,
    /// The first sync begins with the list of external sync units, in an artifact.
    Units,
    /// The same, with the units in the message itself.
    UnitsInline,
    /// Records of the item type `users` are out of scope.
    Scope,
    /// The source has an initial domain mapping.
    Mapping,
    /// The source's records are checked, and what is found is counted.
    ChecksReport,
    /// The source's records are checked, and a page with an error is refused.
    ChecksRefuse,
    /// Invalid records are rejected: some of them are corrected at the source before the next sync, others are gone.
    Rejects,
    /// After the first sync its state is deleted; during the next one, the same event is delivered again.
    DeleteData,
    /// After the first sync the state of its attachments is deleted; during the next one, the same event is delivered
    /// again.
    DeleteAttachments,
    /// Events have no run id, no request id and no number.
    NoIds,
    /// Without a disk: a worker that takes over waits and reads again.
    Settle,
    /// Without a disk: the TypeScript SDK has left a state.
    SdkState,
    /// Without a disk: a worker state has little room, and the source fills it, at times beyond the limit.
    StateFull,
    /// Pages of the source name child listings.
    Children,
    /// Pages of up to three listings are fetched at once.
    AtOnce,
    /// Users are announced once in a run, and many pages bring the same ones.
    Once,
    /// The next page of a listing is fetched ahead of the commit of the last.
    Ahead,
    /// Comments are at the edge: many come again in the next sync, some of them changed, and unchanged ones are left
    /// out.
    Edge,
}

impl Setting {
    const ALL: [(Setting, &'static str); 20] = [
        (Setting::NewerNames, "newer-names"),
        (Setting::NoAttachments, "no-attachments-phase"),
        (Setting::Units, "units"),
        (Setting::UnitsInline, "units-inline"),
        (Setting::Scope, "scope"),
        (Setting::Mapping, "mapping"),
        (Setting::ChecksReport, "checks-report"),
        (Setting::ChecksRefuse, "checks-refuse"),
        (Setting::Rejects, "rejects"),
        (Setting::DeleteData, "delete-data"),
        (Setting::DeleteAttachments, "delete-attachments"),
        (Setting::NoIds, "no-ids"),
        (Setting::Settle, "settle"),
        (Setting::SdkState, "sdk-state"),
        (Setting::StateFull, "state-full"),
        (Setting::Children, "children"),
        (Setting::AtOnce, "at-once"),
        (Setting::Once, "once"),
        (Setting::Ahead, "ahead"),
        (Setting::Edge, "edge"),
    ];
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(setting, _)| setting == self).map_or("", |(_, name)| name))
    }
}

impl Act {
    /// Whether it is outside of what is promised (N6 of the crate doc): two live workers without a disk, and saves
    /// that arrive late or never.
    pub fn is_outside_the_promise(&self) -> bool {
        matches!(
            self,
            Act::SecondWorker { .. } | Act::Call { fault: CallFault::Dropped | CallFault::Stale, .. }
        )
    }
}

/// A seed and acts: everything that a replay needs. Its text form reads back as the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// Decides what the simulated source returns and in which order calls are made.
    pub seed: u64,
    /// What happens to the extractor.
    pub acts: Vec<Act>,
}

impl Call {
    const ALL: [(Call, &'static str); 10] = [
        (Call::Prepare, "prepare"),
        (Call::Upload, "upload"),
        (Call::Confirm, "confirm"),
        (Call::Message, "message"),
        (Call::Page, "page"),
        (Call::Open, "open"),
        (Call::Source, "source"),
        (Call::Download, "download"),
        (Call::LoadState, "load-state"),
        (Call::SaveState, "save-state"),
    ];
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Call::ALL.iter().find(|(call, _)| call == self).map_or("", |(_, name)| name))
    }
}

impl fmt::Display for CallFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallFault::Lost => f.write_str("lost"),
            CallFault::ErrorBefore => f.write_str("500-before"),
            CallFault::ErrorAfter => f.write_str("500-after"),
            CallFault::TimedOut => f.write_str("timed-out"),
            CallFault::Busy(None) => f.write_str("429"),
            CallFault::Busy(Some(seconds)) => write!(f, "429-after-{seconds}"),
            CallFault::Refused(status) => write!(f, "refused-{status}"),
            CallFault::Late => f.write_str("late"),
            CallFault::Status { code, applied: false } => write!(f, "{code}-before"),
            CallFault::Status { code, applied: true } => write!(f, "{code}-after"),
            CallFault::Reset { applied: false } => f.write_str("reset-before"),
            CallFault::Reset { applied: true } => f.write_str("reset-after"),
            CallFault::BadBody => f.write_str("bad-body"),
            CallFault::Storage(status) => write!(f, "storage-{status}"),
            CallFault::SameId => f.write_str("same-id"),
            CallFault::Dropped => f.write_str("dropped"),
            CallFault::Stale => f.write_str("stale"),
            CallFault::Truncated => f.write_str("truncated"),
        }
    }
}

impl FromStr for CallFault {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "lost" => CallFault::Lost,
            "late" => CallFault::Late,
            "500-before" => CallFault::ErrorBefore,
            "500-after" => CallFault::ErrorAfter,
            "timed-out" => CallFault::TimedOut,
            "429" => CallFault::Busy(None),
            "reset-before" => CallFault::Reset { applied: false },
            "reset-after" => CallFault::Reset { applied: true },
            "bad-body" => CallFault::BadBody,
            "same-id" => CallFault::SameId,
            "dropped" => CallFault::Dropped,
            "stale" => CallFault::Stale,
            "truncated" => CallFault::Truncated,
            _ => {
                if let Some(seconds) = text.strip_prefix("429-after-") {
                    CallFault::Busy(Some(number(seconds)?))
                } else if let Some(status) = text.strip_prefix("refused-") {
                    CallFault::Refused(number(status)?)
                } else if let Some(status) = text.strip_prefix("storage-") {
                    CallFault::Storage(number(status)?)
                } else if let Some(code) = text.strip_suffix("-before") {
                    CallFault::Status { code: number(code)?, applied: false }
                } else {
                    let code = text.strip_suffix("-after").ok_or(())?;
                    CallFault::Status { code: number(code)?, applied: true }
                }
            }
        })
    }
}

const OPERATIONS: [(DiskOperation, &str); 4] = [
    (DiskOperation::Read, "read"),
    (DiskOperation::Write, "write"),
    (DiskOperation::SetLen, "set-len"),
    (DiskOperation::Sync, "sync"),
];

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Call { call, number, fault } => write!(f, "call={call}/{number}/{fault}"),
            Act::DiskFull { life, writes } => write!(f, "disk-full={life}/{writes}"),
            Act::DiskFails { life, operation, after } => {
                let name = OPERATIONS.iter().find(|(of, _)| of == operation).map_or("", |(_, name)| name);
                write!(f, "disk-fails={life}/{name}/{after}")
            }
            Act::Again { event } => write!(f, "again={event}"),
            Act::Late { event } => write!(f, "late={event}"),
            Act::Early { event } => write!(f, "early={event}"),
            Act::Overtake { event } => write!(f, "overtake={event}"),
            Act::GiveUp { event } => write!(f, "give-up={event}"),
            Act::ReuseIds { event } => write!(f, "reuse-ids={event}"),
            Act::ClockSteps { event, seconds } => write!(f, "clock={event}/{seconds}"),
            Act::DiskForgets { life, after } => write!(f, "disk-forgets={life}/{after}"),
            Act::StoreReplaced { changes } => write!(f, "store-replaced={changes}"),
            Act::SecondWorker { changes } => write!(f, "second-worker={changes}"),
            Act::Stop { changes } => write!(f, "stop={changes}"),
            Act::With(setting) => write!(f, "with={setting}"),
            Act::StaleDisk { life, of } => write!(f, "stale-disk={life}/{of}"),
            Act::TwoUnits => f.write_str("two-units"),
            Act::Crash { changes, point } => write!(f, "crash={changes}@{point}"),
            Act::Kill { changes, position } => write!(f, "kill={changes}@{position}"),
        }
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, ()> {
    text.parse().map_err(drop)
}

impl FromStr for Act {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, rest) = text.split_once('=').unwrap_or((text, ""));
        let mut parts = rest.split('/');
        let mut part = || parts.next().ok_or(());
        let at = || rest.split_once('@').ok_or(());
        Ok(match name {
            "call" => {
                let call = part()?;
                let call = Call::ALL.iter().find(|(_, name)| *name == call).ok_or(())?.0;
                Act::Call { call, number: number(part()?)?, fault: part()?.parse()? }
            }
            "disk-full" => Act::DiskFull { life: number(part()?)?, writes: number(part()?)? },
            "disk-fails" => {
                let life = number(part()?)?;
                let operation = part()?;
                let operation = OPERATIONS.iter().find(|(_, name)| *name == operation).ok_or(())?.0;
                Act::DiskFails { life, operation, after: number(part()?)? }
            }
            "again" => Act::Again { event: number(rest)? },
            "late" => Act::Late { event: number(rest)? },
            "early" => Act::Early { event: number(rest)? },
            "overtake" => Act::Overtake { event: number(rest)? },
            "give-up" => Act::GiveUp { event: number(rest)? },
            "reuse-ids" => Act::ReuseIds { event: number(rest)? },
            "clock" => Act::ClockSteps { event: number(part()?)?, seconds: number(part()?)? },
            "disk-forgets" => Act::DiskForgets { life: number(part()?)?, after: number(part()?)? },
            "store-replaced" => Act::StoreReplaced { changes: number(rest)? },
            "second-worker" => Act::SecondWorker { changes: number(rest)? },
            "stop" => Act::Stop { changes: number(rest)? },
            "with" => {
                let setting = Setting::ALL.iter().find(|(_, name)| *name == rest).ok_or(())?.0;
                Act::With(setting)
            }
            "stale-disk" => Act::StaleDisk { life: number(part()?)?, of: number(part()?)? },
            "two-units" => Act::TwoUnits,
            "crash" => {
                let (changes, point) = at()?;
                Act::Crash { changes: number(changes)?, point: point.parse().map_err(drop)? }
            }
            "kill" => {
                let (changes, position) = at()?;
                Act::Kill { changes: number(changes)?, position: number(position)? }
            }
            _ => return Err(()),
        })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={}", self.seed)?;
        self.acts.iter().try_for_each(|act| write!(f, " {act}"))
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |part: &str| Error::Invalid {
            what: format!("{part:?} in a schedule"),
            reason: "expected `seed=NUMBER` and acts as a report prints them, with spaces between".to_owned(),
        };
        let mut parts = text.split_whitespace();
        let first = parts.next().unwrap_or_default();
        let seed =
            first.strip_prefix("seed=").and_then(|seed| seed.parse().ok()).ok_or_else(|| wrong(first))?;
        let acts = parts.map(|part| part.parse().map_err(|()| wrong(part))).collect::<Result<_, _>>()?;
        Ok(Self { seed, acts })
    }
}
