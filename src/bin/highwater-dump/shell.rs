//! Shell completions and manual pages, made from the definition of the commands.

use std::io::Write;

use clap::{Args, Command, ValueEnum};

use crate::ending::{Exit, Failure, Outcome};
use crate::text::stdout;

/// A shell that completes command lines.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

/// Prints a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  highwater-dump completions bash > ~/.local/share/bash-completion/completions/highwater-dump
  highwater-dump completions fish > ~/.config/fish/completions/highwater-dump.fish
  highwater-dump completions zsh > ~/.zfunc/_highwater-dump")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self, mut command: Command) -> Outcome {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Fish => clap_complete::Shell::Fish,
            Shell::Zsh => clap_complete::Shell::Zsh,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "highwater-dump", &mut script);
        let mut out = stdout();
        out.write_all(&script)?;
        out.flush()?;
        Ok(Exit::Fine)
    }
}

/// Prints the manual page of the program, or of a command
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  highwater-dump man | man -l -")]
pub(crate) struct Man {
    /// The command; without it, the page of the program
    command: Option<String>,
}

impl Man {
    pub(crate) fn run(&self, mut command: Command) -> Outcome {
        command.build();
        let command = match &self.command {
            None => command,
            Some(name) => command
                .find_subcommand(name)
                .ok_or_else(|| {
                    Failure::Usage(format!("there is no command {name}: see `highwater-dump help`"))
                })?
                .clone(),
        };
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        let mut out = stdout();
        out.write_all(&page)?;
        out.flush()?;
        Ok(Exit::Fine)
    }
}
