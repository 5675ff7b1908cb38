//! `message`: the body of a sealed message.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use crate::ending::{EXIT_CODES, Exit, Failure, Outcome};
use crate::stores::{no_unit, open_at};
use crate::text::{Screened, stdout};

const EXAMPLE: &str = "\
Example:
  highwater-dump message state.redb | jq .event_data";

/// Prints the body of a sealed message, as it was or will be sent
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Message {
    /// The store file
    store: PathBuf,
    /// The sync unit; may be left out if the store has only one
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// The number of the message; without it, the last one
    number: Option<u64>,
}

impl Message {
    pub(crate) fn run(&self) -> Outcome {
        let Self { store, unit, number } = self;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let Some((_, body)) = snapshot.message(&unit, *number)? else {
            return Err(match (snapshot.unit(&unit, 0)?, number) {
                (None, _) => no_unit(store, &unit),
                (Some(_), None) => Failure::Absent(format!("no sealed message of \"{unit}\" is stored")),
                (Some(_), Some(number)) => Failure::Absent(format!(
                    "message {number} of \"{unit}\" is not stored: it was never sealed, was refused, or belongs to an old run"
                )),
            });
        };
        let mut out = stdout();
        Screened::new(&mut out, io::stdout().is_terminal()).write_all(&body)?;
        writeln!(out)?;
        out.flush()?;
        Ok(Exit::Fine)
    }
}
