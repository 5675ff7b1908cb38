//! `highwater-dump` shows what is stored, whatever happened to the store's owner, and never writes to the file.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, SystemTime};

use highwater::{Level, Page, Record, Store};
use serde_json::Value;

use crate::place::{DUMP, Place, clock, json_lines, of_kind, pages, store_amid_work, upload_all};

fn bytes_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// All that a look must leave alone: the bytes, when they were written, and what else is in the folder.
fn untouched(path: &Path) -> (Vec<u8>, SystemTime, Vec<String>) {
    let mut names: Vec<String> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    (bytes_of(path), std::fs::metadata(path).unwrap().modified().unwrap(), names)
}

/// Looks in every way there is.
const EVERY_LOOK: [&[&str]; 7] = [
    &["state.redb"],
    &["state.redb", "--json"],
    &["state.redb", "--unit", "acme/tickets", "--last", "0"],
    &["check", "state.redb"],
    &["batch", "state.redb", "--unit", "acme/tickets"],
    &["batch", "state.redb", "--unit", "acme/tickets", "2"],
    &["message", "state.redb", "--unit", "acme/tickets"],
];

#[test]
fn a_new_store_shows_no_unit() {
    let place = Place::new();
    drop(Store::open(place.store()).unwrap());
    assert_eq!(place.shows(&["state.redb"]), "no sync unit yet\n");
    assert_eq!(
        place.shows(&["state.redb", "--json"]),
        "{\"kind\":\"store\",\"version\":1,\"path\":\"state.redb\",\"source\":\"closed\",\"read_at\":\"2026-01-02T04:05:35Z\"}\n"
    );
    assert_eq!(place.shows(&["check", "state.redb"]), "whole: 0 units, 1 row\n");
}

#[test]
fn batches_are_listed_and_their_records_printed_until_they_are_confirmed() {
    let place = Place::new();
    store_amid_work(&place.store());
    insta::assert_snapshot!(place.shows(&["batch", "state.redb", "--unit", "acme/tickets"]), @r###"
    batches of run 20260102T040505.000000Z that are not announced in an accepted message
      seq  item type  state     records  gzip bytes  artifact    message  epoch
        2  issues     uploaded        4         371  artifact-2        -      1
        3  issues     staged          4         373  -                 -      1
    "###);
    let listed = place.lines(&["batch", "state.redb", "--unit", "acme/tickets", "--json"]);
    let seqs: Vec<u64> =
        of_kind(&listed, "batch").iter().map(|batch| batch["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [2, 3]);
    let newest = place.lines(&["batch", "state.redb", "--unit", "acme/tickets", "--json", "--last", "1"]);
    assert_eq!((newest.len(), &newest[0]["seq"]), (1, &serde_json::json!(3)));

    let records = place.lines(&["batch", "state.redb", "--unit", "acme/tickets", "2"]);
    let ids: Vec<&str> = records.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["ISSUE-4", "ISSUE-5", "ISSUE-6", "ISSUE-7"]);

    let (code, stdout, stderr) = place.says(&["batch", "state.redb", "--unit", "acme/tickets", "1"]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("batch 1 of \"acme/tickets\" is not in the store"), "{stderr}");
    assert_eq!(
        place.shows(&["batch", "state.redb", "--unit", "another"]),
        "no batch is in the store: all are announced, or there is none yet\n"
    );
}

#[test]
fn what_is_not_there_is_said_so_and_exits_with_1() {
    let place = Place::new();
    store_amid_work(&place.store());
    let asked: [(&[&str], &str); 6] = [
        (&["nothing.redb"], "highwater-dump: cannot read the store nothing.redb: No such file or directory"),
        (&["check", "nothing.redb"], "highwater-dump: cannot read the store nothing.redb: No such file"),
        (&["state.redb", "--unit", "acme"], "has no sync unit \"acme\";"),
        (&["batch", "state.redb", "--unit", "acme", "1"], "has no sync unit \"acme\";"),
        (&["message", "state.redb", "--unit", "acme"], "has no sync unit \"acme\";"),
        (
            &["message", "state.redb", "--unit", "acme/tickets"],
            "no sealed message of \"acme/tickets\" is stored",
        ),
    ];
    for (args, expected) in asked {
        let (code, stdout, stderr) = place.says(args);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}");
        assert!(stderr.starts_with("highwater-dump: ") && stderr.contains(expected), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert!(!place.dir.path().join("nothing.redb").exists());
}

#[test]
fn a_wrong_command_line_exits_with_2_and_help_teaches_the_right_one() {
    let place = Place::new();
    for args in [&[][..], &["--jsno", "x"], &["check"], &["message"], &["x", "y"], &["x", "--last", "-1"]] {
        let (code, stdout, stderr) = place.says(args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(stderr.contains("Usage:"), "{stderr}");
    }
    store_amid_work(&place.store());
    for (args, expected) in [
        (&["frobnicate", "state.redb"][..], "there is no command or file 'frobnicate'\n"),
        (&["rnus", "state.redb"], "there is no command or file 'rnus'; did you mean 'runs'?"),
        (&["state.redb", "runs"], "the command comes first: highwater-dump runs state.redb"),
        (&["no\u{1b}[2Jsuch", "x"], "there is no command or file 'no\\u{1b}[2Jsuch'"),
    ] {
        let (code, stdout, stderr) = place.says(args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(stderr.contains(expected) && stderr.contains("Usage:"), "{stderr}");
    }
    let help = place.shows(&["--help"]);
    for expected in ["Examples:", "  0  fine", "  1  failed", "  2  the command", "  3  the store is damaged"]
    {
        assert!(help.contains(expected), "{help}");
    }
}

#[test]
fn a_store_named_like_a_command_can_be_shown() {
    let place = Place::new();
    store_amid_work(&place.dir.path().join("check"));
    assert!(place.shows(&["./check"]).contains("sync unit acme/tickets"));
    assert!(place.shows(&["--", "check"]).contains("sync unit acme/tickets"));
    assert!(place.shows(&["check", "check"]).starts_with("whole: 2 units"));
}

#[test]
fn what_is_no_store_is_told_from_a_damaged_one() {
    let place = Place::new();
    let write = |name: &str, bytes: &[u8]| std::fs::write(place.dir.path().join(name), bytes).unwrap();
    write("empty", b"");
    write("text", b"not a store, but text that goes on for longer than a header would\n");
    std::fs::create_dir(place.dir.path().join("folder")).unwrap();
    let other = redb::Database::create(place.dir.path().join("other")).unwrap();
    let transaction = other.begin_write().unwrap();
    let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("settings");
    transaction.open_table(table).unwrap().insert("a", 1).unwrap();
    transaction.commit().unwrap();
    drop(other);
    // A table of the name of one of ours is not a store either.
    let other = redb::Database::create(place.dir.path().join("similar")).unwrap();
    let transaction = other.begin_write().unwrap();
    let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(table).unwrap().insert("format", 1).unwrap();
    transaction.commit().unwrap();
    drop(other);
    for (name, reason) in [
        ("empty", "it is empty"),
        ("text", "it does not start as a redb file does"),
        ("folder", "it is a directory"),
        ("other", "it is a redb file without our format row"),
        ("similar", "it is a redb file without our format row"),
    ] {
        for args in [&[name][..], &["check", name], &["message", name, "--unit", "x"]] {
            let (code, stdout, stderr) = place.says(args);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}: {stderr}");
            assert!(stderr.contains("is not a highwater store") && stderr.contains(reason), "{stderr}");
        }
    }
}

/// To open a pipe would be to wait for its other end, for ever.
#[cfg(unix)]
#[test]
fn a_pipe_is_refused_by_every_command_and_not_waited_for() {
    let place = Place::new();
    store_amid_work(&place.store());
    assert!(Process::new("mkfifo").arg(place.dir.path().join("pipe")).status().unwrap().success());
    let asked: [&[&str]; 12] = [
        &["pipe"],
        &["check", "pipe"],
        &["tail", "pipe"],
        &["report", "pipe", "--html", "-"],
        &["diff", "pipe", "state.redb"],
        &["diff", "state.redb", "pipe"],
        &["acts", "pipe"],
        &["reset", "pipe", "unit", "--dry-run"],
        &["rewind", "pipe", "unit", "--to", "2026-01-01", "--dry-run"],
        &["compact", "pipe", "--dry-run"],
        &["export", "pipe", "unit", "unit.jsonl"],
        &["import", "state.redb", "pipe", "--dry-run"],
    ];
    for args in asked {
        let output = place.dump(args).timeout(Duration::from_secs(60)).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("it is not a regular file"), "{args:?}: {stderr}");
    }
}

#[test]
fn who_looks_at_a_worker_state_is_told_what_reads_one() {
    let place = Place::new();
    std::fs::write(place.dir.path().join("state.json"), "\n {\"highwater\": {}}").unwrap();
    for args in [&["state.json"][..], &["runs", "state.json"], &["check", "state.json"]] {
        let (code, _, stderr) = place.says(args);
        assert_eq!(code, Some(1), "{stderr}");
        let says = "if it is a worker state, `diff` and the commands that mend read it";
        assert!(stderr.contains("is not a highwater store") && stderr.contains(says), "{stderr}");
    }
}

/// Changes the tables of a store behind its back: names and values are bytes, as `store/rows` has them.
pub(crate) fn with_table(
    path: &Path,
    table: &str,
    change: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>),
) {
    let db = redb::Database::open(path).unwrap();
    let transaction = db.begin_write().unwrap();
    {
        let definition: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new(table);
        change(&mut transaction.open_table(definition).unwrap());
    }
    transaction.commit().unwrap();
}

/// A stored value: version, CRC-32 of version and body, body.
fn envelope(version: u8, row: impl serde::Serialize) -> Vec<u8> {
    let body = bincode::serde::encode_to_vec(row, bincode::config::standard()).unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(&[version]);
    crc.update(&body);
    let mut bytes = vec![version];
    bytes.extend_from_slice(&crc.sum().to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

#[test]
fn a_newer_format_is_refused_by_name_and_is_no_damage() {
    let place = Place::new();
    let newer = [
        (envelope(1, (3_u32, 1_u64)), "has format 3, newer than 2"),
        (envelope(2, (2_u32, 1_u64, "something new")), "has format 2, newer than 1"),
    ];
    for (bytes, problem) in newer {
        store_amid_work(&place.store());
        with_table(&place.store(), "meta", |table| drop(table.insert(&b"format"[..], &bytes[..]).unwrap()));
        for args in [&["state.redb"][..], &["check", "state.redb"]] {
            let (code, stdout, stderr) = place.says(args);
            assert_eq!((code, stdout.as_str()), (Some(1), ""));
            assert!(stderr.contains(problem) && stderr.contains("upgrade"), "{stderr}");
        }
        std::fs::remove_file(place.store()).unwrap();
    }
    // A single row of a newer version.
    store_amid_work(&place.store());
    with_table(&place.store(), "units", |table| {
        drop(table.insert(&b"acme/tickets"[..], &envelope(2, 1_u8)[..]).unwrap());
    });
    for args in [&["state.redb"][..], &["check", "state.redb"]] {
        let (code, _, stderr) = place.says(args);
        assert_eq!(code, Some(1));
        assert!(stderr.contains("table units, key acme/tickets has format 2, newer than 1"), "{stderr}");
    }
}

#[test]
fn a_sealed_message_that_is_not_delivered_is_said_first() {
    let place = Place::new();
    store_amid_work(&place.store());
    // Two messages of the second unit, as rows: the older delivered twice, the newer of unknown fate.
    with_table(&place.store(), "messages", |table| {
        for (number, fate) in [(1_u64, Some(2_u32)), (2, None)] {
            let mut key = 2_u64.to_be_bytes().to_vec();
            key.extend_from_slice(&number.to_be_bytes());
            let (run, data, event) = (1_u64, 2_u32, 77_u64);
            let kind_and_type = (1_u32, "EXTRACTION_DATA_PROGRESS");
            let rest = (
                1_767_323_045_000_000_i64 + i64::try_from(number).unwrap(),
                3_u64,
                false,
                format!("key-{number}"),
            );
            let body = format!("{{\"number\":{number}}}").into_bytes();
            let row = match fate {
                Some(times) => envelope(1, (run, data, event, kind_and_type, (1_u32, times), rest, body)),
                None => envelope(1, (run, data, event, kind_and_type, 0_u32, rest, body)),
            };
            drop(table.insert(&key[..], &row[..]).unwrap());
        }
    });
    let shown = place.shows(&["state.redb", "--unit", "another"]);
    insta::assert_snapshot!(shown, @r###"
    sync unit another
      ! 2026-01-02T03:04:05Z (1h 1m ago): message 2, EXTRACTION_DATA_PROGRESS, is not known to be
        delivered: 3 artifacts; see `highwater-dump events state.redb --unit another`
      run        20260102T040505.000000Z: open
      started    2026-01-02T04:05:05Z (30s ago), life 1 of it
      since      everything
      stored     last 2026-01-02T04:05:05Z (30s ago); no process has the store open
      extracted  0 pages, 0 batches, 0 of them not announced
      on its way nothing: what was read is announced
      watermark  none: the next run extracts everything
      known      since 2026-01-02T04:05:05Z (30s ago), 1 run begun

      messages, 2 of 2 kept
        no  event type                fate               sealed                            artifacts
         1  EXTRACTION_DATA_PROGRESS  delivered 2 times  2026-01-02T03:04:05Z (1h 1m ago)          3
         2  EXTRACTION_DATA_PROGRESS  NOT DELIVERED      2026-01-02T03:04:05Z (1h 1m ago)          3
    "###);
    // Not shown among the newest, yet said.
    let shown = place.shows(&["state.redb", "--unit", "another", "--last", "0"]);
    assert!(shown.contains("message 2, EXTRACTION_DATA_PROGRESS, is not known to be"), "{shown}");
    let lines = place.lines(&["state.redb", "--json"]);
    let fates: Vec<_> = of_kind(&lines, "message").iter().map(|message| message["fate"].clone()).collect();
    assert_eq!(fates, ["delivered", "sealed"]);

    assert_eq!(place.shows(&["message", "state.redb", "--unit", "another"]), "{\"number\":2}\n");
    assert_eq!(place.shows(&["message", "state.redb", "--unit", "another", "1"]), "{\"number\":1}\n");
    let (code, _, stderr) = place.says(&["message", "state.redb", "--unit", "another", "3"]);
    assert!(code == Some(1) && stderr.contains("message 3 of \"another\" is not stored"), "{stderr}");
}

#[test]
fn a_file_cut_short_anywhere_is_damaged_or_no_store_and_never_a_panic() {
    let place = Place::new();
    store_amid_work(&place.store());
    let whole = bytes_of(&place.store());
    let mut lengths: Vec<usize> = vec![1, 8, 9, 10, 63, 64, 319, 320, 4095, 4096, 4097];
    lengths.extend((1..16).map(|part| whole.len() * part / 16));
    lengths.push(whole.len() - 1);
    for length in lengths {
        std::fs::write(place.store(), &whole[..length]).unwrap();
        for args in [&["state.redb"][..], &["check", "state.redb"]] {
            let (code, stdout, stderr) = place.says(args);
            let expected = if length < 9 { Some(1) } else { Some(3) };
            assert_eq!(code, expected, "cut to {length} of {}, {args:?}: {stdout}{stderr}", whole.len());
        }
    }
}

/// Where a byte is not part of what is remembered (a page that is free, the older commit), all is as it was.
#[test]
fn a_flipped_byte_anywhere_is_found_or_changes_no_figure() {
    let place = Place::new();
    store_amid_work(&place.store());
    let closed = bytes_of(&place.store());
    let store = Store::open(place.store()).unwrap();
    drop(store.sync_unit("third").unwrap().begin().unwrap());
    let killed = bytes_of(&place.store());
    drop(store);
    for (whole, in_header, in_pages) in [(closed, 3, 1_361), (killed, 5, 2_131)] {
        std::fs::write(place.store(), &whole).unwrap();
        // But for the first line, which says whether it was closed.
        let figures = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        let good = figures(&place.shows(&["state.redb", "--json"]));
        let (mut found, mut unharmed) = (0, 0);
        for position in (0..320).step_by(in_header).chain((320..whole.len()).step_by(in_pages)) {
            let mut flipped = whole.clone();
            flipped[position] ^= 1 << (position % 8);
            std::fs::write(place.store(), &flipped).unwrap();
            let (code, stdout, stderr) = place.says(&["state.redb", "--json"]);
            let (checked, _, check_stderr) = place.says(&["check", "state.redb"]);
            match code {
                Some(0) => {
                    assert_eq!(figures(&stdout), good, "byte {position}");
                    assert!(checked == Some(0) || checked == Some(3), "byte {position}: {check_stderr}");
                    unharmed += 1;
                }
                Some(3) => {
                    assert_eq!((stdout.as_str(), checked), ("", Some(3)), "byte {position}: {stderr}");
                    assert!(stderr.contains("damaged store"), "{stderr}");
                    found += 1;
                }
                // What names the kind of file.
                _ => {
                    assert!(code == Some(1) && position < 320, "byte {position}, {code:?}: {stderr}");
                    assert!(stderr.contains("is not a highwater store"), "byte {position}: {stderr}");
                }
            }
        }
        assert!(found > 20 && unharmed > 20, "{found} found, {unharmed} unharmed");
    }
}

/// What passes redb's checksums, as it was written through redb, and yet cannot be right.
#[test]
fn check_reports_every_row_that_cannot_be_right() {
    let place = Place::new();
    store_amid_work(&place.store());
    assert!(place.shows(&["check", "state.redb"]).starts_with("whole: 2 units, "));
    // The bytes of batch 3 are gone, those of batch 2 are other than its own, and a row of counts is garbled.
    let key = |parts: &[u64]| parts.iter().flat_map(|part| part.to_be_bytes()).collect::<Vec<u8>>();
    let first_piece = |seq: u64| key(&[1, 2, seq, 0]);
    with_table(&place.store(), "payloads", |table| {
        let removed = table.remove(&first_piece(3)[..]).unwrap().map(|bytes| bytes.value().to_vec()).unwrap();
        assert!(removed.len() > 5);
        let other = Level::new(0).map(|_| envelope(1, ())).unwrap();
        drop(table.insert(&first_piece(2)[..], &other[..]).unwrap());
    });
    let mut types = key(&[1, 2]);
    types.extend_from_slice(b"users");
    with_table(&place.store(), "types", |table| drop(table.insert(&types[..], &b"\x01garbled"[..]).unwrap()));
    let (code, stdout, _) = place.says(&["check", "state.redb"]);
    assert_eq!(code, Some(3));
    insta::assert_snapshot!(stdout, @r###"
    table types: key \x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02users: its checksum
      is 62726167, expected 8a60b09e
    table types, acme/tickets: run 20260102T040505.000000Z: its streams have 18 records, but 15 are
      counted as read
    table chunks, acme/tickets: chunk 2 of users belongs to no item type
    table chunks, acme/tickets: chunk 4 of users belongs to no item type
    table chunks, acme/tickets: chunk 6 of users belongs to no item type
    table payloads, acme/tickets: the bytes of batch 2: its pieces have 0 bytes instead of 371
    table payloads, acme/tickets: the bytes of batch 3 are missing
    damaged: 7 findings (2 units, 27 rows read)
    A damaged store cannot be mended. Put a copy back, such as STORE.before-COMMAND-TIME; or move it
    away and start a new sync, which extracts everything.
    "###);
    let (code, stdout, _) = place.says(&["check", "state.redb", "--json"]);
    assert_eq!(code, Some(3));
    let lines = json_lines(&stdout);
    let last = lines.last().unwrap();
    assert_eq!(last["kind"], "check");
    assert_eq!(of_kind(&lines, "finding").len() as u64, last["findings"].as_u64().unwrap());
}

#[test]
fn no_look_changes_the_file_or_what_is_beside_it() {
    let place = Place::new();
    store_amid_work(&place.store());
    let closed = untouched(&place.store());
    for args in EVERY_LOOK {
        place.says(args);
        assert!(untouched(&place.store()) == closed, "{args:?} of a closed store");
    }
    // A copy of one that is open is what a killed owner leaves.
    let store = Store::open(place.store()).unwrap();
    upload_all(&store.sync_unit("acme/tickets").unwrap().begin().unwrap(), "more", pages(2, 3));
    let open = untouched(&place.store());
    for args in EVERY_LOOK {
        let (_, _, stderr) = place.says(args);
        assert!(stderr.contains("open in another process: read from a verified temporary copy"), "{stderr}");
        assert!(untouched(&place.store()) == open, "{args:?} of an open store");
    }
    let killed = bytes_of(&place.store());
    drop(store);
    std::fs::write(place.store(), killed).unwrap();
    let killed = untouched(&place.store());
    for args in EVERY_LOOK {
        let (_, _, stderr) = place.says(args);
        assert!(stderr.contains("the last process did not close it"), "{stderr}");
        assert!(untouched(&place.store()) == killed, "{args:?} of a killed owner's store");
    }
}

/// Makes a command run as somebody without rights, if the tests run as root.
#[cfg(unix)]
fn unprivileged(place: &Place, args: &[&str]) -> std::process::Output {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    // That user may not have access to the build folder.
    let tool = place.dir.path().join("tool");
    if !tool.exists() {
        // Not copied here: a process that another test starts meanwhile would hold it open for writing.
        assert!(Process::new("cp").arg(DUMP).arg(&tool).status().unwrap().success());
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Process::new(tool);
    command.current_dir(place.dir.path()).args(args);
    if std::fs::metadata(place.dir.path()).unwrap().uid() == 0 {
        command.uid(65_534).gid(65_534);
    }
    command.output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_file_and_a_folder_that_may_only_be_read_are_enough_and_one_that_may_not_is_said_so() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    store_amid_work(&place.store());
    let allow =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    allow(place.dir.path(), 0o755);
    assert!(unprivileged(&place, &["--version"]).status.success());
    allow(&place.store(), 0o444);
    allow(place.dir.path(), 0o555);
    let read = unprivileged(&place, &["state.redb"]);
    let checked = unprivileged(&place, &["check", "state.redb"]);
    allow(&place.store(), 0o000);
    let refused = unprivileged(&place, &["state.redb"]);
    allow(place.dir.path(), 0o755);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(read.status.code(), Some(0), "{}", text(&read.stderr));
    assert!(text(&read.stdout).contains("sync unit acme/tickets"));
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert_eq!(refused.status.code(), Some(1));
    let refused = text(&refused.stderr);
    assert_eq!(
        refused,
        "highwater-dump: cannot read the store state.redb: Permission denied (os error 13)\n"
    );
}

#[test]
fn a_name_cannot_drive_a_terminal_or_turn_its_text_around() {
    let place = Place::new();
    let id = "acme\u{202e}stekcit\u{2066}/\u{e9}t\u{e9}";
    let store = Store::options().clock(clock()).open(place.store()).unwrap();
    let run = store.sync_unit(id).unwrap().begin().unwrap();
    let fetch = |_: Option<String>| -> highwater::Result<Page<String>> {
        Ok(Page::more("\u{1b}[2J\u{7f}\u{9b}".to_owned()).record("is\u{200f}sues", Record::new("1", &())?))
    };
    for batch in run.batches("st\u{feff}ream", fetch).take(0) {
        drop(batch.unwrap());
    }
    drop((run, store));
    let shown = place.shows(&["state.redb"]);
    assert!(shown.contains("sync unit acme\\u{202e}stekcit\\u{2066}/\u{e9}t\u{e9}\n"), "{shown}");
    let json = place.shows(&["state.redb", "--json"]);
    assert!(json.contains("acme\\u202estekcit\\u2066/\u{e9}t\u{e9}"), "{json}");
    assert_eq!(of_kind(&json_lines(&json), "unit")[0]["sync_unit"], id);
    let unsafe_in = |text: &str| {
        text.chars().any(|c| (c.is_control() && c != '\n') || ('\u{200b}'..'\u{2070}').contains(&c))
    };
    assert!(!unsafe_in(&shown) && !unsafe_in(&json));
    assert!(place.shows(&["state.redb", "--unit", id]).contains("stekcit"));
    let (code, _, stderr) = place.says(&["state.redb", "--unit", "\u{1b}[2J\u{202e}"]);
    assert!(code == Some(1) && !unsafe_in(&stderr) && stderr.contains("\\u{1b}[2J\\u{202e}"), "{stderr}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let place = Place::new();
    let store = Store::open(place.store()).unwrap();
    // More than a pipe holds.
    for number in 0..400 {
        drop(store.sync_unit(format!("unit-{number:04}")).unwrap().begin().unwrap());
    }
    drop(store);
    for args in [&["state.redb"][..], &["state.redb", "--json"]] {
        let mut child = Process::new(DUMP)
            .current_dir(place.dir.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut first = [0; 10];
        stdout.read_exact(&mut first).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
    }
    // All of it, to a reader that stays.
    let all = place.shows(&["state.redb", "--json"]);
    assert!(all.len() > 64 * 1024 && json_lines(&all).len() == 1 + 3 * 400);
    let order: Vec<Value> =
        of_kind(&json_lines(&all), "unit").iter().map(|unit| unit["sync_unit"].clone()).collect();
    assert!(order.windows(2).all(|pair| pair[0].as_str() < pair[1].as_str()));
}

/// What the writer below has done, as far as it is known, and what the store may therefore say.
fn figures_of_writer(lines: &[Value]) -> (u64, u64) {
    let mut announced = 0;
    let mut read = 0;
    for counts in of_kind(lines, "ledger").into_iter().flat_map(|run| run["item_types"].as_array().unwrap()) {
        assert_eq!(counts["read"], counts["announced"]);
        announced += counts["announced"].as_u64().unwrap();
        read += counts["read"].as_u64().unwrap();
    }
    for counts in of_kind(lines, "item_type") {
        let figure = |name: &str| counts[name].as_u64().unwrap();
        let in_state = |name: &str| counts[name]["items"].as_u64().unwrap();
        assert_eq!(figure("read"), figure("batched") + figure("open_items"));
        assert_eq!(
            figure("batched"),
            figure("announced") + in_state("batches_staged") + in_state("batches_uploaded")
        );
        announced += figure("announced");
        read += figure("read");
    }
    (read, announced)
}

/// Runs of 20 pages of 7 records each, over and over; says each acknowledged batch of 10 before it goes on.
fn write_on(path: &Path, mut acknowledged: impl FnMut() -> bool) {
    let store = Store::options().batch_items(10).open(path).unwrap();
    let unit = store.sync_unit("acme/tickets").unwrap();
    loop {
        let run = unit.begin().unwrap();
        let fetch = |cursor: Option<u32>| -> highwater::Result<Page<u32>> {
            let number = cursor.unwrap_or(0);
            let mut page = if number == 19 { Page::last() } else { Page::more(number + 1) };
            for record in 0..7 {
                let title = "x".repeat(1_000);
                page.push(
                    "issues",
                    Record::new(format!("{number}/{record}"), &serde_json::json!({ "title": title }))?,
                );
            }
            Ok(page)
        };
        for batch in run.batches("issues", fetch) {
            let batch = batch.unwrap();
            let artifact = format!("artifact of {}", batch.key());
            batch.uploaded(&artifact).unwrap();
            batch.acknowledge(artifact).unwrap();
            if !acknowledged() {
                return;
            }
        }
        run.finish().unwrap();
    }
}

#[test]
fn a_store_whose_owner_writes_on_is_read_from_a_verified_copy_of_one_moment() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let place = Place::new();
    let (batches, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (batches, stop, path) = (&batches, &stop, place.store());
        scope.spawn(move || {
            write_on(&path, || {
                batches.fetch_add(1, Ordering::SeqCst);
                !stop.load(Ordering::SeqCst)
            });
        });
        while batches.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let mut last = 0;
        for _ in 0..15 {
            let before = batches.load(Ordering::SeqCst);
            let (code, stdout, stderr) = place.says(&["state.redb", "--json", "--last", "1000"]);
            let after = batches.load(Ordering::SeqCst);
            assert_eq!(code, Some(0), "{stderr}");
            assert!(
                stderr.contains("open in another process: read from a verified temporary copy"),
                "{stderr}"
            );
            let (read, announced) = figures_of_writer(&json_lines(&stdout));
            assert_eq!((read % 7, announced % 10), (0, 0));
            // The writer may have acknowledged one that it has not counted yet.
            assert!((before * 10..=(after + 1) * 10).contains(&announced), "{before} {announced} {after}");
            assert!(announced >= last);
            last = announced;
            let (code, stdout, stderr) = place.says(&["check", "state.redb"]);
            assert_eq!(code, Some(0), "{stdout}{stderr}");
        }
        stop.store(true, Ordering::SeqCst);
    });
    // It was not disturbed by that.
    let (read, announced) = figures_of_writer(&place.lines(&["state.redb", "--json", "--last", "1000"]));
    assert!(read >= announced && announced == batches.load(Ordering::SeqCst) * 10);
}

/// The process may take less memory than the file is large, so it cannot hold a copy of it.
#[cfg(target_os = "linux")]
#[test]
fn a_large_store_whose_owner_was_killed_is_read_in_little_memory() {
    let place = Place::new();
    let open = place.dir.path().join("open.redb");
    let store = Store::options().batch_items(1).level(Level::new(0).unwrap()).open(&open).unwrap();
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    let fetch = |cursor: Option<u32>| -> highwater::Result<Page<u32>> {
        let title = "x".repeat(8_000_000);
        let record = Record::new("ISSUE-1", &serde_json::json!({ "title": title }))?;
        Ok(Page::more(cursor.unwrap_or(0) + 1).record("issues", record))
    };
    for batch in run.batches("issues", fetch).take(20) {
        drop(batch.unwrap());
    }
    std::fs::copy(&open, place.store()).unwrap();
    let limit_bytes = 96 * 1024 * 1024;
    assert!(std::fs::metadata(place.store()).unwrap().len() > limit_bytes);
    for command in ["state.redb", "check state.redb"] {
        let limited = format!("ulimit -v {} && exec '{DUMP}' {command}", limit_bytes / 1024);
        let output =
            Process::new("sh").current_dir(place.dir.path()).args(["-c", &limited]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{command}: {stderr}");
        assert!(stderr.contains("the last process did not close it"), "{stderr}");
    }
}

/// The process that the next test kills.
#[test]
#[ignore = "runs only as the child of a_store_whose_owner_was_killed_is_read_in_place"]
fn a_writer_to_be_killed() {
    let Ok(path) = std::env::var("HIGHWATER_TEST_STORE") else { return };
    write_on(Path::new(&path), || {
        println!("acknowledged");
        true
    });
}

#[test]
fn a_store_whose_owner_was_killed_is_read_in_place() {
    let place = Place::new();
    let mut batches = 0;
    for life in 0..12 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "dump::a_writer_to_be_killed", "--ignored", "--nocapture", "--test-threads=1"])
            .env("HIGHWATER_TEST_STORE", place.store())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It is killed somewhere in what it does next.
        let mut acknowledged = 0;
        while acknowledged < 3 + life * 2 {
            let line = lines.next().unwrap().unwrap();
            acknowledged += u64::from(line.ends_with("acknowledged"));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between is what it did.
        acknowledged +=
            lines.map_while(Result::ok).filter(|line| line.ends_with("acknowledged")).count() as u64;

        let killed = untouched(&place.store());
        let (code, stdout, stderr) = place.says(&["state.redb", "--json", "--last", "1000"]);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stderr.contains("the last process did not close it"), "{stderr}");
        let (read, announced) = figures_of_writer(&json_lines(&stdout));
        assert_eq!((read % 7, announced % 10), (0, 0));
        let known = batches + acknowledged;
        assert!(
            announced == known * 10 || announced == (known + 1) * 10,
            "{known} batches, {announced} records"
        );
        batches = announced / 10;
        let (code, stdout, stderr) = place.says(&["check", "state.redb"]);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
        assert!(untouched(&place.store()) == killed);
    }
}

#[test]
fn every_look_answers_while_an_extractor_holds_the_store_and_does_not_disturb_it() {
    let place = Place::new();
    store_amid_work(&place.store());
    let before = place.lines(&["state.redb", "--json"]);
    let store = Store::options().clock(clock()).open(place.store()).unwrap();
    let looks: [&[&str]; 8] = [
        &["runs", "state.redb", "--unit", "acme/tickets"],
        &["events", "state.redb", "--unit", "acme/tickets"],
        &["attachments", "state.redb", "--unit", "acme/tickets"],
        &["rejected", "state.redb", "--unit", "acme/tickets"],
        &["find", "state.redb", "ISSUE-7", "--unit", "acme/tickets"],
        &["acts", "state.redb"],
        &["report", "state.redb", "--html", "-"],
        &["diff", "state.redb", "state.redb"],
    ];
    // The seventh asks for a message, and there is none.
    for args in EVERY_LOOK.iter().take(6).chain(&looks) {
        let (code, stdout, stderr) = place.says(args);
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        assert!(!stdout.is_empty(), "{args:?}");
        if args[0] != "check" {
            assert!(
                stderr.contains("open in another process: read from a verified temporary copy"),
                "{args:?}: {stderr}"
            );
        }
    }
    let (code, stdout, stderr) = place.says(&["tail", "state.redb", "--looks", "1"]);
    assert!(
        code == Some(0) && stdout.contains("acme/tickets: open 10 %, 3 pages, 18 read"),
        "{stdout}{stderr}"
    );
    assert!(
        place
            .shows(&["find", "state.redb", "ISSUE-7", "--unit", "acme/tickets"])
            .contains("1 record in batch 2")
    );
    // All the while it was the extractor's, and it goes on.
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    assert!(run.resumed());
    upload_all(&run, "issues", pages(100, 5));
    run.finish().unwrap();
    drop(store);
    // What was seen then is what was there.
    assert_eq!(of_kind(&before, "run").len(), 2);
    place.shows(&["check", "state.redb"]);
}
