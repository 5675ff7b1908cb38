//! An extractor of generated issues, as a worker that speaks HTTP to the addresses in its event.
//!
//! ```text
//! cargo run --release -p synthetic-extractor -- invoke --event event.json --store out --items 400000
//! ```
//!
//! With `--store` it keeps its state in `DIR/state.redb`. Without, it needs no disk: its state is a checkpoint kept
//! with the platform, and the next invocation may run on another machine. The program `highwater-airdrop` plays the
//! platform.

// These macros panic if the reader is gone: see `tell` and `print`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod attachment;
#[path = "../../common/mod.rs"]
mod common;
mod extractor;
mod issue;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use highwater::airdrop::{Client, Serve, StopToken};
use highwater::{Level, Store};
use tempfile::TempDir;

use crate::attachment::Files;
use crate::common::{Failure, finish, read_event, stop_when_told, tell, went_well};
use crate::extractor::Synthetic;
use crate::source::Tracker;

/// How long to wait for another process to release the store, if the budget is not shorter.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time after the budget in which an invocation delivers what it fetched.
const HAND_OVER: Duration = Duration::from_secs(2 * 60);

const AFTER_HELP: &str = "\
Exit codes: 0 the event is answered, be it with ERROR, now or earlier; 1 it is not, and may be given again; 2 wrong usage.
SIGTERM or Ctrl-C ends an invocation within 8 s: what was fetched is handed over. A second one ends it at once.

The records have the item type `issues`. Issue i is the same on every machine: 15 fields made of i, about 774 bytes of \
JSON; 400,000 of them are 309,596,078 bytes. They never change, so a sync after the first finds nothing new, unless \
the platform asks for everything.

The first issues have an attachment each, as many as --attachments says. Their bytes are fetched in the attachments \
phase from DEVREV_ENDPOINT/ext/attachment/N?bytes=B, where `highwater-airdrop` has a file for each N. What is gone \
(404, 410) or denied (401, 403) there is given up; 429 ends the invocation with DELAY; anything else is tried again.";

/// Extracts generated issues, in as many invocations as it takes, each issue exactly once.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo run --release -p synthetic-extractor --", after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Answer one event, as a worker does: the message goes to the event's callback URL
    Invoke(Invoke),
    /// Serve the issues as an external system, for `invoke --source`, until killed; the first line on standard output
    /// is its base URL
    Source {
        /// The port, on 127.0.0.1 only; 0 is any free one
        #[arg(long, value_name = "PORT", default_value_t = 0)]
        port: u16,
        /// Issues in the source
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        items: u32,
    },
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
struct Invoke {
    /// The file of the event, as JSON; `-` is standard input
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// The directory for the state; created if it does not exist. Without it, the state is kept with the platform
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Fetch the issues, and their files, from this address, as `synthetic-extractor source` serves them
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Issues in the source
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    items: u32,
    /// Issues per page: a page is fetched, and becomes durable, as a whole
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    page_size: u32,
    /// Records per artifact
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch_items: u32,
    /// How many issues have an attachment: the first N
    #[arg(long, value_name = "N", default_value_t = 0)]
    attachments: u32,
    /// Bytes of an attachment
    #[arg(long, value_name = "B", default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1..=2_147_483_648))]
    attachment_bytes: u64,
    /// Attachments that are streamed at once, 1 to 50
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=50))]
    streams: u16,
    /// How long an invocation fetches pages and begins attachments before the next one takes over, for example 500ms
    /// [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
    /// Extra time for each page, to imitate a slow source, for example 5ms [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    page_delay: Option<Duration>,
    /// How long to wait after a 429 without `Retry-After`
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    retry_after: Duration,
    /// How hard artifacts are compressed, 1 (fast) to 9 (small)
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    level: u8,
    /// Compress with libdeflate in place of zlib-rs: at level 1 into fewer bytes than level 2 of zlib-rs
    #[cfg(feature = "libdeflate")]
    #[arg(long)]
    libdeflate: bool,
}

impl Invoke {
    /// How events are answered.
    fn serve(&self, stop: StopToken) -> Serve {
        let mut serve = Serve::new().attachments_at_once(self.streams.into()).stop_token(stop);
        if let Some(budget) = self.budget {
            serve = serve.budget(budget).hard_limit(budget.saturating_add(HAND_OVER));
        }
        if self.store.is_none() {
            serve = serve.checkpoints();
        }
        serve
    }

    /// The source.
    fn extractor(&self) -> Synthetic {
        let page_delay = self.page_delay.unwrap_or_default();
        let files =
            Files::new(self.attachments, self.attachment_bytes, self.streams.into(), self.retry_after);
        let tracker = self.source.as_deref().map(|url| Tracker::new(url, self.retry_after));
        Synthetic { items: self.items, page_size: self.page_size, page_delay, tracker, files }
    }

    /// How batches are compressed.
    fn compression(&self) -> highwater::Result<Level> {
        #[cfg(feature = "libdeflate")]
        if self.libdeflate {
            return Level::libdeflate(self.level.into());
        }
        Level::new(self.level.into())
    }

    /// The store, and its folder if that is removed with the invocation.
    fn open_store(&self) -> Result<(Store, Option<TempDir>), Failure> {
        let patience = self.budget.map_or(PATIENCE, |budget| budget.min(PATIENCE));
        let options =
            Store::options().batch_items(self.batch_items).level(self.compression()?).wait(patience);
        let Some(dir) = &self.store else {
            let dir =
                tempfile::tempdir().map_err(|error| format!("cannot make a temporary folder: {error}"))?;
            return Ok((options.open(dir.path().join("state.redb"))?, Some(dir)));
        };
        std::fs::create_dir_all(dir)
            .map_err(|error| format!("cannot make the directory {} (--store): {error}", dir.display()))?;
        Ok((options.open(dir.join("state.redb"))?, None))
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Invoke(invoke) => answer(&invoke),
        Action::Source { port, items } => source::serve(port, items),
    };
    finish(done.map(|()| ExitCode::SUCCESS))
}

/// Answers the event, from the event and the state alone.
fn answer(invoke: &Invoke) -> Result<(), Failure> {
    let stop = stop_when_told()?;
    let event = read_event(&invoke.event)?;
    let client = Client::new(&event)?;
    // A temporary folder is removed after the store in it is closed.
    let (store, _folder) = invoke.open_store()?;
    let outcome = invoke.serve(stop).serve(&store, &client, &invoke.extractor(), &event)?;
    drop(store);
    if let Some(watermark) = outcome.ignored_watermark {
        tell(&format!("warning: the last sync was at {watermark}, by a clock that was wrong"));
    }
    if !went_well(&outcome)? {
        return Ok(());
    }
    let again = if outcome.replayed { ", said again" } else { "" };
    let counts = outcome.attachments;
    let attachments = match (counts.queued, counts.failed) {
        (0, _) => String::new(),
        (queued, 0) => format!(", {} of {queued} attachments", counts.settled),
        (queued, failed) => format!(", {} of {queued} attachments, {failed} given up", counts.settled),
    };
    tell(&format!(
        "answered with {}, {} artifacts{attachments}{again}",
        outcome.event_type, outcome.artifacts
    ));
    Ok(())
}
