//! The connector over HTTP with real processes: its worker is killed with SIGKILL at any moment, over and over, while
//! the tracker fails and its tokens expire; with a disk that survives the worker, and without one.
//!
//! The oracle asks a tracker with the same seed and no faults for its content, with its own client, and reads the
//! files of the platform.
#![cfg(unix)]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use highwater::SystemClock;
use highwater_airdrop::{Airdrop, AirdropOptions, SyncSettings};
use serde_json::{Value, json};
use support::{Received, check_confirmed};

const ISSUES: &str = "120";
/// How long workers are killed; after that the sync finishes.
const KILLS: Duration = Duration::from_secs(3);
/// Kills of a sync, at least.
const KILLS_MIN: u32 = 8;

/// A tracker, until it is dropped.
struct Api {
    child: Child,
    url: String,
}

impl Api {
    fn start(seed: u64, faults: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tracker-api"))
            .args(["--seed", &seed.to_string(), "--issues", ISSUES])
            .args(faults)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim().to_owned() }
    }

    /// What is there at a path, if anything is.
    fn get(&self, path: &str) -> Option<Vec<u8>> {
        let token = ureq::post(format!("{}/token", self.url)).send(r#"{"secret": "any"}"#).unwrap();
        let token: Value = serde_json::from_reader(token.into_body().into_reader()).unwrap();
        let token = format!("Bearer {}", token["access_token"].as_str().unwrap());
        let answer = ureq::get(format!("{}{path}", self.url)).header("Authorization", token).call();
        answer.ok().map(|answer| answer.into_body().read_to_vec().unwrap())
    }

    /// The comments of an issue; `None` if it was deleted after its page was read.
    fn comments(&self, issue: &str) -> Option<Vec<Value>> {
        let path = format!("/issues/{issue}/comments");
        self.get(&path).map(|_| self.list(&path, "comments"))
    }

    /// All of a listing.
    fn list(&self, path: &str, name: &str) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}?after={after}")).expect("the listing");
            let mut page: Value = serde_json::from_slice(&page).unwrap();
            all.append(page[name].as_array_mut().unwrap());
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => return all,
            }
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is to be announced: the data of each record, by item type and id; and the bytes of the files that can be had.
#[derive(Debug, Default, PartialEq)]
struct Content {
    records: BTreeMap<(String, String), Value>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Content {
    fn of(api: &Api) -> Self {
        let mut all = Self::default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut add = |item_type: &str, id: &Value, data: Value| {
            all.records.insert((item_type.to_owned(), text(id)), data);
        };
        for issue in api.list("/issues", "issues") {
            if issue["deleted"] == true {
                add("issues", &issue["id"], json!("deleted"));
                continue;
            }
            let author = &issue["author"];
            add("issues", &issue["id"], json!({ "title": issue["title"], "author": author["id"] }));
            add("users", &author["id"], json!({ "name": author["name"] }));
            for comment in api.comments(&text(&issue["id"])).unwrap_or_default() {
                let author = &comment["author"];
                let data = json!({ "text": comment["text"], "author": author["id"], "issue": issue["id"] });
                add("comments", &comment["id"], data);
                add("users", &author["id"], json!({ "name": author["name"] }));
            }
            for file in issue["files"].as_array().unwrap() {
                add("attachments", &file["id"], json!({ "name": file["name"], "parent": issue["id"] }));
                if let Some(bytes) = api.get(&format!("/files/{}", text(&file["id"]))) {
                    all.files.insert(text(&file["id"]), bytes);
                }
            }
        }
        all
    }

    /// What the platform was given; nothing may be there twice.
    fn announced(dir: &Path) -> Self {
        let (received, mut all) = (Received::read(dir, 0), Self::default());
        for artifact in &received.artifacts {
            for record in &artifact.records {
                let data = match artifact.item_type.as_str() {
                    "issues" if record["operation"] == "deleted" => json!("deleted"),
                    "issues" | "comments" | "users" => record["data"].clone(),
                    "attachments" => json!({ "name": record["file_name"], "parent": record["parent_id"] }),
                    "ssor_attachment" => {
                        let upload = dir.join("artifacts").join(record["id"]["devrev"].as_str().unwrap());
                        let id = record["id"]["external"].as_str().unwrap().to_owned();
                        let before = all.files.insert(id.clone(), fs::read(upload).unwrap());
                        assert!(before.is_none(), "file {id} came twice");
                        continue;
                    }
                    _ => continue,
                };
                let key = (artifact.item_type.clone(), record["id"].as_str().unwrap().to_owned());
                let before = all.records.insert(key.clone(), data);
                assert!(before.is_none(), "{key:?} came twice");
            }
        }
        all
    }
}

/// Runs syncs and kills their workers, until there were enough kills: a fast sync may end after a few.
fn kill(keeps_disk: bool) {
    let mut kills = 0;
    for _ in 0..10 {
        kills += sync(keeps_disk);
        if kills >= KILLS_MIN {
            return;
        }
    }
    panic!("{kills} kills prove little");
}

/// Says how many workers were killed.
fn sync(keeps_disk: bool) -> u32 {
    let seed = fastrand::u64(..1 << 32);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let gone = ["--gone-every", "10"];
    let api = Api::start(seed, &[&gone[..], &["--fault-every", "20", "--token-requests", "40"]].concat());
    let scratch = tempfile::tempdir().unwrap();
    let platform = scratch.path().join("platform");
    let mut options = AirdropOptions::default();
    options.port = Some(0);
    let airdrop = Airdrop::start(&platform, options).unwrap();
    let settings = SyncSettings::new("tracker").endpoint(airdrop.base()).error_retries(1_000);
    let (local, clock, began) = (airdrop.local(), SystemClock::new(), Instant::now());
    local.begin_sync(&settings, &clock).unwrap();
    let (mut kills, mut lives) = (0, 0);
    while let Some(event) = local.next_event(&settings, &clock).unwrap() {
        std::thread::sleep(event.wait);
        let file = scratch.path().join("event.json");
        fs::write(&file, event.json).unwrap();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_tracker"));
        worker.arg(&file).arg(&api.url).env("TMPDIR", scratch.path()).stderr(Stdio::null());
        if keeps_disk {
            worker.arg(scratch.path().join("state.redb"));
        }
        let mut worker = worker.spawn().unwrap();
        lives += 1;
        assert!(lives < 1_000, "it comes to no end");
        if began.elapsed() < KILLS || kills < KILLS_MIN {
            std::thread::sleep(Duration::from_millis(rng.u64(10..250)));
            let _ = worker.kill();
        }
        kills += u32::from(worker.wait().unwrap().code().is_none());
    }
    let expected = Content::of(&Api::start(seed, &gone));
    println!("disk={keeps_disk} kills={kills} lives={lives} records={}", expected.records.len());
    assert!(expected.records.len() > 200 && !expected.files.is_empty(), "{expected:?}");
    let announced = Content::announced(&platform);
    assert_eq!(announced.records, expected.records);
    assert_eq!(announced.files, expected.files);
    check_confirmed(&platform);
    kills
}

#[test]
fn killed_workers_whose_disk_survives_them_announce_everything_once() {
    kill(true);
}

#[test]
fn killed_workers_without_a_disk_announce_everything_once() {
    kill(false);
}

/// The check can fail.
#[test]
fn the_oracle_sees_a_record_that_is_missing() {
    let (api, other) = (Api::start(7, &[]), Api::start(8, &[]));
    let content = Content::of(&api);
    assert_eq!(content, Content::of(&api));
    assert_ne!(content, Content::of(&other));
    assert!(content.records.values().any(|data| *data == "deleted"));
}

/// Issues that are deleted between the page that names them and their comments: still whole on the page, and answered
/// 404 from then on. All else is as without them.
#[test]
fn an_issue_that_is_deleted_after_its_page_has_no_comments_and_no_files() {
    let (api, whole) = (Api::start(7, &["--gone-every", "4"]), Api::start(7, &[]));
    let (issues, named) = (api.list("/issues", "issues"), whole.list("/issues", "issues"));
    assert_eq!(issues, named);
    let (mut gone, mut files) = (0, 0);
    for issue in issues.iter().filter(|issue| issue["deleted"] != true) {
        let id = issue["id"].as_str().unwrap();
        let comments = whole.comments(id).expect("it is there");
        match api.comments(id) {
            Some(there) => assert_eq!(there, comments, "{id}"),
            None => {
                gone += 1;
                for file in issue["files"].as_array().unwrap() {
                    files += 1;
                    assert!(api.get(&format!("/files/{}", file["id"].as_str().unwrap())).is_none());
                }
            }
        }
    }
    assert!((10..60).contains(&gone) && files > 0, "{gone} issues and {files} files");
    // The same seed has the same ones, and what is to be announced is without their comments.
    let (content, all) = (Content::of(&api), Content::of(&whole));
    assert_eq!(content, Content::of(&Api::start(7, &["--gone-every", "4"])));
    let of =
        |content: &Content, of: &str| content.records.keys().filter(|(item_type, _)| item_type == of).count();
    assert_eq!(of(&content, "issues"), of(&all, "issues"));
    assert!(of(&content, "comments") < of(&all, "comments") && content.files.len() < all.files.len());
}
