//! `attachments`: the attachments that are not settled, and why.

use std::collections::VecDeque;
use std::io::Write;

use clap::Args;
use highwater::inspect::{AttachmentReport, Line};

use crate::ending::{EXIT_CODES, Exit, Outcome};
use crate::figures::act_words;
use crate::mend::words;
use crate::stores::{Asked, no_unit, none_listed, open_at, store_line};
use crate::text::{Listing, Screen, json_line, stdout};

const EXAMPLE: &str = "\
Example:
  highwater-dump attachments state.redb --failed --last 20

An address is shown without its user, query and fragment: they may be
credentials. Attachments that the platform has are not listed; `runs` counts
them, run by run.";

/// Rows printed as one table: the columns are as wide as these rows need.
const GROUP: usize = 500;

/// Lists the attachments that are not settled: given up, queued again, waiting
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Attachments {
    #[command(flatten)]
    asked: Asked,
    /// Only those that were given up, and are not queued again
    #[arg(long)]
    failed: bool,
    /// Only those that were given up for a reason that contains this text, as `requeue` selects them
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Attachments {
    pub(crate) fn run(&self) -> Outcome {
        let Asked { store, unit, last, json } = &self.asked;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let screen = Screen::new();
        let mut out = stdout();
        if *json {
            json_line(&mut out, &store_line(store, snapshot.source(), screen.now))?;
        }
        let acts = snapshot.acts(Some(&unit))?;
        let failed = self.failed || self.reason.is_some();
        let all = snapshot.attachments(&unit, failed)?.ok_or_else(|| no_unit(store, &unit))?;
        let mut all = all.filter(|found| found.as_ref().map_or(true, |found| self.selects(found)));
        let mut newest = VecDeque::new();
        if let Some(last) = last {
            for attachment in all.by_ref() {
                newest.push_back(attachment?);
                if newest.len() > *last {
                    newest.pop_front();
                }
            }
        }
        let mut listed = newest.into_iter().map(Ok).chain(all).peekable();
        if listed.peek().is_none() && !json {
            let why = match (&self.reason, self.failed) {
                (Some(_), _) => "no attachment has such a reason",
                (None, true) => "no attachment failed",
                (None, false) => "no attachment is waiting or failed",
            };
            writeln!(out, "{}", none_listed(*last, why))?;
            // It may be the reason why there are none.
            if let Some(act) = acts.last() {
                let what = format!("mended {}", act_words(act, screen));
                words(&mut out, &what, &act.changes)?;
            }
        }
        let mut group = Vec::new();
        for attachment in listed {
            let attachment = attachment?;
            if *json {
                json_line(&mut out, &Line::Attachment(&attachment))?;
                continue;
            }
            group.push(attachment);
            if group.len() == GROUP {
                table(&group, screen).lines(&mut out, screen, "")?;
                group.clear();
            }
        }
        if !group.is_empty() {
            table(&group, screen).lines(&mut out, screen, "")?;
        }
        out.flush()?;
        Ok(Exit::Fine)
    }

    /// Whether its reason is one that is asked for.
    fn selects(&self, attachment: &AttachmentReport) -> bool {
        self.reason.as_ref().is_none_or(|text| {
            attachment.reason.as_ref().is_some_and(|reason| reason.contains(text.as_str()))
        })
    }
}

fn table(attachments: &[AttachmentReport], screen: Screen) -> Listing {
    let mut table =
        Listing::new(&["attachment", "parent", "file", "state", "#tries", "when", "reason", "address"]);
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    for attachment in attachments {
        let when = match (attachment.failed_at, attachment.ready_at) {
            (Some(at), _) | (None, Some(at)) => screen.age(at),
            (None, None) => "-".to_owned(),
        };
        table.row([
            or_none(&attachment.id),
            or_none(&attachment.parent_id),
            or_none(&attachment.file_name),
            attachment.state.to_string(),
            attachment.tries.to_string(),
            when,
            attachment.reason.clone().unwrap_or_else(|| "-".to_owned()),
            or_none(&attachment.url),
        ]);
    }
    table
}
