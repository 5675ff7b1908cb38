//! The extractor under watch: what it returns is recorded, and the schedule's faults are applied.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, SourceError,
};
use crate::clock::Clock;
use crate::record::{Attachment, Checker, Finding, Metadata};
use crate::store::{Page, PageRecords};

use super::report::{Broken, Violation};
use super::schedule::{Act, Call, CallFault, Setting};
use super::world::{
    AGAIN, About, Change, HandOut, Life, Named, OUT_OF_SCOPE, OfRun, SDK_START, StreamEnd, World,
};

/// How long a page takes in the simulated world.
const PAGE_TAKES: Duration = Duration::from_secs(2);
/// The most pages of a listing that a kill costs if pages are fetched ahead: two that are held and not yet old enough
/// to be stored, and the one after them.
const AHEAD_LOST: usize = 3;
/// How long it takes to open an attachment.
const OPEN_TAKES: Duration = Duration::from_secs(1);

/// The extractor under watch: what it returns is recorded, and the schedule's faults are applied.
pub(super) struct Watched<E> {
    extractor: E,
    life: Life,
    violation: Mutex<Option<Violation>>,
}

impl<E> Watched<E> {
    pub(super) fn new(extractor: E, life: Life) -> Self {
        Self { extractor, life, violation: Mutex::default() }
    }

    /// Records a violation; only the first counts.
    fn violated(&self, violation: Violation) {
        self.violation.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(violation);
    }

    /// The first violation that was noted.
    pub(super) fn into_violation(self) -> Option<Violation> {
        self.violation.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Extractor> Extractor for Watched<E> {
    type Cursor = E::Cursor;

    fn external_sync_units(&self, context: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        self.extractor.external_sync_units(context)
    }

    fn metadata(&self, context: &Context) -> Result<Value, SourceError> {
        self.extractor.metadata(context)
    }

    fn initial_domain_mapping(&self, context: &Context) -> Result<Option<Value>, SourceError> {
        self.extractor.initial_domain_mapping(context)
    }

    fn check_policy(&self) -> CheckPolicy {
        self.extractor.check_policy()
    }

    fn streams(&self, context: &Context) -> Result<Vec<String>, SourceError> {
        self.extractor.streams(context)
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<E::Cursor>,
    ) -> Result<Page<E::Cursor>, SourceError> {
        let stream = &name_of(listing.stream(), listing.parent());
        let at = serde_json::to_string(&cursor)?;
        let at = cursor.is_some().then_some(at);
        if let Err(violation) = self.check(context, stream, at.as_ref()) {
            self.violated(violation);
        }
        if let Err(violation) = self.check_asked(context) {
            self.violated(violation);
        }
        self.befall_page()?;
        let page = match self.whole(listing, || self.extractor.page(context, listing, cursor)) {
            Err(SourceError::Failed { source, .. }) if source.to_string().starts_with("INCONSISTENT") => {
                let what = source.to_string();
                self.violated(Violation { kind: Broken::Watermark, what });
                return Err(SourceError::from(source));
            }
            page => page?,
        };
        let next = page.next_json()?;
        let Split { lines, once, edge, rejected } = self.split(context, &page)?;
        self.hand_out(HandOut {
            run: self.life.run(context),
            stream: stream.clone(),
            is_child: listing.parent().is_some(),
            children: page.children().map(|(stream, parent)| name_of(stream, Some(parent))).collect(),
            cursor: at,
            next,
            bookmark: page.bookmark_json().map(str::to_owned),
            since: context.since(),
            read_at: self.life.clock().now(),
            lines,
            once,
            edge,
            rejected,
            asked: Vec::new(),
            settled: Vec::new(),
        });
        Ok(page)
    }

    fn can_refetch(&self, item_type: &str) -> bool {
        self.extractor.can_refetch(item_type)
    }

    fn refetch(
        &self,
        context: &Context,
        item_type: &str,
        ids: &[String],
    ) -> Result<Page<E::Cursor>, SourceError> {
        self.befall_page()?;
        let page = self.whole(&item_type, || self.extractor.refetch(context, item_type, ids))?;
        let Split { lines, once, edge, rejected } = self.split(context, &page)?;
        let asked: Vec<Named> = ids.iter().map(|id| (item_type.to_owned(), id.clone())).collect();
        self.hand_out(HandOut {
            run: self.life.run(context),
            stream: AGAIN.to_owned(),
            is_child: false,
            children: Vec::new(),
            cursor: Some(serde_json::to_string(&asked)?),
            next: None,
            bookmark: None,
            since: context.since(),
            read_at: self.life.clock().now(),
            lines,
            once,
            edge,
            settled: asked.iter().filter(|named| !rejected.contains(named)).cloned().collect(),
            rejected,
            asked,
        });
        Ok(page)
    }

    fn open_attachment(
        &self,
        context: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let named = (attachment.parent_id.clone(), attachment.id.clone());
        let stream = Stream { world: self.life.world.clone(), of: (self.life.run(context), named) };
        {
            let mut inner = self.life.world.lock();
            if inner.dies_now() {
                return Err("simulated: the process is dead".into());
            }
            let fault = inner.fault(Call::Open);
            inner.clock.advance(OPEN_TAKES);
            inner.record(Change::Called {
                call: Call::Open,
                effect: None,
                failed: fault.is_some(),
                fault,
                about: About::Nothing,
            });
            drop(inner);
            match fault {
                None => {}
                Some(CallFault::Busy(seconds)) => {
                    return Err(AttachmentError::RateLimited {
                        after: Duration::from_secs(seconds.unwrap_or(1).into()),
                    });
                }
                Some(CallFault::Refused(status)) => {
                    stream.ended(StreamEnd::Final);
                    let reason = format!("simulated: {status}");
                    return Err(match status {
                        400 => AttachmentError::Gone { reason },
                        _ => AttachmentError::Denied { reason },
                    });
                }
                Some(fault) => {
                    stream.ended(StreamEnd::Broken);
                    if fault == CallFault::Lost {
                        std::panic::resume_unwind(Box::new("simulated panic of the extractor"));
                    }
                    return Err("simulated: not opened".into());
                }
            }
        }
        match self.extractor.open_attachment(context, attachment) {
            Ok(body) => {
                self.life.world.lock().open_streams.push(stream.of.clone());
                let (found, broken) = (0, false);
                let watched =
                    WatchedBody { reader: body.reader, declared: body.length_bytes, found, broken, stream };
                Ok(AttachmentBody { reader: Box::new(watched), ..body })
            }
            Err(error) => {
                match error {
                    AttachmentError::RateLimited { .. } => {}
                    AttachmentError::Gone { .. } | AttachmentError::Denied { .. } => {
                        stream.ended(StreamEnd::Final);
                    }
                    AttachmentError::Temporary { .. } => stream.ended(StreamEnd::Broken),
                }
                Err(error)
            }
        }
    }
}

impl<E: Extractor> Watched<E> {
    /// Applies the schedule's faults to a page.
    fn befall_page(&self) -> Result<(), SourceError> {
        let mut inner = self.life.world.lock();
        if inner.dies_now() {
            return Err("simulated: the process is dead".into());
        }
        let fault = inner.fault(Call::Page);
        inner.clock.advance(PAGE_TAKES);
        if let Some(fault) = fault {
            inner.record(Change::Called {
                call: Call::Page,
                effect: None,
                failed: true,
                fault: Some(fault),
                about: About::Nothing,
            });
            drop(inner);
            return Err(match fault {
                CallFault::Busy(seconds) => {
                    SourceError::RateLimited { after: Duration::from_secs(seconds.unwrap_or(1).into()) }
                }
                // Panics without output on stderr: it is one of thousands.
                CallFault::Lost => std::panic::resume_unwind(Box::new("simulated panic of the extractor")),
                CallFault::Refused(_) => "simulated: the cursor expired".into(),
                _ => "simulated: failed midway".into(),
            });
        }
        Ok(())
    }

    /// Fetches a page. It is a violation if the page is returned although a call to the source failed: the missing
    /// records are never read, or, if the page has the same cursor again, the others are read twice.
    fn whole<T>(
        &self,
        of: &dyn std::fmt::Display,
        fetch: impl FnOnce() -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        self.life.not_given();
        let page = fetch()?;
        if let Some(what) = self.life.not_given() {
            let what = format!(
                "a page of {of} was returned although {what} failed in it, and was not asked for again: \
                 return the error instead, and the page is fetched again"
            );
            self.violated(Violation { kind: Broken::Half, what });
        }
        Ok(page)
    }

    /// Notes a page.
    fn hand_out(&self, handed: HandOut) {
        let mut inner = self.life.world.lock();
        inner.record(Change::Called {
            call: Call::Page,
            effect: None,
            failed: false,
            fault: None,
            about: About::Nothing,
        });
        let pages = inner.pages.get(&(handed.run.clone(), handed.stream.clone()));
        let before = pages.and_then(|pages| pages.iter().rfind(|before| before.cursor == handed.cursor));
        match before.map(|before| (&before.lines, &handed.lines)) {
            Some((before, now)) if now.len() < before.len() => inner.count("source/page-shrank"),
            Some((before, now)) if now != before => inner.count("source/page-changed"),
            _ => {}
        }
        let of_run = inner.pages.iter().filter(|((run, _), _)| *run == handed.run);
        let known: BTreeSet<_> =
            of_run.flat_map(|(_, pages)| pages).flat_map(|page| &page.once).map(|(named, _)| named).collect();
        if handed.once.iter().any(|(named, _)| known.contains(named)) {
            inner.count("source/brought-again");
        }
        let of_others = inner.pages.iter().filter(|((run, _), _)| *run != handed.run);
        let known: BTreeSet<_> = of_others.flat_map(|(_, pages)| pages).flat_map(|page| &page.edge).collect();
        if handed.edge.iter().any(|line| known.contains(line)) {
            inner.count("source/unchanged");
        }
        inner.record(Change::Read(Arc::new(handed)));
    }

    /// What a page has; bad are records that the extractor rejects itself, or, if that is its policy, by what its
    /// metadata declares.
    fn split(&self, context: &Context, page: &Page<E::Cursor>) -> Result<Split, SourceError> {
        let scope = self.life.is(Setting::Scope);
        let wanted = |item_type: &str| !(scope && item_type == OUT_OF_SCOPE);
        let metadata = match self.extractor.check_policy() {
            CheckPolicy::LeaveOut => Some(Metadata::from_value(self.extractor.metadata(context)?)),
            _ => None,
        };
        let mut rejected: Vec<Named> =
            page.rejected_ids().filter(|(item_type, _)| wanted(item_type)).collect();
        let (mut lines, mut once_lines, mut edge_lines) = (Vec::new(), Vec::new(), Vec::new());
        for (PageRecords { item_type, once, lines: records, .. }, edge) in
            page.groups().filter(|(group, _)| wanted(&group.item_type))
        {
            let checker = metadata.as_ref().and_then(|metadata| Checker::new(metadata, item_type).ok());
            for (id, line) in records.ids().zip(records.each()) {
                let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                let is_bad = checker
                    .as_ref()
                    .is_some_and(|checker| checker.check_line(&line).iter().any(Finding::is_error));
                match id {
                    Some(id) if is_bad => rejected.push((item_type.to_owned(), id.to_owned())),
                    Some(id) if *once => once_lines.push(((item_type.to_owned(), id.to_owned()), line)),
                    Some(_) if edge => edge_lines.push(line),
                    _ => lines.push(line),
                }
            }
        }
        Ok(Split { lines, once: once_lines, edge: edge_lines, rejected })
    }

    /// Checks that the run has requested the rejected records of earlier runs before its first page.
    fn check_asked(&self, context: &Context) -> Result<(), Violation> {
        let id = self.life.run(context);
        let mut inner = self.life.world.lock();
        let Some(run) = inner.runs.iter().find(|run| run.id == id).cloned() else { return Ok(()) };
        let asked = inner.asked(&id);
        let possible: Vec<_> =
            inner.watermarks(&run).into_iter().map(|before| inner.to_ask(before)).collect();
        if !possible.contains(&asked) {
            let what = format!("run {id} has asked again for {asked:?}, expected one of {possible:?}");
            return Err(Violation { kind: Broken::Lost, what });
        }
        if !asked.is_empty() {
            inner.count("source/asked-again");
        }
        Ok(())
    }
}

/// What a page has.
struct Split {
    /// Lines that are to be announced.
    lines: Vec<String>,
    /// Item types, ids and lines of records of which one of an id is.
    once: Vec<(Named, String)>,
    /// Lines of records that are left out if they are unchanged.
    edge: Vec<String>,
    /// Item types and ids of those that are bad.
    rejected: Vec<Named>,
}

/// What a listing is called here.
fn name_of(stream: &str, parent: Option<&str>) -> String {
    parent.map_or_else(|| stream.to_owned(), |parent| format!("{stream} of {parent}"))
}

impl Life {
    /// The current run, as the world knows it: an event may have no run id.
    fn run(&self, context: &Context) -> String {
        let inner = self.world.lock();
        match inner.sent.last() {
            Some(event) if inner.is(Setting::NoIds) => event.run.clone(),
            _ => context.run_id().to_string(),
        }
    }
}

/// The stream of an attachment.
struct Stream {
    world: World,
    of: OfRun,
}

impl Stream {
    fn ended(&self, end: StreamEnd) {
        let mut inner = self.world.lock();
        // A dead process reports nothing.
        if !inner.disk.is_dead() {
            inner.record(Change::Streamed { of: self.of.clone(), end });
        }
    }
}

/// The bytes of an attachment, as the source returns them.
struct WatchedBody {
    reader: Box<dyn Read + Send>,
    declared: Option<u64>,
    found: u64,
    broken: bool,
    stream: Stream,
}

impl Read for WatchedBody {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer);
        match &read {
            Ok(count) => self.found += *count as u64,
            Err(_) => self.broken = true,
        }
        read
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.stream.world.lock().open_streams.pop();
        let as_declared = self.declared.is_none_or(|declared| declared == self.found);
        self.stream.ended(match (self.found, self.broken) {
            (0, false) => StreamEnd::Final,
            (_, false) if as_declared => StreamEnd::Whole,
            _ => StreamEnd::Broken,
        });
    }
}

impl<E> Watched<E> {
    /// Compares what the extractor gets with what the world has seen.
    fn check(&self, context: &Context, stream: &str, at: Option<&String>) -> Result<(), Violation> {
        let id = &self.life.run(context);
        let mut inner = self.life.world.lock();
        if let Some(pages) = inner.pages.get(&(id.to_owned(), stream.to_owned())) {
            let last = pages.last();
            // Without a disk, what followed the last checkpoint is read again.
            let repeatable = match inner.has_disk && !inner.second_worker {
                true if inner.is(Setting::Ahead) => AHEAD_LOST,
                true => 1,
                false => usize::MAX,
            };
            let mut back = pages.iter().rev().take(repeatable);
            let back = back.position(|page| page.cursor.as_ref() == at);
            let again = back.is_some();
            let came_ahead = inner.has_disk && !inner.second_worker && back.is_some_and(|back| back > 0);
            let on = last.is_some_and(|last| last.next.as_ref() == at && at.is_some());
            if !again && !on {
                let stood = last.map(|last| (&last.cursor, &last.next));
                let what =
                    format!("stream {stream} of run {id} is read at {at:?} when it stood at {stood:?}");
                return Err(Violation { kind: Broken::Lost, what });
            }
            if came_ahead {
                inner.count("source/page-ahead-read-again");
            }
        } else if at.is_some() {
            let what = format!("stream {stream} of run {id} begins at {at:?}");
            return Err(Violation { kind: Broken::Lost, what });
        }
        let since = context.since();
        let Some(place) = inner.runs.iter().position(|run| run.id == *id) else { return Ok(()) };
        let Some(run) = inner.runs.get(place).cloned() else { return Ok(()) };
        if run.read && run.since != since && !inner.store_replaced() {
            let what = format!("since of run {id} was {:?} and is now {since:?}", run.since);
            return Err(Violation { kind: Broken::Watermark, what });
        }
        let stepped = inner.acts.iter().any(|act| matches!(act, Act::ClockSteps { .. }));
        let possible = inner.watermarks(&run);
        // What the SDK left counts until a run of ours is finished, or until everything is deleted.
        let inherits = inner.is(Setting::SdkState)
            && !inner.has_disk
            && run.unit == "unit-a"
            && !inner.runs.iter().any(|run| run.deleted);
        let sdk_start: DateTime<Utc> = SDK_START.parse().unwrap_or_default();
        let fits = possible.iter().any(|finished| match (finished, since) {
            (None, None) => !inherits,
            (None, Some(since)) if inherits => since == sdk_start,
            // A run starts when its first event is accepted: after the event was sent, and before anything was read.
            (Some(finished), Some(since)) => {
                stepped || (finished.sent_at <= since && since <= inner.first_read(finished))
            }
            _ => stepped,
        });
        if !fits {
            let left: Vec<_> = possible.iter().map(|run| run.map(|run| (&run.id, run.sent_at))).collect();
            let what = format!("run {id} has since {since:?}, but the finished runs before it left {left:?}");
            return Err(Violation { kind: Broken::Watermark, what });
        }
        let of_sdk = since == Some(sdk_start);
        // If the process dies over it, or its disk fails, nothing was found; the page fails, too, and that is judged.
        let Ok(bookmark) = context.bookmark::<Value>(stream) else { return Ok(()) };
        let bookmark = bookmark.map(|bookmark| bookmark.to_string());
        let expected: Vec<_> = possible.iter().map(|run| inner.bookmark_left(*run, stream)).collect();
        if !expected.contains(&bookmark) {
            let what =
                format!("run {id} finds the bookmark {bookmark:?} of {stream}, expected one of {expected:?}");
            return Err(Violation { kind: Broken::Watermark, what });
        }
        if of_sdk {
            inner.count("state/of-the-sdk");
        }
        Ok(())
    }
}
