//! `find`: where a record is, as far as the store knows.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use highwater::inspect::Found;
use serde::Serialize;

use crate::ending::{EXIT_CODES, Exit, Outcome};
use crate::stores::{no_unit, open_at, store_line};
use crate::text::{Screen, count, folded, json_line, stdout, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump find state.redb ISSUE-17

Searches the newest run for a record's id: the records that are in no batch
yet, the batches whose bytes are stored, the records that were rejected, or left
out because they came again, the findings that are kept, and the attachments.
The bytes of a batch are dropped when it is confirmed, so records that the
platform has are not found.";

/// Finds a record: why it is missing, or was sent twice
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Find {
    /// The store file
    store: PathBuf,
    /// The id of the record, as the extractor gives it
    id: String,
    /// The sync unit; may be left out if the store has only one
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl Find {
    pub(crate) fn run(&self) -> Outcome {
        let Self { store, id, unit, json } = self;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let found = snapshot.find(&unit, id)?.ok_or_else(|| no_unit(store, &unit))?;
        let screen = Screen::new();
        let mut out = stdout();
        if *json {
            #[derive(Serialize)]
            #[serde(tag = "kind", rename_all = "snake_case")]
            enum Line<'a> {
                Found(&'a Found),
            }
            json_line(&mut out, &store_line(store, snapshot.source(), screen.now))?;
            json_line(&mut out, &Line::Found(&found))?;
        } else {
            for line in words(&found) {
                folded(&mut out, screen, "", "  ", &visible(&line))?;
            }
        }
        out.flush()?;
        Ok(Exit::Fine)
    }
}

fn words(found: &Found) -> Vec<String> {
    let mut lines = Vec::new();
    for place in &found.places {
        let records = count(place.records, "record", "records");
        lines.push(match (place.seq, place.state) {
            (Some(seq), Some(state)) => {
                format!("{}: {records} in batch {seq}, which is {state}", place.item_type)
            }
            _ => format!("{}: {records} in no batch yet", place.item_type),
        });
    }
    for record in &found.rejected {
        let reason = if record.reason.is_empty() { "its reason is not kept" } else { &record.reason };
        lines.push(format!("{}: {}: {reason}", record.item_type, record.stage));
    }
    lines.extend(found.once.iter().map(|item_type| {
        format!("{item_type}: it is announced once in this run: whenever it came again, it was left out")
    }));
    lines.extend(found.at_edge.iter().map(|item_type| {
        format!("{item_type}: the last finished run announced it: it is left out while it is unchanged")
    }));
    if found.places.is_empty() {
        lines.push("not among the records of the newest run whose bytes are stored".to_owned());
    }
    if found.places.iter().map(|place| place.records).sum::<u64>() > 1 {
        lines.push(
            "the source returned this id more than once in this run: each version is announced".to_owned(),
        );
    }
    if found.out_of_reach > 0 {
        lines.push(format!(
            "{} of the run are confirmed: only the platform has their bytes, so it may be one of those",
            count(found.out_of_reach, "record", "records")
        ));
    }
    for finding in &found.findings {
        lines.push(format!("finding: {finding}"));
    }
    if found.attachments > 0 {
        lines.push(format!(
            "{} with that id, {} of them failed: `highwater-dump attachments` lists those that are not settled",
            count(found.attachments, "attachment", "attachments"),
            found.attachments_failed
        ));
    }
    lines
}
