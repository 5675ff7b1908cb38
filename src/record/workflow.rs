//! Checks the parts of metadata that relate fields to each other: conditions, stage diagrams, link names. Records are
//! not checked against them.

use serde_json::{Map, Value};

use super::finding::Rule;
use super::hints::{list, meant_or_one_of};
use super::path::{At, quoted, shown};
use super::read::Reader;
use super::schema::{EnumDecl, FieldDecl, Fields, Kind};

impl<'v> Reader<'v, '_> {
    pub(super) fn conditions(&mut self, at: &At<'_>, conditions: &'v Map<String, Value>, fields: &Fields) {
        for (controlling, list) in conditions {
            let at = at.key(controlling);
            let field = fields.find(controlling);
            if field.is_none() {
                let message = format!(
                    "the condition is on {}, which is not a field of this record type",
                    quoted(controlling)
                );
                let expected = meant_or_one_of(controlling, "fields", fields.keys());
                self.sink.error(&at, Rule::Condition, message, expected);
            }
            let Value::Array(list) = list else {
                let message = format!("the conditions are {}", shown(list));
                self.sink.error(&at, Rule::Shape, message, "expected an array of conditions");
                continue;
            };
            for (position, condition) in list.iter().enumerate() {
                let at = at.position(position);
                let Some(condition) = self.object(&at, condition, "{\"value\": ..., \"comparator\": \"eq\", \"affected_fields\": [...], \"effect\": \"require\"}") else { continue };
                self.known_keys(&at, condition, &["value", "comparator", "affected_fields", "effect"]);
                for key in ["value", "comparator", "affected_fields", "effect"] {
                    if !condition.contains_key(key) {
                        let expected = "a condition has value, comparator, affected_fields and effect";
                        self.sink.error(&at, Rule::Condition, format!("{key} is missing"), expected);
                    }
                }
                self.one_of(&at, condition, "comparator", &["eq", "ne", "lt", "lte", "gt", "gte"]);
                self.one_of(&at, condition, "effect", &["require", "show"]);
                if let (Some((_, FieldDecl { kind: Kind::Enum(values), .. })), Some(Value::String(value))) =
                    (field, condition.get("value"))
                    && !values.contains(value)
                {
                    let message =
                        format!("{} is not a value of the enum {}", quoted(value), quoted(controlling));
                    let expected = meant_or_one_of(value, "values", values.keys());
                    self.sink.error(&at.key("value"), Rule::Condition, message, expected);
                }
                self.affected_fields(&at, condition, fields);
            }
        }
    }

    fn affected_fields(&mut self, at: &At<'_>, condition: &'v Map<String, Value>, fields: &Fields) {
        let at = at.key("affected_fields");
        let affected = match condition.get("affected_fields") {
            Some(Value::Array(affected)) if !affected.is_empty() => affected,
            Some(other) => {
                let message = format!("affected_fields is {}", shown(other));
                self.sink.error(
                    &at,
                    Rule::Condition,
                    message,
                    "expected an array with at least one field's key",
                );
                return;
            }
            None => return,
        };
        for (position, key) in affected.iter().enumerate() {
            let at = at.position(position);
            match key.as_str() {
                Some(key) if fields.find(key).is_some() => {}
                Some(key) => {
                    let message = format!("{} is not a field of this record type", quoted(key));
                    self.sink.error(
                        &at,
                        Rule::Condition,
                        message,
                        meant_or_one_of(key, "fields", fields.keys()),
                    );
                }
                None => {
                    let message = format!("the affected field is {}", shown(key));
                    self.sink.error(&at, Rule::Condition, message, "expected a field's key, a string");
                }
            }
        }
    }

    /// The enum field with the key `key`, and its name.
    fn enum_field<'f>(
        &mut self,
        at: &At<'_>,
        map: &'v Map<String, Value>,
        key: &str,
        rule: Rule,
        fields: &'f Fields,
    ) -> Option<(&'v str, &'f EnumDecl)> {
        let Some(name) = self.string(at, map, key) else {
            if !map.contains_key(key) {
                let expected = format!("add \"{key}\": the key of an enum field of this record type");
                self.sink.error(at, rule, format!("{key} is missing"), expected);
            }
            return None;
        };
        let at = at.key(key);
        match fields.find(name) {
            Some((_, FieldDecl { kind: Kind::Enum(values), .. })) => return Some((name, values)),
            // Its own declaration is broken, which has a finding already.
            Some((_, FieldDecl { kind: Kind::Any, .. })) => {}
            Some(_) => {
                let message = format!("the field {} is not an enum", quoted(name));
                let enums = fields.list.iter().filter(|field| matches!(field.kind, Kind::Enum(_)));
                let expected = meant_or_one_of(name, "enum fields", enums.map(|field| field.key.as_str()));
                self.sink.error(&at, rule, message, expected);
            }
            None => {
                let message = format!("{} is not a field of this record type", quoted(name));
                self.sink.error(&at, rule, message, meant_or_one_of(name, "fields", fields.keys()));
            }
        }
        None
    }

    pub(super) fn stage_diagram(&mut self, at: &At<'_>, diagram: &'v Map<String, Value>, fields: &Fields) {
        const KEYS: [&str; 5] =
            ["controlling_field", "stages", "starting_stage", "states", "all_transitions_allowed"];
        let rule = Rule::StageDiagram;
        self.known_keys(at, diagram, &KEYS);
        let all_allowed = self.boolean(at, diagram, "all_transitions_allowed");
        let controlling = self.enum_field(at, diagram, "controlling_field", rule, fields);
        let own_states = self.block(at, diagram, "states");
        if let Some(declared) = own_states {
            self.states(&at.key("states"), declared);
        }
        let Some(stages) = diagram.get("stages") else {
            let expected =
                "add \"stages\": {\"open\": {\"state\": \"open\"}, ...}, a key for each value of the enum";
            self.sink.error(at, rule, "the diagram has no stages", expected);
            return;
        };
        let stages_at = at.key("stages");
        let Some(stages) =
            self.object(&stages_at, stages, "{\"open\": {\"state\": \"open\"}, ...}: a key for each stage")
        else {
            return;
        };
        if stages.len() < 2 {
            let message =
                if stages.is_empty() { "the diagram has no stages" } else { "the diagram has one stage" };
            self.sink.warning(&stages_at, rule, message, "a diagram has at least two");
        }
        let mut has_transitions = false;
        for (key, stage) in stages {
            let at = stages_at.key(key);
            if let Some((field, values)) = controlling
                && !values.contains(key)
            {
                let message =
                    format!("the stage {} is not a value of the enum {}", quoted(key), quoted(field));
                self.sink.error(&at, rule, message, meant_or_one_of(key, "values", values.keys()));
            }
            let Some(stage) = self.object(&at, stage, "an object, which may be empty: {}") else { continue };
            self.known_keys(&at, stage, &["state", "transitions_to"]);
            self.state_of_stage(&at, stage, own_states);
            has_transitions |= self.transitions(&at, stage, stages);
        }
        if all_allowed && has_transitions {
            let message = "all transitions are allowed, and yet some are listed";
            let expected = "remove every transitions_to, or remove all_transitions_allowed";
            self.sink.error(&at.key("all_transitions_allowed"), rule, message, expected);
        }
        match self.string(at, diagram, "starting_stage") {
            Some(starting) if !stages.contains_key(starting) => {
                let message = format!("the starting stage {} is not among the stages", quoted(starting));
                self.sink.error(
                    &at.key("starting_stage"),
                    rule,
                    message,
                    meant_or_one_of(starting, "stages", stages.keys().map(String::as_str)),
                );
            }
            None if !diagram.contains_key("starting_stage") && (has_transitions || own_states.is_some()) => {
                let message = "the diagram has no starting stage";
                let expected = "add \"starting_stage\": it is needed once transitions or states are given";
                self.sink.warning(at, rule, message, expected);
            }
            _ => {}
        }
        if let Some(controlling) = controlling {
            self.values_without_stage(&stages_at, controlling, stages);
        }
    }

    fn values_without_stage(
        &mut self,
        at: &At<'_>,
        (field, values): (&str, &EnumDecl),
        stages: &Map<String, Value>,
    ) {
        let missing: Vec<&str> = values
            .values
            .iter()
            .filter(|value| !value.deprecated && !stages.contains_key(&value.key))
            .map(|value| value.key.as_str())
            .collect();
        if !missing.is_empty() {
            let message =
                format!("no stage for these values of the enum {}: {}", quoted(field), list(&missing));
            let expected = "add a stage for each, or mark the value is_deprecated";
            self.sink.warning(at, Rule::StageDiagram, message, expected);
        }
    }

    fn states(&mut self, at: &At<'_>, declared: &'v Map<String, Value>) {
        for (key, value) in declared {
            let at = at.key(key);
            let Some(state) = self.object(&at, value, "{\"name\": \"Waiting\"}") else { continue };
            self.known_keys(&at, state, &["name", "is_end_state", "ordinal"]);
            self.boolean(&at, state, "is_end_state");
            if self.string(&at, state, "name").is_none() && !state.contains_key("name") {
                let message = format!("the state {} has no name", quoted(key));
                self.sink.error(&at, Rule::StageDiagram, message, "add \"name\": what people see");
            }
            if let Some(ordinal) = state.get("ordinal").filter(|ordinal| ordinal.as_i64().is_none()) {
                let message = format!("ordinal is {}", shown(ordinal));
                self.sink.error(&at.key("ordinal"), Rule::Shape, message, "expected a whole number");
            }
        }
    }

    /// Checks that the state of a stage is declared by the diagram, or is a default one.
    fn state_of_stage(
        &mut self,
        at: &At<'_>,
        stage: &'v Map<String, Value>,
        own_states: Option<&'v Map<String, Value>>,
    ) {
        const DEFAULTS: [&str; 3] = ["open", "in_progress", "closed"];
        let Some(named) = self.string(at, stage, "state") else { return };
        let declared = own_states.into_iter().flat_map(|declared| declared.keys().map(String::as_str));
        let known: Vec<&str> = declared.chain(DEFAULTS).collect();
        if !known.contains(&named) {
            let message =
                format!("the state {} is not declared under states, nor one of the defaults", quoted(named));
            let expected = meant_or_one_of(named, "states", known);
            self.sink.error(&at.key("state"), Rule::StageDiagram, message, expected);
        }
    }

    /// Reads the transitions of a stage. Returns whether it lists any.
    fn transitions(
        &mut self,
        at: &At<'_>,
        stage: &'v Map<String, Value>,
        stages: &'v Map<String, Value>,
    ) -> bool {
        let at = at.key("transitions_to");
        let transitions = match stage.get("transitions_to") {
            Some(Value::Array(transitions)) => transitions,
            Some(Value::Null) | None => return false,
            Some(other) => {
                let message = format!("transitions_to is {}", shown(other));
                self.sink.error(&at, Rule::Shape, message, "expected an array of stages");
                return false;
            }
        };
        for (position, to) in transitions.iter().enumerate() {
            let at = at.position(position);
            match to.as_str() {
                Some(to) if stages.contains_key(to) => {}
                Some(to) => {
                    let message =
                        format!("the transition leads to {}, which is not among the stages", quoted(to));
                    let expected = meant_or_one_of(to, "stages", stages.keys().map(String::as_str));
                    self.sink.error(&at, Rule::StageDiagram, message, expected);
                }
                None => {
                    let message = format!("the transition leads to {}", shown(to));
                    self.sink.error(&at, Rule::Shape, message, "expected the key of a stage, a string");
                }
            }
        }
        !transitions.is_empty()
    }

    pub(super) fn link_naming(&mut self, at: &At<'_>, naming: &'v Map<String, Value>, fields: &Fields) {
        let rule = Rule::LinkNaming;
        self.known_keys(at, naming, &["link_type_field", "link_direction_names"]);
        let values = self.enum_field(at, naming, "link_type_field", rule, fields);
        let names = match naming.get("link_direction_names") {
            Some(Value::Null) => return,
            Some(names) => names,
            None => {
                let expected = "add \"link_direction_names\": {\"blocks\": {\"forward_name\": \"blocks\", \"backward_name\": \"is blocked by\"}}, or null";
                self.sink.error(at, rule, "link_direction_names is missing", expected);
                return;
            }
        };
        let at = at.key("link_direction_names");
        let Some(names) = self.object(
            &at,
            names,
            "{\"blocks\": {\"forward_name\": ..., \"backward_name\": ...}}: a key for each value",
        ) else {
            return;
        };
        for (key, directions) in names {
            let at = at.key(key);
            if let Some((field, values)) = values
                && !values.contains(key)
            {
                let message = format!("{} is not a value of the enum {}", quoted(key), quoted(field));
                self.sink.error(&at, rule, message, meant_or_one_of(key, "values", values.keys()));
            }
            let Some(directions) =
                self.object(&at, directions, "{\"forward_name\": ..., \"backward_name\": ...}")
            else {
                continue;
            };
            self.known_keys(&at, directions, &["forward_name", "backward_name"]);
            for key in ["forward_name", "backward_name"] {
                if self.string(&at, directions, key).is_none() && !directions.contains_key(key) {
                    let expected = format!("add \"{key}\": what people see, seen from that side");
                    self.sink.error(&at, rule, format!("{key} is missing"), expected);
                }
            }
        }
    }
}
