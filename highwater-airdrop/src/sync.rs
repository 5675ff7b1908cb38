//! Plays the platform for a whole sync of a worker that speaks HTTP: gives it one event after another, gives it the
//! same event again if it dies without an answer, and kills it when its time is over.
//!
//! [`Airdrop`] is a directory that is served; [`Airdrop::sync`] is one sync with it. Two of them share nothing, so
//! any number may run in one process, each with its own folder and port. There are three ways to make things go
//! wrong: [`Fault`]s of calls ([`AirdropOptions::faults`]), the [`Disturbance`] of an invocation
//! ([`SyncOptions::disturbance`]), and the options for delays, budgets and restarts.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use highwater::{Clock, SystemClock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{Api, Observer};
use crate::error::{Error, Result, chain};
use crate::fault::Fault;
use crate::http::Server;
use crate::local::{Local, LocalEvent, SyncReport, SyncSettings};
use crate::worker::{Limits, Runner, Worker, is_variable};

/// How long an invocation may take before it is killed, by default: the platform's limit, and a minute.
pub const BUDGET: Duration = Duration::from_secs(13 * 60);
/// How long a worker may go on after its message, by default.
pub const LINGER: Duration = Duration::from_secs(60);

/// How a directory is served.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct AirdropOptions {
    /// The port, on 127.0.0.1 only. `None`: the directory's last port or, the first time, any free one.
    pub port: Option<u16>,
    /// The faults.
    pub faults: Vec<Fault>,
    /// Whether requests that look wrong are refused instead of only noted.
    pub strict: bool,
    /// Called for each call, when it is answered.
    pub observer: Option<Observer>,
}

impl std::fmt::Debug for AirdropOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { port, faults, strict, observer: _ } = self;
        f.debug_struct("AirdropOptions")
            .field("port", port)
            .field("faults", faults)
            .field("strict", strict)
            .finish_non_exhaustive()
    }
}

/// A directory that is served over HTTP on this machine, until it is dropped.
#[derive(Debug)]
pub struct Airdrop {
    api: Arc<Api>,
    server: Server,
}

/// How the names of events are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// `EXTRACTION_DATA_START`
    #[default]
    Seed,
    /// `START_EXTRACTING_DATA`
    Newer,
}

/// What goes wrong with one invocation, on request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disturbance {
    /// The event is given once more after it was answered.
    Twice,
    /// The worker is killed this long after its start.
    KillAfter(Duration),
    /// The invocation may not take longer than this.
    Budget(Duration),
    /// The wait for the DELAY before the invocation takes this long instead.
    Delay(Duration),
}

/// What the platform does after an invocation that ended without a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AfterDeath {
    /// The platform gives the same event again.
    #[default]
    Again,
    /// The platform sends CONTINUE under another request id, if the phase has one; else the same event.
    Continue,
    /// The platform gives up the run. The next sync begins another.
    GiveUp,
}

/// The settings of a sync, and how its worker is run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SyncOptions {
    /// The run: unit, phases, names, context. Its endpoint and strictness are set by [`Airdrop::sync`].
    pub settings: SyncSettings,
    /// How long an invocation may take before it is killed.
    pub budget: Duration,
    /// How long a worker may go on after its message was accepted.
    pub linger: Duration,
    /// What follows an invocation that ended without a message.
    pub after_death: AfterDeath,
    /// How often in a row that may happen before the sync ends.
    pub restarts_max: u64,
    /// The longest wait for a DELAY.
    pub delay_max: Option<Duration>,
    /// Environment variables of the worker.
    pub env: Vec<(String, String)>,
    /// The worker's own folder; by default `worker` in the directory that is served.
    pub worker_dir: Option<PathBuf>,
    /// Whether each invocation finds that folder empty.
    pub fresh_disk: bool,
    /// Whether the worker's output goes to standard error, in addition to `worker.log`.
    pub echo: bool,
    /// The command, for `sh -c`, that kills a worker that is a function, and starts it again.
    pub kill: Option<String>,
    /// What goes wrong with the invocation of this number, from 1.
    pub disturbance: Option<(u64, Disturbance)>,
}

impl SyncOptions {
    /// A sync in which nothing goes wrong.
    pub fn new(settings: SyncSettings) -> Self {
        Self {
            settings,
            budget: BUDGET,
            linger: LINGER,
            after_death: AfterDeath::default(),
            restarts_max: 5,
            delay_max: None,
            env: Vec::new(),
            worker_dir: None,
            fresh_disk: false,
            echo: false,
            kill: None,
            disturbance: None,
        }
    }
}

/// One invocation of the worker: a line of `invocations.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Invocation {
    /// Its run.
    pub run: String,
    /// Its number in the run, from 1.
    pub number: u64,
    /// The event.
    pub event_type: String,
    /// The event's request id.
    pub request_id: String,
    /// How often the same event was given before.
    pub again: u64,
    /// The event type of the accepted message; `None` if there was no message.
    pub answer: Option<String>,
    /// What was wrong with how it ended.
    pub failure: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// A step of a sync, for display.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The sync is this run.
    Run(&'a str),
    /// The sync waits for a DELAY before this event.
    Waiting(&'a str, Duration),
    /// An invocation ended; the text describes its message.
    Ended(&'a Invocation, &'a str),
}

/// The result of a sync.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The report on the run; `None` if it was not begun, or if there is none: then there is a `failure`.
    pub report: Option<SyncReport>,
    /// How often an event had to be given again.
    pub restarts: u64,
    /// Why the run did not end with DONE.
    pub failure: Option<Error>,
    /// How long it took.
    pub took: Duration,
    /// The faults that were set, and how often each came true.
    pub faults: Value,
}

impl Outcome {
    /// Whether the run ended with DONE.
    pub fn is_done(&self) -> bool {
        self.failure.is_none()
    }

    /// One JSON object, for scripts.
    pub fn to_json(&self) -> Value {
        let report = self.report.as_ref();
        let items = report.iter().flat_map(|report| &report.items).map(|(item_type, totals)| {
            (item_type.clone(), json!({ "artifacts": totals.artifacts, "records": totals.records }))
        });
        let by_phase = |report: &SyncReport| -> Value {
            report.invocations.iter().map(|(phase, count)| (phase.to_string(), Value::from(*count))).collect()
        };
        let answers = |report: &SyncReport| -> Value {
            report
                .answers
                .iter()
                .map(|(phase, answer)| (phase.to_string(), Value::from(answer.as_str())))
                .collect()
        };
        json!({
            "kind": "sync",
            "run": report.map(|report| report.run.as_str()),
            "done": self.is_done(),
            "initial": report.map(|report| report.initial),
            "messages": report.map(|report| report.messages),
            "invocations": report.map(by_phase),
            "answers": report.map(answers),
            "items": items.collect::<Value>(),
            "restarts": self.restarts,
            "seconds": self.took.as_secs_f64(),
            "faults": self.faults.get("faults"),
            "error": self.failure.as_ref().map(|failure| chain(failure)),
        })
    }
}

impl Airdrop {
    /// Opens a directory, and serves it. The port is remembered, as events that wait for their answer contain it.
    ///
    /// # Errors
    /// Those of [`Local::open`]; `Port` if the port is not available.
    pub fn start(dir: &Path, options: AirdropOptions) -> Result<Self> {
        let AirdropOptions { port, faults, strict, observer } = options;
        let local = Local::open(dir)?;
        let path = dir.join("port.txt");
        let last = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let port = port.or(last).unwrap_or(0);
        let unserved = |source: std::io::Error| Error::Port { port, source: source.into() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(unserved)?;
        let port = listener.local_addr().map_err(unserved)?.port();
        fs::write(&path, format!("{port}\n"))
            .map_err(|error| Error::io(format!("write {}", path.display()), error))?;
        let base = format!("http://127.0.0.1:{port}");
        let api = Arc::new(Api::new(local, base, &faults, strict, observer));
        let answering = Arc::clone(&api);
        let server = Server::start(listener, move |request| answering.handle(request)).map_err(unserved)?;
        Ok(Self { api, server })
    }

    /// The base URL of its addresses.
    pub fn base(&self) -> &str {
        &self.api.base
    }

    /// The directory.
    pub fn local(&self) -> &Local {
        &self.api.local
    }

    /// Replaces the faults from now on. Calls are counted from 1 again.
    pub fn set_faults(&self, faults: &[Fault]) {
        self.api.faults().set(faults);
    }

    /// Returns a function that gives the number of the current invocation, or of the last one.
    pub(crate) fn invocation(&self) -> Box<dyn Fn() -> u64 + Send + Sync> {
        let api = Arc::clone(&self.api);
        Box::new(move || api.invocation())
    }

    /// Serves for as long as the process lives.
    pub fn wait(self) {
        self.server.wait();
    }

    /// Returns a handle that kills the running worker and prevents another from starting: for a caller that must end.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.api))
    }

    /// Plays a whole sync, or continues an unfinished one of the unit, until it has succeeded or failed.
    ///
    /// The caller may be killed at any point, and sync again: see [`Local::sync`].
    pub fn sync(
        &self,
        options: &SyncOptions,
        worker: &Worker,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Outcome {
        let mut options = options.clone();
        options.settings = options.settings.endpoint(self.base()).strict(self.api.is_strict());
        let (clock, began, mut restarts) = (SystemClock::new(), Instant::now(), 0);
        let mut drive = Drive { airdrop: self, options: &options, worker, clock: &clock, progress };
        let mut failure = drive.run(&mut restarts).err();
        let report = self.local().sync_report(&options.settings, &clock).unwrap_or_else(|error| {
            // A run of which there is no report is not known to be done.
            failure.get_or_insert(error);
            None
        });
        if report.is_none() {
            let sync_unit = options.settings.sync_unit_id.clone();
            failure.get_or_insert(Error::NoReport { sync_unit });
        }
        Outcome { report, restarts, failure, took: began.elapsed(), faults: self.api.faults().report() }
    }
}

/// Ends the worker of an [`Airdrop`] from another thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Api>);

impl Stopper {
    /// Kills the running worker, and prevents another from starting.
    pub fn stop(&self) {
        self.0.leash.close("because this program was asked to stop");
    }
}

/// A sync while it runs.
struct Drive<'a> {
    airdrop: &'a Airdrop,
    options: &'a SyncOptions,
    worker: &'a Worker,
    clock: &'a dyn Clock,
    progress: &'a mut dyn FnMut(&Progress<'_>),
}

impl Drive<'_> {
    fn run(&mut self, restarts: &mut u64) -> Result<()> {
        if let Some((name, _)) = self.options.env.iter().find(|(name, _)| !is_variable(name)) {
            return Err(Error::Invalid {
                what: format!("the environment variable {name:?}"),
                reason: "a name has no `=`, and is not our own".to_owned(),
            });
        }
        let local = self.airdrop.local();
        let _lock = lock(local.dir(), "sync.lock")?;
        let settings = &self.options.settings;
        let run = local.begin_sync(settings, self.clock)?.to_string();
        (self.progress)(&Progress::Run(&run));
        let mut number = invocations(local.dir(), &run)?.last().map_or(0, |last| last.number);
        let (mut given, mut again, mut failure) = (None, 0, None);
        while let Some(mut event) = local.next_event(settings, self.clock)? {
            if given.as_ref() == Some(&event.request_id) {
                again += 1;
                let gives_up = self.options.after_death == AfterDeath::GiveUp;
                if gives_up || again > self.options.restarts_max {
                    if gives_up {
                        local.give_up_sync(settings, self.clock)?;
                    }
                    let reason = self.airdrop.api.taken().refused.or(failure);
                    return Err(Error::NeverAnswered { event: event.event_type, times: again, reason });
                }
                *restarts += 1;
                if self.options.after_death == AfterDeath::Continue && event.phase.continues() {
                    local.continue_sync(settings, self.clock)?;
                    let Some(next) = local.next_event(settings, self.clock)? else { break };
                    event = next;
                }
            } else {
                again = 0;
            }
            given = Some(event.request_id.clone());
            let mut wait = self.options.delay_max.map_or(event.wait, |most| event.wait.min(most));
            if let Some((at, Disturbance::Delay(other))) = &self.options.disturbance
                && *at == number + 1
            {
                wait = *other;
            }
            if !wait.is_zero() {
                (self.progress)(&Progress::Waiting(&event.event_type, wait));
                self.clock.sleep(wait);
            }
            number += 1;
            failure = self.invoke(&run, number, again, &event)?;
            if self.is_disturbed(number, &Disturbance::Twice) {
                number += 1;
                failure = self.invoke(&run, number, again + 1, &event)?;
            }
        }
        Ok(())
    }

    fn is_disturbed(&self, number: u64, by: &Disturbance) -> bool {
        self.options.disturbance.as_ref().is_some_and(|(at, what)| *at == number && what == by)
    }

    /// Gives the worker an event once. Returns what was wrong with how the invocation ended.
    fn invoke(&mut self, run: &str, number: u64, again: u64, event: &LocalEvent) -> Result<Option<String>> {
        let api = &self.airdrop.api;
        self.give(run, number, event)?;
        let mut limits =
            Limits { budget: self.options.budget, linger: self.options.linger, kill_after: None };
        match &self.options.disturbance {
            Some((at, Disturbance::KillAfter(after))) if *at == number => limits.kill_after = Some(*after),
            Some((at, Disturbance::Budget(budget))) if *at == number => limits.budget = *budget,
            _ => {}
        }
        let local = self.airdrop.local();
        let worker_dir = self.options.worker_dir.clone().unwrap_or_else(|| local.dir().join("worker"));
        if self.options.fresh_disk {
            empty(&worker_dir)?;
        }
        fs::create_dir_all(&worker_dir).map_err(|error| {
            Error::io(format!("make the worker's folder {}", worker_dir.display()), error)
        })?;
        let runner = Runner {
            leash: &api.leash,
            dir: local.dir(),
            worker_dir: &worker_dir,
            env: &self.options.env,
            echo: self.options.echo,
            kill: self.options.kill.as_deref(),
        };
        let (began, before) = (Instant::now(), api.taken().count);
        let failure = runner.run(self.worker, &event.json, &limits, &|| api.taken().count > before)?;
        let taken = api.taken();
        let answered = taken.count > before;
        let says = if answered { taken.last } else { taken.refused.unwrap_or("no message".to_owned()) };
        let invocation = Invocation {
            run: run.to_owned(),
            number,
            event_type: event.event_type.clone(),
            request_id: event.request_id.clone(),
            again,
            answer: answered.then(|| says.split(',').next().unwrap_or_default().to_owned()),
            failure,
            seconds: began.elapsed().as_secs_f64(),
        };
        note(local.dir(), &invocation)?;
        (self.progress)(&Progress::Ended(&invocation, &says));
        Ok(invocation.failure)
    }

    /// Sets the event that waits for its answer. An event of an earlier server at another port is an error.
    fn give(&self, run: &str, number: u64, event: &LocalEvent) -> Result<()> {
        let json: Value = serde_json::from_str(&event.json).unwrap_or_default();
        let context = json.pointer("/payload/event_context").unwrap_or(&Value::Null);
        let callback = context.get("callback_url").and_then(Value::as_str).unwrap_or_default();
        let rest = callback.strip_prefix(self.airdrop.base());
        if !rest.is_some_and(|rest| rest.starts_with('/')) {
            let (event, callback) = (event.event_type.clone(), callback.to_owned());
            return Err(Error::Elsewhere { event, callback });
        }
        self.airdrop.api.give(run, number, &event.request_id, context);
        Ok(())
    }
}

/// A lock file in a directory, locked by one process at a time.
pub(crate) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a worker that another thread starts now has it open, too, until it executes
        // its program.
        let _ = self.0.unlock();
    }
}

/// Takes the lock of this name in a directory.
pub(crate) fn lock(dir: &Path, name: &str) -> Result<DirLock> {
    let path = dir.join(name);
    let opened = File::options().write(true).create(true).truncate(false).open(&path);
    let lock = opened.map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    match lock.try_lock() {
        Ok(()) => Ok(DirLock(lock)),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path }),
        Err(TryLockError::Error(error)) => Err(Error::io(format!("lock {}", path.display()), error)),
    }
}

/// Empties a folder, and creates it if it does not exist.
fn empty(dir: &Path) -> Result<()> {
    let emptied = (|| {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)
    })();
    emptied.map_err(|error| Error::io(format!("empty the worker's folder {}", dir.display()), error))
}

fn note(dir: &Path, invocation: &Invocation) -> Result<()> {
    let path = dir.join("invocations.jsonl");
    let line =
        serde_json::to_string(invocation).map_err(std::io::Error::from).map(|line| format!("{line}\n"));
    let noted = line
        .and_then(|line| File::options().create(true).append(true).open(&path)?.write_all(line.as_bytes()));
    noted.map_err(|error| Error::io(format!("append to {}", path.display()), error))
}

/// The invocations of a run, from `invocations.jsonl` in a directory.
///
/// # Errors
/// `Io` if the disk fails.
pub fn invocations(dir: &Path, run: &str) -> Result<Vec<Invocation>> {
    Ok(crate::audit::lines_of(&dir.join("invocations.jsonl"))?
        .into_iter()
        .filter(|invocation: &Invocation| invocation.run == run)
        .collect())
}

/// Parses the value of `--extraction-start` and similar options: a JSON object with a `type`, the name of a type
/// (`unbounded`), or a time (`2026-01-02T00:00:00Z`).
///
/// # Errors
/// A description of what is expected, for people.
pub fn time_setting(text: &str) -> Result<Value, String> {
    let text = text.trim();
    if text.starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        return match value.get("type") {
            Some(Value::String(_)) => Ok(value),
            _ => Err("a JSON object needs a `type`, for example {\"type\":\"unbounded\"}".to_owned()),
        };
    }
    if DateTime::parse_from_rfc3339(text).is_ok_and(|at| at.with_timezone(&Utc) > DateTime::<Utc>::MIN_UTC) {
        return Ok(json!({ "type": "absolute_time", "value": text }));
    }
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if is_word {
        return Ok(json!({ "type": text }));
    }
    Err("expected a moment like 2026-01-02T00:00:00Z, a type like `unbounded`, or a JSON object with a `type`"
        .to_owned())
}

/// Totals by name.
pub(crate) type Totals = BTreeMap<String, u64>;
