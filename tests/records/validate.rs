//! `highwater-dump validate-metadata` and `validate-data`: their output and exit codes.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use assert_cmd::Command;
use serde_json::{Value, json};

const METADATA: &str = r##"{
  "schema_version": "v0.2.0",
  "record_types": {
    "users": {"fields": {}},
    "issues": {"fields": {
      "title": {"type": "text", "is_required": true},
      "owner": {"type": "reference", "reference": {"refers_to": {"#record:users": {}}}}
    }}
  }
}
"##;

const RECORDS: &str = "{\"id\":\"1\",\"data\":{\"title\":\"a\",\"owner\":\"7\"}}\n{\"id\":\"2\",\"data\":{\"title\":\"b\",\"owner\":7}}\n";

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }
}

fn dump(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("highwater-dump"));
    command.args(args);
    command
}

/// Exit code, standard output, standard error.
fn run(args: &[&str], input: impl AsRef<[u8]>) -> (i32, String, String) {
    let output = dump(args).write_stdin(input.as_ref()).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn findings(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn right_metadata_exits_with_0_from_a_file_and_from_standard_input() {
    let dir = Dir::new();
    let path = dir.file("md.json", METADATA);
    let name = path.to_str().unwrap();
    let expected = |name: &str| (0, format!("{name}: 2 record types: nothing found\n"), String::new());
    assert_eq!(run(&["validate-metadata", name], ""), expected(name));
    assert_eq!(run(&["validate-metadata", "-m", name], ""), expected(name));
    assert_eq!(run(&["validate-metadata"], METADATA), expected("(standard input)"));
    assert_eq!(run(&["validate-metadata", "-"], METADATA), expected("(standard input)"));
    assert_eq!(run(&["validate-metadata", "--json"], METADATA), (0, String::new(), String::new()));
}

#[test]
fn wrong_metadata_exits_with_3_and_shows_where() {
    let wrong = METADATA.replace("#record:users", "#record:user");
    let (code, out, err) = run(&["validate-metadata"], &wrong);
    assert_eq!((code, err.as_str()), (3, ""));
    let expected = r##"(standard input):7: error: record_types.issues.fields.owner.reference.refers_to.#record:user: the record type "user" is not declared under record_types
    | ...reference", "reference": {"refers_to": {"#record:user": {}}}}
    |                                            ^^^^^^^^^^^^^^
    = did you mean "users"?
(standard input): 2 record types: 1 error
"##;
    assert_eq!(out, expected);
    let (code, out, _) = run(&["validate-metadata", "--json"], &wrong);
    assert_eq!(code, 3);
    let findings = findings(&out);
    assert_eq!(findings.len(), 1);
    assert_eq!(
        (&findings[0]["kind"], &findings[0]["rule"], &findings[0]["line"]),
        (&json!("finding"), &json!("reference"), &json!(7))
    );
    assert_eq!(findings[0]["file"], "(standard input)");
}

#[test]
fn warnings_alone_exit_with_0() {
    let odd = METADATA.replace("\"users\": {", "\"users\": {\"nmae\": \"User\", ");
    let (code, out, _) = run(&["validate-metadata"], &odd);
    assert_eq!(code, 0);
    assert!(
        out.contains("warning: record_types.users.nmae") && out.ends_with("2 record types: 1 warning\n"),
        "{out}"
    );
}

#[test]
fn what_is_no_json_exits_with_3_and_what_cannot_be_read_with_1() {
    let (code, out, err) = run(&["validate-metadata"], "{\n\"a\": }");
    assert_eq!((code, err.as_str()), (3, ""));
    assert!(out.starts_with("(standard input):2: error: the text is not JSON: "), "{out}");
    assert_eq!(run(&["validate-metadata"], b"{\"a\": \"\xff\"}").0, 3);
    let (code, out, err) = run(&["validate-metadata", "/no/such/file"], "");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("highwater-dump: cannot open /no/such/file: "), "{err}");
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA);
    let metadata = metadata.to_str().unwrap();
    assert_eq!(run(&["validate-data", "-m", metadata, "-r", "issues", "/no/such/file"], "").0, 1);
    assert_eq!(run(&["validate-data", "-m", "/no/such/file", "-r", "issues"], "").0, 1);
    // A directory opens, and does not read.
    let (code, _, err) =
        run(&["validate-data", "-m", metadata, "-r", "issues", dir.0.path().to_str().unwrap()], "");
    assert_eq!(code, 1, "{err}");
    // Gzip that is cut off.
    let mut gzipped = gzip(RECORDS.as_bytes());
    gzipped.truncate(gzipped.len() - 6);
    let (code, _, err) = run(&["validate-data", "-m", metadata, "-r", "issues"], gzipped);
    assert_eq!(code, 1);
    assert!(err.starts_with("highwater-dump: cannot read (standard input): "), "{err}");
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut gzip =
        Process::new("gzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip is installed");
    gzip.stdin.take().unwrap().write_all(text).unwrap();
    gzip.wait_with_output().unwrap().stdout
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA);
    let metadata = metadata.to_str().unwrap();
    for args in [
        &[][..],
        &["validate-metadata", "--wombat"],
        &["validate-metadata", "-r", "issues"],
        &["validate-metadata", "-m", metadata, "more.json"],
        &["validate-data", "-m", metadata],
        &["validate-data", "-r", "issues"],
        &["validate-data", "-m", "-", "-r", "issues", "-"],
        &["validate-data", "-m", "-", "-r", "issues"],
    ] {
        let (code, out, err) = run(args, "");
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(!err.is_empty());
    }
    let (code, _, err) = run(&["validate-data", "-m", metadata, "-r", "isues"], RECORDS);
    assert_eq!(code, 2);
    assert!(err.contains("no record type \"isues\": did you mean \"issues\"?"), "{err}");
}

#[test]
fn records_are_checked_by_either_name_of_the_command() {
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA);
    let metadata = metadata.to_str().unwrap();
    let records = dir.file("records.jsonl", RECORDS);
    let records = records.to_str().unwrap();
    let (code, out, err) = run(&["validate-data", "-m", metadata, "-r", "issues", records], "");
    assert_eq!((code, err.as_str()), (3, ""));
    assert!(out.starts_with(&format!("{records}:2: error: record \"2\": data.owner: a reference is a string, but this is the number 7\n")), "{out}");
    assert!(out.ends_with(&format!("{records}: 2 records: 1 error\n")), "{out}");
    let by_stdin = |command: &str, input: &[u8]| run(&[command, "-m", metadata, "-r", "issues"], input);
    let expected = out.replace(records, "(standard input)");
    assert_eq!(by_stdin("validate-data", RECORDS.as_bytes()), (3, expected.clone(), String::new()));
    assert_eq!(by_stdin("validate-metadata", RECORDS.as_bytes()), (3, expected.clone(), String::new()));
    assert_eq!(by_stdin("validate-metadata", &gzip(RECORDS.as_bytes())), (3, expected, String::new()));
    let first = RECORDS.lines().next().unwrap();
    assert_eq!(
        by_stdin("validate-data", first.as_bytes()),
        (0, "(standard input): 1 record: nothing found\n".into(), String::new())
    );
    assert_eq!(
        by_stdin("validate-data", b""),
        (0, "(standard input): 0 records: nothing found\n".into(), String::new())
    );
    // Gzipped metadata, too.
    let zipped = dir.file("md.json.gz", gzip(METADATA.as_bytes()));
    assert_eq!(run(&["validate-data", "-m", zipped.to_str().unwrap(), "-r", "issues", records], "").0, 3);
}

#[test]
fn options_make_warnings_and_silence_into_errors() {
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA);
    let metadata = metadata.to_str().unwrap();
    let record = r#"{"id":"1","data":{"title":"a","wombat":1}}"#;
    let code =
        |more: &[&str]| run(&[&["validate-data", "-m", metadata, "-r", "issues"], more].concat(), record).0;
    assert_eq!(code(&[]), 0);
    assert_eq!(code(&["--refuse-undeclared"]), 3);
    assert_eq!(code(&["--require-dates"]), 3);
}

#[test]
fn errors_of_the_metadata_count_when_records_are_checked() {
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA.replace("#record:users", "#record:user"));
    let (code, out, _) = run(&["validate-data", "-m", metadata.to_str().unwrap(), "-r", "issues"], RECORDS);
    assert_eq!(code, 3);
    assert!(
        out.contains("md.json:7: error: ") && out.contains("(standard input): 2 records: nothing found"),
        "{out}"
    );
}

fn wrong_records(count: u32) -> String {
    let line = |n| format!("{{\"id\":\"{n}\",\"data\":{{\"title\":\"a\",\"owner\":{n}}}}}\n");
    (0..count).map(line).collect::<Vec<_>>().concat()
}

#[test]
fn of_each_kind_the_first_ten_are_shown_to_people_and_all_to_scripts() {
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA);
    let metadata = metadata.to_str().unwrap();
    let records = wrong_records(25);
    let run =
        |more: &[&str]| run(&[&["validate-data", "-m", metadata, "-r", "issues"], more].concat(), &records);
    let (code, out, _) = run(&[]);
    assert_eq!((code, out.matches(": error: ").count()), (3, 10));
    assert!(out.contains("15 more errors of the rule reference_form at data.owner"), "{out}");
    assert!(out.ends_with("25 records: 25 errors\n"), "{out}");
    let (_, out, _) = run(&["--all"]);
    assert_eq!(out.matches(": error: ").count(), 25);
    let (_, out, _) = run(&["--json"]);
    assert_eq!(findings(&out).len(), 25);
}

#[test]
fn what_could_mislead_a_terminal_is_escaped() {
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA);
    let metadata = metadata.to_str().unwrap();
    // Raw bidi characters in the document, and a control character by JSON's escape.
    let record = "{\"id\":\"\u{202e}1\",\"data\":{\"title\":\"a\",\"owner\":[\"\u{202e}b\"],\"x\u{2066}y\":\"\\u001b[31m\"}}\n{\"\u{1b}";
    let (code, out, _) = run(&["validate-data", "-m", metadata, "-r", "issues"], record);
    assert_eq!(code, 3);
    assert!(out.chars().all(|c| c == '\n' || !c.is_control()), "{out:?}");
    assert!(!out.contains(['\u{202e}', '\u{2066}']), "{out:?}");
    assert!(out.contains("\\u{202e}") && out.contains("\\u{2066}"), "{out}");
    let (_, out, _) = run(&["validate-data", "-m", metadata, "-r", "issues", "--json"], record);
    assert!(
        out.chars().all(|c| c == '\n' || !c.is_control()) && !out.contains(['\u{202e}', '\u{2066}']),
        "{out:?}"
    );
    // And it is still the same JSON.
    assert_eq!(findings(&out)[0]["record"], "\u{202e}1");
    let (code, _, err) = run(&["validate-metadata", "/no/\u{1b}[31m\u{202e}"], "");
    assert_eq!(code, 1);
    assert!(!err.contains(['\u{1b}', '\u{202e}']), "{err:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = Dir::new();
    let metadata = dir.file("md.json", METADATA);
    let records = wrong_records(20_000);
    let records = dir.file("records.jsonl", records);
    for format in ["--json", "--all"] {
        let mut child = Process::new(assert_cmd::cargo::cargo_bin!("highwater-dump"))
            .args(["validate-data", "-r", "issues", format, "-m"])
            .args([&metadata, &records])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 100];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{format}");
    }
}

#[test]
fn help_lists_the_exit_codes() {
    for command in ["validate-metadata", "validate-data"] {
        let (code, out, _) = run(&[command, "--help"], "");
        assert_eq!(code, 0);
        assert!(out.contains("Exit codes:") && out.contains("3  errors found"), "{out}");
    }
}
