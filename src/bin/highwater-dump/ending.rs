//! How a command ends: with which exit code, and what it says.

use std::io::{self, Write};
use std::process::ExitCode;

use highwater::{Error, ErrorKind};

use crate::text::visible;

/// What the exit codes mean, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  fine
  1  could not: the file is missing, no store, of a newer format or too busy,
     there is no such unit, an I/O error
  2  the command line is wrong
  3  the store is damaged, or a document has errors";

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
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
pub(crate) enum Failure {
    Store(Error),
    /// What is asked for is not there.
    Absent(String),
    /// The command line does not say enough.
    Usage(String),
    /// Stdout takes no more.
    Output(io::Error),
}

pub(crate) type Outcome<T = Exit> = Result<T, Failure>;

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

impl Failure {
    /// Says what went wrong. A reader that has seen enough is no failure.
    pub(crate) fn end(&self) -> Exit {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Fine,
            Self::Output(error) => {
                complain(&format!("cannot write to stdout: {error}"));
                Exit::CouldNot
            }
            Self::Absent(what) => {
                complain(what);
                Exit::CouldNot
            }
            Self::Usage(what) => {
                complain(what);
                Exit::Usage
            }
            Self::Store(error) => {
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
}

/// Says something to whoever started the command.
pub(crate) fn complain(text: &str) {
    // If stderr is gone there is nobody to tell.
    drop(writeln!(io::stderr(), "highwater-dump: {}", visible(text)));
}
