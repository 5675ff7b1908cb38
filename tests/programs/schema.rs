//! For stores of real runs, `--json` prints what `docs/dump.schema.json` describes, and every kind in the schema is
//! printed.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::dump::with_table;
use crate::place::{Place, store_amid_work, store_with_attachments};
use crate::screens::{rejects, run_that, worker};

/// What of JSON Schema the schema of the dump uses; of anything else it is not known whether it holds.
struct Schema(Value);

impl Schema {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dump.schema.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// The first thing in which a value is not as it should be.
    fn problem(&self, value: &Value) -> Option<String> {
        self.problem_at(&self.0, value, "")
    }

    fn problem_at(&self, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let rules = schema.as_object().unwrap_or_else(|| panic!("{at}: a schema is an object"));
        rules.iter().find_map(|(rule, is)| self.broken(rules, rule, is, value, at))
    }

    fn broken(
        &self,
        rules: &serde_json::Map<String, Value>,
        rule: &str,
        is: &Value,
        value: &Value,
        at: &str,
    ) -> Option<String> {
        let unless = |holds: bool| (!holds).then(|| format!("{at}: {value} breaks {rule} {is}"));
        match rule {
            "$schema" | "$defs" | "title" | "description" => None,
            "$ref" => {
                let name = is.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                self.problem_at(&self.0["$defs"][name], value, at)
            }
            "type" => {
                let types = if is.is_array() { is.clone() } else { json!([is]) };
                unless(types.as_array().unwrap().iter().any(|name| match name.as_str().unwrap() {
                    "string" => value.is_string(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    other => panic!("{at}: no such type: {other}"),
                }))
            }
            "const" => unless(value == is),
            "enum" => unless(is.as_array().unwrap().contains(value)),
            "minimum" => unless(value.as_f64().is_none_or(|number| number >= is.as_f64().unwrap())),
            "format" => {
                assert_eq!(is, "date-time");
                let text = value.as_str();
                unless(text.is_none_or(|text| chrono::DateTime::parse_from_rfc3339(text).is_ok()))
            }
            "required" => is.as_array().unwrap().iter().find_map(|name| {
                let name = name.as_str().unwrap();
                value.get(name).is_none().then(|| format!("{at}: {name} is missing in {value}"))
            }),
            "properties" => is.as_object().unwrap().iter().find_map(|(name, schema)| {
                value.get(name).and_then(|inner| self.problem_at(schema, inner, &format!("{at}/{name}")))
            }),
            "additionalProperties" => {
                assert_eq!(*is, json!(false));
                let known = rules["properties"].as_object().unwrap();
                let names = value.as_object().into_iter().flatten().map(|(name, _)| name);
                names
                    .clone()
                    .find(|name| !known.contains_key(*name))
                    .map(|name| format!("{at}: {name} is not known"))
            }
            "items" => {
                value.as_array().into_iter().flatten().find_map(|inner| self.problem_at(is, inner, at))
            }
            "anyOf" | "oneOf" => {
                let problems: Vec<_> =
                    is.as_array().unwrap().iter().map(|schema| self.problem_at(schema, value, at)).collect();
                let fit = problems.iter().filter(|problem| problem.is_none()).count();
                if fit == 1 || (rule == "anyOf" && fit > 0) {
                    return None;
                }
                // For a line, the problem that its own kind has.
                let kind = format!("breaks const {}", value["kind"]);
                let of_kind =
                    problems.iter().flatten().find(|problem| !problem.contains("/kind") && **problem != kind);
                Some(of_kind.cloned().unwrap_or_else(|| format!("{at}: {value} fits {fit} of {rule}")))
            }
            other => panic!("{at}: the test does not know {other}"),
        }
    }
}

/// Every line of JSON that the commands print of one store.
fn lines_of(place: &Place) -> Vec<Value> {
    let output = |args: &[&str]| {
        let output = place.dump(args).env_remove("HIGHWATER_DUMP_NOW").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let mut lines = output(&["state.redb", "--json", "--internal"]);
    lines.extend(output(&["check", "state.redb", "--json"]));
    let units: Vec<_> = lines.iter().filter(|line| line["kind"] == "unit").cloned().collect();
    for unit in units {
        let unit = unit["sync_unit"].as_str().unwrap();
        for command in ["runs", "events", "attachments", "rejected", "batch"] {
            lines.extend(output(&[command, "state.redb", "--unit", unit, "--json"]));
        }
        lines.extend(output(&["find", "state.redb", "ISSUE-5", "--unit", unit, "--json"]));
        lines.extend(output(&["tail", "state.redb", "--unit", unit, "--json", "--looks", "1"]));
    }
    lines
}

#[test]
fn what_json_prints_is_what_its_schema_says_and_every_kind_is_printed() {
    let schema = Schema::read();
    let stores: [fn(&Place); 6] = [
        |place| store_amid_work(&place.store()),
        |place| store_with_attachments(&place.store()),
        |place| {
            run_that(place.dir.path(), "odd");
        },
        |place| rejects(place, false),
        |place| {
            assert!(!worker(place.dir.path(), "die").success());
            crate::screens::invocation(place.dir.path(), "fail");
        },
        |place| {
            store_amid_work(&place.store());
            with_table(&place.store(), "streams", |table| drop(table.insert(&b"x"[..], &b"y"[..]).unwrap()));
        },
    ];
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for store in stores {
        let place = Place::new();
        store(&place);
        lines.extend(lines_of(&place));
    }
    for line in &lines {
        assert_eq!(schema.problem(line), None, "{line}");
        seen.insert(line["kind"].as_str().unwrap().to_owned());
    }
    let defs = schema.0["$defs"].as_object().unwrap();
    let kinds: BTreeSet<String> = defs
        .iter()
        .filter(|(_, is)| is["properties"].get("kind").is_some())
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(seen, kinds);

    // A line that says less, more or another thing is told from one that is right.
    for line in &lines {
        let fields: Vec<String> = line.as_object().unwrap().keys().cloned().collect();
        for field in &fields {
            let mut less = line.clone();
            less.as_object_mut().unwrap().remove(field);
            let optional = ["far_more_than", "rejected", "records_rejected"].contains(&field.as_str());
            assert!(optional || schema.problem(&less).is_some(), "without {field}: {less}");
        }
        let mut more = line.clone();
        more["more"] = json!(1);
        assert!(schema.problem(&more).is_some(), "{more}");
        let mut other = line.clone();
        other["kind"] = json!(7);
        assert!(schema.problem(&other).is_some(), "{other}");
    }
}
