//! `tracker EVENT URL [STORE]`: answers the event in a file. Without STORE, this worker's disk does not survive it.

use std::path::PathBuf;

use highwater::airdrop::{Client, Event, Serve, SourceClient};
use highwater::{BoxError, Store};
use tracker::Tracker;

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(event), Some(url)) = (arguments.next(), arguments.next()) else {
        return Err("expected: tracker EVENT URL [STORE]".into());
    };
    let event = Event::from_json(&std::fs::read_to_string(event)?)?;
    let secret = event.connection_key()?.ok_or("the event has no key to the tracker")?;
    let tracker = Tracker::new(SourceClient::over_http(&url)?, secret.expose());

    let disk = tempfile::tempdir()?;
    let (serve, path) = match arguments.next() {
        Some(store) => (Serve::new(), PathBuf::from(store)),
        None => (Serve::new().checkpoints(), disk.path().join("state.redb")),
    };
    let outcome = serve.serve(&Store::open(path)?, &Client::new(&event)?, &tracker, &event)?;
    eprintln!("answered with {}", outcome.event_type);
    Ok(())
}
