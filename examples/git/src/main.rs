//! An extractor of a real system: the commits of any Git repository on disk, and their authors.
//!
//! ```text
//! cargo run --release -p git-extractor -- sync --repo . --out out
//! cargo run --release -p git-extractor -- invoke --repo . --out out --event event.json
//! ```
//!
//! `sync` plays the platform: it sends one event after another, and answers each as a worker would, until the sync is
//! over. `invoke` is one invocation of that worker: one event in, one message out. Both keep their state in
//! `DIR/state.redb`; the rest of `DIR` stands in for the platform, see [`highwater_airdrop::Local`].

// These macros panic if the reader is gone: see `tell` and `print`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

#[path = "../../common/mod.rs"]
mod common;
mod extractor;
mod repository;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use highwater::airdrop::{Event, Outcome, OutcomeKind, Platform, Serve, StopToken};
use highwater::{Store, SystemClock};
use highwater_airdrop::{Local, SyncReport, SyncSettings, SyncStep};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::common::{Failure, finish, print, read_event, stop_when_told, tell, went_well};
use crate::extractor::GitExtractor;
use crate::repository::Repository;

/// How long to wait for another process to release the store, if the budget is not shorter.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time after the budget in which an invocation delivers what it fetched.
const HAND_OVER: Duration = Duration::from_secs(2 * 60);

const AFTER_HELP: &str = "\
Exit codes: 0 done (invoke: the event is answered, be it with ERROR, now or earlier), 1 failed, 2 wrong usage.
SIGTERM or Ctrl-C ends an invocation within 8 s: what was fetched is handed over. A second one ends it at once.

Commits have the item type `commits`: id is the hash, created the author's date, modified the committer's; subject, \
body, author, committer, parents. Those people have the item type `users`, the e-mail being the id; each is announced \
once in a sync. The first sync extracts all that HEAD has in its history, a later one what came since.

Files of HEAD that match --attach are attachments of the commit that touched them last: id is the path.";

/// Extracts the commits of a Git repository, in as many invocations as it takes, each commit exactly once.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo run --release -p git-extractor --", after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a whole sync, or continue one that was killed; the next one is incremental
    Sync {
        #[command(flatten)]
        common: Common,
    },
    /// Answer one event, as a worker would: the message goes to DIR and to standard output
    Invoke {
        #[command(flatten)]
        common: Common,
        /// The file of the event, as JSON; `-` is standard input
        #[arg(long, value_name = "FILE")]
        event: PathBuf,
        /// Use the platform at the addresses in the event, as `highwater-airdrop` serves them, instead of DIR: for a
        /// build with `--features http`
        #[arg(long)]
        http: bool,
        /// Keep the state with the platform, in checkpoints: DIR may be another one, or empty, in each invocation
        #[arg(long, requires = "http")]
        checkpoints: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
struct Common {
    /// The repository: its directory or one in it; bare ones, worktrees and shallow clones work too
    #[arg(long, value_name = "PATH")]
    repo: PathBuf,
    /// The directory for the state of the extractor, and for what the platform receives; created if it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Commits per page: a page is fetched, and becomes durable, as a whole
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    page_size: u32,
    /// Records per artifact
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch_items: u32,
    /// How long an invocation fetches pages before the next one takes over, for example 500ms [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
    /// Files of HEAD that are attachments, as a Git glob from the top of the repository, for example 'docs/**/*.pdf';
    /// may be repeated [default: images]
    #[arg(long, value_name = "GLOB")]
    attach: Vec<String>,
    /// Extra time for each page and each attachment, to imitate a slow source, for example 5ms [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    page_delay: Option<Duration>,
}

impl Common {
    /// The attachments, as Git's pathspecs.
    fn pathspecs(&self) -> Vec<String> {
        if self.attach.is_empty() {
            let images = ["gif", "jpeg", "jpg", "png", "svg", "webp"];
            return images.map(|end| format!(":(top,glob,icase)**/*.{end}")).into();
        }
        self.attach.iter().map(|glob| format!(":(top,glob){glob}")).collect()
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Sync { common } => sync(&common),
        Action::Invoke { common, event, http, checkpoints } => invoke(&common, &event, http, checkpoints),
    };
    finish(done.map(|()| ExitCode::SUCCESS))
}

/// Answers an event as one invocation of a worker does: from the event and the store alone.
fn answer(
    common: &Common,
    repository: &Repository,
    airdrop: &dyn Platform,
    bar: &ProgressBar,
    event: &Event,
    checkpoints: bool,
    stop: &StopToken,
) -> Result<Outcome, Failure> {
    let patience = common.budget.map_or(PATIENCE, |budget| budget.min(PATIENCE));
    let store = Store::options()
        .batch_items(common.batch_items)
        .wait(patience)
        .open(common.out.join("state.redb"))?;
    let page_delay = common.page_delay.unwrap_or_default();
    let attach = common.pathspecs();
    let extractor = GitExtractor::new(repository, common.page_size, page_delay, &attach, bar);
    let mut serve = Serve::new().stop_token(stop.clone());
    if let Some(budget) = common.budget {
        serve = serve.budget(budget).hard_limit(budget.saturating_add(HAND_OVER));
    }
    if checkpoints {
        serve = serve.checkpoints();
    }
    let outcome = serve.serve(&store, airdrop, &extractor, event)?;
    if let Some(watermark) = outcome.ignored_watermark {
        let text = format!("warning: the last sync was at {watermark}, by a clock that was wrong");
        bar.suspend(|| tell(&text));
    }
    let failed = outcome.attachments.failed;
    if failed > 0 && outcome.kind == OutcomeKind::Done {
        let state = common.out.join("state.redb");
        let state = state.display();
        let text = format!("warning: attachments that failed: {failed}; highwater-dump {state} lists them");
        bar.suspend(|| tell(&text));
    }
    Ok(outcome)
}

fn invoke(common: &Common, event: &Path, http: bool, checkpoints: bool) -> Result<(), Failure> {
    let stop = stop_when_told()?;
    let event = read_event(event)?;
    let repository = Repository::open(&common.repo)?;
    let airdrop: Box<dyn Platform> =
        if http { over_http(&common.out, &event)? } else { Box::new(Local::open(&common.out)?) };
    let (airdrop, bar) = (airdrop.as_ref(), ProgressBar::hidden());
    let outcome = answer(common, &repository, airdrop, &bar, &event, checkpoints, &stop)?;
    went_well(&outcome)?;
    outcome.message.map_or(Ok(()), |message| print(&format!("{message}\n")))
}

/// The platform at the addresses in the event.
#[cfg(feature = "http")]
fn over_http(out: &Path, event: &Event) -> Result<Box<dyn Platform>, Failure> {
    std::fs::create_dir_all(out)
        .map_err(|error| format!("cannot make the directory {} (--out): {error}", out.display()))?;
    Ok(Box::new(highwater::airdrop::Client::new(event)?))
}

#[cfg(not(feature = "http"))]
fn over_http(_out: &Path, _event: &Event) -> Result<Box<dyn Platform>, Failure> {
    Err("--http: this program was built without HTTP; build it with `--features http`".into())
}

/// Records by item type, announced by the invocations of this process.
#[derive(Debug, Default)]
struct Spent {
    invocations: u64,
    time: Duration,
}

fn sync(common: &Common) -> Result<(), Failure> {
    let stop = stop_when_told()?;
    let repository = Repository::open(&common.repo)?;
    // Before anything is written: an empty repository leaves no trace.
    repository.head()?;
    let airdrop = Local::open(&common.out)?;
    let clock = SystemClock::new();
    let settings = SyncSettings::new(repository.id()).context("external_sync_unit_name", repository.name());
    let started = Instant::now();
    let bar = progress_bar()?;
    let (mut sent_at, mut invocations) = (None, 0_u64);
    let mut spent = BTreeMap::<String, Spent>::new();
    let report = airdrop.sync(
        &settings,
        &clock,
        |event| {
            if stop.is_stopped() {
                return Err(Failure::from("stopped; run the same command again to continue"));
            }
            let event = Event::from_json(event)?;
            answer(common, &repository, &airdrop, &bar, &event, false, &stop).map(|_| ())
        },
        |step| match step {
            SyncStep::Waiting(event) => bar.set_message(format!("waiting {:.0?}", event.wait)),
            SyncStep::Sending(event) => {
                invocations += 1;
                bar.set_message(format!("{}, invocation {invocations}", event.phase));
                sent_at = Some(Instant::now());
            }
            SyncStep::Answered { message, .. } => {
                // Without a start time: it was answered in an earlier life.
                let Some(took) = sent_at.take().map(|sent_at: Instant| sent_at.elapsed()) else { return };
                for item_type in announced(message) {
                    let spent = spent.entry(item_type.to_owned()).or_default();
                    spent.invocations += 1;
                    spent.time += took;
                }
            }
            _ => {}
        },
    );
    bar.finish_and_clear();
    print(&summary(common, &repository, &report?, &spent, started.elapsed())?)
}

/// A progress bar on standard error, if that is a terminal.
fn progress_bar() -> Result<ProgressBar, Failure> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = "{msg} {wide_bar} {human_pos} of {human_len} commits, {elapsed}";
    bar.set_style(ProgressStyle::with_template(style)?);
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}

/// The item types that a message announces, each once.
fn announced(message: &Value) -> Vec<&str> {
    let artifacts = message.pointer("/event_data/artifacts").and_then(Value::as_array);
    let mut item_types: Vec<_> = artifacts
        .into_iter()
        .flatten()
        .filter_map(|artifact| artifact.get("item_type").and_then(Value::as_str))
        .collect();
    item_types.sort_unstable();
    item_types.dedup();
    item_types
}

fn summary(
    common: &Common,
    repository: &Repository,
    report: &SyncReport,
    spent: &BTreeMap<String, Spent>,
    took: Duration,
) -> Result<String, Failure> {
    let mut text = String::new();
    let kind = if report.initial { "first" } else { "incremental" };
    writeln!(text, "{} is synced: {kind} sync, run {}\n", repository.id(), report.run)?;
    let mut row = |name: &str, cells: [String; 4]| {
        let [records, artifacts, invocations, time] = cells;
        writeln!(text, "{name:<26}{records:>12}{artifacts:>12}{invocations:>13}{time:>10}")
    };
    row("item type", ["records", "artifacts", "invocations", "time"].map(str::to_owned))?;
    let (mut records, mut artifacts) = (0, 0);
    for (item_type, totals) in &report.items {
        let (invocations, time) = spent.get(item_type).map_or_else(
            || ("earlier".to_owned(), String::new()),
            |spent| (HumanCount(spent.invocations).to_string(), seconds(spent.time)),
        );
        let counts = [totals.records, totals.artifacts].map(|count| HumanCount(count).to_string());
        let [of_records, of_artifacts] = counts;
        row(item_type, [of_records, of_artifacts, invocations, time])?;
        records += totals.records;
        artifacts += totals.artifacts;
    }
    let invocations: u64 = report.invocations.values().sum();
    let totals = [records, artifacts, invocations].map(|count| HumanCount(count).to_string());
    let [records, artifacts, invocations] = totals;
    row("in all", [records, artifacts, invocations, seconds(took)])?;
    text.push_str(
        "\nInvocations and time are those that announced records of the type; one can be of several types.\n",
    );
    if !report.items.contains_key("commits") {
        text.push_str("There is nothing new: HEAD is where the last sync ended.\n");
    }
    let out = common.out.display();
    writeln!(text, "State: {out}/state.redb. Messages: {out}/messages.jsonl. Artifacts: {out}/artifacts/")?;
    Ok(text)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
