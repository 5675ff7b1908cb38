//! `check`: whether a store is undamaged.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use highwater::inspect::{self, CheckFinding, CheckReport};
use serde::Serialize;

use crate::ending::{EXIT_CODES, Exit, Outcome};
use crate::stores::{note, source_word};
use crate::text::{Screen, count, folded, json_line, stdout, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump check state.redb";

/// Checks every page, every row, and whether the rows agree with each other
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Check {
    /// The store file
    store: PathBuf,
    /// Print one JSON object per line: each finding, then the result
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(crate) fn run(&self) -> Outcome {
        let report = inspect::check(&self.store)?;
        if let Some(source) = report.source {
            note(&self.store, source);
        }
        let mut out = stdout();
        print(&mut out, &report, self.json)?;
        out.flush()?;
        Ok(if report.findings.is_empty() { Exit::Fine } else { Exit::Damage })
    }
}

/// Prints what a check found.
fn print(out: &mut impl Write, report: &CheckReport, json: bool) -> io::Result<()> {
    #[derive(Serialize)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Line<'a> {
        Finding(&'a CheckFinding),
        Check { source: Option<&'static str>, units: u64, rows: u64, findings: u64 },
    }
    let findings = report.findings.len() as u64;
    let screen = Screen::new();
    if json {
        report.findings.iter().try_for_each(|finding| json_line(out, &Line::Finding(finding)))?;
        let source = report.source.map(source_word);
        return json_line(out, &Line::Check { source, units: report.units, rows: report.rows, findings });
    }
    for finding in &report.findings {
        let mut line = finding.table.map_or_else(|| "the file".to_owned(), |table| format!("table {table}"));
        if let Some(unit) = &finding.sync_unit {
            let _ = write!(line, ", {unit}");
        }
        folded(out, screen, "", "  ", &visible(&format!("{line}: {}", finding.problem)))?;
    }
    let of = format!("{}, {}", count(report.units, "unit", "units"), count(report.rows, "row", "rows"));
    if findings == 0 {
        return writeln!(out, "whole: {of}");
    }
    let findings = count(findings, "finding", "findings");
    folded(out, screen, "", "  ", &format!("damaged: {findings} ({of} read)"))?;
    let next = "A damaged store cannot be mended. Put a copy back, such as STORE.before-COMMAND-TIME; or move it away and \
                start a new sync, which extracts everything.";
    folded(out, screen, "", "", next)
}
