//! Shows a store to a person or a script, and checks what an extractor is to deliver.

mod validate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "highwater-dump",
    version,
    about = "Shows a store to a person or a script, and checks what an extractor is to deliver",
    after_help = validate::EXIT_CODES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    ValidateMetadata(validate::ValidateMetadata),
    ValidateData(validate::ValidateData),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::ValidateMetadata(args) => args.run(),
        Command::ValidateData(args) => args.run(),
    }
}
