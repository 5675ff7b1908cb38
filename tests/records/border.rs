//! Text as real sources write it: truncated characters, duplicate keys, control characters, numbers that lose digits,
//! words for "none"; and text made to break a checker: nested, long, wide, or not text at all.

use std::collections::BTreeMap;
use std::ops::Add;

use highwater::Record;
use highwater::record::{
    Attachment, Checker, Field, FieldRule, Finding, Metadata, Normalizer, RecordType, Rule, Severity,
    Undeclared,
};
use serde_json::value::RawValue;
use serde_json::{Value, json};

fn metadata() -> Metadata {
    let issues = RecordType::new()
        .field("title", Field::text())
        .field("body", Field::rich_text())
        .field("size", Field::int())
        .field("due", Field::date())
        .field("home", Field::structure("address"))
        .field("about", Field::typed_reference(["#record:issues"]))
        .field("tags", Field::text().collection());
    Metadata::new().struct_type("address", [("city", Field::text())]).record_type("issues", issues)
}

fn checker() -> Checker {
    Checker::new(&metadata(), "issues").unwrap().undeclared(None)
}

fn normalizer() -> Normalizer {
    Normalizer::from_metadata(&metadata(), "issues").unwrap()
}

/// Place, rule and severity of what is found in a line.
fn found(line: impl AsRef<[u8]>) -> Vec<(String, Rule, Severity)> {
    let findings = checker().check_line(&line);
    findings.iter().map(|finding| (finding.path.to_string(), finding.rule, finding.severity)).collect()
}

/// Rule and place of what was changed in a record.
fn changes(record: &Record) -> Vec<(Rule, String)> {
    record.changes().iter().map(|change| (change.rule, change.path.to_string())).collect()
}

/// A reader that refuses what JSON readers may refuse.
fn strict(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

const HALVES: [&str; 6] =
    [r"\ud83d", r"\uDE00", r"\ud83d\ud83d", r"\ude00\ud83d", r"\ud83dx\ude00", r"\uD83D\\ude00"];

/// `JSON.stringify` escapes an unpaired surrogate: <https://tc39.es/ecma262/#sec-quotejsonstring>, and strict readers
/// refuse it: RFC 8259, section 8.2.
#[test]
fn half_a_character_is_found_at_its_place() {
    let half = |path: &str| vec![(path.to_owned(), Rule::Surrogate, Severity::Error)];
    for line in HALVES.map(|half| format!(r#"{{"id":"1","data":{{"title":"cut {half}"}}}}"#)) {
        let found = found(&line);
        assert!(!found.is_empty(), "{line}");
        assert!(found.iter().all(|one| *one == half("data.title")[0]), "{line}: {found:?}");
        assert_eq!(checker().check_line(&line)[0].record.as_deref(), Some("1"));
        assert!(
            checker().check_line(&line)[0].message.starts_with("unpaired surrogate, a character cut in half")
        );
    }
    for (line, path) in [
        (r#"{"id":"\ud83d","data":{}}"#, "id"),
        (r#"{"id":"1","data":{"home":{"city":"\ud83d"}}}"#, "data.home.city"),
        (r#"{"id":"1","data":{"tags":["a","\ud83d"]}}"#, "data.tags[1]"),
        (r#"{"id":"1","data":{"other":[{"a":1},{"b":"\ud83d"}]}}"#, "data.other[1].b"),
        (r#"{"id":"1","data":{"k\ud83d":1}}"#, "data[\"k\u{fffd}\"]"),
    ] {
        assert_eq!(found(line), half(path), "{line}");
    }
    // Whole characters, and what only looks like half of one.
    for line in [
        r#"{"id":"1","data":{"title":"\ud83d\ude00 \uD83D\uDE00 😀"}}"#,
        r#"{"id":"1","data":{"title":"C:\\ud83d"}}"#,
    ] {
        assert_eq!(found(line), [], "{line}");
    }
}

#[test]
fn half_a_character_in_a_file_is_on_its_line_and_hides_nothing_else() {
    let text =
        "{\"id\":\"1\",\"data\":{}}\n{\"id\":\"2\",\n\"data\":{\"title\":\"\\ud83d\",\n\"size\":\"x\"}}\n";
    let mut stream_of = checker();
    stream_of = stream_of.require_dates(false);
    let mut stream = stream_of.stream(text.as_bytes()).unwrap();
    let findings: Vec<Finding> = stream.by_ref().map(Result::unwrap).collect();
    let placed: Vec<_> = findings.iter().map(|f| (f.line, f.rule, f.record.as_deref())).collect();
    assert_eq!(placed, [(Some(3), Rule::Surrogate, Some("2")), (Some(4), Rule::Type, Some("2"))]);
    assert_eq!(findings[0].excerpt.as_ref().unwrap().value, r#""\ud83d""#);
    assert_eq!(stream.records(), 2);
}

#[test]
fn no_raw_json_goes_out_that_a_strict_reader_refuses() {
    #[derive(serde::Serialize)]
    struct WithRaw {
        raw: Box<RawValue>,
    }
    for half in HALVES {
        let object = format!(r#"{{"title":"a {half}","k{half}":[1,"{half}"]}}"#);
        let raw = || WithRaw { raw: RawValue::from_string(object.clone()).unwrap() };
        for record in [
            Record::from_raw("1", &object).unwrap(),
            Record::flat_raw(&object).unwrap(),
            Record::new("1", &raw()).unwrap(),
            Record::flat(&raw()).unwrap(),
        ] {
            let line = record.to_line();
            strict(&line);
            assert!(line.contains("ufffd"), "{line}");
            assert!(record.changes().len() >= 3, "{:?}", record.changes());
            assert!(
                record.changes().iter().all(|change| change.rule == Rule::Surrogate && !change.is_error())
            );
        }
    }
    let attachment = r#"{"id":"A","url":"u","file_name":"\ud83d.png","parent_id":"P"}"#;
    assert_eq!(changes(&Record::flat_raw(attachment).unwrap()), [(Rule::Surrogate, "file_name".to_owned())]);
    assert_eq!(changes(&Record::flat_raw(r#"{"a":"\ud83d\ude00","b":"\\ud83d"}"#).unwrap()), []);
}

#[test]
fn raw_json_that_is_nested_or_counts_beyond_readers_is_refused_by_name() {
    let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    strict(&Record::from_raw("1", &nested(126)).unwrap().to_line());
    strict(&Record::flat_raw(&nested(127)).unwrap().to_line());
    assert!(Record::flat_raw(&nested(128)).unwrap_err().to_string().contains("nested deeper"));
    assert!(Record::from_raw("1", &nested(127)).unwrap_err().to_string().contains("nested deeper"));
    assert!(Record::from_raw("1", &nested(100_000)).unwrap_err().to_string().contains("nested deeper"));
    let error = Record::from_raw("1", r#"{"a":{"b":1e999}}"#).unwrap_err().to_string();
    assert!(error.contains("1e999") && error.contains("data.a.b"), "{error}");
    assert!(Record::from_raw("1", &format!(r#"{{"a":{}}}"#, "9".repeat(400))).is_err());
    strict(&Record::from_raw("1", r#"{"a":[1e308,-1e-999,0.1]}"#).unwrap().to_line());
}

#[test]
fn typed_data_is_written_as_serde_json_writes_it_and_refused_where_its_text_would_be() {
    #[derive(serde::Serialize)]
    struct WithRaw(BTreeMap<&'static str, Box<RawValue>>);

    let data = json!({
        "text": "\u{e9} \"quoted\" \\ \n\u{0}\u{1f600}", "none": null, "yes": true, "empty": {}, "list": [],
        "numbers": [0, -1, u64::MAX, i64::MIN, 1.5e300, -0.0, 0.1], "objects": [{"a": {"b": [{}]}}],
    });
    let text = serde_json::to_string(&data).unwrap();
    // The second is written into the buffer of the first.
    for _ in 0..2 {
        let record = Record::new("1", &data).unwrap();
        assert_eq!(record.to_line(), format!(r#"{{"id":"1","data":{text}}}"#));
        assert_eq!(record, Record::from_raw("1", &text).unwrap());
        assert_eq!(Record::flat(&data).unwrap().to_line(), text);
    }

    let nested = |levels: usize| {
        let lists = (1..levels).fold(json!(0), |inner, _| json!([inner]));
        json!({"a": lists})
    };
    let refused = |made: highwater::Result<Record>| made.unwrap_err().to_string();
    assert!(Record::new("1", &nested(126)).is_ok());
    assert!(refused(Record::new("1", &nested(127))).contains("nested deeper"));
    assert!(Record::flat(&nested(127)).is_ok());
    assert!(refused(Record::flat(&nested(128))).contains("nested deeper"));

    let raw =
        |text: &str| WithRaw(BTreeMap::from([("raw", RawValue::from_string(text.to_owned()).unwrap())]));
    assert!(refused(Record::new("1", &raw("1e999"))).contains("greater than"));
    assert!(
        refused(Record::new("1", &raw(&"[".repeat(126).add(&"]".repeat(126))))).contains("nested deeper")
    );
    let pretty = raw("{\r\n  \"a\": \"b\\n\"\n}");
    assert_eq!(Record::flat(&pretty).unwrap().to_line(), r#"{"raw":{    "a": "b\n" }}"#);
}

#[test]
fn many_halves_of_characters_hide_nothing_and_all_are_counted() {
    for count in [999, 1_000, 1_001, 1_500] {
        let halves = r"\ud83d".repeat(count);
        for (bad, says) in [
            ("1e400".to_owned(), "greater than readers can represent"),
            (format!("{}1{}", "[".repeat(200), "]".repeat(200)), "nested deeper"),
        ] {
            let object = format!(r#"{{"t":"{halves}","n":{bad}}}"#);
            for refused in [Record::from_raw("1", &object), Record::flat_raw(&object)] {
                let error = refused.unwrap_err().to_string();
                assert!(error.contains(says), "{count}: {error}");
            }
        }
        let object = format!(r#"{{"id":"1","title":"{halves}","size":1}}"#);
        for record in [Record::from_raw("1", &object).unwrap(), normalizer().normalize_json(&object).unwrap()]
        {
            strict(&record.to_line());
            assert_eq!(record.changes().len(), count.min(1_000));
            assert!(record.changes().iter().all(|change| change.record.as_deref() == Some("1")));
            let told = record.changes().last().unwrap().message.contains("and 500 more");
            assert_eq!(told, count == 1_500, "{}", record.changes().last().unwrap());
        }
    }
    // Nor do control characters hide an unpaired surrogate from the check.
    let fields: Vec<_> = (0..1_001).map(|at| format!(r#""f{at}":"\u0000""#)).collect();
    let line = format!(r#"{{"id":"1","data":{{{},"title":"\ud83d"}}}}"#, fields.join(","));
    let found = found(&line);
    assert_eq!(found.last(), Some(&(String::new(), Rule::Limit, Severity::Error)));
    assert!(found.iter().any(|(_, rule, _)| *rule == Rule::ControlCharacter), "{:?}", found[0]);
}

#[test]
fn the_normaliser_puts_a_replacement_character_and_counts_it() {
    for half in HALVES {
        let raw = format!(r#"{{"id":"1","title":"a {half}","tags":["x","{half}"]}}"#);
        let record = normalizer().normalize_json(&raw).unwrap();
        let line = strict(&record.to_line());
        assert!(line["data"]["title"].as_str().unwrap().contains('\u{fffd}'), "{line}");
        assert!(changes(&record).contains(&(Rule::Surrogate, "title".to_owned())), "{:?}", changes(&record));
        assert!(changes(&record).contains(&(Rule::Surrogate, "tags[1]".to_owned())));
        assert_eq!(record.changes()[0].record.as_deref(), Some("1"));
    }
    assert_eq!(changes(&normalizer().normalize_json(r#"{"id":"1","title":"\ud83d\ude00"}"#).unwrap()), []);
}

/// RFC 8259, section 4: many implementations report the last name/value pair only.
#[test]
fn of_a_key_that_stands_twice_the_last_one_wins_at_any_depth() {
    let twice = |path: &str| (path.to_owned(), Rule::DuplicateKey, Severity::Warning);
    let findings = checker().check_line(r#"{"id":"1","id":"2","data":{}}"#);
    assert_eq!((findings.len(), findings[0].record.as_deref()), (1, Some("2")));
    for (line, paths) in [
        (r#"{"id":"1","id":"2","data":{}}"#, vec!["id"]),
        (r#"{"id":7,"id":"2","data":{}}"#, vec!["id"]),
        (r#"{"id":"1","data":{"size":"big"},"data":{"size":1}}"#, vec!["data"]),
        (r#"{"id":"1","data":{"size":"big","size":"bigger","size":3}}"#, vec!["data.size"]),
        (r#"{"id":"1","data":{"home":{"city":1,"city":"a"}}}"#, vec!["data.home.city"]),
        (r#"{"id":"1","data":{"about":{"ref_type":"issues","id":"1","id":"2"}}}"#, vec!["data.about.id"]),
        (
            r#"{"id":"1","data":{"body":["a",{"ref_type":"issues","id":"1","id":"2"}]}}"#,
            vec!["data.body[1].id"],
        ),
        (r#"{"id":"1","data":{"x":1,"x":2}}"#, vec!["data.x"]),
        (
            r#"{"id":"1","data":{"x":[{"y":{"z":1,"z":2}},{"z":1,"\u007a":2}]}}"#,
            vec!["data.x[0].y.z", "data.x[1].z"],
        ),
    ] {
        assert_eq!(found(line), paths.into_iter().map(twice).collect::<Vec<_>>(), "{line}");
    }
    // It is the last one that is checked.
    assert_eq!(
        found(r#"{"id":"1","data":{"size":1,"size":"big"}}"#),
        [twice("data.size"), ("data.size".to_owned(), Rule::Type, Severity::Error)]
    );
    assert_eq!(found(r#"{"id":"1","data":{"x":[{"z":1},{"z":2}],"title":"x"}}"#), []);
    let mut batch = checker();
    batch = batch.undeclared(None);
    let mut batch = batch.batch();
    assert!(batch.check_line(r#"{"id":"12","data":{}}"#).is_empty());
    assert_eq!(batch.check_line(r#"{"id":"1","id":"2","data":{}}"#).len(), 1);
    assert_eq!(batch.check_line(r#"{"id":"2","data":{}}"#)[0].rule, Rule::DuplicateId);
}

#[test]
fn control_characters_in_text_keys_and_ids_are_warnings() {
    let control = |path: &str| vec![(path.to_owned(), Rule::ControlCharacter, Severity::Warning)];
    for (line, path) in [
        (r#"{"id":"1","data":{"title":"a\u0000b\u0001"}}"#, "data.title"),
        (r#"{"id":"1","data":{"title":"a\bb"}}"#, "data.title"),
        (r#"{"id":"1","data":{"title":"a\fb"}}"#, "data.title"),
        (r#"{"id":"1","data":{"title":"a\u009bb"}}"#, "data.title"),
        ("{\"id\":\"1\",\"data\":{\"title\":\"a\u{7f}b\"}}", "data.title"),
        ("{\"id\":\"1\",\"data\":{\"title\":\"a\u{85}b\"}}", "data.title"),
        (r#"{"id":"1","data":{"other":["","\u0000"]}}"#, "data.other[1]"),
        (r#"{"id":"1","data":{"a\u0000":1}}"#, "data[\"a\\u{0}\"]"),
        (r#"{"id":"1\u0000","data":{}}"#, "id"),
        (r#"{"id":"1\n","data":{}}"#, "id"),
        (r#"{"id":"1\t","data":{}}"#, "id"),
    ] {
        assert_eq!(found(line), control(path), "{line}");
    }
    for fine in [
        r#"{"id":"1","data":{"title":"a\nb\tc\r\u000a \\u0000 \\b \u00a0"}}"#,
        "{\"id\":\"1\",\"data\":{\"title\":\"\u{a0}\u{e9}\u{20ac}\"}}",
    ] {
        assert_eq!(found(fine), [], "{fine}");
    }
    let mut odd = Attachment::new("A\0", "u", "a\0\r\n.png", "P");
    odd.author_id = Some("\u{1}".into());
    strict(&odd.to_record().unwrap().to_line());
}

/// The platform's own example declares it: <https://developer.devrev.ai/airdrop/metadata-extraction>
#[test]
fn an_id_may_be_declared_and_dates_are_warned_of() {
    let cards = RecordType::new()
        .field("id", Field::text().required().identifier())
        .field("created_date", Field::timestamp().required())
        .field("title", Field::text());
    let notes =
        RecordType::new().field("card", Field::reference(["#record:cards"]).by_field("#record:cards", "id"));
    let metadata = Metadata::new().record_type("cards", cards).record_type("notes", notes);
    let findings = metadata.check();
    let found: Vec<_> = findings.iter().map(|f| (f.path.to_string(), f.rule, f.severity)).collect();
    assert_eq!(
        found,
        [("record_types.cards.fields.created_date".to_owned(), Rule::ReservedField, Severity::Warning)]
    );
    let checker = Checker::new(&metadata, "cards").unwrap();
    // The id outside of the data is required; the data may have one too, of the declared type.
    assert_eq!(checker.check_line(r#"{"id":"1","data":{"title":"a"}}"#), []);
    assert_eq!(checker.check_line(r#"{"id":"1","data":{"id":"1","created_date":null}}"#), []);
    assert_eq!(checker.check_line(r#"{"id":"1","data":{"id":1}}"#)[0].rule, Rule::Type);
    let normalizer = Normalizer::from_metadata(&metadata, "cards").unwrap().rule("id", FieldRule::of("key"));
    let line = normalizer.normalize(&json!({"key": 17, "title": "a"})).unwrap().to_line();
    assert_eq!(strict(&line), json!({"id": "17", "data": {"id": "17", "title": "a"}}));
}

#[test]
fn every_replaced_stand_in_is_told_by_field_and_an_id_of_minus_one_is_an_id() {
    let raw =
        json!({"id": -1, "size": "N/A", "due": "", "title": "Null", "home": {"city": "n/a"}, "tags": [-1]});
    let record = normalizer().normalize(&raw).unwrap();
    assert_eq!(
        strict(&record.to_line()),
        json!({"id": "-1", "data": {"size": null, "due": null, "title": "Null", "home": {"city": "n/a"}, "tags": ["-1"]}})
    );
    let stand_in = |path: &str| (Rule::StandIn, path.to_owned());
    assert_eq!(changes(&record), [stand_in("data.size"), stand_in("data.due")]);
    assert_eq!(record.changes()[0].to_string().matches("N/A").count(), 1, "{}", record.changes()[0]);
    // For the whole source, in one line.
    let record = normalizer().null_if([json!(-1), json!("null"), json!("n/a")]).normalize(&raw).unwrap();
    assert_eq!(
        strict(&record.to_line()),
        json!({"id": "-1", "data": {"size": null, "due": null, "title": null, "home": {"city": null}, "tags": []}})
    );
    assert_eq!(changes(&record).len(), 5);
    // A rule of its own overrides it, for a field and for the id.
    let own = normalizer().null_if([-1]).rule("size", FieldRule::new().null_if([0]));
    assert_eq!(
        strict(&own.normalize(&json!({"id": "1", "size": -1})).unwrap().to_line())["data"]["size"],
        -1
    );
    let own = normalizer().rule("id", FieldRule::new().null_if([-1]));
    assert_eq!(own.normalize(&json!({"id": -1})).unwrap_err()[0].rule, Rule::Id);
    // As numbers, not as they are written; and not by way of a float.
    let numbers = normalizer().null_if([json!(-1), json!(9_007_199_254_740_993_u64)]);
    for (size, kept) in
        [(json!(-1.0), false), (json!("-1.0"), false), (json!(9_007_199_254_740_992_u64), true)]
    {
        let line = strict(&numbers.normalize(&json!({"id": "1", "size": size})).unwrap().to_line());
        assert_eq!(!line["data"]["size"].is_null(), kept, "{size}");
    }
}

#[test]
fn undeclared_fields_that_are_left_out_are_told_by_field() {
    let normalizer = normalizer().undeclared(Undeclared::Drop);
    let record =
        normalizer.normalize(&json!({"id": "1", "etag": 1, "home": {"zip": 2, "city": "a"}})).unwrap();
    assert_eq!(strict(&record.to_line()), json!({"id": "1", "data": {"home": {"city": "a"}}}));
    let left_out = |path: &str| (Rule::Undeclared, path.to_owned());
    assert_eq!(changes(&record), [left_out("data.etag"), left_out("data.home.zip")]);
}

/// `Number.MAX_SAFE_INTEGER` is 2^53 - 1, and 2^53 + 1 is the first that JavaScript cannot hold.
#[test]
fn an_int_that_readers_round_or_cannot_hold_is_a_warning() {
    let line = |size: &str| format!(r#"{{"id":"1","data":{{"size":{size}}}}}"#);
    for fine in ["9007199254740992", "-9007199254740992", "0"] {
        assert_eq!(found(line(fine)), [], "{fine}");
    }
    let nines = "9".repeat(300);
    for rounded in [
        "9007199254740993",
        "-9007199254740993",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        nines.as_str(),
    ] {
        let found = found(line(rounded));
        assert_eq!(found, [("data.size".to_owned(), Rule::Precision, Severity::Warning)], "{rounded}");
    }
    let told = checker().check_line(&line("18446744073709551616")).remove(0);
    assert!(told.message.starts_with("a whole number of about 1.8446744073709552e19 does"), "{told}");
    // Bounds count first, and what has decimals is no int.
    let bounded = RecordType::new().field("size", Field::int().max(7));
    let checker = Checker::new(&Metadata::new().record_type("issues", bounded), "issues").unwrap();
    for (size, rule) in [("18446744073709551616", Rule::Bounds), ("1.5", Rule::Type)] {
        let found = checker.check_line(&line(size));
        assert_eq!((found[0].rule, found[0].severity), (rule, Severity::Error), "{size}");
    }
}

/// Bytes that are not UTF-8 are an error in every field, whether it is checked or not.
#[test]
fn bytes_that_are_no_text_are_found_wherever_they_stand() {
    for bytes in [&b"\xff"[..], b"\xc3", b"\xc0\x80", b"\xed\xa0\xbd", b"\xf4\x90\x80\x80", b"\xe2\x82"] {
        for (before, after) in [
            (&b"{\"id\":\"1\",\"data\":{\"title\":\""[..], &b"\"}}"[..]),
            (b"{\"id\":\"1\",\"data\":{\"other\":\"", b"\"}}"),
            (b"{\"id\":\"1\",\"data\":{\"", b"\":1}}"),
            (b"{\"id\":\"1\",\"x\":\"", b"\",\"data\":{}}"),
            (b"{\"id\":\"", b"\",\"data\":{}}"),
        ] {
            let line = [before, bytes, after].concat();
            let found = checker().check_line(&line);
            assert_eq!(found.len(), 1, "{line:?}: {found:?}");
            assert_eq!(found[0].rule, Rule::Json);
            assert!(found[0].expected.as_deref().unwrap().contains("UTF-8"), "{}", found[0]);
        }
    }
}

/// Nothing here may panic, and nothing may take time that grows with the square of the text.
#[test]
fn text_made_to_break_a_reader_is_answered() {
    let long = "k".repeat(1_000_000);
    let keys = |key: &dyn Fn(u32) -> String| (0..200_000).map(key).collect::<Vec<_>>().join(",");
    let (wide, same) = (keys(&|n| format!("\"k{n}\":1")), keys(&|_| "\"size\":\"x\"".to_owned()));
    let halves = r"\ud83d".repeat(200_000);
    let datas = [
        format!("{{{wide}}}"),
        format!("{{{same}}}"),
        format!("{{\"home\":{{{wide}}}}}"),
        format!("{{\"x\":{{{wide}}}}}"),
        format!("{{\"{long}\":{{\"{long}\":[\"{halves}\"]}}}}"),
        format!("{{\"{halves}\":\"{halves}\"}}"),
        format!("{{\"tags\":[{}]}}", vec![r#""\ud83d\u0000""#; 100_000].join(",")),
        format!("{{\"size\":{}}}", "9".repeat(1_000_000)),
        format!("{{\"size\":1e{}}}", "9".repeat(1_000_000)),
        "{".repeat(1_000_000),
        "{\"a\":[".repeat(200_000),
        format!("{{\"a\":\"{}", "\\".repeat(1_000_001)),
        "{\"a\":\"\\u".to_owned(),
        "{\"a\":\"\\ud83d\\u".to_owned(),
    ];
    for data in &datas {
        for line in [format!("{{\"id\":\"1\",\"data\":{data}}}"), data.clone()] {
            let checker = Checker::new(&metadata(), "issues").unwrap();
            assert!(!checker.check_line(&line).is_empty());
            assert!(checker.stream(line.as_bytes()).unwrap().map(Result::unwrap).count() > 0);
            let _ = normalizer().normalize_json(&line);
        }
        if let Ok(record) = Record::from_raw("1", data) {
            strict(&record.to_line());
        }
    }
}
