use std::io::Cursor;
use std::sync::Mutex;
use std::time::Duration;

use highwater::BoxError;
use highwater::testing::{Explore, Life, Safeguard, SourceFault};
use serde_json::{Value, json};
use tracker::Tracker;
use tracker::api::{Answer, Request};

#[test]
fn every_record_is_announced_once_wherever_it_dies() {
    let report = Explore::new().states(300).run(tracker);
    assert!(report.failure.is_none(), "{report}");
    assert!(report.deaths > 0 && report.continuations > 0, "{report}");
}

#[test]
fn a_broken_rule_is_found() {
    let report = Explore::new().states(300).without_rule(Safeguard::CommitBeforeConfirm).run(tracker);
    assert!(report.failure.is_some(), "{report}");
}

fn tracker(life: &Life) -> Tracker {
    let life = life.clone();
    Tracker {
        transport: Box::new(move |request| answer(&life, request)),
        secret: "secret".to_owned(),
        token: Mutex::default(),
    }
}

/// A tracker whose tokens are good for three pages.
fn answer(life: &Life, request: Request<'_>) -> Result<Answer, BoxError> {
    let valid = format!("token {}", life.reads() / 3);
    let (path, token) = match request {
        Request::SignIn { .. } => ("/token", valid.as_str()),
        Request::Get { path, token } => (path, token),
    };
    let (status, retry_after, body) = match life.source(path, || content(path, &valid)) {
        Ok(_) if token != valid => (401, 0, "the token has expired".to_owned()),
        Ok(body) => (200, 0, body),
        Err(SourceFault::TooMany { after }) => (429, after.as_secs(), "later".to_owned()),
        Err(SourceFault::Cut) => (200, 0, "{\"issues\": [".to_owned()),
        Err(_) => (500, 0, "a fault".to_owned()),
    };
    let (retry_after, body) = (Duration::from_secs(retry_after), Box::new(Cursor::new(body)));
    Ok(Answer { status, retry_after, body })
}

/// Five issues, three on a page: one is deleted, one has a file, and each has up to three comments, two on a page.
fn content(path: &str, token: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let after = query.split_once("after=").map_or("", |(_, after)| after);
    let first: u32 = after.parse().unwrap_or(0);
    let listing = |name: &str, page: u32, all: u32, item: &dyn Fn(u32) -> Value| {
        let next = all.min(first + page);
        let items: Vec<Value> = (first..next).map(item).collect();
        json!({ name: items, "next": (next < all).then(|| next.to_string()) }).to_string()
    };
    match path.split('/').collect::<Vec<_>>()[1..] {
        ["token"] => json!({ "access_token": token }).to_string(),
        ["issues"] => listing("issues", 3, 5, &issue),
        ["issues", id, "comments"] => {
            let author = json!({ "id": "U1", "name": "Ada" });
            listing(
                "comments",
                2,
                u32::from(id.as_bytes()[1] - b'0') % 4,
                &|number| json!({ "id": format!("{id}-C{number}"), "text": "as I said", "author": author }),
            )
        }
        _ => format!("the bytes of {path}"),
    }
}

fn issue(number: u32) -> Value {
    let (id, modified) = (format!("I{number}"), "2024-05-01T12:00:00Z");
    if number == 4 {
        return json!({ "id": id, "modified": modified, "deleted": true });
    }
    let files = if number == 2 { vec![json!({ "id": "F2", "name": "log.txt" })] } else { vec![] };
    let author = json!({ "id": format!("U{}", number % 2), "name": "Ada" });
    json!({ "id": id, "modified": modified, "title": "a crash", "author": author, "files": files })
}
