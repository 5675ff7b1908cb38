//! Queries to Git, through the `git` command.
//!
//! The answers are the same for every user. The caller's `GIT_*` variables are not passed on (except those by which
//! Git finds itself and its configuration), and the command line overrides whatever configuration could change an
//! answer. Replaced objects, grafts and the mailmap are ignored: a commit is what its hash stands for.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use chrono::{DateTime, Datelike, FixedOffset};

/// The fields of a commit as [`Log`] reads them, each terminated by a NUL. None can contain a NUL: for Git, a NUL
/// ends a commit.
const FORMAT: &str = "--format=tformat:%H%x00%P%x00%an%x00%ae%x00%ad%x00%cn%x00%ce%x00%cd%x00%s%x00%b";
/// Bytes of Git's standard error that are kept.
const ERROR_BYTES_MAX: u64 = 4_000;
/// The first and the last second with a year that RFC 3339 can express.
const SECONDS: (i64, i64) = (-62_167_219_200, 253_402_300_799);
/// Bytes that a record's id has at most.
const ID_BYTES_MAX: usize = highwater::limits::ID_BYTES_MAX;
/// Bytes of a name that are kept.
const NAME_BYTES_MAX: usize = 400;

/// Why Git gave no answer, or no usable one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    /// It could not be started.
    #[error("cannot run git: install it, and see that it is in PATH")]
    Start(#[source] io::Error),
    /// It was started, but reading its output failed.
    #[error("cannot read what git {command} says")]
    Read {
        /// The command.
        command: String,
        /// The cause.
        source: io::Error,
    },
    /// It failed; its own message follows.
    #[error("git {command} failed in {}: {said}", path.display())]
    Failed {
        /// The command.
        command: String,
        /// The repository.
        path: PathBuf,
        /// Its message.
        said: String,
    },
    /// Its output is invalid.
    #[error("git {command} gave what it never should: {found}")]
    Strange {
        /// The command.
        command: String,
        /// The output.
        found: String,
    },
    /// A path is not valid text.
    #[error(
        "the path of the repository, {path:?}, is not UTF-8, so it cannot be the id of a sync unit: rename it"
    )]
    Path {
        /// The path, as far as text can express it.
        path: String,
    },
    /// There is nothing to extract.
    #[error(
        "the repository {} has no commits to extract: {head} has none yet (make one, or check out a branch that has)",
        path.display()
    )]
    Empty {
        /// The repository.
        path: PathBuf,
        /// What HEAD points to.
        head: String,
    },
}

/// A Git repository on disk.
#[derive(Debug)]
pub(crate) struct Repository {
    path: PathBuf,
    git_dir: String,
    shallow: bool,
}

impl Repository {
    /// Finds the repository that contains a path.
    pub(crate) fn open(path: &Path) -> Result<Self, GitError> {
        let mut this = Self { path: path.to_owned(), git_dir: String::new(), shallow: false };
        this.git_dir = this.ask(&["rev-parse", "--absolute-git-dir"])?;
        this.shallow = this.ask(&["rev-parse", "--is-shallow-repository"])? == "true";
        Ok(this)
    }

    /// Its id as a sync unit: the canonical path of its Git directory, without `/.git`. It is the same for every
    /// directory of the repository. A worktree has its own HEAD, and is a unit of its own.
    pub(crate) fn id(&self) -> &str {
        match self.git_dir.strip_suffix("/.git") {
            Some(top) if !top.is_empty() => top,
            _ => &self.git_dir,
        }
    }

    /// Its name for people: the last part of its id.
    pub(crate) fn name(&self) -> &str {
        self.id().rsplit('/').find(|part| !part.is_empty()).unwrap_or(self.id())
    }

    /// Whether it is a shallow clone: older commits are missing.
    pub(crate) fn is_shallow(&self) -> bool {
        self.shallow
    }

    /// The commit of HEAD; an error if there is none.
    pub(crate) fn head(&self) -> Result<String, GitError> {
        self.commit("HEAD")?
            .map_or_else(|| Err(GitError::Empty { path: self.path.clone(), head: self.head_name()? }), Ok)
    }

    /// The branch that is checked out, or `HEAD`.
    pub(crate) fn head_name(&self) -> Result<String, GitError> {
        let args = ["symbolic-ref", "--quiet", "HEAD"];
        let output = self.output(&args)?;
        match output.status.code() {
            Some(0) => {
                let name = String::from_utf8_lossy(&output.stdout);
                let name = name.trim_end();
                Ok(format!("branch {}", name.strip_prefix("refs/heads/").unwrap_or(name)))
            }
            Some(1) => Ok("HEAD".to_owned()),
            _ => Err(self.failed(&args, &output.stderr)),
        }
    }

    /// The hash of the commit with this name, if it exists.
    pub(crate) fn commit(&self, name: &str) -> Result<Option<String>, GitError> {
        let name = format!("{name}^{{commit}}");
        let args = ["rev-parse", "--verify", "--quiet", &name];
        let output = self.output(&args)?;
        match output.status.code() {
            Some(0) => Ok(Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())),
            Some(1) => Ok(None),
            _ => Err(self.failed(&args, &output.stderr)),
        }
    }

    /// Whether `old` is in the history of `new`.
    pub(crate) fn is_ancestor(&self, old: &str, new: &str) -> Result<bool, GitError> {
        let args = ["merge-base", "--is-ancestor", old, new];
        let output = self.output(&args)?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(self.failed(&args, &output.stderr)),
        }
    }

    /// The number of commits in the history of `head`, including `head`.
    pub(crate) fn count(&self, head: &str) -> Result<u64, GitError> {
        let said = self.ask(&["rev-list", "--count", head])?;
        said.parse().map_err(|_| GitError::Strange { command: "rev-list".to_owned(), found: said })
    }

    /// The commits in the history of `head` that are not in that of `base`; and the number of commits in the latter.
    ///
    /// If dates are wrong, `git rev-list head ^base` can list commits that are not new: it stops searching once
    /// everything left is older than what it found. So its answer is checked against the whole old history.
    pub(crate) fn new_commits(&self, head: &str, base: &str) -> Result<(HashSet<String>, u64), GitError> {
        let mut new = HashSet::new();
        let mut said = self.start(&["rev-list", head, &format!("^{base}")])?;
        while let Some(hash) = said.until(b'\n')? {
            new.insert(text(&hash));
        }
        let mut known = 0;
        let mut said = self.start(&["rev-list", base])?;
        while let Some(hash) = said.until(b'\n')? {
            new.remove(&text(&hash));
            known += 1;
        }
        Ok((new, known))
    }

    /// The commits in the history of `head` that are not in that of `base`, in a stable order; if `wanted` is given,
    /// only these.
    pub(crate) fn log(
        &self,
        head: &str,
        base: Option<&str>,
        wanted: Option<HashSet<String>>,
    ) -> Result<Log, GitError> {
        let mut args = vec![
            "log",
            "-z",
            "--encoding=UTF-8",
            "--date=raw",
            "--no-color",
            "--no-decorate",
            "--no-mailmap",
            "--no-notes",
            "--no-patch",
            "--no-show-signature",
            FORMAT,
            head,
        ];
        let not_base = base.map(|base| format!("^{base}"));
        args.extend(not_base.as_deref());
        Ok(Log { said: self.start(&args)?, wanted })
    }

    /// The files of `head` that match one of the pathspecs, by the commit that changed them last: the newest in its
    /// history for which Git lists a change. A file for which it lists none belongs to `head` itself.
    pub(crate) fn files(
        &self,
        head: &str,
        pathspecs: &[String],
    ) -> Result<HashMap<String, Vec<FileAtHead>>, GitError> {
        let mut by_commit: HashMap<String, Vec<FileAtHead>> = HashMap::new();
        if pathspecs.is_empty() {
            return Ok(by_commit);
        }
        let empty = self.ask(&["hash-object", "-t", "tree", "--stdin"])?;
        let list = ["diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", &empty, head, "--"];
        let mut args = list.to_vec();
        args.extend(pathspecs.iter().map(String::as_str));
        let mut said = self.start(&args)?;
        let mut blobs = HashMap::new();
        while let Some(entry) = said.until(0)? {
            let entry = text(&entry);
            let path = said.until(0)?.unwrap_or_default();
            // `:000000 100644 <no hash> <hash> A`
            let mut fields = entry.split(' ').skip(1);
            match (fields.next(), fields.nth(1)) {
                // Neither a link nor the commit of a submodule.
                (Some(mode), Some(blob)) if mode.starts_with("100") => {
                    blobs.insert(path, blob.to_owned());
                }
                (Some(_), Some(_)) => {}
                _ => return Err(GitError::Strange { command: "diff-tree".to_owned(), found: entry }),
            }
        }
        if blobs.is_empty() {
            return Ok(by_commit);
        }
        let log = [
            "log",
            "-z",
            "-c",
            "--topo-order",
            "--name-only",
            "--no-color",
            "--no-decorate",
            "--no-follow",
            "--no-mailmap",
            "--no-notes",
            "--no-relative",
            "--no-renames",
            "--no-show-signature",
            "--format=tformat:%x00%H",
            head,
            "--",
        ];
        let mut args = log.to_vec();
        args.extend(pathspecs.iter().map(String::as_str));
        let mut said = self.start(&args)?;
        let mut commit = head.to_owned();
        let mut is_first = false;
        while !blobs.is_empty()
            && let Some(piece) = said.until(0)?
        {
            if piece.is_empty() {
                commit = said.until(0)?.map(|hash| text(&hash)).unwrap_or_default();
                is_first = true;
                continue;
            }
            let path = if is_first { piece.strip_prefix(b"\n").unwrap_or(&piece) } else { &piece };
            is_first = false;
            if let Some(blob) = blobs.remove(path) {
                by_commit.entry(commit.clone()).or_default().push(FileAtHead { path: path.to_vec(), blob });
            }
        }
        let rest = blobs.into_iter().map(|(path, blob)| FileAtHead { path, blob });
        let of_head = by_commit.entry(head.to_owned()).or_default();
        of_head.extend(rest);
        // The same order every time.
        for files in by_commit.values_mut() {
            files.sort();
        }
        Ok(by_commit)
    }

    /// The bytes of a blob, and their number; `None` if it is missing.
    pub(crate) fn blob(&self, hash: &str) -> Result<Option<(u64, Saying)>, GitError> {
        let args = ["cat-file", "-s", hash];
        let output = self.output(&args)?;
        if !output.status.success() {
            return Ok(None);
        }
        let said = text(&output.stdout);
        let Ok(bytes) = said.trim_end().parse() else {
            return Err(GitError::Strange { command: "cat-file".to_owned(), found: said });
        };
        Ok(Some((bytes, self.start(&["cat-file", "blob", hash])?)))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        for (name, _) in std::env::vars_os() {
            if leads_astray(&name) {
                command.env_remove(name);
            }
        }
        command
            .env("GIT_GRAFT_FILE", if cfg!(windows) { "NUL" } else { "/dev/null" })
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .env_remove("LANGUAGE")
            .stdin(Stdio::null())
            .arg("-C")
            .arg(&self.path)
            .arg("--no-pager");
        for setting in [
            // The user named the repository, so a bare one is allowed.
            "safe.bareRepository=all",
            "advice.graftFileDeprecated=false",
            "color.ui=false",
            "i18n.logOutputEncoding=UTF-8",
            "log.showRoot=true",
            "log.showSignature=false",
            "log.mailmap=false",
        ] {
            command.args(["-c", setting]);
        }
        command.args(args);
        command
    }

    fn output(&self, args: &[&str]) -> Result<Output, GitError> {
        self.command(args).output().map_err(GitError::Start)
    }

    /// The short output of a command, without the newline at its end.
    fn ask(&self, args: &[&str]) -> Result<String, GitError> {
        let output = self.output(args)?;
        if !output.status.success() {
            return Err(self.failed(args, &output.stderr));
        }
        // Hashes and numbers are ASCII; only a path can be invalid text.
        let said = String::from_utf8(output.stdout)
            .map_err(|error| GitError::Path { path: text(error.as_bytes()).trim_end().to_owned() })?;
        Ok(said.strip_suffix('\n').unwrap_or(&said).to_owned())
    }

    /// Starts a command with much output.
    fn start(&self, args: &[&str]) -> Result<Saying, GitError> {
        let command = name_of(args);
        // A file instead of a pipe: nobody would drain a pipe while standard output is read.
        let errors = tempfile::tempfile();
        let errors = errors.and_then(|errors| Ok((errors.try_clone()?, errors)));
        let (errors, to_errors) =
            errors.map_err(|source| GitError::Read { command: command.clone(), source })?;
        let mut child = self.command(args);
        child.stdout(Stdio::piped()).stderr(to_errors);
        let mut child = child.spawn().map_err(GitError::Start)?;
        let out = child.stdout.take().map(BufReader::new);
        Ok(Saying { command, path: self.path.clone(), child, out, errors })
    }

    fn failed(&self, args: &[&str], said: &[u8]) -> GitError {
        let said = String::from_utf8_lossy(said).trim().to_owned();
        let said = if said.is_empty() { "it did not say why".to_owned() } else { said };
        GitError::Failed { command: name_of(args), path: self.path.clone(), said }
    }
}

/// Whether a variable could make Git read another repository or answer differently. The variables by which Git finds
/// its programs and its configuration are kept: the configuration lists the repositories that may be read.
fn leads_astray(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let stays = ["GIT_EXEC_PATH", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"];
    name.starts_with("GIT_")
        && !stays.contains(&name.as_ref())
        && (!name.starts_with("GIT_CONFIG_") || name == "GIT_CONFIG_PARAMETERS")
}

fn name_of(args: &[&str]) -> String {
    args.first().copied().unwrap_or_default().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running command whose output is read. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Saying {
    command: String,
    path: PathBuf,
    child: Child,
    /// `None` once all output was read.
    out: Option<BufReader<ChildStdout>>,
    errors: File,
}

/// Its output as bytes, followed by an error if it failed.
impl Read for Saying {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(out) = &mut self.out else { return Ok(0) };
        let count = out.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.end().map_err(io::Error::other)?;
        }
        Ok(count)
    }
}

impl Saying {
    /// The next piece, without the delimiter at its end; `None` when the command has succeeded.
    fn until(&mut self, delimiter: u8) -> Result<Option<Vec<u8>>, GitError> {
        let Some(out) = &mut self.out else { return Ok(None) };
        let mut piece = Vec::new();
        let read = out.read_until(delimiter, &mut piece);
        read.map_err(|source| GitError::Read { command: self.command.clone(), source })?;
        if piece.pop_if(|last| *last == delimiter).is_some() {
            return Ok(Some(piece));
        }
        self.end()?;
        if piece.is_empty() {
            return Ok(None);
        }
        Err(GitError::Strange { command: self.command.clone(), found: "half a line".to_owned() })
    }

    /// Checks how the command ended.
    fn end(&mut self) -> Result<(), GitError> {
        self.out = None;
        let unread = |source| GitError::Read { command: self.command.clone(), source };
        let status = self.child.wait().map_err(unread)?;
        if status.success() {
            return Ok(());
        }
        let mut said = Vec::new();
        self.errors
            .rewind()
            .and_then(|()| (&mut self.errors).take(ERROR_BYTES_MAX).read_to_end(&mut said))
            .map_err(unread)?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let said = if said.is_empty() { format!("it ended with {status}") } else { said };
        Err(GitError::Failed { command: self.command.clone(), path: self.path.clone(), said })
    }
}

impl Drop for Saying {
    fn drop(&mut self) {
        // It may have ended by itself: then neither is possible.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A listing of commits, read while it is written.
#[derive(Debug)]
pub(crate) struct Log {
    said: Saying,
    wanted: Option<HashSet<String>>,
}

impl Log {
    /// The next commit.
    pub(crate) fn next(&mut self) -> Result<Option<Commit>, GitError> {
        loop {
            let Some(hash) = self.said.until(0)?.map(|hash| text(&hash)) else { return Ok(None) };
            let commit = Commit {
                parents: self.field(&hash)?.split_whitespace().map(str::to_owned).collect(),
                author: self.signature(&hash)?,
                committer: self.signature(&hash)?,
                subject: self.field(&hash)?,
                body: self.field(&hash)?,
                hash,
            };
            if self.wanted.as_ref().is_none_or(|wanted| wanted.contains(&commit.hash)) {
                return Ok(Some(commit));
            }
        }
    }

    fn signature(&mut self, hash: &str) -> Result<Signature, GitError> {
        Ok(Signature { name: self.field(hash)?, email: self.field(hash)?, at: moment(&self.field(hash)?) })
    }

    /// A field as text. Git has converted it from the encoding that the commit declares; bytes that are not UTF-8
    /// become U+FFFD.
    fn field(&mut self, hash: &str) -> Result<String, GitError> {
        let field = self.said.until(0)?;
        field.map(|field| text(&field)).ok_or_else(|| GitError::Strange {
            command: self.said.command.clone(),
            found: format!("half a commit, {hash}"),
        })
    }
}

/// A file of a commit.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileAtHead {
    /// From the top of the repository, as bytes: Git does not know the encoding of paths.
    pub(crate) path: Vec<u8>,
    /// The hash of its content.
    pub(crate) blob: String,
}

/// A commit as Git describes it.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) hash: String,
    pub(crate) parents: Vec<String>,
    pub(crate) author: Signature,
    pub(crate) committer: Signature,
    /// The lines up to the first empty one, joined to one line.
    pub(crate) subject: String,
    /// The text after the subject.
    pub(crate) body: String,
}

/// The author or committer of a commit, and the time.
#[derive(Debug)]
pub(crate) struct Signature {
    name: String,
    pub(crate) email: String,
    /// `None` if the commit has none.
    pub(crate) at: Option<DateTime<FixedOffset>>,
}

impl Signature {
    /// Its id as a user: the e-mail address exactly as in the commit, so another spelling is another user. Without
    /// one (or if it is too long for an id) it is `<name>`, which cannot be an e-mail address in Git; without either,
    /// `None`.
    pub(crate) fn user_id(&self) -> Option<String> {
        if !self.email.trim().is_empty() && self.email.len() <= ID_BYTES_MAX {
            return Some(self.email.clone());
        }
        self.name().map(|name| format!("<{name}>"))
    }

    /// The name, if there is one.
    pub(crate) fn name(&self) -> Option<&str> {
        let name = start_of(self.name.trim(), NAME_BYTES_MAX);
        (!name.is_empty()).then_some(name)
    }
}

/// The start of a text, of at most this many bytes.
pub(crate) fn start_of(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Parses `1112911993 -0700`. A year that RFC 3339 cannot express becomes the nearest that it can; an impossible
/// offset becomes UTC.
fn moment(raw: &str) -> Option<DateTime<FixedOffset>> {
    let (seconds, zone) = raw.split_once(' ')?;
    // The only possible error: too many digits for a number.
    let seconds = seconds.parse().unwrap_or(i64::MAX).clamp(SECONDS.0, SECONDS.1);
    let at = DateTime::from_timestamp(seconds, 0)?;
    let offset = zone.parse::<i32>().ok().and_then(|zone| {
        let (hours, minutes) = (zone / 100, zone % 100);
        let fits = hours.abs() < 24 && minutes.abs() < 60;
        if fits { FixedOffset::east_opt((hours * 60 + minutes) * 60) } else { None }
    });
    let local = offset.map(|offset| at.with_timezone(&offset));
    Some(local.filter(|local| (0..=9999).contains(&local.year())).unwrap_or_else(|| at.fixed_offset()))
}
