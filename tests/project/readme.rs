//! What the README says of the limits is what they are. (Its examples are doctests of the crate.)

use std::collections::BTreeMap;

use highwater::limits;

#[test]
fn the_table_of_limits_has_every_limit_at_its_value() {
    let constants: BTreeMap<&str, u64> = [
        ("BATCH_ITEMS", u64::from(limits::BATCH_ITEMS)),
        ("EXTERNAL_SYNC_UNIT_BATCH_ITEMS", limits::EXTERNAL_SYNC_UNIT_BATCH_ITEMS.into()),
        ("BATCH_BYTES_MAX", limits::BATCH_BYTES_MAX),
        ("OPEN_BATCHES_MAX", limits::OPEN_BATCHES_MAX),
        ("CURSOR_BYTES_MAX", limits::CURSOR_BYTES_MAX as u64),
        ("VALUE_BYTES_MAX", limits::VALUE_BYTES_MAX as u64),
        ("ID_BYTES_MAX", limits::ID_BYTES_MAX as u64),
        ("MESSAGE_BYTES_SOFT", limits::MESSAGE_BYTES_SOFT as u64),
        ("MESSAGE_BYTES_MAX", limits::MESSAGE_BYTES_MAX as u64),
        ("CHECKPOINT_BYTES_SOFT", limits::CHECKPOINT_BYTES_SOFT as u64),
        ("CHECKPOINT_BYTES_MAX", limits::CHECKPOINT_BYTES_MAX as u64),
        ("CHECKPOINT_STATE_BYTES_MAX", limits::CHECKPOINT_STATE_BYTES_MAX as u64),
        ("FINDINGS_KEPT", limits::FINDINGS_KEPT),
        ("FINDING_BYTES_MAX", limits::FINDING_BYTES_MAX as u64),
        ("FINDING_KINDS_MAX", limits::FINDING_KINDS_MAX as u64),
        ("LEDGER_RUNS_MAX", limits::LEDGER_RUNS_MAX),
        ("CLOCK_AHEAD_MAX", limits::CLOCK_AHEAD_MAX.as_secs()),
    ]
    .into();
    let readme = include_str!("../../README.md");
    let (_, table) = readme.split_once("| limit (`highwater::limits`)").expect("the README has its limits");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let said: BTreeMap<&str, u64> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let digits: String = cells[2].chars().filter(char::is_ascii_digit).collect();
            (cells[1].trim_matches('`'), digits.parse().expect("a number"))
        })
        .collect();
    assert_eq!(said, constants);
    // And these are all there are.
    let exported = include_str!("../../src/lib.rs").split_once("pub mod limits {").expect("the module").1;
    let exported = exported.split_once("};").expect("its end").0;
    for name in exported.split(|c: char| !(c.is_ascii_uppercase() || c == '_')).filter(|name| name.len() > 2)
    {
        assert!(constants.contains_key(name), "{name} is not in the README");
    }
}

#[test]
fn the_exploration_of_the_git_extractor_stands_in_its_test() {
    let readme = include_str!("../../README.md");
    let (_, shown) = readme.split_once("```rust,ignore\n").expect("the README shows it");
    let (shown, _) = shown.split_once("```").expect("its end");
    let test = include_str!("../../examples/git/tests/explore.rs");
    let test: Vec<&str> = test.lines().map(str::trim).collect();
    let shown: Vec<&str> = shown.lines().map(str::trim).collect();
    assert!(test.windows(shown.len()).any(|lines| lines == shown), "{shown:?}");
}
