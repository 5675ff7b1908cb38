use std::io::Cursor;

use highwater::BoxError;
use highwater::airdrop::AccessToken;
use highwater::testing::{Explore, Life, Safeguard};
use serde_json::{Value, json};
use tracker::Tracker;
use tracker::api::Answer;

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
    let transport = Box::new(move |path: &str, token: Option<&str>| answer(&life, path, token));
    Tracker { transport, token: AccessToken::new() }
}

/// A tracker whose token changes after every three pages that were read.
fn answer(life: &Life, path: &str, token: Option<&str>) -> Result<Answer, BoxError> {
    let valid = format!("token {}", life.reads() / 3);
    let (status, retry_after, body) = match life.source(path, || content(path, &valid)) {
        Err(fault) => (fault.status().ok_or(fault)?, fault.retry_after(), Value::Null),
        Ok(_) if token.is_some_and(|token| token != valid) => (401, None, Value::Null),
        Ok(content) => (200, None, content),
    };
    Ok(Answer { status, retry_after, body: Box::new(Cursor::new(body.to_string())) })
}

/// Three issues, two on a page: one has a file and three comments, two on a page; one is deleted.
fn content(path: &str, token: &str) -> Value {
    let issue = |id: &str, files: Value| {
        let author = json!({ "id": "U1", "name": "Ada" });
        json!({ "id": id, "modified": "2024-05-01T12:00:00Z", "title": "a crash", "author": author, "files": files })
    };
    let comment =
        |id: &str| json!({ "id": id, "text": "as I said", "author": { "id": "U2", "name": "Alan" } });
    let (listing, after) = path.split_once("after=").unwrap_or((path, ""));
    match (listing.split_once('?').map_or(listing, |(listing, _)| listing), after) {
        ("/token", _) => json!({ "access_token": token }),
        ("/issues", "") => {
            let files = json!([{ "id": "F1", "name": "log.txt" }]);
            json!({ "issues": [issue("I1", files), issue("I2", json!([]))], "next": "2" })
        }
        ("/issues", _) => {
            let deleted = json!({ "id": "I3", "modified": "2024-05-02T12:00:00Z", "deleted": true });
            json!({ "issues": [deleted], "next": null })
        }
        ("/issues/I1/comments", "") => json!({ "comments": [comment("C1"), comment("C2")], "next": "2" }),
        ("/issues/I1/comments", _) => json!({ "comments": [comment("C3")], "next": null }),
        ("/issues/I2/comments", _) => json!({ "comments": [], "next": null }),
        _ => json!("the bytes of the file"),
    }
}
