//! An async extractor: it asks its source with reqwest, on tokio, for many pages at once.
//!
//! ```text
//! cargo run --release -p synthetic-extractor -- source --items 10000
//! cargo run --release -p async-extractor --features reqwest -- \
//!   invoke --event event.json --source http://127.0.0.1:PORT --store out
//! ```
//!
//! The source is that of the synthetic extractor: issues that are identified by their numbers. The program
//! `highwater-airdrop` plays the platform.

// These macros panic if the reader is gone: see `tell` and `print`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

#[path = "../../common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use highwater::airdrop::{
    AsyncAttachmentBody, AsyncExtractor, AttachmentError, Client, Context, ExternalSyncUnit, Listing, Serve,
    SourceError,
};
use highwater::record::{Attachment, Field, Metadata, RecordType};
use highwater::{Page, Record, Store};
use reqwest::Response;
use reqwest::header::RETRY_AFTER;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::{Failure, finish, read_event, stop_when_told, tell, went_well};

/// The issues are divided among this many streams, page by page, so that as many pages can be awaited at once.
const STREAMS: u32 = 8;

/// Extracts the issues of an HTTP source, each exactly once.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo run --release -p async-extractor --features reqwest --", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Answer one event, as a worker does: the message goes to the event's callback URL
    Invoke(Invoke),
}

#[derive(Debug, Args)]
struct Invoke {
    /// The file of the event, as JSON; `-` is standard input
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// The address of the issues, as `synthetic-extractor source` serves them
    #[arg(long, value_name = "URL")]
    source: String,
    /// The directory for the state; created if it does not exist
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Issues per page
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    page_size: u32,
    /// How many issues have an attachment: the first N
    #[arg(long, value_name = "N", default_value_t = 0)]
    attachments: u32,
}

/// The source.
struct Tracker {
    client: reqwest::Client,
    url: String,
    page_size: u32,
    attachments: u32,
}

/// A page of issues.
#[derive(Debug, Deserialize)]
struct Numbers {
    issues: Vec<u32>,
    /// `None`: this is the last page.
    next: Option<u32>,
}

impl Tracker {
    async fn get(&self, target: &str) -> Result<Response, SourceError> {
        let response = self.client.get(format!("{}{target}", self.url)).send().await;
        let response = response.map_err(SourceError::temporary)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Err(SourceError::from_status(target, status.as_u16(), after))
    }
}

impl AsyncExtractor for Tracker {
    /// The number of the page, counted over all streams.
    type Cursor = u32;

    async fn external_sync_units(&self, _: Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(vec![ExternalSyncUnit::new("tracker", "Tracker", "Issues over HTTP")])
    }

    async fn metadata(&self, _: Context) -> Result<Value, SourceError> {
        let issues = RecordType::new().field("title", Field::text());
        Ok(Metadata::new().record_type("issues", issues).into())
    }

    async fn streams(&self, _: Context) -> Result<Vec<String>, SourceError> {
        Ok((0..STREAMS).map(|no| format!("issues-{no}")).collect())
    }

    async fn page(
        &self,
        _: Context,
        listing: Listing,
        cursor: Option<u32>,
    ) -> Result<Page<u32>, SourceError> {
        let no = listing.stream().trim_start_matches("issues-");
        let at = cursor.map_or_else(|| no.parse(), Ok)?;
        let first = u64::from(at) * u64::from(self.page_size);
        let response = self.get(&format!("/issues?first={first}&count={}", self.page_size)).await?;
        let numbers: Numbers = response.json().await?;
        let mut page = match numbers.next {
            // The pages between belong to the other streams.
            Some(_) => Page::more(at + STREAMS),
            None => Page::last(),
        };
        for number in numbers.issues {
            let id = format!("ISSUE-{number}");
            page.push("issues", Record::new(id.clone(), &json!({ "title": format!("Issue {number}") }))?);
            if number < self.attachments {
                let url = format!("/files/{number}?bytes=4096");
                let file = Attachment::new(format!("FILE-{number}"), url, format!("{number}.bin"), id);
                page.push("attachments", file.to_record()?);
            }
        }
        Ok(page)
    }

    async fn open_attachment(
        &self,
        _: Context,
        attachment: Attachment,
    ) -> Result<AsyncAttachmentBody, AttachmentError> {
        let response = self.get(&attachment.url).await?;
        let length = response.content_length();
        let mut body = AsyncAttachmentBody::new(response.bytes_stream());
        body.length_bytes = length;
        Ok(body)
    }
}

fn main() -> ExitCode {
    let Action::Invoke(invoke) = Cli::parse().command;
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(answer(invoke)));
    finish(done.map(|()| ExitCode::SUCCESS))
}

/// Answers the event, from the event and the store alone.
async fn answer(invoke: Invoke) -> Result<(), Failure> {
    let stop = stop_when_told()?;
    let event = read_event(&invoke.event)?;
    let platform = Client::new(&event)?;
    let dir = &invoke.store;
    std::fs::create_dir_all(dir)
        .map_err(|error| format!("cannot make the directory {} (--store): {error}", dir.display()))?;
    let store = Store::options().wait(Duration::from_secs(5)).open(dir.join("state.redb"))?;
    // An invocation must not wait for ever for a source that accepts a connection and sends nothing.
    let client = reqwest::Client::builder().read_timeout(Duration::from_secs(30)).build()?;
    let url = invoke.source.trim_end_matches('/').to_owned();
    let (page_size, attachments) = (invoke.page_size, invoke.attachments);
    let tracker = Tracker { client, url, page_size, attachments };
    let serve = Serve::new().concurrency(STREAMS as usize).stop_token(stop);
    let outcome = serve.serve_async(&store, platform, &tracker, &event).await?;
    if went_well(&outcome)? {
        tell(&format!("answered with {}, {} artifacts", outcome.event_type, outcome.artifacts));
    }
    Ok(())
}
