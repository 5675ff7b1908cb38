//! A client of the source's API sends what the API expects, tells temporary failures from lasting ones, and shows its
//! token to nobody else: not to another host, and in no error.

use chrono::{DateTime, Utc};
use highwater::airdrop::{ErrorCode, QueryValue, SourceAnswer, SourceClient, SourceError};
use highwater::testing::SourceFault;
use serde_json::{Value, json};

use super::client::{Reply, Server, answer};

const SECRET: &str = "secret-that-nobody-may-see";

fn signed_in(server: &Server) -> SourceClient {
    let source = SourceClient::over_http(&format!("http://{}/", server.address)).unwrap();
    source.sign_in("/token", &json!({ "secret": SECRET }), "/data/token")
}

/// As some APIs answer: 201, something was created.
fn token(text: &str) -> Reply {
    answer(201, &json!({ "data": { "token": text } }))
}

fn redirect(to: String) -> Reply {
    Reply::Answer(302, vec![("Location", to)], Vec::new())
}

fn issues(source: &SourceClient) -> Result<Value, SourceError> {
    source.get_json("/issues", &[])
}

/// The text of a failure, which shows no secret.
fn failure(error: &SourceError) -> (Option<ErrorCode>, Option<u16>, String) {
    let SourceError::Failed { code, status, source } = error else { panic!("{error:?}") };
    let shown = format!("{error:?}");
    assert!(!shown.contains(SECRET) && !shown.contains("T-1"), "{shown}");
    (*code, *status, source.to_string())
}

#[test]
fn it_signs_in_first_and_once_more_after_a_401() {
    let server = Server::start();
    let source = signed_in(&server);
    for (path, reply) in [
        ("/token", token("T-1")),
        ("/issues", answer(401, &json!("expired"))),
        ("/token", token("T-2")),
        ("/issues", answer(200, &json!(["I1"]))),
        ("/issues", answer(200, &json!(["I2"]))),
    ] {
        server.fault(path, reply);
    }
    let odd = "a+b&c=d e/\u{e9}";
    assert_eq!(
        source.get_json::<Value>("/issues", &[("after", odd.into()), ("q", None::<&str>.into())]).unwrap(),
        json!(["I1"])
    );
    assert_eq!(issues(&source).unwrap(), json!(["I2"]));

    let requests = server.requests();
    let sent: Vec<_> =
        requests.iter().map(|request| (request.path.as_str(), request.header("Authorization"))).collect();
    let [first, second] = ["Bearer T-1", "Bearer T-2"].map(Some);
    assert_eq!(
        sent,
        [("/token", None), ("/issues", first), ("/token", None), ("/issues", second), ("/issues", second)]
    );
    requests[0].check("POST", "/token");
    assert_eq!(requests[0].json(), json!({ "secret": SECRET }));
    requests[1].check("GET", "/issues");
    assert_eq!(requests[1].query, [("after".to_owned(), odd.to_owned())]);
    assert_eq!(requests[4].query, []);
}

#[test]
fn a_second_401_and_a_sign_in_without_a_token_fail_and_show_nothing() {
    let server = Server::start();
    let source = signed_in(&server);
    for _ in 0..2 {
        server.fault("/token", token("T-1"));
        server.fault("/issues", answer(401, &json!("expired")));
    }
    let (code, status, _) = failure(&issues(&source).unwrap_err());
    assert_eq!((code, status), (Some(ErrorCode::ExternalSystemNoAccess), Some(401)));

    server.fault("/issues", answer(401, &json!("expired")));
    server.fault("/token", answer(200, &json!({ "token": "T-1" })));
    let (.., text) = failure(&issues(&source).unwrap_err());
    assert_eq!(text, "the answer of /token has no string at /data/token: expected the token");
    let shown = format!("{source:?}");
    assert!(!shown.contains(SECRET) && !shown.contains("T-1"), "{shown}");
}

#[test]
fn a_redirect_takes_the_token_to_no_other_host() {
    let (server, other) = (Server::start(), Server::start());
    let source = signed_in(&server);
    server.fault("/token", token("T-1"));
    // Within the API, and to a file store under another name.
    server.fault("/issues", redirect("/all-issues".to_owned()));
    server.fault("/all-issues", answer(200, &json!([])));
    server.fault("/issues", redirect(format!("http://localhost:{}/file", other.address.port())));
    other.fault("/file", answer(200, &json!(["there"])));
    assert_eq!(issues(&source).unwrap(), json!([]));
    assert_eq!(issues(&source).unwrap(), json!(["there"]));
    let requests = server.requests();
    assert_eq!(
        (requests[2].path.as_str(), requests[2].header("Authorization")),
        ("/all-issues", Some("Bearer T-1"))
    );
    assert_eq!(other.requests()[0].header("Authorization"), None);

    // A header of another name would go along, so nothing is followed.
    let source = SourceClient::over_http(&format!("http://{}", server.address)).unwrap();
    let source = source.token("T-1").token_header("X-Token", "").header("Accept", "application/json");
    server.fault("/issues", redirect(format!("http://localhost:{}/file", other.address.port())));
    assert_eq!(failure(&issues(&source).unwrap_err()).1, Some(302));
    let sent = &server.requests()[0];
    assert_eq!((sent.header("X-Token"), sent.header("Accept")), (Some("T-1"), Some("application/json")));
    assert!(other.requests().is_empty());
}

#[test]
fn what_may_be_over_in_a_moment_is_temporary_and_another_shape_is_not() {
    let server = Server::start();
    let source = SourceClient::over_http(&format!("http://{}", server.address)).unwrap();
    let page = b"<html>".to_vec();
    for reply in [
        Reply::HangUp,
        Reply::CutHeader,
        Reply::CutBody,
        answer(503, &json!(0)),
        Reply::Answer(200, vec![], page),
    ] {
        server.fault("/issues", reply.clone());
        let error = issues(&source).unwrap_err();
        assert!(matches!(error, SourceError::Temporary { .. }), "{reply:?}: {error:?}");
    }
    server.fault("/issues", Reply::Answer(429, vec![("Retry-After", "7".to_owned())], Vec::new()));
    let error = issues(&source).unwrap_err();
    assert!(matches!(error, SourceError::RateLimited { after } if after.as_secs() == 7), "{error:?}");

    server.fault("/issues", answer(200, &json!(["I1"])));
    let (.., text) = failure(&source.get_json::<u32>("/issues", &[]).unwrap_err());
    assert!(text.starts_with("the answer of /issues: invalid type"), "{text}");
    for base in ["", "tracker.example", "ftp://tracker.example", "http://tracker.example/?all=1"] {
        let error = SourceClient::over_http(base).unwrap_err().to_string();
        assert!(error.contains("https://tracker.example/api"), "{error}");
    }
}

#[test]
fn what_is_not_there_is_none_only_for_404_and_410() {
    let server = Server::start();
    let source = SourceClient::over_http(&format!("http://{}", server.address)).unwrap();
    let found = || source.get_json_if_found::<Value>("/issues/I1/comments", &[]);
    for status in [404, 410] {
        server.fault("/issues/I1/comments", answer(status, &json!("gone")));
        assert_eq!(found().unwrap(), None);
    }
    server.fault("/issues/I1/comments", answer(200, &json!(["C1"])));
    assert_eq!(found().unwrap(), Some(json!(["C1"])));
    for status in [400, 403, 405, 500, 503] {
        server.fault("/issues/I1/comments", answer(status, &json!("no")));
        assert!(found().is_err(), "{status}");
    }
}

#[test]
fn a_sign_in_that_is_not_there_is_an_error_not_an_empty_listing() {
    let server = Server::start();
    let source = signed_in(&server);
    let found = || source.get_json_if_found::<Value>("/issues/I1/comments", &[]);
    server.fault("/token", answer(404, &json!("gone")));
    assert!(found().is_err());
    // And when the token has expired amid the run.
    for (path, reply) in [
        ("/token", token("T-1")),
        ("/issues/I1/comments", answer(401, &json!("expired"))),
        ("/token", answer(410, &json!("gone"))),
    ] {
        server.fault(path, reply);
    }
    assert!(found().is_err());
}

#[test]
fn the_values_of_a_query_are_texts_numbers_and_times() {
    let query = |value: QueryValue| {
        let source =
            SourceClient::new(|request| Ok(SourceAnswer::new(200, json!(request.query).to_string())));
        source.get_json::<String>("/issues", &[("q", value)]).unwrap()
    };
    let at = DateTime::parse_from_rfc3339("2026-01-02T03:04:05.678+01:00").unwrap().to_utc();
    assert_eq!(query(at.into()), "q=2026-01-02T02%3A04%3A05Z");
    assert_eq!(query(Some(7_u32).into()), "q=7");
    assert_eq!(query((-7_i64).into()), "q=-7");
    assert_eq!(query(String::from("a b").into()), "q=a%20b");
    assert_eq!(query("".into()), "q=");
    assert_eq!(query(None::<DateTime<Utc>>.into()), "");
}

/// The faults of the explorer are answers like those of a server.
#[test]
fn a_simulated_fault_is_what_the_real_one_is() {
    let meet = |fault: SourceFault| issues(&SourceClient::new(move |_| fault.answer())).unwrap_err();
    assert!(matches!(meet(SourceFault::Failed), SourceError::Temporary { .. }));
    assert!(matches!(meet(SourceFault::Cut), SourceError::Temporary { .. }));
    let after = std::time::Duration::from_secs(5);
    let error = meet(SourceFault::TooMany { after });
    assert!(matches!(error, SourceError::RateLimited { after: wait } if wait == after), "{error:?}");
    let whole = SourceClient::new(|_| Ok(SourceAnswer::new(200, "[]")));
    assert_eq!(issues(&whole).unwrap(), json!([]));
}
