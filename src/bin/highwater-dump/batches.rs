//! `batch`: the batches that are stored, and the records of one.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use highwater::inspect::{BatchReport, Line};

use crate::ending::{EXIT_CODES, Exit, Failure, Outcome};
use crate::stores::{no_unit, none_listed, open_at};
use crate::text::{Listing, Screen, Screened, folded, json_line, shell_path, shell_word, stdout, visible};

const EXAMPLES: &str = "\
Examples:
  highwater-dump batch state.redb          lists the batches
  highwater-dump batch state.redb 41       the records of one of them
  highwater-dump batch state.redb --open   the records that are in no batch yet

Batches of the newest run are listed until an accepted message has announced
them. The records of a batch are there until it is confirmed.";

/// Lists the batches that are not announced yet, or prints the records of one as JSON Lines
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Batch {
    /// The store file
    store: PathBuf,
    /// The sync unit; may be left out if the store has only one
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// The number of the batch; without it, the batches are listed
    seq: Option<u64>,
    /// List only the newest N batches
    #[arg(long, value_name = "N", conflicts_with_all = ["seq", "open"])]
    last: Option<usize>,
    /// Print the records that are in no batch yet
    #[arg(long, conflicts_with = "seq")]
    open: bool,
    /// Of these, only the records of this item type
    #[arg(long, value_name = "TYPE", requires = "open")]
    item_type: Option<String>,
    /// Print the list as one JSON object per line
    #[arg(long, conflicts_with_all = ["seq", "open"])]
    json: bool,
}

impl Batch {
    pub(crate) fn run(&self) -> Outcome {
        match self.seq {
            Some(seq) => self.lines(seq),
            None if self.open => self.open_lines(),
            None => self.list(),
        }
    }

    fn list(&self) -> Outcome {
        let Self { store, unit, json, last, .. } = self;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let batches = snapshot.batches(&unit)?.ok_or_else(|| no_unit(store, &unit))?;
        let batches = &batches[batches.len().saturating_sub(last.unwrap_or(usize::MAX))..];
        let mut out = stdout();
        if *json {
            batches.iter().try_for_each(|batch| json_line(&mut out, &Line::Batch(batch)))?;
        } else {
            print(&mut out, batches, *last, Screen::new())?;
        }
        out.flush()?;
        Ok(Exit::Fine)
    }

    fn open_lines(&self) -> Outcome {
        let Self { store, unit, .. } = self;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let mut out = stdout();
        let mut screened = Screened::new(&mut out, io::stdout().is_terminal());
        if snapshot.open_lines(&unit, self.item_type.as_deref(), &mut screened)?.is_none() {
            return Err(no_unit(store, &unit));
        }
        out.flush()?;
        Ok(Exit::Fine)
    }

    fn lines(&self, seq: u64) -> Outcome {
        let Self { store, unit, .. } = self;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let mut out = stdout();
        let lines =
            snapshot.batch_lines(&unit, seq, &mut Screened::new(&mut out, io::stdout().is_terminal()))?;
        if lines.is_none() {
            let batches = snapshot.batches(&unit)?.ok_or_else(|| no_unit(store, &unit))?;
            return Err(Failure::Absent(match batches.iter().find(|batch| batch.seq == seq) {
                Some(batch) => {
                    let artifact = batch.artifact_id.as_deref().unwrap_or("(none)");
                    let state = batch.state;
                    format!(
                        "batch {seq} of \"{unit}\" is {state}: its bytes were dropped with the confirm; the platform has them as artifact {artifact}"
                    )
                }
                None => format!(
                    "batch {seq} of \"{unit}\" is not in the store: an accepted message has announced it, or there is none yet; \
                     `highwater-dump batch {} --unit {}` lists those that are",
                    shell_path(store),
                    shell_word(&unit)
                ),
            }));
        }
        out.flush()?;
        Ok(Exit::Fine)
    }
}

/// The batches that are in the store.
fn print(
    out: &mut impl Write,
    batches: &[BatchReport],
    last: Option<usize>,
    screen: Screen,
) -> io::Result<()> {
    if batches.is_empty() {
        let why = "no batch is in the store: all are announced, or there is none yet";
        return writeln!(out, "{}", none_listed(last, why));
    }
    let mut table = Listing::new(&[
        "#seq",
        "item type",
        "state",
        "#records",
        "#gzip bytes",
        "artifact",
        "#message",
        "#epoch",
    ]);
    for batch in batches {
        table.row([
            batch.seq.to_string(),
            batch.item_type.clone(),
            batch.state.to_string(),
            batch.items.to_string(),
            batch.gzip_bytes.to_string(),
            batch.artifact_id.clone().unwrap_or_else(|| "-".to_owned()),
            batch.message.map_or_else(|| "-".to_owned(), |message| message.to_string()),
            batch.epoch.to_string(),
        ]);
    }
    let run = batches.first().map(|batch| batch.run.as_str()).unwrap_or_default();
    folded(
        out,
        screen,
        "",
        "  ",
        &format!("batches of run {} that are not announced in an accepted message", visible(run)),
    )?;
    table.lines(out, screen, "  ")
}
