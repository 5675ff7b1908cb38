//! `rejected`: the records that were left out because they are invalid, and will be requested again.

use std::cmp::Reverse;
use std::io::Write;

use clap::Args;
use highwater::inspect::{Line, RejectedReport};

use crate::ending::{EXIT_CODES, Exit, Outcome};
use crate::stores::{Asked, no_unit, none_listed, open_at, store_line};
use crate::text::{Listing, Screen, cut, json_line, stdout};

const EXAMPLE: &str = "\
Example:
  highwater-dump rejected state.redb --last 20

The next run requests them first. --content shows the beginning of what is kept
of a record, which may be text that a user wrote: that of the first few of each
kind. Nothing is kept of a record that the extractor rejected by its id alone.";

/// Lists the rejected records, and why: the next run requests them again
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Rejected {
    #[command(flatten)]
    asked: Asked,
    /// Also show the content that is kept
    #[arg(long)]
    content: bool,
}

impl Rejected {
    pub(crate) fn run(&self) -> Outcome {
        let Asked { store, unit, last, json } = &self.asked;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let mut rejected = snapshot.rejected(&unit, self.content)?.ok_or_else(|| no_unit(store, &unit))?;
        if let Some(last) = last {
            // The records that were rejected last, in the order in which all are listed.
            let mut newest: Vec<_> = rejected.into_iter().enumerate().collect();
            newest.sort_by_key(|(at, record)| Reverse((record.rejected_at, *at)));
            newest.truncate(*last);
            newest.sort_by_key(|(at, _)| *at);
            rejected = newest.into_iter().map(|(_, record)| record).collect();
        }
        let screen = Screen::new();
        let mut out = stdout();
        if *json {
            json_line(&mut out, &store_line(store, snapshot.source(), screen.now))?;
            rejected.iter().try_for_each(|record| json_line(&mut out, &Line::Rejected(record)))?;
        } else if rejected.is_empty() {
            writeln!(out, "{}", none_listed(*last, "no record is rejected"))?;
        } else {
            table(&rejected, screen, self.content).lines(&mut out, screen, "")?;
        }
        out.flush()?;
        Ok(Exit::Fine)
    }
}

fn table(rejected: &[RejectedReport], screen: Screen, content: bool) -> Listing {
    let mut header = vec!["item type", "id", "stage", "rejected", "#asked", "reason"];
    if content {
        header.push("content");
    }
    let mut table = Listing::new(&header);
    for record in rejected {
        let reason = if record.reason.is_empty() { &record.reason_kind } else { &record.reason };
        let mut row = vec![
            record.item_type.clone(),
            record.id.clone(),
            record.stage.to_string(),
            screen.age(record.rejected_at),
            record.asked.to_string(),
            reason.clone(),
        ];
        if content {
            row.push(match &record.json {
                Some(json) => cut(Some(json)),
                None => {
                    "not kept: it was rejected by its id, or is not among the first of its kind".to_owned()
                }
            });
        }
        table.row(row);
    }
    table
}
