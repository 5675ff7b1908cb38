//! A local Airdrop, for who writes a connector in any language: over HTTP on this machine, strict in what it accepts,
//! with faults by setting, and with all that it was given in a directory.
//!
//! ```text
//! highwater-airdrop serve --dir out
//! highwater-airdrop sync --dir out -- COMMAND ARGS... {event}
//! ```
//!
//! `serve` is the addresses alone; `sync` also sends the events. See [`highwater_airdrop::Local`] for what is in the
//! directory, which can be looked at while it runs, and outlives it; beside that, `calls.jsonl` has a line for each call
//! and how it was answered, and `blueprints.jsonl` and `mappings.jsonl` what a connector installed.

mod api;
#[path = "../../examples/common/mod.rs"]
mod common;
mod drive;
mod external;
mod fault;
mod form;
mod http;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use highwater::Phase;
use highwater_airdrop::{Local, SyncSettings};

use crate::api::Api;
use crate::common::{Failure, chain, finish, print};
use crate::drive::{Drive, Driven, Worker};
use crate::fault::Fault;
use crate::http::Request;

// Lines of at most 98 characters: clap would break longer ones where it is narrow.
const AFTER_HELP: &str = "\
Exit codes: 0 the run ended DONE (sync); 1 it did not, or something failed; 2 wrong usage.

What a connector does at the addresses of its event; whatever else is refused with a reason:
  GET  /internal/airdrop.artifacts.upload-url
       Authorization: Bearer TOKEN; request_id, file_type, file_name, file_size
  POST /upload/ID
       no token; a form of every field of form_data, then the part `file`, as long as was told
  POST /internal/airdrop.artifacts.confirm-upload
       Bearer; request_id, artifact_id (404: it was never uploaded)
  GET  /internal/airdrop.artifacts.download-url
       Bearer; request_id, artifact_id
  GET  WORKER_DATA_URL.get, POST WORKER_DATA_URL.update
       Authorization: TOKEN; sync_unit, request_id (404: none yet; 413: over 1 MB of state);
       the extraction scope is objects.json in the directory, if that is there
  POST CALLBACK_URL
       Authorization: TOKEN; a message (413: over 200,000 bytes; 400: it names an artifact that is
       not uploaded and confirmed, or an `ssor_attachment` artifact a line of which does, or, in a
       `sync`, does not echo all of its event's event_context; 409: the event has another already;
       the same bytes again: 200)
  GET  /internal/snap-ins.get, POST /internal/airdrop.recipe.blueprints.create
  POST /internal/airdrop.recipe.initial-domain-mappings.install
       Authorization: TOKEN
Nowhere is a body taken in chunks (411), or one that is not as long as it says (400).

What is there beside Airdrop:
  GET  /ext/attachment/N?bytes=B
       a file to extract; of every third N its length is not told. Byte i is the highest of
       (N + 1) * 2654435761 + (i / 4) * 2246822519 in 32 bits, plus i % 4
  GET, POST, DELETE /faults
       the faults and how often each came true; more of them; lift all, or ?fault=FAULT

Faults (--fault). Calls of a kind are counted from 1 since the server was started:
  CALL-STATUS         every CALL is answered STATUS, 400 to 599, without effect; until lifted
  CALL-STATUS:N       the N-th CALL
  CALL-STATUS:N,K     the N-th and those after it, K in all
  CALL-lost[:N[,K]]   it takes effect, and the connection is closed without an answer
  429:CALL,N,SECONDS  the N-th CALL is answered 429, with Retry-After
  ext-STATUS:N[,K]    file N to extract is answered STATUS, the first K times; until lifted
  ext-short:N[,K]     the connection is closed in the middle of file N
  ext-429:N,SECONDS   once, with Retry-After
CALL is prepare, upload, confirm, download-url, download, state-get, state, message, snap-in,
blueprint, mapping or attachment. Say:
  --fault upload-403:2 --fault upload-503:5,3 --fault message-lost:1 --fault 429:confirm,4,2
  --fault ext-404:7 --fault ext-429:8,2";

/// A local Airdrop over HTTP: strict in what it accepts, with faults by setting.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve the addresses until killed; the first line on standard output is what they begin with
    Serve(Serve),
    /// Serve them, and play a whole sync with a worker; one that did not come to its end is gone on with
    Sync(Box<Sync>),
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
struct Serve {
    /// The directory for all that Airdrop is given: made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The port, on 127.0.0.1 only [default: the last one of the directory, at first any that is free]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// A fault, see below; may be given again and again
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
struct Sync {
    #[command(flatten)]
    serve: Serve,
    /// The worker: a command, started for each event, which is in a file whose path takes the place of `{event}` in
    /// ARGS, or is appended to them
    #[arg(
        value_name = "COMMAND",
        last = true,
        required_unless_present = "function",
        conflicts_with = "function"
    )]
    command: Vec<String>,
    /// The worker: an address that each event is posted to. It answers when it has sent its message, or 202 before
    #[arg(long, value_name = "URL")]
    function: Option<String>,
    /// The external system's id of what is synced
    #[arg(long, value_name = "ID", default_value = "local-unit")]
    unit: String,
    /// Ask for everything anew (`reset_extract_from`), where a sync of the unit was finished before
    #[arg(long)]
    full: bool,
    /// The phases of the sync, in their own order; a worker that waits for a phase that never comes takes the run for
    /// unfinished [default: all; units are listed by a first sync only]
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    phases: Vec<PhaseName>,
    /// Spell events the newer way: `START_EXTRACTING_DATA` for `EXTRACTION_DATA_START`
    #[arg(long)]
    newer_names: bool,
    /// How long an invocation may take before it is killed
    #[arg(long, value_name = "TIME", default_value = "13m", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// The longest that a DELAY is waited out, say 1s. (A worker that comes too early may ask for the rest again)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    fast_delays: Option<Duration>,
    /// How often an event is given again to a worker that ended without a message
    #[arg(long, value_name = "N", default_value_t = 5)]
    restarts: u64,
    /// How often the phase is started again, in the same run, after an ERROR
    #[arg(long, value_name = "N", default_value_t = 0)]
    retry_errors: u64,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
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
    };
    finish(done)
}

impl Serve {
    /// Opens the directory and the port. The port is remembered: events that wait for their answer name it.
    fn open(&self) -> Result<(TcpListener, Arc<Api>), Failure> {
        let local = Local::open(&self.dir)?;
        let path = self.dir.join("port.txt");
        let last = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let port = self.port.or(last).unwrap_or(0);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
            format!("cannot serve at port {port}: {error}; --port chooses another, --port 0 any that is free")
        })?;
        let port = listener.local_addr()?.port();
        fs::write(&path, format!("{port}\n"))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let api = Api::new(local, format!("http://127.0.0.1:{port}"), &self.faults);
        Ok((listener, Arc::new(api)))
    }

    fn forever(&self) -> Result<ExitCode, Failure> {
        let (listener, api) = self.open()?;
        print(&format!("{}\n", api.base()))?;
        Err(answer(&listener, api).into())
    }
}

/// Answers requests; returns when none can be had any more.
fn answer(listener: &TcpListener, api: Arc<Api>) -> io::Error {
    http::serve(listener, &Arc::new(move |request: &mut Request<'_>| api.handle(request)))
}

impl Sync {
    fn run(self) -> Result<ExitCode, Failure> {
        let (listener, api) = self.serve.open()?;
        eprintln!("{}", api.base());
        let server = Arc::clone(&api);
        std::thread::spawn(move || eprintln!("error: no more requests: {}", answer(&listener, server)));
        let mut settings = SyncSettings::new(self.unit)
            .endpoint(api.base())
            .newer_names(self.newer_names)
            .error_retries(self.retry_errors);
        if !self.phases.is_empty() {
            settings = settings.phases(self.phases.into_iter().map(Phase::from));
        }
        if self.full {
            settings = settings.context("reset_extract_from", true);
        }
        let worker = self.function.map_or(Worker::Command(self.command), Worker::Function);
        let (budget, restarts_max, delay_max) = (self.budget, self.restarts, self.fast_delays);
        let driven = Drive { settings, worker, budget, restarts_max, delay_max }.run(&api);
        print(&if self.json { format!("{}\n", driven.to_json()) } else { summary(&driven) })?;
        match &driven.failure {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => {
                eprintln!("error: {}", chain(failure.as_ref()));
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

fn summary(driven: &Driven) -> String {
    let Some(report) = &driven.report else { return String::new() };
    let kind = if report.initial { "first" } else { "incremental" };
    let end = if driven.failure.is_none() { "done" } else { "not done" };
    let mut text = format!(
        "run {}: {kind} sync, {end}\n\n{:<26}{:>12}{:>12}\n",
        report.run, "item type", "records", "artifacts"
    );
    // Writing to a string does not fail.
    for (item_type, totals) in &report.items {
        let _ = writeln!(text, "{item_type:<26}{:>12}{:>12}", totals.records, totals.artifacts);
    }
    let invocations: u64 = report.invocations.values().sum();
    let (messages, restarts, seconds) = (report.messages, driven.restarts, driven.took.as_secs_f64());
    let _ = writeln!(
        text,
        "\n{invocations} invocations, {restarts} restarts, {messages} messages, {seconds:.2} s"
    );
    text
}
