//! Searches for losses: first a clean sync, then many syncs in each of which one thing goes wrong. Each is compared
//! with the clean one, record by record.
//!
//! # What a case is
//!
//! A case has its own folder, with a platform and the worker's folder in it. A case of the first sync begins with
//! nothing; a case of the next sync begins with a copy of what the clean first sync left. After the sync with the
//! fault comes a sync without one. What both delivered is compared with what the clean syncs delivered:
//!
//! | word | meaning |
//! |---|---|
//! | lost | a record of the clean sync that neither of the two delivered |
//! | altered | a record whose last delivered content differs |
//! | repeated | a record that one run delivered more often than the clean run does |
//! | stuck | the following sync, without a fault, did not end with DONE |
//! | stopped | the sync with the fault did not end with DONE, and the following sync delivered everything: not a finding |
//!
//! If a worker makes a request to the external system that was never recorded, that is not a finding: the case is
//! inconclusive, and is reported as such.
//!
//! The clean sync is made twice. Differences between the two are reported, and ignored in the cases.
//!
//! # On disk
//!
//! `source.jsonl` is the recording of the external system, if there is one, and `record` is the sync during which it
//! was made. `clean/1` and `clean/2` are the clean syncs, `clean/first` is what the first sync of `clean/1` left, and
//! `case/ID` is a case: the directory of a platform, see [`Local`](crate::Local), with the worker's folder in
//! `worker`. The folder of a case without findings is removed. Everything except the recording is made again each
//! time. `verify.lock` marks a directory that this program may empty, and is locked while it is used.

pub(crate) mod cases;
pub(crate) mod compare;
mod html;
pub(crate) mod recording;
pub(crate) mod report;
pub(crate) mod source;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use highwater::SystemClock;
use serde_json::Value;

use crate::api::Observer;
use crate::call::Call;
use crate::error::{Error, Result, chain};
use crate::fault::Fault;
use crate::local::SyncReport;
use crate::sync::{Airdrop, AirdropOptions, Outcome, Stopper, SyncOptions, lock};
use crate::worker::{DIR_PLACE, Worker};
use cases::{Case, Menu, Shape, Which, Wrong, sample};
use compare::{Delivered, Ran, SetAside};
use recording::{Matching, Recording, is_credential_of};
use report::{CaseResult, CleanFigures, End, Place, VerifyReport};
use source::{SOURCE_PLACE, Source, SourceCall, SourceFault};

/// The delay of a slow answer, by default.
const SLOW: Duration = Duration::from_secs(3);
/// The number of cases, by default.
const CASES: usize = 200;
/// The longest wait for a DELAY, by default.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// Locked while a directory is used. Without this file nothing in the directory is removed.
const LOCK: &str = "verify.lock";
/// An invocation of a case is killed after this many times the longest one of the clean syncs, and [`CASE_MORE`]: the
/// platform's SDK for TypeScript retries a call for 62 seconds.
const CASE_TIMES: u32 = 10;
const CASE_MORE: Duration = Duration::from_secs(120);

/// The settings of a verification.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// The settings of each sync.
    pub sync: SyncOptions,
    /// Whether requests that look wrong are refused.
    pub strict: bool,
    /// The number of cases that are run at most. They are chosen evenly over faults and places.
    pub cases: usize,
    /// No case is begun once this time has passed since the first case began. The recording and the clean syncs before
    /// that do not count, and the cases in progress are brought to their end.
    pub budget: Option<Duration>,
    /// The seed by which cases are chosen.
    pub seed: u64,
    /// How many cases run at once.
    pub jobs: usize,
    /// The ids of the cases to run. If empty, cases are chosen.
    pub only: Vec<String>,
    /// Whether the worker's folder survives from one invocation to the next in production. Then no case has a fresh
    /// one.
    pub keeps_disk: bool,
    /// The delay of a slow answer.
    pub slow: Duration,
    /// The external system, if its answers are to be recorded, and then replayed.
    pub source: Option<SourceOptions>,
    /// Whether the folders of cases without findings are kept.
    pub keep: bool,
    /// Called for each call of the cases.
    pub observer: Option<CallObserver>,
}

/// A worker's external system, and the recording of its answers. A worker gets the address of the proxy in place of
/// `{source}` in its arguments, its environment or its connection data.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The base URL of the external system, without a slash at its end.
    pub upstream: String,
    /// The file of the recording; by default `source.jsonl` in the folder of all syncs. If it exists, no request is
    /// sent to the external system. If it is of another external system, the one in the folder is replaced, and one
    /// that is named here is refused.
    pub recording: Option<PathBuf>,
    /// Query parameters that are ignored when requests are compared.
    pub ignored: Vec<String>,
    /// Secrets that must not be in the recording, besides those recognised by the name of a header or parameter.
    pub secrets: Vec<String>,
}

impl SourceOptions {
    /// The external system at this address.
    pub fn new(upstream: impl Into<String>) -> Self {
        let upstream = upstream.into().trim_end_matches('/').to_owned();
        Self { upstream, recording: None, ignored: Vec::new(), secrets: Vec::new() }
    }

    /// Adds the values in connection data or an event's context whose names are those of credentials to the secrets.
    pub fn hide(&mut self, value: &Value) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| self.hide(value)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(text) if is_credential_of(name, text) => self.secrets.push(text.to_owned()),
                        Some(_) => {}
                        None => self.hide(value),
                    }
                }
            }
            _ => {}
        }
    }

    /// Adds the value of an environment variable to the secrets, if its name is that of a credential.
    pub fn hide_variable(&mut self, name: &str, value: &str) {
        // `TRELLO_KEY` is a credential, and `PROJECT_KEY=PROJ` is not.
        let is_key = name.to_ascii_lowercase().ends_with("key") && is_credential_of("key", value);
        if (is_key || is_credential_of(name, value)) && !value.contains(SOURCE_PLACE) {
            self.secrets.push(value.to_owned());
        }
    }
}

/// An [`Observer`] that implements `Debug`.
#[derive(Clone)]
pub struct CallObserver(pub Observer);

impl std::fmt::Debug for CallObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CallObserver")
    }
}

impl VerifyOptions {
    /// 200 cases of such syncs, two at a time for each core.
    pub fn new(mut sync: SyncOptions) -> Self {
        sync.delay_max.get_or_insert(DELAY_MAX);
        Self {
            sync,
            strict: false,
            cases: CASES,
            budget: None,
            seed: 0,
            // A case spends most of its time waiting for a worker that waits before a retry.
            jobs: std::thread::available_parallelism().map_or(2, |cores| cores.get() * 2),
            only: Vec::new(),
            keeps_disk: false,
            slow: SLOW,
            source: None,
            keep: false,
            observer: None,
        }
    }
}

/// A step of the verification, for display.
#[derive(Debug)]
#[non_exhaustive]
pub enum VerifyProgress<'a> {
    /// The answers of the external system are being recorded.
    Recording,
    /// A clean sync begins: number 1 to 4.
    Clean(u8),
    /// How many cases there are, and how many are run.
    Chosen(usize, usize),
    /// A case has ended.
    Case {
        /// The case.
        result: &'a CaseResult,
        /// The number of cases that have ended.
        done: usize,
        /// The number of cases that are run.
        of: usize,
        /// About how long the others will take.
        left: Duration,
    },
}

/// All workers that are running.
#[derive(Debug, Clone, Default)]
pub struct StopAll(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    stopped: bool,
    next: u64,
    stoppers: HashMap<u64, Stopper>,
}

impl StopAll {
    /// Kills all workers, and prevents others from starting.
    pub fn stop(&self) {
        let mut running = self.lock();
        running.stopped = true;
        for stopper in running.stoppers.values() {
            stopper.stop();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a worker to be killed with the others, until its number is returned.
    fn add(&self, stopper: Stopper) -> u64 {
        let mut running = self.lock();
        if running.stopped {
            stopper.stop();
        }
        running.next += 1;
        let number = running.next;
        running.stoppers.insert(number, stopper);
        number
    }
}

/// Verifies a worker in a folder. Files in it from an earlier verification are removed.
///
/// # Errors
/// `Invalid` if a clean sync does not end with DONE or cannot be compared with, or if a named case does not exist;
/// `Io` if the disk fails; and those of [`Airdrop::start`].
pub fn verify(
    dir: &Path,
    options: &VerifyOptions,
    worker: &Worker,
    stop: &StopAll,
    progress: &(dyn Fn(&VerifyProgress<'_>) + Sync),
) -> Result<VerifyReport> {
    let began = Instant::now();
    let nonce = RandomState::new().hash_one(std::process::id());
    let mut verify = Verify { dir: absolute(dir)?, options, worker, stop, recording: None, nonce };
    let folders = ["clean", "case", "record"].map(|folder| verify.dir.join(folder));
    if let Some(other) = folders.iter().find(|folder| folder.exists() && !verify.dir.join(LOCK).exists()) {
        return Err(Error::Unverified {
            reason: format!("{} was not made by verify: use another directory", other.display()),
        });
    }
    let _lock = lock(&verify.dir, LOCK)?;
    for folder in &folders {
        remove(folder)?;
    }
    if let Some(source) = &options.source {
        verify.recording = Some(Arc::new(verify.recording(source, progress)?));
    }
    let clean = verify.clean(progress)?;
    let menu = Menu {
        kills: matches!(worker, Worker::Command(_)) || options.sync.kill.is_some(),
        fresh_disk: matches!(worker, Worker::Command(_)) && !options.keeps_disk,
        slow: options.slow,
        recording: verify.recording.clone(),
    };
    let all: Vec<Case> =
        [&clean.first, &clean.next].into_iter().flat_map(|ran| menu.cases(&ran.shape)).collect();
    let count = all.len();
    let mut pairs = 0;
    let chosen = if options.only.is_empty() {
        pairs = all.iter().map(|case| (&case.place, &case.kind)).collect::<BTreeSet<_>>().len();
        sample(all, options.cases, options.seed)
    } else {
        named(&all, &options.only)?
    };
    progress(&VerifyProgress::Chosen(count, chosen.len()));
    let cases = verify.run_all(&chosen, &clean, progress)?;
    Ok(VerifyReport {
        worker: worker.to_string(),
        clean: vec![clean.first.figures, clean.next.figures],
        recording: verify.recording.as_ref().map(|recording| recording.failures()),
        set_aside: clean.aside,
        notes: clean.notes,
        known: (count, chosen.len()),
        pairs,
        cases,
        seed: options.seed,
        after_death: options.sync.after_death,
        took: began.elapsed(),
    })
}

/// The cases with these ids.
fn named(all: &[Case], ids: &[String]) -> Result<Vec<Case>> {
    ids.iter()
        .map(|id| {
            all.iter().find(|case| case.id == *id).cloned().ok_or_else(|| {
                let alike = |case: &Case| case.id.bytes().zip(id.bytes()).take_while(|(a, b)| a == b).count();
                let mut near: Vec<&Case> = all.iter().collect();
                near.sort_by_key(|case| std::cmp::Reverse(alike(case)));
                let near: Vec<&str> = near.iter().take(5).map(|case| case.id.as_str()).collect();
                Error::Invalid {
                    what: format!("the case {id:?}"),
                    reason: format!("this sync has no such case; it has {}", near.join(", ")),
                }
            })
        })
        .collect()
}

struct Verify<'a> {
    dir: PathBuf,
    options: &'a VerifyOptions,
    worker: &'a Worker,
    stop: &'a StopAll,
    recording: Option<Arc<Recording>>,
    /// Makes the sync units of this verification differ from those of an earlier one, which a function may remember.
    nonce: u64,
}

/// A folder that is served, with the settings of its syncs.
struct Served<'a> {
    airdrop: Airdrop,
    /// The external system, if it is recorded.
    source: Option<Source>,
    /// The id of the sync unit, by which a function's syncs are distinguished.
    unit: String,
    /// Whether its calls are reported, and the worker's output is printed if that was requested.
    is_told: bool,
    number: u64,
    stop: &'a StopAll,
    /// The budget of an invocation, if it is known how long one takes.
    budget: Option<Duration>,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.stop.lock().stoppers.remove(&self.number);
    }
}

/// A clean sync.
struct CleanSync {
    shape: Shape,
    delivered: Delivered,
    figures: CleanFigures,
}

/// The clean syncs.
struct Clean {
    first: CleanSync,
    next: CleanSync,
    /// What both delivered.
    delivered: Delivered,
    aside: SetAside,
    /// Other differences between the two.
    notes: Vec<String>,
    /// What the first sync left.
    snapshot: PathBuf,
}

impl Clean {
    /// The longest time of an invocation.
    fn longest(&self) -> Duration {
        let syncs = [&self.first, &self.next].into_iter();
        let seconds = syncs.flat_map(|sync| &sync.shape.invocations).map(|invocation| invocation.seconds);
        Duration::from_secs_f64(seconds.fold(0.0, f64::max))
    }
}

impl Verify<'_> {
    /// Makes the clean syncs, twice.
    fn clean(&self, progress: &(dyn Fn(&VerifyProgress<'_>) + Sync)) -> Result<Clean> {
        let mut number = 0;
        let mut sync = |folder: &str, which| {
            number += 1;
            progress(&VerifyProgress::Clean(number));
            self.clean_sync(folder, which)
        };
        let mut first = sync("clean/1", Which::First)?;
        if first.delivered.is_empty() {
            return Err(Error::Unverified {
                reason: "the clean first sync delivers no record, so none could be lost: see that its source has some, \
                         and that the worker does not remember an earlier verify outside of its own folder ({dir} in \
                         its words, HIGHWATER_DIR in its environment)"
                    .to_owned(),
            });
        }
        let snapshot = self.dir.join("clean/first");
        copy(&self.dir.join("clean/1"), &snapshot)?;
        let mut next = sync("clean/1", Which::Next)?;
        let first_again = sync("clean/2", Which::First)?;
        let next_again = sync("clean/2", Which::Next)?;
        if first_again.delivered.is_empty() {
            return Err(Error::Unverified {
                reason: "a first sync that follows another one delivers nothing, as the worker remembers the one before \
                         outside of its own folder: give it that folder by {dir} in its words or HIGHWATER_DIR in its \
                         environment"
                    .to_owned(),
            });
        }
        first.delivered.as_often_as(&first_again.delivered);
        next.delivered.as_often_as(&next_again.delivered);
        let both = |first: &CleanSync, next: &CleanSync| {
            let mut both = first.delivered.clone();
            both.extend(&next.delivered);
            both
        };
        let delivered = both(&first, &next);
        let mut aside = delivered.set_aside(&both(&first_again, &next_again));
        // A record may be in the other of the two syncs.
        for (one, other) in [(&first, &first_again), (&next, &next_again)] {
            let more = one.delivered.set_aside(&other.delivered);
            aside.in_one_only.extend(more.in_one_only);
            aside.content_differs.extend(more.content_differs);
        }
        let mut notes = Vec::new();
        for (which, one, other) in [("first", &first, &first_again), ("next", &next, &next_again)] {
            let (calls, again) = (one.shape.calls.len(), other.shape.calls.len());
            if calls != again {
                notes.push(format!(
                    "the {which} sync made {calls} calls one time and {again} the other: a fault may \
                     apply to another call than the report says"
                ));
            }
            notes.extend(one.figures.notes.iter().cloned());
        }
        let saves_its_state = first.shape.calls.iter().any(|call| call.call == Call::State);
        if !saves_its_state && self.may_remember_elsewhere() {
            notes.push(
                "the worker's arguments do not contain {dir}, and it left nothing in HIGHWATER_DIR: if it keeps \
                 anything on disk, the cases disturb each other"
                    .to_owned(),
            );
        }
        Ok(Clean { first, next, delivered, aside, notes, snapshot })
    }

    /// Whether nothing shows that the worker keeps state in its own folder, if it has state at all.
    fn may_remember_elsewhere(&self) -> bool {
        let Worker::Command(words) = self.worker else { return false };
        let own = self.dir.join("clean/1/worker");
        let is_empty = fs::read_dir(&own).map_or(true, |mut entries| entries.next().is_none());
        is_empty && !words.iter().any(|word| word.contains(DIR_PLACE))
    }

    fn clean_sync(&self, folder: &str, which: Which) -> Result<CleanSync> {
        let dir = self.dir.join(folder);
        // Output that was requested is that of the cases.
        let served = self.serve(&dir, &folder.replace('/', "-"), false)?;
        let (outcome, ran) = self.sync(&served, which, None)?;
        let asked = ran.source.len();
        if let Some(call) = ran.source.iter().find(|call| call.answer.is_none()) {
            return Err(Error::Unverified {
                reason: format!(
                    "the clean sync requests {}, which was never recorded: if a parameter differs each time, ignore \
                     it with --ignore-param; if the recording is older than the worker, or from another one, remove \
                     it to record again",
                    call.request
                ),
            });
        }
        if self.options.source.is_some() && which == Which::First && asked == 0 {
            return Err(never_asked());
        }
        if let Some(failure) = &outcome.failure {
            return Err(Error::Unverified {
                reason: format!(
                    "the clean {which} sync, in which nothing goes wrong, does not end with DONE: {}; what the worker \
                     printed is in {}",
                    chain(failure),
                    dir.join("worker.log").display()
                ),
            });
        }
        let figures = CleanFigures::new(which, &outcome, &ran);
        let Ran { delivered, calls, invocations, source, .. } = ran;
        Ok(CleanSync { shape: Shape { which, calls, invocations, source }, delivered, figures })
    }

    /// Reads the recording of the external system, or makes it.
    fn recording(
        &self,
        source: &SourceOptions,
        progress: &(dyn Fn(&VerifyProgress<'_>) + Sync),
    ) -> Result<Recording> {
        let path = source.recording.clone().unwrap_or_else(|| self.dir.join("source.jsonl"));
        if let Some(recording) = Recording::read(&path, &source.upstream, source.recording.is_none())? {
            return Ok(recording);
        }
        progress(&VerifyProgress::Recording);
        let secrets: BTreeSet<String> = source.secrets.iter().cloned().collect();
        let proxy = Source::record(&source.upstream, matching(source), secrets)?;
        let served = self.serve_with(&self.dir.join("record"), "record", false, Some(proxy))?;
        let mut failed = None;
        for which in [Which::First, Which::Next] {
            let (outcome, _) = self.sync(&served, which, None)?;
            failed = outcome.failure.filter(|_| failed.is_none());
            if failed.is_some() {
                break;
            }
        }
        let Some(proxy) = &served.source else { return Err(never_asked()) };
        let recorded = proxy.recorded();
        // From a recording without an answer, nothing could be replayed.
        let unanswered = &recorded.unanswered;
        if let Some(lost) = unanswered.iter().find(|request| !request.was_repeated(&recorded.answers)) {
            let reason = &lost.reason;
            return Err(Error::Unverified {
                reason: format!(
                    "the source {} (--source) gave no answer: {reason}; see that it is there, then begin again: nothing \
                     is recorded yet",
                    source.upstream
                ),
            });
        }
        if let Some(failure) = failed {
            return Err(Error::Unverified {
                reason: format!(
                    "the sync in which the source is recorded does not end with DONE: {}; the worker's output is in {}",
                    chain(&failure),
                    self.dir.join("record/worker.log").display()
                ),
            });
        }
        if recorded.answers.is_empty() {
            return Err(never_asked());
        }
        let unanswered = recorded.unanswered.len() as u64;
        Recording::save(&path, &source.upstream, &recorded.secrets, recorded.answers, unanswered)
    }

    /// Serves a folder, at its earlier address if that is free: the worker's state may contain it.
    fn serve(&self, dir: &Path, unit: &str, is_told: bool) -> Result<Served<'_>> {
        self.serve_with(dir, unit, is_told, None)
    }

    /// The same, with a proxy that records or replays.
    fn serve_with(
        &self,
        dir: &Path,
        unit: &str,
        is_told: bool,
        recorder: Option<Source>,
    ) -> Result<Served<'_>> {
        let start = |port| {
            let observer = self.options.observer.as_ref().filter(|_| is_told);
            Airdrop::start(
                dir,
                AirdropOptions {
                    port,
                    faults: Vec::new(),
                    strict: self.options.strict,
                    observer: observer.map(|observer| Arc::clone(&observer.0)),
                },
            )
        };
        let airdrop = match start(None) {
            Err(Error::Port { .. }) => start(Some(0))?,
            started => started?,
        };
        let source = match (recorder, &self.recording, &self.options.source) {
            (None, Some(recording), Some(source)) => Some(Source::replay(
                Arc::clone(recording),
                matching(source),
                source.secrets.iter().cloned().collect(),
                airdrop.invocation(),
            )?),
            (recorder, ..) => recorder,
        };
        let number = self.stop.add(airdrop.stopper());
        Ok(Served { airdrop, source, unit: unit.to_owned(), is_told, number, stop: self.stop, budget: None })
    }

    /// Makes one sync in a folder, and reads its result.
    fn sync(&self, served: &Served<'_>, which: Which, wrong: Option<&Wrong>) -> Result<(Outcome, Ran)> {
        let airdrop = &served.airdrop;
        let faults: Vec<Fault> = match wrong {
            Some(Wrong::Call(fault)) => vec![fault.clone()],
            _ => Vec::new(),
        };
        airdrop.set_faults(&faults);
        let mut sync = self.options.sync.clone();
        sync.budget = served.budget.map_or(sync.budget, |budget| budget.min(sync.budget));
        match wrong {
            Some(Wrong::Invocation(number, disturbance)) => {
                sync.disturbance = Some((*number, disturbance.clone()));
            }
            Some(Wrong::FreshDisk) => sync.fresh_disk = true,
            Some(Wrong::Call(_) | Wrong::Source(_)) | None => {}
        }
        let mut worker = self.worker.clone();
        if let Some(source) = &served.source {
            source.begin(which == Which::First, source_fault(wrong));
            tell_source(source.base(), &mut sync, &mut worker);
        }
        if matches!(self.worker, Worker::Function(_)) {
            // A function's state is known by the unit, wherever it is.
            sync.settings = sync.settings.sync_unit_id(format!("verify-{:x}-{}", self.nonce, served.unit));
        }
        sync.echo &= served.is_told;
        let outcome = airdrop.sync(&sync, &worker, &mut |_| {});
        if self.stop.lock().stopped {
            return Err(Error::Unverified { reason: "this program was asked to stop".to_owned() });
        }
        if let Some(
            error @ (Error::Start { .. } | Error::Io { .. } | Error::Invalid { .. } | Error::InUse { .. }),
        ) = outcome.failure
        {
            return Err(error);
        }
        let source = served.source.as_ref();
        let hosts: Vec<&str> = [airdrop.base()].into_iter().chain(source.map(Source::base)).collect();
        let mut ran = match &outcome.report {
            Some(SyncReport { run, .. }) => Ran::read(airdrop.local(), run.as_str(), &hosts)?,
            None => Ran::default(),
        };
        ran.source = source.map(Source::calls).unwrap_or_default();
        if !outcome.is_done() {
            // The sync that follows is another run.
            airdrop.local().give_up_sync(&sync.settings, &SystemClock::new())?;
        }
        Ok((outcome, ran))
    }

    fn run_all(
        &self,
        chosen: &[Case],
        clean: &Clean,
        progress: &(dyn Fn(&VerifyProgress<'_>) + Sync),
    ) -> Result<Vec<CaseResult>> {
        let (next, began) = (AtomicUsize::new(0), Instant::now());
        let over = Mutex::new((Vec::new(), None));
        std::thread::scope(|scope| {
            // A kill of a function interrupts all cases.
            let jobs = if self.options.sync.kill.is_some() { 1 } else { self.options.jobs };
            for _ in 0..jobs.clamp(1, chosen.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let is_late = self.options.budget.is_some_and(|budget| began.elapsed() >= budget);
                        let Some(case) = chosen.get(at).filter(|_| !is_late) else { return };
                        let result = self.run(case, clean);
                        let mut over = over.lock().unwrap_or_else(PoisonError::into_inner);
                        let (results, failed) = &mut *over;
                        match result {
                            Ok(result) => {
                                let done = results.len() + 1;
                                let rest = u32::try_from(chosen.len() - done).unwrap_or(u32::MAX);
                                let each = began.elapsed() / u32::try_from(done).unwrap_or(u32::MAX);
                                let mut left = each.saturating_mul(rest);
                                if let Some(budget) = self.options.budget {
                                    left = left.min(budget.saturating_sub(began.elapsed()));
                                }
                                progress(&VerifyProgress::Case {
                                    result: &result,
                                    done,
                                    of: chosen.len(),
                                    left,
                                });
                                results.push((at, result));
                            }
                            Err(error) => {
                                failed.get_or_insert(error);
                                next.store(chosen.len(), Ordering::Relaxed);
                                return;
                            }
                        }
                    }
                });
            }
        });
        let (mut results, failed) = over.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failed {
            return Err(error);
        }
        results.sort_by_key(|(at, _)| *at);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// Runs a case.
    fn run(&self, case: &Case, clean: &Clean) -> Result<CaseResult> {
        let began = Instant::now();
        let name = case.id.replace(':', "-");
        let dir = self.dir.join("case").join(&name);
        let usual = match case.which {
            Which::First => &clean.first,
            Which::Next => &clean.next,
        };
        let is_copied = !matches!(self.worker, Worker::Function(_));
        if case.which == Which::Next && is_copied {
            copy(&clean.snapshot, &dir)?;
        }
        // One address for both syncs: the state left by the first one may contain it.
        let mut served = self.serve(&dir, &name, true)?;
        served.budget = Some(clean.longest() * CASE_TIMES + CASE_MORE);
        if case.which == Which::Next && !is_copied {
            // The state of a function cannot be copied.
            self.sync(&served, Which::First, None)?;
        }
        let (outcome, ran) = self.sync(&served, case.which, Some(&case.wrong))?;
        let fresh = matches!(case.wrong, Wrong::FreshDisk).then_some(&Wrong::FreshDisk);
        // After a first sync that stopped comes another first sync.
        let follows = if outcome.is_done() { Which::Next } else { case.which };
        let (then, ran_then) = self.sync(&served, follows, fresh)?;
        let mut delivered = ran.delivered.clone();
        delivered.extend(&ran_then.delivered);
        let wanted = match case.which {
            // After a first sync that stopped comes another first sync.
            Which::First if then.report.as_ref().is_some_and(|report| report.initial) => {
                &clean.first.delivered
            }
            Which::First => &clean.delivered,
            Which::Next => &clean.next.delivered,
        };
        let difference = wanted.difference(&delivered, &clean.aside);
        let mut repeated = ran.delivered.repeated(&usual.delivered);
        repeated.extend(ran_then.delivered.repeated(&clean.delivered));
        let befallen = ran.calls.iter().find(|call| call.fault.is_some());
        let source_befallen = ran.source.iter().find(|call| call.fault.is_some());
        let came_true = match &case.wrong {
            Wrong::Call(_) => befallen.is_some(),
            Wrong::Source(_) => source_befallen.is_some(),
            Wrong::Invocation(number, _) => ran.invocations.iter().any(|of| of.number == *number),
            Wrong::FreshDisk => true,
        };
        let invocation = match (&case.wrong, befallen) {
            (Wrong::Invocation(number, _), _) => *number,
            (_, Some(call)) => call.invocation,
            _ => source_befallen.map_or(0, |call| call.invocation),
        };
        let event = ran.invocations.iter().find(|of| of.number == invocation);
        let place = Place {
            call: befallen.map_or(0, |call| call.number),
            invocation,
            event_type: event.map(|event| event.event_type.clone()).unwrap_or_default(),
        };
        let mut result = CaseResult {
            id: case.id.clone(),
            which: case.which,
            kind: case.kind.clone(),
            place: case.place.clone(),
            at: place,
            came_true,
            end: End::of(&outcome),
            then: End::of(&then),
            lost: difference.lost,
            altered: difference.altered,
            repeated,
            wasted_uploads: ran.wasted_uploads.saturating_sub(usual.figures.wasted_uploads),
            extra_invocations: (ran.invocations.len() as u64).saturating_sub(usual.figures.invocations),
            seconds: began.elapsed().as_secs_f64(),
            unrecorded: unrecorded(ran.source.iter().chain(&ran_then.source)),
            dir: Some(dir.clone()),
            timeline: Vec::new(),
        };
        if result.verdict().is_finding() {
            result.timeline = report::timeline(&ran);
        }
        if !result.verdict().is_finding() && !self.options.keep && self.options.only.is_empty() {
            remove(&dir)?;
            result.dir = None;
        }
        Ok(result)
    }
}

fn matching(source: &SourceOptions) -> Matching {
    Matching { ignored: source.ignored.clone() }
}

fn never_asked() -> Error {
    Error::Unverified {
        reason: format!(
            "the worker never asks the source that --source names: pass it the address by {SOURCE_PLACE} in its arguments, in --env NAME=VALUE or in --connection-data"
        ),
    }
}

fn source_fault(wrong: Option<&Wrong>) -> Option<SourceFault> {
    match wrong {
        Some(Wrong::Source(fault)) => Some(fault.clone()),
        _ => None,
    }
}

/// Puts the address of the source in place of `{source}`.
fn tell_source(base: &str, sync: &mut SyncOptions, worker: &mut Worker) {
    if let Worker::Command(words) = worker {
        for word in words {
            *word = word.replace(SOURCE_PLACE, base);
        }
    }
    for (_, value) in &mut sync.env {
        *value = value.replace(SOURCE_PLACE, base);
    }
    sync.settings = sync.settings.clone().told(SOURCE_PLACE, base);
}

/// The requests that were never recorded, each once.
fn unrecorded<'c>(calls: impl Iterator<Item = &'c SourceCall>) -> Vec<String> {
    let missing = calls.filter(|call| call.answer.is_none()).map(|call| call.request.clone());
    missing.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A worker may be started in another directory than this process.
fn absolute(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::canonicalize(dir))
        .map_err(|error| Error::io(format!("make the directory {}", dir.display()), error))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

/// Copies a folder of a platform. Its artifacts never change, so they are linked if possible. The files in the
/// worker's folder are copied, as the worker may change them.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fn copy_into(from: &Path, to: &Path, links: impl Fn(&Path) -> bool + Copy) -> io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (path, copied) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                copy_into(&path, &copied, links)?;
            } else if kind.is_file() && !(links(&path) && fs::hard_link(&path, &copied).is_ok()) {
                fs::copy(&path, &copied)?;
            } else if kind.is_symlink() {
                #[cfg(unix)]
                std::os::unix::fs::symlink(fs::read_link(&path)?, &copied)?;
            }
        }
        Ok(())
    }
    remove(to)?;
    let artifacts = from.join("artifacts");
    copy_into(from, to, |path| path.starts_with(&artifacts))
        .map_err(|error| Error::io(format!("copy {} to {}", from.display(), to.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_copy_shares_nothing_of_the_workers_and_keeps_its_links() {
        use std::os::unix::fs::{MetadataExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for folder in ["artifacts", "worker/artifacts"] {
            fs::create_dir_all(from.join(folder)).unwrap();
            fs::write(from.join(folder).join("a"), "before").unwrap();
        }
        symlink("artifacts/a", from.join("worker/current")).unwrap();
        symlink("nowhere", from.join("worker/broken")).unwrap();
        copy(&from, &to).unwrap();
        let file = |dir: &Path, file: &str| fs::metadata(dir.join(file)).unwrap().ino();
        assert_eq!(file(&from, "artifacts/a"), file(&to, "artifacts/a"), "what never changes is linked");
        fs::write(to.join("worker/artifacts/a"), "after").unwrap();
        assert_eq!(fs::read_to_string(from.join("worker/artifacts/a")).unwrap(), "before");
        assert_eq!(fs::read_to_string(to.join("worker/current")).unwrap(), "after");
        assert_eq!(fs::read_link(to.join("worker/broken")).unwrap(), Path::new("nowhere"));
    }

    #[test]
    fn what_is_a_credential_by_its_name_is_hidden_wherever_it_stands() {
        let mut source = SourceOptions::new("https://api.example.com");
        source.hide(&serde_json::json!({
            "accounts": [{ "personal_token": "one" }, { "clientSecret": "two", "name": "open" }],
            "project": { "key": "PROJ-1" },
            "key": "0123456789abcdef",
        }));
        source.hide_variable("TRELLO_TOKEN", "three");
        source.hide_variable("TRELLO_KEY", "fedcba9876543210");
        source.hide_variable("PROJECT_KEY", "PROJ");
        source.hide_variable("NODE_ENV", "open");
        source.hide_variable("TOKEN_URL", "open");
        source.secrets.sort();
        assert_eq!(source.secrets, ["0123456789abcdef", "fedcba9876543210", "one", "three", "two"]);
    }
}
