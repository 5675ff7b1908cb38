//! A local Airdrop: it plays the platform for a connector in any language, and reports what was lost.
//!
//! # How it is laid out
//!
//! From the bottom up; each uses only what is above it in this list.
//!
//! | module | what it is |
//! |---|---|
//! | `error` | the errors |
//! | `local`, `local/lines`, `local/driver`, `local/events` | [`Local`]: the platform as files in a directory, and the events of a sync, one at a time. Everything durable is here |
//! | `call` | the calls that exist, and the line of `calls.jsonl` for each |
//! | `http`, `form`, `external` | HTTP/1.1 and multipart forms on the server's side; files to extract |
//! | `fault` | [`Fault`]: what goes wrong with a call, when requested |
//! | `worker` | the worker: started, watched and killed as a process group, or called as a function |
//! | `api`, `artifacts`, `message` | Airdrop's addresses: what is refused, and what is only noted as a [`Lint`] |
//! | `sync` | [`Airdrop`]: a directory that is served; [`Airdrop::sync`]: a whole sync with a worker |
//! | `audit` | [`audit()`]: the result of a run, from the files |
//! | `verify/recording`, `verify/source` | the recorded answers of a connector's external system, and a proxy that records and replays them |
//! | `verify/compare` | the delivered records, and how those of two syncs differ |
//! | `verify/cases` | what can go wrong, and where; and which cases are tried |
//! | `verify/report`, `verify/html` | [`VerifyReport`]: the results of the cases, as text, JSON, or a page for a browser |
//! | `verify` | [`verify()`]: a clean sync, and then many in each of which one thing goes wrong |
//!
//! The binary adds the command line. Without the feature `program` there is only [`Local`], which an extractor that
//! links `highwater` can use instead of HTTP.
//!
//! # Many syncs at once
//!
//! Two [`Airdrop`]s share nothing: each has its own folder, port and worker. So a hundred syncs with different faults
//! are a loop over a hundred folders, in as many threads as there are cores. [`Fault::at`] makes the K-th call fail,
//! and [`Disturbance`] disturbs an invocation; [`Outcome::faults`] and `calls.jsonl` show which faults occurred.
//! [`named`] and [`each_line`] read the delivered records.
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
mod message_check;
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
        Audit, AuditFinding, FailedAttachment, InvocationFigures, Named, RecordFindings, Verdict, audit,
        calls, each_line, named, record_id,
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
        recording::RecordedFailures,
        report::{CaseResult, CaseVerdict, CleanFigures, End, Place, TimelineCall, VerifyReport},
        source::SOURCE_PLACE,
        verify,
    },
    worker::{DIR_PLACE, DIR_VARIABLE, EVENT_PLACE, OUTPUT_BYTES_MAX, Worker},
};
