//! `tracker EVENT URL [STORE]`: answers the event in a file. Without STORE, this worker's disk does not survive it.

use std::path::PathBuf;
use std::time::Duration;

use highwater::airdrop::{AccessToken, Client, Event, Serve};
use highwater::{BoxError, Store};
use serde_json::json;
use tracker::Tracker;
use tracker::api::Answer;
use ureq::http::Response;
use ureq::{Agent, Body};

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(event), Some(url)) = (arguments.next(), arguments.next()) else {
        return Err("expected: tracker EVENT URL [STORE]".into());
    };
    let event = Event::from_json(&std::fs::read_to_string(event)?)?;
    let secret = event.connection_key()?.ok_or("the event has no key to the tracker")?;
    let agent = agent();
    let transport = Box::new(move |path: &str, token: Option<&str>| {
        let url = format!("{url}{path}");
        let response = match token {
            Some(token) => agent.get(url).header("Authorization", format!("Bearer {token}")).call(),
            None => agent.post(url).send(json!({ "secret": secret.expose() }).to_string()),
        };
        Ok(answer(response?))
    });
    let tracker = Tracker { transport, token: AccessToken::new() };

    let disk = tempfile::tempdir()?;
    let (serve, path) = match arguments.next() {
        Some(store) => (Serve::new(), PathBuf::from(store)),
        None => (Serve::new().checkpoints(), disk.path().join("state.redb")),
    };
    let outcome = serve.serve(&Store::open(path)?, &Client::new(&event)?, &tracker, &event)?;
    eprintln!("answered with {}", outcome.event_type);
    Ok(())
}

/// A client whose every call has a time limit.
fn agent() -> Agent {
    let limit = Some(Duration::from_secs(30));
    let limits = Agent::config_builder().timeout_connect(limit).timeout_recv_response(limit);
    limits.timeout_per_read(limit).http_status_as_error(false).build().into()
}

fn answer(response: Response<Body>) -> Answer {
    let retry_after =
        response.headers().get("Retry-After").and_then(|text| text.to_str().ok()).map(str::to_owned);
    let (status, body) = (response.status().as_u16(), Box::new(response.into_body().into_reader()));
    Answer { status, retry_after, body }
}
