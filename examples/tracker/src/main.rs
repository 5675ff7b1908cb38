//! `tracker EVENT URL [STORE]`: answers the event in a file. Without STORE, this worker's disk does not survive it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use highwater::airdrop::{Client, Event, Serve};
use highwater::{BoxError, Store};
use serde_json::json;
use tracker::Tracker;
use tracker::api::{Answer, Request};
use ureq::Agent;

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(event), Some(url)) = (arguments.next(), arguments.next()) else {
        return Err("expected: tracker EVENT URL [STORE]".into());
    };
    let event = Event::from_json(&std::fs::read_to_string(event)?)?;
    let secret = event.connection_key()?.ok_or("the event has no key to the tracker")?;
    let agent = agent();
    let tracker = Tracker {
        transport: Box::new(move |request| send(&agent, &url, request)),
        secret: secret.expose().to_owned(),
        token: Mutex::default(),
    };

    let disk = tempfile::tempdir()?;
    let (serve, path) = match arguments.next() {
        Some(store) => (Serve::new(), PathBuf::from(store)),
        None => (Serve::new().checkpoints(), disk.path().join("state.redb")),
    };
    let store = Store::open(path)?;
    let outcome = serve.serve(&store, &Client::new(&event)?, &tracker, &event)?;
    eprintln!("answered with {}", outcome.event_type);
    Ok(())
}

/// A client whose every call has a time limit.
fn agent() -> Agent {
    let limit = Some(Duration::from_secs(30));
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(limit)
        .timeout_recv_response(limit)
        .timeout_per_read(limit)
        .build()
        .into()
}

fn send(agent: &Agent, url: &str, request: Request<'_>) -> Result<Answer, BoxError> {
    let response = match request {
        Request::SignIn { secret } => {
            agent.post(format!("{url}/token")).send(json!({ "secret": secret }).to_string())?
        }
        Request::Get { path, token } => {
            let request = agent.get(format!("{url}{path}"));
            request.header("Authorization", format!("Bearer {token}")).call()?
        }
    };
    let seconds = response.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(Answer {
        status: response.status().as_u16(),
        retry_after: Duration::from_secs(seconds.unwrap_or(60)),
        body: Box::new(response.into_body().into_reader()),
    })
}
