//! Code shared by several tests: the programs of the workspace, Git repositories built from a plan, and a reader of a
//! local Airdrop's files that is independent of the code under test.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flate2::read::GzDecoder;
use serde_json::Value;

/// The program that a member of the workspace was built to. Never skipped: a missing or stale one is a failure that
/// says what to do.
pub(crate) fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    // target/<profile>/deps/<this>
    let profile = this.parent().and_then(Path::parent).unwrap();
    let program = profile.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let mend = format!("run `cargo build -p {name}` first, or `cargo test` at the root, without `--test`");
    let built = fs::metadata(&program).and_then(|metadata| metadata.modified());
    let built = built.unwrap_or_else(|error| panic!("{}: {error}: {mend}", program.display()));
    // Beside it cargo lists, as make does, what it was made of.
    let sources = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let sources = sources.split_once(": ").map_or("", |(_, sources)| sources).replace("\\ ", "\0");
    for source in sources.split_whitespace().map(|source| source.replace('\0', " ")) {
        let changed = fs::metadata(&source).and_then(|metadata| metadata.modified());
        assert!(changed.is_ok_and(|at| at <= built), "{} is older than {source}: {mend}", program.display());
    }
    program
}

/// Runs a program to its end.
pub(crate) fn run(
    program: &Path,
    args: &[&dyn AsRef<OsStr>],
    env: &[(&str, &OsStr)],
    input: &[u8],
) -> Output {
    let mut command = Command::new(program);
    command.args(args.iter().copied().map(AsRef::as_ref)).envs(env.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program need not read all of it.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// What a Git command of the test's own says, without the newline at its end.
pub(crate) fn git(repo: &Path, args: &[&str]) -> String {
    let output = git_with_input(repo, args, b"");
    String::from_utf8(output).unwrap().trim_end().to_owned()
}

fn git_with_input(repo: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let none = if cfg!(windows) { "NUL" } else { "/dev/null" };
    let env: [(&str, &OsStr); 2] =
        [("GIT_CONFIG_GLOBAL", none.as_ref()), ("GIT_CONFIG_NOSYSTEM", "1".as_ref())];
    let mut all: Vec<&dyn AsRef<OsStr>> = vec![&"-C", &repo];
    all.extend(args.iter().map(|arg| arg as &dyn AsRef<OsStr>));
    let output = run(Path::new("git"), &all, &env, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?} in {}: {said}", repo.display());
    output.stdout
}

/// A name and a time, as a commit records them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) name: Vec<u8>,
    pub(crate) email: Vec<u8>,
    /// Seconds and offset, `1112911993 -0700`.
    pub(crate) at: String,
}

/// A commit that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// Indices of planned commits.
    pub(crate) parents: Vec<usize>,
    pub(crate) author: Who,
    pub(crate) committer: Who,
    pub(crate) message: Vec<u8>,
    pub(crate) encoding: Option<&'static str>,
}

/// A Git repository whose commits are known beforehand.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) planned: Vec<Planned>,
    /// By index of the planned commit.
    pub(crate) hashes: Vec<String>,
}

impl Source {
    /// An empty repository; its branch is `main`.
    pub(crate) fn new(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        git(&path, &["init", "--quiet", "--initial-branch=main"]);
        Self { path, planned: Vec::new(), hashes: Vec::new() }
    }

    /// Makes the commits, and lets `main` be the last of them, whatever it was.
    pub(crate) fn commit(&mut self, planned: Vec<Planned>) {
        let mut stream = b"feature done\n".to_vec();
        let first = self.hashes.len();
        for (at, commit) in planned.iter().enumerate() {
            let line = |stream: &mut Vec<u8>, word: &str, who: &Who| {
                let parts =
                    [word.as_bytes(), b" ", &who.name, b" <", &who.email, b"> ", who.at.as_bytes(), b"\n"];
                stream.extend(parts.concat());
            };
            // Without the reset, a commit without parents would get the one before it.
            let mark = first + at + 1;
            write!(stream, "reset refs/heads/main\n\ncommit refs/heads/main\nmark :{mark}\n").unwrap();
            line(&mut stream, "author", &commit.author);
            line(&mut stream, "committer", &commit.committer);
            if let Some(encoding) = commit.encoding {
                writeln!(stream, "encoding {encoding}").unwrap();
            }
            writeln!(stream, "data {}", commit.message.len()).unwrap();
            stream.extend_from_slice(&commit.message);
            stream.push(b'\n');
            for (word, &parent) in
                std::iter::once("from").chain(std::iter::repeat("merge")).zip(&commit.parents)
            {
                let hash = self.hashes.get(parent).cloned().unwrap_or_else(|| format!(":{}", parent + 1));
                writeln!(stream, "{word} {hash}").unwrap();
            }
            stream.push(b'\n');
        }
        stream.extend_from_slice(b"done\n");
        let marks = self.path.join("marks");
        let export = format!("--export-marks={}", marks.display());
        git_with_input(
            &self.path,
            &["fast-import", "--quiet", "--force", "--date-format=raw-permissive", &export],
            &stream,
        );
        let marks = fs::read_to_string(marks).unwrap();
        let marks: HashMap<&str, &str> = marks.lines().map(|line| line.split_once(' ').unwrap()).collect();
        for at in 0..planned.len() {
            self.hashes.push(marks[format!(":{}", first + at + 1).as_str()].to_owned());
        }
        self.planned.extend(planned);
        let unlike: BTreeSet<_> = self.hashes.iter().collect();
        assert_eq!(unlike.len(), self.hashes.len(), "two of the planned commits are the same");
    }

    /// Indices of the commits in the history of one, found by following parents.
    pub(crate) fn history(&self, of: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut left = vec![of];
        while let Some(at) = left.pop() {
            if found.insert(at) {
                left.extend(&self.planned[at].parents);
            }
        }
        found
    }
}

/// What a local Airdrop was given, read from its files.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) messages: Vec<Value>,
    pub(crate) artifacts: Vec<Artifact>,
}

/// An artifact that a message names.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) id: String,
    pub(crate) item_type: String,
    pub(crate) records: Vec<Value>,
}

impl Received {
    /// Reads the messages after the first `skip`, and every artifact that they name.
    pub(crate) fn read(dir: &Path, skip: usize) -> Self {
        let text = fs::read_to_string(dir.join("messages.jsonl")).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "messages.jsonl is torn");
        let messages: Vec<Value> =
            text.lines().skip(skip).map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut artifacts = Vec::new();
        for entry in messages.iter().flat_map(|message| list(&message["event_data"]["artifacts"])) {
            let id = entry["id"].as_str().unwrap().to_owned();
            let mut text = String::new();
            let file = fs::File::open(dir.join("artifacts").join(&id)).unwrap();
            GzDecoder::new(file).read_to_string(&mut text).unwrap();
            let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(entry["item_count"], records.len(), "item_count of {id}");
            artifacts.push(Artifact {
                id,
                item_type: entry["item_type"].as_str().unwrap().to_owned(),
                records,
            });
        }
        Self { messages, artifacts }
    }

    /// The records of an item type, in the order of the messages.
    pub(crate) fn records<'a>(&'a self, item_type: &'a str) -> impl Iterator<Item = &'a Value> {
        let artifacts = self.artifacts.iter().filter(move |artifact| artifact.item_type == item_type);
        artifacts.flat_map(|artifact| &artifact.records)
    }

    /// The ids of the records of an item type, sorted, each as often as it is there.
    pub(crate) fn ids(&self, item_type: &str) -> Vec<String> {
        let mut ids: Vec<_> =
            self.records(item_type).map(|record| record["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    }

    /// What the messages are, one after the other.
    pub(crate) fn event_types(&self) -> Vec<&str> {
        self.messages.iter().map(|message| message["event_type"].as_str().unwrap()).collect()
    }
}

/// Checks that all the messages, and the lines on attachments that they announce, name each confirmed artifact once,
/// and but for external sync units no other; returns how many uploads nothing names.
pub(crate) fn check_confirmed(dir: &Path) -> usize {
    let all = Received::read(dir, 0);
    let mut announced: Vec<&str> = all
        .artifacts
        .iter()
        .filter(|artifact| artifact.item_type != "external_sync_units")
        .map(|artifact| artifact.id.as_str())
        .collect();
    let of_messages = announced.len();
    announced.extend(all.records("ssor_attachment").map(|line| line["id"]["devrev"].as_str().unwrap()));
    let attachments = announced.len() - of_messages;
    announced.sort_unstable();
    let text = fs::read_to_string(dir.join("confirmed.txt")).unwrap();
    let mut confirmed: Vec<&str> = text.lines().collect();
    confirmed.sort_unstable();
    assert_eq!(announced, confirmed, "the artifacts in messages.jsonl and in confirmed.txt");
    let uploads = fs::read_dir(dir.join("artifacts")).unwrap().count();
    uploads.checked_sub(all.artifacts.len() + attachments).expect("an artifact is announced twice")
}

/// The elements of a list, or none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Both ends of what a program said, for a failure.
pub(crate) fn said(output: &Output) -> String {
    let mut text = String::new();
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        writeln!(text, "{name}: {}", String::from_utf8_lossy(bytes)).unwrap();
    }
    writeln!(text, "{}", output.status).unwrap();
    text
}

/// The lines of a gzipped JSON Lines artifact. It must be one member, and every line, the last too, must end.
pub(crate) fn lines(gzip: &[u8]) -> Vec<Value> {
    let mut text = String::new();
    let mut decoder = flate2::bufread::GzDecoder::new(gzip);
    decoder.read_to_string(&mut text).expect("an artifact is one gzip member of text");
    assert!(decoder.into_inner().is_empty(), "bytes follow the gzip member");
    assert!(text.is_empty() || text.ends_with('\n'), "the last line ends without a newline");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}
