//! A platform that takes everything at once, the events of a phase, and what a process has spent.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater::airdrop::{
    Body, Event, Extractor, OutcomeKind, Platform, PlatformError, SealedMessage, Serve, Upload,
};
use highwater::{ArtifactId, Store};
use serde_json::json;

/// A platform that takes everything at once.
#[derive(Default)]
pub(crate) struct Sink(AtomicU64);

impl Sink {
    /// Artifacts are numbered from here on.
    pub(crate) fn from(first: u64) -> Self {
        Self(AtomicU64::new(first))
    }
}

impl Platform for Sink {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        if let Body::Stream { reader, .. } = upload.body {
            std::io::copy(reader, &mut std::io::sink()).expect("it is in memory");
        }
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        Ok(ArtifactId::new(format!("artifact-{number}")).expect("a short id"))
    }

    fn confirm(&self, _: &ArtifactId) -> Result<(), PlatformError> {
        Ok(())
    }

    fn send(&self, _: &SealedMessage) -> Result<(), PlatformError> {
        Ok(())
    }
}

/// An event of a run, as `request` the only one.
pub(crate) fn event(event_type: &str, run: &str, request: u64) -> highwater::Result<Event> {
    let event = json!({
        "payload": {
            "event_type": event_type,
            "event_context": {
                "run_id": run, "request_id": format!("{event_type}-{request}"), "sync_unit_id": "unit",
            },
        },
    });
    Event::from_json(&event.to_string())
}

/// Answers the events of a phase of a run until it is done; returns the number of artifacts.
///
/// # Errors
/// An answer other than DONE and PROGRESS too.
pub(crate) fn phase(
    serve: &Serve,
    store: &Store,
    platform: &dyn Platform,
    extractor: &impl Extractor,
    run: &str,
    phase: &str,
) -> Result<u64, Box<dyn std::error::Error>> {
    let mut artifacts = 0;
    for request in 0.. {
        let (is_done, more) = answer(serve, store, platform, extractor, run, phase, request)?;
        artifacts += more;
        if is_done {
            break;
        }
    }
    Ok(artifacts)
}

/// Answers one event of a phase of a run, from 0; returns whether the phase is done, and the number of artifacts.
///
/// # Errors
/// An answer other than DONE and PROGRESS too.
pub(crate) fn answer(
    serve: &Serve,
    store: &Store,
    platform: &dyn Platform,
    extractor: &impl Extractor,
    run: &str,
    phase: &str,
    request: u64,
) -> Result<(bool, u64), Box<dyn std::error::Error>> {
    let step = if request == 0 { "START" } else { "CONTINUE" };
    let event = event(&format!("EXTRACTION_{phase}_{step}"), run, request)?;
    let outcome = serve.serve(store, platform, extractor, &event)?;
    match outcome.kind {
        OutcomeKind::Done => Ok((true, outcome.artifacts)),
        OutcomeKind::Progress => Ok((false, outcome.artifacts)),
        other => Err(format!("{phase} of {run}: {other:?}, {:?}", outcome.message).into()),
    }
}

/// CPU time of this process so far, in user and system: fields 14 and 15 of `/proc/self/stat`, in hundredths (proc(5)).
pub(crate) fn cpu_time() -> std::io::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split(' ');
    let ticks: u64 = fields.skip(12).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// The most memory that this process has had so far, in KiB.
pub(crate) fn peak_memory_kib() -> std::io::Result<u64> {
    number_in("/proc/self/status", "VmHWM:")
}

/// The bytes that this process has written to files so far.
pub(crate) fn bytes_written() -> std::io::Result<u64> {
    number_in("/proc/self/io", "wchar:")
}

/// The number after `name` in a file of proc(5).
fn number_in(file: &str, name: &str) -> std::io::Result<u64> {
    let text = fs::read_to_string(file)?;
    let number =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| std::io::Error::other(format!("{file} has no {name}")))
}
