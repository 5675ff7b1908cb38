use highwater::BoxError;
use highwater::airdrop::{SourceAnswer, SourceClient, SourceRequest};
use highwater::testing::{Explore, Life, Safeguard};
use serde_json::{Value, json};
use tracker::Tracker;

#[test]
fn every_record_is_announced_once_wherever_it_dies() {
    let explore = Explore::new().states(300).expect_records("issues", 3).expect_records("comments", 3);
    let report = explore.expect_records("users", 2).expect_records("attachments", 1).run(tracker);
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
    Tracker::new(SourceClient::new(move |request| answer(&life, request)), "none")
}

/// A tracker whose token changes after every three pages that were read.
fn answer(life: &Life, request: &SourceRequest<'_>) -> Result<SourceAnswer, BoxError> {
    let valid = format!("token {}", life.reads() / 3);
    let what = format!("{}?{}", request.path, request.query);
    let mut names = request.query.split('&').map(|parameter| parameter.split('=').next().unwrap_or_default());
    if let Some(name) = names.find(|name| !["", "since", "after"].contains(name)) {
        return Err(format!("{} knows no parameter {name}", request.path).into());
    }
    match life.source(&what, || content(request, &valid)) {
        Err(fault) => fault.answer(),
        Ok(_) if request.token.is_some_and(|token| token != valid) => Ok(SourceAnswer::new(401, "")),
        Ok(_) if request.path == "/issues/I2/comments" => Ok(SourceAnswer::new(404, "")),
        Ok(content) => Ok(SourceAnswer::new(200, content.to_string())),
    }
}

/// Three issues, two on a page: one has a file and three comments, two on a page; one is deleted before its comments are
/// read, and one was deleted before.
fn content(request: &SourceRequest<'_>, token: &str) -> Value {
    let issue = |id: &str, files: Value| {
        let author = json!({ "id": "U1", "name": "Ada" });
        json!({ "id": id, "modified": "2024-05-01T12:00:00Z", "title": "a crash", "author": author, "files": files })
    };
    let comment =
        |id: &str| json!({ "id": id, "text": "as I said", "author": { "id": "U2", "name": "Alan" } });
    match (request.path, request.query) {
        ("/token", _) => json!({ "access_token": token }),
        ("/issues", query) if query.ends_with("after=2") => {
            let deleted = json!({ "id": "I3", "modified": "2024-05-02T12:00:00Z", "deleted": true });
            json!({ "issues": [deleted], "next": null })
        }
        ("/issues", _) => {
            let files = json!([{ "id": "F1", "name": "log.txt" }]);
            json!({ "issues": [issue("I1", files), issue("I2", json!([]))], "next": "2" })
        }
        ("/issues/I1/comments", "") => json!({ "comments": [comment("C1"), comment("C2")], "next": "2" }),
        ("/issues/I1/comments", "after=2") => json!({ "comments": [comment("C3")], "next": null }),
        _ => json!("the bytes of the file"),
    }
}
