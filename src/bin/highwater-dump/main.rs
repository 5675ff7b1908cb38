//! `highwater-dump`: shows a store to a person or a script, and checks what an extractor is to deliver. Every command
//! looks and none writes.

mod mend;
mod show;
mod validate;

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use highwater::inspect::{self, Snapshot, Source};
use highwater::{Error, ErrorKind};

use show::{Style, visible};

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
  highwater-dump validate-data -m metadata.json -r issues < issues.jsonl
                                                     whether records are what their metadata declares
  highwater-dump ./check                             a store whose name is that of a command

A store is read as it is: closed, left open by a process that was killed, or open in a process that runs. Nothing is
ever written to it. If it is open, it is copied to the directory for temporary files (TMPDIR), and the copy read.

Data goes to stdout, everything else to stderr. Exit codes:
  0  fine
  1  could not: the file is missing, no store, of a newer format or too busy, there is no such unit, an I/O error
  2  the command line is wrong
  3  the store is damaged, or a document has errors";

/// Shows what a highwater store remembers: sync units, runs, streams, batches, messages.
#[derive(Debug, Parser)]
#[command(
    name = "highwater-dump",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: Option<Show>,
}

#[derive(Debug, Args)]
struct Show {
    /// The store file
    store: PathBuf,
    /// Show this sync unit only
    #[arg(long, value_name = "ID")]
    unit: Option<String>,
    /// How many messages and finished runs to show of each unit, the newest
    #[arg(long, value_name = "N", default_value_t = 5)]
    last: usize,
    /// One JSON object per line, with a `kind`; times are RFC 3339 in UTC
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks every page, every row, and what the rows say of one another
    Check {
        /// The store file
        store: PathBuf,
        /// One JSON object per line: each finding, then the sum
        #[arg(long)]
        json: bool,
    },
    /// Prints the body of a sealed message
    Message {
        /// The store file
        store: PathBuf,
        /// The sync unit
        #[arg(long, value_name = "ID")]
        unit: String,
        /// Which message; the last one, if not given
        number: Option<u64>,
    },
    /// Prints the records of a batch as JSON Lines, or lists the batches that are stored
    Batch {
        /// The store file
        store: PathBuf,
        /// The sync unit
        #[arg(long, value_name = "ID")]
        unit: String,
        /// Which batch; a list of them, if not given
        seq: Option<u64>,
        /// The list as one JSON object per line
        #[arg(long, conflicts_with = "seq")]
        json: bool,
    },
    #[command(flatten)]
    Mend(mend::Mending),
    ValidateMetadata(validate::ValidateMetadata),
    ValidateData(validate::ValidateData),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Fine = 0,
    CouldNot = 1,
    Usage = 2,
    Damage = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command ended early.
#[derive(Debug)]
enum Failure {
    Store(Error),
    /// What is asked for is not there.
    Absent(String),
    /// Stdout takes no more.
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
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
        Ok(Err(failure)) => end(&failure).into(),
        Err(panic) => {
            let panic = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
            complain(&format!("a mistake in this program: {}", panic.unwrap_or("it panicked")));
            Exit::CouldNot.into()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let exit = match (cli.command, cli.show) {
        (None, Some(show)) => list(&show),
        (Some(Command::Check { store, json }), _) => check(&store, json),
        (Some(Command::Message { store, unit, number }), _) => message(&store, &unit, number),
        (Some(Command::Batch { store, unit, seq: Some(seq), .. }), _) => batch_lines(&store, &unit, seq),
        (Some(Command::Batch { store, unit, seq: None, json }), _) => batches(&store, &unit, json),
        (Some(Command::Mend(mending)), _) => mending.run(),
        (Some(Command::ValidateMetadata(args)), _) => return Ok(args.run()),
        (Some(Command::ValidateData(args)), _) => return Ok(args.run()),
        (None, None) => Ok(Exit::Usage),
    };
    exit.map(ExitCode::from)
}

/// Says what went wrong.
fn end(failure: &Failure) -> Exit {
    match failure {
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Fine,
        Failure::Output(error) => {
            complain(&format!("cannot write to stdout: {error}"));
            Exit::CouldNot
        }
        Failure::Absent(what) => {
            complain(what);
            Exit::CouldNot
        }
        Failure::Store(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(source) = cause {
                let broken = source.downcast_ref::<io::Error>();
                if broken.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                    return Exit::Fine;
                }
                text.push_str(": ");
                text.push_str(&source.to_string());
                cause = source.source();
            }
            complain(&text);
            match error {
                Error::NotAStore { .. } | Error::NewerFormat { .. } => Exit::CouldNot,
                error if error.kind() == ErrorKind::Corrupt => Exit::Damage,
                _ => Exit::CouldNot,
            }
        }
    }
}

fn complain(text: &str) {
    // If stderr is gone there is nobody to tell.
    drop(writeln!(io::stderr(), "highwater-dump: {}", visible(text)));
}

/// Says which way a store was read, where that is not the plain one.
fn note(store: &Path, source: Source) {
    match source {
        Source::LeftOpen => complain(&format!(
            "{}: its last owner did not close it (it was killed, perhaps): read through an overlay, left as it is",
            store.display()
        )),
        Source::Copy { copies } => complain(&format!(
            "{}: it is open elsewhere: read from a temporary copy, verified{}",
            store.display(),
            if copies > 1 { format!(" (made {copies} times, as it was written to)") } else { String::new() }
        )),
        _ => {}
    }
}

fn open(store: &Path) -> Result<Snapshot, Failure> {
    let snapshot = Snapshot::open(store)?;
    note(store, snapshot.source());
    Ok(snapshot)
}

fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

fn style() -> Style {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    Style { colour: io::stdout().is_terminal() && !dumb && !is_set("NO_COLOR") }
}

fn no_unit(store: &Path, unit: &str) -> Failure {
    let store = store.display();
    Failure::Absent(format!(
        "{store} knows no sync unit {unit}; `highwater-dump {store}` shows those it knows"
    ))
}

fn list(show: &Show) -> Result<Exit, Failure> {
    let mut snapshot = open(&show.store)?;
    let source = snapshot.source();
    let mut out = stdout();
    let mut units = 0;
    if show.json {
        show::json_line(&mut out, &show::store_line(&show.store, source))?;
    }
    let mut print = |report: &inspect::Report| -> io::Result<()> {
        units += 1;
        if show.json {
            report.lines().try_for_each(|line| show::json_line(&mut out, &line))
        } else {
            if units > 1 {
                writeln!(out)?;
            }
            show::unit(&mut out, report, style())
        }
    };
    match &show.unit {
        Some(unit) => match snapshot.unit(unit, show.last)? {
            Some(report) => print(&report)?,
            None => return Err(no_unit(&show.store, unit)),
        },
        None => {
            for report in snapshot.units(show.last) {
                print(&report?)?;
            }
        }
    }
    if units == 0 && !show.json {
        writeln!(out, "no sync unit yet")?;
    }
    out.flush()?;
    if snapshot.source() != source {
        note(&show.store, snapshot.source());
    }
    Ok(Exit::Fine)
}

fn check(store: &Path, json: bool) -> Result<Exit, Failure> {
    let report = inspect::check(store)?;
    if let Some(source) = report.source {
        note(store, source);
    }
    let mut out = stdout();
    show::check(&mut out, &report, json)?;
    out.flush()?;
    Ok(if report.findings.is_empty() { Exit::Fine } else { Exit::Damage })
}

fn message(store: &Path, unit: &str, number: Option<u64>) -> Result<Exit, Failure> {
    let mut snapshot = open(store)?;
    let Some((_, body)) = snapshot.message(unit, number)? else {
        return Err(match (snapshot.unit(unit, 0)?, number) {
            (None, _) => no_unit(store, unit),
            (Some(_), None) => Failure::Absent(format!("no sealed message of {unit} is stored")),
            (Some(_), Some(number)) => Failure::Absent(format!(
                "message {number} of {unit} is not stored: it was never sealed, was refused, or is of a run long over"
            )),
        });
    };
    let mut out = stdout();
    show::Screened::new(&mut out, io::stdout().is_terminal()).write_all(&body)?;
    writeln!(out)?;
    out.flush()?;
    Ok(Exit::Fine)
}

fn batches(store: &Path, unit: &str, json: bool) -> Result<Exit, Failure> {
    let batches = open(store)?.batches(unit)?.ok_or_else(|| no_unit(store, unit))?;
    let mut out = stdout();
    if json {
        batches.iter().try_for_each(|batch| show::json_line(&mut out, &inspect::Line::Batch(batch)))?;
    } else {
        show::batches(&mut out, &batches)?;
    }
    out.flush()?;
    Ok(Exit::Fine)
}

fn batch_lines(store: &Path, unit: &str, seq: u64) -> Result<Exit, Failure> {
    let mut snapshot = open(store)?;
    let mut out = stdout();
    let lines =
        snapshot.batch_lines(unit, seq, &mut show::Screened::new(&mut out, io::stdout().is_terminal()))?;
    if lines.is_none() {
        let batches = snapshot.batches(unit)?.ok_or_else(|| no_unit(store, unit))?;
        return Err(Failure::Absent(match batches.iter().find(|batch| batch.seq == seq) {
            Some(batch) => {
                let artifact = batch.artifact_id.as_deref().unwrap_or("(none)");
                let state = batch.state;
                format!(
                    "batch {seq} of {unit} is {state}: the platform alone has its bytes, as artifact {artifact}"
                )
            }
            None => format!(
                "batch {seq} of {unit} is not stored: `highwater-dump batch {} --unit {unit}` lists those that are",
                store.display()
            ),
        }));
    }
    out.flush()?;
    Ok(Exit::Fine)
}
