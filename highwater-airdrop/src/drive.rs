//! Plays the platform for a whole sync of a worker that speaks HTTP: gives it one event after another, gives it the same
//! event again if it dies without a word, and kills it when its time is over.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use highwater::{Clock, SystemClock};
use highwater_airdrop::{LocalEvent, SyncReport, SyncSettings};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use ureq::Agent;

use crate::api::Api;
use crate::common::{Failure, chain};

/// How often a worker, or the list of messages, is looked at.
const POLL: Duration = Duration::from_millis(5);
/// What stands for the path of the event's file among the words of a command.
const EVENT_PLACE: &str = "{event}";

/// Who is given the events.
#[derive(Debug)]
pub(crate) enum Worker {
    /// A program, started for each.
    Command(Vec<String>),
    /// An address that each is posted to.
    Function(String),
}

/// How a sync is driven.
#[derive(Debug)]
pub(crate) struct Drive {
    pub(crate) settings: SyncSettings,
    pub(crate) worker: Worker,
    /// What an invocation has before it is killed.
    pub(crate) budget: Duration,
    /// How often an event is given again.
    pub(crate) restarts_max: u64,
    /// No DELAY is waited out for longer.
    pub(crate) delay_max: Option<Duration>,
}

/// What a sync came to.
#[derive(Debug)]
pub(crate) struct Driven {
    pub(crate) report: Option<SyncReport>,
    /// How often an event had to be given again.
    pub(crate) restarts: u64,
    /// Why the run did not end with DONE.
    pub(crate) failure: Option<Failure>,
    pub(crate) took: Duration,
    /// The faults that were set, and how often each came true.
    pub(crate) faults: Value,
}

impl Driven {
    /// One JSON object, for scripts.
    pub(crate) fn to_json(&self) -> Value {
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
            "done": self.failure.is_none(),
            "initial": report.map(|report| report.initial),
            "messages": report.map(|report| report.messages),
            "invocations": report.map(by_phase),
            "answers": report.map(answers),
            "items": items.collect::<Value>(),
            "restarts": self.restarts,
            "seconds": self.took.as_secs_f64(),
            "faults": self.faults["faults"],
            "error": self.failure.as_ref().map(|failure| chain(failure.as_ref())),
        })
    }
}

impl Drive {
    /// Goes on until the run is over, one way or the other.
    pub(crate) fn run(&self, api: &Api) -> Driven {
        let (clock, began, mut restarts) = (SystemClock::new(), Instant::now(), 0);
        let failure = self.go(api, &clock, &mut restarts).err();
        let report = api.local().sync_report(&self.settings, &clock).ok().flatten();
        Driven { report, restarts, failure, took: began.elapsed(), faults: api.faults().report() }
    }

    fn go(&self, api: &Api, clock: &dyn Clock, restarts: &mut u64) -> Result<(), Failure> {
        let path = api.local().dir().join("sync.lock");
        let lock = File::options().write(true).create(true).truncate(false).open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!("another sync is driven in {}", api.local().dir().display()).into());
            }
            Err(TryLockError::Error(error)) => {
                return Err(format!("cannot lock {}: {error}", path.display()).into());
            }
        }
        let run = api.local().begin_sync(&self.settings, clock)?;
        eprintln!("run {run}");
        let (mut given, mut times) = (None, 0);
        while let Some(event) = api.local().next_event(&self.settings, clock)? {
            if given.as_ref() == Some(&event.request_id) {
                if times >= self.restarts_max {
                    let name = &event.event_type;
                    return Err(format!("{name} was given {} times and never answered", times + 1).into());
                }
                times += 1;
                *restarts += 1;
            } else {
                (given, times) = (Some(event.request_id.clone()), 0);
            }
            give(api, &event)?;
            let wait = self.delay_max.map_or(event.wait, |most| event.wait.min(most));
            if !wait.is_zero() {
                eprintln!("{}: in {}", event.event_type, humantime::format_duration(wait));
                clock.sleep(wait);
            }
            let (began, before) = (Instant::now(), api.taken().count);
            let trouble = match &self.worker {
                Worker::Command(words) => self.run_command(words, &event)?,
                Worker::Function(url) => self.call_function(url, &event, || api.taken().count > before),
            };
            let taken = api.taken();
            let said = if taken.count > before { taken.last.as_str() } else { "no message" };
            let trouble = trouble.map(|trouble| format!(" ({trouble})")).unwrap_or_default();
            eprintln!("{}: {said} after {:.1?}{trouble}", event.event_type, began.elapsed());
        }
        Ok(())
    }

    /// Starts the worker, and says what was wrong with how it ended. That it cannot be started at all is an error.
    fn run_command(&self, words: &[String], event: &LocalEvent) -> Result<Option<String>, Failure> {
        let mut file = NamedTempFile::with_prefix("event-")?;
        file.write_all(event.json.as_bytes())?;
        file.flush()?;
        let path = file.path().to_string_lossy();
        let (program, arguments) = words.split_first().ok_or("there is no command")?;
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|word| word.replace(EVENT_PLACE, &path)));
        if !arguments.iter().any(|word| word.contains(EVENT_PLACE)) {
            command.arg(file.path());
        }
        // Our own standard output is for the report.
        command.stdin(Stdio::null()).stdout(Stdio::from(io::stderr()));
        let mut child = command.spawn().map_err(|error| format!("cannot start {program}: {error}"))?;
        let over = Instant::now() + self.budget;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok((!status.success()).then(|| format!("the worker ended with {status}")));
            }
            if Instant::now() >= over {
                // It may have ended just now.
                let _ = child.kill();
                child.wait()?;
                return Ok(Some(format!("killed after {}", humantime::format_duration(self.budget))));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Posts the event, and says what was wrong with the answer. A function that answers 202 goes on by itself, and is
    /// waited for.
    fn call_function(&self, url: &str, event: &LocalEvent, answered: impl Fn() -> bool) -> Option<String> {
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(self.budget))
            .build()
            .into();
        let over = Instant::now() + self.budget;
        let sent = agent.post(url).header("Content-Type", "application/json").send(&event.json);
        match sent.map(|response| response.status().as_u16()) {
            Ok(202) => {
                while !answered() {
                    if Instant::now() >= over {
                        let budget = humantime::format_duration(self.budget);
                        return Some(format!("the function answered 202, and sent no message in {budget}"));
                    }
                    std::thread::sleep(POLL);
                }
                None
            }
            Ok(200..300) => None,
            Ok(status) => Some(format!("the function answered {status}")),
            Err(error) => Some(format!("the function cannot be called: {error}")),
        }
    }
}

/// Tells the server which event waits for its answer. It may be of an earlier server, at another port: an error.
fn give(api: &Api, event: &LocalEvent) -> Result<(), Failure> {
    let json: Value = serde_json::from_str(&event.json)?;
    let context = json.pointer("/payload/event_context").unwrap_or(&Value::Null);
    api.give(&event.request_id, context);
    let callback = context.get("callback_url").and_then(Value::as_str).unwrap_or_default();
    let rest = callback.strip_prefix(api.base());
    if rest.is_some_and(|rest| rest.starts_with('/')) {
        return Ok(());
    }
    let event_type = &event.event_type;
    Err(format!("{event_type} waits for its answer at {callback}: give --port the port in it to go on")
        .into())
}
