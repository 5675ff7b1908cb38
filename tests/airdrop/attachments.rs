//! Each attachment that the source names is confirmed once and announced once, with its bytes, or is listed as
//! failed; whatever happens to the streams, and over however many invocations.
//!
//! The oracle reads the messages and the files of a local Airdrop itself: which artifacts are announced, which lines
//! are in them, which artifacts those name, and what their bytes are. The expectation is computed from the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::world::pass_on;
use highwater::airdrop::{
    AttachmentBody, AttachmentError, Body, Context, Event, ExternalSyncUnit, Extractor, Fate, Listing,
    Outcome, OutcomeKind, Platform, PlatformError, Serve, SourceError, Upload,
};
use highwater::record::Attachment;
use highwater::{
    ArtifactId, AttachmentCounts, BoxError, Clock, FailedAttachment, Page, Phase, Record, Store, SyncUnit,
    VirtualClock,
};
use highwater_airdrop::{Local, SyncReport, SyncSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

const UNIT: &str = "acme/files";
const TRIES: u32 = 5;
const DATA: &str = "EXTRACTION_DATA_START";
const ATTACHMENTS: &str = "EXTRACTION_ATTACHMENTS_START";
const ATTACHMENTS_ON: &str = "EXTRACTION_ATTACHMENTS_CONTINUE";

/// Id and parent: what tells an attachment apart.
type Name = (String, String);
/// Why some failed, and after how many tries.
type Failures = BTreeMap<Name, (&'static str, u32)>;

fn name_of(attachment: &Attachment) -> Name {
    (attachment.id.clone(), attachment.parent_id.clone())
}

// --- the source

/// What becomes of it when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Whole, its length told.
    Known,
    /// Whole, its length not told.
    Unknown,
    /// The source asks to be left alone, so often.
    RateLimited(u32),
    Gone,
    Denied,
    /// It fails so often, then it is whole.
    Temporary(u32),
    Panics,
    /// Without bytes; that may be told beforehand.
    Empty(bool),
    Shorter,
    Longer,
    /// A read fails midway.
    Breaks,
    /// It declares more than 2 GiB.
    Huge,
}

impl How {
    /// Why it is given up, if it is, and after how many tries.
    fn failure(self) -> Option<(&'static str, u32)> {
        match self {
            How::Known | How::Unknown | How::RateLimited(_) => None,
            How::Temporary(failures) if failures < TRIES => None,
            How::Temporary(_) => Some(("the line is busy", TRIES)),
            How::Gone => Some(("gone: 404", 1)),
            How::Denied => Some(("denied: 403", 1)),
            How::Panics => Some(("the extractor panicked: no such luck", TRIES)),
            How::Empty(_) => Some(("it is empty", 1)),
            How::Shorter => Some(("it ended after", TRIES)),
            How::Longer => Some(("it continues after the", TRIES)),
            How::Breaks => Some(("it broke off: the line went dead", TRIES)),
            How::Huge => Some(("it is over 2147483648 bytes", 1)),
        }
    }
}

/// A source of attachments, and of records of another type.
struct Files {
    pages: Vec<Vec<Attachment>>,
    hows: BTreeMap<Name, How>,
    clock: VirtualClock,
    /// What a read takes.
    read_takes: Duration,
    rate_limit: Duration,
    /// Each time that one was opened, and when.
    opened: Mutex<Vec<(Name, Duration)>>,
    streaming: Arc<Streaming>,
    /// An attachment, as JSON, that each page names besides.
    odd: Option<Value>,
    /// What becomes of a body that was opened.
    on_open: Option<OnOpen>,
}

type OnOpen =
    Box<dyn Fn(&Files, &Attachment, AttachmentBody) -> Result<AttachmentBody, AttachmentError> + Send + Sync>;

/// Bodies that are open: how many, were in all, and at most.
#[derive(Debug, Default)]
struct Streaming {
    now: AtomicUsize,
    in_all: AtomicUsize,
    most: AtomicUsize,
}

/// One of them.
struct Open(Arc<Streaming>);

impl Open {
    fn new(streaming: &Arc<Streaming>) -> Self {
        let now = streaming.now.fetch_add(1, Ordering::SeqCst) + 1;
        streaming.most.fetch_max(now, Ordering::SeqCst);
        streaming.in_all.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(streaming))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Files {
    fn new(clock: &VirtualClock, pages: Vec<Vec<Attachment>>) -> Self {
        Self {
            pages,
            hows: BTreeMap::new(),
            clock: clock.clone(),
            read_takes: Duration::ZERO,
            rate_limit: Duration::from_secs(30),
            opened: Mutex::default(),
            streaming: Arc::default(),
            odd: None,
            on_open: None,
        }
    }

    /// Every attachment as it was named last.
    fn named(&self) -> BTreeMap<Name, Attachment> {
        self.pages.iter().flatten().map(|attachment| (name_of(attachment), attachment.clone())).collect()
    }

    fn how(&self, name: &Name) -> How {
        self.hows.get(name).copied().unwrap_or(How::Known)
    }

    /// What is to be delivered of it, and what is to be listed as failed.
    fn expected(&self) -> (BTreeMap<Name, Vec<u8>>, Failures) {
        let (mut delivered, mut failed) = (BTreeMap::new(), BTreeMap::new());
        for (name, attachment) in self.named() {
            match self.how(&name).failure() {
                Some(failure) => drop(failed.insert(name, failure)),
                None => drop(delivered.insert(name, bytes_of(&attachment))),
            }
        }
        (delivered, failed)
    }

    /// The names that were opened since it was last asked, in their order.
    fn opened(&self) -> Vec<Name> {
        std::mem::take(&mut *self.opened.lock().unwrap()).into_iter().map(|(name, _)| name).collect()
    }
}

impl Extractor for Files {
    type Cursor = usize;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(Vec::new())
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({ "schema_version": "v0.2.0", "record_types": {} }))
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec!["issues".to_owned()])
    }

    fn page(&self, _: &Context, _: &Listing, cursor: Option<usize>) -> Result<Page<usize>, SourceError> {
        let at = cursor.unwrap_or(0);
        let mut page = if at + 1 < self.pages.len() { Page::more(at + 1) } else { Page::last() };
        page.push("issues", Record::new(format!("issue-{at}"), &json!({ "page": at }))?);
        for attachment in self.pages.get(at).into_iter().flatten() {
            page.push("attachments", attachment.to_record()?);
        }
        if let Some(odd) = &self.odd {
            page.push("attachments", Record::flat(odd)?);
        }
        Ok(page)
    }

    fn open_attachment(
        &self,
        _: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let name = name_of(attachment);
        let times = {
            let mut opened = self.opened.lock().unwrap();
            opened.push((name.clone(), self.clock.elapsed()));
            u32::try_from(opened.iter().filter(|(other, _)| *other == name).count()).unwrap()
        };
        let bytes = bytes_of(attachment);
        let length = bytes.len() as u64;
        let midway = bytes.len() / 2;
        let body = |end: usize, fails| {
            AttachmentBody::new(Bytes {
                bytes: bytes[..end].to_vec(),
                at: 0,
                fails,
                clock: self.clock.clone(),
                takes: self.read_takes,
                _open: Open::new(&self.streaming),
            })
        };
        let body = match self.how(&name) {
            How::RateLimited(limits) if times <= limits => {
                return Err(AttachmentError::RateLimited { after: self.rate_limit });
            }
            How::Temporary(failures) if times <= failures => return Err("the line is busy".into()),
            How::Gone => return Err(AttachmentError::Gone { reason: "404".into() }),
            How::Denied => return Err(AttachmentError::Denied { reason: "403".into() }),
            How::Panics => panic!("no such luck"),
            How::Known | How::RateLimited(_) | How::Temporary(_) => body(bytes.len(), false).length(length),
            How::Unknown => body(bytes.len(), false),
            How::Empty(true) => body(0, false).length(0),
            How::Empty(false) => body(0, false),
            How::Shorter => body(midway, false).length(length),
            How::Longer => body(bytes.len(), false).length(length - 1),
            How::Breaks => body(midway, true).length(length),
            How::Huge => body(bytes.len(), false).length(2 * 1024 * 1024 * 1024 + 1),
        };
        match &self.on_open {
            Some(on_open) => on_open(self, attachment, body),
            None => Ok(body),
        }
    }
}

/// The bytes of an attachment: the same for the same url.
fn bytes_of(attachment: &Attachment) -> Vec<u8> {
    let text = format!("{} of {} at {}", attachment.id, attachment.parent_id, attachment.url);
    let seed = text.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let mut chance = fastrand::Rng::with_seed(seed);
    // A few of them are more than what is copied at once.
    let length = if chance.u8(..20) == 0 { chance.usize(100_000..300_000) } else { chance.usize(2..3_000) };
    let mut bytes = text.into_bytes();
    bytes.extend(std::iter::repeat_with(|| chance.u8(..)).take(length));
    bytes
}

struct Bytes {
    bytes: Vec<u8>,
    at: usize,
    fails: bool,
    clock: VirtualClock,
    takes: Duration,
    _open: Open,
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.clock.advance(self.takes);
        let count = (&self.bytes[self.at..]).read(buffer)?;
        self.at += count;
        if count == 0 && self.fails { Err(io::Error::other("the line went dead")) } else { Ok(count) }
    }
}

fn attachment(number: usize, parent: usize) -> Attachment {
    let (id, parent) = (format!("A{number}"), format!("ISSUE-{parent}"));
    let mut attachment =
        Attachment::new(id, format!("https://files.example/{number}"), format!("{number}.bin"), parent);
    if number.is_multiple_of(3) {
        attachment.author_id = Some(format!("USER-{}", number % 7));
    }
    if number.is_multiple_of(5) {
        attachment.inline = Some(number.is_multiple_of(2));
    }
    attachment
}

/// So many attachments, on pages of so many.
fn pages(count: usize, page: usize) -> Vec<Vec<Attachment>> {
    let all: Vec<_> = (0..count).map(|number| attachment(number, number / 4)).collect();
    all.chunks(page).map(<[_]>::to_vec).collect()
}

// --- the oracle

/// What was delivered, by the files of a local Airdrop.
#[derive(Debug)]
struct Delivered {
    /// Each announced line, and the bytes of the artifact that it names.
    lines: Vec<(Value, Vec<u8>)>,
}

impl Delivered {
    /// Reads the messages after the first `skip`. An announced artifact that is not there or not confirmed, or that two
    /// messages name, or two lines, is an error; so is a confirmed one that nothing announces.
    fn read(dir: &Path, skip: usize) -> Result<Self, String> {
        let text = fs::read_to_string(dir.join("messages.jsonl")).map_err(|error| error.to_string())?;
        let confirmed: Vec<String> = fs::read_to_string(dir.join("confirmed.txt"))
            .map_err(|error| error.to_string())?
            .lines()
            .map(str::to_owned)
            .collect();
        let artifact = |id: &str| {
            if confirmed.iter().filter(|other| *other == id).count() != 1 {
                return Err(format!("{id} is announced, and not confirmed once"));
            }
            fs::read(dir.join("artifacts").join(id)).map_err(|error| format!("{id}: {error}"))
        };
        let mut announced = BTreeSet::new();
        let mut lines = Vec::new();
        for (at, message) in text.lines().enumerate() {
            let message: Value = serde_json::from_str(message).map_err(|error| error.to_string())?;
            for entry in crate::support::list(&message["event_data"]["artifacts"]) {
                let id = entry["id"].as_str().unwrap_or_default();
                let item_type = entry["item_type"].as_str().unwrap_or_default();
                if !announced.insert(id.to_owned()) {
                    return Err(format!("{id} is announced twice"));
                }
                if item_type != "ssor_attachment" {
                    continue;
                }
                let found = crate::support::lines(&artifact(id)?);
                if entry["item_count"] != found.len() {
                    return Err(format!("{id} has {} lines and is announced otherwise", found.len()));
                }
                for line in found {
                    let of = line["id"]["devrev"].as_str().unwrap_or_default().to_owned();
                    if !announced.insert(of.clone()) {
                        return Err(format!("{of} is named by two lines"));
                    }
                    let bytes = artifact(&of)?;
                    if at >= skip {
                        lines.push((line, bytes));
                    }
                }
            }
        }
        match confirmed.iter().find(|id| !announced.contains(*id)) {
            Some(id) => Err(format!("{id} is confirmed, and nothing announces it")),
            None => Ok(Self { lines }),
        }
    }

    /// Checks that these were delivered, each by one line, and no others.
    fn check(&self, expected: &BTreeMap<Name, Vec<u8>>) -> Result<(), String> {
        let mut left = expected.clone();
        for (line, bytes) in &self.lines {
            let text = |field: &str| line[field]["external"].as_str().unwrap_or_default().to_owned();
            let name = (text("id"), text("parent_id"));
            match left.remove(&name) {
                Some(expected) if expected == *bytes => {}
                Some(expected) => {
                    return Err(format!(
                        "{name:?} has {} bytes that are not its {}",
                        bytes.len(),
                        expected.len()
                    ));
                }
                None if expected.contains_key(&name) => return Err(format!("{name:?} is announced twice")),
                None => return Err(format!("{name:?} is not to be announced")),
            }
        }
        match left.keys().next() {
            Some(name) => Err(format!("{name:?} and {} others are missing", left.len() - 1)),
            None => Ok(()),
        }
    }
}

// --- the world

struct Fixture {
    dir: TempDir,
    clock: VirtualClock,
    airdrop: Local,
    serve: Serve,
    /// Each invocation has a disk of its own.
    diskless: bool,
    disks: AtomicUsize,
    batch_items: u32,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let airdrop = Local::open(dir.path().join("airdrop")).unwrap();
        Self {
            airdrop,
            dir,
            clock: VirtualClock::at("2026-01-02T12:00:00Z".parse().unwrap()),
            serve: Serve::new().attachments_at_once(10).attachment_tries(TRIES),
            diskless: false,
            disks: AtomicUsize::new(0),
            batch_items: 20,
        }
    }

    fn airdrop_dir(&self) -> PathBuf {
        self.dir.path().join("airdrop")
    }

    /// The store, as the next invocation finds it.
    fn next_store(&self) -> Store {
        let disks = self.disks.fetch_add(usize::from(self.diskless), Ordering::SeqCst);
        self.store(disks + usize::from(self.diskless))
    }

    fn store(&self, disk: usize) -> Store {
        let path = self.dir.path().join(format!("state-{disk}.redb"));
        Store::options().batch_items(self.batch_items).clock(self.clock.clone()).open(path).unwrap()
    }

    fn last_store(&self) -> Store {
        self.store(self.disks.load(Ordering::SeqCst))
    }

    fn unit(&self) -> SyncUnit {
        self.last_store().sync_unit(UNIT).unwrap()
    }

    /// A whole sync; how the attachments are in its end.
    fn sync(&self, source: &mut Files) -> (SyncReport, AttachmentCounts) {
        let mut counts = AttachmentCounts::default();
        let settings = SyncSettings::new(UNIT);
        let invoke = |event: &str| -> Result<(), BoxError> {
            let event = Event::from_json(event)?;
            counts = self.serve.serve(&self.next_store(), &self.airdrop, source, &event)?.attachments;
            Ok(())
        };
        let report = self.airdrop.sync(&settings, &self.clock, invoke, |_| {}).unwrap();
        assert_eq!(report.answers[&Phase::Attachments], "EXTRACTION_ATTACHMENTS_DONE");
        (report, counts)
    }

    fn event(&self, source: &mut Files, event_type: &str, run: &str, request: &str) -> Outcome {
        let event = crate::world::event_of(UNIT, event_type, run, request);
        self.serve.serve(&self.next_store(), &self.airdrop, source, &event).unwrap()
    }

    fn messages(&self) -> Vec<Value> {
        self.airdrop.messages().unwrap().map(Result::unwrap).collect()
    }

    fn check(&self, skip: usize, expected: &BTreeMap<Name, Vec<u8>>) {
        let delivered = Delivered::read(&self.airdrop_dir(), skip).unwrap();
        delivered.check(expected).unwrap();
    }

    fn failed(&self) -> BTreeMap<Name, (String, u32)> {
        let unit = self.unit();
        let failed = unit.failed_attachments().map(Result::unwrap);
        failed.map(|failed| (name_of(&failed.attachment), (failed.reason, failed.tries))).collect()
    }

    /// Checks that exactly these are listed as failed, for these reasons.
    fn check_failed(&self, expected: &Failures) {
        let found = self.failed();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, (reason, tries)) in expected {
            let (found, tried) = &found[name];
            assert!(found.contains(reason), "{name:?}: {found}, not {reason}");
            assert_eq!(tried, tries, "{name:?}: {found}");
        }
    }

    /// What the store looks like from outside is whole.
    fn check_store(&self) {
        let disk = self.disks.load(Ordering::SeqCst);
        let path = self.dir.path().join(format!("state-{disk}.redb"));
        let report = highwater::inspect::check(path).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

/// A source with `count` attachments, of which 30 % fail, each in another way.
fn in_every_way(clock: &VirtualClock, count: usize, seed: u64) -> Files {
    let mut source = Files::new(clock, pages(count, 9));
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut ways = vec![
        How::RateLimited(1),
        How::RateLimited(2),
        How::Gone,
        How::Denied,
        How::Panics,
        How::Empty(true),
        How::Empty(false),
        How::Shorter,
        How::Longer,
        How::Breaks,
        How::Huge,
    ];
    ways.extend((1..=9).map(How::Temporary));
    let mut names: Vec<_> = source.named().into_keys().collect();
    chance.shuffle(&mut names);
    let unlucky = names.len() * 3 / 10;
    for (at, name) in names.into_iter().enumerate() {
        let how = match at {
            at if at < unlucky => ways[at % ways.len()],
            at if at % 2 == 0 => How::Unknown,
            _ => How::Known,
        };
        source.hows.insert(name, how);
    }
    source
}

fn each_is_announced_or_listed(streams: usize, count: usize) {
    let mut fixture = Fixture::new();
    fixture.serve = fixture
        .serve
        .attachments_at_once(streams)
        .budget(Duration::from_secs(15))
        .hard_limit(Duration::from_secs(600));
    let mut source = in_every_way(&fixture.clock, count, 11);
    source.read_takes = Duration::from_secs(1);
    let (delivered, failed) = source.expected();
    assert!(failed.len() * 5 > count, "too few fail");

    let (report, counts) = fixture.sync(&mut source);
    fixture.check(0, &delivered);
    fixture.check_failed(&failed);
    let [queued, settled, given_up] = [count, delivered.len(), failed.len()].map(|count| count as u64);
    assert_eq!((counts.queued, counts.settled, counts.failed, counts.left()), (queued, settled, given_up, 0));
    assert_eq!(report.items["ssor_attachment"].records, settled);
    let said = |what: &str| fixture.messages().iter().filter(|message| message["event_type"] == what).count();
    // If 50 are streamed at once, one of them is always asked to wait before the budget runs out.
    assert!(streams == 50 || said("EXTRACTION_ATTACHMENTS_PROGRESS") > 0, "the budget never ran out");
    assert!(said("EXTRACTION_ATTACHMENTS_DELAY") > 0, "the source never asked for a delay");
    let most = source.streaming.most.load(Ordering::SeqCst);
    assert!((1..=streams).contains(&most), "{most} at once");
    fixture.check_store();

    // What failed is queued again, all but what is gone, and is there now.
    let unit = fixture.unit();
    let wanted = |failed: &FailedAttachment| failed.reason != "gone: 404";
    let gone: BTreeSet<Name> = failed
        .iter()
        .filter(|(_, (reason, _))| *reason == "gone: 404")
        .map(|(name, _)| name.clone())
        .collect();
    assert!(!gone.is_empty());
    assert_eq!(unit.requeue_failed(wanted).unwrap(), given_up - gone.len() as u64);
    drop(unit);
    fixture.check_failed(
        &failed
            .iter()
            .filter(|(name, _)| gone.contains(*name))
            .map(|(name, failure)| (name.clone(), *failure))
            .collect(),
    );
    let (named, seen) = (source.named(), fixture.messages().len());
    source.opened();
    source.pages = vec![Vec::new()];
    source.hows.clear();
    let (_, counts) = fixture.sync(&mut source);
    let again: BTreeMap<Name, Vec<u8>> = failed
        .keys()
        .filter(|name| !gone.contains(*name))
        .map(|name| (name.clone(), bytes_of(&named[name])))
        .collect();
    fixture.check(seen, &again);
    assert_eq!((counts.queued, counts.settled, counts.failed), (again.len() as u64, again.len() as u64, 0));
    assert_eq!(source.opened().len(), again.len());
    assert_eq!(fixture.failed().into_keys().collect::<BTreeSet<_>>(), gone);
    fixture.check_store();
}

#[test]
fn of_300_of_which_30_percent_fail_in_every_way_each_is_announced_once_or_listed() {
    each_is_announced_or_listed(10, 300);
}

#[test]
fn it_is_the_same_with_one_stream() {
    each_is_announced_or_listed(1, 90);
}

#[test]
fn it_is_the_same_with_50_streams() {
    each_is_announced_or_listed(50, 200);
}

#[test]
fn a_later_run_streams_what_changed_or_failed_and_nothing_else() {
    let fixture = Fixture::new();
    let mut source = Files::new(&fixture.clock, pages(40, 7));
    // Named on every page, and under another parent: two attachments.
    let (everywhere, elsewhere) = (attachment(1, 0), attachment(1, 99));
    for page in &mut source.pages {
        page.push(everywhere.clone());
        page.insert(0, elsewhere.clone());
    }
    source.hows.insert(name_of(&attachment(30, 7)), How::Gone);
    let (delivered, failed) = source.expected();
    assert_eq!(delivered.len(), 40);
    let (_, counts) = fixture.sync(&mut source);
    fixture.check(0, &delivered);
    fixture.check_failed(&failed);
    assert_eq!(counts.queued, 41);
    assert_eq!(source.opened().len(), 41, "one that several pages name is opened once");

    // The url, name or date of three has changed; a change of the author, for example, does not matter.
    let mut seen = fixture.messages().len();
    let mut changed = BTreeMap::new();
    for page in &mut source.pages {
        for attachment in page {
            match attachment.id.as_str() {
                "A10" => attachment.url += "?v=2",
                "A11" => attachment.file_name = "renamed.bin".into(),
                "A12" => attachment.modified_date = Some("2026-01-02T13:00:00Z".into()),
                "A13" => attachment.author_id = Some("another".into()),
                "A14" => attachment.inline = Some(true),
                "A30" => {}
                _ => continue,
            }
            if !["A13", "A14"].contains(&attachment.id.as_str()) {
                changed.insert(name_of(attachment), bytes_of(attachment));
            }
        }
    }
    // It failed, and is named again: it is tried again, unasked, and is there now.
    source.hows.clear();
    let (_, counts) = fixture.sync(&mut source);
    fixture.check(seen, &changed);
    assert_eq!((counts.queued, counts.settled, counts.failed), (4, 4, 0));
    assert_eq!(source.opened().into_iter().collect::<BTreeSet<_>>(), changed.keys().cloned().collect());
    fixture.check_failed(&BTreeMap::new());

    seen = fixture.messages().len();
    let (_, counts) = fixture.sync(&mut source);
    fixture.check(seen, &BTreeMap::new());
    assert_eq!((counts, source.opened().len()), (AttachmentCounts::default(), 0));
    fixture.check_store();
}

#[test]
fn no_stream_but_the_first_begins_after_the_soft_deadline() {
    for (streams, budget) in [(1, 0), (1, 100), (4, 100)] {
        let mut fixture = Fixture::new();
        fixture.serve = fixture
            .serve
            .attachments_at_once(streams)
            .budget(Duration::from_secs(budget))
            .hard_limit(Duration::from_secs(10_000));
        let mut source = Files::new(&fixture.clock, pages(40, 50));
        source.read_takes = Duration::from_secs(15);
        fixture.event(&mut source, DATA, "run", "data");
        let mut event_type = ATTACHMENTS;
        for invocation in 0.. {
            let started = fixture.clock.elapsed();
            let outcome = fixture.event(&mut source, event_type, "run", &format!("{invocation}"));
            let opened = std::mem::take(&mut *source.opened.lock().unwrap());
            let late = opened.iter().skip(1);
            let late =
                late.filter(|(_, at)| at.saturating_sub(started) >= Duration::from_secs(budget)).count();
            // These were begun in time, but their threads were slower than the reads of the others.
            assert!(late < streams, "{late} streams began after the deadline");
            // Once all are streamed, there may be only confirms left.
            assert!(!opened.is_empty() || outcome.kind == OutcomeKind::Done, "no progress");
            assert!(budget > 0 || opened.len() <= 1);
            event_type = ATTACHMENTS_ON;
            if outcome.kind == OutcomeKind::Done {
                assert!(invocation > 5, "the budget never ran out");
                break;
            }
            assert_eq!(outcome.kind, OutcomeKind::Progress);
        }
        fixture.check(0, &source.expected().0);
    }
}

/// A body without an end. Once so many were opened and are read, each read takes a while.
struct Endless {
    clock: VirtualClock,
    streaming: Arc<Streaming>,
    others: usize,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Streaming { now, in_all, .. } = self.streaming.as_ref();
        while in_all.load(Ordering::SeqCst) < self.others || now.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        self.clock.advance(Duration::from_secs(7));
        buffer.fill(0);
        Ok(buffer.len().min(10))
    }
}

#[test]
fn a_stream_without_end_is_aborted_before_the_hard_limit_costs_nothing_settled_and_is_given_up_in_the_end() {
    let (soft, hard) = (Duration::from_secs(100), Duration::from_secs(200));
    let mut fixture = Fixture::new();
    fixture.serve = fixture.serve.attachments_at_once(4).budget(soft).hard_limit(hard);
    let mut source = Files::new(&fixture.clock, pages(12, 50));
    source.on_open = Some(Box::new(|files, attachment, body| {
        if attachment.id != "A3" {
            return Ok(body);
        }
        drop(body);
        let (clock, streaming) = (files.clock.clone(), Arc::clone(&files.streaming));
        Ok(AttachmentBody::new(Endless { clock, streaming, others: files.named().len() }))
    }));
    let serve = |event_type: &str, request: &str, source: &mut Files| {
        let event = crate::world::event_of(UNIT, event_type, "run", request);
        fixture.serve.serve(&fixture.next_store(), &fixture.airdrop, source, &event).unwrap()
    };
    serve(DATA, "data", &mut source);
    let mut event_type = ATTACHMENTS;
    let mut invocations = 0;
    loop {
        let started = fixture.clock.elapsed();
        invocations += 1;
        let outcome = serve(event_type, &format!("{invocations}"), &mut source);
        let took = fixture.clock.elapsed().saturating_sub(started);
        assert!(took < hard, "it took {took:?}");
        event_type = ATTACHMENTS_ON;
        if outcome.kind == OutcomeKind::Done {
            break;
        }
        // Only the endless one has a short wait left before it is tried again.
        let goes_on = [OutcomeKind::Progress, OutcomeKind::Delay].contains(&outcome.kind);
        assert!(goes_on, "{:?}", outcome.message);
        assert!(took >= soft, "it ended early, after {took:?}");
        fixture.clock.advance(Duration::from_secs(60));
        assert!(invocations < 20, "it never ends");
    }
    let mut opened = BTreeMap::<Name, u32>::new();
    for name in source.opened() {
        *opened.entry(name).or_default() += 1;
    }
    let endless = name_of(&attachment(3, 0));
    assert_eq!(opened.remove(&endless), Some(TRIES));
    assert!(opened.values().all(|times| *times == 1), "what was settled was streamed again: {opened:?}");
    let mut expected = source.expected().0;
    expected.remove(&endless);
    fixture.check(0, &expected);
    fixture.check_failed(&BTreeMap::from([(endless, ("the invocation ended before it did", TRIES))]));
}

#[test]
fn a_rate_limited_stream_makes_delay_by_the_longest_wait_and_an_early_continue_waits_on() {
    let mut fixture = Fixture::new();
    fixture.serve = fixture.serve.attachments_at_once(4);
    let mut source = Files::new(&fixture.clock, pages(12, 50));
    source.on_open = Some(Box::new(|files, attachment, body| {
        let after = match attachment.id.as_str() {
            "A0" => Duration::from_secs(30),
            "A1" => Duration::from_millis(90_200),
            "A2" => Duration::from_secs(60),
            _ => return Ok(body),
        };
        let opened = files.opened.lock().unwrap();
        let first = opened.iter().filter(|(name, _)| name.0 == attachment.id).count() == 1;
        if first { Err(AttachmentError::RateLimited { after }) } else { Ok(body) }
    }));
    let mut number = 0;
    let mut serve = |event_type: &str, source: &mut Files| {
        number += 1;
        let event = crate::world::event_of(UNIT, event_type, "run", &number.to_string());
        let outcome = fixture.serve.serve(&fixture.next_store(), &fixture.airdrop, source, &event).unwrap();
        let delay = fixture.messages().pop().unwrap()["event_data"]["delay"].as_u64();
        (outcome.kind, delay, source.opened.lock().unwrap().len())
    };
    serve(DATA, &mut source);
    // The first four begin at once; what was asked for counts against none of them.
    let (kind, delay, opened) = serve(ATTACHMENTS, &mut source);
    assert_eq!((kind, delay), (OutcomeKind::Delay, Some(91)));
    assert!((4..12).contains(&opened), "{opened} were opened");
    fixture.clock.advance(Duration::from_secs(40));
    assert_eq!(serve(ATTACHMENTS_ON, &mut source), (OutcomeKind::Delay, Some(51), opened));
    fixture.clock.advance(Duration::from_secs(51));
    let (kind, _, opened) = serve(ATTACHMENTS_ON, &mut source);
    assert_eq!((kind, opened), (OutcomeKind::Done, 15));
    fixture.check(0, &source.expected().0);
    assert!(fixture.failed().is_empty());
}

/// What the platform was told of a stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    file_name: String,
    content_type: String,
    length_bytes: Option<u64>,
}

/// A local Airdrop that remembers what it was told, and may ask for a long wait.
struct Recorder<'a> {
    airdrop: &'a Local,
    told: Mutex<Vec<Told>>,
    busy: Mutex<Vec<&'static str>>,
    /// How many downloads end early.
    cut: AtomicUsize,
    /// The id of the first batch, and how many attachments are given it.
    first: Mutex<Option<ArtifactId>>,
    repeats: AtomicUsize,
}

impl<'a> Recorder<'a> {
    fn new(airdrop: &'a Local) -> Self {
        Self {
            airdrop,
            told: Mutex::default(),
            busy: Mutex::default(),
            cut: AtomicUsize::default(),
            first: Mutex::default(),
            repeats: AtomicUsize::default(),
        }
    }
}

impl Platform for Recorder<'_> {
    pass_on!(airdrop: confirm, send, worker_state, save_worker_state);

    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        if let Body::Stream { length_bytes, .. } = &upload.body {
            let mut busy = self.busy.lock().unwrap();
            if let Some(at) = busy.iter().position(|name| *name == upload.file_name) {
                busy.remove(at);
                let (fate, after) = (Fate::NotApplied, Some(Duration::from_secs(3_600)));
                return Err(PlatformError::Retry { fate, after, reason: "too busy".into() });
            }
            self.told.lock().unwrap().push(Told {
                file_name: upload.file_name.to_owned(),
                content_type: upload.content_type.to_owned(),
                length_bytes: *length_bytes,
            });
        }
        let is_batch = matches!(upload.body, Body::Batch(_));
        let given = self.airdrop.upload(upload)?;
        let first = self.first.lock().unwrap().get_or_insert_with(|| given.clone()).clone();
        let left = |left: usize| left.checked_sub(1).filter(|_| !is_batch);
        let repeats = self.repeats.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok();
        Ok(if repeats { first } else { given })
    }
    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        let mut bytes = self.airdrop.download(artifact)?;
        if self.cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            bytes.truncate(bytes.len() / 2);
        }
        Ok(bytes)
    }
}

/// A body without a length ends where the connection does, also where that broke. It once was an ERROR at the first.
#[test]
fn an_artifact_that_was_cut_on_its_way_back_is_fetched_again() {
    for (cut, kind) in [(2, OutcomeKind::Done), (100, OutcomeKind::Error)] {
        let mut fixture = Fixture::new();
        fixture.diskless = true;
        fixture.serve = fixture.serve.checkpoints().attachments_at_once(1);
        let mut source = Files::new(&fixture.clock, pages(2, 2));
        assert_eq!(fixture.event(&mut source, DATA, "run", "data").kind, OutcomeKind::Done);
        let mut recorder = Recorder::new(&fixture.airdrop);
        recorder.cut = AtomicUsize::new(cut);
        let event = crate::world::event_of(UNIT, "EXTRACTION_ATTACHMENTS_START", "run", "files");
        let outcome = fixture.serve.serve(&fixture.next_store(), &recorder, &source, &event).unwrap();
        assert_eq!(outcome.kind, kind, "{outcome:?}");
        if kind == OutcomeKind::Done {
            assert_eq!(recorder.cut.into_inner(), 0);
            fixture.check(0, &source.expected().0);
        } else {
            assert!(outcome.message.unwrap().contains("cannot be read"));
        }
    }
}

#[test]
fn the_platform_is_told_name_and_type_and_each_line_is_as_the_protocol_has_it() {
    let mut fixture = Fixture::new();
    fixture.serve = fixture.serve.attachments_at_once(2);
    let mut all: Vec<_> = (0..4).map(|number| Attachment::new(format!("A{number}"), "u", "", "P")).collect();
    for (attachment, file_name) in all.iter_mut().zip(["a b.png", "\u{e9}.html", "c", "d.txt"]) {
        attachment.file_name = file_name.into();
    }
    (all[0].author_id, all[0].inline) = (Some("U1".into()), Some(true));
    (all[1].content_type, all[1].inline) = (Some("text/plain".into()), Some(false));
    (all[2].content_type, all[2].author_id) = (Some("image/png".into()), Some("U2".into()));
    all[2].grand_parent_id = Some("G".into());
    let lengths: Vec<_> = all.iter().map(|attachment| bytes_of(attachment).len() as u64).collect();
    let mut source = Files::new(&fixture.clock, vec![all]);
    source.on_open = Some(Box::new(|_, attachment, body| {
        Ok(if attachment.id == "A1" { body.content_type("text/html") } else { body })
    }));
    source.hows.insert(("A3".into(), "P".into()), How::Unknown);
    let recorder = Recorder::new(&fixture.airdrop);
    for (event_type, request) in [(DATA, "1"), (ATTACHMENTS, "2")] {
        let event = crate::world::event_of(UNIT, event_type, "run", request);
        let outcome = fixture.serve.serve(&fixture.next_store(), &recorder, &source, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done);
    }
    let mut told = recorder.told.into_inner().unwrap();
    told.sort();
    let of = |file_name: &str, content_type: &str, length_bytes| Told {
        file_name: file_name.into(),
        content_type: content_type.into(),
        length_bytes,
    };
    // What the source says when it is opened goes before what it said when it named it.
    let expected = [
        of("a b.png", "application/octet-stream", Some(lengths[0])),
        of("c", "image/png", Some(lengths[2])),
        of("d.txt", "application/octet-stream", None),
        of("\u{e9}.html", "text/html", Some(lengths[1])),
    ];
    assert_eq!(told, expected);

    let delivered = Delivered::read(&fixture.airdrop_dir(), 0).unwrap();
    delivered.check(&source.expected().0).unwrap();
    let mut lines: Vec<_> = delivered.lines.iter().map(|(line, _)| line.clone()).collect();
    lines.sort_by_key(|line| line["id"]["external"].to_string());
    let devrev = |at: usize| lines[at]["id"]["devrev"].clone();
    let expected = [
        json!({"id": {"devrev": devrev(0), "external": "A0"}, "parent_id": {"external": "P"},
               "actor_id": {"external": "U1"}, "inline": true}),
        json!({"id": {"devrev": devrev(1), "external": "A1"}, "parent_id": {"external": "P"}, "inline": false}),
        json!({"id": {"devrev": devrev(2), "external": "A2"}, "parent_id": {"external": "P"},
               "actor_id": {"external": "U2"}}),
        json!({"id": {"devrev": devrev(3), "external": "A3"}, "parent_id": {"external": "P"}}),
    ];
    // As text, so that no field more, and none that is null, is there.
    let text = |lines: &[Value]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&lines), text(&expected));
    let metadata: Vec<_> = fixture.messages()[0]["event_data"]["artifacts"].as_array().unwrap().clone();
    let metadata = metadata.iter().find(|entry| entry["item_type"] == "attachments").unwrap();
    let id = metadata["id"].as_str().unwrap();
    let first =
        &crate::support::lines(&fs::read(fixture.airdrop_dir().join("artifacts").join(id)).unwrap())[0];
    let expected = json!({"id": "A0", "url": "u", "file_name": "a b.png", "parent_id": "P", "author_id": "U1",
                          "inline": true});
    assert_eq!(*first, expected);
}

/// A wait longer than an invocation is the platform's to wait out, not a reason to come back at once.
#[test]
fn what_waits_for_longer_than_the_invocation_makes_delay() {
    let fixture = Fixture::new();
    let mut source = Files::new(&fixture.clock, pages(5, 50));
    let recorder = Recorder { busy: Mutex::new(vec!["3.bin"]), ..Recorder::new(&fixture.airdrop) };
    let mut number = 0;
    let mut serve = |event_type: &str, source: &mut Files| {
        number += 1;
        let event = crate::world::event_of(UNIT, event_type, "run", &number.to_string());
        let outcome = fixture.serve.serve(&fixture.next_store(), &recorder, source, &event).unwrap();
        (outcome.kind, fixture.messages().pop().unwrap()["event_data"]["delay"].as_u64())
    };
    serve(DATA, &mut source);
    let (kind, delay) = serve(ATTACHMENTS, &mut source);
    assert_eq!(kind, OutcomeKind::Delay);
    assert!((3_500..=3_600).contains(&delay.unwrap()), "{delay:?}");
    fixture.clock.advance(Duration::from_secs(3_600));
    assert_eq!(serve(ATTACHMENTS_ON, &mut source).0, OutcomeKind::Done);
    fixture.check(0, &source.expected().0);
}

/// However many of them fail and wait: a checkpoint has room for so many, and so has memory.
#[test]
fn no_more_than_a_thousand_attachments_are_begun_and_not_settled() {
    const COUNT: usize = 1_030;
    let world = crate::world::World::new(2_000);
    let mut source = crate::world::Source::new(|_: &Context, _: &str, _: Option<u32>| {
        let mut page = Page::last();
        for number in 0..COUNT {
            page.push("attachments", attachment(number, 0).to_record()?);
        }
        Ok(page)
    });
    let opened = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&opened);
    source.open = Some(Box::new(move |attachment: &Attachment| {
        let mut opened = tell.lock().unwrap();
        let first = !opened.contains(&attachment.id);
        opened.push(attachment.id.clone());
        if first { Err("not yet".into()) } else { Ok(AttachmentBody::new(&b"bytes"[..])) }
    }));
    for (event_type, request) in [(DATA, "1"), (ATTACHMENTS, "2")] {
        let outcome = world.serve(&mut source, &crate::world::event(event_type, "run", request)).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Done);
    }
    let opened = opened.lock().unwrap();
    let again = (0..opened.len()).find(|&at| opened[..at].contains(&opened[at]));
    assert_eq!((again, opened.len()), (Some(1_000), 2 * COUNT));
    assert_eq!(world.airdrop.lines_of("run", "ssor_attachment").len(), COUNT);
}

/// A platform gives attachments the id of a batch that was announced. It is not accepted, and each is uploaded again.
#[test]
fn an_attachment_that_is_given_the_id_of_a_batch_is_uploaded_anew() {
    for diskless in [false, true] {
        for (repeats, kind) in [(3, OutcomeKind::Done), (100, OutcomeKind::Error)] {
            let mut fixture = Fixture::new();
            fixture.diskless = diskless;
            fixture.serve = fixture.serve.attachments_at_once(1);
            if diskless {
                fixture.serve = fixture.serve.checkpoints();
            }
            let source = Files::new(&fixture.clock, pages(5, 50));
            let recorder = Recorder::new(&fixture.airdrop);
            let serve = |event_type: &str, request: &str| {
                let event = crate::world::event_of(UNIT, event_type, "run", request);
                fixture.serve.serve(&fixture.next_store(), &recorder, &source, &event).unwrap()
            };
            assert_eq!(serve(DATA, "1").kind, OutcomeKind::Done);
            recorder.repeats.store(repeats, Ordering::SeqCst);
            let outcome = serve(ATTACHMENTS, "2");
            assert_eq!(outcome.kind, kind, "{outcome:?}");
            let left = recorder.repeats.swap(0, Ordering::SeqCst);
            if kind == OutcomeKind::Error {
                assert_eq!(repeats - left, 4, "once, and three times anew");
                let text = outcome.message.unwrap();
                let first = recorder.first.lock().unwrap().clone().unwrap();
                assert!(text.contains(first.as_str()) && text.contains("used before"), "{text}");
                assert_eq!(serve(ATTACHMENTS_ON, "3").kind, OutcomeKind::Done);
            } else {
                assert_eq!(left, 0);
            }
            fixture.check(0, &source.expected().0);
            assert!(fixture.failed().is_empty(), "it is no fault of the attachment's");
        }
    }
}

#[test]
fn deleting_the_attachments_state_forgets_them_and_twice_is_once() {
    let fixture = Fixture::new();
    let mut source = Files::new(&fixture.clock, pages(10, 4));
    source.hows.insert(name_of(&attachment(2, 0)), How::Gone);
    fixture.sync(&mut source);
    assert_eq!(fixture.failed().len(), 1);
    for request in ["a", "b"] {
        let outcome = fixture.event(&mut source, "EXTRACTION_ATTACHMENTS_DELETE", "delete", request);
        assert_eq!(outcome.event_type, "EXTRACTION_ATTACHMENTS_DELETE_DONE");
        assert!(fixture.failed().is_empty());
        fixture.check_store();
    }
    // All of them are new again.
    let seen = fixture.messages().len();
    source.hows.clear();
    source.opened();
    fixture.sync(&mut source);
    fixture.check(seen, &source.expected().0);
    assert_eq!(source.opened().len(), 10);
    fixture.check_store();
}

#[test]
fn deleting_the_attachments_state_of_a_worker_without_a_disk_leaves_none_of_it_with_the_platform() {
    let mut fixture = Fixture::new();
    fixture.diskless = true;
    fixture.serve = fixture.serve.checkpoints();
    let mut source = Files::new(&fixture.clock, pages(10, 4));
    let gone = name_of(&attachment(2, 0));
    source.hows.insert(gone.clone(), How::Gone);
    fixture.sync(&mut source);
    let kept = |fixture: &Fixture| {
        let state = fixture.airdrop.worker_state().unwrap().unwrap().state.unwrap();
        crate::world::checkpoint(&serde_json::from_str(&state).unwrap()).to_string()
    };
    assert!(kept(&fixture).contains(&gone.0), "a check that cannot fail is none");
    for request in ["a", "b"] {
        fixture.event(&mut source, "EXTRACTION_ATTACHMENTS_DELETE", "delete", request);
        assert!(!kept(&fixture).contains(&gone.0), "{}", kept(&fixture));
    }
    source.hows.clear();
    let seen = fixture.messages().len();
    fixture.sync(&mut source);
    fixture.check(seen, &source.expected().0);
}

#[test]
fn deleting_the_attachments_state_in_the_middle_of_them_leaves_what_is_settled_to_be_announced() {
    let mut fixture = Fixture::new();
    fixture.serve = fixture.serve.attachments_at_once(1).budget(Duration::from_secs(4));
    let mut source = Files::new(&fixture.clock, pages(10, 4));
    source.read_takes = Duration::from_secs(1);
    fixture.event(&mut source, DATA, "run", "1");
    let mut request = 1;
    let mut kind = OutcomeKind::Progress;
    while kind == OutcomeKind::Progress
        && fixture.messages().iter().all(|message| message["event_type"] != "EXTRACTION_DATA_DONE")
    {
        request += 1;
        kind = fixture.event(&mut source, "EXTRACTION_DATA_CONTINUE", "run", &request.to_string()).kind;
    }
    assert_eq!(fixture.event(&mut source, ATTACHMENTS, "run", "a").kind, OutcomeKind::Progress);
    let opened = source.opened();
    assert!((1..10).contains(&opened.len()));
    fixture.event(&mut source, "EXTRACTION_ATTACHMENTS_DELETE", "run", "b");
    fixture.check_store();
    assert_eq!(fixture.event(&mut source, ATTACHMENTS_ON, "run", "c").kind, OutcomeKind::Done);
    fixture.check_store();
    let (all, _) = source.expected();
    fixture.check(0, &all.into_iter().filter(|(name, _)| opened.contains(name)).collect());
}

#[test]
fn without_a_disk_the_queue_is_made_again_and_each_is_announced_once() {
    let mut fixture = Fixture::new();
    fixture.diskless = true;
    fixture.batch_items = 6;
    fixture.serve = fixture
        .serve
        .checkpoints()
        .attachments_at_once(3)
        .budget(Duration::from_secs(10))
        .hard_limit(Duration::from_secs(300));
    let mut source = in_every_way(&fixture.clock, 90, 3);
    // Named twice on one page, and on others of other artifacts.
    let twice = [source.pages[0][0].clone(), source.pages[1][1].clone(), source.pages[9][0].clone()];
    source.pages[0].push(twice[0].clone());
    source.pages[5].push(twice[0].clone());
    source.pages[8].insert(0, twice[1].clone());
    source.pages[2].insert(0, twice[2].clone());
    source.read_takes = Duration::from_secs(1);
    let (delivered, failed) = source.expected();
    let (report, counts) = fixture.sync(&mut source);
    assert!(report.invocations[&Phase::Attachments] > 6, "{:?}", report.invocations);
    assert!(fixture.disks.load(Ordering::SeqCst) > 8);
    fixture.check(0, &delivered);
    fixture.check_failed(&failed);
    assert_eq!((counts.settled, counts.failed), (delivered.len() as u64, failed.len() as u64));
    assert_eq!((counts.queued, counts.left()), (90, 0));
}

/// A checkpoint holds the lines of what is queued again. All of them at once were over its limit, in this run and in
/// every later one.
#[test]
fn what_is_queued_again_fits_into_a_checkpoint_whatever_its_lines_are() {
    let mut fixture = Fixture::new();
    fixture.serve = fixture.serve.checkpoints();
    let mut pages = pages(201, 20);
    for (number, file) in (0..).zip(pages.iter_mut().flatten()) {
        let signature = if number == 7 { 200_000 } else { 5_000 };
        file.url = format!("{}?{}", file.url, crate::world::letters(signature, number));
    }
    let huge = name_of(&pages[0][7]);
    let mut source = Files::new(&fixture.clock, pages);
    let named = source.named();
    source.hows.extend(named.keys().map(|name| (name.clone(), How::Gone)));
    fixture.sync(&mut source);
    assert_eq!(fixture.failed().len(), 201);
    assert_eq!(fixture.unit().requeue_failed(|_| true).unwrap(), 201);

    let seen = fixture.messages().len();
    source.pages = vec![Vec::new()];
    source.hows.clear();
    let (_, counts) = fixture.sync(&mut source);
    let again = named.iter().filter(|(name, _)| **name != huge);
    fixture.check(seen, &again.map(|(name, file)| (name.clone(), bytes_of(file))).collect());
    assert_eq!((counts.queued, counts.settled, counts.failed), (200, 200, 0));
    fixture.check_failed(&[(huge, ("may take 100000", 1))].into());
    fixture.check_store();
}

/// A local Airdrop that takes its time to hand an artifact out.
struct SlowDownloads<'a> {
    airdrop: &'a Local,
    clock: VirtualClock,
    takes: Duration,
}

impl Platform for SlowDownloads<'_> {
    pass_on!(airdrop: upload, confirm, send, worker_state, save_worker_state);

    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        self.clock.advance(self.takes);
        self.airdrop.download(artifact)
    }
}

/// A run of 40 artifacts that name attachments. One invocation has the time to read 14 of them.
fn long_queue() -> (Fixture, Files) {
    let mut fixture = Fixture::new();
    fixture.diskless = true;
    fixture.batch_items = 2;
    let (budget, hard) = (Duration::from_secs(200), Duration::from_secs(300));
    fixture.serve = fixture.serve.checkpoints().budget(budget).hard_limit(hard);
    let mut source = Files::new(&fixture.clock, pages(80, 2));
    assert_eq!(fixture.event(&mut source, DATA, "run", "data").kind, OutcomeKind::Done);
    (fixture, source)
}

/// Serves one event of the attachments phase, each download taking so long.
fn with_downloads_of(fixture: &Fixture, source: &Files, number: usize, takes: u64) -> Outcome {
    let platform = SlowDownloads {
        airdrop: &fixture.airdrop,
        clock: fixture.clock.clone(),
        takes: Duration::from_secs(takes),
    };
    let event_type =
        if number == 0 { "EXTRACTION_ATTACHMENTS_START" } else { "EXTRACTION_ATTACHMENTS_CONTINUE" };
    let event = crate::world::event_of(UNIT, event_type, "run", &format!("files-{number}"));
    fixture.serve.serve(&fixture.next_store(), &platform, source, &event).unwrap()
}

/// It once answered PROGRESS with nothing done, for ever: each invocation made its queue again from the beginning.
#[test]
fn a_queue_that_no_invocation_has_the_time_to_make_again_is_told_and_goes_on_where_there_is_time() {
    let (fixture, source) = long_queue();
    for number in 0..2 {
        assert_eq!(with_downloads_of(&fixture, &source, number, 20).kind, OutcomeKind::Progress);
    }
    // An invocation that gets further than all before starts the count again.
    assert_eq!(with_downloads_of(&fixture, &source, 2, 10).kind, OutcomeKind::Progress);
    assert_eq!(with_downloads_of(&fixture, &source, 3, 20).kind, OutcomeKind::Progress);
    for number in 4..6 {
        let outcome = with_downloads_of(&fixture, &source, number, 20);
        assert_eq!(outcome.kind, OutcomeKind::Error, "{outcome:?}");
        let message = outcome.message.unwrap();
        let parts = ["14 of 40 artifacts", "in 4m 40s", "Keep the store on a disk that outlives", UNIT];
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    assert!(source.opened.lock().unwrap().is_empty());
    // The queue is complete, but no attachment may begin any more. This also starts the count again in the next.
    let outcome = with_downloads_of(&fixture, &source, 6, 7);
    assert_eq!((outcome.kind, outcome.attachments.queued), (OutcomeKind::Progress, 80));
    let done =
        (7..20).any(|number| with_downloads_of(&fixture, &source, number, 1).kind == OutcomeKind::Done);
    assert!(done);
    fixture.check(0, &source.expected().0);
    fixture.check_failed(&BTreeMap::new());
}

#[test]
fn a_queue_that_is_made_again_on_a_disk_that_stays_takes_as_many_invocations_as_it_needs() {
    let (mut fixture, source) = long_queue();
    // This one is empty, and stays.
    fixture.disks.fetch_add(1, Ordering::SeqCst);
    fixture.diskless = false;
    let kinds: Vec<OutcomeKind> = (0..9)
        .map(|number| with_downloads_of(&fixture, &source, number, 75).kind)
        .take_while(|kind| *kind != OutcomeKind::Done)
        .collect();
    // Four downloads each.
    assert_eq!(kinds, vec![OutcomeKind::Progress; 9]);
    assert!(source.opened.lock().unwrap().is_empty());
    let done =
        (9..20).any(|number| with_downloads_of(&fixture, &source, number, 75).kind == OutcomeKind::Done);
    assert!(done);
    fixture.check(0, &source.expected().0);
}

/// Each life waits longer than its budget before it takes over, and has its queue to make again then. It once answered
/// PROGRESS with nothing done, for ever.
#[test]
fn a_takeover_that_waits_longer_than_the_budget_leaves_each_invocation_its_first_attachment() {
    let mut fixture = Fixture::new();
    fixture.diskless = true;
    let wait = Duration::from_secs(40);
    fixture.serve = fixture
        .serve
        .checkpoints()
        .attachments_at_once(1)
        .budget(Duration::from_secs(7))
        .hard_limit(Duration::from_secs(300))
        .settle_after_takeover(wait);
    let mut source = Files::new(&fixture.clock, pages(5, 2));
    let until_done = |source: &mut Files, phase: &str| {
        (0..10).find(|request| {
            let step = if *request == 0 { "START" } else { "CONTINUE" };
            let event_type = format!("EXTRACTION_{phase}_{step}");
            fixture.event(source, &event_type, "run", &format!("{phase}-{request}")).kind == OutcomeKind::Done
        })
    };
    until_done(&mut source, "DATA").expect("the data phase ends");
    let before = fixture.clock.elapsed();
    let invocations = until_done(&mut source, "ATTACHMENTS").expect("the attachments phase ends") + 1;
    assert_eq!(invocations, 5 + 1, "one attachment each, and one that finds nothing left");
    assert!(fixture.clock.elapsed() >= before + wait * 5, "each waited");
    fixture.check(0, &source.expected().0);
}

/// A stream that begins when it would have to be aborted at once had no chance: five such invocations, and the
/// attachment would be given up.
#[test]
fn an_invocation_without_time_for_a_stream_counts_against_no_attachment() {
    let mut fixture = Fixture::new();
    fixture.diskless = true;
    let waiting = |serve: Serve, wait: u64| {
        serve
            .checkpoints()
            .hard_limit(Duration::from_secs(300))
            .settle_after_takeover(Duration::from_secs(wait))
    };
    let plain = fixture.serve.clone().budget(Duration::from_secs(7));
    fixture.serve = waiting(plain.clone(), 0);
    let mut source = Files::new(&fixture.clock, pages(2, 2));
    assert_eq!(fixture.event(&mut source, DATA, "run", "data").kind, OutcomeKind::Done);
    fixture.serve = waiting(plain.clone(), 250);
    for number in 0..8 {
        let event_type =
            if number == 0 { "EXTRACTION_ATTACHMENTS_START" } else { "EXTRACTION_ATTACHMENTS_CONTINUE" };
        let outcome = fixture.event(&mut source, event_type, "run", &format!("late-{number}"));
        assert_eq!((outcome.kind, outcome.attachments.failed), (OutcomeKind::Progress, 0));
    }
    assert!(source.opened.lock().unwrap().is_empty());
    fixture.serve = waiting(plain, 0);
    let done = (0..5).any(|number| {
        let event_type = "EXTRACTION_ATTACHMENTS_CONTINUE";
        fixture.event(&mut source, event_type, "run", &format!("timely-{number}")).kind == OutcomeKind::Done
    });
    assert!(done);
    fixture.check(0, &source.expected().0);
}

#[test]
fn a_page_with_a_record_that_is_no_attachment_is_refused_whole() {
    for (record, expected) in [
        (json!({"id": "A9", "url": "secret-url", "file_name": "f"}), ["A9", "`parent_id`"]),
        (json!({"id": "A9", "url": 7, "file_name": "f", "parent_id": "P"}), ["A9", "`url`"]),
        (json!({"id": "A9", "data": {"url": "secret-url"}}), ["A9", "not under `data`"]),
    ] {
        let fixture = Fixture::new();
        let mut source = Files::new(&fixture.clock, pages(3, 5));
        source.odd = Some(record);
        let event = crate::world::event_of(UNIT, DATA, "run", "1");
        let outcome = fixture.serve.serve(&fixture.next_store(), &fixture.airdrop, &source, &event).unwrap();
        assert_eq!(outcome.kind, OutcomeKind::Error);
        let message = fixture.messages().pop().unwrap();
        let error = message["event_data"]["error"]["message"].as_str().unwrap();
        assert!(expected.iter().all(|text| error.contains(text)), "{error}");
        assert!(!error.contains("secret-url"), "{error}");
        assert!(fixture.airdrop.artifacts().unwrap().is_empty(), "something of the page was staged");
        assert_eq!(outcome.attachments, AttachmentCounts::default());
        fixture.check_store();
        // Once it is right, the page is staged as a whole.
        source.odd = None;
        let outcome = fixture.event(&mut source, "EXTRACTION_DATA_CONTINUE", "run", "2");
        assert_eq!((outcome.kind, outcome.attachments.queued), (OutcomeKind::Done, 3));
    }
}

#[test]
fn the_oracle_reports_a_line_twice_a_line_missing_and_bytes_of_another() {
    let fixture = Fixture::new();
    let mut source = Files::new(&fixture.clock, pages(6, 10));
    fixture.sync(&mut source);
    let expected = source.expected().0;
    fixture.check(0, &expected);
    let dir = fixture.airdrop_dir();
    let messages = fs::read_to_string(dir.join("messages.jsonl")).unwrap();
    let last: Value = serde_json::from_str(messages.lines().last().unwrap()).unwrap();
    let entry = last["event_data"]["artifacts"][0].clone();
    let id = entry["id"].as_str().unwrap();
    let path = dir.join("artifacts").join(id);
    let whole = fs::read(&path).unwrap();
    let lines = crate::support::lines(&whole);
    assert_eq!(lines.len(), 6);
    let doctor = |lines: &[Value]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        for line in lines {
            io::Write::write_all(&mut encoder, format!("{line}\n").as_bytes()).unwrap();
        }
        fs::write(&path, encoder.finish().unwrap()).unwrap();
        let announced = messages.replace(&entry.to_string(), &{
            let mut entry = entry.clone();
            entry["item_count"] = lines.len().into();
            entry.to_string()
        });
        fs::write(dir.join("messages.jsonl"), announced).unwrap();
        Delivered::read(&dir, 0).and_then(|delivered| delivered.check(&expected)).unwrap_err()
    };
    let twice = [&lines[..], &lines[2..3]].concat();
    assert!(doctor(&twice).contains("is named by two lines"));
    assert!(doctor(&lines[1..]).contains("nothing announces it"));
    let mut other = lines.clone();
    other[0]["id"]["external"] = other[1]["id"]["external"].clone();
    other[0]["parent_id"] = other[1]["parent_id"].clone();
    assert!(doctor(&other).contains("bytes that are not its"));
    // The same bytes, uploaded and confirmed again, and announced by a line of their own.
    let again = fixture.airdrop.upload(Upload {
        file_name: "f",
        content_type: "t",
        body: Body::Batch(&expected[&name_of(&attachment(0, 0))]),
    });
    let again = again.unwrap();
    fixture.airdrop.confirm(&again).unwrap();
    let mut other = lines[0].clone();
    let of_first = lines.iter().find(|line| line["id"]["external"] == "A0").unwrap();
    other.clone_from(of_first);
    other["id"]["devrev"] = again.as_str().into();
    assert!(doctor(&[&lines[..], &[other]].concat()).contains("is announced twice"));
    // A line is missing, and so is its artifact.
    let of = lines[3]["id"]["devrev"].as_str().unwrap();
    let confirmed = fs::read_to_string(dir.join("confirmed.txt")).unwrap();
    let without: String = confirmed
        .split_inclusive('\n')
        .filter(|line| ![of, again.as_str()].contains(&line.trim_end()))
        .collect();
    fs::write(dir.join("confirmed.txt"), without).unwrap();
    let others: Vec<_> = lines.iter().filter(|line| line["id"]["devrev"] != of).cloned().collect();
    assert!(doctor(&others).contains("missing"));
}
