//! A local Airdrop for authors of connectors in any language: over HTTP on this machine, with faults on request,
//! everything that it receives in a directory, and an audit of what was lost.
//!
//! ```text
//! highwater-airdrop serve --dir out
//! highwater-airdrop sync --dir out -- COMMAND ARGS... {event}
//! highwater-airdrop verify --dir out -- COMMAND ARGS... {event}
//! ```
//!
//! `serve` only serves the addresses; `sync` also sends the events; `verify` does that many times, with one thing
//! going wrong each time. See [`highwater_airdrop`] for how it is made.

// These macros panic if the reader is gone: see `tell` and `print`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod verifying;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use highwater::Phase;
use highwater_airdrop::{
    AfterDeath, Airdrop, AirdropOptions, Audit, Call, CallRecord, Fault, Invocation, Outcome, Progress,
    SyncOptions, SyncSettings, Verdict, Worker, audit, chain, time_setting,
};
use serde_json::{Value, json};

use crate::verifying::Verify;

type Failure = highwater::BoxError;

// Lines of at most 98 characters: clap would break longer ones where it is narrow.
const AFTER_HELP: &str = "\
The report of a sync: the verdict is `clean`; `suspicious`, if something looks wrong; `unfinished`,
if the run did not end with DONE, so that what is not announced may still follow; or `lost`, if
something that was uploaded is not announced. A `note` does not change it. Item types that are not
the connector's own: external_sync_units, what can be synced; external_domain_metadata, the
metadata; attachments, the files that it names; ssor_attachment, those of them that were uploaded.

Exit codes: 0 the run ended DONE and the audit is clean (sync); 1 it did not, or something failed;
2 wrong usage; 3 the run ended DONE, and the audit is suspicious, or something was lost.

What a connector does at the addresses of its event. A request that deviates is refused with a
reason if the platform, or the file store behind it, is known to refuse it; otherwise it is noted
as a lint (--strict refuses that, too):
  GET  /internal/airdrop.artifacts.upload-url
       Authorization: Bearer TOKEN; request_id, file_type, file_name [, file_size]
  POST /upload/ID
       no token; a form with every field of form_data, then the part `file`, of the declared size
  POST /internal/airdrop.artifacts.confirm-upload
       Bearer; request_id, artifact_id (404: it was never uploaded)
  GET  /internal/airdrop.artifacts.download-url
       Bearer; request_id, artifact_id
  GET  WORKER_DATA_URL.get, POST WORKER_DATA_URL.update
       Authorization: TOKEN; sync_unit, request_id (404: none yet; 413: over 1 MB of state);
       the extraction scope is objects.json in the directory, if it exists
  POST CALLBACK_URL
       Authorization: TOKEN; a message (413: over 200,000 bytes). Lints: the message, or a line of
       an `ssor_attachment` artifact in it, names an artifact that is not uploaded and confirmed;
       in a `sync`, it does not echo all of its event's event_context; the event already has a
       message. The same bytes again are the same message if they come with an Idempotency-Key
  GET  /internal/snap-ins.get, POST /internal/airdrop.recipe.blueprints.create
  POST /internal/airdrop.recipe.initial-domain-mappings.install
       Authorization: TOKEN
No address accepts a chunked body (411), or one that is shorter than declared (400).

Further addresses, which Airdrop does not have:
  GET  /ext/attachment/N?bytes=B
       a file to extract; the length is not sent for every third N. Byte i is the highest of
       (N + 1) * 2654435761 + (i / 4) * 2246822519 in 32 bits, plus i % 4
  GET, POST, DELETE /faults
       list the faults and how often each occurred; add faults; remove all, or ?fault=FAULT

Faults (--fault). Calls of a kind are counted from 1 since the server was started:
  CALL-STATUS         every CALL is answered STATUS, 400 to 599, without effect; until removed
  CALL-STATUS:N       the N-th CALL
  CALL-STATUS:N,K     the N-th and those after it, K in all
  CALL-STATUS-applied[:N[,K]]   it takes effect, and is answered STATUS
  CALL-lost[:N[,K]]   it takes effect, and the connection is closed without an answer
  CALL-hangup[:N[,K]] the connection is closed without an answer, and without effect
  CALL-slow[:N[,K]]   it takes effect, and is answered after 10 seconds
  CALL-kill-before, CALL-kill-after[:N[,K]]   the worker is killed before or after it takes effect
  CALL-kill-later[:N[,K]]   it is answered, and the worker is killed 10 ms after
  429:CALL,N,SECONDS  the N-th CALL is answered 429, with Retry-After
  ext-STATUS:N[,K]    file N to extract is answered STATUS, the first K times; until removed
  ext-short:N[,K]     the connection is closed in the middle of file N
  ext-429:N,SECONDS   once, with Retry-After
CALL is prepare, upload, confirm, download-url, download, state-get, state, message, snap-in,
blueprint, mapping or attachment; or `any`, where N counts all calls but those of files. Examples:
  --fault upload-403:2 --fault upload-503:5,3 --fault message-lost:1 --fault 429:confirm,4,2
  --fault ext-404:7 --fault ext-429:8,2";

/// A local Airdrop over HTTP: it refuses what Airdrop refuses, and fails on demand
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve the addresses until killed; the first line on standard output is their base URL
    Serve(Serve),
    /// Serve them, and run a whole sync with a worker, or continue an unfinished one
    Sync(Box<Sync>),
    /// Search for losses: a clean sync first, then many with one fault each, compared record by record
    Verify(Box<Verify>),
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
struct Serve {
    /// The directory for everything that Airdrop receives; created if it does not exist
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The port, on 127.0.0.1 only [default: the directory's last port, at first any free one]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// A fault, see below; may be repeated
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// Refuse what only looks wrong
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
struct Sync {
    #[command(flatten)]
    serve: Serve,
    #[command(flatten)]
    worker: Worked,
    /// Request everything again (`reset_extract_from`), even if a sync of the unit was finished before
    #[arg(long)]
    full: bool,
    /// The mode of the sync [default: initial until one of the unit was finished]
    #[arg(long, value_name = "MODE", value_enum)]
    mode: Option<ModeName>,
    /// How long an invocation may take before it is killed
    #[arg(long, value_name = "TIME", default_value = "13m", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// How often a phase is started again, in the same run, after an ERROR
    #[arg(long, value_name = "N", default_value_t = 0)]
    retry_errors: u64,
    /// Do not print the worker's output; it is in worker.log in the directory
    #[arg(long)]
    quiet: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// The worker and its input: the same in `sync` and in `verify`.
#[derive(Debug, Args)]
pub(crate) struct Worked {
    /// The worker: a command, started for each event. The path of a file with the event replaces `{event}` in its
    /// arguments, or is appended to them. `{dir}` in its arguments, and `HIGHWATER_DIR` in its environment, is the
    /// worker's own folder
    #[arg(
        value_name = "COMMAND",
        last = true,
        required_unless_present = "function",
        conflicts_with = "function"
    )]
    command: Vec<String>,
    /// The worker: an address to which each event is posted. It answers after it has sent its message, or with 202
    /// before that
    #[arg(long, value_name = "URL")]
    function: Option<String>,
    /// A command for `sh` that kills the function and starts it again; it must end when the function can be called
    /// again. Needed for faults that kill the worker
    #[arg(long, value_name = "CMD", requires = "function")]
    kill: Option<String>,
    /// The external system's id of the sync unit
    #[arg(long, value_name = "ID", default_value = "local-unit")]
    unit: String,
    /// The phases of the sync; their order is fixed. A worker that expects a phase that is left out here sees the run
    /// as unfinished [default: all; external sync units in a first sync only]
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    phases: Vec<PhaseName>,
    /// How events are spelled: `EXTRACTION_DATA_START` (seed) or `START_EXTRACTING_DATA` (newer). A worker that does
    /// not know them answers `UNKNOWN_EVENT_TYPE`, or nothing
    #[arg(long, value_name = "SPELLING", value_enum, default_value_t = Spelled::Seed)]
    names: Spelled,
    /// The event's `connection_data`: the address of the external system, and the key to it. As JSON, or as @FILE:
    /// every user of this machine can read arguments (`ps`)
    #[arg(long, value_name = "JSON|@FILE")]
    connection_data: Option<String>,
    /// Fields that are merged into the `event_context` of every event, as a JSON object or @FILE
    #[arg(long, value_name = "JSON|@FILE")]
    event_context: Option<String>,
    /// `extraction_start_time`: a time, the name of a type (`unbounded`, `workers_newest`), or a JSON object
    #[arg(long, value_name = "WHEN", value_parser = time_setting)]
    extraction_start: Option<Value>,
    /// `extraction_end_time`, in the same forms
    #[arg(long, value_name = "WHEN", value_parser = time_setting)]
    extraction_end: Option<Value>,
    /// An environment variable of the worker; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// The longest wait for a DELAY, such as 1s. (A worker that comes too early may ask for the rest again)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    fast_delays: Option<Duration>,
    /// How often an event is given again to a worker that ended without a message
    #[arg(long, value_name = "N", default_value_t = 5)]
    restarts: u64,
    /// What the platform does if an invocation ended without a message: it gives the same event again, sends
    /// CONTINUE, or gives up the run
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Death::Again)]
    after_death: Death,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Death {
    Again,
    Continue,
    GiveUp,
}

impl From<Death> for AfterDeath {
    fn from(death: Death) -> Self {
        match death {
            Death::Again => AfterDeath::Again,
            Death::Continue => AfterDeath::Continue,
            Death::GiveUp => AfterDeath::GiveUp,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Spelled {
    Seed,
    Newer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeName {
    Initial,
    Incremental,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PhaseName {
    Units,
    Metadata,
    Data,
    Attachments,
}

impl From<PhaseName> for Phase {
    fn from(name: PhaseName) -> Self {
        match name {
            PhaseName::Units => Phase::ExternalSyncUnits,
            PhaseName::Metadata => Phase::Metadata,
            PhaseName::Data => Phase::Data,
            PhaseName::Attachments => Phase::Attachments,
        }
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Serve(serve) => serve.forever(),
        Action::Sync(sync) => sync.run(),
        Action::Verify(verify) => verify.run(),
    };
    done.unwrap_or_else(|failure| {
        tell(&format!("error: {}", chain(failure.as_ref())));
        ExitCode::FAILURE
    })
}

/// Prints a line on standard error. A closed standard error is not a failure.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints to standard output. A reader that has closed the pipe is not a failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        Err("the name is empty".to_owned())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}

/// The JSON object in an argument, or in the file named after an `@`. Its value is never part of an error: it may
/// contain a key.
fn object(option: &str, argument: &str) -> Result<serde_json::Map<String, Value>, Failure> {
    let text = match argument.strip_prefix('@') {
        Some(path) => {
            fs::read_to_string(path).map_err(|error| format!("cannot read {path} ({option}): {error}"))?
        }
        None => argument.to_owned(),
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(format!("{option} takes a JSON object, or @FILE with one").into()),
        Err(error) => {
            Err(format!("{option} is not JSON, at line {} column {}", error.line(), error.column()).into())
        }
    }
}

impl Serve {
    fn open(&self) -> Result<Airdrop, Failure> {
        let mut options = AirdropOptions::default();
        options.port = self.port;
        options.faults.clone_from(&self.faults);
        options.strict = self.strict;
        let teller = Mutex::new(Teller::default());
        options.observer = Some(Arc::new(move |call: &CallRecord| {
            teller.lock().unwrap_or_else(PoisonError::into_inner).tell(call);
        }));
        Ok(Airdrop::start(&self.dir, options)?)
    }

    fn forever(&self) -> Result<ExitCode, Failure> {
        let airdrop = self.open()?;
        print(&format!("{}\n", airdrop.base()))?;
        airdrop.wait();
        Err("no more requests are accepted".into())
    }
}

/// Reports refusals and what looks wrong on standard error: the first few of each kind.
#[derive(Debug, Default)]
struct Teller {
    told: std::collections::BTreeMap<String, u64>,
}

impl Teller {
    /// How many of each kind are reported.
    const TOLD_MAX: u64 = 5;

    fn tell(&mut self, call: &CallRecord) {
        let is_no_state = call.call == Call::StateGet && call.status == Some(404);
        if let (Some(status), Some(reason), false) = (call.status, &call.reason, is_no_state) {
            self.say(
                format!("{} refused", call.call),
                &format!("{} refused with {status}: {reason}", call.call),
            );
        }
        for lint in &call.lints {
            self.say(lint.rule.clone(), &format!("{} looks wrong [{}]: {}", call.call, lint.rule, lint.text));
        }
    }

    fn say(&mut self, kind: String, text: &str) {
        let times = self.told.entry(kind).or_default();
        *times += 1;
        match *times {
            ..=Self::TOLD_MAX => tell(text),
            times if times == Self::TOLD_MAX + 1 => {
                tell(&format!("{text} (more of these are in calls.jsonl)"));
            }
            _ => {}
        }
    }
}

impl Worked {
    /// The settings of a sync.
    pub(crate) fn settings(&self) -> Result<SyncSettings, Failure> {
        let mut settings = SyncSettings::new(&self.unit).newer_names(self.names == Spelled::Newer);
        if !self.phases.is_empty() {
            settings = settings.phases(self.phases.iter().copied().map(Phase::from));
        }
        if let Some(data) = &self.connection_data {
            settings = settings.connection_data(object("--connection-data", data)?);
        }
        let times = [
            ("extraction_start_time", &self.extraction_start),
            ("extraction_end_time", &self.extraction_end),
        ];
        for (field, time) in times {
            if let Some(time) = time {
                settings = settings.context(field, time.clone());
            }
        }
        if let Some(context) = &self.event_context {
            for (field, value) in object("--event-context", context)? {
                settings = settings.context(field, value);
            }
        }
        Ok(settings)
    }

    /// How to run a sync with these settings.
    pub(crate) fn options(&self, settings: SyncSettings) -> SyncOptions {
        let mut options = SyncOptions::new(settings);
        options.restarts_max = self.restarts;
        options.after_death = self.after_death.into();
        options.delay_max = self.fast_delays;
        options.env.clone_from(&self.env);
        options.kill.clone_from(&self.kill);
        options
    }

    pub(crate) fn worker(&self) -> Worker {
        match &self.function {
            Some(url) => Worker::Function(url.clone()),
            None => Worker::Command(self.command.clone()),
        }
    }
}

impl Sync {
    fn run(self) -> Result<ExitCode, Failure> {
        let mut settings = self.worker.settings()?.error_retries(self.retry_errors);
        if self.full {
            settings = settings.context("reset_extract_from", true);
        }
        if let Some(mode) = self.mode {
            settings = settings.initial(mode == ModeName::Initial);
        }
        let airdrop = self.serve.open()?;
        tell(airdrop.base());
        let stopper = airdrop.stopper();
        end_with_signals(move || stopper.stop(), "run the same command again to continue the sync")?;
        let mut options = self.worker.options(settings);
        options.budget = self.budget;
        options.echo = !self.quiet;
        let outcome = airdrop.sync(&options, &self.worker.worker(), &mut |progress| match progress {
            Progress::Run(run) => tell(&format!("run {run}")),
            Progress::Waiting(event, time) => {
                tell(&format!("{event}: in {}", humantime::format_duration(*time)));
            }
            Progress::Ended(invocation, says) => tell(&ended(invocation, says)),
            _ => {}
        });
        let audited = match &outcome.report {
            Some(report) => Some(audit(airdrop.local(), report, outcome.is_done())?),
            None => None,
        };
        print(&if self.json {
            to_json(&outcome, audited.as_ref())
        } else {
            summary(&outcome, audited.as_ref())
        })?;
        if let Some(failure) = &outcome.failure {
            tell(&format!("error: {}", chain(failure)));
            if self.worker.function.is_none()
                && self.quiet
                && airdrop.local().dir().join("worker.log").exists()
            {
                let log = airdrop.local().dir().join("worker.log");
                tell(&format!("the worker's output is in {}", log.display()));
            }
            return Ok(ExitCode::FAILURE);
        }
        let clean = audited.is_some_and(|audit| audit.verdict == Verdict::Clean);
        Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(3) })
    }
}

/// How long to wait, after a signal, for the workers to be killed.
const STOP: Duration = Duration::from_secs(5);

/// The worker has its own process group: a signal that ends this program must end it, too.
fn end_with_signals(stop: impl Fn() + Send + 'static, then: &'static str) -> Result<(), Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // The command that kills a function may take longer.
            let (done, over) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                stop();
                let _ = done.send(());
            });
            let _ = over.recv_timeout(STOP);
            tell(&format!("ended by a signal; {then}"));
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// How an invocation ended, for people.
fn ended(invocation: &Invocation, says: &str) -> String {
    let failure = invocation.failure.as_ref().map(|failure| format!(" ({failure})")).unwrap_or_default();
    format!("{}: {says} after {:.1} s{failure}", invocation.event_type, invocation.seconds)
}

fn to_json(outcome: &Outcome, audit: Option<&Audit>) -> String {
    let mut value = outcome.to_json();
    if let Value::Object(object) = &mut value {
        // Without a run there is nothing to audit.
        let verdict = audit.map_or(Verdict::Unfinished, |audit| audit.verdict);
        object.insert("verdict".to_owned(), json!(verdict));
        object.insert("audit".to_owned(), json!(audit));
    }
    format!("{value}\n")
}

fn summary(outcome: &Outcome, audit: Option<&Audit>) -> String {
    let Some(report) = &outcome.report else { return String::new() };
    let kind = if report.initial { "first" } else { "incremental" };
    let end = if outcome.is_done() { "done" } else { "not done" };
    let mut text = format!(
        "run {}: {kind} sync, {end}\n\n{:<26}{:>12}{:>12}\n",
        report.run, "item type", "records", "artifacts"
    );
    // Writing to a string does not fail.
    for (item_type, totals) in &report.items {
        let _ = writeln!(text, "{item_type:<26}{:>12}{:>12}", totals.records, totals.artifacts);
    }
    let invocations: u64 = report.invocations.values().sum();
    let (messages, restarts, seconds) = (report.messages, outcome.restarts, outcome.took.as_secs_f64());
    let _ = writeln!(
        text,
        "\n{invocations} invocations, {restarts} restarts, {messages} messages, {seconds:.2} s"
    );
    match audit {
        Some(audit) if outcome.is_done() => drop(writeln!(text, "\n{audit}")),
        Some(audit) => drop(writeln!(text, "\nso far, as the sync is not done:\n{audit}")),
        None => {}
    }
    text
}
