//! A record is checked against its record type: for each rule there is what passes and what does not, and each
//! finding tells where it is and what was expected. Files may have any layout, and line numbers are right in all of
//! them.

#![expect(clippy::needless_pass_by_value, reason = "`json!` in place reads best without borrows")]

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use highwater::Record;
use highwater::record::{Checker, EnumValue, Field, Finding, Metadata, RecordType, Rule, Severity};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::{Value, json};

fn metadata() -> Metadata {
    let issues = RecordType::new()
        .field("bool", Field::bool())
        .field("int", Field::int())
        .field("int_bounds", Field::int().min(-5).max(10))
        .field("float", Field::float())
        .field("float_bounds", Field::float().min(0.5).max(1.5))
        .field("text", Field::text())
        .field("text_bounds", Field::text().min(2).max(4))
        .field("rich", Field::rich_text())
        .field("owner", Field::reference(["#record:users"]))
        .field("about", Field::typed_reference(["#record:users", "#category:works"]))
        .field(
            "prio",
            Field::enumeration([
                EnumValue::new("P-0").name("Blocker"),
                EnumValue::new("P-1"),
                EnumValue::new("7").deprecated(),
            ]),
        )
        .field("day", Field::date())
        .field("at", Field::timestamp())
        .field("home", Field::structure("address"))
        .field("shared", Field::permission(["#record:users"], ["reader", "writer"]))
        .field("rights", Field::record_type_privilege())
        .field("tags", Field::enumeration(["bug", "idea"]).collection())
        .field("words", Field::text().collection_of(1, 3))
        .field("homes", Field::structure("address").collection())
        .field("parts", Field::rich_text().collection())
        .field("abouts", Field::typed_reference(["#record:users"]).collection());
    Metadata::new()
        .category("works", "Work")
        .struct_type(
            "address",
            [
                ("city", Field::text().required()),
                ("zip", Field::text().max(5)),
                ("next", Field::structure("address")),
            ],
        )
        .record_type("users", RecordType::new())
        .record_type("tasks", RecordType::new().category("works"))
        .record_type("issues", issues)
        .record_type(
            "strict",
            RecordType::new()
                .field("title", Field::text().required())
                .field("size", Field::int().required().set("is_write_only", true)),
        )
        .record_type("rules", RecordType::new().no_identifier().field("name", Field::text()))
}

fn checker(record_type: &str) -> Checker {
    let metadata = metadata();
    assert_eq!(metadata.check(), []);
    Checker::new(&metadata, record_type).unwrap()
}

fn check(record_type: &str, record: &Value) -> Vec<Finding> {
    checker(record_type).check_line(&record.to_string())
}

/// Values of a field of an issue that are right.
fn passes(field: &str, values: &[Value]) {
    for value in values {
        let findings = check("issues", &json!({"id": "1", "data": {field: value}}));
        assert_eq!(findings, [], "{field} = {value}");
    }
}

/// A value of a field of an issue that is wrong in one way.
fn fails(field: &str, value: Value, rule: Rule, place: &str, texts: &[&str]) {
    one(
        Severity::Error,
        &json!({"id": "1", "data": {field: value}}),
        rule,
        &format!("data.{field}{place}"),
        texts,
    );
}

fn one(severity: Severity, record: &Value, rule: Rule, path: &str, texts: &[&str]) {
    let findings = check("issues", record);
    let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(findings.len(), 1, "{record}: {shown:#?}");
    assert_eq!((findings[0].severity, findings[0].rule), (severity, rule), "{shown:?}");
    assert_eq!(findings[0].path.to_string(), path, "{shown:?}");
    for text in texts {
        assert!(shown[0].contains(text), "{text:?} is not in {:?}", shown[0]);
    }
}

#[test]
fn the_platforms_own_example_passes() {
    let metadata = Metadata::new().record_type("users", RecordType::new()).record_type(
        "incidents",
        RecordType::new()
            .field("actual_close_date", Field::timestamp())
            .field("creator", Field::reference(["#record:users"]).required())
            .field("owner", Field::reference(["#record:users"]).required())
            .field("rca", Field::rich_text())
            .field("severity", Field::enumeration(["fatal", "minor"]).required())
            .field("summary", Field::text().required()),
    );
    let record = r#"{"id":"2102e01F","created_date":"1972-03-29T22:04:47+01:00","modified_date":"1970-01-01T01:00:04+01:00","data":{"actual_close_date":"1970-01-01T02:33:18+01:00","creator":"b8","owner":"A3A","rca":null,"severity":"fatal","summary":"Lorem ipsum"}}"#;
    assert_eq!(Checker::new(&metadata, "incidents").unwrap().check_line(record), []);
}

#[test]
fn null_and_nothing_are_no_value_in_every_field_that_is_not_required() {
    let all: Vec<String> = serde_json::to_value(metadata()).unwrap()["record_types"]["issues"]["fields"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(check("issues", &json!({"id": "1", "data": {}})), []);
    for field in all {
        passes(&field, &[json!(null)]);
    }
}

#[test]
fn a_required_field_is_neither_absent_nor_null_but_may_be_empty() {
    let strict = |data: Value| check("strict", &json!({"id": "1", "data": data}));
    assert_eq!(strict(json!({"title": "x"})), []);
    assert_eq!(strict(json!({"title": ""})), []);
    for data in [json!({}), json!({"title": null})] {
        let findings = strict(data);
        assert_eq!((findings.len(), findings[0].rule), (1, Rule::Required), "{findings:?}");
        assert_eq!(findings[0].path.to_string(), "data.title");
    }
}

#[test]
fn a_bool_is_true_or_false() {
    passes("bool", &[json!(true), json!(false)]);
    fails("bool", json!("true"), Rule::Type, "", &["the string \"true\"", "write true, without quotes"]);
    fails("bool", json!(1), Rule::Type, "", &["the number 1"]);
    fails("bool", json!(""), Rule::Type, "", &["write null"]);
    fails("bool", json!({}), Rule::Type, "", &["an object"]);
}

#[test]
fn an_int_is_a_number_without_decimals_within_its_bounds() {
    passes("int", &[json!(0), json!(-7), json!(1_u64 << 53)]);
    assert_eq!(checker("issues").check_line(r#"{"id":"1","data":{"int":-0}}"#), []);
    fails("int", json!(1.5), Rule::Type, "", &["1.5", "round it"]);
    fails("int", json!(3.0), Rule::Type, "", &["3.0", "write 3"]);
    fails("int", json!("12"), Rule::Type, "", &["the string \"12\"", "write 12, without quotes"]);
    fails("int", json!("twelve"), Rule::Type, "", &["the string \"twelve\""]);
    fails("int", json!(true), Rule::Type, "", &["true"]);
    fails("int", json!([1]), Rule::Collection, "", &["an array of 1", "\"collection\": {}"]);
    let beyond = checker("issues").check_line(r#"{"id":"1","data":{"int":123456789012345678901234567890}}"#);
    assert!(beyond[0].to_string().contains("64 bits"), "{}", beyond[0]);
    passes("int_bounds", &[json!(-5), json!(10), json!(0)]);
    fails("int_bounds", json!(11), Rule::Bounds, "", &["11", "-5 to 10"]);
    fails("int_bounds", json!(-6), Rule::Bounds, "", &["-6", "-5 to 10"]);
    fails("int_bounds", json!(u64::MAX), Rule::Bounds, "", &["18446744073709551615"]);
}

#[test]
fn a_float_is_a_number_within_its_bounds() {
    passes("float", &[json!(0), json!(-1.25), json!(1e300), json!(3)]);
    fails("float", json!("1.5"), Rule::Type, "", &["write 1.5, without quotes"]);
    fails("float", json!("1,5"), Rule::Type, "", &["a number such as 1.5"]);
    fails("float", json!("x"), Rule::Type, "", &["declare the field as text"]);
    passes("float_bounds", &[json!(0.5), json!(1), json!(1.5)]);
    fails("float_bounds", json!(1.75), Rule::Bounds, "", &["0.5 to 1.5"]);
    fails("float_bounds", json!(0), Rule::Bounds, "", &["0.5 to 1.5"]);
}

#[test]
fn a_texts_length_is_counted_in_characters_and_empty_is_a_value() {
    passes("text", &[json!(""), json!("N/A"), json!("x".repeat(100_000)), json!("a\nb")]);
    fails("text", json!(7), Rule::Type, "", &["write \"7\""]);
    fails("text", json!(["a"]), Rule::Collection, "", &[]);
    fails("text", json!({"a": 1}), Rule::Type, "", &["text is a string"]);
    // Two characters of four bytes each, and four of three.
    passes(
        "text_bounds",
        &[json!("ab"), json!("abcd"), json!("\u{1f600}\u{1f600}"), json!("\u{20ac}\u{20ac}\u{20ac}\u{20ac}")],
    );
    fails("text_bounds", json!(""), Rule::Bounds, "", &["0 characters", "2 to 4"]);
    fails("text_bounds", json!("\u{1f600}"), Rule::Bounds, "", &["1 characters"]);
    fails("text_bounds", json!("abcde"), Rule::Bounds, "", &["5 characters"]);
    fails(
        "text_bounds",
        json!("\u{20ac}\u{20ac}\u{20ac}\u{20ac}\u{20ac}"),
        Rule::Bounds,
        "",
        &["5 characters"],
    );
}

#[test]
fn rich_text_is_a_string_or_strings_and_mentions() {
    let mention = json!({"ref_type": "users", "id": "7", "fallback_record_name": "Ann"});
    passes(
        "rich",
        &[
            json!(""),
            json!("Hello **world**"),
            json!([]),
            json!(["Hello ", mention, "!"]),
            json!([{"ref_type": "artifact", "id": "a1"}]),
        ],
    );
    fails("rich", json!(7), Rule::Type, "", &["write \"7\""]);
    fails("rich", json!([7]), Rule::Type, "[0]", &["the number 7"]);
    fails("rich", json!(["a", null]), Rule::Type, "[1]", &["null"]);
    fails("rich", json!([["a"]]), Rule::Type, "[0]", &["an array of 1"]);
    fails(
        "rich",
        json!({"type": "rich_text", "content": ["a"]}),
        Rule::Type,
        "",
        &["under \"content\" alone"],
    );
    fails("rich", json!([{"ref_type": "users"}]), Rule::ReferenceForm, "[0]", &["has no id"]);
    fails("rich", json!([{"id": "7"}]), Rule::ReferenceForm, "[0]", &["has no ref_type"]);
    fails("rich", json!([{"ref_type": "users", "id": 7}]), Rule::ReferenceForm, "[0].id", &["write \"7\""]);
    fails(
        "rich",
        json!([{"ref_type": "users", "id": "7", "fallback_record_name": 7}]),
        Rule::ReferenceForm,
        "[0].fallback_record_name",
        &["a string"],
    );
    let record = |part: Value| json!({"id": "1", "data": {"rich": ["a", part]}});
    let warning = Severity::Warning;
    one(
        warning,
        &record(json!({"ref_type": "user", "id": "7"})),
        Rule::RefType,
        "data.rich[1].ref_type",
        &["did you mean \"users\"?"],
    );
    one(
        warning,
        &record(json!({"ref_type": "users", "id": "7", "name": "Ann"})),
        Rule::Undeclared,
        "data.rich[1].name",
        &["has no meaning"],
    );
}

#[test]
fn a_reference_is_a_string_and_no_number_or_object() {
    passes("owner", &[json!("7"), json!("don:identity/1"), json!("-1")]);
    fails("owner", json!(7), Rule::ReferenceForm, "", &["write \"7\""]);
    fails("owner", json!(""), Rule::ReferenceForm, "", &["write null"]);
    fails("owner", json!({"id": "7", "name": "Ann"}), Rule::ReferenceForm, "", &["write \"7\""]);
    fails("owner", json!({"id": 7}), Rule::ReferenceForm, "", &["write \"7\""]);
    fails("owner", json!({"ref_type": "users", "id": "7"}), Rule::ReferenceForm, "", &["typed_reference"]);
    fails("owner", json!({"name": "Ann"}), Rule::ReferenceForm, "", &["an object", "the id of the record"]);
    fails("owner", json!(["7"]), Rule::Collection, "", &["an array of 1"]);
}

#[test]
fn a_typed_reference_has_a_type_that_the_field_may_refer_to() {
    passes(
        "about",
        &[
            json!({"ref_type": "users", "id": "7"}),
            json!({"ref_type": "tasks", "id": "7", "fallback_record_name": "T"}),
            json!({"ref_type": "users", "id": "7", "fallback_record_name": null}),
        ],
    );
    fails(
        "about",
        json!({"ref_type": "issues", "id": "7"}),
        Rule::RefType,
        ".ref_type",
        &["\"issues\"", "\"tasks\", \"users\""],
    );
    fails(
        "about",
        json!({"ref_type": "user", "id": "7"}),
        Rule::RefType,
        ".ref_type",
        &["did you mean \"users\"?"],
    );
    fails(
        "about",
        json!({"ref_type": "#record:users", "id": "7"}),
        Rule::RefType,
        ".ref_type",
        &["write \"users\""],
    );
    fails("about", json!({"ref_type": "users", "id": 7}), Rule::ReferenceForm, ".id", &["write \"7\""]);
    fails("about", json!({"ref_type": "users"}), Rule::ReferenceForm, "", &["has no id"]);
    fails("about", json!({"id": "7"}), Rule::ReferenceForm, "", &["has no ref_type"]);
    fails("about", json!({"ref_type": "users", "id": ""}), Rule::ReferenceForm, ".id", &["not empty"]);
    fails("about", json!("7"), Rule::ReferenceForm, "", &["\"id\": \"7\""]);
    let record =
        json!({"id": "1", "data": {"about": {"ref_type": "users", "id": "7", "fallback_name": "Ann"}}});
    one(Severity::Warning, &record, Rule::Undeclared, "data.about.fallback_name", &["has no meaning"]);
}

#[test]
fn an_enum_value_is_a_key_not_a_name() {
    passes("prio", &[json!("P-0"), json!("P-1"), json!("7")]);
    fails("prio", json!("P0"), Rule::EnumValue, "", &["did you mean \"P-0\"?"]);
    fails("prio", json!("Blocker"), Rule::EnumValue, "", &["name of a value", "\"P-0\""]);
    fails("prio", json!("urgent"), Rule::EnumValue, "", &["\"P-0\", \"P-1\", \"7\""]);
    fails("prio", json!(""), Rule::EnumValue, "", &["write null"]);
    fails("prio", json!(7), Rule::EnumValue, "", &["write \"7\""]);
    fails("prio", json!(8), Rule::EnumValue, "", &["\"P-0\", \"P-1\", \"7\""]);
    fails("prio", json!({"key": "P-0"}), Rule::EnumValue, "", &["an object"]);
}

#[test]
fn a_date_is_a_day_of_the_calendar() {
    passes("day", &[json!("2020-12-31"), json!("2020-02-29"), json!("0001-01-01")]);
    fails("day", json!("2021-02-29"), Rule::Date, "", &["cannot be read as a day", "2020-12-31"]);
    fails("day", json!("31.12.2020"), Rule::Date, "", &["31.12.2020"]);
    fails("day", json!("2020-12-31T00:00:00Z"), Rule::Date, "", &["time of day"]);
    fails("day", json!("20201231"), Rule::Date, "", &["another form"]);
    fails("day", json!(""), Rule::Date, "", &["write null"]);
    fails("day", json!(1_600_000_000), Rule::Date, "", &["the number 1600000000"]);
}

#[test]
fn a_timestamp_is_rfc_3339_with_offset() {
    passes("at", &[json!("1972-03-29T22:04:47+01:00"), json!("2020-12-31T23:59:59.999999Z")]);
    fails(
        "at",
        json!("2020-12-31T23:59:59"),
        Rule::Timestamp,
        "",
        &["no offset", "write \"2020-12-31T23:59:59Z\", if it is in UTC"],
    );
    fails("at", json!("2020-12-31"), Rule::Timestamp, "", &["without a time"]);
    fails("at", json!("2020-12-31 23:59:59Z"), Rule::Timestamp, "", &["another form"]);
    fails("at", json!("Thu, 31 Dec 2020 23:59:59 +0000"), Rule::Timestamp, "", &["RFC 2822"]);
    fails("at", json!("1609459199"), Rule::Timestamp, "", &["seconds since 1970"]);
    fails("at", json!(1_609_459_199), Rule::Timestamp, "", &["the number 1609459199"]);
    fails("at", json!("soon"), Rule::Timestamp, "", &["\"soon\"", "1972-03-29T22:04:47+01:00"]);
    fails("at", json!(1_609_459_199_000_u64), Rule::Timestamp, "", &["write \"2020-12-31T23:59:59Z\""]);
    fails(
        "at",
        json!("2020-12-31 23:59:59 +0100"),
        Rule::Timestamp,
        "",
        &["write \"2020-12-31T23:59:59+01:00\""],
    );
    fails("at", json!(""), Rule::Timestamp, "", &["write null"]);
}

#[test]
fn a_struct_is_an_object_with_its_own_fields() {
    passes("home", &[json!({"city": "Ulm"}), json!({"city": "", "zip": null, "next": {"city": "Bonn"}})]);
    fails("home", json!("Ulm"), Rule::Type, "", &["a struct is an object"]);
    fails("home", json!({"zip": "89073"}), Rule::Required, ".city", &["missing"]);
    fails("home", json!({"city": "Ulm", "zip": "890731"}), Rule::Bounds, ".zip", &["6 characters"]);
    fails("home", json!({"city": "Ulm", "next": {"city": 5}}), Rule::Type, ".next.city", &["write \"5\""]);
    let record = json!({"id": "1", "data": {"home": {"city": "Ulm", "zpi": "1"}}});
    one(Severity::Warning, &record, Rule::Undeclared, "data.home.zpi", &["did you mean \"zip\"?"]);
}

#[test]
fn a_permission_is_a_member_and_a_role() {
    passes("shared", &[json!({"member_id": "7", "role": "reader"}), json!({"member_id": "7"})]);
    fails(
        "shared",
        json!({"member_id": 7, "role": "reader"}),
        Rule::ReferenceForm,
        ".member_id",
        &["write \"7\""],
    );
    fails("shared", json!({"role": "reader"}), Rule::ReferenceForm, "", &["has no member_id"]);
    fails(
        "shared",
        json!({"member_id": "7", "role": "raeder"}),
        Rule::EnumValue,
        ".role",
        &["did you mean \"reader\"?"],
    );
    fails("shared", json!({"member_id": "7", "role": 1}), Rule::EnumValue, ".role", &["a string"]);
    fails("shared", json!("7"), Rule::ReferenceForm, "", &["member_id"]);
    passes("rights", &[json!({"record_types": ["tasks"], "privileges": ["read"]})]);
    fails("rights", json!("read"), Rule::Type, "", &["an object"]);
}

#[test]
fn a_collection_is_an_array_of_what_the_field_is_otherwise() {
    passes("tags", &[json!([]), json!(["bug"]), json!(["bug", "idea", "bug"])]);
    fails("tags", json!("bug"), Rule::Collection, "", &["write [\"bug\"]"]);
    fails("tags", json!("bug;idea"), Rule::Collection, "", &["write [\"bug\", \"idea\"]"]);
    fails("tags", json!("bug, idea"), Rule::Collection, "", &["write [\"bug\", \"idea\"]"]);
    fails("tags", json!(""), Rule::Collection, "", &["write null"]);
    fails("tags", json!({"0": "bug"}), Rule::Collection, "", &["an object"]);
    fails("tags", json!(["bug", "ida"]), Rule::EnumValue, "[1]", &["did you mean \"idea\"?"]);
    fails("tags", json!([["bug"]]), Rule::Collection, "[0]", &["an array itself"]);
    one(
        Severity::Warning,
        &json!({"id": "1", "data": {"tags": ["bug", null]}}),
        Rule::Collection,
        "data.tags[1]",
        &["leave the element out"],
    );
    passes("words", &[json!(["a"]), json!(["a", "", "c"])]);
    fails("words", json!([]), Rule::Bounds, "", &["0 elements", "1 to 3"]);
    fails("words", json!(["a", "b", "c", "d"]), Rule::Bounds, "", &["4 elements", "1 to 3"]);
    passes("homes", &[json!([{"city": "Ulm"}])]);
    fails("homes", json!({"city": "Ulm"}), Rule::Collection, "", &["write an array"]);
    fails("homes", json!([{"city": "Ulm"}, {}]), Rule::Required, "[1].city", &["missing"]);
    passes("parts", &[json!(["a", ["b", {"ref_type": "users", "id": "7"}]])]);
    fails("parts", json!([[7]]), Rule::Type, "[0][0]", &["the number 7"]);
    passes("abouts", &[json!([{"ref_type": "users", "id": "7"}])]);
    fails("abouts", json!([{"ref_type": "tasks", "id": "7"}]), Rule::RefType, "[0].ref_type", &["\"users\""]);
}

#[test]
fn an_undeclared_field_is_what_the_caller_says_it_is() {
    let line = r#"{"id":"1","data":{"txet":1,"item_url_field":"https://example.com/1"}}"#;
    let warned = checker("issues").check_line(line);
    assert_eq!((warned.len(), warned[0].severity, warned[0].rule), (1, Severity::Warning, Rule::Undeclared));
    assert!(warned[0].to_string().contains("did you mean \"text\"?"), "{}", warned[0]);
    assert_eq!(checker("issues").undeclared(None).check_line(line), []);
    assert_eq!(checker("issues").undeclared(Severity::Error).check_line(line)[0].severity, Severity::Error);
}

#[test]
fn the_envelope_is_id_dates_and_data() {
    let date = "2020-01-01T00:00:00Z";
    let right =
        json!({"id": "1", "created_date": date, "modified_date": date, "operation": "created", "data": {}});
    assert_eq!(check("issues", &right), []);
    assert_eq!(check("issues", &json!({"id": "1", "created_date": null, "operation": null, "data": {}})), []);
    let error = Severity::Error;
    one(error, &json!({"data": {}}), Rule::Id, "", &["has no id"]);
    one(
        error,
        &json!({"ID": "1", "id": null, "data": {}})
            .as_object()
            .map(|o| json!({"id": o["id"], "data": {}}))
            .unwrap(),
        Rule::Id,
        "id",
        &["null"],
    );
    one(error, &json!({"id": "", "data": {}}), Rule::Id, "id", &["empty"]);
    one(error, &json!({"id": 17, "data": {}}), Rule::Id, "id", &["write \"17\""]);
    one(error, &json!({"id": "x".repeat(513), "data": {}}), Rule::Id, "id", &["513 bytes", "512"]);
    one(
        error,
        &json!({"id": "1", "data": {}, "operation": 5}),
        Rule::Envelope,
        "operation",
        &["the number 5"],
    );
    one(error, &json!({"id": "1", "data": null}), Rule::Envelope, "data", &["data is null"]);
    one(error, &json!({"id": "1", "data": []}), Rule::Envelope, "data", &["an array"]);
    one(error, &json!({"id": "1"}), Rule::Envelope, "", &["has no \"data\""]);
    one(
        error,
        &json!({"id": "1", "text": "x", "bool": true}),
        Rule::Envelope,
        "",
        &["\"text\" at the top", "under \"data\""],
    );
    one(
        error,
        &json!({"id": "1", "data": {}, "text": "x"}),
        Rule::Envelope,
        "text",
        &["move it under \"data\""],
    );
    one(
        Severity::Warning,
        &json!({"id": "1", "data": {}, "operaton": "x"}),
        Rule::Envelope,
        "operaton",
        &["did you mean \"operation\"?"],
    );
    one(
        error,
        &json!({"id": "1", "data": {}, "created_date": "2020-01-01"}),
        Rule::Timestamp,
        "created_date",
        &["without a time"],
    );
    one(
        error,
        &json!({"id": "1", "data": {}, "modified_date": 5}),
        Rule::Timestamp,
        "modified_date",
        &["the number 5"],
    );
    for (other, shown) in
        [("[]", "an array of 0"), ("7", "the number 7"), ("\"x\"", "the string \"x\""), ("null", "null")]
    {
        let findings = checker("issues").check_line(other);
        assert_eq!((findings.len(), findings[0].rule), (1, Rule::Envelope), "{other}");
        assert!(findings[0].to_string().contains(shown), "{}", findings[0]);
    }
}

#[test]
fn dates_are_needed_only_where_the_caller_says_so() {
    let strict = checker("issues").require_dates(true);
    let findings = strict.check_line(r#"{"id":"1","created_date":"2020-01-01T00:00:00Z","data":{}}"#);
    assert_eq!((findings.len(), findings[0].rule), (1, Rule::Required));
    assert!(findings[0].to_string().contains("modified_date"), "{}", findings[0]);
}

#[test]
fn records_without_identifier_need_no_id() {
    assert_eq!(check("rules", &json!({"data": {"name": "x"}})), []);
    assert_eq!(check("rules", &json!({"id": "1", "data": {"name": "x"}})), []);
}

#[test]
fn a_key_that_stands_twice_is_found() {
    let checker = checker("issues");
    for (line, path) in [
        (r#"{"id":"1","id":"1","data":{}}"#, "id"),
        (r#"{"id":"1","data":{},"data":{}}"#, "data"),
        (r#"{"id":"1","data":{"text":"a","int":1,"text":"b"}}"#, "data.text"),
        (r#"{"id":"1","data":{"home":{"city":"a","city":"b"}}}"#, "data.home.city"),
    ] {
        let findings = checker.check_line(line);
        assert_eq!((findings.len(), findings[0].rule), (1, Rule::DuplicateKey), "{line}");
        assert_eq!(findings[0].path.to_string(), path);
    }
}

#[test]
fn a_line_that_is_no_json_is_one_finding() {
    for (line, help) in [
        (r#"{"id":"1","data":{"text":"a"}"#, "ends too early"),
        (r#"{"id":"1","data":{"text":"a",}}"#, "comma"),
        (r#"{"id":'1',"data":{}}"#, "double quotes"),
        (r#"{"id":"1","data":{"float":NaN}}"#, "write null"),
        (r#"{"id":"1","data":{"bool":True}}"#, "lower case"),
        (r#"{"id":"1" "data":{}}"#, "put a comma"),
        (r#"{"id":"1","data":{}}}"#, "follows the document"),
        (r#"{id:"1","data":{}}"#, "double quotes"),
        ("{\"id\":\"1\",\"data\":{\"text\":\"a\tb\"}}", "newlines and tabs"),
    ] {
        let findings = checker("issues").check_line(line);
        assert_eq!((findings.len(), findings[0].rule), (1, Rule::Json), "{line}");
        assert!(findings[0].to_string().contains(help), "{line}: {}", findings[0]);
    }
    let findings = checker("issues").check_line(b"{\"id\":\"1\",\"data\":{\"text\":\"\xff\"}}".as_slice());
    assert!(findings[0].to_string().contains("not UTF-8"), "{}", findings[0]);
    // Nested without end: refused, not a stack overflow.
    let deep = format!("{{\"id\":\"1\",\"data\":{{\"home\":{}", "{\"next\":".repeat(100_000));
    assert_eq!(checker("issues").check_line(&deep)[0].rule, Rule::Json);
    let deep =
        format!("{{\"id\":\"1\",\"data\":{{\"nobody\":{}{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(checker("issues").check_line(&deep)[0].rule, Rule::Json);
}

#[test]
fn a_record_type_that_is_not_declared_has_no_checker() {
    let findings = Checker::new(&metadata(), "isues").unwrap_err();
    assert_eq!((findings.len(), findings[0].rule), (1, Rule::RecordType));
    assert!(findings.to_string().contains("did you mean \"issues\"?"), "{findings}");
}

#[test]
fn what_the_metadata_gets_wrong_lets_every_value_pass() {
    let metadata = Metadata::from_value(json!({"record_types": {"issues": {"fields": {
        "a": {"type": "wombat"}, "b": {"type": "enum"}, "c": 5, "d": {"type": "reference"}, "e": {"type": "struct", "struct": {"key": "x"}}
    }}}}));
    assert_eq!(metadata.check().len(), 5);
    let checker = Checker::new(&metadata, "issues").unwrap();
    for value in [json!(1), json!("x"), json!([[1]]), json!({"a": {}}), json!(null)] {
        let record = json!({"id": "1", "data": {"a": value, "b": value, "c": value, "d": value, "e": value}});
        assert_eq!(checker.check_line(&record.to_string()), [], "{record}");
    }
}

#[test]
fn an_id_stands_once_in_a_batch() {
    let checker = checker("issues");
    let mut batch = checker.batch();
    let line = |id: &str| format!(r#"{{"id":"{id}","data":{{}}}}"#);
    for id in ["a", "b", "c"] {
        assert_eq!(batch.check_line(&line(id)), []);
    }
    let findings = batch.check_line(&line("b"));
    assert_eq!((findings.len(), findings[0].rule, findings[0].line), (1, Rule::DuplicateId, Some(4)));
    assert!(findings[0].to_string().contains("on line 2"), "{}", findings[0]);
    assert_eq!(checker.batch().check_line(&line("b")), [], "another batch");
}

#[test]
fn a_record_is_checked_as_the_line_that_it_becomes() {
    let record = Record::new("1", &json!({"int": "5"})).unwrap();
    let findings = checker("issues").check(&record);
    assert_eq!((findings.len(), findings[0].record.as_deref()), (1, Some("1")));
}

// Files.

/// Line, record, path and rule of each finding in a text.
fn found(text: impl Read) -> Vec<(u64, String, String, Rule)> {
    let checker = checker("issues");
    let findings: Vec<Finding> = checker.stream(text).unwrap().map(Result::unwrap).collect();
    findings
        .into_iter()
        .map(|found| {
            (found.line.unwrap(), found.record.unwrap_or_default(), found.path.to_string(), found.rule)
        })
        .collect()
}

fn records_in(text: &str) -> u64 {
    let checker = checker("issues");
    let mut stream = checker.stream(text.as_bytes()).unwrap();
    for finding in stream.by_ref() {
        finding.unwrap();
    }
    stream.records()
}

fn at(line: u64, record: &str, path: &str, rule: Rule) -> (u64, String, String, Rule) {
    (line, record.to_owned(), path.to_owned(), rule)
}

#[test]
fn records_are_read_in_any_layout_with_the_right_lines() {
    let lines = "{\"id\":\"1\",\"data\":{}}\n\n  {\"id\":\"2\",\"data\":{\"int\":1.5}}  \r\n{\"id\":\"3\",\"data\":{\"int\":\"3\"}}";
    assert_eq!(
        found(lines.as_bytes()),
        [at(3, "2", "data.int", Rule::Type), at(4, "3", "data.int", Rule::Type)]
    );
    assert_eq!(records_in(lines), 3);
    let pretty = "{\n  \"id\": \"1\",\n  \"data\": {\n    \"text\": \"a { [ \\\" b\",\n    \"int\": 1.5\n  }\n}\n{\n  \"id\": \"2\",\n  \"data\": {\n    \"tags\": [\n      \"bug\",\n      \"x\"\n    ]\n  }\n}\n";
    assert_eq!(
        found(pretty.as_bytes()),
        [at(5, "1", "data.int", Rule::Type), at(13, "2", "data.tags[1]", Rule::EnumValue)]
    );
    assert_eq!(records_in(pretty), 2);
    let mixed = "{\"id\":\"1\",\"data\":{\"int\":1.5}} {\"id\":\"2\",\"data\":{}}{\"id\":\"3\",\n\"data\":{\"int\":\"\"}}\n{\"id\":\"4\",\"data\":{\"int\":0.5}}\n";
    assert_eq!(
        found(mixed.as_bytes()),
        [
            at(1, "1", "data.int", Rule::Type),
            at(2, "3", "data.int", Rule::Type),
            at(3, "4", "data.int", Rule::Type)
        ]
    );
    assert_eq!(records_in(mixed), 4);
    let garbage = "{\"id\":\"1\",\"data\":{}} garbage\n{\"id\":\"2\",\"data\":{}},\nid,title\n";
    assert_eq!(records_in(garbage), 3);
    let checker = checker("issues");
    let shown: Vec<String> =
        checker.stream(garbage.as_bytes()).unwrap().map(|finding| finding.unwrap().to_string()).collect();
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert!(shown[0].contains("line 1") && shown[0].contains("follows the record"), "{shown:?}");
    assert!(shown[1].contains("line 2") && shown[1].contains("without commas"), "{shown:?}");
    assert!(shown[2].contains("line 3") && shown[2].contains("begins with {"), "{shown:?}");
    assert_eq!(found(&b""[..]), []);
    assert_eq!(found(&b"\n \n\n"[..]), []);
}

/// A pipe that hands over one byte at a time.
struct Dribble<R>(R);

impl<R: Read> Read for Dribble<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let end = out.len().min(1);
        self.0.read(&mut out[..end])
    }
}

/// Compressed by the gzip of the system, not by the crate that reads it.
fn gzip(text: &[u8]) -> Vec<u8> {
    let mut gzip =
        Command::new("gzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip is installed");
    gzip.stdin.take().unwrap().write_all(text).unwrap();
    gzip.wait_with_output().unwrap().stdout
}

#[test]
fn gzip_of_any_number_of_members_is_read_like_plain_text() {
    let first = gzip(b"{\"id\":\"1\",\"data\":{}}\n{\"id\":\"2\",\"data\":{\"int\":1.5}}\n");
    let second = gzip(b"{\"id\":\"3\",\"data\":{\"int\":\"3\"}}\n");
    let expected = [at(2, "2", "data.int", Rule::Type), at(3, "3", "data.int", Rule::Type)];
    let both = [first.clone(), second].concat();
    assert_eq!(found(both.as_slice()), expected);
    assert_eq!(found(Dribble(both.as_slice())), expected);
    let checker = checker("issues");
    let cut = &first[..first.len() - 9];
    assert!(
        checker.stream(cut).unwrap().any(|finding| finding.is_err()),
        "damaged gzip is an error, not the end"
    );
}

#[test]
fn a_broken_line_is_one_finding_and_the_next_record_is_read() {
    let good = "{\"id\":\"9\",\"data\":{\"int\":1.5}}\n";
    for broken in [
        "{\"id\":\"1\",\"data\":{\"text\":\"a\"}\n",
        "{\"id\":\"1\",\"data\":{\"text\":\"a\n",
        "{\"id\":\"1\",\"data\":{\"text\":\"a}}\n",
        "{\"id\":\"1\",,\"data\":{}}\n",
        "{\"id\":\"1\",\"data\":{}}}\n",
        "{\"id\":\"1\",\"data\":[}}\n",
        "wombat\n",
        "[1,2\n",
        "[{\"id\":\"1\"\n",
        "{'id':'1'}\n",
        "}\n",
        "\"\n",
    ] {
        let text = format!("{{\"id\":\"0\",\"data\":{{}}}}\n{broken}{good}{good}");
        let found = found(text.as_bytes());
        assert_eq!(found.len(), 4, "{broken:?}: {found:?}");
        assert_eq!((found[0].0, found[0].3), (2, Rule::Json), "{broken:?}");
        assert_eq!(found[1], at(3, "9", "data.int", Rule::Type), "{broken:?}");
        assert_eq!((found[2].0, found[2].3), (4, Rule::Type), "{broken:?}");
        assert_eq!((found[3].0, found[3].3), (4, Rule::DuplicateId), "{broken:?}");
    }
}

#[test]
fn a_broken_record_over_several_lines_is_one_finding_and_the_next_record_is_read() {
    let good = "{\n  \"id\": \"9\",\n  \"data\": {\"int\": 1.5}\n}\n";
    for (broken, line) in [
        // A comma is missing, a bracket, a quote; a comma is too many.
        ("{\n  \"id\": \"1\"\n  \"data\": {\n    \"int\": 1\n  }\n}\n", 3),
        ("{\n  \"id\": \"1\",\n  \"data\": {\n    \"int\": 1\n  }\n", 1),
        ("{\n  \"id\": \"1,\n  \"data\": {\n    \"int\": 1\n  }\n}\n", 2),
        ("{\n  \"id\": \"1\",\n  \"data\": {\n    \"int\": 1,\n  }\n}\n", 5),
    ] {
        let text = format!("{broken}{good}");
        let found = found(text.as_bytes());
        assert_eq!(found.len(), 2, "{broken}: {found:?}");
        assert_eq!((found[0].0, found[0].3), (line, Rule::Json), "{broken}");
        let good_line = broken.lines().count() as u64 + 3;
        assert_eq!(found[1], at(good_line, "9", "data.int", Rule::Type), "{broken}");
    }
    // Lines that do not begin with the bracket of the next record, after a quote is missing.
    let indented = "{\n  \"id\": \"1,\n  \"data\": {}\n}\n {\"id\":\"9\",\"data\":{\"int\":1.5}}\n";
    let two = found(indented.as_bytes());
    assert_eq!((two.len(), two[0].0, two[0].3), (2, 2, Rule::Json), "{two:?}");
    assert_eq!(two[1], at(5, "9", "data.int", Rule::Type));
    // The last one has no end.
    let found = found(&b"{\n  \"id\": \"1\",\n  \"data\": {\n"[..]);
    assert_eq!((found.len(), found[0].0, found[0].3), (1, 1, Rule::Json));
}

/// Objects that stand at the beginning of a line, but inside of a record.
#[test]
fn a_record_without_indentation_is_still_one_record() {
    let text = "{\n\"id\": \"1\",\n\"data\": {\n\"abouts\": [\n{\"ref_type\": \"users\", \"id\": \"1\"},\n{\n\"ref_type\": \"users\",\n\"id\": 2\n}\n]\n}\n}\n";
    assert_eq!(found(text.as_bytes()), [at(8, "1", "data.abouts[1].id", Rule::ReferenceForm)]);
    assert_eq!(records_in(text), 1);
}

#[test]
fn one_array_of_records_is_one_finding() {
    for text in [
        "[\n{\"id\":\"1\",\"data\":{}},\n{\"id\":\"2\",\"data\":{}}\n]\n",
        "[{\"id\":\"1\",\"data\":{}},{\"id\":\"2\",\"data\":{}}]\n",
    ] {
        let found = found(text.as_bytes());
        assert_eq!((found.len(), found[0].0, found[0].3), (1, 1, Rule::Envelope), "{text}");
    }
}

#[test]
fn a_byte_order_mark_and_other_encodings_are_found() {
    let text = b"\xef\xbb\xbf{\"id\":\"1\",\"data\":{\"int\":1.5}}\n";
    assert_eq!(found(&text[..]), [at(1, "", "", Rule::Json), at(1, "1", "data.int", Rule::Type)]);
    let utf16: Vec<u8> = "{\"id\":\"1\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(found(utf16.as_slice())[0].3, Rule::Json);
}

#[test]
fn ids_that_stand_twice_are_found_far_apart_in_one_file() {
    let mut text =
        (0..60_000).map(|n| format!("{{\"id\":\"{n}\",\"data\":{{}}}}\n")).collect::<Vec<_>>().concat();
    text.push_str("{\"id\":\"0\",\"data\":{}}\n");
    assert_eq!(found(text.as_bytes()), [at(60_001, "0", "id", Rule::DuplicateId)]);
}

#[test]
fn a_record_over_the_limit_is_a_finding_and_the_next_is_read() {
    let limit = highwater::limits::BATCH_BYTES_MAX;
    let head = "{\"id\":\"1\",\"data\":{\"text\":\"";
    let tail = "\"}}\n{\"id\":\"2\",\"data\":{\"int\":1.5}}\n";
    let text = head.as_bytes().chain(io::repeat(b'x').take(limit)).chain(tail.as_bytes());
    assert_eq!(found(text), [at(1, "", "", Rule::Limit), at(2, "2", "data.int", Rule::Type)]);
}

#[test]
fn an_excerpt_shows_the_value_and_what_is_around_it() {
    let checker = checker("issues");
    let text =
        format!("{{\"id\":\"1\",\"data\":{{\"text\":\"{}\",\"int\":1.5,\"bool\":true}}}}\n", "x".repeat(200));
    let finding = checker.stream(text.as_bytes()).unwrap().next().unwrap().unwrap();
    let excerpt = finding.excerpt.unwrap();
    assert_eq!(excerpt.value, "1.5");
    assert!(excerpt.before.starts_with("...x") && excerpt.before.ends_with("\"int\":"), "{excerpt}");
    assert_eq!(excerpt.after, ",\"bool\":true}}");
}

/// One record with tens of thousands of mistakes: as many are told as help, in bounded time and memory.
#[test]
fn of_very_many_findings_in_one_record_the_first_are_told() {
    let words = vec!["1"; 30_000].join(",");
    let text = format!(
        "{{\"id\":\"1\",\"data\":{{\"tags\":[{words}]}}}}\n{{\"id\":\"2\",\"data\":{{\"int\":1.5}}}}\n"
    );
    let found = found(text.as_bytes());
    assert_eq!(found.len(), 1_002);
    assert_eq!(found[999], at(1, "1", "data.tags[999]", Rule::EnumValue));
    assert_eq!(found[1_000], at(1, "1", "", Rule::Limit));
    assert_eq!(found[1_001], at(2, "2", "data.int", Rule::Type));
    let findings = checker("issues").check_line(text.lines().next().unwrap());
    assert!(findings.last().unwrap().to_string().contains("29000 more"), "{:?}", findings.last());
}

/// An input that fails in the middle.
struct Failing(&'static [u8]);

impl Read for Failing {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::Error::other("the cable was pulled"));
        }
        self.0.read(out)
    }
}

#[test]
fn an_input_that_fails_is_an_error_not_the_end() {
    let checker = checker("issues");
    let mut stream = checker.stream(Failing(b"{\"id\":\"1\",\"data\":{}}\n{\"id\"")).unwrap();
    let error = stream.next().unwrap().unwrap_err();
    assert_eq!(error.kind(), highwater::ErrorKind::Io);
    assert!(stream.next().is_none(), "it has ended then");
}

// Any layout, and anything at all.

/// A record whose one wrong value is not in any other, so that its line can be found in the text.
fn marked(n: usize, text: &str, spread: bool) -> String {
    let record = json!({"id": format!("id{n}"), "data": {"text": text, "tags": ["bug", "idea"], "int": format!("wrong{n}.")}});
    if spread { serde_json::to_string_pretty(&record).unwrap() } else { record.to_string() }
}

/// The lines and ids of what is found, and of what is not JSON only the lines.
fn places(text: &[u8]) -> Vec<(u64, Option<String>, Rule)> {
    let checker = checker("issues");
    let stream = checker.stream(text).unwrap();
    stream.map(Result::unwrap).map(|found| (found.line.unwrap(), found.record, found.rule)).collect()
}

/// Values as they stand in a line: right for one field or another, nearly right, or not JSON.
const VALUES: [&str; 74] = [
    "null",
    "true",
    "false",
    "True",
    "[]",
    "{}",
    "[null]",
    "[[]]",
    "0",
    "-0",
    "-0.0",
    "00",
    "01",
    "-1",
    "-5",
    "-6",
    "10",
    "11",
    "1.5",
    "1.",
    ".5",
    "-",
    "0.5",
    "0.49",
    "1e3",
    "1E400",
    "123456789012345",
    "1234567890123456",
    "9007199254740993",
    "18446744073709551616",
    r#""""#,
    r#"" ""#,
    r#""a""#,
    r#""ab""#,
    r#""abcd""#,
    r#""abcde""#,
    r#""abcdefgh""#,
    r#""12345678901234567""#,
    r#""\n""#,
    r#""a\nb""#,
    r#""\"\\\/\r\t\n""#,
    r#""\u0041""#,
    r#""\u0000""#,
    r#""\b""#,
    r#""\x""#,
    r#""\ud83d""#,
    r#""\ud83d\ude00""#,
    "\"\u{e9}\u{e9}\"",
    "\"\u{1f600}\"",
    "\"\u{7f}\"",
    "\"\u{85}\"",
    "\"\t\"",
    "\"\n\"",
    r#""P-0""#,
    r#""P-1""#,
    r#""P-2""#,
    r#""7""#,
    r#""p-0""#,
    r#""P\u002d0""#,
    r#""bug""#,
    r#"["bug","idea"]"#,
    r#"["bug" ,"idea"]"#,
    r#"["bug",]"#,
    r#"["a","b","c","d"]"#,
    r#""2024-02-29""#,
    r#""2023-02-29""#,
    r#""2024-02-29T12:00:00Z""#,
    r#""2024-02-29T12:00:00.5+01:00""#,
    r#""2024-02-29T12:00Z""#,
    r#""2024-02-29T12:00:00z""#,
    r#"{"city":"a","zip":"12345"}"#,
    r#"{"city":"a","zip":"123456"}"#,
    r#"{"zip":null,"city":null}"#,
    r#"{"city":"a","next":{"city":"b"},"city":"c"}"#,
];

/// Keys of `data`: mostly declared ones.
const KEYS: [&str; 26] = [
    "bool",
    "int",
    "int_bounds",
    "float",
    "float_bounds",
    "text",
    "text_bounds",
    "rich",
    "owner",
    "about",
    "prio",
    "day",
    "at",
    "home",
    "shared",
    "rights",
    "tags",
    "words",
    "homes",
    "parts",
    "abouts",
    "item_url_field",
    "item_url_field",
    "id",
    "other",
    r"\u0069nt",
];

/// A line without whitespace between its parts, right in most of them.
fn compact_line() -> impl Strategy<Value = String> {
    let fitting = |key: &str| match key {
        "bool" => "true",
        "int" | "int_bounds" => "-5",
        "float" | "float_bounds" => "0.5",
        "prio" => r#""P-1""#,
        "day" => r#""2024-02-29""#,
        "at" => r#""2024-02-29T12:00:00.5+01:00""#,
        "home" => r#"{"city":"a\n","zip":null,"next":{"city":"b"}}"#,
        "homes" => r#"[{"city":"a"},{"zip":"1","city":"b"}]"#,
        "tags" => r#"["bug","idea"]"#,
        "words" => r#"["a"]"#,
        "about" => r#"{"ref_type":"users","id":"7"}"#,
        _ => r#""abcd""#,
    };
    // What fits; nearly, by the kind of value that the field has; and anything.
    let value = move |key: &str, how: u8, at: prop::sample::Index| match how {
        0..=5 => fitting(key),
        6 | 7 => {
            let is_number = matches!(key, "int" | "int_bounds" | "float" | "float_bounds");
            let begins = |value: &str| value.starts_with(|c: char| c.is_ascii_digit() || "-.".contains(c));
            let near: Vec<&str> = VALUES.into_iter().filter(|value| begins(value) == is_number).collect();
            near[at.index(near.len())]
        }
        _ => VALUES[at.index(VALUES.len())],
    };
    let member = (prop::sample::select(KEYS.to_vec()), 0..9_u8, any::<prop::sample::Index>());
    let members = prop::collection::vec(member, 0..6).prop_map(move |members| {
        let members = members.iter().map(|(key, how, at)| format!("\"{key}\":{}", value(key, *how, *at)));
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    });
    let date = || {
        let text =
            prop_oneof![6 => Just(r#""2024-02-29T12:00:00Z""#), 1 => prop::sample::select(VALUES.to_vec())];
        prop::option::weighted(0.7, text)
    };
    let id = prop_oneof![6 => Just(r#""7""#), 1 => prop::sample::select(VALUES.to_vec())];
    let operation = prop::option::weighted(
        0.2,
        prop_oneof![2 => Just(r#""deleted""#), 1 => prop::sample::select(VALUES.to_vec())],
    );
    let end = prop::sample::select(vec![
        "}",
        "}",
        "}",
        "}",
        "}",
        "}",
        "}",
        "}",
        "}}",
        "} ",
        ",\"more\":1}",
        ",}",
        "",
    ]);
    let swapped = prop::bool::weighted(0.1);
    (id, date(), date(), operation, members, end, swapped).prop_map(
        |(id, created, modified, operation, data, end, swapped)| {
            let mut parts = vec![format!("\"id\":{id}")];
            let mut add = |key: &str, value: Option<&str>| {
                parts.extend(value.map(|value| format!("\"{key}\":{value}")));
            };
            add("created_date", created);
            add("modified_date", modified);
            add("operation", operation);
            add("data", Some(&data));
            if swapped {
                parts.rotate_left(1);
            }
            format!("{{{}{end}", parts.join(","))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/check.txt"))),
        ..ProptestConfig::default()
    })]

    /// However records are laid out, each is checked, and the line is that of the value.
    #[test]
    fn any_layout_gives_the_same_findings_on_the_right_lines(
        records in prop::collection::vec(("[a-z{}\\[\\]\"\\\\\n,: \u{20ac}]{0,8}", any::<bool>(), prop::sample::select(vec!["\n", "\n\n", " \r\n", " ", ""])), 0..6)
    ) {
        let mut text = String::new();
        for (n, (inner, spread, separator)) in records.iter().enumerate() {
            text.push_str(&marked(n, inner, *spread));
            text.push_str(separator);
        }
        let expected: Vec<_> = (0..records.len())
            .map(|n| {
                let at = text.find(&format!("wrong{n}.")).unwrap();
                (text[..at].matches('\n').count() as u64 + 1, Some(format!("id{n}")), Rule::Type)
            })
            .collect();
        prop_assert_eq!(places(text.as_bytes()), expected.clone(), "{}", text);
        let dribbled: Vec<_> = found(Dribble(text.as_bytes())).into_iter().map(|(line, id, _, rule)| (line, Some(id), rule)).collect();
        prop_assert_eq!(dribbled, expected, "{}", text);
    }

    /// One byte of one record spoilt, and all the others are checked as before.
    #[test]
    fn a_spoilt_byte_costs_no_more_than_its_record(
        count in 2..6_usize, spoilt in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in prop::sample::select(b"x1\"{}[]:,\\ \xff".to_vec())
    ) {
        let mut lines: Vec<Vec<u8>> = (0..count).map(|n| marked(n, "a", false).into_bytes()).collect();
        let spoilt = spoilt.index(count);
        // The bracket that begins the line stays: by it, the reader finds its way again.
        let length = lines[spoilt].len();
        lines[spoilt][1 + at.index(length - 1)] = byte;
        let text = lines.join(&b'\n');
        let others: Vec<_> = places(&text).into_iter().filter(|(line, ..)| *line != spoilt as u64 + 1).collect();
        let expected: Vec<_> =
            (0..count).filter(|n| *n != spoilt).map(|n| (n as u64 + 1, Some(format!("id{n}")), Rule::Type)).collect();
        // A spoilt id may be that of another record, and a later record then stands twice.
        let others: Vec<_> = others.into_iter().filter(|(.., rule)| *rule != Rule::DuplicateId).collect();
        prop_assert_eq!(others, expected, "{}", String::from_utf8_lossy(&text));
    }

    /// Nothing that is read makes the reader panic, or go on without end.
    #[test]
    fn anything_at_all_is_read_to_its_end(text in prop::collection::vec(prop::sample::select(b"{}[]\",:\\ \n1antd\xc3\x1f\x8b".to_vec()), 0..60)) {
        let checker = checker("issues");
        let found: Vec<_> = checker.stream(text.as_slice()).unwrap().collect();
        prop_assert!(found.len() <= 8 * (text.len() + 1), "{found:?}");
        // Bytes that begin like gzip but are not gzip are an error, after which nothing is read.
        let failed = found.iter().position(Result::is_err);
        prop_assert!(failed.is_none_or(|failed| failed + 1 == found.len() && text.starts_with(b"\x1f\x8b")), "{found:?}");
    }
}

/// The fields that a compact line has are counted in words of 64 bits, and only those of two words.
#[test]
fn a_compact_line_of_many_fields_has_the_findings_of_one_with_a_space() {
    let key = |n: usize| format!("field{n}");
    for count in [63, 64, 65, 127, 128, 129, 140] {
        let fields =
            (0..count).map(|n| (key(n), if n % 9 == 0 { Field::int().required() } else { Field::int() }));
        let metadata = Metadata::new()
            .record_type("wide", fields.fold(RecordType::new(), |wide, (key, field)| wide.field(key, field)));
        let checker = Checker::new(&metadata, "wide").unwrap();
        let found_of = |members: &[usize]| {
            let members: Vec<_> = members.iter().map(|n| format!("\"{}\":{n}", key(*n))).collect();
            let line = format!("{{\"id\":\"7\",\"data\":{{{}}}}}", members.join(","));
            let found = checker.check_line(&line);
            assert_eq!(found, checker.check_line(&line.replacen('{', "{ ", 1)), "{line}");
            found.iter().map(|finding| (finding.rule, finding.path.to_string())).collect::<Vec<_>>()
        };
        let all: Vec<usize> = (0..count).collect();
        let backwards: Vec<usize> = (0..count).rev().collect();
        assert_eq!((found_of(&all), found_of(&backwards)), (vec![], vec![]));
        for twice in 0..count {
            let members = [all.as_slice(), &[twice]].concat();
            let at = format!("data.{}", key(twice));
            assert_eq!(found_of(&members), [(Rule::DuplicateKey, at)], "{twice} of {count}");
            let members: Vec<_> = all.iter().copied().filter(|n| *n != twice).collect();
            let is_required = twice % 9 == 0;
            assert_eq!(found_of(&members).len(), usize::from(is_required), "{twice} of {count}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(8_000),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/check.txt"))),
        ..ProptestConfig::default()
    })]

    /// A line as this crate writes it is read in a way of its own. A space after the bracket that begins it forbids
    /// that, and changes nothing in what is found.
    #[test]
    fn a_compact_line_has_the_findings_of_one_with_a_space(line in compact_line(), strict in any::<bool>()) {
        static CHECKER: LazyLock<Checker> = LazyLock::new(|| checker("issues"));
        let checker = CHECKER.clone().require_dates(strict);
        let spaced = line.replacen('{', "{ ", 1);
        prop_assert!(spaced.len() > line.len());
        let (mut compact, mut walked) = (checker.batch(), checker.batch());
        prop_assert_eq!(compact.check_line(&line).len(), walked.check_line(&spaced).len(), "{}", &line);
        // Again: what is found is the same, and so is the id by which the second is a duplicate.
        let told = |findings: Vec<Finding>| -> Vec<String> { findings.iter().map(ToString::to_string).collect() };
        prop_assert_eq!(told(compact.check_line(&line)), told(walked.check_line(&spaced)), "{}", line);
    }
}
