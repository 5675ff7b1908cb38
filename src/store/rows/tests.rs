//! Every row to its byte, and every byte of a row.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::super::digest::Digest;
use super::*;

/// CRC-32 as it is defined (polynomial edb88320), a bit at a time.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from_digit(digit.into(), 16).unwrap()).collect()
}

/// Holds a row to its bytes: the version, the checksum, and then each field. What is in a store out there is
/// written so; a test that has to be changed here is a new version of the row.
fn golden<R: Row + PartialEq + Debug>(row: &R, checksum: u32, fields: &[(&str, &str)]) {
    golden_of(1, row, checksum, fields);
}

/// The same, of a row that has grown since its first version.
fn golden_of<R: Row + PartialEq + Debug>(version: u8, row: &R, checksum: u32, fields: &[(&str, &str)]) {
    let bytes = row.to_bytes().unwrap();
    let body: String = fields.iter().map(|(_, bytes)| bytes.replace(' ', "")).collect();
    assert_eq!(hex(&bytes[5..]), body, "{row:?}");
    assert_eq!(bytes[0], version);
    let mut whole = vec![version];
    whole.extend_from_slice(&bytes[5..]);
    assert_eq!(bytes[1..5], crc32(&whole).to_le_bytes());
    assert_eq!(crc32(&whole), checksum, "{:08x}", crc32(&whole));
    assert_eq!(&R::from_bytes(&bytes).unwrap(), row);
}

// Integers: below 251 one byte; else fb, fc or fd and 2, 4 or 8 bytes, little-endian. Signed ones are zigzagged
// before (0, -1, 1, -2: 0, 1, 2, 3). A u8 is a byte. An option is 0, or 1 and the value. An enum is the number of
// its variant, from 0, and what it holds. Text, bytes and lists are their length and what is in them.

#[test]
fn golden_bytes_of_rows_about_the_file_and_its_units() {
    golden(
        &FormatRow { format: 1, next_unit: 300 },
        0xb459_7ec1,
        &[("format", "01"), ("next_unit", "fb 2c01")],
    );
    golden(
        &UnitRow {
            no: 7,
            created_at: Micros(1_700_000_000_000_000),
            run: Some(2),
            next_run: 3,
            next_message: 65_536,
            watermark: Some(Micros(-1)),
            bounds: (Some(Micros(1)), None),
            holder: (None, Some("t".to_owned())),
            inherited: Some(Micros(3)),
            connector_version: Some("v".to_owned()),
        },
        0xde02_a6c3,
        &[
            ("no", "07"),
            ("created_at", "fd 00803c3048140c00"),
            ("run", "01 02"),
            ("next_run", "03"),
            ("next_message", "fc 00000100"),
            ("watermark", "01 01"),
            ("bounds", "01 02 00"),
            ("holder", "00 01 01 74"),
            ("inherited", "01 06"),
            ("connector_version", "01 01 76"),
        ],
    );
    golden(
        &RunIdRow { run: 250, id: KnownId::Whole("r".to_owned()) },
        0xb44b_6308,
        &[("run", "fa"), ("id", "01 01 72")],
    );
    golden(
        &BookmarkRow { json: r#"{"a":1}"#.to_owned(), run: 251 },
        0xc1aa_aaa2,
        &[("json", "07 7b2261223a317d"), ("run", "fb fb00")],
    );
    golden(&Json("\"\u{e9}\"".to_owned()), 0xc835_d745, &[("text, without its length", "22 c3a9 22")]);
    golden(&Payload(vec![0x1f, 0x8b, 0]), 0x56f5_1db4, &[("bytes, without their number", "1f8b00")]);
}

#[test]
fn golden_bytes_of_a_run() {
    let mut done = Phases::default();
    done.insert(Phase::Metadata);
    done.insert(Phase::Data);
    golden_of(
        2,
        &RunRow {
            id: "r1".to_owned(),
            status: RunStatus::Abandoned,
            started_at: Micros(64),
            ended_at: Some(Micros(-65)),
            since: None,
            since_ignored: Some(Micros(1)),
            window: Some(WindowRow { from: None, to: Micros(2) }),
            epoch: 4,
            lost: true,
            phase: Some(Phase::Attachments),
            done,
            pages: 5,
            next_seq: 6,
            next_chunk: 7,
            open_batches: 8,
            not_before: Some(NotBefore { at: Micros(9), asked_seconds: 10 }),
            progress: Some(255),
            events: 11,
            event: Some(0x0102),
            events_reused: 12,
            first_message: 13,
            message: Some(14),
            artifacts_max: Some(15),
            activity: Activity { changed_at: Some(Micros(16)), deaths: 17 },
        },
        0x339e_6ccf,
        &[
            ("id", "02 7231"),
            ("status", "02"),
            ("started_at", "80"),
            ("ended_at", "01 81"),
            ("since", "00"),
            ("since_ignored", "01 02"),
            ("window: from, to", "01 00 04"),
            ("epoch", "04"),
            ("lost", "01"),
            ("phase", "01 03"),
            ("done, a bit for each phase", "06"),
            ("pages", "05"),
            ("next_seq", "06"),
            ("next_chunk", "07"),
            ("open_batches", "08"),
            ("not_before: at, asked_seconds", "01 12 0a"),
            ("progress", "01 ff"),
            ("events", "0b"),
            ("event", "01 fb 0201"),
            ("events_reused", "0c"),
            ("first_message", "0d"),
            ("message", "01 0e"),
            ("artifacts_max", "01 0f"),
            ("activity: changed_at, deaths", "01 20 11"),
        ],
    );
}

#[test]
fn golden_bytes_of_streams_and_item_types() {
    golden_of(
        2,
        &StreamRow {
            phase: Phase::ExternalSyncUnits,
            cursor: Some("7".to_owned()),
            exhausted: false,
            pages: 1,
            items: 2,
            bookmark: None,
            pace: Pace {
                last_page_at: Some(Micros(3)),
                minutes: vec![MinuteRow { minute: 4, pages: 5, items: 6 }],
            },
        },
        0x0bce_2b95,
        &[
            ("phase", "00"),
            ("cursor", "01 01 37"),
            ("exhausted", "00"),
            ("pages", "01"),
            ("items", "02"),
            ("bookmark", "00"),
            ("pace: last_page_at", "01 06"),
            ("pace: minutes, of each: minute, pages, items", "01 08 05 06"),
        ],
    );
    golden_of(
        2,
        &TypeRow {
            read: 1,
            left_out: 9,
            batched: 2,
            confirmed: 3,
            announced: 4,
            batches: 5,
            artifacts_announced: 6,
            open_items: 7,
            open_bytes: 8,
            last_artifact: Some("a".to_owned()),
            announced_bytes: 10,
        },
        0xbd55_f33d,
        &[
            ("read, left_out, batched, confirmed, announced", "01 09 02 03 04"),
            ("batches, artifacts_announced", "05 06"),
            ("open_items, open_bytes", "07 08"),
            ("last_artifact", "01 01 61"),
            ("announced_bytes", "0a"),
        ],
    );
}

#[test]
fn golden_bytes_of_child_listings() {
    golden(
        &ChildRow {
            stream: "c".to_owned(),
            parent: "p1".to_owned(),
            data: "{}".to_owned(),
            named_with: 251,
            under: UnderRow::Stream("s".to_owned()),
            cursor: Some("2".to_owned()),
        },
        0x5cf5_522e,
        &[
            ("stream", "0163"),
            ("parent", "027031"),
            ("data", "027b7d"),
            ("named_with", "fbfb00"),
            ("under", "010173"),
            ("cursor", "010132"),
        ],
    );
    golden(
        &ChildRow {
            stream: "c".to_owned(),
            parent: "p2".to_owned(),
            data: "null".to_owned(),
            named_with: 1,
            under: UnderRow::Child(300),
            cursor: None,
        },
        0xd6cc_595f,
        &[
            ("stream", "0163"),
            ("parent", "027032"),
            ("data", "046e756c6c"),
            ("named_with", "01"),
            ("under", "02fb2c01"),
            ("cursor", "00"),
        ],
    );
    golden(
        &ChildRow {
            stream: String::new(),
            parent: "p".to_owned(),
            data: "1".to_owned(),
            named_with: 2,
            under: UnderRow::Nothing,
            cursor: None,
        },
        0x2a54_6482,
        &[
            ("stream", "00"),
            ("parent", "0170"),
            ("data", "0131"),
            ("named_with", "02"),
            ("under", "00"),
            ("cursor", "00"),
        ],
    );
    golden(&ChildIdRow { no: 65_536 }, 0xee41_fe1b, &[("no", "fc00000100")]);
    golden(
        &ChildStreamRow { named: 300, exhausted: 2, pages: 3, items: 250, pending_bytes: 251 },
        0xbd2f_abfd,
        &[
            ("named", "fb2c01"),
            ("exhausted", "02"),
            ("pages", "03"),
            ("items", "fa"),
            ("pending_bytes", "fbfb00"),
        ],
    );
}

#[test]
fn golden_bytes_of_chunks_and_batches() {
    let dates = Dates { created: Some((Micros(1), Micros(2))), modified: None };
    golden(
        &ChunkRow { items: 1, dates, lines: b"{}\n".to_vec() },
        0xebc2_8250,
        &[("items", "01"), ("dates", "01 02 04 00"), ("lines", "03 7b7d0a")],
    );
    golden(
        &BatchRow {
            item_type: "t".to_owned(),
            stream: "s".to_owned(),
            epoch: 1,
            items: 2,
            line_bytes: 3,
            gzip_bytes: 4,
            dates,
            cursor_after: None,
            state: BatchState::Announced(5),
            artifact: Some("a".to_owned()),
            uploaded_in: 6,
            given_up: 7,
            saved: true,
        },
        0x4981_88a3,
        &[
            ("item_type, stream", "01 74 01 73"),
            ("epoch", "01"),
            ("items, line_bytes, gzip_bytes", "02 03 04"),
            ("dates", "01 02 04 00"),
            ("cursor_after", "00"),
            ("state: announced, the message", "03 05"),
            ("artifact", "01 01 61"),
            ("uploaded_in, given_up, saved", "06 07 01"),
        ],
    );
    for (state, byte) in [(BatchState::Staged, 0), (BatchState::Uploaded, 1), (BatchState::Confirmed, 2)] {
        assert_eq!(codec::encode(1, &state).unwrap()[5..], [byte]);
    }
}

#[test]
fn golden_bytes_of_the_conversation() {
    golden(
        &EventRow { identity: KnownId::Number, order: 1, accepted_at: Micros(2), message: None },
        0x9eec_719e,
        &[("identity", "00"), ("order", "01"), ("accepted_at", "04"), ("message", "00")],
    );
    golden_of(
        2,
        &MessageRow {
            run: 1,
            phase: Phase::Data,
            event: 3,
            kind: MessageKind::Error,
            event_type: "T".to_owned(),
            fate: MessageFate::Delivered { times: 2 },
            sealed_at: Micros(3),
            artifacts: 4,
            finishes: true,
            key: "k".to_owned(),
            body: b"{}".to_vec(),
            error: Some("no".to_owned()),
        },
        0x1a7e_6f16,
        &[
            ("run", "01"),
            ("phase", "02"),
            ("event", "03"),
            ("kind", "03"),
            ("event_type", "01 54"),
            ("fate: delivered, times", "01 02"),
            ("sealed_at", "06"),
            ("artifacts", "04"),
            ("finishes", "01"),
            ("key", "01 6b"),
            ("body", "02 7b7d"),
            ("error", "01 02 6e6f"),
        ],
    );
    for (kind, byte) in [(MessageKind::Done, 0), (MessageKind::Progress, 1), (MessageKind::Delay, 2)] {
        assert_eq!(codec::encode(1, &kind).unwrap()[5..], [byte]);
    }
    for (fate, byte) in [(MessageFate::Sealed, 0), (MessageFate::Proven, 2)] {
        assert_eq!(codec::encode(1, &fate).unwrap()[5..], [byte]);
    }
    golden_of(
        2,
        &LedgerRow {
            id: "r".to_owned(),
            status: RunStatus::Finished,
            started_at: Micros(1),
            ended_at: Micros(2),
            since: None,
            watermark: Some(Micros(3)),
            epochs: 4,
            pages: 5,
            events: 6,
            events_reused: 7,
            errors: 8,
            warnings: 9,
            types: vec![LedgerType {
                item_type: "t".to_owned(),
                read: 8,
                left_out: 11,
                announced: 9,
                artifacts: 10,
            }],
            attachments: LedgerAttachments { queued: 11, settled: 12, failed: 13 },
            deaths: 14,
            bytes: vec![15],
        },
        0xb407_4863,
        &[
            ("id", "01 72"),
            ("status", "01"),
            ("started_at, ended_at", "02 04"),
            ("since", "00"),
            ("watermark", "01 06"),
            ("epochs, pages, events, events_reused", "04 05 06 07"),
            ("errors, warnings", "08 09"),
            ("types: how many", "01"),
            ("item_type, read, left_out, announced, artifacts", "01 74 08 0b 09 0a"),
            ("attachments: queued, settled, failed", "0b 0c 0d"),
            ("deaths", "0e"),
            ("bytes: how many, each", "01 0f"),
        ],
    );
}

#[test]
fn golden_bytes_of_a_death() {
    golden(
        &DeathRow { changed_at: Some(Micros(1)), found_at: Micros(2), batches: 3, items: 251 },
        0xebdb_d821,
        &[("changed_at", "01 02"), ("found_at", "04"), ("batches", "03"), ("items", "fb fb00")],
    );
}

#[test]
fn the_pace_of_a_stream_is_that_of_the_newest_minutes() {
    let mut pace = Pace::default();
    for minute in 0..20 {
        for page in 0..3 {
            pace.add(Micros(minute * MINUTE_MICROS + page), 10);
        }
    }
    let newest = |from, to| (from..to).map(|minute| MinuteRow { minute, pages: 3, items: 30 });
    assert_eq!(pace.minutes, newest(14, 20).collect::<Vec<_>>());
    assert_eq!(pace.last_page_at, Some(Micros(19 * MINUTE_MICROS + 2)));
    // The clock stepped back.
    pace.add(Micros(16 * MINUTE_MICROS), 5);
    let mut expected: Vec<_> = newest(14, 17).collect();
    expected[2] = MinuteRow { minute: 16, pages: 4, items: 35 };
    assert_eq!(pace.minutes, expected);
    // Before 1970, too, a minute is a minute.
    let mut pace = Pace::default();
    pace.add(Micros(-1), 1);
    pace.add(Micros(0), 1);
    assert_eq!(pace.minutes.len(), 2);
}

#[test]
fn golden_bytes_of_findings() {
    golden(
        &FindingRow { count: 251, kept: vec!["a".to_owned(), "bc".to_owned()] },
        0xc92c_a367,
        &[("count", "fb fb00"), ("kept: how many, each", "02 01 61 02 6263")],
    );
}

#[test]
fn golden_bytes_of_records_announced_once() {
    golden(&OnceRow {}, 0xa505_df1b, &[]);
    golden(
        &OnceCountRow { repeated: 251, ids: 1, forgotten: 2 },
        0xe308_d281,
        &[("repeated", "fb fb00"), ("ids, forgotten", "01 02")],
    );
    let digest = Digest::of("abc");
    let key = run_key(1, 2).and_inner_name("users").and_digest(&digest);
    let (start, end) = key.as_bytes().split_at(16 + 6);
    assert_eq!(start, b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02users\0");
    assert_eq!(end, 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223_u128.to_be_bytes());
    assert_eq!(digest_of(&key.as_bytes()[16..]), Ok(("users", digest)));
    assert!(digest_of(b"users").is_err() && digest_of(b"users\0short").is_err());
}

#[test]
fn golden_bytes_of_records_at_the_edge() {
    golden(
        &EdgeRow { content: Digest::of("abc") },
        0xe42a_c29c,
        &[("content", "ba7816bf 8f01cfea 414140de 5dae2223")],
    );
    golden(
        &EdgeOfRow { run: 251, watermark: Micros(1) },
        0xfdba_b216,
        &[("run", "fb fb00"), ("watermark", "02")],
    );
    golden(
        &EdgeCountRow { unchanged: 251, ids: 1, forgotten: 2 },
        0xe308_d281,
        &[("unchanged", "fb fb00"), ("ids, forgotten", "01 02")],
    );
}

#[test]
fn golden_bytes_of_rejected_records() {
    golden(
        &RejectedRow {
            fate: RejectedFate::Passed,
            run: 251,
            rejected_at: Micros(1),
            asked: 2,
            kind: "k".to_owned(),
            reason: "why".to_owned(),
            json: Some(("{}".to_owned(), 3)),
        },
        0xe357_8a89,
        &[
            ("fate", "01"),
            ("run", "fb fb00"),
            ("rejected_at", "02"),
            ("asked", "02"),
            ("kind, reason", "01 6b 03 776879"),
            ("json: text, bytes of the whole", "01 02 7b7d 03"),
        ],
    );
    golden(&RejectedCountRow { records: 251 }, 0xd721_1c3e, &[("records", "fb fb00")]);
    let key = run_key(1, 2).and_rejected("issues", "a\0b");
    assert_eq!(key.as_bytes(), b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02issues\0a\0b");
    assert_eq!(rejected_of(b"issues\0a\0b"), Ok(("issues", "a\0b")));
    assert!(rejected_of(b"issues").is_err());
}

#[test]
fn golden_bytes_of_rows_about_attachments() {
    golden(
        &QueueRow {
            counts: LedgerAttachments { queued: 1, settled: 2, failed: 3 },
            position: 251,
            requeued: 4,
            lines: 5,
            rebuild: true,
        },
        0x2536_ee72,
        &[
            ("queued, settled, failed", "01 02 03"),
            ("position", "fb fb00"),
            ("requeued", "04"),
            ("lines", "05"),
            ("rebuild", "01"),
        ],
    );
    golden(
        &AttachmentRow {
            json: "{}".to_owned(),
            artifact: Some(("a".to_owned(), 1)),
            saved: true,
            given_up: 2,
            tries: 3,
            ready_at: Some(Micros(4)),
            reason: Some("r".to_owned()),
        },
        0x4208_3e85,
        &[
            ("json", "02 7b7d"),
            ("artifact: id, epoch", "01 01 61 01"),
            ("saved", "01"),
            ("given_up, tries", "02 03"),
            ("ready_at", "01 08"),
            ("reason", "01 01 72"),
        ],
    );
    golden(&MostReadRow { pages: 300, items: 4 }, 0x8504_05d7, &[("pages", "fb 2c01"), ("items", "04")]);
    golden(
        &PastRow {
            run_ids: vec![KnownId::Whole("r".to_owned()), KnownId::Short(2)],
            deletions: vec![KnownId::Digest(Digest::of("abc"))],
        },
        0x9f3d_325d,
        &[("run_ids", "02 01 01 72 03 02"), ("deletions", "01 02 ba7816bf8f01cfea414140de5dae2223")],
    );
    golden(
        &SeenRow { run: 1, number: 1 << 62, fingerprint: Digest::of("abc"), failed: true },
        0xaaed_ebd7,
        &[
            ("run", "01"),
            ("number", "fd 0000000000000040"),
            ("fingerprint", "ba7816bf8f01cfea414140de5dae2223"),
            ("failed", "01"),
        ],
    );
    golden(
        &SeenByHashRow { run: 1, number: 1 << 62, fingerprint: 2, failed: true },
        0x3ebb_26d7,
        &[("run", "01"), ("number", "fd 0000000000000040"), ("fingerprint", "02"), ("failed", "01")],
    );
    golden(
        &FileRow { artifact: Some("a".to_owned()), first: 1, items: 2_000, loaded: false },
        0xf6c8_ccd9,
        &[("artifact", "01 01 61"), ("first", "01"), ("items", "fb d007"), ("loaded", "00")],
    );
    golden(
        &FailedRow { json: "{}".to_owned(), reason: "r".to_owned(), tries: 5, failed_at: Micros(-1) },
        0xbb09_082a,
        &[("json", "02 7b7d"), ("reason", "01 72"), ("tries", "05"), ("failed_at", "01")],
    );
    golden(&UsedRow { used_at: Micros(1) }, 0xb6cc_4292, &[("used_at", "02")]);
    golden(&UsedNewestRow { hashes: vec![7, u32::MAX] }, 0x706d_63d9, &[("hashes", "02 07 fc ffffffff")]);
}

#[test]
fn golden_bytes_of_what_runs_and_operators_leave() {
    golden(
        &StandingRow { watermark: Some(Micros(2)), bounds: (None, Some(Micros(-1))), bookmarks: 3 },
        0x8417_ab63,
        &[("watermark", "01 04"), ("bounds", "00 01 01"), ("bookmarks", "03")],
    );
    golden(
        &RewoundRow { at: Micros(1), run: Some(7), watermark: None },
        0x1fc8_ead6,
        &[("at", "02"), ("run", "01 07"), ("watermark", "00")],
    );
    golden(
        &NextCursorRow { json: "7".to_owned(), from_run: 2, set_at: Micros(3) },
        0xb98f_8d6a,
        &[("json", "01 37"), ("from_run", "02"), ("set_at", "06")],
    );
    golden(
        &ActRow {
            at: Micros(1),
            by: "me".to_owned(),
            act: "reset".to_owned(),
            changes: vec!["a".to_owned()],
        },
        0x0b64_adaf,
        &[("at", "02"), ("by", "02 6d65"), ("act", "05 7265736574"), ("changes", "01 01 61")],
    );
}

fn micros() -> impl Strategy<Value = Micros> {
    any::<i64>().prop_map(Micros)
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(Phase::ALL.to_vec())
}

fn status() -> impl Strategy<Value = RunStatus> {
    prop::sample::select(vec![RunStatus::Open, RunStatus::Finished, RunStatus::Abandoned])
}

fn phases() -> impl Strategy<Value = Phases> {
    vec(phase(), 0..4).prop_map(|list| {
        list.into_iter().fold(Phases::default(), |mut phases, phase| {
            phases.insert(phase);
            phases
        })
    })
}

fn dates() -> impl Strategy<Value = Dates> {
    let range = || option::of((micros(), micros()));
    (range(), range()).prop_map(|(created, modified)| Dates { created, modified })
}

fn run_row() -> impl Strategy<Value = RunRow> {
    let times = (micros(), option::of(micros()), option::of(micros()), option::of(micros()));
    let numbers = (any::<[u64; 8]>(), option::of(any::<u64>()), option::of(any::<u64>()));
    let not_before = option::of((micros(), any::<u64>()));
    let said = (option::of(any::<u8>()), option::of(any::<u64>()), any::<String>());
    let window = option::of((option::of(micros()), micros()));
    let stands = (status(), any::<bool>(), option::of(phase()), phases());
    (times, numbers, not_before, said, stands, window).prop_map(
        |(times, (numbers, message, artifacts_max), not_before, (progress, event, id), stands, window)| {
            let (started_at, ended_at, since, since_ignored) = times;
            let (status, lost, phase, done) = stands;
            let [epoch, pages, next_seq, next_chunk, open_batches, events, events_reused, first_message] =
                numbers;
            let not_before = not_before.map(|(at, asked_seconds)| NotBefore { at, asked_seconds });
            RunRow {
                id,
                status,
                started_at,
                ended_at,
                since,
                since_ignored,
                window: window.map(|(from, to)| WindowRow { from, to }),
                epoch,
                lost,
                phase,
                done,
                pages,
                next_seq,
                next_chunk,
                open_batches,
                not_before,
                progress,
                events,
                event,
                events_reused,
                first_message,
                message,
                artifacts_max,
                activity: Activity { changed_at: ended_at, deaths: epoch },
            }
        },
    )
}

fn batch_row() -> impl Strategy<Value = BatchRow> {
    let state = prop_oneof![
        Just(BatchState::Staged),
        Just(BatchState::Uploaded),
        Just(BatchState::Confirmed),
        any::<u64>().prop_map(BatchState::Announced),
    ];
    let names = (any::<[String; 2]>(), option::of(any::<String>()), option::of(any::<String>()));
    (names, any::<[u64; 4]>(), any::<[u32; 2]>(), dates(), state, any::<bool>()).prop_map(
        |(([item_type, stream], cursor_after, artifact), numbers, [items, given_up], dates, state, saved)| {
            let [epoch, line_bytes, gzip_bytes, uploaded_in] = numbers;
            BatchRow {
                item_type,
                stream,
                epoch,
                items,
                line_bytes,
                gzip_bytes,
                dates,
                cursor_after,
                state,
                artifact,
                uploaded_in,
                given_up,
                saved,
            }
        },
    )
}

fn message_row() -> impl Strategy<Value = MessageRow> {
    let fate = prop_oneof![
        Just(MessageFate::Sealed),
        any::<u32>().prop_map(|times| MessageFate::Delivered { times }),
        Just(MessageFate::Proven),
    ];
    let kinds = [MessageKind::Done, MessageKind::Progress, MessageKind::Delay, MessageKind::Error];
    let names = (any::<[String; 2]>(), vec(any::<u8>(), 0..200));
    (any::<[u64; 3]>(), phase(), names, prop::sample::select(kinds.to_vec()), fate, micros(), any::<bool>())
        .prop_map(
            |([run, artifacts, event], phase, ([event_type, key], body), kind, fate, sealed_at, finishes)| {
                MessageRow {
                    run,
                    phase,
                    event,
                    kind,
                    event_type,
                    fate,
                    sealed_at,
                    artifacts,
                    finishes,
                    error: finishes.then(|| key.clone()),
                    key,
                    body,
                }
            },
        )
}

fn ledger_row() -> impl Strategy<Value = LedgerRow> {
    let types = vec((any::<String>(), any::<[u64; 4]>()), 0..4).prop_map(|types| {
        let of = |(item_type, [read, left_out, announced, artifacts]): (String, [u64; 4])| LedgerType {
            item_type,
            read,
            left_out,
            announced,
            artifacts,
        };
        types.into_iter().map(of).collect()
    });
    let times = (micros(), micros(), option::of(micros()), option::of(micros()));
    (any::<String>(), status(), times, any::<[u64; 9]>(), types).prop_map(
        |(id, status, (started_at, ended_at, since, watermark), numbers, types)| {
            let [epochs, pages, events, events_reused, queued, settled, failed, errors, warnings] = numbers;
            LedgerRow {
                id,
                status,
                started_at,
                ended_at,
                since,
                watermark,
                epochs,
                pages,
                events,
                events_reused,
                errors,
                warnings,
                types,
                attachments: LedgerAttachments { queued, settled, failed },
                deaths: pages,
                bytes: vec![pages, events],
            }
        },
    )
}

/// Reads back as it was; and with any byte changed, cut or added, as an error.
fn survives<R: Row + PartialEq + Debug>(row: &R, flip: u8, noise: &[u8]) {
    let bytes = row.to_bytes().unwrap();
    assert_eq!(&R::from_bytes(&bytes).unwrap(), row);
    let flip = flip.max(1);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= flip;
        assert!(R::from_bytes(&flipped).is_err(), "byte {at} of {}", hex(&bytes));
        assert!(R::from_bytes(&bytes[..at]).is_err(), "cut to {at} of {}", hex(&bytes));
    }
    let mut longer = bytes;
    longer.push(flip);
    assert!(R::from_bytes(&longer).is_err());
    // What is whole but was never a row: whatever it is taken for, it is not the end of the process.
    drop(R::from_bytes(&codec::seal(1, noise)));
}

fn config() -> ProptestConfig {
    let failures = FileFailurePersistence::Direct("proptest-regressions/rows.txt");
    ProptestConfig { cases: 64, failure_persistence: Some(Box::new(failures)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_row_reads_back_as_it_was_and_any_byte_flipped_or_cut_is_an_error(
        (run, batch, message, ledger) in (run_row(), batch_row(), message_row(), ledger_row()),
        (texts, numbers, small, times) in
            (any::<[String; 3]>(), any::<[u64; 9]>(), any::<u32>(), any::<[Option<i64>; 2]>()),
        (phase, exhausted, dates, bytes) in
            (phase(), any::<bool>(), dates(), vec(any::<u8>(), 0..300)),
        flip: u8,
        noise in prop_oneof![
            vec(any::<u8>(), 0..80),
            // Lengths that no body has.
            vec(prop::sample::select(vec![0_u8, 1, 2, 250, 251, 252, 253, 254, 255]), 0..80),
        ],
    ) {
        let noise = &noise;
        let [one, two, three] = texts;
        let [a, b, c, d, e, f, g, h, _] = numbers;
        let [created, watermark] = times.map(|time| time.map(Micros));
        survives(&run, flip, noise);
        survives(&batch, flip, noise);
        survives(&message, flip, noise);
        survives(&ledger, flip, noise);
        survives(&FormatRow { format: small, next_unit: a }, flip, noise);
        let created_at = created.unwrap_or(Micros(i64::MIN));
        survives(
            &UnitRow {
                no: a,
                created_at,
                run: Some(b),
                next_run: c,
                next_message: d,
                watermark,
                bounds: (watermark, None),
                holder: (None, Some(one.clone())),
                inherited: created,
                connector_version: Some(two.clone()),
            },
            flip,
            noise,
        );
        survives(&RunIdRow { run: a, id: KnownId::Whole(one.clone()) }, flip, noise);
        survives(
            &StreamRow { phase, cursor: Some(one.clone()), exhausted, pages: a, items: b, bookmark: None, pace: Pace { last_page_at: created, minutes: vec![MinuteRow { minute: 7, pages: a, items: b }] } },
            flip,
            noise,
        );
        survives(
            &TypeRow {
                read: a,
                left_out: h,
                batched: b,
                confirmed: c,
                announced: d,
                batches: e,
                artifacts_announced: f,
                open_items: small,
                open_bytes: g,
                last_artifact: Some(two.clone()),
                announced_bytes: g,
            },
            flip,
            noise,
        );
        survives(&ChunkRow { items: small, dates, lines: bytes.clone() }, flip, noise);
        survives(&BookmarkRow { json: two, run: h }, flip, noise);
        survives(&EventRow { identity: KnownId::Whole(one.clone()), order: a, accepted_at: created_at, message: Some(b) }, flip, noise);
        survives(&FindingRow { count: a, kept: vec![one.clone(), three.clone()] }, flip, noise);
        let counts = LedgerAttachments { queued: a, settled: b, failed: c };
        survives(&QueueRow { counts, position: d, requeued: e, lines: f, rebuild: exhausted }, flip, noise);
        survives(
            &AttachmentRow {
                json: one.clone(),
                artifact: Some((three.clone(), a)),
                saved: exhausted,
                given_up: small,
                tries: small,
                ready_at: created,
                reason: None,
            },
            flip,
            noise,
        );
        survives(&RejectedCountRow { records: a }, flip, noise);
        survives(&OnceRow {}, flip, noise);
        survives(&EdgeRow { content: Digest::of(&one) }, flip, noise);
        survives(&EdgeOfRow { run: a, watermark: created_at }, flip, noise);
        survives(&EdgeCountRow { unchanged: a, ids: b, forgotten: c }, flip, noise);
        survives(&OnceCountRow { repeated: a, ids: b, forgotten: c }, flip, noise);
        survives(
            &RejectedRow {
                fate: RejectedFate::Gone,
                run: a,
                rejected_at: created_at,
                asked: small,
                kind: one.clone(),
                reason: three.clone(),
                json: Some((one.clone(), b)),
            },
            flip,
            noise,
        );
        survives(&UsedNewestRow { hashes: vec![small, 0] }, flip, noise);
        survives(&StandingRow { watermark, bounds: (created, watermark), bookmarks: a }, flip, noise);
        survives(&RewoundRow { at: created_at, run: Some(a), watermark }, flip, noise);
        survives(&NextCursorRow { json: one.clone(), from_run: a, set_at: created_at }, flip, noise);
        survives(&ActRow { at: created_at, by: one.clone(), act: three.clone(), changes: vec![one.clone()] }, flip, noise);
        survives(&MostReadRow { pages: a, items: b }, flip, noise);
        survives(
            &ChildRow {
                stream: one.clone(),
                parent: three.clone(),
                data: one.clone(),
                named_with: a,
                under: if exhausted { UnderRow::Child(b) } else { UnderRow::Stream(one.clone()) },
                cursor: exhausted.then(|| three.clone()),
            },
            flip,
            noise,
        );
        survives(&ChildIdRow { no: a }, flip, noise);
        survives(&ChildStreamRow { named: a, exhausted: b, pages: c, items: d, pending_bytes: e }, flip, noise);
        survives(&PastRow { run_ids: vec![KnownId::Short(a), KnownId::Digest(Digest::of(&one))], deletions: vec![KnownId::Whole(one.clone())] }, flip, noise);
        survives(&SeenRow { run: a, number: b, fingerprint: Digest::of(&one), failed: exhausted }, flip, noise);
        survives(&SeenByHashRow { run: a, number: b, fingerprint: c, failed: exhausted }, flip, noise);
        survives(
            &FileRow { artifact: Some(one.clone()), first: a, items: small, loaded: exhausted },
            flip,
            noise,
        );
        survives(
            &FailedRow { json: one, reason: three.clone(), tries: small, failed_at: created_at },
            flip,
            noise,
        );
        survives(&Json(three), flip, noise);
        survives(&Payload(bytes), flip, noise);
    }

    #[test]
    fn keys_are_in_the_order_of_their_parts(
        (a, b) in (any::<[u64; 3]>(), any::<[u64; 3]>()),
        (name, other) in (name(), name()),
    ) {
        let key = |parts: &[u64; 3]| Key::unit(parts[0]).and_number(parts[1]).and_number(parts[2]);
        prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
        let named = |parts: &[u64; 3], name: &str| Key::unit(parts[0]).and_number(parts[1]).and_name(name);
        prop_assert_eq!(named(&a, &name).cmp(&named(&a, &other)), name.cmp(&other));
        let chunk = |name: &str, number| Key::unit(a[0]).and_number(a[1]).and_inner_name(name).and_number(number);
        prop_assert_eq!(chunk(&name, a[2]).cmp(&chunk(&name, b[2])), a[2].cmp(&b[2]));
        prop_assert_eq!(number_of(&a[0].to_be_bytes()), Ok(a[0]));
        prop_assert_eq!(name_of(name.as_bytes()), Ok(name.as_str()));
    }

    /// A range holds what belongs to its unit, run or item type, and nothing of another, however names begin.
    #[test]
    fn a_range_holds_its_own_and_nothing_else(
        units in any::<[u8; 2]>(),
        runs in any::<[u64; 2]>(),
        (name, suffix) in (name(), name()),
        number: u64,
    ) {
        let longer = format!("{name}{suffix}");
        let within = |prefix: &Key, key: &Key| {
            key >= prefix && prefix.end().is_none_or(|end| *key < end)
        };
        // Units and runs at the edges, where a carry goes through all bytes.
        for unit in [units[0].into(), u64::MAX - u64::from(units[0]), 0xff, 0xffff] {
            for other in [units[1].into(), u64::MAX - u64::from(units[1]), 0x100] {
                let key = Key::unit(other).and_number(runs[0]).and_name(&name);
                prop_assert_eq!(within(&Key::unit(unit), &key), unit == other);
                let run = Key::unit(unit).and_number(runs[0]);
                let key = Key::unit(other).and_number(runs[1]).and_name(&longer);
                prop_assert_eq!(within(&run, &key), (unit, runs[0]) == (other, runs[1]));
                let of_type = |name: &str| Key::unit(unit).and_number(runs[0]).and_inner_name(name);
                prop_assert!(within(&of_type(&name), &of_type(&name).and_number(number)));
                prop_assert!(!within(&of_type(&name), &of_type(&longer).and_number(number)));
                prop_assert!(!within(&of_type(&longer), &of_type(&name).and_number(number)));
            }
        }
    }
}

/// As `check_name` lets them through: not empty, and without control characters.
fn name() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{1,12}"
}

#[test]
fn the_end_of_a_range_carries_and_the_last_range_has_none() {
    assert_eq!(Key(vec![1, 0xff, 0xff]).end(), Some(Key(vec![2])));
    assert_eq!(Key(vec![0xff, 0xff]).end(), None);
    assert!(number_of(&[0; 7]).is_err() && number_of(&[0; 9]).is_err());
    assert!(name_of(&[0xff]).is_err());
}

/// What rows are found by stays as it is, too.
#[test]
fn keys_and_hashes_of_names_stay_as_they_are() {
    let keys = [
        Key::unit(1),
        Key::unit(1).and_number(2),
        Key::unit(1).and_number(2).and_number(3),
        Key::name("acme/tickets"),
        Key::unit(1).and_name("issues"),
        Key::unit(1).and_hash("run-1"),
    ];
    let shown =
        |key: &Key| key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let expected = [
        "0000000000000001",
        "00000000000000010000000000000002",
        "000000000000000100000000000000020000000000000003",
        "61636d652f7469636b657473",
        "0000000000000001697373756573",
        "00000000000000019065911b4ee53c08",
    ]
    .map(str::to_owned);
    assert_eq!((keys.each_ref().map(shown), name_hash("run-1")), (expected, 0x9065_911b_4ee5_3c08));
}

#[test]
fn golden_bytes_of_a_key_of_whole_ids() {
    let key = seen_key(1, "ab", "c");
    assert_eq!(key.as_bytes(), b"\0\0\0\0\0\0\0\x01\0\0\0\x02ab\0\0\0\x01c");
    assert_ne!(key, seen_key(1, "a", "bc"));
    assert!(seen_key(1, "ab", "\u{e9}").as_bytes().starts_with(Key::unit(1).and_id("ab").as_bytes()));
    assert!(!seen_key(1, "abc", "").as_bytes().starts_with(Key::unit(1).and_id("ab").as_bytes()));
}
