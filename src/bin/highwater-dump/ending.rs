//! How a command ends: its exit code and its message.

use std::io::{self, Write};
use std::process::ExitCode;

use highwater::mend::UnitFile;
use highwater::{Error, ErrorKind};

use crate::files::worker_state;
use crate::text::visible;

/// What the exit codes mean, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  fine
  1  failed: the file is missing, is not a store, has a newer format or is too
     busy; the unit does not exist; or an I/O error
  2  the command line is wrong
  3  the store is damaged, or a document has errors";

/// How a command ended.
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
    /// What was requested does not exist.
    Absent(String),
    /// The command line is incomplete.
    Usage(String),
    /// Stdout cannot be written to.
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
    /// Reports what went wrong. A reader that has closed the pipe is not an error.
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
                if let Error::NotAStore { path, .. } = error
                    && matches!(worker_state(path), Ok(Some(_)))
                {
                    text.push_str(if UnitFile::open(path).is_ok() {
                        "; it is an exported sync unit, which `highwater-dump import` reads"
                    } else {
                        "; if it is a worker state, `diff` and the commands that mend read it"
                    });
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

/// Prints a message on stderr.
pub(crate) fn complain(text: &str) {
    // If stderr is closed, the message is lost.
    drop(writeln!(io::stderr(), "highwater-dump: {}", visible(text)));
}
