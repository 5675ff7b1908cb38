//! Airdrop in a directory, for development, tests and examples: the platform's side of the conversation, as files.
//!
//! | file | what it holds |
//! |---|---|
//! | `artifacts/<artifact id>` | the bytes of an upload |
//! | `confirmed.txt` | the id of a confirmed artifact per line, in the order of confirmation |
//! | `messages.jsonl` | an accepted message per line, exactly as sent, in the order of acceptance |
//! | `message_keys.jsonl` | `{"key","at","bytes"}` per line: the key of each message, and where its line is |
//! | `worker_state.json` | the worker state, as last saved; of a named unit in `worker_state-<sync unit>.json` |
//! | `objects.json` | the extraction scope, if you put one there |
//! | `domain_mapping.json` | `{"mapping","blueprint"}`: the initial domain mapping that was installed last |
//! | `platform.json` | what the [driver](SyncSettings) remembers: ids it has assigned, finished syncs, the pending event |
//! | `uploaders.txt` | how many handles have uploaded: the first half of an artifact id |
//! | `incoming/` | files that are being written, to be renamed |
//! | `local.lock`, `sync.lock` | locked during an act; locked during a sync |
//!
//! # What a kill leaves
//!
//! Each act has one moment from which it counts. After a kill before that moment, the act never happened, and its
//! traces are removed. After a later kill, the act happened, although the caller got no answer; the same act again is
//! recognised by its key, and is answered `Ok` without adding anything. Before each act, and at open, the handle
//! reads what was added since it last did, and makes that durable. So no answer depends on an unsynced write of
//! another handle.
//!
//! | killed after | on disk | the next act, or open |
//! |---|---|---|
//! | upload: some bytes written, or all | a file in `incoming/` that nobody locks | removed at open; no id was returned |
//! | upload: renamed **(counts)** | `artifacts/<id>` | stays, unconfirmed: nobody knows its id; the next upload has another |
//! | confirm: part of the line | `confirmed.txt` ends without a newline | truncated; confirmed when requested again |
//! | confirm: the line **(counts)** | the line | confirmed; if requested again: `Ok` |
//! | message: part of the key line | `message_keys.jsonl` ends without a newline | truncated; accepted when sent again |
//! | message: the key line, synced | a key whose line does not exist | the key is removed |
//! | message: part of the line | a key whose line is torn | first the line is removed, then the key |
//! | ... the line removed, the key not yet | a key whose line does not exist | the key is removed |
//! | message: the line **(counts)** | both | accepted; sent again: `Ok` if its bytes are the same |
//! | worker state, `platform.json`: a new file written | a file in `incoming/`, the old state | removed at open |
//! | worker state, `platform.json`: renamed **(counts)** | the new state | read |
//!
//! The key is written first, because a message's line has no room for it: a line without its key would be accepted a
//! second time. After power loss a last line may have its length but not its bytes. So a last message counts only if
//! it is JSON, and a last id only if it is a valid one. Any other invalid line is an error ([`Error::NotALocal`]):
//! somebody edited the directory, and nothing is guessed.
//!
//! # Concurrency
//!
//! A handle may be shared between threads, and several handles, of one process or several, may use one directory.
//! Acts take turns with a lock on `local.lock`, which ends with its holder. Uploads run in parallel, each into a file
//! that it locks, so that only the files of dead uploads are removed.

mod driver;
mod events;
mod lines;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use highwater::airdrop::{Body, Fate, Platform, PlatformError, SealedMessage, Upload, WorkerState};
use highwater::limits::{ID_BYTES_MAX, MESSAGE_BYTES_MAX};
use highwater::{ArtifactId, Phase};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::NamedTempFile;

use self::lines::Lines;
use crate::error::{Error, Result, chain};

pub use self::driver::{ItemTotals, LocalEvent, SyncReport, SyncStep};
pub use self::events::SyncSettings;
#[cfg(feature = "program")]
pub(crate) use self::events::UNKNOWN_EVENT;

/// Bytes of worker state that the platform keeps at most.
pub const WORKER_STATE_BYTES_MAX: usize = 1_000_000;
/// Bytes of one upload at most.
pub const UPLOAD_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// The file of the worker state, if no unit is named.
const STATE_FILE: &str = "worker_state.json";
/// The file of the extraction scope.
const SCOPE_FILE: &str = "objects.json";
/// Bytes of a message's key at most.
const KEY_BYTES_MAX: usize = 4 * ID_BYTES_MAX;
/// Bytes of an upload that are in memory at a time.
const COPY_BYTES: usize = 64 * 1024;

/// Airdrop in a directory.
///
/// It stores what it is given, and refuses what the platform would refuse: to confirm an artifact that was never
/// uploaded (404); a message that names a missing artifact or, except for external sync units, an unconfirmed one
/// (400); a message that is not JSON (400) or too large (413); a known key with other bytes (409). A disk error is
/// [`PlatformError::Retry`] with [`Fate::Unknown`].
///
/// ```
/// use highwater::airdrop::{Body, Platform, SealedMessage, Upload};
/// use highwater_airdrop::Local;
///
/// # let dir = tempfile::tempdir()?;
/// let airdrop = Local::open(dir.path())?;
/// let upload = Upload {
///     file_name: "issues.jsonl.gz",
///     content_type: "application/x-gzip",
///     body: Body::Batch(b"bytes"),
/// };
/// let id = airdrop.upload(upload)?;
/// airdrop.confirm(&id)?;
/// let message = SealedMessage {
///     key: "tracker/run-1/1".into(),
///     event_type: "EXTRACTION_DATA_DONE".into(),
///     body: format!(r#"{{"event_type":"EXTRACTION_DATA_DONE","event_data":{{"artifacts":[{{"id":"{id}"}}]}}}}"#),
/// };
/// airdrop.send(&message)?;
/// airdrop.send(&message)?; // the same key and bytes: the same message, sent again
/// assert_eq!(airdrop.messages()?.count(), 1);
/// assert_eq!(airdrop.confirmed()?.len(), 1);
/// assert_eq!(airdrop.artifact_bytes(&id)?, b"bytes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Local {
    dir: PathBuf,
    lock: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    confirmed: Lines,
    confirmed_ids: HashSet<String>,
    keys: Lines,
    spans: HashMap<String, Span>,
    messages: Lines,
    /// The number of this handle among those that have uploaded, once it has.
    uploader: Option<u64>,
    uploads: u64,
}

/// The place of a message's line, including its newline.
#[derive(Debug, Clone, Copy)]
struct Span {
    at: u64,
    bytes: u64,
}

/// A line of `message_keys.jsonl`.
#[derive(Serialize, Deserialize)]
struct KeyLine {
    key: String,
    at: u64,
    bytes: u64,
}

/// The parts of a message that are checked before it is accepted.
#[derive(Deserialize)]
struct Outline {
    event_type: String,
    event_data: Option<OutlineData>,
}

#[derive(Deserialize)]
struct OutlineData {
    artifacts: Option<Vec<OutlineArtifact>>,
}

#[derive(Deserialize)]
struct OutlineArtifact {
    id: String,
}

impl Local {
    /// Opens a directory, or creates it. Torn last lines are truncated, and the files of killed processes removed.
    ///
    /// # Errors
    /// `Io` if the disk fails; `NotALocal` if the files are inconsistent.
    ///
    /// # Durability
    /// When this returns `Ok`, the directory and everything that it reads from it survive power loss.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        for dir in [dir.clone(), dir.join("artifacts"), dir.join("incoming")] {
            create_dir(&dir)?;
        }
        let lock = lock_file(&dir.join("local.lock"))?;
        lock.lock()
            .map_err(|error| Error::io(format!("lock {}", dir.join("local.lock").display()), error))?;
        let opened: Result<State> = (|| {
            let mut state = State {
                confirmed: Lines::open(dir.join("confirmed.txt"))?,
                confirmed_ids: HashSet::new(),
                keys: Lines::open(dir.join("message_keys.jsonl"))?,
                spans: HashMap::new(),
                messages: Lines::open(dir.join("messages.jsonl"))?,
                uploader: None,
                uploads: 0,
            };
            sync_dir(&dir)?;
            sweep(&dir.join("incoming"))?;
            state.catch_up()?;
            Ok(state)
        })();
        // If unlocking fails, closing the file unlocks it.
        let _ = lock.unlock();
        Ok(Self { state: Mutex::new(opened?), dir, lock })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The accepted messages, in the order of acceptance, read from the disk one at a time.
    ///
    /// # Errors
    /// `Io` if the disk fails.
    pub fn messages(&self) -> Result<Messages> {
        self.messages_from(0)
    }

    /// The ids of the confirmed artifacts, in the order of confirmation.
    ///
    /// # Errors
    /// `Io` if the disk fails; `NotALocal` if a line is not an id.
    pub fn confirmed(&self) -> Result<Vec<ArtifactId>> {
        let path = self.dir.join("confirmed.txt");
        let text = fs::read(&path).map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        let whole = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        whole
            .map(|line| match artifact_name(line) {
                Some(id) => Ok(ArtifactId::new(id)?),
                None => Err(Error::NotALocal {
                    path: path.clone(),
                    reason: format!("{:?} is not an artifact id", String::from_utf8_lossy(line)),
                }),
            })
            .collect()
    }

    /// The ids of all uploads, confirmed or not, in alphabetical order.
    ///
    /// # Errors
    /// `Io` if the disk fails.
    pub fn artifacts(&self) -> Result<Vec<ArtifactId>> {
        let dir = self.dir.join("artifacts");
        let failed = |error| Error::io(format!("list {}", dir.display()), error);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(id) = artifact_name(name.as_encoded_bytes()) {
                ids.push(ArtifactId::new(id)?);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Where the bytes of an artifact are.
    ///
    /// # Errors
    /// `Invalid` if it is not the id of an artifact here.
    pub fn artifact_path(&self, artifact: &ArtifactId) -> Result<PathBuf> {
        self.uploaded(artifact.as_str()).ok_or_else(|| Error::Invalid {
            what: format!("the artifact id {:?}", artifact.as_str()),
            reason: format!("{} has no upload with this id", self.dir.display()),
        })
    }

    /// The bytes of an artifact, as they were uploaded.
    ///
    /// # Errors
    /// `Invalid` if it is not the id of an artifact here; `Io` if the disk fails.
    pub fn artifact_bytes(&self, artifact: &ArtifactId) -> Result<Vec<u8>> {
        let path = self.artifact_path(artifact)?;
        fs::read(&path).map_err(|error| Error::io(format!("read {}", path.display()), error))
    }

    /// Takes the directory's lock, and reads what others have added.
    fn hold(&self) -> Result<Held<'_>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join("local.lock");
        self.lock.lock().map_err(|error| Error::io(format!("lock {}", path.display()), error))?;
        let mut held = Held { state, lock: &self.lock };
        held.catch_up()?;
        Ok(held)
    }

    /// The path of an artifact, if it exists.
    fn uploaded(&self, id: &str) -> Option<PathBuf> {
        let path = self.dir.join("artifacts").join(artifact_name(id.as_bytes())?);
        path.is_file().then_some(path)
    }

    /// Replaces a file, or creates it.
    ///
    /// # Durability
    /// When this returns `Ok`, the new bytes survive power loss; a kill leaves the old ones or the new ones.
    fn replace(&self, _held: &Held<'_>, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let replaced = NamedTempFile::new_in(self.dir.join("incoming")).and_then(|mut new| {
            new.write_all(bytes)?;
            new.as_file().sync_all()?;
            new.persist(&path).map_err(|error| error.error)
        });
        replaced.map_err(|error| Error::io(format!("write {}", path.display()), error))?;
        sync_dir(&self.dir)
    }

    /// The messages from this byte of `messages.jsonl` on, at which a line begins.
    fn messages_from(&self, at: u64) -> Result<Messages> {
        let path = self.dir.join("messages.jsonl");
        let file = File::open(&path).and_then(|mut file| file.seek(SeekFrom::Start(at)).map(|_| file));
        let file = file.map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        Ok(Messages { path, reader: BufReader::new(file), at, over: false })
    }

    /// The number of this handle among those that upload: no other has had it or will have it.
    fn uploader(&self, held: &mut Held<'_>) -> Result<u64> {
        if let Some(uploader) = held.uploader {
            return Ok(uploader);
        }
        let path = self.dir.join("uploaders.txt");
        let before = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u64>().map_err(|error| Error::NotALocal {
                path,
                reason: format!("expected a number, found {text:?}: {error}"),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        let uploader = before.saturating_add(1);
        self.replace(held, "uploaders.txt", format!("{uploader}\n").as_bytes())?;
        held.uploader = Some(uploader);
        Ok(uploader)
    }

    /// A new file in `incoming/`, locked before it can be mistaken for one of a killed process.
    fn incoming(&self) -> Result<NamedTempFile> {
        let held = self.hold()?;
        let dir = self.dir.join("incoming");
        let file = NamedTempFile::new_in(&dir).and_then(|file| file.as_file().lock().map(|()| file));
        drop(held);
        file.map_err(|error| Error::io(format!("make a file in {}", dir.display()), error))
    }

    /// Returns an id that no other artifact of this directory has had or will have, for a later upload: see
    /// [`Local::upload_as`].
    ///
    /// # Errors
    /// `Io` if the disk fails; `NotALocal` if the files are inconsistent.
    pub fn prepare(&self) -> Result<ArtifactId> {
        let mut held = self.hold()?;
        let uploader = self.uploader(&mut held)?;
        loop {
            held.uploads += 1;
            let id = format!("artifact-{uploader:04}-{:06}", held.uploads);
            // It exists only if `uploaders.txt` was removed by hand.
            if self.uploaded(&id).is_none() {
                return Ok(ArtifactId::new(id)?);
            }
        }
    }

    /// Makes an unconfirmed artifact under an id from [`Local::prepare`].
    ///
    /// # Errors
    /// Those of [`Platform::upload`]; 409 if the artifact is there already, 400 if the id is not a possible artifact
    /// id.
    ///
    /// # Durability
    /// When this returns `Ok`, the bytes survive power loss; a kill before leaves no artifact.
    pub fn upload_as(&self, artifact: &ArtifactId, upload: Upload<'_>) -> Result<(), PlatformError> {
        self.place_upload(artifact, upload, false)
    }

    /// Like [`Local::upload_as`], but replaces an earlier upload, as a file store does.
    #[cfg(feature = "program")]
    pub(crate) fn upload_again(
        &self,
        artifact: &ArtifactId,
        upload: Upload<'_>,
    ) -> Result<(), PlatformError> {
        self.place_upload(artifact, upload, true)
    }

    fn place_upload(
        &self,
        artifact: &ArtifactId,
        upload: Upload<'_>,
        again: bool,
    ) -> Result<(), PlatformError> {
        let id = artifact.as_str();
        let Some(name) = artifact_name(id.as_bytes()) else {
            return refuse(400, format!("{id:?} is not an artifact id"));
        };
        let file = self.take(upload)?;
        let _held = self.hold().map_err(|error| unknown(&error))?;
        let dir = self.dir.join("artifacts");
        let path = dir.join(name);
        match if again { file.persist(path) } else { file.persist_noclobber(path) } {
            Ok(_) => sync_dir(&dir).map_err(|error| unknown(&error)),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                refuse(409, format!("artifact {id} was uploaded before"))
            }
            Err(error) => Err(unknown(&Error::io(format!("make {}", dir.join(name).display()), error.error))),
        }
    }

    /// Stores a message without a check: the artifacts that it names may be missing.
    #[cfg(feature = "program")]
    pub(crate) fn keep_message(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        let mut held = self.hold().map_err(|error| unknown(&error))?;
        let line = line_of(message);
        held.accept(&message.key, &line).map_err(|error| unknown(&error))
    }

    /// Like [`Local::keep_message`], under a new key if its own has a message already.
    #[cfg(feature = "program")]
    pub(crate) fn keep_message_beside(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        let mut held = self.hold().map_err(|error| unknown(&error))?;
        let line = line_of(message);
        let keys = (2_u64..).map(|number| format!("{} (message {number})", message.key));
        let free = keys.into_iter().find(|key| !held.spans.contains_key(key));
        held.accept(free.as_deref().unwrap_or(&message.key), &line).map_err(|error| unknown(&error))
    }

    /// Whether a message is stored under this key, and whether it is the same.
    #[cfg(feature = "program")]
    pub(crate) fn is_kept(&self, message: &SealedMessage) -> Result<Option<bool>> {
        let mut held = self.hold()?;
        let Some(span) = held.spans.get(&message.key).copied() else { return Ok(None) };
        Ok(Some(held.messages.bytes(span.at, span.bytes)? == line_of(message)))
    }

    /// The state last saved for a sync unit, if the directory serves several.
    ///
    /// # Errors
    /// Those of [`Platform::worker_state`]; 400 for an id that cannot be a file name.
    pub fn worker_state_of(&self, sync_unit: &str) -> Result<Option<String>, PlatformError> {
        self.saved_state(&state_file(sync_unit)?)
    }

    /// Saves JSON text for a sync unit, replacing the old.
    ///
    /// # Errors
    /// Those of [`Platform::save_worker_state`]; 400 for an id that cannot be a file name.
    ///
    /// # Durability
    /// When this returns `Ok`, the state survives power loss; a kill leaves the old one or the new one.
    pub fn save_worker_state_of(&self, sync_unit: &str, state: &str) -> Result<(), PlatformError> {
        self.save_state(&state_file(sync_unit)?, state)
    }

    fn saved_state(&self, file: &str) -> Result<Option<String>, PlatformError> {
        let path = self.dir.join(file);
        match fs::read_to_string(&path) {
            Ok(state) => Ok(Some(state)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unknown(&Error::io(format!("read {}", path.display()), error))),
        }
    }

    fn save_state(&self, file: &str, state: &str) -> Result<(), PlatformError> {
        if state.len() > WORKER_STATE_BYTES_MAX {
            return refuse(
                413,
                format!("the worker state is {} bytes, the limit is {WORKER_STATE_BYTES_MAX}", state.len()),
            );
        }
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(state) {
            return refuse(400, format!("the worker state is not JSON: {error}"));
        }
        let held = self.hold().map_err(|error| unknown(&error))?;
        self.replace(&held, file, state.as_bytes()).map_err(|error| unknown(&error))
    }

    /// Writes all bytes of an upload to a file in `incoming/`, durably.
    fn take(&self, upload: Upload<'_>) -> Result<NamedTempFile, PlatformError> {
        let Upload { file_name: name, mut body, .. } = upload;
        let (reader, length_bytes): (&mut dyn Read, _) = match &mut body {
            Body::Batch(bytes) => (bytes, None),
            Body::Stream { reader, length_bytes } => (reader, *length_bytes),
        };
        let limit = length_bytes.unwrap_or(UPLOAD_BYTES_MAX);
        if limit > UPLOAD_BYTES_MAX {
            return refuse(413, format!("{name} is {limit} bytes, the limit is {UPLOAD_BYTES_MAX}"));
        }
        let mut file = self.incoming().map_err(|error| unknown(&error))?;
        let mut found = 0_u64;
        let mut buffer = vec![0; COPY_BYTES];
        // If a source sends more than it declared, the rest is not read.
        while found <= limit {
            let part = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    buffer.get(..count).ok_or_else(|| io::Error::other("it read more than asked for"))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let part = part.map_err(|error| PlatformError::Retry {
                fate: Fate::NotApplied,
                after: None,
                reason: format!("the body of {name} cannot be read beyond byte {found}: {error}"),
            })?;
            found += part.len() as u64;
            let written = file.write_all(part);
            written
                .map_err(|error| unknown(&Error::io(format!("write {}", file.path().display()), error)))?;
        }
        match length_bytes {
            Some(declared) if found > declared => {
                return refuse(400, format!("{name} was declared to be {declared} bytes and has more"));
            }
            Some(declared) if found < declared => {
                return refuse(400, format!("{name} was declared to be {declared} bytes and has {found}"));
            }
            None if found > limit => {
                return refuse(413, format!("{name} is over the limit of {limit} bytes"));
            }
            _ => {}
        }
        let synced = file.as_file().sync_all();
        synced.map_err(|error| unknown(&Error::io(format!("sync {}", file.path().display()), error)))?;
        Ok(file)
    }
}

impl Platform for Local {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let artifact = self.prepare().map_err(|error| unknown(&error))?;
        self.upload_as(&artifact, upload)?;
        Ok(artifact)
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        let mut held = self.hold().map_err(|error| unknown(&error))?;
        let id = artifact.as_str();
        if held.confirmed_ids.contains(id) {
            return Ok(());
        }
        if self.uploaded(id).is_none() {
            return refuse(404, format!("artifact {id} was never uploaded"));
        }
        held.confirmed.add(format!("{id}\n").as_bytes()).map_err(|error| unknown(&error))?;
        held.confirmed_ids.insert(id.to_owned());
        Ok(())
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        let mut held = self.hold().map_err(|error| unknown(&error))?;
        let line = line_of(message);
        if let Some(span) = held.spans.get(&message.key).copied() {
            let accepted = held.messages.bytes(span.at, span.bytes).map_err(|error| unknown(&error))?;
            if accepted == line {
                return Ok(());
            }
            return refuse(409, format!("key {:?} was used before, with another message", message.key));
        }
        self.check(&held, message)?;
        held.accept(&message.key, &line).map_err(|error| unknown(&error))
    }

    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        match self.artifact_bytes(artifact) {
            Err(error @ Error::Invalid { .. }) => refuse(404, error.to_string()),
            bytes => bytes.map_err(|error| unknown(&error)),
        }
    }

    // No unit is named, so there is one state.
    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        let state = WorkerState::new(self.saved_state(STATE_FILE)?, self.saved_state(SCOPE_FILE)?);
        Ok((state != WorkerState::default()).then_some(state))
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        self.save_state(STATE_FILE, state)
    }

    fn create_blueprint(&self, mapping: &Value) -> Result<Option<String>, PlatformError> {
        let blueprint = mapping.get("starting_recipe_blueprint").and_then(Value::as_object);
        Ok(blueprint.filter(|blueprint| !blueprint.is_empty()).map(|_| "local-blueprint".to_owned()))
    }

    fn install_mapping(&self, mapping: &Value, blueprint: Option<&str>) -> Result<(), PlatformError> {
        let text = serde_json::json!({ "mapping": mapping, "blueprint": blueprint }).to_string();
        let held = self.hold().map_err(|error| unknown(&error))?;
        self.replace(&held, "domain_mapping.json", text.as_bytes()).map_err(|error| unknown(&error))
    }
}

impl Local {
    /// Refuses what the platform would refuse.
    fn check(&self, held: &State, message: &SealedMessage) -> Result<(), PlatformError> {
        let SealedMessage { key, event_type, body } = message;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return refuse(400, format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one {}", key.len()));
        }
        if body.len() > MESSAGE_BYTES_MAX {
            return refuse(
                413,
                format!("the message is {} bytes, the limit is {MESSAGE_BYTES_MAX}", body.len()),
            );
        }
        let outline: Outline = match serde_json::from_str(body) {
            Ok(outline) => outline,
            Err(error) if error.is_data() => {
                return refuse(400, format!("it is not a message: {error}"));
            }
            Err(error) => return refuse(400, format!("the message is not JSON: {error}")),
        };
        if outline.event_type != *event_type {
            return refuse(
                400,
                format!("the message has the event type {:?}, not {event_type:?}", outline.event_type),
            );
        }
        let confirms =
            events::answer_of(event_type).is_none_or(|(phase, _)| phase != Phase::ExternalSyncUnits);
        for OutlineArtifact { id } in outline.event_data.and_then(|data| data.artifacts).unwrap_or_default() {
            if self.uploaded(&id).is_none() {
                return refuse(400, format!("the message names artifact {id:?}, which was never uploaded"));
            }
            if confirms && !held.confirmed_ids.contains(&id) {
                return refuse(400, format!("the message names artifact {id}, which is not confirmed"));
            }
        }
        Ok(())
    }
}

impl State {
    /// Reads what other processes have added, including killed ones. It removes what does not count, and makes the
    /// rest durable.
    fn catch_up(&mut self) -> Result<()> {
        self.catch_up_confirmed()?;
        self.catch_up_messages()
    }

    fn catch_up_confirmed(&mut self) -> Result<()> {
        let text = self.confirmed.unread()?;
        let mut end = self.confirmed.end();
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            match line.strip_suffix(b"\n").and_then(artifact_name) {
                Some(id) => self.confirmed_ids.insert(id.to_owned()),
                None if lines.peek().is_none() => break,
                None => {
                    let line = String::from_utf8_lossy(line);
                    return Err(self
                        .confirmed
                        .damaged(format!("{:?} is not an artifact id", line.trim_end())));
                }
            };
            end += line.len() as u64;
        }
        self.confirmed.settle(end)
    }

    fn catch_up_messages(&mut self) -> Result<()> {
        let text = self.keys.unread()?;
        let length = self.messages.length()?;
        let mut keys_end = self.keys.end();
        let mut messages_end = self.messages.end();
        let mut torn_at = None;
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            let last = lines.peek().is_none();
            let whole =
                line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<KeyLine>(line).ok());
            let Some(KeyLine { key, at, bytes }) = whole else {
                if last {
                    break;
                }
                let line = String::from_utf8_lossy(line);
                return Err(self.keys.damaged(format!("{:?} is not a key and place", line.trim_end())));
            };
            let end = at.saturating_add(bytes);
            if at < messages_end || at > length || (end > length && !last) {
                return Err(self.messages.damaged(format!(
                    "it has {length} bytes, but by message_keys.jsonl the message {key:?} is at {at} to {end}: \
                     put the file back, or begin with an empty directory"
                )));
            }
            if last && (end > length || !is_message(&self.messages.bytes(at, bytes)?)) {
                torn_at = Some(at);
                break;
            }
            self.spans.insert(key, Span { at, bytes });
            keys_end += line.len() as u64;
            messages_end = end;
        }
        let messages_end = match torn_at {
            Some(at) => at,
            None if length > messages_end => self.messages.last_line_end(messages_end)?,
            None => messages_end,
        };
        // In this order: a torn line without its key could be taken for a message.
        self.messages.settle(messages_end)?;
        self.keys.settle(keys_end)
    }

    /// Adds a message: first its place, then its line.
    fn accept(&mut self, key: &str, line: &[u8]) -> Result<()> {
        let span = Span { at: self.messages.end(), bytes: line.len() as u64 };
        let intent = KeyLine { key: key.to_owned(), at: span.at, bytes: span.bytes };
        let mut intent = serde_json::to_vec(&intent).map_err(|error| Error::io("write a key", error))?;
        intent.push(b'\n');
        let before = self.keys.end();
        self.keys.add(&intent)?;
        if let Err(error) = self.messages.add(line) {
            self.keys.take_back(before);
            return Err(error);
        }
        self.spans.insert(key.to_owned(), span);
        Ok(())
    }
}

/// The state, with the directory's lock held.
#[derive(Debug)]
struct Held<'a> {
    state: MutexGuard<'a, State>,
    lock: &'a File,
}

impl Deref for Held<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // It fails only where locks do not work at all: then there was no lock.
        let _ = self.lock.unlock();
    }
}

/// The accepted messages of a [`Local`], one at a time. A line that is still being written is left out.
#[derive(Debug)]
pub struct Messages {
    path: PathBuf,
    reader: BufReader<File>,
    at: u64,
    over: bool,
}

impl Iterator for Messages {
    type Item = Result<Value>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let mut line = Vec::new();
        let read = self.reader.read_until(b'\n', &mut line);
        let message = match read {
            Ok(_) if !line.ends_with(b"\n") => None,
            Ok(_) => Some(serde_json::from_slice(&line).map_err(|error| Error::NotALocal {
                path: self.path.clone(),
                reason: format!("the line at byte {} is not a message: {error}", self.at),
            })),
            Err(error) => Some(Err(Error::io(format!("read {}", self.path.display()), error))),
        };
        self.at += line.len() as u64;
        self.over = !matches!(message, Some(Ok(_)));
        message
    }
}

/// A message as it is stored.
fn line_of(message: &SealedMessage) -> Vec<u8> {
    // A raw line break in JSON is outside of strings, where a space means the same.
    let mut line = message.body.replace(['\n', '\r'], " ").into_bytes();
    line.push(b'\n');
    line
}

/// An artifact id of this directory, or one that could be: it becomes a file name.
fn artifact_name(name: &[u8]) -> Option<&str> {
    let fits = (1..=255).contains(&name.len())
        && !name.starts_with(b".")
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    if fits { std::str::from_utf8(name).ok() } else { None }
}

/// The file of a sync unit's worker state. Every character except letters, digits, `-`, `_` and `.` is
/// percent-encoded, so no two units share a file.
fn state_file(sync_unit: &str) -> Result<String, PlatformError> {
    let mut name = "worker_state-".to_owned();
    for byte in sync_unit.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            name.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name.push_str(".json");
    if sync_unit.is_empty() || name.len() > 255 {
        return refuse(
            400,
            format!("a sync unit's id has 1 to about 200 bytes, this one {}", sync_unit.len()),
        );
    }
    Ok(name)
}

/// Whether these bytes are one whole line of JSON.
fn is_message(line: &[u8]) -> bool {
    line.strip_suffix(b"\n").is_some_and(|line| {
        !line.contains(&b'\n') && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
    })
}

fn refuse<T>(status: u16, reason: String) -> Result<T, PlatformError> {
    Err(PlatformError::Refused { status, reason })
}

/// After a disk error it is unknown what was written.
fn unknown(error: &Error) -> PlatformError {
    PlatformError::Retry { fate: Fate::Unknown, after: None, reason: chain(error) }
}

fn lock_file(path: &Path) -> Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    file.map_err(|error| Error::io(format!("open {}", path.display()), error))
}

/// Creates a directory and its parents, and makes their names durable.
fn create_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir(parent)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !dir.is_dir() => {
            Err(Error::io(format!("make the directory {}", dir.display()), error))
        }
        _ => sync_dir(parent.unwrap_or(Path::new("."))),
    }
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> Result<()> {
    // On other systems a directory cannot be opened, and a rename is durable by itself or not at all.
    if cfg!(unix) {
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| Error::io(format!("sync the directory {}", dir.display()), error))?;
    }
    Ok(())
}

/// Removes the files of killed processes. A live upload holds a lock on its file, and may remove the file meanwhile.
/// Call it with the directory's lock held.
fn sweep(incoming: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("sweep {}", incoming.display()), error);
    for entry in fs::read_dir(incoming).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match File::open(&path) {
            Ok(file) if file.try_lock().is_ok() => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            },
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}
