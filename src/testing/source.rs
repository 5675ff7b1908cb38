//! A source that behaves as badly as real ones do.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::airdrop::{
    AttachmentBody, AttachmentError, CheckPolicy, Context, ExternalSyncUnit, Extractor, Listing, SourceError,
};
use crate::record::{Attachment, Record};
use crate::store::Page;

use super::schedule::Setting;
use super::world::{Life, SMALL_STATE};

/// An extractor of a made-up source: several streams, pages of several item types, from empty to several batches.
///
/// Between two reads of a page its records change, their number shrinks or grows, and pages at the end vanish. Ids
/// repeat, and the newest may come first. Every record has a hidden number that no other record has, not even the
/// same record when its page is read again: so an announced record shows which reading it came from.
///
/// If the schedule says so, some records are invalid and must be rejected. When they are requested again, some are
/// correct, some gone.
///
/// Some pages name attachments, some of them more than once in a run, some with the same url in every run. Some of
/// those are gone, empty, or not as long as they say; others cannot be opened every time.
///
/// If the schedule says so, pages name child listings (with a disk, some of them more than once in a run), and their
/// pages name child listings in turn.
///
/// If the schedule says so, comments come again unchanged: there are few of them, in two versions each, all modified at
/// a moment that is ahead, so that they are at the edge of every run.
///
/// It leaves a bookmark, and keeps values of its own beside each cursor; it fails if they do not agree.
#[derive(Debug, Clone)]
pub struct SimSource {
    life: Life,
    shape: Shape,
}

/// The size of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Streams: 1 to 3.
    pub streams: u8,
    /// Pages of a stream, at most; at least 1.
    pub pages_max: u32,
    /// Records of one item type on a page, at most.
    pub page_items_max: u32,
    /// Attachments named on a page, at most.
    pub page_attachments_max: u32,
}

impl Default for Shape {
    /// Two streams of up to 4 pages, up to 9 records of an item type and 2 attachments on each.
    fn default() -> Self {
        Self { streams: 2, pages_max: 4, page_items_max: 9, page_attachments_max: 2 }
    }
}

/// The cursor of a [`SimSource`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SimCursor {
    page: u32,
}

const STREAMS: [&str; 3] = ["issues", "comments", "links"];
const ITEM_TYPES: [&str; 3] = ["issues", "users", "comments"];

impl SimSource {
    /// A source of the default shape, in its state in this life.
    pub fn new(life: &Life) -> Self {
        Self::with_shape(life, Shape::default())
    }

    /// How the records are checked.
    fn checks(&self) -> CheckPolicy {
        if self.life.is(Setting::ChecksReport) {
            CheckPolicy::Report
        } else if self.life.is(Setting::ChecksRefuse) {
            CheckPolicy::Refuse
        } else if self.life.is(Setting::Rejects) {
            CheckPolicy::LeaveOut
        } else {
            CheckPolicy::Off
        }
    }

    /// A source of a given shape.
    pub fn with_shape(life: &Life, shape: Shape) -> Self {
        Self { life: life.clone(), shape }
    }

    /// Adds the records of a page; returns how many item types have any. `reading_of` names the page and this reading
    /// of it.
    fn push_records(
        &self,
        page: &mut Page<SimCursor>,
        rng: &mut fastrand::Rng,
        reading_of: &str,
        may_be_wrong: bool,
    ) -> Result<u8, SourceError> {
        let mut ids = std::collections::BTreeSet::new();
        let mut types = 0;
        if self.life.is(Setting::Edge) {
            page.set_leave_out_unchanged("comments");
        }
        for item_type in ITEM_TYPES {
            let items = match rng.u8(..4) {
                0 => 0,
                1 => 1,
                _ => rng.u32(..=self.shape.page_items_max),
            };
            types += u8::from(items > 0);
            for item in 0..items {
                let once = item_type == "users" && self.life.is(Setting::Once);
                let id = format!("{item_type}-{}", rng.u8(..if once { 5 } else { 20 }));
                if !ids.insert(id.clone()) {
                    self.life.count("source/id-repeated");
                }
                // A field with another type than declared, for the checks to find.
                let wrong = match self.checks() {
                    CheckPolicy::Off => false,
                    CheckPolicy::LeaveOut => rng.u8(..4) == 0,
                    _ => item == 0 && may_be_wrong,
                };
                if wrong {
                    self.life.count("source/wrong-record");
                }
                let edge = item_type == "comments" && self.life.is(Setting::Edge);
                let id = if edge { format!("{item_type}-{}", rng.u8(..6)) } else { id };
                let ordinal = if edge {
                    format!("version {} of {id}", rng.u8(..2))
                } else {
                    format!("{reading_of}-{item_type}-{item}")
                };
                let created =
                    chrono::DateTime::from_timestamp(1_700_000_000 - i64::from(item), 0).unwrap_or_default();
                let data =
                    if wrong { json!({ "ordinal": [ordinal] }) } else { json!({ "ordinal": ordinal }) };
                let record = Record::new(id, &data)?;
                let record = if edge {
                    record.modified(chrono::DateTime::from_timestamp(4_000_000_000, 0).unwrap_or_default())
                } else {
                    record.created(created)
                };
                if once {
                    page.push_once(item_type, record);
                } else {
                    page.push(item_type, record);
                }
            }
        }
        Ok(types)
    }

    /// A page of a child listing, which may name another.
    fn child_page(
        &self,
        context: &Context,
        listing: &Listing,
        parent: &str,
        at: u32,
    ) -> Result<Page<SimCursor>, SourceError> {
        if listing.data::<String>()? != parent {
            return Err(format!("INCONSISTENT: {listing} has the data of another").into());
        }
        let (run, of) = (number_of(context.run_id().as_str()), number_of(&listing.to_string()));
        let (seed, reading) = (self.life.seed(), self.life.reads());
        let pages = 1 + mix(seed, &[run, of]).u32(..2);
        let mut rng = mix(seed, &[run, of, at.into(), reading]);
        let mut page = if at + 1 >= pages { Page::last() } else { Page::more(SimCursor { page: at + 1 }) };
        self.push_records(&mut page, &mut rng, &format!("{run:x}-{listing}-{at}-{reading}"), false)?;
        self.life.count("source/child-listing");
        if listing.stream() != "reactions" && rng.u8(..4) == 0 {
            self.life.count("source/child-of-a-child");
            let parent = format!("{parent}-{at}");
            page.push_child("reactions", &parent, &parent);
        }
        Ok(page)
    }

    /// Sets a value that takes a part of the room of a worker state, or more than that: then the page is refused, and
    /// its next reading sets another value.
    fn with_ballast(&self, page: Page<SimCursor>, rng: &mut fastrand::Rng) -> Page<SimCursor> {
        let percent = match rng.u8(..32) {
            0 => 120,
            1..8 => 95,
            8..16 => 60,
            _ => 0,
        };
        if percent > 100 {
            self.life.count("source/value-too-large");
        }
        let ballast: String = (0..SMALL_STATE.own * percent / 100).map(|_| rng.alphanumeric()).collect();
        page.value("ballast", &ballast)
    }

    /// Names the attachments of a page of a run.
    fn push_attachments(
        &self,
        page: &mut Page<SimCursor>,
        rng: &mut fastrand::Rng,
        reading_of: &str,
        run: u64,
    ) -> Result<(), SourceError> {
        for item in 0..rng.u32(..=self.shape.page_attachments_max) {
            let (id, parent) = (format!("attachment-{}", rng.u8(..6)), format!("issues-{}", rng.u8(..2)));
            let version = if rng.bool() { "same".to_owned() } else { format!("{run:x}") };
            let attachment = json!({
                "id": id,
                "url": format!("simulated:{version}/{parent}/{id}"),
                "file_name": format!("{id}.txt"),
                "parent_id": parent,
                "ordinal": format!("{reading_of}-attachment-{item}"),
            });
            page.push("attachments", Record::flat(&attachment)?);
            self.life.count("source/attachment");
        }
        Ok(())
    }
}

fn mix(seed: u64, parts: &[u64]) -> fastrand::Rng {
    let mut rng = fastrand::Rng::with_seed(seed);
    for part in parts {
        rng = fastrand::Rng::with_seed(rng.u64(..) ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    rng
}

fn number_of(text: &str) -> u64 {
    text.bytes().fold(0, |number, byte| number.wrapping_mul(257).wrapping_add(byte.into()))
}

impl Extractor for SimSource {
    type Cursor = SimCursor;

    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        Ok(vec![ExternalSyncUnit::new("simulated", "Simulated", "made up")])
    }

    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        if self.checks() == CheckPolicy::Off {
            return Ok(
                json!({ "schema_version": "v0.2.0", "record_types": {}, "reading": self.life.reads() }),
            );
        }
        let ordinal = json!({ "fields": { "ordinal": { "name": "Ordinal", "type": "text" } } });
        let types = ITEM_TYPES.map(|item_type| (item_type.to_owned(), ordinal.clone()));
        Ok(json!({ "schema_version": "v0.2.0", "record_types": Value::from_iter(types) }))
    }

    fn initial_domain_mapping(&self, _: &Context) -> Result<Option<Value>, SourceError> {
        Ok(self.life.is(Setting::Mapping).then(|| json!({ "additional_mappings": {} })))
    }

    fn check_policy(&self) -> CheckPolicy {
        self.checks()
    }

    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(STREAMS.iter().take(self.shape.streams.into()).map(|&stream| stream.to_owned()).collect())
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<SimCursor>,
    ) -> Result<Page<SimCursor>, SourceError> {
        let stream = listing.stream();
        let at = cursor.map_or(0, |cursor| cursor.page);
        if let Some(parent) = listing.parent() {
            return self.child_page(context, listing, parent, at);
        }
        let value = format!("position of {stream}");
        let expected = (context.run_id().to_string(), at);
        if at > 0 && context.value::<(String, u32)>(&value)? != Some(expected) {
            let found = context.value::<Value>(&value)?;
            return Err(format!("INCONSISTENT: cursor at page {at} of {stream}, value {found:?}").into());
        }
        let reading = self.life.reads();
        let run = number_of(context.run_id().as_str());
        let seed = self.life.seed();
        let pages = 1 + mix(seed, &[run, number_of(stream)]).u32(..self.shape.pages_max.max(1));
        let mut rng = mix(seed, &[run, number_of(stream), at.into(), reading]);
        let is_last = at + 1 >= pages || rng.u8(..16) == 0;
        let mut page = if is_last { Page::last() } else { Page::more(SimCursor { page: at + 1 }) };
        let reading_of = format!("{run:x}-{stream}-{at}-{reading}");
        let types = self.push_records(&mut page, &mut rng, &reading_of, reading % 5 == 3)?;
        for (happened, what) in [
            (page.items() == 0, "empty-page"),
            (types > 1, "several-item-types"),
            (page.items() > 10, "page-over-a-batch"),
            (matches!(page.items(), 1..5), "page-under-a-batch"),
            (page.items() > 1, "newest-first"),
        ] {
            if happened {
                self.life.count(&format!("source/{what}"));
            }
        }
        self.push_attachments(&mut page, &mut rng, &reading_of, run)?;
        if self.life.is(Setting::Children) {
            for child in 0..rng.u8(..4) {
                // Without a disk, it is unknown which child listings an earlier life has read: then none is named
                // twice.
                let parent = if self.life.has_disk() {
                    format!("issues-{}", rng.u8(..6))
                } else {
                    format!("{stream}-{at}-{child}")
                };
                page.push_child("replies", &parent, &parent);
            }
        }
        if self.life.is(Setting::StateFull) {
            page = self.with_ballast(page, &mut rng);
        }
        page = page
            .value(&value, &(context.run_id().as_str(), at + 1))
            .progress(u8::try_from(at * 10).unwrap_or(100));
        Ok(if is_last { page.bookmark(&context.run_id().as_str()) } else { page })
    }

    fn can_refetch(&self, _: &str) -> bool {
        true
    }

    /// A third of the records that are requested again is gone, a third is still invalid, and a third is correct; which
    /// ones differs in each run.
    fn refetch(
        &self,
        context: &Context,
        item_type: &str,
        ids: &[String],
    ) -> Result<Page<SimCursor>, SourceError> {
        let run = number_of(context.run_id().as_str());
        let reading = self.life.reads();
        let mut page = Page::last();
        for id in ids {
            let what = mix(self.life.seed(), &[run, number_of(id)]).u8(..3);
            let ordinal = format!("{run:x}-again-{reading}-{item_type}-{id}");
            match what {
                0 => {
                    self.life.count("source/mended");
                    page.push(item_type, Record::new(id, &json!({ "ordinal": ordinal }))?);
                }
                1 => {
                    self.life.count("source/bad-still");
                    page.push(item_type, Record::new(id, &json!({ "ordinal": [ordinal] }))?);
                }
                _ => {
                    self.life.count("source/gone");
                    page.gone(item_type, id);
                }
            }
        }
        Ok(page)
    }

    fn open_attachment(
        &self,
        _: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let Attachment { id, parent_id, url, .. } = attachment;
        let content = format!("{id}|{parent_id}|{url}");
        let length = content.len() as u64;
        let of_it = [number_of(id), number_of(parent_id)];
        let mut rng = mix(self.life.seed(), &of_it);
        match rng.u8(..12) {
            0 => return Err(AttachmentError::Gone { reason: "simulated".to_owned() }),
            1 => return Ok(AttachmentBody::new(std::io::empty())),
            2 => return Ok(AttachmentBody::new(std::io::Cursor::new(content)).length(length + 1)),
            3 => return Ok(AttachmentBody::new(std::io::Cursor::new(content)).length(length - 1)),
            _ => {}
        }
        let now = self.life.moment();
        if mix(self.life.seed(), &[of_it[0], of_it[1], now]).u8(..6) == 0 {
            return Err("simulated: not just now".into());
        }
        let body = AttachmentBody::new(std::io::Cursor::new(content));
        Ok(if rng.bool() { body.length(length) } else { body })
    }
}
