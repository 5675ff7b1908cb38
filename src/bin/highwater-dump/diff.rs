//! `diff`: lists the differences between two stores, two worker states, or one of each, as sentences.
//!
//! Both are turned into the objects that `--json` prints. Objects of the same kind and with the same identifying
//! fields are compared. So every field that is reported is compared, including those that later versions add.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use highwater::airdrop::SavedState;
use highwater::inspect::Report;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::ending::{Exit, Failure, Outcome};
use crate::mend::state_of;
use crate::stores::open;
use crate::text::{Screen, folded, json_line, seconds_in_words, stdout, visible};

/// The name of the unit of a worker state, which does not contain one.
const UNNAMED: &str = "the unit";
/// Characters of a value in a sentence; JSON has all of it.
const SHOWN_CHARS: usize = 100;
/// The kinds that are listed first.
const KINDS: [&str; 6] = ["unit", "run", "stream", "item_type", "bookmark", "value"];
/// The fields that identify an object among others of its kind.
const NAMES: [&str; 11] =
    ["stream", "item_type", "severity", "rule", "path", "key", "message", "seq", "id", "parent_id", "epoch"];

/// Lists the differences between two stores, or worker states
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  highwater-dump diff yesterday.redb state.redb --unit acme/tickets")]
pub(crate) struct Diff {
    /// A store file, or a file with a worker state
    a: PathBuf,
    /// The other one
    b: PathBuf,
    /// Compare only this sync unit; for a worker state, the name to give it
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// How many messages and finished runs of each unit to compare, newest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
    /// Print one JSON object per difference, one per line
    #[arg(long)]
    json: bool,
}

/// The place of an object in a listing: its unit, the place of its kind, its kind, and the fields that identify it.
type Place = (String, usize, String, Vec<(String, String)>);
type Object = Map<String, Value>;

/// A difference.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    kind: &'static str,
    sync_unit: &'a str,
    /// The kind of the object, as in a listing.
    of: &'a str,
    /// What identifies it among others of its kind.
    which: BTreeMap<&'a str, &'a str>,
    /// The path of the field; `None` if only one of the two has the object.
    field: Option<String>,
    a: Option<&'a Value>,
    b: Option<&'a Value>,
}

impl Diff {
    pub(crate) fn run(&self) -> Outcome {
        let (a, b) = (state_of(&self.a)?, state_of(&self.b)?);
        if a.is_some() != b.is_some() && self.unit.is_none() {
            return Err(Failure::Usage(
                "a worker state does not contain the name of its unit: use --unit".to_owned(),
            ));
        }
        let (a, b) = (self.objects(&self.a, a)?, self.objects(&self.b, b)?);
        let mut out = stdout();
        let screen = Screen::new();
        let mut any = false;
        let places: BTreeSet<&Place> = a.keys().chain(b.keys()).collect();
        for place in places {
            for difference in differences(place, a.get(place), b.get(place)) {
                any = true;
                if self.json {
                    json_line(&mut out, &difference)?;
                } else {
                    folded(&mut out, screen, "", "  ", &visible(&words(&difference)))?;
                }
            }
        }
        if !any && !self.json {
            writeln!(out, "nothing differs")?;
        }
        out.flush()?;
        Ok(Exit::Fine)
    }

    /// The objects that a store, or a worker state in a file, is reported as.
    fn objects(&self, path: &Path, worker_state: Option<String>) -> Outcome<BTreeMap<Place, Object>> {
        let mut objects = BTreeMap::new();
        let wrong = |error| Failure::Absent(format!("{}: {error}", path.display()));
        let mut add = |report: &Report| -> Outcome<()> {
            for line in report.lines() {
                if let Value::Object(object) = serde_json::to_value(line).map_err(wrong)? {
                    objects.insert(place_of(&object), object);
                }
            }
            Ok(())
        };
        if let Some(text) = worker_state {
            let unit = self.unit.as_deref().unwrap_or(UNNAMED);
            let state = SavedState::read(&text, unit)?;
            if let Some(report) = state.store().report(unit, self.last)? {
                add(&report)?;
            }
            return Ok(objects);
        }
        let mut snapshot = open(path)?;
        match &self.unit {
            // If one of the two does not have the unit, all of it is new or gone.
            Some(unit) => snapshot.unit(unit, self.last)?.iter().try_for_each(add)?,
            None => snapshot.units(self.last).try_for_each(|report| add(&report?))?,
        }
        Ok(objects)
    }
}

/// What identifies an object.
fn place_of(object: &Object) -> Place {
    let text = |name: &str| match object.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(number @ Value::Number(_)) => Some(number.to_string()),
        _ => None,
    };
    let kind = text("kind").unwrap_or_default();
    let mut which: Vec<(String, String)> = Vec::new();
    // A unit has at most one of each of these, and its run id may be what differs.
    if !matches!(kind.as_str(), "unit" | "run") {
        // Streams and item types belong to the newest run, so its id does not identify them.
        if matches!(kind.as_str(), "ledger" | "attachment" | "death") {
            which.extend(text("run").map(|run| ("run".to_owned(), run)));
        }
        let names = NAMES.iter().filter(|name| **name != "epoch" || kind == "death");
        // A message is known by its number.
        let names = names.filter(|name| **name != "key" || kind == "value");
        // The counts of a ledger row do not identify it.
        let names = names.filter(|_| kind != "ledger");
        which.extend(names.filter_map(|name| Some(((*name).to_owned(), text(name)?))));
    }
    let rank = KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len());
    (text("sync_unit").unwrap_or_default(), rank, kind, which)
}

fn differences<'a>(place: &'a Place, a: Option<&'a Object>, b: Option<&'a Object>) -> Vec<Difference<'a>> {
    let (sync_unit, _, of, which) = place;
    let which: BTreeMap<&str, &str> =
        which.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut found = Vec::new();
    let mut add = |field: Option<String>, a: Option<&'a Value>, b: Option<&'a Value>| {
        found.push(Difference { kind: "difference", sync_unit, of, which: which.clone(), field, a, b });
    };
    match (a, b) {
        (Some(a), Some(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                fields(name, a.get(name), b.get(name), &mut add);
            }
        }
        (a, b) => add(None, a.map(|_| &Value::Null), b.map(|_| &Value::Null)),
    }
    found
}

fn fields<'a>(
    at: &str,
    a: Option<&'a Value>,
    b: Option<&'a Value>,
    add: &mut impl FnMut(Option<String>, Option<&'a Value>, Option<&'a Value>),
) {
    match (a, b) {
        (a, b) if a == b => {}
        // A cursor, a bookmark or a value is compared as a whole.
        (Some(Value::Object(a)), Some(Value::Object(b)))
            if !matches!(at, "cursor" | "bookmark" | "value") =>
        {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                fields(&format!("{at}.{name}"), a.get(name), b.get(name), add);
            }
        }
        (a, b) => add(Some(at.to_owned()), a, b),
    }
}

/// A difference as a sentence.
fn words(difference: &Difference<'_>) -> String {
    let Difference { sync_unit, of, which, field, a, b, .. } = difference;
    let plain = |name: &str| name.replace(['_', '.'], " ");
    let mut what = if *of == "ledger" { "ledger entry of run".to_owned() } else { plain(of) };
    // Some names include the kind: `stream issues`, `item type issues`.
    for (name, value) in which {
        if name == of || which.len() == 1 {
            what = format!("{what} {value}");
        } else {
            what = format!("{what}, {} {value}", plain(name));
        }
    }
    if *of == "unit" {
        what.clear();
    }
    let of_what = if what.is_empty() { String::new() } else { format!(" {what}:") };
    match (field, a, b) {
        // The field of a value or a bookmark has the name of its kind: it is not repeated.
        (Some(field), a, b) if field == of => format!("{sync_unit}:{of_what} {} -> {}", shown(*a), shown(*b)),
        (Some(field), a, b) => {
            let (field, a, b) = match field.strip_suffix("_seconds") {
                Some(field) => (field, shown_seconds(*a), shown_seconds(*b)),
                None => (field.as_str(), shown(*a), shown(*b)),
            };
            format!("{sync_unit}:{of_what} {}: {a} -> {b}", plain(field))
        }
        (None, None, _) => {
            format!("{sync_unit}:{} is new", if what.is_empty() { String::new() } else { format!(" {what}") })
        }
        (None, _, _) => format!(
            "{sync_unit}:{} is gone",
            if what.is_empty() { String::new() } else { format!(" {what}") }
        ),
    }
}

fn shown_seconds(value: Option<&Value>) -> String {
    value.and_then(Value::as_u64).map_or_else(|| shown(value), seconds_in_words)
}

fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
