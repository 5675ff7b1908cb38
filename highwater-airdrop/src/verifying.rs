//! The command line of `verify`.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use highwater_airdrop::{
    CallObserver, CallRecord, CaseVerdict, SOURCE_PLACE, SourceOptions, StopAll, VerifyOptions,
    VerifyProgress, verify,
};

use crate::{Failure, Worked, end_with_signals, object, print, tell};

// Lines of at most 98 characters: clap would break longer ones where it is narrow.
const AFTER_HELP: &str = "\
First a clean sync and an incremental one are made, both twice. Differences between two of a kind
are reported, and ignored from then on. Then come the cases: each has a sync with one fault, and
then one without faults. What the two delivered is compared with the clean syncs, record by
record, by id and content, attachments and their bytes included.

Faults:
  500, 503           the call fails, without effect; -applied: it takes effect and fails
  400, 403, 408, 413 the call is refused
  429, 429-after-1   the call is refused temporarily, without and with Retry-After
  hangup, lost       the connection is closed without an answer, without or with effect
  slow               the answer is late
  kill-before, kill-after, kill-later   SIGKILL before or after a call takes effect, or between calls
  twice              the event is given again after it was answered
  half-time          the worker is killed after half the time that it needs
  delay-early, delay-late   CONTINUE comes before the time of a DELAY, or long after it
  fresh-disk         each invocation finds the worker's folder empty
Faults of the external system (--source):
  429, 429-after-1, 429-after-date   temporary refusals: no Retry-After, seconds, or a date
  500, 401           it fails, or refuses
  cut                the connection breaks off in the middle of the answer
  empty-page         a page has no items, and its next page is the same page again
  slow               the answer is late

Results of a case. The verdict is the worst finding (lost, altered, stuck, repeated); without
one it is `clean`, unless no case has a result.
  lost       a record is in neither of the two syncs
  altered    the last delivered content of a record differs
  stuck      the following sync did not end with DONE either
  repeated   a run delivered a record more often than the clean run
  stopped    the sync did not end with DONE, but the following one delivered all: not a finding
  not recorded   the worker made a request that is not in the recording: no result
  not reached    the fault did not come true: no result
  clean      all was delivered, nothing more often than in the clean run; both syncs ended with
             DONE

Columns of the table, a line for each place and fault that has findings:
  place      the call, the request to the source or the event; * stands for an id
  fault      what went wrong there, see above
  cases      the number of cases. Behind it lost, altered and repeated are records, stuck is cases
  wasted     uploads that no message names, in addition to those of the clean sync
  extra      invocations in addition to those of the clean sync
  said DONE  cases in which the worker said DONE although records are lost

Other words:
  clean sync     a sync in which nothing goes wrong; its counts are of records, by item type
  external_sync_units   what can be synced
  external_domain_metadata   the metadata: one record
  attachments    the files that the worker names
  ssor_attachment   the files that were uploaded and linked to those names: as many, unless some
                 were given up
  calls          requests to the platform
  invocations    starts of the worker, one for each event
  recording      the answers of the source. Failures in it (408, 429, 5xx, no answer) are the
                 source's own, no faults that were set
  warning        the worker did not repeat a request after such a failure, so the clean syncs may
                 lack records: no case can show that
  note           what the clean syncs show, beside their counts
  ignored        records in which two clean syncs of a kind differ
  pairs          the places, each with the faults that are possible there
  seed           chooses among the cases (--seed)
  after a death  what the platform does when a worker ends without a message (--after-death)
  not run        the verdict if no case was run: the budget was over, or --cases is 0
  the budget was over   the cases that were not begun because of --budget

The report shows the worker's command line, and the names of --env without their values. Put a key
into --env or --connection-data @FILE, not into the command line.

Many syncs run at once. What a worker stores on disk belongs in the folder of its sync: `{dir}` in
its arguments, HIGHWATER_DIR in its environment. The cases of a function (--function) differ in
the id of the sync unit. Only the command of --kill kills a function, and then one case runs at a
time.

Exit codes: 0 nothing was found; 1 it could not be verified, or no case has a result; 2 wrong
usage; 3 records were lost, altered or repeated, or the worker was stuck.

  highwater-airdrop verify --dir out/verify --names newer -- node run.js {event}
  highwater-airdrop verify --dir out/verify --cases 1000 --budget 10m -- ./worker {event} {dir}
  highwater-airdrop verify --dir out/verify --case first:upload-403:3 -- node run.js {event}";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(crate) struct Verify {
    /// The directory for the syncs; created if it does not exist. The files of an earlier `verify` in it are removed
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    worker: Worked,
    /// The number of cases to run at most, chosen evenly over faults and places; in each round, those of the source
    /// come first
    #[arg(long, value_name = "N", default_value_t = 200)]
    cases: usize,
    /// Begin no case once this time has passed since the first case began, for example 10m. What is outside of it: the
    /// recording and the four clean syncs, which come before, and the cases in progress (--jobs), which are brought to
    /// their end, with two or three syncs each
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
    /// The seed: another number chooses other cases
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How many cases run at once [default: two for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    jobs: Option<u16>,
    /// Run this case, and print every call and the worker's output on standard error; may be repeated
    #[arg(long = "case", value_name = "ID")]
    only: Vec<String>,
    /// In production the worker's disk survives from one invocation to the next: no case has a fresh one
    #[arg(long)]
    keeps_disk: bool,
    /// The connector's external system, for example `https://api.example.com`. Its answers are recorded once, by a
    /// proxy whose address replaces `{source}` in ARGS, in the values of --env and in --connection-data. From then on
    /// they are replayed without a network, and faults of the source are tried, too
    #[arg(long, value_name = "UPSTREAM")]
    source: Option<String>,
    /// The file of the recording, which only its owner can read and which has no credentials [default: source.jsonl in
    /// DIR, which is made again for another UPSTREAM]
    #[arg(long, value_name = "FILE", requires = "source")]
    recording: Option<PathBuf>,
    /// A parameter to ignore when requests to the source are compared; may be repeated
    #[arg(long = "ignore-param", value_name = "NAME", requires = "source")]
    ignored: Vec<String>,
    /// The delay of a slow answer
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    slow: Duration,
    /// How long an invocation may take before it is killed. In a case the limit is at most ten times its time in a
    /// clean sync, plus two minutes
    #[arg(long, value_name = "TIME", default_value = "13m", value_parser = humantime::parse_duration)]
    invocation_budget: Duration,
    /// Refuse what only looks wrong
    #[arg(long)]
    strict: bool,
    /// Keep the folders of all cases, not only of those with findings
    #[arg(long)]
    keep: bool,
    /// Also write the report as a page for a browser: a single file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut sync = self.worker.options(self.worker.settings()?);
        sync.budget = self.invocation_budget;
        sync.echo = !self.only.is_empty();
        let mut options = VerifyOptions::new(sync);
        options.strict = self.strict;
        options.cases = self.cases;
        options.budget = self.budget;
        options.seed = self.seed;
        if let Some(jobs) = self.jobs {
            options.jobs = jobs.into();
        }
        options.keeps_disk = self.keeps_disk;
        options.slow = self.slow;
        options.keep = self.keep;
        if let Some(upstream) = &self.source {
            if !upstream.starts_with("http://") && !upstream.starts_with("https://") {
                return Err(format!(
                    "--source takes an address like https://api.example.com, not {upstream:?}"
                )
                .into());
            }
            let mut source = SourceOptions::new(upstream);
            source.recording.clone_from(&self.recording);
            source.ignored.clone_from(&self.ignored);
            if let Some(data) = &self.worker.connection_data {
                source.hide(&object("--connection-data", data)?.into());
            }
            if let Some(context) = &self.worker.event_context {
                source.hide(&object("--event-context", context)?.into());
            }
            for (name, value) in &self.worker.env {
                source.hide_variable(name, value);
            }
            options.source = Some(source);
        }
        if !self.only.is_empty() {
            // One after the other, as the output is that of one case.
            options.jobs = 1;
            options.observer = Some(CallObserver(Arc::new(tell_call)));
        }
        options.only.clone_from(&self.only);
        if let Some(path) = &self.html {
            // An earlier report is kept until there is a new one; if there was none, no file is left.
            let is_new = !path.exists();
            std::fs::File::options()
                .append(true)
                .create(true)
                .open(path)
                .and_then(|_| if is_new { std::fs::remove_file(path) } else { Ok(()) })
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        let stop = StopAll::default();
        let stopper = stop.clone();
        end_with_signals(move || stopper.stop(), "begin again, or run one case with --case")?;
        let told = Mutex::new(Told::default());
        let report = verify(&self.dir, &options, &self.worker.worker(), &stop, &|progress| {
            told.lock().unwrap_or_else(PoisonError::into_inner).tell(progress);
        })?;
        Told::end();
        if let Some(path) = &self.html {
            std::fs::write(path, report.to_html(&again))
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        print(&if self.json { format!("{}\n", report.to_json()) } else { report.to_text(&again) })?;
        Ok(match report.verdict() {
            CaseVerdict::Clean => ExitCode::SUCCESS,
            verdict if verdict.is_finding() => ExitCode::from(3),
            verdict => {
                let none = verdict == CaseVerdict::NotRun;
                tell(if none { "error: no case was run" } else { "error: no case is conclusive" });
                ExitCode::FAILURE
            }
        })
    }
}

fn tell_call(call: &CallRecord) {
    let status = call.status.map_or("no answer".to_owned(), |status| status.to_string());
    let fault = call.fault.as_ref().map(|fault| format!(" [{fault}]")).unwrap_or_default();
    let reason = call.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let applied = if call.applied { "" } else { ", without effect" };
    tell(&format!("{:>8} ms  {} {status}{applied}{fault}{reason}", call.at_ms, call.call));
}

/// The command that runs a case again: this one, without the options that choose cases or may contain a key.
fn again(case: &str) -> String {
    // An argument that is not UTF-8 must not prevent the report.
    again_of(std::env::args_os().map(|word| word.to_string_lossy().into_owned()), case)
}

fn again_of(mut given: impl Iterator<Item = String>, case: &str) -> String {
    let mut words = vec![given.next().unwrap_or_default()];
    while let Some(word) = given.next() {
        if word == "--" {
            words.extend(["--case".to_owned(), case.to_owned(), word]);
            words.extend(given);
            return quoted(&words);
        }
        let (name, value) =
            word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        let mut taken = || value.map_or_else(|| given.next().unwrap_or_default(), str::to_owned);
        match name {
            "--cases" | "--budget" | "--case" | "--jobs" | "--seed" | "--html" => drop(taken()),
            "--json" => {}
            "--connection-data" | "--event-context" => {
                let value = taken();
                let value = if value.starts_with('@') { value } else { "@FILE".to_owned() };
                words.extend([name.to_owned(), value]);
            }
            "--env" => {
                let value = taken();
                let variable = value.split('=').next().unwrap_or_default();
                let shown =
                    if value.contains(SOURCE_PLACE) { value.clone() } else { format!("{variable}=...") };
                words.extend([name.to_owned(), shown]);
            }
            _ => words.push(word),
        }
    }
    words.extend(["--case".to_owned(), case.to_owned()]);
    quoted(&words)
}

/// Arguments as a shell reads them.
fn quoted(words: &[String]) -> String {
    let plain = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=@,{}".contains(&byte))
    };
    let quoted: Vec<String> = words
        .iter()
        .map(|word| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) })
        .collect();
    quoted.join(" ")
}

/// Prints progress on standard error: on a terminal one line that changes, elsewhere a line from time to time.
#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    found: usize,
}

impl Told {
    /// How often a line is printed without a terminal.
    const PAUSE: Duration = Duration::from_secs(10);

    fn tell(&mut self, progress: &VerifyProgress<'_>) {
        match progress {
            VerifyProgress::Recording => self.line("recording what the source answers", true),
            VerifyProgress::Clean(number) => self.line(&format!("clean sync {number} of 4"), true),
            VerifyProgress::Chosen(known, chosen) => {
                self.line(&format!("{known} cases are known, {chosen} are run"), true);
                Self::end();
            }
            VerifyProgress::Case { result, done, of, left } => {
                if result.verdict().is_finding() {
                    self.found += 1;
                }
                let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
                let text = format!("{done} of {of} cases, {} with findings, {left} left", self.found);
                self.line(&text, done == of);
            }
            _ => {}
        }
    }

    fn line(&mut self, text: &str, always: bool) {
        let mut error = io::stderr().lock();
        if error.is_terminal() {
            // Clears the rest of a longer line before it.
            let _ = write!(error, "\r{text}\x1b[K");
            let _ = error.flush();
        } else if always || self.last.is_none_or(|last| last.elapsed() >= Self::PAUSE) {
            self.last = Some(Instant::now());
            let _ = writeln!(error, "{text}");
        }
    }

    fn end() {
        if io::stderr().is_terminal() {
            tell("");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_a_key_is_not_in_the_command_that_runs_a_case_again() {
        let given = [
            "highwater-airdrop verify --env TRELLO_TOKEN=very-secret --env=KEY=very-secret --env URL={source}",
            "--event-context {\"a\":\"very-secret\"} --connection-data=very-secret --connection-data @data.json",
            "--cases 3 --json --seed=4 --dir out -- node run.js --env A=1 {event}",
        ];
        let words = given.iter().flat_map(|line| line.split(' ')).map(str::to_owned);
        assert_eq!(
            again_of(words, "first:slow:1"),
            "highwater-airdrop verify --env TRELLO_TOKEN=... --env KEY=... --env URL={source} --event-context @FILE \
             --connection-data @FILE --connection-data @data.json --dir out --case first:slow:1 -- node run.js --env \
             A=1 {event}"
        );
    }

    #[test]
    fn words_are_quoted_as_a_shell_takes_them() {
        let words = ["node", "run it.js", "{event}", "don't", ""].map(str::to_owned);
        assert_eq!(quoted(&words), r"node 'run it.js' {event} 'don'\''t' ''");
    }
}
