//! An invocation can be observed: one span with the unit, the run and the phase, and an event for each step. No
//! secret is in any of it, and nothing is printed without a subscriber.
//!
//! This test is a process of its own: whether anybody subscribes to an event is determined once per process, by the
//! first thread that reaches it.

mod support;
#[path = "support/airdrop.rs"]
mod world;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater::airdrop::{AttachmentBody, AttachmentError, Event, Outcome, OutcomeKind};
use highwater::record::Attachment;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use world::{Answer, Call, Source, World, page_of, paged};

type Fields = BTreeMap<String, String>;

/// What was said.
#[derive(Debug, Clone)]
struct Said {
    level: Level,
    fields: Fields,
    /// The fields of the span that it was said in.
    span: Fields,
}

impl Said {
    fn message(&self) -> &str {
        &self.fields["message"]
    }
}

/// Keeps what is said.
#[derive(Clone, Default)]
struct Keeper {
    said: Arc<Mutex<Vec<Said>>>,
    spans: Arc<Mutex<BTreeMap<u64, Fields>>>,
}

struct Into<'a>(&'a mut Fields);

impl Visit for Into<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keeper {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::from([("name".to_owned(), attributes.metadata().name().to_owned())]);
        attributes.record(&mut Into(&mut fields));
        self.spans.lock().unwrap().insert(id.into_u64(), fields);
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, _: Context<'_, S>) {
        record.record(&mut Into(self.spans.lock().unwrap().get_mut(&id.into_u64()).unwrap()));
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if !event.metadata().target().starts_with("highwater") {
            return;
        }
        let mut fields = Fields::new();
        event.record(&mut Into(&mut fields));
        let current = context.current_span().id().map(Id::into_u64);
        let span = current.and_then(|id| self.spans.lock().unwrap().get(&id).cloned()).unwrap_or_default();
        self.said.lock().unwrap().push(Said { level: *event.metadata().level(), fields, span });
    }
}

/// Where lines are printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The lines that the default format prints at most at this level while `act` runs.
fn print_lines(level: Level, act: impl FnOnce()) -> Vec<String> {
    let printed = Printed::default();
    let out = printed.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_writer(move || out.clone()).finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = printed.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

/// What is said while `act` runs.
fn listen<T>(act: impl FnOnce() -> T) -> (T, Vec<Said>) {
    let keeper = Keeper::default();
    let result = tracing::subscriber::with_default(Registry::default().with(keeper.clone()), act);
    let said = keeper.said.lock().unwrap().clone();
    (result, said)
}

/// An event that bears secrets wherever one can be.
fn event(event_type: &str, request: &str) -> Event {
    let json = json!({
        "context": {
            "secrets": { "service_account_token": "SECRET-token" },
            "snap_in_version_id": "version-1",
        },
        "payload": {
            "event_type": format!("EXTRACTION_{event_type}"),
            "connection_data": { "org_id": "org", "key": "SECRET-key", "key_type": "SECRET-type" },
            "event_context": {
                "run_id": "the run", "request_id": request, "sequence_version": request, "sync_unit_id": "the unit",
                "callback_url": "https://example.org/SECRET-callback",
                "worker_data_url": "https://example.org/SECRET-worker",
            },
        },
        "input_data": { "SECRET-input": "SECRET-input" },
    });
    Event::from_json(&json.to_string()).unwrap()
}

fn find<'a>(said: &'a [Said], message: &str) -> Vec<&'a Said> {
    said.iter().filter(|said| said.message() == message).collect()
}

/// The one thing that was said so.
fn one<'a>(said: &'a [Said], message: &str) -> &'a Said {
    let found = find(said, message);
    assert_eq!(found.len(), 1, "{message:?} among {said:#?}");
    found[0]
}

fn done(outcome: highwater::Result<Outcome>) {
    outcome.unwrap();
}

#[test]
fn an_invocation_is_one_span_and_each_step_of_it_an_event() {
    let mut world = World::new(2);
    world.serve = world.serve.clone().checkpoints();
    let clock = world.clock.clone();
    let mut source = Source::new(move |_: &highwater::airdrop::Context, stream: &str, at: Option<u32>| {
        clock.advance(Duration::from_secs(4 * 60));
        Ok(page_of(stream, at.unwrap_or(0), 9, 3))
    });
    world.airdrop.answer(Call::Upload, 0, Answer::Unavailable);
    world.airdrop.answer(Call::Confirm, 0, Answer::Lost);
    world.airdrop.answer(Call::Send, 0, Answer::Busy(1));
    let (outcome, said) = listen(|| world.serve(&mut source, &event("DATA_START", "1")));
    let outcome = outcome.unwrap();

    let expected = Fields::from(
        [
            ("name", "invocation"),
            ("event_type", "EXTRACTION_DATA_START"),
            ("unit", "the unit"),
            ("run", "the run"),
            ("phase", "data"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    assert_eq!(said.last().unwrap().span, expected);
    assert!(said.iter().all(|said| said.span["name"] == "invocation"));

    let accepted = one(&said, "event accepted");
    assert_eq!((accepted.level, accepted.fields["decision"].as_str()), (Level::INFO, "work"));
    assert_eq!(accepted.fields["resumed"], "false");
    assert_eq!(one(&said, "sync unit taken over").fields["restored"], "false");
    let pages = find(&said, "page fetched");
    assert_eq!((pages.len(), pages[0].level), (2, Level::DEBUG));
    assert_eq!(pages[0].fields["by_type"], r#"[("issues", 3)]"#);
    assert_eq!((pages[0].fields["items"].as_str(), pages[0].fields["more"].as_str()), ("3", "true"));
    assert_eq!(find(&said, "batch closed").len(), 4);
    assert_eq!(one(&said, "deadline reached").fields["pages"], "2");
    let retries = find(&said, "batch is tried again");
    let calls: Vec<&str> = retries.iter().map(|said| said.fields["call"].as_str()).collect();
    assert_eq!(calls, ["upload", "confirm"]);
    assert!(retries.iter().all(|said| said.level == Level::WARN && said.fields["reason"] == "as told"));
    assert_eq!(find(&said, "batch confirmed").len(), 4);
    let saved = find(&said, "checkpoint saved");
    assert!(
        saved.len() >= 3 && saved.iter().all(|said| said.fields["bytes"].parse::<usize>().unwrap() > 100)
    );
    let sealed = one(&said, "message sealed");
    assert_eq!(sealed.fields["kind"], "Progress");
    assert_eq!(sealed.fields["artifacts"], "4");
    assert_eq!(sealed.fields["bytes"], outcome.message.unwrap().len().to_string());
    assert_eq!(one(&said, "retrying a call to the platform").level, Level::WARN);
    assert_eq!(one(&said, "message delivered").fields["event_type"], "EXTRACTION_DATA_PROGRESS");
}

#[test]
fn what_comes_before_the_message_of_a_line_is_shorter_than_60_characters() {
    const END: &str = " highwater: ";
    let play = || {
        let world = World::new(2);
        world.airdrop.answer(Call::Upload, 0, Answer::Unavailable);
        for (event_type, request) in
            [("METADATA_START", "1"), ("DATA_START", "2"), ("ATTACHMENTS_START", "3")]
        {
            done(world.serve(&mut paged(2, 3), &event(event_type, request)));
        }
    };
    let prefix = |line: &String| line.find(END).map(|at| at + END.len());
    let mut ids = std::collections::BTreeSet::new();
    for (level, messages) in [
        (Level::INFO, ["event accepted", "message delivered"].as_slice()),
        (
            Level::DEBUG,
            ["event accepted", "page fetched", "batch confirmed", "batch is tried again"].as_slice(),
        ),
    ] {
        let lines = print_lines(level, play);
        for message in messages {
            assert!(
                lines.iter().any(|line| line.contains(&format!("{END}{message}"))),
                "{message}: {lines:#?}"
            );
        }
        for line in &lines {
            assert!(prefix(line).is_some_and(|chars| chars < 60), "{line}");
            ids.extend(
                line.split_once("run{id=").and_then(|(_, rest)| Some(rest.split_once('}')?.0.to_owned())),
            );
        }
    }
    assert_eq!(ids.len(), 1, "one run has one id, each time: {ids:?}");
    // Where they are asked for, the fields are in each line.
    let lines = print_lines(Level::TRACE, play);
    let whole = |line: &String| line.contains("unit=the unit") && line.contains("phase=data");
    assert!(
        lines.iter().any(|line| whole(line) && prefix(line).is_some_and(|chars| chars > 60)),
        "{lines:#?}"
    );
}

#[test]
fn what_went_wrong_is_a_warning_with_its_reason() {
    let world = World::new(2);
    let mut source = paged(1, 1);
    source.mapping = Some(json!({ "starting_recipe_blueprint": { "name": "b" } }));
    world.airdrop.answer(Call::Blueprint, 0, Answer::Refused(422));
    let (outcome, said) = listen(|| world.serve(&mut source, &event("METADATA_START", "1")));
    done(outcome);
    let warning = one(&said, "the recipe blueprint was not created; the mapping is installed without it");
    assert_eq!(
        (warning.level, warning.fields["reason"].as_str()),
        (Level::WARN, "refused with 422: as told")
    );
    assert_eq!(one(&said, "initial domain mapping installed").fields["version"], "version-1");

    world.airdrop.answer(Call::Send, 0, Answer::Refused(400));
    let (outcome, said) = listen(|| world.serve(&mut source, &event("DATA_START", "2")));
    outcome.unwrap_err();
    assert_eq!(one(&said, "message refused").fields["status"], "400");
    let (outcome, said) = listen(|| world.serve(&mut source, &event("DATA_START", "2")));
    done(outcome);
    assert_eq!(one(&said, "event accepted").fields["resumed"], "true");
    let (outcome, said) = listen(|| world.serve(&mut source, &event("DATA_START", "2")));
    done(outcome);
    assert_eq!(one(&said, "event accepted").fields["decision"], "replay");

    let world = World::new(2);
    world.airdrop.answer(Call::Upload, 0, Answer::Refused(403));
    let (outcome, said) = listen(|| world.serve(&mut paged(1, 1), &event("DATA_START", "1")));
    done(outcome);
    let failed = one(&said, "delivery failed");
    assert!(
        failed.level == Level::WARN && failed.fields["reason"].contains("refused with 403"),
        "{failed:?}"
    );
}

#[test]
fn a_stream_that_reads_far_more_than_ever_is_told_once_in_an_invocation() {
    let mut world = World::new(2_000);
    // Each page is committed by itself.
    world.serve = world.serve.clone().ahead(0).without_attachments_phase();
    for (run, pages, told) in [("1", 1, 0), ("2", 2, 0), ("3", 25, 1)] {
        let event = world::event("EXTRACTION_DATA_START", run, run);
        let (outcome, said) = listen(|| world.serve(&mut paged(pages, 1_000), &event).unwrap());
        assert_eq!(outcome.kind, OutcomeKind::Done);
        let found = find(&said, "stream reads far more than in any finished run before");
        assert_eq!(found.len(), told, "{run}");
        for said in found {
            let figures = ["stream", "items", "pages", "items_most", "pages_most"]
                .map(|name| said.fields[name].as_str());
            assert_eq!((said.level, figures), (Level::WARN, ["issues", "21000", "21", "2000", "2"]));
        }
    }
}

#[test]
fn no_secret_is_ever_said() {
    let mut world = World::new(1);
    world.serve = world.serve.clone().checkpoints();
    for call in [Call::LoadState, Call::SaveState, Call::Upload, Call::Confirm, Call::Send, Call::Mapping] {
        world.airdrop.answer(call, 0, Answer::Unavailable);
    }
    let mut source = paged(3, 2);
    source.mapping = Some(json!({ "starting_recipe_blueprint": {}, "SECRET-mapping": "SECRET-mapping" }));
    let mut failing = Source::new(|_: &highwater::airdrop::Context, _: &str, _: Option<u32>| {
        Err(highwater::airdrop::SourceError::from("GET https://example.org/?key=SECRET-key: 401"))
    });
    let (lives, said) = listen(|| {
        let mut lives = 0;
        for (request, step) in
            ["METADATA_START", "DATA_START", "ATTACHMENTS_START", "DATA_DELETE"].iter().enumerate()
        {
            let event = event(step, &request.to_string());
            if *step == "DATA_START" {
                drop(world.serve(&mut failing, &event));
            }
            for _ in 0..2 {
                drop(world.serve(&mut source, &event));
                lives += 1;
            }
        }
        lives
    });
    assert_eq!(lives, 8);
    assert!(said.len() > 40, "there is something to look through: {}", said.len());
    let mut text = String::new();
    for said in &said {
        writeln!(text, "{said:?}").unwrap();
    }
    assert!(text.contains("the unit") && text.contains("as told"), "{text}");
    assert!(!text.contains("SECRET"), "{text}");
}

/// Nor is it told to the platform or stored: what a source says may quote the key that it was asked with.
#[test]
fn no_secret_that_a_source_says_is_told_or_kept() {
    // Every invocation of this process has a listener, as otherwise those of others might miss events.
    listen(secrets_of_a_source);
}

fn secrets_of_a_source() {
    const SAYS: &str = "GET https://example.org/?key=SECRET-key as SECRET-token: 401";
    let mut world = World::new(1);
    world.serve = world.serve.clone().checkpoints().attachment_tries(2);
    let page = |_: &highwater::airdrop::Context, stream: &str, at: Option<u32>| {
        if at.is_some() {
            return Err(SAYS.into());
        }
        let mut page = page_of(stream, 0, 2, 1);
        for id in ["gone", "denied", "temporary", "panics", "panics too"] {
            page.push("attachments", Attachment::new(id, "url", "name", "parent").to_record()?);
        }
        Ok(page)
    };
    let mut source = Source::new(page);
    let open: fn(&Attachment) -> Result<AttachmentBody, AttachmentError> =
        |attachment| match attachment.id.as_str() {
            "gone" => Err(AttachmentError::Gone { reason: SAYS.to_owned() }),
            "denied" => Err(AttachmentError::Denied { reason: SAYS.to_owned() }),
            "temporary" => Err(SAYS.into()),
            _ => panic!("{SAYS}"),
        };
    let hidden = "GET https://example.org/?key=(hidden) as (hidden): 401";
    let kept = |world: &World| {
        let told: String = world.airdrop.attempts().iter().map(|message| message.body.as_str()).collect();
        // The event's context comes back whole, with the addresses in it.
        told.replace("SECRET-callback", "").replace("SECRET-worker", "")
            + &world
                .airdrop
                .checkpoint()
                .to_string()
                .replace("SECRET-callback", "")
                .replace("SECRET-worker", "")
            + &world.airdrop.state_text()
    };

    let outcome = world.serve(&mut source, &event("DATA_START", "1")).unwrap();
    assert_eq!(outcome.kind, OutcomeKind::Error);
    assert!(world.airdrop.last().error().ends_with(hidden), "{}", world.airdrop.last().error());
    assert!(world.airdrop.checkpoint().to_string().contains("(hidden)"), "the checkpoint has the message");
    assert!(!kept(&world).contains("SECRET"), "{}", kept(&world));

    let mut panics = Source::new(|_: &highwater::airdrop::Context, _: &str, _: Option<u32>| panic!("{SAYS}"));
    done(world.serve(&mut panics, &event("DATA_CONTINUE", "2")));
    assert!(world.airdrop.last().error().ends_with(hidden), "{}", world.airdrop.last().error());

    let mut last =
        Source::new(|_: &highwater::airdrop::Context, _: &str, _: Option<u32>| Ok(highwater::Page::last()));
    last.open = Some(Box::new(open));
    assert_eq!(world.serve(&mut last, &event("DATA_CONTINUE", "3")).unwrap().kind, OutcomeKind::Done);
    let outcome = world.serve(&mut last, &event("ATTACHMENTS_START", "4")).unwrap();
    assert_eq!((outcome.kind, outcome.attachments.failed), (OutcomeKind::Done, 5));
    let unit = world.store.sync_unit("the unit").unwrap();
    let failed: Vec<_> = unit.failed_attachments().map(Result::unwrap).collect();
    assert_eq!(failed.len(), 5);
    for failed in failed {
        assert!(failed.reason.ends_with(hidden), "{failed:?}");
    }
    assert!(!kept(&world).contains("SECRET"), "{}", kept(&world));
}

/// The fate of each attachment is logged, without the texts of the source.
#[test]
fn each_attachment_can_be_followed_and_so_can_a_deletion() {
    let mut world = World::new(2);
    world.serve = world.serve.clone().attachment_tries(3);
    let clock = world.clock.clone();
    let mut source = Source::new(|_: &highwater::airdrop::Context, stream: &str, _: Option<u32>| {
        let mut page = page_of(stream, 0, 1, 1);
        for id in ["fails", "is gone", "is whole"] {
            page.push("attachments", Attachment::new(id, "url", "name", "parent").to_record()?);
        }
        Ok(page)
    });
    source.open = Some(Box::new(move |attachment| {
        if attachment.id == "is whole" {
            clock.advance(Duration::from_secs(11 * 60));
        }
        match attachment.id.as_str() {
            "fails" => Err("SOURCE".into()),
            "is gone" => Err(AttachmentError::Gone { reason: "SOURCE".to_owned() }),
            _ => Ok(AttachmentBody::new(&b"bytes"[..])),
        }
    }));
    done(listen(|| world.serve(&mut source, &event("DATA_START", "1"))).0);
    world.airdrop.answer(Call::Confirm, 0, Answer::Lost);
    let mut said = Vec::new();
    for request in 2..9 {
        let step = if request == 2 { "ATTACHMENTS_START" } else { "ATTACHMENTS_CONTINUE" };
        let (outcome, more) = listen(|| world.serve(&mut source, &event(step, &request.to_string())));
        said.extend(more);
        if outcome.unwrap().kind == OutcomeKind::Done {
            break;
        }
        world.clock.advance(Duration::from_secs(60));
    }
    let of = |said: &Said, field: &str| said.fields[field].clone();
    let again = find(&said, "attachment is tried again");
    let tries: Vec<String> = again.iter().map(|said| of(said, "tries")).collect();
    assert_eq!(tries, ["1", "2"]);
    for said in again {
        assert_eq!((said.level, of(said, "attachment").as_str()), (Level::WARN, "fails"));
        assert!(of(said, "wait_ms").parse::<u64>().unwrap() >= 250);
    }
    let mut given_up: Vec<_> = find(&said, "attachment given up")
        .iter()
        .map(|said| (of(said, "attachment"), of(said, "tries")))
        .collect();
    given_up.sort();
    assert_eq!(
        given_up,
        [("fails", "3"), ("is gone", "0")].map(|(id, tries)| (id.to_owned(), tries.to_owned()))
    );
    let call = one(&said, "call about an attachment is tried again");
    assert_eq!(
        (call.level, of(call, "attachment").as_str(), of(call, "tries").as_str()),
        (Level::WARN, "is whole", "1")
    );
    assert_eq!(of(call, "reason"), "as told");
    for message in ["attachment uploaded", "attachment settled"] {
        let one = one(&said, message);
        assert_eq!((one.level, of(one, "attachment").as_str()), (Level::DEBUG, "is whole"));
    }
    assert_eq!(one(&said, "deadline reached").level, Level::INFO);
    assert!(said.iter().all(|said| said.fields.values().all(|value| !value.contains("SOURCE"))), "{said:#?}");

    let (outcome, said) = listen(|| world.serve(&mut source, &event("DATA_DELETE", "9")));
    done(outcome);
    assert_eq!(one(&said, "message delivered").span["unit"], "the unit");
}
