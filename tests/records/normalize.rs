//! A value of a source is normalised by the metadata: what is converted, and to what; and what is not, because it is
//! ambiguous. For any input, the output of the normaliser is valid, normalising twice is the same as normalising
//! once, and valid records pass unchanged.

use chrono::FixedOffset;
use highwater::record::{
    Checker, EnumValue, Field, FieldRule, Metadata, Normalizer, RecordType, Rule, TimeFormat, Undeclared,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::{Map, Value, json};

fn metadata() -> Metadata {
    let priorities =
        [EnumValue::new("p0").name("Blocker"), EnumValue::new("p1").name("High"), EnumValue::new("3")];
    let issues = RecordType::new()
        .field("bool", Field::bool())
        .field("int", Field::int())
        .field("balance", Field::int().min(-10))
        .field("float", Field::float())
        .field("degrees", Field::float().min(-273.15))
        .field("text", Field::text())
        .field("none_is_none", Field::text().set("default_value", "N/A"))
        .field("rich", Field::rich_text())
        .field("owner", Field::reference(["#record:users"]))
        .field("mail", Field::reference(["#record:users"]).by_field("#record:users", "email"))
        .field(
            "either",
            Field::reference(["#record:users", "#record:tasks"]).by_field("#record:users", "email"),
        )
        .field("about", Field::typed_reference(["#record:users"]))
        .field("abouts", Field::typed_reference(["#record:users", "#record:tasks"]).collection())
        .field("prio", Field::enumeration(priorities))
        .field("answer", Field::enumeration(["yes", "N/A", "-1"]))
        .field("cased", Field::enumeration(["a", "A", "b"]))
        .field("day", Field::date())
        .field("at", Field::timestamp())
        .field("home", Field::structure("address"))
        .field("homes", Field::structure("address").collection())
        .field(
            "shared",
            Field::permission(["#record:users"], [EnumValue::new("r").name("Reader")]).collection(),
        )
        .field(
            "tags",
            Field::enumeration([EnumValue::new("bug"), EnumValue::new("hw").name("Hardware, Network")])
                .collection(),
        )
        .field("owners", Field::reference(["#record:users"]).collection())
        .field("sizes", Field::int().collection())
        .field("words", Field::text().collection())
        .field("days", Field::date().collection());
    Metadata::new()
        .struct_type(
            "address",
            [
                ("city", Field::text()),
                ("since", Field::timestamp()),
                ("floor", Field::int()),
                ("next", Field::structure("address")),
            ],
        )
        .record_type("users", RecordType::new().field("email", Field::text().identifier()))
        .record_type("tasks", RecordType::new())
        .record_type("strict", RecordType::new().field("title", Field::text().required().min(1)))
        .record_type("rules", RecordType::new().no_identifier().field("name", Field::text()))
        .record_type("issues", issues)
}

fn normalizer() -> Normalizer {
    let metadata = metadata();
    assert_eq!(metadata.check(), []);
    Normalizer::from_metadata(&metadata, "issues").unwrap()
}

fn data(normalizer: &Normalizer, raw: &Value) -> Value {
    let record = normalizer.normalize(raw).unwrap_or_else(|findings| panic!("{raw}: {findings}"));
    let line: Value = serde_json::from_str(&record.to_line()).unwrap();
    line["data"].clone()
}

/// What a value of the source becomes in a field.
fn becomes(field: &str, pairs: &[(Value, Value)]) {
    becomes_with(&normalizer(), field, pairs);
}

fn becomes_with(normalizer: &Normalizer, field: &str, pairs: &[(Value, Value)]) {
    for (raw, expected) in pairs {
        let data = data(normalizer, &json!({"id": "1", field: raw}));
        assert_eq!(data, json!({field: expected}), "{field} from {raw}");
    }
}

/// Values of the source that are not converted, and what the finding says.
fn refused(field: &str, pairs: &[(Value, &str)]) {
    refused_with(&normalizer(), field, pairs);
}

fn refused_with(normalizer: &Normalizer, field: &str, pairs: &[(Value, &str)]) {
    for (raw, text) in pairs {
        let findings =
            normalizer.normalize(&json!({"id": "1", field: raw})).expect_err(&format!("{field} from {raw}"));
        assert_eq!(findings.len(), 1, "{findings}");
        let finding = findings.iter().next().unwrap();
        assert_eq!((finding.rule, finding.record.as_deref()), (Rule::Conversion, Some("1")), "{finding}");
        assert!(finding.path.to_string().starts_with(&format!("data.{field}")), "{finding}");
        assert!(finding.to_string().contains(text), "{text:?} is not in {finding}");
    }
}

#[test]
fn bools_are_read_from_their_words_and_digits() {
    becomes(
        "bool",
        &[
            (json!(true), json!(true)),
            (json!("True"), json!(true)),
            (json!("yes"), json!(true)),
            (json!(1), json!(true)),
            (json!("0"), json!(false)),
            (json!("off"), json!(false)),
            (json!(" no "), json!(false)),
            (json!(null), json!(null)),
            (json!("N/A"), json!(null)),
        ],
    );
    refused("bool", &[(json!(2), "the number 2"), (json!("maybe"), "\"maybe\""), (json!({}), "an object")]);
}

#[test]
fn ints_are_read_exactly_and_never_by_way_of_a_float() {
    becomes(
        "int",
        &[
            (json!(12), json!(12)),
            (json!("12"), json!(12)),
            (json!("+12"), json!(12)),
            (json!(" -12 "), json!(-12)),
            (json!("12.00"), json!(12)),
            (json!(12.0), json!(12)),
            // 2^53 + 1, which no float is.
            (json!("9007199254740993"), json!(9_007_199_254_740_993_u64)),
            (json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_993_u64)),
            (json!("18446744073709551615"), json!(u64::MAX)),
            (json!("-9223372036854775808"), json!(i64::MIN)),
        ],
    );
    refused(
        "int",
        &[
            (json!("12.5"), "\"12.5\""),
            (json!(12.5), "12.5"),
            (json!("1,234"), "\"1,234\""),
            (json!("1e3"), "\"1e3\""),
            (json!("0x1f"), "\"0x1f\""),
            (json!("twelve"), "\"twelve\""),
            (json!("18446744073709551616"), "\"18446744073709551616\""),
            (json!(1e300), "1e+300"),
            (json!(true), "true"),
            (json!("+-5"), "\"+-5\""),
        ],
    );
}

#[test]
fn floats_are_read_by_the_grammar_of_json() {
    becomes(
        "float",
        &[
            (json!(1.5), json!(1.5)),
            (json!("1.5"), json!(1.5)),
            (json!("-1.5e3"), json!(-1500.0)),
            (json!("+2"), json!(2)),
            (json!("9007199254740993"), json!(9_007_199_254_740_993_u64)),
        ],
    );
    refused(
        "float",
        &[
            (json!("1,5"), "point before decimals"),
            (json!("NaN"), "\"NaN\""),
            (json!("inf"), "\"inf\""),
            (json!(".5"), "\".5\""),
            (json!("1 000"), "\"1 000\""),
        ],
    );
}

#[test]
fn a_stand_in_is_no_value_only_where_the_type_cannot_hold_it() {
    for field in ["int", "float", "bool", "prio", "day", "at", "home", "tags", "sizes", "homes", "days"] {
        for stand_in in ["", "  ", "null", "NULL", "N/A", "n/a"] {
            becomes(field, &[(json!(stand_in), json!(null))]);
        }
    }
    // No id is blank; anything else may be one.
    for field in ["owner", "about", "owners"] {
        becomes(field, &[(json!(""), json!(null)), (json!("  "), json!(null))]);
    }
    becomes("owner", &[(json!("null"), json!("null")), (json!(-1), json!("-1"))]);
    becomes("owners", &[(json!("N/A"), json!(["N/A"])), (json!(-1), json!(["-1"]))]);
    // -1 is a number, and no word for none.
    becomes("int", &[(json!(-1), json!(-1)), (json!("-1"), json!(-1))]);
    becomes("float", &[(json!(-1), json!(-1))]);
    becomes("sizes", &[(json!(-1), json!([-1]))]);
    refused("bool", &[(json!(-1), "the number -1")]);
    refused("at", &[(json!(-1), "seconds, milliseconds, or not a time")]);
    refused("prio", &[(json!("-1"), "\"-1\"")]);
    // A text holds any text.
    for text in ["", " ", "-1", "N/A", "Null"] {
        becomes("text", &[(json!(text), json!(text))]);
        becomes("rich", &[(json!(text), json!(text))]);
    }
    // Own values: the keys of an enum, numbers within bounds that are below 0, the default.
    becomes(
        "answer",
        &[
            (json!("N/A"), json!("N/A")),
            (json!("n/a"), json!("N/A")),
            (json!(-1), json!("-1")),
            (json!(""), json!(null)),
        ],
    );
    becomes("balance", &[(json!(-1), json!(-1)), (json!("-1"), json!(-1)), (json!("N/A"), json!(null))]);
    becomes("degrees", &[(json!(-1), json!(-1)), (json!("-1"), json!(-1))]);
    let rules = normalizer().rule("balance", FieldRule::new().null_if([-1, -999]));
    becomes_with(&rules, "balance", &[(json!(-1), json!(-1)), (json!(-999), json!(null))]);
    becomes("none_is_none", &[(json!("N/A"), json!("N/A")), (json!("null"), json!("null"))]);
}

#[test]
fn stand_ins_are_set_for_a_field_or_for_a_type() {
    let rules = normalizer()
        .rule("text", FieldRule::new().null_if(["", "-"]))
        .rule("int", FieldRule::new().null_if([0, 999]))
        .type_rule("timestamp", FieldRule::new().null_if(["never"]))
        .rule("answer", FieldRule::new().null_if(["yes", "?"]));
    becomes_with(
        &rules,
        "text",
        &[(json!(""), json!(null)), (json!("-"), json!(null)), (json!("N/A"), json!("N/A"))],
    );
    becomes_with(
        &rules,
        "int",
        &[(json!(0), json!(null)), (json!("999"), json!(null)), (json!(-1), json!(-1))],
    );
    becomes_with(&rules, "at", &[(json!("Never"), json!(null))]);
    becomes_with(&rules, "home", &[(json!({"since": "never"}), json!({"since": null}))]);
    // A key of the enum never counts as "none", whatever a rule says.
    becomes_with(&rules, "answer", &[(json!("yes"), json!("yes")), (json!("?"), json!(null))]);
}

#[test]
fn timestamps_become_rfc_3339_with_the_offset_that_they_had() {
    becomes(
        "at",
        &[
            (json!("1972-03-29T22:04:47+01:00"), json!("1972-03-29T22:04:47+01:00")),
            (json!("2020-01-02T03:04:05.123456789012Z"), json!("2020-01-02T03:04:05.123456789012Z")),
            (json!("Wed, 01 Jan 2020 12:00:00 +0100"), json!("2020-01-01T12:00:00+01:00")),
            (json!("1 Jan 2020 12:00:00 GMT"), json!("2020-01-01T12:00:00Z")),
            (json!("2020-01-01 12:00:00+01:00"), json!("2020-01-01T12:00:00+01:00")),
            (json!("2020-01-01T12:00:00+0100"), json!("2020-01-01T12:00:00+01:00")),
            (json!("2020-01-01T12:00:00-05"), json!("2020-01-01T12:00:00-05:00")),
            (json!("20200101T120000Z"), json!("2020-01-01T12:00:00Z")),
            (json!("2020-01-01t12:00z"), json!("2020-01-01T12:00:00Z")),
            (json!("2020-01-01 12:00:00.5 UTC"), json!("2020-01-01T12:00:00.5Z")),
            (json!("2020-01-01T12:00:00,25 +01:00"), json!("2020-01-01T12:00:00.25+01:00")),
            (json!(1_577_836_800), json!("2020-01-01T00:00:00Z")),
            (json!("1577836800"), json!("2020-01-01T00:00:00Z")),
            (json!(1_577_836_800_123_u64), json!("2020-01-01T00:00:00.123Z")),
            (json!(1_577_836_800.5), json!("2020-01-01T00:00:00.500Z")),
            (json!(-1_577_836_800), json!("1920-01-02T00:00:00Z")),
        ],
    );
    refused(
        "at",
        &[
            (json!("2020-01-01T12:00:00"), "no offset"),
            (json!("2020-01-01 12:00"), "no offset"),
            (json!("2020-01-01"), "without a time"),
            (json!("01.02.2020 12:00"), "format of the source"),
            (json!("01/02/2020 12:00 +0100"), "format of the source"),
            (json!("2020-02-30T00:00:00Z"), "\"2020-02-30T00:00:00Z\""),
            (json!(0), "seconds, milliseconds, or not a time"),
            (json!(86400), "seconds, milliseconds, or not a time"),
            (json!(1_577_836_800_000_000_u64), "not a time"),
            (json!("soon"), "\"soon\""),
            (json!("Sat, 31 Dec 2016 23:59:60 +0000"), "not a moment of the calendar"),
            (json!(true), "true"),
        ],
    );
}

#[test]
fn rules_say_how_a_source_writes_its_moments() {
    let east = FixedOffset::east_opt(3600).unwrap();
    let with = |rule: FieldRule| normalizer().type_rule("timestamp", rule.clone()).type_rule("date", rule);
    let offset = with(FieldRule::new().offset(east));
    becomes_with(
        &offset,
        "at",
        &[
            (json!("2020-01-01T12:00:00"), json!("2020-01-01T12:00:00+01:00")),
            (json!("2020-01-01T12:00:00Z"), json!("2020-01-01T12:00:00Z")),
        ],
    );
    let seconds = with(FieldRule::new().format(TimeFormat::EpochSeconds));
    becomes_with(
        &seconds,
        "at",
        &[
            (json!(0), json!("1970-01-01T00:00:00Z")),
            (json!(-1.5), json!("1969-12-31T23:59:58.500Z")),
            (json!("86400"), json!("1970-01-02T00:00:00Z")),
        ],
    );
    becomes_with(&seconds, "day", &[(json!(86399), json!("1970-01-01"))]);
    refused_with(
        &seconds,
        "at",
        &[
            (json!("2020-01-01"), "not a number of seconds"),
            (json!(1e18), ""),
            (json!(999_999_999_999_u64), "not a moment of the calendar"),
        ],
    );
    let millis = with(FieldRule::new().format(TimeFormat::EpochMillis).offset(east));
    becomes_with(&millis, "at", &[(json!(1500), json!("1970-01-01T01:00:01.500+01:00"))]);
    becomes_with(&millis, "day", &[(json!(82_800_000), json!("1970-01-02"))]);
    let pattern = with(FieldRule::new().format(TimeFormat::Pattern("%d.%m.%Y %H:%M".into())).offset(east));
    becomes_with(
        &pattern,
        "at",
        &[
            (json!("01.02.2020 12:30"), json!("2020-02-01T12:30:00+01:00")),
            // What is right already stays.
            (json!("2020-02-01T12:30:00Z"), json!("2020-02-01T12:30:00Z")),
        ],
    );
    becomes_with(&pattern, "day", &[(json!("01.02.2020 12:30"), json!("2020-02-01"))]);
    refused_with(&pattern, "at", &[(json!("2020/02/01"), "does not fit the pattern")]);
    let zoned = with(FieldRule::new().format(TimeFormat::Pattern("%d/%b/%Y:%H:%M:%S %z".into())));
    becomes_with(&zoned, "at", &[(json!("10/Oct/2000:13:55:36 -0700"), json!("2000-10-10T13:55:36-07:00"))]);
    let no_offset = with(FieldRule::new().format(TimeFormat::Pattern("%Y-%m-%d %H:%M".into())));
    refused_with(&no_offset, "at", &[(json!("2020-01-01 10:00"), "has no offset")]);
}

#[test]
fn dates_become_days_where_the_day_is_sure() {
    becomes(
        "day",
        &[
            (json!("2020-12-31"), json!("2020-12-31")),
            (json!("20201231"), json!("2020-12-31")),
            (json!("2020-12-31T00:00:00Z"), json!("2020-12-31")),
            (json!("2020-12-31 00:00:00.000"), json!("2020-12-31")),
            (json!("Thu, 31 Dec 2020 00:00:00 +0100"), json!("2020-12-31")),
        ],
    );
    refused(
        "day",
        &[
            (json!("2020-12-31T23:00:00Z"), "time of day"),
            (json!("31.12.2020"), "format of the source"),
            (json!("12/31/2020"), "format of the source"),
            (json!(1_577_836_800), "not a day by itself"),
            (json!("2021-02-29"), "\"2021-02-29\""),
            (json!([]), "an array"),
        ],
    );
}

#[test]
fn references_become_strings() {
    becomes(
        "owner",
        &[
            (json!("7"), json!("7")),
            (json!(7), json!("7")),
            (json!(u64::MAX), json!("18446744073709551615")),
            (json!({"id": 7, "name": "Ann"}), json!("7")),
            (json!({"id": "a7"}), json!("a7")),
            (json!({"ref_type": "users", "id": "7"}), json!("7")),
        ],
    );
    refused(
        "owner",
        &[
            (json!(7.5), "7.5"),
            (json!(true), "true"),
            (json!({"name": "Ann"}), "it has \"name\""),
            (json!({"id": {"value": 7}}), "no \"id\""),
            (json!(["7"]), "an array"),
        ],
    );
    // By what the metadata says that the reference is by.
    becomes(
        "mail",
        &[
            (json!({"id": 7, "email": "ann@example.com"}), json!("ann@example.com")),
            (json!("a@b"), json!("a@b")),
        ],
    );
    refused("mail", &[(json!({"id": 7}), "no \"email\"")]);
    refused(
        "either",
        &[(json!({"id": 7, "email": "ann@example.com"}), "not all referred to by the same field")],
    );
    becomes("either", &[(json!("7"), json!("7"))]);
}

#[test]
fn typed_references_take_their_type_from_the_metadata_where_there_is_but_one() {
    becomes(
        "about",
        &[
            (json!(7), json!({"ref_type": "users", "id": "7"})),
            (json!({"id": 7, "name": "Ann"}), json!({"ref_type": "users", "id": "7"})),
            (
                json!({"ref_type": "users", "id": 7, "fallback_record_name": "Ann", "url": "x"}),
                json!({"ref_type": "users", "id": "7", "fallback_record_name": "Ann"}),
            ),
        ],
    );
    refused("about", &[(json!({"name": "Ann"}), "no id")]);
    becomes(
        "abouts",
        &[(json!([{"ref_type": "tasks", "id": 7}]), json!([{"ref_type": "tasks", "id": "7"}]))],
    );
    refused("abouts", &[(json!([7]), "of which type")]);
}

#[test]
fn enum_values_are_found_by_key_and_by_name() {
    becomes(
        "prio",
        &[
            (json!("p0"), json!("p0")),
            (json!("Blocker"), json!("p0")),
            (json!("high"), json!("p1")),
            (json!(" P1 "), json!("p1")),
            (json!(3), json!("3")),
        ],
    );
    refused(
        "prio",
        &[
            (json!("urgent"), "neither a key nor a name"),
            (json!("bloker"), "neither a key nor a name"),
            (json!({"name": "High"}), "FieldRule::of(\"priority.name\")"),
        ],
    );
    becomes("cased", &[(json!("a"), json!("a")), (json!("A"), json!("A")), (json!("B"), json!("b"))]);
}

#[test]
fn a_name_that_two_values_have_is_not_guessed() {
    let values = [
        EnumValue::new("1").name("Open"),
        EnumValue::new("2").name("open"),
        EnumValue::new("3").name("Open"),
    ];
    let metadata =
        Metadata::new().record_type("issues", RecordType::new().field("state", Field::enumeration(values)));
    let normalizer = Normalizer::from_metadata(&metadata, "issues").unwrap();
    becomes_with(&normalizer, "state", &[(json!("open"), json!("2")), (json!("3"), json!("3"))]);
    refused_with(
        &normalizer,
        "state",
        &[(json!("Open"), "\"1\", \"3\""), (json!("OPEN"), "could be several")],
    );
}

#[test]
fn lists_in_a_string_become_arrays() {
    becomes(
        "tags",
        &[
            (json!("bug"), json!(["bug"])),
            (json!("bug,hw"), json!(["bug", "hw"])),
            (json!("bug; hw ;"), json!(["bug", "hw"])),
            (json!(["bug", "", "hw", null]), json!(["bug", "hw"])),
            (json!([]), json!([])),
            // A name with a comma in it is one value, quoted or alone.
            (json!("Hardware, Network"), json!(["hw"])),
            (json!("bug;Hardware, Network"), json!(["bug", "hw"])),
            (json!("bug,\"Hardware, Network\""), json!(["bug", "hw"])),
        ],
    );
    refused("tags", &[(json!("bug,wombat"), "\"wombat\"")]);
    becomes(
        "owners",
        &[
            (json!("2103232131,2103232144"), json!(["2103232131", "2103232144"])),
            (json!(7), json!(["7"])),
            (json!([7, {"id": 8}]), json!(["7", "8"])),
            (json!({"id": 8}), json!(["8"])),
        ],
    );
    refused("owners", &[(json!("1,2;3"), "both ';' and ','")]);
    becomes(
        "sizes",
        &[(json!("1;2;3"), json!([1, 2, 3])), (json!("12"), json!([12])), (json!(["N/A", "4"]), json!([4]))],
    );
    refused("sizes", &[(json!("1,x"), "\"x\"")]);
    becomes(
        "days",
        &[
            (json!("2020-01-01,2020-01-02"), json!(["2020-01-01", "2020-01-02"])),
            (json!("Wed, 01 Jan 2020 00:00:00 +0000"), json!(["2020-01-01"])),
        ],
    );
    becomes(
        "words",
        &[
            (json!("bug;good-first-issue"), json!(["bug", "good-first-issue"])),
            (json!("one text"), json!(["one text"])),
            (json!("\"a b\",c"), json!(["a b", "c"])),
            (json!(["a", ""]), json!(["a", ""])),
        ],
    );
    refused(
        "words",
        &[
            (json!("Smith, John"), "one text with ',' in it, or several"),
            (json!("a,b;c"), "both ';' and ','"),
        ],
    );
    becomes("homes", &[(json!({"city": "Ulm"}), json!([{"city": "Ulm"}]))]);
}

#[test]
fn rules_say_where_a_list_is_split() {
    let split = normalizer().rule("words", FieldRule::new().split_at('|'));
    becomes_with(&split, "words", &[(json!("a b|c, d| "), json!(["a b", "c, d"]))]);
    let whole = normalizer().rule("words", FieldRule::new().never_split());
    becomes_with(&whole, "words", &[(json!("Smith, John"), json!(["Smith, John"]))]);
}

#[test]
fn structs_permissions_and_rich_text_are_converted_inside() {
    becomes(
        "home",
        &[
            (
                json!({"city": 7, "floor": "3", "since": 1_577_836_800}),
                json!({"city": "7", "floor": 3, "since": "2020-01-01T00:00:00Z"}),
            ),
            (json!({"next": {"floor": "N/A"}, "more": 1}), json!({"next": {"floor": null}, "more": 1})),
        ],
    );
    refused("home", &[(json!("Ulm"), "\"Ulm\""), (json!({"next": {"floor": "x"}}), "data.home.next.floor")]);
    becomes(
        "shared",
        &[
            (
                json!([{"member_id": 7, "role": "reader", "since": 1}]),
                json!([{"member_id": "7", "role": "r"}]),
            ),
            (json!({"member_id": {"id": 7}}), json!([{"member_id": "7"}])),
        ],
    );
    refused(
        "shared",
        &[(json!([{"member_id": 7, "role": "king"}]), "\"king\""), (json!([7]), "not a permission")],
    );
    becomes(
        "rich",
        &[
            (
                json!(["a", {"ref_type": "users", "id": 7}, null]),
                json!(["a", {"ref_type": "users", "id": "7"}]),
            ),
            (json!("a, b"), json!("a, b")),
        ],
    );
    refused("rich", &[(json!([true]), "true")]);
    let in_struct = normalizer().rule("home.city", FieldRule::new().null_if(["?"]));
    becomes_with(&in_struct, "home", &[(json!({"city": "?"}), json!({"city": null}))]);
}

#[test]
fn text_is_made_of_numbers_and_bools_but_not_of_objects() {
    becomes("text", &[(json!(7), json!("7")), (json!(1.5), json!("1.5")), (json!(true), json!("true"))]);
    refused("text", &[(json!({"a": 1}), "an object"), (json!(["a"]), "an array")]);
}

#[test]
fn rules_say_where_a_field_comes_from() {
    let rules = normalizer()
        .rule("id", FieldRule::of("key"))
        .rule("created_date", FieldRule::of("fields.created"))
        .rule("modified_date", FieldRule::of("changed").format(TimeFormat::EpochSeconds))
        .rule("owner", FieldRule::of("fields.assignee"))
        .rule("text", FieldRule::of("fields.summary"))
        .rule("tags", FieldRule::of("fields.labels.name"))
        .rule("int", FieldRule::of("a.b"))
        .undeclared(Undeclared::Drop);
    let raw = json!({
        "key": 17, "changed": 5, "a.b": "3", "other": 1,
        "fields": {
            "created": "2020-01-01T00:00:00.000+0000", "summary": "A crash", "assignee": {"id": 4},
            "labels": [{"name": "bug"}, {"name": "hw"}]
        }
    });
    let record = rules.normalize(&raw).unwrap_or_else(|findings| panic!("{findings}"));
    assert_eq!(
        record.to_line(),
        r#"{"id":"17","created_date":"2020-01-01T00:00:00.000+00:00","modified_date":"1970-01-01T00:00:05Z","data":{"int":3,"text":"A crash","owner":"4","tags":["bug","hw"]}}"#
    );
    // What is not there is left out; where something is in the way, it is null.
    let record = rules.normalize(&json!({"key": "1", "fields": {"assignee": null}})).unwrap();
    assert_eq!(record.to_line(), r#"{"id":"1","data":{"owner":null}}"#);
    // The finding names where the value came from.
    let findings = rules.normalize(&json!({"key": "1", "fields": {"assignee": 1.5}})).unwrap_err();
    assert!(findings.to_string().contains("from \"fields.assignee\""), "{findings}");
}

#[test]
fn functions_of_the_callers_own_come_first() {
    let rules = normalizer()
        .rule(
            "owner",
            FieldRule::of("who").with(|value| match value.as_str() {
                Some(name) => Ok(json!(format!("user-{name}"))),
                None => Err("nobody".to_owned()),
            }),
        )
        .rule(
            "int",
            FieldRule::new().with(|value| Ok(if value.is_null() { json!("7") } else { value.clone() })),
        )
        .rule("text", FieldRule::new().with_object(|raw| Ok(json!(format!("{} of {}", raw["a"], raw["b"])))));
    assert_eq!(
        data(&rules, &json!({"id": "1", "who": "ann", "a": 1, "b": 2})),
        json!({"owner": "user-ann", "a": 1, "b": 2, "int": 7, "text": "1 of 2"})
    );
    let findings = rules.normalize(&json!({"id": "1", "who": 5})).unwrap_err();
    assert!(findings.to_string().contains("data.owner: nobody"), "{findings}");
}

#[test]
fn undeclared_fields_are_kept_dropped_or_refused() {
    let raw =
        json!({"id": "1", "wombat": 1, "txet": 2, "item_url_field": "u", "home": {"city": "Ulm", "x": 1}});
    let with = |undeclared| normalizer().undeclared(undeclared);
    assert_eq!(
        data(&with(Undeclared::Keep), &raw),
        json!({"wombat": 1, "txet": 2, "item_url_field": "u", "home": {"city": "Ulm", "x": 1}})
    );
    assert_eq!(data(&with(Undeclared::Drop), &raw), json!({"item_url_field": "u", "home": {"city": "Ulm"}}));
    let findings = with(Undeclared::Refuse).normalize(&raw).unwrap_err();
    let places: Vec<_> = findings.iter().map(|finding| (finding.path.to_string(), finding.rule)).collect();
    let undeclared = Rule::Undeclared;
    assert_eq!(
        places,
        [
            ("data.wombat".into(), undeclared),
            ("data.txet".into(), undeclared),
            ("data.home.x".into(), undeclared)
        ]
    );
    assert!(findings.to_string().contains("did you mean \"text\"?"), "{findings}");
}

#[test]
fn the_id_and_the_dates_are_converted_like_fields() {
    let line = |raw: Value| normalizer().normalize(&raw).map(|record| record.to_line());
    assert_eq!(line(json!({"id": 7})).unwrap(), r#"{"id":"7","data":{}}"#);
    assert_eq!(
        line(json!({"created_date": 1_577_836_800, "id": "7", "modified_date": ""})).unwrap(),
        r#"{"id":"7","created_date":"2020-01-01T00:00:00Z","data":{}}"#
    );
    for raw in [json!({}), json!({"id": null}), json!({"id": ""}), json!({"id": " "})] {
        let findings = line(raw).unwrap_err();
        assert_eq!(findings.iter().next().unwrap().rule, Rule::Id, "{findings}");
        assert_eq!(findings.len(), 1, "{findings}");
    }
    let findings = line(json!({"id": 7.5, "created_date": "soon", "int": "x"})).unwrap_err();
    let places: Vec<_> = findings.iter().map(|finding| finding.path.to_string()).collect();
    assert_eq!(places, ["id", "created_date", "data.int"], "all at once");
    for raw in [json!([]), json!("x"), json!(null)] {
        assert_eq!(line(raw).unwrap_err().iter().next().unwrap().rule, Rule::Envelope);
    }
    assert_eq!(normalizer().normalize_json("{").unwrap_err().iter().next().unwrap().rule, Rule::Json);
    let rules = Normalizer::from_metadata(&metadata(), "rules").unwrap();
    assert_eq!(rules.normalize(&json!({"name": "x"})).unwrap().to_line(), r#"{"data":{"name":"x"}}"#);
}

#[test]
fn what_is_converted_is_checked_too() {
    let strict = Normalizer::from_metadata(&metadata(), "strict").unwrap();
    let rule = |raw: Value| strict.normalize(&raw).unwrap_err().iter().next().unwrap().rule;
    assert_eq!(rule(json!({"id": "1"})), Rule::Required);
    let said = strict.clone().null_if(["N/A"]).normalize(&json!({"id": "1", "title": "N/A"}));
    assert_eq!(said.unwrap_err().iter().next().unwrap().rule, Rule::Required);
    assert_eq!(rule(json!({"id": "1", "title": ""})), Rule::Bounds);
    // A value that could not be converted is one finding, not two.
    assert_eq!(strict.normalize(&json!({"id": "1", "title": {}})).unwrap_err().len(), 1);
}

#[test]
fn a_rule_for_what_does_not_exist_is_said_with_every_record() {
    let wrong = normalizer().rule("ownr", FieldRule::of("x")).type_rule("datetime", FieldRule::new());
    let findings = wrong.normalize(&json!({"id": "1"})).unwrap_err();
    assert_eq!(findings.len(), 2);
    assert!(findings.to_string().contains("did you mean \"owner\"?"), "{findings}");
    assert!(normalizer().rule("home.ctiy", FieldRule::new()).normalize(&json!({"id": "1"})).is_err());
    assert!(normalizer().rule("home.next.city", FieldRule::new()).normalize(&json!({"id": "1"})).is_ok());
    assert!(Normalizer::from_metadata(&metadata(), "isues").is_err());
}

#[test]
fn a_record_is_taken_as_one_and_only_mended() {
    let rules = normalizer()
        .rule("owner", FieldRule::of("assignee").with(|value| Ok(json!(format!("user-{value}")))))
        .rule("int", FieldRule::of("float"))
        .rule("float", FieldRule::of("int"));
    let right = r#"{"id":"1","created_date":"2020-01-01T00:00:00.50+00:00","operation":"created","data":{"owner":"7","int":-1,"float":2.5,"text":"N/A","answer":"N/A","tags":["bug",null],"extra":""}}"#;
    assert_eq!(rules.normalize_json(right).unwrap().to_line(), right);
    let mended =
        rules.normalize_json(r#"{"id":1,"data":{"int":"","owner":7,"tags":"bug","at":1577836800}}"#).unwrap();
    assert_eq!(
        mended.to_line(),
        r#"{"id":"1","data":{"int":null,"owner":"7","tags":["bug"],"at":"2020-01-01T00:00:00Z"}}"#
    );
    assert_eq!(rules.normalize_json(r#"{"id":"1","data":{},"operation":5}"#).unwrap_err().len(), 1);
    // A source's object with more fields than a record has is not a record.
    assert_eq!(
        data(&normalizer(), &json!({"id": "1", "data": {"int": "7"}, "int": "8"})),
        json!({"data": {"int": "7"}, "int": 8})
    );
    // Nor is an object from whose data a rule reads.
    let nested = normalizer().rule("int", FieldRule::of("data.count"));
    assert_eq!(data(&nested, &json!({"id": "1", "data": {"count": "7"}})), json!({"int": 7}));
}

/// Parsed by the quick way of `serde_json`, this number came out one digit off, and so left as another than it came.
#[test]
fn a_float_leaves_as_it_came_to_the_last_digit() {
    let line = r#"{"id":"x","data":{"float":2.128343077639445e-222}}"#;
    assert_eq!(normalizer().normalize_json(line).unwrap().to_line(), line);
    becomes(
        "float",
        &[(json!("2.128343077639445e-222"), serde_json::from_str("2.128343077639445e-222").unwrap())],
    );
}

#[test]
fn what_is_used_from_page_to_page_may_be_used_from_any_thread() {
    fn any_thread<T: Send + Sync + Clone>() {}
    any_thread::<Metadata>();
    any_thread::<Checker>();
    any_thread::<Normalizer>();
}

// Anything at all.

/// What a field is declared as, and what is right for it by the rules as they are written down: the oracle.
#[derive(Debug, Clone)]
struct Shape {
    kind: Kind,
    collection: bool,
    required: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Bool,
    Int,
    SmallInt,
    Float,
    Text,
    ShortText,
    RichText,
    Reference,
    TypedReference,
    Enum,
    Date,
    Timestamp,
    Struct,
    Permission,
}

const KINDS: [Kind; 14] = [
    Kind::Bool,
    Kind::Int,
    Kind::SmallInt,
    Kind::Float,
    Kind::Text,
    Kind::ShortText,
    Kind::RichText,
    Kind::Reference,
    Kind::TypedReference,
    Kind::Enum,
    Kind::Date,
    Kind::Timestamp,
    Kind::Struct,
    Kind::Permission,
];

impl Shape {
    fn declared(&self) -> Field {
        let mut field = match self.kind {
            Kind::Bool => Field::bool(),
            Kind::Int => Field::int(),
            Kind::SmallInt => Field::int().min(0).max(9),
            Kind::Float => Field::float(),
            Kind::Text => Field::text(),
            Kind::ShortText => Field::text().min(1).max(3),
            Kind::RichText => Field::rich_text(),
            Kind::Reference => Field::reference(["#record:users"]),
            Kind::TypedReference => Field::typed_reference(["#record:users", "#record:tasks"]),
            Kind::Enum => Field::enumeration([
                EnumValue::new("a").name("Alpha"),
                EnumValue::new("N/A"),
                EnumValue::new("b"),
            ]),
            Kind::Date => Field::date(),
            Kind::Timestamp => Field::timestamp(),
            Kind::Struct => Field::structure("pair"),
            Kind::Permission => Field::permission(["#record:users"], ["reader"]),
        };
        if self.collection {
            field = field.collection_of(0, 3);
        }
        if self.required { field.required() } else { field }
    }

    fn is_right(&self, value: Option<&Value>) -> bool {
        match value {
            None | Some(Value::Null) => !self.required,
            Some(Value::Array(items)) if self.collection => {
                items.len() <= 3 && items.iter().all(|item| item.is_null() || is_right(self.kind, item))
            }
            Some(_) if self.collection => false,
            Some(value) => is_right(self.kind, value),
        }
    }
}

fn is_filled(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

fn is_minus_zero(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number == 0.0 && number.is_sign_negative())
}

fn is_right(kind: Kind, value: &Value) -> bool {
    let text = value.as_str();
    match kind {
        Kind::Bool => value.is_boolean(),
        // JSON readers do not distinguish -0 from -0.0 either.
        // Beyond 64 bits a reader of JSON has floats, all of them whole.
        Kind::Int => {
            let is_huge = value.as_f64().is_some_and(|number| number.abs() >= 2_f64.powi(63));
            value.is_i64() || value.is_u64() || is_minus_zero(value) || is_huge
        }
        Kind::SmallInt => value.as_u64().is_some_and(|number| number <= 9) || is_minus_zero(value),
        Kind::Float => value.is_number(),
        Kind::Text => value.is_string(),
        Kind::ShortText => text.is_some_and(|text| (1..=3).contains(&text.chars().count())),
        Kind::RichText => match value {
            Value::Array(parts) => parts.iter().all(|part| {
                part.is_string()
                    || (is_filled(&part["id"])
                        && is_filled(&part["ref_type"])
                        && (part["fallback_record_name"].is_null()
                            || part["fallback_record_name"].is_string()))
            }),
            other => other.is_string(),
        },
        Kind::Reference => is_filled(value),
        Kind::TypedReference => {
            is_filled(&value["id"])
                && (value["ref_type"] == "users" || value["ref_type"] == "tasks")
                && (value["fallback_record_name"].is_null() || value["fallback_record_name"].is_string())
        }
        Kind::Enum => matches!(text, Some("a" | "N/A" | "b")),
        // chrono reads more than we do; the round trip narrows it to the one form.
        Kind::Date => text.is_some_and(|text| {
            chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d")
                .is_ok_and(|day| day.format("%Y-%m-%d").to_string() == text)
        }),
        Kind::Timestamp => text.is_some_and(|text| {
            chrono::DateTime::parse_from_rfc3339(text).is_ok()
                && text.len() >= 20
                && &text[10..11] == "T"
                && !text.ends_with('z')
                && &text[17..19] != "60"
        }),
        Kind::Struct => value.as_object().is_some_and(|pair| {
            pair.get("left").is_some_and(|left| is_right(Kind::Int, left))
                && pair.get("right").is_none_or(|right| right.is_null() || right.is_string())
        }),
        Kind::Permission => {
            is_filled(&value["member_id"])
                && value.is_object()
                && (value["role"].is_null() || value["role"] == "reader")
        }
    }
}

fn metadata_of(shapes: &[Shape]) -> Metadata {
    let record_type = shapes.iter().enumerate().fold(RecordType::new(), |declared, (index, shape)| {
        declared.field(format!("f{index}"), shape.declared())
    });
    Metadata::new()
        .struct_type("pair", [("left", Field::int().required()), ("right", Field::text())])
        .record_type("users", RecordType::new())
        .record_type("tasks", RecordType::new())
        .record_type("things", record_type)
}

fn shape() -> impl Strategy<Value = Shape> {
    (prop::sample::select(KINDS.to_vec()), any::<bool>(), prop::bool::weighted(0.2))
        .prop_map(|(kind, collection, required)| Shape { kind, collection, required })
}

/// Values as sources have them: right and wrong, for any field.
fn messy() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        " ",
        "N/A",
        "null",
        "-1",
        "0",
        "7",
        "9007199254740993",
        "1.5",
        "12.0",
        "1,5",
        "true",
        "no",
        "a",
        "A",
        "Alpha",
        "b",
        "a,b",
        "a;b",
        "a,b;c",
        "2020-12-31",
        "20201231",
        "2020-12-31T00:00:00Z",
        "2020-12-31T12:00:00",
        "2020-12-31 12:00:00+01:00",
        "2021-02-29",
        "0000-00-00",
        "Wed, 01 Jan 2020 12:00:00 +0100",
        "1577836800",
        "1577836800000",
        "2016-12-31T23:59:60Z",
        "reader",
        "users",
        "\u{1f600}",
        "\u{1f600}\u{1f600}",
    ];
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![
            json!(-1),
            json!(0),
            json!(7),
            json!(10),
            json!(1.5),
            json!(3.0),
            json!(-0.0),
            json!(1e300),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1_577_836_800),
            json!(1_577_836_800_000_i64)
        ]),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(texts.to_vec()).prop_map(Value::from),
        "\\PC{0,5}".prop_map(Value::from),
    ];
    scalar.prop_recursive(2, 12, 4, |inner| {
        let keys = prop::sample::select(vec![
            "id",
            "ref_type",
            "fallback_record_name",
            "member_id",
            "role",
            "left",
            "right",
            "name",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys, inner, 0..4).prop_map(|members| Value::Object(
                members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>()
            )),
        ]
    })
}

/// A right value of a kind.
fn right(kind: Kind) -> BoxedStrategy<Value> {
    let id = || prop_oneof![Just("-1".to_owned()), Just("N/A".to_owned()), "[a-z0-9,; ]{1,6}"];
    let text = || prop_oneof![Just(String::new()), Just("null".to_owned()), "\\PC{0,8}"];
    match kind {
        Kind::Bool => any::<bool>().prop_map(Value::from).boxed(),
        Kind::Int => prop_oneof![
            Just(json!(-1)),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from)
        ]
        .boxed(),
        Kind::SmallInt => (0..=9_u64).prop_map(Value::from).boxed(),
        Kind::Float => {
            prop_oneof![any::<i64>().prop_map(Value::from), prop::num::f64::NORMAL.prop_map(Value::from)]
                .boxed()
        }
        Kind::Text => text().prop_map(Value::from).boxed(),
        Kind::ShortText => "\\PC{1,3}".prop_map(Value::from).boxed(),
        Kind::RichText => prop_oneof![
            text().prop_map(Value::from),
            prop::collection::vec(
                prop_oneof![
                    text().prop_map(Value::from),
                    id().prop_map(|id| json!({"ref_type": "users", "id": id}))
                ],
                0..3
            )
            .prop_map(Value::from),
        ]
        .boxed(),
        Kind::Reference => id().prop_map(Value::from).boxed(),
        Kind::TypedReference => (id(), prop::sample::select(vec!["users", "tasks"]), text())
            .prop_map(
                |(id, ref_type, name)| json!({"ref_type": ref_type, "id": id, "fallback_record_name": name}),
            )
            .boxed(),
        Kind::Enum => prop::sample::select(vec!["a", "N/A", "b"]).prop_map(Value::from).boxed(),
        Kind::Date => (0..=9999, 1..=12_u32, 1..=28_u32)
            .prop_map(|(y, m, d)| json!(format!("{y:04}-{m:02}-{d:02}")))
            .boxed(),
        Kind::Timestamp => (
            1..=9999,
            1..=12_u32,
            0..=23_u32,
            0..=59_u32,
            "(\\.[0-9]{1,9})?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])",
        )
            .prop_map(|(y, m, h, s, rest)| json!(format!("{y:04}-{m:02}-11T{h:02}:00:{s:02}{rest}")))
            .boxed(),
        Kind::Struct => (any::<i64>(), prop::option::of(text()))
            .prop_map(|(left, right)| json!({"left": left, "right": right}))
            .boxed(),
        Kind::Permission => (id(), any::<bool>())
            .prop_map(|(id, has_role)| {
                if has_role { json!({"member_id": id, "role": "reader"}) } else { json!({"member_id": id}) }
            })
            .boxed(),
    }
}

/// Shapes, and a right value for each, where there is one.
fn right_record(fields_min: usize) -> impl Strategy<Value = (Vec<Shape>, Vec<Option<Value>>)> {
    let field = shape().prop_flat_map(|shape| {
        let kind = shape.kind;
        let value = if shape.collection {
            prop::collection::vec(right(kind), 0..=3).prop_map(Value::from).boxed()
        } else {
            right(kind)
        };
        let value = if shape.required {
            value.prop_map(Some).boxed()
        } else {
            prop_oneof![4 => value.prop_map(Some), 1 => Just(Some(Value::Null)), 1 => Just(None)].boxed()
        };
        (Just(shape), value)
    });
    prop::collection::vec(field, fields_min..5).prop_map(|fields| fields.into_iter().unzip())
}

fn line_of(values: &[Option<Value>]) -> String {
    let data: Map<String, Value> = values
        .iter()
        .enumerate()
        .filter_map(|(index, value)| Some((format!("f{index}"), value.clone()?)))
        .collect();
    format!(
        r#"{{"id":"x","created_date":"2020-01-01T00:00:00+00:00","modified_date":"1999-12-31T23:59:59.5-03:00","data":{}}}"#,
        Value::Object(data)
    )
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: ProptestConfig::default().cases.max(2_000),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/normalize.txt",
        ))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// The checker finds an error exactly where the oracle says that the value is wrong.
    #[test]
    fn the_checker_agrees_with_the_rules_as_written(shape in shape(), value in prop::option::of(messy())) {
        let shapes = [shape];
        let checker = Checker::new(&metadata_of(&shapes), "things").unwrap();
        let findings = checker.check_line(&line_of(std::slice::from_ref(&value)));
        let wrong = findings.iter().any(highwater::record::Finding::is_error);
        prop_assert_eq!(!wrong, shapes[0].is_right(value.as_ref()), "{:?}: {:?}: {:?}", shapes, value, findings);
        prop_assert!(findings.iter().all(|finding| finding.path.to_string().starts_with("data.f0")), "{findings:?}");
    }

    /// What the normaliser lets through is right, for the checker and for the oracle; and once is twice.
    #[test]
    fn what_the_normaliser_lets_through_is_right(shapes in prop::collection::vec(shape(), 1..4), values in prop::collection::vec(messy(), 3)) {
        let metadata = metadata_of(&shapes);
        let normalizer = Normalizer::from_metadata(&metadata, "things").unwrap();
        let mut raw = Map::new();
        raw.insert("id".into(), json!(7));
        for (index, value) in values.iter().enumerate().take(shapes.len()) {
            raw.insert(format!("f{index}"), value.clone());
        }
        if let Ok(record) = normalizer.normalize(&Value::Object(raw)) {
            let line = record.to_line();
            let findings = Checker::new(&metadata, "things").unwrap().check_line(&line);
            prop_assert!(!findings.iter().any(highwater::record::Finding::is_error), "{line}: {findings:?}");
            let record: Value = serde_json::from_str(&line).unwrap();
            for (index, shape) in shapes.iter().enumerate() {
                prop_assert!(shape.is_right(record["data"].get(format!("f{index}"))), "{shape:?}: {line}");
            }
            let again = normalizer.normalize_json(&line).unwrap();
            prop_assert_eq!(again.to_line(), line);
        }
    }

    /// A right record passes the checker, and passes the normaliser unchanged to the byte.
    #[test]
    fn right_records_pass_unchanged((shapes, values) in right_record(0)) {
        let metadata = metadata_of(&shapes);
        prop_assert_eq!(metadata.check(), vec![]);
        let line = line_of(&values);
        // Ints that JavaScript rounds are right, and warned of.
        let mut findings = Checker::new(&metadata, "things").unwrap().check_line(&line);
        findings.retain(|finding| finding.rule != Rule::Precision);
        prop_assert_eq!(findings, vec![]);
        let record = Normalizer::from_metadata(&metadata, "things").unwrap().normalize_json(&line);
        prop_assert_eq!(record.map(|record| record.to_line()), Ok(line));
    }

    /// The control: one value spoilt in a right record, and it is found, at its place.
    #[test]
    fn one_wrong_value_in_a_right_record_is_found_at_its_place((shapes, mut values) in right_record(1), which in any::<prop::sample::Index>(), wrong in messy()) {
        let index = which.index(shapes.len());
        if shapes[index].is_right(Some(&wrong)) {
            return Ok(());
        }
        values[index] = Some(wrong);
        let findings = Checker::new(&metadata_of(&shapes), "things").unwrap().check_line(&line_of(&values));
        let place = format!("data.f{index}");
        let error_there = findings.iter().any(|finding| finding.is_error() && finding.path.to_string().starts_with(&place));
        prop_assert!(error_there, "{findings:?}");
        let mut told = findings.iter().filter(|finding| finding.rule != Rule::Precision);
        prop_assert!(told.all(|finding| finding.path.to_string().starts_with(&place)), "{findings:?}");
    }
}
