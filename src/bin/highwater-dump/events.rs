//! `events`: the conversation with the platform, event by event, and the deaths in it.

use std::fmt::Write as _;
use std::io::Write;

use chrono::{DateTime, Utc};
use clap::Args;
use highwater::inspect::{DeathReport, EventReport, Line, MessageKind};

use crate::ending::{EXIT_CODES, Exit, Outcome};
use crate::figures::{death_words, event_words, fate_words};
use crate::stores::{Asked, no_unit, none_listed, open_at, store_line};
use crate::text::{Screen, count, duration, folded, json_line, seconds_in_words, stdout, time, visible};

const EXAMPLE: &str = "\
Example:
  highwater-dump events state.redb --last 20

Lists the events of the newest run and the run before it, each with its answer.
A life that ended without an answer is listed as a death, with the most that it
can have cost: the time until the next life (or until now, if there is none
yet), the page that was being fetched, and one upload for each batch that had no
artifact id.";

/// Lists the events, how each was answered, and what deaths cost
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Events {
    #[command(flatten)]
    asked: Asked,
}

enum Entry<'a> {
    Event(&'a EventReport),
    Death(&'a DeathReport),
}

impl Entry<'_> {
    fn at(&self) -> chrono::DateTime<chrono::Utc> {
        match self {
            Self::Event(event) => event.accepted_at,
            Self::Death(death) => death.changed_at.unwrap_or(death.found_at),
        }
    }
}

impl Events {
    pub(crate) fn run(&self) -> Outcome {
        let Asked { store, unit, last, json } = &self.asked;
        let (mut snapshot, unit) = open_at(store, unit.as_deref())?;
        let conversation = snapshot.conversation(&unit)?.ok_or_else(|| no_unit(store, &unit))?;
        let report = snapshot.unit(&unit, 0)?.ok_or_else(|| no_unit(store, &unit))?;
        let screen = Screen::new();
        let mut out = stdout();
        let standing = report.standing(screen.now, snapshot.source());
        let deaths = conversation.deaths.iter().chain(&standing.death).map(Entry::Death);
        let mut entries: Vec<_> = conversation.events.iter().map(Entry::Event).chain(deaths).collect();
        // A death at the same moment as an event came after it.
        entries.sort_by_key(Entry::at);
        let from = entries.len().saturating_sub(last.unwrap_or(usize::MAX));
        let entries = entries.get(from..).unwrap_or_default();
        if *json {
            json_line(&mut out, &store_line(store, snapshot.source(), screen.now))?;
        } else if entries.is_empty() {
            writeln!(out, "{}", none_listed(*last, "no event is kept"))?;
        }
        for entry in entries {
            match (entry, json) {
                (Entry::Event(event), true) => json_line(&mut out, &Line::Event(event))?,
                (Entry::Death(death), true) => json_line(&mut out, &Line::Death(death))?,
                (Entry::Event(event), false) => {
                    // Only the run knows of it.
                    let delay = report.run.as_ref().filter(|run| run.event.as_ref() == Some(&event.event));
                    let until = delay.and_then(|run| Some((run.not_before?, run.delay_seconds?)));
                    print_event(&mut out, screen, event, until)?;
                }
                (Entry::Death(death), false) => print_death(&mut out, screen, death)?,
            }
        }
        out.flush()?;
        Ok(Exit::Fine)
    }
}

/// `delay`: until when the source wants no requests, and for how many seconds it asked, if that is what it is answered.
fn print_event(
    out: &mut impl Write,
    screen: Screen,
    event: &EventReport,
    delay: Option<(DateTime<Utc>, u64)>,
) -> std::io::Result<()> {
    let line = format!("{}. {}", event.order, event_words(&event.event));
    folded(out, screen, &format!("{} ", time(event.accepted_at)), "    ", &visible(&line))?;
    let answer = match &event.answer {
        Some(message) => {
            let took = duration(message.sealed_at - event.accepted_at);
            let mut line = format!(
                "message {}, {}, {}, after {took}, {}",
                message.message,
                message.event_type,
                fate_words(message),
                count(message.artifacts, "artifact", "artifacts")
            );
            if let Some((until, seconds)) = delay.filter(|_| message.answer == MessageKind::Delay) {
                let asked = seconds_in_words(seconds);
                let _ = write!(
                    line,
                    ": the source asked for no requests for {asked}, until {}",
                    screen.time(until)
                );
            }
            if let Some(error) = &message.error {
                line.push_str(": ");
                line.push_str(error);
            }
            line
        }
        None => format!("not answered, accepted {}", screen.age(event.accepted_at)),
    };
    folded(out, screen, "    -> ", "       ", &visible(&answer))
}

fn print_death(out: &mut impl Write, screen: Screen, death: &DeathReport) -> std::io::Result<()> {
    let at = death.changed_at.unwrap_or(death.found_at);
    let line = format!("DEATH of life {}: stored nothing more; {}", death.epoch, death_words(death));
    folded(out, screen, &format!("{} ", time(at)), "    ", &line)
}
