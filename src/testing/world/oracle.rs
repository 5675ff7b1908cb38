//! The oracle: whether what the platform was told is what the source handed over.
//!
//! It asks the store nothing. A record counts as staged as the room above has it; an attachment is to be announced once,
//! under a line that names a confirmed upload of its bytes, unless its streams gave a reason to give it up.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::record::Attachment;

use super::super::schedule::{Act, Answer, Call};
use super::{Broken, Inner, Named, RunSeen, STREAM, TRIES, Violation, is_stream};

impl Inner {
    /// Whether everything that was promised was kept, once all syncs are done.
    pub(in crate::testing) fn verdict(&self, at_once: u64) -> Result<(), Violation> {
        if let Some(what) = &self.changed_message {
            return Err(Violation { kind: Broken::Conversation, what: what.clone() });
        }
        let broken = |kind, what: String| Err(Violation { kind, what });
        let mut named: BTreeSet<&str> = BTreeSet::new();
        let mut announced: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for message in &self.accepted {
            if self.has_disk && message.body.contains("is not known here") {
                return broken(
                    Broken::Conversation,
                    format!("{} was forgotten, with its disk there", message.run),
                );
            }
            for id in &message.artifacts {
                if !named.insert(id.as_str()) {
                    return broken(Broken::Duplicated, format!("artifact {id} is in two messages"));
                }
                let Some(lines) = self.uploads.get(id) else {
                    return broken(
                        Broken::Lost,
                        format!("artifact {id} is announced and was never uploaded"),
                    );
                };
                if !self.confirmed.contains(id) {
                    return broken(
                        Broken::Unconfirmed,
                        format!("artifact {id} is announced and not confirmed"),
                    );
                }
                if !message.event_type.contains("METADATA") {
                    announced.entry(&message.run).or_default().extend(lines.iter().map(String::as_str));
                }
            }
        }
        let mut delivered: BTreeMap<(&str, Named), String> = BTreeMap::new();
        for run in &self.runs {
            let found = announced.remove(run.id.as_str()).unwrap_or_default();
            let (links, mut found): (Vec<&str>, Vec<&str>) =
                found.into_iter().partition(|line| line.starts_with(r#"{"id":{"devrev""#));
            self.attachments_of(run, &links, &mut named, &mut delivered)?;
            found.sort_unstable();
            let mut expected: Vec<&str> = (self.pages.range((run.id.clone(), String::new())..))
                .take_while(|((of, _), _)| *of == run.id)
                .flat_map(|(_, pages)| pages)
                .flat_map(|page| page.lines.iter().map(String::as_str))
                .collect();
            expected.sort_unstable();
            let (missing, extra) = (without(&expected, &found), without(&found, &expected));
            // Also of a run that was given up: what it had announced of a page is of the last reading that was kept.
            if let Some(twice) = extra.iter().find(|line| expected.binary_search(*line).is_ok()) {
                return broken(Broken::Duplicated, format!("announced twice in run {}: {twice}", run.id));
            }
            if run.abandoned || !run.finished {
                continue;
            }
            if let Some(first) = missing.first() {
                let what = format!(
                    "{} records of run {} are in no message, the first {first}",
                    missing.len(),
                    run.id
                );
                return broken(Broken::Lost, what);
            }
            if let Some(first) = extra.first() {
                let what =
                    format!("{} records of run {} were never staged, the first {first}", extra.len(), run.id);
                return broken(Broken::Duplicated, what);
            }
        }
        let given_up = self.runs.iter().any(|run| run.abandoned);
        // What could not be confirmed for sure is given up, and may be confirmed.
        let in_doubt = self.refuses_confirms();
        if !given_up
            && let Some(id) = self.confirmed.iter().find(|id| !named.contains(id.as_str()))
            && !(in_doubt && self.uploads.get(id).is_some_and(|lines| is_stream(lines)))
        {
            return broken(Broken::Unconfirmed, format!("artifact {id} is confirmed and in no message"));
        }
        let unconfirmed = self.uploads.keys().filter(|id| !self.confirmed.contains(*id)).count() as u64;
        // Without a disk, an invocation that ends early loses what it uploaded since the last checkpoint, as a death does.
        let of_failures = if self.has_disk { self.failures } else { at_once * self.failures };
        if unconfirmed > at_once * self.deaths + of_failures {
            let (deaths, failures) = (self.deaths, self.failures);
            let what = format!(
                "{unconfirmed} uploads are unconfirmed after {deaths} deaths and {failures} failed calls"
            );
            return broken(Broken::Unconfirmed, what);
        }
        if !self.reuses_ids() {
            let mut requests = BTreeSet::new();
            if let Some(twice) = self.accepted.iter().find(|message| !requests.insert(&message.request)) {
                return broken(Broken::Conversation, format!("two messages answer event {}", twice.request));
            }
        }
        Ok(())
    }

    /// Whether the attachments of a run are each announced once, by a line that names a confirmed upload of their bytes,
    /// or may have been given up.
    fn attachments_of<'a>(
        &'a self,
        run: &'a RunSeen,
        links: &[&'a str],
        named: &mut BTreeSet<&'a str>,
        delivered: &mut BTreeMap<(&'a str, Named), String>,
    ) -> Result<(), Violation> {
        let broken = |kind, what: String| Err(Violation { kind, what });
        let pages = self.pages.range((run.id.clone(), String::new())..);
        let pages = pages.take_while(|((of, _), _)| *of == run.id).flat_map(|(_, pages)| pages);
        // What was said last of each.
        let mut wanted: BTreeMap<Named, BTreeSet<String>> = BTreeMap::new();
        for line in pages.flat_map(|page| &page.lines) {
            if let Ok(attachment) = Attachment::from_line(line) {
                let urls = wanted.entry((attachment.parent_id, attachment.id)).or_default();
                urls.insert(attachment.url);
            }
        }
        let mut announced = BTreeSet::new();
        for line in links {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            let text = |path: &str| line.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let of = (text("/parent_id/external").to_owned(), text("/id/external").to_owned());
            let Some((id, bytes)) = self.uploads.get_key_value(text("/id/devrev")) else {
                return broken(
                    Broken::Lost,
                    format!("attachment {of:?} is announced and was never uploaded"),
                );
            };
            if !self.confirmed.contains(id) {
                return broken(
                    Broken::Unconfirmed,
                    format!("attachment {of:?} is announced and not confirmed"),
                );
            }
            if !named.insert(id) || !announced.insert(of.clone()) {
                return broken(
                    Broken::Duplicated,
                    format!("attachment {of:?} of run {} is announced twice", run.id),
                );
            }
            let urls = wanted.get(&of).into_iter().flatten();
            let url = urls.into_iter().find(|url| {
                let content = format!("{STREAM}{}|{}|{url}", of.1, of.0);
                // An extractor of another source has bytes of its own.
                bytes.iter().all(|line| *line == content || !line.contains("|simulated:"))
            });
            let Some(url) = url else {
                let what =
                    format!("attachment {of:?} of run {} is announced with the bytes {bytes:?}", run.id);
                return broken(Broken::Lost, what);
            };
            delivered.insert((run.unit.as_str(), of), url.clone());
        }
        if run.abandoned || !run.finished {
            return Ok(());
        }
        // What an earlier run settled is known by a disk that was there then.
        let remembers = self.has_disk || self.acts.iter().any(|act| matches!(act, Act::StaleDisk { .. }));
        for (of, urls) in wanted {
            let streamed = self.streams.get(&(run.id.clone(), of.clone())).copied().unwrap_or_default();
            let given_up = streamed.last > 0 || streamed.broken >= TRIES || self.refuses_confirms();
            let before = delivered.get(&(run.unit.as_str(), of.clone()));
            let unchanged = remembers && before.is_some_and(|before| urls.contains(before));
            if !announced.contains(&of) && !given_up && !unchanged {
                let what = format!("attachment {of:?} of run {} is in no message, and had no reason", run.id);
                return broken(Broken::Lost, what);
            }
        }
        Ok(())
    }

    /// Whether the schedule has confirms that are refused for good.
    fn refuses_confirms(&self) -> bool {
        let refuses =
            |act: &Act| matches!(act, Act::Call { call: Call::Confirm, answer: Answer::Refused(_), .. });
        self.acts.iter().any(refuses)
    }
}

/// What of `lines` is not in `others`; both sorted.
fn without<'a>(lines: &[&'a str], others: &[&str]) -> Vec<&'a str> {
    let mut rest = others.iter().peekable();
    let mut left = Vec::new();
    for line in lines {
        while rest.peek().is_some_and(|other| *other < line) {
            rest.next();
        }
        if rest.peek() == Some(&line) {
            rest.next();
        } else {
            left.push(*line);
        }
    }
    left
}
