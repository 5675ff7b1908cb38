//! A platform over loopback HTTP that takes everything at once and keeps nothing, in a process of its own: so what it
//! costs is not counted as the extractor's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use highwater::airdrop::Event;
use serde_json::json;

/// The argument with which the program of a bench is this platform.
pub(crate) const ARGUMENT: &str = "platform";

/// The process, which ends when this is dropped.
pub(crate) struct Served {
    process: Child,
    address: String,
}

impl Served {
    /// Starts the program of this bench once more, as the platform.
    pub(crate) fn start() -> std::io::Result<Self> {
        let program = std::env::current_exe()?;
        let mut process = Command::new(program).arg(ARGUMENT).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        BufReader::new(process.stdout.as_mut().expect("a pipe")).read_line(&mut address)?;
        Ok(Self { process, address: address.trim().to_owned() })
    }

    /// The address, for [`event_at`].
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The first event of a phase, with all that a client needs to answer it.
pub(crate) fn event_at(address: &str, event_type: &str) -> highwater::Result<Event> {
    let event = json!({
        "context": { "secrets": { "service_account_token": "token" } },
        "execution_metadata": { "devrev_endpoint": format!("http://{address}") },
        "payload": {
            "event_type": event_type,
            "event_context": {
                "run_id": "run", "request_id": event_type, "sync_unit_id": "unit",
                "callback_url": format!("http://{address}/callback"),
            },
        },
    });
    Event::from_json(&event.to_string())
}

/// Is the platform: prints its address, and answers until the process is ended.
pub(crate) fn serve() -> std::io::Result<()> {
    static ARTIFACTS: AtomicU64 = AtomicU64::new(0);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    println!("{address}");
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            answer(&connection, || {
                let number = ARTIFACTS.fetch_add(1, Ordering::Relaxed);
                let upload_url = format!("http://{address}/upload");
                json!({ "artifact_id": format!("artifact-{number}"), "upload_url": upload_url, "form_data": {} })
                    .to_string()
            })
        });
    }
    Ok(())
}

/// Answers the requests of one connection. Only the first of an upload gets more than `{}`.
fn answer(connection: &TcpStream, prepared: impl Fn() -> String) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut requests = BufReader::with_capacity(256 * 1024, connection);
    loop {
        let (mut first, mut line, mut body_bytes) = (String::new(), String::new(), 0);
        if requests.read_line(&mut first)? == 0 {
            return Ok(());
        }
        // The headers, up to an empty line.
        while requests.read_line(&mut line)? > 2 {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                body_bytes = value.trim().parse().map_err(std::io::Error::other)?;
            }
            line.clear();
        }
        std::io::copy(&mut requests.by_ref().take(body_bytes), &mut std::io::sink())?;
        let body = if first.starts_with("GET ") { prepared() } else { "{}".to_owned() };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut out = connection;
        out.write_all((head + &body).as_bytes())?;
    }
}
