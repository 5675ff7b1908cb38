//! The promise over real HTTP with real processes: the worker of the synthetic extractor is killed with SIGKILL at
//! any moment, over and over, and given its event again, as the platform would; with a disk that survives it, and
//! without one.
//!
//! The first issues have attachments, so kills happen during their streams, too. The oracle reads the files of the
//! platform, and computes every record and every byte of an attachment itself.
//!
//! | variable | |
//! |---|---|
//! | `HIGHWATER_HTTP_ITEMS` | records of a sync; by default 60,000 with a disk and 300,000 without |
//! | `HIGHWATER_HTTP_ATTACHMENTS` | attachments of a sync; 500 by default |
//! | `HIGHWATER_KILL_SECONDS` | how long workers are killed; after that the sync finishes |
//! | `HIGHWATER_KILL_SEED` | the seed for the moments of the kills |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use highwater::{Phase, SystemClock};
use highwater_airdrop::{Local, SyncSettings};
use serde_json::{Value, json};

use super::served::{Files, Served, Verdict};
use super::support::{self, program};

/// Calls to the platform that a worker makes at once.
const LANES: u64 = 4;
/// Uploads after which a worker without a disk saves a checkpoint.
const UPLOADS_OF_A_CHECKPOINT: u64 = 20;
/// Attachments after whose upload such a worker saves one.
const FILES_OF_A_CHECKPOINT: u64 = 200;
/// Kills among the attachments of a sync, at least.
const KILLS_AMONG_FILES: u64 = 5;
const FILE_BYTES: u64 = 10_001;
/// A run of this size is a long one.
const LONG_ITEMS: u64 = 1_000_000;
/// How much a checkpoint may grow beyond twice its size, apart from the artifact ids.
const CHECKPOINT_SLACK_BYTES: u64 = 8_000;
/// What the newest 2,000 artifact ids of a run take in it: 4 bytes of each, as base64 within base64.
const USED_IDS_BYTES: u64 = 2_000 * 8;
const CHECKPOINT_BYTES_MAX: u64 = 100_000;
/// An artifact id and a newline.
const CONFIRMED_LINE_BYTES: u64 = "artifact-0001-000001\n".len() as u64;
/// Where a checkpoint is measured first.
const FIRST_MEASURED_AT: u64 = 100_000;
/// What memory may grow by in a run: caches and buffers fill, records must not stay.
const MEMORY_SLACK_KIB: u64 = 16 * 1024;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// What is synced, and by whom.
struct Setup {
    /// The disk survives the worker.
    store: bool,
    items: u64,
    files: Files,
    /// Attachments that are streamed at once.
    streams: u64,
    /// How long workers are killed.
    seconds: u64,
}

impl Setup {
    fn new(store: bool, items: u64, streams: u64, seconds: u64) -> Self {
        let count = number("HIGHWATER_HTTP_ATTACHMENTS", 500);
        let files = Files { count, bytes: FILE_BYTES, ..Files::default() };
        let seconds = if items >= LONG_ITEMS { u64::MAX } else { seconds };
        Self { store, items, files, streams, seconds: number("HIGHWATER_KILL_SECONDS", seconds) }
    }

    /// Records of a page, and of an artifact.
    fn batch_items(&self) -> u64 {
        if self.items > 100_000 { 2_000 } else { 500 }
    }

    fn is_long(&self) -> bool {
        self.items >= LONG_ITEMS
    }
}

/// One worker after the other, and what was seen of them.
struct Workers<'a> {
    dir: PathBuf,
    setup: &'a Setup,
    program: PathBuf,
    kills: u64,
    /// Those in the attachments phase.
    kills_among_files: u64,
    lives: u64,
    /// The most memory that a worker had, in KiB, before and after the first third of the records was confirmed.
    memory_kib: [u64; 2],
}

impl Workers<'_> {
    fn start(&self, event: &str) -> Child {
        let file = self.dir.join("event.json");
        fs::write(&file, event).unwrap();
        // Whatever dead workers left in their temporary folder is lost with them.
        let temporary = self.dir.join("temporary");
        let _ = fs::remove_dir_all(&temporary);
        fs::create_dir(&temporary).unwrap();
        let Setup { store, items, files, streams, .. } = self.setup;
        let batch = self.setup.batch_items().to_string();
        let budget = if self.setup.is_long() { "1s" } else { "700ms" };
        let mut command = Command::new(&self.program);
        command
            .args(["invoke", "--items", &items.to_string(), "--page-size", &batch])
            .args(["--attachments", &files.count.to_string(), "--attachment-bytes", &files.bytes.to_string()])
            .args(["--streams", &streams.to_string()])
            .args(["--batch-items", &batch, "--budget", budget, "--event"])
            .arg(file)
            .env("TMPDIR", temporary);
        if *store {
            command.arg("--store").arg(self.dir.join("disk"));
        }
        let log = fs::File::create(self.dir.join("worker.log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Lets a worker live until it ends, or for so long. `look` is called all the time.
    fn live(&mut self, event: &str, until: Option<Instant>, late: bool, mut look: impl FnMut()) {
        let mut child = self.start(event);
        self.lives += 1;
        let status = loop {
            if let Some(kib) = peak_memory_kib(child.id(), &self.program) {
                let most = &mut self.memory_kib[usize::from(late)];
                *most = kib.max(*most);
            }
            look();
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        self.kills += u64::from(status.code().is_none());
        let failed = status.code().is_some_and(|code| code != 0);
        assert!(!failed, "{}", fs::read_to_string(self.dir.join("worker.log")).unwrap());
    }
}

/// The most memory that a process had so far, if it runs this program. Not known on systems other than Linux, nor of a process
/// that is over. While a process is started it still has the memory of its parent, and the parent's name: on Linux, the
/// new name comes after the new memory (`begin_new_exec` in fs/exec.c).
fn peak_memory_kib(process: u32, program: &Path) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    // The kernel keeps 15 bytes of it.
    let name = field("Name:")?;
    if name.is_empty() || !program.file_name()?.to_str()?.starts_with(name) {
        return None;
    }
    field("VmHWM:")?.split_whitespace().next()?.parse().ok()
}

/// Records that are announced so far.
fn announced(local: &Local) -> u64 {
    let messages = local.messages().unwrap().map(Result::unwrap);
    messages
        .flat_map(|message| message["event_data"]["artifacts"].as_array().cloned().unwrap_or_default())
        .filter(|artifact| artifact["item_type"] == "issues")
        .map(|artifact| artifact["item_count"].as_u64().unwrap())
        .sum()
}

/// Syncs of all the records, one after the other, until the time of kills is over and a sync is done.
fn kill(setup: &Setup) {
    let Setup { store, items, streams, .. } = *setup;
    let seconds = Duration::from_secs(setup.seconds);
    let seed = number("HIGHWATER_KILL_SEED", fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(u64::from(store) + streams));
    let began = Instant::now();
    let (mut kills, mut among_files, mut lives, mut syncs) = (0, 0, 0, 0);
    while syncs == 0 || (!setup.is_long() && began.elapsed() < seconds / 2) {
        let scratch = tempfile::tempdir().unwrap();
        let workers = one_sync(scratch.path(), setup, &mut rng, |phase, among_files, rng| {
            let within = match phase {
                Phase::Attachments => *rng.choice(&[40_000, 80_000, 160_000, 320_000]).unwrap(),
                _ if setup.is_long() => 2_500_000,
                _ => *rng.choice(&[15_000, 60_000, 150_000, 450_000]).unwrap(),
            };
            // However slow the machine is, some fall among the attachments.
            let kills_on = match phase {
                Phase::Attachments => began.elapsed() < seconds || among_files < KILLS_AMONG_FILES,
                _ => began.elapsed() < seconds / 3 * 2,
            };
            kills_on.then(|| Instant::now() + Duration::from_micros(rng.u64(..within)))
        });
        kills += workers.kills;
        among_files += workers.kills_among_files;
        lives += workers.lives;
        syncs += 1;
    }
    println!(
        "store={store} streams={streams} kills={kills}, {among_files} among attachments, lives={lives} syncs={syncs} \
         records={items} a sync"
    );
    assert!(kills >= if setup.is_long() { 10 } else { 20 }, "{kills} kills prove little");
    assert!(among_files >= KILLS_AMONG_FILES, "{among_files} kills among attachments prove little");
}

fn one_sync<'a>(
    scratch: &Path,
    setup: &'a Setup,
    rng: &mut fastrand::Rng,
    mut until: impl FnMut(Phase, u64, &mut fastrand::Rng) -> Option<Instant>,
) -> Workers<'a> {
    let Setup { store, items, streams, .. } = *setup;
    let platform = scratch.join("platform");
    let served = Served::start(&program("highwater-airdrop"), &platform, &[]);
    let settings = SyncSettings::new("synthetic").sync_unit_id("import").id_seed("id").endpoint(&served.base);
    let (local, clock) = (Local::open(&platform).unwrap(), SystemClock::new());
    let (dir, program) = (scratch.to_path_buf(), program("synthetic-extractor"));
    let mut workers =
        Workers { dir, setup, program, kills: 0, kills_among_files: 0, lives: 0, memory_kib: [0, 0] };
    let run = local.begin_sync(&settings, &clock).unwrap();
    // Right after a delivery the checkpoint holds what it must, and not yet what comes next: the least that it is until
    // the next delivery.
    let state = platform.join("worker_state-import.json");
    let (mut first, mut last, mut smallest) = (None, 0, u64::MAX);
    let mut answered = 0;
    while let Some(event) = local.next_event(&settings, &clock).unwrap() {
        let so_far = announced(&local);
        let messages = local.messages().unwrap().count();
        if messages > answered {
            if smallest < u64::MAX && so_far >= FIRST_MEASURED_AT.min(items / 3) {
                first.get_or_insert(smallest);
                last = smallest;
            }
            (answered, smallest) = (messages, u64::MAX);
        }
        let confirmed = fs::metadata(platform.join("confirmed.txt")).unwrap().len() / CONFIRMED_LINE_BYTES;
        let (until, kills) = (until(event.phase, workers.kills_among_files, rng), workers.kills);
        workers.live(&event.json, until, confirmed * setup.batch_items() >= items / 3, || {
            // What holds a sealed message that waits for its delivery is not what is measured.
            if let Ok(about) = fs::metadata(&state) {
                smallest = smallest.min(about.len());
            }
        });
        workers.kills_among_files +=
            if event.phase == Phase::Attachments { workers.kills - kills } else { 0 };
        assert!(workers.lives < 100_000, "it comes to no end");
    }
    let verdict = Verdict::read_with(&platform, run.as_str(), items, &setup.files);
    let Workers { kills, kills_among_files, lives, memory_kib: [early, late], .. } = workers;
    println!(
        "store={store} streams={streams} kills={kills},{kills_among_files} lives={lives} memory={early},{late} KiB \
         checkpoint={first:?},{last} {verdict:?}"
    );
    assert!(verdict.is_clean() && verdict.announced == items, "{verdict:?}");
    assert_eq!(verdict.files, setup.files.count, "{verdict:?}");
    let files_max = kills_among_files * if store { streams } else { streams + FILES_OF_A_CHECKPOINT };
    assert!(verdict.unnamed_files <= files_max, "{verdict:?} after {kills_among_files} kills");
    let unnamed_max = kills * if store { LANES } else { LANES + UPLOADS_OF_A_CHECKPOINT };
    assert!(verdict.unnamed_uploads <= unnamed_max, "{verdict:?} after {kills} kills");
    if cfg!(target_os = "linux") {
        assert!(early > 0 && late <= early + MEMORY_SLACK_KIB, "memory grew from {early} to {late} KiB");
    }
    if !store {
        let first = first.expect("a checkpoint was measured");
        let end = fs::metadata(&state).unwrap().len();
        for bytes in [last, end] {
            let allowed = (2 * first + CHECKPOINT_SLACK_BYTES + USED_IDS_BYTES).min(CHECKPOINT_BYTES_MAX);
            assert!(bytes <= allowed, "a checkpoint grew from {first} to {bytes} bytes");
        }
    }
    drop(served);
    workers
}

fn items(default: u64) -> u64 {
    number("HIGHWATER_HTTP_ITEMS", default)
}

#[test]
fn killed_workers_whose_disk_survives_them_announce_everything_exactly_once() {
    kill(&Setup::new(true, items(60_000), 10, 12));
}

#[test]
fn killed_workers_without_a_disk_announce_everything_exactly_once() {
    kill(&Setup::new(false, items(300_000), 10, 15));
}

#[test]
fn killed_workers_with_one_stream_upload_no_more_than_one_attachment_again_for_each_kill() {
    kill(&Setup::new(true, 3_000, 1, 6));
}

fn artifacts(message: &mut Value) -> &mut Vec<Value> {
    message["event_data"]["artifacts"].as_array_mut().unwrap()
}

const ITEMS: u64 = 600;
const FILES: u64 = 5;

/// A small sync that nobody disturbs, for the oracle to look at: its folder, and its run.
fn small_sync(scratch: &Path) -> (PathBuf, String) {
    let platform = scratch.join("platform");
    let output = Command::new(program("highwater-airdrop"))
        .args(["sync", "--json", "--dir"])
        .arg(&platform)
        .arg("--")
        .arg(program("synthetic-extractor"))
        .args(["invoke", "--items", "600", "--page-size", "100", "--batch-items", "100"])
        .args(["--attachments", "5", "--attachment-bytes", "1000", "--event"])
        .env("TMPDIR", scratch)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", support::said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (platform, report["run"].as_str().unwrap().to_owned())
}

fn small_files(count: u64) -> Files {
    Files { count, bytes: 1000, ..Files::default() }
}

/// The check can fail.
#[test]
fn the_oracle_sees_what_is_lost_repeated_and_wrong() {
    let scratch = tempfile::tempdir().unwrap();
    let (platform, run) = small_sync(scratch.path());
    let clean = Verdict { announced: ITEMS, files: FILES, ..Verdict::default() };
    let read = |items: u64| Verdict::read_with(&platform, &run, items, &small_files(FILES));
    assert_eq!(read(ITEMS), clean);
    // One record fewer, or one more, than there was to be.
    assert_eq!(read(ITEMS + 1), Verdict { lost: 1, ..clean });
    assert_eq!(read(ITEMS - 1).wrong, 1);

    let path = platform.join("messages.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let doctored = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut messages: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        change(&mut messages);
        let lines: Vec<String> = messages.iter().map(Value::to_string).collect();
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        let verdict = read(ITEMS);
        assert!(!verdict.is_clean(), "{verdict:?}");
        verdict
    };
    let data = text.lines().position(|line| line.contains("EXTRACTION_DATA_DONE")).unwrap();
    let mut data_message: Value = serde_json::from_str(text.lines().nth(data).unwrap()).unwrap();
    let announced = artifacts(&mut data_message).clone();
    let of_issues = announced.iter().position(|artifact| artifact["item_type"] == "issues").unwrap();
    let lost = doctored(&|messages| drop(artifacts(&mut messages[data]).remove(of_issues)));
    let expected = Verdict {
        lost: 100,
        artifacts: 1,
        unnamed_uploads: 1,
        announced: ITEMS - 100,
        files: FILES,
        ..Verdict::default()
    };
    assert_eq!(lost, expected);
    let again = doctored(&|messages| {
        let first = artifacts(&mut messages[data])[of_issues].clone();
        artifacts(messages.last_mut().unwrap()).push(first);
    });
    assert_eq!(again, Verdict { repeated: 100, artifacts: 1, announced: ITEMS + 100, ..clean });
    let twice = doctored(&|messages| messages.push(messages[data].clone()));
    assert_eq!((twice.repeated, twice.events), (ITEMS + FILES, 1));
    let miscounted =
        doctored(&|messages| artifacts(&mut messages[data])[of_issues]["item_count"] = json!(99));
    assert_eq!(miscounted, Verdict { wrong: 1, ..clean });
    fs::write(&path, &text).unwrap();

    // The same ids under another content, and twice the same artifact's content under two ids.
    let ids: Vec<&str> = announced
        .iter()
        .filter(|artifact| artifact["item_type"] == "issues")
        .map(|artifact| artifact["id"].as_str().unwrap())
        .collect();
    let artifact = |id: &str| platform.join("artifacts").join(id);
    let (kept, other) = (fs::read(artifact(ids[0])).unwrap(), fs::read(artifact(ids[1])).unwrap());
    fs::write(artifact(ids[0]), &other).unwrap();
    assert_eq!(read(ITEMS), Verdict { lost: 100, repeated: 100, ..clean });
    let mut lines: Vec<Value> = support::lines(&kept);
    lines[7]["data"]["estimate"] = json!(21);
    fs::write(artifact(ids[0]), gzip(&lines)).unwrap();
    assert_eq!(read(ITEMS), Verdict { lost: 1, wrong: 1, ..clean });
    // A confirm that no message follows up.
    fs::write(artifact(ids[0]), &kept).unwrap();
    let confirmed = fs::read_to_string(platform.join("confirmed.txt")).unwrap();
    fs::write(platform.join("confirmed.txt"), format!("{confirmed}artifact-0001-000001\n")).unwrap();
    assert_eq!(read(ITEMS), Verdict { artifacts: 1, ..clean });
}

#[test]
fn the_oracle_sees_an_attachment_that_is_lost_repeated_or_not_what_it_was_to_be() {
    let scratch = tempfile::tempdir().unwrap();
    let (platform, run) = small_sync(scratch.path());
    let clean = Verdict { announced: ITEMS, files: FILES, ..Verdict::default() };
    let with = |files: &Files| Verdict::read_with(&platform, &run, ITEMS, files);
    let read = || with(&small_files(FILES));
    assert_eq!(read(), clean);
    // One more or fewer than there was to be, and one that was not to be had.
    assert_eq!(with(&small_files(FILES + 1)), Verdict { lost: 2, ..clean });
    assert_eq!(with(&small_files(FILES - 1)), Verdict { wrong: 2, ..clean });
    assert_eq!(with(&Files { gone: [3].into(), ..small_files(FILES) }), Verdict { wrong: 1, ..clean });
    let artifact = |id: &str| platform.join("artifacts").join(id);
    let messages = fs::read_to_string(platform.join("messages.jsonl")).unwrap();
    let mut message: Value = serde_json::from_str(messages.lines().last().unwrap()).unwrap();
    let said = artifacts(&mut message)[0]["id"].as_str().unwrap().to_owned();
    let kept = fs::read(artifact(&said)).unwrap();
    let lines: Vec<Value> = support::lines(&kept);
    // Another byte, in what was uploaded.
    let upload = artifact(lines[0]["id"]["devrev"].as_str().unwrap());
    let bytes = fs::read(&upload).unwrap();
    let mut other = bytes.clone();
    other[999] ^= 1;
    fs::write(&upload, &other).unwrap();
    assert_eq!(read(), Verdict { lost: 1, wrong: 1, ..clean });
    fs::write(&upload, &bytes).unwrap();
    // A line that is missing, one that is said twice, one of another attachment's bytes.
    fs::write(artifact(&said), gzip(&lines[1..])).unwrap();
    let expected = Verdict { lost: 1, wrong: 1, artifacts: 1, unnamed_files: 1, files: FILES - 1, ..clean };
    assert_eq!(read(), expected, "the count is wrong, too, and the artifact is confirmed for nothing");
    fs::write(artifact(&said), gzip(&[&lines[..], &lines[..1]].concat())).unwrap();
    let expected = Verdict { repeated: 1, wrong: 1, artifacts: 1, files: FILES + 1, ..clean };
    assert_eq!(read(), expected);
    let mut swapped = lines.clone();
    swapped[0]["id"]["devrev"] = lines[1]["id"]["devrev"].clone();
    swapped[1]["id"]["devrev"] = lines[0]["id"]["devrev"].clone();
    fs::write(artifact(&said), gzip(&swapped)).unwrap();
    assert_eq!(read(), Verdict { lost: 2, wrong: 2, ..clean });
    fs::write(artifact(&said), kept).unwrap();
    assert_eq!(read(), clean);
}

fn gzip(lines: &[Value]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for line in lines {
        std::io::Write::write_all(&mut encoder, format!("{line}\n").as_bytes()).unwrap();
    }
    encoder.finish().unwrap()
}
