//! `find`: where a record is, as far as the store knows.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use highwater::inspect::{AttachmentState, Found, FoundAttachment, RunStatus};
use serde::Serialize;

use crate::ending::{EXIT_CODES, Exit, Outcome};
use crate::figures::event_words;
use crate::stores::{no_unit, open_at, store_line};
use crate::text::{Screen, count, folded, json_line, shell_path, shell_word, stdout, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump find state.redb ISSUE-17

Searches the newest run for a record's id: the records that are in no batch
yet, the batches whose bytes are stored, the records that were rejected, or left
out because they came again, the findings that are kept, and the attachments.
The bytes and ids of a batch are dropped when it is confirmed. So a record that
the platform has is not found, just as one that never came: the answer says how
many records of each item type that may be, and what to do next.";

/// Finds a record: why it is missing, or was sent twice
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Find {
    /// The store file
    store: PathBuf,
    /// The id of the record, as the extractor gives it
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
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
            for line in words(&found, store, screen) {
                folded(&mut out, screen, "", "  ", &visible(&line))?;
            }
        }
        out.flush()?;
        Ok(Exit::Fine)
    }
}

fn words(found: &Found, store: &Path, screen: Screen) -> Vec<String> {
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
    lines.extend(found.attachments_found.iter().map(|attachment| attachment_words(attachment, screen)));
    if !is_known(found) {
        lines.push("not among the records of the newest run whose bytes are stored".to_owned());
    }
    if found.places.iter().map(|place| place.records).sum::<u64>() > 1 {
        lines.push(
            "the source returned this id more than once in this run: each version is announced".to_owned(),
        );
    }
    // A record of another item type may have the same id.
    lines.extend(not_searched(found));
    for finding in &found.findings {
        lines.push(format!("finding: {finding}"));
    }
    if found.places.is_empty() {
        lines.push(next(found, store));
    }
    lines
}

/// The state of an attachment, and since which run.
fn attachment_words(attachment: &FoundAttachment, screen: Screen) -> String {
    let run = match (&attachment.run, attachment.run_ended_at) {
        (Some(run), Some(ended)) => {
            format!("run {}, which was over {}", event_words(run), screen.time(ended))
        }
        (Some(run), None) => format!("run {}, which is open", event_words(run)),
        (None, _) => "a run that is not known any more".to_owned(),
    };
    let state = match attachment.state {
        AttachmentState::Settled => format!("settled: the platform has it, from {run}"),
        AttachmentState::Failed => {
            let reason = attachment.reason.as_deref().unwrap_or("its reason is not kept");
            format!("failed, in {run}: {reason}")
        }
        AttachmentState::Requeued => {
            format!(
                "it had failed and is queued again: the next run with an attachments phase tries it; from {run}"
            )
        }
        AttachmentState::Dropped => {
            format!("not transferred: {run}, was abandoned; it is queued again when the source names it")
        }
        state => format!("{state}, in the queue of {run}"),
    };
    format!("attachment of {}: {state}", attachment.parent_id)
}

/// Whether there is a record or an attachment of the id.
fn is_known(found: &Found) -> bool {
    !found.places.is_empty() || !found.rejected.is_empty() || found.attachments > 0
}

/// What a search cannot tell: whether the id was among those that are confirmed.
fn not_searched(found: &Found) -> Option<String> {
    let run = found.run.as_ref()?;
    let (name, status) = (event_words(&run.run), run.status);
    if found.confirmed.is_empty() {
        return found.places.is_empty().then(|| {
            let so_far = if status == RunStatus::Open { " so far" } else { "" };
            format!(
                "no record of run {name} ({status}) is confirmed, and all others were searched: it has not come in this \
                 run{so_far}, or it is out of the extraction scope"
            )
        });
    }
    let by_type: Vec<_> =
        found.confirmed.iter().map(|of| format!("{}: {}", of.item_type, of.records)).collect();
    let so = if is_known(found) {
        "another record of this id among them is not seen"
    } else {
        "this answer is the same for a record that the platform has and for one that never came"
    };
    Some(format!(
        "not searched: {} of run {name} ({status}) are confirmed ({}), {} of them announced. The store drops the bytes \
         and the id of a record with its batch's confirm, so {so}",
        count(found.out_of_reach, "record", "records"),
        by_type.join(", "),
        found.announced
    ))
}

/// What to do about an id that is in no batch whose bytes are stored.
fn next(found: &Found, store: &Path) -> String {
    let (store, unit) = (shell_path(store), shell_word(&found.sync_unit));
    if !found.rejected.is_empty() {
        return format!(
            "next: mend what rejects it; `highwater-dump rejected {store} --unit {unit}` shows what is kept of it"
        );
    }
    if found.attachments > 0 {
        let is_settled = |found: &FoundAttachment| found.state == AttachmentState::Settled;
        if found.attachments_found.iter().all(is_settled) {
            return "next: look for it on the platform".to_owned();
        }
        let is_dropped = |found: &FoundAttachment| found.state == AttachmentState::Dropped;
        if found.attachments_found.iter().all(is_dropped) {
            return "next: start a sync; it is queued again when the source names it".to_owned();
        }
        let id = if found.attachments_failed > 0 {
            let id = shell_word(&found.id);
            format!("; `highwater-dump requeue {store} {unit} --id {id}` has it tried again")
        } else {
            String::new()
        };
        return format!(
            "next: `highwater-dump attachments {store} --unit {unit}` lists those that wait or failed, and why{id}"
        );
    }
    let look = match found.run.as_ref().map(|run| run.status) {
        Some(RunStatus::Open) => {
            format!(
                "the run is open. `highwater-dump {store} --unit {unit}` shows how far its listings are read, and what it \
                 waits for; the platform shows a record only once it is announced. If the run is past it: "
            )
        }
        Some(RunStatus::Abandoned) => {
            "the run was abandoned, and what it had not announced was dropped: the next run reads that again. After that: "
                .to_owned()
        }
        _ if found.confirmed.is_empty() => String::new(),
        _ => "look for it on the platform. If it is not there: ".to_owned(),
    };
    format!(
        "next: {look}see whether the source lists it for this extractor (filters, permissions), and with `highwater-dump \
         runs {store} --unit {unit} --last 1` whether all that was read is announced. `highwater-dump rewind {store} {unit} --to \
         RUN|TIME --dry-run` shows what to do to have it extracted again"
    )
}
