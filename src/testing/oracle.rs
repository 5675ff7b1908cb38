//! The oracle: whether the messages to the platform match what the source returned.
//!
//! It does not ask the store. A record counts as staged by what the world saw. An attachment must be announced once,
//! by a line that names a confirmed upload of its bytes, unless its streams gave a reason to give it up.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::record::Attachment;

use super::report::{Broken, Violation};
use super::schedule::{Act, Setting};
use super::world::{Named, OfRun, Outside, RunSeen, STREAM, Uploaded};

/// Streams that must fail before an attachment may be given up: the default of `Serve`.
const TRIES: u64 = 5;

/// The content of the accepted messages.
#[derive(Default)]
struct Announced<'a> {
    /// Every artifact that a message, or a line of attachments, names.
    named: BTreeSet<&'a str>,
    /// By run: the lines of its artifacts, except metadata.
    lines: BTreeMap<&'a str, Vec<&'a str>>,
    /// The attachments that a line names.
    linked: BTreeSet<OfRun>,
    /// By unit: lines at the edge that finished runs have announced.
    at_edge: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// By unit: the url with which each attachment was last delivered.
    delivered: BTreeMap<(&'a str, Named), String>,
    /// By reason: how many attachments are in no message.
    given_up: BTreeMap<&'static str, u64>,
}

fn broken<T>(kind: Broken, what: String) -> Result<T, Violation> {
    Err(Violation { kind, what })
}

impl Outside {
    /// Whether all promises were kept, once all syncs are done. A life leaves at most `at_once` uploads unconfirmed.
    /// Returns why attachments were given up, and how many.
    pub(super) fn verdict(&self, at_once: u64) -> Result<BTreeMap<&'static str, u64>, Violation> {
        if let Some(what) = &self.changed_message {
            return broken(Broken::Conversation, what.clone());
        }
        if let Some(what) = &self.state_over_limit {
            return broken(Broken::Stuck, what.clone());
        }
        let mut announced = self.announced()?;
        for run in &self.runs {
            self.records_of(run, &mut announced)?;
        }
        self.confirmed_is_announced(&announced)?;
        self.few_are_unconfirmed(&announced, at_once)?;
        self.one_message_answers_an_event()?;
        Ok(announced.given_up)
    }

    /// Whether the first sync has announced as many records of each of these item types as were expected, if it was one
    /// of all records, and is over.
    pub(super) fn announced_as_expected(&self, expected: &BTreeMap<String, u64>) -> Result<(), Violation> {
        let is_whole = |run: &&RunSeen| run.finished && !run.abandoned && run.since.is_none();
        let Some(first) = self.runs.first().filter(is_whole) else { return Ok(()) };
        let is_unclear = self.second_worker || self.reuses_ids() || self.is(Setting::NoIds);
        if expected.is_empty() || is_unclear || self.is(Setting::Scope) {
            return Ok(());
        }
        let mut announced: BTreeMap<String, u64> = BTreeMap::new();
        for message in self.accepted.iter().filter(|message| message.run == first.id) {
            let body: Value = serde_json::from_str(&message.body).unwrap_or_default();
            let artifacts = body.pointer("/event_data/artifacts").and_then(Value::as_array);
            for artifact in artifacts.into_iter().flatten() {
                let text = |key: &str| artifact.get(key).and_then(Value::as_str).unwrap_or_default();
                let lines = self.uploads.get(text("id")).map_or(0, |uploaded| uploaded.lines.len() as u64);
                *announced.entry(text("item_type").to_owned()).or_default() += lines;
            }
        }
        for (item_type, expected) in expected {
            let found = announced.get(item_type).copied().unwrap_or_default();
            if found != *expected {
                let kind = if found < *expected { Broken::Lost } else { Broken::Duplicated };
                let what = format!(
                    "the first sync announced {found} records of {item_type}, and {expected} were expected"
                );
                return broken(kind, what);
            }
        }
        Ok(())
    }

    /// The announcements of the messages: each artifact once, uploaded and confirmed.
    fn announced(&self) -> Result<Announced<'_>, Violation> {
        let mut announced = Announced::default();
        for message in &self.accepted {
            let newer = !message.body.contains(r#""event_type":"EXTRACTION_"#);
            if newer != self.is(Setting::NewerNames) {
                let what = format!("the answer {} is not spelled as its event", message.event_type);
                return broken(Broken::Conversation, what);
            }
            let known = self.has_disk && !self.second_worker && !self.runs.iter().any(|run| run.deleted);
            if known && message.body.contains("is not known here") {
                return broken(
                    Broken::Conversation,
                    format!("{} was forgotten, with its disk there", message.run),
                );
            }
            for id in &message.artifacts {
                if !announced.named.insert(id.as_str()) {
                    return broken(Broken::Duplicated, format!("artifact {id} is in two messages"));
                }
                let Some(uploaded) = self.uploads.get(id) else {
                    let what = format!("artifact {id} is announced and was never uploaded");
                    return broken(Broken::Lost, what);
                };
                // By the protocol, external sync units are announced unconfirmed.
                let units = message.event_type.contains("SYNC_UNITS");
                if !units && !self.confirmed.contains(id) {
                    let what = format!("artifact {id} is announced and not confirmed");
                    return broken(Broken::Unconfirmed, what);
                }
                if !units && !message.event_type.contains("METADATA") {
                    let of_run = announced.lines.entry(&message.run).or_default();
                    of_run.extend(uploaded.lines.iter().map(String::as_str));
                }
            }
        }
        Ok(announced)
    }

    /// Checks that each record of a run is announced once, and nothing else.
    fn records_of<'a>(&'a self, run: &'a RunSeen, announced: &mut Announced<'a>) -> Result<(), Violation> {
        let found = announced.lines.remove(run.id.as_str()).unwrap_or_default();
        let (links, mut found): (Vec<&str>, Vec<&str>) =
            found.into_iter().partition(|line| line.starts_with(r#"{"id":{"devrev""#));
        self.attachments_of(run, &links, announced)?;
        found.sort_unstable();
        self.once_of(run, &mut found)?;
        self.edge_of(run, &mut found, announced)?;
        let mut expected: Vec<&str> =
            self.pages_of(run).flat_map(|page| page.lines.iter().map(String::as_str)).collect();
        expected.sort_unstable();
        let (missing, extra) = (without(&expected, &found), without(&found, &expected));
        // This also holds for a run that was given up: what it announced of a page belongs to the last reading that
        // was kept.
        if let Some(twice) = extra.iter().find(|line| expected.binary_search(*line).is_ok()) {
            return broken(Broken::Duplicated, format!("announced twice in run {}: {twice}", run.id));
        }
        if run.abandoned || !run.finished {
            return Ok(());
        }
        if let Some(child) = self.child_left_unread(run) {
            let what = format!("run {} is done, and {child} was named and not read to its end", run.id);
            return broken(Broken::Lost, what);
        }
        if let Some(first) = missing.first() {
            let (count, id) = (missing.len(), &run.id);
            let what = format!("{count} records of run {id} are in no message, the first {first}");
            return broken(Broken::Lost, what);
        }
        if let Some(first) = extra.first() {
            let (count, id) = (extra.len(), &run.id);
            let what = format!("{count} records of run {id} were never staged, the first {first}");
            return broken(Broken::Duplicated, what);
        }
        Ok(())
    }

    /// Whether of the records that are announced once in a run one of each id is, of all that its pages have; takes
    /// those out of what was found.
    fn once_of(&self, run: &RunSeen, found: &mut Vec<&str>) -> Result<(), Violation> {
        let mut handed: BTreeMap<&Named, BTreeSet<&str>> = BTreeMap::new();
        for (named, line) in self.pages_of(run).flat_map(|page| &page.once) {
            handed.entry(named).or_default().insert(line);
        }
        for (named, lines) in handed {
            let announced = found.iter().filter(|line| lines.contains(**line)).count();
            if announced > 1 {
                let what =
                    format!("{named:?} is announced {announced} times in run {}, and once is wanted", run.id);
                return broken(Broken::Duplicated, what);
            }
            if announced == 0 && run.finished && !run.abandoned {
                let what = format!("{named:?} of run {} is in no message", run.id);
                return broken(Broken::Lost, what);
            }
            found.retain(|line| !lines.contains(line));
        }
        Ok(())
    }

    /// Whether of the lines at the edge each is announced as often as pages have it, or fewer times if a finished run
    /// has announced it before; takes those out of what was found.
    fn edge_of<'a>(
        &'a self,
        run: &'a RunSeen,
        found: &mut Vec<&'a str>,
        announced: &mut Announced<'a>,
    ) -> Result<(), Violation> {
        let mut handed: BTreeMap<&str, usize> = BTreeMap::new();
        for line in self.pages_of(run).flat_map(|page| &page.edge) {
            *handed.entry(line).or_default() += 1;
        }
        let before = announced.at_edge.entry(&run.unit).or_default();
        let mut now = BTreeSet::new();
        for (line, handed) in &handed {
            let times = found.iter().filter(|other| *other == line).count();
            if times > *handed {
                let what =
                    format!("announced {times} times in run {}, and read {handed} times: {line}", run.id);
                return broken(Broken::Duplicated, what);
            }
            if times < *handed && run.finished && !run.abandoned && !before.contains(line) {
                let what = format!(
                    "left out as unchanged in run {}, and no finished run has announced it: {line}",
                    run.id
                );
                return broken(Broken::Lost, what);
            }
            now.extend(found.iter().find(|other| *other == line).copied());
        }
        found.retain(|line| !handed.contains_key(line));
        if run.deleted {
            before.clear();
        } else if run.finished {
            before.extend(now);
        }
        Ok(())
    }

    /// Whether whatever is confirmed is in a message, unless the platform gave a run up.
    fn confirmed_is_announced(&self, announced: &Announced<'_>) -> Result<(), Violation> {
        // A worker whose store was replaced leaves what it has confirmed.
        if self.second_worker || self.runs.iter().any(|run| run.abandoned) {
            return Ok(());
        }
        // An attachment whose confirm was refused in doubt is given up, and may be confirmed: then it is not
        // announced under another id.
        let given_up = |id: &str| {
            let uploaded = self.uploads.get(id);
            uploaded.is_some_and(|uploaded| {
                let of = uploaded.of.as_ref();
                uploaded.refused() == Some(true) && of.is_some_and(|of| !announced.linked.contains(of))
            })
        };
        let left_out = |id: &&String| !announced.named.contains(id.as_str()) && !given_up(id);
        match self.confirmed.iter().find(left_out) {
            Some(id) => broken(Broken::Unconfirmed, format!("artifact {id} is confirmed and in no message")),
            None => Ok(()),
        }
    }

    /// Checks that deaths and failed calls account for all uploads left unconfirmed.
    fn few_are_unconfirmed(&self, announced: &Announced<'_>, at_once: u64) -> Result<(), Violation> {
        let settled = |id: &str| self.confirmed.contains(id) || announced.named.contains(id);
        let unconfirmed = self.uploads.keys().filter(|id| !settled(id)).count() as u64;
        // Without a disk, an invocation that ends early loses what it uploaded since the last checkpoint, like a
        // death.
        let of_failures = if self.has_disk { self.failures } else { at_once * self.failures };
        if unconfirmed <= at_once * self.deaths + of_failures {
            return Ok(());
        }
        let (deaths, failures) = (self.deaths, self.failures);
        broken(
            Broken::Unconfirmed,
            format!(
                "{unconfirmed} uploads are unconfirmed after {deaths} deaths and {failures} failed calls"
            ),
        )
    }

    fn one_message_answers_an_event(&self) -> Result<(), Violation> {
        if self.reuses_ids() {
            return Ok(());
        }
        // A store that replaced another knows no earlier events, so an event that is delivered again is new to it.
        let is_new_again = |request: &str| {
            self.store_replaced() && self.sent.iter().any(|event| event.stray && event.request == request)
        };
        let mut requests = BTreeSet::new();
        let twice = self
            .accepted
            .iter()
            .find(|message| !requests.insert(&message.request) && !is_new_again(&message.request));
        match twice {
            Some(twice) => {
                broken(Broken::Conversation, format!("two messages answer event {}", twice.request))
            }
            None => Ok(()),
        }
    }

    /// Checks that each attachment of a run is announced once, by a line that names a confirmed upload of its bytes,
    /// or had a reason to be given up.
    fn attachments_of<'a>(
        &'a self,
        run: &'a RunSeen,
        links: &[&'a str],
        announced: &mut Announced<'a>,
    ) -> Result<(), Violation> {
        let mut wanted: BTreeMap<Named, BTreeSet<String>> = BTreeMap::new();
        for line in self.pages_of(run).flat_map(|page| &page.lines) {
            if let Ok(attachment) = Attachment::from_line(line) {
                let urls = wanted.entry((attachment.parent_id, attachment.id)).or_default();
                urls.insert(attachment.url);
            }
        }
        for line in links {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            let text = |path: &str| line.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let of = (text("/parent_id/external").to_owned(), text("/id/external").to_owned());
            let (id, url) = self.delivery(run, &of, text("/id/devrev"), wanted.get(&of))?;
            if !announced.named.insert(id) || !announced.linked.insert((run.id.clone(), of.clone())) {
                let what = format!("attachment {of:?} of run {} is announced twice", run.id);
                return broken(Broken::Duplicated, what);
            }
            if !run.deleted && !run.attachments_deleted {
                announced.delivered.insert((run.unit.as_str(), of), url);
            }
        }
        if run.abandoned || !run.finished || self.is(Setting::NoAttachments) {
            return Ok(());
        }
        // Attachments that an earlier run settled are known if its disk was there.
        let remembers = self.has_disk || self.acts.iter().any(|act| matches!(act, Act::StaleDisk { .. }));
        for (of, urls) in wanted {
            let of_run = (run.id.clone(), of.clone());
            let ends = self.streams.get(&of_run).copied().unwrap_or_default();
            let reasons = [
                ("refused-by-the-source", ends.last > 0),
                ("failed-five-times", ends.broken >= TRIES),
                ("not-confirmed", self.cannot_be_confirmed(&of_run)),
            ];
            let before = announced.delivered.get(&(run.unit.as_str(), of.clone()));
            let unchanged = remembers && before.is_some_and(|before| urls.contains(before));
            let taken = run.taken_by_late_deletion.contains(&of);
            if announced.linked.contains(&of_run) || unchanged || taken {
                continue;
            }
            let Some((reason, _)) = reasons.into_iter().find(|(_, is_given)| *is_given) else {
                let what = format!("attachment {of:?} of run {} is in no message, and had no reason", run.id);
                return broken(Broken::Lost, what);
            };
            *announced.given_up.entry(reason).or_default() += 1;
        }
        Ok(())
    }

    /// The artifact under which an attachment is announced, which must be a confirmed upload of its bytes; and the
    /// url that the bytes came from.
    fn delivery<'a>(
        &'a self,
        run: &RunSeen,
        of: &Named,
        artifact: &str,
        urls: Option<&BTreeSet<String>>,
    ) -> Result<(&'a str, String), Violation> {
        let Some((id, Uploaded { lines: bytes, .. })) = self.uploads.get_key_value(artifact) else {
            return broken(Broken::Lost, format!("attachment {of:?} is announced and was never uploaded"));
        };
        if !self.confirmed.contains(id) {
            let what = format!("attachment {of:?} is announced and not confirmed");
            return broken(Broken::Unconfirmed, what);
        }
        let url = urls.into_iter().flatten().find(|url| {
            let content = format!("{STREAM}{}|{}|{url}", of.1, of.0);
            // An extractor of another source has other bytes.
            bytes.iter().all(|line| *line == content || !line.contains("|simulated:"))
        });
        if let Some(url) = url {
            return Ok((id, url.clone()));
        }
        let what = format!("attachment {of:?} of run {} is announced with the bytes {bytes:?}", run.id);
        broken(Broken::Lost, what)
    }

    /// Whether the confirms of an attachment's uploads gave a reason to give it up: one was refused in doubt, or two
    /// were refused.
    fn cannot_be_confirmed(&self, of: &OfRun) -> bool {
        let of_it = self.uploads.values().filter(|uploaded| uploaded.of.as_ref() == Some(of));
        let refused: Vec<bool> = of_it.filter_map(Uploaded::refused).collect();
        refused.len() > 1 || refused.contains(&true)
    }
}

/// The `lines` that are not in `others`; both are sorted.
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
