//! `validate-metadata` and `validate-data`: checks the documents of an extractor before the platform does.
//!
//! Findings go to standard output, as lines for people with excerpts, or as one JSON object a line; everything else
//! goes to standard error. Text from a document is shown with control and bidi characters escaped.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use highwater::record::{Checker, Excerpt, Finding, Findings, Metadata, Severity, Tally};
use serde::Serialize;

use crate::text::{visible, visible_json};

/// What the exit codes mean, for `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  no errors found; there may be warnings
  1  failed: a file is missing or cannot be read
  2  the command line is wrong
  3  errors found";

const METADATA_EXAMPLE: &str = "\
Example:
  highwater-dump validate-metadata metadata.json";

/// On two lines, as clap does not fold its own.
const DATA_USAGE: &str = "\
highwater-dump validate-data [OPTIONS]
           --metadata <METADATA> --record-type <RECORD_TYPE> [FILE]";

const DATA_EXAMPLE: &str = "\
Example:
  highwater-dump validate-data -m metadata.json -r issues < issues.jsonl";

/// Checks metadata for inconsistencies, or records against it.
///
/// Without a record type, the metadata itself is checked. With `-m METADATA -r RECORD_TYPE`, the records in FILE are
/// checked, as `validate-data` does.
#[derive(Debug, Args)]
#[command(after_help = format!("{METADATA_EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct ValidateMetadata {
    /// The metadata or, with `-m` and `-r`, the records. Without it, or with `-`, standard input. May be gzipped.
    file: Option<PathBuf>,
    /// The metadata to check the records against; without `-r`, the metadata to check.
    #[arg(short, long, value_name = "METADATA")]
    metadata: Option<PathBuf>,
    /// The record type of the records.
    #[arg(short, long, value_name = "RECORD_TYPE", requires = "metadata")]
    record_type: Option<String>,
    #[command(flatten)]
    records: RecordOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// Checks records against the metadata. The records are JSON values one after another; each may span several lines.
#[derive(Debug, Args)]
#[command(override_usage = DATA_USAGE, after_help = format!("{DATA_EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct ValidateData {
    /// The records. Without it, or with `-`, standard input. May be gzipped.
    file: Option<PathBuf>,
    /// The metadata that declares the record type.
    #[arg(short, long, value_name = "METADATA")]
    metadata: PathBuf,
    /// The record type of the records.
    #[arg(short, long, value_name = "RECORD_TYPE")]
    record_type: String,
    #[command(flatten)]
    records: RecordOptions,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Debug, Args)]
struct RecordOptions {
    /// Treat a missing `created_date` or `modified_date` as an error.
    #[arg(long)]
    require_dates: bool,
    /// Treat an undeclared field as an error instead of a warning.
    #[arg(long)]
    refuse_undeclared: bool,
}

#[derive(Debug, Args)]
struct OutputOptions {
    /// Print one JSON object per finding, and nothing else.
    #[arg(long)]
    json: bool,
    /// Print every finding, not only the first 10 of each kind.
    #[arg(long)]
    all: bool,
}

/// Findings of one kind that are printed without `--all`.
const SHOWN_OF_A_KIND: u64 = 10;

/// Why a command ended without a verdict.
enum Stop {
    /// It failed, for this reason.
    Failed(String),
    /// The command line is wrong, for this reason.
    Usage(String),
    /// The reader closed the pipe, which is not an error.
    BrokenPipe,
}

type Outcome<T> = Result<T, Stop>;

impl ValidateMetadata {
    /// Runs the command. Prints the findings, and returns what the process exits with.
    pub(crate) fn run(self) -> ExitCode {
        exit(match (self.metadata, self.record_type) {
            (Some(metadata), Some(record_type)) => {
                validate_data(&metadata, &record_type, self.file.as_deref(), &self.records, &self.output)
            }
            (Some(_), None) if self.file.is_some() => {
                Err(Stop::Usage("with -m alone, the metadata is checked, so no FILE is allowed: add -r RECORD_TYPE to check records".into()))
            }
            (Some(metadata), None) => validate_metadata(Some(&metadata), &self.output),
            (None, _) => validate_metadata(self.file.as_deref(), &self.output),
        })
    }
}

impl ValidateData {
    /// Runs the command. Prints the findings, and returns what the process exits with.
    pub(crate) fn run(self) -> ExitCode {
        exit(validate_data(
            &self.metadata,
            &self.record_type,
            self.file.as_deref(),
            &self.records,
            &self.output,
        ))
    }
}

fn exit(outcome: Outcome<u64>) -> ExitCode {
    let (code, message) = match outcome {
        Ok(0) | Err(Stop::BrokenPipe) => return ExitCode::SUCCESS,
        Ok(_) => return ExitCode::from(3),
        Err(Stop::Failed(message)) => (1, message),
        Err(Stop::Usage(message)) => (2, message),
    };
    // If stderr is closed, the message is lost.
    let _ = writeln!(io::stderr(), "highwater-dump: {}", escaped(&message));
    ExitCode::from(code)
}

/// Checks metadata. Returns how many errors were found.
fn validate_metadata(file: Option<&Path>, options: &OutputOptions) -> Outcome<u64> {
    let name = name_of(file);
    let mut report = Report::new(&name, options);
    match read_metadata(file)? {
        Ok(metadata) => {
            for finding in metadata.check() {
                report.add(finding)?;
            }
            let record_types = metadata.record_types().count();
            report.end(&count(record_types as u64, "record type"))?;
        }
        Err(findings) => {
            for finding in findings {
                report.add(finding)?;
            }
            report.end("nothing else could be checked")?;
        }
    }
    Ok(report.tally.errors())
}

/// Checks records. Returns how many errors were found, those of the metadata included.
fn validate_data(
    metadata: &Path,
    record_type: &str,
    file: Option<&Path>,
    records: &RecordOptions,
    options: &OutputOptions,
) -> Outcome<u64> {
    if is_stdin(Some(metadata)) && is_stdin(file) {
        return Err(Stop::Usage(
            "the metadata and the records cannot both be read from standard input".into(),
        ));
    }
    let metadata_name = name_of(Some(metadata));
    let mut report = Report::new(&metadata_name, options);
    let metadata = match read_metadata(Some(metadata))? {
        Ok(metadata) => metadata,
        Err(findings) => {
            for finding in findings {
                report.add(finding)?;
            }
            report.end("the records were not checked")?;
            return Ok(report.tally.errors());
        }
    };
    let checker = Checker::new(&metadata, record_type).map_err(|findings| {
        let say = |finding: &Finding| {
            let expected =
                finding.expected.as_ref().map(|expected| format!(": {expected}")).unwrap_or_default();
            format!("{metadata_name}: {}{expected}", finding.message)
        };
        Stop::Usage(findings.iter().map(say).collect::<Vec<_>>().join("; "))
    })?;
    let undeclared = if records.refuse_undeclared { Severity::Error } else { Severity::Warning };
    let checker = checker.require_dates(records.require_dates).undeclared(undeclared);
    // Only errors: they keep records from being checked. `validate-metadata` reports the rest.
    for finding in metadata.check().into_iter().filter(Finding::is_error) {
        report.add(finding)?;
    }
    if report.tally.errors() > 0 {
        report.end("fields with errors in the metadata are not checked in the records")?;
    }
    let metadata_errors = report.tally.errors();

    let name = name_of(file);
    let mut report = Report::new(&name, options);
    let could_not = |error: highwater::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Stop::Failed(format!("cannot read {name}{cause}"))
    };
    let mut stream = checker.stream(open(file)?).map_err(could_not)?;
    for finding in stream.by_ref() {
        report.add(finding.map_err(could_not)?)?;
    }
    report.end(&count(stream.records(), "record"))?;
    Ok(metadata_errors + report.tally.errors())
}

fn is_stdin(file: Option<&Path>) -> bool {
    file.is_none_or(|file| file == Path::new("-"))
}

fn name_of(file: Option<&Path>) -> String {
    match file {
        Some(file) if !is_stdin(Some(file)) => file.display().to_string(),
        _ => "(standard input)".to_owned(),
    }
}

fn open(file: Option<&Path>) -> Outcome<Box<dyn Read>> {
    match file {
        Some(file) if !is_stdin(Some(file)) => match File::open(file) {
            Ok(open) => Ok(Box::new(open)),
            Err(error) => Err(Stop::Failed(format!("cannot open {}: {error}", file.display()))),
        },
        _ => Ok(Box::new(io::stdin().lock())),
    }
}

fn read_metadata(file: Option<&Path>) -> Outcome<Result<Metadata, Findings>> {
    let could_not = |error: io::Error| Stop::Failed(format!("cannot read {}: {error}", name_of(file)));
    let mut text = Vec::new();
    highwater::record::reader(open(file)?)
        .and_then(|mut reader| reader.read_to_end(&mut text))
        .map_err(could_not)?;
    Ok(Metadata::from_slice(&text))
}

/// A finding as JSON, with the file that it is in.
#[derive(Serialize)]
struct Line<'f> {
    #[serde(flatten)]
    finding: &'f Finding,
    file: &'f str,
}

/// Prints findings as they come.
struct Report<'o> {
    name: &'o str,
    json: bool,
    colour: bool,
    all: bool,
    tally: Tally,
    out: BufWriter<io::Stdout>,
}

impl<'o> Report<'o> {
    fn new(name: &'o str, options: &OutputOptions) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            name,
            json: options.json,
            colour: !no_colour && io::stdout().is_terminal(),
            all: options.all || options.json,
            tally: Tally::keeping(SHOWN_OF_A_KIND),
            out: BufWriter::new(io::stdout()),
        }
    }

    fn add(&mut self, finding: Finding) -> Outcome<()> {
        if self.json {
            let line = serde_json::to_string(&Line { finding: &finding, file: self.name })
                .map_err(|error| Stop::Failed(error.to_string()))?;
            self.tally.add(finding);
            return written(writeln!(self.out, "{}", visible_json(&line)));
        }
        let text = self.text(&finding);
        let is_first = self.tally.add(finding).is_some();
        if is_first || self.all {
            written(self.out.write_all(text.as_bytes()))?;
        }
        Ok(())
    }

    /// A finding for people: its place and severity, the message, the text around it, and what was expected.
    fn text(&self, finding: &Finding) -> String {
        let mut place = self.name.to_owned();
        if let Some(line) = finding.line {
            let _ = write!(place, ":{line}");
        }
        let severity = match finding.severity {
            Severity::Error => self.painted("error", "31"),
            Severity::Warning => self.painted("warning", "33"),
        };
        let record = finding.record.as_ref().map(|id| format!("record \"{id}\": ")).unwrap_or_default();
        let path = if finding.path.is_empty() { String::new() } else { format!("{}: ", finding.path) };
        let mut text = format!(
            "{}: {severity}: {}\n",
            escaped(&place),
            escaped(&format!("{record}{path}{}", finding.message))
        );
        if let Some(Excerpt { before, value, after, .. }) = &finding.excerpt {
            let (before, value, after) = (escaped(before), escaped(value), escaped(after));
            let indent = " ".repeat(before.chars().count());
            let marks = self.painted(&"^".repeat(value.chars().count().max(1)), "31");
            let _ = writeln!(text, "    | {before}{value}{after}\n    | {indent}{marks}");
        }
        if let Some(expected) = &finding.expected {
            let _ = writeln!(text, "    = {}", escaped(expected));
        }
        text
    }

    fn painted(&self, text: &str, colour: &str) -> String {
        if self.colour { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Prints how many findings were left out, and the result.
    fn end(&mut self, checked: &str) -> Outcome<()> {
        if !self.json {
            if !self.all {
                for (severity, rule, path, count) in
                    self.tally.counts().filter(|(.., count)| *count > SHOWN_OF_A_KIND)
                {
                    let place = if path.is_empty() { String::new() } else { format!(" at {path}") };
                    let line = format!(
                        "{}: {} more {severity}s of the rule {rule}{place}; --all shows them",
                        self.name,
                        count - SHOWN_OF_A_KIND
                    );
                    written(writeln!(self.out, "{}", escaped(&line)))?;
                }
            }
            let (errors, warnings) = (self.tally.errors(), self.tally.warnings());
            let verdict = match (errors, warnings) {
                (0, 0) => "nothing found".to_owned(),
                (errors, 0) => count(errors, "error"),
                (0, warnings) => count(warnings, "warning"),
                (errors, warnings) => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
            };
            written(writeln!(self.out, "{}", escaped(&format!("{}: {checked}: {verdict}", self.name))))?;
        }
        written(self.out.flush())
    }
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn written(result: io::Result<()>) -> Outcome<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::BrokenPipe,
        _ => Stop::Failed(format!("cannot write: {error}")),
    })
}

/// Text from a document, safe to show on a terminal. A tab becomes a space, so that the marks below stay aligned.
fn escaped(text: &str) -> String {
    visible(&text.replace('\t', " ")).into_owned()
}
