//! The synthetic worker as a program: what it prints when it is used incorrectly. (`highwater-airdrop`, which plays
//! the platform for it, shows that it keeps the promise.)

use std::process::{Command, Output};

fn invoke(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_synthetic-extractor")).arg("invoke").args(args).output().unwrap()
}

#[test]
fn an_event_that_cannot_be_read_is_an_error_that_names_it() {
    let missing = invoke(&["--event", "no-such-file.json"]);
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(missing.status.code() == Some(1) && said.contains("no-such-file.json"), "{said}");
    let none = invoke(&["--items", "10"]);
    assert_eq!(none.status.code(), Some(2), "an event is needed");
}
