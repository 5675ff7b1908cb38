//! A rewind, and then a sync of a whole extractor: children and attachments are asked for again, wherever the open run
//! was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use chrono::{DateTime, TimeDelta, Utc};
use highwater::airdrop::{
    AttachmentBody, AttachmentError, Context, Event, ExternalSyncUnit, Extractor, Listing, OutcomeKind,
    Serve, SourceError,
};
use highwater::record::Attachment;
use highwater::{ArtifactId, Clock, Page, Phase, Record, VirtualClock};
use highwater_airdrop::{Local, SyncSettings};
use serde_json::{Value, json};

use crate::mend::{HOUR, Place, UNIT, changes, modified, start, time};
use crate::support;

/// Where an invocation is made to wait, so that its run stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Nowhere,
    /// At the third page of issues.
    AtAPage,
    /// At the comments of one of its issues.
    AtComments,
    /// After some files.
    AtAFile,
}

/// What a run asked for.
#[derive(Debug, Default)]
struct Asked {
    since: Option<DateTime<Utc>>,
    bookmark: Option<Value>,
    issues: BTreeSet<u32>,
    comments: BTreeSet<u32>,
    files: Vec<u32>,
}

/// A tracker in which an issue is modified every ten minutes, each with a comment and a file. Every seventh file is gone.
struct Tracker {
    clock: VirtualClock,
    stop: Stop,
    asked: Mutex<Asked>,
}

fn is_gone(file: u32) -> bool {
    file % 7 == 3
}

fn number_of(name: &str) -> u32 {
    name.rsplit('-').next().unwrap().parse().unwrap()
}

impl Extractor for Tracker {
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

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<usize>,
    ) -> Result<Page<usize>, SourceError> {
        let wait = Err(SourceError::RateLimited { after: HOUR });
        let mut asked = self.asked.lock().unwrap();
        if let Some(parent) = listing.parent() {
            let issue = number_of(parent);
            if self.stop == Stop::AtComments && issue % 5 == 4 {
                return wait;
            }
            asked.comments.insert(issue);
            let comment = Record::new(format!("COMMENT-{issue}"), &json!({ "of": issue }))?;
            return Ok(Page::last().record("comments", comment));
        }
        let at = cursor.unwrap_or(0);
        if self.stop == Stop::AtAPage && at == 10 {
            return wait;
        }
        asked.since = context.since();
        asked.bookmark = context.bookmark("issues")?;
        let now = self.clock.now();
        let issues: Vec<u32> = (0..10_000)
            .take_while(|n| modified(*n) <= now)
            .filter(|n| context.since().is_none_or(|since| modified(*n) >= since))
            .collect();
        let to = (at + 5).min(issues.len());
        let mut page = if to < issues.len() {
            Page::more(to)
        } else {
            Page::last().bookmark(&json!({ "run": context.run_id().as_str() }))
        };
        for n in &issues[at..to] {
            asked.issues.insert(*n);
            let id = format!("ISSUE-{n}");
            let file = Attachment::new(format!("FILE-{n}"), "https://files.example/a", "a.png", &id);
            page.push("attachments", file.to_record()?);
            page.push("issues", Record::new(&id, &json!({ "n": n }))?);
            page = page.child("comments", &id, &());
        }
        Ok(page)
    }

    fn open_attachment(
        &self,
        _: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let mut asked = self.asked.lock().unwrap();
        let file = number_of(&attachment.id);
        if self.stop == Stop::AtAFile && asked.files.len() == 4 {
            return Err(AttachmentError::RateLimited { after: HOUR });
        }
        asked.files.push(file);
        if is_gone(file) {
            return Err(AttachmentError::Gone { reason: "410".to_owned() });
        }
        Ok(AttachmentBody::new(&b"bytes"[..]).length(5))
    }
}

/// A run of the local Airdrop, until it is over or waits; its id, and what it asked for.
fn served(place: &Place, local: &Local, stop: Stop) -> (String, Asked) {
    place.clock.advance(HOUR);
    let settings = SyncSettings::new("project").sync_unit_id(UNIT);
    let settings = settings.phases([Phase::Metadata, Phase::Data, Phase::Attachments]);
    let run = local.begin_sync(&settings, &place.clock).unwrap().to_string();
    let source = Tracker { clock: place.clock.clone(), stop, asked: Mutex::default() };
    let store = place.open();
    let serve = Serve::new().inline(7).attachments_at_once(2);
    let mut kinds = Vec::new();
    while let Some(event) = local.next_event(&settings, &place.clock).unwrap() {
        let event = Event::from_json(&event.json).unwrap();
        let outcome = serve.serve(&store, local, &source, &event).unwrap();
        kinds.push(outcome.kind);
        if outcome.kind == OutcomeKind::Delay {
            local.give_up_sync(&settings, &place.clock).unwrap();
            break;
        }
    }
    let waits = stop != Stop::Nowhere;
    assert_eq!(kinds.last() == Some(&OutcomeKind::Delay), waits, "{stop:?}: {kinds:?}");
    (run, source.asked.into_inner().unwrap())
}

/// The ids of an item type in all messages that the platform accepted, each as often as it was announced.
fn announced(local: &Local, item_type: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    for message in local.messages().unwrap() {
        let message = message.unwrap();
        let artifacts = message["event_data"]["artifacts"].as_array().cloned().unwrap_or_default();
        for artifact in artifacts.iter().filter(|artifact| artifact["item_type"] == item_type) {
            let id = ArtifactId::new(artifact["id"].as_str().unwrap()).unwrap();
            let lines = support::lines(&local.artifact_bytes(&id).unwrap());
            // The id of an attachment is the one in the source.
            let ids_of =
                |line: &Value| line["id"].as_str().or(line["id"]["external"].as_str()).map(number_of);
            ids.extend(lines.iter().map(|line| ids_of(line).unwrap()));
        }
    }
    ids
}

#[test]
fn after_a_rewind_children_and_attachments_are_asked_for_too_wherever_the_open_run_was() {
    for (stop, back) in [(Stop::AtAPage, 2), (Stop::AtComments, 1), (Stop::AtAFile, 1), (Stop::AtAFile, 3)] {
        let place = Place::new();
        let local = Local::open(place.dir.path().join("airdrop")).unwrap();
        let runs: Vec<String> = (0..3).map(|_| served(&place, &local, Stop::Nowhere).0).collect();
        // Long enough for three pages.
        place.clock.advance(2 * HOUR);
        let (open, _) = served(&place, &local, stop);
        let case = format!("{stop:?}, {back} back");

        let to = &runs[3 - back];
        let (plan, _) = place.mends(&["rewind", "state.redb", UNIT, "--to", to]);
        let abandoned = changes(&plan, "abandon_run");
        assert_eq!(abandoned[0]["run"], json!(open), "{case}: {plan}");
        let left = abandoned[0]["attachments_left"].as_u64().unwrap();
        assert!(left > 0, "{case}: {plan}");
        assert!(place.plan(&["abandon", "state.redb", UNIT])["changes"] == json!([]), "it is abandoned");

        let (_, asked) = served(&place, &local, Stop::Nowhere);
        assert_eq!(asked.since, time(&plan["next_run"]["since"]), "{case}");
        assert_eq!(asked.bookmark.as_ref(), Some(&plan["next_run"]["streams"][0]["bookmark"]), "{case}");
        assert_eq!(asked.bookmark, Some(json!({ "run": to })), "{case}");
        // What the source has since then, by arithmetic of this test: issues, and the comments of each.
        let now = place.clock.now();
        let ever: BTreeSet<u32> = (0..10_000).take_while(|n| modified(*n) <= now).collect();
        let since: BTreeSet<u32> =
            ever.iter().copied().filter(|n| modified(*n) >= asked.since.unwrap()).collect();
        assert_eq!(asked.issues, since, "{case}");
        assert_eq!(asked.comments, since, "{case}");
        // And the platform has everything: each issue, each comment, each file that is not gone.
        let all = |item_type| -> BTreeSet<u32> { announced(&local, item_type).into_iter().collect() };
        assert_eq!(all("issues"), ever, "{case}");
        assert_eq!(all("comments"), ever, "{case}");
        let files: BTreeSet<u32> = ever.iter().copied().filter(|n| !is_gone(*n)).collect();
        assert_eq!(all("ssor_attachment"), files, "{case}");
        // A file that a finished run settled is not fetched again.
        let mut times: BTreeMap<u32, u64> = BTreeMap::new();
        for name in announced(&local, "ssor_attachment") {
            *times.entry(name).or_default() += 1;
        }
        let finished_by = start() + TimeDelta::hours(3);
        assert!(
            times.iter().all(|(n, times)| *times == 1 || modified(*n) > finished_by),
            "{case}: {times:?}"
        );
        place.is_whole();
    }
}
