//! What an operator is told besides the state: what differs, what died, what was mended, and what to do next.

use std::io::{BufRead, BufReader};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use highwater::airdrop::OutcomeKind;
use highwater::{Run, Store};
use serde_json::{Value, json};

use crate::place::{DUMP, Place, clock, of_kind, pages, store_amid_work, store_with_attachments, upload_all};
use crate::screens::{invocation, on_one_line, rejects, run_that, worker};

/// Copies the store beside it.
fn copy(place: &Place, name: &str) {
    std::fs::copy(place.store(), place.dir.path().join(name)).unwrap();
}

/// The lines of a diff that tell of things that only one of the two has.
fn one_sided(text: &str) -> Vec<&str> {
    let is_it = |line: &&str| {
        [" is new", " is gone", " has failed", " any more"].iter().any(|end| line.ends_with(end))
    };
    text.lines().filter(is_it).collect()
}

#[test]
fn runs_and_messages_that_are_only_too_old_for_a_list_are_no_difference() {
    let place = Place::new();
    let clock = clock();
    let sync = |runs: u32| {
        let store = Store::options().clock(clock.clone()).open(place.store()).unwrap();
        for _ in 0..runs {
            clock.advance(Duration::from_secs(60));
            let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
            upload_all(&run, "issues", pages(1, 1));
            run.finish().unwrap();
        }
    };
    sync(25);
    copy(&place, "before.redb");
    sync(5);
    let said = place.shows(&["diff", "before.redb", "state.redb"]);
    let lists = one_sided(&said);
    assert!(lists.len() == 5 && lists.iter().all(|line| line.ends_with(" is new")), "{said}");
    let back = place.shows(&["diff", "state.redb", "before.redb"]);
    assert!(one_sided(&back).iter().all(|line| line.ends_with(" is gone")), "{back}");
    // A list that is cut says so, and the command that it names shows all.
    let cut = place.shows(&["diff", "before.redb", "state.redb", "--last", "2"]);
    assert!(
        cut.contains(
            "acme/tickets: 3 of 5 entries of the ledger that differ are not listed: --last 5 lists all\n"
        ),
        "{cut}"
    );
    assert_eq!(one_sided(&cut), lists[3..], "{cut}");
    let lines = place.lines(&["diff", "before.redb", "state.redb", "--json"]);
    assert_eq!(lines.iter().filter(|line| line["of"] == "ledger").count(), 5);
    let (code, _, stderr) = place.says(&["diff", "before.redb", "state.redb", "--unit", "acme"]);
    assert!(code == Some(1) && stderr.contains("has no sync unit \"acme\""), "{stderr}");

    // The messages of a run are dropped when later ones end: that is no difference either.
    let place = Place::new();
    let dir = place.dir.path();
    let finish = || {
        assert_eq!(invocation(dir, "go on"), Some(OutcomeKind::Done));
        assert_eq!(invocation(dir, "go on"), Some(OutcomeKind::Done));
    };
    finish();
    copy(&place, "before.redb");
    finish();
    finish();
    let said = place.shows(&["diff", "before.redb", "state.redb"]);
    assert!(said.contains("import: messages: 2 -> 6\n"), "{said}");
    assert!(one_sided(&said).iter().all(|line| line.ends_with(" is new")), "{said}");
    let kept = place.lines(&["before.redb", "--json"]);
    let is_kept = place.lines(&["state.redb", "--json"]);
    let numbers = |lines: &[Value]| -> Vec<Value> {
        of_kind(lines, "message").iter().map(|message| message["message"].clone()).collect()
    };
    assert!(
        numbers(&kept).contains(&json!(1)) && !numbers(&is_kept).contains(&json!(1)),
        "message 1 was dropped"
    );
}

#[test]
fn rejected_records_and_failed_attachments_are_compared_one_by_one() {
    let place = Place::new();
    drop(
        Store::options()
            .clock(clock())
            .open(place.store())
            .unwrap()
            .sync_unit("acme/tickets")
            .unwrap()
            .begin(),
    );
    copy(&place, "before.redb");
    rejects(&place, false);
    let said = place.shows(&["diff", "before.redb", "state.redb"]);
    assert!(said.contains("acme/tickets: records rejected: none -> 1\n"), "{said}");
    assert!(
        said.contains("acme/tickets: rejected record, id ISSUE-2, item type issues (its parent "),
        "{said}"
    );
    let back = place.shows(&["diff", "state.redb", "before.redb"]);
    assert!(on_one_line(&back).contains("gone) is not rejected any more"), "{back}");

    // The oldest of 26 that failed: it is not among the newest 20.
    let place = Place::new();
    store_with_attachments(&place.store());
    copy(&place, "before.redb");
    place.shows(&["requeue", "state.redb", "acme/tickets", "--id", "A1", "--yes"]);
    let said = place.shows(&["diff", "before.redb", "state.redb"]);
    assert!(said.contains("attachment, id A1, parent id ISSUE-0: state: failed -> requeued\n"), "{said}");
    assert!(one_sided(&said).is_empty() && !said.contains(": requeued: "), "one line for one change: {said}");
}

#[test]
fn a_death_is_told_of_before_the_next_life_and_its_time_is_not_work() {
    let place = Place::new();
    let dir = place.dir.path();
    assert!(!worker(dir, "die").success());
    let shown = |args: &[&str]| {
        let output = place.dump(args).env("HIGHWATER_DUMP_NOW", "2100-01-01T00:00:00Z").assert().code(0);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let screen = on_one_line(&shown(&["state.redb"]));
    let says = "deaths 1 life of it ended without an answer; the last, life 2: no life resumed the run; lost at most: ";
    assert!(screen.contains(says), "{screen}");
    let events = on_one_line(&shown(&["events", "state.redb"]));
    assert!(
        events.contains("DEATH of life 2: stored nothing more; no life resumed the run; lost at most: "),
        "{events}"
    );
    assert!(
        on_one_line(&shown(&["tail", "state.redb", "--looks", "1"]))
            .contains("; DEATH of life 2: no life resumed the run; ")
    );
    assert!(on_one_line(&shown(&["runs", "state.redb"])).contains("1 life of it ended without an answer"));
    for args in [&["state.redb", "--json"][..], &["events", "state.redb", "--json"]] {
        let lines = place.lines(args);
        let deaths = of_kind(&lines, "death");
        assert_eq!((deaths.len(), &deaths[0]["epoch"], &deaths[0]["resumed"]), (1, &json!(2), &json!(false)));
    }
    // The process is gone for more than seventy years: they are lost, and it worked for less than an hour.
    shown(&["report", "state.redb", "--html", "page.html"]);
    let page = std::fs::read_to_string(dir.join("page.html")).unwrap();
    let of = |part: &str| {
        page.split(&format!("<title>{part}: ")).nth(1).map(|rest| rest.split('<').next().unwrap())
    };
    assert!(
        of("lost to deaths, at most").is_some_and(|lost| lost.contains("d ") && lost.contains("(100.0 %)")),
        "{page}"
    );
    assert!(of("at work").is_none_or(|work| !work.contains("d ") && !work.contains("h ")), "{page}");

    // While a process has the store open, it is not known to be dead.
    let store = Store::open(place.store()).unwrap();
    let mut tail = Process::new(DUMP)
        .current_dir(dir)
        .args(["tail", "state.redb", "--looks", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let alive = lines.next().unwrap().unwrap();
    assert!(!alive.contains("DEATH"), "{alive}");
    drop(store);
    let dead = lines.next().unwrap().unwrap();
    assert!(dead.contains("; DEATH of life 2: "), "it was told by the next look: {dead}");
    assert!(tail.wait().unwrap().success());

    assert_eq!(invocation(dir, "go on"), Some(OutcomeKind::Done));
    let lines = place.lines(&["events", "state.redb", "--json"]);
    let deaths = of_kind(&lines, "death");
    assert_eq!((deaths.len(), &deaths[0]["resumed"]), (1, &json!(true)));
}

#[test]
fn a_death_is_counted_if_its_run_is_abandoned_and_is_a_difference_as_long_as_no_life_has_recorded_it() {
    let place = Place::new();
    assert!(!worker(place.dir.path(), "die").success());
    copy(&place, "dead.redb");
    // A copy that is made while a process works looks as if it had died: that is no difference.
    let held = Store::open(place.store()).unwrap();
    assert_eq!(diff_now(&place, "state.redb", "dead.redb"), "nothing differs\n");
    drop(held);
    assert_eq!(diff_now(&place, "state.redb", "dead.redb"), "nothing differs\n");

    let abandoned = place.shows(&["abandon", "state.redb", "import", "--yes"]);
    assert!(on_one_line(&abandoned).contains(" is abandoned; "), "{abandoned}");
    let lines = place.lines(&["runs", "state.redb", "--json"]);
    let over = of_kind(&lines, "ledger");
    assert_eq!((over.len(), &over[0]["deaths"]), (1, &json!(1)), "{lines:?}");
    let lines = place.lines(&["events", "state.redb", "--json"]);
    let deaths = of_kind(&lines, "death");
    let told = (deaths.len(), &deaths[0]["epoch"], &deaths[0]["resumed"]);
    assert_eq!(told, (1, &json!(2), &json!(false)), "{lines:?}");

    // It is one to who knows only what was before it.
    let place = Place::new();
    assert_eq!(invocation(place.dir.path(), "go on"), Some(OutcomeKind::Done));
    copy(&place, "before.redb");
    assert!(!worker(place.dir.path(), "only die").success());
    let death = format!("import: death, epoch 2, run {} is new", run_of(&place));
    let said = diff_now(&place, "before.redb", "state.redb");
    assert!(on_one_line(&said).contains(&death), "{said}");

    // One that was answered died of nothing.
    let place = Place::new();
    assert_eq!(run_that(place.dir.path(), "wait"), Some(OutcomeKind::Delay));
    place.shows(&["abandon", "state.redb", "import", "--yes"]);
    let lines = place.lines(&["runs", "state.redb", "--json"]);
    assert_eq!(of_kind(&lines, "ledger")[0]["deaths"], json!(0));
}

/// What differs, at the present time.
fn diff_now(place: &Place, a: &str, b: &str) -> String {
    let diff = place.dump(&["diff", a, b]).env_remove("HIGHWATER_DUMP_NOW").assert().code(0);
    String::from_utf8(diff.get_output().stdout.clone()).unwrap()
}

/// The id of the newest run.
fn run_of(place: &Place) -> String {
    let lines = place.lines(&["state.redb", "--json"]);
    of_kind(&lines, "run")[0]["run"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_lost_with_an_open_run_is_said_before_it_is_abandoned() {
    let place = Place::new();
    assert_eq!(run_that(place.dir.path(), "wait"), Some(OutcomeKind::Delay));
    let lines = place.lines(&["state.redb", "--json"]);
    let announced: u64 =
        of_kind(&lines, "item_type").iter().map(|of| of["announced"].as_u64().unwrap()).sum();
    assert!(announced > 0, "{lines:?}");
    // While the wait lasts.
    let plan = |act: &[&str]| {
        let args = [act, &["--dry-run"]].concat();
        let output = place.dump(&args).env_remove("HIGHWATER_DUMP_NOW").assert().code(0);
        on_one_line(&String::from_utf8(output.get_output().stdout.clone()).unwrap())
    };
    let said = plan(&["abandon", "state.redb", "import"]);
    assert!(said.contains(&format!("; announced by it, and again by the next run: {announced} records")));
    assert!(said.contains("; the source wanted no requests until 20"), "{said}");
    assert!(said.contains(": the next run asks at once"), "{said}");
    let said = plan(&["reset", "state.redb", "import"]);
    assert!(said.contains(" the runs that are known have read "), "{said}");
    let events = on_one_line(&place.shows(&["events", "state.redb"]));
    assert!(events.contains(": the source asked for no requests for 10m, until 20"), "{events}");
}

/// Stores pages of five issues and a user, up to page number `until`.
fn read_until(run: &Run, until: u32) {
    let mut fetch = pages(10_000, 5);
    let batches = run.batches("issues", |cursor| match cursor {
        Some(at) if at >= until => {
            Err(highwater::Error::Invalid { what: "the test".to_owned(), reason: "it stops here".to_owned() })
        }
        cursor => fetch(cursor),
    });
    let ends = batches.map(|batch| batch.map(drop)).find(Result::is_err);
    assert!(format!("{:?}", ends.unwrap().unwrap_err()).contains("it stops here"));
}

#[test]
fn a_pace_is_that_of_the_newest_life_or_of_the_time_between_two_looks() {
    let place = Place::new();
    let clock = clock();
    let store = Store::options().clock(clock.clone()).open(place.store()).unwrap();
    let unit = store.sync_unit("acme/tickets").unwrap();
    read_until(&unit.begin().unwrap(), 3);
    clock.advance(Duration::from_secs(200));
    let run = unit.begin().unwrap();
    assert!(run.resumed());
    read_until(&run, 5);
    drop((run, unit, store));
    // Half a minute into the second life, which has read 2 of the 5 pages. (The first life's minute is within five minutes.)
    let output =
        place.dump(&["state.redb", "--json"]).env("HIGHWATER_DUMP_NOW", "2026-01-02T03:07:55Z").output();
    let lines = crate::place::json_lines(&String::from_utf8(output.unwrap().stdout).unwrap());
    let recent = &of_kind(&lines, "standing")[0]["recent"];
    assert_eq!(*recent, json!({ "pages": 2, "items": 12, "seconds": 30.0 }));

    // 6,000 records before the first look, and 12 until the second.
    let place = Place::new();
    let store = Store::open(place.store()).unwrap();
    let run = store.sync_unit("acme/tickets").unwrap().begin().unwrap();
    read_until(&run, 1_000);
    let mut tail = Process::new(DUMP)
        .current_dir(place.dir.path())
        .args(["tail", "state.redb", "--looks", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let told = |line: &str| -> u32 {
        let (_, told) = line.split_once(" read (").unwrap_or_else(|| panic!("{line}"));
        told.split_once("/s)").unwrap().0.parse().unwrap()
    };
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("6000 read"), "{first}");
    read_until(&run, 1_002);
    let second = lines.next().unwrap().unwrap();
    assert!(second.contains("6012 read"), "{second}");
    assert!(tail.wait().unwrap().success());
    // At least 2 seconds lie between two looks.
    assert!(told(&second) <= 6, "{second}");
    assert!(told(&first) > told(&second), "{first} {second}");
}

#[test]
fn an_alert_names_the_command_that_shows_more_and_reasons_are_counted() {
    let place = Place::new();
    store_with_attachments(&place.store());
    let shown = place.shows(&["state.redb"]);
    let says = "26 attachments failed. 1: 410 10, 1: 410 11, 1: 410 12, 23: other reasons; see `highwater-dump attachments \
                state.redb --failed`, `highwater-dump requeue state.redb acme/tickets`";
    assert!(on_one_line(&shown).contains(says), "{shown}");
    let (_, reasons) = shown.split_once("\n  why attachments failed\n").unwrap();
    let reasons: Vec<_> = reasons.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    assert_eq!((reasons.len(), reasons[1], reasons[11]), (12, "1  410 10", "16  other reasons"), "{shown}");

    let place = Place::new();
    rejects(&place, true);
    let shown = place.shows(&["state.redb"]);
    let says = "1 record rejected, and left out: the next run asks for them. 1: issues: its parent is \\u{202e}gone; see \
                `highwater-dump rejected state.redb`";
    assert!(on_one_line(&shown).contains(says), "{shown}");

    // With several units, the command names one; the name of a file may need quotation marks.
    let place = Place::new();
    assert_eq!(run_that(place.dir.path(), "wait"), Some(OutcomeKind::Delay));
    let see = |args: &[&str]| on_one_line(&place.shows(args));
    assert!(see(&["state.redb"]).contains("; see `highwater-dump events state.redb` run "));
    Store::open(place.store()).unwrap().sync_unit("another one").unwrap().begin().unwrap();
    copy(&place, "the state.redb");
    assert!(
        see(&["the state.redb"])
            .contains("; see `highwater-dump events 'the state.redb' --unit import` run "),
        "{}",
        see(&["the state.redb"])
    );
}

#[test]
fn what_was_mended_last_is_shown_and_why_the_queue_is_empty() {
    let place = Place::new();
    store_with_attachments(&place.store());
    assert!(!place.shows(&["state.redb"]).contains("\n  mended "));
    let mend = |args: &[&str]| {
        place.dump(args).env("USER", "oper").args(["--yes"]).assert().code(0);
    };
    mend(&["abandon", "state.redb", "acme/tickets"]);
    let shown = on_one_line(&place.shows(&["state.redb"]));
    assert!(shown.contains(", by oper: abandon the open run "), "{shown}");
    mend(&["reset", "state.redb", "acme/tickets"]);
    assert!(place.shows(&["state.redb"]).contains(", by oper: reset acme/tickets\n"));
    place.shows(&["report", "state.redb", "--html", "page.html"]);
    let page = std::fs::read_to_string(place.dir.path().join("page.html")).unwrap();
    assert!(page.contains(", by oper: reset acme/tickets"), "{page}");
    let listed = on_one_line(&place.shows(&["attachments", "state.redb"]));
    assert!(listed.starts_with("no attachment is waiting or failed mended "), "{listed}");
    assert!(
        listed.contains(", by oper: reset acme/tickets ")
            && listed.contains(" forgotten: ")
            && listed.contains(" known attachments, ")
    );
}

#[test]
fn an_attachment_that_is_looked_for_is_settled_failed_queued_again_or_dropped() {
    let place = Place::new();
    store_with_attachments(&place.store());
    let first = "run 20260102T030405.000000Z, which was over 2026-01-02T03:04:05Z (1h 1m ago)";
    let open = "run 20260102T030505.000000Z, which is open";
    let find = |id: &str| on_one_line(&place.shows(&["find", "state.redb", id]));
    for (id, says) in [
        ("A0", format!("attachment of ISSUE-0: settled: the platform has it, from {first} ")),
        ("A1", format!("attachment of ISSUE-0: failed, in {first}: ")),
        ("A2", "attachment of ISSUE-1: it had failed and is queued again: the next run ".to_owned()),
        ("A10", format!("attachment of ISSUE-5: settled: the platform has it, from {open} ")),
        ("A11", format!("attachment of ISSUE-5: waiting, in the queue of {open} ")),
        ("A12", format!("attachment of ISSUE-6: failed, in {open}: ")),
    ] {
        assert!(find(id).starts_with(&says), "{id}: {}", find(id));
    }
    assert!(
        find("A1").ends_with("`highwater-dump requeue state.redb acme/tickets --id A1` has it tried again")
    );
    place.shows(&["requeue", "state.redb", "acme/tickets", "--id", "A1", "--yes"]);
    let found = find("A1");
    assert!(found.contains(": it had failed and is queued again: ") && !found.contains(" --id "), "{found}");
    let lines = place.lines(&["find", "state.redb", "A1", "--json"]);
    let found = of_kind(&lines, "found")[0];
    assert_eq!((&found["attachments"], &found["attachments_failed"]), (&json!(1), &json!(0)));
    assert_eq!(found["attachments_found"][0]["state"], "requeued");
    place.shows(&["abandon", "state.redb", "acme/tickets", "--yes"]);
    assert!(find("A11").starts_with("attachment of ISSUE-5: not transferred: run "), "{}", find("A11"));
    assert!(
        find("A11").ends_with("start a sync; it is queued again when the source names it"),
        "{}",
        find("A11")
    );
    assert!(find("ISSUE-0").contains("the run was abandoned, and what it had not announced was dropped"));
}

#[test]
fn attachments_are_listed_by_reason_as_they_are_queued_again() {
    let place = Place::new();
    store_with_attachments(&place.store());
    let lines = place.lines(&["attachments", "state.redb", "--failed", "--json"]);
    let all = of_kind(&lines, "attachment");
    let reason = all[0]["reason"].as_str().unwrap();
    let lines = place.lines(&["attachments", "state.redb", "--reason", reason, "--json"]);
    let alike = all.iter().filter(|one| one["reason"].as_str().unwrap().contains(reason)).count();
    assert_eq!(of_kind(&lines, "attachment").len(), alike);
    let plan = place.shows(&["requeue", "state.redb", "acme/tickets", "--reason", reason, "--dry-run"]);
    assert!(plan.contains(&format!("queued again: {alike} failed attachment")), "{plan}");
    let none = place.shows(&["attachments", "state.redb", "--reason", "no such"]);
    assert!(none.starts_with("no attachment has such a reason\n"), "{none}");
}

#[test]
fn a_list_of_none_of_the_newest_does_not_say_that_there_are_none() {
    let place = Place::new();
    store_amid_work(&place.store());
    place.shows(&["abandon", "state.redb", "acme/tickets", "--yes"]);
    for command in ["runs", "events", "attachments", "rejected", "batch"] {
        let said = place.shows(&[command, "state.redb", "--unit", "acme/tickets", "--last", "0"]);
        assert!(said.starts_with("none is listed: --last 0\n"), "{command}: {said}");
    }
}

#[test]
fn a_record_of_which_nothing_is_kept_says_why() {
    let place = Place::new();
    rejects(&place, true);
    let output = place.dump(&["rejected", "state.redb", "--content"]).env_remove("COLUMNS").assert().code(0);
    let listed = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    let says = "not kept: it was rejected by its id, or is not among the first of its kind";
    assert!(listed.contains(says) && listed.contains("rejected, to be asked for again"), "{listed}");
    let found = place.shows(&["find", "state.redb", "ISSUE-2"]);
    assert!(found.starts_with("issues: rejected, to be asked for again: its parent is "), "{found}");
}

#[test]
fn an_error_names_the_flag_or_the_command_that_helps() {
    let place = Place::new();
    store_with_attachments(&place.store());
    let refused = |args: &[&str]| {
        let (code, stdout, stderr) = place.says(args);
        assert_eq!(code, Some(1), "{args:?}: {stdout}{stderr}");
        stderr
    };
    let stderr = refused(&["requeue", "state.redb", "acme/tickets", "--reason", "no such", "--yes"]);
    assert!(stderr.contains(
        "no failed attachment matches; `highwater-dump attachments state.redb --unit acme/tickets"
    ));
    let stderr = refused(&["requeue", "state.redb", "acme/tickets", "--id", "A11", "--dry-run"]);
    assert!(stderr.contains("no failed attachment matches"), "{stderr}");
    let stderr = refused(&["export", "state.redb", "acme/ticket", "unit.jsonl"]);
    assert!(stderr.contains("no sync unit \"acme/ticket\"; did you mean acme/tickets?"), "{stderr}");
    let stderr = refused(&["export", "state.redb", "widgets", "unit.jsonl"]);
    assert!(
        stderr.contains("state.redb has no sync unit \"widgets\"; `highwater-dump state.redb` lists"),
        "{stderr}"
    );
    let stderr = refused(&["rewind", "state.redb", "acme/tickets", "--to", "-1d"]);
    assert!(stderr.contains("A time is written 2026-01-31, or "), "{stderr}");
    let stderr = refused(&["set-cursor", "state.redb", "acme/tickets", "isues", "1", "--yes"]);
    assert!(stderr.contains("(--force)"), "{stderr}");
    place.shows(&["abandon", "state.redb", "acme/tickets", "--yes"]);
    place.shows(&["export", "state.redb", "acme/tickets", "unit.jsonl"]);
    let stderr = refused(&["import", "state.redb", "unit.jsonl", "--yes"]);
    assert!(stderr.contains("(--replace)"), "{stderr}");
    let stderr = refused(&["unit.jsonl"]);
    assert!(stderr.contains("an exported sync unit, which `highwater-dump import` reads"), "{stderr}");

    let usage = |command: &mut assert_cmd::Command| {
        String::from_utf8(command.assert().code(2).get_output().stderr.clone()).unwrap()
    };
    let stderr = usage(&mut place.dump(&["reset", "acme/tickets", "state.redb"]));
    assert!(
        stderr.contains("the store comes before the sync unit: highwater-dump reset state.redb acme/tickets"),
        "{stderr}"
    );
    let stderr = usage(place.dump(&["state.redb"]).env("HIGHWATER_DUMP_NOW", "yesterday"));
    assert!(stderr.contains("HIGHWATER_DUMP_NOW=yesterday is not a time"), "{stderr}");
    usage(&mut place.dump(&["find", "state.redb", ""]));
}

#[test]
fn a_unit_is_named_as_screens_show_it() {
    let place = Place::new();
    let id = "acme\u{202e}/x y";
    drop(Store::options().clock(clock()).open(place.store()).unwrap().sync_unit(id).unwrap().begin());
    let shown = place.shows(&["state.redb"]);
    let name = shown.lines().next().unwrap().strip_prefix("sync unit ").unwrap();
    assert_eq!(name, "acme\\u{202e}/x y");
    for args in [
        &["state.redb", "--unit", name][..],
        &["runs", "state.redb", "--unit", name],
        &["tail", "state.redb", "--looks", "1", "--unit", name],
        &["report", "state.redb", "--html", "page.html", "--unit", name],
        &["diff", "state.redb", "state.redb", "--unit", name],
        &["acts", "state.redb", "--unit", name],
        &["abandon", "state.redb", name, "--yes"],
        &["export", "state.redb", name, "unit.jsonl"],
    ] {
        place.shows(args);
    }
    assert!(place.shows(&["acts", "state.redb", "--unit", name]).contains("abandon the open run "));
    let (code, _, _) = place.says(&["runs", "state.redb", "--unit", "acme\\u{202e}/x"]);
    assert_eq!(code, Some(1));
}

#[test]
fn the_copies_of_earlier_commands_are_counted_and_left() {
    let place = Place::new();
    store_amid_work(&place.store());
    let abandon = |unit: &str| place.shows(&["abandon", "state.redb", unit, "--yes"]);
    let first = abandon("another");
    assert!(
        first.contains("done; the copy made before: state.redb.before-abandon-") && !first.contains("older")
    );
    let second = abandon("acme/tickets");
    assert!(second.contains("1 older copy of state.redb beside it, "), "{second}");
    let said = place.shows(&["reset", "state.redb", "acme/tickets", "--yes", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["older_backups"]["files"], 2);
    let copies = || {
        let files = std::fs::read_dir(place.dir.path()).unwrap().map(|file| file.unwrap());
        files.filter(|file| file.file_name().to_string_lossy().contains(".before-")).collect::<Vec<_>>()
    };
    assert_eq!(copies().len(), 3);
    for file in copies() {
        place.shows(&["check", file.path().to_str().unwrap()]);
    }
}

#[cfg(unix)]
#[test]
fn zeros_take_no_space_in_a_copy() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).open(dir.path().join(name)).unwrap()
    };
    let (from, to, dense) = (open("from"), open("to"), open("dense"));
    let zeros = 1 << 20;
    let mut bytes = vec![0; zeros];
    bytes.extend_from_slice(&vec![7; 100_000]);
    bytes.extend_from_slice(&vec![0; zeros]);
    std::io::Write::write_all(&mut &from, &bytes).unwrap();
    std::io::Write::write_all(&mut &dense, &bytes).unwrap();
    highwater::inspect::copy_file(&from, &to).unwrap();
    assert!(std::fs::read(dir.path().join("to")).unwrap() == bytes);
    let on_disk = |file: &std::fs::File| file.metadata().unwrap().blocks() * 512;
    assert!(
        on_disk(&to) < 300_000 && on_disk(&dense) >= bytes.len() as u64,
        "{} {}",
        on_disk(&to),
        on_disk(&dense)
    );
}

#[test]
fn the_help_explains_the_words_that_screens_use() {
    let place = Place::new();
    let help = place.shows(&["--help"]);
    for word in [
        "life",
        "epoch",
        "run",
        "batch",
        "staged",
        "uploaded",
        "confirmed",
        "announced",
        "settled",
        "watermark",
    ] {
        assert!(
            help.contains(&format!("  {word} ")) || help.contains(&format!("{word}\n")),
            "{word}: {help}"
        );
    }
    assert!(place.shows(&["man"]).contains("confirmed  the platform has linked"));
}

#[test]
fn a_page_that_is_damaged_is_told_without_words_of_the_database() {
    let place = Place::new();
    store_amid_work(&place.store());
    let mut bytes = std::fs::read(place.store()).unwrap();
    // Where a batch is: its records are not compressed.
    let at = bytes.windows(8).position(|window| window == b"ISSUE-10").unwrap();
    bytes[at] ^= 1;
    std::fs::write(place.store(), bytes).unwrap();
    let (code, _, stderr) = place.says(&["state.redb"]);
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("pages of its newest commit do not match their checksums"), "{stderr}");
    assert!(!stderr.contains("rimary"), "{stderr}");
}
