//! The platform: each call has its effect on the world, or fails as the schedule says.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::airdrop::{Body, Fate, Platform, PlatformError, SealedMessage, Upload, WorkerState};
use crate::artifact::{Level, compress};
use crate::model::ArtifactId;

use super::conversation::seed_name;
use super::schedule::{Act, Call, CallFault, Setting};
use super::world::{About, Accepted, Change, Effect, OUT_OF_SCOPE, Outside, STREAM, World};

/// How long a call takes.
const CALL_TAKES: Duration = Duration::from_millis(20);

impl Outside {
    /// Whether the process dies before the next change.
    pub(super) fn dies_now(&mut self) -> bool {
        if let Some((changes, position)) = self.dies_at
            && self.journal.len() >= changes
            && self.disk.position() >= position
        {
            self.disk.kill();
        }
        self.disk.is_dead()
    }

    /// The fault of a call, by the schedule; counts the faults that fire.
    pub(super) fn fault(&mut self, call: Call) -> Option<CallFault> {
        let number = self.calls.get(&call).copied().unwrap_or(0);
        let acts = Arc::clone(&self.acts);
        let fault = acts.iter().find_map(|act| match act {
            Act::Call { call: of, number: nth, fault } if *of == call && *nth == number => Some(*fault),
            _ => None,
        });
        if let Some(fault) = fault {
            self.count(&format!("{call}/{fault}"));
        }
        fault
    }

    /// Makes a call: dies, fails, or has its effect, as the schedule says. If the call succeeds in an unusual way,
    /// returns that fault.
    fn call(
        &mut self,
        call: Call,
        effect: Option<Effect>,
        about: About,
    ) -> Result<Option<CallFault>, PlatformError> {
        if self.dies_now() {
            return Err(gone());
        }
        // The platform knows an accepted message by its key (N1), and does not refuse it.
        let known =
            matches!(&effect, Some(Effect::Accept(message)) if self.by_key.contains_key(&message.key));
        let fault = self.fault(call).filter(|fault| !(known && matches!(fault, CallFault::Refused(_))));
        self.clock.advance(CALL_TAKES);
        if fault == Some(CallFault::TimedOut) {
            self.clock.advance(Duration::from_secs(30));
        }
        let (applies, result) = match fault {
            None => (true, Ok(())),
            Some(fault) => fate_of(call, fault),
        };
        let effect = effect.filter(|_| applies);
        // A worker state that is cut in half is as useless as none.
        let failed = result.is_err() || fault == Some(CallFault::Truncated);
        self.record(Change::Called { call, effect, failed, fault, about });
        result.map(|()| fault)
    }
}

impl Outside {
    /// The newest artifact that was confirmed in the current run: an id that the run has used.
    fn confirmed_in_this_run(&self) -> Option<String> {
        let run = &self.sent.last()?.run;
        let of_run = |id: &&String| self.uploads.get(*id).is_some_and(|uploaded| uploaded.run == *run);
        self.confirmed.iter().rfind(of_run).cloned()
    }
}

/// Whether a call with this fault takes effect, and its result for the extractor.
fn fate_of(call: Call, fault: CallFault) -> (bool, Result<(), PlatformError>) {
    let retry = |fate: Fate, after: Option<u32>, reason: String| {
        let after = after.map(|seconds| Duration::from_secs(seconds.into()));
        Err(PlatformError::Retry { fate, after, reason: format!("simulated: {reason}") })
    };
    let unknown = |reason: &str| retry(Fate::Unknown, None, reason.to_owned());
    // Only an upload's URL has a storage behind it.
    let fault = match fault {
        CallFault::Storage(code) if call != Call::Upload => CallFault::Status { code, applied: false },
        fault => fault,
    };
    match fault {
        CallFault::Lost => (true, unknown("answer lost")),
        CallFault::Late => (call == Call::SaveState, unknown("answer lost")),
        CallFault::ErrorBefore => (false, unknown("500 before")),
        CallFault::ErrorAfter => (true, unknown("500 after")),
        CallFault::TimedOut => (false, unknown("timed out")),
        CallFault::Busy(seconds) => (false, retry(Fate::NotApplied, seconds, "429".to_owned())),
        CallFault::Refused(status) => {
            (false, Err(PlatformError::Refused { status, reason: "simulated".to_owned() }))
        }
        CallFault::Status { code: 425, .. } => (false, retry(Fate::NotApplied, None, "425".to_owned())),
        CallFault::Status { code, applied } => (applied, unknown(&code.to_string())),
        CallFault::Reset { applied } => (applied, unknown("connection reset in mid-body")),
        CallFault::BadBody => match call {
            Call::Prepare | Call::LoadState => (true, unknown("200 with an unreadable body")),
            // The other calls read no body, except downloads.
            _ => (true, Ok(())),
        },
        CallFault::Storage(status) => {
            let reason = "simulated: the storage".to_owned();
            (false, Err(PlatformError::StorageRefused { status, after: None, reason }))
        }
        CallFault::Dropped => (call != Call::SaveState, Ok(())),
        CallFault::SameId | CallFault::Stale | CallFault::Truncated => (true, Ok(())),
    }
}

fn gone() -> PlatformError {
    PlatformError::Retry {
        fate: Fate::Unknown,
        after: None,
        reason: "simulated: the process is dead".to_owned(),
    }
}

/// The lines of a gzipped JSON Lines artifact, read by a reader that shares only the format with the writer.
fn lines_of(bytes: &[u8]) -> Vec<String> {
    let mut text = String::new();
    match crate::artifact::reader(bytes).and_then(|mut reader| reader.read_to_string(&mut text)) {
        Ok(_) => text.lines().map(str::to_owned).collect(),
        Err(error) => vec![format!("unreadable: {error}")],
    }
}

impl Platform for World {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let is_stream = matches!(upload.body, Body::Stream { .. });
        let lines = match upload.body {
            Body::Batch(bytes) => lines_of(bytes),
            Body::Stream { reader, .. } => {
                let mut bytes = Vec::new();
                let read = reader.read_to_end(&mut bytes);
                read.map_err(|error| PlatformError::Retry {
                    fate: Fate::NotApplied,
                    after: None,
                    reason: error.to_string(),
                })?;
                vec![format!("{STREAM}{}", String::from_utf8_lossy(&bytes))]
            }
        };
        let mut inner = self.lock();
        let of = inner.open_streams.last().filter(|_| is_stream).cloned();
        let about = || of.clone().map_or(About::Nothing, About::Stream);
        let same = inner.call(Call::Prepare, None, about())? == Some(CallFault::SameId);
        let earlier = inner.confirmed_in_this_run().filter(|_| same);
        if earlier.is_some() {
            inner.count("platform/id-repeated");
        }
        let id = earlier.unwrap_or_else(|| format!("artifact-{}", inner.journal.len()));
        let upload = Effect::Upload { id: id.clone(), lines: Arc::new(lines), of: of.clone() };
        inner.call(Call::Upload, Some(upload), about())?;
        ArtifactId::new(id).map_err(|error| PlatformError::Refused { status: 500, reason: error.to_string() })
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        if !inner.disk.is_dead() && !inner.uploads.contains_key(artifact.as_str()) {
            return Err(PlatformError::Refused {
                status: 404,
                reason: format!("{artifact} was never uploaded"),
            });
        }
        let id = artifact.to_string();
        let about = About::Artifact(id.clone());
        inner.call(Call::Confirm, Some(Effect::Confirm { id }), about).map(drop)
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        let body: Value = serde_json::from_str(&message.body).unwrap_or_default();
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let artifacts = body.pointer("/event_data/artifacts").and_then(Value::as_array);
        let accepted = Accepted {
            key: message.key.clone(),
            event_type: seed_name(&text("/event_type")),
            request: text("/event_context/simulated_request"),
            run: text("/event_context/simulated_run"),
            artifacts: artifacts
                .into_iter()
                .flatten()
                .map(|artifact| artifact.get("id").and_then(Value::as_str).unwrap_or_default().to_owned())
                .collect(),
            delay: body.pointer("/event_data/delay").and_then(Value::as_u64).unwrap_or(0),
            body: message.body.clone(),
        };
        if body.pointer("/event_data/external_sync_units/0").is_some() {
            self.lock().count("message/units-inline");
        }
        self.lock().call(Call::Message, Some(Effect::Accept(Arc::new(accepted))), About::Nothing).map(drop)
    }

    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        let mut inner = self.lock();
        if inner.call(Call::Download, None, About::Nothing)? == Some(CallFault::BadBody) {
            return Ok(b"no gzip".to_vec());
        }
        let refused = |reason: String| PlatformError::Refused { status: 404, reason };
        let uploaded = inner.uploads.get(artifact.as_str());
        let uploaded = uploaded.ok_or_else(|| refused(format!("{artifact} was never uploaded")))?;
        let text: String = uploaded.lines.iter().flat_map(|line| [line, "\n"]).collect();
        let member = Level::new(0).and_then(|level| compress(&[text.as_bytes()], level));
        Ok(member.map_err(|error| refused(error.to_string()))?.concat())
    }

    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        let mut inner = self.lock();
        let fault = inner.call(Call::LoadState, None, About::Nothing)?;
        let unit = inner.unit();
        let state = match fault {
            Some(CallFault::Stale) => inner.states_before.get(&unit),
            _ => inner.states.get(&unit),
        };
        let state = state.map(|state| match fault {
            Some(CallFault::Truncated) => {
                // At least its first half, up to the end of a character.
                let cut = (state.len() / 2..=state.len()).find_map(|at| state.get(..at));
                cut.unwrap_or_default().to_owned()
            }
            _ => state.to_string(),
        });
        let scope = inner.is(Setting::Scope);
        if scope {
            inner.count("platform/scope");
        }
        let objects = scope.then(|| json!({ OUT_OF_SCOPE: { "extract": false } }).to_string());
        Ok((state.is_some() || objects.is_some()).then_some(WorkerState { state, objects }))
    }

    fn install_mapping(&self, _: &Value, _: Option<&str>) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        if inner.dies_now() {
            return Err(gone());
        }
        inner.clock.advance(CALL_TAKES);
        inner.count("mapping/installed");
        Ok(())
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        let mut inner = self.lock();
        let unit = inner.unit();
        inner.measure(state);
        inner
            .call(Call::SaveState, Some(Effect::Save { unit, state: state.into() }), About::Nothing)
            .map(drop)
    }
}
