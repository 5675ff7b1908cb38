//! `highwater-dump`: shows a store to a person or a script, and checks the documents of an extractor. Most commands
//! only read. The commands that change a store say what they will change, and ask first.

mod attachments;
mod batches;
mod check;
mod diff;
mod ending;
mod events;
mod figures;
mod files;
mod find;
mod mend;
mod message;
mod overview;
mod plots;
mod rejected;
mod report;
mod runs;
mod shell;
mod stores;
mod tail;
mod text;
mod validate;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use ending::{EXIT_CODES, Exit, Failure, complain};

const EXAMPLES: &str = "\
Examples:
  highwater-dump state.redb                  problems, and the current state
  highwater-dump state.redb --unit acme/x    one sync unit
  highwater-dump state.redb --json           for a script
  highwater-dump check state.redb            verifies the file
  highwater-dump tail state.redb             follows a running extractor
  highwater-dump attachments state.redb --failed
  highwater-dump report state.redb --html report.html
  highwater-dump rewind state.redb acme/x --to 2026-01-02 --dry-run
  highwater-dump diff yesterday.redb state.redb
  highwater-dump help runs                   explains a command
  highwater-dump ./check                     a store that has a command's name

A store can be read in any state: closed, left open by a process that was
killed, or open in a running process. If it is open, it is copied to the
directory for temporary files (TMPDIR), and the copy is read. Only the commands
that mend a store write to it: they say what they will change, ask, and make a
copy first.

On a terminal, tables are as wide as the terminal. In a pipe or a file, each row
is one line, so that `| grep ID` finds whole rows. COLUMNS=100 sets a width for
both. NO_COLOR=1 turns colours off.
For a store that was copied, HIGHWATER_DUMP_NOW=2026-01-02T03:04:05Z shows ages
as of that time.

Data goes to stdout, everything else to stderr.";

const WORDS: &str = "\
Words:
  sync unit  what is synced by itself: a project, a repository, a board
  run        one extraction of a sync unit, from its START to its last DONE
  life       a process, or an invocation, that works on a run; also: epoch
  death      a life that ended without an answer: killed, or failed
  event      what the platform sends; message: the answer, sealed before it is
             sent, so that it is the same bytes if it is sent again
  listing    a list in the source, read page by page; also: stream
  cursor     where a listing continues
  batch      up to 2,000 records of an item type, sent as one artifact
  open       a record that is in no batch yet
  staged     a batch that only the store has
  uploaded   the platform has the bytes of the batch
  confirmed  the platform has linked the batch to the run; the store drops its
             bytes
  announced  a message names the batch
  delivered  the platform has accepted the message; proven: a later event shows
             that it had
  settled    an attachment that the platform has; failed: it was given up
  rejected   a record that is invalid: left out, and asked for again
  watermark  the time up to which finished runs vouch: the next run asks for
             what changed since then
  bookmark   what the source gave at the end of a run to start the next from
  window     the span of time that a run was asked for
  ledger     what remains of the runs that are over";

/// Shows what a highwater store remembers: sync units, runs, streams, batches, messages.
#[derive(Debug, Parser)]
#[command(
    name = "highwater-dump",
    version,
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}\n\n`--help` also explains the words."),
    after_long_help = format!("{EXAMPLES}\n\n{WORDS}\n\n{EXIT_CODES}"),
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: Option<overview::Show>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Tail(tail::Tail),
    Runs(runs::Runs),
    Events(events::Events),
    Attachments(attachments::Attachments),
    Rejected(rejected::Rejected),
    Find(find::Find),
    Report(report::Report),
    Check(check::Check),
    Message(message::Message),
    Batch(batches::Batch),
    Diff(diff::Diff),
    #[command(flatten)]
    Mend(mend::Mending),
    ValidateMetadata(validate::ValidateMetadata),
    ValidateData(validate::ValidateData),
    Completions(shell::Completions),
    Man(shell::Man),
}

fn main() -> ExitCode {
    // If a file is damaged, or changes while it is read, the database may panic; that is turned into an error.
    std::panic::set_hook(Box::new(|_| {}));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let error = no_command(&error).unwrap_or(error);
            // If stdout or stderr is closed, the message is lost.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Fine.into() };
        }
    };
    match std::panic::catch_unwind(AssertUnwindSafe(|| run(cli))) {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => failure.end().into(),
        Err(panic) => {
            let panic = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
            complain(&format!("bug in this program: {}", panic.unwrap_or("it panicked")));
            Exit::CouldNot.into()
        }
    }
}

/// The error for a command line whose first word clap took for a store: the word is not a command, or the command comes
/// after the store. `None` for any other error.
fn no_command(error: &clap::Error) -> Option<clap::Error> {
    if !matches!(error.kind(), ErrorKind::ArgumentConflict | ErrorKind::UnknownArgument) {
        return None;
    }
    let mut words = std::env::args().skip(1);
    let first = words.next().filter(|word| !word.starts_with('-'))?;
    let mut cli = Cli::command();
    let names: Vec<String> = cli.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    if names.contains(&first) {
        return None;
    }
    let shown = text::visible(&first);
    let says = if let Some(command) = words.find(|word| names.contains(word)) {
        format!("the command comes first: highwater-dump {command} {shown}")
    } else if Path::new(&first).exists() {
        return None;
    } else {
        let close = names.iter().find(|name| strsim::damerau_levenshtein(name, &first) <= 2);
        let close = close.map_or_else(String::new, |name| format!("; did you mean '{name}'?"));
        format!("there is no command or file '{shown}'{close}")
    };
    Some(cli.error(ErrorKind::InvalidSubcommand, says))
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    if let Err(told) = text::told_now() {
        return Err(Failure::Usage(format!(
            "HIGHWATER_DUMP_NOW={told} is not a time; it is written 2026-01-02T03:04:05Z"
        )));
    }
    let exit = match (cli.command, cli.show) {
        (None, Some(show)) => show.run(),
        (Some(Command::Tail(tail)), _) => tail.run(),
        (Some(Command::Runs(runs)), _) => runs.run(),
        (Some(Command::Events(events)), _) => events.run(),
        (Some(Command::Attachments(attachments)), _) => attachments.run(),
        (Some(Command::Rejected(rejected)), _) => rejected.run(),
        (Some(Command::Find(find)), _) => find.run(),
        (Some(Command::Completions(completions)), _) => completions.run(Cli::command()),
        (Some(Command::Man(man)), _) => man.run(Cli::command()),
        (Some(Command::Report(report)), _) => report.run(),
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
