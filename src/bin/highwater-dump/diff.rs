//! `diff`: lists the differences between two stores, two worker states, or one of each, as sentences.
//!
//! Both are turned into the objects that `--json` prints, all of them. Objects of the same kind and with the same
//! identifying fields are compared. So every field that is reported is compared, including those that later versions add.
//! An object that one of the two has dropped because of its age is no difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use clap::Args;
use highwater::airdrop::SavedState;
use highwater::inspect::{AttachmentReport, DeathReport, Line, RejectedReport, Report};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::ending::{Exit, Failure, Outcome};
use crate::figures::event_words;
use crate::mend::state_of;
use crate::stores::{no_unit, open, unit_id};
use crate::text::{Screen, at_most, folded, json_line, seconds_in_words, stdout, visible};

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
  highwater-dump diff yesterday.redb state.redb --unit acme/tickets

Runs, messages and deaths that one of the two does not keep any more, because they
are old, are not listed.")]
pub(crate) struct Diff {
    /// A store file, or a file with a worker state
    a: PathBuf,
    /// The other one
    b: PathBuf,
    /// Compare only this sync unit; for a worker state, the name to give it
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// How many things of a kind (runs, failed attachments, rejected records) to list for each unit
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "json")]
    last: usize,
    /// Print one JSON object per difference, one per line, and all of them
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
        let screen = Screen::new();
        let (a, b) = (self.side(&self.a, a, screen)?, self.side(&self.b, b, screen)?);
        if let (Some(unit), true, true) = (&self.unit, a.kept.is_empty(), b.kept.is_empty()) {
            return Err(no_unit(&self.a, unit));
        }
        let mut out = stdout();
        let places: BTreeSet<&Place> = a.objects.keys().chain(b.objects.keys()).collect();
        let differing: Vec<&Place> = places.into_iter().filter(|place| differ(place, &a, &b)).collect();
        for of_kind in differing.chunk_by(|one, other| (&one.0, &one.2) == (&other.0, &other.2)) {
            let more = if self.json { 0 } else { of_kind.len().saturating_sub(self.last) };
            if let Some((unit, _, kind, _)) = of_kind.first().filter(|_| more > 0) {
                let all = of_kind.len();
                let line = format!(
                    "{unit}: {more} of {all} {} that differ are not listed: --last {all} lists all",
                    plural(kind)
                );
                folded(&mut out, screen, "", "  ", &visible(&line))?;
            }
            for place in of_kind.iter().skip(more) {
                let (a, b) = (a.object(place)?, b.object(place)?);
                let alone = if a.is_none() { &b } else { &a };
                for difference in differences(place, a.as_ref(), b.as_ref()) {
                    if self.json {
                        json_line(&mut out, &difference)?;
                    } else {
                        folded(&mut out, screen, "", "  ", &visible(&words(&difference, alone.as_ref())))?;
                    }
                }
            }
        }
        if differing.is_empty() && !self.json {
            writeln!(out, "nothing differs")?;
        }
        out.flush()?;
        Ok(Exit::Fine)
    }

    /// What a store, or a worker state in a file, is reported as.
    fn side(&self, path: &Path, worker_state: Option<String>, screen: Screen) -> Outcome<Side> {
        let mut side = Side::default();
        if let Some(text) = worker_state {
            let unit = self.unit.as_deref().unwrap_or(UNNAMED);
            let state = SavedState::read(&text, unit)?;
            if let Some(report) = state.store().report(unit, usize::MAX)? {
                side.add(&report, &state.store().rejected(unit)?.unwrap_or_default(), None)?;
            }
            return Ok(side);
        }
        let mut snapshot = open(path)?;
        let units = match &self.unit {
            // If one of the two does not have the unit, it is new or gone.
            Some(unit) => Vec::from_iter(unit_id(&mut snapshot, path, unit).ok()),
            None => snapshot.unit_ids()?,
        };
        for unit in units {
            if let Some(report) = snapshot.unit(&unit, usize::MAX)? {
                let death = report.standing(screen.now, snapshot.source()).death;
                side.add(&report, &snapshot.rejected(&unit, false)?.unwrap_or_default(), death.as_ref())?;
            }
        }
        Ok(side)
    }
}

/// One of the two.
#[derive(Debug, Default)]
struct Side {
    /// As JSON text: only those that differ are parsed.
    objects: BTreeMap<Place, String>,
    kept: BTreeMap<String, Kept>,
}

/// How far back a unit goes.
#[derive(Debug)]
struct Kept {
    /// When the oldest run that is kept was over.
    oldest_over: Option<DateTime<Utc>>,
    /// Messages sealed, kept or not.
    messages: u64,
    /// When the newest run started.
    run_started_at: Option<DateTime<Utc>>,
    /// Its id, and the number of its lives.
    run: Option<(String, u64)>,
}

impl Side {
    /// `death`: of the newest life, which no later life has recorded.
    fn add(
        &mut self,
        report: &Report,
        rejected: &[RejectedReport],
        death: Option<&DeathReport>,
    ) -> Outcome<()> {
        let kept = Kept {
            oldest_over: report.ledger.first().map(|over| over.ended_at),
            messages: report.unit.messages,
            run_started_at: report.run.as_ref().map(|run| run.started_at),
            run: report.run.as_ref().map(|run| (run.run.clone(), run.epoch)),
        };
        self.kept.insert(report.unit.sync_unit.clone(), kept);
        for line in report.lines().chain(rejected.iter().map(Line::Rejected)).chain(death.map(Line::Death)) {
            let place = match line {
                // There may be very many.
                Line::Attachment(failed) => place_of_attachment(failed),
                _ => match serde_json::to_value(&line).map_err(io::Error::from)? {
                    Value::Object(object) => place_of(&object),
                    _ => continue,
                },
            };
            self.objects.insert(place, serde_json::to_string(&line).map_err(io::Error::from)?);
        }
        Ok(())
    }

    fn object(&self, place: &Place) -> Outcome<Option<Object>> {
        let json = self.objects.get(place).map(|json| serde_json::from_str(json));
        Ok(json.transpose().map_err(io::Error::from)?)
    }

    /// Whether an object that only the other has was dropped here because it is old, or belongs to a unit that is not
    /// known here.
    fn has_dropped(&self, (unit, _, kind, _): &Place, json: &str) -> bool {
        let Some(kept) = self.kept.get(unit) else { return kind != "unit" };
        let Ok(object) = serde_json::from_str::<Object>(json) else { return false };
        let time = |name: &str| object.get(name)?.as_str()?.parse::<DateTime<Utc>>().ok();
        match kind.as_str() {
            "ledger" => time("ended_at") < kept.oldest_over,
            "message" => object.get("message").and_then(Value::as_u64) <= Some(kept.messages),
            "death" => {
                // If no life has recorded it, it may be that of a copy that was made while its process worked: it is one only if
                // the other does not have the same life.
                let number = |name: &str| object.get(name).and_then(Value::as_u64);
                let text = |name: &str| object.get(name).and_then(Value::as_str);
                let is_recorded = object.get("resumed").and_then(Value::as_bool) == Some(true);
                let lives_on = kept
                    .run
                    .as_ref()
                    .is_some_and(|(run, epoch)| text("run") == Some(run) && number("epoch") <= Some(*epoch));
                time("found_at") < kept.run_started_at || (!is_recorded && lives_on)
            }
            _ => false,
        }
    }
}

fn differ(place: &Place, a: &Side, b: &Side) -> bool {
    match (a.objects.get(place), b.objects.get(place)) {
        (Some(json), None) => !b.has_dropped(place, json),
        (None, Some(json)) => !a.has_dropped(place, json),
        (a, b) => a != b,
    }
}

/// The place of an attachment that failed. Its run does not identify it, as another one may retry it.
fn place_of_attachment(failed: &AttachmentReport) -> Place {
    let which = [("id", &failed.id), ("parent_id", &failed.parent_id)];
    let which = which.map(|(name, value)| (name.to_owned(), value.clone()));
    (failed.sync_unit.clone(), KINDS.len(), "attachment".to_owned(), which.into())
}

/// Several things of a kind.
fn plural(kind: &str) -> String {
    match kind {
        "ledger" => "entries of the ledger".to_owned(),
        "attachment" => "failed attachments".to_owned(),
        "rejected" => "rejected records".to_owned(),
        "findings" => "kinds of findings".to_owned(),
        other => format!("{}s", other.replace('_', " ")),
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
        if matches!(kind.as_str(), "ledger" | "death") {
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
            // The state of an attachment says whether it is queued again.
            for name in names.into_iter().filter(|name| *name != "requeued") {
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

/// A difference as a sentence. `alone`: the object, if only one of the two has it.
fn words(difference: &Difference<'_>, alone: Option<&Object>) -> String {
    let Difference { sync_unit, of, which, field, a, b, .. } = difference;
    let plain = |name: &str| name.replace(['_', '.'], " ");
    let mut what = match *of {
        "ledger" => "ledger entry of run".to_owned(),
        "rejected" => "rejected record".to_owned(),
        of => plain(of),
    };
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
        (None, a, _) => {
            let what = if what.is_empty() { String::new() } else { format!(" {what}") };
            let about = alone.and_then(about).map(|about| format!(" ({about})")).unwrap_or_default();
            let says = match (*of, a.is_none()) {
                ("attachment", true) => "has failed",
                ("attachment", false) => "is not failed any more",
                ("rejected", false) => "is not rejected any more",
                (_, true) => "is new",
                (_, false) => "is gone",
            };
            format!("{sync_unit}:{what}{about} {says}")
        }
    }
}

/// What is said of an object that only one of the two has: how a run ended and what it read, or a reason.
fn about(object: &Object) -> Option<String> {
    let Some(types) = object.get("item_types").and_then(Value::as_array) else {
        return object.get("reason").and_then(Value::as_str).map(|reason| at_most(SHOWN_CHARS, reason));
    };
    let mut words = object.get("status")?.as_str()?.to_owned();
    for counts in types {
        let of = |name: &str| counts.get(name).and_then(Value::as_u64).unwrap_or_default();
        let item_type = counts.get("item_type").and_then(Value::as_str).unwrap_or_default();
        let _ = write!(words, "; {item_type}: {} read, {} announced", of("read"), of("announced"));
    }
    Some(words)
}

fn shown_seconds(value: Option<&Value>) -> String {
    value.and_then(Value::as_u64).map_or_else(|| shown(value), seconds_in_words)
}

fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "none".to_owned(),
        Some(Value::String(text)) => event_words(text),
        Some(value) => value.to_string(),
    };
    at_most(SHOWN_CHARS, &text)
}
