//! Valid metadata passes without a finding; each error is found, at its place, with what was expected.
//!
//! Every case breaks one thing in a valid document, so there must be exactly one finding.

#![expect(clippy::needless_pass_by_value, reason = "`json!` in place reads best without borrows")]

use highwater::record::{EnumValue, Field, Finding, Metadata, RecordType, Rule, Severity, StageDiagram};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::{Value, json};

/// A document with something of everything.
fn whole() -> Value {
    json!({
        "schema_version": "v0.2.0",
        "record_type_categories": {
            "people": {"name": "People", "are_record_type_conversions_possible": true},
            "work": {}
        },
        "struct_types": {
            "address": {
                "name": "Address",
                "fields": {"city": {"type": "text", "is_required": true}, "zip": {"type": "text"}}
            },
            "phone": {"fields": {"number": {"type": "text"}, "other": {"type": "struct", "struct": {"key": "phone"}}}}
        },
        "record_types": {
            "users": {
                "name": "User", "category": "people", "is_snapshot": false, "scope": "data_is_system_scoped",
                "fields": {
                    "email": {"type": "text", "is_identifier": true},
                    "home": {"type": "struct", "struct": {"key": "address"}},
                    "full_name": {"type": "text", "text": {"min_length": 1, "max_length": 99}}
                }
            },
            "contacts": {"category": "people", "fields": {"email": {"type": "text", "is_identifier": true}}},
            "issues": {
                "name": "Issue", "description": "A thing to do", "category": "work", "is_loadable": true,
                "attachments": {"is_extractable": true, "is_loadable": false},
                "fields": {
                    "title": {"type": "text", "is_required": true, "default_value": "untitled"},
                    "body": {"type": "rich_text", "is_read_only": null},
                    "done": {"type": "bool", "default_value": false},
                    "votes": {"type": "int", "int": {"min": 0, "max": 100}, "default_value": 0},
                    "score": {"type": "float", "float": {"min": -1.5, "max": 1.5}},
                    "due": {"type": "date"},
                    "closed_at": {"type": "timestamp", "is_indexed": true, "is_filterable": true},
                    "owner": {"type": "reference", "reference": {
                        "refers_to": {"#record:users": {}, "#category:people": {}}, "reference_type": "parent"}},
                    "reporter": {"type": "reference", "reference": {"refers_to": {"#category:people": {"by_field": "email"}}}},
                    "about": {"type": "typed_reference", "typed_reference": {"refers_to": {"#record:users": {}}}},
                    "status": {"type": "enum", "enum": {"values": [
                        {"key": "todo", "name": "To do"}, {"key": "doing"}, {"key": "done", "description": "no more"},
                        {"key": "lost", "is_deprecated": true}]}},
                    "tags": {"type": "enum", "collection": {"min_length": 0, "max_length": 5},
                             "enum": {"values": [{"key": "a"}, {"key": "b"}]}, "default_value": "a"},
                    "shared": {"type": "permission", "collection": {}, "permission": {
                        "member_id": {"refers_to": {"#record:users": {}}}, "role": {"values": [{"key": "reader"}]}}},
                    "rights": {"type": "record_type_privilege", "record_type_privilege": {"type_keys": ["#record:users"]}},
                    "field_rights": {"type": "field_privilege", "field_privilege": {"type_keys": ["#category:people"]}},
                    "some_rights": {"type": "conditional_privilege"},
                    "attendees": {"type": "participation", "participation": {"refers_to": {"#record:users": {}}}},
                    "kind": {"type": "text", "type_key": {"type_keys": ["#record:issues"]}}
                },
                "conditions": {"status": [
                    {"value": "done", "comparator": "eq", "affected_fields": ["closed_at"], "effect": "require"}]},
                "stage_diagram": {
                    "controlling_field": "status",
                    "starting_stage": "todo",
                    "stages": {
                        "todo": {"state": "open", "transitions_to": ["doing"]},
                        "doing": {"state": "busy", "transitions_to": ["done", "todo"]},
                        "done": {"state": "closed"}
                    },
                    "states": {"busy": {"name": "Busy", "is_end_state": false, "ordinal": 2}}
                }
            },
            "links": {
                "fields": {"link_type": {"type": "enum", "enum": {"values": [{"key": "blocks"}, {"key": "copies"}]}}},
                "link_naming_data": {"link_type_field": "link_type", "link_direction_names": {
                    "blocks": {"forward_name": "blocks", "backward_name": "is blocked by"}}}
            }
        }
    })
}

fn check(document: &Value) -> Vec<Finding> {
    let text = serde_json::to_string_pretty(document).unwrap();
    let from_text = Metadata::from_json(&text).unwrap().check();
    // The same, without text: the same findings, but for lines and order.
    let mut plain = Metadata::from_value(document.clone()).check();
    let mut stripped = from_text.clone();
    for finding in &mut stripped {
        assert!(finding.line.take().is_some() && finding.excerpt.take().is_some(), "{finding}");
    }
    let by_place = |finding: &Finding| (finding.path.clone(), finding.message.clone());
    plain.sort_by_key(by_place);
    stripped.sort_by_key(by_place);
    assert_eq!(plain, stripped);
    from_text
}

/// The whole document with the value at `pointer` set; `~` removes it.
fn with(pointer: &str, value: &Value) -> Value {
    let mut document = whole();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap_or_else(|| panic!("no {pointer}"));
    match parent {
        Value::Object(members) if *value == json!("~") => {
            members.remove(key).unwrap_or_else(|| panic!("no {pointer}"));
        }
        Value::Object(members) => {
            members.insert(key.to_owned(), value.clone());
        }
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value.clone(),
        _ => panic!("{pointer} is in a scalar"),
    }
    document
}

const ISSUES: &str = "/record_types/issues";

/// One thing broken, and the one finding that comes of it: severity, rule, path, and what message and help must hold.
fn one(pointer: &str, value: Value, severity: Severity, rule: Rule, path: &str, texts: &[&str]) {
    let findings = check(&with(pointer, &value));
    let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(findings.len(), 1, "{pointer} = {value}: {shown:#?}");
    let finding = &findings[0];
    assert_eq!((finding.severity, finding.rule), (severity, rule), "{shown:?}");
    assert_eq!(finding.path.to_string(), path, "{shown:?}");
    for text in texts {
        assert!(shown[0].contains(text), "{text:?} is not in {:?}", shown[0]);
    }
}

fn error(pointer: &str, value: Value, rule: Rule, path: &str, texts: &[&str]) {
    one(pointer, value, Severity::Error, rule, path, texts);
}

fn warning(pointer: &str, value: Value, rule: Rule, path: &str, texts: &[&str]) {
    one(pointer, value, Severity::Warning, rule, path, texts);
}

/// As `error`, for a field `x` added to the issues.
fn field(field: Value, rule: Rule, path: &str, texts: &[&str]) {
    error(&format!("{ISSUES}/fields/x"), field, rule, &format!("record_types.issues.fields.x{path}"), texts);
}

#[test]
fn what_is_right_passes_without_a_word() {
    assert_eq!(check(&whole()), []);
    assert_eq!(check(&json!({"record_types": {}})), []);
    assert_eq!(check(&with("/schema_version", &json!("~"))), []);
    assert_eq!(check(&with("/team_data", &json!({"anything": 1}))), []);
    let names = format!("{}/link_naming_data/link_direction_names", "/record_types/links");
    assert_eq!(check(&with(&names, &json!(null))), []);
    assert_eq!(
        check(&with("/record_types/issues/fields/some_rights/conditional_privilege", &json!(null))),
        []
    );
}

#[test]
fn everything_is_found_at_once_in_the_order_of_the_document() {
    let text = r##"{
  "schema_version": "v1",
  "record_types": {
    "issues": {
      "fields": {
        "created_date": {"type": "text"},
        "owner": {"type": "reference", "reference": {"refers_to": {"#record:user": {}}}},
        "prio": {"type": "enum", "enum": {"values": []}}
      }
    },
    "users": {"fields": {"age": {"type": "integer"}}, "nmae": "User"}
  }
}"##;
    let found = Metadata::from_json(text).unwrap().check();
    let places: Vec<_> = found.iter().map(|found| (found.line.unwrap(), found.path.to_string())).collect();
    assert_eq!(
        places,
        [
            (2, "schema_version".to_owned()),
            (6, "record_types.issues.fields.created_date".to_owned()),
            (7, "record_types.issues.fields.owner.reference.refers_to.#record:user".to_owned()),
            (8, "record_types.issues.fields.prio.enum".to_owned()),
            (11, "record_types.users.nmae".to_owned()),
            (11, "record_types.users.fields.age.type".to_owned()),
        ]
    );
}

#[test]
fn what_is_not_json_is_said_with_its_line() {
    let findings = Metadata::from_json("{\n  \"record_types\": {\n    \"issues\": {,}\n}}").unwrap_err();
    assert_eq!((findings.len(), findings[0].rule, findings[0].line), (1, Rule::Json, Some(3)));
    let finding = Metadata::from_json("{\"record_types\": {}").unwrap_err();
    assert!(finding.to_string().contains("ends too early"), "{finding}");
    for scalar in ["[]", "null", "3", "\"x\""] {
        let findings = Metadata::from_json(scalar).unwrap().check();
        assert_eq!((findings.len(), findings[0].rule), (1, Rule::Shape), "{scalar}");
    }
}

#[test]
fn a_key_that_stands_twice_is_found() {
    let text = r#"{"record_types": {"issues": {"fields": {
        "title": {"type": "text"},
        "size": {"type": "int"},
        "title": {"type": "rich_text"}}}}}"#;
    let findings = Metadata::from_json(text).unwrap().check();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!((findings[0].rule, findings[0].line), (Rule::DuplicateKey, Some(4)));
    assert_eq!(findings[0].path.to_string(), "record_types.issues.fields.title");
}

#[test]
fn a_wrong_schema_version_is_an_error() {
    for version in [json!("v0.1.0"), json!("0.2.0"), json!(2), json!(null)] {
        error("/schema_version", version, Rule::SchemaVersion, "schema_version", &["v0.2.0"]);
    }
}

#[test]
fn an_unknown_key_is_a_warning_that_names_the_nearest_known_one() {
    let unknown = Rule::UnknownKey;
    warning("/record_typs", json!({}), unknown, "record_typs", &["\"record_types\""]);
    warning("/struct_types/address/filds", json!({}), unknown, "struct_types.address.filds", &["\"fields\""]);
    warning(
        &format!("{ISSUES}/stage_diagramm"),
        json!({}),
        unknown,
        "record_types.issues.stage_diagramm",
        &["\"stage_diagram\""],
    );
    let path = "record_types.issues.fields.title";
    warning(
        &format!("{ISSUES}/fields/title/isRequired"),
        json!(true),
        unknown,
        &format!("{path}.isRequired"),
        &["\"is_required\""],
    );
    warning(
        &format!("{ISSUES}/fields/title/wombat"),
        json!(1),
        unknown,
        &format!("{path}.wombat"),
        &["known here"],
    );
    // Names of older versions of the format.
    let path = "record_types.issues.fields.owner.reference.role";
    warning(
        &format!("{ISSUES}/fields/owner/reference/role"),
        json!("parent"),
        unknown,
        path,
        &["\"reference_type\""],
    );
    let path = "record_type_categories.work.are_transitions_possible";
    let today = "are_record_type_conversions_possible";
    warning("/record_type_categories/work/are_transitions_possible", json!(true), unknown, path, &[today]);
}

#[test]
fn a_value_of_the_wrong_json_type_is_an_error() {
    let shape = Rule::Shape;
    error("/record_type_categories", json!([]), shape, "record_type_categories", &["an array of 0"]);
    error(
        "/record_type_categories/work",
        json!("Work"),
        shape,
        "record_type_categories.work",
        &["the string \"Work\""],
    );
    error("/struct_types/phone", json!({}), shape, "struct_types.phone", &["fields is missing"]);
    error("/record_types/links", json!(7), shape, "record_types.links", &["the number 7", "fields"]);
    error(&format!("{ISSUES}/name"), json!(5), shape, "record_types.issues.name", &["expected a string"]);
    error(
        &format!("{ISSUES}/is_loadable"),
        json!("yes"),
        shape,
        "record_types.issues.is_loadable",
        &["true or false"],
    );
    error(
        &format!("{ISSUES}/scope"),
        json!("data_is_sytem_scoped"),
        shape,
        "record_types.issues.scope",
        &["\"data_is_system_scoped\""],
    );
    error(
        &format!("{ISSUES}/fields/due"),
        json!("date"),
        shape,
        "record_types.issues.fields.due",
        &["\"type\""],
    );
    error(
        &format!("{ISSUES}/fields/title/is_required"),
        json!("true"),
        shape,
        "record_types.issues.fields.title.is_required",
        &["the string \"true\"", "without quotes"],
    );
    error(
        &format!("{ISSUES}/fields/owner/reference/reference_type"),
        json!("sibling"),
        shape,
        "record_types.issues.fields.owner.reference.reference_type",
        &["\"parent\", \"child\""],
    );
    assert_eq!(check(&json!({}))[0].rule, shape);
    assert_eq!(check(&json!({"record_types": []}))[0].rule, shape);
}

#[test]
fn a_record_type_that_cannot_be_an_item_type_is_found() {
    error(
        "/record_types/a\\b",
        json!({"fields": {}}),
        Rule::RecordType,
        "record_types[\"a\\\\b\"]",
        &["slash"],
    );
    let path = "record_types[\"\"]";
    error("/record_types/", json!({"fields": {}}), Rule::RecordType, path, &["must not be empty"]);
    warning(
        "/record_types/attachments",
        json!({"fields": {}}),
        Rule::RecordType,
        "record_types.attachments",
        &["another key"],
    );
}

#[test]
fn an_unknown_field_type_is_an_error_that_names_the_nearest() {
    let rule = Rule::FieldType;
    field(json!({"type": "txt"}), rule, ".type", &["\"txt\"", "did you mean \"text\"?"]);
    field(json!({"type": "string"}), rule, ".type", &["did you mean \"text\"?"]);
    field(json!({"type": "datetime"}), rule, ".type", &["did you mean \"timestamp\"?"]);
    field(json!({"type": "Enum"}), rule, ".type", &["did you mean \"enum\"?"]);
    field(json!({"type": "colour"}), rule, ".type", &["bool, int, float"]);
    field(json!({"type": 3}), rule, ".type", &["the number 3"]);
    field(json!({"name": "X"}), rule, "", &["has no type"]);
    field(json!({"type": "text", "int": {"min": 0}}), rule, ".int", &["\"text\"", "\"int\""]);
    field(
        json!({"type": "bool", "enum": {"values": [{"key": "a"}]}}),
        rule,
        ".enum",
        &["make the type \"enum\""],
    );
}

#[test]
fn dates_that_every_record_has_need_no_declaration() {
    for key in ["created_date", "modified_date"] {
        let path = format!("record_types.issues.fields.{key}");
        one(
            &format!("{ISSUES}/fields/{key}"),
            json!({"type": "text"}),
            Severity::Warning,
            Rule::ReservedField,
            &path,
            &["remove it"],
        );
    }
    // A struct's own are no record's.
    assert_eq!(check(&with("/struct_types/address/fields/id", &json!({"type": "text"}))), []);
}

#[test]
fn a_reference_names_what_is_declared() {
    let rule = Rule::Reference;
    let to = |targets: Value| json!({"type": "reference", "reference": {"refers_to": targets}});
    field(
        to(json!({"#record:user": {}})),
        rule,
        ".reference.refers_to.#record:user",
        &["did you mean \"users\"?"],
    );
    field(
        to(json!({"#record:people": {}})),
        rule,
        ".reference.refers_to.#record:people",
        &["\"#category:people\""],
    );
    field(
        to(json!({"#category:poeple": {}})),
        rule,
        ".reference.refers_to.#category:poeple",
        &["did you mean \"people\"?"],
    );
    field(
        to(json!({"#category:users": {}})),
        rule,
        ".reference.refers_to.#category:users",
        &["\"#record:users\""],
    );
    field(to(json!({"users": {}})), rule, ".reference.refers_to.users", &["write \"#record:users\""]);
    field(to(json!({"#people": {}})), rule, ".reference.refers_to.#people", &["write \"#category:people\""]);
    field(
        to(json!({"#record:wombats": {}})),
        rule,
        ".reference.refers_to.#record:wombats",
        &["\"users\", \"contacts\""],
    );
    field(to(json!({})), rule, ".reference.refers_to", &["refers to nothing"]);
    field(to(json!(["#record:users"])), rule, ".reference.refers_to", &["an array of 1"]);
    field(json!({"type": "reference", "reference": {}}), rule, ".reference", &["refers_to"]);
    field(json!({"type": "reference"}), rule, "", &["does not say what it refers to"]);
    field(json!({"type": "typed_reference"}), rule, "", &["typed_reference"]);
    let typed = json!({"type": "typed_reference", "typed_reference": {"refers_to": {"#record:user": {}}}});
    field(typed, rule, ".typed_reference.refers_to.#record:user", &["did you mean \"users\"?"]);
    let permission =
        json!({"type": "permission", "permission": {"member_id": {"refers_to": {"#record:usrs": {}}}}});
    field(permission, rule, ".permission.member_id.refers_to.#record:usrs", &["did you mean \"users\"?"]);
    let privilege = json!({"type": "field_privilege", "field_privilege": {"type_keys": ["#record:users", "#record:isues"]}});
    field(privilege, rule, ".field_privilege.type_keys[1]", &["did you mean \"issues\"?"]);
    let participation =
        json!({"type": "participation", "participation": {"refers_to": {"#record:nobody": {}}}});
    field(participation, rule, ".participation.refers_to.#record:nobody", &["not declared"]);
    field(
        json!({"type": "record_type_privilege", "record_type_privilege": {}}),
        Rule::Shape,
        ".record_type_privilege",
        &["type_keys"],
    );
    let empty = json!({"type": "reference", "reference": {"refers_to": {"#category:empty": {}}}});
    let mut document = with(&format!("{ISSUES}/fields/x"), &empty);
    document["record_type_categories"]["empty"] = json!({});
    let findings = check(&document);
    assert_eq!(
        (findings.len(), findings[0].severity, findings[0].rule),
        (1, Severity::Warning, rule),
        "{findings:?}"
    );
}

#[test]
fn a_reference_is_by_an_identifier_of_every_target() {
    let rule = Rule::Reference;
    let by = |target: &str, field: &str| json!({"type": "reference", "reference": {"refers_to": {target: {"by_field": field}}}});
    field(
        by("#record:users", "mail"),
        rule,
        ".reference.refers_to.#record:users.by_field",
        &["did you mean \"email\"?"],
    );
    field(
        by("#record:users", "full_name"),
        rule,
        ".reference.refers_to.#record:users.by_field",
        &["\"is_identifier\": true", "record_types.users.fields.full_name"],
    );
    field(
        by("#record:users", "id"),
        rule,
        ".reference.refers_to.#record:users.by_field",
        &["leave by_field out"],
    );
    let mut document = with("/record_types/contacts/fields", &json!({}));
    document["record_types"]["issues"]["fields"]["x"] = by("#record:users", "email");
    let findings = check(&document);
    // Only the reference by category needs the field in contacts.
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].to_string().contains("\"contacts\" has no field \"email\""), "{}", findings[0]);
}

#[test]
fn a_category_is_declared() {
    error(
        &format!("{ISSUES}/category"),
        json!("wrok"),
        Rule::Category,
        "record_types.issues.category",
        &["did you mean \"work\"?"],
    );
    error(
        "/record_types/links/category",
        json!("x"),
        Rule::Category,
        "record_types.links.category",
        &["\"people\", \"work\""],
    );
}

#[test]
fn a_struct_is_declared_and_has_values() {
    let rule = Rule::Struct;
    field(
        json!({"type": "struct", "struct": {"key": "adress"}}),
        rule,
        ".struct.key",
        &["did you mean \"address\"?"],
    );
    field(json!({"type": "struct"}), rule, "", &["struct_types"]);
    assert_eq!(check(&with(&format!("{ISSUES}/fields/x"), &json!({"type": "struct", "struct": {}}))), []);
    let mut itself = json!({"type": "struct", "struct": {"key": "address"}, "is_required": true});
    error(
        "/struct_types/address/fields/next",
        itself.clone(),
        rule,
        "struct_types.address",
        &["requires itself"],
    );
    itself["collection"] = json!({});
    assert_eq!(check(&with("/struct_types/address/fields/next", &itself)), []);
}

#[test]
fn an_enum_has_values_each_once() {
    let rule = Rule::EnumValues;
    let of = |values: Value| json!({"type": "enum", "enum": {"values": values}});
    field(json!({"type": "enum"}), rule, "", &["has no values"]);
    field(json!({"type": "enum", "enum": null}), rule, "", &["has no values"]);
    field(json!({"type": "enum", "enum": {}}), rule, ".enum", &["has no values"]);
    field(of(json!([])), rule, ".enum", &["has no values"]);
    field(of(json!({"a": 1})), rule, ".enum.values", &["an object"]);
    field(of(json!(["a", {"key": "b"}])), rule, ".enum.values[0]", &["write {\"key\": \"a\"}"]);
    field(
        of(json!([{"key": "a"}, {"key": "b"}, {"key": "a"}])),
        rule,
        ".enum.values[2].key",
        &["\"a\"", "values[0]"],
    );
    field(of(json!([{"key": 1}, {"key": "b"}])), rule, ".enum.values[0].key", &["write \"1\""]);
    field(of(json!([{"name": "A"}, {"key": "b"}])), rule, ".enum.values[0]", &["has no key"]);
    let names = of(json!([{"key": "a", "name": "A"}, {"key": "b", "name": "A"}]));
    warning(
        &format!("{ISSUES}/fields/x"),
        names,
        rule,
        "record_types.issues.fields.x.enum.values[1].name",
        &["values[0]"],
    );
    let permission = json!({"type": "permission", "permission": {"role": {"values": []}}});
    field(permission, rule, ".permission.role", &["has no values"]);
}

#[test]
fn a_stage_diagram_matches_its_enum_and_itself() {
    let rule = Rule::StageDiagram;
    let diagram = format!("{ISSUES}/stage_diagram");
    let path = |rest: &str| format!("record_types.issues.stage_diagram{rest}");
    error(
        &format!("{diagram}/controlling_field"),
        json!("stauts"),
        rule,
        &path(".controlling_field"),
        &["did you mean \"status\"?"],
    );
    error(
        &format!("{diagram}/controlling_field"),
        json!("title"),
        rule,
        &path(".controlling_field"),
        &["is not an enum", "\"status\""],
    );
    error(
        &format!("{diagram}/controlling_field"),
        json!("~"),
        rule,
        &path(""),
        &["controlling_field is missing"],
    );
    error(&format!("{diagram}/stages"), json!("~"), rule, &path(""), &["no stages"]);
    error(
        &format!("{diagram}/stages/dnoe"),
        json!({}),
        rule,
        &path(".stages.dnoe"),
        &["did you mean \"done\"?"],
    );
    error(
        &format!("{diagram}/stages/todo/transitions_to/0"),
        json!("dong"),
        rule,
        &path(".stages.todo.transitions_to[0]"),
        &["did you mean \"doing\"?"],
    );
    // A value of the enum, but no stage.
    error(
        &format!("{diagram}/stages/todo/transitions_to/0"),
        json!("lost"),
        rule,
        &path(".stages.todo.transitions_to[0]"),
        &["not among the stages"],
    );
    error(
        &format!("{diagram}/stages/todo/state"),
        json!("opne"),
        rule,
        &path(".stages.todo.state"),
        &["did you mean \"open\"?"],
    );
    error(
        &format!("{diagram}/starting_stage"),
        json!("new"),
        rule,
        &path(".starting_stage"),
        &["\"todo\", \"doing\", \"done\""],
    );
    error(&format!("{diagram}/states/busy/name"), json!("~"), rule, &path(".states.busy"), &["has no name"]);
    error(
        &format!("{diagram}/states/busy/ordinal"),
        json!("2"),
        Rule::Shape,
        &path(".states.busy.ordinal"),
        &["whole number"],
    );
    error(
        &format!("{diagram}/all_transitions_allowed"),
        json!(true),
        rule,
        &path(".all_transitions_allowed"),
        &["transitions_to"],
    );
    warning(&format!("{diagram}/starting_stage"), json!("~"), rule, &path(""), &["starting_stage"]);
    let stages = json!({"todo": {"transitions_to": ["done"]}, "done": {}});
    warning(&format!("{diagram}/stages"), stages, rule, &path(".stages"), &["\"doing\""]);
}

#[test]
fn link_naming_names_values_of_an_enum() {
    let rule = Rule::LinkNaming;
    let naming = "/record_types/links/link_naming_data";
    let path = |rest: &str| format!("record_types.links.link_naming_data{rest}");
    let names = json!({"forward_name": "a", "backward_name": "b"});
    error(
        &format!("{naming}/link_direction_names/block"),
        names,
        rule,
        &path(".link_direction_names.block"),
        &["did you mean \"blocks\"?"],
    );
    error(
        &format!("{naming}/link_type_field"),
        json!("type"),
        rule,
        &path(".link_type_field"),
        &["not a field"],
    );
    error(&format!("{naming}/link_type_field"), json!("~"), rule, &path(""), &["link_type_field is missing"]);
    error(
        &format!("{naming}/link_direction_names"),
        json!("~"),
        rule,
        &path(""),
        &["link_direction_names is missing"],
    );
    error(
        &format!("{naming}/link_direction_names/blocks/backward_name"),
        json!("~"),
        rule,
        &path(".link_direction_names.blocks"),
        &["backward_name is missing"],
    );
    error(
        "/record_types/links/fields/link_type",
        json!({"type": "text"}),
        rule,
        &path(".link_type_field"),
        &["is not an enum"],
    );
}

#[test]
fn conditions_are_on_and_for_fields_that_are_declared() {
    let rule = Rule::Condition;
    let conditions = format!("{ISSUES}/conditions");
    let path = |rest: &str| format!("record_types.issues.conditions{rest}");
    let list = json!([{"value": 1, "comparator": "eq", "affected_fields": ["title"], "effect": "show"}]);
    error(&format!("{conditions}/stauts"), list, rule, &path(".stauts"), &["did you mean \"status\"?"]);
    error(
        &format!("{conditions}/status/0/value"),
        json!("doen"),
        rule,
        &path(".status[0].value"),
        &["did you mean \"done\"?"],
    );
    error(
        &format!("{conditions}/status/0/comparator"),
        json!("equals"),
        Rule::Shape,
        &path(".status[0].comparator"),
        &["\"eq\", \"ne\""],
    );
    error(
        &format!("{conditions}/status/0/effect"),
        json!("~"),
        rule,
        &path(".status[0]"),
        &["effect is missing"],
    );
    error(
        &format!("{conditions}/status/0/effect"),
        json!("hide"),
        Rule::Shape,
        &path(".status[0].effect"),
        &["\"require\", \"show\""],
    );
    error(
        &format!("{conditions}/status/0/affected_fields/0"),
        json!("closedat"),
        rule,
        &path(".status[0].affected_fields[0]"),
        &["did you mean \"closed_at\"?"],
    );
    error(
        &format!("{conditions}/status/0/affected_fields"),
        json!([]),
        rule,
        &path(".status[0].affected_fields"),
        &["at least one"],
    );
}

#[test]
fn bounds_are_the_right_way_up() {
    let rule = Rule::Bounds;
    field(
        json!({"type": "int", "int": {"min": 5, "max": 4}}),
        rule,
        ".int",
        &["min is 5", "max, which is 4"],
    );
    field(json!({"type": "float", "float": {"min": 0.5, "max": 0.25}}), rule, ".float", &["0.5", "0.25"]);
    field(
        json!({"type": "text", "text": {"min_length": 9, "max_length": 1}}),
        rule,
        ".text",
        &["min_length is 9"],
    );
    field(
        json!({"type": "text", "collection": {"min_length": 2, "max_length": 1}}),
        rule,
        ".collection",
        &["min_length is 2"],
    );
    field(json!({"type": "text", "text": {"max_length": -1}}), rule, ".text.max_length", &["0 or more"]);
    field(json!({"type": "int", "int": {"min": 0.5}}), rule, ".int.min", &["whole number"]);
    field(json!({"type": "int", "int": {"max": "9"}}), rule, ".int.max", &["the string \"9\""]);
    let equal = json!({"type": "int", "int": {"min": 4, "max": 4}});
    assert_eq!(check(&with(&format!("{ISSUES}/fields/x"), &equal)), []);
}

#[test]
fn a_default_is_a_value_that_the_field_could_hold() {
    let rule = Rule::DefaultValue;
    let path = ".default_value";
    field(json!({"type": "int", "int": {"max": 9}, "default_value": 10}), rule, path, &["10", "at most 9"]);
    field(json!({"type": "bool", "default_value": "true"}), rule, path, &["true or false"]);
    field(
        json!({"type": "enum", "enum": {"values": [{"key": "open"}]}, "default_value": "opne"}),
        rule,
        path,
        &["did you mean \"open\"?"],
    );
    field(json!({"type": "date", "default_value": "31.12.2020"}), rule, path, &["2020-12-31"]);
    field(json!({"type": "text", "collection": {}, "default_value": 3}), rule, path, &["collection"]);
    let whole = json!({"type": "text", "collection": {}, "default_value": ["a"]});
    assert_eq!(check(&with(&format!("{ISSUES}/fields/x"), &whole)), []);
}

/// What the builder makes is what is written by hand.
#[test]
fn built_metadata_is_the_document_that_one_would_write() {
    let built = Metadata::new()
        .category("people", "People")
        .struct_type("address", [("city", Field::text().required())])
        .record_type("users", RecordType::new().category("people").field("email", Field::text().identifier()))
        .record_type(
            "issues",
            RecordType::new()
                .name("Issue")
                .field("title", Field::text().required().min(1).max(80).name("Title"))
                .field("votes", Field::int().min(0).max(9))
                .field("owner", Field::reference(["#record:users"]).by_field("#record:users", "email"))
                .field("where", Field::structure("address"))
                .field("tags", Field::enumeration(["a", "b"]).collection_of(1, 2))
                .field("shared", Field::permission(["#record:users"], ["reader"]).collection())
                .field(
                    "status",
                    Field::enumeration([
                        EnumValue::new("todo").name("To do"),
                        EnumValue::new("old").deprecated(),
                    ]),
                )
                .stage_diagram(
                    StageDiagram::new("status")
                        .stage("todo", "mine", ["old"])
                        .stage("old", "closed", [])
                        .starting_stage("todo")
                        .state("mine", "Mine", false),
                ),
        )
        .record_type(
            "links",
            RecordType::new()
                .no_identifier()
                .field("kind", Field::enumeration(["blocks"]))
                .link_naming("kind", [("blocks", "blocks", "is blocked by")])
                .set("is_loadable", true),
        );
    let written = json!({
        "schema_version": "v0.2.0",
        "record_types": {
            "users": {"fields": {"email": {"type": "text", "is_identifier": true}}, "category": "people"},
            "issues": {
                "name": "Issue",
                "fields": {
                    "title": {"type": "text", "is_required": true, "name": "Title", "text": {"min_length": 1, "max_length": 80}},
                    "votes": {"type": "int", "int": {"min": 0, "max": 9}},
                    "owner": {"type": "reference", "reference": {"refers_to": {"#record:users": {"by_field": "email"}}}},
                    "where": {"type": "struct", "struct": {"key": "address"}},
                    "tags": {"type": "enum", "collection": {"min_length": 1, "max_length": 2},
                             "enum": {"values": [{"key": "a"}, {"key": "b"}]}},
                    "shared": {"type": "permission", "collection": {}, "permission": {
                        "member_id": {"refers_to": {"#record:users": {}}}, "role": {"values": [{"key": "reader"}]}}},
                    "status": {"type": "enum", "enum": {"values": [{"key": "todo", "name": "To do"}, {"key": "old", "is_deprecated": true}]}}
                },
                "stage_diagram": {
                    "controlling_field": "status", "starting_stage": "todo",
                    "stages": {"todo": {"state": "mine", "transitions_to": ["old"]}, "old": {"state": "closed"}},
                    "states": {"mine": {"name": "Mine", "is_end_state": false}}
                }
            },
            "links": {
                "no_identifier": true, "is_loadable": true,
                "fields": {"kind": {"type": "enum", "enum": {"values": [{"key": "blocks"}]}}},
                "link_naming_data": {"link_type_field": "kind", "link_direction_names": {
                    "blocks": {"forward_name": "blocks", "backward_name": "is blocked by"}}}
            }
        },
        "record_type_categories": {"people": {"name": "People"}},
        "struct_types": {"address": {"fields": {"city": {"type": "text", "is_required": true}}}}
    });
    assert_eq!(serde_json::to_value(&built).unwrap(), written);
    assert_eq!(built, Metadata::from_value(written));
    assert_eq!(built.check(), []);
    assert_eq!(built.record_types().collect::<Vec<_>>(), ["users", "issues", "links"]);
}

/// What this version does not know goes to the platform all the same, and what is added at run time is added.
#[test]
fn unknown_keys_survive_and_a_document_can_be_added_to() {
    let text = r#"{"x_team": {"a": 1}, "record_types": {"issues": {"fields": {}, "x_more": [1]}}}"#;
    let metadata = Metadata::from_json(text).unwrap();
    assert_eq!(
        serde_json::to_string(&metadata).unwrap(),
        serde_json::from_str::<Value>(text).unwrap().to_string()
    );
    let metadata = metadata.record_type("custom_7", RecordType::new().field("size", Field::int()));
    assert_eq!(serde_json::to_value(&metadata).unwrap()["x_team"], json!({"a": 1}));
    assert_eq!(metadata.record_types().collect::<Vec<_>>(), ["issues", "custom_7"]);
    // There is no text any more that line numbers could refer to.
    assert!(metadata.check().iter().all(|finding| finding.line.is_none()));
}

#[test]
fn a_finding_is_one_json_object() {
    let findings = check(&with(&format!("{ISSUES}/category"), &json!("wrok")));
    let object = serde_json::to_value(&findings[0]).unwrap();
    assert_eq!(object["kind"], "finding");
    assert_eq!(object["severity"], "error");
    assert_eq!(object["rule"], "category");
    assert_eq!(object["path"], "record_types.issues.category");
    assert_eq!(object["expected"], "did you mean \"work\"?");
    assert!(object["line"].is_u64() && object["message"].is_string());
    assert_eq!(object["excerpt"], "\"category\": \"wrok\",");
    assert!(object.get("record").is_none());
}

/// Names from a document can hold anything; a finding shows it so that a terminal is not misled.
#[test]
fn control_and_bidi_characters_are_escaped_in_findings() {
    let shown = check(&with(&format!("{ISSUES}/category"), &json!("a\u{1b}[31m\u{202e}b")))[0].to_string();
    assert!(shown.contains("\\u{1b}[31m\\u{202e}b"), "{shown}");
    let shown = check(&with(&format!("{ISSUES}/fields/a\u{202e}b"), &json!({"type": "txt"})))[0].to_string();
    assert!(!shown.contains('\u{202e}') && shown.contains("\\u{202e}"), "{shown}");
}

/// Every place in a document, as JSON pointers.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    for (key, inner) in value.as_object().into_iter().flatten() {
        places(inner, &format!("{at}/{key}"), into);
    }
    for (n, inner) in value.as_array().into_iter().flatten().enumerate() {
        places(inner, &format!("{at}/{n}"), into);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/metadata.txt"))),
        ..ProptestConfig::default()
    })]

    /// Whatever is in the document: the check terminates, and every finding has a place in the
    /// document, or in the object where something is missing; and a value of a type that no key has is found.
    #[test]
    fn anything_anywhere_is_checked(
        which in any::<prop::sample::Index>(),
        spoilt in prop::sample::select(vec![json!(null), json!(true), json!(-1), json!(1.5), json!(""), json!("text"), json!([]), json!([[1]]), json!({}), json!({"": {"a": []}})]),
    ) {
        let mut document = whole();
        let mut pointers = Vec::new();
        places(&document, "", &mut pointers);
        let pointer = &pointers[which.index(pointers.len())];
        let place = document.pointer_mut(pointer).unwrap();
        let same = *place == spoilt;
        *place = spoilt.clone();
        let findings = check(&document);
        if same {
            prop_assert_eq!(findings, vec![]);
        } else if spoilt == json!([[1]]) {
            // Only what may hold anything may hold an array of arrays.
            let may = ["/default_value", "/value"].iter().any(|end| pointer.ends_with(end));
            prop_assert!(may || findings.iter().any(Finding::is_error), "{}: {:?}", pointer, findings);
        }
    }
}
