//! Plays the tracker of docs/guide.md: issues, comments and files that are made from a seed, with faults if asked for.
//!
//! ```text
//! cargo run -p tracker --bin tracker-api -- --issues 500 --fault-every 20
//! ```

#![deny(clippy::print_stderr, clippy::print_stdout)]

#[path = "../../../common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use serde_json::{Value, json};

use crate::common::finish;
use crate::common::server::{self, Answer, Request};

/// Issues, and comments, of a page.
const ISSUES_OF_A_PAGE: u64 = 50;
const COMMENTS_OF_A_PAGE: u64 = 10;
const USERS: u64 = 12;
/// When issue 0 was changed, in seconds since 1970: 2024-05-01. Each later one was changed a minute after the one
/// before.
const FIRST_CHANGED: u64 = 1_714_521_600;

const AFTER_HELP: &str = "\
GET /issues?since=SECONDS&after=TOKEN  {\"issues\": [ISSUE, ...], \"next\": TOKEN or null}, the oldest change first
GET /issues/ID/comments?after=TOKEN    {\"comments\": [{\"id\", \"text\", \"author\": USER}, ...], \"next\": TOKEN or null}
GET /files/ID                          bytes
POST /token {\"secret\": SECRET}         {\"access_token\": TOKEN}, to be sent with each GET: Authorization: Bearer TOKEN

ISSUE is {\"id\", \"modified\", \"title\", \"author\": USER, \"files\": [{\"id\", \"name\"}, ...]}, or \
{\"id\", \"modified\", \"deleted\": true}. USER is {\"id\", \"name\"}. The same seed has the same issues, comments and files.

Faults, where asked for, are 429 with Retry-After, 500, a body that is cut, and 401.

An issue that is deleted after its page was read is still whole there, and its comments and files are answered 404. The \
same seed has the same ones (--gone-every).";

/// Serves the issues of a made-up tracker until killed; the first line on standard output is its address.
#[derive(Debug, Clone, Parser)]
#[command(after_help = AFTER_HELP, max_term_width = 120)]
struct Cli {
    /// The port, on 127.0.0.1 only; 0 is any that is free
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// What the issues are made from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Issues in the tracker
    #[arg(long, value_name = "N", default_value_t = 300)]
    issues: u64,
    /// What a client must know to get a token [default: any text]
    #[arg(long, value_name = "TEXT")]
    secret: Option<String>,
    /// Requests for which a token is valid [default: any number]
    #[arg(long, value_name = "N")]
    token_requests: Option<u64>,
    /// Answer about one of N requests with a fault [default: none]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    fault_every: Option<u64>,
    /// Delete about one of N issues after the page that names it, and before its comments are asked for [default: none]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    gone_every: Option<u64>,
}

/// What changes from one request to the next.
#[derive(Debug, Default)]
struct Asked {
    requests: u64,
    /// Tokens, and for how many requests each is good.
    tokens: HashMap<String, u64>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (port, asked) = (cli.port, Arc::new(Mutex::new(Asked::default())));
    finish(server::serve(port, move |request| answer(&cli, &asked, request)).map(|()| ExitCode::SUCCESS))
}

fn answer(cli: &Cli, asked: &Mutex<Asked>, request: &Request) -> Answer {
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.requests += 1;
    let number = asked.requests;
    if request.method == "POST" && request.path == "/token" {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let said = body["secret"].as_str();
        if said.is_none() || cli.secret.as_deref().is_some_and(|secret| said != Some(secret)) {
            return Answer::refusal("403 Forbidden", "the secret is wrong");
        }
        let token = format!("token-{number}");
        asked.tokens.insert(token.clone(), cli.token_requests.unwrap_or(u64::MAX));
        return Answer::json(&json!({ "access_token": token }));
    }
    let left = request.token.as_ref().and_then(|token| asked.tokens.get_mut(token)).filter(|left| **left > 0);
    let Some(left) = left else { return Answer::refusal("401 Unauthorized", "the token is not valid") };
    *left -= 1;
    let mut rng = fastrand::Rng::with_seed(cli.seed.wrapping_mul(0x1_0001).wrapping_add(number));
    let fault = cli.fault_every.filter(|&every| rng.u64(..every) == 0).map(|_| rng.u8(..4));
    if fault == Some(0) {
        *left = 0;
    }
    drop(asked);
    match fault {
        None => content(cli, request),
        Some(0) => Answer::refusal("401 Unauthorized", "the token was revoked"),
        Some(1) => Answer::refusal("429 Too Many Requests", "later").retry_after(1),
        Some(2) => Answer::refusal("500 Internal Server Error", "a fault"),
        Some(_) => content(cli, request).cut(),
    }
}

/// What is there at a path.
fn content(cli: &Cli, request: &Request) -> Answer {
    let nothing = || Answer::refusal("404 Not Found", "there is nothing here");
    let first = request.number("after").unwrap_or(0);
    let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    match parts[..] {
        ["issues"] => {
            let since = request.number("since").unwrap_or(0);
            let from = first.max(since.saturating_sub(FIRST_CHANGED).div_ceil(60));
            listing("issues", from, ISSUES_OF_A_PAGE, cli.issues, |number| Issue::of(cli, number).to_json())
        }
        ["issues", id, "comments"] => match Issue::named(cli, id) {
            Some(issue) if !issue.is_gone => {
                listing("comments", first, COMMENTS_OF_A_PAGE, issue.comments, |number| {
                    let author = user((issue.number + number) % USERS);
                    json!({ "id": format!("{id}-C{number}"), "text": format!("Comment {number}"), "author": author })
                })
            }
            _ => nothing(),
        },
        ["files", id] => match id.split_once("-F").and_then(|(issue, _)| Issue::named(cli, issue)) {
            Some(issue) if !issue.files_gone && !issue.is_gone => {
                Answer::bytes(format!("the bytes of {id}\n").repeat(1 + cli.seed as usize % 50).into_bytes())
            }
            _ => nothing(),
        },
        _ => nothing(),
    }
}

/// A page of a listing: its items from `first` on.
fn listing(name: &str, first: u64, page: u64, all: u64, item: impl Fn(u64) -> Value) -> Answer {
    let next = first.saturating_add(page).min(all);
    Answer::json(&json!({
        name: (first..next).map(item).collect::<Vec<_>>(),
        "next": (next < all).then(|| next.to_string()),
    }))
}

fn user(number: u64) -> Value {
    json!({ "id": format!("U{number}"), "name": format!("User {number}") })
}

/// An issue, made from the seed and its number.
struct Issue {
    number: u64,
    author: u64,
    comments: u64,
    files: u64,
    /// Its files are named, and are not there any more.
    files_gone: bool,
    is_deleted: bool,
    /// It is deleted after its page was read, which has it whole.
    is_gone: bool,
}

impl Issue {
    fn of(cli: &Cli, number: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(cli.seed.wrapping_mul(0x10_0001).wrapping_add(number));
        let comments = if rng.u8(..10) == 0 { rng.u64(10..35) } else { rng.u64(..4) };
        Self {
            number,
            author: rng.u64(..USERS),
            comments,
            files: if rng.u8(..8) == 0 { rng.u64(1..3) } else { 0 },
            files_gone: rng.u8(..8) == 0,
            is_deleted: rng.u8(..20) == 0,
            // The last choice: without it, all others are the same.
            is_gone: cli.gone_every.is_some_and(|every| rng.u64(..every) == 0),
        }
    }

    fn named(cli: &Cli, id: &str) -> Option<Self> {
        let number = id.strip_prefix('I')?.parse().ok().filter(|&number| number < cli.issues)?;
        Some(Self::of(cli, number)).filter(|issue| !issue.is_deleted)
    }

    fn to_json(&self) -> Value {
        let Self { number, author, .. } = *self;
        let id = format!("I{number}");
        let (days, minutes) = (1 + number / 1440, number % 1440);
        let modified = format!("2024-05-{days:02}T{:02}:{:02}:00Z", minutes / 60, minutes % 60);
        if self.is_deleted {
            return json!({ "id": id, "modified": modified, "deleted": true });
        }
        let file = |file| json!({ "id": format!("{id}-F{file}"), "name": format!("log-{file}.txt") });
        json!({
            "id": id, "modified": modified, "title": format!("Crash number {number}"), "author": user(author),
            "files": (0..self.files).map(file).collect::<Vec<_>>(),
        })
    }
}
