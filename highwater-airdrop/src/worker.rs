//! The worker that is given events: a program, started for each event, or a function that is served at an address.
//!
//! A program runs in its own process group. Whatever ends it (its own end, its budget, a fault, a signal to this
//! process) ends the group, so nothing that it started is left running. Its output goes to `worker.log` in the
//! directory and, on request, to standard error; output over [`OUTPUT_BYTES_MAX`] per invocation is dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use ureq::Agent;

use crate::error::{Error, Result};

/// Stands for the path of the event's file in the arguments of a command.
pub const EVENT_PLACE: &str = "{event}";
/// Stands there for the worker's own folder.
pub const DIR_PLACE: &str = "{dir}";
/// The environment variable with that folder.
pub const DIR_VARIABLE: &str = "HIGHWATER_DIR";
/// Bytes of a worker's output that are kept per invocation.
pub const OUTPUT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long the command that kills a function may take, and the function until it can be called again.
const FUNCTION_BACK: Duration = Duration::from_secs(30);
/// How long to wait for the answer of a function, however large its budget is: a year.
const CALL_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How often a worker is checked.
const POLL: Duration = Duration::from_millis(2);
/// How long to wait for the rest of a dead worker's output.
const OUTPUT_REST: Duration = Duration::from_secs(2);

/// The worker that gets the events.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Worker {
    /// A program and its arguments, started for each event. The path of the event's file replaces `{event}` in the
    /// arguments, or is appended; the worker's own folder replaces `{dir}`.
    Command(Vec<String>),
    /// An address to which each event is posted. It answers after it has sent its message, or with 202 before that.
    Function(String),
}

/// How a worker is run.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// How long an invocation may take before it is killed.
    pub(crate) budget: Duration,
    /// How long it may go on after its message was accepted.
    pub(crate) linger: Duration,
    /// As a fault, it is killed this long after its start.
    pub(crate) kill_after: Option<Duration>,
}

/// A handle on the worker that is running, to kill it.
#[derive(Debug, Default)]
pub(crate) struct Leash(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    running: Option<Running>,
    /// How many workers were started: it identifies the running one.
    number: u64,
    /// The file with its event, which contains keys.
    event: Option<PathBuf>,
    /// Why it was killed, if it was.
    killed: Option<String>,
    /// Set for good when this process ends.
    closed: bool,
}

/// What can be killed.
#[derive(Debug)]
enum Running {
    /// A process group.
    Group(u32),
    /// A function, and the command that kills it and starts it again.
    Function { url: String, kill: String },
}

impl Held {
    /// Kills the running worker, if there is one.
    fn kill(&mut self, reason: &str) {
        let mut failed = None;
        match &self.running {
            Some(Running::Group(process)) => kill_group(*process),
            Some(Running::Function { url, kill }) => failed = kill_function(kill, url, FUNCTION_BACK).err(),
            None => return,
        }
        self.killed.get_or_insert_with(|| match failed {
            Some(failed) => format!("{reason}, but {failed}"),
            None => reason.to_owned(),
        });
    }
}

/// Runs the command that kills a function, and waits until the function can be called again. Returns what was wrong.
fn kill_function(kill: &str, url: &str, limit: Duration) -> std::result::Result<(), String> {
    let mut command = Command::new("sh");
    command.args(["-c", kill]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Its own process group can be killed; a function that it starts in the background (`&`) keeps running.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().map_err(|error| format!("its command cannot be run: {error}"))?;
    let until = Instant::now() + limit;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(POLL),
            waited => {
                kill_group(child.id());
                // It may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(match waited {
                    Err(error) => format!("its command cannot be watched: {error}"),
                    Ok(_) => format!(
                        "its command did not end in {}: it must start the function behind it, with `&`",
                        humantime::format_duration(limit)
                    ),
                });
            }
        }
    };
    if !status.success() {
        return Err(format!("its command ended with {status}"));
    }
    let uri: ureq::http::Uri = url.parse().map_err(|error| format!("{url} is no address: {error}"))?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let until = Instant::now() + limit;
    while TcpStream::connect((uri.host().unwrap_or_default(), port)).is_err() {
        if Instant::now() >= until {
            return Err(format!("it was not served again in {}", humantime::format_duration(limit)));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

impl Leash {
    /// Kills the running worker, if there is one, with everything that it started. `reason` is for people.
    pub(crate) fn kill(&self, reason: &str) {
        self.lock().kill(reason);
    }

    /// Kills the worker that is running now after a while, if it still runs then.
    pub(crate) fn kill_later(self: &Arc<Self>, after: Duration, reason: &'static str) {
        let (leash, meant) = (Arc::clone(self), self.lock().number);
        std::thread::spawn(move || {
            std::thread::sleep(after);
            let mut held = leash.lock();
            if held.number == meant {
                held.kill(reason);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the worker, removes its event, and prevents another from starting. A function is not killed.
    pub(crate) fn close(&self, reason: &str) {
        let mut held = self.lock();
        held.closed = true;
        if matches!(held.running, Some(Running::Group(_))) {
            held.kill(reason);
            // This process may end before the owner of the file can remove it.
            if let Some(event) = held.event.take() {
                let _ = std::fs::remove_file(event);
            }
        }
    }

    /// Notes that a function is being called, and the command that kills it. Returns the reason if this program is
    /// ending.
    fn call(&self, url: &str, kill: Option<&str>) -> Option<String> {
        let mut held = self.lock();
        if held.closed {
            return Some("this program is ending".to_owned());
        }
        held.running = kill.map(|kill| Running::Function { url: url.to_owned(), kill: kill.to_owned() });
        held.number += 1;
        held.killed = None;
        None
    }

    /// The call has ended; returns why the function was killed, if it was. Waits for a kill that is in progress.
    fn called(&self) -> Option<String> {
        let mut held = self.lock();
        held.running = None;
        held.killed.take()
    }

    /// Kills a worker that cannot be watched, with everything that it started.
    fn abandon(&self, child: &mut Child) {
        let mut held = self.lock();
        kill_group(child.id());
        // It may have ended just now.
        let _ = child.kill();
        let _ = child.wait();
        held.running = None;
        held.event = None;
        held.killed = None;
    }

    fn start(&self, command: &mut Command, event: &Path) -> io::Result<Child> {
        let mut held = self.lock();
        if held.closed {
            return Err(io::Error::other("this program is ending"));
        }
        let child = command.spawn()?;
        held.running = Some(Running::Group(child.id()));
        held.event = Some(event.to_owned());
        held.number += 1;
        held.killed = None;
        Ok(child)
    }

    /// Whether the worker has ended; if so, its group is killed, too, and the reason of a kill is returned.
    fn ended(&self, child: &mut Child) -> io::Result<Option<(std::process::ExitStatus, Option<String>)>> {
        let mut held = self.lock();
        if !has_exited(child)? {
            return Ok(None);
        }
        // It is not reaped yet, so no other process has its id.
        kill_group(child.id());
        held.running = None;
        held.event = None;
        Ok(Some((child.wait()?, held.killed.take())))
    }
}

#[cfg(unix)]
fn pid(process: u32) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(i32::try_from(process).ok()?)
}

#[cfg(unix)]
fn kill_group(process: u32) {
    if let Some(group) = pid(process) {
        // It may have ended just now.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

#[cfg(not(unix))]
fn kill_group(_process: u32) {}

#[cfg(unix)]
fn has_exited(child: &mut Child) -> io::Result<bool> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let Some(process) = pid(child.id()) else { return Err(io::Error::other("it has no process id")) };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(process), options)?.is_some())
}

#[cfg(not(unix))]
fn has_exited(child: &mut Child) -> io::Result<bool> {
    child.try_wait().map(|status| status.is_some())
}

/// Where workers run: a folder for their output, and the handle to kill them.
#[derive(Debug)]
pub(crate) struct Runner<'a> {
    pub(crate) leash: &'a Arc<Leash>,
    /// Where `worker.log` is.
    pub(crate) dir: &'a Path,
    /// The worker's own folder.
    pub(crate) worker_dir: &'a Path,
    /// Environment variables in addition to our own.
    pub(crate) env: &'a [(String, String)],
    /// Whether its output goes to standard error as well.
    pub(crate) echo: bool,
    /// The command that kills a function.
    pub(crate) kill: Option<&'a str>,
}

impl Runner<'_> {
    /// Gives the worker an event, and waits for it to end. `answered` tells whether its message was accepted.
    ///
    /// # Errors
    /// `Start` if it cannot be started at all; `Io` if it cannot be watched.
    pub(crate) fn run(
        &self,
        worker: &Worker,
        event: &str,
        limits: &Limits,
        answered: &dyn Fn() -> bool,
    ) -> Result<Option<String>> {
        match worker {
            Worker::Command(words) => self.run_command(words, event, limits, answered),
            Worker::Function(url) => Ok(self.run_function(url, event, limits, answered)),
        }
    }

    fn run_function(
        &self,
        url: &str,
        event: &str,
        limits: &Limits,
        answered: &dyn Fn() -> bool,
    ) -> Option<String> {
        if let Some(ending) = self.leash.call(url, self.kill) {
            return Some(ending);
        }
        let began = Instant::now();
        let failure = call_function(url, event, limits, answered);
        if failure.is_some() && began.elapsed() >= limits.budget {
            self.leash.kill(&format!("after its {}", humantime::format_duration(limits.budget)));
        }
        self.leash.called().map(|reason| format!("killed {reason}")).or(failure)
    }

    fn run_command(
        &self,
        words: &[String],
        event: &str,
        limits: &Limits,
        answered: &dyn Fn() -> bool,
    ) -> Result<Option<String>> {
        let written = NamedTempFile::with_prefix("event-").and_then(|mut file| {
            file.write_all(event.as_bytes())?;
            file.flush()?;
            Ok(file)
        });
        let file = written.map_err(|error| Error::io("write the event to a temporary file", error))?;
        let path = file.path().to_string_lossy();
        let dir = self.worker_dir.to_string_lossy();
        let (program, arguments) = words.split_first().ok_or_else(|| Error::Invalid {
            what: "a worker without a command".to_owned(),
            reason: "give it behind `--`: -- COMMAND ARGS... {event}".to_owned(),
        })?;
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|word| word.replace(EVENT_PLACE, &path).replace(DIR_PLACE, &dir)));
        if !arguments.iter().any(|word| word.contains(EVENT_PLACE)) {
            command.arg(file.path());
        }
        command.env(DIR_VARIABLE, self.worker_dir).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = self
            .leash
            .start(&mut command, file.path())
            .map_err(|source| Error::Start { program: program.clone(), source: source.into() })?;
        let output = match Output::collect(self, &mut child) {
            Ok(output) => output,
            Err(error) => {
                self.leash.abandon(&mut child);
                return Err(error);
            }
        };
        let began = Instant::now();
        let mut answered_at = None;
        let (status, killed) = loop {
            match self.leash.ended(&mut child) {
                Ok(Some(ended)) => break ended,
                Ok(None) => {}
                Err(error) => {
                    self.leash.abandon(&mut child);
                    return Err(Error::io(format!("wait for {program}"), error));
                }
            }
            if began.elapsed() >= limits.budget {
                self.leash.kill(&format!("after its {}", humantime::format_duration(limits.budget)));
            } else if limits.kill_after.is_some_and(|after| began.elapsed() >= after) {
                self.leash.kill("by a fault");
            } else if answered_at.is_none() && answered() {
                answered_at = Some(Instant::now());
            }
            if answered_at.is_some_and(|at: Instant| at.elapsed() >= limits.linger) {
                let linger = humantime::format_duration(limits.linger);
                self.leash.kill(&format!("{linger} after its message, as it did not end"));
            }
            std::thread::sleep(POLL);
        };
        output.finish();
        Ok(match killed {
            Some(reason) => Some(format!("killed {reason}")),
            None => (!status.success()).then(|| format!("the worker ended with {status}")),
        })
    }
}

/// Copies a worker's output to where it is kept.
struct Output(Vec<Receiver<()>>);

impl Output {
    fn collect(runner: &Runner<'_>, child: &mut Child) -> Result<Self> {
        let path = runner.dir.join("worker.log");
        let log = File::options().create(true).append(true).open(&path);
        let log = Arc::new(log.map_err(|error| Error::io(format!("open {}", path.display()), error))?);
        let left = Arc::new(Mutex::new(OUTPUT_BYTES_MAX));
        let sources: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|source| Box::new(source) as Box<dyn Read + Send>),
            child.stderr.take().map(|source| Box::new(source) as Box<dyn Read + Send>),
        ];
        let echo = runner.echo;
        let started = sources.into_iter().flatten().map(|mut source| {
            let (log, left, (done, over)) = (Arc::clone(&log), Arc::clone(&left), channel());
            std::thread::spawn(move || {
                let mut buffer = vec![0; 16 * 1024];
                // The worker must be able to go on printing, whatever fails here.
                while let Ok(count @ 1..) = source.read(&mut buffer) {
                    let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                    let kept = usize::try_from(*left).unwrap_or(usize::MAX).min(count);
                    let Some(bytes) = buffer.get(..kept).filter(|bytes| !bytes.is_empty()) else { continue };
                    *left -= kept as u64;
                    let _ = (&*log).write_all(bytes);
                    if echo {
                        let _ = io::stderr().lock().write_all(bytes);
                    }
                    if *left == 0 {
                        let _ = (&*log).write_all(b"\n... more was printed than is kept\n");
                    }
                }
                let _ = done.send(());
            });
            over
        });
        Ok(Self(started.collect()))
    }

    /// Waits for the rest. A process that has left the group may keep the pipe open: it is not waited for.
    fn finish(self) {
        let until = Instant::now() + OUTPUT_REST;
        for over in self.0 {
            if let Err(RecvTimeoutError::Timeout) =
                over.recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                return;
            }
        }
    }
}

/// Posts the event. Returns what was wrong with the answer. A function that answers 202 goes on by itself, and is
/// waited for.
fn call_function(url: &str, event: &str, limits: &Limits, answered: &dyn Fn() -> bool) -> Option<String> {
    // A time too far in the future overflows.
    let budget = limits.budget.min(CALL_MAX);
    let agent: Agent =
        Agent::config_builder().http_status_as_error(false).timeout_global(Some(budget)).build().into();
    let over = Instant::now() + budget;
    match agent.post(url).header("Content-Type", "application/json").send(event) {
        Ok(response) if response.status().as_u16() == 202 => {
            while !answered() {
                if Instant::now() >= over {
                    let budget = humantime::format_duration(budget);
                    return Some(format!("the function answered 202, and sent no message in {budget}"));
                }
                std::thread::sleep(POLL);
            }
            None
        }
        Ok(response) if response.status().is_success() => None,
        Ok(response) => Some(format!("the function answered {}", response.status().as_u16())),
        Err(error) => Some(format!("the function cannot be called: {error}; is it served at {url}?")),
    }
}

/// The start of a worker's answer, for a report.
impl std::fmt::Display for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Worker::Command(words) => f.write_str(&words.join(" ")),
            Worker::Function(url) => f.write_str(url),
        }
    }
}

/// Whether this can be the name of an environment variable.
pub(crate) fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && OsStr::new(name) != DIR_VARIABLE
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_serves_the_function_itself_is_ended_and_told() {
        let limit = Duration::from_millis(200);
        let error = kill_function("sleep 600", "http://127.0.0.1:9/", limit).unwrap_err();
        assert!(error.contains("did not end in 200ms") && error.contains('&'), "{error}");
        let error = kill_function("exit 7", "http://127.0.0.1:9/", limit).unwrap_err();
        assert!(error.contains("exit status: 7"), "{error}");
    }
}
