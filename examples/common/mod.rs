//! Code shared by the example programs: reading an event, printing, and ending.

#![allow(dead_code, reason = "each program uses a part of it")]

pub(crate) mod server;

use std::error::Error;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use highwater::airdrop::{Event, Outcome, OutcomeKind, StopToken};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Ends the program: prints a failure with its causes, and returns exit code 1.
pub(crate) fn finish(done: Result<ExitCode, Failure>) -> ExitCode {
    done.unwrap_or_else(|failure| {
        tell(&format!("error: {}", chain(failure.as_ref())));
        ExitCode::FAILURE
    })
}

/// An error and its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Prints a line on standard error. A closed standard error is not a failure.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints to standard output. A reader that has closed the pipe is not a failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}

/// Requests invocations to stop when this process is asked to end: by SIGTERM, which platforms send a while before
/// they kill, or by Ctrl-C. The second time, the process ends at once.
pub(crate) fn stop_when_told() -> Result<StopToken, Failure> {
    let told = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal must find the flag unset.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&told))?;
        flag::register(signal, Arc::clone(&told))?;
    }
    Ok(StopToken::from(told))
}

/// Reads the event of `--event`; `-` is standard input.
pub(crate) fn read_event(path: &Path) -> Result<Event, Failure> {
    let mut bytes = Vec::new();
    let (name, read) = if path == Path::new("-") {
        ("standard input".to_owned(), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (path.display().to_string(), std::fs::read(path))
    };
    let bytes = read.map_err(|error| format!("cannot read the event (--event) from {name}: {error}"))?;
    Ok(Event::from_json_bytes(&bytes)?)
}

/// Reports an event that was answered with ERROR, or in an earlier life. Returns whether it was neither.
pub(crate) fn went_well(outcome: &Outcome) -> Result<bool, Failure> {
    match (&outcome.message, outcome.kind) {
        (None, _) => {
            tell("the event was answered earlier, and its message is no longer kept: nothing was sent");
            Ok(false)
        }
        (Some(message), OutcomeKind::Error) => {
            let message: Value = serde_json::from_str(message)?;
            let reason = message.pointer("/event_data/error/message").and_then(Value::as_str);
            let reason = reason.unwrap_or("no reason given");
            tell(&format!("answered with {}: {reason}", outcome.event_type));
            Ok(false)
        }
        _ => Ok(true),
    }
}
