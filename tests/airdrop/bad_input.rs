//! Invalid input is refused by name, with the kind of error that tells what to do, and the store stays unchanged.
//! (Invalid events are in `wire` and `conversation`.)

use std::error::Error as _;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::world::{Source, World, all_of, event, page_of, paged};
use highwater::airdrop::{Context, Extractor, Listing, OutcomeKind, SourceError};
use highwater::testing::{DiskOperation, Fault, SimDisk};
use highwater::{
    Clock, Error, ErrorKind, Level, Page, Record, Run, Store, SystemClock, VirtualClock, limits,
};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde_json::{Value, json};
use tempfile::TempDir;

const UNIT: &str = "acme/tickets";

/// A directory with a store that has a run in progress: an acknowledged batch, an open one, lines that wait.
fn store_at_work() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let store = Store::options().batch_items(4).open(&path).unwrap();
    let run = store.sync_unit(UNIT).unwrap().begin().unwrap();
    let fetch = |_: Option<u32>| -> Result<Page<u32>, Error> { Ok(page_of("issues", 0, 2, 10)) };
    let mut batches = run.batches("issues", fetch);
    batches.next().unwrap().unwrap().acknowledge("artifact-1").unwrap();
    drop(batches);
    (dir, path)
}

/// Everything that is still to come of the run at work, by what tells records apart.
fn still_to_come(store: &Store) -> Vec<String> {
    let run = store.sync_unit(UNIT).unwrap().begin().unwrap();
    assert!(run.resumed());
    let mut records = Vec::new();
    let fetch = |cursor: Option<u32>| -> Result<Page<u32>, Error> {
        assert_eq!(cursor, Some(1));
        Ok(Page::last())
    };
    for batch in run.batches("issues", fetch) {
        records.extend(crate::support::lines(&batch.unwrap().bytes().unwrap()).iter().map(crate::world::is));
    }
    records
}

fn names(error: &Error, path: &Path) -> bool {
    error.to_string().contains(&path.display().to_string())
}

const META: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("meta");

/// Writes the row that tells the format, as another version of this crate would.
fn put_format(path: &Path, version: u8, body: &[u8]) {
    let mut crc = flate2::Crc::new();
    crc.update(&[version]);
    crc.update(body);
    let row = [&[version][..], &crc.sum().to_le_bytes(), body].concat();
    let db = Database::open(path).unwrap();
    let change = db.begin_write().unwrap();
    change.open_table(META).unwrap().insert(&b"format"[..], row.as_slice()).unwrap();
    change.commit().unwrap();
}

#[test]
fn a_store_of_a_newer_format_is_refused_politely_and_left_alone() {
    let (_dir, path) = store_at_work();
    // A newer format of the file, and a newer version of the row that tells it.
    for (version, body, newer) in [(1, &[3, 2][..], (3, 2)), (2, &[9, 9, 9][..], (2, 1))] {
        put_format(&path, version, body);
        let error = Store::open(&path).unwrap_err();
        assert!(
            matches!(&error, Error::NewerFormat { found, supported, .. } if (*found, *supported) == newer),
            "{error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(names(&error, &path) && error.to_string().contains("upgrade highwater"), "{error}");
        let db = Database::open(&path).unwrap();
        let view = db.begin_read().unwrap();
        let row = view.open_table(META).unwrap().get(&b"format"[..]).unwrap().unwrap().value().to_vec();
        assert_eq!((row[0], &row[5..]), (version, body), "it is as it was");
    }
    put_format(&path, 1, &[1, 2]);
    assert_eq!(still_to_come(&Store::open(&path).unwrap()), all_of("issues", 1, 10)[4..]);
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let texts: [(&[u8], &str); 4] = [
        (b"", "it is empty; remove it to start over"),
        (b"redb", "it does not start as a redb file does"),
        (b"SQLite format 3\0", "it does not start as a redb file does"),
        (&[b'x'; 10_000], "it does not start as a redb file does"),
    ];
    for (bytes, reason) in texts {
        std::fs::write(&path, bytes).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, Error::NotAStore { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.to_string(), format!("{} is not a highwater store: {reason}", path.display()));
        assert!(std::fs::read(&path).unwrap() == bytes, "it is as it was");
    }
    // A database of somebody else's.
    std::fs::remove_file(&path).unwrap();
    let theirs = TableDefinition::<&str, u64>::new("theirs");
    {
        let db = Database::create(&path).unwrap();
        let change = db.begin_write().unwrap();
        change.open_table(theirs).unwrap().insert("a", 1).unwrap();
        change.commit().unwrap();
    }
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, Error::NotAStore { .. } | Error::Corrupt { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(names(&error, &path), "{error}");
    let db = Database::open(&path).unwrap();
    let view = db.begin_read().unwrap();
    assert_eq!(view.list_tables().unwrap().count(), 1, "no table of ours was made in it");
    assert_eq!(view.open_table(theirs).unwrap().get("a").unwrap().unwrap().value(), 1);
}

#[test]
fn a_truncated_store_is_an_error_at_any_length_and_left_alone() {
    let (_dir, path) = store_at_work();
    let whole = std::fs::read(&path).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut lengths: Vec<usize> = (0..40).map(|_| rng.usize(1..whole.len())).collect();
    lengths.extend((0..20).map(|pages| pages * 4096 + 9).filter(|length| *length < whole.len()));
    lengths.extend([1, 8, 9, 10, 320, 511, 512, 4095, 4096, whole.len() - 4096, whole.len() - 1]);
    for length in lengths {
        std::fs::write(&path, &whole[..length]).unwrap();
        let Err(error) = Store::open(&path) else { panic!("opened at {length} of {} bytes", whole.len()) };
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error:?}");
        assert!(names(&error, &path), "{error}");
        assert!(std::fs::read(&path).unwrap() == whole[..length], "changed at {length} bytes");
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(still_to_come(&Store::open(&path).unwrap()), all_of("issues", 1, 10)[4..]);
}

#[test]
fn a_path_where_no_file_can_be_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    // What stands there and is no file is not mended by mending the disk.
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::NotAStore { .. }) && names(&error, dir.path()), "{error:?}");
    let mut paths = vec![dir.path().join("no/such/directory"), file.join("below")];
    paths.push("".into());
    paths.push(dir.path().join("ends with a slash/"));
    #[cfg(unix)]
    {
        // A dangling link was mistaken for a new store that another process was creating, over and over.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        paths.push(link);
    }
    for path in paths {
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{}: {error:?}", path.display());
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(names(&error, &path) && error.source().is_some(), "{error}");
    }
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left.first().unwrap(), "file", "nothing was left behind: {left:?}");
}

const HOLDER: &str = "HIGHWATER_TEST_HOLDS";

/// Not a test of its own: another process that holds a store open.
#[test]
fn holder_of_a_store() {
    let Ok(path) = std::env::var(HOLDER) else { return };
    let _store = Store::open(path).unwrap();
    println!("held");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_store_that_is_open_elsewhere_is_in_use_until_it_is_let_go_of() {
    let (_dir, path) = store_at_work();
    let assert_in_use = |error: Error| {
        assert!(matches!(&error, Error::InUse { path: of } if *of == path), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(names(&error, &path), "{error}");
    };
    // In this process.
    let store = Store::open(&path).unwrap();
    assert_in_use(Store::open(&path).unwrap_err());
    drop(store);
    // In another one.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bad_input::holder_of_a_store", "--nocapture"])
        .env(HOLDER, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("held")));
    assert_in_use(Store::open(&path).unwrap_err());
    let clock = VirtualClock::at(SystemClock::new().now());
    let wait = Duration::from_secs(30);
    assert_in_use(Store::options().clock(clock.clone()).wait(wait).open(&path).unwrap_err());
    assert!(
        clock.elapsed() >= wait && clock.elapsed() < wait + Duration::from_secs(1),
        "it waits for so long"
    );
    // Let go of while somebody waits.
    let waits = {
        let path = path.clone();
        std::thread::spawn(move || Store::options().wait(Duration::from_secs(60)).open(path))
    };
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(still_to_come(&waits.join().unwrap().unwrap()), all_of("issues", 1, 10)[4..]);
}

fn open(disk: &SimDisk, batch_items: u32) -> Store {
    let options = Store::options().batch_items(batch_items).level(Level::new(0).unwrap());
    let clock = VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap());
    options.cache_bytes(1024 * 1024).clock(clock).open_on(Box::new(disk.clone()), "state.redb").unwrap()
}

/// A second look, at a copy: the cursor of the stream, what was staged and the value that goes with it.
fn look(disk: &SimDisk) -> (Option<u32>, Vec<Value>, Option<u32>) {
    let run = open(&disk.image().disk(), 1000).sync_unit(UNIT).unwrap().begin().unwrap();
    let mut asked = None;
    let fetch = |cursor: Option<u32>| -> Result<Page<u32>, Error> {
        asked = cursor;
        Ok(Page::last())
    };
    let batches: Vec<_> = run.batches("issues", fetch).map(Result::unwrap).collect();
    let records = batches.iter().flat_map(|batch| crate::support::lines(&batch.bytes().unwrap())).collect();
    (asked, records, run.value("position").unwrap())
}

/// A run on a simulated disk, one page of whose stream is staged; page 1 is next.
fn at_page_1() -> (SimDisk, Run) {
    let disk = SimDisk::new();
    let run = open(&disk, 4).sync_unit(UNIT).unwrap().begin().unwrap();
    let fetch = |_: Option<u32>| -> Result<Page<u32>, Error> {
        Ok(page_of("issues", 0, 3, 10).value("position", &0_u32))
    };
    assert!(run.batches("issues", fetch).next().unwrap().is_ok());
    (disk, run)
}

/// A page that cannot be stored is refused with an error that names the cause; nothing of it is stored, and the run
/// goes on.
fn refused(what: &str, spoil: impl Fn(Page<u32>) -> Page<u32>) -> Error {
    let (disk, run) = at_page_1();
    let before = look(&disk);
    let fetch = |cursor: Option<u32>| -> Result<Page<u32>, Error> {
        assert_eq!(cursor, Some(1));
        Ok(spoil(page_of("issues", 1, 3, 10).value("position", &1_u32)))
    };
    let error = run.batches("issues", fetch).find_map(Result::err).expect(what);
    assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {error:?}");
    assert!(error.to_string().contains(what), "{what}: {error}");
    assert_eq!(look(&disk), before, "{what}: something of it was stored");
    let mended =
        |cursor: Option<u32>| -> Result<Page<u32>, Error> { Ok(page_of("issues", cursor.unwrap(), 3, 10)) };
    for batch in run.batches("issues", mended) {
        let batch = batch.unwrap();
        let id = batch.key().to_string();
        batch.acknowledge(id).unwrap();
    }
    run.finish().unwrap();
    error
}

#[test]
fn an_id_over_its_limit_or_that_cannot_be_one_is_refused_by_name() {
    let store = open(&SimDisk::new(), 4);
    let fits = "\u{e9}".repeat(limits::ID_BYTES_MAX / 2);
    let long = format!("{fits}x");
    assert!(store.sync_unit(&fits).is_ok());
    for (id, reason) in [
        (long.as_str(), "is 513 bytes, over the limit of 512"),
        ("", "must not be empty"),
        ("a\u{0}b", "must not contain control characters"),
        ("@external-sync-units/x", "are reserved"),
    ] {
        let error = store.sync_unit(id).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. } | Error::Invalid { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains("the sync unit id") && text.contains(reason), "{text}");
    }
    let record = || Record::new("1", &json!({})).unwrap();
    refused("the item type", |page| page.record(&long, record()));
    refused("the item type \"a/b\"", |page| page.record("a/b", record()));
    refused("the item type \"\"", |page| page.record("", record()));
    refused("the value key", |page| page.value(&long, &1));
    refused("the value key \"a\\n\"", |page| page.without_value("a\n"));
    let (disk, run) = at_page_1();
    let before = look(&disk);
    let nothing = |_: Option<u32>| -> Result<Page<u32>, Error> { panic!("nothing is to be fetched") };
    for stream in [long.as_str(), "", "a\tb"] {
        let error = run.batches(stream, nothing).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("the stream name"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let batch = run.batches("issues", nothing).next().unwrap().unwrap();
    for artifact in [long.as_str(), "", "a\nb"] {
        let error = batch.uploaded(artifact).unwrap_err();
        assert!(error.to_string().contains("the artifact id"), "{error}");
        assert_eq!(batch.artifact_id(), None);
    }
    batch.uploaded("artifact-1").unwrap();
    let error = batch.uploaded("artifact-2").unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains("uploaded as artifact-1"));
    let error = batch.acknowledge("artifact-2").unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains("uploaded as artifact-1"));
    assert_eq!(look(&disk), before);
}

#[test]
fn a_cursor_a_bookmark_or_a_value_over_its_limit_is_refused_by_name() {
    // As JSON it has two quotes.
    let fits = |limit: usize| "x".repeat(limit - 2);
    let over = |limit: usize| "x".repeat(limit - 1);
    let (cursor_max, value_max) = (limits::CURSOR_BYTES_MAX, limits::VALUE_BYTES_MAX);
    let error = refused("the bookmark is 65537 bytes, over the limit of 65536", |page| {
        page.bookmark(&over(cursor_max))
    });
    let sizes = (65_537, 65_536, "bytes");
    assert!(matches!(&error, Error::TooLarge { found, limit, unit, .. } if (*found, *limit, *unit) == sizes));
    refused("the value big is 65537 bytes, over the limit of 65536", |page| {
        page.value("big", &over(value_max))
    });
    // What JSON cannot say.
    let odd = std::collections::BTreeMap::from([(vec![1_u8], 1)]);
    refused("the value odd is not allowed", |page| page.value("odd", &odd));
    refused("the bookmark is not allowed", |page| page.bookmark(&odd));

    let disk = SimDisk::new();
    let run = open(&disk, 4).sync_unit(UNIT).unwrap().begin().unwrap();
    let fetch = |cursor: Option<String>| -> Result<Page<String>, Error> {
        Ok(match cursor {
            None => Page::more(fits(cursor_max)).bookmark(&fits(cursor_max)).value("big", &fits(value_max)),
            Some(_) => Page::more(over(cursor_max)),
        })
    };
    let error = run.batches("issues", fetch).next().unwrap().unwrap_err();
    assert!(error.to_string().contains("the cursor of stream issues is 65537 bytes"), "{error}");
    assert_eq!(run.value::<String>("big").unwrap(), Some(fits(value_max)), "up to its limit it is stored");
    let error = run.value::<u32>("big").unwrap_err();
    assert_eq!(error.to_string(), format!("the value big of {UNIT} does not have the requested type"));
    assert_eq!((error.kind(), error.source().is_some()), (ErrorKind::Invalid, true));
    let last = |cursor: Option<String>| -> Result<Page<String>, Error> {
        assert_eq!(cursor, Some(fits(cursor_max)));
        Ok(Page::last())
    };
    assert!(run.batches("issues", last).next().is_none());
    run.finish().unwrap();
}

/// A cursor of a later version of an extractor.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct NewCursor {
    #[allow(dead_code)]
    page: u32,
}

/// A later version of an extractor, with another cursor type.
struct Newer;

impl Extractor for Newer {
    type Cursor = NewCursor;
    fn external_sync_units(
        &self,
        _: &Context,
    ) -> Result<Vec<highwater::airdrop::ExternalSyncUnit>, SourceError> {
        unreachable!()
    }
    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        unreachable!()
    }
    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }
    fn page(&self, _: &Context, _: &Listing, _: Option<NewCursor>) -> Result<Page<NewCursor>, SourceError> {
        panic!("nothing is to be fetched")
    }
}

#[test]
fn a_cursor_that_no_longer_decodes_is_refused_by_name_and_stays() {
    let (disk, run) = at_page_1();
    let before = look(&disk);
    let fetch =
        |_: Option<NewCursor>| -> Result<Page<NewCursor>, Error> { panic!("nothing is to be fetched") };
    let error = run.batches("issues", fetch).find_map(Result::err).unwrap();
    assert!(matches!(&error, Error::Cursor { stream, cursor, .. } if stream == "issues" && cursor == "1"));
    assert_eq!((error.kind(), error.source().is_some()), (ErrorKind::Invalid, true));
    let text = error.to_string();
    assert!(text.starts_with("the cursor of stream issues of acme/tickets does not decode: 1"), "{text}");
    assert_eq!(look(&disk), before);

    // The same in an invocation: the platform is told, and an extractor that can read it goes on.
    let mut world = World::new(5);
    world.serve = world.serve.budget(Duration::ZERO);
    world.serve(&mut paged(2, 5), &event("EXTRACTION_DATA_START", "run", "1")).unwrap();
    let next = event("EXTRACTION_DATA_CONTINUE", "run", "2");
    let outcome = world.serve.serve(&world.store, &world.airdrop, &Newer, &next).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    assert!(world.airdrop.last().error().contains("the cursor of stream issues of unit does not decode: 1"));
    let outcome = world.serve(&mut paged(2, 5), &event("EXTRACTION_DATA_CONTINUE", "run", "3")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Done);
    assert_eq!(world.airdrop.announced("run"), all_of("issues", 2, 5));
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source said {0}")]
struct TheirError(u16);

#[test]
fn a_closure_that_fails_or_panics_stores_nothing_and_its_own_error_is_the_source() {
    let (disk, run) = at_page_1();
    let before = look(&disk);
    let fails = |_: Option<u32>| -> Result<Page<u32>, TheirError> { Err(TheirError(503)) };
    let mut batches = run.batches("issues", fails);
    let error = batches.find_map(Result::err).unwrap();
    assert!(batches.next().is_none(), "after an error it yields no more");
    assert!(matches!(&error, Error::Fetch { stream, .. } if stream == "issues"), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Fetch);
    assert_eq!(error.to_string(), "fetching a page of stream issues of acme/tickets failed");
    assert_eq!(error.source().unwrap().downcast_ref(), Some(&TheirError(503)), "intact");
    assert_eq!(look(&disk), before);

    let panics = |_: Option<u32>| -> Result<Page<u32>, TheirError> { panic!("a bug of theirs") };
    let unwound = catch_unwind(AssertUnwindSafe(|| run.batches("issues", panics).for_each(drop)));
    assert_eq!(*unwound.unwrap_err().downcast::<&str>().unwrap(), "a bug of theirs");
    assert_eq!(look(&disk), before);
    // No transaction is left open: the same run goes on.
    let mended =
        |cursor: Option<u32>| -> Result<Page<u32>, Error> { Ok(page_of("issues", cursor.unwrap(), 3, 10)) };
    for batch in run.batches("issues", mended) {
        let batch = batch.unwrap();
        let id = batch.key().to_string();
        batch.acknowledge(id).unwrap();
    }
    run.finish().unwrap();
}

#[test]
fn a_record_that_is_no_json_object_is_refused_by_name() {
    let refusals = [
        (Record::new("ISSUE-1", &5), "record ISSUE-1 cannot be written: expected a JSON object, found 5"),
        (Record::new("ISSUE-1", &"text"), "expected a JSON object, found \"text\""),
        (Record::new("ISSUE-1", &[1, 2]), "expected a JSON object, found [1,2]"),
        (Record::new("ISSUE-1", &None::<u8>), "expected a JSON object, found null"),
        (Record::new("ISSUE-1", &std::collections::BTreeMap::from([(vec![1_u8], 1)])), "record ISSUE-1"),
        (Record::flat(&5), "record (flat) cannot be written: expected a JSON object"),
        (Record::from_raw("ISSUE-1", "{"), "record ISSUE-1 cannot be written: EOF"),
        (Record::from_raw("ISSUE-1", "{}{}"), "trailing characters"),
        (Record::from_raw("ISSUE-1", ""), "EOF"),
        (Record::from_raw("ISSUE-1", "{\"a\":\"on two\nlines\"}"), "control character"),
        (Record::from_raw("ISSUE-1", " [1]"), "expected a JSON object, found [1]"),
        (Record::flat_raw("nonsense"), "record (flat) cannot be written"),
        (Record::new("", &json!({})), "an id has 1 to 512 bytes, this one 0"),
        (Record::from_raw("x".repeat(513), "{}"), "an id has 1 to 512 bytes, this one 513"),
    ];
    for (record, text) in refusals {
        let error = record.unwrap_err();
        assert!(matches!(error, Error::Record { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(text) && error.to_string().len() < 300, "{error}");
    }
}

#[test]
fn raw_json_on_several_lines_is_one_line_and_says_the_same() {
    let raw = "\r\n{\n \"text\": \"a\\nb \u{2028} \\u000a\",\r\n\t\"list\": [\n1.10,\n2e3\n]\n}\n\n";
    let disk = SimDisk::new();
    let run = open(&disk, 10).sync_unit(UNIT).unwrap().begin().unwrap();
    let fetch = |_: Option<u32>| -> Result<Page<u32>, Error> {
        let odd = Record::from_raw("an \"id\"\non two lines", raw)?.operation("cre\nated");
        Ok(Page::last().record("issues", odd).record("flat", Record::flat_raw(raw)?))
    };
    let batches: Vec<_> = run.batches("issues", fetch).map(Result::unwrap).collect();
    let said: Value = serde_json::from_str(raw).unwrap();
    let mut read = Vec::new();
    for batch in &batches {
        assert_eq!(batch.items(), 1);
        read.extend(crate::support::lines(&batch.bytes().unwrap()));
    }
    read.sort_by_key(|line| line.get("id").is_none());
    let id = "an \"id\"\non two lines";
    assert_eq!(read, [json!({ "id": id, "operation": "cre\nated", "data": said }), said]);
}

#[test]
fn a_record_over_the_size_of_a_batch_is_refused_by_name() {
    let limit = usize::try_from(limits::BATCH_BYTES_MAX).unwrap();
    let object_of = |bytes: usize| format!("{{\"x\":\"{}\"}}", "y".repeat(bytes - 8));
    let error = Record::from_raw("BIG-1", &object_of(limit + 1)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("record BIG-1") && text.contains("is 67108865 bytes, over the limit of 67108864"),
        "{text}"
    );
    // Just under it, but not with its id and all.
    let big = Record::from_raw("BIG-1", &object_of(limit)).unwrap();
    let error = refused("record BIG-1 is 67108", |page| page.record("issues", big.clone()));
    assert!(matches!(error, Error::TooLarge { limit: limits::BATCH_BYTES_MAX, .. }), "{error:?}");
}

#[test]
fn a_full_or_failing_disk_is_an_error_that_names_the_store_and_loses_nothing() {
    let mut faults: Vec<Fault> = (0..60).map(|writes| Fault::FullAfter { writes }).collect();
    faults.extend((0..60).step_by(5).map(|after| Fault::Fails { operation: DiskOperation::Sync, after }));
    faults.extend((0..60).step_by(7).map(|after| Fault::Fails { operation: DiskOperation::Write, after }));
    faults.push(Fault::FullAt { bytes: 1_700_000 });
    let mut failed = 0;
    for fault in faults {
        let mut world = World::new(5);
        // What comes of it is more than what the file has room for already.
        let big = |stream: &str, at: u32| {
            let filler = "z".repeat(20_000);
            (0..8).fold(if at < 5 { Page::more(at + 1) } else { Page::last() }, |page, item| {
                let is = format!("{stream}-{at}-{item}");
                page.record(stream, Record::new(is.clone(), &json!({ "is": is, "filler": filler })).unwrap())
            })
        };
        let source = || {
            Source::new(move |_: &Context, stream: &str, cursor: Option<u32>| {
                Ok(big(stream, cursor.unwrap_or(0)))
            })
        };
        world.disk.inject(fault.clone());
        let start = event("EXTRACTION_DATA_START", "run", "1");
        if let Err(error) = world.serve(&mut source(), &start) {
            failed += 1;
            assert!(matches!(error, Error::Io { .. }), "{fault:?}: {error:?}");
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.to_string().contains("the store state.redb"), "{error}");
            let cause = error.source().unwrap().to_string();
            assert!(cause.contains("simulated") || cause.contains("open the store again"), "{cause}");
        }
        world.disk.heal();
        world.restart();
        assert_eq!(world.serve(&mut source(), &start).unwrap().kind, OutcomeKind::Done, "{fault:?}");
        assert_eq!(world.airdrop.announced("run").len(), 48, "{fault:?}");
        assert_eq!(world.airdrop.confirmed(), world.airdrop.named());
    }
    println!("{failed} invocations failed");
    assert!(failed > 60, "{failed}");
}

const LIMITED: &str = "HIGHWATER_TEST_LIMITED";

/// Not a test, but a process for one: its files cannot grow beyond a limit.
#[test]
fn writer_of_a_limited_file() {
    let Ok(path) = std::env::var(LIMITED) else { return };
    let run = Store::open(path).unwrap().sync_unit(UNIT).unwrap().begin().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let fetch = |cursor: Option<u32>| -> Result<Page<u32>, Error> {
        let noise: String = (0..100_000).map(|_| rng.alphanumeric()).collect();
        let at = cursor.unwrap_or(0);
        let record = Record::new(format!("{at}"), &json!({ "is": format!("{at}"), "noise": noise }))?;
        // Each page that is asked for proves that the one before is there.
        println!("staged {at}");
        Ok(Page::more(at + 1).record("issues", record))
    };
    let error = run.batches("issues", fetch).find_map(Result::err).unwrap();
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    println!("failed: {error}: {}", error.source().unwrap());
}

#[test]
#[cfg(unix)]
fn a_file_that_can_grow_no_more_is_an_error_and_the_next_process_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    drop(Store::open(&path).unwrap());
    let child = Command::new("sh")
        .args([
            "-c",
            r#"trap "" XFSZ; ulimit -f 6000; exec "$0" --exact bad_input::writer_of_a_limited_file --nocapture"#,
        ])
        .arg(std::env::current_exe().unwrap())
        .env(LIMITED, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains(&format!("the store {}", path.display())), "{said}");
    let staged = said.matches("staged ").count() - 1;
    assert!(staged > 3, "{said}");
    let run = Store::open(&path).unwrap().sync_unit(UNIT).unwrap().begin().unwrap();
    let fetch = |cursor: Option<u32>| -> Result<Page<u32>, Error> {
        assert_eq!(cursor, Some(u32::try_from(staged).unwrap()));
        Ok(Page::last())
    };
    let batches: Vec<_> = run.batches("issues", fetch).map(Result::unwrap).collect();
    let found: Vec<String> = batches
        .iter()
        .flat_map(|batch| crate::support::lines(&batch.bytes().unwrap()))
        .map(|line| crate::world::is(&line))
        .collect();
    let expected: Vec<String> = (0..staged).map(|at| at.to_string()).collect();
    assert_eq!(found, expected);
}
