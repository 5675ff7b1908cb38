//! A folder with a store in it, in which `highwater-dump` is run; and stores of real runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use chrono::{TimeZone, Utc};
use highwater::record::Attachment;
use highwater::{Level, Page, Record, Run, Store, VirtualClock};
use serde_json::Value;

pub(crate) const DUMP: &str = env!("CARGO_BIN_EXE_highwater-dump");

/// A folder with a store in it, and the command run there.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("state.redb")
    }

    pub(crate) fn dump(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DUMP);
        command.current_dir(self.dir.path()).args(args).env_remove("NO_COLOR").env("COLUMNS", "100");
        // Half a minute after the last that the stores below know.
        command.env("HIGHWATER_DUMP_NOW", "2026-01-02T04:05:35Z");
        command
    }

    /// Stdout of a command that ends with 0.
    pub(crate) fn shows(&self, args: &[&str]) -> String {
        let output = self.dump(args).assert().code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    }

    /// Its lines of JSON.
    pub(crate) fn lines(&self, args: &[&str]) -> Vec<Value> {
        json_lines(&self.shows(args))
    }

    /// Exit code, stdout, stderr.
    pub(crate) fn says(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.dump(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

pub(crate) fn clock() -> VirtualClock {
    VirtualClock::at(Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap())
}

/// Pages of `records` issues and one user each, `pages` of them.
pub(crate) fn pages(pages: u32, records: u32) -> impl FnMut(Option<u32>) -> highwater::Result<Page<u32>> {
    move |cursor| {
        let number = cursor.unwrap_or(0);
        let last = number + 1 >= pages;
        let mut page = if last { Page::last().bookmark(&"tail") } else { Page::more(number + 1) };
        for record in 0..records {
            let id = format!("ISSUE-{}", number * records + record);
            page.push("issues", Record::new(id, &serde_json::json!({"title": "x".repeat(50)}))?);
        }
        page.push("users", Record::new(format!("USER-{number}"), &serde_json::json!({}))?);
        Ok(page.progress(10).value("seen", &number))
    }
}

pub(crate) fn upload_all(
    run: &Run,
    stream: &str,
    fetch: impl FnMut(Option<u32>) -> highwater::Result<Page<u32>>,
) {
    for batch in run.batches(stream, fetch) {
        let batch = batch.unwrap();
        let id = format!("artifact-{}", batch.key().seq);
        batch.acknowledge(id).unwrap();
    }
}

/// One finished run, and one in progress: a batch acknowledged, one uploaded, one staged, and records
/// that wait for their batch. Batches are not compressed, so that their sizes are known.
pub(crate) fn store_amid_work(path: &Path) {
    let clock = clock();
    let options = Store::options().clock(clock.clone()).batch_items(4).level(Level::new(0).unwrap());
    let store = options.open(path).unwrap();
    let unit = store.sync_unit("acme/tickets").unwrap();
    let run = unit.begin().unwrap();
    clock.advance(Duration::from_secs(60));
    upload_all(&run, "issues", pages(2, 3));
    run.finish().unwrap();

    clock.advance(Duration::from_secs(3_600));
    let run = unit.begin().unwrap();
    let mut batches = run.batches("issues", pages(100, 5));
    batches.next().unwrap().unwrap().acknowledge("artifact-1").unwrap();
    batches.next().unwrap().unwrap().uploaded("artifact-2").unwrap();
    drop(batches.next().unwrap().unwrap());
    drop(batches);
    store.sync_unit("another").unwrap().begin().unwrap();
}

/// A run with 30 attachments, which are settled, failed, failed and queued again, or still queued; and a run before it.
pub(crate) fn store_with_attachments(path: &Path) {
    let clock = clock();
    let store = Store::options().clock(clock.clone()).open(path).unwrap();
    let unit = store.sync_unit("acme/tickets").unwrap();
    let named = |run: &Run, from: u32, to: u32| {
        let mut page = Page::<u32>::last();
        for number in from..to {
            let (id, parent) = (format!("A{number}"), format!("ISSUE-{}", number / 2));
            let attachment = Attachment::new(id, "https://files.example/?key=secret", "a.png", parent);
            page.push("attachments", attachment.to_record().unwrap());
        }
        let mut page = Some(page);
        upload_all(run, "issues", |_| Ok(page.take().unwrap()));
    };
    let run = unit.begin().unwrap();
    named(&run, 0, 3);
    let mut attachments = run.attachments().map(Result::unwrap);
    attachments.next().unwrap().acknowledge("upload").unwrap();
    attachments.next().unwrap().retry_later("busy", Duration::ZERO).unwrap();
    attachments.next().unwrap().fail("denied").unwrap();
    drop(attachments);
    run.attachments().next().unwrap().unwrap().fail("busy again").unwrap();
    run.finish().unwrap();
    assert_eq!(unit.requeue_failed(|failed| failed.attachment.id == "A2").unwrap(), 1);
    clock.advance(Duration::from_secs(60));
    let run = unit.begin().unwrap();
    named(&run, 10, 40);
    for (number, attachment) in run.attachments().map(Result::unwrap).enumerate().take(27) {
        match number {
            0 => attachment.acknowledge("another upload").unwrap(),
            1 => drop(attachment),
            _ => attachment.fail(format!("410 {number}")).unwrap(),
        }
    }
}
