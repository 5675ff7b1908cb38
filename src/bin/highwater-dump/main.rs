//! `highwater-dump`: shows a store to a person or a script, and checks what an extractor is to deliver. Most
//! commands look and write nothing; those that mend say what they are going to do, and ask.

mod batches;
mod check;
mod diff;
mod ending;
mod first;
mod mend;
mod message;
mod stores;
mod text;
mod validate;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use ending::{EXIT_CODES, Exit, Failure, complain};

const EXAMPLES: &str = "\
Examples:
  highwater-dump state.redb                          what the store remembers, unit by unit
  highwater-dump state.redb --unit acme/tickets      one sync unit
  highwater-dump state.redb --json | jq 'select(.kind == \"run\")'
  highwater-dump check state.redb                    whether the file is whole
  highwater-dump message state.redb --unit acme/tickets
                                                     the last sealed message, as it was or will be sent
  highwater-dump batch state.redb --unit acme/tickets 41
                                                     the records of a batch that is not confirmed yet
  highwater-dump rewind state.redb acme/tickets --to 2026-01-02 --dry-run
                                                     what setting a unit back would change, and ask for again
  highwater-dump diff yesterday.redb state.redb      what differs, in words
  highwater-dump validate-data -m metadata.json -r issues < issues.jsonl
                                                     whether records are what their metadata declares
  highwater-dump ./check                             a store whose name is that of a command

A store is read as it is: closed, left open by a process that was killed, or open in a process that runs. Nothing is
ever written to it, but by the commands that mend (rewind, set-cursor, reset, requeue, abandon, forget, import, compact),
which say what they are going to do, ask, and make a copy first. To be read while it is open, it is copied to the directory
for temporary files (TMPDIR), and the copy read.

Data goes to stdout, everything else to stderr.";

/// Shows what a highwater store remembers: sync units, runs, streams, batches, messages.
#[derive(Debug, Parser)]
#[command(
    name = "highwater-dump",
    version,
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: Option<first::Show>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Check),
    Message(message::Message),
    Batch(batches::Batch),
    Diff(diff::Diff),
    #[command(flatten)]
    Mend(mend::Mending),
    ValidateMetadata(validate::ValidateMetadata),
    ValidateData(validate::ValidateData),
}

fn main() -> ExitCode {
    // A file that changes or is damaged under a look may make the database panic; that becomes an error there.
    std::panic::set_hook(Box::new(|_| {}));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If it cannot be said, there is nobody to say that to.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Fine.into() };
        }
    };
    match std::panic::catch_unwind(AssertUnwindSafe(|| run(cli))) {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => failure.end().into(),
        Err(panic) => {
            let panic = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
            complain(&format!("a mistake in this program: {}", panic.unwrap_or("it panicked")));
            Exit::CouldNot.into()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let exit = match (cli.command, cli.show) {
        (None, Some(show)) => show.run(),
        (Some(Command::Check(check)), _) => check.run(),
        (Some(Command::Message(message)), _) => message.run(),
        (Some(Command::Batch(batch)), _) => batch.run(),
        (Some(Command::Diff(diff)), _) => diff.run(),
        (Some(Command::Mend(mending)), _) => mending.run(),
        (Some(Command::ValidateMetadata(args)), _) => return Ok(args.run()),
        (Some(Command::ValidateData(args)), _) => return Ok(args.run()),
        (None, None) => Ok(Exit::Usage),
    };
    exit.map(ExitCode::from)
}
