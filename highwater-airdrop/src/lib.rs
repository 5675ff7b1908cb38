//! A local Airdrop: plays the platform's part for a connector in any language, and says what was lost.
//!
//! # How it is laid out
//!
//! From the bottom up; each uses only what is above it in this list.
//!
//! | module | what it is |
//! |---|---|
//! | `error` | what can go wrong |
//! | `local`, `local/lines`, `local/driver`, `local/events` | [`Local`]: the platform as files of a directory, and the events of a sync, one at a time. All that is durable is here |
//! | `call` | what can be called, and the line of `calls.jsonl` that is kept of each call |
//! | `http`, `form`, `external` | HTTP/1.1 and multipart forms as a server hears them; files to extract |
//! | `fault` | [`Fault`]: what is made to become of a call |
//! | `worker` | a worker that is started, watched and killed as a process group, or called as a function |
//! | `api`, `artifacts`, `message` | Airdrop's addresses: what is refused, and what is only noted as a [`Lint`] |
//! | `sync` | [`Airdrop`]: a directory that is served; [`Airdrop::sync`]: a whole sync with a worker |
//! | `audit` | [`audit()`]: what a run came to, from the files |
//! | `verify/recording`, `verify/source` | what a connector's external system answered, and a proxy that records and replays it |
//! | `verify/compare` | what was delivered, record by record, and what two syncs differ in |
//! | `verify/cases` | what can go wrong, and where; and which of it is tried |
//! | `verify/report`, `verify/html` | [`VerifyReport`]: what the cases came to, as text, JSON, or a page for a browser |
//! | `verify` | [`verify()`]: a clean sync, and then one after another in which one thing goes wrong |
//!
//! The binary adds the command line. Without the feature `program` there is `Local` alone, which an extractor that is
//! linked with `highwater` can use in place of HTTP.
//!
//! # Many syncs at once
//!
//! Nothing is shared between two [`Airdrop`]s: each has a folder and a port, and the one worker that runs for it. So
//! a hundred syncs, each with another thing that goes wrong, are a loop over a hundred folders in as many threads as
//! there are cores. What goes wrong with the K-th call is [`Fault::at`]; what goes wrong with an invocation is
//! [`Disturbance`]; both say afterwards, in [`Outcome::faults`] and `calls.jsonl`, whether it came true. What was
//! delivered is read back, record by record, with [`named`] and [`each_line`].
//!
//! ```no_run
//! # use std::path::Path;
//! use highwater_airdrop::{Act, Airdrop, AirdropOptions, Fault, SyncOptions, SyncSettings, Worker, audit};
//!
//! # fn main() -> highwater_airdrop::Result<()> {
//! let mut options = AirdropOptions::default();
//! options.port = Some(0);
//! options.faults = vec![Fault::at(7, Act::Kill { applied: true })];
//! let airdrop = Airdrop::start(Path::new("out/case-7"), options)?;
//! let worker = Worker::Command(vec!["node".into(), "connector.js".into(), "{event}".into()]);
//! let outcome = airdrop.sync(&SyncOptions::new(SyncSettings::new("acme")), &worker, &mut |_| {});
//! if let Some(report) = &outcome.report {
//!     println!("{}", audit(airdrop.local(), report, outcome.is_done())?);
//! }
//! # Ok(())
//! # }
//! ```

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]

mod error;
mod local;

#[cfg(feature = "program")]
mod api;
#[cfg(feature = "program")]
mod artifacts;
#[cfg(feature = "program")]
mod audit;
#[cfg(feature = "program")]
mod call;
#[cfg(feature = "program")]
mod external;
#[cfg(feature = "program")]
mod fault;
#[cfg(feature = "program")]
#[allow(clippy::indexing_slicing, reason = "its own buffer, by places that were found in it")]
mod form;
#[cfg(feature = "program")]
#[allow(clippy::indexing_slicing, reason = "its own buffers, by the counts that were read into them")]
mod http;
#[cfg(feature = "program")]
mod message;
#[cfg(feature = "program")]
mod sync;
#[cfg(feature = "program")]
mod verify;
#[cfg(feature = "program")]
mod worker;

pub use error::{Error, Result, chain};
pub use local::{
    ItemTotals, Local, LocalEvent, Messages, SyncReport, SyncSettings, SyncStep, UPLOAD_BYTES_MAX,
    WORKER_STATE_BYTES_MAX,
};

#[cfg(feature = "program")]
pub use {
    api::Observer,
    audit::{
        Audit, AuditFinding, InvocationFigures, Named, Verdict, audit, calls, each_line, named, record_id,
    },
    call::{Call, CallRecord, Content, Lint},
    fault::{Act, Fault},
    sync::{
        AfterDeath, Airdrop, AirdropOptions, BUDGET, Disturbance, Invocation, LINGER, Names, Outcome,
        Progress, Stopper, SyncOptions, invocations, time_setting,
    },
    verify::{
        CallObserver, SourceOptions, StopAll, VerifyOptions, VerifyProgress,
        cases::Which,
        compare::{RecordKey, SetAside},
        report::{CaseResult, CaseVerdict, CleanFigures, End, Place, TimelineCall, VerifyReport},
        source::SOURCE_PLACE,
        verify,
    },
    worker::{DIR_PLACE, DIR_VARIABLE, EVENT_PLACE, OUTPUT_BYTES_MAX, Worker},
};
