//! A store is opened only if its file stays the same one, and nothing read from it is used before it is durable.

use std::fs;
use std::path::{Path, PathBuf};

use highwater::inspect::{Snapshot, check};
use highwater::testing::{CrashPoint, Fault, Image, Kept, Safeguard, SimDisk};
use highwater::{BoxError, Error, ErrorKind, Page, Record, Run, Store, VirtualClock};
use serde_json::json;
use tempfile::TempDir;

const UNIT: &str = "acme/tickets";

fn options() -> highwater::StoreOptions {
    let clock = VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap());
    Store::options().batch_items(2).cache_bytes(1024 * 1024).clock(clock)
}

/// Pages of two issues, so that each is a batch.
fn fetch(cursor: Option<u32>) -> Result<Page<u32>, BoxError> {
    let at = cursor.unwrap_or(0);
    let mut page = if at < 3 { Page::more(at + 1) } else { Page::last() };
    for record in 0..2 {
        page.push("issues", Record::new(format!("{at}-{record}"), &json!({}))?);
    }
    Ok(page)
}

fn work(run: &Run, batches: usize) -> highwater::Result<()> {
    for batch in run.batches("issues", fetch).take(batches) {
        let batch = batch?;
        let id = format!("artifact of {}", batch.key());
        batch.uploaded(&id)?;
        batch.acknowledge(id)?;
    }
    Ok(())
}

// --- what a killed owner left

/// What a look at an image shows, as text.
fn shown(image: &Image) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    fs::write(&path, image.to_bytes()).unwrap();
    let report = Snapshot::open(&path).unwrap().unit(UNIT, 10).unwrap();
    serde_json::to_string(&report).unwrap()
}

/// A first life is killed at every operation, the second opens what it left, and the power fails: how often that takes
/// back what the second life read.
fn read_and_lost(rule: Option<Safeguard>) -> (usize, usize) {
    let open =
        |disk: &SimDisk, rule| options().break_rule(rule).open_on(Box::new(disk.clone()), "state.redb");
    let new = SimDisk::new();
    drop(open(&new, None).unwrap());
    let start = new.image();
    let (mut killed, mut lost) = (0, 0);
    for position in 0.. {
        let disk = start.disk();
        disk.inject(Fault::Dies { position });
        let life = open(&disk, None).and_then(|store| work(&store.sync_unit(UNIT)?.begin()?, 3));
        if life.is_ok() && !disk.is_dead() {
            break;
        }
        killed += 1;
        let disk = disk.recording().killed_at(disk.position());
        let store = open(&disk, rule).unwrap();
        let read = shown(&disk.image());
        let recording = disk.recording();
        let after =
            recording.image(&CrashPoint { position: recording.end(), kept: Kept::Subset(0) }).unwrap();
        lost += usize::from(shown(&after.image) != read);
        drop(store);
    }
    (killed, lost)
}

#[test]
fn what_was_read_after_a_kill_is_still_there_after_a_power_failure() {
    let (killed, lost) = read_and_lost(None);
    assert!(killed > 30, "killed {killed} times");
    assert_eq!(lost, 0, "of {killed}");
}

#[test]
fn without_a_sync_at_open_it_is_not() {
    let (killed, lost) = read_and_lost(Some(Safeguard::DurableAtOpen));
    assert!(lost > 0, "killed {killed} times, and nothing that was read was lost");
}

// --- one file that stays

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self) -> Store {
        options().open(self.at("state.redb")).unwrap()
    }
}

/// What another program does to the file while it is open.
type Meddling = (&'static str, fn(&Path));

const MEDDLINGS: [Meddling; 5] = [
    ("deleted", |path| fs::remove_file(path).unwrap()),
    ("deleted and made anew", |path| {
        fs::remove_file(path).unwrap();
        drop(Store::open(path).unwrap());
    }),
    ("renamed over", |path| {
        let other = path.with_extension("other");
        drop(Store::open(&other).unwrap());
        fs::rename(other, path).unwrap();
    }),
    ("moved away", |path| fs::rename(path, path.with_extension("away")).unwrap()),
    ("its directory moved away", |path| {
        let directory = path.parent().unwrap();
        fs::rename(directory, directory.with_extension("away")).unwrap();
    }),
];

fn assert_stops(store: &Store, run: &Run, path: &Path, what: &str) {
    let expected = std::path::absolute(path).unwrap();
    let is_told = |error: &Error| {
        assert!(matches!(error, Error::Replaced { path } if *path == expected), "{what}: {error}");
        assert_eq!(error.kind(), ErrorKind::Fenced);
        let text = error.to_string();
        assert!(text.contains("deleted or replaced") && text.contains("stop this worker"), "{text}");
    };
    is_told(&work(run, 1).unwrap_err());
    is_told(&store.sync_unit(UNIT).unwrap().begin().unwrap_err());
    is_told(&store.sync_unit(UNIT).unwrap().abandon().unwrap_err());
}

#[test]
fn a_store_that_is_deleted_or_replaced_while_open_takes_no_change_and_says_so() {
    for (what, meddle) in MEDDLINGS {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let path = inner.join("state.redb");
        let store = options().open(&path).unwrap();
        let run = store.sync_unit(UNIT).unwrap().begin().unwrap();
        work(&run, 1).unwrap();
        meddle(&path);
        assert_stops(&store, &run, &path, what);
    }
}

#[test]
fn a_store_that_is_written_in_place_or_linked_to_twice_stays_the_same() {
    let place = Place::new();
    let store = place.open();
    let run = store.sync_unit(UNIT).unwrap().begin().unwrap();
    fs::hard_link(place.at("state.redb"), place.at("twin.redb")).unwrap();
    // Moved away and back again, it is the same file.
    fs::rename(place.at("state.redb"), place.at("away.redb")).unwrap();
    fs::rename(place.at("away.redb"), place.at("state.redb")).unwrap();
    work(&run, 2).unwrap();
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_link_that_is_turned_to_another_store_is_noticed() {
        let place = Place::new();
        drop(Store::open(place.at("one.redb")).unwrap());
        drop(Store::open(place.at("two.redb")).unwrap());
        symlink(place.at("one.redb"), place.at("state.redb")).unwrap();
        let store = place.open();
        let run = store.sync_unit(UNIT).unwrap().begin().unwrap();
        work(&run, 1).unwrap();
        fs::remove_file(place.at("state.redb")).unwrap();
        symlink(place.at("two.redb"), place.at("state.redb")).unwrap();
        assert_stops(&store, &run, &place.at("state.redb"), "a link");
    }

    /// Fails, instead of waiting for ever, if `look` does not come back.
    fn soon<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || drop(sender.send(look())));
        receiver.recv_timeout(Duration::from_secs(60)).expect("it waits for something")
    }

    #[test]
    fn anything_but_a_regular_file_is_refused_at_once_whoever_opens_it() {
        let place = Place::new();
        let [pipe, directory, socket] = ["pipe", "directory", "socket"].map(|name| place.at(name));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::create_dir(&directory).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        let link = place.at("link");
        symlink(&pipe, &link).unwrap();
        let irregular = "it is not a regular file";
        for (path, expected) in [
            (pipe, irregular),
            (link, irregular),
            (socket, irregular),
            (PathBuf::from("/dev/null"), irregular),
            (PathBuf::from("/dev/zero"), irregular),
            (directory, "it is a directory"),
        ] {
            let refusals = soon({
                let path = path.clone();
                move || [Store::open(&path).err(), Snapshot::open(&path).err(), check(&path).err()]
            });
            for refusal in refusals {
                let error = refusal.expect("it is not a store");
                let told = matches!(&error, Error::NotAStore { path: told, reason } if *told == path && reason == expected);
                assert!(told, "{}: {error}", path.display());
            }
        }
    }

    #[test]
    fn what_a_killed_creator_left_is_removed_and_a_pipe_of_that_name_is_left_alone() {
        let place = Place::new();
        let [left, pipe] = [".state.redb.new-abc", ".state.redb.new-def"].map(|name| place.at(name));
        fs::write(&left, b"half a store").unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let at = place.at("state.redb");
        drop(soon(move || Store::open(at).unwrap()));
        assert!(!left.exists() && pipe.exists());
    }

    #[test]
    fn a_link_to_a_regular_file_is_followed_and_one_that_leads_nowhere_is_an_error() {
        let place = Place::new();
        symlink(place.at("nowhere"), place.at("state.redb")).unwrap();
        let error = Store::open(place.at("state.redb")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(!place.at("nowhere").exists());
        drop(Store::open(place.at("elsewhere.redb")).unwrap());
        fs::remove_file(place.at("state.redb")).unwrap();
        symlink("elsewhere.redb", place.at("state.redb")).unwrap();
        drop(place.open().sync_unit(UNIT).unwrap().begin().unwrap());
        assert_eq!(Snapshot::open(place.at("elsewhere.redb")).unwrap().units(1).count(), 1);
    }
}
