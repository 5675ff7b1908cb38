//! The git example, end to end, as a user runs it: every commit in the history of HEAD is in exactly one announced
//! artifact, over however many invocations, and wherever they were killed.
//!
//! The expectation comes from the plan by which the test builds the repository, and from Git itself. The test reads
//! what was delivered from the files with its own reader.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "../../../tests/support/mod.rs"]
mod support;

use chrono::DateTime;
use highwater::inspect::Snapshot;
use highwater::{Store, SystemClock};
use highwater_airdrop::{Local, SyncSettings};
use serde_json::{Value, json};
use support::{Planned, Received, Source, Who, check_confirmed, git, list, run, said};
use tempfile::TempDir;

/// The calls to the platform that the library makes at once.
const LANES: usize = 4;
/// An invocation's budget ends with its first page, which takes as long: so each invocation has one page.
const ONE_PAGE: [&str; 4] = ["--budget", "10ms", "--page-delay", "10ms"];

/// A directory of the test's, and the program.
struct Fixture {
    dir: TempDir,
    program: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), program: env!("CARGO_BIN_EXE_git-extractor").into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A clone that has only the last commits of a source.
    fn shallow_clone(&self, source: &Source, depth: u32) -> PathBuf {
        let clone = self.path("clone");
        let (depth, url) = (format!("--depth={depth}"), format!("file://{}", source.path.display()));
        git(&source.path, &["clone", "--quiet", &depth, &url, clone.to_str().unwrap()]);
        clone
    }

    fn sync(&self, repo: &Path, out: &Path, options: &[&str]) -> Output {
        let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"sync", &"--repo", &repo, &"--out", &out];
        args.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
        run(&self.program, &args, &[], b"")
    }

    fn synced(&self, repo: &Path, out: &Path, options: &[&str]) -> Output {
        let output = self.sync(repo, out, options);
        assert!(output.status.success(), "{}", said(&output));
        output
    }

    fn invoke(&self, repo: &Path, out: &Path, event: &str, options: &[&str]) -> Output {
        let mut args: Vec<&dyn AsRef<OsStr>> =
            vec![&"invoke", &"--repo", &repo, &"--out", &out, &"--event", &"-"];
        args.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
        run(&self.program, &args, &[], event.as_bytes())
    }

    /// Starts an invocation that can be killed.
    fn start(&self, command: &str, repo: &Path, out: &Path, options: &[&str]) -> Child {
        Command::new(&self.program)
            .args([command, "--repo"])
            .arg(repo)
            .arg("--out")
            .arg(out)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }
}

fn who(name: &str, email: &str, at: &str) -> Who {
    Who { name: name.into(), email: email.into(), at: at.to_owned() }
}

fn plain(parents: &[usize], at: u64) -> Planned {
    let ada = who("Ada", "ada@example.com", &format!("{at} +0000"));
    Planned {
        parents: parents.to_vec(),
        author: ada.clone(),
        committer: ada,
        message: format!("commit at {at}\n").into_bytes(),
        encoding: None,
    }
}

/// Commits one after the other.
fn line(count: u64) -> Vec<Planned> {
    let parents = std::iter::once(vec![]).chain((0..).map(|at| vec![at]));
    (0..count).zip(parents).map(|(at, parents)| plain(&parents, at)).collect()
}

/// A message, and what subject and body are to come of it.
struct Message {
    bytes: Vec<u8>,
    encoding: Option<&'static str>,
    subject: Option<String>,
    body: Option<String>,
}

fn messages() -> Vec<Message> {
    let text = |bytes: &[u8], subject: &str, body: &str| Message {
        bytes: bytes.to_vec(),
        encoding: None,
        subject: (!subject.is_empty()).then(|| subject.to_owned()),
        body: (!body.is_empty()).then(|| body.to_owned()),
    };
    let mut all = vec![
        text(b"plain\n", "plain", ""),
        text(b"with a body\n\nline 1\nline 2\n", "with a body", "line 1\nline 2\n"),
        text(b"a subject\non two lines\n\nbody\n", "a subject on two lines", "body\n"),
        text(
            b"\"quotes\" and \\ and 'more'\n\n{\"json\": \"inside\"}\n",
            "\"quotes\" and \\ and 'more'",
            "{\"json\": \"inside\"}\n",
        ),
        text(
            "\u{1F600} \u{65E5}\u{672C} \u{2028} x\n\n\u{1F468}\u{200D}\u{1F469}\n".as_bytes(),
            "\u{1F600} \u{65E5}\u{672C} \u{2028} x",
            "\u{1F468}\u{200D}\u{1F469}\n",
        ),
        text(b"control \x01\x1b[31m\x7f\n\n\x02\x03\n", "control \u{1}\u{1b}[31m\u{7f}", "\u{2}\u{3}\n"),
        text(b"%x00 \\0 %H\n\n\\u0000 %x00%x00\n", "%x00 \\0 %H", "\\u0000 %x00%x00\n"),
        text(
            b"commit 0123456789012345678901234567890123456789\nAuthor: x\n",
            "commit 0123456789012345678901234567890123456789 Author: x",
            "",
        ),
        text(b"", "", ""),
        text(b"\n\n\n", "", ""),
        text(b"no newline at its end", "no newline at its end", ""),
        text(b"windows\r\n\r\nbody\r\n", "windows", "body\r\n"),
        text(b"bad \xff\xfe bytes\n\n\xc3\n", "bad \u{fffd}\u{fffd} bytes", "\u{fffd}\n"),
        // Git itself takes a NUL for the end.
        text(b"before\0after\n\nbody\n", "before", ""),
    ];
    let mut latin = text(b"\xe9t\xe9\n\nd'\xe9t\xe9\n", "\u{e9}t\u{e9}", "d'\u{e9}t\u{e9}\n");
    latin.encoding = Some("ISO-8859-1");
    all.push(latin);
    all
}

/// A signature, and what user and moment are to come of it.
struct Odd {
    who: Who,
    id: Option<&'static str>,
    name: Option<&'static str>,
    email: Option<&'static str>,
    at: &'static str,
}

/// Signatures that are hard to read; the last is for a commit that declares its encoding.
fn signatures() -> Vec<Odd> {
    let odd = |who: Who, id, name, email, at| Odd { who, id, name, email, at };
    // Times whose offset and year do not matter here.
    let (noon, at_noon) = ("1700000000 +0000", "2023-11-14T22:13:20Z");
    let ada = Some("ada@example.com");
    // E-mails are compared as they are.
    let other_ada = Some("Ada@Example.com");
    let nameless = Some("nameless@example.com");
    let (jose, jose_mail) = ("Jos\u{e9} \"J\" O'N \u{1F600}", "jos\u{e9}@example.com");
    let far = Some("far@example.com");
    let bytes =
        |name: &[u8], email: &[u8]| Who { name: name.into(), email: email.into(), at: noon.to_owned() };
    let bad = Some("bad\u{fffd}@example.com");
    let joerg = Some("joerg@example.com");
    vec![
        odd(
            who("Ada", "ada@example.com", "1700000000 +0100"),
            ada,
            Some("Ada"),
            ada,
            "2023-11-14T23:13:20+01:00",
        ),
        odd(
            who("Ada", "Ada@Example.com", "0 +0000"),
            other_ada,
            Some("Ada"),
            other_ada,
            "1970-01-01T00:00:00Z",
        ),
        odd(
            who("", "nameless@example.com", "1 -0330"),
            nameless,
            None,
            nameless,
            "1969-12-31T20:30:01-03:30",
        ),
        odd(
            who("No Mail", "", "2147483648 +1400"),
            Some("<No Mail>"),
            Some("No Mail"),
            None,
            "2038-01-19T17:14:08+14:00",
        ),
        odd(who("", "", noon), None, None, None, at_noon),
        odd(who("Too Long", &"x".repeat(600), noon), Some("<Too Long>"), Some("Too Long"), None, at_noon),
        odd(
            who(jose, jose_mail, "99999999999 +0000"),
            Some(jose_mail),
            Some(jose),
            Some(jose_mail),
            "5138-11-16T09:46:39Z",
        ),
        // Years that RFC 3339 has no form for, and an offset that no clock shows.
        odd(
            who("Far", "far@example.com", "253402300800 +0000"),
            far,
            Some("Far"),
            far,
            "9999-12-31T23:59:59Z",
        ),
        odd(
            who("Far", "far@example.com", "9999999999999 -0800"),
            far,
            Some("Far"),
            far,
            "9999-12-31T15:59:59-08:00",
        ),
        odd(who("Far", "far@example.com", "1700000000 +9999"), far, Some("Far"), far, at_noon),
        odd(bytes(b"bad \xff", b"bad\xff@example.com"), bad, Some("bad \u{fffd}"), bad, at_noon),
        odd(bytes(b"J\xf6rg", b"joerg@example.com"), joerg, Some("J\u{f6}rg"), joerg, at_noon),
    ]
}

/// Commits with merges, many authors, odd messages and signatures, and dates that lie.
fn plan(count: usize, seed: u64) -> Vec<Planned> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let (messages, signatures) = (messages(), signatures());
    let mut planned = Vec::new();
    for at in 0..count {
        let mut parents = Vec::new();
        if at > 0 && at % 997 != 0 {
            parents.push(if chance.u8(..) < 230 { at - 1 } else { chance.usize(..at) });
        }
        for _ in 0..chance.usize(..40).saturating_sub(36) {
            let merged = chance.usize(..at.max(1));
            if at > 0 && !parents.contains(&merged) {
                parents.push(merged);
            }
        }
        let message = &messages[at % messages.len()];
        let mut signature = |may_be_odd: bool| {
            if may_be_odd && chance.u8(..) < 100 {
                return signatures[chance.usize(..signatures.len() - 1)].who.clone();
            }
            let dev = chance.u32(..40);
            let at = if chance.bool() { 1_600_000_000 + at as u64 * 60 } else { chance.u64(..4_000_000_000) };
            who(&format!("Dev {dev}"), &format!("dev{dev}@example.com"), &format!("{at} +0200"))
        };
        let (author, committer) = match message.encoding {
            Some(_) => (signatures[signatures.len() - 1].who.clone(), signature(false)),
            None => (signature(true), signature(true)),
        };
        planned.push(Planned {
            parents,
            author,
            committer,
            message: message.bytes.clone(),
            encoding: message.encoding,
        });
    }
    // All that merging left aside is merged in the end, some at a time, so that HEAD has everything in its history.
    loop {
        let followed: BTreeSet<usize> = planned.iter().flat_map(|commit| commit.parents.clone()).collect();
        let tips: Vec<usize> = (0..planned.len()).filter(|at| !followed.contains(at)).take(10).collect();
        if tips.len() < 2 {
            return planned;
        }
        planned.push(plain(&tips, 1_700_000_000));
    }
}

/// The same on top of a history of so many commits.
fn planned_on(known: usize, mut planned: Vec<Planned>) -> Vec<Planned> {
    for commit in &mut planned {
        commit.parents.iter_mut().for_each(|parent| *parent += known);
        if commit.parents.is_empty() {
            commit.parents.extend(known.checked_sub(1));
        }
    }
    planned
}

/// The expected user of a signature: id, name, e-mail, time.
fn expected_user(who: &Who) -> (Option<String>, Option<String>, Option<String>, String) {
    for odd in signatures() {
        if odd.who == *who {
            let [id, name, email] = [odd.id, odd.name, odd.email].map(|text| text.map(str::to_owned));
            return (id, name, email, odd.at.to_owned());
        }
    }
    let [name, email] = [&who.name, &who.email].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    let (seconds, offset) = who.at.split_once(' ').unwrap();
    let at = DateTime::parse_from_str(&format!("{seconds} {offset}"), "%s %z").unwrap();
    (Some(email.clone()), Some(name), Some(email), at.to_rfc3339())
}

fn same_moment(found: &Value, expected: &str) -> bool {
    // Both the moment and the offset.
    let read = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().to_rfc3339();
    found.as_str().is_some_and(|found| read(found) == read(expected))
}

/// Checks that the records are these commits, each once and whole, and their users, each once.
fn check_records(received: &Received, source: &Source, expected: &BTreeSet<usize>) {
    let at: HashMap<&str, usize> = source.hashes.iter().map(String::as_str).zip(0..).collect();
    let mut hashes: Vec<_> = expected.iter().map(|&at| source.hashes[at].clone()).collect();
    hashes.sort();
    let found = received.ids("commits");
    let not_in = |ids: &[String], others: &[String]| -> Vec<String> {
        ids.iter().filter(|id| !others.contains(id)).take(5).cloned().collect()
    };
    assert!(
        found == hashes,
        "{} commits instead of {}; not there: {:?}, not wanted: {:?}, twice: {:?}",
        found.len(),
        hashes.len(),
        not_in(&hashes, &found),
        not_in(&found, &hashes),
        found.windows(2).find(|pair| pair[0] == pair[1])
    );

    let odd: HashMap<Vec<u8>, (Value, Value)> = messages()
        .into_iter()
        .map(|message| (message.bytes, (json!(message.subject), json!(message.body))))
        .collect();
    let mut users = BTreeMap::new();
    for record in received.records("commits") {
        let planned = &source.planned[at[record["id"].as_str().unwrap()]];
        let parents: Vec<_> = planned.parents.iter().map(|&parent| &source.hashes[parent]).collect();
        let (author, name, email, created) = expected_user(&planned.author);
        if let Some(id) = &author {
            users.entry(id.clone()).or_insert((name, email));
        }
        let (committer, name, email, modified) = expected_user(&planned.committer);
        if let Some(id) = &committer {
            users.entry(id.clone()).or_insert((name, email));
        }
        let (subject, body) = odd.get(&planned.message).cloned().unwrap_or_else(|| {
            let text = String::from_utf8(planned.message.clone()).unwrap();
            (json!(text.trim_end()), Value::Null)
        });
        let data = json!({
            "subject": subject, "body": body, "author": author, "committer": committer, "parents": parents,
        });
        assert_eq!(record["data"], data, "{record}");
        assert!(same_moment(&record["created_date"], &created), "{record}, created {created}");
        assert!(same_moment(&record["modified_date"], &modified), "{record}, modified {modified}");
    }
    assert_eq!(received.ids("users"), users.keys().cloned().collect::<Vec<_>>(), "each of their users once");
    for record in received.records("users") {
        let (name, email) = &users[record["id"].as_str().unwrap()];
        assert_eq!(record["data"], json!({ "name": name, "email": email }), "the name that was seen first");
    }
}

/// Checks that the metadata document declares what the records hold, in the words of the platform.
fn check_metadata(received: &Received) {
    let documents: Vec<_> = received.records("external_domain_metadata").collect();
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0]["schema_version"], "v0.2.0");
    let types = documents[0]["record_types"].as_object().unwrap();
    assert_eq!(types.keys().collect::<Vec<_>>(), ["commits", "users"]);
    for (name, record_type) in types {
        let fields = record_type["fields"].as_object().unwrap();
        for (key, field) in fields {
            match field["type"].as_str() {
                Some("text") => {}
                Some("reference") => {
                    for target in field["reference"]["refers_to"].as_object().unwrap().keys() {
                        assert!(types.contains_key(target.strip_prefix("#record:").unwrap()), "{name}.{key}");
                    }
                }
                other => panic!("{name}.{key} has the type {other:?}"),
            }
            for record in received.records(name) {
                assert_eq!(field.get("collection").is_some(), record["data"][key].is_array(), "{record}");
            }
        }
        for record in received.records(name) {
            assert!(
                record["data"].as_object().unwrap().keys().all(|key| fields.contains_key(key)),
                "{record}"
            );
        }
    }
}

#[test]
fn every_commit_is_announced_once_by_dozens_of_invocations_and_later_syncs_announce_what_is_new() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    source.commit(plan(3_000, 1));
    let tip = source.hashes.len() - 1;
    let everything = source.history(tip);
    assert_eq!(everything.len(), tip + 1);

    // The first sync: everything in the history of HEAD, according to Git and to the plan.
    let output = fixture.synced(
        &source.path,
        &out,
        &[&ONE_PAGE[..], &["--page-size", "100", "--batch-items", "200"]].concat(),
    );
    let first = Received::read(&out, 0);
    let mut listed: Vec<_> = git(&source.path, &["rev-list", "HEAD"]).lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(first.ids("commits"), listed);
    check_records(&first, &source, &everything);
    check_metadata(&first);
    // Its policy is to refuse, and there was nothing to refuse; each text with a control character is warned of.
    let commits = first.records("commits");
    let texts = commits.flat_map(|record| record["data"].as_object().unwrap().values());
    let is_warned_of = |text: &str| text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    let warned_of = texts.filter(|value| value.as_str().is_some_and(is_warned_of)).count() as u64;
    assert!(warned_of > 0);
    let mut found = (0, 0);
    for report in Snapshot::open(out.join("state.redb")).unwrap().units(5) {
        for run in report.unwrap().ledger {
            found = (found.0 + run.findings.errors, found.1 + run.findings.warnings);
        }
    }
    assert_eq!(found, (0, warned_of));
    assert_eq!(check_confirmed(&out), 0, "nothing is uploaded in vain");
    let types = first.event_types();
    let pages = source.hashes.len().div_ceil(100);
    assert_eq!(types.iter().filter(|name| **name == "EXTRACTION_DATA_PROGRESS").count(), pages - 1);
    assert_eq!(types[..2], ["EXTRACTION_EXTERNAL_SYNC_UNITS_DONE", "EXTRACTION_METADATA_DONE"]);
    assert_eq!(types[types.len() - 2..], ["EXTRACTION_DATA_DONE", "EXTRACTION_ATTACHMENTS_DONE"]);
    let progress: Vec<_> =
        first.messages.iter().filter_map(|message| message["event_data"]["progress"].as_u64()).collect();
    assert!(progress.is_sorted() && progress[0] < 10 && progress[pages - 2] > 90, "{progress:?}");
    let units: Vec<_> = first.records("external_sync_units").collect();
    assert_eq!(units.len(), 1);
    let path = source.path.canonicalize().unwrap();
    assert_eq!(units[0]["id"], path.to_str().unwrap());
    assert_eq!(units[0]["name"], "source");
    assert_eq!(units[0]["item_count"], source.hashes.len());
    let summary = String::from_utf8(output.stdout).unwrap();
    let row = summary.lines().find(|line| line.starts_with("commits")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[1].replace(',', ""), source.hashes.len().to_string(), "{summary}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));

    // Three new commits, older than all the rest by their dates: those, and their users.
    let mut seen = first.messages.len();
    let mut new = vec![plain(&[tip], 5), plain(&[tip + 1], 4), plain(&[tip + 2], 3)];
    new[1].author = who("Grace", "grace@example.com", "6 +0000");
    source.commit(new);
    let issue = ["--budget", "300ms", "--page-delay", "2ms", "--page-size", "50", "--batch-items", "200"];
    fixture.synced(&source.path, &out, &issue);
    let second = Received::read(&out, seen);
    check_records(&second, &source, &BTreeSet::from([tip + 1, tip + 2, tip + 3]));
    assert_eq!(second.ids("users"), ["ada@example.com", "grace@example.com"]);
    assert_eq!(second.ids("external_sync_units").len(), 0);
    seen += second.messages.len();

    // Nothing new: nothing.
    let output = fixture.synced(&source.path, &out, &issue);
    let third = Received::read(&out, seen);
    check_records(&third, &source, &BTreeSet::new());
    assert_eq!(third.artifacts.len(), 1, "the metadata document");
    assert!(String::from_utf8_lossy(&output.stdout).contains("nothing new"), "{}", said(&output));
    seen += third.messages.len();

    // HEAD moves back and to another branch: everything in its history is extracted again.
    source.commit(vec![plain(&[1_990], 1_700_000_000)]);
    let output = fixture.synced(&source.path, &out, &issue);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("history was rewritten"), "{}", said(&output));
    let fourth = Received::read(&out, seen);
    let rewritten = source.history(source.hashes.len() - 1);
    assert!(rewritten.len() > 100 && rewritten.len() < tip);
    check_records(&fourth, &source, &rewritten);
    seen += fourth.messages.len();

    // The old history is gone for good: all the same.
    source.commit(vec![plain(&[2_980], 1_700_000_000)]);
    git(&source.path, &["reflog", "expire", "--expire=now", "--all"]);
    git(&source.path, &["gc", "--quiet", "--prune=now"]);
    let output = fixture.synced(&source.path, &out, &issue);
    assert!(String::from_utf8_lossy(&output.stderr).contains("history was rewritten"), "{}", said(&output));
    check_records(&Received::read(&out, seen), &source, &source.history(source.hashes.len() - 1));
    assert_eq!(check_confirmed(&out), 0);
}

/// Every event is sent until it is answered, and most invocations are killed. A sync that is over before enough were
/// killed is followed by another, of more commits.
#[test]
fn killed_invocations_announce_every_commit_once() {
    const KILLS: usize = 45;
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    let event_file = fixture.path("event.json");
    let options = ["--budget", "60ms", "--page-delay", "4ms", "--page-size", "15", "--batch-items", "40"];
    let started = [&["--event", event_file.to_str().unwrap()], &options[..]].concat();
    let airdrop = Local::open(&out).unwrap();
    let clock = SystemClock::new();
    let settings = SyncSettings::new("acme/source");
    let mut chance = fastrand::Rng::with_seed(3);
    let until = Instant::now() + Duration::from_secs(25);
    let (mut syncs, mut kills, mut resent, mut seen, mut last) = (0, 0, 0, 0, String::new());
    let (mut last_killed, mut last_first) = (false, 0);
    while kills < KILLS && Instant::now() < until {
        syncs += 1;
        let known = source.hashes.len();
        source.commit(planned_on(known, plan(300, syncs)));
        let may_be_anew = last_killed;
        airdrop.begin_sync(&settings, &clock).unwrap();
        while let Some(event) = airdrop.next_event(&settings, &clock).unwrap() {
            resent += usize::from(event.request_id == last);
            last.clone_from(&event.request_id);
            fs::write(&event_file, &event.json).unwrap();
            let mut child = fixture.start("invoke", &source.path, &out, &started);
            // Most of a life is the start; so that some come further than that, the wait is sometimes long.
            let wait = chance.u64(1..=80) * chance.u64(1..=4);
            let ends = Instant::now() + Duration::from_millis(wait);
            let killing = kills < KILLS && Instant::now() < until;
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if killing && Instant::now() >= ends {
                    child.kill().unwrap();
                    break child.wait().unwrap();
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            // It may have ended just before it was killed.
            let killed = status.code().is_none();
            assert!(killed || status.success(), "{event:?}: {status}");
            kills += usize::from(killed);
            last_killed = killed;
        }
        let received = Received::read(&out, seen);
        seen += received.messages.len();
        // If it was killed before it knew that the last message of the previous sync was accepted, it extracts that
        // sync again, from where that one began.
        let anew = may_be_anew && received.records("commits").count() > source.hashes.len() - known;
        let first = if anew { last_first } else { known };
        last_first = first;
        check_records(&received, &source, &(first..source.hashes.len()).collect());
    }
    let in_vain = check_confirmed(&out);
    println!("{syncs} syncs, {kills} kills, {resent} events sent again, {in_vain} uploads in vain");
    assert!(kills >= 20, "only {kills} invocations were killed in time");
    assert!(resent >= 10, "only {resent} events had to be sent again");
    assert!(in_vain <= LANES * kills, "{in_vain} uploads in vain by {kills} kills");
}

#[test]
fn a_killed_sync_is_gone_on_with() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    source.commit(plan(600, 4));
    let options = [&ONE_PAGE[..], &["--page-size", "40", "--batch-items", "50"]].concat();
    for messages in [4, 9] {
        let mut child = fixture.start("sync", &source.path, &out, &options);
        loop {
            let text = fs::read_to_string(out.join("messages.jsonl")).unwrap_or_default();
            if text.lines().count() >= messages {
                break;
            }
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
    }
    fixture.synced(&source.path, &out, &options);
    let received = Received::read(&out, 0);
    check_records(&received, &source, &source.history(source.hashes.len() - 1));
    let runs: BTreeSet<_> =
        received.messages.iter().map(|message| message["event_context"]["run_id"].to_string()).collect();
    assert_eq!(runs.len(), 1);
    assert!(check_confirmed(&out) <= 2 * LANES);
}

/// A repository in whose working tree files are written and committed.
struct Files {
    path: PathBuf,
}

impl Files {
    fn new(path: PathBuf) -> Self {
        let Source { path, .. } = Source::new(path);
        Self { path }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn commit(&self, author: &str, message: &str) {
        git(&self.path, &["add", "--all"]);
        let email = format!("user.email={author}@example.com");
        let name = format!("user.name={author}");
        git(&self.path, &["-c", &email, "-c", &name, "commit", "--quiet", "--message", message]);
    }

    /// The bytes of a file of HEAD, by Git's own account.
    fn at_head(&self, name: &str) -> Vec<u8> {
        let blob = format!("HEAD:{name}");
        let output = Command::new("git").arg("-C").arg(&self.path).args(["cat-file", "blob", &blob]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", said(&output));
        output.stdout
    }

    /// The expected attachments of these files, computed with Git: id, the commit that touched it last, its author.
    fn expected(&self, names: &[&str]) -> BTreeMap<String, (String, String, Vec<u8>)> {
        let of = |name: &&str| {
            let last =
                |format: &str| git(&self.path, &["log", "-1", &format!("--format={format}"), "--", name]);
            ((*name).to_owned(), (last("%H"), last("%ae"), self.at_head(name)))
        };
        names.iter().map(of).collect()
    }
}

/// The attachments that the messages after the first `skip` announce, each of which is there once.
fn attachments(out: &Path, skip: usize) -> BTreeMap<String, (String, String, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let received = Received::read(out, skip);
    for line in received.records("ssor_attachment") {
        let text = |field: &str| line[field]["external"].as_str().unwrap().to_owned();
        let artifact = line["id"]["devrev"].as_str().unwrap();
        let bytes = fs::read(out.join("artifacts").join(artifact)).unwrap();
        let before = found.insert(text("id"), (text("parent_id"), text("actor_id"), bytes));
        assert!(before.is_none(), "announced twice: {line}");
    }
    found
}

fn noise(chance: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| chance.u8(..)).take(bytes).collect()
}

#[test]
fn files_are_attachments_of_the_commit_that_touched_them_last_and_are_fetched_once() {
    let fixture = Fixture::new();
    let files = Files::new(fixture.path("source"));
    let out = fixture.path("out");
    let mut chance = fastrand::Rng::with_seed(5);
    let names = ["a.png", "docs/b c.JPG", "docs/deep/\u{e9}.gif", "d.webp"];
    for (at, name) in names.iter().enumerate() {
        files.write(name, &noise(&mut chance, 1 + at * 90_000));
    }
    files.write("docs/text.txt", b"no image");
    files.write("empty.png", b"");
    files.commit("ada", "one");
    files.write("docs/b c.JPG", &noise(&mut chance, 300));
    files.commit("grace", "two");
    files.write("docs/text.txt", b"no image still");
    files.commit("ada", "three");
    // A merge: what it brings was touched by the commits that it brings.
    git(&files.path, &["checkout", "--quiet", "-b", "side", "HEAD~1"]);
    files.write("d.webp", &noise(&mut chance, 5_000));
    files.commit("linus", "on the side");
    git(&files.path, &["checkout", "--quiet", "main"]);
    git(
        &files.path,
        &["-c", "user.email=m@example.com", "-c", "user.name=m", "merge", "--quiet", "--no-ff", "side"],
    );

    let small = ["--page-size", "2", "--batch-items", "2"];
    let output = fixture.synced(&files.path, &out, &small);
    let expected = files.expected(&names);
    assert_eq!(expected["docs/b c.JPG"].1, "grace@example.com");
    assert_eq!(expected["d.webp"].1, "linus@example.com");
    assert!(attachments(&out, 0) == expected, "{:?}", attachments(&out, 0).keys());
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(warned.contains("attachments that failed: 1"), "{}", said(&output));
    assert_eq!(check_confirmed(&out), 0);

    // If nothing is new, no attachment comes again. After a commit, only the files that it touched.
    let mut seen = Received::read(&out, 0).messages.len();
    fixture.synced(&files.path, &out, &small);
    assert!(attachments(&out, seen).is_empty());
    seen = Received::read(&out, 0).messages.len();
    files.write("a.png", &noise(&mut chance, 400_000));
    files.write("new.svg", b"<svg/>");
    files.commit("grace", "four");
    fixture.synced(&files.path, &out, &small);
    assert!(attachments(&out, seen) == files.expected(&["a.png", "new.svg"]));
    assert_eq!(check_confirmed(&out), 0);

    // Other files, by the user's own word; from within a folder, too.
    let other = fixture.path("other");
    let globs = ["--attach", "docs/*.txt", "--attach", "**/*.gif"];
    fixture.synced(&files.path.join("docs"), &other, &globs);
    assert!(attachments(&other, 0) == files.expected(&["docs/text.txt", "docs/deep/\u{e9}.gif"]));
}

#[test]
fn killed_while_attachments_are_streamed_each_is_announced_once() {
    const KILLS: usize = 12;
    let fixture = Fixture::new();
    let files = Files::new(fixture.path("source"));
    let out = fixture.path("out");
    let mut chance = fastrand::Rng::with_seed(9);
    let names: Vec<_> = (0..150).map(|number| format!("images/{number}.png")).collect();
    for name in &names {
        let bytes = chance.usize(1..20_000);
        files.write(name, &noise(&mut chance, bytes));
    }
    files.commit("ada", "images");
    let slow = ["--page-delay", "80ms", "--batch-items", "20"];
    let is_streaming = || {
        let text = fs::read_to_string(out.join("messages.jsonl")).unwrap_or_default();
        text.contains("\"EXTRACTION_DATA_DONE\"") && !text.contains("\"EXTRACTION_ATTACHMENTS_DONE\"")
    };
    let (mut kills, mut killed_streaming) = (0, 0);
    while kills < KILLS {
        let mut child = fixture.start("sync", &files.path, &out, &slow);
        let mut wait = Duration::from_millis(chance.u64(30..400));
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            // Before the attachments it is left alone.
            if is_streaming() {
                match wait.checked_sub(Duration::from_millis(2)) {
                    Some(left) => wait = left,
                    None => child.kill().unwrap(),
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if status.success() {
            break;
        }
        assert!(status.code().is_none(), "{status}");
        kills += 1;
        killed_streaming += usize::from(is_streaming());
    }
    if is_streaming() {
        fixture.synced(&files.path, &out, &["--batch-items", "20"]);
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let expected = files.expected(&names);
    assert!(attachments(&out, 0) == expected, "{} of {}", attachments(&out, 0).len(), expected.len());
    let in_vain = check_confirmed(&out);
    println!("{kills} kills, {killed_streaming} of them amid streams, {in_vain} uploads in vain");
    assert!(killed_streaming >= 2, "only {killed_streaming} of {kills} kills came amid the streams");
    let streams = 10;
    assert!(in_vain <= (streams + LANES) * kills, "{in_vain} uploads in vain by {kills} kills");
}

/// `git rev-list NEW ^OLD` is not to be trusted here: once everything that it has left to look at is older than what
/// it has found, it stops looking for what is in the old history as well.
#[test]
fn what_is_new_does_not_depend_on_dates() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    let mut planned = vec![plain(&[], 2_000_000_000)];
    planned.extend((0..30).map(|at| plain(&[at], 10)));
    planned.push(plain(&[30], 1_600_000_000));
    source.commit(planned);
    fixture.synced(&source.path, &out, &[]);
    let first = Received::read(&out, 0);
    check_records(&first, &source, &source.history(31));
    // A merge of the first commit, which HEAD had in its history already.
    source.commit(vec![
        plain(&[31, 0], 1_600_000_001),
        plain(&[32], 1_600_000_002),
        plain(&[33], 1_900_000_000),
    ]);
    let options = [&ONE_PAGE[..], &["--page-size", "1"]].concat();
    fixture.synced(&source.path, &out, &options);
    check_records(&Received::read(&out, first.messages.len()), &source, &BTreeSet::from([32, 33, 34]));
}

#[test]
fn records_are_the_same_whatever_git_is_told_by_its_user() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    source.commit(plan(120, 5));
    let everything = source.history(source.hashes.len() - 1);
    let path = &source.path;
    // The repository's own settings, replaced objects, a mailmap, grafts, notes.
    fs::write(path.join(".mailmap"), "Nobody <nobody@example.com> <ada@example.com>\n").unwrap();
    fs::write(path.join(".git/info/grafts"), format!("{}\n", source.hashes[60])).unwrap();
    git(path, &["replace", &source.hashes[50], &source.hashes[10]]);
    git(path, &["-c", "user.name=x", "-c", "user.email=x@x", "notes", "add", "-m", "a note", "HEAD"]);
    let hostile = "[log]\nshowSignature = true\nmailmap = true\ndecorate = full\ndate = iso\nfollow = true\n\
                   [format]\npretty = fuller\n[color]\nui = always\n[i18n]\nlogOutputEncoding = UTF-16\n\
                   commitEncoding = ISO-8859-1\n[core]\npager = false\nquotePath = true\n[safe]\n\
                   bareRepository = explicit\n[alias]\nlog = log --oneline\n[notes]\ndisplayRef = *\n";
    let config = fs::read_to_string(path.join(".git/config")).unwrap();
    fs::write(path.join(".git/config"), format!("{config}{hostile}")).unwrap();
    let user_config = fixture.path("gitconfig");
    fs::write(&user_config, hostile).unwrap();
    let (elsewhere, nothing) = (fixture.path("elsewhere"), fixture.path("nothing"));
    Source::new(elsewhere.clone());
    let env: [(&str, &OsStr); 9] = [
        ("GIT_CONFIG_GLOBAL", user_config.as_os_str()),
        ("GIT_DIR", elsewhere.as_os_str()),
        ("GIT_WORK_TREE", elsewhere.as_os_str()),
        ("GIT_OBJECT_DIRECTORY", elsewhere.as_os_str()),
        ("GIT_INDEX_FILE", nothing.as_os_str()),
        ("GIT_NAMESPACE", "other".as_ref()),
        ("GIT_PAGER", "false".as_ref()),
        ("LC_ALL", "de_DE.UTF-8".as_ref()),
        ("LANGUAGE", "de".as_ref()),
    ];
    let bare = fixture.path("bare.git");
    let tree = fixture.path("tree");
    git(path, &["clone", "--quiet", "--bare", path.to_str().unwrap(), bare.to_str().unwrap()]);
    git(path, &["worktree", "add", "--quiet", "--detach", tree.to_str().unwrap()]);
    let inside = path.join(".git/info");
    let mut lines = Vec::new();
    for (at, repo) in [path, &bare, &tree, &inside].into_iter().enumerate() {
        let out = fixture.path(&format!("out-{at}"));
        let output = run(&fixture.program, &[&"sync", &"--repo", repo, &"--out", &out], &env, b"");
        assert!(output.status.success(), "{}: {}", repo.display(), said(&output));
        let received = Received::read(&out, 0);
        check_records(&received, &source, &everything);
        let unit = received.records("external_sync_units").next().unwrap();
        lines.push((unit["id"].clone(), received.records("commits").cloned().collect::<Vec<_>>()));
    }
    assert!(lines.iter().all(|(_, commits)| *commits == lines[0].1), "the same commits in the same order");
    assert_eq!(lines[0].0, lines[3].0, "the same repository");
    assert!(lines[1].0 != lines[0].0 && lines[2].0 != lines[0].0, "each has a HEAD of its own");
}

#[test]
fn a_shallow_clone_is_extracted_with_a_warning_and_anew_when_it_is_deepened() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    source.commit(line(50));
    let clone = fixture.shallow_clone(&source, 10);
    let output = fixture.synced(&clone, &out, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("shallow clone"), "{}", said(&output));
    let first = Received::read(&out, 0);
    let mut expected = source.hashes[40..].to_vec();
    expected.sort();
    assert_eq!(first.ids("commits"), expected);
    git(&clone, &["fetch", "--quiet", "--unshallow"]);
    let output = fixture.synced(&clone, &out, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("extracted again"), "{}", said(&output));
    check_records(&Received::read(&out, first.messages.len()), &source, &source.history(49));
}

#[test]
fn a_history_that_changes_under_a_run_is_an_error_and_the_next_sync_is_whole() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    source.commit(line(50));
    let clone = fixture.shallow_clone(&source, 30);
    let options = [&ONE_PAGE[..], &["--page-size", "10"]].concat();
    let (airdrop, clock, settings) =
        (Local::open(&out).unwrap(), SystemClock::new(), SyncSettings::new("acme/clone").newer_names(true));
    airdrop.begin_sync(&settings, &clock).unwrap();
    for answer in
        ["EXTERNAL_SYNC_UNIT_EXTRACTION_DONE", "METADATA_EXTRACTION_DONE", "DATA_EXTRACTION_PROGRESS"]
    {
        let event = airdrop.next_event(&settings, &clock).unwrap().unwrap();
        let output = fixture.invoke(&clone, &out, &event.json, &options);
        assert!(String::from_utf8_lossy(&output.stdout).contains(answer), "{}", said(&output));
    }
    git(&clone, &["fetch", "--quiet", "--unshallow"]);
    let event = airdrop.next_event(&settings, &clock).unwrap().unwrap();
    let output = fixture.invoke(&clone, &out, &event.json, &options);
    let message = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && message.contains("DATA_EXTRACTION_ERROR"), "{}", said(&output));
    assert!(message.contains("has 50 commits to extract now and had 30"), "{message}");
    assert!(airdrop.next_event(&settings, &clock).is_err());
    let seen = airdrop.messages().unwrap().count();
    fixture.synced(&clone, &fixture.path("whole"), &options);
    check_records(&Received::read(&fixture.path("whole"), 0), &source, &source.history(49));
    airdrop.begin_sync(&settings, &clock).unwrap();
    while let Some(event) = airdrop.next_event(&settings, &clock).unwrap() {
        let output = fixture.invoke(&clone, &out, &event.json, &options);
        assert!(output.status.success(), "{}", said(&output));
    }
    check_records(&Received::read(&out, seen), &source, &source.history(49));
}

#[test]
fn texts_that_are_longer_than_a_record_can_be_are_cut() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    let mut planned = vec![plain(&[], 1), plain(&[0], 2), plain(&[1], 3)];
    // As JSON, each of these bytes takes six.
    planned[1].message = [b"body\n\n".to_vec(), vec![1; 12_000_000], b"\n".to_vec()].concat();
    planned[2].message = vec![b'x'; 12_000_000];
    planned[2].author.name = vec![b'y'; 100_000];
    source.commit(planned);
    fixture.synced(&source.path, &out, &[]);
    let received = Received::read(&out, 0);
    let mut hashes = source.hashes.clone();
    hashes.sort();
    assert_eq!(received.ids("commits"), hashes);
    let text = |at: usize, field: &str| {
        let hash = &source.hashes[at];
        let record = received.records("commits").find(|record| record["id"] == **hash).unwrap();
        record["data"][field].as_str().unwrap_or_default().to_owned()
    };
    assert!(text(1, "body").starts_with("\u{1}\u{1}") && text(1, "body").len() < 1_100_000);
    assert!(text(1, "body").ends_with("(cut here, it has 12000001 bytes)"));
    assert!(text(2, "subject").starts_with("xxx") && text(2, "subject").len() < 70_000);
    assert_eq!(text(2, "body"), "");
}

/// An event as small as they come.
fn event(event_type: &str, context: &Value) -> String {
    json!({ "payload": { "event_type": event_type, "event_context": context } }).to_string()
}

#[test]
fn an_event_sent_again_gets_its_message_again_and_a_first_event_of_any_phase_is_answered() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    source.commit(plan(50, 6));
    let context = |unit: &str| json!({ "external_sync_unit_id": unit, "run_id": "r", "request_id": "q" });
    let start = event("START_EXTRACTING_DATA", &context("a"));
    let first = fixture.invoke(&source.path, &out, &start, &[]);
    let again = fixture.invoke(&source.path, &out, &start, &[]);
    assert!(first.status.success() && again.status.success(), "{}{}", said(&first), said(&again));
    assert_eq!(first.stdout, again.stdout);
    let accepted = fs::read(out.join("messages.jsonl")).unwrap();
    assert_eq!(accepted, first.stdout, "one message, on one line, in DIR and on standard output");
    let received = Received::read(&out, 0);
    assert_eq!(received.event_types(), ["DATA_EXTRACTION_DONE"]);
    check_records(&received, &source, &source.history(source.hashes.len() - 1));
    for (name, answer) in [
        ("START_EXTRACTING_EXTERNAL_SYNC_UNITS", "EXTERNAL_SYNC_UNIT_EXTRACTION_DONE"),
        ("EXTRACTION_METADATA_START", "EXTRACTION_METADATA_DONE"),
        // What these should go on with is not known here, so it would be lost.
        ("CONTINUE_EXTRACTING_DATA", "DATA_EXTRACTION_ERROR"),
        ("EXTRACTION_ATTACHMENTS_START", "EXTRACTION_ATTACHMENTS_ERROR"),
        ("START_DELETING_EXTRACTOR_STATE", "EXTRACTOR_STATE_DELETION_DONE"),
        ("DANCE", "UNKNOWN_EVENT_TYPE"),
    ] {
        let output = fixture.invoke(&source.path, &fixture.path(name), &event(name, &context(name)), &[]);
        assert!(output.status.success(), "{name}: {}", said(&output));
        let received = Received::read(&fixture.path(name), 0);
        assert_eq!(received.event_types(), [answer]);
    }
}

#[test]
fn a_reset_extracts_everything_anew_and_the_next_sync_what_came_since() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    let out = fixture.path("out");
    source.commit(line(7));
    let mut seen = 0;
    let mut sync = |run: &str, reset: bool| {
        // One process for each page; only the first event asks for a reset.
        let mut name = "EXTRACTION_DATA_START";
        for request in 0..20 {
            let mut context = json!({ "external_sync_unit_id": "a", "run_id": run });
            context["request_id"] = json!(format!("{run}-{request}"));
            if reset && request == 0 {
                context["reset_extract_from"] = json!(true);
            }
            let options = [&ONE_PAGE[..], &["--page-size", "3"]].concat();
            let output = fixture.invoke(&source.path, &out, &event(name, &context), &options);
            assert!(output.status.success(), "{}", said(&output));
            name = match *Received::read(&out, seen).event_types().last().unwrap() {
                "EXTRACTION_DATA_PROGRESS" => "EXTRACTION_DATA_CONTINUE",
                "EXTRACTION_DATA_DONE" => "EXTRACTION_ATTACHMENTS_START",
                "EXTRACTION_ATTACHMENTS_DONE" => break,
                other => panic!("{other}"),
            };
        }
        let received = Received::read(&out, seen);
        seen += received.messages.len();
        received.ids("commits").len()
    };
    assert_eq!((sync("1", false), sync("2", false)), (7, 0));
    assert_eq!((sync("3", true), sync("4", false)), (7, 0));
}

#[test]
fn bad_input_is_a_clear_error_and_leaves_everything_as_it_was() {
    let fixture = Fixture::new();
    let mut source = Source::new(fixture.path("source"));
    source.commit(plan(20, 7));
    let repo = source.path.clone();
    let out = fixture.path("out");
    fixture.synced(&repo, &out, &[]);
    let messages = fs::read(out.join("messages.jsonl")).unwrap();
    let store = fs::read(out.join("state.redb")).unwrap();
    let context = json!({ "external_sync_unit_id": "u", "run_id": "r", "request_id": "q" });
    let start = event("EXTRACTION_DATA_START", &context);

    let fails = |output: Output, code: i32, says: &[&str]| {
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(output.stdout.is_empty(), "{}", said(&output));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(says.iter().all(|part| stderr.contains(part)), "{says:?}: {}", said(&output));
    };
    let (empty, folder, new) = (fixture.path("empty"), fixture.path("folder"), fixture.path("new"));
    Source::new(empty.clone());
    fs::create_dir(&folder).unwrap();
    for (repo, says) in [
        (fixture.path("missing"), "No such file or directory"),
        (folder.clone(), "not a git repository"),
        (empty.clone(), "no commits"),
    ] {
        fails(fixture.sync(&repo, &out, &[]), 1, &[says, repo.to_str().unwrap()]);
        fails(fixture.sync(&repo, &new, &[]), 1, &[says]);
    }
    for repo in [fixture.path("missing"), folder] {
        fails(fixture.invoke(&repo, &out, &start, &[]), 1, &[repo.to_str().unwrap()]);
    }
    let file = fixture.path("file");
    fs::write(&file, "").unwrap();
    fails(fixture.sync(&repo, &file.join("out"), &[]), 1, &[file.to_str().unwrap()]);

    fails(fixture.invoke(&repo, &out, "no event", &[]), 1, &["not JSON"]);
    fails(fixture.invoke(&repo, &out, "", &[]), 1, &["not JSON"]);
    fails(fixture.invoke(&repo, &out, r#"{"payload":{}}"#, &[]), 1, &["payload.event_type"]);
    let missing = fixture.path("missing.json");
    let args: [&dyn AsRef<OsStr>; 7] = [&"invoke", &"--repo", &repo, &"--out", &out, &"--event", &missing];
    fails(run(&fixture.program, &args, &[], b""), 1, &["--event", missing.to_str().unwrap()]);

    for (flag, value) in [
        ("--page-size", "0"),
        ("--page-size", "many"),
        ("--batch-items", "0"),
        ("--batch-items", "1000001"),
        ("--budget", "5"),
        ("--budget", "-1s"),
        ("--page-delay", "soon"),
        ("--unknown", "x"),
    ] {
        fails(fixture.sync(&repo, &out, &[&format!("{flag}={value}")]), 2, &[flag]);
    }
    fails(fixture.sync(Path::new(""), &out, &[]), 2, &["--repo"]);
    fails(run(&fixture.program, &[&"sync", &"--repo", &repo], &[], b""), 2, &["--out"]);

    let nowhere = fixture.path("nowhere");
    let env = [("PATH", nowhere.as_os_str())];
    let args: [&dyn AsRef<OsStr>; 5] = [&"sync", &"--repo", &repo, &"--out", &out];
    fails(run(&fixture.program, &args, &env, b""), 1, &["cannot run git"]);

    assert!(!new.exists(), "nothing was written");
    assert_eq!(fs::read(out.join("state.redb")).unwrap(), store, "the store was not touched");
    let held = Store::open(out.join("state.redb")).unwrap();
    fails(fixture.invoke(&repo, &out, &start, &["--budget", "100ms"]), 1, &["in use", "state.redb"]);
    drop(held);

    assert_eq!(fs::read(out.join("messages.jsonl")).unwrap(), messages, "nothing was sent");
    // The store is whole: nothing is new, but for the metadata document.
    let seen = Received::read(&out, 0).messages.len();
    fixture.synced(&repo, &out, &[]);
    assert_eq!(Received::read(&out, seen).artifacts.len(), 1);

    // An error that can be sent to the platform is an answer, so the program succeeds.
    let output =
        fixture.invoke(&repo, &fixture.path("told"), &event("EXTRACTION_DATA_START", &json!({})), &[]);
    assert!(output.status.success(), "{}", said(&output));
    let told = Received::read(&fixture.path("told"), 0);
    assert_eq!(told.event_types(), ["EXTRACTION_DATA_ERROR"]);
    let reason = told.messages[0]["event_data"]["error"]["message"].as_str().unwrap();
    assert!(reason.contains("payload.event_context.sync_unit_id"), "{reason}");
    let output = fixture.invoke(&empty, &fixture.path("empty-out"), &start, &[]);
    assert!(output.status.success(), "{}", said(&output));
    let told = Received::read(&fixture.path("empty-out"), 0);
    let reason = told.messages[0]["event_data"]["error"]["message"].as_str().unwrap();
    assert!(reason.contains("no commits") && reason.contains("main"), "{reason}");
    assert!(list(&told.messages[0]["event_data"]["artifacts"]).is_empty());
}
