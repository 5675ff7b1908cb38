//! The local Airdrop as a separate program, and an oracle of what it received: it reads the files of its directory,
//! and computes every record that should be announced itself.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

const WORDS: &str = "login page button crash export invoice customer search filter latency timeout retry webhook token \
    session upload mobile android browser dashboard chart report table column index cache queue worker memory thread \
    database migration schema rollback deploy cluster network proxy header cookie form field label modal tooltip \
    layout theme font image video email digest comment mention thread sprint backlog epic milestone release hotfix \
    patch audit billing";

/// The lines that the issues of the synthetic source are to become.
pub(crate) struct Issues(Vec<&'static str>);

impl Issues {
    pub(crate) fn new() -> Self {
        Self(WORDS.split_ascii_whitespace().collect())
    }

    /// Issue `i` as a line, without the newline.
    pub(crate) fn line(&self, i: u64) -> String {
        let low = |number: u64| number & 0xffff_ffff;
        let word = |number: u64| self.0[usize::try_from(number % 64).unwrap()];
        let mut h = low((i ^ 0x9e37_79b9) * 0x85eb_ca6b);
        h ^= h >> 13;
        h = low(h * 0xc2b2_ae35);
        h ^= h >> 16;
        let words = |mut seed: u64, count: u64| {
            let mut text = String::new();
            for _ in 0..count {
                seed = low(seed * 1_664_525 + 1_013_904_223);
                text.push_str(word(seed >> 16));
                text.push(' ');
            }
            text.truncate(text.len() - 1);
            text
        };
        let created = 1_577_836_800_000 + i * 1000;
        let updated = date(created + h % 8_640_000);
        let status =
            ["open", "triage", "in_progress", "blocked", "in_review", "closed"][(h >> 4) as usize % 6];
        let closed = if status == "closed" { format!("\"{updated}\"") } else { "null".to_owned() };
        let parent =
            if i > 0 && h.is_multiple_of(16) { format!("\"issue-{}\"", h % i) } else { "null".to_owned() };
        let mut line = String::with_capacity(1000);
        write!(
            line,
            "{{\"id\":\"issue-{i}\",\"created_date\":\"{}\",\"modified_date\":\"{updated}\",\"data\":{{\
             \"actual_close_date\":{closed},\"creator\":\"user-{}\",\"headline\":\"{}\",\"owner\":\"user-{}\",\
             \"priority\":\"P-{}\",\"target_close_date\":\"{}\",\"status\":\"{status}\",\"body\":\"{}\",\
             \"labels\":[\"{}\",\"{}\"],\"estimate\":{},\"project\":\"project-{}\",\"comments_count\":{},\
             \"is_blocked\":{},\"parent\":{parent},\
             \"item_url_field\":\"https://tracker.example.com/browse/ISSUE-{i}\"}}}}",
            date(created),
            (h >> 3) % 500,
            words(h, 5 + h % 4),
            (h >> 7) % 500,
            h % 4,
            date(created + 86_400_000 * (1 + (h >> 5) % 90)),
            words(h ^ 0x5bd1_e995, 24 + h % 25),
            word(h),
            word(h >> 8),
            (h >> 11) % 21,
            (h >> 13) % 40,
            (h >> 17) % 30,
            (h >> 19).is_multiple_of(8),
        )
        .unwrap();
        line
    }
}

/// Milliseconds since 1970 as a date, by counting the days of months.
fn date(ms: u64) -> String {
    let (mut days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (h, m, s) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    format!("{year}-{:02}-{:02}T{h:02}:{m:02}:{s:02}.{:03}Z", month + 1, days + 1, rest % 1000)
}

/// The content of file `n` of the external system, as the help text of the example describes it; the example's code
/// is not used.
pub(crate) fn file(n: u64, bytes: u64) -> Vec<u8> {
    (0..bytes)
        .map(|i| {
            let word = (n + 1) * 2_654_435_761 + i / 4 * 2_246_822_519;
            u8::try_from(((word >> 24) + i % 4) & 0xff).unwrap()
        })
        .collect()
}

/// The attachments that were to be announced.
#[derive(Debug, Default, Clone)]
pub(crate) struct Files {
    /// The first issues, which have one each.
    pub(crate) count: u64,
    /// Bytes of each.
    pub(crate) bytes: u64,
    /// Those that cannot be had.
    pub(crate) gone: BTreeSet<u64>,
}

impl Files {
    /// The line that says where attachment `n` is to be had.
    fn metadata(&self, n: u64, base: &str, author: &str) -> String {
        let url = format!("{base}/ext/attachment/{n}?bytes={}", self.bytes);
        format!(
            "{{\"id\":\"attachment-{n}\",\"url\":\"{url}\",\"file_name\":\"issue-{n}.bin\",\
             \"parent_id\":\"issue-{n}\",\"author_id\":{author}}}"
        )
    }

    /// The line that says that artifact `id` is attachment `n`.
    fn uploaded(n: u64, id: &str, author: &str) -> String {
        format!(
            "{{\"id\":{{\"devrev\":\"{id}\",\"external\":\"attachment-{n}\"}},\
             \"parent_id\":{{\"external\":\"issue-{n}\"}},\"actor_id\":{{\"external\":{author}}}}}"
        )
    }
}

/// What is wrong with what the platform was given, of one run in which all of `items` issues, and the attachments of
/// the first of them, were to be announced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Issues, attachments, and lines that say where an attachment is to be had: those that are in no announced
    /// artifact.
    pub(crate) lost: u64,
    /// Those that are in more than one.
    pub(crate) repeated: u64,
    /// Lines that are none of these, or not as they were to be; attachments with other bytes.
    pub(crate) wrong: u64,
    /// Artifacts that are named twice, or of which only one is true: confirmed, announced. An attachment is named by
    /// its line.
    pub(crate) artifacts: u64,
    /// Events that more than one message answers.
    pub(crate) events: u64,
    /// Artifacts that were uploaded and that no message names, but for attachments.
    pub(crate) unnamed_uploads: u64,
    /// Attachments that were uploaded, and that no line names.
    pub(crate) unnamed_files: u64,
    /// Issues that were announced.
    pub(crate) announced: u64,
    /// Attachments that were announced.
    pub(crate) files: u64,
}

/// How often each of some numbered things was seen.
struct Seen(Vec<u8>);

impl Seen {
    fn new(count: u64) -> Self {
        Self(vec![0; usize::try_from(count).unwrap()])
    }

    /// Sees one, if it is among them.
    fn see(&mut self, number: u64) -> bool {
        let count = usize::try_from(number).ok().and_then(|number| self.0.get_mut(number));
        count.map(|count| *count = count.saturating_add(1)).is_some()
    }

    fn settle(&self, verdict: &mut Verdict, but: &BTreeSet<u64>) {
        for (number, count) in (0..).zip(&self.0) {
            verdict.lost += u64::from(*count == 0 && !but.contains(&number));
            verdict.wrong += u64::from(*count > 0 && but.contains(&number));
            verdict.repeated += u64::from(*count > 1);
        }
    }
}

/// The number in a line, between a text and the next quotation mark.
fn number_after(line: &str, text: &str) -> Option<u64> {
    line.split_once(text)?.1.split('"').next()?.parse().ok()
}

/// The lines of an artifact.
fn each_line(path: &Path, mut look: impl FnMut(&str)) {
    let file = fs::File::open(path).unwrap();
    let mut lines = BufReader::with_capacity(64 * 1024, flate2::read::GzDecoder::new(file));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).unwrap() > 0 {
        let text = line.strip_suffix(b"\n").expect("the last line ends, too");
        look(std::str::from_utf8(text).unwrap());
        line.clear();
    }
}

impl Verdict {
    /// Exactly once, and right.
    pub(crate) fn is_clean(&self) -> bool {
        let Self { lost, repeated, wrong, artifacts, events, .. } = self;
        [lost, repeated, wrong, artifacts, events].into_iter().all(|count| *count == 0)
    }

    /// Reads the directory, where there were to be no attachments.
    pub(crate) fn read(dir: &Path, run: &str, items: u64) -> Self {
        Self::read_with(dir, run, items, &Files::default())
    }

    /// Reads the directory: all messages of it, and the lines of those of the run.
    pub(crate) fn read_with(dir: &Path, run: &str, items: u64, files: &Files) -> Self {
        let mut verdict = Self::default();
        let issues = Issues::new();
        let author = |n: u64| {
            let issue: Value = serde_json::from_str(&issues.line(n)).unwrap();
            issue["data"]["creator"].to_string()
        };
        let path = |id: &str| dir.join("artifacts").join(id);
        let (mut seen, mut told, mut had) =
            (Seen::new(items), Seen::new(files.count), Seen::new(files.count));
        let (mut named, mut units, mut events) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let messages = BufReader::new(fs::File::open(dir.join("messages.jsonl")).unwrap());
        for message in messages.lines() {
            let message: Value = serde_json::from_str(&message.unwrap()).unwrap();
            let context = &message["event_context"];
            verdict.events += u64::from(!events.insert(context["request_id"].to_string()));
            let base = context["callback_url"].as_str().and_then(|url| url.split_once("/internal/"));
            for artifact in message["event_data"]["artifacts"].as_array().into_iter().flatten() {
                let id = artifact["id"].as_str().unwrap();
                let item_type = artifact["item_type"].as_str().unwrap();
                let known = if item_type == "external_sync_units" { &mut units } else { &mut named };
                verdict.artifacts += u64::from(!known.insert(id.to_owned()));
                if context["run_id"] != run {
                    continue;
                }
                let mut found = 0_u64;
                match item_type {
                    "issues" => each_line(&path(id), |line| {
                        found += 1;
                        let number = number_after(line, "{\"id\":\"issue-").filter(|number| *number < items);
                        let right = number.filter(|number| issues.line(*number) == line);
                        verdict.wrong += u64::from(!right.is_some_and(|number| seen.see(number)));
                        verdict.announced += 1;
                    }),
                    "attachments" => each_line(&path(id), |line| {
                        found += 1;
                        let number = number_after(line, "{\"id\":\"attachment-");
                        let base = base.unwrap().0;
                        let right =
                            number.filter(|number| files.metadata(*number, base, &author(*number)) == line);
                        verdict.wrong += u64::from(!right.is_some_and(|number| told.see(number)));
                    }),
                    "ssor_attachment" => each_line(&path(id), |line| {
                        found += 1;
                        let number = number_after(line, "\"external\":\"attachment-");
                        let upload =
                            line.strip_prefix("{\"id\":{\"devrev\":\"").unwrap().split('"').next().unwrap();
                        let right = number.filter(|number| {
                            Files::uploaded(*number, upload, &author(*number)) == line
                                && fs::read(path(upload))
                                    .is_ok_and(|bytes| bytes == file(*number, files.bytes))
                        });
                        verdict.wrong += u64::from(!right.is_some_and(|number| had.see(number)));
                        verdict.artifacts += u64::from(!named.insert(upload.to_owned()));
                        verdict.files += 1;
                    }),
                    _ => continue,
                }
                verdict.wrong += u64::from(artifact["item_count"] != found);
            }
        }
        seen.settle(&mut verdict, &BTreeSet::new());
        told.settle(&mut verdict, &BTreeSet::new());
        had.settle(&mut verdict, &files.gone);
        let confirmed = fs::read_to_string(dir.join("confirmed.txt")).unwrap();
        let confirmed: BTreeSet<String> = confirmed.lines().map(str::to_owned).collect();
        verdict.artifacts += confirmed.symmetric_difference(&named).count() as u64;
        let contents: BTreeSet<Vec<u8>> = (0..files.count).map(|n| file(n, files.bytes)).collect();
        for entry in fs::read_dir(dir.join("artifacts")).unwrap().map(Result::unwrap) {
            let id = entry.file_name().into_string().unwrap();
            if named.contains(&id) || units.contains(&id) {
                continue;
            }
            let is_file = files.count > 0 && contents.contains(&fs::read(entry.path()).unwrap());
            *if is_file { &mut verdict.unnamed_files } else { &mut verdict.unnamed_uploads } += 1;
        }
        verdict
    }
}

/// The calls that a served directory noted: of each its name, the hash of its body, and the status, if it was answered.
pub(crate) fn calls(dir: &Path) -> Vec<(String, String, Option<u64>)> {
    let text = fs::read_to_string(dir.join("calls.jsonl")).unwrap_or_default();
    let text_of = |value: &Value| value.as_str().unwrap().to_owned();
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (text_of(&line["call"]), text_of(&line["hash"]), line["status"].as_u64())
        })
        .collect()
}

/// `airdrop serve`, until it is dropped.
pub(crate) struct Served {
    child: Child,
    /// What its addresses begin with.
    pub(crate) base: String,
}

impl Served {
    pub(crate) fn start(program: &Path, dir: &Path, faults: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(["serve", "--strict", "--dir"]).arg(dir);
        for fault in faults {
            command.args(["--fault", fault]);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut base = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut base).unwrap();
        let base = base.trim_end().to_owned();
        assert!(base.starts_with("http://127.0.0.1:"), "{base:?}");
        Self { child, base }
    }

    /// Sends bytes as they are, and what is answered before the server closes the connection: the status, and all.
    pub(crate) fn raw(&self, bytes: &[u8], half_close: bool) -> (u16, String) {
        let mut connection = TcpStream::connect(self.base.strip_prefix("http://").unwrap()).unwrap();
        connection.set_nodelay(true).unwrap();
        // A refusal may come, and the connection be closed, before all is sent.
        let _ = connection.write_all(bytes);
        if half_close {
            let _ = connection.shutdown(std::net::Shutdown::Write);
        }
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no answer: {answer:?}")), answer)
    }

    /// A request without a body, outside of the protocol.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Value {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let (status, answer) = self.raw(request.as_bytes(), false);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// How often each fault came true.
    pub(crate) fn came_true(&self) -> BTreeMap<String, u64> {
        came_true(&self.ask("GET", "/faults")["faults"])
    }
}

/// How often each fault of a report came true.
pub(crate) fn came_true(faults: &Value) -> BTreeMap<String, u64> {
    let faults = faults.as_array().unwrap().iter();
    faults
        .map(|fault| (fault["fault"].as_str().unwrap().to_owned(), fault["came_true"].as_u64().unwrap()))
        .collect()
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
